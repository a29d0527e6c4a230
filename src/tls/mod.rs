//! TLS, where rustls alone differs from OpenSSL and libpq: which authorities are trusted to sign a
//! certificate, which key signed a handshake, and which names a client may ask for.
//!
//! Guarantees: the signature of every handshake is verified with the key of the certificate shown,
//! even where nothing else of the certificate is verified; an expired authority, or a certificate
//! that is none of an authority, is not trusted to sign others; a certificate that is configured as
//! trusted is itself trusted, byte for byte.
//!
//! Refuses: chains of version 1 certificates, keys that the cryptographic library does not know,
//! RSA below 2048 bits.

mod authority;
mod error;
mod hello;
mod name;
mod pair;
pub(crate) mod signature;
mod verifier;

#[cfg(test)]
mod tests;

pub(crate) use authority::{Authorities, AuthorityError};
pub(crate) use error::{NO_TLS, NOT_TRUSTED, among_causes, explain, explain_client, of_io};
pub(crate) use hello::{HelloStream, server_provider};
pub(crate) use name::fits_name;
pub(crate) use pair::certified;
pub(crate) use verifier::{ClientVerifier, NameCheck, ServerVerifier};
