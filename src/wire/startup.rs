//! The first packets of a connection: SSLRequest, GSSENCRequest, CancelRequest, the startup packet, and the
//! router's own peer request.

use bytes::Bytes;

/// A protocol version 3.x.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProtocolVersion {
    pub minor: u16,
}

impl ProtocolVersion {
    pub const V3_0: Self = Self { minor: 0 };
    pub const V3_2: Self = Self { minor: 2 };
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

/// A CancelRequest as received. The key's length is that of the packet.
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
    /// Never empty.
    pub user: Bytes,
    /// The user's name where the client gave none.
    pub database: Bytes,
    pub replication: Replication,
}

/// Why a first packet is refused. `reply` says what the client is told, if anything.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StartupFault {
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
}
