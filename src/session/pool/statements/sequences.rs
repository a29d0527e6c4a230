//! Whose numbers of sequences a connection has.
//!
//! A connection remembers for each sequence what it last drew from it, and `currval` and `lastval`
//! tell. Which session drew it nobody can ask, and any INSERT may draw one. So where sessions of a
//! pool read such numbers, a connection forgets them (`DISCARD SEQUENCES`) when it goes from one
//! session to another: the other session gets error 55000 rather than a number that is not its own.

use bytes::BytesMut;

use super::effect::Effect;
use super::frames;
use super::interner::SEQUENCES;
use super::{ConnectionStatements, Rewriter, SessionStatements};
use crate::wire::pending::{PendingError, PendingReplies};

/// Whose numbers a connection may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Numbers {
    #[default]
    Nobodys,
    /// Those of the session with this id, and nobody else's.
    Of(u64),
    Several,
}

impl ConnectionStatements {
    /// A session has the connection from now on. `are_read`: sessions of the pool read the numbers
    /// of sequences.
    pub(crate) fn lent(&mut self, session: &SessionStatements, are_read: bool) {
        let own = Numbers::Of(session.id());
        if self.numbers != own {
            self.numbers = match self.numbers {
                Numbers::Nobodys => own,
                _ => Numbers::Several,
            };
        }
        self.must_forget = are_read && self.numbers == Numbers::Several;
    }

    /// [`Rewriter::forget_numbers`] is to be called before the first message of the lease.
    pub(crate) fn must_forget(&self) -> bool {
        self.must_forget
    }
}

impl Rewriter<'_> {
    /// Makes the connection forget what other sessions have drawn from sequences, in a batch of the
    /// router's own. To be called where nothing is under way, and no transaction has failed.
    /// `true`: the client's message must wait for the answer, as for [`Step::Wait`](super::Step). A
    /// cancel request of the client's may hit this batch; then it is sent again.
    pub(crate) fn forget_numbers(
        &mut self,
        out: &mut BytesMut,
        pending: &mut PendingReplies,
    ) -> Result<bool, PendingError> {
        if self.connection.numbers != Numbers::Several {
            self.connection.must_forget = false;
            return Ok(false);
        }
        frames::put_statement(out, b'C', SEQUENCES);
        self.router(b'C', pending)?;
        frames::put_parse(out, SEQUENCES, b"DISCARD SEQUENCES", &[]);
        self.router(b'P', pending)?;
        frames::put_bind(out, SEQUENCES);
        self.router(b'B', pending)?;
        frames::put_execute(out);
        self.router_with(b'E', Effect::Forget, pending)?;
        // Clients can see it in pg_prepared_statements.
        frames::put_statement(out, b'C', SEQUENCES);
        self.router(b'C', pending)?;
        frames::put_empty(out, b'S');
        self.router(b'S', pending)?;
        self.connection.waiting = true;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::pool::statements::{Interner, Limits};
    use crate::wire::pending::{Owner, TransactionStatus};

    const LIMITS: Limits = Limits {
        statements: 10,
        bytes: 1000,
    };

    /// A cancel request of the client's own must not make it see what it could not see before.
    #[test]
    fn what_was_cancelled_is_sent_again() {
        let interner = Interner::new();
        let mut connection = ConnectionStatements::new(LIMITS);
        let [first, mut second] = [0; 2].map(|_| SessionStatements::new(&interner, LIMITS));
        connection.lent(&first, true);
        assert!(!connection.must_forget(), "nobody else has had it");
        connection.lent(&second, true);
        let mut pending = PendingReplies::new(TransactionStatus::Idle);
        let cancelled: &[u8] = b"SERROR\0VERROR\0C57014\0Mcancelled\0\0";
        let complete: &[u8] = b"DISCARD SEQUENCES\0";
        for (answer, body, is_done) in [(b'E', cancelled, false), (b'C', complete, true)] {
            assert!(connection.must_forget());
            let mut rewriter = Rewriter::new(&interner, &mut second, &mut connection, None);
            let mut out = BytesMut::new();
            assert!(matches!(
                rewriter.forget_numbers(&mut out, &mut pending),
                Ok(true)
            ));
            assert!(rewriter.is_waiting());
            for (tag, body) in [(b'3', &b""[..]), (b'1', b""), (b'2', b""), (answer, body)] {
                let _ = rewriter.answered(Owner::Router, tag, body);
            }
            if is_done {
                let _ = rewriter.answered(Owner::Router, b'3', b"");
            }
            let _ = rewriter.answered(Owner::Router, b'Z', b"I");
            assert!(!rewriter.is_waiting());
            assert_eq!(connection.must_forget(), !is_done);
        }
    }
}
