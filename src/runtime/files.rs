//! Files that are read while the router serves. The router stops waiting for a file system that does not answer (NFS
//! without its server); it holds one thread at most.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;

/// Why nothing was read. `Display` is a sentence for the operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unread {
    #[error("the files were not read within {} s; check the file systems they are on", .0.as_secs())]
    Late(Duration),
    #[error("the files are not read: an earlier attempt still waits for their file system")]
    Hangs,
    #[error("the files were not read because of an error in the router; see its log")]
    Panicked,
}

/// Reads one thing at a time, on another thread.
#[derive(Debug, Default)]
pub(super) struct FileReader {
    /// A read that took too long. It may never end.
    late: Mutex<Option<JoinHandle<()>>>,
}

impl FileReader {
    /// The result of `read`, within `limit`.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        limit: Duration,
        read: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Unread> {
        let hangs = self.late().as_ref().is_some_and(|reading| !reading.is_finished());
        if hangs {
            return Err(Unread::Hangs);
        }
        let (give, given) = oneshot::channel();
        let reading = spawn_blocking(move || {
            // The caller may have stopped waiting.
            let _ = give.send(read());
        });
        match timeout(limit, given).await {
            Ok(read) => read.map_err(|_| Unread::Panicked),
            Err(_elapsed) => {
                *self.late() = Some(reading);
                Err(Unread::Late(limit))
            }
        }
    }

    fn late(&self) -> std::sync::MutexGuard<'_, Option<JoinHandle<()>>> {
        self.late.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::mpsc;

    use super::*;

    const LONG: Duration = Duration::from_mins(1);

    #[tokio::test]
    async fn files_that_do_not_answer_are_given_up_on_and_hold_one_thread() {
        let reader = FileReader::default();
        assert_eq!(reader.read(LONG, || 7).await, Ok(7));
        let (answer, answers) = mpsc::channel::<()>();
        let limit = Duration::from_millis(1);
        let hung = reader.read(limit, move || answers.recv().is_ok());
        assert_eq!(hung.await, Err(Unread::Late(limit)));
        assert_eq!(reader.read(LONG, || 7).await, Err(Unread::Hangs));
        answer.send(()).unwrap();
        while reader.read(LONG, || 7).await != Ok(7) {
            tokio::task::yield_now().await;
        }
    }
}
