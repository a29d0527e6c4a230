//! Balancers that say for whom they connect, by the PROXY protocol.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use super::checks::HaProxy;
use super::fake::{Fake, Session};
use super::hand::{Message, Raw, V3_0, startup};
use super::limits::before;
use crate::cluster::{Cluster, Options, Router, eventually, fresh_address, output};

/// Where balancers are.
const BALANCER: Ipv4Addr = Ipv4Addr::new(127, 96, 0, 1);
const TRUSTED: &str = "proxy_protocol: {trusted: [127.96.0.0/24]}";
const PATIENCE: Duration = Duration::from_secs(20);

fn listener(keys: &str) -> String {
    format!("  - {{name: rw, address: \"{{address}}:6432\", route: read-write, {keys}}}\n")
}

fn line(client: &str) -> Vec<u8> {
    let (address, port) = client.rsplit_once(':').unwrap();
    format!("PROXY TCP4 {address} 127.0.0.1 {port} 6432\r\n").into_bytes()
}

fn binary(client: SocketAddr) -> Vec<u8> {
    let SocketAddr::V4(client) = client else { panic!() };
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
    header.extend(client.ip().octets());
    header.extend([127, 0, 0, 1]);
    header.extend(client.port().to_be_bytes());
    header.extend(6432_u16.to_be_bytes());
    header
}

fn knock(router: &Router, header: &[u8]) -> Raw {
    let mut raw = Raw::connect_from(BALANCER, router.address, 6432);
    raw.send(header);
    raw.startup(V3_0, &[("user", "app"), ("database", "app")]);
    raw
}

#[track_caller]
fn serves(mut raw: Raw) {
    let last = raw.authenticate("app").pop().unwrap();
    assert_eq!(last.tag, b'Z', "{last:?}");
    assert_eq!(raw.value("SELECT 1"), "1");
}

#[track_caller]
fn is_refused(answer: &Message, code: &str, text: &str) {
    assert_eq!((answer.tag, answer.code()), (b'E', code.to_owned()), "{answer:?}");
    let told = answer.field(b'M').unwrap();
    assert!(told.contains(text), "{told}");
}

#[test]
fn the_headers_address_is_the_clients() {
    let server = Fake::start(Session::answer_all);
    let dir = tempfile::tempdir().unwrap();
    let hba = dir.path().join("hba");
    std::fs::write(
        &hba,
        "host all all 192.0.2.8/32 reject\nhost all all 127.96.0.0/24 reject\nhost all all all scram-sha-256\n",
    )
    .unwrap();
    let users = crate::cluster::secret(
        dir.path(),
        "users",
        &format!("\"app\" \"{}\"", super::fake::cheap_verifier()),
    );
    let clusters = format!(
        "clusters:\n  main:\n    servers: [{{name: one, host: \"{}\", port: {}}}]\n    \
         service_account: {{user: trunkline, dbname: postgres}}\n    server_tls: {{sslmode: disable}}\n",
        server.address.ip(),
        server.address.port()
    );
    let router = Router::launch(
        None,
        Options {
            clusters: Some(clusters),
            listeners: Some(listener(&format!("{TRUSTED}, deny: [192.0.2.66]"))),
            extra: format!(
                "auth: {{users_file: {}, hba_file: {}}}\nlimits: {{per_address: 1}}\n",
                users.display(),
                hba.display()
            ),
            ..Options::default()
        },
    );
    super::fake::await_leader(&router);
    serves(knock(&router, &line("192.0.2.7:4660")));
    router.await_log(&["session ended", "client=192.0.2.7:4660 via=127.96.0.1:", "cause="]);
    // In pieces of a byte, the startup packet among them.
    let header = binary("192.0.2.9:4661".parse().unwrap());
    let packet = startup(V3_0, &[(b"user", b"app"), (b"database", b"app")]);
    let mut raw = Raw::connect_from(BALANCER, router.address, 6432);
    for byte in header.iter().chain(&packet) {
        raw.send(&[*byte]);
    }
    serves(raw);
    router.await_log(&["session ended", "client=192.0.2.9:4661 via=127.96.0.1:"]);
    // Rules, denied addresses and limits are the client's, not the balancer's.
    is_refused(
        &knock(&router, &line("192.0.2.8:1")).message(),
        "28000",
        "pg_hba.conf rejects connection",
    );
    is_refused(
        &knock(&router, &line("192.0.2.66:1")).message(),
        "28000",
        "may not connect",
    );
    let mut held = knock(&router, &line("192.0.2.10:1"));
    assert_eq!(held.authenticate("app").pop().unwrap().tag, b'Z');
    is_refused(
        &knock(&router, &line("192.0.2.10:2"))
            .authenticate("app")
            .pop()
            .unwrap(),
        "53300",
        "from this address",
    );
    serves(knock(&router, &line("192.0.2.11:1")));
    router.await_log(&["login refused", "client=192.0.2.66:1 via=127.96.0.1:"]);
    // Without an address in it, the balancer is the client; a rule rejects that.
    for header in [&b"PROXY UNKNOWN\r\n"[..], b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"] {
        is_refused(
            &knock(&router, header).message(),
            "28000",
            "rejects connection for host \"127.96.0.1\"",
        );
    }
    // Inside is everything as it is: TLS begins behind the header.
    let mut raw = Raw::connect_from(BALANCER, router.address, 6432);
    raw.send(&line("192.0.2.12:1"));
    raw.send(&[0, 0, 0, 8, 4, 210, 22, 47]);
    assert_eq!(raw.byte(), b'S');
    let mut raw = raw.handshake(&[b"postgresql"]).unwrap();
    raw.startup(V3_0, &[("user", "app"), ("database", "app")]);
    serves(raw);
    router.await_log(&["session ended", "client=192.0.2.12:1 via=", "tls=\"TLSv1.3\""]);
}

