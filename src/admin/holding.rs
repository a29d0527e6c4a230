//! What an operator, or a script of Patroni's, may order so that clients wait instead of failing.
//! Provided by the runtime.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use super::views::HoldView;
use crate::cluster::snapshot::{MemberName, OrderedBy};
use crate::cluster::switchover::DirectConnections;
use crate::session::holds::MemberActivity;

/// Orders that hold clients, and what holds them. `by` is who orders it: an address, or a user of
/// the console. Orders count on all processes of this router and on all its peers.
pub trait HoldOperations: fmt::Debug + Send + Sync {
    /// The server of a member is about to be stopped: it gets no new transactions. Returns when no
    /// transaction is open there, or `grace` is over, at the latest after
    /// [`Self::stop_limit`]. The hold goes on until the server has been stopped and a member can
    /// serve again, for half a minute at most.
    fn before_stop<'a>(
        &'a self,
        cluster: &'a str,
        member: &'a MemberName,
        grace: Duration,
        by: &'a str,
    ) -> BoxFuture<'a, Result<StopReport, String>>;

    /// What [`Self::before_stop`] would do. It holds nobody.
    fn check_stop<'a>(
        &'a self,
        cluster: &'a str,
        member: &'a MemberName,
    ) -> BoxFuture<'a, Result<StopCheck, String>>;

    /// The member is not stopped: its clients go on, whoever has ordered [`Self::before_stop`].
    fn end_stop<'a>(
        &'a self,
        cluster: &'a str,
        member: &'a MemberName,
    ) -> BoxFuture<'a, Result<StopEnd, String>>;

    /// For how long a member's stop may be delayed.
    fn stop_limit<'a>(&'a self, cluster: &'a str) -> BoxFuture<'a, Duration>;

    /// What a switchover would do, and why it is not possible. It changes nothing.
    fn plan_switchover<'a>(
        &'a self,
        request: &'a SwitchoverRequest,
    ) -> BoxFuture<'a, Result<SwitchoverPlan, String>>;

    /// Begins a switchover; [`Self::switchover`] shows how it goes on.
    fn switch_over<'a>(
        &'a self,
        request: &'a SwitchoverRequest,
        by: &'a str,
    ) -> BoxFuture<'a, Result<SwitchoverPlan, String>>;

    /// The switchover that runs, or the last one.
    fn switchover(&self) -> Option<SwitchoverStatus>;

    /// Undoes the switchover that runs, as long as Patroni has not been asked.
    fn abort_switchover(&self) -> Result<(), String>;

    /// Pauses a route, and returns when no transaction is open there, or after `wait`.
    fn pause<'a>(
        &'a self,
        route: &'a str,
        pause: &'a PauseRequest,
        by: &'a str,
    ) -> BoxFuture<'a, Result<PauseReport, String>>;

    /// Ends the pause of a route.
    fn unpause<'a>(&'a self, route: &'a str, all_peers: bool) -> BoxFuture<'a, Result<PauseReport, String>>;

    /// The routes that hold their clients, with those of other processes by the last
    /// [`super::Operations::refresh`].
    fn holds(&self) -> Vec<HoldView>;

    /// The paused routes of this router, and for how long they stay so.
    fn paused(&self) -> BTreeMap<String, Duration>;
}

/// How a route is to be paused.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PauseRequest {
    /// At the peers, too.
    pub all_peers: bool,
    /// For open transactions, 30 s by default.
    pub wait_ms: Option<u64>,
    /// How long the pause lasts, 5 min by default.
    pub timeout_ms: Option<u64>,
}

/// How a paused route stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PauseReport {
    pub route: String,
    /// Transactions that are still open.
    pub open: u32,
    /// Sessions that a pause does not hold: pinned ones, and those of a route whose sessions are
    /// not tracked.
    pub unaffected: u32,
    /// The route was paused, here or at a peer that was told.
    pub was_paused: bool,
    pub waited_ms: u64,
    /// A sentence for each process and each peer that does not follow.
    pub missing: Vec<String>,
}

