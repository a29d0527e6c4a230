//! Why a login fails: what the client is told, what metrics say, and whether it counts as a guess.

use crate::auth::login_throttle::{By, Guess};
use crate::auth::rules::Method;
use crate::auth::scram::{self, ScramError};
use crate::cluster::LookupError;
use crate::frontend::RefuseReason;
use crate::wire::message::ErrorReply;
use crate::wire::sqlstate::SqlState;

/// Of a user for whom the look-up has nothing.
pub(super) const NO_PASSWORD: &str = "there is no such user, or it cannot log in with a password";

/// Why a login came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// After our request for a password: psql does so to ask its user, balancers to see that we are there.
    #[error("hung up")]
    HungUp,
    #[error("{}", .0.message)]
    TooMany(ErrorReply),
    #[error("{}", .0.message)]
    Unavailable(ErrorReply),
    /// Another limit.
    #[error("{}", .1.message)]
    Limit(RefuseReason, ErrorReply),
    /// After too many failed logins from its address, or as its user.
    #[error("{}", .1.message)]
    RateLimited(By, ErrorReply),
    #[error("no authentication rule matches")]
    NoRule(ErrorReply),
    #[error("a rule rejects it")]
    Rejected(ErrorReply),
    #[error("{0}")]
    Scram(ScramError),
    /// A wrong password, an unknown user, a user without a password: told apart in the log only, by this text.
    /// With the password where it is known.
    #[error("password authentication failed: {0}")]
    WrongPassword(&'static str, Option<Guess>),
    #[error("an empty password")]
    EmptyPassword,
    #[error("no client certificate")]
    NoCertificate,
    /// A certificate for another user, under a rule with this method.
    #[error("{1}")]
    Certificate(Method, String),
    #[error("{0}")]
    Peer(String),
    #[error("LDAP: {0}")]
    Ldap(String, Guess),
    /// The directory cannot be asked.
    #[error("LDAP: {0}")]
    Directory(String),
    /// A rule names a host, and the client's could not be looked up.
    #[error("{0}")]
    NameService(String),
    /// The rule let it in, and the servers would not: what was checked at the start no longer holds.
    #[error("authenticated, but there is nothing to log into the servers with")]
    NoServerLogin,
    #[error("protocol violation: {0}")]
    Protocol(String),
    #[error("the user could not be looked up: {0}")]
    Lookup(LookupError),
    /// A proof that does not fit what was remembered, while nobody can confirm that.
    #[error("the password does not fit a remembered answer, which could not be confirmed")]
    Unconfirmed,
    /// A proof that does not fit the users file as it was read; by now there is another one.
    #[error("the password does not fit the users file, which has just been changed and is not read yet")]
    JustChanged,
    #[error("login took too long")]
    Timeout,
}

/// What a failed login says of the client, for the limits on guessing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offence {
    /// It gave a proof, and that was wrong. An unknown user's always is.
    Proof,
    /// It did not keep to the protocol, or its proof fits nothing that could be confirmed: whoever can make look-ups slow
    /// must not guess without bounds, and no user may be locked out by it.
    Garbage,
}

impl LoginError {
    /// `None` where the client has shown nothing wrong: an outage, a limit, a rule that lets nobody prove anything,
    /// one that hung up or fell silent when it was asked for a password.
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
            | Self::Limit(..)
            | Self::RateLimited(..)
            | Self::NoRule(_)
            | Self::Rejected(_)
            | Self::NoCertificate
            | Self::Directory(_)
            | Self::NameService(_)
            | Self::NoServerLogin
            // For a few seconds after each change, which no client makes.
            | Self::JustChanged
            | Self::Lookup(_)
            | Self::Timeout => None,
        }
    }

    /// What was shown and was wrong: the same again is no new guess. `None` where nobody can tell one wrong secret from
    /// another, since a proof by SCRAM or md5 depends on numbers of its own.
    pub fn guess(&self) -> Option<Guess> {
        match self {
            Self::WrongPassword(_, guess) => *guess,
            Self::Ldap(_, guess) => Some(*guess),
            Self::EmptyPassword => Some(Guess::of(b"")),
            // They say whose certificate or process it is.
            Self::Certificate(_, who) | Self::Peer(who) => Some(Guess::of(who.as_bytes())),
            _ => None,
        }
    }

    /// Whether it failed since the look-up has nothing for the user.
    pub fn is_of_no_password(&self) -> bool {
        matches!(self, Self::WrongPassword(NO_PASSWORD, _))
    }

    /// For metrics; `None`: the client has left, which is no refusal.
    pub fn reason(&self) -> Option<RefuseReason> {
        Some(match self {
            Self::HungUp => return None,
            Self::TooMany(_) => RefuseReason::TooMany,
            Self::Limit(reason, _) => *reason,
            Self::Unavailable(_) => RefuseReason::Unavailable,
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

    /// What the client is told. An unknown user and a wrong password read the same.
    pub fn reply(&self, user: &[u8]) -> Option<ErrorReply> {
        match self {
            Self::HungUp => None,
            Self::TooMany(reply)
            | Self::Unavailable(reply)
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
            // As the method's own failure, whatever it was that failed.
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
                .hint("Try again in a moment. A rule of its HBA file names a host, and its name service does not answer."),
            ),
            Self::NoServerLogin => Some(
                ErrorReply::fatal(
                    SqlState::INVALID_AUTHORIZATION,
                    "the router has no credential to log into the servers as this user",
                )
                .hint("Its operator has to add one to auth.server_credentials."),
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
                    "the users file of the router has just been changed",
                )
                .hint("Try again in two seconds: the new file is in use by then."),
            ),
            Self::Timeout => Some(ErrorReply::fatal(
                SqlState::QUERY_CANCELED,
                "canceling authentication due to timeout",
            )),
        }
    }
}

/// As PostgreSQL words it; why is for the log only.
fn failed(method: &str, user: &[u8]) -> ErrorReply {
    ErrorReply::fatal(
        SqlState::INVALID_AUTHORIZATION,
        format!(
            "{method} authentication failed for user \"{}\"",
            String::from_utf8_lossy(user)
        ),
    )
}
