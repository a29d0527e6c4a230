//! Random programs of several clients through a pool in transaction mode: each client gets the same
//! answers, message by message, as on a server connection of its own.
//!
//! What may differ, and is not compared or not in the programs:
//! - the name of a prepared statement in the text of an error, and the line of the server's source;
//! - the process id in a `NotificationResponse`;
//! - where among the other messages a `ParameterStatus` comes, and one that says what the client
//!   knows already: the router tells what its next connection has when it gets it;
//! - `currval` in a later transaction than `nextval`, which is an error (55000) once: the session
//!   then keeps its connection;
//! - `pg_prepared_statements` and `pg_backend_pid()`, which show the connection;
//! - SQL `EXECUTE` and `PREPARE` of names that the protocol has prepared, as those have other
//!   names;
//! - custom names: once set on a connection, one reads as an empty string there for ever, and on
//!   another connection it does not exist. So programs do not tell the two apart, and each program
//!   has its own names;
//! - Execute of a portal that was bound before the last Sync: see `program.rs`;
//! - in a failed transaction, Bind with the wrong number of parameters (08P01) for a statement that
//!   the connection does not have: nothing can be prepared there, so it is 25P02.
//!
//! `TRUNKLINE_TEST_PROGRAMS` is the number of programs, `TRUNKLINE_TEST_SEED` where they begin.
#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::format_push_string)]

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};
use trunkline::wire::frame::next_frame;
use trunkline::wire::observe::{ClientObserver, ServerObserver};
use trunkline::wire::pending::{PendingReplies, TransactionStatus};

#[path = "cluster/mod.rs"]
mod cluster;
#[path = "pooled_programs/program.rs"]
mod program;

use cluster::Router;
use cluster::postgres::{Options, Postgres};
use program::{MOST_CLIENTS, MOST_CONNECTIONS, Names, Program, Step, framed, program};

/// In a usual run and in a long one, all threads together.
const PROGRAMS: u32 = 2000;
const MANY_PROGRAMS: u32 = 5000;
const THREADS: u32 = 2;

/// What a client heard at one step, and the parameters as it knows them then.
#[derive(Debug, PartialEq, Eq)]
struct Heard {
    messages: Vec<String>,
    parameters: BTreeMap<String, String>,
}

impl Heard {
    /// Whether a client may hear this where it heard the other on a connection of its own.
    fn is_as(&self, direct: &Self) -> bool {
        let is_same = |(own, direct): (&String, &String)| {
            let is_code = |message: &str, code: &str| message.starts_with('E') && message.contains(code);
            own == direct
                || is_code(own, "C25P02\\x00") && is_code(direct, "C08P01\\x00Mbind message supplies")
        };
        self.parameters == direct.parameters
            && self.messages.len() == direct.messages.len()
            && self.messages.iter().zip(&direct.messages).all(is_same)
    }
}

struct Client {
    stream: TcpStream,
    buffer: BytesMut,
    parameters: BTreeMap<String, String>,
    pending: PendingReplies,
    requests: ClientObserver,
    answers: ServerObserver,
    is_over: bool,
}

impl Client {
    fn connect(address: (std::net::Ipv4Addr, u16)) -> Result<Self, String> {
        let stream = TcpStream::connect(address).map_err(|error| error.to_string())?;
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.set_nodelay(true).unwrap();
        let mut client = Self {
            stream,
            buffer: BytesMut::new(),
            parameters: BTreeMap::new(),
            pending: PendingReplies::new(TransactionStatus::Idle),
            requests: ClientObserver::new(),
            answers: ServerObserver::new(),
            is_over: false,
        };
        let mut body = 196_608_u32.to_be_bytes().to_vec();
        body.extend(b"user\0app\0database\0app\0\0");
        let mut packet = u32::try_from(body.len() + 4).unwrap().to_be_bytes().to_vec();
        packet.extend(body);
        client.stream.write_all(&packet).unwrap();
        loop {
            let (tag, body) = client.frame()?;
            match tag {
                b'R' if body[..4] == [0, 0, 0, 3] => {
                    client.stream.write_all(&framed(b'p', b"app\0")).unwrap();
                }
                b'S' => client.parameter(&body),
                b'E' => return Err(shown(tag, &body)),
                b'Z' => return Ok(client),
                _ => {}
            }
        }
    }

    fn parameter(&mut self, body: &[u8]) {
        let mut parts = body.split(|&byte| byte == 0);
        let mut next = || String::from_utf8_lossy(parts.next().unwrap()).into_owned();
        let (name, value) = (next(), next());
        if !name.starts_with("trunkline.") {
            self.parameters.insert(name, value);
        }
    }

    fn frame(&mut self) -> Result<(u8, Vec<u8>), String> {
        loop {
            if let Some(frame) = next_frame(&mut self.buffer, 1 << 20).unwrap() {
                return Ok((frame.tag, frame.body.to_vec()));
            }
            let mut read = [0; 8192];
            match self.stream.read(&mut read) {
                Ok(0) => return Err("the end of the connection".to_owned()),
                Ok(length) => self.buffer.extend_from_slice(&read[..length]),
                Err(error) => return Err(format!("nothing more: {error}")),
            }
        }
    }

