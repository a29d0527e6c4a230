//! A watch on Patroni's keys in etcd through its JSON gateway: the leader key, a requested
//! switchover, and members that are added or removed. It only makes the router react earlier; the
//! members and everything else come from Patroni's REST interface.
//!
//! Guarantees: each reported value of the leader key was read through etcd's quorum, or was an
//! event from an etcd member that is not known to be behind. Every request has a time limit, every
//! message a size limit, and retries have a minimum interval.
//!
//! # Silent and outdated watches
//!
//! An etcd member that has lost its peers sends nothing. Neither does one whose watch was
//! cancelled, whose host is gone, or where nothing happens. So a watch without an event for
//! [`QUIET`], or one that Patroni contradicts, is checked: the leader key is read, through the
//! quorum, at several endpoints at once. If none answers, the watch is lost. A different answer
//! counts at once, and the watch has [`CATCH_UP`] to deliver the same. An endpoint of another etcd
//! cluster, or with an older raft term or revision, is not used. The values it is compared with are
//! dropped after [`FORGET`] without a matching endpoint (etcd may have been created again).

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
use super::state::{Named, Observation, RequestedIn, SwitchoverRequest};
use super::{ClusterError, moment, patroni};
use crate::config;

/// Time limit for the set-up of a watch.
const OPEN: Duration = Duration::from_secs(3);
/// A watch without an event for this time is checked.
const QUIET: Duration = Duration::from_secs(5);
/// Time limit of a check.
const CHECK: Duration = Duration::from_secs(1);
/// Minimum interval of checks.
const CHECK_EVERY: Duration = Duration::from_millis(250);
/// Endpoints asked in a check.
const CHECKED: usize = 4;
/// How long a watch may be behind what a check has read.
const CATCH_UP: Duration = Duration::from_secs(1);
/// After this time without a usable endpoint, another cluster id, an older term or an older
/// revision is accepted.
const FORGET: Duration = Duration::from_mins(1);
/// Delay between two attempts: the first, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// A watch that lasted this long resets the delay.
const GOOD: Duration = Duration::from_secs(10);

/// Why a request or a watch failed, as the operator sees it.
#[derive(Debug, thiserror::Error)]
pub(super) enum EtcdError {
    #[error("no answer in time")]
    Timeout,
    #[error("{0}")]
    Request(String),
    #[error("it answered with HTTP status {0}: {1}")]
    Status(u16, String),
    #[error("it refused the user: {0}")]
    Unauthorised(String),
    #[error("it has no JSON gateway (no /v3, /v3beta or /v3alpha)")]
    NoGateway,
    #[error("it answered with {0}")]
    InvalidAnswer(&'static str),
    #[error("it answered with more than 4 MiB")]
    TooLong,
    #[error("it cancelled the watch: {0}")]
    Cancelled(String),
    #[error("it has dropped the history from which the watch should begin")]
    Compacted,
    #[error("it ended the watch")]
    Ended,
    #[error("it belongs to another etcd cluster than before")]
    OtherCluster,
    #[error("it is behind the other etcd members")]
    Behind,
    #[error("the task that receives the events has ended")]
    NoReceiver,
}

/// The newest state of etcd that was seen.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    cluster: Option<u64>,
    revision: i64,
    term: u64,
}

impl Seen {
    /// Compares with the state before the request, since answers may overtake each other.
    fn admit(&self, header: &Header) -> Result<(), EtcdError> {
        if self.cluster.is_some_and(|cluster| cluster != header.cluster) {
            return Err(EtcdError::OtherCluster);
        }
        if header.term < self.term || header.revision < self.revision {
            return Err(EtcdError::Behind);
        }
        Ok(())
    }

    fn record(&mut self, header: &Header) {
        self.cluster = Some(header.cluster);
        self.revision = self.revision.max(header.revision);
        self.term = self.term.max(header.term);
    }
}

/// The leader key, as one watch knows it.
struct Key {
    /// The holder that was reported last.
    reported: Option<MemberName>,
    /// The revision up to which this includes all changes.
    as_of: i64,
    /// The holder by the watch alone.
    by_watch: Option<MemberName>,
    /// Since when a check differs from the watch.
    behind: Option<Instant>,
}

type PendingCheck = Pin<Box<dyn Future<Output = Result<Single, EtcdError>> + Send>>;

/// The task that watches the keys.
pub(super) struct Watcher {
    gateway: Arc<Gateway>,
    cluster: Arc<str>,
    /// Check the watch now.
    check_now: Arc<Notify>,
    observations: mpsc::Sender<Observation>,
    metrics: Arc<Metrics>,
    seen: Seen,
    /// When an answer was last accepted.
    admitted: Instant,
    /// Since when the watch is up.
    up: Option<Instant>,
    /// The request for a switchover that was reported last.
    requested: Option<SwitchoverRequest>,
}

