//! Login of a client: version negotiation, the rule that decides, and the SASL exchange (protocol chapter,
//! "Start-up" and "SASL Authentication"; cases 8–29).

use std::net::Ipv4Addr;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{ClientAddress, ClientStream};
use crate::auth::Identity;
use crate::auth::guard::By;
use crate::auth::rules::{Decision, Facts, Method, Rules};
use crate::auth::scram::{self, Lookup, MockSecret, Nonce, ScramFault, ServerExchange};
use crate::auth::userlist::UserList;
use crate::backend::Credential;
use crate::cluster::{ClusterHandle, LookupError};
use crate::wire::frame::{self, Frame};
use crate::wire::message::{self, ErrorReply};
use crate::wire::sqlstate::SqlState;
use crate::wire::startup::StartupPacket;

/// PostgreSQL's bound on a password message; some cloud providers' tokens come near it (case 25).
const LARGEST_PASSWORD_MESSAGE: usize = 65_536;

/// A client that has proven who it is. Only [`exchange`] makes one.
#[derive(Debug)]
pub struct Authenticated {
    credential: Credential,
    /// `SASLFinal` and AuthenticationOk, held back to travel with what follows.
    welcome: BytesMut,
}

impl Authenticated {
    /// How to log into a server as this client.
    pub fn credential(&self) -> &Credential {
        &self.credential
    }

    /// What the client has to hear before anything else.
    pub fn welcome(&self) -> BytesMut {
        self.welcome.clone()
    }
}

/// Why a login came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum LoginFault {
    /// After our request for a password: psql does so to ask its user, balancers to see that we are there.
    #[error("hung up")]
    HungUp,
    #[error("{}", .0.message)]
    TooMany(ErrorReply),
    #[error("{}", .0.message)]
    Unavailable(ErrorReply),
    /// After too many failed logins from its address, or as its user.
    #[error("{}", .1.message)]
    RateLimited(By, ErrorReply),
    #[error("no authentication rule matches")]
    NoRule(ErrorReply),
    #[error("a rule rejects it")]
    Rejected(ErrorReply),
    /// A wrong password, an unknown user, a user without a password: told apart nowhere.
    #[error("{0}")]
    Scram(ScramFault),
    #[error("protocol violation: {0}")]
    Protocol(String),
    #[error("the look-up of the verifier failed: {0}")]
    Lookup(LookupError),
    #[error("login took too long")]
    Timeout,
}

/// What a failed login says of the client, for the limits on guessing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offence {
    /// It gave a proof, and that was wrong. An unknown user's always is.
    Proof,
    /// It did not keep to the protocol.
    Garbage,
}

impl LoginFault {
    /// `None` where the client has shown nothing wrong: an outage, a limit, a rule that lets nobody prove anything,
    /// one that hung up or fell silent when it was asked for a password.
    pub fn offence(&self) -> Option<Offence> {
        match self {
            Self::Scram(fault) if fault.is_wrong_password() => Some(Offence::Proof),
            Self::Scram(_) | Self::Protocol(_) => Some(Offence::Garbage),
            Self::HungUp
            | Self::TooMany(_)
            | Self::Unavailable(_)
            | Self::RateLimited(..)
            | Self::NoRule(_)
            | Self::Rejected(_)
            | Self::Lookup(_)
            | Self::Timeout => None,
        }
    }

    /// The label in metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::HungUp => "hung_up",
            Self::TooMany(_) => "too_many",
            Self::Unavailable(_) => "unavailable",
            Self::RateLimited(By::Address, _) => "rate_limit_address",
            Self::RateLimited(By::User, _) => "rate_limit_user",
            Self::NoRule(_) => "no_rule",
            Self::Rejected(_) => "rejected",
            Self::Scram(fault) if fault.is_wrong_password() => "password",
            Self::Scram(_) | Self::Protocol(_) => "protocol",
            Self::Lookup(_) => "lookup",
            Self::Timeout => "timeout",
        }
    }

    /// What the client is told. An unknown user and a wrong password read the same.
    pub fn reply(&self, user: &[u8]) -> Option<ErrorReply> {
        match self {
            Self::HungUp => None,
            Self::TooMany(reply)
            | Self::Unavailable(reply)
            | Self::RateLimited(_, reply)
            | Self::NoRule(reply)
            | Self::Rejected(reply) => Some(reply.clone()),
            Self::Scram(fault) => Some(fault.reply(user)),
            Self::Protocol(what) => Some(ErrorReply::fatal(SqlState::PROTOCOL_VIOLATION, what.clone())),
            Self::Lookup(_) => Some(
                ErrorReply::fatal(
                    SqlState::CANNOT_CONNECT_NOW,
                    "the connection manager cannot look up passwords at the moment",
                )
                .hint("Try again in a moment. The connection manager's log says why the look-up fails."),
            ),
            Self::Timeout => Some(ErrorReply::fatal(
                SqlState::QUERY_CANCELED,
                "canceling authentication due to timeout",
            )),
        }
    }
}

/// Where verifiers come from.
#[derive(Debug)]
pub struct Identities<'a> {
    pub users: Option<&'a UserList>,
    pub cluster: &'a ClusterHandle,
    pub mock: &'a MockSecret,
}

impl Identities<'_> {
    async fn find(&self, user: &[u8]) -> Result<Option<Identity>, LookupError> {
        match self.users {
            Some(users) => Ok(users.find(user).cloned()),
            None => self.cluster.verifier(user).await,
        }
    }
}

