//! Is all well? A pure function of what the router says.

use std::process::ExitCode;

use serde_json::{Value, json};
use time::OffsetDateTime;

use super::seen::Seen;
pub(in crate::cli) use crate::admin::Wellness;
use crate::admin::{HealthView, ProblemView};
use crate::cli::words::counted;

/// The newest events, in the document.
const EVENTS: usize = 200;

/// What is wrong, the worst first.
pub(in crate::cli) struct Verdict {
    pub(in crate::cli) problems: Vec<ProblemView>,
    wellness: Wellness,
}

pub(in crate::cli) fn code(wellness: Wellness) -> ExitCode {
    ExitCode::from(match wellness {
        Wellness::Well => 0,
        Wellness::Degraded => 1,
        Wellness::NoService => 2,
    })
}

impl Verdict {
    pub(in crate::cli) fn of(seen: &Seen) -> Self {
        let HealthView { result, problems } = seen.health();
        Self {
            problems,
            wellness: result,
        }
    }

    pub(in crate::cli) fn wellness(&self) -> Wellness {
        self.wellness
    }

    /// One sentence.
    pub(in crate::cli) fn sentence(&self) -> String {
        let lead = match self.wellness() {
            Wellness::Well => return "all is well".to_owned(),
            Wellness::Degraded => "NOT WELL",
            Wellness::NoService => "NO SERVICE",
        };
        let first = told(&self.problems[0]);
        match self.problems.len() - 1 {
            0 => format!("{lead}: {first}"),
            more => format!("{lead}: {first}; and {} more", counted(more, "problem")),
        }
    }

    /// Those behind the first one, in words.
    pub(in crate::cli) fn others(&self) -> impl Iterator<Item = String> {
        self.problems.iter().skip(1).map(told)
    }

    /// The keys are promised in docs/looking.md.
    pub(in crate::cli) fn document(&self, seen: &Seen) -> Value {
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
            "problems": self.problems,
            "router": seen.router,
            "clusters": clusters,
            "routes": seen.routes,
            "pools": seen.pools,
            "holds": seen.holds,
            "events": seen.events[seen.events.len().saturating_sub(EVENTS)..],
        })
    }
}

/// With since when, where that is known.
fn told(problem: &ProblemView) -> String {
    problem.told(problem.since_ms.and_then(moment).as_deref())
}

/// `03:12:44 UTC`, with the date if that is not today's.
fn moment(millis: u64) -> Option<String> {
    let at = OffsetDateTime::from_unix_timestamp(i64::try_from(millis / 1000).ok()?).ok()?;
    let (hour, minute, second) = at.to_hms();
    let date = if at.date() == OffsetDateTime::now_utc().date() {
        String::new()
    } else {
        format!("{} ", at.date())
    };
    Some(format!("{date}{hour:02}:{minute:02}:{second:02} UTC"))
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
                NoService,
                "`trunkline enable rw`",
            ),
            (
                |seen| seen.routes[0].paused_s = Some(7),
                Degraded,
                "paused, 7 s left; to end it: `trunkline unpause rw`",
            ),
            (
                |seen| seen.routes[0].members.clear(),
                NoService,
                "no member can serve it: db1 leader, db2 is not the leader",
            ),
            (
                |seen| seen.clusters[0].about.leader = None,
                Degraded,
                "cluster main has no leader",
            ),
            (
                |seen| seen.clusters[0].about.source.error = Some("no answer".to_owned()),
                Degraded,
                "out of date: no answer",
            ),
            (
                |seen| seen.clusters[0].about.source.disagreement = Some("two".to_owned()),
                Degraded,
                "main: the endpoints disagree: two",
            ),
            (
                |seen| seen.clusters[0].about.paused = true,
                Degraded,
                "patronictl resume",
            ),
            (
                |seen| seen.clusters[0].members[1].admin = "maint".to_owned(),
                Degraded,
                "db2 is in maintenance; to end it: `trunkline ready db2`",
            ),
            (
                |seen| seen.clusters[0].members[1].admin = "drain".to_owned(),
                Degraded,
                "db2 is drained; to end it: `trunkline ready db2`",
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
                ": 2 sessions wait, the longest for 1.5 s",
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
    fn a_problem_says_since_when() {
        let mut seen = sound();
        seen.clusters[0].about.leader = None;
        let mut health = seen.health();
        health.problems[0].since_ms = Some(1_764_457_201_123);
        seen.health = Some(health);
        let sentence = Verdict::of(&seen).sentence();
        assert!(
            sentence.starts_with(
                "NOT WELL: nobody can write to cluster main, which has no leader, since 2025-11-29 23:00:01 UTC"
            ) || sentence.contains("cluster main has no leader, since 2025-11-29 23:00:01 UTC"),
            "{sentence}"
        );
        let now = OffsetDateTime::now_utc();
        let today = u64::try_from(now.unix_timestamp()).expect("after 1970") * 1000;
        let shown = moment(today).expect("a time");
        assert!(
            shown.len() <= "2025-11-29 23:00:01 UTC".len() && shown.ends_with(" UTC"),
            "{shown}"
        );
    }

    #[test]
    fn several_clusters_are_shown_and_ranked_together() {
        let mut seen = sound();
        let mut other = sound();
        // The first has a member that is down, the second nobody who can write.
        seen.clusters[0].members[2].status = from_value(json!("DOWN")).expect("a status");
        let mut second = other.clusters.remove(0);
        second.about.name = "other".to_owned();
        second.about.leader = None;
        second.about.no_leader = Some("no server accepts writes".to_owned());
        for member in &mut second.members {
            member.cluster = "other".to_owned();
        }
        let mut route = other.routes.remove(0);
        route.name = "other-rw".to_owned();
        route.cluster = Some("other".to_owned());
        route.members.clear();
        seen.clusters.push(second);
        seen.routes.push(route);
        let verdict = Verdict::of(&seen);
        assert!(
            verdict
                .sentence()
                .starts_with("NO SERVICE: nobody can write to cluster other, which has no leader"),
            "{}",
            verdict.sentence()
        );
        assert!(
            verdict.sentence().ends_with("; and 1 problem more"),
            "{}",
            verdict.sentence()
        );
        let others: Vec<String> = verdict.others().collect();
        assert!(others[0].starts_with("db3 is DOWN"), "{others:?}");
        let screen = super::super::screen::lines(&seen, &verdict, 80);
        let has = |start: &str| screen.iter().any(|line| line.text.starts_with(start));
        assert!(has("cluster main: leader db1"), "{screen:?}");
        assert!(
            has("cluster other: no leader: no server accepts writes"),
            "{screen:?}"
        );
        let rows = screen.iter().filter(|line| line.text.starts_with("  db1 "));
        assert_eq!(rows.count(), 2, "members of both: {screen:?}");
        let document = verdict.document(&seen);
        assert_eq!(document["clusters"].as_array().map(Vec::len), Some(2));
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
            sentence.starts_with("NO SERVICE: nobody can write through route rw: no member can serve it"),
            "{sentence}"
        );
        assert!(sentence.ends_with("; and 2 problems more"), "{sentence}");
    }
}
