//! The first packets of a connection: `SSLRequest`, `GSSENCRequest`, `CancelRequest`, the startup packet, and the
//! router's own peer request.
//!
//! [`parse`] looks at a buffer and takes exactly one packet from its start, or says that more is needed; the length
//! is checked as soon as its four bytes are there, so that nobody makes the reader wait for, or buffer, more than
//! [`MAX_LENGTH`] bytes. Errors are PostgreSQL's own, from `ProcessStartupPacket` in
//! `src/backend/tcop/backend_startup.c`.

use bytes::Bytes;

use super::message::{CANCEL_KEY_LENGTHS, ErrorReply};
use super::sqlstate::SqlState;

/// The largest packet accepted before a connection has a type byte, its length word included.
pub const MAX_LENGTH: usize = 10_000;

/// The most parameters in one startup packet. PostgreSQL has no such bound, but no client comes near it, and what
/// one peer may cost before it is authenticated must be small.
pub const MAX_PARAMETERS: usize = 512;

/// The longest name of a user or a database, in bytes (`NAMEDATALEN` - 1). `ProcessStartupPacket` cuts longer ones short,
/// between any two bytes.
pub const MAX_NAME: usize = 63;

/// First byte of a TLS handshake record; no length of a first packet begins with it.
pub const TLS_HANDSHAKE: u8 = 0x16;

const CANCEL_CODE: u32 = 80_877_102;
const SSL_CODE: u32 = 80_877_103;
const GSS_ENC_CODE: u32 = 80_877_104;

/// A protocol version 3.x.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProtocolVersion {
    pub minor: u16,
}

impl ProtocolVersion {
    pub const V3_0: Self = Self { minor: 0 };
    pub const V3_2: Self = Self { minor: 2 };

    /// As it stands in a startup packet: major and minor in 16 bits each.
    pub fn number(self) -> u32 {
        0x0003_0000 | u32::from(self.minor)
    }
}

/// A packet without a type byte, as the first one of a connection (or after a refused encryption request).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FirstPacket {
    SslRequest,
    GssEncRequest,
    Cancel(CancelRequest),
    Startup(StartupPacket),
    /// Another router's peer request; the body as received.
    Peer(Bytes),
}

/// The code of a peer request, where a startup packet has its version: "TRKL", which no PostgreSQL uses.
pub const PEER_REQUEST_CODE: u32 = 0x5452_4b4c;

/// A `CancelRequest` as received. The key's length is that of the packet.
#[derive(Clone, PartialEq, Eq)]
pub struct CancelRequest {
    pub process_id: u32,
    /// 4 to 256 bytes.
    pub key: Bytes,
}

impl std::fmt::Debug for CancelRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CancelRequest")
            .field("process_id", &self.process_id)
            .finish_non_exhaustive()
    }
}

/// What `replication=` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replication {
    None,
    Physical,
    Logical,
}

/// A startup packet: an ordered list of byte strings; duplicates apply in order; non-UTF-8 is legal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartupPacket {
    /// As asked for; may be newer than what we serve.
    pub version: ProtocolVersion,
    /// All but the `_pq_.` options, in order, as received.
    pub parameters: Vec<(Bytes, Bytes)>,
    /// Names of the `_pq_.` options, in order.
    pub protocol_options: Vec<Bytes>,
    /// Never empty; cut at [`MAX_NAME`], as the server would: what a rule sees is who logs in.
    pub user: Bytes,
    /// The user's name where the client gave none, or an empty one; cut likewise.
    pub database: Bytes,
    pub replication: Replication,
}

/// What a `v` message has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Negotiation<'a> {
    pub served: ProtocolVersion,
    pub unknown_options: Vec<&'a [u8]>,
}

impl StartupPacket {
    /// The version this session is served with: 3.2, or 3.0 for whatever is older. 3.1 was never given a meaning.
    pub fn served(&self) -> ProtocolVersion {
        if self.version >= ProtocolVersion::V3_2 {
            ProtocolVersion::V3_2
        } else {
            ProtocolVersion::V3_0
        }
    }

    /// Whether one `v` must be sent before authentication, and what it says: the client asked for a version that is
    /// not served as such, or for any `_pq_.` option (none is known so far).
    pub fn negotiation(&self) -> Option<Negotiation<'_>> {
        let served = self.served();
        (served != self.version || !self.protocol_options.is_empty()).then(|| Negotiation {
            served,
            unknown_options: self.protocol_options.iter().map(|name| &name[..]).collect(),
        })
    }

    /// What a server is to be given: every parameter, in order, byte for byte, `user` among them. `_pq_.` options
    /// were negotiated with us and end here.
    pub fn server_parameters(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.parameters
            .iter()
            .map(|(name, value)| (&name[..], &value[..]))
    }

    /// The value that applies where `name` (matched exactly) is given: the last one.
    pub fn parameter(&self, name: &[u8]) -> Option<&Bytes> {
        self.parameters
            .iter()
            .rev()
            .find(|(given, _)| given == name)
            .map(|(_, value)| value)
    }
}