/// Answers a newer minor version or unknown protocol options with one NegotiateProtocolVersion (case 8).
pub async fn negotiate(stream: &mut ClientStream, packet: &StartupPacket) -> Result<(), LoginFault> {
    let Some(negotiation) = packet.negotiation() else {
        return Ok(());
    };
    let mut out = BytesMut::new();
    message::negotiate_protocol_version(&mut out, negotiation.served, &negotiation.unknown_options);
    send(stream, &out).await
}

/// The first rule that matches decides.
pub fn decide(
    rules: &Rules,
    packet: &StartupPacket,
    address: ClientAddress,
    is_tls: bool,
) -> Result<Method, LoginFault> {
    let facts = Facts {
        user: &packet.user,
        database: &packet.database,
        replication: packet.replication,
        // The rules do not know Unix sockets yet: whoever comes by one is on this host.
        address: address.ip().unwrap_or(Ipv4Addr::LOCALHOST.into()),
        tls: is_tls,
    };
    match rules.decide(&facts) {
        Decision::Scram(_) => Ok(Method::ScramSha256),
        Decision::Reject(_) => Err(LoginFault::Rejected(facts.rejected())),
        Decision::NoMatch => Err(LoginFault::NoRule(facts.no_entry())),
    }
}

/// The exchange a rule asks for. One frame at a time is read, and nothing may follow it unasked.
pub async fn exchange(
    stream: &mut ClientStream,
    packet: &StartupPacket,
    method: Method,
    identities: &Identities<'_>,
) -> Result<Authenticated, LoginFault> {
    match method {
        Method::ScramSha256 => scram_sha_256(stream, packet, identities).await,
        Method::Reject => Err(LoginFault::Protocol("rejected".to_owned())),
    }
}

async fn scram_sha_256(
    stream: &mut ClientStream,
    packet: &StartupPacket,
    identities: &Identities<'_>,
) -> Result<Authenticated, LoginFault> {
    let mut out = BytesMut::new();
    message::authentication_sasl(&mut out, &[scram::MECHANISM]);
    send(stream, &out).await?;
    let mut buffer = BytesMut::new();
    let first = read_password_message(stream, &mut buffer).await?;
    // Only now: a balancer's check hangs up before and must cost no look-up.
    let identity = identities.find(&packet.user).await.map_err(LoginFault::Lookup)?;
    let verifier = identity.as_ref().and_then(Identity::verifier).map(Arc::clone);
    let (mechanism, data) = sasl_initial(&first.body)?;
    let (exchange, reply) = ServerExchange::start(
        Lookup {
            user: &packet.user,
            verifier,
            mock: identities.mock,
        },
        Nonce::random(),
    )
    .client_first(mechanism, data)
    .map_err(LoginFault::Scram)?;
    out.clear();
    message::authentication_sasl_continue(&mut out, &reply);
    send(stream, &out).await?;
    let last = read_password_message(stream, &mut buffer).await?;
    let (reply, key) = match exchange.client_final(&last.body) {
        Ok(done) => done,
        Err(fault) => {
            // A cached verifier may be older than a password that was just changed.
            identities.cluster.forget_verifier(&packet.user);
            return Err(LoginFault::Scram(fault));
        }
    };
    out.clear();
    message::authentication_sasl_final(&mut out, &reply);
    message::authentication_ok(&mut out);
    let credential = match identity {
        Some(Identity::Password(password, _)) => Credential::Password(password),
        Some(Identity::Verifier(_) | Identity::Md5(_)) | None => Credential::ClientKey(key),
    };
    Ok(Authenticated {
        credential,
        welcome: out,
    })
}

/// `SASLInitialResponse`: mechanism, terminated; length of the response; the response. −1 is none.
fn sasl_initial(body: &Bytes) -> Result<(&[u8], &[u8]), LoginFault> {
    let malformed = || LoginFault::Protocol("malformed SASL initial response".to_owned());
    let end = body.iter().position(|&byte| byte == 0).ok_or_else(malformed)?;
    let (mechanism, rest) = (&body[..end], &body[end + 1..]);
    let (length, data) = rest.split_first_chunk::<4>().ok_or_else(malformed)?;
    match i32::from_be_bytes(*length) {
        -1 if data.is_empty() => Ok((mechanism, data)),
        length if usize::try_from(length) == Ok(data.len()) => Ok((mechanism, data)),
        _ => Err(malformed()),
    }
}

/// Exactly one `p`. Cancel safe: `read_buf` is, and what it read stays in `buffer`.
async fn read_password_message(
    stream: &mut ClientStream,
    buffer: &mut BytesMut,
) -> Result<Frame, LoginFault> {
    let frame = loop {
        match frame::next_frame(buffer, LARGEST_PASSWORD_MESSAGE) {
            Ok(Some(frame)) => break frame,
            Ok(None) => {}
            Err(fault) => return Err(LoginFault::Protocol(fault.to_string())),
        }
        if buffer.first().is_some_and(|&tag| tag != b'p') {
            break Frame {
                tag: buffer[0],
                body: Bytes::new(),
            };
        }
        buffer.reserve(1024);
        match stream.read_buf(buffer).await {
            Ok(0) | Err(_) => return Err(LoginFault::HungUp),
            Ok(_) => {}
        }
    };
    match frame.tag {
        b'p' if buffer.is_empty() => Ok(frame),
        b'p' => Err(LoginFault::Protocol(
            "unexpected data after a password message".to_owned(),
        )),
        b'X' => Err(LoginFault::HungUp),
        tag => Err(LoginFault::Protocol(format!(
            "expected password response, got message type {tag}"
        ))),
    }
}

async fn send(stream: &mut ClientStream, out: &[u8]) -> Result<(), LoginFault> {
    stream.write_all(out).await.map_err(|_| LoginFault::HungUp)?;
    stream.flush().await.map_err(|_| LoginFault::HungUp)
}
