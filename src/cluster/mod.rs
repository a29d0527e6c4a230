//! The state of a cluster. Sources publish observations, one pure function folds the observations
//! and the time into the next snapshot, and everything else reads snapshots.
//!
//! Guarantees:
//!
//! - A snapshot is immutable and versioned.
//! - Its leader is a member that this router itself has seen to be writable, and that the leader
//!   key names (or was the last to name, while the DCS cannot be reached; or, in a fixed list, that
//!   has the highest timeline). In a tie there is no leader.
//! - A member of another cluster is never used. Once a leader has been verified, the identity of
//!   the cluster does not change by itself.
//!
//! This room has no consensus protocol of its own, and does not treat a lock as a health check.

mod account_check;
mod announce;
pub mod check;
mod control;
pub(crate) mod etcd;
pub mod examine;
mod fixed;
mod frozen;
mod lag;
mod looks;
pub mod lookup;
mod metrics;
mod moment;
mod new_members;
pub mod observation;
mod patience;
pub mod patroni;
pub mod probe;
#[cfg(any(test, feature = "instructions"))]
pub(crate) mod scripted;
pub mod server_identity;
mod service_account;
mod share;
#[cfg(test)]
mod simulator;
pub mod snapshot;
pub mod state;
pub mod switchover;
mod votes;

use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use self::announce::Announcer;
use self::lookup::Lookups;
pub use self::lookup::{Lookup, LookupError};
pub use self::metrics::Metrics;
use self::service_account::ServiceAccount;
use self::snapshot::{AdminState, Leader, Member, MemberName, Snapshot};
use self::state::Observation;
pub use self::state::{Evidence, LagLimits, LeaveRequest, LeaveToken};
use crate::auth::lookup::{LookupAnswer, Standing};
use crate::auth::rules::Memberships;
use crate::backend::TlsClient;
use crate::config;
use crate::events::{ClusterChange, ClusterEvent, Events};

/// Why the tasks of a cluster cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The TLS settings for Patroni cannot be used.
    #[error("TLS with Patroni: {0}")]
    Tls(String),
    /// The HTTP client cannot be made.
    #[error("the HTTP client for Patroni: {0}")]
    Client(String),
    /// The HTTP client for etcd cannot be made.
    #[error("the HTTP client for etcd: {0}")]
    Etcd(String),
    /// The TLS settings for the servers cannot be used.
    #[error("TLS with the servers: {0}")]
    ServerTls(String),
}

/// Where a cluster reports its changes.
#[derive(Debug, Clone)]
pub struct Reporting {
    pub metrics: Arc<Metrics>,
    pub events: Events,
}

impl Reporting {
    fn change(&self, cluster: &str, change: ClusterChange) {
        let cluster = cluster.to_owned();
        self.events.emit(ClusterEvent { cluster, change });
    }
}

/// Too many requests wait. Nothing was done, and the caller may try again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many requests are waiting; try again in a moment")]
pub struct Busy;

/// How long unconfirmed memberships may be used where `cache_ttl` cannot be set: the default of
/// `cache_ttl`.
const MEMBERSHIPS_TTL: Duration = Duration::from_mins(1);
/// Limit of sessions' reports that wait to be folded in. Further reports are dropped, since they
/// repeat the same facts.
const MAX_EVIDENCE: usize = 256;

/// One cluster, as the other rooms see it. Cheap to clone, usable from every thread and runtime.
/// Its tasks can be replaced ([`Self::replace_tasks`]) and end with the last clone.
#[derive(Debug, Clone)]
pub struct ClusterHandle {
    shared: Arc<Shared>,
}

/// Finds a cluster that is no longer configured, as long as a handle exists.
#[derive(Debug, Clone)]
pub struct WeakClusterHandle {
    shared: Weak<Shared>,
}

#[derive(Debug)]
struct Shared {
    tasks: ArcSwap<ClusterTasks>,
    snapshots: Arc<watch::Sender<Arc<Snapshot>>>,
    /// The first receiver. Its clones are woken for snapshots that were published before.
    first: watch::Receiver<Arc<Snapshot>>,
    reporting: Reporting,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.tasks.load().metrics.close();
        self.reporting.metrics.forget(&self.snapshots.borrow());
    }
}