#[test]
fn nobody_else_says_who_he_is() {
    let server = Fake::start(Session::answer_all);
    let options = |keys: &str| Options {
        listeners: Some(listener(keys)),
        ..Options::default()
    };
    let router = before(&server, "", options(TRUSTED));
    // From a balancer without a header, or with a bad one.
    for bad in [
        &b""[..],
        b"PROXY TCP4 nowhere\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x01x",
    ] {
        let mut raw = knock(&router, bad);
        is_refused(&raw.message(), "08P01", "PROXY protocol header");
    }
    let count = || router.metric("trunkline_logins_refused_total{reason=\"proxy_header\"}");
    assert_eq!(count(), 4.0);
    router.await_log(&[
        "WARN",
        "connection refused",
        "client=127.96.0.1:",
        "no PROXY protocol header",
    ]);
    // One that hangs up is no news.
    drop(Raw::connect_from(BALANCER, router.address, 6432));
    // Others are clients, and their headers rubbish; the operator is told what it is.
    let other = Ipv4Addr::new(127, 95, 0, 1);
    let mut raw = Raw::connect_from(other, router.address, 6432);
    raw.startup(V3_0, &[("user", "app"), ("database", "app")]);
    serves(raw);
    let mut raw = Raw::connect_from(other, router.address, 6432);
    raw.send(&line("192.0.2.7:4660"));
    raw.half_close();
    let _ = raw.rest();
    router.await_log(&[
        "WARN",
        "connection refused",
        "client=127.95.0.1:",
        "proxy_protocol.trusted",
    ]);
    assert!(!router.log().contains("192.0.2.7"), "{}", router.log());
    assert_eq!(count(), 4.0);
    let others = router.metric("trunkline_logins_refused_total{reason=\"opening\"}");
    assert_eq!(others, 1.0);

    let router = before(
        &server,
        "",
        options("proxy_protocol: {trusted: [127.96.0.0/24], required: true}"),
    );
    let mut raw = Raw::connect_from(other, router.address, 6432);
    raw.startup(V3_0, &[("user", "app"), ("database", "app")]);
    is_refused(
        &raw.message(),
        "28000",
        "accepts connections from its balancer only",
    );
    assert_eq!(
        router.metric("trunkline_logins_refused_total{reason=\"proxy_required\"}"),
        1.0
    );
    serves(knock(&router, &line("192.0.2.7:4660")));
}

#[test]
fn a_balancers_clients_share_the_places_as_if_it_were_not_there() {
    let server = Fake::start(Session::answer_all);
    let router = before(
        &server,
        "",
        Options {
            listeners: Some(listener(TRUSTED)),
            extra: "limits: {max_pending_logins: 8}\n".to_owned(),
            ..Options::default()
        },
    );
    let ask = |client: &str| {
        let mut raw = knock(&router, &line(client));
        let answer = raw.message();
        (raw, answer)
    };
    // One client has half of the places, and others get the rest.
    let mut held: Vec<Raw> = Vec::new();
    for number in 1..=4 {
        let (raw, answer) = ask(&format!("192.0.2.1:{number}"));
        assert_eq!(answer.tag, b'R', "{answer:?}");
        held.push(raw);
    }
    let (_raw, answer) = ask("192.0.2.1:5");
    is_refused(&answer, "53300", "too many connections from this address");
    for number in 2..=4 {
        let (raw, answer) = ask(&format!("192.0.2.{number}:1"));
        assert_eq!(answer.tag, b'R', "{answer:?}");
        held.push(raw);
    }
    assert_eq!(
        router.metric("trunkline_logins_refused_total{reason=\"too_many_logins_address\"}"),
        1.0
    );
    drop(held);
    eventually("all places are free", PATIENCE, || {
        router.metric("trunkline_pending_logins") == 0.0
    });
}

