//! Accepts and serves connections, with a limit for each wait and each number.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use axum::Router;
use hyper::Request;
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::super::handles::Handles;
use super::super::live::Live;
use super::super::metrics::Metrics;
use super::super::write_timeout::WriteTimeout;
use super::super::{agent, local};
use super::app::App;
use super::connection_limit::{ConnectionLimit, ConnectionSlot};
use super::guard::{Caller, Guard, Right};
use super::live_api::Leaving;
use super::node;
use super::router::router;
use crate::config::{AgentSubject, ProxyProtocol};
use crate::frontend::proxy;
use crate::listen::{Bound, ClientSocket, Connection, OnAccept, PeerAddress, accept_loop};
use crate::tls::HelloStream;

/// What one caller, and all callers together, may use.
#[derive(Debug, Clone, Copy)]
pub(super) struct HttpLimits {
    /// From the start of a request, or of waiting for the next one, to the end of its headers.
    pub(super) header_timeout: Duration,
    pub(super) handshake_timeout: Duration,
    /// Without any progress of an answer.
    pub(super) write_timeout: Duration,
    /// Connections at once; one source may have half of them ([`super::connection_limit`]).
    pub(super) max_connections: usize,
    /// A connection that is older is closed after its next answer.
    pub(super) max_age: Duration,
    /// For requests under way at the end.
    pub(super) grace: Duration,
    /// For clients that are connected to ask once more, while another process answers new
    /// connections.
    pub(super) linger: Duration,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            header_timeout: Duration::from_secs(30),
            handshake_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(10),
            max_connections: MOST_CONNECTIONS,
            max_age: Duration::from_mins(10),
            grace: Duration::from_secs(1),
            linger: Duration::from_secs(5),
        }
    }
}

/// Connections of one address at once.
pub(in crate::admin) const MOST_CONNECTIONS: usize = 512;
/// Request line and headers together; hyper's least is 8 KiB.
const MAX_HEAD: usize = 16 * 1024;
const MAX_HEADERS: usize = 64;
/// Agent checks at once.
const MAX_AGENT_CHECKS: usize = 64;
const AGENT_TIMEOUT: Duration = Duration::from_secs(5);

/// Answers until `leaving` or `shutdown`. On `leaving` it accepts nobody else, and each connection
/// may ask once more within `limits.linger`: what was accepted is answered. At the end, requests
/// under way have `limits.grace`. The newest of `handles` answer a request.
pub(super) async fn serve(
    bound: Bound,
    settings: Settings,
    mut handles: watch::Receiver<Handles>,
    leaving: CancellationToken,
    shutdown: CancellationToken,
    limits: HttpLimits,
) {
    let tasks = TaskTracker::new();
    let connections = TaskTracker::new();
    let stop = shutdown.child_token();
    let metrics = handles.borrow().metrics.clone();
    let live = settings.live.clone();
    let first = answering(handles.borrow_and_update().clone(), &live, &tasks, &stop);
    let server = Arc::new(Server {
        router: ArcSwap::from_pointee(router(Arc::clone(&first.0))),
        settings,
        limits,
        leaving: leaving.clone(),
        stop: stop.clone(),
    });
    let kept = Arc::clone(&server);
    let publish = move |app| kept.router.store(Arc::new(router(app)));
    tasks.spawn(follow(handles, first, live, tasks.clone(), stop.clone(), publish));
    let handler = HttpHandler {
        server,
        connection_limit: ConnectionLimit::new(limits.max_connections, "HTTP", metrics.clone()),
        connections: connections.clone(),
        metrics,
    };
    accept_loop(bound, handler, leaving).await;
    connections.close();
    tokio::select! {
        () = shutdown.cancelled() => {}
        // Clients that are still there then ask another listener.
        _ = timeout(limits.linger, connections.wait()) => {}
    }
    stop.cancel();
    tasks.close();
    // What does not end in time ends with the runtime.
    let _ = timeout(limits.grace, async {
        tokio::join!(connections.wait(), tasks.wait());
    })
    .await;
}

/// Takes the connections for HTTP.
struct HttpHandler {
    server: Arc<Server>,
    connection_limit: ConnectionLimit,
    connections: TaskTracker,
    metrics: Metrics,
}

impl OnAccept for HttpHandler {
    type Room = ();

    async fn room(&self) {}

    fn accepted(&self, connection: Connection, (): ()) {
        let Some((stream, caller)) = tcp(connection) else {
            return;
        };
        let source = (!self.server.is_announced(caller)).then(|| caller.ip());
        let Ok(slot) = self.connection_limit.take(source) else {
            return;
        };
        let open = Open::new(&self.metrics.connections);
        let server = Arc::clone(&self.server);
        self.connections.spawn(async move {
            tokio::select! {
                biased;
                () = slot.evicted() => tracing::debug!(client = %caller, "HTTP: closed for a new connection"),
                () = server.connection(stream, caller, &slot) => {}
            }
            drop((slot, open));
        });
    }
}

