//! The accept loop. Each listening socket runs it as one task.

use std::fs::File;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use nix::errno::Errno;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use super::bind::{Bound, BoundSocket};
use super::socket_file::SocketFile;

/// Time to accept the first client of the queue with the spare descriptor. The client may have
/// gone.
const SPARE_WAIT: Duration = Duration::from_millis(5);
/// A shortage is logged when it begins, and then at most this often.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// An accepted connection.
#[derive(Debug)]
pub struct Connection {
    pub socket: ClientSocket,
    pub peer: PeerAddress,
}

/// An accepted socket, registered with the runtime of its accept loop.
#[derive(Debug)]
pub enum ClientSocket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// An accepted socket that goes to another runtime.
#[derive(Debug)]
pub enum DetachedSocket {
    Tcp(std::net::TcpStream),
    Unix(std::os::unix::net::UnixStream),
}

impl ClientSocket {
    /// Takes the socket off this runtime.
    ///
    /// # Errors
    /// The kernel refuses, as it does when the peer has left.
    pub fn detach(self) -> io::Result<DetachedSocket> {
        Ok(match self {
            Self::Tcp(socket) => DetachedSocket::Tcp(socket.into_std()?),
            Self::Unix(socket) => DetachedSocket::Unix(socket.into_std()?),
        })
    }

    /// Sends what fits, without waiting. The runtime need not have looked at the socket before.
    ///
    /// # Errors
    /// As those of `send(2)`.
    pub fn send_now(&self, message: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(socket) => SockRef::from(socket).send(message),
            Self::Unix(socket) => SockRef::from(socket).send(message),
        }
    }
}

impl DetachedSocket {
    /// Registers the socket with the runtime that calls this.
    ///
    /// # Errors
    /// No descriptor or memory is left for it.
    pub fn attach(self) -> io::Result<ClientSocket> {
        Ok(match self {
            Self::Tcp(socket) => ClientSocket::Tcp(TcpStream::from_std(socket)?),
            Self::Unix(socket) => ClientSocket::Unix(UnixStream::from_std(socket)?),
        })
    }
}

/// The other end of a connection, as the kernel names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerAddress {
    Tcp(SocketAddr),
    /// `None` if the kernel does not name the process.
    Unix(Option<PeerProcess>),
}

/// The process at the other end of a Unix socket, as the kernel saw it when it connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerProcess {
    pub uid: u32,
    pub gid: u32,
    pub pid: Option<i32>,
}

/// Handles accepted connections. The accept loop calls these functions, so they must not block.
pub trait OnAccept: Send + Sync + 'static {
    /// The capacity that the handler reserves before it takes a connection.
    type Room: Send;

    /// Whether a client gets an answer when no descriptor is left. If so, the loop accepts the
    /// connection with a spare descriptor and calls [`Self::no_descriptor`]. Otherwise the
    /// connection waits in the kernel's queue.
    const ANSWERS_WITHOUT_DESCRIPTOR: bool = false;

    /// Waits until the handler can take the connection that was just accepted. Later connections
    /// wait in the kernel's queue. The wait must have a time limit, even after `stop`: no other
    /// process can serve the accepted connection.
    fn room(&self) -> impl Future<Output = Self::Room> + Send;

    fn accepted(&self, connection: Connection, room: Self::Room);

    /// No descriptor is left for this connection. Sends the client an error and hangs up.
    fn no_descriptor(&self, socket: ClientSocket) {
        drop(socket);
    }
}

/// Accepts until `stop`. The socket is closed when this returns, and the port is free.
pub async fn accept_loop<H: OnAccept>(bound: Bound, handler: H, stop: CancellationToken) {
    let Bound { socket, name } = bound;
    let listener = match Listener::new(socket) {
        Ok(listener) => listener,
        Err(error) => {
            error!(listen = %name, %error, "cannot wait for connections");
            return;
        }
    };
    let mut shortage = Shortage::new(name, H::ANSWERS_WITHOUT_DESCRIPTOR);
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            // The connection has taken the last descriptor. Freed again it is the spare one,
            // without which all who come later would wait unanswered.
            Ok(connection) if !shortage.has_spare() => {
                handler.no_descriptor(connection.socket);
                shortage.keep_spare();
            }
            Ok(connection) => {
                shortage.over();
                let room = handler.room().await;
                handler.accepted(connection, room);
            }
            Err(error) if is_of_connection(&error) => {}
            Err(error) => {
                let pause = shortage.seen(&error);
                if shortage.use_spare()
                    && let Ok(Ok(connection)) = timeout(SPARE_WAIT, listener.accept()).await
                {
                    handler.no_descriptor(connection.socket);
                }
                shortage.keep_spare();
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = sleep(pause) => {}
                }
            }
        }
    }
}

