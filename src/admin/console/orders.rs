//! What operators order at the console: pauses of routes, and a switchover. The runtime carries it
//! out, as what comes by HTTP.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, join_all};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::super::holding::{HoldOperations, PauseReport, PauseRequest, SwitchoverRequest, SwitchoverStatus};
use super::super::relation::{Row, Value};
use crate::events::{Events, OperatorEvent};
use crate::wire::message::ErrorReply;
use crate::wire::sqlstate::SqlState;

/// Between two looks at a running switchover.
const LOOK: Duration = Duration::from_millis(100);

/// What the console's orders are about.
#[derive(Debug, Clone)]
pub struct ConsoleOrders {
    pub holding: Arc<dyn HoldOperations>,
    /// The cluster of the console's users.
    pub cluster: Arc<str>,
    pub routes: Vec<Arc<str>>,
    /// Those whose sessions can wait between two transactions.
    pub waiting_routes: Vec<Arc<str>>,
    pub events: Events,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    Pause,
    Resume,
    SwitchOver,
    Explain,
    Abort,
    Show,
}

impl Order {
    fn needs_operator(self) -> bool {
        self != Self::Show
    }
}

/// The answer to an order: rows, or none.
pub(super) type Answer = Result<Vec<Row>, ErrorReply>;

/// Shows the client a sentence while its order is carried out.
pub(super) trait Notices: Send {
    fn notice(&mut self, text: String) -> BoxFuture<'_, ()>;
}

/// The orders of one session.
#[derive(Debug)]
pub(super) struct SessionOrders {
    pub(super) about: ConsoleOrders,
    pub(super) is_operator: bool,
    /// For events: the user and the address.
    pub(super) by: String,
    pub(super) closing: CancellationToken,
}

impl SessionOrders {
    /// Carries an order out. An order that takes its time goes on in the router if this session has
    /// to end.
    pub(super) async fn carry_out(
        &self,
        order: Order,
        name: Option<&str>,
        notices: &mut dyn Notices,
    ) -> Answer {
        if order.needs_operator() && !self.is_operator {
            return Err(ErrorReply::error(
                SqlState::INSUFFICIENT_PRIVILEGE,
                "permission denied to give orders to the router",
            )
            .hint("Ask the operator to add the user to console.operators."));
        }
        let work = async {
            match order {
                Order::Pause => self.pause(name, notices).await,
                Order::Resume => self.resume(name).await,
                Order::SwitchOver => self.switch_over(name, notices).await,
                Order::Explain => self.explain(name).await,
                Order::Abort => self
                    .about
                    .holding
                    .abort_switchover()
                    .map(|()| Vec::new())
                    .map_err(not_now),
                Order::Show => Ok(self.about.holding.switchover().map(row).into_iter().collect()),
            }
        };
        tokio::select! {
            answer = work => answer,
            () = self.closing.cancelled() => Err(ErrorReply::error(
                SqlState::ADMIN_SHUTDOWN,
                "this process of the router ends its sessions with the console",
            )
            .hint("Connect again, and look at SHOW SWITCHOVER and `trunkline routes`.")),
        }
    }

    async fn pause(&self, name: Option<&str>, notices: &mut dyn Notices) -> Answer {
        let routes = match name {
            Some(name) => vec![self.route(name).ok_or_else(|| self.no_route(name))?],
            None => self.about.waiting_routes.clone(),
        };
        if routes.is_empty() {
            return Err(not_now("no route has sessions that can wait between transactions").hint(
                "Give a route pool: {mode: transaction} or resume: tracked. PAUSE with a route's name lets its logins wait.",
            ));
        }
        let request = PauseRequest::default();
        let reports = join_all(
            routes
                .iter()
                .map(|route| self.about.holding.pause(route, &request, &self.by)),
        )
        .await;
        let mut open = Vec::new();
        let mut missing = Vec::new();
        for (route, report) in routes.iter().zip(reports) {
            let report = report.map_err(not_now)?;
            self.about.events.emit(OperatorEvent::RoutePaused {
                route: route.to_string(),
                by: self.by.clone(),
            });
            if report.open > 0 {
                open.push(format!("{route}: {}", report.open));
            }
            missing.extend(report.missing);
        }
        if !open.is_empty() {
            return Err(ErrorReply::error(
                SqlState::OBJECT_IN_USE,
                "the clients wait, but transactions are still open",
            )
            .detail(open.join(", "))
            .hint(
                "`trunkline sessions` shows them. PAUSE again waits for them again, and RESUME ends the pause.",
            ));
        }
        if !missing.is_empty() {
            return Err(not_everywhere(&missing));
        }
        let text =
            "the clients wait for 5 minutes at most: RESUME lets them go on, and another PAUSE prolongs it";
        notices.notice(text.to_owned()).await;
        Ok(Vec::new())
    }

