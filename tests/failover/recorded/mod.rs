//! Failovers under the recorder: what clients of five drivers notice of each, and that the account
//! holds whatever happens.

mod cut_off;
mod long;
mod outages;

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use super::cluster::{
    Cluster, Node, Options, Router, binary, eventually, fresh_address, output, secret, succeed,
};
use super::orders::{TOKEN, install_before_stop};
use super::recorder::{Episode, Recorder};

/// How sessions outlive their server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// In transaction mode.
    Pooled,
    /// Each session has a connection of its own.
    Tracked,
}

impl Mode {
    fn routes(self) -> String {
        let keeps = match self {
            Self::Pooled => "pool: {mode: transaction, max_connections: 8}",
            Self::Tracked => "resume: tracked",
        };
        format!(
            "routes:\n  read-write: {{targets: [leader], {keeps}}}\n  read-only: {{targets: [replica]}}\n"
        )
    }
}

/// Patroni's ttl and the election, with room for a busy machine.
const FAILOVER: Duration = Duration::from_mins(1);
/// Where a router runs.
struct Place {
    address: Ipv4Addr,
    /// Before its command, as `ip netns exec NAME`.
    prefix: Vec<String>,
    /// Writers are on this one.
    has_clients: bool,
    /// Another mode than that of the run.
    mode: Option<Mode>,
}

impl Place {
    fn here() -> Self {
        Self {
            address: fresh_address(),
            prefix: Vec::new(),
            has_clients: true,
            mode: None,
        }
    }

    fn of(mode: Mode) -> Self {
        Self {
            mode: Some(mode),
            ..Self::here()
        }
    }
}

/// Of Patroni: an acknowledged transaction survives its leader.
const SYNCHRONOUS: &str = r#"{"synchronous_mode": true}"#;

/// What a client may be told when it has something under way, or when it has been held for too
/// long. Drivers have codes of their own (08003), or none.
const TOLD: [&str; 8] = ["57P01", "57P03", "08003", "08006", "08007", "40001", "25P02", "-"];

/// A cluster, a router before it or several that are peers, and writers in five drivers.
struct Run {
    // Dropped in this order.
    recorder: Recorder,
    routers: Vec<Router>,
    cluster: Cluster,
    /// For commands to a router.
    token: PathBuf,
    _dir: TempDir,
}

impl Run {
    /// One router, ten clients.
    fn start(mode: Mode, name: &str, base: &str, etcd_port: u16) -> Self {
        Self::before(Self::cluster(name, base, etcd_port, &[]), mode)
    }

    /// Three routers that are peers, sixteen clients.
    fn with_peers(mode: Mode, name: &str, base: &str, etcd_port: u16) -> Self {
        let at = [0, 1, 2].map(|_| Place::here());
        Self::at(Self::cluster(name, base, etcd_port, &[]), mode, &at, 16)
    }

    fn before(cluster: Cluster, mode: Mode) -> Self {
        Self::at(cluster, mode, &[Place::here()], 10)
    }

    fn cluster(name: &str, base: &str, etcd_port: u16, more: &[&str]) -> Cluster {
        let options = ["--ttl", "20", "--loop-wait", "2", "--name", name];
        // Where there is no such script, Patroni goes on without.
        let before_stop = ["--before-stop", "{dir}/before-stop {node}"];
        Cluster::start(base, etcd_port, &[&options[..], &before_stop, more].concat())
    }

    fn at(cluster: Cluster, mode: Mode, places: &[Place], clients: u64) -> Self {
        configure(&cluster, SYNCHRONOUS);
        await_synchronous(&cluster);
        let dir = tempfile::tempdir().unwrap();
        let token = secret(dir.path(), "http.token", TOKEN);
        let peers = secret(dir.path(), "peers", &"5".repeat(64));
        let mut routers = Vec::new();
        for place in places {
            let mut extra = place.mode.unwrap_or(mode).routes();
            if places.len() > 1 {
                let _ = writeln!(extra, "peers:\n  secret_file: {}\n  members:", peers.display());
            }
            for other in places.iter().filter(|other| other.address != place.address) {
                let address = other.address;
                let _ = writeln!(
                    extra,
                    "    - {{name: \"{address}\", address: \"{address}:6432\"}}"
                );
            }
            let options = Options {
                extra,
                http: format!("token_file: {}", token.display()),
                address: Some(place.address),
                prefix: place.prefix.clone(),
                ..Options::default()
            };
            routers.push(Router::before(&cluster, options));
        }
        let with_clients = routers.iter().zip(places).filter(|(_, place)| place.has_clients);
        let with_clients: Vec<&Router> = with_clients.map(|(router, _)| router).collect();
        let recorder = Recorder::start(&cluster, &with_clients, clients, Duration::from_millis(30));
        Self {
            recorder,
            routers,
            cluster,
            token,
            _dir: dir,
        }
    }

    /// What clients went through during `event`; the cluster is whole again when this returns.
    fn during(&mut self, name: &str, event: impl FnOnce(&Cluster)) -> Episode {
        let Self {
            cluster, recorder, ..
        } = self;
        let episode = recorder.during(name, || event(cluster));
        self.whole();
        episode
    }

    fn whole(&self) {
        self.cluster.control("wait", &[]);
        await_synchronous(&self.cluster);
    }

    fn leader(&self) -> Node {
        self.cluster.node(&self.cluster.leader())
    }

