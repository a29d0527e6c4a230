//! Connections of the service account for look-ups: a limited pool for each member.

use std::collections::BTreeMap;
use std::mem::MaybeUninit;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use deadpool::Runtime;
use deadpool::managed::{self, RecycleError, RecycleResult, Timeouts};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::backend::query::{Row, simple_query};
use crate::backend::{ConnectError, ServerConnection, Step};
use crate::cluster::probe;
use crate::cluster::service_account::{Purpose, ServiceAccount};
use crate::cluster::snapshot::{Identity, Leader, Member, MemberName, ProbeFacts, Snapshot};

/// Maximum age of a connection: after that, a host name may lead to another server.
const MAX_AGE: Duration = Duration::from_mins(1);
/// Limit of members that one look-up tries.
const MAX_MEMBERS: usize = 4;

pub(super) type Pool = managed::Pool<Connector>;

/// One pool for each member that was asked. All kinds of look-ups share it.
pub(in crate::cluster) struct Pools {
    account: Arc<ServiceAccount>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    open: Mutex<BTreeMap<MemberName, (String, u16, Pool)>>,
}

impl Pools {
    pub(in crate::cluster) fn new(
        account: Arc<ServiceAccount>,
        snapshots: watch::Receiver<Arc<Snapshot>>,
    ) -> Self {
        Self {
            account,
            snapshots,
            open: Mutex::default(),
        }
    }

    /// Closes idle connections with a Terminate message. Each takes at most 200 ms.
    pub(super) async fn close(&self) {
        let open = std::mem::take(&mut *self.open.lock().unwrap_or_else(PoisonError::into_inner));
        for (_, _, pool) in open.into_values() {
            for mut pooled in pool.retain(|_, _| false).removed {
                if let Some(connection) = pooled.connection.take() {
                    connection.close().await;
                }
            }
        }
    }

    pub(super) fn account(&self) -> &ServiceAccount {
        &self.account
    }

    /// The pools of the members to ask, the leader first. Closes the pools of members that are gone
    /// or have moved.
    pub(super) fn in_order(&self) -> Vec<(MemberName, Pool)> {
        let snapshot = Arc::clone(&self.snapshots.borrow());
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|name, (host, port, _)| {
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
                let (_, _, pool) = open.entry(member.name.clone()).or_insert_with(|| {
                    (
                        member.host.clone(),
                        member.port,
                        pool(
                            &self.account,
                            &member.host,
                            member.port,
                            Some(self.snapshots.clone()),
                        ),
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

/// `snapshots` give the cluster that the server must belong to. Without them any server is
/// accepted.
pub(super) fn pool(
    account: &Arc<ServiceAccount>,
    host: &str,
    port: u16,
    snapshots: Option<watch::Receiver<Arc<Snapshot>>>,
) -> Pool {
    let service = &account.config.service_account;
    let connector = Connector {
        account: Arc::clone(account),
        host: host.to_owned(),
        port,
        snapshots,
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

pub(super) struct Connector {
    account: Arc<ServiceAccount>,
    host: String,
    port: u16,
    snapshots: Option<watch::Receiver<Arc<Snapshot>>>,
}

impl Connector {
    /// Whether a server with these facts may be asked about users: it must belong to the cluster,
    /// and must not be an old primary.
    fn may_be_asked(&self, seen: Option<&ProbeFacts>) -> bool {
        let Some(snapshots) = &self.snapshots else {
            return true;
        };
        let snapshot = snapshots.borrow();
        seen.is_some_and(|seen| {
            let is_ours = snapshot.system_identifier == Some(seen.system_identifier);
            let is_old =
                matches!(&snapshot.leader, Leader::Verified { timeline, .. } if *timeline > seen.timeline);
            is_ours && (seen.in_recovery || !is_old)
        })
    }
}

/// A pooled connection, and whether it is between statements. When it is dropped, it sends
/// Terminate, because the server would otherwise log a lost connection.
pub(super) struct Pooled {
    /// `None` once it is closed.
    connection: Option<ServerConnection>,
    /// The server's facts when the connection was made.
    seen: Option<ProbeFacts>,
    clean: bool,
}

impl Drop for Pooled {
    fn drop(&mut self) {
        if let (Some(connection), Ok(runtime)) = (self.connection.take(), Handle::try_current()) {
            runtime.spawn(connection.close());
        }
    }
}

impl Pooled {
    /// Runs one statement; more than `max_rows` is an error.
    pub(super) async fn run(
        &mut self,
        sql: &str,
        max_rows: usize,
        deadline: Instant,
    ) -> Result<Vec<Row>, ConnectError> {
        self.clean = false;
        let Some(connection) = &mut self.connection else {
            return Err(ConnectError::Closed { step: Step::Query });
        };
        let result = simple_query(connection, sql, max_rows, deadline).await;
        self.clean = match &result {
            Ok(_) => true,
            Err(error) => error.leaves_usable(),
        };
        result
    }

    pub(super) fn is_superuser(&self) -> bool {
        self.parameter("is_superuser") == Some(b"on")
    }

    /// The encoding of the database, as the server names it.
    pub(super) fn encoding(&self) -> Option<&[u8]> {
        self.parameter("server_encoding")
    }

    fn parameter(&self, name: &str) -> Option<&[u8]> {
        let parameters = &self.connection.as_ref()?.parameters;
        let found = parameters.iter().rfind(|(other, _)| other == name.as_bytes());
        found.map(|(_, value)| &value[..])
    }
}

impl managed::Manager for Connector {
    type Type = Pooled;
    type Error = ConnectError;

    async fn create(&self) -> Result<Pooled, ConnectError> {
        let deadline = Instant::now() + self.account.config.service_account.timeout;
        let mut connection = self
            .account
            .connect(&self.host, self.port, Purpose::LookUp, deadline)
            .await?;
        // The address may lead to another server since the last probe, and another server must not
        // decide about logins.
        let seen = match self.snapshots {
            Some(_) => Some(probe::ask(&mut connection, deadline).await?),
            None => None,
        };
        if !self.may_be_asked(seen.as_ref()) {
            connection.close().await;
            let what = "the server belongs to another cluster or is an old primary";
            return Err(ConnectError::protocol(Step::Query, what));
        }
        Ok(Pooled {
            connection: Some(connection),
            seen,
            clean: true,
        })
    }

    async fn recycle(&self, pooled: &mut Pooled, metrics: &managed::Metrics) -> RecycleResult<ConnectError> {
        let Some(connection) = pooled
            .connection
            .as_ref()
            .filter(|connection| pooled.clean && connection.leftover.is_empty())
        else {
            return Err(RecycleError::message("the last answer was not read completely"));
        };
        if !self.may_be_asked(pooled.seen.as_ref()) {
            return Err(RecycleError::message(
                "the server belongs to another cluster or is an old primary",
            ));
        }
        if metrics.age() >= MAX_AGE {
            return Err(RecycleError::message("the connection is too old"));
        }
        // An idle server sends nothing: a byte or an end of stream means that the connection cannot
        // be used. The socket itself is checked, since tokio's readiness may be late.
        let socket = socket2::SockRef::from(connection.stream.tcp());
        match socket.peek(&mut [MaybeUninit::uninit(); 1]) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(()),
            _ => Err(RecycleError::message("closed by the server")),
        }
    }
}
