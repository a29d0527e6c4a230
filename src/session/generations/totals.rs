//! What the other processes of this router say of their sessions, for the metrics and the list of
//! members.
//!
//! Sessions are a sum. For what sessions moved, a process counts only what another one moved since
//! this process first asked it: so the counters begin at 0 with the process, grow only, and do not
//! jump when another process is heard late or ends. A process that is silent keeps what it said
//! last, and is counted as silent.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::super::registry::Traffic;
use super::{Generation, Generations};

/// Between two rounds of questions.
const ROUND: Duration = Duration::from_secs(1);
/// A process that did not answer is asked again after so long: a hung one delays few scrapes.
const SILENT: Duration = Duration::from_secs(10);

/// What one process says of its sessions.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Totals {
    pub sessions: Vec<RouteSessions>,
    pub members: Vec<MemberSessions>,
    pub moved: Moved,
    /// The same by route; an older version does not say it.
    pub routes: HashMap<String, Moved>,
    /// Clients that are held, by route.
    pub held: HashMap<String, usize>,
}

/// Sessions of a route on a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteSessions {
    pub route: String,
    pub member: String,
    pub sessions: i64,
}

/// What a member has of one process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberSessions {
    pub cluster: String,
    pub member: String,
    /// See [`MemberLoad`].
    pub sessions: usize,
    /// `None`: a process of an older version, which counted idle connections as sessions.
    #[serde(default)]
    pub connections: Option<usize>,
}

/// What a member has of the router.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemberLoad {
    /// Sessions that have a server connection there, those connecting included.
    pub sessions: usize,
    /// Server connections of sessions, and those that idle in pools.
    pub connections: usize,
}

impl MemberLoad {
    /// `idle`: how many of these connections no session has.
    pub fn of(connections: usize, idle: usize) -> Self {
        Self {
            sessions: connections.saturating_sub(idle),
            connections,
        }
    }

    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            sessions: self.sessions + other.sessions,
            connections: self.connections + other.connections,
        }
    }
}

/// What sessions have moved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Moved {
    pub bytes_up: u64,
    pub bytes_down: u64,
    pub transactions: u64,
}

impl From<Traffic> for Moved {
    fn from(traffic: Traffic) -> Self {
        Self {
            bytes_up: traffic.bytes_up,
            bytes_down: traffic.bytes_down,
            transactions: traffic.transactions,
        }
    }
}

impl Moved {
    fn since(self, before: Self) -> Self {
        Self {
            bytes_up: self.bytes_up.saturating_sub(before.bytes_up),
            bytes_down: self.bytes_down.saturating_sub(before.bytes_down),
            transactions: self.transactions.saturating_sub(before.transactions),
        }
    }

    pub(in crate::session) fn and(self, other: Self) -> Self {
        Self {
            bytes_up: self.bytes_up.saturating_add(other.bytes_up),
            bytes_down: self.bytes_down.saturating_add(other.bytes_down),
            transactions: self.transactions.saturating_add(other.transactions),
        }
    }
}

/// The totals of all other processes.
#[derive(Debug, Default)]
pub struct OtherTotals {
    state: Mutex<State>,
    /// Held by the caller that asks; the time of the last round.
    round: tokio::sync::Mutex<Option<Instant>>,
}

#[derive(Debug, Default)]
struct State {
    processes: HashMap<String, Process>,
    /// Moved by processes that have ended, while this one knew them.
    ended: Moved,
    /// The same by route.
    ended_routes: HashMap<String, Moved>,
}

#[derive(Debug, Default)]
struct Process {
    first: Option<First>,
    last: Totals,
    /// Why it is silent, and since when.
    silent: Option<(String, Instant)>,
}

/// What its sessions had moved when it was first asked.
#[derive(Debug)]
struct First {
    moved: Moved,
    routes: HashMap<String, Moved>,
}

impl Process {
    fn moved(&self) -> Moved {
        self.first
            .as_ref()
            .map_or_else(Moved::default, |first| self.last.moved.since(first.moved))
    }

    fn moved_by_route(&self) -> impl Iterator<Item = (&String, Moved)> {
        let before = |route: &String| {
            let first = self.first.as_ref().and_then(|first| first.routes.get(route));
            first.copied().unwrap_or_default()
        };
        let routes = self.last.routes.iter();
        routes.map(move |(route, moved)| (route, moved.since(before(route))))
    }
}

