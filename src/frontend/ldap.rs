//! Asks an LDAP directory whether a client's password is right (PostgreSQL's method `ldap`).
//!
//! Guarantees:
//!
//! - One deadline covers everything. Each server gets a share of the time that is left, so that a
//!   server that does not answer leaves time for the others.
//! - A server can make the router hold at most [`LARGEST_ANSWER`] bytes (and one read), and read at
//!   most [`MAX_BYTES`].
//! - With TLS, certificate and name are verified, and only the `StartTLS` request is sent in clear
//!   text.
//! - No task and no connection outlives the call.
//!
//! Referrals and aliases are not followed. An empty password is refused: many servers take it for
//! an anonymous bind and accept it.

mod trial;

use std::fmt;
use std::io;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;

use crate::auth::ldap::message::{
    LARGEST_ANSWER, LdapAnswer, LdapRequest, LdapResult, MessageError, Operation, message_length,
};
use crate::auth::ldap::{Encryption, LdapServer, LdapSettings, Mode, Search, UnfitName, direct_name};
use crate::names;
use crate::tls::{self, Authorities, AuthorityError, NameCheck, ServerVerifier};

pub use self::trial::try_servers;

/// Limit of bytes read from one server in one login.
pub const MAX_BYTES: usize = 256 * 1024;
/// Limit of messages in one search: references to other parts of the directory are skipped.
const MAX_MESSAGES: usize = 1000;
/// Limit of bytes of a server's diagnostic message in the log.
const LONGEST_DIAGNOSTIC: usize = 200;
/// Two entries are enough to know that there is more than one.
const ENTRIES: u8 = 2;

/// Result codes (RFC 4511, appendix A.1).
const SUCCESS: u32 = 0;
const SIZE_LIMIT_EXCEEDED: u32 = 4;
/// Result codes that concern the user or the password. All others mean that the server or the rule
/// is at fault.
const USER_FAULTS: [u32; 9] = [
    10, // referral: the entry is elsewhere
    16, // noSuchAttribute
    19, // constraintViolation: locked, by some password policies
    32, // noSuchObject
    34, // invalidDNSyntax
    48, // inappropriateAuthentication: an entry without password
    49, // invalidCredentials
    50, // insufficientAccessRights
    53, // unwillingToPerform: locked, in some directories
];

/// Why a client is refused. Both reasons go to the log, never to the client, and contain no
/// password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LdapError {
    /// The directory refuses the login, or the request is not even sent. The client sees the error
    /// of a wrong password.
    #[error("{0}")]
    Refused(String),
    /// No directory gave a usable answer (57P03).
    #[error("{0}")]
    Unavailable(String),
}

impl From<UnfitName> for LdapError {
    fn from(fault: UnfitName) -> Self {
        Self::Refused(fault.to_string())
    }
}

/// Why TLS to directories cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum LdapTlsError {
    #[error(
        "there is no usable root certificate for LDAP, neither in the configuration nor in the system's store"
    )]
    NoRoots,
    #[error("a root certificate for LDAP: {0}")]
    Root(#[from] AuthorityError),
    #[error("TLS cannot be set up: {0}")]
    Setup(rustls::Error),
}

/// TLS to directories with these roots, or with the system's. Certificate and name are always
/// verified.
pub fn tls_config(roots: Option<Vec<CertificateDer<'static>>>) -> Result<Arc<ClientConfig>, LdapTlsError> {
    let authorities = match roots {
        Some(roots) => Authorities::new(&roots)?,
        None => Authorities::system(),
    };
    if authorities.is_empty() {
        return Err(LdapTlsError::NoRoots);
    }
    client_config(authorities)
}

/// TLS for rules that do not use it: it trusts no certificate, and does not need the system's
/// store, which may be empty.
pub fn no_tls_config() -> Result<Arc<ClientConfig>, LdapTlsError> {
    client_config(Authorities::none())
}

fn client_config(authorities: Authorities) -> Result<Arc<ClientConfig>, LdapTlsError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = ServerVerifier::new(NameCheck::ChainAndName, authorities, &provider);
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(LdapTlsError::Setup)?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// Checks `password` for this user with the first server that gives a usable answer.
///
/// Dropping the future closes the connection.
pub async fn authenticate(
    settings: &LdapSettings,
    tls: &Arc<ClientConfig>,
    user: &[u8],
    password: &[u8],
    deadline: Instant,
) -> Result<(), LdapError> {
    if password.is_empty() {
        return Err(LdapError::Refused("the password is empty".to_owned()));
    }
    let request = LoginRequest::new(settings.mode(), user, password)?;
    let mut reasons = Vec::new();
    for (tried, server) in settings.servers().iter().enumerate() {
        let left = u32::try_from(settings.servers().len() - tried).unwrap_or(u32::MAX);
        let now = Instant::now();
        let until = now + deadline.saturating_duration_since(now) / left;
        let answer = timeout_at(until, ask(server, settings.encryption(), tls, &request, until));
        let reason = match answer.await {
            Ok(Err(LdapError::Unavailable(reason))) => reason,
            Ok(result) => return result,
            Err(_) => "no answer in time".to_owned(),
        };
        reasons.push(format!("{server}: {reason}"));
    }
    Err(LdapError::Unavailable(reasons.join("; ")))
}

