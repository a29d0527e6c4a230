//! A session on a route with a pool: it has a server connection while it needs one.
//!
//! ```text
//! Detached ── a request ──► Waiting ── a connection ──► (restore) ──► Relaying
//!     ▲                                                                  │ boundary
//!     └──────── release ◄── nothing pins ◄── (question, if in doubt) ◄───┘
//! ```
//! In session mode the first connection stays until the session ends.
//!
//! One task owns the session. While it relays, it takes turns like every relay
//! ([`crate::session::turns`]). What needs a wait, or an answer of the server to the router itself,
//! is a [`Pause`]: the turns stop, the task awaits it, and the turns go on.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::aborted::{Block, Refused};
use super::acquire::Want;
use super::connection::{PooledConnection, path_of};
use super::hints::Hints;
use super::key::Recipe;
use super::metrics::{DiscardReason, ExchangeKind};
use super::open::Opener;
use super::pool::Pool;
use super::state::{BeforeIdle, Confirmed, Doubts, Pins, Question, Reported, Restore, StateOptions};
use super::statements::{Interner, SessionStatements};
use super::timers::Timers;
use super::wary::Wary;
use crate::backend::ServerStream;
use crate::cluster::ClusterHandle;
use crate::config::{PoolMode, Route};
use crate::frontend::ClientStream;
use crate::session::client::Client;
use crate::session::end::{Cause, Fate, Reason};
use crate::session::gate::Gate;
use crate::session::registry::{Phase, SessionEntry};
use crate::session::stream::SessionStream;
use crate::session::turns::{self, Turns};

/// Why a session's turns stop.
#[derive(Debug)]
pub(in crate::session) enum Pause {
    /// A request is there, and no connection is idle.
    Wait,
    /// The client has sent something that must not be read while clients are held.
    Unread,
    // Boxed, as all that is rare and large: an idle session holds the room of a pause.
    /// The connection has another session's settings.
    Restore(Box<Restore>),
    /// At a boundary it is not known what the session has.
    Ask(Box<Question>),
    /// At a boundary, while a cancel request for the session is in progress.
    Cancel,
    /// At a boundary: these settings must not stay on an idle connection.
    Quiet(Box<BeforeIdle>),
    /// At a boundary: the role of the connection may be gone.
    Role,
    /// At a boundary: the connection must not be used again.
    Discard(DiscardReason),
    /// The connection is lost, or must be left at once.
    Lost(Box<Cause>),
    /// The client is in a failed transaction, and the connection is not.
    Fail,
    /// The session is over.
    End(Cause),
}

/// What a session needs of the process, its route and its pool. One value for all sessions of a
/// worker that have the same connections ([`Pool::home`]).
#[derive(Debug)]
pub(super) struct Home<S: SessionStream = ServerStream> {
    /// How messages pass, and whether the session's state is known: both in transaction mode only.
    pub(super) mode: PoolMode,
    /// The session keeps its connection between transactions, although its state is known.
    pub(super) keeps: bool,
    pub(super) pool: Arc<Pool<S>>,
    pub(super) recipe: Arc<Recipe>,
    /// Without the client's address.
    pub(super) want: Want,
    pub(super) route: Arc<Route>,
    pub(super) gate: Arc<Gate>,
    pub(super) cluster: ClusterHandle,
    pub(super) opener: Arc<dyn Opener<S>>,
    pub(super) options: StateOptions,
    /// For one exchange of the router's own with the server.
    pub(super) reset_timeout: Duration,
    /// `custom_settings: close`.
    pub(super) is_strict: bool,
}

impl<S: SessionStream> Home<S> {
    /// The session has one connection until it ends, or loses it.
    pub(super) fn keeps_lease(&self) -> bool {
        self.keeps || self.mode == PoolMode::Session
    }
}

