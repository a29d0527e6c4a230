//! A process takes the place of another on the same host: the conversation by which it gets the listening sockets and
//! whatever else a client or an operator would miss.
//!
//! ```text
//! new process                       old process
//! "handover\n", who it is       →
//!                               ←   its offer, and each socket
//! looks around, has everything
//! bound, accepts nothing
//! "ready", and what it keeps    →
//!                                   writes the state file for the last time, leaves the files of
//!                                   sockets
//!                               ←   "yours": the commit
//! accepts, answers HTTP
//! "serving"                     →
//!                                   tells systemd
//!                               ←   end of what it says
//! tells systemd that it serves      stops accepting; its sessions finish
//! ```
//! Guarantees: up to "yours" the old process serves and the new one changes nothing; whatever becomes of the new one, the
//! old one goes on as if nothing had been asked, and without "yours" the new one ends. From "yours" on the new one serves; if
//! it ends before it has said so, the old one, which accepts still, takes everything back. So there is always one of
//! the two that accepts, and never two for longer than this takes. Sessions never move. Only processes of the same user
//! and root's talk to each other. Every wait is bounded; whoever is dropped in the middle hangs up.
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
/// For each step but the new process's start.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// For the new process to be ready, from its start: clusters have 10 s to look around, passphrase commands 10 s each.
pub(super) const START: Duration = Duration::from_mins(2);
/// The new process gives up as much sooner than the old one.
const SOONER: Duration = Duration::from_secs(15);
/// For the new process to see what the old one sees.
const WARM_UP: Duration = Duration::from_secs(10);
/// Far more than an offer has.
const MOST_BYTES: u32 = 4 * 1024 * 1024;
/// Far more than there are listeners.
const MOST_SOCKETS: usize = 1024;

/// Why a process does not take the place of another.
#[derive(Debug, thiserror::Error)]
pub(super) enum HandoverError {
    #[error("nobody answers on {}: start without --take-over", .0.display())]
    Nobody(PathBuf, #[source] io::Error),
    #[error("the process on the control socket belongs to another user")]
    Stranger,
    #[error("the other process hung up; its log says why")]
    HungUp,
    #[error("the other process did not answer in time")]
    Late,
    #[error("the other process's handover is version {0}, and this one's {VERSION}: restart instead")]
    Version(u64),
    #[error("the other process said what makes no sense: {0}")]
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

/// Who the new process is.
#[derive(Debug, Serialize, Deserialize)]
struct Asks {
    version: u32,
    /// Of the program.
    release: String,
    /// Where it is asked about cancel requests.
    #[serde(rename = "relative")]
    generation: String,
}

/// What the old process gives beside the sockets.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Offer {
    version: u32,
    /// Its own. The credentials of a listening socket that it has got itself are those of who made it.
    process_id: u32,
    /// For the new process to be ready.
    limit_ms: u64,
    /// In the order in which they follow.
    sockets: Vec<Passed>,
    /// What it sees of its clusters.
    clusters: BTreeMap<String, Seen>,
    /// What operators have set, as the state file has it.
    kept: serde_json::Value,
    /// Where it and those before it are asked about cancel requests.
    #[serde(rename = "relatives")]
    generations: Vec<Generation>,
    /// Whether an operator has drained the router.
    #[serde(default)]
    is_drained: bool,
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

/// That the new process waits for nothing but the word.
#[derive(Debug, Serialize, Deserialize)]
struct Ready {
    /// What it listens on of what it has got.
    kept: Vec<BoundPlace>,
}

/// That the place is the new process's.
#[derive(Debug, Serialize, Deserialize)]
struct Yours {}

/// That the new process serves.
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
        }
    }
}

/// The new process, which is ready and waits for the word.
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

/// Gives everything to whoever asked on `socket`, and waits until it is ready. Dropped in between it hangs up.
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
            // So that it knows, too.
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

    /// Gives it the word, and waits until it serves.
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
            // It may have got the word and be about to serve. Who hangs up has ended.
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
}

/// Asks the process whose control socket is at `path` for everything. `generation`: where this one is asked about cancel
/// requests.
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
    };
    // Of another user's process it knows nothing that counts here.
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

    /// Says that nothing is missing but the word, and waits for it. `left`: what of the other one's sockets nobody
    /// listens on here.
    ///
    /// # Errors
    /// It does not come: the other process serves, and this one must not.
    pub(super) async fn ready(mut self, left: &[BoundPlace]) -> Result<PreparedCluster, HandoverError> {
        self.places.retain(|place| !left.contains(place));
        let kept = self.places;
        let word = async {
            write(&mut self.socket, &Ready { kept }).await?;
            read(&mut self.socket).await
        };
        let Yours {} = timeout_at(self.deadline, word).await??;
        Ok(PreparedCluster(self.socket))
    }
}

