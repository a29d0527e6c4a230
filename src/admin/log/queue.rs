//! Lines on their way to standard error, and the thread that writes them.
//!
//! Guarantees: a caller never waits for the stream, however slow its reader is. The queue has a
//! limit of lines and one of bytes. A line that does not fit, or cannot be written, is counted, and
//! the next line that is written says how many were lost. A line is one write, so that the lines of
//! several processes on one pipe stay whole.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use tokio::time::Instant;

/// Lines that wait at once.
const MOST_LINES: usize = 4096;
/// What they may take together.
const MOST_BYTES: usize = 4 * 1024 * 1024;
/// Between two attempts, if another process has made the stream nonblocking.
const AGAIN: Duration = Duration::from_millis(20);

/// The lines that wait. Clones are the same queue.
#[derive(Clone)]
pub(super) struct Queue(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// There is something to write.
    filled: Condvar,
    /// Everything is written.
    emptied: Condvar,
    lost: Counter,
}

#[derive(Default)]
struct State {
    lines: VecDeque<Line>,
    bytes: usize,
    /// Lines that did not fit since the last one that did.
    lost: u64,
    /// The thread has a line in hand.
    is_writing: bool,
}

struct Line {
    /// How many were lost just before it.
    lost: u64,
    text: Vec<u8>,
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").finish_non_exhaustive()
    }
}

impl Queue {
    /// Without a thread: nothing is written.
    fn new() -> Self {
        Self(Arc::new(Shared {
            state: Mutex::default(),
            filled: Condvar::new(),
            emptied: Condvar::new(),
            lost: Counter::default(),
        }))
    }

    /// Starts the thread that writes to `stream`. `notice` formats the line that says how many
    /// lines were lost.
    ///
    /// # Errors
    /// There is no room for another thread.
    pub(super) fn start(
        stream: impl Write + Send + 'static,
        notice: impl Fn(u64) -> Vec<u8> + Send + 'static,
    ) -> io::Result<Self> {
        let queue = Self::new();
        let of_thread = queue.clone();
        thread::Builder::new()
            .name("log".into())
            .spawn(move || of_thread.drain(stream, notice))?;
        Ok(queue)
    }

    /// Lines that were lost, ever.
    pub(super) fn lost(&self) -> Counter {
        self.0.lost.clone()
    }

    /// Puts a line at the end; one that does not fit is counted. Returns at once.
    fn push(&self, text: &[u8]) {
        let mut state = self.state();
        if state.lines.len() >= MOST_LINES || state.bytes.saturating_add(text.len()) > MOST_BYTES {
            state.lost += 1;
            self.0.lost.inc();
            return;
        }
        let lost = std::mem::take(&mut state.lost);
        state.bytes += text.len();
        state.lines.push_back(Line {
            lost,
            text: text.to_vec(),
        });
        drop(state);
        self.0.filled.notify_one();
    }

