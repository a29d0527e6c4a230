//! The recorder: writers in five drivers go on writing through the router while something happens
//! to the cluster, and the account of what each of them was told is compared with the table.
//!
//! Each driver is a program of its own beside this file (tokio-postgres is a thread of this
//! process). All take the same from their environment: `HOSTS` (the routers, of which each writer
//! takes one by its number) and their `PORT`, `CA` for their certificate, `WRITERS` (numbers, one
//! connection each, separated by commas), `PAUSE_MS` between two transactions, `OUT`, `STOP` (a
//! file: when it is there, they end) and `LIMIT_S`, after which they end by themselves. Each writer
//! takes turns: one statement, a transaction of two, a prepared statement, and three at once as far
//! as the driver can. Its n-th row has the number `(writer << 32) + n`, which is never used again:
//! nothing is retried. A writer whose connection is over opens another one. Into `OUT` they write
//! lines with tabs, times in microseconds:
//!
//! ```text
//! login BEGAN ENDED WRITER done|error SQLSTATE TEXT
//! write BEGAN ENDED WRITER done|error|dead KIND IDS PHASE SQLSTATE TEXT
//! ```
//!
//! `dead` is an error after which the driver's connection is of no use; PHASE is what was under way
//! (`autocommit`, `begin`, `statement`, `commit`). What that means is decided in `account`, for all
//! in the same way.
//!
//! Beside them, the direct writer writes at each server itself, and shows how long the cluster had
//! no leader.
//!
//! With a folder in `TRUNKLINE_RECORDER_OUT`, the writers' lines, the router's log and one line of
//! JSON for each event are left there.

mod account;
mod direct;
mod tail;

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tempfile::TempDir;

pub use account::Fault;
use account::{Counts, Fate, Row, Write, all_after, check, counts, fenced, gap};
use direct::Job;
use tail::Tail;

use super::cluster::drivers::cache;
use super::cluster::{Certificates, Cluster, Node, Router, eventually, project};

const DRIVERS: [&str; 5] = ["psycopg", "asyncpg", "pgjdbc", "node-postgres", "tokio-postgres"];
const DIRECT: &str = "direct";
/// Writers from here on are the direct ones.
const FIRST_DIRECT: u64 = 256;
/// Programs of other languages end by themselves after this time.
const LIMIT: Duration = Duration::from_mins(60);
/// One transaction takes so long at most, held or not; who needs longer hangs.
const PATIENCE: Duration = Duration::from_secs(90);

/// Microseconds since 1970: all writers are on this machine.
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(since.as_micros()).unwrap()
}

pub struct Recorder {
    dir: TempDir,
    programs: Vec<(&'static str, Child)>,
    threads: Vec<JoinHandle<()>>,
    writers: BTreeMap<&'static str, Vec<u64>>,
    /// What each driver, and the direct writer, has written so far.
    lines: BTreeMap<&'static str, Tail>,
    logs: Vec<PathBuf>,
}

/// What happened in a stretch of time.
#[derive(Debug)]
pub struct Episode {
    pub name: String,
    /// When it began.
    from: u64,
    pub drivers: BTreeMap<&'static str, Counts>,
    /// How long the cluster had no leader, in ms.
    pub gap: u64,
    /// When there was one again, how long until the last client had its next transaction
    /// acknowledged, in ms.
    pub after: u64,
    /// Errors as the clients saw them, in order.
    pub errors: Vec<String>,
}

impl Recorder {
    /// Makes the table, and starts so many clients in all, spread over drivers and routers; returns
    /// when all write.
    pub fn start(cluster: &Cluster, routers: &[&Router], clients: u64, pause: Duration) -> Self {
        let leader = cluster.node(&cluster.leader());
        leader.sql(
            "CREATE TABLE recorded (id bigint NOT NULL, server inet DEFAULT inet_server_addr(), timeline int DEFAULT \
             ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int); \
             GRANT SELECT, INSERT ON recorded TO app",
        );
        let mut recorder = Self {
            dir: tempfile::tempdir().unwrap(),
            programs: Vec::new(),
            threads: Vec::new(),
            writers: BTreeMap::new(),
            lines: BTreeMap::new(),
            logs: routers.iter().map(|router| router.dir().join("log")).collect(),
        };
        let hosts: Vec<String> = routers.iter().map(|router| router.address.to_string()).collect();
        let drivers = DRIVERS.len() as u64;
        for (index, driver) in (0..).zip(DRIVERS) {
            // The first drivers have one more.
            let count = (clients + drivers - 1 - index) / drivers;
            let numbers: Vec<u64> = (index * 16..index * 16 + count).collect();
            let job = recorder.job(driver, hosts.clone(), numbers, pause);
            if driver == "tokio-postgres" {
                recorder.threads.push(direct::tokio_postgres(job));
            } else {
                recorder.programs.push((driver, program(driver, &job)));
            }
        }
        let hosts: Vec<String> = cluster.nodes().into_iter().map(|node| node.address).collect();
        let numbers: Vec<u64> = (FIRST_DIRECT..).take(hosts.len()).collect();
        let job = recorder.job(DIRECT, hosts, numbers, Duration::from_millis(20));
        recorder.threads.push(direct::direct(job));
        // Java compiles its writer first.
        recorder.await_within(4 * PATIENCE);
        recorder
    }