/// Why a first packet is refused. `reply` says what the client is told, if anything.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StartupError {
    /// Outside 8..=10 000: PostgreSQL closes without an answer, so do we.
    #[error("invalid length of startup packet")]
    Length,
    #[error("unsupported frontend protocol {major}.{minor}")]
    Version { major: u16, minor: u16 },
    #[error("invalid startup packet layout: expected terminator as last byte")]
    Layout,
    #[error("no PostgreSQL user name specified in startup packet")]
    NoUser,
    #[error("invalid value for parameter \"replication\"")]
    Replication,
    #[error("malformed cancel request")]
    Cancel,
    /// More than [`MAX_PARAMETERS`].
    #[error("too many parameters in startup packet")]
    TooManyParameters,
}

impl StartupError {
    /// The last word to the client; `None` closes in silence.
    pub fn reply(&self) -> Option<ErrorReply> {
        let code = match self {
            // Whoever sends these is not a PostgreSQL client, or must never be answered.
            Self::Length | Self::Cancel => return None,
            Self::Version { .. } => {
                let message = format!("{self}: server supports 3.0 to 3.2");
                return Some(ErrorReply::fatal(SqlState::FEATURE_NOT_SUPPORTED, message));
            }
            Self::Layout | Self::TooManyParameters => SqlState::PROTOCOL_VIOLATION,
            Self::NoUser => SqlState::INVALID_AUTHORIZATION,
            Self::Replication => SqlState::INVALID_PARAMETER_VALUE,
        };
        let reply = ErrorReply::fatal(code, self.to_string());
        Some(match self {
            Self::Replication => reply.hint("Valid values are: \"false\", 0, \"true\", 1, \"database\"."),
            _ => reply,
        })
    }
}

/// Takes one packet from the start of `buf` and says how many bytes it has. `None`: more is needed, never more than
/// [`MAX_LENGTH`] bytes in all.
pub fn parse(buf: &[u8]) -> Result<Option<(FirstPacket, usize)>, StartupError> {
    let Some(length) = word(buf, 0) else {
        return Ok(None);
    };
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if !(8..=MAX_LENGTH).contains(&length) {
        return Err(StartupError::Length);
    }
    let Some(code) = word(buf, 4) else { return Ok(None) };
    if code == CANCEL_CODE && !CANCEL_KEY_LENGTHS.contains(&length.saturating_sub(12)) {
        return Err(StartupError::Cancel);
    }
    let Some(packet) = buf.get(..length) else {
        return Ok(None);
    };
    let packet = match code {
        SSL_CODE if length == 8 => FirstPacket::SslRequest,
        GSS_ENC_CODE if length == 8 => FirstPacket::GssEncRequest,
        CANCEL_CODE => FirstPacket::Cancel(CancelRequest {
            process_id: word(packet, 8).ok_or(StartupError::Cancel)?,
            key: Bytes::copy_from_slice(&packet[12..]),
        }),
        PEER_REQUEST_CODE => FirstPacket::Peer(Bytes::copy_from_slice(&packet[8..])),
        _ => FirstPacket::Startup(startup(code, &packet[8..])?),
    };
    Ok(Some((packet, length)))
}

/// What somebody who passes a connection on unread has to know of its first packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Glance {
    /// TLS, an encryption request or a startup packet: the server's business.
    Session,
    /// The whole request as it came.
    Cancel(Bytes),
    /// A router's; no server understands it.
    Peer,
}

/// Tells apart what `buf` begins with. `None`: more is needed, at most as many bytes as a `CancelRequest` may have.
pub fn glance(buf: &[u8]) -> Result<Option<Glance>, StartupError> {
    if buf.first() == Some(&TLS_HANDSHAKE) {
        return Ok(Some(Glance::Session));
    }
    let Some(length) = word(buf, 0) else {
        return Ok(None);
    };
    if !(8..=MAX_LENGTH).contains(&usize::try_from(length).unwrap_or(usize::MAX)) {
        return Err(StartupError::Length);
    }
    match word(buf, 4) {
        None => Ok(None),
        Some(PEER_REQUEST_CODE) => Ok(Some(Glance::Peer)),
        Some(CANCEL_CODE) => {
            let parsed = parse(buf)?;
            Ok(parsed.map(|(_, length)| Glance::Cancel(Bytes::copy_from_slice(&buf[..length]))))
        }
        Some(_) => Ok(Some(Glance::Session)),
    }
}

