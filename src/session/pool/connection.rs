//! A server connection that sessions share, one after the other.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use tokio::time::{Instant, Sleep, sleep};

use super::key::ConnectionKey;
use super::permit::Permit;
use super::session::{Memory, keep_name};
use super::state::{Reported, Settings};
use super::statements::{ConnectionStatements, Interner, Limits, Rewriter};
use super::under_way::UnderWay;
use crate::backend::{OrderlyStream, ServerStream};
use crate::cluster::snapshot::MemberName;
use crate::config;
use crate::session::close::CLOSE_WITHIN;
use crate::session::link::Link;
use crate::session::occupancy::Seat;
use crate::session::stream::SessionStream;
use crate::wire::sqlstate::SqlState;

/// What a server reported of its parameters at a login, in its order.
pub(in crate::session) type LoginParameters = Arc<[(Bytes, Bytes)]>;

/// See the module. [`super::permit::OpenPermit::opened`] makes one, in a box: it moves from session
/// to session. Dropping it closes the connection in order and gives its places back: the fields are
/// dropped in their order.
#[derive(Debug)]
pub(in crate::session) struct PooledConnection<S: SessionStream = ServerStream> {
    pub(in crate::session) link: Link<OrderlyStream<S>>,
    pub(super) key: Arc<ConnectionKey>,
    pub(super) login_parameters: LoginParameters,
    /// After this it is closed instead of being used again.
    pub(super) expires: Instant,
    /// When it was opened, came back from its last session, or was given to the one that has it.
    pub(super) since: Instant,
    /// The worker whose reactor drives it.
    pub(super) worker: WorkerId,
    /// Sessions that have had it.
    pub(super) leases: u64,
    /// What its sessions have left on it.
    pub(super) state: ConnectionState,
    /// The server has closed it.
    pub(super) has_ended: bool,
    /// A session has it.
    pub(super) is_lent: bool,
    /// From the server's last word on: how long it is waited for to close the connection.
    pub(super) ending: Option<Pin<Box<Sleep>>>,
    /// Its place among all sessions and connections on the member.
    pub(super) seat: Seat,
    /// Its place among the connections of its pool.
    pub(super) permit: Permit<S>,
}

/// A worker of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::session) struct WorkerId(pub usize);

impl<S: SessionStream> PooledConnection<S> {
    #[cfg(test)]
    pub(in crate::session) fn key(&self) -> &Arc<ConnectionKey> {
        &self.key
    }

    pub(in crate::session) fn member(&self) -> &MemberName {
        &self.link.placement.member
    }

    /// What the server reported at this connection's login.
    pub(in crate::session) fn login_parameters(&self) -> &LoginParameters {
        &self.login_parameters
    }

    /// How often it was leased, this lease included.
    #[cfg(test)]
    pub(in crate::session) fn leases(&self) -> u64 {
        self.leases
    }

    /// The stream, and the places that the connection takes on the server.
    pub(super) fn into_parts(self) -> (Link<OrderlyStream<S>>, (Seat, Permit<S>)) {
        (self.link, (self.seat, self.permit))
    }

    /// Ready: the server has ended its session (FATAL), and not the connection.
    pub(super) fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.link.fatal.is_none() {
            return Poll::Pending;
        }
        let ending = self.ending.get_or_insert_with(|| Box::pin(sleep(CLOSE_WITHIN)));
        ending.as_mut().poll(cx)
    }

    /// Nothing has come since the last answer. Whatever comes unasked (an error, a notification,
    /// the end) makes the connection unusable (P59, P61).
    pub(super) fn is_quiet(&self) -> bool {
        !self.link.stream.has_input()
    }
}

/// What a connection has that is not as after its login, and what is known of its stream.
#[derive(Debug)]
pub(in crate::session) struct ConnectionState {
    /// What differs from what its startup parameters give.
    pub(super) settings: Settings,
    /// The parameters that it reported at its login.
    pub(super) login: Reported,
    /// The same, with what it has reported since.
    pub(super) now: Reported,
    pub(super) statements: ConnectionStatements,
    /// Custom names that were set on it, which it can never lose (P23).
    pub(super) custom_names: Vec<Box<str>>,
    /// The beginning of a message of the server that is not whole.
    pub(super) partial: BytesMut,
    pub(super) role: RoleState,
    /// Room for messages that are rewritten.
    pub(super) scratch: Scratch,
    /// What its session's requests do that are not answered.
    pub(super) under_way: UnderWay,
    /// The client's Query with BEGIN, if it is all that is under way.
    pub(super) begin: BytesMut,
}

