//! What is read again while sessions go on: the configuration when it is asked for, the files it names when they change,
//! too.
//!
//! Guarantees: the configuration is applied whole or refused whole. A broken new file keeps the old one in service and
//! says so; each part's files are taken by themselves. What is in service is exchanged for logins and connections to
//! come, never for a live session.

mod handover;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use tokio::signal::unix::Signal;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use self::handover::failed;
pub(super) use self::handover::{ENDING, REPLACED};
use super::control::ControlRequest;
use super::files::FileReader;
use super::handover::Heir;
use super::notify::Notifier;
use super::service::Service;
use super::upgrade::{Program, Upgrade};
use crate::admin::ReloadAnswer;
use crate::admin::metrics::{Expiry, FileMetrics};
use crate::backend::TlsClient;
use crate::config::{
    self, Config, Diff, Files, KeyPair, Leaf, ReloadUnit, ReloadedUnit, Secret, Stamp, Stamps,
};
use crate::events::{Event, ReloadEvent};
use crate::frontend::auth_policy::{AuthPolicy, AuthPolicyError, PolicyContext};
use crate::frontend::tls::Acceptor;
use crate::session::Shared;

/// Between two looks at the files. A change is taken when two in a row see the same, so that a file is not read while
/// it is being written, and a certificate not without its key.
const LOOK: Duration = Duration::from_secs(1);
/// A part that is broken is tried again this often: a passphrase command may fail for reasons that no file shows.
const RETRY: Duration = Duration::from_mins(1);
/// For a look at the files: only their attributes.
const LOOK_PATIENCE: Duration = Duration::from_secs(10);
/// For everything to be read; a passphrase command may take 10 s.
pub(super) const READ_PATIENCE: Duration = Duration::from_mins(1);

/// Keeps what is in service as the files have it.
pub(super) struct Supervisor {
    /// What the process began with.
    started: Arc<Config>,
    /// What is in force.
    config: Arc<Config>,
    service: Service,
    metrics: FileMetrics,
    /// As they were when they were read last, for better or worse.
    read: Files,
    /// Of each part, what is in service was made of these.
    taken: BTreeMap<ReloadUnit, Stamps>,
    /// The certificates in service.
    leaves: BTreeMap<ReloadUnit, Vec<Leaf>>,
    /// Parts whose files are not right, with what is wrong.
    broken: BTreeMap<ReloadUnit, Vec<String>>,
    warned: BTreeSet<String>,
    requests: mpsc::Receiver<ControlRequest>,
    notifier: Notifier,
    program: Program,
    upgrade: Option<Upgrade>,
    looks: Looks,
    files: FileReader,
}

/// What the looks at the files have come to.
struct Looks {
    /// By the last one.
    seen: Stamps,
    /// When something was done about them.
    last: Instant,
    files: FileReader,
    /// The last one did not come to its end, and that was told.
    fails: bool,
}

/// One part, made ready for service.
enum Ready {
    Tls(Acceptor),
    Http(Arc<ServerConfig>),
    Token(Secret),
    AuthPolicy(Arc<AuthPolicy>),
    ServerTls(Arc<TlsClient>),
    Password(Option<Secret>),
}

enum UnitOutcome {
    /// Right, and what is in service.
    Same,
    New(Ready, Vec<Leaf>),
    Broken(Vec<String>),
}

struct Read {
    outcomes: BTreeMap<ReloadUnit, UnitOutcome>,
    files: Files,
    warnings: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Why {
    Asked,
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
        let mut reload = Self {
            started: Arc::clone(&config),
            config,
            service,
            metrics,
            read: Files::default(),
            taken: BTreeMap::new(),
            leaves: BTreeMap::new(),
            broken: BTreeMap::new(),
            warned: BTreeSet::new(),
            requests,
            notifier,
            program,
            upgrade: None,
            looks: Looks {
                seen: Stamps::new(),
                last: Instant::now(),
                files: FileReader::default(),
                fails: false,
            },
            files: FileReader::default(),
        };
        reload.begin();
        reload
    }

    /// Everything is as the configuration in force was made.
    fn begin(&mut self) {
        for part in self.taken.keys() {
            self.metrics.failed(part, false);
        }
        self.read = self.config.files().clone();
        let watched = self.service.shared.auth_policy.load().watched.clone();
        self.read.add(ReloadUnit::Auth, watched);
        let parts = self.read.units();
        self.taken = parts
            .map(|(part, stamps)| (part.clone(), stamps.clone()))
            .collect();
        self.leaves = leaves(&self.config);
        self.broken.clear();
        self.warned = self.config.warnings().into_iter().collect();
        for part in self.taken.keys() {
            self.metrics.failed(part, false);
        }
        self.show_expiry();
    }

