//! What is known of a cluster: sources publish observations, one pure function folds observations and the time into
//! the next snapshot, everything else reads snapshots.
//!
//! Guarantees: a snapshot is immutable and versioned; its leader is one this router has itself seen to be writable
//! and that is named by the leader key (or still the last one named while the DCS cannot be reached; or, in a fixed
//! list, has the highest timeline); a tie is no leader; a member of another cluster is never used.
//!
//! Refuses: a home-made consensus, and to trust a lock as a health check.

mod account;
mod announce;
pub mod check;
mod control;
mod etcd;
pub mod examine;
mod fixed;
mod lag;
pub mod lookup;
mod metrics;
pub mod observation;
pub mod patroni;
pub mod probe;
mod share;
#[cfg(test)]
mod simulator;
pub mod snapshot;
pub mod state;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::account::Account;
use self::lookup::Lookups;
pub use self::lookup::{Lookup, LookupError};
pub use self::metrics::Metrics;
use self::snapshot::{AdminState, MemberName, Snapshot};
use self::state::Observation;
pub use self::state::{Evidence, LagLimits};
use crate::auth::lookup::Answer;
use crate::auth::rules::Memberships;
use crate::backend::TlsClient;
use crate::config;

/// Why a cluster's machinery cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The TLS settings towards Patroni cannot be used.
    #[error("TLS towards Patroni: {0}")]
    Tls(String),
    /// The HTTP client cannot be made.
    #[error("the HTTP client for Patroni: {0}")]
    Client(String),
    /// What etcd would be watched with cannot be made.
    #[error("the HTTP client for etcd: {0}")]
    Etcd(String),
    /// The TLS settings towards the servers cannot be used.
    #[error("TLS towards the servers: {0}")]
    ServerTls(String),
}

/// Too many reports wait: nothing was done, and the same may be asked again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too much is waiting to be done; try again in a moment")]
pub struct Busy;

/// How long memberships may be used without being confirmed where `cache_ttl` is not to be set: its default.
const MEMBERSHIPS_TTL: Duration = Duration::from_mins(1);
/// Reports of sessions that wait to be folded in; more are dropped (they say the same).
const MAX_EVIDENCE: usize = 256;

/// One cluster, as the other rooms see it. Cheap to clone, usable from every thread and runtime.
#[derive(Debug, Clone)]
pub struct ClusterHandle {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    account: Arc<Account>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    evidence: mpsc::Sender<Observation>,
    /// `None` with a users file.
    identities: Option<Lookups<Lookup>>,
    memberships: Lookups<Arc<Memberships>>,
}

