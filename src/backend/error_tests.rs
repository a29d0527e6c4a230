#![allow(clippy::unwrap_used)]

use super::*;

fn said(code: &str) -> ConnectError {
    let body = Bytes::from(format!("SFATAL\0VFATAL\0C{code}\0Mno\0\0"));
    ServerError::parse(&body, body.clone())
        .map(Box::new)
        .unwrap()
        .into()
}

/// Login triggers may raise any SQLSTATE, and a role may terminate its own logins: the server's
/// word for a client's login never takes the server down.
#[test]
fn what_a_server_says_to_a_clients_login_is_at_most_a_reason_to_look() {
    for (code, suspicion, elsewhere) in [
        ("57P01", Suspicion::Possible, true),
        ("57P02", Suspicion::Possible, true),
        ("57P03", Suspicion::Possible, true),
        ("57014", Suspicion::Possible, true),
        ("53100", Suspicion::Possible, true),
        ("53200", Suspicion::Possible, true),
        ("58030", Suspicion::Possible, true),
        ("XX001", Suspicion::Possible, true),
        ("53300", Suspicion::None, true),
        ("57P04", Suspicion::None, false),
        ("55000", Suspicion::None, false),
        ("28P01", Suspicion::None, false),
        ("28000", Suspicion::None, false),
        ("3D000", Suspicion::None, false),
        ("42704", Suspicion::None, false),
        ("", Suspicion::None, false),
    ] {
        let error = said(code);
        assert_eq!(error.suspicion(), suspicion, "{code}");
        assert_eq!(error.is_temporary_or_elsewhere(), elsewhere, "{code}");
    }
}

#[test]
fn a_failure_is_the_servers_only_before_the_startup_packet() {
    let io = || io::Error::from(io::ErrorKind::ConnectionReset);
    let early = [Step::Resolve, Step::Connect, Step::TlsRequest, Step::TlsHandshake];
    for step in early.into_iter().chain([Step::Login, Step::Start]) {
        let expected = if early.contains(&step) {
            Suspicion::Likely
        } else {
            Suspicion::Possible
        };
        let what = String::new();
        for error in [
            ConnectError::Timeout { step },
            ConnectError::Lost { step, source: io() },
            ConnectError::Closed { step },
            ConnectError::Protocol { step, what },
        ] {
            assert_eq!(error.suspicion(), expected, "{error}");
            assert!(error.is_temporary_or_elsewhere(), "{error}");
        }
    }
    let address = SocketAddr::from(([127, 0, 0, 1], 1));
    assert_eq!(ConnectError::Refused { address }.suspicion(), Suspicion::Certain);
    let unreachable = ConnectError::Unreachable {
        address,
        source: io(),
    };
    assert_eq!(unreachable.suspicion(), Suspicion::Likely);
    let local = ConnectError::LocalResources { source: io() };
    assert_eq!(local.suspicion(), Suspicion::None);
}

/// Each server has a `pg_hba.conf` of its own: where one was forgotten, the others serve.
#[test]
fn a_server_whose_pg_hba_conf_does_not_let_the_router_in_is_passed_over() {
    let ConnectError::Server(mut error) = said("28000") else {
        panic!("it is the server's")
    };
    assert!(
        !error.may_be_this_server(),
        "a role that may not log in is the same everywhere"
    );
    error.hba_line = Some("hostssl all app 10.0.0.1/32 scram-sha-256".to_owned());
    let error = ConnectError::Server(error);
    let ClientReply::Own(reply) = error.client_reply("db1") else {
        panic!("the hint is the router's")
    };
    let hint = reply.hint.unwrap();
    for words in [
        "on every server",
        "`postgresql.pg_hba`",
        "hostssl all app 10.0.0.1/32",
    ] {
        assert!(hint.contains(words), "{hint}");
    }
    assert!(error.is_temporary_or_elsewhere());
    assert_eq!(error.suspicion(), Suspicion::None);
}

#[test]
fn a_server_that_answers_a_login_refuses_it_or_is_in_trouble() {
    for (code, refuses) in [
        ("3D000", true),
        ("28000", true),
        ("28P01", true),
        ("42501", true),
        ("57P04", true),
        ("57P03", false),
        ("53300", false),
    ] {
        let ConnectError::Server(error) = said(code) else {
            panic!("it is the server's")
        };
        assert_eq!(error.refuses_login(), refuses, "{code}");
    }
}

#[test]
fn quotes_are_as_the_server_wrote_them() {
    let body = Bytes::from_static(b"SFATAL\0VFATAL\0C3D000\0Mdatabase \"nosuch\" isn't there\n\0\0");
    let error = ServerError::parse(&body, body.clone()).unwrap().to_string();
    assert_eq!(
        error,
        r#"the server reported FATAL 3D000: database "nosuch" isn't there\n"#
    );
}
