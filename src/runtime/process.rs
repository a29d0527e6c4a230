//! Another process, by a descriptor: its number may be another one's once it has ended, the descriptor never is.

use std::io;
use std::os::fd::OwnedFd;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

#[derive(Debug)]
pub(super) struct Process {
    id: u32,
    descriptor: AsyncFd<OwnedFd>,
}

impl Process {
    /// To be called on a runtime, while it is certain that the number is that process's.
    ///
    /// # Errors
    /// It has ended and is forgotten; there is no descriptor left.
    pub(super) fn open(id: u32) -> io::Result<Self> {
        let number = Pid::from_raw(id.cast_signed()).ok_or(io::ErrorKind::InvalidInput)?;
        let descriptor = pidfd_open(number, PidfdFlags::empty())?;
        // What replaces it is `unsafe`, for the sake of other types than an owned descriptor.
        #[expect(deprecated, reason = "sound with an owned descriptor")]
        let descriptor = AsyncFd::with_interest(descriptor, Interest::READABLE)?;
        Ok(Self { id, descriptor })
    }

    pub(super) fn id(&self) -> u32 {
        self.id
    }

    /// Until it has ended. Cancel safe.
    pub(super) async fn ended(&self) {
        // It fails only where the runtime is ending.
        let _ = self.descriptor.readable().await;
    }

    pub(super) fn kill(&self) {
        // It has ended, or is another user's.
        let _ = pidfd_send_signal(&self.descriptor, Signal::KILL);
    }

    /// Has it read its configuration again.
    pub(super) fn hang_up(&self) -> io::Result<()> {
        Ok(pidfd_send_signal(&self.descriptor, Signal::HUP)?)
    }
}
