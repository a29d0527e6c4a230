//! Members whose server is about to be stopped, by an order.
//!
//! An order ends at its time limit, and before that when its purpose is fulfilled: another member
//! is the verified leader, or the server has been stopped and runs again. An order that has ended
//! in this way stays ended, however often it is renewed, and no order lasts longer than
//! [`LONGEST`]: other routers give orders, too.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::State;
use crate::auth::crypto::random;
use crate::cluster::snapshot::{Leader, MemberName, StopOrder};

/// Orders at once. Further ones are ignored.
const MAX_ORDERS: usize = 64;
/// The longest time of one order, with its renewals.
const LONGEST: Duration = Duration::from_secs(35);

/// Which order it is. Whoever gives the order draws it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LeaveToken(pub [u64; 2]);

impl LeaveToken {
    pub fn random() -> Self {
        Self([u64::from_be_bytes(random()), u64::from_be_bytes(random())])
    }
}

/// An order, or its renewal.
#[derive(Debug, Clone)]
pub struct LeaveRequest {
    pub member: MemberName,
    pub token: LeaveToken,
    /// Until it is renewed.
    pub until: Instant,
    /// That of the first request counts.
    pub order: StopOrder,
}

/// The orders, by token.
#[derive(Debug, Default)]
pub(super) struct LeavingMembers(HashMap<LeaveToken, LeaveOrder>);

#[derive(Debug)]
struct LeaveOrder {
    member: MemberName,
    /// As it was given first.
    order: Arc<StopOrder>,
    since: Instant,
    /// When it was last renewed.
    renewed: Instant,
    until: Instant,
    /// It has been the verified leader since the order.
    was_leader: bool,
    /// It has been down since the order.
    has_stopped: bool,
    is_fulfilled: bool,
}

impl LeavingMembers {
    /// Why a member is about to be stopped, by the first of its orders; `None`: it is not.
    pub(super) fn of(&self, member: &MemberName, now: Instant) -> Option<Arc<StopOrder>> {
        let orders = self.0.values();
        let counting =
            orders.filter(|order| order.member == *member && !order.is_fulfilled && order.until > now);
        let first = counting.min_by_key(|order| order.since)?;
        Some(Arc::clone(&first.order))
    }

    pub(super) fn order(&mut self, request: LeaveRequest, now: Instant) {
        let LeaveRequest {
            member,
            token,
            until,
            order,
        } = request;
        if self.0.len() >= MAX_ORDERS && !self.0.contains_key(&token) {
            return;
        }
        let order = self.0.entry(token).or_insert_with(|| LeaveOrder {
            member,
            order: Arc::new(order),
            since: now,
            renewed: now,
            until,
            was_leader: false,
            has_stopped: false,
            is_fulfilled: false,
        });
        order.renewed = now;
        order.until = until.min(order.since + LONGEST);
    }

    /// They are kept, so that renewing does not begin them anew.
    pub(super) fn end_stops(&mut self, member: &MemberName) {
        for order in self.0.values_mut() {
            order.is_fulfilled |= order.member == *member && !order.order.is_switchover;
        }
    }

    pub(super) fn end(&mut self, token: LeaveToken) {
        self.0.remove(&token);
    }
}

impl State {
    /// Ends the orders that are over.
    pub(super) fn end_leaving(&mut self, leader: &Leader, now: Instant) {
        if self.leaving.0.is_empty() {
            return;
        }
        let leader = match leader {
            Leader::Verified { member, .. } => Some(member),
            Leader::None(_) => None,
        };
        // One that is over is kept for a while, so that renewing does not begin it anew.
        self.leaving.0.retain(|_, order| order.renewed + LONGEST > now);
        for order in self.leaving.0.values_mut() {
            order.was_leader |= leader == Some(&order.member);
            let is_replaced = order.was_leader && leader.is_some_and(|leader| *leader != order.member);
            let member = self.members.get(&order.member);
            let is_up = member.is_some_and(|member| member.health.up);
            order.has_stopped |= !is_up;
            // A stopped leader is back when it is the leader again, or no longer.
            let is_back = order.has_stopped && is_up && (!order.was_leader || leader.is_some());
            order.is_fulfilled |= is_replaced || is_back;
        }
    }
}