    fn job(&mut self, driver: &'static str, hosts: Vec<String>, writers: Vec<u64>, pause: Duration) -> Job {
        let out = self.dir.path().join(driver);
        self.writers.insert(driver, writers.clone());
        self.lines.insert(driver, Tail::new(out.clone()));
        Job {
            hosts,
            port: 6432,
            out,
            stop: self.stop(),
            writers,
            pause,
            limit: LIMIT,
        }
    }

    fn stop(&self) -> PathBuf {
        self.dir.path().join("stop")
    }

    fn lines(&mut self, driver: &str) -> &Tail {
        let lines = self.lines.get_mut(driver).unwrap();
        lines.read();
        lines
    }

    /// Until each writer has had a transaction acknowledged that began after this was called.
    pub fn await_all(&mut self) {
        self.await_within(PATIENCE);
    }

    fn await_within(&mut self, patience: Duration) {
        let begin = now();
        let mut missing: HashSet<(&str, u64)> = HashSet::new();
        for driver in DRIVERS {
            missing.extend(self.writers[driver].iter().map(|writer| (driver, *writer)));
        }
        let mut seen = String::new();
        let deadline = begin + u64::try_from(patience.as_micros()).unwrap();
        while !missing.is_empty() {
            assert!(now() < deadline, "these do not write: {missing:?}\n{seen}");
            super::cluster::pause(Duration::from_millis(100));
            for (driver, child) in &mut self.programs {
                let ended = child.try_wait().unwrap();
                assert!(ended.is_none(), "{driver} has ended: {ended:?}");
            }
            seen.clear();
            for driver in DRIVERS {
                let Tail { writes, logins, .. } = self.lines(driver);
                // What ended before is further up.
                for write in writes.iter().rev().take_while(|write| write.ended >= begin) {
                    if write.began >= begin && write.fate() == Fate::Acknowledged {
                        missing.remove(&(driver, write.writer));
                    }
                }
                let last = (writes.last(), logins.last());
                let _ = writeln!(seen, "{driver}: {last:?}");
            }
        }
    }

    /// Does `event` while all write, waits until all write again, and tells what they went through.
    pub fn during(&mut self, name: &str, event: impl FnOnce()) -> Episode {
        let from = Self::begin();
        event();
        self.await_all();
        self.end(name, from)
    }

    /// For an event that does not fit into a closure: when it began.
    pub fn begin() -> u64 {
        now()
    }

    /// What clients have gone through since then.
    pub fn end(&mut self, name: &str, from: u64) -> Episode {
        let to = now();
        let mut errors = Vec::new();
        let mut drivers = BTreeMap::new();
        let gap = gap(&self.lines(DIRECT).writes, from, to);
        let mut after = 0;
        for driver in DRIVERS {
            let Tail { writes, logins, .. } = self.lines(driver);
            after = all_after(writes, gap.end).max(after);
            drivers.insert(driver, counts(writes, logins, from, to));
            let wrong = writes
                .iter()
                .filter(|write| write.fate() != Fate::Acknowledged)
                .map(|write| (write.ended, format!("{driver} {write:?}")));
            errors.extend(wrong);
            let refused = logins.iter().filter(|login| !login.is_done);
            errors.extend(refused.map(|login| (login.ended, format!("{driver} {login:?}"))));
        }
        errors.retain(|(ended, _)| (from..=to).contains(ended));
        errors.sort_unstable();
        let episode = Episode {
            name: name.to_owned(),
            from,
            drivers,
            gap: (gap.end - gap.start) / 1000,
            after,
            errors: errors.into_iter().map(|(_, text)| text).collect(),
        };
        episode.publish();
        episode
    }

