//! Attach and the gate before it: scripted servers, of which each connection is cut, silent or
//! false in another way.

use std::collections::VecDeque;
use std::future::{pending, poll_fn};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::poll;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::{Leaving, frame, short};
use crate::auth::credentials::{ServerLogin, ServerProof};
use crate::backend::connection::{OpenedStream, log_in};
use crate::backend::query::simple_query;
use crate::backend::{ConnectError, OrderlyStream, ServerConnection, Target};
use crate::cluster::Evidence;
use crate::cluster::scripted::Script;
use crate::cluster::server_identity::ServerIdentity;
use crate::cluster::snapshot::{Member, MemberName, Snapshot};
use crate::config::{self, Route};
use crate::routing::GrantedRole;
use crate::session::arrival::quota::{Quota, Rate, Share};
use crate::session::attach::{AttachRequest, Attachable, Login, NoServer, attach_by};
use crate::session::candidates::{MOST_TRIES, Wanted};
use crate::session::gate::{self, Gate};
use crate::session::memory::{self, MemoryStream};
use crate::session::occupancy::Occupancy;
use crate::session::state::SessionState;
use crate::session::topology::{SYSTEM, TIMELINE, member, snapshot};
use crate::wire::startup::{ProtocolVersion, Replication};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const QUEUE_TIMEOUT: Duration = Duration::from_secs(10);
const PROBED_EVERY: Duration = Duration::from_millis(100);
/// A member's port is this and the number in its name.
const PORT: u16 = 5430;

/// From `AuthenticationOk` to `ReadyForQuery`.
fn login(in_hot_standby: Option<&str>) -> Vec<u8> {
    let mut bytes = [frame(b'R', &[0; 4]), frame(b'S', b"server_version\x0017.2\0")].concat();
    if let Some(value) = in_hot_standby {
        bytes.extend(frame(b'S', format!("in_hot_standby\0{value}\0").as_bytes()));
    }
    bytes.extend(frame(b'K', b"\0\0\0\x07\x01\x02\x03\x04"));
    bytes.extend(frame(b'Z', b"I"));
    bytes
}

fn error(code: &str) -> Vec<u8> {
    frame(b'E', format!("SFATAL\0VFATAL\0C{code}\0Mno\0\0").as_bytes())
}

/// The answer to a query, of one row.
fn row(values: &[Option<&str>]) -> Vec<u8> {
    let count = u16::try_from(values.len()).expect("few").to_be_bytes();
    let mut data = count.to_vec();
    for value in values {
        let length = value.map_or(-1, |value| i32::try_from(value.len()).expect("short"));
        data.extend(length.to_be_bytes());
        data.extend(value.unwrap_or_default().as_bytes());
    }
    [
        frame(b'T', &[0, 0]),
        frame(b'D', &data),
        frame(b'C', b"SELECT 1\0"),
        frame(b'Z', b"I"),
    ]
    .concat()
}

/// What a server does with one connection.
#[derive(Debug, Clone)]
enum Play {
    /// Nothing listens at its port.
    Refuses,
    /// Reads the startup packet, says this, and goes on.
    Says(Vec<u8>, Then),
}

#[derive(Debug, Clone)]
enum Then {
    Leaves(Leaving),
    /// Says no more. It does not notice that its client is gone before it has worked for so long.
    WorksFor(Duration),
    /// Waits until it is notified, and says this before it serves.
    Waits(Arc<Notify>, Vec<u8>),
    Serves(Kind),
}

/// What a server says of itself when it is asked.
#[derive(Debug, Clone, Copy)]
struct Kind {
    in_recovery: bool,
    system: u64,
    timeline: u32,
    /// It leaves after so many bytes of its first answer.
    cut: Option<(usize, Leaving)>,
}

const PRIMARY: Kind = Kind {
    in_recovery: false,
    system: SYSTEM,
    timeline: TIMELINE,
    cut: None,
};
const STANDBY: Kind = Kind {
    in_recovery: true,
    ..PRIMARY
};

impl Kind {
    fn answer(&self, name: &str, sql: &str) -> Vec<u8> {
        let recovery = Some(if self.in_recovery { "t" } else { "f" });
        if sql.contains("pg_control_system") {
            let (system, timeline) = (self.system.to_string(), self.timeline.to_string());
            let file = format!("{:08X}0000000000000001", self.timeline);
            let file = (!self.in_recovery).then_some(&file[..]);
            row(&[recovery, Some(&system), Some(&timeline), file])
        } else if sql.contains("pg_is_in_recovery") {
            row(&[recovery])
        } else {
            row(&[Some(name)])
        }
    }

