//! The table of commands, and sessions with clients that keep to nothing.
#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use proptest::prelude::*;
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::super::http::fixture::{self, NothingHeld};
use super::command::{COMMANDS, Effect, find};
use super::statement::Statement;
use super::views::{self, VIEWS};
use super::*;
use crate::session::console::{Console as _, IsOperator};
use crate::session::end::Order;
use crate::session::registry::ConsoleTicket;
use crate::wire::frame::{ErrorFields, Frame};

fn text_of(sql: &str) -> Option<&'static str> {
    match find(sql).unwrap()? {
        Statement::Command { command, .. } => Some(command.text),
        _ => panic!("{sql}"),
    }
}

fn name_of(sql: &str) -> Option<String> {
    match find(sql).unwrap().unwrap() {
        Statement::Command { arguments, .. } => {
            let name = arguments.value("route").or(arguments.value("node"));
            name.map(str::to_owned)
        }
        _ => panic!("{sql}"),
    }
}

#[test]
fn a_command_is_found_however_it_is_typed() {
    for sql in [
        "SHOW HBA",
        "show hba;",
        "\t Show\n  hBa ;; \n",
        "-- a comment\nSHOW HBA -- another",
        "/* one /* in another */ */SHOW/**/HBA;",
    ] {
        assert_eq!(text_of(sql), Some("SHOW HBA"), "{sql}");
    }
    for sql in ["", ";", " -- nothing"] {
        assert_eq!(text_of(sql), None, "{sql}");
    }
    // Not an order about all routes.
    for sql in ["PAUSE /* r", "PAUSE /* /* */ r", "/* no end"] {
        assert!(find(sql).is_err(), "{sql}");
    }
}

#[test]
fn a_name_may_be_in_double_quotes_and_keeps_its_letters() {
    for (sql, expected) in [
        ("PAUSE read-write", "read-write"),
        ("pause Read;", "Read"),
        ("RESUME \"a \"\" b\" ;", "a \" b"),
        ("PAUSE /* x */ \"r\"", "r"),
        ("switchover to db2", "db2"),
        ("explain switchover TO \"db 2\"", "db 2"),
    ] {
        assert_eq!(name_of(sql).as_deref(), Some(expected), "{sql}");
    }
    assert_eq!(name_of("PAUSE"), None);
    let long = format!("PAUSE {}", "x".repeat(256));
    for sql in ["PAUSE \"\"", "PAUSE \"a", "PAUSE a\"b", "PAUSE \"a\"b\"", &long] {
        assert!(find(sql).is_err(), "{sql}");
    }
}

#[test]
fn anything_else_is_refused() {
    for sql in [
        "SHOW",
        "SHOW HBA HBA",
        "SHOW HBA; SHOW HBA",
        "SHOW HBA; DROP TABLE t",
        "SHOWHBA",
        "DRAIN",
        "é",
        "SHOW HB\u{c4}",
        "PAUSE a b",
        "SWITCHOVER db2",
        "SWITCHOVER TO",
    ] {
        let reply = find(sql).unwrap_err();
        assert_eq!(reply.code.as_str(), "0A000", "{sql}");
        assert!(reply.hint.unwrap().contains("SHOW HELP"), "{sql}");
    }
}

#[test]
fn every_command_and_every_view_is_in_the_help() {
    let help = help();
    for command in COMMANDS {
        assert!(help.contains(&command.text.to_owned()), "{}", command.text);
        let needed = command.text.split(" [").next().unwrap();
        for text in [needed, command.text] {
            let typed = text.replace('…', "= x").replace(['<', '>', '[', ']'], "");
            assert_eq!(text_of(&typed), Some(command.text), "{typed}");
        }
    }
    for view in VIEWS {
        assert!(help.contains(&format!("SELECT … FROM {}", view.name)));
        assert!(views::find(view.name).is_some_and(|found| found.about == view.about));
    }
}

/// The first column.
fn help() -> Vec<String> {
    let Effect::Rows(_, rows) = COMMANDS[0].effect else {
        panic!("SHOW HELP is the first command");
    };
    rows().iter().map(|row| row[0].to_text()).collect()
}

