//! Requests for a switchover, and a leader that its Patroni stops.

use super::super::state::{PatroniTimes, RequestedIn, SwitchoverRequest};
use super::etcd::watched;
use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn request(leader: Option<usize>, candidate: Option<usize>) -> SwitchoverRequest {
    SwitchoverRequest {
        leader: leader.map(name),
        candidate: candidate.map(name),
        at: None,
    }
}

impl World {
    /// The `failover` key in etcd.
    fn ask(&mut self, request: Option<SwitchoverRequest>, wait: Duration) {
        let due = self.now + wait;
        let place = RequestedIn::Dcs;
        self.observe(Observation::Switchover { place, request, due });
    }

    /// What was reported since the last call: `+` for armed, else the reason.
    fn reported(&mut self) -> Vec<String> {
        self.armings.append(&mut self.state.wants().armings);
        let word = |arming| match arming {
            Arming::Begun { member, .. } => format!("+{member}"),
            Arming::Ended { why, .. } => why,
        };
        std::mem::take(&mut self.armings).into_iter().map(word).collect()
    }

    fn leads(&self, index: usize) -> bool {
        self.leader() == Some((format!("db{index}"), NamedBy::LeaderKey))
    }
}

/// db0 leads and is watched in etcd; `loop_wait` is 10 s.
fn world() -> World {
    let mut world = watched();
    world.observe(Observation::Times(PatroniTimes {
        ttl: SECOND * 30,
        loop_wait: SECOND * 10,
    }));
    world.reported();
    world
}

#[test]
fn a_request_arms_at_once_and_changes_nothing_else() {
    let mut world = world();
    world.pass(SECOND * 10);
    assert!(world.state.look().is_none() && !world.state.suspicious(world.now));
    world.ask(Some(request(Some(0), Some(1))), Duration::ZERO);
    assert_eq!(world.reported(), ["+db0"]);
    let look = world.state.look().unwrap();
    assert_eq!((look.member, look.every), (name(0), Duration::from_millis(20)));
    assert_eq!(world.state.pace(world.now).probe, Duration::from_millis(100));
    // Sent to a replica: the leader's Patroni sees it up to 9 s later. Then a slow checkpoint.
    world.pass(SECOND * 19);
    assert!(world.leads(0) && world.state.look().is_some());
    assert_eq!(world.reported(), Vec::<String>::new());
}

#[test]
fn the_leader_that_patroni_stops_is_no_leader_at_once_until_another_one_is_verified() {
    let mut world = world();
    world.ask(Some(request(Some(0), Some(1))), Duration::ZERO);
    world.pass(SECOND * 9);
    // `before_stop` takes 3 s. The server accepts connections and writes.
    world.statuses.insert(0, "stopping");
    world.pass(STEP);
    assert_eq!(world.reason(), "Patroni stops db0, the leader");
    assert_eq!(world.state.look().unwrap().every, Duration::from_millis(100));
    world.pass(SECOND * 3);
    assert_eq!(world.reason(), "Patroni stops db0, the leader");
    world.apply(&Action::Run(0, false));
    world.pass(SECOND);
    assert_eq!(
        world.reason(),
        "Patroni stops db0, the leader",
        "not another reason for the same"
    );
    world.statuses.insert(0, "stopped");
    world.apply(&Action::Demote(0));
    world.apply(&Action::Key(None));
    world.pass(Duration::from_millis(150));
    assert_eq!(world.reason(), "no member holds the leader key");
    world.apply(&Action::Key(Some(1)));
    world.pass(Duration::from_millis(100));
    assert_eq!(
        world.reason(),
        "db1 holds the leader key but has not been seen to accept writes"
    );
    world.apply(&Action::Promote(1));
    world.pass(Duration::from_millis(150));
    assert!(world.leads(1));
    assert!(world.state.look().is_none());
    assert_eq!(world.reported(), ["+db0", "db1 is the leader now"]);
    // The new leader empties the key.
    world.ask(None, Duration::ZERO);
    world.pass(SECOND * 30);
    assert!(world.leads(1) && world.state.look().is_none());
    assert_eq!(world.reported(), Vec::<String>::new());
}

