//! The peer protocol: how one router asks another, without IO.
//!
//! It runs over any PostgreSQL listener, as its own kind of first packet. A conversation is kept:
//! many questions, answered in whatever order the answers are known.
//!
//! ```text
//! asking   [length][PEER_REQUEST_CODE][version][nonce 32]       41 bytes
//! asked    [length][PEER_REQUEST_CODE][version][nonce 32]       41 bytes
//! asking   [length][sealed question]                          284 bytes, or a multiple of 264 more
//! asked    [length][sealed answer]                              84 bytes, or a multiple of 64 more
//! ```
//!
//! Lengths are big-endian and include themselves. Questions and answers are sealed with AES-256-GCM
//! under two keys of the conversation (HMAC-SHA-256 of the peers' secret over a label for version
//! and direction and both nonces), with the number of the message as nonce. So nothing can be
//! replayed, reflected, left out or altered, and an onlooker learns no more than that there was
//! something to ask. (Whoever records the traffic and later gets the secret can read old questions:
//! keys of sessions that are gone.)
//!
//! A question begins with its kind, and each kind has its own [`Limits`](message::Limits). Kinds
//! that are reserved or unknown are answered as such, and the conversation goes on.
//!
//! **Versions.** The keys depend on the version, so two routers never take one version for another.
//! Version 2 had cancel requests only: their questions look the same, the challenge has no version
//! (40 bytes), answers have no kind. A router of version 3 talks to one of version 2 in version 2.
//! A router of version 2 closes the connection at an opening of version 3, so that is asked again
//! in version 2. An opening of any other version is answered by a packet that names the versions of
//! this router; a router of version 2 takes that as "not a peer packet of version 2".
//!
//! Refuses: to answer anything to a peer that does not have the secret, and to pass a question on:
//! it has one hop.

mod hold;
mod message;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use bytes::BytesMut;
use zeroize::Zeroizing;

use crate::auth::crypto::{hmac_sha256, random};
use crate::config::Secret;
use crate::session::holds::{HoldAnswer, HoldRequest};
use crate::wire::startup::PEER_REQUEST_CODE;
use message::{
    ANSWER_UNIT, MOST_ANSWER, MOST_QUESTION, QUESTION_UNIT, decode_answers, decode_question, decode_reply,
    encode_answers, encode_question, encode_refusal, take, with_kind,
};
pub(super) use message::{
    Answered, Answers, Asked, Fate, MOST_AT_ONCE, PeerError, Question, QuestionKind, Refusal, Reply,
};

/// The whole first packet.
pub(super) const OPENING_LEN: usize = 41;
/// The whole answer to it.
pub(super) const CHALLENGE_LEN: usize = 41;
/// The same in version 2, and of a packet that names the versions of this router.
const OLD_CHALLENGE_LEN: usize = 40;

/// The version that a router asks in.
pub(super) const VERSION: u8 = 3;
/// The oldest version that it understands.
pub(super) const OLD_VERSION: u8 = 2;
/// In the place of the request's code: the versions of this router follow.
const VERSIONS_CODE: u32 = PEER_REQUEST_CODE + 1;
const LENGTH_LEN: usize = 4;
const NONCE_LEN: usize = 32;
const TAG_LEN: usize = 16;
/// What the largest question and the largest answer are not longer than.
const LARGEST_QUESTION: usize = LENGTH_LEN + MOST_QUESTION + QUESTION_UNIT + TAG_LEN;
const LARGEST_ANSWER: usize = {
    let most = if MOST_ANSWER > hold::MOST_HOLD_ANSWER {
        MOST_ANSWER
    } else {
        hold::MOST_HOLD_ANSWER
    };
    LENGTH_LEN + most + ANSWER_UNIT + TAG_LEN
};

/// The peers' secret, ready for use.
#[derive(Clone)]
pub(super) struct PeerKey(Zeroizing<[u8; 32]>);

impl PeerKey {
    pub(super) fn new(secret: &Secret) -> Self {
        Self(hmac_sha256(secret.expose(), &[b"trunkline peer channel v1"]))
    }

    fn seals(&self, asking: &[u8; NONCE_LEN], asked: &[u8; NONCE_LEN], version: u8) -> (Seal, Seal) {
        let seal = |label: &[u8]| Seal::new(&hmac_sha256(&*self.0, &[label, asking, asked]));
        match version {
            OLD_VERSION => (seal(b"questions:"), seal(b"answers..:")),
            _ => (seal(b"questions of version 3:"), seal(b"answers of version 3:")),
        }
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

    /// The whole packet: length (authenticated), then `body` sealed, filled up to a multiple of
    /// `unit`.
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
    version: u8,
}

/// Starts to ask in this version: returns the first packet.
pub(super) fn open(key: &PeerKey, version: u8) -> (AwaitChallenge, Vec<u8>) {
    let nonce = random();
    let mut packet = header(OPENING_LEN);
    packet.push(version);
    packet.extend_from_slice(&nonce);
    (
        AwaitChallenge {
            key: key.clone(),
            nonce,
            version,
        },
        packet,
    )
}

/// The whole length of the packet that comes back, by its first bytes.
pub(super) fn challenge_length(length: [u8; LENGTH_LEN]) -> Result<usize, PeerError> {
    let length = usize::try_from(u32::from_be_bytes(length)).map_err(|_| PeerError::Length)?;
    match length {
        OLD_CHALLENGE_LEN | CHALLENGE_LEN => Ok(length),
        _ => Err(PeerError::Length),
    }
}

impl AwaitChallenge {
    /// Takes the whole packet that comes back.
    pub(super) fn challenge(self, packet: &[u8]) -> Result<Asking, PeerError> {
        checked_length(packet, packet.len())?;
        let mut rest = &packet[LENGTH_LEN..];
        let code = u32::from_be_bytes(take(&mut rest).map_err(|_| PeerError::Length)?);
        if code == VERSIONS_CODE {
            let [lowest, highest] = take(&mut rest).map_err(|_| PeerError::Length)?;
            return Err(PeerError::Versions(lowest, highest));
        }
        if code != PEER_REQUEST_CODE {
            return Err(PeerError::Foreign);
        }
        if self.version != OLD_VERSION {
            let [version] = take(&mut rest).map_err(|_| PeerError::Length)?;
            if version != self.version {
                return Err(PeerError::Version(version));
            }
        }
        let asked = rest.try_into().map_err(|_| PeerError::Length)?;
        let (questions, answers) = self.key.seals(&self.nonce, asked, self.version);
        Ok(Asking {
            questions,
            answers,
            version: self.version,
        })
    }
}

/// The asking side of a conversation.
pub(super) struct Asking {
    questions: Seal,
    answers: Seal,
    version: u8,
}

impl Asking {
    pub(super) fn version(&self) -> u8 {
        self.version
    }

