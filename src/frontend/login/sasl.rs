//! SCRAM-SHA-256, with channel binding where the TLS connection supports it (protocol chapter,
//! "SASL Authentication"; docs/protocol.md, cases 17–24).

use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::{Exchange, ExchangeResult, LoginError, wrong_password};
use crate::auth::Identity;
use crate::auth::credentials::Proof;
use crate::auth::scram::{self, Lookup, Nonce, ServerExchange};
use crate::wire::message;

pub(super) enum LookUp {
    /// Look up once the client has answered. A balancer's check hangs up before that and must not
    /// cause a look-up.
    Due,
    /// The method already looked up the user to choose SCRAM.
    Done(Option<Identity>),
}

pub(super) async fn exchange(
    exchange: &mut Exchange<'_>,
    look_up: LookUp,
) -> Result<ExchangeResult, LoginError> {
    let binding = exchange.tls.and_then(|tls| tls.binding.clone());
    let mechanisms: &[&str] = if binding.is_some() {
        &[scram::MECHANISM_PLUS, scram::MECHANISM]
    } else {
        &[scram::MECHANISM]
    };
    let mut out = BytesMut::new();
    message::authentication_sasl(&mut out, mechanisms);
    exchange.send(&out).await?;
    let first = exchange.password_message().await?;
    let identity = match look_up {
        LookUp::Done(identity) => identity,
        LookUp::Due => exchange.identity().await?,
    };
    let verifier = identity.as_ref().and_then(Identity::verifier).map(Arc::clone);
    let (mechanism, data) = initial(&first)?;
    let lookup = Lookup {
        user: &exchange.packet.user,
        verifier,
        mock: exchange.context.mock,
    };
    let (step, reply) = ServerExchange::start(lookup, binding.as_deref(), Nonce::random())
        .client_first(mechanism, data)
        .map_err(LoginError::Scram)?;
    out.clear();
    message::authentication_sasl_continue(&mut out, &reply);
    exchange.send(&out).await?;
    let last = exchange.password_message().await?;
    let is_bound = step.is_bound();
    let (reply, key) = match step.client_final(&last) {
        Ok(done) => done,
        Err(fault) if fault.is_wrong_password() => {
            let fault = wrong_password(identity.as_ref(), true, None);
            return Err(exchange.failed(fault).await);
        }
        Err(fault) => return Err(exchange.failed(LoginError::Scram(fault)).await),
    };
    out.clear();
    message::authentication_sasl_final(&mut out, &reply);
    Ok(ExchangeResult {
        proof: Proof::Key(key),
        identity,
        last_message: out,
        is_bound,
    })
}

/// `SASLInitialResponse`: the terminated name of the mechanism, the length of the response, the
/// response. The length −1 means no response.
fn initial(body: &Bytes) -> Result<(&[u8], &[u8]), LoginError> {
    let malformed = || LoginError::Protocol("malformed SASL initial response".to_owned());
    let end = body.iter().position(|&byte| byte == 0).ok_or_else(malformed)?;
    let (mechanism, rest) = (&body[..end], &body[end + 1..]);
    let (length, data) = rest.split_first_chunk::<4>().ok_or_else(malformed)?;
    match i32::from_be_bytes(*length) {
        -1 if data.is_empty() => Ok((mechanism, data)),
        length if usize::try_from(length) == Ok(data.len()) => Ok((mechanism, data)),
        _ => Err(malformed()),
    }
}
