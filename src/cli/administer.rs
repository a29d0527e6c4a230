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
use serde_json::{Value, json};

use super::remote::{Remote, Router, encoded};
use super::table::Table;

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
    /// Take a member out of service.
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
            let all = remote.router()?.look(&format!("/api/v1/sessions{query}"))?;
            Ok(printed(remote, &all, |all| session_table(list(all))))
        }
        Administer::Close { member, grace, now } => {
            let body = match (now, grace) {
                (true, _) => json!({"when": "now"}),
                (false, Some(grace)) => json!({"when": "boundary", "grace_s": grace}),
                (false, None) => json!({"when": "boundary"}),
            };
            let answer = post(member, "close-sessions", Some(&body))?;
            Ok(printed(&member.remote, &answer, |answer| {
                format!("{}: {} sessions are ending\n", member.name, answer["sessions"])
            }))
        }
        Administer::Router { action } => router(action),
        Administer::ForgetIdentity { name, remote } => {
            let path = format!("/api/v1/clusters/{}/forget-identity", encoded(name));
            let answer = remote.router()?.change(&path, None)?;
            Ok(printed(remote, &answer, |answer| {
                match answer["forgotten"].as_str() {
                    Some(identifier) => format!("{name}: system identifier {identifier} is forgotten\n"),
                    None => format!("{name}: no system identifier was known\n"),
                }
            }))
        }
        Administer::Kill { remote, id } => {
            let session = remote
                .router()?
                .change(&format!("/api/v1/sessions/{id}/kill"), None)?;
            Ok(printed(remote, &session, |session| {
                session_table(std::slice::from_ref(session))
            }))
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
    Ok(printed(remote, &state, router_table))
}

fn router_table(state: &Value) -> String {
    let mut table = Table::new(&["STATE", "SESSIONS", "PID", "VERSION"]).right(&["SESSIONS", "PID"]);
    table.row(
        ["state", "sessions", "process_id", "version"]
            .map(|key| word(&state[key]))
            .to_vec(),
    );
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
    Ok(printed(&member.remote, &answer, |answer| {
        member_table(std::slice::from_ref(answer))
    }))
}

/// Of one cluster, or of each after its name.
fn members(remote: &Remote) -> Result<String, String> {
    let router = remote.router()?;
    if remote.cluster.is_some() {
        let all = router.look(&format!("/api/v1/members{}", remote.query(&[])))?;
        return Ok(printed(remote, &all, |all| member_table(list(all))));
    }
    let clusters = router.look("/api/v1/clusters")?;
    let mut found = Vec::new();
    for cluster in list(&clusters) {
        let name = cluster["name"].as_str().unwrap_or_default();
        let members = of_cluster(&router, name)?;
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
            let _ = writeln!(text, "{lead}cluster {}", word(&cluster["name"]));
        }
        text.push_str(&member_table(list(members)));
        if let Some(why) = cluster["no_leader"].as_str() {
            let _ = writeln!(text, "no leader: {why}");
        }
        if let Some(why) = cluster["source"]["error"].as_str() {
            let _ = writeln!(text, "the list of members may be out of date: {why}");
        }
    }
    Ok(text)
}

fn of_cluster(router: &Router, name: &str) -> Result<Value, String> {
    router.look(&format!("/api/v1/members?cluster={}", encoded(name)))
}

fn printed(remote: &Remote, answer: &Value, table: impl FnOnce(&Value) -> String) -> String {
    if remote.json {
        format!("{answer:#}\n")
    } else {
        table(answer)
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// As a cell: `-` where there is nothing.
fn word(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) if text.is_empty() => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn member_table(members: &[Value]) -> String {
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
        let routes: Vec<&str> = list(&member["routes"])
            .iter()
            .filter(|route| route["fit"] == true)
            .filter_map(|route| route["route"].as_str())
            .collect();
        let address = match (member["host"].as_str(), member["port"].as_u64()) {
            (Some(host), Some(port)) if !host.is_empty() && host.contains(':') => format!("[{host}]:{port}"),
            (Some(host), Some(port)) if !host.is_empty() => format!("{host}:{port}"),
            _ => "-".to_owned(),
        };
        let routes = if routes.is_empty() {
            "-".to_owned()
        } else {
            routes.join(",")
        };
        table.row(vec![
            word(&member["name"]),
            address,
            word(&member["role"]),
            word(&member["state"]),
            word(&member["status"]),
            word(&member["admin"]),
            word(&member["weight"]),
            word(&member["zone"]),
            word(&member["timeline"]),
            member["lag"].as_u64().map_or_else(|| "-".to_owned(), bytes),
            word(&member["sessions"]),
            word(&member["check"]["status"]),
            routes,
            word(&member["check"]["text"]),
        ]);
    }
    table.text()
}

fn session_table(sessions: &[Value]) -> String {
    let mut table = Table::new(&[
        "ID", "CLIENT", "USER", "DATABASE", "ROUTE", "MEMBER", "PID", "STATE", "AGE", "XACTS", "IN", "OUT",
        "TLS",
    ])
    .right(&["ID", "PID", "AGE", "XACTS", "IN", "OUT"]);
    for session in sessions {
        let amount = |key: &str| session[key].as_u64().map_or_else(|| "-".to_owned(), bytes);
        table.row(vec![
            word(&session["id"]),
            word(&session["client"]),
            word(&session["user"]),
            word(&session["database"]),
            word(&session["route"]),
            word(&session["member"]),
            word(&session["process_id"]),
            match &session["ending"] {
                Value::Null => word(&session["state"]),
                ending => format!("{} (ending: {})", word(&session["state"]), word(ending)),
            },
            session["age_s"].as_u64().map_or_else(|| "-".to_owned(), age),
            word(&session["transactions"]),
            amount("bytes_up"),
            amount("bytes_down"),
            word(&session["tls"]),
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
            "name": "db1", "host": "10.0.0.1", "port": 5432, "role": "replica", "state": "streaming",
            "status": "DRAIN", "admin": "drain", "weight": 1, "zone": null, "timeline": 3, "lag": 0, "sessions": 2,
            "check": {"status": "L7OK", "text": "answered in 0.5 ms"},
            "routes": [{"route": "read-write", "fit": false, "reason": "is being drained"}],
        });
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

    #[test]
    fn weights() {
        assert_eq!(weight("256").map(|weight| weight.0), Ok(Some(256)));
        assert_eq!(weight("default").map(|weight| weight.0), Ok(None));
        for text in ["257", "-1", "", "50%"] {
            assert!(weight(text).is_err(), "{text}");
        }
    }
}
