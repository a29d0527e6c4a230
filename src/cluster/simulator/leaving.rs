//! Members that are about to be stopped.

use super::*;
use crate::cluster::snapshot::StopOrder;
use crate::cluster::state::{LeaveRequest, LeaveToken};

const TOKEN: LeaveToken = LeaveToken([0, 1]);

impl World {
    fn order(&mut self, index: usize, token: LeaveToken, length: Duration) {
        let until = self.now + length;
        self.observe(Observation::Leaving(LeaveRequest {
            member: name(index),
            token,
            until,
            order: StopOrder::unnamed(self.now),
        }));
    }

    fn is_leaving(&self, index: usize) -> bool {
        self.state
            .snapshot()
            .member(&name(index))
            .unwrap()
            .leaving
            .is_some()
    }
}

#[test]
fn an_order_ends_by_itself_and_the_leader_stays() {
    let mut world = calm(3);
    let version = world.state.snapshot().version;
    world.order(0, TOKEN, Duration::from_secs(3));
    assert!(world.is_leaving(0) && !world.is_leaving(1));
    assert_eq!(world.state.snapshot().version, version + 1, "readers are woken");
    assert_eq!(world.leader().unwrap().0, "db0");
    world.pass(Duration::from_secs(2));
    assert!(world.is_leaving(0));
    // The newest limit counts.
    world.order(0, TOKEN, Duration::from_secs(3));
    world.pass(Duration::from_secs(2));
    assert!(world.is_leaving(0));
    world.pass(Duration::from_millis(1300));
    assert!(!world.is_leaving(0));
    assert_eq!(world.leader().unwrap().0, "db0");
}

#[test]
fn each_order_has_its_own_end() {
    let mut world = calm(3);
    let other = LeaveToken([0, 2]);
    world.order(0, TOKEN, Duration::from_secs(30));
    world.order(0, other, Duration::from_secs(30));
    world.observe(Observation::EndLeaving(TOKEN));
    assert!(world.is_leaving(0));
    world.observe(Observation::EndLeaving(other));
    assert!(!world.is_leaving(0));
}

#[test]
fn a_stop_that_is_called_off_is_not_renewed() {
    let mut world = calm(3);
    world.order(0, TOKEN, Duration::from_secs(30));
    world.order(1, LeaveToken([0, 2]), Duration::from_secs(30));
    world.observe(Observation::EndStops(name(0)));
    assert!(!world.is_leaving(0) && world.is_leaving(1));
    world.order(0, TOKEN, Duration::from_secs(30));
    assert!(!world.is_leaving(0), "its renewal comes too late");
    world.order(0, LeaveToken([0, 3]), Duration::from_secs(30));
    assert!(world.is_leaving(0), "another order counts");
}

#[test]
fn an_order_ends_when_another_member_leads_and_is_not_renewed() {
    let mut world = calm(3);
    world.order(0, TOKEN, Duration::from_secs(30));
    world.apply(&Action::Demote(0));
    world.apply(&Action::Key(Some(1)));
    world.apply(&Action::Promote(1));
    world.pass(Duration::from_secs(2));
    assert_eq!(world.leader().unwrap().0, "db1");
    assert!(!world.is_leaving(0));
    world.order(0, TOKEN, Duration::from_secs(30));
    assert!(!world.is_leaving(0), "it has served its purpose");
}

#[test]
fn an_order_ends_when_the_server_has_been_restarted() {
    for index in [0, 1] {
        let mut world = calm(3);
        world.order(index, TOKEN, Duration::from_secs(30));
        world.apply(&Action::Run(index, false));
        world.pass(Duration::from_secs(2));
        assert!(world.is_leaving(index), "it does not run yet");
        world.apply(&Action::Run(index, true));
        world.pass(Duration::from_secs(3));
        assert_eq!(world.leader().unwrap().0, "db0");
        assert!(!world.is_leaving(index), "db{index}");
    }
}

#[test]
fn an_order_that_is_renewed_for_ever_ends() {
    let mut world = calm(3);
    for _ in 0..60 {
        world.order(0, TOKEN, Duration::from_secs(4));
        world.pass(Duration::from_secs(1));
    }
    assert!(!world.is_leaving(0));
    // Another order can be given.
    world.order(0, LeaveToken([0, 2]), Duration::from_secs(4));
    assert!(world.is_leaving(0));
}

#[test]
fn the_number_of_orders_is_limited() {
    let mut world = calm(3);
    for token in 0..100 {
        world.order(0, LeaveToken([0, token]), Duration::from_secs(5));
    }
    world.order(1, LeaveToken([0, 100]), Duration::from_secs(5));
    assert!(!world.is_leaving(1));
    // Those that exist can still be renewed and ended.
    world.order(0, LeaveToken([0, 1]), Duration::from_secs(30));
    world.pass(Duration::from_secs(10));
    assert!(world.is_leaving(0));
    world.observe(Observation::EndLeaving(LeaveToken([0, 1])));
    assert!(!world.is_leaving(0));
}
