//! Other processes of this router on this host: those that handed their listeners over and finish their sessions, and
//! the one that took them. A client's cancel request comes to whoever listens now, and is asked of all of them.
//!
//! Each process answers on an abstract Unix socket whose name it draws at its start, so that nothing is left behind
//! however it ends. Guarantees: a name is asked only where its user listens that it was told with, so that nobody else is
//! who takes the name of a process that has ended; only processes of the same user, root's and those of such names are
//! answered; one question a connection, one hop; every wait and number is bounded.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{self, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{Shared, cancel};
use crate::auth::crypto::random;
use crate::wire::message::CANCEL_KEY_LENGTHS;
use crate::wire::startup::CancelRequest;

/// For one question to be asked, and for the answer whether the session is there.
const PATIENCE: Duration = Duration::from_secs(5);
/// For a session that was found: its turn at the server, the cancel, and the server's hanging up.
const WORK: Duration = Duration::from_mins(2);
/// Questions of relatives that are being read. Those whose session is here are bounded by the sessions.
const MOST_READ: usize = 64;
/// Processes remembered: those that have ended are forgotten first, then the oldest.
const MOST: usize = 32;
const FOUND: u8 = b'Y';
/// It has the session; another answer says when all is done.
const AT_WORK: u8 = b'W';
const NOT_FOUND: u8 = b'N';
/// It has too much to do to look.
const BUSY: u8 = b'B';

/// What the others know of a cancel request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GenerationAnswer {
    /// One of them has the session, and has done what was to be done.
    Found,
    NotFound,
    /// Too much is being asked, of this process or of another one.
    Busy,
    /// One of them could not be asked, and no other has the session.
    Unasked,
}

/// Another process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Generation {
    /// Of its socket.
    pub name: String,
    /// Of its user.
    pub uid: u32,
}

/// The other processes.
#[derive(Debug)]
pub struct Generations {
    own: String,
    others: Mutex<Vec<Generation>>,
}

impl Default for Generations {
    fn default() -> Self {
        let own = u128::from_be_bytes(random());
        Self {
            own: format!("trunkline-{own:032x}"),
            others: Mutex::default(),
        }
    }
}

impl Generations {
    /// The name under which this process answers.
    pub fn own(&self) -> &str {
        &self.own
    }

    /// This process and the others that live, those that were there first before those that came later.
    pub fn family(&self) -> Vec<Generation> {
        self.forget_ended();
        let mut family = self.others().clone();
        family.push(Generation {
            name: self.own.clone(),
            uid: geteuid().as_raw(),
        });
        family
    }

    /// From now on these are asked as well.
    pub fn add(&self, generations: impl IntoIterator<Item = Generation>) {
        let mut others = self.others();
        for generation in generations {
            if generation.name != self.own && !others.iter().any(|other| other.name == generation.name) {
                others.push(generation);
            }
        }
        let is_full = others.len() > MOST;
        drop(others);
        if is_full {
            self.forget_ended();
            let mut others = self.others();
            let excess = others.len().saturating_sub(MOST);
            if excess > 0 {
                warn!(
                    processes = excess,
                    "too many processes of this router live; cancel requests do not find the sessions of the oldest"
                );
            }
            others.drain(..excess);
        }
    }

    /// Whether there is nobody to ask.
    pub(super) fn is_alone(&self) -> bool {
        self.others().is_empty()
    }

    /// Asks all of them at once. How many do so at a time is the caller's to bound.
    pub(super) async fn ask(&self, request: &CancelRequest) -> GenerationAnswer {
        let others = self.others().clone();
        if others.is_empty() {
            return GenerationAnswer::NotFound;
        }
        let mut asked = JoinSet::new();
        for generation in others {
            let question = question(request);
            asked.spawn(async move {
                let answer = ask_one(&generation, &question).await;
                (generation, answer)
            });
        }
        let mut all = GenerationAnswer::NotFound;
        while let Some(joined) = asked.join_next().await {
            match joined {
                Ok((_, Ok(GenerationAnswer::Found))) => return GenerationAnswer::Found,
                Ok((_, Ok(GenerationAnswer::NotFound))) => {}
                Ok((_, Ok(answer))) => all = answer,
                // It has ended, and no other process can have its name.
                Ok((generation, Err(error))) if has_ended(&error) => {
                    self.others().retain(|other| *other != generation);
                }
                Ok((Generation { name, .. }, Err(error))) => {
                    debug!(name, %error, "another process of this router cannot be asked");
                    if all == GenerationAnswer::NotFound {
                        all = GenerationAnswer::Unasked;
                    }
                }
                Err(_panicked) => {}
            }
        }
        all
    }

