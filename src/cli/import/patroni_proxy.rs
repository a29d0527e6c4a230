//! `patroni_proxy.yaml`: clusters with ports. Keys it does not know it ignores, so they are named
//! here.

use reqwest::Url;

use super::Refusal;
use super::notes::Notes;
use super::write::{
    Cluster, ImportOutcome, Listener, Names, Role, Route, Settings, Source, is_read_write, scalar, size,
};
use crate::config::ListenerTls;
use crate::config::tree::{self, MappingEntry, Node, Value};

/// The most clusters, and ports of all clusters: what a configuration takes of listeners.
const MAX_PORTS: usize = 256;
/// Where it answers HTTP by default.
const DEFAULT_HTTP: &str = "127.0.0.1:8009";
/// The longest time between two polls that the configuration takes, in seconds.
const LONGEST_POLL: i128 = 300;

pub(super) fn convert(text: &str, notes: &mut Notes) -> Result<ImportOutcome, Refusal> {
    let root = tree::parse(text).map_err(|error| Refusal {
        line: error.line,
        message: format!("is not YAML: {}", error.message),
    })?;
    let mut outcome = ImportOutcome::default();
    let (mut poll, mut http, mut clusters) = (None, DEFAULT_HTTP, Vec::new());
    for entry in entries(&root) {
        match entry.key.as_str() {
            "cluster_update_interval" => poll = interval(entry, notes),
            "listen_address" => http = text_of(entry, notes).unwrap_or_default(),
            "clusters" => clusters = entries(&entry.node).iter().collect(),
            _ => unknown(entry, "", notes),
        }
    }
    if !http.is_empty() {
        outcome.http.push(http.to_owned());
    }
    let mut names = Taken {
        clusters: Names::default(),
        routes: Names::default(),
        several: clusters.len() > 1,
    };
    for entry in clusters {
        cluster(entry, poll, &mut names, &mut outcome, notes)?;
    }
    if outcome.routes.is_empty() {
        return Err(Refusal {
            line: None,
            message: "has no cluster with `hosts` and `ports`".to_owned(),
        });
    }
    Ok(outcome)
}

/// Names given so far. Ports are named within their cluster; routes and listeners are not.
struct Taken {
    clusters: Names,
    routes: Names,
    several: bool,
}

fn entries(node: &Node) -> &[MappingEntry] {
    match &node.value {
        Value::Map(entries) => entries,
        _ => &[],
    }
}

fn items(node: &Node) -> &[Node] {
    match &node.value {
        Value::List(nodes) => nodes,
        _ => &[],
    }
}

fn text_of<'a>(entry: &'a MappingEntry, notes: &mut Notes) -> Option<&'a str> {
    match &entry.node.value {
        Value::Text(text) if !text.trim().is_empty() => Some(text),
        _ => {
            notes.lost(entry.line, &entry.key, "is not a text");
            None
        }
    }
}

fn unknown(entry: &MappingEntry, place: &str, notes: &mut Notes) {
    let what = format!("{place}{}", entry.key);
    notes.lost(
        entry.line,
        &what,
        "is not known; patroni_proxy ignored it as well",
    );
}

/// Seconds.
fn interval(entry: &MappingEntry, notes: &mut Notes) -> Option<i128> {
    match entry.node.value {
        Value::Integer(seconds) if (1..=LONGEST_POLL).contains(&seconds) => Some(seconds),
        Value::Integer(seconds) if seconds > LONGEST_POLL => {
            notes.differs(entry.line, &entry.key, "is 5m here, the longest allowed");
            Some(LONGEST_POLL)
        }
        _ => {
            notes.lost(
                entry.line,
                &entry.key,
                "is not a time; `poll_interval` is 1s by default",
            );
            None
        }
    }
}

