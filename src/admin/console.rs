//! The console over the PostgreSQL protocol: `psql "host=… port=6432 dbname=trunkline user=admin"`.
//!
//! Clients are authenticated before they get here, over TLS if they asked for it. pgwire's handlers
//! answer. In front of them, every frame is cut by its length, read within limits and checked
//! ([`request`]), because pgwire's own decoders panic on a truncated message, read past the end of
//! a frame and allocate as much as a client asks for.
//!
//! Transactions are those of a session that only reads: orders are refused in them, because nothing
//! here could be rolled back.

mod arguments;
mod bound;
mod catalog;
mod command;
mod foreign;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod handler;
#[cfg(test)]
mod holding_tests;
mod interrupts;
mod kept;
#[cfg(test)]
mod kept_tests;
mod orders;
#[cfg(test)]
mod orders_tests;
mod pgbouncer;
mod request;
#[cfg(test)]
mod session_tests;
mod settings;
mod statement;
#[cfg(test)]
mod tests;
mod tokens;
mod transaction;
mod transfer;
mod turns;
mod unread;
mod views;
#[cfg(test)]
mod views_tests;

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use pgwire::api::{ClientInfo, DefaultClient, NoopHandler, PgWireConnectionState};
use pgwire::messages::PgWireFrontendMessage;
use pgwire::messages::response::TransactionStatus;
use pgwire::tokio::server::{PgWireMessageServerCodec, process_error, process_message};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::sleep;
use tokio_util::codec::Framed;
use tokio_util::sync::CancellationToken;

use super::handles::Handles;
use super::sql::Session;
use super::write_timeout::WriteTimeout;
use crate::frontend::ClientStream;
use crate::session::console::{ConsoleClient, ConsoleEnd};
use crate::session::end::{Cause, Reason};
use crate::session::registry::ConsoleSession;
use crate::wire::frame;
use crate::wire::message;
use handler::Handler;
pub(in crate::admin) use handler::limits;
use interrupts::Interrupts;
use kept::Kept;
pub use orders::ConsoleOrders;
use orders::{Looks, SessionOrders};
use request::{Change, ConsoleRequest, Incoming, Names, Passing};

/// For an answer that makes no progress because the client does not read it.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a client has for what it gets of an answer when its session has to end.
const LAST_ANSWER: Duration = Duration::from_secs(2);
/// How long portals of a transaction stay while nothing comes: they hold rows.
const PORTALS_STAY: Duration = Duration::from_mins(1);

type Io = WriteTimeout<ClientStream>;
type Wire = Framed<Io, PgWireMessageServerCodec<Kept>>;

/// Answers commands. One for all sessions.
pub struct Console {
    handles: Handles,
    orders: ConsoleOrders,
    /// As clients ask for it.
    database: String,
    looks: Arc<Looks>,
}

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Console").finish_non_exhaustive()
    }
}

impl Console {
    /// `database`: the name under which clients ask for it.
    pub fn new(handles: Handles, orders: ConsoleOrders, database: String) -> Self {
        Self {
            handles,
            orders,
            database,
            looks: Arc::default(),
        }
    }
}

impl crate::session::console::Console for Console {
    fn serve(&self, client: ConsoleClient) -> Pin<Box<dyn Future<Output = ConsoleEnd> + Send>> {
        let interrupts = Arc::new(Interrupts {
            session: Arc::clone(&client.session),
            closing: client.closing.clone(),
            hang_up: client.stream.watch().ok(),
        });
        let orders = SessionOrders {
            about: self.orders.clone(),
            handles: self.handles.clone(),
            is_operator: client.is_operator.clone(),
            by: client.by.clone(),
            interrupts,
            looks: Arc::clone(&self.looks),
        };
        let session = Session {
            user: client.user.clone(),
            database: self.database.clone(),
            version: format!("PostgreSQL {}", settings::REPORTED[0].1),
        };
        let handler = Handler::new(self.handles.clone(), orders, session);
        Box::pin(Conversation::begin(Arc::new(handler), client))
    }
}

