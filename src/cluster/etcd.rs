//! A watch on Patroni's keys in etcd, by its JSON gateway: the leader key, a switchover that is asked for, members that come
//! and go. It is a head start only; members and everything else come from Patroni's REST interface.
//!
//! Guarantees: what is told of the leader key was read through etcd's quorum, or came as an event from an etcd that is not
//! known to be behind. Every request is bounded in time, every message in size; retries in their pace.
//!
//! # When a watch is not to be believed
//!
//! An etcd that has lost its peers says nothing, and neither does one whose watch has been cancelled or whose host is gone;
//! so does one where nothing happens. So a watch without an event for [`QUIET`], or one that Patroni contradicts, is
//! checked: the leader key is read, through the quorum, at several endpoints at once. If none answers, the watch is lost. An
//! answer that differs counts at once, and the watch has [`CATCH_UP`] to say the same. An endpoint whose cluster is another
//! one, whose raft term goes back, or whose revision does, is left alone; what these are compared with is forgotten after
//! [`FORGET`] without an endpoint that fits (etcd may have been made anew).

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod gateway;
mod message;
#[cfg(test)]
mod tests;

use std::future::pending;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{join_all, select_ok};
use serde_json::Value;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use self::gateway::Gateway;
use self::message::{Change, Header, Lines, Single, Update};
use super::metrics::{Metrics, ProbeResult};
use super::patroni::MAX_NAME;
use super::probe::jitter;
use super::snapshot::MemberName;
use super::state::{Named, Observation};
use super::{ClusterError, patroni};
use crate::config;

/// Bound on everything until a watch is set up.
const OPEN: Duration = Duration::from_secs(3);
/// A watch that says nothing for so long is checked.
const QUIET: Duration = Duration::from_secs(5);
/// Bound on a check.
const CHECK: Duration = Duration::from_secs(1);
/// Between two checks.
const CHECK_EVERY: Duration = Duration::from_millis(250);
/// Endpoints asked in a check.
const CHECKED: usize = 4;
/// How long a watch may be behind what a check has read.
const CATCH_UP: Duration = Duration::from_secs(1);
/// After so long without a good endpoint, another cluster id, an older term or revision is taken.
const FORGET: Duration = Duration::from_mins(1);
/// Between two attempts: the first, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// A watch that lived for so long was a good one.
const GOOD: Duration = Duration::from_secs(10);

/// Why a request or a watch came to nothing. What an operator sees.
#[derive(Debug, thiserror::Error)]
pub(super) enum EtcdError {
    #[error("no answer in time")]
    Late,
    #[error("{0}")]
    Request(String),
    #[error("it answered with HTTP status {0}: {1}")]
    Status(u16, String),
    #[error("it refused the user: {0}")]
    Unauthorised(String),
    #[error("it has no JSON gateway (no /v3, /v3beta or /v3alpha)")]
    NoGateway,
    #[error("it answered with {0}")]
    Senseless(&'static str),
    #[error("it answered with more than 4 MiB")]
    TooLong,
    #[error("it cancelled the watch: {0}")]
    Cancelled(String),
    #[error("it has dropped the history that the watch was to begin with")]
    Compacted,
    #[error("it ended the watch")]
    Ended,
    #[error("it belongs to another etcd cluster than before")]
    OtherCluster,
    #[error("it is behind the others")]
    Behind,
    #[error("nobody is there to be told")]
    Unheard,
}

/// The newest that was seen of etcd.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    cluster: Option<u64>,
    revision: i64,
    term: u64,
}

impl Seen {
    /// Compares with what was known before the request: answers may overtake each other.
    fn admit(&self, header: &Header) -> Result<(), EtcdError> {
        if self.cluster.is_some_and(|cluster| cluster != header.cluster) {
            return Err(EtcdError::OtherCluster);
        }
        if header.term < self.term || header.revision < self.revision {
            return Err(EtcdError::Behind);
        }
        Ok(())
    }

    fn note(&mut self, header: &Header) {
        self.cluster = Some(header.cluster);
        self.revision = self.revision.max(header.revision);
        self.term = self.term.max(header.term);
    }
}

