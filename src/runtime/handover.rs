//! A process takes the place of another on the same host: the conversation by which it gets the listening sockets and
//! whatever else a client or an operator would miss.
//!
//! ```text
//! new process                       old process
//! "handover\n"                  →
//!                               ←   its offer, and each socket
//! looks around, starts to serve
//! "I serve"                     →
//!                                   stops listening
//!                               ←   "then I do no longer"
//!                                   its sessions finish
//! ```
//! Guarantees: at any moment one of the two accepts, so that no connection is refused; until the new process serves, the
//! old one goes on as if nothing had been asked, whatever becomes of the new one. Sessions never move. Only processes of
//! the same user and root's talk to each other. Every wait is bounded.
//!
//! The conversation is blocking; it goes over the control socket (`docs/operations.md`, "Upgrade").

use std::collections::{BTreeMap, HashMap};
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg, sockopt,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::state_file::{self, Kept};
use crate::cluster::ClusterHandle;
use crate::cluster::snapshot::{Leader, MemberName, Snapshot};
use crate::frontend::listen::{Inheritance, Inherited, Place};

const VERSION: u32 = 1;
/// For each step but [`START`].
const PATIENCE: Duration = Duration::from_secs(10);
/// For the new process to serve: clusters have 10 s to look around, passphrase commands 10 s each.
pub(super) const START: Duration = Duration::from_mins(2);
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
    Version(u32),
    #[error("the other process said what makes no sense: {0}")]
    Nonsense(String),
    #[error(transparent)]
    Io(io::Error),
}

impl From<io::Error> for HandoverError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
                Self::HungUp
            }
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Self::Late,
            _ => Self::Io(error),
        }
    }
}

/// What the old process gives beside the sockets.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Offer {
    version: u32,
    /// In the order in which they follow.
    sockets: Vec<Passed>,
    /// What it sees of its clusters.
    clusters: BTreeMap<String, Seen>,
    /// What operators have set, as the state file has it.
    kept: serde_json::Value,
    /// Where it and those before it are asked about cancel requests.
    relatives: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Passed {
    place: Place,
    owns_file: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct Seen {
    led: bool,
    up: Vec<String>,
}

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
    pub(super) fn new(
        sockets: &[Inherited],
        clusters: &HashMap<Arc<str>, ClusterHandle>,
        kept: &Kept,
        relatives: Vec<String>,
    ) -> Self {
        let passed = |inherited: &Inherited| Passed {
            place: inherited.place.clone(),
            owns_file: inherited.owns_file,
        };
        Self {
            version: VERSION,
            sockets: sockets.iter().map(passed).collect(),
            clusters: clusters
                .iter()
                .map(|(name, cluster)| (name.to_string(), Seen::of(&cluster.snapshot())))
                .collect(),
            kept: serde_json::from_slice(&state_file::text(kept)).unwrap_or_default(),
            relatives,
        }
    }
}

/// That the new process serves.
#[derive(Debug, Serialize, Deserialize)]
struct Serving {
    /// Where it is asked about cancel requests.
    relative: String,
}

/// The new process, as the old one knows it once it serves.
#[derive(Debug)]
pub(super) struct Taker {
    socket: UnixStream,
    pub(super) process_id: u32,
    pub(super) relative: String,
}

/// Gives everything to whoever asked on `socket`, and waits until it serves.
///
/// # Errors
/// It does not, and has nothing then.
pub(super) fn give(
    mut socket: UnixStream,
    offer: &Offer,
    sockets: &[Inherited],
) -> Result<Taker, HandoverError> {
    let peer = sockopt::socket_peercred(&socket).map_err(io::Error::from)?;
    socket.set_write_timeout(Some(PATIENCE))?;
    write(&mut socket, offer)?;
    for inherited in sockets {
        pass(&socket, inherited.socket.as_fd())?;
    }
    socket.set_read_timeout(Some(START))?;
    let Serving { relative } = read(&mut socket)?;
    Ok(Taker {
        socket,
        process_id: peer.pid.as_raw_nonzero().get().unsigned_abs(),
        relative,
    })
}

impl Taker {
    /// Nobody listens here any more.
    pub(super) fn confirm(mut self) -> Result<(), HandoverError> {
        write(&mut self.socket, &())
    }
}

