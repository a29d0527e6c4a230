#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use tokio::time::{Instant, advance};

use super::line::{Group, HeldPlace, ReleasePass};
use super::position::{GateMemory, Position, ShutReason, evaluate};
use super::{Gate, Gates};
use crate::cluster::snapshot::{
    AdminState, Leader, Member, MemberName, NoLeader, OrderedBy, Snapshot, StopOrder,
};
use crate::config::{Resume, Route};
use crate::session::held_routes::{HoldCause, HoldChange};
use crate::session::topology::{member, snapshot};
use crate::wire::message::ErrorReply;
use crate::wire::sqlstate::SqlState;

const TIMEOUT: Duration = Duration::from_secs(40);

fn tracked(mut route: Route) -> Arc<Route> {
    route.resume = Resume::Tracked;
    route.hold.logins = true;
    Arc::new(route)
}

fn led() -> Arc<Snapshot> {
    snapshot(Some("db1"), vec![member("db1", false), member("db2", true)])
}

fn leaderless(why: NoLeader) -> Arc<Snapshot> {
    let mut changed = Snapshot::clone(&led());
    changed.leader = Leader::None(why);
    changed.version = 2;
    Arc::new(changed)
}

/// The gate's position at some seconds after the route was last served.
fn at(seconds: u64, route: &Route, then: &Snapshot) -> Position {
    let (mut memory, start) = (GateMemory::default(), Instant::now());
    assert!(matches!(
        evaluate(&mut memory, &led(), route, None, start),
        Position::Open
    ));
    let _ = evaluate(&mut memory, then, route, None, start);
    evaluate(
        &mut memory,
        then,
        route,
        None,
        start + Duration::from_secs(seconds),
    )
}

fn db1() -> MemberName {
    MemberName::new("db1")
}

#[tokio::test]
async fn only_what_a_failover_can_end_shuts_a_read_write_gate() {
    let route = tracked(Route::read_write("rw", "main"));
    for passing in [
        NoLeader::NotNamed,
        NoLeader::NotWritable(db1()),
        NoLeader::NotReachable(db1()),
        NoLeader::DcsUnreachable,
        NoLeader::NoneWritable,
        NoLeader::Superseded {
            last: db1(),
            newer: MemberName::new("db2"),
        },
    ] {
        let position = at(1, &route, &leaderless(passing.clone()));
        let Position::Shut { why, error, .. } = position else {
            panic!("{passing:?}: {position:?}");
        };
        assert_eq!(
            (why, error.code),
            (ShutReason::NoServer, SqlState::CANNOT_CONNECT_NOW)
        );
    }
    for lasting in [
        NoLeader::StandbyCluster(db1()),
        NoLeader::NoAddress(db1()),
        NoLeader::NamedForeign(db1()),
        NoLeader::Foreign(db1()),
        NoLeader::MixedClusters,
        NoLeader::MixedEndpoints,
    ] {
        let position = at(1, &route, &leaderless(lasting.clone()));
        assert!(
            matches!(position, Position::FailFast(_)),
            "{lasting:?}: {position:?}"
        );
    }
}

#[tokio::test]
async fn clients_wait_for_a_leader_that_is_drained_and_not_for_one_in_maintenance() {
    let route = tracked(Route::read_write("rw", "main"));
    let mut changed = Snapshot::clone(&led());
    changed.members[0].admin = AdminState::Drain;
    assert!(matches!(at(1, &route, &changed), Position::Shut { .. }));
    changed.members[0].admin = AdminState::Maint;
    assert!(matches!(at(1, &route, &changed), Position::FailFast(_)));
}

