use std::io;
use std::net::SocketAddr;

use bytes::Bytes;
use rustix::io::Errno;

use crate::auth::scram::ServerScramError;
use crate::tls;
use crate::wire::frame::ErrorFields;
use crate::wire::message::ErrorReply;
use crate::wire::sqlstate::SqlState;

/// What a connection was doing when it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    Resolve,
    Connect,
    TlsRequest,
    TlsHandshake,
    Login,
    /// The login of a server that has answered on this connection. Settings of the client's can
    /// make it slow (`post_auth_delay`), and the server keeps `AuthenticationOk` back until the
    /// session is ready.
    Start,
    Query,
    Cancel,
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Resolve => "name resolution",
            Self::Connect => "connecting",
            Self::TlsRequest => "the TLS request",
            Self::TlsHandshake => "the TLS handshake",
            Self::Login => "login",
            Self::Start => "the start of the session",
            Self::Query => "a query",
            Self::Cancel => "a cancel request",
        })
    }
}

/// Why there is no server connection, or no answer on it. `Display` is for the operator's log; a
/// client is shown [`ConnectError::client_reply`] only.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("cannot resolve \"{host}\": {source}")]
    Resolve { host: String, source: io::Error },
    #[error("{address} refused the connection (no server listens there)")]
    Refused { address: SocketAddr },
    /// Any other failure of TCP's connect.
    #[error("cannot connect to {address}: {source}")]
    Unreachable { address: SocketAddr, source: io::Error },
    /// File descriptors, ports or memory of this host: not the server's failure.
    #[error(
        "out of local resources: {source} (raise the open-file limit, or widen the range of local ports)"
    )]
    LocalResources { source: io::Error },
    #[error("time ran out during {step}")]
    Timeout { step: Step },
    #[error("the connection broke during {step}: {source}")]
    Lost { step: Step, source: io::Error },
    #[error("the server closed the connection during {step}")]
    Closed { step: Step },
    #[error("the server refused TLS, which the configured sslmode demands")]
    TlsRefused,
    /// Anybody on the network can have written this text (CVE-2024-10977): escaped and cut, for the
    /// log only.
    #[error("the server answered the TLS request with an error (unauthenticated text: \"{text}\")")]
    ErrorBeforeTls { text: String },
    #[error("TLS failed: {reason}")]
    Tls { reason: String },
    /// With `prefer`: encrypted it came to nothing, and in clear the server does not admit this
    /// login.
    #[error("TLS failed: {reason}; without TLS the server does not admit this login")]
    TlsThenRefused { reason: String },
    #[error(
        "the server did not take direct TLS: {reason} (PostgreSQL has it since version 17; \
         older ones need sslnegotiation: postgres)"
    )]
    DirectTls { reason: &'static str },
    #[error("the server's certificate was not accepted: {reason}")]
    Certificate { reason: String },
    #[error("the server broke the protocol during {step}: {what}")]
    Protocol { step: Step, what: String },
    /// The server's own `ErrorResponse`.
    #[error(transparent)]
    Server(#[from] Box<ServerError>),
    /// The client's key does not fit this server, though it fitted the verifier it was checked
    /// against: a replica that has not replayed a password change, or a change since the last
    /// look-up.
    #[error("the verifier of this user differs on this server ({reason})")]
    VerifierDiffers { reason: &'static str },
    /// The server did not prove that it knows the verifier.
    #[error("the server did not prove its identity in SCRAM: {reason}")]
    NotProven { reason: String },
    /// SCRAM was not, or could not be, bound to the TLS connection: a server that is set up
    /// otherwise than `channel_binding: require` demands, or a man in the middle.
    #[error("no channel binding with the server: {reason}")]
    ChannelBinding { reason: &'static str },
    #[error("the server asks for {method} authentication, which the router cannot answer for this user")]
    UnsupportedMethod { method: &'static str },
    #[error("the server asks for the password in clear on a connection without TLS")]
    CleartextRefused,
    /// By `server_tls.require_auth`, or because nothing has shown that it is the right server.
    #[error("the server asks for {what}, which is refused: {}", refused_because(name, *is_configured))]
    MethodRefused {
        what: &'static str,
        /// In `require_auth`.
        name: &'static str,
        is_configured: bool,
    },
    #[error("the server asks for {method} authentication and there is no credential for this user")]
    NoCredential { method: &'static str },
    #[error("the answer is larger than allowed")]
    AnswerTooLarge,
}

/// An `ErrorResponse` (`PostgreSQL` documentation, "Error and Notice Message Fields"). Text that is
/// not UTF-8 is replaced in the fields, never in `frame`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerError {
    /// Not localised (`V`) where the server sends it.
    pub severity: String,
    pub code: SqlState,
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
    /// The whole frame as received, at most 64 KiB.
    pub frame: Bytes,
    /// The line `pg_hba.conf` needs, where the server refused this router's address.
    pub hba_line: Option<String>,
}

impl std::error::Error for ServerError {}

impl std::fmt::Display for ServerError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "the server reported {} {}: {}",
            self.severity,
            self.code,
            // Quotes are as they came: a log puts the whole into quotes, and a terminal needs none.
            escape(self.message.as_bytes(), 1000)
                .replace("\\\"", "\"")
                .replace("\\'", "'")
        )?;
        if let Some(line) = &self.hba_line {
            write!(
                f,
                " (on every server, pg_hba.conf needs, above any line that rejects this login: {line})"
            )?;
        }
        Ok(())
    }
}

impl ServerError {
    /// Parses the fields of an `E` frame's body; `None` where it is malformed.
    pub(crate) fn parse(body: &[u8], frame: Bytes) -> Option<Self> {
        let ErrorFields {
            severity,
            code,
            message,
            detail,
            hint,
        } = ErrorFields::parse(body).ok()?;
        Some(Self {
            severity,
            code,
            message,
            detail,
            hint,
            frame,
            hba_line: None,
        })
    }

    /// Whether the server ends the connection after this error.
    pub fn is_fatal(&self) -> bool {
        self.severity != "ERROR"
    }

    /// Whether another server may answer otherwise: out of something (53), ended or not open by an
    /// operator's will (57), failures of its system (58) and its own (XX). A dropped database
    /// (57P04) is dropped everywhere. A `pg_hba.conf` that does not let the router in is this
    /// server's own: each has another file, and one that was forgotten must not take all logins,
    /// which it attracts because it never has sessions.
    fn may_be_this_server(&self) -> bool {
        self.hba_line.is_some() || self.is_in_trouble()
    }

    /// Whether the server works and refused this login: a wrong database, user or password, a
    /// missing right, or a line of `pg_hba.conf`.
    pub(crate) fn refuses_login(&self) -> bool {
        !self.is_in_trouble()
    }

    /// One of the classes that tell of a server's own trouble, or of what a client can make look
    /// like it.
    fn is_in_trouble(&self) -> bool {
        [*b"53", *b"57", *b"58", *b"XX"]
            .into_iter()
            .any(|class| self.code.is_in_class(class))
            && self.code != SqlState::DATABASE_DROPPED
    }

    /// Too many connections: of the server, of the role or of the database.
    pub fn is_full(&self) -> bool {
        self.code == SqlState::TOO_MANY_CONNECTIONS
    }

    /// 57P01, 57P02, 57P03.
    fn is_unavailable(&self) -> bool {
        matches!(
            self.code,
            SqlState::ADMIN_SHUTDOWN | SqlState::CRASH_SHUTDOWN | SqlState::CANNOT_CONNECT_NOW
        )
    }
}

/// What a client is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientReply {
    /// The server's own `ErrorResponse`, to be forwarded as it is.
    Verbatim(Bytes),
    /// Ours.
    Own(ErrorReply),
}

