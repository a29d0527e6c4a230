//! Packets of the peer channel, and keys of cancel requests, against any bytes.

#![allow(clippy::unwrap_used, reason = "of what is made here")]

use bytes::{Bytes, BytesMut};

use super::super::super::keys::{Incarnation, KeyIssuer, Owner};
use super::{
    Answered, Answers, Asked, Fate, PeerKey, Question, Reply, VERSION, answer, decode_answers,
    decode_question, decode_reply, encode_answers, encode_question, encode_refusal, hold, open, with_kind,
};
use crate::config::Secret;
use crate::fuzzing::choice;
use crate::session::holds::HoldAnswer;
use crate::wire::startup::CancelRequest;

pub(crate) fn run(data: &[u8]) {
    let key = PeerKey::new(&Secret::new(&b"shared"[..]));
    let (which, packet) = choice(data);
    match which % 7 {
        0 => {
            if let Ok((mut answering, challenge)) = answer(&key, packet) {
                let lengths = [super::OLD_CHALLENGE_LEN, super::CHALLENGE_LEN];
                assert!(lengths.contains(&challenge.len()));
                // Nobody without the secret gets further.
                let question = answering.question(&mut BytesMut::from(packet));
                assert!(!matches!(question, Ok(Some(_))));
            }
        }
        1 => {
            if let Ok(mut asking) = open(&key, 2 + which / 7 % 2).0.challenge(packet) {
                assert_eq!(asking.ask(&[]).len(), 284);
                let answers = asking.reply(&mut BytesMut::from(packet));
                assert!(!matches!(answers, Ok(Some(_))));
            }
        }
        // What only somebody with the secret can say. Behind it there are zeros.
        2 => {
            let said = match decode_question(packet) {
                Ok(Question::Cancel(asked)) => encode_question(&asked),
                Ok(Question::Hold {
                    number,
                    request: Some(request),
                }) => hold::encode_question(number, &request),
                _ => return,
            };
            assert_eq!(&packet[..said.len()], said.as_slice());
        }
        3 => whole(&key, packet),
        4 => {
            // A secret for this run alone: libFuzzer notes what is compared, issued keys too, and
            // tries it.
            let issuer = KeyIssuer::new(Incarnation([3; 8]), None);
            assert_ne!(issuer.owner(packet), Owner::Mine, "a key that was not issued");
            let issued = issuer.issue_v32();
            assert_eq!(issuer.owner(issued.expose()), Owner::Mine);
            assert_eq!(issued.matches(packet), issued.expose() == packet);
        }
        5 => {
            let said = match decode_reply(packet) {
                Ok(Reply::Answers(answers)) => with_kind(1, &encode_answers(&answers)),
                // Flags of a later release are ignored.
                Ok(Reply::Hold {
                    number,
                    answer: answer @ HoldAnswer::Refused(_),
                }) => with_kind(2, &hold::encode_answer(number, &answer)),
                // Any other byte than 1 is no.
                Ok(Reply::Refused(refusal)) if packet[2] <= 1 => encode_refusal(refusal),
                _ => return,
            };
            assert_eq!(&packet[..said.len()], said.as_slice());
        }
        _ => {
            if let Ok(answers) = decode_answers(packet) {
                let said = encode_answers(&answers);
                assert_eq!(&packet[..said.len()], said.as_slice());
            }
        }
    }
}

/// A conversation between two that have the secret, of which one packet is altered: it ends well
/// where nothing was.
fn whole(key: &PeerKey, data: &[u8]) {
    let (step, change) = choice(data);
    // Behind the length and the code, which the reader of first packets has seen.
    let altered = |mut packet: Vec<u8>, number: u8, from: usize| {
        if step % 4 == number {
            packet[from..]
                .iter_mut()
                .zip(change)
                .for_each(|(byte, change)| *byte ^= change);
        }
        packet
    };
    let heard = |packet: Vec<u8>| BytesMut::from(&packet[..]);
    let asked = Asked {
        number: 1,
        request: CancelRequest {
            process_id: 7,
            key: Bytes::from_static(b"made"),
        },
    };
    let outcome = || {
        let (opened, opening) = open(key, VERSION);
        let (mut answering, challenge) = answer(key, &altered(opening, 0, 8)[8..]).ok()?;
        let mut asking = opened.challenge(&altered(challenge, 1, 0)).ok()?;
        let question = asking.ask(std::slice::from_ref(&asked));
        let question = answering.question(&mut heard(altered(question, 2, 0))).ok()??;
        assert_eq!(question, Question::Cancel(vec![asked.clone()]));
        let answer = answering.answer(&Answers {
            incarnation: Incarnation([3; 8]),
            answers: vec![Answered {
                number: 1,
                fate: Fate::Done,
            }],
        });
        asking.reply(&mut heard(altered(answer, 3, 0))).ok()?
    };
    let lengths = [super::OPENING_LEN - 8, super::CHALLENGE_LEN, 284, 84];
    let reached = change.iter().take(lengths[usize::from(step % 4)]);
    let is_same = reached.clone().all(|&change| change == 0);
    assert_eq!(outcome().is_some(), is_same);
}
