#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

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
    let (state, opening) = open(asking);
    assert_eq!(opening.len(), OPENING_LEN);
    let (answering, challenge) = answer(answering, &opening[8..]).unwrap();
    assert_eq!(challenge.len(), CHALLENGE_LEN);
    (state.challenge(&challenge).unwrap(), answering)
}

fn question(answering: &mut Answering, packet: &[u8]) -> Result<Vec<Asked>, PeerError> {
    answering
        .question(&mut BytesMut::from(packet))
        .map(|whole| whole.expect("a whole packet"))
}

fn answers(asking: &mut Asking, packet: &[u8]) -> Result<Answers, PeerError> {
    asking
        .answers(&mut BytesMut::from(packet))
        .map(|whole| whole.expect("a whole packet"))
}

#[test]
fn the_first_packet_is_a_first_packet() {
    let (_, opening) = open(&key("s"));
    assert_eq!(opening[..4], 41_u32.to_be_bytes());
    assert_eq!(opening[4..8], PEER_REQUEST_CODE.to_be_bytes());
    assert_ne!(opening, open(&key("s")).1, "a nonce is used once");
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
    assert_eq!(answering.question(&mut sent), Ok(Some(first)));
    assert_eq!(answering.question(&mut sent), Ok(Some(second.to_vec())));
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
    let (state, opening) = open(&shared);
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
    assert_eq!(asking.answers(&mut sent_back), Err(PeerError::NotAuthentic));
    let next = asking.ask(&[asked(2, b"1234")]);
    assert_eq!(question(&mut answering, &next), Err(PeerError::NotAuthentic));
}

#[test]
fn another_hop_or_form_is_refused() {
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let (mut asking, mut answering) = meet(&key("s"), &key("s"));
        let mut body = encode_question(&[asked(1, b"12345678")]);
        body.resize(QUESTION_UNIT, 0);
        change(&mut body);
        question(&mut answering, &asking.questions.close(body, 1))
    };
    assert_eq!(with(&|_| ()), Ok(vec![asked(1, b"12345678")]));
    assert_eq!(with(&|body| body[0] = 2), Err(PeerError::Malformed));
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
        assert_eq!(asking.answers(&mut packet), Err(PeerError::Length));
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
            let (state, opening) = open(&shared);
            // Length and code are read by the listener.
            let (mut answering, challenge) = answer(&shared, &flip(0, opening[8..].to_vec()))?;
            let mut asking = state.challenge(&flip(1, challenge))?;
            // Of a longer one more is needed: it does not come.
            let question = answering.question(&mut flip(2, asking.ask(&[asked(1, b"12345678")])))?;
            let question = question.ok_or(PeerError::Length)?;
            let answers = asking.answers(&mut flip(3, answering.answer(&done(&[question[0].number]))))?;
            answers.ok_or(PeerError::Length)
        })();
        prop_assert!(outcome.is_err());
    }

    #[test]
    fn no_input_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let shared = key("s");
        let _ = answer(&shared, &bytes);
        prop_assert!(open(&shared).0.challenge(&bytes).is_err());
        let (mut asking, mut answering) = meet(&shared, &shared);
        prop_assert!(!matches!(asking.answers(&mut BytesMut::from(&bytes[..])), Ok(Some(_))));
        prop_assert!(!matches!(answering.question(&mut BytesMut::from(&bytes[..])), Ok(Some(_))));
        let _ = decode_question(&bytes);
        let _ = decode_answers(&bytes);
    }
}
