//! A process takes the place of another on the same host: the conversation in which it gets the listening sockets and
//! everything else that a client or an operator would miss.
//!
//! ```text
//! new process                       old process
//! "handover\n", its identity     →
//!                               ←   its offer, and each socket
//! probes the clusters, binds
//! everything, accepts nothing
//! "ready", and what it keeps    →
//!                                   writes the state file for the last time, leaves the files of
//!                                   sockets
//!                               ←   "yours": the commit
//! accepts, answers HTTP
//! "serving"                     →
//!                                   notifies systemd
//!                               ←   end of what it says
//! notifies systemd                  stops accepting; its sessions finish
//! ```
//! Guarantees: until "yours" the old process serves and the new one changes nothing. If the new one fails, the old one
//! goes on as if nothing had been asked; without "yours" the new one ends. From "yours" on the new one serves. If it ends
//! before it has said so, the old one, which still accepts, takes everything back. So one of the two always accepts, and
//! both for no longer than this takes. Sessions never move. Only processes of the same user and of root talk to each
//! other. Every wait has a limit. A side that is dropped in the middle hangs up.
//!
//! The conversation goes over the control socket (`docs/operations.md`, "Upgrade").

use std::collections::{BTreeMap, HashMap};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::time::{Instant, timeout, timeout_at};

use super::process::Process;
use super::state_file::{self, AdminOverrides};
use crate::cluster::ClusterHandle;
use crate::cluster::snapshot::{Leader, MemberName, Snapshot};
use crate::listen::{BoundPlace, Inheritance, Inherited, PassedFile};
use crate::session::generations::Generation;

const VERSION: u32 = 2;
/// Time limit of each step except the new process's start.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// Time limit for the new process to be ready, from its start: probing the clusters takes up to 10 s, each passphrase
/// command 10 s.
pub(super) const START: Duration = Duration::from_mins(2);
/// The new process gives up this much sooner than the old one.
const SOONER: Duration = Duration::from_secs(15);
/// Time limit for the new process to see what the old one sees.
const WARM_UP: Duration = Duration::from_secs(10);
/// Limit of a message: far more than an offer has.
const MOST_BYTES: u32 = 4 * 1024 * 1024;
/// Limit of sockets: far more than there are listeners.
const MOST_SOCKETS: usize = 1024;

/// Why a process does not take the place of another.
#[derive(Debug, thiserror::Error)]
pub(super) enum HandoverError {
    #[error("no process answers on {}: start without --take-over", .0.display())]
    Nobody(PathBuf, #[source] io::Error),
    #[error("the process on the control socket belongs to another user")]
    Stranger,
    #[error("the other process hung up; its log says why")]
    HungUp,
    #[error("the other process did not answer in time")]
    Late,
    #[error("the other process's handover is version {0}, and this one's {VERSION}: restart instead")]
    Version(u64),
    #[error("a message of the other process makes no sense: {0}")]
    Nonsense(String),
    #[error("{}", .0.join("; "))]
    Cold(Vec<String>),
    #[error(transparent)]
    Io(io::Error),
}

impl From<io::Error> for HandoverError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
                Self::HungUp
            }
            _ => Self::Io(error),
        }
    }
}

impl From<tokio::time::error::Elapsed> for HandoverError {
    fn from(_: tokio::time::error::Elapsed) -> Self {
        Self::Late
    }
}

/// What the new process says of itself.
#[derive(Debug, Serialize, Deserialize)]
struct Asks {
    version: u32,
    /// Of the program.
    release: String,
    /// The name of its socket for other processes of the router.
    #[serde(rename = "relative")]
    generation: String,
}

