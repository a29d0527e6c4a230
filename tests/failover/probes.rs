//! The router's own probes are ended by the server.

use std::time::Duration;

use super::cluster::postgres::{Options as ServerOptions, Postgres};
use super::cluster::{Options, Router, eventually};
use super::session::Session;
use super::writers::Writers;

const WRITERS: u64 = 4;
const SOON: Duration = Duration::from_secs(20);

#[test]
fn a_probe_that_the_server_ends_delays_and_holds_no_client() {
    let server = Postgres::start(&ServerOptions::default());
    let options = Options {
        clusters: Some(server.yaml()),
        extra:
            "routes:\n  read-write: {targets: [leader], pool: {mode: transaction, max_connections: 5}}\n  \
                read-only: {targets: [replica]}\n"
                .to_owned(),
        ..Options::default()
    };
    let router = Router::launch(None, options);
    router.await_read_write();
    let writers = Writers::start(router.address, WRITERS);
    let probe = "SELECT min(pid) FROM pg_stat_activity WHERE usename = 'trunkline' AND state = 'idle'";
    for _ in 0..10 {
        let mut found = String::new();
        eventually("a probe keeps its connection", SOON, || {
            found = server.sql(probe);
            !found.is_empty()
        });
        server.sql(&format!("SELECT pg_terminate_backend({found})"));
        let other = format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {found}");
        eventually("it is gone", SOON, || server.sql(&other) == "0");
        // New clients, too.
        assert_eq!(
            Session::open(router.address, 6432).unwrap().query("SELECT 1"),
            "1"
        );
    }
    let written = writers.stop();
    assert_eq!(
        (written.refused.clone(), written.unknown.clone(), written.logins),
        (Vec::new(), Vec::new(), WRITERS),
        "{}",
        router.log()
    );
    for name in ["entered", "timeouts", "full"] {
        let metric = format!("trunkline_hold_{name}_total{{route=\"read-write\"}}");
        assert!(router.metric(&metric) < 0.5, "{name}\n{}", router.log());
    }
    assert!(
        !router.log().contains("is no longer the leader"),
        "{}",
        router.log()
    );
    assert!(!router.log().contains("is down"), "{}", router.log());
}
