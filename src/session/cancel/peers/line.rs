//! The line to one peer: one conversation, opened when there is something to ask and kept while
//! there is, with many questions under way.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::super::keys::Incarnation;
use super::PATIENCE;
use super::codec::{
    self, Answers, Asked, Asking, Fate, MOST_AT_ONCE, OLD_VERSION, PeerError, PeerKey, Reply, VERSION,
};
use crate::config;
use crate::names;
use crate::wire::startup::CancelRequest;

/// A conversation without questions ends after so long.
const IDLE: Duration = Duration::from_secs(30);
/// A question that an earlier conversation did not answer is asked once more in a new one: the peer
/// may have restarted, or something in between may have forgotten the connection.
const MOST_TRIES: u8 = 2;

/// What the peer says of a key.
#[derive(Debug, Clone, Copy)]
pub(super) struct PeerVerdict {
    pub(super) is_found: bool,
    pub(super) incarnation: Incarnation,
    /// Of the peer protocol, in which it answered.
    pub(super) version: u8,
}

/// What is still to come after a question.
#[derive(Debug)]
pub(super) struct Awaited {
    /// Or why it could not be asked.
    pub(super) verdict: oneshot::Receiver<Result<PeerVerdict, String>>,
    /// The request with a found key is carried out, or the conversation has ended.
    pub(super) done: oneshot::Receiver<()>,
}

#[derive(Debug)]
struct Question {
    request: CancelRequest,
    tries: u8,
    /// Taken when it is sent.
    verdict: Option<oneshot::Sender<Result<PeerVerdict, String>>>,
    /// Closed once nothing waits for it any more.
    done: oneshot::Sender<()>,
}

/// A peer, and the questions for it.
#[derive(Debug)]
pub(super) struct Line {
    key: PeerKey,
    peer: config::Peer,
    state: Mutex<State>,
    wake: Notify,
}

/// The places for cancel requests whose session may be elsewhere limit how many questions wait.
#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Question>,
    /// A task runs the conversation.
    is_open: bool,
}

/// One conversation.
struct Conversation {
    stream: TcpStream,
    asking: Asking,
    read: BytesMut,
    /// Asked, and not all done.
    under_way: HashMap<u32, (Instant, Question)>,
    next: u32,
    /// The peer has the secret, and did answer.
    has_answered: bool,
}

impl Line {
    pub(super) fn new(key: PeerKey, peer: config::Peer) -> Arc<Self> {
        Arc::new(Self {
            key,
            peer,
            state: Mutex::default(),
            wake: Notify::new(),
        })
    }

    pub(super) fn peer(&self) -> &config::Peer {
        &self.peer
    }

    pub(super) fn name(&self) -> &str {
        &self.peer.name
    }

    /// Asks, as soon as possible, together with what else is to be asked.
    pub(super) fn ask(
        self: &Arc<Self>,
        request: &CancelRequest,
        tasks: &TaskTracker,
        closing: &CancellationToken,
    ) -> Awaited {
        let (tell, verdict) = oneshot::channel();
        let (finish, done) = oneshot::channel();
        if closing.is_cancelled() {
            return Awaited { verdict, done };
        }
        let mut state = self.state();
        state.waiting.push_back(Question {
            request: request.clone(),
            tries: 0,
            verdict: Some(tell),
            done: finish,
        });
        let is_open = std::mem::replace(&mut state.is_open, true);
        drop(state);
        if is_open {
            self.wake.notify_one();
        } else {
            let (line, closing) = (Arc::clone(self), closing.clone());
            tasks.spawn(async move {
                tokio::select! {
                    () = line.converse() => {}
                    () = closing.cancelled() => line.state().waiting.clear(),
                }
            });
        }
        Awaited { verdict, done }
    }

    /// One conversation after the other, until nothing is left to ask.
    async fn converse(&self) {
        loop {
            let ended = self.talk().await;
            let mut state = self.state();
            if let Err(error) = ended {
                for question in state.waiting.drain(..) {
                    question.fail(&error);
                }
            }
            if state.waiting.is_empty() {
                state.is_open = false;
                return;
            }
        }
    }

    /// One conversation. `Err`: it did not begin, or broke before anything was answered; what waits
    /// gets no answer either.
    async fn talk(&self) -> Result<(), String> {
        let opened = timeout(PATIENCE, Conversation::open(&self.key, &self.peer)).await;
        let mut conversation = opened
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(|error| described(&error))?;
        let outcome = self.exchange(&mut conversation).await;
        let mut again = VecDeque::new();
        for (_, question) in conversation.under_way.into_values() {
            match &outcome {
                Err(_)
                    if question.verdict.is_some()
                        && conversation.has_answered
                        && question.tries < MOST_TRIES =>
                {
                    again.push_back(question);
                }
                Err(error) => question.fail(error),
                Ok(()) => {}
            }
        }
        let is_lost = outcome.is_err() && !conversation.has_answered;
        let mut state = self.state();
        again.append(&mut state.waiting);
        state.waiting = again;
        drop(state);
        if is_lost { outcome } else { Ok(()) }
    }

    async fn exchange(&self, conversation: &mut Conversation) -> Result<(), String> {
        loop {
            let batch = self.batch();
            if !batch.is_empty() {
                conversation.send(batch).await?;
            }
            let until = conversation.patience();
            tokio::select! {
                read = conversation.stream.read_buf(&mut conversation.read) => match read {
                    Ok(0) => return Err(HUNG_UP.to_owned()),
                    Ok(_) => conversation.take_answers()?,
                    Err(error) => return Err(described(&error)),
                },
                () = self.wake.notified() => {}
                () = sleep_until(until) => {
                    if conversation.under_way.is_empty() {
                        return Ok(());
                    }
                    conversation.look(Instant::now())?;
                }
            }
        }
    }

