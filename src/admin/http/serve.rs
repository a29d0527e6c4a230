//! Accepting and serving connections, each wait and number bounded.

use std::future::poll_fn;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
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
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::super::handles::Handles;
use super::super::{agent, local};
use super::guard::{Caller, Guard};
use super::node;
use super::router::{App, router};
use super::seats::{Seat, Seats};
use super::stream::WriteBound;
use crate::config::{AgentSubject, BindAddress, ProxyProtocol};
use crate::frontend::overlap::beside;
use crate::frontend::proxy;
use crate::tls::HelloStream;

/// What one caller, and all together, may cost.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// From the start of a request, or of waiting for the next one, to the end of its headers.
    pub header_timeout: Duration,
    pub handshake_timeout: Duration,
    /// Without any progress of an answer.
    pub write_timeout: Duration,
    /// Connections at once; one source may have half of them ([`super::seats`]).
    pub max_connections: usize,
    /// A connection that is older is closed after its next answer.
    pub max_age: Duration,
    /// For answers under way at the end.
    pub grace: Duration,
    /// For whoever is connected to ask once more, where another listener answers the next ones.
    pub linger: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            header_timeout: Duration::from_secs(30),
            handshake_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(10),
            max_connections: 512,
            max_age: Duration::from_mins(10),
            grace: Duration::from_secs(1),
            linger: Duration::from_secs(5),
        }
    }
}

/// Request line and headers together; hyper's least is 8 KiB.
const MAX_HEAD: usize = 16 * 1024;
const MAX_HEADERS: usize = 64;
const BACKLOG: i32 = 1024;
/// Agent checks at once.
const MAX_AGENT_CHECKS: usize = 64;
const AGENT_TIMEOUT: Duration = Duration::from_secs(5);

/// A listening socket; `*` is dual-stack, or IPv4 where the host has no IPv6. `leaving`, which is about to be closed,
/// listens on an address that overlaps.
pub(super) fn bind_beside(
    address: &BindAddress,
    leaving: &[&std::net::TcpListener],
) -> io::Result<std::net::TcpListener> {
    beside(leaving, |shares| bind_as(address, shares))
}

fn bind_as(address: &BindAddress, shares: bool) -> io::Result<std::net::TcpListener> {
    match address {
        BindAddress::Ip(address) => listen(*address, false, shares),
        // Refused at load.
        BindAddress::Unix { .. } => Err(io::ErrorKind::Unsupported.into()),
        BindAddress::Any { port } => match listen((Ipv6Addr::UNSPECIFIED, *port).into(), true, shares) {
            Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
                listen((Ipv4Addr::UNSPECIFIED, *port).into(), false, shares)
            }
            result => result,
        },
    }
}

