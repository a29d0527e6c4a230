//! A new process replaces an old one on the same host. In this conversation it gets the listening
//! sockets and everything else that a client or an operator would miss.
//!
//! ```text
//! new process                       old process
//! "handover\n", its identity     →
//!                               ←   its offer, and each socket
//! probes the clusters, binds
//! everything, accepts nothing
//! "ready", sockets it keeps     →
//!                                   writes the state file for the last time, releases the files
//!                                   of the sockets
//!                               ←   commit
//! accepts, answers HTTP
//! "serving"                     →
//!                                   notifies systemd
//!                               ←   hangs up
//! notifies systemd                  stops accepting; its sessions finish
//! ```
//! Guarantees: before the commit the old process serves and the new one changes nothing. If the new
//! process fails, the old one continues unchanged. Without the commit the new process ends. After
//! the commit the new process serves. If it ends before it confirms that, the old process, which
//! still accepts, takes everything back. So at least one of the two accepts at any time, and both
//! accept only during this conversation. Sessions never move. Only processes of the same user and
//! of root take part. Every wait has a time limit. A side that is dropped in the middle hangs up.
//!
//! The conversation goes over the control socket (`docs/service.md`, "Upgrade").

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
pub(super) const STEP_LIMIT: Duration = Duration::from_secs(10);
/// Time limit from the start of the new process until it is ready. Probing the clusters takes up to
/// 10 s, and so does each passphrase command.
pub(super) const START_LIMIT: Duration = Duration::from_mins(2);
/// The new process gives up this much earlier than the old one.
const START_MARGIN: Duration = Duration::from_secs(15);
/// Time limit for the new process to see what the old one sees.
const WARM_UP: Duration = Duration::from_secs(10);
/// The longest message: far longer than an offer.
const MAX_MESSAGE_BYTES: u32 = 4 * 1024 * 1024;
/// The limit of passed sockets: far more than there are listeners.
const MAX_SOCKETS: usize = 1024;

/// Why a process does not replace another one.
#[derive(Debug, thiserror::Error)]
pub(super) enum HandoverError {
    #[error("no process answers on {}: start without --take-over", .0.display())]
    NoProcess(PathBuf, #[source] io::Error),
    #[error("the process on the control socket belongs to another user")]
    OtherUser,
    #[error("the other process hung up; see its log")]
    HungUp,
    #[error("the other process did not answer in time")]
    TimedOut,
    #[error(
        "the handover of the other process is version {0}, and this process has version {VERSION}: restart instead"
    )]
    Version(u64),
    #[error("a message of the other process is malformed: {0}")]
    Malformed(String),
    #[error("{}", .0.join("; "))]
    NoLeader(Vec<String>),
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
        Self::TimedOut
    }
}

/// The request of the new process.
#[derive(Debug, Serialize, Deserialize)]
struct HandoverRequest {
    version: u32,
    /// The version of its program.
    release: String,
    /// The name of its socket for other processes of the router.
    #[serde(rename = "relative")]
    generation: String,
}

/// Everything that the old process passes on besides the sockets.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Offer {
    version: u32,
    /// The old process. A listening socket that it has inherited carries the credentials of the
    /// process that made the socket.
    process_id: u32,
    /// Time for the new process to be ready.
    limit_ms: u64,
    /// The sockets follow in this order.
    sockets: Vec<PassedSocket>,
    /// What the old process sees of its clusters.
    clusters: BTreeMap<String, SeenCluster>,
    /// The operators' settings, as in the state file.
    kept: serde_json::Value,
    /// The old process and the processes before it, as other processes reach them.
    #[serde(rename = "relatives")]
    generations: Vec<Generation>,
    /// Whether an operator has drained the router.
    #[serde(default)]
    is_drained: bool,
    /// The first session number of the new process. No two sessions of one router have the same
    /// number.
    #[serde(default)]
    first_session: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct PassedSocket {
    place: BoundPlace,
    file: Option<PassedFile>,
}

#[derive(Debug, Serialize, Deserialize)]
struct SeenCluster {
    led: bool,
    up: Vec<String>,
}