impl ClusterHandle {
    /// The newest snapshot.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.shared.snapshots.borrow())
    }

    /// Wakes at each new version. (What changes all the time, as positions do, is renewed without waking anybody.)
    pub fn subscribe(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.shared.snapshots.clone()
    }

    /// Reports what a live session noticed. Never waits; dropped when too many wait.
    pub fn evidence(&self, member: &MemberName, evidence: Evidence) {
        let observation = Observation::Evidence {
            member: member.clone(),
            evidence,
            at: Instant::now(),
        };
        let _ = self.shared.evidence.try_send(observation);
    }

    /// Sets a member's administrative state. It stays while the member is away. `Err`: too much is waiting to be
    /// folded in; try again.
    pub fn set_admin(&self, member: &MemberName, state: AdminState) -> Result<(), Busy> {
        self.tell(Observation::Admin(member.clone(), state))
    }

    /// Sets a member's weight, 0 to 256, in place of the configuration's and the tag's; `None` gives it back to them.
    pub fn set_weight(&self, member: &MemberName, weight: Option<u16>) -> Result<(), Busy> {
        self.tell(Observation::Weight(member.clone(), weight))
    }

    fn tell(&self, observation: Observation) -> Result<(), Busy> {
        self.shared.evidence.try_send(observation).map_err(|_| Busy)
    }

    /// Asks the source and probes every member now.
    pub fn look_again(&self) {
        let _ = self.shared.evidence.try_send(Observation::LookAgain);
    }

    /// What the cluster has to check `user`'s login against; `None` for one that cannot log in. No older than a second,
    /// or `cache_ttl` while it cannot be confirmed; bounded by the service account's `timeout`. A login that fails by an
    /// unconfirmed one ends with [`LookupError::Unconfirmed`].
    pub async fn identity(&self, user: &[u8]) -> Result<Answer<Lookup>, LookupError> {
        match &self.shared.identities {
            Some(identities) => {
                let deadline = Instant::now() + self.config().service_account.timeout;
                identities.ask(user, deadline).await
            }
            None => Err(LookupError::NotConfigured),
        }
    }

    /// A login has failed by the remembered identity, which may have changed: it is asked for again before its next use,
    /// at once or as soon as it is a tenth of a second old.
    pub fn doubt_identity(&self, user: &[u8]) {
        if let Some(identities) = &self.shared.identities {
            identities.doubt(user);
        }
    }

    /// The roles `user` is a member of, as PostgreSQL's `+role` has it; none for an unknown user. As old as an identity
    /// at most (with a users file, as one with the default `cache_ttl`). A login that unconfirmed ones keep out ends with
    /// [`LookupError::Unconfirmed`].
    pub async fn memberships(
        &self,
        user: &[u8],
        deadline: Instant,
    ) -> Result<Answer<Arc<Memberships>>, LookupError> {
        self.shared.memberships.ask(user, deadline).await
    }

    /// TLS towards the servers, for a connection that begins now.
    pub fn tls(&self) -> Arc<TlsClient> {
        self.shared.account.tls()
    }

    /// Other TLS settings for the connections to come.
    pub fn replace_tls(&self, tls: Arc<TlsClient>) {
        self.shared.account.replace_tls(tls);
    }

    /// Another password of the service account, for the logins to come.
    pub fn replace_password(&self, password: Option<&config::Secret>) {
        self.shared.account.replace_password(password);
    }

    pub fn config(&self) -> &Arc<config::Cluster> {
        &self.shared.account.config
    }
}

/// Starts everything that keeps one cluster's snapshot: to be called on the control runtime. It runs until `stop`
/// is cancelled; its tasks are in `tracker`. `limits` are those of the routes to it.
pub fn start(
    config: Arc<config::Cluster>,
    auth: &config::Auth,
    limits: LagLimits,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
    tracker: &TaskTracker,
) -> Result<ClusterHandle, ClusterError> {
    let tls =
        TlsClient::new(&config.server_tls).map_err(|error| ClusterError::ServerTls(error.to_string()))?;
    let patroni = patroni::Patroni::new(Arc::clone(&config))?;
    let account = Arc::new(Account::new(config, tls));
    let (evidence, reports) = mpsc::channel(MAX_EVIDENCE);
    let (control, snapshots) = control::Control::new(
        Arc::clone(&account),
        limits,
        reports,
        Arc::clone(&metrics),
        stop.clone(),
        tracker.clone(),
    );
    let watcher = control.watcher()?;
    let pools = Arc::new(lookup::Pools::new(Arc::clone(&account), snapshots.clone()));
    let (identities, cache_ttl) = match &auth.verifiers {
        config::Verifiers::UsersFile { .. } => (None, MEMBERSHIPS_TTL),
        config::Verifiers::Query { sql, cache_ttl } => {
            let query = lookup::Query {
                sql: sql.clone(),
                cache_ttl: *cache_ttl,
            };
            let (identities, service) = lookup::service(query, Arc::clone(&pools), Arc::clone(&metrics));
            tracker.spawn(service.run(stop.clone()));
            (Some(identities), *cache_ttl)
        }
    };
    let (memberships, service) = lookup::service(lookup::MembershipsQuery { cache_ttl }, pools, metrics);
    tracker.spawn(service.run(stop));
    tracker.spawn(control.run(patroni, watcher));
    Ok(ClusterHandle {
        shared: Arc::new(Shared {
            account,
            snapshots,
            evidence,
            identities,
            memberships,
        }),
    })
}