fn word(buf: &[u8], at: usize) -> Option<u32> {
    buf.get(at..)?
        .first_chunk()
        .map(|&bytes| u32::from_be_bytes(bytes))
}

/// The list behind the version: names and values in turn, ended by an empty name that is the last byte.
fn startup(version: u32, list: &[u8]) -> Result<StartupPacket, StartupError> {
    let [major_high, major_low, minor_high, minor_low] = version.to_be_bytes();
    let minor = u16::from_be_bytes([minor_high, minor_low]);
    match u16::from_be_bytes([major_high, major_low]) {
        3 => {}
        major => return Err(StartupError::Version { major, minor }),
    }
    let list = Bytes::copy_from_slice(list);
    let (mut parameters, mut protocol_options) = (Vec::new(), Vec::new());
    let (mut user, mut database) = (Bytes::new(), Bytes::new());
    // PostgreSQL keeps two flags, and `database` is never taken back: `database`, `true` is logical, while
    // `database`, `off` is an ordinary session.
    let (mut is_walsender, mut is_logical) = (false, false);
    let mut rest = 0;
    loop {
        let name = cstr(&list, &mut rest)?;
        if name.is_empty() {
            break;
        }
        let value = cstr(&list, &mut rest)?;
        if parameters.len() + protocol_options.len() == MAX_PARAMETERS {
            return Err(StartupError::TooManyParameters);
        }
        match &name[..] {
            b"user" => user = value.clone(),
            b"database" => database = value.clone(),
            b"replication" if value == "database" => (is_walsender, is_logical) = (true, true),
            b"replication" => is_walsender = boolean(&value).ok_or(StartupError::Replication)?,
            _ => {}
        }
        if name.starts_with(b"_pq_.") {
            protocol_options.push(name);
        } else {
            parameters.push((name, value));
        }
    }
    if rest != list.len() {
        return Err(StartupError::Layout);
    }
    if user.is_empty() {
        return Err(StartupError::NoUser);
    }
    if database.is_empty() {
        database = user.clone();
    }
    user.truncate(MAX_NAME);
    database.truncate(MAX_NAME);
    let replication = match (is_walsender, is_logical) {
        (false, _) => Replication::None,
        (true, false) => Replication::Physical,
        (true, true) => Replication::Logical,
    };
    let version = ProtocolVersion { minor };
    Ok(StartupPacket {
        version,
        parameters,
        protocol_options,
        user,
        database,
        replication,
    })
}

fn cstr(list: &Bytes, rest: &mut usize) -> Result<Bytes, StartupError> {
    let start = *rest;
    let length = list[start..]
        .iter()
        .position(|&byte| byte == 0)
        .ok_or(StartupError::Layout)?;
    *rest = start + length + 1;
    Ok(list.slice(start..start + length))
}

/// PostgreSQL's `parse_bool`: any unique prefix of true, false, yes, no, on, off, in any case, and 1 and 0.
fn boolean(value: &[u8]) -> Option<bool> {
    // `o` alone could be either.
    let words = [
        ("true", 1, true),
        ("false", 1, false),
        ("yes", 1, true),
        ("no", 1, false),
        ("on", 2, true),
    ];
    let words = words
        .into_iter()
        .chain([("off", 2, false), ("1", 1, true), ("0", 1, false)]);
    let mut words = words.filter(|(word, shortest, _)| {
        value.len() >= *shortest
            && word
                .as_bytes()
                .get(..value.len())
                .is_some_and(|w| w.eq_ignore_ascii_case(value))
    });
    words.next().map(|(_, _, meaning)| meaning)
}

#[cfg(test)]
mod tests {
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

    /// Parses a packet that came one byte at a time: each prefix asks for more, or is refused as the whole is.
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

    /// What a rule says of a name must hold for the name that the server makes of it.
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
            let fault = whole(&packet(code, b"user\0a\0\0")).unwrap_err();
            assert_eq!(fault, StartupError::Version { major, minor });
            let reply = fault.reply().unwrap();
            assert_eq!(reply.code, SqlState::FEATURE_NOT_SUPPORTED);
            let expected =
                format!("unsupported frontend protocol {major}.{minor}: server supports 3.0 to 3.2");
            assert_eq!(reply.message, expected);
        }
    }

    #[test]
    fn a_newer_minor_or_an_option_is_negotiated_and_never_upwards() {
        let served = |minor: u16, options: &[u8]| {
            let body = [b"user\0a\0", options, b"\0"].concat();
            let FirstPacket::Startup(startup) =
                whole(&packet(0x0003_0000 | u32::from(minor), &body)).unwrap()
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

    /// Every prefix asks for more until the kind is known, and none for more than a cancel request's length.
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
}
