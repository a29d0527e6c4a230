//! One reader: what it has, and what it gets next.

use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use serde_json::json;
use tokio::sync::watch;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::super::handles::Handles;
use super::super::views::EventView;
use super::parts::message;
use super::{Live, Now, Place};
use crate::config::Secret;

/// Without a message, so that proxies and readers see that the stream lives.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// The longest stream. A reader comes again, with the token of that time.
const LONGEST: Duration = Duration::from_mins(10);
/// Events in one piece.
const MOST_EVENTS: usize = 100;
/// A reader that has missed more points of the history asks for them elsewhere.
const MOST_POINTS: u64 = 30;

/// Where a reader left off, by the `id` of its last message: run, event and point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::admin) struct Resumed {
    run: u64,
    event: u64,
    point: u64,
}

impl Resumed {
    /// `None`: nobody wrote this id here.
    pub(in crate::admin) fn of(id: &str) -> Option<Self> {
        let mut numbers = id.split('-').map(str::parse::<u64>);
        let mut next = || numbers.next()?.ok();
        let resumed = Self {
            run: next()?,
            event: next()?,
            point: next()?,
        };
        numbers.next().is_none().then_some(resumed)
    }
}

#[derive(Debug)]
pub(in crate::admin) struct Reader {
    handles: Handles,
    now: watch::Receiver<Now>,
    has_token: bool,
    /// The token there was at the beginning.
    token: Option<Arc<Secret>>,
    run: u64,
    /// The version of the parts that it has.
    version: u64,
    /// The number of the last event that it has.
    event: u64,
    point: u64,
    greeting: Option<Bytes>,
    over: Instant,
    leaving: CancellationToken,
    place: Place,
    /// It has been told that it makes room.
    is_told: bool,
}

impl Reader {
    /// It ends when `leaving` is cancelled.
    pub(in crate::admin) fn new(
        place: Place,
        handles: Handles,
        has_token: bool,
        resumed: Option<Resumed>,
        leaving: CancellationToken,
    ) -> Self {
        let live: &Live = &place.live;
        let newest = *handles.history.newest().borrow();
        let run = live.0.run;
        let goes_on = resumed.filter(|resumed| {
            let has_missed = newest.checked_sub(resumed.point);
            resumed.run == run
                && has_missed.is_some_and(|missed| missed <= MOST_POINTS)
                && resumed.event <= handles.events.newest()
        });
        let (event, point) = goes_on.map_or((0, newest), |resumed| (resumed.event, resumed.point));
        let greeting = message(
            "hello",
            &json!({
                "process_id": std::process::id(),
                "version": env!("CARGO_PKG_VERSION"),
                "resumed": goes_on.is_some(),
                "point": point,
                "token": has_token,
            }),
        );
        Self {
            now: live.0.now.subscribe(),
            token: handles.token.load_full(),
            handles,
            has_token,
            run,
            version: 0,
            event,
            point,
            greeting: Some(greeting),
            over: Instant::now() + LONGEST,
            leaving,
            place,
            is_told: false,
        }
    }

    /// The next piece, which is never empty. `None`: the stream is over.
    pub(in crate::admin) async fn next(&mut self) -> Option<Bytes> {
        if let Some(greeting) = self.greeting.take() {
            return Some(greeting);
        }
        // While there is always more to send, a reader that takes it at once would have the thread
        // to itself. Others have their turn between two pieces, health checks above all.
        yield_now().await;
        let keep_alive = Instant::now() + KEEP_ALIVE;
        loop {
            if self.place.makes_room.is_cancelled() {
                return self.farewell();
            }
            if self.is_over() {
                return None;
            }
            let piece = self.piece();
            if !piece.is_empty() {
                return Some(piece);
            }
            tokio::select! {
                changed = self.now.changed() => if changed.is_err() { return None },
                () = self.leaving.cancelled() => return None,
                () = self.place.makes_room.cancelled() => {}
                () = sleep_until(self.over.min(keep_alive)) => {
                    if Instant::now() < self.over {
                        return Some(Bytes::from_static(b":\n\n"));
                    }
                }
            }
        }
    }

    /// Once.
    fn farewell(&mut self) -> Option<Bytes> {
        if self.is_told {
            return None;
        }
        self.is_told = true;
        let why = "all streams are taken, and somebody with the token needs one: this one, without the token, was \
                   the oldest";
        Some(message("ended", &json!({"why": why})))
    }

    /// Who reads with a token reads on only with the one there is.
    fn is_over(&self) -> bool {
        let token = self.handles.token.load();
        let is_same = match (&*token, &self.token) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (None, None) => true,
            _ => false,
        };
        !is_same || self.leaving.is_cancelled() || Instant::now() >= self.over
    }

    fn piece(&mut self) -> Bytes {
        let now = self.now.borrow_and_update().clone();
        let mut piece = Vec::new();
        for part in now.parts.since(self.version, self.has_token) {
            piece.extend_from_slice(part);
        }
        self.version = now.parts.version();
        let mut text = String::new();
        let events = self.handles.events.since(self.event);
        for event in events.iter().take(MOST_EVENTS) {
            self.event = event.number;
            let view = serde_json::to_value(EventView::new(event)).unwrap_or_default();
            self.write("happened", &view.to_string(), &mut text);
        }
        if self.point < now.point {
            let points = self.handles.history.json(self.point, &|_| true);
            self.point = now.point;
            self.write("points", &points, &mut text);
        }
        piece.extend_from_slice(text.as_bytes());
        piece.into()
    }

    /// A message after which a reader may go on.
    fn write(&self, name: &str, data: &str, out: &mut String) {
        let Self {
            run, event, point, ..
        } = self;
        // Writing to a string cannot fail.
        let _ = write!(out, "id: {run}-{event}-{point}\nevent: {name}\ndata: {data}\n\n");
    }
}