/// What an operator asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SwitchoverRequest {
    pub cluster: String,
    /// `None`: the router chooses.
    pub to: Option<String>,
    /// For open transactions; the default if it is `None`.
    pub grace_ms: Option<u64>,
    /// Peers that are left out: their clients see errors.
    pub without_peers: Vec<String>,
}

/// What a switchover would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwitchoverPlan {
    pub cluster: String,
    pub leader: String,
    pub candidate: String,
    /// The sessions on the leader, of all routers.
    pub sessions: MemberActivity,
    /// Those of them that have a transaction open now, by route; of this process.
    #[serde(default)]
    pub open: Vec<OpenTransactions>,
    /// Those of them that are pinned to their connection, by route; of this process.
    #[serde(default)]
    pub pinned: Vec<PinnedSessions>,
    pub peers: Vec<String>,
    /// Connections to the leader that do not come through the routers, by `pg_stat_activity`.
    pub direct: Vec<DirectConnections>,
    /// What the operator should know.
    pub remarks: Vec<String>,
    /// Why it is not possible now; empty if it is.
    pub problems: Vec<String>,
}

/// Sessions of a route with a transaction or a request under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenTransactions {
    pub route: String,
    pub sessions: u32,
    /// Of the oldest transaction; `null`: the leader does not say.
    pub oldest_s: Option<u64>,
    /// The session that has it.
    pub session: u64,
    pub user: String,
    pub client: String,
}

impl fmt::Display for OpenTransactions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            route,
            sessions,
            oldest_s,
            session,
            user,
            client,
        } = self;
        write!(f, "route {route}: {sessions}")?;
        match (sessions, oldest_s) {
            (1, Some(age)) => write!(f, ", for {age} s")?,
            (_, Some(age)) => write!(f, ", the oldest for {age} s")?,
            (1, None) => {}
            (_, None) => f.write_str(", one of them")?,
        }
        write!(f, " (session {session}: {user} at {client})")
    }
}

/// Sessions of a route that are pinned to their server connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinnedSessions {
    pub route: String,
    pub sessions: u32,
    /// The reasons with their sessions; a session may have several.
    pub pins: BTreeMap<String, u32>,
}

impl fmt::Display for PinnedSessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pins = self
            .pins
            .iter()
            .map(|(reason, count)| format!("{reason} {count}"));
        let pins: Vec<String> = pins.collect();
        write!(
            f,
            "route {}: {} pinned ({})",
            self.route,
            self.sessions,
            pins.join(", ")
        )
    }
}

/// How a switchover stands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwitchoverStatus {
    pub cluster: String,
    pub leader: String,
    pub candidate: String,
    /// Patroni has been asked: it cannot be undone any more.
    pub is_committed: bool,
    pub is_over: bool,
    /// Another member leads.
    pub has_succeeded: bool,
    /// The router that runs it, and who ordered it there; `null`: this one.
    #[serde(default)]
    pub run_by: Option<OrderedBy>,
    /// What has happened so far, a sentence each.
    pub steps: Vec<String>,
    /// The first sessions whose transactions it waited for, or waits for, one line each.
    #[serde(default)]
    pub open_sessions: Vec<String>,
}

impl fmt::Display for SwitchoverPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            cluster,
            leader,
            candidate,
            ..
        } = self;
        writeln!(f, "cluster {cluster}: switch over from {leader} to {candidate}")?;
        if !self.peers.is_empty() {
            writeln!(f, "peers that take part: {}", self.peers.join(", "))?;
        }
        self.fmt_open(f)?;
        writeln!(f, "{}", cut_in_words(&self.sessions))?;
        for pinned in &self.pinned {
            writeln!(f, "  {pinned}")?;
        }
        for DirectConnections {
            from,
            application,
            connections,
        } in &self.direct
        {
            writeln!(
                f,
                "will be cut, not through the routers: {connections} from {from} ({application:?})"
            )?;
        }
        for remark in &self.remarks {
            writeln!(f, "{remark}")?;
        }
        Ok(())
    }
}

