//! Clients of a pool in transaction mode while the leader changes.
//!
//! Each writes with prepared statements and has settings of its own; what each was told is kept
//! beside what it wrote.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::cluster::{Cluster, Node, Options, Router, eventually, pause};
use super::session::{Answer, Session};
use super::switchover::told_to_leave;
use super::writers::Written;

const WRITERS: u64 = 12;
const IDLE: usize = 6;

/// An ERROR after which the session goes on, and the request had no effect: there is no leader, or
/// the connection was lost before the request had reached it.
const REFUSED: [&str; 2] = ["57P03", "08006"];
/// The same where the connection was lost with the request under way: nobody knows, or it is rolled
/// back.
const CUT: [&str; 2] = ["08007", "40001"];
/// What ends a session whose settings were not known when its connection was lost.
const ENDED: [&str; 2] = ["57P01", "08006"];

fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![tag];
    frame.extend(u32::try_from(body.len() + 4).unwrap().to_be_bytes());
    frame.extend(body);
    frame
}

fn query(sql: &str) -> Vec<u8> {
    frame(b'Q', format!("{sql}\0").as_bytes())
}

/// With its Sync, as the others below.
fn parse(name: &str, sql: &str) -> Vec<u8> {
    let parse = frame(b'P', format!("{name}\0{sql}\0\0\0").as_bytes());
    [parse, frame(b'S', b"")].concat()
}

fn execute(name: &str, parameters: &[String]) -> Vec<u8> {
    let mut bind = format!("\0{name}\0\0\0").into_bytes();
    bind.extend(u16::try_from(parameters.len()).unwrap().to_be_bytes());
    for value in parameters {
        bind.extend(u32::try_from(value.len()).unwrap().to_be_bytes());
        bind.extend(value.as_bytes());
    }
    bind.extend([0, 0]);
    [frame(b'B', &bind), frame(b'E', b"\0\0\0\0\0"), frame(b'S', b"")].concat()
}

/// What a request came to.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Done(Option<String>),
    /// An ERROR, and the session goes on. It had no effect.
    Refused,
    /// The same; what was under way is rolled back, and so is its transaction.
    RolledBack,
    /// The same; it may have taken effect.
    Unknown,
    /// The session is over.
    Ended,
}

/// How far the test has come.
#[derive(Debug, Default)]
struct Stage {
    acknowledged: AtomicU64,
    /// The new leader is verified: what begins now is neither refused nor ended.
    is_verified: AtomicBool,
    is_over: AtomicBool,
}

struct Writer {
    address: Ipv4Addr,
    stage: Arc<Stage>,
    work_mem: String,
    next: u64,
    written: Written,
    /// What began after the new leader was verified, and did not come to a good end.
    late: Vec<String>,
}

impl Writer {
    fn ask(&mut self, session: &mut Session, bytes: &[u8]) -> Outcome {
        let is_late = self.stage.is_verified.load(Ordering::Relaxed);
        session.send_bytes(bytes);
        let answer = session.answer();
        let (outcome, allowed) = if answer.closed {
            (Outcome::Ended, &ENDED[..])
        } else if answer.errors().is_empty() {
            assert!(answer.tags().ends_with('Z'), "no answer: {answer:?}");
            return Outcome::Done(answer.value());
        } else {
            assert!(answer.tags().ends_with('Z'), "no answer: {answer:?}");
            match answer.errors()[0].code.as_str() {
                "08007" => (Outcome::Unknown, &CUT[..]),
                "40001" => (Outcome::RolledBack, &CUT[..]),
                _ => (Outcome::Refused, &REFUSED[..]),
            }
        };
        assert_is_one_of(&answer, allowed);
        let code = answer.errors().remove(0).code;
        if outcome == Outcome::Refused {
            self.written.refused.push(code.clone());
        }
        // A transaction that was lost before is told with its next request.
        if is_late && outcome != Outcome::RolledBack {
            self.late.push(format!("{outcome:?} {code}"));
        }
        outcome
    }

