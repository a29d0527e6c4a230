//! The control loop of a process. It reloads the configuration on request, and the files that the
//! configuration names also when they change. It starts upgrades and handovers.
//!
//! Guarantees: the configuration is applied whole or refused whole. If a new file is broken, the
//! router logs that and keeps the old one in service. The files of each unit are loaded separately.
//! A reload applies to later logins and connections, never to a live session.

mod handover;
mod units;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::Signal;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use self::handover::failed;
pub(super) use self::handover::{ENDING, REPLACED};
use self::units::{ReadyUnit, UnitOutcome, leaves, read_units};
use super::control::ControlRequest;
use super::files::FileReader;
use super::handover::NewProcess;
use super::notify::Notifier;
use super::running_orders::RunningOrders;
use super::service::Service;
use super::upgrade::{Program, Upgrade};
use crate::admin::ReloadAnswer;
use crate::admin::metrics::{Expiry, FileMetrics};
use crate::config::{self, Config, Diff, Files, Leaf, ReloadUnit, Stamp, Stamps};
use crate::events::{Event, ReloadEvent};

/// Time between two checks of the files. A change counts when two checks in a row see the same, so
/// that a file is not read while it is being written, and a certificate is not read without its
/// key.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// A broken unit is read again this often: a passphrase command may fail for reasons that no file
/// shows.
const RETRY: Duration = Duration::from_mins(1);
/// Time limit for a check of the files, which reads only their attributes.
const CHECK_LIMIT: Duration = Duration::from_secs(10);
/// Time limit to read all files; a passphrase command may take 10 s.
pub(super) const READ_LIMIT: Duration = Duration::from_mins(1);

/// Keeps the service up to date with the files, and carries out requests to the process.
pub(super) struct Supervisor {
    /// The configuration at the start of the process.
    started: Arc<Config>,
    /// The configuration in service.
    config: Arc<Config>,
    service: Service,
    metrics: FileMetrics,
    /// The files as they were when they were last read, valid or not.
    read: Files,
    /// The files of each unit that are in service.
    applied: BTreeMap<ReloadUnit, Stamps>,
    /// The certificates in service.
    leaves: BTreeMap<ReloadUnit, Vec<Leaf>>,
    /// The faults of units whose files are broken.
    broken: BTreeMap<ReloadUnit, Vec<String>>,
    warned: BTreeSet<String>,
    requests: mpsc::Receiver<ControlRequest>,
    notifier: Notifier,
    program: Program,
    upgrade: Option<Upgrade>,
    checks: FileChecks,
    files: FileReader,
}

/// The state of the checks of the files.
struct FileChecks {
    /// The files at the last check.
    seen: Stamps,
    /// When the files were last read, or a request was carried out.
    last: Instant,
    files: FileReader,
    /// The last check failed, and this was logged.
    fails: bool,
    config_file: ConfigFile,
}

/// The configuration file itself, at its path.
#[derive(Default)]
struct ConfigFile {
    /// At the last check.
    seen: Option<Stamp>,
    /// Its text was compared with the configuration in use, and the file as it was then.
    is_compared: bool,
    compared: Option<Stamp>,
}

/// Why files are read again.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Trigger {
    Requested,
    Changed,
    Retry,
}

impl Supervisor {
    pub(super) fn new(
        config: Arc<Config>,
        service: Service,
        metrics: FileMetrics,
        requests: mpsc::Receiver<ControlRequest>,
        notifier: Notifier,
        program: Program,
    ) -> Self {
        let mut supervisor = Self {
            started: Arc::clone(&config),
            config,
            service,
            metrics,
            read: Files::default(),
            applied: BTreeMap::new(),
            leaves: BTreeMap::new(),
            broken: BTreeMap::new(),
            warned: BTreeSet::new(),
            requests,
            notifier,
            program,
            upgrade: None,
            checks: FileChecks {
                seen: Stamps::new(),
                last: Instant::now(),
                files: FileReader::default(),
                fails: false,
                config_file: ConfigFile::default(),
            },
            files: FileReader::default(),
        };
        supervisor.reset();
        supervisor
    }

    /// Resets the state after the whole configuration was loaded.
    fn reset(&mut self) {
        for unit in self.applied.keys() {
            self.metrics.failed(unit, false);
        }
        self.read = self.config.files().clone();
        let watched = self.service.shared.auth_policy.load().watched.clone();
        self.read.add(ReloadUnit::Auth, watched);
        let units = self.read.units();
        self.applied = units
            .map(|(unit, stamps)| (unit.clone(), stamps.clone()))
            .collect();
        self.leaves = leaves(&self.config);
        let listeners = self.service.listeners.settings();
        self.service.inventory.replace(&self.config, listeners);
        self.broken.clear();
        self.checks.config_file.is_compared = false;
        self.warned = self.config.warnings().into_iter().collect();
        for unit in self.applied.keys() {
            self.metrics.failed(unit, false);
        }
        self.show_expiry();
    }

