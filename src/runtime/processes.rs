//! All processes of this router as one. The requests of an operator to this process reach the
//! sessions of the processes before it, too. Those processes carry out the orders that this one
//! passes on.
//!
//! This process is asked first. It asks the others over [`crate::session::generations`], each at
//! most once, and they pass nothing on. The answer names a process that cannot be asked. Only its
//! own operators change the state of the serving process: it refuses to have a member's state set
//! by another process.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tracing::info;

use super::administration::Administration;
use crate::admin::{Change, Ending, Gathered, Operations, PoolView, Reconnection, ReloadAnswer, SessionView};
use crate::cluster::Busy;
use crate::cluster::snapshot::{AdminState, MemberName};
use crate::session::Shared;
use crate::session::cancel;
use crate::session::generations::totals::{MemberLoad, MemberSessions, Moved, RouteSessions, Totals};
use crate::session::generations::{Answer, CancelAnswer, Generations, Heard, RequestKind, Responder};
use crate::wire::startup::CancelRequest;

/// A list of sessions is cut this much below the protocol's limit.
const SPARE: usize = 1024;

/// How a session ends, in the form that another process reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "when")]
enum EndingOrder {
    Now,
    Boundary { grace_s: Option<u64> },
}

impl From<Ending> for EndingOrder {
    fn from(ending: Ending) -> Self {
        match ending {
            Ending::Now => Self::Now,
            Ending::AtBoundary { grace } => Self::Boundary {
                grace_s: grace.map(|grace| grace.as_secs()),
            },
        }
    }
}

impl From<EndingOrder> for Ending {
    fn from(order: EndingOrder) -> Self {
        match order {
            EndingOrder::Now => Self::Now,
            EndingOrder::Boundary { grace_s } => Self::AtBoundary {
                grace: grace_s.map(Duration::from_secs),
            },
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct KillOrder {
    id: u64,
    ending: EndingOrder,
}

#[derive(Debug, Serialize, Deserialize)]
struct CloseOrder {
    cluster: String,
    member: String,
    ending: EndingOrder,
}

#[derive(Debug, Serialize, Deserialize)]
struct Closed {
    sessions: usize,
}

#[derive(Debug, Serialize, Deserialize)]
struct MemberOrder {
    cluster: String,
    member: String,
    change: ChangeOrder,
}

/// A change of a member, in the form that another process reads.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ChangeOrder {
    State(String),
    Weight(Option<u16>),
}

impl From<Change> for ChangeOrder {
    fn from(change: Change) -> Self {
        match change {
            Change::Admin(state) => Self::State(state.as_str().to_owned()),
            Change::Weight(weight) => Self::Weight(weight),
        }
    }
}

impl ChangeOrder {
    /// `None`: this release does not know the state.
    fn change(&self) -> Option<Change> {
        match self {
            Self::State(state) => AdminState::named(state).map(Change::Admin),
            Self::Weight(weight) => Some(Change::Weight(*weight)),
        }
    }
}

#[derive(Debug, Serialize)]
struct SessionList<'a> {
    sessions: &'a [SessionView],
    /// Sessions that did not fit.
    left_out: usize,
}

#[derive(Debug, Deserialize)]
struct ListedSessions {
    /// Each is read separately: another release may have other values.
    sessions: Vec<Value>,
    #[serde(default)]
    left_out: usize,
}

#[derive(Debug, Serialize)]
struct PoolList<'a> {
    pools: &'a [PoolView],
    /// Pools that did not fit.
    left_out: usize,
}

#[derive(Debug, Deserialize)]
struct ListedPools {
    pools: Vec<Value>,
    #[serde(default)]
    left_out: usize,
}

#[derive(Debug, Serialize, Deserialize)]
struct Reconnected {
    connections: usize,
}

/// Carries out the requests of other processes in this one.
pub(super) struct Local {
    pub(super) shared: Arc<Shared>,
    pub(super) administration: Arc<Administration>,
}

