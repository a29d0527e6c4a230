use std::time::Duration;

use tokio::time::{Instant, advance};
use tokio_util::sync::CancellationToken;

use super::acquire::{NoLease, Waited};
use super::pools::Reconnect;
use super::scene::{Connection, FAR, NEAR, Scene, Session, cluster, members, opened, route};
use crate::cluster::snapshot::{AdminState, Leader, MemberName, NoLeader};
use crate::session::gate::QueueError;
use crate::session::topology::snapshot;
use std::sync::Arc;

const MS: Duration = Duration::from_millis(1);

#[tokio::test(start_paused = true)]
async fn a_connection_that_came_back_is_leased_again() {
    let scene = Scene::new("max_connections: 2");
    assert!(scene.lease("UTC", NEAR).is_none(), "there is none yet");
    let one = scene.opens("UTC", NEAR);
    assert_eq!((one.leases(), scene.counts("db1")), (1, [0, 1, 0]));
    let two = scene.opens("UTC", NEAR);
    scene.pool.release(one);
    assert_eq!(scene.counts("db1"), [1, 1, 0]);
    advance(MS).await;
    scene.pool.release(two);
    let leased = scene.lease("UTC", NEAR).expect("two are idle");
    assert_eq!(leased.leases(), 2);
    assert!(scene.lease("Europe/Berlin", NEAR).is_none(), "of another key");
    assert_eq!(
        scene
            .pool
            .login_parameters(&scene.key("UTC"))
            .map(|all| all.len()),
        Some(1)
    );
    assert!(scene.pool.login_parameters(&scene.key("Europe/Berlin")).is_none());
    drop(leased);
    assert_eq!((scene.counts("db1"), scene.seats("db1")), ([1, 0, 0], 1));
    let text = scene.exposition();
    for line in [
        "pool_hits_total{route=\"rw\"} 1",
        "pool_misses_total{route=\"rw\"} 2",
        "pool_connections{route=\"rw\",member=\"db1\",state=\"idle\"} 1",
    ] {
        assert!(text.contains(line), "{line} is missing in {text}");
    }
    assert!(scene.lease("UTC", NEAR).is_some());
}

#[tokio::test(start_paused = true)]
async fn a_worker_takes_its_own_connections_first_and_then_those_of_others() {
    let scene = Scene::new("max_connections: 2");
    let (near, far) = (scene.opens("UTC", NEAR), scene.opens("UTC", FAR));
    scene.pool.release(near);
    scene.pool.release(far);
    let near = scene.lease("UTC", NEAR).expect("two are idle");
    assert_eq!(near.worker, NEAR);
    let far = scene.lease("UTC", NEAR).expect("one is idle");
    assert_eq!(far.worker, NEAR, "it was taken over");
}

#[tokio::test(start_paused = true)]
async fn no_more_are_opened_than_allowed_and_sessions_wait_in_order() {
    let scene = Scene::new("max_connections: 1");
    let only = scene.opens("UTC", NEAR);
    let (mut first, mut second) = (scene.waits("UTC", NEAR), scene.waits("UTC", NEAR));
    scene.pool.release(only);
    assert_eq!(
        (first.woken(), second.woken()),
        (1, 0),
        "one wake-up for each release"
    );
    assert!(scene.lease("UTC", NEAR).is_none(), "nobody overtakes");
    let only = first.connection();
    drop(only);
    // It has made room.
    let permit = second.permit();
    assert_eq!(scene.counts("db1"), [0, 0, 1]);
    drop(permit);
    assert_eq!((scene.counts("db1"), scene.seats("db1")), ([0, 0, 0], 0));
}

