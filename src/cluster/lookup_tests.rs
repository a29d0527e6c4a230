#![allow(clippy::unwrap_used)]

use super::*;

#[tokio::test]
async fn names_that_no_user_can_have_are_not_asked() {
    let (requests, mut received) = mpsc::channel(1);
    let lookups = Lookups::<Lookup> { requests };
    let deadline = Instant::now() + Duration::from_mins(1);
    for name in [&b""[..], b"a\0b", b"\xff", &[b'a'; 256]] {
        assert_eq!(lookups.ask(name, deadline).await, Ok(None));
    }
    assert!(received.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn a_look_up_ends_at_its_deadline_and_a_full_queue_at_once() {
    let (requests, received) = mpsc::channel(1);
    let lookups = Lookups::<Lookup> { requests };
    let deadline = Instant::now() + Duration::from_secs(1);
    assert_eq!(lookups.ask(b"bob", deadline).await, Err(LookupError::Timeout));
    assert_eq!(lookups.ask(b"bob", deadline).await, Err(LookupError::Busy));
    drop(received);
    assert_eq!(lookups.ask(b"bob", deadline).await, Err(LookupError::Stopped));
}
