//! Where a client's cancel request goes: to a session of this process, to the other processes of
//! this router, to peers.

use std::net::IpAddr;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;
use tracing::debug;

use super::super::Shared;
use super::super::generations::CancelAnswer;
use super::delivery::{self, PATIENCE};
use super::keys::{Incarnation, Owner};
use super::outcome::CancelOutcome;
use crate::frontend::ClientStream;
use crate::wire::startup::CancelRequest;

/// Serves a client's CancelRequest, which comes from this address.
pub(in crate::session) async fn serve(
    shared: &Arc<Shared>,
    mut stream: ClientStream,
    request: CancelRequest,
    from: Option<IpAddr>,
) {
    let outcome = route(shared, &request, from).await;
    shared.metrics.cancel(outcome);
    debug!(
        process_id = request.process_id,
        outcome = outcome.label(),
        "cancel request"
    );
    let _ = timeout(PATIENCE, stream.shutdown()).await;
}

async fn route(shared: &Arc<Shared>, request: &CancelRequest, from: Option<IpAddr>) -> CancelOutcome {
    let owner = shared.keys.owner(&request.key);
    match owner {
        Owner::Mine => return local(shared, request).await.unwrap_or(CancelOutcome::Unknown),
        Owner::Unknown => {
            if let Some(outcome) = local(shared, request).await {
                return outcome;
            }
        }
        Owner::Forged | Owner::Peer(_) => {}
    }
    let has_seal = matches!(owner, Owner::Peer(_));
    let Some(_place) = delivery::place(shared, from, has_seal) else {
        return CancelOutcome::Dropped;
    };
    // Without peers each process has a secret of its own, and the keys of another process look
    // forged.
    let asked = shared.generations.ask_cancel(request).await;
    match asked {
        CancelAnswer::Found => return CancelOutcome::ByGeneration,
        CancelAnswer::Busy => return CancelOutcome::Dropped,
        CancelAnswer::NotFound | CancelAnswer::Unasked => {}
    }
    let outcome = match owner {
        Owner::Mine | Owner::Forged => CancelOutcome::Forged,
        Owner::Peer(incarnation) => ask_peers(shared, request, Some(incarnation)).await,
        Owner::Unknown => ask_peers(shared, request, None).await,
    };
    match outcome {
        CancelOutcome::Forged | CancelOutcome::Unknown if asked == CancelAnswer::Unasked => {
            CancelOutcome::Failed
        }
        outcome => outcome,
    }
}

async fn ask_peers(
    shared: &Arc<Shared>,
    request: &CancelRequest,
    owner: Option<Incarnation>,
) -> CancelOutcome {
    match shared.peers.load_full() {
        Some(peers) if peers.ask(shared, request, owner).await => CancelOutcome::ByPeer,
        _ => CancelOutcome::Unknown,
    }
}

/// `None`: no session of this process has that key.
async fn local(shared: &Shared, request: &CancelRequest) -> Option<CancelOutcome> {
    let session = delivery::find(shared, request)?;
    Some(delivery::deliver_to(shared, &session).await)
}

/// Another process of this router asks. `None`: no session of this process has that key; otherwise
/// the future delivers the request.
pub fn for_generation(
    shared: &Arc<Shared>,
    request: &CancelRequest,
) -> Option<BoxFuture<'static, CancelAnswer>> {
    let session = delivery::find(shared, request)?;
    let shared = Arc::clone(shared);
    let delivering = async move {
        let outcome = delivery::deliver_to(&shared, &session).await;
        shared.metrics.cancel(outcome);
        match outcome {
            CancelOutcome::Dropped => CancelAnswer::Busy,
            _ => CancelAnswer::Found,
        }
    };
    Some(delivering.boxed())
}