    /// Sends it, and reads until everything is answered.
    fn ask(&mut self, bytes: &[u8]) -> Heard {
        let pending = &mut self.pending;
        self.requests
            .feed(bytes, |tag, _| {
                let _ = pending.client(tag);
            })
            .unwrap();
        let mut messages = Vec::new();
        if self.is_over {
            // One time-out is enough.
            return Heard {
                messages,
                parameters: self.parameters.clone(),
            };
        }
        if self.stream.write_all(bytes).is_err() {
            messages.push("cannot be sent".to_owned());
        }
        while self.pending.outstanding() != Some(0) {
            match self.frame() {
                Ok((tag, body)) => {
                    let pending = &mut self.pending;
                    let fed = self.answers.feed(&framed(tag, &body), |event| {
                        pending.server(&event);
                    });
                    fed.unwrap();
                    if tag == b'S' {
                        self.parameter(&body);
                    } else {
                        messages.push(shown(tag, &body));
                    }
                }
                Err(error) => {
                    messages.push(error);
                    self.is_over = true;
                    break;
                }
            }
        }
        Heard {
            messages,
            parameters: self.parameters.clone(),
        }
    }
}

fn shown(tag: u8, body: &[u8]) -> String {
    // The process id of who notifies.
    let body = if tag == b'A' { &body[4..] } else { body };
    // Where in the server's source an error was made: that of a message in front may be another
    // one.
    let body = match body.windows(2).position(|pair| pair == b"\0F") {
        Some(place) if matches!(tag, b'E' | b'N') => &body[..place],
        _ => body,
    };
    let text = body.escape_ascii().to_string();
    let text = match text.split_once(STATEMENT) {
        // The name of a statement as the server has it.
        Some((before, rest)) if tag == b'E' => {
            let behind = rest.split_once("\\\"").map_or(rest, |(_name, behind)| behind);
            format!("{before}{STATEMENT}{behind}")
        }
        _ => text,
    };
    format!("{} {text}", char::from(tag))
}

const STATEMENT: &str = "prepared statement \\\"";

/// All that a client hears; the last step ends whatever is open.
fn play(address: (std::net::Ipv4Addr, u16), names: &Names, steps: &[Step]) -> Result<Vec<Heard>, String> {
    let mut client = Client::connect(address)?;
    let mut heard: Vec<Heard> = steps.iter().map(|step| client.ask(&names.step(step))).collect();
    let ends = [
        framed(b'S', b""),
        names.query("rollback"),
        names.query("select 'end'"),
    ];
    heard.extend(ends.iter().map(|end| client.ask(end)));
    let _ = client.stream.write_all(&framed(b'X', b""));
    Ok(heard)
}

struct Setting {
    version_18: bool,
    server: Postgres,
    router: Router,
}

/// Of one thread: its tables are its own.
struct Bench<'a> {
    setting: &'a Setting,
    thread: u32,
    control: std::cell::RefCell<Client>,
}

fn table(thread: u32, client: usize) -> String {
    format!("t{thread}_{client}")
}

static PROGRAM: AtomicU64 = AtomicU64::new(1);

impl Bench<'_> {
    fn reset(&self) {
        let mut sql = String::new();
        for client in 0..MOST_CLIENTS {
            let table = table(self.thread, client);
            sql.push_str(&format!("delete from {table}; select setval('{table}_seq', 1);"));
        }
        let heard = self
            .control
            .borrow_mut()
            .ask(&framed(b'Q', format!("{sql}\0").as_bytes()));
        assert!(
            !heard.messages.iter().any(|message| message.starts_with('E')),
            "{heard:?}"
        );
    }

    /// What each client hears in each way.
    fn check(&self, program: &Program) -> Result<(), String> {
        let number = PROGRAM.fetch_add(1, Ordering::Relaxed) * 10;
        let thread = self.thread;
        let names = |client: usize| Names {
            table: table(thread, client),
            number: (number + client as u64).to_string(),
        };
        let server = (self.setting.server.address, self.setting.server.port);
        let pool = 6439 + u16::try_from(program.connections).unwrap();
        let pooled = (self.setting.router.address, pool);
        self.reset();
        let pooled: Vec<_> = std::thread::scope(|scope| {
            let running: Vec<_> = program
                .clients
                .iter()
                .enumerate()
                .map(|(client, steps)| {
                    let names = names(client);
                    scope.spawn(move || play(pooled, &names, steps))
                })
                .collect();
            running.into_iter().map(|one| one.join().unwrap()).collect()
        });
        self.reset();
        for (client, (steps, pooled)) in program.clients.iter().zip(pooled).enumerate() {
            let direct = play(server, &names(client), steps).unwrap();
            let pooled = pooled.map_err(|error| format!("client {client} cannot log in: {error}"))?;
            let differs = direct
                .iter()
                .zip(&pooled)
                .position(|(direct, pooled)| !pooled.is_as(direct));
            if let Some(at) = differs {
                let (direct, pooled) = (&direct[at], &pooled[at]);
                return Err(format!(
                    "client {client}, step {at} ({:?})\n  direct {direct:#?}\n  pooled {pooled:#?}",
                    steps.get(at)
                ));
            }
        }
        Ok(())
    }

    fn run(&self, programs: u32, seed: u64) {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        bytes[8] = u8::try_from(self.thread).unwrap();
        let config = Config {
            cases: programs,
            failure_persistence: None,
            max_shrink_iters: 2000,
            ..Config::default()
        };
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
        let has_failed = Cell::new(false);
        let outcome =
            TestRunner::new_with_rng(config, rng).run(&program(!self.setting.version_18), |program| {
                // What depends on the order of several clients does not fail each time.
                let tries = if has_failed.get() { 3 } else { 1 };
                for _ in 0..tries {
                    if let Err(difference) = self.check(&program) {
                        if !has_failed.replace(true) {
                            eprintln!("differs, and is made smaller: {difference}\n{program:?}");
                        }
                        return Err(TestCaseError::fail(difference));
                    }
                }
                Ok(())
            });
        if let Err(error) = outcome {
            panic!("seed {seed}: {error}");
        }
    }
}