    async fn serve(self, name: &str, mut stream: MemoryStream) {
        loop {
            let mut head = [0; 5];
            if stream.read_exact(&mut head).await.is_err() || head[0] == b'X' {
                return;
            }
            let [_, length @ ..] = head;
            let mut body = vec![0; u32::from_be_bytes(length) as usize - 4];
            if stream.read_exact(&mut body).await.is_err() {
                return;
            }
            let answer = self.answer(name, &String::from_utf8_lossy(&body));
            match self.cut {
                Some((sent, how)) => {
                    let _ = stream.write_all(&answer[..sent]).await;
                    return leave(stream, how);
                }
                None => drop(stream.write_all(&answer).await),
            }
        }
    }
}

fn leave(stream: MemoryStream, how: Leaving) {
    match how {
        Leaving::Closes => drop(stream),
        Leaving::Resets => stream.reset(),
    }
}

/// One connection, at the server's end.
async fn act(name: String, mut stream: MemoryStream, says: Vec<u8>, then: Then) {
    let mut length = [0; 4];
    if stream.read_exact(&mut length).await.is_err() {
        return;
    }
    let mut packet = vec![0; u32::from_be_bytes(length) as usize - 4];
    if stream.read_exact(&mut packet).await.is_err() || stream.write_all(&says).await.is_err() {
        return;
    }
    match then {
        Then::Leaves(how) => leave(stream, how),
        Then::WorksFor(time) => {
            let _ = stream.read_to_end(&mut Vec::new()).await;
            sleep(time).await;
        }
        Then::Waits(until, rest) => {
            until.notified().await;
            let _ = stream.write_all(&rest).await;
            PRIMARY.serve(&name, stream).await;
        }
        Then::Serves(kind) => kind.serve(&name, stream).await,
    }
}

/// All servers of the cluster.
#[derive(Debug, Default)]
struct Servers {
    /// What the next connections get, whichever member they go to. All others are served.
    plays: Mutex<VecDeque<Play>>,
    dialled: Mutex<Vec<String>>,
}

impl Login for Servers {
    type Stream = MemoryStream;
    type Socket = MemoryStream;

    async fn connect(
        &self,
        target: Target<'_>,
        deadline: Instant,
        left: &mut Option<OrderlyStream<MemoryStream>>,
    ) -> Result<ServerConnection<MemoryStream>, ConnectError> {
        let name = format!("db{}", target.port - PORT);
        let is_standby = name != "db1";
        self.dialled
            .lock()
            .expect("no test panics in it")
            .push(name.clone());
        let play = self.plays.lock().expect("no test panics in it").pop_front();
        let play = play.unwrap_or_else(|| if is_standby { standby() } else { primary() });
        let address = SocketAddr::from(([127, 0, 0, 1], target.port));
        let Play::Says(says, then) = play else {
            return Err(ConnectError::Refused { address });
        };
        let (stream, server) = memory::connection();
        tokio::spawn(act(name, server, says, then));
        let opened = OpenedStream {
            stream,
            address,
            local_address: ([127, 0, 0, 1], 1).into(),
            is_tls: false,
            end_point: None,
        };
        let logged_in = log_in(opened, &target, deadline, left).await;
        logged_in.map_err(|failure| failure.error)
    }

    fn socket(left: MemoryStream) -> MemoryStream {
        left
    }
}

fn primary() -> Play {
    Play::Says(login(Some("off")), Then::Serves(PRIMARY))
}

fn standby() -> Play {
    Play::Says(login(Some("on")), Then::Serves(STANDBY))
}

fn silent(says: &[u8]) -> Play {
    Play::Says(says.to_vec(), Then::WorksFor(Duration::ZERO))
}

/// A cluster whose leader is `db1`, the route to it, and those who want a server.
struct Scene {
    script: Script,
    occupancy: Arc<Occupancy>,
    route: Route,
    gate: Arc<Gate>,
    metrics: gate::Metrics,
    state: SessionState,
    login: ServerLogin,
    share: Arc<Share>,
    closing: CancellationToken,
    servers: Servers,
    prober: Option<JoinHandle<()>>,
}

