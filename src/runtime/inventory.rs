//! What this process has and how it is set, for everyone who looks: put together from the
//! configuration in use and from what counts sessions and connections.

mod limits;
mod listeners;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use crate::admin::{
    self, CertificateView, DatabaseView, LimitView, ListenerView, PeerView, Readiness, SettingView,
};
use crate::config::{
    CertificateFacts, CertificateFile, CertificateUse, Config, Diff, ListenerMode, ListenerTls, ReloadUnit,
    Setting,
};
use crate::session::Shared;
use crate::session::listener_settings::ListenerSettings;
use crate::session::peers::PeerLook;
use crate::session::registry::DatabaseTotals;
use crate::wire::text::Escaped;

/// Certificates by the unit whose files they are in.
pub(super) type Certificates = BTreeMap<ReloadUnit, Vec<CertificateFile>>;

const DAY_MS: i64 = 24 * 3600 * 1000;

/// Shared with HTTP and the console; the supervisor keeps it up to date.
pub(super) struct Inventory {
    shared: Arc<Shared>,
    readiness: Arc<Readiness>,
    /// The configuration at the start of the process.
    started: Arc<Config>,
    now: ArcSwap<InService>,
    certificates: ArcSwap<Certificates>,
}

/// What a reload replaces as a whole.
struct InService {
    config: Arc<Config>,
    listeners: Vec<Arc<ListenerSettings>>,
    /// Read from the configuration's text when somebody asks.
    settings: OnceLock<Vec<SettingView>>,
}

impl fmt::Debug for Inventory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inventory").finish_non_exhaustive()
    }
}

impl Inventory {
    pub(super) fn new(shared: &Arc<Shared>, readiness: &Arc<Readiness>, config: &Arc<Config>) -> Self {
        Self {
            shared: Arc::clone(shared),
            readiness: Arc::clone(readiness),
            started: Arc::clone(config),
            now: ArcSwap::from_pointee(InService::new(config, Vec::new())),
            certificates: ArcSwap::from_pointee(config.certificates()),
        }
    }

    /// The whole configuration is in service.
    pub(super) fn replace(&self, config: &Arc<Config>, listeners: Vec<Arc<ListenerSettings>>) {
        self.certificates.store(Arc::new(config.certificates()));
        self.now.store(Arc::new(InService::new(config, listeners)));
    }

    /// The files of a unit were read again, and are in service.
    pub(super) fn replace_certificates(&self, unit: &ReloadUnit, files: Vec<CertificateFile>) {
        let mut all = Certificates::clone(&self.certificates.load());
        all.insert(unit.clone(), files);
        self.certificates.store(Arc::new(all));
    }
}

impl InService {
    fn new(config: &Arc<Config>, listeners: Vec<Arc<ListenerSettings>>) -> Self {
        Self {
            config: Arc::clone(config),
            listeners,
            settings: OnceLock::new(),
        }
    }
}

impl admin::Inventory for Inventory {
    fn listeners(&self) -> Vec<ListenerView> {
        let now = self.now.load();
        listeners::all(&now.config, &now.listeners, &self.shared, self.readiness.phase())
    }

    fn limits(&self) -> Vec<LimitView> {
        let now = self.now.load();
        limits::all(&now.config, &now.listeners, &self.shared)
    }

    fn certificates(&self) -> Vec<CertificateView> {
        let now = self.now.load();
        let listeners = with_tls(&now.config);
        let at = unix_millis();
        let files = self.certificates.load();
        let all = files.values().flatten();
        all.flat_map(|file| certificates(file, &listeners, at)).collect()
    }

    fn settings(&self) -> Vec<SettingView> {
        let now = self.now.load();
        let made = now.settings.get_or_init(|| settings(&self.started, &now.config));
        made.clone()
    }

    fn databases(&self) -> Vec<DatabaseView> {
        let view = |(name, totals): (Bytes, DatabaseTotals)| DatabaseView {
            database: Escaped(&name).to_string(),
            sessions: totals.sessions,
            bytes_up: totals.traffic.bytes_up,
            bytes_down: totals.traffic.bytes_down,
            transactions: totals.traffic.transactions,
        };
        self.shared.registry.databases().into_iter().map(view).collect()
    }

    fn peer_count(&self) -> usize {
        let now = self.now.load();
        now.config.peers.as_ref().map_or(0, |peers| peers.members.len())
    }

