//! The relay, cut at every position on either side.

use std::time::Duration;

use super::conversation::{Conversation, Known, Side, Step, conversations};
use super::play::{self, Position, demoted};
use super::{Leaving, Simulation, frame, short};
use crate::session::end::{Cause, Fate, Order, Reason};

/// Whether a message of the server's is under way there.
fn tears(conversation: &Conversation, (step, sent): Position) -> bool {
    sent > 0 && conversation.steps[step].side == Side::Server
}

/// As [`play::at_every_position`], with a relay that knows the protocol.
async fn at_every_position<F>(then: F)
where
    F: AsyncFnMut(&mut Simulation, &Conversation, Position, Known),
{
    play::at_every_position(Simulation::of_relay, then).await;
}

#[tokio::test(start_paused = true)]
async fn every_byte_is_forwarded_as_it_comes_and_in_order() {
    for conversation in conversations() {
        // Byte by byte.
        let mut session = Simulation::of_relay();
        for position in conversation.positions() {
            session.has_forwarded(&conversation, position);
            if let Some(Step { side, bytes, .. }) = conversation.steps.get(position.0) {
                session.say(*side, &bytes[position.1..=position.1]).await;
            }
        }
        // Each message in two parts, cut everywhere.
        for (step, sent) in conversation.positions() {
            let mut session = Simulation::of_relay();
            session.play(&conversation, (step, sent)).await;
            for (at, Step { side, bytes, .. }) in conversation.steps.iter().enumerate().skip(step) {
                session
                    .say(*side, &bytes[if at == step { sent } else { 0 }..])
                    .await;
            }
            session.has_forwarded(&conversation, (conversation.steps.len(), 0));
        }
    }
}

/// All that each side says is there before the other one is read, in reads of any length.
#[tokio::test(start_paused = true)]
async fn it_does_not_matter_how_much_is_read_at_once() {
    for conversation in conversations() {
        let whole = (conversation.steps.len(), 0);
        for most in 1..40 {
            let mut session = Simulation::of_relay();
            session.client.stream().peer_reads_at_most(most);
            session.server.stream().peer_reads_at_most(most);
            for Step { side, bytes, .. } in &conversation.steps {
                session.say(*side, bytes).await;
            }
            session.has_forwarded(&conversation, whole);
            session.client.leave(Leaving::Closes);
            let end = session.ended().await;
            assert_eq!((end.cause, end.fate), (Cause::ClientGone, Fate::Settled));
        }
    }
}

/// The server hears all that the client has said, and its end.
#[tokio::test(start_paused = true)]
async fn a_client_may_leave_at_every_position() {
    for how in [Leaving::Closes, Leaving::Resets] {
        at_every_position(async |session, conversation, position, known| {
            session.client.leave(how);
            let end = session.ended().await;
            let at = format!("{} at {position:?}, {how:?}: {end}", conversation.name);
            assert_eq!((&end.cause, end.fate), (&Cause::ClientGone, known.fate()), "{at}");
            assert!(session.server.saw_end, "{at}");
            assert_eq!(
                session.server.heard,
                conversation.said(Side::Client, position),
                "{at}"
            );
        })
        .await;
    }
}

