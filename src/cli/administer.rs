//! `trunkline members`, `drain`, `maint`, `ready`, `weight`, `sessions`, `close`, `kill`,
//! `forget-identity` and `router`: a running router, administered from a shell, in HAProxy's words.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command's answer to the person who runs it"
)]

use std::fmt::Write as _;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::remote::{Remote, Router, encoded};
use super::table::Table;
use crate::admin::{ClusterSummary, MemberView, RouterView, SessionView};

#[derive(Debug, Subcommand)]
pub(super) enum Administer {
    /// Show the members of the clusters: roles, checks, administrative states, sessions.
    Members {
        #[command(flatten)]
        remote: Remote,
    },
    /// Give a member no new sessions; its sessions stay.
    Drain {
        #[command(flatten)]
        member: Named,
    },
    /// Take a member out of service; its live sessions end, too.
    ///
    /// Each session ends at the end of its transaction, at the latest after the route's
    /// `on_unfit.grace`. `drain` keeps them.
    Maint {
        #[command(flatten)]
        member: Named,
    },
    /// Put a member back into service.
    Ready {
        #[command(flatten)]
        member: Named,
    },
    /// Change a member's share of the sessions.
    Weight {
        #[command(flatten)]
        member: Named,
        /// 0 to 256, or `default` for the configured one.
        #[arg(value_parser = weight)]
        weight: Weight,
    },
    /// Show the sessions.
    Sessions {
        #[command(flatten)]
        remote: Remote,
        /// Only those on this member.
        #[arg(long, value_name = "NAME")]
        member: Option<String>,
        /// Only those of this user.
        #[arg(long, value_name = "NAME")]
        user: Option<String>,
    },
    /// End the sessions on a member at their next transaction end.
    Close {
        #[command(flatten)]
        member: Named,
        /// Cut the remaining sessions after this many seconds.
        #[arg(long, value_name = "SECONDS", conflicts_with = "now")]
        grace: Option<u64>,
        /// Cut them at once, even in a transaction.
        #[arg(long)]
        now: bool,
    },
    /// Show the router's own state, or change it.
    Router {
        #[command(subcommand)]
        action: RouterAction,
    },
    /// Accept another cluster under this name: forget its system identifier, and learn it again.
    ForgetIdentity {
        /// The cluster's name.
        name: String,
        #[command(flatten)]
        remote: Remote,
    },
    /// End one session at once.
    Kill {
        #[command(flatten)]
        remote: Remote,
        /// The session's id, as `trunkline sessions` shows it.
        #[arg(value_parser = session_id)]
        id: u64,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum RouterAction {
    /// Show whether the router is ready.
    Status {
        #[command(flatten)]
        remote: Remote,
    },
    /// Report to load balancers that the router is not ready; it serves as before.
    Drain {
        #[command(flatten)]
        remote: Remote,
    },
    /// Report again that the router is ready.
    Ready {
        #[command(flatten)]
        remote: Remote,
    },
}

#[derive(Debug, Args)]
pub(super) struct Named {
    /// The member's name.
    name: String,
    #[command(flatten)]
    remote: Remote,
}

/// A weight, or the configured one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Weight(Option<u16>);

fn weight(text: &str) -> Result<Weight, String> {
    match text {
        "default" => Ok(Weight(None)),
        text => match text.parse() {
            Ok(weight) if weight <= crate::config::MOST_WEIGHT => Ok(Weight(Some(weight))),
            _ => Err("0 to 256, or `default`".to_owned()),
        },
    }
}

fn session_id(text: &str) -> Result<u64, String> {
    text.parse()
        .map_err(|_| "a session's id is a number, as `trunkline sessions` shows it".to_owned())
}

/// `1 session`, `2 sessions`
fn sessions_in_words(count: u64) -> String {
    match count {
        1 => "1 session".to_owned(),
        count => format!("{count} sessions"),
    }
}

pub(super) fn run(command: &Administer) -> ExitCode {
    match answer(command) {
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(problem) => {
            eprintln!("{problem}");
            ExitCode::FAILURE
        }
    }
}

fn answer(command: &Administer) -> Result<String, String> {
    match command {
        Administer::Members { remote } => members(remote),
        Administer::Drain { member } => change(member, "drain", None),
        Administer::Maint { member } => change(member, "maint", None),
        Administer::Ready { member } => change(member, "ready", None),
        Administer::Weight { member, weight } => change(member, "weight", Some(&json!({"weight": weight.0}))),
        Administer::Sessions { remote, member, user } => {
            let query = remote.query(&[("member", member.as_deref()), ("user", user.as_deref())]);
            let router = remote.router()?;
            let all = router.look(&format!("/api/v1/sessions{query}"))?;
            if let (Some(name), []) = (member, list(&all)) {
                is_a_member(&router, remote, name)?;
            }
            printed(remote, &all, |all: Vec<SessionView>| session_table(&all))
        }
        Administer::Close { member, grace, now } => {
            let body = match (now, grace) {
                (true, _) => json!({"when": "now"}),
                (false, Some(grace)) => json!({"when": "boundary", "grace_s": grace}),
                (false, None) => json!({"when": "boundary"}),
            };
            let answer = post(member, "close-sessions", Some(&body))?;
            printed(&member.remote, &answer, |answer: Value| {
                let ending = answer["sessions"].as_u64().unwrap_or_default();
                let verb = if ending == 1 { "is" } else { "are" };
                format!("{}: {} {verb} ending\n", member.name, sessions_in_words(ending))
            })
        }
        Administer::Router { action } => router(action),
        Administer::ForgetIdentity { name, remote } => {
            let path = format!("/api/v1/clusters/{}/forget-identity", encoded(name));
            let answer = remote.router()?.change(&path, None)?;
            printed(remote, &answer, |answer: Value| {
                match answer["forgotten"].as_str() {
                    Some(identifier) => format!("{name}: system identifier {identifier} is forgotten\n"),
                    None => format!("{name}: no system identifier was known\n"),
                }
            })
        }
        Administer::Kill { remote, id } => {
            let session = remote
                .router()?
                .change(&format!("/api/v1/sessions/{id}/kill"), None)?;
            printed(remote, &session, |session: SessionView| session_table(&[session]))
        }
    }
}

fn router(action: &RouterAction) -> Result<String, String> {
    let (remote, change) = match action {
        RouterAction::Status { remote } => (remote, None),
        RouterAction::Drain { remote } => (remote, Some("/api/v1/router/drain")),
        RouterAction::Ready { remote } => (remote, Some("/api/v1/router/ready")),
    };
    let router = remote.router()?;
    let state = match change {
        None => router.look("/api/v1/router")?,
        Some(path) => router.change(path, None)?,
    };
    printed(remote, &state, |state: RouterView| router_table(&state))
}

fn router_table(router: &RouterView) -> String {
    let mut table = Table::new(&["STATE", "SESSIONS", "PID", "VERSION"]).right(&["SESSIONS", "PID"]);
    table.row(vec![
        router.state.clone(),
        router.sessions.to_string(),
        router.process_id.to_string(),
        router.version.clone(),
    ]);
    table.text()
}

fn post(member: &Named, action: &str, body: Option<&Value>) -> Result<Value, String> {
    let path = format!(
        "/api/v1/members/{}/{action}{}",
        encoded(&member.name),
        member.remote.query(&[])
    );
    member.remote.router()?.change(&path, body)
}

fn change(member: &Named, action: &str, body: Option<&Value>) -> Result<String, String> {
    let answer = post(member, action, body)?;
    printed(&member.remote, &answer, member_answer)
}

/// The router answers with the name alone where the cluster does not have the member any more.
fn member_answer(answer: Value) -> String {
    let name = answer["name"].as_str().unwrap_or_default().to_owned();
    match serde_json::from_value(answer) {
        Ok(member) => member_table(&[member]),
        Err(_) => format!("{name}: it is set, and the cluster has no such member now\n"),
    }
}

/// Of one cluster, or of each after its name.
fn members(remote: &Remote) -> Result<String, String> {
    let router = remote.router()?;
    if remote.cluster.is_some() {
        let all = router.look(&format!("/api/v1/members{}", remote.query(&[])))?;
        if remote.json {
            return Ok(format!("{all:#}\n"));
        }
        let clusters = clusters(&router)?;
        let cluster = clusters
            .iter()
            .find(|cluster| Some(&cluster.name) == remote.cluster.as_ref());
        let members: Vec<MemberView> = understood(&all)?;
        return Ok(member_table(&members) + &remarks(cluster, &members));
    }
    let clusters = clusters(&router)?;
    let mut found = Vec::new();
    for cluster in clusters {
        let members = of_cluster(&router, &cluster.name)?;
        found.push((cluster, members));
    }
    if remote.json {
        let all: Vec<&Value> = found.iter().flat_map(|(_, members)| list(members)).collect();
        return Ok(format!("{:#}\n", json!(all)));
    }
    let several = found.len() > 1;
    let mut text = String::new();
    for (cluster, members) in &found {
        if several {
            let lead = if text.is_empty() { "" } else { "\n" };
            // Writing to a String does not fail.
            let _ = writeln!(text, "{lead}cluster {}", cluster.name);
        }
        let members: Vec<MemberView> = understood(members)?;
        text.push_str(&member_table(&members));
        text.push_str(&remarks(Some(cluster), &members));
    }
    Ok(text)
}

fn clusters(router: &Router) -> Result<Vec<ClusterSummary>, String> {
    understood(&router.look("/api/v1/clusters")?)
}

/// What the table of a cluster's members does not say, one line each.
fn remarks(cluster: Option<&ClusterSummary>, members: &[MemberView]) -> String {
    let mut text = String::new();
    // Writing to a String does not fail.
    if let Some(why) = cluster.and_then(|cluster| cluster.no_leader.as_ref()) {
        let _ = writeln!(text, "no leader: {why}");
    }
    for leader in members.iter().filter(|member| member.leader) {
        let state = match leader.admin.as_str() {
            "maint" => "in maintenance",
            "drain" => "being drained",
            _ => continue,
        };
        let _ = writeln!(
            text,
            "the leader {0} is {state}: new read-write sessions find no server until `trunkline ready {0}`, or until \
             Patroni has promoted another member",
            leader.name
        );
    }
    if cluster.is_some_and(|cluster| cluster.paused) {
        text.push_str("Patroni is paused: it does not fail over by itself (`patronictl resume` ends that)\n");
    }
    if let Some(why) = cluster.and_then(|cluster| cluster.source.error.as_ref()) {
        let _ = writeln!(text, "the list of members may be out of date: {why}");
    }
    text
}

/// `Err`: no cluster has a member of this name.
fn is_a_member(router: &Router, remote: &Remote, name: &str) -> Result<(), String> {
    let mut clusters = clusters(router)?;
    clusters.retain(|cluster| {
        remote
            .cluster
            .as_ref()
            .is_none_or(|wanted| *wanted == cluster.name)
    });
    if clusters
        .iter()
        .any(|cluster| cluster.members.iter().any(|member| member == name))
    {
        return Ok(());
    }
    let place = match clusters.as_slice() {
        [cluster] => format!("cluster {} has", cluster.name),
        _ => "the clusters have".to_owned(),
    };
    Err(format!(
        "{place} no member {name} (`trunkline members` shows the names)"
    ))
}

fn of_cluster(router: &Router, name: &str) -> Result<Value, String> {
    router.look(&format!("/api/v1/members?cluster={}", encoded(name)))
}

/// The answer as it came, or in words.
fn printed<T: DeserializeOwned>(
    remote: &Remote,
    answer: &Value,
    words: impl FnOnce(T) -> String,
) -> Result<String, String> {
    if remote.json {
        return Ok(format!("{answer:#}\n"));
    }
    understood(answer).map(words)
}

fn understood<T: DeserializeOwned>(answer: &Value) -> Result<T, String> {
    let read = T::deserialize(answer);
    read.map_err(|error| format!("the router's answer is not understood; is it of another version? {error}"))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// As a cell: `-` where there is nothing.
fn word(text: &str) -> String {
    if text.is_empty() { "-" } else { text }.to_owned()
}

fn optional(value: Option<&impl ToString>) -> String {
    word(&value.map(ToString::to_string).unwrap_or_default())
}

fn member_table(members: &[MemberView]) -> String {
    let mut table = Table::new(&[
        "NAME",
        "ADDRESS",
        "ROLE",
        "STATE",
        "STATUS",
        "ADMIN",
        "WEIGHT",
        "ZONE",
        "TL",
        "LAG",
        "SESSIONS",
        "CHECK",
        "ROUTES",
        "LAST CHECK",
    ])
    .right(&["WEIGHT", "TL", "LAG", "SESSIONS"]);
    for member in members {
        let fit = member.routes.iter().filter(|route| route.fit);
        let routes: Vec<&str> = fit.map(|route| route.route.as_str()).collect();
        let address = match (member.host.as_str(), member.port) {
            ("", _) => "-".to_owned(),
            (host, port) if host.contains(':') => format!("[{host}]:{port}"),
            (host, port) => format!("{host}:{port}"),
        };
        table.row(vec![
            word(&member.name),
            address,
            optional(member.role.as_ref()),
            word(&member.state),
            member.status.to_string(),
            word(&member.admin),
            member.weight.to_string(),
            optional(member.zone.as_ref()),
            optional(member.timeline.as_ref()),
            optional(member.lag.map(bytes).as_ref()),
            member.sessions.to_string(),
            word(&member.check.status),
            word(&routes.join(",")),
            optional(member.check.text.as_ref()),
        ]);
    }
    table.text()
}

fn session_table(sessions: &[SessionView]) -> String {
    let mut table = Table::new(&[
        "ID", "CLIENT", "USER", "DATABASE", "ROUTE", "MEMBER", "PID", "STATE", "AGE", "XACTS", "IN", "OUT",
        "TLS", "PROCESS",
    ])
    .right(&["ID", "PID", "AGE", "XACTS", "IN", "OUT", "PROCESS"]);
    for session in sessions {
        table.row(vec![
            session.id.to_string(),
            word(&session.client),
            word(&session.user),
            word(&session.database),
            word(&session.route),
            word(&session.member),
            session.process_id.to_string(),
            match &session.ending {
                None => session.state.to_string(),
                Some(ending) => format!("{} (ending: {ending})", session.state),
            },
            age(session.age_s),
            session.transactions.to_string(),
            bytes(session.bytes_up),
            bytes(session.bytes_down),
            optional(session.tls.as_ref()),
            optional((session.router_process_id > 0).then_some(&session.router_process_id)),
        ]);
    }
    table.text()
}

/// `512`, `1.5k`, `20M`, `3G`
fn bytes(amount: u64) -> String {
    let units = [("G", 1_u64 << 30), ("M", 1 << 20), ("k", 1 << 10)];
    match units.iter().find(|(_, size)| amount >= *size) {
        Some((unit, size)) => {
            let tenths = u128::from(amount) * 10 / u128::from(*size);
            if tenths < 100 {
                format!("{}.{}{unit}", tenths / 10, tenths % 10)
            } else {
                format!("{}{unit}", tenths / 10)
            }
        }
        None => amount.to_string(),
    }
}

/// `12s`, `5m12s`, `3h5m`, `2d3h`
fn age(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, minutes) => format!("{minutes}m{}s", seconds % 60),
        (0, hours, minutes) => format!("{hours}h{}m", minutes % 60),
        (days, hours, _) => format!("{days}d{}h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_and_ages_are_short() {
        let shown = [0, 1023, 1536, 10_240, 20 << 20, 3 << 30].map(bytes);
        assert_eq!(shown, ["0", "1023", "1.5k", "10k", "20M", "3.0G"]);
        let shown = [12, 312, 11_100, 183_600].map(age);
        assert_eq!(shown, ["12s", "5m12s", "3h5m", "2d3h"]);
    }

    #[test]
    fn a_member_is_one_aligned_line() {
        let member = json!({
            "name": "db1", "cluster": "main", "host": "10.0.0.1", "port": 5432, "role": "replica", "leader": false,
            "state": "streaming", "status": "DRAIN", "admin": "drain", "weight": 1, "zone": null, "timeline": 3, "lag": 0,
            "lag_seconds": null, "tags": {}, "sessions": 2,
            "check": {"status": "L7OK", "text": "answered in 0.5 ms", "in_a_row": 2, "age_ms": 1},
            "routes": [{"route": "read-write", "fit": false, "reason": "is being drained"}],
        });
        let member = understood(&member).expect("a member");
        let text = member_table(&[member]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2);
        for (heading, cell) in [("STATUS", "DRAIN"), ("CHECK", "L7OK"), ("ADMIN", "drain")] {
            assert_eq!(
                lines[0].find(heading),
                lines[1].find(&format!(" {cell} ")).map(|at| at + 1),
                "{text}"
            );
        }
    }

    fn member_named(name: &str, leader: bool, admin: &str) -> MemberView {
        let member = json!({
            "name": name, "cluster": "main", "host": "10.0.0.1", "port": 5432, "role": "leader", "leader": leader,
            "state": "running", "status": "MAINT", "admin": admin, "weight": 1, "zone": null, "timeline": 3, "lag": null,
            "lag_seconds": null, "tags": {}, "sessions": 0,
            "check": {"status": "L7OK", "text": null, "in_a_row": 2, "age_ms": 1}, "routes": [],
        });
        understood(&member).expect("a member")
    }

    #[test]
    fn remarks_say_what_the_table_does_not() {
        let cluster = json!({
            "name": "main", "leader": null, "no_leader": null, "members": ["db1"], "paused": true, "version": 1,
            "source": {"disagreement": null, "error": null, "reachable": true}, "system_identifier": null,
        });
        let cluster: ClusterSummary = understood(&cluster).expect("a cluster");
        let members = [
            member_named("db1", true, "maint"),
            member_named("db2", false, "maint"),
        ];
        let told = remarks(Some(&cluster), &members);
        let lines: Vec<&str> = told.lines().collect();
        assert_eq!(lines.len(), 2, "{told}");
        assert!(lines[0].starts_with("the leader db1 is in maintenance"), "{told}");
        assert!(lines[1].starts_with("Patroni is paused"), "{told}");
        assert_eq!(remarks(None, &[member_named("db1", true, "ready")]), "");
    }

    #[test]
    fn numbers_of_sessions() {
        assert_eq!(sessions_in_words(1), "1 session");
        assert_eq!(sessions_in_words(2), "2 sessions");
        let told = session_id("abc").expect_err("no number");
        assert!(told.contains("`trunkline sessions` shows it"), "{told}");
    }

    #[test]
    fn weights() {
        assert_eq!(weight("256").map(|weight| weight.0), Ok(Some(256)));
        assert_eq!(weight("default").map(|weight| weight.0), Ok(None));
        for text in ["257", "-1", "", "50%"] {
            assert!(weight(text).is_err(), "{text}");
        }
    }
}
