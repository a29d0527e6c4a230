#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

/// Version 2: command and version, family and transport, what follows.
fn binary(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
    let mut header = SIGNATURE.to_vec();
    header.extend([command, family]);
    header.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
    header.extend(body);
    header
}

fn tlv(kind: u8, value: &[u8]) -> Vec<u8> {
    let mut tlv = vec![kind];
    tlv.extend(u16::try_from(value.len()).unwrap().to_be_bytes());
    tlv.extend(value);
    tlv
}

fn v4() -> Vec<u8> {
    vec![192, 0, 2, 7, 10, 0, 0, 1, 0x12, 0x34, 0x19, 0x20]
}

fn whole(bytes: &[u8]) -> Result<Header, ProxyError> {
    let (used, header) = Reader::default().push(bytes)?;
    assert_eq!(used, bytes.len());
    Ok(header.expect("whole"))
}

fn source(bytes: &[u8]) -> Option<String> {
    whole(bytes).unwrap().source.map(|source| source.to_string())
}

#[test]
fn version_1() {
    let client = |line: &str| source(format!("PROXY {line}\r\n").as_bytes());
    assert_eq!(
        client("TCP4 192.0.2.7 10.0.0.1 4660 6432").as_deref(),
        Some("192.0.2.7:4660")
    );
    assert_eq!(
        client("TCP6 2001:db8::7 ::1 65535 0").as_deref(),
        Some("[2001:db8::7]:65535")
    );
    assert_eq!(client("UNKNOWN"), None);
    assert_eq!(client("UNKNOWN ffff::1 whatever \u{1}"), None);
    let longest =
        "TCP6 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535";
    assert!(client(longest).is_some());
    for wrong in [
        "",
        "TCP4",
        "UNKNOWNX",
        "tcp4 192.0.2.7 10.0.0.1 1 2",
        "TCP4 192.0.2.7 10.0.0.1 1",
        "TCP4 192.0.2.7 10.0.0.1 1 2 3",
        "TCP4  192.0.2.7 10.0.0.1 1 2",
        "TCP4 192.0.2.7 10.0.0.1 1 2 ",
        "TCP4 192.0.2.7 10.0.0.1 01 2",
        "TCP4 192.0.2.7 10.0.0.1 +1 2",
        "TCP4 192.0.2.7 10.0.0.1 65536 2",
        "TCP4 192.0.2.07 10.0.0.1 1 2",
        "TCP4 ::1 ::1 1 2",
        "TCP6 192.0.2.7 10.0.0.1 1 2",
        "UDP4 192.0.2.7 10.0.0.1 1 2",
        "TCP4 192.0.2.7 10.0.0.1 1 2\n",
    ] {
        let line = format!("PROXY {wrong}\r\n");
        assert_eq!(whole(line.as_bytes()), Err(ProxyError::Malformed), "{wrong:?}");
    }
    let line = |length: usize| format!("PROXY UNKNOWN {}\r\n", "x".repeat(length - 16));
    assert!(whole(line(107).as_bytes()).is_ok());
    assert_eq!(
        Reader::default().push(line(108).as_bytes()),
        Err(ProxyError::Malformed)
    );
    assert_eq!(Reader::default().push(&[b'P'; 2]), Err(ProxyError::Missing));
}