/// A client that has ended its side gets every answer, and nothing of ours unless one is missing.
#[tokio::test(start_paused = true)]
async fn answers_reach_a_client_that_has_ended_its_side() {
    at_every_position(async |session, conversation, (step, sent), known| {
        session.client.end();
        session.settle().await;
        assert!(session.server.saw_end);
        // What the server has to say to what it was asked.
        let rest = conversation.steps[step..].iter();
        let mut position = (step, sent);
        let mut known = known;
        let mut from = sent;
        for Step { bytes, after, .. } in rest.take_while(|step| step.side == Side::Server) {
            session.say(Side::Server, &bytes[from..]).await;
            from = 0;
            position = (position.0 + 1, 0);
            known = *after;
        }
        session.server.leave(Leaving::Closes);
        let end = session.ended().await;
        let at = format!("{} at {:?}: {end}", conversation.name, (step, sent));
        assert_eq!((&end.cause, end.fate), (&Cause::ClientGone, known.fate()), "{at}");
        let words = match known.fate() {
            Fate::Unknown => known.last_words(""),
            _ => String::new(),
        };
        assert_eq!(session.words_after(conversation, position), words, "{at}");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_client_may_say_goodbye_between_any_two_messages() {
    at_every_position(async |session, conversation, (step, sent), known| {
        if sent > 0 {
            return;
        }
        // What follows is dropped.
        let goodbye = frame(b'X', b"");
        let nonsense = [&goodbye[..], b"nonsense"].concat();
        session.client.say(&nonsense);
        session.settle().await;
        let mut asked = conversation.said(Side::Client, (step, 0));
        asked.extend_from_slice(&goodbye);
        assert_eq!(session.server.heard, asked);
        session.server.leave(Leaving::Closes);
        let end = session.ended().await;
        let at = format!("{} at {step}: {end}", conversation.name);
        assert_eq!(
            (&end.cause, end.fate),
            (&Cause::ClientTerminated, known.fate()),
            "{at}"
        );
        let words = match known.fate() {
            Fate::Unknown => known.last_words(""),
            _ => String::new(),
        };
        assert_eq!(session.words_after(conversation, (step, 0)), words, "{at}");
    })
    .await;
}

/// The client hears all that the server has said, and why there is no more, unless a message is
/// torn.
#[tokio::test(start_paused = true)]
async fn a_server_may_be_lost_at_every_position() {
    for how in [Leaving::Closes, Leaving::Resets] {
        at_every_position(async |session, conversation, position, known| {
            session.server.leave(how);
            let end = session.ended().await;
            let at = format!("{} at {position:?}, {how:?}: {end}", conversation.name);
            assert_eq!((&end.cause, end.fate), (&Cause::ServerGone, known.fate()), "{at}");
            assert!(session.client.saw_end, "{at}");
            if tears(conversation, position) {
                assert_eq!(
                    session.client.heard,
                    conversation.said(Side::Server, position),
                    "{at}"
                );
            } else {
                let words = session.words_after(conversation, position);
                assert_eq!(words, known.last_words("08006"), "{at}");
            }
        })
        .await;
    }
}

/// The server's own last word is the last, also where an order comes at the same time.
#[tokio::test(start_paused = true)]
async fn a_server_may_end_the_session_between_any_two_messages() {
    let fatal = frame(b'E', b"SFATAL\0VFATAL\0C57P01\0M-\0\0");
    for is_ordered in [false, true] {
        at_every_position(async |session, conversation, position, _| {
            if position.1 > 0 {
                return;
            }
            session.server.say(&fatal);
            session.server.leave(Leaving::Closes);
            if is_ordered {
                session.entry.order(Order::Now(demoted()));
            }
            let end = session.ended().await;
            let at = format!("{} at {position:?}: {end}", conversation.name);
            let words = session.words_after(conversation, position);
            match end.cause {
                Cause::ServerFatal { code } => {
                    assert_eq!((code.as_str(), &words[..]), ("57P01", "FATAL 57P01"), "{at}");
                }
                // It is carried out before anything is read where nothing is unknown.
                Cause::Ordered(_) => assert!(is_ordered && end.fate != Fate::Unknown, "{at}"),
                _ => panic!("{at}"),
            }
        })
        .await;
    }
}

/// At once: a message under way is completed, the client hears why, and nothing is forwarded any
/// more.
#[tokio::test(start_paused = true)]
async fn an_order_ends_a_session_at_every_position() {
    at_every_position(async |session, conversation, (step, sent), known| {
        session.order(Order::Now(demoted())).await;
        let is_torn = tears(conversation, (step, sent));
        let heard = if is_torn { (step + 1, 0) } else { (step, sent) };
        if is_torn {
            // More than the message.
            let rest = &conversation.steps[step].bytes[sent..];
            session.server.say(&[rest, &frame(b'N', b"\0")].concat());
        } else {
            session.server.say(&frame(b'N', b"\0"));
        }
        session.client.say(&frame(b'Q', b"DELETE\0"));
        let end = session.ended().await;
        let at = format!("{} at {:?}: {end}", conversation.name, (step, sent));
        assert_eq!(end.cause, Cause::Ordered(demoted()), "{at}");
        assert_eq!(end.fate, known.fate(), "{at}");
        let words = session.words_after(conversation, heard);
        assert_eq!(words, known.last_words("57P01"), "{at}");
        let asked = conversation.said(Side::Client, (step, sent));
        assert_eq!(session.server.heard, asked, "{at}");
    })
    .await;
}

/// The conversation goes on until nothing is under way and no transaction is open, and ends there.
#[tokio::test(start_paused = true)]
async fn an_order_for_a_boundary_waits_for_one() {
    for conversation in conversations() {
        for (step, sent) in conversation.positions() {
            let mut session = Simulation::of_relay();
            session.play(&conversation, (step, sent)).await;
            session.entry.order(Order::AtBoundary(Reason::Shutdown));
            session.settle().await;
            let is_boundary = sent == 0 && conversation.known_at((step, 0)) == Known::Idle;
            let mut last = (step, sent);
            if !is_boundary {
                for (at, Step { side, bytes, after }) in conversation.steps.iter().enumerate().skip(step) {
                    let from = if at == step { sent } else { 0 };
                    session.say(*side, &bytes[from..]).await;
                    last = (at + 1, 0);
                    if *after == Known::Idle {
                        break;
                    }
                }
            }
            session.client.say(&frame(b'Q', b"DELETE\0"));
            let end = session.ended().await;
            let at = format!("{} at {:?}: {end}", conversation.name, (step, sent));
            assert_eq!(
                (&end.cause, end.fate),
                (&Cause::Ordered(Reason::Shutdown), Fate::Settled),
                "{at}"
            );
            assert_eq!(session.words_after(&conversation, last), "FATAL 57P01", "{at}");
            assert_eq!(
                session.server.heard,
                conversation.said(Side::Client, last),
                "{at}"
            );
        }
    }
}

/// What the router holds for a client that does not read is one read; the other direction goes on;
/// nothing is lost.
#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_holds_up_only_itself() {
    let mut session = Simulation::of_relay();
    session.client.listens = false;
    session.say(Side::Client, &frame(b'Q', b"SELECT\0")).await;
    let row = frame(b'D', &[7; 1000]);
    let mut said = Vec::new();
    let mut rest = &row[..];
    loop {
        let written = session.server.say(rest);
        said.extend_from_slice(&rest[..written]);
        rest = &rest[written..];
        if rest.is_empty() {
            rest = &row;
        }
        session.settle().await;
        if written == 0 {
            break;
        }
    }
    // Two connections of 64 KiB, and one read.
    assert!((128 * 1024..200 * 1024).contains(&said.len()), "{}", said.len());
    // It may take its time, as it is alive.
    assert_eq!(session.client.stream().peers_user_timeouts(), [None]);
    session.pass(Duration::from_hours(1)).await;
    assert!(session.end.is_none());
    // A second request reaches the server meanwhile.
    let asked = session.server.heard.len();
    session.say(Side::Client, &frame(b'Q', b"SELECT\0")).await;
    assert_eq!(short(&session.server.heard[asked..]), "Q");
    // It reads again.
    session.client.listens = true;
    session.client.hear();
    session.settle().await;
    let end = [
        rest,
        &frame(b'C', b"SELECT\0"),
        &frame(b'Z', b"I"),
        &frame(b'C', b"SELECT\0"),
        &frame(b'Z', b"I"),
    ]
    .concat();
    session.say(Side::Server, &end).await;
    said.extend_from_slice(&end);
    assert!(session.client.heard == said);
    // A client that asks anew has read everything.
    session.say(Side::Client, &frame(b'Q', b"SELECT\0")).await;
    assert_eq!(
        session.client.stream().peers_user_timeouts(),
        [None, Some(Duration::from_secs(30))]
    );
}

/// A server that does not read: the client is read no further, its end reaches the server in order,
/// a reset is seen soon.
#[tokio::test(start_paused = true)]
async fn a_client_may_leave_while_the_server_does_not_read() {
    for how in [Leaving::Closes, Leaving::Resets] {
        let mut session = Simulation::of_relay();
        session.server.listens = false;
        let data = [frame(b'Q', b"COPY\0"), frame(b'd', &vec![7; 400_000])].concat();
        let mut rest = &data[..];
        loop {
            let written = session.client.say(rest);
            rest = &rest[written..];
            session.settle().await;
            if written == 0 {
                break;
            }
        }
        let said = data.len() - rest.len();
        assert!((128 * 1024..200 * 1024).contains(&said), "{said}");
        session.client.leave(how);
        session.pass(Duration::from_secs(1)).await;
        if how == Leaving::Resets {
            let end = session.ended().await;
            assert_eq!((end.cause, end.fate), (Cause::ClientGone, Fate::Unknown));
            continue;
        }
        assert!(session.end.is_none(), "the server may read it yet");
        session.server.listens = true;
        session.server.hear();
        session.settle().await;
        assert!(session.server.heard == data[..said] && session.server.saw_end);
        let end = session.ended().await;
        assert_eq!(end.cause, Cause::ClientGone);
    }
}

/// Neither a client that does not listen to its last words, nor one that does not hang up, is
/// waited for.
#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_hang_up_is_not_waited_for() {
    for is_deaf in [false, true] {
        let mut session = Simulation::of_relay();
        session.say(Side::Client, &frame(b'Q', b"SELECT\0")).await;
        if is_deaf {
            session.client.listens = false;
            let row = frame(b'D', &[7; 1000]);
            while session.server.say(&row) == row.len() {
                session.settle().await;
            }
        }
        session.order(Order::Now(demoted())).await;
        assert!(session.end.is_none());
        session.pass(Duration::from_secs(3)).await;
        assert!(session.end.is_some(), "it has ended by itself");
    }
}
