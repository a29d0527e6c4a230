//! Scripts of arbitrary observations. No real cluster behaves so, but a router that is
//! disconnected, late or gets wrong answers may see such sequences. `PROPTEST_RNG_SEED` selects
//! another seed. A failure is printed as the shortest script.

use std::cell::Cell;

use proptest::collection::vec;
use proptest::option;
use proptest::sample::select;
use proptest::test_runner::{RngSeed, TestError, TestRunner};

use super::*;

/// One run for each of these seeds, with this many scripts each.
const SEEDS: [u64; 4] = [1, 2, 3, 4];
const SCRIPTS: u32 = 500;
const MEMBERS: usize = 4;

#[derive(Debug, Clone)]
enum Event {
    /// Answers of Patroni's REST interface to a poll begun this many milliseconds ago. No answer is
    /// an outage.
    Rest(u64, Vec<PatroniAnswer>),
    /// The leader key as the watch showed it this many milliseconds ago.
    Key(u64, Option<usize>),
    KeyLost,
    /// A probe that began this many milliseconds ago.
    Probe(usize, u64, Sight),
    /// An event that a session noticed this many milliseconds ago.
    Session(usize, u64, Evidence),
    Admin(usize, AdminState),
    /// Milliseconds without an event.
    Wait(u64),
}

#[derive(Debug, Clone)]
struct PatroniAnswer {
    /// More than one means several leaders.
    named: Vec<usize>,
    members: Vec<Shown>,
}

/// A member as an answer lists it.
#[derive(Debug, Clone)]
struct Shown {
    listed: bool,
    host: Option<u8>,
    timeline: Option<u32>,
    role: Role,
}

/// What a probe found.
#[derive(Debug, Clone)]
enum Sight {
    Primary {
        timeline: u32,
        position: u64,
        foreign: bool,
    },
    Standby {
        timeline: u32,
        position: u64,
        foreign: bool,
    },
    Refused,
    Timeout,
}

impl PatroniAnswer {
    fn report(&self) -> SourceReport {
        let listed = |(index, shown): (usize, &Shown)| {
            let is_leader = self.named.contains(&index);
            shown.listed.then(|| Listed {
                name: name(index),
                host: shown
                    .host
                    .map(|host| format!("10.0.{host}.{index}"))
                    .unwrap_or_default(),
                port: 5432,
                role: if is_leader {
                    Role::Leader
                } else {
                    shown.role.clone()
                },
                state: "running".into(),
                timeline: shown.timeline,
                lag: None,
                tags: BTreeMap::new(),
                api_url: None,
            })
        };
        SourceReport {
            members: self.members.iter().enumerate().filter_map(listed).collect(),
            named: match self.named.as_slice() {
                [] => Named::Nobody,
                [one] => Named::One(name(*one)),
                _ => Named::Several,
            },
            paused: false,
            disagreement: None,
            rivals: Vec::new(),
            scheduled: None,
        }
    }
}

impl Sight {
    fn result(&self) -> Result<ProbeFacts, ProbeError> {
        let (in_recovery, timeline, position, foreign) = match *self {
            Self::Primary {
                timeline,
                position,
                foreign,
            } => (false, timeline, position, foreign),
            Self::Standby {
                timeline,
                position,
                foreign,
            } => (true, timeline, position, foreign),
            Self::Refused | Self::Timeout => {
                return Err(ProbeError {
                    check: CheckStatus::Layer4Connection,
                    message: "as scripted".into(),
                    kind: match self {
                        Self::Refused => FailureKind::Certain,
                        _ => FailureKind::Counts,
                    },
                });
            }
        };
        Ok(ProbeFacts {
            in_recovery,
            system_identifier: if foreign { 666 } else { OURS },
            timeline,
            position,
            received: 0,
            streaming: in_recovery,
            server_version: 150_000,
            latency: Duration::ZERO,
            address: None,
            connected: None,
        })
    }
}

