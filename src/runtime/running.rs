//! A process that serves, and its end: another process has replaced it, or a signal ends it.
//!
//! The shutdown has phases, each with a time limit: not ready (`shutdown.delay`), stop accepting,
//! end sessions at their next boundary, cut the remaining sessions, exit. A replaced process has
//! stopped accepting and exits when its sessions have finished. It stays ready until then, because
//! the service is. Neither ends before the orders that run in it ([`super::running_orders`]).

use std::sync::Arc;

use tokio::signal::unix::Signal;
use tokio::time::Instant;
use tracing::{info, warn};

use super::running_orders::RunningOrders;
use super::service::Service;
use super::shutdown::{self, Signals};
use super::supervisor::{ENDING, REPLACED, Supervisor};
use super::workers::Workers;
use crate::admin::Readiness;
use crate::session::Shared;

pub(super) struct Running {
    pub(super) supervisor: Supervisor,
    pub(super) workers: Arc<Workers>,
    pub(super) shared: Arc<Shared>,
    pub(super) readiness: Arc<Readiness>,
}

/// Why a process stops serving.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum EndCause {
    Signal,
    Replaced,
}

impl Running {
    /// Serves until a signal, or until another process has replaced this one and its sessions have
    /// finished.
    pub(super) async fn until_end(mut self, signals: &mut Signals, hangup: &mut Signal) {
        match self.serve(signals, hangup).await {
            EndCause::Replaced => {
                self.finish(signals).await;
                info!("this process has finished its sessions after the upgrade, and ends");
            }
            EndCause::Signal => {
                self.shut_down(signals).await;
                info!("stopped");
            }
        }
    }

    async fn serve(&mut self, signals: &mut Signals, hangup: &mut Signal) -> EndCause {
        loop {
            let new_process = tokio::select! {
                () = signals.wait() => return EndCause::Signal,
                new_process = self.supervisor.run(hangup) => new_process,
            };
            if self.supervisor.commit(new_process, hangup).await {
                return EndCause::Replaced;
            }
        }
    }

    /// Another process accepts connections. The sessions here have `shutdown.handover` to finish.
    async fn finish(mut self, signals: &mut Signals) {
        // Nothing shows them or ends them in this process, and the new one has the console too.
        self.shared.console_closing.cancel();
        let limit = self.supervisor.config().shutdown.handover;
        let has_finished = tokio::select! {
            has_finished = shutdown::finish(&self.shared.registry, &self.workers, limit, signals) => has_finished,
            () = self.supervisor.watch(REPLACED) => false,
        };
        let (config, service) = self.supervisor.into_parts();
        if !has_finished {
            self.shared.closing.cancel();
            let grace = config.shutdown.grace;
            shutdown::drain(&self.shared.registry, &self.workers, grace, signals).await;
        }
        finish_orders(&service.administration.orders, signals).await;
        end(service, self.workers, EndCause::Replaced).await;
    }

    async fn shut_down(mut self, signals: &mut Signals) {
        self.readiness.leaving();
        let config = self.supervisor.config().shutdown.clone();
        let orders = Arc::clone(self.supervisor.orders());
        orders.undo();
        let order = orders
            .until()
            .map(|until| until.saturating_duration_since(Instant::now()));
        if config.delay.is_zero() && order.is_none() {
            self.supervisor.notifier().stopping();
        } else {
            let longest = shutdown::longest(&config) + order.unwrap_or_default();
            self.supervisor.notifier().stopping_within(longest);
        }
        if !config.delay.is_zero() {
            tokio::select! {
                () = shutdown::delay(config.delay, signals) => {}
                () = self.supervisor.watch(ENDING) => {}
            }
        }
        let (_, mut service) = self.supervisor.into_parts();
        self.readiness.draining();
        service.close_ports().await;
        self.shared.closing.cancel();
        shutdown::drain(&self.shared.registry, &self.workers, config.grace, signals).await;
        finish_orders(&orders, signals).await;
        end(service, self.workers, EndCause::Signal).await;
    }
}

/// Orders that hold clients here and at peers go on until they are over, as they cannot be undone.
/// Each has a time limit of its own; a signal ends the wait.
async fn finish_orders(orders: &RunningOrders, signals: &mut Signals) {
    let Some(running) = orders.running() else {
        return;
    };
    let left = orders
        .until()
        .map(|until| until.saturating_duration_since(Instant::now()));
    info!(
        "{running}: this process ends when that is over, in {} s at most; a signal ends it now",
        left.unwrap_or_default().as_secs() + 1
    );
    tokio::select! {
        () = orders.ended() => {}
        () = signals.wait() => warn!("{running}: nobody renews the order any more, so that the peers hold their clients for some seconds at most"),
    }
}

/// Ends tasks and threads, after all sessions have ended or were cut.
async fn end(service: Service, workers: Arc<Workers>, cause: EndCause) {
    let Service {
        admin,
        clusters,
        listeners,
        shared,
        stop,
        tracker,
        ..
    } = service;
    drop(listeners);
    // If all sessions have finished by themselves, peers may still be connected.
    shared.closing.cancel();
    stop.cancel();
    drop((clusters, shared));
    tracker.close();
    shutdown::await_end("tasks", tracker.wait()).await;
    if cause == EndCause::Replaced {
        admin.answered().await;
    }
    admin.stop();
    match Arc::try_unwrap(workers) {
        Ok(workers) => workers.stop(),
        Err(_still_shared) => warn!("a session still runs after the shutdown"),
    }
}
