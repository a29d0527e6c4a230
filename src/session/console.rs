//! A session with the router's own console: no server is attached, everything else is as for any session.
//!
//! What the console answers is not this room's: it is handed in, and runs in a task of its own, so that a fault in it
//! ends that one session.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use bytes::BytesMut;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::Shared;
use super::arrival::WelcomedClient;
use super::close::close_with_error;
use super::end::{Cause, End};
use super::record;
use super::registry::Traffic;
use crate::cluster::snapshot::MemberName;
use crate::config;
use crate::frontend::{ClientStream, RefuseReason};
use crate::wire::message::{self, ErrorReply};
use crate::wire::sqlstate::SqlState;
use crate::wire::startup::{Replication, StartupPacket};
use crate::wire::text::Escaped;

/// As the member in the log and in metrics.
const MEMBER: &str = "console";

/// Talks to clients that may use it. Made by `runtime`.
pub trait Console: Send + Sync {
    /// Until the client goes, breaks the protocol, or is sent away because the process ends.
    fn serve(&self, visitor: Visitor) -> Pin<Box<dyn Future<Output = Departure> + Send>>;
}

/// A client that has proven who it is and may use the console.
#[derive(Debug)]
pub struct Visitor {
    pub stream: ClientStream,
    /// As it named itself.
    pub user: String,
    /// What it has to hear before anything else: the end of the authentication.
    pub welcome: BytesMut,
    /// Cancelled when it is to be sent away.
    pub closing: CancellationToken,
}

/// The end of a conversation.
#[derive(Debug)]
pub struct Departure {
    /// Everything said so far has been written.
    pub stream: ClientStream,
    pub cause: Cause,
}

/// The console, and whom it is for.
pub struct ConsoleAccess {
    config: config::Console,
    console: Arc<dyn Console>,
}

impl fmt::Debug for ConsoleAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConsoleAccess")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl ConsoleAccess {
    pub fn new(config: config::Console, console: Arc<dyn Console>) -> Self {
        Self { config, console }
    }

    /// Whether a client asks for the console. Physical replication names no database.
    pub(super) fn is_meant(&self, packet: &StartupPacket) -> bool {
        packet.replication != Replication::Physical && packet.database == self.config.database.as_bytes()
    }

    /// Or what the client is told. A name is one cluster's: whoever may make roles in another one is not meant.
    fn admits(&self, user: &[u8], cluster: &str) -> Result<(), String> {
        if *self.config.cluster != *cluster {
            return Err(format!(
                "It is for users of the cluster \"{}\": use a listener of that cluster.",
                self.config.cluster
            ));
        }
        if self.config.users.iter().any(|name| name.as_bytes() == user) {
            return Ok(());
        }
        Err("Ask the operator to add the user to console.users.".to_owned())
    }
}

/// Serves an authenticated client that asks for the console, to the session's one log line.
pub(super) async fn visit(client: WelcomedClient, shared: &Shared) {
    let WelcomedClient {
        stream,
        mut welcome,
        mut record,
        admitted,
    } = client;
    let Some(access) = shared.console.load_full() else {
        return;
    };
    if let Err(hint) = access.admits(&record.client().user, &record.listener.cluster.config().name) {
        shared.metrics.refuse(RefuseReason::Console);
        record.refused(shared, "not one of console.users of console.cluster");
        message::error(&mut welcome, &not_admitted(&record.client().database, &hint));
        return close_with_error(stream, welcome).await;
    }
    let member = MemberName::new(MEMBER);
    let gauge = shared.metrics.session(&record.listener.route.name, &member, None);
    record.member = Some(member);
    let visitor = Visitor {
        stream,
        user: String::from_utf8_lossy(&record.client().user).into_owned(),
        welcome,
        closing: shared.closing.clone(),
    };
    let (cause, stream) = isolated(access.console.serve(visitor)).await;
    // An answer is finished before the end is looked at: nothing is under way.
    let end = End::from(cause);
    record::log_end(&end, &record, Traffic::default());
    shared.metrics.end(&record.listener.route.name, &end);
    if let Some(stream) = stream {
        let mut out = BytesMut::new();
        if let Some(reply) = end.reply() {
            message::error(&mut out, &reply);
        }
        close_with_error(stream, out).await;
    }
    drop((gauge, admitted));
}

/// In a task of its own; a panic there takes the client's connection with it, and nothing else.
async fn isolated(
    conversation: Pin<Box<dyn Future<Output = Departure> + Send>>,
) -> (Cause, Option<ClientStream>) {
    match AbortOnDropHandle::new(tokio::spawn(conversation)).await {
        Ok(Departure { stream, cause }) => (cause, Some(stream)),
        Err(_panicked) => (Cause::ConsoleFault, None),
    }
}

fn not_admitted(database: &[u8], hint: &str) -> ErrorReply {
    ErrorReply::fatal(
        SqlState::INSUFFICIENT_PRIVILEGE,
        format!("permission denied for database \"{}\"", Escaped(database)),
    )
    .detail("It is the router's console.")
    .hint(hint)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tokio::io::AsyncReadExt;
    use tokio::net::UnixStream;

    use super::*;

    #[tokio::test]
    async fn a_panic_ends_its_own_session_only() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (cause, stream) = isolated(Box::pin(async move {
            let _held = ours;
            panic!("on purpose")
        }))
        .await;
        assert_eq!(cause, Cause::ConsoleFault);
        assert!(stream.is_none());
        assert_eq!(theirs.read(&mut [0]).await.unwrap(), 0, "the client is cut off");
    }
}
