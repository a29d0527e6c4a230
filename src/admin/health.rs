//! Is all well? A pure function of what the router shows, so that the page, the command line and
//! every other reader say the same first.
//!
//! Guarantees: that nobody can write comes before everything else, then what is down, then the
//! rest. A problem has the same key as long as it lasts, whatever its numbers do.

mod finding;
mod pool;
mod since;
mod standing;

use std::cmp::Reverse;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use self::finding::Finding;
use super::holding::SwitchoverStatus;
use super::views::{
    CertificateView, ClusterSummary, HoldView, MemberStatus, MemberView, PoolView, RouteView, RouterView,
};
use super::words::lasting;
use crate::events::Standing;
pub(super) use since::since;

/// A certificate that is valid for fewer days is worth a word.
const FEW_DAYS: i64 = 14;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Wellness {
    #[serde(rename = "well")]
    Well,
    /// Clients are served or wait, and something is not as it should be.
    #[serde(rename = "degraded")]
    Degraded,
    /// Some clients get an error now: new ones of a disabled route, those of a full pool that
    /// waited too long, or all of a route without a server.
    #[serde(rename = "no service")]
    NoService,
}

impl Wellness {
    pub fn word(self) -> &'static str {
        match self {
            Self::Well => "well",
            Self::Degraded => "degraded",
            Self::NoService => "no service",
        }
    }
}

/// In the order in which problems are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Rank {
    /// Nobody can write, in a cluster or through a route.
    #[serde(rename = "no writes")]
    NoWrites,
    /// A member is down, or clients of a route get errors.
    #[serde(rename = "down")]
    Down,
    #[serde(rename = "warning")]
    Warning,
}

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProblemView {
    pub severity: Wellness,
    pub rank: Rank,
    /// The same as long as the problem lasts.
    pub key: String,
    /// In a few words.
    pub what: String,
    /// May be empty.
    pub why: String,
    /// What to do, with the command where there is one. Never empty.
    pub remedy: String,
    /// All of that.
    pub text: String,
    /// Milliseconds since 1970; `null`: not known.
    pub since_ms: Option<u64>,
}

impl ProblemView {
    /// The text, with since when in its place: `db3 is DOWN (L4CON), since 03:12:44: …`.
    pub fn told(&self, since: Option<&str>) -> String {
        let mut text = self.what.clone();
        if let Some(since) = since {
            text.push_str(", since ");
            text.push_str(since);
        }
        if !self.why.is_empty() {
            text.push_str(": ");
            text.push_str(&self.why);
        }
        if !self.remedy.is_empty() {
            text.push_str("; to end it: ");
            text.push_str(&self.remedy);
        }
        text
    }
}

/// What is wrong, the worst first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthView {
    pub result: Wellness,
    pub problems: Vec<ProblemView>,
}

/// What the router shows.
#[derive(Debug)]
pub struct Facts<'a> {
    pub router: &'a RouterView,
    pub clusters: Vec<&'a ClusterSummary>,
    pub members: Vec<&'a MemberView>,
    pub routes: Vec<&'a RouteView>,
    pub pools: Vec<&'a PoolView>,
    pub switchover: Option<&'a SwitchoverStatus>,
    pub certificates: &'a [CertificateView],
    /// `None`: not known.
    pub standing: Option<&'a Standing>,
    pub now: SystemTime,
}

