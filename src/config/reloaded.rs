//! What a reload takes from files that are read again in service: certificates, keys, revocation
//! lists, passwords and users. Each unit is taken or refused separately, so that a broken
//! certificate does not keep out a good users file.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::error::ConfigErrors;
use super::model::{Auth, ClientTls, Files, HttpTls, ReloadUnit, ServerTls};
use super::secret::Secret;

/// One unit, read again.
#[derive(Debug)]
pub enum ReloadedUnit {
    Tls(Arc<ClientTls>),
    Http(HttpTls),
    Token(Secret),
    Auth(Auth),
    ServerTls(ServerTls),
    /// The service account's password.
    Password(Option<Secret>),
}

/// Every unit that is in the configuration, read again; a unit with errors is not to be taken.
#[derive(Debug)]
pub struct ReloadedUnits {
    pub units: BTreeMap<ReloadUnit, Result<ReloadedUnit, ConfigErrors>>,
    /// The files as they were when they were read.
    pub files: Files,
    /// As [`super::Config::warnings`].
    pub warnings: Vec<String>,
}
