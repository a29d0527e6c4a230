//! Listening sockets and the accept loop: one loop, run as one task per listener.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpListener, UnixListener};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

pub use super::local::Identity;
use super::local::{self, Ours, SocketFile};
use super::overlap::beside;
use super::{ClientAddress, PeerProcess};
use crate::config::BindAddress;

/// Connections the kernel keeps for us while we are busy; it may cut this to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;
/// Pause after an accept that failed for want of resources.
const PAUSE: Duration = Duration::from_millis(100);
/// Pause while there is no room for another login.
const ROOM: Duration = Duration::from_millis(5);
/// A shortage is logged when it begins, and then at most this often.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// A bound socket, not yet accepting.
#[derive(Debug)]
pub struct Bound {
    socket: BoundSocket,
    pub address: BindAddress,
}

#[derive(Debug)]
enum BoundSocket {
    Tcp(std::net::TcpListener),
    /// The file first: so they are dropped.
    Unix(SocketFile, std::os::unix::net::UnixListener),
}

/// A bound socket beside its accept loop, to be passed to another process. It holds the port: to be dropped where that
/// is to be free.
#[derive(Debug)]
pub struct Handle {
    pub address: BindAddress,
    socket: OwnedFd,
    /// Of a Unix socket.
    file: Option<Ours>,
}

impl Handle {
    /// A descriptor of its own, for the other process.
    ///
    /// # Errors
    /// There is no descriptor left.
    pub fn passed_on(&self) -> io::Result<Inherited> {
        Ok(Inherited {
            place: BoundPlace::of(&self.address),
            socket: self.socket.try_clone()?,
            file: self.file.as_ref().map(|file| PassedFile {
                identity: file.identity(),
                is_to_be_removed: file.may_be(),
            }),
        })
    }

    /// The process that passed it on has released it, or the one that it was passed on to has failed: the file is this
    /// process's, with the mode that is configured here.
    pub fn claim(&self) {
        if let Some(Err(error)) = self.file.as_ref().map(Ours::claim) {
            warn!(listen = %self.address, %error, "the socket's file keeps the mode that it had");
        }
    }

    /// Another process has it, if it is among those `kept`: the file is not removed by this one.
    pub fn release(&self, kept: &[BoundPlace]) {
        if let Some(file) = &self.file
            && kept.contains(&BoundPlace::of(&self.address))
        {
            file.release();
        }
    }
}

impl AsFd for Handle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsFd for Bound {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            BoundSocket::Tcp(socket) => socket.as_fd(),
            BoundSocket::Unix(_, socket) => socket.as_fd(),
        }
    }
}

/// Where a socket that was passed on is bound.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BoundPlace {
    /// Every address, by a dual-stack socket or IPv4 alone.
    Any(u16),
    Ip(SocketAddr),
    Unix(PathBuf),
}

impl BoundPlace {
    pub fn of(address: &BindAddress) -> Self {
        match address {
            BindAddress::Any { port } => Self::Any(*port),
            BindAddress::Ip(address) => Self::Ip(*address),
            BindAddress::Unix { path, .. } => Self::Unix(path.clone()),
        }
    }

    /// Where a listening stream socket is bound.
    ///
    /// # Errors
    /// `InvalidInput` where it is no such socket, or of a kind that nobody listens on here.
    pub fn of_socket(socket: &impl AsFd) -> io::Result<Self> {
        let socket = SockRef::from(socket);
        if socket.r#type()? != Type::STREAM || !socket.is_listener()? {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "it is no listening stream socket",
            ));
        }
        let address = socket.local_addr()?;
        if let Some(path) = address.as_pathname() {
            return Ok(Self::Unix(path.to_owned()));
        }
        match address.as_socket() {
            Some(SocketAddr::V6(address)) if address.ip().is_unspecified() && !socket.only_v6()? => {
                Ok(Self::Any(address.port()))
            }
            Some(address) => Ok(Self::Ip(address)),
            None => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "it is neither TCP nor a Unix socket with a file",
            )),
        }
    }
}

impl std::fmt::Display for BoundPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Any(port) => write!(f, "*:{port}"),
            Self::Ip(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// A listening socket from another process.
#[derive(Debug)]
pub struct Inherited {
    pub place: BoundPlace,
    pub socket: OwnedFd,
    /// Of a Unix socket.
    pub file: Option<PassedFile>,
}

/// The file of a Unix socket that was passed on.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct PassedFile {
    pub identity: Identity,
    /// By who has the socket.
    pub is_to_be_removed: bool,
}

/// Listening sockets from another process, of which each is taken by whoever is to listen there.
#[derive(Debug, Default)]
pub struct Inheritance(Vec<Inherited>);

impl Inheritance {
    pub fn new(sockets: Vec<Inherited>) -> Self {
        Self(sockets)
    }

