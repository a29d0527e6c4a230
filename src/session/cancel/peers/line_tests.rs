#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use tokio::net::TcpListener;

use super::super::codec::{self, Answered, Answering, OPENING_LEN, Question as PeerQuestion};
use super::*;
use crate::config::Secret;

const KEY: &str = "shared";
const SELF: Incarnation = Incarnation(*b"12345678");

struct Peer {
    listener: TcpListener,
    line: Arc<Line>,
    tasks: TaskTracker,
    closing: CancellationToken,
}

/// The peer's end of a conversation.
struct End {
    stream: TcpStream,
    answering: Answering,
    read: BytesMut,
}

impl Peer {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = config::Peer {
            name: "other".into(),
            host: "127.0.0.1".into(),
            port: listener.local_addr().unwrap().port(),
        };
        Self {
            line: Line::new(PeerKey::new(&Secret::new(KEY)), peer),
            listener,
            tasks: TaskTracker::new(),
            closing: CancellationToken::new(),
        }
    }

    fn ask(&self, process_id: u32) -> Awaited {
        let request = CancelRequest {
            process_id,
            key: Bytes::from_static(b"made"),
        };
        self.line.ask(&request, &self.tasks, &self.closing)
    }

    async fn accept(&self) -> End {
        self.accept_in(VERSION).await
    }

    /// A router that speaks nothing else than this version.
    async fn accept_in(&self, version: u8) -> End {
        let (mut stream, opening) = loop {
            let (mut stream, _) = self.listener.accept().await.unwrap();
            let mut opening = [0; OPENING_LEN];
            stream.read_exact(&mut opening).await.unwrap();
            if opening[8] == version {
                break (stream, opening);
            }
        };
        let key = PeerKey::new(&Secret::new(KEY));
        let (answering, challenge) = codec::answer(&key, &opening[8..]).unwrap();
        stream.write_all(&challenge).await.unwrap();
        End {
            stream,
            answering,
            read: BytesMut::new(),
        }
    }
}

impl End {
    async fn question(&mut self) -> Vec<Asked> {
        loop {
            match self.answering.question(&mut self.read).unwrap() {
                Some(PeerQuestion::Cancel(question)) => return question,
                Some(other) => panic!("{other:?}"),
                None => {}
            }
            assert_ne!(self.stream.read_buf(&mut self.read).await.unwrap(), 0);
        }
    }

    async fn say(&mut self, answers: impl IntoIterator<Item = (u32, Fate)>) {
        let answers = answers
            .into_iter()
            .map(|(number, fate)| Answered { number, fate });
        let packet = self.answering.answer(&Answers {
            incarnation: SELF,
            answers: answers.collect(),
        });
        self.stream.write_all(&packet).await.unwrap();
    }
}

#[tokio::test]
async fn many_keys_go_into_one_question_and_each_gets_its_own_answer() {
    let peer = Peer::new().await;
    let asked: Vec<Awaited> = (0..100).map(|process_id| peer.ask(process_id)).collect();
    let mut end = peer.accept().await;
    let mut questions = vec![end.question().await, end.question().await];
    assert_eq!(questions.iter().map(Vec::len).collect::<Vec<_>>(), [64, 36]);
    // Last first; every other one is there, and what it stands for takes time.
    questions.reverse();
    for question in &questions {
        let fate = |asked: &Asked| match asked.request.process_id % 2 {
            0 => Fate::Found,
            _ => Fate::NotFound,
        };
        end.say(question.iter().map(|asked| (asked.number, fate(asked))))
            .await;
    }
    let mut working = Vec::new();
    for (process_id, mut awaited) in asked.into_iter().enumerate() {
        let verdict = awaited.verdict.await.unwrap().unwrap();
        assert_eq!(verdict.is_found, process_id % 2 == 0);
        assert_eq!(verdict.incarnation, SELF);
        if verdict.is_found {
            assert!(awaited.done.try_recv().is_err(), "it is not done");
            working.push(awaited.done);
        }
    }
    for question in questions {
        let found = question.iter().filter(|asked| asked.request.process_id % 2 == 0);
        end.say(found.map(|asked| (asked.number, Fate::Done))).await;
    }
    for done in working {
        done.await.unwrap();
    }
}

#[tokio::test]
async fn what_a_lost_conversation_did_not_answer_is_asked_once_more() {
    let peer = Peer::new().await;
    let first = peer.ask(1);
    let mut end = peer.accept().await;
    let question = end.question().await;
    end.say([(question[0].number, Fate::Done)]).await;
    assert!(first.verdict.await.unwrap().unwrap().is_found);
    let second = peer.ask(2);
    assert_eq!(end.question().await[0].request.process_id, 2);
    drop(end);
    let mut end = peer.accept().await;
    let question = end.question().await;
    assert_eq!(question[0].request.process_id, 2);
    end.say([(question[0].number, Fate::NotFound)]).await;
    assert!(!second.verdict.await.unwrap().unwrap().is_found);
    // One that does not know the secret hangs up at the first question: that is not tried again.
    drop(end);
    let third = peer.ask(3);
    let end = peer.accept().await;
    drop(end);
    let error = third.verdict.await.unwrap().unwrap_err();
    assert!(error.contains("hung up") || error.contains("reset"), "{error}");
}

#[tokio::test]
async fn a_router_of_version_2_is_asked_in_version_2() {
    let peer = Peer::new().await;
    let first = peer.ask(1);
    let mut end = peer.accept_in(OLD_VERSION).await;
    let question = end.question().await;
    end.say([(question[0].number, Fate::Done)]).await;
    let verdict = first.verdict.await.unwrap().unwrap();
    assert!(verdict.is_found);
    assert_eq!(verdict.version, 2);
    // It is upgraded: the next conversation is of version 3.
    drop(end);
    let second = peer.ask(2);
    let mut end = peer.accept().await;
    let question = end.question().await;
    end.say([(question[0].number, Fate::NotFound)]).await;
    assert_eq!(second.verdict.await.unwrap().unwrap().version, 3);
}

#[tokio::test]
async fn a_router_of_a_later_version_is_named() {
    let peer = Peer::new().await;
    let asked = peer.ask(1);
    let (mut stream, _) = peer.listener.accept().await.unwrap();
    stream.read_exact(&mut [0; OPENING_LEN]).await.unwrap();
    let mut versions = codec::versions();
    versions[8..10].copy_from_slice(&[5, 6]);
    stream.write_all(&versions).await.unwrap();
    let error = asked.verdict.await.unwrap().unwrap_err();
    assert!(
        error.contains("speaks versions 5 to 6") && error.contains("this router 2 to 3"),
        "{error}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_is_not_waited_for_and_an_idle_conversation_ends() {
    let peer = Peer::new().await;
    let began = Instant::now();
    let error = peer.ask(1).verdict.await.unwrap().unwrap_err();
    assert_eq!(error, "it did not answer in time");
    assert!(began.elapsed() <= PATIENCE * 2, "{:?}", began.elapsed());
    peer.tasks.close();
    peer.tasks.wait().await;
    // When the router closes, nobody is left waiting.
    peer.closing.cancel();
    assert!(peer.ask(2).verdict.await.is_err());
}
