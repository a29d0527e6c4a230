//! How much of the client's stream has been sent to the server. A request of which the server has
//! only a part has no effect, so its fate is known.

use crate::wire::observe::ClientObserver;
use crate::wire::pending::PendingReplies;

/// The server's position in the client's stream. It may be behind the position to which the relay
/// has read.
#[derive(Debug, Default)]
pub(super) struct Sent(ClientObserver);

impl Sent {
    /// `run` was read and observed; `before` and `after` are the observer's states around it. All
    /// of `run` is written but the last `rest` bytes.
    pub(super) fn forwarded(
        &mut self,
        before: ClientObserver,
        after: ClientObserver,
        run: &[u8],
        rest: usize,
    ) {
        if rest == 0 {
            self.0 = after;
        } else {
            self.0 = before;
            self.drained(&run[..run.len() - rest]);
        }
    }

    /// These bytes, which the relay had kept, are written.
    pub(super) fn drained(&mut self, written: &[u8]) {
        // They were observed before, so they contain no error.
        let _ = self.0.feed(written, |_, _| {});
    }

    /// The number of requests that the server does not have completely. `rest` was read and
    /// observed, and is not written.
    pub(super) fn unsent(&self, rest: &[u8]) -> usize {
        let mut probe = self.0;
        let mut count = usize::from(probe.unfinished().is_some_and(PendingReplies::is_request));
        // An error ends the count where it ended the pending replies.
        let _ = probe.feed(rest, |tag, _| {
            count += usize::from(PendingReplies::is_request(tag));
        });
        count
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::wire::pending::TransactionStatus;

    /// However the stream is read and written: all pending requests are unsent until the server has
    /// the whole first request, and never afterwards.
    #[test]
    fn a_request_has_reached_the_server_when_its_last_byte_is_written() {
        let stream = b"d\0\0\0\x05xQ\0\0\0\x0aSELECTP\0\0\0\x06\0\0S\0\0\0\x04";
        let first = b"d\0\0\0\x05xQ\0\0\0\x0aSELECT".len();
        for read in 0..=stream.len() {
            for written in 0..=read {
                let (mut observer, mut sent) = (ClientObserver::new(), Sent::default());
                let mut pending = PendingReplies::new(TransactionStatus::Idle);
                let before = observer;
                let run = &stream[..read];
                observer
                    .feed(run, |tag, _| assert!(pending.client(tag).is_ok()))
                    .unwrap();
                // In two steps, as a slow server takes it.
                let half = written / 2;
                sent.forwarded(before, observer, run, read - half);
                if half < read {
                    sent.drained(&run[half..written]);
                }
                let known = pending.outstanding().unwrap() <= sent.unsent(&run[written..]);
                assert_eq!(known, written < first || pending.is_idle(), "{read} {written}");
            }
        }
    }
}
