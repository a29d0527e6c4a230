//! Methods that end with one `PasswordMessage`: `password`, `md5` and `ldap`.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;
use zeroize::Zeroize;

use super::sasl::{self, LookUp};
use super::{Exchange, LoginError, Proven, wrong_password};
use crate::auth::Identity;
use crate::auth::credentials::Proof;
use crate::auth::ldap::LdapSettings;
use crate::auth::login_throttle::Guess;
use crate::auth::md5::Md5Hash;
use crate::auth::{crypto, password};
use crate::config::Secret;
use crate::frontend::ldap::{self, LdapError};
use crate::wire::message;

/// `password`: in clear, checked against whatever is known of the user.
pub(super) async fn clear(exchange: &mut Exchange<'_>) -> Result<Proven, LoginError> {
    let given = ask(exchange).await?;
    let identity = exchange.identity().await?;
    if !verify(exchange, identity.clone(), given.clone()).await? {
        let guess = Guess::of(given.expose());
        let fault = wrong_password(identity.as_ref(), false, Some(guess));
        return Err(exchange.failed(fault).await);
    }
    Ok(Proven {
        proof: Proof::Password(given),
        identity,
        farewell: BytesMut::new(),
        is_bound: false,
    })
}

/// `md5`: SCRAM for who has a SCRAM verifier, and for who is unknown, as PostgreSQL does; md5 for who is stored so.
pub(super) async fn md5(exchange: &mut Exchange<'_>) -> Result<Proven, LoginError> {
    let identity = exchange.identity().await?;
    let hash = match &identity {
        Some(Identity::Md5(hash)) => hash.clone(),
        Some(Identity::Verifier(_) | Identity::Password(..)) | None => {
            return sasl::exchange(exchange, LookUp::Done(identity)).await;
        }
    };
    md5_of(exchange, hash, identity).await
}

async fn md5_of(
    exchange: &mut Exchange<'_>,
    hash: Md5Hash,
    identity: Option<Identity>,
) -> Result<Proven, LoginError> {
    let salt = crypto::random();
    let mut out = BytesMut::new();
    message::authentication_md5_password(&mut out, salt);
    exchange.send(&out).await?;
    let answer = terminated(exchange.password_message().await?)?;
    if !hash.verify(answer.expose(), salt) {
        let fault = wrong_password(identity.as_ref(), false, None);
        return Err(exchange.failed(fault).await);
    }
    Ok(Proven {
        proof: Proof::Md5(hash),
        identity,
        farewell: BytesMut::new(),
        is_bound: false,
    })
}

/// `ldap`: the directory decides. What the cluster knows of the user does not matter here.
pub(super) async fn directory(
    exchange: &mut Exchange<'_>,
    settings: &LdapSettings,
) -> Result<Proven, LoginError> {
    let given = ask(exchange).await?;
    let user = &exchange.packet.user;
    let tls = &exchange.context.policy.ldap_tls;
    ldap::authenticate(settings, tls, user, given.expose(), exchange.context.deadline)
        .await
        .map_err(|fault| match fault {
            LdapError::Refused(reason) => LoginError::Ldap(reason, Guess::of(given.expose())),
            LdapError::Unavailable(reason) => LoginError::Directory(reason),
        })?;
    Ok(Proven {
        proof: Proof::Password(given),
        identity: None,
        farewell: BytesMut::new(),
        is_bound: false,
    })
}

/// Asks for a password in clear. An empty one is never right, and a directory would take it for an anonymous bind.
async fn ask(exchange: &mut Exchange<'_>) -> Result<Secret, LoginError> {
    let mut out = BytesMut::new();
    message::authentication_cleartext_password(&mut out);
    exchange.send(&out).await?;
    let given = terminated(exchange.password_message().await?)?;
    if given.expose().is_empty() {
        return Err(LoginError::EmptyPassword);
    }
    Ok(given)
}

/// The one terminated text of a `PasswordMessage`; the message itself is wiped.
fn terminated(body: Bytes) -> Result<Secret, LoginError> {
    let secret = match body.split_last() {
        Some((0, text)) if !text.contains(&0) => Ok(Secret::new(text)),
        _ => Err(LoginError::Protocol("invalid password packet size".to_owned())),
    };
    if let Ok(mut body) = body.try_into_mut() {
        body.as_mut().zeroize();
    }
    secret
}

/// PBKDF2 takes milliseconds, and with many iterations more: not on a worker, only so many at once, and not again for a
/// secret that is known to be wrong.
async fn verify(
    exchange: &Exchange<'_>,
    identity: Option<Identity>,
    given: Secret,
) -> Result<bool, LoginError> {
    let context = exchange.context;
    let user = exchange.packet.user.clone();
    let mock = Arc::clone(context.mock);
    let derivations = Arc::clone(context.derivations);
    let verifier = identity.as_ref().and_then(Identity::verifier);
    let mark = verifier.and_then(|verifier| derivations.mark(verifier, given.expose()));
    let known_wrong = || derivations.known_wrong(mark.as_ref()?, Instant::now());
    if let Some(took) = known_wrong() {
        tokio::time::sleep(took).await;
        return Ok(false);
    }
    let party = derivations.party(exchange.address.ip(), &context.cluster.config().name, &user);
    let place = derivations.place(party).await;
    // Somebody else may have given the same meanwhile.
    if let Some(took) = known_wrong() {
        drop(place);
        tokio::time::sleep(took).await;
        return Ok(false);
    }
    let verified = tokio::task::spawn_blocking(move || {
        let _place = place;
        let began = Instant::now();
        let is_right = password::verify(identity.as_ref(), &user, given.expose(), &mock);
        if let Some(mark) = mark
            && !is_right
        {
            derivations.was_wrong(mark, began.elapsed(), Instant::now());
        }
        is_right
    });
    // A panic in there lets nobody in.
    Ok(verified.await.unwrap_or(false))
}
