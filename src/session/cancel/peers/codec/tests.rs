#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use proptest::prelude::*;

use super::super::super::keys::Incarnation;
use super::message::{MAX_KEY, MIN_KEY, REFUSED, UNKNOWN_BYTES};
use super::*;
use crate::wire::startup::CancelRequest;

fn key(secret: &str) -> PeerKey {
    PeerKey::new(&Secret::new(secret))
}

fn asked(number: u32, key: &[u8]) -> Asked {
    Asked {
        number,
        request: CancelRequest {
            process_id: 4711,
            key: Bytes::copy_from_slice(key),
        },
    }
}

fn done(numbers: &[u32]) -> Answers {
    let done = |&number| Answered {
        number,
        fate: Fate::Done,
    };
    Answers {
        incarnation: Incarnation(*b"12345678"),
        answers: numbers.iter().map(done).collect(),
    }
}

/// Both ends up to the point where questions may be sent.
fn meet(asking: &PeerKey, answering: &PeerKey) -> (Asking, Answering) {
    meet_in(VERSION, asking, answering)
}

fn meet_in(version: u8, asking: &PeerKey, answering: &PeerKey) -> (Asking, Answering) {
    let (state, opening) = open(asking, version);
    assert_eq!(opening.len(), OPENING_LEN);
    let (answering, challenge) = answer(answering, &opening[8..]).unwrap();
    assert_eq!(
        challenge_length(*challenge.first_chunk().unwrap()),
        Ok(challenge.len())
    );
    (state.challenge(&challenge).unwrap(), answering)
}

fn question(answering: &mut Answering, packet: &[u8]) -> Result<Vec<Asked>, PeerError> {
    let question = answering.question(&mut BytesMut::from(packet))?;
    match question.expect("a whole packet") {
        Question::Cancel(asked) => Ok(asked),
        other => panic!("{other:?}"),
    }
}

