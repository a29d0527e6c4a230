//! A client and a server whose bytes somebody changes on the way: at login, in the session, on the
//! console. Whatever comes, nothing panics, nothing is left of it, memory does not grow, and
//! everybody else is served.
//!
//! What was changed follows from a seed, which a failure shows; `TRUNKLINE_TEST_SEED` takes it
//! again.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;
use trunkline::auth::scram::client::AwaitServerFinal;
use trunkline::auth::scram::{ClientExchange, ClientSecret};
use trunkline::config::Secret;

use super::fake::{await_leader, cheap_verifier};
use super::hand::{V3_0, startup};
use super::raw::{PATIENCE, extended, framed, query, resident_kib, sync, terminate};
use crate::cluster::postgres::{Options as ServerOptions, Postgres};
use crate::cluster::{Options, Router, eventually, fresh_address, secret};

/// Of each of the two tests. Most of it is waiting for answers that a change has made impossible.
const TIME: Duration = Duration::from_secs(24);
/// At once.
const CLIENTS: u64 = 6;
/// A client waits as long for an answer before it leaves.
const SHORT: Duration = Duration::from_millis(250);
/// Connections that went well, so that the others mean something.
const ENOUGH: u64 = 20;
/// What memory may be more at the end than in the middle. A leak of a kilobyte for each connection
/// is more than that.
const GROWTH_KIB: u64 = 8 * 1024;

/// `splitmix64`.
#[derive(Debug, Clone)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Less than `bound`, or 0.
    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() >> 33).unwrap() % bound.max(1)
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }
}

fn seed() -> u64 {
    if let Ok(seed) = std::env::var("TRUNKLINE_TEST_SEED") {
        return seed.parse().unwrap();
    }
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    u64::from(now.subsec_nanos()) | (now.as_secs() << 32)
}

/// What becomes of bytes on their way.
enum Fate {
    Passed,
    /// The other side sees an end of the stream behind them.
    Ended,
    /// Both sides see a reset.
    Cut,
}

/// Changes one thing, now and then.
fn change(bytes: &mut Vec<u8>, random: &mut Random) -> Fate {
    if bytes.is_empty() || random.below(3) > 0 {
        return Fate::Passed;
    }
    let at = random.below(bytes.len());
    let length = random.below(bytes.len() - at).min(64);
    match random.below(10) {
        0 | 1 => bytes[at] ^= 1 << random.below(8),
        2 => bytes[at] = random.pick(b"\0\xff\x7fXZEQPBDCSHdcfRKvAN\x16"),
        3 | 4 => {
            // A length, if it falls on one.
            let length = random.pick(&[
                0,
                3,
                4,
                5,
                8,
                0xffff,
                0x3fff_ffff,
                0x7fff_ffff,
                0x8000_0000,
                u32::MAX,
            ]);
            for (byte, new) in bytes[at..].iter_mut().zip(length.to_be_bytes()) {
                *byte = new;
            }
        }
        5 => drop(bytes.drain(at..at + length)),
        6 => {
            let again = bytes[at..at + length].to_vec();
            bytes.splice(at..at, again);
        }
        7 => {
            let strange: Vec<u8> = (0..random.below(64)).map(|_| random.byte()).collect();
            bytes.splice(at..at, strange);
        }
        8 => {
            bytes.truncate(at);
            return Fate::Ended;
        }
        _ => {
            bytes.truncate(at);
            return Fate::Cut;
        }
    }
    Fate::Passed
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    Client,
    Server,
}

/// Stands before `target` and changes what one side says. The service account's connections pass as
/// they are.
fn middle(target: SocketAddr, whose: Whose, seed: u64) -> SocketAddr {
    let listener = TcpListener::bind((fresh_address(), 5432)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let numbers = AtomicU64::new(0);
        while let Ok((near, _)) = listener.accept() {
            let number = numbers.fetch_add(1, Ordering::Relaxed);
            let Ok(far) = TcpStream::connect(target) else {
                continue;
            };
            let _ = (near.set_nodelay(true), far.set_nodelay(true));
            let spared = Arc::new(AtomicBool::new(false));
            let random = Random(seed ^ number.wrapping_mul(0x1_0000_0001));
            let up = (near.try_clone().unwrap(), far.try_clone().unwrap());
            let (is_spared, changes) = (
                Arc::clone(&spared),
                (whose == Whose::Client).then(|| random.clone()),
            );
            thread::spawn(move || carry(up.0, up.1, changes, &is_spared, true));
            let changes = (whose == Whose::Server).then_some(random);
            thread::spawn(move || carry(far, near, changes, &spared, false));
        }
    });
    address
}

