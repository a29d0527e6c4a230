//! What changes while a session lives: its limits, its process, and what its server has taken.

use super::conversations::{bind, execute, parse, query, sync};
use super::scene::route;
use super::stage::{Stage, direct};
use crate::session::end::{Cause, Order, Reason};
use crate::session::simulator::{frame, short};

#[tokio::test(start_paused = true)]
async fn a_reload_limits_the_statements_of_sessions_that_live() {
    let prepare = |name: &str| [parse(name, "echo a"), sync()].concat();
    let mut stage = Stage::of(
        "pool: {mode: transaction, max_connections: 1, max_statements: 3}",
        &[],
    );
    stage.say(&prepare("a")).await;
    stage.say(&prepare("b")).await;
    assert_eq!(short(&stage.heard), "1 ZI 1 ZI");
    let mut heard = stage.heard.len();
    for (most, name, answer) in [
        (2, "c", "ERROR 53400 ZI"),
        (1, "c", "ERROR 53400 ZI"),
        (3, "c", "1 ZI"),
    ] {
        let keys = format!("targets: [leader], pool: {{mode: transaction, max_statements: {most}}}");
        stage.scene.pools.reconfigure(&[route("rw", &keys, 100).1]);
        stage.say(&prepare(name)).await;
        assert_eq!(short(&stage.heard[heard..]), answer, "{most}");
        heard = stage.heard.len();
        // Nothing is taken away.
        let run = [bind("a"), execute(), bind("b"), execute(), sync()].concat();
        stage.say(&run).await;
        assert_eq!(short(&stage.heard[heard..]), "2 D C 2 D C ZI", "{most}");
        heard = stage.heard.len();
    }
    assert!(stage.end.is_none());
}

/// A process that was replaced ends sessions that have nothing: one that has a connection goes on,
/// one that has none passes nothing more on.
#[tokio::test(start_paused = true)]
async fn a_replaced_process_ends_no_session_that_has_something() {
    let replaced = || Order::AtBoundary(Reason::Replaced);
    let mut stage = Stage::new("");
    stage.say(&query("BEGIN")).await;
    stage.entry.order_detached(replaced());
    stage.say(&query("COMMIT")).await;
    assert!(stage.end.is_none() && stage.heard == direct(&[query("BEGIN"), query("COMMIT")].concat()));
    stage.entry.order_detached(replaced());
    stage.say(&query("echo a")).await;
    let (cause, session) = stage.end.take().expect("it had nothing");
    assert_eq!(cause, Cause::Ordered(Reason::Replaced));
    assert!(session.lease.is_none() && stage.servers[0].model.got == "QQ");
}

/// Whether the server answers the Sync shows with the answer to the router's own query, which goes
/// out when the server has taken what was sent before, and not in the middle of a message.
#[tokio::test(start_paused = true)]
async fn a_failed_copy_with_a_sync_gives_the_connection_back_when_the_server_has_taken_all() {
    let data = frame(b'd', &b"d".repeat(200_000));
    for sent in [data.len(), 100_000, 199_999] {
        let mut stage = Stage::new("");
        // The Sync is read as a part of the COPY.
        stage.say(&[query("in"), sync()].concat()).await;
        stage.servers_listen = false;
        stage.say(&data[..sent]).await;
        let failed = stage.servers[0].model.copy_fails();
        stage.server_says(&failed).await;
        assert_eq!(short(&stage.heard), "G ERROR 22P02 ZI");
        assert_eq!(stage.counts(), [0, 1, 0], "{sent}: the server has not taken all");
        stage.servers_listen = true;
        stage.settle().await;
        if sent < data.len() {
            assert_eq!(stage.counts(), [0, 1, 0], "{sent}: half a message is under way");
            stage.say(&data[sent..]).await;
        }
        assert_eq!(short(&stage.heard), "G ERROR 22P02 ZI");
        stage.assert_given_back(&format!("{sent} bytes before the COPY failed"));
        stage.say(&query("echo a")).await;
        assert!(stage.heard.ends_with(&direct(&query("echo a"))));
    }
}
