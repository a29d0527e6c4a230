//! Addresses that lead to another server than before: of another cluster, or an old primary.
//! Nothing is written there.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use trunkline::wire::frame::ErrorFields;

use super::cluster::postgres::{Pair18, Postgres};
use super::cluster::{Options, Router, eventually, fresh_address, output, secret};
use super::fake::{cheap_verifier, trusting};
use super::raw::{Client, Login, at, shown};

const LIMIT: Duration = Duration::from_secs(20);
const TOKEN: &str = "a-token-of-24-characters";

/// A port that forwards to one server after the other; what is connected stays where it is.
struct Forward {
    address: Ipv4Addr,
    to: Arc<Mutex<SocketAddr>>,
}

impl Forward {
    fn to(server: &Postgres) -> Self {
        let address = fresh_address();
        let listener = TcpListener::bind((address, 5432)).unwrap();
        let to = Arc::new(Mutex::new(place(server)));
        let target = Arc::clone(&to);
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let to = *target.lock().unwrap();
                let Ok(server) = TcpStream::connect(to) else {
                    continue;
                };
                for (mut from, mut into) in [
                    (client.try_clone().unwrap(), server.try_clone().unwrap()),
                    (server, client),
                ] {
                    thread::spawn(move || {
                        let _ = io::copy(&mut from, &mut into);
                        let _ = into.shutdown(Shutdown::Both);
                    });
                }
            }
        });
        Self { address, to }
    }

    fn lead_to(&self, server: &Postgres) {
        *self.to.lock().unwrap() = place(server);
    }
}

fn place(server: &Postgres) -> SocketAddr {
    (server.address, server.port).into()
}

/// With a table to write to, from every session's database.
fn server() -> Postgres {
    let server = trusting(false);
    server.sql("CREATE TABLE t (at timestamptz DEFAULT clock_timestamp()); GRANT ALL ON t TO app");
    server
}

fn rows(server: &Postgres) -> u64 {
    server.sql("SELECT count(*) FROM t").parse().unwrap()
}

/// A router before `servers`, in the notation of a fixed list, which all trust everybody.
fn router(source: &str, listeners: &str) -> Router {
    let dir = tempfile::tempdir().unwrap().keep();
    let users = secret(&dir, "users", &format!("\"app\" \"{}\"", cheap_verifier()));
    let token = secret(&dir, "token", TOKEN);
    let options = Options {
        clusters: Some(format!(
            "clusters:\n  main:\n    {source}\n    service_account: {{user: trunkline, dbname: postgres}}\n    \
             server_tls: {{sslmode: disable}}\n"
        )),
        extra: format!("auth: {{users_file: {}}}\n", users.display()),
        http: format!("token_file: {}", token.display()),
        listeners: (!listeners.is_empty()).then(|| listeners.to_owned()),
        ..Options::default()
    };
    let router = Router::launch(None, options);
    await_leader(&router);
    router
}

fn before(forward: &Forward) -> Router {
    router(
        &format!("servers: [{{name: db1, host: {}, port: 5432}}]", forward.address),
        "",
    )
}

fn has_leader(router: &Router) -> bool {
    let answer = router.http("/connection/is-ready-rw?strict=1");
    answer.is_some_and(|(status, _)| status == 200)
}

fn await_leader(router: &Router) {
    eventually("there is a leader", LIMIT, || has_leader(router));
}

fn session(router: &Router, port: u16) -> Result<Client, ErrorFields> {
    Client::try_login(
        at(router, port),
        Login {
            parameters: &[("database", "postgres")],
            ..Login::default()
        },
    )
}

/// Logs in and writes; the SQLSTATE of what stands in the way.
fn write(router: &Router) -> Result<(), String> {
    let mut client = session(router, 6432).map_err(|error| error.code.to_string())?;
    client.value("INSERT INTO t DEFAULT VALUES RETURNING 1");
    Ok(())
}

/// The probe's connection is as old as it may not be for a login to rely on it, and younger than
/// every login.
fn await_quiet(server: &Postgres) {
    let sql = "SELECT min(backend_start) < clock_timestamp() - interval '400 ms' FROM pg_stat_activity \
               WHERE application_name = 'trunkline probe' AND backend_start > (SELECT max(at) FROM t)";
    eventually("the last look is over", LIMIT, || server.sql(sql) == "t");
}