/// What one watch knows of the leader key.
struct Key {
    /// As last told.
    told: Option<MemberName>,
    /// The revision up to which that takes everything into account.
    as_of: i64,
    /// By the watch alone.
    by_watch: Option<MemberName>,
    /// Since when a check says something else than the watch.
    behind: Option<Instant>,
}

type PendingCheck = Pin<Box<dyn Future<Output = Result<Single, EtcdError>> + Send>>;

/// The task that watches, for ever.
pub(super) struct Watcher {
    gateway: Arc<Gateway>,
    cluster: Arc<str>,
    /// Check the watch now.
    check_now: Arc<Notify>,
    observations: mpsc::Sender<Observation>,
    metrics: Arc<Metrics>,
    seen: Seen,
    /// When an answer was last admitted.
    admitted: Instant,
    /// Since when the watch is up.
    up: Option<Instant>,
}

impl Watcher {
    /// `None` where there is no etcd to watch.
    pub(super) fn new(
        config: Arc<config::Cluster>,
        check_now: Arc<Notify>,
        observations: mpsc::Sender<Observation>,
        metrics: Arc<Metrics>,
    ) -> Result<Option<Self>, ClusterError> {
        let cluster = Arc::clone(&config.name);
        Ok(Gateway::new(config)?.map(|gateway| Self {
            gateway: Arc::new(gateway),
            cluster,
            check_now,
            observations,
            metrics,
            seen: Seen::default(),
            admitted: Instant::now(),
            up: None,
        }))
    }

    pub(super) async fn run(mut self) {
        let cluster = Arc::clone(&self.cluster);
        let (mut endpoint, mut failures) = (0, 0_u32);
        // One warning for each loss, however many endpoints are tried.
        let mut warned = false;
        self.metrics.watched(&cluster, false);
        loop {
            let Err(error) = self.watch(endpoint, warned).await;
            if matches!(error, EtcdError::Unheard) {
                return;
            }
            self.gateway.forget(endpoint);
            let name = self.gateway.name(endpoint);
            let lived = self.up.take().map(|since| since.elapsed());
            if lived.is_some() {
                self.metrics.watched(&cluster, false);
                if self.observations.send(Observation::KeyLost).await.is_err() {
                    return;
                }
                warned = false;
            }
            if warned {
                tracing::debug!(%cluster, endpoint = %name, %error, "etcd cannot be watched");
            } else {
                let what = if lived.is_some() {
                    "the watch on etcd is lost; until it is back, Patroni's REST interface alone names the leader"
                } else {
                    "etcd cannot be watched; until it can, Patroni's REST interface alone names the leader"
                };
                tracing::warn!(%cluster, endpoint = %name, %error, "{what}");
                warned = true;
            }
            if self.admitted.elapsed() >= FORGET {
                self.seen = Seen::default();
            }
            failures = if lived.is_some_and(|lived| lived >= GOOD) {
                0
            } else {
                failures.saturating_add(1)
            };
            endpoint = (endpoint + 1) % self.gateway.size();
            // The first round goes through the endpoints without growing slower.
            let rounds = failures / u32::try_from(self.gateway.size()).unwrap_or(1);
            let (first, longest) = BACKOFF;
            sleep((first * 2_u32.pow(rounds.min(6))).min(longest).mul_f64(jitter())).await;
        }
    }