/// Nor a login that has passed the door a moment before.
#[tokio::test]
async fn a_route_that_holds_nobody_is_shut_by_a_pause_only() {
    let mut route = Route::clone(&tracked(Route::read_write("rw", "main")));
    (route.resume, route.hold.logins) = (Resume::Off, false);
    let route = Arc::new(route);
    let lost = leaderless(NoLeader::NotNamed);
    assert!(matches!(at(1, &route, &lost), Position::FailFast(_)));
    let gate = Gates::default().of(&route);
    gate.refresh(led);
    gate.refresh(|| leaderless(NoLeader::NotNamed));
    assert!(!gate.must_wait(Group::UNPOOLED) && !gate.is_shut());
    let now = Instant::now();
    let paused = evaluate(
        &mut GateMemory::default(),
        &lost,
        &route,
        Some(now + TIMEOUT),
        now,
    );
    assert!(matches!(paused, Position::Shut { .. }));
}

#[tokio::test]
async fn a_member_that_is_about_to_be_stopped_shuts_the_gates_that_have_no_other() {
    let mut changed = Snapshot::clone(&led());
    changed.members[0].leaving = Some(Arc::new(StopOrder::unnamed(Instant::now())));
    let read_write = tracked(Route::read_write("rw", "main"));
    assert!(matches!(at(1, &read_write, &changed), Position::Shut { .. }));
    let read_only = tracked(Route::read_only("ro", "main"));
    assert!(matches!(at(1, &read_only, &changed), Position::Open));
    changed.members[1].leaving = Some(Arc::new(StopOrder::unnamed(Instant::now())));
    assert!(matches!(at(1, &read_only, &changed), Position::Shut { .. }));
}

#[tokio::test]
async fn a_read_only_gate_shuts_while_its_last_replica_is_down_or_drained() {
    let route = tracked(Route::read_only("ro", "main"));
    let with = |change: fn(&mut Member)| {
        let mut changed = Snapshot::clone(&led());
        change(&mut changed.members[1]);
        changed
    };
    let down = with(|replica| replica.health.up = false);
    assert!(matches!(at(1, &route, &down), Position::Shut { .. }));
    let drained = with(|replica| replica.admin = AdminState::Drain);
    assert!(matches!(at(1, &route, &drained), Position::Shut { .. }));
    let maintained = with(|replica| replica.admin = AdminState::Maint);
    assert!(matches!(at(1, &route, &maintained), Position::FailFast(_)));
}

#[tokio::test]
async fn nobody_is_held_for_longer_than_the_timeout_nor_before_the_first_server() {
    let route = tracked(Route::read_write("rw", "main"));
    let lost = leaderless(NoLeader::NotNamed);
    let most = TIMEOUT.as_secs();
    assert!(matches!(at(most - 1, &route, &lost), Position::Shut { .. }));
    assert!(
        matches!(at(most, &route, &lost), Position::FailFast(_)),
        "40 s where nobody says"
    );
    let (mut memory, now) = (GateMemory::default(), Instant::now());
    let position = evaluate(&mut memory, &lost, &route, None, now);
    assert!(
        matches!(position, Position::FailFast(_)),
        "no server was ever seen: {position:?}"
    );
    let mut deaf = Snapshot::clone(&lost);
    deaf.hears = false;
    assert!(
        matches!(at(1, &route, &deaf), Position::FailFast(_)),
        "cut off from the cluster, nobody can know when there is a server"
    );
    let mut patient = Snapshot::clone(&lost);
    patient.patience = Some(Duration::from_secs(25));
    assert!(matches!(at(24, &route, &patient), Position::Shut { .. }));
    assert!(
        matches!(at(25, &route, &patient), Position::FailFast(_)),
        "ttl and loop_wait"
    );
    let mut short = Route::clone(&route);
    short.hold.timeout = Some(Duration::from_secs(5));
    assert!(matches!(at(4, &short, &lost), Position::Shut { .. }));
    assert!(matches!(at(5, &short, &lost), Position::FailFast(_)));
    short.hold.timeout = Some(Duration::ZERO);
    assert!(matches!(at(0, &short, &lost), Position::FailFast(_)), "off");
}

#[tokio::test]
async fn a_pause_shuts_the_gate_whatever_the_members_are() {
    let route = tracked(Route::read_write("rw", "main"));
    let (mut memory, now) = (GateMemory::default(), Instant::now());
    let end = now + Duration::from_secs(3);
    for snapshot in [led(), leaderless(NoLeader::NotNamed)] {
        let position = evaluate(&mut memory, &snapshot, &route, Some(end), now);
        let Position::Shut { until, why, .. } = position else {
            panic!("{position:?}");
        };
        assert_eq!((until, why), (end, ShutReason::Paused));
    }
}

