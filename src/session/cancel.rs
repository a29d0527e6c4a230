//! Cancel requests: to the session they are for, in this process, in another one of this router that hands over or took
//! over, or on a peer (docs/protocol.md, cases 30–38).
//!
//! Never answered, whatever comes of it; the client's socket is closed only after the server has closed ours, which
//! is when libpq takes the cancel for delivered. A request with the right key waits for its turn at its server, in a
//! queue as long as there are sessions; when its turn comes it is passed on only if the session still runs what it ran
//! when the request came. A request whose session has to be looked for elsewhere takes a place of its address's share.

mod lanes;

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::{debug, warn};

use super::Shared;
use super::arrival::admission::AdmissionPlace;
use super::generations::GenerationAnswer;
use super::keys::Owner;
use super::registry::SessionEntry;
use super::sample::{SampleDecision, Sampler};
use crate::backend::{CancelTarget, TlsClient, pass_cancel};
use crate::frontend::ClientStream;
use crate::labels::labels;
use crate::wire::startup::CancelRequest;
use lanes::Lanes;

/// For one cancel: connecting to the server, delivering it, and the server's hanging up.
const PATIENCE: Duration = Duration::from_secs(5);
/// For its turn before that. A server needs milliseconds for each: who waits so long waits for one that takes none.
const TURN: Duration = Duration::from_mins(1);
/// For a request whose key is a server's own to be taken by one of several servers, of which most do not know it.
const UNREAD: Duration = Duration::from_secs(1);
/// Cancel requests of one session at the same time.
const MOST_PER_SESSION: u32 = 4;
/// For what ran in a session that was cut: as long is tried. And while the process ends.
const ABANDONED: Duration = Duration::from_secs(30);
const ABANDONED_AT_THE_END: Duration = Duration::from_secs(2);
/// Between two attempts.
const AGAIN: Duration = Duration::from_millis(500);
/// Servers that are told apart in the log, and how often one is named there.
const TOLD_SERVERS: usize = 256;
const TELL_EVERY: Duration = Duration::from_secs(30);

labels! {
    /// What became of a request: the label `result` of `trunkline_cancels_total`.
    pub(super) enum CancelOutcome {
        Forwarded = "forwarded",
        /// The session has nothing under way, or not any more what it had, or its server gave no key.
        Idle = "idle",
        /// As many wait for the same session already.
        Repeated = "repeated",
        /// Nobody knows the key.
        Unknown = "unknown",
        /// It carries this router's or a peer's mark without the right seal.
        Forged = "forged",
        /// Another process of this router has taken it.
        ByGeneration = "other_process",
        /// A peer has taken it.
        ByPeer = "peer",
        Failed = "failed",
        /// Its turn did not come, or there was no place for it.
        Dropped = "dropped",
        /// The listener refuses the address that it comes from.
        Denied = "denied",
    }
}

labels! {
    /// Whether a server took the router's own request for what a cut session ran: the label `result` of
    /// `trunkline_cut_requests_total`.
    pub(super) enum CutOutcome {
        Cancelled = "cancelled",
        Failed = "failed",
    }
}

/// What the operator is told, each at most once in [`TELL_EVERY`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum CancelFailure {
    /// A server takes no cancel requests.
    Server(SocketAddr),
    /// Nor those for what ran in sessions that were cut.
    Abandoned(SocketAddr),
    /// More look for their session elsewhere than may.
    TooMany,
}

/// What the cancel requests of one process share.
#[derive(Debug)]
pub struct Cancels {
    lanes: Lanes<SocketAddr>,
    /// Of requests with a server's own key, which anybody can make up.
    unknown: Lanes<(String, u16)>,
    reported: Mutex<Sampler<CancelFailure>>,
}

impl Default for Cancels {
    fn default() -> Self {
        Self {
            lanes: Lanes::default(),
            unknown: Lanes::default(),
            reported: Mutex::new(Sampler::new(1, TELL_EVERY, TOLD_SERVERS)),
        }
    }
}

