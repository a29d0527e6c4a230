//! Notifies the service manager of the state of the process: systemd's `sd_notify` protocol, one
//! datagram each.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use tokio::time::timeout;
use tracing::warn;

/// Time for a busy service manager to accept a datagram that it must get.
const SEND_LIMIT: Duration = Duration::from_secs(5);

/// Without `NOTIFY_SOCKET` it does nothing.
#[derive(Debug)]
pub(super) struct Notifier(Option<(UnixDatagram, SocketAddr)>);

impl Notifier {
    /// `socket` is the value of `NOTIFY_SOCKET`: a path, or an abstract name after `@`.
    pub(super) fn new(socket: Option<&OsStr>) -> Self {
        let Some(name) = socket.map(OsStr::as_bytes).filter(|name| !name.is_empty()) else {
            return Self(None);
        };
        match open(name) {
            Ok(open) => Self(Some(open)),
            Err(error) => {
                warn!(%error, "NOTIFY_SOCKET cannot be used: the service manager is not notified");
                Self(None)
            }
        }
    }

    /// The process serves, with the new or the old configuration.
    pub(super) fn ready(&self) {
        self.send("READY=1");
    }

    /// The process reloads until [`Self::ready`].
    pub(super) fn reloading(&self) {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC);
        let microseconds = now.map_or(0, |now| now.tv_sec() * 1_000_000 + now.tv_nsec() / 1000);
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={microseconds}"));
    }

    /// Names the process that the service manager is to watch. Waits for a busy service manager.
    ///
    /// # Errors
    /// The service manager did not accept the datagram.
    pub(super) async fn main_process(&self, process_id: u32) -> io::Result<()> {
        let Some((_, address)) = &self.0 else {
            return Ok(());
        };
        let state = format!("MAINPID={process_id}");
        let sending = async {
            // Only a connected socket wakes when the service manager has read datagrams from its
            // queue.
            let socket = UnixDatagram::unbound()?;
            socket.set_nonblocking(true)?;
            socket.connect_addr(address)?;
            let socket = tokio::net::UnixDatagram::from_std(socket)?;
            socket.send(state.as_bytes()).await.map(drop)
        };
        timeout(SEND_LIMIT, sending)
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    pub(super) fn stopping(&self) {
        self.send("STOPPING=1");
    }

    /// The process ends within `time`. This may be longer than the service manager's own limit.
    pub(super) fn stopping_within(&self, time: Duration) {
        self.send(&format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={}", time.as_micros()));
    }

    fn send(&self, state: &str) {
        if let Some((socket, address)) = &self.0
            && let Err(error) = socket.send_to_addr(state.as_bytes(), address)
        {
            warn!(%error, "the service manager could not be notified");
        }
    }
}

fn open(name: &[u8]) -> io::Result<(UnixDatagram, SocketAddr)> {
    let address = match name.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(OsStr::from_bytes(name))?,
    };
    let socket = UnixDatagram::unbound()?;
    // A service manager that is stuck does not delay the router.
    socket.set_nonblocking(true)?;
    Ok((socket, address))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn the_notifier_waits_for_a_busy_service_manager() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let filling = UnixDatagram::unbound().unwrap();
        filling.set_nonblocking(true).unwrap();
        while filling.send_to(b"full", &path).is_ok() {}
        let notifier = Notifier::new(Some(path.as_os_str()));
        let mut sending = std::pin::pin!(notifier.main_process(7));
        let early = timeout(Duration::from_millis(20), &mut sending).await;
        assert!(early.is_err(), "there is no room for it");
        let mut heard = [0; 64];
        while manager.set_nonblocking(true).is_ok() && manager.recv(&mut heard).is_ok() {}
        sending.await.unwrap();
        let length = manager.recv(&mut heard).unwrap();
        assert_eq!(&heard[..length], b"MAINPID=7");
    }
}
