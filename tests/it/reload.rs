//! The whole configuration, reloaded: nobody who is not concerned notices, and it is all or
//! nothing.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use crate::cluster::postgres::{self, Postgres};
use crate::cluster::{Options, Router, eventually, fresh_address, output, secret};
use crate::service_manager::ServiceManager;

const TOKEN: &str = "a-token-of-24-characters";
pub const SOON: Duration = Duration::from_secs(20);

/// A router whose configuration file is changed while it runs.
pub struct Subject {
    pub router: Router,
    pub usual: String,
}

impl Subject {
    pub fn before(server: &Postgres) -> Self {
        let dir = tempfile::tempdir().unwrap().keep();
        let options = Options {
            clusters: Some(server.yaml()),
            extra: format!(
                "control_socket: {}/control.sock\nauth: {{rate_limit: {{failures: 0}}}}\n",
                dir.display()
            ),
            ..Options::default()
        };
        let router = Router::launch(None, options);
        router.await_read_write();
        let usual = fs::read_to_string(router.dir().join("trunkline.yaml")).unwrap();
        Self { router, usual }
    }

    fn path(&self) -> PathBuf {
        self.router.dir().join("trunkline.yaml")
    }

    /// `trunkline reload` with this text.
    fn reload(&self, text: &str) -> Output {
        fs::write(self.path(), text).unwrap();
        output(
            Command::new(env!("CARGO_BIN_EXE_trunkline"))
                .args(["reload", "-c"])
                .arg(self.path()),
        )
    }

    /// What it answers when it takes this text.
    #[track_caller]
    pub fn takes(&self, text: &str) -> String {
        let output = self.reload(text);
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "{told}{}\n{}",
            String::from_utf8_lossy(&output.stderr),
            self.router.log()
        );
        told
    }

    /// What it answers when it refuses this text.
    #[track_caller]
    pub fn refuses(&self, text: &str) -> String {
        let output = self.reload(text);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{told}");
        assert!(told.contains("not reloaded"), "{told}");
        told
    }

    pub fn enters(&self, port: u16) -> bool {
        let output = self.router.psql_output(port, "", "SELECT 1");
        output.stdout == b"1\n"
    }
}

/// A psql that stays, and answers what it is asked.
pub struct Session {
    child: Child,
    answers: std::io::BufReader<std::process::ChildStdout>,
}

impl Session {
    pub fn open(router: &Router, port: u16) -> Self {
        let mut child = Command::new("psql")
            .args(["-XAtq"])
            .arg(router.dsn(port, ""))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let answers = std::io::BufReader::new(child.stdout.take().unwrap());
        let mut session = Self { child, answers };
        session.goes_on();
        session
    }

