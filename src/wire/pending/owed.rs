//! What a client is still owed where its server connection is lost: its requests without their last
//! answer, in the order of the protocol.

use super::{CopyMode, Owner, PendingReplies, RequestKind, TransactionStatus};

/// A request of the client's that the server has not answered to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwedKind {
    /// A message of the extended protocol that is answered by itself, up to the next Sync.
    Extended,
    Sync,
    Query,
    FunctionCall,
}

/// Requests of one kind in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owed {
    pub kind: OwedKind,
    /// At least one.
    pub count: usize,
}

impl PendingReplies {
    /// The client's requests without their last answer, in order. The first one may be answered in
    /// part ([`Self::has_started`]), or have its error ([`Self::has_failed`]).
    ///
    /// What the server skips behind an error is not among them, nor are Syncs that it takes for a
    /// part of a COPY. Not to be relied on while [`Self::is_uncertain`].
    pub fn owed(&self) -> impl Iterator<Item = Owed> {
        let owned = self.pending().filter(|run| run.owner == Owner::Client);
        owned.filter_map(|run| {
            let kind = match run.kind {
                RequestKind::Extended => OwedKind::Extended,
                RequestKind::Sync => OwedKind::Sync,
                RequestKind::Query => OwedKind::Query,
                RequestKind::FunctionCall => OwedKind::FunctionCall,
                RequestKind::Nothing | RequestKind::CopyEnd => return None,
            };
            let count = usize::from(run.count);
            Some(Owed { kind, count })
        })
    }

    /// The first request owed has been answered in part.
    pub fn has_started(&self) -> bool {
        self.started && self.current.owner == Owner::Client
    }

    /// An error was the answer to the first request owed, or to its batch: only its `Z` is to come.
    pub fn has_failed(&self) -> bool {
        self.errored
    }

    /// The server skips what comes up to a Sync that was not sent yet: the client has its error.
    pub fn is_skipping(&self) -> bool {
        self.skipping
    }

    /// Messages of the extended protocol were sent, and no Sync behind them.
    pub fn is_batch_open(&self) -> bool {
        self.batch_open
    }

    /// A stream in both directions is under way, or was the last thing.
    pub fn is_streaming(&self) -> bool {
        self.copy == CopyMode::Both || self.stream_ended
    }

    /// The caller has brought the server to this status by an exchange of its own, with nothing
    /// else under way.
    pub fn brought_to(&mut self, status: TransactionStatus) {
        self.status = status;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::model::{feed, server_message};
    use super::*;

    /// Client messages in capitals go to the server; behind a space, what the server says.
    fn after(steps: &[(&str, &str)]) -> PendingReplies {
        let mut pending = PendingReplies::new(TransactionStatus::Idle);
        for (sent, said) in steps {
            for tag in sent.bytes() {
                let _ = pending.client(tag).unwrap();
            }
            for tag in said.bytes() {
                feed(&mut pending, server_message(tag));
            }
        }
        pending
    }

    fn owed(pending: &PendingReplies) -> String {
        let mut text = String::new();
        for Owed { kind, count } in pending.owed() {
            let letter = match kind {
                OwedKind::Extended => "e",
                OwedKind::Sync => "S",
                OwedKind::Query => "Q",
                OwedKind::FunctionCall => "F",
            };
            text.push_str(&letter.repeat(count));
        }
        let flags = [
            (pending.has_started(), '+'),
            (pending.has_failed(), '!'),
            (pending.is_skipping(), '~'),
            (pending.is_batch_open(), '('),
        ];
        text.extend(flags.iter().filter(|(is_set, _)| *is_set).map(|(_, flag)| flag));
        text
    }

    #[test]
    fn what_is_owed_is_what_has_no_last_answer_in_order() {
        for (steps, expected) in [
            (&[("", "")][..], ""),
            (&[("Q", "")], "Q"),
            (&[("Q", "TDD")], "Q+"),
            (&[("Q", "TDC")], "Q+"),
            (&[("Q", "E")], "Q+!"),
            (&[("Q", "EZ")], ""),
            (&[("QQFQ", "CZ")], "QFQ"),
            (&[("QQ", "EZ")], "Q"),
            (&[("F", "E")], "F+!"),
            (&[("PBDES", "")], "eeeeS"),
            (&[("PBDES", "12n")], "eS"),
            (&[("PBDES", "12nC")], "S"),
            (&[("PBDES", "12nCE")], "S!"),
            (&[("PBDES", "12nCEZ")], ""),
            (&[("PBDES", "1E")], "S!"),
            (&[("PBDESPBS", "1E")], "SeeS!"),
            (&[("PBDESPBS", "1EZ")], "eeS"),
            (&[("PBE", "12")], "e("),
            (&[("PBE", "12C")], "("),
            (&[("PBE", "1E")], "!~("),
            (&[("PBE", "1E"), ("PQ", "")], "!~("),
            (&[("PBE", "1E"), ("PQS", "")], "S!"),
            (&[("PBE", "1E"), ("PQS", "Z")], ""),
            (&[("PBQ", "1")], "eQ"),
            (&[("PBH", "12")], "("),
            // COPY: its data are no requests; a Sync within it is not answered.
            (&[("Q", "G"), ("dd", "")], "Q+"),
            (&[("Q", "G"), ("ddc", "C")], "Q+"),
            (&[("PBE", "12G"), ("dd", "")], "e+("),
            (&[("PBES", "12G"), ("d", "")], "e+"),
            (&[("PBES", "12G"), ("dcS", "")], "eS+"),
            (&[("PBES", "12G"), ("dcS", "C")], "S"),
            (&[("PBE", "12G"), ("dfS", "E")], "S!"),
            (&[("Q", "Hd")], "Q+"),
        ] {
            assert_eq!(owed(&after(steps)), expected, "{steps:?}");
        }
    }

    #[test]
    fn the_routers_own_requests_are_nobodys() {
        let mut pending = PendingReplies::new(TransactionStatus::Idle);
        for tag in "CPBECS".bytes() {
            let _ = pending.router(tag).unwrap();
        }
        assert_eq!(owed(&pending), "");
        for (tag, is_client) in [
            (b'C', false),
            (b'P', true),
            (b'D', false),
            (b'B', true),
            (b'S', true),
        ] {
            let _ = if is_client {
                pending.client(tag)
            } else {
                pending.router(tag)
            }
            .unwrap();
        }
        assert_eq!(owed(&pending), "eeS");
    }
}