#[tokio::test(start_paused = true)]
async fn what_a_session_was_granted_is_given_back_if_it_leaves() {
    let scene = Scene::new("max_connections: 1");
    let only = scene.opens("UTC", NEAR);
    let (first, mut second) = (scene.waits("UTC", NEAR), scene.waits("UTC", NEAR));
    scene.pool.release(only);
    drop(first);
    let only = second.connection();
    let (first, middle, mut last) = (
        scene.waits("UTC", NEAR),
        scene.waits("UTC", NEAR),
        scene.waits("UTC", NEAR),
    );
    drop(middle);
    drop(only);
    assert_eq!(scene.counts("db1"), [0, 0, 1], "the first may open one");
    drop(first);
    drop(last.permit());
    assert_eq!(scene.pool.view().waiting, 0);
    assert_eq!(scene.counts("db1"), [0, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_of_another_key_makes_room() {
    let scene = Scene::new("max_connections: 1");
    let (utc, mut server) = opened(scene.session("UTC", NEAR).permit(), NEAR);
    scene.pool.release(utc);
    let permit = scene.session("Europe/Berlin", NEAR).permit();
    assert_eq!((scene.counts("db1"), scene.seats("db1")), ([0, 0, 1], 1));
    let mut told = Vec::new();
    tokio::io::AsyncReadExt::read_to_end(&mut server, &mut told)
        .await
        .expect("it was ended in order");
    assert_eq!(told, b"X\0\0\0\x04");
    scene.pool.release(scene.open(permit, NEAR));
    assert!(scene.lease("UTC", NEAR).is_none());
    assert!(scene.lease("Europe/Berlin", NEAR).is_some());
}

#[tokio::test(start_paused = true)]
async fn a_session_of_another_key_gets_the_place_once_it_has_waited_50_ms_longer() {
    let scene = Scene::new("max_connections: 1");
    let only = scene.opens("UTC", NEAR);
    let mut other = scene.waits("Europe/Berlin", NEAR);
    advance(40 * MS).await;
    let mut same = scene.waits("UTC", NEAR);
    scene.pool.release(only);
    let only = same.connection();
    advance(20 * MS).await;
    let mut same = scene.waits("UTC", NEAR);
    scene.pool.release(only);
    assert!(same.is_waiting());
    let other = scene.open(other.permit(), NEAR);
    assert_eq!(scene.counts("db1"), [0, 1, 0]);
    scene.pool.release(other);
    drop(same.permit());
}

#[tokio::test(start_paused = true)]
async fn a_session_of_another_worker_is_served_first_once_it_has_waited_5_ms_longer() {
    let scene = Scene::new("max_connections: 1");
    let only = scene.opens("UTC", NEAR);
    let mut far = scene.waits("UTC", FAR);
    advance(3 * MS).await;
    let mut near = scene.waits("UTC", NEAR);
    scene.pool.release(only);
    let only = near.connection();
    advance(3 * MS).await;
    let mut near = scene.waits("UTC", NEAR);
    scene.pool.release(only);
    assert!(near.is_waiting());
    let only = far.connection();
    assert_eq!(only.worker, FAR);
    scene.pool.release(only);
    assert_eq!(near.connection().worker, NEAR);
}

#[tokio::test(start_paused = true)]
async fn only_so_many_are_opened_at_once() {
    let scene = Scene::new("max_connections: 4, connects: 2");
    let mut sessions: Vec<Session> = (0..4).map(|_| scene.session("UTC", NEAR)).collect();
    let one = sessions[0].permit();
    let two = sessions[1].permit();
    assert!(sessions[2].is_waiting() && sessions[3].is_waiting());
    let one = scene.open(one, NEAR);
    let three = sessions[2].permit();
    assert!(sessions[3].is_waiting());
    drop(two);
    drop(sessions[3].permit());
    drop((one, three));
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_serves_a_session_behind_one_that_has_no_use_for_it() {
    let scene = Scene::new("max_connections: 2, connects: 1");
    let utc = scene.opens("UTC", NEAR);
    let slow = scene.session("Europe/Berlin", NEAR).permit();
    let mut blocked = scene.waits("Asia/Tokyo", NEAR);
    scene.pool.release(utc);
    assert!(blocked.is_waiting(), "another one is being opened");
    let utc = scene.session("UTC", NEAR).connection();
    let mut behind = scene.waits("UTC", NEAR);
    scene.pool.release(utc);
    let utc = behind.connection();
    scene.pool.release(utc);
    let berlin = scene.open(slow, NEAR);
    drop(blocked.permit());
    drop(berlin);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_is_not_quiet_is_closed_and_its_session_keeps_its_place() {
    let scene = Scene::new("max_connections: 1");
    let (only, server) = opened(scene.session("UTC", NEAR).permit(), NEAR);
    scene.pool.release(only);
    drop(server);
    assert!(scene.lease("UTC", NEAR).is_none(), "the server has ended it");
    assert_eq!(scene.counts("db1"), [0, 0, 0]);
    let (only, server) = opened(scene.session("UTC", NEAR).permit(), NEAR);
    let (mut first, mut second) = (scene.waits("UTC", NEAR), scene.waits("UTC", NEAR));
    scene.pool.release(only);
    drop(server);
    let permit = first.permit();
    assert!(second.is_waiting());
    drop(permit);
    let (only, server) = opened(second.permit(), NEAR);
    scene.pool.release(only);
    drop(server);
    scene.pool.close_unquiet();
    assert_eq!(scene.counts("db1"), [0, 0, 0]);
    let text = scene.exposition();
    assert!(
        text.contains("pool_closed_total{route=\"rw\",reason=\"unquiet\"} 3"),
        "{text}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_session_whose_connection_was_not_quiet_gets_another_idle_one() {
    let scene = Scene::new("max_connections: 3, connects: 1");
    let (one, server) = opened(scene.session("UTC", NEAR).permit(), NEAR);
    let two = scene.opens("UTC", NEAR);
    let slow = scene.session("Europe/Berlin", NEAR).permit();
    let blocked = scene.waits("Asia/Tokyo", NEAR);
    let mut behind = scene.waits("UTC", NEAR);
    scene.pool.release(one);
    drop(server);
    // It has been granted the first one, so the second one idles.
    scene.pool.release(two);
    assert_eq!(scene.counts("db1"), [1, 1, 1]);
    drop(behind.connection());
    drop((blocked, slow));
}

#[tokio::test(start_paused = true)]
async fn the_queue_has_its_limits_and_a_session_its_notice() {
    let scene = Scene::of(
        "targets: [leader], max_queue: 2, queue_timeout: 10s, pool: {mode: transaction, max_connections: 1, \
         wait_notify: 5s}",
        1,
        100,
    );
    let stop = CancellationToken::new();
    let keeper = tokio::spawn(Arc::clone(&scene.pools).keep(stop.clone()));
    let only = scene.opens("UTC", NEAR);
    let mut first = scene.waits("UTC", NEAR);
    advance(100 * MS).await;
    let mut second = scene.waits("UTC", NEAR);
    assert_eq!(scene.pool.view().last_refused, None);
    let refusal = scene.session("UTC", NEAR).refusal();
    assert!(matches!(refusal, NoLease::Queue(QueueError::Full)), "{refusal:?}");
    assert_eq!(
        scene.pool.view().last_refused,
        Some(Duration::ZERO),
        "too many wait"
    );
    tokio::time::sleep(Duration::from_millis(4980)).await;
    assert!(matches!(first.poll(), Some(Waited::Notice)));
    assert!(first.is_waiting() && second.is_waiting(), "it goes on waiting");
    tokio::time::sleep(Duration::from_millis(4980)).await;
    assert!(scene.pool.view().last_refused > Some(Duration::from_secs(9)));
    assert!(matches!(first.refusal(), NoLease::Queue(QueueError::Timeout)));
    assert_eq!(
        scene.pool.view().last_refused,
        Some(Duration::ZERO),
        "it waited too long"
    );
    assert!(matches!(second.poll(), Some(Waited::Notice)));
    scene.pool.release(only);
    let only = second.connection();
    scene.pool.release(only);
    stop.cancel();
    keeper.await.expect("it does not panic");
    assert_eq!(scene.counts("db1"), [0, 0, 0], "nothing idles at the end");
    let text = scene.exposition();
    for line in [
        "queue_full_total{route=\"rw\"} 1",
        "queue_timeouts_total{route=\"rw\"} 1",
        "queue_entered_total{route=\"rw\"} 2",
        "queue_length{route=\"rw\"} 0",
    ] {
        assert!(text.contains(line), "{line} is missing in {text}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_reserve_is_for_sessions_that_have_waited() {
    let scene = Scene::new("max_connections: 1, reserve: 1, reserve_delay: 1s");
    let only = scene.opens("UTC", NEAR);
    let mut first = scene.waits("UTC", NEAR);
    let tick = || scene.pool.tick(Instant::now());
    advance(900 * MS).await;
    tick();
    assert!(first.is_waiting());
    advance(100 * MS).await;
    let mut second = scene.waits("UTC", NEAR);
    tick();
    let reserve = scene.open(first.permit(), NEAR);
    assert!(second.is_waiting());
    scene.pool.release(only);
    let only = second.connection();
    // Nobody waits any more.
    scene.pool.release(reserve);
    assert_eq!(scene.counts("db1"), [0, 1, 0]);
    scene.pool.release(only);
    assert_eq!(scene.counts("db1"), [1, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn connections_end_after_their_life_time_or_when_they_idle_too_long() {
    let scene = Scene::new("max_connections: 3, min_connections: 1, idle_timeout: 10s, max_lifetime: 100s");
    let recipe = scene.recipe("UTC");
    let connections: Vec<_> = (0..3).map(|_| scene.opens("UTC", NEAR)).collect();
    for connection in connections {
        assert!((90..=100).contains(&(connection.expires - Instant::now()).as_secs()));
        scene.pool.release(connection);
    }
    let tick = || scene.pool.tick(Instant::now());
    advance(Duration::from_secs(9)).await;
    tick();
    assert_eq!(scene.counts("db1"), [3, 0, 0]);
    advance(Duration::from_secs(1)).await;
    tick();
    assert_eq!(
        scene.counts("db1"),
        [1, 0, 0],
        "one is kept while a session lives"
    );
    drop(recipe);
    tick();
    assert_eq!(scene.counts("db1"), [0, 0, 0]);
    let old = scene.opens("UTC", NEAR);
    scene.pool.release(old);
    let old = scene.lease("UTC", NEAR).expect("it is idle");
    advance(Duration::from_secs(101)).await;
    scene.pool.release(old);
    assert_eq!(scene.counts("db1"), [0, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn missing_connections_are_asked_for_while_a_session_of_the_key_lives() {
    let mut scene = Scene::new("max_connections: 5, min_connections: 3, connects: 2");
    let tick = |scene: &Scene| scene.pool.tick(Instant::now());
    tick(&scene);
    assert!(scene.spares.try_recv().is_err(), "no session lives");
    let recipe = scene.recipe("UTC");
    assert!(Arc::ptr_eq(&recipe, &scene.recipe("UTC")), "one for all sessions");
    tick(&scene);
    tick(&scene);
    let spares: Vec<_> = std::iter::from_fn(|| scene.spares.try_recv().ok()).collect();
    assert_eq!(spares.len(), 2, "so many are opened at once");
    for spare in spares {
        assert!(Arc::ptr_eq(&spare.recipe, &recipe));
        scene.pool.release(scene.open(spare.permit, NEAR));
    }
    tick(&scene);
    let spare = scene.spares.try_recv().expect("the third");
    assert_eq!(scene.counts("db1"), [2, 0, 1]);
    // It could not be opened.
    drop(spare);
    assert_eq!(scene.counts("db1"), [2, 0, 0]);
    drop(recipe);
    tick(&scene);
    assert!(scene.spares.try_recv().is_err(), "no session lives");
}

#[tokio::test(start_paused = true)]
async fn connections_to_a_member_that_may_not_serve_any_more_are_closed() {
    let scene = Scene::new("max_connections: 3");
    let connections: Vec<_> = (0..3).map(|_| scene.opens("UTC", NEAR)).collect();
    let [one, two, three] = <[Connection; 3]>::try_from(connections).expect("three");
    scene.pool.release(one);
    let tick = || scene.pool.tick(Instant::now());
    // Not known for a moment: they stay, and nobody gets them.
    scene.script.publish(snapshot(None, members(1)));
    tick();
    assert!(scene.lease("UTC", NEAR).is_none());
    let refusal = scene.session("UTC", NEAR).refusal();
    assert!(
        matches!(&refusal, NoLease::NoCandidate(choice) if choice.refused.len() == 1),
        "{refusal:?}"
    );
    scene.pool.release(two);
    assert_eq!(scene.counts("db1"), [2, 1, 0]);
    scene.script.publish(cluster(members(1)));
    scene
        .pool
        .release(scene.lease("UTC", NEAR).expect("it is fit again"));
    let mut drained = members(1);
    drained[0].admin = AdminState::Drain;
    scene.script.publish(cluster(drained));
    tick();
    assert_eq!(scene.counts("db1"), [0, 1, 0]);
    scene.pool.release(three);
    assert_eq!(scene.counts("db1"), [0, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn another_leader_ends_the_connections_to_the_old_one_and_serves_those_that_wait() {
    let scene = Scene::new("max_connections: 2");
    let (idle, leased) = (scene.opens("UTC", NEAR), scene.opens("UTC", NEAR));
    let mut waits = scene.waits("UTC", NEAR);
    let stop = CancellationToken::new();
    let keeper = tokio::spawn(Arc::clone(&scene.pools).keep(stop.clone()));
    tokio::time::sleep(10 * MS).await;
    let mut both = members(2);
    for (member, in_recovery) in both.iter_mut().zip([true, false]) {
        if let Some(facts) = &mut member.health.facts {
            facts.in_recovery = in_recovery;
        }
    }
    scene.script.publish(snapshot(Some("db2"), both.clone()));
    tokio::time::sleep(MS).await;
    let permit = waits.permit();
    assert_eq!(permit.candidate.member.as_str(), "db2");
    scene.pool.release(idle);
    scene.pool.release(leased);
    assert_eq!((scene.counts("db1"), scene.counts("db2")), ([0; 3], [0, 0, 1]));
    drop(permit);
    // No member at all: those that wait are told.
    let leased = [scene.opens("UTC", NEAR), scene.opens("UTC", NEAR)];
    let mut waits = scene.waits("UTC", NEAR);
    let mut none = cluster(Vec::new());
    Arc::make_mut(&mut none).leader = Leader::None(NoLeader::NotNamed);
    scene.script.publish(none);
    tokio::time::sleep(MS).await;
    assert!(matches!(waits.refusal(), NoLease::NoCandidate(_)));
    drop(leased);
    stop.cancel();
    keeper.await.expect("it does not panic");
}

#[tokio::test(start_paused = true)]
async fn a_connection_says_since_when_its_session_has_it() {
    let scene = Scene::new("max_connections: 1");
    let opened = scene.opens("UTC", NEAR);
    assert_eq!(opened.since, Instant::now());
    advance(MS * 1000).await;
    scene.pool.release(opened);
    advance(MS * 1000).await;
    let idled = scene.lease("UTC", NEAR).expect("it is idle");
    assert_eq!(idled.since, Instant::now());
    let mut waits = scene.waits("UTC", NEAR);
    advance(MS * 1000).await;
    scene.pool.release(idled);
    assert_eq!(waits.connection().since, Instant::now(), "handed over");
}

#[tokio::test(start_paused = true)]
async fn reconnecting_closes_idle_connections_now_and_leased_ones_at_their_release() {
    let scene = Scene::new("max_connections: 3, connects: 5");
    let (idle, leased) = (scene.opens("UTC", NEAR), scene.opens("UTC", NEAR));
    let opening = scene.session("UTC", NEAR).permit();
    scene.pool.release(idle);
    let db1 = MemberName::new("db1");
    let which = |cluster| Reconnect::Member {
        cluster,
        member: &db1,
    };
    assert_eq!(scene.pools.reconnect(which("other")), 0);
    assert_eq!(scene.pools.reconnect(Reconnect::Route("other")), 0);
    assert_eq!(scene.pools.reconnect(which("main")), 3);
    assert_eq!(scene.counts("db1"), [0, 1, 1]);
    let outdated = || {
        scene
            .pool
            .view()
            .members
            .iter()
            .map(|on| on.outdated)
            .sum::<usize>()
    };
    assert_eq!(outdated(), 2);
    scene.pool.release(leased);
    assert_eq!(outdated(), 1);
    scene.pool.release(scene.open(opening, NEAR));
    assert_eq!(scene.counts("db1"), [0, 0, 0]);
    scene.pool.release(scene.opens("UTC", NEAR));
    assert_eq!(scene.counts("db1"), [1, 0, 0], "it is a new one");
    assert_eq!(outdated(), 0);
    assert_eq!(scene.pools.reconnect(Reconnect::Route("rw")), 1);
    scene.pool.release(scene.opens("UTC", NEAR));
    assert_eq!(scene.pools.reconnect(Reconnect::All), 1);
    assert_eq!(scene.counts("db1"), [0, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn sessions_are_balanced_over_the_members_and_avoid_those_that_they_have_tried() {
    let scene = Scene::of(
        "targets: [replica], pool: {mode: transaction, max_connections: 2}",
        3,
        100,
    );
    let mut connections: Vec<_> = (0..4).map(|_| scene.opens("UTC", NEAR)).collect();
    assert_eq!((scene.counts("db2"), scene.counts("db3")), ([0, 2, 0], [0, 2, 0]));
    let mut waits = scene.waits("UTC", NEAR);
    let db2 = MemberName::new("db2");
    let mut want = scene.want("UTC", NEAR);
    want.tried = vec![db2.clone()];
    let mut picky = Session::new(scene.pool.acquire(want.clone()));
    assert!(picky.is_waiting());
    let of = |connections: &mut Vec<Connection>, name: &str| {
        let index = connections
            .iter()
            .position(|connection| connection.member().as_str() == name);
        connections.swap_remove(index.expect("there is one"))
    };
    scene.pool.release(of(&mut connections, "db2"));
    connections.push(waits.connection());
    scene.pool.release(of(&mut connections, "db2"));
    assert!(picky.is_waiting(), "it has tried that member");
    scene.pool.release(of(&mut connections, "db3"));
    drop(picky.connection());
    want.tried = vec![db2, MemberName::new("db3")];
    let refusal = Session::new(scene.pool.acquire(want)).refusal();
    assert!(matches!(refusal, NoLease::NoCandidate(_)));
    // The member with fewer busy connections is preferred, and it has idle ones.
    scene.pool.release(of(&mut connections, "db2"));
    let leased = scene.lease("UTC", NEAR).expect("two are idle");
    assert_eq!(leased.member().as_str(), "db2");
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_idles_in_another_pool_makes_room_under_the_limit_of_the_server() {
    let scene = Scene::of(
        "targets: [leader], pool: {mode: transaction, max_connections: 2}",
        1,
        2,
    );
    let other = scene.other_pool();
    assert!(!Arc::ptr_eq(&other, &scene.pool));
    let mut want = scene.want("UTC", NEAR);
    want.key = other.intern((*want.key).clone());
    let acquire = || Session::new(other.acquire(want.clone()));
    let (one, two) = (
        scene.open(acquire().permit(), NEAR),
        scene.open(acquire().permit(), NEAR),
    );
    other.release(one);
    let permit = scene.session("UTC", NEAR).permit();
    assert_eq!((other.view().members[0].idle, scene.seats("db1")), (0, 2));
    // Nothing idles. The keeper hears of the next free place.
    let stop = CancellationToken::new();
    let keeper = tokio::spawn(Arc::clone(&scene.pools).keep(stop.clone()));
    let mut waits = scene.waits("UTC", NEAR);
    tokio::time::sleep(MS).await;
    drop(two);
    tokio::time::sleep(MS).await;
    drop(waits.permit());
    drop(permit);
    stop.cancel();
    keeper.await.expect("it does not panic");
    assert_eq!(scene.seats("db1"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_reload_changes_sizes_without_touching_sessions() {
    let scene = Scene::new("max_connections: 3");
    let connections: Vec<_> = (0..3).map(|_| scene.opens("UTC", NEAR)).collect();
    let smaller = route(
        "rw",
        "targets: [leader], pool: {mode: transaction, max_connections: 1}",
        100,
    )
    .1;
    scene.pools.reconfigure(&[smaller]);
    assert_eq!(scene.counts("db1"), [0, 3, 0]);
    let mut waits = scene.waits("UTC", NEAR);
    for connection in connections {
        scene.pool.release(connection);
    }
    scene.pool.release(waits.connection());
    assert_eq!(scene.counts("db1"), [1, 0, 0]);
    let larger = route(
        "rw",
        "targets: [leader], pool: {mode: transaction, max_connections: 2}",
        100,
    )
    .1;
    scene.pools.reconfigure(&[larger]);
    let leased = scene.lease("UTC", NEAR).expect("it is idle");
    scene.pool.release(scene.opens("UTC", NEAR));
    scene.pools.reconfigure(&[]);
    assert_eq!(scene.counts("db1"), [0, 1, 0], "nothing idles without a pool");
    scene.pool.release(leased);
    assert_eq!(scene.counts("db1"), [0, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn a_process_that_has_handed_over_keeps_nothing_idle_whatever_is_loaded() {
    let scene = Scene::new("max_connections: 2");
    let leased = scene.opens("UTC", NEAR);
    scene.pool.release(scene.opens("UTC", NEAR));
    assert_eq!(scene.counts("db1"), [1, 1, 0]);
    scene.pools.retire();
    assert_eq!(scene.counts("db1"), [0, 1, 0]);
    scene.pools.reconfigure(&[Arc::clone(&scene.route)]);
    scene.pool.release(leased);
    assert_eq!(scene.counts("db1"), [0, 0, 0]);
    let other = scene.other_pool();
    let mut want = scene.want("UTC", NEAR);
    want.key = other.intern((*want.key).clone());
    other.release(scene.open(Session::new(other.acquire(want)).permit(), NEAR));
    let idle = other
        .view()
        .members
        .iter()
        .map(|member| member.idle)
        .sum::<usize>();
    assert_eq!(idle, 0, "a pool that is made later is like the others");
}

#[tokio::test(start_paused = true)]
async fn a_pool_is_forgotten_when_nobody_has_it_and_nothing_is_in_it() {
    let scene = Scene::new("max_connections: 1, idle_timeout: 1s");
    let count = || scene.pools.views().len();
    let other = scene.other_pool();
    let mut want = scene.want("UTC", NEAR);
    want.key = other.intern((*want.key).clone());
    other.release(scene.open(Session::new(other.acquire(want)).permit(), NEAR));
    let weak = Arc::downgrade(&other);
    drop(other);
    scene.pools.forget_unused();
    assert_eq!(count(), 2, "it has an idle connection");
    advance(Duration::from_secs(1)).await;
    for pool in scene.pools.all() {
        pool.tick(Instant::now());
    }
    scene.pools.forget_unused();
    assert_eq!(count(), 1, "a session has the other one");
    assert!(weak.upgrade().is_none());
    scene.pool.release(scene.opens("UTC", NEAR));
    let (weak, occupancy) = (Arc::downgrade(&scene.pool), Arc::clone(&scene.occupancy));
    drop(scene);
    assert!(weak.upgrade().is_none(), "its idle connection does not hold it");
    assert_eq!(occupancy.sessions_on(&"main".into(), &MemberName::new("db1")), 0);
}

#[tokio::test(start_paused = true)]
async fn five_thousand_sessions_are_served_in_order_with_one_wake_up_each() {
    let scene = Scene::of(
        "targets: [leader], max_queue: 5000, pool: {mode: transaction, max_connections: 5}",
        1,
        100,
    );
    let mut connections: Vec<_> = (0..5).map(|_| scene.opens("UTC", NEAR)).collect();
    let mut waiting: Vec<Session> = (0..5000).map(|_| scene.waits("UTC", NEAR)).collect();
    let woken = |waiting: &[Session]| waiting.iter().map(Session::woken).sum::<usize>();
    // From the middle.
    drop(waiting.drain(1000..4000));
    assert_eq!(woken(&waiting), 0);
    for mut session in waiting.drain(..) {
        scene.pool.release(connections.remove(0));
        assert_eq!(session.woken(), 1);
        connections.push(session.connection());
    }
    assert_eq!(scene.pool.view().waiting, 0);
    assert_eq!(scene.counts("db1"), [0, 5, 0]);
}