    #[track_caller]
    pub fn goes_on(&mut self) {
        use std::io::BufRead;
        let input = self.child.stdin.as_mut().unwrap();
        writeln!(input, "SELECT 6 * 7;").unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        assert_eq!(line, "42\n", "who is in does not notice");
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn listeners_come_go_and_change_while_sessions_stay() {
    let server = Postgres::start(&postgres::Options::default());
    let subject = Subject::before(&server);
    let (router, usual) = (&subject.router, &subject.usual);
    let mut session = Session::open(router, 6432);
    let rw = format!(
        "  - {{name: rw, address: \"{}:6432\", route: read-write}}\n",
        router.address
    );
    assert!(usual.contains(&rw));
    let extra = rw.replace("name: rw", "name: extra").replace(":6432", ":6532");

    let told = subject.takes(&usual.replace(&rw, &format!("{rw}{extra}")));
    assert!(told.contains("listeners.extra (added)"), "{told}");
    assert!(subject.enters(6532) && subject.enters(6432));
    let mut moved = Session::open(router, 6532);

    let told = subject.takes(&usual.replace(&rw, &format!("{rw}{}", extra.replace(":6532", ":6533"))));
    assert!(told.contains("changed: listeners.extra\n"), "{told}");
    assert!(subject.enters(6533));
    eventually("the old address is closed", SOON, || !subject.enters(6532));

    // The session that came in by the old address still counts.
    let full = extra
        .replace(":6532", ":6533")
        .replace("route:", "max_clients: 1, route:");
    subject.takes(&usual.replace(&rw, &format!("{rw}{full}")));
    let output = router.psql_output(6533, "", "SELECT 1");
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("too many clients"),
        "{output:?}"
    );
    moved.goes_on();
    drop(moved);
    eventually("its place is free", SOON, || subject.enters(6533));

    let told = subject.takes(usual);
    assert!(told.contains("listeners.extra (removed)"), "{told}");
    eventually("the listener is closed", SOON, || !subject.enters(6533));
    session.goes_on();
    assert!(!router.log().contains("session ended cause=\"shutdown\""));
}

#[test]
fn it_is_all_or_nothing() {
    let server = Postgres::start(&postgres::Options::default());
    let subject = Subject::before(&server);
    let (router, usual) = (&subject.router, &subject.usual);
    let mut session = Session::open(router, 6432);
    let taken = std::net::TcpListener::bind((router.address, 6632)).unwrap();
    let more = |port| {
        usual.replace(
            "listeners:\n",
            &format!(
                "listeners:\n  - {{name: one, address: \"{0}:6532\", route: read-write}}\n  \
                 - {{name: two, address: \"{0}:{port}\", route: read-write}}\n",
                router.address
            ),
        )
    };
    let told = subject.refuses(&more(6632));
    assert!(told.contains("listener two") && told.contains("in use"), "{told}");
    assert!(!subject.enters(6532), "nothing of it is in force");
    assert_eq!(router.metric("trunkline_config_reload_refused"), 1.0);
    drop(taken);
    subject.takes(&more(6632));
    assert!(subject.enters(6532) && subject.enters(6632));
    assert_eq!(router.metric("trunkline_config_reload_refused"), 0.0);

    // Every fault is told, by who asks and by the process itself.
    let faulty = format!("{}nonsense: 1\nlog: {{level: loud}}\n", more(6632));
    let told = subject.refuses(&faulty);
    assert!(told.contains("nonsense") && told.contains("log.level"), "{told}");
    router.signal("HUP");
    router.await_log(&["ERROR", "configuration not reloaded", "nonsense"]);
    router.await_log(&["ERROR", "configuration not reloaded", "log.level"]);
    router.await_log(&["configuration refused", "faults=2"]);
    assert!(subject.enters(6532));

    // A rule that cannot work is found before anything is exchanged.
    let rules = router.dir().join("rules.conf");
    fs::write(&rules, "host all all all frobnicate\n").unwrap();
    let told =
        subject.refuses(&usual.replace("auth: {", &format!("auth: {{hba_file: {}, ", rules.display())));
    assert!(told.contains("rules.conf:1"), "{told}");
    assert!(subject.enters(6532));

    // A cluster where no leader is: what was there stays.
    let nobody = usual.replace(
        &format!("host: {}", server.address),
        &format!("host: {}", fresh_address()),
    );
    assert_ne!(nobody, *usual);
    let told = subject.refuses(&nobody);
    assert!(
        told.contains("clusters.main") && told.contains("no leader"),
        "{told}"
    );
    assert!(subject.enters(6532));
    session.goes_on();
}

#[test]
fn limits_log_http_console_and_what_needs_a_restart() {
    let server = Postgres::start(&postgres::Options::default());
    let subject = Subject::before(&server);
    let (router, usual) = (&subject.router, &subject.usual);
    let mut session = Session::open(router, 6432);

    let told = subject.takes(&format!("{usual}limits: {{max_clients: 1}}\nworkers: 7\n"));
    assert!(
        told.contains("changed: limits")
            && told.contains("`trunkline upgrade` (sessions stay) or a restart: workers"),
        "{told}"
    );
    router.await_log(&["WARN", "workers", "restart"]);
    // The next reload names it again, while it differs.
    let told = subject.takes(&format!("{usual}limits: {{max_clients: 1}}\nworkers: 7\n"));
    assert!(told.contains("(sessions stay) or a restart: workers"), "{told}");
    let output = router.psql_output(6432, "", "SELECT 1");
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("too many clients"),
        "{output:?}"
    );
    assert!(!subject.takes(usual).contains("restart"));
    assert!(subject.enters(6432));