impl fmt::Display for LdapServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// The request to each server. It is built before the first connection, so that an unusable name
/// costs no connection.
struct LoginRequest<'a> {
    target: Target<'a>,
    password: &'a [u8],
}

enum Target<'a> {
    Name(String),
    Find { search: &'a Search, filter: Vec<u8> },
}

impl<'a> LoginRequest<'a> {
    fn new(mode: &'a Mode, user: &[u8], password: &'a [u8]) -> Result<Self, UnfitName> {
        let target = match mode {
            Mode::Direct { prefix, suffix } => Target::Name(direct_name(prefix, user, suffix)?),
            Mode::Search(search) => Target::Find {
                search,
                filter: search.filter(user)?,
            },
        };
        Ok(Self { target, password })
    }
}

async fn ask(
    server: &LdapServer,
    encryption: Encryption,
    tls: &Arc<ClientConfig>,
    request: &LoginRequest<'_>,
    until: Instant,
) -> Result<(), LdapError> {
    let stream = names::connect(&server.host, server.port)
        .await
        .map_err(|error| io_fault(&error))?;
    // The messages are small, and each waits for the answer to the one before.
    stream.set_nodelay(true).map_err(|error| io_fault(&error))?;
    match encryption {
        Encryption::None => Exchange::new(stream).answer(request, until).await,
        Encryption::Ldaps => {
            let stream = encrypt(stream, server, tls).await?;
            Exchange::new(stream).answer(request, until).await
        }
        Encryption::StartTls => {
            let stream = Exchange::new(stream).start_tls().await?;
            let stream = encrypt(stream, server, tls).await?;
            Exchange::new(stream).answer(request, until).await
        }
    }
}

async fn encrypt(
    stream: TcpStream,
    server: &LdapServer,
    tls: &Arc<ClientConfig>,
) -> Result<tokio_rustls::client::TlsStream<TcpStream>, LdapError> {
    let name = ServerName::try_from(server.host.clone()).map_err(|_| {
        LdapError::Unavailable("its host is not a name that a certificate can contain".to_owned())
    })?;
    TlsConnector::from(Arc::clone(tls))
        .connect(name, stream)
        .await
        .map_err(|error| {
            let reason = tls::of_io(&error).map_or_else(|| error.to_string(), tls::explain);
            LdapError::Unavailable(format!("TLS failed: {reason}"))
        })
}

fn io_fault(error: &io::Error) -> LdapError {
    LdapError::Unavailable(error.to_string())
}

fn not_ldap(fault: MessageError) -> LdapError {
    LdapError::Unavailable(fault.to_string())
}

fn unexpected() -> LdapError {
    LdapError::Unavailable("the answer does not belong to the request".to_owned())
}

