//! Warnings about what is legal, but probably not meant.

use super::model::{Config, ListenerMode, ListenerTls, OnLeader, Source};

/// What is legal, and probably not meant.
pub(super) fn of(config: &Config) -> Vec<String> {
    let mut warnings = Vec::new();
    let speaking = config.listeners.iter();
    let offers: Vec<ListenerTls> = speaking
        .filter(|listener| listener.mode == ListenerMode::Postgres)
        .map(|listener| listener.tls)
        .collect();
    match (&config.tls, offers.as_slice()) {
        (None, [_, ..]) => {
            warnings.push("no certificate is configured: clients connect without TLS".to_owned());
        }
        (Some(_), []) => {
            warnings.push("a certificate is configured, but every listener has `mode: tcp`".to_owned());
        }
        (Some(_), offers) if offers.iter().all(|tls| *tls == ListenerTls::Off) => {
            warnings.push("a certificate is configured, but every listener has `tls: off`".to_owned());
        }
        (_, _) => {}
    }
    for name in config.routes.keys() {
        if !config.listeners.iter().any(|listener| *listener.route == **name) {
            warnings.push(format!("no listener uses the route `{name}`"));
        }
    }
    for name in config.clusters.keys() {
        if !config.routes.values().any(|route| *route.cluster == **name) {
            warnings.push(format!("no route uses the cluster `{name}`"));
        }
    }
    for (name, route) in &config.routes {
        if route.read_only_on_leader == OnLeader::Unenforced {
            warnings.push(format!(
                "route `{name}`: read-only sessions of this route may be on the leader; there only the role's privileges \
                 prevent writes"
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
            warnings.push(format!(
                "cluster `{name}`: Patroni's password is sent unencrypted to `http://` endpoints"
            ));
        }
        if let Some(etcd) = &cluster.etcd
            && etcd.login.is_some()
            && in_clear(&etcd.endpoints)
        {
            warnings.push(format!(
                "cluster `{name}`: etcd's password is sent unencrypted to `http://` endpoints"
            ));
        }
    }
    warnings
}
