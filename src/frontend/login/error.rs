//! Why a login fails: the error for the client, the label for metrics, and whether it counts as a
//! password guess.

use crate::auth::login_throttle::{By, Guess};
use crate::auth::rules::Method;
use crate::auth::scram::{self, ScramError};
use crate::cluster::LookupError;
use crate::frontend::RefuseReason;
use crate::wire::message::ErrorReply;
use crate::wire::sqlstate::SqlState;

/// For a user that the look-up does not find.
pub(super) const NO_PASSWORD: &str = "there is no such user, or it cannot log in with a password";

/// Why a login failed.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// After the request for a password. psql disconnects to ask its user for one; balancers do so
    /// as a health check.
    #[error("hung up")]
    HungUp,
    #[error("{}", .0.message)]
    TooMany(ErrorReply),
    #[error("{}", .0.message)]
    Unavailable(ErrorReply),
    /// An operator has disabled the route.
    #[error("{}", .0.message)]
    Disabled(ErrorReply),
    /// A client exceeds another limit.
    #[error("{}", .1.message)]
    Limit(RefuseReason, ErrorReply),
    /// There were too many failed logins from this address, or as this user.
    #[error("{}", .1.message)]
    RateLimited(By, ErrorReply),
    #[error("no authentication rule matches")]
    NoRule(ErrorReply),
    #[error("a rule rejects it")]
    Rejected(ErrorReply),
    #[error("{0}")]
    Scram(ScramError),
    /// A wrong password, an unknown user or a user without a password. Only the log distinguishes
    /// them, by this text. With the password if it is known.
    #[error("password authentication failed: {0}")]
    WrongPassword(&'static str, Option<Guess>),
    #[error("an empty password")]
    EmptyPassword,
    #[error("no client certificate")]
    NoCertificate,
    /// The certificate belongs to another user, under a rule with this method.
    #[error("{1}")]
    Certificate(Method, String),
    #[error("{0}")]
    Peer(String),
    #[error("LDAP: {0}")]
    Ldap(String, Guess),
    /// The LDAP directory gave no usable answer.
    #[error("LDAP: {0}")]
    Directory(String),
    /// A rule names a host, and the client's host name could not be looked up.
    #[error("{0}")]
    NameService(String),
    /// The rule accepts the client, but the router has no credential for the servers: what was
    /// checked at the start no longer holds.
    #[error("authenticated, but the router has no credential to log into the servers as this user")]
    NoServerLogin,
    #[error("protocol violation: {0}")]
    Protocol(String),
    #[error("the user could not be looked up: {0}")]
    Lookup(LookupError),
    /// The proof does not match a remembered answer, and no server can confirm that answer now.
    #[error("the password does not match a remembered answer, and no server could confirm that answer")]
    Unconfirmed,
    /// The proof does not match the users file as it was read, and the file has changed since.
    #[error(
        "the password does not match the users file, which has just changed and has not been read again yet"
    )]
    JustChanged,
    #[error("login took too long")]
    Timeout,
}

/// How a failed login counts against the client in the limits on password guessing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offence {
    /// The client gave a wrong proof. An unknown user's proof is always wrong.
    Proof,
    /// The client violated the protocol, or its proof could not be checked against a confirmed
    /// answer. It counts for the address only: a client that can slow down look-ups must not guess
    /// without limit, and must not lock out a user.
    Garbage,
}

impl LoginError {
    /// `None` if the client gave no wrong proof: an outage, a limit, a rule without a proof, a
    /// client that hung up or did not answer the request for a password.
    pub fn offence(&self) -> Option<Offence> {
        match self {
            Self::Scram(fault) if fault.is_wrong_password() => Some(Offence::Proof),
            Self::WrongPassword(..)
            | Self::EmptyPassword
            | Self::Certificate(..)
            | Self::Peer(_)
            | Self::Ldap(..) => Some(Offence::Proof),
            Self::Scram(_) | Self::Protocol(_) | Self::Unconfirmed => Some(Offence::Garbage),
            Self::HungUp
            | Self::TooMany(_)
            | Self::Unavailable(_)
            | Self::Disabled(_)
            | Self::Limit(..)
            | Self::RateLimited(..)
            | Self::NoRule(_)
            | Self::Rejected(_)
            | Self::NoCertificate
            | Self::Directory(_)
            | Self::NameService(_)
            | Self::NoServerLogin
            // It happens only for a few seconds after a change of the file, and clients cannot
            // cause one.
            | Self::JustChanged
            | Self::Lookup(_)
            | Self::Timeout => None,
        }
    }

    /// The wrong secret: the same secret again is no new guess. `None` if wrong secrets cannot be
    /// distinguished, since a proof by SCRAM or md5 depends on a random nonce or salt.
    pub fn guess(&self) -> Option<Guess> {
        match self {
            Self::WrongPassword(_, guess) => *guess,
            Self::Ldap(_, guess) => Some(*guess),
            Self::EmptyPassword => Some(Guess::of(b"")),
            // The text names the owner of the certificate or process.
            Self::Certificate(_, who) | Self::Peer(who) => Some(Guess::of(who.as_bytes())),
            _ => None,
        }
    }

    /// Whether it failed because the look-up did not find the user.
    pub fn is_of_no_password(&self) -> bool {
        matches!(self, Self::WrongPassword(NO_PASSWORD, _))
    }

