//! Asks a directory whether a client's password is right (PostgreSQL's method `ldap`).
//!
//! Guarantees: one deadline bounds everything, and each server gets a share of what is left of it, so that a silent one
//! does not cost the others their turn; a server can make us hold at most [`LARGEST_ANSWER`] bytes (and one read) and
//! read [`MOST_BYTES`]; with TLS asked for, certificate and name are verified, and nothing is sent in clear text but the
//! request for it; no task outlives the call, and no connection.
//!
//! Refuses: referrals, aliases, an empty password (which many servers take for an anonymous bind and accept).

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

/// Bytes read from one server in one login.
pub const MOST_BYTES: usize = 256 * 1024;
/// Messages of one search: references to other parts of the directory are passed over.
const MOST_MESSAGES: usize = 1000;
/// Bytes of a server's own words that are logged.
const LONGEST_DIAGNOSTIC: usize = 200;
/// Enough to know that there is more than one.
const ENTRIES: u8 = 2;

/// Result codes (RFC 4511, appendix A.1).
const SUCCESS: u32 = 0;
const SIZE_LIMIT_EXCEEDED: u32 = 4;
/// Those that say something of the user and his password. Every other one says that the server or the rule is at fault.
const VERDICTS: [u32; 9] = [
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

/// Why a client is not let in. Both reasons are for the log, never for the client; no password is in them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LdapError {
    /// The directory says no, or would not even be asked: as after a wrong password.
    #[error("{0}")]
    Refused(String),
    /// Nobody could tell (57P03).
    #[error("{0}")]
    Unavailable(String),
}

impl From<UnfitName> for LdapError {
    fn from(fault: UnfitName) -> Self {
        Self::Refused(fault.to_string())
    }
}

/// Why TLS towards directories cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum LdapTlsError {
    #[error("no usable root certificate for LDAP, neither configured nor in the system's store")]
    NoRoots,
    #[error("a root certificate for LDAP: {0}")]
    Root(#[from] AuthorityError),
    #[error("TLS cannot be set up: {0}")]
    Setup(rustls::Error),
}

/// TLS towards directories: with these roots, or the system's. Certificate and name are always verified.
pub fn tls_config(roots: Option<Vec<CertificateDer<'static>>>) -> Result<Arc<ClientConfig>, LdapTlsError> {
    let authorities = match roots {
        Some(roots) => Authorities::new(&roots)?,
        None => Authorities::system(),
    };
    if authorities.is_empty() {
        return Err(LdapTlsError::NoRoots);
    }
    trusting(authorities)
}

/// TLS for rules that ask for none: it trusts nobody, and needs no certificate of the system's, where there may be none.
pub fn no_tls_config() -> Result<Arc<ClientConfig>, LdapTlsError> {
    trusting(Authorities::none())
}

