//! Pending replies against a real server: generated sequences of raw messages of a client and of
//! the router, sent in pieces. When they say idle, nothing more may come; when the server has
//! answered everything, they must say so; and what the router asked is the router's, all else the
//! client's.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use bytes::BytesMut;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};
use trunkline::wire::frame::{Frame, next_frame};
use trunkline::wire::message;
use trunkline::wire::observe::{ClientObserver, ServerObserver};
use trunkline::wire::pending::{Owner, PendingReplies, TransactionStatus};
use trunkline::wire::startup::ProtocolVersion;

const BIN: &str = "/usr/lib/postgresql/15/bin";

const USER: (&[u8], &[u8]) = (b"user", b"postgres");

const FIXTURES: &str = "create table t (a int); create table p (a int primary key);
    create table d (a int references p deferrable initially deferred); create table bad (a int);
    create function boom() returns trigger language plpgsql as 'begin raise exception ''boom''; end';
    create trigger boom before insert on bad for each statement execute function boom()";

/// A server in a temporary directory, removed with it.
struct Postgres {
    directory: tempfile::TempDir,
    port: u16,
}

impl Postgres {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        if is_root() {
            run(Command::new("chown").arg("postgres").arg(directory.path()));
        }
        let server = Self { directory, port };
        run(server
            .command("initdb")
            .args(["-A", "trust", "-U", "postgres", "-N"]));
        let options =
            format!("-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off");
        let log = server.data().with_extension("log");
        run(server
            .command("pg_ctl")
            .args(["-w", "-o", &options])
            .arg("-l")
            .arg(log)
            .arg("start"));
        server
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// Runs as the user `postgres` where this is root: root may not run a server.
    fn command(&self, program: &str) -> Command {
        let program = Path::new(BIN).join(program);
        let mut command = if is_root() {
            let mut command = Command::new("runuser");
            command.args(["-u", "postgres", "--"]).arg(program);
            command
        } else {
            Command::new(program)
        };
        command.arg("-D").arg(self.data()).current_dir("/");
        command
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let _ = self.command("pg_ctl").args(["-m", "immediate", "stop"]).output();
    }
}

fn is_root() -> bool {
    let id = Command::new("id").arg("-u").output().unwrap();
    id.stdout == b"0\n"
}

fn run(command: &mut Command) {
    let status = command
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .status()
        .unwrap();
    assert!(status.success(), "{command:?}");
}

/// A session with pending replies in between, as the relay has it.
struct Session {
    stream: TcpStream,
    buffer: BytesMut,
    client: ClientObserver,
    server: ServerObserver,
    pending: PendingReplies,
    /// Replies that are the router's by what is in them.
    router_replies: usize,
    probes: usize,
}