    assert!(!router.log().contains("DEBUG"));
    subject.takes(&format!("{usual}log: {{level: debug}}\n"));
    assert!(router.http("/connection/is-live").is_some());
    router.await_log(&["DEBUG", "HTTP request"]);
    subject.takes(&format!("{usual}log: {{format: json}}\n"));
    router.await_log(&["{", "\"message\":\"configuration reloaded\""]);

    let console = "console: {users: [app]}\n";
    subject.takes(&format!("{usual}{console}"));
    let shown = || router.psql_output(6432, "dbname=trunkline", "SHOW HBA");
    assert!(shown().status.success(), "{:?}", shown());
    subject.takes(usual);
    assert!(!shown().status.success());

    let page = || router.http("/ui").unwrap().0;
    assert_eq!(page(), 200);
    let without = usual.replace(":6434\", ", ":6434\", ui: false, ");
    assert!(subject.takes(&without).contains("changed: http"));
    assert_eq!(page(), 404);
    subject.takes(usual);
    assert_eq!(page(), 200);

    let other = usual.replace(":6434\"", ":6435\"");
    subject.takes(&other);
    eventually("HTTP has moved", SOON, || {
        TcpStream::connect((router.address, 6435)).is_ok()
            && TcpStream::connect((router.address, 6434)).is_err()
    });
    subject.takes(usual);
    eventually("and back", SOON, || router.http("/connection/is-live").is_some());
    session.goes_on();
}

/// Status and body.
fn post(router: &Router, path: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect((router.address, 6434)).unwrap();
    write!(
        stream,
        "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {TOKEN}\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, body.to_owned())
}

#[test]
fn what_was_set_for_members_stays_and_a_reload_may_be_asked_for_by_http() {
    let server = Postgres::start(&postgres::Options::default());
    let subject = Subject::before(&server);
    let (router, usual) = (&subject.router, &subject.usual);
    let mut session = Session::open(router, 6432);
    let token = secret(router.dir(), "token", TOKEN);
    let set = |keys: &str| usual.replace(":6434\", ", &format!(":6434\", {keys}, "));
    let open = set(&format!("token_file: {}", token.display()));
    assert_ne!(open, *usual);

    assert_eq!(post(router, "/api/v1/reload", "").0, 403, "there is no token");
    subject.takes(&open);
    let weighed = post(router, "/api/v1/members/s1/weight", "{\"weight\": 7}");
    assert_eq!(weighed.0, 200, "{weighed:?}");
    assert_eq!(post(router, "/api/v1/members/away/drain", "").0, 404);

    // Other works have taken the cluster over.
    let clusters = server.yaml();
    let slow = format!("{clusters}    server: {{slow_start: 9s, max_connections: 3}}\n");
    let slow = open.replace(&clusters, &slow);
    assert!(subject.takes(&slow).contains("changed: clusters.main"));
    let members = router.http("/api/v1/members").unwrap().1;
    assert!(members.contains("\"weight\":7"), "{members}");
    let weighed = post(router, "/api/v1/members/s1/weight", "{\"weight\": 8}");
    assert_eq!(weighed.0, 200, "they are told, too: {weighed:?}");

    // Who came before the limit counts.
    fs::write(subject.path(), format!("{slow}limits: {{per_user: 1}}\n")).unwrap();
    let (status, answer) = post(router, "/api/v1/reload", "");
    let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(
        (status, &answer["changed"][0]),
        (200, &"limits".into()),
        "{answer}"
    );
    let output = router.psql_output(6432, "", "SELECT 1");
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("too many sessions"),
        "{output:?}"
    );
    fs::write(subject.path(), format!("{slow}nonsense: 1\n")).unwrap();
    router.await_log(&["WARN", "trunkline.yaml", "this file has changed"]);
    let (status, answer) = post(router, "/api/v1/reload", "");
    assert!(status == 422 && answer.contains("nonsense"), "{status} {answer}");

    let agent = format!(
        "token_file: {}, agent_check: {{address: \"{}:6444\"}}",
        token.display(),
        router.address
    );
    let state = router.dir().join("state.json");
    let told = subject.takes(&format!("{}state_file: {}\n", set(&agent), state.display()));
    for key in ["http.agent_check", "state_file"] {
        assert!(
            told.contains(&format!("(sessions stay) or a restart: {key}\n")),
            "{told}"
        );
    }
    subject.takes(usual);
    assert_eq!(post(router, "/api/v1/reload", "").0, 403, "the token is gone");
    session.goes_on();
}