#[test]
fn version_2() {
    assert_eq!(
        source(&binary(0x21, 0x11, &v4())).as_deref(),
        Some("192.0.2.7:4660")
    );
    let mut v6 = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7).octets().to_vec();
    v6.extend([0; 16]);
    v6.extend([0xff, 0xff, 0, 1]);
    assert_eq!(
        source(&binary(0x21, 0x21, &v6)).as_deref(),
        Some("[2001:db8::7]:65535")
    );
    // Nobody's address: a Unix socket, an unknown one, the balancer itself whatever it sends along.
    assert_eq!(source(&binary(0x21, 0x31, &[b'x'; 216])), None);
    assert_eq!(source(&binary(0x21, 0x00, &[])), None);
    for body in [&b""[..], &v4(), b"\x03rubbish"] {
        assert_eq!(source(&binary(0x20, 0x11, body)), None);
    }
    for (command, family, body, error) in [
        (0x21, 0x11, &v4()[..11], ProxyError::Malformed),
        (0x21, 0x21, &v6[..35], ProxyError::Malformed),
        (0x21, 0x31, &[0; 215], ProxyError::Malformed),
        (0x21, 0x41, &v4(), ProxyError::Malformed),
        (0x21, 0x13, &v4(), ProxyError::Malformed),
        (0x21, 0x12, &v4(), ProxyError::NotAStream),
        (0x22, 0x11, &v4(), ProxyError::Unknown),
        (0x11, 0x11, &v4(), ProxyError::Unknown),
        (0x31, 0x11, &v4(), ProxyError::Unknown),
    ] {
        assert_eq!(
            whole(&binary(command, family, body)),
            Err(error),
            "{command:x} {family:x}"
        );
    }
    let of_length = |length: usize| {
        let mut body = v4();
        body.extend(tlv(0xee, &vec![0; length - FIXED - body.len() - 3]));
        binary(0x21, 0x11, &body)
    };
    assert!(whole(&of_length(MAX_HEADER)).is_ok());
    // Known from its first bytes: nothing is kept of it.
    assert_eq!(
        Reader::default().push(&of_length(MAX_HEADER + 1)[..FIXED]),
        Err(ProxyError::TooLong)
    );
}

#[test]
fn additions_of_version_2() {
    let with = |tlvs: &[u8]| {
        let mut body = v4();
        body.extend(tlvs);
        whole(&binary(0x21, 0x11, &body))
    };
    let mut tls = vec![0x07, 0, 0, 0, 0];
    tls.extend(tlv(SSL_VERSION, b"TLSv1.3"));
    tls.extend(tlv(SSL_CN, b"app"));
    let header = with(&[tlv(0x02, b"db.example.org"), tlv(TLV_SSL, &tls)].concat()).unwrap();
    let told = header.tls.unwrap();
    assert_eq!(
        (&told.version[..], told.common_name.as_deref()),
        (&b"TLSv1.3"[..], Some(&b"app"[..]))
    );
    // A certificate that did not verify, or that was given on an earlier connection, names nobody.
    for (client, verify) in [(0x07, 1), (0x05, 0)] {
        tls[0] = client;
        tls[4] = verify;
        let told = with(&tlv(TLV_SSL, &tls)).unwrap().tls.unwrap();
        assert_eq!(told.common_name, None);
    }
    tls[0] = 0;
    assert_eq!(with(&tlv(TLV_SSL, &tls)).unwrap().tls, None);
    for wrong in [
        &b"\x04"[..],
        b"\x04\0",
        b"\x04\0\x02x",
        &tlv(TLV_SSL, b"\x01\0\0\0"),
        &tlv(TLV_SSL, b"\x01\0\0\0\0\x21\0\x09x"),
        &tlv(TLV_CRC32C, b"abc"),
    ] {
        assert_eq!(with(wrong), Err(ProxyError::Malformed), "{wrong:?}");
    }
}

/// The value for "123456789" is the standard's check value; here it is computed from the
/// definition, bit by bit, over polynomial coefficients.
fn castagnoli(bytes: &[u8]) -> u32 {
    let table = |index: u32| {
        (0..8).fold(index, |c, _| {
            if c & 1 == 1 {
                (c >> 1) ^ 0x82F6_3B78
            } else {
                c >> 1
            }
        })
    };
    !bytes.iter().fold(!0, |crc: u32, byte| {
        (crc >> 8) ^ table((crc ^ u32::from(*byte)) & 0xff)
    })
}

