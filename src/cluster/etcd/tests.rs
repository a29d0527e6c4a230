#![allow(clippy::unwrap_used)]

use std::collections::VecDeque;
use std::sync::Mutex;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use prometheus_client::registry::Registry;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::message::{self, MAX_MESSAGE};
use super::*;
use crate::cluster::patroni::tests::cluster;

fn header(cluster: u64, revision: i64, term: u64) -> Value {
    json!({"cluster_id": cluster.to_string(), "revision": revision.to_string(), "raft_term": term.to_string()})
}

fn event(key: &str, value: Option<&str>, revision: i64) -> Value {
    let mut pair = json!({"key": BASE64_STANDARD.encode(key), "mod_revision": revision.to_string(),
        "create_revision": revision.to_string()});
    match value {
        Some(value) => {
            pair["value"] = BASE64_STANDARD.encode(value).into();
            json!({"kv": pair})
        }
        None => json!({"type": "DELETE", "kv": pair}),
    }
}

#[test]
fn messages_are_read_from_chunks_of_any_size() {
    let created = json!({"result": {"header": header(7, 5, 2), "created": true}}).to_string();
    let changed = json!({"result": {"header": header(7, 6, 2), "events": [
        event("/service/main/leader", Some("db2"), 6), event("/service/main/members/db1", None, 6)]}})
    .to_string();
    let text = format!("{created}\n\n{changed}\n{{\"res");
    for cut in 0..text.len() {
        let mut lines = Lines::default();
        let mut updates = lines.push(&text.as_bytes()[..cut]).unwrap();
        updates.extend(lines.push(&text.as_bytes()[cut..]).unwrap());
        let [first, second] = updates.as_slice() else {
            panic!("{updates:?}")
        };
        assert!(first.created && first.changes.is_empty());
        assert_eq!(
            (first.header.cluster, first.header.revision, first.header.term),
            (7, 5, 2)
        );
        let [put, deleted] = second.changes.as_slice() else {
            panic!("{second:?}")
        };
        assert_eq!(put.value.as_deref(), Some(&b"db2"[..]));
        assert!(put.created && !deleted.created && deleted.value.is_none());
        assert_eq!(deleted.key, b"/service/main/members/db1");
    }
}

#[test]
fn an_invalid_message_is_an_error() {
    for (line, expected) in [
        ("nonsense", "not JSON"),
        ("{}", "no result"),
        (
            r#"{"error": {"message": "gone\u0007"}}"#,
            "cancelled the watch: gone ",
        ),
        (
            r#"{"result": {"canceled": true, "cancel_reason": "why"}}"#,
            "cancelled the watch: why",
        ),
        (
            r#"{"result": {"canceled": true, "compact_revision": "9"}}"#,
            "dropped the history",
        ),
        (r#"{"result": {"header": {}}}"#, "incomplete header"),
        (
            r#"{"result": {"header": {"cluster_id": "-1", "revision": "1", "raft_term": "1"}}}"#,
            "incomplete",
        ),
        (r#"{"result": {"events": [{}]}}"#, "without a key"),
        (
            r#"{"result": {"events": [{"kv": {"mod_revision": "1", "key": "!"}}]}}"#,
            "not base64",
        ),
    ] {
        let error = message::update(line.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(expected), "{line}: {error}");
    }
    let mut lines = Lines::default();
    assert!(lines.push(&vec![b' '; MAX_MESSAGE]).is_ok());
    assert!(matches!(lines.push(b" "), Err(EtcdError::TooLong)));
}

#[test]
fn a_request_for_a_switchover_is_read_from_the_failover_key() {
    let read = |text: &str| requested(Some(text.as_bytes()));
    let db = |name: &str| Some(MemberName::new(name));
    let request = |leader, candidate, seconds: Option<u64>| SwitchoverRequest {
        leader,
        candidate,
        at: seconds.map(|seconds| std::time::UNIX_EPOCH + Duration::from_secs(seconds)),
    };
    for (text, expected) in [
        (
            r#"{"leader": "db1", "member": "db2"}"#,
            request(db("db1"), db("db2"), None),
        ),
        (r#"{"leader": "db1"}"#, request(db("db1"), None, None)),
        (
            r#"{"member": "db2", "scheduled_at": null}"#,
            request(None, db("db2"), None),
        ),
        (
            r#"{"leader": "db1", "member": "", "scheduled_at": "2026-12-01T16:27:00+00:00"}"#,
            request(db("db1"), None, Some(1_796_142_420)),
        ),
    ] {
        assert_eq!(read(text), Some(expected), "{text}");
    }
    for nothing in [
        "{}",
        "",
        "[1]",
        r#"{"leader": "", "member": ""}"#,
        r#"{"leader": 7}"#,
        r#"{"leader": "db1", "scheduled_at": "tomorrow"}"#,
    ] {
        assert_eq!(read(nothing), None, "{nothing}");
    }
    assert_eq!(requested(None), None);
}

#[test]
fn answers_that_are_older_or_from_other_clusters_are_refused() {
    let of = |cluster, revision, term| Header {
        cluster,
        revision,
        term,
    };
    let mut seen = Seen::default();
    seen.admit(&of(7, 5, 2)).unwrap();
    seen.record(&of(7, 5, 2));
    seen.admit(&of(7, 5, 2)).unwrap();
    assert!(matches!(seen.admit(&of(8, 6, 3)), Err(EtcdError::OtherCluster)));
    assert!(matches!(seen.admit(&of(7, 4, 2)), Err(EtcdError::Behind)));
    assert!(matches!(seen.admit(&of(7, 6, 1)), Err(EtcdError::Behind)));
}

/// An etcd endpoint that answers from a script.
#[derive(Debug, Clone)]
struct Script {
    version: &'static str,
    header: (u64, i64, u64),
    /// The value of the leader key.
    leader: Option<&'static str>,
    /// The messages of the watch after it is set up. Then it stays open without messages.
    watch: Vec<Value>,
    /// Messages that follow later, once.
    later: Vec<Value>,
    /// Number of 401 answers before a token is accepted.
    expired: usize,
}

impl Script {
    fn new(leader: &'static str) -> Self {
        Self {
            version: "v3",
            header: (7, 5, 2),
            leader: Some(leader),
            watch: Vec::new(),
            later: Vec::new(),
            expired: 0,
        }
    }
}

type Shared = Arc<Mutex<Script>>;

async fn etcd(script: Script) -> (String, Shared) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let shared = Arc::new(Mutex::new(script));
    let scripts = Arc::clone(&shared);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer(stream, Arc::clone(&scripts)));
        }
    });
    (address, shared)
}

