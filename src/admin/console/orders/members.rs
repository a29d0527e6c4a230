//! Members, sessions, routes and the configuration.

use std::time::Duration;

use super::super::super::actions::{self, MOST_GRACE, RouteRefusal};
use super::super::super::handles::ClusterView;
use super::super::super::operations::{Change, Ending};
use super::super::super::views::MemberView;
use super::super::arguments::Arguments;
use super::super::foreign;
use super::{Answer, Notices, Order, SessionOrders, counted, listed, not_now, warn_of, whole};
use crate::cluster::snapshot::{AdminState, MemberName};
use crate::config::MOST_WEIGHT;
use crate::wire::message::ErrorReply;
use crate::wire::sqlstate::SqlState;

/// Faults of a configuration that an error repeats.
const MOST_FAULTS: usize = 20;

impl SessionOrders {
    pub(super) async fn change_member(
        &self,
        order: Order,
        arguments: &Arguments,
        notices: &mut dyn Notices,
    ) -> Answer {
        let (view, member) = self.member(arguments)?;
        let change = match order {
            Order::Drain => Change::Admin(AdminState::Drain),
            Order::Maint => Change::Admin(AdminState::Maint),
            Order::Ready => Change::Admin(AdminState::Ready),
            _ => Change::Weight(weight(arguments.value("weight").unwrap_or_default())?),
        };
        let (handles, view, name, by) = (
            self.handles.clone(),
            view.clone(),
            member.clone(),
            self.by.clone(),
        );
        let changed =
            whole(async move { actions::change_member(&handles, &view, &name, change, by).await }).await?;
        let changed = changed.map_err(|busy| not_now(busy.to_string()))?;
        let text = match &changed.member {
            Some(member) => in_words(member),
            None => format!("{member}: it is set, and the cluster has no such member now"),
        };
        notices.notice(text).await;
        if changed
            .member
            .as_ref()
            .is_some_and(|member| member.leader && member.admin == "drain")
        {
            let text = "it is the leader: sessions with a pool in transaction mode or resume: tracked wait now, and get \
                        57P03 after hold.timeout; READY lets them go on";
            notices.notice(text.to_owned()).await;
        }
        if !changed.in_time {
            notices
                .notice("the change is on its way: it has taken no effect yet".to_owned())
                .await;
        }
        warn_of(&changed.missing, notices).await;
        Ok(Vec::new())
    }

    pub(super) async fn close_sessions(&self, arguments: &Arguments, notices: &mut dyn Notices) -> Answer {
        let (view, member) = self.member(arguments)?;
        let ending = match (arguments.has("NOW"), grace(arguments)?) {
            (true, Some(_)) => {
                return Err(
                    ErrorReply::error(SqlState::SYNTAX_ERROR, "GRACE and NOW exclude each other").hint(
                        "NOW cuts at once; GRACE waits for the ends of transactions, for so many seconds.",
                    ),
                );
            }
            (true, None) => Ending::Now,
            (false, grace) => Ending::AtBoundary { grace },
        };
        let (handles, cluster, by) = (self.handles.clone(), view.name.clone(), self.by.clone());
        let ended =
            whole(async move { actions::close_sessions(&handles, &cluster, &member, ending, by).await })
                .await?;
        let verb = if ended.value == 1 { "is" } else { "are" };
        let text = format!("{} {verb} ending", counted(ended.value, "session"));
        notices.notice(text).await;
        warn_of(&ended.missing, notices).await;
        Ok(Vec::new())
    }

    pub(super) async fn kill(&self, arguments: &Arguments, notices: &mut dyn Notices) -> Answer {
        let id = arguments.value("id").unwrap_or_default();
        let Ok(id) = id.parse::<u64>() else {
            let refusal = foreign::refusal(&["KILL"]);
            return Err(refusal.unwrap_or_else(|| no_session(id)));
        };
        let ending = match (arguments.has("BOUNDARY"), grace(arguments)?) {
            (false, None) => Ending::Now,
            (_, grace) => Ending::AtBoundary { grace },
        };
        let (handles, by) = (self.handles.clone(), self.by.clone());
        let found = whole(async move { actions::kill(&handles, id, ending, by).await }).await?;
        let Some(session) = found.value else {
            if found.missing.is_empty() {
                return Err(no_session(&id.to_string()));
            }
            let text = "the processes that answer have no session of this number";
            return Err(not_now(text).detail(found.missing.join("\n")));
        };
        let when = if ending == Ending::Now {
            ""
        } else {
            " at the end of its transaction"
        };
        let text = format!(
            "session {} of {} at {} ends{when}",
            session.id, session.user, session.client
        );
        notices.notice(text).await;
        Ok(Vec::new())
    }

    pub(super) async fn disable(&self, route: &str, is_disabled: bool, notices: &mut dyn Notices) -> Answer {
        let (handles, name, by) = (self.handles.clone(), route.to_owned(), self.by.clone());
        let done =
            whole(async move { actions::disable_route(&handles, &name, is_disabled, by).await }).await?;
        let route = match done {
            Ok(route) => route,
            Err(RouteRefusal::Unknown) => return Err(self.no_route(route)),
            Err(RouteRefusal::Busy(busy)) => return Err(not_now(busy.to_string())),
        };
        let sessions = counted(route.value.sessions, "session");
        let text = match (is_disabled, route.value.sessions) {
            (false, _) if route.value.paused_s.is_some() => format!(
                "{0}: enabled, and still paused: its clients wait until RESUME {0}",
                route.value.name
            ),
            (false, _) => format!("{}: enabled", route.value.name),
            (true, 0) => format!("{}: disabled", route.value.name),
            (true, 1) => format!("{}: disabled; {sessions} goes on", route.value.name),
            (true, _) => format!("{}: disabled; {sessions} go on", route.value.name),
        };
        notices.notice(text).await;
        Ok(Vec::new())
    }