/// Of a cluster with members, and something that has happened.
pub(super) fn handles() -> Handles {
    let handles = fixture::handles(vec![fixture::view(
        fixture::led(vec![fixture::primary("db1"), fixture::member("db2")]),
        crate::config::LocalMember::Auto,
    )]);
    handles
        .events
        .emit(crate::events::OperatorEvent::RouterDrained { by: "-".to_owned() });
    handles
}

/// A client of a console over a socket in this process.
pub(super) struct Client {
    pub(super) socket: UnixStream,
    buffer: BytesMut,
    pub(super) console: JoinHandle<ConsoleEnd>,
    pub(super) session: ConsoleTicket,
}

impl Client {
    pub(super) async fn new() -> Self {
        Self::with(CancellationToken::new()).await
    }

    async fn with(closing: CancellationToken) -> Self {
        Self::before(Arc::default(), true, closing).await
    }

    pub(super) async fn before(
        holding: Arc<NothingHeld>,
        is_operator: bool,
        closing: CancellationToken,
    ) -> Self {
        Self::of(handles(), holding, IsOperator::new(move || is_operator), closing).await
    }

    pub(super) async fn of(
        handles: Handles,
        holding: Arc<NothingHeld>,
        is_operator: IsOperator,
        closing: CancellationToken,
    ) -> Self {
        let (ours, socket) = UnixStream::pair().unwrap();
        let orders = fixture::console_orders(holding);
        let console = Console::new(handles, orders, "trunkline".to_owned());
        let session = ConsoleSession::alone();
        let conversation = console.serve(ConsoleClient {
            stream: ClientStream::Unix(ours),
            user: "admin".into(),
            is_operator,
            by: "admin".into(),
            welcome: BytesMut::new(),
            session: Arc::clone(session.session()),
            closing,
        });
        let mut client = Self {
            socket,
            buffer: BytesMut::new(),
            console: tokio::spawn(conversation),
            session,
        };
        client.until_ready().await;
        client
    }

    pub(super) async fn send(&mut self, frames: &[Vec<u8>]) {
        self.socket.write_all(&frames.concat()).await.unwrap();
    }

    pub(super) async fn frame(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = frame::next_frame(&mut self.buffer, usize::MAX).unwrap() {
                return Some(frame);
            }
            let read = timeout(Duration::from_secs(30), self.socket.read_buf(&mut self.buffer));
            if !matches!(read.await.unwrap(), Ok(1..)) {
                return None;
            }
        }
    }

    pub(super) async fn until_ready(&mut self) -> Vec<Frame> {
        let mut frames = Vec::new();
        loop {
            let frame = self.frame().await.unwrap();
            let is_last = frame.tag == b'Z';
            frames.push(frame);
            if is_last {
                return frames;
            }
        }
    }

    /// Type bytes of the answer, with the codes of errors.
    pub(super) async fn told(&mut self) -> String {
        let shown = |frame: Frame| match frame.tag {
            b'E' => format!("E{} ", ErrorFields::parse(&frame.body).unwrap().code),
            tag => char::from(tag).to_string(),
        };
        self.until_ready().await.into_iter().map(shown).collect()
    }

    /// Why the session ended.
    pub(super) async fn end(self) -> Cause {
        drop(self.socket);
        timeout(Duration::from_secs(30), self.console)
            .await
            .unwrap()
            .unwrap()
            .cause
    }
}

pub(super) fn framed(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap();
    [&[tag], &length.to_be_bytes()[..], body].concat()
}

pub(super) fn parse(name: &str, sql: &str) -> Vec<u8> {
    framed(b'P', format!("{name}\0{sql}\0\0\0").as_bytes())
}

pub(super) fn bind(portal: &str, statement: &str, formats: &[u16]) -> Vec<u8> {
    let mut body = format!("{portal}\0{statement}\0\0\0\0\0").into_bytes();
    body.extend(u16::try_from(formats.len()).unwrap().to_be_bytes());
    body.extend(formats.iter().flat_map(|code| code.to_be_bytes()));
    framed(b'B', &body)
}

