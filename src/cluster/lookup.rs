//! Look-ups of verifiers by the service account, for sessions on other threads.
//!
//! Guarantees: a look-up is asked of the leader first, else of a replica that is up, and ends within its deadline;
//! looked-up users are remembered for a while; look-ups of one user at the same time are one; connections are a
//! bounded pool per member, checked before use; nothing waits without a limit; an outage is never taken for an
//! unknown user; probes are not delayed (they have connections of their own).
//!
//! Refuses: to let a user's name be anything but a value in the query.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::time::Duration;

use deadpool::Runtime;
use deadpool::managed::{self, PoolError, RecycleError, RecycleResult, Timeouts};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::account::{Account, Purpose};
use super::metrics::{LookUpResult, Metrics};
use super::snapshot::{Identity, Leader, Member, MemberName, Snapshot};
use crate::auth;
use crate::auth::lookup::{Cached, DEFAULT_CAPACITY, LookedUp, VerifierCache};
use crate::backend::query::{Row, simple_query};
use crate::backend::{ConnectError, ServerConnection};

/// Look-ups waiting to be taken up.
const MAX_WAITING: usize = 1024;
/// Users looked up at the same time.
const MAX_IN_FLIGHT: usize = 256;
/// Members asked before a look-up gives up.
const MAX_MEMBERS: usize = 4;
/// A remembered answer younger than this is not forgotten on request: wrong passwords must not cost a query each.
const MIN_AGE: Duration = Duration::from_secs(1);
/// Between two warnings that look-ups fail.
const WARN_EVERY: Duration = Duration::from_secs(10);
/// Longest user name that is looked up, in bytes; PostgreSQL's own bound is 63.
const MAX_NAME: usize = 255;

/// What a superuser asks where the default look-up function does not exist.
const SUPERUSER_QUERY: &str = "SELECT rolname, rolpassword FROM pg_catalog.pg_authid \
WHERE rolname = $1 AND rolcanlogin AND (rolvaliduntil IS NULL OR rolvaliduntil > pg_catalog.now())";
/// The function of the default query; only where it is asked may the query above stand in.
const DEFAULT_FUNCTION: &str = "trunkline.user_lookup(";

/// The configured query (of [`crate::config::Verifiers::Query`]).
#[derive(Debug, Clone)]
pub struct Query {
    pub sql: String,
    pub cache_ttl: Duration,
}

/// Why a look-up gave no answer. The client is told 57P03, never 28P01.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// Verifiers come from a file.
    #[error("no query is configured for verifiers")]
    NotConfigured,
    #[error("too many look-ups are waiting")]
    Busy,
    #[error("the look-up was not answered in time")]
    Timeout,
    #[error("no member can be asked: {0}")]
    Unavailable(String),
    /// The server refused the query: a missing function or right.
    #[error("the look-up query failed: {0}")]
    Query(String),
    #[error("the router is shutting down")]
    Stopped,
}

/// A user's verifier; `None` for one that cannot log in.
pub type Lookup = Option<auth::Identity>;
type Answer = Result<Lookup, LookupError>;

enum Request {
    LookUp {
        user: Vec<u8>,
        answer: oneshot::Sender<Answer>,
    },
    Forget {
        user: Vec<u8>,
    },
}

/// Asks from any thread and runtime.
#[derive(Debug, Clone)]
pub(super) struct Lookups {
    requests: mpsc::Sender<Request>,
}

impl Lookups {
    pub(super) async fn verifier(&self, user: &[u8], deadline: Instant) -> Answer {
        // PostgreSQL has no such user, and the query could not name it.
        if user.is_empty() || user.len() > MAX_NAME || user.contains(&0) || std::str::from_utf8(user).is_err()
        {
            return Ok(None);
        }
        let (answer, answered) = oneshot::channel();
        self.requests
            .try_send(Request::LookUp {
                user: user.to_vec(),
                answer,
            })
            .map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => LookupError::Busy,
                mpsc::error::TrySendError::Closed(_) => LookupError::Stopped,
            })?;
        match timeout_at(deadline, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(LookupError::Stopped),
            Err(_) => Err(LookupError::Timeout),
        }
    }

    pub(super) fn forget(&self, user: &[u8]) {
        // When full, the answer is merely remembered for its time.
        let _ = self.requests.try_send(Request::Forget { user: user.to_vec() });
    }
}

