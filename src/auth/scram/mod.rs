//! SCRAM-SHA-256 without IO (RFC 5802, RFC 7677; PostgreSQL documentation, "SASL Authentication"):
//! [`server`] is the router towards clients, [`client`] the router towards servers.
//!
//! Guarantees: the length of every message is checked before it is parsed; before its proof a
//! client learns only a salt and a number of iterations, and it gets those for a user that does not
//! exist, too; a server is trusted only after it has proven that it knows the verifier.
//!
//! Channel binding (SCRAM-SHA-256-PLUS) on both sides, with `tls-server-end-point`: [`binding`].
//!
//! Refuses: other types of binding, authorization identities, mandatory extensions.

use std::borrow::Cow;
use std::num::NonZeroU32;
use std::sync::Arc;

use aws_lc_rs::{digest, pbkdf2};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::crypto::{hmac_sha256, random, same};
use super::md5::Md5Hash;
use crate::config::Secret;

mod attributes;
pub mod binding;
pub mod client;
mod error;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
pub mod server;

#[cfg(test)]
mod tests;

pub use binding::tls_server_end_point;
pub use client::{ClientBinding, ClientExchange, ClientSecret, ServerProven};
pub use error::{ScramError, ServerScramError, password_failed};
pub use server::{Lookup, ServerExchange};

pub const MECHANISM: &str = "SCRAM-SHA-256";
/// With channel binding.
pub const MECHANISM_PLUS: &str = "SCRAM-SHA-256-PLUS";
/// PostgreSQL's default of `scram_iterations`.
pub const DEFAULT_ITERATIONS: u32 = 4096;
/// PostgreSQL's length of a salt.
pub const DEFAULT_SALT_LEN: usize = 16;
/// The most iterations a stored verifier may ask for. The client does the work, not the router.
pub const MAX_VERIFIER_ITERATIONS: u32 = 1_000_000;
/// The longest salt accepted, in base64.
const MAX_SALT_BASE64: usize = 1024;
/// PostgreSQL's limit for a message from a client (`PG_MAX_SASL_MESSAGE_LENGTH`).
pub const MAX_CLIENT_MESSAGE: usize = 1024;
/// The limit for a message from a server: nonces and the longest salt fit.
pub const MAX_SERVER_MESSAGE: usize = 4096;
/// The longest password, as in PostgreSQL (tokens are passwords too).
pub const MAX_PASSWORD: usize = 65_535;

/// The mechanisms to offer a client, the stronger one first. `binding` is what
/// [`tls_server_end_point`] gives for the certificate shown to this very client, and must be what
/// [`ServerExchange::start`] is given.
pub fn mechanisms(binding: Option<&[u8]>) -> &'static [&'static str] {
    match binding {
        Some(_) => &[MECHANISM_PLUS, MECHANISM],
        None => &[MECHANISM],
    }
}

/// The form in which a server stores a password:
/// `SCRAM-SHA-256$<iterations>:<salt>$<stored key>:<server key>`.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Verifier {
    /// 1 to [`MAX_VERIFIER_ITERATIONS`].
    pub iterations: u32,
    pub salt: Vec<u8>,
    pub stored_key: [u8; 32],
    pub server_key: [u8; 32],
}

/// Why a text is not a verifier. No message repeats any of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum VerifierError {
    #[error("a SCRAM verifier has the form SCRAM-SHA-256$<iterations>:<salt>$<stored key>:<server key>")]
    Form,
    #[error("the number of iterations of a SCRAM verifier is between 1 and {MAX_VERIFIER_ITERATIONS}")]
    Iterations,
    #[error("the salt of a SCRAM verifier is base64 of 1 to 768 bytes")]
    Salt,
    #[error("the keys of a SCRAM verifier are base64 of 32 bytes each")]
    Key,
}

