//! The peer channel: how one router asks another for cancels, without IO.
//!
//! It runs over any PostgreSQL listener, as its own kind of first packet. A conversation is kept: many questions, each
//! about many keys, answered in whatever order the answers are known.
//!
//! ```text
//! asking   [length][PEER_REQUEST_CODE][version][nonce 32]       41 bytes
//! asked    [length][PEER_REQUEST_CODE][nonce 32]                40 bytes
//! asking   [length][sealed question]                           284 bytes, or a multiple of 264 more
//! asked    [length][sealed answer]                              84 bytes, or a multiple of 64 more
//! ```
//!
//! Lengths are big-endian and include themselves. Questions and answers are sealed with AES-256-GCM under two keys of
//! the conversation (HMAC-SHA-256 of the peers' secret over a label for the direction and both nonces), with the number
//! of the message as nonce. So nothing can be replayed, reflected, left out or altered, and an onlooker learns no more
//! than that there was something to ask. (Whoever records the traffic and later gets the secret can read old questions:
//! keys of sessions that are gone.)
//!
//! Refuses: to answer anything to a peer that does not have the secret, and to pass a question on: it has one hop.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use bytes::{Bytes, BytesMut};
use zeroize::Zeroizing;

use super::keys::Incarnation;
use crate::auth::crypto::{hmac_sha256, random};
use crate::config::Secret;
use crate::wire::startup::{CancelRequest, PEER_REQUEST_CODE};

/// The whole first packet.
pub(super) const OPENING_LEN: usize = 41;
/// The whole answer to it.
pub(super) const CHALLENGE_LEN: usize = 40;
/// Keys in one question, and answers in one message.
pub(super) const MOST_AT_ONCE: usize = 64;

const VERSION: u8 = 2;
/// A question is not passed on by the one who gets it.
const HOP: u8 = 1;
const LENGTH_LEN: usize = 4;
const NONCE_LEN: usize = 32;
const TAG_LEN: usize = 16;
/// Hop and number of keys.
const QUESTION_HEAD: usize = 1 + 2;
/// Number, process id, length of the key.
const KEY_HEAD: usize = 4 + 4 + 2;
/// Incarnation and number of answers.
const ANSWER_HEAD: usize = 8 + 2;
/// Number, and what became of it.
const ANSWER_LEN: usize = 4 + 1;
/// Messages are filled up with zeros to a multiple of these, so that their length tells little.
const QUESTION_UNIT: usize = 264;
const ANSWER_UNIT: usize = 64;
const MIN_KEY: usize = 4;
const MAX_KEY: usize = 256;
/// What the largest question and the largest answer are not longer than.
const LARGEST_QUESTION: usize =
    LENGTH_LEN + QUESTION_HEAD + MOST_AT_ONCE * (KEY_HEAD + MAX_KEY) + QUESTION_UNIT + TAG_LEN;
const LARGEST_ANSWER: usize = LENGTH_LEN + ANSWER_HEAD + MOST_AT_ONCE * ANSWER_LEN + ANSWER_UNIT + TAG_LEN;

/// One key that is asked about: cancel what it stands for, if it is a session of yours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asked {
    /// Chosen by who asks.
    pub number: u32,
    /// The key has 4 to 256 bytes.
    pub request: CancelRequest,
}

/// What is known of one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Answered {
    pub number: u32,
    pub fate: Fate,
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// Nobody here has the key.
    NotFound,
    /// The session is here; another answer says when all is done.
    Found,
    /// The session is here, and all is done.
    Done,
}

/// What the other one says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answers {
    pub incarnation: Incarnation,
    pub answers: Vec<Answered>,
}

/// Why a peer conversation ends. The other side is told nothing, its connection is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum PeerError {
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
}

/// The peers' secret, ready for use.
#[derive(Clone)]
pub(super) struct PeerKey(Zeroizing<[u8; 32]>);

impl PeerKey {
    pub(super) fn new(secret: &Secret) -> Self {
        Self(hmac_sha256(secret.expose(), &[b"trunkline peer channel v1"]))
    }

    fn seals(&self, asking: &[u8; NONCE_LEN], asked: &[u8; NONCE_LEN]) -> (Seal, Seal) {
        let seal = |label: &[u8]| Seal::new(&hmac_sha256(&*self.0, &[label, asking, asked]));
        (seal(b"questions:"), seal(b"answers..:"))
    }
}

impl std::fmt::Debug for PeerKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PeerKey(***)")
    }
}

/// The key of one direction of one conversation, and how many messages have gone that way.
struct Seal {
    key: LessSafeKey,
    messages: u64,
}

impl Seal {
    fn new(key: &[u8; 32]) -> Self {
        let key = UnboundKey::new(&AES_256_GCM, key).expect("an AES-256 key has 32 bytes");
        Self {
            key: LessSafeKey::new(key),
            messages: 0,
        }
    }

