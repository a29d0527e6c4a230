//! Other processes of this router on this host: those that handed their listeners over and finish their sessions, and
//! the one that took them. A client's cancel request comes to whoever listens now, and is asked of all of them.
//!
//! Each process answers on an abstract Unix socket whose name it draws at its start, so that nothing is left behind
//! however it ends. Guarantees: only processes of the same user and root's are asked or answered; one question a
//! connection, one hop; every wait and number is bounded.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{self, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use nix::unistd::geteuid;
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::{Shared, cancel};
use crate::auth::crypto::random;
use crate::wire::message::CANCEL_KEY_LENGTHS;
use crate::wire::startup::CancelRequest;

/// For one question, the cancel it carries out included.
const PATIENCE: Duration = Duration::from_secs(5);
/// Cancel requests about which relatives are being asked, and questions of theirs that are being answered.
const MOST_ASKED: usize = 64;
/// Processes remembered: the oldest are forgotten first.
const MOST: usize = 32;
const FOUND: u8 = b'Y';
const NOT_FOUND: u8 = b'N';

/// More is being asked of the others than is allowed.
#[derive(Debug)]
pub(super) struct TooMany;

/// The other processes, by the names of their sockets.
#[derive(Debug)]
pub struct Relatives {
    own: String,
    others: Mutex<Vec<String>>,
    asking: Semaphore,
}

impl Default for Relatives {
    fn default() -> Self {
        let own = u128::from_be_bytes(random());
        Self {
            own: format!("trunkline-{own:032x}"),
            others: Mutex::default(),
            asking: Semaphore::new(MOST_ASKED),
        }
    }
}

impl Relatives {
    /// The name under which this process answers.
    pub fn own(&self) -> &str {
        &self.own
    }

    /// The others, those that were there first before those that came later.
    pub fn names(&self) -> Vec<String> {
        self.others().clone()
    }

    /// From now on these are asked as well.
    pub fn add(&self, names: impl IntoIterator<Item = String>) {
        let mut others = self.others();
        for name in names {
            if name != self.own && !others.contains(&name) {
                others.push(name);
            }
        }
        let excess = others.len().saturating_sub(MOST);
        others.drain(..excess);
    }

    /// Asks all of them at once. `true`: one of them has the session, and has done what was to be done.
    pub(super) async fn ask(&self, request: &CancelRequest) -> Result<bool, TooMany> {
        let names = self.names();
        if names.is_empty() {
            return Ok(false);
        }
        let _permit = self.asking.try_acquire().map_err(|_| TooMany)?;
        let mut asked = JoinSet::new();
        for name in names {
            let question = question(request);
            asked.spawn(async move {
                let answer = timeout(PATIENCE, ask_one(&name, &question)).await;
                (
                    name,
                    answer.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())),
                )
            });
        }
        while let Some(joined) = asked.join_next().await {
            match joined {
                Ok((_, Ok(true))) => return Ok(true),
                // It has ended, and no other process can have its name.
                Ok((name, Err(error))) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    self.others().retain(|other| *other != name);
                }
                Ok((name, Err(error))) => {
                    debug!(name, %error, "another process of this router cannot be asked");
                }
                Ok((_, Ok(false))) | Err(_) => {}
            }
        }
        Ok(false)
    }

    fn others(&self) -> std::sync::MutexGuard<'_, Vec<String>> {
        self.others.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The process id, the key's length, the key.
fn question(request: &CancelRequest) -> Vec<u8> {
    let mut question = request.process_id.to_be_bytes().to_vec();
    let length = u16::try_from(request.key.len()).unwrap_or(u16::MAX);
    question.extend(length.to_be_bytes());
    question.extend(&request.key);
    question
}

async fn ask_one(name: &str, question: &[u8]) -> io::Result<bool> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // A full queue is an error then, not a wait.
    socket.set_nonblocking(true)?;
    socket.connect(&SockAddr::unix(format!("\0{name}"))?)?;
    let mut stream = UnixStream::from_std(net::UnixStream::from(socket))?;
    if !is_ours(&stream) {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    stream.write_all(question).await?;
    Ok(stream.read_u8().await? == FOUND)
}

