//! `/connection`, `/node` and `/group`: the paths of EDB's Connection Manager.
//!
//! No body of the first two contains `true` unless that is the answer: names and reasons go into
//! headers.

use std::sync::Arc;

use axum::http::{StatusCode, Uri};
use serde_json::{Value, json};

use super::super::agent::AgentState;
use super::super::handles::{ClusterView, Phase};
use super::super::member_checks::{self, CheckResult};
use super::answer::JsonAnswer;
use super::app::{App, Params, Subject};
use crate::cluster::snapshot::{Leader, Member, MemberName, Snapshot};
use crate::config::{AgentSubject, Route};
use crate::routing;
use crate::session::disabled::DisabledRoutes;

#[derive(Debug, Clone, Copy)]
pub(super) enum Question {
    ReadWrite,
    ReadOnly,
}

impl Question {
    fn ask(self, view: &ClusterView, snapshot: &Snapshot, member: &Member) -> CheckResult {
        match self {
            Self::ReadWrite => member_checks::is_leader(snapshot, member),
            Self::ReadOnly => member_checks::is_fit_replica(snapshot, view.default_read_only(), member),
        }
    }
}

/// `/node/is-read-write`, `/node/is-read-only`.
pub(super) fn local(app: &App, uri: &Uri, question: Question) -> JsonAnswer {
    let (index, view) = match app.cluster(&Params::of(uri)) {
        Ok(found) => found,
        Err(answer) => return answer,
    };
    let snapshot = view.snapshot.borrow().clone();
    match app.local(index, &snapshot) {
        Subject::Member(member) => {
            JsonAnswer::boolean(question.ask(view, &snapshot, member)).about(member.name.as_str())
        }
        Subject::NotYet(why) => JsonAnswer::boolean(Err(why.into())),
        Subject::Missing(hint) => JsonAnswer::not_found(hint),
    }
}

/// `/node/NAME/…`; `name` is `None` if it is not UTF-8, and then no member has it.
pub(super) fn named(app: &App, uri: &Uri, name: Option<&str>, question: Question) -> JsonAnswer {
    let (_, view) = match app.cluster(&Params::of(uri)) {
        Ok(found) => found,
        Err(answer) => return answer,
    };
    let snapshot = view.snapshot.borrow().clone();
    match name.and_then(|name| snapshot.member(&MemberName::new(name))) {
        Some(member) => {
            JsonAnswer::boolean(question.ask(view, &snapshot, member)).about(member.name.as_str())
        }
        None if snapshot.members.is_empty() => JsonAnswer::boolean(Err("no members are known yet".into())),
        None => JsonAnswer::not_found("the cluster has no member of this name"),
    }
}

pub(super) fn is_ready(app: &App, uri: &Uri) -> JsonAnswer {
    let disabled = &app.handles.disabled_routes;
    readiness(app, uri, |view, strict| {
        let rw = read_write(view, strict, disabled);
        rw.or_else(|rw| read_only(view, false, disabled).map_err(|ro| format!("{rw}; {ro}")))
    })
}

pub(super) fn is_ready_rw(app: &App, uri: &Uri) -> JsonAnswer {
    let disabled = &app.handles.disabled_routes;
    readiness(app, uri, |view, strict| read_write(view, strict, disabled))
}

pub(super) fn is_ready_ro(app: &App, uri: &Uri) -> JsonAnswer {
    let disabled = &app.handles.disabled_routes;
    readiness(app, uri, |view, strict| read_only(view, strict, disabled))
}

fn readiness(app: &App, uri: &Uri, ready: impl Fn(&ClusterView, bool) -> CheckResult) -> JsonAnswer {
    let params = Params::of(uri);
    let view = match app.cluster(&params) {
        Ok((_, view)) => view,
        Err(answer) => return answer,
    };
    let verdict = match app.handles.readiness.phase().not_ready() {
        Some(why) => Err(why.into()),
        None => ready(view, params.is_set("strict")),
    };
    let note = member_checks::full_leader(&view.snapshot.borrow()).filter(|_| verdict.is_ok());
    let answer = JsonAnswer::boolean(verdict);
    match note {
        Some(note) => answer.because(note),
        None => answer,
    }
}

/// Can a read-write session be served, or, unless `strict`, held until it can?
fn read_write(view: &ClusterView, strict: bool, disabled: &DisabledRoutes) -> CheckResult {
    if view.read_write.is_empty() {
        return Err("no listener has a read-write route to this cluster".into());
    }
    let enabled = enabled(&view.read_write, disabled)?;
    let snapshot = view.snapshot.borrow().clone();
    hears(&snapshot)?;
    let serves = |route: &Arc<Route>| routing::check_available(&snapshot, route).is_ok();
    if enabled.iter().copied().any(serves) || !strict && enabled.iter().any(|route| (view.holds)(route)) {
        return Ok(());
    }
    Err(match &snapshot.leader {
        Leader::Verified { member, .. } => match snapshot.member(member) {
            Some(leader) => {
                let holds = enabled.iter().any(|route| (view.holds)(route));
                member_checks::why_leader_waits(&snapshot, leader, holds)
            }
            None => format!("no leader: {member} is not in the list of members"),
        },
        Leader::None(why) => format!("no leader: {why}"),
    })
}

