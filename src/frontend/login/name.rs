//! Methods that take the client's name from a certificate or from this host's operating system. The
//! name must be the user's, or a map must allow it.

use bytes::BytesMut;

use super::{Exchange, ExchangeResult, LoginError};
use crate::auth::credentials::Proof;
use crate::auth::ident::Allowed;
use crate::auth::rules::{ClientName, Need, Rule};
use crate::frontend::peer;

/// `cert`, and `clientcert=verify-full` beside another method.
pub(super) async fn certificate(exchange: &mut Exchange<'_>, rule: &Rule) -> Result<(), LoginError> {
    let Some(certificate) = exchange.tls.and_then(|tls| tls.certificate.as_ref()) else {
        return Err(LoginError::NoCertificate);
    };
    let name: &[u8] = match rule.client_name {
        ClientName::Cn => match &certificate.common_name {
            Some(name) => name,
            None => {
                return Err(LoginError::Certificate(
                    rule.method.clone(),
                    "the certificate has no common name".to_owned(),
                ));
            }
        },
        ClientName::Dn => certificate.distinguished_name.as_bytes(),
    };
    let name = name.to_vec();
    if is_allowed(exchange, rule, &name).await? {
        return Ok(());
    }
    let why = mismatch(rule, "certificate", &name);
    Err(exchange.refused(LoginError::Certificate(rule.method.clone(), why)))
}

/// `peer`: the operating system's user at the other end of a Unix socket.
pub(super) async fn operating_system(exchange: &mut Exchange<'_>, rule: &Rule) -> Result<(), LoginError> {
    let Some(uid) = exchange.address.peer().map(|peer| peer.uid) else {
        return Err(LoginError::Peer(
            "the operating system does not report the client's user".to_owned(),
        ));
    };
    let name = match peer::user_name(uid).await {
        Ok(Some(name)) => name,
        Ok(None) => return Err(LoginError::Peer(format!("no user of this host has the id {uid}"))),
        Err(error) => {
            return Err(LoginError::Peer(format!(
                "the user with id {uid} cannot be looked up: {error}"
            )));
        }
    };
    if is_allowed(exchange, rule, name.as_bytes()).await? {
        return Ok(());
    }
    let why = mismatch(rule, "operating system user", name.as_bytes());
    Err(exchange.refused(LoginError::Peer(why)))
}

/// The login leaves no secret that the router could use to log into a server.
pub(super) fn without_secret() -> ExchangeResult {
    ExchangeResult {
        proof: Proof::Nothing,
        identity: None,
        last_message: BytesMut::new(),
        is_bound: false,
    }
}

async fn is_allowed(exchange: &mut Exchange<'_>, rule: &Rule, name: &[u8]) -> Result<bool, LoginError> {
    let map = rule.map.as_deref();
    loop {
        let maps = &exchange.context.policy.maps;
        match maps.check(map, name, &exchange.packet.user, exchange.memberships()) {
            Allowed::Yes => return Ok(true),
            Allowed::Needs(Need::Memberships) => exchange.look_up_memberships().await?,
            // Maps have no host names.
            Allowed::No | Allowed::Needs(Need::HostName) => return Ok(false),
        }
    }
}

fn mismatch(rule: &Rule, subject: &str, name: &[u8]) -> String {
    let name = name.escape_ascii();
    match rule.map.as_deref().filter(|map| !map.is_empty()) {
        Some(map) => format!(
            "the map \"{}\" does not allow {subject} \"{name}\" to be this user",
            map.escape_ascii()
        ),
        None => format!("{subject} \"{name}\" is not this user, and the rule names no map"),
    }
}
