#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use bytes::BytesMut;
use pgwire::messages::startup::Startup;
use pgwire::messages::{DecodeContext, Message};
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

fn packet(code: u32, body: &[u8]) -> Vec<u8> {
    let mut packet = u32::try_from(body.len() + 8).unwrap().to_be_bytes().to_vec();
    packet.extend(code.to_be_bytes());
    packet.extend(body);
    packet
}

fn startup_packet(body: &[u8]) -> Result<StartupPacket, StartupError> {
    match whole(&packet(0x0003_0000, body))? {
        FirstPacket::Startup(startup) => Ok(startup),
        other => panic!("{other:?}"),
    }
}

/// Parses a packet that comes one byte at a time: each prefix asks for more, or is refused as the
/// whole is.
fn whole(packet: &[u8]) -> Result<FirstPacket, StartupError> {
    let outcome = parse(packet).map(|parsed| {
        let (first, length) = parsed.unwrap();
        assert_eq!(length, packet.len());
        first
    });
    for end in 0..packet.len() {
        match (parse(&packet[..end]), &outcome) {
            (Ok(None), _) => {}
            (Err(early), Err(late)) => assert_eq!(&early, late),
            (early, late) => panic!("{early:?} after {end} bytes, {late:?} after all"),
        }
    }
    let mut with_more = packet.to_vec();
    with_more.extend(b"Q\0\0\0\x04");
    assert_eq!(
        parse(&with_more).map(|parsed| parsed.unwrap().1),
        outcome.clone().map(|_| packet.len())
    );
    outcome
}

/// A rule must see the name that the server will use.
#[test]
fn names_are_cut_where_the_server_cuts_them() {
    for (length, kept) in [(62, 62), (63, 63), (64, 63), (300, 63)] {
        let body = format!(
            "user\0{}\0database\0{}\0\0",
            "u".repeat(length),
            "d".repeat(length)
        );
        let startup = startup_packet(body.as_bytes()).unwrap();
        assert_eq!(startup.user, "u".repeat(kept), "{length}");
        assert_eq!(startup.database, "d".repeat(kept), "{length}");
        let body = format!("user\0{}\0database\0\0\0", "u".repeat(length));
        assert_eq!(
            startup_packet(body.as_bytes()).unwrap().database,
            "u".repeat(kept)
        );
    }
    // In the middle of a character, as PostgreSQL 15 and 18 do.
    let body = format!("user\0{}\u{e9}\0\0", "u".repeat(62));
    let startup = startup_packet(body.as_bytes()).unwrap();
    assert_eq!(startup.user, [&[b'u'; 62][..], b"\xc3"].concat());
}

#[test]
fn encryption_requests_are_eight_bytes() {
    assert_eq!(whole(&packet(SSL_CODE, b"")), Ok(FirstPacket::SslRequest));
    assert_eq!(whole(&packet(GSS_ENC_CODE, b"")), Ok(FirstPacket::GssEncRequest));
    assert_eq!(
        whole(&packet(SSL_CODE, b"x")),
        Err(StartupError::Version {
            major: 1234,
            minor: 5679
        })
    );
    assert_eq!(
        whole(&packet(GSS_ENC_CODE, b"x")),
        Err(StartupError::Version {
            major: 1234,
            minor: 5680
        })
    );
}

#[test]
fn a_length_out_of_bounds_is_refused_at_its_four_bytes() {
    for length in [0_u32, 4, 7, 10_001, 0x7fff_ffff, 0x8000_0000, u32::MAX] {
        assert_eq!(
            parse(&length.to_be_bytes()),
            Err(StartupError::Length),
            "{length}"
        );
    }
    assert_eq!(parse(b"GET / HTTP/1.1\r\n"), Err(StartupError::Length));
    assert_eq!(parse(&10_000_u32.to_be_bytes()), Ok(None));
    assert_eq!(StartupError::Length.reply(), None);
}