async fn answer(mut stream: TcpStream, shared: Shared) {
    let mut request = Vec::new();
    let text = loop {
        let mut piece = [0; 4096];
        let length = stream.read(&mut piece).await.unwrap();
        if length == 0 {
            return;
        }
        request.extend_from_slice(&piece[..length]);
        let text = String::from_utf8_lossy(&request).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let wanted = head
                .to_lowercase()
                .split("content-length: ")
                .nth(1)
                .map(|rest| rest.split("\r\n").next().unwrap().parse::<usize>().unwrap());
            if body.len() >= wanted.unwrap_or(0) {
                break text;
            }
        }
    };
    let mut script = shared.lock().unwrap().clone();
    let (cluster, revision, term) = script.header;
    let path = text.split(' ').nth(1).unwrap().to_owned();
    let header = header(cluster, revision, term);
    let (status, body) = match path.strip_prefix(&format!("/{}/", script.version)) {
        None => ("404 Not Found", json!({})),
        Some("auth/authenticate") => ("200 OK", json!({"header": header, "token": "abc.1"})),
        Some(_) if script.expired > 0 => {
            shared.lock().unwrap().expired -= 1;
            (
                "401 Unauthorized",
                json!({"error": "etcdserver: invalid auth token"}),
            )
        }
        Some("kv/range") => {
            let leader = text.contains(&BASE64_STANDARD.encode("/service/main/leader"));
            let kvs: Vec<Value> = script
                .leader
                .iter()
                .filter(|_| leader)
                .map(|name| event("/service/main/leader", Some(name), revision)["kv"].clone())
                .collect();
            ("200 OK", json!({"header": header, "kvs": kvs}))
        }
        Some("watch") => {
            let head = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: application/json\r\n\r\n";
            stream.write_all(head.as_bytes()).await.unwrap();
            script
                .watch
                .insert(0, json!({"result": {"header": header, "created": true}}));
            for line in &script.watch {
                stream.write_all(format!("{line}\n").as_bytes()).await.unwrap();
            }
            loop {
                let later = std::mem::take(&mut shared.lock().unwrap().later);
                for line in later {
                    if stream.write_all(format!("{line}\n").as_bytes()).await.is_err() {
                        return;
                    }
                }
                sleep(Duration::from_millis(10)).await;
            }
        }
        Some(other) => panic!("asked for {other}"),
    };
    let body = body.to_string();
    let head = format!(
        "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let _ = stream.write_all(format!("{head}{body}").as_bytes()).await;
}

