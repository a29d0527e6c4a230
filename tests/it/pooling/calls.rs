//! Functions that are called without SQL (`FunctionCall`).

use super::{FIRST_PORT, login, router, seen};
use crate::cluster::postgres::{Options, Postgres};
use crate::raw::framed;

/// Arguments and result as text.
fn call(function: u32, arguments: &[&str]) -> Vec<u8> {
    let mut body = function.to_be_bytes().to_vec();
    body.extend([0, 0]);
    body.extend(u16::try_from(arguments.len()).unwrap().to_be_bytes());
    for argument in arguments {
        body.extend(u32::try_from(argument.len()).unwrap().to_be_bytes());
        body.extend(argument.as_bytes());
    }
    body.extend([0, 0]);
    framed(b'F', &body)
}

#[test]
fn what_a_function_leaves_is_its_sessions_own() {
    let server = Postgres::start(&Options::default());
    let router = router(&server, &["max_connections: 1"], "500ms");
    let mut other = login(&router, FIRST_PORT, "app", "app");
    for (function, arguments) in [
        // `pg_advisory_lock(bigint)`, `set_config`
        (2880, &["7"] as &[_]),
        (2078, &["work_mem", "7MB", "f"]),
    ] {
        let mut first = login(&router, FIRST_PORT, "app", "app");
        first.send(&call(function, arguments));
        assert_eq!(seen(&first.ready()), "");
        assert_eq!(seen(&other.ask("SELECT 1")), "53300", "{function}: it is pinned");
        drop(first);
        crate::cluster::eventually("the connection is free", crate::raw::PATIENCE, || {
            seen(&other.ask("SELECT 1")) == "1"
        });
        assert_eq!(other.value("SHOW work_mem"), "4MB");
        let locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'";
        assert_eq!(other.value(locks), "0");
    }
    // Large objects, which drivers use in this way, pin nothing.
    let mut first = login(&router, FIRST_PORT, "app", "app");
    first.send(&call(957, &["-1"]));
    assert_eq!(seen(&first.ready()), "");
    assert_eq!(seen(&other.ask("SELECT 1")), "1");
}
