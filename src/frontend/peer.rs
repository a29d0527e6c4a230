//! Who is at the other end of a Unix socket, by name.

use std::io;
use std::time::Duration;

use nix::unistd::{Uid, User};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

/// For one look-up: the name service may be a directory server.
const PATIENCE: Duration = Duration::from_secs(5);
/// Look-ups at the same time; each has a thread for as long as the name service takes, which may be far longer.
const MAX_RUNNING: usize = 16;

static RUNNING: Semaphore = Semaphore::const_new(MAX_RUNNING);

/// The name of a user of this host; `None` where no user has this number.
///
/// # Errors
/// The name service fails, or has not answered in 5 s: nothing is known of the user then.
pub async fn user_name(uid: u32) -> io::Result<Option<String>> {
    let by_id = |uid| Ok(User::from_uid(Uid::from_raw(uid))?.map(|user| user.name));
    look_up(uid, by_id, &RUNNING, PATIENCE).await
}

async fn look_up(
    uid: u32,
    by_id: fn(u32) -> io::Result<Option<String>>,
    running: &'static Semaphore,
    patience: Duration,
) -> io::Result<Option<String>> {
    let answer = async {
        let place = running.acquire().await.map_err(io::Error::other)?;
        let look_up = spawn_blocking(move || {
            let name = by_id(uid);
            // Not before: nobody may be waiting for it any more, but its thread is still taken.
            drop(place);
            name
        });
        look_up.await?
    };
    timeout(patience, answer).await?
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use super::*;

    /// A name service that hangs is given a bounded number of threads, whoever has stopped waiting for it.
    #[tokio::test]
    async fn what_hangs_is_bounded() {
        static PLACES: Semaphore = Semaphore::const_new(2);
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
            let error = look_up(1, by_id, &PLACES, Duration::from_millis(20))
                .await
                .unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        }
        assert!(BEGUN.load(Ordering::SeqCst) <= 2);
        HANGS.store(false, Ordering::SeqCst);
        let answer = look_up(1, by_id, &PLACES, PATIENCE).await;
        assert_eq!(answer.unwrap(), None, "places are given back");
    }

    #[tokio::test]
    async fn users_of_this_host() {
        assert_eq!(user_name(0).await.unwrap().as_deref(), Some("root"));
        assert_eq!(user_name(4_123_456_789).await.unwrap(), None);
    }
}
