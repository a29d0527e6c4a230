//! Login: from the startup packet to `ReadyForQuery`.

#[cfg(any(test, fuzzing))]
#[path = "login_fuzzing.rs"]
pub(crate) mod fuzzing;

use std::sync::atomic::{AtomicBool, Ordering};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite};
use zeroize::Zeroize;

use super::connection::{Credential, SeenRole};
use super::derived;
use super::error::{ConnectError, ServerError, Step};
use super::reader::{FrameReader, parameter, send, verbatim};
use crate::auth::md5::Md5Hash;
use crate::auth::scram::client::{
    AwaitServerFinal, AwaitServerFirst, ClientBinding, ClientExchange, ClientSecret, ServerProven,
};
use crate::auth::scram::{MECHANISM, MECHANISM_PLUS};
use crate::config::{AuthMethod, ChannelBinding, RequireAuth, Ruling};
use crate::wire::frame::{BodyReader, Frame, FrameError, server_login_limit};
use crate::wire::message;
use crate::wire::sqlstate::SqlState;
use crate::wire::startup::ProtocolVersion;

/// `PostgreSQL` reports 13 to 16 parameters; extensions may add some.
const MAX_PARAMETERS: usize = 200;
const MAX_PARAMETER_BYTES: usize = 128 * 1024;
/// Notices over these limits are dropped, and the login goes on.
const MAX_NOTICES: usize = 100;
const MAX_NOTICE_BYTES: usize = 64 * 1024;

/// What login sends and with what.
pub(crate) struct LoginRequest<'a> {
    pub version: ProtocolVersion,
    pub parameters: &'a [(Bytes, Bytes)],
    pub credential: &'a Credential,
    pub is_tls: bool,
    pub channel_binding: ChannelBinding,
    /// The hash of the server's certificate; `None` without TLS, or where it has none.
    pub end_point: Option<Vec<u8>>,
    pub require_auth: &'a RequireAuth,
    /// TLS, and the certificate has been verified.
    pub is_verified: bool,
    /// The server is on this host.
    pub is_local: bool,
    /// The server has sent something on this connection; read where the login runs out of time.
    pub has_answered: AtomicBool,
}

/// The result of a login.
#[derive(Debug)]
pub(crate) struct LoggedIn {
    pub version: ProtocolVersion,
    pub parameters: Vec<(Bytes, Bytes)>,
    pub notices: Vec<Bytes>,
    pub role: SeenRole,
    pub key: Option<(u32, Bytes)>,
    pub leftover: Bytes,
}

/// A failed login, and whether the server had already sent `AuthenticationOk`.
#[derive(Debug)]
pub(crate) struct ServerLoginFailure {
    pub error: ConnectError,
    pub authenticated: bool,
}

/// How far authentication has come.
enum Auth {
    /// Next: `Sent`, `Scram`, or `Done` (the server trusts the router).
    Start,
    /// A password was sent, in clear or as md5. Next: `Done`.
    Sent,
    /// `SASLInitialResponse` was sent. Next: `ScramProof`.
    Scram(AwaitServerFirst),
    /// `SASLResponse` was sent. Next: `Proven`.
    ScramProof(AwaitServerFinal),
    /// The server's signature was good. Next: `Done`.
    Proven(ServerProven),
    /// `AuthenticationOk`.
    Done,
}

struct Login<'a> {
    request: &'a LoginRequest<'a>,
    auth: Auth,
    version: Option<ProtocolVersion>,
    parameters: Vec<(Bytes, Bytes)>,
    parameter_bytes: usize,
    notices: Vec<Bytes>,
    notice_bytes: usize,
    key: Option<(u32, Bytes)>,
}

/// Logs in on a fresh connection. Not cancel safe: a dropped login leaves the connection unusable.
pub(crate) async fn login<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    request: &LoginRequest<'_>,
) -> Result<LoggedIn, ServerLoginFailure> {
    let mut login = Login {
        request,
        auth: Auth::Start,
        version: None,
        parameters: Vec::new(),
        parameter_bytes: 0,
        notices: Vec::new(),
        notice_bytes: 0,
        key: None,
    };
    let mut reader = FrameReader::new(Step::Login, &[]);
    match login.run(stream, &mut reader).await {
        Ok(()) => Ok(login.finish(reader)),
        Err(error) => Err(ServerLoginFailure {
            error,
            authenticated: matches!(login.auth, Auth::Done),
        }),
    }
}