impl Verifier {
    /// Reads PostgreSQL's form (`pg_authid.rolpassword`), strictly: no spaces, base64 with padding.
    pub fn parse(text: &str) -> Result<Self, VerifierError> {
        let rest = text.strip_prefix("SCRAM-SHA-256$").ok_or(VerifierError::Form)?;
        let (cost, keys) = rest.split_once('$').ok_or(VerifierError::Form)?;
        let (iterations, salt) = cost.split_once(':').ok_or(VerifierError::Form)?;
        let (stored_key, server_key) = keys.split_once(':').ok_or(VerifierError::Form)?;
        let iterations = decimal(iterations.as_bytes())
            .filter(|n| (1..=MAX_VERIFIER_ITERATIONS).contains(n))
            .ok_or(VerifierError::Iterations)?;
        Ok(Self {
            iterations,
            salt: decode_salt(salt.as_bytes()).ok_or(VerifierError::Salt)?,
            stored_key: *decode_key(stored_key.as_bytes()).ok_or(VerifierError::Key)?,
            server_key: *decode_key(server_key.as_bytes()).ok_or(VerifierError::Key)?,
        })
    }

    /// PostgreSQL's form. Not `Display`, so that it reaches no log by accident.
    pub fn to_text(&self) -> Zeroizing<String> {
        Zeroizing::new(format!(
            "{MECHANISM}${}:{}${}:{}",
            self.iterations,
            BASE64.encode(&self.salt),
            BASE64.encode(self.stored_key),
            BASE64.encode(self.server_key)
        ))
    }

    /// Whether this is the verifier of `password`. Costs what [`Self::from_password`] costs with as
    /// many iterations; the comparison takes constant time.
    pub fn is_of(&self, password: &[u8]) -> bool {
        let Some(iterations) = NonZeroU32::new(self.iterations) else {
            return false;
        };
        same(
            &*Keys::derive(password, &self.salt, iterations).stored_key,
            &self.stored_key,
        )
    }

    /// Computes the verifier of a password. Takes about a millisecond of processor time for 4096
    /// iterations.
    pub fn from_password(password: &[u8], salt: &[u8], iterations: NonZeroU32) -> Self {
        let keys = Keys::derive(password, salt, iterations);
        Self {
            iterations: iterations.get(),
            salt: salt.to_vec(),
            stored_key: *keys.stored_key,
            server_key: *keys.server_key,
        }
    }
}

/// In constant time; also the salt, which costs nothing.
impl PartialEq for Verifier {
    fn eq(&self, other: &Self) -> bool {
        (self.iterations == other.iterations)
            & same(&self.salt, &other.salt)
            & same(&self.stored_key, &other.stored_key)
            & same(&self.server_key, &other.server_key)
    }
}

impl Eq for Verifier {}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Verifier(***)")
    }
}

/// A client's key, recovered from its proof: with it one can log in as that client wherever the
/// verifier is the same.
#[derive(Clone)]
pub struct ClientKey {
    pub key: Zeroizing<[u8; 32]>,
    pub verifier: Arc<Verifier>,
}

impl std::fmt::Debug for ClientKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClientKey(***)")
    }
}

/// One side's part of the nonce: printable ASCII without commas, not empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nonce(String);

impl Nonce {
    /// 18 random bytes in base64, as PostgreSQL makes them.
    pub fn random() -> Self {
        Self(BASE64.encode(random::<18>()))
    }

    /// A given nonce; for tests, where it must be known beforehand.
    #[cfg(any(test, fuzzing))]
    fn fixed(text: &str) -> Self {
        Self(text.to_owned())
    }

    fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

/// Where the verifiers of users without one come from. An unknown user gets the same salt at every
/// attempt, at every router with the same peers' secret, and after a restart: a salt that changes
/// would give it away.
pub struct MockSecret(Zeroizing<[u8; 32]>);

impl MockSecret {
    /// With peers the salts agree between routers; without a shared secret each process has its
    /// own.
    pub fn new(peers_secret: Option<&Secret>) -> Self {
        match peers_secret {
            Some(secret) => Self(hmac_sha256(secret.expose(), &[b"trunkline mock verifier v1"])),
            None => Self(Zeroizing::new(random())),
        }
    }

