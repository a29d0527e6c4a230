//! Reads a client's frames, within limits, into pgwire's messages. pgwire's own decoders never see
//! a client's bytes.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Buf, Bytes, BytesMut};
use pgwire::api::store::PortalStore;
use pgwire::api::{ClientInfo, ClientPortalStore, DEFAULT_NAME};
use pgwire::messages::PgWireFrontendMessage;
use pgwire::messages::extendedquery::{Bind, Close, Describe, Execute, Flush, Parse, Sync};
use pgwire::messages::response::TransactionStatus;
use pgwire::messages::simplequery::Query;

use super::super::sql::MAX_PARAMETERS;
use super::Wire;
use super::handler::Dropped;
use super::kept::KeptRoom;
use crate::wire::frame::{BodyReader, Frame, FrameError};
use crate::wire::message::ErrorReply;
use crate::wire::sqlstate::SqlState;

/// Largest length word of a message that is read; commands are short.
pub(super) const LARGEST: usize = 65_536;
/// Largest length word of a message that is passed over and answered with an error. PostgreSQL
/// reads no longer one, so that no client means it.
const LARGEST_PASSED: usize = 0x3fff_ffff;
/// Bytes of a prepared statement's or portal's name.
const MAX_NAME: usize = 63;
const MAX_STATEMENTS: usize = 64;
/// Each may hold the rest of its rows.
const MAX_PORTALS: usize = 8;
/// Rows for one Execute. Who asks for more gets these and `PortalSuspended`; pgwire makes room for
/// as many as are asked for, before there is any.
const MAX_ROWS: u32 = 10_000;

/// The types there is an answer to. Those of a copy are not among them: nothing here copies.
pub(super) fn is_known(tag: u8) -> bool {
    matches!(tag, b'Q' | b'P' | b'B' | b'D' | b'E' | b'S' | b'C' | b'H' | b'X')
}

#[derive(Debug)]
pub(super) enum ConsoleRequest {
    Message(PgWireFrontendMessage),
    Terminate,
}

/// What a client has sent.
#[derive(Debug)]
pub(super) enum Incoming {
    Whole(Frame),
    /// A message that is too long, of which nothing was kept.
    TooLong {
        tag: u8,
    },
}

impl Incoming {
    pub(super) fn tag(&self) -> u8 {
        match self {
            Self::Whole(frame) => frame.tag,
            Self::TooLong { tag } => *tag,
        }
    }
}

/// A message that is passed over, because it is too long.
#[derive(Debug)]
pub(super) struct Passing {
    tag: u8,
    /// Bytes of it that have not come yet.
    left: usize,
}

impl Passing {
    /// One that begins with these bytes. Only the types whose messages may be long: with another,
    /// the client and the router do not agree on where a message begins.
    pub(super) fn begins(buffer: &[u8]) -> Option<Self> {
        let &[tag @ (b'Q' | b'P' | b'B'), a, b, c, d] = buffer.first_chunk()? else {
            return None;
        };
        let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).ok()?;
        let is_meant = (LARGEST + 1..=LARGEST_PASSED).contains(&length);
        is_meant.then_some(Self {
            tag,
            // The length word counts itself, and not the type.
            left: length + 1,
        })
    }

    /// Drops what has come of it, and says how much that is.
    pub(super) fn pass(&mut self, buffer: &mut BytesMut) -> usize {
        let passed = self.left.min(buffer.len());
        buffer.advance(passed);
        self.left -= passed;
        passed
    }

    pub(super) fn passed(&self) -> Option<Incoming> {
        (self.left == 0).then_some(Incoming::TooLong { tag: self.tag })
    }
}

/// The statements and portals, to limit their number and what portals keep. Unnamed ones replace
/// each other.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// Named ones; each has its own room.
    statements: BTreeSet<String>,
    /// With the room for their parameters; the unnamed one is [`UNNAMED`].
    portals: BTreeMap<String, KeptRoom>,
}

const UNNAMED: &str = "";

/// What a message changes once it has been answered.
pub(super) enum Change {
    None,
    NewStatement(String),
    NewPortal(String, KeptRoom),
    CloseStatement(String),
    ClosePortal(String),
    /// As in PostgreSQL, portals end with their transaction.
    EndPortals,
}

impl Change {
    /// # Errors
    /// There is no room for what it adds.
    pub(super) fn of(
        message: &PgWireFrontendMessage,
        room_for: &dyn Fn(usize) -> Result<KeptRoom, ErrorReply>,
    ) -> Result<Self, ErrorReply> {
        Ok(match message {
            PgWireFrontendMessage::Parse(Parse { name: Some(name), .. }) => Self::NewStatement(name.clone()),
            PgWireFrontendMessage::Bind(bind) => Self::NewPortal(
                bind.portal_name.clone().unwrap_or_default(),
                room_for(size(bind))?,
            ),
            PgWireFrontendMessage::Close(Close {
                target_type: b'S',
                name: Some(name),
                ..
            }) => Self::CloseStatement(name.clone()),
            PgWireFrontendMessage::Close(Close {
                target_type: b'P',
                name,
                ..
            }) => Self::ClosePortal(name.clone().unwrap_or_default()),
            PgWireFrontendMessage::Sync(_) | PgWireFrontendMessage::Query(_) => Self::EndPortals,
            _ => Self::None,
        })
    }
}

