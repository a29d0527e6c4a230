//! TLS, where rustls alone differs from OpenSSL and libpq: who vouches for a certificate, whose key signed a handshake,
//! and which names a client may ask for.
//!
//! Guarantees: the signature of every handshake is verified with the key of the certificate shown, also where nothing
//! else of the certificate is; an authority that has expired, or is none, vouches for nobody; a certificate that is
//! configured as trusted is trusted itself, byte for byte.
//!
//! Refuses: chains of version 1 certificates, keys that the cryptographic library does not know, RSA below 2048 bits.

mod authority;
mod error;
mod hello;
mod name;
mod pair;
pub mod signature;
mod verifier;

#[cfg(test)]
mod tests;

pub use authority::{Authorities, AuthorityError};
pub use error::{TrustError, among_causes, explain, of_io};
pub use hello::{HelloStream, server_provider};
pub use name::fits_name;
pub use pair::certified;
pub use verifier::{ClientVerifier, NameCheck, ServerVerifier};
