//! A server that has no free connection.

use std::time::Duration;

use tokio::time::{Instant, advance};

use super::acquire::{NoLease, Waited};
use super::permit::OpenPermit;
use super::scene::{NEAR, Scene};
use crate::cluster::snapshot::MemberName;
use crate::session::gate::QueueError;
use crate::session::memory::MemoryStream;

const SECOND: Duration = Duration::from_secs(1);

/// The server refuses this one. Returns whether the session may wait for others.
fn refuse(scene: &Scene, permit: OpenPermit<MemoryStream>) -> bool {
    let can_wait = scene.pool.server_is_full(&MemberName::new("db1"), "sorry");
    drop(permit);
    can_wait
}

#[tokio::test(start_paused = true)]
async fn one_session_tries_again_once_a_second_until_a_connection_is_opened() {
    let scene = Scene::new("max_connections: 4, wait_notify: 0");
    let held = scene.opens("UTC", NEAR);
    let mut first = scene.session("UTC", NEAR);
    let permit = first.permit();
    assert!(refuse(&scene, permit));
    assert!(first.is_waiting(), "at its place");
    let mut second = scene.waits("UTC", NEAR);
    advance(Duration::from_millis(999)).await;
    scene.pool.tick(Instant::now());
    assert!(first.is_waiting(), "not at once");
    advance(Duration::from_millis(1)).await;
    scene.pool.tick(Instant::now());
    let permit = first.permit();
    advance(SECOND).await;
    scene.pool.tick(Instant::now());
    assert!(second.is_waiting(), "one at a time");
    drop(scene.open(permit, NEAR));
    drop(scene.open(second.permit(), NEAR));
    drop(held);
    // There is nothing that becomes free.
    let permit = scene.session("UTC", NEAR).permit();
    assert!(!refuse(&scene, permit));
    scene.session("UTC", NEAR).permit();
}

#[tokio::test(start_paused = true)]
async fn a_session_whose_last_hope_is_closed_tries_at_once() {
    let scene = Scene::new("max_connections: 4, wait_notify: 0");
    let held = scene.opens("UTC", NEAR);
    let mut waits = scene.session("UTC", NEAR);
    let permit = waits.permit();
    assert!(refuse(&scene, permit));
    assert!(waits.is_waiting());
    drop(held);
    let permit = waits.permit();
    assert!(!refuse(&scene, permit));
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_of_another_key_is_closed_for_one_that_the_server_did_not_take() {
    let scene = Scene::new("max_connections: 4, wait_notify: 0");
    scene.pool.release(scene.opens("UTC", NEAR));
    let mut waits = scene.session("Europe/Berlin", NEAR);
    let permit = waits.permit();
    assert_eq!(scene.counts("db1"), [1, 0, 1], "there seems to be room");
    assert!(refuse(&scene, permit));
    assert!(waits.is_waiting());
    advance(SECOND).await;
    scene.pool.tick(Instant::now());
    let permit = waits.permit();
    assert_eq!(scene.counts("db1"), [0, 0, 1], "in place of the other");
    assert_eq!(scene.open(permit, NEAR).leases(), 1);
}

#[tokio::test(start_paused = true)]
async fn its_wait_and_its_notice_count_from_when_the_session_came() {
    let scene = Scene::new("max_connections: 4, wait_notify: 100ms");
    let held = scene.opens("UTC", NEAR);
    let timeout = scene.route.queue.timeout;
    let mut first = scene.session("UTC", NEAR);
    let permit = first.permit();
    assert!(refuse(&scene, permit));
    assert!(first.is_waiting());
    let mut second = scene.waits("UTC", NEAR);
    // Both are due: the notice, and another attempt.
    advance(SECOND).await;
    scene.pool.tick(Instant::now());
    scene.pool.tick(Instant::now());
    let permit = first.permit();
    assert!(matches!(second.poll(), Some(Waited::Notice)));
    assert!(refuse(&scene, permit));
    assert!(matches!(first.poll(), Some(Waited::Notice)), "it is not lost");
    assert!(first.is_waiting() && second.is_waiting(), "once each");
    advance(SECOND).await;
    scene.pool.tick(Instant::now());
    let permit = first.permit();
    // The login takes long.
    advance(timeout).await;
    assert!(refuse(&scene, permit));
    assert!(matches!(first.refusal(), NoLease::Queue(QueueError::Timeout)));
    drop(held);
}
