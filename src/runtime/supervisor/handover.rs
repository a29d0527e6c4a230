//! Another process takes the place of this one: begun, offered, and given or taken back. In the loop that reloads, so that
//! what is in service stays as it was offered.

use tokio::net::UnixStream;
use tokio::signal::unix::Signal;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::warn;

use super::Supervisor;
use crate::admin::ReloadAnswer;
use crate::events::ProcessEvent;
use crate::runtime::control::{ControlRequest, UpgradeAnswer};
use crate::runtime::handover::{self, Heir, Offer, START};
use crate::runtime::upgrade::{self, Upgrade};

impl Supervisor {
    pub(super) async fn begin_upgrade(&mut self, answer: oneshot::Sender<UpgradeAnswer>) {
        if self.upgrade.is_some() {
            let fault = "another upgrade is under way".to_owned();
            return upgrade::refuse(answer, fault, &self.service.handles.events);
        }
        let (control, events) = (self.service.control_path(), &self.service.handles.events);
        self.upgrade = Upgrade::begin(&self.program, &self.config.path, control, answer, events).await;
    }

    pub(super) fn refuse_upgrade(&mut self, fault: String) {
        if let Some(upgrade) = self.upgrade.take() {
            upgrade.refuse(fault, &self.service.handles.events);
        }
    }

    /// Offers everything, until the other process is ready or has failed. Nothing else is done meanwhile, so that what is in
    /// service stays as it was offered. Dropped in between nothing has changed.
    pub(super) async fn offer(&mut self, socket: UnixStream) -> Option<Heir> {
        self.emit(ProcessEvent::HandoverBegun);
        let (kept, is_drained) = self.service.administration.freeze();
        let deadline = self.upgrade.as_ref().map(Upgrade::deadline);
        let deadline = deadline.unwrap_or_else(|| Instant::now() + START);
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
                        // It may be another one that has asked; if not, it has hung up.
                        fault = failed(self.upgrade.as_ref()) => self.refuse_upgrade(fault),
                    }
                }
            }
            Err(error) => Err(error.into()),
        };
        match given {
            Ok(heir) => Some(heir),
            Err(error) => {
                self.service.administration.go_on();
                self.emit(ProcessEvent::HandoverFailed {
                    error: error.to_string(),
                });
                None
            }
        }
    }

    /// Leaves its place to the other process. `false`: that one has ended, and this one goes on as before. The caller must
    /// await it to the end.
    pub(in crate::runtime) async fn commit(&mut self, mut heir: Heir, hangup: &mut Signal) -> bool {
        let process_id = heir.process.id();
        if let Err(fault) = self.give_place(&mut heir).await {
            drop(heir);
            self.emit(ProcessEvent::HandoverUndone {
                process_id,
                error: fault.clone(),
            });
            self.service.claim();
            self.service.administration.claim();
            self.service.administration.go_on();
            self.refuse_upgrade(format!("the new process did not take over: {fault}"));
            return false;
        }
        // Not before: a main process that has ended is the end of the service, for a service manager.
        if let Err(error) = self.notifier.main_process(process_id).await {
            self.emit(ProcessEvent::ServiceManagerUnaware {
                process_id,
                error: error.to_string(),
            });
        }
        heir.dismiss().await;
        self.service.leave().await;
        // What was asked of this process in the meantime.
        let is_asked = tokio::select! {
            biased;
            _ = hangup.recv() => true,
            () = std::future::ready(()) => false,
        };
        if is_asked && let Err(error) = heir.process.hang_up() {
            warn!(%error, "SIGHUP came during the handover and is lost: send it again");
        }
        while let Ok(request) = self.requests.try_recv() {
            self.too_late(request, REPLACED);
        }
        let sessions = self.service.shared.registry.len();
        self.emit(ProcessEvent::Replaced { process_id, sessions });
        if let Some(upgrade) = self.upgrade.take() {
            // The one that asked may be gone.
            let _ = upgrade.into_answer().send(UpgradeAnswer {
                process_id: Some(process_id),
                release: heir.release,
                old_process_id: std::process::id(),
                old_release: env!("CARGO_PKG_VERSION").to_owned(),
                sessions,
                faults: Vec::new(),
            });
        }
        true
    }

    /// # Errors
    /// Why the other process does not take over, in a sentence; it has ended, or must not serve.
    async fn give_place(&mut self, heir: &mut Heir) -> Result<(), String> {
        let service = &self.service;
        // Before it has sessions, which cancel requests that come here may be for.
        service.shared.generations.add([heir.generation.clone()]);
        let released = service.administration.release().await;
        released.map_err(|_| "the state file cannot be written in time".to_owned())?;
        service.release(&heir.kept);
        // The message says nothing new; it shows before the commit whether the service manager can be notified.
        let told = self.notifier.main_process(std::process::id()).await;
        told.map_err(|error| format!("the service manager cannot be told (NOTIFY_SOCKET): {error}"))?;
        heir.commit().await.map_err(|error| error.to_string())
    }

    /// Refuses what is asked of a process that is on its way out.
    pub(super) fn too_late(&self, request: ControlRequest, why: &str) {
        let fault = why.to_owned();
        match request {
            ControlRequest::Reload(answer) => {
                // Whoever asked may be gone.
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

/// Until the new process has ended; forever if there is none.
pub(super) async fn failed(upgrade: Option<&Upgrade>) -> String {
    match upgrade {
        Some(upgrade) => upgrade.failed().await,
        None => std::future::pending().await,
    }
}

/// Another process serves now.
pub(in crate::runtime) const REPLACED: &str =
    "another process has taken the place of this one just now; ask again";
/// This process ends soon.
pub(in crate::runtime) const ENDING: &str = "the router is shutting down";
