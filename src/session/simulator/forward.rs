//! `mode: tcp`: bytes pass unread, so that every position is like every other one.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::conversation::{Conversation, Side, Step, conversations};
use super::play::{self, Position, demoted};
use super::{Leaving, Simulation, frame};
use crate::cluster::snapshot::{AdminState, Member, MemberName};
use crate::routing::{EndReason, LeaveReason};
use crate::session::end::{Cause, End, Fate, Order, Reason};
use crate::session::forward::{self, Ended, Forward, Parts};
use crate::session::registry::Registry;
use crate::session::stream::SessionStream;
use crate::session::topology::{member, snapshot};
use crate::session::{memory, orders};

impl Simulation {
    /// A session on the member `db1`, of whose client the router has read `head` to see what it
    /// wants.
    fn of_forwarder(head: &'static [u8]) -> Self {
        let (client, to_client) = memory::connection();
        let (to_server, server) = memory::connection();
        let registry: Arc<Registry> = Arc::default();
        let ticket = memory::ticket(&registry);
        let entry = Arc::clone(ticket.entry());
        entry.place(Some(memory::placement("db1")));
        let mut forwarder = Forward::new(Parts {
            client: to_client,
            server: to_server,
            head: Bytes::from_static(head),
            ticket,
            member: MemberName::new("db1"),
            cluster: memory::cluster(),
            occupancy: Arc::default(),
            worker_buffer: Arc::default(),
        });
        let session = async move {
            let cause = forwarder.run().await;
            let Ended {
                cause,
                client,
                server,
                ticket,
                ..
            } = forwarder.end(cause);
            let end = End::from(cause);
            drop(ticket);
            forward::part(client, &end).await;
            server.end_socket();
            end
        };
        Self::new((client, server), (registry, entry), session)
    }

    /// Each side has heard what the other one said up to this position, and nothing else, and has
    /// seen the end.
    fn has_ended_at(&self, conversation: &Conversation, position: Position) {
        self.has_forwarded(conversation, position);
        let at = || format!("{} at {position:?}: {:?}", conversation.name, self.end);
        assert!(self.client.saw_end, "the client sees the end: {}", at());
        assert!(self.server.saw_end, "the server sees the end: {}", at());
    }
}

async fn at_every_position<F>(mut then: F)
where
    F: AsyncFnMut(&mut Simulation, &Conversation, Position),
{
    let session = || Simulation::of_forwarder(b"");
    play::at_every_position(session, async |session, conversation, position, _| {
        then(session, conversation, position).await;
    })
    .await;
}

/// What is under way is not seen, so that nothing is said to be unknown.
fn ended(end: &End) -> (&Cause, Fate) {
    (&end.cause, end.fate)
}

/// Tests write until the router reads no more.
macro_rules! fill {
    ($session:ident, $peer:ident, $data:expr) => {{
        let data: &[u8] = $data;
        let mut said = 0;
        loop {
            let written = $session.$peer.say(&data[said..]);
            said += written;
            $session.settle().await;
            if written == 0 {
                break said;
            }
        }
    }};
}

/// Bytes of which each place has its own.
fn stream(length: u32) -> Vec<u8> {
    (0..length / 4).flat_map(u32::to_be_bytes).collect()
}

#[tokio::test(start_paused = true)]
async fn every_byte_is_forwarded_as_it_comes_and_in_order() {
    for conversation in conversations() {
        let mut session = Simulation::of_forwarder(b"");
        for position in conversation.positions() {
            session.has_forwarded(&conversation, position);
            if let Some(Step { side, bytes, .. }) = conversation.steps.get(position.0) {
                session.say(*side, &bytes[position.1..=position.1]).await;
            }
        }
        for most in 1..40 {
            let mut session = Simulation::of_forwarder(b"");
            session.client.stream().peer_reads_at_most(most);
            session.server.stream().peer_reads_at_most(most);
            for Step { side, bytes, .. } in &conversation.steps {
                session.say(*side, bytes).await;
            }
            session.has_forwarded(&conversation, (conversation.steps.len(), 0));
        }
    }
}

