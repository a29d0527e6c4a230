#![allow(clippy::unwrap_used)]

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::*;

fn request() -> CancelRequest {
    CancelRequest {
        process_id: 7,
        key: Bytes::from_static(b"0123"),
    }
}

fn listen(name: &str) -> UnixListener {
    let address = SocketAddr::from_abstract_name(name).unwrap();
    let listener = net::UnixListener::bind_addr(&address).unwrap();
    listener.set_nonblocking(true).unwrap();
    UnixListener::from_std(listener).unwrap()
}

fn named(name: &str) -> Generation {
    Generation {
        name: name.to_owned(),
        uid: geteuid().as_raw(),
    }
}

/// A process with one session, which is the request's above.
#[derive(Debug, Default)]
struct Process {
    is_busy: AtomicBool,
}

impl Responder for Process {
    fn cancel(&self, request: &CancelRequest) -> Option<BoxFuture<'static, CancelAnswer>> {
        let said = if self.is_busy.load(Ordering::Relaxed) {
            CancelAnswer::Busy
        } else {
            CancelAnswer::Found
        };
        let is_found = &request.key[..] == b"0123";
        is_found.then(|| std::future::ready(said).boxed())
    }

    fn order(&self, kind: RequestKind, body: &[u8]) -> Answer {
        match kind {
            RequestKind::Sessions => Answer::Done(br#"{"sessions":[]}"#.to_vec()),
            RequestKind::Kill if body == br#"{"id":1}"# => Answer::Done(b"{}".to_vec()),
            RequestKind::Kill => Answer::NotFound,
            RequestKind::Close => Answer::Malformed,
            RequestKind::Member => Answer::Refused("it serves".to_owned()),
            RequestKind::Totals => Answer::Done(vec![b'x'; kind.limits().answer_bytes + 1]),
            _ => panic!("{kind:?} is not for a responder"),
        }
    }
}

struct Running {
    generations: Arc<Generations>,
    process: Arc<Process>,
    stop: CancellationToken,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn run() -> Running {
    let running = Running {
        generations: Arc::default(),
        process: Arc::default(),
        stop: CancellationToken::new(),
    };
    let responder = Arc::clone(&running.process) as Arc<dyn Responder>;
    let stop = running.stop.clone();
    answer(&running.generations, responder, &TaskTracker::new(), stop).unwrap();
    running
}

/// A process of version 1, which answers each of its questions with the next of these; what it was
/// asked.
fn old(name: &str, answers: &'static [u8]) -> tokio::task::JoinHandle<Vec<Vec<u8>>> {
    let listener = listen(name);
    tokio::spawn(async move {
        let mut asked = Vec::new();
        for answer in answers {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = [0; 6];
                stream.read_exact(&mut head).await.unwrap();
                let length = usize::from(u16::from_be_bytes([head[4], head[5]]));
                // As version 1 did: it hangs up without a word.
                if !(4..=256).contains(&length) {
                    continue;
                }
                let mut key = vec![0; length];
                stream.read_exact(&mut key).await.unwrap();
                asked.push([&head[..], &key].concat());
                stream.write_all(&[*answer]).await.unwrap();
                break;
            }
        }
        asked
    })
}

/// The only answer.
async fn only(generations: &Generations, kind: RequestKind, body: &[u8]) -> Heard {
    let mut all = generations.ask(kind, body).await;
    assert_eq!(all.len(), 1, "{all:?}");
    all.pop().unwrap()
}

fn error(heard: &Heard) -> String {
    heard.missing(heard.answer.as_ref().unwrap_err())
}

