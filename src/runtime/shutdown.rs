//! Signals, and the phases of a shutdown.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::workers::Workers;
use crate::config;
use crate::events::{Events, ProcessEvent};
use crate::session::end::{Order, Reason};
use crate::session::registry::Registry;

/// For sessions to say their last words after they were cut, and for tasks to end.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// SIGTERM and SIGINT end the process.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    events: Events,
}

impl Signals {
    pub(super) fn listen(events: Events) -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            events,
        })
    }

    /// Until the process is to end.
    pub(super) async fn wait(&mut self) {
        let name = tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        };
        let signal = name.to_owned();
        self.events.emit(ProcessEvent::ShuttingDown { signal });
    }

    /// What `doing` comes to.
    ///
    /// # Errors
    /// The process is to end, and `doing` was dropped.
    pub(super) async fn unless_ended<T>(&mut self, doing: impl Future<Output = T>) -> anyhow::Result<T> {
        tokio::select! {
            () = self.wait() => bail!("a signal ended it before it served"),
            done = doing => Ok(done),
        }
    }
}

/// SIGHUP: files are to be read again.
pub(super) fn hangup() -> io::Result<Signal> {
    signal(SignalKind::hangup())
}

/// How long an end may take.
pub(super) fn longest(config: &config::Shutdown) -> Duration {
    // The accept loops, sessions and tasks, HTTP, the log.
    config.delay + config.grace + LAST_WORDS * 4
}

/// Serves on for `delay`, or until a second signal.
pub(super) async fn delay(delay: Duration, signals: &mut Signals) {
    info!(
        delay_s = delay.as_secs(),
        "not ready any more, and accepting connections for so long; a second signal ends that"
    );
    tokio::select! {
        () = sleep(delay) => {}
        () = signals.wait() => {}
    }
}

/// Waits until every session has finished by itself, for `limit` at most, or until a signal; `false`: some are left.
pub(super) async fn finish(
    registry: &Registry,
    workers: &Workers,
    limit: Option<Duration>,
    signals: &mut Signals,
) -> bool {
    let over = async {
        match limit {
            Some(limit) => sleep(limit).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = workers.idle() => return true,
        () = over => {}
        () = signals.wait() => return false,
    }
    warn!(
        sessions = registry.len(),
        "shutdown.handover is over for the sessions that are left"
    );
    false
}

/// Ends sessions at their next boundary, and cuts what is left after `grace` or at a second signal.
pub(super) async fn drain(
    registry: &Arc<Registry>,
    workers: &Workers,
    grace: Duration,
    signals: &mut Signals,
) {
    let sessions = registry.len();
    if sessions > 0 {
        info!(
            sessions,
            grace_s = grace.as_secs(),
            "ending sessions at their next transaction end"
        );
    }
    let orders = async {
        // Logins that were under way when the doors closed turn into sessions: order again.
        loop {
            for entry in registry.sessions() {
                entry.order(Order::AtBoundary(Reason::Shutdown));
            }
            sleep(Duration::from_millis(100)).await;
        }
    };
    let patience = async {
        tokio::select! {
            () = sleep(grace) => {}
            () = signals.wait() => {}
        }
    };
    tokio::select! {
        () = workers.idle() => return,
        () = orders => {}
        () = patience => {}
    }
    let left = registry.sessions();
    if !left.is_empty() {
        warn!(sessions = left.len(), "cutting the sessions that are left");
    }
    for entry in left {
        entry.order(Order::Now(Reason::Shutdown));
    }
    bounded("sessions", workers.idle()).await;
}

/// Waits for the end of something that was told to end.
pub(super) async fn bounded(what: &str, end: impl Future<Output = ()>) {
    if timeout(LAST_WORDS, end).await.is_err() {
        warn!(what, "did not end in time");
    }
}
