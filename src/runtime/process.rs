//! Another process, identified by a descriptor. The kernel may reuse the number of an ended
//! process; the descriptor always means the same process.

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
    /// To be called on a runtime, while the number certainly belongs to that process.
    ///
    /// # Errors
    /// The process has ended and was reaped; no descriptor is left.
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

    /// Waits until the process has ended. Cancel safe.
    pub(super) async fn ended(&self) {
        // It fails only while the runtime is ending.
        let _ = self.descriptor.readable().await;
    }

    pub(super) fn kill(&self) {
        // It fails if the process has ended or belongs to another user.
        let _ = pidfd_send_signal(&self.descriptor, Signal::KILL);
    }

    /// Makes the process read its configuration again.
    pub(super) fn hang_up(&self) -> io::Result<()> {
        Ok(pidfd_send_signal(&self.descriptor, Signal::HUP)?)
    }
}
