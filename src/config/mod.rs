//! Configuration: a YAML file becomes a validated model, or a list of every fault in it.
//!
//! Guarantees: unknown keys are refused; a key whose feature does not work yet is refused; everything that is
//! accepted has an effect; all faults are reported together, each with its path and line. What would fail in
//! service (an unreadable certificate, a key that does not match, a world-readable secret) is a fault here.
//! Text of any content, size or depth costs bounded time and memory.
//!
//! Refuses: to know anything of the other rooms, and to take a secret from the command line.
//!
//! The text becomes a tree of values with lines ([`tree`]), compared with the table of all keys ([`schema`]) and
//! converted by readers that go on after a fault ([`section`]) into the [`model`].

mod access;
mod address;
mod administration;
mod authentication;
mod cluster;
mod command;
mod control;
pub mod diff;
mod entry;
mod error;
mod etcd;
mod files;
mod front;
mod keys;
mod listener;
pub mod model;
mod placement;
mod reload_unit;
mod replace;
mod require_auth;
mod route;
mod schema;
mod secret;
mod section;
mod spelling;
#[cfg(test)]
mod tests;
pub(crate) mod tree;
mod unfit;
mod units;
mod waiting;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use indexmap::IndexMap;

pub use entry::{Addresses, AdmissionRules, Network, ProxyProtocol};
pub use error::{ConfigError, ConfigErrors};
pub use etcd::Etcd;
pub use files::read_secret;
pub(crate) use files::{Access as FileAccess, without_mark};
pub use keys::Leaf;
pub use model::*;
pub use placement::{MOST_WEIGHT, MemberPlacement, Placement};
pub use reload_unit::{Files, ReloadUnit, ReloadedUnit, ReloadedUnits, Stamp, Stamps};
pub use replace::{beside, replace_file};
pub use require_auth::{AuthMethod, RequireAuth, Ruling};
pub use route::{Access, Balance, OnLeader, TargetRole, Tier};
pub use secret::Secret;
pub use unfit::{Limit, MaxLag, OnUnfit, Unfit};
pub use waiting::{ClientAddressOptions, Queue};

use section::{Context, Section};

/// A configuration file's size.
const MAX_FILE: usize = 1024 * 1024;

/// Reads and checks a configuration file and every file it names.
///
/// The file is UTF-8 and at most 1 MiB. Relative names in it start from its own directory.
pub fn load(path: &Path) -> Result<Config, ConfigErrors> {
    match files::read_text(path, MAX_FILE as u64) {
        Ok(text) => parse(path, &text),
        Err(message) => {
            let file = Arc::from(path);
            Err(ConfigErrors::new(vec![ConfigError {
                file,
                path: String::new(),
                line: None,
                message,
                hint: None,
            }]))
        }
    }
}

/// As [`load`], for text that was read already. `path` is shown in faults, and its directory is where relative
/// file names start.
pub fn parse(path: &Path, text: &str) -> Result<Config, ConfigErrors> {
    parse_at(path, text, unix_now(), &|name| std::env::var_os(name))
}

/// Reads again the files a configuration names, by the text it was made of: what is in them may have changed, what is
/// asked for has not. Each part of it is good or not by itself. Blocks for as long as files and passphrase commands do.
pub fn reread(config: &Config) -> ReloadedUnits {
    reread_at(config, unix_now(), &|name| std::env::var_os(name))
}

/// Has the text of the configuration file itself changed since it was read? `Err` is a sentence: it cannot be read.
pub fn is_edited(config: &Config) -> Result<bool, String> {
    files::read_text(&config.path, MAX_FILE as u64).map(|text| *text != *config.origin.text)
}

/// The configuration's JSON Schema, draft 2020-12. What it accepts may still have faults that only [`load`] finds; what it
/// refuses has one.
pub fn json_schema() -> serde_json::Value {
    schema::json::schema()
}

/// Unix seconds.
fn unix_now() -> i64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    i64::try_from(now).unwrap_or(i64::MAX)
}

fn context<'a>(path: &Path, now: i64, environment: &'a dyn Fn(&str) -> Option<OsString>) -> Context<'a> {
    Context {
        file: Arc::from(path),
        directory: path.parent().unwrap_or(Path::new("")).to_owned(),
        environment,
        now,
        provider: crate::tls::server_provider(),
        part: RefCell::new(ReloadUnit::Rest),
        faults: RefCell::default(),
        files: RefCell::default(),
        warnings: RefCell::default(),
    }
}

