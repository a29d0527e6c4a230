//! Server connections: their replacement, and the wait for its end.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};

use super::super::super::actions;
use super::super::super::operations::{Operations, Reconnection};
use super::super::super::views::PoolView;
use super::super::arguments::Arguments;
use super::members::seconds;
use super::{Answer, Notices, SessionOrders, counted, listed, not_now, there_are, warn_of, whole};
use crate::cluster::snapshot::{AdminState, MemberName};
use crate::wire::message::ErrorReply;
use crate::wire::sqlstate::SqlState;

/// Between two looks, and for how long one look serves all who wait.
const LOOK: Duration = Duration::from_millis(200);
const WAIT: Duration = Duration::from_mins(5);
const MOST_WAIT: u64 = 3600;

/// What those who wait see; one look serves them all.
#[derive(Debug, Default)]
pub(in crate::admin::console) struct Looks(Mutex<Option<(Instant, Arc<Seen>)>>);

#[derive(Debug)]
struct Seen {
    pools: Vec<PoolView>,
    /// Processes that did not answer.
    missing: Vec<String>,
}

impl Looks {
    async fn look(&self, operations: &dyn Operations) -> Arc<Seen> {
        let mut last = self.0.lock().await;
        if let Some((at, seen)) = &*last
            && at.elapsed() < LOOK
        {
            return Arc::clone(seen);
        }
        let mut missing = operations.refresh().await;
        let pools = operations.pools().await;
        missing.extend(pools.missing);
        missing.sort_unstable();
        missing.dedup();
        let seen = Arc::new(Seen {
            pools: pools.value,
            missing,
        });
        *last = Some((Instant::now(), Arc::clone(&seen)));
        seen
    }
}

/// Whose connections are meant.
enum Which {
    All,
    Route(Arc<str>),
    Member { cluster: Arc<str>, member: MemberName },
}

impl SessionOrders {
    pub(super) async fn reconnect(&self, arguments: &Arguments, notices: &mut dyn Notices) -> Answer {
        let which = match self.which(arguments)? {
            Which::All => Reconnection::All,
            Which::Route(route) => Reconnection::Route(route.to_string()),
            Which::Member { cluster, member } => Reconnection::Member {
                cluster: cluster.to_string(),
                member: member.to_string(),
            },
        };
        let (handles, by) = (self.handles.clone(), self.by.clone());
        let replaced = whole(async move { actions::reconnect(&handles, &which, by).await }).await?;
        let verb = if replaced.value == 1 { "is" } else { "are" };
        let text = format!("{} {verb} replaced", counted(replaced.value, "connection"));
        notices.notice(text).await;
        warn_of(&replaced.missing, notices).await;
        Ok(Vec::new())
    }

    /// Returns when the connections that `RECONNECT` replaces are closed; of a member that is
    /// drained or in maintenance, when it has none at all.
    pub(super) async fn wait_close(&self, arguments: &Arguments, notices: &mut dyn Notices) -> Answer {
        let which = self.which(arguments)?;
        let limit = match arguments.value("seconds") {
            None => WAIT,
            Some(text) => seconds(text, 1, MOST_WAIT)?,
        };
        let until = Instant::now() + limit;
        let mut is_said = false;
        loop {
            let seen = self.looks.look(&*self.handles.operations).await;
            let left = self.left(&which, &seen);
            if left == 0 && seen.missing.is_empty() {
                notices.notice("no connection is left".to_owned()).await;
                return Ok(Vec::new());
            }
            if !is_said {
                is_said = true;
                let text = format!("{} left", counted(left, "connection"));
                notices.notice(text).await;
            }
            if Instant::now() >= until {
                return Err(still_open(left, limit, &seen.missing));
            }
            sleep(LOOK).await;
        }
    }

