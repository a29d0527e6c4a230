//! The account: what each write came to in its client's eyes, compared with what is in the table.
//!
//! Pure, so that it can be shown to find what it must: see the tests at the end.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

/// What a client may say of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Acknowledged,
    /// It is certain that it did not take effect.
    Failed,
    /// Nobody can know.
    Unknown,
}

/// What was under way when a write ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Autocommit,
    Begin,
    Statement,
    Commit,
}

/// What a request came to in the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// An error, and the connection goes on.
    Error,
    /// An error, and the connection is over.
    Dead,
}

/// One transaction of a writer. Times are microseconds since 1970.
#[derive(Debug, Clone)]
pub struct Write {
    pub began: u64,
    pub ended: u64,
    pub writer: u64,
    pub outcome: Outcome,
    pub kind: String,
    pub ids: Vec<u64>,
    pub phase: Phase,
    /// SQLSTATE, or `-`.
    pub code: String,
    #[allow(dead_code, reason = "for a person who reads it")]
    pub text: String,
}

#[derive(Debug, Clone)]
pub struct Login {
    #[allow(dead_code, reason = "for a person who reads it")]
    pub began: u64,
    pub ended: u64,
    pub writer: u64,
    pub is_done: bool,
    pub code: String,
    #[allow(dead_code, reason = "for a person who reads it")]
    pub text: String,
}

/// A row of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    pub id: u64,
    /// Where it was written.
    pub server: String,
    pub timeline: u32,
}

/// What must not be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Acknowledged, and not there.
    Lost(u64),
    /// There more than once.
    Doubled(u64),
    /// There, and no client has asked for it.
    Phantom(u64),
    /// There, although the client was told that it failed.
    Failed(u64),
    /// Some rows of a transaction are there and others are not.
    Torn(Vec<u64>),
    /// It began after a write on a later timeline had been acknowledged: its server was no leader
    /// any more.
    Fenced(Row),
}

impl Write {
    pub fn fate(&self) -> Fate {
        let is_certain = match (self.phase, self.outcome, self.code.as_str()) {
            (_, Outcome::Done, _) => return Fate::Acknowledged,
            // Without its COMMIT an open transaction is rolled back, whatever ended it.
            (Phase::Begin | Phase::Statement, _, _) => true,
            // 57P02: a server process can be told to quit when its commit is on disk already.
            (_, _, "-" | "08007" | "57P02") => false,
            // Drivers use the class when they lose a connection. If it goes on, it is the router's
            // word that the request has not reached a server.
            (_, outcome, code) if code.starts_with("08") => outcome == Outcome::Error,
            _ => true,
        };
        if is_certain { Fate::Failed } else { Fate::Unknown }
    }
}

/// Lines as writers write them; the last one may be incomplete while they run.
pub fn parse(text: &str) -> (Vec<Write>, Vec<Login>) {
    let (mut writes, mut logins) = (Vec::new(), Vec::new());
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    for line in whole.lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        let number = |field: &str| -> u64 { field.parse().unwrap_or_else(|_| panic!("{line}")) };
        match fields.as_slice() {
            ["login", began, ended, writer, outcome, code, text] => logins.push(Login {
                began: number(began),
                ended: number(ended),
                writer: number(writer),
                is_done: *outcome == "done",
                code: (*code).to_owned(),
                text: (*text).to_owned(),
            }),
            [
                "write",
                began,
                ended,
                writer,
                outcome,
                kind,
                ids,
                phase,
                code,
                text,
            ] => writes.push(Write {
                began: number(began),
                ended: number(ended),
                writer: number(writer),
                outcome: match *outcome {
                    "done" => Outcome::Done,
                    "error" => Outcome::Error,
                    "dead" => Outcome::Dead,
                    _ => panic!("{line}"),
                },
                kind: (*kind).to_owned(),
                ids: ids.split(',').map(number).collect(),
                phase: match *phase {
                    "autocommit" => Phase::Autocommit,
                    "begin" => Phase::Begin,
                    "statement" => Phase::Statement,
                    "commit" => Phase::Commit,
                    _ => panic!("{line}"),
                },
                code: (*code).to_owned(),
                text: (*text).to_owned(),
            }),
            _ => panic!("no line of a writer: {line}"),
        }
    }
    (writes, logins)
}

