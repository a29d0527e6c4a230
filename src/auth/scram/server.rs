//! The router as the server of an exchange: checks a client, and recovers its key.
//!
//! [`ServerExchange::start`] → [`AwaitFirst::client_first`] → [`AwaitFinal::client_final`]. Each
//! step consumes the one before; only the last one gives a [`ClientKey`], which is the proof that
//! the client knows the password.

use std::sync::Arc;

use base64::Engine as _;

use super::attributes::{Attributes, is_printable};
use super::binding::BINDING_TYPE;
use super::{
    BASE64, ClientKey, MAX_CLIENT_MESSAGE, MECHANISM, MECHANISM_PLUS, MockSecret, Nonce, ScramError,
    Verifier, decode_key, hmac_sha256, same, sha256, xor,
};

/// The result of the look-up of a user.
#[derive(Debug)]
pub struct Lookup<'a> {
    pub user: &'a [u8],
    /// `None` for an unknown user, one without password, and one whose entry cannot be used.
    pub verifier: Option<Arc<Verifier>>,
    pub mock: &'a MockSecret,
}

/// The start of an exchange.
#[derive(Debug, Clone, Copy)]
pub struct ServerExchange;

impl ServerExchange {
    /// A user without verifier gets a mock one and goes the same way, to the same failure.
    ///
    /// `binding` is the hash of the certificate shown on this very connection
    /// ([`super::tls_server_end_point`]), and says that -PLUS was offered ([`super::mechanisms`]);
    /// `None` without TLS, or where the certificate has no hash.
    pub fn start(lookup: Lookup<'_>, binding: Option<&[u8]>, nonce: Nonce) -> AwaitFirst {
        // Computed for every user, so that the time shows nothing.
        let mock = lookup.mock.verifier(lookup.user);
        let known = lookup.verifier.is_some();
        AwaitFirst {
            verifier: lookup.verifier.unwrap_or_else(|| Arc::new(mock)),
            known,
            binding: binding.map(<[u8]>::to_vec),
            nonce,
        }
    }
}

/// The mechanisms have been offered. Next: [`AwaitFinal`].
#[derive(Debug)]
pub struct AwaitFirst {
    pub(super) verifier: Arc<Verifier>,
    known: bool,
    binding: Option<Vec<u8>>,
    nonce: Nonce,
}

impl AwaitFirst {
    /// Takes `SASLInitialResponse`'s mechanism and data, returns the data of
    /// `AuthenticationSASLContinue`. A client that sends no data with its choice is sent an empty
    /// continuation, and its next message is passed in here.
    pub fn client_first(self, mechanism: &[u8], data: &[u8]) -> Result<(AwaitFinal, Vec<u8>), ScramError> {
        let choice = match (mechanism, &self.binding) {
            (plain, offered) if plain == MECHANISM.as_bytes() => Choice::Plain {
                plus_offered: offered.is_some(),
            },
            (plus, Some(_)) if plus == MECHANISM_PLUS.as_bytes() => Choice::Plus,
            _ => return Err(ScramError::Mechanism),
        };
        check_bounds(data)?;
        let first = ClientFirst::parse(data, choice)?;
        let mut bound = first.gs2_header.to_vec();
        if choice == Choice::Plus {
            bound.extend_from_slice(self.binding.as_deref().unwrap_or_default());
        }

        let mut nonce = first.nonce.to_vec();
        nonce.extend_from_slice(self.nonce.as_bytes());
        let mut server_first = b"r=".to_vec();
        server_first.extend_from_slice(&nonce);
        server_first.extend_from_slice(
            format!(
                ",s={},i={}",
                BASE64.encode(&self.verifier.salt),
                self.verifier.iterations
            )
            .as_bytes(),
        );

        let mut transcript = first.bare.to_vec();
        transcript.push(b',');
        transcript.extend_from_slice(&server_first);
        transcript.push(b',');
        let next = AwaitFinal {
            verifier: self.verifier,
            known: self.known,
            choice,
            bound: BASE64.encode(bound),
            nonce,
            transcript,
        };
        Ok((next, server_first))
    }
}

/// Salt and nonce have been sent. Next: the client is authenticated, or refused.
#[derive(Debug)]
pub struct AwaitFinal {
    verifier: Arc<Verifier>,
    known: bool,
    choice: Choice,
    /// What `c=` must say.
    bound: String,
    nonce: Vec<u8>,
    /// `AuthMessage` of RFC 5802 as far as it is known: two messages, each with its comma.
    transcript: Vec<u8>,
}

impl AwaitFinal {
    /// Whether the client has chosen -PLUS: no proof will be good without the binding.
    pub fn is_bound(&self) -> bool {
        self.choice == Choice::Plus
    }

