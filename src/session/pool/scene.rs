//! A pool, its servers in memory, and the sessions that want them: for tests and measurements. Not
//! part of the program.

#![cfg_attr(not(test), allow(dead_code, reason = "measurements use a part of it"))]

use std::cell::RefCell;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use bytes::Bytes;
use prometheus_client::registry::Registry;
use tokio::sync::mpsc;

use super::acquire::{Acquire, Grant, NoLease, Waited, Want};
use super::connection::{ConnectionState, PooledConnection, WorkerId};
use super::key::{ConnectionKey, Recipe};
use super::metrics::PoolMetrics;
use super::open::Opener;
use super::permit::OpenPermit;
use super::pool::Pool;
use super::pools::{Pools, Spare};
use super::session::{Home, Memory, PooledSession};
use super::state::{Reported, StateOptions};
use super::statements::Limits;
use super::timers::Timers;
use crate::auth::credentials::{ServerLogin, ServerProof};
use crate::backend::OrderlyStream;
use crate::cluster::scripted::Script;
use crate::cluster::snapshot::{Member, MemberName, Snapshot};
use crate::config::{self, PoolMode, Route};
use crate::routing::{GrantedRole, Preference};
use crate::session::client::Client;
use crate::session::gate;
use crate::session::link::Link;
use crate::session::memory::{self, MemoryStream};
use crate::session::occupancy::Occupancy;
use crate::session::registry::Placement;
use crate::session::topology::{member, snapshot};
use crate::session::turns::Turns;
use crate::wire::startup::ProtocolVersion;

pub(super) type Connection = Box<PooledConnection<MemoryStream>>;
pub(super) type MemorySession = PooledSession<MemoryStream, MemoryStream>;

pub(super) const NEAR: WorkerId = WorkerId(0);
pub(super) const FAR: WorkerId = WorkerId(1);

/// See the module.
pub(super) struct Scene {
    pub(super) script: Script,
    pub(super) occupancy: Arc<Occupancy>,
    pub(super) pools: Arc<Pools<MemoryStream>>,
    pub(super) pool: Arc<Pool<MemoryStream>>,
    pub(super) route: Arc<Route>,
    pub(super) spares: mpsc::Receiver<Spare<MemoryStream>>,
    pub(super) metrics: Registry,
    /// The other ends of connections that nobody ends.
    servers: RefCell<Vec<MemoryStream>>,
}

/// A leader and standbys.
pub(super) fn cluster(members: Vec<Member>) -> Arc<Snapshot> {
    snapshot(Some("db1"), members)
}

pub(super) fn members(count: usize) -> Vec<Member> {
    (1..=count)
        .map(|number| member(&format!("db{number}"), number > 1))
        .collect()
}

/// A route of this name, with these keys.
pub(super) fn route(name: &str, keys: &str, most: u32) -> (String, Arc<Route>) {
    let text = format!(
        "clusters: {{main: {{servers: [{{name: db1, host: 127.0.0.1, port: 1}}], server_tls: {{sslmode: disable}}, \
         service_account: {{user: u}}, server: {{max_connections: {most}}}}}}}\n\
         routes: {{{name}: {{{keys}}}}}\n\
         listeners: [{{name: rw, address: \"127.0.0.1:1\", route: {name}}}]\n",
    );
    let parsed = config::parse(std::path::Path::new("trunkline.yaml"), &text);
    let config = parsed.unwrap_or_else(|error| panic!("{error}\n{text}"));
    let route = Arc::clone(&config.routes[name]);
    (text, route)
}

#[expect(clippy::unnecessary_wraps, reason = "it is a hook")]
fn rehome(_stream: &mut OrderlyStream<MemoryStream>) -> io::Result<bool> {
    Ok(true)
}

impl Scene {
    /// The route `rw`, with these keys of its pool.
    pub(super) fn new(pool: &str) -> Self {
        Self::of(
            &format!("targets: [leader], pool: {{mode: transaction, {pool}}}"),
            1,
            100,
        )
    }