fn trusting(authorities: Authorities) -> Result<Arc<ClientConfig>, LdapTlsError> {
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

/// Whether `password` is this user's, by the first server that can tell.
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
    let question = Question::new(settings.mode(), user, password)?;
    let mut reasons = Vec::new();
    for (tried, server) in settings.servers().iter().enumerate() {
        let left = u32::try_from(settings.servers().len() - tried).unwrap_or(u32::MAX);
        let now = Instant::now();
        let until = now + deadline.saturating_duration_since(now) / left;
        let asked = timeout_at(until, ask(server, settings.encryption(), tls, &question, until));
        let reason = match asked.await {
            Ok(Err(LdapError::Unavailable(reason))) => reason,
            Ok(verdict) => return verdict,
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

/// What every server is asked, made before the first connection: an unfit name costs none.
struct Question<'a> {
    target: Target<'a>,
    password: &'a [u8],
}

enum Target<'a> {
    Name(String),
    Find { search: &'a Search, filter: Vec<u8> },
}

impl<'a> Question<'a> {
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
    question: &Question<'_>,
    until: Instant,
) -> Result<(), LdapError> {
    let stream = names::connect(&server.host, server.port)
        .await
        .map_err(|error| lost(&error))?;
    // Small messages, each waited for.
    stream.set_nodelay(true).map_err(|error| lost(&error))?;
    match encryption {
        Encryption::None => Exchange::new(stream).answer(question, until).await,
        Encryption::Ldaps => {
            let stream = encrypt(stream, server, tls).await?;
            Exchange::new(stream).answer(question, until).await
        }
        Encryption::StartTls => {
            let stream = Exchange::new(stream).start_tls().await?;
            let stream = encrypt(stream, server, tls).await?;
            Exchange::new(stream).answer(question, until).await
        }
    }
}

async fn encrypt(
    stream: TcpStream,
    server: &LdapServer,
    tls: &Arc<ClientConfig>,
) -> Result<tokio_rustls::client::TlsStream<TcpStream>, LdapError> {
    let name = ServerName::try_from(server.host.clone())
        .map_err(|_| LdapError::Unavailable("its host is not a name a certificate can have".to_owned()))?;
    TlsConnector::from(Arc::clone(tls))
        .connect(name, stream)
        .await
        .map_err(|error| {
            let reason = tls::of_io(&error).map_or_else(|| error.to_string(), tls::explain);
            LdapError::Unavailable(format!("TLS failed: {reason}"))
        })
}

fn lost(error: &io::Error) -> LdapError {
    LdapError::Unavailable(error.to_string())
}

fn not_ldap(fault: MessageError) -> LdapError {
    LdapError::Unavailable(fault.to_string())
}

fn unexpected() -> LdapError {
    LdapError::Unavailable("the answer does not belong to the request".to_owned())
}

/// One connection; a request is sent when the one before is answered.
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

    async fn answer(mut self, question: &Question<'_>, until: Instant) -> Result<(), LdapError> {
        let verdict = match &question.target {
            Target::Name(name) => self.prove(name, question.password).await,
            Target::Find { search, filter } => {
                let name = self.find(search, filter, until).await?;
                self.prove(&name, question.password).await
            }
        };
        // A courtesy: closing would do, and the verdict does not wait for it.
        tokio::select! {
            biased;
            _ = self.send(&LdapRequest::Unbind) => {}
            () = std::future::ready(()) => {}
        }
        verdict
    }

    /// Binds as the user.
    async fn prove(&mut self, name: &str, password: &[u8]) -> Result<(), LdapError> {
        let outcome = self.bind(name, password).await?;
        let reason = || format!("bind as the user: {}", describe(&outcome, password));
        match outcome.code {
            SUCCESS => Ok(()),
            code if VERDICTS.contains(&code) => Err(LdapError::Refused(reason())),
            _ => Err(LdapError::Unavailable(reason())),
        }
    }

    /// The name of the one entry that is this user.
    async fn find(&mut self, search: &Search, filter: &[u8], until: Instant) -> Result<String, LdapError> {
        if let Some((name, password)) = &search.searcher {
            let outcome = self.bind(name, password.expose()).await?;
            if outcome.code != SUCCESS {
                let reason = describe(&outcome, password.expose());
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
        for _ in 0..MOST_MESSAGES {
            match self.receive(id).await? {
                Operation::Entry(_) if found.is_some() => return Err(several()),
                Operation::Entry(name) => found = Some(name),
                Operation::Searched(outcome) if outcome.code == SUCCESS => {
                    return match found {
                        // The root's name is empty, and a bind without a name is anonymous.
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
                Operation::Searched(outcome) => {
                    return Err(LdapError::Unavailable(format!(
                        "search: {}",
                        describe(&outcome, b"")
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
            Operation::Bound(outcome) => Ok(outcome),
            _ => Err(unexpected()),
        }
    }

    async fn send(&mut self, request: &LdapRequest<'_>) -> Result<i32, LdapError> {
        self.last_id += 1;
        let message = request.encode(self.last_id);
        self.stream
            .write_all(&message)
            .await
            .map_err(|error| lost(&error))?;
        self.stream.flush().await.map_err(|error| lost(&error))?;
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
            Operation::Extended(outcome) if answer.id == 0 => {
                let reason = describe(&outcome, b"");
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
        let count = self.stream.read(&mut chunk).await.map_err(|error| lost(&error))?;
        if count == 0 {
            return Err(LdapError::Unavailable(
                "the server closed the connection".to_owned(),
            ));
        }
        self.total += count;
        if self.total > MOST_BYTES {
            return Err(LdapError::Unavailable(format!(
                "more than {MOST_BYTES} bytes of answers"
            )));
        }
        self.received.extend_from_slice(&chunk[..count]);
        debug_assert!(self.received.len() <= LARGEST_ANSWER + chunk.len());
        Ok(())
    }
}

impl Exchange<TcpStream> {
    /// The stream, when the server is ready for the handshake.
    async fn start_tls(mut self) -> Result<TcpStream, LdapError> {
        let id = self.send(&LdapRequest::StartTls).await?;
        match self.receive(id).await? {
            Operation::Extended(outcome) if outcome.code == SUCCESS => {}
            Operation::Extended(outcome) => {
                return Err(LdapError::Unavailable(format!(
                    "StartTLS: {}",
                    describe(&outcome, b"")
                )));
            }
            _ => return Err(unexpected()),
        }
        // Bytes from before the handshake are not the server's word (as in CVE-2011-0411).
        if !self.received.is_empty() {
            return Err(LdapError::Unavailable(
                "StartTLS: clear text after the answer".to_owned(),
            ));
        }
        Ok(self.stream)
    }
}

/// An outcome for the log; without the server's words if they repeat the password.
fn describe(outcome: &LdapResult, password: &[u8]) -> String {
    let words = &outcome.diagnostic;
    let repeats = !password.is_empty() && words.windows(password.len()).any(|window| window == password);
    let shown = &words[..words.len().min(LONGEST_DIAGNOSTIC)];
    if words.is_empty() || repeats {
        format!("result {}", outcome.code)
    } else {
        format!("result {} ({})", outcome.code, shown.escape_ascii())
    }
}