impl Responder for Local {
    fn cancel(&self, request: &CancelRequest) -> Option<BoxFuture<'static, CancelAnswer>> {
        cancel::for_generation(&self.shared, request)
    }

    fn order(&self, kind: RequestKind, body: &[u8]) -> Answer {
        match kind {
            RequestKind::Sessions => self.sessions(),
            RequestKind::Totals => done(&self.totals()),
            RequestKind::Kill => match serde_json::from_slice(body) {
                Ok(order) => self.kill(&order),
                Err(_) => Answer::Malformed,
            },
            RequestKind::Close => match serde_json::from_slice(body) {
                Ok(order) => self.close(&order),
                Err(_) => Answer::Malformed,
            },
            RequestKind::Member => match serde_json::from_slice(body) {
                Ok(order) => self.member(&order),
                Err(_) => Answer::Malformed,
            },
            RequestKind::Pools => self.pools(),
            RequestKind::Reconnect => match serde_json::from_slice(body) {
                Ok(which) => self.reconnect(&which),
                Err(_) => Answer::Malformed,
            },
            RequestKind::Hold | RequestKind::Release | RequestKind::Pause => {
                match serde_json::from_slice(body) {
                    Ok(request) => done(&self.shared.carry_out_here(&request)),
                    Err(_) => Answer::Malformed,
                }
            }
            RequestKind::Cancel => Answer::Unsupported,
        }
    }
}

impl Local {
    fn sessions(&self) -> Answer {
        let all = self.administration.sessions();
        let most = RequestKind::Sessions.limits().answer_bytes - SPARE;
        let mut listed = all.len();
        loop {
            let list = SessionList {
                sessions: &all[..listed],
                left_out: all.len() - listed,
            };
            match serde_json::to_vec(&list) {
                Ok(body) if body.len() <= most => return Answer::Done(body),
                Ok(_) => listed /= 2,
                Err(error) => return Answer::Refused(error.to_string()),
            }
        }
    }

    fn totals(&self) -> Totals {
        let routes = self.shared.registry.traffic_by_route();
        let routes: HashMap<String, Moved> = routes
            .into_iter()
            .map(|(route, moved)| (route.to_string(), moved.into()))
            .collect();
        let members = self.shared.occupancy.loads().into_iter();
        Totals {
            sessions: self
                .shared
                .metrics
                .sessions()
                .into_iter()
                .map(|(route, member, sessions)| RouteSessions {
                    route,
                    member,
                    sessions,
                })
                .collect(),
            members: members
                .map(|((cluster, member), connections)| {
                    let idle = self.shared.pools.idle_on(&cluster, &member);
                    MemberSessions {
                        cluster: cluster.to_string(),
                        member: member.as_str().to_owned(),
                        sessions: MemberLoad::of(connections, idle).sessions,
                        connections: Some(connections),
                    }
                })
                .collect(),
            moved: self.shared.registry.traffic().into(),
            routes,
            held: self.shared.occupancy.held_clients(),
        }
    }

    fn kill(&self, order: &KillOrder) -> Answer {
        match self.administration.end_session(order.id, order.ending.into()) {
            Some(session) => {
                info!(
                    session = session.id,
                    client = session.client,
                    "another process of this router passes on: end a session"
                );
                done(&session)
            }
            None => Answer::NotFound,
        }
    }

    fn close(&self, order: &CloseOrder) -> Answer {
        let (cluster, member) = (&*order.cluster, MemberName::new(order.member.as_str()));
        let ending = order.ending.into();
        let sessions = self.administration.end_sessions_on(cluster, &member, ending);
        info!(cluster, %member, sessions, "another process of this router passes on: end the sessions on a member");
        done(&Closed { sessions })
    }

    fn pools(&self) -> Answer {
        let mut pools = self.administration.pools();
        let most = RequestKind::Pools.limits().answer_bytes - SPARE;
        let all = pools.len();
        loop {
            let left_out = all - pools.len();
            match serde_json::to_vec(&PoolList {
                pools: &pools,
                left_out,
            }) {
                Ok(body) if body.len() <= most => return Answer::Done(body),
                Ok(_) => pools.truncate(pools.len() / 2),
                Err(error) => return Answer::Refused(error.to_string()),
            }
        }
    }

    fn reconnect(&self, which: &Reconnection) -> Answer {
        let connections = self.administration.reconnect(which);
        info!(
            connections,
            "another process of this router passes on: reconnect {which}"
        );
        done(&Reconnected { connections })
    }

    fn member(&self, order: &MemberOrder) -> Answer {
        let (cluster, member) = (&*order.cluster, MemberName::new(order.member.as_str()));
        let Some(change) = order.change.change() else {
            return Answer::Refused("this release does not know the state".to_owned());
        };
        match self.administration.follow(cluster, &member, change) {
            Ok(()) => {
                info!(cluster, %member, ?change, "another process of this router passes on: a member's state");
                Answer::Done(b"{}".to_vec())
            }
            Err(why) => Answer::Refused(why.to_string()),
        }
    }
}

