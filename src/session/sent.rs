//! How much of the client's stream the server has been given. A request that is not whole there has no effect, so that its
//! fate is known.

use crate::wire::observe::ClientObserver;
use crate::wire::pending::PendingReplies;

/// Where the server is in the client's stream, which may be behind where the relay has read to.
#[derive(Debug, Default)]
pub(super) struct Sent(ClientObserver);

impl Sent {
    /// `run` was read and observed; `before` was the observer's state, `after` is. All but the last `rest` bytes of it are
    /// written.
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

    /// These bytes, which had been kept, are written.
    pub(super) fn drained(&mut self, written: &[u8]) {
        // They were observed before, so that they hold no fault.
        let _ = self.0.feed(written, |_, _| {});
    }

    /// Requests that are not whole at the server. `rest` was read and observed, and is not written.
    pub(super) fn unsent(&self, rest: &[u8]) -> usize {
        let mut probe = self.0;
        let mut count = usize::from(probe.unfinished().is_some_and(PendingReplies::is_request));
        // A fault ends it where it ended the account.
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

    /// However the stream is read and written: as long as the first request is not whole at the server, as many are unsent
    /// as are owed, and never afterwards.
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