#[test]
fn a_cancel_request_has_a_key_of_4_to_256_bytes() {
    for length in [4_usize, 32, 256] {
        let body = [vec![0, 0, 0, 7], vec![9; length]].concat();
        let expected = CancelRequest {
            process_id: 7,
            key: vec![9; length].into(),
        };
        assert_eq!(
            whole(&packet(CANCEL_CODE, &body)),
            Ok(FirstPacket::Cancel(expected))
        );
    }
    for length in [0_usize, 3, 257, 5000] {
        let body = [vec![0, 0, 0, 7], vec![9; length]].concat();
        assert_eq!(whole(&packet(CANCEL_CODE, &body)), Err(StartupError::Cancel));
    }
    assert_eq!(whole(&packet(CANCEL_CODE, b"")), Err(StartupError::Cancel));
    assert_eq!(StartupError::Cancel.reply(), None);
    let shown = format!(
        "{:?}",
        CancelRequest {
            process_id: 7,
            key: b"secret".as_slice().into()
        }
    );
    assert!(!shown.contains("secret") && !shown.contains("115"), "{shown}");
}

#[test]
fn a_peer_request_keeps_its_body() {
    let body = Bytes::from_static(b"\x01anything");
    assert_eq!(
        whole(&packet(PEER_REQUEST_CODE, &body)),
        Ok(FirstPacket::Peer(body))
    );
}

#[test]
fn parameters_keep_order_duplicates_and_bytes() {
    let startup = startup_packet(
        b"user\0a\0options\0-c x=y\0user\0\xe9\0_pq_.foo\0bar\0options\0\0Database\0no\0_pq_.\0\0\0",
    )
    .unwrap();
    assert_eq!(&startup.user[..], b"\xe9");
    assert_eq!(
        &startup.database[..],
        b"\xe9",
        "names are matched exactly, and the user's name is the default"
    );
    let parameters: Vec<_> = startup.server_parameters().collect();
    let expected: [(&[u8], &[u8]); 5] = [
        (b"user", b"a"),
        (b"options", b"-c x=y"),
        (b"user", b"\xe9"),
        (b"options", b""),
        (b"Database", b"no"),
    ];
    assert_eq!(parameters, expected);
    assert_eq!(startup.protocol_options, ["_pq_.foo", "_pq_."]);
    assert_eq!(startup.parameter(b"options").unwrap(), "");
    assert_eq!(startup.parameter(b"OPTIONS"), None);
}

#[test]
fn the_terminator_is_the_last_byte() {
    for body in [
        &b""[..],
        b"user\0a\0",
        b"user\0a\0\0\0",
        b"user\0a\0\0x",
        b"user\0a",
        b"user\0",
        b"user",
        b"user\0a\0x",
    ] {
        assert_eq!(startup_packet(body), Err(StartupError::Layout), "{body:?}");
    }
    let reply = StartupError::Layout.reply().unwrap();
    assert_eq!(reply.code, SqlState::PROTOCOL_VIOLATION);
    assert_eq!(
        reply.message,
        "invalid startup packet layout: expected terminator as last byte"
    );
}

#[test]
fn a_user_is_needed_and_a_database_is_not() {
    for body in [
        &b"\0"[..],
        b"user\0\0\0",
        b"user\0a\0user\0\0\0",
        b"database\0a\0\0",
        b"USER\0a\0\0",
    ] {
        assert_eq!(startup_packet(body), Err(StartupError::NoUser), "{body:?}");
    }
    assert_eq!(
        StartupError::NoUser.reply().unwrap().code,
        SqlState::INVALID_AUTHORIZATION
    );
    assert_eq!(startup_packet(b"user\0a\0\0").unwrap().database, "a");
    assert_eq!(startup_packet(b"database\0d\0user\0a\0\0").unwrap().database, "d");
    assert_eq!(
        startup_packet(b"database\0d\0user\0a\0database\0\0\0")
            .unwrap()
            .database,
        "a"
    );
}

