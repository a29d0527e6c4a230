//! What somebody who does not get in can learn of who exists: nothing, by any method, from a file
//! or from the cluster.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use trunkline::auth::scram::{ClientBinding, ClientExchange, ClientSecret};
use trunkline::config::Secret;

use super::UNLIMITED;
use crate::cluster::postgres::{self, Postgres};
use crate::cluster::{Cluster, Options, Router, eventually, secret};
use crate::hand::{Message, Raw, SSL_REQUEST, V3_0, message};

/// One rule for each method, chosen by the database.
const HBA: &str = "host scram all all scram-sha-256\nhostssl clear all all password\nhost md5 all all md5\n\
                   host groups +staff all reject\nhost groups all all scram-sha-256\n";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// SCRAM without TLS.
    Plain,
    /// SCRAM over TLS, not bound.
    Encrypted,
    /// SCRAM-SHA-256-PLUS.
    Bound,
    /// A password in clear, over TLS.
    Clear,
    /// The method `md5`, over TLS.
    Md5,
    /// SCRAM over TLS, after a rule that depends on memberships.
    Groups,
}

/// Those in which who is stored as md5 is like everybody else.
const WAYS: [Way; 5] = [Way::Plain, Way::Encrypted, Way::Bound, Way::Clear, Way::Groups];

impl Way {
    fn database(self) -> &'static str {
        match self {
            Self::Plain | Self::Encrypted | Self::Bound => "scram",
            Self::Clear => "clear",
            Self::Md5 => "md5",
            Self::Groups => "groups",
        }
    }

    /// Look-ups that an attempt takes: of who the user is where no file says so, and of its
    /// memberships.
    fn look_ups(self, users: &Users) -> f64 {
        let identity = if *users == Users::Looked { 1.0 } else { 0.0 };
        identity + if self == Self::Groups { 1.0 } else { 0.0 }
    }
}

/// Where passwords are known from.
#[derive(Debug, PartialEq, Eq)]
enum Users {
    Looked,
    File,
}

/// A client's address nobody has used before: log lines are limited by address.
fn fresh_source() -> Ipv4Addr {
    static NEXT: AtomicU16 = AtomicU16::new(1);
    let [high, low] = NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    Ipv4Addr::new(127, 200, high, low)
}

/// Everything the router says to who logs in with the password `wrong`, to the end of the
/// connection. Nonces, salts and the user's own name are blanked, and keep their lengths.
fn said(router: &Router, from: Ipv4Addr, way: Way, user: &str) -> Vec<Message> {
    let mut raw = Raw::connect_from(from, router.address, 6432);
    if way != Way::Plain {
        raw.send(SSL_REQUEST);
        assert_eq!(raw.byte(), b'S');
        raw = raw.handshake(&[b"postgresql"]).unwrap();
    }
    raw.startup(V3_0, &[("user", user), ("database", way.database())]);
    let mut said = vec![raw.message()];
    if said[0].tag == b'E' {
        assert_eq!(raw.rest(), b"");
    } else {
        if way == Way::Clear {
            raw.send(&message(b'p', b"wrong\0"));
        } else {
            said.push(proof(&mut raw, way));
        }
        said.push(raw.last_error());
    }
    if let Some(error) = said.last_mut() {
        let text = String::from_utf8(error.body.clone()).unwrap();
        let text = text.replace(&format!("\"{user}\""), "\"...\"");
        error.body = without_seconds(text).into_bytes();
    }
    said
}

/// How long a refusal lasts yet is the clock's, not the user's.
fn without_seconds(text: String) -> String {
    match text.split_once("Try again in ") {
        Some((before, after)) => {
            let after = after.trim_start_matches(|digit: char| digit.is_ascii_digit());
            format!("{before}Try again in {after}")
        }
        None => text,
    }
}

/// Goes through SCRAM up to the proof; what the router has said in between.
fn proof(raw: &mut Raw, way: Way) -> Message {
    let binding = match way {
        Way::Bound => ClientBinding::EndPoint(raw.end_point()),
        _ => ClientBinding::No,
    };
    let mechanism = binding.mechanism();
    let password = ClientSecret::Password(Secret::new(b"wrong"));
    let (exchange, first) = ClientExchange::bound(password, binding).first();
    raw.sasl_initial(mechanism, &first);
    let mut reply = raw.message();
    assert_eq!(reply.tag, b'R', "{reply:?}");
    let (_, last) = exchange.server_first(&reply.body[4..]).unwrap();
    raw.send(&message(b'p', &last));
    let text = String::from_utf8(reply.body.split_off(4)).unwrap();
    let parts = text.split(',').map(|part| match part.split_at(2) {
        (name @ ("r=" | "s="), random) => {
            let blank = |byte| if byte == '=' { '=' } else { '.' };
            name.chars().chain(random.chars().map(blank)).collect()
        }
        _ => part.to_owned(),
    });
    reply
        .body
        .extend(parts.collect::<Vec<String>>().join(",").into_bytes());
    reply
}

