//! What is legal, and probably not meant.

use super::model::{Config, ListenerMode, ListenerTls, OnLeader, Source};

/// What is legal, and probably not meant.
pub(super) fn of(config: &Config) -> Vec<String> {
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