/// A router that is cut off refuses new clients, before it has lost each member.
fn hears(snapshot: &Snapshot) -> CheckResult {
    let nothing = || "the router hears nothing of the cluster".to_owned();
    (!snapshot.is_cut_off()).then_some(()).ok_or_else(nothing)
}

/// The routes that an operator has not disabled.
///
/// # Errors
/// There is none.
fn enabled<'a>(routes: &'a [Arc<Route>], disabled: &DisabledRoutes) -> Result<Vec<&'a Arc<Route>>, String> {
    let enabled = routes.iter().filter(|route| !disabled.has(&route.name));
    let enabled: Vec<_> = enabled.collect();
    match (enabled.is_empty(), routes) {
        (true, [route]) => Err(format!("the route {} is disabled", route.name)),
        (true, _) => Err("its routes are disabled".into()),
        (false, _) => Ok(enabled),
    }
}

/// As [`read_write`], for a read-only session.
fn read_only(view: &ClusterView, strict: bool, disabled: &DisabledRoutes) -> CheckResult {
    if view.read_only.is_empty() {
        return Err("no listener has a read-only route to this cluster".into());
    }
    let enabled = enabled(&view.read_only, disabled)?;
    let snapshot = view.snapshot.borrow().clone();
    hears(&snapshot)?;
    let serves = |route: &Arc<Route>| routing::check_available(&snapshot, route).is_ok();
    if enabled.iter().copied().any(serves) || !strict && enabled.iter().any(|route| (view.holds)(route)) {
        return Ok(());
    }
    let can_lead = enabled.iter().any(|route| route.takes_leader());
    Err(if can_lead {
        "no server is fit to read from"
    } else {
        "no replica is fit to read from"
    }
    .into())
}

/// The answer to HAProxy's agent check.
pub(super) fn agent(app: &App, about: AgentSubject) -> AgentState {
    match about {
        AgentSubject::Router => {
            let serves = |disabled: &DisabledRoutes| {
                let mut clusters = app.handles.clusters.iter();
                let serves = |view: &ClusterView| {
                    read_write(view, false, disabled).or_else(|_| read_only(view, false, disabled))
                };
                clusters.any(|view| serves(view).is_ok())
            };
            let phase = app.handles.readiness.phase();
            match AgentState::of_router(phase, serves(&app.handles.disabled_routes)) {
                // Its sessions go on, so it is not down.
                AgentState::Down(_) if phase == Phase::Accepting && serves(&DisabledRoutes::default()) => {
                    AgentState::Drain
                }
                state => state,
            }
        }
        AgentSubject::LocalMember => {
            let Some(view) = app.handles.clusters.first() else {
                return AgentState::Down("no cluster is configured");
            };
            let snapshot = view.snapshot.borrow().clone();
            match app.local(0, &snapshot) {
                Subject::Member(member) => AgentState::of_member(&snapshot, member),
                Subject::NotYet(why) => AgentState::Down(why),
                Subject::Missing(_) => AgentState::Down("there is no local member"),
            }
        }
    }
}

/// `/group/read-write-info`: the verified leader, or an empty array.
pub(super) fn read_write_info(app: &App, uri: &Uri) -> JsonAnswer {
    info(app, uri, |_, snapshot| {
        member_checks::leader(snapshot).into_iter().collect()
    })
}

/// `/group/read-only-info`: the fit replicas by name.
pub(super) fn read_only_info(app: &App, uri: &Uri) -> JsonAnswer {
    info(app, uri, |view, snapshot| {
        member_checks::fit_replicas(snapshot, view.default_read_only()).collect()
    })
}

fn info(
    app: &App,
    uri: &Uri,
    pick: impl for<'a> Fn(&'a ClusterView, &'a Snapshot) -> Vec<&'a Member>,
) -> JsonAnswer {
    let view = match app.cluster(&Params::of(uri)) {
        Ok((_, view)) => view,
        Err(answer) => return answer,
    };
    let snapshot = view.snapshot.borrow().clone();
    let members: Vec<Value> = pick(view, &snapshot)
        .into_iter()
        .map(|member| entry(view, &snapshot, member))
        .collect();
    JsonAnswer::json(StatusCode::OK, &Value::Array(members))
}

fn entry(view: &ClusterView, snapshot: &Snapshot, member: &Member) -> Value {
    let is_leader = member_checks::is_leader(snapshot, member).is_ok();
    json!({
        "id": stable_id(&member.name),
        "name": member.name.as_str(),
        "host": member.host,
        "port": member.port,
        "dbname": view.dbname,
        "role": if is_leader { "leader" } else { "replica" },
        "timeline": member.health.facts.as_ref().map(|facts| facts.timeline),
        "lag": member.measured.filter(|_| !is_leader).map(|lag| lag.bytes),
        "weight": member.weight,
        "zone": member.zone.as_deref(),
    })
}

/// The same number for the same name, everywhere and always: the first four bytes of its SHA-256,
/// big-endian, without the sign bit, and never 0.
pub(super) fn stable_id(name: &MemberName) -> u32 {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, name.as_str().as_bytes());
    let head: [u8; 4] = digest.as_ref()[..4].try_into().expect("SHA-256 has 32 bytes");
    (u32::from_be_bytes(head) & 0x7fff_ffff).max(1)
}
