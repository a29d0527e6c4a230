//! Fuzzes the messages between processes and the state file.

use std::cell::OnceCell;

use tokio::net::UnixStream;
use tokio::runtime::Runtime;

use super::super::state_file;
use super::{Commit, HandoverError, HandoverRequest, Offer, Ready, Serving, read, read_versioned, receive};
use crate::fuzzing::choice;

thread_local! {
    static RUNTIME: OnceCell<Runtime> = const { OnceCell::new() };
}

pub(crate) fn run(data: &[u8]) {
    if let Ok(kept) = state_file::parse(data) {
        let again = state_file::parse(&state_file::text(&kept));
        assert_eq!(again.ok(), Some(kept));
    }
    let (which, message) = choice(data);
    // A socket's buffer has room for this much.
    let message = &message[..message.len().min(16 * 1024)];
    RUNTIME.with(|cell| {
        let runtime = cell.get_or_init(|| {
            let mut builder = tokio::runtime::Builder::new_current_thread();
            builder.enable_all().build().expect("a runtime")
        });
        runtime.block_on(read_message(which, message));
    });
}

async fn read_message(which: u8, message: &[u8]) {
    let Ok((mut ours, theirs)) = UnixStream::pair() else {
        return;
    };
    if !matches!(theirs.try_write(message), Ok(written) if written == message.len()) {
        return;
    }
    drop(theirs);
    let outcome = match which % 6 {
        0 => read_versioned::<HandoverRequest>(&mut ours).await.map(drop),
        1 => read_versioned::<Offer>(&mut ours).await.map(|offer| {
            let kept = serde_json::to_vec(&offer.kept).expect("it was JSON");
            let _ = state_file::parse(&kept);
        }),
        2 => read::<Ready>(&mut ours).await.map(drop),
        3 => read::<Commit>(&mut ours).await.map(drop),
        4 => read::<Serving>(&mut ours).await.map(drop),
        _ => receive(&ours)
            .map_err(HandoverError::from)
            .map(|descriptor| assert!(descriptor.is_none())),
    };
    if let Err(error) = outcome {
        assert!(!error.to_string().is_empty());
    }
}