#[tokio::test]
async fn every_kind_is_carried_out_or_refused_by_name() {
    let (asking, other) = (Generations::default(), run());
    asking.add([named(other.generations.own())]);
    let own = std::process::id();
    let sessions = only(&asking, RequestKind::Sessions, b"{}").await;
    assert_eq!(sessions.process_id, Some(own));
    assert_eq!(
        sessions.answer.unwrap(),
        Answer::Done(br#"{"sessions":[]}"#.to_vec())
    );
    let kill = async |body: &[u8]| only(&asking, RequestKind::Kill, body).await.answer.unwrap();
    assert_eq!(kill(br#"{"id":1}"#).await, Answer::Done(b"{}".to_vec()));
    assert_eq!(kill(br#"{"id":2}"#).await, Answer::NotFound);
    for (kind, why) in [
        (RequestKind::Close, "makes no sense"),
        (RequestKind::Member, "it says: it serves"),
        (RequestKind::Totals, "the answer is too long"),
    ] {
        let error = error(&only(&asking, kind, b"{}").await);
        assert!(
            error.contains(why) && error.contains(&own.to_string()),
            "{kind:?}: {error}"
        );
    }
    // What does not fit is not sent.
    let long = vec![b' '; 2000];
    let error = error(&only(&asking, RequestKind::Kill, &long).await);
    assert!(error.contains("2000 bytes"), "{error}");
}

#[tokio::test]
async fn a_request_of_a_later_release_is_answered() {
    let other = run();
    let (mut stream, _) = connect(&named(other.generations.own())).unwrap();
    let mut bytes = codec::hello();
    bytes.extend([0, 0, 0, 3, 77, b'{', b'}']);
    stream.write_all(&bytes).await.unwrap();
    assert_eq!(
        codec::read_opening(&mut stream).await.unwrap(),
        Opening::Hello(codec::VERSION)
    );
    let said = codec::read_answer(&mut stream, RequestKind::Kill).await.unwrap();
    assert_eq!(said, Answer::UnknownKind);
}

#[tokio::test]
async fn a_busy_process_is_named() {
    let asking = Generations::default();
    let slow = Generations::default();
    let listener = listen(slow.own());
    asking.add([named(slow.own())]);
    let answering = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        codec::read_opening(&mut stream).await.unwrap();
        let _request = codec::read_request(&mut stream).await.unwrap();
        let busy = codec::answer(Some(RequestKind::Sessions), &Answer::Busy).unwrap();
        stream.write_all(&[codec::hello(), busy].concat()).await.unwrap();
    });
    let error = error(&only(&asking, RequestKind::Sessions, b"{}").await);
    assert!(error.contains("too many requests"), "{error}");
    answering.await.unwrap();
}

#[tokio::test]
async fn a_cancel_is_found_wherever_its_session_is() {
    let asking = Generations::default();
    assert_eq!(asking.ask_cancel(&request()).await, CancelAnswer::NotFound);
    let (silent, knowing) = (Generations::default(), run());
    let _silent = listen(silent.own());
    asking.add([silent.own(), "trunkline-gone", knowing.generations.own()].map(named));
    asking.add([asking.own(), silent.own()].map(named));
    // The silent one would take its whole time.
    let limit = RequestKind::Cancel.limits().time;
    let found = timeout(limit / 2, asking.ask_cancel(&request())).await;
    assert_eq!(found.unwrap(), CancelAnswer::Found);
    let family = asking.family();
    let expected = [silent.own(), knowing.generations.own(), asking.own()].map(named);
    assert_eq!(family, expected, "those that live, each once");
    knowing.process.is_busy.store(true, Ordering::Relaxed);
    let asking = Generations::default();
    asking.add([named(knowing.generations.own())]);
    assert_eq!(asking.ask_cancel(&request()).await, CancelAnswer::Busy);
    let other = CancelRequest {
        key: Bytes::from_static(b"other"),
        ..request()
    };
    assert_eq!(asking.ask_cancel(&other).await, CancelAnswer::NotFound);
}

#[tokio::test]
async fn a_process_that_hangs_up_is_not_one_without_the_session() {
    let (asking, third) = (Generations::default(), Generations::default());
    let listener = listen(third.own());
    asking.add([named(third.own())]);
    let hanging_up = tokio::spawn(async move {
        for _ in 0..2 {
            drop(listener.accept().await.unwrap());
        }
        listener
    });
    assert_eq!(asking.ask_cancel(&request()).await, CancelAnswer::Unasked);
    drop(hanging_up.await.unwrap());
    assert_eq!(
        asking.ask_cancel(&request()).await,
        CancelAnswer::NotFound,
        "it has ended"
    );
}

#[tokio::test]
async fn version_1_is_asked_about_cancels_and_named_for_everything_else() {
    let (asking, before) = (Generations::default(), Generations::default());
    asking.add([named(before.own())]);
    let answering = old(before.own(), &[OLD_FOUND, OLD_NOT_FOUND, OLD_BUSY, OLD_NOT_FOUND]);
    for said in [CancelAnswer::Found, CancelAnswer::NotFound, CancelAnswer::Busy] {
        assert_eq!(asking.ask_cancel(&request()).await, said);
    }
    let error = error(&only(&asking, RequestKind::Sessions, b"{}").await);
    assert!(
        error.contains("speaks version 1") && error.contains("this one version 2"),
        "{error}"
    );
    assert_eq!(asking.others()[0].version, Some(1), "it is logged once");
    let asked = answering.await.unwrap();
    assert_eq!(asked[0], b"\0\0\0\x07\0\x040123");
    assert_ne!(asked[3][6..], asked[0][6..], "a key that no session has");
}

#[tokio::test]
async fn version_1_gets_the_answers_that_it_understands() {
    let other = run();
    let known = named(other.generations.own());
    let ask = async |key: &'static [u8]| {
        let request = CancelRequest {
            key: Bytes::from_static(key),
            ..request()
        };
        ask_old(&known, &request).await.unwrap()
    };
    assert_eq!(ask(b"0123").await, Answer::Done(Vec::new()));
    assert_eq!(ask(b"other").await, Answer::NotFound);
    other.process.is_busy.store(true, Ordering::Relaxed);
    assert_eq!(ask(b"0123").await, Answer::Busy);
}

#[tokio::test]
async fn a_later_version_is_named_on_both_sides() {
    // It asks: it hears this version, and nothing else.
    let other = run();
    let (mut stream, _) = connect(&named(other.generations.own())).unwrap();
    stream.write_all(b"TRNK\xff\x03and more").await.unwrap();
    assert_eq!(
        codec::read_opening(&mut stream).await.unwrap(),
        Opening::Hello(codec::VERSION)
    );
    let error = codec::read_answer(&mut stream, RequestKind::Kill).await;
    assert!(error.is_err());
    // It is asked, and says its version.
    let (asking, later) = (Generations::default(), Generations::default());
    let listener = listen(later.own());
    asking.add([named(later.own())]);
    let answering = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"TRNK\xff\x03").await.unwrap();
        let _ = stream.read_to_end(&mut Vec::new()).await;
    });
    let error = self::error(&only(&asking, RequestKind::Sessions, b"{}").await);
    assert!(error.contains("speaks version 3"), "{error}");
    answering.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_process_that_hangs_costs_its_time_and_is_named() {
    let (asking, silent) = (Generations::default(), Generations::default());
    let _silent = listen(silent.own());
    asking.add([named(silent.own())]);
    for kind in RequestKind::ALL {
        let began = tokio::time::Instant::now();
        let heard = only(&asking, kind, b"{}").await;
        let limit = kind.limits().time;
        assert!(
            began.elapsed() >= limit && began.elapsed() < limit * 2,
            "{kind:?}"
        );
        let error = error(&heard);
        let expected = format!("process {}: it did not answer within", std::process::id());
        assert!(error.starts_with(&expected), "{error}");
    }
    // So it is with totals, and a hung process delays few scrapes.
    let began = tokio::time::Instant::now();
    assert_eq!(asking.refresh_totals().await.len(), 1);
    assert!(!began.elapsed().is_zero());
    tokio::time::advance(Duration::from_secs(2)).await;
    let began = tokio::time::Instant::now();
    assert_eq!(asking.refresh_totals().await.len(), 1, "named again");
    assert!(began.elapsed().is_zero(), "and not asked again");
}

