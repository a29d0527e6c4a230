//! What `patroni_proxy` gets wrong: a Patroni that says what real ones say now and then, before the
//! real servers that the tests share. Nothing here changes them.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::rest::{Rest, member};
use super::{LIMIT, await_nobody, clusters, reload};
use crate::cluster::{Cluster, Node, Options, Router, eventually, pause, secret};
use crate::session::{Session, spread};

const RW: u16 = 6432;
const RO: u16 = 6433;
const ANY: u16 = 6440;
const QUORUM: u16 = 6441;
const LIMITED: u16 = 6442;
const LISTENERS: [(&str, u16); 5] = [
    ("rw", RW),
    ("ro", RO),
    ("any", ANY),
    ("quorum", QUORUM),
    ("limited", LIMITED),
];
const ROUTES: &str = "routes:
  rw: {cluster: main, targets: [leader]}
  ro: {cluster: main, targets: [[sync, async]]}
  any: {cluster: main, targets: [any], read_only_on_leader: unenforced}
  quorum: {cluster: main, targets: [quorum]}
  limited: {cluster: main, targets: [replica], max_lag: {bytes: 1GB}}
";

/// Its leader, and its replicas.
fn shared() -> (&'static Cluster, Node, [Node; 2]) {
    let cluster = Cluster::shared();
    let leader = cluster.leader();
    let replicas: Vec<Node> = cluster.replicas().iter().map(|name| cluster.node(name)).collect();
    (cluster, cluster.node(&leader), replicas.try_into().unwrap())
}

fn as_usual((_, leader, [one, two]): &(&Cluster, Node, [Node; 2])) -> Value {
    json!([
        member(leader, "leader", "running"),
        member(one, "replica", "streaming"),
        member(two, "replica", "streaming")
    ])
}

/// Before the shared servers, as `endpoints` have them; every port forwards.
fn launch(endpoints: &str, more: &str, options: Options) -> (tempfile::TempDir, Router) {
    let (dir, clusters) = clusters(Cluster::shared(), endpoints, more);
    let mut listeners = String::new();
    for (name, port) in LISTENERS {
        listeners +=
            &format!("  - {{name: {name}, address: \"{{address}}:{port}\", route: {name}, mode: tcp}}\n");
    }
    let options = Options {
        clusters: Some(clusters),
        listeners: Some(listeners),
        extra: format!("{ROUTES}{}", options.extra),
        ..options
    };
    let router = Router::launch(None, options);
    (dir, router)
}

fn before(rest: &Rest) -> (tempfile::TempDir, Router) {
    let (dir, router) = launch(
        &format!("[\"{}\"]", rest.url()),
        ", poll_interval: 200ms",
        Options::default(),
    );
    router.await_read_write();
    (dir, router)
}

fn is_served(router: &Router, port: u16, node: &Node) -> bool {
    let held: Vec<Session> = (0..3)
        .filter_map(|_| Session::open(router.address, port).ok())
        .collect();
    held.into_iter()
        .any(|mut session| session.server() == node.address)
}

fn is_ready(router: &Router) -> bool {
    router.http("/connection/is-ready-rw?strict=1").unwrap().0 == 200
}

#[test]
fn every_state_and_role_of_a_member_counts_for_what_it_is() {
    let all = shared();
    let (_, leader, [one, two]) = &all;
    let rest = Rest::saying(&as_usual(&all));
    let (_dir, router) = before(&rest);
    let told = |role: &str, state: &str| {
        rest.say(&json!([
            member(leader, "leader", "running"),
            member(one, "replica", "streaming"),
            member(two, role, state)
        ]));
    };
    for (role, state, ports) in [
        ("replica", "running", &[RO, ANY, LIMITED][..]),
        ("replica", "starting", &[]),
        ("replica", "in archive recovery", &[RO, ANY, LIMITED]),
        ("promoted", "running", &[]),
        ("sync_standby", "streaming", &[RO, ANY, LIMITED]),
        ("replica", "stopped", &[]),
        ("quorum_standby", "streaming", &[ANY, QUORUM, LIMITED]),
        ("replica", "creating replica", &[]),
        ("replica", "streaming", &[RO, ANY, LIMITED]),
    ] {
        told(role, state);
        for port in [RO, ANY, QUORUM, LIMITED] {
            eventually(&format!("{role}, {state} on {port}"), LIMIT, || {
                is_served(&router, port, two) == ports.contains(&port)
            });
        }
        assert!(is_served(&router, RO, one), "the other one is not concerned");
        assert_eq!(
            Session::open(router.address, RW).unwrap().server(),
            leader.address
        );
    }
    // A standby cluster has no leader to write to, and more than one to read from.
    rest.say(&json!([
        member(one, "standby_leader", "streaming"),
        member(two, "replica", "in archive recovery")
    ]));
    eventually("it has no leader", LIMIT, || !is_ready(&router));
    let refused = Session::refused(router.address, RW);
    assert!(
        refused.code == "57P03" && refused.message.contains("standby cluster"),
        "{refused:?}"
    );
    eventually("its replica is read from", LIMIT, || is_served(&router, ANY, two));
    // And from the one that leads it where there is no other.
    rest.say(&json!([
        member(one, "standby_leader", "streaming"),
        member(two, "replica", "stopped")
    ]));
    eventually("its leader is read from", LIMIT, || is_served(&router, ANY, one));
}