    /// Reads the keys, then watches them until something is wrong.
    async fn watch(&mut self, endpoint: usize, again: bool) -> Result<std::convert::Infallible, EtcdError> {
        let deadline = Instant::now() + OPEN;
        let gateway = Arc::clone(&self.gateway);
        let leader = gateway.read(endpoint, "leader", deadline).await?;
        self.admit(&leader.header)?;
        let switchover = gateway.read(endpoint, "failover", deadline).await?;
        self.admit(&switchover.header)?;
        let mut stream = gateway
            .watch(endpoint, leader.header.revision + 1, deadline)
            .await?;
        let (mut lines, mut last) = (Lines::default(), leader.header.revision);
        let mut early = Vec::new();
        while !early.iter().any(|update: &Update| update.created) {
            let chunk = timeout_at(deadline, stream.chunk())
                .await
                .map_err(|_| EtcdError::Late)?;
            early.extend(lines.push(&received(chunk)?)?);
        }
        let holder = leader.value.as_deref().and_then(member);
        let name = gateway.name(endpoint);
        if again {
            tracing::info!(cluster = %self.cluster, endpoint = %name, "etcd is watched again");
        } else {
            tracing::info!(cluster = %self.cluster, endpoint = %name, "etcd is watched");
        }
        self.up = Some(Instant::now());
        self.metrics.watched(&self.cluster, true);
        let mut key = Key {
            told: holder.clone(),
            as_of: leader.header.revision,
            by_watch: holder,
            behind: None,
        };
        self.tell_key(&key).await?;
        if asks_for_switchover(switchover.value.as_deref()) {
            self.tell(Observation::SwitchoverAsked).await?;
        }
        for update in early {
            self.updated(&update, &mut key, &mut last).await?;
        }

        let mut checking = false;
        let mut check: PendingCheck = Box::pin(pending());
        let mut checked = Instant::now();
        let mut next_check = checked + QUIET;
        let check_now = Arc::clone(&self.check_now);
        loop {
            tokio::select! {
                chunk = stream.chunk() => {
                    for update in lines.push(&received(chunk)?)? {
                        if self.updated(&update, &mut key, &mut last).await? && key.behind.is_none() {
                            next_check = Instant::now() + QUIET;
                        }
                    }
                }
                result = &mut check, if checking => {
                    checking = false;
                    let outcome = if result.is_ok() { ProbeResult::Success } else { ProbeResult::Failure };
                    self.metrics.checked(&self.cluster, outcome);
                    next_check = Instant::now() + self.checked(result?, &mut key).await?;
                }
                () = sleep_until(next_check), if !checking => {
                    checked = Instant::now();
                    check = self.check(endpoint);
                    checking = true;
                }
                () = check_now.notified(), if !checking => {
                    next_check = next_check.min(checked + CHECK_EVERY);
                }
            }
        }
    }

    fn admit(&mut self, header: &Header) -> Result<(), EtcdError> {
        self.seen.admit(header)?;
        self.seen.note(header);
        self.admitted = Instant::now();
        Ok(())
    }

    /// Folds one message in. Whether something has happened in etcd.
    async fn updated(&mut self, update: &Update, key: &mut Key, last: &mut i64) -> Result<bool, EtcdError> {
        let Header { revision, .. } = update.header;
        // A check may have told of later revisions: only its own count against a watch.
        let mut before = self.seen;
        before.revision = if update.created { 0 } else { *last };
        before.admit(&update.header)?;
        self.seen.note(&update.header);
        *last = revision.max(*last);
        let prefix = self.gateway.prefix().len();
        for change in &update.changes {
            match change.key.get(prefix..).unwrap_or_default() {
                b"leader" => self.leader_changed(change, key).await?,
                b"failover" if asks_for_switchover(change.value.as_deref()) => {
                    tracing::info!(cluster = %self.cluster, "a switchover has been asked for");
                    self.tell(Observation::SwitchoverAsked).await?;
                }
                name if name.starts_with(b"members/") && (change.created || change.value.is_none()) => {
                    self.tell(Observation::LookAgain).await?;
                }
                _ => {}
            }
        }
        Ok(!update.changes.is_empty())
    }

    async fn leader_changed(&mut self, change: &Change, key: &mut Key) -> Result<(), EtcdError> {
        let holder = change.value.as_deref().and_then(member);
        key.by_watch.clone_from(&holder);
        if change.revision <= key.as_of {
            return Ok(());
        }
        key.as_of = change.revision;
        if key.told != holder {
            let what = holder
                .as_ref()
                .map_or_else(|| "is gone".to_owned(), |name| format!("names {name}"));
            tracing::info!(cluster = %self.cluster, "the leader key {what}");
        }
        key.told = holder;
        self.tell_key(key).await
    }