/// The bytes that a portal keeps beside its statement. What is below a KiB is not counted: one
/// without parameters finds room where nothing else does.
fn size(bind: &Bind) -> usize {
    let values = bind.parameters.iter().flatten().map(Bytes::len).sum::<usize>();
    let formats = bind.parameter_format_codes.len() + bind.result_column_format_codes.len();
    let bytes = values + bind.parameters.len() * size_of::<Option<Bytes>>() + formats * size_of::<i16>();
    bytes / 1024 * 1024
}

impl Names {
    /// As in PostgreSQL, the unnamed statement or portal is gone before there is another, also if
    /// that fails. It leaves its room.
    pub(super) fn make_way(&mut self, message: &PgWireFrontendMessage, wire: &Wire) {
        match message {
            PgWireFrontendMessage::Parse(Parse { name: None, .. }) => {
                wire.portal_store().rm_statement(DEFAULT_NAME);
            }
            PgWireFrontendMessage::Bind(Bind {
                portal_name: None, ..
            }) => {
                wire.portal_store().rm_portal(DEFAULT_NAME);
                self.portals.remove(UNNAMED);
            }
            _ => {}
        }
    }

    pub(super) fn apply(&mut self, change: Change, wire: &Wire) {
        match change {
            Change::None => {}
            Change::NewStatement(name) => {
                self.statements.insert(name);
            }
            Change::NewPortal(name, room) => {
                self.portals.insert(name, room);
            }
            Change::CloseStatement(name) => {
                self.statements.remove(&name);
            }
            Change::ClosePortal(name) => {
                self.portals.remove(&name);
            }
            Change::EndPortals => {
                // Those of a block live as long as it.
                if wire.transaction_status() == TransactionStatus::Idle {
                    self.end_portals(wire);
                }
            }
        }
    }

    pub(super) fn has_portals(&self) -> bool {
        !self.portals.is_empty()
    }

    pub(super) fn end_portals(&mut self, wire: &Wire) {
        wire.portal_store().clear_portals();
        self.portals.clear();
    }

    pub(super) fn drop_statements(&mut self, dropped: &Dropped, wire: &Wire) {
        match dropped {
            Dropped::One(name) => {
                wire.portal_store().rm_statement(name);
                self.statements.remove(name);
            }
            Dropped::All => {
                for name in std::mem::take(&mut self.statements) {
                    wire.portal_store().rm_statement(&name);
                }
            }
        }
    }
}

/// Reads one frame, all of it.
///
/// # Errors
/// The error for the client; the next frame is not affected.
pub(super) fn read(incoming: &Incoming, names: &Names) -> Result<ConsoleRequest, ErrorReply> {
    let Incoming::Whole(frame) = incoming else {
        return Err(ErrorReply::error(
            SqlState::PROGRAM_LIMIT_EXCEEDED,
            "a message to the console has at most 65,536 bytes",
        )
        .hint("Make the query shorter, or its parameters, or ask in several queries."));
    };
    let mut body = BodyReader::new(&frame.body);
    let request = match frame.tag {
        b'X' => ConsoleRequest::Terminate,
        b'Q' => ConsoleRequest::Message(PgWireFrontendMessage::Query(Query::new(text(&mut body)?))),
        b'P' => ConsoleRequest::Message(PgWireFrontendMessage::Parse(parse(&mut body, names)?)),
        b'B' => ConsoleRequest::Message(PgWireFrontendMessage::Bind(bind(&mut body, names)?)),
        b'D' => {
            let (target, name) = target(&mut body)?;
            ConsoleRequest::Message(PgWireFrontendMessage::Describe(Describe::new(target, name)))
        }
        b'C' => {
            let (target, name) = target(&mut body)?;
            ConsoleRequest::Message(PgWireFrontendMessage::Close(Close::new(target, name)))
        }
        b'E' => {
            let portal = name(&mut body)?;
            let rows = number(&mut body)?;
            // 0 and what is negative: all.
            let rows = if rows.cast_signed() <= 0 {
                0
            } else {
                rows.min(MAX_ROWS)
            };
            ConsoleRequest::Message(PgWireFrontendMessage::Execute(Execute::new(
                portal,
                rows.cast_signed(),
            )))
        }
        b'H' => ConsoleRequest::Message(PgWireFrontendMessage::Flush(Flush::new())),
        b'S' => ConsoleRequest::Message(PgWireFrontendMessage::Sync(Sync::new())),
        tag => {
            return Err(violation(format!("invalid frontend message type 0x{tag:02x}")));
        }
    };
    body.finish().map_err(malformed)?;
    Ok(request)
}

