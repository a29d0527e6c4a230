//! Files that are read again while sessions go on: at SIGHUP, and when they change.
//!
//! Guarantees: a broken new file keeps the old one in service and says so; each part of the configuration is taken by
//! itself; what is in service is exchanged for logins and connections to come, never for a live session.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use tokio::signal::unix::Signal;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::admin::metrics::{Expiry, FileMetrics};
use crate::backend::TlsClient;
use crate::cluster::ClusterHandle;
use crate::config::{self, Config, Files, KeyPair, Leaf, Material, Part, Secret, Stamp, Stamps};
use crate::frontend::access::{Access, AccessFaults, Around};
use crate::frontend::tls::Acceptor;
use crate::session::Shared;

/// Between two looks at the files. A change is taken when two in a row see the same, so that a file is not read while
/// it is being written, and a certificate not without its key.
const LOOK: Duration = Duration::from_secs(1);
/// A part that is broken is tried again this often: a passphrase command may fail for reasons that no file shows.
const RETRY: Duration = Duration::from_mins(1);

/// Where what is read comes into service.
pub(super) struct Sinks {
    pub(super) tls: Option<Arc<ArcSwap<Acceptor>>>,
    pub(super) http: Option<Arc<ArcSwap<ServerConfig>>>,
    pub(super) token: Option<Arc<ArcSwap<Secret>>>,
    pub(super) clusters: HashMap<Arc<str>, ClusterHandle>,
    pub(super) shared: Arc<Shared>,
}

/// Keeps what is in service as the files have it.
pub(super) struct Reload {
    config: Arc<Config>,
    sinks: Sinks,
    metrics: FileMetrics,
    /// As they were when they were read last, for better or worse.
    read: Files,
    /// Of each part, what is in service was made of these.
    taken: BTreeMap<Part, Stamps>,
    /// The certificates in service.
    leaves: BTreeMap<Part, Vec<Leaf>>,
    /// Parts whose files are not right, with what is wrong.
    broken: BTreeMap<Part, Vec<String>>,
    warned: BTreeSet<String>,
}

/// One part, made ready for service.
enum Ready {
    Tls(Acceptor),
    Http(Arc<ServerConfig>),
    Token(Secret),
    Access(Arc<Access>),
    ServerTls(Arc<TlsClient>),
    Password(Option<Secret>),
}

enum Outcome {
    /// Right, and what is in service.
    Same,
    New(Ready, Vec<Leaf>),
    Broken(Vec<String>),
}

struct Read {
    outcomes: BTreeMap<Part, Outcome>,
    files: Files,
    warnings: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Why {
    Hangup,
    Changed,
    Retry,
}

impl Reload {
    pub(super) fn new(config: Arc<Config>, sinks: Sinks, metrics: FileMetrics) -> Self {
        let mut read = config.files().clone();
        read.add(Part::Auth, sinks.shared.access.load().watched.clone());
        let taken = read
            .parts()
            .map(|(part, stamps)| (part.clone(), stamps.clone()))
            .collect();
        let reload = Self {
            leaves: leaves(&config),
            warned: config.warnings().into_iter().collect(),
            config,
            sinks,
            metrics,
            read,
            taken,
            broken: BTreeMap::new(),
        };
        for part in reload.taken.keys() {
            reload.metrics.failed(part, false);
        }
        reload.show_expiry();
        reload
    }

    /// Until `stop`.
    pub(super) async fn run(mut self, mut hangup: Signal, stop: CancellationToken) {
        let mut seen = Stamps::new();
        let mut last = Instant::now();
        loop {
            let asked = tokio::select! {
                () = stop.cancelled() => return,
                _ = hangup.recv() => true,
                () = sleep(LOOK) => false,
            };
            let why = if asked {
                Why::Hangup
            } else {
                let read = self.read.clone();
                let Some(now) = unless(&stop, spawn_blocking(move || read.look())).await else {
                    return;
                };
                let steady = now == seen;
                seen = now;
                if steady && !self.read.changed(&seen).is_empty() {
                    Why::Changed
                } else if !self.broken.is_empty() && last.elapsed() >= RETRY {
                    Why::Retry
                } else {
                    continue;
                }
            };
            if self.reread(why, &stop).await.is_none() {
                return;
            }
            last = Instant::now();
        }
    }