fn add(sum: &mut HashMap<String, Moved>, route: &str, moved: Moved) {
    match sum.get_mut(route) {
        Some(of) => *of = of.and(moved),
        None => drop(sum.insert(route.to_owned(), moved)),
    }
}

/// A round of questions; the next one begins after this is dropped.
pub(super) struct Round<'a>(tokio::sync::MutexGuard<'a, Option<Instant>>);

impl Drop for Round<'_> {
    fn drop(&mut self) {
        *self.0 = Some(Instant::now());
    }
}

impl OtherTotals {
    /// `None`: the last round was just now.
    pub(super) async fn begin_round(&self) -> Option<Round<'_>> {
        let last = self.round.lock().await;
        if last.is_some_and(|at| at.elapsed() < ROUND) {
            return None;
        }
        Some(Round(last))
    }

    /// Whether this process is to be asked: one that was silent just now is not.
    pub(super) fn is_due(&self, name: &str) -> bool {
        let state = self.state();
        let silent = state
            .processes
            .get(name)
            .and_then(|process| process.silent.as_ref());
        silent.is_none_or(|(_, since)| since.elapsed() >= SILENT)
    }

    pub(super) fn take(&self, name: &str, said: Result<Totals, String>) {
        let mut state = self.state();
        let process = state.processes.entry(name.to_owned()).or_default();
        match said {
            Ok(totals) => {
                process.first.get_or_insert_with(|| First {
                    moved: totals.moved,
                    routes: totals.routes.clone(),
                });
                process.last = totals;
                process.silent = None;
            }
            Err(why) => process.silent = Some((why, Instant::now())),
        }
    }

    /// The others have ended.
    pub(super) fn keep_only(&self, living: &[Generation]) {
        let mut state = self.state();
        let State {
            processes,
            ended,
            ended_routes,
        } = &mut *state;
        processes.retain(|name, process| {
            let lives = living.iter().any(|generation| generation.name == *name);
            if !lives {
                *ended = ended.and(process.moved());
                for (route, moved) in process.moved_by_route() {
                    add(ended_routes, route, moved);
                }
            }
            lives
        });
    }

    /// A sentence for each process that is silent.
    pub(super) fn missing(&self) -> Vec<String> {
        let state = self.state();
        let silent = state
            .processes
            .values()
            .filter_map(|process| process.silent.as_ref());
        silent.map(|(why, _)| why.clone()).collect()
    }

    /// What a member has of all other processes.
    pub fn load_of(&self, cluster: &str, member: &str) -> MemberLoad {
        let state = self.state();
        let members = state.processes.values().flat_map(|process| &process.last.members);
        members
            .filter(|on| on.cluster == cluster && on.member == member)
            .map(|on| MemberLoad {
                sessions: on.sessions,
                connections: on.connections.unwrap_or(on.sessions),
            })
            .fold(MemberLoad::default(), MemberLoad::and)
    }

    /// Clients that are held, by route, in all other processes.
    pub fn held(&self) -> HashMap<String, usize> {
        let mut sum: HashMap<String, usize> = HashMap::new();
        for process in self.state().processes.values() {
            for (route, clients) in &process.last.held {
                *sum.entry(route.clone()).or_default() += clients;
            }
        }
        sum
    }

    /// Sessions by route and member, in all other processes.
    pub fn sessions(&self) -> HashMap<(String, String), i64> {
        let mut sum = HashMap::new();
        for process in self.state().processes.values() {
            for of in &process.last.sessions {
                let sessions = sum.entry((of.route.clone(), of.member.clone())).or_default();
                *sessions += of.sessions;
            }
        }
        sum
    }

    /// Moved by other processes since this one first asked them.
    pub fn moved(&self) -> Moved {
        let state = self.state();
        let processes = state.processes.values().map(Process::moved);
        processes.fold(state.ended, Moved::and)
    }

    /// The same by route.
    pub fn moved_by_route(&self) -> HashMap<String, Moved> {
        let state = self.state();
        let mut sum = state.ended_routes.clone();
        for (route, moved) in state.processes.values().flat_map(Process::moved_by_route) {
            add(&mut sum, route, moved);
        }
        sum
    }

    /// Processes that answer, and processes that are silent.
    fn count(&self) -> (usize, usize) {
        let state = self.state();
        let silent = state
            .processes
            .values()
            .filter(|process| process.silent.is_some())
            .count();
        (state.processes.len() - silent, silent)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Shows how many other processes there are, and how many of them are missing in the sums.
#[derive(Debug)]
pub struct ProcessCollector(pub Arc<Generations>);

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let (answering, silent) = self.0.totals.count();
        let help = "Other processes of this router, which finish their sessions after an upgrade: those whose sessions are \
                    in these metrics, and those that did not answer";
        let mut family = encoder.encode_descriptor("other_processes", help, None, MetricType::Gauge)?;
        for (state, processes) in [("answering", answering), ("silent", silent)] {
            let gauge = ConstGauge::new(i64::try_from(processes).unwrap_or(i64::MAX));
            gauge.encode(family.encode_family(&[("state", state)])?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(sessions: i64, transactions: u64) -> Totals {
        Totals {
            sessions: vec![RouteSessions {
                route: "rw".to_owned(),
                member: "db1".to_owned(),
                sessions,
            }],
            members: vec![MemberSessions {
                cluster: "main".to_owned(),
                member: "db1".to_owned(),
                sessions: 1,
                connections: Some(4),
            }],
            moved: Moved {
                transactions,
                ..Moved::default()
            },
            routes: HashMap::from([(
                "rw".to_owned(),
                Moved {
                    transactions,
                    ..Moved::default()
                },
            )]),
            held: HashMap::from([("rw".to_owned(), 2)]),
        }
    }

    fn named(name: &str) -> Generation {
        Generation {
            name: name.to_owned(),
            uid: 0,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn counters_begin_at_0_and_never_go_back() {
        let totals = OtherTotals::default();
        let transactions = || {
            let moved = totals.moved().transactions;
            let by_route = totals.moved_by_route();
            assert_eq!(by_route.get("rw").map_or(0, |of| of.transactions), moved);
            moved
        };
        totals.take("a", Ok(said(2, 1000)));
        assert_eq!(transactions(), 0, "from the first answer on");
        totals.take("a", Ok(said(2, 1010)));
        totals.take("b", Ok(said(3, 50)));
        totals.take("b", Ok(said(3, 55)));
        assert_eq!(transactions(), 15);
        let key = ("rw".to_owned(), "db1".to_owned());
        assert_eq!(totals.sessions()[&key], 5);
        let (sessions, connections) = (2, 8);
        let load = MemberLoad {
            sessions,
            connections,
        };
        assert_eq!(totals.load_of("main", "db1"), load);
        assert_eq!(totals.load_of("other", "db1"), MemberLoad::default());
        // A silent one keeps what it said, and is named.
        totals.take("b", Err("process 7: it did not answer".to_owned()));
        assert_eq!((transactions(), totals.count()), (15, (1, 1)));
        assert_eq!(totals.missing(), ["process 7: it did not answer"]);
        assert!(!totals.is_due("b") && totals.is_due("a"));
        tokio::time::advance(SILENT).await;
        assert!(totals.is_due("b"));
        // An ended one leaves what it moved, and no sessions.
        totals.keep_only(&[named("b")]);
        assert_eq!((transactions(), totals.sessions()[&key]), (15, 3));
        totals.take("b", Ok(said(3, 60)));
        assert_eq!((transactions(), totals.missing().len()), (20, 0));
        totals.keep_only(&[]);
        assert_eq!((transactions(), totals.count()), (20, (0, 0)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_that_is_heard_late_makes_no_jump() {
        let totals = OtherTotals::default();
        totals.take("a", Err("it did not answer".to_owned()));
        totals.take("a", Ok(said(1, 1_000_000)));
        assert_eq!(totals.moved(), Moved::default());
    }

    #[tokio::test(start_paused = true)]
    async fn there_is_one_round_a_second() {
        let totals = OtherTotals::default();
        drop(totals.begin_round().await);
        assert!(totals.begin_round().await.is_none());
        tokio::time::advance(ROUND).await;
        assert!(totals.begin_round().await.is_some());
    }

    #[test]
    fn what_a_release_adds_or_leaves_out_is_no_fault() {
        let parsed: Totals =
            serde_json::from_str(r#"{"moved":{"transactions":3},"later":[1]}"#).unwrap_or_default();
        assert_eq!(parsed.moved.transactions, 3);
        assert!(parsed.sessions.is_empty());
    }
}
