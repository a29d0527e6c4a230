//! The life of a session: attach, relay, end; the registry through which everything else acts on
//! sessions; cancel keys and the peer channel.
//!
//! Guarantees: a read-write session is only on a server that accepts writes on that very
//! connection, that is in this cluster and on the leader's timeline at the address that the
//! connection reached, and that is named leader. The bytes forwarded are the bytes received. An
//! idle session holds no buffer. Every session ends with one log line that says why.
//!
//! Refuses: to decide which member may serve a session (routing does), and to find out why a
//! session has to end (the order says it).

pub mod arrival;
mod attach;
pub mod cancel;
mod candidates;
pub mod client;
mod client_address;
pub mod close;
mod connect_backoff;
pub mod console;
pub(crate) mod counts;
mod direction;
pub mod disabled;
mod distribution;
pub mod end;
mod finish;
mod forward;
pub(crate) mod gate;
mod gauges;
pub mod generations;
mod hearing;
mod held;
mod held_login;
pub mod held_routes;
pub mod holds;
pub mod life;
mod linger;
pub mod link;
pub mod listener_settings;
#[cfg(any(test, feature = "instructions"))]
pub(crate) mod memory;
pub mod metrics;
pub mod occupancy;
pub mod orders;
pub mod paused;
pub mod pool;
mod record;
pub mod registry;
pub mod relay;
pub(crate) mod replaced;
pub mod sample;
mod sent;
#[cfg(test)]
mod simulator;
#[cfg(test)]
mod sizes;
mod state;
pub mod stream;
mod tcp;
#[cfg(any(test, feature = "instructions"))]
mod topology;
pub mod turns;
mod whereabouts;

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use crate::auth::login_throttle::network;
use crate::auth::scram::MockSecret;
use crate::frontend::RefuseReason;
use crate::frontend::auth_policy::AuthPolicy;
use crate::frontend::derivations::Derivations;
use crate::frontend::login::{Destination, LoginContext};
use crate::wire::text::Escaped;
pub use cancel::{keys, peers};
use listener_settings::ListenerSettings;
use sample::{SampleDecision, Sources};
pub use turns::MOST_KEPT_BYTES;

/// Everything the sessions of one process share. Made by `runtime`.
#[derive(Debug)]
pub struct Shared {
    pub registry: Arc<registry::Registry>,
    pub occupancy: Arc<occupancy::Occupancy>,
    pub admission: Arc<arrival::admission::Admission>,
    pub quota: Arc<arrival::Quota>,
    pub metrics: Arc<metrics::Metrics>,
    pub keys: keys::KeyIssuer,
    /// Empty if there are none.
    pub peers: ArcSwapOption<peers::Peers>,
    pub generations: Arc<generations::Generations>,
    /// The rules for logins. A reload replaces them for the logins that follow.
    pub auth_policy: Arc<ArcSwap<AuthPolicy>>,
    /// Empty if there is none.
    pub console: ArcSwapOption<console::ConsoleAccess>,
    pub mock: Arc<MockSecret>,
    /// Limits how many passwords in clear are checked at once.
    pub derivations: Arc<Derivations>,
    pub login_timeout: ArcSwap<Duration>,
    pub disabled_routes: Arc<disabled::DisabledRoutes>,
    /// Orders to hold clients.
    pub holds: holds::Holds,
    pub cancels: cancel::Cancels,
    pub failures: Failures,
    pub login_throttle: Arc<arrival::login_throttle::SharedThrottle>,
    /// Server connections that sessions share.
    pub pools: Arc<pool::pools::Pools>,
    /// Opens their connections.
    pub opener: Arc<pool::open::SocketOpener>,
    /// Random: distinguishes credentials in the keys of pools.
    pub pool_secret: [u8; 32],
    /// Small tasks that outlive the session that started them.
    pub tasks: TaskTracker,
    /// Cancelled when the router shuts down: clients that have not finished logging in are refused.
    pub closing: CancellationToken,
    /// Cancelled with `closing`, or earlier when another process has replaced this one: sessions
    /// with the console end.
    pub console_closing: CancellationToken,
}

impl Shared {
    /// Counts a connection that was refused before its first packet.
    pub fn refused(&self, reason: RefuseReason) {
        self.metrics.refuse(reason);
    }

    fn login_context<'a>(
        &'a self,
        policy: &'a AuthPolicy,
        listener: &'a ListenerSettings,
        destination: Destination,
        deadline: Instant,
    ) -> LoginContext<'a> {
        LoginContext {
            policy,
            destination,
            cluster: &listener.cluster,
            mock: &self.mock,
            derivations: &self.derivations,
            deadline,
        }
    }
}

/// Log lines about failed logins per address, user and interval. Further ones are counted, and the
/// count is logged.
const FAILURES_LOGGED: u32 = 5;
const FAILURES_INTERVAL: Duration = Duration::from_secs(30);
/// Users of one address that have their own lines. All other users of the address share those of
/// one user.
const FAILURES_USERS: usize = 8;
/// Addresses whose users have their own lines.
const FAILURES_ADDRESSES: usize = 4096;

/// The client's address (Unix sockets are one address, `None`), and the user, if it is known yet.
type FailureSources = Sources<Option<IpAddr>, Option<Box<[u8]>>>;

/// Decides which failed logins are logged: a thousand of the same kind make only a few lines, and
/// those of one user do not hide those of another.
#[derive(Debug)]
pub struct Failures(Mutex<FailureSources>);

impl Default for Failures {
    fn default() -> Self {
        Self(Mutex::new(Sources::new(
            FAILURES_LOGGED,
            FAILURES_INTERVAL,
            FAILURES_USERS,
            FAILURES_ADDRESSES,
        )))
    }
}

impl Failures {
    /// `Some`: log this one, with the number of those left out before it.
    fn admit(&self, address: Option<IpAddr>, user: Option<&[u8]>) -> Option<u64> {
        let address = address.map(network);
        let user = user.map(Into::into);
        match self.sampler().observe(&address, &user, Instant::now()) {
            SampleDecision::Log { suppressed } => Some(suppressed),
            SampleDecision::Suppress => None,
        }
    }

    /// Logs how many were left out, until `stop`.
    pub async fn summarise(&self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(FAILURES_INTERVAL) => {}
            }
            let summaries = self.sampler().summaries(Instant::now());
            for (source, times) in summaries {
                let Some((address, user)) = source else {
                    warn!(times, "more logins were refused from other addresses");
                    continue;
                };
                let client = address.map_or_else(|| "[local]".to_owned(), |address| address.to_string());
                match user {
                    Some(Some(user)) => {
                        warn!(%client, user = %Escaped(&user), times, "more logins were refused");
                    }
                    Some(None) => warn!(%client, times, "more connections were refused"),
                    None => warn!(%client, times, "more logins were refused as other users"),
                }
            }
        }
    }

    fn sampler(&self) -> MutexGuard<'_, FailureSources> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