#[test]
fn a_request_that_concerns_the_leader_is_known_as_long_as_it_is_there() {
    let mut world = world();
    let is_requested = |world: &World| world.state.snapshot().switchover_requested;
    assert!(!is_requested(&world));
    // Also one whose time has not come, and one that has armed in vain.
    world.ask(Some(request(Some(0), Some(1))), SECOND * 3600);
    assert!(is_requested(&world) && world.state.look().is_none());
    world.ask(Some(request(None, None)), Duration::ZERO);
    world.pass(SECOND * 60);
    assert!(is_requested(&world) && world.state.look().is_none());
    // Those of others, and for whom leads already.
    for other in [request(Some(1), Some(2)), request(None, Some(0))] {
        world.ask(Some(other), Duration::ZERO);
        assert!(!is_requested(&world));
    }
    world.ask(Some(request(Some(0), None)), Duration::ZERO);
    assert!(is_requested(&world));
    world.ask(None, Duration::ZERO);
    assert!(!is_requested(&world));
}

#[test]
fn a_request_that_patroni_drops_disarms() {
    let mut world = world();
    world.ask(Some(request(Some(0), None)), Duration::ZERO);
    world.pass(SECOND);
    // No healthy candidate.
    world.ask(None, Duration::ZERO);
    assert!(world.state.look().is_none() && world.leads(0));
    assert_eq!(world.reported(), ["+db0", "the request is gone"]);
    // The same request again is a new one.
    world.ask(Some(request(Some(0), None)), Duration::ZERO);
    assert_eq!(world.reported(), ["+db0"]);
    // So is another one that replaces it.
    world.ask(Some(request(Some(0), Some(2))), Duration::ZERO);
    assert_eq!(world.reported(), ["there is a new request", "+db0"]);
}

#[test]
fn a_request_after_which_nothing_happens_disarms_and_does_not_arm_again() {
    let mut world = world();
    world.ask(Some(request(None, Some(1))), Duration::ZERO);
    world.pass(Duration::from_millis(19_900));
    assert_eq!(world.reported(), ["+db0"]);
    world.pass(Duration::from_millis(200));
    assert_eq!(world.reported(), ["nothing has happened"]);
    assert!(world.state.look().is_none() && world.leads(0));
    // The watch was lost and shows it again.
    world.ask(Some(request(None, Some(1))), Duration::ZERO);
    let looks = world.looks;
    world.pass(SECOND * 60);
    assert_eq!((world.reported(), world.looks), (vec![], looks));
    assert!(!world.state.suspicious(world.now));
}

#[test]
fn a_scheduled_request_arms_at_its_time() {
    let mut world = world();
    let later = SECOND * 120;
    world.ask(Some(request(Some(0), None)), later);
    world.pass(SECOND * 118);
    assert_eq!((world.reported(), world.looks), (vec![], 0));
    world.pass(SECOND + STEP);
    assert_eq!(world.reported(), ["+db0"], "a second before, since clocks differ");
    world.pass(SECOND * 20);
    assert!(world.state.look().is_some());
    world.pass(SECOND * 2);
    assert_eq!(world.reported(), ["nothing has happened"]);
    // One from `/cluster` does the same.
    let (place, due) = (RequestedIn::Source, world.now + SECOND * 5);
    let request = Some(request(Some(0), None));
    world.observe(Observation::Switchover { place, request, due });
    world.pass(SECOND * 3);
    assert_eq!(world.reported(), Vec::<String>::new());
    world.pass(SECOND * 2);
    assert_eq!(world.reported(), ["+db0"]);
    let request = None;
    world.observe(Observation::Switchover { place, request, due });
    assert_eq!(world.reported(), ["the request is gone"]);
}

#[test]
fn a_request_for_another_leader_or_for_the_leader_itself_does_not_arm() {
    let mut world = world();
    for (leader, candidate) in [
        (Some(1), Some(2)),
        (Some(1), None),
        (None, Some(0)),
        (Some(0), Some(0)),
    ] {
        world.ask(Some(request(leader, candidate)), Duration::ZERO);
        world.pass(SECOND);
        assert_eq!(
            (world.reported(), world.looks),
            (vec![], 0),
            "{leader:?} {candidate:?}"
        );
    }
}

