//! The peer channel: how one router asks another for a cancel, without IO.
//!
//! It runs over any PostgreSQL listener, as its own kind of first packet, one request per connection:
//!
//! ```text
//! asking   [length][PEER_REQUEST_CODE][version][nonce 32]       41 bytes
//! asked    [length][PEER_REQUEST_CODE][nonce 32]                40 bytes
//! asking   [length][sealed request]                            284 bytes
//! asked    [length][sealed reply]                               29 bytes
//! ```
//!
//! Lengths are big-endian, include themselves, and are always these. Requests and replies are sealed with AES-256-GCM
//! under keys that are used once: HMAC-SHA-256 of the peers' secret over a label for the direction and both nonces.
//! So nothing can be replayed, reflected or altered, and an onlooker learns no more than that there was a request.
//! (Whoever records the traffic and later gets the secret can read old requests: keys of sessions that are gone.)
//!
//! Refuses: to answer anything to a peer that does not have the secret, and to pass a request on: it has one hop.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use bytes::Bytes;
use zeroize::Zeroizing;

use super::keys::Incarnation;
use crate::auth::crypto::{hmac_sha256, random};
use crate::config::Secret;
use crate::wire::startup::{CancelRequest, PEER_REQUEST_CODE};

/// The whole first packet.
pub(super) const OPENING_LEN: usize = 41;
/// The whole answer to it.
pub(super) const CHALLENGE_LEN: usize = 40;
/// The whole sealed request, whatever it asks.
pub(super) const REQUEST_LEN: usize = LENGTH_LEN + REQUEST_BODY_LEN + TAG_LEN;
/// The whole sealed reply, whatever it says.
pub(super) const REPLY_LEN: usize = LENGTH_LEN + REPLY_BODY_LEN + TAG_LEN;

const VERSION: u8 = 1;
/// A request is not passed on by the one who gets it.
const HOP: u8 = 1;
const LENGTH_LEN: usize = 4;
const NONCE_LEN: usize = 32;
const TAG_LEN: usize = 16;
/// Kind, hop, process id, length of the key, the key padded with zeros.
const REQUEST_BODY_LEN: usize = 1 + 1 + 4 + 2 + MAX_KEY;
/// Found or not, incarnation.
const REPLY_BODY_LEN: usize = 1 + 8;
const MIN_KEY: usize = 4;
const MAX_KEY: usize = 256;
const KIND_CANCEL: u8 = 1;
const KIND_WHO_ARE_YOU: u8 = 2;

/// What one router asks of another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum PeerRequest {
    /// Cancel what this client's key stands for, if it is a session of yours. The key has 4 to 256 bytes.
    Cancel(CancelRequest),
    /// Which incarnation are you? (The reply to a cancel says it too.)
    WhoAreYou,
}

/// What the other one says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PeerReply {
    /// The key was known. Always `false` for [`PeerRequest::WhoAreYou`].
    pub found: bool,
    pub incarnation: Incarnation,
}

/// Why a peer conversation ends. The other side is told nothing, its connection is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum PeerFault {
    #[error("peer packet of a wrong length")]
    Length,
    #[error("not a peer packet of version {VERSION}")]
    Version,
    /// Another secret, or altered on the way.
    #[error("peer packet does not open with the peers' secret")]
    NotAuthentic,
    /// From somebody who has the secret, but not this program's format.
    #[error("malformed peer packet")]
    Malformed,
    #[error("cancel key of a length outside {MIN_KEY}..={MAX_KEY}")]
    KeyLength,
}

/// The peers' secret, ready for use.
#[derive(Clone)]
pub(super) struct PeerKey(Zeroizing<[u8; 32]>);

impl PeerKey {
    pub(super) fn new(secret: &Secret) -> Self {
        Self(hmac_sha256(secret.expose(), &[b"trunkline peer channel v1"]))
    }

    fn seals(&self, asking: &[u8; NONCE_LEN], asked: &[u8; NONCE_LEN]) -> (Seal, Seal) {
        let seal = |label: &[u8]| Seal(hmac_sha256(&*self.0, &[label, asking, asked]));
        (seal(b"request:"), seal(b"reply..:"))
    }
}