/// Counts its wake-ups.
#[derive(Debug, Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A held client, polled by hand.
struct Client {
    place: Option<HeldPlace>,
    woken: Arc<Count>,
}

impl Client {
    fn new(gate: &Arc<Gate>, bytes: u64) -> Self {
        Self::of(Group::UNPOOLED, gate, bytes)
    }

    fn of(group: Group, gate: &Arc<Gate>, bytes: u64) -> Self {
        Self {
            place: Some(gate.hold(group, bytes).unwrap()),
            woken: Arc::default(),
        }
    }

    fn poll(&mut self) -> Poll<Result<ReleasePass, Box<ErrorReply>>> {
        let waker = Waker::from(Arc::clone(&self.woken));
        let place = self.place.as_mut().expect("it is held");
        let polled = place.poll(&mut Context::from_waker(&waker));
        if polled.is_ready() {
            self.place = None;
        }
        polled
    }

    fn is_woken(&self) -> bool {
        self.woken.0.swap(0, Ordering::Relaxed) > 0
    }
}

/// A gate that was open and is shut, and what shuts and opens it.
fn shut() -> (Gates, Arc<Gate>, Arc<Route>) {
    let (gates, route) = (Gates::default(), tracked(Route::read_write("rw", "main")));
    let gate = gates.of(&route);
    gate.refresh(led);
    assert!(!gate.must_wait(Group::UNPOOLED));
    gate.refresh(|| leaderless(NoLeader::NotNamed));
    assert!(gate.must_wait(Group::UNPOOLED) && gate.is_shut());
    (gates, gate, route)
}

fn changes(gates: &Gates) -> Arc<Mutex<Vec<HoldChange>>> {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let hear = Arc::clone(&heard);
    gates
        .paused()
        .listener
        .set(Box::new(move |change| hear.lock().unwrap().push(change)));
    heard
}

#[tokio::test(start_paused = true)]
async fn a_hold_is_told_once_at_its_begin_and_its_end_with_who_ordered_it() {
    let (gates, route) = (Gates::default(), tracked(Route::read_write("rw", "main")));
    let (gate, heard) = (gates.of(&route), changes(&gates));
    let order = Arc::new(StopOrder {
        is_switchover: true,
        by: Some(OrderedBy::new("router2", "admin")),
        since: Instant::now(),
        ends: None,
    });
    let mut stopping = Snapshot::clone(&led());
    stopping.members[0].leaving = Some(Arc::clone(&order));
    stopping.version = 2;
    let stopping = Arc::new(stopping);
    gate.refresh(led);
    assert!(gates.held_routes(Instant::now()).is_empty());
    gate.refresh(|| Arc::clone(&stopping));
    let clients = [Client::new(&gate, 1), Client::new(&gate, 1)];
    advance(Duration::from_secs(3)).await;
    // It stops, and there is no leader: the cause is the order all the same.
    let lost = leaderless(NoLeader::NotNamed);
    gate.refresh(|| Arc::clone(&lost));
    let held = gates.held_routes(Instant::now());
    assert_eq!(
        (held.len(), held[0].clients, held[0].since.elapsed()),
        (1, 2, Duration::from_secs(3))
    );
    assert_eq!(held[0].cause, HoldCause::Stop(db1(), Arc::clone(&order)));
    gate.refresh(led);
    drop(clients);
    assert!(gates.held_routes(Instant::now()).is_empty());
    let heard = std::mem::take(&mut *heard.lock().unwrap());
    let [
        HoldChange::Begun { cause: begun, .. },
        HoldChange::Ended {
            cause,
            clients: 2,
            waiting: 2,
            after,
            error: None,
            ..
        },
    ] = heard.as_slice()
    else {
        panic!("{heard:?}");
    };
    assert_eq!((begun, cause), (&held[0].cause, &held[0].cause));
    assert_eq!(*after, Duration::from_secs(3));
}