/// What a failed login says of the server, where the login was a client's. A role can make its own
/// logins wait, end and fail as it likes: by locks on catalogs, `pg_terminate_backend`,
/// `DROP DATABASE … (FORCE)`, settings of the role and the database, login triggers that raise any
/// SQLSTATE. So that only what comes before the startup packet is believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Suspicion {
    /// The server answered this login, or the router could not even try.
    None,
    /// The server may be unfit, or this login only: a probe has to look.
    Possible,
    /// Nothing of the login's was sent yet: other logins are likely to fail, too. A probe has to
    /// look.
    Likely,
    /// The server's port is closed.
    Certain,
}

impl ConnectError {
    /// What it says of the server, where the login was a client's.
    pub fn suspicion(&self) -> Suspicion {
        match self {
            Self::Refused { .. } => Suspicion::Certain,
            Self::Resolve { .. }
            | Self::Unreachable { .. }
            | Self::TlsRefused
            | Self::ErrorBeforeTls { .. }
            | Self::Tls { .. }
            | Self::DirectTls { .. }
            | Self::Certificate { .. } => Suspicion::Likely,
            Self::Timeout { step }
            | Self::Lost { step, .. }
            | Self::Closed { step }
            | Self::Protocol { step, .. } => match step {
                Step::Resolve | Step::Connect | Step::TlsRequest | Step::TlsHandshake => Suspicion::Likely,
                Step::Login | Step::Start | Step::Query | Step::Cancel => Suspicion::Possible,
            },
            // A full server is up, and the limit may be the role's or the database's own.
            Self::Server(error) if error.is_in_trouble() && !error.is_full() => Suspicion::Possible,
            Self::Server(_)
            | Self::TlsThenRefused { .. }
            | Self::LocalResources { .. }
            | Self::VerifierDiffers { .. }
            | Self::NotProven { .. }
            | Self::ChannelBinding { .. }
            | Self::UnsupportedMethod { .. }
            | Self::CleartextRefused
            | Self::MethodRefused { .. }
            | Self::NoCredential { .. }
            | Self::AnswerTooLarge => Suspicion::None,
        }
    }

