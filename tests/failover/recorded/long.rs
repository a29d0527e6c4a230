//! Failovers that take minutes, or are rarer: `make test-long`.

use tokio::time::Instant;

use super::super::cluster::pause;
use super::super::netns::Wire;
use super::*;

impl Run {
    /// Patroni demotes its leader if it cannot reach etcd for long enough.
    fn stop_etcd(&mut self, seconds: u64) {
        self.during(&format!("etcd stopped for {seconds} s"), |cluster, _| {
            cluster.control("kill", &["etcd"]);
            pause(Duration::from_secs(seconds));
            cluster.control("start", &["etcd"]);
        })
        .assert_only(&TOLD);
    }

    /// Another has the leader key long before it can be written to.
    fn promote_slowly(&mut self) {
        const SLOW: u64 = 12;
        // Patroni does not show what it has taken; a parameter of the same change does.
        let set = format!(
            r#"{{"postgresql": {{"pre_promote": "/bin/sleep {SLOW}", "parameters": {{"vacuum_cost_limit": 201}}}}}}"#
        );
        configure(&self.cluster, &set);
        for node in self.cluster.nodes() {
            eventually("Patroni has taken it", FAILOVER, || {
                node.sql("SHOW vacuum_cost_limit") == "201"
            });
        }
        let episode = self.switchover();
        configure(&self.cluster, r#"{"postgresql": {"pre_promote": null}}"#);
        episode.assert_only(&TOLD);
        assert!(episode.gap > SLOW * 1000, "it was slow: {} ms", episode.gap);
    }

    /// The leader dies and is back before its key is gone.
    fn start_the_old_leader_first(&mut self) {
        let dead = self.leader().name;
        self.during("leader killed and started again", |cluster, _| {
            cluster.control("kill", &[&dead]);
            pause(Duration::from_secs(3));
            cluster.control("start", &[&dead]);
        })
        .assert_only(&TOLD);
    }

    fn kill_two_leaders_within_10_s(&mut self) {
        // Or the second one may acknowledge what no other has.
        configure(&self.cluster, r#"{"synchronous_mode_strict": true}"#);
        let first = self.leader().name;
        let mut second = String::new();
        let Self {
            cluster, recorder, ..
        } = self;
        let episode = recorder.during("two leaders killed within 10 s", || {
            cluster.control("kill", &[&first]);
            second = cluster.leader();
            let begun = Instant::now();
            cluster.control("start", &[&first]);
            await_synchronous(cluster);
            cluster.control("kill", &[&second]);
            assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
        });
        self.cluster.control("start", &[&second]);
        self.whole();
        configure(&self.cluster, r#"{"synchronous_mode_strict": false}"#);
        // The last leader has no synchronous standby for a while. What waits for one fills the
        // pool.
        episode.assert_only(&[&TOLD[..], &["53300"]].concat());
    }

    /// PostgreSQL of each member is restarted where it is.
    fn restart_one_after_the_other(&mut self) {
        let names = self.cluster.replicas().into_iter().chain([self.leader().name]);
        for name in names.collect::<Vec<_>>() {
            let from = Recorder::begin();
            self.tell(&["drain", &name]);
            let url = format!("{}/restart", self.cluster.node(&name).rest);
            succeed(Command::new("curl").args(["-sS", "--fail", "--noproxy", "*", "-d", "{}", &url]));
            self.tell(&["ready", &name]);
            self.recorder.await_all();
            self.recorder
                .end(&format!("{name} restarted"), from)
                .assert_only(&TOLD);
            self.whole();
        }
    }
}

#[test]
#[ignore = "minutes: `make test-long`"]
fn fifty_switchovers_lose_and_double_nothing() {
    let mut run = Run::start(Mode::Pooled, "fifty", "127.0.56.11", 14310);
    for _ in 0..50 {
        run.switchover().assert_only(&TOLD);
    }
    run.finish();
}

#[test]
#[ignore = "minutes: `make test-long`"]
fn rarer_failovers_lose_and_double_nothing() {
    let mut run = Run::start(Mode::Pooled, "rare", "127.0.57.11", 14320);
    run.restart_one_after_the_other();
    run.promote_slowly();
    run.start_the_old_leader_first();
    run.kill_two_leaders_within_10_s();
    run.stop_etcd(15);
    run.stop_etcd(120);
    run.finish();
}

/// The leader is cut off from the router and everybody else for a while, and goes on leading.
#[test]
#[ignore = "minutes: `make test-long`"]
fn a_leader_that_is_cut_off_loses_and_doubles_nothing() {
    let nodes = ["10.231.31.11", "10.231.31.12", "10.231.31.13"];
    let theirs: Vec<String> = nodes.iter().map(|address| format!("{address}/24")).collect();
    let theirs: Vec<&str> = theirs.iter().map(String::as_str).collect();
    let Some(mut wire) = Wire::lay("tlcut", "10.231.31.1/24", &theirs) else {
        eprintln!("SKIPPED: network namespaces or /dev/net/tun are not to be had here (root?)");
        return;
    };
    let cluster = Cluster::start_in(
        &["ip", "netns", "exec", &wire.namespace],
        nodes[0],
        14330,
        &["--ttl", "20", "--loop-wait", "2", "--name", "cut"],
    );
    let mut run = Run::before(cluster, Mode::Pooled);
    let leader = run.leader();
    // Back before anybody else leads.
    run.during("leader cut off for 10 s", |_, _| {
        wire.tell("drop", &leader.address);
        pause(Duration::from_secs(10));
        wire.tell("pass", &leader.address);
    })
    .assert_only(&TOLD);
    // Another one leads meanwhile.
    let Run {
        cluster, recorder, ..
    } = &mut run;
    let episode = recorder.during("leader cut off, and another one promoted", || {
        wire.tell("drop", &leader.address);
        cluster.control("switchover", &[]);
    });
    wire.tell("pass", &leader.address);
    episode.assert_only(&TOLD);
    run.whole();
    run.finish();
}