    /// The route `rw` with these keys, so many members, and so many places on each.
    pub(super) fn of(keys: &str, count: usize, most: u32) -> Self {
        let (text, route) = route("rw", keys, most);
        let script = Script::new(&text, cluster(members(count)));
        let occupancy: Arc<Occupancy> = Arc::default();
        let mut metrics = Registry::default();
        let queue = gate::Metrics::register(&mut metrics);
        let of_pools = PoolMetrics::register(&mut metrics, &queue);
        let (sender, spares) = mpsc::channel(16);
        let pools = Pools::new(Arc::clone(&occupancy), of_pools, rehome, sender);
        pools.register_connections(&mut metrics);
        let app = Bytes::from_static(b"app");
        let pool = pools.pool(&route, &script.cluster, &app, &app);
        Self {
            pool: pool.expect("the route has one"),
            script,
            occupancy,
            pools,
            route,
            spares,
            metrics,
            servers: RefCell::default(),
        }
    }

    /// The pool of another database.
    pub(super) fn other_pool(&self) -> Arc<Pool<MemoryStream>> {
        let (app, other) = (Bytes::from_static(b"app"), Bytes::from_static(b"other"));
        let pool = self.pools.pool(&self.route, &self.script.cluster, &app, &other);
        pool.expect("the route has one")
    }

    pub(super) fn key(&self, timezone: &'static str) -> Arc<ConnectionKey> {
        self.pool.intern(key(timezone))
    }

    pub(super) fn want(&self, timezone: &'static str, worker: WorkerId) -> Want {
        Want {
            key: self.key(timezone),
            client: None,
            worker,
            tried: Vec::new(),
            custom_names: None,
        }
    }

    pub(super) fn lease(&self, timezone: &'static str, worker: WorkerId) -> Option<Connection> {
        self.pool.try_lease(&self.want(timezone, worker), None)
    }

    /// A session that asks, and what it gets at once.
    pub(super) fn session(&self, timezone: &'static str, worker: WorkerId) -> Session {
        Session::new(self.pool.acquire(self.want(timezone, worker)))
    }

    /// A session that has to wait.
    pub(super) fn waits(&self, timezone: &'static str, worker: WorkerId) -> Session {
        let mut session = self.session(timezone, worker);
        assert!(session.poll().is_none(), "there is nothing for it");
        session
    }

    /// A connection for a session of this key; it has to be opened.
    pub(super) fn opens(&self, timezone: &'static str, worker: WorkerId) -> Connection {
        self.open(self.session(timezone, worker).permit(), worker)
    }

    /// The server does not end it.
    pub(super) fn open(&self, permit: OpenPermit<MemoryStream>, worker: WorkerId) -> Connection {
        let (connection, server) = opened(permit, worker);
        self.servers.borrow_mut().push(server);
        connection
    }

    /// Idle, leased and opening connections to a member.
    pub(super) fn counts(&self, member: &str) -> [usize; 3] {
        let view = self.pool.view();
        let found = view.members.iter().find(|one| one.member.as_str() == member);
        found.map_or([0; 3], |one| [one.idle, one.leased, one.opening])
    }

    pub(super) fn seats(&self, member: &str) -> usize {
        self.occupancy
            .sessions_on(&"main".into(), &MemberName::new(member))
    }

    pub(super) fn recipe(&self, timezone: &'static str) -> Arc<Recipe> {
        self.pool.recipe(Recipe {
            key: Arc::new(key(timezone)),
            version: ProtocolVersion::V3_0,
            login: login(),
            route: Arc::new(Route::read_write("read-write", "main")),
        })
    }