/// A connection over the network. `None`: it is another kind, which the configuration refuses.
fn tcp(connection: Connection) -> Option<(TcpStream, SocketAddr)> {
    match (connection.socket, connection.peer) {
        (ClientSocket::Tcp(stream), PeerAddress::Tcp(address)) => Some((stream, address)),
        _ => None,
    }
}

/// The answers by `handles`. What follows the members ends when the guard is dropped.
fn answering(
    handles: Handles,
    live: &Live,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> (Arc<App>, DropGuard) {
    let following = stop.child_token();
    let mut locals = Vec::new();
    for view in &handles.clusters {
        let (sender, receiver) = watch::channel(local::initial(&view.local_member));
        if view.local_member == crate::config::LocalMember::Auto {
            tasks.spawn(local::follow(view.snapshot.clone(), sender, following.clone()));
        }
        locals.push(receiver);
    }
    let guard = Guard::new(Arc::clone(&handles.token));
    let app = App {
        handles,
        locals,
        guard,
        live: live.clone(),
    };
    (Arc::new(app), following.drop_guard())
}

/// Publishes the answers by the newest of `handles`, until `stop`. `current`: those that were
/// published first.
async fn follow(
    mut handles: watch::Receiver<Handles>,
    mut current: (Arc<App>, DropGuard),
    live: Live,
    tasks: TaskTracker,
    stop: CancellationToken,
    publish: impl Fn(Arc<App>),
) {
    loop {
        let changed = tokio::select! {
            () = stop.cancelled() => return,
            changed = handles.changed() => changed,
        };
        if changed.is_err() {
            return stop.cancelled().await;
        }
        let next = answering(handles.borrow_and_update().clone(), &live, &tasks, &stop);
        publish(Arc::clone(&next.0));
        // The tasks that follow the old members end here.
        drop(std::mem::replace(&mut current, next));
    }
}

/// Sends each client that connects the state of its subject, by the newest of `handles`, until
/// `shutdown`. Clients that were accepted get their line.
pub(super) async fn agent(
    bound: Bound,
    about: AgentSubject,
    mut handles: watch::Receiver<Handles>,
    shutdown: CancellationToken,
) {
    let tasks = TaskTracker::new();
    let answers = TaskTracker::new();
    let stop = shutdown.child_token();
    let metrics = handles.borrow().metrics.clone();
    let live = Live::default();
    let first = answering(handles.borrow_and_update().clone(), &live, &tasks, &stop);
    let app = Arc::new(ArcSwap::new(Arc::clone(&first.0)));
    let kept = Arc::clone(&app);
    let publish = move |app| kept.store(app);
    tasks.spawn(follow(handles, first, live, tasks.clone(), stop.clone(), publish));
    let handler = AgentHandler {
        app,
        about,
        connection_limit: ConnectionLimit::new(MAX_AGENT_CHECKS, "agent check", metrics),
        answers: answers.clone(),
    };
    accept_loop(bound, handler, stop).await;
    answers.close();
    // Answers that take longer go on until the thread ends.
    let _ = timeout(HttpLimits::default().grace, answers.wait()).await;
}

/// Answers HAProxy's agent check.
struct AgentHandler {
    app: Arc<ArcSwap<App>>,
    about: AgentSubject,
    connection_limit: ConnectionLimit,
    answers: TaskTracker,
}

impl OnAccept for AgentHandler {
    type Room = ();

    async fn room(&self) {}

    fn accepted(&self, connection: Connection, (): ()) {
        let Some((stream, address)) = tcp(connection) else {
            return;
        };
        let Ok(slot) = self.connection_limit.take(Some(address.ip())) else {
            return;
        };
        let line = node::agent(&self.app.load(), self.about).to_string();
        self.answers.spawn(async move {
            // A client that has to make room has its line already, unless it does not read; no
            // client is waited for longer than that.
            tokio::select! {
                _ = timeout(AGENT_TIMEOUT, agent::send(stream, &line)) => {}
                () = slot.evicted() => {}
            }
            drop(slot);
        });
    }
}

/// What may be exchanged for the connections to come. Cheap to clone; clones share it.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    /// The settings of new handshakes; empty without TLS.
    pub(super) tls: Arc<ArcSwapOption<rustls::ServerConfig>>,
    /// The balancers whose headers count; empty if none are read.
    pub(super) proxies: Arc<ArcSwapOption<ProxyProtocol>>,
    pub(super) live: Live,
}

struct Server {
    router: ArcSwap<Router>,
    settings: Settings,
    limits: HttpLimits,
    /// No new connections; each open one gets one more answer.
    leaving: CancellationToken,
    stop: CancellationToken,
}

