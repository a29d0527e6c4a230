//! Methods where somebody else vouches for a name: a certificate, or this host's operating system. The name must be the
//! user's, or a map must say that it may be.

use bytes::BytesMut;

use super::{Exchange, LoginError, Proven};
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
    if may_be(exchange, rule, &name).await? {
        return Ok(());
    }
    let why = unfit(rule, "certificate", &name);
    Err(exchange.kept_out(LoginError::Certificate(rule.method.clone(), why)))
}

/// `peer`: the operating system's user at the other end of a Unix socket.
pub(super) async fn operating_system(exchange: &mut Exchange<'_>, rule: &Rule) -> Result<(), LoginError> {
    let Some(uid) = exchange.address.peer().map(|peer| peer.uid) else {
        return Err(LoginError::Peer(
            "the operating system does not say who it is".to_owned(),
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
    if may_be(exchange, rule, name.as_bytes()).await? {
        return Ok(());
    }
    let what = unfit(rule, "operating system user", name.as_bytes());
    Err(exchange.kept_out(LoginError::Peer(what)))
}

/// Nothing is left in the router's hands that would open a server.
pub(super) fn proven() -> Proven {
    Proven {
        proof: Proof::Nothing,
        identity: None,
        farewell: BytesMut::new(),
        is_bound: false,
    }
}

async fn may_be(exchange: &mut Exchange<'_>, rule: &Rule, name: &[u8]) -> Result<bool, LoginError> {
    let map = rule.map.as_deref();
    loop {
        let maps = &exchange.context.policy.maps;
        match maps.check(map, name, &exchange.packet.user, exchange.memberships()) {
            Allowed::Yes => return Ok(true),
            Allowed::Needs(Need::Memberships) => exchange.look_up_memberships().await?,
            // Maps know no hosts.
            Allowed::No | Allowed::Needs(Need::HostName) => return Ok(false),
        }
    }
}

fn unfit(rule: &Rule, what: &str, name: &[u8]) -> String {
    let name = name.escape_ascii();
    match rule.map.as_deref().filter(|map| !map.is_empty()) {
        Some(map) => format!(
            "{what} \"{name}\" may not be this user by the map \"{}\"",
            map.escape_ascii()
        ),
        None => format!("{what} \"{name}\" is not this user, and the rule names no map"),
    }
}