/// [`parse`] with the time (Unix seconds) and the environment as arguments.
fn parse_at(
    path: &Path,
    text: &str,
    now: i64,
    environment: &dyn Fn(&str) -> Option<OsString>,
) -> Result<Config, ConfigErrors> {
    let context = context(path, now, environment);
    let config = convert(&context, text).and_then(|draft| draft.finish(path, text));
    let faults = context.faults.into_inner();
    match config {
        Some(mut config) if faults.is_empty() => {
            config.warnings = context.warnings.into_inner();
            config.warnings.extend(warnings(&config));
            config.origin.files = context.files.into_inner();
            Ok(config)
        }
        _ => Err(ConfigErrors::new(
            faults.into_iter().map(|(_, fault)| fault).collect(),
        )),
    }
}

fn reread_at(config: &Config, now: i64, environment: &dyn Fn(&str) -> Option<OsString>) -> ReloadedUnits {
    let context = context(&config.path, now, environment);
    let draft = convert(&context, &config.origin.text);
    let mut faults: BTreeMap<ReloadUnit, Vec<ConfigError>> = BTreeMap::new();
    for (part, fault) in context.faults.into_inner() {
        faults.entry(part).or_default().push(fault);
    }
    let mut parts: BTreeMap<ReloadUnit, Result<ReloadedUnit, ConfigErrors>> = draft
        .into_iter()
        .flat_map(Draft::materials)
        .filter(|(part, _)| !faults.contains_key(part))
        .map(|(part, material)| (part, Ok(material)))
        .collect();
    parts.extend(
        faults
            .into_iter()
            .map(|(part, faults)| (part, Err(ConfigErrors::new(faults)))),
    );
    ReloadedUnits {
        parts,
        files: context.files.into_inner(),
        warnings: context.warnings.into_inner(),
    }
}

/// What was read; `None` where there was a fault, though there may have been one where there is a value, too.
struct Draft {
    clusters: Vec<cluster::Draft>,
    tls: Option<ClientTls>,
    auth: Option<Auth>,
    routes: IndexMap<String, Arc<Route>>,
    listeners: Vec<Listener>,
    http: Option<Http>,
    console: Option<Console>,
    limits: Limits,
    peers: Option<Peers>,
    log: Log,
    shutdown: Shutdown,
    workers: usize,
    control_socket: Option<PathBuf>,
    state_file: Option<PathBuf>,
}

impl Draft {
    fn finish(self, path: &Path, text: &str) -> Option<Config> {
        let clusters = self
            .clusters
            .into_iter()
            .map(|cluster| {
                let cluster = cluster.finish()?;
                Some((cluster.name.to_string(), Arc::new(cluster)))
            })
            .collect::<Option<_>>()?;
        Some(Config {
            path: path.to_owned(),
            clusters,
            tls: self.tls.map(Arc::new),
            auth: self.auth?,
            routes: self.routes,
            listeners: self.listeners,
            http: self.http?,
            console: self.console,
            limits: self.limits,
            peers: self.peers,
            log: self.log,
            shutdown: self.shutdown,
            workers: self.workers,
            control_socket: self.control_socket,
            state_file: self.state_file,
            warnings: Vec::new(),
            origin: Origin {
                text: Arc::from(text),
                files: Files::default(),
            },
        })
    }

    fn materials(self) -> Vec<(ReloadUnit, ReloadedUnit)> {
        let mut materials = Vec::new();
        let tls = self.tls.map(|tls| ReloadedUnit::Tls(Arc::new(tls)));
        materials.extend(tls.map(|tls| (ReloadUnit::Tls, tls)));
        if let Some(http) = self.http {
            materials.extend(http.tls.map(|tls| (ReloadUnit::Http, ReloadedUnit::Http(tls))));
            materials.extend(
                http.token
                    .map(|token| (ReloadUnit::Token, ReloadedUnit::Token(token))),
            );
        }
        materials.extend(self.auth.map(|auth| (ReloadUnit::Auth, ReloadedUnit::Auth(auth))));
        for cluster in self.clusters {
            let name = cluster.name;
            let account = cluster
                .service_account
                .map(|account| ReloadedUnit::Password(account.password));
            materials.extend(account.map(|account| (ReloadUnit::ServiceAccount(Arc::clone(&name)), account)));
            let tls = cluster.server_tls.map(ReloadedUnit::ServerTls);
            materials.extend(tls.map(|tls| (ReloadUnit::ServerTls(name), tls)));
        }
        materials
    }
}

