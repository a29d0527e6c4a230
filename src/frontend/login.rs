//! Login of a client: version negotiation, the choice of the rule, and the exchange that the rule
//! requires (protocol chapter, "Start-up" and "SASL Authentication"; docs/protocol.md, cases 8–29).
//! There is one module for each kind of exchange.

use std::net::IpAddr;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;
use zeroize::Zeroize;

use super::auth_policy::AuthPolicy;
use super::derivations::Derivations;
use super::tls::TlsFacts;
use super::{ClientAddress, ClientStream, interfaces, resolve};
use crate::auth::Identity;
use crate::auth::credentials::{Proof, ServerLogin};
use crate::auth::login_throttle::Guess;
use crate::auth::lookup::LookupAnswer;
use crate::auth::rules::{
    ClientCertificate, Decision, Facts, HostName, Interface, Known, Memberships, Method, Need, Origin, Rule,
    Step,
};
use crate::auth::scram::{self, MockSecret};
use crate::cluster::{ClusterHandle, LookupError};
use crate::wire::frame::{self, Frame};
use crate::wire::message;
use crate::wire::startup::StartupPacket;

mod error;
mod name;
mod password;
mod sasl;

pub use error::{LoginError, Offence};

/// The longest password, its terminating zero and the length field. Tokens of some cloud providers
/// are almost as long (case 25). PostgreSQL itself accepts five bytes less.
const LARGEST_PASSWORD_MESSAGE: usize = scram::MAX_PASSWORD + 1 + 4;

/// Proof that a client is authenticated. Only [`Exchange::run`] creates it.
#[derive(Debug)]
pub struct Authenticated {
    server_login: Option<ServerLogin>,
    has_proven: bool,
    is_bound: bool,
    /// The last message of the exchange and AuthenticationOk. They are sent together with the
    /// messages that follow.
    final_messages: BytesMut,
}

impl Authenticated {
    /// Whether the client has proven anything. `trust` asks for no proof, so such a login does not
    /// reset the count of failed logins.
    pub fn has_proven(&self) -> bool {
        self.has_proven
    }

    /// Whether the proof is bound to the certificate that the router presented
    /// (SCRAM-SHA-256-PLUS).
    pub fn is_bound(&self) -> bool {
        self.is_bound
    }

    /// How to log into a server as this client (`None` for the console), and the messages that the
    /// client must receive first.
    pub fn into_parts(self) -> (Option<ServerLogin>, BytesMut) {
        (self.server_login, self.final_messages)
    }
}

/// What an authenticated client is connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    Servers,
    /// The router's console, which needs no server.
    Console,
}

/// Everything that a login depends on.
#[derive(Debug, Clone, Copy)]
pub struct LoginContext<'a> {
    pub policy: &'a AuthPolicy,
    pub destination: Destination,
    pub cluster: &'a ClusterHandle,
    pub mock: &'a Arc<MockSecret>,
    /// Limits how many cleartext passwords are checked at once.
    pub derivations: &'a Arc<Derivations>,
    pub deadline: Instant,
}

/// Answers a newer minor version or unknown protocol options with one NegotiateProtocolVersion
/// (case 8).
pub async fn negotiate(stream: &mut ClientStream, packet: &StartupPacket) -> Result<(), LoginError> {
    let Some(negotiation) = packet.negotiation() else {
        return Ok(());
    };
    let mut out = BytesMut::new();
    message::negotiate_protocol_version(&mut out, negotiation.served, &negotiation.unknown_options);
    send(stream, &out).await
}

/// One running login.
#[derive(Debug)]
pub struct Exchange<'a> {
    stream: &'a mut ClientStream,
    packet: &'a StartupPacket,
    address: ClientAddress,
    tls: Option<&'a TlsFacts>,
    context: LoginContext<'a>,
    memberships: Option<LookupAnswer<Arc<Memberships>>>,
    /// The proof was checked against a remembered answer that no server can confirm now.
    is_unconfirmed: bool,
    /// Bytes that were read and not parsed yet.
    buffer: BytesMut,
}

/// The rule that decided. Next: [`Exchange::run`].
#[derive(Debug, Clone, Copy)]
pub struct Decided<'a> {
    index: usize,
    rule: &'a Rule,
}