/// The task that answers; to be spawned on the control runtime.
pub(super) struct Service {
    requests: mpsc::Receiver<Request>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    account: Arc<Account>,
    query: Arc<Query>,
    metrics: Arc<Metrics>,
    cache: VerifierCache,
    /// When, and whether the answer is to be forgotten as soon as it is old enough.
    looked_up: HashMap<Vec<u8>, (Instant, bool)>,
    waiting: HashMap<Vec<u8>, Vec<oneshot::Sender<Answer>>>,
    pools: BTreeMap<MemberName, (String, u16, Pool)>,
    /// When a failure was last told, and how many were not since.
    warned: Option<Instant>,
    left_out: u64,
}

pub(super) fn service(
    account: Arc<Account>,
    query: Query,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    metrics: Arc<Metrics>,
) -> (Lookups, Service) {
    let (sender, requests) = mpsc::channel(MAX_WAITING);
    let service = Service {
        requests,
        snapshots,
        account,
        cache: VerifierCache::new(query.cache_ttl, DEFAULT_CAPACITY),
        query: Arc::new(query),
        metrics,
        looked_up: HashMap::new(),
        waiting: HashMap::new(),
        pools: BTreeMap::new(),
        warned: None,
        left_out: 0,
    };
    (Lookups { requests: sender }, service)
}