/// A file that is read only with the whole configuration: the check that has warned of it must not
/// make a reload believe that it knows it.
#[test]
fn a_file_that_is_read_with_the_configuration_counts_at_the_reload_that_the_log_asks_for() {
    let server = Postgres::start(&postgres::Options::default());
    let subject = Subject::before(&server);
    let password = secret(subject.router.dir(), "patroni.password", "wrong");
    let patroni = format!(
        "clusters:\n  spare:\n    patroni: {{endpoints: [\"http://127.0.0.1:1\"], username: x, password_file: {}}}\n    \
         service_account: {{user: x}}\n",
        password.display()
    );
    let with_spare = subject
        .usual
        .replacen("clusters:\n", &patroni, 1)
        .replace("listeners:\n", "routes:\n  read-write: {cluster: main, targets: [leader]}\n  read-only: {cluster: main, targets: [replica]}\nlisteners:\n");
    let told = subject.takes(&with_spare);
    assert!(told.contains("clusters.spare (added)"), "{told}");
    fs::write(&password, "right").unwrap();
    subject
        .router
        .await_log(&["WARN", "patroni.password", "this file has changed"]);
    let told = subject.takes(&with_spare);
    assert!(told.contains("changed: clusters.spare"), "{told}");
}

/// A wrong password would show only when the probes have to log in again, and then as a server that
/// is down.
#[test]
fn a_password_that_the_servers_refuse_is_not_put_in_service() {
    let server = Postgres::start(&postgres::Options::default());
    let subject = Subject::before(&server);
    let (router, usual) = (&subject.router, &subject.usual);
    let (_, rest) = usual.split_once("password_file: ").unwrap();
    let file = rest.split('}').next().unwrap();
    let refused = |text: &str| {
        let told = subject.refuses(text);
        for words in [
            "refuses the new password",
            "password authentication failed",
            "\\password trunkline",
        ] {
            assert!(told.contains(words), "{words}: {told}");
        }
    };

    // The same file, with another password in it.
    fs::write(file, "wrong").unwrap();
    refused(usual);
    router.await_log(&[
        "ERROR",
        "clusters.main.service_account",
        "refuses the new password",
    ]);
    // Another file.
    let other = secret(router.dir(), "other.password", "wrong as well");
    refused(&usual.replace(file, other.to_str().unwrap()));
    // Another one together with other keys of the cluster.
    let faster = format!("{}, timeout: 3s", other.display());
    refused(&usual.replace(file, &faster));
    // No password at all, where the server asks for one.
    let told = subject.refuses(&usual.replace(&format!(", password_file: {file}"), ""));
    assert!(told.contains("refuses trunkline without a password"), "{told}");

    // The router is as it was: its probes can log in again.
    server.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'trunkline%'",
    );
    eventually("the probes are back", SOON, || {
        let probes = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'trunkline probe'";
        server.sql(probes) == "1" && subject.enters(6432)
    });

    server.sql("ALTER ROLE trunkline PASSWORD 'wrong'");
    subject.takes(usual);
    assert!(subject.enters(6432));
    // The file goes back to what it was when the configuration was read, and no further.
    fs::write(file, "trunkline").unwrap();
    refused(usual);
    refused(&format!("{usual}limits: {{max_clients: 77}}\n"));
    fs::write(file, "wrong").unwrap();
    subject.takes(&format!("{usual}limits: {{max_clients: 77}}\n"));
    // Nobody can say whether it is right.
    server.stop();
    fs::write(file, "another").unwrap();
    subject.takes(usual);
}

