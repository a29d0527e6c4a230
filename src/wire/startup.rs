//! The first packets of a connection: `SSLRequest`, `GSSENCRequest`, `CancelRequest`, the startup
//! packet, and the router's own peer request.
//!
//! [`parse`] takes exactly one packet from the start of a buffer, or says that more is needed. It
//! checks the length as soon as its four bytes are there, so that no client makes the reader wait
//! for, or buffer, more than [`MAX_LENGTH`] bytes (docs/protocol.md, cases 1–12). Errors are
//! PostgreSQL's own, from `ProcessStartupPacket` in `src/backend/tcop/backend_startup.c`.

use bytes::Bytes;

use super::message::{CANCEL_KEY_LENGTHS, ErrorReply};
use super::sqlstate::SqlState;

/// The largest packet accepted before a connection has a type byte, its length word included.
pub const MAX_LENGTH: usize = 10_000;

/// The most parameters in one startup packet. PostgreSQL has no such limit, but no client comes
/// near it, and a client must cost little before it is authenticated.
pub const MAX_PARAMETERS: usize = 512;

/// The longest name of a user or a database, in bytes (`NAMEDATALEN` - 1). `ProcessStartupPacket`
/// cuts longer ones short, between any two bytes.
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

/// A packet without a type byte, as the first one of a connection (or after a refused encryption
/// request).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FirstPacket {
    SslRequest,
    GssEncRequest,
    Cancel(CancelRequest),
    Startup(StartupPacket),
    /// Another router's peer request; the body as received.
    Peer(Bytes),
}

/// The code of a peer request, where a startup packet has its version: "TRKL", which no PostgreSQL
/// uses.
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

/// A startup packet: an ordered list of byte strings; duplicates apply in order; non-UTF-8 is
/// legal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartupPacket {
    /// As asked for; may be newer than the router serves.
    pub version: ProtocolVersion,
    /// All but the `_pq_.` options, in order, as received.
    pub parameters: Vec<(Bytes, Bytes)>,
    /// Names of the `_pq_.` options, in order.
    pub protocol_options: Vec<Bytes>,
    /// Never empty; cut at [`MAX_NAME`], as the server does: rules must see the name that logs in.
    pub user: Bytes,
    /// The user's name where the client gave none, or an empty one; cut in the same way.
    pub database: Bytes,
    pub replication: Replication,
}

/// The contents of a `v` message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Negotiation<'a> {
    pub served: ProtocolVersion,
    pub unknown_options: Vec<&'a [u8]>,
}

impl StartupPacket {
    /// The version of this session: 3.2, or 3.0 for anything older. 3.1 was never given a meaning.
    pub fn served(&self) -> ProtocolVersion {
        if self.version >= ProtocolVersion::V3_2 {
            ProtocolVersion::V3_2
        } else {
            ProtocolVersion::V3_0
        }
    }

    /// Whether one `v` must be sent before authentication, and what it says: the client asked for a
    /// version that is not served as such, or for any `_pq_.` option (none is known so far).
    pub fn negotiation(&self) -> Option<Negotiation<'_>> {
        let served = self.served();
        (served != self.version || !self.protocol_options.is_empty()).then(|| Negotiation {
            served,
            unknown_options: self.protocol_options.iter().map(|name| &name[..]).collect(),
        })
    }

    /// The parameters for a server: all of them, in order, byte for byte, `user` among them.
    /// `_pq_.` options are negotiated with the router and end here.
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

/// Why a first packet is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StartupError {
    /// Outside 8..=10 000: PostgreSQL closes without an answer, and so does the router.
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
    /// The answer to the client; `None` closes without one.
    pub fn reply(&self) -> Option<ErrorReply> {
        let code = match self {
            // The first does not come from a PostgreSQL client, and the second is never answered.
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

/// Takes one packet from the start of `buf` and returns its length too. `None`: more is needed,
/// never more than [`MAX_LENGTH`] bytes in all.
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

/// What must be known of the first packet of a connection that is otherwise forwarded unread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Glance {
    /// TLS, an encryption request or a startup packet: for the server.
    Session,
    /// The whole request as it came.
    Cancel(Bytes),
    /// A router's request; no server understands it.
    Peer,
}

/// Classifies what `buf` begins with. `None`: more is needed, at most as many bytes as a
/// `CancelRequest` may have.
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

/// The list behind the version: names and values in turn, ended by an empty name that is the last
/// byte.
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
    // PostgreSQL keeps two flags, and never clears that of `database`: `database`, `true` is
    // logical, while `database`, `off` is an ordinary session.
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

/// PostgreSQL's `parse_bool`: any unique prefix of true, false, yes, no, on, off, in any case, and
/// 1 and 0.
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
mod tests;