impl Service {
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut running: JoinSet<(Vec<u8>, Answer)> = JoinSet::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                Some(done) = running.join_next() => {
                    if let Ok((user, answer)) = done {
                        self.finish(&user, &answer);
                    }
                    if running.is_empty() {
                        // A task that panicked leaves nobody waiting.
                        self.waiting.clear();
                    }
                }
                request = self.requests.recv() => match request {
                    Some(Request::LookUp { user, answer }) => self.begin(user, answer, &mut running),
                    Some(Request::Forget { user }) => self.forget(&user),
                    None => return,
                },
            }
        }
    }

    fn begin(
        &mut self,
        user: Vec<u8>,
        answer: oneshot::Sender<Answer>,
        running: &mut JoinSet<(Vec<u8>, Answer)>,
    ) {
        self.forget_what_is_due(&user);
        let cluster = &self.account.config.name;
        if let Cached::Hit(found) = self.cache.get(&user, Instant::now()) {
            self.metrics.looked_up(cluster, LookUpResult::Cached);
            let _ = answer.send(Ok(found));
            return;
        }
        if let Some(others) = self.waiting.get_mut(&user) {
            others.retain(|other| !other.is_closed());
            others.push(answer);
            return;
        }
        if running.len() >= MAX_IN_FLIGHT {
            let _ = answer.send(Err(LookupError::Busy));
            return;
        }
        self.waiting.insert(user.clone(), vec![answer]);
        let pools = self.pools_in_order();
        let query = Arc::clone(&self.query);
        let timeout = self.account.config.service_account.timeout;
        running.spawn(async move {
            let answer = look_up(&user, &query, pools, Instant::now() + timeout).await;
            (user, answer)
        });
    }

    fn finish(&mut self, user: &[u8], answer: &Answer) {
        let cluster = &self.account.config.name;
        let now = Instant::now();
        match answer {
            Ok(found) => {
                let result = if found.is_some() {
                    LookUpResult::Found
                } else {
                    LookUpResult::NotFound
                };
                self.metrics.looked_up(cluster, result);
                self.cache.put(user, found.clone(), now);
                if self.looked_up.len() >= DEFAULT_CAPACITY {
                    self.looked_up
                        .retain(|_, (at, _)| now.saturating_duration_since(*at) < MIN_AGE);
                }
                self.looked_up.insert(user.to_vec(), (now, false));
            }
            Err(error) => {
                self.metrics.looked_up(cluster, LookUpResult::Failed);
                // During an outage every login fails so, and anybody can try to log in.
                if self
                    .warned
                    .is_none_or(|at| now.saturating_duration_since(at) >= WARN_EVERY)
                {
                    let left_out = std::mem::take(&mut self.left_out);
                    self.warned = Some(now);
                    tracing::warn!(%cluster, %error, left_out, "a verifier could not be looked up");
                } else {
                    self.left_out += 1;
                }
            }
        }
        for waiter in self.waiting.remove(user).into_iter().flatten() {
            let _ = waiter.send(answer.clone());
        }
    }

    fn forget(&mut self, user: &[u8]) {
        if let Some((_, forget)) = self.looked_up.get_mut(user) {
            *forget = true;
        } else {
            self.cache.invalidate(user);
        }
        self.forget_what_is_due(user);
    }

    /// A request to forget an answer that is too young is kept, not lost: its verifier would stay for its whole time.
    fn forget_what_is_due(&mut self, user: &[u8]) {
        let due = self
            .looked_up
            .get(user)
            .is_some_and(|(at, forget)| *forget && at.elapsed() >= MIN_AGE);
        if due {
            self.looked_up.remove(user);
            self.cache.invalidate(user);
        }
    }

    /// The pools of the members to ask, in order; pools of members that are gone or moved are closed.
    fn pools_in_order(&mut self) -> Vec<(MemberName, Pool)> {
        let snapshot = Arc::clone(&self.snapshots.borrow());
        self.pools.retain(|name, (host, port, _)| {
            snapshot
                .member(name)
                .is_some_and(|member| (&member.host, member.port) == (&*host, *port))
        });
        let mut members: Vec<&Member> = snapshot
            .members
            .iter()
            .filter(|member| can_be_asked(member))
            .collect();
        let leads = |member: &Member| matches!(&snapshot.leader, Leader::Verified { member: leader, .. } if *leader == member.name);
        members.sort_by_key(|member| !leads(member));
        members.truncate(MAX_MEMBERS);
        members
            .into_iter()
            .map(|member| {
                let (_, _, pool) = self.pools.entry(member.name.clone()).or_insert_with(|| {
                    (
                        member.host.clone(),
                        member.port,
                        pool(&self.account, &member.host, member.port),
                    )
                });
                (member.name.clone(), pool.clone())
            })
            .collect()
    }
}

fn can_be_asked(member: &Member) -> bool {
    member.health.up && member.has_address() && member.identity == Identity::Same
}

/// Asks one member after the other. Each but the last gets half of what is left of the time.
async fn look_up(user: &[u8], query: &Query, pools: Vec<(MemberName, Pool)>, deadline: Instant) -> Answer {
    let mut error = LookupError::Unavailable("none is up".to_owned());
    let last = pools.len().saturating_sub(1);
    for (index, (member, pool)) in pools.into_iter().enumerate() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(LookupError::Timeout);
        }
        let share = if index == last { left } else { left / 2 };
        match ask(user, query, &pool, Instant::now() + share).await {
            Ok(found) => {
                if let LookedUp::Unsupported(why) = &found {
                    tracing::warn!(user = %String::from_utf8_lossy(user).escape_debug(), "a user cannot log in: {why}");
                }
                return Ok(found.identity());
            }
            Err(refused @ LookupError::Query(_)) => return Err(refused),
            Err(other) => {
                tracing::debug!(%member, error = %other, "a look-up is asked of the next member");
                error = other;
            }
        }
    }
    Err(error)
}