    pub(super) fn config(&self) -> &Config {
        &self.config
    }

    /// Those that hold clients, and run in this process.
    pub(super) fn orders(&self) -> &Arc<RunningOrders> {
        &self.service.administration.orders
    }

    pub(super) fn notifier(&self) -> &Notifier {
        &self.notifier
    }

    /// This process owns the files that the old one has released.
    pub(super) fn claim(&self) {
        self.service.claim();
        self.service.administration.claim();
    }

    /// The configuration and the service.
    pub(super) fn into_parts(self) -> (Arc<Config>, Service) {
        (self.config, self.service)
    }

    /// Runs until it is dropped, or until another process is ready to replace this one. An action
    /// in progress is done whole or not at all.
    pub(super) async fn run(&mut self, hangup: &mut Signal) -> NewProcess {
        loop {
            tokio::select! {
                _ = hangup.recv() => {
                    self.reload_and_notify().await;
                }
                Some(request) = self.requests.recv() => match request {
                    ControlRequest::Reload(answer) => {
                        // The client may be gone.
                        let _ = answer.send(self.reload_and_notify().await);
                    }
                    ControlRequest::Upgrade(answer) => self.begin_upgrade(answer).await,
                    ControlRequest::HandOver(socket) => {
                        if let Some(new_process) = self.offer(socket).await {
                            return new_process;
                        }
                    }
                },
                fault = failed(self.upgrade.as_ref()) => {
                    self.refuse_upgrade(fault);
                    continue;
                }
                () = sleep(CHECK_INTERVAL) => {
                    self.check_files().await;
                    continue;
                }
            }
            self.checks.last = Instant::now();
        }
    }

    /// Runs while the process is ending, until it is dropped: checks the files and refuses all
    /// requests with `why`.
    pub(super) async fn watch(&mut self, why: &str) {
        loop {
            tokio::select! {
                Some(request) = self.requests.recv() => self.refuse_request(request, why),
                () = sleep(CHECK_INTERVAL) => self.check_files().await,
            }
        }
    }

    async fn check_files(&mut self) {
        let (read, path) = (self.read.clone(), self.config.path.clone());
        let look = move || (read.look(), Stamp::of(&path));
        let (now, config_file) = match self.checks.files.read(CHECK_LIMIT, look).await {
            Ok(now) => now,
            Err(error) => {
                if !std::mem::replace(&mut self.checks.fails, true) {
                    self.emit(ReloadEvent::FilesUnseen {
                        error: error.to_string(),
                    });
                }
                return;
            }
        };
        if std::mem::take(&mut self.checks.fails) {
            self.emit(ReloadEvent::FilesSeen);
        }
        self.check_config_file(config_file).await;
        let steady = now == self.checks.seen;
        self.checks.seen = now;
        let trigger = if steady && !self.read.changed(&self.checks.seen).is_empty() {
            Trigger::Changed
        } else if !self.broken.is_empty() && self.checks.last.elapsed() >= RETRY {
            Trigger::Retry
        } else {
            return;
        };
        self.reread(trigger).await;
        self.checks.last = Instant::now();
    }

    /// Reports once that the text of the configuration file has changed. `now` is the file.
    async fn check_config_file(&mut self, now: Option<Stamp>) {
        let file = &mut self.checks.config_file;
        let is_steady = std::mem::replace(&mut file.seen, now) == now;
        if !is_steady || file.is_compared && file.compared == now {
            return;
        }
        let config = Arc::clone(&self.config);
        // If it cannot be read, a reload reports that.
        let compare = move || config::is_edited(&config).unwrap_or(true);
        // The next check tries again.
        if let Ok(is_edited) = self.checks.files.read(CHECK_LIMIT, compare).await {
            let file = &mut self.checks.config_file;
            (file.is_compared, file.compared) = (true, now);
            if is_edited {
                self.emit(ReloadEvent::ReloadNeeded {
                    file: self.config.path.display().to_string(),
                });
            }
        }
    }

    async fn reload_and_notify(&mut self) -> ReloadAnswer {
        self.notifier.reloading();
        let answer = self.reload().await;
        self.notifier.ready();
        answer
    }

    /// Reloads the whole configuration if it has changed, or a file that is read only with it.
    /// Otherwise reads the other files again.
    async fn reload(&mut self) -> ReloadAnswer {
        // As they were when the whole configuration was read: checks in between may have seen
        // others.
        let read = self.applied.get(&ReloadUnit::Rest).cloned();
        let config = Arc::clone(&self.config);
        let edited = self.files.read(READ_LIMIT, move || {
            let other_files = read
                .iter()
                .flatten()
                .any(|(path, stamp)| Stamp::of(path) != *stamp);
            // If the configuration cannot be read, the whole reload reports that.
            other_files || config::is_edited(&config).unwrap_or(true)
        });
        match edited.await {
            Ok(true) => self.replace().await,
            Ok(false) => self.reread(Trigger::Requested).await,
            Err(unread) => self.refuse(vec![unread.to_string()]),
        }
    }

