//! The cancel keys handed to clients. A server's own key never leaves the router.
//!
//! Protocol 3.0 has room for 4 bytes: random, nothing else. Protocol 3.2 gets 32: the id of this
//! incarnation of this router (8), random (16), and a MAC over both with the peers' secret (8). So
//! any router can see which router issued the key, and that it is not made up, before it asks
//! another one.

use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::auth::crypto::{hmac_sha256, random, same};
use crate::config::Secret;

/// Length of a key of protocol 3.0.
pub const V30_LEN: usize = 4;
/// Length of our keys of protocol 3.2.
pub const V32_LEN: usize = 32;
const INCARNATION_LEN: usize = 8;
const SIGNED_LEN: usize = 24;

/// One run of one router: random, new at every start, so that old and new process differ during an
/// upgrade. Not secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Incarnation(pub [u8; INCARNATION_LEN]);

impl Incarnation {
    pub fn random() -> Self {
        Self(random())
    }
}

impl std::fmt::Display for Incarnation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The key a client was given.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub enum ClientCancelKey {
    V30([u8; V30_LEN]),
    V32([u8; V32_LEN]),
}

impl ClientCancelKey {
    /// For `BackendKeyData`, and nothing else.
    pub fn expose(&self) -> &[u8] {
        match self {
            Self::V30(key) => key,
            Self::V32(key) => key,
        }
    }

    /// Whether a `CancelRequest` carries this key; in constant time. The length is that of the
    /// request: its connection has no protocol version.
    pub fn matches(&self, presented: &[u8]) -> bool {
        same(self.expose(), presented)
    }
}

impl PartialEq for ClientCancelKey {
    fn eq(&self, other: &Self) -> bool {
        self.matches(other.expose())
    }
}

impl Eq for ClientCancelKey {}

impl std::fmt::Debug for ClientCancelKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClientCancelKey(***)")
    }
}

/// Which router issued a presented key, as far as the key itself shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    Mine,
    /// Another router with the same peers' secret, or an earlier process of this one.
    Peer(Incarnation),
    /// It has the form of a router's keys and a wrong MAC: no router with the secret issued it. No
    /// peer is asked.
    Forged,
    /// 4 bytes, or a length that no router issues: the registry knows, or the peers.
    Unknown,
}

/// Issues keys, and recognises them.
pub struct KeyIssuer {
    incarnation: Incarnation,
    mac_key: Zeroizing<[u8; 32]>,
}

impl KeyIssuer {
    /// Without peers the MAC is made with a secret of this process: keys of other routers then
    /// count as forged.
    pub fn new(incarnation: Incarnation, peers_secret: Option<&Secret>) -> Self {
        let mac_key = match peers_secret {
            Some(secret) => hmac_sha256(secret.expose(), &[b"trunkline cancel key v1"]),
            None => Zeroizing::new(random()),
        };
        Self { incarnation, mac_key }
    }

    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// A key for protocol 3.0. Only 32 bits: the caller draws again where a session with the same
    /// process id has it.
    pub fn issue_v30(&self) -> ClientCancelKey {
        ClientCancelKey::V30(random())
    }

    /// A key for protocol 3.2.
    pub fn issue_v32(&self) -> ClientCancelKey {
        let mut key = [0; V32_LEN];
        key[..INCARNATION_LEN].copy_from_slice(&self.incarnation.0);
        key[INCARNATION_LEN..SIGNED_LEN].copy_from_slice(&random::<{ SIGNED_LEN - INCARNATION_LEN }>());
        let mac = self.mac(&key[..SIGNED_LEN]);
        key[SIGNED_LEN..].copy_from_slice(&mac);
        ClientCancelKey::V32(key)
    }

    /// Which router issued `key`.
    pub fn owner(&self, key: &[u8]) -> Owner {
        if key.len() != V32_LEN {
            return Owner::Unknown;
        }
        let (signed, mac) = key.split_at(SIGNED_LEN);
        if !same(&self.mac(signed), mac) {
            return Owner::Forged;
        }
        let incarnation = signed
            .first_chunk()
            .map_or(self.incarnation, |bytes| Incarnation(*bytes));
        if incarnation == self.incarnation {
            Owner::Mine
        } else {
            Owner::Peer(incarnation)
        }
    }

    fn mac(&self, signed: &[u8]) -> [u8; V32_LEN - SIGNED_LEN] {
        let mac = hmac_sha256(&*self.mac_key, &[signed]);
        *mac.first_chunk().expect("a MAC of 32 bytes has 8")
    }
}

impl std::fmt::Debug for KeyIssuer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyIssuer")
            .field("incarnation", &self.incarnation)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn issuer(secret: Option<&str>) -> KeyIssuer {
        KeyIssuer::new(Incarnation::random(), secret.map(Secret::new).as_ref())
    }

    #[test]
    fn a_key_leads_to_its_router() {
        let (a, b) = (issuer(Some("shared")), issuer(Some("shared")));
        let key = a.issue_v32();
        assert_eq!(key.expose().len(), 32);
        assert_eq!(a.owner(key.expose()), Owner::Mine);
        assert_eq!(b.owner(key.expose()), Owner::Peer(a.incarnation()));
        let restarted = issuer(Some("shared"));
        assert_eq!(restarted.owner(key.expose()), Owner::Peer(a.incarnation()));
    }

    #[test]
    fn a_key_of_strangers_is_forged() {
        let own = issuer(None);
        assert_eq!(own.owner(own.issue_v32().expose()), Owner::Mine);
        for other in [issuer(None), issuer(Some("other"))] {
            assert_eq!(own.owner(other.issue_v32().expose()), Owner::Forged);
            assert_eq!(
                issuer(Some("shared")).owner(other.issue_v32().expose()),
                Owner::Forged
            );
        }
        assert_eq!(own.owner(&[0; 32]), Owner::Forged);
    }

    #[test]
    fn any_flipped_bit_is_noticed() {
        let issuer = issuer(Some("shared"));
        let key = issuer.issue_v32();
        for bit in 0..256 {
            let mut bytes = key.expose().to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(issuer.owner(&bytes), Owner::Forged);
            assert!(!key.matches(&bytes));
        }
    }

    #[test]
    fn other_lengths_tell_nothing() {
        let issuer = issuer(None);
        let key = issuer.issue_v30();
        assert_eq!(key.expose().len(), 4);
        assert_eq!(issuer.owner(key.expose()), Owner::Unknown);
        for length in [0, 31, 33, 256] {
            assert_eq!(issuer.owner(&vec![0; length]), Owner::Unknown);
        }
    }

    #[test]
    fn keys_match_whole_only_and_print_nothing() {
        let issuer = issuer(None);
        let key = issuer.issue_v32();
        assert!(key.matches(key.expose()) && key == key.clone());
        assert!(!key.matches(&key.expose()[..31]) && !key.matches(&[]));
        assert_ne!(key, issuer.issue_v32());
        assert_eq!(format!("{key:?}"), "ClientCancelKey(***)");
    }
}