/// The result of an authentication method.
struct ExchangeResult {
    proof: Proof,
    /// `None` if it was not looked up, or not found.
    identity: Option<Identity>,
    /// The last message of the exchange, before AuthenticationOk.
    last_message: BytesMut,
    /// Bound to the TLS connection.
    is_bound: bool,
}

impl<'a> Exchange<'a> {
    pub fn new(
        stream: &'a mut ClientStream,
        packet: &'a StartupPacket,
        address: ClientAddress,
        tls: Option<&'a TlsFacts>,
        context: LoginContext<'a>,
    ) -> Self {
        Self {
            stream,
            packet,
            address,
            tls,
            context,
            memberships: None,
            is_unconfirmed: false,
            buffer: BytesMut::new(),
        }
    }

    /// The first rule that matches decides. Look-ups that rules need are made here; if one fails,
    /// the login fails.
    pub async fn decide(&mut self) -> Result<Decided<'a>, LoginError> {
        let facts = Facts {
            user: &self.packet.user,
            database: &self.packet.database,
            replication: self.packet.replication,
            origin: self.address.ip().map_or(Origin::Local, Origin::Tcp),
            tls: self.tls.is_some(),
        };
        let rules = &self.context.policy.rules;
        let interfaces = if rules.ask_for_interfaces() {
            own_interfaces()?
        } else {
            Vec::new()
        };
        let mut host_name = None;
        loop {
            let known = Known {
                memberships: self.memberships(),
                host_name: host_name.as_ref(),
                interfaces: &interfaces,
            };
            match rules.decide(&facts, &known) {
                Step::Decided(Decision::Match(matched)) => {
                    let (index, rule) = (matched.index, matched.rule);
                    // Checked before the method, also before `reject`, as in PostgreSQL.
                    let has_certificate = self.tls.is_some_and(|tls| tls.certificate.is_some());
                    if rule.client_certificate != ClientCertificate::Off && !has_certificate {
                        return Err(self.refused(LoginError::NoCertificate));
                    }
                    if rule.method == Method::Reject {
                        return Err(self.refused(LoginError::Rejected(facts.rejected())));
                    }
                    return Ok(Decided { index, rule });
                }
                Step::Decided(Decision::NoMatch) => {
                    return Err(self.refused(LoginError::NoRule(facts.no_entry())));
                }
                Step::Needs(Need::Memberships) => self.look_up_memberships().await?,
                Step::Needs(Need::HostName) => host_name = Some(self.host_name(facts.origin).await?),
            }
        }
    }

    /// Runs the exchange that the rule requires. It reads one frame at a time, and no bytes may
    /// follow a frame before the next request.
    pub async fn run(mut self, decided: Decided<'_>) -> Result<Authenticated, LoginError> {
        let rule = decided.rule;
        let result = match &rule.method {
            Method::Trust | Method::Cert => name::without_secret(),
            Method::Reject => return Err(LoginError::Protocol("rejected".to_owned())),
            Method::Password => password::clear(&mut self).await?,
            Method::Md5 => password::md5(&mut self).await?,
            Method::ScramSha256 => sasl::exchange(&mut self, sasl::LookUp::Due).await?,
            Method::Ldap(_) => {
                let settings = self.context.policy.directory(decided.index);
                let settings = settings.ok_or_else(|| {
                    LoginError::Directory("the directory of this rule is not set up".to_owned())
                })?;
                password::directory(&mut self, settings).await?
            }
            Method::Peer => {
                name::operating_system(&mut self, rule).await?;
                name::without_secret()
            }
        };
        if rule.method == Method::Cert || rule.client_certificate == ClientCertificate::VerifyFull {
            name::certificate(&mut self, rule).await?;
        }
        let ExchangeResult {
            proof,
            identity,
            last_message: mut final_messages,
            is_bound,
        } = result;
        let identity = match (identity, &proof) {
            // Only a users file has passwords, and looking there costs nothing.
            (None, Proof::Nothing) => self
                .context
                .policy
                .users
                .as_ref()
                .and_then(|users| users.find(&self.packet.user).cloned()),
            (identity, _) => identity,
        };
        let login = match self.context.destination {
            Destination::Console => None,
            Destination::Servers => {
                let credentials = &self.context.policy.credentials;
                let login = credentials.login(&self.packet.user, proof, identity);
                Some(login.ok_or(LoginError::NoServerLogin)?)
            }
        };
        let server_login = require_confirmed(login, self.is_any_unconfirmed())?;
        message::authentication_ok(&mut final_messages);
        Ok(Authenticated {
            server_login,
            has_proven: rule.method != Method::Trust
                || rule.client_certificate == ClientCertificate::VerifyFull,
            is_bound,
            final_messages,
        })
    }

    /// The stored identity of the user.
    async fn identity(&mut self) -> Result<Option<Identity>, LoginError> {
        let user = &self.packet.user;
        if let Some(users) = &self.context.policy.users {
            return Ok(users.find(user).cloned());
        }
        let answer = self.context.cluster.identity(user).await;
        let answer = answer.map_err(LoginError::Lookup)?;
        self.is_unconfirmed = !answer.is_confirmed;
        Ok(answer.found)
    }

    /// The error of a login that failed against the stored identity. A remembered identity may be
    /// older than a password change: if no server could confirm it now, the proof was not shown to
    /// be wrong.
    async fn failed(&self, fault: LoginError) -> LoginError {
        if fault.offence() == Some(Offence::Proof) && self.context.policy.has_new_users().await {
            return LoginError::JustChanged;
        }
        unless_unconfirmed(fault, self.is_unconfirmed)
    }

    /// Whether anything that supports the client is unconfirmed: the identity its proof was checked
    /// against, or the memberships that a rule or a map asked for, also if that rule did not match.
    fn is_any_unconfirmed(&self) -> bool {
        let are_confirmed = |answer: &LookupAnswer<_>| answer.is_confirmed;
        self.is_unconfirmed || !self.memberships.as_ref().is_none_or(are_confirmed)
    }

    async fn look_up_memberships(&mut self) -> Result<(), LoginError> {
        let memberships = self
            .context
            .cluster
            .memberships(&self.packet.user, self.context.deadline)
            .await
            .map_err(LoginError::Lookup)?;
        self.memberships = Some(memberships);
        Ok(())
    }

    fn memberships(&self) -> Option<&Memberships> {
        self.memberships.as_ref().map(|answer| &*answer.found)
    }

    /// The error of a login that rules or maps refuse. Remembered memberships that could not be
    /// confirmed may be older than a GRANT.
    fn refused(&self, fault: LoginError) -> LoginError {
        match &self.memberships {
            Some(answer) if !answer.is_confirmed => LoginError::Lookup(LookupError::Unconfirmed),
            _ => fault,
        }
    }

    async fn host_name(&self, origin: Origin) -> Result<HostName, LoginError> {
        let address: IpAddr = match origin {
            Origin::Tcp(address) => address,
            Origin::Local => return Ok(HostName::Unknown),
        };
        let name = resolve::verified_host_name(address, self.context.deadline).await;
        let name = name.map_err(|busy| LoginError::NameService(busy.to_string()))?;
        Ok(name.map_or(HostName::Unknown, HostName::Verified))
    }

    async fn send(&mut self, out: &[u8]) -> Result<(), LoginError> {
        send(self.stream, out).await
    }

    async fn password_message(&mut self) -> Result<Bytes, LoginError> {
        let frame = read_password_message(self.stream, &mut self.buffer).await?;
        Ok(frame.body)
    }
}

