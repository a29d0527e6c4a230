//! Delivers the cancel requests whose session is in this process to that session's server.
//!
//! A request with the right key waits for its turn at its server, in a queue as long as there are
//! sessions. When its turn comes it is passed on only if the session still runs what it ran when
//! the request came. A request whose session is not here takes a place of its address's share while
//! the router looks for it elsewhere.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::{debug, warn};

use super::super::Shared;
use super::super::arrival::admission::AdmissionPlace;
use super::super::registry::{ConsoleSession, SessionEntry};
use super::super::sample::{SampleDecision, Sampler};
use super::lanes::Lanes;
use super::outcome::{CancelOutcome, CutOutcome};
use crate::backend::{CancelTarget, TlsClient, pass_cancel};
use crate::frontend::ClientStream;
use crate::wire::startup::CancelRequest;

/// Time limit of one cancel: connecting to the server, delivering the request, and the server's
/// hanging up.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// Time limit of the wait for its turn. A server needs milliseconds for each request: after so long
/// it takes none.
const TURN: Duration = Duration::from_mins(1);
/// Time limit of a request whose key is a server's own: it goes to several servers, and most do not
/// know the key.
const UNREAD: Duration = Duration::from_secs(1);
/// Cancel requests for one session at the same time.
const MOST_PER_SESSION: u32 = 4;
/// How long the router tries to cancel what ran in a session that was cut; and while the process
/// ends.
const ABANDONED: Duration = Duration::from_secs(30);
const ABANDONED_AT_THE_END: Duration = Duration::from_secs(2);
/// Between two attempts.
const AGAIN: Duration = Duration::from_millis(500);
/// Servers with log lines of their own, and how often one is named there.
const LOGGED_SERVERS: usize = 256;
const LOG_EVERY: Duration = Duration::from_secs(30);

/// What the log reports, each at most once in [`LOG_EVERY`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum CancelFailure {
    /// A server does not take cancel requests.
    Server(SocketAddr),
    /// A server does not take those for what ran in sessions that were cut.
    Abandoned(SocketAddr),
    /// Too many requests for sessions that are not in this process.
    TooMany,
}

/// What the cancel requests of one process share.
#[derive(Debug)]
pub struct Cancels {
    lanes: Lanes<SocketAddr>,
    /// For requests with a server's own key, which anybody can make up.
    unknown: Lanes<(String, u16)>,
    reported: Mutex<Sampler<CancelFailure>>,
}

impl Default for Cancels {
    fn default() -> Self {
        Self {
            lanes: Lanes::default(),
            unknown: Lanes::default(),
            reported: Mutex::new(Sampler::new(1, LOG_EVERY, LOGGED_SERVERS)),
        }
    }
}

impl Cancels {
    /// `Some`: log it, and say how many were left out before.
    fn admit(&self, failure: CancelFailure) -> Option<u64> {
        let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        match reported.observe(failure, Instant::now()) {
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

/// A place for a request whose session is not in this process.
pub(super) fn place(shared: &Shared, from: Option<IpAddr>, has_seal: bool) -> Option<AdmissionPlace> {
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

/// Serves a request that came in clear to a port of `mode: tcp`: the key is that of one of these
/// servers, and only that server knows it.
pub(in crate::session) async fn pass_unread(
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

/// The session of this process that a request is for.
#[derive(Debug)]
pub(super) enum Found {
    Session(Arc<SessionEntry>),
    Console(Arc<ConsoleSession>),
}

/// The session of this process that the request is for.
pub(super) fn find(shared: &Shared, request: &CancelRequest) -> Option<Found> {
    let (registry, process_id, key) = (&shared.registry, request.process_id, &request.key);
    let session = registry.find(process_id, key).map(Found::Session);
    session.or_else(|| registry.find_console(process_id, key).map(Found::Console))
}

/// As [`deliver`].
pub(super) async fn deliver_to(shared: &Shared, found: &Found) -> CancelOutcome {
    match found {
        Found::Session(entry) => deliver(shared, entry).await,
        Found::Console(session) if session.cancel() => CancelOutcome::Forwarded,
        Found::Console(_) => CancelOutcome::Idle,
    }
}

/// Cancels what the session runs now, when its turn comes, and nothing that it runs later.
pub(in crate::session) async fn deliver(shared: &Shared, entry: &SessionEntry) -> CancelOutcome {
    if entry.cancel_wait() {
        return CancelOutcome::Forwarded;
    }
    let Some(request) = entry.under_way() else {
        return CancelOutcome::Idle;
    };
    // Before the session's placement is read: while the place is held and the request is under way,
    // the session keeps its server connection, and nobody else gets it.
    let Some(place) = entry.cancel_place(MOST_PER_SESSION) else {
        return CancelOutcome::Repeated;
    };
    let placement = entry.placement();
    let target = placement.as_ref().and_then(|placement| placement.cancel.as_ref());
    let Some(target) = target.filter(|_| entry.under_way() == Some(request)) else {
        return CancelOutcome::Idle;
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
            place.may_be_late();
            shared.cancels.not_delivered(target, &error);
            CancelOutcome::Failed
        }
    }
}

/// Cancels what a session that was taken off its server had under way, in the background. While the
/// server does not take the request the router tries again, for a limited time; then the log says
/// that the statement may go on.
pub(in crate::session) fn forget(shared: &Arc<Shared>, target: CancelTarget) {
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

/// As [`forget`], where another session gets the server connection next: once. `false`: the server
/// may carry the request out later, so the connection must serve nobody.
pub(in crate::session) async fn settle(shared: &Shared, target: &CancelTarget) -> bool {
    let is_over = match timeout(PATIENCE, shared.cancels.lanes.turn(target.address)).await {
        Ok(_turn) => target.clone().send(PATIENCE).await.is_ok(),
        Err(_elapsed) => false,
    };
    shared.metrics.abandon(if is_over {
        CutOutcome::Cancelled
    } else {
        CutOutcome::Failed
    });
    is_over
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
