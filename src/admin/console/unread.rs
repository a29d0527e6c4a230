//! The room for answers that clients have not read yet.

use super::super::relation::{Row, Value};
use super::super::views::LimitView;
use super::bound::{Bound, Room};
use crate::wire::message::ErrorReply;
use crate::wire::sqlstate::SqlState;

/// Of rows that wait to be read.
static UNREAD: Bound = Bound::new(128);

/// Of all sessions of this process.
pub(super) fn limit() -> LimitView {
    UNREAD.limit("unread answers of the console")
}

/// Room for rows that the client has not read yet.
///
/// # Errors
/// There is none.
pub(super) fn room_for(rows: &[Row], is_operator: bool) -> Result<Room<'static>, ErrorReply> {
    reserved(&UNREAD, rows, is_operator)
}

fn reserved<'a>(unread: &'a Bound, rows: &[Row], is_operator: bool) -> Result<Room<'a>, ErrorReply> {
    let bytes = rows.iter().flatten().map(Value::size).sum();
    unread.room_for(bytes, is_operator).ok_or_else(|| {
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
        let unread = Bound::new(1);
        let rows = |bytes| vec![vec![Value::text("x".repeat(bytes))]];
        let first = reserved(&unread, &rows(900 * 1024), true).unwrap();
        let refused = reserved(&unread, &rows(200 * 1024), true);
        assert_eq!(refused.unwrap_err().code, "53400");
        drop(first);
        assert!(reserved(&unread, &rows(200 * 1024), true).is_ok());
    }
}
