//! The room for what sessions keep: prepared statements, portals, and the query that waits or is
//! worked on.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::super::views::LimitView;
use super::bound::{Bound, Room, permits};
use super::statement::Statement;
use crate::session::console::IsOperator;
use crate::wire::message::ErrorReply;
use crate::wire::sqlstate::SqlState;

/// Of all sessions of a process.
static KEPT: Bound = Bound::new(128);
/// Of one session, in KiB.
const MOST_OF_SESSION: usize = 16 * 1024;
/// Each session's own, in KiB, beside what the sessions have together: small queries are answered
/// also where others have taken all of that.
const OWN: usize = 64;

/// Of all sessions of this process.
pub(super) fn limit() -> LimitView {
    KEPT.limit("prepared statements of the console")
}

/// A statement that is kept, for as long as a prepared statement or a portal has it.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    pub(super) statement: Statement,
    _room: Arc<KeptRoom>,
}

/// Given back when it is dropped.
#[derive(Debug)]
pub(super) struct KeptRoom {
    _of_session: OwnedSemaphorePermit,
    /// `None`: it is of the session's own.
    _of_process: Option<Room<'static>>,
}

/// What one session may keep.
#[derive(Debug)]
pub(super) struct SessionRoom {
    process: &'static Bound,
    own: Arc<Semaphore>,
    of_session: Arc<Semaphore>,
    is_operator: IsOperator,
}

impl SessionRoom {
    pub(super) fn new(is_operator: IsOperator) -> Self {
        Self::of(&KEPT, is_operator)
    }

    fn of(process: &'static Bound, is_operator: IsOperator) -> Self {
        Self {
            process,
            own: Arc::new(Semaphore::new(OWN)),
            of_session: Arc::new(Semaphore::new(MOST_OF_SESSION)),
            is_operator,
        }
    }

    /// Of a text.
    ///
    /// # Errors
    /// There is no room for it.
    pub(super) fn keep(&self, statement: Statement, sql: &str) -> Result<Kept, ErrorReply> {
        let room = Arc::new(self.room_for(statement.size(sql))?);
        Ok(Kept {
            statement,
            _room: room,
        })
    }

    /// # Errors
    /// There is none.
    pub(super) fn room_for(&self, bytes: usize) -> Result<KeptRoom, ErrorReply> {
        let permits = permits(bytes);
        if let Ok(own) = Arc::clone(&self.own).try_acquire_many_owned(permits) {
            return Ok(KeptRoom {
                _of_session: own,
                _of_process: None,
            });
        }
        let of_session = Arc::clone(&self.of_session).try_acquire_many_owned(permits);
        let of_session = of_session.map_err(|_| {
            let most = MOST_OF_SESSION / 1024;
            full(format!(
                "the prepared statements, portals and the query of a session with the console take at most {most} MiB"
            ))
            .hint("DEALLOCATE or close those that are not needed, or make the query smaller.")
        })?;
        let of_process = self.process.room_for(bytes, self.is_operator.holds());
        let of_process = of_process.ok_or_else(|| {
            full("prepared statements, portals and queries of the console's sessions take all the room there is for them")
                .hint(
                    "DEALLOCATE or close those that are not needed, in other sessions too, or end other sessions with \
                     the console.",
                )
        })?;
        Ok(KeptRoom {
            _of_session: of_session,
            _of_process: Some(of_process),
        })
    }
}

fn full(text: impl Into<String>) -> ErrorReply {
    ErrorReply::error(SqlState::CONFIGURATION_LIMIT_EXCEEDED, text.into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn sessions_share_a_bound_and_have_something_of_their_own() {
        static BOUND: Bound = Bound::new(40);
        let session = |is_operator| SessionRoom::of(&BOUND, IsOperator::new(move || is_operator));
        let (one, other, operator) = (session(false), session(false), session(true));
        let refused = |room: &SessionRoom, bytes| room.room_for(bytes).unwrap_err();
        let first = one.room_for(15 * MIB).unwrap();
        let of_session = refused(&one, 2 * MIB);
        assert_eq!(of_session.code, "53400");
        assert!(
            of_session
                .message
                .contains("of a session with the console take at most 16 MiB")
        );
        assert_eq!(refused(&other, 17 * MIB).message, of_session.message);
        // 30 MiB are of readers.
        let second = other.room_for(14 * MIB).unwrap();
        let of_all = refused(&other, 2 * MIB);
        assert_eq!(of_all.code, "53400");
        assert!(
            of_all.message.contains("the console's sessions"),
            "{}",
            of_all.message
        );
        assert!(of_all.hint.unwrap().contains("DEALLOCATE"));
        assert!(operator.room_for(9 * MIB).is_ok(), "an operator finds room");
        // A small one does, too: of the session's own, which ends.
        let own = other.room_for(60 * 1024).unwrap();
        assert_eq!(refused(&other, 2 * MIB).code, "53400");
        drop(first);
        let third = other.room_for(2 * MIB).unwrap();
        assert_eq!(BOUND.limit("x").used, Some(16 << 20));
        drop((second, own, third));
        assert_eq!(BOUND.limit("x").used, Some(0));
    }
}