/// Whether the role that logged in exists. A session goes on when its role is dropped, also if a
/// role of the same name is made, and then it has no right that was given to a role (P65).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RoleState {
    Exists,
    /// The server has said something that it says of a role that is gone, among others.
    Doubted,
    Gone,
}

impl RoleState {
    /// Fails if the role is gone, whatever the session has set, and asks nothing else.
    pub(super) const QUESTION: &str = "SELECT session_user";

    /// Takes an error of the server.
    pub(super) fn error(&mut self, code: SqlState) {
        let may_be_gone = matches!(
            code,
            SqlState::INSUFFICIENT_PRIVILEGE | SqlState::UNDEFINED_OBJECT
        );
        if may_be_gone && *self == Self::Exists {
            *self = Self::Doubted;
        }
    }

    /// Takes the answer to [`Self::QUESTION`].
    pub(super) fn answer(&mut self, error: Option<SqlState>) {
        match error {
            None => *self = Self::Exists,
            Some(SqlState::UNDEFINED_OBJECT) => *self = Self::Gone,
            Some(_) => {}
        }
    }
}

/// Memory that is used again for every run of the client's bytes. Empty between two of them.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// What goes to the server in place of a run.
    pub(super) out: BytesMut,
    /// What goes to it in place of one message.
    pub(super) extra: BytesMut,
}

/// A connection keeps no more of [`Scratch`] than this.
const MAX_SCRATCH: usize = 4 * 1024;

impl Scratch {
    pub(super) fn take(&mut self) -> Self {
        std::mem::take(self)
    }

    /// For the next run.
    pub(super) fn put_back(&mut self, used: Self) {
        let kept = |mut buffer: BytesMut| {
            buffer.clear();
            if buffer.capacity() <= MAX_SCRATCH {
                buffer
            } else {
                BytesMut::new()
            }
        };
        *self = Self {
            out: kept(used.out),
            extra: kept(used.extra),
        };
    }
}

impl ConnectionState {
    /// After a login that reported these parameters.
    pub(super) fn new(login: Reported, limits: Limits) -> Self {
        Self {
            settings: Settings::NONE,
            now: login.clone(),
            login,
            statements: ConnectionStatements::new(limits),
            custom_names: Vec::new(),
            partial: BytesMut::new(),
            role: RoleState::Exists,
            scratch: Scratch::default(),
            under_way: UnderWay::default(),
            begin: BytesMut::new(),
        }
    }

    /// `Some`: what was kept of the server's stream, and `data`. `None`: nothing was kept.
    pub(super) fn join(&mut self, data: &[u8]) -> Option<BytesMut> {
        if self.partial.is_empty() {
            return None;
        }
        self.partial.extend_from_slice(data);
        Some(std::mem::take(&mut self.partial))
    }

    /// The next message of the client waits for an answer.
    pub(super) fn is_waiting(&mut self, memory: &mut Memory, interner: &Interner) -> bool {
        Rewriter::new(interner, &mut memory.statements, &mut self.statements, None).is_waiting()
    }

    pub(super) fn keep_custom_name(&mut self, name: Box<str>) {
        keep_name(&mut self.custom_names, name);
    }
}

/// Identifies what decides how a text is parsed.
pub(super) fn path_of(settings: &Settings) -> u64 {
    let mut hasher = DefaultHasher::new();
    for name in ["search_path", "role"] {
        settings.get(name).hash(&mut hasher);
    }
    hasher.finish()
}

impl Limits {
    /// No prepared statement is known under two names.
    pub(super) const NONE: Self = Self {
        statements: 0,
        bytes: 0,
    };

    pub(super) fn of(pool: &config::Pool) -> Self {
        Self {
            statements: usize::try_from(pool.max_statements).unwrap_or(usize::MAX),
            bytes: usize::try_from(pool.max_statement_bytes).unwrap_or(usize::MAX),
        }
    }
}
