//! A Patroni that says what the test wants it to say, before real servers.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

use super::cluster::{Cluster, Node, Options, Router, eventually, fresh_address, secret};
use super::session::{Session, spread};

/// Answers every request with the same text, until the process ends.
pub struct Patroni {
    answer: Arc<Mutex<String>>,
    /// More keys of the answer.
    more: Value,
}

impl Patroni {
    pub fn serve(address: Ipv4Addr, members: &Value) -> Self {
        Self::serve_with(address, members, json!({}))
    }

    /// With these keys as well: one answer can be that to all requests.
    pub fn serve_with(address: Ipv4Addr, members: &Value, more: Value) -> Self {
        let listener = TcpListener::bind((address, 8008)).unwrap();
        let answer = Arc::new(Mutex::new(String::new()));
        let said = Arc::clone(&answer);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { continue };
                let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
                let mut request = [0; 4096];
                let _ = stream.read(&mut request);
                let body = said.lock().unwrap().clone();
                let _ = write!(
                    stream,
                    "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
                    body.len()
                );
            }
        });
        let patroni = Self { answer, more };
        patroni.say(members);
        patroni
    }

    fn say(&self, members: &Value) {
        let mut answer = self.more.clone();
        answer["members"] = members.clone();
        answer["scope"] = "fake".into();
        *self.answer.lock().unwrap() = answer.to_string();
    }
}

pub fn member(node: &Node, name: &str, role: &str) -> Value {
    json!({"name": name, "role": role, "state": if role == "leader" { "running" } else { "streaming" },
        "host": node.address, "port": node.port, "timeline": 1, "api_url": node.rest})
}

/// Before a Patroni at `address`, whether it is there or not.
pub fn router_for(cluster: &Cluster, address: Ipv4Addr, options: Options) -> (tempfile::TempDir, Router) {
    let dir = tempfile::tempdir().unwrap();
    let password = secret(dir.path(), "service", cluster.text("service_password"));
    let clusters = format!(
        "clusters:\n  main:\n    patroni: {{endpoints: [\"http://{address}:8008\"]}}\n    service_account: {{user: {}, \
         password_file: {}}}\n    server_tls: {{sslmode: prefer}}\n",
        cluster.text("service_user"),
        password.display()
    );
    let options = Options {
        clusters: Some(clusters),
        ..options
    };
    (dir, Router::launch(None, options))
}

#[test]
fn with_no_endpoint_at_the_start_it_lives_says_why_and_recovers_by_itself() {
    let cluster = Cluster::shared();
    let address = fresh_address();
    let (_dir, router) = router_for(cluster, address, Options::default());
    let status = |path: &str| router.http(path).unwrap().0;
    for port in [6432, 6433] {
        let mut report = Session::refused(router.address, port);
        eventually(
            "the refusal names what is missing",
            Duration::from_secs(5),
            || {
                report = Session::refused(router.address, port);
                format!("{} {}", report.message, report.hint).contains("Patroni endpoint")
            },
        );
        assert_eq!(
            (report.severity.as_str(), report.code.as_str()),
            ("FATAL", "57P03"),
            "{report:?}"
        );
    }
    assert_eq!(status("/connection/is-live"), 200);
    for path in ["is-ready", "is-ready-rw", "is-ready-ro"] {
        assert_eq!(status(&format!("/connection/{path}?strict=1")), 503, "{path}");
    }
    router.await_log(&["Patroni endpoint"]);
    let leader = cluster.leader();
    let members: Vec<Value> = cluster
        .nodes()
        .iter()
        .map(|node| {
            member(
                node,
                &node.name,
                if node.name == leader { "leader" } else { "replica" },
            )
        })
        .collect();
    let _patroni = Patroni::serve(address, &json!(members));
    router.await_ready();
    assert_eq!(
        Session::open(router.address, 6432).unwrap().server(),
        cluster.node(&leader).address
    );
    assert_eq!(
        Session::open(router.address, 6433)
            .unwrap()
            .query("SELECT pg_is_in_recovery()"),
        "t"
    );
}

#[test]
fn two_leaders_are_none_and_a_server_of_another_cluster_is_never_used() {
    let cluster = Cluster::shared();
    let foreign = Cluster::start("127.0.38.11", 14080, &["--name", "foreign", "--nodes", "2"]);
    let leader = cluster.leader();
    let replicas = cluster.replicas();
    let stranger = foreign.node(&foreign.replicas()[0]);
    let ours = json!([
        member(&cluster.node(&leader), &leader, "leader"),
        member(&cluster.node(&replicas[0]), &replicas[0], "replica"),
        member(&stranger, "stranger", "replica"),
    ]);
    let address = fresh_address();
    let patroni = Patroni::serve(address, &ours);
    let (_dir, router) = router_for(cluster, address, Options::default());
    router.await_ready();
    let (_sessions, places) = spread(router.address, 6433, 8);
    assert_eq!(places.len(), 1);
    assert_eq!(places[&cluster.node(&replicas[0]).address], 8);
    router.await_log(&["stranger", "another cluster"]);
    let mut session = Session::open(router.address, 6432).unwrap();

    // Its leader, named beside ours.
    let their_leader = foreign.node(&foreign.leader());
    patroni.say(&json!([
        member(&cluster.node(&leader), &leader, "leader"),
        member(&cluster.node(&replicas[0]), &replicas[0], "replica"),
        member(&their_leader, "stranger", "leader"),
    ]));
    eventually("two leaders are none", Duration::from_secs(5), || {
        router.http("/connection/is-ready-rw?strict=1").unwrap().0 == 503
    });
    let report = Session::refused(router.address, 6432);
    assert_eq!(report.code, "57P03");
    assert!(report.message.contains("several leaders"), "{report:?}");
    assert_eq!(
        session.query("SELECT pg_is_in_recovery()"),
        "f",
        "who is on the leader stays there"
    );
    patroni.say(&ours);
    router.await_ready();
    assert_eq!(session.server(), cluster.node(&leader).address);
    assert_eq!(
        Session::open(router.address, 6432).unwrap().server(),
        cluster.node(&leader).address
    );
}
