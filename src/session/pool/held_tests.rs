//! Clients that are held: what is kept of them, what they may do meanwhile, and that they are
//! served afterwards.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::conversations::{bind, execute, parse, query, sync};
use super::stage::{Stage, direct};
use crate::session::end::Cause;
use crate::session::gate::{Gate, Group};
use crate::session::registry::Phase;
use crate::session::simulator::short;

const LIMIT: u64 = 64 << 10;

fn gate(stage: &Stage) -> Arc<Gate> {
    stage.scene.occupancy.gate(&stage.scene.route)
}

fn refresh(stage: &Stage) {
    let scene = &stage.scene;
    gate(stage).holds_logins(|| scene.script.cluster.snapshot(), &scene.route);
}

/// A client of a route that is paused; a hold has [`LIMIT`] bytes.
fn paused() -> Stage {
    let pool = "pool: {mode: transaction, max_connections: 1}";
    let stage = Stage::of(&format!("{pool}, hold: {{max_bytes: 64kB}}"), &[]);
    let end = Instant::now() + Duration::from_mins(5);
    assert!(stage.scene.occupancy.paused_routes().pause("rw", end));
    refresh(&stage);
    stage
}

async fn unpause(stage: &mut Stage) {
    assert!(stage.scene.occupancy.paused_routes().unpause("rw"));
    refresh(stage);
    stage.settle().await;
}

#[tokio::test(start_paused = true)]
async fn requests_beyond_max_bytes_stay_unread_and_are_served() {
    let mut stage = paused();
    let gate = gate(&stage);
    // Others are held, with as many bytes as a hold may have.
    let others = gate.hold(Group::UNPOOLED, LIMIT).expect("there is room");
    stage.settle().await;
    assert_eq!(gate.held(), (1, LIMIT), "one that asks nothing takes no place");
    let said = [query("SELECT 1"), query("SELECT 2")].concat();
    stage.say(&said).await;
    assert_eq!(gate.held(), (2, LIMIT), "it is held, and nothing of it is kept");
    assert_eq!(stage.entry.phase(), Phase::Waiting);
    drop(others);
    unpause(&mut stage).await;
    assert_eq!(stage.heard, direct(&said));
    assert_eq!(gate.held(), (0, 0));
    stage.assert_given_back("afterwards");
}

/// Also where the gate opens in between, and nothing that the client asks later.
#[tokio::test(start_paused = true)]
async fn a_cancel_hits_the_request_that_was_unread_and_no_later_one() {
    for opens_first in [false, true] {
        let mut stage = paused();
        let gate = gate(&stage);
        let others = gate.hold(Group::UNPOOLED, LIMIT).expect("there is room");
        stage.say(&query("SELECT 1")).await;
        assert_eq!(stage.entry.phase(), Phase::Waiting);
        assert!(stage.entry.cancel_wait());
        if !opens_first {
            stage.settle().await;
        }
        drop(others);
        unpause(&mut stage).await;
        assert_eq!(short(&stage.heard), "ERROR 57014 ZI", "{opens_first}");
        for text in ["SELECT 2", "SELECT 3"] {
            let before = stage.heard.len();
            stage.say(&query(text)).await;
            assert_eq!(stage.heard[before..], direct(&query(text)), "{opens_first}");
        }
        stage.assert_given_back("afterwards");
    }
}

/// It is read then, and gets its answer; nobody goes round in circles.
#[tokio::test(start_paused = true)]
async fn a_request_that_has_no_place_among_the_unread_is_refused() {
    let pool = "pool: {mode: transaction, max_connections: 1}";
    let mut stage = Stage::of(&format!("{pool}, hold: {{max_bytes: 64kB, max_clients: 1}}"), &[]);
    let end = Instant::now() + Duration::from_mins(5);
    assert!(stage.scene.occupancy.paused_routes().pause("rw", end));
    refresh(&stage);
    let gate = gate(&stage);
    let others = gate.hold(Group::UNPOOLED, LIMIT).expect("there is room");
    for _ in 0..3 {
        stage.say(&query("SELECT 1")).await;
    }
    assert_eq!(
        short(&stage.heard),
        "ERROR 57P03 ZI ERROR 57P03 ZI ERROR 57P03 ZI"
    );
    assert_eq!(gate.held(), (1, LIMIT));
    drop(others);
    unpause(&mut stage).await;
    let before = stage.heard.len();
    stage.say(&query("SELECT 1")).await;
    assert_eq!(stage.heard[before..], direct(&query("SELECT 1")));
}