    pub(super) fn config(&self) -> &Config {
        &self.config
    }

    pub(super) fn notifier(&self) -> &Notifier {
        &self.notifier
    }

    /// The old process has released its files, and this one owns them.
    pub(super) fn claim(&self) {
        self.service.claim();
        self.service.administration.claim();
    }

    /// The configuration in force, and what it made.
    pub(super) fn into_parts(self) -> (Arc<Config>, Service) {
        (self.config, self.service)
    }

    /// Until it is dropped, or another process is ready to take the place of this one. What it was doing then is done
    /// whole or not at all.
    pub(super) async fn run(&mut self, hangup: &mut Signal) -> Heir {
        loop {
            tokio::select! {
                _ = hangup.recv() => {
                    self.reload_and_tell().await;
                }
                Some(request) = self.requests.recv() => match request {
                    ControlRequest::Reload(answer) => {
                        // Whoever asked may be gone.
                        let _ = answer.send(self.reload_and_tell().await);
                    }
                    ControlRequest::Upgrade(answer) => self.begin_upgrade(answer).await,
                    ControlRequest::HandOver(socket) => {
                        if let Some(heir) = self.offer(socket).await {
                            return heir;
                        }
                    }
                },
                fault = failed(self.upgrade.as_ref()) => {
                    self.refuse_upgrade(fault);
                    continue;
                }
                () = sleep(LOOK) => {
                    self.look().await;
                    continue;
                }
            }
            self.looks.last = Instant::now();
        }
    }

    /// Only looks at the files, on the way out, and refuses everything else with `why`: until it is dropped.
    pub(super) async fn watch(&mut self, why: &str) {
        loop {
            tokio::select! {
                Some(request) = self.requests.recv() => self.too_late(request, why),
                () = sleep(LOOK) => self.look().await,
            }
        }
    }

    async fn look(&mut self) {
        let read = self.read.clone();
        let now = match self.looks.files.read(LOOK_PATIENCE, move || read.look()).await {
            Ok(now) => now,
            Err(error) => {
                if !std::mem::replace(&mut self.looks.fails, true) {
                    self.emit(ReloadEvent::FilesUnseen {
                        error: error.to_string(),
                    });
                }
                return;
            }
        };
        if std::mem::take(&mut self.looks.fails) {
            self.emit(ReloadEvent::FilesSeen);
        }
        let steady = now == self.looks.seen;
        self.looks.seen = now;
        let why = if steady && !self.read.changed(&self.looks.seen).is_empty() {
            Why::Changed
        } else if !self.broken.is_empty() && self.looks.last.elapsed() >= RETRY {
            Why::Retry
        } else {
            return;
        };
        self.reread(why).await;
        self.looks.last = Instant::now();
    }

    async fn reload_and_tell(&mut self) -> ReloadAnswer {
        self.notifier.reloading();
        let answer = self.reload().await;
        self.notifier.ready();
        answer
    }

    /// The whole configuration if it, or a file that is read with it only, is another one by now; else the files.
    async fn reload(&mut self) -> ReloadAnswer {
        let (config, read) = (Arc::clone(&self.config), self.read.of(&ReloadUnit::Rest).cloned());
        let edited = self.files.read(READ_PATIENCE, move || {
            let other_files = read
                .iter()
                .flatten()
                .any(|(path, stamp)| Stamp::of(path) != *stamp);
            // What cannot be read is for the whole reload to tell.
            other_files || config::is_edited(&config).unwrap_or(true)
        });
        match edited.await {
            Ok(true) => self.replace().await,
            Ok(false) => self.reread(Why::Asked).await,
            Err(unread) => self.refuse(vec![unread.to_string()]),
        }
    }

    async fn replace(&mut self) -> ReloadAnswer {
        let path = self.config.path.clone();
        let loaded = self.files.read(READ_PATIENCE, move || config::load(&path)).await;
        let new = match loaded {
            Ok(Ok(new)) => Arc::new(new),
            Ok(Err(faults)) => return self.refuse(faults.iter().map(ToString::to_string).collect()),
            Err(unread) => return self.refuse(vec![unread.to_string()]),
        };
        let diff = Diff::of(&self.config, &new);
        let restart = Diff::of(&self.started, &new).restart;
        let (old, started) = (Arc::clone(&self.config), Arc::clone(&self.started));
        if let Err(faults) = self.service.replace(&old, &new, &started).await {
            return self.refuse(faults);
        }
        let known = std::mem::take(&mut self.warned);
        self.config = new;
        self.begin();
        self.metrics.replaced(true);
        for warning in self.warned.difference(&known) {
            self.warn(warning.clone());
        }
        for (part, leaves) in self.leaves.iter().filter(|(_, leaves)| !leaves.is_empty()) {
            self.loaded(part, leaves);
        }
        let changed: Vec<String> = diff.changes.iter().map(ToString::to_string).collect();
        self.emit(ReloadEvent::ConfigurationApplied {
            config: self.config.path.display().to_string(),
            changed: changed.clone(),
        });
        for key in &restart {
            self.emit(ReloadEvent::RestartNeeded {
                key: (*key).to_owned(),
            });
        }
        ReloadAnswer {
            applied: true,
            changed,
            restart: restart.into_iter().map(str::to_owned).collect(),
            faults: Vec::new(),
        }
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
        ReloadAnswer {
            applied: false,
            changed: Vec::new(),
            restart: Vec::new(),
            faults,
        }
    }

