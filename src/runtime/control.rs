//! The control socket: a process of the same user, or root's, asks for something and gets one line of JSON.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;
use tracing::warn;

use super::reload::Requests;
use crate::config::BindAddress;
use crate::frontend::ClientAddress;
use crate::frontend::listen::{self, Accepted, Bound, ClientSocket};

/// For a request to come whole, and for its answer to be taken.
const PATIENCE: Duration = Duration::from_secs(5);
/// Conversations at once.
const MOST: usize = 8;
/// The request for a reload, a line.
pub(crate) const RELOAD: &str = "reload\n";

pub(super) fn bind(path: &Path) -> std::io::Result<Bound> {
    listen::bind(&BindAddress::Unix {
        path: path.to_owned(),
        mode: 0o600,
    })
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

impl Accepted for Desk {
    fn accepted(&self, socket: ClientSocket, address: ClientAddress) {
        let ClientSocket::Unix(socket) = socket else {
            return;
        };
        let ours = nix::unistd::geteuid().as_raw();
        let ClientAddress::Local(Some(peer)) = address else {
            return;
        };
        if peer.uid != ours && peer.uid != 0 {
            warn!(uid = peer.uid, "the control socket is not for this user");
            return;
        }
        let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else {
            return;
        };
        let requests = self.requests.clone();
        self.tracker.spawn(async move {
            // Whoever asked may be gone before it is answered.
            let _gone = converse(socket, requests).await;
            drop(permit);
        });
    }

    fn no_descriptor(&self, _socket: ClientSocket) {}

    fn has_room(&self) -> bool {
        true
    }
}

async fn converse(socket: UnixStream, requests: Requests) -> std::io::Result<()> {
    socket.set_nonblocking(true)?;
    let mut socket = tokio::net::UnixStream::from_std(socket)?;
    let mut asked = [0; RELOAD.len()];
    timeout(PATIENCE, socket.read_exact(&mut asked)).await??;
    if asked != *RELOAD.as_bytes() {
        return Ok(());
    }
    let (answer, answered) = oneshot::channel();
    if requests.send(answer).await.is_err() {
        return Ok(());
    }
    let Ok(answer) = answered.await else {
        return Ok(());
    };
    let mut line = serde_json::to_vec(&answer)?;
    line.push(b'\n');
    timeout(PATIENCE, socket.write_all(&line)).await?
}