    /// Waits until everything is written, for `limit` at most; `false`: some of it is not.
    pub(super) fn flush(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut state = self.state();
        loop {
            if state.lines.is_empty() && !state.is_writing && state.lost == 0 {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.0.emptied.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread: for as long as the process lives.
    fn drain(&self, mut stream: impl Write, notice: impl Fn(u64) -> Vec<u8>) {
        // Lines that the stream refused, and lines that did not fit: no line has reported them yet.
        let mut untold = 0;
        loop {
            let (lost, text) = self.next();
            untold += lost;
            let told = untold == 0 || put(&mut stream, &notice(untold)).is_ok();
            if told {
                untold = 0;
            }
            let Some(text) = text else { continue };
            if !told || put(&mut stream, &text).is_err() {
                untold += 1;
                self.0.lost.inc();
            }
        }
    }

    /// Waits for the next line; `None`: lines were lost, and none has come since.
    fn next(&self) -> (u64, Option<Vec<u8>>) {
        let mut state = self.state();
        state.is_writing = false;
        loop {
            if let Some(Line { lost, text }) = state.lines.pop_front() {
                state.bytes -= text.len();
                state.is_writing = true;
                return (lost, Some(text));
            }
            if state.lost > 0 {
                state.is_writing = true;
                return (std::mem::take(&mut state.lost), None);
            }
            self.0.emptied.notify_all();
            state = self.0.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// As [`Write::write_all`], also where the stream is a nonblocking one.
#[expect(clippy::disallowed_methods, reason = "on the log's own thread")]
fn put(stream: &mut impl Write, mut text: &[u8]) -> io::Result<()> {
    while !text.is_empty() {
        match stream.write(text) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => text = &text[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(AGAIN),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// One write is one line.
impl Write for Queue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

    use super::*;

    /// Long enough for any machine; nothing waits as long.
    const LONG: Duration = Duration::from_mins(1);

    fn notice(lost: u64) -> Vec<u8> {
        format!("{lost} lost\n").into_bytes()
    }

    /// Sends each write to the test, and waits until the test takes it.
    struct Pipe(SyncSender<String>);

    impl Write for Pipe {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let text = String::from_utf8(bytes.to_vec()).unwrap();
            self.0
                .send(text)
                .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn stalled() -> (Queue, Receiver<String>) {
        let (sender, receiver) = sync_channel(0);
        (Queue::start(Pipe(sender), notice).unwrap(), receiver)
    }

    /// Until the thread holds the first line, so that the queue is empty.
    fn wait_until_in_hand(queue: &Queue) {
        while !queue.state().lines.is_empty() {
            thread::yield_now();
        }
    }

    #[test]
    fn a_stalled_reader_costs_lines_and_no_time_and_hears_how_many() {
        let (mut queue, reader) = stalled();
        queue.write_all(b"first\n").unwrap();
        wait_until_in_hand(&queue);
        for number in 0..MOST_LINES + 3 {
            queue.write_all(format!("{number}\n").as_bytes()).unwrap();
        }
        assert_eq!(queue.lost().get(), 3);
        assert!(
            !queue.flush(Duration::from_millis(1)),
            "nobody reads: it gives up"
        );
        assert_eq!(reader.recv_timeout(LONG).unwrap(), "first\n");
        assert_eq!(reader.recv_timeout(LONG).unwrap(), "0\n");
        queue.write_all(b"fits again\n").unwrap();
        for number in 1..MOST_LINES {
            assert_eq!(reader.recv_timeout(LONG).unwrap(), format!("{number}\n"));
        }
        assert_eq!(
            reader.recv_timeout(LONG).unwrap(),
            "3 lost\n",
            "where they are missing"
        );
        assert_eq!(reader.recv_timeout(LONG).unwrap(), "fits again\n");
        assert!(queue.flush(LONG));
    }

    #[test]
    fn lines_are_lost_by_bytes_too_and_told_of_where_none_follows() {
        let (mut queue, reader) = stalled();
        queue.write_all(b"first\n").unwrap();
        wait_until_in_hand(&queue);
        let long = vec![b'x'; MOST_BYTES / 2];
        for _ in 0..3 {
            queue.write_all(&long).unwrap();
        }
        assert_eq!(queue.lost().get(), 1);
        let heard: Vec<usize> = (0..3).map(|_| reader.recv_timeout(LONG).unwrap().len()).collect();
        assert_eq!(heard, ["first\n".len(), long.len(), long.len()]);
        assert_eq!(reader.recv_timeout(LONG).unwrap(), "1 lost\n");
    }

    #[test]
    fn a_line_that_cannot_be_written_is_counted_and_told_of() {
        /// Fails as often as that.
        struct Failing(usize, Arc<Mutex<Vec<u8>>>);
        impl Write for Failing {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                if self.0 > 0 {
                    self.0 -= 1;
                    return Err(rustix::io::Errno::NOSPC.into());
                }
                // As a nonblocking pipe that has little room.
                let some = bytes.len().min(3);
                self.1.lock().unwrap().extend_from_slice(&bytes[..some]);
                Ok(some)
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let written = Arc::new(Mutex::new(Vec::new()));
        let mut queue = Queue::start(Failing(2, Arc::clone(&written)), notice).unwrap();
        for line in ["one\n", "two\n", "three\n"] {
            queue.write_all(line.as_bytes()).unwrap();
        }
        assert!(queue.flush(LONG));
        // The second failure was of the notice, so that the second line was not tried.
        assert_eq!(written.lock().unwrap().as_slice(), b"2 lost\nthree\n");
        assert_eq!(queue.lost().get(), 2);
    }
}
