//! The name of the operating system's user at the other end of a Unix socket.

use std::io;
use std::time::Duration;

use nix::unistd::{Uid, User};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

/// Time limit of one look-up: the name service may be a directory server.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Limit of simultaneous look-ups. Each occupies a thread until the name service returns, which may
/// take far longer than the time limit.
const MAX_RUNNING: usize = 16;

static RUNNING: Semaphore = Semaphore::const_new(MAX_RUNNING);

/// The name of a user of this host; `None` if no user has this id.
///
/// # Errors
/// The name service fails, or has not answered within 5 s. Then nothing is known about the user.
pub async fn user_name(uid: u32) -> io::Result<Option<String>> {
    let by_id = |uid| Ok(User::from_uid(Uid::from_raw(uid))?.map(|user| user.name));
    look_up(uid, by_id, &RUNNING, TIMEOUT).await
}

async fn look_up(
    uid: u32,
    by_id: fn(u32) -> io::Result<Option<String>>,
    running: &'static Semaphore,
    limit: Duration,
) -> io::Result<Option<String>> {
    let answer = async {
        let slot = running.acquire().await.map_err(io::Error::other)?;
        let look_up = spawn_blocking(move || {
            let name = by_id(uid);
            // Released only now: even if nobody waits any more, the thread is occupied until here.
            drop(slot);
            name
        });
        look_up.await?
    };
    timeout(limit, answer).await?
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use super::*;

    /// A name service that hangs occupies a limited number of threads, also when the callers have
    /// stopped waiting.
    #[tokio::test]
    async fn a_name_service_that_hangs_occupies_a_limited_number_of_threads() {
        static SLOTS: Semaphore = Semaphore::const_new(2);
        static BEGUN: AtomicUsize = AtomicUsize::new(0);
        static HANGS: AtomicBool = AtomicBool::new(true);
        let by_id = |_| {
            BEGUN.fetch_add(1, Ordering::SeqCst);
            while HANGS.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            Ok(None)
        };
        for _ in 0..5 {
            let error = look_up(1, by_id, &SLOTS, Duration::from_millis(20))
                .await
                .unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        }
        assert!(BEGUN.load(Ordering::SeqCst) <= 2);
        HANGS.store(false, Ordering::SeqCst);
        let answer = look_up(1, by_id, &SLOTS, TIMEOUT).await;
        assert_eq!(answer.unwrap(), None, "the slots are free again");
    }

    #[tokio::test]
    async fn users_of_this_host_are_found_by_id() {
        assert_eq!(user_name(0).await.unwrap().as_deref(), Some("root"));
        assert_eq!(user_name(4_123_456_789).await.unwrap(), None);
    }
}
