//! A new process in the place of the old one: nobody who connects is refused, nobody who is there
//! notices, and cancel requests find their session wherever it is.

mod administered;
mod pooled;
mod steps;

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::cluster::postgres::{self, Postgres};
use crate::cluster::{Options, Router, eventually, fresh_address, output, pause, secret, succeed};
use crate::hand::{Raw, V3_0};
use crate::service_manager::ServiceManager;

const SOON: Duration = Duration::from_secs(20);
const TOKEN: &str = "a-token-of-24-characters";

/// A process that took the place of a router's; killed when this is dropped.
pub struct NewProcess(pub u32);

impl Drop for NewProcess {
    fn drop(&mut self) {
        kill_ours(self.0);
    }
}

/// Most are gone, and the number may be somebody else's.
fn kill_ours(process: u32) {
    let program = fs::read_link(format!("/proc/{process}/exe"));
    if program.is_ok_and(|program| program == fs::canonicalize(env!("CARGO_BIN_EXE_trunkline")).unwrap()) {
        let _ = output(Command::new("kill").args(["-KILL", &process.to_string()]));
    }
}

/// `trunkline upgrade` of a router with a control socket.
#[track_caller]
pub fn upgrade(router: &Router) -> NewProcess {
    let output = output(
        Command::new(env!("CARGO_BIN_EXE_trunkline"))
            .args(["upgrade", "-c"])
            .arg(router.dir().join("trunkline.yaml")),
    );
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    NewProcess(told.split_whitespace().nth(2).unwrap().parse().unwrap())
}

/// A router that is replaced while it runs; each of its processes is ended when this is dropped.
struct Subject {
    router: Router,
    /// The one that serves.
    process: u32,
    all: Vec<u32>,
    sockets: tempfile::TempDir,
}

impl Subject {
    fn before(server: &Postgres, extra: &str) -> Self {
        Self::told(server, extra, Vec::new())
    }

    fn told(server: &Postgres, extra: &str, env: Vec<(String, String)>) -> Self {
        let sockets = tempfile::tempdir().unwrap();
        let dir = sockets.path().display().to_string();
        let token = secret(sockets.path(), "token", TOKEN);
        let address = fresh_address();
        let options = Options {
            // A handshake has taken PostgreSQL more than 3 s on a busy machine.
            clusters: Some(format!("{}    server: {{connect_timeout: 15s}}\n", server.yaml())),
            address: Some(address),
            http: format!(
                "token_file: {}, agent_check: {{address: \"{address}:6435\"}}",
                token.display()
            ),
            listeners: Some(format!(
                "  - {{name: rw, address: \"{{address}}:6432\", route: read-write}}\n  \
                 - {{name: local, address: \"{dir}/.s.PGSQL.6432\", route: read-write, socket_mode: \"0777\"}}\n"
            )),
            extra: format!(
                "control_socket: {dir}/control.sock\nauth: {{rate_limit: {{failures: 0}}}}\n{}",
                extra.replace("{dir}", &dir)
            ),
            env,
            ..Options::default()
        };
        let router = Router::launch(None, options);
        router.await_read_write();
        let process = router.process_id();
        Self {
            router,
            process,
            all: vec![process],
            sockets,
        }
    }

    fn path(&self) -> PathBuf {
        self.router.dir().join("trunkline.yaml")
    }

    fn command(&self, arguments: &[&str]) -> Output {
        output(
            Command::new(env!("CARGO_BIN_EXE_trunkline"))
                .args(arguments)
                .arg("-c")
                .arg(self.path()),
        )
    }

    /// `trunkline upgrade`, which must succeed; what it says.
    #[track_caller]
    fn upgrade(&mut self) -> String {
        self.upgrade_by(&["upgrade"])
    }

