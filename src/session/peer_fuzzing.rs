//! Packets of the peer channel, and keys of cancel requests, against any bytes.

#![allow(clippy::unwrap_used, reason = "of what is made here")]

use super::super::keys::{Incarnation, KeyIssuer, Owner};
use super::{PeerKey, PeerReply, PeerRequest, answer, decode_request, encode_request, open};
use crate::config::Secret;
use crate::fuzzing::choice;

pub(crate) fn run(data: &[u8]) {
    let key = PeerKey::new(&Secret::new(&b"shared"[..]));
    let (which, packet) = choice(data);
    match which % 5 {
        0 => {
            if let Ok((awaiting, challenge)) = answer(&key, packet) {
                assert_eq!(challenge.len(), super::CHALLENGE_LEN);
                // Nobody without the secret gets further.
                assert!(awaiting.request(packet).is_err());
            }
        }
        1 => {
            if let Ok(asking) = open(&key).0.challenge(packet) {
                let (awaiting, request) = asking.ask(&PeerRequest::WhoAreYou).unwrap();
                assert_eq!(request.len(), super::REQUEST_LEN);
                assert!(awaiting.reply(packet).is_err());
            }
        }
        2 => {
            // What only somebody with the secret can say.
            if let Ok(request) = decode_request(packet) {
                assert_eq!(&encode_request(&request).unwrap()[..packet.len()], packet);
            }
        }
        3 => whole(&key, packet),
        _ => {
            // A secret for this run alone: libFuzzer notes what is compared, issued keys too, and tries it.
            let issuer = KeyIssuer::new(Incarnation([3; 8]), None);
            assert_ne!(issuer.owner(packet), Owner::Mine, "a key that was not issued");
            let issued = issuer.issue_v32();
            assert_eq!(issuer.owner(issued.expose()), Owner::Mine);
            assert_eq!(issued.matches(packet), issued.expose() == packet);
        }
    }
}

/// A conversation between two that have the secret, of which one packet is altered: it ends well where nothing was.
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
    let outcome = || {
        let (asking, opening) = open(key);
        let (asked, challenge) = answer(key, &altered(opening, 0, 8)[8..]).ok()?;
        let asking = asking.challenge(&altered(challenge, 1, 0)).ok()?;
        let (waiting, request) = asking.ask(&PeerRequest::WhoAreYou).unwrap();
        let (request, answering) = asked.request(&altered(request, 2, 0)).ok()?;
        assert_eq!(request, PeerRequest::WhoAreYou);
        let reply = answering.reply(PeerReply {
            found: false,
            incarnation: Incarnation([3; 8]),
        });
        waiting.reply(&altered(reply, 3, 0)).ok()
    };
    let lengths = [
        super::OPENING_LEN - 8,
        super::CHALLENGE_LEN,
        super::REQUEST_LEN,
        super::REPLY_LEN,
    ];
    let reached = change.iter().take(lengths[usize::from(step % 4)]);
    let is_same = reached.clone().all(|&change| change == 0);
    assert_eq!(outcome().is_some(), is_same);
}