    /// The next questions, without those that nothing waits for any more.
    fn batch(&self) -> Vec<Question> {
        let mut state = self.state();
        let mut batch = Vec::new();
        while batch.len() < MOST_AT_ONCE
            && let Some(question) = state.waiting.pop_front()
        {
            if !question.done.is_closed() {
                batch.push(question);
            }
        }
        if !state.waiting.is_empty() {
            // After this batch has been sent, and what has arrived has been read.
            self.wake.notify_one();
        }
        batch
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const HUNG_UP: &str = "it hung up: is the secret the same on both sides?";

pub(super) fn described(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::TimedOut => "it did not answer in time".to_owned(),
        io::ErrorKind::UnexpectedEof => HUNG_UP.to_owned(),
        _ => error.to_string(),
    }
}

fn is_hang_up(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), UnexpectedEof | ConnectionReset | BrokenPipe)
}

impl Question {
    fn fail(self, error: &str) {
        if let Some(verdict) = self.verdict {
            let _ = verdict.send(Err(error.to_owned()));
        }
    }
}

/// Begins a conversation with a peer, in the version that it speaks.
pub(super) async fn open(key: &PeerKey, peer: &config::Peer) -> io::Result<(TcpStream, Asking)> {
    match open_in(VERSION, key, peer).await {
        // A router of version 2 hangs up, as does anything that is no router.
        Err(error) if is_hang_up(&error) => open_in(OLD_VERSION, key, peer).await,
        opened => opened,
    }
}

async fn open_in(version: u8, key: &PeerKey, peer: &config::Peer) -> io::Result<(TcpStream, Asking)> {
    let mut stream = names::connect(&peer.host, peer.port).await?;
    stream.set_nodelay(true)?;
    let (opened, packet) = codec::open(key, version);
    stream.write_all(&packet).await?;
    let mut length = [0; 4];
    stream.read_exact(&mut length).await?;
    let mut challenge = length.to_vec();
    challenge.resize(codec::challenge_length(length).map_err(io::Error::other)?, 0);
    stream.read_exact(&mut challenge[length.len()..]).await?;
    let asking = opened.challenge(&challenge).map_err(io::Error::other)?;
    Ok((stream, asking))
}

impl Conversation {
    async fn open(key: &PeerKey, peer: &config::Peer) -> io::Result<Self> {
        let (stream, asking) = open(key, peer).await?;
        Ok(Self {
            stream,
            asking,
            read: BytesMut::new(),
            under_way: HashMap::new(),
            next: 0,
            has_answered: false,
        })
    }

    async fn send(&mut self, batch: Vec<Question>) -> Result<(), String> {
        let now = Instant::now();
        let mut asked = Vec::with_capacity(batch.len());
        for mut question in batch {
            question.tries += 1;
            asked.push(Asked {
                number: self.next,
                request: question.request.clone(),
            });
            self.under_way.insert(self.next, (now, question));
            self.next = self.next.wrapping_add(1);
        }
        let packet = self.asking.ask(&asked);
        match timeout(PATIENCE, self.stream.write_all(&packet)).await {
            Ok(written) => written.map_err(|error| described(&error)),
            Err(_elapsed) => Err(described(&io::ErrorKind::TimedOut.into())),
        }
    }

    fn take_answers(&mut self) -> Result<(), String> {
        while let Some(reply) = self
            .asking
            .reply(&mut self.read)
            .map_err(|fault| fault.to_string())?
        {
            self.has_answered = true;
            let Answers { incarnation, answers } = match reply {
                Reply::Answers(answers) => answers,
                Reply::Refused(refusal) => return Err(refusal.to_string()),
                // Nothing of the kind is asked here.
                Reply::Hold { .. } => return Err(PeerError::Malformed.to_string()),
            };
            for answer in answers {
                let Some((_, question)) = self.under_way.get_mut(&answer.number) else {
                    continue;
                };
                if let Some(verdict) = question.verdict.take() {
                    let is_found = answer.fate != Fate::NotFound;
                    let _ = verdict.send(Ok(PeerVerdict {
                        is_found,
                        incarnation,
                        version: self.asking.version(),
                    }));
                }
                if answer.fate != Fate::Found
                    && let Some((_, question)) = self.under_way.remove(&answer.number)
                {
                    let _ = question.done.send(());
                }
            }
        }
        Ok(())
    }

    /// When to check for late answers next.
    fn patience(&self) -> Instant {
        let unanswered = self
            .under_way
            .values()
            .filter(|(_, question)| question.verdict.is_some());
        match unanswered.map(|(asked, _)| *asked).min() {
            Some(first) => first + PATIENCE,
            None if self.under_way.is_empty() => Instant::now() + IDLE,
            None => Instant::now() + PATIENCE,
        }
    }

    /// Forgets the questions that nothing waits for. `Err`: the peer should have answered by now.
    fn look(&mut self, now: Instant) -> Result<(), String> {
        self.under_way.retain(|_, (asked, question)| {
            !question.done.is_closed() || (question.verdict.is_some() && now < *asked + PATIENCE)
        });
        let is_late =
            |(asked, question): &(Instant, Question)| question.verdict.is_some() && now >= *asked + PATIENCE;
        if self.under_way.values().any(is_late) {
            return Err(described(&io::ErrorKind::TimedOut.into()));
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "line_tests.rs"]
mod tests;
