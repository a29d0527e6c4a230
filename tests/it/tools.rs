//! PostgreSQL's own programs through both ports (benchmark, dump and restore, base backup, WAL and
//! logical streaming), and one very large value.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::cluster::{Cluster, Node, Router, eventually, output, succeed};

/// Before a release everything runs for longer and with more.
fn long() -> bool {
    std::env::var("TRUNKLINE_LONG").is_ok_and(|value| value == "1")
}

fn program(name: &str) -> Command {
    Command::new(Path::new(Cluster::shared().text("bindir")).join(name))
}

fn leader() -> Node {
    Cluster::shared().node(&Cluster::shared().leader())
}

/// Something made in the shared cluster, and unmade at the end whatever happens.
struct Undo(&'static str);

impl Undo {
    /// Now too: an earlier run may have been cut short.
    fn now_and_at_the_end(sql: &'static str) -> Self {
        let undo = Self(sql);
        undo.run();
        undo
    }

    fn run(&self) {
        for line in self.0.lines() {
            let _ = leader().sql_try(line);
        }
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        self.run();
    }
}

fn replayed(relation: &str) {
    eventually("the replicas have replayed", Duration::from_secs(30), || {
        Cluster::shared().replicas().iter().all(|name| {
            Cluster::shared()
                .node(name)
                .sql_try(&format!("SELECT 1 FROM {relation} LIMIT 1"))
                .is_some()
        })
    });
}

#[test]
fn pgbench_runs_without_an_error_in_each_protocol() {
    let router = Router::shared();
    let _undo = Undo::now_and_at_the_end("DROP SCHEMA IF EXISTS bench CASCADE");
    let options = "options='-c search_path=bench'";
    leader().sql("CREATE SCHEMA bench AUTHORIZATION app");
    succeed(
        program("pgbench")
            .args(["-i", "-q", "-s", "2"])
            .arg(router.dsn(6432, options)),
    );
    replayed("bench.pgbench_accounts");
    let seconds = if long() { "60" } else { "8" };
    let start = |port: u16, arguments: &[&str]| -> Child {
        program("pgbench")
            .args(["-n", "-c", "4", "-j", "1", "-T", seconds])
            .args(arguments)
            .arg(router.dsn(port, options))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let mut running = Vec::new();
    for protocol in ["simple", "extended", "prepared"] {
        running.push(start(6432, &["-M", protocol]));
        running.push(start(6433, &["-S", "-M", protocol]));
    }
    // Connecting anew for each transaction.
    running.push(start(6433, &["-S", "-C"]));
    for child in running {
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{text}{errors}");
        assert!(!errors.contains("rror"), "{errors}");
        assert!(text.contains("number of failed transactions: 0 "), "{text}");
    }
}

/// A dump, without the lines that differ from one dump of the same database to the next.
fn dump(dsn: &str) -> String {
    let text = succeed(program("pg_dump").args(["--no-sync"]).arg(dsn));
    let lines = text
        .lines()
        .filter(|line| !line.starts_with("\\restrict") && !line.starts_with("\\unrestrict"));
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn a_database_dumped_and_restored_through_the_router_is_the_same() {
    let router = Router::shared();
    let _undo = Undo::now_and_at_the_end(
        "DROP DATABASE IF EXISTS dump_a WITH (FORCE)\nDROP DATABASE IF EXISTS dump_b WITH (FORCE)",
    );
    let leader = leader();
    leader.sql("CREATE DATABASE dump_a OWNER app");
    leader.sql("CREATE DATABASE dump_b OWNER app");
    let fill = "
        CREATE TYPE mood AS ENUM ('glad', 'sad');
        CREATE TABLE item (id bigserial PRIMARY KEY, name text NOT NULL, mood mood, data bytea, at timestamptz, j jsonb);
        INSERT INTO item (name, mood, data, at, j)
            SELECT 'név ' || g, 'glad', decode(repeat(md5(g::text), g % 100), 'hex'), now(), jsonb_build_object('g', g)
            FROM generate_series(1, 20000) g;
        CREATE INDEX ON item (name);
        CREATE VIEW glad AS SELECT * FROM item WHERE mood = 'glad';
        CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;
        CREATE TRIGGER nothing BEFORE INSERT ON item FOR EACH ROW EXECUTE FUNCTION nothing();
        SELECT lo_from_bytea(0, decode(repeat('00ff5c0a', 100000), 'hex'));";
    let filled = router.psql_output(6432, "dbname=dump_a", fill);
    assert!(
        filled.status.success(),
        "{}",
        String::from_utf8_lossy(&filled.stderr)
    );

    let direct = |database: &str| {
        format!(
            "host={} port=5432 user=app password=app dbname={database}",
            leader.address
        )
    };
    let original = dump(&direct("dump_a"));
    assert_eq!(dump(&router.dsn(6432, "dbname=dump_a")), original);

    // In parallel too: several sessions that share one snapshot.
    let dir = tempfile::tempdir().unwrap();
    let into = dir.path().join("dump");
    succeed(
        program("pg_dump")
            .args(["--no-sync", "-Fd", "-j", "3", "-f"])
            .arg(&into)
            .arg(router.dsn(6432, "dbname=dump_a")),
    );
    succeed(
        program("pg_restore")
            .args(["-e", "-j", "3", "--no-owner", "-d"])
            .arg(router.dsn(6432, "dbname=dump_b"))
            .arg(&into),
    );
    assert_eq!(dump(&direct("dump_b")), original);
}

/// As the replication user; physical replication takes no database.
fn replication(router: &Router, port: u16, extra: &str) -> String {
    router.dsn(port, &format!("user=app_repl password=app_repl {extra}"))
}

#[test]
fn base_backups_come_from_the_leader_and_from_a_standby() {
    let router = Router::shared();
    let dir = tempfile::tempdir().unwrap();
    let mut running = Vec::new();
    for (port, from) in [(6432, "primary"), (6433, "standby")] {
        let into = dir.path().join(from);
        let child = program("pg_basebackup")
            .args(["-X", "stream", "-c", "fast", "--no-sync", "-D"])
            .arg(&into)
            .args(["-d", &replication(&router, port, "")])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        running.push((child, from, into));
    }
    for (child, from, into) in running {
        let output = child.wait_with_output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let label = fs::read_to_string(into.join("backup_label")).unwrap();
        assert!(label.contains(&format!("BACKUP FROM: {from}")), "{label}");
        succeed(program("pg_verifybackup").arg(&into));
    }
    // What each port identifies itself as: one system, both on one timeline.
    let identify = |port| {
        let output = output(
            Command::new("psql")
                .args(["-XAtq", "-c", "IDENTIFY_SYSTEM"])
                .arg(replication(&router, port, "replication=true")),
        );
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let text = String::from_utf8(output.stdout).unwrap();
        text.split('|').take(2).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(identify(6432), identify(6433));
    // A replication session with a database answers SQL as well.
    for (port, standby) in [(6432, "f"), (6433, "t")] {
        let output = output(
            Command::new("psql")
                .args(["-XAtq", "-c", "SELECT pg_is_in_recovery()"])
                .arg(replication(&router, port, "replication=database")),
        );
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), standby);
    }
}

#[test]
fn wal_is_received_through_both_ports() {
    let router = Router::shared();
    let _undo = Undo::now_and_at_the_end(
        "SELECT pg_drop_replication_slot('receivewal') FROM pg_replication_slots WHERE slot_name = 'receivewal'",
    );
    let (on_leader, on_standby) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let slot = ["--slot", "receivewal"];
    succeed(program("pg_receivewal").args(slot).args([
        "--create-slot",
        "-d",
        &replication(&router, 6432, ""),
    ]));
    let until = leader().sql("SELECT pg_logical_emit_message(false, 'receivewal', repeat('x', 100000)) + 1");
    // The replicas' streams start at what they have; the end is what it waits for.
    let start = |port: u16, into: &Path, slot: &[&str]| {
        program("pg_receivewal")
            .args(["--no-loop", "--no-sync", "--endpos", &until, "-D"])
            .arg(into)
            .args(slot)
            .args(["-d", &replication(&router, port, "")])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let running = [
        start(6432, on_leader.path(), &slot),
        start(6433, on_standby.path(), &[]),
    ];
    // The end lies beyond what was written so far.
    leader().sql("SELECT pg_logical_emit_message(false, 'receivewal', 'y')");
    let mut files = Vec::new();
    for (child, dir) in running.into_iter().zip([&on_leader, &on_standby]) {
        let output = child.wait_with_output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let names = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name());
        files.push(names.collect::<Vec<_>>());
    }
    assert!(files.iter().all(|names| !names.is_empty()), "{files:?}");
}

#[test]
fn a_logical_slot_streams_changes() {
    let router = Router::shared();
    let _undo = Undo::now_and_at_the_end(
        "SELECT pg_drop_replication_slot('recvlogical') FROM pg_replication_slots WHERE slot_name = 'recvlogical'\n\
         DROP TABLE IF EXISTS public.recvlogical",
    );
    let dsn = replication(&router, 6432, "");
    succeed(program("pg_recvlogical").args([
        "--create-slot",
        "--slot",
        "recvlogical",
        "--plugin",
        "pgoutput",
        "-d",
        &dsn,
    ]));
    succeed(program("pg_recvlogical").args(["--drop-slot", "--slot", "recvlogical", "-d", &dsn]));
    succeed(program("pg_recvlogical").args([
        "--create-slot",
        "--slot",
        "recvlogical",
        "--plugin",
        "test_decoding",
        "-d",
        &dsn,
    ]));
    leader().sql("CREATE TABLE public.recvlogical (a int)");
    leader().sql("INSERT INTO public.recvlogical SELECT generate_series(1, 1000)");
    let until = leader().sql("SELECT pg_current_wal_insert_lsn()");
    let text = succeed(program("pg_recvlogical").args([
        "--start",
        "--no-loop",
        "--slot",
        "recvlogical",
        "--endpos",
        &until,
        "-f",
        "-",
        "-d",
        &dsn,
    ]));
    assert_eq!(
        text.lines()
            .filter(|line| line.contains("INSERT: a[integer]"))
            .count(),
        1000
    );
}

/// Peak memory of a process, in bytes. The kernel counts by processor and sums up roughly, so that
/// it may seem to fall.
fn peak(process: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
    kib * 1024
}

#[test]
fn a_very_large_value_costs_the_router_no_memory() {
    let router = Router::shared();
    let megabytes: usize = if long() { 500 } else { 100 };
    let size = megabytes << 20;
    let dir = tempfile::tempdir().unwrap();
    for mode in ["require", "disable"] {
        let extra = format!("sslmode={mode}");
        // What a first session costs is not the value's.
        router.psql_output(6432, &extra, "SELECT repeat('x', 1000000)");
        let before = peak(router.process_id());

        let got = router.psql_output(6432, &extra, &format!("SELECT repeat('x', {size})"));
        assert!(got.status.success(), "{}", String::from_utf8_lossy(&got.stderr));
        assert_eq!(got.stdout.len(), size + 1);
        drop(got);

        let file = dir.path().join("statement.sql");
        let statement = format!("SELECT length('{}');\n", "y".repeat(size));
        fs::write(&file, &statement).unwrap();
        drop(statement);
        let said = succeed(
            Command::new("psql")
                .args(["-XAtq", "-f"])
                .arg(&file)
                .arg(router.dsn(6432, &extra)),
        );
        assert_eq!(said.trim(), size.to_string());

        let grown = peak(router.process_id()).saturating_sub(before);
        assert!(
            grown < 16 << 20,
            "{grown} bytes for {megabytes} MiB, sslmode={mode}"
        );
    }
    // A client that does not read stops its server, and fills nobody's memory.
    let before = peak(router.process_id());
    let mut slow = Command::new("psql")
        .args([
            "-XAtq",
            "-c",
            &format!(
                "COPY (SELECT repeat('z', 1000) FROM generate_series(1, {})) TO STDOUT",
                size / 1000
            ),
        ])
        .arg(router.dsn(6433, "application_name=slow_reader"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    eventually("its server waits for it", Duration::from_secs(30), || {
        Cluster::shared().replicas().iter().any(|name| {
            Cluster::shared().node(name).sql(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'slow_reader' AND wait_event = 'ClientWrite'",
            ) != "0"
        })
    });
    let grown = peak(router.process_id()).saturating_sub(before);
    assert!(grown < 16 << 20, "{grown} bytes for a slow reader");
    slow.kill().unwrap();
    slow.wait().unwrap();
    eventually("its server is let go", Duration::from_secs(30), || {
        Cluster::shared().replicas().iter().all(|name| {
            Cluster::shared()
                .node(name)
                .sql("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'slow_reader'")
                == "0"
        })
    });
}
