//! A switchover by the router where Patroni's REST interface speaks TLS and wants a password.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use super::cluster::{
    Certificates, Cluster, Node, Options, Router, binary, eventually, output, secret, succeed,
};
use super::orders::TOKEN;
use super::session::Session;
use super::writers::Writers;

const WRITERS: u64 = 4;
const SOON: Duration = Duration::from_secs(20);
const ALLOWED: &str = "switchover: Patroni lets the router switch over";
const DENIED: &str = "Patroni does not let the router switch over (HTTP status 401)";
const NO_CHECKPOINT: &str = "there will be no checkpoint before clients are held";
const HELD: &str = "trunkline_hold_entered_total{route=\"read-write\"}";

/// A certificate authority and a certificate with its key, readable for Patroni.
struct Issued {
    ca: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
}

impl Issued {
    fn by_the_clusters(cluster: &Cluster) -> Self {
        let file = |key| PathBuf::from(cluster.text(key));
        Self {
            ca: file("ca_file"),
            certificate: file("cert_file"),
            key: file("key_file"),
        }
    }

    fn by_another(cluster: &Cluster, node: &Node) -> Self {
        let made = Certificates::make(std::slice::from_ref(&node.address));
        let copied = |name: &str| {
            let path = Path::new(cluster.dir()).join(format!("other-{name}"));
            fs::copy(made.file(name), &path).unwrap();
            succeed(Command::new("chown").arg(cluster.text("run_as")).arg(&path));
            path
        };
        Self {
            ca: copied("ca.crt"),
            certificate: copied("server.crt"),
            key: copied("server.key"),
        }
    }
}

/// Patroni of this node shows this certificate, and wants a password for what changes something.
fn secure(cluster: &Cluster, node: &Node, issued: &Issued) {
    let path = format!("{}/{}/patroni.yaml", cluster.dir(), node.name);
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    let rest = &mut config["restapi"];
    rest["certfile"] = json!(issued.certificate);
    rest["keyfile"] = json!(issued.key);
    rest["cafile"] = json!(cluster.text("ca_file"));
    rest["authentication"] = json!({"username": "operator", "password": "geheim"});
    fs::write(&path, config.to_string()).unwrap();
    let pids = fs::read_to_string(Path::new(cluster.text("pids")).join(&node.name)).unwrap();
    let pid = pids.split(' ').next().unwrap();
    succeed(Command::new("kill").args(["-s", "HUP", pid]));
    let own = format!("https://{}:8008/patroni", node.address);
    eventually("Patroni has the certificate, and says where it is", SOON, || {
        let said = output(
            Command::new("curl")
                .args(["-s", "-m", "3", "--cacert"])
                .arg(&issued.ca)
                .arg(format!("https://{}:8008/cluster", node.address)),
        );
        String::from_utf8_lossy(&said.stdout).contains(&own)
    });
}

fn configured(cluster: &Cluster, dir: &Path, ca: &Path, access: &str) -> Options {
    let clusters = cluster.yaml(dir).replace("http://", "https://");
    let patroni = format!("patroni: {{ca_file: {}, {access}", ca.display());
    Options {
        clusters: Some(clusters.replace("patroni: {", &patroni)),
        http: format!("token_file: {}", secret(dir, "token", TOKEN).display()),
        extra:
            "routes:\n  read-write: {targets: [leader], pool: {mode: transaction, max_connections: 5}}\n  \
                read-only: {targets: [replica]}\n"
                .to_owned(),
        ..Options::default()
    }
}

fn trunkline(router: &Router, arguments: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command
        .args(arguments)
        .arg("-c")
        .arg(router.dir().join("trunkline.yaml"));
    command
}

fn texts(said: Output) -> (bool, String) {
    let both = [said.stdout, said.stderr].concat();
    (said.status.success(), String::from_utf8(both).unwrap())
}

fn run(router: &Router, arguments: &[&str]) -> (bool, String) {
    texts(output(trunkline(router, arguments).stdin(Stdio::null())))
}

/// Checkpoints of the server that a command asked for.
fn checkpoints(node: &Node) -> u64 {
    let asked = node.sql("SELECT checkpoints_req FROM pg_stat_bgwriter");
    asked.parse().unwrap()
}