#[test]
fn a_member_that_lacks_something_spoils_nothing_and_a_lag_nobody_knows_is_too_much() {
    let all = shared();
    let (_, leader, [one, two]) = &all;
    let without = |node: &Node, keys: &[&str]| {
        let mut member = member(node, "replica", "streaming");
        for key in keys {
            member.as_object_mut().unwrap().remove(*key);
        }
        member
    };
    let mut unknown = member(one, "replica", "streaming");
    unknown["lag"] = json!("unknown");
    // Nobody to compare them with.
    let rest = Rest::saying(&json!([unknown, without(two, &["lag"])]));
    let (_dir, router) = launch(
        &format!("[\"{}\"]", rest.url()),
        ", poll_interval: 200ms",
        Options::default(),
    );
    router.await_log(&["there is no leader"]);
    let refused = Session::refused(router.address, LIMITED);
    assert_eq!(refused.code, "57P03", "{refused:?}");
    assert!(!is_ready(&router));
    // With a leader the router measures itself.
    let led = |second: Value| json!([member(leader, "leader", "running"), unknown, second]);
    rest.say(&led(without(two, &["lag", "api_url", "timeline"])));
    for node in [one, two] {
        eventually("it is measured", LIMIT, || is_served(&router, LIMITED, node));
    }
    let mut master = Session::open(router.address, RW).unwrap();
    for second in [
        without(two, &["host", "port", "api_url"]),
        without(two, &["host"]),
        without(two, &["port"]),
        without(two, &["role", "state"]),
        json!({"name": two.name}),
        json!(null),
        json!([]),
    ] {
        rest.say(&led(second.clone()));
        eventually(&format!("{second} is not used"), LIMIT, || {
            !is_served(&router, RO, two)
        });
        assert!(is_served(&router, RO, one), "{second}");
        assert_eq!(
            Session::open(router.address, RW).unwrap().server(),
            leader.address,
            "{second}"
        );
        rest.say(&as_usual(&all));
        eventually("it is used again", LIMIT, || is_served(&router, RO, two));
    }
    assert_eq!(master.server(), leader.address);
}

/// A port of `host` for a server that listens elsewhere.
struct Passage {
    port: u16,
    refuses: Arc<AtomicBool>,
}

impl Passage {
    fn before(host: &str, node: &Node) -> Self {
        let listener = TcpListener::bind((host, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let server: SocketAddr = format!("{}:{}", node.address, node.port).parse().unwrap();
        let refuses = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&refuses);
        thread::spawn(move || {
            while !ends.load(Ordering::Acquire) {
                match listener.accept() {
                    Ok((client, _)) => pass(client, TcpStream::connect(server)),
                    Err(_) => pause(Duration::from_millis(5)),
                }
            }
        });
        Self { port, refuses }
    }

    /// New connections, from now on; those that are there go on.
    fn refuse(&self, host: &str) {
        self.refuses.store(true, Ordering::Release);
        eventually("nobody listens", LIMIT, || {
            TcpStream::connect((host, self.port)).is_err()
        });
    }
}

fn pass(client: TcpStream, server: io::Result<TcpStream>) {
    let Ok(server) = server else { return };
    let ways = [
        (client.try_clone().unwrap(), server.try_clone().unwrap()),
        (server, client),
    ];
    for (mut from, mut to) in ways {
        thread::spawn(move || {
            let _ = io::copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Write);
        });
    }
}