    async fn reread(&mut self, why: Why) -> ReloadAnswer {
        let (config, shared) = (Arc::clone(&self.config), Arc::clone(&self.service.shared));
        let taken = self.taken.clone();
        let reading = self
            .files
            .read(READ_PATIENCE, move || read(&config, &shared, &taken));
        let read = match reading.await {
            Ok(read) => read,
            // The next look tries again.
            Err(unread) => return self.refuse(vec![unread.to_string()]),
        };
        let (mut fresh, before) = (Vec::new(), self.broken.len());
        if let (Some(old), Some(new)) = (self.read.of(&ReloadUnit::Rest), read.files.of(&ReloadUnit::Rest)) {
            for (path, _) in new.iter().filter(|(path, stamp)| old.get(*path) != Some(*stamp)) {
                self.emit(ReloadEvent::ReloadNeeded {
                    file: path.display().to_string(),
                });
            }
        }
        self.read = read.files;
        for (part, outcome) in read.outcomes {
            match outcome {
                UnitOutcome::Same => self.mended(&part),
                UnitOutcome::New(ready, leaves) => {
                    if let Some(stamps) = self.read.of(&part) {
                        self.taken.insert(part.clone(), stamps.clone());
                    }
                    self.put(&part, ready);
                    self.mended(&part);
                    self.metrics.reloaded(true);
                    self.loaded(&part, &leaves);
                    self.leaves.insert(part.clone(), leaves);
                    fresh.push(part.to_string());
                }
                UnitOutcome::Broken(faults) => self.fail(part, faults, why),
            }
        }
        for warning in read.warnings {
            if self.warned.insert(warning.clone()) || why == Why::Asked {
                self.warn(warning);
            }
        }
        self.show_expiry();
        if why == Why::Asked {
            let broken: Vec<String> = self.broken.keys().map(ReloadUnit::to_string).collect();
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
            restart: Vec::new(),
            faults: self.broken.values().flatten().cloned().collect(),
        }
    }

    fn mended(&mut self, part: &ReloadUnit) {
        self.broken.remove(part);
        self.metrics.failed(part, false);
    }

    fn fail(&mut self, part: ReloadUnit, faults: Vec<String>, why: Why) {
        if why == Why::Asked || self.broken.get(&part) != Some(&faults) {
            let meanwhile = match part {
                ReloadUnit::Rest => {
                    "it is read with the whole configuration only, which would be refused now"
                }
                _ => "what was loaded before stays in service",
            };
            for fault in &faults {
                self.emit(ReloadEvent::FilesRefused {
                    part: part.to_string(),
                    fault: fault.clone(),
                    meanwhile: meanwhile.to_owned(),
                });
            }
            self.metrics.reloaded(false);
        }
        self.metrics.failed(&part, true);
        self.broken.insert(part, faults);
    }