fn violation(what: impl Into<String>) -> ConnectError {
    ConnectError::protocol(Step::Login, what)
}

impl Login<'_> {
    async fn run<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        reader: &mut FrameReader,
    ) -> Result<(), ConnectError> {
        let mut out = BytesMut::new();
        let parameters: Vec<(&[u8], &[u8])> = self
            .request
            .parameters
            .iter()
            .map(|(name, value)| (name.as_ref(), value.as_ref()))
            .collect();
        message::startup(&mut out, self.request.version, &parameters);
        loop {
            if !out.is_empty() {
                let sent = send(stream, &out, Step::Login).await;
                // It may have held a password.
                out.as_mut().zeroize();
                out.clear();
                sent?;
            }
            let frame = reader.next(stream, server_login_limit).await?;
            self.request.has_answered.store(true, Ordering::Relaxed);
            match frame.tag {
                b'R' => self.authentication(&frame.body, &mut out).await?,
                b'N' => self.notice(&frame),
                b'S' => self.parameter_status(&frame.body)?,
                b'v' => self.negotiated(&frame.body)?,
                b'K' => self.key_data(&frame.body)?,
                b'E' => return Err(self.server_error(&frame)),
                b'Z' => return self.ready(&frame.body),
                other => {
                    return Err(violation(format!(
                        "unexpected message '{}'",
                        other.escape_ascii()
                    )));
                }
            }
        }
    }

    fn server_error(&self, frame: &Frame) -> ConnectError {
        let Some(error) = ServerError::parse(&frame.body, verbatim(frame)) else {
            return violation("malformed ErrorResponse");
        };
        let with_client_key = matches!(self.request.credential, Credential::ClientKey(_));
        if error.code == SqlState::INVALID_PASSWORD
            && with_client_key
            && matches!(self.auth, Auth::ScramProof(_))
        {
            // The router has verified this client: the server knows another password.
            return ConnectError::VerifierDiffers {
                reason: "it refused the key of a verified client",
            };
        }
        if error.code == SqlState::INVALID_AUTHORIZATION {
            // The server's own text would make the client look for the cause at itself.
            match &self.auth {
                Auth::Scram(exchange) if *exchange.binding() == ClientBinding::NotOffered => {
                    return ConnectError::ChannelBinding {
                        reason: "the server offers it, but something in between removed it from the list of mechanisms",
                    };
                }
                Auth::ScramProof(exchange) if exchange.is_bound() => {
                    return ConnectError::ChannelBinding {
                        reason: "the server has another certificate than the one seen here",
                    };
                }
                _ => {}
            }
        }
        ConnectError::Server(Box::new(error))
    }

    fn notice(&mut self, frame: &Frame) {
        let size = frame.body.len() + 5;
        if self.notices.len() < MAX_NOTICES && self.notice_bytes + size <= MAX_NOTICE_BYTES {
            self.notice_bytes += size;
            self.notices.push(verbatim(frame));
        }
    }

    fn parameter_status(&mut self, body: &Bytes) -> Result<(), ConnectError> {
        let (name, value) = parameter(body).ok_or_else(|| violation("malformed ParameterStatus"))?;
        self.parameter_bytes += body.len();
        if self.parameters.len() >= MAX_PARAMETERS || self.parameter_bytes > MAX_PARAMETER_BYTES {
            return Err(violation("too many ParameterStatus messages"));
        }
        self.parameters.push((name, value));
        Ok(())
    }

    /// `NegotiateProtocolVersion`: the server serves an older minor version, or does not know some
    /// `_pq_.` option.
    fn negotiated(&mut self, body: &Bytes) -> Result<(), ConnectError> {
        if self.version.is_some() || matches!(self.auth, Auth::Done) {
            return Err(violation("NegotiateProtocolVersion out of turn"));
        }
        let (major, minor) =
            newest_version(body).map_err(|_| violation("malformed NegotiateProtocolVersion"))?;
        if !matches!(major, 0 | 3) || minor > self.request.version.minor {
            return Err(violation(format!(
                "the server wants protocol {major}.{minor}, newer than asked for"
            )));
        }
        self.version = Some(ProtocolVersion { minor });
        Ok(())
    }

    fn key_data(&mut self, body: &Bytes) -> Result<(), ConnectError> {
        if !matches!(self.auth, Auth::Done) || self.key.is_some() {
            return Err(violation("BackendKeyData out of turn"));
        }
        match body.split_first_chunk::<4>() {
            Some((id, key)) if (4..=256).contains(&key.len()) => {
                self.key = Some((u32::from_be_bytes(*id), Bytes::copy_from_slice(key)));
                Ok(())
            }
            _ => Err(violation("malformed BackendKeyData")),
        }
    }

    fn ready(&mut self, body: &Bytes) -> Result<(), ConnectError> {
        if !matches!(self.auth, Auth::Done) {
            return Err(violation("ReadyForQuery before AuthenticationOk"));
        }
        if body.as_ref() != b"I" {
            return Err(violation("malformed ReadyForQuery, or not idle after login"));
        }
        Ok(())
    }

    async fn authentication(&mut self, body: &Bytes, out: &mut BytesMut) -> Result<(), ConnectError> {
        let (code, data) = body
            .split_first_chunk::<4>()
            .ok_or_else(|| violation("malformed authentication request"))?;
        let code = u32::from_be_bytes(*code);
        let auth = std::mem::replace(&mut self.auth, Auth::Start);
        let is_bound = match &auth {
            Auth::Start => code == 10,
            Auth::Scram(_) | Auth::ScramProof(_) => true,
            Auth::Proven(proven) => proven.is_bound(),
            Auth::Sent | Auth::Done => false,
        };
        if self.request.channel_binding == ChannelBinding::Require && !is_bound {
            return Err(ConnectError::ChannelBinding {
                reason: "it is required, and the server wants another authentication, or none",
            });
        }
        self.auth = match (code, auth) {
            (0, Auth::Start) => {
                self.permit(AuthMethod::None)?;
                tracing::debug!("the server asked for no authentication");
                Auth::Done
            }
            (0, Auth::Sent | Auth::Proven(ServerProven { .. })) => Auth::Done,
            (0, Auth::Scram(_) | Auth::ScramProof(_)) => {
                return Err(ConnectError::NotProven {
                    reason: "AuthenticationOk before its signature".to_owned(),
                });
            }
            (3, Auth::Start) => self.cleartext(out)?,
            (5, Auth::Start) => self.md5(data, out)?,
            (10, Auth::Start) => self.sasl(data, out)?,
            (11, Auth::Scram(exchange)) => {
                let challenge = exchange.read(data).map_err(ConnectError::scram)?;
                let keys = match challenge.derivation() {
                    Some(work) => Some(derived::keys(work).await),
                    None => None,
                };
                let (next, answer) = challenge.answer(keys);
                message::sasl_response(out, &answer);
                Auth::ScramProof(next)
            }
            (12, Auth::ScramProof(exchange)) => {
                Auth::Proven(exchange.server_final(data).map_err(ConnectError::scram)?)
            }
            (code, Auth::Start) => {
                let method = match code {
                    2 => "Kerberos 5",
                    7 => {
                        self.permit(AuthMethod::Gss)?;
                        "GSSAPI"
                    }
                    9 => {
                        self.permit(AuthMethod::Sspi)?;
                        "SSPI"
                    }
                    _ => return Err(violation(format!("unexpected authentication request {code}"))),
                };
                return Err(ConnectError::UnsupportedMethod { method });
            }
            (code, _) => return Err(violation(format!("authentication request {code} out of turn"))),
        };
        Ok(())
    }

    /// Whether the server may ask for this ([`RequireAuth`]). Where the configuration says nothing,
    /// a method that does not authenticate the server, or gives it something to check guesses with,
    /// is only for servers that a certificate has authenticated, or for logins without a secret.
    fn permit(&self, method: AuthMethod) -> Result<(), ConnectError> {
        let (what, name) = match method {
            AuthMethod::None => ("no authentication", "none"),
            AuthMethod::Password => ("the password in clear", "password"),
            AuthMethod::Md5 => ("md5 authentication", "md5"),
            AuthMethod::Scram => ("SCRAM-SHA-256", "scram-sha-256"),
            AuthMethod::Gss => ("GSSAPI", "gss"),
            AuthMethod::Sspi => ("SSPI", "sspi"),
            AuthMethod::Oauth => ("OAUTHBEARER", "oauth"),
        };
        let credential = self.request.credential;
        let is_safe = self.request.is_verified
            || match method {
                AuthMethod::None => match credential {
                    Credential::None => true,
                    Credential::ClientKey(_) | Credential::Md5(_) => self.request.is_local,
                    Credential::Password(_) => false,
                },
                // Without TLS there is a separate error.
                AuthMethod::Password => {
                    !self.request.is_tls || !matches!(credential, Credential::Password(_))
                }
                AuthMethod::Md5 => !matches!(credential, Credential::Password(_)),
                AuthMethod::Scram | AuthMethod::Gss | AuthMethod::Sspi | AuthMethod::Oauth => true,
            };
        match self.request.require_auth.ruling(method) {
            Ruling::Allowed => Ok(()),
            Ruling::IfSafe if is_safe => Ok(()),
            Ruling::IfSafe => Err(ConnectError::MethodRefused {
                what,
                name,
                is_configured: false,
            }),
            Ruling::Refused => Err(ConnectError::MethodRefused {
                what,
                name,
                is_configured: true,
            }),
        }
    }

    fn cleartext(&self, out: &mut BytesMut) -> Result<Auth, ConnectError> {
        self.permit(AuthMethod::Password)?;
        match self.request.credential {
            Credential::None => Err(ConnectError::NoCredential { method: "password" }),
            Credential::ClientKey(_) | Credential::Md5(_) => {
                Err(ConnectError::UnsupportedMethod { method: "password" })
            }
            Credential::Password(_) if !self.request.is_tls => Err(ConnectError::CleartextRefused),
            Credential::Password(password) => {
                message::password(out, password.expose());
                Ok(Auth::Sent)
            }
        }
    }

    fn md5(&self, salt: &[u8], out: &mut BytesMut) -> Result<Auth, ConnectError> {
        self.permit(AuthMethod::Md5)?;
        let salt = <[u8; 4]>::try_from(salt).map_err(|_| violation("malformed salt for md5"))?;
        let answer = match self.request.credential {
            Credential::None => return Err(ConnectError::NoCredential { method: "md5" }),
            Credential::ClientKey(_) => return Err(ConnectError::UnsupportedMethod { method: "md5" }),
            Credential::Password(password) => Md5Hash::of(password.expose(), self.user()).answer(salt),
            Credential::Md5(hash) => hash.answer(salt),
        };
        message::password(out, &answer[..]);
        Ok(Auth::Sent)
    }

    /// The user name in the startup packet: the last one counts, as in PostgreSQL.
    fn user(&self) -> &[u8] {
        let mut names = self.request.parameters.iter().rev();
        let user = names.find(|(name, _)| name.as_ref() == b"user");
        user.map_or(b"", |(_, user)| user)
    }

    fn sasl(&self, list: &[u8], out: &mut BytesMut) -> Result<Auth, ConnectError> {
        let offered = Offered::parse(list)?;
        if offered.plain || offered.plus {
            self.permit(AuthMethod::Scram)?;
        }
        let binding = self.binding(offered)?;
        let secret = match self.request.credential {
            Credential::None => return Err(ConnectError::NoCredential { method: MECHANISM }),
            Credential::Md5(_) => return Err(ConnectError::UnsupportedMethod { method: MECHANISM }),
            Credential::Password(password) => ClientSecret::Password(password.clone()),
            Credential::ClientKey(key) => ClientSecret::Key(key.clone()),
        };
        let mechanism = binding.mechanism();
        let (next, first) = ClientExchange::bound(secret, binding).first();
        message::sasl_initial_response(out, mechanism, &first);
        Ok(Auth::Scram(next))
    }

    /// The mechanism and the flag, from the server's offer, the connection and the configuration,
    /// as in libpq. Unlike there, a certificate without a hash means plain SCRAM and no error,
    /// unless binding is required.
    fn binding(&self, offered: Offered) -> Result<ClientBinding, ConnectError> {
        let LoginRequest {
            is_tls,
            channel_binding,
            end_point,
            ..
        } = self.request;
        if offered.plus && !is_tls {
            return Err(violation("SCRAM-SHA-256-PLUS offered without TLS"));
        }
        let binding = match (channel_binding, end_point) {
            (ChannelBinding::Prefer | ChannelBinding::Require, Some(hash)) if offered.plus => {
                return Ok(ClientBinding::EndPoint(hash.clone()));
            }
            (ChannelBinding::Require, Some(_)) => {
                return Err(ConnectError::ChannelBinding {
                    reason: "it is required, and the server does not offer SCRAM-SHA-256-PLUS",
                });
            }
            (ChannelBinding::Require, None) => {
                return Err(ConnectError::ChannelBinding {
                    reason: "it is required, and the server's certificate has no hash to bind to (as with Ed25519)",
                });
            }
            (ChannelBinding::Prefer, Some(_)) => ClientBinding::NotOffered,
            (ChannelBinding::Prefer, None) | (ChannelBinding::Disable, _) => ClientBinding::No,
        };
        if offered.plain {
            Ok(binding)
        } else {
            Err(ConnectError::UnsupportedMethod {
                method: "SASL (without SCRAM-SHA-256)",
            })
        }
    }

    fn finish(self, reader: FrameReader) -> LoggedIn {
        let role = role(&self.parameters);
        LoggedIn {
            version: self.version.unwrap_or(self.request.version),
            parameters: compact(&self.parameters),
            notices: self.notices,
            role,
            key: self.key,
            leftover: reader.into_leftover(),
        }
    }
}