    /// Used once: each message has a number of its own.
    fn nonce(&mut self) -> Nonce {
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&self.messages.to_be_bytes());
        self.messages += 1;
        Nonce::assume_unique_for_key(nonce)
    }

    /// The whole packet: length (authenticated), then `body` sealed, filled up to a multiple of `unit`.
    fn close(&mut self, mut body: Zeroizing<Vec<u8>>, unit: usize) -> Vec<u8> {
        let filled = body.len().next_multiple_of(unit);
        body.resize(filled, 0);
        let total = LENGTH_LEN + body.len() + TAG_LEN;
        let length = u32::try_from(total)
            .expect("peer packets are small")
            .to_be_bytes();
        let nonce = self.nonce();
        let tag = self
            .key
            .seal_in_place_separate_tag(nonce, Aad::from(length), &mut body)
            .expect("AES-GCM seals a small message");
        [&length, body.as_slice(), tag.as_ref()].concat()
    }

    /// The body of a whole packet.
    fn open(&mut self, packet: &[u8]) -> Result<Zeroizing<Vec<u8>>, PeerError> {
        let length = checked_length(packet, packet.len())?;
        let mut body = Zeroizing::new(packet[LENGTH_LEN..].to_vec());
        let nonce = self.nonce();
        let opened = self
            .key
            .open_in_place(nonce, Aad::from(length), &mut body)
            .map_err(|_| PeerError::NotAuthentic)?
            .len();
        body.truncate(opened);
        Ok(body)
    }
}

/// The length of the packet that begins with these bytes; `None`: they are too few to tell.
fn announced(bytes: &[u8], largest: usize) -> Result<Option<usize>, PeerError> {
    let Some(length) = bytes.first_chunk::<LENGTH_LEN>() else {
        return Ok(None);
    };
    let length = usize::try_from(u32::from_be_bytes(*length)).map_err(|_| PeerError::Length)?;
    if (LENGTH_LEN + TAG_LEN..=largest).contains(&length) {
        Ok(Some(length))
    } else {
        Err(PeerError::Length)
    }
}

/// Takes a whole packet from the start of `buffer`; `None`: more is needed.
fn whole(buffer: &mut BytesMut, largest: usize) -> Result<Option<BytesMut>, PeerError> {
    match announced(buffer, largest)? {
        Some(length) if buffer.len() >= length => Ok(Some(buffer.split_to(length))),
        _ => Ok(None),
    }
}

