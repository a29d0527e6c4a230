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
mod cluster;
mod fault;
mod files;
mod front;
pub mod model;
mod schema;
mod secret;
mod section;
#[cfg(test)]
mod tests;
mod tree;

use std::cell::RefCell;
use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use indexmap::IndexMap;

pub use fault::{Fault, Faults};
pub use model::*;
pub use secret::Secret;

use section::{Context, Section};

/// A configuration file's size.
const MAX_FILE: usize = 1024 * 1024;

/// Reads and checks a configuration file and every file it names.
///
/// The file is UTF-8 and at most 1 MiB. Relative names in it start from its own directory.
pub fn load(path: &Path) -> Result<Config, Faults> {
    match files::read_text(path, MAX_FILE as u64) {
        Ok(text) => parse(path, &text),
        Err(message) => {
            let file = Arc::from(path);
            Err(Faults::new(vec![Fault {
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
pub fn parse(path: &Path, text: &str) -> Result<Config, Faults> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    parse_at(path, text, i64::try_from(now).unwrap_or(i64::MAX), &|name| {
        std::env::var_os(name)
    })
}

/// [`parse`] with the time (Unix seconds) and the environment as arguments.
fn parse_at(
    path: &Path,
    text: &str,
    now: i64,
    environment: &dyn Fn(&str) -> Option<OsString>,
) -> Result<Config, Faults> {
    let context = Context {
        file: Arc::from(path),
        directory: path.parent().unwrap_or(Path::new("")).to_owned(),
        environment,
        now,
        provider: Arc::new(rustls::crypto::aws_lc_rs::default_provider()),
        faults: RefCell::default(),
        warnings: RefCell::default(),
    };
    let config = convert(&context, path, text);
    let faults = context.faults.into_inner();
    match config {
        Some(mut config) if faults.is_empty() => {
            config.warnings = context.warnings.into_inner();
            config.warnings.extend(oddities(&config));
            Ok(config)
        }
        _ => Err(Faults::new(faults)),
    }
}

/// `None` only where a fault was reported; a fault may have been reported with `Some`, too.
fn convert(context: &Context<'_>, path: &Path, text: &str) -> Option<Config> {
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
    let mut clusters = IndexMap::new();
    let mut names = Vec::new();
    for (name, field) in root
        .required("clusters")
        .map(|field| field.named())
        .unwrap_or_default()
    {
        names.push(name);
        if let Some(cluster) = cluster::cluster(name, &field) {
            clusters.insert(name.to_owned(), Arc::new(cluster));
        }
    }
    let names = (!names.is_empty()).then_some(names);
    let mut places = Vec::new();
    let tls = front::client_tls(&root);
    let auth = front::auth(&root);
    let (routes, route_names) = front::routes(&root, &names);
    let listeners = front::listeners(&root, &route_names, tls.as_ref(), &mut places);
    let http = front::http(&root, &mut places);
    front::check_addresses(&places);
    let limits = front::limits(&root);
    let peers = front::peers(&root);
    let log = front::log(&root);
    let shutdown = front::shutdown(&root);
    let workers = front::workers(&root);
    if let Some(auth) = &auth {
        access::check_cluster_certificates(&root, auth, &clusters);
    }
    Some(Config {
        path: path.to_owned(),
        clusters,
        tls: tls.map(Arc::new),
        auth: auth?,
        routes,
        listeners,
        http: http?,
        limits,
        peers,
        log,
        shutdown,
        workers,
        warnings: Vec::new(),
    })
}

/// What is legal, and probably not meant.
fn oddities(config: &Config) -> Vec<String> {
    let mut odd = Vec::new();
    if config.tls.is_none() {
        odd.push("no certificate is configured: clients connect without TLS".to_owned());
    } else if config
        .listeners
        .iter()
        .all(|listener| listener.tls == ListenerTls::Off)
    {
        odd.push("a certificate is configured, but every listener has `tls: off`".to_owned());
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
    for cluster in config.clusters.values() {
        let Source::Patroni(patroni) = &cluster.source else {
            continue;
        };
        let clear = patroni
            .endpoints
            .iter()
            .any(|endpoint| endpoint.starts_with("http:"));
        if clear && patroni.basic_auth.is_some() {
            let name = &cluster.name;
            odd.push(format!(
                "cluster `{name}`: Patroni's password is sent in clear to `http://` endpoints"
            ));
        }
    }
    odd
}