/// How the session ended: the SQLSTATE and the sentence.
fn await_end(client: &mut Client) -> (String, String) {
    let frames = client.rest();
    let error = frames.iter().find(|frame| frame.tag == b'E');
    let error = ErrorFields::parse(&error.unwrap_or_else(|| panic!("{:?}", shown(&frames))).body).unwrap();
    (error.code.to_string(), error.message)
}

#[test]
fn nothing_is_written_to_a_server_of_another_cluster() {
    let (ours, theirs) = (server(), server());
    let forward = Forward::to(&ours);
    let router = before(&forward);
    write(&router).unwrap();
    let mut kept = session(&router, 6432).unwrap();
    write(&router).unwrap();
    await_quiet(&ours);
    let written = rows(&ours);

    forward.lead_to(&theirs);
    let mut refused = 0;
    eventually("the probe has noticed", LIMIT, || {
        assert_eq!(write(&router), Err("57P03".to_owned()));
        refused += 1;
        !has_leader(&router)
    });
    let error = session(&router, 6432).unwrap_err();
    assert!(error.message.contains("belongs to another cluster"), "{error:?}");
    assert_eq!((rows(&ours), rows(&theirs)), (written, 0));
    assert_eq!(kept.value("SELECT 1"), "1", "it is where it was");
    router.await_log(&["belongs to another cluster", "forget-identity"]);

    forward.lead_to(&ours);
    await_leader(&router);
    write(&router).unwrap();
    assert_eq!((rows(&ours), rows(&theirs)), (written + 1, 0));
    kept.value("INSERT INTO t DEFAULT VALUES RETURNING 1");
    assert_eq!(rows(&ours), written + 2);
}

/// Just after a look, a session may be led there before anybody can know. It is ended, and stays
/// so.
#[test]
fn sessions_that_were_led_to_another_cluster_are_ended_and_do_not_come_back_with_the_address() {
    let (ours, theirs) = (server(), server());
    let forward = Forward::to(&ours);
    let router = before(&forward);
    write(&router).unwrap();
    forward.lead_to(&theirs);
    let led = session(&router, 6432);
    let on_theirs = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app'";
    eventually("nobody is led there any more", LIMIT, || !has_leader(&router));
    forward.lead_to(&ours);
    await_leader(&router);
    match led {
        Ok(mut client) => {
            let (code, why) = await_end(&mut client);
            assert_eq!(code, "57P01");
            assert!(why.contains("another cluster"), "{why}");
        }
        // On a machine that was busy for so long that the look was too old.
        Err(error) => assert_eq!(error.code, "57P03"),
    }
    eventually("nobody is left there", LIMIT, || theirs.sql(on_theirs) == "0");
    write(&router).unwrap();
    assert_eq!((rows(&ours), rows(&theirs)), (2, 0));
}

#[test]
fn a_role_that_may_not_ask_is_believed_as_far_as_the_prober_sees() {
    let (ours, theirs) = (server(), server());
    for server in [&ours, &theirs] {
        for function in ["pg_control_system()", "pg_control_checkpoint()"] {
            server.sql(&format!(
                "REVOKE EXECUTE ON FUNCTION {function} FROM PUBLIC; GRANT EXECUTE ON FUNCTION {function} TO trunkline"
            ));
        }
    }
    let forward = Forward::to(&ours);
    let router = before(&forward);
    write(&router).unwrap();
    await_quiet(&ours);
    forward.lead_to(&theirs);
    eventually("the probe has noticed", LIMIT, || {
        assert_eq!(write(&router), Err("57P03".to_owned()));
        !has_leader(&router)
    });
    forward.lead_to(&ours);
    await_leader(&router);
    write(&router).unwrap();
    assert_eq!((rows(&ours), rows(&theirs)), (2, 0));
}

#[test]
fn connections_that_are_only_forwarded_are_not_led_to_another_cluster_either() {
    let (ours, theirs) = (server(), server());
    let forward = Forward::to(&ours);
    let router = router(
        &format!("servers: [{{name: db1, host: {}, port: 5432}}]", forward.address),
        "  - {name: rw, address: \"{address}:6432\", route: read-write, mode: tcp}\n",
    );
    write(&router).unwrap();
    await_quiet(&ours);
    forward.lead_to(&theirs);
    eventually("the probe has noticed", LIMIT, || {
        assert_eq!(write(&router), Err("57P03".to_owned()));
        !has_leader(&router)
    });
    assert_eq!((rows(&ours), rows(&theirs)), (1, 0));
    forward.lead_to(&ours);
    await_leader(&router);
    write(&router).unwrap();
}