    /// Nobody answers by their names any more.
    fn forget_ended(&self) {
        let ended = |generation: &Generation| knock(generation).is_err_and(|error| has_ended(&error));
        // A connection that is made and closed is a question that was not asked.
        self.others().retain(|generation| !ended(generation));
    }

    /// Whether whoever asks may.
    fn knows(&self, stream: &UnixStream) -> bool {
        let own = geteuid().as_raw();
        stream.peer_cred().is_ok_and(|peer| {
            let uid = peer.uid();
            uid == own || uid == 0 || self.others().iter().any(|other| other.uid == uid)
        })
    }

    fn others(&self) -> std::sync::MutexGuard<'_, Vec<Generation>> {
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

/// Connects, or says why not, at once.
fn knock(generation: &Generation) -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // A full queue is an error then, not a wait.
    socket.set_nonblocking(true)?;
    socket.connect(&SockAddr::unix(format!("\0{}", generation.name))?)?;
    Ok(socket)
}

async fn ask_one(generation: &Generation, question: &[u8]) -> io::Result<GenerationAnswer> {
    let mut stream = UnixStream::from_std(net::UnixStream::from(knock(generation)?))?;
    if stream.peer_cred()?.uid() != generation.uid {
        // Somebody else has the name: the process that had it has ended.
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let asked = async {
        stream.write_all(question).await?;
        stream.read_u8().await
    };
    let mut answer = timeout(PATIENCE, asked).await??;
    if answer == AT_WORK {
        answer = timeout(WORK, stream.read_u8()).await??;
    }
    Ok(match answer {
        FOUND => GenerationAnswer::Found,
        NOT_FOUND => GenerationAnswer::NotFound,
        _ => GenerationAnswer::Busy,
    })
}

fn has_ended(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, PermissionDenied};
    matches!(error.kind(), ConnectionRefused | PermissionDenied)
}

/// Answers the others' questions until `stop`, on the runtime it is called on.
///
/// # Errors
/// The socket cannot be made.
pub fn answer(shared: &Arc<Shared>, stop: CancellationToken) -> io::Result<()> {
    let address = SocketAddr::from_abstract_name(shared.generations.own())?;
    let listener = net::UnixListener::bind_addr(&address)?;
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    let permits = Arc::new(Semaphore::new(MOST_READ));
    let accepting = Arc::clone(shared);
    shared.tasks.spawn(async move {
        loop {
            // Those that come meanwhile wait in the socket's queue; whoever asks has a bound of its own.
            let next = async {
                let permit = Arc::clone(&permits).acquire_owned().await;
                (permit, listener.accept().await)
            };
            let (permit, accepted) = tokio::select! {
                () = stop.cancelled() => return,
                next = next => next,
            };
            let Ok((stream, _unnamed)) = accepted else {
                // Out of descriptors, most likely.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            if !accepting.generations.knows(&stream) {
                continue;
            }
            let shared = Arc::clone(&accepting);
            accepting.tasks.spawn(async move {
                // Whoever asked may be gone.
                let _ = converse(&shared, stream, permit).await;
            });
        }
    });
    Ok(())
}

/// One question and its answer. `permit` is for the reading.
async fn converse<P>(shared: &Arc<Shared>, mut stream: UnixStream, permit: P) -> io::Result<()> {
    let request = timeout(PATIENCE, read(&mut stream)).await??;
    drop(permit);
    let answer = match cancel::here(shared, &request) {
        None => NOT_FOUND,
        Some(session) => {
            // A byte finds room in a new connection.
            stream.write_u8(AT_WORK).await?;
            match cancel::for_relative(shared, &session).await {
                GenerationAnswer::Found => FOUND,
                GenerationAnswer::NotFound => NOT_FOUND,
                GenerationAnswer::Busy | GenerationAnswer::Unasked => BUSY,
            }
        }
    };
    stream.write_u8(answer).await
}

