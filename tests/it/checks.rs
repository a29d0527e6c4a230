//! HAProxy in front of routers, with the checks that people use.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::cluster::{Certificates, Cluster, Options, Router, eventually, fresh_address, output};

pub struct HaProxy {
    child: Child,
    dir: TempDir,
}

impl HaProxy {
    pub fn start(sections: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("haproxy.cfg");
        let socket = dir.path().join("stats");
        std::fs::write(
            &config,
            format!(
                "global\n  stats socket {} level admin\ndefaults\n  mode tcp\n  timeout connect 2s\n  timeout client 30s\n  \
                 timeout server 30s\n  timeout check 2s\n  default-server inter 100ms fall 2 rise 1\n{sections}",
                socket.display()
            ),
        )
        .unwrap();
        let child = Command::new("/usr/sbin/haproxy")
            .args(["-db", "-q", "-f"])
            .arg(&config)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, dir }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("stats")
    }

    /// `backend/server` and its state, and how many checks failed.
    pub fn states(&self) -> BTreeMap<String, (String, String)> {
        let Ok(mut stream) = UnixStream::connect(self.socket()) else {
            return BTreeMap::new();
        };
        let mut text = String::new();
        if stream.write_all(b"show stat\n").is_err() || stream.read_to_string(&mut text).is_err() {
            return BTreeMap::new();
        }
        text.lines()
            .filter(|line| !line.starts_with('#'))
            .map(|line| line.split(',').collect::<Vec<_>>())
            .filter(|fields| fields.len() > 37 && !matches!(fields[1], "FRONTEND" | "BACKEND"))
            .map(|fields| {
                (
                    format!("{}/{}", fields[0], fields[1]),
                    (fields[17].to_owned(), fields[36].to_owned()),
                )
            })
            .collect()
    }

    #[track_caller]
    pub fn await_states(&self, expected: &[(&str, &str)]) {
        let mut last = BTreeMap::new();
        let began = tokio::time::Instant::now();
        while began.elapsed() < Duration::from_secs(15) {
            last = self.states();
            // A check that has run says what it saw: `* L7OK` is one that runs.
            if expected.iter().all(|(name, state)| {
                last.get(*name)
                    .is_some_and(|(now, check)| now == state && !check.is_empty() && check != "INI")
            }) {
                return;
            }
            crate::cluster::pause(Duration::from_millis(50));
        }
        panic!("{expected:?} was expected, and is {last:?}");
    }
}

impl Drop for HaProxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn haproxys_checks_see_what_is_there_and_make_no_noise() {
    let cluster = Cluster::shared();
    let dir = Certificates::shared().file("");
    let beside = |member: &str| {
        let clusters = format!("{}    local_member: {member}\n", cluster.yaml(&dir));
        Router::before(
            cluster,
            Options {
                clusters: Some(clusters),
                ..Options::default()
            },
        )
    };
    let (leader, replica) = (cluster.leader(), cluster.replicas().remove(0));
    let (at_leader, at_replica) = (beside(&leader), beside(&replica));
    // No Patroni answers this one.
    let nowhere = cluster.nodes().iter().fold(cluster.yaml(&dir), |yaml, node| {
        yaml.replace(&node.rest, &format!("http://{}:8008", fresh_address()))
    });
    let blind = Router::launch(
        None,
        Options {
            clusters: Some(nowhere),
            ..Options::default()
        },
    );
    eventually(
        "the first answers of the probes are logged",
        Duration::from_secs(5),
        || at_leader.metric("trunkline_pending_logins") == 0.0,
    );
    let before = [at_leader.log(), at_replica.log()];

    let front = fresh_address();
    let servers = |port: u16, check: &str| {
        [
            ("leader", &at_leader),
            ("replica", &at_replica),
            ("blind", &blind),
        ]
        .map(|(name, router)| format!("  server {name} {}:{port} {check}\n", router.address))
        .concat()
    };
    let haproxy = HaProxy::start(&format!(
        "listen pg-rw\n  bind {front}:6432\n  option pgsql-check user checkuser\n{}\
         listen pg-ro\n  bind {front}:6433\n  option pgsql-check user checkuser\n{}\
         backend patroni-style\n  option httpchk OPTIONS /\n{}\
         backend patroni-replica\n  option httpchk OPTIONS /replica\n{}\
         backend node-rw\n  option httpchk GET /node/is-read-write\n  http-check expect string true\n{}\
         backend node-ro\n  option httpchk GET /node/is-read-only\n  http-check expect string true\n{}\
         backend ready\n  option httpchk GET /connection/is-ready HTTP/1.1\n  http-check expect status 200\n{}",
        servers(6432, "check"),
        servers(6433, "check"),
        servers(6432, "check port 6434"),
        servers(6433, "check port 6434"),
        servers(6432, "check port 6434"),
        servers(6433, "check port 6434"),
        servers(6432, "check port 6434"),
    ));
    haproxy.await_states(&[
        ("pg-rw/leader", "UP"),
        ("pg-rw/replica", "UP"),
        ("pg-rw/blind", "DOWN"),
        ("pg-ro/leader", "UP"),
        ("pg-ro/replica", "UP"),
        ("pg-ro/blind", "DOWN"),
        ("patroni-style/leader", "UP"),
        ("patroni-style/replica", "DOWN"),
        ("patroni-style/blind", "DOWN"),
        ("patroni-replica/leader", "DOWN"),
        ("patroni-replica/replica", "UP"),
        ("patroni-replica/blind", "DOWN"),
        ("node-rw/leader", "UP"),
        ("node-rw/replica", "DOWN"),
        ("node-rw/blind", "DOWN"),
        ("node-ro/leader", "DOWN"),
        ("node-ro/replica", "UP"),
        ("node-ro/blind", "DOWN"),
        ("ready/leader", "UP"),
        ("ready/replica", "UP"),
        ("ready/blind", "DOWN"),
    ]);
    let states = haproxy.states();
    assert_eq!(states["pg-rw/leader"].1.trim_start_matches("* "), "L7OK");
    assert_eq!(states["pg-rw/blind"].1.trim_start_matches("* "), "L7RSP");
    for (router, before) in [(&at_leader, &before[0]), (&at_replica, &before[1])] {
        let log = router.log();
        let new: Vec<&str> = log[before.len()..]
            .lines()
            .filter(|line| !line.contains("trunkline::cluster"))
            // Each configuration that is made writes the password's file anew, which those that run
            // may see late.
            .filter(|line| !line.contains("files loaded part=clusters.main.service_account"))
            .collect();
        assert!(new.is_empty(), "{new:?}");
        let (_, metrics) = router.http("/metrics").unwrap();
        assert!(!metrics.contains("logins_refused_total{"), "{metrics}");
    }
    assert!(!blind.log().contains("login refused"), "{}", blind.log());

    // And sessions go through it.
    for (port, recovery) in [(6432, "f"), (6433, "t")] {
        let dsn = format!("host={front} port={port} user=app password=app dbname=app sslmode=require");
        let output = output(
            Command::new("psql")
                .args(["-XAtq", "-c", "SELECT pg_is_in_recovery()"])
                .arg(dsn),
        );
        assert_eq!(
            String::from_utf8_lossy(&output.stdout).trim(),
            recovery,
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}
