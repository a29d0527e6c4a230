//! Tells the service manager where the process is in its life: systemd's `sd_notify` protocol, one datagram each.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use tokio::time::{sleep, timeout};
use tracing::warn;

/// For the service manager to take what it must know.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two attempts.
const AGAIN: Duration = Duration::from_millis(10);

/// Where nobody wants to know, nothing is told.
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
                warn!(%error, "NOTIFY_SOCKET cannot be used: the service manager is told nothing");
                Self(None)
            }
        }
    }

    /// It serves, by the configuration that was asked for or by the one before.
    pub(super) fn ready(&self) {
        self.tell("READY=1");
    }

    /// Until it says [`Self::ready`] again.
    pub(super) fn reloading(&self) {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC);
        let microseconds = now.map_or(0, |now| now.tv_sec() * 1_000_000 + now.tv_nsec() / 1000);
        self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={microseconds}"));
    }

    /// Which process is the one to watch, and to be listened to. A service manager that is busy is waited for.
    ///
    /// # Errors
    /// It does not know.
    pub(super) async fn main_process(&self, process_id: u32) -> io::Result<()> {
        let Some((socket, address)) = &self.0 else {
            return Ok(());
        };
        let state = format!("MAINPID={process_id}");
        let telling = async {
            loop {
                match socket.send_to_addr(state.as_bytes(), address) {
                    Ok(_) => return Ok(()),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => sleep(AGAIN).await,
                    Err(error) => return Err(error),
                }
            }
        };
        timeout(PATIENCE, telling)
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    pub(super) fn stopping(&self) {
        self.tell("STOPPING=1");
    }

    /// It ends, which may take as long as that: longer than the service manager would wait, perhaps.
    pub(super) fn stopping_within(&self, time: Duration) {
        self.tell(&format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={}", time.as_micros()));
    }

    fn tell(&self, state: &str) {
        if let Some((socket, address)) = &self.0
            && let Err(error) = socket.send_to_addr(state.as_bytes(), address)
        {
            warn!(%error, "the service manager could not be told");
        }
    }
}

fn open(name: &[u8]) -> io::Result<(UnixDatagram, SocketAddr)> {
    let address = match name.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(OsStr::from_bytes(name))?,
    };
    let socket = UnixDatagram::unbound()?;
    // The service manager may be stuck; we are not, for its sake.
    socket.set_nonblocking(true)?;
    Ok((socket, address))
}