    async fn replace(&mut self) -> ReloadAnswer {
        let path = self.config.path.clone();
        let loaded = self.files.read(READ_LIMIT, move || config::load(&path)).await;
        let new = match loaded {
            Ok(Ok(new)) => Arc::new(new),
            Ok(Err(faults)) => return self.refuse(faults.iter().map(ToString::to_string).collect()),
            Err(unread) => return self.refuse(vec![unread.to_string()]),
        };
        let diff = Diff::of(&self.config, &new);
        let (old, started) = (Arc::clone(&self.config), Arc::clone(&self.started));
        if let Err(faults) = self.service.replace(&old, &new, &started).await {
            return self.refuse(faults);
        }
        let known = std::mem::take(&mut self.warned);
        self.config = new;
        self.reset();
        self.metrics.replaced(true);
        for warning in self.warned.difference(&known) {
            self.warn(warning.clone());
        }
        for (unit, leaves) in self.leaves.iter().filter(|(_, leaves)| !leaves.is_empty()) {
            self.loaded(unit, leaves);
        }
        let changed: Vec<String> = diff.changes.iter().map(ToString::to_string).collect();
        self.emit(ReloadEvent::ConfigurationApplied {
            config: self.config.path.display().to_string(),
            changed: changed.clone(),
        });
        ReloadAnswer {
            applied: true,
            changed,
            restart: self.name_waiting_keys(),
            faults: Vec::new(),
        }
    }

    /// The keys that differ from their values at the start of the process, which are logged.
    fn name_waiting_keys(&self) -> Vec<String> {
        let waiting = Diff::of(&self.started, &self.config).restart;
        let keys: Vec<String> = waiting.into_iter().map(str::to_owned).collect();
        for key in &keys {
            self.emit(ReloadEvent::RestartNeeded { key: key.clone() });
        }
        keys
    }

    fn refuse(&self, faults: Vec<String>) -> ReloadAnswer {
        for fault in &faults {
            self.emit(ReloadEvent::ConfigurationFault { fault: fault.clone() });
        }
        self.emit(ReloadEvent::ConfigurationRefused {
            config: self.config.path.display().to_string(),
            faults: faults.len(),
        });
        self.metrics.replaced(false);
        ReloadAnswer::refused(faults)
    }

    async fn reread(&mut self, trigger: Trigger) -> ReloadAnswer {
        let (config, shared) = (Arc::clone(&self.config), Arc::clone(&self.service.shared));
        let applied = self.applied.clone();
        let reading = self
            .files
            .read(READ_LIMIT, move || read_units(&config, &shared, &applied));
        let read = match reading.await {
            Ok(read) => read,
            Err(unread) if trigger == Trigger::Requested => {
                return self.refuse(vec![unread.to_string()]);
            }
            // Nobody has asked for a reload, and the next check tries again.
            Err(unread) => {
                self.checks.fails = true;
                self.emit(ReloadEvent::FilesUnseen {
                    error: unread.to_string(),
                });
                return ReloadAnswer::refused(vec![unread.to_string()]);
            }
        };
        let (mut fresh, before) = (Vec::new(), self.broken.len());
        if let (Some(old), Some(new)) = (self.read.of(&ReloadUnit::Rest), read.files.of(&ReloadUnit::Rest)) {
            for (path, _) in new.iter().filter(|(path, stamp)| old.get(*path) != Some(*stamp)) {
                let file = path.display().to_string();
                self.emit(if config::is_read_at_start(&self.config, path) {
                    ReloadEvent::UpgradeNeeded { file }
                } else {
                    ReloadEvent::ReloadNeeded { file }
                });
            }
        }
        self.read = read.files;
        for (unit, outcome) in read.outcomes {
            match outcome {
                UnitOutcome::Same => self.fixed(&unit),
                UnitOutcome::New(ready, leaves, certificates) => {
                    if let Some(fault) = self.refused_by_servers(&unit, &ready).await {
                        self.fail(unit, vec![fault], trigger);
                        continue;
                    }
                    if let Some(stamps) = self.read.of(&unit) {
                        self.applied.insert(unit.clone(), stamps.clone());
                    }
                    self.put_in_service(&unit, ready);
                    self.service.inventory.replace_certificates(&unit, certificates);
                    self.fixed(&unit);
                    self.metrics.reloaded(true);
                    self.loaded(&unit, &leaves);
                    self.leaves.insert(unit.clone(), leaves);
                    fresh.push(unit.to_string());
                }
                UnitOutcome::Broken(faults) => self.fail(unit, faults, trigger),
            }
        }
        for warning in read.warnings {
            if self.warned.insert(warning.clone()) || trigger == Trigger::Requested {
                self.warn(warning);
            }
        }
        self.show_expiry();
        let mut restart = Vec::new();
        if trigger == Trigger::Requested {
            restart = self.name_waiting_keys();
            let broken: Vec<String> = self.broken.keys().map(ReloadUnit::to_string).collect();
            // The file has the configuration that is in use.
            self.metrics.confirmed();
            self.emit(ReloadEvent::FilesReread {
                changed: fresh.clone(),
                broken,
            });
        } else if before > 0 && self.broken.is_empty() {
            self.emit(ReloadEvent::FilesRight);
        }
        ReloadAnswer {
            applied: self.broken.is_empty(),
            changed: fresh,
            restart,
            faults: self.broken.values().flatten().cloned().collect(),
        }
    }

