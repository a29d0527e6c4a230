//! Sessions that share server connections, before real servers.

use std::fmt::Write as _;

use trunkline::auth::scram::Verifier;
use trunkline::wire::frame::{ErrorFields, Frame};

use super::raw::{Client, Login, PATIENCE, at, framed};
use crate::cluster::postgres::Postgres;
use crate::cluster::{self, Router, eventually};

mod bouncer;
mod calls;
mod cancels;
mod cases;
mod copies;
mod crowds;
mod drivers;
mod faults;
mod halves;
mod hidden;
mod isolation;
mod lost;
mod peers;
mod roles;
mod rows;
mod sequences;
mod servers;
mod sessions;
mod table;
mod unasked;

/// A router with one route and one listener for each `pool:`, in order from this port on.
const FIRST_PORT: u16 = 6440;

/// In place of a pool: each session keeps a connection of its own.
const TRACKED: &str = "resume: tracked";

/// Before this server; `pools` are the keys of each route's pool, in transaction mode where they
/// name no other, and `queue_timeout` is that of all.
fn router(server: &Postgres, pools: &[&str], queue_timeout: &str) -> Router {
    router_before(&server.yaml(), pools, queue_timeout)
}

/// The same before these `clusters:`.
fn router_before(clusters: &str, pools: &[&str], queue_timeout: &str) -> Router {
    let (mut routes, mut listeners) = ("routes:\n".to_owned(), String::new());
    for (index, pool) in pools.iter().enumerate() {
        let port = FIRST_PORT + u16::try_from(index).unwrap();
        let mode = if pool.contains("mode:") {
            ""
        } else {
            "mode: transaction, "
        };
        let _ = if *pool == TRACKED {
            writeln!(routes, "  r{index}: {{targets: [leader], {pool}}}")
        } else {
            writeln!(
                routes,
                "  r{index}: {{targets: [leader], queue_timeout: {queue_timeout}, max_queue: 1000, pool: {{{mode}{pool}}}}}"
            )
        };
        let _ = writeln!(
            listeners,
            "  - {{name: l{index}, address: \"{{address}}:{port}\", route: r{index}}}"
        );
    }
    let router = Router::launch(
        None,
        cluster::Options {
            clusters: Some(clusters.to_owned()),
            listeners: Some(listeners),
            extra: routes,
            ..cluster::Options::default()
        },
    );
    serves(&router);
    router
}

/// Waits until clients find the leader. The log has the line about it a moment before.
fn serves(router: &Router) {
    eventually("the leader is known", PATIENCE, || {
        router.http("/connection/is-ready-rw?strict=1").unwrap().0 == 200
    });
}

/// Logins that cost little: a test has hundreds.
fn cheapen(server: &Postgres) {
    let iterations = std::num::NonZeroU32::MIN;
    for user in ["app", "postgres"] {
        let verifier = Verifier::from_password(user.as_bytes(), b"0123456789abcdef", iterations);
        server.sql(&format!(
            "ALTER ROLE {user} PASSWORD '{}'",
            verifier.to_text().as_str()
        ));
    }
}

fn login(router: &Router, port: u16, user: &str, database: &str) -> Client {
    Client::login(
        at(router, port),
        Login {
            user,
            password: user,
            parameters: &[("database", database)],
            ..Login::default()
        },
    )
}

/// The process of the server connection that the session has now.
fn process(client: &mut Client) -> String {
    client.value("SELECT pg_backend_pid()")
}

/// What a user sees of an answer: the rows, the errors' codes, and notifications.
pub fn seen(frames: &[Frame]) -> String {
    let mut parts = Vec::new();
    for frame in frames {
        match frame.tag {
            b'D' => parts.push(row(&frame.body)),
            b'E' => parts.push(ErrorFields::of_prefix(&frame.body).code.to_string()),
            b'A' => parts.push("notification".to_owned()),
            _ => {}
        }
    }
    parts.join(" ")
}

fn row(body: &[u8]) -> String {
    let (mut values, mut rest) = (Vec::new(), &body[2..]);
    while let Some((length, data)) = rest.split_first_chunk::<4>() {
        let length = usize::try_from(i32::from_be_bytes(*length));
        values.push(match length {
            Ok(length) => String::from_utf8_lossy(&data[..length]).into_owned(),
            Err(_) => "NULL".to_owned(),
        });
        rest = &data[length.unwrap_or(0)..];
    }
    values.join(",")
}

/// The codes of the errors.
fn codes(frames: &[Frame]) -> Vec<String> {
    let errors = frames.iter().filter(|frame| frame.tag == b'E');
    errors
        .map(|frame| ErrorFields::of_prefix(&frame.body).code.to_string())
        .collect()
}

/// With types of parameters.
pub fn parse_named(name: &str, sql: &str, types: &[u32]) -> Vec<u8> {
    let mut body = format!("{name}\0{sql}\0").into_bytes();
    body.extend(u16::try_from(types.len()).unwrap().to_be_bytes());
    for oid in types {
        body.extend(oid.to_be_bytes());
    }
    framed(b'P', &body)
}

/// Parameters and results as text.
pub fn bind_named(name: &str, parameters: &[&str]) -> Vec<u8> {
    let mut body = format!("\0{name}\0\0\0").into_bytes();
    body.extend(u16::try_from(parameters.len()).unwrap().to_be_bytes());
    for parameter in parameters {
        body.extend(u32::try_from(parameter.len()).unwrap().to_be_bytes());
        body.extend(parameter.as_bytes());
    }
    body.extend([0, 0]);
    framed(b'B', &body)
}