impl std::fmt::Debug for PeerKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PeerKey(***)")
    }
}

/// A key for one message. Consumed by its use, hence the nonce may be zero.
struct Seal(Zeroizing<[u8; 32]>);

impl Seal {
    fn key(&self) -> LessSafeKey {
        let key = UnboundKey::new(&AES_256_GCM, &*self.0).expect("an AES-256 key has 32 bytes");
        LessSafeKey::new(key)
    }

    fn nonce() -> Nonce {
        Nonce::assume_unique_for_key([0; 12])
    }

    /// The whole packet: length (authenticated), then `body` sealed.
    fn close(self, mut body: Zeroizing<Vec<u8>>) -> Vec<u8> {
        let total = LENGTH_LEN + body.len() + TAG_LEN;
        let length = u32::try_from(total)
            .expect("peer packets are small")
            .to_be_bytes();
        let tag = self
            .key()
            .seal_in_place_separate_tag(Self::nonce(), Aad::from(length), &mut body)
            .expect("AES-GCM seals a small message");
        [&length, body.as_slice(), tag.as_ref()].concat()
    }

    /// The body of a whole packet that must have exactly `total` bytes.
    fn open(self, packet: &[u8], total: usize) -> Result<Zeroizing<Vec<u8>>, PeerFault> {
        let length = checked_length(packet, total)?;
        let mut body = Zeroizing::new(packet[LENGTH_LEN..].to_vec());
        let opened = self
            .key()
            .open_in_place(Self::nonce(), Aad::from(length), &mut body)
            .map_err(|_| PeerFault::NotAuthentic)?
            .len();
        body.truncate(opened);
        Ok(body)
    }
}

fn checked_length(packet: &[u8], total: usize) -> Result<[u8; LENGTH_LEN], PeerFault> {
    let length = *packet.first_chunk::<LENGTH_LEN>().ok_or(PeerFault::Length)?;
    let said = usize::try_from(u32::from_be_bytes(length)).map_err(|_| PeerFault::Length)?;
    if packet.len() == total && said == total {
        Ok(length)
    } else {
        Err(PeerFault::Length)
    }
}

fn header(total: usize) -> Vec<u8> {
    let length = u32::try_from(total).expect("peer packets are small");
    [length.to_be_bytes(), PEER_REQUEST_CODE.to_be_bytes()].concat()
}

/// The asking side, whose first packet is out. Next: [`Asking`].
#[derive(Debug)]
pub(super) struct AwaitChallenge {
    key: PeerKey,
    nonce: [u8; NONCE_LEN],
}

/// Starts to ask: returns the first packet.
pub(super) fn open(key: &PeerKey) -> (AwaitChallenge, Vec<u8>) {
    let nonce = random();
    let mut packet = header(OPENING_LEN);
    packet.push(VERSION);
    packet.extend_from_slice(&nonce);
    (
        AwaitChallenge {
            key: key.clone(),
            nonce,
        },
        packet,
    )
}

impl AwaitChallenge {
    /// Takes the [`CHALLENGE_LEN`] bytes that come back.
    pub(super) fn challenge(self, packet: &[u8]) -> Result<Asking, PeerFault> {
        checked_length(packet, CHALLENGE_LEN)?;
        let (head, nonce) = packet.split_at(CHALLENGE_LEN - NONCE_LEN);
        if head[LENGTH_LEN..] != PEER_REQUEST_CODE.to_be_bytes() {
            return Err(PeerFault::Version);
        }
        let asked = nonce.try_into().map_err(|_| PeerFault::Length)?;
        let (request, reply) = self.key.seals(&self.nonce, asked);
        Ok(Asking { request, reply })
    }
}

/// The asking side, ready to ask one thing. Next: [`AwaitReply`].
pub(super) struct Asking {
    request: Seal,
    reply: Seal,
}

impl Asking {
    /// Returns the packet to send.
    pub(super) fn ask(self, request: &PeerRequest) -> Result<(AwaitReply, Vec<u8>), PeerFault> {
        let body = encode_request(request)?;
        Ok((AwaitReply { reply: self.reply }, self.request.close(body)))
    }
}

