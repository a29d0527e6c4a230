//! The service account's logins: probes and look-ups.

use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use tokio::time::Instant;

use crate::backend::{ConnectError, Credential, ServerConnection, Target, TlsClient, connect};
use crate::config::{self, Secret};
use crate::wire::startup::ProtocolVersion;

/// The purpose of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Probe,
    LookUp,
}

/// How the router logs into the members of one cluster for its own purposes.
#[derive(Debug)]
pub(super) struct ServiceAccount {
    pub(super) config: Arc<config::Cluster>,
    /// For new connections; existing ones keep theirs.
    tls: ArcSwap<TlsClient>,
    credential: ArcSwap<Credential>,
}

impl ServiceAccount {
    pub(super) fn new(config: Arc<config::Cluster>, tls: Arc<TlsClient>) -> Self {
        let credential = credential(config.service_account.password.as_ref());
        Self {
            config,
            tls: ArcSwap::new(tls),
            credential: ArcSwap::from_pointee(credential),
        }
    }

    pub(super) fn tls(&self) -> Arc<TlsClient> {
        self.tls.load_full()
    }

    pub(super) fn replace_tls(&self, tls: Arc<TlsClient>) {
        self.tls.store(tls);
    }

    pub(super) fn replace_password(&self, password: Option<&Secret>) {
        self.credential.store(Arc::new(credential(password)));
    }

    /// Whether new connections log in with it.
    pub(super) fn has_password(&self, password: Option<&Secret>) -> bool {
        match (&**self.credential.load(), password) {
            (Credential::Password(own), Some(password)) => own == password,
            (Credential::None, None) => true,
            _ => false,
        }
    }

    pub(super) async fn connect(
        &self,
        host: &str,
        port: u16,
        purpose: Purpose,
        deadline: Instant,
    ) -> Result<ServerConnection, ConnectError> {
        let account = &self.config.service_account;
        let pair = |name: &'static str, value: &str| {
            (
                Bytes::from_static(name.as_bytes()),
                Bytes::copy_from_slice(value.as_bytes()),
            )
        };
        let mut parameters = vec![pair("user", &account.user), pair("database", &account.dbname)];
        match purpose {
            Purpose::Probe => {
                parameters.push(pair("application_name", "trunkline probe"));
                parameters.push(pair("client_encoding", "UTF8"));
                // No other function can shadow PostgreSQL's.
                parameters.push(pair("search_path", "pg_catalog"));
            }
            Purpose::LookUp => {
                parameters.push(pair("application_name", "trunkline look-up"));
                // Names of roles are bytes. The server must not convert them.
                parameters.push(pair("client_encoding", "SQL_ASCII"));
            }
        }
        let (tls, credential) = (self.tls(), self.credential.load_full());
        let target = Target {
            host,
            port,
            tls: &tls,
            options: &self.config.server,
            version: ProtocolVersion::V3_0,
            parameters: &parameters,
            credential: &credential,
        };
        connect(target, deadline).await
    }
}

impl ServiceAccount {
    /// Whether a server accepts this role with this password, for the check before the start. It
    /// connects to the service account's database.
    pub(super) async fn try_login(
        &self,
        host: &str,
        port: u16,
        role: &str,
        password: &Secret,
    ) -> Result<(), ConnectError> {
        let database = &self.config.service_account.dbname;
        let credential = credential(Some(password));
        self.try_as(host, port, [role, database, "trunkline check"], &credential)
            .await
    }

    /// What a client's login meets at a server, up to the question for a password, which is not
    /// answered. `Ok`: the server asks for nothing.
    pub(super) async fn knock(
        &self,
        host: &str,
        port: u16,
        role: &str,
        database: &str,
    ) -> Result<(), ConnectError> {
        self.try_as(
            host,
            port,
            [role, database, "trunkline doctor"],
            &Credential::None,
        )
        .await
    }

    async fn try_as(
        &self,
        host: &str,
        port: u16,
        [role, database, application_name]: [&str; 3],
        credential: &Credential,
    ) -> Result<(), ConnectError> {
        let pair = |name: &'static str, value: &str| {
            (
                Bytes::from_static(name.as_bytes()),
                Bytes::copy_from_slice(value.as_bytes()),
            )
        };
        let parameters = [
            pair("user", role),
            pair("database", database),
            pair("application_name", application_name),
        ];
        let target = Target {
            host,
            port,
            tls: &self.tls(),
            options: &self.config.server,
            version: ProtocolVersion::V3_0,
            parameters: &parameters,
            credential,
        };
        let connection = connect(target, Instant::now() + self.config.server.connect_timeout).await?;
        connection.close().await;
        Ok(())
    }
}

fn credential(password: Option<&Secret>) -> Credential {
    match password {
        Some(password) => Credential::Password(password.clone()),
        None => Credential::None,
    }
}
