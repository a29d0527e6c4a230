//! Listeners with `mode: tcp`: TLS and logins are the server's own, and choosing the server is the
//! router's.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use bytes::BytesMut;
use trunkline::wire::message;

use super::hand::{GSS_REQUEST, Raw, SSL_REQUEST, V3_0, message as framed};
use super::raw::{Client, How, Login, PATIENCE, Stream, at, query, resident_kib, shown};
use crate::cluster::postgres::{self, Postgres, psql_18};
use crate::cluster::{Certificates, Cluster, Node, Options, Router, eventually, output};

const LISTENERS: &str = "  - {name: rw, address: \"{address}:6432\", route: read-write, mode: tcp}\n  \
                         - {name: ro, address: \"{address}:6433\", route: read-only, mode: tcp}\n";
const APP: &[(&str, &str)] = &[("user", "app"), ("database", "app")];

/// Without a certificate of its own: there is nobody to show one to.
fn options(listeners: &str, extra: &str) -> Options {
    Options {
        listeners: Some(listeners.to_owned()),
        tls: Some(String::new()),
        extra: extra.to_owned(),
        ..Options::default()
    }
}

fn forwarding() -> Router {
    Router::before(Cluster::shared(), options(LISTENERS, ""))
}

/// Before one server that leads; nobody is there to read from.
fn before_one(server: &Postgres, listeners: &str, extra: &str) -> Router {
    let options = Options {
        clusters: Some(server.yaml()),
        ..options(listeners, extra)
    };
    let router = Router::launch(None, options);
    router.await_read_write();
    router
}

fn says(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat())
        .trim()
        .to_owned()
}

fn refused(router: &Router, reason: &str) -> f64 {
    router.metric(&format!("trunkline_logins_refused_total{{reason=\"{reason}\"}}"))
}

#[test]
fn tls_and_scram_are_between_the_client_and_the_server() {
    let (cluster, router) = (Cluster::shared(), forwarding());
    let sql = "SELECT ssl, pg_is_in_recovery() FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    // The servers' certificate, which the router does not have.
    let ca = cluster.text("ca_file");
    let verified = format!(
        "sslmode=verify-full sslrootcert={ca} host=node1 hostaddr={}",
        router.address
    );
    let bound = format!("{verified} channel_binding=require");
    let ways = [
        ("sslmode=disable", "f"),
        ("sslmode=prefer", "t"),
        ("sslmode=require", "t"),
        (&verified, "t"),
        (&bound, "t"),
    ];
    for (how, is_tls) in ways {
        for (port, is_standby) in [(6432, "f"), (6433, "t")] {
            let done = router.psql_output(port, how, sql);
            assert_eq!(says(&done), format!("{is_tls}|{is_standby}"), "{how} on {port}");
        }
    }
    let stranger = Certificates::shared().file("ca.crt");
    let wrong = format!("{verified} sslrootcert={}", stranger.display());
    assert!(says(&router.psql_output(6432, &wrong, sql)).contains("certificate verify failed"));
    let denied = router.psql_output(6432, "password=wrong", sql);
    assert!(
        says(&denied).contains("password authentication failed"),
        "{}",
        says(&denied)
    );

    let line = router.await_log(&[
        "session ended",
        "listener=rw",
        "cause=client closed the connection",
    ]);
    let leader = format!("member={}", cluster.leader());
    for part in [
        leader.as_str(),
        "mode=\"tcp\"",
        "route=read-write",
        "access=read-write",
    ] {
        assert!(line.contains(part), "{part}: {line}");
    }
    assert!(
        !line.contains("bytes_up=0 ") && !line.contains("bytes_down=0 "),
        "{line}"
    );
    router.await_log(&["session ended", "listener=ro", "access=read-only"]);
    assert!(router.metric("trunkline_client_bytes_sent_total") > 1000.0);
}