fn listen(address: SocketAddr, dual_stack: bool, shares: bool) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(!dual_stack)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shares)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Answers until `leaving` or `shutdown`. On leaving, whoever is connected may ask once more within `bounds.linger`: who
/// was accepted is answered. At the end, what is under way has `bounds.grace`. Requests that begin are answered by the
/// newest of `handles`.
pub(super) async fn serve(
    listener: TcpListener,
    settings: Settings,
    mut handles: watch::Receiver<Handles>,
    leaving: CancellationToken,
    shutdown: CancellationToken,
    bounds: Bounds,
) {
    let tasks = TaskTracker::new();
    let connections = TaskTracker::new();
    let stop = shutdown.child_token();
    let metrics = handles.borrow().metrics.clone();
    let (first, mut following) = answering(handles.borrow_and_update().clone(), &tasks, &stop);
    let server = Arc::new(Server {
        router: ArcSwap::from_pointee(router(first)),
        settings,
        bounds,
        leaving: leaving.clone(),
        stop: stop.clone(),
    });
    let kept = Arc::clone(&server);
    let (left, until) = (tasks.clone(), stop.clone());
    tasks.spawn(async move {
        loop {
            let changed = tokio::select! {
                () = until.cancelled() => return,
                changed = handles.changed() => changed,
            };
            if changed.is_err() {
                return until.cancelled().await;
            }
            let (app, next) = answering(handles.borrow_and_update().clone(), &left, &until);
            kept.router.store(Arc::new(router(app)));
            // What followed the members of before ends here.
            drop(std::mem::replace(&mut following, next));
        }
    });
    let seats = Seats::new(bounds.max_connections, "HTTP", metrics.clone());
    let mut backoff = Backoff::default();
    loop {
        let accepted = tokio::select! {
            () = leaving.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, caller) = match accepted {
            Ok((stream, address)) => {
                backoff = Backoff::default();
                (stream, address)
            }
            Err(error) => {
                if let Some(pause) = backoff.after(&error) {
                    tokio::select! {
                        () = leaving.cancelled() => break,
                        () = sleep(pause) => {}
                    }
                }
                continue;
            }
        };
        let source = (!server.is_announced(caller)).then(|| caller.ip());
        let Ok(seat) = seats.take(source) else {
            continue;
        };
        let open = Open::new(&metrics.connections);
        let server = Arc::clone(&server);
        connections.spawn(async move {
            tokio::select! {
                biased;
                () = seat.needed() => tracing::debug!(client = %caller, "HTTP: closed for a new connection"),
                () = server.connection(stream, caller, &seat) => {}
            }
            drop((seat, open));
        });
    }
    drop(listener);
    connections.close();
    tokio::select! {
        () = shutdown.cancelled() => {}
        // Who is still there then asks another listener.
        _ = timeout(bounds.linger, connections.wait()) => {}
    }
    stop.cancel();
    tasks.close();
    // What does not end in time ends with the runtime.
    let _ = timeout(bounds.grace, async {
        tokio::join!(connections.wait(), tasks.wait());
    })
    .await;
}

/// The answers by `handles`, and what keeps them right as long as it is not dropped.
fn answering(handles: Handles, tasks: &TaskTracker, stop: &CancellationToken) -> (Arc<App>, DropGuard) {
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
    };
    (Arc::new(app), following.drop_guard())
}

/// Tells each that connects how things are by the newest of `handles`, until `shutdown`; who was accepted is told.
pub(super) async fn agent(
    listener: TcpListener,
    about: AgentSubject,
    mut handles: watch::Receiver<Handles>,
    shutdown: CancellationToken,
) {
    let tasks = TaskTracker::new();
    let told = TaskTracker::new();
    let stop = shutdown.child_token();
    let (mut app, mut following) = answering(handles.borrow_and_update().clone(), &tasks, &stop);
    let mut backoff = Backoff::default();
    let metrics = app.handles.metrics.clone();
    let seats = Seats::new(MAX_AGENT_CHECKS, "agent check", metrics);
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            Ok(()) = handles.changed() => {
                let next;
                (app, next) = answering(handles.borrow_and_update().clone(), &tasks, &stop);
                // What followed the members of before ends here.
                drop(std::mem::replace(&mut following, next));
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, address)) => {
                backoff = Backoff::default();
                let Ok(seat) = seats.take(Some(address.ip())) else {
                    continue;
                };
                let line = node::agent(&app, about).to_string();
                told.spawn(async move {
                    // Whoever does not take a line is not waited for.
                    // Whoever has to make room has been told already, unless it does not read.
                    tokio::select! {
                        _ = timeout(AGENT_TIMEOUT, agent::tell(stream, &line)) => {}
                        () = seat.needed() => {}
                    }
                    drop(seat);
                });
            }
            Err(error) => {
                if let Some(pause) = backoff.after(&error) {
                    tokio::select! {
                        () = stop.cancelled() => break,
                        () = sleep(pause) => {}
                    }
                }
            }
        }
    }
    drop(listener);
    told.close();
    // Who takes longer is told still, unless the thread ends.
    let _ = timeout(Bounds::default().grace, told.wait()).await;
}

/// What may be exchanged for the connections to come. Cheap to clone; clones share it.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    /// What handshakes are made with; empty where HTTP is in clear.
    pub(super) tls: Arc<ArcSwapOption<rustls::ServerConfig>>,
    /// Whose headers are believed; empty where none is understood.
    pub(super) proxies: Arc<ArcSwapOption<ProxyProtocol>>,
}

struct Server {
    router: ArcSwap<Router>,
    settings: Settings,
    bounds: Bounds,
    /// Nobody else is accepted; one more answer for each.
    leaving: CancellationToken,
    stop: CancellationToken,
}