/// As it happened to 19 of 20: the one that refuses has the fewest connections.
#[test]
fn a_replica_that_refuses_gets_nobody_and_costs_nobody() {
    const HERE: &str = "127.0.0.1";
    let all = shared();
    let (_, leader, [one, two]) = &all;
    let passage = Passage::before(HERE, two);
    let mut hole = member(two, "replica", "streaming");
    (hole["host"], hole["port"]) = (json!(HERE), json!(passage.port));
    let rest = Rest::saying(&json!([
        member(leader, "leader", "running"),
        member(one, "replica", "streaming"),
        hole
    ]));
    let (_dir, router) = before(&rest);
    for node in [one, two] {
        eventually("both serve", LIMIT, || is_served(&router, RO, node));
    }
    passage.refuse(HERE);
    let (_held, places) = spread(router.address, RO, 20);
    assert_eq!(
        places.into_iter().collect::<Vec<_>>(),
        [(one.address.clone(), 20)]
    );
}

#[test]
fn members_have_names_ipv6_addresses_and_neighbours_on_one_host() {
    let all = shared();
    let (_, leader, [one, two]) = &all;
    let at = |node: &Node, role: &str, host: &str| {
        let mut member = member(node, role, "streaming");
        let port = Passage::before(host, node).port;
        (member["host"], member["port"]) = (json!(host), json!(port));
        member
    };
    let rest = Rest::saying(&json!([
        at(leader, "leader", "::1"),
        at(one, "replica", "localhost"),
        at(two, "replica", "localhost")
    ]));
    let (_dir, router) = before(&rest);
    assert_eq!(
        Session::open(router.address, RW).unwrap().server(),
        leader.address
    );
    for node in [one, two] {
        eventually("both of one host serve", LIMIT, || is_served(&router, RO, node));
    }
    await_nobody(&router, "ro");
    let (_held, places) = spread(router.address, RO, 10);
    assert_eq!(places.values().copied().collect::<Vec<_>>(), [5, 5], "{places:?}");
    let members = router.http("/api/v1/members").unwrap().1;
    assert!(members.contains("\"host\":\"::1\""), "{members}");
}

#[test]
fn dead_endpoints_cost_one_timeout_and_one_that_is_unwell_names_nobody() {
    let all = shared();
    let (_, leader, [one, two]) = &all;
    let silent: Vec<TcpListener> = (0..6)
        .map(|_| TcpListener::bind((crate::cluster::fresh_address(), 8008)).unwrap())
        .collect();
    let mut endpoints: Vec<String> = silent
        .iter()
        .map(|listener| format!("\"http://{}\"", listener.local_addr().unwrap()))
        .collect();
    let unwell = Rest::saying(&json!([]));
    // Another leader, on a newer timeline.
    let mut other = member(one, "leader", "running");
    other["timeline"] = json!(1000);
    let others = json!({"members": [other, member(leader, "replica", "streaming"), member(two, "replica", "streaming")]});
    unwell.answer(503, &others);
    let rest = Rest::saying(&as_usual(&all));
    endpoints.extend([format!("\"{}\"", unwell.url()), format!("\"{}\"", rest.url())]);
    let began = Instant::now();
    // A proxy of the environment is for the outside.
    let nowhere = "http://127.0.0.1:9".to_owned();
    let env = ["http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy"];
    let (_dir, router) = launch(
        &format!("[{}]", endpoints.join(", ")),
        ", poll_interval: 2s, fast_poll_interval: 100ms",
        Options {
            env: env.map(|name| (name.to_owned(), nowhere.clone())).to_vec(),
            ..Options::default()
        },
    );
    router.await_read_write();
    // One after the other they would take 12 s.
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    let mut session = Session::open(router.address, RW).unwrap();
    assert_eq!(session.server(), leader.address);
    router.await_log(&["HTTP status 503"]);
    for listener in &silent {
        router.await_log(&[&listener.local_addr().unwrap().to_string(), "no answer in time"]);
    }
    // They delay nothing from now on.
    rest.say(&json!([
        member(leader, "leader", "running"),
        member(one, "replica", "stopped")
    ]));
    eventually("what the live one says counts", Duration::from_secs(8), || {
        let members = router.http("/api/v1/members").unwrap().1;
        members.contains("stopped") && !members.contains(&two.name)
    });

    // Then none is well. Whom it knew is the leader as long as it accepts writes; nobody is cut
    // off.
    let asked = rest.asked();
    rest.answer(503, &others);
    eventually("it has been asked again", LIMIT, || rest.asked() > asked + 1);
    router.await_log(&["no Patroni endpoint gave a usable answer"]);
    assert_eq!(session.server(), leader.address);
    assert_eq!(
        Session::open(router.address, RW).unwrap().server(),
        leader.address
    );
    assert!(is_ready(&router));
}