    /// A session with the settings and statements of this writer; `None` if it was over before.
    fn log_in(&mut self) -> Option<Session> {
        let is_late = self.stage.is_verified.load(Ordering::Relaxed);
        let mut session = match Session::open(self.address, 6432) {
            Ok(session) => session,
            Err(error) => {
                if is_late {
                    self.late.push(format!("login: {error:?}"));
                }
                pause(Duration::from_millis(20));
                return None;
            }
        };
        self.written.logins += 1;
        for bytes in [
            query(&format!("SET work_mem = '{}'", self.work_mem)),
            parse("write", "INSERT INTO pooled_written VALUES ($1)"),
            parse("look", "SHOW work_mem"),
        ] {
            loop {
                match self.ask(&mut session, &bytes) {
                    Outcome::Done(_) => break,
                    Outcome::Ended => return None,
                    _ => pause(Duration::from_millis(5)),
                }
            }
        }
        Some(session)
    }

    /// The next number, in a transaction of its own or together with the next. `false`: the session
    /// is over.
    fn write(&mut self, session: &mut Session) -> bool {
        self.next += 1;
        let first = self.next;
        if !first.is_multiple_of(4) {
            let outcome = self.ask(session, &execute("write", &[first.to_string()]));
            return self.account(&[first], &outcome);
        }
        self.next += 1;
        let steps = [
            query("BEGIN"),
            execute("write", &[first.to_string()]),
            execute("write", &[self.next.to_string()]),
        ];
        for (number, bytes) in steps.into_iter().enumerate() {
            match self.ask(session, &bytes) {
                Outcome::Done(_) => {}
                // Before the transaction; nothing refuses a request within one.
                Outcome::Refused if number == 0 => return true,
                Outcome::RolledBack => {
                    let rolled_back = self.ask(session, &query("ROLLBACK"));
                    assert!(matches!(rolled_back, Outcome::Done(_)), "{rolled_back:?}");
                    return true;
                }
                outcome @ (Outcome::Refused | Outcome::Unknown) => panic!("{outcome:?} in a transaction"),
                // Rolled back, for certain.
                Outcome::Ended => return false,
            }
        }
        let outcome = self.ask(session, &query("COMMIT"));
        self.account(&[first, self.next], &outcome)
    }

    fn account(&mut self, numbers: &[u64], outcome: &Outcome) -> bool {
        match outcome {
            Outcome::Done(_) => {
                self.written.acknowledged.extend(numbers);
                self.stage.acknowledged.fetch_add(1, Ordering::Relaxed);
                true
            }
            Outcome::Refused | Outcome::RolledBack => {
                pause(Duration::from_millis(5));
                true
            }
            Outcome::Unknown => {
                self.written.unknown.extend(numbers);
                true
            }
            Outcome::Ended => {
                self.written.unknown.extend(numbers);
                false
            }
        }
    }

    fn run(mut self) -> (Written, Vec<String>) {
        while !self.stage.is_over.load(Ordering::Relaxed) {
            let Some(mut session) = self.log_in() else {
                continue;
            };
            while !self.stage.is_over.load(Ordering::Relaxed) && self.write(&mut session) {
                match self.ask(&mut session, &execute("look", &[])) {
                    Outcome::Done(value) => assert_eq!(value.as_ref(), Some(&self.work_mem)),
                    Outcome::Ended => break,
                    _ => {}
                }
            }
        }
        (self.written, self.late)
    }
}

#[track_caller]
fn assert_is_one_of(answer: &Answer, allowed: &[&str]) {
    let errors = answer.errors();
    assert_eq!(errors.len(), 1, "one last word: {errors:?}, {}", answer.tags());
    assert!(allowed.contains(&errors[0].code.as_str()), "{errors:?}");
}

/// Through a router of their own: six sessions that do nothing, one in a transaction, one that is
/// pinned, and writers.
pub struct Pooled {
    router: Router,
    stage: Arc<Stage>,
    idle: Vec<Session>,
    in_transaction: Session,
    pinned: Session,
    writers: Vec<JoinHandle<(Written, Vec<String>)>>,
}