async fn ask(user: &[u8], query: &Query, pool: &Pool, deadline: Instant) -> Result<LookedUp, LookupError> {
    let left = || Some(deadline.saturating_duration_since(Instant::now()));
    let timeouts = Timeouts {
        wait: left(),
        create: left(),
        recycle: left(),
    };
    let get = pool.timeout_get(&timeouts);
    let mut pooled = match timeout_at(deadline, get).await {
        Ok(Ok(pooled)) => pooled,
        Err(_) | Ok(Err(PoolError::Timeout(_))) => return Err(LookupError::Timeout),
        Ok(Err(other)) => return Err(LookupError::Unavailable(other.to_string())),
    };
    let reused = managed::Object::metrics(&pooled).recycle_count > 0;
    let mut answer = pooled.run(&bind(&query.sql, user), deadline).await;
    if reused && answer.as_ref().is_err_and(broken) {
        // The server ended this connection while it was checked: that says nothing about the member yet.
        let again = Timeouts {
            wait: left(),
            create: left(),
            recycle: left(),
        };
        if let Ok(Ok(fresh)) = timeout_at(deadline, pool.timeout_get(&again)).await {
            pooled = fresh;
            answer = pooled.run(&bind(&query.sql, user), deadline).await;
        }
    }
    let rows = match answer {
        Err(ConnectError::Server(error))
            if is_missing(&error.code) && query.sql.contains(DEFAULT_FUNCTION) =>
        {
            let superuser = pooled.is_superuser();
            let missing = LookupError::Query(super::patroni::printable(&error.message, 400));
            if !superuser {
                return Err(missing);
            }
            pooled.run(&bind(SUPERUSER_QUERY, user), deadline).await
        }
        other => other,
    };
    match rows {
        Ok(rows) => first(&rows, user),
        Err(ConnectError::Timeout { .. }) => Err(LookupError::Timeout),
        Err(error @ ConnectError::Server(_)) if error.leaves_usable() => Err(LookupError::Query(
            super::patroni::printable(&error.to_string(), 400),
        )),
        Err(error) => Err(LookupError::Unavailable(super::patroni::printable(
            &error.to_string(),
            400,
        ))),
    }
}

/// The connection is gone, not only the answer late.
fn broken(error: &ConnectError) -> bool {
    !error.leaves_usable() && !matches!(error, ConnectError::Timeout { .. })
}

/// One look-up of the service account itself, remembered nowhere: is the query right, and may the account ask it?
pub(super) async fn try_once(
    account: &Arc<Account>,
    host: &str,
    port: u16,
    query: &Query,
) -> Result<(), LookupError> {
    let settings = &account.config.service_account;
    let deadline = Instant::now() + settings.timeout;
    ask(
        settings.user.as_bytes(),
        query,
        &pool(account, host, port),
        deadline,
    )
    .await
    .map(drop)
}

/// Undefined function, undefined schema.
fn is_missing(code: &str) -> bool {
    matches!(code, "42883" | "3F000")
}

/// The first row's second column, if its first is the user asked for.
fn first(rows: &[Row], user: &[u8]) -> Result<LookedUp, LookupError> {
    let Some(row) = rows.first() else {
        return Ok(LookedUp::NoPassword);
    };
    let [name, password, ..] = row.as_slice() else {
        return Err(LookupError::Query(
            "it must return two columns, the user's name and its verifier".into(),
        ));
    };
    match name {
        // A function may answer one row of NULLs for an unknown user.
        None => Ok(LookedUp::NoPassword),
        Some(name) if name == user => Ok(LookedUp::parse(password.as_deref())),
        Some(_) => Err(LookupError::Query(
            "it returned another user than the one asked for".into(),
        )),
    }
}