/// What a session has that its server connection must have.
#[derive(Debug)]
pub(super) struct Memory {
    /// As the server said at the last boundary.
    pub(super) confirmed: Confirmed,
    /// What may have changed since.
    pub(super) doubts: Doubts,
    /// What the client was last told of the reported parameters.
    pub(super) told: Reported,
    pub(super) statements: SessionStatements,
    /// What named statements may change that is not seen in a command tag. Names are never taken
    /// away: at worst there is a question too many.
    pub(super) hints: Hints,
    /// What differs from client to client at the startup: `application_name`, the client's address.
    pub(super) own: Vec<(Box<str>, Bytes)>,
    /// Custom names that the session has used.
    pub(super) custom_names: Vec<Box<str>>,
    /// Identifies what decides how a text is parsed: `search_path` and the role.
    pub(super) path: u64,
    /// An Execute has been sent, and no Sync behind it.
    pub(super) is_unsynced: bool,
    /// A Query or FunctionCall was sent behind such an Execute. PostgreSQL 18 may say that it is
    /// idle while a transaction is open (P48), so the connection serves nobody else.
    pub(super) is_tainted: bool,
    /// The name that could not be restored the last time.
    pub(super) not_restored: Option<Box<str>>,
}

/// What a session's log line says of its leases.
#[derive(Debug, Default, Clone, Copy)]
pub(in crate::session) struct LeaseTotals {
    pub(in crate::session) leases: u64,
    pub(in crate::session) waited: Duration,
}

/// See the module.
#[derive(Debug)]
pub(in crate::session) struct PooledSession<C = ClientStream, S: SessionStream = ServerStream> {
    pub(super) client: Client<C>,
    /// The connection that the session has now.
    pub(super) lease: Option<Box<PooledConnection<S>>>,
    pub(super) home: Arc<Home<S>>,
    /// The client's.
    pub(super) address: Option<IpAddr>,
    pub(super) memory: Memory,
    pub(super) turns: Turns,
    /// Read from the client and not passed on: the beginning of a message, or, while the session
    /// waits, its request. At most one read and one message that must be whole.
    pub(super) request: BytesMut,
    /// [`Self::request`] is to be passed on before anything is read.
    pub(super) is_resumed: bool,
    /// Bytes still to come of a long message of the client that passes unchanged.
    pub(super) passing: usize,
    /// The router has answered a batch with an error: everything up to its Sync is dropped.
    pub(super) is_discarding: bool,
    /// That batch, if it is the first that the client has sent since its transaction was lost.
    pub(super) refused: Refused,
    /// What is left of a transaction whose connection was lost.
    pub(super) block: Block,
    /// How often the BEGIN under way was sent again; or, in a failed transaction, whether a server
    /// was to be brought into one in vain.
    pub(super) tries: u8,
    /// What the client has sent is read although clients are held: it has waited unread.
    pub(super) may_read_once: bool,
    /// Whether the client was held, and has left perhaps.
    pub(super) wary: Wary,
    /// A cancel request came for what was not read yet.
    pub(super) cancels_unread: bool,
    /// The server was heard before the client's next request is read.
    pub(super) has_let_speak: bool,
    /// The client has closed its side.
    pub(super) is_closed: bool,
    /// What it left under way is being cancelled.
    pub(super) is_cancelled: bool,
    /// Transactions on the connections before this one, less those of this one before this lease.
    pub(super) transactions: u64,
    pub(super) timers: Timers,
    pub(super) totals: LeaseTotals,
    /// To be done before the first turn.
    pub(super) first: Option<Pause>,
}

impl<S: SessionStream> Home<S> {
    /// What its sessions have is known without their server connections.
    pub(super) fn is_tracked(&self) -> bool {
        self.mode == PoolMode::Transaction
    }
}

impl Memory {
    pub(super) fn new(
        own: Vec<(Box<str>, Bytes)>,
        told: Reported,
        interner: &Interner,
        limits: super::statements::Limits,
    ) -> Self {
        let mut memory = Self {
            confirmed: Confirmed::default(),
            own,
            doubts: Doubts::default(),
            told,
            statements: SessionStatements::new(interner, limits),
            hints: Hints::default(),
            custom_names: Vec::new(),
            path: 0,
            is_unsynced: false,
            is_tainted: false,
            not_restored: None,
        };
        memory.give_own();
        memory.path = path_of(&memory.confirmed.settings);
        let given: Vec<Box<str>> = memory.confirmed.settings.custom_names().map(Box::from).collect();
        for name in given {
            memory.keep_custom_name(&name);
        }
        memory
    }
}

