//! The queue behind [`super::PendingReplies`]: requests in the order in which they were sent,
//! messages of one kind and one owner in a row counted as one run.

use std::collections::VecDeque;

use super::{MAX_RUNS, PendingError};

/// Who sent a request, and so, whose its replies are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Owner {
    #[default]
    Client,
    /// The router asked on its own account: the client must not see the reply.
    Router,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum RequestKind {
    #[default]
    Nothing,
    /// Parse, Bind, Describe, Execute, Close: each is completed by exactly one of
    /// `1 2 3 n T C I s`, or fails.
    Extended,
    /// One `Z`, whatever happens.
    Sync,
    Query,
    FunctionCall,
    /// `CopyDone`, `CopyFail`: ends COPY IN, means nothing elsewhere.
    CopyEnd,
}

/// Messages of one kind and one owner in a row.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Run {
    pub(super) kind: RequestKind,
    pub(super) owner: Owner,
    pub(super) count: u16,
}

impl Run {
    pub(super) fn one(kind: RequestKind, owner: Owner) -> Self {
        Self {
            kind,
            owner,
            count: 1,
        }
    }

    /// Counts one more message, if it belongs to this run.
    pub(super) fn extend(&mut self, kind: RequestKind, owner: Owner) -> bool {
        let is_same = self.kind == kind && self.owner == owner && self.count < u16::MAX;
        self.count += u16::from(is_same);
        is_same
    }

    /// How many messages of the client the server has to answer.
    pub(super) fn client_requests(self) -> usize {
        match self.owner {
            Owner::Client => self.requests(),
            Owner::Router => 0,
        }
    }

    /// Messages that the server answers.
    pub(super) fn requests(self) -> usize {
        match self.kind {
            RequestKind::Nothing | RequestKind::CopyEnd => 0,
            RequestKind::Extended | RequestKind::Sync | RequestKind::Query | RequestKind::FunctionCall => {
                usize::from(self.count)
            }
        }
    }
}

/// What waits behind the message being answered, in order. It uses the heap only beyond a few runs.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    near: [Run; 4],
    near_len: u8,
    far: VecDeque<Run>,
}

impl Waiting {
    pub(super) fn runs(&self) -> usize {
        usize::from(self.near_len) + self.far.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.near_len == 0
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Run> {
        self.near[..usize::from(self.near_len)].iter().chain(&self.far)
    }

    pub(super) fn front(&self) -> Option<Run> {
        self.near[..usize::from(self.near_len)].first().copied()
    }

    fn back(&mut self) -> Option<&mut Run> {
        match self.far.back_mut() {
            Some(run) => Some(run),
            None => self.near[..usize::from(self.near_len)].last_mut(),
        }
    }

    pub(super) fn push(&mut self, kind: RequestKind, owner: Owner) -> Result<(), PendingError> {
        if self.back().is_some_and(|run| run.extend(kind, owner)) {
            return Ok(());
        }
        let run = Run::one(kind, owner);
        if self.runs() >= MAX_RUNS {
            return Err(PendingError::TooManyWaiting);
        } else if self.far.is_empty() && usize::from(self.near_len) < self.near.len() {
            self.near[usize::from(self.near_len)] = run;
            self.near_len += 1;
        } else {
            self.far.push_back(run);
        }
        Ok(())
    }

    pub(super) fn pop(&mut self) -> Option<Run> {
        let run = self.front()?;
        self.near.rotate_left(1);
        self.near_len -= 1;
        if self.near_len == 0 {
            while let Some(far) = (usize::from(self.near_len) < self.near.len())
                .then(|| self.far.pop_front())
                .flatten()
            {
                self.near[usize::from(self.near_len)] = far;
                self.near_len += 1;
            }
            if self.far.is_empty() {
                self.far = VecDeque::new();
            }
        }
        Some(run)
    }

    /// Removes one message of the first run.
    pub(super) fn pop_one(&mut self) {
        match self.near.first_mut() {
            Some(run) if self.near_len > 0 && run.count > 1 => run.count -= 1,
            _ => {
                self.pop();
            }
        }
    }

    #[cfg(test)]
    pub(super) fn uses_heap(&self) -> bool {
        self.far.capacity() > 0
    }
}