    #[track_caller]
    fn upgrade_by(&mut self, arguments: &[&str]) -> String {
        let output = self.command(arguments);
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "{told}{}\n{}",
            String::from_utf8_lossy(&output.stderr),
            self.router.log()
        );
        let new = told.split_whitespace().nth(2).unwrap().parse().unwrap();
        assert_ne!(new, self.process);
        self.process = new;
        self.all.push(new);
        told
    }

    /// A command that is not waited for.
    fn begin(&self, arguments: &[&str]) -> Child {
        Command::new(env!("CARGO_BIN_EXE_trunkline"))
            .args(arguments)
            .arg("-c")
            .arg(self.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// Those that run by this configuration.
    fn processes(&self) -> Vec<u32> {
        let path = self.path().display().to_string();
        let numbers = fs::read_dir("/proc").unwrap().filter_map(|entry| {
            let name = entry.ok()?.file_name();
            name.to_str()?.parse().ok()
        });
        let is_one = |process: &u32| {
            let line = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
            let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
            let has = |word: &str| words.contains(&word.as_bytes());
            has("run") && has(&path) && !has("--detach")
        };
        numbers.filter(is_one).collect()
    }

    /// A session that does nothing else, and its client's process, once `count` of them are there.
    fn sleeping(&self, server: &Postgres, count: usize) -> (Child, u32) {
        let child = psql(&self.router.dsn(6432, ""), "SELECT pg_sleep(600)");
        let process = child.id();
        eventually("it sleeps", SOON, || {
            server.sql("SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(600)' AND state = 'active'")
                == count.to_string()
        });
        (child, process)
    }

    fn control_socket(&self) -> PathBuf {
        self.sockets.path().join("control.sock")
    }

    fn unix_socket(&self) -> PathBuf {
        self.sockets.path().join(".s.PGSQL.6432")
    }

    fn psql_unix(&self) -> String {
        let told = succeed(Command::new("psql").args(["-XAtq", "-c", "SELECT 2", &self.unix_dsn()]));
        told.trim().to_owned()
    }

    fn cancels(&self, result: &str) -> f64 {
        self.router
            .metric(&format!("trunkline_cancels_total{{result=\"{result}\"}}"))
    }

    fn unix_dsn(&self) -> String {
        let dir = self.sockets.path().display();
        format!("host={dir} port=6432 user=app password=app dbname=app sslmode=disable")
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        for process in self.processes() {
            if process != self.router.process_id() {
                kill_ours(process);
            }
        }
    }
}

fn is_alive(process: u32) -> bool {
    // A zombie has no command line.
    fs::read(format!("/proc/{process}/cmdline")).is_ok_and(|line| !line.is_empty())
}

fn psql(dsn: &str, sql: &str) -> Child {
    Command::new("psql")
        .args(["-XAtq", "-c", sql, dsn])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// What is answered to this, whole.
fn exchange(address: Ipv4Addr, port: u16, request: &str) -> String {
    let mut socket = TcpStream::connect((address, port)).unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    socket.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    answer
}

/// HAProxy's checks over and over, of which every one says that all is well; how many there were.
fn checks(address: Ipv4Addr, is_over: &Arc<AtomicBool>) -> [JoinHandle<usize>; 2] {
    let ready = "GET /connection/is-ready HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    [(6434, ready, "HTTP/1.1 200"), (6435, "", "up")].map(|(port, request, well)| {
        let is_over = Arc::clone(is_over);
        thread::spawn(move || {
            let mut times = 0;
            while !is_over.load(Ordering::Relaxed) {
                let answer = exchange(address, port, request);
                assert!(
                    answer.starts_with(well) && !answer.contains("drain"),
                    "{answer:?}"
                );
                times += 1;
                pause(Duration::from_millis(1));
            }
            times
        })
    })
}