impl Cancels {
    /// `Some`: log it, and say how many were left out before.
    fn admit(&self, trouble: CancelFailure) -> Option<u64> {
        let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        match reported.observe(trouble, Instant::now()) {
            SampleDecision::Log { suppressed } => Some(suppressed),
            SampleDecision::Suppress => None,
        }
    }

    fn not_delivered(&self, target: &CancelTarget, why: &dyn std::fmt::Display) {
        let server = target.address;
        if let Some(skipped) = self.admit(CancelFailure::Server(server)) {
            warn!(%server, %why, skipped, "a cancel request could not be delivered");
        } else {
            debug!(%server, %why, "a cancel request could not be delivered");
        }
    }
}

/// Serves a client's CancelRequest, which comes from this address.
pub(super) async fn serve(
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
    let Some(_place) = place(shared, from, has_seal) else {
        return CancelOutcome::Dropped;
    };
    // Without peers each process has a seal of its own, and another's looks forged.
    let asked = shared.generations.ask(request).await;
    match asked {
        GenerationAnswer::Found => return CancelOutcome::ByGeneration,
        GenerationAnswer::Busy => return CancelOutcome::Dropped,
        GenerationAnswer::NotFound | GenerationAnswer::Unasked => {}
    }
    let outcome = match owner {
        Owner::Mine | Owner::Forged => CancelOutcome::Forged,
        Owner::Peer(incarnation) => ask_peers(shared, request, Some(incarnation)).await,
        Owner::Unknown => ask_peers(shared, request, None).await,
    };
    match outcome {
        CancelOutcome::Forged | CancelOutcome::Unknown if asked == GenerationAnswer::Unasked => {
            CancelOutcome::Failed
        }
        outcome => outcome,
    }
}

/// A place for a request whose session is not known here.
fn place(shared: &Shared, from: Option<IpAddr>, has_seal: bool) -> Option<AdmissionPlace> {
    let place = shared.admission.cancel(from, has_seal);
    if place.is_err()
        && let Some(skipped) = shared.cancels.admit(CancelFailure::TooMany)
    {
        warn!(
            from = from.map(tracing::field::display),
            skipped, "too many cancel requests for sessions that are not known here; some are dropped"
        );
    }
    place.ok()
}

/// Serves a request that came in clear to a port that passes sessions on unread: the key is that of one of these servers,
/// and only that one knows it.
pub(super) async fn pass_unread(
    shared: &Shared,
    servers: &[(String, u16)],
    tls: &TlsClient,
    mut stream: ClientStream,
    request: &[u8],
    from: Option<IpAddr>,
) {
    let outcome = match place(shared, from, false) {
        None => CancelOutcome::Dropped,
        Some(_) if servers.is_empty() => CancelOutcome::Unknown,
        Some(_place) => {
            let to_one = |server| pass_unread_to(shared, server, tls, request);
            let delivered = join_all(servers.iter().map(to_one)).await;
            if delivered.contains(&true) {
                CancelOutcome::Forwarded
            } else {
                CancelOutcome::Failed
            }
        }
    };
    shared.metrics.cancel(outcome);
    debug!(
        servers = servers.len(),
        result = outcome.label(),
        "cancel request passed on unread"
    );
    let _ = timeout(UNREAD, stream.shutdown()).await;
}

async fn pass_unread_to(shared: &Shared, server: &(String, u16), tls: &TlsClient, request: &[u8]) -> bool {
    let turn = timeout(PATIENCE, shared.cancels.unknown.turn(server.clone())).await;
    let (host, port) = server;
    let sent = match &turn {
        Ok(_turn) => pass_cancel(host, *port, tls, request, UNREAD)
            .await
            .map_err(|error| error.to_string()),
        Err(_elapsed) => Err("its turn did not come".to_owned()),
    };
    if let Err(why) = &sent {
        debug!(host, port, why, "a cancel request could not be passed on unread");
    }
    sent.is_ok()
}

async fn ask_peers(
    shared: &Arc<Shared>,
    request: &CancelRequest,
    owner: Option<super::keys::Incarnation>,
) -> CancelOutcome {
    match shared.peers.load_full() {
        Some(peers) if peers.ask(shared, request, owner).await => CancelOutcome::ByPeer,
        _ => CancelOutcome::Unknown,
    }
}