/// A switchover that is ended before Patroni is asked, because a transaction stays open.
fn ended_by_hand(router: &Router) -> String {
    let mut open = Session::open(router.address, 6432).unwrap();
    open.query("BEGIN");
    let command = trunkline(router, &["switchover", "--yes", "--grace", "14s"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    eventually("clients are held", SOON, || {
        let (_, members) = router.http("/api/v1/members").unwrap();
        members.contains("about to be stopped")
    });
    succeed(Command::new("kill").args(["-s", "INT", &command.id().to_string()]));
    let (is_done, said) = texts(command.wait_with_output().unwrap());
    assert!(
        !is_done && said.contains("nothing was changed: an operator has ended it"),
        "{said}"
    );
    open.query("COMMIT");
    said
}

#[test]
fn a_switchover_asks_a_patroni_that_speaks_tls_and_wants_a_password() {
    let options = [
        "--nodes",
        "2",
        "--ttl",
        "20",
        "--loop-wait",
        "2",
        "--name",
        "secure",
    ];
    let cluster = Cluster::start("127.0.93.11", 15120, &options);
    let usual = Issued::by_the_clusters(&cluster);
    for node in cluster.nodes() {
        secure(&cluster, &node, &usual);
    }
    let dir = tempfile::tempdir().unwrap();
    let old = cluster.node(&cluster.leader());
    let allowed = |router: &Router| run(router, &["check", "--connect"]);

    // Reading needs no password.
    let router = Router::before(&cluster, configured(&cluster, dir.path(), &usual.ca, ""));
    let (_, said) = allowed(&router);
    assert!(said.contains(DENIED), "{said}");
    let (is_done, said) = run(&router, &["switchover", "--yes"]);
    assert!(!is_done && said.contains(DENIED), "{said}");
    drop(router);

    let password = secret(dir.path(), "operator", "geheim");
    let access = format!("username: operator, password_file: {}, ", password.display());
    let options = configured(&cluster, dir.path(), &usual.ca, &access);
    let router = Router::before(&cluster, options);
    let (is_good, said) = allowed(&router);
    assert!(is_good && said.contains(ALLOWED), "{said}");

    // The checkpoint of the router, at the server itself.
    let before = checkpoints(&old);
    let said = ended_by_hand(&router);
    assert!(said.contains(NO_CHECKPOINT), "{said}");
    assert!(
        said.contains("no checkpoint was made: the service account may not"),
        "{said}"
    );
    assert_eq!(checkpoints(&old), before);
    old.sql("GRANT pg_checkpoint TO trunkline");
    let said = ended_by_hand(&router);
    assert!(
        !said.contains(NO_CHECKPOINT) && said.contains("a checkpoint was made in "),
        "{said}"
    );
    eventually("the server counts it", SOON, || checkpoints(&old) == before + 1);

    // Nobody waits for a Patroni that cannot be asked.
    let writers = Writers::start(router.address, WRITERS);
    let held = router.metric(HELD);
    let other = Issued::by_another(&cluster, &old);
    secure(&cluster, &old, &other);
    let refused = format!("https://{}:8008/switchover: ", old.address);
    let (is_done, said) = run(&router, &["switchover", "--yes"]);
    assert!(!is_done && said.contains(&refused), "{said}");
    assert!(said.contains("certificate"), "{said}");
    assert!(!said.contains("clients are held, and"), "{said}");
    let (_, said) = allowed(&router);
    assert!(
        said.contains("nobody says whether Patroni lets the router switch over: ") && !said.contains(ALLOWED),
        "{said}"
    );
    writers.await_more(50);
    assert!((router.metric(HELD) - held).abs() < 0.1);
    assert_eq!(cluster.leader(), old.name);

    secure(&cluster, &old, &usual);
    let (is_done, said) = run(&router, &["switchover", "--yes"]);
    assert!(
        is_done && said.contains("is the leader: seen to accept writes"),
        "{said}"
    );
    let new = cluster.leader();
    assert_ne!(new, old.name);
    writers.await_more(50);
    let written = writers.stop();
    assert_eq!(
        (written.refused.clone(), written.unknown.clone(), written.logins),
        (Vec::new(), Vec::new(), WRITERS),
        "{}",
        router.log()
    );
    written.check(&cluster.node(&new).sql("SELECT n FROM written"));
}