impl Watcher {
    /// `None` if no etcd is configured.
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
            requested: None,
        }))
    }

    pub(super) async fn run(mut self) {
        let cluster = Arc::clone(&self.cluster);
        let (mut endpoint, mut failures) = (0, 0_u32);
        // One warning for each loss, no matter how many endpoints are tried.
        let mut warned = false;
        self.metrics.watched(&cluster, false);
        loop {
            let Err(error) = self.watch(endpoint, warned).await;
            if matches!(error, EtcdError::NoReceiver) {
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
                tracing::debug!(%cluster, endpoint = %name, %error, "the router cannot watch etcd");
            } else {
                let what = if lived.is_some() {
                    "the watch on etcd is lost; until it is restored, only Patroni's REST interface names the leader"
                } else {
                    "the router cannot watch etcd; until it can, only Patroni's REST interface names the leader"
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
            // The first round tries all endpoints with the shortest delay.
            let rounds = failures / u32::try_from(self.gateway.size()).unwrap_or(1);
            let (first, longest) = BACKOFF;
            sleep((first * 2_u32.pow(rounds.min(6))).min(longest).mul_f64(jitter())).await;
        }
    }

    /// Reads the keys, then watches them until a fault.
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
                .map_err(|_| EtcdError::Timeout)?;
            early.extend(lines.push(&received(chunk)?)?);
        }
        let holder = leader.value.as_deref().and_then(member);
        let name = gateway.name(endpoint);
        if again {
            tracing::info!(cluster = %self.cluster, endpoint = %name, "the router watches etcd again");
        } else {
            tracing::info!(cluster = %self.cluster, endpoint = %name, "the router watches etcd");
        }
        self.up = Some(Instant::now());
        self.metrics.watched(&self.cluster, true);
        let mut key = Key {
            reported: holder.clone(),
            as_of: leader.header.revision,
            by_watch: holder,
            behind: None,
        };
        self.report_key(&key).await?;
        self.report_request(switchover.value.as_deref()).await?;
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
        self.seen.record(header);
        self.admitted = Instant::now();
        Ok(())
    }

    /// Folds one message in. Returns whether it has changes.
    async fn updated(&mut self, update: &Update, key: &mut Key, last: &mut i64) -> Result<bool, EtcdError> {
        let Header { revision, .. } = update.header;
        // A check may have seen later revisions. A watch is compared only with its own.
        let mut before = self.seen;
        before.revision = if update.created { 0 } else { *last };
        before.admit(&update.header)?;
        self.seen.record(&update.header);
        *last = revision.max(*last);
        let prefix = self.gateway.prefix().len();
        for change in &update.changes {
            match change.key.get(prefix..).unwrap_or_default() {
                b"leader" => self.leader_changed(change, key).await?,
                b"failover" => self.report_request(change.value.as_deref()).await?,
                name if name.starts_with(b"members/") && (change.created || change.value.is_none()) => {
                    self.report(Observation::LookAgain).await?;
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
        if key.reported != holder {
            let what = holder
                .as_ref()
                .map_or_else(|| "was deleted".to_owned(), |name| format!("names {name}"));
            tracing::info!(cluster = %self.cluster, "the leader key {what}");
        }
        key.reported = holder;
        self.report_key(key).await
    }

    /// Reads the leader key at several endpoints at once. The first valid answer counts.
    fn check(&self, endpoint: usize) -> PendingCheck {
        let size = self.gateway.size();
        // The watched endpoint is the last one.
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

    /// Folds a check in. Returns the delay until the next one.
    async fn checked(&mut self, single: Single, key: &mut Key) -> Result<Duration, EtcdError> {
        self.seen.record(&single.header);
        self.admitted = Instant::now();
        let holder = single.value.as_deref().and_then(member);
        if single.header.revision < key.as_of {
            // The watch has delivered a newer value meanwhile.
            return Ok(QUIET);
        }
        key.as_of = single.header.revision;
        key.reported.clone_from(&holder);
        self.report_key(key).await?;
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

    async fn report_key(&self, key: &Key) -> Result<(), EtcdError> {
        let named = match &key.reported {
            Some(name) => Named::One(name.clone()),
            None => Named::Nobody,
        };
        let at = Instant::now();
        self.report(Observation::Key { named, at }).await
    }

    async fn report_request(&mut self, value: Option<&[u8]>) -> Result<(), EtcdError> {
        let request = requested(value);
        if self.requested == request {
            return Ok(());
        }
        self.requested.clone_from(&request);
        let due = moment::instant(request.as_ref().and_then(|request| request.at));
        let place = RequestedIn::Dcs;
        self.report(Observation::Switchover { place, request, due }).await
    }

    async fn report(&self, observation: Observation) -> Result<(), EtcdError> {
        self.observations
            .send(observation)
            .await
            .map_err(|_| EtcdError::NoReceiver)
    }
}

/// Reads the holder of the leader key once at each endpoint, for a check of the configuration.
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

/// What the `failover` key requests; `None` for a request that is done, and for one whose time
/// cannot be read.
fn requested(value: Option<&[u8]>) -> Option<SwitchoverRequest> {
    let Value::Object(asked) = serde_json::from_slice(value?).ok()? else {
        return None;
    };
    let given = |key| {
        let text = asked.get(key).and_then(Value::as_str);
        text.filter(|text| !text.is_empty())
    };
    let named = |key| given(key).and_then(|name| member(name.as_bytes()));
    let request = SwitchoverRequest {
        leader: named("leader"),
        candidate: named("member"),
        at: match given("scheduled_at") {
            Some(text) => Some(moment::read(text)?),
            None => None,
        },
    };
    (request.leader.is_some() || request.candidate.is_some()).then_some(request)
}
