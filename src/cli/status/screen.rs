//! The screen of `trunkline status`: 24 lines of 80 columns for a cluster of three.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;
use time::OffsetDateTime;

use super::seen::{ClusterSeen, Seen};
use super::verdict::{Verdict, Wellness};
use crate::admin::{HoldView, MemberView, PoolView, RouteView, event_subject, lasting, lasting_ms};
use crate::cli::screen::{Line, Mood, wrapped};
use crate::cli::table::Table;
use crate::cli::tables::bytes;
use crate::cli::words::counted;

/// Lines of problems, pools and events.
const PROBLEMS: usize = 4;
const POOLS: usize = 3;
const EVENTS: usize = 5;

pub(in crate::cli) fn lines(seen: &Seen, verdict: &Verdict, width: usize) -> Vec<Line> {
    let mut lines = Vec::new();
    let mood = match verdict.wellness() {
        Wellness::Well => Mood::Good,
        Wellness::Degraded => Mood::Warning,
        Wellness::NoService => Mood::Bad,
    };
    lines.extend(
        wrapped(&verdict.sentence(), width)
            .iter()
            .map(|text| Line::new(mood, text)),
    );
    for problem in verdict.others().take(PROBLEMS) {
        lines.push(Line::new(mood, &format!("  also: {problem}")));
    }
    let router = &seen.router;
    lines.push(Line::plain(&format!(
        "router {}, {}, process {}, version {}",
        router.state,
        counted(router.sessions, "session"),
        router.process_id,
        router.version
    )));
    for cluster in &seen.clusters {
        lines.push(cluster_line(seen, cluster));
        lines.extend(members(&cluster.members));
    }
    lines.push(Line::new(Mood::Strong, "routes"));
    lines.extend(routes(&seen.routes));
    if !seen.pools.is_empty() {
        lines.push(Line::new(Mood::Strong, "pools"));
        lines.extend(pools(&seen.pools));
    }
    lines.push(Line::new(Mood::Strong, "last events (UTC)"));
    let newest = seen.events.len().saturating_sub(EVENTS);
    lines.extend(seen.events[newest..].iter().map(|event| event_line(event, "  ")));
    lines
}

fn cluster_line(seen: &Seen, cluster: &ClusterSeen) -> Line {
    let about = &cluster.about;
    let text = match &about.leader {
        Some(leader) => {
            let since = seen.leader_since(&about.name, leader).map(|since| {
                let least = if since.is_exact { "" } else { "at least " };
                let seconds = unix_ms().saturating_sub(since.at_ms) / 1000;
                format!(", for {least}{}", lasting(seconds))
            });
            format!(
                "cluster {}: leader {}, timeline {}{}",
                about.name,
                leader.member,
                leader.timeline,
                since.unwrap_or_default()
            )
        }
        None => format!(
            "cluster {}: no leader{}",
            about.name,
            about
                .no_leader
                .as_ref()
                .map(|why| format!(": {why}"))
                .unwrap_or_default()
        ),
    };
    let mood = if about.leader.is_some() {
        Mood::Strong
    } else {
        Mood::Bad
    };
    Line::new(mood, &text)
}

pub(in crate::cli) fn members(members: &[MemberView]) -> Vec<Line> {
    let mut table = Table::new(&[
        "  MEMBER", "STATUS", "ROLE", "TL", "LAG", "SESSIONS", "CONNS", "CHECK",
    ])
    .right(&["TL", "LAG", "SESSIONS", "CONNS"]);
    for member in members {
        table.row(vec![
            format!("  {}", member.name),
            member.status.to_string(),
            or_dash(member.shown_role().as_ref()),
            or_dash(member.timeline.as_ref()),
            or_dash(member.lag.map(bytes).as_ref()),
            member.sessions.to_string(),
            or_dash(member.server_connections.as_ref()),
            format!(
                "{} {}",
                member.check.status,
                member.check.text.as_deref().unwrap_or_default()
            ),
        ]);
    }
    let moods = members
        .iter()
        .map(|member| match member.status.to_string().as_str() {
            "UP" => Mood::Plain,
            "DOWN" => Mood::Bad,
            _ => Mood::Warning,
        });
    with_moods(&table, moods)
}

