//! A session with the router's own console. It has no server; everything else is as in other
//! sessions.
//!
//! The console itself belongs to another room and is passed in. It runs in a separate task, so that
//! a fault in it ends only that one session.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use bytes::BytesMut;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::Shared;
use super::arrival::WelcomedClient;
use super::close::close_with_error;
use super::end::{Cause, End, Reason};
use super::life::issue;
use super::record;
use super::registry::{CancelKey, ConsoleSession};
use crate::cluster::snapshot::MemberName;
use crate::config;
use crate::frontend::{ClientStream, RefuseReason};
use crate::wire::message::ErrorReply;
use crate::wire::sqlstate::SqlState;
use crate::wire::startup::{ProtocolVersion, Replication, StartupPacket};
use crate::wire::text::Escaped;

/// The name of the member in the log.
const MEMBER: &str = "console";

/// Serves clients that may use the console. Made by `runtime`.
pub trait Console: Send + Sync {
    /// Serves a client until it leaves or breaks the protocol, or until its session has to end.
    fn serve(&self, client: ConsoleClient) -> Pin<Box<dyn Future<Output = ConsoleEnd> + Send>>;
}

/// Asked for each order: a reload may have taken the right away.
#[derive(Clone)]
pub struct IsOperator(Arc<dyn Fn() -> bool + Send + Sync>);

impl IsOperator {
    pub fn new(holds: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(holds))
    }

    pub fn holds(&self) -> bool {
        (self.0)()
    }
}

impl fmt::Debug for IsOperator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("IsOperator").field(&self.holds()).finish()
    }
}

/// An authenticated client that may use the console.
#[derive(Debug)]
pub struct ConsoleClient {
    pub stream: ClientStream,
    /// The user name that the client sent.
    pub user: String,
    /// Whether it may give orders, by the configuration in use now.
    pub is_operator: IsOperator,
    /// The user and the address, for events.
    pub by: String,
    /// The end of the authentication. The client must get it before anything else.
    pub welcome: BytesMut,
    /// Its entry in the registry: what it does is reported there, and who ends it says so there.
    pub session: Arc<ConsoleSession>,
    /// Cancelled when all sessions with the console have to end.
    pub closing: CancellationToken,
}

/// The end of a session with the console.
#[derive(Debug)]
pub struct ConsoleEnd {
    /// Every answer so far has been written to it. `None`: an answer was cut, and nothing more can
    /// be said.
    pub stream: Option<ClientStream>,
    pub cause: Cause,
}

/// The console, and the rules for its users.
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

    /// Whether this user may use the console; if not, the hint for the client. A user name means a
    /// role of one cluster: a role of the same name in another cluster is another user.
    fn admits(&self, user: &[u8], cluster: &str) -> Result<(), String> {
        if *self.config.cluster != *cluster {
            return Err(format!(
                "The console is for users of the cluster \"{}\". Connect to a listener of that cluster.",
                self.config.cluster
            ));
        }
        if self.config.users.iter().any(|name| name.as_bytes() == user) {
            return Ok(());
        }
        Err("Ask the operator to add the user to console.users.".to_owned())
    }

    fn is_operator(&self, user: &str, cluster: &str) -> bool {
        self.admits(user.as_bytes(), cluster).is_ok() && self.config.operators.iter().any(|name| name == user)
    }
}

/// Serves an authenticated client that asks for the console, and writes the session's log line.
pub(super) async fn visit(client: WelcomedClient, version: ProtocolVersion, shared: &Arc<Shared>) {
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
        record.refused(
            shared,
            "the user is not in console.users, or not of console.cluster",
        );
        record
            .origin
            .counts
            .error(&mut welcome, &not_admitted(&record.client().database, &hint));
        return close_with_error(stream, welcome).await;
    }
    let member = MemberName::new(MEMBER);
    let gauge = shared.metrics.console_session();
    record.member = Some(member);
    let key = CancelKey {
        process_id: shared.registry.pooled_process_id(),
        key: issue(shared, version),
    };
    let ticket = shared.registry.enter_console(Arc::clone(&record.origin), key);
    let user = String::from_utf8_lossy(&record.client().user).into_owned();
    let is_operator = {
        let (shared, user) = (Arc::clone(shared), user.clone());
        let cluster = Arc::clone(&record.listener.cluster.config().name);
        IsOperator::new(move || {
            let access = shared.console.load();
            access
                .as_ref()
                .is_some_and(|access| access.is_operator(&user, &cluster))
        })
    };
    let client = ConsoleClient {
        stream,
        is_operator,
        by: format!("{user} at {} (console)", record.client().address),
        user,
        welcome,
        session: Arc::clone(ticket.session()),
        closing: shared.console_closing.clone(),
    };
    let (cause, stream) = isolated(access.console.serve(client)).await;
    let cause = match cause {
        // The console knows only that all sessions had to end.
        Cause::Ordered(Reason::Shutdown) if !shared.closing.is_cancelled() => {
            Cause::Ordered(Reason::Replaced)
        }
        cause => cause,
    };
    // An order goes on in the router; for the client nothing is under way.
    let end = End::from(cause);
    record::log_end(&end, &record, ticket.session().traffic(), None);
    shared.metrics.end_console(&end);
    drop(ticket);
    if let Some(stream) = stream {
        let mut out = BytesMut::new();
        if let Some(reply) = end.reply() {
            record.origin.counts.error(&mut out, &reply);
        }
        close_with_error(stream, out).await;
    }
    drop((gauge, admitted));
}

/// Runs the console in a separate task. A panic there closes the client's connection and nothing
/// else.
async fn isolated(
    serving: Pin<Box<dyn Future<Output = ConsoleEnd> + Send>>,
) -> (Cause, Option<ClientStream>) {
    match AbortOnDropHandle::new(tokio::spawn(serving)).await {
        Ok(ConsoleEnd { stream, cause }) => (cause, stream),
        Err(_panicked) => (Cause::ConsoleFault, None),
    }
}

fn not_admitted(database: &[u8], hint: &str) -> ErrorReply {
    ErrorReply::fatal(
        SqlState::INSUFFICIENT_PRIVILEGE,
        format!("permission denied for database \"{}\"", Escaped(database)),
    )
    .detail("This database is the router's console.")
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
        assert_eq!(
            theirs.read(&mut [0]).await.unwrap(),
            0,
            "the connection is closed"
        );
    }
}