struct Watched {
    observations: mpsc::Receiver<Observation>,
    check_now: Arc<Notify>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watched {
    fn start(endpoints: Vec<String>, login: bool) -> Self {
        let mut config = Arc::into_inner(cluster(vec!["http://127.0.0.1:1".to_owned()])).unwrap();
        config.etcd = Some(config::Etcd {
            endpoints,
            prefix: "/service/main/".into(),
            ca: None,
            client_certificate: None,
            login: login.then(|| config::BasicAuth {
                username: "u".into(),
                password: config::Secret::new("p"),
            }),
        });
        let (sender, observations) = mpsc::channel(64);
        let check_now = Arc::new(Notify::new());
        let metrics = Arc::new(Metrics::register(&mut Registry::default()));
        let watcher = Watcher::new(Arc::new(config), Arc::clone(&check_now), sender, metrics);
        Self {
            observations,
            check_now,
            task: tokio::spawn(watcher.unwrap().unwrap().run()),
        }
    }

    /// The next observation as a word.
    async fn next(&mut self) -> String {
        let observed = timeout(Duration::from_secs(8), self.observations.recv());
        match observed.await.expect("an observation").unwrap() {
            Observation::Key {
                named: Named::One(name),
                ..
            } => name.to_string(),
            Observation::Key { .. } => "nobody".into(),
            Observation::KeyLost => "lost".into(),
            Observation::Switchover { request, .. } => match request {
                Some(request) => format!("from {}", request.leader.unwrap()),
                None => "no request".into(),
            },
            Observation::LookAgain => "members".into(),
            other => panic!("{other:?}"),
        }
    }

    async fn expect(&mut self, expected: &[&str]) {
        let mut expected: VecDeque<&str> = expected.iter().copied().collect();
        while let Some(word) = expected.pop_front() {
            assert_eq!(self.next().await, word, "then {expected:?}");
        }
    }
}

#[tokio::test]
async fn events_are_reported_as_they_arrive() {
    let mut script = Script::new("db1");
    script.version = "v3beta";
    let prefix = "/service/main/";
    let say =
        |revision, events: Value| json!({"result": {"header": header(7, revision, 2), "events": events}});
    script.watch = vec![
        say(
            6,
            json!([event(
                &format!("{prefix}failover"),
                Some("{\"leader\": \"db1\"}"),
                6
            )]),
        ),
        say(
            7,
            json!([
                event(&format!("{prefix}leader"), None, 7),
                event(&format!("{prefix}failover"), Some("{}"), 7),
                event(&format!("{prefix}failover"), None, 7)
            ]),
        ),
        say(
            8,
            json!([
                event(&format!("{prefix}status"), Some("x"), 8),
                event(&format!("{prefix}members/db9"), Some("{}"), 8)
            ]),
        ),
        say(9, json!([event(&format!("{prefix}leader"), Some("db2"), 9)])),
    ];
    let (address, _) = etcd(script).await;
    let mut watched = Watched::start(vec![address], false);
    watched
        .expect(&["db1", "from db1", "nobody", "no request", "members", "db2"])
        .await;
}

#[tokio::test]
async fn a_watch_that_was_cancelled_or_went_back_is_replaced_at_another_endpoint() {
    let cancelled = json!({"result": {"header": header(7, 5, 2), "canceled": true}});
    let compacted = json!({"result": {"header": header(7, 5, 2), "canceled": true, "compact_revision": "9"}});
    let older = json!({"result": {"header": header(7, 4, 2)}});
    let deposed = json!({"result": {"header": header(7, 6, 1)}});
    let stranger = json!({"result": {"header": header(8, 6, 2)}});
    for bad in [cancelled, compacted, older, deposed, stranger] {
        let (first, shared) = etcd(Script::new("db1")).await;
        let mut other = Script::new("db2");
        other.header = (7, 6, 2);
        let (second, _) = etcd(other).await;
        let mut watched = Watched::start(vec![first, second], false);
        watched.expect(&["db1"]).await;
        shared.lock().unwrap().later = vec![bad];
        watched.expect(&["lost", "db2"]).await;
    }
}

#[tokio::test]
async fn an_endpoint_that_is_behind_or_of_another_cluster_is_skipped() {
    for header in [(7, 4, 2), (7, 6, 1), (9, 6, 2)] {
        let (first, shared) = etcd(Script::new("db1")).await;
        let mut script = Script::new("wrong");
        script.header = header;
        let (second, _) = etcd(script).await;
        let mut watched = Watched::start(vec![first, second], false);
        watched.expect(&["db1"]).await;
        {
            let mut script = shared.lock().unwrap();
            script.later = vec![json!({"result": {"header": self::header(7, 5, 2), "canceled": true}})];
            script.leader = Some("db3");
        }
        watched.expect(&["lost", "db3"]).await;
    }
}

#[tokio::test]
async fn a_silent_watch_is_checked_at_another_endpoint_and_ended_when_it_stays_behind() {
    let (first, one) = etcd(Script::new("db1")).await;
    let (second, two) = etcd(Script::new("db1")).await;
    let mut watched = Watched::start(vec![first, second], false);
    watched.expect(&["db1"]).await;
    // The first endpoint does not get the change.
    one.lock().unwrap().header = (7, 5, 1);
    {
        let mut script = two.lock().unwrap();
        script.header = (7, 9, 2);
        script.leader = Some("db2");
    }
    watched.check_now.notify_one();
    watched.expect(&["db2", "db2", "lost", "db2"]).await;
}

#[tokio::test]
async fn an_expired_token_is_replaced() {
    let mut script = Script::new("db1");
    script.expired = 1;
    let (address, shared) = etcd(script).await;
    let mut watched = Watched::start(vec![address], true);
    watched.expect(&["db1"]).await;
    shared.lock().unwrap().expired = 1;
    watched.check_now.notify_one();
    watched.expect(&["db1"]).await;
}