/// The session of this process that the request is for.
pub(super) fn here(shared: &Shared, request: &CancelRequest) -> Option<Arc<SessionEntry>> {
    shared.registry.find(request.process_id, &request.key)
}

/// A peer has asked for what this session runs.
pub(super) async fn for_peer(shared: &Shared, session: &SessionEntry) {
    let outcome = pass_on(shared, session).await;
    shared.metrics.cancel(outcome);
}

/// Another process of this router has asked for what this session runs.
pub(super) async fn for_relative(shared: &Shared, session: &SessionEntry) -> GenerationAnswer {
    let outcome = pass_on(shared, session).await;
    shared.metrics.cancel(outcome);
    match outcome {
        CancelOutcome::Dropped => GenerationAnswer::Busy,
        _ => GenerationAnswer::Found,
    }
}

/// `None`: no session of this process has that key.
async fn local(shared: &Shared, request: &CancelRequest) -> Option<CancelOutcome> {
    let session = here(shared, request)?;
    Some(pass_on(shared, &session).await)
}

/// Cancels what the session runs now, when its turn comes, and nothing that it runs later.
async fn pass_on(shared: &Shared, entry: &SessionEntry) -> CancelOutcome {
    let placement = entry.placement();
    let target = placement.as_ref().and_then(|placement| placement.cancel.as_ref());
    let (Some(target), Some(request)) = (target, entry.under_way()) else {
        return CancelOutcome::Idle;
    };
    let Some(_place) = entry.cancel_place(MOST_PER_SESSION) else {
        return CancelOutcome::Repeated;
    };
    let _gauge = shared.metrics.cancel_waits();
    let _turn = tokio::select! {
        biased;
        turn = shared.cancels.lanes.turn(target.address) => turn,
        () = entry.until_over(request) => return CancelOutcome::Idle,
        () = sleep(TURN) => {
            shared.cancels.not_delivered(target, &"its turn did not come");
            return CancelOutcome::Dropped;
        }
    };
    if entry.under_way() != Some(request) {
        return CancelOutcome::Idle;
    }
    match target.clone().send(PATIENCE).await {
        Ok(()) => CancelOutcome::Forwarded,
        Err(error) => {
            shared.cancels.not_delivered(target, &error);
            CancelOutcome::Failed
        }
    }
}

/// Cancels what a session that was taken off its server had under way, without anybody waiting for it. It is tried again
/// while the server does not take it, for a bounded time; then it is said that it may have gone on.
pub(super) fn forget(shared: &Arc<Shared>, target: CancelTarget) {
    let asking = Arc::clone(shared);
    shared.tasks.spawn(async move {
        let shared = asking;
        let is_cancelled = abandon(&shared, &target).await;
        shared.metrics.abandon(if is_cancelled {
            CutOutcome::Cancelled
        } else {
            CutOutcome::Failed
        });
    });
}

async fn abandon(shared: &Shared, target: &CancelTarget) -> bool {
    let patience = if shared.closing.is_cancelled() {
        ABANDONED_AT_THE_END
    } else {
        ABANDONED
    };
    let until = Instant::now() + patience;
    let mut why = "its turn did not come".to_owned();
    loop {
        let Ok(turn) = timeout_at(until, shared.cancels.lanes.turn(target.address)).await else {
            break;
        };
        let left = until.saturating_duration_since(Instant::now());
        match target.clone().send(PATIENCE.min(left)).await {
            Ok(()) => return true,
            Err(error) => why = error.to_string(),
        }
        drop(turn);
        if Instant::now() + AGAIN >= until {
            break;
        }
        sleep(AGAIN).await;
    }
    let server = target.address;
    if let Some(skipped) = shared.cancels.admit(CancelFailure::Abandoned(server)) {
        warn!(
            %server, process_id = target.process_id, why, skipped,
            "what a session ran that was cut could not be cancelled: it may go on there"
        );
    }
    false
}