    pub(super) async fn reload(&self, notices: &mut dyn Notices) -> Answer {
        let Some(answer) = actions::reload(&self.handles, self.by.clone()).await else {
            return Err(not_now("the router is shutting down"));
        };
        if !answer.applied {
            let shown = answer.faults.iter().take(MOST_FAULTS).cloned();
            let more = answer.faults.len().saturating_sub(MOST_FAULTS);
            let more = (more > 0).then(|| format!("and {more} more"));
            let faults: Vec<String> = shown.chain(more).collect();
            return Err(ErrorReply::error(
                SqlState::CONFIG_FILE_ERROR,
                "the configuration is refused, and the one before stays in use",
            )
            .detail(faults.join("\n"))
            .hint("`trunkline check` shows the same before a reload."));
        }
        let changed = if answer.changed.is_empty() {
            "nothing has changed".to_owned()
        } else {
            format!("changed: {}", answer.changed.join(", "))
        };
        notices.notice(changed).await;
        if !answer.restart.is_empty() {
            let text = format!(
                "these take effect only after `trunkline upgrade` or a restart: {}",
                answer.restart.join(", ")
            );
            notices.warning(SqlState::WARNING, text).await;
        }
        Ok(Vec::new())
    }

    /// The member that is meant. Without a cluster, the only one of this name.
    pub(super) fn member(&self, arguments: &Arguments) -> Result<(&ClusterView, MemberName), ErrorReply> {
        let name = MemberName::new(arguments.value("member").unwrap_or_default());
        let mut of = self.with_member(&name, arguments.value("cluster"))?;
        let Some(first) = of.pop() else {
            return Err(self.no_member(&name, arguments.value("cluster")));
        };
        if of.is_empty() {
            return Ok((first, name));
        }
        let clusters = of.iter().chain([&first]).map(|view| &*view.name);
        Err(ErrorReply::error(
            SqlState::AMBIGUOUS_ALIAS,
            format!("several clusters have a member \"{name}\""),
        )
        .hint(format!("Add CLUSTER and its name. {}", listed(clusters))))
    }

    /// The clusters that have a member of this name, or the one that is named.
    pub(super) fn with_member(
        &self,
        name: &MemberName,
        cluster: Option<&str>,
    ) -> Result<Vec<&ClusterView>, ErrorReply> {
        let clusters = &self.handles.clusters;
        if let Some(cluster) = cluster
            && !clusters.iter().any(|view| *view.name == *cluster)
        {
            let names = clusters.iter().map(|view| &*view.name);
            return Err(ErrorReply::error(
                SqlState::UNDEFINED_OBJECT,
                format!("cluster \"{cluster}\" does not exist"),
            )
            .hint(listed(names)));
        }
        let has = |view: &&ClusterView| {
            view.snapshot.borrow().member(name).is_some()
                || self.handles.operations.has_kept(&view.name, name)
        };
        let is_meant = |view: &&ClusterView| cluster.is_none_or(|cluster| *view.name == *cluster);
        Ok(clusters.iter().filter(is_meant).filter(has).collect())
    }

    fn no_member(&self, name: &MemberName, cluster: Option<&str>) -> ErrorReply {
        let mut names = Vec::new();
        for view in &self.handles.clusters {
            if cluster.is_none_or(|cluster| *view.name == *cluster) {
                let snapshot = view.snapshot.borrow();
                names.extend(snapshot.members.iter().map(|member| member.name.to_string()));
            }
        }
        ErrorReply::error(
            SqlState::UNDEFINED_OBJECT,
            format!("member \"{name}\" does not exist"),
        )
        .hint(listed(names.iter().map(String::as_str)))
    }
}

fn no_session(id: &str) -> ErrorReply {
    ErrorReply::error(
        SqlState::UNDEFINED_OBJECT,
        format!("there is no session of the number {id}"),
    )
    .hint("SELECT id, client, \"user\", route FROM sessions shows the numbers.")
}

fn in_words(member: &MemberView) -> String {
    format!(
        "{}: {}, {}, weight {}; {}, {}",
        member.name,
        member.admin,
        member.status,
        member.weight,
        counted(member.sessions, "session"),
        counted(
            member.server_connections.unwrap_or(member.sessions),
            "server connection"
        ),
    )
}

fn weight(text: &str) -> Result<Option<u16>, ErrorReply> {
    if text.eq_ignore_ascii_case("default") {
        return Ok(None);
    }
    let weight = text.parse().ok().filter(|weight| *weight <= MOST_WEIGHT);
    weight.map(Some).ok_or_else(|| {
        ErrorReply::error(
            SqlState::INVALID_PARAMETER_VALUE,
            format!("\"{text}\" is not a weight"),
        )
        .hint("0 to 256, or DEFAULT for the configured one.")
    })
}

fn grace(arguments: &Arguments) -> Result<Option<Duration>, ErrorReply> {
    arguments
        .value("seconds")
        .map(|text| seconds(text, 0, MOST_GRACE))
        .transpose()
}

/// A number of seconds.
pub(super) fn seconds(text: &str, least: u64, most: u64) -> Result<Duration, ErrorReply> {
    let seconds = text
        .parse()
        .ok()
        .filter(|seconds| (least..=most).contains(seconds));
    seconds.map(Duration::from_secs).ok_or_else(|| {
        ErrorReply::error(
            SqlState::INVALID_PARAMETER_VALUE,
            format!("\"{text}\" is not a number of seconds from {least} to {most}"),
        )
    })
}