/// The asking side, which has asked.
pub(super) struct AwaitReply {
    reply: Seal,
}

impl AwaitReply {
    /// Takes the [`REPLY_LEN`] bytes that come back. Only somebody with the secret can have made them.
    pub(super) fn reply(self, packet: &[u8]) -> Result<PeerReply, PeerFault> {
        let body = self.reply.open(packet, REPLY_LEN)?;
        let (&found, incarnation) = body.split_first().ok_or(PeerFault::Malformed)?;
        let incarnation = Incarnation(incarnation.try_into().map_err(|_| PeerFault::Malformed)?);
        match found {
            0 | 1 => Ok(PeerReply {
                found: found == 1,
                incarnation,
            }),
            _ => Err(PeerFault::Malformed),
        }
    }
}

/// The asked side, whose challenge is out. Next: [`Answering`].
pub(super) struct AwaitRequest {
    request: Seal,
    reply: Seal,
}

/// Takes the body of a first packet, behind length and code; returns the challenge to send.
pub(super) fn answer(key: &PeerKey, body: &[u8]) -> Result<(AwaitRequest, Vec<u8>), PeerFault> {
    let (&version, asking) = body.split_first().ok_or(PeerFault::Length)?;
    if version != VERSION {
        return Err(PeerFault::Version);
    }
    let asking: &[u8; NONCE_LEN] = asking.try_into().map_err(|_| PeerFault::Length)?;
    let asked = random();
    let (request, reply) = key.seals(asking, &asked);
    let mut packet = header(CHALLENGE_LEN);
    packet.extend_from_slice(&asked);
    Ok((AwaitRequest { request, reply }, packet))
}

impl AwaitRequest {
    /// Takes the [`REQUEST_LEN`] bytes that come next. What it returns comes from a peer with the secret, now.
    pub(super) fn request(self, packet: &[u8]) -> Result<(PeerRequest, Answering), PeerFault> {
        let body = self.request.open(packet, REQUEST_LEN)?;
        Ok((decode_request(&body)?, Answering { reply: self.reply }))
    }
}

/// The asked side, which owes a reply.
pub(super) struct Answering {
    reply: Seal,
}

impl Answering {
    /// Returns the packet to send; the conversation is over.
    pub(super) fn reply(self, reply: PeerReply) -> Vec<u8> {
        let mut body = Zeroizing::new(Vec::with_capacity(REPLY_BODY_LEN));
        body.push(u8::from(reply.found));
        body.extend_from_slice(&reply.incarnation.0);
        self.reply.close(body)
    }
}

fn encode_request(request: &PeerRequest) -> Result<Zeroizing<Vec<u8>>, PeerFault> {
    let mut body = Zeroizing::new(Vec::with_capacity(REQUEST_BODY_LEN));
    match request {
        PeerRequest::Cancel(CancelRequest { process_id, key }) => {
            let length = u16::try_from(key.len())
                .ok()
                .filter(|_| (MIN_KEY..=MAX_KEY).contains(&key.len()))
                .ok_or(PeerFault::KeyLength)?;
            body.extend_from_slice(&[KIND_CANCEL, HOP]);
            body.extend_from_slice(&process_id.to_be_bytes());
            body.extend_from_slice(&length.to_be_bytes());
            body.extend_from_slice(key);
        }
        PeerRequest::WhoAreYou => body.extend_from_slice(&[KIND_WHO_ARE_YOU, HOP]),
    }
    body.resize(REQUEST_BODY_LEN, 0);
    Ok(body)
}

fn decode_request(body: &[u8]) -> Result<PeerRequest, PeerFault> {
    let [kind, HOP, a, b, c, d, high, low, rest @ ..] = body else {
        return Err(PeerFault::Malformed);
    };
    let process_id = u32::from_be_bytes([*a, *b, *c, *d]);
    let length = usize::from(u16::from_be_bytes([*high, *low]));
    let (key, padding) = rest.split_at_checked(length).ok_or(PeerFault::Malformed)?;
    if padding.iter().any(|&byte| byte != 0) {
        return Err(PeerFault::Malformed);
    }
    match *kind {
        KIND_CANCEL if (MIN_KEY..=MAX_KEY).contains(&length) => Ok(PeerRequest::Cancel(CancelRequest {
            process_id,
            key: Bytes::copy_from_slice(key),
        })),
        KIND_WHO_ARE_YOU if process_id == 0 && length == 0 => Ok(PeerRequest::WhoAreYou),
        _ => Err(PeerFault::Malformed),
    }
}