fn carry(
    mut from: TcpStream,
    mut to: TcpStream,
    mut changes: Option<Random>,
    spared: &AtomicBool,
    is_up: bool,
) {
    let mut buffer = [0; 8192];
    let mut is_first = is_up;
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        let mut bytes = buffer[..read].to_vec();
        if std::mem::take(&mut is_first) && bytes.windows(14).any(|part| part == b"user\0trunkline") {
            spared.store(true, Ordering::Relaxed);
        }
        let fate = match &mut changes {
            Some(random) if !spared.load(Ordering::Relaxed) => change(&mut bytes, random),
            _ => Fate::Passed,
        };
        // Now and then in two pieces.
        let (one, two) = bytes.split_at(changes.as_mut().map_or(0, |random| random.below(bytes.len())));
        let sent = to.write_all(one).and_then(|()| to.write_all(two));
        match fate {
            Fate::Passed if sent.is_ok() => {}
            Fate::Passed | Fate::Ended => break,
            Fate::Cut => {
                let _ = socket2::SockRef::from(&to).set_linger(Some(Duration::ZERO));
                let _ = to.shutdown(Shutdown::Both);
                let _ = from.shutdown(Shutdown::Both);
                return;
            }
        }
    }
    let _ = to.shutdown(Shutdown::Write);
    if changes.is_none() {
        let _ = from.shutdown(Shutdown::Read);
    }
}

/// A client that takes whatever it is told, and leaves where it understands nothing.
struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    /// Waits at most `patience` for each answer.
    fn connect(address: SocketAddr, patience: Duration) -> Option<Self> {
        let stream = TcpStream::connect(address).ok()?;
        stream.set_read_timeout(Some(patience)).unwrap();
        stream.set_write_timeout(Some(patience)).unwrap();
        stream.set_nodelay(true).ok()?;
        let buffer = Vec::new();
        Some(Self { stream, buffer })
    }

    fn send(&mut self, bytes: &[u8]) -> Option<()> {
        self.stream.write_all(bytes).ok()
    }

    fn frame(&mut self) -> Option<(u8, Vec<u8>)> {
        let mut chunk = [0; 4096];
        loop {
            if let Some(&[tag, a, b, c, d]) = self.buffer.first_chunk() {
                let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap();
                if !(4..1 << 20).contains(&length) {
                    return None;
                }
                if self.buffer.len() > length {
                    let body = self.buffer[5..=length].to_vec();
                    self.buffer.drain(..=length);
                    return Some((tag, body));
                }
            }
            match self.stream.read(&mut chunk) {
                Ok(read @ 1..) => self.buffer.extend_from_slice(&chunk[..read]),
                _ => return None,
            }
        }
    }

    fn until(&mut self, tag: u8) -> Option<Vec<u8>> {
        loop {
            let (found, body) = self.frame()?;
            if found == tag {
                return Some(body);
            }
        }
    }

    fn log_in(&mut self, database: &str) -> Option<()> {
        let parameters: [(&[u8], &[u8]); 2] = [(b"user", b"app"), (b"database", database.as_bytes())];
        self.send(&startup(V3_0, &parameters))?;
        let secret = ClientSecret::Password(Secret::new(&b"app"[..]));
        let (exchange, first) = ClientExchange::new(secret).first();
        self.until(b'R')?;
        let length = u32::try_from(first.len()).unwrap().to_be_bytes();
        self.send(&framed(b'p', &[b"SCRAM-SHA-256\0", &length[..], &first].concat()))?;
        let answer = self.until(b'R')?;
        let (exchange, last): (AwaitServerFinal, _) = exchange.server_first(answer.get(4..)?).ok()?;
        self.send(&framed(b'p', &last))?;
        let answer = self.until(b'R')?;
        exchange.server_final(answer.get(4..)?).ok()?;
        self.until(b'Z').map(drop)
    }

    /// Something of everything that a session may be.
    fn talk(&mut self, random: &mut Random, is_console: bool) -> Option<()> {
        const CONSOLE: [&str; 4] = ["SHOW HELP", "SHOW HBA", "SHOW /* x */ IDENT;", "DROP TABLE x"];
        const STATEMENTS: [&str; 8] = [
            "SELECT 1",
            "SELECT repeat('x', 20000) FROM generate_series(1, 10)",
            "SELECT 1/0",
            "BEGIN; SELECT 2; ROLLBACK",
            "LISTEN c; NOTIFY c, 'x'",
            "SET application_name = 'mutating'",
            "COPY (SELECT 1) TO STDOUT",
            "DO $$BEGIN RAISE NOTICE 'x'; END$$",
        ];
        for _ in 0..=random.below(4) {
            let sql = if is_console {
                random.pick(&CONSOLE)
            } else {
                random.pick(&STATEMENTS)
            };
            match random.below(4) {
                0 | 1 => self.send(&query(sql))?,
                2 => self.send(&[extended(sql), sync()].concat())?,
                _ if is_console => self.send(&sync())?,
                _ => {
                    let copy = [
                        query("CREATE TEMP TABLE IF NOT EXISTS t (a int); COPY t FROM STDIN"),
                        framed(b'd', b"1\n2\n"),
                        framed(b'c', b""),
                    ];
                    self.send(&copy.concat())?;
                }
            }
            self.until(b'Z')?;
        }
        if random.below(2) == 0 {
            self.send(&terminate())?;
        }
        Some(())
    }
}