/// A listening TCP or Unix socket on this runtime.
enum Listener {
    Tcp(TcpListener),
    /// The file is dropped first, as in [`BoundSocket`].
    Unix(
        #[expect(dead_code, reason = "dropped with the listener")] Option<SocketFile>,
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

    /// Cancel safe.
    async fn accept(&self) -> io::Result<Connection> {
        match self {
            Self::Tcp(listener) => {
                let (socket, address) = listener.accept().await?;
                Ok(Connection {
                    socket: ClientSocket::Tcp(socket),
                    peer: PeerAddress::Tcp(address),
                })
            }
            Self::Unix(_, listener) => {
                let (socket, _unnamed) = listener.accept().await?;
                let process = socket.peer_cred().ok().map(|peer| PeerProcess {
                    uid: peer.uid(),
                    gid: peer.gid(),
                    pid: peer.pid(),
                });
                Ok(Connection {
                    socket: ClientSocket::Unix(socket),
                    peer: PeerAddress::Unix(process),
                })
            }
        }
    }
}

/// Whether the failure concerns only that connection (`accept(2)`): the client had gone before it
/// was accepted.
fn is_of_connection(error: &io::Error) -> bool {
    use Errno::{
        ECONNABORTED, ECONNRESET, EHOSTDOWN, EHOSTUNREACH, EINTR, ENETDOWN, ENETUNREACH, ENONET, ENOPROTOOPT,
        EOPNOTSUPP, EPERM, EPROTO,
    };
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(
        errno,
        Some(
            ECONNABORTED
                | ECONNRESET
                | EHOSTDOWN
                | EHOSTUNREACH
                | EINTR
                | ENETDOWN
                | ENETUNREACH
                | ENONET
                | ENOPROTOOPT
                | EOPNOTSUPP
                | EPERM
                | EPROTO
        )
    )
}

/// A shortage of descriptors or memory: the pause between two attempts to accept, the state of the
/// log lines, and the spare descriptor.
struct Shortage {
    listen: String,
    answers: bool,
    spare: Option<File>,
    open_spare: fn() -> Option<File>,
    pause: Option<Duration>,
    logged: Option<Instant>,
    /// Whether the end of the last logged shortage was logged.
    logged_over: bool,
    failures: u64,
}

impl Shortage {
    const FIRST_PAUSE: Duration = Duration::from_millis(50);
    const LONGEST_PAUSE: Duration = Duration::from_secs(1);
    /// One client gets an answer after each pause.
    const LONGEST_PAUSE_ANSWERING: Duration = Duration::from_millis(100);

    fn new(listen: String, answers: bool) -> Self {
        let mut shortage = Self {
            listen,
            answers,
            spare: None,
            open_spare: || File::open("/dev/null").ok(),
            pause: None,
            logged: None,
            logged_over: false,
            failures: 0,
        };
        shortage.keep_spare();
        shortage
    }

    /// The pause before the next attempt, so that the loop does not spin.
    fn seen(&mut self, error: &io::Error) -> Duration {
        self.failures += 1;
        let now = Instant::now();
        if self.logged.is_none_or(|at| now.duration_since(at) >= LOG_EVERY) {
            self.logged = Some(now);
            self.logged_over = false;
            error!(
                listen = %self.listen, %error, times = self.failures,
                "cannot accept connections: raise the open-file limit or lower limits.max_clients"
            );
        }
        let longest = if self.answers {
            Self::LONGEST_PAUSE_ANSWERING
        } else {
            Self::LONGEST_PAUSE
        };
        let pause = self.pause.map_or(Self::FIRST_PAUSE, |pause| pause * 2);
        *self.pause.insert(pause.min(longest))
    }

    fn over(&mut self) {
        self.pause = None;
        if self.failures > 0 {
            // At the limit each closed connection admits one client. `logged` stays set, so that
            // the end is logged as rarely as the beginning.
            if !std::mem::replace(&mut self.logged_over, true) {
                warn!(listen = %self.listen, times = self.failures, "connections are accepted again");
            }
            self.failures = 0;
        }
        self.keep_spare();
    }

    /// Whether there is a spare descriptor, or none is needed.
    fn has_spare(&mut self) -> bool {
        self.keep_spare();
        self.spare.is_some() || !self.answers
    }

    /// Frees the spare descriptor for the first client of the queue. `false`: there is none.
    fn use_spare(&mut self) -> bool {
        self.spare.take().is_some()
    }

