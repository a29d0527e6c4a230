//! The service account's logins: probes and look-ups.

use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use crate::backend::{ConnectError, Credential, ServerConnection, Target, TlsClient, connect};
use crate::config;
use crate::wire::startup::ProtocolVersion;

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Probe,
    LookUp,
}

/// How the router itself logs in to the members of one cluster.
#[derive(Debug)]
pub(super) struct Account {
    pub(super) config: Arc<config::Cluster>,
    pub(super) tls: Arc<TlsClient>,
    credential: Credential,
}

impl Account {
    pub(super) fn new(config: Arc<config::Cluster>, tls: Arc<TlsClient>) -> Self {
        let credential = match &config.service_account.password {
            Some(password) => Credential::Password(password.clone()),
            None => Credential::None,
        };
        Self {
            config,
            tls,
            credential,
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
        let mut parameters = vec![
            pair("user", &account.user),
            pair("database", &account.dbname),
            pair("client_encoding", "UTF8"),
        ];
        match purpose {
            Purpose::Probe => {
                parameters.push(pair("application_name", "trunkline probe"));
                // Nobody's functions stand in for PostgreSQL's.
                parameters.push(pair("search_path", "pg_catalog"));
            }
            Purpose::LookUp => parameters.push(pair("application_name", "trunkline look-up")),
        }
        let target = Target {
            host,
            port,
            tls: &self.tls,
            options: &self.config.server,
            version: ProtocolVersion::V3_0,
            parameters: &parameters,
            credential: &self.credential,
        };
        connect(target, deadline).await
    }
}