impl Memory {
    /// After RESET or DISCARD ALL a session has what its own startup packet said, which its server
    /// connections do not have from theirs.
    pub(super) fn give_own(&mut self) {
        for (name, value) in &self.own {
            if self.confirmed.settings.get(name).is_none() {
                let _ = self.confirmed.settings.set(name, Some(value));
            }
        }
    }

    /// The session has used this custom name.
    pub(super) fn keep_custom_name(&mut self, name: &str) {
        keep_name(&mut self.custom_names, name.into());
    }
}

/// Custom names kept for one session or connection. Further ones are not told apart.
const MAX_CUSTOM_NAMES: usize = 256;

pub(super) fn keep_name(names: &mut Vec<Box<str>>, name: Box<str>) {
    if names.len() < MAX_CUSTOM_NAMES && !names.contains(&name) {
        names.push(name);
    }
}

impl<C: SessionStream, S: SessionStream + Send + 'static> PooledSession<C, S> {
    /// A session without a server connection.
    pub(super) fn new(
        client: Client<C>,
        home: Arc<Home<S>>,
        memory: Memory,
        turns: Turns,
        timers: Timers,
    ) -> Self {
        let entry = client.ticket.entry();
        entry.set_phase(Phase::Detached);
        Self {
            address: entry.origin.client.address.ip(),
            client,
            lease: None,
            home,
            memory,
            turns,
            request: BytesMut::new(),
            is_resumed: false,
            passing: 0,
            is_discarding: false,
            refused: Refused::default(),
            block: Block::None,
            tries: 0,
            may_read_once: false,
            wary: Wary::No,
            cancels_unread: false,
            has_let_speak: false,
            is_closed: false,
            is_cancelled: false,
            transactions: 0,
            timers,
            totals: LeaseTotals::default(),
            first: None,
        }
    }

    /// Serves the client until the session is over. Borrows the session, so that a session's task
    /// holds it once.
    pub(in crate::session) async fn run(&mut self) -> Cause {
        let mut pause = self.first.take();
        let cause = 'session: loop {
            while let Some(this) = pause {
                // Boxed: an idle session must not hold the memory of a wait.
                let next = match this {
                    Pause::End(cause) => break 'session Box::pin(self.heard_out(cause)).await,
                    Pause::Wait => Box::pin(self.wait()).await,
                    Pause::Unread => Box::pin(self.stay_unread()).await,
                    Pause::Restore(restore) => {
                        self.home.pool.meters.exchanged(ExchangeKind::Restore);
                        Box::pin(self.restore(*restore)).await
                    }
                    Pause::Ask(question) => {
                        self.home.pool.meters.exchanged(ExchangeKind::Question);
                        Box::pin(self.ask(*question)).await
                    }
                    Pause::Cancel => Box::pin(self.settle_cancels()).await,
                    Pause::Quiet(before) => {
                        self.home.pool.meters.exchanged(ExchangeKind::Reset);
                        Box::pin(self.quiet(*before)).await
                    }
                    Pause::Role => Box::pin(self.check_role()).await,
                    Pause::Discard(reason) => {
                        self.discard_for(reason);
                        Ok(None)
                    }
                    Pause::Lost(cause) => Box::pin(self.lost(*cause)).await,
                    Pause::Fail => Box::pin(self.fail_transaction()).await,
                };
                pause = match next {
                    Ok(pause) => pause,
                    Err(cause) => break 'session cause,
                };
            }
            pause = Some(std::future::poll_fn(|cx| turns::poll(self, cx)).await);
        };
        self.note_end(&cause);
        cause
    }

    /// A session is cut with a request under way: what the server has said meanwhile may be the
    /// answer, or its own last word.
    async fn heard_out(&mut self, cause: Cause) -> Cause {
        if let Cause::Ordered(Reason::TimedOut(timeout)) = &cause {
            self.home.pool.meters.timed_out((*timeout).into());
        }
        if matches!(cause, Cause::Ordered(_)) && self.fate() == Fate::Unknown {
            // Lets the driver learn what the kernel has.
            tokio::task::yield_now().await;
            let said = std::future::poll_fn(|cx| std::task::Poll::Ready(self.hear_out(cx))).await;
            return said.unwrap_or(cause);
        }
        cause
    }

    pub(super) fn entry(&self) -> &Arc<SessionEntry> {
        self.client.ticket.entry()
    }

    /// What is known of the client's last request.
    pub(super) fn fate(&self) -> Fate {
        self.lease
            .as_ref()
            .map_or(Fate::Settled, |lease| lease.link.fate())
    }

    /// The server owes nothing, no transaction is open, and nothing of the client's is on its way.
    pub(super) fn is_at_boundary(&self) -> bool {
        self.lease.as_ref().is_none_or(|lease| {
            lease.link.is_at_boundary() && lease.state.partial.is_empty() && self.passing == 0
        })
    }

    /// At a boundary, with nothing that only this connection has: the session can have another.
    pub(super) fn can_move(&self) -> bool {
        self.home.mode == PoolMode::Transaction
            && !self.memory.is_tainted
            && self.memory.doubts.is_empty()
            && self.memory.confirmed.pins.is_empty()
            && self.is_at_boundary()
    }

    /// Another session may have the connection now.
    pub(super) fn release(&mut self) {
        if let Some(lease) = self.detach() {
            self.home.pool.release(lease);
        }
    }

    /// Closes the connection, on which a statement of the router's own failed; the session goes on
    /// without one.
    pub(super) fn discard(&mut self) {
        self.discard_for(DiscardReason::Failed);
    }

    pub(super) fn discard_for(&mut self, reason: DiscardReason) {
        if let Some(lease) = self.detach() {
            self.home.pool.meters.discarded(reason);
            drop(lease);
        }
        self.memory.is_tainted = false;
    }

    fn detach(&mut self) -> Option<Box<PooledConnection<S>>> {
        let mut lease = self.lease.take()?;
        let entry = self.client.ticket.entry();
        entry.place(None);
        entry.set_phase(Phase::Detached);
        lease.permit.pin(Pins::NONE);
        self.home
            .pool
            .meters
            .statements(lease.state.statements.take_counts());
        self.transactions = self.client.traffic.transactions;
        self.timers.stop();
        Some(lease)
    }

    /// Begins a lease. `Some`: something must be done before the first request is passed on.
    pub(super) fn adopt(&mut self, mut lease: Box<PooledConnection<S>>) -> Option<Pause> {
        let entry = self.client.ticket.entry();
        entry.place(Some(Arc::clone(&lease.link.placement)));
        entry.set_held_since(lease.since);
        lease.is_lent = true;
        entry.set_phase(Phase::Relaying);
        self.totals.leases += 1;
        self.transactions = self
            .client
            .traffic
            .transactions
            .wrapping_sub(lease.link.pending.transactions());
        self.memory.confirmed.settings.unify(&mut lease.state.settings);
        let restore = Restore::between(&lease.state.settings, &self.memory.confirmed.settings);
        let lease = self.lease.insert(lease);
        // A reload may have changed them.
        let limits = self.home.pool.statement_limits();
        self.memory.statements.set_limits(limits);
        lease.state.statements.set_limits(limits);
        let are_read = self.home.pool.reads_sequences();
        lease.state.statements.lent(&self.memory.statements, are_read);
        if let Some(restore) = restore {
            return Some(Pause::Restore(Box::new(restore)));
        }
        lease.state.settings.clone_from(&self.memory.confirmed.settings);
        self.report_differences();
        self.restored()
    }

    /// The connection has the session's settings.
    pub(super) fn restored(&self) -> Option<Pause> {
        self.block.is_open().then_some(Pause::Fail)
    }

    /// Tells the client which reported parameters are not what it was last told.
    pub(super) fn report_differences(&mut self) {
        let Some(lease) = &mut self.lease else { return };
        if self.memory.told.unify(&mut lease.state.now) {
            return;
        }
        let mut out = BytesMut::new();
        for (name, value) in lease.state.now.differences(&self.memory.told) {
            crate::wire::message::parameter_status(&mut out, name, value);
        }
        self.memory.told = lease.state.now.clone();
        if !out.is_empty() {
            self.client.answers.push(&out);
        }
    }

    pub(super) fn client_gone(&self) -> Cause {
        if self.client.observer.terminated() {
            Cause::ClientTerminated
        } else {
            Cause::ClientGone
        }
    }
}
