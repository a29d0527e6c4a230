#![allow(clippy::unwrap_used)]

use std::fmt::Write as _;

use proptest::prelude::*;

use super::*;
use crate::wire::sqlstate::SqlState;

const RFC_CLIENT_NONCE: &str = "rOprNGfwEbeRWgbNEkqO";
const RFC_SERVER_NONCE: &str = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
const RFC_SERVER_FIRST: &str =
    "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
const RFC_CLIENT_FINAL: &str = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                                p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
const RFC_SERVER_FINAL: &str = "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";
/// Of "pencil" with the RFC's salt; computed with Python's hashlib.
const RFC_VERIFIER: &str = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$\
                            WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";

fn few(iterations: u32) -> NonZeroU32 {
    NonZeroU32::new(iterations).unwrap()
}

fn verifier(password: &[u8], iterations: u32) -> Arc<Verifier> {
    Arc::new(Verifier::from_password(
        password,
        b"0123456789abcdef",
        few(iterations),
    ))
}

fn start(verifier: Option<&Arc<Verifier>>, mock: &MockSecret) -> server::AwaitFirst {
    start_bound(verifier, mock, None)
}

fn start_bound(
    verifier: Option<&Arc<Verifier>>,
    mock: &MockSecret,
    binding: Option<&[u8]>,
) -> server::AwaitFirst {
    let lookup = Lookup {
        user: b"app",
        verifier: verifier.cloned(),
        mock,
    };
    ServerExchange::start(lookup, binding, Nonce::random())
}

#[derive(Debug, PartialEq)]
enum Failure {
    Client(ScramError),
    Server(ServerScramError),
}

/// Our client against our server.
fn log_in(secret: ClientSecret, verifier: Option<&Arc<Verifier>>) -> Result<ClientKey, Failure> {
    log_in_bound(secret, verifier, ClientBinding::No, None).map(|(key, _)| key)
}

fn log_in_bound(
    secret: ClientSecret,
    verifier: Option<&Arc<Verifier>>,
    ours: ClientBinding,
    theirs: Option<&[u8]>,
) -> Result<(ClientKey, ServerProven), Failure> {
    let mock = MockSecret::new(None);
    let mechanism = ours.mechanism();
    let (client, first) = ClientExchange::bound(secret, ours).first();
    let (server, server_first) = start_bound(verifier, &mock, theirs)
        .client_first(mechanism.as_bytes(), &first)
        .map_err(Failure::Client)?;
    let (client, client_final) = client.server_first(&server_first).map_err(Failure::Server)?;
    let (server_final, key) = server.client_final(&client_final).map_err(Failure::Client)?;
    let proven = client.server_final(&server_final).map_err(Failure::Server)?;
    Ok((key, proven))
}

fn password(text: &[u8]) -> ClientSecret {
    ClientSecret::Password(Secret::new(text))
}

