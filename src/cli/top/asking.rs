//! Who asks the router: in batch mode this thread, on a terminal one of its own.

use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use crate::admin::SessionView;
use crate::cli::administer::understood;
use crate::cli::remote::{Fault, Remote, Router};
use crate::cli::status::seen::Seen;
use crate::cli::status::verdict::Verdict;

/// Time limit of a question.
pub(super) const LIMIT: Duration = Duration::from_secs(5);
/// Questions and answers that wait: a look, and orders of the person at the keyboard.
const WAITING: usize = 8;

/// What the router said at one moment.
pub(super) struct Look {
    pub(super) at: Instant,
    pub(super) seen: Seen,
    pub(super) sessions: Vec<SessionView>,
}

impl Look {
    pub(super) fn document(&self) -> Value {
        let mut value = Verdict::of(&self.seen).document(&self.seen);
        value["sessions"] = serde_json::json!(self.sessions);
        value
    }
}

pub(super) struct Asker {
    router: Router,
    remote: Remote,
}

pub(super) enum Answer {
    Look(Result<Box<Look>, String>),
    /// What to show of it.
    Killed(String),
}

enum Question {
    Look,
    Kill(u64),
}

impl Asker {
    pub(super) fn new(router: Router, remote: Remote) -> Self {
        Self { router, remote }
    }

    pub(super) fn look(&mut self) -> Result<Look, String> {
        let seen = Seen::ask(&self.router, &self.remote).map_err(Fault::words)?;
        let path = format!("/api/v1/sessions{}", self.remote.query(&[]));
        let sessions = understood(&self.router.look(&path)?)?;
        Ok(Look {
            at: Instant::now(),
            seen,
            sessions,
        })
    }

    pub(super) fn pause(&self, time: Duration) {
        self.router.pause(time);
    }

    fn kill(&self, id: u64) -> String {
        match self.router.change(&format!("/api/v1/sessions/{id}/kill"), None) {
            Ok(_) => format!("session {id} is killed"),
            Err(why) => format!("session {id} is not killed: {why}"),
        }
    }

    /// # Errors
    /// No thread can be started.
    pub(super) fn in_background(mut self) -> Result<Background, String> {
        let (ask, questions) = sync_channel(WAITING);
        let (tell, answers) = sync_channel(WAITING);
        let work = move || {
            while let Ok(question) = questions.recv() {
                let answer = match question {
                    Question::Look => Answer::Look(self.look().map(Box::new)),
                    Question::Kill(id) => Answer::Killed(self.kill(id)),
                };
                if tell.send(answer).is_err() {
                    return;
                }
            }
        };
        std::thread::Builder::new()
            .name("asking".to_owned())
            .spawn(work)
            .map_err(|error| format!("cannot start: {error}"))?;
        Ok(Background { ask, answers })
    }
}

/// The thread that asks. It ends when this is dropped, and nobody waits for it.
pub(super) struct Background {
    ask: SyncSender<Question>,
    answers: Receiver<Answer>,
}

impl Background {
    pub(super) fn look(&self) {
        self.send(Question::Look);
    }

    pub(super) fn kill(&self, id: u64) {
        self.send(Question::Kill(id));
    }

    /// A question that does not fit is left out: the person sees that nothing happened.
    fn send(&self, question: Question) {
        match self.ask.try_send(question) {
            Ok(()) | Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {}
        }
    }

    /// `None`: not yet.
    ///
    /// # Errors
    /// There will be none: a fault of the program has ended the thread that asks.
    pub(super) fn answer(&self) -> Result<Option<Answer>, String> {
        match self.answers.try_recv() {
            Ok(answer) => Ok(Some(answer)),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => {
                Err("the router is not asked any more, by a fault of this program".to_owned())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_is_gone_is_no_silence() {
        let (ask, _questions) = sync_channel(WAITING);
        let (tell, answers) = sync_channel(WAITING);
        let asked = Background { ask, answers };
        assert!(matches!(asked.answer(), Ok(None)));
        assert!(tell.send(Answer::Killed("it is".to_owned())).is_ok());
        drop(tell);
        assert!(
            matches!(asked.answer(), Ok(Some(Answer::Killed(_)))),
            "what was said before counts"
        );
        assert!(asked.answer().is_err());
    }
}