/// The tasks that keep a cluster's snapshot, for one configuration.
#[derive(Debug)]
struct ClusterTasks {
    account: Arc<ServiceAccount>,
    /// What only these tasks write by.
    metrics: Arc<Metrics>,
    evidence: mpsc::Sender<Observation>,
    /// The lag limits of the routes.
    limits: watch::Sender<LagLimits>,
    /// `None` with a users file.
    identities: Option<Lookups<Lookup>>,
    memberships: Lookups<Arc<Memberships>>,
    standings: Lookups<Standing>,
    /// Which server each member's address leads to.
    checks: Arc<server_identity::AddressChecks>,
    /// The snapshot of these tasks, published or not.
    own: watch::Receiver<Arc<Snapshot>>,
    published: Arc<OnceLock<Arc<watch::Sender<Arc<Snapshot>>>>>,
    /// Ends source and probes. Running look-ups continue until the last handle is dropped.
    watching: CancellationToken,
    _all: DropGuard,
}

impl ClusterTasks {
    fn send(&self, observation: Observation) -> Result<(), Busy> {
        self.evidence.try_send(observation).map_err(|_| Busy)
    }
}

impl WeakClusterHandle {
    /// `None` once no handle exists.
    pub fn upgrade(&self) -> Option<ClusterHandle> {
        self.shared.upgrade().map(|shared| ClusterHandle { shared })
    }
}

impl ClusterHandle {
    /// The newest snapshot.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.shared.snapshots.borrow())
    }

    /// Wakes at each new version. (Values that change all the time, such as positions, are updated
    /// without waking readers.)
    pub fn subscribe(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.shared.first.clone()
    }

    pub fn downgrade(&self) -> WeakClusterHandle {
        WeakClusterHandle {
            shared: Arc::downgrade(&self.shared),
        }
    }

    /// Replaces the tasks. From now on every clone of this handle sees the snapshots of the new
    /// ones. Call it on the control runtime.
    pub fn replace_tasks(&self, prepared: PreparedCluster) {
        let PreparedCluster { tasks } = prepared;
        let old = self.shared.tasks.load_full();
        old.watching.cancel();
        old.metrics.close();
        let snapshot = Arc::clone(&tasks.own.borrow());
        let before = self.snapshot();
        // It is set only here.
        let _ = tasks.published.set(Arc::clone(&self.shared.snapshots));
        self.shared.tasks.store(Arc::new(tasks));
        // The new tasks have not reported their changes before.
        for change in Announcer::default().changes(&before, &snapshot, Instant::now()) {
            self.shared.reporting.change(&snapshot.cluster, change);
        }
        self.shared.reporting.metrics.show(&before, &snapshot);
        if self.config().etcd.is_none() {
            self.shared.reporting.metrics.forget_watch(&snapshot.cluster);
        }
        self.shared.snapshots.send_replace(snapshot);
    }

    /// Reports what a live session noticed. Never waits; the report is dropped if too many wait.
    pub fn evidence(&self, member: &MemberName, evidence: Evidence) {
        let observation = Observation::Evidence {
            member: member.clone(),
            evidence,
            at: Instant::now(),
        };
        let _ = self.shared.tasks.load().evidence.try_send(observation);
    }

    /// The checks of a member's address; `None` if the member is not probed.
    pub fn address_check(&self, member: &MemberName) -> Option<Arc<server_identity::AddressCheck>> {
        self.shared.tasks.load().checks.of(member)
    }

    /// The cluster may be another one from now on: its system identifier is determined again.
    pub fn forget_identity(&self) -> Result<(), Busy> {
        self.send(Observation::ForgetIdentity)
    }

    /// Sets a member's administrative state. It is kept while the member is not listed.
    pub fn set_admin(&self, member: &MemberName, state: AdminState) -> Result<(), Busy> {
        self.send(Observation::Admin(member.clone(), state))
    }

    /// Sets a member's weight, 0 to 256, which overrides the configuration and the tag; `None`
    /// removes the override.
    pub fn set_weight(&self, member: &MemberName, weight: Option<u16>) -> Result<(), Busy> {
        self.send(Observation::Weight(member.clone(), weight))
    }

    /// The member's server is about to be stopped: it gets nothing new until then, or until it has
    /// been stopped. To be repeated to renew it.
    pub fn leaving(&self, request: LeaveRequest) -> Result<(), Busy> {
        self.send(Observation::Leaving(request))
    }

    /// A switchover by this router is over. `held`: for how long clients were held, if another
    /// member leads.
    pub fn switched_over(&self, held: Option<Duration>) {
        let cluster = &self.snapshot().cluster;
        self.shared.reporting.metrics.switched_over(cluster, held);
    }

    /// Ends an order of [`Self::leaving`].
    pub fn end_leaving(&self, token: LeaveToken) -> Result<(), Busy> {
        self.send(Observation::EndLeaving(token))
    }

    /// Ends every order about the member that is not of a switchover.
    pub fn end_stops(&self, member: &MemberName) -> Result<(), Busy> {
        self.send(Observation::EndStops(member.clone()))
    }

    fn send(&self, observation: Observation) -> Result<(), Busy> {
        self.shared.tasks.load().send(observation)
    }

    /// Replaces the lag limits of the routes to it.
    pub fn replace_limits(&self, limits: LagLimits) {
        self.shared.tasks.load().limits.send_if_modified(|current| {
            let differs = *current != limits;
            *current = limits;
            differs
        });
    }

    /// Polls the source and probes every member now.
    pub fn look_again(&self) {
        let _ = self.shared.tasks.load().evidence.try_send(Observation::LookAgain);
    }

    /// What `user`'s login is checked against; `None` for a user that cannot log in. The answer is
    /// from a query made after this call, or, while it cannot be confirmed, at most `cache_ttl`
    /// old. The service account's `timeout` limits the time. A login that fails against an
    /// unconfirmed answer ends with [`LookupError::Unconfirmed`].
    pub async fn identity(&self, user: &[u8]) -> Result<LookupAnswer<Lookup>, LookupError> {
        let tasks = self.shared.tasks.load_full();
        match &tasks.identities {
            Some(identities) => {
                let deadline = Instant::now() + tasks.account.config.service_account.timeout;
                identities.ask(user, deadline).await
            }
            None => Err(LookupError::NotConfigured),
        }
    }

    /// The roles `user` is a member of, in the sense of PostgreSQL's `+role`; none for an unknown
    /// user. The answer is at most as old as one of [`Self::identity`] (with a users file, as one
    /// with the default `cache_ttl`). A login that is refused because of unconfirmed memberships
    /// ends with [`LookupError::Unconfirmed`].
    pub async fn memberships(
        &self,
        user: &[u8],
        deadline: Instant,
    ) -> Result<LookupAnswer<Arc<Memberships>>, LookupError> {
        let tasks = self.shared.tasks.load_full();
        tasks.memberships.ask(user, deadline).await
    }

    /// Why there is no [`Self::identity`] for `user`, if a server answers by `deadline`; `None`
    /// with a users file.
    pub async fn standing(&self, user: &[u8], deadline: Instant) -> Option<Standing> {
        let tasks = self.shared.tasks.load_full();
        tasks.identities.as_ref()?;
        let answer = tasks.standings.ask(user, deadline).await.ok()?;
        Some(answer.found)
    }

    /// TLS with the servers, for a connection that begins now.
    pub fn tls(&self) -> Arc<TlsClient> {
        self.shared.tasks.load().account.tls()
    }

    /// Replaces the TLS settings for later connections.
    pub fn replace_tls(&self, tls: Arc<TlsClient>) {
        self.shared.tasks.load().account.replace_tls(tls);
    }

    /// Replaces the password of the service account for later logins.
    pub fn replace_password(&self, password: Option<&config::Secret>) {
        self.shared.tasks.load().account.replace_password(password);
    }

    /// The configuration in use now.
    pub fn config(&self) -> Arc<config::Cluster> {
        Arc::clone(&self.shared.tasks.load().account.config)
    }
}

