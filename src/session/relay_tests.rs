//! The relay between a client and a server that the test plays both, and what the client hears at
//! the end.
#![allow(clippy::unwrap_used)]

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::super::counts::RouteCounts;
use super::super::simulator::{frame, short};
use super::super::{finish, memory};
use super::*;
use crate::cluster::snapshot::MemberName;
use crate::routing::{EndReason, LeaveReason};

const PATIENCE: Duration = Duration::from_secs(20);

/// A relay that runs, with both of its ends.
struct Play {
    client: TcpStream,
    server: TcpStream,
    entry: Arc<SessionEntry>,
    relay: JoinHandle<End>,
}

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap());
    let (near, far) = tokio::join!(near, listener.accept());
    let (near, far) = (near.unwrap(), far.unwrap().0);
    near.set_nodelay(true).unwrap();
    far.set_nodelay(true).unwrap();
    (near, far)
}

impl Play {
    async fn new() -> Self {
        Self::of(false).await
    }

    async fn of(replication: bool) -> Self {
        let (client, ours) = pair().await;
        let (to_server, server) = pair().await;
        let client_end = ClientStream::Plain(ours);
        let (mut relay, entry) = memory::relay(client_end, ServerStream::Plain(to_server), replication);
        let relay = tokio::spawn(async move {
            let cause = relay.run().await;
            let Ended { end, parting, .. } = relay.leave(cause).end();
            finish::part(parting, &end, &RouteCounts::default()).await;
            end
        });
        Self {
            client,
            server,
            entry,
            relay,
        }
    }

    /// The client sends this, and the server has it.
    async fn ask(&mut self, frames: &[u8]) {
        self.client.write_all(frames).await.unwrap();
        self.server_reads(frames).await;
    }

    async fn server_reads(&mut self, expected: &[u8]) {
        let mut read = vec![0; expected.len()];
        let reading = self.server.read_exact(&mut read);
        tokio::time::timeout(PATIENCE, reading).await.unwrap().unwrap();
        assert!(read == expected, "{}", read.escape_ascii());
    }

    /// The server says this, and the client has it.
    async fn say(&mut self, frames: &[u8]) {
        self.server.write_all(frames).await.unwrap();
        let mut read = vec![0; frames.len()];
        let reading = self.client.read_exact(&mut read);
        tokio::time::timeout(PATIENCE, reading).await.unwrap().unwrap();
        assert!(read == frames, "{}", read.escape_ascii());
    }

    /// What the client hears up to the end of its connection, in short, and how the session ended.
    async fn last_words(mut self) -> (String, End) {
        let mut bytes = Vec::new();
        let reading = self.client.read_to_end(&mut bytes);
        tokio::time::timeout(PATIENCE, reading).await.unwrap().unwrap();
        drop(self.client);
        let end = tokio::time::timeout(PATIENCE, self.relay).await.unwrap().unwrap();
        (short(&bytes), end)
    }

    /// The session ends though nobody says so to anybody.
    async fn ended(relay: JoinHandle<End>) -> End {
        tokio::time::timeout(PATIENCE, relay).await.unwrap().unwrap()
    }

    fn order(&self, reason: Reason) {
        self.entry.order(Order::Now(reason));
    }
}

fn query() -> Vec<u8> {
    frame(b'Q', b"INSERT\0")
}

fn done(status: &[u8]) -> Vec<u8> {
    [frame(b'C', b"INSERT 0 1\0"), frame(b'Z', status)].concat()
}

fn demoted() -> Reason {
    Reason::Role(EndReason::Demoted(MemberName::new("db1")))
}

/// Every reason for which a session is cut at once, with a request under way and with none.
#[tokio::test]
async fn a_request_under_way_is_of_unknown_outcome_whatever_cuts_the_session() {
    let db1 = || MemberName::new("db1");
    for reason in [
        Reason::Shutdown,
        Reason::Killed,
        Reason::MemberClosed(db1()),
        demoted(),
        Reason::Role(EndReason::Promoted(db1())),
        Reason::Unfit(LeaveReason::Lagging(db1())),
        Reason::Unfit(LeaveReason::Down(db1())),
        Reason::Unfit(LeaveReason::Maintenance(db1())),
    ] {
        let mut busy = Play::new().await;
        busy.ask(&query()).await;
        busy.order(reason.clone());
        let (said, end) = busy.last_words().await;
        assert_eq!((&said[..], end.is_unknown()), ("ERROR 08007 ZI", true), "{end}");

        // Nothing under way, then in an open transaction.
        for (status, fate) in [(b"I", Fate::Settled), (b"T", Fate::RolledBack)] {
            let mut idle = Play::new().await;
            idle.ask(&query()).await;
            idle.say(&done(status)).await;
            idle.order(reason.clone());
            let (said, end) = idle.last_words().await;
            assert_eq!((&said[..], end.fate), ("FATAL 57P01", fate), "{end}");
        }
    }
}