/// What the new process has got.
#[derive(Debug)]
pub(super) struct Taken {
    socket: UnixStream,
    pub(super) process_id: u32,
    clusters: BTreeMap<String, Seen>,
    pub(super) kept: Kept,
    pub(super) relatives: Vec<String>,
}

/// Asks the process whose control socket is at `path` for everything.
///
/// # Errors
/// Why there is nothing.
pub(super) fn take(path: &Path) -> Result<(Taken, Inheritance), HandoverError> {
    let mut socket =
        UnixStream::connect(path).map_err(|error| HandoverError::Nobody(path.to_owned(), error))?;
    let peer = sockopt::socket_peercred(&socket).map_err(io::Error::from)?;
    let own = nix::unistd::geteuid().as_raw();
    if own != 0 && ![own, 0].contains(&peer.uid.as_raw()) {
        return Err(HandoverError::Stranger);
    }
    socket.set_write_timeout(Some(PATIENCE))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.write_all(super::control::HANDOVER.as_bytes())?;
    let offer: Offer = read(&mut socket)?;
    if offer.version != VERSION {
        return Err(HandoverError::Version(offer.version));
    }
    if offer.sockets.len() > MOST_SOCKETS {
        return Err(HandoverError::Nonsense("too many sockets".to_owned()));
    }
    let kept = serde_json::to_vec(&offer.kept).map_err(nonsense)?;
    let kept = state_file::parse(&kept).map_err(nonsense)?;
    let mut sockets = Vec::new();
    for Passed { place, owns_file } in offer.sockets {
        sockets.push(Inherited {
            place,
            socket: accept(&socket)?,
            owns_file,
        });
    }
    let taken = Taken {
        socket,
        process_id: peer.pid.as_raw_nonzero().get().unsigned_abs(),
        clusters: offer.clusters,
        kept,
        relatives: offer.relatives,
    };
    Ok((taken, Inheritance::new(sockets)))
}

impl Taken {
    /// Until this process sees what the other one saw.
    ///
    /// # Errors
    /// The clusters, a sentence each, whose leader it does not see, while the other one did.
    pub(super) async fn warm(&self, clusters: &HashMap<Arc<str>, ClusterHandle>) -> Result<(), Vec<String>> {
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
        // Without a replica there is no reason to stay with the old process.
        let _ = timeout(WARM_UP, looking).await;
        let faults: Vec<String> = both()
            .filter(|(_, seen, cluster)| seen.led && !is_led(&cluster.snapshot()))
            .map(|(name, ..)| {
                format!(
                    "clusters.{name}: no leader was seen within {} s, and the process before sees one",
                    WARM_UP.as_secs()
                )
            })
            .collect();
        if faults.is_empty() { Ok(()) } else { Err(faults) }
    }

    /// Says that this process serves, and waits until the other one does no longer listen.
    ///
    /// # Errors
    /// It is not known whether it does.
    pub(super) fn serving(mut self, relative: String) -> Result<(), HandoverError> {
        write(&mut self.socket, &Serving { relative })?;
        read(&mut self.socket)
    }
}

fn nonsense(error: impl std::fmt::Display) -> HandoverError {
    HandoverError::Nonsense(error.to_string())
}

/// A length of four bytes, and JSON.
fn write(socket: &mut UnixStream, message: &impl Serialize) -> Result<(), HandoverError> {
    let text = serde_json::to_vec(message).map_err(nonsense)?;
    let length = u32::try_from(text.len()).map_err(nonsense)?;
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend(text);
    Ok(socket.write_all(&bytes)?)
}

/// Not a byte more than the message: descriptors may follow.
fn read<T: DeserializeOwned>(socket: &mut UnixStream) -> Result<T, HandoverError> {
    let mut length = [0; 4];
    socket.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length);
    if length > MOST_BYTES {
        return Err(HandoverError::Nonsense(format!("a message of {length} bytes")));
    }
    let mut text = Vec::new();
    socket.take(length.into()).read_to_end(&mut text)?;
    if text.len() < length as usize {
        return Err(HandoverError::HungUp);
    }
    serde_json::from_slice(&text).map_err(nonsense)
}