/// Tasks that run and are not published yet. They end when this is dropped.
#[derive(Debug)]
pub struct PreparedCluster {
    tasks: ClusterTasks,
}

impl PreparedCluster {
    /// Takes over the system identifier of `handle`, if that is known. Call it before the first
    /// probe.
    pub fn keep_identity(&self, handle: &ClusterHandle) -> Result<(), Busy> {
        match handle.snapshot().system_identifier {
            Some(identifier) => self.tasks.send(Observation::Identity(identifier)),
            None => Ok(()),
        }
    }

    /// As [`ClusterHandle::set_admin`].
    pub fn set_admin(&self, member: &MemberName, state: AdminState) -> Result<(), Busy> {
        self.tasks.send(Observation::Admin(member.clone(), state))
    }

    /// As [`ClusterHandle::set_weight`].
    pub fn set_weight(&self, member: &MemberName, weight: Option<u16>) -> Result<(), Busy> {
        self.tasks.send(Observation::Weight(member.clone(), weight))
    }

    /// Waits until these tasks have seen as much as `handle`: a verified leader if `handle` has
    /// one, and every member that both list at least as fit.
    pub async fn ready(&self, handle: &ClusterHandle) {
        let mut own = self.tasks.own.clone();
        let mut other = handle.subscribe();
        loop {
            if is_as_good(&own.borrow_and_update(), &other.borrow_and_update()) {
                return;
            }
            let changed = tokio::select! {
                changed = own.changed() => changed,
                changed = other.changed() => changed,
            };
            if changed.is_err() {
                return;
            }
        }
    }

