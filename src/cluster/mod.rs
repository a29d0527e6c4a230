//! What is known of a cluster: sources publish observations, one pure function folds observations and the time into
//! the next snapshot, everything else reads snapshots.
//!
//! Guarantees: a snapshot is immutable and versioned; its leader is one this router has itself seen to be writable
//! and that is named by the leader key (or still the last one named while the DCS cannot be reached; or, in a fixed
//! list, has the highest timeline); a tie is no leader; a member of another cluster is never used, and which cluster
//! this is does not change by itself once a leader has been verified.
//!
//! Refuses: a home-made consensus, and to trust a lock as a health check.

mod announce;
pub mod check;
mod control;
pub(crate) mod etcd;
pub mod examine;
mod fixed;
mod frozen;
mod lag;
pub mod lookup;
mod metrics;
mod newcomers;
pub mod observation;
pub mod patroni;
pub mod probe;
mod service_account;
mod share;
pub mod sight;
#[cfg(test)]
mod simulator;
pub mod snapshot;
pub mod state;
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
pub use self::state::{Evidence, LagLimits};
use crate::auth::lookup::{LookupAnswer, Standing};
use crate::auth::rules::Memberships;
use crate::backend::TlsClient;
use crate::config;
use crate::events::{ClusterChange, ClusterEvent, Events};

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

/// Where a cluster reports to.
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

/// Too many reports wait: nothing was done, and the same may be asked again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too much is waiting to be done; try again in a moment")]
pub struct Busy;

/// How long memberships may be used without being confirmed where `cache_ttl` is not to be set: its default.
const MEMBERSHIPS_TTL: Duration = Duration::from_mins(1);
/// Reports of sessions that wait to be folded in; more are dropped (they say the same).
const MAX_EVIDENCE: usize = 256;

/// One cluster, as the other rooms see it. Cheap to clone, usable from every thread and runtime. What keeps its snapshot
/// may be exchanged for another ([`Self::succeed`]) and ends with the last clone.
#[derive(Debug, Clone)]
pub struct ClusterHandle {
    shared: Arc<Shared>,
}

/// Finds a cluster that is no longer configured, as long as somebody uses it.
#[derive(Debug, Clone)]
pub struct WeakClusterHandle {
    shared: Weak<Shared>,
}

#[derive(Debug)]
struct Shared {
    tasks: ArcSwap<ClusterTasks>,
    snapshots: Arc<watch::Sender<Arc<Snapshot>>>,
    /// The first receiver: whoever gets a clone is woken for what was published before.
    first: watch::Receiver<Arc<Snapshot>>,
    reporting: Reporting,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.reporting.metrics.forget(&self.snapshots.borrow());
    }
}

/// What keeps a cluster's snapshot by one configuration of it.
#[derive(Debug)]
struct ClusterTasks {
    account: Arc<ServiceAccount>,
    evidence: mpsc::Sender<Observation>,
    /// Of the routes.
    limits: watch::Sender<LagLimits>,
    /// `None` with a users file.
    identities: Option<Lookups<Lookup>>,
    memberships: Lookups<Arc<Memberships>>,
    standings: Lookups<Standing>,
    /// Where the members' addresses lead.
    looks: Arc<sight::Looks>,
    /// As these works see it, shown to the others or not yet.
    own: watch::Receiver<Arc<Snapshot>>,
    published: Arc<OnceLock<Arc<watch::Sender<Arc<Snapshot>>>>>,
    /// Ends source and probes; look-ups under way go on until the last user is gone.
    watching: CancellationToken,
    _all: DropGuard,
}

impl ClusterTasks {
    fn tell(&self, observation: Observation) -> Result<(), Busy> {
        self.evidence.try_send(observation).map_err(|_| Busy)
    }
}

impl WeakClusterHandle {
    /// `None` once nobody uses it.
    pub fn upgrade(&self) -> Option<ClusterHandle> {
        self.shared.upgrade().map(|shared| ClusterHandle { shared })
    }
}