    fn finish(self) {
        let leader = self.leader();
        let account = self.recorder.finish(&leader);
        account.assert_right();
        account.assert_sees();
    }

    /// `trunkline COMMAND` to this router.
    fn tell(&self, router: &Router, command: &[&str]) -> String {
        let url = format!("http://{}:6434", router.address);
        succeed(
            Command::new(binary())
                .args(command)
                .args(["--url", &url, "--token-file"])
                .arg(&self.token),
        )
    }

    // --- events

    fn switchover(&mut self) -> Episode {
        self.during("switchover by patronictl", |cluster| {
            cluster.control("switchover", &[]);
        })
    }

    fn switchover_by_the_router(&mut self) -> Episode {
        self.switchover_by(0)
    }

    fn switchover_by(&mut self, router: usize) -> Episode {
        let from = Recorder::begin();
        self.tell(&self.routers[router], &["switchover", "--yes"]);
        self.recorder.await_all();
        let episode = self.recorder.end("switchover by the router", from);
        self.whole();
        episode
    }

    fn switchover_with_before_stop(&mut self) -> Episode {
        install_before_stop(&self.cluster, &self.routers[0]);
        let episode = self.during("switchover by patronictl, with before-stop", |cluster| {
            cluster.control("switchover", &[]);
        });
        let script = Path::new(self.cluster.dir()).join("before-stop");
        std::fs::remove_file(script).unwrap();
        episode
    }

    fn kill_the_leader(&mut self) -> Episode {
        let dead = self.leader().name;
        let Self {
            cluster, recorder, ..
        } = self;
        let episode = recorder.during("leader killed", || {
            cluster.control("kill", &[&dead]);
        });
        self.cluster.control("start", &[&dead]);
        self.whole();
        episode
    }

    /// Patroni starts it again in its place.
    fn kill_the_postmaster(&mut self) -> Episode {
        let postmaster = self.leader().postmaster();
        self.during("postmaster killed", |_| kill(postmaster))
    }

    /// Thawed without its Patroni, it believes that it leads, and lets itself be written to.
    fn freeze_the_leader(&mut self) -> Episode {
        let frozen = self.leader();
        let Self {
            cluster, recorder, ..
        } = self;
        let episode = recorder.during("leader frozen", || {
            cluster.control("freeze", &[&frozen.name]);
        });
        kill(self.patroni(&frozen));
        self.cluster.control("thaw", &[&frozen.name]);
        eventually("the thawed one answers", FAILOVER, || {
            frozen.sql_try("SELECT pg_is_in_recovery()").as_deref() == Some("f")
        });
        for _ in 0..3 {
            self.recorder.await_all();
        }
        assert_eq!(frozen.sql("SELECT pg_is_in_recovery()"), "f", "it still leads");
        assert_eq!(self.recorder.fenced(&frozen), [], "written on {}", frozen.name);
        self.cluster.control("kill", &[&frozen.name]);
        self.cluster.control("start", &[&frozen.name]);
        self.whole();
        episode
    }

    /// The process that Patroni runs in.
    fn patroni(&self, node: &Node) -> u32 {
        let record = std::fs::read_to_string(format!("{}/pids/{}", self.cluster.dir(), node.name)).unwrap();
        record.split(' ').next().unwrap().parse().unwrap()
    }
}

fn kill(process: u32) {
    succeed(Command::new("kill").args(["-s", "KILL", &process.to_string()]));
}

/// Changes Patroni's dynamic configuration.
pub fn configure(cluster: &Cluster, json: &str) {
    let url = format!("{}/config", cluster.nodes()[0].rest);
    succeed(Command::new("curl").args(["-sS", "--fail", "--noproxy", "*", "-X", "PATCH", "-d", json, &url]));
}

/// Until the leader has a synchronous standby, and Patroni would promote it.
fn await_synchronous(cluster: &Cluster) {
    eventually("there is a synchronous standby", FAILOVER, || {
        let leader = cluster.node(&cluster.leader());
        let url = format!("{}/cluster", leader.rest);
        let patroni = output(Command::new("curl").args(["-sS", "--noproxy", "*", &url]));
        // The server's word comes first, and the key in etcd a moment later.
        String::from_utf8_lossy(&patroni.stdout).contains("sync_standby")
            && leader.sql("SELECT count(*) FROM pg_stat_replication WHERE sync_state IN ('sync', 'quorum')")
                != "0"
    });
}

/// Half of the clients of each driver are on a route with a pool, half on one with
/// `resume: tracked`, at two routers that are peers.
#[test]
fn switchovers_and_crashes_lose_and_double_nothing() {
    let cluster = Run::cluster("recorded", "127.0.55.11", 14300, &[]);
    let places = [Place::of(Mode::Pooled), Place::of(Mode::Tracked)];
    let mut run = Run::at(cluster, Mode::Pooled, &places, 10);
    for _ in 0..3 {
        run.switchover_by_the_router().assert_unnoticed();
    }
    for _ in 0..2 {
        run.switchover_with_before_stop().assert_unnoticed();
    }
    run.switchover().assert_only(&TOLD);
    run.kill_the_postmaster().assert_only(&TOLD);
    run.kill_the_leader().assert_only(&TOLD);
    run.freeze_the_leader().assert_only(&TOLD);
    run.finish();
}