fn done(value: &impl Serialize) -> Answer {
    match serde_json::to_vec(value) {
        Ok(body) => Answer::Done(body),
        Err(error) => Answer::Refused(error.to_string()),
    }
}

/// The actions of operators in all processes of this router.
#[derive(Debug)]
pub(super) struct AllProcesses {
    pub(super) administration: Arc<Administration>,
    pub(super) generations: Arc<Generations>,
}

impl AllProcesses {
    /// Asks the other processes. `read` makes a value of an answer, or returns the reason why there
    /// is none.
    async fn ask<T>(
        &self,
        kind: RequestKind,
        order: Value,
        mut read: impl FnMut(Answer) -> Result<Option<T>, String>,
    ) -> (Vec<T>, Vec<String>) {
        let (mut values, mut missing) = (Vec::new(), Vec::new());
        for heard in self.generations.ask(kind, order.to_string().as_bytes()).await {
            let Heard { answer, .. } = &heard;
            let read = match answer {
                Ok(answer) => read(answer.clone()),
                Err(error) => Err(error.to_string()),
            };
            match read {
                Ok(value) => values.extend(value),
                Err(why) => missing.push(heard.missing(&why)),
            }
        }
        (values, missing)
    }
}

/// The body of an answer as a value.
fn body<T: for<'de> Deserialize<'de>>(answer: &Answer) -> Result<Option<T>, String> {
    match answer {
        Answer::Done(body) => serde_json::from_slice(body)
            .map(Some)
            .map_err(|_| "its answer is malformed".to_owned()),
        Answer::NotFound => Ok(None),
        _ => Err("its answer is malformed".to_owned()),
    }
}

impl Operations for AllProcesses {
    fn refresh(&self) -> BoxFuture<'_, Vec<String>> {
        self.generations.refresh_totals().boxed()
    }

    fn sessions(&self) -> BoxFuture<'_, Gathered<Vec<SessionView>>> {
        async {
            let mut all = self.administration.sessions();
            let (lists, mut missing) = self
                .ask(RequestKind::Sessions, json!({}), |answer| {
                    body::<ListedSessions>(&answer)
                })
                .await;
            for list in lists {
                let listed = list.sessions.len();
                let before = all.len();
                all.extend(
                    list.sessions
                        .into_iter()
                        .filter_map(|row| serde_json::from_value(row).ok()),
                );
                let left_out = list.left_out + listed - (all.len() - before);
                if left_out > 0 {
                    missing.push(format!("{left_out} sessions of another process are not listed"));
                }
            }
            all.sort_unstable_by_key(|session| session.id);
            Gathered { value: all, missing }
        }
        .boxed()
    }

    fn session_count(&self) -> usize {
        let others = self.generations.totals().sessions();
        let others = others
            .values()
            .copied()
            .filter_map(|sessions| usize::try_from(sessions).ok());
        self.administration.session_count() + others.sum::<usize>()
    }

    fn load_of(&self, cluster: &str, member: &MemberName) -> MemberLoad {
        let others = self.generations.totals().load_of(cluster, member.as_str());
        self.administration.load_of(cluster, member).and(others)
    }

    fn end_session(&self, id: u64, ending: Ending) -> BoxFuture<'_, Gathered<Option<SessionView>>> {
        async move {
            if let Some(session) = self.administration.end_session(id, ending) {
                return Gathered::whole(Some(session));
            }
            let order = json!(KillOrder {
                id,
                ending: ending.into()
            });
            let (mut found, missing) = self
                .ask(RequestKind::Kill, order, |answer| body::<SessionView>(&answer))
                .await;
            match found.pop() {
                // The other processes do not have this session.
                Some(session) => Gathered::whole(Some(session)),
                None => Gathered { value: None, missing },
            }
        }
        .boxed()
    }

    fn end_sessions_on<'a>(
        &'a self,
        cluster: &'a str,
        member: &'a MemberName,
        ending: Ending,
    ) -> BoxFuture<'a, Gathered<usize>> {
        async move {
            let own = self.administration.end_sessions_on(cluster, member, ending);
            let order = json!(CloseOrder {
                cluster: cluster.to_owned(),
                member: member.as_str().to_owned(),
                ending: ending.into(),
            });
            let (closed, missing) = self
                .ask(RequestKind::Close, order, |answer| body::<Closed>(&answer))
                .await;
            let others = closed.iter().map(|closed| closed.sessions);
            Gathered {
                value: own + others.sum::<usize>(),
                missing,
            }
        }
        .boxed()
    }

    fn pools(&self) -> BoxFuture<'_, Gathered<Vec<PoolView>>> {
        async {
            let mut all = self.administration.pools();
            let (lists, mut missing) = self
                .ask(RequestKind::Pools, json!({}), |answer| {
                    body::<ListedPools>(&answer)
                })
                .await;
            for list in lists {
                let (listed, before) = (list.pools.len(), all.len());
                let read = list.pools.into_iter().map(serde_json::from_value);
                all.extend(read.filter_map(Result::ok));
                let left_out = list.left_out + listed - (all.len() - before);
                if left_out > 0 {
                    missing.push(format!("{left_out} pools of another process are not listed"));
                }
            }
            Gathered { value: all, missing }
        }
        .boxed()
    }

    fn reconnect<'a>(&'a self, which: &'a Reconnection) -> BoxFuture<'a, Gathered<usize>> {
        async move {
            let own = self.administration.reconnect(which);
            let (others, missing) = self
                .ask(RequestKind::Reconnect, json!(which), |answer| {
                    body::<Reconnected>(&answer)
                })
                .await;
            let others = others.iter().map(|other| other.connections);
            Gathered {
                value: own + others.sum::<usize>(),
                missing,
            }
        }
        .boxed()
    }

    fn has_kept(&self, cluster: &str, member: &MemberName) -> bool {
        self.administration.has_kept(cluster, member)
    }

    fn administer<'a>(
        &'a self,
        cluster: &'a str,
        member: &'a MemberName,
        change: Change,
    ) -> BoxFuture<'a, Result<Gathered<()>, Busy>> {
        async move {
            self.administration.administer(cluster, member, change)?;
            let order = json!(MemberOrder {
                cluster: cluster.to_owned(),
                member: member.as_str().to_owned(),
                change: change.into(),
            });
            let (_, missing) = self
                .ask(RequestKind::Member, order, |answer| body::<Value>(&answer))
                .await;
            Ok(Gathered { value: (), missing })
        }
        .boxed()
    }

    fn sessions_of(&self, route: &str) -> usize {
        let others = self.generations.totals().sessions();
        let others = others.iter().filter(|((of, _), _)| of == route);
        let others = others.filter_map(|(_, sessions)| usize::try_from(*sessions).ok());
        self.administration.sessions_of(route) + others.sum::<usize>()
    }

    // The other processes accept no connections.
    fn disable_route(&self, route: &str, is_disabled: bool) -> Result<(), Busy> {
        self.administration.disable_route(route, is_disabled)
    }

    fn drain_router(&self, is_drained: bool) -> Result<(), Busy> {
        self.administration.drain_router(is_drained)
    }

    fn forget_identity(&self, cluster: &str) -> Result<(), Busy> {
        self.administration.forget_identity(cluster)
    }

    fn reload(&self) -> oneshot::Receiver<ReloadAnswer> {
        self.administration.reload()
    }
}