/// Look-ups in the metrics: asked and found, asked and not found, answered from memory, failed.
fn look_ups(router: &Router) -> [f64; 4] {
    ["found", "not_found", "cached", "failed"].map(|result| {
        router.metric(&format!(
            "trunkline_cluster_look_ups_total{{cluster=\"main\",result=\"{result}\"}}"
        ))
    })
}

fn since(before: [f64; 4], router: &Router) -> [f64; 4] {
    let now = look_ups(router);
    std::array::from_fn(|index| now[index] - before[index])
}

/// The lines about a user's refused logins, without what is the login's own (time, address, name),
/// and up to where they tell the operator more than the client is told.
fn lines(router: &Router, way: Way, user: &str) -> Vec<String> {
    const TOLD: &str = "reason=password authentication failed";
    let (named, database) = (format!(" user={user} "), format!(" database={} ", way.database()));
    router
        .log()
        .lines()
        .filter(|line| line.contains("login refused") && line.contains(&named) && line.contains(&database))
        .map(|line| {
            let (before, _) = line.split_once(TOLD).unwrap();
            let words = before.split(' ').skip(1);
            let words = words.filter(|word| !word.starts_with("client=") && !word.starts_with("user="));
            words.collect::<Vec<_>>().join(" ") + TOLD
        })
        .collect()
}

/// Each of `users` tries in vain, and all see, and cost, what the first one does.
fn nothing_tells_them_apart(router: &Router, users: &[&str], known_from: &Users, ways: &[Way]) {
    const TRIES: u16 = 3;
    for &way in ways {
        let mut seen: Option<(Vec<Message>, BTreeSet<String>)> = None;
        for user in users {
            let before = look_ups(router);
            let written = lines(router, way, user).len();
            let tries: Vec<_> = (0..TRIES)
                .map(|_| said(router, fresh_source(), way, user))
                .collect();
            assert!(
                tries.iter().all(|said| *said == tries[0]),
                "{user} {way:?}: {tries:?}"
            );
            let [found, not_found, cached, failed] = since(before, router);
            let expected = f64::from(TRIES) * way.look_ups(known_from);
            assert_eq!(found + not_found + cached, expected, "{user} {way:?}");
            assert_eq!(failed, 0.0, "{user} {way:?}");
            // With a users file memberships are always remembered.
            assert!(*known_from == Users::File || cached == 0.0, "{user} {way:?}");
            let mut logged = Vec::new();
            eventually("the lines are written", Duration::from_secs(10), || {
                logged = lines(router, way, user).split_off(written);
                logged.len() >= usize::from(TRIES)
            });
            let this = (tries[0].clone(), logged.into_iter().collect());
            assert_eq!(*seen.get_or_insert_with(|| this.clone()), this, "{user} {way:?}");
        }
        let (said, lines) = seen.unwrap();
        is_what_postgresql_says(&said, way);
        assert_eq!(lines.len(), 1, "{lines:?}");
    }
    let refused = usize::from(TRIES) * users.len() * ways.len();
    assert_eq!(
        router.metric("trunkline_logins_refused_total{reason=\"password\"}"),
        f64::from(u32::try_from(refused).unwrap())
    );
}

/// A request, the salt where there is one, and the error; and nothing else.
fn is_what_postgresql_says(said: &[Message], way: Way) {
    let (error, before) = said.split_last().unwrap();
    assert_eq!(error.code(), "28P01", "{way:?}");
    assert_eq!(
        error.field(b'M').unwrap(),
        "password authentication failed for user \"...\""
    );
    assert_eq!((error.field(b'D'), error.field(b'H')), (None, None), "{error:?}");
    let plus = b"\0\0\0\x0aSCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0".to_vec();
    let requests = match way {
        Way::Clear => vec![vec![0, 0, 0, 3]],
        Way::Plain => vec![b"\0\0\0\x0aSCRAM-SHA-256\0\0".to_vec(), before[1].body.clone()],
        _ => vec![plus, before[1].body.clone()],
    };
    let bodies: Vec<_> = before.iter().map(|message| message.body.clone()).collect();
    assert_eq!(bodies, requests, "{way:?}");
}