fn parse(body: &mut BodyReader<'_>, names: &Names) -> Result<Parse, ErrorReply> {
    let name = name(body)?;
    let is_new = |name: &String| !names.statements.contains(name);
    if name.as_ref().is_some_and(is_new) {
        room(names.statements.len(), MAX_STATEMENTS, "prepared statements")?;
    }
    let sql = text(body)?;
    let mut types = Vec::new();
    for _ in 0..bounded(short(body)?)? {
        types.push(number(body)?);
    }
    Ok(Parse::new(name, sql, types))
}

fn bind(body: &mut BodyReader<'_>, names: &Names) -> Result<Bind, ErrorReply> {
    let portal = name(body)?;
    let is_new = |name: &String| !names.portals.contains_key(name);
    if portal.as_ref().is_some_and(is_new) {
        let unnamed = usize::from(names.portals.contains_key(UNNAMED));
        room(names.portals.len() - unnamed, MAX_PORTALS, "portals")?;
    }
    let statement = name(body)?;
    let codes = formats(body)?;
    let count = bounded(short(body)?)?;
    if codes.len() > 1 && codes.len() != count {
        return Err(violation(format!(
            "bind message has {} parameter formats but {count} parameters",
            codes.len()
        )));
    }
    let mut values = Vec::new();
    for _ in 0..count {
        values.push(value(body)?);
    }
    let results = formats(body)?;
    Ok(Bind::new(portal, statement, codes, values, results))
}

fn bounded(count: u16) -> Result<usize, ErrorReply> {
    let count = usize::from(count);
    if count > MAX_PARAMETERS {
        return Err(ErrorReply::error(
            SqlState::PROGRAM_LIMIT_EXCEEDED,
            format!("a statement of the console has at most {MAX_PARAMETERS} parameters"),
        ));
    }
    Ok(count)
}

/// Of one parameter; `None` is null.
fn value(body: &mut BodyReader<'_>) -> Result<Option<Bytes>, ErrorReply> {
    let length = number(body)?.cast_signed();
    match usize::try_from(length) {
        Ok(length) => {
            let bytes = body.take(length).map_err(malformed)?;
            Ok(Some(Bytes::copy_from_slice(bytes)))
        }
        Err(_) if length == -1 => Ok(None),
        Err(_) => Err(violation(format!("invalid length {length} of a parameter"))),
    }
}

/// 0 for text, 1 for binary.
fn formats(body: &mut BodyReader<'_>) -> Result<Vec<i16>, ErrorReply> {
    let mut formats = Vec::new();
    for _ in 0..short(body)? {
        match short(body)? {
            code @ (0 | 1) => formats.push(i16::from(code == 1)),
            code => {
                return Err(ErrorReply::error(
                    SqlState::INVALID_PARAMETER_VALUE,
                    format!("unsupported format code: {code}"),
                ));
            }
        }
    }
    Ok(formats)
}

fn target(body: &mut BodyReader<'_>) -> Result<(u8, Option<String>), ErrorReply> {
    match body.byte().map_err(malformed)? {
        target @ (b'S' | b'P') => Ok((target, name(body)?)),
        other => Err(violation(format!("invalid message subtype {other}"))),
    }
}

/// `None` for the unnamed one.
fn name(body: &mut BodyReader<'_>) -> Result<Option<String>, ErrorReply> {
    let name = text(body)?;
    if name.len() > MAX_NAME {
        return Err(ErrorReply::error(
            SqlState::NAME_TOO_LONG,
            format!("a name here has at most {MAX_NAME} bytes"),
        ));
    }
    Ok((!name.is_empty()).then_some(name))
}

fn text(body: &mut BodyReader<'_>) -> Result<String, ErrorReply> {
    let text = body.cstr().map_err(malformed)?;
    let text = std::str::from_utf8(text).map_err(|_| {
        ErrorReply::error(
            SqlState::CHARACTER_NOT_IN_REPERTOIRE,
            "invalid byte sequence for encoding \"UTF8\"",
        )
    })?;
    Ok(text.to_owned())
}

/// For one more.
fn room(count: usize, most: usize, what: &str) -> Result<(), ErrorReply> {
    if count < most {
        return Ok(());
    }
    Err(ErrorReply::error(
        SqlState::PROGRAM_LIMIT_EXCEEDED,
        format!("a session with the console has at most {most} {what}"),
    )
    .hint("Close some."))
}

fn number(body: &mut BodyReader<'_>) -> Result<u32, ErrorReply> {
    body.u32().map_err(malformed)
}

fn short(body: &mut BodyReader<'_>) -> Result<u16, ErrorReply> {
    let bytes = body.take(2).map_err(malformed)?;
    Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
}

fn malformed(fault: FrameError) -> ErrorReply {
    violation(fault.to_string())
}

fn violation(what: String) -> ErrorReply {
    ErrorReply::error(SqlState::PROTOCOL_VIOLATION, what)
}
