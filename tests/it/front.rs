//! The front: what a client may say before it is known, right and wrong, and what it is answered.
#![allow(clippy::unwrap_used)]

use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::cluster::postgres::{Pair18, psql_18};
use crate::cluster::{Certificates, Cluster, Options, Router, eventually, output};
use crate::hand::{GSS_REQUEST, Raw, SSL_REQUEST, V3_0, V3_2, message, packet, startup};

const APP: &[(&str, &str)] = &[("user", "app"), ("database", "app")];

/// TLS optional, off and required on ports 6432, 6435 and 6436.
fn options() -> Options {
    Options {
        listeners: Some(
            "  - {name: rw, address: \"{address}:6432\", route: read-write}\n  \
             - {name: ro, address: \"{address}:6433\", route: read-only}\n  \
             - {name: off, address: \"{address}:6435\", route: read-write, tls: off}\n  \
             - {name: required, address: \"{address}:6436\", route: read-write, tls: required}\n"
                .to_owned(),
        ),
        ..Options::default()
    }
}

fn text(output: &std::process::Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout).trim(),
        String::from_utf8_lossy(&output.stderr).trim()
    )
}

/// Asked for a password: what follows a startup that is in order.
#[track_caller]
fn is_asked(raw: &mut Raw) {
    let request = raw.message();
    assert_eq!(request.tag, b'R', "{request:?}");
    // With TLS there is something to bind to.
    let expected: &[u8] = if raw.is_encrypted() {
        b"\0\0\0\x0aSCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0"
    } else {
        b"\0\0\0\x0aSCRAM-SHA-256\0\0"
    };
    assert_eq!(request.body, expected);
}

#[test]
fn encryption_requests_come_in_either_order_each_once() {
    let router = Router::before(Cluster::shared(), options());
    let address = router.address;
    for requests in [[GSS_REQUEST, SSL_REQUEST], [SSL_REQUEST, GSS_REQUEST]] {
        let mut raw = Raw::connect(address, 6435);
        for request in requests {
            raw.send(request);
            assert_eq!(raw.byte(), b'N');
        }
        raw.startup(V3_0, APP);
        is_asked(&mut raw);
    }
    let mut raw = Raw::connect(address, 6432);
    raw.send(GSS_REQUEST);
    assert_eq!(raw.byte(), b'N');
    raw.send(SSL_REQUEST);
    assert_eq!(raw.byte(), b'S');
    let mut raw = raw.handshake(&[]).unwrap();
    raw.startup(V3_0, APP);
    is_asked(&mut raw);

    for request in [GSS_REQUEST, SSL_REQUEST] {
        let mut raw = Raw::connect(address, 6435);
        raw.send(request);
        assert_eq!(raw.byte(), b'N');
        raw.send(request);
        assert_eq!(raw.last_error().code(), "08P01");
        let mut raw = Raw::tls(address, 6432);
        raw.send(request);
        assert_eq!(raw.last_error().code(), "08P01", "inside TLS");
    }
}

#[test]
fn bytes_injected_behind_an_encryption_request_are_refused() {
    let router = Router::before(Cluster::shared(), options());
    for port in [6432, 6435, 6436] {
        for request in [SSL_REQUEST, GSS_REQUEST] {
            let mut raw = Raw::connect(router.address, port);
            raw.send(&[request, &startup(V3_0, &[(b"user", b"app")])].concat());
            let error = raw.last_error();
            assert_eq!(error.code(), "08P01");
            assert!(
                error.field(b'M').unwrap().contains("unencrypted data"),
                "{error:?}"
            );
        }
    }
    // Behind a startup packet, too, nothing can follow unasked.
    let mut raw = Raw::connect(router.address, 6432);
    raw.send(&[startup(V3_0, &[(b"user", b"app")]), message(b'Q', b"SELECT 1\0")].concat());
    let error = raw.last_error();
    assert_eq!(error.code(), "08P01");
    let text = error.field(b'M').unwrap();
    assert!(text.contains("after the startup packet"), "{error:?}");
}

