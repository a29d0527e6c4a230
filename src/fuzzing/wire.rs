//! First packets, frames, headers of the PROXY protocol.

use bytes::BytesMut;

use super::{choice, reads};
use crate::wire::frame::{ErrorFields, client_login_limit, fields_of, next_frame_by, server_login_limit};
use crate::wire::message;
use crate::wire::observe::{ClientObserver, ServerEvent, ServerObserver};
use crate::wire::proxy::{MAX_HEADER, Reader};
use crate::wire::sqlstate::SqlState;
use crate::wire::startup::{self, FirstPacket, Glance, MAX_LENGTH, MAX_NAME};
use crate::wire::text::{Escaped, is_unsafe};

/// Packets without a type byte.
pub(super) fn startup(data: &[u8]) {
    let whole = startup::parse(data);
    let glance = startup::glance(data);
    // A part of a packet is not another packet.
    for end in [4, 7, 8, 11, 12, 16, data.len().saturating_sub(1)] {
        let part = startup::parse(&data[..end.min(data.len())]);
        match (&part, &whole) {
            (Ok(None), _) => {}
            (part, whole) => assert_eq!(part, whole),
        }
    }
    let (packet, length) = match whole {
        Ok(Some(parsed)) => parsed,
        Ok(None) => return assert!(data.len() < MAX_LENGTH),
        Err(error) => {
            let mut out = BytesMut::new();
            if let Some(reply) = error.reply() {
                message::error(&mut out, &reply);
            }
            return;
        }
    };
    assert!(length <= data.len());
    assert!(shown(&packet));
    match packet {
        FirstPacket::Startup(packet) => {
            assert_eq!(glance, Ok(Some(Glance::Session)));
            assert!((1..=MAX_NAME).contains(&packet.user.len()) && packet.database.len() <= MAX_NAME);
            if let Some(negotiation) = packet.negotiation() {
                let mut out = BytesMut::new();
                message::negotiate_protocol_version(
                    &mut out,
                    negotiation.served,
                    &negotiation.unknown_options,
                );
            }
            // The packet for a server reads the same.
            let parameters: Vec<_> = packet.server_parameters().collect();
            let mut out = BytesMut::new();
            message::startup(&mut out, packet.version, &parameters);
            let Ok(Some((FirstPacket::Startup(again), _))) = startup::parse(&out) else {
                panic!("what is written cannot be read");
            };
            assert_eq!(again.parameters, packet.parameters);
            assert_eq!((again.user, again.database), (packet.user, packet.database));
            assert_eq!(again.replication, packet.replication);
        }
        FirstPacket::Cancel(request) => {
            assert!(matches!(glance, Ok(Some(Glance::Cancel(bytes))) if bytes == data[..length]));
            let mut out = BytesMut::new();
            message::cancel_request(&mut out, request.process_id, &request.key);
            assert_eq!(out, data[..length]);
        }
        FirstPacket::Peer(_) => assert_eq!(glance, Ok(Some(Glance::Peer))),
        FirstPacket::SslRequest | FirstPacket::GssEncRequest => assert_eq!(glance, Ok(Some(Glance::Session))),
    }
}

/// Text for a log is one safe word.
fn shown(packet: &FirstPacket) -> bool {
    match packet {
        FirstPacket::Startup(packet) => {
            !Escaped(&packet.user).to_string().chars().any(is_unsafe)
                && !Escaped(&packet.database).to_string().chars().any(is_unsafe)
        }
        _ => true,
    }
}

/// Streams after login, both ways; frames of a login.
pub(super) fn frames(data: &[u8]) {
    let (seed, data) = choice(data);
    assert_eq!(server_split(data, seed), server_told(data));
    assert_eq!(client_split(data, seed), client_told(data));
    let _ = ErrorFields::parse(data);
    let _ = ErrorFields::of_prefix(data);
    for limit in [client_login_limit, server_login_limit] {
        let mut buffer = BytesMut::new();
        'stream: for read in reads(data, seed) {
            buffer.extend_from_slice(read);
            loop {
                match next_frame_by(&mut buffer, limit) {
                    Ok(Some(frame)) => assert!(frame.body.len() <= limit(frame.tag)),
                    Ok(None) => break,
                    Err(_) => break 'stream,
                }
            }
        }
    }
}

/// What the observer reports, how far the stream is valid, and whether it ends between two frames.
type Told = (Vec<String>, usize, bool);

fn server_split(data: &[u8], seed: u8) -> Told {
    let mut observer = ServerObserver::new();
    let (mut events, mut good) = (Vec::new(), 0);
    for read in reads(data, seed) {
        if observer
            .feed(read, |event| events.push(event_told(&event)))
            .is_err()
        {
            // A message that began in an earlier read has passed in part: only what is before it
            // counts here.
            good += observer.valid();
            let whole = server_told(data).1;
            assert!(good >= whole, "{good} {whole}");
            assert_eq!(observer.at_boundary(), good == whole);
            return (events, whole, true);
        }
        good += read.len();
    }
    (events, good, observer.at_boundary())
}

fn event_told(event: &ServerEvent<'_>) -> String {
    match event {
        ServerEvent::Error(report) | ServerEvent::Notice(report) => {
            let _ = report.fields();
            format!("report {} {:?}", report.is_fatal(), report.code())
        }
        other => format!("{other:?}"),
    }
}

