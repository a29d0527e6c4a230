#![allow(clippy::unwrap_used)]

use super::super::{Listed, Named, Observation, PatroniTimes, Settings, SourceReport};
use super::*;
use crate::cluster::check::CheckStatus;
use crate::cluster::snapshot::{MemberName, Role};
use crate::config::Placement;

const SECOND: Duration = Duration::from_secs(1);
/// How often the state is updated with the time.
const TICK: Duration = Duration::from_millis(250);

struct World {
    state: State,
    now: Instant,
    start: Instant,
}

impl World {
    fn new(kind: SourceKind, poll: Duration, probe: Duration) -> Self {
        let settings = Settings {
            cluster: "main".into(),
            kind,
            rise: 2,
            fall: 3,
            probe_interval: probe,
            probe_timeout: SECOND,
            poll_interval: poll,
            fast_interval: Duration::from_millis(100),
            placement: Placement::even(),
            limits: std::collections::BTreeMap::new(),
        };
        let now = Instant::now();
        let state = State::new(settings, now);
        let mut world = Self {
            state,
            now,
            start: now,
        };
        if kind == SourceKind::Fixed {
            let report = Self::report();
            world.observe(Observation::Source(report));
        }
        world
    }

    fn report() -> SourceReport {
        let members = ["a", "b"].map(|name| Listed {
            name: MemberName::new(name),
            host: name.into(),
            port: 5432,
            role: Role::Unnamed,
            state: String::new(),
            timeline: None,
            lag: None,
            tags: std::collections::BTreeMap::new(),
            api_url: None,
        });
        SourceReport {
            members: members.into(),
            named: Named::Nobody,
            paused: false,
            disagreement: None,
            rivals: Vec::new(),
            scheduled: None,
        }
    }

    fn observe(&mut self, observation: Observation) {
        self.state.observe(observation, self.now);
    }

    fn polled(&mut self) {
        let (report, begun) = (Self::report(), self.now);
        self.observe(Observation::Polled { report, begun });
    }

    fn failed(&mut self, member: &str, check: CheckStatus, kind: FailureKind) {
        let error = ProbeError {
            message: "as scripted".into(),
            check,
            kind,
        };
        self.observe(Observation::Probe {
            member: MemberName::new(member),
            started: self.now,
            result: Err(error),
        });
    }

    fn refused(&mut self, member: &str) {
        self.failed(member, CheckStatus::Layer4Connection, FailureKind::Certain);
    }

    fn timed_out(&mut self, member: &str) {
        self.failed(member, CheckStatus::Layer4Timeout, FailureKind::Counts);
    }

    fn hears(&self) -> bool {
        self.state.snapshot().hears
    }

    /// Lets time pass in ticks. Returns after how long it hears nothing.
    fn deaf_after(&mut self, time: Duration) -> Option<Duration> {
        let began = self.now;
        while self.now < began + time {
            self.now += TICK;
            self.state.tick(self.now);
            if !self.hears() {
                return Some(self.now - began);
            }
        }
        None
    }
}

#[test]
fn a_router_that_is_cut_off_hears_nothing_within_two_seconds() {
    let mut world = World::new(SourceKind::Patroni, SECOND, SECOND);
    assert!(!world.hears(), "nothing has answered yet");
    world.polled();
    assert!(world.hears());
    let version = world.state.snapshot().version;
    let after = world.deaf_after(SECOND * 5).unwrap();
    assert!(
        after > Duration::from_millis(1500) && after <= SECOND * 2,
        "{after:?}"
    );
    assert!(world.state.snapshot().version > version, "readers are woken");
    world.timed_out("a");
    assert!(!world.hears());
    world.refused("a");
    assert!(world.hears());
}

#[test]
fn any_answer_counts_and_a_failure_without_an_answer_does_not() {
    use CheckStatus::*;
    for (check, kind, is_heard) in [
        (Layer4Connection, FailureKind::Certain, true),
        (Layer7Status, FailureKind::Full, true),
        (Layer7Status, FailureKind::Counts, true),
        (Layer6Response, FailureKind::Counts, true),
        (Layer4Connection, FailureKind::Counts, false),
        (Layer4Timeout, FailureKind::Counts, false),
        (Layer7Timeout, FailureKind::Counts, false),
        (SocketError, FailureKind::NotTried, false),
    ] {
        let mut world = World::new(SourceKind::Fixed, SECOND, SECOND);
        world.failed("a", check, kind);
        assert_eq!(world.hears(), is_heard, "{check:?} {kind:?}");
    }
    let mut world = World::new(SourceKind::Patroni, SECOND, SECOND);
    let (named, at) = (Named::Nobody, world.now);
    world.observe(Observation::Key { named, at });
    assert!(world.hears());
    world.observe(Observation::DcsFailed("it has no DCS".into()));
    assert!(world.deaf_after(SECOND * 2).is_some());
}

