//! What the two relays share: one task polls both directions by turns, in the worker's buffer, and
//! obeys the orders of its registry entry.

use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::task::yield_now;

use super::end::Cause;
use super::registry::{SessionEntry, Traffic};

/// Bytes read at once.
const WORKER_BUFFER: usize = 64 * 1024;
/// What a session keeps at most of what one side has sent and the other does not take: one read of
/// each direction.
pub const MOST_KEPT_BYTES: usize = 2 * WORKER_BUFFER;
/// Turns of both directions in one wake-up, before other sessions of the worker get theirs.
/// A message may have five bytes, so these are up to 100,000 messages.
const TURNS: usize = 4;

/// A worker's one buffer, which a session has for the length of a wake-up. Only that worker's
/// thread uses it, so the lock is never contended.
#[derive(Debug)]
pub struct WorkerBuffer(pub(super) Mutex<Box<[u8]>>);

impl Default for WorkerBuffer {
    fn default() -> Self {
        Self(Mutex::new(vec![0; WORKER_BUFFER].into_boxed_slice()))
    }
}

/// What a turn of one direction came to.
pub(super) enum Turn<E = Cause> {
    Progress,
    Blocked,
    End(E),
}

/// What a relay takes its turns with.
#[derive(Debug)]
pub(super) struct Turns {
    pub(super) worker_buffer: Arc<WorkerBuffer>,
    /// Whom the registry wakes; kept to see whether it is still the right one.
    registered: Option<Waker>,
}

impl Turns {
    pub(super) fn new(worker_buffer: Arc<WorkerBuffer>) -> Self {
        Self {
            worker_buffer,
            registered: None,
        }
    }

    /// Orders wake this task from now on.
    pub(super) fn listen_for_orders(&mut self, entry: &SessionEntry, cx: &Context<'_>) {
        let known = self.registered.as_ref();
        if !known.is_some_and(|waker| waker.will_wake(cx.waker())) {
            self.registered = Some(cx.waker().clone());
            entry.wake_for_orders(cx.waker());
        }
    }
}

/// Two directions between a client and a server.
pub(super) trait TwoWay {
    /// Why it stops taking turns.
    type Stop;

    fn parts(&mut self) -> (&mut Turns, &Arc<SessionEntry>);

    /// Carries out an order that is due.
    fn obey(&mut self) -> Option<Self::Stop>;

    /// Client to server.
    fn turn_to_server(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Turn<Self::Stop>;

    /// Server to client.
    fn turn_to_client(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Turn<Self::Stop>;

    /// Both directions have come to rest.
    fn rested(&self) {}

    fn traffic(&self) -> Traffic;
}

/// One wake-up of a relay.
pub(super) fn poll<R: TwoWay>(relay: &mut R, cx: &mut Context<'_>) -> Poll<R::Stop> {
    let (turns, entry) = relay.parts();
    turns.listen_for_orders(entry, cx);
    let worker_buffer = Arc::clone(&turns.worker_buffer);
    let mut buffer = worker_buffer.0.lock().unwrap_or_else(PoisonError::into_inner);
    let outcome = take_turns(relay, cx, &mut buffer);
    let traffic = relay.traffic();
    relay.parts().1.record(traffic);
    outcome
}

fn take_turns<R: TwoWay>(relay: &mut R, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<R::Stop> {
    for _ in 0..TURNS {
        if let Some(cause) = relay.obey() {
            return Poll::Ready(cause);
        }
        let to_server = relay.turn_to_server(cx, buffer);
        let to_client = relay.turn_to_client(cx, buffer);
        match (to_server, to_client) {
            (Turn::End(cause), _) | (_, Turn::End(cause)) => return Poll::Ready(cause),
            (Turn::Blocked, Turn::Blocked) => {
                relay.rested();
                // An order may be due just now that both directions have come to rest.
                return match relay.obey() {
                    Some(cause) => Poll::Ready(cause),
                    None => Poll::Pending,
                };
            }
            (Turn::Progress | Turn::Blocked, Turn::Progress | Turn::Blocked) => {}
        }
    }
    // Continues once the worker has looked for what other sessions received. A plain wake-up would
    // let this session run 61 times (tokio's `event_interval`) before that.
    let _ = pin!(yield_now()).poll(cx);
    Poll::Pending
}
