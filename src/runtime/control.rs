//! The control socket. A process of the same user or of root sends a request in one line and gets
//! one line of JSON, or it is a new process of this router that takes over.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;
use tracing::warn;

use crate::admin::ReloadAnswer;
use crate::config::BindAddress;
use crate::listen::{ClientSocket, Connection, OnAccept, PeerAddress};

/// Time limit for a request to arrive, and for its answer to be read.
const REQUEST_LIMIT: Duration = Duration::from_secs(5);
/// Concurrent conversations.
const MAX_CONVERSATIONS: usize = 8;
/// The request for a reload.
pub(crate) const RELOAD: &str = "reload\n";
/// The request for the path of the process's configuration file.
pub(crate) const FILE: &str = "file\n";
/// The request for a new process that replaces this one.
pub(crate) const UPGRADE: &str = "upgrade\n";
/// The request of a new process that replaces this one.
pub(super) const HANDOVER: &str = "handover\n";
/// The length of the longest request.
const MAX_REQUEST_BYTES: usize = HANDOVER.len();

/// A request to the control thread, which carries out one at a time and answers at the end.
#[derive(Debug)]
pub(super) enum ControlRequest {
    Reload(oneshot::Sender<ReloadAnswer>),
    Upgrade(oneshot::Sender<UpgradeAnswer>),
    HandOver(UnixStream),
}

/// Sends requests to the control thread. Cheap to clone.
pub(super) type Requests = mpsc::Sender<ControlRequest>;

/// Which configuration a process reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileAnswer {
    /// Absolute, without symbolic links if the file is there.
    pub(crate) path: PathBuf,
}

/// The outcome of an upgrade.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UpgradeAnswer {
    /// The process that serves now; `None`: the old one does.
    pub(crate) process_id: Option<u32>,
    /// The version of that process; empty where there is none.
    pub(crate) release: String,
    /// The process that got the request. It finishes its sessions if it has been replaced.
    pub(crate) old_process_id: u32,
    pub(crate) old_release: String,
    /// The number of those sessions.
    pub(crate) sessions: usize,
    /// The number of its other connections: clients that log in or wait for a server, and
    /// connections that are ending.
    #[serde(default)]
    pub(crate) other_connections: usize,
    /// Why the upgrade failed, a sentence each.
    pub(crate) faults: Vec<String>,
}

pub(super) fn address(path: &Path) -> BindAddress {
    BindAddress::Unix {
        path: path.to_owned(),
        mode: 0o600,
    }
}

/// Serves the clients of the control socket.
pub(super) struct ControlHandler {
    pub(super) requests: Requests,
    pub(super) tracker: TaskTracker,
    /// The configuration file, as the process was started with it.
    file: PathBuf,
    permits: Arc<Semaphore>,
}

impl ControlHandler {
    pub(super) fn new(requests: Requests, tracker: TaskTracker, file: PathBuf) -> Self {
        Self {
            requests,
            tracker,
            file,
            permits: Arc::new(Semaphore::new(MAX_CONVERSATIONS)),
        }
    }
}

impl OnAccept for ControlHandler {
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
            warn!(uid = peer.uid, "the control socket does not serve this user");
            return;
        }
        let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else {
            warn!(
                most = MAX_CONVERSATIONS,
                "the control socket serves too many requests at once; one was refused"
            );
            return;
        };
        let (requests, file) = (self.requests.clone(), self.file.clone());
        self.tracker.spawn(async move {
            // The client may be gone before it gets the answer.
            let _gone = converse(socket, requests, file).await;
            drop(permit);
        });
    }
}

async fn converse(mut socket: UnixStream, requests: Requests, file: PathBuf) -> std::io::Result<()> {
    let request = timeout(REQUEST_LIMIT, line(&mut socket)).await??;
    match &*request {
        bytes if bytes == RELOAD.as_bytes() => {
            let (answer, answered) = oneshot::channel();
            ask(&mut socket, &requests, ControlRequest::Reload(answer), answered).await
        }
        bytes if bytes == FILE.as_bytes() => {
            let find = move || std::fs::canonicalize(&file).or_else(|_| std::path::absolute(&file));
            let path = spawn_blocking(find).await??;
            tell(&mut socket, &FileAnswer { path }).await
        }
        bytes if bytes == UPGRADE.as_bytes() => {
            let (answer, answered) = oneshot::channel();
            ask(&mut socket, &requests, ControlRequest::Upgrade(answer), answered).await
        }
        bytes if bytes == HANDOVER.as_bytes() => {
            // It fails only while the process is ending; then the socket closes.
            let _ = requests.send(ControlRequest::HandOver(socket)).await;
            Ok(())
        }
        _ => Ok(()),
    }
}

/// The request with its newline, and no byte after it.
async fn line(socket: &mut UnixStream) -> std::io::Result<Vec<u8>> {
    let mut line = Vec::with_capacity(MAX_REQUEST_BYTES);
    while line.len() < MAX_REQUEST_BYTES && !line.ends_with(b"\n") {
        line.push(socket.read_u8().await?);
    }
    Ok(line)
}

async fn ask(
    socket: &mut UnixStream,
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
    tell(socket, &answer).await
}

async fn tell(socket: &mut UnixStream, answer: &impl Serialize) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    timeout(REQUEST_LIMIT, socket.write_all(&line)).await?
}
