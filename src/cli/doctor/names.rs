//! Every host name of the configuration has addresses, and how long the name service takes.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;

use crate::cluster::examine::Finding;
use crate::config::{Config, Source};
use crate::names;

const LIMIT: Duration = Duration::from_secs(5);
/// A look-up that takes longer delays logins.
const SLOW: Duration = Duration::from_secs(1);

pub(super) async fn findings(config: &Config) -> Vec<Finding> {
    let asked = hosts(config).into_iter().map(|(host, key)| look_up(host, key));
    join_all(asked).await
}

/// Each name once, with the first key that has it.
fn hosts(config: &Config) -> BTreeMap<String, String> {
    let mut hosts = BTreeMap::new();
    let mut add = |host: Option<String>, key: String| {
        let name = host.filter(|host| host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_err());
        if let Some(name) = name {
            hosts.entry(name).or_insert(key);
        }
    };
    let of_url = |url: &String| Some(reqwest::Url::parse(url).ok()?.host_str()?.to_owned());
    for (name, cluster) in &config.clusters {
        match &cluster.source {
            Source::Patroni(patroni) => {
                for endpoint in &patroni.endpoints {
                    add(of_url(endpoint), format!("clusters.{name}.patroni"));
                }
            }
            Source::Servers(servers) => {
                for server in servers {
                    add(Some(server.host.clone()), format!("clusters.{name}.servers"));
                }
            }
        }
        for endpoint in cluster.etcd.iter().flat_map(|etcd| &etcd.endpoints) {
            add(of_url(endpoint), format!("clusters.{name}.etcd"));
        }
    }
    for peer in config.peers.iter().flat_map(|peers| &peers.members) {
        add(Some(peer.host.clone()), "peers".to_owned());
    }
    hosts
}

async fn look_up(host: String, key: String) -> Finding {
    let what = format!("name {host} ({key})");
    let begun = Instant::now();
    let found = names::addresses(&host, begun + LIMIT).await;
    let took = begun.elapsed();
    match found {
        Ok(addresses) => {
            let shown: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            let found = format!("{}, in {} ms", shown.join(", "), took.as_millis());
            if took > SLOW {
                let hint =
                    "look at the name servers in /etc/resolv.conf, or write addresses in the configuration";
                return Finding::remark(what, found, hint);
            }
            Finding::good(what, found)
        }
        Err(error) => Finding::bad(
            what,
            error,
            "correct the name, or add it to the name service or to /etc/hosts (`getent hosts NAME` tries it)",
        ),
    }
}