#[test]
fn keys_of_another_cluster_do_not_arm() {
    let mut world = calm(3);
    world.ask(Some(request(None, Some(1))), Duration::ZERO);
    world.pass(SECOND);
    assert_eq!((world.reported(), world.looks), (vec![], 0));
    world.apply(&Action::Watch(Watch::Live));
    assert_eq!(world.reported(), ["+db0"]);
}

#[test]
fn a_stop_that_is_called_off_ends_with_a_probe_that_begins_later() {
    let mut world = world();
    world.ask(Some(request(Some(0), None)), Duration::ZERO);
    world.statuses.insert(0, "stopping");
    world.pass(SECOND);
    assert_eq!(world.reason(), "Patroni stops db0, the leader");
    let began = world.now - STEP;
    world.state.wants();
    let look = |world: &mut World, started, state: &str| {
        world.observe(Observation::Status {
            member: name(0),
            started,
            status: Some(MemberStatus { state: state.into() }),
        });
    };
    // An answer that is older than the last one.
    look(&mut world, began, "running");
    assert_eq!(world.reason(), "Patroni stops db0, the leader");
    let now = world.now;
    look(&mut world, now, "running");
    assert_eq!(
        world.reason(),
        "db0 holds the leader key but has not been seen to accept writes"
    );
    assert!(world.state.wants().probe.contains(&name(0)));
    world.statuses.clear();
    world.pass(SECOND);
    assert!(world.leads(0));
}

#[test]
fn looks_that_show_nothing_do_not_keep_a_leader_away() {
    let mut world = world();
    world.ask(Some(request(Some(0), None)), Duration::ZERO);
    world.statuses.insert(0, "stopping");
    world.pass(STEP);
    // Its Patroni dies, and the server goes on.
    world.apply(&Action::RestDead(0));
    world.pass(Duration::from_millis(1900));
    assert_eq!(world.reason(), "Patroni stops db0, the leader");
    world.pass(Duration::from_millis(500));
    assert!(world.leads(0));
}

#[test]
fn a_leader_that_patroni_lists_as_stopping_is_looked_at_for_a_moment() {
    let mut world = calm(3);
    let list = |world: &mut World, state: &str| {
        let (mut report, begun) = (world.view(), world.now);
        report.members[0].state = state.into();
        world.observe(Observation::Polled { report, begun });
    };
    world.reported();
    list(&mut world, "stopping");
    assert_eq!(world.reported(), ["+db0"]);
    assert!(world.leads(0), "the list may be old");
    for _ in 0..50 {
        world.now += STEP;
        list(&mut world, "stopping");
        world.ask_patroni();
    }
    assert_eq!(world.reported(), ["nothing has happened"]);
    list(&mut world, "running");
    list(&mut world, "stopping");
    assert_eq!(world.reported(), ["+db0"]);
    world.statuses.insert(0, "stopping");
    world.ask_patroni();
    assert_eq!(world.reason(), "Patroni stops db0, the leader");
}

#[test]
fn only_the_leader_can_be_stopping() {
    let mut world = world();
    for index in [1, 2] {
        let started = world.now;
        world.observe(Observation::Status {
            member: name(index),
            started,
            status: Some(MemberStatus {
                state: "stopping".into(),
            }),
        });
        assert!(world.leads(0));
    }
}

/// A role that may terminate its own sessions does so for 10 s, as often as it can.
#[test]
fn sessions_that_are_terminated_never_take_the_leader_away() {
    let mut world = world();
    world.pass(SECOND * 10);
    let version = world.state.snapshot().version;
    for _ in 0..200 {
        for _ in 0..50 {
            world.apply(&Action::Evidence(0, Evidence::Terminated));
            assert!(world.leads(0));
        }
        world.pass(STEP);
        assert!(world.leads(0));
    }
    assert_eq!(world.looks, 0);
    assert_eq!(world.state.snapshot().version, version, "nobody is woken");
}