fn before(server: &Postgres, auth: &str) -> Router {
    let hba = secret(&server.certificates.file(""), "router.hba", HBA);
    let router = Router::launch(
        None,
        Options {
            clusters: Some(server.yaml()),
            extra: format!("auth: {{hba_file: {}, {auth}}}\n", hba.display()),
            ..Options::default()
        },
    );
    router.await_read_write();
    router
}

fn server_with_strangers() -> Postgres {
    let server = Postgres::start(&postgres::Options::default());
    server.sql("CREATE ROLE staff");
    server.sql("CREATE ROLE nop LOGIN");
    server.sql("CREATE ROLE nol NOLOGIN PASSWORD 'wrong'");
    server.sql("CREATE ROLE exp LOGIN PASSWORD 'wrong' VALID UNTIL '2020-01-01'");
    server
}

/// `nop` has no password; the password of `nol` and `exp` is right, and they may not log in; `nob`
/// does not exist.
const STRANGERS: [&str; 5] = ["app", "nob", "nop", "nol", "exp"];

#[test]
fn looked_up_in_the_cluster() {
    let server = server_with_strangers();
    let router = before(&server, &format!("{UNLIMITED}, cache_ttl: 0s"));
    nothing_tells_them_apart(
        &router,
        &STRANGERS,
        &Users::Looked,
        &[&WAYS[..], &[Way::Md5]].concat(),
    );
}

/// A wrong password costs one look-up, and so does a user that does not exist.
#[test]
fn asked_for_once_each() {
    const TRIES: u32 = 40;
    let server = server_with_strangers();
    let router = before(&server, UNLIMITED);
    for way in [Way::Plain, Way::Md5] {
        let source = fresh_source();
        for user in STRANGERS {
            let before = look_ups(&router);
            for _ in 0..TRIES {
                said(&router, source, way, user);
            }
            let [found, not_found, cached, failed] = since(before, &router);
            assert_eq!(found + not_found + cached, f64::from(TRIES), "{user}");
            assert_eq!((cached, failed), (0.0, 0.0), "{user}");
        }
    }
}

/// A file knows passwords in clear as well (`pla`), and md5 (`md5`), which only the method `md5`
/// asks for.
#[test]
fn read_from_a_file() {
    let server = server_with_strangers();
    let verifier = server.sql("SELECT rolpassword FROM pg_authid WHERE rolname = 'app'");
    let md5 = format!("md5{}", "0".repeat(32));
    let users = secret(
        &server.certificates.file(""),
        "users",
        &format!("\"app\" \"{verifier}\"\n\"pla\" \"in clear\"\n\"md5\" \"{md5}\""),
    );
    let auth = format!("{UNLIMITED}, users_file: {}", users.display());
    let router = || before(&server, &auth);
    nothing_tells_them_apart(&router(), &["app", "nob", "pla", "md5"], &Users::File, &WAYS);
    nothing_tells_them_apart(&router(), &["app", "nob", "pla"], &Users::File, &[Way::Md5]);
}

/// Who guesses is stopped after as many attempts, and told the same, whether the user exists or
/// not.
#[test]
fn limits_on_guessing() {
    let limit = "rate_limit: {failures: 2, delay: 10ms, max_delay: 10ms, refuse_after: 4, refuse_for: 1m}";
    let router = Router::before(
        Cluster::shared(),
        Options {
            extra: format!("auth: {{{limit}}}\n"),
            ..Options::default()
        },
    );
    for way in [Way::Plain, Way::Bound] {
        // Each user from an address of its own, and then from new ones: both limits are reached.
        let tries = |user: &str| -> Vec<Vec<Message>> {
            let source = fresh_source();
            let here = (0..6).map(|_| said(&router, source, way, user));
            let mut all: Vec<_> = here.collect();
            all.extend((0..3).map(|_| said(&router, fresh_source(), way, user)));
            all
        };
        let (known, unknown) = match way {
            Way::Plain => ("app", "nob"),
            _ => ("postgres", "nobodyyy"),
        };
        let (known, unknown) = (tries(known), tries(unknown));
        assert_eq!(known, unknown, "{way:?}");
        let code = |said: &Vec<Message>| said.last().unwrap().code();
        assert_eq!(code(&known[0]), "28P01");
        assert_ne!(code(&known[5]), "28P01", "refused by now: {:?}", known[5]);
    }
}
