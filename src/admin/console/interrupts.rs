//! What ends the wait of a client for its answer: its cancel request, its leaving, the end of its
//! session.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::frontend::HangUp;
use crate::session::registry::ConsoleSession;
use crate::wire::message::ErrorReply;
use crate::wire::sqlstate::SqlState;

/// Of one session.
#[derive(Debug)]
pub(super) struct Interrupts {
    pub(super) session: Arc<ConsoleSession>,
    /// Cancelled when all sessions with the console have to end.
    pub(super) closing: CancellationToken,
    /// `None`: the process had no descriptor left, and a client that leaves is noticed at the
    /// answer.
    pub(super) hang_up: Option<HangUp>,
}

/// Why something is not waited for any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Interrupt {
    Cancelled,
    /// The client has left.
    Gone,
    /// An operator has ended the session.
    Killed,
    /// The process ends, or was replaced.
    Closing,
}

impl Interrupts {
    /// The result, or what came before it. A client that leaves ends it, too.
    pub(super) async fn unless<T>(&self, work: impl Future<Output = T>) -> Result<T, Interrupt> {
        let gone = async {
            match &self.hang_up {
                Some(watched) => watched.hung_up().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            done = self.unless_ended(work) => done,
            () = gone => Err(Interrupt::Gone),
        }
    }

    /// As [`Self::unless`], also for clients that send no more and wait for the answer.
    pub(super) async fn unless_ended<T>(&self, work: impl Future<Output = T>) -> Result<T, Interrupt> {
        let request = self.session.begin();
        tokio::select! {
            biased;
            done = work => Ok(done),
            () = self.session.has_to_end_now() => Err(Interrupt::Killed),
            () = self.closing.cancelled() => Err(Interrupt::Closing),
            () = request.cancelled() => Err(Interrupt::Cancelled),
        }
    }
}

impl Interrupt {
    /// `goes_on`: what becomes of the order; a sentence, or nothing.
    pub(super) fn reply(self, goes_on: &str) -> ErrorReply {
        let (reply, advice) = match self {
            Self::Cancelled | Self::Gone => {
                let text = "canceling statement due to user request";
                (ErrorReply::error(SqlState::QUERY_CANCELED, text), "")
            }
            Self::Killed => {
                let text = "terminating connection due to administrator command";
                (ErrorReply::error(SqlState::ADMIN_SHUTDOWN, text), "")
            }
            Self::Closing => {
                let text = "this process of the router ends its sessions with the console";
                (
                    ErrorReply::error(SqlState::ADMIN_SHUTDOWN, text),
                    "Connect again. ",
                )
            }
        };
        match format!("{advice}{goes_on}").trim_end() {
            "" => reply,
            hint => reply.hint(hint),
        }
    }
}