    /// Whether these tasks have a verified leader, or `handle` has none either.
    pub fn has_leader_of(&self, handle: &ClusterHandle) -> bool {
        has_leader(&self.tasks.own.borrow()) || !has_leader(&handle.snapshot())
    }
}

fn has_leader(snapshot: &Snapshot) -> bool {
    matches!(snapshot.leader, Leader::Verified { .. })
}

fn is_as_good(new: &Snapshot, old: &Snapshot) -> bool {
    let is_missed = |before: &Member| {
        new.member(&before.name)
            .is_some_and(|member| !member.health.up || !member.lagging.is_subset(&before.lagging))
    };
    let mut fit = old.members.iter().filter(|member| member.health.up);
    (has_leader(new) || !has_leader(old)) && !fit.any(is_missed)
}

/// Starts the tasks that keep one cluster's snapshot. Call it on the control runtime. They run
/// until `stop` is cancelled or the last handle is dropped, and are in `tracker`. `limits` are the
/// lag limits of the routes to it.
pub fn start(
    config: Arc<config::Cluster>,
    auth: &config::Auth,
    limits: LagLimits,
    reporting: Reporting,
    stop: &CancellationToken,
    tracker: &TaskTracker,
) -> Result<ClusterHandle, ClusterError> {
    let PreparedCluster { tasks } = prepare(config, auth, limits, reporting.clone(), stop, tracker)?;
    let snapshot = Arc::clone(&tasks.own.borrow());
    reporting.metrics.show(&snapshot, &snapshot);
    let (snapshots, first) = watch::channel(snapshot);
    let snapshots = Arc::new(snapshots);
    // It is set only here.
    let _ = tasks.published.set(Arc::clone(&snapshots));
    Ok(ClusterHandle {
        shared: Arc::new(Shared {
            tasks: ArcSwap::from_pointee(tasks),
            snapshots,
            first,
            reporting,
        }),
    })
}

/// As [`start`], for a handle that already exists.
pub fn prepare(
    config: Arc<config::Cluster>,
    auth: &config::Auth,
    limits: LagLimits,
    reporting: Reporting,
    stop: &CancellationToken,
    tracker: &TaskTracker,
) -> Result<PreparedCluster, ClusterError> {
    let tls =
        TlsClient::new(&config.server_tls).map_err(|error| ClusterError::ServerTls(error.to_string()))?;
    let patroni = patroni::Patroni::new(Arc::clone(&config))?;
    let metrics = Arc::new(reporting.metrics.of_tasks());
    let reporting = Reporting {
        metrics: Arc::clone(&metrics),
        ..reporting
    };
    let account = Arc::new(ServiceAccount::new(config, tls));
    let (evidence, reports) = mpsc::channel(MAX_EVIDENCE);
    let (limits, limited) = watch::channel(limits);
    let all = stop.child_token();
    let watching = all.child_token();
    let published = Arc::new(OnceLock::new());
    let (control, own) = control::Control::new(
        Arc::clone(&account),
        limited,
        reports,
        reporting,
        Arc::clone(&published),
        watching.clone(),
        tracker.clone(),
    );
    let (watcher, checks) = (control.watcher()?, control.checks());
    let pools = Arc::new(lookup::Pools::new(Arc::clone(&account), own.clone()));
    let (identities, cache_ttl) = match &auth.verifiers {
        config::Verifiers::UsersFile { .. } => (None, MEMBERSHIPS_TTL),
        config::Verifiers::Query { sql, cache_ttl } => {
            let query = lookup::Query {
                sql: sql.clone(),
                cache_ttl: *cache_ttl,
            };
            let (identities, service) = lookup::service(query, Arc::clone(&pools), Arc::clone(&metrics));
            tracker.spawn(service.run(all.clone()));
            (Some(identities), *cache_ttl)
        }
    };
    let query = lookup::MembershipsQuery { cache_ttl };
    let (memberships, service) = lookup::service(query, Arc::clone(&pools), Arc::clone(&metrics));
    tracker.spawn(service.run(all.clone()));
    let (standings, service) = lookup::service(lookup::StandingQuery, pools, Arc::clone(&metrics));
    tracker.spawn(service.run(all.clone()));
    tracker.spawn(control.run(patroni, watcher));
    Ok(PreparedCluster {
        tasks: ClusterTasks {
            account,
            metrics,
            evidence,
            limits,
            identities,
            memberships,
            standings,
            checks,
            own,
            published,
            watching,
            _all: all.drop_guard(),
        },
    })
}
