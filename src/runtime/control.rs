//! The control socket: a process of the same user, or root's, asks for something by a line, and gets one line of JSON;
//! or is another router that takes this one's place.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;
use tracing::warn;

use crate::admin::ReloadAnswer;
use crate::config::BindAddress;
use crate::listen::{ClientSocket, Connection, OnAccept, PeerAddress};

/// For a request to come whole, and for its answer to be taken.
const PATIENCE: Duration = Duration::from_secs(5);
/// Conversations at once.
const MOST: usize = 8;
/// The request for a reload, a line.
pub(crate) const RELOAD: &str = "reload\n";
/// The request for a new process in the place of this one.
pub(crate) const UPGRADE: &str = "upgrade\n";
/// From a process that is to take the place of this one.
pub(super) const HANDOVER: &str = "handover\n";
/// As long as the longest request.
const MOST_ASKED: usize = HANDOVER.len();

/// What the control thread is asked to do, one at a time. The answer comes once it is done.
#[derive(Debug)]
pub(super) enum ControlRequest {
    Reload(oneshot::Sender<ReloadAnswer>),
    Upgrade(oneshot::Sender<UpgradeAnswer>),
    HandOver(tokio::net::UnixStream),
}

/// Asks the control thread. Cheap to clone.
pub(super) type Requests = mpsc::Sender<ControlRequest>;

/// What came of an upgrade, for who asked for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UpgradeAnswer {
    /// The process that serves now; `None`: the old one does.
    pub(crate) process_id: Option<u32>,
    /// Of the program that this process is; empty where there is none.
    pub(crate) release: String,
    /// The process that was asked, which finishes its sessions if it has been replaced.
    pub(crate) old_process_id: u32,
    pub(crate) old_release: String,
    /// How many those are.
    pub(crate) sessions: usize,
    /// Why not, a sentence each.
    pub(crate) faults: Vec<String>,
}

pub(super) fn address(path: &Path) -> BindAddress {
    BindAddress::Unix {
        path: path.to_owned(),
        mode: 0o600,
    }
}

/// Serves those who connect.
pub(super) struct Desk {
    pub(super) requests: Requests,
    pub(super) tracker: TaskTracker,
    permits: Arc<Semaphore>,
}

impl Desk {
    pub(super) fn new(requests: Requests, tracker: TaskTracker) -> Self {
        Self {
            requests,
            tracker,
            permits: Arc::new(Semaphore::new(MOST)),
        }
    }
}

impl OnAccept for Desk {
    type Room = ();

    async fn room(&self) {}

    fn accepted(&self, connection: Connection, (): ()) {
        let (ClientSocket::Unix(socket), PeerAddress::Unix(Some(peer))) =
            (connection.socket, connection.peer)
        else {
            return;
        };
        let ours = nix::unistd::geteuid().as_raw();
        if peer.uid != ours && peer.uid != 0 {
            warn!(uid = peer.uid, "the control socket is not for this user");
            return;
        }
        let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else {
            warn!(
                most = MOST,
                "too many ask over the control socket at once; one is not heard"
            );
            return;
        };
        let requests = self.requests.clone();
        self.tracker.spawn(async move {
            // Whoever asked may be gone before it is answered.
            let _gone = converse(socket, requests).await;
            drop(permit);
        });
    }
}

async fn converse(socket: UnixStream, requests: Requests) -> std::io::Result<()> {
    socket.set_nonblocking(true)?;
    let mut socket = tokio::net::UnixStream::from_std(socket)?;
    let asked = timeout(PATIENCE, line(&mut socket)).await??;
    match &*asked {
        asked if asked == RELOAD.as_bytes() => {
            let (answer, answered) = oneshot::channel();
            ask(&mut socket, &requests, ControlRequest::Reload(answer), answered).await
        }
        asked if asked == UPGRADE.as_bytes() => {
            let (answer, answered) = oneshot::channel();
            ask(&mut socket, &requests, ControlRequest::Upgrade(answer), answered).await
        }
        asked if asked == HANDOVER.as_bytes() => {
            // Where nobody takes it the process is ending, and the other one hears the socket close.
            let _ = requests.send(ControlRequest::HandOver(socket)).await;
            Ok(())
        }
        _ => Ok(()),
    }
}

/// What is asked, with its newline; not a byte more.
async fn line(socket: &mut tokio::net::UnixStream) -> std::io::Result<Vec<u8>> {
    let mut line = Vec::with_capacity(MOST_ASKED);
    while line.len() < MOST_ASKED && !line.ends_with(b"\n") {
        line.push(socket.read_u8().await?);
    }
    Ok(line)
}

async fn ask(
    socket: &mut tokio::net::UnixStream,
    requests: &Requests,
    request: ControlRequest,
    answered: oneshot::Receiver<impl Serialize>,
) -> std::io::Result<()> {
    if requests.send(request).await.is_err() {
        return Ok(());
    }
    let Ok(answer) = answered.await else {
        return Ok(());
    };
    let mut line = serde_json::to_vec(&answer)?;
    line.push(b'\n');
    timeout(PATIENCE, socket.write_all(&line)).await?
}
