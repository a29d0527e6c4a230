//! SCRAM-SHA-256 without IO: the server's side towards clients, the client's side towards servers.

use std::sync::Arc;

use zeroize::Zeroizing;

/// What a server stores of a password: `SCRAM-SHA-256$<iterations>:<salt>$<stored key>:<server key>`.
#[derive(Clone, PartialEq, Eq)]
pub struct Verifier {
    pub iterations: u32,
    pub salt: Vec<u8>,
    pub stored_key: [u8; 32],
    pub server_key: [u8; 32],
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Verifier(***)")
    }
}

/// A client's key, recovered from its proof: with it one can log in as that client wherever the verifier is the same.
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
