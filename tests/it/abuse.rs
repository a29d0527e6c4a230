//! Guessing at passwords: it becomes slow, then stops, and costs nobody else anything.
#![allow(clippy::unwrap_used)]

use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use tokio::time::Instant;

use super::fake::{Fake, Session};
use super::hand::{Message, Raw, V3_0, message};
use super::raw::resident_kib;
use crate::cluster::{Router, eventually, output};

/// Where attackers and clients of one test come from; the router's own address is another one.
fn from(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 98, 0, last)
}

/// The first answer to a startup packet.
fn knock(router: &Router, source: Ipv4Addr, user: &str) -> (Raw, Message) {
    let mut raw = Raw::connect_from(source, router.address, 6432);
    raw.startup(V3_0, &[("user", user), ("database", "app")]);
    let answer = raw.message();
    (raw, answer)
}

/// A guess that costs the attacker nothing: a proof out of thin air. What it is told in the end.
fn guess(router: &Router, source: Ipv4Addr, user: &str) -> Message {
    let (mut raw, answer) = knock(router, source, user);
    if answer.tag == b'E' {
        return answer;
    }
    assert_eq!((answer.tag, &answer.body[..4]), (b'R', &[0, 0, 0, 10][..]));
    raw.sasl_initial("SCRAM-SHA-256", b"n,,n=,r=guess");
    let salt = raw.message();
    let text = String::from_utf8(salt.body[4..].to_vec()).unwrap();
    let nonce = text.split(',').next().unwrap();
    let proof = "A".repeat(43);
    raw.send(&message(b'p', format!("c=biws,{nonce},p={proof}=").as_bytes()));
    raw.last_error()
}

fn is_wrong(answer: &Message) {
    assert_eq!(answer.code(), "28P01", "{answer:?}");
}

fn is_refused(answer: &Message, whom: &str) {
    assert_eq!(answer.code(), "53300", "{answer:?}");
    assert_eq!(answer.field(b'S').unwrap(), "FATAL");
    assert_eq!(
        answer.field(b'M').unwrap(),
        format!("too many failed logins {whom}")
    );
    let hint = answer.field(b'H').unwrap();
    assert!(
        hint.starts_with("Try again in ") && hint.contains(" s. "),
        "{hint}"
    );
    assert!(hint.contains("auth.rate_limit"), "{hint}");
}

/// `app` with its password.
fn logs_in(router: &Router, source: Ipv4Addr) {
    let mut raw = Raw::connect_from(source, router.address, 6432);
    raw.startup(V3_0, &[("user", "app"), ("database", "app")]);
    let all = raw.authenticate("app");
    assert_eq!(all.last().unwrap().tag, b'Z', "{all:?}\n{}", router.log());
    assert_eq!(raw.value("SELECT 1"), "1");
}

#[test]
fn an_address_is_slowed_down_then_refused_and_others_are_unharmed() {
    let server = Fake::start(Session::answer_all);
    let limit = "rate_limit: {failures: 3, delay: 300ms, max_delay: 600ms, refuse_after: 6, refuse_for: 10m}";
    let router = server.router_with_auth(limit, "");
    // A name of its own each time: the limit of a user has no part in it.
    for number in 0..3 {
        is_wrong(&guess(&router, from(1), &format!("user{number}")));
    }
    assert_eq!(
        router.metric("trunkline_logins_delayed_total{by=\"address\"}"),
        0.0
    );
    for (number, least) in [(3, 300), (4, 600), (5, 600)] {
        let began = Instant::now();
        is_wrong(&guess(&router, from(1), &format!("user{number}")));
        assert!(began.elapsed() >= Duration::from_millis(least), "guess {number}");
    }
    assert_eq!(
        router.metric("trunkline_logins_delayed_total{by=\"address\"}"),
        3.0
    );
    // Before any exchange, and with the right password too.
    let (_raw, answer) = knock(&router, from(1), "app");
    is_refused(&answer, "from this address");
    logs_in(&router, from(2));
    assert_eq!(
        router.metric("trunkline_logins_refused_total{reason=\"rate_limit_address\"}"),
        1.0
    );
    assert_eq!(router.metric("trunkline_login_failure_addresses"), 1.0);
    assert_eq!(router.metric("trunkline_login_failure_users"), 6.0);
    router.await_log(&[
        "WARN",
        "logins from this address are refused",
        "127.98.0.1:",
        "for_s=600",
    ]);
}

#[test]
fn parallel_guesses_wait_for_each_other() {
    let server = Fake::start(Session::answer_all);
    let limit = "rate_limit: {failures: 1, delay: 200ms, max_delay: 200ms, refuse_after: 100}";
    let router = server.router_with_auth(limit, "");
    is_wrong(&guess(&router, from(1), "first"));
    let began = Instant::now();
    thread::scope(|scope| {
        for number in 0..5 {
            let router = &router;
            scope.spawn(move || is_wrong(&guess(router, from(1), &format!("user{number}"))));
        }
    });
    assert!(began.elapsed() >= Duration::from_secs(1), "five turns of 200 ms");
}