#[tokio::test(start_paused = true)]
async fn a_pause_says_who_ordered_it_and_that_its_time_is_over() {
    let (gates, route) = (Gates::default(), tracked(Route::read_write("rw", "main")));
    let (gate, heard) = (gates.of(&route), changes(&gates));
    let by = OrderedBy::new("router1", "admin");
    let end = Instant::now() + Duration::from_secs(30);
    assert!(gates.paused().pause_by("rw", end, Some(&by)));
    gate.refresh(led);
    let held = gates.held_routes(Instant::now());
    assert_eq!(
        (&held[0].cause, held[0].until),
        (&HoldCause::Paused(Some(by.clone())), end)
    );
    advance(Duration::from_secs(31)).await;
    gates.paused().expire();
    gates.paused().expire();
    gate.refresh(led);
    let heard = std::mem::take(&mut *heard.lock().unwrap());
    assert!(
        matches!(
            heard.as_slice(),
            [HoldChange::Begun { .. }, HoldChange::PauseExpired { by: Some(who), .. }, HoldChange::Ended { .. }]
                if *who == by
        ),
        "{heard:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn held_clients_leave_in_order_and_a_few_at_a_time() {
    let (_gates, gate, _route) = shut();
    let mut clients: Vec<Client> = (0..100).map(|_| Client::new(&gate, 10)).collect();
    for client in &mut clients {
        assert!(client.poll().is_pending());
        assert!(!client.is_woken());
    }
    assert_eq!(gate.line.bytes(), 1000);
    gate.refresh(led);
    assert!(
        gate.must_wait(Group::UNPOOLED),
        "a new client never overtakes those that are held"
    );
    assert!(!clients[1].is_woken(), "only the first is woken");
    assert!(clients[1].poll().is_pending(), "and nobody goes before it");
    let mut passes = Vec::new();
    for client in clients.iter_mut().take(32) {
        assert!(client.is_woken());
        match client.poll() {
            Poll::Ready(Ok(pass)) => passes.push(pass),
            other => panic!("{other:?}"),
        }
    }
    assert!(clients[32].poll().is_pending(), "32 look for a server");
    passes.pop();
    assert!(clients[32].is_woken());
    assert!(matches!(clients[32].poll(), Poll::Ready(Ok(_))));
    // One in the middle has left.
    clients[33].place = None;
    assert!(clients[34].is_woken());
    drop(passes);
    for client in &mut clients[34..] {
        assert!(matches!(client.poll(), Poll::Ready(Ok(_))));
    }
    assert_eq!((gate.line.length(), gate.line.bytes()), (0, 0));
    assert!(!gate.must_wait(Group::UNPOOLED));
}

#[tokio::test(start_paused = true)]
async fn a_held_client_gets_the_error_when_the_time_is_over() {
    let (_gates, gate, route) = shut();
    let mut client = Client::new(&gate, 0);
    assert!(client.poll().is_pending());
    advance(TIMEOUT.saturating_sub(Duration::from_millis(10))).await;
    assert!(client.poll().is_pending());
    advance(Duration::from_millis(11)).await;
    let Poll::Ready(Err(error)) = client.poll() else {
        panic!("the time is over");
    };
    assert_eq!(error.code, SqlState::CANNOT_CONNECT_NOW);
    assert!(!gate.is_shut(), "further clients get the error at once");
    let admitted = gate.admits(|| leaderless(NoLeader::NotNamed), &route);
    assert_eq!(admitted.unwrap_err().code, SqlState::CANNOT_CONNECT_NOW);
}

#[tokio::test(start_paused = true)]
async fn a_router_that_hears_nothing_refuses_new_clients_although_its_leader_is_not_lost_yet() {
    let deaf = || {
        let mut deaf = Snapshot::clone(&led());
        deaf.hears = false;
        deaf.version = 3;
        Arc::new(deaf)
    };
    let (gates, route) = (Gates::default(), tracked(Route::read_write("rw", "main")));
    let gate = gates.of(&route);
    assert!(gate.admits(led, &route).is_ok());
    let refused = gate.admits(deaf, &route).unwrap_err();
    assert_eq!(refused.code, SqlState::CANNOT_CONNECT_NOW);
    assert!(
        refused.message.contains("hears nothing of the cluster"),
        "{refused:?}"
    );
    assert!(!gate.must_wait(Group::UNPOOLED), "sessions that exist go on");
    // One server alone may be slow for a moment.
    let alone = || {
        let mut alone = Snapshot::clone(&deaf());
        alone.members.truncate(1);
        alone.version = 4;
        Arc::new(alone)
    };
    assert!(gate.admits(alone, &route).is_ok());
    assert!(gate.admits(led, &route).is_ok());
}

#[tokio::test(start_paused = true)]
async fn clients_of_a_paused_route_go_on_when_the_pause_ends() {
    let (gates, route) = (Gates::default(), tracked(Route::read_write("rw", "main")));
    let gate = gates.of(&route);
    assert!(
        gates
            .paused()
            .pause("rw", Instant::now() + Duration::from_secs(30))
    );
    gate.refresh(led);
    assert!(gate.must_wait(Group::UNPOOLED) && gate.is_paused());
    assert!(gate.admits(led, &route).is_ok(), "a client may log in, and waits");
    let mut client = Client::new(&gate, 0);
    assert!(client.poll().is_pending());
    advance(Duration::from_secs(31)).await;
    assert!(matches!(client.poll(), Poll::Ready(Ok(_))));
}

/// Those of a full pool wait for its connections, and others for theirs.
#[tokio::test(start_paused = true)]
async fn clients_of_a_full_pool_keep_no_others() {
    let (_gates, gate, _route) = shut();
    let (full, free) = (Arc::new(1), Arc::new(2));
    let (full, free) = (Group::of(&full), Group::of(&free));
    let mut crowd: Vec<Client> = (0..100).map(|_| Client::of(full, &gate, 1)).collect();
    let mut other = Client::of(free, &gate, 1);
    for client in crowd.iter_mut().chain([&mut other]) {
        assert!(client.poll().is_pending());
    }
    gate.refresh(led);
    let passes: Vec<_> = crowd.iter_mut().take(32).map(Client::poll).collect();
    assert!(passes.iter().all(Poll::is_ready));
    assert!(crowd[32].poll().is_pending(), "32 of this pool look for a server");
    assert!(other.is_woken());
    let passed = other.poll();
    assert!(matches!(passed, Poll::Ready(Ok(_))), "{passed:?}");
    assert!(gate.must_wait(full) && !gate.must_wait(free));
    assert!(!gate.must_wait(Group::UNPOOLED), "nor a new client");
    drop((passes, passed));
    assert!(matches!(crowd[32].poll(), Poll::Ready(Ok(_))));
    drop(crowd);
    assert!(gate.line.is_empty() && gate.line.bytes() == 0);
    assert!(!gate.must_wait(full));
}

/// A session that began before the reload counts by the new limits, too.
#[tokio::test(start_paused = true)]
async fn other_limits_count_for_those_that_are_held_already() {
    let (gates, gate, route) = shut();
    let mut client = Client::new(&gate, 0);
    assert!(client.poll().is_pending());
    let mut shorter = Route::clone(&route);
    shorter.hold.timeout = Some(Duration::from_secs(1));
    let shorter = Arc::new(shorter);
    assert!(Arc::ptr_eq(&gate, &gates.of(&shorter)));
    let lost = || leaderless(NoLeader::NotNamed);
    gate.refresh(lost);
    assert!(client.is_woken(), "its time is another one");
    assert!(client.poll().is_pending());
    advance(Duration::from_secs(2)).await;
    assert!(matches!(client.poll(), Poll::Ready(Err(_))));
    assert!(gate.admits(lost, &shorter).is_err());
    assert!(
        gate.admits(lost, &route).is_err(),
        "a listener of before does not make it another one"
    );
}

/// The old process has seen a server; this one goes on with its work.
#[tokio::test(start_paused = true)]
async fn a_process_that_takes_over_holds_clients_at_once() {
    let route = tracked(Route::read_write("rw", "main"));
    let lost = || leaderless(NoLeader::NotNamed);
    let first = Gates::default();
    assert!(first.of(&route).admits(lost, &route).is_err());
    let successor = Gates::default();
    successor.assume_served();
    let gate = successor.of(&route);
    assert!(gate.admits(lost, &route).is_ok() && gate.is_shut());
    advance(TIMEOUT + Duration::from_secs(1)).await;
    assert!(gate.admits(lost, &route).is_err(), "for as long as any other");
}

#[tokio::test(start_paused = true)]
async fn all_are_told_when_waiting_is_no_use_any_more() {
    let (_gates, gate, _route) = shut();
    let mut clients = [Client::new(&gate, 0), Client::new(&gate, 0)];
    for client in &mut clients {
        assert!(client.poll().is_pending());
    }
    gate.refresh(|| leaderless(NoLeader::StandbyCluster(db1())));
    for client in &mut clients {
        assert!(client.is_woken());
        assert!(matches!(client.poll(), Poll::Ready(Err(_))));
    }
}

#[tokio::test(start_paused = true)]
async fn no_more_than_max_clients_are_held() {
    let gates = Gates::default();
    let mut route = Route::clone(&tracked(Route::read_write("rw", "main")));
    route.hold.max_clients = Some(2);
    let route = Arc::new(route);
    let gate = gates.of(&route);
    gate.refresh(led);
    gate.refresh(|| leaderless(NoLeader::NotNamed));
    let held = [Client::new(&gate, 0), Client::new(&gate, 0)];
    let error = gate.hold(Group::UNPOOLED, 0).unwrap_err();
    assert_eq!(error.code, SqlState::CANNOT_CONNECT_NOW);
    assert!(error.hint.unwrap().contains("hold.max_clients"));
    drop(held);
    assert!(gate.hold(Group::UNPOOLED, 0).is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_gate_follows_the_snapshots_and_the_pauses() {
    let occupancy = Arc::new(crate::session::occupancy::Occupancy::default());
    let route = tracked(Route::read_write("rw", "main"));
    let gate = occupancy.gate(&route);
    let snapshots = tokio::sync::watch::channel(led()).0;
    let stop = tokio_util::sync::CancellationToken::new();
    let following = {
        let (occupancy, seen, stop) = (Arc::clone(&occupancy), snapshots.subscribe(), stop.clone());
        tokio::spawn(async move { occupancy.follow(seen, stop).await })
    };
    let settle = || async {
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
    };
    settle().await;
    assert!(!gate.must_wait(Group::UNPOOLED));
    snapshots.send_replace(leaderless(NoLeader::NotNamed));
    settle().await;
    assert!(gate.must_wait(Group::UNPOOLED));
    snapshots.send_replace(led());
    settle().await;
    assert!(!gate.must_wait(Group::UNPOOLED));
    let paused = occupancy.paused_routes();
    assert!(paused.pause("rw", Instant::now() + Duration::from_mins(1)));
    settle().await;
    assert!(gate.must_wait(Group::UNPOOLED));
    assert!(paused.unpause("rw") && !paused.unpause("rw"));
    settle().await;
    assert!(!gate.must_wait(Group::UNPOOLED));
    assert!(paused.pause("rw", Instant::now() + Duration::from_mins(1)));
    settle().await;
    advance(Duration::from_secs(61)).await;
    settle().await;
    assert!(!gate.must_wait(Group::UNPOOLED), "a pause ends by itself");
    assert!(paused.all().is_empty());
    // So does a hold, without another snapshot.
    snapshots.send_replace(leaderless(NoLeader::NotNamed));
    settle().await;
    assert!(gate.must_wait(Group::UNPOOLED));
    advance(TIMEOUT + Duration::from_secs(1)).await;
    settle().await;
    assert!(!gate.must_wait(Group::UNPOOLED), "nobody is held any longer");
    stop.cancel();
    following.await.unwrap();
}