    /// Reads the leader key at some endpoints at once; the first good answer counts.
    fn check(&self, endpoint: usize) -> PendingCheck {
        let size = self.gateway.size();
        // Others first, the own one last.
        let asked = (1..=size)
            .map(|step| (endpoint + step) % size)
            .skip(size.saturating_sub(CHECKED));
        let (deadline, seen) = (Instant::now() + CHECK, self.seen);
        let asks = asked.map(|endpoint| {
            let gateway = Arc::clone(&self.gateway);
            Box::pin(async move {
                let single = gateway.read(endpoint, "leader", deadline).await?;
                seen.admit(&single.header)?;
                Ok(single)
            })
        });
        let asks = select_ok(asks.collect::<Vec<_>>());
        Box::pin(async move { asks.await.map(|(single, _)| single) })
    }

    /// Folds a check in. How soon the next one is due.
    async fn checked(&mut self, single: Single, key: &mut Key) -> Result<Duration, EtcdError> {
        self.seen.note(&single.header);
        self.admitted = Instant::now();
        let holder = single.value.as_deref().and_then(member);
        if single.header.revision < key.as_of {
            // The watch has said something newer meanwhile.
            return Ok(QUIET);
        }
        key.as_of = single.header.revision;
        key.told.clone_from(&holder);
        self.tell_key(key).await?;
        if holder == key.by_watch {
            key.behind = None;
            return Ok(QUIET);
        }
        let since = *key.behind.get_or_insert_with(Instant::now);
        if since.elapsed() >= CATCH_UP {
            return Err(EtcdError::Behind);
        }
        Ok(CATCH_UP)
    }

    async fn tell_key(&self, key: &Key) -> Result<(), EtcdError> {
        let named = match &key.told {
            Some(name) => Named::One(name.clone()),
            None => Named::Nobody,
        };
        let at = Instant::now();
        self.tell(Observation::Key { named, at }).await
    }

    async fn tell(&self, observation: Observation) -> Result<(), EtcdError> {
        self.observations
            .send(observation)
            .await
            .map_err(|_| EtcdError::Unheard)
    }
}

/// Who holds the leader key by each endpoint, asked once: for a check of the configuration.
pub(super) async fn ask_all(
    config: Arc<config::Cluster>,
) -> Result<Vec<(String, Result<Option<MemberName>, String>)>, ClusterError> {
    let Some(gateway) = Gateway::new(config)? else {
        return Ok(Vec::new());
    };
    let deadline = Instant::now() + OPEN;
    let gateway = &gateway;
    let asked = (0..gateway.size()).map(|endpoint| async move {
        let answer = gateway.read(endpoint, "leader", deadline).await;
        let holder = answer.map(|single| single.value.as_deref().and_then(member));
        let name = gateway.name(endpoint).to_owned();
        (name, holder.map_err(|error| error.to_string()))
    });
    Ok(join_all(asked).await)
}

fn received(chunk: reqwest::Result<Option<bytes::Bytes>>) -> Result<bytes::Bytes, EtcdError> {
    match chunk {
        Ok(Some(chunk)) => Ok(chunk),
        Ok(None) => Err(EtcdError::Ended),
        Err(error) => Err(EtcdError::Request(patroni::describe(&error))),
    }
}

/// The holder of the leader key; `None` for a value that cannot be a member's name.
fn member(value: &[u8]) -> Option<MemberName> {
    let name = std::str::from_utf8(value).ok()?;
    let usable = !name.is_empty() && name.len() <= MAX_NAME && !name.chars().any(char::is_control);
    usable.then(|| MemberName::new(name))
}

/// Whether the `failover` key asks for a change now: not once it is done, and not for later.
fn asks_for_switchover(value: Option<&[u8]>) -> bool {
    let Some(Value::Object(asked)) = value.and_then(|value| serde_json::from_slice(value).ok()) else {
        return false;
    };
    let given = |key| {
        asked
            .get(key)
            .is_some_and(|value| !value.is_null() && value != "")
    };
    !given("scheduled_at") && (given("leader") || given("member"))
}