/// Clients at `address` for `time`, and longer while fewer than [`ENOUGH`] of their connections
/// went well: on a busy machine, answers take longer than clients wait. How many connections there
/// were, and how many went well to their end.
fn clients(address: SocketAddr, seed: u64, time: Duration) -> (u64, u64) {
    let begin = Instant::now();
    let enough = Arc::new(AtomicU64::new(0));
    let threads = (0..CLIENTS).map(|number| {
        let enough = Arc::clone(&enough);
        thread::spawn(move || {
            let mut random = Random(seed ^ (number << 48));
            let (mut all, mut well) = (0, 0);
            while begin.elapsed() < time
                || (enough.load(Ordering::Relaxed) < ENOUGH && begin.elapsed() < PATIENCE)
            {
                all += 1;
                let is_console = random.below(4) == 0;
                let database = if is_console { "trunkline" } else { "app" };
                let gone_well = Client::connect(address, SHORT).and_then(|mut client| {
                    client.log_in(database)?;
                    client.talk(&mut random, is_console)
                });
                if gone_well.is_some() {
                    well += 1;
                    enough.fetch_add(1, Ordering::Relaxed);
                }
            }
            (all, well)
        })
    });
    let threads: Vec<_> = threads.collect();
    let counts = threads.into_iter().map(|thread| thread.join().unwrap());
    counts.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
}

struct Subject {
    server: Postgres,
    router: Router,
    seed: u64,
}

impl Subject {
    /// A router before a real server, which is reached by way of `between`.
    fn start(seed: u64, between: impl FnOnce(SocketAddr) -> SocketAddr) -> Self {
        let server = Postgres::start(&ServerOptions {
            hba: Some("host all app 127.0.0.0/8 scram-sha-256\nhost all all 127.0.0.0/8 trust".to_owned()),
            ..ServerOptions::default()
        });
        server.sql(&format!("ALTER ROLE app PASSWORD '{}'", cheap_verifier()));
        let reached = between(SocketAddr::from((server.address, Postgres::PORT)));
        let users = secret(
            &server.certificates.file(""),
            "users",
            &format!("\"app\" \"{}\"", cheap_verifier()),
        );
        let router = Router::launch(
            None,
            Options {
                clusters: Some(format!(
                    "clusters:\n  main:\n    servers: [{{name: one, host: {}, port: {}}}]\n    service_account: {{user: \
                     trunkline, dbname: postgres}}\n    server_tls: {{sslmode: disable}}\n    server: {{connect_timeout: 1s}}\n",
                    reached.ip(),
                    reached.port()
                )),
                extra: format!(
                    "auth: {{users_file: {}, rate_limit: {{failures: 0}}}}\nconsole: {{users: [app]}}\n",
                    users.display()
                ),
                ..Options::default()
            },
        );
        await_leader(&router);
        Self { server, router, seed }
    }

