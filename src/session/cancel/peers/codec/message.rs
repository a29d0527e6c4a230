//! The bodies of peer messages: questions and answers, before they are sealed.

use bytes::Bytes;
use zeroize::Zeroizing;

use super::super::super::keys::Incarnation;
use super::{OLD_VERSION, VERSION, hold};
use crate::session::holds::{HoldAnswer, HoldRequest};
use crate::wire::startup::CancelRequest;

/// Keys in one question, and answers in one message.
pub(crate) const MOST_AT_ONCE: usize = 64;
/// The kind of an answer that is none.
pub(super) const REFUSED: u8 = 255;
/// Kind and number of keys.
const QUESTION_HEAD: usize = 1 + 2;
/// Number, process id, length of the key.
const KEY_HEAD: usize = 4 + 4 + 2;
/// Kind, incarnation and number of answers.
const ANSWER_HEAD: usize = 1 + 8 + 2;
/// Number and outcome.
const ANSWER_LEN: usize = 4 + 1;
/// Messages are filled up with zeros to a multiple of these, so that their length tells little.
pub(super) const QUESTION_UNIT: usize = 264;
pub(super) const ANSWER_UNIT: usize = 64;
pub(super) const MIN_KEY: usize = 4;
pub(super) const MAX_KEY: usize = 256;
/// The largest bodies, without padding.
pub(super) const MOST_QUESTION: usize = QUESTION_HEAD + MOST_AT_ONCE * (KEY_HEAD + MAX_KEY);
pub(super) const MOST_ANSWER: usize = ANSWER_HEAD + MOST_AT_ONCE * ANSWER_LEN;

/// What a question is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum QuestionKind {
    /// Cancel what the sessions with these keys run.
    Cancel,
    /// Hold the clients of a member that is about to be stopped, or end that.
    Hold,
    /// What the other router sees of the cluster. Reserved.
    View,
}

/// The limits of one kind of question.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Of a question, without padding.
    pub bytes: usize,
    /// Questions of one conversation without their last answer: more are not read until there are
    /// fewer.
    pub under_way: usize,
}

impl QuestionKind {
    #[cfg(test)]
    pub(super) const ALL: [Self; 3] = [Self::Cancel, Self::Hold, Self::View];

    pub(super) const fn code(self) -> u8 {
        match self {
            Self::Cancel => 1,
            Self::Hold => 2,
            Self::View => 3,
        }
    }

    pub(super) fn of(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Cancel),
            2 => Some(Self::Hold),
            3 => Some(Self::View),
            _ => None,
        }
    }

    pub(crate) const fn limits(self) -> Limits {
        match self {
            Self::Cancel => Limits {
                bytes: MOST_QUESTION,
                under_way: 4096,
            },
            Self::Hold => Limits {
                bytes: hold::MOST_HOLD,
                under_way: 16,
            },
            Self::View => Limits {
                bytes: UNKNOWN_BYTES,
                under_way: 16,
            },
        }
    }
}

/// Limit of a question whose kind this router does not know.
pub(super) const UNKNOWN_BYTES: usize = 1024;

/// A question as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Question {
    Cancel(Vec<Asked>),
    Hold {
        /// Chosen by the router that asks.
        number: u32,
        /// `None`: this release does not know what is to be done.
        request: Option<HoldRequest>,
    },
    /// It is answered by a refusal of this kind.
    Other(Refusal),
}

/// That a question is not answered, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// The kind of the question.
    pub kind: u8,
    /// Chosen by the router that asks.
    pub number: u32,
    /// The kind is reserved, and this release does nothing with it. Otherwise it does not know the
    /// kind.
    pub is_known: bool,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let what = if self.is_known { "support" } else { "know" };
        write!(f, "its release does not {what} questions of kind {}", self.kind)
    }
}

/// What the other router says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reply {
    Answers(Answers),
    Hold { number: u32, answer: HoldAnswer },
    Refused(Refusal),
}

/// One key that is asked about: cancel what it stands for, if it is a session of yours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asked {
    /// Chosen by the router that asks.
    pub number: u32,
    /// The key has 4 to 256 bytes.
    pub request: CancelRequest,
}

/// What is known of one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Answered {
    pub number: u32,
    pub fate: Fate,
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Nobody here has the key.
    NotFound,
    /// The session is here; another answer says when all is done.
    Found,
    /// The session is here, and all is done.
    Done,
}