#[test]
fn without_a_leader_new_clients_are_told_and_live_sessions_stay() {
    let all = shared();
    let (_, leader, [one, two]) = &all;
    let rest = Rest::saying(&as_usual(&all));
    let (_dir, router) = before(&rest);
    let mut master = Session::open(router.address, RW).unwrap();
    for node in [one, two] {
        eventually("both serve", LIMIT, || is_served(&router, RO, node));
    }
    await_nobody(&router, "ro");
    let (mut readers, places) = spread(router.address, RO, 4);
    assert_eq!(places.len(), 2, "{places:?}");
    let nobody = json!([
        member(leader, "replica", "running"),
        member(one, "replica", "streaming"),
        member(two, "replica", "streaming")
    ]);
    let empty = json!([]);
    let two_leaders = json!([
        member(leader, "leader", "running"),
        member(one, "leader", "running"),
        member(two, "replica", "streaming")
    ]);
    for (said, why) in [
        (nobody, "no member"),
        (empty, ""),
        (two_leaders, "several leaders"),
    ] {
        rest.say(&said);
        eventually("there is no leader", LIMIT, || !is_ready(&router));
        let began = Instant::now();
        let told = Session::refused(router.address, RW);
        assert!(told.code == "57P03" && told.message.contains(why), "{told:?}");
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        assert_eq!(master.server(), leader.address, "{said}");
        for session in &mut readers {
            assert_eq!(session.query("SELECT pg_is_in_recovery()"), "t", "{said}");
        }
        rest.say(&as_usual(&all));
        eventually("there is one", LIMIT, || is_ready(&router));
        assert_eq!(
            Session::open(router.address, RW).unwrap().server(),
            leader.address
        );
    }
    assert_eq!(master.server(), leader.address);
}

#[test]
fn an_update_is_at_once_and_a_cluster_or_host_that_is_removed_is_asked_no_more() {
    let all = shared();
    let (_, leader, [one, two]) = &all;
    let starting = json!([
        member(leader, "leader", "running"),
        member(one, "replica", "streaming"),
        member(two, "replica", "starting")
    ]);
    let (rest, next, other) = (
        Rest::saying(&starting),
        Rest::saying(&as_usual(&all)),
        Rest::saying(&as_usual(&all)),
    );
    let (_dir, router) = launch(
        &format!("[\"{}\"]", rest.url()),
        ", poll_interval: 5m",
        Options::default(),
    );
    router.await_read_write();
    eventually("one is served", LIMIT, || is_served(&router, RO, one));
    let mut asked = 0;
    eventually("it is calm", Duration::from_secs(60), || {
        let before = std::mem::replace(&mut asked, rest.asked());
        pause(Duration::from_secs(2));
        before == rest.asked()
    });
    rest.say(&as_usual(&all));
    assert!(!is_served(&router, RO, two) && rest.asked() == asked);
    // Safe methods do nothing, and another path is not everything's.
    assert_eq!(router.http("/anything").unwrap().0, 404);
    assert_eq!(router.http("/update_clusters"), Some((200, "OK".to_owned())));
    eventually("it is asked and believed", Duration::from_secs(10), || {
        is_served(&router, RO, two)
    });
    assert!(rest.asked() > asked);

    // A second cluster comes and goes; its sessions hold it.
    let text = std::fs::read_to_string(router.dir().join("trunkline.yaml")).unwrap();
    let (start, _) = text.split_once("\ntls:").unwrap();
    let (_, section) = start.split_once("  main:\n").unwrap();
    let second = format!("  second:\n{section}")
        .replace(&rest.url(), &other.url())
        .replace("poll_interval: 5m", "poll_interval: 100ms");
    let listener = format!(
        "listeners:\n  - {{name: second, address: \"{}:6450\", route: second, mode: tcp}}\n",
        router.address
    );
    reload(&router, |text| {
        text.replace("clusters:\n", &format!("clusters:\n{second}\n"))
            .replace(
                "routes:\n",
                "routes:\n  second: {cluster: second, targets: [leader]}\n",
            )
            .replace("listeners:\n", &listener)
    });
    assert_eq!(
        Session::open(router.address, 6450).unwrap().server(),
        leader.address
    );
    let mut master = Session::open(router.address, RW).unwrap();
    // And other hosts.
    reload(&router, |_| text.replace(&rest.url(), &next.url()));
    eventually("the new one is asked", LIMIT, || next.asked() > 0);
    assert_eq!(master.server(), leader.address);
    assert_eq!(
        Session::open(router.address, RW).unwrap().server(),
        leader.address
    );
    assert!(TcpStream::connect((router.address, 6450)).is_err());
    let asked = || (rest.asked(), other.asked());
    let mut last = asked();
    eventually("they are asked no more", LIMIT, || {
        let before = std::mem::replace(&mut last, asked());
        pause(Duration::from_secs(2));
        before == asked()
    });
    assert!(!router.http("/metrics").unwrap().1.contains("cluster=\"second\""));
}

