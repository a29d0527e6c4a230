//! What a reload does to listeners: where they are, how they are spoken to, and who may speak for
//! whom.

use std::fs;
use std::net::{Ipv4Addr, TcpListener, TcpStream};

use super::hand::{Raw, V3_0};
use super::reload::{SOON, Session, Subject};
use crate::cluster::eventually;
use crate::cluster::postgres::{self, Postgres};

/// Ports that nobody else has on any address: of a listener, and of HTTP.
const PORT: u16 = 26431;
const HTTP_PORT: u16 = 26434;

/// `usual` with its listener and HTTP at `host`, and ports of their own.
fn at(usual: &str, own: Ipv4Addr, host: &str) -> String {
    let moved = usual
        .replace(&format!("\"{own}:6432\""), &format!("\"{host}:{PORT}\""))
        .replace(&format!("\"{own}:6434\""), &format!("\"{host}:{HTTP_PORT}\""));
    assert!(
        moved.contains(&PORT.to_string()) && moved.contains(&HTTP_PORT.to_string()),
        "{moved}"
    );
    moved
}

#[test]
fn a_listener_moves_to_a_part_of_its_own_address_and_back() {
    let server = Postgres::start(&postgres::Options::default());
    let subject = Subject::before(&server);
    let (router, usual) = (&subject.router, &subject.usual);
    let own = router.address;
    let elsewhere = Ipv4Addr::new(127, 93, 0, 1);
    let answers = |address: Ipv4Addr, port: u16| TcpStream::connect((address, port)).is_ok();
    let everywhere = at(usual, own, "*");
    let here = at(usual, own, &own.to_string());

    subject.takes(&everywhere);
    assert!(subject.enters(PORT) && answers(elsewhere, PORT) && answers(elsewhere, HTTP_PORT));
    let mut session = Session::open(router, PORT);
    for _ in 0..2 {
        subject.takes(&here);
        assert!(subject.enters(PORT) && answers(own, HTTP_PORT));
        eventually("others are closed", SOON, || {
            !answers(elsewhere, PORT) && !answers(elsewhere, HTTP_PORT)
        });
        subject.takes(&everywhere);
        assert!(subject.enters(PORT) && answers(elsewhere, PORT) && answers(elsewhere, HTTP_PORT));
    }
    session.goes_on();

    // Another program has a part of it: nothing changes.
    subject.takes(&here);
    eventually("others are closed", SOON, || !answers(elsewhere, PORT));
    for port in [PORT, HTTP_PORT] {
        let taken = TcpListener::bind((elsewhere, port)).unwrap();
        let told = subject.refuses(&everywhere);
        assert!(told.contains("in use by another program"), "{told}");
        assert!(subject.enters(PORT) && answers(own, HTTP_PORT));
        drop(taken);
    }
    // And nobody else comes in beside it.
    assert!(TcpListener::bind((own, PORT)).is_err());
    subject.takes(&everywhere);

    // From one use to the other.
    let exchanged = everywhere
        .replace(&PORT.to_string(), "SOON")
        .replace(&HTTP_PORT.to_string(), &PORT.to_string())
        .replace("SOON", &HTTP_PORT.to_string());
    let told = subject.refuses(&exchanged);
    assert!(
        told.contains("for HTTP or the agent check") && told.contains("listener rw of this process"),
        "{told}"
    );
    assert!(subject.enters(PORT) && answers(elsewhere, HTTP_PORT));
    session.goes_on();
}

/// By the header, 192.0.2.7.
fn announced(address: Ipv4Addr) -> Raw {
    let mut raw = Raw::connect(address, 6432);
    raw.send(b"PROXY TCP4 192.0.2.7 127.0.0.1 4660 6432\r\n");
    raw.startup(V3_0, &[("user", "app"), ("database", "app")]);
    raw
}

#[test]
fn proxy_protocol_and_mode_count_for_connections_to_come() {
    let server = Postgres::start(&postgres::Options {
        hba: Some("host all all 0.0.0.0/0 scram-sha-256".to_owned()),
        ..postgres::Options::default()
    });
    let subject = Subject::before(&server);
    let (router, usual) = (&subject.router, &subject.usual);
    let mut session = Session::open(router, 6432);
    let with = |keys: &str| {
        let text = usual.replace("route: read-write}", &format!("route: read-write, {keys}}}"));
        assert_ne!(text, *usual);
        text
    };

    assert!(
        announced(router.address).try_message().is_err(),
        "it is rubbish yet"
    );
    let told = subject.takes(&with("proxy_protocol: {trusted: [127.0.0.0/8]}"));
    assert!(told.contains("changed: listeners.rw\n"), "{told}");
    let answers = announced(router.address).authenticate("app");
    assert_eq!(answers.last().unwrap().tag, b'Z');
    router.await_log(&["session ended", "client=192.0.2.7:4660 via=127."]);
    assert!(!subject.enters(6432), "one without a header");
    session.goes_on();
    subject.takes(usual);
    assert!(subject.enters(6432));

    // The server's own certificate is seen through a listener that forwards, and the router's
    // otherwise.
    let sees_server = || {
        let root = server.certificates.file("ca.crt");
        let keys = format!("sslmode=verify-ca sslrootcert={}", root.display());
        router.psql_output(6432, &keys, "SELECT 1").stdout == b"1\n"
    };
    assert!(!sees_server());
    let told = subject.takes(&with("mode: tcp"));
    assert!(told.contains("changed: listeners.rw\n"), "{told}");
    assert!(sees_server());
    let mut forwarded = Session::open(router, 6432);
    session.goes_on();
    subject.takes(usual);
    assert!(!sees_server() && subject.enters(6432));
    forwarded.goes_on();
    session.goes_on();
}

#[test]
fn a_unix_sockets_mode_is_not_changed_in_passing() {
    let server = Postgres::start(&postgres::Options::default());
    let subject = Subject::before(&server);
    let usual = &subject.usual;
    let path = subject.router.dir().join(".s.PGSQL.6432");
    let with = |mode: &str| {
        usual.replace(
            "listeners:\n",
            &format!(
                "listeners:\n  - {{name: local, address: {}, socket_mode: \"{mode}\", route: read-write}}\n",
                path.display()
            ),
        )
    };
    subject.takes(&with("0777"));
    let told = subject.refuses(&with("0700"));
    assert!(
        told.contains("listener local: a new mode of ") && told.contains("needs a restart"),
        "{told}"
    );
    subject.takes(usual);
    eventually("it is gone", SOON, || !fs::exists(&path).unwrap());
    subject.takes(&with("0700"));
}
