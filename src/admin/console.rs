//! The console over the PostgreSQL protocol: `psql "host=… port=6432 dbname=trunkline user=admin"`.
//!
//! Clients are authenticated before they get here, over TLS if they asked for it. pgwire's handlers
//! answer. In front of them, every frame is cut by its length, read within limits and checked
//! ([`request`]), because pgwire's own decoders panic on a truncated message, read past the end of
//! a frame and allocate as much as a client asks for.
//!
//! Refuses: transactions (nothing here could be rolled back) and several commands in one query.

mod catalog;
mod command;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod handler;
mod orders;
mod request;
mod statement;
#[cfg(test)]
mod tests;
mod transfer;
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
use pgwire::tokio::server::{PgWireMessageServerCodec, process_error, process_message};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::codec::Framed;

use super::handles::Handles;
use super::sql::Session;
use super::write_timeout::WriteTimeout;
use crate::frontend::ClientStream;
use crate::session::console::{ConsoleClient, ConsoleEnd};
use crate::session::end::{Cause, Reason};
use crate::wire::frame::{self, Frame};
use crate::wire::message;
use handler::Handler;
pub(in crate::admin) use handler::limits;
pub use orders::ConsoleOrders;
use orders::SessionOrders;
use request::{Change, ConsoleRequest, Names};
use statement::Statement;

/// For an answer that makes no progress because the client does not read it.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// Settings of a session, as drivers read them: the version of the oldest PostgreSQL that the
/// router supports, so that no driver expects more, and `off` for drivers that look for a server
/// that accepts writes.
const SETTINGS: [(&str, &str); 10] = [
    (
        "server_version",
        concat!("14.0 (Trunkline ", env!("CARGO_PKG_VERSION"), ")"),
    ),
    ("server_encoding", "UTF8"),
    ("client_encoding", "UTF8"),
    ("DateStyle", "ISO, MDY"),
    ("IntervalStyle", "postgres"),
    ("TimeZone", "UTC"),
    ("integer_datetimes", "on"),
    ("standard_conforming_strings", "on"),
    ("default_transaction_read_only", "off"),
    ("in_hot_standby", "off"),
];

type Io = WriteTimeout<ClientStream>;
type Wire = Framed<Io, PgWireMessageServerCodec<Statement>>;

/// Answers commands. One for all sessions.
pub struct Console {
    handles: Handles,
    orders: ConsoleOrders,
    /// As clients ask for it.
    database: String,
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
        }
    }
}

impl crate::session::console::Console for Console {
    fn serve(&self, client: ConsoleClient) -> Pin<Box<dyn Future<Output = ConsoleEnd> + Send>> {
        let orders = SessionOrders {
            about: self.orders.clone(),
            is_operator: client.is_operator,
            by: client.by.clone(),
            closing: client.closing.clone(),
        };
        let session = Session {
            user: client.user.clone(),
            database: self.database.clone(),
            version: format!("PostgreSQL {}", SETTINGS[0].1),
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
}

impl Conversation {
    async fn begin(handler: Arc<Handler>, client: ConsoleClient) -> ConsoleEnd {
        let ConsoleClient {
            stream,
            user,
            mut welcome,
            closing,
            ..
        } = client;
        for (name, value) in SETTINGS {
            message::parameter_status(&mut welcome, name.as_bytes(), value.as_bytes());
        }
        message::parameter_status(&mut welcome, b"session_authorization", user.as_bytes());
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
        };
        let cause = match conversation.greet(&welcome).await {
            Ok(()) => loop {
                // An answer is finished before the end of the process counts.
                let frame = tokio::select! {
                    biased;
                    () = closing.cancelled() => break Cause::Ordered(Reason::Shutdown),
                    frame = conversation.frame() => frame,
                };
                let next = match frame {
                    Ok(frame) => conversation.answer(frame).await,
                    Err(cause) => Err(cause),
                };
                if let Err(cause) = next {
                    break cause;
                }
            },
            Err(_gone) => gone(),
        };
        ConsoleEnd {
            stream: conversation.wire.into_inner().into_inner(),
            cause,
        }
    }

    async fn greet(&mut self, welcome: &[u8]) -> io::Result<()> {
        let io = self.wire.get_mut();
        io.write_all(welcome).await?;
        io.flush().await
    }

    /// The next frame. Cancel safe: bytes that were read stay in the buffer.
    async fn frame(&mut self) -> Result<Frame, Cause> {
        loop {
            if let Some(&tag) = self.buffer.first()
                && !request::is_known(tag)
            {
                return Err(Cause::ClientProtocol(format!(
                    "invalid frontend message type 0x{tag:02x}"
                )));
            }
            match frame::next_frame(&mut self.buffer, request::LARGEST) {
                Ok(Some(frame)) => return Ok(frame),
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

    async fn answer(&mut self, frame: Frame) -> Result<(), Cause> {
        // After a failed request everything up to the next Sync is skipped.
        let is_skipping = matches!(self.wire.state(), PgWireConnectionState::AwaitingSync);
        if is_skipping && !matches!(frame.tag, b'S' | b'X') {
            return Ok(());
        }
        let is_simple = frame.tag == b'Q';
        let answered = match request::read(&frame, &self.names) {
            Ok(ConsoleRequest::Terminate) => return Err(Cause::ClientTerminated),
            Ok(ConsoleRequest::Message(message)) => {
                let change = Change::of(&message);
                let answered = self.process(message).await;
                if answered.is_ok() {
                    self.names.apply(change, &self.wire);
                }
                answered
            }
            Err(refusal) => Err(handler::error(&refusal)),
        };
        let answered = match answered {
            Err(pgwire::error::PgWireError::IoError(error)) => Err(error),
            Err(error) => process_error(&mut self.wire, handler::worded(error), !is_simple).await,
            Ok(()) => Ok(()),
        };
        answered.map_err(|_| gone())
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