#[test]
fn direct_tls_of_postgresql_18_comes_through() {
    let server = Postgres::start(&postgres::Options {
        version_18: true,
        ..postgres::Options::default()
    });
    let router = before_one(&server, LISTENERS, "");
    let dsn = router.dsn(
        6432,
        &format!(
            "host=server.example hostaddr={} sslmode=verify-full sslnegotiation=direct channel_binding=require sslrootcert={}",
            router.address,
            server.certificates.file("ca.crt").display()
        ),
    );
    let sql = "SELECT ssl, current_setting('server_version_num')::int / 10000 FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    let done = output(psql_18().args(["-XAtqc", sql, &dsn]));
    assert_eq!(says(&done), "t|18");
}

#[test]
fn a_unix_socket_forwards_too() {
    let dir = tempfile::tempdir().unwrap();
    let socket = format!(
        "  - {{name: local, address: {}/.s.PGSQL.6432, route: read-write, mode: tcp}}\n",
        dir.path().display()
    );
    let router = Router::before(Cluster::shared(), options(&format!("{LISTENERS}{socket}"), ""));
    let host = format!("host={}", dir.path().display());
    let done = router.psql_output(6432, &format!("{host} sslmode=disable"), "SELECT 1");
    assert_eq!(says(&done), "1");
    router.await_log(&["session ended", "listener=local", "mode=\"tcp\""]);
}

#[test]
fn a_base_backup_comes_through_both_ports() {
    let router = forwarding();
    let program = |name: &str| Command::new(Path::new(Cluster::shared().text("bindir")).join(name));
    for (port, from) in [(6432, "primary"), (6433, "standby")] {
        let into = tempfile::tempdir().unwrap();
        let dsn = router.dsn(port, "user=app_repl password=app_repl");
        let done = output(
            program("pg_basebackup")
                .args(["-X", "stream", "-c", "fast", "--no-sync", "-d", &dsn, "-D"])
                .arg(into.path()),
        );
        assert!(done.status.success(), "{}", says(&done));
        let label = std::fs::read_to_string(into.path().join("backup_label")).unwrap();
        assert!(label.contains(&format!("BACKUP FROM: {from}")), "{label}");
        let whole = output(program("pg_verifybackup").arg(into.path()));
        assert!(whole.status.success(), "{}", says(&whole));
    }
}

#[test]
fn much_goes_both_ways_and_arrives_whole() {
    let router = forwarding();
    let rows = "SELECT n, repeat(md5(n::text), 30) FROM generate_series(1, 40000) AS n";
    let sum = "SELECT count(*), sum(hashtext(n || t)::bigint)";
    let direct = router.psql(6432, &format!("{sum} FROM ({rows}) AS x(n, t)"));
    let copied = output(
        Command::new("psql")
            .args(["-XAtq", "-c", &format!("COPY ({rows}) TO STDOUT")])
            .arg(router.dsn(6433, "")),
    );
    assert!(copied.stdout.len() > 38_000_000, "{}", copied.stdout.len());
    let mut into = Command::new("psql")
        .args(["-XAtq", "-v", "ON_ERROR_STOP=1"])
        .args([
            "-c",
            "CREATE TEMP TABLE x (n int, t text)",
            "-c",
            "COPY x FROM STDIN",
        ])
        .args(["-c", &format!("{sum} FROM x")])
        .arg(router.dsn(6432, ""))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    into.stdin.take().unwrap().write_all(&copied.stdout).unwrap();
    let done = into.wait_with_output().unwrap();
    assert_eq!(says(&done), direct);
}

/// Waits until the client's server does what is asked for in `pg_stat_activity`.
fn await_activity(client: &Client, server: &Node, column: &str, value: &str) {
    let sql = format!(
        "SELECT {column} FROM pg_stat_activity WHERE pid = {}",
        client.process_id
    );
    eventually(value, PATIENCE, || server.sql(&sql) == value);
}

#[test]
fn a_client_that_does_not_read_holds_up_its_server_and_nobody_else() {
    let (cluster, router) = (Cluster::shared(), forwarding());
    let leader = cluster.node(&cluster.leader());
    let mut slow = Client::new(&router);
    let before = resident_kib(router.process_id());
    slow.send(&query("SELECT repeat('x', 1000000) FROM generate_series(1, 100)"));
    await_activity(&slow, &leader, "wait_event", "ClientWrite");
    assert_eq!(router.psql(6432, "SELECT 1"), "1");
    let grown = resident_kib(router.process_id()).saturating_sub(before);
    assert!(grown < 8192, "{grown} KiB");
    let rows = slow.ready().iter().filter(|frame| frame.tag == b'D').count();
    assert_eq!(rows, 100);
}