impl Session {
    fn new(port: u16, parameters: &[(&[u8], &[u8])]) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.set_nodelay(true).unwrap();
        let mut session = Self {
            stream,
            buffer: BytesMut::new(),
            client: ClientObserver::new(),
            server: ServerObserver::new(),
            pending: PendingReplies::default(),
            router_replies: 0,
            probes: 0,
        };
        let mut startup = BytesMut::new();
        message::startup(&mut startup, ProtocolVersion::V3_0, parameters);
        session.stream.write_all(&startup).unwrap();
        while session.frame().tag != b'Z' {}
        session.pending = PendingReplies::new(TransactionStatus::Idle);
        session
    }

    fn send(&mut self, bytes: &[u8]) {
        self.send_as(Owner::Client, bytes);
    }

    fn send_as(&mut self, owner: Owner, bytes: &[u8]) {
        let pending = &mut self.pending;
        self.client
            .feed(bytes, |tag, _| {
                let sent = match owner {
                    Owner::Client => pending.client(tag),
                    Owner::Router => pending.router(tag),
                };
                assert!(sent.is_ok());
            })
            .unwrap();
        // That a server has ended the session is seen by reading.
        let _ = self.stream.write_all(bytes);
    }

    /// Waits for the next frame and observes it: whose it is must be right.
    fn frame(&mut self) -> Frame {
        loop {
            if let Some(frame) = next_frame(&mut self.buffer, 1 << 20).unwrap() {
                let bytes = framed(frame.tag, &frame.body);
                let pending = &mut self.pending;
                let mut owner = pending.answering();
                self.server
                    .feed(&bytes, |event| owner = pending.server(&event))
                    .unwrap();
                if let Some(asked_by) = asked_by(&frame) {
                    assert!(
                        owner == asked_by || pending.is_lost(),
                        "said to be of {owner:?}: {frame:?}"
                    );
                    self.router_replies += usize::from(asked_by == Owner::Router);
                }
                return frame;
            }
            let mut read = [0; 8192];
            match self.stream.read(&mut read) {
                Ok(0) => panic!("closed without a FATAL error"),
                Ok(length) => self.buffer.extend_from_slice(&read[..length]),
                Err(error) => panic!("waited in vain: {error}; {:?}", self.pending),
            }
        }
    }

    /// Takes what is there already, or comes in a moment. This only varies the order: nothing
    /// depends on the time.
    fn drain(&mut self) {
        self.stream
            .set_read_timeout(Some(Duration::from_millis(1)))
            .unwrap();
        let mut read = [0; 8192];
        loop {
            match self.stream.read(&mut read) {
                // Nothing more for now; or the end, behind the FATAL error that was read before it.
                Ok(0) | Err(_) => break,
                Ok(length) => self.buffer.extend_from_slice(&read[..length]),
            }
        }
        self.stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        while let Some(&[_, a, b, c, d]) = self.buffer.first_chunk::<5>() {
            if self.buffer.len() <= usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap() {
                break;
            }
            self.frame();
            self.check_idle_when_said();
        }
    }

    /// If nothing is said to be pending: the answer to one more question, of either owner, must be
    /// the very next thing.
    fn check_idle_when_said(&mut self) {
        if !self.pending.is_idle() {
            return;
        }
        assert!(
            self.buffer.is_empty(),
            "idle, and there is more: {:?}",
            self.buffer
        );
        self.probes += 1;
        if self.probes.is_multiple_of(2) {
            self.send(&query("select 'probe'"));
        } else {
            self.send_as(
                Owner::Router,
                &query("select 'router' as router from generate_series(1, 7)"),
            );
        }
        let mut tags = String::new();
        while !tags.ends_with('Z') {
            let frame = self.frame();
            if !b"NSA".contains(&frame.tag) {
                tags.push(char::from(frame.tag));
            }
        }
        assert!(
            ["TDCZ", "TDDDDDDDCZ", "EZ"].contains(&&*tags),
            "idle, and {tags} came"
        );
        assert!(self.pending.is_idle(), "{:?}", self.pending);
    }

    /// Closes everything that is open, and waits for all answers. False: the server has ended the
    /// session.
    fn finish(&mut self) -> bool {
        let mut closing = framed(b'f', b"enough\0");
        closing.extend(framed(b'S', b""));
        closing.extend(query("rollback"));
        closing.extend(query("select 'the ' || 'end'"));
        self.send(&closing);
        let mut at_end = false;
        loop {
            let frame = self.frame();
            if self.pending.is_over() {
                assert!(!self.pending.is_idle());
                return false;
            }
            at_end |= frame.tag == b'D' && frame.body.ends_with(b"the end");
            if at_end && frame.tag == b'Z' {
                break;
            }
            assert!(!self.pending.is_idle(), "idle before the end");
        }
        assert!(
            self.pending.between_transactions() || self.pending.is_uncertain(),
            "{:?}",
            self.pending
        );
        self.check_idle_when_said();
        // What is uncertain now stays so: such a connection is given up.
        !self.pending.is_uncertain()
    }
}

fn framed(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![tag];
    frame.extend(u32::try_from(body.len() + 4).unwrap().to_be_bytes());
    frame.extend(body);
    frame
}