fn cluster(
    entry: &MappingEntry,
    poll: Option<i128>,
    names: &mut Taken,
    outcome: &mut ImportOutcome,
    notes: &mut Notes,
) -> Result<(), Refusal> {
    let name = names.clusters.take(&entry.key);
    let (mut endpoints, mut tls, mut ports) = (Endpoints::default(), None, None);
    for entry in entries(&entry.node) {
        match entry.key.as_str() {
            "hosts" => endpoints = hosts(entry, notes),
            "tls" => tls = Some(entry),
            "ports" => ports = Some(entry),
            _ => unknown(entry, &format!("clusters.{name}."), notes),
        }
    }
    let ports: Vec<&MappingEntry> = ports
        .map(|ports| entries(&ports.node).iter().collect())
        .unwrap_or_default();
    if endpoints.urls.is_empty() || ports.is_empty() {
        notes.lost(
            entry.line,
            &format!("clusters.{}", entry.key),
            "has no `hosts` or no `ports`",
        );
        return Ok(());
    }
    let mut settings = Settings::new();
    if let Some(seconds) = poll {
        settings.push((
            "poll_interval",
            super::write::time(std::time::Duration::from_secs(
                u64::try_from(seconds).unwrap_or(1),
            )),
        ));
    }
    if let Some(username) = endpoints.username {
        settings.push(("username", scalar(&username)));
        settings.push(("password_file", "TODO-patroni.password".to_owned()));
    }
    if let Some(entry) = tls {
        let is_https = endpoints.urls.iter().any(|url| url.starts_with("https:"));
        settings.extend(client_tls(entry, is_https, notes));
    }
    for entry in ports {
        if outcome.listeners.len() == MAX_PORTS {
            return Err(Refusal {
                line: entry.line,
                message: format!("there are more than {MAX_PORTS} ports"),
            });
        }
        port(entry, &name, names, outcome, notes);
    }
    outcome.clusters.push(Cluster {
        name,
        source: Source::Patroni {
            endpoints: endpoints.urls,
            settings,
        },
        server_tls: Settings::new(),
        server: Settings::new(),
        probe: Settings::new(),
        weights: Vec::new(),
    });
    Ok(())
}

/// Base URLs, and the user that stood in them.
#[derive(Default)]
struct Endpoints {
    urls: Vec<String>,
    username: Option<String>,
}

fn hosts(entry: &MappingEntry, notes: &mut Notes) -> Endpoints {
    let mut endpoints = Endpoints::default();
    for node in items(&entry.node) {
        let text = match &node.value {
            Value::Text(text) => text.trim(),
            _ => "",
        };
        let url = Url::parse(text).ok();
        let url = url.filter(|url| matches!(url.scheme(), "http" | "https") && url.host().is_some());
        let Some(mut url) = url else {
            notes.lost(node.line, "hosts", "is not an `http://` or `https://` URL");
            continue;
        };
        if !url.username().is_empty() {
            notes.differs(
                node.line,
                "hosts",
                "its user became `username`; the password goes into the file of `password_file`",
            );
            endpoints.username.get_or_insert(url.username().to_owned());
        }
        if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
            notes.lost(
                node.line,
                "hosts",
                "the path was left out: only the host and the port count",
            );
        }
        // Neither fails for http and https.
        let _ = (url.set_username(""), url.set_password(None));
        url.set_path("");
        url.set_query(None);
        url.set_fragment(None);
        let url = url.as_str().trim_end_matches('/').to_owned();
        if !endpoints.urls.contains(&url) {
            endpoints.urls.push(url);
        }
    }
    endpoints
}

