#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};
use tokio::task::yield_now;

use super::super::history::{INTERVAL, Readings};
use super::super::http::fixture::{self, NothingHeld};
use super::*;
use crate::config::{LocalMember, Secret};
use crate::events::OperatorEvent;

struct Scene {
    live: Live,
    handles: Handles,
    snapshots: watch::Sender<Arc<crate::cluster::snapshot::Snapshot>>,
    stop: CancellationToken,
    leaving: CancellationToken,
    _sender: watch::Sender<Handles>,
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn source(last: u8) -> IpAddr {
    [10, 0, 0, last].into()
}

fn held() -> Value {
    json!({
        "route": "read-write", "cluster": "main", "clients": 12, "kind": "switchover", "cause": "…",
        "by": {"router": "router2", "operator": "HTTP from 127.0.0.1:53462"},
        "since_ms": 1, "held_s": 3, "until_ms": 2, "left_s": 19, "ended_by": "…",
    })
}

fn scene() -> Scene {
    let members = vec![fixture::primary("db1"), fixture::member("db2")];
    let (snapshots, receiver) = watch::channel(Arc::new(fixture::led(members)));
    let mut view = fixture::view(fixture::snapshot(), LocalMember::None);
    view.snapshot = receiver;
    let mut handles = fixture::handles(vec![view]);
    handles
        .token
        .store(Some(Arc::new(Secret::new("0123456789abcdef"))));
    handles.holding = Arc::new(NothingHeld {
        held: serde_json::from_value(held()).unwrap(),
        ..NothingHeld::default()
    });
    let (sender, receiver) = watch::channel(handles.clone());
    let (live, stop) = (Live::default(), CancellationToken::new());
    tokio::spawn(publish(live.clone(), receiver, stop.clone()));
    Scene {
        live,
        handles,
        snapshots,
        stop,
        leaving: CancellationToken::new(),
        _sender: sender,
    }
}

impl Scene {
    fn reader(&self, has_token: bool, resumed: Option<&str>) -> Reader {
        let place = self.live.place(source(1), has_token).unwrap();
        let resumed = resumed.and_then(Resumed::of);
        Reader::new(
            place,
            self.handles.clone(),
            has_token,
            resumed,
            self.leaving.clone(),
        )
    }
}

/// A message: its id, its name, its data.
type Message = (Option<String>, String, Value);

async fn read(reader: &mut Reader) -> Vec<Message> {
    let piece = reader.next().await.unwrap();
    let text = std::str::from_utf8(&piece).unwrap().to_owned();
    assert!(text.ends_with("\n\n"), "{text}");
    let messages = text.trim_end().split("\n\n").filter(|message| *message != ":");
    messages
        .map(|message| {
            let field = |name: &str| {
                let mut lines = message.lines();
                lines.find_map(|line| line.strip_prefix(name).map(str::to_owned))
            };
            let data = serde_json::from_str(&field("data: ").unwrap()).unwrap();
            (field("id: "), field("event: ").unwrap(), data)
        })
        .collect()
}

/// Reads on until there is a message of this name.
async fn until(reader: &mut Reader, name: &str) -> Message {
    loop {
        let found = read(reader).await.into_iter().find(|(_, is, _)| is == name);
        if let Some(found) = found {
            return found;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_reader_gets_all_there_is_and_then_what_changes() {
    let scene = scene();
    let mut reader = scene.reader(false, None);
    let hello = read(&mut reader).await;
    assert_eq!((&*hello[0].1, &hello[0].2["resumed"]), ("hello", &json!(false)));
    let all = read(&mut reader).await;
    let names: Vec<&str> = all.iter().map(|(_, name, _)| name.as_str()).collect();
    assert_eq!(
        names,
        [
            "router",
            "clusters",
            "members",
            "routes",
            "switchover",
            "pools",
            "health"
        ]
    );
    assert_eq!(all[1].2[0]["leader"]["member"], "db1");
    assert_eq!(all[3].2[0]["hold"]["clients"], 12);
    let changed = fixture::led(vec![fixture::primary("db2"), fixture::member("db1")]);
    let changed = crate::cluster::snapshot::Snapshot {
        version: 2,
        ..changed
    };
    let at = Instant::now();
    scene.snapshots.send_replace(Arc::new(changed));
    let (_, _, clusters) = until(&mut reader, "clusters").await;
    assert_eq!(clusters[0]["leader"]["member"], "db2");
    assert!(at.elapsed() <= LOOK, "{:?}", at.elapsed());
    scene
        .handles
        .events
        .emit(OperatorEvent::RouterReady { by: "-".to_owned() });
    let (id, _, event) = until(&mut reader, "happened").await;
    assert_eq!(
        (&event["event"], &event["number"]),
        (&json!("router_ready"), &json!(1))
    );
    assert!(id.unwrap().ends_with("-1-0"));
    scene.handles.history.add(Readings::of(""), SystemTime::now());
    let (id, _, points) = until(&mut reader, "points").await;
    assert_eq!(points["number"], 1);
    assert!(id.unwrap().ends_with("-1-1"));
}

#[tokio::test(start_paused = true)]
async fn what_does_not_change_is_not_sent_again_and_a_quiet_stream_lives() {
    let scene = scene();
    let mut reader = scene.reader(false, None);
    read(&mut reader).await;
    read(&mut reader).await;
    let at = Instant::now();
    assert_eq!(reader.next().await.unwrap(), ":\n\n");
    assert!(at.elapsed() >= Duration::from_secs(14), "{:?}", at.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_gets_the_newest_and_nothing_queues() {
    let scene = scene();
    let mut slow = scene.reader(false, None);
    read(&mut slow).await;
    read(&mut slow).await;
    let mut fast = scene.reader(false, None);
    until(&mut fast, "clusters").await;
    for version in 2..1000 {
        let leader = if version % 2 == 0 {
            ["db2", "db1"]
        } else {
            ["db1", "db2"]
        };
        let changed = fixture::led(vec![fixture::primary(leader[0]), fixture::member(leader[1])]);
        scene
            .snapshots
            .send_replace(Arc::new(crate::cluster::snapshot::Snapshot {
                version,
                ..changed
            }));
        let (_, _, clusters) = until(&mut fast, "clusters").await;
        assert_eq!(clusters[0]["version"], version);
        scene
            .handles
            .events
            .emit(OperatorEvent::RouterReady { by: "-".to_owned() });
        scene
            .handles
            .events
            .emit(OperatorEvent::RouterDrained { by: "-".to_owned() });
    }
    let mut clusters = Vec::new();
    let mut events = Vec::new();
    while events.last() != Some(&scene.handles.events.newest()) {
        let messages = read(&mut slow).await;
        assert!(messages.len() <= 106, "{}", messages.len());
        for (_, name, data) in messages {
            match name.as_str() {
                "clusters" => clusters.push(data[0]["version"].as_u64().unwrap()),
                "happened" => events.push(data["number"].as_u64().unwrap()),
                _ => {}
            }
        }
    }
    assert_eq!(clusters, [999], "it has missed the others");
    assert_eq!(events.len(), crate::events::KEPT);
}

/// One thread answers all of HTTP: checks must not wait until nothing happens any more.
#[tokio::test(start_paused = true)]
async fn others_have_their_turn_between_two_pieces() {
    let scene = scene();
    let mut reader = scene.reader(false, None);
    until(&mut reader, "hello").await;
    let turns = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&turns);
    let other = tokio::spawn(async move {
        loop {
            counted.fetch_add(1, Ordering::Relaxed);
            yield_now().await;
        }
    });
    for piece in 1..=20 {
        // There is always more than one piece can have.
        for _ in 0..200 {
            scene
                .handles
                .events
                .emit(OperatorEvent::RouterReady { by: "me".to_owned() });
        }
        reader.next().await.unwrap();
        assert!(turns.load(Ordering::Relaxed) >= piece, "after {piece} pieces");
    }
    other.abort();
}

#[tokio::test(start_paused = true)]
async fn a_reader_goes_on_where_it_was() {
    let scene = scene();
    let mut reader = scene.reader(false, None);
    for _ in 0..3 {
        scene
            .handles
            .events
            .emit(OperatorEvent::RouterReady { by: "-".to_owned() });
    }
    scene.handles.history.add(Readings::of(""), SystemTime::now());
    let mut id = None;
    while id.as_ref().is_none_or(|id: &String| !id.ends_with("-3-1")) {
        id = read(&mut reader)
            .await
            .into_iter()
            .rev()
            .find_map(|(id, ..)| id)
            .or(id);
    }
    let id = id.unwrap();
    drop(reader);
    scene
        .handles
        .events
        .emit(OperatorEvent::RouterDrained { by: "-".to_owned() });
    scene.handles.history.add(Readings::of(""), SystemTime::now());
    let mut again = scene.reader(false, Some(&id));
    assert_eq!(read(&mut again).await[0].2["resumed"], true);
    let (mut numbers, mut points) = (Vec::new(), Vec::new());
    while points.is_empty() || numbers.is_empty() {
        for (_, name, data) in read(&mut again).await {
            match name.as_str() {
                "happened" => numbers.push(data["number"].as_u64().unwrap()),
                "points" => points.push(data["time_ms"].as_array().unwrap().len()),
                _ => {}
            }
        }
    }
    assert_eq!((numbers, points), (vec![4], vec![1]));
    let run = id.split('-').next().unwrap();
    for of_another in [
        "7-3-1",
        "7-3",
        "x",
        "",
        &format!("{run}-9-1"),
        &format!("{run}-3-9"),
    ] {
        let mut fresh = scene.reader(false, Some(of_another));
        assert_eq!(read(&mut fresh).await[0].2["resumed"], false, "{of_another}");
    }
}

#[tokio::test(start_paused = true)]
async fn only_who_has_the_token_learns_who_ordered() {
    let scene = scene();
    for (has_token, operator) in [(false, ""), (true, "HTTP from 127.0.0.1:53462")] {
        let mut reader = scene.reader(has_token, None);
        let (_, _, routes) = until(&mut reader, "routes").await;
        assert_eq!(routes[0]["hold"]["by"]["operator"], operator);
        assert_eq!(routes[0]["hold"]["by"]["router"], "router2");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_ends_with_the_listener_with_the_token_and_after_a_time() {
    let scene = scene();
    let mut reader = scene.reader(true, None);
    read(&mut reader).await;
    let begun = Instant::now();
    while reader.next().await.is_some() {}
    assert_eq!(begun.elapsed(), Duration::from_mins(10));
    let mut reader = scene.reader(true, None);
    read(&mut reader).await;
    scene
        .handles
        .token
        .store(Some(Arc::new(Secret::new("another token 16"))));
    while reader.next().await.is_some() {}
    assert!(begun.elapsed() < Duration::from_mins(11), "{:?}", begun.elapsed());
    let mut reader = scene.reader(true, None);
    read(&mut reader).await;
    scene.leaving.cancel();
    let now = Instant::now();
    while reader.next().await.is_some() {}
    assert_eq!(now.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn readers_are_limited_in_all_and_of_one_address() {
    let live = Live::default();
    let mut places: Vec<Place> = (0..MOST_OF_SOURCE)
        .map(|_| live.place(source(1), false).unwrap())
        .collect();
    assert_eq!(live.place(source(1), false).err(), Some(Full::OfSource));
    for number in MOST_OF_SOURCE..MOST_READERS {
        let other = source(2 + u8::try_from(number / MOST_OF_SOURCE).unwrap());
        places.push(live.place(other, false).unwrap());
    }
    assert_eq!(live.place(source(99), false).err(), Some(Full::All));
    places.remove(0);
    let again = live.place(source(1), false).unwrap();
    assert_eq!(live.place(source(1), false).err(), Some(Full::All));
    drop((again, places));
    assert!(live.places().taken.is_empty(), "nothing is left behind");
    assert_eq!(*live.0.readers.borrow(), 0);
}

#[tokio::test(start_paused = true)]
async fn who_has_the_token_gets_the_place_of_the_oldest_without_it() {
    let scene = scene();
    let place = |last: u8, has_token: bool| scene.live.place(source(last), has_token);
    let mut first = scene.reader(false, None);
    let mut kept = scene.reader(true, None);
    for reader in [&mut first, &mut kept] {
        read(reader).await;
    }
    let others: Vec<Place> = (2..MOST_OF_SOURCE).map(|_| place(1, false).unwrap()).collect();
    assert_eq!(place(1, false).err(), Some(Full::OfSource));
    let operator = place(1, true).unwrap();
    assert_eq!(scene.live.readers(), MOST_OF_SOURCE);
    // It is told, and that is its end.
    let (_, _, told) = until(&mut first, "ended").await;
    assert!(told["why"].as_str().unwrap().contains("with the token"), "{told}");
    assert!(first.next().await.is_none());
    drop(first);
    assert_eq!(
        scene.live.readers(),
        MOST_OF_SOURCE,
        "its place was taken already"
    );
    assert_eq!(
        place(1, false).err(),
        Some(Full::OfSource),
        "and it does not get it back"
    );
    // Of other addresses, up to the limit of all.
    let count = MOST_READERS - MOST_OF_SOURCE;
    let far: Vec<Place> = (0..count)
        .map(|number| place(2 + u8::try_from(number / MOST_OF_SOURCE).unwrap(), false).unwrap())
        .collect();
    assert_eq!(place(99, false).err(), Some(Full::All));
    let more: Vec<Place> = (0..count + others.len())
        .map(|number| place(100 + u8::try_from(number).unwrap(), true).unwrap())
        .collect();
    assert!(
        others
            .iter()
            .chain(&far)
            .all(|place| place.makes_room.is_cancelled())
    );
    assert_eq!(place(99, true).err(), Some(Full::All), "all have the token");
    until(&mut kept, "members").await;
    drop((operator, others, far, more, kept));
    assert_eq!(scene.live.readers(), 0);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_put_together_while_nobody_reads() {
    let scene = scene();
    let version = || scene.live.0.now.borrow().parts.version();
    tokio::time::sleep(INTERVAL).await;
    assert_eq!(version(), 0);
    let mut reader = scene.reader(false, None);
    until(&mut reader, "members").await;
    drop(reader);
    tokio::time::sleep(INTERVAL).await;
    let idle = version();
    let changed = fixture::led(vec![fixture::primary("db2"), fixture::member("db1")]);
    scene
        .snapshots
        .send_replace(Arc::new(crate::cluster::snapshot::Snapshot {
            version: 2,
            ..changed
        }));
    tokio::time::sleep(INTERVAL).await;
    assert_eq!(version(), idle);
    // What is old is not shown.
    let mut reader = scene.reader(false, None);
    let (_, _, clusters) = until(&mut reader, "clusters").await;
    assert_eq!(clusters[0]["leader"]["member"], "db2");
}