    /// Ends all writers, and compares what they were told with the table of `leader`.
    pub fn finish(mut self, leader: &Node) -> Account {
        fs::write(self.stop(), "").unwrap();
        for (driver, child) in &mut self.programs {
            let mut status = None;
            eventually(&format!("{driver} ends"), PATIENCE, || {
                status = child.try_wait().unwrap();
                status.is_some()
            });
            assert!(status.unwrap().success(), "{driver}: {status:?}");
        }
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
        let (mut writes, mut count) = (Vec::new(), BTreeMap::new());
        for driver in DRIVERS {
            let own = self.lines(driver).writes.clone();
            let with = |fate| own.iter().filter(|write| write.fate() == fate).count();
            let fates = [Fate::Acknowledged, Fate::Failed, Fate::Unknown].map(with);
            count.insert(driver, fates);
            writes.extend(own);
        }
        let account = Account {
            faults: check(&writes, &rows(leader, false)),
            of_the_cluster: check(&self.lines(DIRECT).writes, &rows(leader, true)),
            leader: leader.clone(),
            writes,
            count,
        };
        account.publish();
        account
    }

    /// Rows in the table of a server that leads no more, which were written there when another one
    /// led already.
    pub fn fenced(&mut self, old: &Node) -> Vec<Fault> {
        let mut writes = Vec::new();
        for driver in DRIVERS {
            writes.extend(self.lines(driver).writes.clone());
        }
        fenced(&writes, &rows(old, false))
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        let _ = fs::write(self.stop(), "");
        for (_, child) in &mut self.programs {
            let _ = child.kill();
            let _ = child.wait();
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        if let Some(folder) = left_in() {
            for (number, log) in (1..).zip(&self.logs) {
                let _ = fs::copy(log, folder.join(format!("router{number}.log")));
            }
            for driver in self.writers.keys() {
                let _ = fs::copy(self.dir.path().join(driver), folder.join(driver));
            }
        }
    }
}

/// What all of it came to.
#[derive(Debug)]
pub struct Account {
    pub faults: Vec<Fault>,
    /// Of the direct writer: the cluster's own.
    pub of_the_cluster: Vec<Fault>,
    leader: Node,
    writes: Vec<Write>,
    count: BTreeMap<&'static str, [usize; 3]>,
}

impl Account {
    /// With a row less, one twice and one of nobody's in the same table, it is wrong.
    pub fn assert_sees(&self) {
        let mut ids = self
            .writes
            .iter()
            .filter(|write| write.fate() == Fate::Acknowledged);
        let mut id = || ids.find(|write| write.ids.len() == 1).unwrap().ids[0];
        let (lost, doubled, phantom) = (id(), id(), (FIRST_DIRECT << 32) - 1);
        self.leader.sql(&format!(
            "DELETE FROM recorded WHERE id = {lost}; \
             INSERT INTO recorded SELECT * FROM recorded WHERE id = {doubled}; \
             INSERT INTO recorded SELECT {phantom}, server, timeline FROM recorded WHERE id = {doubled} LIMIT 1"
        ));
        let faults = check(&self.writes, &rows(&self.leader, false));
        assert_eq!(faults.len(), 3, "{faults:?}");
        for fault in [
            Fault::Lost(lost),
            Fault::Doubled(doubled),
            Fault::Phantom(phantom),
        ] {
            assert!(faults.contains(&fault), "{fault:?} in {faults:?}");
        }
    }

    #[track_caller]
    pub fn assert_right(&self) {
        let mut wrong = Vec::new();
        for fault in self.faults.iter().take(20) {
            let of = |id: &u64| self.writes.iter().find(|write| write.ids.contains(id));
            let write = match fault {
                Fault::Lost(id) | Fault::Doubled(id) | Fault::Phantom(id) | Fault::Failed(id) => of(id),
                Fault::Torn(ids) => of(&ids[0]),
                Fault::Fenced(row) => of(&row.id),
            };
            wrong.push(format!("{fault:?} of {write:?}"));
        }
        assert!(
            wrong.is_empty(),
            "{} faults:\n{}\nthe cluster's own: {:?}",
            self.faults.len(),
            wrong.join("\n"),
            self.of_the_cluster
        );
        for (driver, [acknowledged, ..]) in &self.count {
            assert!(
                *acknowledged > 20,
                "{driver} has written little: {:?}",
                self.count
            );
        }
        // Each kind has been written.
        for kind in ["single", "transaction", "prepared", "pipelined"] {
            assert!(self.writes.iter().any(|write| write.kind == kind), "{kind}");
        }
    }

    fn publish(&self) {
        let drivers: BTreeMap<&str, Value> = self
            .count
            .iter()
            .map(|(driver, [acknowledged, failed, unknown])| {
                let count = json!({"acknowledged": acknowledged, "failed": failed, "unknown": unknown});
                (*driver, count)
            })
            .collect();
        publish(&json!({
            "account": drivers,
            "faults": self.faults.len(),
            "faults_of_the_cluster": self.of_the_cluster.len(),
        }));
    }
}

impl Episode {
    /// No client of any driver has seen an error or lost its connection.
    #[track_caller]
    pub fn assert_unnoticed(&self) {
        let is_unnoticed = self.drivers.values().all(Counts::is_unnoticed);
        assert!(is_unnoticed, "{}:\n{}", self.name, self.errors.join("\n"));
    }

