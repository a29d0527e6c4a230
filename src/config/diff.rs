//! What is different between two configurations: a pure comparison, by which a reload knows what to
//! exchange.

use std::collections::BTreeSet;
use std::fmt;

use super::model::{AgentCheck, Cluster, Config, Listener, ReloadUnit, ServerTls, ServiceAccount};
use super::tree::{self, Node};

/// One difference, by its key, as `listeners.NAME`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub key: String,
    pub kind: ChangeKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    Added,
    Removed,
    Changed,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            ChangeKind::Added => " (added)",
            ChangeKind::Removed => " (removed)",
            ChangeKind::Changed => "",
        };
        write!(f, "{}{kind}", self.key)
    }
}

/// What a configuration changes of the one before it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Diff {
    /// In the order of the file's sections.
    pub changes: Vec<Change>,
    /// Keys that are different and only count for a new process.
    pub restart: Vec<&'static str>,
}

/// How much of a cluster is different.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClusterChange {
    Same,
    /// Nothing but what new connections to the servers log in with.
    Credentials,
    /// Source, probes and look-ups start again.
    Whole,
}

impl Diff {
    /// Certificates towards clients are compared by what the file says of them and by the stamps of
    /// their files; what is in `hba_file` and `ident_file` is not looked at.
    pub fn of(old: &Config, new: &Config) -> Self {
        let mut diff = Self::default();
        diff.named("clusters", &old.clusters, &new.clusters, |old, new| old == new);
        diff.section("tls", is_other_section(old, new, "tls", &ReloadUnit::Tls));
        diff.section("auth", old.auth != new.auth);
        diff.named("routes", &old.routes, &new.routes, |old, new| old == new);
        let listeners = |config: &Config| {
            let named = config.listeners.iter();
            named
                .map(|listener| (listener.name.to_string(), listener.clone()))
                .collect()
        };
        diff.named("listeners", &listeners(old), &listeners(new), |old, new| {
            old == new
        });
        diff.section(
            "http",
            old.http != new.http || is_other_section(old, new, "http", &ReloadUnit::Http),
        );
        diff.section("console", old.console != new.console);
        diff.section("limits", old.limits != new.limits);
        let members = |config: &Config| config.peers.as_ref().map(|peers| peers.members.clone());
        diff.section("peers", members(old) != members(new));
        diff.section("log", old.log != new.log);
        diff.section("shutdown", old.shutdown != new.shutdown);
        let secret = |config: &Config| config.peers.as_ref().map(|peers| peers.secret.clone());
        if new.peers.is_some() && secret(old) != secret(new) {
            diff.restart.push("peers.secret_file");
        }
        if old.workers != new.workers {
            diff.restart.push("workers");
        }
        if old.http.agent_check != new.http.agent_check {
            diff.restart.push("http.agent_check");
        }
        if old.control_socket != new.control_socket {
            diff.restart.push("control_socket");
        }
        if old.state_file != new.state_file {
            diff.restart.push("state_file");
        }
        diff
    }

    fn section(&mut self, key: &str, is_different: bool) {
        if is_different {
            self.push(key.to_owned(), ChangeKind::Changed);
        }
    }

    fn named<T>(
        &mut self,
        section: &str,
        old: &indexmap::IndexMap<String, T>,
        new: &indexmap::IndexMap<String, T>,
        is_same: impl Fn(&T, &T) -> bool,
    ) {
        for (name, value) in new {
            match old.get(name) {
                None => self.push(format!("{section}.{name}"), ChangeKind::Added),
                Some(before) if !is_same(before, value) => {
                    self.push(format!("{section}.{name}"), ChangeKind::Changed);
                }
                Some(_) => {}
            }
        }
        let gone: BTreeSet<&String> = old.keys().filter(|name| !new.contains_key(*name)).collect();
        for name in gone {
            self.push(format!("{section}.{name}"), ChangeKind::Removed);
        }
    }

