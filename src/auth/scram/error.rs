//! Errors of an exchange, and the answer to the client.

use crate::wire::message::ErrorReply;
use crate::wire::sqlstate::SqlState;

/// What a client did wrong in its login. The texts are PostgreSQL's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScramError {
    #[error("client selected an invalid SASL authentication mechanism")]
    Mechanism,
    #[error("malformed SCRAM message: {0}")]
    Malformed(String),
    #[error("client uses authorization identity, but it is not supported")]
    AuthorizationIdentity,
    #[error("client requires an unsupported SCRAM extension")]
    Extension,
    #[error("non-printable characters in SCRAM nonce")]
    NonceCharacters,
    #[error("unexpected SCRAM channel-binding attribute in client-final-message")]
    ChannelBinding,
    /// The client could bind and saw no offer: an attacker removed -PLUS from the list.
    #[error("SCRAM channel binding negotiation error")]
    Downgrade,
    /// At most 30 characters of the type, printable ASCII.
    #[error("unsupported SCRAM channel-binding type \"{0}\"")]
    BindingType(String),
    /// The client saw another certificate than the router's: a man in the middle.
    #[error("SCRAM channel binding check failed")]
    BindingMismatch,
    #[error("invalid SCRAM response: Nonce does not match.")]
    Nonce,
    /// A wrong password, or no such user, or a user without password: never distinguished.
    #[error("password authentication failed")]
    Proof,
}

impl ScramError {
    /// The answer to the client: 28P01 for a failed proof, else PostgreSQL's error for a broken
    /// client.
    pub fn reply(&self, user: &[u8]) -> ErrorReply {
        let violation = |text: &str| ErrorReply::fatal(SqlState::PROTOCOL_VIOLATION, text);
        match self {
            Self::Malformed(detail) => violation("malformed SCRAM message").detail(detail.clone()),
            Self::Nonce => violation("invalid SCRAM response").detail("Nonce does not match."),
            Self::Mechanism | Self::NonceCharacters | Self::ChannelBinding | Self::BindingType(_) => {
                violation(&self.to_string())
            }
            Self::Downgrade => ErrorReply::fatal(SqlState::INVALID_AUTHORIZATION, self.to_string()).detail(
                "The client supports SCRAM channel binding but thinks the server does not.  However, this server does \
                 support channel binding.",
            ),
            Self::BindingMismatch => ErrorReply::fatal(SqlState::INVALID_AUTHORIZATION, self.to_string()),
            Self::AuthorizationIdentity | Self::Extension => {
                ErrorReply::fatal(SqlState::FEATURE_NOT_SUPPORTED, self.to_string())
            }
            Self::Proof => password_failed(user),
        }
    }

    /// Whether the login was well-formed and merely wrong: the kind worth counting as a failed
    /// login.
    pub fn is_wrong_password(&self) -> bool {
        matches!(self, Self::Proof)
    }
}

/// PostgreSQL's one answer to every failed login by password.
pub fn password_failed(user: &[u8]) -> ErrorReply {
    let user = String::from_utf8_lossy(user);
    ErrorReply::fatal(
        SqlState::INVALID_PASSWORD,
        format!("password authentication failed for user \"{user}\""),
    )
}

/// Why a login into a server is given up. Never shown to a client: the caller maps it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ServerScramError {
    #[error("malformed SCRAM message from the server: {0}")]
    Malformed(&'static str),
    #[error("the server requires an unsupported SCRAM extension")]
    Extension,
    /// It does not continue the router's nonce, or adds nothing to it: a replayed exchange.
    #[error("the server's SCRAM nonce does not continue the router's")]
    Nonce,
    /// Work that only a hostile server asks for (case of CVE-2026-42198).
    #[error(
        "the server asks for more than {max} SCRAM iterations, the most that are computed (set the password again with \
         a lower scram_iterations)",
        max = super::client::MAX_ITERATIONS
    )]
    Iterations,
    /// The server's salt or iterations are not those of the verifier the client's key belongs to:
    /// for instance a replica that has not replayed a password change. Another server may still
    /// fit.
    #[error("the server's SCRAM verifier is not the one the client was authenticated against")]
    VerifierDiffers,
    /// It did not prove that it knows the verifier: an impostor, or a server with another verifier.
    #[error("the server's SCRAM signature is wrong")]
    Signature,
    /// An `e=` answer, printable ASCII, at most 100 bytes.
    #[error("the server refused the SCRAM exchange: {0}")]
    Refused(String),
}