#[test]
fn a_user_under_attack_gets_in_where_it_usually_does() {
    let server = Fake::start(Session::answer_all);
    let limit = "rate_limit: {failures: 2, delay: 0, refuse_after: 4, refuse_for: 10m}";
    let router = server.router_with_auth(limit, "");
    logs_in(&router, from(1));
    // An unknown user is treated as a known one is.
    for user in ["app", "nobody"] {
        for attacker in 10..14 {
            is_wrong(&guess(&router, from(attacker), user));
        }
        let (_raw, answer) = knock(&router, from(2), user);
        is_refused(&answer, "as this user");
    }
    logs_in(&router, from(1));
    let (_raw, answer) = knock(&router, from(2), "other");
    assert_eq!(answer.tag, b'R', "another user from the same address");
    assert_eq!(
        router.metric("trunkline_logins_refused_total{reason=\"rate_limit_user\"}"),
        2.0
    );
    router.await_log(&["WARN", "logins as this user are refused", "user=nobody"]);
    // Guesses from its own address use its freedom up.
    for _ in 0..3 {
        let _ = guess(&router, from(1), "app");
    }
    for number in 0..3 {
        let _ = guess(&router, from(1), &format!("user{number}"));
    }
    let (_raw, answer) = knock(&router, from(1), "app");
    is_refused(&answer, "from this address");
}

#[test]
fn what_is_no_guess_does_not_count_and_garbage_does() {
    let server = Fake::start(Session::answer_all);
    let limit = "rate_limit: {failures: 2, delay: 0, refuse_after: 3, refuse_for: 10m}";
    let router = server.router_with_auth(limit, "");
    // It hangs up when it is asked for a password, and would ask its user.
    let psql = |password: &str| {
        let dsn = format!(
            "host={} port=6432 user=app dbname=app sslmode=disable",
            router.address
        );
        let mut command = Command::new("psql");
        command
            .args(["-XAtqw", "-c", "SELECT 1", &dsn])
            .env_remove("PGPASSWORD");
        if !password.is_empty() {
            command.env("PGPASSWORD", password);
        }
        output(&mut command)
    };
    for _ in 0..6 {
        let told = String::from_utf8(psql("").stderr).unwrap();
        assert!(told.contains("no password supplied"), "{told}");
    }
    drop(Raw::connect(router.address, 6432));
    let mut scan = Raw::connect(router.address, 6432);
    scan.send(b"GET / HTTP/1.0\r\n\r\n");
    assert_eq!(scan.rest(), b"");
    assert_eq!(router.metric("trunkline_login_failure_addresses"), 0.0);
    assert!(psql("app").status.success());
    assert!(!psql("wrong").status.success());
    assert_eq!(router.metric("trunkline_login_failure_addresses"), 1.0);

    for _ in 0..3 {
        let (mut raw, answer) = knock(&router, from(1), "other");
        assert_eq!(answer.tag, b'R');
        raw.send(&message(b'Q', b"SELECT 1\0"));
        assert_eq!(raw.last_error().code(), "08P01");
    }
    let (_raw, answer) = knock(&router, from(1), "other");
    is_refused(&answer, "from this address");
    let (_raw, answer) = knock(&router, from(2), "other");
    assert_eq!(answer.tag, b'R', "it says nothing of the user");
}

#[test]
fn who_waits_holds_no_place() {
    let server = Fake::start(Session::answer_all);
    let limit = "login_timeout: 10m, rate_limit: {failures: 1, delay: 1m, max_delay: 1m}";
    let router = server.router_with_auth(limit, "limits: {max_pending_logins: 4}\n");
    is_wrong(&guess(&router, from(1), "first"));
    let mut waiting = Vec::new();
    for count in [1.0, 2.0, 3.0, 4.0] {
        let mut raw = Raw::connect_from(from(1), router.address, 6432);
        raw.startup(V3_0, &[("user", "second"), ("database", "app")]);
        waiting.push(raw);
        eventually("it waits", Duration::from_secs(5), || {
            router.metric("trunkline_logins_waiting") == count
        });
    }
    logs_in(&router, from(2));
    // There are as many places to wait as to log in.
    let (_raw, answer) = knock(&router, from(1), "third");
    is_refused(&answer, "from this address");
    // Nothing may come before it is asked for; who leaves is noticed.
    let mut early = waiting.remove(0);
    early.send(&message(b'p', b"x\0"));
    assert_eq!(early.last_error().code(), "08P01");
    drop(waiting);
    eventually("nobody waits", Duration::from_secs(5), || {
        router.metric("trunkline_logins_waiting") == 0.0
    });
}

