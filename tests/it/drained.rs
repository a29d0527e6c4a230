//! A router that wants no more clients says so, and serves on: for `shutdown.delay` before it ends,
//! and for as long as an operator likes.
#![allow(clippy::unwrap_used)]

use std::io::Read;
use std::net::TcpStream;
use std::process::{Command, Output};
use std::time::Duration;

use super::checks::HaProxy;
use super::fake::{Fake, Session, await_leader, cheap_verifier};
use super::hand::{Raw, V3_0};
use super::handover::upgrade;
use crate::cluster::{Options, Router, eventually, fresh_address, output, secret};
use crate::service_manager::ServiceManager;

const PATIENCE: Duration = Duration::from_secs(20);

struct Subject {
    router: Router,
    /// The server before which it is.
    _server: Fake,
    _files: tempfile::TempDir,
}

impl Subject {
    fn start(shutdown: &str, env: Vec<(String, String)>) -> Self {
        let files = tempfile::tempdir().unwrap();
        let token = secret(files.path(), "token", "a-token-of-24-characters");
        let users = format!("\"app\" \"{}\"", cheap_verifier());
        let users = secret(files.path(), "users", &users);
        let server = Fake::start(Session::answer_all);
        let address = fresh_address();
        let options = Options {
            address: Some(address),
            http: format!(
                "token_file: {}, agent_check: {{address: \"{address}:6435\"}}",
                token.display()
            ),
            clusters: Some(format!(
                "clusters:\n  main:\n    servers: [{{name: one, host: \"{}\", port: {}}}]\n    \
                 service_account: {{user: trunkline, dbname: postgres}}\n    server_tls: {{sslmode: disable}}\n",
                server.address.ip(),
                server.address.port()
            )),
            extra: format!(
                "auth: {{users_file: {}}}\ncontrol_socket: {}\nshutdown: {{{shutdown}}}\n",
                users.display(),
                files.path().join("control").display()
            ),
            env,
            ..Options::default()
        };
        let router = Router::launch(None, options);
        await_leader(&router);
        Self {
            router,
            _server: server,
            _files: files,
        }
    }

    fn command(&self, arguments: &[&str]) -> Output {
        let config = self.router.dir().join("trunkline.yaml");
        output(
            Command::new(env!("CARGO_BIN_EXE_trunkline"))
                .args(arguments)
                .arg("-c")
                .arg(config),
        )
    }

    #[track_caller]
    fn ok(&self, arguments: &[&str]) -> String {
        let done = self.command(arguments);
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{arguments:?}: {said}");
        String::from_utf8(done.stdout).unwrap()
    }

    #[track_caller]
    fn refused(&self, arguments: &[&str]) -> String {
        let done = self.command(arguments);
        assert_eq!(done.status.code(), Some(1), "{arguments:?}");
        String::from_utf8(done.stderr).unwrap()
    }

    /// A new session that is served.
    #[track_caller]
    fn served(&self) -> Raw {
        let mut raw = Raw::connect(self.router.address, 6432);
        raw.startup(V3_0, &[("user", "app"), ("database", "app")]);
        let last = raw.begin_scram("app").unwrap().pop().unwrap();
        assert_eq!(last.tag, b'Z', "{last:?}");
        assert_eq!(raw.value("SELECT 1"), "1");
        raw
    }

    fn readiness(&self) -> [u16; 2] {
        ["/connection/is-ready", "/connection/is-ready-rw"].map(|path| self.router.http(path).unwrap().0)
    }

    fn agent(&self) -> String {
        let mut line = String::new();
        let mut stream = TcpStream::connect((self.router.address, 6435)).unwrap();
        stream.read_to_string(&mut line).unwrap();
        line
    }

    /// What everybody sees who asks.
    #[track_caller]
    fn assert_is(&self, state: &str) {
        let (ready, agent) = if state == "ready" {
            ([200, 200], "up ready 100%\n")
        } else {
            ([503, 503], "up drain\n")
        };
        assert_eq!(self.readiness(), ready);
        assert_eq!(self.agent(), agent);
        let name = format!("trunkline_router_state{{state=\"{state}\"}}");
        assert_eq!(self.router.metric(&name), 1.0);
        let status = self.ok(&["router", "status"]);
        assert!(status.lines().nth(1).unwrap().starts_with(state), "{status}");
        // Whether it is alive, and what its members are, is another matter.
        assert_eq!(self.router.http("/connection/is-live").unwrap().0, 200);
        assert_eq!(self.router.http("/node/one/is-read-write").unwrap().0, 200);
    }
}