/// The log's reason for a wrong proof. A method that accepts only SCRAM cannot use md5.
fn wrong_password(identity: Option<&Identity>, is_scram: bool, guess: Option<Guess>) -> LoginError {
    let why = match identity {
        None => error::NO_PASSWORD,
        Some(Identity::Md5(_)) if is_scram => {
            "the password is stored as md5, and the rule asks for scram-sha-256"
        }
        Some(Identity::Md5(_) | Identity::Verifier(_) | Identity::Password(..)) => "wrong password",
    };
    LoginError::WrongPassword(why, guess)
}

/// An unconfirmed answer proves neither a wrong password nor an unknown user.
fn unless_unconfirmed(fault: LoginError, is_unconfirmed: bool) -> LoginError {
    if is_unconfirmed && fault.offence() == Some(Offence::Proof) {
        return LoginError::Unconfirmed;
    }
    fault
}

/// An unconfirmed answer admits only a client that the server also checks, under its own name: the
/// password may have been changed, the role dropped, or its membership revoked. The console has no
/// server that checks.
fn require_confirmed(
    login: Option<ServerLogin>,
    is_unconfirmed: bool,
) -> Result<Option<ServerLogin>, LoginError> {
    let is_checked = |login: &ServerLogin| !login.is_operators && login.user.is_none();
    if is_unconfirmed && !login.as_ref().is_some_and(is_checked) {
        return Err(LoginError::Lookup(LookupError::Unconfirmed));
    }
    Ok(login)
}