#[test]
fn direct_tls_needs_the_protocol_name() {
    let router = Router::before(Cluster::shared(), options());
    let mut raw = Raw::connect(router.address, 6432)
        .handshake(&[b"postgresql"])
        .unwrap();
    raw.startup(V3_0, APP);
    let all = raw.authenticate("app");
    assert_eq!(all.last().unwrap().tag, b'Z', "{all:?}");
    assert_eq!(raw.value("SELECT 1"), "1");

    // Without a name the handshake itself cannot fail; not a byte is answered after it.
    let mut raw = Raw::connect(router.address, 6432).handshake(&[]).unwrap();
    let _ = raw.try_send(&startup(V3_0, &[(b"user", b"app")]));
    assert_eq!(raw.rest(), b"");
    assert!(
        Raw::connect(router.address, 6432)
            .handshake(&[b"http/1.1"])
            .is_err()
    );
    // A port without TLS.
    assert!(
        Raw::connect(router.address, 6435)
            .handshake(&[b"postgresql"])
            .is_err()
    );
    let mut raw = Raw::connect(router.address, 6436)
        .handshake(&[b"postgresql"])
        .unwrap();
    raw.startup(V3_0, APP);
    is_asked(&mut raw);
}

#[test]
fn a_port_offers_requires_or_refuses_tls() {
    let router = Router::before(Cluster::shared(), options());
    let ask = |port, sslmode: &str| {
        let ca = Certificates::shared().file("ca.crt");
        let extra = format!(
            "sslmode={sslmode} sslrootcert={} host=router.example hostaddr={}",
            ca.display(),
            router.address
        );
        text(&router.psql_output(port, &extra, "SELECT 'in'"))
    };
    for sslmode in ["disable", "prefer", "require", "verify-full"] {
        assert_eq!(ask(6432, sslmode), "in", "{sslmode}");
    }
    for sslmode in ["require", "verify-full"] {
        assert_eq!(ask(6436, sslmode), "in", "{sslmode}");
        assert!(
            ask(6435, sslmode).contains("server does not support SSL"),
            "{sslmode}"
        );
    }
    assert_eq!(ask(6435, "prefer"), "in");
    let refused = ask(6436, "disable");
    assert!(
        refused.contains("accepts TLS connections only") && refused.contains("sslmode=require"),
        "{refused}"
    );
    router.await_log(&["connection refused", "listener=required", "requires TLS"]);
    let mut raw = Raw::connect(router.address, 6436);
    raw.startup(V3_0, APP);
    assert_eq!(raw.last_error().code(), "28000");
}

#[test]
fn libpq_18_with_direct_tls_and_protocol_3_2() {
    let router = Router::before(Cluster::shared(), options());
    let ca = Certificates::shared().file("ca.crt");
    let run = |extra: &str| {
        let dsn = router.dsn(
            6432,
            &format!("host=localhost hostaddr={} {extra}", router.address),
        );
        text(&output(psql_18().args(["-XAtq", "-c", "SELECT 'in'"]).arg(dsn)))
    };
    for extra in [
        "sslnegotiation=direct",
        "sslnegotiation=postgres",
        "min_protocol_version=3.2 max_protocol_version=3.2",
        "min_protocol_version=3.2 max_protocol_version=latest",
        "min_protocol_version=3.0 max_protocol_version=3.0",
        "sslnegotiation=direct min_protocol_version=3.2 max_protocol_version=latest",
        &format!(
            "sslnegotiation=direct sslmode=verify-full sslrootcert={}",
            ca.display()
        ),
    ] {
        assert_eq!(run(extra), "in", "{extra}");
    }
}

#[test]
fn lengths_that_no_startup_packet_has_are_closed_in_silence() {
    let router = Router::before(Cluster::shared(), options());
    for start in [
        &b"\0\0\0\0"[..],
        b"\0\0\0\x07",
        b"\0\0\x27\x11\0\x03\0\0",
        b"\x7f\xff\xff\xff\0\x03\0\0",
        b"\xff\xff\xff\xff\0\x03\0\0",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x80\x80\x80\x80\x80\x80\x80\x80",
    ] {
        let mut raw = Raw::connect(router.address, 6432);
        raw.send(start);
        assert_eq!(raw.rest(), b"", "{start:?}");
        let mut raw = Raw::tls(router.address, 6432);
        raw.send(start);
        assert_eq!(raw.rest(), b"", "in TLS: {start:?}");
    }
    // A short one that the peer ends by itself.
    let mut raw = Raw::connect(router.address, 6432);
    raw.send(&startup(V3_0, &[(b"user", b"app")])[..12]);
    raw.half_close();
    assert_eq!(raw.rest(), b"");
    // The largest there may be.
    let mut raw = Raw::connect(router.address, 6432);
    let room = 10_000 - startup(V3_0, &[(b"user", b"app"), (b"application_name", b"")]).len();
    raw.send(&startup(
        V3_0,
        &[(b"user", b"app"), (b"application_name", &vec![b'x'; room])],
    ));
    is_asked(&mut raw);
}