impl Drop for Scene {
    fn drop(&mut self) {
        if let Some(prober) = self.prober.take() {
            prober.abort();
        }
    }
}

fn members(count: u16) -> Vec<Member> {
    let named = (1..=count).map(|number| {
        let name = format!("db{number}");
        Member {
            port: PORT + number,
            ..member(&name, number > 1)
        }
    });
    named.collect()
}

fn cluster(count: u16) -> Arc<Snapshot> {
    snapshot(Some("db1"), members(count))
}

impl Scene {
    /// The members' addresses are checked all the time.
    fn new(route: Route, count: u16, most: u32) -> Self {
        let mut scene = Self::unprobed(route, count, most);
        let cluster = scene.script.cluster.clone();
        let checks = (1..=count).map(|number| {
            let name = MemberName::new(format!("db{number}"));
            (cluster.address_check(&name).expect("it is probed"), number > 1)
        });
        let checks: Vec<_> = checks.collect();
        for (check, in_recovery) in &checks {
            Script::checked(check, Some(identity(*in_recovery)));
        }
        scene.prober = Some(tokio::spawn(async move {
            loop {
                sleep(PROBED_EVERY).await;
                for (check, in_recovery) in &checks {
                    Script::checked(check, Some(identity(*in_recovery)));
                }
            }
        }));
        scene
    }

    fn unprobed(mut route: Route, count: u16, most: u32) -> Self {
        route.queue.most = 3;
        route.queue.timeout = QUEUE_TIMEOUT;
        let servers: Vec<String> = (1..=count)
            .map(|number| format!("{{name: db{number}, host: 127.0.0.1, port: {}}}", PORT + number))
            .collect();
        let text = format!(
            "clusters: {{main: {{servers: [{}], server_tls: {{sslmode: disable}}, service_account: {{user: u}}, \
             server: {{connect_timeout: {}s, max_connections: {most}}}}}}}\n\
             listeners: [{{name: rw, address: \"127.0.0.1:1\", route: read-write}}]\n",
            servers.join(", "),
            CONNECT_TIMEOUT.as_secs(),
        );
        let config = config::parse(std::path::Path::new("trunkline.yaml"), &text).expect("it is well formed");
        let quota = Arc::new(Quota::new(&config.limits));
        let share = quota.share(&Rate::new(None), None, None, Instant::now());
        let occupancy: Arc<Occupancy> = Arc::default();
        let parameter =
            |name: &'static str| (Bytes::from_static(name.as_bytes()), Bytes::from_static(b"app"));
        Self {
            script: Script::new(&text, cluster(count)),
            gate: occupancy.gate(&Arc::new(route.clone())),
            occupancy,
            route,
            metrics: gate::Metrics::register(&mut prometheus_client::registry::Registry::default()),
            state: SessionState {
                version: ProtocolVersion::V3_0,
                parameters: vec![parameter("user"), parameter("database")],
            },
            login: ServerLogin {
                user: None,
                with: ServerProof::Nothing,
                is_operators: false,
            },
            share: Arc::new(share.expect("there is no limit")),
            closing: CancellationToken::new(),
            servers: Servers::default(),
            prober: None,
        }
    }

    fn read_write() -> Self {
        Self::new(Route::read_write("read-write", "main"), 1, 0)
    }

    fn read_only(count: u16) -> Self {
        Self::new(Route::read_only("read-only", "main"), count, 0)
    }

    fn next(&self, play: Play) {
        self.servers
            .plays
            .lock()
            .expect("no test panics in it")
            .push_back(play);
    }

    /// Where connections were made since the last call.
    fn dialled(&self) -> Vec<String> {
        std::mem::take(&mut *self.servers.dialled.lock().expect("no test panics in it"))
    }

    /// As a session does it. `Err` is what the client hears.
    async fn attach_unless(
        &self,
        hung_up: impl Future<Output = ()>,
    ) -> Result<Attachable<MemoryStream>, Vec<u8>> {
        let wanted = Wanted {
            gate: &self.gate,
            metrics: &self.metrics,
            occupancy: &self.occupancy,
            pools: None,
            cluster: &self.script.cluster,
            route: &self.route,
            client: None,
        };
        let request = AttachRequest {
            cluster: &self.script.cluster,
            occupancy: &self.occupancy,
            route: &self.route,
            state: &self.state,
            login: &self.login,
            replication: Replication::None,
            share: Some(&self.share),
            closing: &self.closing,
        };
        let attached = async {
            let pass = wanted.pass(hung_up, &self.closing).await?;
            Ok::<_, NoServer>(attach_by(&self.servers, &request, pass).await?)
        };
        attached.await.map_err(|error| {
            let mut out = BytesMut::new();
            let is_there = error.write(&wanted, &mut out);
            assert!(is_there || out.is_empty(), "a client that has left hears nothing");
            out.to_vec()
        })
    }

