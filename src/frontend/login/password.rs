//! Methods that end with one `PasswordMessage`: `password`, `md5` and `ldap`.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;
use zeroize::Zeroize;

use super::sasl::{self, LookUp};
use super::{Exchange, ExchangeResult, LoginError, wrong_password};
use crate::auth::Identity;
use crate::auth::credentials::Proof;
use crate::auth::ldap::LdapSettings;
use crate::auth::login_throttle::Guess;
use crate::auth::md5::Md5Hash;
use crate::auth::{crypto, password};
use crate::config::Secret;
use crate::frontend::ldap::{self, LdapError};
use crate::wire::message;

/// `password`: a cleartext password, checked against the stored verifier, hash or password of the
/// user.
pub(super) async fn clear(exchange: &mut Exchange<'_>) -> Result<ExchangeResult, LoginError> {
    let password = ask(exchange).await?;
    let identity = exchange.identity().await?;
    if !verify(exchange, identity.clone(), password.clone()).await? {
        let guess = Guess::of(password.expose());
        let fault = wrong_password(identity.as_ref(), false, Some(guess));
        return Err(exchange.failed(fault).await);
    }
    Ok(ExchangeResult {
        proof: Proof::Password(password),
        identity,
        last_message: BytesMut::new(),
        is_bound: false,
    })
}

/// `md5`: users with an md5 hash get md5. Users with a SCRAM verifier and unknown users get SCRAM,
/// as in PostgreSQL.
pub(super) async fn md5(exchange: &mut Exchange<'_>) -> Result<ExchangeResult, LoginError> {
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
) -> Result<ExchangeResult, LoginError> {
    let salt = crypto::random();
    let mut out = BytesMut::new();
    message::authentication_md5_password(&mut out, salt);
    exchange.send(&out).await?;
    let answer = terminated(exchange.password_message().await?)?;
    if !hash.verify(answer.expose(), salt) {
        let fault = wrong_password(identity.as_ref(), false, None);
        return Err(exchange.failed(fault).await);
    }
    Ok(ExchangeResult {
        proof: Proof::Md5(hash),
        identity,
        last_message: BytesMut::new(),
        is_bound: false,
    })
}

/// `ldap`: the directory decides. The cluster's verifier of the user is not used.
pub(super) async fn directory(
    exchange: &mut Exchange<'_>,
    settings: &LdapSettings,
) -> Result<ExchangeResult, LoginError> {
    let password = ask(exchange).await?;
    let user = &exchange.packet.user;
    let tls = &exchange.context.policy.ldap_tls;
    ldap::authenticate(settings, tls, user, password.expose(), exchange.context.deadline)
        .await
        .map_err(|fault| match fault {
            LdapError::Refused(reason) => LoginError::Ldap(reason, Guess::of(password.expose())),
            LdapError::Unavailable(reason) => LoginError::Directory(reason),
        })?;
    Ok(ExchangeResult {
        proof: Proof::Password(password),
        identity: None,
        last_message: BytesMut::new(),
        is_bound: false,
    })
}

/// Asks for a cleartext password. An empty password is never right, and a directory would take it
/// for an anonymous bind.
async fn ask(exchange: &mut Exchange<'_>) -> Result<Secret, LoginError> {
    let mut out = BytesMut::new();
    message::authentication_cleartext_password(&mut out);
    exchange.send(&out).await?;
    let password = terminated(exchange.password_message().await?)?;
    if password.expose().is_empty() {
        return Err(LoginError::EmptyPassword);
    }
    Ok(password)
}

/// The terminated text of a `PasswordMessage`. The message itself is wiped.
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

/// PBKDF2 takes milliseconds, or longer with many iterations. It does not run on a worker, a
/// limited number run at once, and a secret that is known to be wrong is not computed again.
async fn verify(
    exchange: &Exchange<'_>,
    identity: Option<Identity>,
    password: Secret,
) -> Result<bool, LoginError> {
    let context = exchange.context;
    let user = exchange.packet.user.clone();
    let mock = Arc::clone(context.mock);
    let derivations = Arc::clone(context.derivations);
    let verifier = identity.as_ref().and_then(Identity::verifier);
    let digest = verifier.and_then(|verifier| derivations.digest(verifier, password.expose()));
    let known_wrong = || derivations.known_wrong(digest.as_ref()?, Instant::now());
    if let Some(took) = known_wrong() {
        tokio::time::sleep(took).await;
        return Ok(false);
    }
    let requester = derivations.requester(exchange.address.ip(), &context.cluster.config().name, &user);
    let permit = derivations.acquire(requester).await;
    // Another client may have tried the same secret meanwhile.
    if let Some(took) = known_wrong() {
        drop(permit);
        tokio::time::sleep(took).await;
        return Ok(false);
    }
    let verified = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        let began = Instant::now();
        let is_right = password::verify(identity.as_ref(), &user, password.expose(), &mock);
        if let Some(digest) = digest
            && !is_right
        {
            derivations.remember_wrong(digest, began.elapsed(), Instant::now());
        }
        is_right
    });
    // A panic in the thread refuses the client.
    Ok(verified.await.unwrap_or(false))
}