    /// Whether it may be that of a server that stops, starts, or is cut off, so that another try,
    /// or another server, may do soon. What only a change of the configuration ends is not.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Refused { .. }
            | Self::Unreachable { .. }
            | Self::Timeout { .. }
            | Self::Lost { .. }
            | Self::Closed { .. } => true,
            Self::Server(error) => error.is_in_trouble() && !error.is_full(),
            _ => false,
        }
    }

    /// Whether the next candidate may be tried: what failed is this server or the way to it, not
    /// the client's login.
    pub fn is_temporary_or_elsewhere(&self) -> bool {
        match self {
            Self::Resolve { .. }
            | Self::Refused { .. }
            | Self::Unreachable { .. }
            | Self::Timeout { .. }
            | Self::Lost { .. }
            | Self::Closed { .. }
            | Self::TlsRefused
            | Self::ErrorBeforeTls { .. }
            | Self::Tls { .. }
            | Self::TlsThenRefused { .. }
            | Self::DirectTls { .. }
            | Self::Certificate { .. }
            | Self::Protocol { .. }
            | Self::VerifierDiffers { .. }
            | Self::NotProven { .. }
            | Self::ChannelBinding { .. }
            | Self::MethodRefused { .. } => true,
            Self::Server(error) => error.may_be_this_server(),
            Self::LocalResources { .. }
            | Self::UnsupportedMethod { .. }
            | Self::CleartextRefused
            | Self::NoCredential { .. }
            | Self::AnswerTooLarge => false,
        }
    }

    /// Whether a probe that fails so is evidence that the member is not fit; of a client's login
    /// see [`Self::suspicion`]. A wrong password, a missing database, a full server, a name service
    /// that does not answer and this host's own limits are not.
    pub fn counts_against_member(&self) -> bool {
        match self {
            // The owner of the service account's database can make sessions there start slowly.
            Self::Timeout { step } => !matches!(step, Step::Start | Step::Resolve),
            Self::Refused { .. }
            | Self::Unreachable { .. }
            | Self::Lost { .. }
            | Self::Closed { .. }
            | Self::TlsRefused
            | Self::ErrorBeforeTls { .. }
            | Self::Tls { .. }
            | Self::TlsThenRefused { .. }
            | Self::DirectTls { .. }
            | Self::Certificate { .. }
            | Self::Protocol { .. } => true,
            Self::Server(error) => error.is_unavailable(),
            Self::Resolve { .. }
            | Self::LocalResources { .. }
            | Self::VerifierDiffers { .. }
            | Self::NotProven { .. }
            | Self::ChannelBinding { .. }
            | Self::MethodRefused { .. }
            | Self::UnsupportedMethod { .. }
            | Self::CleartextRefused
            | Self::NoCredential { .. }
            | Self::AnswerTooLarge => false,
        }
    }

    /// Whether the connection of a query that failed so can be used again.
    pub fn leaves_usable(&self) -> bool {
        matches!(self, Self::Server(error) if !error.is_fatal())
    }

    /// One of a fixed set.
    pub fn metrics_label(&self) -> &'static str {
        match self {
            Self::Resolve { .. } => "resolve",
            Self::Refused { .. } => "refused",
            Self::Unreachable { .. } => "unreachable",
            Self::LocalResources { .. } => "local_resources",
            Self::Timeout { step } => match step {
                Step::Resolve => "timeout_resolve",
                Step::Connect => "timeout_connect",
                Step::TlsRequest | Step::TlsHandshake => "timeout_tls",
                Step::Login => "timeout_login",
                Step::Start => "timeout_start",
                Step::Query => "timeout_query",
                Step::Cancel => "timeout_cancel",
            },
            Self::Lost { .. } => "lost",
            Self::Closed { .. } => "closed",
            Self::TlsRefused | Self::ErrorBeforeTls { .. } => "tls_refused",
            Self::Tls { .. } | Self::TlsThenRefused { .. } | Self::DirectTls { .. } => "tls",
            Self::Certificate { .. } => "certificate",
            Self::Protocol { .. } => "protocol",
            Self::Server(error) if error.is_unavailable() => "server_unavailable",
            Self::Server(error) if error.is_full() => "server_full",
            Self::Server(_) => "server_error",
            Self::VerifierDiffers { .. } => "verifier_differs",
            Self::NotProven { .. } => "not_proven",
            Self::ChannelBinding { .. } => "channel_binding",
            Self::UnsupportedMethod { .. }
            | Self::CleartextRefused
            | Self::MethodRefused { .. }
            | Self::NoCredential { .. } => "auth_method",
            Self::AnswerTooLarge => "too_large",
        }
    }

    /// What an authenticated client is told; `server` is the member's name. Nothing here comes from
    /// `Display`.
    pub fn client_reply(&self, server: &str) -> ClientReply {
        let now = |message: String| ErrorReply::fatal(SqlState::CANNOT_CONNECT_NOW, message);
        let failure = |message: String| ErrorReply::fatal(SqlState::CONNECTION_FAILURE, message);
        ClientReply::Own(match self {
            Self::Server(error) => match &error.hba_line {
                Some(line) => hba_reply(error, line),
                None => return ClientReply::Verbatim(error.frame.clone()),
            },
            Self::Resolve { .. } => now(format!(
                "the address of server \"{server}\" could not be resolved"
            ))
            .hint("Try again later; the operator should check the router's DNS."),
            Self::Refused { .. } => now(format!("server \"{server}\" refused the router's connection"))
                .hint("It is probably restarting. Try again later."),
            Self::Unreachable { .. } => now(format!("server \"{server}\" cannot be reached"))
                .hint("Try again later; the operator should check the network between router and server."),
            Self::LocalResources { .. } => ErrorReply::fatal(
                SqlState::TOO_MANY_CONNECTIONS,
                "the router is out of connections to servers",
            )
            .hint("Try again later; the operator should raise the router's open-file limit."),
            Self::Timeout { step } => now(format!("server \"{server}\" did not answer in time"))
                .detail(format!("Time ran out during {step}."))
                .hint("Try again later."),
            Self::Lost { .. } | Self::Closed { .. } => now(format!(
                "server \"{server}\" closed the connection before it was ready"
            ))
            .hint("It is probably shutting down. Try again later."),
            Self::TlsRefused => failure(format!(
                "server \"{server}\" does not offer TLS, which the router demands"
            ))
            .hint("The operator should set ssl = on on the server, or a weaker server_tls.sslmode."),
            Self::ErrorBeforeTls { .. } => {
                now(format!("server \"{server}\" failed before encryption was set up"))
                    .hint("Try again later; the router's log has the details.")
            }
            Self::Tls { .. } | Self::TlsThenRefused { .. } => failure(format!("TLS between the router and server \"{server}\" failed"))
                .hint("The router's log has the details."),
            Self::DirectTls { .. } => failure(format!("server \"{server}\" does not take direct TLS")).hint(
                "PostgreSQL has it since version 17. The operator should set server_tls.sslnegotiation to postgres.",
            ),
            Self::Certificate { .. } => failure(format!(
                "the router did not accept the certificate of server \"{server}\""
            ))
            .hint("The operator should check server_tls; the router's log has the details."),
            Self::Protocol { .. } => failure(format!("server \"{server}\" broke the protocol"))
                .hint("Is it a PostgreSQL server? The router's log has the details."),
            Self::VerifierDiffers { .. } => now(format!(
                "server \"{server}\" does not have the current password of this user yet"
            ))
            .hint(
                "If the password was changed a moment ago, try again later. Otherwise the operator should compare what \
                 the router knows (auth.users_file, if it is set) with the server.",
            ),
            Self::NotProven { .. } => failure(format!("server \"{server}\" did not prove its identity"))
                .hint("The router's log has the details."),
            Self::ChannelBinding { .. } => failure(format!(
                "the router could not bind its login at server \"{server}\" to the TLS connection"
            ))
            .hint(
                "The operator should use TLS and scram-sha-256 on the server and have nothing in between that ends TLS, \
                 or set a weaker server_tls.channel_binding; the router's log has the details.",
            ),
            Self::UnsupportedMethod { method } | Self::NoCredential { method } => failure(format!(
                "server \"{server}\" asks for {method} authentication, which the router cannot answer"
            ))
            .hint("The server's pg_hba.conf should ask for scram-sha-256 from the router's address."),
            Self::CleartextRefused => failure(format!(
                "server \"{server}\" asks for a password in clear without TLS"
            ))
            .hint("The operator should use TLS towards the server, or scram-sha-256 in its pg_hba.conf."),
            Self::MethodRefused {
                what,
                name,
                is_configured,
            } => failure(format!("server \"{server}\" asks for {what}, which the router refuses")).hint(
                if *is_configured {
                    format!(
                        "The operator should set scram-sha-256 in the server's pg_hba.conf, or add {name} to \
                         server_tls.require_auth."
                    )
                } else {
                    format!(
                        "The operator should set scram-sha-256 in the server's pg_hba.conf, have the server's certificate \
                         verified (server_tls.sslmode and sslrootcert), or name {name} in server_tls.require_auth."
                    )
                },
            ),
            Self::AnswerTooLarge => ErrorReply::fatal(
                SqlState::INTERNAL_ERROR,
                "the server's answer is larger than allowed",
            ),
        })
    }

    pub(crate) fn protocol(step: Step, what: impl Into<String>) -> Self {
        Self::Protocol {
            step,
            what: what.into(),
        }
    }

    /// Classifies an IO error on an established connection.
    pub(crate) fn io(step: Step, source: io::Error) -> Self {
        if is_local(&source) {
            return Self::LocalResources { source };
        }
        if let Some(error) = tls::of_io(&source) {
            let reason = tls::explain(error);
            return match error {
                rustls::Error::InvalidCertificate(_) => Self::Certificate { reason },
                _ => Self::Tls { reason },
            };
        }
        match source.kind() {
            io::ErrorKind::UnexpectedEof => Self::Closed { step },
            _ => Self::Lost { step, source },
        }
    }

    pub(crate) fn scram(error: ServerScramError) -> Self {
        match error {
            ServerScramError::VerifierDiffers => Self::VerifierDiffers {
                reason: "its salt or iteration count is another one",
            },
            other => Self::NotProven {
                reason: other.to_string(),
            },
        }
    }
}