    async fn attach(&self) -> Result<Attachable<MemoryStream>, Vec<u8>> {
        self.attach_unless(pending()).await
    }

    /// `Err`: in short.
    async fn attach_in_short(&self) -> Result<Attachable<MemoryStream>, String> {
        self.attach().await.map_err(|words| short(&words))
    }

    /// Sessions and those that connect, by member.
    fn seats(&self) -> Vec<(String, usize)> {
        let loads = self.occupancy.loads().into_iter();
        let mut seats: Vec<_> = loads
            .map(|((_, member), load)| (member.to_string(), load))
            .collect();
        seats.sort();
        seats
    }

    /// Nobody has a seat, or counts for its user, any more.
    async fn all_is_given_back(&self, at: &str) {
        for _ in 0..100 {
            if self.seats().is_empty() && Arc::strong_count(&self.share) == 1 {
                return;
            }
            sleep(Duration::from_millis(10)).await;
        }
        panic!("{at}: {:?} are taken", self.seats());
    }
}

fn identity(in_recovery: bool) -> ServerIdentity {
    ServerIdentity {
        system_identifier: SYSTEM,
        timeline: TIMELINE,
        in_recovery,
        address: [127, 0, 0, 1].into(),
        connected: Instant::now(),
    }
}

impl Attachable<MemoryStream> {
    /// The name of the server that answers on it.
    async fn answering(&mut self) -> String {
        let deadline = Instant::now() + CONNECT_TIMEOUT;
        let rows = simple_query(&mut self.connection, "SELECT name", 1, deadline).await;
        let value = rows.expect("it serves")[0][0].clone();
        String::from_utf8(value.expect("it has a name")).expect("it is text")
    }
}