    /// The reason for metrics. `None`: the client left, which is no refusal.
    pub fn reason(&self) -> Option<RefuseReason> {
        Some(match self {
            Self::HungUp => return None,
            Self::TooMany(_) => RefuseReason::TooMany,
            Self::Limit(reason, _) => *reason,
            Self::Unavailable(_) => RefuseReason::Unavailable,
            Self::Disabled(_) => RefuseReason::Disabled,
            Self::RateLimited(By::Address, _) => RefuseReason::RateLimitAddress,
            Self::RateLimited(By::User, _) => RefuseReason::RateLimitUser,
            Self::RateLimited(By::UserHere, _) => RefuseReason::RateLimitUserAddress,
            Self::NoRule(_) => RefuseReason::NoRule,
            Self::Rejected(_) => RefuseReason::Rejected,
            Self::Scram(fault) if fault.is_wrong_password() => RefuseReason::Password,
            Self::WrongPassword(..) | Self::EmptyPassword => RefuseReason::Password,
            Self::NoCertificate | Self::Certificate(..) => RefuseReason::Certificate,
            Self::Peer(_) => RefuseReason::Peer,
            Self::Ldap(..) => RefuseReason::Ldap,
            Self::Directory(_) => RefuseReason::Directory,
            Self::NameService(_) => RefuseReason::NameService,
            Self::NoServerLogin => RefuseReason::NoServerLogin,
            Self::Scram(_) | Self::Protocol(_) => RefuseReason::Protocol,
            Self::Lookup(_) | Self::Unconfirmed | Self::JustChanged => RefuseReason::Lookup,
            Self::Timeout => RefuseReason::Timeout,
        })
    }

    /// The error that the client receives. An unknown user and a wrong password get the same error.
    pub fn reply(&self, user: &[u8]) -> Option<ErrorReply> {
        match self {
            Self::HungUp => None,
            Self::TooMany(reply)
            | Self::Unavailable(reply)
            | Self::Disabled(reply)
            | Self::Limit(_, reply)
            | Self::RateLimited(_, reply)
            | Self::NoRule(reply)
            | Self::Rejected(reply) => Some(reply.clone()),
            Self::Scram(fault) => Some(fault.reply(user)),
            Self::WrongPassword(..) => Some(scram::password_failed(user)),
            Self::EmptyPassword => Some(ErrorReply::fatal(
                SqlState::INVALID_PASSWORD,
                "empty password returned by client",
            )),
            Self::NoCertificate => Some(
                ErrorReply::fatal(
                    SqlState::INVALID_AUTHORIZATION,
                    "connection requires a valid client certificate",
                )
                .hint("Give the client a certificate and its key: sslcert and sslkey."),
            ),
            // The error of the method, also if only the certificate is wrong.
            Self::Certificate(method, _) => Some(match method {
                Method::Password | Method::Md5 | Method::ScramSha256 => scram::password_failed(user),
                Method::Ldap(_) => failed("LDAP", user),
                Method::Trust => failed("\"trust\"", user),
                Method::Cert | Method::Peer | Method::Reject => failed("certificate", user),
            }),
            Self::Peer(_) => Some(failed("Peer", user)),
            Self::Ldap(..) => Some(failed("LDAP", user)),
            Self::Directory(_) => Some(
                ErrorReply::fatal(
                    SqlState::CANNOT_CONNECT_NOW,
                    "the router cannot ask the LDAP directory at the moment",
                )
                .hint("Try again in a moment. The router's log says why."),
            ),
            Self::NameService(_) => Some(
                ErrorReply::fatal(
                    SqlState::CANNOT_CONNECT_NOW,
                    "the router cannot look up the name of this client's host at the moment",
                )
                .hint("Try again in a moment. A rule in the router's HBA file names a host, and the router's name service does not answer."),
            ),
            Self::NoServerLogin => Some(
                ErrorReply::fatal(
                    SqlState::INVALID_AUTHORIZATION,
                    "the router has no credential to log into the servers as this user",
                )
                .hint("Ask the router's operator to add one to auth.server_credentials."),
            ),
            Self::Protocol(what) => Some(ErrorReply::fatal(SqlState::PROTOCOL_VIOLATION, what.clone())),
            Self::Lookup(_) | Self::Unconfirmed => Some(
                ErrorReply::fatal(
                    SqlState::CANNOT_CONNECT_NOW,
                    "the router cannot ask the servers about this user at the moment",
                )
                .hint("Try again in a moment. The router's log says why the look-up fails."),
            ),
            Self::JustChanged => Some(
                ErrorReply::fatal(
                    SqlState::CANNOT_CONNECT_NOW,
                    "the router's users file has just been changed",
                )
                .hint("Try again in two seconds. The router will have read the new file by then."),
            ),
            Self::Timeout => Some(ErrorReply::fatal(
                SqlState::QUERY_CANCELED,
                "canceling authentication due to timeout",
            )),
        }
    }
}

/// In PostgreSQL's words. Only the log has the reason.
fn failed(method: &str, user: &[u8]) -> ErrorReply {
    ErrorReply::fatal(
        SqlState::INVALID_AUTHORIZATION,
        format!(
            "{method} authentication failed for user \"{}\"",
            String::from_utf8_lossy(user)
        ),
    )
}