#[test]
fn a_client_that_has_no_more_to_say_is_still_answered() {
    let router = forwarding();
    let mut client = Client::new(&router);
    client.send(&query("SELECT 'late' FROM pg_sleep(0.3)"));
    client.half_close();
    assert_eq!(shown(&client.rest()), ["T", "D", "CSELECT 1", "ZI"]);
    router.await_log(&["session ended", "cause=client closed the connection"]);
    let sessions = || {
        let member = Cluster::shared().leader();
        router.metric(&format!(
            "trunkline_sessions{{route=\"read-write\",member=\"{member}\"}}"
        ))
    };
    eventually("nothing is left", PATIENCE, || sessions() == 0.0);
}

fn cancel(router: &Router, port: u16, of: &Client) {
    let mut stream = Stream::connect(at(router, port), How::Plain);
    let mut out = BytesMut::new();
    message::cancel_request(&mut out, of.process_id, &of.key);
    stream.write_all(&out).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert!(answer.is_empty(), "{answer:?}");
}

#[test]
fn a_cancel_in_clear_reaches_the_right_one_of_two_replicas() {
    let (cluster, router) = (Cluster::shared(), forwarding());
    router.await_replicas(cluster);
    let mut clients: Vec<(Client, Node)> = Vec::new();
    for _ in 0..2 {
        let mut client = Client::login(at(&router, 6433), Login::default());
        let address = client.value("SELECT host(inet_server_addr())");
        let on = cluster.nodes().into_iter().find(|node| node.address == address);
        clients.push((client, on.unwrap()));
    }
    assert_ne!(clients[0].1.name, clients[1].1.name, "one on each");
    for (client, node) in &mut clients {
        // The server's own key: it works there, too.
        client.send(&query("SELECT pg_sleep(60)"));
        await_activity(client, node, "state", "active");
    }
    cancel(&router, 6433, &clients[1].0);
    let end = shown(&clients[1].0.ready());
    assert_eq!(&end[end.len() - 2..], ["E57014 ERROR", "ZI"], "{end:?}");
    await_activity(&clients[0].0, &clients[0].1, "state", "active");
    cancel(&router, 6433, &clients[0].0);
    let end = shown(&clients[0].0.ready());
    assert_eq!(&end[end.len() - 2..], ["E57014 ERROR", "ZI"], "{end:?}");
    assert!(router.metric("trunkline_cancels_total{result=\"forwarded\"}") >= 2.0);
    for (client, _) in &mut clients {
        assert_eq!(client.value("SELECT 1"), "1");
    }
}

#[test]
fn with_nobody_to_serve_it_a_client_is_told_so() {
    let server = Postgres::start(&postgres::Options::default());
    let router = before_one(&server, LISTENERS, "");
    for requests in [&[][..], &[SSL_REQUEST], &[GSS_REQUEST, SSL_REQUEST]] {
        let mut client = Raw::connect(router.address, 6433);
        for request in requests {
            client.send(request);
            assert_eq!(client.byte(), b'N');
        }
        client.startup(V3_0, APP);
        let error = client.last_error();
        assert_eq!(error.code(), "57P03");
        let text = error.field(b'M').unwrap();
        assert!(
            text.contains("no replica accepts read-only sessions now"),
            "{text}"
        );
    }
    // A check of HAProxy's `option pgsql-check` has a user only, and takes an error for what it is.
    let mut check = Raw::connect(router.address, 6433);
    check.startup(V3_0, &[("user", "checkuser")]);
    assert_eq!(check.last_error().code(), "57P03");
    let done = router.psql_output(6433, "sslmode=prefer", "SELECT 1");
    assert!(
        says(&done).contains("no replica accepts read-only sessions now"),
        "{}",
        says(&done)
    );
    let done = router.psql_output(6433, "sslmode=require", "SELECT 1");
    assert!(
        says(&done).contains("server does not support SSL"),
        "{}",
        says(&done)
    );
    // Direct TLS cannot be answered.
    let mut direct = Raw::connect(router.address, 6433);
    direct.send(&[0x16, 3, 1, 0, 1, 1]);
    assert_eq!(direct.rest(), b"");
    assert!(refused(&router, "unavailable") >= 7.0);
}