    fn fixed(&mut self, unit: &ReloadUnit) {
        self.broken.remove(unit);
        self.metrics.failed(unit, false);
    }

    fn fail(&mut self, unit: ReloadUnit, faults: Vec<String>, trigger: Trigger) {
        if trigger == Trigger::Requested || self.broken.get(&unit) != Some(&faults) {
            let meanwhile = match unit {
                ReloadUnit::Rest => {
                    "it is read only with the whole configuration, which would be refused now"
                }
                _ => "the old version stays in service",
            };
            for fault in &faults {
                self.emit(ReloadEvent::FilesRefused {
                    part: unit.to_string(),
                    fault: fault.clone(),
                    meanwhile: meanwhile.to_owned(),
                });
            }
            self.metrics.reloaded(false);
        }
        self.metrics.failed(&unit, true);
        self.broken.insert(unit, faults);
    }

    /// Why the servers would not take the router in with this unit, as far as they have been asked.
    async fn refused_by_servers(&self, unit: &ReloadUnit, ready: &ReadyUnit) -> Option<String> {
        let (ReloadUnit::ServiceAccount(name), ReadyUnit::Password(password)) = (unit, ready) else {
            return None;
        };
        let cluster = self.service.clusters.get(name)?;
        let refusal = cluster.refusal(password.as_ref(), cluster.tls()).await?;
        Some(format!("{unit}: {refusal}"))
    }

    /// Puts a unit in service for later logins and connections.
    fn put_in_service(&self, unit: &ReloadUnit, ready: ReadyUnit) {
        let cluster = match unit {
            ReloadUnit::ServerTls(name) | ReloadUnit::ServiceAccount(name) => self.service.clusters.get(name),
            _ => None,
        };
        match ready {
            ReadyUnit::Tls(acceptor) => {
                if let Some(tls) = &self.service.tls {
                    tls.store(Arc::new(acceptor));
                }
            }
            ReadyUnit::Http(settings) => {
                self.service.admin.tls().store(Some(settings));
            }
            ReadyUnit::Token(token) => self.service.handles.token.store(Some(Arc::new(token))),
            ReadyUnit::AuthPolicy(access) => self.service.shared.auth_policy.store(access),
            ReadyUnit::ServerTls(tls) => {
                if let Some(cluster) = cluster {
                    cluster.replace_tls(tls);
                }
            }
            ReadyUnit::Password(password) => {
                if let Some(cluster) = cluster {
                    cluster.replace_password(password.as_ref());
                }
            }
        }
    }

    fn emit(&self, event: impl Into<Event>) {
        self.service.handles.events.emit(event);
    }

    fn warn(&self, warning: String) {
        let at_start = false;
        self.emit(ReloadEvent::ConfigurationWarning { warning, at_start });
    }

    /// Emits one event for each certificate, or one event for a unit without certificates.
    fn loaded(&self, unit: &ReloadUnit, leaves: &[Leaf]) {
        for leaf in leaves {
            self.emit(ReloadEvent::CertificateLoaded {
                part: unit.to_string(),
                file: leaf.cert_file.display().to_string(),
                subject: leaf.subject.clone(),
                names: leaf.names.join(","),
                expires: leaf.expires(),
            });
        }
        if leaves.is_empty() {
            self.emit(ReloadEvent::FilesLoaded {
                part: unit.to_string(),
            });
        }
    }

    fn show_expiry(&self) {
        let expiries = self.leaves.iter().flat_map(|(unit, leaves)| {
            leaves.iter().map(|leaf| Expiry {
                part: unit.to_string(),
                file: leaf.cert_file.display().to_string(),
                not_after: leaf.not_after,
            })
        });
        self.metrics.certificates(expiries.collect());
    }
}