/// The new process is ready and waits for the commit.
#[derive(Debug, Serialize, Deserialize)]
struct Ready {
    /// The passed sockets on which it listens.
    kept: Vec<BoundPlace>,
}

/// The commit: the new process serves from now on.
#[derive(Debug, Serialize, Deserialize)]
struct Commit {}

/// The new process serves.
#[derive(Debug, Serialize, Deserialize)]
struct Serving {}

impl SeenCluster {
    fn of(snapshot: &Snapshot) -> Self {
        let up = snapshot.members.iter().filter(|member| member.health.up);
        Self {
            led: is_led(snapshot),
            up: up.map(|member| member.name.as_str().to_owned()).collect(),
        }
    }

    /// Whether `snapshot` shows at least as much.
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
    /// The offer of this process, which passes `sockets` on.
    pub(super) fn new(
        sockets: &[Inherited],
        clusters: &HashMap<Arc<str>, ClusterHandle>,
        kept: &AdminOverrides,
        is_drained: bool,
        generations: Vec<Generation>,
        last_session: u64,
    ) -> Self {
        let passed = |inherited: &Inherited| PassedSocket {
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
                .map(|(name, cluster)| (name.to_string(), SeenCluster::of(&cluster.snapshot())))
                .collect(),
            kept: serde_json::from_slice(&state_file::text(kept)).unwrap_or_default(),
            generations,
            is_drained,
            first_session: first_session(last_session),
        }
    }
}

/// Far more than the sessions that start in the old process while the new one gets ready.
const SESSION_NUMBERS: u64 = 1_000_000;

/// A round number that sessions of the old process do not reach.
fn first_session(last: u64) -> u64 {
    (last / SESSION_NUMBERS + 2) * SESSION_NUMBERS
}

/// The new process, which is ready and waits for the commit.
#[derive(Debug)]
pub(super) struct NewProcess {
    socket: UnixStream,
    pub(super) process: Process,
    /// The version of its program.
    pub(super) release: String,
    pub(super) generation: Generation,
    /// The places where it listens too.
    pub(super) kept: Vec<BoundPlace>,
}

