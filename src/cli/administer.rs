//! `trunkline members`, `drain`, `maint`, `ready`, `weight`, `routes`, `disable`, `enable`,
//! `sessions`, `pools`, `servers`, `reconnect`, `close`, `kill`, `forget-identity` and `router`: a
//! running router, administered from a shell, in HAProxy's words.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command's answer to the person who runs it"
)]

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::exist::exist;
use super::plain::plain_json;
use super::remote::{Remote, Router, encoded};
use super::table::Table;
use super::tables::{held_beside_pools, member_table, pool_table, route_table, server_table, session_table};
use super::words::{counted, time_up_to};
use crate::admin::{
    ClusterSummary, HoldView, MemberView, PoolView, RouteView, RouterView, ServerConnectionView, SessionView,
};

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
    /// Show the routes: whether they get new sessions, and which members may serve them.
    Routes {
        #[command(flatten)]
        remote: Remote,
    },
    /// Give a route no new sessions: clients get an error at their login; its sessions go on.
    Disable {
        #[command(flatten)]
        route: NamedRoute,
    },
    /// Give a route new sessions again.
    Enable {
        #[command(flatten)]
        route: NamedRoute,
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
        /// Only those of this route.
        #[arg(long, value_name = "NAME")]
        route: Option<String>,
    },
    /// Show the pools: their connections to each member, and the sessions that wait.
    Pools {
        #[command(flatten)]
        remote: Remote,
        /// Only those of this route.
        #[arg(long, value_name = "NAME")]
        route: Option<String>,
    },
    /// Show the server connections: those of sessions, and those that are idle in pools.
    Servers {
        #[command(flatten)]
        remote: Remote,
        /// Only those to this member.
        #[arg(long, value_name = "NAME")]
        member: Option<String>,
        /// Only those of this route.
        #[arg(long, value_name = "NAME")]
        route: Option<String>,
    },
    /// Replace server connections of pools: idle ones close now, the others when their session
    /// gives them back.
    #[command(group = clap::ArgGroup::new("which").required(true).args(["member", "route", "all"]))]
    Reconnect {
        #[command(flatten)]
        remote: Remote,
        /// Those to this member.
        #[arg(long, value_name = "NAME")]
        member: Option<String>,
        /// Those of this route.
        #[arg(long, value_name = "NAME")]
        route: Option<String>,
        /// All.
        #[arg(long)]
        all: bool,
    },
    /// End the sessions on a member at their next transaction end.
    Close {
        #[command(flatten)]
        member: Named,
        /// Cut the remaining sessions after this time, up to 24h: `30s`, `2m`; a number alone is
        /// seconds. It counts in whole seconds, rounded up.
        #[arg(long, value_name = "TIME", conflicts_with = "now", value_parser = |text: &str| time_up_to(text, 86_400))]
        grace: Option<Duration>,
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

#[derive(Debug, Args)]
pub(super) struct NamedRoute {
    /// The route's name.
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

/// Nobody is cut before the time is over.
fn whole_seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
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
        Administer::Routes { remote } => {
            let all = remote.router()?.look("/api/v1/routes")?;
            printed(remote, &all, |all: Vec<RouteView>| route_table(&all))
        }
        Administer::Disable { route } => set_route(route, "disable"),
        Administer::Enable { route } => set_route(route, "enable"),
        Administer::Sessions {
            remote,
            member,
            user,
            route,
        } => {
            let query = remote.query(&[
                ("member", member.as_deref()),
                ("user", user.as_deref()),
                ("route", route.as_deref()),
            ]);
            let router = remote.router()?;
            let all = router.look(&format!("/api/v1/sessions{query}"))?;
            if list(&all).is_empty() {
                exist(&router, remote, member.as_deref(), route.as_deref())?;
            }
            printed(remote, &all, |all: Vec<SessionView>| session_table(&all))
        }
        Administer::Close { member, grace, now } => {
            let body = match (now, grace) {
                (true, _) => json!({"when": "now"}),
                (false, Some(grace)) => json!({"when": "boundary", "grace_s": whole_seconds(*grace)}),
                (false, None) => json!({"when": "boundary"}),
            };
            let answer = post(member, "close-sessions", Some(&body))?;
            printed(&member.remote, &answer, |answer: Value| {
                let ending = answer["sessions"].as_u64().unwrap_or_default();
                let verb = if ending == 1 { "is" } else { "are" };
                format!("{}: {} {verb} ending\n", member.name, counted(ending, "session"))
            })
        }
        Administer::Pools { remote, route } => {
            let query = remote.query(&[("route", route.as_deref())]);
            let router = remote.router()?;
            let all = router.look(&format!("/api/v1/pools{query}"))?;
            if list(&all).is_empty() {
                exist(&router, remote, None, route.as_deref())?;
            }
            let held = || router.look("/api/v1/holds").and_then(|held| understood(&held));
            printed(remote, &all, |all: Vec<PoolView>| {
                // A router of an older version does not say it.
                let held: Vec<HoldView> = held().unwrap_or_default();
                pool_table(&all) + &held_beside_pools(&held, route.as_deref())
            })
        }
        Administer::Servers {
            remote,
            member,
            route,
        } => {
            let query = remote.query(&[("member", member.as_deref()), ("route", route.as_deref())]);
            let router = remote.router()?;
            let all = router.look(&format!("/api/v1/servers{query}"))?;
            if list(&all).is_empty() {
                exist(&router, remote, member.as_deref(), route.as_deref())?;
            }
            printed(remote, &all, |all: Vec<ServerConnectionView>| server_table(&all))
        }
        Administer::Reconnect {
            remote,
            member,
            route,
            ..
        } => {
            let body = match (member, route) {
                (Some(member), _) => json!({"member": member}),
                (None, Some(route)) => json!({"route": route}),
                (None, None) => json!({"all": true}),
            };
            let path = format!("/api/v1/pools/reconnect{}", remote.query(&[]));
            let answer = remote.router()?.change(&path, Some(&body))?;
            printed(remote, &answer, |answer: Value| {
                let count = answer["connections"].as_u64().unwrap_or_default();
                let verb = if count == 1 { "is" } else { "are" };
                format!("{} {verb} replaced\n", counted(count, "connection"))
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

fn set_route(route: &NamedRoute, action: &str) -> Result<String, String> {
    let path = format!("/api/v1/routes/{}/{action}", encoded(&route.name));
    let answer = route.remote.router()?.change(&path, None)?;
    printed(&route.remote, &answer, |route: RouteView| {
        let sessions = counted(route.sessions, "session");
        match (route.admin.as_str(), route.sessions) {
            ("disabled", 0) => format!("{}: disabled\n", route.name),
            ("disabled", 1) => format!("{}: disabled; {sessions} goes on\n", route.name),
            ("disabled", _) => format!("{}: disabled; {sessions} go on\n", route.name),
            ("enabled", _) if route.paused_s.is_some() => format!(
                "{0}: enabled, and still paused: its clients wait until `trunkline unpause {0}`\n",
                route.name
            ),
            (admin, _) => format!("{}: {admin}\n", route.name),
        }
    })
}

fn router_table(router: &RouterView) -> String {
    let mut table = Table::new(&["STATE", "SESSIONS", "PID", "VERSION"]).right(&["SESSIONS", "PID"]);
    table.row(vec![
        router.state.clone(),
        router.sessions.to_string(),
        router.process_id.to_string(),
        router.version.clone(),
    ]);
    let mut text = table.text();
    for hold in &router.holds {
        // Writing to a String does not fail.
        let _ = writeln!(text, "clients are held: {}", hold.in_words());
    }
    if !router.disabled_routes.is_empty() {
        // Writing to a String does not fail.
        let _ = writeln!(
            text,
            "disabled routes, which get no new sessions until `trunkline enable NAME`: {}",
            router.disabled_routes.join(", ")
        );
    }
    text
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
        Ok(member) => {
            let text = member_table(std::slice::from_ref(&member));
            text + drained_leader(&member)
        }
        Err(_) => format!("{name}: it is set, and the cluster has no such member now\n"),
    }
}

/// What a drain of the leader means to those that are there.
fn drained_leader(member: &MemberView) -> &'static str {
    if member.leader && member.admin == "drain" {
        "it is the leader: sessions with a pool in transaction mode or resume: tracked wait now, and get 57P03 after \
         hold.timeout; `trunkline ready` lets them go on\n"
    } else {
        ""
    }
}

/// Of one cluster, or of each after its name.
fn members(remote: &Remote) -> Result<String, String> {
    let router = remote.router()?;
    if remote.cluster.is_some() {
        let all = router.look(&format!("/api/v1/members{}", remote.query(&[])))?;
        if remote.json {
            return Ok(plain_json(format_args!("{all:#}\n")));
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
        return Ok(plain_json(format_args!("{:#}\n", json!(all))));
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

pub(super) fn clusters(router: &Router) -> Result<Vec<ClusterSummary>, String> {
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
        return Ok(plain_json(format_args!("{answer:#}\n")));
    }
    understood(answer).map(words)
}

pub(super) fn understood<T: DeserializeOwned>(answer: &Value) -> Result<T, String> {
    let read = T::deserialize(answer);
    read.map_err(|error| format!("the router's answer is not understood; is it of another version? {error}"))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert!(drained_leader(&member_named("db1", true, "drain")).contains("57P03 after hold.timeout"));
        assert_eq!(drained_leader(&member_named("db2", false, "drain")), "");
    }

    #[test]
    fn numbers() {
        let seconds = [0, 1, 1000, 1001].map(|millis| whole_seconds(Duration::from_millis(millis)));
        assert_eq!(seconds, [0, 1, 1, 2]);
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