fn under_load(handovers: u32) {
    let server = Postgres::start(&postgres::Options::default());
    let mut subject = Subject::before(&server, "");
    let script = subject.router.dir().join("script.sql");
    fs::write(&script, "SELECT 6 * 7;\n").unwrap();
    let log = |name: &str| subject.router.dir().join(format!("pgbench.{name}"));
    let pgbench = |name: &str, extra: &[&str], dsn: &str| {
        Command::new("pgbench")
            .args(["-n", "-c", "4", "-j", "2", "-T", "36000", "-f"])
            .arg(&script)
            .args(extra)
            .arg(dsn)
            .stdout(Stdio::piped())
            .stderr(fs::File::create(log(name)).unwrap())
            .spawn()
            .unwrap()
    };
    let steady = pgbench("steady", &["-M", "prepared"], &subject.router.dsn(6432, ""));
    eventually("all of them are with the first process", SOON, || {
        server.sql("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgbench'") == "4"
    });
    let mut running = [
        steady,
        pgbench("each", &["-C"], &subject.router.dsn(6432, "")),
        pgbench("local", &["-C"], &subject.unix_dsn()),
    ];
    let logs = [log("steady"), log("each"), log("local")];
    let is_over = Arc::new(AtomicBool::new(false));
    let checks = checks(subject.router.address, &is_over);
    for _ in 0..handovers {
        let told = subject.upgrade();
        assert!(told.contains("serves"), "{told}");
        // Of the new process only: the sessions of the others are not counted here.
        eventually("it goes on with the new one", SOON, || {
            subject.router.metric("trunkline_login_seconds_count") > 20.0
        });
    }
    // The steady ones stayed with the first process all along, those between have nothing left.
    assert!(is_alive(subject.all[0]));
    for process in &subject.all[1..subject.all.len() - 1] {
        eventually("a process without sessions ends", SOON, || !is_alive(*process));
    }
    is_over.store(true, Ordering::Relaxed);
    for check in checks {
        assert!(check.join().unwrap() > handovers as usize);
    }
    for child in &mut running {
        assert!(child.try_wait().unwrap().is_none(), "pgbench ended by itself");
        // Not SIGINT, which is ignored by what a shell starts in the background.
        child.kill().unwrap();
        child.wait().unwrap();
    }
    for log in logs {
        let text = fs::read_to_string(&log).unwrap();
        assert!(!text.contains("error") && !text.contains("FATAL"), "{text}");
    }
    eventually("the first process ends with its last session", SOON, || {
        !is_alive(subject.all[0])
    });
    assert!(is_alive(subject.process));
}

#[test]
fn nobody_notices_ten_handovers() {
    under_load(10);
}

#[test]
#[ignore = "takes minutes"]
fn nobody_notices_a_hundred_handovers() {
    under_load(100);
}

#[test]
fn cancels_find_sessions_of_every_process_before() {
    let server = Postgres::start(&postgres::Options::default());
    let mut subject = Subject::before(&server, "");
    let first = subject.sleeping(&server, 1);
    subject.upgrade();
    let second = subject.sleeping(&server, 2);
    subject.upgrade();
    // psql sends the request to the port it connected to, where the third process listens now.
    for (number, (child, process)) in [(1.0, first), (2.0, second)] {
        succeed(Command::new("kill").args(["-INT", &process.to_string()]));
        let output = child.wait_with_output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(
            told.contains("canceling statement due to user request"),
            "{number}: {told}"
        );
        assert_eq!(subject.cancels("other_process"), number);
    }
    for process in &subject.all[..2] {
        eventually("its only session has ended", SOON, || !is_alive(*process));
    }
}