/// Passes everything to the process at the other end of `socket`, and waits until it is ready.
/// Hangs up if dropped before.
///
/// # Errors
/// The other process is not ready by `deadline`. Then it keeps nothing.
pub(super) async fn give(
    mut socket: UnixStream,
    mut offer: Offer,
    sockets: Vec<Inherited>,
    deadline: Instant,
) -> Result<NewProcess, HandoverError> {
    let HandoverRequest {
        release, generation, ..
    } = match timeout(STEP_LIMIT, read_versioned(&mut socket)).await? {
        Err(error @ HandoverError::Version(_)) => {
            // The other process can then report this version.
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
    let process = Process::open(process_id.ok_or(HandoverError::OtherUser)?)?;
    let limit = deadline
        .duration_since(Instant::now())
        .saturating_sub(START_MARGIN);
    offer.limit_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
    write(&mut socket, &offer).await?;
    for inherited in &sockets {
        let passing = socket.async_io(Interest::WRITABLE, || pass(&socket, inherited.socket.as_fd()));
        timeout(STEP_LIMIT, passing).await??;
    }
    // The other process has its own descriptors.
    drop(sockets);
    let Ready { kept } = timeout_at(deadline, read(&mut socket)).await??;
    Ok(NewProcess {
        socket,
        process,
        release,
        generation,
        kept,
    })
}

impl NewProcess {
    /// Ends the conversation.
    pub(super) async fn finish(&mut self) {
        // The process may have ended.
        let _ = self.socket.shutdown().await;
    }

    /// Commits, and waits until the new process serves.
    ///
    /// # Errors
    /// The new process does not confirm that it serves, and has ended.
    pub(super) async fn commit(&mut self) -> Result<(), HandoverError> {
        let serves = async {
            write(&mut self.socket, &Commit {}).await?;
            let Serving {} = timeout(STEP_LIMIT, read(&mut self.socket)).await??;
            Ok(())
        };
        let serves = serves.await;
        if let Err(error) = &serves
            && !matches!(error, HandoverError::HungUp)
        {
            // It may have received the commit and be about to serve. A process that hangs up has
            // ended.
            self.process.kill();
            // If this process may not kill it, nothing more can be done.
            let _ = timeout(STEP_LIMIT, self.process.ended()).await;
        }
        serves
    }
}

/// The old process, and everything that the new process has received from it.
#[derive(Debug)]
pub(super) struct OldProcess {
    socket: UnixStream,
    /// The time at which this process must be ready.
    deadline: Instant,
    pub(super) process_id: u32,
    places: Vec<BoundPlace>,
    clusters: BTreeMap<String, SeenCluster>,
    pub(super) kept: AdminOverrides,
    pub(super) generations: Vec<Generation>,
    /// Whether an operator has drained the router.
    pub(super) is_drained: bool,
    /// The first session number of this process.
    pub(super) first_session: u64,
}

/// Asks the process whose control socket is at `path` to hand over. `generation` is the
/// name of this process's socket for other processes of the router.
///
/// # Errors
/// The old process passes nothing on.
pub(super) async fn take(path: &Path, generation: &str) -> Result<(OldProcess, Inheritance), HandoverError> {
    let mut socket = UnixStream::connect(path)
        .await
        .map_err(|error| HandoverError::NoProcess(path.to_owned(), error))?;
    let (own, peer) = (nix::unistd::geteuid().as_raw(), socket.peer_cred()?.uid());
    if own != 0 && ![own, 0].contains(&peer) {
        return Err(HandoverError::OtherUser);
    }
    socket.write_all(super::control::HANDOVER.as_bytes()).await?;
    let request = HandoverRequest {
        version: VERSION,
        release: env!("CARGO_PKG_VERSION").to_owned(),
        generation: generation.to_owned(),
    };
    write(&mut socket, &request).await?;
    // A reload may be in progress there.
    let offer: Offer = timeout(START_LIMIT, read_versioned(&mut socket)).await??;
    if offer.sockets.len() > MAX_SOCKETS {
        return Err(HandoverError::Malformed("too many sockets".to_owned()));
    }
    let kept = serde_json::to_vec(&offer.kept).map_err(malformed)?;
    let kept = state_file::parse(&kept).map_err(malformed)?;
    let mut sockets = Vec::new();
    for PassedSocket { place, file } in offer.sockets {
        let receiving = socket.async_io(Interest::READABLE, || receive(&socket));
        let received = timeout(STEP_LIMIT, receiving).await??;
        sockets.push(Inherited {
            place,
            socket: received
                .ok_or_else(|| HandoverError::Malformed("a byte without its descriptor".to_owned()))?,
            file,
        });
    }
    let mut old_process = OldProcess {
        socket,
        deadline: Instant::now() + Duration::from_millis(offer.limit_ms).min(START_LIMIT),
        process_id: offer.process_id,
        places: sockets.iter().map(|inherited| inherited.place.clone()).collect(),
        clusters: offer.clusters,
        kept,
        generations: offer.generations,
        is_drained: offer.is_drained,
        first_session: offer.first_session,
    };
    // A process of another user is not trusted to name processes of a third user.
    old_process
        .generations
        .retain(|generation| [own, peer, 0].contains(&generation.uid));
    Ok((old_process, Inheritance::new(sockets)))
}

impl OldProcess {
    /// Waits until this process sees what the old one saw.
    ///
    /// # Errors
    /// This process sees no leader of a cluster and the old one does; the old process has hung up.
    pub(super) async fn wait_for_same_view(
        &mut self,
        clusters: &HashMap<Arc<str>, ClusterHandle>,
    ) -> Result<(), HandoverError> {
        let both = || {
            self.clusters
                .iter()
                .filter_map(|(name, seen)| Some((name, seen, clusters.get(&**name)?)))
        };
        let waiting = async {
            for (_, seen, cluster) in both() {
                let mut snapshots = cluster.subscribe();
                // The sender lives as long as the handle.
                let _ = snapshots.wait_for(|snapshot| seen.is_seen(snapshot)).await;
            }
        };
        tokio::select! {
            // A missing replica is no reason to stay with the old process.
            _ = timeout(WARM_UP, waiting) => {}
            error = hung_up(&self.socket) => return Err(error),
        }
        let faults: Vec<String> = both()
            .filter(|(_, seen, cluster)| seen.led && !is_led(&cluster.snapshot()))
            .map(|(name, ..)| {
                format!(
                    "clusters.{name}: this process saw no leader within {} s, and the old process sees one",
                    WARM_UP.as_secs()
                )
            })
            .collect();
        if faults.is_empty() {
            Ok(())
        } else {
            Err(HandoverError::NoLeader(faults))
        }
    }

    /// Reports that this process is ready, and waits for the commit. `left` are the passed sockets
    /// on which this process does not listen.
    ///
    /// # Errors
    /// The commit does not come: the old process serves, and this one must not.
    pub(super) async fn ready(mut self, left: &[BoundPlace]) -> Result<Committed, HandoverError> {
        self.places.retain(|place| !left.contains(place));
        let kept = self.places;
        let commit = async {
            write(&mut self.socket, &Ready { kept }).await?;
            read(&mut self.socket).await
        };
        let Commit {} = timeout_at(self.deadline, commit).await??;
        Ok(Committed(self.socket))
    }
}

/// The new process after the commit.
#[derive(Debug)]
pub(super) struct Committed(UnixStream);

impl Committed {
    /// Reports that this process serves, and waits until the old one has notified the service
    /// manager, which accepts notifications from the main process only.
    ///
    /// # Errors
    /// Most likely the old process has ended.
    pub(super) async fn serving(mut self) -> Result<(), HandoverError> {
        write(&mut self.0, &Serving {}).await?;
        match timeout(STEP_LIMIT, hung_up(&self.0)).await? {
            HandoverError::HungUp => Ok(()),
            error => Err(error),
        }
    }
}

fn malformed(error: impl std::fmt::Display) -> HandoverError {
    HandoverError::Malformed(error.to_string())
}

/// Waits until the other process hangs up. A message at this time is an error. Cancel safe.
async fn hung_up(socket: &UnixStream) -> HandoverError {
    loop {
        if let Err(error) = socket.readable().await {
            return error.into();
        }
        match socket.try_read(&mut [0]) {
            Ok(0) => return HandoverError::HungUp,
            Ok(_) => return HandoverError::Malformed("a message that came too early".to_owned()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return error.into(),
        }
    }
}

/// Writes a length of four bytes, then JSON.
async fn write(socket: &mut UnixStream, message: &impl Serialize) -> Result<(), HandoverError> {
    let text = serde_json::to_vec(message).map_err(malformed)?;
    let length = u32::try_from(text.len()).map_err(malformed)?;
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend(text);
    Ok(timeout(STEP_LIMIT, socket.write_all(&bytes)).await??)
}

/// Reads the message and no further byte: descriptors may follow.
async fn read<T: DeserializeOwned>(socket: &mut UnixStream) -> Result<T, HandoverError> {
    let length = socket.read_u32().await?;
    if length > MAX_MESSAGE_BYTES {
        return Err(HandoverError::Malformed(format!("a message of {length} bytes")));
    }
    let mut text = Vec::new();
    socket.take(length.into()).read_to_end(&mut text).await?;
    if text.len() < length as usize {
        return Err(HandoverError::HungUp);
    }
    serde_json::from_slice(&text).map_err(malformed)
}

/// Checks the version first: a message of another version may have another form.
async fn read_versioned<T: DeserializeOwned>(socket: &mut UnixStream) -> Result<T, HandoverError> {
    let message: serde_json::Value = read(socket).await?;
    match message.get("version").and_then(serde_json::Value::as_u64) {
        Some(version) if version == u64::from(VERSION) => serde_json::from_value(message).map_err(malformed),
        Some(version) => Err(HandoverError::Version(version)),
        None => Err(HandoverError::Malformed("a message without a version".to_owned())),
    }
}

/// Sends one descriptor with a byte that carries it.
fn pass(socket: &UnixStream, descriptor: BorrowedFd<'_>) -> io::Result<()> {
    let descriptors = [descriptor];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::Error::other("the buffer has no room for a descriptor"));
    }
    sendmsg(socket, &[IoSlice::new(b"S")], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// The descriptor that comes with the next byte. `None` if the byte carries none.
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
