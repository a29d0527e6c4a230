//! Another process, by a descriptor. The kernel gives the number of an ended process to a new one; the descriptor always
//! means the same process.

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
    /// Call this on a runtime, while the number certainly belongs to that process.
    ///
    /// # Errors
    /// The process has ended and was reaped; there is no descriptor left.
    pub(super) fn open(id: u32) -> io::Result<Self> {
        let number = Pid::from_raw(id.cast_signed()).ok_or(io::ErrorKind::InvalidInput)?;
        let descriptor = pidfd_open(number, PidfdFlags::empty())?;
        // Its replacement is `unsafe`, because it also takes types other than an owned descriptor.
        #[expect(deprecated, reason = "sound with an owned descriptor")]
        let descriptor = AsyncFd::with_interest(descriptor, Interest::READABLE)?;
        Ok(Self { id, descriptor })
    }

    pub(super) fn id(&self) -> u32 {
        self.id
    }

    /// Waits until it has ended. Cancel safe.
    pub(super) async fn ended(&self) {
        // It fails only where the runtime is ending.
        let _ = self.descriptor.readable().await;
    }

    pub(super) fn kill(&self) {
        // It has ended, or belongs to another user.
        let _ = pidfd_send_signal(&self.descriptor, Signal::KILL);
    }

    /// Makes it read its configuration again.
    pub(super) fn hang_up(&self) -> io::Result<()> {
        Ok(pidfd_send_signal(&self.descriptor, Signal::HUP)?)
    }
}
