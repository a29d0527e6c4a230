//! Connections in memory, and a relay between two of them: what tests and measurements run instead
//! of sockets. Not part of the program.
//!
//! A connection behaves as TCP on one host does: bytes arrive in order, a writer waits where its
//! peer does not read, one side can end while the other goes on, and a connection that is dropped
//! with something unread is reset.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::client;
use super::link::Link;
use super::registry::{Client, Origin, Placement, Registry, SessionEntry, SessionKind, Ticket};
use super::relay::Relay;
use super::stream::SessionStream;
use crate::cluster::ClusterHandle;
use crate::cluster::snapshot::MemberName;
use crate::config;
use crate::frontend::{ClientAddress, Left};
use crate::routing::GrantedRole;

/// As much as a socket's buffers take, nearly enough.
const CAPACITY: usize = 64 * 1024;

/// One end of a connection.
#[derive(Debug)]
pub(crate) struct MemoryStream {
    incoming: Arc<Channel>,
    outgoing: Arc<Channel>,
}

/// One direction.
#[derive(Debug)]
struct Channel(Mutex<Flow>);

#[derive(Debug)]
struct Flow {
    bytes: VecDeque<u8>,
    /// What one read gives at most.
    most: usize,
    /// As the writer has set it, one after the other.
    #[cfg(test)]
    user_timeouts: Vec<Option<Duration>>,
    state: FlowState,
    /// Nobody reads any more.
    is_deaf: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FlowState {
    Open,
    /// Nothing follows what is there.
    Ended,
    Reset,
}

/// Both ends of a connection.
pub(crate) fn connection() -> (MemoryStream, MemoryStream) {
    let channel = || {
        Arc::new(Channel(Mutex::new(Flow {
            bytes: VecDeque::new(),
            most: usize::MAX,
            #[cfg(test)]
            user_timeouts: Vec::new(),
            state: FlowState::Open,
            is_deaf: false,
            reader: None,
            writer: None,
        })))
    };
    let (there, back) = (channel(), channel());
    let near = MemoryStream {
        incoming: Arc::clone(&back),
        outgoing: Arc::clone(&there),
    };
    let far = MemoryStream {
        incoming: there,
        outgoing: back,
    };
    (near, far)
}

impl Channel {
    fn flow(&self) -> MutexGuard<'_, Flow> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, state: FlowState) {
        let mut flow = self.flow();
        if flow.state == FlowState::Open || state == FlowState::Reset {
            flow.state = state;
        }
        if state == FlowState::Reset {
            flow.bytes.clear();
        }
        flow.wake();
    }
}

// These two stand in for the kernel. scripts/instructions knows them by name and does not count
// them.
impl Channel {
    #[inline(never)]
    fn read(&self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut flow = self.flow();
        if flow.state == FlowState::Reset {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if !flow.bytes.is_empty() {
            let wanted = buf.remaining().min(flow.bytes.len()).min(flow.most);
            let (front, back) = flow.bytes.as_slices();
            let first = wanted.min(front.len());
            buf.put_slice(&front[..first]);
            buf.put_slice(&back[..wanted - first]);
            flow.bytes.drain(..wanted);
            if let Some(writer) = flow.writer.take() {
                writer.wake();
            }
            return Poll::Ready(Ok(()));
        }
        if flow.state == FlowState::Ended {
            return Poll::Ready(Ok(()));
        }
        flow.reader = Some(cx.waker().clone());
        Poll::Pending
    }

    #[inline(never)]
    fn write(&self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let mut flow = self.flow();
        match flow.state {
            FlowState::Reset => return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            FlowState::Ended => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            FlowState::Open if flow.is_deaf => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            FlowState::Open => {}
        }
        let written = data.len().min(CAPACITY.saturating_sub(flow.bytes.len()));
        if written == 0 && !data.is_empty() {
            flow.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        flow.bytes.extend(&data[..written]);
        if let Some(reader) = flow.reader.take() {
            reader.wake();
        }
        Poll::Ready(Ok(written))
    }
}

impl Flow {
    fn wake(&mut self) {
        for waker in [self.reader.take(), self.writer.take()].into_iter().flatten() {
            waker.wake();
        }
    }
}

#[cfg(test)]
impl MemoryStream {
    /// The peer gets so many bytes in one read at most.
    pub(super) fn peer_reads_at_most(&self, most: usize) {
        self.outgoing.flow().most = most;
    }

    /// What the peer has set for its side, one after the other.
    pub(super) fn peers_user_timeouts(&self) -> Vec<Option<Duration>> {
        self.incoming.flow().user_timeouts.clone()
    }

    /// Breaks the connection: what is under way, in both directions, is lost.
    pub(super) fn reset(self) {
        self.outgoing.end(FlowState::Reset);
        self.incoming.end(FlowState::Reset);
    }
}

impl Drop for MemoryStream {
    fn drop(&mut self) {
        let mut incoming = self.incoming.flow();
        let is_unread = !incoming.bytes.is_empty();
        incoming.is_deaf = true;
        incoming.bytes.clear();
        incoming.wake();
        drop(incoming);
        self.outgoing.end(if is_unread {
            FlowState::Reset
        } else {
            FlowState::Ended
        });
    }
}

impl AsyncRead for MemoryStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.incoming.read(cx, buf)
    }
}