/// What each conversation leaves unknown, when the session is cut: what the client sent, what the
/// server said.
#[tokio::test]
async fn only_what_the_server_may_do_is_unknown() {
    let [parse, bind, execute, sync, flush] = [b'P', b'B', b'E', b'S', b'H'].map(|tag| frame(tag, b""));
    let batch = [&parse[..], &bind, &execute].concat();
    let answered = [frame(b'1', b""), frame(b'2', b""), frame(b'C', b"INSERT 0 1\0")].concat();
    let error = frame(b'E', b"SERROR\0VERROR\0C23505\0\0");
    let row = [frame(b'T', &[0; 20]), frame(b'D', &[0; 20])].concat();
    let none = Vec::new;
    for (what, asked, said, words) in [
        (
            "in a transaction",
            [query(), query()].concat(),
            done(b"T"),
            "ERROR 08007 ZE",
        ),
        ("rows have come", query(), row, "ERROR 08007 ZI"),
        (
            "completed, not yet ready",
            query(),
            frame(b'C', b"INSERT 0 1\0"),
            "ERROR 08007 ZI",
        ),
        ("a batch", [&batch[..], &sync].concat(), none(), "ERROR 08007 ZI"),
        (
            "only its Sync is not answered",
            [&batch[..], &sync].concat(),
            answered.clone(),
            "ERROR 08007 ZI",
        ),
        // Without a Sync nothing would follow the error.
        (
            "no Sync yet",
            [&batch[..], &flush].concat(),
            none(),
            "FATAL 08007",
        ),
        // Usually it is committed at the Sync; but COMMIT, CALL and VACUUM do not wait for one.
        (
            "answered, no Sync yet",
            [&batch[..], &flush].concat(),
            answered.clone(),
            "FATAL 08007",
        ),
        (
            "failed, no Sync yet",
            [&batch[..], &flush].concat(),
            error.clone(),
            "FATAL 08007",
        ),
        (
            "answered, and half a Sync",
            [&batch[..], &sync[..3]].concat(),
            answered.clone(),
            "FATAL 08007",
        ),
        (
            "executed, then failed",
            [&batch[..], &parse, &flush].concat(),
            [&answered[..], &error].concat(),
            "FATAL 08007",
        ),
        (
            "executed, then parsed",
            [&batch[..], &parse, &flush].concat(),
            [&answered[..], &frame(b'1', b"")].concat(),
            "FATAL 08007",
        ),
        (
            "nothing executed",
            [&parse[..], &bind, &flush].concat(),
            answered[..10].to_vec(),
            "FATAL 57P01",
        ),
        (
            "nothing executed, failed",
            [&parse[..], &flush].concat(),
            error,
            "FATAL 57P01",
        ),
        ("half a message", query()[..8].to_vec(), none(), "FATAL 57P01"),
        (
            "half a message behind one",
            [query(), query()[..8].to_vec()].concat(),
            none(),
            "ERROR 08007 ZI",
        ),
        (
            "half a message behind an answer",
            [query(), query()[..8].to_vec()].concat(),
            done(b"I"),
            "FATAL 57P01",
        ),
        (
            "half a batch",
            batch[..batch.len() - 6].to_vec(),
            none(),
            "FATAL 08007",
        ),
        ("a COPY in", query(), frame(b'G', &[0; 3]), "ERROR 08007 ZI"),
        ("a COPY out", query(), frame(b'H', &[0; 3]), "ERROR 08007 ZI"),
        // Its client goes on elsewhere where it stopped.
        (
            "a replication stream",
            query(),
            frame(b'W', &[0; 3]),
            "FATAL 57P01",
        ),
    ] {
        let mut play = Play::new().await;
        play.ask(&asked).await;
        if !said.is_empty() {
            play.say(&said).await;
        }
        play.order(demoted());
        let (last, end) = play.last_words().await;
        assert_eq!(last, words, "{what}: {end}");
    }
}

/// A request that the server's kernel has not taken has no effect.
#[tokio::test]
async fn what_never_reached_the_server_is_not_unknown() {
    let Play {
        mut client,
        server,
        entry,
        relay,
    } = Play::new().await;
    // It takes what the kernels and one read take; nobody reads at the other end.
    let large = frame(b'Q', &vec![b'x'; 40_000_000]);
    let writer = tokio::spawn(async move {
        let _ = client.write_all(&large).await;
    });
    let mut before = 0;
    loop {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let now = entry.traffic().bytes_up;
        if now > 0 && now == before {
            break;
        }
        before = now;
    }
    entry.order(Order::Now(demoted()));
    let end = Play::ended(relay).await;
    assert_eq!(end.fate, Fate::Settled, "{end}");
    assert_eq!(end.reply().unwrap().code.as_str(), "57P01");
    drop(server);
    writer.await.unwrap();
}