/// The same, slowly: the whole stream at hand, a frame at a time, by the protocol's documentation.
fn server_told(data: &[u8]) -> Told {
    let (mut events, mut at) = (Vec::new(), 0);
    loop {
        let Some((tag, length)) = header(&data[at..]) else {
            return (events, data.len(), at == data.len());
        };
        let most = match tag {
            b'Z' => 5,
            b'C' | b'S' | b'K' => 30_000,
            _ => 0x7fff_ffff,
        };
        if !(4..=most).contains(&length) {
            return (events, at, true);
        }
        let Some(body) = data.get(at + 5..at + 1 + length) else {
            return (events, data.len(), false);
        };
        match server_message(tag, body) {
            Ok(event) => events.extend(event),
            Err(()) => return (events, at, true),
        }
        at += 1 + length;
    }
}

fn server_message(tag: u8, body: &[u8]) -> Result<Option<String>, ()> {
    use crate::wire::pending::TransactionStatus::{Failed, Idle, InTransaction};
    let event = match (tag, body) {
        (b'Z', b"I") => ServerEvent::ReadyForQuery(Idle),
        (b'Z', b"T") => ServerEvent::ReadyForQuery(InTransaction),
        (b'Z', b"E") => ServerEvent::ReadyForQuery(Failed),
        (b'C', [tag @ .., 0]) => ServerEvent::CommandComplete(tag),
        (b'S', [text @ .., 0]) => {
            let parts: Vec<&[u8]> = text.split(|&byte| byte == 0).collect();
            let [name, value] = parts[..] else { return Err(()) };
            ServerEvent::Parameter { name, value }
        }
        (b'K', [a, b, c, d, key @ ..]) => {
            let process_id = u32::from_be_bytes([*a, *b, *c, *d]);
            ServerEvent::Key { process_id, key }
        }
        (b'Z' | b'C' | b'S' | b'K', _) => return Err(()),
        (b'E' | b'N', _) => {
            // Only the beginning of a long one counts.
            let field = |wanted| {
                let mut fields = fields_of(&body[..body.len().min(10_000)]);
                fields.find(|(code, _)| *code == wanted).map(|(_, value)| value)
            };
            let fatal = matches!(field(b'V').or_else(|| field(b'S')), Some(b"FATAL" | b"PANIC"));
            let code = field(b'C').map_or(SqlState::MISSING, SqlState::of);
            return Ok(Some(format!("report {fatal} {code:?}")));
        }
        (b'A', _) => ServerEvent::Notification,
        (b'G', _) => ServerEvent::CopyIn,
        (b'H', _) => ServerEvent::CopyOut,
        (b'W', _) => ServerEvent::CopyBoth,
        (b'1' | b'2' | b'3' | b'n' | b'T' | b's' | b'I' | b'V', _) => ServerEvent::Answer(tag),
        _ => return Ok(None),
    };
    Ok(Some(format!("{event:?}")))
}

fn client_split(data: &[u8], seed: u8) -> (Vec<(u8, u32)>, bool) {
    let mut observer = ClientObserver::new();
    let mut frames = Vec::new();
    for read in reads(data, seed) {
        if observer
            .feed(read, |tag, length| frames.push((tag, length)))
            .is_err()
        {
            return (frames, false);
        }
    }
    (frames, observer.at_boundary())
}

fn client_told(data: &[u8]) -> (Vec<(u8, u32)>, bool) {
    let (mut frames, mut at) = (Vec::new(), 0);
    while at < data.len() {
        let Some((tag, length)) = header(&data[at..]) else {
            return (frames, false);
        };
        let most = if b"CDEHSXcf".contains(&tag) {
            10_000
        } else {
            0x3fff_fffe
        };
        if !(4..=most).contains(&length) {
            return (frames, false);
        }
        frames.push((tag, u32::try_from(length).expect("it was one")));
        at += 1 + length;
        // Nothing follows a whole Terminate.
        if tag == b'X' && at <= data.len() {
            return (frames, true);
        }
    }
    (frames, at == data.len())
}

fn header(data: &[u8]) -> Option<(u8, usize)> {
    let &[tag, a, b, c, d] = data.first_chunk()?;
    Some((tag, usize::try_from(u32::from_be_bytes([a, b, c, d])).ok()?))
}

/// However it is split, a header is the same, and none of what is behind it is taken.
pub(super) fn proxy(data: &[u8]) {
    let (seed, data) = choice(data);
    let whole = Reader::default().push(data);
    let mut reader = Reader::default();
    let mut taken = 0;
    for end in reads(data, seed).scan(0, |end, read| {
        *end += read.len();
        Some(*end)
    }) {
        match reader.push(&data[taken..end]) {
            Ok((used, header)) => {
                taken += used;
                assert!(taken <= end && taken <= MAX_HEADER);
                if let Some(header) = header {
                    assert_eq!(whole, Ok((taken, Some(header.clone()))));
                    let shown = header.tls.map(|tls| tls.to_string()).unwrap_or_default();
                    assert!(!shown.chars().any(is_unsafe));
                    return;
                }
                assert_eq!(taken, end, "bytes of a header are left");
            }
            Err(error) => return assert_eq!(whole, Err(error)),
        }
    }
    assert!(matches!(whole, Ok((used, None)) if used == data.len()));
}