/// `trunkline ARGUMENTS -c FILE`
fn run(router: &Router, arguments: &[&str]) -> Output {
    let config = router.dir().join("trunkline.yaml");
    let mut command = Command::new(env!("CARGO_BIN_EXE_trunkline"));
    output(command.args(arguments).arg("-c").arg(config))
}

#[test]
fn a_cluster_that_was_made_anew_is_used_once_an_operator_says_so() {
    let (ours, theirs) = (server(), server());
    let forward = Forward::to(&ours);
    let router = before(&forward);
    let mut old = session(&router, 6432).unwrap();
    forward.lead_to(&theirs);
    eventually("the probe has noticed", LIMIT, || !has_leader(&router));
    let wrong = run(&router, &["forget-identity", "nobody"]);
    assert_eq!(wrong.status.code(), Some(1));
    let identifier = ours.sql("SELECT system_identifier FROM pg_control_system()");
    let done = run(&router, &["forget-identity", "main"]);
    assert_eq!(
        String::from_utf8_lossy(&done.stdout),
        format!("main: system identifier {identifier} is forgotten\n")
    );
    await_leader(&router);
    write(&router).unwrap();
    assert_eq!((rows(&ours), rows(&theirs)), (0, 1));
    let (code, why) = await_end(&mut old);
    assert_eq!(code, "57P01");
    assert!(why.contains("another cluster"), "{why}");
}

/// A virtual address that moves to the promoted standby, and back to the primary that was left
/// behind.
#[test]
fn an_old_primary_of_the_same_cluster_is_not_the_leader() {
    let pair = Pair18::start();
    let (old, new) = (&pair.primary, &pair.standby);
    old.sql("CREATE TABLE t (at timestamptz DEFAULT clock_timestamp()); GRANT ALL ON t TO app");
    let forward = Forward::to(old);
    let dir = tempfile::tempdir().unwrap();
    let password = secret(dir.path(), "pw", "trunkline");
    let router = Router::launch(
        None,
        Options {
            clusters: Some(format!(
                "clusters:\n  main:\n    servers: [{{name: vip, host: {}, port: 5432}}]\n    service_account: \
                 {{user: trunkline, password_file: {}}}\n    server_tls: {{sslmode: require}}\n",
                forward.address,
                password.display()
            )),
            ..Options::default()
        },
    );
    await_leader(&router);
    let insert = "INSERT INTO t DEFAULT VALUES";
    let write = || router.psql_output(6432, "dbname=postgres", insert);
    let says = |done: &Output| String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(write().status.success());
    let mut kept = Command::new("psql")
        .args(["-XAtq", "-c", "SELECT pg_sleep(600)"])
        .arg(router.dsn(6432, "dbname=postgres"))
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let sleeping = "SELECT count(*) FROM pg_stat_activity WHERE query ~ '^SELECT pg_sleep'";
    eventually("a session is on the old one", LIMIT, || old.sql(sleeping) == "1");
    eventually("the standby has it", LIMIT, || {
        new.sql("SELECT count(*) FROM t") == "1"
    });
    new.sql("SELECT pg_promote()");

    forward.lead_to(new);
    eventually("the session on the old primary has ended", LIMIT, || {
        // Nobody else is sent there: a login is refused, or is on the new one.
        let done = write();
        assert!(
            done.status.success() || says(&done).contains("server"),
            "{}",
            says(&done)
        );
        kept.try_wait().unwrap().is_some()
    });
    let mut error = String::new();
    kept.stderr.take().unwrap().read_to_string(&mut error).unwrap();
    assert!(error.contains("old primary"), "{error}");
    assert_eq!(rows(old), 1, "nothing was written to it after");
    await_leader(&router);
    assert!(write().status.success());
    let written = rows(new);

    forward.lead_to(old);
    eventually("the old primary is found out", LIMIT, || {
        let done = write();
        // Within a quarter of a second after a look, one may come through.
        !done.status.success() && !has_leader(&router)
    });
    let before = rows(old);
    let refusal = router.psql_output(6432, "dbname=postgres", insert);
    assert!(
        says(&refusal).contains("timeline 1, but timeline 2 has been seen"),
        "{}",
        says(&refusal)
    );
    assert_eq!((rows(old), rows(new)), (before, written));
}

/// A Patroni that says what it is told to.
struct Patroni {
    url: String,
    says: Arc<Mutex<String>>,
}