#[test]
fn a_new_process_that_cannot_serve_changes_nothing() {
    let server = Postgres::start(&postgres::Options::default());
    let mut subject = Subject::before(&server, "");
    let usual = fs::read_to_string(subject.path()).unwrap();
    // A port that somebody else has.
    let taken = std::net::TcpListener::bind((subject.router.address, 6532)).unwrap();
    let extra = format!(
        "listeners:\n  - {{name: extra, address: \"{}:6532\", route: read-write}}\n",
        subject.router.address
    );
    fs::write(subject.path(), usual.replace("listeners:\n", &extra)).unwrap();
    let output = subject.command(&["upgrade"]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(
        told.contains("the new process ended") && told.contains("continues"),
        "{told}"
    );
    subject
        .router
        .await_log(&["not started", "extra", "6532: it is in use"]);
    // A part of what the old process listens on, or the whole.
    let own = format!("address: \"{}:6432\"", subject.router.address);
    assert!(usual.contains(&own));
    fs::write(subject.path(), usual.replace(&own, "address: \"*:6432\"")).unwrap();
    assert_eq!(subject.command(&["upgrade"]).status.code(), Some(1));
    let why = format!(
        "overlaps {}:6432, where the old process listens",
        subject.router.address
    );
    subject.router.await_log(&["not started", "listener rw", &why]);
    // A server that is not there, where the old process has one.
    fs::write(
        subject.path(),
        usual.replace(&format!("port: {}", Postgres::PORT), "port: 1"),
    )
    .unwrap();
    let output = subject.command(&["upgrade"]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    subject
        .router
        .await_log(&["not started", "saw no leader within 10 s"]);
    drop(taken);

    fs::write(subject.path(), &usual).unwrap();
    assert_eq!(subject.router.psql(6432, "SELECT 1"), "1");
    let file = succeed(Command::new("psql").args(["-XAtq", "-c", "SELECT 2", &subject.unix_dsn()]));
    assert_eq!(file.trim(), "2", "its socket's file is still there");
    let told = subject.upgrade();
    assert!(told.contains("has no session"), "{told}");
    let file = succeed(Command::new("psql").args(["-XAtq", "-c", "SELECT 2", &subject.unix_dsn()]));
    assert_eq!(file.trim(), "2");
    eventually("the old process has ended", SOON, || !is_alive(subject.all[0]));
    assert!(subject.sockets.path().join("control.sock").exists());
    assert!(
        subject.command(&["reload"]).status.success(),
        "the new process has the control socket"
    );
    succeed(Command::new("kill").args(["-TERM", &subject.process.to_string()]));
    eventually("it has ended", SOON, || !is_alive(subject.process));
    assert!(!subject.sockets.path().join("control.sock").exists());
    assert!(!subject.sockets.path().join(".s.PGSQL.6432").exists());
}

#[test]
fn what_operators_have_set_goes_along_and_old_sessions_have_their_time() {
    let server = Postgres::start(&postgres::Options::default());
    let manager = ServiceManager::listen(SOON);
    let told = || manager.told();
    let env = manager.env();
    let mut subject = Subject::told(&server, "shutdown: {grace: 0, handover: 0}\n", env);
    assert_eq!(told(), "READY=1");
    assert!(subject.command(&["weight", "s1", "7"]).status.success());
    let mut session = psql(&subject.router.dsn(6432, ""), "SELECT pg_sleep(600)");
    eventually("it sleeps", SOON, || {
        server.sql("SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(600)'") != "0"
    });
    let answer = subject.upgrade();
    assert!(answer.contains("ends when its 1 session has ended"), "{answer}");
    assert_eq!(told(), format!("MAINPID={}", subject.all[0]));
    assert_eq!(told(), format!("MAINPID={}", subject.process));
    assert_eq!(told(), "READY=1", "only the main process is listened to");
    let members = String::from_utf8(subject.command(&["members"]).stdout).unwrap();
    let line = members.lines().find(|line| line.starts_with("s1")).unwrap();
    assert!(line.split_whitespace().any(|word| word == "7"), "{members}");
    // handover: 0, and then grace: 0.
    eventually("the old process has ended", SOON, || !is_alive(subject.all[0]));
    assert!(!session.wait().unwrap().success());
    subject
        .router
        .await_log(&["the time of shutdown.handover is over", "sessions=1"]);
}

/// As systemd starts a process that it listens for.
#[test]
fn a_console_session_ends_with_the_upgrade_and_does_not_keep_the_old_process() {
    let server = Postgres::start(&postgres::Options::default());
    let users = "console: {users: [app]}\n";
    let mut subject = Subject::before(&server, users);
    let into_console = |subject: &Subject| {
        let mut raw = Raw::tls(subject.router.address, 6432);
        raw.startup(V3_0, &[("user", "app"), ("database", "trunkline")]);
        let last = raw.authenticate("app").pop().unwrap();
        assert_eq!(last.tag, b'Z', "{last:?}");
        raw
    };
    let mut inside = into_console(&subject);
    let mut logging_in = Raw::tls(subject.router.address, 6432);
    logging_in.startup(V3_0, &[("user", "app"), ("database", "app")]);
    assert_eq!(logging_in.message().tag, b'R');
    let answer = subject.upgrade();
    assert!(
        answer.contains("has no session, and ends when its other connections"),
        "{answer}"
    );
    let error = inside.last_error();
    assert_eq!(error.code(), "57P01");
    let text = "terminating connection: a new process of the router has replaced this one";
    assert_eq!(error.field(b'M').unwrap(), text);
    subject
        .router
        .await_log(&["session ended", "member=console", "replaced by a new process"]);
    assert!(is_alive(subject.all[0]), "a client is logging in");
    drop((inside, logging_in));
    let mut inside = into_console(&subject);
    eventually("the old process has ended", SOON, || !is_alive(subject.all[0]));
    assert!(inside.value("SHOW VERSION").starts_with("Trunkline "));
}

#[test]
fn sockets_of_systemd_are_served() {
    let server = Postgres::start(&postgres::Options::default());
    let address = fresh_address();
    let dir = tempfile::tempdir().unwrap();
    let unix = dir.path().join(".s.PGSQL.6432");
    let options = Options {
        clusters: Some(server.yaml()),
        listeners: Some(format!(
            "  - {{name: rw, address: \"{{address}}:6432\", route: read-write}}\n  \
             - {{name: local, address: \"{}\", route: read-write}}\n",
            unix.display()
        )),
        ..Options::default()
    };
    let text = Router::configuration(None, &options, dir.path(), address);
    let path = dir.path().join("trunkline.yaml");
    fs::write(&path, &text).unwrap();
    let start = || {
        // It listens, and becomes the router when the first client connects.
        Command::new("systemd-socket-activate")
            .args(["-l", &format!("{address}:6432"), "-l"])
            .arg(&unix)
            .args([env!("CARGO_BIN_EXE_trunkline"), "run", "-c"])
            .arg(&path)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let tcp = format!("host={address} port=6432 user=app password=app dbname=app sslmode=disable");
    let local = format!(
        "host={} port=6432 user=app password=app dbname=app",
        dir.path().display()
    );
    let mut process = start();
    eventually("systemd listens", SOON, || unix.exists());
    for dsn in [&tcp, &local] {
        // The first ones come before there is a leader, and are told to come again.
        eventually("it is served", SOON, || {
            psql(dsn, "SELECT 5").wait_with_output().unwrap().stdout == b"5\n"
        });
    }
    succeed(Command::new("kill").args(["-TERM", &process.id().to_string()]));
    assert!(process.wait().unwrap().success());
    assert!(unix.exists(), "its file is systemd's");
    fs::remove_file(&unix).unwrap();

    // A port that nothing listens on would leave clients hanging.
    fs::write(
        &path,
        text.replace(&format!("{address}:6432"), &format!("{address}:6532")),
    )
    .unwrap();
    let process = start();
    eventually("systemd listens", SOON, || unix.exists());
    let client = psql(&tcp, "SELECT 5").wait_with_output().unwrap();
    assert!(!client.status.success());
    let output = process.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    let line =
        format!("systemd passed sockets for {address}:6432, and no listener in the configuration uses them");
    assert!(told.contains(&line), "{told}");
}