    /// A session in the mode of its route, and its client's end. It has these settings from its
    /// startup packet, which its connections have not.
    pub(super) fn pooled_session(
        &self,
        opener: Arc<dyn Opener<MemoryStream>>,
        own: &[(&str, &'static [u8])],
    ) -> (MemoryStream, MemorySession) {
        let config = self.route.pool.clone().expect("the route has one");
        let home = Home {
            mode: if self.route.keeps_connections() {
                PoolMode::Transaction
            } else {
                config.mode
            },
            keeps: self.route.keeps_connections(),
            pool: Arc::clone(&self.pool),
            recipe: self.recipe("UTC"),
            want: self.want("UTC", NEAR),
            route: Arc::clone(&self.route),
            gate: self.occupancy.gate(&self.route),
            cluster: self.script.cluster.clone(),
            opener,
            options: StateOptions {
                names: [].into(),
                verify_always: false,
            },
            reset_timeout: Duration::from_secs(5),
            is_strict: false,
        };
        let own = own
            .iter()
            .map(|(name, value)| (Box::from(*name), Bytes::from_static(value)))
            .collect();
        let limits = Limits::of(&config);
        let memory = Memory::new(own, Reported::default(), self.pool.interner(), limits);
        let (client, to_client) = memory::connection();
        let ticket = memory::ticket(&Arc::default());
        let timers = Timers::new(config.limits_for("app", "app"));
        let session = PooledSession::new(
            Client::new(to_client, ticket),
            self.pool.home(home),
            memory,
            Turns::new(Arc::default()),
            timers,
        );
        (client, session)
    }

    pub(super) fn exposition(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.metrics).expect("it is a string");
        text
    }
}

fn login() -> ServerLogin {
    ServerLogin {
        user: None,
        with: ServerProof::Nothing,
        is_operators: false,
    }
}

pub(super) fn key(timezone: &'static str) -> ConnectionKey {
    ConnectionKey {
        parameters: vec![(
            Bytes::from_static(b"timezone"),
            Bytes::from_static(timezone.as_bytes()),
        )],
        credential: login().fingerprint(&[0; 32]),
    }
}

/// The connection, and the server's end of it.
pub(super) fn opened(mut permit: OpenPermit<MemoryStream>, worker: WorkerId) -> (Connection, MemoryStream) {
    let (near, far) = memory::connection();
    let granted = match permit.candidate.reason {
        Preference::Leader => GrantedRole::ReadWrite,
        _ => GrantedRole::ReadOnly,
    };
    let placement = Placement {
        member: permit.candidate.member.clone(),
        granted,
        whereabouts: None,
        process_id: 1,
        cancel: None,
    };
    let cluster = permit.pool().cluster().clone();
    let stream = OrderlyStream::new(near).logged_in();
    let link = Link::new(stream, Arc::new(placement), cluster);
    let reported = [(Bytes::from_static(b"server_version"), Bytes::from_static(b"17.2"))];
    let seat = permit.take_seat().expect("it was not taken");
    let state = ConnectionState::new(Reported::default(), Limits::NONE);
    (permit.opened(link, seat, worker, Arc::new(reported), state), far)
}

/// Counts its wake-ups.
#[derive(Debug, Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A session that waits, polled by hand.
pub(super) struct Session {
    acquire: Acquire<MemoryStream>,
    woken: Arc<Count>,
}

impl Session {
    pub(super) fn new(acquire: Acquire<MemoryStream>) -> Self {
        Self {
            acquire,
            woken: Arc::default(),
        }
    }

    pub(super) fn woken(&self) -> usize {
        self.woken.0.load(Ordering::Relaxed)
    }

    /// What has happened; `None`: it waits.
    pub(super) fn poll(&mut self) -> Option<Waited<MemoryStream>> {
        let waker = Waker::from(Arc::clone(&self.woken));
        match self.acquire.poll_waited(&mut Context::from_waker(&waker)) {
            Poll::Ready(waited) => Some(waited),
            Poll::Pending => None,
        }
    }

    pub(super) fn is_waiting(&mut self) -> bool {
        self.poll().is_none()
    }

    fn done(&mut self) -> Result<Grant<MemoryStream>, NoLease> {
        match self.poll() {
            Some(Waited::Done(result)) => result,
            other => panic!("it has no result: {other:?}"),
        }
    }

    /// It got a connection that existed.
    pub(super) fn connection(&mut self) -> Connection {
        match self.done() {
            Ok(Grant::Connection(connection)) => connection,
            other => panic!("it got {other:?}"),
        }
    }

    /// It may open a connection.
    pub(super) fn permit(&mut self) -> OpenPermit<MemoryStream> {
        match self.done() {
            Ok(Grant::Open(permit)) => permit,
            other => panic!("it got {other:?}"),
        }
    }

    /// It gets nothing.
    pub(super) fn refusal(&mut self) -> NoLease {
        match self.done() {
            Err(error) => error,
            Ok(grant) => panic!("it got {grant:?}"),
        }
    }
}