impl ClusterHandle {
    /// The newest snapshot.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.shared.snapshots.borrow())
    }

    /// Wakes at each new version. (What changes all the time, as positions do, is renewed without waking anybody.)
    pub fn subscribe(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.shared.first.clone()
    }

    pub fn downgrade(&self) -> WeakClusterHandle {
        WeakClusterHandle {
            shared: Arc::downgrade(&self.shared),
        }
    }

    /// Other works take over, with what they have seen: for everybody who has this handle, from now on. To be called on
    /// the control runtime.
    pub fn succeed(&self, successor: PreparedCluster) {
        let PreparedCluster { tasks } = successor;
        let old = self.shared.tasks.load_full();
        old.watching.cancel();
        let snapshot = Arc::clone(&tasks.own.borrow());
        let before = self.snapshot();
        // Nobody else sets it.
        let _ = tasks.published.set(Arc::clone(&self.shared.snapshots));
        self.shared.tasks.store(Arc::new(tasks));
        // The successor has kept to itself what it saw before.
        for change in Announcer::default().changes(&before, &snapshot, Instant::now()) {
            self.shared.reporting.change(&snapshot.cluster, change);
        }
        self.shared.reporting.metrics.show(&before, &snapshot);
        if self.config().etcd.is_none() {
            self.shared.reporting.metrics.forget_watch(&snapshot.cluster);
        }
        self.shared.snapshots.send_replace(snapshot);
    }

    /// Reports what a live session noticed. Never waits; dropped when too many wait.
    pub fn evidence(&self, member: &MemberName, evidence: Evidence) {
        let observation = Observation::Evidence {
            member: member.clone(),
            evidence,
            at: Instant::now(),
        };
        let _ = self.shared.tasks.load().evidence.try_send(observation);
    }

    /// Where a member's address leads; `None` of one that is not probed.
    pub fn look(&self, member: &MemberName) -> Option<Arc<sight::Look>> {
        self.shared.tasks.load().looks.of(member)
    }

    /// The cluster may be another one from now on: its system identifier is learned anew.
    pub fn forget_identity(&self) -> Result<(), Busy> {
        self.tell(Observation::ForgetIdentity)
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
        self.shared.tasks.load().tell(observation)
    }

    /// Other limits of the routes to it.
    pub fn replace_limits(&self, limits: LagLimits) {
        self.shared.tasks.load().limits.send_if_modified(|current| {
            let differs = *current != limits;
            *current = limits;
            differs
        });
    }

    /// Asks the source and probes every member now.
    pub fn look_again(&self) {
        let _ = self.shared.tasks.load().evidence.try_send(Observation::LookAgain);
    }

    /// What the cluster has to check `user`'s login against; `None` for one that cannot log in. Asked for after this call,
    /// or, while it cannot be confirmed, no older than `cache_ttl`; bounded by the service account's `timeout`. A login
    /// that fails by an unconfirmed one ends with [`LookupError::Unconfirmed`].
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

    /// The roles `user` is a member of, as PostgreSQL's `+role` has it; none for an unknown user. As old as an identity
    /// at most (with a users file, as one with the default `cache_ttl`). A login that unconfirmed ones keep out ends with
    /// [`LookupError::Unconfirmed`].
    pub async fn memberships(
        &self,
        user: &[u8],
        deadline: Instant,
    ) -> Result<LookupAnswer<Arc<Memberships>>, LookupError> {
        let tasks = self.shared.tasks.load_full();
        tasks.memberships.ask(user, deadline).await
    }

    /// Why there is no [`Self::identity`] for `user`, if a server tells by `deadline`; never with a users file.
    pub async fn standing(&self, user: &[u8], deadline: Instant) -> Option<Standing> {
        let tasks = self.shared.tasks.load_full();
        tasks.identities.as_ref()?;
        let answer = tasks.standings.ask(user, deadline).await.ok()?;
        Some(answer.found)
    }

    /// TLS towards the servers, for a connection that begins now.
    pub fn tls(&self) -> Arc<TlsClient> {
        self.shared.tasks.load().account.tls()
    }

    /// Other TLS settings for the connections to come.
    pub fn replace_tls(&self, tls: Arc<TlsClient>) {
        self.shared.tasks.load().account.replace_tls(tls);
    }

    /// Another password of the service account, for the logins to come.
    pub fn replace_password(&self, password: Option<&config::Secret>) {
        self.shared.tasks.load().account.replace_password(password);
    }

    /// As it is in service now.
    pub fn config(&self) -> Arc<config::Cluster> {
        Arc::clone(&self.shared.tasks.load().account.config)
    }
}

/// Works that have begun and are not shown to anybody yet. They end when this is dropped.
#[derive(Debug)]
pub struct PreparedCluster {
    tasks: ClusterTasks,
}

impl PreparedCluster {
    /// It is the cluster that `handle` has, if that is known. To be called before its first look.
    pub fn keep_identity(&self, handle: &ClusterHandle) -> Result<(), Busy> {
        match handle.snapshot().system_identifier {
            Some(identifier) => self.tasks.tell(Observation::Identity(identifier)),
            None => Ok(()),
        }
    }

    /// As [`ClusterHandle::set_admin`].
    pub fn set_admin(&self, member: &MemberName, state: AdminState) -> Result<(), Busy> {
        self.tasks.tell(Observation::Admin(member.clone(), state))
    }

    /// As [`ClusterHandle::set_weight`].
    pub fn set_weight(&self, member: &MemberName, weight: Option<u16>) -> Result<(), Busy> {
        self.tasks.tell(Observation::Weight(member.clone(), weight))
    }

    /// Until it sees what `handle` sees: a verified leader if there is one, and as fit every member it has in common.
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

    /// Whether it has a verified leader, or `handle` has none either.
    pub fn has_leader_of(&self, handle: &ClusterHandle) -> bool {
        is_led(&self.tasks.own.borrow()) || !is_led(&handle.snapshot())
    }
}

fn is_led(snapshot: &Snapshot) -> bool {
    matches!(snapshot.leader, Leader::Verified { .. })
}

fn is_as_good(new: &Snapshot, old: &Snapshot) -> bool {
    let is_missed = |before: &Member| {
        new.member(&before.name)
            .is_some_and(|member| !member.health.up || !member.lagging.is_subset(&before.lagging))
    };
    let mut fit = old.members.iter().filter(|member| member.health.up);
    (is_led(new) || !is_led(old)) && !fit.any(is_missed)
}

/// Starts everything that keeps one cluster's snapshot: to be called on the control runtime. It runs until `stop`
/// is cancelled or the last handle is dropped; its tasks are in `tracker`. `limits` are those of the routes to it.
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
    // Nobody else sets it.
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

/// As [`start`], for a handle that is there already.
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
        reporting.clone(),
        Arc::clone(&published),
        watching.clone(),
        tracker.clone(),
    );
    let metrics = reporting.metrics;
    let (watcher, looks) = (control.watcher()?, control.looks());
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
    let (standings, service) = lookup::service(lookup::StandingQuery, pools, metrics);
    tracker.spawn(service.run(all.clone()));
    tracker.spawn(control.run(patroni, watcher));
    Ok(PreparedCluster {
        tasks: ClusterTasks {
            account,
            evidence,
            limits,
            identities,
            memberships,
            standings,
            looks,
            own,
            published,
            watching,
            _all: all.drop_guard(),
        },
    })
}
