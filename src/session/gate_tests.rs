#![allow(clippy::unwrap_used)]

use super::gate_scene::{Scene, Session, snapshot};
use super::*;

#[tokio::test(start_paused = true)]
async fn first_come_first_served_and_nobody_overtakes() {
    let scene = Scene::new(3);
    scene.seats.set(1);
    assert_eq!(scene.passes_at_once(), Some(Ok(())));
    let [mut first, mut second, third] = [(); 3].map(|()| scene.waits());
    scene.seats.set(1);
    assert_eq!(
        scene.passes_at_once(),
        Some(Err(QueueError::Full)),
        "although a seat is free"
    );
    scene.seats.set(0);
    scene.gates.freed(&"other".into());
    assert_eq!(first.woken(), 0);
    scene.frees_a_seat();
    assert_eq!([&first, &second, &third].map(Session::woken), [1, 0, 0]);
    assert_eq!(second.poll(), None, "not its turn");
    assert_eq!(first.poll(), Some(Ok(())));
    drop(first);
    assert_eq!([&second, &third].map(Session::woken), [1, 0], "it is first now");
    assert_eq!(second.poll(), None);
    // A new session waits behind the others, and a session that leaves from the middle wakes none.
    let mut fourth = scene.waits();
    drop(third);
    assert_eq!([&second, &fourth].map(Session::woken), [0, 0]);
    scene.frees_a_seat();
    scene.frees_a_seat();
    assert_eq!(second.poll(), Some(Ok(())));
    drop(second);
    assert_eq!(fourth.poll(), Some(Ok(())));
    drop(fourth);
    assert_eq!(scene.gate.waiting(), 0, "nothing is left behind");
    scene.seats.set(1);
    assert_eq!(scene.passes_at_once(), Some(Ok(())));
}

#[tokio::test(start_paused = true)]
async fn no_seat_is_lost_when_the_session_that_was_woken_leaves() {
    let scene = Scene::new(2);
    let (first, mut second) = (scene.waits(), scene.waits());
    scene.frees_a_seat();
    drop(first);
    assert_eq!(second.woken(), 1);
    assert_eq!(second.poll(), Some(Ok(())));
}

#[tokio::test(start_paused = true)]
async fn without_a_queue_only_a_free_seat_counts() {
    let scene = Scene::new(0);
    assert_eq!(scene.passes_at_once(), Some(Err(QueueError::Full)));
    scene.seats.set(1);
    assert_eq!(scene.passes_at_once(), Some(Ok(())));
    assert_eq!(scene.gate.waiting(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_wait_times_out_and_the_next_session_has_its_turn() {
    let scene = Scene::new(2);
    let mut first = scene.waits();
    tokio::time::advance(scene.route.queue.timeout / 2).await;
    let mut second = scene.waits();
    tokio::time::advance(scene.route.queue.timeout / 2).await;
    assert_eq!(first.poll(), Some(Err(QueueError::Timeout)));
    drop(first);
    assert_eq!(second.poll(), None);
    scene.frees_a_seat();
    assert_eq!(second.poll(), Some(Ok(())));
}

/// One change wakes the first session and, when it has left, the next one, however many wait.
#[tokio::test(start_paused = true)]
async fn one_change_wakes_one_session_of_5000() {
    let scene = Scene::new(5000);
    let mut waiting: Vec<Session<'_>> = (0..5000).map(|_| scene.waits()).collect();
    let woken = |waiting: &[Session<'_>]| waiting.iter().map(Session::woken).sum::<usize>();
    scene.frees_a_seat();
    assert_eq!(woken(&waiting), 1);
    assert_eq!(waiting[0].poll(), Some(Ok(())));
    drop(waiting.remove(0));
    assert_eq!(woken(&waiting), 1);
    assert_eq!(waiting[0].poll(), None);
    // Another topology.
    scene.snapshots.send_replace(snapshot(2));
    assert_eq!(woken(&waiting), 1);
    let before = scene.attempts.get();
    assert_eq!(waiting[0].poll(), None);
    assert_eq!(scene.attempts.get(), before + 1);
    // Sessions that leave from the middle wake no others.
    drop(waiting.drain(1000..4000));
    assert_eq!(woken(&waiting), 0);
    // As many seats as sessions: each is woken once, in order.
    for _ in 0..waiting.len() {
        scene.frees_a_seat();
    }
    for mut session in waiting {
        assert_eq!(session.poll(), Some(Ok(())));
    }
    assert_eq!(scene.gate.waiting(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_waits_is_woken_after_its_route_has_moved_to_another_cluster() {
    let scene = Scene::new(1);
    let mut waiting = scene.waits();
    // A reload, and the first login after it.
    let moved = scene
        .gates
        .of(&Arc::new(Route::read_write("read-write", "other")));
    assert!(!Arc::ptr_eq(&moved, &scene.gate));
    scene.gates.freed(&"other".into());
    assert_eq!(waiting.woken(), 0, "it waits for a server of its own cluster");
    scene.frees_a_seat();
    assert_eq!(waiting.woken(), 1);
    assert_eq!(waiting.poll(), Some(Ok(())));
}

#[test]
fn a_gate_belongs_to_one_route_and_exists_while_it_is_used() {
    let gates = Gates::default();
    let route = |cluster| Arc::new(Route::read_write("read-write", cluster));
    let gate = gates.of(&route("main"));
    assert!(Arc::ptr_eq(&gate, &gates.of(&route("main"))));
    let other = gates.of(&route("other"));
    assert!(!Arc::ptr_eq(&gate, &other), "a route of another cluster");
    assert!(
        Arc::ptr_eq(&gate, &gates.of(&route("main"))),
        "the route moves back"
    );
    drop((gate, other));
    gates.of(&Arc::new(Route::read_write("second", "main")));
    assert_eq!(gates.lock().len(), 1, "nothing is left behind");
}

#[test]
fn a_route_without_a_fit_member_fails_fast_and_is_computed_once_for_each_snapshot() {
    let scene = Scene::new(1);
    let one = snapshot(1);
    let reply = scene.gate.admits(|| Arc::clone(&one), &scene.route).unwrap_err();
    assert_eq!(reply.code, crate::wire::sqlstate::SqlState::CANNOT_CONNECT_NOW);
    let computed = scene.gate.state.load_full().unwrap();
    assert!(scene.gate.admits(|| Arc::clone(&one), &scene.route).is_err());
    assert!(Arc::ptr_eq(&computed, &scene.gate.state.load_full().unwrap()));
    assert!(scene.gate.admits(|| snapshot(2), &scene.route).is_err());
    assert!(!Arc::ptr_eq(&computed, &scene.gate.state.load_full().unwrap()));
}
