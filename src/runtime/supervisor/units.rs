//! The units of the configuration that files belong to, read again and made ready for service.

use std::collections::BTreeMap;
use std::sync::Arc;

use rustls::ServerConfig;

use crate::backend::TlsClient;
use crate::config::{
    self, CertificateFile, Config, Files, KeyPair, Leaf, ReloadUnit, ReloadedUnit, Secret, Stamp, Stamps,
};
use crate::frontend::auth_policy::{AuthPolicy, AuthPolicyError, PolicyContext};
use crate::frontend::tls::Acceptor;
use crate::session::Shared;

/// One unit, ready for service.
pub(super) enum ReadyUnit {
    Tls(Acceptor),
    Http(Arc<ServerConfig>),
    Token(Secret),
    AuthPolicy(Arc<AuthPolicy>),
    ServerTls(Arc<TlsClient>),
    Password(Option<Secret>),
}

pub(super) enum UnitOutcome {
    /// The files are valid and in service.
    Same,
    New(ReadyUnit, Vec<Leaf>, Vec<CertificateFile>),
    Broken(Vec<String>),
}

/// The result of reading all units again.
pub(super) struct Reread {
    pub(super) outcomes: BTreeMap<ReloadUnit, UnitOutcome>,
    pub(super) files: Files,
    pub(super) warnings: Vec<String>,
}

/// The certificates of a configuration.
pub(super) fn leaves(config: &Config) -> BTreeMap<ReloadUnit, Vec<Leaf>> {
    let mut leaves = BTreeMap::new();
    if let Some(tls) = &config.tls {
        leaves.insert(ReloadUnit::Tls, of_clients(tls));
    }
    if let Some(tls) = &config.http.tls {
        leaves.insert(ReloadUnit::Http, vec![tls.leaf.clone()]);
    }
    for cluster in config.clusters.values() {
        let own = of_servers(cluster.server_tls.client_certificate.as_ref());
        leaves.insert(ReloadUnit::ServerTls(Arc::clone(&cluster.name)), own);
    }
    leaves
}

fn of_clients(tls: &config::ClientTls) -> Vec<Leaf> {
    tls.certificates.iter().map(|served| served.pair.leaf()).collect()
}

fn of_servers(pair: Option<&Arc<KeyPair>>) -> Vec<Leaf> {
    pair.map(|pair| pair.leaf()).into_iter().collect()
}

/// Reads all units again. It blocks: it reads files, runs passphrase commands and derives verifiers
/// of plain passwords.
pub(super) fn read_units(config: &Config, shared: &Shared, applied: &BTreeMap<ReloadUnit, Stamps>) -> Reread {
    let reread = config::reread(config);
    let mut files = reread.files;
    let own = files.of(&ReloadUnit::Auth).cloned().unwrap_or_default();
    // Only the loaded rules know the files that they include.
    let watched = shared
        .auth_policy
        .load()
        .watched
        .keys()
        .map(|path| (path.clone(), Stamp::of(path)))
        .collect();
    files.add(ReloadUnit::Auth, watched);
    let mut outcomes = BTreeMap::new();
    for (unit, unit_files) in reread.units {
        let outcome = match unit_files {
            Err(faults) => UnitOutcome::Broken(faults.iter().map(ToString::to_string).collect()),
            Ok(_) if files.of(&unit) == applied.get(&unit) => UnitOutcome::Same,
            Ok(reloaded) => {
                let certificates = config.certificates_of(&unit, &reloaded);
                match prepare(reloaded, PolicyContext::of(config), shared) {
                    Ok((ready, leaves)) => {
                        if let ReadyUnit::AuthPolicy(access) = &ready {
                            files.replace(ReloadUnit::Auth, own.clone());
                            files.add(ReloadUnit::Auth, access.watched.clone());
                        }
                        UnitOutcome::New(ready, leaves, certificates)
                    }
                    Err(UnitFaults { faults, watched }) => {
                        files.add(unit.clone(), watched);
                        UnitOutcome::Broken(faults)
                    }
                }
            }
        };
        outcomes.insert(unit, outcome);
    }
    // `config::reread` reports this unit only if it is broken.
    outcomes.entry(ReloadUnit::Rest).or_insert(UnitOutcome::Same);
    Reread {
        outcomes,
        files,
        warnings: reread.warnings,
    }
}

/// The faults of a unit, and the other files that it includes.
struct UnitFaults {
    faults: Vec<String>,
    watched: Stamps,
}

/// Makes a unit ready for service.
fn prepare(
    reloaded: ReloadedUnit,
    context: PolicyContext<'_>,
    shared: &Shared,
) -> Result<(ReadyUnit, Vec<Leaf>), UnitFaults> {
    Ok(match reloaded {
        ReloadedUnit::Tls(tls) => (ReadyUnit::Tls(Acceptor::new(&tls)), of_clients(&tls)),
        ReloadedUnit::Http(tls) => (ReadyUnit::Http(tls.server_config), vec![tls.leaf]),
        ReloadedUnit::Token(token) => (ReadyUnit::Token(token), Vec::new()),
        ReloadedUnit::Auth(auth) => match AuthPolicy::load(&auth, context, &shared.mock) {
            Ok(access) => (ReadyUnit::AuthPolicy(Arc::new(access)), Vec::new()),
            Err(AuthPolicyError {
                lines: faults,
                watched,
            }) => return Err(UnitFaults { faults, watched }),
        },
        ReloadedUnit::ServerTls(tls) => {
            let leaves = of_servers(tls.client_certificate.as_ref());
            let client = TlsClient::new(&tls).map_err(|error| UnitFaults {
                faults: vec![error.to_string()],
                watched: Stamps::new(),
            })?;
            (ReadyUnit::ServerTls(client), leaves)
        }
        ReloadedUnit::Password(password) => (ReadyUnit::Password(password), Vec::new()),
    })
}