/// A cluster with other settings, one more, and one that goes while it has sessions.
#[test]
fn clusters_change_and_their_sessions_stay() {
    let (server, other) = (
        Postgres::start(&postgres::Options::default()),
        Postgres::start(&postgres::Options::default()),
    );
    let subject = Subject::before(&server);
    let (router, usual) = (&subject.router, &subject.usual);
    let mut session = Session::open(router, 6432);
    let clusters = server.yaml();
    assert!(usual.contains(&clusters));

    // A start may say that there is none yet.
    let before = router.log().len();
    let told = subject.takes(&usual.replace(
        &clusters,
        &format!("{clusters}    server: {{connect_timeout: 2s}}\n"),
    ));
    assert!(told.contains("changed: clusters.main"), "{told}");
    // Not a moment without a leader.
    assert!(subject.enters(6432));
    let log = router.log();
    assert!(!log[before..].contains("no leader"), "{log}");

    let second = other
        .yaml()
        .replace("clusters:\n", "")
        .replace("  main:\n", "  second:\n");
    let both = usual.replace(&clusters, &format!("{clusters}{second}")).replace(
        "listeners:\n",
        &format!(
            "routes:\n  read-write: {{cluster: main, targets: [leader]}}\n  \
                 read-only: {{cluster: main, targets: [replica]}}\n  \
                 second: {{cluster: second, targets: [leader]}}\n\
                 listeners:\n  - {{name: second, address: \"{}:6532\", route: second}}\n",
            router.address
        ),
    );
    let told = subject.takes(&both);
    assert!(told.contains("clusters.second (added)"), "{told}");
    assert_eq!(
        router.psql(6532, "SELECT inet_server_addr()"),
        other.address.to_string()
    );
    let mut on_other = Session::open(router, 6532);
    let leader = "trunkline_cluster_leader{cluster=\"second\"}";
    assert_eq!(router.metric(leader), 1.0);

    subject.takes(usual);
    eventually("closed", SOON, || !subject.enters(6532));
    on_other.goes_on();
    assert_eq!(
        router.metric(leader),
        1.0,
        "it is watched as long as it has sessions"
    );
    // And is as it was when it comes back.
    subject.takes(&both);
    on_other.goes_on();
    assert!(subject.enters(6532));
    subject.takes(usual);
    drop(on_other);
    eventually("nothing is left of it", SOON, || {
        !router.http("/metrics").unwrap().1.contains("cluster=\"second\"")
    });
    session.goes_on();
}