/// A router that gets a script.
struct Stage {
    kind: SourceKind,
    state: State,
    witness: Witness,
    now: Instant,
    /// When the last probe of each member ended: the next begins later.
    probed: [Instant; MEMBERS],
}

impl Stage {
    fn new(kind: SourceKind) -> Self {
        // The clock begins late enough for polls and probes that began earlier.
        let now = Instant::now() + Duration::from_hours(1);
        Self {
            kind,
            state: State::new(settings(kind), now),
            witness: Witness::new(kind),
            now,
            probed: [now; MEMBERS],
        }
    }

    fn observe(&mut self, observation: Observation) {
        self.witness.hear(&observation, self.now);
        let before = self.state.snapshot();
        self.state.observe(observation, self.now);
        self.witness.check(&before, &self.state.snapshot(), self.now);
    }

    fn play(&mut self, event: &Event) {
        let ago = |millis: u64| self.now - Duration::from_millis(millis);
        match event {
            Event::Rest(millis, answers) => {
                let begun = ago(*millis);
                self.rest(begun, answers);
            }
            Event::Key(..) | Event::KeyLost if self.kind == SourceKind::Fixed => {}
            Event::Key(millis, index) => {
                let named = index.map_or(Named::Nobody, |index| Named::One(name(index)));
                let at = ago(*millis);
                self.observe(Observation::Key { named, at });
            }
            Event::KeyLost => self.observe(Observation::KeyLost),
            Event::Probe(index, millis, sight) => {
                let started = ago(*millis).max(self.probed[*index]);
                self.probed[*index] = self.now;
                self.observe(Observation::Probe {
                    member: name(*index),
                    started,
                    result: sight.result(),
                });
            }
            Event::Session(index, millis, evidence) => {
                let at = ago(*millis);
                self.observe(Observation::Evidence {
                    member: name(*index),
                    evidence: *evidence,
                    at,
                });
            }
            Event::Admin(index, state) => self.observe(Observation::Admin(name(*index), *state)),
            Event::Wait(millis) => {
                self.now += Duration::from_millis(*millis);
                let before = self.state.snapshot();
                self.state.tick(self.now);
                self.witness.check(&before, &self.state.snapshot(), self.now);
            }
        }
    }

    /// Folds the answers in as a poll does.
    fn rest(&mut self, begun: Instant, answers: &[PatroniAnswer]) {
        let reports: Vec<SourceReport> = answers.iter().map(PatroniAnswer::report).collect();
        let reports: Vec<&SourceReport> = reports.iter().collect();
        let snapshot = self.state.snapshot();
        let seen = |name: &MemberName| seen_writable(&snapshot, name);
        match choose(&reports, &seen, &snapshot) {
            Some(mut report) if self.kind == SourceKind::Fixed => {
                report.named = Named::Nobody;
                for member in &mut report.members {
                    member.role = Role::Unnamed;
                    member.state.clear();
                    member.timeline = None;
                }
                self.observe(Observation::Source(report));
            }
            Some(report) => self.observe(Observation::Polled { report, begun }),
            None if self.kind == SourceKind::Fixed => {}
            None => self.observe(Observation::SourceFailed("as scripted".into())),
        }
    }
}

fn answer() -> impl Strategy<Value = PatroniAnswer> {
    let shown = (
        prop::bool::weighted(0.95),
        prop_oneof![18 => Just(Some(0)), 1 => Just(Some(1)), 1 => Just(None)],
        prop_oneof![6 => (1_u32..4).prop_map(Some), 1 => Just(None)],
        prop_oneof![
            8 => Just(Role::Replica),
            2 => Just(Role::SyncStandby),
            1 => Just(Role::Leader),
            1 => Just(Role::StandbyLeader),
            1 => Just(Role::Other("promoted".into())),
        ],
    )
        .prop_map(|(listed, host, timeline, role)| Shown {
            listed,
            host,
            timeline,
            role,
        });
    let named = prop_oneof![
        8 => (0..MEMBERS).prop_map(|one| vec![one]),
        1 => Just(vec![]),
        1 => Just(vec![0, 1]),
    ];
    (named, vec(shown, MEMBERS)).prop_map(|(named, members)| PatroniAnswer { named, members })
}