fn client_tls(entry: &MappingEntry, is_https: bool, notes: &mut Notes) -> Settings {
    let mut settings = Settings::new();
    let (mut certificate, mut key) = (None, None);
    for entry in entries(&entry.node) {
        match entry.key.as_str() {
            "ca_cert" => settings.extend(text_of(entry, notes).map(|file| ("ca_file", scalar(file)))),
            "client_cert" => certificate = text_of(entry, notes),
            "client_key" => key = text_of(entry, notes),
            "skip_verify" => {
                if !matches!(entry.node.value, Value::Bool(false) | Value::Null) {
                    notes.lost(
                        entry.line,
                        "tls.skip_verify",
                        "a server that is not verified could name any leader: give its authority as `ca_file`",
                    );
                }
            }
            _ => unknown(entry, "tls.", notes),
        }
    }
    match (certificate, key) {
        (Some(certificate), Some(key)) => {
            settings.push(("cert_file", scalar(certificate)));
            settings.push(("key_file", scalar(key)));
        }
        (None, None) => {}
        _ => notes.lost(
            entry.line,
            "tls",
            "a client certificate needs both `client_cert` and `client_key`",
        ),
    }
    if settings.is_empty() {
        return settings;
    }
    if !is_https {
        notes.lost(entry.line, "tls", "has no effect: every host is `http://`");
        return Settings::new();
    }
    notes.differs(
        entry.line,
        "tls",
        "counts from now on: patroni_proxy read these keys and did not use them",
    );
    settings
}

fn port(
    entry: &MappingEntry,
    cluster: &str,
    names: &mut Taken,
    outcome: &mut ImportOutcome,
    notes: &mut Notes,
) {
    let what = |key: &str| format!("ports.{}.{key}", entry.key);
    let (mut address, mut roles, mut max_lag) = (None, Vec::new(), None);
    for item in entries(&entry.node) {
        match item.key.as_str() {
            "listen" => address = text_of(item, notes),
            "roles" => roles = self::roles(item, &what("roles"), notes),
            "host_port" => notes.differs(
                item.line,
                &what("host_port"),
                "the port is the one each member announces to Patroni (`connect_address`); see that it is this one",
            ),
            "max_lag_in_bytes" => {
                max_lag = match item.node.value {
                    Value::Integer(bytes) if bytes >= 0 => u64::try_from(bytes).ok(),
                    _ => None,
                };
                if max_lag.is_none() && !matches!(item.node.value, Value::Null) {
                    notes.lost(item.line, &what("max_lag_in_bytes"), "is not a number of bytes");
                }
            }
            _ => unknown(item, &what(""), notes),
        }
    }
    let (Some(address), false) = (address, roles.is_empty()) else {
        notes.lost(
            entry.line,
            &format!("ports.{}", entry.key),
            "has no `listen` or no `roles`",
        );
        return;
    };
    let wanted = if names.several {
        format!("{cluster}-{}", entry.key)
    } else {
        entry.key.clone()
    };
    let name = names.routes.take(&wanted);
    let targets = vec![roles];
    let mut settings = Settings::new();
    let max_lag = max_lag.filter(|_| !is_read_write(&targets));
    // Its sessions end when their server no longer fits.
    let on_unfit = match max_lag {
        Some(bytes) => {
            settings.push(("max_lag", format!("{{bytes: {}}}", size(bytes))));
            "{lag: close, down: close}"
        }
        None => "{down: close}",
    };
    settings.push(("on_unfit", on_unfit.to_owned()));
    outcome.routes.push(Route {
        name: name.clone(),
        cluster: cluster.to_owned(),
        targets,
        settings,
        pool: None,
    });
    outcome.listeners.push(Listener {
        name: name.clone(),
        address: address.to_owned(),
        route: name,
        tls: ListenerTls::Optional,
        settings: Settings::new(),
        allow: Vec::new(),
        deny: Vec::new(),
        certificate_demanded: None,
    });
}

/// One tier: it knows no order among roles.
fn roles(entry: &MappingEntry, what: &str, notes: &mut Notes) -> Vec<Role> {
    let mut roles = Vec::new();
    for node in items(&entry.node) {
        let word = match &node.value {
            Value::Text(word) => word.as_str(),
            _ => "",
        };
        let role = match word.to_ascii_lowercase().as_str() {
            "leader" => Role::Leader,
            "sync" => Role::Sync,
            "async" => Role::Async,
            "any" => Role::Any,
            _ => {
                notes.lost(node.line, what, "is none of leader, sync, async and any");
                continue;
            }
        };
        if !roles.contains(&role) {
            roles.push(role);
        }
    }
    // Whatever stands beside it.
    if roles.contains(&Role::Any) {
        return vec![Role::Any];
    }
    roles
}