/// The SASL mechanisms in a server's list that the router supports.
#[derive(Debug, Clone, Copy)]
struct Offered {
    plain: bool,
    plus: bool,
}

impl Offered {
    /// Searches the whole list: the order in it means nothing (docs/protocol.md, case 23).
    fn parse(list: &[u8]) -> Result<Self, ConnectError> {
        let malformed = |_: FrameError| violation("malformed list of SASL mechanisms");
        let mut list = BodyReader::new(list);
        let mut offered = Self {
            plain: false,
            plus: false,
        };
        loop {
            match list.cstr().map_err(malformed)? {
                [] => break,
                name => {
                    offered.plain |= name == MECHANISM.as_bytes();
                    offered.plus |= name == MECHANISM_PLUS.as_bytes();
                }
            }
        }
        list.finish().map_err(malformed)?;
        Ok(offered)
    }
}

/// The body of `NegotiateProtocolVersion`; the names of unknown options are only checked for their
/// form. The documentation says "minor version", so the major one may be 0; servers send both.
fn newest_version(body: &[u8]) -> Result<(u16, u16), FrameError> {
    let mut body = BodyReader::new(body);
    let version = body.u32()?;
    for _ in 0..body.u32()? {
        body.cstr()?;
    }
    body.finish()?;
    let [a, b, c, d] = version.to_be_bytes();
    Ok((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])))
}

/// The role by the last `in_hot_standby`.
pub(super) fn role(parameters: &[(Bytes, Bytes)]) -> SeenRole {
    match parameters
        .iter()
        .rev()
        .find(|(name, _)| name.as_ref() == b"in_hot_standby")
    {
        Some((_, value)) if value.as_ref() == b"off" => SeenRole::Writable,
        Some((_, value)) if value.as_ref() == b"on" => SeenRole::Standby,
        _ => SeenRole::Unknown,
    }
}

/// Moves the parameters into one allocation of just their size, so that they do not keep read
/// buffers alive.
fn compact(parameters: &[(Bytes, Bytes)]) -> Vec<(Bytes, Bytes)> {
    let size = parameters
        .iter()
        .map(|(name, value)| name.len() + value.len())
        .sum();
    let mut all = BytesMut::with_capacity(size);
    for (name, value) in parameters {
        all.extend_from_slice(name);
        all.extend_from_slice(value);
    }
    let mut all = all.freeze();
    parameters
        .iter()
        .map(|(name, value)| (all.split_to(name.len()), all.split_to(value.len())))
        .collect()
}