/// The new process, whose the place is.
#[derive(Debug)]
pub(super) struct PreparedCluster(UnixStream);

impl PreparedCluster {
    /// Says that this process serves, and waits until the other one has told the service manager, which listens to the main
    /// process alone.
    ///
    /// # Errors
    /// The other process is no more, most likely.
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

/// Until the other process has, which has nothing to say now. Cancel safe.
async fn hung_up(socket: &UnixStream) -> HandoverError {
    loop {
        if let Err(error) = socket.readable().await {
            return error.into();
        }
        match socket.try_read(&mut [0]) {
            Ok(0) => return HandoverError::HungUp,
            Ok(_) => return HandoverError::Nonsense("a word too early".to_owned()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return error.into(),
        }
    }
}

/// A length of four bytes, and JSON.
async fn write(socket: &mut UnixStream, message: &impl Serialize) -> Result<(), HandoverError> {
    let text = serde_json::to_vec(message).map_err(nonsense)?;
    let length = u32::try_from(text.len()).map_err(nonsense)?;
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend(text);
    Ok(timeout(PATIENCE, socket.write_all(&bytes)).await??)
}

/// Not a byte more than the message: descriptors may follow.
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

/// Its version first: another one may look different otherwise.
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
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::net::{TcpListener, TcpStream};

    use tokio::net::UnixListener;

    use super::super::control::HANDOVER;
    use super::*;
    use crate::config::BindAddress;

    async fn asked(control: &UnixListener) -> UnixStream {
        let (mut socket, _) = control.accept().await.unwrap();
        let mut asked = [0; HANDOVER.len()];
        socket.read_exact(&mut asked).await.unwrap();
        socket
    }

    #[tokio::test]
    async fn sockets_pass_with_all_that_is_said_of_them() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let inherited = |place| Inherited {
            place,
            socket: listener.try_clone().unwrap().into(),
            file: None,
        };
        let (here, elsewhere) = (BoundPlace::Ip(address), BoundPlace::Any(1));
        let sockets = vec![inherited(here.clone()), inherited(elsewhere.clone())];
        let before = Generation {
            name: "a".to_owned(),
            uid: nix::unistd::geteuid().as_raw(),
        };
        let stranger = Generation {
            uid: 4_000_000,
            ..before.clone()
        };
        let generations = vec![before.clone(), stranger];
        let offer = Offer::new(
            &sockets,
            &HashMap::new(),
            &AdminOverrides::default(),
            true,
            generations,
        );
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control");
        let control = UnixListener::bind(&path).unwrap();
        let old = tokio::spawn(async move {
            let deadline = Instant::now() + START;
            let mut heir = give(asked(&control).await, offer, sockets, deadline)
                .await
                .unwrap();
            let about = (heir.process.id(), heir.generation.name.clone(), heir.kept.clone());
            heir.commit().await.unwrap();
            about
        });
        let (mut taken, mut inheritance) = take(&path, "b").await.unwrap();
        assert_eq!(taken.process_id, std::process::id());
        assert_eq!(taken.generations, [before]);
        assert!(taken.is_drained);
        assert!(
            inheritance
                .take(&BindAddress::Any { port: address.port() })
                .is_none()
        );
        let socket = inheritance.take(&BindAddress::Ip(address)).unwrap().socket;
        assert_eq!(inheritance.places(), [elsewhere]);
        taken.warm(&HashMap::new()).await.unwrap();
        let successor = taken.ready(&inheritance.places()).await.unwrap();
        successor.serving().await.unwrap();
        assert_eq!(
            old.await.unwrap(),
            (std::process::id(), "b".to_owned(), vec![here])
        );
        drop(listener);
        let listener = TcpListener::from(socket);
        listener.set_nonblocking(false).unwrap();
        let _client = TcpStream::connect(address).unwrap();
        listener.accept().unwrap();
    }

    fn message(text: &str) -> Vec<u8> {
        let mut bytes = u32::try_from(text.len()).unwrap().to_be_bytes().to_vec();
        bytes.extend(text.as_bytes());
        bytes
    }