/// Whether whoever made this socket's other end is of this process's user, or root's; root trusts everybody.
fn is_ours(stream: &UnixStream) -> bool {
    let own = geteuid().as_raw();
    stream
        .peer_cred()
        .is_ok_and(|peer| own == 0 || peer.uid() == own || peer.uid() == 0)
}

/// Answers the others' questions until `stop`, on the runtime it is called on.
///
/// # Errors
/// The socket cannot be made.
pub fn answer(shared: &Arc<Shared>, stop: CancellationToken) -> io::Result<()> {
    let address = SocketAddr::from_abstract_name(shared.relatives.own())?;
    let listener = net::UnixListener::bind_addr(&address)?;
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    let permits = Arc::new(Semaphore::new(MOST_ASKED));
    let accepting = Arc::clone(shared);
    shared.tasks.spawn(async move {
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            let Ok((stream, _unnamed)) = accepted else {
                // Out of descriptors, most likely; who asks has a bound of its own.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else {
                continue;
            };
            if is_ours(&stream) {
                let shared = Arc::clone(&accepting);
                accepting.tasks.spawn(async move {
                    // Whoever asked may be gone.
                    let _ = timeout(PATIENCE, converse(&shared, stream)).await;
                    drop(permit);
                });
            }
        }
    });
    Ok(())
}

async fn converse(shared: &Arc<Shared>, mut stream: UnixStream) -> io::Result<()> {
    let process_id = stream.read_u32().await?;
    let length = usize::from(stream.read_u16().await?);
    if !CANCEL_KEY_LENGTHS.contains(&length) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut key = vec![0; length];
    stream.read_exact(&mut key).await?;
    let request = CancelRequest {
        process_id,
        key: Bytes::from(key),
    };
    let is_here = cancel::for_relative(shared, &request).await;
    let answer = if is_here { FOUND } else { NOT_FOUND };
    stream.write_u8(answer).await
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn request() -> CancelRequest {
        CancelRequest {
            process_id: 7,
            key: Bytes::from_static(b"0123"),
        }
    }

    fn listen(name: &str) -> net::UnixListener {
        net::UnixListener::bind_addr(&SocketAddr::from_abstract_name(name).unwrap()).unwrap()
    }

    #[tokio::test]
    async fn who_has_ended_is_forgotten_and_who_is_silent_holds_nobody_up() {
        let relatives = Relatives::default();
        assert!(!relatives.ask(&request()).await.unwrap());
        let silent = Relatives::default();
        let _silent = listen(silent.own());
        let knowing = Relatives::default();
        let listener = listen(knowing.own());
        relatives.add([
            silent.own().to_owned(),
            "trunkline-gone".to_owned(),
            knowing.own().to_owned(),
        ]);
        relatives.add([relatives.own().to_owned(), silent.own().to_owned()]);
        assert_eq!(relatives.names().len(), 3, "neither itself nor anybody twice");
        let answering = std::thread::spawn(move || {
            use std::io::{Read, Write};
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = [0; 10];
            stream.read_exact(&mut asked).unwrap();
            stream.write_all(&[FOUND]).unwrap();
            asked
        });
        // The silent one would take PATIENCE.
        let found = timeout(PATIENCE / 2, relatives.ask(&request())).await;
        assert!(found.unwrap().unwrap());
        assert_eq!(&answering.join().unwrap(), b"\0\0\0\x07\0\x040123");
        let forgotten = async {
            while relatives.names().contains(&"trunkline-gone".to_owned()) {
                let _ = timeout(Duration::from_millis(1), relatives.ask(&request())).await;
            }
        };
        timeout(PATIENCE, forgotten).await.unwrap();
        assert!(relatives.names().contains(&silent.own().to_owned()));
    }

    #[test]
    fn the_oldest_are_forgotten() {
        let relatives = Relatives::default();
        relatives.add((0..MOST + 3).map(|number| number.to_string()));
        assert_eq!(relatives.names().len(), MOST);
        assert_eq!(relatives.names()[0], "3");
    }
}