#[test]
fn a_dribbled_startup_is_served() {
    let router = Router::before(Cluster::shared(), options());
    for mut raw in [Raw::connect(router.address, 6432), Raw::tls(router.address, 6432)] {
        for byte in startup(V3_0, &[(b"user", b"app"), (b"database", b"app")]) {
            raw.send(&[byte]);
        }
        assert_eq!(raw.authenticate("app").last().unwrap().tag, b'Z');
    }
}

#[test]
fn faults_of_a_startup_packet() {
    let router = Router::before(Cluster::shared(), options());
    let cases: &[(Vec<u8>, &str, &str)] = &[
        (packet(V3_0, b"user\0app\0"), "08P01", "terminator"),
        (packet(V3_0, b"user\0app\0\0x"), "08P01", "terminator"),
        (packet(V3_0, b"user\0app"), "08P01", "terminator"),
        (packet(V3_0, b"\0"), "28000", "no PostgreSQL user name"),
        (packet(V3_0, b"user\0\0\0"), "28000", "no PostgreSQL user name"),
        (
            packet(0x0002_0000, b"user\0app\0\0"),
            "0A000",
            "unsupported frontend protocol 2.0",
        ),
        (
            packet(0x0004_0000, b"user\0app\0\0"),
            "0A000",
            "unsupported frontend protocol 4.0",
        ),
        (
            packet(V3_0, b"user\0app\0replication\0perhaps\0\0"),
            "22023",
            "replication",
        ),
    ];
    for (packet, code, words) in cases {
        for mut raw in [Raw::connect(router.address, 6432), Raw::tls(router.address, 6432)] {
            raw.send(packet);
            let error = raw.last_error();
            assert_eq!(error.code(), *code);
            assert_eq!(error.field(b'S').as_deref(), Some("FATAL"));
            assert!(error.field(b'M').unwrap().contains(words), "{error:?}");
        }
    }
}

#[test]
fn newer_minors_and_options_are_negotiated_once() {
    let router = Router::before(Cluster::shared(), options());
    let negotiated = |version: u32, options: &[&str]| {
        let mut raw = Raw::connect(router.address, 6432);
        let mut parameters = APP.to_vec();
        parameters.extend(options.iter().map(|name| (*name, "x")));
        raw.startup(version, &parameters);
        let first = raw.message();
        if first.tag != b'v' {
            assert_eq!(first.tag, b'R');
            return None;
        }
        is_asked(&mut raw);
        Some(first.body)
    };
    let expected = |version: u32, options: &[&str]| {
        let mut body = version.to_be_bytes().to_vec();
        body.extend(u32::try_from(options.len()).unwrap().to_be_bytes());
        for name in options {
            body.extend(name.as_bytes());
            body.push(0);
        }
        Some(body)
    };
    assert_eq!(negotiated(V3_0, &[]), None);
    assert_eq!(negotiated(V3_2, &[]), None);
    assert_eq!(negotiated(0x0003_0001, &[]), expected(V3_0, &[]));
    assert_eq!(negotiated(0x0003_0003, &[]), expected(V3_2, &[]));
    let grease = ["_pq_.test_protocol_negotiation"];
    assert_eq!(negotiated(0x0003_0000 + 9999, &grease), expected(V3_2, &grease));
    let two = ["_pq_.x", "_pq_.y"];
    assert_eq!(negotiated(V3_0, &two), expected(V3_0, &two));
    assert_eq!(negotiated(V3_2, &two), expected(V3_2, &two));

    // The whole way, with the key of the version that was agreed on.
    for (version, length) in [(V3_0, 8), (0x0003_0000 + 9999, 36)] {
        let mut raw = Raw::connect(router.address, 6432);
        raw.startup(version, APP);
        if version != V3_0 {
            assert_eq!(raw.message().tag, b'v');
        }
        let all = raw.authenticate("app");
        let key = all.iter().find(|message| message.tag == b'K').unwrap();
        assert_eq!(key.body.len(), length);
        assert!(all.iter().all(|message| message.tag != b'v'), "never twice");
        assert_eq!(raw.value("SELECT 1"), "1");
    }
}