    /// Reserves the spare descriptor again before another part of the process takes it.
    fn keep_spare(&mut self) {
        if self.answers && self.spare.is_none() {
            self.spare = (self.open_spare)();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use tokio::io::AsyncReadExt;
    use tokio::sync::{Semaphore, mpsc};

    use super::super::{Inheritance, bind, bind_abstract};
    use super::*;
    use crate::config::BindAddress;

    fn pauses(answers: bool) -> Vec<u128> {
        let mut shortage = Shortage::new(String::new(), answers);
        let emfile = io::Error::from(Errno::EMFILE);
        (0..7).map(|_| shortage.seen(&emfile).as_millis()).collect()
    }

    #[tokio::test]
    async fn a_shortage_of_descriptors_does_not_make_the_loop_spin() {
        assert_eq!(pauses(false), [50, 100, 200, 400, 800, 1000, 1000]);
        assert_eq!(pauses(true), [50, 100, 100, 100, 100, 100, 100]);
        assert!(is_of_connection(&Errno::ECONNABORTED.into()));
        assert!(!is_of_connection(&Errno::EMFILE.into()));
    }

    #[tokio::test]
    async fn a_spare_descriptor_is_held_only_for_answers() {
        let mut shortage = Shortage::new(String::new(), true);
        assert!(shortage.use_spare());
        assert!(!shortage.use_spare(), "it is used");
        shortage.over();
        assert!(shortage.use_spare(), "it is held again");
        assert!(!Shortage::new(String::new(), false).use_spare());
    }

    #[tokio::test]
    async fn nobody_is_let_in_with_the_last_descriptor() {
        let mut shortage = Shortage::new(String::new(), true);
        assert!(shortage.use_spare());
        // Another part of the process was faster.
        shortage.open_spare = || None;
        assert!(!shortage.has_spare());
        shortage.open_spare = || File::open("/dev/null").ok();
        assert!(shortage.has_spare());
        assert!(shortage.use_spare());
        let mut silent = Shortage::new(String::new(), false);
        assert!(silent.has_spare(), "who answers nobody needs none");
    }

    /// Passes connections on, one for each permit.
    struct Gated {
        permits: Arc<Semaphore>,
        waiting: mpsc::UnboundedSender<()>,
        taken: mpsc::UnboundedSender<Connection>,
    }

    impl OnAccept for Gated {
        type Room = ();

        async fn room(&self) {
            let _ = self.waiting.send(());
            self.permits.acquire().await.unwrap().forget();
        }

        fn accepted(&self, connection: Connection, (): ()) {
            self.taken.send(connection).unwrap();
        }
    }

    #[tokio::test]
    async fn an_accepted_connection_waits_for_room_even_after_stop() {
        let address = BindAddress::Ip("127.0.0.1:0".parse().unwrap());
        let (bound, handle) = bind(&address, &[], &mut Inheritance::default()).unwrap();
        let permits = Arc::new(Semaphore::new(0));
        let (taken, mut connections) = mpsc::unbounded_channel();
        let (waiting, mut asked) = mpsc::unbounded_channel();
        let stop = CancellationToken::new();
        let handler = Gated {
            permits: Arc::clone(&permits),
            waiting,
            taken,
        };
        let accepting = tokio::spawn(accept_loop(bound, handler, stop.clone()));
        let to = handle.local_addr().unwrap();
        drop(handle);
        let first = TcpStream::connect(to).await.unwrap();
        let second = TcpStream::connect(to).await.unwrap();
        asked.recv().await.unwrap();
        assert!(connections.try_recv().is_err(), "there is no room");
        permits.add_permits(1);
        let connection = connections.recv().await.unwrap();
        assert_eq!(connection.peer, PeerAddress::Tcp(first.local_addr().unwrap()));
        asked.recv().await.unwrap();
        stop.cancel();
        permits.add_permits(1);
        let connection = connections.recv().await.unwrap();
        assert_eq!(connection.peer, PeerAddress::Tcp(second.local_addr().unwrap()));
        accepting.await.unwrap();
        assert!(TcpStream::connect(to).await.is_err(), "the port is free");
    }

    #[tokio::test]
    async fn the_peer_of_an_abstract_socket_has_its_process_id() {
        let name = format!("trunkline-test-{}", std::process::id());
        let bound = bind_abstract(&name).unwrap();
        assert!(bind_abstract(&name).is_err(), "the name is taken");
        let (taken, mut connections) = mpsc::unbounded_channel();
        let (waiting, _asked) = mpsc::unbounded_channel();
        let stop = CancellationToken::new();
        let handler = Gated {
            permits: Arc::new(Semaphore::new(1)),
            waiting,
            taken,
        };
        let accepting = tokio::spawn(accept_loop(bound, handler, stop.clone()));
        let mut client = UnixStream::connect(format!("\0{name}")).await.unwrap();
        let connection = connections.recv().await.unwrap();
        let PeerAddress::Unix(Some(process)) = connection.peer else {
            panic!("{:?}", connection.peer);
        };
        assert_eq!(process.uid, nix::unistd::geteuid().as_raw());
        drop(connection);
        assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0);
        stop.cancel();
        accepting.await.unwrap();
    }
}