    async fn resume(&self, name: Option<&str>) -> Answer {
        let paused = self.about.holding.paused();
        let routes: Vec<Arc<str>> = match name {
            // One that is paused and not in the configuration any more counts, too.
            Some(name) if paused.contains_key(name) => vec![name.into()],
            Some(name) => vec![self.route(name).ok_or_else(|| self.no_route(name))?],
            None => paused.keys().map(|route| route.as_str().into()).collect(),
        };
        let holding = &self.about.holding;
        let reports = join_all(routes.iter().map(|route| holding.unpause(route, false))).await;
        let mut missing = Vec::new();
        for (route, report) in routes.iter().zip(reports) {
            let report: PauseReport = report.map_err(not_now)?;
            if report.was_paused {
                self.about.events.emit(OperatorEvent::RouteUnpaused {
                    route: route.to_string(),
                    by: self.by.clone(),
                });
            }
            missing.extend(report.missing);
        }
        if missing.is_empty() {
            Ok(Vec::new())
        } else {
            Err(not_everywhere(&missing))
        }
    }

    fn request(&self, to: Option<&str>) -> SwitchoverRequest {
        SwitchoverRequest {
            cluster: self.about.cluster.to_string(),
            to: to.map(str::to_owned),
            ..SwitchoverRequest::default()
        }
    }

    async fn explain(&self, to: Option<&str>) -> Answer {
        let plan = self.about.holding.plan_switchover(&self.request(to)).await;
        let plan = plan.map_err(not_now)?;
        let problems = plan
            .problems
            .iter()
            .map(|problem| format!("not possible now: {problem}"));
        let lines = plan.to_string();
        let lines = lines.lines().map(str::to_owned).chain(problems);
        Ok(lines.map(|line| vec![Value::Text(line)]).collect())
    }

    async fn switch_over(&self, to: Option<&str>, notices: &mut dyn Notices) -> Answer {
        let holding = &self.about.holding;
        let mut request = self.request(to);
        let plan = holding.plan_switchover(&request).await.map_err(not_now)?;
        for line in plan.to_string().lines() {
            notices.notice(line.to_owned()).await;
        }
        if !plan.problems.is_empty() {
            return Err(not_now("a switchover is not possible now").detail(plan.problems.join("\n")));
        }
        // What was shown is what is done.
        request.to = Some(plan.candidate);
        let plan = holding.switch_over(&request, &self.by).await.map_err(not_now)?;
        self.about.events.emit(OperatorEvent::SwitchoverBegun {
            cluster: plan.cluster,
            leader: plan.leader,
            candidate: plan.candidate,
            by: self.by.clone(),
        });
        let mut shown = 0;
        loop {
            let Some(status) = holding.switchover() else {
                return Err(not_now("the switchover is not known any more"));
            };
            for step in status.steps.iter().skip(shown) {
                notices.notice(step.clone()).await;
            }
            shown = status.steps.len();
            if status.is_over && status.has_succeeded {
                return Ok(Vec::new());
            }
            if status.is_over {
                let why = status.steps.last().cloned().unwrap_or_default();
                return Err(not_now("there was no switchover").detail(why));
            }
            sleep(LOOK).await;
        }
    }

    fn no_route(&self, name: &str) -> ErrorReply {
        let names: Vec<&str> = self.about.routes.iter().map(|route| &**route).collect();
        ErrorReply::error(
            SqlState::UNDEFINED_OBJECT,
            format!("route \"{name}\" does not exist"),
        )
        .hint(format!("There is: {}.", names.join(", ")))
    }

    fn route(&self, name: &str) -> Option<Arc<str>> {
        self.about.routes.iter().find(|route| ***route == *name).cloned()
    }
}

fn row(status: SwitchoverStatus) -> Row {
    let state = match (status.is_over, status.has_succeeded, status.is_committed) {
        (true, true, _) => "done",
        (true, false, _) => "failed",
        (false, _, true) => "committed",
        (false, _, false) => "prepared",
    };
    let mut row: Row = [status.cluster, status.leader, status.candidate, state.to_owned()]
        .map(Value::Text)
        .into();
    row.push(Value::TextArray(status.steps));
    row
}

fn not_now(why: impl Into<String>) -> ErrorReply {
    ErrorReply::error(SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, why)
}

fn not_everywhere(missing: &[String]) -> ErrorReply {
    not_now("not every process of the router follows").detail(missing.join("\n"))
}
