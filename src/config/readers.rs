//! From the tree to the model: one reader for each section of the file.

mod addresses;
mod admission;
mod auth;
mod client_tls;
mod clusters;
mod console;
mod endpoints;
mod etcd;
mod hold;
mod http;
mod listeners;
mod names;
mod on_unfit;
mod patroni;
mod peers;
mod placement;
mod pool;
mod process;
mod route;
mod routes;
mod server_credentials;
mod server_tls;
mod sockets;
mod targets;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use indexmap::IndexMap;

use super::fields::{Context, Section};
use super::files::MAX_CONFIG;
use super::model::{
    Auth, ClientTls, Config, Console, Files, Http, HttpAccess, Limits, Listener, Log, Origin, Peers,
    ReloadUnit, Route, Shutdown,
};
use super::reloaded::ReloadedUnit;
use super::schema;
use super::tree::{self, Node};

/// What was read; `None` where there was an error, though there may have been one where there is a
/// value, too.
pub(super) struct ConfigDraft {
    clusters: Vec<clusters::ClusterDraft>,
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

impl ConfigDraft {
    pub(super) fn finish(self, path: &Path, text: &str) -> Option<Config> {
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

    pub(super) fn units(self) -> Vec<(ReloadUnit, ReloadedUnit)> {
        let mut units = Vec::new();
        let tls = self.tls.map(|tls| ReloadedUnit::Tls(Arc::new(tls)));
        units.extend(tls.map(|tls| (ReloadUnit::Tls, tls)));
        if let Some(http) = self.http {
            units.extend(http.tls.map(|tls| (ReloadUnit::Http, ReloadedUnit::Http(tls))));
            units.extend(
                http.token
                    .map(|token| (ReloadUnit::Token, ReloadedUnit::Token(token))),
            );
        }
        units.extend(self.auth.map(|auth| (ReloadUnit::Auth, ReloadedUnit::Auth(auth))));
        for cluster in self.clusters {
            let name = cluster.name;
            let account = cluster
                .service_account
                .map(|account| ReloadedUnit::Password(account.password));
            units.extend(account.map(|account| (ReloadUnit::ServiceAccount(Arc::clone(&name)), account)));
            let tls = cluster.server_tls.map(ReloadedUnit::ServerTls);
            units.extend(tls.map(|tls| (ReloadUnit::ServerTls(name), tls)));
        }
        units
    }
}

/// `None` where the text is not YAML, which was reported.
fn tree_of(context: &Context<'_>, text: &str) -> Option<Node> {
    match tree::parse(text) {
        Ok(tree) => Some(tree),
        Err(tree::NotYaml { line, message }) => {
            let line_text = line
                .and_then(|line| text.lines().nth(line - 1))
                .unwrap_or_default();
            let hint = not_yaml_hint(line_text, &message);
            context.error("", line, message, hint.map(str::to_owned));
            None
        }
    }
}

fn not_yaml_hint(line: &str, message: &str) -> Option<&'static str> {
    let indent = line.len() - line.trim_start().len();
    if message.contains("tabs") || line[..indent].contains('\t') {
        Some("use spaces, not tabs")
    } else if line.contains("*:") || line.contains("]:") {
        Some("`*` and `[` have a meaning in YAML; put the address in quotes")
    } else {
        None
    }
}

/// What `http` says of the way to reach the router; nothing else in the file is looked at. `None`
/// after an error in it, which was reported.
pub(super) fn http_access(context: &Context<'_>, text: &str) -> Option<HttpAccess> {
    let tree = tree_of(context, text)?;
    let root = Section::root(context, &tree, &schema::ROOT);
    let access = http::access(&root);
    // Opening the maps reported keys that do not matter here.
    let is_written = root.has("http");
    context.errors.borrow_mut().retain(|(_, error)| {
        let leads_there = error.path == "http" || error.path.starts_with("http.");
        access.is_none() && (leads_there || !is_written)
    });
    access
}

/// `None` where the text cannot be read at all, which was reported.
pub(super) fn read(context: &Context<'_>, text: &str) -> Option<ConfigDraft> {
    if text.len() > MAX_CONFIG {
        context.error(
            "",
            None,
            format!("is larger than {} KiB", MAX_CONFIG / 1024),
            None,
        );
        return None;
    }
    let tree = tree_of(context, text)?;
    let root = Section::root(context, &tree, &schema::ROOT);
    let mut clusters = Vec::new();
    let mut names = Vec::new();
    for (name, field) in root
        .required("clusters")
        .map(|field| field.named())
        .unwrap_or_default()
    {
        names.push(name);
        clusters.push(clusters::cluster(name, &field));
    }
    let names = (!names.is_empty()).then_some(names);
    let mut places = Vec::new();
    let tls = context.within(ReloadUnit::Tls, || client_tls::client_tls(&root));
    let auth = context.within(ReloadUnit::Auth, || auth::auth(&root));
    let routes = routes::routes(&root, &names, &clusters, auth.as_ref());
    let listeners = listeners::listeners(&root, &routes, tls.as_ref(), &mut places);
    let http = context.within(ReloadUnit::Http, || http::http(&root, &mut places));
    sockets::check_addresses(&places);
    if let Some(auth) = &auth {
        context.within(ReloadUnit::Auth, || {
            server_credentials::check_cluster_certificates(&root, auth, &clusters);
        });
    }
    Some(ConfigDraft {
        clusters,
        tls,
        auth,
        routes: routes.models,
        listeners,
        http,
        console: console::console(&root, &names),
        limits: process::limits(&root),
        peers: peers::peers(&root, &places),
        log: process::log(&root),
        shutdown: process::shutdown(&root),
        workers: process::workers(&root),
        control_socket: process::control_socket(&root),
        state_file: process::state_file(&root),
    })
}
