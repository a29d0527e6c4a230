#![allow(clippy::unwrap_used)]

use tokio::net::TcpListener;

use super::super::codec::{self, OLD_VERSION, OPENING_LEN, Question, Refusal, VERSION};
use super::*;
use crate::cluster::LeaveToken;
use crate::cluster::snapshot::OrderedBy;
use crate::config::{self, Secret};
use crate::session::holds::{HoldOrder, HoldRefusal, MemberActivity};

const KEY: &str = "shared";

fn request() -> HoldRequest {
    HoldRequest::Hold(HoldOrder {
        cluster: 7,
        member: "db1".to_owned(),
        token: LeaveToken([1, 2]),
        lasts_ms: 3000,
        is_switchover: true,
        by: None,
        ends_ms: None,
    })
}

fn orders(ports: &[u16]) -> PeerOrders {
    let key = PeerKey::new(&Secret::new(KEY));
    let line = |(index, port): (usize, &u16)| {
        let peer = config::Peer {
            name: format!("peer{index}"),
            host: "127.0.0.1".into(),
            port: *port,
        };
        (Line::new(key.clone(), peer), None)
    };
    PeerOrders {
        peers: ports.iter().enumerate().map(line).collect(),
        key,
    }
}

async fn listen() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// What a peer says to a question.
type Said = fn(&mut codec::Answering, u32) -> Vec<u8>;

/// Serves conversations of these versions; each ends after so many questions.
async fn serve(listener: TcpListener, versions: std::ops::RangeInclusive<u8>, questions: usize, said: Said) {
    let key = PeerKey::new(&Secret::new(KEY));
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut opening = [0; OPENING_LEN];
        stream.read_exact(&mut opening).await.unwrap();
        if !versions.contains(&opening[8]) {
            continue;
        }
        let (mut answering, challenge) = codec::answer(&key, &opening[8..]).unwrap();
        stream.write_all(&challenge).await.unwrap();
        let mut read = BytesMut::new();
        let mut left = questions;
        while left > 0 {
            match answering.question(&mut read).unwrap() {
                Some(Question::Hold {
                    number,
                    request: asked,
                }) => {
                    let is_named = matches!(&asked, Some(HoldRequest::Hold(HoldOrder { by: Some(_), .. })));
                    let packet = if is_named {
                        answering.held(number, &HoldAnswer::Refused(HoldRefusal::Unsupported))
                    } else {
                        assert_eq!(asked, Some(request()));
                        said(&mut answering, number)
                    };
                    stream.write_all(&packet).await.unwrap();
                    left -= 1;
                }
                Some(other) => panic!("{other:?}"),
                None => {
                    if stream.read_buf(&mut read).await.unwrap_or(0) == 0 {
                        break;
                    }
                }
            }
        }
    }
}

fn done(answering: &mut codec::Answering, number: u32) -> Vec<u8> {
    let activity = MemberActivity {
        transactions: 3,
        is_leader: true,
        ..MemberActivity::default()
    };
    answering.held(number, &HoldAnswer::Done(activity))
}

fn busy(answering: &mut codec::Answering, number: u32) -> Vec<u8> {
    answering.held(number, &HoldAnswer::Refused(HoldRefusal::SwitchoverRuns))
}

/// As a release without holds.
fn unsupported(answering: &mut codec::Answering, number: u32) -> Vec<u8> {
    answering.refuse(Refusal {
        kind: 2,
        number,
        is_known: true,
    })
}

#[tokio::test]
async fn all_peers_are_asked_at_once_and_each_answers_for_itself() {
    let (one, other, old, oldest) = (listen().await, listen().await, listen().await, listen().await);
    let (gone, closed) = listen().await;
    drop(gone);
    let ports = [one.1, other.1, old.1, oldest.1, closed];
    tokio::spawn(serve(one.0, VERSION..=VERSION, 9, done));
    tokio::spawn(serve(other.0, VERSION..=VERSION, 9, busy));
    tokio::spawn(serve(old.0, VERSION..=VERSION, 9, unsupported));
    tokio::spawn(serve(oldest.0, OLD_VERSION..=OLD_VERSION, 9, done));
    let mut orders = orders(&ports);
    for _ in 0..2 {
        let answers = orders.ask(&request()).await;
        let said: Vec<_> = answers.iter().map(|(_, answer)| answer).collect();
        assert!(
            matches!(said[0], Ok(HoldAnswer::Done(activity)) if activity.transactions == 3 && activity.is_leader)
        );
        assert_eq!(*said[1], Ok(HoldAnswer::Refused(HoldRefusal::SwitchoverRuns)));
        let too_old = |said: &Result<HoldAnswer, String>| {
            said.as_ref()
                .is_err_and(|error| error.starts_with("its release is too old"))
        };
        assert!(too_old(said[2]) && too_old(said[3]), "{said:?}");
        assert!(said[4].is_err());
    }
    assert!(orders.leave_out("peer4") && !orders.leave_out("peer4"));
    assert_eq!(orders.ask(&request()).await.len(), 4);
}

/// As a release that does not know who ordered something.
#[tokio::test]
async fn a_peer_of_an_older_release_is_asked_without_who_ordered_it() {
    let (listener, port) = listen().await;
    tokio::spawn(serve(listener, VERSION..=VERSION, 9, done));
    let mut orders = orders(&[port]);
    let HoldRequest::Hold(mut order) = request() else {
        unreachable!("it is one");
    };
    order.by = Some(OrderedBy::new("router1", "admin"));
    order.ends_ms = Some(27_000);
    for _ in 0..2 {
        let answers = orders.ask(&HoldRequest::Hold(order.clone())).await;
        assert!(matches!(&answers[0].1, Ok(HoldAnswer::Done(_))), "{answers:?}");
    }
}

#[tokio::test]
async fn a_conversation_that_has_ended_is_replaced() {
    let (listener, port) = listen().await;
    tokio::spawn(serve(listener, VERSION..=VERSION, 1, done));
    let mut orders = orders(&[port]);
    for _ in 0..6 {
        let answers = orders.ask(&request()).await;
        assert!(answers[0].1.is_ok(), "{answers:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_costs_a_limited_time() {
    let (_silent, port) = listen().await;
    let began = Instant::now();
    let answers = orders(&[port]).ask(&request()).await;
    assert_eq!(answers[0].1, Err("it did not answer in time".to_owned()));
    assert!(began.elapsed() <= PATIENCE * 2);
}