fn event() -> impl Strategy<Value = Event> {
    // Often about the first two members, so that leaders occur often enough.
    let member = || prop_oneof![3 => 0..2_usize, 1 => 0..MEMBERS];
    let ago = || prop_oneof![3 => Just(0), 1 => 0..400_u64, 1 => 0..8000_u64];
    let place = (1_u32..4, 1_u64..6, prop::bool::weighted(0.03))
        .prop_map(|(timeline, tens, foreign)| (timeline, tens * (10 << 20), foreign));
    let sight = prop_oneof![
        5 => place.clone().prop_map(|(timeline, position, foreign)| Sight::Primary { timeline, position, foreign }),
        4 => place.prop_map(|(timeline, position, foreign)| Sight::Standby { timeline, position, foreign }),
        1 => Just(Sight::Refused),
        1 => Just(Sight::Timeout),
    ];
    let evidence = select(vec![
        Evidence::ConnectRefused,
        Evidence::ConnectFailed,
        Evidence::Terminated,
        Evidence::ReadOnlySeen,
        Evidence::Promoted,
        Evidence::Demoted,
    ]);
    let admin = select(vec![
        AdminState::Ready,
        AdminState::Ready,
        AdminState::Drain,
        AdminState::Maint,
    ]);
    prop_oneof![
        6 => (ago(), vec(answer(), 1..3)).prop_map(|(ago, answers)| Event::Rest(ago, answers)),
        1 => Just(Event::Rest(0, Vec::new())),
        2 => (ago(), option::weighted(0.9, member())).prop_map(|(ago, named)| Event::Key(ago, named)),
        1 => Just(Event::KeyLost),
        16 => (member(), ago(), sight).prop_map(|(member, ago, sight)| Event::Probe(member, ago, sight)),
        2 => (member(), ago(), evidence).prop_map(|(member, ago, evidence)| Event::Session(member, ago, evidence)),
        1 => (member(), admin).prop_map(|(member, state)| Event::Admin(member, state)),
        5 => prop_oneof![6 => 1..500_u64, 2 => 500..3000_u64, 1 => 3000..90_000_u64].prop_map(Event::Wait),
    ]
}

#[test]
fn no_observations_make_the_router_give_a_session_without_proof() {
    let (written, read, withheld) = (Cell::new(0), Cell::new(0), Cell::new(0));
    let default = ProptestConfig::default();
    let seeds = match default.rng_seed {
        RngSeed::Fixed(seed) => vec![seed],
        RngSeed::Random => SEEDS.to_vec(),
    };
    for seed in seeds {
        let config = ProptestConfig {
            cases: SCRIPTS,
            failure_persistence: None,
            rng_seed: RngSeed::Fixed(seed),
            ..ProptestConfig::default()
        };
        let kind = prop_oneof![3 => Just(SourceKind::Patroni), 1 => Just(SourceKind::Fixed)];
        let played = TestRunner::new(config).run(&(kind, vec(event(), 1..60)), |(kind, script)| {
            let mut stage = Stage::new(kind);
            for event in &script {
                stage.play(event);
            }
            written.set(written.get() + stage.witness.written);
            read.set(read.get() + stage.witness.read);
            withheld.set(withheld.get() + stage.witness.withheld);
            Ok(())
        });
        if let Err(error) = played {
            let TestError::Fail(why, (kind, script)) = error else {
                panic!("seed {seed}: {error}");
            };
            let script: Vec<String> = script.iter().map(|event| format!("\n  {event:?}")).collect();
            panic!("seed {seed}, {kind:?}: {why}{}", script.concat());
        }
    }
    // Otherwise the test shows nothing.
    let moments = (written.get(), read.get(), withheld.get());
    assert!(
        moments.0 > 1000 && moments.1 > 100 && moments.2 > 1000,
        "{moments:?}"
    );
}
