//! Reads files while the router serves. The router stops waiting for a file system that does not
//! answer (NFS without its server). Such a file system blocks at most one thread.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;

/// Why nothing was read. `Display` is a sentence for the operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum ReadError {
    #[error("the files were not read within {} s; check the file systems they are on", .0.as_secs())]
    TimedOut(Duration),
    #[error("the files are not read: an earlier attempt still waits for their file system")]
    StillReading,
    #[error("the files were not read because of an error in the router; see its log")]
    Panicked,
}

/// Reads files on another thread, one call at a time.
#[derive(Debug, Default)]
pub(super) struct FileReader {
    /// A read that took too long. It may never end.
    unfinished: Mutex<Option<JoinHandle<()>>>,
}

impl FileReader {
    /// The result of `read`, within `limit`.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        limit: Duration,
        read: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ReadError> {
        let is_reading = self
            .unfinished()
            .as_ref()
            .is_some_and(|reading| !reading.is_finished());
        if is_reading {
            return Err(ReadError::StillReading);
        }
        let (sender, receiver) = oneshot::channel();
        let reading = spawn_blocking(move || {
            // The caller may have stopped waiting.
            let _ = sender.send(read());
        });
        match timeout(limit, receiver).await {
            Ok(read) => read.map_err(|_| ReadError::Panicked),
            Err(_elapsed) => {
                *self.unfinished() = Some(reading);
                Err(ReadError::TimedOut(limit))
            }
        }
    }

    fn unfinished(&self) -> std::sync::MutexGuard<'_, Option<JoinHandle<()>>> {
        self.unfinished.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::mpsc;

    use super::*;

    const LONG: Duration = Duration::from_mins(1);

    #[tokio::test]
    async fn a_read_that_hangs_times_out_and_blocks_one_thread() {
        let reader = FileReader::default();
        assert_eq!(reader.read(LONG, || 7).await, Ok(7));
        let (answer, answers) = mpsc::channel::<()>();
        let limit = Duration::from_millis(1);
        let hung = reader.read(limit, move || answers.recv().is_ok());
        assert_eq!(hung.await, Err(ReadError::TimedOut(limit)));
        assert_eq!(reader.read(LONG, || 7).await, Err(ReadError::StillReading));
        answer.send(()).unwrap();
        while reader.read(LONG, || 7).await != Ok(7) {
            tokio::task::yield_now().await;
        }
    }
}