fn answers(asking: &mut Asking, packet: &[u8]) -> Result<Answers, PeerError> {
    match asking
        .reply(&mut BytesMut::from(packet))?
        .expect("a whole packet")
    {
        Reply::Answers(answers) => Ok(answers),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_first_packet_is_a_first_packet() {
    let (_, opening) = open(&key("s"), VERSION);
    assert_eq!(opening[..4], 41_u32.to_be_bytes());
    assert_eq!(opening[4..8], PEER_REQUEST_CODE.to_be_bytes());
    assert_ne!(opening, open(&key("s"), VERSION).1, "a nonce is used once");
}

#[test]
fn many_keys_at_once_and_answers_as_they_come() {
    let (mut asking, mut answering) = meet(&key("s"), &key("s"));
    let first: Vec<Asked> = (0..64).map(|number| asked(number, &[7; 256])).collect();
    let second = [asked(64, b"1234")];
    let mut sent = BytesMut::from(&asking.ask(&first)[..]);
    sent.extend_from_slice(&asking.ask(&second));
    // In pieces, two packets in one buffer.
    let rest = sent.split_off(1000);
    assert_eq!(answering.question(&mut sent), Ok(None));
    sent.unsplit(rest);
    assert_eq!(answering.question(&mut sent), Ok(Some(Question::Cancel(first))));
    assert_eq!(
        answering.question(&mut sent),
        Ok(Some(Question::Cancel(second.to_vec())))
    );
    assert_eq!(answering.question(&mut sent), Ok(None));
    for numbers in [&[64][..], &[3, 1], &[]] {
        let packet = answering.answer(&done(numbers));
        assert_eq!(packet.len(), 84, "its length does not tell how many");
        assert_eq!(answers(&mut asking, &packet), Ok(done(numbers)));
    }
}

#[test]
fn another_secret_learns_and_gets_nothing() {
    let (mut asking, mut answering) = meet(&key("ours"), &key("theirs"));
    let packet = asking.ask(&[asked(1, b"secretkey")]);
    assert_eq!(packet.len(), 284);
    assert!(!packet.windows(9).any(|window| window == b"secretkey"));
    assert_eq!(question(&mut answering, &packet), Err(PeerError::NotAuthentic));
    let (_, mut other) = meet(&key("theirs"), &key("theirs"));
    let forged = other.answer(&done(&[1]));
    assert_eq!(answers(&mut asking, &forged), Err(PeerError::NotAuthentic));
}

#[test]
fn what_was_recorded_is_of_no_use_again() {
    let shared = key("s");
    let (state, opening) = open(&shared, VERSION);
    let (mut first, challenge) = answer(&shared, &opening[8..]).unwrap();
    let packet = state.challenge(&challenge).unwrap().ask(&[asked(1, b"1234")]);
    // In another conversation, and twice in the same.
    let (mut second, _) = answer(&shared, &opening[8..]).unwrap();
    assert_eq!(question(&mut second, &packet), Err(PeerError::NotAuthentic));
    assert!(question(&mut first, &packet).is_ok());
    assert_eq!(question(&mut first, &packet), Err(PeerError::NotAuthentic));
}

#[test]
fn a_question_sent_back_is_no_answer_and_none_may_be_missing() {
    let (mut asking, mut answering) = meet(&key("s"), &key("s"));
    let packet = asking.ask(&[asked(1, b"1234")]);
    let mut sent_back = BytesMut::from(&packet[..]);
    assert_eq!(asking.reply(&mut sent_back), Err(PeerError::NotAuthentic));
    let next = asking.ask(&[asked(2, b"1234")]);
    assert_eq!(question(&mut answering, &next), Err(PeerError::NotAuthentic));
}

#[test]
fn another_form_is_refused() {
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let (mut asking, mut answering) = meet(&key("s"), &key("s"));
        let mut body = encode_question(&[asked(1, b"12345678")]);
        body.resize(QUESTION_UNIT, 0);
        change(&mut body);
        question(&mut answering, &asking.questions.close(body, 1))
    };
    assert_eq!(with(&|_| ()), Ok(vec![asked(1, b"12345678")]));
    assert_eq!(
        with(&|body| body[2] = 2),
        Err(PeerError::Malformed),
        "a key of no length"
    );
    assert_eq!(with(&|body| body[1] = 1), Err(PeerError::Malformed), "257 keys");
    assert_eq!(with(&|body| body[12] = 3), Err(PeerError::Malformed));
    assert_eq!(with(&|body| body[11] = 2), Err(PeerError::Malformed));
    assert_eq!(
        with(&|body| body[QUESTION_UNIT - 1] = 1),
        Err(PeerError::Malformed)
    );
    assert_eq!(with(&|body| body.truncate(20)), Err(PeerError::Malformed));
    // Before it is waited for.
    let (mut asking, mut answering) = meet(&key("s"), &key("s"));
    for length in [0_u32, 19, 40_000, u32::MAX] {
        let mut packet = BytesMut::from(&length.to_be_bytes()[..]);
        assert_eq!(answering.question(&mut packet.clone()), Err(PeerError::Length));
        assert_eq!(asking.reply(&mut packet), Err(PeerError::Length));
    }
}

/// What a router of a later release asks.
fn other(kind: u8, more: &[u8]) -> Zeroizing<Vec<u8>> {
    with_kind(kind, &[&7_u32.to_be_bytes()[..], more].concat())
}

#[test]
fn kinds_that_are_reserved_or_unknown_are_refused_and_the_conversation_goes_on() {
    let (mut asking, mut answering) = meet(&key("s"), &key("s"));
    for (kind, is_known) in [(3, true), (0, false), (9, false), (REFUSED, false)] {
        let packet = asking
            .questions
            .close(other(kind, b"words of a later release"), QUESTION_UNIT);
        let refusal = Refusal {
            kind,
            number: 7,
            is_known,
        };
        let heard = answering.question(&mut BytesMut::from(&packet[..]));
        assert_eq!(heard, Ok(Some(Question::Other(refusal))));
        let packet = answering.refuse(refusal);
        assert_eq!(packet.len(), 84, "as long as an answer");
        let reply = asking.reply(&mut BytesMut::from(&packet[..]));
        assert_eq!(reply, Ok(Some(Reply::Refused(refusal))));
    }
    let packet = asking.ask(&[asked(1, b"1234")]);
    assert_eq!(question(&mut answering, &packet), Ok(vec![asked(1, b"1234")]));
    // Each kind has a length of its own.
    for kind in QuestionKind::ALL {
        assert_eq!(QuestionKind::of(kind.code()), Some(kind));
        let long = vec![0; kind.limits().bytes.next_multiple_of(QUESTION_UNIT) + 1];
        assert_eq!(
            decode_question(&with_kind(kind.code(), &long)),
            Err(PeerError::Malformed)
        );
        assert!(kind.limits().bytes + LENGTH_LEN + TAG_LEN <= LARGEST_QUESTION);
    }
    let long = vec![0; UNKNOWN_BYTES.next_multiple_of(QUESTION_UNIT) + 1];
    assert_eq!(decode_question(&with_kind(9, &long)), Err(PeerError::Malformed));
}

#[test]
fn requests_about_holds_go_between_cancel_requests() {
    let (mut asking, mut answering) = meet(&key("s"), &key("s"));
    let request = HoldRequest::Release {
        cluster: 7,
        token: crate::cluster::LeaveToken([1, 2]),
    };
    let packet = asking.hold(3, &request);
    assert_eq!(packet.len(), 284, "as long as a question");
    let heard = answering.question(&mut BytesMut::from(&packet[..]));
    let request = Some(request);
    assert_eq!(heard, Ok(Some(Question::Hold { number: 3, request })));
    let answer = HoldAnswer::Refused(crate::session::holds::HoldRefusal::Busy);
    let packet = answering.held(3, &answer);
    assert_eq!(packet.len(), 84, "as long as an answer");
    let reply = asking.reply(&mut BytesMut::from(&packet[..]));
    assert_eq!(reply, Ok(Some(Reply::Hold { number: 3, answer })));
    let packet = asking.ask(&[asked(1, b"1234")]);
    assert_eq!(question(&mut answering, &packet), Ok(vec![asked(1, b"1234")]));
}

#[test]
fn version_2_is_spoken_as_it_was() {
    let (mut asking, mut answering) = meet_in(OLD_VERSION, &key("s"), &key("s"));
    assert_eq!((asking.version(), answering.version()), (2, 2));
    let packet = asking.ask(&[asked(1, b"1234")]);
    assert_eq!(packet.len(), 284);
    assert_eq!(question(&mut answering, &packet), Ok(vec![asked(1, b"1234")]));
    let packet = answering.answer(&done(&[1]));
    assert_eq!(answers(&mut asking, &packet), Ok(done(&[1])));
    // It has no other kinds.
    let packet = asking.questions.close(other(2, b""), QUESTION_UNIT);
    let heard = answering.question(&mut BytesMut::from(&packet[..]));
    assert_eq!(heard, Err(PeerError::Malformed));
    // Its challenge is 40 bytes, with the same code and no version.
    let (_, opening) = open(&key("s"), OLD_VERSION);
    let (_, challenge) = answer(&key("s"), &opening[8..]).unwrap();
    assert_eq!(challenge.len(), OLD_CHALLENGE_LEN);
    assert_eq!(challenge[4..8], PEER_REQUEST_CODE.to_be_bytes());
}

#[test]
fn two_versions_are_never_taken_for_each_other() {
    let shared = key("s");
    // On its way the version of the opening is changed.
    for (sent, heard) in [(3, 2), (2, 3)] {
        let (state, mut opening) = open(&shared, sent);
        opening[8] = heard;
        let (_, challenge) = answer(&shared, &opening[8..]).unwrap();
        assert!(state.challenge(&challenge).is_err(), "{sent} {heard}");
    }
    // And of the challenge.
    let (state, opening) = open(&shared, VERSION);
    let (_, mut challenge) = answer(&shared, &opening[8..]).unwrap();
    challenge[8] = 4;
    assert_eq!(state.challenge(&challenge).unwrap_err(), PeerError::Version(4));
    // The same nonces give other keys.
    let nonces = ([1; NONCE_LEN], [2; NONCE_LEN]);
    let (mut new, _) = shared.seals(&nonces.0, &nonces.1, VERSION);
    let (mut old, _) = shared.seals(&nonces.0, &nonces.1, OLD_VERSION);
    let packet = new.close(encode_question(&[asked(1, b"1234")]), QUESTION_UNIT);
    assert_eq!(old.open(&packet).unwrap_err(), PeerError::NotAuthentic);
}

#[test]
fn another_version_is_named_on_both_sides() {
    let shared = key("s");
    for version in [0, 1, 4, 255] {
        let (_, opening) = open(&shared, version);
        let fault = answer(&shared, &opening[8..]).unwrap_err();
        assert_eq!(fault, PeerError::Version(version));
        let named = format!("it speaks version {version} of the peer protocol, and this router 2 to 3");
        assert_eq!(fault.to_string(), named);
    }
    let said = versions();
    assert_eq!(challenge_length(*said.first_chunk().unwrap()), Ok(said.len()));
    let (state, _) = open(&shared, VERSION);
    assert_eq!(state.challenge(&said).unwrap_err(), PeerError::Versions(2, 3));
    // A router of version 2 reads 40 bytes, and sees that the code is another one.
    assert_eq!(said.len(), 40);
    assert_ne!(said[4..8], PEER_REQUEST_CODE.to_be_bytes());
    for length in [0_u32, 39, 42, u32::MAX] {
        assert_eq!(challenge_length(length.to_be_bytes()), Err(PeerError::Length));
    }
}

#[test]
fn a_packet_cut_at_any_byte_is_not_a_packet() {
    let shared = key("s");
    for version in [OLD_VERSION, VERSION] {
        let (_, opening) = open(&shared, version);
        for length in 0..opening.len() - 8 {
            assert!(
                answer(&shared, &opening[8..8 + length]).is_err(),
                "{version} {length}"
            );
        }
        let (_, challenge) = answer(&shared, &opening[8..]).unwrap();
        for length in 0..challenge.len() {
            let (state, _) = open(&shared, version);
            assert!(
                state.challenge(&challenge[..length]).is_err(),
                "{version} {length}"
            );
        }
        let (mut asking, mut answering) = meet_in(version, &shared, &shared);
        let packet = asking.ask(&[asked(1, b"1234")]);
        for length in 0..packet.len() {
            assert_eq!(
                answering.question(&mut BytesMut::from(&packet[..length])),
                Ok(None)
            );
        }
        assert!(question(&mut answering, &packet).is_ok());
        let packet = answering.answer(&done(&[1]));
        for length in 0..packet.len() {
            assert_eq!(asking.reply(&mut BytesMut::from(&packet[..length])), Ok(None));
        }
        assert_eq!(answers(&mut asking, &packet), Ok(done(&[1])));
    }
}

proptest! {
    #[test]
    fn everything_arrives_as_it_was_sent(
        keys in proptest::collection::vec(
            (any::<u32>(), any::<u32>(), proptest::collection::vec(any::<u8>(), MIN_KEY..=MAX_KEY)), 0..=MOST_AT_ONCE,
        ),
        fates in proptest::collection::vec((any::<u32>(), 0..3_usize), 0..=MOST_AT_ONCE),
    ) {
        let (mut asking, mut answering) = meet(&key("s"), &key("s"));
        let sent: Vec<Asked> = keys.into_iter().map(|(number, process_id, key)| Asked {
            number,
            request: CancelRequest { process_id, key: Bytes::from(key) },
        }).collect();
        let packet = asking.ask(&sent);
        prop_assert!(packet.len() <= LARGEST_QUESTION);
        prop_assert_eq!(question(&mut answering, &packet), Ok(sent));
        let fate = |fate: usize| [Fate::NotFound, Fate::Found, Fate::Done][fate];
        let said = Answers {
            incarnation: Incarnation(*b"12345678"),
            answers: fates.into_iter().map(|(number, of)| Answered { number, fate: fate(of) }).collect(),
        };
        let packet = answering.answer(&said);
        prop_assert!(packet.len() <= LARGEST_ANSWER);
        prop_assert_eq!(answers(&mut asking, &packet), Ok(said));
    }

    #[test]
    fn any_flipped_bit_ends_it(step in 0usize..4, place in any::<prop::sample::Index>(), bit in 0u8..8) {
        let shared = key("s");
        let flip = |at: usize, mut packet: Vec<u8>| {
            if at == step {
                let index = place.index(packet.len());
                packet[index] ^= 1 << bit;
            }
            BytesMut::from(&packet[..])
        };
        let outcome = (|| {
            let (state, opening) = open(&shared, VERSION);
            // Length and code are read by the listener.
            let (mut answering, challenge) = answer(&shared, &flip(0, opening[8..].to_vec()))?;
            let mut asking = state.challenge(&flip(1, challenge))?;
            // Of a longer one more is needed: it does not come.
            let question = answering.question(&mut flip(2, asking.ask(&[asked(1, b"12345678")])))?;
            let Some(Question::Cancel(question)) = question else { return Err(PeerError::Length) };
            let answers = asking.reply(&mut flip(3, answering.answer(&done(&[question[0].number]))))?;
            answers.ok_or(PeerError::Length)
        })();
        prop_assert!(outcome.is_err());
    }

    #[test]
    fn no_input_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let shared = key("s");
        let _ = answer(&shared, &bytes);
        prop_assert!(open(&shared, VERSION).0.challenge(&bytes).is_err());
        let (mut asking, mut answering) = meet(&shared, &shared);
        prop_assert!(!matches!(asking.reply(&mut BytesMut::from(&bytes[..])), Ok(Some(_))));
        prop_assert!(!matches!(answering.question(&mut BytesMut::from(&bytes[..])), Ok(Some(_))));
        let _ = decode_question(&bytes);
        let _ = decode_answers(&bytes);
        let _ = decode_reply(&bytes);
    }
}