/// `None` where the text cannot be read at all, which was reported.
fn convert(context: &Context<'_>, text: &str) -> Option<Draft> {
    if text.len() > MAX_FILE {
        context.fault("", None, format!("is larger than {} KiB", MAX_FILE / 1024), None);
        return None;
    }
    let tree = match tree::parse(text) {
        Ok(tree) => tree,
        Err(tree::NotYaml { line, message }) => {
            let text = line
                .and_then(|line| text.lines().nth(line - 1))
                .unwrap_or_default();
            let bare = text.contains("*:") || text.contains("]:");
            let hint =
                bare.then(|| "`*` and `[` mean something in YAML; put the address in quotes".to_owned());
            context.fault("", line, message, hint);
            return None;
        }
    };
    let root = Section::root(context, &tree, &schema::ROOT);
    let mut clusters = Vec::new();
    let mut names = Vec::new();
    for (name, field) in root
        .required("clusters")
        .map(|field| field.named())
        .unwrap_or_default()
    {
        names.push(name);
        clusters.push(cluster::cluster(name, &field));
    }
    let names = (!names.is_empty()).then_some(names);
    let mut places = Vec::new();
    let tls = context.within(ReloadUnit::Tls, || front::client_tls(&root));
    let auth = context.within(ReloadUnit::Auth, || authentication::auth(&root));
    let routes = front::routes(&root, &names, &clusters, auth.as_ref());
    let listeners = listener::listeners(&root, &routes, tls.as_ref(), &mut places);
    let http = context.within(ReloadUnit::Http, || front::http(&root, &mut places));
    listener::check_addresses(&places);
    if let Some(auth) = &auth {
        context.within(ReloadUnit::Auth, || {
            access::check_cluster_certificates(&root, auth, &clusters);
        });
    }
    Some(Draft {
        clusters,
        tls,
        auth,
        routes: routes.models,
        listeners,
        http,
        console: access::console(&root, &names),
        limits: front::limits(&root),
        peers: front::peers(&root, &places),
        log: front::log(&root),
        shutdown: front::shutdown(&root),
        workers: front::workers(&root),
        control_socket: control::socket(&root),
        state_file: administration::state_file(&root),
    })
}

/// What is legal, and probably not meant.
fn warnings(config: &Config) -> Vec<String> {
    let mut odd = Vec::new();
    let speaking = config.listeners.iter();
    let offers: Vec<ListenerTls> = speaking
        .filter(|listener| listener.mode == ListenerMode::Postgres)
        .map(|listener| listener.tls)
        .collect();
    match (&config.tls, offers.as_slice()) {
        (None, [_, ..]) => odd.push("no certificate is configured: clients connect without TLS".to_owned()),
        (Some(_), []) => {
            odd.push("a certificate is configured, but every listener has `mode: tcp`".to_owned());
        }
        (Some(_), offers) if offers.iter().all(|tls| *tls == ListenerTls::Off) => {
            odd.push("a certificate is configured, but every listener has `tls: off`".to_owned());
        }
        (_, _) => {}
    }
    for name in config.routes.keys() {
        if !config.listeners.iter().any(|listener| *listener.route == **name) {
            odd.push(format!("no listener uses the route `{name}`"));
        }
    }
    for name in config.clusters.keys() {
        if !config.routes.values().any(|route| *route.cluster == **name) {
            odd.push(format!("no route uses the cluster `{name}`"));
        }
    }
    for (name, route) in &config.routes {
        if route.read_only_on_leader == OnLeader::Unenforced {
            odd.push(format!(
                "route `{name}`: nothing but their privileges keeps its sessions on the leader from writing"
            ));
        }
    }
    for cluster in config.clusters.values() {
        let name = &cluster.name;
        let in_clear = |endpoints: &[String]| endpoints.iter().any(|endpoint| endpoint.starts_with("http:"));
        if let Source::Patroni(patroni) = &cluster.source
            && patroni.basic_auth.is_some()
            && in_clear(&patroni.endpoints)
        {
            odd.push(format!(
                "cluster `{name}`: Patroni's password is sent in clear to `http://` endpoints"
            ));
        }
        if let Some(etcd) = &cluster.etcd
            && etcd.login.is_some()
            && in_clear(&etcd.endpoints)
        {
            odd.push(format!(
                "cluster `{name}`: etcd's password is sent in clear to `http://` endpoints"
            ));
        }
    }
    odd
}