/// A message that the client has in part is completed, so that it can be told; the server has more
/// to say than that.
#[tokio::test]
async fn a_client_in_the_middle_of_a_row_is_told_behind_it() {
    let mut play = Play::new().await;
    play.ask(&query()).await;
    let row = frame(b'D', &vec![7; 100_000]);
    play.say(&row[..70_001]).await;
    play.order(demoted());
    // As soon as the relay has ended it reads no further than this row.
    tokio::time::sleep(Duration::from_millis(50)).await;
    play.server
        .write_all(&[&row[70_001..], &row].concat())
        .await
        .unwrap();
    let mut rest = vec![0; row.len() - 70_001];
    play.client.read_exact(&mut rest).await.unwrap();
    assert!(rest.iter().all(|byte| *byte == 7));
    let mut client = play.client;
    let mut bytes = Vec::new();
    client.read_to_end(&mut bytes).await.unwrap();
    assert_eq!(short(&bytes), "ERROR 08007 ZI");
}

#[tokio::test]
async fn what_the_server_has_said_before_the_cut_is_heard() {
    for (said, words) in [
        (done(b"I"), "C ZI FATAL 57P01"),
        (frame(b'E', b"SFATAL\0VFATAL\0C57P01\0\0"), "FATAL 57P01"),
    ] {
        let mut play = Play::new().await;
        play.ask(&query()).await;
        // Both are there when the relay looks.
        play.server.write_all(&said).await.unwrap();
        play.order(demoted());
        let (last, end) = play.last_words().await;
        assert_eq!(last, words, "{end}");
    }
}

/// Also where the client has said goodbye or closed its side, and still listens.
#[tokio::test]
async fn the_servers_own_last_word_is_the_last() {
    let fatal = frame(b'E', b"SFATAL\0VFATAL\0C08P01\0\0");
    for (said, words) in [(&fatal[..], "FATAL 08P01"), (b"", "ERROR 08007 ZI")] {
        for (goodbye, closes) in [(&b""[..], false), (b"", true), (b"X\0\0\0\x04", false)] {
            let mut play = Play::new().await;
            play.ask(&[&query()[..], goodbye].concat()).await;
            if closes {
                play.client.shutdown().await.unwrap();
                assert_eq!(play.server.read(&mut [0; 1]).await.unwrap(), 0);
            }
            play.server.write_all(said).await.unwrap();
            play.server.shutdown().await.unwrap();
            let (last, end) = play.last_words().await;
            assert_eq!(last, words, "{end}");
        }
    }
}

#[tokio::test]
async fn a_lost_server_and_a_broken_protocol_say_what_is_known() {
    let broken = frame(b'Z', b"?");
    for (said, busy, idle) in [
        (&b""[..], "ERROR 08007 ZI", "FATAL 08006"),
        (&broken, "ERROR 08007 ZI", "FATAL 08P01"),
    ] {
        for (is_busy, words) in [(true, busy), (false, idle)] {
            let mut play = Play::new().await;
            if is_busy {
                play.ask(&query()).await;
            }
            play.server.write_all(said).await.unwrap();
            play.server.shutdown().await.unwrap();
            let (last, end) = play.last_words().await;
            assert_eq!(last, words, "{end}");
        }
    }
    // The client's own fault does not make its request known.
    for (asked, words) in [(query(), "ERROR 08007 ZI"), (Vec::new(), "FATAL 08P01")] {
        let mut play = Play::new().await;
        play.ask(&asked).await;
        // What comes in one read with the fault never reaches the server.
        play.client
            .write_all(&[query(), b"Q\0\0\0\x03".to_vec()].concat())
            .await
            .unwrap();
        let (last, end) = play.last_words().await;
        assert_eq!(last, words, "{end}");
    }
}

#[tokio::test]
async fn a_replication_stream_that_the_server_has_completed_ends_without_a_word() {
    let complete = frame(b'C', b"COPY 0\0");
    let stream = [frame(b'W', &[0; 3]), frame(b'd', &[7; 50])].concat();
    for (said, words, cause) in [
        (&complete[..], "", Cause::ServerClosed),
        // Not complete: the connection is lost, and no outcome with it.
        (b"", "FATAL 08006", Cause::ServerGone),
    ] {
        let mut play = Play::of(true).await;
        play.ask(&query()).await;
        play.say(&stream).await;
        if !said.is_empty() {
            play.say(said).await;
        }
        play.server.shutdown().await.unwrap();
        let (last, end) = play.last_words().await;
        assert_eq!((&last[..], &end.cause, end.fate), (words, &cause, Fate::Settled));
    }
    // An order that comes in between has nothing to add.
    let mut play = Play::of(true).await;
    play.ask(&query()).await;
    play.say(&[&stream[..], &complete].concat()).await;
    play.order(Reason::Shutdown);
    let (last, end) = play.last_words().await;
    assert_eq!((&last[..], end.is_abnormal()), ("", false), "{end}");
}

