//! The answering side: another router asks. A router without the secret learns nothing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::debug;

use super::super::super::Shared;
use super::super::super::arrival::admission::ArrivalPlace;
use super::super::super::generations::CancelAnswer;
use super::super::delivery;
use super::codec::{
    self, Answered, Answering, Answers, Asked, Fate, MOST_AT_ONCE, PeerError, Question, QuestionKind,
};
use super::{Conversation, PATIENCE, Peers};
use crate::frontend::ClientStream;
use crate::session::holds::{HoldAnswer, HoldRefusal, HoldRequest};

/// A conversation without questions ends after so long. The asking router hangs up earlier.
const IDLE: Duration = Duration::from_mins(2);

/// Serves another router. Until it has shown that it knows the secret it is one of the pending
/// connections.
pub(in crate::session) async fn serve(
    shared: &Arc<Shared>,
    mut stream: ClientStream,
    body: Bytes,
    deadline: Instant,
    place: ArrivalPlace,
) {
    let Some(peers) = shared.peers.load_full() else {
        return;
    };
    let address = stream.tcp().and_then(|socket| socket.peer_addr().ok());
    let deadline = deadline.min(Instant::now() + PATIENCE * 2);
    let begun = timeout_at(deadline, begin(&peers, &mut stream, &body, address)).await;
    drop(place);
    let Ok(Some((answering, read, first))) = begun else {
        return;
    };
    let Some(conversation) = peers.conversation() else {
        return;
    };
    let (tell, answered) = mpsc::channel(MOST_AT_ONCE);
    let answerer = Answerer {
        shared: Arc::clone(shared),
        peers,
        stream,
        answering,
        read,
        ready: Vec::new(),
        under_way: 0,
        tell,
        answered,
        _conversation: conversation,
        address,
    };
    // It outlives what is waited for at the end of the sessions, and ends when the process does.
    let closing = shared.closing.clone();
    shared.tasks.spawn(async move {
        tokio::select! {
            _ended = answerer.converse(first) => {}
            () = closing.cancelled() => {}
        }
    });
}

/// Until the first question: a router that can ask one has the secret.
async fn begin(
    peers: &Peers,
    stream: &mut ClientStream,
    body: &[u8],
    address: Option<SocketAddr>,
) -> Option<(Answering, BytesMut, Question)> {
    let (mut answering, packet) = match codec::answer(&peers.key, body) {
        Ok(begun) => begun,
        Err(fault) => {
            if let PeerError::Version(version) = fault {
                peers.name_version(address, version);
                stream.write_all(&codec::versions()).await.ok()?;
                stream.flush().await.ok()?;
            }
            return None;
        }
    };
    stream.write_all(&packet).await.ok()?;
    stream.flush().await.ok()?;
    let mut read = BytesMut::new();
    loop {
        match answering.question(&mut read) {
            Ok(Some(question)) => {
                // From here on it is known to be a peer.
                peers.name_version(address, answering.version());
                return Some((answering, read, question));
            }
            Ok(None) => {}
            Err(fault) => {
                peers.refuse(address, fault);
                return None;
            }
        }
        if stream.read_buf(&mut read).await.ok()? == 0 {
            return None;
        }
    }
}

/// The asked side of a conversation.
struct Answerer {
    shared: Arc<Shared>,
    peers: Arc<Peers>,
    stream: ClientStream,
    answering: Answering,
    read: BytesMut,
    /// Known, and not yet sent.
    ready: Vec<Answered>,
    /// Keys whose last answer is not known.
    under_way: usize,
    tell: mpsc::Sender<Answered>,
    answered: mpsc::Receiver<Answered>,
    _conversation: Conversation,
    /// Of the router that asks.
    address: Option<SocketAddr>,
}

impl Answerer {
    /// Until the other side hangs up, breaks the protocol, or is silent for long. What it asked for
    /// is done all the same.
    async fn converse(mut self, first: Question) -> Option<()> {
        self.take(first).await?;
        let most = QuestionKind::Cancel.limits().under_way;
        loop {
            while let Some(question) = self.answering.question(&mut self.read).ok()? {
                self.take(question).await?;
            }
            while let Ok(answered) = self.answered.try_recv() {
                self.note(answered);
            }
            self.say().await?;
            tokio::select! {
                read = self.stream.read_buf(&mut self.read), if self.under_way < most => {
                    if read.ok()? == 0 {
                        return None;
                    }
                }
                Some(answered) = self.answered.recv() => self.note(answered),
                () = sleep(IDLE), if self.under_way == 0 => return None,
            }
        }
    }

    async fn take(&mut self, question: Question) -> Option<()> {
        match question {
            Question::Cancel(asked) => self.take_cancels(asked),
            Question::Hold { number, request } => {
                let answer = self.carry_out(request).await;
                let packet = self.answering.held(number, &answer);
                self.send(&packet).await?;
            }
            Question::Other(refusal) => {
                debug!(
                    kind = refusal.kind,
                    "a peer asked a question that this release does not answer"
                );
                let packet = self.answering.refuse(refusal);
                self.send(&packet).await?;
            }
        }
        Some(())
    }

    /// At this process and at the others of this router. Cancel requests of the same conversation
    /// wait for that, at most a few seconds: a router has a conversation for holds of its own.
    async fn carry_out(&self, request: Option<HoldRequest>) -> HoldAnswer {
        let Some(mut request) = request else {
            return HoldAnswer::Refused(HoldRefusal::Unsupported);
        };
        if let Some(by) = request.by_mut()
            && let Some(name) = self.address.and_then(|address| self.peers.name_at(address.ip()))
        {
            by.router = name;
        }
        let (answer, missing) = self.shared.carry_out(&request).await;
        for process in missing {
            debug!("another process of this router does not follow a peer's order: {process}");
        }
        answer
    }

    fn take_cancels(&mut self, question: Vec<Asked>) {
        for Asked { number, request } in question {
            let known = move |fate| Answered { number, fate };
            let (shared, tell) = (Arc::clone(&self.shared), self.tell.clone());
            match delivery::find(&shared, &request) {
                Some(session) => {
                    self.ready.push(known(Fate::Found));
                    self.under_way += 1;
                    self.shared.tasks.spawn(async move {
                        let outcome = delivery::deliver_to(&shared, &session).await;
                        shared.metrics.cancel(outcome);
                        let _ = tell.send(known(Fate::Done)).await;
                    });
                }
                None if shared.generations.is_alone() => self.ready.push(known(Fate::NotFound)),
                None => {
                    self.under_way += 1;
                    self.shared.tasks.spawn(async move {
                        let fate = match shared.generations.ask_cancel(&request).await {
                            CancelAnswer::Found => Fate::Done,
                            _ => Fate::NotFound,
                        };
                        let _ = tell.send(known(fate)).await;
                    });
                }
            }
        }
    }

    fn note(&mut self, answered: Answered) {
        self.under_way = self.under_way.saturating_sub(1);
        self.ready.push(answered);
    }

    async fn say(&mut self) -> Option<()> {
        for answers in std::mem::take(&mut self.ready).chunks(MOST_AT_ONCE) {
            let packet = self.answering.answer(&Answers {
                incarnation: self.peers.incarnation,
                answers: answers.to_vec(),
            });
            self.send(&packet).await?;
        }
        Some(())
    }

    async fn send(&mut self, packet: &[u8]) -> Option<()> {
        let written = timeout(PATIENCE, async {
            self.stream.write_all(packet).await?;
            self.stream.flush().await
        });
        written.await.ok()?.ok()
    }
}