#[test]
fn parameters_reach_the_server_as_they_were_sent() {
    let router = Router::before(Cluster::shared(), options());
    let cluster = Cluster::shared();
    let leader = cluster.node(&cluster.leader());
    let server: Ipv4Addr = leader.address.parse().unwrap();
    let log_in = |address, parameters: &[(&[u8], &[u8])]| {
        let mut raw = Raw::connect(address, if address == server { leader.port } else { 6432 });
        let mut all = vec![(&b"user"[..], &b"app"[..])];
        all.extend(parameters);
        raw.send(&startup(V3_0, &all));
        let messages = raw.authenticate("app");
        (raw, messages)
    };
    let cases: &[&[(&[u8], &[u8])]] = &[
        // No database: the user's name.
        &[],
        &[(b"database", b"")],
        &[(b"application_name", b"one"), (b"application_name", b"two")],
        &[(b"client_encoding", b"LATIN1"), (b"application_name", b"caf\xe9")],
        &[(
            b"options",
            b"-c work_mem=1234kB --statement-timeout=77s -c search_path=a\\ b",
        )],
        &[(b"options", b"-c+work_mem=1234kB")],
        &[(b"database", b"nowhere")],
        &[(b"no_such_setting", b"1")],
        &[
            (b"DateStyle", b"German"),
            (b"TimeZone", b"Asia/Tokyo"),
            (b"extra.custom", b"x"),
        ],
    ];
    for parameters in cases {
        let (mut ours, through) = log_in(router.address, parameters);
        let (mut theirs, direct) = log_in(server, parameters);
        // All but the key, and the line numbers in an error.
        let shown = |messages: &[crate::hand::Message]| {
            let mut shown: Vec<(u8, String)> = messages
                .iter()
                .filter(|message| message.tag != b'K')
                .map(|message| {
                    let text = match message.tag {
                        b'E' => format!("{} {:?}", message.code(), message.field(b'M')),
                        _ => String::from_utf8_lossy(&message.body).into_owned(),
                    };
                    (message.tag, text)
                })
                .collect();
            shown.sort();
            shown
        };
        assert_eq!(shown(&through), shown(&direct), "{parameters:?}");
        if through.last().unwrap().tag == b'Z' {
            let sql = "SELECT concat_ws('|', current_database(), current_setting('work_mem'), \
                       current_setting('statement_timeout'), current_setting('search_path'), \
                       current_setting('application_name'), current_setting('extra.custom', true))";
            assert_eq!(ours.value(sql), theirs.value(sql), "{parameters:?}");
        }
    }
}

#[test]
fn target_session_attrs_over_both_ports_decides_rightly() {
    let router = Router::before(Cluster::shared(), options());
    for (attrs, recovery) in [
        ("read-write", "f"),
        ("primary", "f"),
        ("read-only", "t"),
        ("standby", "t"),
        ("prefer-standby", "t"),
    ] {
        for ports in ["6432,6433", "6433,6432"] {
            let dsn = format!(
                "host={0},{0} port={ports} user=app password=app dbname=app sslmode=require target_session_attrs={attrs}",
                router.address
            );
            let found = output(
                Command::new("psql")
                    .args(["-XAtq", "-c", "SELECT pg_is_in_recovery()"])
                    .arg(dsn),
            );
            assert_eq!(text(&found), recovery, "{attrs} {ports}");
        }
    }
}