    fn push(&mut self, key: String, kind: ChangeKind) {
        self.changes.push(Change { key, kind });
    }
}

impl Config {
    /// What a process that listens by `old` cannot take over in one step, a sentence each: an
    /// address from HTTP to a listener or back, and the file of a Unix socket with another mode.
    /// The agent check stays where it began, at `agent`.
    pub fn addresses_in_the_way(&self, old: &Self, agent: Option<&AgentCheck>) -> Vec<String> {
        let mut in_the_way = Vec::new();
        for listener in &self.listeners {
            let address = &listener.address;
            let http = old.http.addresses.iter();
            if let Some(other) = http
                .chain(agent.map(|agent| &agent.address))
                .find(|other| address.overlaps(other))
            {
                in_the_way.push(format!(
                    "listener {}: this process uses {other} for HTTP or the agent check: move that first, with a separate \
                     reload (the agent check with a restart)",
                    listener.name
                ));
            }
            let same_file = |other: &&Listener| other.address != *address && other.address.overlaps(address);
            if address.port().is_none() && old.listeners.iter().any(|other| same_file(&other)) {
                in_the_way.push(format!(
                    "listener {}: a new mode of {address} needs a restart, or a reload with another path first",
                    listener.name
                ));
            }
        }
        for address in &self.http.addresses {
            if let Some(other) = old.listeners.iter().find(|other| other.address.overlaps(address)) {
                in_the_way.push(format!(
                    "http: listener {} of this process uses {}: move that first, with a separate reload",
                    other.name, other.address
                ));
            }
        }
        in_the_way
    }

    /// How much of the cluster `name` is different from `old`'s. The verifiers' query belongs to
    /// its look-ups.
    pub fn cluster_change(&self, old: &Self, name: &str) -> ClusterChange {
        let (Some(before), Some(now)) = (old.clusters.get(name), self.clusters.get(name)) else {
            return ClusterChange::Whole;
        };
        if self.asks(old) || !is_same_but_for_credentials(before, now) {
            ClusterChange::Whole
        } else if before == now {
            ClusterChange::Same
        } else {
            ClusterChange::Credentials
        }
    }

    /// Whether servers are asked for other verifiers than by `old`. What is in a users file is none
    /// of the clusters'.
    fn asks(&self, old: &Self) -> bool {
        use super::model::Verifiers::UsersFile;
        match (&old.auth.verifiers, &self.auth.verifiers) {
            (UsersFile { .. }, UsersFile { .. }) => false,
            (before, now) => before != now,
        }
    }
}

/// By what is written and the files it names.
fn is_other_section(old: &Config, new: &Config, key: &str, unit: &ReloadUnit) -> bool {
    let (before, now) = (tree::parse(&old.origin.text), tree::parse(&new.origin.text));
    let section = |tree: &Result<Node, _>| match tree {
        Ok(tree) => tree.entry(key).cloned(),
        Err(_) => None,
    };
    section(&before) != section(&now) || old.files().of(unit) != new.files().of(unit)
}

fn is_same_but_for_credentials(old: &Cluster, new: &Cluster) -> bool {
    let Cluster {
        name,
        source,
        etcd,
        service_account:
            ServiceAccount {
                user,
                password: _,
                dbname,
                pool_size,
                timeout,
            },
        server_tls:
            ServerTls {
                sslmode: _,
                sslnegotiation: _,
                channel_binding: _,
                roots: _,
                client_certificate: _,
                server_name: _,
                require_auth: _,
            },
        server,
        max_connections,
        probe,
        local_member,
        placement,
    } = old;
    let account = &new.service_account;
    (name, source, etcd, server, max_connections)
        == (
            &new.name,
            &new.source,
            &new.etcd,
            &new.server,
            &new.max_connections,
        )
        && (probe, local_member, placement) == (&new.probe, &new.local_member, &new.placement)
        && (user, dbname, pool_size, timeout)
            == (
                &account.user,
                &account.dbname,
                &account.pool_size,
                &account.timeout,
            )
}