    /// The salt of `user`, where the router chooses it.
    pub fn salt(&self, user: &[u8]) -> [u8; DEFAULT_SALT_LEN] {
        let mut salt = [0; DEFAULT_SALT_LEN];
        salt.copy_from_slice(&hmac_sha256(&*self.0, &[b"salt:", user])[..DEFAULT_SALT_LEN]);
        salt
    }

    /// An md5 hash without a password, to check a user that does not exist.
    pub fn md5(&self, user: &[u8]) -> Md5Hash {
        Md5Hash::of(&*hmac_sha256(&*self.0, &[b"md5:", user]), user)
    }

    /// A verifier without a password.
    pub(super) fn verifier(&self, user: &[u8]) -> Verifier {
        Verifier {
            iterations: DEFAULT_ITERATIONS,
            salt: self.salt(user).to_vec(),
            stored_key: *hmac_sha256(&*self.0, &[b"stored:", user]),
            server_key: *hmac_sha256(&*self.0, &[b"server:", user]),
        }
    }
}

impl std::fmt::Debug for MockSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MockSecret(***)")
    }
}

/// The keys of RFC 5802, section 3, by their names there.
#[allow(clippy::struct_field_names)]
#[derive(Clone)]
pub struct Keys {
    client_key: Zeroizing<[u8; 32]>,
    stored_key: Zeroizing<[u8; 32]>,
    server_key: Zeroizing<[u8; 32]>,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keys(***)")
    }
}

impl Keys {
    fn derive(password: &[u8], salt: &[u8], iterations: NonZeroU32) -> Self {
        let prepared = prepare(password);
        let mut salted = Zeroizing::new([0; 32]);
        pbkdf2::derive(
            pbkdf2::PBKDF2_HMAC_SHA256,
            iterations,
            salt,
            &prepared,
            &mut *salted,
        );
        let client_key = hmac_sha256(&*salted, &[b"Client Key"]);
        Self {
            stored_key: sha256(&*client_key),
            server_key: hmac_sha256(&*salted, &[b"Server Key"]),
            client_key,
        }
    }
}

/// `SASLprep` (RFC 4013) as PostgreSQL applies it: what is not UTF-8, is prohibited, or has nothing
/// left, is used raw.
fn prepare(password: &[u8]) -> Zeroizing<Vec<u8>> {
    let prepared = std::str::from_utf8(password)
        .ok()
        .and_then(|text| stringprep::saslprep(text).ok())
        .filter(|text| !text.is_empty());
    Zeroizing::new(match prepared {
        Some(Cow::Owned(text)) => text.into_bytes(),
        Some(Cow::Borrowed(text)) => text.as_bytes().to_vec(),
        None => password.to_vec(),
    })
}

fn sha256(data: &[u8]) -> Zeroizing<[u8; 32]> {
    let mut out = Zeroizing::new([0; 32]);
    out.copy_from_slice(digest::digest(&digest::SHA256, data).as_ref());
    out
}

/// `a` XOR `b`, which turns a key into a proof and back.
fn xor(a: &[u8; 32], b: &[u8; 32]) -> Zeroizing<[u8; 32]> {
    Zeroizing::new(std::array::from_fn(|i| a[i] ^ b[i]))
}

/// A decimal number without sign or spaces.
fn decimal(digits: &[u8]) -> Option<u32> {
    let plain = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(digits).ok().filter(|_| plain)?.parse().ok()
}

fn decode_salt(text: &[u8]) -> Option<Vec<u8>> {
    if text.len() > MAX_SALT_BASE64 {
        return None;
    }
    BASE64.decode(text).ok().filter(|salt| !salt.is_empty())
}

/// Exactly 32 bytes in base64: a key, proof or signature.
fn decode_key(text: &[u8]) -> Option<Zeroizing<[u8; 32]>> {
    const ENCODED: usize = 44;
    if text.len() != ENCODED {
        return None;
    }
    let decoded = Zeroizing::new(BASE64.decode(text).ok()?);
    Some(Zeroizing::new(decoded.as_slice().try_into().ok()?))
}