    /// `None` where it was stopped.
    async fn reread(&mut self, why: Why, stop: &CancellationToken) -> Option<()> {
        let (config, shared) = (Arc::clone(&self.config), Arc::clone(&self.sinks.shared));
        let taken = self.taken.clone();
        let read = unless(stop, spawn_blocking(move || read(&config, &shared, &taken))).await?;
        let (mut fresh, before) = (Vec::new(), self.broken.len());
        if let (Some(old), Some(new)) = (self.read.of(&Part::Rest), read.files.of(&Part::Rest)) {
            for (path, _) in new.iter().filter(|(path, stamp)| old.get(*path) != Some(*stamp)) {
                warn!(file = %path.display(), "has changed, and is read at the start only; restart to apply it");
            }
        }
        self.read = read.files;
        for (part, outcome) in read.outcomes {
            match outcome {
                Outcome::Same => self.mended(&part),
                Outcome::New(ready, leaves) => {
                    if let Some(stamps) = self.read.of(&part) {
                        self.taken.insert(part.clone(), stamps.clone());
                    }
                    self.put(&part, ready);
                    self.mended(&part);
                    self.metrics.reloaded(true);
                    report(&part, &leaves);
                    self.leaves.insert(part.clone(), leaves);
                    fresh.push(part.to_string());
                }
                Outcome::Broken(faults) => self.fail(part, faults, why),
            }
        }
        for warning in read.warnings {
            if self.warned.insert(warning.clone()) || why == Why::Hangup {
                warn!("{warning}");
            }
        }
        self.show_expiry();
        if why == Why::Hangup {
            self.answer_hangup(&fresh);
        } else if before > 0 && self.broken.is_empty() {
            info!("every file is right again");
        }
        Some(())
    }

    fn mended(&mut self, part: &Part) {
        self.broken.remove(part);
        self.metrics.failed(part, false);
    }

    fn fail(&mut self, part: Part, faults: Vec<String>, why: Why) {
        if why == Why::Hangup || self.broken.get(&part) != Some(&faults) {
            let meanwhile = match part {
                Part::Rest => "it is read at the start only, which would fail now",
                _ => "what was loaded before stays in service",
            };
            for fault in &faults {
                error!(%part, "{fault}; {meanwhile}");
            }
            self.metrics.reloaded(false);
        }
        self.metrics.failed(&part, true);
        self.broken.insert(part, faults);
    }

