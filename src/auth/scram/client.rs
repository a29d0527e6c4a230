//! The router as the client of an exchange: logs into a server, with a password or with a client's
//! own key.
//!
//! [`ClientExchange::new`] → [`ClientExchange::first`] → [`AwaitServerFirst::server_first`] →
//! [`AwaitServerFinal::server_final`] → [`ServerProven`]. `AuthenticationOk` must not be believed
//! without that value: it is the server's proof that it knows the verifier.

use std::num::NonZeroU32;

use base64::Engine as _;
use zeroize::Zeroizing;

use super::attributes::{AttributeError, Attributes, is_printable};
use super::binding::BINDING_TYPE;
use super::{
    BASE64, ClientKey, Keys, MAX_SERVER_MESSAGE, MAX_VERIFIER_ITERATIONS, MECHANISM, MECHANISM_PLUS, Nonce,
    ServerScramError, decimal, decode_key, decode_salt, hmac_sha256, same, xor,
};
use crate::config::Secret;

/// The most iterations that a server may demand, as many as a verifier may have: about 250 ms of a
/// processor.
pub const MAX_ITERATIONS: u32 = MAX_VERIFIER_ITERATIONS;

/// What the router logs in with.
#[derive(Debug, Clone)]
pub enum ClientSecret {
    Password(Secret),
    /// Fits only where salt and iterations are those of its verifier. Costs no iterations.
    Key(ClientKey),
}

/// What the exchange is bound to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientBinding {
    /// `n`: no TLS, no hash of the server's certificate, or not wanted.
    No,
    /// `y`: the router could bind, and the server offered no -PLUS. A server that did offer it then
    /// knows that an attacker removed it from its list, and refuses.
    NotOffered,
    /// What [`super::tls_server_end_point`] gives for the server's certificate. The mechanism is
    /// -PLUS.
    EndPoint(Vec<u8>),
}

impl ClientBinding {
    /// The mechanism this asks the server for.
    pub fn mechanism(&self) -> &'static str {
        match self {
            Self::EndPoint(_) => MECHANISM_PLUS,
            Self::No | Self::NotOffered => MECHANISM,
        }
    }

    fn gs2_header(&self) -> String {
        match self {
            Self::No => "n,,".to_owned(),
            Self::NotOffered => "y,,".to_owned(),
            Self::EndPoint(_) => format!("p={BINDING_TYPE},,"),
        }
    }

    /// What `c=` says: the header, and the hash.
    fn attribute(&self) -> String {
        let mut input = self.gs2_header().into_bytes();
        if let Self::EndPoint(hash) = self {
            input.extend_from_slice(hash);
        }
        BASE64.encode(input)
    }
}

/// The start of an exchange.
#[derive(Debug)]
pub struct ClientExchange {
    secret: ClientSecret,
    pub(super) binding: ClientBinding,
    nonce: Nonce,
    /// `n=,r=<nonce>`: like libpq, no name; the server knows it from the startup packet.
    bare: Vec<u8>,
}

impl ClientExchange {
    /// Without channel binding.
    pub fn new(secret: ClientSecret) -> Self {
        Self::bound(secret, ClientBinding::No)
    }

    pub fn bound(secret: ClientSecret, binding: ClientBinding) -> Self {
        Self {
            binding,
            ..Self::with_nonce(secret, "", Nonce::random())
        }
    }

    pub(super) fn with_nonce(secret: ClientSecret, user: &str, nonce: Nonce) -> Self {
        let mut bare = format!("n={user},r=").into_bytes();
        bare.extend_from_slice(nonce.as_bytes());
        Self {
            secret,
            binding: ClientBinding::No,
            nonce,
            bare,
        }
    }

    /// The data of `SASLInitialResponse`, for [`ClientBinding::mechanism`].
    pub fn first(self) -> (AwaitServerFirst, Vec<u8>) {
        let mut message = self.binding.gs2_header().into_bytes();
        message.extend_from_slice(&self.bare);
        (AwaitServerFirst { exchange: self }, message)
    }
}

/// The router's nonce has been sent. Next: [`AwaitServerFinal`].
#[derive(Debug)]
pub struct AwaitServerFirst {
    exchange: ClientExchange,
}

impl AwaitServerFirst {
    pub fn binding(&self) -> &ClientBinding {
        &self.exchange.binding
    }

    /// Takes the data of `AuthenticationSASLContinue`, returns the data of `SASLResponse`. With a
    /// password this computes up to [`MAX_ITERATIONS`] rounds, and blocks for so long;
    /// [`Self::read`] leaves that to the caller.
    pub fn server_first(self, data: &[u8]) -> Result<(AwaitServerFinal, Vec<u8>), ServerScramError> {
        let challenge = self.read(data)?;
        let keys = challenge.derivation().map(Derivation::run);
        Ok(challenge.answer(keys))
    }

    /// Takes the data of `AuthenticationSASLContinue`.
    pub fn read(self, data: &[u8]) -> Result<Challenge, ServerScramError> {
        let ClientExchange {
            secret,
            binding,
            nonce,
            bare,
        } = self.exchange;
        let first = ServerFirst::parse(data)?;
        let continued = first.nonce.strip_prefix(nonce.as_bytes());
        if continued.is_none_or(<[u8]>::is_empty) || !is_printable(first.nonce) {
            return Err(ServerScramError::Nonce);
        }
        let known = match secret {
            ClientSecret::Password(password) => {
                if first.iterations.get() > MAX_ITERATIONS {
                    return Err(ServerScramError::Iterations);
                }
                Known::Password(Derivation {
                    password,
                    salt: first.salt,
                    iterations: first.iterations,
                })
            }
            ClientSecret::Key(ClientKey { key, verifier }) => {
                if first.iterations.get() != verifier.iterations || first.salt != verifier.salt {
                    return Err(ServerScramError::VerifierDiffers);
                }
                Known::Keys(Keys {
                    client_key: key,
                    stored_key: Zeroizing::new(verifier.stored_key),
                    server_key: Zeroizing::new(verifier.server_key),
                })
            }
        };
        let mut response = format!("c={},r=", binding.attribute()).into_bytes();
        response.extend_from_slice(first.nonce);
        let message = [&bare[..], b",", data, b",", &response].concat();
        Ok(Challenge {
            known,
            message,
            response,
            is_bound: matches!(binding, ClientBinding::EndPoint(_)),
        })
    }
}