impl Pooled {
    pub fn start(cluster: &Cluster) -> Self {
        let routes = "routes:\n  read-write: {targets: [leader], max_queue: 100, \
                      pool: {mode: transaction, max_connections: 5}}\n  read-only: {targets: [replica]}\n";
        let options = Options {
            extra: routes.to_owned(),
            ..Options::default()
        };
        let router = Router::before(cluster, options);
        let address = router.address;
        let mut in_transaction = Session::open(address, 6432).unwrap();
        in_transaction.query("CREATE TABLE pooled_half (n int)");
        in_transaction
            .query("CREATE TABLE pooled_written (n bigint, server inet DEFAULT inet_server_addr())");
        let idle = (0..IDLE).map(|number| idle(address, number)).collect();
        let mut pinned = Session::open(address, 6432).unwrap();
        pinned.query("LISTEN news");
        in_transaction.query("BEGIN; INSERT INTO pooled_half VALUES (1)");
        let stage = Arc::new(Stage::default());
        let writers = (0..WRITERS)
            .map(|number| {
                let writer = Writer {
                    address,
                    stage: Arc::clone(&stage),
                    work_mem: format!("{}MB", 10 + number),
                    next: number << 32,
                    written: Written::default(),
                    late: Vec::new(),
                };
                std::thread::spawn(move || writer.run())
            })
            .collect();
        let pooled = Self {
            router,
            stage,
            idle,
            in_transaction,
            pinned,
            writers,
        };
        pooled.await_more(50);
        pooled
    }

    /// Until `more` transactions have been acknowledged from now on.
    fn await_more(&self, more: u64) {
        let goal = self.stage.acknowledged.load(Ordering::Relaxed) + more;
        eventually("writers of the pool write", Duration::from_mins(1), || {
            self.stage.acknowledged.load(Ordering::Relaxed) >= goal
        });
    }

    /// After a switchover from `old` to `new`.
    pub fn check(mut self, old: &Node, new: &Node) {
        self.router
            .await_log(&[&new.name, "is the leader: seen to accept writes"]);
        self.stage.is_verified.store(true, Ordering::Relaxed);
        for (number, session) in self.idle.iter_mut().enumerate() {
            session.send_bytes(&execute("own", &[number.to_string()]));
            let answer = session.answer();
            assert!(answer.errors().is_empty() && !answer.closed, "{answer:?}");
            let own = format!("{number} {}MB tenant-{number} side {}", 40 + number, new.address);
            assert_eq!(answer.value(), Some(own));
        }
        let leave = ["is the leader now", "has been demoted"];
        told_to_leave(&self.pinned.end(Duration::from_secs(5)).ended(), &leave);
        // It is told with its next request.
        self.in_transaction.send_bytes(&query("COMMIT"));
        let answer = self.in_transaction.answer();
        assert_is_one_of(&answer, &["40001"]);
        assert!(!answer.closed);
        self.await_more(100);
        self.stage.is_over.store(true, Ordering::Relaxed);
        let mut sum = Written::default();
        for writer in self.writers {
            let (written, late) = writer.join().unwrap();
            assert!(late.is_empty(), "after the new leader was verified: {late:?}");
            sum.acknowledged.extend(written.acknowledged);
            sum.unknown.extend(written.unknown);
            sum.refused.extend(written.refused);
            sum.logins += written.logins;
        }
        sum.check(&new.sql("SELECT n FROM pooled_written"));
        assert_eq!(new.sql("SELECT count(*) FROM pooled_half"), "0");
        let on_new = format!(
            "SELECT count(*) > 100 FROM pooled_written WHERE server = '{}'",
            new.address
        );
        assert_eq!(new.sql(&on_new), "t");
        let others = format!(
            "SELECT count(*) FROM pooled_written WHERE server NOT IN ('{}', '{}')",
            old.address, new.address
        );
        assert_eq!(new.sql(&others), "0");
        for (member, most) in [(&old.name, 0.0), (&new.name, 5.0)] {
            let count: f64 = ["idle", "leased", "opening"]
                .map(|state| {
                    self.router.metric(&format!(
                        "trunkline_pool_connections{{route=\"read-write\",member=\"{member}\",state=\"{state}\"}}"
                    ))
                })
                .iter()
                .sum();
            assert!(count <= most, "{count} connections to {member}");
        }
    }
}

/// A session that has settings, also custom ones, a path and a statement.
fn idle(address: Ipv4Addr, number: usize) -> Session {
    let mut session = Session::open(address, 6432).unwrap();
    session.query(&format!("SET work_mem = '{}MB'", 40 + number));
    session.query(&format!("SET app.tenant = 'tenant-{number}'"));
    session.query("SET search_path = side");
    let own = "SELECT concat_ws(' ', $1::text, current_setting('work_mem'), current_setting('app.tenant'), \
               current_setting('search_path'), host(inet_server_addr()))";
    session.send_bytes(&parse("own", own));
    assert_eq!(session.answer().tags(), "1Z");
    session
}