impl SwitchoverPlan {
    /// For whom the switchover waits.
    fn fmt_open(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let here: u32 = self.open.iter().map(|open| open.sessions).sum();
        // The two are not counted at the same moment.
        let all = self.sessions.transactions.max(here);
        match all {
            0 => write!(f, "no transaction is open now; ")?,
            1 => writeln!(
                f,
                "1 transaction is open now; if it is open after the grace, it is rolled back"
            )?,
            _ => writeln!(
                f,
                "{all} transactions are open now; those that are open after the grace are rolled back"
            )?,
        }
        for open in &self.open {
            writeln!(f, "  {open}")?;
        }
        if all > here {
            writeln!(f, "  at other routers and processes: {}", all - here)?;
        }
        Ok(())
    }
}

/// How a member stands before its stop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopReport {
    pub member: String,
    pub waited_ms: u64,
    /// What is still there, on all routers that answer.
    pub left: MemberActivity,
    /// How much longer clients are held at most. `None`: the router is of an older version.
    #[serde(default)]
    pub held_ms: Option<u64>,
    /// A sentence for each process and each peer that does not follow.
    pub missing: Vec<String>,
}

/// What `before-stop` would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopCheck {
    pub cluster: String,
    pub member: String,
    /// For how long the stop may be delayed.
    pub limit_ms: u64,
    /// For how long clients are held at most.
    pub held_ms: u64,
    /// The sessions on the member, of all routers that answer.
    pub left: MemberActivity,
    /// Each with the reason why it would not follow; `None`: it would.
    pub peers: Vec<(String, Option<String>)>,
    /// A sentence for each other process of this router that would not follow.
    pub missing: Vec<String>,
}

impl StopCheck {
    pub fn is_good(&self) -> bool {
        self.missing.is_empty() && self.peers.iter().all(|(_, problem)| problem.is_none())
    }
}

impl fmt::Display for StopCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cluster, member, .. } = self;
        let seconds = |ms: u64| ms / 1000;
        let role = if self.left.is_leader {
            "the leader"
        } else {
            "not the leader now"
        };
        writeln!(f, "cluster {cluster}, member {member}: {role}")?;
        writeln!(
            f,
            "a stop is delayed for {} s at most, and clients are held for {} s at most",
            seconds(self.limit_ms),
            seconds(self.held_ms)
        )?;
        writeln!(f, "{}", cut_in_words(&self.left))?;
        for (peer, problem) in &self.peers {
            match problem {
                None => writeln!(f, "peer {peer}: it would hold its clients, too")?,
                Some(problem) => writeln!(f, "peer {peer}: {problem}")?,
            }
        }
        for missing in &self.missing {
            writeln!(f, "{missing}")?;
        }
        Ok(())
    }
}

/// How the end of `before-stop` went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopEnd {
    pub member: String,
    /// The member's clients were held, here or at a peer.
    pub was_held: bool,
    /// A sentence for each process and each peer that does not follow.
    pub missing: Vec<String>,
}

impl fmt::Display for StopReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = Duration::from_millis(self.waited_ms).as_secs_f64();
        let member = &self.member;
        match self.left.transactions {
            0 => write!(f, "{member}: no transaction is open after {seconds:.1} s")?,
            1 => write!(f, "{member}: 1 transaction is still open after {seconds:.1} s")?,
            open => write!(
                f,
                "{member}: {open} transactions are still open after {seconds:.1} s"
            )?,
        }
        if self.left.cut() > 0 {
            write!(f, "; {}", cut_in_words(&self.left))?;
        }
        if let Some(held) = self.held_ms {
            write!(
                f,
                "; clients are held until it has been stopped and one serves again, for {} s more at most",
                held / 1000
            )?;
        }
        Ok(())
    }
}