fn query(sql: &str) -> Vec<u8> {
    framed(b'Q', format!("{sql}\0").as_bytes())
}

fn parse(sql: &str) -> Vec<u8> {
    framed(b'P', format!("\0{sql}\0\0\0").as_bytes())
}

fn execute(max_rows: u8) -> Vec<u8> {
    framed(b'E', &[0, 0, 0, 0, max_rows])
}

fn bind() -> Vec<u8> {
    framed(b'B', &[0; 8])
}

/// Who must have asked for a reply, where its contents show it: all that the router asks has its
/// name in it, seven rows, or is a command that the client does not use.
fn asked_by(frame: &Frame) -> Option<Owner> {
    let has = |word: &[u8]| frame.body.windows(word.len()).any(|part| part == word);
    let is_router = match frame.tag {
        b'N' | b'S' | b'A' | b'G' | b'H' | b'd' | b'c' | b'V' | b'I' | b's' => false,
        b'T' | b'D' => has(b"router"),
        b'E' if has(b"router") || has(b"DISCARD") => true,
        b'E' if has(b"nosuch") || has(b"boom") || has(b"division by zero") => false,
        b'C' if has(b"ROLLBACK") || has(b"BEGIN") || has(b"COMMIT") => return None,
        b'C' => has(b"SELECT 7") || has(b"DISCARD ALL") || has(b"RESET"),
        _ => return None,
    };
    Some(if is_router { Owner::Router } else { Owner::Client })
}

/// What a router may ask: questions, clean-up, a statement parsed in front of a client's Bind. Its
/// names are not the client's, so that no request of the client shows what the router has left.
fn router_unit() -> impl Strategy<Value = Vec<Vec<u8>>> {
    const ASK: &str = "select 'router' as router from generate_series(1, 7)";
    let close = || framed(b'C', b"Srouter\0");
    let named = |sql: &str| framed(b'P', format!("router\0{sql}\0\0\0").as_bytes());
    let simple = proptest::sample::select(vec![
        ASK,
        ASK,
        "begin; select 'router' as router from generate_series(1, 7); commit",
        "select router_nosuch",
        "rollback",
        "discard all",
        "reset all",
    ]);
    prop_oneof![
        4 => simple.prop_map(|sql| vec![query(sql)]),
        2 => any::<bool>().prop_map(move |syncs| {
            let mut unit = vec![
                close(),
                named(ASK),
                framed(b'B', b"router\0router\0\0\0\0\0\0\0"),
                framed(b'D', b"Prouter\0"),
                framed(b'E', b"router\0\0\0\0\0"),
            ];
            unit.extend(syncs.then(|| framed(b'S', b"")));
            unit
        }),
        2 => any::<bool>().prop_map(move |fails| {
            vec![close(), named(if fails { "select router_nosuch" } else { ASK })]
        }),
        1 => Just(vec![framed(b'S', b"")]),
    ]
}

fn statements() -> impl Strategy<Value = &'static str> {
    proptest::sample::select(vec![
        "select 1",
        "select 1",
        "select g from generate_series(1, 5) g",
        "",
        "select 1/0",
        "select * from nosuch",
        "selec",
        "begin",
        "commit",
        "rollback",
        "copy t from stdin",
        "copy t from stdin",
        "copy bad from stdin",
        "copy nosuch from stdin",
        "copy (select 1) to stdout",
        "copy (select 1/g from generate_series(-1, 1) g) to stdout",
        "insert into d values (1)",
        "set application_name = 'x'",
        "notify x",
        "do 'begin raise notice ''x''; end'",
    ])
}

fn queries() -> impl Strategy<Value = String> {
    vec(statements(), 1..4).prop_map(|statements| statements.join("; "))
}