/// The second of two candidates serves, whatever the first one does that may be its own fault.
#[tokio::test(start_paused = true)]
async fn the_next_candidate_serves_where_one_does_not() {
    let says = |bytes: Vec<u8>| Play::Says(bytes, Then::Leaves(Leaving::Closes));
    let cases = [
        (Play::Refuses, Some(Evidence::ConnectRefused)),
        (says(error("57P03")), Some(Evidence::ConnectFailed)),
        (says(error("57P01")), Some(Evidence::ConnectFailed)),
        // It is up. Only this session cannot have it.
        (says(error("53300")), None),
        (says(Vec::new()), Some(Evidence::ConnectFailed)),
        (
            Play::Says(Vec::new(), Then::Leaves(Leaving::Resets)),
            Some(Evidence::ConnectFailed),
        ),
        (
            says(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()),
            Some(Evidence::ConnectFailed),
        ),
        (says(frame(b'Z', b"I")), Some(Evidence::ConnectFailed)),
        (says(b"R\xff\xff\xff\xff".to_vec()), Some(Evidence::ConnectFailed)),
        (silent(b""), Some(Evidence::ConnectFailed)),
        // Not the standby that it was.
        (primary(), Some(Evidence::Promoted)),
        // It does not say what it is, and leaves when it is asked.
        (Play::Says(login(None), Then::Leaves(Leaving::Closes)), None),
    ];
    for (play, evidence) in cases {
        let mut scene = Scene::read_only(3);
        scene.next(play.clone());
        let at = format!("{play:?}");
        let mut attached = scene.attach_in_short().await.expect(&at);
        let dialled = scene.dialled();
        let [first, second] = &dialled[..] else {
            panic!("{at}: {dialled:?}")
        };
        assert_ne!(first, second, "{at}");
        assert_eq!(attached.member.as_str(), second, "{at}");
        assert_eq!(attached.answering().await, *second, "{at}");
        assert_eq!(attached.granted, GrantedRole::ReadOnly, "{at}");
        let reports = scene.script.reports();
        let expected: Vec<_> = evidence
            .into_iter()
            .map(|evidence| (first.clone(), evidence))
            .collect();
        assert_eq!(reports, expected, "{at}");
        while scene.seats().len() > 1 {
            sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(scene.seats(), [(second.clone(), 1)], "{at}");
        drop(attached);
        scene.all_is_given_back(&at).await;
    }
}

/// Its login is cut at every byte, or stops there. The other candidate serves; a session without
/// one hears why.
#[tokio::test(start_paused = true)]
async fn a_server_may_be_lost_at_every_byte_of_its_login() {
    for then in [
        Then::Leaves(Leaving::Closes),
        Then::Leaves(Leaving::Resets),
        Then::WorksFor(Duration::ZERO),
    ] {
        let is_silent = matches!(then, Then::WorksFor(_));
        let (read_only, read_write) = (Scene::read_only(3), Scene::read_write());
        let standby = login(Some("on"));
        for sent in 0..standby.len() {
            let at = format!("{then:?} after {sent}");
            read_only.next(Play::Says(standby[..sent].to_vec(), then.clone()));
            let began = Instant::now();
            let mut attached = read_only.attach_in_short().await.expect(&at);
            let waited = if is_silent {
                CONNECT_TIMEOUT
            } else {
                Duration::ZERO
            };
            assert_eq!(began.elapsed(), waited, "{at}");
            let dialled = read_only.dialled();
            assert_eq!(
                (dialled.len(), attached.answering().await),
                (2, dialled[1].clone()),
                "{at}"
            );
            drop(attached);
            read_only.all_is_given_back(&at).await;

            let primary = login(Some("off"));
            read_write.next(Play::Says(
                primary[..sent.min(primary.len() - 1)].to_vec(),
                then.clone(),
            ));
            let words = read_write.attach_in_short().await.map(|_| ());
            assert_eq!(words, Err("FATAL 57P03".to_owned()), "{at}");
            read_write.all_is_given_back(&at).await;
            // Such a failure does not keep others from trying.
            assert!(read_write.attach().await.is_ok(), "{at}");
            read_write.all_is_given_back(&at).await;
        }
    }
}

/// An error that every candidate would give reaches the client as it came, and no other one is
/// asked.
#[tokio::test(start_paused = true)]
async fn an_error_of_the_clients_own_is_the_last_word() {
    let mut scene = Scene::read_only(3);
    for code in ["28P01", "28000", "3D000", "42501", "57P04"] {
        for before in [Vec::new(), frame(b'R', &[0; 4])] {
            let says = [before, error(code)].concat();
            scene.next(Play::Says(says, Then::Leaves(Leaving::Closes)));
            let words = scene.attach().await.map(|_| ());
            assert_eq!(words, Err(error(code)), "{code}");
            assert_eq!(scene.dialled().len(), 1, "{code}");
            assert_eq!(scene.script.reports(), [], "{code}");
            scene.all_is_given_back(code).await;
        }
    }
    // The credential is the operator's: its errors are not for the client.
    scene.login.is_operators = true;
    scene.next(Play::Says(error("28P01"), Then::Leaves(Leaving::Closes)));
    let words = scene.attach_in_short().await.map(|_| ());
    assert_eq!(words, Err("FATAL 28000".to_owned()));
    scene.all_is_given_back("the operator's").await;
}

/// A read-write session gets the leader or nothing: whatever the leader was, it must accept writes
/// on this connection.
#[tokio::test(start_paused = true)]
async fn a_leader_that_accepts_no_writes_serves_no_session_that_writes() {
    let mut scene = Scene::read_write();
    // Before PostgreSQL 14 a server does not say it by itself.
    let asked = |kind| Play::Says(login(None), Then::Serves(kind));
    for play in [standby(), asked(STANDBY)] {
        let at = format!("{play:?}");
        scene.next(play);
        let words = scene.attach_in_short().await.map(|_| ());
        assert_eq!(words, Err("FATAL 57P03".to_owned()), "{at}");
        assert_eq!(
            scene.script.reports(),
            [("db1".to_owned(), Evidence::Demoted)],
            "{at}"
        );
        scene.all_is_given_back(&at).await;
    }
    scene.next(asked(PRIMARY));
    let mut attached = scene.attach_in_short().await.expect("it is the leader");
    assert_eq!(attached.answering().await, "db1");
    assert_eq!(attached.granted, GrantedRole::ReadWrite);
    drop(attached);
    // The answer is cut at every byte.
    let answer = PRIMARY.answer("db1", "SELECT pg_is_in_recovery()").len();
    for sent in 0..answer {
        for how in [Leaving::Closes, Leaving::Resets] {
            scene.next(asked(Kind {
                cut: Some((sent, how)),
                ..PRIMARY
            }));
            let words = scene.attach().await.map(|_| ()).expect_err("it has not said it");
            assert_eq!(short(&words), "FATAL 57P03", "{sent}");
            scene.all_is_given_back("an answer that is cut").await;
        }
    }
}

/// The leader changes while it answers the login.
#[tokio::test(start_paused = true)]
async fn a_session_is_not_given_a_server_that_leads_no_more() {
    let standby = login(Some("off"));
    for sent in [0, 9, standby.len() - 1] {
        let scene = Scene::new(Route::read_write("read-write", "main"), 2, 0);
        let (begin, rest) = standby.split_at(sent);
        let go_on = Arc::new(Notify::new());
        scene.next(Play::Says(
            begin.to_vec(),
            Then::Waits(Arc::clone(&go_on), rest.to_vec()),
        ));
        let attaching = scene.attach();
        tokio::pin!(attaching);
        assert!(poll!(&mut attaching).is_pending());
        scene.script.publish(snapshot(Some("db2"), members(2)));
        go_on.notify_one();
        let words = attaching.await.map(|_| ()).expect_err("it leads no more");
        assert_eq!(short(&words), "FATAL 57P03");
        let text = String::from_utf8_lossy(&words).into_owned();
        assert!(text.contains("is no longer the verified leader"), "{text}");
        assert_eq!(scene.dialled(), ["db1"]);
        scene.all_is_given_back("another leader").await;
    }
}

/// No probe has checked the address: the session's own connection is asked which server it is.
#[tokio::test(start_paused = true)]
async fn a_server_of_another_cluster_serves_nobody() {
    let asked = |in_hot_standby, kind| Play::Says(login(Some(in_hot_standby)), Then::Serves(kind));
    let foreign = |kind| Kind { system: 666, ..kind };
    let read_only = Scene::unprobed(Route::read_only("read-only", "main"), 3, 0);
    read_only.next(asked("on", foreign(STANDBY)));
    let mut attached = read_only.attach_in_short().await.expect("the other one serves");
    assert_eq!(attached.answering().await, read_only.dialled()[1]);
    drop(attached);
    read_only.all_is_given_back("a foreign standby").await;

    let read_write = Scene::unprobed(Route::read_write("read-write", "main"), 1, 0);
    let old = Kind {
        timeline: 0,
        ..PRIMARY
    };
    for (kind, why) in [
        (foreign(PRIMARY), "belongs to another cluster"),
        (old, "is an old primary"),
        (STANDBY, "does not accept writes"),
    ] {
        read_write.next(asked("off", kind));
        let words = read_write.attach().await.map(|_| ()).expect_err(why);
        assert_eq!(short(&words), "FATAL 57P03", "{why}");
        assert!(String::from_utf8_lossy(&words).contains(why), "{why}");
        read_write.all_is_given_back(why).await;
    }
    // The answer is cut at every byte.
    let answer = PRIMARY.answer("db1", "SELECT pg_control_system()").len();
    for sent in 0..answer {
        let cut = Some((sent, Leaving::Closes));
        read_write.next(asked("off", Kind { cut, ..PRIMARY }));
        let words = read_write.attach_in_short().await.map(|_| ());
        assert_eq!(words, Err("FATAL 57P03".to_owned()), "{sent}");
        read_write.all_is_given_back("an answer that is cut").await;
    }
    assert!(read_write.attach().await.is_ok());
}

/// A session tries a few candidates and gives up. A server that is busy with its login counts until
/// it has noticed the end.
#[tokio::test(start_paused = true)]
async fn silent_servers_are_left_after_their_time_and_count_while_they_work() {
    let scene = Scene::read_only(7);
    let work = Duration::from_mins(1);
    for _ in 0..6 {
        scene.next(Play::Says(Vec::new(), Then::WorksFor(work)));
    }
    let began = Instant::now();
    let words = scene.attach_in_short().await.map(|_| ());
    assert_eq!(words, Err("FATAL 57P03".to_owned()));
    assert_eq!(began.elapsed(), CONNECT_TIMEOUT * MOST_TRIES);
    let mut dialled = scene.dialled();
    assert_eq!(dialled.len(), MOST_TRIES as usize);
    dialled.sort();
    let taken: Vec<_> = dialled.iter().map(|name| (name.clone(), 1)).collect();
    assert_eq!(scene.seats(), taken, "each works on");
    assert_eq!(Arc::strong_count(&scene.share), 1 + taken.len());
    sleep(Duration::from_secs(59)).await;
    assert!(!scene.seats().is_empty(), "the last one works on");
    sleep(Duration::from_secs(1)).await;
    scene.all_is_given_back("after its work").await;
    // The router shuts down meanwhile: nothing is held.
    scene.next(Play::Says(Vec::new(), Then::WorksFor(work)));
    scene
        .servers
        .plays
        .lock()
        .expect("no test panics in it")
        .truncate(1);
    let _ = scene.attach().await;
    scene.closing.cancel();
    scene.all_is_given_back("at shutdown").await;
}

/// A member to which no connection can be made is avoided for a while; one that answers anything is
/// not.
#[tokio::test(start_paused = true)]
async fn a_member_that_refuses_connections_is_avoided() {
    let scene = Scene::read_only(3);
    scene.next(Play::Refuses);
    drop(scene.attach().await);
    let refusing = scene.dialled()[0].clone();
    for _ in 0..20 {
        drop(scene.attach().await);
        assert!(!scene.dialled().contains(&refusing));
    }
    sleep(Duration::from_secs(10)).await;
    let mut dialled = Vec::new();
    for _ in 0..20 {
        drop(scene.attach().await);
        dialled.extend(scene.dialled());
    }
    assert!(dialled.contains(&refusing), "it is tried again");
    scene.all_is_given_back("both").await;
}

type Waiting<'a> = Pin<Box<dyn Future<Output = Result<Attachable<MemoryStream>, Vec<u8>>> + 'a>>;

/// A leader with one place, and who waits for it.
struct Full {
    scene: Scene,
}

impl Full {
    fn new() -> Self {
        Self {
            scene: Scene::new(Route::read_write("read-write", "main"), 1, 1),
        }
    }

    async fn has_it(&self) -> Attachable<MemoryStream> {
        self.scene.attach_in_short().await.expect("there is a place")
    }

    /// A session that waits, and its client.
    async fn waits(&self) -> (Waiting<'_>, oneshot::Sender<()>) {
        let (client, left) = oneshot::channel();
        let hung_up = async move {
            // A client that is kept does not hang up.
            if left.await.is_err() {
                pending::<()>().await;
            }
        };
        let mut waiting: Waiting<'_> = Box::pin(self.scene.attach_unless(hung_up));
        assert!(poll!(&mut waiting).is_pending(), "it waits");
        (waiting, client)
    }
}

/// Until one of them is served or refused, which is then no longer among them.
async fn next_of(waiting: &mut Vec<Waiting<'_>>) -> (usize, Result<Attachable<MemoryStream>, Vec<u8>>) {
    poll_fn(|cx| {
        for index in 0..waiting.len() {
            if let Poll::Ready(served) = waiting[index].as_mut().poll(cx) {
                drop(waiting.remove(index));
                return Poll::Ready((index, served));
            }
        }
        Poll::Pending
    })
    .await
}

#[tokio::test(start_paused = true)]
async fn who_waits_is_served_in_order() {
    let full = Full::new();
    let mut serving = full.has_it().await;
    let mut waiting = Vec::new();
    for _ in 0..3 {
        waiting.push(full.waits().await.0);
    }
    assert_eq!(full.scene.seats(), [("db1".to_owned(), 1)]);
    // There is no place to wait for a fourth.
    let words = full.scene.attach_in_short().await.map(|_| ());
    assert_eq!(words, Err("FATAL 53300".to_owned()));
    while !waiting.is_empty() {
        assert_eq!(serving.answering().await, "db1");
        drop(serving);
        // One that comes now does not overtake.
        let mut late: Waiting<'_> = Box::pin(full.scene.attach());
        if let Poll::Ready(late) = poll!(&mut late) {
            assert_eq!(
                late.map(|_| ()).map_err(|words| short(&words)),
                Err("FATAL 53300".to_owned())
            );
        }
        drop(late);
        let (index, served) = next_of(&mut waiting).await;
        assert_eq!(index, 0, "the first of them");
        serving = served.map_err(|words| short(&words)).expect("it is served");
    }
    assert_eq!(full.scene.dialled().len(), 4);
    drop(serving);
    full.scene.all_is_given_back("all have been served").await;
}

/// Whichever of them leaves, and whether it waits or its server does not answer: its place goes to
/// the next one.
#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_gives_its_place_back() {
    for leaving in 0..3 {
        let full = Full::new();
        let serving = full.has_it().await;
        let mut waiting = Vec::new();
        for _ in 0..3 {
            waiting.push(full.waits().await);
        }
        let (mut gone, client) = waiting.remove(leaving);
        client.send(()).expect("it waits");
        let heard = (&mut gone).await.map(|_| ());
        assert_eq!(heard, Err(Vec::new()), "it hears nothing");
        drop(gone);
        // Another one may wait in its place.
        let last = full.waits().await;
        waiting.push(last);
        drop(serving);
        let (mut order, _clients): (Vec<_>, Vec<_>) = waiting.into_iter().unzip();
        while !order.is_empty() {
            let (index, served) = next_of(&mut order).await;
            assert_eq!(index, 0, "the first of them");
            drop(served.map_err(|words| short(&words)).expect("it is served"));
        }
        full.scene.all_is_given_back("all have been served").await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_that_is_given_up_while_it_connects_gives_its_seat_back() {
    let full = Full::new();
    let serving = full.has_it().await;
    let (first, _its) = full.waits().await;
    let (second, _its) = full.waits().await;
    let (third, _its) = full.waits().await;
    // The first one's server does not answer, and refuses the second one.
    full.scene.next(silent(b""));
    full.scene
        .next(Play::Says(error("28000"), Then::Leaves(Leaving::Closes)));
    drop(serving);
    let mut first = first;
    assert!(poll!(&mut first).is_pending());
    assert_eq!(full.scene.dialled(), ["db1", "db1"]);
    assert_eq!(full.scene.seats(), [("db1".to_owned(), 1)]);
    drop(first);
    let refused = second.await.map(|_| ());
    assert_eq!(refused, Err(error("28000")));
    let mut served = third.await.map_err(|words| short(&words)).expect("it is served");
    assert_eq!(served.answering().await, "db1");
    drop(served);
    full.scene.all_is_given_back("all have left").await;
}

/// A silent server takes its session's time, and with it its place: while it works, and no longer.
#[tokio::test(start_paused = true)]
async fn a_server_that_works_on_keeps_its_place_from_who_waits() {
    let full = Full::new();
    let work = Duration::from_secs(3);
    full.scene.next(Play::Says(Vec::new(), Then::WorksFor(work)));
    let words = full.scene.attach_in_short().await.map(|_| ());
    assert_eq!(words, Err("FATAL 57P03".to_owned()));
    let began = Instant::now();
    let served = full.scene.attach_in_short().await;
    assert!(served.is_ok());
    let waited = began.elapsed();
    assert!(
        waited >= work && waited < work + Duration::from_secs(1),
        "{waited:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn waiting_has_an_end() {
    let full = Full::new();
    let serving = full.has_it().await;
    let began = Instant::now();
    let words = full.scene.attach_in_short().await.map(|_| ());
    assert_eq!(words, Err("FATAL 53300".to_owned()));
    assert_eq!(began.elapsed(), QUEUE_TIMEOUT);
    // The router shuts down.
    let (waiting, _client) = full.waits().await;
    full.scene.closing.cancel();
    let words = waiting.await.map(|_| ()).map_err(|words| short(&words));
    assert_eq!(words, Err("FATAL 57P03".to_owned()));
    drop(serving);
    full.scene.all_is_given_back("all have left").await;
}

/// A change of the topology wakes the first one, which sees that no member may serve it any more.
#[tokio::test(start_paused = true)]
async fn who_waits_hears_when_the_leader_is_lost() {
    let full = Full::new();
    let serving = full.has_it().await;
    let (first, _its) = full.waits().await;
    let (second, _its) = full.waits().await;
    full.scene.script.publish(snapshot(None, members(1)));
    for waiting in [first, second] {
        let words = waiting.await.map(|_| ()).map_err(|words| short(&words));
        assert_eq!(words, Err("FATAL 57P03".to_owned()));
    }
    drop(serving);
    full.scene.all_is_given_back("all have left").await;
}