#[test]
fn replication_is_any_boolean_or_database() {
    let replication = |values: &[&str]| {
        let mut body = b"user\0a\0".to_vec();
        for value in values {
            body.extend(format!("replication\0{value}\0").bytes());
        }
        body.push(0);
        startup_packet(&body).map(|startup| startup.replication)
    };
    for yes in ["t", "TR", "true", "True", "y", "YES", "on", "ON", "1"] {
        assert_eq!(replication(&[yes]), Ok(Replication::Physical), "{yes}");
    }
    for no in ["f", "False", "n", "no", "of", "OFF", "0"] {
        assert_eq!(replication(&[no]), Ok(Replication::None), "{no}");
    }
    for wrong in ["", "o", "2", "01", "truee", "yess", "Database", " true", "onn"] {
        assert_eq!(replication(&[wrong]), Err(StartupError::Replication), "{wrong}");
    }
    assert_eq!(replication(&["database"]), Ok(Replication::Logical));
    assert_eq!(replication(&["database", "off"]), Ok(Replication::None));
    assert_eq!(replication(&["database", "on"]), Ok(Replication::Logical));
    assert_eq!(replication(&["off", "on"]), Ok(Replication::Physical));
    assert_eq!(replication(&[]), Ok(Replication::None));
    assert_eq!(
        StartupError::Replication.reply().unwrap().code,
        SqlState::INVALID_PARAMETER_VALUE
    );
}

#[test]
fn other_majors_are_told_what_is_served() {
    for (code, major, minor) in [
        (0x0002_0000, 2, 0),
        (0x0004_0001, 4, 1),
        (0, 0, 0),
        (u32::MAX, 65_535, 65_535),
    ] {
        let error = whole(&packet(code, b"user\0a\0\0")).unwrap_err();
        assert_eq!(error, StartupError::Version { major, minor });
        let reply = error.reply().unwrap();
        assert_eq!(reply.code, SqlState::FEATURE_NOT_SUPPORTED);
        let expected = format!("unsupported frontend protocol {major}.{minor}: server supports 3.0 to 3.2");
        assert_eq!(reply.message, expected);
    }
}

#[test]
fn a_newer_minor_or_an_option_is_negotiated_and_never_upwards() {
    let served = |minor: u16, options: &[u8]| {
        let body = [b"user\0a\0", options, b"\0"].concat();
        let FirstPacket::Startup(startup) = whole(&packet(0x0003_0000 | u32::from(minor), &body)).unwrap()
        else {
            panic!("not a startup packet")
        };
        assert!(startup.served() <= startup.version);
        let negotiation = startup.negotiation();
        assert!(
            negotiation
                .as_ref()
                .is_none_or(|negotiation| negotiation.served == startup.served())
        );
        let options = negotiation.map(|n| {
            n.unknown_options
                .iter()
                .map(|&name| name.to_vec())
                .collect::<Vec<_>>()
        });
        (startup.served(), options)
    };
    assert_eq!(served(0, b""), (ProtocolVersion::V3_0, None));
    assert_eq!(served(2, b""), (ProtocolVersion::V3_2, None));
    assert_eq!(served(1, b""), (ProtocolVersion::V3_0, Some(vec![])));
    assert_eq!(served(3, b""), (ProtocolVersion::V3_2, Some(vec![])));
    let option = Some(vec![b"_pq_.test_protocol_negotiation".to_vec()]);
    assert_eq!(
        served(0, b"_pq_.test_protocol_negotiation\0\0"),
        (ProtocolVersion::V3_0, option.clone())
    );
    assert_eq!(
        served(9999, b"_pq_.test_protocol_negotiation\0x\0"),
        (ProtocolVersion::V3_2, option)
    );
}

#[test]
fn the_number_of_parameters_is_bounded() {
    let body = |extra: usize| [b"user\0a\0".to_vec(), b"x\0\0".repeat(extra), vec![0]].concat();
    assert_eq!(
        startup_packet(&body(MAX_PARAMETERS - 1))
            .unwrap()
            .parameters
            .len(),
        MAX_PARAMETERS
    );
    assert_eq!(
        startup_packet(&body(MAX_PARAMETERS)),
        Err(StartupError::TooManyParameters)
    );
    assert_eq!(
        StartupError::TooManyParameters.reply().unwrap().code,
        SqlState::PROTOCOL_VIOLATION
    );
}