/// What the old process gives besides the sockets.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Offer {
    version: u32,
    /// Its own. The credentials of a listening socket that it inherited itself are those of the process that made it.
    process_id: u32,
    /// For the new process to be ready.
    limit_ms: u64,
    /// In the order in which they follow.
    sockets: Vec<Passed>,
    /// What it sees of its clusters.
    clusters: BTreeMap<String, Seen>,
    /// What operators have set, as the state file has it.
    kept: serde_json::Value,
    /// It and the processes before it, as other processes reach them.
    #[serde(rename = "relatives")]
    generations: Vec<Generation>,
    /// Whether an operator has drained the router.
    #[serde(default)]
    is_drained: bool,
    /// The numbers of the new process's sessions are higher: no two sessions of one router have the same.
    #[serde(default)]
    first_session: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Passed {
    place: BoundPlace,
    file: Option<PassedFile>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Seen {
    led: bool,
    up: Vec<String>,
}

/// The new process waits for nothing but the commit.
#[derive(Debug, Serialize, Deserialize)]
struct Ready {
    /// What it listens on of what it has got.
    kept: Vec<BoundPlace>,
}

/// The commit: the new process serves from now on.
#[derive(Debug, Serialize, Deserialize)]
struct Yours {}

/// The new process serves.
#[derive(Debug, Serialize, Deserialize)]
struct Serving {}

impl Seen {
    fn of(snapshot: &Snapshot) -> Self {
        let up = snapshot.members.iter().filter(|member| member.health.up);
        Self {
            led: is_led(snapshot),
            up: up.map(|member| member.name.as_str().to_owned()).collect(),
        }
    }

    /// Whether the other process sees as much.
    fn is_seen(&self, snapshot: &Snapshot) -> bool {
        let is_up = |name: &String| {
            snapshot
                .member(&MemberName::new(name.as_str()))
                .is_some_and(|member| member.health.up)
        };
        (!self.led || is_led(snapshot)) && self.up.iter().all(is_up)
    }
}

fn is_led(snapshot: &Snapshot) -> bool {
    matches!(snapshot.leader, Leader::Verified { .. })
}

impl Offer {
    /// Of this process, which passes `sockets` on.
    pub(super) fn new(
        sockets: &[Inherited],
        clusters: &HashMap<Arc<str>, ClusterHandle>,
        kept: &AdminOverrides,
        is_drained: bool,
        generations: Vec<Generation>,
        last_session: u64,
    ) -> Self {
        let passed = |inherited: &Inherited| Passed {
            place: inherited.place.clone(),
            file: inherited.file,
        };
        Self {
            version: VERSION,
            process_id: std::process::id(),
            limit_ms: 0,
            sockets: sockets.iter().map(passed).collect(),
            clusters: clusters
                .iter()
                .map(|(name, cluster)| (name.to_string(), Seen::of(&cluster.snapshot())))
                .collect(),
            kept: serde_json::from_slice(&state_file::text(kept)).unwrap_or_default(),
            generations,
            is_drained,
            first_session: first_session(last_session),
        }
    }
}

/// Far more than the sessions that begin in the old process while the new one gets ready.
const SESSION_NUMBERS: u64 = 1_000_000;

/// The next round number that sessions of the old process do not reach.
fn first_session(last: u64) -> u64 {
    (last / SESSION_NUMBERS + 2) * SESSION_NUMBERS
}

/// The new process, which is ready and waits for the commit.
#[derive(Debug)]
pub(super) struct Heir {
    socket: UnixStream,
    pub(super) process: Process,
    /// Of its program.
    pub(super) release: String,
    pub(super) generation: Generation,
    /// The places where it listens as well.
    pub(super) kept: Vec<BoundPlace>,
}

/// Gives everything to the process at the other end of `socket`, and waits until it is ready. Dropped in between it hangs up.
///
/// # Errors
/// It is not by `deadline`, and has nothing then.
pub(super) async fn give(
    mut socket: UnixStream,
    mut offer: Offer,
    sockets: Vec<Inherited>,
    deadline: Instant,
) -> Result<Heir, HandoverError> {
    let Asks {
        release, generation, ..
    } = match timeout(PATIENCE, read_versioned(&mut socket)).await? {
        Err(error @ HandoverError::Version(_)) => {
            // So that the other process can name it, too.
            write(&mut socket, &serde_json::json!({ "version": VERSION })).await?;
            return Err(error);
        }
        asked => asked?,
    };
    let peer = socket.peer_cred()?;
    let generation = Generation {
        name: generation,
        uid: peer.uid(),
    };
    let process_id = peer.pid().and_then(|id| u32::try_from(id).ok());
    let process = Process::open(process_id.ok_or(HandoverError::Stranger)?)?;
    let limit = deadline.duration_since(Instant::now()).saturating_sub(SOONER);
    offer.limit_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
    write(&mut socket, &offer).await?;
    for inherited in &sockets {
        let passing = socket.async_io(Interest::WRITABLE, || pass(&socket, inherited.socket.as_fd()));
        timeout(PATIENCE, passing).await??;
    }
    // The other one has its own.
    drop(sockets);
    let Ready { kept } = timeout_at(deadline, read(&mut socket)).await??;
    Ok(Heir {
        socket,
        process,
        release,
        generation,
        kept,
    })
}

impl Heir {
    /// There is nothing more to say to it.
    pub(super) async fn dismiss(&mut self) {
        // It may have ended.
        let _ = self.socket.shutdown().await;
    }

    /// Commits, and waits until it serves.
    ///
    /// # Errors
    /// It does not say so, and is no more.
    pub(super) async fn commit(&mut self) -> Result<(), HandoverError> {
        let serves = async {
            write(&mut self.socket, &Yours {}).await?;
            let Serving {} = timeout(PATIENCE, read(&mut self.socket)).await??;
            Ok(())
        };
        let serves = serves.await;
        if let Err(error) = &serves
            && !matches!(error, HandoverError::HungUp)
        {
            // It may have got the commit and be about to serve. One that hangs up has ended.
            self.process.kill();
            // Where it may not be killed there is nothing more to do.
            let _ = timeout(PATIENCE, self.process.ended()).await;
        }
        serves
    }
}

/// What the new process has got.
#[derive(Debug)]
pub(super) struct Taken {
    socket: UnixStream,
    /// For this process to be ready.
    deadline: Instant,
    pub(super) process_id: u32,
    places: Vec<BoundPlace>,
    clusters: BTreeMap<String, Seen>,
    pub(super) kept: AdminOverrides,
    pub(super) generations: Vec<Generation>,
    /// Whether an operator has drained the router.
    pub(super) is_drained: bool,
    /// The numbers of this process's sessions are higher.
    pub(super) first_session: u64,
}

/// Asks the process whose control socket is at `path` for everything. `generation`: the name of this process's socket for
/// other processes of the router.
///
/// # Errors
/// Why there is nothing.
pub(super) async fn take(path: &Path, generation: &str) -> Result<(Taken, Inheritance), HandoverError> {
    let mut socket = UnixStream::connect(path)
        .await
        .map_err(|error| HandoverError::Nobody(path.to_owned(), error))?;
    let (own, peer) = (nix::unistd::geteuid().as_raw(), socket.peer_cred()?.uid());
    if own != 0 && ![own, 0].contains(&peer) {
        return Err(HandoverError::Stranger);
    }
    socket.write_all(super::control::HANDOVER.as_bytes()).await?;
    let asks = Asks {
        version: VERSION,
        release: env!("CARGO_PKG_VERSION").to_owned(),
        generation: generation.to_owned(),
    };
    write(&mut socket, &asks).await?;
    // A reload may be under way there.
    let offer: Offer = timeout(START, read_versioned(&mut socket)).await??;
    if offer.sockets.len() > MOST_SOCKETS {
        return Err(HandoverError::Nonsense("too many sockets".to_owned()));
    }
    let kept = serde_json::to_vec(&offer.kept).map_err(nonsense)?;
    let kept = state_file::parse(&kept).map_err(nonsense)?;
    let mut sockets = Vec::new();
    for Passed { place, file } in offer.sockets {
        let receiving = socket.async_io(Interest::READABLE, || receive(&socket));
        let received = timeout(PATIENCE, receiving).await??;
        sockets.push(Inherited {
            place,
            socket: received
                .ok_or_else(|| HandoverError::Nonsense("a byte without its descriptor".to_owned()))?,
            file,
        });
    }
    let mut taken = Taken {
        socket,
        deadline: Instant::now() + Duration::from_millis(offer.limit_ms).min(START),
        process_id: offer.process_id,
        places: sockets.iter().map(|inherited| inherited.place.clone()).collect(),
        clusters: offer.clusters,
        kept,
        generations: offer.generations,
        is_drained: offer.is_drained,
        first_session: offer.first_session,
    };
    // The word of another user's process does not count for names of a third user.
    taken
        .generations
        .retain(|generation| [own, peer, 0].contains(&generation.uid));
    Ok((taken, Inheritance::new(sockets)))
}

impl Taken {
    /// Until this process sees what the other one saw.
    ///
    /// # Errors
    /// It does not see a leader where the other one does; the other one has hung up.
    pub(super) async fn warm(
        &mut self,
        clusters: &HashMap<Arc<str>, ClusterHandle>,
    ) -> Result<(), HandoverError> {
        let both = || {
            self.clusters
                .iter()
                .filter_map(|(name, seen)| Some((name, seen, clusters.get(&**name)?)))
        };
        let looking = async {
            for (_, seen, cluster) in both() {
                let mut snapshots = cluster.subscribe();
                // The sender lives as long as the handle.
                let _ = snapshots.wait_for(|snapshot| seen.is_seen(snapshot)).await;
            }
        };
        tokio::select! {
            // Without a replica there is no reason to stay with the old process.
            _ = timeout(WARM_UP, looking) => {}
            error = hung_up(&self.socket) => return Err(error),
        }
        let faults: Vec<String> = both()
            .filter(|(_, seen, cluster)| seen.led && !is_led(&cluster.snapshot()))
            .map(|(name, ..)| {
                format!(
                    "clusters.{name}: no leader was seen within {} s, and the process before sees one",
                    WARM_UP.as_secs()
                )
            })
            .collect();
        if faults.is_empty() {
            Ok(())
        } else {
            Err(HandoverError::Cold(faults))
        }
    }

    /// Says that nothing is missing but the commit, and waits for it. `left`: the sockets that this process does not listen
    /// on.
    ///
    /// # Errors
    /// The commit does not come: the other process serves, and this one must not.
    pub(super) async fn ready(mut self, left: &[BoundPlace]) -> Result<Committed, HandoverError> {
        self.places.retain(|place| !left.contains(place));
        let kept = self.places;
        let word = async {
            write(&mut self.socket, &Ready { kept }).await?;
            read(&mut self.socket).await
        };
        let Yours {} = timeout_at(self.deadline, word).await??;
        Ok(Committed(self.socket))
    }
}

/// The new process after the commit.
#[derive(Debug)]
pub(super) struct Committed(UnixStream);

impl Committed {
    /// Says that this process serves, and waits until the other one has notified the service manager, which listens to the
    /// main process only.
    ///
    /// # Errors
    /// The other process has ended, most likely.
    pub(super) async fn serving(mut self) -> Result<(), HandoverError> {
        write(&mut self.0, &Serving {}).await?;
        match timeout(PATIENCE, hung_up(&self.0)).await? {
            HandoverError::HungUp => Ok(()),
            error => Err(error),
        }
    }
}

fn nonsense(error: impl std::fmt::Display) -> HandoverError {
    HandoverError::Nonsense(error.to_string())
}

/// Until the other process hangs up; it has nothing to say now. Cancel safe.
async fn hung_up(socket: &UnixStream) -> HandoverError {
    loop {
        if let Err(error) = socket.readable().await {
            return error.into();
        }
        match socket.try_read(&mut [0]) {
            Ok(0) => return HandoverError::HungUp,
            Ok(_) => return HandoverError::Nonsense("a message too early".to_owned()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return error.into(),
        }
    }
}

/// Writes a length of four bytes, and JSON.
async fn write(socket: &mut UnixStream, message: &impl Serialize) -> Result<(), HandoverError> {
    let text = serde_json::to_vec(message).map_err(nonsense)?;
    let length = u32::try_from(text.len()).map_err(nonsense)?;
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend(text);
    Ok(timeout(PATIENCE, socket.write_all(&bytes)).await??)
}

/// Reads no byte more than the message: descriptors may follow.
async fn read<T: DeserializeOwned>(socket: &mut UnixStream) -> Result<T, HandoverError> {
    let length = socket.read_u32().await?;
    if length > MOST_BYTES {
        return Err(HandoverError::Nonsense(format!("a message of {length} bytes")));
    }
    let mut text = Vec::new();
    socket.take(length.into()).read_to_end(&mut text).await?;
    if text.len() < length as usize {
        return Err(HandoverError::HungUp);
    }
    serde_json::from_slice(&text).map_err(nonsense)
}

/// Looks at the version first: a message of another version may have another form.
async fn read_versioned<T: DeserializeOwned>(socket: &mut UnixStream) -> Result<T, HandoverError> {
    let message: serde_json::Value = read(socket).await?;
    match message.get("version").and_then(serde_json::Value::as_u64) {
        Some(version) if version == u64::from(VERSION) => serde_json::from_value(message).map_err(nonsense),
        Some(version) => Err(HandoverError::Version(version)),
        None => Err(HandoverError::Nonsense("a message without a version".to_owned())),
    }
}

/// One descriptor, with a byte that carries it.
fn pass(socket: &UnixStream, descriptor: BorrowedFd<'_>) -> io::Result<()> {
    let descriptors = [descriptor];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::Error::other("a descriptor finds no room"));
    }
    sendmsg(socket, &[IoSlice::new(b"S")], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// The descriptor that comes with the next byte; `None` where the byte has none.
fn receive(socket: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let mut into = [IoSliceMut::new(&mut byte)];
    if recvmsg(socket, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC)?.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    }))
}

#[cfg(any(test, fuzzing))]
#[path = "handover_fuzzing.rs"]
pub(crate) mod fuzzing;

#[cfg(test)]
#[path = "handover_tests.rs"]
mod tests;