    /// Nothing was told but these SQLSTATEs.
    #[track_caller]
    pub fn assert_only(&self, allowed: &[&str]) {
        let mut others = self.codes();
        others.retain(|code, _| {
            let sqlstate = code.split(' ').next().unwrap_or_default();
            !allowed.contains(&sqlstate)
        });
        assert!(
            others.is_empty(),
            "{}: {others:?}\n{}",
            self.name,
            self.errors.join("\n")
        );
    }

    /// The longest pause of any writer, in ms.
    pub fn pause(&self) -> u64 {
        self.drivers
            .values()
            .map(|counts| counts.pause)
            .max()
            .unwrap_or_default()
    }

    /// Over all drivers: what failed or is unknown, by SQLSTATE and where.
    pub fn codes(&self) -> BTreeMap<String, u64> {
        let mut sum = BTreeMap::new();
        for counts in self.drivers.values() {
            for (code, count) in counts.failed.iter().chain(&counts.unknown) {
                *sum.entry(code.clone()).or_default() += count;
            }
            for (code, count) in &counts.refused_logins {
                *sum.entry(format!("{code} at login")).or_default() += count;
            }
        }
        sum
    }

    fn publish(&self) {
        let drivers: BTreeMap<&str, Value> = self
            .drivers
            .iter()
            .map(|(driver, counts)| {
                let counts = json!({
                    "acknowledged": counts.acknowledged, "failed": counts.failed, "unknown": counts.unknown,
                    "refused_logins": counts.refused_logins, "reconnects": counts.reconnects,
                    "pause_ms": counts.pause,
                });
                (*driver, counts)
            })
            .collect();
        publish(&json!({
            "event": self.name, "from": self.from, "gap_ms": self.gap, "after_ms": self.after,
            "pause_ms": self.pause(), "codes": self.codes(), "drivers": drivers,
        }));
    }
}

fn left_in() -> Option<PathBuf> {
    std::env::var_os("TRUNKLINE_RECORDER_OUT").map(PathBuf::from)
}

/// One line of JSON: to whoever looks, and into the folder that is named.
fn publish(value: &Value) {
    eprintln!("{value}");
    if let Some(folder) = left_in() {
        fs::create_dir_all(&folder).unwrap();
        let mut options = fs::OpenOptions::new();
        let file = options.create(true).append(true).open(folder.join("events"));
        writeln!(file.unwrap(), "{value}").unwrap();
    }
}

fn rows(node: &Node, of_the_direct_writer: bool) -> Vec<Row> {
    let sign = if of_the_direct_writer { ">=" } else { "<" };
    let limit = FIRST_DIRECT << 32;
    let text = node.sql(&format!(
        "SELECT id, host(server), timeline FROM recorded WHERE id {sign} {limit}"
    ));
    text.lines()
        .map(|line| {
            let fields: Vec<&str> = line.split('|').collect();
            Row {
                id: fields[0].parse().unwrap(),
                server: fields[1].to_owned(),
                timeline: fields[2].parse().unwrap(),
            }
        })
        .collect()
}

fn program(driver: &str, job: &Job) -> Child {
    let here = project().join("tests/failover/recorder");
    let mut command = match driver {
        "psycopg" | "asyncpg" => {
            let mut command = Command::new(cache().join("drivers-python/bin/python"));
            command.arg(here.join(format!("{driver}_writer.py")));
            command
        }
        "node-postgres" => {
            let mut command = Command::new("node");
            // A client that does not pipeline says that its queue will be gone one day.
            command
                .arg("--no-deprecation")
                .arg(here.join("node_writer.js"))
                .env("NODE_PATH", cache().join("drivers-node/node_modules"));
            command
        }
        "pgjdbc" => {
            let mut command = Command::new("java");
            command
                .args(["-XX:TieredStopAtLevel=1", "-cp", "/usr/share/java/postgresql.jar"])
                .arg(here.join("Writer.java"));
            command
        }
        _ => panic!("no such driver: {driver}"),
    };
    let writers: Vec<String> = job.writers.iter().map(ToString::to_string).collect();
    command
        .env("HOSTS", job.hosts.join(","))
        .env("PORT", job.port.to_string())
        .env("CA", Certificates::shared().file("ca.crt"))
        .env("WRITERS", writers.join(","))
        .env("PAUSE_MS", job.pause.as_millis().to_string())
        .env("LIMIT_S", job.limit.as_secs().to_string())
        .env("OUT", &job.out)
        .env("STOP", &job.stop)
        .stdin(Stdio::null());
    command.spawn().unwrap()
}
