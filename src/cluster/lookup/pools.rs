//! Connections of the service account for look-ups: a bounded pool per member.

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
use crate::cluster::account::{Account, Purpose};
use crate::cluster::snapshot::{Identity, Leader, Member, MemberName, Snapshot};

/// A connection is used no longer: a host name may lead elsewhere by now.
const MAX_AGE: Duration = Duration::from_mins(1);
/// Members asked before a look-up gives up.
const MAX_MEMBERS: usize = 4;

pub(super) type Pool = managed::Pool<Connector>;

/// One pool for each member that was asked; every kind of look-up uses the same.
pub(in crate::cluster) struct Pools {
    account: Arc<Account>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    open: Mutex<BTreeMap<MemberName, (String, u16, Pool)>>,
}

impl Pools {
    pub(in crate::cluster) fn new(account: Arc<Account>, snapshots: watch::Receiver<Arc<Snapshot>>) -> Self {
        Self {
            account,
            snapshots,
            open: Mutex::default(),
        }
    }

    /// Closes what is idle, and waits until the servers know: 200 ms at most for each connection.
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

    pub(super) fn account(&self) -> &Account {
        &self.account
    }

    /// The pools of the members to ask, in order: the leader first. Pools of members that are gone or moved are
    /// closed.
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

pub(super) fn pool(account: &Arc<Account>, host: &str, port: u16) -> Pool {
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

pub(super) struct Connector {
    account: Arc<Account>,
    host: String,
    port: u16,
}

/// A pooled connection, and whether it is between statements. The server is told when it goes, or it would write a line.
pub(super) struct Pooled {
    /// There until it goes.
    connection: Option<ServerConnection>,
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

    /// That of the database, as the server names it.
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
        let connection = self
            .account
            .connect(&self.host, self.port, Purpose::LookUp, deadline)
            .await?;
        Ok(Pooled {
            connection: Some(connection),
            clean: true,
        })
    }

    async fn recycle(&self, pooled: &mut Pooled, metrics: &managed::Metrics) -> RecycleResult<ConnectError> {
        let Some(connection) = pooled
            .connection
            .as_ref()
            .filter(|connection| pooled.clean && connection.leftover.is_empty())
        else {
            return Err(RecycleError::message("left in the middle of an answer"));
        };
        if metrics.age() >= MAX_AGE {
            return Err(RecycleError::message("old"));
        }
        // An idle server has nothing to say: a byte or an end means that the connection is of no more use. The socket
        // itself is asked, as tokio's readiness may lag behind it.
        let socket = socket2::SockRef::from(connection.stream.tcp());
        match socket.peek(&mut [MaybeUninit::uninit(); 1]) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(()),
            _ => Err(RecycleError::message("closed by the server")),
        }
    }
}