/// The sessions that end when the member is stopped.
pub(super) fn cut_in_words(activity: &MemberActivity) -> String {
    let counts = [
        (
            activity.pinned,
            "pinned to its connection",
            "pinned to their connection",
        ),
        (
            activity.unmovable,
            "of a route with resume: off",
            "of routes with resume: off",
        ),
        (
            activity.forwarded,
            "of a listener with mode: tcp",
            "of listeners with mode: tcp",
        ),
        (activity.replication, "for replication", "for replication"),
    ];
    let parts: Vec<String> = counts
        .into_iter()
        .filter(|(count, ..)| *count > 0)
        .map(|(count, one, several)| match count {
            1 => format!("1 session {one}"),
            count => format!("{count} sessions {several}"),
        })
        .collect();
    match parts.as_slice() {
        [] => "no session will be cut".to_owned(),
        parts => format!("will be cut: {}", parts.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_says_who_would_wait() {
        let mut plan = SwitchoverPlan {
            cluster: "main".to_owned(),
            leader: "db1".to_owned(),
            candidate: "db2".to_owned(),
            sessions: MemberActivity::default(),
            open: Vec::new(),
            pinned: Vec::new(),
            peers: Vec::new(),
            direct: Vec::new(),
            remarks: Vec::new(),
            problems: Vec::new(),
        };
        let lead = "cluster main: switch over from db1 to db2\n";
        assert_eq!(
            plan.to_string(),
            format!("{lead}no transaction is open now; no session will be cut\n")
        );
        plan.sessions.transactions = 3;
        plan.sessions.pinned = 1;
        plan.open = vec![OpenTransactions {
            route: "rw".to_owned(),
            sessions: 2,
            oldest_s: Some(7),
            session: 9,
            user: "app".to_owned(),
            client: "10.0.0.9:5".to_owned(),
        }];
        let told = plan.to_string();
        let lines: Vec<&str> = told.lines().skip(1).collect();
        assert_eq!(
            lines,
            [
                "3 transactions are open now; those that are open after the grace are rolled back",
                "  route rw: 2, the oldest for 7 s (session 9: app at 10.0.0.9:5)",
                "  at other routers and processes: 1",
                "will be cut: 1 session pinned to its connection",
            ]
        );
        // One that ended between the two looks is not below nothing.
        plan.sessions.transactions = 0;
        assert!(plan.to_string().contains("2 transactions are open now"), "{plan}");
    }

    #[test]
    fn a_report_says_what_is_left() {
        let mut report = StopReport {
            member: "db1".to_owned(),
            waited_ms: 120,
            left: MemberActivity::default(),
            held_ms: None,
            missing: Vec::new(),
        };
        assert_eq!(report.to_string(), "db1: no transaction is open after 0.1 s");
        report.left = MemberActivity {
            transactions: 2,
            pinned: 1,
            replication: 3,
            ..MemberActivity::default()
        };
        report.waited_ms = 5000;
        assert_eq!(
            report.to_string(),
            "db1: 2 transactions are still open after 5.0 s; will be cut: 1 session pinned to its connection, 3 sessions \
             for replication"
        );
        report.held_ms = Some(37_200);
        assert!(report.to_string().ends_with("for 37 s more at most"), "{report}");
        let check = StopCheck {
            cluster: "main".to_owned(),
            member: "db1".to_owned(),
            limit_ms: 10_000,
            held_ms: 27_000,
            left: report.left,
            peers: vec![
                ("two".to_owned(), None),
                ("three".to_owned(), Some("it did not answer in time".to_owned())),
            ],
            missing: Vec::new(),
        };
        let text = check.to_string();
        assert!(
            !check.is_good() && text.contains("peer three: it did not answer in time"),
            "{text}"
        );
        assert!(
            text.contains("held for 27 s at most") && text.contains("not the leader now"),
            "{text}"
        );
    }
}