/// A few messages that belong together, whole or in part.
fn unit() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let function = |oid: u32| framed(b'F', &[&oid.to_be_bytes()[..], &[0; 6]].concat());
    let copied = prop_oneof![
        4 => Just(framed(b'd', b"1\n")),
        1 => Just(framed(b'd', b"bad\n")),
        1 => Just(framed(b'H', b"")),
    ];
    let copy_end = prop_oneof![3 => Just(framed(b'c', b"")), 1 => Just(framed(b'f', b"no\0"))];
    let describe =
        proptest::sample::select(vec![&b"S\0"[..], b"P\0", b"Snosuch\0"]).prop_map(|body| framed(b'D', body));
    prop_oneof![
        3 => queries().prop_map(|sql| vec![query(&sql)]),
        4 => (statements(), 0_u8..3, any::<bool>(), any::<bool>()).prop_map(|(sql, rows, describes, syncs)| {
            let mut unit = vec![parse(sql), bind()];
            unit.extend(describes.then(|| framed(b'D', b"P\0")));
            unit.push(execute(rows));
            unit.extend(syncs.then(|| framed(b'S', b"")));
            unit
        }),
        2 => (vec(copied, 0..4), copy_end, any::<bool>()).prop_map(|(mut unit, end, syncs)| {
            unit.push(end);
            unit.extend(syncs.then(|| framed(b'S', b"")));
            unit
        }),
        1 => describe.prop_map(|message| vec![message]),
        1 => Just(vec![framed(b'C', b"S\0")]),
        1 => Just(vec![framed(b'B', b"\0nosuch\0\0\0\0\0\0\0")]),
        2 => Just(vec![framed(b'H', b"")]),
        3 => Just(vec![framed(b'S', b"")]),
        1 => Just(vec![function(2026)]),
        1 => Just(vec![function(0)]),
    ]
}

/// What one side sends at a time, and how it goes on.
fn turn() -> impl Strategy<Value = (Owner, Vec<Vec<u8>>, u8)> {
    let unit = prop_oneof![
        3 => unit().prop_map(|unit| (Owner::Client, unit)),
        1 => router_unit().prop_map(|unit| (Owner::Router, unit)),
    ];
    (unit, 0_u8..4).prop_map(|((owner, unit), pause)| (owner, unit, pause))
}

#[test]
fn pending_replies_agree_with_postgresql() {
    let postgres = Postgres::start();
    let mut session = Session::new(postgres.port, &[USER]);
    session.send(&query(FIXTURES));
    while session.frame().tag != b'Z' {}
    assert!(session.pending.between_transactions());

    copies_with_a_sync_inside(&mut session);

    let config = ProptestConfig {
        cases: 2500,
        failure_persistence: None,
        max_shrink_iters: 200,
        ..Default::default()
    };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let session = std::cell::RefCell::new(session);
    let (ended, uncertain) = (std::cell::Cell::new(0), std::cell::Cell::new(0));
    let router_replies = std::cell::Cell::new(0);
    let sequences = vec(turn(), 1..12);
    let outcome = runner.run(&sequences, |sequence| {
        let mut session = session.borrow_mut();
        let sent = sequence.iter().flat_map(|(_, unit, _)| unit);
        let may_be_ambiguous = sent.clone().any(|message| message[0] == b'S')
            && sent
                .clone()
                .any(|message| message.windows(5).any(|word| word == b"stdin"));
        let attempt = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for (owner, unit, pause) in sequence {
                // The router's at a boundary, or anywhere; in one piece or message by message;
                // waiting for an answer where one is certain, or not at all.
                if owner == Owner::Router && pause > 0 {
                    session.drain();
                }
                let was_idle = session.pending.is_idle();
                if pause == 0 {
                    for message in &unit {
                        session.send_as(owner, message);
                    }
                } else {
                    session.send_as(owner, &unit.concat());
                }
                if pause == 2 {
                    session.drain();
                } else if pause == 3 && was_idle && answers(&unit) {
                    session.frame();
                    session.drain();
                }
                if session.pending.is_over() {
                    break;
                }
            }
            let usable = session.pending.is_over() || session.finish();
            assert!(
                may_be_ambiguous || !session.pending.is_uncertain(),
                "{:?}",
                session.pending
            );
            usable
        }));
        let usable = attempt.as_ref().copied().unwrap_or(false);
        router_replies.set(router_replies.get() + std::mem::take(&mut session.router_replies));
        if !usable || session.pending.is_over() {
            ended.set(ended.get() + u32::from(session.pending.is_over()));
            uncertain.set(uncertain.get() + u32::from(session.pending.is_uncertain()));
            *session = Session::new(postgres.port, &[USER]);
        }
        prop_assert!(
            attempt.is_ok(),
            "{:?}",
            attempt.unwrap_err().downcast_ref::<String>()
        );
        Ok(())
    });
    eprintln!(
        "{} sessions ended by the server, {} given up as uncertain, {} replies of the router's",
        ended.get(),
        uncertain.get(),
        router_replies.get()
    );
    outcome.unwrap();
    assert!(router_replies.get() > 5000, "the router has asked");
}

