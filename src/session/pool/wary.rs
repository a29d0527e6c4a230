//! A client that was held may have given up meanwhile, and may have asked again elsewhere.
//!
//! While it is held it is looked at, but of a long request a part is still to be read, and behind
//! that the end of the connection cannot be seen. So the last byte that was read goes to the server
//! only when what follows is known: if that is the end, the request stays incomplete, and no server
//! executes it. This lasts until all that the client had sent is read.

use super::session::PooledSession;
use crate::frontend::Left;
use crate::session::stream::SessionStream;

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Wary {
    #[default]
    No,
    /// It was held, and something that it sent then may still be unread.
    Yes,
    /// The same, and the last byte that was read is kept back.
    KeepsByte,
}

impl<C: SessionStream, S: SessionStream + Send + 'static> PooledSession<C, S> {
    /// How many bytes of what was read the server may have. `None`: the client has left.
    pub(super) fn weigh(&mut self, read: usize) -> Option<usize> {
        if self.wary == Wary::No {
            return Some(read);
        }
        let stream = &self.client.stream;
        if self.client.look.has_closed() || stream.left() != Left::No {
            return None;
        }
        // The kernel is asked: the end of the connection, which a reactor may not have heard of,
        // counts as something to read.
        if stream.has_input() {
            self.wary = Wary::KeepsByte;
            return Some(read.saturating_sub(1));
        }
        self.wary = Wary::Yes;
        Some(read)
    }

    /// All that was read has been passed on, and nothing more was there: from now on the client is
    /// as any other, if it has asked for something whole.
    pub(super) fn weighed(&mut self) {
        if self.wary != Wary::Yes {
            return;
        }
        let pending = self.lease.as_ref().map(|lease| &lease.link.pending);
        let is_whole = self.passing == 0
            && self.request.is_empty()
            && pending.is_some_and(|pending| !pending.is_batch_open());
        if is_whole {
            self.wary = Wary::No;
        }
    }

    /// Nothing can be read now. `true`: nothing follows the byte that was kept back, which is
    /// passed on.
    pub(super) fn nothing_follows(&mut self) -> bool {
        let is_last = self.wary == Wary::KeepsByte && !self.client.stream.has_input();
        if is_last {
            self.wary = Wary::Yes;
            self.is_resumed = true;
        }
        is_last
    }
}