/// For `samehost` and `samenet`. A failure is an error, because the rule would otherwise be skipped
/// silently.
fn own_interfaces() -> Result<Vec<Interface>, LoginError> {
    let pairs = interfaces::interfaces().map_err(|error| {
        LoginError::Lookup(LookupError::Unavailable(format!(
            "this host's addresses cannot be read: {error}"
        )))
    })?;
    let interface = |(address, netmask)| Interface { address, netmask };
    Ok(pairs.into_iter().map(interface).collect())
}

/// Reads exactly one `p` message. No other buffer shares its bytes, so that a password in it can be
/// wiped. Cancel safe: `read_buf` is, and the bytes it read stay in `buffer`.
async fn read_password_message(
    stream: &mut ClientStream,
    buffer: &mut BytesMut,
) -> Result<Frame, LoginError> {
    let frame = loop {
        match frame::next_frame(buffer, LARGEST_PASSWORD_MESSAGE) {
            Ok(Some(frame)) => break frame,
            Ok(None) => {}
            Err(fault) => return Err(LoginError::Protocol(fault.to_string())),
        }
        if buffer.first().is_some_and(|&tag| tag != b'p') {
            break Frame {
                tag: buffer[0],
                body: Bytes::new(),
            };
        }
        make_room(buffer);
        match stream.read_buf(buffer).await {
            Ok(0) | Err(_) => return Err(LoginError::HungUp),
            Ok(_) => {}
        }
    };
    match frame.tag {
        b'p' if buffer.is_empty() => {
            *buffer = BytesMut::new();
            Ok(frame)
        }
        b'p' => Err(LoginError::Protocol(
            "unexpected data after a password message".to_owned(),
        )),
        b'X' => Err(LoginError::HungUp),
        tag => Err(LoginError::Protocol(format!(
            "expected password response, got message type {tag}"
        ))),
    }
}

/// Makes room for more of a message, and wipes the old copy.
fn make_room(buffer: &mut BytesMut) {
    if buffer.len() < buffer.capacity() {
        return;
    }
    let mut larger = BytesMut::with_capacity((2 * buffer.len()).max(1024));
    larger.extend_from_slice(buffer);
    buffer.as_mut().zeroize();
    *buffer = larger;
}