/// What is known of several keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answers {
    pub incarnation: Incarnation,
    pub answers: Vec<Answered>,
}

/// Why a peer conversation ends. The other side is told nothing, its connection is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PeerError {
    #[error("peer packet of a wrong length")]
    Length,
    #[error("not a peer packet")]
    Foreign,
    #[error("it speaks version {0} of the peer protocol, and this router {OLD_VERSION} to {VERSION}")]
    Version(u8),
    #[error("it speaks versions {0} to {1} of the peer protocol, and this router {OLD_VERSION} to {VERSION}")]
    Versions(u8, u8),
    /// Another secret, or altered on the way.
    #[error("peer packet does not open with the peers' secret")]
    NotAuthentic,
    /// From a router that has the secret, in another format.
    #[error("malformed peer packet")]
    Malformed,
}

pub(super) fn with_kind(kind: u8, body: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut whole = Zeroizing::new(Vec::with_capacity(1 + body.len()));
    whole.push(kind);
    whole.extend_from_slice(body);
    whole
}

pub(super) fn encode_refusal(
    Refusal {
        kind,
        number,
        is_known,
    }: Refusal,
) -> Zeroizing<Vec<u8>> {
    let mut body = vec![kind, u8::from(is_known)];
    body.extend_from_slice(&number.to_be_bytes());
    with_kind(REFUSED, &body)
}

pub(super) fn decode_reply(body: &[u8]) -> Result<Reply, PeerError> {
    let mut rest = body;
    let [kind] = take(&mut rest)?;
    if kind == QuestionKind::Cancel.code() {
        return decode_answers(rest).map(Reply::Answers);
    }
    if kind == QuestionKind::Hold.code() {
        let (number, answer) = hold::decode_answer(rest)?;
        return Ok(Reply::Hold { number, answer });
    }
    if kind != REFUSED {
        return Err(PeerError::Malformed);
    }
    let [kind, is_known] = take(&mut rest)?;
    let number = u32::from_be_bytes(take(&mut rest)?);
    nothing_but_zeros(rest)?;
    Ok(Reply::Refused(Refusal {
        kind,
        number,
        is_known: is_known == 1,
    }))
}

pub(super) fn encode_question(asked: &[Asked]) -> Zeroizing<Vec<u8>> {
    debug_assert!(asked.len() <= MOST_AT_ONCE, "{} keys at once", asked.len());
    let mut body = Zeroizing::new(Vec::with_capacity(QUESTION_UNIT));
    body.push(QuestionKind::Cancel.code());
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

pub(super) fn decode_question(body: &[u8]) -> Result<Question, PeerError> {
    let mut rest = body;
    let [code] = take(&mut rest)?;
    let kind = QuestionKind::of(code);
    let most = kind.map_or(UNKNOWN_BYTES, |kind| kind.limits().bytes);
    if body.len() > most.next_multiple_of(QUESTION_UNIT) {
        return Err(PeerError::Malformed);
    }
    if kind == Some(QuestionKind::Cancel) {
        return decode_cancel(rest).map(Question::Cancel);
    }
    if kind == Some(QuestionKind::Hold) {
        let (number, request) = hold::decode_question(rest)?;
        return Ok(Question::Hold { number, request });
    }
    // What follows the number is for a release that supports the kind.
    let number = u32::from_be_bytes(take(&mut rest)?);
    Ok(Question::Other(Refusal {
        kind: code,
        number,
        is_known: kind.is_some(),
    }))
}

fn decode_cancel(body: &[u8]) -> Result<Vec<Asked>, PeerError> {
    let mut rest = body;
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

pub(super) fn encode_answers(Answers { incarnation, answers }: &Answers) -> Zeroizing<Vec<u8>> {
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

pub(super) fn decode_answers(body: &[u8]) -> Result<Answers, PeerError> {
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

pub(super) fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], PeerError> {
    let (bytes, behind) = rest.split_first_chunk().ok_or(PeerError::Malformed)?;
    *rest = behind;
    Ok(*bytes)
}

pub(super) fn nothing_but_zeros(rest: &[u8]) -> Result<(), PeerError> {
    if rest.iter().all(|&byte| byte == 0) {
        Ok(())
    } else {
        Err(PeerError::Malformed)
    }
}