/// `reloads` of everything there is to reload while pgbench runs, with sessions that stay and a
/// connection for each transaction.
fn under_load(reloads: u32) {
    let server = Postgres::start(&postgres::Options::default());
    let subject = Subject::before(&server);
    let (router, usual) = (&subject.router, &subject.usual);
    let script = router.dir().join("script.sql");
    fs::write(&script, "SELECT 6 * 7;\n").unwrap();
    let log = |name: &str| router.dir().join(format!("pgbench.{name}"));
    let pgbench = |name: &str, extra: &[&str]| {
        Command::new("pgbench")
            .args(["-n", "-c", "4", "-j", "2", "-T", "36000", "-f"])
            .arg(&script)
            .args(extra)
            .arg(router.dsn(6432, ""))
            .stdout(Stdio::piped())
            .stderr(fs::File::create(log(name)).unwrap())
            .spawn()
            .unwrap()
    };
    let mut running = [pgbench("steady", &["-M", "prepared"]), pgbench("each", &["-C"])];
    let clusters = server.yaml();
    let variants = [
        usual.replace(
            &clusters,
            &format!("{clusters}    server: {{connect_timeout: 2s}}\n"),
        ),
        format!("{usual}limits: {{max_clients: 4000}}\nlog: {{level: warn}}\n"),
        usual.replace(
            "listeners:\n",
            &format!(
                "listeners:\n  - {{name: extra, address: \"{}:6532\", route: read-write}}\n",
                router.address
            ),
        ),
        usual.replace("name: rw,", "name: renamed, tls: required,"),
        usual.clone(),
    ];
    for number in 0..reloads {
        let before = router.metric("trunkline_transactions_total");
        subject.takes(&variants[number as usize % variants.len()]);
        eventually("both go on", SOON, || {
            router.metric("trunkline_transactions_total") > before + 20.0
        });
    }
    let (_, metrics) = router.http("/metrics").unwrap();
    for child in &mut running {
        assert!(
            child.try_wait().unwrap().is_none(),
            "pgbench ended: {}",
            router.log()
        );
        let _ = child.kill();
        let _ = child.wait();
    }
    for name in ["steady", "each"] {
        let told = fs::read_to_string(log(name)).unwrap();
        assert!(!told.contains("error") && !told.contains("FATAL"), "{told}");
    }
    let refused: Vec<&str> = metrics
        .lines()
        .filter(|line| line.starts_with("trunkline_logins_refused_total"))
        .collect();
    assert!(refused.is_empty(), "{refused:?}");
}

#[test]
fn nobody_notices_ten_reloads() {
    under_load(10);
}

#[test]
#[ignore = "takes minutes"]
fn nobody_notices_a_hundred_reloads() {
    under_load(100);
}

#[test]
fn the_service_manager_is_told() {
    let server = Postgres::start(&postgres::Options::default());
    let manager = ServiceManager::listen(SOON);
    let told = || manager.told();
    let mut router = Router::launch(
        None,
        Options {
            clusters: Some(server.yaml()),
            env: manager.env(),
            ..Options::default()
        },
    );
    assert_eq!(told(), "READY=1");
    router.signal("HUP");
    let reloading = told();
    let time = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap();
    assert!(time.parse::<u64>().unwrap() > 0);
    assert_eq!(told(), "READY=1");
    router.signal("TERM");
    assert_eq!(told(), "STOPPING=1");
    assert_eq!(router.await_exit(SOON), 0);
}

/// A copy of the file has the same control socket, and the process does not read it.
#[test]
fn a_reload_or_an_upgrade_by_another_file_is_refused() {
    let server = Postgres::start(&postgres::Options::default());
    let on = Subject::before(&server);
    let other = on.router.dir().join("other.yaml");
    fs::write(&other, &on.usual).unwrap();
    for command in ["reload", "upgrade"] {
        let output = output(
            Command::new(env!("CARGO_BIN_EXE_trunkline"))
                .args([command, "-c"])
                .arg(&other),
        );
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{told}");
        let own = fs::canonicalize(on.path()).unwrap();
        let expected = format!(
            "the running process reads {}, not {}",
            own.display(),
            other.display()
        );
        assert!(told.contains(&expected), "{told}");
    }
    assert!(!on.router.log().contains("configuration reloaded"));
    // By another name it is the same file.
    fs::remove_file(&other).unwrap();
    std::os::unix::fs::symlink(on.path(), &other).unwrap();
    let output = output(
        Command::new(env!("CARGO_BIN_EXE_trunkline"))
            .args(["reload", "-c"])
            .arg(&other),
    );
    assert!(output.status.success(), "{output:?}");
}