/// A server's first message, parsed; the keys are still missing.
#[derive(Debug)]
pub struct Challenge {
    known: Known,
    /// What both sides sign.
    message: Vec<u8>,
    response: Vec<u8>,
    is_bound: bool,
}

enum Known {
    Password(Derivation),
    Keys(Keys),
}

impl std::fmt::Debug for Known {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// The work that a password asks for.
#[derive(Debug, Clone)]
pub struct Derivation {
    pub password: Secret,
    pub salt: Vec<u8>,
    /// At most [`MAX_ITERATIONS`].
    pub iterations: NonZeroU32,
}

impl Derivation {
    /// Blocks.
    pub fn run(&self) -> Keys {
        Keys::derive(self.password.expose(), &self.salt, self.iterations)
    }
}

impl Challenge {
    /// What has to be computed first; `None` where the keys are known.
    pub fn derivation(&self) -> Option<&Derivation> {
        match &self.known {
            Known::Password(derivation) => Some(derivation),
            Known::Keys(_) => None,
        }
    }

    /// The data of `SASLResponse`. `derived` is what [`Self::derivation`] gives when it is run;
    /// without, it is run here.
    pub fn answer(self, derived: Option<Keys>) -> (AwaitServerFinal, Vec<u8>) {
        let Self {
            known,
            message,
            mut response,
            is_bound,
        } = self;
        let keys = match (known, derived) {
            (Known::Keys(keys), _) | (Known::Password(_), Some(keys)) => keys,
            (Known::Password(derivation), None) => derivation.run(),
        };
        let proof = xor(&keys.client_key, &hmac_sha256(&*keys.stored_key, &[&message]));
        let next = AwaitServerFinal {
            signature: hmac_sha256(&*keys.server_key, &[&message]),
            is_bound,
        };
        response.extend_from_slice(b",p=");
        response.extend_from_slice(BASE64.encode(*proof).as_bytes());
        (next, response)
    }
}

/// The router's proof has been sent. Next: [`ServerProven`].
pub struct AwaitServerFinal {
    /// What the server must answer.
    signature: Zeroizing<[u8; 32]>,
    is_bound: bool,
}

impl AwaitServerFinal {
    pub fn is_bound(&self) -> bool {
        self.is_bound
    }

    /// Takes the data of `AuthenticationSASLFinal`.
    pub fn server_final(self, data: &[u8]) -> Result<ServerProven, ServerScramError> {
        check_bounds(data)?;
        let mut attributes = Attributes::new(data);
        match attributes.any() {
            Ok((b'e', text)) => {
                let text = text.iter().take(100).map(|byte| match byte {
                    b' '..=b'~' => char::from(*byte),
                    _ => '?',
                });
                Err(ServerScramError::Refused(text.collect()))
            }
            Ok((b'v', value)) if attributes.at_end() => {
                let value = decode_key(value).ok_or(ServerScramError::Malformed("signature"))?;
                if same(&*value, &*self.signature) {
                    Ok(ServerProven {
                        is_bound: self.is_bound,
                    })
                } else {
                    Err(ServerScramError::Signature)
                }
            }
            Ok(_) | Err(_) => Err(ServerScramError::Malformed("server-final-message")),
        }
    }
}

impl std::fmt::Debug for AwaitServerFinal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AwaitServerFinal(***)")
    }
}

/// The server has shown that it knows the verifier. Made by [`AwaitServerFinal::server_final`]
/// only.
#[derive(Debug)]
pub struct ServerProven {
    is_bound: bool,
}

impl ServerProven {
    /// Whether it has also shown that the TLS connection ends at it.
    pub fn is_bound(&self) -> bool {
        self.is_bound
    }
}

/// The server's first message, cut into its parts.
struct ServerFirst<'a> {
    nonce: &'a [u8],
    salt: Vec<u8>,
    iterations: NonZeroU32,
}

impl<'a> ServerFirst<'a> {
    fn parse(data: &'a [u8]) -> Result<Self, ServerScramError> {
        check_bounds(data)?;
        if data.starts_with(b"m=") {
            return Err(ServerScramError::Extension);
        }
        let mut attributes = Attributes::new(data);
        let malformed = |_: AttributeError| ServerScramError::Malformed("server-first-message");
        let nonce = attributes.required(b'r').map_err(malformed)?;
        let salt = attributes.required(b's').map_err(malformed)?;
        let iterations = attributes.required(b'i').map_err(malformed)?;
        if !attributes.at_end() {
            return Err(ServerScramError::Malformed(
                "garbage at the end of server-first-message",
            ));
        }
        Ok(Self {
            nonce,
            salt: decode_salt(salt).ok_or(ServerScramError::Malformed("salt"))?,
            iterations: decimal(iterations)
                .and_then(NonZeroU32::new)
                .ok_or(ServerScramError::Malformed("iterations"))?,
        })
    }
}

fn check_bounds(data: &[u8]) -> Result<(), ServerScramError> {
    if data.len() > MAX_SERVER_MESSAGE {
        return Err(ServerScramError::Malformed("too long"));
    }
    Ok(())
}
