//! Applications that write without pause and reconnect when they must, and the account of what they
//! wrote.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::cluster::{eventually, pause};
use super::session::Session;

#[derive(Debug, Default)]
pub struct Written {
    pub acknowledged: Vec<u64>,
    /// Sent, and the connection ended before an answer.
    pub unknown: Vec<u64>,
    /// Answered with an error.
    pub refused: Vec<String>,
    /// Sessions that were let in and were on a standby.
    pub on_standby: u64,
    pub logins: u64,
}

pub struct Writers {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Written>>,
}

impl Writers {
    /// Makes the table and starts `count` writers through the router's read-write port.
    pub fn start(address: Ipv4Addr, count: u64) -> Self {
        Session::open(address, 6432)
            .unwrap()
            .query("CREATE TABLE IF NOT EXISTS written (n bigint, server inet DEFAULT inet_server_addr())");
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(AtomicU64::new(0));
        let threads = (0..count)
            .map(|writer| {
                let (stop, acknowledged) = (Arc::clone(&stop), Arc::clone(&acknowledged));
                std::thread::spawn(move || write(address, writer, &stop, &acknowledged))
            })
            .collect();
        let writers = Self {
            stop,
            acknowledged,
            threads,
        };
        writers.await_more(20);
        writers
    }

    /// Until `more` rows have been acknowledged from now on.
    pub fn await_more(&self, more: u64) {
        let goal = self.acknowledged.load(Ordering::Relaxed) + more;
        eventually("the writers write", Duration::from_mins(1), || {
            self.acknowledged.load(Ordering::Relaxed) >= goal
        });
    }

    pub fn stop(self) -> Written {
        self.stop.store(true, Ordering::Relaxed);
        let mut sum = Written::default();
        for thread in self.threads {
            let Written {
                acknowledged,
                unknown,
                refused,
                on_standby,
                logins,
            } = thread.join().unwrap();
            sum.acknowledged.extend(acknowledged);
            sum.unknown.extend(unknown);
            sum.refused.extend(refused);
            sum.on_standby += on_standby;
            sum.logins += logins;
        }
        sum
    }
}

fn write(address: Ipv4Addr, writer: u64, stop: &AtomicBool, count: &AtomicU64) -> Written {
    let mut written = Written::default();
    let mut next = writer << 32;
    while !stop.load(Ordering::Relaxed) {
        let Ok(mut session) = Session::open(address, 6432) else {
            pause(Duration::from_millis(20));
            continue;
        };
        written.logins += 1;
        session.send("SELECT pg_is_in_recovery()");
        written.on_standby += u64::from(session.answer().value().as_deref() == Some("t"));
        while !stop.load(Ordering::Relaxed) {
            next += 1;
            session.send(&format!("INSERT INTO written VALUES ({next})"));
            let answer = session.answer();
            if answer.tags().contains('C') {
                written.acknowledged.push(next);
                count.fetch_add(1, Ordering::Relaxed);
            } else if answer.closed {
                written.unknown.push(next);
            } else {
                written
                    .refused
                    .extend(answer.errors().into_iter().map(|error| error.code));
            }
            if answer.closed {
                break;
            }
        }
    }
    written
}

impl Written {
    /// Compares with what `found` (a query's output, one number a line) says is there.
    pub fn check(&self, found: &str) {
        let mut found: Vec<u64> = found.lines().map(|line| line.parse().unwrap()).collect();
        found.sort_unstable();
        let rows = found.len();
        found.dedup();
        assert_eq!(rows, found.len(), "rows written twice");
        let has = |number: &u64| found.binary_search(number).is_ok();
        let lost: Vec<_> = self.acknowledged.iter().filter(|number| !has(number)).collect();
        assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
        let more = self.unknown.iter().filter(|number| has(number)).count();
        assert_eq!(
            rows,
            self.acknowledged.len() + more,
            "rows nobody was told of: {self:?}"
        );
        assert_eq!(self.on_standby, 0, "sessions on 6432 that were on a standby");
        assert!(
            self.refused.iter().all(|code| code != "25006"),
            "writes met a standby: {:?}",
            self.refused
        );
    }
}
