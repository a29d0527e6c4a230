//! A request for a switchover in etcd arms the router, and the leader that Patroni stops is no
//! leader: real etcd and Patroni.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use super::cluster::{Cluster, Node, Options, Router, binary, eventually, output, project, secret, succeed};
use super::orders::TOKEN;
use super::session::Session;
use super::standby::{patch, rest};

const ARMED: &str = "trunkline_cluster_armed{cluster=\"main\"}";

fn watching(cluster: &Cluster, dir: &Path) -> Router {
    let url = cluster.about["etcd"]["url"].as_str().unwrap();
    let (namespace, scope) = (cluster.text("namespace"), cluster.text("scope"));
    let options = Options {
        cluster_extra: format!("etcd: {{endpoints: [\"{url}\"], namespace: {namespace}, scope: {scope}}}"),
        http: format!("token_file: {}", secret(dir, "token", TOKEN).display()),
        ..Options::default()
    };
    let router = Router::before(cluster, options);
    router.await_log(&["the router watches etcd"]);
    router
}

/// What `trunkline switchover` says, which nobody confirms.
fn plan(router: &Router) -> String {
    let mut command = Command::new(binary());
    let command = command.args(["switchover", "-c"]);
    let said = output(
        command
            .arg(router.dir().join("trunkline.yaml"))
            .stdin(Stdio::null()),
    );
    assert!(!said.status.success());
    String::from_utf8([said.stdout, said.stderr].concat()).unwrap()
}

/// Patroni's own tool.
fn patronictl(cluster: &Cluster, arguments: &[&str]) {
    let program = match cluster.text("patroni_version") {
        "3.0" => "/usr/bin/patronictl".to_owned(),
        version => {
            let cache = succeed(Command::new(project().join("scripts/install-packages")).arg("--cache-dir"));
            format!("{}/patroni-{version}/bin/patronictl", cache.trim())
        }
    };
    let config = format!("{}/{}/patroni.yaml", cluster.dir(), cluster.nodes()[0].name);
    succeed(Command::new(program).args(["-c", &config]).args(arguments));
}

fn is_armed(router: &Router) -> bool {
    router.metric(ARMED) > 0.5
}

/// How many lines of the log contain `part`.
fn lines(router: &Router, part: &str) -> usize {
    router.log().lines().filter(|line| line.contains(part)).count()
}

/// The times of the first lines that contain these parts, in milliseconds of the day.
fn moment(router: &Router, part: &str) -> u64 {
    let line = router.await_log(&[part]);
    let clock = line.split_once('T').unwrap().1;
    let number = |range: std::ops::Range<usize>| clock[range].parse::<u64>().unwrap();
    ((number(0..2) * 60 + number(3..5)) * 60 + number(6..8)) * 1000 + number(9..12)
}

/// Requests a switchover of this node's Patroni without waiting for its end.
fn request(node: &Node, body: String) -> std::thread::JoinHandle<u16> {
    let node = node.clone();
    std::thread::spawn(move || rest(&node, "POST", "/switchover", &body))
}

fn scenarios(patroni: &str, base: &str, etcd_port: u16) {
    let options = [
        "--patroni",
        patroni,
        "--ttl",
        "20",
        "--loop-wait",
        "3",
        "--name",
        "arming",
    ];
    let cluster = Cluster::start(base, etcd_port, &options);
    let dir = tempfile::tempdir().unwrap();
    let router = watching(&cluster, dir.path());
    let old = cluster.leader();
    let new = cluster.replicas()[0].clone();

    // Scheduled an hour ahead: nothing, but that the router's own is refused.
    let later = cluster
        .node(&old)
        .sql("SELECT to_char(now() + '1 hour', 'YYYY-MM-DD\"T\"HH24:MI:SS') || '+00:00'");
    let leader = ["switchover", "arming", "--leader", &old, "--candidate", &new];
    patronictl(
        &cluster,
        &[&leader[..], &["--scheduled", &later, "--force"]].concat(),
    );
    let requested = "another switchover is requested: etcd has Patroni's key \"failover\"";
    eventually("etcd shows it", Duration::from_secs(10), || {
        plan(&router).contains(requested)
    });
    assert!(plan(&router).contains("Patroni has a scheduled switchover"));
    assert!(!plan(&router).contains("Go on?"), "it is not asked for");
    // The message says how to remove it.
    patronictl(&cluster, &["flush", "arming", "switchover", "--force"]);
    eventually("it is possible again", Duration::from_secs(20), || {
        plan(&router).contains("Go on?")
    });

    // A candidate that is not there: the key is written by hand, and Patroni drops it. The watch
    // shows both changes in this order.
    let log = |part: &str| router.await_log(&[part]);
    write_failover_key(
        &cluster,
        &format!("{{\"leader\": \"{old}\", \"member\": \"nobody\"}}"),
    );
    log("armed for a switchover of");
    log("no longer armed for a switchover of");
    assert_eq!(
        lines(&router, " armed for a switchover of"),
        2,
        "once, and its end"
    );
    assert!(!is_armed(&router));
    assert_eq!(lines(&router, "is no longer the leader"), 0);

    if patroni == "3.0" {
        without_before_stop(&cluster, &router, (&old, &new));
    } else {
        with_before_stop(&cluster, &router, (&old, &new));
    }
    // There was one loss of the leader only.
    assert_eq!(lines(&router, "is no longer the leader"), 1, "{}", router.log());
    let looks = router.metric("trunkline_cluster_status_looks_total{cluster=\"main\",result=\"success\"}");
    // Those of a second, on a busy machine, or of the seconds of `before_stop`.
    let least = if patroni == "3.0" { 1.0 } else { 10.0 };
    assert!(looks > least, "{looks}");
}