/// What the router read to choose a server comes first, and counts.
#[tokio::test(start_paused = true)]
async fn the_server_hears_the_first_packet_first() {
    let mut session = Simulation::of_forwarder(b"first packet");
    session.say(Side::Client, b", and no protocol at all").await;
    session.say(Side::Server, b"\0\xff").await;
    assert_eq!(session.server.heard, b"first packet, and no protocol at all");
    assert_eq!(session.client.heard, b"\0\xff");
    let traffic = session.entry.traffic();
    assert_eq!((traffic.bytes_up, traffic.bytes_down), (36, 2));
}

#[tokio::test(start_paused = true)]
async fn a_client_may_leave_at_every_position() {
    for how in [Leaving::Closes, Leaving::Resets] {
        at_every_position(async |session, conversation, position| {
            session.client.leave(how);
            let end = session.ended().await;
            let at = format!("{} at {position:?}, {how:?}: {end}", conversation.name);
            assert_eq!(ended(&end), (&Cause::ClientGone, Fate::Settled), "{at}");
            assert!(session.server.saw_end, "{at}");
            let said = conversation.said(Side::Client, position);
            assert_eq!(session.server.heard, said, "{at}");
        })
        .await;
    }
}

/// The server may go on answering, however long it takes; its end is the session's.
#[tokio::test(start_paused = true)]
async fn answers_reach_a_client_that_has_ended_its_side() {
    for how in [Leaving::Closes, Leaving::Resets] {
        at_every_position(async |session, conversation, (step, sent)| {
            session.client.end();
            session.settle().await;
            assert!(session.server.saw_end, "at once");
            session.pass(Duration::from_hours(1)).await;
            assert!(session.end.is_none());
            let mut from = sent;
            for Step { side, bytes, .. } in &conversation.steps[step..] {
                if *side == Side::Server {
                    session.say(*side, &bytes[from..]).await;
                }
                from = 0;
            }
            session.server.leave(how);
            let end = session.ended().await;
            let at = format!("{} at {:?}, {how:?}: {end}", conversation.name, (step, sent));
            assert_eq!(ended(&end), (&Cause::ClientGone, Fate::Settled), "{at}");
            assert!(session.client.saw_end, "{at}");
            let said = conversation.said(Side::Server, (conversation.steps.len(), 0));
            assert_eq!(session.client.heard, said, "{at}");
            let asked = conversation.said(Side::Client, (step, sent));
            assert_eq!(session.server.heard, asked, "{at}");
        })
        .await;
    }
}

/// A server that ends its side has ended both, as PostgreSQL's does: what the client says then
/// reaches nobody.
#[tokio::test(start_paused = true)]
async fn a_server_may_end_the_session_at_every_position() {
    for how in [None, Some(Leaving::Closes), Some(Leaving::Resets)] {
        at_every_position(async |session, conversation, position| {
            match how {
                None => session.server.end(),
                Some(how) => session.server.leave(how),
            }
            session.settle().await;
            session.client.say(&frame(b'Q', b"DELETE\0"));
            let end = session.ended().await;
            let cause = match how {
                Some(Leaving::Resets) => Cause::ServerGone,
                _ => Cause::ServerClosed,
            };
            let at = format!("{} at {position:?}, {how:?}: {end}", conversation.name);
            assert_eq!(ended(&end), (&cause, Fate::Settled), "{at}");
            assert!(session.client.saw_end, "{at}");
            session.has_forwarded(conversation, position);
        })
        .await;
    }
}

/// Although the server takes no more of the client's bytes.
#[tokio::test(start_paused = true)]
async fn a_servers_last_words_arrive_at_every_position() {
    at_every_position(async |session, conversation, position| {
        let fatal = frame(b'E', b"SFATAL\0VFATAL\0C57P01\0M-\0\0");
        session.server.say(&fatal);
        session.server.leave(Leaving::Closes);
        session.client.say(&frame(b'Q', b"DELETE\0"));
        let end = session.ended().await;
        let at = format!("{} at {position:?}: {end}", conversation.name);
        assert_eq!(ended(&end), (&Cause::ServerClosed, Fate::Settled), "{at}");
        let heard = [conversation.said(Side::Server, position), fatal].concat();
        assert_eq!(session.client.heard, heard, "{at}");
    })
    .await;
}

