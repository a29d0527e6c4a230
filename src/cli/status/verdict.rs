//! Is all well? A pure function of what the router says.

use std::process::ExitCode;

use serde_json::{Value, json};

use super::seen::{ClusterSeen, Seen};
use crate::admin::MemberView;

/// A session that waits longer for a server connection is worth a word.
const LONG_WAIT_MS: u64 = 1000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::cli) enum Wellness {
    Well,
    /// Clients are served, and something is not as it should be.
    Degraded,
    /// Clients of a route find no server.
    NoService,
}

impl Wellness {
    pub(in crate::cli) fn word(self) -> &'static str {
        match self {
            Self::Well => "well",
            Self::Degraded => "degraded",
            Self::NoService => "no service",
        }
    }

    pub(in crate::cli) fn code(self) -> ExitCode {
        ExitCode::from(match self {
            Self::Well => 0,
            Self::Degraded => 1,
            Self::NoService => 2,
        })
    }
}

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cli) struct Problem {
    pub(in crate::cli) severity: Wellness,
    pub(in crate::cli) text: String,
}

/// What is wrong, the worst first.
pub(in crate::cli) struct Verdict {
    pub(in crate::cli) problems: Vec<Problem>,
}

impl Verdict {
    pub(in crate::cli) fn of(seen: &Seen) -> Self {
        let mut problems = Vec::new();
        let mut add = |severity, text: String| problems.push(Problem { severity, text });
        if seen.router.state != "ready" {
            let why = seen
                .router
                .reason
                .as_ref()
                .map(|why| format!(": {why}"))
                .unwrap_or_default();
            add(
                Wellness::Degraded,
                format!("the router is not ready ({}){why}", seen.router.state),
            );
        }
        for route in &seen.routes {
            let name = &route.name;
            if route.admin == "disabled" {
                add(
                    Wellness::Degraded,
                    format!("route {name} is disabled (`trunkline enable {name}`)"),
                );
            } else if let Some(left) = route.paused_s {
                add(
                    Wellness::Degraded,
                    format!("route {name} is paused for another {left} s (`trunkline unpause {name}`)"),
                );
            } else if let Some(hold) = &route.hold {
                add(Wellness::Degraded, hold.in_words());
            } else if route.members.is_empty() {
                let why = no_member(seen, route.cluster.as_deref(), name);
                add(
                    Wellness::NoService,
                    format!("no member can serve route {name}{why}"),
                );
            }
        }
        for cluster in &seen.clusters {
            of_cluster(cluster, &mut add);
        }
        for pool in &seen.pools {
            if pool.waiting > 0 && pool.longest_wait_ms > LONG_WAIT_MS {
                add(
                    Wellness::Degraded,
                    format!(
                        "{} of {} of route {} to {} wait for a server connection, the longest for {} ms",
                        counted(pool.waiting, "session"),
                        pool.user,
                        pool.route,
                        pool.database,
                        pool.longest_wait_ms
                    ),
                );
            }
        }
        problems.sort_by_key(|problem: &Problem| std::cmp::Reverse(problem.severity));
        Self { problems }
    }

    pub(in crate::cli) fn wellness(&self) -> Wellness {
        let severities = self.problems.iter().map(|problem| problem.severity);
        severities.max().unwrap_or(Wellness::Well)
    }

    /// One sentence.
    pub(in crate::cli) fn sentence(&self) -> String {
        let lead = match self.wellness() {
            Wellness::Well => return "all is well".to_owned(),
            Wellness::Degraded => "NOT WELL",
            Wellness::NoService => "NO SERVICE",
        };
        let first = &self.problems[0].text;
        match self.problems.len() - 1 {
            0 => format!("{lead}: {first}"),
            more => format!("{lead}: {first}; and {} more", counted(more, "problem")),
        }
    }

    /// The keys are promised in docs/looking.md.
    pub(in crate::cli) fn document(&self, seen: &Seen) -> Value {
        let problems: Vec<Value> = self
            .problems
            .iter()
            .map(|problem| json!({"severity": problem.severity.word(), "text": problem.text}))
            .collect();
        let clusters: Vec<Value> = seen
            .clusters
            .iter()
            .map(|cluster| {
                let mut value = json!(cluster.about);
                value["members"] = json!(cluster.members);
                value
            })
            .collect();
        json!({
            "result": self.wellness().word(),
            "problems": problems,
            "router": seen.router,
            "clusters": clusters,
            "routes": seen.routes,
            "pools": seen.pools,
            "holds": seen.holds,
            "events": seen.events,
        })
    }
}

fn of_cluster(cluster: &ClusterSeen, add: &mut dyn FnMut(Wellness, String)) {
    let name = &cluster.about.name;
    if cluster.about.leader.is_none() {
        let why = cluster
            .about
            .no_leader
            .as_ref()
            .map(|why| format!(": {why}"))
            .unwrap_or_default();
        add(Wellness::Degraded, format!("cluster {name} has no leader{why}"));
    }
    if let Some(why) = &cluster.about.source.error {
        add(
            Wellness::Degraded,
            format!("cluster {name}: the list of members may be out of date: {why}"),
        );
    }
    if let Some(how) = &cluster.about.source.disagreement {
        add(Wellness::Degraded, format!("cluster {name}: {how}"));
    }
    if cluster.about.paused {
        let text =
            format!("cluster {name}: Patroni is paused, so it does not fail over (`patronictl resume`)");
        add(Wellness::Degraded, text);
    }
    for member in &cluster.members {
        if let Some(text) = unwell(member) {
            add(Wellness::Degraded, text);
        }
    }
}