    /// Why nothing is taken from who says this.
    async fn told(bytes: Vec<u8>) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control");
        let control = UnixListener::bind(&path).unwrap();
        let old = tokio::spawn(async move {
            let mut socket = asked(&control).await;
            let Asks { generation, .. } = read_versioned(&mut socket).await.unwrap();
            assert_eq!(generation, "b");
            let _ = socket.write_all(&bytes).await;
        });
        let error = take(&path, "b").await.unwrap_err().to_string();
        old.await.unwrap();
        error
    }

    #[tokio::test]
    async fn who_makes_no_sense_gets_nowhere() {
        let offer = |sockets: &str| {
            message(&format!(
                r#"{{"version":{VERSION},"process_id":1,"limit_ms":9,"sockets":[{sockets}],"clusters":{{}},"kept":{{"version":1,"clusters":{{}}}},"relatives":[]}}"#
            ))
        };
        assert!(told(Vec::new()).await.contains("hung up"));
        assert!(told(vec![0, 0, 0, 9, b'{']).await.contains("hung up"));
        assert!(told(vec![255; 8]).await.contains("4294967295 bytes"));
        assert!(told(message("[]")).await.contains("no sense"));
        // However it looks otherwise.
        assert!(told(message(r#"{"version":9}"#)).await.contains("is version 9"));
        let socket = r#"{"place":{"any":5},"file":null}"#;
        assert!(told(offer(socket)).await.contains("hung up"));
        let mut without = offer(socket);
        without.push(b'S');
        assert!(told(without).await.contains("without its descriptor"));
        let nowhere = take(Path::new("/nonexistent"), "b")
            .await
            .unwrap_err()
            .to_string();
        assert!(nowhere.contains("without --take-over"), "{nowhere}");
    }

    #[tokio::test]
    async fn another_version_is_told_so_on_both_sides() {
        let (mut new, old) = UnixStream::pair().unwrap();
        let offer = Offer::new(
            &[],
            &HashMap::new(),
            &AdminOverrides::default(),
            false,
            Vec::new(),
        );
        let asks = serde_json::json!({"version": 9, "new": "words"});
        write(&mut new, &asks).await.unwrap();
        let error = give(old, offer, Vec::new(), Instant::now() + START)
            .await
            .unwrap_err();
        assert!(error.to_string().contains("is version 9"), "{error}");
        let answer: serde_json::Value = read(&mut new).await.unwrap();
        assert_eq!(answer["version"], VERSION);
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_late_is_given_up_and_the_new_process_gives_up_first() {
        let (mut new, old) = UnixStream::pair().unwrap();
        let offer = Offer::new(
            &[],
            &HashMap::new(),
            &AdminOverrides::default(),
            false,
            Vec::new(),
        );
        let deadline = Instant::now() + START;
        let giving = tokio::spawn(give(old, offer, Vec::new(), deadline));
        let asks = Asks {
            version: VERSION,
            release: "1".to_owned(),
            generation: "b".to_owned(),
        };
        write(&mut new, &asks).await.unwrap();
        let offer: Offer = read_versioned(&mut new).await.unwrap();
        let limit = Duration::from_millis(offer.limit_ms);
        assert!(limit > START / 2 && limit + SOONER <= START, "{limit:?}");
        // It is never ready.
        let late = giving.await.unwrap().unwrap_err();
        assert!(matches!(late, HandoverError::Late), "{late}");
        assert!(Instant::now() >= deadline);

        let (_old, socket) = UnixStream::pair().unwrap();
        let taken = Taken {
            socket,
            deadline: Instant::now() + limit,
            process_id: 1,
            places: Vec::new(),
            clusters: BTreeMap::new(),
            kept: AdminOverrides::default(),
            generations: Vec::new(),
            is_drained: false,
        };
        let late = taken.ready(&[]).await.unwrap_err();
        assert!(matches!(late, HandoverError::Late), "{late}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_the_word_and_is_silent_is_killed() {
        let mut sleeping = tokio::process::Command::new("sleep")
            .arg("600")
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let (mut new, socket) = UnixStream::pair().unwrap();
        let mut heir = Heir {
            socket,
            process: Process::open(sleeping.id().unwrap()).unwrap(),
            release: String::new(),
            generation: Generation {
                name: String::new(),
                uid: 0,
            },
            kept: Vec::new(),
        };
        let late = heir.commit().await.unwrap_err();
        assert!(matches!(late, HandoverError::Late), "{late}");
        let Yours {} = read(&mut new).await.unwrap();
        let status = sleeping.wait().await.unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
    }
}
