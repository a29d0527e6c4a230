//! Random programs of sessions against a simple model: no count is exceeded, nobody is overtaken,
//! nobody waits while there is something for it, and nothing is left at the end.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use tokio::time::{Instant, advance};
use tokio_util::sync::CancellationToken;

use super::acquire::{Grant, NoLease, Waited};
use super::connection::WorkerId;
use super::permit::OpenPermit;
use super::pools::Reconnect;
use super::scene::{Connection, FAR, NEAR, Scene, Session, cluster, members, opened};
use crate::cluster::snapshot::AdminState;
use crate::session::memory::MemoryStream;

const KEYS: [&str; 3] = ["UTC", "Europe/Berlin", "Asia/Tokyo"];
const MOST: usize = 3;
const RESERVE: usize = 1;
const CONNECTS: usize = 2;
const SEATS: u32 = 5;

#[derive(Debug, Clone)]
enum Step {
    Asks {
        key: usize,
        worker: usize,
    },
    Leases {
        key: usize,
        worker: usize,
    },
    Leaves(usize),
    Opens(usize),
    FailsToOpen(usize),
    Releases(usize),
    Drops(usize),
    /// The server ends a connection.
    Ends(usize),
    Passes(u64),
    Drains(bool),
    Reconnects,
}

fn step() -> impl Strategy<Value = Step> {
    let (one, key, worker) = (0..64_usize, 0..KEYS.len(), 0..2_usize);
    prop_oneof![
        6 => (key.clone(), worker.clone()).prop_map(|(key, worker)| Step::Asks { key, worker }),
        2 => (key, worker).prop_map(|(key, worker)| Step::Leases { key, worker }),
        1 => one.clone().prop_map(Step::Leaves),
        5 => one.clone().prop_map(Step::Opens),
        1 => one.clone().prop_map(Step::FailsToOpen),
        6 => one.clone().prop_map(Step::Releases),
        1 => one.clone().prop_map(Step::Drops),
        1 => one.prop_map(Step::Ends),
        3 => (0..200_u64).prop_map(Step::Passes),
        1 => any::<bool>().prop_map(Step::Drains),
        1 => Just(Step::Reconnects),
    ]
}

struct Waiting {
    key: usize,
    worker: usize,
    session: Session,
}

/// What the sessions have.
struct Model {
    scene: Scene,
    waiting: Vec<Waiting>,
    opening: Vec<(usize, OpenPermit<MemoryStream>)>,
    leased: Vec<Connection>,
    servers: Vec<MemoryStream>,
    is_drained: bool,
}

fn pick<T>(from: &mut Vec<T>, index: usize) -> Option<T> {
    (!from.is_empty()).then(|| from.swap_remove(index % from.len()))
}

impl Model {
    fn new() -> Self {
        let keys = format!(
            "targets: [leader], max_queue: 20, queue_timeout: 30s, pool: {{mode: transaction, wait_notify: 0ms, \
             max_connections: {MOST}, reserve: {RESERVE}, reserve_delay: 300ms, connects: {CONNECTS}, \
             idle_timeout: 2s, max_lifetime: 5s}}"
        );
        Self {
            scene: Scene::of(&keys, 1, SEATS),
            waiting: Vec::new(),
            opening: Vec::new(),
            leased: Vec::new(),
            servers: Vec::new(),
            is_drained: false,
        }
    }

    async fn take(&mut self, step: Step) {
        match step {
            Step::Asks { key, worker } => {
                let session = self.scene.session(KEYS[key], WorkerId(worker));
                self.waiting.push(Waiting { key, worker, session });
            }
            Step::Leases { key, worker } => {
                self.leased.extend(self.scene.lease(KEYS[key], WorkerId(worker)));
            }
            Step::Leaves(index) => {
                if !self.waiting.is_empty() {
                    drop(self.waiting.remove(index % self.waiting.len()));
                }
            }
            Step::Opens(index) => {
                if let Some((worker, permit)) = pick(&mut self.opening, index) {
                    let (connection, server) = opened(permit, WorkerId(worker));
                    self.leased.push(connection);
                    self.servers.push(server);
                }
            }
            Step::FailsToOpen(index) => drop(pick(&mut self.opening, index)),
            Step::Releases(index) => {
                if let Some(connection) = pick(&mut self.leased, index) {
                    self.scene.pool.release(connection);
                }
            }
            Step::Drops(index) => drop(pick(&mut self.leased, index)),
            Step::Ends(index) => drop(pick(&mut self.servers, index)),
            Step::Passes(milliseconds) => {
                advance(Duration::from_millis(milliseconds)).await;
                self.scene.pool.close_unquiet();
                self.scene.pool.tick(Instant::now());
            }
            Step::Drains(is_drained) => {
                let mut all = members(1);
                if is_drained {
                    all[0].admin = AdminState::Drain;
                }
                self.is_drained = is_drained;
                self.scene.script.publish(cluster(all));
                self.scene.pool.tick(Instant::now());
            }
            Step::Reconnects => {
                self.scene.pools.reconnect(Reconnect::All);
            }
        }
    }