fn body(old: &str, new: &str) -> String {
    format!("{{\"leader\": \"{old}\", \"candidate\": \"{new}\"}}")
}

/// Before the server gets its signal, Patroni runs `before_stop` for three seconds.
fn with_before_stop(cluster: &Cluster, router: &Router, (old, new): (&str, &str)) {
    let log = |part: &str| router.await_log(&[part]);
    patch(cluster, r#"{"postgresql": {"before_stop": "sleep 3"}}"#);
    eventually("the setting has arrived", Duration::from_secs(20), || {
        let path = format!("{}/{old}/data/patroni.dynamic.json", cluster.dir());
        std::fs::read_to_string(path).is_ok_and(|text| text.contains("before_stop"))
    });
    let mut session = Session::open(router.address, 6432).unwrap();
    session.query("CREATE TABLE t (n int)");
    // Sent to a replica: the leader sees it in its next round.
    let switchover = request(&cluster.node(new), body(old, new));
    log(&format!("Patroni stops {old}, the leader"));
    session.query("INSERT INTO t VALUES (1)");
    assert_eq!(Session::refused(router.address, 6432).code, "57P03");
    assert_eq!(session.query("SELECT count(*) FROM t"), "1", "sessions go on");
    log(&format!("{new} is the leader"));
    assert_eq!(switchover.join().unwrap(), 200);
    eventually("disarmed", Duration::from_secs(10), || !is_armed(router));
    let (stops, leads) = (
        moment(router, "Patroni stops"),
        moment(router, &format!("{new} is the leader")),
    );
    assert!(leads - stops > 3000, "it was known before before_stop ended");
}

/// Patroni 3.0 has no `before_stop`: it says that it stops the server, and sends the signal at
/// once.
fn without_before_stop(cluster: &Cluster, router: &Router, (old, new): (&str, &str)) {
    let mut session = Session::open(router.address, 6432).unwrap();
    assert_eq!(session.server(), cluster.node(old).address);
    let switchover = request(&cluster.node(new), body(old, new));
    let armed = || lines(router, " armed for a switchover of");
    eventually("armed once more", Duration::from_secs(20), || armed() >= 3);
    router.await_log(&[&format!("{new} is the leader")]);
    assert_eq!(switchover.join().unwrap(), 200);
    eventually("disarmed", Duration::from_secs(10), || !is_armed(router));
    assert_eq!(session.end(Duration::from_secs(5)).ended().code, "57P01");
    let server = Session::open(router.address, 6432).unwrap().server();
    assert_eq!(server, cluster.node(new).address);
}

/// Writes Patroni's `failover` key.
fn write_failover_key(cluster: &Cluster, value: &str) {
    use std::io::{Read, Write};
    let url = cluster.about["etcd"]["url"].as_str().unwrap();
    let address = url.trim_start_matches("http://");
    let (namespace, scope) = (cluster.text("namespace"), cluster.text("scope"));
    let key = format!("/{}/{scope}/failover", namespace.trim_matches('/'));
    let encode = |text: &str| BASE64_STANDARD.encode(text);
    let body = format!(
        "{{\"key\": \"{}\", \"value\": \"{}\"}}",
        encode(&key),
        encode(value)
    );
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    write!(
        stream,
        "POST /v3/kv/put HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert!(text.contains("200 OK"), "{text}");
}

#[test]
fn a_leader_that_patroni_4_1_stops_is_no_leader_before_the_server_stops() {
    scenarios("4.1", "127.0.62.31", 14620);
}

#[test]
fn a_leader_that_patroni_3_0_stops_is_followed_by_the_next_one() {
    scenarios("3.0", "127.0.94.11", 15130);
}