#[test]
fn health_checks_and_scans_make_no_noise() {
    let router = Router::before(Cluster::shared(), options());
    let before = router.log();
    for port in [6432, 6433, 6435, 6436] {
        for _ in 0..20 {
            drop(Raw::connect(router.address, port));
        }
        let raw = Raw::connect(router.address, port);
        raw.half_close();
        let mut raw = Raw::connect(router.address, port);
        raw.send(b"GET / HTTP/1.0\r\n\r\n");
        assert_eq!(raw.rest(), b"");
        let mut raw = Raw::connect(router.address, port);
        raw.send(b"\r\n\r\n\0\0\0\0");
        assert_eq!(raw.rest(), b"");
        // The first byte of a handshake, and gone.
        Raw::connect(router.address, port).send(&[0x16]);
        Raw::connect(router.address, port).send(&[0x16, 3, 1, 2, 0]);
        // Reset instead of closed.
        let raw = Raw::connect(router.address, port);
        reset(&raw);
    }
    for port in [6432, 6433, 6435] {
        // HAProxy's `option pgsql-check user checkuser`.
        let mut raw = Raw::connect(router.address, port);
        raw.send(&packet(V3_0, b"user\0checkuser\0\0"));
        is_asked(&mut raw);
        let mut raw = Raw::connect(router.address, port);
        raw.startup(V3_0, APP);
        is_asked(&mut raw);
        raw.send(&message(b'X', b""));
        assert_eq!(raw.rest(), b"");
    }
    let mut raw = Raw::connect(router.address, 6432);
    raw.send(SSL_REQUEST);
    assert_eq!(raw.byte(), b'S');
    drop(raw);
    eventually("all of them are forgotten", Duration::from_secs(10), || {
        router.metric("trunkline_pending_logins") == 0.0
    });
    let after = router.log();
    let new: Vec<&str> = after[before.len()..]
        .lines()
        .filter(|line| !line.contains("trunkline::cluster"))
        .collect();
    assert!(new.is_empty(), "{new:?}");
    let (_, metrics) = router.http("/metrics").unwrap();
    let counted = metrics
        .lines()
        .filter(|line| line.starts_with("trunkline_logins_refused_total{"));
    let counted: Vec<&str> = counted
        .filter(|line| !line.contains("reason=\"opening\""))
        .collect();
    assert!(counted.is_empty(), "{counted:?}");
}

fn reset(raw: &Raw) {
    socket2::SockRef::from(raw.socket())
        .set_linger(Some(Duration::ZERO))
        .unwrap();
}

#[test]
fn one_deadline_from_accept_to_authenticated() {
    let extra = "auth: {login_timeout: 700ms}\n".to_owned();
    let router = Router::before(Cluster::shared(), Options { extra, ..options() });
    let address = router.address;
    // Silence, in each phase, at the same time.
    let silent = Raw::connect(address, 6432);
    let mut started = Raw::connect(address, 6432);
    started.send(&startup(V3_0, &[(b"user", b"app")])[..10]);
    let mut promised = Raw::connect(address, 6432);
    promised.send(SSL_REQUEST);
    assert_eq!(promised.byte(), b'S');
    let encrypted = Raw::tls(address, 6432);
    let mut asked = Raw::connect(address, 6432);
    asked.startup(V3_0, APP);
    is_asked(&mut asked);
    let mut asked_in_tls = Raw::tls(address, 6432);
    asked_in_tls.startup(V3_0, APP);
    is_asked(&mut asked_in_tls);
    let mut halfway = Raw::connect(address, 6432);
    halfway.startup(V3_0, APP);
    is_asked(&mut halfway);
    halfway.sasl_initial("SCRAM-SHA-256", b"n,,n=,r=abcdefghijkl");
    assert_eq!(halfway.message().tag, b'R');
    for mut raw in [silent, started, promised, encrypted] {
        assert_eq!(raw.rest(), b"");
    }
    for mut raw in [asked, asked_in_tls, halfway] {
        let error = raw.last_error();
        assert!(
            error
                .field(b'M')
                .unwrap()
                .contains("authentication due to timeout"),
            "{error:?}"
        );
    }
    // A byte now and then does not push it back.
    let mut slow = Raw::connect(address, 6432);
    let began = tokio::time::Instant::now();
    let packet = packet(V3_0, &[b'u'; 9000]);
    let mut sent = 0;
    while slow.try_send(&packet[sent..=sent]).is_ok() {
        sent = (sent + 1).min(packet.len() - 2);
        crate::cluster::pause(Duration::from_millis(20));
        assert!(began.elapsed() < Duration::from_secs(5), "still served");
    }
    // A session that is in is not concerned.
    let mut raw = Raw::connect(address, 6432);
    raw.startup(V3_0, APP);
    assert_eq!(raw.authenticate("app").last().unwrap().tag, b'Z');
    assert_eq!(raw.value("SELECT pg_sleep(1)::text"), "");
}