    /// Every session looks at what it got. Within a key and worker, nobody is overtaken.
    fn look(&mut self) {
        // What one closes or gives back, another that has looked already may get.
        let mut unchanged = 0;
        while unchanged < 2 {
            unchanged += 1;
            let mut passed_over: Vec<(usize, usize)> = Vec::new();
            for mut one in std::mem::take(&mut self.waiting) {
                let line = (one.key, one.worker);
                let result = match one.session.poll() {
                    None => {
                        passed_over.push(line);
                        self.waiting.push(one);
                        continue;
                    }
                    Some(Waited::Notice) => unreachable!("there is none"),
                    Some(Waited::Done(result)) => result,
                };
                unchanged = 0;
                match result {
                    Ok(grant) => {
                        assert!(!passed_over.contains(&line), "an earlier one of {line:?} waits");
                        match grant {
                            Grant::Connection(connection) => {
                                assert_eq!(**connection.key(), super::scene::key(KEYS[one.key]));
                                assert_eq!(connection.worker, WorkerId(one.worker));
                                self.leased.push(connection);
                            }
                            Grant::Open(permit) => self.opening.push((one.worker, permit)),
                        }
                    }
                    Err(NoLease::NoCandidate(_)) => assert!(self.is_drained),
                    Err(NoLease::Queue(_)) => {}
                }
            }
        }
    }

    fn check(&mut self) {
        let [idle, leased, opening] = self.scene.counts("db1");
        assert_eq!((leased, opening), (self.leased.len(), self.opening.len()));
        assert!(idle + leased + opening <= MOST + RESERVE);
        assert!(opening <= CONNECTS);
        assert_eq!(self.scene.seats("db1"), idle + leased + opening);
        assert_eq!(self.scene.pool.view().waiting, self.waiting.len());
        if self.is_drained {
            assert_eq!((idle, self.waiting.len()), (0, 0));
        }
        if self.waiting.is_empty() {
            return;
        }
        assert!(
            idle + leased + opening >= MOST || opening == CONNECTS,
            "there is room to open one"
        );
        let idle_keys = self.scene.pool.with(|inner, _| {
            let owners = inner.members.iter().flat_map(|member| member.idle.owners());
            owners.map(|(key, _)| Arc::clone(key)).collect::<Vec<_>>()
        });
        for waiting in &self.waiting {
            let key = super::scene::key(KEYS[waiting.key]);
            assert!(
                !idle_keys.iter().any(|idle| **idle == key),
                "one for a session that waits idles"
            );
        }
        assert!(
            idle == 0 || opening == CONNECTS,
            "one of another key could make room"
        );
    }

    async fn end(mut self) {
        self.waiting.clear();
        self.opening.clear();
        for connection in self.leased.drain(..) {
            self.scene.pool.release(connection);
        }
        advance(Duration::from_secs(2)).await;
        self.scene.pool.tick(Instant::now());
        assert_eq!((self.scene.counts("db1"), self.scene.seats("db1")), ([0; 3], 0));
        let weak = Arc::downgrade(&self.scene.pool);
        drop(self.scene);
        assert!(weak.upgrade().is_none(), "the pool is held");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn nothing_is_exceeded_or_lost_and_nobody_is_overtaken(steps in proptest::collection::vec(step(), 1..150)) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("descriptors are left");
        runtime.block_on(async {
            let mut model = Model::new();
            for step in steps {
                model.take(step).await;
                model.look();
                model.check();
            }
            model.end().await;
        });
    }
}

/// Real threads, to which a lock that is taken within itself or another would show.
#[test]
fn sessions_on_several_threads_share_few_connections_and_nothing_is_lost() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .enable_time()
        .build()
        .expect("threads are left");
    let scene = Scene::new("max_connections: 3, connects: 2");
    let keys = ["UTC", "Europe/Berlin"];
    runtime.block_on(async {
        let stop = CancellationToken::new();
        let keeper = tokio::spawn(Arc::clone(&scene.pools).keep(stop.clone()));
        let sessions = (0..40).map(|number| {
            let (pool, want) = (
                Arc::clone(&scene.pool),
                scene.want(keys[number % 2], if number % 3 == 0 { NEAR } else { FAR }),
            );
            tokio::spawn(async move {
                let mut servers = Vec::new();
                for round in 0..100 {
                    let lease = match pool.try_lease(&want, None) {
                        Some(lease) => lease,
                        None => match pool.acquire(want.clone()).await {
                            Ok(Grant::Connection(lease)) => lease,
                            Ok(Grant::Open(permit)) => {
                                let (lease, server) = opened(permit, want.worker);
                                servers.push(server);
                                lease
                            }
                            Err(error) => panic!("{error:?}"),
                        },
                    };
                    tokio::task::yield_now().await;
                    match (round + number) % 10 {
                        0 => drop(lease),
                        _ => pool.release(lease),
                    }
                    if round % 25 == 0 {
                        // It gives up at once.
                        let _ = tokio::time::timeout(Duration::ZERO, pool.acquire(want.clone())).await;
                    }
                }
            })
        });
        for session in sessions.collect::<Vec<_>>() {
            session.await.expect("it does not panic");
        }
        stop.cancel();
        keeper.await.expect("it does not panic");
    });
    assert_eq!((scene.counts("db1"), scene.seats("db1")), ([0; 3], 0));
    assert_eq!(scene.pool.view().waiting, 0);
}