impl AsyncWrite for MemoryStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.outgoing.write(cx, data)
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.outgoing.end(FlowState::Ended);
        Poll::Ready(Ok(()))
    }
}

impl SessionStream for MemoryStream {
    fn left(&self) -> Left {
        match self.incoming.flow().state {
            FlowState::Open => Left::No,
            FlowState::Ended => Left::Closed,
            FlowState::Reset => Left::Broken,
        }
    }

    #[cfg(test)]
    fn set_user_timeout(&self, timeout: Option<Duration>) {
        self.outgoing.flow().user_timeouts.push(timeout);
    }

    #[cfg(not(test))]
    fn set_user_timeout(&self, _timeout: Option<Duration>) {}

    fn end_socket(&self) {
        self.outgoing.end(FlowState::Ended);
    }

    fn has_input(&self) -> bool {
        let flow = self.incoming.flow();
        !flow.bytes.is_empty() || flow.state != FlowState::Open
    }

    fn poll_input(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut flow = self.incoming.flow();
        if !flow.bytes.is_empty() || flow.state != FlowState::Open {
            return Poll::Ready(());
        }
        flow.reader = Some(cx.waker().clone());
        Poll::Pending
    }
}

/// A cluster that nobody watches: its tasks never run. One for all, as it never changes.
pub(crate) fn cluster() -> ClusterHandle {
    static CLUSTER: OnceLock<ClusterHandle> = OnceLock::new();
    CLUSTER.get_or_init(still_cluster).clone()
}

fn still_cluster() -> ClusterHandle {
    let text = "clusters: {main: {servers: [{name: db1, host: 127.0.0.1, port: 1}], \
                server_tls: {sslmode: disable}, service_account: {user: u}}}\n\
                listeners: [{name: rw, address: \"127.0.0.1:1\", route: read-write}]\n";
    let config = config::parse(std::path::Path::new("trunkline.yaml"), text).expect("it is well formed");
    let reporting = crate::cluster::Reporting {
        metrics: Arc::new(crate::cluster::Metrics::register(
            &mut prometheus_client::registry::Registry::default(),
        )),
        events: crate::events::Events::new(),
    };
    let cluster = Arc::clone(config.clusters.values().next().expect("there is one"));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("descriptors are left");
    let started = {
        let _entered = runtime.enter();
        crate::cluster::start(
            cluster,
            &config.auth,
            crate::cluster::LagLimits::default(),
            reporting,
            &CancellationToken::new(),
            &TaskTracker::new(),
        )
    };
    // It lasts as long as the process, and nobody drives it.
    std::mem::forget(runtime);
    started.expect("nothing is opened")
}

/// A relay of a read-write session on the member `db1`, between these two. The server was last
/// heard at its login.
pub(crate) fn relay<C: SessionStream, S: SessionStream>(
    client: C,
    server: S,
    replication: bool,
) -> (Relay<C, S>, Arc<SessionEntry>) {
    relay_in(&Arc::default(), client, server, replication)
}

/// As [`relay`], with this registry.
pub(super) fn relay_in<C: SessionStream, S: SessionStream>(
    registry: &Arc<Registry>,
    client: C,
    server: S,
    replication: bool,
) -> (Relay<C, S>, Arc<SessionEntry>) {
    let ticket = ticket(registry);
    let entry = Arc::clone(ticket.entry());
    let client = client::Client::new(client, ticket);
    let link = link(server, "db1");
    (
        Relay::new(client, link, Bytes::new(), Arc::default(), replication),
        entry,
    )
}

/// A session of the route `read-write`.
pub(super) fn ticket(registry: &Arc<Registry>) -> Ticket {
    let origin = Origin {
        client: Client {
            address: ClientAddress::Local(None),
            user: Bytes::from_static(b"app"),
            database: Bytes::from_static(b"app"),
            tls: None,
            since: tokio::time::Instant::now(),
        },
        cluster: "main".into(),
        route: "read-write".into(),
        on_unfit: config::Route::read_only("read-only", "main").on_unfit,
        kind: SessionKind::Ordinary,
        counts: Arc::default(),
    };
    let entered = registry.enter(Arc::new(origin), None);
    entered.expect("it has no key that could be taken")
}

/// A server connection of a read-write session on this member. The server was last heard at its
/// login.
pub(crate) fn link<S>(server: S, member: &str) -> Link<S> {
    Link::new(server, placement(member), cluster())
}

/// Of a read-write session.
pub(super) fn placement(member: &str) -> Arc<Placement> {
    Arc::new(Placement {
        member: MemberName::new(member),
        granted: GrantedRole::ReadWrite,
        whereabouts: None,
        process_id: 1,
        cancel: None,
    })
}