pub(in crate::cli) fn routes(routes: &[RouteView]) -> Vec<Line> {
    let mut table =
        Table::new(&["  ROUTE", "STATE", "SERVED BY", "SESSIONS", "POOL", "HOLD"]).right(&["SESSIONS"]);
    for route in routes {
        table.row(vec![
            format!("  {}", route.name),
            match route.paused_s {
                Some(left) => format!("paused, {} left", lasting(left)),
                None => route.admin.clone(),
            },
            if route.members.is_empty() {
                "nobody".to_owned()
            } else {
                route.members.join(",")
            },
            route.sessions.to_string(),
            route.pool.clone(),
            or_dash(route.hold.as_ref().map(HoldView::in_short).as_ref()),
        ]);
    }
    let moods = routes.iter().map(|route| {
        if route.admin != "enabled" || route.paused_s.is_some() || route.hold.is_some() {
            Mood::Warning
        } else if route.members.is_empty() {
            Mood::Bad
        } else {
            Mood::Plain
        }
    });
    with_moods(&table, moods)
}

/// Those with the longest queues and the most connections in use.
fn pools(pools: &[PoolView]) -> Vec<Line> {
    let sum = |pool: &PoolView, of: fn(&crate::admin::PoolMemberView) -> usize| -> usize {
        pool.members.iter().map(of).sum()
    };
    let mut sorted: Vec<&PoolView> = pools.iter().collect();
    sorted.sort_by_key(|pool| std::cmp::Reverse((pool.waiting, sum(pool, |member| member.leased))));
    let mut table = Table::new(&[
        "  ROUTE", "USER", "DATABASE", "IDLE", "LEASED", "MAX", "WAITING", "WAIT",
    ])
    .right(&["IDLE", "LEASED", "MAX", "WAITING", "WAIT"]);
    let shown = sorted.iter().take(POOLS);
    for pool in shown.clone() {
        table.row(vec![
            format!("  {}", pool.route),
            pool.user.clone(),
            pool.database.clone(),
            sum(pool, |member| member.idle).to_string(),
            sum(pool, |member| member.leased).to_string(),
            or_dash(pool.max_connections.as_ref()),
            pool.waiting.to_string(),
            lasting_ms(pool.longest_wait_ms),
        ]);
    }
    let moods = shown.map(|pool| {
        if pool.waiting > 0 {
            Mood::Warning
        } else {
            Mood::Plain
        }
    });
    let mut lines = with_moods(&table, moods);
    if pools.len() > POOLS {
        let more = pools.len() - POOLS;
        lines.push(Line::plain(&format!("  and {more} more: `trunkline pools`")));
    }
    lines
}

/// `03:12:44 warn db1 is down: …`
pub(in crate::cli) fn event_line(event: &Value, lead: &str) -> Line {
    let level = event["level"].as_str().unwrap_or_default();
    let mood = match level {
        "warn" => Mood::Warning,
        "error" => Mood::Bad,
        _ => Mood::Plain,
    };
    let at = event["time_ms"].as_u64().and_then(clock).unwrap_or_default();
    let cluster = match event["cluster"].as_str() {
        Some(cluster) => format!(" [{cluster}]"),
        None => String::new(),
    };
    let text = event["text"].as_str().unwrap_or_default();
    let about = match event_subject(event, text) {
        about if about.is_empty() => about,
        about => format!(" {about}"),
    };
    Line::new(mood, &format!("{lead}{at} {level:<5} {text}{about}{cluster}"))
}

/// The time of day in UTC, as the log has it.
fn clock(millis: u64) -> Option<String> {
    let at = OffsetDateTime::from_unix_timestamp(i64::try_from(millis / 1000).ok()?).ok()?;
    let (hour, minute, second) = at.to_hms();
    Some(format!("{hour:02}:{minute:02}:{second:02}"))
}

fn unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

fn or_dash(value: Option<&impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), ToString::to_string)
}