macro_rules! opaque_debug {
    ($($state:ident),*) => {$(
        impl std::fmt::Debug for $state {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(concat!(stringify!($state), "(***)"))
            }
        }
    )*};
}

opaque_debug!(Asking, AwaitReply, AwaitRequest, Answering);

#[cfg(any(test, fuzzing))]
#[path = "peer_fuzzing.rs"]
pub(crate) mod fuzzing;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn key(secret: &str) -> PeerKey {
        PeerKey::new(&Secret::new(secret))
    }

    fn cancel(key: &[u8]) -> PeerRequest {
        PeerRequest::Cancel(CancelRequest {
            process_id: 4711,
            key: Bytes::copy_from_slice(key),
        })
    }

    const ME: Incarnation = Incarnation(*b"12345678");

    /// Both ends up to the point where the request may be sent.
    fn meet(asking: &PeerKey, asked: &PeerKey) -> (Asking, AwaitRequest) {
        let (state, opening) = open(asking);
        assert_eq!(opening.len(), OPENING_LEN);
        let (waiting, challenge) = answer(asked, &opening[8..]).unwrap();
        assert_eq!(challenge.len(), CHALLENGE_LEN);
        (state.challenge(&challenge).unwrap(), waiting)
    }

    #[test]
    fn the_first_packet_is_a_first_packet() {
        let (_, opening) = open(&key("s"));
        assert_eq!(opening[..4], 41_u32.to_be_bytes());
        assert_eq!(opening[4..8], PEER_REQUEST_CODE.to_be_bytes());
        assert_ne!(opening, open(&key("s")).1, "a nonce is used once");
    }

    #[test]
    fn who_are_you() {
        let (asking, asked) = meet(&key("s"), &key("s"));
        let (waiting, packet) = asking.ask(&PeerRequest::WhoAreYou).unwrap();
        let (request, answering) = asked.request(&packet).unwrap();
        assert_eq!(request, PeerRequest::WhoAreYou);
        let reply = PeerReply {
            found: false,
            incarnation: ME,
        };
        assert_eq!(waiting.reply(&answering.reply(reply)).unwrap(), reply);
    }

    #[test]
    fn another_secret_learns_and_gets_nothing() {
        let (asking, asked) = meet(&key("ours"), &key("theirs"));
        let (waiting, packet) = asking.ask(&cancel(b"secretkey")).unwrap();
        assert!(!packet.windows(9).any(|window| window == b"secretkey"));
        assert_eq!(asked.request(&packet).unwrap_err(), PeerFault::NotAuthentic);
        let (_, other) = meet(&key("theirs"), &key("theirs"));
        let forged = Answering { reply: other.reply }.reply(PeerReply {
            found: true,
            incarnation: ME,
        });
        assert_eq!(waiting.reply(&forged).unwrap_err(), PeerFault::NotAuthentic);
    }

    #[test]
    fn a_recorded_request_is_of_no_use_again() {
        let shared = key("s");
        let (state, opening) = open(&shared);
        let (_, challenge) = answer(&shared, &opening[8..]).unwrap();
        let (_, packet) = state
            .challenge(&challenge)
            .unwrap()
            .ask(&cancel(b"1234"))
            .unwrap();
        let (second, _) = answer(&shared, &opening[8..]).unwrap();
        assert_eq!(second.request(&packet).unwrap_err(), PeerFault::NotAuthentic);
    }

    #[test]
    fn a_request_sent_back_is_no_reply() {
        let (asking, asked) = meet(&key("s"), &key("s"));
        let Asking { request, reply } = asking;
        let packet = reply.close(encode_request(&PeerRequest::WhoAreYou).unwrap());
        assert_eq!(asked.request(&packet).unwrap_err(), PeerFault::NotAuthentic);
        drop(request);
    }

    #[test]
    fn another_hop_or_form_is_refused() {
        let with = |change: &dyn Fn(&mut Vec<u8>)| {
            let (asking, asked) = meet(&key("s"), &key("s"));
            let mut body = encode_request(&cancel(b"12345678")).unwrap();
            change(&mut body);
            asked
                .request(&asking.request.close(body))
                .map(|(request, _)| request)
        };
        assert_eq!(with(&|_| ()), Ok(cancel(b"12345678")));
        assert_eq!(with(&|body| body[0] = 9), Err(PeerFault::Malformed));
        assert_eq!(
            with(&|body| body[0] = KIND_WHO_ARE_YOU),
            Err(PeerFault::Malformed)
        );
        assert_eq!(with(&|body| body[1] = 2), Err(PeerFault::Malformed));
        assert_eq!(with(&|body| body[6] = 2), Err(PeerFault::Malformed));
        assert_eq!(with(&|body| body[7] = 3), Err(PeerFault::Malformed));
        assert_eq!(
            with(&|body| body[REQUEST_BODY_LEN - 1] = 1),
            Err(PeerFault::Malformed)
        );
        assert_eq!(with(&|body| body.push(0)), Err(PeerFault::Length));
        assert_eq!(
            with(&|body| {
                body.pop();
            }),
            Err(PeerFault::Length)
        );
    }

    #[test]
    fn a_key_of_an_impossible_length_is_not_sent() {
        for length in [0, 3, 257] {
            let (asking, _) = meet(&key("s"), &key("s"));
            assert_eq!(
                asking.ask(&cancel(&vec![1; length])).unwrap_err(),
                PeerFault::KeyLength
            );
        }
    }

    proptest! {
        #[test]
        fn a_cancel_arrives_as_it_was_sent(
            process_id: u32, bytes in proptest::collection::vec(any::<u8>(), MIN_KEY..=MAX_KEY), found: bool,
        ) {
            let (asking, asked) = meet(&key("s"), &key("s"));
            let sent = PeerRequest::Cancel(CancelRequest { process_id, key: Bytes::from(bytes) });
            let (waiting, packet) = asking.ask(&sent).unwrap();
            prop_assert_eq!(packet.len(), REQUEST_LEN);
            let (received, answering) = asked.request(&packet).unwrap();
            prop_assert_eq!(received, sent);
            let packet = answering.reply(PeerReply { found, incarnation: ME });
            prop_assert_eq!(packet.len(), REPLY_LEN);
            prop_assert_eq!(waiting.reply(&packet).unwrap(), PeerReply { found, incarnation: ME });
        }

        #[test]
        fn any_flipped_bit_ends_it(step in 0usize..4, place in any::<prop::sample::Index>(), bit in 0u8..8) {
            let shared = key("s");
            let flip = |at: usize, mut packet: Vec<u8>| {
                if at == step {
                    let index = place.index(packet.len());
                    packet[index] ^= 1 << bit;
                }
                packet
            };
            let outcome = (|| {
                let (state, opening) = open(&shared);
                // Length and code are read by the listener.
                let (asked, challenge) = answer(&shared, &flip(0, opening[8..].to_vec()))?;
                let (waiting, packet) = state.challenge(&flip(1, challenge))?.ask(&cancel(b"12345678"))?;
                let (_, answering) = asked.request(&flip(2, packet))?;
                waiting.reply(&flip(3, answering.reply(PeerReply { found: true, incarnation: ME })))
            })();
            prop_assert!(outcome.is_err());
        }

        #[test]
        fn no_input_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300), cut in 0usize..=REQUEST_LEN) {
            let shared = key("s");
            let _ = answer(&shared, &bytes);
            prop_assert!(open(&shared).0.challenge(&bytes).is_err());
            let (asking, asked) = meet(&shared, &shared);
            let (waiting, packet) = asking.ask(&PeerRequest::WhoAreYou).unwrap();
            prop_assert!(waiting.reply(&bytes).is_err());
            prop_assert_eq!(asked.request(&packet[..cut]).is_ok(), cut == REQUEST_LEN);
            let _ = decode_request(&bytes);
        }
    }
}
