//! The room for answers that clients have not read yet.

use tokio::sync::{Semaphore, SemaphorePermit};

use super::super::relation::{Row, Value};
use super::super::views::LimitView;
use crate::wire::message::ErrorReply;
use crate::wire::sqlstate::SqlState;

/// Of rows that wait to be read, in KiB, of all sessions of a process.
const MOST_UNREAD: usize = 128 * 1024;
static UNREAD: Semaphore = Semaphore::const_new(MOST_UNREAD);
/// Of them, what users who give no orders may have together: an operator finds room.
const MOST_UNREAD_OF_READERS: usize = MOST_UNREAD / 4 * 3;
static UNREAD_OF_READERS: Semaphore = Semaphore::const_new(MOST_UNREAD_OF_READERS);

/// Of all sessions of this process.
pub(super) fn limit() -> LimitView {
    let left = UNREAD.available_permits();
    LimitView::new("unread answers of the console", "router", "bytes")
        .exactly(MOST_UNREAD * 1024)
        .used(MOST_UNREAD.saturating_sub(left) * 1024)
}

/// Room for rows that the client has not read yet.
///
/// # Errors
/// There is none.
pub(super) fn room_for(rows: &[Row], is_operator: bool) -> Result<Room, ErrorReply> {
    let of_readers = if is_operator {
        None
    } else {
        Some(reserved(&UNREAD_OF_READERS, rows)?)
    };
    Ok((reserved(&UNREAD, rows)?, of_readers))
}

/// Given back when it is dropped.
pub(super) type Room = (SemaphorePermit<'static>, Option<SemaphorePermit<'static>>);

fn reserved<'a>(unread: &'a Semaphore, rows: &[Row]) -> Result<SemaphorePermit<'a>, ErrorReply> {
    let bytes: usize = rows.iter().flatten().map(Value::size).sum();
    // Never more than all: a single answer is smaller.
    let kibibytes = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX);
    unread.try_acquire_many(kibibytes).map_err(|_| {
        ErrorReply::error(
            SqlState::CONFIGURATION_LIMIT_EXCEEDED,
            "answers of the console that clients have not read take all the room there is for them",
        )
        .hint("Read or close the portals that are open, or ask for fewer columns or rows.")
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn rows_that_nobody_reads_have_a_bound() {
        let unread = Semaphore::new(1000);
        let rows = |bytes| vec![vec![Value::text("x".repeat(bytes))]];
        let first = reserved(&unread, &rows(900 * 1024)).unwrap();
        assert_eq!(reserved(&unread, &rows(200 * 1024)).unwrap_err().code, "53400");
        drop(first);
        assert!(reserved(&unread, &rows(200 * 1024)).is_ok());
    }
}