#[test]
fn haproxy_sends_headers_of_both_versions_and_in_its_checks() {
    let trusted = "proxy_protocol: {trusted: [127.96.0.1], required: true}";
    let router = Router::before(
        Cluster::shared(),
        Options {
            listeners: Some(format!(
                "  - {{name: rw, address: \"{{address}}:6432\", route: read-write, {trusted}}}\n  \
                 - {{name: ro, address: \"{{address}}:6433\", route: read-only}}\n"
            )),
            http: ", proxy_protocol: {trusted: [127.96.0.1]}".to_owned(),
            ..Options::default()
        },
    );
    let front = fresh_address();
    let section = |name: &str, port: u16, keys: &str| {
        format!(
            "listen {name}\n  bind {front}:{port}\n  source {BALANCER}\n  option pgsql-check user checkuser\n  \
             server one {}:6432 check {keys}\n",
            router.address
        )
    };
    let haproxy = HaProxy::start(&format!(
        "{}{}{}{}backend http\n  source {BALANCER}\n  option httpchk GET /connection/is-ready\n  \
         server one {address}:6432 check port 6434 check-send-proxy\n\
         backend http-bare\n  source {BALANCER}\n  option httpchk GET /connection/is-ready\n  \
         server one {address}:6432 check port 6434\n",
        section("v1", 7001, "send-proxy"),
        section(
            "v2",
            7002,
            "send-proxy-v2 proxy-v2-options crc32c,unique-id,authority"
        ),
        section("v2-ssl", 7003, "send-proxy-v2-ssl-cn check-send-proxy"),
        section("bare", 7004, ""),
        address = router.address
    ));
    haproxy.await_states(&[
        ("v1/one", "UP"),
        ("v2/one", "UP"),
        ("v2-ssl/one", "UP"),
        ("bare/one", "DOWN"),
        ("http/one", "UP"),
        ("http-bare/one", "DOWN"),
    ]);
    for (port, client) in [(7001, "127.94.0.1"), (7002, "127.94.0.2"), (7003, "127.94.0.3")] {
        // psql does not choose its address.
        let mut raw = Raw::connect_from(client.parse().unwrap(), front, port);
        raw.startup(V3_0, &[("user", "app"), ("database", "app")]);
        serves_cluster(raw, client);
        router.await_log(&["session ended", &format!("client={client}:"), "via=127.96.0.1:"]);
        let dsn = format!("host={front} port={port} user=app password=app dbname=app sslmode=require");
        let psql = output(
            Command::new("psql")
                .args(["-XAtqc", "SELECT current_setting('trunkline.client_addr')"])
                .arg(dsn),
        );
        let errors = String::from_utf8_lossy(&psql.stderr).into_owned();
        assert_eq!(
            String::from_utf8_lossy(&psql.stdout).trim(),
            "127.0.0.1",
            "{errors}"
        );
    }
}

#[track_caller]
fn serves_cluster(mut raw: Raw, client: &str) {
    let last = raw.authenticate("app").pop().unwrap();
    assert_eq!(last.tag, b'Z', "{last:?}");
    assert_eq!(
        raw.value("SELECT current_setting('trunkline.client_addr')"),
        client
    );
}

#[test]
fn http_callers_are_who_the_balancer_says() {
    let server = Fake::start(Session::answer_all);
    let router = before(
        &server,
        "",
        Options {
            http: format!(", {TRUSTED}"),
            ..Options::default()
        },
    );
    let ask = |header: &[u8]| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((BALANCER, 0)).into()).unwrap();
        socket
            .connect(&SocketAddr::from((router.address, 6434)).into())
            .unwrap();
        let mut stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let _ = stream.write_all(&[header, b"GET /api/v1/hba HTTP/1.0\r\n\r\n"].concat());
        let mut text = String::new();
        let _ = stream.read_to_string(&mut text);
        text.split(' ').nth(1).unwrap_or_default().to_owned()
    };
    // Answered to callers on this host only.
    assert_eq!(ask(&line("192.0.2.7:1")), "403");
    for unnamed in [&b"PROXY UNKNOWN\r\n"[..], b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"] {
        assert_eq!(ask(unnamed), "403", "it may be anybody behind the balancer");
    }
    assert_eq!(ask(&binary("127.0.0.1:1".parse().unwrap())), "200");
    assert_eq!(ask(b""), "", "no header: the connection is closed");
    assert_eq!(router.http("/api/v1/hba").unwrap().0, 200);
}
