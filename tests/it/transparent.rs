//! The bytes a client gets through the router are those the server sends: the same raw requests, to
//! the server itself and through the router, whole and in pieces.
#![allow(clippy::unwrap_used)]

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use bytes::BytesMut;
use trunkline::auth::scram::{ClientExchange, ClientSecret, MECHANISM};
use trunkline::config::Secret;
use trunkline::wire::frame::{Frame, next_frame};
use trunkline::wire::message;
use trunkline::wire::startup::ProtocolVersion;

use crate::cluster::{Cluster, Router, eventually};

/// A session of raw frames, in clear.
struct Raw {
    stream: TcpStream,
    buffer: BytesMut,
    process_id: u32,
}

impl Raw {
    fn log_in(host: &str, port: u16) -> Self {
        let stream = TcpStream::connect((host, port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.set_nodelay(true).unwrap();
        let mut raw = Self {
            stream,
            buffer: BytesMut::new(),
            process_id: 0,
        };
        let mut out = BytesMut::new();
        let parameters: [(&[u8], &[u8]); 3] = [
            (b"user", b"app"),
            (b"database", b"app"),
            (b"application_name", b"raw"),
        ];
        message::startup(&mut out, ProtocolVersion::V3_0, &parameters);
        raw.stream.write_all(&out).unwrap();
        let (exchange, first) =
            ClientExchange::new(ClientSecret::Password(Secret::new(b"app".to_vec()))).first();
        assert_eq!(raw.authentication().0, 10);
        out.clear();
        message::sasl_initial_response(&mut out, MECHANISM, &first);
        raw.stream.write_all(&out).unwrap();
        let (exchange, answer) = exchange.server_first(&raw.authentication().1).unwrap();
        out.clear();
        message::sasl_response(&mut out, &answer);
        raw.stream.write_all(&out).unwrap();
        exchange.server_final(&raw.authentication().1).unwrap();
        loop {
            let frame = raw.frame().unwrap();
            match frame.tag {
                b'K' => raw.process_id = u32::from_be_bytes(frame.body[..4].try_into().unwrap()),
                b'Z' => return raw,
                _ => {}
            }
        }
    }

    fn authentication(&mut self) -> (u32, Vec<u8>) {
        let frame = self.frame().unwrap();
        assert_eq!(frame.tag, b'R', "{frame:?}");
        let (code, data) = frame.body.split_first_chunk::<4>().unwrap();
        (u32::from_be_bytes(*code), data.to_vec())
    }

    /// The next frame; `None` at the end of the stream, by FIN or by reset.
    fn frame(&mut self) -> Option<Frame> {
        let mut part = [0; 16384];
        loop {
            if let Some(frame) = next_frame(&mut self.buffer, usize::MAX).unwrap() {
                return Some(frame);
            }
            match self.stream.read(&mut part) {
                Ok(0) => {
                    assert!(self.buffer.is_empty(), "the stream ends within a frame");
                    return None;
                }
                Ok(read) => self.buffer.extend_from_slice(&part[..read]),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn until(&mut self, until: &Until) -> Vec<(char, Vec<u8>)> {
        let mut frames = Vec::new();
        let mut left = match until {
            Until::Tags(_, 0) => return frames,
            Until::Tags(_, count) => *count,
            Until::Closed => usize::MAX,
        };
        while left > 0 {
            let Some(frame) = self.frame() else {
                assert!(matches!(until, Until::Closed), "closed after {frames:?}");
                break;
            };
            if let Until::Tags(tag, _) = until {
                left -= usize::from(frame.tag == *tag);
            }
            frames.push((char::from(frame.tag), frame.body.to_vec()));
        }
        frames
    }
}

enum Until {
    /// So many frames with this tag.
    Tags(u8, usize),
    Closed,
}

type Step = (Vec<u8>, Until);

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut all = vec![tag];
    all.extend_from_slice(&u32::try_from(body.len() + 4).unwrap().to_be_bytes());
    all.extend_from_slice(body);
    all
}

fn query(sql: &str) -> Vec<u8> {
    message(b'Q', format!("{sql}\0").as_bytes())
}

fn parse(name: &str, sql: &str) -> Vec<u8> {
    message(b'P', format!("{name}\0{sql}\0\0\0").as_bytes())
}

fn bind(statement: &str) -> Vec<u8> {
    message(b'B', format!("\0{statement}\0\0\0\0\0\0\0").as_bytes())
}

fn execute(rows: u32) -> Vec<u8> {
    message(b'E', &[&b"\0"[..], &rows.to_be_bytes()].concat())
}

fn describe() -> Vec<u8> {
    message(b'D', b"P\0")
}

fn sync() -> Vec<u8> {
    message(b'S', b"")
}

fn flush() -> Vec<u8> {
    message(b'H', b"")
}

fn extended(sql: &str) -> Vec<u8> {
    [parse("", sql), bind(""), describe(), execute(0)].concat()
}

/// `FunctionCall` of `int4pl(int, int)`, text in and text out.
fn function_call(arguments: &[&str]) -> Vec<u8> {
    let mut body = 177u32.to_be_bytes().to_vec();
    body.extend_from_slice(&[0, 0]);
    body.extend_from_slice(&u16::try_from(arguments.len()).unwrap().to_be_bytes());
    for argument in arguments {
        body.extend_from_slice(&u32::try_from(argument.len()).unwrap().to_be_bytes());
        body.extend_from_slice(argument.as_bytes());
    }
    body.extend_from_slice(&[0, 0]);
    message(b'F', &body)
}

/// Exchanges after which the session goes on, with the number of ReadyForQuery they bring.
#[expect(clippy::too_many_lines, reason = "a table")]
fn exchanges() -> Vec<(&'static str, Vec<Step>)> {
    let ready = |bytes: Vec<u8>, count: usize| vec![(bytes, Until::Tags(b'Z', count))];
    let copy_in = || query("CREATE TEMP TABLE IF NOT EXISTS c (a int, b text); COPY c FROM STDIN");
    vec![
        (
            "several statements",
            ready(query("SELECT 1; SELECT 'é'; SHOW DateStyle"), 1),
        ),
        ("nothing", ready([query(""), query(" ; ")].concat(), 2)),
        (
            "an error amid statements",
            ready(query("SELECT 1; SELECT 1/0; SELECT 2"), 1),
        ),
        ("a syntax error", ready(query("SELEKT"), 1)),
        (
            "notices within the answer",
            ready(
                query(
                    "SET client_min_messages = debug1; DO $$ BEGIN RAISE NOTICE 'a'; RAISE WARNING 'b'; RAISE DEBUG 'c'; RAISE EXCEPTION 'd'; END $$",
                ),
                1,
            ),
        ),
        (
            "a transaction that fails",
            ready(
                [
                    query("BEGIN"),
                    query("SELECT 1/0"),
                    query("SELECT 1"),
                    query("COMMIT"),
                    query("SELECT 2"),
                ]
                .concat(),
                5,
            ),
        ),
        (
            "settings reported",
            ready(
                query("SET TimeZone = 'Asia/Tokyo'; SET application_name = 'a b'; RESET ALL"),
                1,
            ),
        ),
        (
            "rows of all lengths",
            ready(
                query("SELECT repeat('x', g * g) FROM generate_series(0, 600) g"),
                1,
            ),
        ),
        ("extended", ready([extended("SELECT 1"), sync()].concat(), 1)),
        (
            "a pipeline",
            ready(
                (0..50)
                    .flat_map(|n| [extended(&format!("SELECT {n}")), sync()].concat())
                    .collect(),
                50,
            ),
        ),
        (
            "an error in a pipeline",
            ready(
                [
                    extended("SELECT 1"),
                    extended("SELECT 1/0"),
                    extended("SELECT 2"),
                    sync(),
                    extended("SELECT 3"),
                    sync(),
                ]
                .concat(),
                2,
            ),
        ),
        (
            "a portal in parts",
            ready(
                [
                    parse("", "SELECT g FROM generate_series(1, 5) g"),
                    bind(""),
                    execute(2),
                    execute(2),
                    execute(2),
                    sync(),
                ]
                .concat(),
                1,
            ),
        ),
        (
            "Flush",
            vec![
                ([parse("s1", "SELECT 1"), flush()].concat(), Until::Tags(b'1', 1)),
                ([bind("s1"), flush()].concat(), Until::Tags(b'2', 1)),
                ([execute(0), flush()].concat(), Until::Tags(b'C', 1)),
                ([message(b'C', b"Ss1\0"), sync()].concat(), Until::Tags(b'Z', 1)),
            ],
        ),
        (
            "an error before Sync",
            vec![
                ([extended("SELECT 1/0"), flush()].concat(), Until::Tags(b'E', 1)),
                (
                    [extended("SELECT 1"), query("SELECT 2")].concat(),
                    Until::Tags(b'E', 0),
                ),
                (sync(), Until::Tags(b'Z', 1)),
            ],
        ),
        (
            "simple within extended",
            ready(
                [parse("", "SELECT 1"), bind(""), query("SELECT 2"), sync()].concat(),
                2,
            ),
        ),
        (
            "COPY out",
            ready(
                query("COPY (SELECT g, repeat('y', 50) FROM generate_series(1, 3000) g) TO STDOUT"),
                1,
            ),
        ),
        (
            "COPY in",
            vec![
                (copy_in(), Until::Tags(b'G', 1)),
                (
                    [
                        message(b'd', b"1\ta\n2"),
                        message(b'd', b"\tb\n"),
                        message(b'c', b""),
                    ]
                    .concat(),
                    Until::Tags(b'Z', 1),
                ),
                (query("SELECT a + 0, b || '' FROM c"), Until::Tags(b'Z', 1)),
            ],
        ),
        (
            "COPY in, not waited for",
            ready(
                [
                    copy_in(),
                    message(b'd', b"1\ta\n"),
                    message(b'c', b""),
                    query("SELECT 1"),
                ]
                .concat(),
                2,
            ),
        ),
        (
            "COPY in, given up",
            vec![
                (copy_in(), Until::Tags(b'G', 1)),
                (
                    [message(b'd', b"1\ta\n"), message(b'f', b"no more\0")].concat(),
                    Until::Tags(b'Z', 1),
                ),
            ],
        ),
        (
            "COPY in, wrong data",
            vec![
                (copy_in(), Until::Tags(b'G', 1)),
                (
                    [
                        message(b'd', b"nonsense\n"),
                        message(b'd', b"1\ta\n"),
                        message(b'c', b""),
                        query("SELECT 5"),
                    ]
                    .concat(),
                    Until::Tags(b'Z', 2),
                ),
            ],
        ),
        (
            "COPY in, extended",
            ready(
                [
                    query("CREATE TEMP TABLE e (a int)"),
                    parse("", "COPY e FROM STDIN"),
                    bind(""),
                    execute(0),
                    message(b'd', b"1\n"),
                    message(b'c', b""),
                    sync(),
                ]
                .concat(),
                2,
            ),
        ),
        (
            "FunctionCall",
            ready(
                [
                    function_call(&["20", "22"]),
                    function_call(&["1"]),
                    function_call(&["2147483647", "1"]),
                ]
                .concat(),
                3,
            ),
        ),
        (
            "notifications of one's own",
            ready(
                [
                    query("LISTEN raw; NOTIFY raw, 'one'; NOTIFY raw, 'two'"),
                    query("UNLISTEN raw"),
                ]
                .concat(),
                2,
            ),
        ),
        (
            "protocol errors the server survives",
            ready(
                [
                    message(b'D', b"P\0"),
                    sync(),
                    message(b'B', b"\0none\0\0\0\0\0\0\0"),
                    sync(),
                    message(b'C', b"?\0"),
                    sync(),
                ]
                .concat(),
                3,
            ),
        ),
    ]
}

/// Exchanges that end the session.
fn endings() -> Vec<(&'static str, Vec<Step>)> {
    vec![
        (
            "a statement within COPY in",
            vec![
                (
                    query("CREATE TEMP TABLE c (a int); COPY c FROM STDIN"),
                    Until::Tags(b'G', 1),
                ),
                (query("SELECT 1"), Until::Closed),
            ],
        ),
        ("goodbye", vec![(message(b'X', b""), Until::Closed)]),
        (
            "a request, and goodbye before its answer",
            vec![(
                [query("SELECT repeat('x', 3000000)"), message(b'X', b"")].concat(),
                Until::Closed,
            )],
        ),
        (
            "an unknown message type",
            vec![(
                [query("SELECT 1"), message(b'~', b"what?")].concat(),
                Until::Closed,
            )],
        ),
        (
            "a message of a server's",
            vec![(message(b'Z', b"I"), Until::Closed)],
        ),
        (
            "a password out of turn",
            vec![(message(b'p', b"app\0"), Until::Closed)],
        ),
        (
            "its own end",
            vec![(
                query("SELECT 1; SELECT pg_terminate_backend(pg_backend_pid())"),
                Until::Closed,
            )],
        ),
        (
            "an idle time-out",
            vec![(query("SET idle_session_timeout = '50ms'"), Until::Closed)],
        ),
        (
            "a time-out in a transaction",
            vec![
                (
                    query("SET idle_in_transaction_session_timeout = '50ms'"),
                    Until::Tags(b'Z', 1),
                ),
                (query("BEGIN"), Until::Closed),
            ],
        ),
    ]
}

/// Plays an exchange and returns what came back. `piece`: bytes per write.
fn play(raw: &mut Raw, steps: &[Step], piece: usize) -> Vec<(char, Vec<u8>)> {
    let own = raw.process_id.to_be_bytes();
    let mut all = Vec::new();
    for (bytes, until) in steps {
        for part in bytes.chunks(piece) {
            raw.stream.write_all(part).unwrap();
        }
        all.extend(raw.until(until));
    }
    for (tag, body) in &mut all {
        if *tag == 'A' && body.starts_with(&own) {
            body[..4].fill(0);
        }
    }
    all
}

#[test]
fn what_the_server_says_is_what_the_client_hears() {
    let router = Router::shared();
    let cluster = Cluster::shared();
    let leader = cluster.node(&cluster.leader()).address;
    let through = router.address.to_string();
    let goes_on = |raw: &mut Raw| {
        play(
            raw,
            &[(query("SELECT 'on we go'"), Until::Tags(b'Z', 1))],
            usize::MAX,
        )
    };
    for (name, steps) in exchanges() {
        let mut direct = Raw::log_in(&leader, 5432);
        let expected = play(&mut direct, &steps, usize::MAX);
        let last = goes_on(&mut direct);
        for piece in [usize::MAX, 1, 7] {
            let mut raw = Raw::log_in(&through, 6432);
            assert_eq!(
                play(&mut raw, &steps, piece),
                expected,
                "{name}, in pieces of {piece}"
            );
            assert_eq!(goes_on(&mut raw), last, "{name}, afterwards");
        }
    }
    // All of them on one session, one after the other.
    let (mut direct, mut raw) = (Raw::log_in(&leader, 5432), Raw::log_in(&through, 6432));
    for (name, steps) in exchanges() {
        let expected = play(&mut direct, &steps, usize::MAX);
        assert_eq!(
            play(&mut raw, &steps, usize::MAX),
            expected,
            "{name}, on one session"
        );
    }
    for (name, steps) in endings() {
        let expected = play(&mut Raw::log_in(&leader, 5432), &steps, usize::MAX);
        for piece in [usize::MAX, 1] {
            let mut raw = Raw::log_in(&through, 6432);
            assert_eq!(
                play(&mut raw, &steps, piece),
                expected,
                "{name}, in pieces of {piece}"
            );
        }
    }
}

#[test]
fn a_client_that_has_stopped_writing_still_gets_its_answer() {
    let router = Router::shared();
    let mut raw = Raw::log_in(&router.address.to_string(), 6432);
    raw.stream
        .write_all(
            &[
                query("SELECT pg_sleep(0.2)"),
                query("SELECT repeat('x', 3000000)"),
            ]
            .concat(),
        )
        .unwrap();
    raw.stream.shutdown(Shutdown::Write).unwrap();
    let frames = raw.until(&Until::Closed);
    assert_eq!(frames.iter().filter(|(tag, _)| *tag == 'Z').count(), 2);
    let row = frames.iter().rfind(|(tag, _)| *tag == 'D').unwrap();
    assert_eq!(row.1.len(), 3_000_006);
}

#[test]
fn a_client_that_is_gone_leaves_nothing_behind_on_the_server() {
    let router = Router::shared();
    let cluster = Cluster::shared();
    let leader = cluster.node(&cluster.leader());
    let mut processes = Vec::new();
    // Gone while idle, in a transaction, and in the middle of an answer.
    for sql in [
        "SELECT 1",
        "BEGIN",
        "SELECT g FROM generate_series(1, 10000000) g",
    ] {
        let mut raw = Raw::log_in(&router.address.to_string(), 6432);
        raw.stream.write_all(&query(sql)).unwrap();
        raw.frame().unwrap();
        processes.push(raw.process_id.to_string());
    }
    let count = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE pid IN ({})",
        processes.join(",")
    );
    eventually("the servers' processes end", Duration::from_secs(20), || {
        leader.sql(&count) == "0"
    });
}

/// The server still has much of the answer to send when it reads the goodbye.
#[test]
fn a_goodbye_behind_a_request_costs_nothing_of_the_answer() {
    let router = Router::shared();
    let cluster = Cluster::shared();
    let leader = cluster.node(&cluster.leader());
    for _ in 0..5 {
        let mut raw = Raw::log_in(&router.address.to_string(), 6432);
        let request = [query("SELECT repeat('x', 20000000)"), message(b'X', b"")].concat();
        raw.stream.write_all(&request).unwrap();
        let waits = format!(
            "SELECT wait_event FROM pg_stat_activity WHERE pid = {}",
            raw.process_id
        );
        eventually("the server waits for its reader", Duration::from_secs(20), || {
            leader.sql(&waits) == "ClientWrite"
        });
        let frames = raw.until(&Until::Closed);
        let tags: String = frames.iter().map(|(tag, _)| *tag).collect();
        assert_eq!(tags, "TDCZ");
    }
}