async fn read(stream: &mut UnixStream) -> io::Result<CancelRequest> {
    let process_id = stream.read_u32().await?;
    let length = usize::from(stream.read_u16().await?);
    if !CANCEL_KEY_LENGTHS.contains(&length) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut key = vec![0; length];
    stream.read_exact(&mut key).await?;
    Ok(CancelRequest {
        process_id,
        key: Bytes::from(key),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::io::{Read, Write};

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

    fn named(name: &str) -> Generation {
        Generation {
            name: name.to_owned(),
            uid: geteuid().as_raw(),
        }
    }

    /// A process that says this, and what it was asked.
    fn answering(name: &str, answer: u8) -> std::thread::JoinHandle<[u8; 10]> {
        let listener = listen(name);
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = [0; 10];
            stream.read_exact(&mut asked).unwrap();
            stream.write_all(&[answer]).unwrap();
            asked
        })
    }

    #[tokio::test]
    async fn who_has_ended_is_forgotten_and_who_is_silent_holds_nobody_up() {
        let generations = Generations::default();
        assert_eq!(generations.ask(&request()).await, GenerationAnswer::NotFound);
        let (silent, knowing) = (Generations::default(), Generations::default());
        let _silent = listen(silent.own());
        let answering = answering(knowing.own(), FOUND);
        generations.add([silent.own(), "trunkline-gone", knowing.own()].map(named));
        generations.add([generations.own(), silent.own()].map(named));
        // The silent one would take PATIENCE.
        let found = timeout(PATIENCE / 2, generations.ask(&request())).await;
        assert_eq!(found.unwrap(), GenerationAnswer::Found);
        assert_eq!(&answering.join().unwrap(), b"\0\0\0\x07\0\x040123");
        let family = generations.family();
        let expected = [silent.own(), generations.own()].map(named);
        assert_eq!(family, expected, "who lives, neither itself nor anybody twice");
    }

    #[tokio::test]
    async fn who_cannot_look_is_told_from_who_has_nothing() {
        let (first, second) = (Generations::default(), Generations::default());
        let generations = Generations::default();
        let (nothing, busy) = (answering(first.own(), NOT_FOUND), answering(second.own(), BUSY));
        generations.add([first.own(), second.own()].map(named));
        assert_eq!(generations.ask(&request()).await, GenerationAnswer::Busy);
        nothing.join().unwrap();
        busy.join().unwrap();
        assert_eq!(
            generations.ask(&request()).await,
            GenerationAnswer::NotFound,
            "both have ended"
        );
        // It hangs up.
        let third = Generations::default();
        let listener = listen(third.own());
        generations.add([named(third.own())]);
        let hanging_up = std::thread::spawn(move || drop(listener.accept().unwrap()));
        assert_eq!(generations.ask(&request()).await, GenerationAnswer::Unasked);
        hanging_up.join().unwrap();
    }

    #[tokio::test]
    async fn who_takes_the_name_of_another_user_is_not_asked() {
        let (generations, squatter) = (Generations::default(), Generations::default());
        let listener = listen(squatter.own());
        generations.add([Generation {
            name: squatter.own().to_owned(),
            uid: geteuid().as_raw() + 1,
        }]);
        assert_eq!(generations.ask(&request()).await, GenerationAnswer::NotFound);
        let (mut stream, _) = listener.accept().unwrap();
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard).unwrap();
        assert!(heard.is_empty());
        assert_eq!(generations.family().len(), 1, "it is forgotten");
    }

    #[test]
    fn those_that_have_ended_make_room_for_those_that_live() {
        let (generations, alive) = (Generations::default(), Generations::default());
        let _alive = listen(alive.own());
        generations.add([named(alive.own())]);
        generations.add((0..MOST + 3).map(|number| named(&format!("trunkline-ended-{number}"))));
        assert_eq!(generations.family(), [alive.own(), generations.own()].map(named));
    }
}