/// Everything that is wrong with what was `found` after these writes.
pub fn check(writes: &[Write], found: &[Row]) -> Vec<Fault> {
    let mut count: HashMap<u64, usize> = HashMap::new();
    for row in found {
        *count.entry(row.id).or_default() += 1;
    }
    let mut faults: Vec<Fault> = count
        .iter()
        .filter(|(_, count)| **count > 1)
        .map(|(id, _)| Fault::Doubled(*id))
        .collect();
    let mut asked: HashMap<u64, &Write> = HashMap::new();
    for write in writes {
        let there = write.ids.iter().filter(|id| count.contains_key(id)).count();
        for id in &write.ids {
            assert!(asked.insert(*id, write).is_none(), "{id} is used twice");
            match (write.fate(), count.contains_key(id)) {
                (Fate::Acknowledged, false) => faults.push(Fault::Lost(*id)),
                (Fate::Failed, true) => faults.push(Fault::Failed(*id)),
                _ => {}
            }
        }
        if there != 0 && there != write.ids.len() {
            faults.push(Fault::Torn(write.ids.clone()));
        }
    }
    let unasked = count.keys().filter(|id| !asked.contains_key(id));
    faults.extend(unasked.map(|id| Fault::Phantom(*id)));
    faults.extend(fenced(writes, found));
    faults
}

/// Rows, of any server's table, that were written where nobody led any more.
pub fn fenced(writes: &[Write], found: &[Row]) -> Vec<Fault> {
    let asked: HashMap<u64, &Write> = writes
        .iter()
        .flat_map(|write| write.ids.iter().map(move |id| (*id, write)))
        .collect();
    // When each timeline was first known to be led.
    let mut led: BTreeMap<u32, u64> = BTreeMap::new();
    for row in found {
        if let Some(write) = asked.get(&row.id)
            && write.fate() == Fate::Acknowledged
        {
            let first = led.entry(row.timeline).or_insert(write.ended);
            *first = write.ended.min(*first);
        }
    }
    let is_fenced = |row: &&Row| {
        asked.get(&row.id).is_some_and(|write| {
            led.range(row.timeline + 1..)
                .any(|(_, first)| *first < write.began)
        })
    };
    found
        .iter()
        .filter(is_fenced)
        .cloned()
        .map(Fault::Fenced)
        .collect()
}

// --- what happened in a stretch of time ----------------------------------------------------------

/// What the writers of one driver went through.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Counts {
    /// Transactions.
    pub acknowledged: u64,
    /// By SQLSTATE and phase.
    pub failed: BTreeMap<String, u64>,
    pub unknown: BTreeMap<String, u64>,
    pub refused_logins: BTreeMap<String, u64>,
    /// A writer's connection was over, and it opened another one.
    pub reconnects: u64,
    /// The longest time of one writer without an acknowledged transaction that ended, in ms.
    pub pause: u64,
}

impl Counts {
    pub fn is_unnoticed(&self) -> bool {
        self.failed.is_empty()
            && self.unknown.is_empty()
            && self.refused_logins.is_empty()
            && self.reconnects == 0
    }
}

/// From `from` to `to`. A pause counts for what of it lies in between.
pub fn counts(writes: &[Write], logins: &[Login], from: u64, to: u64) -> Counts {
    let mut counts = Counts::default();
    let mut last: HashMap<u64, u64> = HashMap::new();
    let mut first_login: HashMap<u64, u64> = HashMap::new();
    for login in logins.iter().filter(|login| login.is_done) {
        let first = first_login.entry(login.writer).or_insert(login.ended);
        *first = login.ended.min(*first);
    }
    for login in logins {
        if login.ended < from || login.ended > to {
            continue;
        }
        if !login.is_done {
            *counts.refused_logins.entry(login.code.clone()).or_default() += 1;
        } else if login.ended > first_login[&login.writer] {
            counts.reconnects += 1;
        }
    }
    let mut pause = |from_last: u64, end: u64| {
        let (begin, end) = (from_last.max(from), end.min(to));
        counts.pause = counts.pause.max(end.saturating_sub(begin) / 1000);
    };
    let mut ordered: Vec<&Write> = writes.iter().collect();
    ordered.sort_by_key(|write| write.ended);
    for write in ordered {
        if write.fate() == Fate::Acknowledged
            && let Some(before) = last.insert(write.writer, write.ended)
        {
            pause(before, write.ended);
        }
    }
    for before in last.values() {
        pause(*before, to);
    }
    for write in writes.iter().filter(|write| (from..=to).contains(&write.ended)) {
        let label = || format!("{} {}", write.code, phase_name(write.phase));
        match write.fate() {
            Fate::Acknowledged => counts.acknowledged += 1,
            Fate::Failed => *counts.failed.entry(label()).or_default() += 1,
            Fate::Unknown => *counts.unknown.entry(label()).or_default() += 1,
        }
    }
    counts
}

fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Autocommit => "alone",
        Phase::Begin => "at BEGIN",
        Phase::Statement => "in a transaction",
        Phase::Commit => "at COMMIT",
    }
}

/// The longest time in which none of these writers had a transaction acknowledged: where each is at
/// a server of its own, when there was no leader.
pub fn gap(writes: &[Write], from: u64, to: u64) -> Range<u64> {
    let mut ends: Vec<u64> = writes
        .iter()
        .filter(|write| write.fate() == Fate::Acknowledged)
        .map(|write| write.ended)
        .filter(|ended| (from..=to).contains(ended))
        .collect();
    ends.extend([from, to]);
    ends.sort_unstable();
    let gaps = ends.windows(2).map(|two| two[0]..two[1]);
    gaps.max_by_key(|gap| gap.end - gap.start).unwrap_or(from..to)
}

/// How long after `moment` each of these writers had a transaction acknowledged; of the last one,
/// in ms.
pub fn all_after(writes: &[Write], moment: u64) -> u64 {
    let mut first: HashMap<u64, u64> = HashMap::new();
    let later = |write: &&Write| write.ended >= moment && write.fate() == Fate::Acknowledged;
    for write in writes.iter().filter(later) {
        let after = first.entry(write.writer).or_insert(write.ended);
        *after = write.ended.min(*after);
    }
    first.into_values().max().map_or(0, |last| last - moment) / 1000
}

// --- that it finds what it must ------------------------------------------------------------------

fn line(began: u64, ids: &str, outcome: &str, phase: &str, code: &str) -> String {
    format!(
        "write\t{began}\t{}\t7\t{outcome}\tsingle\t{ids}\t{phase}\t{code}\ttext\n",
        began + 5
    )
}

fn row(id: u64, timeline: u32) -> Row {
    Row {
        id,
        server: format!("127.0.0.{timeline}"),
        timeline,
    }
}

/// Acknowledged 1, 2 and 3 (2 and 3 in one transaction), failed 4, unknown 5 and 6; 7 on the next
/// timeline.
fn writes() -> Vec<Write> {
    let text = [
        line(10, "1", "done", "autocommit", "-"),
        line(20, "2,3", "done", "commit", "-"),
        line(30, "4", "error", "autocommit", "57P03"),
        line(40, "5", "dead", "commit", "08007"),
        line(50, "6", "dead", "autocommit", "-"),
        line(60, "7", "done", "autocommit", "-"),
    ];
    parse(&text.concat()).0
}

#[test]
fn the_account_accepts_what_is_right() {
    let good = [row(1, 1), row(2, 1), row(3, 1), row(5, 1), row(7, 2)];
    assert_eq!(check(&writes(), &good), []);
    // Both unknown ones may be there or not.
    assert_eq!(check(&writes(), &[&good[..], &[row(6, 2)]].concat()), []);
    assert_eq!(check(&writes(), &[&good[..3], &good[4..]].concat()), []);
}

#[test]
fn the_account_finds_lost_doubled_phantom_failed_and_torn_writes() {
    let good = [row(1, 1), row(2, 1), row(3, 1), row(7, 2)];
    let with = |more: &[Row]| check(&writes(), &[&good[..], more].concat());
    assert_eq!(check(&writes(), &good[1..]), [Fault::Lost(1)]);
    assert_eq!(
        check(&writes(), &[row(1, 1), row(2, 1), row(7, 2)]),
        [Fault::Lost(3), Fault::Torn(vec![2, 3])]
    );
    assert_eq!(with(&[row(1, 1)]), [Fault::Doubled(1)]);
    // At most once, also where nobody knows.
    assert_eq!(with(&[row(5, 1), row(5, 2)]), [Fault::Doubled(5)]);
    assert_eq!(with(&[row(8, 2)]), [Fault::Phantom(8)]);
    assert_eq!(with(&[row(4, 2)]), [Fault::Failed(4)]);
}