#[test]
fn ordinary_intervals_never_flap() {
    // The longest jitter, and answers that take a while.
    let interval = Duration::from_millis(1100);
    for takes in [5, 300, 900].map(Duration::from_millis) {
        for source in [SourceKind::Patroni, SourceKind::Fixed] {
            let mut world = World::new(source, SECOND, SECOND);
            world.polled();
            let start = world.start;
            for round in 0..60 {
                let answer = start + interval * round + takes;
                while world.now + TICK < answer {
                    world.now += TICK;
                    world.state.tick(world.now);
                    assert!(world.hears(), "{takes:?} {source:?}");
                }
                world.now = answer;
                match source {
                    SourceKind::Patroni => world.polled(),
                    SourceKind::Fixed => world.refused("a"),
                }
            }
        }
    }
}

#[test]
fn everything_is_asked_once_more_before_the_last_answer_is_too_old() {
    let mut world = World::new(SourceKind::Patroni, SECOND, SECOND * 30);
    world.polled();
    let (named, at) = (Named::Nobody, world.now);
    world.observe(Observation::Key { named, at });
    world.state.wants();
    for millis in [250, 500, 750, 1000] {
        world.now = world.start + Duration::from_millis(millis);
        world.state.tick(world.now);
        assert_eq!(world.state.wants(), super::super::Wants::default(), "{millis}");
    }
    world.now = world.start + Duration::from_millis(1450);
    world.state.tick(world.now);
    let wants = world.state.wants();
    assert!(wants.poll && wants.check_key && wants.probe.len() == 2 && wants.anew.is_empty());
    // A member that is probed twice a minute answers.
    world.refused("b");
    assert_eq!(world.deaf_after(SECOND), None);
    // Once it hears nothing, the usual intervals are enough.
    assert!(world.deaf_after(SECOND).is_some());
    world.state.wants();
    world.now += TICK;
    world.state.tick(world.now);
    assert_eq!(world.state.wants(), super::super::Wants::default());
}

#[test]
fn with_long_intervals_an_answer_counts_until_the_next_look_fails() {
    let long = SECOND * 20;
    let mut world = World::new(SourceKind::Patroni, long, long);
    world.polled();
    world.refused("a");
    world.refused("b");
    assert_eq!(world.deaf_after(long), None);
    world.observe(Observation::SourceFailed("no endpoint answers".into()));
    assert!(world.hears());
    world.timed_out("a");
    assert!(world.hears(), "the last answer of b counts");
    world.timed_out("b");
    assert!(!world.hears());
    world.refused("b");
    assert!(world.hears());

    let mut world = World::new(SourceKind::Fixed, long, long);
    assert!(!world.hears(), "a list is no answer");
    world.refused("a");
    assert_eq!(world.deaf_after(long), None);
    world.timed_out("a");
    assert!(!world.hears());
}

#[test]
fn a_freeze_of_this_process_does_not_make_it_deaf() {
    let mut world = World::new(SourceKind::Patroni, SECOND, SECOND);
    world.polled();
    world.now += SECOND * 30;
    world.state.resume(SECOND * 30, world.now);
    assert!(world.hears());
    assert!(world.deaf_after(SECOND * 2).is_some());
}

#[test]
fn patronis_patience_is_published_and_kept() {
    let mut world = World::new(SourceKind::Patroni, SECOND, SECOND);
    world.polled();
    assert_eq!(world.state.snapshot().patience, None);
    let version = world.state.snapshot().version;
    world.observe(Observation::Times(PatroniTimes {
        ttl: SECOND * 30,
        loop_wait: SECOND * 10,
    }));
    let snapshot = world.state.snapshot();
    assert_eq!(snapshot.patience, Some(SECOND * 40));
    assert!(snapshot.version > version);
    world.observe(Observation::SourceFailed("gone".into()));
    assert_eq!(world.state.snapshot().patience, Some(SECOND * 40));
}