/// At once; the client hears no word of the router's, and nothing is forwarded any more.
#[tokio::test(start_paused = true)]
async fn an_order_ends_a_session_at_every_position() {
    at_every_position(async |session, conversation, position| {
        session.entry.order(Order::Now(demoted()));
        // Both were there before the order was seen.
        session.client.say(&frame(b'Q', b"DELETE\0"));
        session.server.say(&frame(b'N', b"\0"));
        let end = session.ended().await;
        let at = format!("{} at {position:?}: {end}", conversation.name);
        assert_eq!(ended(&end), (&Cause::Ordered(demoted()), Fate::Settled), "{at}");
        session.has_ended_at(conversation, position);
    })
    .await;
}

/// It cannot see one.
#[tokio::test(start_paused = true)]
async fn an_order_for_a_boundary_has_no_effect_until_it_is_one_for_now() {
    for conversation in conversations() {
        let whole = (conversation.steps.len(), 0);
        for (step, sent) in conversation.positions() {
            let mut session = Simulation::of_forwarder(b"");
            session.play(&conversation, (step, sent)).await;
            session.order(Order::AtBoundary(Reason::Shutdown)).await;
            for (at, Step { side, bytes, .. }) in conversation.steps.iter().enumerate().skip(step) {
                let from = if at == step { sent } else { 0 };
                session.say(*side, &bytes[from..]).await;
            }
            session.has_forwarded(&conversation, whole);
            assert!(session.end.is_none());
            session.order(Order::Now(Reason::Shutdown)).await;
            let end = session.ended().await;
            assert_eq!(end.cause, Cause::Ordered(Reason::Shutdown));
            session.has_ended_at(&conversation, whole);
        }
    }
}

/// What gives the orders sees where the session is, and how the cluster changes.
#[tokio::test(start_paused = true)]
async fn a_session_is_cut_at_every_position_when_its_server_leads_no_more() {
    let other_leader = || {
        Reason::Role(EndReason::OtherLeader {
            old: MemberName::new("db1"),
            leader: MemberName::new("db2"),
        })
    };
    let maintained = || Reason::Unfit(LeaveReason::Maintenance(MemberName::new("db1")));
    let members = |admin| {
        let db1 = Member {
            admin,
            ..member("db1", false)
        };
        vec![db1, member("db2", true)]
    };
    at_every_position(async |session, conversation, position| {
        let (sender, receiver) = watch::channel(snapshot(Some("db1"), members(AdminState::Ready)));
        let stop = CancellationToken::new();
        let registry = Arc::clone(&session.registry);
        let enforcing = tokio::spawn(orders::enforce(receiver, registry, stop.clone()));
        session.settle().await;
        assert!(session.end.is_none());
        // By turns: another leader, and maintenance, which leaves it its grace period.
        let reason = if position.1 % 2 == 0 {
            sender.send_replace(snapshot(Some("db2"), members(AdminState::Ready)));
            other_leader()
        } else {
            sender.send_replace(snapshot(Some("db1"), members(AdminState::Maint)));
            session.settle().await;
            let grace = session.entry.origin.on_unfit.grace;
            session.pass(grace / 2).await;
            assert!(session.end.is_none(), "within the grace period");
            session.pass(grace / 2 + Duration::from_millis(2)).await;
            maintained()
        };
        let end = session.ended().await;
        let at = format!("{} at {position:?}: {end}", conversation.name);
        assert_eq!(ended(&end), (&Cause::Ordered(reason), Fate::Settled), "{at}");
        session.has_ended_at(conversation, position);
        stop.cancel();
        enforcing.await.expect("it ends");
    })
    .await;
}