    fn clients_at(&self) -> SocketAddr {
        SocketAddr::from((self.router.address, 6432))
    }

    fn descriptors(&self) -> usize {
        let folder = format!("/proc/{}/fd", self.router.process_id());
        std::fs::read_dir(folder).unwrap().count()
    }

    /// Nothing is left of any client: no session, no login, no server connection. Returns memory
    /// and descriptors.
    fn quiet(&self) -> (u64, usize) {
        let all = || {
            let (_, text) = self.router.http("/metrics").unwrap();
            let gauges = text.lines().filter(|line| {
                [
                    "trunkline_sessions{",
                    "trunkline_sessions ",
                    "trunkline_pending_logins ",
                ]
                .iter()
                .any(|name| line.starts_with(name))
            });
            gauges.map(str::to_owned).collect::<Vec<_>>()
        };
        eventually(
            &format!("seed {}: no session is left: {:?}", self.seed, all()),
            PATIENCE,
            || {
                let gauges = all();
                assert!(!gauges.is_empty());
                gauges.iter().all(|line| line.ends_with(" 0"))
            },
        );
        eventually(
            &format!("seed {}: no server connection is left", self.seed),
            PATIENCE,
            || {
                self.server
                    .sql("SELECT count(*) FROM pg_stat_activity WHERE usename = 'app'")
                    == "0"
            },
        );
        (resident_kib(self.router.process_id()), self.descriptors())
    }

    /// Plays for [`TIME`], with `address` for the clients, and sees what is left.
    fn play(mut self, address: SocketAddr) {
        let seed = self.seed;
        let warm = clients(address, seed, TIME / 2);
        let (kib, descriptors) = self.quiet();
        let more = clients(address, seed ^ 1, TIME / 2);
        let (kib_after, descriptors_after) = self.quiet();
        eprintln!(
            "seed {seed}: {warm:?} and {more:?} connections (well); {kib} and {kib_after} KiB, {descriptors} and {descriptors_after} descriptors"
        );
        // One connection of a probe or look-up more or less. Connections to servers are closed in
        // order, which takes a moment that no server shows.
        eventually(&format!("no descriptor is left, seed {seed}"), PATIENCE, || {
            self.descriptors() <= descriptors + 2
        });
        let log = self.router.log();
        assert!(!log.contains("panicked"), "seed {seed}:\n{log}");
        // Enough of either kind to have meant something.
        assert!(
            warm.1 >= ENOUGH && more.1 >= ENOUGH && warm.0 > warm.1,
            "seed {seed}: {warm:?} {more:?}\n{log}"
        );
        assert!(
            kib_after < kib + GROWTH_KIB,
            "seed {seed}: memory grows: {kib} KiB, then {kib_after}"
        );
        // Others are served, and nothing keeps the router from ending.
        let mut client = Client::connect(self.clients_at(), PATIENCE).unwrap();
        let is_served = client.log_in("trunkline").is_some();
        assert!(is_served, "seed {seed}:\n{}", self.router.log());
        drop(client);
        self.router.signal("TERM");
        assert_eq!(self.router.await_exit(PATIENCE), 0, "seed {seed}");
    }
}

#[test]
fn nothing_is_left_of_clients_whose_bytes_are_changed() {
    let seed = seed();
    let subject = Subject::start(seed, |server| server);
    let address = middle(subject.clients_at(), Whose::Client, seed);
    subject.play(address);
}

#[test]
fn nothing_is_left_of_servers_whose_bytes_are_changed() {
    let seed = seed();
    let subject = Subject::start(seed, |server| middle(server, Whose::Server, seed));
    let address = subject.clients_at();
    subject.play(address);
}

#[test]
fn a_seed_changes_the_same_bytes_again() {
    let changed = |seed| {
        let (mut random, mut all) = (Random(seed), Vec::new());
        for length in 0..200 {
            let mut bytes = vec![7; length];
            let _ = change(&mut bytes, &mut random);
            all.push(bytes);
        }
        all
    };
    assert_eq!(changed(7), changed(7));
    assert_ne!(changed(7), changed(8));
}
