//! Who is at the other end of a Unix socket, by name.

use std::io;
use std::time::Duration;

use nix::unistd::{Uid, User};
use tokio::time::timeout;

/// For one look-up: the name service may be a directory server.
const PATIENCE: Duration = Duration::from_secs(5);

/// The name of a user of this host; `None` where no user has this number.
///
/// # Errors
/// The name service fails, or has not answered in 5 s: nothing is known of the user then.
pub async fn user_name(uid: u32) -> io::Result<Option<String>> {
    let look_up = tokio::task::spawn_blocking(move || User::from_uid(Uid::from_raw(uid)));
    match timeout(PATIENCE, look_up).await {
        Ok(Ok(Ok(user))) => Ok(user.map(|user| user.name)),
        Ok(Ok(Err(errno))) => Err(errno.into()),
        Ok(Err(panicked)) => Err(io::Error::other(panicked)),
        Err(_elapsed) => Err(io::ErrorKind::TimedOut.into()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn users_of_this_host() {
        assert_eq!(user_name(0).await.unwrap().as_deref(), Some("root"));
        assert_eq!(user_name(4_123_456_789).await.unwrap(), None);
    }
}