    /// Returns the packet to send. At most [`MOST_AT_ONCE`] keys, each of a length that a cancel
    /// request may have.
    pub(super) fn ask(&mut self, asked: &[Asked]) -> Vec<u8> {
        self.questions.close(encode_question(asked), QUESTION_UNIT)
    }

    /// Returns the packet with a request about a hold.
    pub(super) fn hold(&mut self, number: u32, request: &HoldRequest) -> Vec<u8> {
        self.questions
            .close(hold::encode_question(number, request), QUESTION_UNIT)
    }

    /// Takes one packet from the start of what has come; `None`: more is needed. Only a router with
    /// the secret can have made it.
    pub(super) fn reply(&mut self, buffer: &mut BytesMut) -> Result<Option<Reply>, PeerError> {
        let Some(packet) = whole(buffer, LARGEST_ANSWER)? else {
            return Ok(None);
        };
        let body = self.answers.open(&packet)?;
        if self.version == OLD_VERSION {
            return decode_answers(&body).map(|answers| Some(Reply::Answers(answers)));
        }
        decode_reply(&body).map(Some)
    }
}

/// The asked side of a conversation.
pub(super) struct Answering {
    questions: Seal,
    answers: Seal,
    version: u8,
}

/// Takes the body of a first packet, behind length and code; returns the challenge to send. For
/// [`PeerError::Version`] the answer is [`versions`].
pub(super) fn answer(key: &PeerKey, body: &[u8]) -> Result<(Answering, Vec<u8>), PeerError> {
    let (&version, asking) = body.split_first().ok_or(PeerError::Length)?;
    if !(OLD_VERSION..=VERSION).contains(&version) {
        return Err(PeerError::Version(version));
    }
    let asking: &[u8; NONCE_LEN] = asking.try_into().map_err(|_| PeerError::Length)?;
    let asked = random();
    let (questions, answers) = key.seals(asking, &asked, version);
    let mut packet;
    if version == OLD_VERSION {
        packet = header(OLD_CHALLENGE_LEN);
    } else {
        packet = header(CHALLENGE_LEN);
        packet.push(version);
    }
    packet.extend_from_slice(&asked);
    Ok((
        Answering {
            questions,
            answers,
            version,
        },
        packet,
    ))
}

/// The packet that names the versions of this router.
pub(super) fn versions() -> Vec<u8> {
    let mut packet = header(OLD_CHALLENGE_LEN);
    packet[LENGTH_LEN..].copy_from_slice(&VERSIONS_CODE.to_be_bytes());
    packet.extend([OLD_VERSION, VERSION]);
    packet.resize(OLD_CHALLENGE_LEN, 0);
    packet
}

impl Answering {
    pub(super) fn version(&self) -> u8 {
        self.version
    }

    /// Takes one packet from the start of what has come; `None`: more is needed. What it returns
    /// comes from a peer with the secret, now.
    pub(super) fn question(&mut self, buffer: &mut BytesMut) -> Result<Option<Question>, PeerError> {
        let Some(packet) = whole(buffer, LARGEST_QUESTION)? else {
            return Ok(None);
        };
        let question = decode_question(&self.questions.open(&packet)?)?;
        match question {
            Question::Hold { .. } | Question::Other(_) if self.version == OLD_VERSION => {
                Err(PeerError::Malformed)
            }
            question => Ok(Some(question)),
        }
    }

    /// Returns the packet to send. At most [`MOST_AT_ONCE`] answers.
    pub(super) fn answer(&mut self, answers: &Answers) -> Vec<u8> {
        let body = encode_answers(answers);
        if self.version == OLD_VERSION {
            return self.answers.close(body, ANSWER_UNIT);
        }
        self.answers
            .close(with_kind(QuestionKind::Cancel.code(), &body), ANSWER_UNIT)
    }

    /// Returns the packet with the answer to a request about a hold.
    pub(super) fn held(&mut self, number: u32, answer: &HoldAnswer) -> Vec<u8> {
        let body = hold::encode_answer(number, answer);
        self.answers
            .close(with_kind(QuestionKind::Hold.code(), &body), ANSWER_UNIT)
    }

    /// Returns the packet that refuses a question.
    pub(super) fn refuse(&mut self, refusal: Refusal) -> Vec<u8> {
        self.answers.close(encode_refusal(refusal), ANSWER_UNIT)
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
pub(crate) mod fuzzing;

#[cfg(test)]
mod tests;