    /// Takes it into service, for what begins from now on.
    fn put(&self, part: &ReloadUnit, ready: Ready) {
        let cluster = match part {
            ReloadUnit::ServerTls(name) | ReloadUnit::ServiceAccount(name) => self.service.clusters.get(name),
            _ => None,
        };
        match ready {
            Ready::Tls(acceptor) => {
                if let Some(tls) = &self.service.tls {
                    tls.store(Arc::new(acceptor));
                }
            }
            Ready::Http(settings) => {
                self.service.admin.tls().store(Some(settings));
            }
            Ready::Token(token) => self.service.handles.token.store(Some(Arc::new(token))),
            Ready::AuthPolicy(access) => self.service.shared.auth_policy.store(access),
            Ready::ServerTls(tls) => {
                if let Some(cluster) = cluster {
                    cluster.replace_tls(tls);
                }
            }
            Ready::Password(password) => {
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

    /// One event for each certificate; one for a part without.
    fn loaded(&self, part: &ReloadUnit, leaves: &[Leaf]) {
        for leaf in leaves {
            self.emit(ReloadEvent::CertificateLoaded {
                part: part.to_string(),
                file: leaf.cert_file.display().to_string(),
                subject: leaf.subject.clone(),
                names: leaf.names.join(","),
                expires: leaf.expires(),
            });
        }
        if leaves.is_empty() {
            self.emit(ReloadEvent::FilesLoaded {
                part: part.to_string(),
            });
        }
    }

    fn show_expiry(&self) {
        let expiries = self.leaves.iter().flat_map(|(part, leaves)| {
            leaves.iter().map(|leaf| Expiry {
                part: part.to_string(),
                file: leaf.cert_file.display().to_string(),
                not_after: leaf.not_after,
            })
        });
        self.metrics.certificates(expiries.collect());
    }
}

/// The certificates a configuration was loaded with.
fn leaves(config: &Config) -> BTreeMap<ReloadUnit, Vec<Leaf>> {
    let mut leaves = BTreeMap::new();
    if let Some(tls) = &config.tls {
        leaves.insert(ReloadUnit::Tls, of_clients(tls));
    }
    if let Some(tls) = &config.http.tls {
        leaves.insert(ReloadUnit::Http, vec![tls.leaf.clone()]);
    }
    for cluster in config.clusters.values() {
        let own = of_servers(cluster.server_tls.client_certificate.as_ref());
        leaves.insert(ReloadUnit::ServerTls(Arc::clone(&cluster.name)), own);
    }
    leaves
}

fn of_clients(tls: &config::ClientTls) -> Vec<Leaf> {
    tls.certificates.iter().map(|served| served.pair.leaf()).collect()
}

fn of_servers(pair: Option<&Arc<KeyPair>>) -> Vec<Leaf> {
    pair.map(|pair| pair.leaf()).into_iter().collect()
}

/// Blocking: files, passphrase commands, verifiers of plain passwords.
fn read(config: &Config, shared: &Shared, taken: &BTreeMap<ReloadUnit, Stamps>) -> Read {
    let materials = config::reread(config);
    let mut files = materials.files;
    let own = files.of(&ReloadUnit::Auth).cloned().unwrap_or_default();
    // What the rules were read from is known by who read them.
    let watched = shared
        .auth_policy
        .load()
        .watched
        .keys()
        .map(|path| (path.clone(), Stamp::of(path)))
        .collect();
    files.add(ReloadUnit::Auth, watched);
    let mut outcomes = BTreeMap::new();
    for (part, material) in materials.units {
        let outcome = match material {
            Err(faults) => UnitOutcome::Broken(faults.iter().map(ToString::to_string).collect()),
            Ok(_) if files.of(&part) == taken.get(&part) => UnitOutcome::Same,
            Ok(material) => match ready(material, PolicyContext::of(config), shared) {
                Ok((ready, leaves)) => {
                    if let Ready::AuthPolicy(access) = &ready {
                        files.replace(ReloadUnit::Auth, own.clone());
                        files.add(ReloadUnit::Auth, access.watched.clone());
                    }
                    UnitOutcome::New(ready, leaves)
                }
                Err(Faulty { faults, watched }) => {
                    files.add(part.clone(), watched);
                    UnitOutcome::Broken(faults)
                }
            },
        };
        outcomes.insert(part, outcome);
    }
    // A part that is right is not told of; this one has no material.
    outcomes.entry(ReloadUnit::Rest).or_insert(UnitOutcome::Same);
    Read {
        outcomes,
        files,
        warnings: materials.warnings,
    }
}

/// What is wrong with a part, and what else was read of it.
struct Faulty {
    faults: Vec<String>,
    watched: Stamps,
}

fn ready(
    material: ReloadedUnit,
    around: PolicyContext<'_>,
    shared: &Shared,
) -> Result<(Ready, Vec<Leaf>), Faulty> {
    Ok(match material {
        ReloadedUnit::Tls(tls) => (Ready::Tls(Acceptor::new(&tls)), of_clients(&tls)),
        ReloadedUnit::Http(tls) => (Ready::Http(tls.server_config), vec![tls.leaf]),
        ReloadedUnit::Token(token) => (Ready::Token(token), Vec::new()),
        ReloadedUnit::Auth(auth) => match AuthPolicy::load(&auth, around, &shared.mock) {
            Ok(access) => (Ready::AuthPolicy(Arc::new(access)), Vec::new()),
            Err(AuthPolicyError {
                lines: faults,
                watched,
            }) => return Err(Faulty { faults, watched }),
        },
        ReloadedUnit::ServerTls(tls) => {
            let leaves = of_servers(tls.client_certificate.as_ref());
            let client = TlsClient::new(&tls).map_err(|error| Faulty {
                faults: vec![error.to_string()],
                watched: Stamps::new(),
            })?;
            (Ready::ServerTls(client), leaves)
        }
        ReloadedUnit::Password(password) => (Ready::Password(password), Vec::new()),
    })
}