#[test]
fn max_clients_bounds_connections_and_not_cancels() {
    let server = Postgres::start(&postgres::Options::default());
    let listeners =
        "  - {name: rw, address: \"{address}:6432\", route: read-write, mode: tcp, max_clients: 1}\n";
    let router = before_one(&server, listeners, "");
    let mut client = Client::new(&router);
    let mut second = Raw::connect(router.address, 6432);
    second.send(SSL_REQUEST);
    assert_eq!(second.byte(), b'N');
    second.startup(V3_0, APP);
    let error = second.last_error();
    assert_eq!(error.code(), "53300");
    assert_eq!(error.field(b'M').unwrap(), "sorry, too many clients already");
    assert_eq!(refused(&router, "too_many"), 1.0);
    client.send(&query("SELECT pg_sleep(60)"));
    eventually("it runs", PATIENCE, || {
        let state = format!(
            "SELECT state FROM pg_stat_activity WHERE pid = {}",
            client.process_id
        );
        server.sql(&state) == "active"
    });
    cancel(&router, 6432, &client);
    let end = shown(&client.ready());
    assert_eq!(&end[end.len() - 2..], ["E57014 ERROR", "ZI"], "{end:?}");
    drop(client);
    eventually("there is a place again", PATIENCE, || {
        router.psql_output(6432, "", "SELECT 1").status.success()
    });
}

#[test]
fn who_does_not_speak_postgresql_never_reaches_a_server() {
    let server = Postgres::start(&postgres::Options::default());
    let router = before_one(&server, LISTENERS, "auth: {login_timeout: 1s}\n");
    for junk in [
        &b"GET / HTTP/1.0\r\n\r\n"[..],
        &[0, 0, 0, 4, 0, 0, 0, 0],
        &[0xff; 64],
    ] {
        let mut client = Raw::connect(router.address, 6432);
        client.send(junk);
        assert_eq!(client.rest(), b"");
    }
    // A request of a router for its peers, whose body no server may see.
    let mut peer = Raw::connect(router.address, 6432);
    peer.send(&[0, 0, 0, 12, 0x54, 0x52, 0x4b, 0x4c, 1, 2, 3, 4]);
    assert_eq!(peer.rest(), b"");
    // Who says nothing, or not enough, does so for `login_timeout`.
    for dribble in [&b""[..], &[0, 0, 0], &[0, 0, 0, 8, 4, 0xd2]] {
        let mut client = Raw::connect(router.address, 6432);
        client.send(dribble);
        assert_eq!(client.rest(), b"");
    }
    assert_eq!(refused(&router, "timeout"), 3.0);
    let strangers = server
        .log()
        .lines()
        .filter(|line| line.contains("invalid length") || line.contains("unsupported frontend"))
        .count();
    assert_eq!(strangers, 0, "{}", server.log());
}

#[test]
fn a_startup_packet_in_pieces_is_put_together() {
    let router = forwarding();
    let mut client = Raw::connect(router.address, 6432);
    let mut packet = BytesMut::new();
    let parameters: [(&[u8], &[u8]); 2] = [(b"user", b"app"), (b"database", b"app")];
    message::startup(
        &mut packet,
        trunkline::wire::startup::ProtocolVersion::V3_0,
        &parameters,
    );
    for byte in &packet {
        client.send(&[*byte]);
    }
    client.authenticate("app");
    assert_eq!(client.value("SELECT 42"), "42");
    client.send(&framed(b'X', b""));
    assert_eq!(client.rest(), b"");
}