    /// The socket bound at this address.
    pub fn take(&mut self, address: &BindAddress) -> Option<Inherited> {
        let place = BoundPlace::of(address);
        let index = self.0.iter().position(|inherited| inherited.place == place)?;
        Some(self.0.swap_remove(index))
    }

    /// Where all that is left is bound.
    pub fn places(&self) -> Vec<BoundPlace> {
        self.0.iter().map(|inherited| inherited.place.clone()).collect()
    }

    /// A place that overlaps this address, and is not taken.
    pub fn in_the_way(&self, address: &BindAddress) -> Option<&BoundPlace> {
        let overlaps = |place: &&BoundPlace| match place {
            BoundPlace::Any(port) => BindAddress::Any { port: *port }.overlaps(address),
            BoundPlace::Ip(place) => BindAddress::Ip(*place).overlaps(address),
            BoundPlace::Unix(_) => false,
        };
        self.0.iter().map(|inherited| &inherited.place).find(overlaps)
    }
}

/// An accepted connection, on no runtime yet.
#[derive(Debug)]
pub enum ClientSocket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Binds and listens. `*` is one dual-stack socket, or IPv4 where the host has no IPv6. The file of a Unix socket is
/// removed when what this returns is dropped, or its accept loop ends.
///
/// # Errors
/// `AddrInUse` where another program listens; what the kernel says otherwise.
pub fn bind(address: &BindAddress) -> io::Result<Bound> {
    bind_as(address, false)
}

/// As [`bind`], where `leaving`, which is about to be closed, listens on an address that overlaps.
///
/// # Errors
/// As [`bind`]; `leaving` listens as before.
pub fn bind_beside(address: &BindAddress, leaving: &[&Handle]) -> io::Result<Bound> {
    beside(leaving, |shares| bind_as(address, shares))
}

fn bind_as(address: &BindAddress, shares: bool) -> io::Result<Bound> {
    let socket = match *address {
        BindAddress::Unix { ref path, mode } => {
            let (file, socket) = local::listen_on(path, mode, BACKLOG)?;
            return Ok(Bound {
                socket: BoundSocket::Unix(file, socket),
                address: address.clone(),
            });
        }
        BindAddress::Ip(ip) => listen_on(ip, false, shares)?,
        BindAddress::Any { port } => {
            match listen_on(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)), true, shares) {
                Err(error) if no_ipv6(&error) => {
                    listen_on(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)), false, shares)?
                }
                bound => bound?,
            }
        }
    };
    Ok(Bound {
        socket: BoundSocket::Tcp(socket),
        address: address.clone(),
    })
}

/// What another process has bound at `address`, as if it were bound here.
///
/// # Errors
/// The file of a Unix socket is gone, or another one.
pub fn adopt(address: &BindAddress, inherited: Inherited) -> io::Result<Bound> {
    SockRef::from(&inherited.socket).set_nonblocking(true)?;
    let socket = match address {
        BindAddress::Unix { path, mode } => {
            let (identity, may_be) = match inherited.file {
                Some(file) => (file.identity, file.is_to_be_removed),
                None => (Identity::of(path)?, false),
            };
            let file = local::adopt(path, *mode, identity, may_be)?;
            BoundSocket::Unix(file, inherited.socket.into())
        }
        BindAddress::Ip(_) | BindAddress::Any { .. } => BoundSocket::Tcp(inherited.socket.into()),
    };
    Ok(Bound {
        socket,
        address: address.clone(),
    })
}

impl Bound {
    /// Before it goes into its accept loop.
    ///
    /// # Errors
    /// There is no descriptor left.
    pub fn handle(&self) -> io::Result<Handle> {
        let file = match &self.socket {
            BoundSocket::Tcp(_) => None,
            BoundSocket::Unix(file, _) => Some(file.ours()),
        };
        Ok(Handle {
            address: self.address.clone(),
            socket: self.as_fd().try_clone_to_owned()?,
            file,
        })
    }
}

fn listen_on(address: SocketAddr, dual_stack: bool, shares: bool) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shares)?;
    if address.is_ipv6() {
        socket.set_only_v6(!dual_stack)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn no_ipv6(error: &io::Error) -> bool {
    // EAFNOSUPPORT: no IPv6 in the kernel; EADDRNOTAVAIL: switched off.
    matches!(error.raw_os_error(), Some(97 | 99))
}

/// Takes accepted sockets. Called on the accept loop: must not block.
pub trait Accepted: Send + Sync + 'static {
    fn accepted(&self, socket: ClientSocket, address: ClientAddress);

    /// There is no descriptor left for this connection: say so and hang up.
    fn no_descriptor(&self, socket: ClientSocket);

    /// May another connection be handed over now? `false` leaves it, and those behind it, waiting for a moment.
    /// Bounded: it says yes in the end, if only for [`Self::accepted`] to refuse.
    fn has_room(&self) -> bool;
}