#[test]
fn agrees_with_rfc_7677_on_both_sides() {
    let stored = Arc::new(Verifier::parse(RFC_VERIFIER).unwrap());
    let mock = MockSecret::new(None);
    let lookup = Lookup {
        user: b"user",
        verifier: Some(stored),
        mock: &mock,
    };
    let server = ServerExchange::start(lookup, None, Nonce::fixed(RFC_SERVER_NONCE));
    let client = ClientExchange::with_nonce(password(b"pencil"), "user", Nonce::fixed(RFC_CLIENT_NONCE));

    let (client, first) = client.first();
    assert_eq!(first, b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO");
    let (server, server_first) = server.client_first(b"SCRAM-SHA-256", &first).unwrap();
    assert_eq!(server_first, RFC_SERVER_FIRST.as_bytes());
    let (client, client_final) = client.server_first(&server_first).unwrap();
    assert_eq!(client_final, RFC_CLIENT_FINAL.as_bytes());
    let (server_final, _) = server.client_final(&client_final).unwrap();
    assert_eq!(server_final, RFC_SERVER_FINAL.as_bytes());
    client.server_final(&server_final).unwrap();
}

/// The RFC's exchange with -PLUS, bound to the bytes 0 to 31; computed with Python's hashlib.
#[test]
fn agrees_with_another_implementation_of_plus_on_both_sides() {
    const CLIENT_FINAL: &str = "c=cD10bHMtc2VydmVyLWVuZC1wb2ludCwsAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=nY1Wus9a+gM2DrbQ1msXFgyhW6KM5ktOxWiU+/P/EGY=";
    const SERVER_FINAL: &str = "v=RwppMGddhz/J0lFYaRReBjXcQeNUFP5Qc76Lo5Exrig=";
    let hash: Vec<u8> = (0..32).collect();
    let stored = Arc::new(Verifier::parse(RFC_VERIFIER).unwrap());
    let mock = MockSecret::new(None);
    let lookup = Lookup {
        user: b"user",
        verifier: Some(stored),
        mock: &mock,
    };
    let server = ServerExchange::start(lookup, Some(&hash), Nonce::fixed(RFC_SERVER_NONCE));
    let mut client = ClientExchange::with_nonce(password(b"pencil"), "user", Nonce::fixed(RFC_CLIENT_NONCE));
    client.binding = ClientBinding::EndPoint(hash);

    let (client, first) = client.first();
    assert_eq!(first, b"p=tls-server-end-point,,n=user,r=rOprNGfwEbeRWgbNEkqO");
    let (server, server_first) = server.client_first(b"SCRAM-SHA-256-PLUS", &first).unwrap();
    assert_eq!(server_first, RFC_SERVER_FIRST.as_bytes());
    let (client, client_final) = client.server_first(&server_first).unwrap();
    assert_eq!(client_final, CLIENT_FINAL.as_bytes());
    let (server_final, _) = server.client_final(&client_final).unwrap();
    assert_eq!(server_final, SERVER_FINAL.as_bytes());
    assert!(client.server_final(&server_final).unwrap().is_bound());
}

#[test]
fn both_mechanisms_are_offered_only_with_something_to_bind_to() {
    assert_eq!(mechanisms(Some(b"hash")), ["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"]);
    assert_eq!(mechanisms(None), ["SCRAM-SHA-256"]);
}

/// Who offers what, and what the client makes of it.
#[test]
fn every_combination_of_bindings() {
    use ClientBinding::{EndPoint, No, NotOffered};
    let stored = verifier(b"right", 2);
    let hash = [7; 32];
    let end_point = |hash: &[u8]| EndPoint(hash.to_vec());
    for (ours, theirs, expected) in [
        (No, None, Ok(false)),
        (NotOffered, None, Ok(false)),
        (end_point(&hash), Some(&hash), Ok(true)),
        // A client that cannot bind, or does not want to.
        (No, Some(&hash), Ok(false)),
        // Somebody took -PLUS from the list on the way to the client.
        (NotOffered, Some(&hash), Err(ScramError::Downgrade)),
        // Not offered, and chosen all the same.
        (end_point(&hash), None, Err(ScramError::Mechanism)),
        // The client is connected to somebody else.
        (end_point(&[8; 32]), Some(&hash), Err(ScramError::BindingMismatch)),
        (
            end_point(&hash[..31]),
            Some(&hash),
            Err(ScramError::BindingMismatch),
        ),
        (end_point(&[]), Some(&hash), Err(ScramError::BindingMismatch)),
    ] {
        let key = log_in(password(b"right"), Some(&stored)).unwrap();
        for secret in [password(b"right"), ClientSecret::Key(key)] {
            let theirs = theirs.map(|hash| &hash[..]);
            let outcome = log_in_bound(secret, Some(&stored), ours.clone(), theirs);
            let outcome = outcome.map(|(_, proven)| proven.is_bound());
            assert_eq!(
                outcome,
                expected.clone().map_err(Failure::Client),
                "{ours:?} {theirs:?}"
            );
        }
    }
}

#[test]
fn plus_is_read_as_postgresql_reads_it() {
    let mock = MockSecret::new(None);
    let stored = verifier(b"x", 1);
    let first = |mechanism: &str, data: &str| {
        start_bound(Some(&stored), &mock, Some(b"hash"))
            .client_first(mechanism.as_bytes(), data.as_bytes())
            .map(|_| ())
            .map_err(|error| {
                let reply = error.reply(b"app");
                (reply.code, reply.message, reply.detail)
            })
    };
    let plus = |data: &str| first("SCRAM-SHA-256-PLUS", data).unwrap_err();
    assert_eq!(
        first("SCRAM-SHA-256-PLUS", "p=tls-server-end-point,,n=,r=abc"),
        Ok(())
    );
    for flag in ["n", "y"] {
        let (code, message, detail) = plus(&format!("{flag},,n=,r=abc"));
        assert_eq!(
            (code, message.as_str()),
            (SqlState::PROTOCOL_VIOLATION, "malformed SCRAM message")
        );
        assert_eq!(
            detail.unwrap(),
            "The client selected SCRAM-SHA-256-PLUS, but the SCRAM message does not include channel binding data."
        );
    }
    for (kind, shown) in [
        ("tls-unique", "tls-unique"),
        ("tls-exporter", "tls-exporter"),
        ("", ""),
        ("tls-server-end-point ", "tls-server-end-point?"),
        ("TLS-SERVER-END-POINT", "TLS-SERVER-END-POINT"),
        ("\u{1b}[2J", "?[2J"),
        (&"x".repeat(500), &"x".repeat(30)),
    ] {
        let (code, message, _) = plus(&format!("p={kind},,n=,r=abc"));
        assert_eq!(code, SqlState::PROTOCOL_VIOLATION);
        assert_eq!(
            message,
            format!("unsupported SCRAM channel-binding type \"{shown}\"")
        );
    }
    let (code, ..) = plus("p=tls-server-end-point,a=root,n=,r=abc");
    assert_eq!(code, SqlState::FEATURE_NOT_SUPPORTED);
    for bad in [
        "p",
        "p,,n=,r=abc",
        "p=tls-server-end-point",
        "p=tls-server-end-point,",
        "p=tls-server-end-point,,",
        "p=tls-server-end-point,n=,r=abc",
        "p=tls-server-end-point,,,n=,r=abc",
    ] {
        let (code, message, _) = plus(bad);
        assert_eq!(
            (code, message.as_str()),
            (SqlState::PROTOCOL_VIOLATION, "malformed SCRAM message"),
            "{bad}"
        );
    }
    let (code, message, detail) = first("SCRAM-SHA-256", "y,,n=,r=abc").unwrap_err();
    assert_eq!(
        (code, message.as_str()),
        (
            SqlState::INVALID_AUTHORIZATION,
            "SCRAM channel binding negotiation error"
        )
    );
    assert!(
        detail
            .unwrap()
            .starts_with("The client supports SCRAM channel binding but")
    );
    let (code, _, detail) = first("SCRAM-SHA-256", "p=tls-server-end-point,,n=,r=abc").unwrap_err();
    assert_eq!(code, SqlState::PROTOCOL_VIOLATION);
    assert!(detail.unwrap().contains("without channel binding"));
    let mismatch = ScramError::BindingMismatch.reply(b"app");
    assert_eq!(
        (mismatch.code, mismatch.message.as_str()),
        (
            SqlState::INVALID_AUTHORIZATION,
            "SCRAM channel binding check failed"
        )
    );
}

/// With -PLUS too, an unknown user is told what a known one is told, down to the lengths.
#[test]
fn plus_does_not_tell_an_unknown_user_either() {
    let hash = [7; 32];
    let wrong = |verifier: Option<&Arc<Verifier>>, ours: &[u8]| {
        let ours = ClientBinding::EndPoint(ours.to_vec());
        log_in_bound(password(b"nope"), verifier, ours, Some(&hash)).unwrap_err()
    };
    let stored = verifier(b"right", 4096);
    assert_eq!(wrong(None, &hash), Failure::Client(ScramError::Proof));
    assert_eq!(wrong(None, &hash), wrong(Some(&stored), &hash));
    assert_eq!(wrong(None, &[0; 32]), wrong(Some(&stored), &[0; 32]));

    let mock = MockSecret::new(None);
    let answer = |verifier: Option<&Arc<Verifier>>| {
        let ours = ClientBinding::EndPoint(hash.to_vec());
        let (_, first) = ClientExchange::bound(password(b"x"), ours).first();
        let server = start_bound(verifier, &mock, Some(&hash));
        server.client_first(MECHANISM_PLUS.as_bytes(), &first).unwrap().1
    };
    assert_eq!(answer(None).len(), answer(Some(&stored)).len());
}

#[test]
fn certificates_hash_as_openssl_says() {
    let mut seen = 0;
    for line in include_str!("certificates.txt").lines() {
        if line.starts_with('#') {
            continue;
        }
        let [name, expected, certificate] = line.split(' ').collect::<Vec<_>>().try_into().unwrap();
        let mut certificate = BASE64.decode(certificate).unwrap();
        let hash = tls_server_end_point(&certificate).map(|hash| {
            hash.iter().fold(String::new(), |mut text, byte| {
                write!(text, "{byte:02x}").unwrap();
                text
            })
        });
        assert_eq!(
            hash.as_deref(),
            Some(expected).filter(|&hash| hash != "-"),
            "{name}"
        );
        certificate.pop();
        assert_eq!(tls_server_end_point(&certificate), None, "{name}, cut off");
        seen += 1;
    }
    assert_eq!(seen, 18);
    assert_eq!(tls_server_end_point(b""), None);
}

/// Passwords and what PostgreSQL 15.20 made of them: plain, with `SASLprep` at work, prohibited (a
/// bell), and with a direction that changes.
#[test]
fn verifiers_are_those_of_postgresql() {
    let cases = [
        (
            "secret",
            "SCRAM-SHA-256$4096:8P7FSGLy2sNDJgWP8lmsaA==$jrIVfxqOLsiCAyDSdZ+FBuybVcmcxB0MXLCW6d7tE/M=:fWZIbs7wubKmoZ5vfpGgJ3y9MKsVS8J88lPztXtfFI8=",
        ),
        (
            "I\u{AD}X\u{2168} \u{A0}é",
            "SCRAM-SHA-256$4096:G/M6rr/aaJVLeRCKFweuxg==$/X5eBfVp7oqn5f4LRgZjJWjeJJ7tdHW3lZE9+CJdOUk=:mxzincORY4wRcZ6UXPTYEmxKIaQrKXpAwIA7nHBZIXk=",
        ),
        (
            "\u{7}bell",
            "SCRAM-SHA-256$4096:m7WAlzkI4v8OzdjL1dn7QQ==$RlF6IgaIObpuupmBJa5OGpPZUv/F2jWNozU0zyhCXFc=:dTyWuEeBwfkfMIV+bSRTmkTu2XoS8pRe4Ik8cx7796o=",
        ),
        (
            "\u{627}1",
            "SCRAM-SHA-256$4096:SD0tdnKAvP8uy1SiuN5cEw==$ruV7r8L48d9UwdzQo325lwJrfgJ3p8KJa6CtG/oW2Kk=:4j2lEchqwJoIX0KgR6mnQ54qZBzZqTog/MSm6lWIVGg=",
        ),
    ];
    for (password, stored) in cases {
        let parsed = Verifier::parse(stored).unwrap();
        let computed = Verifier::from_password(password.as_bytes(), &parsed.salt, few(4096));
        assert_eq!(computed, parsed, "{password:?}");
        assert_eq!(*computed.to_text(), stored);
    }
}

#[test]
fn a_password_that_is_not_utf8_is_used_raw() {
    // Computed with Python's hashlib.
    let expected = "SCRAM-SHA-256$4096:MDEyMzQ1Njc4OWFiY2RlZg==$WqwhgiL1w0UxlrAi0sDhbI9zC9d05As3Hkv1Y7vZYfk=:gfqw3z9C9oIdJRlFtbjx8T2cT6w8My0ZjoWX84vaN6g=";
    assert_eq!(*verifier(b"\xff\xfe", 4096).to_text(), expected);
    assert_eq!(prepare("\u{AD}".as_bytes()).as_slice(), "\u{AD}".as_bytes());
}

#[test]
fn a_long_password_works() {
    let long = vec![b'x'; MAX_PASSWORD];
    log_in(password(&long), Some(&verifier(&long, 2))).unwrap();
}

#[test]
fn malformed_verifiers_are_refused() {
    let good = verifier(b"x", 4096).to_text();
    let keys = good.rsplit_once('$').unwrap().1;
    for (text, error) in [
        (String::new(), VerifierError::Form),
        (
            "md5900150983cd24fb0d6963f7d28e17f72".to_owned(),
            VerifierError::Form,
        ),
        (good.to_lowercase(), VerifierError::Form),
        (format!("SCRAM-SHA-256$4096:${keys}"), VerifierError::Salt),
        (
            format!("SCRAM-SHA-256$4096:{}${keys}", "QUFB".repeat(257)),
            VerifierError::Salt,
        ),
        (format!("SCRAM-SHA-256$0:QUFB${keys}"), VerifierError::Iterations),
        (format!("SCRAM-SHA-256$+1:QUFB${keys}"), VerifierError::Iterations),
        (
            format!("SCRAM-SHA-256$1000001:QUFB${keys}"),
            VerifierError::Iterations,
        ),
        (
            format!("SCRAM-SHA-256$99999999999999:QUFB${keys}"),
            VerifierError::Iterations,
        ),
        (format!("SCRAM-SHA-256$1:QUFB${keys} "), VerifierError::Key),
        ("SCRAM-SHA-256$1:QUFB$QUFB:QUFB".to_owned(), VerifierError::Key),
    ] {
        assert_eq!(Verifier::parse(&text).unwrap_err(), error, "{text}");
    }
    assert!(Verifier::parse(&format!("SCRAM-SHA-256$1000000:{}${keys}", "QUFB".repeat(256))).is_ok());
}

#[test]
fn a_wrong_password_and_an_unknown_user_look_the_same() {
    let wrong = log_in(password(b"nope"), Some(&verifier(b"right", 4096))).unwrap_err();
    let unknown = log_in(password(b"nope"), None).unwrap_err();
    assert_eq!(wrong, unknown);
    let Failure::Client(error) = unknown else {
        panic!("a client's error")
    };
    let reply = error.reply(b"app");
    assert_eq!(reply.code.as_str(), "28P01");
    assert_eq!(reply.message, "password authentication failed for user \"app\"");
    assert_eq!((reply.detail, reply.hint), (None, None));
}

#[test]
fn the_mock_salt_is_stable_and_shared_by_peers() {
    let peers = Secret::new(*b"a secret of all routers");
    let salt = |mock: &MockSecret| {
        let (_, first) = ClientExchange::new(password(b"x")).first();
        let (_, answer) = start(None, mock).client_first(b"SCRAM-SHA-256", &first).unwrap();
        let text = String::from_utf8(answer).unwrap();
        text.split_once(",s=").unwrap().1.to_owned()
    };
    let shared = salt(&MockSecret::new(Some(&peers)));
    assert_eq!(shared, salt(&MockSecret::new(Some(&peers))));
    assert!(
        shared.ends_with("==,i=4096") && shared.len() == 24 + 7,
        "PostgreSQL's defaults: {shared}"
    );
    let (own, other) = (MockSecret::new(None), MockSecret::new(None));
    assert_eq!(salt(&own), salt(&own));
    assert_ne!(salt(&own), salt(&other));
    assert_ne!(own.salt(b"a"), own.salt(b"b"));
}

/// Not even the mock's own keys open the door of a user that does not exist.
#[test]
fn a_mock_verifier_never_lets_in() {
    let mock = MockSecret::new(None);
    let lookup = Lookup {
        user: b"app",
        verifier: None,
        mock: &mock,
    };
    let mut state = ServerExchange::start(lookup, None, Nonce::random());
    state.verifier = verifier(b"known", 1);
    let (client, first) = ClientExchange::new(password(b"known")).first();
    let (server, answer) = state.client_first(b"SCRAM-SHA-256", &first).unwrap();
    let (_, last) = client.server_first(&answer).unwrap();
    assert_eq!(server.client_final(&last).unwrap_err(), ScramError::Proof);
}

#[test]
fn client_first_is_read_as_postgresql_reads_it() {
    let mock = MockSecret::new(None);
    let stored = verifier(b"x", 1);
    let first = |mechanism: &[u8], data: &[u8]| {
        start(Some(&stored), &mock)
            .client_first(mechanism, data)
            .map(|_| ())
            .map_err(|error| {
                let reply = error.reply(b"app");
                (reply.code, reply.message)
            })
    };
    let scram = |data: &str| first(b"SCRAM-SHA-256", data.as_bytes());
    let malformed = Err((SqlState::PROTOCOL_VIOLATION, "malformed SCRAM message".to_owned()));

    for good in [
        "n,,n=,r=abc",
        "y,,n=,r=abc",
        "n,,n=ignored=2C,r=abc",
        "n,,n=,r=abc,x=later",
    ] {
        assert_eq!(scram(good), Ok(()), "{good}");
    }
    for bad in [
        "",
        "n",
        "n,",
        "n,,",
        "n,n=,r=abc",
        "x,,n=,r=abc",
        "p=tls-server-end-point,,n=,r=abc",
        "n,,r=abc,n=",
        "n,,n=",
        "n,,n=,r=",
        "n,,n=,r=abc,",
        "n,,n=,r=abc,1=x",
        "n,,n=,r=abc\0",
    ] {
        assert_eq!(scram(bad), malformed, "{bad}");
    }
    assert_eq!(scram(&format!("n,,n=,r={}", "a".repeat(1024))), malformed);
    assert_eq!(
        scram("n,a=root,n=,r=abc").unwrap_err().0,
        SqlState::FEATURE_NOT_SUPPORTED
    );
    assert_eq!(
        scram("n,,m=x,n=,r=abc").unwrap_err().0,
        SqlState::FEATURE_NOT_SUPPORTED
    );
    assert_eq!(
        scram("n,,n=,r=abc,m=x").unwrap_err().0,
        SqlState::FEATURE_NOT_SUPPORTED
    );
    assert_eq!(
        scram("n,,n=,r=a b").unwrap_err().1,
        "non-printable characters in SCRAM nonce"
    );
    for other in [
        &b"SCRAM-SHA-256-PLUS"[..],
        b"SCRAM-SHA-1",
        b"",
        b"SCRAM-SHA-256\0",
    ] {
        assert_eq!(
            first(other, b"n,,n=,r=abc").unwrap_err().1,
            "client selected an invalid SASL authentication mechanism"
        );
    }
}

#[test]
fn client_final_is_read_strictly() {
    let mock = MockSecret::new(None);
    let stored = verifier(b"x", 1);
    let answer = |flag: &str, build: &dyn Fn(&str) -> String| {
        let (server, first) = start(Some(&stored), &mock)
            .client_first(b"SCRAM-SHA-256", format!("{flag},,n=,r=abc").as_bytes())
            .unwrap();
        let first = String::from_utf8(first).unwrap();
        let nonce = first
            .split_once(',')
            .unwrap()
            .0
            .strip_prefix("r=")
            .unwrap()
            .to_owned();
        server.client_final(build(&nonce).as_bytes()).unwrap_err()
    };
    let proof = BASE64.encode([7; 32]);
    assert_eq!(
        answer("n", &|n| format!("c=biws,r={n},p={proof}")),
        ScramError::Proof
    );
    assert_eq!(
        answer("y", &|n| format!("c=eSws,r={n},p={proof}")),
        ScramError::Proof
    );
    assert_eq!(
        answer("n", &|n| format!("c=biws,r={n},x=1,p={proof}")),
        ScramError::Proof
    );
    assert_eq!(
        answer("y", &|n| format!("c=biws,r={n},p={proof}")),
        ScramError::ChannelBinding
    );
    assert_eq!(
        answer("n", &|n| format!("c=eSws,r={n},p={proof}")),
        ScramError::ChannelBinding
    );
    assert_eq!(
        answer("n", &|n| format!("c=biws,r={n}x,p={proof}")),
        ScramError::Nonce
    );
    assert_eq!(
        answer("n", &|_| format!("c=biws,r=abc,p={proof}")),
        ScramError::Nonce
    );
    assert_eq!(
        answer("n", &|n| format!("c=biws,r={n},m=1,p={proof}")),
        ScramError::Extension
    );
    for bad in [
        |_: &str, _: &str| String::new(),
        |n: &str, p: &str| format!("r={n},c=biws,p={p}"),
        |n: &str, _: &str| format!("c=biws,r={n}"),
        |n: &str, _: &str| format!("c=biws,r={n},p="),
        |n: &str, p: &str| format!("c=biws,r={n},p={p}AAAA"),
        |n: &str, p: &str| format!("c=biws,r={n},p={p},x=1"),
        |n: &str, p: &str| format!("c=biws,r={n},p={p}\0"),
        |n: &str, p: &str| format!("c=biws,r={n},x={},p={p}", "a".repeat(1024)),
    ] {
        let error = answer("n", &|nonce| bad(nonce, &proof));
        assert!(matches!(error, ScramError::Malformed(_)), "{error:?}");
    }
}

#[test]
fn a_hostile_server_is_refused() {
    let ask = |secret: ClientSecret, build: &dyn Fn(&str) -> String| {
        let client = ClientExchange::with_nonce(secret, "", Nonce::fixed("ours"));
        client
            .first()
            .0
            .server_first(build("ours").as_bytes())
            .unwrap_err()
    };
    let plain = |build: &dyn Fn(&str) -> String| ask(password(b"x"), build);
    assert_eq!(plain(&|n| format!("r={n},s=QUFB,i=1")), ServerScramError::Nonce);
    assert_eq!(
        plain(&|_| "r=other,s=QUFB,i=1".to_owned()),
        ServerScramError::Nonce
    );
    assert_eq!(plain(&|n| format!("r=x{n}x,s=QUFB,i=1")), ServerScramError::Nonce);
    assert_eq!(
        plain(&|n| format!("r={n}x,s=QUFB,i=1000001")),
        ServerScramError::Iterations
    );
    assert_eq!(
        plain(&|n| format!("m=1,r={n}x,s=QUFB,i=1")),
        ServerScramError::Extension
    );
    for bad in [
        "",
        "r=oursx",
        "r=oursx,s=QUFB",
        "r=oursx,s=,i=1",
        "r=oursx,s=!,i=1",
        "r=oursx,s=QUFB,i=0",
    ] {
        assert!(
            matches!(plain(&|_| bad.to_owned()), ServerScramError::Malformed(_)),
            "{bad}"
        );
    }
    assert!(matches!(
        plain(&|n| format!("r={n}x,s=QUFB,i=1,z=1")),
        ServerScramError::Malformed(_)
    ));
    assert!(matches!(
        plain(&|n| format!("r={n}{}", "x".repeat(5000))),
        ServerScramError::Malformed(_)
    ));

    let key = ClientKey {
        key: Zeroizing::new([1; 32]),
        verifier: verifier(b"x", 4096),
    };
    let with_key = |text: &str| {
        let text = text.to_owned();
        ask(ClientSecret::Key(key.clone()), &move |_| text.clone())
    };
    let salt = BASE64.encode(b"0123456789abcdef");
    assert_eq!(
        with_key(&format!("r=oursx,s={salt},i=4097")),
        ServerScramError::VerifierDiffers
    );
    assert_eq!(
        with_key("r=oursx,s=QUFB,i=4096"),
        ServerScramError::VerifierDiffers
    );
}

#[test]
fn a_server_must_prove_itself() {
    let finish = |last: &[u8]| {
        let client = ClientExchange::with_nonce(password(b"x"), "", Nonce::fixed("ours"));
        let (client, _) = client.first().0.server_first(b"r=oursx,s=QUFB,i=1").unwrap();
        client.server_final(last).unwrap_err()
    };
    let forged = format!("v={}", BASE64.encode([0; 32]));
    assert_eq!(finish(forged.as_bytes()), ServerScramError::Signature);
    assert_eq!(
        finish(b"e=invalid-proof"),
        ServerScramError::Refused("invalid-proof".to_owned())
    );
    assert_eq!(finish(b"e=\x1b[2J"), ServerScramError::Refused("?[2J".to_owned()));
    for bad in [&b""[..], b"v=", b"v=AAAA", b"x=1"] {
        assert!(matches!(finish(bad), ServerScramError::Malformed(_)));
    }
    assert!(matches!(
        finish(format!("{forged},x=1").as_bytes()),
        ServerScramError::Malformed(_)
    ));
}

#[test]
fn nothing_secret_is_printed() {
    let stored = verifier(b"hunter2", 1);
    let key = log_in(password(b"hunter2"), Some(&stored)).unwrap();
    let printed = format!(
        "{stored:?} {key:?} {:?}",
        ClientSecret::Password(Secret::new(*b"hunter2"))
    );
    assert_eq!(printed, "Verifier(***) ClientKey(***) Password(***)");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_right_password_gets_in_and_its_key_gets_in_again(
        text in proptest::collection::vec(any::<u8>(), 1..64),
        salt in proptest::collection::vec(any::<u8>(), 1..64),
        iterations in 1u32..20,
    ) {
        let stored = Arc::new(Verifier::from_password(&text, &salt, few(iterations)));
        let reread = Arc::new(Verifier::parse(&stored.to_text()).unwrap());
        prop_assert_eq!(&stored, &reread);
        let key = log_in(password(&text), Some(&reread)).unwrap();
        let again = log_in(ClientSecret::Key(key.clone()), Some(&stored)).unwrap();
        prop_assert_eq!(&*again.key, &*key.key);
    }

    #[test]
    fn another_password_does_not(a in "[a-z]{1,8}", b in "[a-z]{1,8}") {
        prop_assume!(a != b);
        let failure = log_in(password(b.as_bytes()), Some(&verifier(a.as_bytes(), 1))).unwrap_err();
        prop_assert_eq!(failure, Failure::Client(ScramError::Proof));
    }

    /// One flipped bit, in any message, on the way between an honest client and an honest server.
    #[test]
    fn any_flipped_bit_fails(
        which in 0usize..4, place in any::<prop::sample::Index>(), bit in 0u8..8, bound in any::<bool>(),
    ) {
        let hash = [7; 32];
        let theirs = bound.then_some(&hash[..]);
        let ours = theirs.map_or(ClientBinding::No, |hash| ClientBinding::EndPoint(hash.to_vec()));
        let mechanism = ours.mechanism();
        let mock = MockSecret::new(None);
        let stored = verifier(b"right", 2);
        let flip = |step: usize, mut message: Vec<u8>| {
            if step == which {
                let at = place.index(message.len());
                message[at] ^= 1 << bit;
            }
            message
        };
        let outcome = (|| -> Result<(), Failure> {
            let (client, first) = ClientExchange::bound(password(b"right"), ours.clone()).first();
            let (server, server_first) = start_bound(Some(&stored), &mock, theirs)
                .client_first(mechanism.as_bytes(), &flip(0, first)).map_err(Failure::Client)?;
            let (client, last) = client.server_first(&flip(1, server_first)).map_err(Failure::Server)?;
            let (proof, _) = server.client_final(&flip(2, last)).map_err(Failure::Client)?;
            client.server_final(&flip(3, proof)).map_err(Failure::Server)?;
            Ok(())
        })();
        prop_assert!(outcome.is_err());
    }

    #[test]
    fn no_input_panics(
        a in proptest::collection::vec(any::<u8>(), 0..80),
        b in "(c=biws|c=eSws|r=abc|p=|,|=|[a-z])*",
    ) {
        let mock = MockSecret::new(None);
        let _ = start(None, &mock).client_first(b"SCRAM-SHA-256", &a);
        let plus = [b"p=", &a[..]].concat();
        let _ = start_bound(None, &mock, Some(b"hash")).client_first(b"SCRAM-SHA-256-PLUS", &plus);
        let _ = tls_server_end_point(&a);
        let (server, _) = start(None, &mock).client_first(b"SCRAM-SHA-256", b"n,,n=,r=abc").unwrap();
        prop_assert!(server.client_final(b.as_bytes()).is_err());
        let _ = ClientExchange::new(password(b"x")).first().0.server_first(&a);
        let _ = Verifier::parse(&b);
    }
}