#[test]
fn a_checksum_is_of_the_whole_header() {
    assert_eq!(castagnoli(b"123456789"), 0xE306_9283);
    let mut body = v4();
    body.extend(tlv(TLV_CRC32C, &[0; 4]));
    body.extend(tlv(0x04, b"padding"));
    let mut header = binary(0x21, 0x11, &body);
    let sum = castagnoli(&header).to_be_bytes();
    let at = FIXED + 12 + 3;
    header[at..at + 4].copy_from_slice(&sum);
    assert!(whole(&header).is_ok());
    let kind = FIXED + 12;
    // With another type it is no checksum any more.
    for index in (FIXED..header.len()).filter(|index| *index != kind) {
        let mut damaged = header.clone();
        damaged[index] ^= 0x40;
        assert!(whole(&damaged).is_err(), "byte {index}");
    }
}

fn any_header() -> impl Strategy<Value = Vec<u8>> {
    let line = (any::<Ipv4Addr>(), any::<u16>())
        .prop_map(|(source, port)| format!("PROXY TCP4 {source} 127.0.0.1 {port} 6432\r\n").into_bytes());
    let tlvs = prop::collection::vec((4..0x20_u8, prop::collection::vec(any::<u8>(), 0..40)), 0..5);
    let long = (any::<[u8; 12]>(), tlvs).prop_map(|(block, tlvs)| {
        let mut body = block.to_vec();
        for (kind, value) in tlvs {
            body.extend(tlv(kind, &value));
        }
        binary(0x21, 0x11, &body)
    });
    prop_oneof![line, long]
}

proptest! {
    /// However it comes in pieces, and whatever is behind it: it is the same, and nothing behind it
    /// is taken.
    #[test]
    fn pieces_make_no_difference(
        header in any_header(), behind in prop::collection::vec(any::<u8>(), 0..30), cut in any::<prop::sample::Index>(),
        step in 1usize..200,
    ) {
        let expected = whole(&header).unwrap();
        let all = [&header[..], &behind].concat();
        let cut = cut.index(header.len());
        for sizes in [vec![cut, all.len()], vec![1; all.len()], vec![step; all.len()]] {
            let (mut reader, mut at, mut known) = (Reader::default(), 0, 0);
            let mut found = None;
            for size in sizes {
                known = all.len().min(known + size);
                let (used, header) = reader.push(&all[at..known]).unwrap();
                at += used;
                if header.is_some() {
                    found = header;
                    break;
                }
                prop_assert_eq!(at, known, "what is not whole takes everything");
            }
            prop_assert_eq!(found.as_ref(), Some(&expected));
            prop_assert_eq!(at, header.len());
        }
    }

    /// Whatever comes, it is bounded and does not panic.
    #[test]
    fn anything_may_come(
        begin in prop_oneof![Just(SIGNATURE.to_vec()), Just(b"PROXY TCP4 ".to_vec()), Just(vec![])],
        rest in prop::collection::vec(any::<u8>(), 0..600), step in 1usize..50,
    ) {
        let mut reader = Reader::default();
        let all = [begin, rest].concat();
        let mut at = 0;
        while at < all.len() {
            match reader.push(&all[at..all.len().min(at + step)]) {
                Ok((used, None)) if used > 0 => at += used,
                Ok((_, Some(_))) | Err(_) => break,
                Ok((used, None)) => prop_assert!(used > 0, "no progress"),
            }
            prop_assert!(reader.taken.len() <= MAX_HEADER);
        }
    }

    #[test]
    fn damaged_headers_do_no_harm(header in any_header(), at in any::<prop::sample::Index>(), bit in 0..8) {
        let mut header = header;
        let at = at.index(header.len());
        header[at] ^= 1_u8 << bit;
        let _ = Reader::default().push(&header);
    }
}

#[test]
fn a_header_is_known_by_its_beginning() {
    for header in [&b"PROXY "[..], b"PROXY TCP4 1.2.3.4", SIGNATURE, &SIGNATURE[..6]] {
        assert!(begins(header), "{header:?}");
    }
    for other in [
        &b""[..],
        b"PROX",
        b"\r\n\r\n",
        b"GET / HTTP/1.1",
        b"PROXYTCP4",
        b"\0\0\0\x08\x04\xd2\x16\x2f",
    ] {
        assert!(!begins(other), "{other:?}");
    }
}