/// Accepts until `stop`. The socket is closed when this returns, so that the port is free again.
pub async fn accept_loop(bound: Bound, to: impl Accepted, stop: CancellationToken) {
    let Bound { socket, address } = bound;
    let listener = match Listener::new(socket) {
        Ok(listener) => listener,
        Err(error) => {
            error!(listen = %address, %error, "cannot wait for connections");
            return;
        }
    };
    let mut shortage = Shortage::new(address.to_string());
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((socket, client)) => {
                shortage.over();
                // This one waits here, those behind it in the kernel's queue, which is bounded; look again soon.
                // Also where the loop is to end: this one was accepted, and nobody else will have it.
                while !to.has_room() {
                    tokio::time::sleep(ROOM).await;
                }
                to.accepted(socket, client);
            }
            Err(error) if is_shortage(&error) => {
                shortage.seen(&error);
                // The spare descriptor is free now: whoever is first in the queue is told with it.
                if let Ok(Ok((socket, _))) = timeout(ROOM, listener.accept()).await {
                    to.no_descriptor(socket);
                }
                shortage.keep_back();
                pause(PAUSE, &stop).await;
            }
            // The peer was gone before we looked (ECONNABORTED and the like): nothing to do.
            Err(_gone) => {}
        }
    }
}

/// A listening socket of either kind, on this runtime.
enum Listener {
    Tcp(TcpListener),
    /// The file first, as in [`BoundSocket`].
    Unix(
        #[expect(dead_code, reason = "dropped with the listener")] SocketFile,
        UnixListener,
    ),
}

impl Listener {
    fn new(socket: BoundSocket) -> io::Result<Self> {
        Ok(match socket {
            BoundSocket::Tcp(socket) => Self::Tcp(TcpListener::from_std(socket)?),
            BoundSocket::Unix(file, socket) => Self::Unix(file, UnixListener::from_std(socket)?),
        })
    }

    /// The next connection, taken off this runtime, so that a worker can put it on its own. Cancel safe.
    async fn accept(&self) -> io::Result<(ClientSocket, ClientAddress)> {
        match self {
            Self::Tcp(listener) => {
                let (socket, address) = listener.accept().await?;
                let socket = ClientSocket::Tcp(socket.into_std()?);
                Ok((socket, ClientAddress::of_socket(address)))
            }
            Self::Unix(_, listener) => {
                let (socket, _unnamed) = listener.accept().await?;
                let peer = socket.peer_cred().ok().map(|peer| PeerProcess {
                    uid: peer.uid(),
                    gid: peer.gid(),
                    pid: peer.pid(),
                });
                let socket = ClientSocket::Unix(socket.into_std()?);
                Ok((socket, ClientAddress::Local(peer)))
            }
        }
    }
}

async fn pause(time: Duration, stop: &CancellationToken) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = tokio::time::sleep(time) => {}
    }
}

fn is_shortage(error: &io::Error) -> bool {
    // ENFILE, EMFILE, ENOMEM, ENOBUFS.
    matches!(error.raw_os_error(), Some(23 | 24 | 12 | 105))
}

/// Out of descriptors or memory at accept. One descriptor is kept back, so that the client at the head of the queue
/// is told instead of left hanging.
struct Shortage {
    listen: String,
    spare: Option<std::fs::File>,
    logged: Option<Instant>,
    /// The end of the shortage last logged was told.
    told_over: bool,
    refused: u64,
}

impl Shortage {
    fn new(listen: String) -> Self {
        Self {
            listen,
            spare: spare(),
            logged: None,
            told_over: false,
            refused: 0,
        }
    }

    fn seen(&mut self, error: &io::Error) {
        self.refused += 1;
        let now = Instant::now();
        if self.logged.is_none_or(|at| now.duration_since(at) >= LOG_EVERY) {
            self.logged = Some(now);
            self.told_over = false;
            error!(
                listen = %self.listen, %error, times = self.refused,
                "cannot accept connections: raise the open-file limit or lower limits.max_clients"
            );
        }
        self.spare = None;
    }

    fn over(&mut self) {
        if self.refused > 0 {
            // At the brink each close lets one in: the time of the last line stays, so that this is told as rarely.
            if !std::mem::replace(&mut self.told_over, true) {
                warn!(listen = %self.listen, times = self.refused, "connections are accepted again");
            }
            self.refused = 0;
        }
        self.keep_back();
    }

    /// Takes the spare descriptor again, before anybody else does.
    fn keep_back(&mut self) {
        if self.spare.is_none() {
            self.spare = spare();
        }
    }
}

fn spare() -> Option<std::fs::File> {
    std::fs::File::open("/dev/null").ok()
}