pub(super) fn execute(portal: &str, rows: i32) -> Vec<u8> {
    framed(b'E', &[portal.as_bytes(), b"\0", &rows.to_be_bytes()].concat())
}

pub(super) fn query(sql: &str) -> Vec<u8> {
    framed(b'Q', format!("{sql}\0").as_bytes())
}

pub(super) fn sync() -> Vec<u8> {
    framed(b'S', b"")
}

#[tokio::test]
async fn answers_and_errors_of_both_protocols() {
    let mut client = Client::new().await;
    let describe = |target: &str| framed(b'D', format!("{target}\0").as_bytes());
    let rows = help().len();
    let help = "D".repeat(rows);
    for (frames, expected) in [
        (vec![query("SHOW VERSION")], "TDCZ".to_owned()),
        (vec![query(";")], "IZ".to_owned()),
        (vec![query("SET application_name = 'x'")], "CZ".to_owned()),
        (vec![query("SHOW VERSION; SELECT 1; ")], "TDCTDCZ".to_owned()),
        (
            vec![query("SHOW VERSION; SELECT 1/0; SELECT 1")],
            "TDCE22012 Z".to_owned(),
        ),
        (vec![query("SHOW VERSION; FROM x")], "E0A000 Z".to_owned()),
        (vec![query(&"SELECT 1;".repeat(17))], "E54000 Z".to_owned()),
        (vec![query("SELECT 1")], "TDCZ".to_owned()),
        (vec![query("SELECT $1::int")], "E42P02 Z".to_owned()),
        (vec![query("SHOW \u{0}HBA")], "E08P01 Z".to_owned()),
        (vec![framed(b'Q', b"SHOW HBA\xff\0")], "E22021 Z".to_owned()),
        (vec![framed(b'Q', b"SHOW HBA")], "E08P01 Z".to_owned()),
        (vec![framed(b'Q', b"")], "E08P01 Z".to_owned()),
        (
            vec![
                parse("", "SHOW HELP"),
                bind("", "", &[]),
                describe("P"),
                execute("", 0),
                sync(),
            ],
            format!("12T{help}CZ"),
        ),
        (
            vec![parse("s", "SHOW HELP"), describe("Ss"), sync()],
            "1tTZ".to_owned(),
        ),
        (
            vec![bind("p", "s", &[1, 0]), execute("p", 3), execute("p", -1), sync()],
            format!("2DDDs{}CZ", "D".repeat(rows - 3)),
        ),
        (vec![execute("p", 0), sync()], "E34000 Z".to_owned()),
        (
            vec![bind("", "s", &[]), execute("", i32::MIN), sync()],
            format!("2{help}CZ"),
        ),
        (
            vec![bind("", "s", &[]), execute("", i32::MAX), sync()],
            format!("2{help}CZ"),
        ),
        // After an error nothing is looked at until Sync.
        (
            vec![
                bind("", "s", &[0, 0, 0]),
                execute("", 0),
                query("SHOW HELP"),
                framed(b'B', b""),
                sync(),
            ],
            "2E08P01 Z".to_owned(),
        ),
        (vec![bind("", "s", &[2]), sync()], "E22023 Z".to_owned()),
        (vec![bind("", "missing", &[]), sync()], "E26000 Z".to_owned()),
        (
            vec![parse("", "LISTEN x"), bind("", "", &[]), sync()],
            "E0A000 Z".to_owned(),
        ),
        (
            vec![parse(&"x".repeat(64), "SHOW HELP"), sync()],
            "E42622 Z".to_owned(),
        ),
        (vec![framed(b'D', b"X\0"), sync()], "E08P01 Z".to_owned()),
        (
            vec![framed(b'C', b"Ss\0"), describe("Ss"), sync()],
            "3E26000 Z".to_owned(),
        ),
        // One parameter where there is none.
        (
            vec![
                parse("", "SHOW VERSION"),
                framed(b'B', b"\0\0\0\0\0\x01\xff\xff\xff\xff\0\0"),
                execute("", 0),
                sync(),
            ],
            "12E08P01 Z".to_owned(),
        ),
    ] {
        client.send(&frames).await;
        let frames: Vec<Bytes> = frames.into_iter().map(Bytes::from).collect();
        assert_eq!(client.told().await, expected, "{frames:?}");
    }
    client.send(&[framed(b'X', b"")]).await;
    assert_eq!(client.end().await, Cause::ClientTerminated);
}