#[test]
fn tls_towards_patroni_is_verified_and_shows_who_asks() {
    let all = shared();
    // router:secret
    let (rest, certificates) = Rest::guarded("cm91dGVyOnNlY3JldA==", &as_usual(&all));
    let dir = tempfile::tempdir().unwrap();
    let (right, wrong) = (
        secret(dir.path(), "right", "secret"),
        secret(dir.path(), "wrong", "guess"),
    );
    let file = |name: &str| certificates.file(name).display().to_string();
    let ca = format!("ca_file: {}", file("ca.crt"));
    let stranger = format!(
        "ca_file: {}",
        crate::cluster::Certificates::shared().file("ca.crt").display()
    );
    let shown = format!(
        "cert_file: {}, key_file: {}",
        file("server.crt"),
        file("server.key")
    );
    let user =
        |password: &std::path::Path| format!("username: router, password_file: {}", password.display());
    let endpoints = format!("[\"{}\"]", rest.url());
    for (keys, why) in [
        (format!(", {stranger}, {shown}, {}", user(&right)), "certificate"),
        (format!(", {ca}, {}", user(&right)), ""),
        (format!(", {ca}, {shown}, {}", user(&wrong)), "HTTP status 401"),
    ] {
        let (_dir, router) = launch(&endpoints, &keys, Options::default());
        router.await_log(&["WARN", &rest.url(), why]);
        assert!(!is_ready(&router));
        assert_eq!(Session::refused(router.address, RW).code, "57P03");
    }
    // The authority and the password are changed while it runs.
    let keys = format!(", {stranger}, {shown}, {}", user(&wrong));
    let (_dir, router) = launch(&endpoints, &keys, Options::default());
    router.await_log(&["WARN", &rest.url()]);
    reload(&router, |text| {
        text.replace(&stranger, &ca)
            .replace(&wrong.display().to_string(), &right.display().to_string())
    });
    router.await_read_write();
    assert_eq!(Session::open(router.address, RW).unwrap().server(), all.1.address);
}

fn descriptors(router: &Router) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", router.process_id()))
        .unwrap()
        .count()
}

/// Memory of the process, KiB.
fn resident(router: &Router) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", router.process_id())).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn a_thousand_connections_leave_nothing_behind() {
    let all = shared();
    let rest = Rest::saying(&as_usual(&all));
    let (_dir, router) = before(&rest);
    // The server's first word is enough: it is the router that is looked at.
    let startup = b"\0\0\0\x1f\0\x03\0\0user\0app\0database\0app\0\0";
    let once = || {
        let mut client = TcpStream::connect((router.address, RW)).unwrap();
        client.write_all(&startup[..]).unwrap();
        let mut tag = [0];
        client.read_exact(&mut tag).unwrap();
        assert_eq!(tag, *b"R");
    };
    let sessions = || {
        let metrics = router.http("/metrics").unwrap().1;
        metrics
            .lines()
            .filter(|line| line.starts_with("trunkline_sessions{"))
            .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
            .sum::<f64>()
    };
    let is_idle = || {
        let listed = router.http("/api/v1/sessions").unwrap().1;
        sessions() < 0.5 && router.metric("trunkline_pending_logins") < 0.5 && listed.trim() == "[]"
    };
    for _ in 0..100 {
        once();
    }
    eventually("all are gone", LIMIT, is_idle);
    // Who has had much and is idle costs little.
    let before = resident(&router);
    let held: Vec<Session> = (0..60)
        .map(|_| {
            let mut session = Session::open(router.address, RW).unwrap();
            assert_eq!(session.query("SELECT repeat('x', 262144)").len(), 262_144);
            session
        })
        .collect();
    let each = resident(&router).saturating_sub(before) / 60;
    assert!(each < 20, "{each} KiB a connection");
    drop(held);
    eventually("all are gone", LIMIT, is_idle);
    let (descriptors_before, resident_before) = (descriptors(&router), resident(&router));
    for _ in 0..1000 {
        once();
    }
    eventually("all are gone", LIMIT, is_idle);
    eventually("and their sockets", LIMIT, || {
        descriptors(&router) <= descriptors_before + 4
    });
    let grown = resident(&router).saturating_sub(resident_before);
    assert!(grown < 2048, "{grown} KiB more");
    let ended = "trunkline_sessions_ended_total{route=\"rw\",cause=\"client_gone\"}";
    assert!(
        router.metric(ended) > 1159.5,
        "{}",
        router.http("/metrics").unwrap().1
    );
}