#[test]
fn a_server_that_stops_ends_its_connections() {
    let server = Postgres::start(&postgres::Options::default());
    let router = before_one(&server, LISTENERS, "");
    let mut client = Client::new(&router);
    server.stop();
    assert_eq!(shown(&client.rest()), ["E57P01 FATAL"], "the server's own word");
    router.await_log(&["session ended", "cause=server closed the connection"]);
    let label = "trunkline_sessions_ended_total{route=\"read-write\",cause=\"server_closed\"}";
    assert_eq!(router.metric(label), 1.0);
}

#[test]
fn a_shutdown_cuts_connections_when_its_grace_is_over() {
    let mut router = Router::before(Cluster::shared(), options(LISTENERS, "shutdown: {grace: 1s}\n"));
    let mut client = Client::new(&router);
    router.signal("TERM");
    router.await_log(&["cutting the remaining sessions"]);
    assert!(client.next().is_none(), "nothing is said");
    assert_eq!(router.await_exit(Duration::from_secs(10)), 0);
    assert!(router.log().contains("cause=shutdown"));
}

/// What bounds other sessions bounds these as well: the address, how many it may have, and the
/// servers' places.
#[test]
fn limits_hold_for_forwarded_connections() {
    let server = Postgres::start(&postgres::Options::default());
    let listeners = "  - {name: rw, address: \"{address}:6432\", route: read-write, mode: tcp}\n  \
                     - {name: closed, address: \"{address}:6433\", route: read-write, mode: tcp, deny: [127.0.0.0/8]}\n";
    let ask = |router: &Router, port| {
        let mut raw = Raw::connect(router.address, port);
        raw.startup(V3_0, APP);
        raw.last_error()
    };
    let router = before_one(&server, listeners, "limits: {per_address: 1}\n");
    let denied = ask(&router, 6433);
    assert_eq!(denied.code(), "28000");
    assert_eq!(
        denied.field(b'M').unwrap(),
        "this address may not connect to this port of the router"
    );
    assert_eq!(refused(&router, "address_denied"), 1.0);
    let first = Client::new(&router);
    assert_eq!(ask(&router, 6432).code(), "53300");
    assert_eq!(refused(&router, "per_address"), 1.0);
    drop((first, router));

    let options = Options {
        clusters: Some(format!("{}    server: {{max_connections: 1}}\n", server.yaml())),
        ..options(
            listeners,
            "routes:\n  read-write: {targets: [leader], max_queue: 1, queue_timeout: 1m}\n",
        )
    };
    let router = Router::launch(None, options);
    router.await_read_write();
    let first = Client::new(&router);
    let mut waits = Raw::connect(router.address, 6432);
    waits.startup(V3_0, APP);
    eventually("it waits", PATIENCE, || {
        router.metric("trunkline_queue_length{route=\"read-write\"}") == 1.0
    });
    assert_eq!(ask(&router, 6432).code(), "53300");
    assert_eq!(refused(&router, "queue_full"), 1.0);
    drop(first);
    assert_eq!(waits.message().tag, b'R', "the server answers in its turn");
}

/// Behind a balancer the client is whom its header names.
#[test]
fn a_balancers_header_says_who_it_is() {
    let server = Postgres::start(&postgres::Options::default());
    let listeners = "  - {name: rw, address: \"{address}:6432\", route: read-write, mode: tcp, deny: [10.1.2.0/24],\n     \
                     proxy_protocol: {trusted: [127.0.0.0/8]}}\n";
    let router = before_one(&server, listeners, "");
    let knock = |client: &str| {
        let mut raw = Raw::connect(router.address, 6432);
        raw.send(format!("PROXY TCP4 {client} 10.0.0.1 5555 6432\r\n").as_bytes());
        raw.startup(V3_0, APP);
        raw
    };
    assert_eq!(knock("10.1.2.3").last_error().code(), "28000");
    router.await_log(&[
        "connection refused",
        "client=10.1.2.3:5555",
        "via=127.0.0.1",
        "mode=\"tcp\"",
    ]);
    let mut served = knock("10.1.3.3");
    assert_eq!(served.message().tag, b'R');
    drop(served);
    router.await_log(&[
        "session ended",
        "client=10.1.3.3:5555",
        "via=127.0.0.1",
        "mode=\"tcp\"",
    ]);
}