/// One connection. A request is sent only after the one before was answered.
struct Exchange<S> {
    stream: S,
    received: Vec<u8>,
    /// Bytes read so far.
    total: usize,
    last_id: u8,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Exchange<S> {
    fn new(stream: S) -> Self {
        Self {
            stream,
            received: Vec::new(),
            total: 0,
            last_id: 0,
        }
    }

    async fn answer(mut self, request: &LoginRequest<'_>, until: Instant) -> Result<(), LdapError> {
        let result = match &request.target {
            Target::Name(name) => self.bind_as_user(name, request.password).await,
            Target::Find { search, filter } => {
                let name = self.find(search, filter, until).await?;
                self.bind_as_user(&name, request.password).await
            }
        };
        // Optional: closing the connection is enough, and the result does not wait for it.
        tokio::select! {
            biased;
            _ = self.send(&LdapRequest::Unbind) => {}
            () = std::future::ready(()) => {}
        }
        result
    }

    /// Binds as the user.
    async fn bind_as_user(&mut self, name: &str, password: &[u8]) -> Result<(), LdapError> {
        let result = self.bind(name, password).await?;
        let reason = || format!("bind as the user: {}", describe(&result, password));
        match result.code {
            SUCCESS => Ok(()),
            code if USER_FAULTS.contains(&code) => Err(LdapError::Refused(reason())),
            _ => Err(LdapError::Unavailable(reason())),
        }
    }

    /// The name of the one entry that matches this user.
    async fn find(&mut self, search: &Search, filter: &[u8], until: Instant) -> Result<String, LdapError> {
        if let Some((name, password)) = &search.searcher {
            let result = self.bind(name, password.expose()).await?;
            if result.code != SUCCESS {
                let reason = describe(&result, password.expose());
                return Err(LdapError::Unavailable(format!("bind as ldapbinddn: {reason}")));
            }
        }
        let left = until.saturating_duration_since(Instant::now()).as_secs() + 1;
        let id = self
            .send(&LdapRequest::Search {
                base: &search.base,
                scope: search.scope,
                entries: ENTRIES,
                seconds: u16::try_from(left).unwrap_or(u16::MAX),
                filter,
            })
            .await?;
        let mut found = None;
        let several = || LdapError::Refused("several entries match the user".to_owned());
        for _ in 0..MAX_MESSAGES {
            match self.receive(id).await? {
                Operation::Entry(_) if found.is_some() => return Err(several()),
                Operation::Entry(name) => found = Some(name),
                Operation::Searched(result) if result.code == SUCCESS => {
                    return match found {
                        // The root entry's name is empty, and a bind without a name is anonymous.
                        Some(name) if !name.is_empty() => Ok(name),
                        _ => Err(LdapError::Refused("no entry matches the user".to_owned())),
                    };
                }
                Operation::Searched(LdapResult {
                    code: SIZE_LIMIT_EXCEEDED,
                    ..
                }) if found.is_some() => {
                    return Err(several());
                }
                Operation::Searched(result) => {
                    return Err(LdapError::Unavailable(format!(
                        "search: {}",
                        describe(&result, b"")
                    )));
                }
                Operation::Reference | Operation::Other => {}
                Operation::Bound(_) | Operation::Extended(_) => return Err(unexpected()),
            }
        }
        Err(LdapError::Unavailable(
            "the answer to a search does not end".to_owned(),
        ))
    }

    async fn bind(&mut self, name: &str, password: &[u8]) -> Result<LdapResult, LdapError> {
        let id = self.send(&LdapRequest::Bind { name, password }).await?;
        match self.receive(id).await? {
            Operation::Bound(result) => Ok(result),
            _ => Err(unexpected()),
        }
    }

    async fn send(&mut self, request: &LdapRequest<'_>) -> Result<i32, LdapError> {
        self.last_id += 1;
        let message = request.encode(self.last_id);
        self.stream
            .write_all(&message)
            .await
            .map_err(|error| io_fault(&error))?;
        self.stream.flush().await.map_err(|error| io_fault(&error))?;
        Ok(i32::from(self.last_id))
    }

    /// The next answer to the request `id`.
    async fn receive(&mut self, id: i32) -> Result<Operation, LdapError> {
        let length = loop {
            let length = message_length(&self.received).map_err(not_ldap)?;
            match length {
                Some(length) if self.received.len() >= length => break length,
                _ => self.read().await?,
            }
        };
        let answer = LdapAnswer::decode(&self.received[..length]).map_err(not_ldap)?;
        self.received.drain(..length);
        match answer.operation {
            Operation::Extended(result) if answer.id == 0 => {
                let reason = describe(&result, b"");
                Err(LdapError::Unavailable(format!(
                    "the server ends the connection: {reason}"
                )))
            }
            operation if answer.id == id => Ok(operation),
            _ => Err(unexpected()),
        }
    }

    async fn read(&mut self) -> Result<(), LdapError> {
        let mut chunk = [0; 4096];
        let count = self
            .stream
            .read(&mut chunk)
            .await
            .map_err(|error| io_fault(&error))?;
        if count == 0 {
            return Err(LdapError::Unavailable(
                "the server closed the connection".to_owned(),
            ));
        }
        self.total += count;
        if self.total > MAX_BYTES {
            return Err(LdapError::Unavailable(format!(
                "more than {MAX_BYTES} bytes of answers"
            )));
        }
        self.received.extend_from_slice(&chunk[..count]);
        debug_assert!(self.received.len() <= LARGEST_ANSWER + chunk.len());
        Ok(())
    }
}

impl Exchange<TcpStream> {
    /// The stream, once the server is ready for the handshake.
    async fn start_tls(mut self) -> Result<TcpStream, LdapError> {
        let id = self.send(&LdapRequest::StartTls).await?;
        match self.receive(id).await? {
            Operation::Extended(result) if result.code == SUCCESS => {}
            Operation::Extended(result) => {
                return Err(LdapError::Unavailable(format!(
                    "StartTLS: {}",
                    describe(&result, b"")
                )));
            }
            _ => return Err(unexpected()),
        }
        // Bytes from before the handshake are not authenticated (as in CVE-2011-0411).
        if !self.received.is_empty() {
            return Err(LdapError::Unavailable(
                "StartTLS: clear text after the answer".to_owned(),
            ));
        }
        Ok(self.stream)
    }
}

/// A result for the log, without the server's message if that repeats the password.
fn describe(result: &LdapResult, password: &[u8]) -> String {
    let message = &result.diagnostic;
    let repeats = !password.is_empty() && message.windows(password.len()).any(|window| window == password);
    let shown = &message[..message.len().min(LONGEST_DIAGNOSTIC)];
    if message.is_empty() || repeats {
        format!("result {}", result.code)
    } else {
        format!("result {} ({})", result.code, shown.escape_ascii())
    }
}