/// The first line of a table is its headings.
fn with_moods(table: &Table, moods: impl Iterator<Item = Mood>) -> Vec<Line> {
    let text = table.text();
    let moods = std::iter::once(Mood::Plain).chain(moods);
    text.lines()
        .zip(moods)
        .map(|(text, mood)| Line::new(mood, text))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::scene::sound;
    use super::super::seen::Since;
    use super::*;

    #[test]
    fn an_event_says_what_it_is_about_and_who_asked_for_it() {
        let line = |event: Value| event_line(&event, "").text;
        let drained = serde_json::json!({"level": "info", "time_ms": 11_564_000, "cluster": "main", "member": "db1",
            "state": "drain", "by": "127.0.0.1:5000", "text": "administrative state set"});
        let expected =
            "03:12:44 info  administrative state set member=db1 state=drain by=127.0.0.1:5000 [main]";
        assert_eq!(line(drained), expected);
        let down = serde_json::json!({"level": "warn", "time_ms": 11_564_000, "cluster": "main", "member": "db1",
            "error": "refused", "text": "db1 is down: refused"});
        assert_eq!(line(down), "03:12:44 warn  db1 is down: refused [main]");
    }

    #[test]
    fn a_cluster_of_three_fits_on_24_lines_of_80_columns() {
        let seen = sound();
        let lines = lines(&seen, &Verdict::of(&seen), 80);
        assert!(lines.len() <= 24, "{}", lines.len());
        assert_eq!(lines[0], Line::new(Mood::Good, "all is well"));
        for line in &lines {
            assert!(line.text.chars().count() <= 80, "{}", line.text);
        }
        let last = lines.last().expect("lines");
        assert_eq!(
            *last,
            Line::new(Mood::Warning, "  23:00:01 warn  db9 is down: no [main]")
        );
    }

    #[test]
    fn a_long_sentence_is_wrapped_and_what_is_down_is_red() {
        let mut seen = sound();
        seen.clusters[0].members[1].status = serde_json::from_value("DOWN".into()).expect("a status");
        seen.clusters[0].members[1].check.text = Some("no route to host ".repeat(9));
        let lines = lines(&seen, &Verdict::of(&seen), 60);
        assert!(
            lines[1].mood == Mood::Warning && !lines[1].text.starts_with("router"),
            "{lines:?}"
        );
        let down = lines.iter().find(|line| line.text.starts_with("  db2"));
        assert_eq!(down.map(|line| line.mood), Some(Mood::Bad));
    }

    #[test]
    fn how_long_the_leader_leads_is_never_told_as_more_than_is_known() {
        let mut seen = sound();
        let mut number = 10;
        let leader = seen.clusters[0].about.leader.clone().expect("a leader");
        let since = |at_ms, is_exact| Some(Since { at_ms, is_exact });
        assert_eq!(seen.leader_since("main", &leader), None);
        let mut event = |kind: &str, member: &str, timeline: u32, at: u64| {
            number += 1;
            serde_json::json!({"number": number, "time_ms": at, "event": kind, "cluster": "main", "member": member,
                "timeline": timeline, "level": "info", "text": kind})
        };
        // After a start of the router it may have led for days.
        seen.events.push(event("leader_changed", "db1", 3, 5));
        assert_eq!(seen.leader_since("main", &leader), since(5, false));
        let screen = lines(&seen, &Verdict::of(&seen), 80);
        assert!(
            screen.iter().any(|line| line
                .text
                .starts_with("cluster main: leader db1, timeline 3, for at least ")),
            "{screen:?}"
        );
        // It was not heard of for a moment.
        seen.events.push(event("leader_lost", "db1", 3, 6));
        seen.events.push(event("leader_changed", "db1", 3, 7));
        assert_eq!(seen.leader_since("main", &leader), since(5, false));
        // Another one led in between.
        seen.events.push(event("leader_changed", "db2", 4, 8));
        assert_eq!(
            seen.leader_since("main", &leader),
            None,
            "the router says otherwise"
        );
        seen.events.push(event("leader_changed", "db1", 3, 9));
        assert_eq!(seen.leader_since("main", &leader), since(9, true));
        // Of an earlier leader only the end is kept.
        seen.events.retain(|event| event["number"].as_u64() > Some(14));
        seen.events.insert(0, event("leader_lost", "db2", 2, 8));
        assert_eq!(seen.leader_since("main", &leader), since(9, true));
        // The same one on a timeline before.
        seen.events.insert(1, event("leader_changed", "db1", 2, 8));
        assert_eq!(seen.leader_since("main", &leader), since(9, true));
    }
}