    /// Takes `SASLResponse`'s data; returns the data of `AuthenticationSASLFinal` and the client's
    /// key.
    pub fn client_final(self, data: &[u8]) -> Result<(Vec<u8>, ClientKey), ScramError> {
        check_bounds(data)?;
        let mut attributes = Attributes::new(data);
        // Nothing secret: the certificate is public.
        if attributes.required(b'c')? != self.bound.as_bytes() {
            return Err(match self.choice {
                Choice::Plus => ScramError::BindingMismatch,
                Choice::Plain { .. } => ScramError::ChannelBinding,
            });
        }
        let nonce = attributes.required(b'r')?;
        // Optional extensions are ignored up to the proof, which is the last attribute.
        let proof = loop {
            match attributes.any()? {
                (b'p', value) => break value,
                (b'm', _) => return Err(ScramError::Extension),
                _ => {}
            }
        };
        if !attributes.at_end() {
            return Err(malformed("Garbage found at the end of client-final-message."));
        }
        let without_proof = &data[..data.len() - proof.len() - b",p=".len()];
        let proof = decode_key(proof).ok_or_else(|| malformed("Malformed proof in client-final-message."))?;
        if nonce != self.nonce {
            return Err(ScramError::Nonce);
        }

        let message: [&[u8]; 2] = [&self.transcript, without_proof];
        let signature = hmac_sha256(&self.verifier.stored_key, &message);
        let key = xor(&proof, &signature);
        let server_signature = hmac_sha256(&self.verifier.server_key, &message);
        // Not short-circuited: both kinds of failure take the same time.
        if !(same(&*sha256(&*key), &self.verifier.stored_key) & self.known) {
            return Err(ScramError::Proof);
        }
        let server_final = format!("v={}", BASE64.encode(*server_signature)).into_bytes();
        Ok((
            server_final,
            ClientKey {
                key,
                verifier: self.verifier,
            },
        ))
    }
}

/// The mechanism the client has chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Choice {
    Plain { plus_offered: bool },
    Plus,
}

/// The client's first message, cut into its parts.
struct ClientFirst<'a> {
    /// `n,,`, `y,,` or `p=tls-server-end-point,,`.
    gs2_header: &'a [u8],
    /// Everything behind the header.
    bare: &'a [u8],
    nonce: &'a [u8],
}

impl<'a> ClientFirst<'a> {
    fn parse(data: &'a [u8], choice: Choice) -> Result<Self, ScramError> {
        let [flag, tail @ ..] = data else {
            return Err(malformed("The message is empty."));
        };
        let tail = match (flag, choice) {
            (b'n', Choice::Plain { .. }) | (b'y', Choice::Plain { plus_offered: false }) => tail,
            (b'y', Choice::Plain { plus_offered: true }) => return Err(ScramError::Downgrade),
            (b'p', Choice::Plus) => Self::binding_type(data)?,
            (b'n' | b'y', Choice::Plus) => {
                return Err(malformed(
                    "The client selected SCRAM-SHA-256-PLUS, but the SCRAM message does not include channel binding \
                     data.",
                ));
            }
            (b'p', Choice::Plain { .. }) => {
                return Err(malformed(
                    "The client selected SCRAM-SHA-256 without channel binding, but the SCRAM message includes \
                     channel binding data.",
                ));
            }
            (other, _) => {
                return Err(malformed(format!(
                    "Unexpected channel-binding flag \"{}\".",
                    shown(*other)
                )));
            }
        };
        match tail {
            [b',', b',', bare @ ..] => {
                let nonce = Self::nonce(bare)?;
                Ok(Self {
                    gs2_header: &data[..data.len() - bare.len()],
                    bare,
                    nonce,
                })
            }
            [b',', b'a', ..] => Err(ScramError::AuthorizationIdentity),
            [b',', other, ..] => Err(malformed(format!(
                "Unexpected attribute \"{}\" in client-first-message.",
                shown(*other)
            ))),
            [other, ..] if *other != b',' => Err(malformed(format!(
                "Comma expected, but found character \"{}\".",
                shown(*other)
            ))),
            _ => Err(malformed("Attribute expected, but found end of string.")),
        }
    }

    /// What follows `p=tls-server-end-point`.
    fn binding_type(data: &'a [u8]) -> Result<&'a [u8], ScramError> {
        let value = Attributes::new(data).required(b'p')?;
        if value != BINDING_TYPE.as_bytes() {
            let shown = value.iter().take(30).map(|byte| match byte {
                b'!'..=b'~' => char::from(*byte),
                _ => '?',
            });
            return Err(ScramError::BindingType(shown.collect()));
        }
        Ok(&data["p=".len() + value.len()..])
    }

    /// The user's name in `n=` is ignored, as in PostgreSQL: the one of the startup packet counts.
    fn nonce(bare: &'a [u8]) -> Result<&'a [u8], ScramError> {
        if bare.first() == Some(&b'm') {
            return Err(ScramError::Extension);
        }
        let mut attributes = Attributes::new(bare);
        attributes.required(b'n')?;
        let nonce = attributes.required(b'r')?;
        if !is_printable(nonce) {
            return Err(ScramError::NonceCharacters);
        }
        if nonce.is_empty() {
            return Err(malformed("The nonce is empty."));
        }
        while !attributes.at_end() {
            if attributes.any()?.0 == b'm' {
                return Err(ScramError::Extension);
            }
        }
        Ok(nonce)
    }
}

fn check_bounds(data: &[u8]) -> Result<(), ScramError> {
    if data.is_empty() {
        return Err(malformed("The message is empty."));
    }
    if data.len() > MAX_CLIENT_MESSAGE {
        return Err(malformed("The message is too long."));
    }
    if data.contains(&0) {
        return Err(malformed("Message length does not match input length."));
    }
    Ok(())
}

fn malformed(detail: impl Into<String>) -> ScramError {
    ScramError::Malformed(detail.into())
}

/// A byte of a client as text.
fn shown(byte: u8) -> String {
    if byte.is_ascii_graphic() {
        char::from(byte).to_string()
    } else {
        format!("0x{byte:02x}")
    }
}