impl Patroni {
    fn saying(members: &Value) -> Self {
        let listener = TcpListener::bind((fresh_address(), 8008)).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let says = Arc::new(Mutex::new(String::new()));
        let said = Arc::clone(&says);
        thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                let _ = stream.read(&mut [0; 4096]);
                let body = said.lock().unwrap().clone();
                let head = format!(
                    "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
                    body.len()
                );
                let _ = stream.write_all((head + &body).as_bytes());
            }
        });
        let patroni = Self { url, says };
        patroni.say(members);
        patroni
    }

    fn say(&self, members: &Value) {
        *self.says.lock().unwrap() = json!({ "members": members }).to_string();
    }
}

fn leader(name: &str, server: &Postgres, timeline: u32) -> Value {
    json!([{"name": name, "role": "leader", "state": "running", "host": server.address, "port": server.port,
            "timeline": timeline}])
}

#[test]
fn one_patroni_endpoint_does_not_outvote_two() {
    let (ours, theirs) = (server(), server());
    let honest = leader("db1", &ours, 1);
    let patronis: Vec<Patroni> = (0..3).map(|_| Patroni::saying(&honest)).collect();
    let endpoints: Vec<String> = patronis
        .iter()
        .map(|patroni| format!("\"{}\"", patroni.url))
        .collect();
    let router = router(&format!("patroni: {{endpoints: [{}]}}", endpoints.join(", ")), "");
    let mut kept = session(&router, 6432).unwrap();
    for timeline in [99, u32::MAX] {
        patronis[2].say(&leader("db9", &theirs, timeline));
        let log = format!("db9 on timeline {timeline}");
        eventually("it is heard", LIMIT, || {
            write(&router).unwrap();
            let clusters = router.http("/api/v1/clusters").unwrap().1;
            clusters.contains(&log)
        });
        eventually("it is seen to be somebody else", LIMIT, || {
            write(&router).unwrap();
            router
                .http("/api/v1/members")
                .unwrap()
                .1
                .contains("belongs to another cluster")
        });
        assert_eq!(kept.value("SELECT 1"), "1");
    }
    // The same name, elsewhere.
    patronis[2].say(&leader("db1", &theirs, 100));
    eventually("it is heard", LIMIT, || {
        write(&router).unwrap();
        router
            .http("/api/v1/clusters")
            .unwrap()
            .1
            .contains("db1 on timeline 100")
    });
    // The same leader, elsewhere, by the endpoint that is configured first.
    patronis[2].say(&honest);
    patronis[0].say(&leader("db1", &theirs, 1));
    eventually("it is heard", LIMIT, || {
        write(&router).unwrap();
        let clusters = router.http("/api/v1/clusters").unwrap().1;
        clusters.contains("different addresses for db1")
    });
    write(&router).unwrap();
    assert_eq!(kept.value("SELECT 1"), "1");
    // All three: that is no cluster of ours.
    for patroni in &patronis {
        patroni.say(&leader("db9", &theirs, 99));
    }
    eventually("nobody leads", LIMIT, || {
        session(&router, 6432)
            .is_err_and(|error| error.code == "57P03" && error.message.contains("belongs to another cluster"))
    });
    assert_eq!(kept.value("SELECT 1"), "1", "it is on the server of before");
    assert_eq!(rows(&theirs), 0);
    for patroni in &patronis {
        patroni.say(&honest);
    }
    await_leader(&router);
    write(&router).unwrap();
}

/// Verifiers of another cluster let nobody in, and its own account is asked for nothing.
#[test]
fn a_look_up_is_not_asked_of_another_cluster() {
    let (ours, theirs) = (
        Postgres::start(&crate::cluster::postgres::Options::default()),
        Postgres::start(&crate::cluster::postgres::Options::default()),
    );
    theirs.sql("ALTER ROLE app PASSWORD 'theirs'");
    let forward = Forward::to(&ours);
    let dir = tempfile::tempdir().unwrap();
    let password = secret(dir.path(), "pw", "trunkline");
    let router = Router::launch(
        None,
        Options {
            clusters: Some(format!(
                "clusters:\n  main:\n    servers: [{{name: db1, host: {}, port: 5432}}]\n    service_account: \
                 {{user: trunkline, password_file: {}}}\n    server_tls: {{sslmode: require}}\n    \
                 probe: {{interval: 60s}}\n",
                forward.address,
                password.display()
            )),
            ..Options::default()
        },
    );
    await_leader(&router);
    forward.lead_to(&theirs);
    let done = router.psql_output(6432, "password=theirs", "SELECT 1");
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(!done.status.success() && said.contains("FATAL"), "{said}");
    assert!(
        !said.contains("password authentication failed"),
        "nobody could be asked: {said}"
    );
}