#[tokio::test]
async fn statements_and_portals_are_bounded() {
    let mut client = Client::new().await;
    let statements: Vec<_> = (0..64)
        .map(|number| parse(&format!("s{number}"), "SHOW HELP"))
        .collect();
    client.send(&[statements.concat(), sync()]).await;
    assert_eq!(client.told().await, "1".repeat(64) + "Z");
    client.send(&[parse("one more", "SHOW HELP"), sync()]).await;
    assert_eq!(client.told().await, "E54000 Z");
    let instead = [
        framed(b'C', b"Ss0\0"),
        parse("one more", "SHOW HELP"),
        parse("s1", "SHOW HBA"),
        sync(),
    ];
    client.send(&instead).await;
    assert_eq!(client.told().await, "311Z");
    let portals: Vec<_> = (0..9)
        .map(|number| bind(&format!("p{number}"), "s1", &[]))
        .collect();
    client.send(&[portals.concat(), sync()]).await;
    assert_eq!(client.told().await, "2".repeat(8) + "E54000 Z");
    // They have ended with the Sync.
    client.send(&[bind("p9", "s1", &[]), sync()]).await;
    assert_eq!(client.told().await, "2Z");
}

#[tokio::test]
async fn what_cannot_be_framed_ends_the_session() {
    for (bytes, expected) in [
        (vec![b'd', 0, 0, 0, 4], "invalid frontend message type 0x64"),
        (vec![b'?'], "invalid frontend message type 0x3f"),
        (vec![b'Q', 0, 0, 0, 3], "invalid length 3 of message type 0x51"),
        (
            vec![b'E', 0, 1, 0, 1],
            "invalid length 65537 of message type 0x45",
        ),
        (
            vec![b'Q', 0x40, 0, 0, 0],
            "invalid length 1073741824 of message type 0x51",
        ),
        (
            vec![b'P', 255, 255, 255, 255],
            "invalid length 4294967295 of message type 0x50",
        ),
    ] {
        let mut client = Client::new().await;
        client.send(&[bytes]).await;
        assert_eq!(client.end().await, Cause::ClientProtocol(expected.to_owned()));
    }
    let mut client = Client::new().await;
    let longest = format!("SHOW HBA -- {}", "x".repeat(65_536 - 4 - 1 - 12));
    client.send(&[query(&longest)]).await;
    assert_eq!(client.told().await, "TDDCZ");
    assert_eq!(client.end().await, Cause::ClientGone);
}

