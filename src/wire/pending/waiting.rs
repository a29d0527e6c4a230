//! Who has to go on: what the server waits for from the client, and what an error would lead to.

use super::{CopyMode, Owner, PendingReplies, RequestKind, Run, TransactionStatus};

impl PendingReplies {
    /// The server answers nothing more before the client goes on: it reads copied data, or a batch
    /// is open whose answers it may keep until the Sync. (A Flush makes it send what it has.)
    ///
    /// The Sync that ends a batch is one behind its COPY: the server ignores those that it reads as
    /// a part of it. After a COPY that failed, whether it has read such a Sync shows at once, or
    /// with the next one.
    pub fn waits_for_client(&self) -> bool {
        let is_in_batch = |run: &Run| {
            matches!(
                run.kind,
                RequestKind::Nothing | RequestKind::Extended | RequestKind::CopyEnd
            )
        };
        match self.copy {
            CopyMode::In { ended: false } => true,
            CopyMode::In { ended: true } => {
                self.current.kind == RequestKind::Extended && self.pending().all(is_in_batch)
            }
            CopyMode::Out | CopyMode::Both => false,
            CopyMode::None if self.skipping && self.uncertain > 0 => {
                self.current.kind == RequestKind::Nothing
            }
            CopyMode::None => self.batch_open && self.pending().all(is_in_batch),
        }
    }

    /// The server reads copied data, and the client has not sent its end.
    pub fn reads_copy(&self) -> bool {
        self.copy == (CopyMode::In { ended: false })
    }

    /// The COPY under way is part of a batch of the extended protocol.
    pub fn is_copying_in_batch(&self) -> bool {
        self.in_copy() && self.current.kind == RequestKind::Extended
    }

    /// If the client's oldest request failed now: the status that the `Z` behind the error would
    /// have; `None` where no `Z` would come, as the client has not sent the Sync yet, or where that
    /// cannot be known.
    pub fn ready_after_error(&self) -> Option<u8> {
        let mut runs = self
            .pending()
            .filter(|run| run.owner == Owner::Client && run.kind != RequestKind::CopyEnd);
        let comes = match runs.next().map_or(RequestKind::Nothing, |run| run.kind) {
            RequestKind::Query | RequestKind::FunctionCall | RequestKind::Sync => true,
            RequestKind::Extended => runs.any(|run| run.kind == RequestKind::Sync),
            RequestKind::Nothing | RequestKind::CopyEnd => false,
        };
        let is_known = !self.over && !self.is_uncertain() && self.copy != CopyMode::Both;
        (comes && is_known).then_some(match self.status {
            TransactionStatus::Idle | TransactionStatus::Unknown => b'I',
            TransactionStatus::InTransaction | TransactionStatus::Failed => b'E',
        })
    }
}