/// Whose state has lasted since when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject<'a> {
    /// The cluster has no leader.
    NoLeader(&'a str),
    /// The source of its list of members is lost.
    Source(&'a str),
    /// Its endpoints disagree.
    Disagreement(&'a str),
    /// Its Patroni is paused.
    Patroni(&'a str),
    /// A member of the cluster is down.
    Down(&'a str, &'a str),
    /// An operator has put the member into this state.
    Admin(&'a str, &'a str, &'a str),
    /// The member is too far behind for the route.
    Lag(&'a str, &'a str, &'a str),
    Disabled(&'a str),
    Paused(&'a str),
    /// The router is drained.
    Router,
}

impl HealthView {
    /// `since`: in milliseconds since 1970.
    pub fn of(facts: &Facts<'_>, since: &dyn Fn(Subject<'_>) -> Option<u64>) -> Self {
        let mut found = Found {
            facts,
            since,
            problems: Vec::new(),
        };
        found.router();
        found.standing();
        for cluster in &facts.clusters {
            found.cluster(cluster);
        }
        for route in &facts.routes {
            found.route(route);
        }
        found.switchover();
        for member in &facts.members {
            found.member(member);
        }
        for pool in &facts.pools {
            found.pool(pool);
        }
        for certificate in facts.certificates {
            found.certificate(certificate);
        }
        let mut problems = found.problems;
        problems.sort_by_key(|problem| (problem.rank, Reverse(problem.severity)));
        let severities = problems.iter().map(|problem| problem.severity);
        Self {
            result: severities.max().unwrap_or(Wellness::Well),
            problems,
        }
    }
}

struct Found<'a> {
    facts: &'a Facts<'a>,
    since: &'a dyn Fn(Subject<'_>) -> Option<u64>,
    problems: Vec<ProblemView>,
}

/// What is told of a problem.
struct Told {
    what: String,
    why: String,
    remedy: String,
    since_ms: Option<u64>,
}

impl Told {
    fn new(finding: &Finding<'_>, what: String, why: impl Into<String>, since_ms: Option<u64>) -> Self {
        Self {
            what,
            why: why.into(),
            remedy: finding.remedy(),
            since_ms,
        }
    }
}

impl Found<'_> {
    fn add(&mut self, key: &str, rank: Rank, severity: Wellness, told: Told) {
        let mut problem = ProblemView {
            severity,
            rank,
            key: key.to_owned(),
            what: told.what,
            why: told.why,
            remedy: told.remedy,
            text: String::new(),
            since_ms: told.since_ms,
        };
        problem.text = problem.told(None);
        self.problems.push(problem);
    }

    fn warn(&mut self, key: &str, told: Told) {
        self.add(key, Rank::Warning, Wellness::Degraded, told);
    }

    fn router(&mut self) {
        let RouterView { state, reason, .. } = self.facts.router;
        let (rank, finding) = match state.as_str() {
            "ready" => return,
            "drain" => (Rank::Warning, Finding::RouterDrained),
            "starting" => (Rank::Down, Finding::RouterStarting),
            _ => (Rank::Down, Finding::RouterStopping),
        };
        let why = reason.clone().unwrap_or_default();
        let since = (state == "drain")
            .then(|| (self.since)(Subject::Router))
            .flatten();
        let told = Told::new(&finding, format!("the router is not ready ({state})"), why, since);
        self.add("router", rank, Wellness::Degraded, told);
    }

    fn cluster(&mut self, cluster: &ClusterSummary) {
        let name = &cluster.name;
        if cluster.leader.is_none() {
            self.no_leader(cluster);
        }
        if let Some(why) = &cluster.source.error {
            let what = format!("cluster {name}: the list of members may be out of date");
            let told = Told::new(
                &Finding::SourceLost,
                what,
                why,
                (self.since)(Subject::Source(name)),
            );
            self.warn(&format!("source {name}"), told);
        }
        if let Some(how) = &cluster.source.disagreement {
            let what = format!("cluster {name}: the endpoints disagree");
            let since = (self.since)(Subject::Disagreement(name));
            let told = Told::new(&Finding::EndpointsDisagree, what, how, since);
            self.warn(&format!("disagreement {name}"), told);
        }
        if cluster.paused {
            let what = format!("cluster {name}: Patroni is paused, so it does not fail over");
            let since = (self.since)(Subject::Patroni(name));
            let told = Told::new(&Finding::PatroniPaused, what, "", since);
            self.warn(&format!("patroni {name}"), told);
        }
    }

    /// The enabled routes that write to a cluster, if it has no leader and none of them serves.
    /// (Without a verified leader one may: sessions see for themselves whether a full server
    /// accepts writes.)
    fn shut_writers(&self, cluster: &ClusterSummary) -> Vec<&RouteView> {
        let routes = self.facts.routes.iter().copied();
        let is_its = |route: &&RouteView| is_writer(route) && route.cluster.as_ref() == Some(&cluster.name);
        let writers: Vec<&RouteView> = routes
            .filter(|route| is_its(route) && route.admin != "disabled")
            .collect();
        let is_shut = |route: &&RouteView| route.members.is_empty() || is_waited_for(route);
        if cluster.leader.is_none() && writers.iter().all(is_shut) {
            writers
        } else {
            Vec::new()
        }
    }

    /// One problem for all routes that write there.
    fn no_leader(&mut self, cluster: &ClusterSummary) {
        let name = &cluster.name;
        let (mut why, key) = (
            cluster.no_leader.clone().unwrap_or_default(),
            format!("leader {name}"),
        );
        let since = (self.since)(Subject::NoLeader(name));
        let writers = self.shut_writers(cluster);
        if writers.is_empty() {
            let what = format!("cluster {name} has no leader");
            let told = Told::new(&Finding::NoLeader, what, why, since);
            self.warn(&key, told);
            return;
        }
        let holds: Vec<&HoldView> = writers.iter().filter_map(|route| route.hold.as_ref()).collect();
        let mut finding = Finding::NoLeader;
        if let Some(hold) = holds.iter().find(|hold| hold.kind != "no server") {
            finding = Finding::RouteHeld {
                ended_by: &hold.ended_by,
            };
            why += "; ";
            why += &hold.cause;
            why += &by(hold);
        }
        why.push_str(&held(&holds));
        // Who is held gets no error.
        let severity = if writers.iter().all(|route| is_waited_for(route)) {
            Wellness::Degraded
        } else {
            Wellness::NoService
        };
        let held_since = holds.iter().map(|hold| hold.since_ms).min();
        let what = format!("nobody can write to cluster {name}, which has no leader");
        let told = Told::new(&finding, what, why, since.or(held_since));
        self.add(&key, Rank::NoWrites, severity, told);
    }

    fn route(&mut self, route: &RouteView) {
        let (name, key) = (&route.name, format!("route {}", route.name));
        let cluster = route.cluster.as_deref().unwrap_or_default();
        if route.admin == "disabled" {
            self.disabled(route, &key);
            return;
        }
        let is_writer = is_writer(route);
        let mut clusters = self.facts.clusters.iter();
        let its = clusters.find(|about| about.name == cluster);
        // Then that is told once for all of them.
        if is_writer && its.is_some_and(|about| !self.shut_writers(about).is_empty()) {
            return;
        }
        let (rank, verb) = if is_writer {
            (Rank::NoWrites, "write")
        } else {
            (Rank::Down, "read")
        };
        let what = format!("nobody can {verb} through route {name}");
        if let Some(hold) = &route.hold {
            let reasons = if hold.kind == "no server" {
                self.no_member(cluster, name)
            } else {
                String::new()
            };
            let why = format!("{}{reasons}{}{}", hold.cause, by(hold), held(&[hold]));
            let finding = Finding::RouteHeld {
                ended_by: &hold.ended_by,
            };
            let told = Told::new(&finding, what, why, Some(hold.since_ms));
            self.add(&key, rank, Wellness::Degraded, told);
        } else if let Some(left) = route.paused_s {
            let why = format!("it is paused, {} left", lasting(left));
            let since = (self.since)(Subject::Paused(name));
            let told = Told::new(&Finding::RoutePaused(name), what, why, since);
            self.add(&key, rank, Wellness::Degraded, told);
        } else if route.members.is_empty() {
            let why = format!("no member can serve it{}", self.no_member(cluster, name));
            let told = Told::new(&Finding::RouteUnserved, what, why, None);
            self.add(&key, rank, Wellness::NoService, told);
        }
    }

    /// New clients are refused, unless no listener has the route.
    fn disabled(&mut self, route: &RouteView, key: &str) {
        let name = &route.name;
        let finding = Finding::RouteDisabled(name);
        let since = (self.since)(Subject::Disabled(name));
        let what = format!("route {name} is disabled");
        if route.cluster.is_none() {
            let told = Told::new(&finding, what, "no listener has it", since);
            self.warn(key, told);
        } else {
            let told = Told::new(&finding, what, "new clients get an error", since);
            self.add(key, Rank::Down, Wellness::NoService, told);
        }
    }

    /// Why the members of a cluster do not serve a route.
    fn no_member(&self, cluster: &str, route: &str) -> String {
        let members = self.facts.members.iter();
        let reasons: Vec<String> = members
            .filter(|member| cluster.is_empty() || member.cluster == cluster)
            .filter_map(|member| {
                let fitness = member.routes.iter().find(|fitness| fitness.route == route)?;
                Some(format!("{} {}", member.name, fitness.reason))
            })
            .collect();
        if reasons.is_empty() {
            return String::new();
        }
        format!(": {}", reasons.join(", "))
    }

    fn switchover(&mut self) {
        let Some(run) = self.facts.switchover.filter(|run| !run.is_over) else {
            return;
        };
        let mut clusters = self.facts.clusters.iter();
        if !clusters.any(|cluster| cluster.name == run.cluster) {
            return;
        }
        let SwitchoverStatus {
            leader, candidate, ..
        } = run;
        let step = run.steps.last().map_or("it begins", String::as_str);
        // A router does not know the candidate of a peer's.
        let to = if candidate.is_empty() {
            String::new()
        } else {
            format!(" to {candidate}")
        };
        let what = format!("a switchover from {leader}{to} runs");
        self.warn("switchover", Told::new(&Finding::Switchover, what, step, None));
    }

    fn member(&mut self, member: &MemberView) {
        let MemberView { name, cluster, .. } = member;
        let key = format!("member {cluster}/{name}");
        match (member.admin.as_str(), member.status) {
            (_, MemberStatus::Down) => {
                let why = member.check.text.clone().unwrap_or_default();
                let what = format!("{name} is DOWN ({})", member.check.status);
                let finding = Finding::MemberDown {
                    member: name,
                    check: &member.check.status,
                    state: &member.state,
                };
                let since = (self.since)(Subject::Down(cluster, name));
                let told = Told::new(&finding, what, why, since);
                self.add(&key, Rank::Down, Wellness::Degraded, told);
            }
            (state @ ("maint" | "drain"), _) => {
                let word = if state == "maint" {
                    "in maintenance"
                } else {
                    "drained"
                };
                let since = (self.since)(Subject::Admin(cluster, name, state));
                let finding = Finding::MemberOutOfService(name);
                let told = Told::new(&finding, format!("{name} is {word}"), "", since);
                self.warn(&key, told);
            }
            (_, MemberStatus::Ini) => {
                let what = format!("{name} has not been checked yet");
                self.warn(&key, Told::new(&Finding::MemberUnchecked, what, "", None));
            }
            (_, MemberStatus::Up | MemberStatus::Drain | MemberStatus::Maint) => {
                let mut fitness = member.routes.iter();
                let Some(behind) = fitness.find(|route| route.reason.contains("too far behind")) else {
                    return;
                };
                let route = &behind.route;
                let what = format!("{name} is too far behind the leader for route {route}");
                let since = (self.since)(Subject::Lag(cluster, name, route));
                let told = Told::new(&Finding::MemberLags(name), what, "", since);
                self.warn(&format!("lag {cluster}/{name}"), told);
            }
        }
    }

    fn certificate(&mut self, certificate: &CertificateView) {
        let CertificateView {
            subject,
            file,
            number,
            days_left,
            ..
        } = certificate;
        let key = format!("certificate {file} {number}");
        let finding = Finding::Certificate {
            is_read_again: !matches!(certificate.used_for.as_str(), "patroni" | "etcd"),
        };
        if *days_left < 0 {
            let what = format!("the certificate {subject} has expired ({file})");
            let since = u64::try_from(certificate.not_after_ms).ok();
            let told = Told::new(&finding, what, "", since);
            self.add(&key, Rank::Down, Wellness::Degraded, told);
        } else if *days_left < FEW_DAYS {
            let days = match days_left {
                0 => "today".to_owned(),
                1 => "in 1 day".to_owned(),
                days => format!("in {days} days"),
            };
            let what = format!("the certificate {subject} expires {days} ({file})");
            self.warn(&key, Told::new(&finding, what, "", None));
        }
    }
}

fn is_writer(route: &RouteView) -> bool {
    route.access.as_deref() == Some("read-write")
}

/// Its clients wait, and get no error.
fn is_waited_for(route: &RouteView) -> bool {
    route.hold.is_some() || route.paused_s.is_some()
}

fn by(hold: &HoldView) -> String {
    let by = hold.by.as_ref();
    by.map(|by| format!(", ordered by {by}")).unwrap_or_default()
}

/// `; 12 clients are held, 19 s left at most`
fn held(holds: &[&HoldView]) -> String {
    let Some(left) = holds.iter().map(|hold| hold.left_s).max() else {
        return String::new();
    };
    let clients = match holds.iter().map(|hold| hold.clients).sum::<usize>() {
        0 => "no client is held now".to_owned(),
        1 => "1 client is held".to_owned(),
        count => format!("{count} clients are held"),
    };
    format!("; {clients}, {} left at most", lasting(left))
}

#[cfg(test)]
mod tests;