async fn send(stream: &mut ClientStream, out: &[u8]) -> Result<(), LoginError> {
    stream.write_all(out).await.map_err(|_| LoginError::HungUp)?;
    stream.flush().await.map_err(|_| LoginError::HungUp)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::auth::credentials::ServerCredentials;
    use crate::auth::scram::ScramError;
    use crate::config::{Secret, ServerSecret};
    use crate::wire::sqlstate::SqlState;

    /// A message can be wiped only if no other buffer shares its bytes.
    #[tokio::test]
    async fn a_password_message_can_be_wiped() {
        for length in [8, 1019, 1020, 5000, 60_000] {
            let (mut client, router) = tokio::net::UnixStream::pair().unwrap();
            let mut router = ClientStream::Unix(router);
            let mut buffer = BytesMut::new();
            let mut message = BytesMut::new();
            message::password(&mut message, &vec![b'x'; length]);
            let (first, rest) = message.split_at(7);
            client.write_all(first).await.unwrap();
            let (sent, frame) = tokio::join!(
                async {
                    tokio::task::yield_now().await;
                    client.write_all(rest).await
                },
                read_password_message(&mut router, &mut buffer)
            );
            sent.unwrap();
            let body = frame.unwrap().body;
            assert_eq!(body.len(), length + 1);
            assert!(body.try_into_mut().is_ok(), "{length}");
        }
    }

    #[test]
    fn an_unconfirmed_answer_admits_only_clients_that_the_server_checks() {
        let entry = |secret| crate::config::ServerCredential {
            path: "auth.server_credentials[0]".to_owned(),
            line: None,
            users: crate::config::CredentialUsers::All,
            server_user: None,
            secret,
        };
        let stored = Secret::new(*b"stored");
        let mut other = entry(ServerSecret::ClientPassword);
        other.server_user = Some("shared".to_owned());
        let mut logins = Vec::new();
        for (entries, is_own) in [
            (vec![], true),
            (vec![entry(ServerSecret::ClientPassword)], true),
            (vec![other], false),
            (vec![entry(ServerSecret::Password(stored))], false),
            (vec![entry(ServerSecret::ClusterCertificate)], false),
        ] {
            let credentials = ServerCredentials::new(entries.into());
            let proof = Proof::Password(Secret::new(*b"old"));
            logins.push((credentials.login(b"app", proof, None), is_own));
        }
        let console = (None, false);
        logins.push(console);
        for (login, is_own) in logins {
            assert!(require_confirmed(login.clone(), false).is_ok());
            match require_confirmed(login, true) {
                Ok(_) => assert!(is_own),
                Err(fault) => {
                    assert!(!is_own && fault.offence().is_none());
                    assert_eq!(fault.reply(b"app").unwrap().code, SqlState::CANNOT_CONNECT_NOW);
                }
            }
        }
    }

    #[test]
    fn an_unconfirmed_answer_makes_no_password_wrong() {
        let wrong = || {
            [
                LoginError::Scram(ScramError::Proof),
                wrong_password(None, true, None),
            ]
        };
        for fault in wrong() {
            let fault = unless_unconfirmed(fault, true);
            assert!(matches!(fault, LoginError::Unconfirmed));
            assert_eq!(
                fault.offence(),
                Some(Offence::Garbage),
                "counts for the address, not for the user"
            );
            assert_eq!(
                fault.reply(b"app").map(|reply| reply.code),
                Some(SqlState::CANNOT_CONNECT_NOW)
            );
        }
        for fault in wrong() {
            let fault = unless_unconfirmed(fault, false);
            assert_eq!(fault.offence(), Some(Offence::Proof));
            assert_eq!(
                fault.reply(b"app").map(|reply| reply.code),
                Some(SqlState::INVALID_PASSWORD)
            );
        }
        let garbage = unless_unconfirmed(LoginError::Protocol("garbage".to_owned()), true);
        assert_eq!(garbage.offence(), Some(Offence::Garbage));
    }

    #[test]
    fn a_certificate_of_another_user_gets_the_error_of_the_method() {
        for (method, code, message) in [
            (
                Method::ScramSha256,
                SqlState::INVALID_PASSWORD,
                "password authentication failed for user \"app\"",
            ),
            (
                Method::Md5,
                SqlState::INVALID_PASSWORD,
                "password authentication failed for user \"app\"",
            ),
            (
                Method::Password,
                SqlState::INVALID_PASSWORD,
                "password authentication failed for user \"app\"",
            ),
            (
                Method::Ldap(Arc::default()),
                SqlState::INVALID_AUTHORIZATION,
                "LDAP authentication failed for user \"app\"",
            ),
            (
                Method::Trust,
                SqlState::INVALID_AUTHORIZATION,
                "\"trust\" authentication failed for user \"app\"",
            ),
            (
                Method::Cert,
                SqlState::INVALID_AUTHORIZATION,
                "certificate authentication failed for user \"app\"",
            ),
        ] {
            let word = method.word();
            let reply = LoginError::Certificate(method, String::new()).reply(b"app");
            let sent = reply.map(|reply| (reply.code, reply.message));
            assert_eq!(sent, Some((code, message.to_owned())), "{word}");
        }
    }
}