    fn peers(&self) -> BoxFuture<'_, Vec<PeerView>> {
        async {
            let Some(peers) = self.shared.peers.load_full() else {
                return Vec::new();
            };
            peers.look().await.into_iter().map(peer).collect()
        }
        .boxed()
    }
}

/// The names of the listeners that offer TLS.
fn with_tls(config: &Config) -> Vec<String> {
    let listeners = config.listeners.iter().filter(|listener| {
        listener.mode == ListenerMode::Postgres && listener.tls != ListenerTls::Off && config.tls.is_some()
    });
    listeners.map(|listener| listener.name.to_string()).collect()
}

fn certificates<'a>(
    file: &'a CertificateFile,
    listeners: &'a [String],
    now: i64,
) -> impl Iterator<Item = CertificateView> + 'a {
    let listeners = match file.used_for {
        CertificateUse::Clients => listeners.to_vec(),
        CertificateUse::Http => vec!["http".to_owned()],
        _ => Vec::new(),
    };
    file.certificates
        .iter()
        .enumerate()
        .map(move |(index, certificate)| {
            let facts = CertificateFacts::of(certificate);
            let kind = match (file.is_shown, index) {
                (true, 0) => "own",
                (true, _) => "chain",
                (false, _) => "authority",
            };
            let not_after_ms = facts.not_after.saturating_mul(1000);
            CertificateView {
                used_for: file.used_for.as_str().to_owned(),
                kind: kind.to_owned(),
                key: file.key.clone(),
                file: file.file.display().to_string(),
                number: index + 1,
                cluster: file.cluster.as_deref().map(str::to_owned),
                listeners: listeners.clone(),
                subject: facts.subject,
                issuer: facts.issuer,
                names: facts.names,
                not_before_ms: facts.not_before.saturating_mul(1000),
                not_after_ms,
                days_left: not_after_ms.saturating_sub(now).div_euclid(DAY_MS),
                serial: facts.serial,
                fingerprint: facts.fingerprint,
            }
        })
}

/// The keys that count only for a new process have the value from the start of this one.
fn settings(started: &Config, now: &Config) -> Vec<SettingView> {
    let file = now.path.display().to_string();
    let view = |setting: Setting| SettingView {
        key: setting.key,
        value: setting.value,
        default: setting.default,
        source: if setting.is_written { "file" } else { "default" }.to_owned(),
        file: setting.is_written.then(|| file.clone()),
        line: setting.line.and_then(|line| u64::try_from(line).ok()),
        after_restart: None,
    };
    let mut all: Vec<SettingView> = now.settings().into_iter().map(view).collect();
    let waiting = Diff::of(started, now).restart;
    let waits = |key: &str| {
        waiting.iter().any(|waiting| {
            key.strip_prefix(waiting)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        })
    };
    let before: Vec<SettingView> = started.settings().into_iter().map(view).collect();
    for setting in all.iter_mut().filter(|setting| waits(&setting.key)) {
        let was = before.iter().find(|before| before.key == setting.key);
        let next = setting.value.take();
        setting.value = was.and_then(|was| was.value.clone());
        if next != setting.value {
            setting.after_restart = next.or_else(|| Some("not set".to_owned()));
        }
    }
    // What the file does not say any more, and this process still does.
    let gone = before
        .into_iter()
        .filter(|before| waits(&before.key) && !all.iter().any(|setting| setting.key == before.key));
    let gone: Vec<SettingView> = gone
        .map(|before| SettingView {
            line: None,
            after_restart: Some("not set".to_owned()),
            ..before
        })
        .collect();
    all.extend(gone);
    all
}

fn peer(look: PeerLook) -> PeerView {
    let millis = |duration: std::time::Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let state = match &look.answer {
        Ok(_) if look.is_self => "self",
        Ok(_) => "up",
        Err(_) => "down",
    };
    PeerView {
        name: look.name,
        host: look.host,
        port: look.port,
        state: state.to_owned(),
        error: look.answer.as_ref().err().cloned(),
        answer_ms: look.answer.as_ref().ok().map(|(took, _)| millis(*took)),
        seen_ms: look.seen.map(|at| {
            let now = u64::try_from(unix_millis()).unwrap_or_default();
            now.saturating_sub(millis(at.elapsed()))
        }),
        protocol_version: look.answer.ok().map(|(_, version)| version),
    }
}

fn unix_millis() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