#[test]
fn one_address_has_half_of_the_places() {
    let server = Fake::start(Session::answer_all);
    let router = server.router_with_auth("", "limits: {max_pending_logins: 4}\n");
    let held: Vec<_> = (0..2).map(|_| knock(&router, from(1), "app")).collect();
    let mut raw = Raw::connect_from(from(1), router.address, 6432);
    let error = raw.last_error();
    assert_eq!(error.code(), "53300");
    assert_eq!(
        error.field(b'M').unwrap(),
        "too many connections from this address are logging in"
    );
    assert!(
        error
            .field(b'H')
            .unwrap()
            .contains("half of limits.max_pending_logins")
    );
    assert_eq!(
        router.metric("trunkline_logins_refused_total{reason=\"too_many_logins_address\"}"),
        1.0
    );
    logs_in(&router, from(2));
    drop(held);
    eventually("places are given back", Duration::from_secs(5), || {
        knock(&router, from(1), "app").1.tag == b'R'
    });
}

/// A job with an old password, in a loop, by SCRAM: nobody can tell its guesses from others.
#[test]
fn one_user_with_an_old_password_keeps_no_neighbour_out() {
    let server = Fake::start(Session::answer_all);
    let limit = "rate_limit: {failures: 3, delay: 1ms, max_delay: 1ms, refuse_after: 5, refuse_for: 10m}";
    let router = server.router_with_auth(limit, "");
    for _ in 0..5 {
        is_wrong(&guess(&router, from(1), "job"));
    }
    for _ in 0..50 {
        is_refused(&guess(&router, from(1), "job"), "as this user from this address");
    }
    // Who has never been here is not kept waiting, nor is that user elsewhere.
    let began = Instant::now();
    logs_in(&router, from(1));
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    let (_raw, answer) = knock(&router, from(2), "job");
    assert_eq!(answer.tag, b'R', "{answer:?}");
    assert_eq!(
        router.metric("trunkline_logins_refused_total{reason=\"rate_limit_user_address\"}"),
        50.0
    );
    router.await_log(&[
        "WARN",
        "wait for their turn",
        "user=job",
        "127.98.0.1:",
        "failures=3",
    ]);
    router.await_log(&["WARN", "are refused", "user=job", "failures=5", "for_s=600"]);
    // Its lines hide nobody else's.
    is_wrong(&guess(&router, from(1), "neighbour"));
    router.await_log(&["login refused", "user=neighbour"]);
}

#[test]
fn an_exempt_network_is_not_limited() {
    let server = Fake::start(Session::answer_all);
    let limit = "rate_limit: {failures: 1, delay: 0, refuse_after: 2, refuse_for: 10m, exempt: [127.98.0.1]}";
    let router = server.router_with_auth(limit, "");
    for number in 0..10 {
        is_wrong(&guess(&router, from(1), &format!("user{number}")));
    }
    logs_in(&router, from(1));
    assert_eq!(router.metric("trunkline_login_failure_addresses"), 0.0);
    for number in 0..2 {
        is_wrong(&guess(&router, from(2), &format!("user{number}")));
    }
    let (_raw, answer) = knock(&router, from(2), "user9");
    is_refused(&answer, "from this address");
}

/// 100,000 with `TRUNKLINE_LONG=1`.
#[test]
fn failed_logins_from_many_addresses_leave_memory_where_it_was() {
    const THREADS: u32 = 4;
    let guesses = if std::env::var("TRUNKLINE_LONG").is_ok_and(|long| long == "1") {
        100_000
    } else {
        5000
    };
    let server = Fake::start(Session::answer_all);
    let router = server.router_with_auth("", "");
    let attack = |first: u32, count: u32| {
        thread::scope(|scope| {
            for part in 0..THREADS {
                let router = &router;
                scope.spawn(move || {
                    for number in (first + part..first + count).step_by(THREADS as usize) {
                        let [_, a, b, c] = number.to_be_bytes();
                        let source = Ipv4Addr::new(127, 160 + a, b, c);
                        is_wrong(&guess(router, source, &format!("user{number}")));
                    }
                });
            }
        });
    };
    attack(1, 500);
    let before = resident_kib(router.process_id());
    let done = AtomicBool::new(false);
    let served = thread::scope(|scope| {
        let good = scope.spawn(|| {
            let mut served = 0;
            while !done.load(Ordering::Relaxed) {
                logs_in(&router, from(2));
                served += 1;
            }
            served
        });
        attack(1000, guesses);
        done.store(true, Ordering::Relaxed);
        good.join().unwrap()
    });
    let after = resident_kib(router.process_id());
    eprintln!(
        "{guesses} failed logins: {before} KiB before, {after} KiB after; {served} good logins meanwhile"
    );
    assert!(served > 10, "{served} good logins");
    assert!(
        after < before + 8 * 1024,
        "{before} KiB before, {after} KiB after"
    );
    assert!(router.metric("trunkline_login_failure_addresses") <= 8192.0);
    let failed = router.metric("trunkline_logins_refused_total{reason=\"password\"}");
    assert_eq!(failed, f64::from(guesses + 500));
}