impl Server {
    /// Whether a balancer of there says for whom it connects.
    fn is_announced(&self, address: SocketAddr) -> bool {
        let proxies = self.settings.proxies.load();
        proxies
            .as_ref()
            .is_some_and(|proxies| proxies.trusts(address.ip()))
    }

    async fn connection(&self, stream: TcpStream, address: SocketAddr, seat: &Seat) {
        // Best effort: without it an answer is only later.
        let _ = stream.set_nodelay(true);
        // Once: whether it is spoken is what the caller's rights hang on.
        let tls = self.settings.tls.load_full();
        let caller = Caller::new(address, tls.is_some());
        let Some(caller) = self.identify(&stream, caller).await else {
            return;
        };
        if self.is_announced(address) && seat.attribute(caller.address.ip()).is_err() {
            return;
        }
        let Some(tls) = tls else {
            return self.requests(stream, caller, seat).await;
        };
        let handshake = tokio::select! {
            () = self.stop.cancelled() => return,
            handshake = timeout(
                self.bounds.handshake_timeout,
                TlsAcceptor::from(tls).accept(HelloStream::new(stream)),
            ) => handshake,
        };
        match handshake {
            Ok(Ok(stream)) => self.requests(stream, caller, seat).await,
            Ok(Err(error)) => tracing::debug!(%error, "HTTP: TLS handshake failed"),
            Err(_) => tracing::debug!("HTTP: TLS handshake timed out"),
        }
    }

    /// By the header of the PROXY protocol, where there must be one. `None`: there is none, or a bad one.
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
            header = timeout(self.bounds.handshake_timeout, proxy::read(stream)) => header,
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

    async fn requests<S>(&self, stream: S, caller: Caller, seat: &Seat)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let stream = TokioIo::new(WriteBound::new(stream, self.bounds.write_timeout));
        let opened = Instant::now();
        let turns = &seat.turns(caller.address.ip());
        let service = service_fn(|mut request: Request<Incoming>| {
            request.extensions_mut().insert(caller);
            async move {
                let turn = turns.take().await;
                let busy = seat.answering();
                let router = Router::clone(&self.router.load());
                let mut answering = pin!(TowerToHyperService::new(router).call(request));
                // A turn is for the thread's time: who then waits, for a body or for something to happen, is in nobody's way.
                let at_once = poll_fn(|cx| Poll::Ready(answering.as_mut().poll(cx))).await;
                drop(turn);
                let mut answer = match at_once {
                    Poll::Ready(answer) => answer,
                    Poll::Pending => answering.await,
                };
                drop(busy);
                if let Ok(answer) = &mut answer
                    && (self.leaving.is_cancelled() || opened.elapsed() >= self.bounds.max_age)
                {
                    let close = HeaderValue::from_static("close");
                    answer.headers_mut().insert(CONNECTION, close);
                }
                answer
            }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.bounds.header_timeout)
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
            // Balancers hang up in the middle of an answer all day.
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

/// How long to leave the listener alone after a failed accept, so that no more files than there are (EMFILE) does
/// not become a busy loop. Logs the first failure of a row.
#[derive(Debug, Default)]
struct Backoff {
    pause: Option<Duration>,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(50);
    const LONGEST: Duration = Duration::from_secs(1);

    /// `None` where the failure was that connection's only.
    fn after(&mut self, error: &io::Error) -> Option<Duration> {
        use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
        if matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted) {
            return None;
        }
        let pause = match self.pause {
            None => {
                tracing::warn!(%error, "HTTP: cannot accept connections; trying again");
                Self::FIRST
            }
            Some(pause) => (pause * 2).min(Self::LONGEST),
        };
        self.pause = Some(pause);
        Some(pause)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn no_files_left_is_not_a_busy_loop() {
        let mut backoff = Backoff::default();
        let emfile = io::Error::from_raw_os_error(24);
        let pauses: Vec<_> = (0..7)
            .map(|_| backoff.after(&emfile).unwrap().as_millis())
            .collect();
        assert_eq!(pauses, [50, 100, 200, 400, 800, 1000, 1000]);
        assert_eq!(backoff.after(&io::ErrorKind::ConnectionAborted.into()), None);
    }
}