/// One descriptor, with a byte that carries it.
fn pass(socket: &UnixStream, descriptor: BorrowedFd<'_>) -> Result<(), HandoverError> {
    let descriptors = [descriptor];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(HandoverError::Nonsense("a descriptor finds no room".to_owned()));
    }
    let sent = sendmsg(socket, &[IoSlice::new(b"S")], &mut control, SendFlags::NOSIGNAL);
    match sent.map_err(io::Error::from)? {
        1 => Ok(()),
        _ => Err(HandoverError::HungUp),
    }
}

/// The descriptor that comes with the next byte.
fn accept(socket: &UnixStream) -> Result<OwnedFd, HandoverError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let mut into = [IoSliceMut::new(&mut byte)];
    let received = recvmsg(socket, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC);
    if received.map_err(io::Error::from)?.bytes == 0 {
        return Err(HandoverError::HungUp);
    }
    let passed = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    passed.ok_or_else(|| HandoverError::Nonsense("a byte without its descriptor".to_owned()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::config::BindAddress;

    #[test]
    fn sockets_pass_with_all_that_is_said_of_them() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let inherited = || Inherited {
            place: Place::Ip(address),
            socket: listener.try_clone().unwrap().into(),
            owns_file: false,
        };
        let sockets = [inherited()];
        let offer = Offer::new(&sockets, &HashMap::new(), &Kept::default(), vec!["a".to_owned()]);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control");
        let control = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let old = std::thread::spawn(move || {
            let (mut socket, _) = control.accept().unwrap();
            let mut asked = [0; super::super::control::HANDOVER.len()];
            socket.read_exact(&mut asked).unwrap();
            let taker = give(socket, &offer, &sockets).unwrap();
            let about = (taker.process_id, taker.relative.clone());
            taker.confirm().unwrap();
            about
        });
        let (taken, mut inheritance) = take(&path).unwrap();
        assert_eq!(taken.process_id, std::process::id());
        assert_eq!(taken.relatives, ["a"]);
        assert!(
            inheritance
                .take(&BindAddress::Any { port: address.port() })
                .is_none()
        );
        let socket = inheritance.take(&BindAddress::Ip(address)).unwrap().socket;
        assert!(inheritance.left().is_empty());
        taken.serving("b".to_owned()).unwrap();
        assert_eq!(old.join().unwrap(), (std::process::id(), "b".to_owned()));
        drop(listener);
        let listener = TcpListener::from(socket);
        let _client = TcpStream::connect(address).unwrap();
        listener.accept().unwrap();
    }

    #[test]
    fn who_makes_no_sense_gets_nowhere() {
        let told = |bytes: Vec<u8>| {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("control");
            let control = std::os::unix::net::UnixListener::bind(&path).unwrap();
            let old = std::thread::spawn(move || {
                let (mut socket, _) = control.accept().unwrap();
                let mut asked = [0; super::super::control::HANDOVER.len()];
                socket.read_exact(&mut asked).unwrap();
                let _ = socket.write_all(&bytes);
            });
            let error = take(&path).unwrap_err().to_string();
            old.join().unwrap();
            error
        };
        let message = |text: &str| {
            let mut bytes = u32::try_from(text.len()).unwrap().to_be_bytes().to_vec();
            bytes.extend(text.as_bytes());
            bytes
        };
        let offer = |version: u32, sockets: &str| {
            message(&format!(
                r#"{{"version":{version},"sockets":[{sockets}],"clusters":{{}},"kept":{{"version":1,"clusters":{{}}}},"relatives":[]}}"#
            ))
        };
        assert!(told(Vec::new()).contains("hung up"));
        assert!(told(vec![0, 0, 0, 9, b'{']).contains("hung up"));
        assert!(told(vec![255; 8]).contains("4294967295 bytes"));
        assert!(told(message("[]")).contains("no sense"));
        assert!(told(offer(2, "")).contains("version 2"));
        let socket = r#"{"place":{"any":5},"owns_file":false}"#;
        assert!(told(offer(1, socket)).contains("hung up"));
        let mut without = offer(1, socket);
        without.push(b'S');
        assert!(told(without).contains("without its descriptor"));
        let nowhere = take(Path::new("/nonexistent")).unwrap_err().to_string();
        assert!(nowhere.contains("without --take-over"), "{nowhere}");
    }
}
