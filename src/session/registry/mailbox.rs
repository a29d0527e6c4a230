//! The orders that a session has been given, and where its server connection is.

use std::sync::Arc;
use std::task::Waker;

use super::Placement;
use crate::session::end::Order;

/// Under the lock of its session.
#[derive(Debug, Default)]
pub(super) struct Mailbox {
    /// Where the server connection is.
    pub(super) placement: Option<Arc<Placement>>,
    /// About the session. Never withdrawn.
    pub(super) session: Option<Order>,
    /// About a server connection that the session must leave. Of no effect for another connection.
    pub(super) server: Option<Box<ServerOrder>>,
    /// The same, present while the server is not fit for the route.
    pub(super) leave: Option<Box<ServerOrder>>,
    pub(super) waker: Option<Waker>,
}

/// An order about the server connection at this placement.
#[derive(Debug)]
pub(super) struct ServerOrder {
    pub(super) order: Order,
    pub(super) placement: Arc<Placement>,
}

impl ServerOrder {
    pub(super) fn is_about(&self, placement: &Arc<Placement>) -> bool {
        Arc::ptr_eq(&self.placement, placement)
    }
}

impl Mailbox {
    pub(super) fn is_empty(&self) -> bool {
        self.session.is_none() && self.server.is_none() && self.leave.is_none()
    }

    /// An order to end at once, else the first one.
    pub(super) fn strictest(&self) -> Option<Order> {
        let of = |given: &Option<Box<ServerOrder>>| given.as_ref().map(|given| given.order.clone());
        let orders = [self.session.clone(), of(&self.server), of(&self.leave)];
        let at_once = orders
            .iter()
            .flatten()
            .find(|order| matches!(order, Order::Now(_)));
        at_once.or_else(|| orders.iter().flatten().next()).cloned()
    }
}

/// Whether an order takes the place of one that was given before: of two equally strict ones the
/// first stays.
pub(super) fn replaces(new: &Order, given: &Order) -> bool {
    matches!((given, new), (Order::AtBoundary(_), Order::Now(_)))
}
