//! The certificates that are in use, and where each comes from.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;

use super::model::{
    Auth, ClientTls, Cluster, Config, HttpTls, KeyPair, ReloadUnit, ServerSecret, ServerTls, Source,
};
use super::reloaded::ReloadedUnit;

/// The certificates of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFile {
    /// The key that names the file.
    pub key: String,
    pub file: PathBuf,
    pub used_for: CertificateUse,
    /// The cluster whose servers are meant.
    pub cluster: Option<Arc<str>>,
    /// The router shows the first of them, and the others with it; otherwise it trusts all of them.
    pub is_shown: bool,
    pub certificates: Vec<CertificateDer<'static>>,
}

/// The connections that certificates are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CertificateUse {
    Clients,
    Http,
    Servers,
    Patroni,
    Etcd,
    Ldap,
}

impl CertificateUse {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Clients => "clients",
            Self::Http => "http",
            Self::Servers => "servers",
            Self::Patroni => "patroni",
            Self::Etcd => "etcd",
            Self::Ldap => "ldap",
        }
    }
}

impl Config {
    /// The certificates of each unit, as they were when the configuration was read.
    pub fn certificates(&self) -> BTreeMap<ReloadUnit, Vec<CertificateFile>> {
        let mut all = BTreeMap::new();
        if let Some(tls) = &self.tls {
            all.insert(ReloadUnit::Tls, self.of_clients(tls));
        }
        if let Some(tls) = &self.http.tls {
            all.insert(ReloadUnit::Http, of_http(tls));
        }
        all.insert(ReloadUnit::Auth, self.of_auth(&self.auth));
        let mut rest = Vec::new();
        for cluster in self.clusters.values() {
            let unit = ReloadUnit::ServerTls(Arc::clone(&cluster.name));
            all.insert(unit, self.of_servers(&cluster.name, &cluster.server_tls));
            rest.extend(self.of_source(cluster));
        }
        all.insert(ReloadUnit::Rest, rest);
        all
    }

    /// Those of a unit that was read again.
    pub fn certificates_of(&self, unit: &ReloadUnit, reloaded: &ReloadedUnit) -> Vec<CertificateFile> {
        match (unit, reloaded) {
            (_, ReloadedUnit::Tls(tls)) => self.of_clients(tls),
            (_, ReloadedUnit::Http(tls)) => of_http(tls),
            (_, ReloadedUnit::Auth(auth)) => self.of_auth(auth),
            (ReloadUnit::ServerTls(cluster), ReloadedUnit::ServerTls(tls)) => self.of_servers(cluster, tls),
            _ => Vec::new(),
        }
    }

    fn of_clients(&self, tls: &ClientTls) -> Vec<CertificateFile> {
        let shown = tls.certificates.iter().enumerate().map(|(index, served)| {
            let key = format!("tls.certificates[{index}].cert_file");
            shown(key, CertificateUse::Clients, &served.pair)
        });
        let mut all: Vec<CertificateFile> = shown.collect();
        let trusted = tls.client_roots.as_deref();
        all.extend(self.trusted("tls.client_ca_file".to_owned(), CertificateUse::Clients, trusted));
        all
    }

    fn of_servers(&self, cluster: &Arc<str>, tls: &ServerTls) -> Vec<CertificateFile> {
        let key = |key: &str| format!("clusters.{cluster}.server_tls.{key}");
        let pair = tls.client_certificate.as_ref();
        let own = pair.map(|pair| shown(key("sslcert"), CertificateUse::Servers, pair));
        let trusted = self.trusted(key("sslrootcert"), CertificateUse::Servers, tls.roots.as_deref());
        let of_cluster = |file| CertificateFile {
            cluster: Some(Arc::clone(cluster)),
            ..file
        };
        own.into_iter().chain(trusted).map(of_cluster).collect()
    }

    fn of_auth(&self, auth: &Auth) -> Vec<CertificateFile> {
        let own = auth
            .server_credentials
            .iter()
            .filter_map(|credential| match &credential.secret {
                ServerSecret::Certificate(pair) => {
                    let key = format!("{}.cert_file", credential.path);
                    Some(shown(key, CertificateUse::Servers, pair))
                }
                _ => None,
            });
        let key = "auth.ldap_ca_file".to_owned();
        let trusted = self.trusted(key, CertificateUse::Ldap, auth.ldap_roots.as_deref());
        own.chain(trusted).collect()
    }

    fn of_source(&self, cluster: &Cluster) -> Vec<CertificateFile> {
        let mut all = Vec::new();
        let mut add = |section: &str, used_for, pair: Option<&Arc<KeyPair>>, trusted| {
            let key = |key: &str| format!("clusters.{}.{section}.{key}", cluster.name);
            all.extend(pair.map(|pair| shown(key("cert_file"), used_for, pair)));
            all.extend(self.trusted(key("ca_file"), used_for, trusted));
        };
        if let Source::Patroni(patroni) = &cluster.source {
            let pair = patroni.client_certificate.as_ref();
            add("patroni", CertificateUse::Patroni, pair, patroni.ca.as_deref());
        }
        if let Some(etcd) = &cluster.etcd {
            let pair = etcd.client_certificate.as_ref();
            add("etcd", CertificateUse::Etcd, pair, etcd.ca.as_deref());
        }
        for file in &mut all {
            file.cluster = Some(Arc::clone(&cluster.name));
        }
        all
    }

    /// Nothing where the system's authorities are trusted.
    fn trusted(
        &self,
        key: String,
        used_for: CertificateUse,
        certificates: Option<&[CertificateDer<'static>]>,
    ) -> Option<CertificateFile> {
        let certificates = certificates?.to_vec();
        Some(CertificateFile {
            file: self.file_of(&key),
            key,
            used_for,
            cluster: None,
            is_shown: false,
            certificates,
        })
    }
}

fn of_http(tls: &HttpTls) -> Vec<CertificateFile> {
    vec![CertificateFile {
        key: "http.tls.cert_file".to_owned(),
        file: tls.leaf.cert_file.clone(),
        used_for: CertificateUse::Http,
        cluster: None,
        is_shown: true,
        certificates: tls.chain.clone(),
    }]
}

fn shown(key: String, used_for: CertificateUse, pair: &KeyPair) -> CertificateFile {
    CertificateFile {
        key,
        file: pair.cert_file.clone(),
        used_for,
        cluster: None,
        is_shown: true,
        certificates: pair.chain.clone(),
    }
}
