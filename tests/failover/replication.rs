//! Who receives WAL or changes through the read-write port goes on at the new leader, if its slot
//! is there: Patroni's permanent slots.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::cluster::postgres::{self, Postgres};
use super::cluster::{Cluster, Options, Router, eventually};
use super::recorded::configure;

/// Both wait for 5 s between two tries.
const LIMIT: Duration = Duration::from_mins(1);

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn receivers_of_wal_and_subscribers_go_on_at_the_new_leader() {
    let options = ["--ttl", "20", "--loop-wait", "2", "--name", "replication"];
    let cluster = Cluster::start("127.0.58.11", 14340, &options);
    let old = cluster.node(&cluster.leader());
    old.sql(
        "CREATE TABLE news (n int); GRANT SELECT ON news TO app_repl; \
         CREATE PUBLICATION news FOR TABLE news",
    );
    configure(
        &cluster,
        r#"{"slots": {"receiver": {"type": "physical"},
            "subscriber": {"type": "logical", "database": "app", "plugin": "pgoutput"}}}"#,
    );
    let slots = "SELECT count(*) FROM pg_replication_slots WHERE slot_name IN ('receiver', 'subscriber')";
    for node in cluster.nodes() {
        eventually("Patroni has made the slots", LIMIT, || node.sql(slots) == "2");
    }
    let router = Router::before(&cluster, Options::default());
    let dsn = router.dsn(6432, "user=app_repl password=app_repl");

    let received = tempfile::tempdir().unwrap();
    let log = fs::File::create(received.path().join("log")).unwrap();
    let receiver = Command::new(Path::new(cluster.text("bindir")).join("pg_receivewal"))
        .args(["--slot", "receiver", "--synchronous", "--verbose", "-D"])
        .arg(received.path())
        .args(["-d", &dsn.replace("dbname=app", "")])
        .stderr(Stdio::from(log))
        .spawn()
        .unwrap();
    let _receiver = Running(receiver);
    let subscriber = Postgres::start(&postgres::Options::default());
    subscriber.sql("CREATE TABLE news (n int)");
    subscriber.sql(&format!(
        "CREATE SUBSCRIPTION news CONNECTION '{dsn}' PUBLICATION news \
         WITH (create_slot = false, slot_name = 'subscriber')"
    ));

    // Rows `from` to `to` have come to both.
    let write = |from: u32, to: u32| {
        let leader = cluster.node(&cluster.leader());
        leader.sql(&format!("INSERT INTO news SELECT generate_series({from}, {to})"));
        let end = leader.sql("SELECT pg_current_wal_insert_lsn()");
        eventually("the subscriber has all rows", LIMIT, || {
            subscriber.sql("SELECT count(*), count(DISTINCT n), max(n) FROM news")
                == format!("{to}|{to}|{to}")
        });
        let flushed = format!(
            "SELECT count(*) FROM pg_stat_replication \
             WHERE application_name = 'pg_receivewal' AND flush_lsn >= '{end}'"
        );
        eventually("the receiver has all WAL", LIMIT, || leader.sql(&flushed) == "1");
        leader
    };
    write(1, 100);
    let new = cluster.control("switchover", &[]);
    let leader = write(101, 200);
    assert_eq!(leader.name, new.trim());
    let said = fs::read_to_string(received.path().join("log")).unwrap();
    assert!(said.contains("switched to timeline 2"), "without a gap: {said}");
}