#[test]
fn a_connection_whose_peer_does_not_read_can_be_ended() {
    const TOKEN: &str = "a-token-of-24-characters";
    let all = shared();
    let leader = &all.1;
    let rest = Rest::saying(&as_usual(&all));
    let dir = tempfile::tempdir().unwrap();
    let token = secret(dir.path(), "token", TOKEN);
    let options = Options {
        http: format!("token_file: {}", token.display()),
        ..Options::default()
    };
    let (_dir, router) = launch(&format!("[\"{}\"]", rest.url()), "", options);
    router.await_read_write();
    let mut blocked = Session::open(router.address, RW).unwrap();
    let process = blocked.query("SELECT pg_backend_pid()");
    blocked.send("SELECT repeat('x', 1000000) FROM generate_series(1, 100)");
    let waits = format!("SELECT wait_event FROM pg_stat_activity WHERE pid = {process}");
    eventually("nobody reads", LIMIT, || leader.sql(&waits) == "ClientWrite");
    let mut stream = TcpStream::connect((router.address, 6434)).unwrap();
    write!(
        stream,
        "POST /api/v1/members/{}/close-sessions HTTP/1.0\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 15\r\n\r\n\
         {{\"when\": \"now\"}}",
        leader.name
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(
        answer.contains("200 OK") && answer.contains("\"sessions\":1"),
        "{answer}"
    );
    eventually("its server is rid of it", LIMIT, || leader.sql(&waits).is_empty());
    assert!(blocked.end(LIMIT).closed);
    router.await_log(&["session ended", "mode=\"tcp\""]);
}

/// Timers that run for established TCP connections with this local or remote port: `02` is
/// keepalive's.
fn timers(
    local: Option<(std::net::Ipv4Addr, u16)>,
    remote: Option<(std::net::Ipv4Addr, u16)>,
) -> Vec<String> {
    let name = |(address, port): (std::net::Ipv4Addr, u16)| {
        format!("{:08X}:{port:04X}", u32::from_ne_bytes(address.octets()))
    };
    let is = |wanted: Option<(std::net::Ipv4Addr, u16)>, field: &str| {
        wanted.is_none_or(|wanted| name(wanted) == field)
    };
    std::fs::read_to_string("/proc/net/tcp")
        .unwrap()
        .lines()
        .skip(1)
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|fields| fields[3] == "01" && is(local, fields[1]) && is(remote, fields[2]))
        .map(|fields| fields[5][..2].to_owned())
        .collect()
}

/// How long each end may be gone is shown where packets are lost, in `netns`: here that the kernel
/// looks at all.
#[test]
fn a_peer_that_has_vanished_is_looked_for_on_both_sides() {
    let all = shared();
    let rest = Rest::saying(&as_usual(&all));
    let (_dir, router) = before(&rest);
    let mut session = Session::open(router.address, RW).unwrap();
    let port = session.query("SELECT inet_client_port()").parse().unwrap();
    let address = session.query("SELECT host(inet_client_addr())").parse().unwrap();
    let leader = (all.1.address.parse().unwrap(), all.1.port);
    // Once nothing is on its way.
    eventually("the client is looked for", LIMIT, || {
        timers(Some((router.address, RW)), None) == ["02"]
    });
    eventually("and the server", LIMIT, || {
        timers(Some((address, port)), Some(leader)) == ["02"]
    });
}