#[test]
fn the_account_finds_writes_on_a_server_that_had_been_fenced() {
    let mut all = writes();
    all.extend(parse(&line(70, "8", "done", "autocommit", "-")).0);
    let good = [row(1, 1), row(2, 1), row(3, 1), row(7, 2), row(8, 2)];
    assert_eq!(check(&all, &good), []);
    let fenced = [Fault::Fenced(row(8, 1))];
    assert_eq!(check(&all, &[&good[..4], &[row(8, 1)]].concat()), fenced);
    // The same in the table of the old leader, which has no row of the new timeline.
    assert_eq!(super::account::fenced(&all, &[row(7, 2), row(8, 1)]), fenced);
    // Sent before anybody led elsewhere, and late in its answer: not the server's fault.
    let mut early = all.clone();
    early.last_mut().unwrap().began = 60;
    assert_eq!(check(&early, &[&good[..4], &[row(8, 1)]].concat()), []);
}

#[test]
fn what_is_certain_and_what_is_not() {
    let fate = |outcome, phase, code| parse(&line(1, "1", outcome, phase, code)).0[0].fate();
    for (outcome, phase, code, expected) in [
        ("done", "autocommit", "-", Fate::Acknowledged),
        ("dead", "statement", "-", Fate::Failed),
        ("dead", "begin", "08007", Fate::Failed),
        ("error", "statement", "40001", Fate::Failed),
        ("error", "commit", "40001", Fate::Failed),
        ("error", "commit", "08007", Fate::Unknown),
        ("dead", "autocommit", "08007", Fate::Unknown),
        ("dead", "autocommit", "-", Fate::Unknown),
        // The driver's own, and the router's.
        ("dead", "commit", "08006", Fate::Unknown),
        ("error", "autocommit", "08006", Fate::Failed),
        ("dead", "autocommit", "57P01", Fate::Failed),
        ("dead", "autocommit", "57P02", Fate::Unknown),
        ("error", "autocommit", "57P03", Fate::Failed),
    ] {
        assert_eq!(fate(outcome, phase, code), expected, "{outcome} {phase} {code}");
    }
}

#[test]
fn pauses_errors_and_reconnects_are_counted_in_their_time() {
    let at = |began: u64, id: u64, outcome: &str, code: &str| {
        line(began, &id.to_string(), outcome, "autocommit", code)
    };
    let login = |ended: u64, outcome: &str, code: &str| {
        format!("login\t{}\t{ended}\t7\t{outcome}\t{code}\t\n", ended - 1)
    };
    let text = [
        login(10, "done", "-"),
        at(1_000, 1, "done", "-"),
        at(20_000, 2, "done", "-"),
        at(25_000, 3, "dead", "08007"),
        login(30_000, "error", "57P03"),
        login(40_000, "done", "-"),
        at(90_000, 4, "done", "-"),
        "write\t1".to_owned(),
    ];
    let (writes, logins) = parse(&text.concat());
    let counted = counts(&writes, &logins, 0, 100_000);
    assert_eq!(counted.acknowledged, 3);
    assert_eq!(counted.unknown, BTreeMap::from([("08007 alone".to_owned(), 1)]));
    assert_eq!(counted.refused_logins, BTreeMap::from([("57P03".to_owned(), 1)]));
    assert_eq!((counted.reconnects, counted.pause), (1, 70));
    assert!(!counted.is_unnoticed());
    // From the end of one to the end of the next.
    assert_eq!(gap(&writes, 0, 100_000), 20_005..90_005);
    assert_eq!(all_after(&writes, 21_000), 69, "the failed one does not count");
    let quiet = counts(&writes, &logins, 0, 24_000);
    assert!(quiet.is_unnoticed());
    assert_eq!(quiet.pause, 19, "from the first to the second");
    assert_eq!(
        counts(&writes, &logins, 30_000, 50_000).pause,
        20,
        "no longer than what is looked at"
    );
    // Who never comes back is seen.
    assert_eq!(counts(&writes, &logins, 0, 500_000).pause, 409);
}