proptest! {
    #[test]
    fn pgwire_reads_the_same(
        mut given in proptest::collection::btree_map("[a-z]{1,8}", "[^\0]{1,12}", 0..8), minor in 0_u16..4,
    ) {
        given.insert("user".into(), "someone".into());
        given.remove("replication");
        let mut body = Vec::new();
        for (name, value) in &given { body.extend(format!("{name}\0{value}\0").bytes()); }
        body.push(0);
        let packet = packet(0x0003_0000 | u32::from(minor), &body);
        let theirs = Startup::decode(&mut BytesMut::from(&packet[..]), &DecodeContext::default()).unwrap().unwrap();
        let FirstPacket::Startup(ours) = whole(&packet).unwrap() else { panic!("not a startup packet") };
        prop_assert_eq!(theirs.protocol_number_minor, ours.version.minor);
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let ours: BTreeMap<_, _> = ours.server_parameters().map(|(n, v)| (text(n), text(v))).collect();
        prop_assert_eq!(&theirs.parameters, &ours);
        prop_assert_eq!(&given, &ours);
    }

    #[test]
    fn arbitrary_bytes_never_panic_and_never_take_more_than_there_is(
        code in prop_oneof![
            Just(0x0003_0000), Just(0x0003_0002), Just(CANCEL_CODE), Just(SSL_CODE), Just(PEER_REQUEST_CODE), any::<u32>(),
        ],
        body in vec(prop_oneof![Just(0), any::<u8>()], 0..300), cut in 0_usize..320,
    ) {
        let mut bytes = packet(code, &body);
        bytes.truncate(cut);
        if let Ok(Some((first, length))) = parse(&bytes) {
            prop_assert!(length <= bytes.len());
            if let FirstPacket::Startup(startup) = first {
                prop_assert!(!startup.user.is_empty() && !startup.database.is_empty());
            }
        }
        let _ = parse(&body);
    }
}

/// Every prefix asks for more until the kind is known, and none for more than a cancel request's
/// length.
#[test]
fn a_glance_needs_eight_bytes_or_a_whole_cancel_request() {
    let session = Ok(Some(Glance::Session));
    let startup = packet(0x0003_0000, b"user\0a\0\0");
    for first in [&startup, &packet(SSL_CODE, b""), &packet(GSS_ENC_CODE, b"")] {
        for length in 0..8 {
            assert_eq!(glance(&first[..length]), Ok(None), "{length}");
        }
        assert_eq!(glance(&first[..8]), session);
        assert_eq!(glance(first), session);
    }
    assert_eq!(glance(&[TLS_HANDSHAKE]), session);
    assert_eq!(
        glance(&packet(0xdead_beef, b"")),
        session,
        "a version for the server to refuse"
    );
    assert_eq!(
        glance(&packet(PEER_REQUEST_CODE, b"secret")),
        Ok(Some(Glance::Peer))
    );

    for key in [4, 32, 256] {
        let cancel = packet(CANCEL_CODE, &vec![7; 4 + key]);
        for length in 0..cancel.len() {
            assert_eq!(glance(&cancel[..length]), Ok(None), "{length} of {key}");
        }
        let whole = Bytes::from(cancel.clone());
        assert_eq!(glance(&cancel), Ok(Some(Glance::Cancel(whole.clone()))));
        let more = [&cancel[..], b"and more"].concat();
        assert_eq!(
            glance(&more),
            Ok(Some(Glance::Cancel(whole))),
            "and no byte behind it"
        );
    }
}

#[test]
fn a_glance_refuses_what_no_server_would_read() {
    for length in [0_u32, 7, 10_001, u32::MAX, u32::from_be_bytes(*b"GET ")] {
        assert_eq!(
            glance(&length.to_be_bytes()),
            Err(StartupError::Length),
            "{length}"
        );
    }
    for key in [0, 3, 257] {
        let cancel = packet(CANCEL_CODE, &vec![7; 4 + key]);
        assert_eq!(glance(&cancel[..8]), Err(StartupError::Cancel), "{key}");
    }
}
