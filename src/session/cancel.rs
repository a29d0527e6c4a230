//! Cancel requests: to the session they are for, in this process, in another one of this router that hands over or took
//! over, or on a peer (cases 30–38).
//!
//! Never answered, whatever comes of it; the client's socket is closed only after the server has closed ours, which
//! is when libpq takes the cancel for delivered.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::time::timeout;
use tracing::debug;

use super::Shared;
use super::keys::Owner;
use super::peers::TooMany;
use super::relatives::Answer;
use crate::backend::CancelTarget;
use crate::frontend::ClientStream;
use crate::wire::startup::CancelRequest;

/// For one cancel: connecting to the server, delivering it, and the server's hanging up.
const PATIENCE: Duration = Duration::from_secs(5);

/// What became of a request; the label in metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Forwarded,
    /// The session has nothing under way, or its server gave no key.
    Idle,
    /// Nobody knows the key.
    Unknown,
    /// It carries this router's or a peer's mark without the right seal.
    Forged,
    /// Another process of this router has taken it.
    ByRelative,
    /// A peer has taken it.
    ByPeer,
    Failed,
    /// Too many at once.
    Dropped,
}

impl Outcome {
    fn label(self) -> &'static str {
        match self {
            Self::Forwarded => "forwarded",
            Self::Idle => "idle",
            Self::Unknown => "unknown",
            Self::Forged => "forged",
            Self::ByRelative => "other_process",
            Self::ByPeer => "peer",
            Self::Failed => "failed",
            Self::Dropped => "dropped",
        }
    }
}

/// Serves a client's CancelRequest.
pub(super) async fn serve(shared: &Arc<Shared>, mut stream: ClientStream, request: CancelRequest) {
    let outcome = route(shared, &request).await;
    shared.metrics.cancel(outcome.label());
    debug!(
        process_id = request.process_id,
        outcome = outcome.label(),
        "cancel request"
    );
    let _ = timeout(PATIENCE, stream.shutdown()).await;
}

async fn route(shared: &Arc<Shared>, request: &CancelRequest) -> Outcome {
    let owner = shared.keys.owner(&request.key);
    match owner {
        Owner::Mine => return local(shared, request).await.unwrap_or(Outcome::Unknown),
        Owner::Unknown => {
            if let Some(outcome) = local(shared, request).await {
                return outcome;
            }
        }
        Owner::Forged | Owner::Peer(_) => {}
    }
    // Without peers each process has a seal of its own, and another's looks forged.
    let asked = shared.relatives.ask(request).await;
    match asked {
        Answer::Found => return Outcome::ByRelative,
        Answer::Busy => return Outcome::Dropped,
        Answer::NotFound | Answer::Unasked => {}
    }
    let outcome = match owner {
        Owner::Mine | Owner::Forged => Outcome::Forged,
        Owner::Peer(incarnation) => ask_peers(shared, request, Some(incarnation)).await,
        Owner::Unknown => ask_peers(shared, request, None).await,
    };
    match outcome {
        Outcome::Forged | Outcome::Unknown if asked == Answer::Unasked => Outcome::Failed,
        outcome => outcome,
    }
}

async fn ask_peers(
    shared: &Arc<Shared>,
    request: &CancelRequest,
    owner: Option<super::keys::Incarnation>,
) -> Outcome {
    match shared.peers.load_full() {
        Some(peers) => match peers.ask(request, owner).await {
            Ok(true) => Outcome::ByPeer,
            Ok(false) => Outcome::Unknown,
            Err(TooMany) => Outcome::Dropped,
        },
        None => Outcome::Unknown,
    }
}

/// A peer asks on behalf of its client. `true`: the session is here, or in another process of this router.
pub(super) async fn for_peer(shared: &Arc<Shared>, request: &CancelRequest) -> bool {
    for_relative(shared, request).await != Answer::NotFound
        || shared.relatives.ask(request).await == Answer::Found
}

/// Another process of this router asks.
pub(super) async fn for_relative(shared: &Arc<Shared>, request: &CancelRequest) -> Answer {
    let Some(outcome) = local(shared, request).await else {
        return Answer::NotFound;
    };
    shared.metrics.cancel(outcome.label());
    match outcome {
        Outcome::Dropped => Answer::Busy,
        _ => Answer::Found,
    }
}

/// `None`: no session of this process has that key.
async fn local(shared: &Arc<Shared>, request: &CancelRequest) -> Option<Outcome> {
    let entry = shared.registry.find(request.process_id, &request.key)?;
    let Some(target) = entry.attachment.cancel.as_ref().filter(|_| entry.in_flight()) else {
        return Some(Outcome::Idle);
    };
    // Only for those who know a key: nobody can use up the permits by making keys up.
    let Ok(_permit) = shared.cancels.try_acquire() else {
        return Some(Outcome::Dropped);
    };
    Some(send(target).await)
}

async fn send(target: &CancelTarget) -> Outcome {
    match target.clone().send(PATIENCE).await {
        Ok(()) => Outcome::Forwarded,
        Err(error) => {
            debug!(server = %target.address, %error, "cancel could not be delivered");
            Outcome::Failed
        }
    }
}

/// Cancels what a session that was taken off its server had under way, without anybody waiting for it.
pub(super) fn forget(shared: &Shared, target: CancelTarget) {
    let permits = Arc::clone(&shared.cancels);
    shared.tasks.spawn(async move {
        if let Ok(_permit) = permits.try_acquire() {
            send(&target).await;
        }
    });
}