#[test]
fn max_pending_logins_makes_a_burst_wait_and_refuses_a_siege() {
    let extra = "limits: {max_pending_logins: 5}\n".to_owned();
    let router = Router::before(Cluster::shared(), Options { extra, ..options() });
    // From addresses of their own: one may not have all places.
    let fill = || -> Vec<Raw> {
        (1..=5)
            .map(|last| {
                let mut raw = Raw::connect_from(Ipv4Addr::new(127, 99, 0, last), router.address, 6432);
                raw.startup(V3_0, APP);
                is_asked(&mut raw);
                raw
            })
            .collect()
    };
    // A burst: the sixth waits, and is served when there is room.
    let mut held = fill();
    let mut waits = Raw::connect(router.address, 6432);
    waits.startup(V3_0, APP);
    waits
        .socket()
        .set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    let nothing = waits.try_message().unwrap_err();
    assert!(
        matches!(
            nothing.kind(),
            std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
        ),
        "it waits: {nothing}"
    );
    waits
        .socket()
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    held.pop();
    is_asked(&mut waits);
    drop((held, waits));
    eventually("room", Duration::from_secs(5), || {
        router.metric("trunkline_pending_logins") == 0.0
    });
    // A siege: who comes is told, on every port, and those who are in do not notice.
    let mut inside = Raw::connect(router.address, 6432);
    inside.startup(V3_0, APP);
    assert_eq!(inside.authenticate("app").last().unwrap().tag, b'Z');
    let held = fill();
    for port in [6432, 6433] {
        let mut late = Raw::connect(router.address, port);
        late.startup(V3_0, APP);
        let error = late.last_error();
        assert_eq!(error.code(), "53300");
        assert!(
            error.field(b'H').unwrap().contains("max_pending_logins"),
            "{error:?}"
        );
    }
    assert!(router.metric("trunkline_logins_refused_total{reason=\"too_many_logins\"}") >= 2.0);
    assert_eq!(inside.value("SELECT 1"), "1");
    drop(held);
    assert_eq!(router.psql(6432, "SELECT 'again'"), "again");
}

#[test]
fn max_clients_of_the_router_and_of_a_port() {
    let options = Options {
        listeners: Some(
            "  - {name: rw, address: \"{address}:6432\", route: read-write, max_clients: 2}\n  \
             - {name: ro, address: \"{address}:6433\", route: read-only}\n"
                .to_owned(),
        ),
        extra: "limits: {max_clients: 3}\n".to_owned(),
        ..Options::default()
    };
    let router = Router::before(Cluster::shared(), options);
    let log_in = |port| {
        let mut raw = Raw::connect(router.address, port);
        raw.startup(V3_0, APP);
        let all = raw.authenticate("app");
        assert_eq!(all.last().unwrap().tag, b'Z', "{all:?}");
        raw
    };
    let refused = |port| {
        let mut raw = Raw::connect(router.address, port);
        raw.startup(V3_0, APP);
        let error = raw.last_error();
        assert_eq!(error.code(), "53300");
        assert!(
            error.field(b'M').unwrap().contains("too many clients"),
            "{error:?}"
        );
        error.field(b'H').unwrap()
    };
    let (mut first, _second) = (log_in(6432), log_in(6432));
    assert!(refused(6432).contains("this listener"));
    let third = log_in(6433);
    assert!(refused(6433).contains("limits.max_clients"));
    assert_eq!(first.value("SELECT 1"), "1");
    router.await_log(&["login refused", "too many clients"]);
    drop(third);
    eventually("a place is free", Duration::from_secs(5), || {
        router.psql_output(6433, "", "SELECT 1").status.success()
    });
    drop(first);
    eventually("a place on the port is free", Duration::from_secs(5), || {
        router.psql_output(6432, "", "SELECT 1").status.success()
    });
}