/// How a Sync is answered that was sent behind an Execute that turns out to be COPY IN.
fn copies_with_a_sync_inside(session: &mut Session) {
    let copy = |sql: &str| [parse(sql), bind(), execute(0), framed(b'S', b"")].concat();

    session.send(&copy("copy t from stdin"));
    while session.frame().tag != b'G' {}
    session.send(&[framed(b'c', b""), framed(b'H', b"")].concat());
    while session.frame().tag != b'C' {}
    assert!(
        !session.pending.is_idle(),
        "the COPY took the Sync: the batch is open"
    );
    session.send(&framed(b'S', b""));
    while session.frame().tag != b'Z' {}
    session.check_idle_when_said();
    assert!(session.pending.between_transactions());

    // The server has read it, then fails: one Z, and the next answer settles it.
    session.send(&copy("copy t from stdin"));
    while session.frame().tag != b'G' {}
    session.send(&[framed(b'd', b"bad\n"), framed(b'c', b""), framed(b'S', b"")].concat());
    while session.frame().tag != b'Z' {}
    assert!(session.pending.is_uncertain() && !session.pending.is_idle());
    session.send(&query("select 1"));
    while session.frame().tag != b'Z' {}
    session.check_idle_when_said();
    assert!(session.pending.between_transactions());

    // It fails behind `G` and before it has read anything: a Z for each Sync.
    session.send(&[copy("copy bad from stdin"), framed(b'c', b""), framed(b'S', b"")].concat());
    while session.frame().tag != b'Z' {}
    assert!(!session.pending.is_idle());
    while session.frame().tag != b'Z' {}
    session.check_idle_when_said();
    assert!(session.pending.between_transactions());
}

/// Whether the server says anything about this by itself.
fn answers(unit: &[Vec<u8>]) -> bool {
    unit.iter().any(|message| b"QFS".contains(&message[0]))
}

#[test]
fn pending_replies_agree_about_replication() {
    let postgres = Postgres::start();
    let mut session = Session::new(postgres.port, &[USER, (b"replication", b"true")]);
    session.send(&query("IDENTIFY_SYSTEM"));
    while session.frame().tag != b'Z' {}
    assert!(session.pending.between_transactions());
    session.send(&query("START_REPLICATION 0/1000000 TIMELINE 1"));
    while session.frame().tag != b'd' {}
    assert!(session.pending.in_copy() && !session.pending.is_idle());
    // A standby's reply, and the end.
    let status = [&b"r"[..], &[0; 33]].concat();
    session.send(&[framed(b'd', &status), framed(b'c', b"")].concat());
    while session.frame().tag != b'Z' {
        assert!(!session.pending.is_idle());
    }
    assert!(session.pending.between_transactions() && !session.pending.in_copy());
    session.send(&query("nonsense"));
    while session.frame().tag != b'Z' {}
    assert!(session.pending.between_transactions());
}
