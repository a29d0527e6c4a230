//! Sessions at a gate, polled by hand: for tests and measurements. Not part of the program.

use std::cell::Cell;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use super::{Gate, Gates, Metrics, QueueError};
use prometheus_client::registry::Registry;
use tokio::sync::watch;

use crate::cluster::snapshot::{Leader, NoLeader, Snapshot, SourceStatus};
use crate::config::Route;

/// Counts its wake-ups.
#[derive(Debug, Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

pub(in crate::session) fn snapshot(version: u64) -> Arc<Snapshot> {
    Arc::new(Snapshot {
        cluster: "main".into(),
        version,
        members: Vec::new(),
        leader: Leader::None(NoLeader::NotNamed),
        source: SourceStatus {
            reachable: true,
            error: None,
            disagreement: None,
        },
        system_identifier: None,
        paused: false,
        hears: true,
        patience: None,
        switchover_requested: false,
    })
}

/// A gate and its sessions, of which as many pass as there are seats.
pub(super) struct Scene {
    pub(super) gates: Gates,
    pub(super) gate: Arc<Gate>,
    pub(super) route: Arc<Route>,
    pub(super) metrics: Metrics,
    pub(super) snapshots: watch::Sender<Arc<Snapshot>>,
    pub(super) seats: Cell<u32>,
    pub(super) attempts: Cell<u32>,
}

/// A session on its way through the gate.
pub(super) struct Session<'a> {
    passing: Pin<Box<dyn Future<Output = Result<(), QueueError>> + 'a>>,
    woken: Arc<Count>,
}

impl Session<'_> {
    /// `None`: it waits.
    pub(super) fn poll(&mut self) -> Option<Result<(), QueueError>> {
        let waker = Waker::from(Arc::clone(&self.woken));
        match self.passing.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(passed) => Some(passed),
            Poll::Pending => None,
        }
    }

    /// How often it was woken since the last call.
    pub(super) fn woken(&self) -> usize {
        self.woken.0.swap(0, Ordering::Relaxed)
    }
}

impl Scene {
    pub(super) fn new(most: u32) -> Self {
        let mut route = Route::read_write("read-write", "main");
        route.queue.most = most;
        let (gates, route) = (Gates::default(), Arc::new(route));
        Self {
            gate: gates.of(&route),
            gates,
            route,
            metrics: Metrics::register(&mut Registry::default()),
            snapshots: watch::channel(snapshot(1)).0,
            seats: Cell::new(0),
            attempts: Cell::new(0),
        }
    }

    fn session(&self) -> Session<'_> {
        let attempt = || {
            self.attempts.set(self.attempts.get() + 1);
            self.seats.set(self.seats.get().checked_sub(1)?);
            Some(())
        };
        let passing = async move {
            let passed = self
                .gate
                .pass(&self.route, || self.snapshots.subscribe(), &self.metrics, attempt);
            passed.await.map(|((), _)| ())
        };
        Session {
            // The test polls more of them at once than the budget of one task allows.
            passing: Box::pin(tokio::task::unconstrained(passing)),
            woken: Arc::default(),
        }
    }

    /// A session that has to wait.
    #[cfg(test)]
    pub(super) fn waits(&self) -> Session<'_> {
        let mut session = self.session();
        assert_eq!(session.poll(), None, "it waits");
        session
    }

    /// Another session of the cluster has ended.
    pub(super) fn frees_a_seat(&self) {
        self.seats.set(self.seats.get() + 1);
        self.gates.freed(&"main".into());
    }

    #[cfg(test)]
    pub(super) fn passes_at_once(&self) -> Option<Result<(), QueueError>> {
        self.session().poll()
    }
}

/// `count` sessions wait, then get a seat one after the other; each poll of a session runs in
/// `measured`, which gives back whether it has passed. Returns how often a session was woken.
///
/// # Panics
/// A session passes out of turn, or is woken in vain more than once.
#[cfg(any(test, feature = "instructions"))]
pub(crate) fn drain(count: usize, mut measured: impl FnMut(&mut dyn FnMut() -> bool) -> bool) -> usize {
    let scene = Scene::new(u32::try_from(count).expect("it is a queue's length"));
    let mut waiting: Vec<Session<'_>> = (0..count).map(|_| scene.session()).collect();
    for session in &mut waiting {
        let has_passed = measured(&mut || session.poll().is_some());
        assert!(!has_passed, "there is no seat");
    }
    let mut woken = 0;
    for session in &mut waiting {
        scene.frees_a_seat();
        woken += session.woken();
        let has_passed = measured(&mut || session.poll().is_some());
        assert!(has_passed, "it is the first");
    }
    assert!(woken <= 2 * count, "{woken} wake-ups for {count} seats");
    woken
}