fn checked_length(packet: &[u8], total: usize) -> Result<[u8; LENGTH_LEN], PeerError> {
    let length = *packet.first_chunk::<LENGTH_LEN>().ok_or(PeerError::Length)?;
    let said = usize::try_from(u32::from_be_bytes(length)).map_err(|_| PeerError::Length)?;
    if packet.len() == total && said == total {
        Ok(length)
    } else {
        Err(PeerError::Length)
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
    pub(super) fn challenge(self, packet: &[u8]) -> Result<Asking, PeerError> {
        checked_length(packet, CHALLENGE_LEN)?;
        let (head, nonce) = packet.split_at(CHALLENGE_LEN - NONCE_LEN);
        if head[LENGTH_LEN..] != PEER_REQUEST_CODE.to_be_bytes() {
            return Err(PeerError::Version);
        }
        let asked = nonce.try_into().map_err(|_| PeerError::Length)?;
        let (questions, answers) = self.key.seals(&self.nonce, asked);
        Ok(Asking { questions, answers })
    }
}

/// The asking side of a conversation.
pub(super) struct Asking {
    questions: Seal,
    answers: Seal,
}

impl Asking {
    /// Returns the packet to send. At most [`MOST_AT_ONCE`] keys, each of a length that a cancel request may have.
    pub(super) fn ask(&mut self, asked: &[Asked]) -> Vec<u8> {
        self.questions.close(encode_question(asked), QUESTION_UNIT)
    }

    /// Takes one packet from the start of what has come; `None`: more is needed. Only somebody with the secret can
    /// have made it.
    pub(super) fn answers(&mut self, buffer: &mut BytesMut) -> Result<Option<Answers>, PeerError> {
        let Some(packet) = whole(buffer, LARGEST_ANSWER)? else {
            return Ok(None);
        };
        decode_answers(&self.answers.open(&packet)?).map(Some)
    }
}

/// The asked side of a conversation.
pub(super) struct Answering {
    questions: Seal,
    answers: Seal,
}

/// Takes the body of a first packet, behind length and code; returns the challenge to send.
pub(super) fn answer(key: &PeerKey, body: &[u8]) -> Result<(Answering, Vec<u8>), PeerError> {
    let (&version, asking) = body.split_first().ok_or(PeerError::Length)?;
    if version != VERSION {
        return Err(PeerError::Version);
    }
    let asking: &[u8; NONCE_LEN] = asking.try_into().map_err(|_| PeerError::Length)?;
    let asked = random();
    let (questions, answers) = key.seals(asking, &asked);
    let mut packet = header(CHALLENGE_LEN);
    packet.extend_from_slice(&asked);
    Ok((Answering { questions, answers }, packet))
}

impl Answering {
    /// Takes one packet from the start of what has come; `None`: more is needed. What it returns comes from a peer with
    /// the secret, now.
    pub(super) fn question(&mut self, buffer: &mut BytesMut) -> Result<Option<Vec<Asked>>, PeerError> {
        let Some(packet) = whole(buffer, LARGEST_QUESTION)? else {
            return Ok(None);
        };
        decode_question(&self.questions.open(&packet)?).map(Some)
    }

    /// Returns the packet to send. At most [`MOST_AT_ONCE`] answers.
    pub(super) fn answer(&mut self, answers: &Answers) -> Vec<u8> {
        self.answers.close(encode_answers(answers), ANSWER_UNIT)
    }
}

fn encode_question(asked: &[Asked]) -> Zeroizing<Vec<u8>> {
    debug_assert!(asked.len() <= MOST_AT_ONCE, "{} keys at once", asked.len());
    let mut body = Zeroizing::new(Vec::with_capacity(QUESTION_UNIT));
    body.push(HOP);
    body.extend_from_slice(&count(asked.len()));
    for Asked { number, request } in asked {
        body.extend_from_slice(&number.to_be_bytes());
        body.extend_from_slice(&request.process_id.to_be_bytes());
        body.extend_from_slice(&count(request.key.len()));
        body.extend_from_slice(&request.key);
    }
    body
}

fn count(number: usize) -> [u8; 2] {
    u16::try_from(number)
        .expect("keys are short and few at once")
        .to_be_bytes()
}

fn decode_question(body: &[u8]) -> Result<Vec<Asked>, PeerError> {
    let mut rest = body;
    let [HOP] = take(&mut rest)? else {
        return Err(PeerError::Malformed);
    };
    let keys = usize::from(u16::from_be_bytes(take(&mut rest)?));
    if keys > MOST_AT_ONCE {
        return Err(PeerError::Malformed);
    }
    let mut asked = Vec::with_capacity(keys);
    for _ in 0..keys {
        let number = u32::from_be_bytes(take(&mut rest)?);
        let process_id = u32::from_be_bytes(take(&mut rest)?);
        let length = usize::from(u16::from_be_bytes(take(&mut rest)?));
        let (key, behind) = rest.split_at_checked(length).ok_or(PeerError::Malformed)?;
        if !(MIN_KEY..=MAX_KEY).contains(&length) {
            return Err(PeerError::Malformed);
        }
        rest = behind;
        let key = Bytes::copy_from_slice(key);
        asked.push(Asked {
            number,
            request: CancelRequest { process_id, key },
        });
    }
    nothing_but_zeros(rest)?;
    Ok(asked)
}

fn encode_answers(Answers { incarnation, answers }: &Answers) -> Zeroizing<Vec<u8>> {
    debug_assert!(answers.len() <= MOST_AT_ONCE, "{} answers at once", answers.len());
    let mut body = Zeroizing::new(Vec::with_capacity(ANSWER_UNIT));
    body.extend_from_slice(&incarnation.0);
    body.extend_from_slice(&count(answers.len()));
    for Answered { number, fate } in answers {
        body.extend_from_slice(&number.to_be_bytes());
        body.push(match fate {
            Fate::NotFound => 0,
            Fate::Found => 1,
            Fate::Done => 2,
        });
    }
    body
}

fn decode_answers(body: &[u8]) -> Result<Answers, PeerError> {
    let mut rest = body;
    let incarnation = Incarnation(take(&mut rest)?);
    let number = usize::from(u16::from_be_bytes(take(&mut rest)?));
    if number > MOST_AT_ONCE {
        return Err(PeerError::Malformed);
    }
    let mut answers = Vec::with_capacity(number);
    for _ in 0..number {
        let number = u32::from_be_bytes(take(&mut rest)?);
        let fate = match take(&mut rest)? {
            [0] => Fate::NotFound,
            [1] => Fate::Found,
            [2] => Fate::Done,
            _ => return Err(PeerError::Malformed),
        };
        answers.push(Answered { number, fate });
    }
    nothing_but_zeros(rest)?;
    Ok(Answers { incarnation, answers })
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], PeerError> {
    let (bytes, behind) = rest.split_first_chunk().ok_or(PeerError::Malformed)?;
    *rest = behind;
    Ok(*bytes)
}

fn nothing_but_zeros(rest: &[u8]) -> Result<(), PeerError> {
    if rest.iter().all(|&byte| byte == 0) {
        Ok(())
    } else {
        Err(PeerError::Malformed)
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

opaque_debug!(Asking, Answering);

#[cfg(any(test, fuzzing))]
#[path = "peer_fuzzing.rs"]
pub(crate) mod fuzzing;

#[cfg(test)]
#[path = "peer_codec_tests.rs"]
mod tests;