fn unwell(member: &MemberView) -> Option<String> {
    let name = &member.name;
    let status = member.status.to_string();
    match (member.admin.as_str(), status.as_str()) {
        ("maint", _) => return Some(format!("{name} is in maintenance (`trunkline ready {name}`)")),
        ("drain", _) => return Some(format!("{name} is drained (`trunkline ready {name}`)")),
        (_, "UP" | "DRAIN") => {}
        (_, status) => {
            let why = member
                .check
                .text
                .as_ref()
                .map(|text| format!(": {text}"))
                .unwrap_or_default();
            return Some(format!("{name} is {status} ({}){why}", member.check.status));
        }
    }
    let behind = member
        .routes
        .iter()
        .find(|route| route.reason.contains("too far behind"))?;
    Some(format!(
        "{name} is too far behind the leader for route {}",
        behind.route
    ))
}

/// Why the members of a cluster do not serve a route.
fn no_member(seen: &Seen, cluster: Option<&str>, route: &str) -> String {
    let members = seen
        .members()
        .filter(|member| cluster.is_none_or(|cluster| member.cluster == cluster));
    let reasons: Vec<String> = members
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

/// `1 session`, `2 sessions`
pub(in crate::cli) fn counted(count: usize, noun: &str) -> String {
    match count {
        1 => format!("1 {noun}"),
        count => format!("{count} {noun}s"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::from_value;

    use super::super::scene::sound;
    use super::*;

    /// What is said of a sound scene after a change.
    fn told(change: impl FnOnce(&mut Seen)) -> (Wellness, String) {
        let mut seen = sound();
        change(&mut seen);
        let verdict = Verdict::of(&seen);
        (verdict.wellness(), verdict.sentence())
    }

    #[test]
    fn a_sound_router_is_well() {
        assert_eq!(told(|_| {}), (Wellness::Well, "all is well".to_owned()));
        let seen = sound();
        let document = Verdict::of(&seen).document(&seen);
        assert_eq!(document["result"], "well");
        assert_eq!(document["clusters"][0]["members"][2]["name"], "db3");
    }

    /// A change, what it makes of a sound scene, and a part of the sentence.
    type Scenes = [(fn(&mut Seen), Wellness, &'static str); 13];

    #[test]
    fn each_thing_that_is_not_as_it_should_be_is_said_with_its_remedy() {
        use Wellness::{Degraded, NoService};
        let hold = json!({"route": "rw", "cluster": "main", "clients": 12, "kind": "drain", "cause": "db1 is drained",
            "by": null, "since_ms": 0, "held_s": 3, "until_ms": 0, "left_s": 19, "ended_by": "`trunkline ready db1`"});
        let scenes: Scenes = [
            (
                |seen| seen.router.state = "drain".to_owned(),
                Degraded,
                "not ready (drain)",
            ),
            (
                |seen| seen.routes[0].admin = "disabled".to_owned(),
                Degraded,
                "`trunkline enable rw`",
            ),
            (
                |seen| seen.routes[0].paused_s = Some(7),
                Degraded,
                "paused for another 7 s (`trunkline unpause rw`)",
            ),
            (
                |seen| seen.routes[0].members.clear(),
                NoService,
                "rw: db1 leader, db2 is not the leader",
            ),
            (
                |seen| seen.clusters[0].about.leader = None,
                Degraded,
                "main has no leader",
            ),
            (
                |seen| seen.clusters[0].about.source.error = Some("no answer".to_owned()),
                Degraded,
                "out of date: no answer",
            ),
            (
                |seen| seen.clusters[0].about.source.disagreement = Some("two".to_owned()),
                Degraded,
                "main: two",
            ),
            (
                |seen| seen.clusters[0].about.paused = true,
                Degraded,
                "patronictl resume",
            ),
            (
                |seen| seen.clusters[0].members[1].admin = "maint".to_owned(),
                Degraded,
                "db2 is in maintenance (`trunkline ready db2`)",
            ),
            (
                |seen| seen.clusters[0].members[1].admin = "drain".to_owned(),
                Degraded,
                "db2 is drained (`trunkline ready db2`)",
            ),
            (
                |seen| {
                    let member = &mut seen.clusters[0].members[2];
                    member.status = from_value(json!("DOWN")).expect("a status");
                    member.check.text = Some("refused".to_owned());
                },
                Degraded,
                "db3 is DOWN (L7OK): refused",
            ),
            (
                |seen| seen.clusters[0].members[1].routes[0].reason = "too far behind the leader".to_owned(),
                Degraded,
                "db2 is too far behind the leader for route rw",
            ),
            (
                |seen| {
                    seen.pools[0].waiting = 2;
                    seen.pools[0].longest_wait_ms = 1500;
                },
                Degraded,
                "2 sessions of app of route rw to app wait",
            ),
        ];
        for (change, severity, part) in scenes {
            let (wellness, sentence) = told(change);
            assert_eq!(wellness, severity, "{sentence}");
            assert!(sentence.contains(part), "{part}: {sentence}");
        }
        let held = |seen: &mut Seen| {
            seen.routes[0].members.clear();
            seen.routes[0].hold = from_value(hold).expect("a hold");
        };
        let (wellness, sentence) = told(held);
        assert_eq!(wellness, Degraded, "clients wait, and get no error: {sentence}");
        assert!(
            sentence.contains("12 clients are held") && sentence.contains("trunkline ready db1"),
            "{sentence}"
        );
    }

    #[test]
    fn the_worst_comes_first_and_the_others_are_counted() {
        let (wellness, sentence) = told(|seen| {
            seen.clusters[0].about.paused = true;
            seen.router.state = "drain".to_owned();
            seen.routes[0].members.clear();
        });
        assert_eq!(wellness, Wellness::NoService);
        assert!(
            sentence.starts_with("NO SERVICE: no member can serve route rw"),
            "{sentence}"
        );
        assert!(sentence.ends_with("; and 2 problems more"), "{sentence}");
    }
}