/// Why a process does not follow another one's order.
#[derive(Debug)]
pub(super) enum NotFollowed {
    /// This process serves.
    Serves,
    Busy(Busy),
}

impl fmt::Display for NotFollowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Serves => f.write_str("it serves: only its own operators set its state"),
            Self::Busy(busy) => busy.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn orders_arrive_as_they_were_sent() {
        for ending in [
            Ending::Now,
            Ending::AtBoundary { grace: None },
            Ending::AtBoundary {
                grace: Some(Duration::from_secs(30)),
            },
        ] {
            let text = json!(EndingOrder::from(ending)).to_string();
            let order: EndingOrder = serde_json::from_str(&text).unwrap();
            assert_eq!(Ending::from(order), ending, "{text}");
        }
        for change in [
            Change::Admin(AdminState::Ready),
            Change::Admin(AdminState::Drain),
            Change::Admin(AdminState::Maint),
            Change::Weight(Some(7)),
            Change::Weight(None),
        ] {
            let text = json!(ChangeOrder::from(change)).to_string();
            let order: ChangeOrder = serde_json::from_str(&text).unwrap();
            assert_eq!(order.change(), Some(change), "{text}");
        }
        assert_eq!(ChangeOrder::State("later".to_owned()).change(), None);
    }

    #[test]
    fn a_list_of_a_later_release_is_read_as_far_as_possible() {
        let text = r#"{"sessions":[{"id":1,"state":"sleeping on a beach"}],"left_out":3,"more":true}"#;
        let list: ListedSessions = serde_json::from_str(text).unwrap();
        assert_eq!((list.sessions.len(), list.left_out), (1, 3));
        assert!(serde_json::from_value::<SessionView>(list.sessions[0].clone()).is_err());
    }
}