fn setting(dir: &Path, version_18: bool) -> Setting {
    let server = Postgres::start(&Options {
        version_18,
        hba: Some("host all all 127.0.0.0/8 trust".to_owned()),
        ..Options::default()
    });
    let mut sql =
        "CREATE ROLE member; GRANT member TO app; CREATE SCHEMA side; GRANT USAGE ON SCHEMA side TO PUBLIC; \
                   CREATE TABLE public.named AS SELECT 1 AS v; CREATE TABLE side.named AS SELECT 2 AS v; \
                   GRANT SELECT ON public.named, side.named TO app;"
            .to_owned();
    for thread in 0..THREADS {
        for client in 0..MOST_CLIENTS {
            let table = table(thread, client);
            sql.push_str(&format!(
                "CREATE TABLE {table} (a int); CREATE SEQUENCE {table}_seq; \
                 ALTER TABLE {table} OWNER TO app; ALTER SEQUENCE {table}_seq OWNER TO app;"
            ));
        }
    }
    server.sql_in("app", &sql);
    let hba = cluster::secret(dir, "hba", "host all all all password\n");
    let users = cluster::secret(dir, "users", "\"app\" \"app\"\n");
    let (mut routes, mut listeners) = ("routes:\n".to_owned(), String::new());
    for most in 1..=MOST_CONNECTIONS {
        routes.push_str(&format!(
            "  p{most}: {{targets: [leader], queue_timeout: 1m, max_queue: 100, \
             pool: {{mode: transaction, max_connections: {most}}}}}\n"
        ));
        let port = 6439 + most;
        listeners.push_str(&format!(
            "  - {{name: p{most}, address: \"{{address}}:{port}\", route: p{most}, tls: off}}\n"
        ));
    }
    let router = Router::launch(
        None,
        cluster::Options {
            clusters: Some(format!(
                "clusters:\n  main:\n    servers: [{{name: one, host: \"{}\", port: {}}}]\n    service_account: {{user: \
                 postgres, dbname: postgres}}\n    server_tls: {{sslmode: disable, require_auth: none}}\n",
                server.address, server.port
            )),
            listeners: Some(listeners),
            extra: format!(
                "{routes}auth: {{hba_file: {}, users_file: {}}}\n",
                hba.display(),
                users.display()
            ),
            ..cluster::Options::default()
        },
    );
    cluster::eventually("a pool serves", Duration::from_secs(20), || {
        Client::connect((router.address, 6440)).is_ok()
    });
    Setting {
        version_18,
        server,
        router,
    }
}

fn number(name: &str, usual: u32) -> u32 {
    std::env::var(name).map_or(usual, |value| value.parse().unwrap())
}

fn play_programs(version_18: bool, usual: u32, usual_seed: u32) {
    let dir = tempfile::tempdir().unwrap();
    let setting = setting(dir.path(), version_18);
    let programs = number("TRUNKLINE_TEST_PROGRAMS", usual);
    let seed = number("TRUNKLINE_TEST_SEED", usual_seed);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let setting = &setting;
            scope.spawn(move || {
                let control = Client::connect((setting.server.address, setting.server.port)).unwrap();
                let bench = Bench {
                    setting,
                    thread,
                    control: control.into(),
                };
                bench.run(programs.div_ceil(THREADS), seed.into());
            });
        }
    });
}

#[test]
fn clients_of_a_pool_get_the_answers_of_connections_of_their_own() {
    play_programs(false, PROGRAMS, 1);
}

#[test]
#[ignore = "takes minutes"]
fn clients_of_a_pool_get_the_answers_of_connections_of_their_own_in_thousands_of_programs() {
    play_programs(false, MANY_PROGRAMS, 2);
}

#[test]
#[ignore = "takes minutes"]
fn clients_of_a_pool_get_the_answers_of_connections_of_their_own_with_postgresql_18() {
    play_programs(true, MANY_PROGRAMS, 3);
}