impl Server {
    /// Whether a balancer at this address sends its clients' addresses.
    fn is_announced(&self, address: SocketAddr) -> bool {
        let proxies = self.settings.proxies.load();
        proxies
            .as_ref()
            .is_some_and(|proxies| proxies.trusts(address.ip()))
    }

    async fn connection(&self, stream: TcpStream, address: SocketAddr, slot: &ConnectionSlot) {
        // It only makes answers faster.
        let _ = stream.set_nodelay(true);
        // Loaded once: the caller's rights depend on whether this connection has TLS.
        let tls = self.settings.tls.load_full();
        let caller = Caller::new(address, tls.is_some());
        let Some(caller) = self.identify(&stream, caller).await else {
            return;
        };
        if self.is_announced(address) && slot.attribute(caller.address.ip()).is_err() {
            return;
        }
        let Some(tls) = tls else {
            return self.requests(stream, caller, slot).await;
        };
        let handshake = tokio::select! {
            () = self.stop.cancelled() => return,
            handshake = timeout(
                self.limits.handshake_timeout,
                TlsAcceptor::from(tls).accept(HelloStream::new(stream)),
            ) => handshake,
        };
        match handshake {
            Ok(Ok(stream)) => self.requests(stream, caller, slot).await,
            Ok(Err(error)) => tracing::debug!(%error, "HTTP: TLS handshake failed"),
            Err(_) => tracing::debug!("HTTP: TLS handshake timed out"),
        }
    }

    /// The caller by the PROXY protocol's header, if the connection must have one. `None`: it has
    /// none, or a wrong one.
    async fn identify(&self, stream: &TcpStream, socket: Caller) -> Option<Caller> {
        let Some(proxies) = self.settings.proxies.load_full() else {
            return Some(socket);
        };
        if !proxies.trusts(socket.address.ip()) {
            if proxies.required {
                tracing::debug!(client = %socket, "HTTP: connection refused: it is not from http.proxy_protocol.trusted");
                return None;
            }
            return Some(socket);
        }
        let header = tokio::select! {
            () = self.stop.cancelled() => return None,
            header = timeout(self.limits.handshake_timeout, proxy::read(stream)) => header,
        };
        match header {
            Ok(Ok(header)) => Some(socket.announced(header.source)),
            Ok(Err(fault)) => {
                tracing::debug!(client = %socket, %fault, "HTTP: connection refused");
                None
            }
            Err(_elapsed) => {
                tracing::debug!(client = %socket, "HTTP: no PROXY protocol header in time");
                None
            }
        }
    }

    async fn requests<S>(&self, stream: S, caller: Caller, slot: &ConnectionSlot)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let stream = TokioIo::new(WriteTimeout::new(stream, self.limits.write_timeout));
        let opened = Instant::now();
        let turns = &slot.turns(caller.address.ip());
        let service = service_fn(|mut request: Request<Incoming>| {
            request.extensions_mut().insert(caller);
            request.extensions_mut().insert(Leaving(self.leaving.clone()));
            async move {
                let only_looks = Right::asked_by(request.method()) == Right::Look;
                let turn = turns.take().await;
                let mut busy = Some(slot.answering());
                let router = Router::clone(&self.router.load());
                let mut answering = pin!(TowerToHyperService::new(router).call(request));
                // A turn is for the thread's time: a request that then waits, for a body or for an
                // event, delays no other request.
                let at_once = poll_fn(|cx| Poll::Ready(answering.as_mut().poll(cx))).await;
                drop(turn);
                let mut answer = match at_once {
                    Poll::Ready(answer) => answer,
                    Poll::Pending => {
                        // Who looks can ask again: many that wait for a silent peer, or for an
                        // event, keep no health check out. An order is not given up.
                        if only_looks {
                            busy = None;
                        }
                        answering.await
                    }
                };
                drop(busy);
                if let Ok(answer) = &mut answer
                    && (self.leaving.is_cancelled() || opened.elapsed() >= self.limits.max_age)
                {
                    let close = HeaderValue::from_static("close");
                    answer.headers_mut().insert(CONNECTION, close);
                }
                answer
            }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            // A client may close its sending side behind its request (`nc -N`), and gets its
            // answer.
            .half_close(true)
            .header_read_timeout(self.limits.header_timeout)
            .max_buf_size(MAX_HEAD)
            .max_headers(MAX_HEADERS)
            .serve_connection(stream, service);
        let mut connection = pin!(connection);
        let result = tokio::select! {
            result = connection.as_mut() => result,
            () = self.stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = result {
            // Balancers often hang up in the middle of an answer.
            tracing::debug!(%error, "HTTP: connection ended");
        }
    }
}

/// Counts a connection while it is open.
struct Open(prometheus_client::metrics::gauge::Gauge);

impl Open {
    fn new(gauge: &prometheus_client::metrics::gauge::Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}