/// Resident memory in KiB.
fn resident(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn an_unknown_peer_costs_little_memory() {
    const PEERS: u64 = 150;
    // They come from one address, which may have half.
    let extra = "limits: {max_pending_logins: 400}\n".to_owned();
    let router = Router::before(Cluster::shared(), Options { extra, ..options() });
    let address = router.address;
    let log_in = packet(V3_0, b"user\0app\0database\0app\0\0");
    let plain = || Raw::connect(address, 6432);
    let phases: [(&str, &dyn Fn() -> Raw); 6] = [
        ("silent", &plain),
        ("a large startup packet, all but its end", &|| {
            let mut raw = plain();
            raw.send(&packet(V3_0, &[b'x'; 9990])[..9_997]);
            raw
        }),
        ("half of a TLS handshake", &|| {
            let mut raw = plain();
            raw.send(SSL_REQUEST);
            assert_eq!(raw.byte(), b'S');
            // A record of the largest size, and of a ClientHello that is larger still.
            let mut record = vec![0x16, 3, 1, 0x40, 0, 1, 0, 0xff, 0xff];
            record.resize(16_000, 0);
            raw.send(&record);
            raw
        }),
        ("TLS, silent", &|| Raw::tls(address, 6432)),
        ("a large startup packet in TLS", &|| {
            let mut raw = Raw::tls(address, 6432);
            raw.send(&packet(V3_0, &[b'x'; 9990])[..9_997]);
            raw
        }),
        (
            "a password message of 65 535 bytes in TLS, all but its end",
            &|| {
                let mut raw = Raw::tls(address, 6432);
                raw.send(&log_in);
                is_asked(&mut raw);
                let message = message(b'p', &vec![b'x'; 65_530]);
                for part in message[..message.len() - 1].chunks(1000) {
                    raw.send(part);
                }
                raw
            },
        ),
    ];
    // What earlier phases leave behind counts as well.
    let before = resident(router.process_id());
    for (what, open) in phases {
        eventually("nobody", Duration::from_secs(10), || {
            router.metric("trunkline_pending_logins") == 0.0
        });
        let mut peers = vec![open()];
        while (peers.len() as u64) < PEERS {
            peers.push(open());
        }
        eventually("all are in", Duration::from_secs(10), || {
            router.metric("trunkline_pending_logins") == 150.0
        });
        let after = resident(router.process_id());
        let each = after.saturating_sub(before) / PEERS;
        eprintln!("{what}: {each} KiB");
        assert!(each <= 192, "{what}: {each} KiB each");
    }
}

#[test]
fn protocol_3_2_with_long_keys_end_to_end_and_direct_tls_with_postgresql_18() {
    let pair = Pair18::start();
    let router = Router::launch(
        None,
        Options {
            clusters: Some(pair.yaml()),
            ..Options::default()
        },
    );
    router.await_ready();
    for port in [6432, 6433] {
        let dsn = router.dsn(
            port,
            "sslnegotiation=direct min_protocol_version=3.2 max_protocol_version=latest",
        );
        let psql = |sql: &str| {
            let mut command = psql_18();
            command.args(["-XAtq", "-c", sql]).arg(&dsn);
            command
        };
        let expected = if port == 6432 { "18 f" } else { "18 t" };
        let asked = "SELECT current_setting('server_version_num')::int / 10000 || ' ' || left(pg_is_in_recovery()::text, 1)";
        assert_eq!(text(&output(&mut psql(asked))), expected);
        // Cancel: psql's own, on SIGINT.
        let marker = format!("cancel-me-{port}");
        let mut sleeping = psql(&format!("SELECT pg_sleep(60) /* {marker} */"));
        let child = sleeping
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let server = if port == 6432 {
            &pair.primary
        } else {
            &pair.standby
        };
        let running = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(60) /* {marker} */%' AND state = 'active' \
             AND pid <> pg_backend_pid()"
        );
        eventually("it runs", Duration::from_secs(10), || server.sql(&running) == "1");
        crate::cluster::succeed(Command::new("kill").args(["-INT", &child.id().to_string()]));
        let ended = child.wait_with_output().unwrap();
        assert!(
            text(&ended).contains("canceling statement due to user request"),
            "{}",
            text(&ended)
        );
    }
    assert!(router.metric("trunkline_cancels_total{result=\"forwarded\"}") >= 2.0);
}