    /// How many connections are left.
    fn left(&self, which: &Which, seen: &Seen) -> usize {
        let pools = seen.pools.iter();
        match which {
            Which::All => pools.flat_map(|pool| &pool.members).map(|on| on.outdated).sum(),
            Which::Route(route) => {
                let pools = pools.filter(|pool| *pool.route == **route);
                pools.flat_map(|pool| &pool.members).map(|on| on.outdated).sum()
            }
            Which::Member { cluster, member } => {
                if self.is_out(cluster, member) {
                    let load = self.handles.operations.load_of(cluster, member);
                    return load.connections;
                }
                let pools = pools.filter(|pool| *pool.cluster == **cluster);
                let members = pools.flat_map(|pool| &pool.members);
                let on = members.filter(|on| on.member == member.as_str());
                on.map(|on| on.outdated).sum()
            }
        }
    }

    /// Whether the member is to lose all its connections.
    fn is_out(&self, cluster: &str, member: &MemberName) -> bool {
        let mut clusters = self.handles.clusters.iter();
        let view = clusters.find(|view| *view.name == *cluster);
        view.is_none_or(|view| {
            let snapshot = view.snapshot.borrow();
            let member = snapshot.member(member);
            member.is_none_or(|member| member.admin != AdminState::Ready)
        })
    }

    fn which(&self, arguments: &Arguments) -> Result<Which, ErrorReply> {
        if let Some(route) = arguments.value("route") {
            let route = self.route(route).ok_or_else(|| self.no_route(route))?;
            return Ok(Which::Route(route));
        }
        if arguments.value("member").is_some() {
            let (view, member) = self.member(arguments)?;
            let cluster = Arc::clone(&view.name);
            return Ok(Which::Member { cluster, member });
        }
        let Some(name) = arguments.value("name") else {
            return Ok(Which::All);
        };
        let cluster = arguments.value("cluster");
        let member = MemberName::new(name);
        let of = self.with_member(&member, cluster)?;
        let route = self.route(name).filter(|_| cluster.is_none());
        match (route, &of[..]) {
            (Some(route), []) => Ok(Which::Route(route)),
            (None, [view]) => {
                let cluster = Arc::clone(&view.name);
                Ok(Which::Member { cluster, member })
            }
            (None, []) => {
                let routes = self.about.routes.iter().map(|route| &**route);
                let snapshots: Vec<_> = self
                    .handles
                    .clusters
                    .iter()
                    .map(|view| view.snapshot.borrow().clone())
                    .collect();
                let members = snapshots.iter().flat_map(|snapshot| &snapshot.members);
                let members = members.map(|member| member.name.as_str());
                Err(ErrorReply::error(
                    SqlState::UNDEFINED_OBJECT,
                    format!("there is no route and no member \"{name}\""),
                )
                .hint(format!(
                    "Of routes {}; of members {}.",
                    there_are(routes),
                    there_are(members)
                )))
            }
            (Some(_), _) => Err(ErrorReply::error(
                SqlState::AMBIGUOUS_ALIAS,
                format!("a route and a member have the name \"{name}\""),
            )
            .hint("Add CLUSTER and its name for the member, or use RECONNECT ROUTE and RECONNECT MEMBER.")),
            (None, of) => Err(ErrorReply::error(
                SqlState::AMBIGUOUS_ALIAS,
                format!("several clusters have a member \"{name}\""),
            )
            .hint(format!(
                "Add CLUSTER and its name. {}",
                listed(of.iter().map(|view| &*view.name))
            ))),
        }
    }
}

fn still_open(left: usize, limit: Duration, missing: &[String]) -> ErrorReply {
    let seconds = limit.as_secs();
    if left == 0 {
        return not_now(format!(
            "not every process of the router answers after {seconds} s"
        ))
        .detail(missing.join("\n"));
    }
    let verb = if left == 1 { "is" } else { "are" };
    ErrorReply::error(
        SqlState::OBJECT_IN_USE,
        format!("{} {verb} still open after {seconds} s", counted(left, "connection")),
    )
    .hint(
        "Sessions have them: SELECT * FROM server_connections. CLOSE SESSIONS ends those on a member, and WAIT_CLOSE waits \
         again.",
    )
}
