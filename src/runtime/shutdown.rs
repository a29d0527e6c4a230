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
use crate::session::replaced::end_detached;

/// Time limit for sessions to send their last message after they were cut, and for tasks to end.
const END_LIMIT: Duration = Duration::from_secs(3);

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

    /// Waits for a signal to end the process.
    pub(super) async fn wait(&mut self) {
        let name = tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        };
        let signal = name.to_owned();
        self.events.emit(ProcessEvent::ShuttingDown { signal });
    }

    /// The result of `work`.
    ///
    /// # Errors
    /// A signal came, and `work` was dropped.
    pub(super) async fn unless_ended<T>(&mut self, work: impl Future<Output = T>) -> anyhow::Result<T> {
        tokio::select! {
            () = self.wait() => bail!("a signal ended the process before it served"),
            done = work => Ok(done),
        }
    }
}

/// SIGHUP: the router reads files again.
pub(super) fn hangup() -> io::Result<Signal> {
    signal(SignalKind::hangup())
}

/// The longest time that a shutdown may take.
pub(super) fn longest(config: &config::Shutdown) -> Duration {
    // The accept loops, sessions and tasks, HTTP, the log.
    config.delay + config.grace + END_LIMIT * 4
}

/// Continues to serve for `delay`, or until a second signal.
pub(super) async fn delay(delay: Duration, signals: &mut Signals) {
    info!(
        delay_s = delay.as_secs(),
        "the router is not ready any more, and accepts connections until the delay is over; a second signal ends the delay"
    );
    tokio::select! {
        () = sleep(delay) => {}
        () = signals.wait() => {}
    }
}

/// Waits until every session has finished by itself, for at most `limit`, or until a signal.
/// Without a limit, sessions that have no server connection end after some minutes. `false`:
/// sessions are left.
pub(super) async fn finish(
    registry: &Registry,
    workers: &Workers,
    limit: Option<Duration>,
    signals: &mut Signals,
) -> bool {
    let time_limit = async {
        match limit {
            Some(limit) => sleep(limit).await,
            None => end_detached(registry).await,
        }
    };
    tokio::select! {
        () = workers.idle() => return true,
        () = time_limit => {}
        () = signals.wait() => return false,
    }
    warn!(
        sessions = registry.len(),
        "the time of shutdown.handover is over; ending the remaining sessions"
    );
    false
}

/// Ends sessions at their next boundary. Cuts the remaining ones after `grace` or at a second
/// signal.
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
        // Logins in progress when the ports closed become sessions: repeat the order.
        loop {
            for entry in registry.sessions() {
                entry.order(Order::AtBoundary(Reason::Shutdown));
            }
            sleep(Duration::from_millis(100)).await;
        }
    };
    let cut_time = async {
        tokio::select! {
            () = sleep(grace) => {}
            () = signals.wait() => {}
        }
    };
    tokio::select! {
        () = workers.idle() => return,
        () = orders => {}
        () = cut_time => {}
    }
    let left = registry.sessions();
    if !left.is_empty() {
        warn!(sessions = left.len(), "cutting the remaining sessions");
    }
    for entry in left {
        entry.order(Order::Now(Reason::Shutdown));
    }
    await_end("sessions", workers.idle()).await;
}

/// Waits for something to end, with a time limit.
pub(super) async fn await_end(what: &str, end: impl Future<Output = ()>) {
    if timeout(END_LIMIT, end).await.is_err() {
        warn!(what, "did not end in time");
    }
}