/// One session.
struct Conversation {
    wire: Wire,
    handler: Arc<Handler>,
    names: Names,
    /// Read and not handled yet; never more than one frame and one read.
    buffer: BytesMut,
    passing: Option<Passing>,
    session: Arc<ConsoleSession>,
    /// Bytes of frames that were handled.
    bytes_up: u64,
}

impl Conversation {
    async fn begin(handler: Arc<Handler>, client: ConsoleClient) -> ConsoleEnd {
        let ConsoleClient {
            stream,
            user,
            mut welcome,
            session,
            closing,
            ..
        } = client;
        for (name, value) in settings::REPORTED {
            message::parameter_status(&mut welcome, name.as_bytes(), value.as_bytes());
        }
        message::parameter_status(&mut welcome, b"session_authorization", user.as_bytes());
        session.write_key(&mut welcome);
        message::ready_for_query(&mut welcome, b'I');
        // pgwire requires an address, and nothing here uses it.
        let mut client = DefaultClient::new(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)), stream.is_tls());
        client.set_state(PgWireConnectionState::ReadyForQuery);
        let mut conversation = Self {
            wire: Framed::new(
                WriteTimeout::new(stream, WRITE_TIMEOUT),
                PgWireMessageServerCodec::new(client),
            ),
            handler,
            names: Names::default(),
            buffer: BytesMut::new(),
            passing: None,
            session: Arc::clone(&session),
            bytes_up: 0,
        };
        if conversation.greet(&welcome).await.is_err() {
            return conversation.end(gone(), true);
        }
        loop {
            // An answer is finished before an end counts.
            let incoming = tokio::select! {
                biased;
                cause = has_to_end(&session, &closing) => return conversation.end(cause, true),
                incoming = conversation.incoming() => incoming,
                () = sleep(PORTALS_STAY), if conversation.names.has_portals() => {
                    conversation.names.end_portals(&conversation.wire);
                    continue;
                }
            };
            let incoming = match incoming {
                Ok(incoming) => incoming,
                Err(cause) => return conversation.end(cause, true),
            };
            let answered = tokio::select! {
                biased;
                answered = conversation.answer(incoming) => answered,
                cause = is_late(&session, &closing) => return conversation.end(cause, false),
            };
            conversation.record();
            if let Err(cause) = answered {
                return conversation.end(cause, true);
            }
        }
    }

    /// `is_whole`: every answer so far has been written.
    fn end(self, cause: Cause, is_whole: bool) -> ConsoleEnd {
        self.record();
        let stream = self.wire.into_inner().into_inner();
        ConsoleEnd {
            stream: is_whole.then_some(stream),
            cause,
        }
    }

    fn record(&self) {
        self.session.record(self.bytes_up, self.wire.get_ref().written());
    }

    async fn greet(&mut self, welcome: &[u8]) -> io::Result<()> {
        let io = self.wire.get_mut();
        io.write_all(welcome).await?;
        io.flush().await
    }

    /// The next message. Cancel safe: bytes that were read stay in the buffer.
    async fn incoming(&mut self) -> Result<Incoming, Cause> {
        loop {
            if let Some(&tag) = self.buffer.first()
                && self.passing.is_none()
                && !request::is_known(tag)
            {
                return Err(Cause::ClientProtocol(format!(
                    "invalid frontend message type 0x{tag:02x}"
                )));
            }
            self.passing = self.passing.take().or_else(|| Passing::begins(&self.buffer));
            let next = if let Some(passing) = &mut self.passing {
                self.bytes_up += u64::try_from(passing.pass(&mut self.buffer)).unwrap_or_default();
                Ok(passing.passed())
            } else {
                frame::next_frame(&mut self.buffer, request::LARGEST).map(|frame| {
                    let frame = frame?;
                    // With its type and its length word.
                    self.bytes_up += u64::try_from(frame.body.len() + 5).unwrap_or_default();
                    Some(Incoming::Whole(frame))
                })
            };
            match next {
                Ok(Some(incoming)) => {
                    self.passing = None;
                    return Ok(incoming);
                }
                Ok(None) => {}
                Err(fault) => return Err(Cause::ClientProtocol(fault.to_string())),
            }
            if self.buffer.is_empty() {
                // An idle session holds no buffer.
                self.buffer = BytesMut::new();
            }
            let mut chunk = [0; 1024];
            match self.wire.get_mut().read(&mut chunk).await {
                Ok(0) | Err(_) => return Err(gone()),
                Ok(read) => self.buffer.extend_from_slice(&chunk[..read]),
            }
        }
    }

    async fn answer(&mut self, incoming: Incoming) -> Result<(), Cause> {
        let tag = incoming.tag();
        // After a failed request everything up to the next Sync is skipped.
        let is_skipping = matches!(self.wire.state(), PgWireConnectionState::AwaitingSync);
        if is_skipping && !matches!(tag, b'S' | b'X') {
            return Ok(());
        }
        let is_simple = tag == b'Q';
        let ends = matches!(tag, b'Q' | b'S');
        if !matches!(tag, b'S' | b'X') {
            self.session.begin();
        }
        let answered = match request::read(&incoming, &self.names) {
            Ok(ConsoleRequest::Terminate) => return Err(Cause::ClientTerminated),
            Ok(ConsoleRequest::Message(message)) => {
                self.names.make_way(&message, &self.wire);
                let change = Change::of(&message, &|bytes| self.handler.room_for(bytes));
                match change {
                    Ok(change) => self.change(message, change).await,
                    Err(refusal) => Err(handler::error(&refusal)),
                }
            }
            Err(refusal) => Err(handler::error(&refusal)),
        };
        let answered = match answered {
            Err(pgwire::error::PgWireError::IoError(error)) => Err(error),
            Err(error) => process_error(&mut self.wire, handler::worded(error), !is_simple).await,
            Ok(()) => Ok(()),
        };
        if ends {
            let is_in_block = self.wire.transaction_status() != TransactionStatus::Idle;
            self.session.rest(is_in_block);
        }
        answered.map_err(|_| gone())
    }

    async fn change(
        &mut self,
        message: PgWireFrontendMessage,
        change: Change,
    ) -> pgwire::error::PgWireResult<()> {
        let answered = self.process(message).await;
        if answered.is_ok() {
            self.names.apply(change, &self.wire);
        }
        for dropped in self.handler.take_dropped() {
            self.names.drop_statements(&dropped, &self.wire);
        }
        answered
    }

    async fn process(&mut self, message: PgWireFrontendMessage) -> pgwire::error::PgWireResult<()> {
        let nobody = || Arc::new(NoopHandler);
        process_message(
            message,
            &mut self.wire,
            nobody(),
            Arc::clone(&self.handler),
            Arc::clone(&self.handler),
            nobody(),
            nobody(),
        )
        .await
    }
}

fn gone() -> Cause {
    Cause::ClientGone
}

/// Returns when the session has to end.
async fn has_to_end(session: &ConsoleSession, closing: &CancellationToken) -> Cause {
    tokio::select! {
        biased;
        () = session.has_to_end() => Cause::Ordered(session.ending().unwrap_or(Reason::Killed)),
        () = closing.cancelled() => Cause::Ordered(Reason::Shutdown),
    }
}

/// Returns when an answer must not take longer, because the session has to end.
async fn is_late(session: &ConsoleSession, closing: &CancellationToken) -> Cause {
    let cause = tokio::select! {
        biased;
        () = session.has_to_end_now() => Cause::Ordered(session.ending().unwrap_or(Reason::Killed)),
        () = closing.cancelled() => Cause::Ordered(Reason::Shutdown),
    };
    sleep(LAST_ANSWER).await;
    cause
}