/// Puts the user's name in place of each `$1` outside of quotes and comments. The name must be UTF-8 without NUL
/// ([`Lookups::verifier`] sees to that).
fn bind(sql: &str, user: &[u8]) -> String {
    let literal = literal(&String::from_utf8_lossy(user));
    let mut bound = String::with_capacity(sql.len() + literal.len());
    let mut rest = sql;
    while let Some(next) = rest.chars().next() {
        let length = if rest.starts_with("--") {
            rest.find('\n').unwrap_or(rest.len())
        } else if let Some(comment) = rest.strip_prefix("/*") {
            comment.find("*/").map_or(rest.len(), |end| end + 4)
        } else if next == '\'' || next == '"' {
            rest[1..].find(next).map_or(rest.len(), |end| end + 2)
        } else if next.is_alphanumeric() || next == '_' {
            // An identifier may hold a dollar sign; it is no parameter then.
            rest.find(|c: char| !c.is_alphanumeric() && c != '_' && c != '$')
                .unwrap_or(rest.len())
        } else if rest.starts_with("$1") && !rest[2..].starts_with(|c: char| c.is_ascii_digit()) {
            bound.push_str(&literal);
            rest = &rest[2..];
            continue;
        } else {
            next.len_utf8()
        };
        let (taken, after) = rest.split_at(length);
        bound.push_str(taken);
        rest = after;
    }
    bound
}

/// A string constant that means the same whatever `standard_conforming_strings` is (PostgreSQL documentation,
/// "String Constants with C-Style Escapes").
fn literal(text: &str) -> Cow<'static, str> {
    let mut quoted = String::with_capacity(text.len() + 8);
    quoted.push_str(" E'");
    for c in text.chars() {
        match c {
            '\'' => quoted.push_str("''"),
            '\\' => quoted.push_str("\\\\"),
            other => quoted.push(other),
        }
    }
    quoted.push('\'');
    quoted.into()
}

type Pool = managed::Pool<Connector>;

fn pool(account: &Arc<Account>, host: &str, port: u16) -> Pool {
    let service = &account.config.service_account;
    let connector = Connector {
        account: Arc::clone(account),
        host: host.to_owned(),
        port,
    };
    let timeout = Some(service.timeout);
    managed::Pool::builder(connector)
        .max_size(service.pool_size.max(1))
        .timeouts(Timeouts {
            wait: timeout,
            create: timeout,
            recycle: timeout,
        })
        .queue_mode(managed::QueueMode::Lifo)
        .runtime(Runtime::Tokio1)
        .build()
        .expect("a pool with timeouts has its runtime")
}

struct Connector {
    account: Arc<Account>,
    host: String,
    port: u16,
}

/// A pooled connection, and whether it is between statements.
struct Pooled {
    connection: ServerConnection,
    clean: bool,
}

impl Pooled {
    async fn run(&mut self, sql: &str, deadline: Instant) -> Result<Vec<Row>, ConnectError> {
        self.clean = false;
        let result = simple_query(&mut self.connection, sql, 1, deadline).await;
        self.clean = match &result {
            Ok(_) => true,
            Err(error) => error.leaves_usable(),
        };
        result
    }

    fn is_superuser(&self) -> bool {
        self.connection
            .parameters
            .iter()
            .any(|(name, value)| &name[..] == b"is_superuser" && &value[..] == b"on")
    }
}

impl managed::Manager for Connector {
    type Type = Pooled;
    type Error = ConnectError;

    async fn create(&self) -> Result<Pooled, ConnectError> {
        let deadline = Instant::now() + self.account.config.service_account.timeout;
        let connection = self
            .account
            .connect(&self.host, self.port, Purpose::LookUp, deadline)
            .await?;
        Ok(Pooled {
            connection,
            clean: true,
        })
    }

    async fn recycle(&self, pooled: &mut Pooled, _: &managed::Metrics) -> RecycleResult<ConnectError> {
        if !pooled.clean || !pooled.connection.leftover.is_empty() {
            return Err(RecycleError::message("left in the middle of an answer"));
        }
        // An idle server has nothing to say: a byte or an end means that the connection is of no more use. The socket
        // itself is asked, as tokio's readiness may lag behind it.
        let socket = socket2::SockRef::from(pooled.connection.stream.tcp());
        match socket.peek(&mut [MaybeUninit::uninit(); 1]) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(()),
            _ => Err(RecycleError::message("closed by the server")),
        }
    }
}

#[cfg(test)]
#[path = "lookup_tests.rs"]
mod tests;