fn reset(client: TcpStream) {
    let client = client.into_std().unwrap();
    socket2::SockRef::from(&client)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
    drop(client);
}

/// Neither half a goodbye, nor a whole one behind a request, nor what follows it hides that the
/// client leaves: the server hears of the end at once, and a reset ends the session.
#[tokio::test]
async fn a_goodbye_does_not_hide_that_the_client_leaves() {
    let goodbye = frame(b'X', b"with a body");
    for half in [&goodbye[..1], &goodbye[..5], &goodbye[..9]] {
        let mut play = Play::new().await;
        play.ask(half).await;
        drop(play.client);
        assert_eq!(
            play.server.read(&mut [0; 1]).await.unwrap(),
            0,
            "the end is passed on"
        );
        drop(play.server);
        let end = Play::ended(play.relay).await;
        assert_eq!((&end.cause, end.fate), (&Cause::ClientGone, Fate::Settled));
    }
    for behind in [&b""[..], &b"\0\0"[..], &query()] {
        for is_reset in [false, true] {
            let mut play = Play::new().await;
            let whole = [query(), goodbye.clone()].concat();
            play.client
                .write_all(&[&whole[..], behind].concat())
                .await
                .unwrap();
            play.server_reads(&whole).await;
            if is_reset {
                reset(play.client);
                let end = Play::ended(play.relay).await;
                assert_eq!(end.cause, Cause::ClientTerminated);
                continue;
            }
            drop(play.client);
            // Nothing follows a goodbye but the end.
            assert_eq!(play.server.read(&mut [0; 1]).await.unwrap(), 0);
            drop(play.server);
            let end = Play::ended(play.relay).await;
            assert_eq!(end.cause, Cause::ClientTerminated);
        }
    }
}

/// One that goes on sending behind its goodbye is not read into the server, and still gets its
/// answer.
#[tokio::test]
async fn behind_a_goodbye_answers_come_and_nothing_goes_to_the_server() {
    let mut play = Play::new().await;
    let asked = [query(), frame(b'X', b"")].concat();
    play.ask(&asked).await;
    for _ in 0..3 {
        play.client.write_all(&query()).await.unwrap();
        tokio::task::yield_now().await;
    }
    play.say(&done(b"I")).await;
    play.client.shutdown().await.unwrap();
    assert_eq!(play.server.read(&mut [0; 1]).await.unwrap(), 0);
    drop(play.server);
    let mut rest = Vec::new();
    play.client.read_to_end(&mut rest).await.unwrap();
    assert!(rest.is_empty());
    assert_eq!(Play::ended(play.relay).await.cause, Cause::ClientTerminated);
}

/// The client is not read while too much waits for answers, or while the server takes nothing. Its
/// leaving is seen.
#[tokio::test]
async fn a_client_that_is_not_read_may_leave() {
    let many = [frame(b'P', b"\0\0\0\0"), frame(b'S', b"")].concat().repeat(5000);
    for is_reset in [false, true] {
        let mut play = Play::new().await;
        play.client.write_all(&query()).await.unwrap();
        play.client.write_all(&many).await.unwrap();
        // The server reads all that comes; it is held back at some point.
        play.server_reads(&query()).await;
        let mut seen = 0;
        let mut buffer = vec![0; 65536];
        while let Ok(Ok(read)) =
            tokio::time::timeout(Duration::from_millis(100), play.server.read(&mut buffer)).await
        {
            seen += read;
        }
        assert!(seen < many.len(), "it is held back");
        if is_reset {
            reset(play.client);
            assert_eq!(Play::ended(play.relay).await.cause, Cause::ClientGone);
            continue;
        }
        // A client that has closed its side: everything it said reaches the server, and then the
        // end.
        drop(play.client);
        loop {
            let read = tokio::time::timeout(PATIENCE, play.server.read(&mut buffer));
            match read.await.unwrap().unwrap() {
                0 => break,
                read => seen += read,
            }
        }
        assert_eq!(seen, many.len());
        drop(play.server);
        assert_eq!(Play::ended(play.relay).await.cause, Cause::ClientGone);
    }
    // The server takes nothing.
    let mut play = Play::new().await;
    let large = frame(b'd', &vec![0; 1_000_000]);
    loop {
        let write = tokio::time::timeout(Duration::from_millis(300), play.client.write_all(&large));
        if write.await.is_err() {
            break;
        }
    }
    reset(play.client);
    assert_eq!(Play::ended(play.relay).await.cause, Cause::ClientGone);
}