#[test]
fn before_it_ends_a_router_is_not_ready_and_serves_until_balancers_know() {
    let manager = ServiceManager::listen(PATIENCE);
    let mut subject = Subject::start("delay: 10m, grace: 20s", manager.env());
    assert_eq!(manager.told(), "READY=1");
    let address = subject.router.address;
    let haproxy = HaProxy::start(&format!(
        "backend h\n  option httpchk GET /connection/is-ready-rw\n  server s {address}:6432 check port 6434\n\
         backend a\n  server s {address}:6432 check agent-check agent-port 6435 agent-inter 100ms\n"
    ));
    haproxy.await_states(&[("h/s", "UP"), ("a/s", "UP")]);
    let mut session = subject.served();
    subject.assert_is("ready");
    subject.router.signal("TERM");
    assert_eq!(manager.told(), "STOPPING=1\nEXTEND_TIMEOUT_USEC=632000000");
    haproxy.await_states(&[("h/s", "DOWN"), ("a/s", "DRAIN (agent)")]);
    subject.assert_is("stopping");
    assert_eq!(session.value("SELECT 1"), "1");
    drop(subject.served());
    let refused = subject.refused(&["router", "ready"]);
    assert!(refused.contains("the router is shutting down"), "{refused}");
    let refused = subject.refused(&["reload"]);
    assert!(refused.contains("the router is shutting down"), "{refused}");
    // Somebody is in a hurry.
    subject.router.signal("TERM");
    assert_eq!(session.message().code(), "57P01");
    assert_eq!(subject.router.await_exit(PATIENCE), 0);
    assert!(TcpStream::connect((address, 6432)).is_err());
}

#[test]
fn when_the_delay_is_over_it_ends_by_itself() {
    let mut subject = Subject::start("delay: 300ms", Vec::new());
    subject.router.signal("TERM");
    assert_eq!(subject.router.await_exit(PATIENCE), 0);
    let log = subject.router.log();
    assert!(log.contains("not ready any more"), "{log}");
}

#[test]
fn an_operator_drains_the_router_and_takes_it_back_over_reload_and_upgrade() {
    let subject = Subject::start("grace: 5s", Vec::new());
    let mut session = subject.served();
    subject.assert_is("ready");
    let said = subject.ok(&["router", "drain"]);
    assert!(said.contains("drain"), "{said}");
    subject.assert_is("drain");
    subject
        .router
        .await_log(&["the router is drained", "by=HTTP from 127."]);
    assert_eq!(session.value("SELECT 1"), "1");
    drop(subject.served());
    subject.ok(&["reload"]);
    subject.assert_is("drain");
    let new = upgrade(&subject.router);
    eventually("the new process answers", PATIENCE, || {
        subject.ok(&["router", "status"]).contains(&new.0.to_string())
    });
    subject.assert_is("drain");
    drop(subject.served());
    subject.ok(&["router", "ready"]);
    subject.assert_is("ready");
}

impl Subject {
    /// What a client gets at its login while the route is disabled.
    #[track_caller]
    fn assert_disabled(&self) {
        let mut raw = Raw::connect(self.router.address, 6432);
        raw.startup(V3_0, &[("user", "app"), ("database", "app")]);
        let error = raw.last_error();
        assert_eq!(error.code(), "57P03");
        assert_eq!(error.field(b'M').unwrap(), "the route read-write is disabled");
        let hint = error.field(b'H').unwrap();
        assert!(hint.contains("`trunkline enable read-write`"), "{hint}");
        let disabled = self
            .router
            .metric("trunkline_route_disabled{route=\"read-write\"}");
        assert_eq!(disabled, 1.0);
    }
}

#[test]
fn a_disabled_route_gets_no_new_sessions_over_reload_and_upgrade() {
    let subject = Subject::start("grace: 5s", Vec::new());
    let mut session = subject.served();
    assert_eq!(subject.ok(&["enable", "read-write"]), "read-write: enabled\n");
    let said = subject.ok(&["disable", "read-write"]);
    assert_eq!(said, "read-write: disabled; 1 session goes on\n");
    subject
        .router
        .await_log(&["the route is disabled", "by=HTTP from 127."]);
    subject.assert_disabled();
    let refused = subject
        .router
        .metric("trunkline_logins_refused_total{reason=\"disabled\"}");
    assert_eq!(refused, 1.0);
    assert_eq!(session.value("SELECT 1"), "1");
    // The other route, and the server, are as before.
    assert_eq!(subject.readiness(), [503, 503]);
    assert_eq!(subject.router.http("/node/one/is-read-write").unwrap().0, 200);
    assert_eq!(subject.agent(), "up drain\n");
    let routes = subject.ok(&["routes"]);
    let line = routes
        .lines()
        .find(|line| line.starts_with("read-write "))
        .unwrap();
    assert!(line.contains(" disabled "), "{routes}");
    let status = subject.ok(&["router", "status"]);
    assert!(
        status.contains("until `trunkline enable NAME`: read-write"),
        "{status}"
    );
    subject.ok(&["reload"]);
    subject.assert_disabled();
    let new = upgrade(&subject.router);
    eventually("the new process answers", PATIENCE, || {
        subject.ok(&["router", "status"]).contains(&new.0.to_string())
    });
    subject.assert_disabled();
    assert_eq!(session.value("SELECT 1"), "1");
    // It counts the sessions of the process before it.
    let said = subject.ok(&["disable", "read-write"]);
    assert_eq!(said, "read-write: disabled; 1 session goes on\n");
    assert_eq!(subject.ok(&["enable", "read-write"]), "read-write: enabled\n");
    assert_eq!(subject.readiness(), [200, 200]);
    drop(subject.served());
    let unknown = subject.refused(&["disable", "other"]);
    assert!(unknown.contains("no listener has a route other"), "{unknown}");
}