#[tokio::test]
async fn totals_that_make_no_sense_are_missing() {
    let (asking, other) = (Generations::default(), run());
    asking.add([named(other.generations.own())]);
    let missing = asking.refresh_totals().await;
    assert!(missing[0].contains("too long"), "{missing:?}");
    drop(other);
}

#[tokio::test]
async fn another_user_who_takes_a_name_is_not_asked() {
    let (asking, squatter) = (Generations::default(), Generations::default());
    let listener = listen(squatter.own());
    asking.add([Generation {
        name: squatter.own().to_owned(),
        uid: geteuid().as_raw() + 1,
    }]);
    assert_eq!(asking.ask_cancel(&request()).await, CancelAnswer::NotFound);
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut heard = Vec::new();
    stream.read_to_end(&mut heard).await.unwrap();
    assert!(heard.is_empty());
    assert_eq!(asking.family().len(), 1, "it is forgotten");
}

#[tokio::test]
async fn those_that_have_ended_make_room_for_those_that_live() {
    let (generations, alive) = (Generations::default(), Generations::default());
    let _alive = listen(alive.own());
    generations.add([named(alive.own())]);
    generations.add((0..MOST + 3).map(|number| named(&format!("trunkline-ended-{number}"))));
    assert_eq!(generations.family(), [alive.own(), generations.own()].map(named));
}
