//! Another process replaces this one: the upgrade begins, this process offers everything, and then
//! hands over or continues. This runs in the loop that reloads, so that the service stays as it was
//! offered.

use tokio::net::UnixStream;
use tokio::signal::unix::Signal;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::warn;

use super::Supervisor;
use crate::admin::ReloadAnswer;
use crate::events::ProcessEvent;
use crate::runtime::control::{ControlRequest, UpgradeAnswer};
use crate::runtime::handover::{self, NewProcess, Offer, START_LIMIT};
use crate::runtime::upgrade::{self, Upgrade};

impl Supervisor {
    pub(super) async fn begin_upgrade(&mut self, answer: oneshot::Sender<UpgradeAnswer>) {
        if self.upgrade.is_some() {
            let fault = "another upgrade is in progress".to_owned();
            return upgrade::refuse(answer, fault, &self.service.handles.events);
        }
        if let Some(obstacle) = self.service.administration.orders.obstacle() {
            return upgrade::refuse(answer, obstacle, &self.service.handles.events);
        }
        let (control, events) = (self.service.control_path(), &self.service.handles.events);
        self.upgrade = Upgrade::begin(&self.program, &self.config.path, control, answer, events).await;
    }

    pub(super) fn refuse_upgrade(&mut self, fault: String) {
        if let Some(upgrade) = self.upgrade.take() {
            upgrade.refuse(fault, &self.service.handles.events);
        }
    }

    /// Offers everything, and waits until the other process is ready or has failed. Nothing else is
    /// done meanwhile, so that the service stays as it was offered. If this is dropped, nothing has
    /// changed.
    pub(super) async fn offer(&mut self, socket: UnixStream) -> Option<NewProcess> {
        self.emit(ProcessEvent::HandoverBegun);
        if let Some(obstacle) = self.service.administration.orders.obstacle() {
            drop(socket);
            return self.not_handed_over(obstacle);
        }
        let (kept, is_drained) = self.service.administration.freeze();
        let deadline = self.upgrade.as_ref().map(Upgrade::deadline);
        let deadline = deadline.unwrap_or_else(|| Instant::now() + START_LIMIT);
        let given = match self.service.passed_on() {
            Ok(sockets) => {
                let generations = self.service.shared.generations.family();
                let offer = Offer::new(
                    &sockets,
                    &self.service.clusters,
                    &kept,
                    is_drained,
                    generations,
                    self.service.shared.registry.last_number(),
                );
                let mut giving = std::pin::pin!(handover::give(socket, offer, sockets, deadline));
                loop {
                    tokio::select! {
                        given = &mut giving => break given,
                        // The process of the upgrade may not be the one at `socket`. If it is, it
                        // has hung up.
                        fault = failed(self.upgrade.as_ref()) => self.refuse_upgrade(fault),
                    }
                }
            }
            Err(error) => Err(error.into()),
        };
        match given {
            Ok(new_process) => match self.service.administration.orders.replaced() {
                Ok(()) => Some(new_process),
                Err(obstacle) => {
                    drop(new_process);
                    self.service.administration.unfreeze();
                    self.not_handed_over(obstacle)
                }
            },
            Err(error) => {
                self.service.administration.unfreeze();
                self.emit(ProcessEvent::HandoverFailed {
                    error: error.to_string(),
                });
                None
            }
        }
    }

    /// This process has hung up, so the new one ends. For the reason, whoever wants the upgrade
    /// does not have to look into its log.
    fn not_handed_over(&mut self, obstacle: String) -> Option<NewProcess> {
        self.emit(ProcessEvent::HandoverFailed {
            error: obstacle.clone(),
        });
        self.refuse_upgrade(obstacle);
        None
    }

    /// Hands over to the new process. `false`: the new process has ended, and this one continues as
    /// before. The caller must await this to the end.
    pub(in crate::runtime) async fn commit(
        &mut self,
        mut new_process: NewProcess,
        hangup: &mut Signal,
    ) -> bool {
        let process_id = new_process.process.id();
        if let Err(fault) = self.hand_over(&mut new_process).await {
            drop(new_process);
            self.emit(ProcessEvent::HandoverUndone {
                process_id,
                error: fault.clone(),
            });
            self.service.claim();
            self.service.administration.claim();
            self.service.administration.unfreeze();
            self.service.administration.orders.not_replaced();
            self.refuse_upgrade(format!("the new process did not take over: {fault}"));
            return false;
        }
        // Not earlier: if the main process ends, the service manager ends the service.
        if let Err(error) = self.notifier.main_process(process_id).await {
            self.emit(ProcessEvent::ServiceManagerUnaware {
                process_id,
                error: error.to_string(),
            });
        }
        new_process.finish().await;
        self.service.leave().await;
        // Requests to this process in the meantime.
        let is_reload_requested = tokio::select! {
            biased;
            _ = hangup.recv() => true,
            () = std::future::ready(()) => false,
        };
        if is_reload_requested && let Err(error) = new_process.process.hang_up() {
            warn!(%error, "SIGHUP came during the handover and is lost: send it again");
        }
        while let Ok(request) = self.requests.try_recv() {
            self.refuse_request(request, REPLACED);
        }
        let sessions = self.service.shared.registry.len();
        let connections = self.service.listeners.connections();
        self.emit(ProcessEvent::Replaced { process_id, sessions });
        if let Some(upgrade) = self.upgrade.take() {
            // The client may be gone.
            let _ = upgrade.into_answer().send(UpgradeAnswer {
                process_id: Some(process_id),
                release: new_process.release,
                old_process_id: std::process::id(),
                old_release: env!("CARGO_PKG_VERSION").to_owned(),
                sessions,
                other_connections: connections.saturating_sub(sessions),
                faults: Vec::new(),
            });
        }
        true
    }

    /// # Errors
    /// A sentence with the reason why the new process does not take over. It has ended, or must not
    /// serve.
    async fn hand_over(&mut self, new_process: &mut NewProcess) -> Result<(), String> {
        let service = &self.service;
        // Before the new process has sessions: cancel requests for them may come here.
        service.shared.generations.add([new_process.generation.clone()]);
        let released = service.administration.release().await;
        released.map_err(|_| "the state file cannot be written in time".to_owned())?;
        service.release(&new_process.kept);
        // The message changes nothing. It shows before the commit whether the service manager can
        // be notified.
        let notified = self.notifier.main_process(std::process::id()).await;
        notified
            .map_err(|error| format!("the service manager cannot be notified (NOTIFY_SOCKET): {error}"))?;
        new_process.commit().await.map_err(|error| error.to_string())
    }

    /// Refuses a request to a process that is ending.
    pub(super) fn refuse_request(&self, request: ControlRequest, why: &str) {
        let fault = why.to_owned();
        match request {
            ControlRequest::Reload(answer) => {
                // The client may be gone.
                let _ = answer.send(ReloadAnswer {
                    applied: false,
                    changed: Vec::new(),
                    restart: Vec::new(),
                    faults: vec![fault],
                });
            }
            ControlRequest::Upgrade(answer) => upgrade::refuse(answer, fault, &self.service.handles.events),
            ControlRequest::HandOver(socket) => drop(socket),
        }
    }
}

/// Waits until the new process has ended. Waits forever if there is none.
pub(super) async fn failed(upgrade: Option<&Upgrade>) -> String {
    match upgrade {
        Some(upgrade) => upgrade.failed().await,
        None => std::future::pending().await,
    }
}

/// Another process serves now.
pub(in crate::runtime) const REPLACED: &str = "another process has just replaced this one; ask again";
/// This process ends soon.
pub(in crate::runtime) const ENDING: &str = "the router is shutting down";