/// Its place counts what is read; the rest stays unread until there is a server.
#[tokio::test(start_paused = true)]
async fn a_long_request_is_read_in_part_while_clients_are_held() {
    let mut stage = paused();
    let gate = gate(&stage);
    let said = [parse("long", &"x".repeat(500_000)), sync()].concat();
    stage.say(&said).await;
    stage.pass(Duration::from_secs(1)).await;
    let (held, bytes) = gate.held();
    assert!(held == 1 && (LIMIT..2 * LIMIT).contains(&bytes), "{held} {bytes}");
    unpause(&mut stage).await;
    stage.pass(Duration::from_secs(1)).await;
    assert_eq!(stage.heard, direct(&said));
    assert_eq!(gate.held(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_request_below_max_bytes_is_read_once_and_counted() {
    let mut stage = paused();
    let gate = gate(&stage);
    let others = gate.hold(Group::UNPOOLED, LIMIT - 1).expect("there is room");
    let said = query("SELECT 1");
    stage.say(&said).await;
    let bytes = u64::try_from(said.len()).expect("it is short");
    assert_eq!(gate.held(), (2, LIMIT - 1 + bytes));
    // What the client sends behind it stays in the kernel.
    let more = query("SELECT 2");
    stage.say(&more).await;
    assert_eq!(gate.held(), (2, LIMIT - 1 + bytes));
    drop(others);
    unpause(&mut stage).await;
    assert_eq!(stage.heard, direct(&[said, more].concat()));
    assert_eq!(gate.held(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn half_a_message_is_not_held_and_the_whole_one_is() {
    let said = query("SELECT 1");
    for split in 1..said.len() {
        let mut stage = paused();
        stage.say(&said[..split]).await;
        assert_eq!(gate(&stage).held(), (0, 0), "at {split}");
        stage.say(&said[split..]).await;
        assert_eq!(gate(&stage).held().0, 1, "at {split}");
        unpause(&mut stage).await;
        assert_eq!(stage.heard, direct(&said), "at {split}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_held_client_that_does_not_read_is_served_and_loses_nothing() {
    let mut stage = paused();
    stage.client_listens = false;
    let said = query("SELECT 1");
    stage.say(&said).await;
    assert_eq!(gate(&stage).held().0, 1);
    unpause(&mut stage).await;
    assert_eq!(gate(&stage).held(), (0, 0));
    stage.client_listens = true;
    stage.settle().await;
    assert_eq!(stage.heard, direct(&said));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_gives_its_place_back() {
    // Its connection is reset.
    let mut stage = paused();
    stage.say(&query("SELECT 1")).await;
    let gate_of = gate(&stage);
    assert_eq!(gate_of.held().0, 1);
    stage.client_leaves(true).await;
    stage.pass(Duration::from_secs(10)).await;
    assert!(stage.end.is_some(), "it has ended");
    drop(stage.end.take());
    assert_eq!(gate_of.held(), (0, 0));
    assert_eq!(stage.counts(), [0, 0, 0], "nothing was opened for it");

    // It closes its side: it may have asked again elsewhere by now.
    let mut stage = paused();
    stage.say(&query("SELECT 1")).await;
    let gate_of = gate(&stage);
    assert_eq!(gate_of.held().0, 1);
    stage.close_client_side().await;
    stage.pass(Duration::from_secs(10)).await;
    assert!(stage.end.is_some(), "it has ended");
    drop(stage.end.take());
    assert_eq!(gate_of.held(), (0, 0));
    assert_eq!(stage.counts(), [0, 0, 0], "nothing was opened for it");

    // It says goodbye between two requests.
    let mut stage = paused();
    stage.say(b"X\0\0\0\x04").await;
    assert!(stage.end.is_some(), "it has ended");
    assert_eq!(gate(&stage).held(), (0, 0));

    // Behind a request that is held: the request comes first.
    let mut stage = paused();
    let said = query("SELECT 1");
    stage.say(&[&said[..], b"X\0\0\0\x04"].concat()).await;
    unpause(&mut stage).await;
    assert!(stage.end.is_some(), "it has ended");
    assert_eq!(gate(&stage).held(), (0, 0));
}

/// Requests that are longer than what is read of a client that is held.
fn long_requests() -> Vec<Vec<u8>> {
    let text = |length: usize| format!("INSERT {}", "x".repeat(length));
    let one = [parse("", "INSERT"), bind(""), execute()].concat();
    let named = [parse("a", &text(200_000)), bind("a"), execute()].concat();
    vec![
        query(&text(200_000)),
        query(&text(500_000)),
        [one.repeat(4000), sync()].concat(),
        [named, sync()].concat(),
        [parse("", &text(200_000)), bind(""), execute(), sync()].concat(),
    ]
}

/// Behind what is not read yet its end cannot be seen while it is held.
#[tokio::test(start_paused = true)]
async fn a_client_that_has_left_with_a_part_of_its_request_unread_is_not_served() {
    for said in long_requests() {
        for (most, sent_before) in [
            (usize::MAX, said.len()),
            (usize::MAX, 150_000),
            (1000, said.len()),
            (said.len() / 2, 150_000),
        ] {
            let at = format!("{} of {}, {most}, {sent_before}", said[0], said.len());
            let mut stage = paused();
            stage.client_is_read_by(most);
            stage.closes_behind = sent_before == said.len();
            stage.say(&said[..sent_before]).await;
            stage.pass(Duration::from_secs(1)).await;
            let is_held = gate(&stage).held().0 == 1;
            unpause(&mut stage).await;
            if sent_before < said.len() {
                assert!(stage.end.is_none(), "{at}");
                stage.closes_behind = true;
                stage.say(&said[sent_before..]).await;
            }
            stage.pass(Duration::from_secs(1)).await;
            let (cause, _) = stage.end.take().unwrap_or_else(|| panic!("{at}"));
            assert_eq!(cause, Cause::ClientGone, "{at}");
            for server in &stage.servers {
                let got = &server.model.got;
                assert!(!got.contains(['Q', 'S']), "{at}: {got}");
            }
            assert!(is_held || most < said.len(), "{at}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_stays_is_served_whatever_its_pieces() {
    for said in long_requests() {
        for most in [1000, 1001, 65_536, usize::MAX] {
            let at = format!("{} of {}, {most}", said[0], said.len());
            let mut stage = paused();
            stage.client_is_read_by(most);
            stage.say(&said).await;
            stage.pass(Duration::from_secs(1)).await;
            unpause(&mut stage).await;
            stage.pass(Duration::from_secs(1)).await;
            assert!(stage.heard == direct(&said), "{at}: {}", short(&stage.heard));
            // From now on it is as any other.
            stage.say(&query("SELECT 1")).await;
            assert!(stage.heard.ends_with(&direct(&query("SELECT 1"))), "{at}");
            stage.assert_given_back(&at);
        }
    }
}
