//! What operators order at the console. The runtime carries it out, as what comes by HTTP.
//!
//! Guarantees: an order that was begun is carried out, and is in the events with its operator, also
//! if the client leaves, cancels it or is ended. What is only waited for ends with the client's
//! patience.

mod connections;
mod holding;
mod members;

use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::super::handles::Handles;
use super::super::holding::HoldOperations;
use super::super::relation::Row;
use super::super::words::there_are;
use super::arguments::Arguments;
use super::interrupts::Interrupts;
use crate::events::Events;
use crate::session::console::IsOperator;
use crate::wire::message::ErrorReply;
use crate::wire::sqlstate::SqlState;
pub(super) use connections::Looks;

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
    Drain,
    Maint,
    Ready,
    Weight,
    CloseSessions,
    Kill,
    Reconnect,
    WaitClose,
    Disable,
    Enable,
    Reload,
}

impl Order {
    fn needs_operator(self) -> bool {
        self != Self::Show
    }

    /// Whether it may stand between BEGIN and COMMIT: it changes nothing.
    pub(super) fn is_look(self) -> bool {
        matches!(self, Self::Show | Self::Explain)
    }

    /// What the client is told beside the end of its wait.
    fn goes_on(self) -> &'static str {
        match self {
            Self::Pause => "The routes are paused all the same. RESUME lets their clients go on.",
            Self::SwitchOver => {
                "The switchover goes on: SHOW SWITCHOVER shows it, and ABORT SWITCHOVER undoes it, as long as Patroni \
                 has not been asked."
            }
            Self::Reload => "The reload goes on; the router's log has its result.",
            Self::WaitClose => "Nothing was changed. WAIT_CLOSE waits again.",
            _ => "",
        }
    }
}

/// The answer to an order: rows, or none.
pub(super) type Answer = Result<Vec<Row>, ErrorReply>;

/// Shows the client a sentence while its order is carried out.
pub(super) trait Notices: Send {
    fn notice(&mut self, text: String) -> BoxFuture<'_, ()>;

    /// The same, with the code of a warning.
    fn warning(&mut self, code: SqlState, text: String) -> BoxFuture<'_, ()>;
}

/// The orders of one session.
#[derive(Debug)]
pub(super) struct SessionOrders {
    pub(super) about: ConsoleOrders,
    pub(super) handles: Handles,
    pub(super) is_operator: IsOperator,
    /// For events: the user and the address.
    pub(super) by: String,
    pub(super) interrupts: Arc<Interrupts>,
    pub(super) looks: Arc<Looks>,
}

impl SessionOrders {
    /// Carries an order out. An order that takes its time goes on in the router if this session has
    /// to end.
    pub(super) async fn carry_out(
        &self,
        order: Order,
        arguments: &Arguments,
        notices: &mut dyn Notices,
    ) -> Answer {
        if order.needs_operator() && !self.is_operator.holds() {
            return Err(ErrorReply::error(
                SqlState::INSUFFICIENT_PRIVILEGE,
                "permission denied to give orders to the router",
            )
            .hint("Ask the operator to add the user to console.operators."));
        }
        let route = arguments.value("route");
        let done = match order {
            Order::Pause => self.patiently(order, self.pause(route, notices)).await?,
            Order::Resume => self.resume(route, notices).await?,
            Order::SwitchOver => {
                let work = self.switch_over(arguments.value("node"), notices);
                self.patiently(order, work).await?
            }
            Order::Explain => {
                let work = self.explain(arguments.value("node"));
                self.patiently(order, work).await?
            }
            Order::Abort => self.abort(notices).await?,
            Order::Show => self.show(),
            Order::Drain | Order::Maint | Order::Ready | Order::Weight => {
                self.change_member(order, arguments, notices).await?
            }
            Order::CloseSessions => self.close_sessions(arguments, notices).await?,
            Order::Kill => self.kill(arguments, notices).await?,
            Order::Reconnect => self.reconnect(arguments, notices).await?,
            Order::WaitClose => {
                let work = self.wait_close(arguments, notices);
                self.patiently(order, work).await?
            }
            Order::Disable | Order::Enable => {
                let is_disabled = order == Order::Disable;
                self.disable(route.unwrap_or_default(), is_disabled, notices)
                    .await?
            }
            Order::Reload => self.patiently(order, self.reload(notices)).await?,
        };
        Ok(done)
    }

    /// Until the client cancels it or leaves, or the session has to end.
    async fn patiently<T>(
        &self,
        order: Order,
        work: impl Future<Output = Result<T, ErrorReply>>,
    ) -> Result<T, ErrorReply> {
        match self.interrupts.unless(work).await {
            Ok(done) => done,
            Err(interrupt) => Err(interrupt.reply(order.goes_on())),
        }
    }

    fn no_route(&self, name: &str) -> ErrorReply {
        ErrorReply::error(
            SqlState::UNDEFINED_OBJECT,
            format!("route \"{name}\" does not exist"),
        )
        .hint(listed(self.about.routes.iter().map(|route| &**route)))
    }

    fn route(&self, name: &str) -> Option<Arc<str>> {
        self.about.routes.iter().find(|route| ***route == *name).cloned()
    }
}

/// A hint: the names there are.
fn listed<'n>(names: impl Iterator<Item = &'n str>) -> String {
    let text = there_are(names);
    text[..1].to_uppercase() + &text[1..] + "."
}

/// Carries something out to its end, whatever becomes of the session.
async fn whole<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> Result<T, ErrorReply> {
    tokio::spawn(work).await.map_err(|_| {
        ErrorReply::error(SqlState::INTERNAL_ERROR, "the order could not be carried out")
            .hint("The router's log says why.")
    })
}

/// `1 session`, `2 sessions`.
fn counted(count: usize, thing: &str) -> String {
    match count {
        1 => format!("1 {thing}"),
        count => format!("{count} {thing}s"),
    }
}

/// A warning for each process that does not follow.
async fn warn_of(missing: &[String], notices: &mut dyn Notices) {
    for process in missing {
        let text = format!("not every process of the router follows: {process}");
        notices.warning(SqlState::WARNING, text).await;
    }
}

fn not_now(why: impl Into<String>) -> ErrorReply {
    ErrorReply::error(SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, why)
}

fn not_everywhere(missing: &[String]) -> ErrorReply {
    not_now("not every process of the router follows").detail(missing.join("\n"))
}
