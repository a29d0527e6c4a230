//! Pauses of routes, and a switchover.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::sleep;

use super::super::super::holding::{PauseReport, PauseRequest, SwitchoverRequest, SwitchoverStatus};
use super::super::super::relation::{Row, Value};
use super::{Answer, Notices, SessionOrders, counted, not_everywhere, not_now};
use crate::events::OperatorEvent;
use crate::wire::message::ErrorReply;
use crate::wire::sqlstate::SqlState;

/// Between two looks at a running switchover.
const LOOK: Duration = Duration::from_millis(100);

impl SessionOrders {
    pub(super) async fn pause(&self, name: Option<&str>, notices: &mut dyn Notices) -> Answer {
        let routes = match name {
            Some(name) => vec![self.route(name).ok_or_else(|| self.no_route(name))?],
            None => self.about.waiting_routes.clone(),
        };
        if routes.is_empty() {
            return Err(not_now("no route has sessions that can wait between transactions").hint(
                "Give a route pool: {mode: transaction} or resume: tracked. PAUSE with a route's name lets its logins wait.",
            ));
        }
        for route in &routes {
            self.about.events.emit(OperatorEvent::RoutePaused {
                route: route.to_string(),
                by: self.by.clone(),
            });
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
        let text = format!(
            "the clients of {} wait for 5 minutes at most: RESUME lets them go on, and another PAUSE prolongs it",
            routes.join(" and ")
        );
        notices.notice(text).await;
        Ok(Vec::new())
    }

    pub(super) async fn resume(&self, name: Option<&str>, notices: &mut dyn Notices) -> Answer {
        let paused = self.about.holding.paused();
        let routes: Vec<Arc<str>> = match name {
            // One that is paused and not in the configuration any more counts, too.
            Some(name) if paused.contains_key(name) => vec![name.into()],
            Some(name) => vec![self.route(name).ok_or_else(|| self.no_route(name))?],
            None => paused.keys().map(|route| route.as_str().into()).collect(),
        };
        let holding = &self.about.holding;
        // Who waits in other processes of this router is known by the last refresh.
        drop(self.handles.operations.refresh().await);
        let held = holding.holds();
        let reports = join_all(routes.iter().map(|route| holding.unpause(route, false))).await;
        let (mut missing, mut done) = (Vec::new(), Vec::new());
        for (route, report) in routes.iter().zip(reports) {
            let report: PauseReport = report.map_err(not_now)?;
            if report.was_paused {
                self.about.events.emit(OperatorEvent::RouteUnpaused {
                    route: route.to_string(),
                    by: self.by.clone(),
                });
                let of_route = held.iter().filter(|hold| *hold.route == **route);
                let waited = of_route.map(|hold| hold.clients).sum();
                let verb = if waited == 1 { "goes" } else { "go" };
                done.push(match waited {
                    0 => format!("{route}: nobody waited"),
                    waited => format!("{route}: {} {verb} on", counted(waited, "session")),
                });
            } else {
                done.push(format!("{route} was not paused"));
            }
            missing.extend(report.missing);
        }
        if done.is_empty() {
            done.push("no route is paused".to_owned());
        }
        notices.notice(done.join("; ")).await;
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

    pub(super) async fn explain(&self, to: Option<&str>) -> Answer {
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

    pub(super) async fn switch_over(&self, to: Option<&str>, notices: &mut dyn Notices) -> Answer {
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
        let (mut shown, mut has_sessions) = (0, false);
        loop {
            let Some(status) = holding.switchover() else {
                return Err(not_now("the switchover is not known any more"));
            };
            for step in status.steps.iter().skip(shown) {
                notices.notice(step.clone()).await;
            }
            shown = status.steps.len();
            if !has_sessions {
                for session in &status.open_sessions {
                    notices.notice(format!("  {session}")).await;
                }
                has_sessions = !status.open_sessions.is_empty();
            }
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

    pub(super) async fn abort(&self, notices: &mut dyn Notices) -> Answer {
        let holding = &self.about.holding;
        holding.abort_switchover().map_err(not_now)?;
        let text = match holding.switchover() {
            Some(status) => format!(
                "the switchover from {} to {} is called off: clients go on",
                status.leader, status.candidate
            ),
            None => "the switchover is called off: clients go on".to_owned(),
        };
        notices.notice(text).await;
        Ok(Vec::new())
    }

    pub(super) fn show(&self) -> Vec<Row> {
        self.about.holding.switchover().map(row).into_iter().collect()
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