fn hba_reply(error: &ServerError, line: &str) -> ErrorReply {
    let reply = ErrorReply::fatal(SqlState::INVALID_AUTHORIZATION, error.message.clone()).hint(format!(
        "Ask the operator to admit the router on every server (with Patroni: `patronictl edit-config`, `postgresql.pg_hba`): \
         pg_hba.conf needs, above any line that rejects this login: {line}"
    ));
    match &error.detail {
        Some(detail) => reply.detail(detail.clone()),
        None => reply,
    }
}

fn refused_because(name: &str, is_configured: bool) -> String {
    if is_configured {
        format!("server_tls.require_auth leaves out {name}")
    } else {
        format!(
            "nothing has shown that it is the right server (set scram-sha-256 in its pg_hba.conf, or have its certificate \
             verified: server_tls.sslmode and sslrootcert; or name {name} in server_tls.require_auth)"
        )
    }
}

/// Whether an IO error tells of this host's limits (EMFILE, ENFILE, ENOBUFS, ENOMEM, no free local
/// port).
pub(crate) fn is_local(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::AddrNotAvailable | io::ErrorKind::OutOfMemory
    ) || matches!(
        Errno::from_io_error(error),
        Some(Errno::NFILE | Errno::MFILE | Errno::NOBUFS)
    )
}

/// Untrusted bytes as printable ASCII, at most `limit` bytes of input.
pub(crate) fn escape(bytes: &[u8], limit: usize) -> String {
    let mut text = bytes[..bytes.len().min(limit)].escape_ascii().to_string();
    if bytes.len() > limit {
        text.push('…');
    }
    text
}

#[cfg(test)]
#[path = "error_tests.rs"]
mod tests;