/// What the router holds for it is one read; the other direction goes on; nothing is lost, also
/// where the server has ended.
#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_holds_up_only_itself() {
    let mut session = Simulation::of_forwarder(b"");
    session.client.listens = false;
    session.say(Side::Client, b"ask").await;
    let data = stream(400_000);
    let said = fill!(session, server, &data);
    // Two connections of 64 KiB, and one read.
    assert!((128 * 1024..200 * 1024).contains(&said), "{said}");
    // It may take its time, as it is alive.
    assert_eq!(session.client.stream().peers_user_timeouts(), [None]);
    session.pass(Duration::from_hours(1)).await;
    assert!(session.end.is_none());
    session.say(Side::Client, b", and ask again").await;
    assert_eq!(session.server.heard, b"ask, and ask again");
    assert_eq!(
        session.client.stream().peers_user_timeouts(),
        [None, Some(Duration::from_secs(30))],
        "a client that speaks after a rest has read everything"
    );
    session.server.end();
    session.settle().await;
    assert!(session.end.is_none(), "not before it has everything");
    session.client.listens = true;
    session.client.hear();
    let end = session.ended().await;
    assert_eq!(ended(&end), (&Cause::ServerClosed, Fate::Settled));
    assert!(session.client.heard == data[..said], "in order, and whole");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_does_not_read_holds_up_only_itself() {
    let mut session = Simulation::of_forwarder(b"");
    session.server.listens = false;
    let data = stream(400_000);
    let mut said = fill!(session, client, &data);
    assert!((128 * 1024..200 * 1024).contains(&said), "{said}");
    assert_eq!(session.server.stream().peers_user_timeouts(), [None]);
    session.pass(Duration::from_hours(1)).await;
    assert!(session.end.is_none());
    session.say(Side::Server, b"wait").await;
    assert_eq!(session.client.heard, b"wait");
    session.server.listens = true;
    session.server.hear();
    session.settle().await;
    said += fill!(session, client, &data[said..]);
    assert!(said == data.len() && session.server.heard == data);
    assert_eq!(session.server.stream().peers_user_timeouts(), [None]);
}

/// Its end reaches the server in order, a reset is seen soon.
#[tokio::test(start_paused = true)]
async fn a_client_may_leave_while_the_server_does_not_read() {
    for how in [Leaving::Closes, Leaving::Resets] {
        let mut session = Simulation::of_forwarder(b"");
        session.server.listens = false;
        let data = stream(400_000);
        let said = fill!(session, client, &data);
        session.client.leave(how);
        session.pass(Duration::from_secs(1)).await;
        if how == Leaving::Resets {
            assert_eq!(session.ended().await.cause, Cause::ClientGone);
            continue;
        }
        assert!(session.end.is_none(), "the server may read it yet");
        session.server.listens = true;
        session.server.hear();
        session.settle().await;
        assert!(session.server.heard == data[..said] && session.server.saw_end);
        assert_eq!(session.ended().await.cause, Cause::ClientGone);
    }
}

/// An order waits for neither, nor does the end of a server that does not read.
#[tokio::test(start_paused = true)]
async fn a_peer_that_does_not_read_is_not_waited_for() {
    for is_ordered in [true, false] {
        let mut session = Simulation::of_forwarder(b"");
        session.server.listens = false;
        fill!(session, client, &stream(400_000));
        if is_ordered {
            session.client.listens = false;
            fill!(session, server, &stream(400_000));
            session.order(Order::Now(demoted())).await;
            assert!(session.end.is_some(), "at once");
            continue;
        }
        session.server.say(b"enough");
        session.server.end();
        session.settle().await;
        assert!(session.client.saw_end && session.client.heard == b"enough");
        // The client does not hang up.
        session.pass(Duration::from_secs(3)).await;
        let end = session.end.as_ref().expect("it has ended by itself");
        assert_eq!(ended(end), (&Cause::ServerClosed, Fate::Settled));
    }
}