#[tokio::test]
async fn a_message_that_is_too_long_is_answered_and_the_session_goes_on() {
    let mut client = Client::new().await;
    // One byte more than there may be, and much more than anything here would keep.
    let shortest = format!("SHOW HBA -- {}", "x".repeat(65_536 - 4 - 1 - 11));
    let long = "x".repeat(5 << 20);
    for sql in [&shortest, &long] {
        client.send(&[query(sql), query("SELECT 1")]).await;
        let error = client.frame().await.unwrap();
        let error = ErrorFields::parse(&error.body).unwrap();
        assert_eq!((error.severity.as_str(), error.code.as_str()), ("ERROR", "54000"));
        assert!(error.message.contains("65,536 bytes"), "{}", error.message);
        assert!(error.hint.is_some());
        assert_eq!(client.told().await, "Z");
        assert_eq!(client.told().await, "TDCZ");
    }
    // In the extended protocol everything up to Sync is left out, also what is too long itself.
    let value = framed(b'B', &vec![0; 70_000]);
    for first in [parse("", &long), value] {
        client
            .send(&[parse("", "SELECT 1"), first, bind("", "", &[]), execute("", 0)])
            .await;
        client.send(&[parse("", &long), query(&long), sync()]).await;
        assert_eq!(client.told().await, "1E54000 Z");
    }
    client
        .send(&[query("BEGIN"), query(&long), query("SELECT 1")])
        .await;
    assert_eq!(client.told().await, "CZ");
    assert_eq!(client.told().await, "E54000 Z");
    assert_eq!(client.told().await, "E25P02 Z", "its transaction has failed");
    client.send(&[query("ROLLBACK")]).await;
    assert_eq!(client.told().await, "CZ");
    // In the middle of one, the session ends as at any time.
    let half = &query(&long)[..100_000];
    client.send(&[half.to_vec()]).await;
    client.session.session().order(&Order::AtBoundary(Reason::Killed));
    assert_eq!(client.end().await, Cause::Ordered(Reason::Killed));
}

#[tokio::test]
async fn a_session_ends_when_it_is_told_to_between_answers() {
    let closing = CancellationToken::new();
    let client = Client::with(closing.clone()).await;
    closing.cancel();
    let end = timeout(Duration::from_secs(30), client.console)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(end.cause, Cause::Ordered(Reason::Shutdown));
}

#[tokio::test]
async fn a_portal_gives_its_order_once() {
    let holding = Arc::new(NothingHeld::default());
    let mut client = Client::before(Arc::clone(&holding), true, CancellationToken::new()).await;
    let twice = [
        parse("", "PAUSE"),
        bind("p", "", &[]),
        execute("p", 0),
        execute("p", 0),
        sync(),
    ];
    client.send(&twice).await;
    assert_eq!(client.told().await, "12NCE55000 Z");
    let paused = holding.told.lock().unwrap().drain(..).count();
    assert_eq!(paused, 1);
}

#[tokio::test]
async fn an_operator_who_is_none_any_more_gives_no_further_order() {
    let holding = Arc::new(NothingHeld::default());
    let holds = Arc::new(AtomicBool::new(true));
    let kept = Arc::clone(&holds);
    let is_operator = IsOperator::new(move || kept.load(Ordering::Relaxed));
    let closing = CancellationToken::new();
    let mut client = Client::of(handles(), Arc::clone(&holding), is_operator, closing).await;
    client.send(&[query("PAUSE")]).await;
    assert_eq!(client.told().await, "NCZ");
    let before = holding.told.lock().unwrap().len();
    // As by a reload.
    holds.store(false, Ordering::Relaxed);
    client.send(&[query("PAUSE")]).await;
    assert_eq!(client.told().await, "E42501 Z");
    assert_eq!(holding.told.lock().unwrap().len(), before);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever the bodies are: no panic, and after a Sync the next command has its answer.
    #[test]
    fn no_body_does_harm(
        frames in proptest::collection::vec(
            (proptest::sample::select(b"QPBDECHS".to_vec()), body()), 0..20
        )
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut client = Client::new().await;
            let mut bytes: Vec<_> = frames.iter().map(|(tag, body)| framed(*tag, body)).collect();
            bytes.push(sync());
            bytes.push(query("SHOW VERSION"));
            client.send(&bytes).await;
            while client.told().await != "TDCZ" {}
            assert_eq!(client.end().await, Cause::ClientGone);
        });
    }
}

/// Nearly right more often than not.
fn body() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        Just(b"\0".to_vec()),
        Just(b"\0\0".to_vec()),
        Just(b"\0\x01".to_vec()),
        Just(b"S".to_vec()),
        Just(b"P".to_vec()),
        Just(b"s\0".to_vec()),
        Just(b"SHOW HBA\0".to_vec()),
        Just(b"\xff\xff\xff\xff".to_vec()),
        Just(b"\x7f\xff\xff\xff".to_vec()),
        proptest::collection::vec(any::<u8>(), 0..9),
    ];
    proptest::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
}