    /// Takes it into service, for what begins from now on.
    fn put(&self, part: &Part, ready: Ready) {
        let cluster = match part {
            Part::ServerTls(name) | Part::ServiceAccount(name) => self.sinks.clusters.get(name),
            _ => None,
        };
        match ready {
            Ready::Tls(acceptor) => {
                if let Some(tls) = &self.sinks.tls {
                    tls.store(Arc::new(acceptor));
                }
            }
            Ready::Http(settings) => {
                if let Some(http) = &self.sinks.http {
                    http.store(settings);
                }
            }
            Ready::Token(token) => {
                if let Some(sink) = &self.sinks.token {
                    sink.store(Arc::new(token));
                }
            }
            Ready::Access(access) => self.sinks.shared.access.store(access),
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

    fn answer_hangup(&self, fresh: &[String]) {
        match config::is_edited(&self.config) {
            Ok(false) => {}
            Ok(true) => warn!(
                config = %self.config.path.display(),
                "SIGHUP: the configuration itself has changed and is not reloaded yet, only the files it names; restart to apply it"
            ),
            Err(problem) => {
                warn!(config = %self.config.path.display(), "SIGHUP: the configuration {problem}; only the files it names are read again");
            }
        }
        let listed = |parts: &[String]| match parts {
            [] => "none".to_owned(),
            parts => parts.join(", "),
        };
        let broken: Vec<String> = self.broken.keys().map(Part::to_string).collect();
        info!(changed = %listed(fresh), broken = %listed(&broken), "SIGHUP: files read again");
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

/// The result of blocking work, unless the process ends first.
async fn unless<T>(stop: &CancellationToken, work: tokio::task::JoinHandle<T>) -> Option<T> {
    tokio::select! {
        () = stop.cancelled() => None,
        // It panics in tests at most: then the next look tries again.
        done = work => done.ok(),
    }
}

/// The certificates a configuration was loaded with.
fn leaves(config: &Config) -> BTreeMap<Part, Vec<Leaf>> {
    let mut leaves = BTreeMap::new();
    if let Some(tls) = &config.tls {
        leaves.insert(Part::Tls, of_clients(tls));
    }
    if let Some(tls) = &config.http.tls {
        leaves.insert(Part::Http, vec![tls.leaf.clone()]);
    }
    for cluster in config.clusters.values() {
        let own = of_servers(cluster.server_tls.client_certificate.as_ref());
        leaves.insert(Part::ServerTls(Arc::clone(&cluster.name)), own);
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
fn read(config: &Config, shared: &Shared, taken: &BTreeMap<Part, Stamps>) -> Read {
    let materials = config::reread(config);
    let mut files = materials.files;
    let own = files.of(&Part::Auth).cloned().unwrap_or_default();
    // What the rules were read from is known by who read them.
    let watched = shared
        .access
        .load()
        .watched
        .keys()
        .map(|path| (path.clone(), Stamp::of(path)))
        .collect();
    files.add(Part::Auth, watched);
    let mut outcomes = BTreeMap::new();
    for (part, material) in materials.parts {
        let outcome = match material {
            Err(faults) => Outcome::Broken(faults.iter().map(ToString::to_string).collect()),
            Ok(_) if files.of(&part) == taken.get(&part) => Outcome::Same,
            Ok(material) => match ready(material, Around::of(config), shared) {
                Ok((ready, leaves)) => {
                    if let Ready::Access(access) = &ready {
                        files.replace(Part::Auth, own.clone());
                        files.add(Part::Auth, access.watched.clone());
                    }
                    Outcome::New(ready, leaves)
                }
                Err(Faulty { faults, watched }) => {
                    files.add(part.clone(), watched);
                    Outcome::Broken(faults)
                }
            },
        };
        outcomes.insert(part, outcome);
    }
    // A part that is right is not told of; this one has no material.
    outcomes.entry(Part::Rest).or_insert(Outcome::Same);
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

fn ready(material: Material, around: Around<'_>, shared: &Shared) -> Result<(Ready, Vec<Leaf>), Faulty> {
    Ok(match material {
        Material::Tls(tls) => (Ready::Tls(Acceptor::new(&tls)), of_clients(&tls)),
        Material::Http(tls) => (Ready::Http(tls.server_config), vec![tls.leaf]),
        Material::Token(token) => (Ready::Token(token), Vec::new()),
        Material::Auth(auth) => match Access::load(&auth, around, &shared.mock) {
            Ok(access) => (Ready::Access(Arc::new(access)), Vec::new()),
            Err(AccessFaults {
                lines: faults,
                watched,
            }) => return Err(Faulty { faults, watched }),
        },
        Material::ServerTls(tls) => {
            let leaves = of_servers(tls.client_certificate.as_ref());
            let client = TlsClient::new(&tls).map_err(|error| Faulty {
                faults: vec![error.to_string()],
                watched: Stamps::new(),
            })?;
            (Ready::ServerTls(client), leaves)
        }
        Material::Password(password) => (Ready::Password(password), Vec::new()),
    })
}

/// One line for each certificate; one for a part without.
fn report(part: &Part, leaves: &[Leaf]) {
    for leaf in leaves {
        info!(
            %part,
            file = %leaf.cert_file.display(),
            subject = leaf.subject,
            names = leaf.names.join(","),
            expires = leaf.expires(),
            "certificate loaded"
        );
    }
    if leaves.is_empty() {
        info!(%part, "files loaded");
    }
}
