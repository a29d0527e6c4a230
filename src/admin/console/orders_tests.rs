//! Orders about members, sessions, connections and routes: what reaches the router, and what the
//! client is told.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::super::handles::Handles;
use super::super::http::fixture::{self, Nothing, NothingHeld};
use super::super::views::{PoolMemberView, PoolView};
use super::tests::{Client, query};
use crate::config::LocalMember;
use crate::session::console::IsOperator;
use crate::wire::frame::ErrorFields;

/// With connections that are to be replaced.
fn pool(outdated: usize) -> PoolView {
    PoolView {
        route: "read-write".into(),
        cluster: "main".into(),
        user: "app".into(),
        database: "app".into(),
        max_connections: Some(20),
        reserve: 0,
        waiting: 0,
        longest_wait_ms: 0,
        last_refused_ms: None,
        members: vec![PoolMemberView {
            member: "db1".into(),
            idle: 0,
            leased: 2,
            opening: 0,
            outdated,
            pinned: 0,
            pins: BTreeMap::new(),
            idle_connections: Vec::new(),
        }],
        router_process_id: 4711,
    }
}

fn handles(operations: &Arc<Nothing>) -> Handles {
    let mut handles = fixture::handles(vec![fixture::view(
        fixture::led(vec![fixture::primary("db1"), fixture::member("db2")]),
        LocalMember::Auto,
    )]);
    handles.operations = Arc::clone(operations) as _;
    handles
}

struct Scene {
    client: Client,
    operations: Arc<Nothing>,
    handles: Handles,
}

impl Scene {
    async fn new(operations: Nothing, is_operator: bool) -> Self {
        let operations = Arc::new(operations);
        let handles = handles(&operations);
        let holding = Arc::<NothingHeld>::default();
        let client = Client::of(
            handles.clone(),
            holding,
            IsOperator::new(move || is_operator),
            CancellationToken::new(),
        )
        .await;
        Self {
            client,
            operations,
            handles,
        }
    }

    /// What the client is told: notices, then the error, if there is one.
    async fn order(&mut self, sql: &str) -> Vec<String> {
        self.client.send(&[query(sql)]).await;
        let frames = self.client.until_ready().await;
        let fields = frames.iter().filter(|frame| matches!(frame.tag, b'E' | b'N'));
        fields
            .map(|frame| {
                let fields = ErrorFields::parse(&frame.body).unwrap();
                match frame.tag {
                    b'E' => format!("{} {}", fields.code, fields.message),
                    _ => fields.message,
                }
            })
            .collect()
    }

    fn told(&self) -> Vec<String> {
        std::mem::take(&mut *self.operations.told.lock().unwrap())
    }

    /// The kind and the operator of the events since the last call.
    fn events(&self) -> Vec<String> {
        let all = self.handles.events.since(0);
        all.iter()
            .map(|recorded| {
                let event = serde_json::to_value(&recorded.event).unwrap();
                format!(
                    "{} {}",
                    event["event"].as_str().unwrap(),
                    event["by"].as_str().unwrap()
                )
            })
            .collect()
    }
}

fn with_session() -> Nothing {
    Nothing {
        session: Some(fixture::a_session()),
        faults: Some(Vec::new()),
        ..Nothing::default()
    }
}

#[tokio::test(start_paused = true)]
async fn orders_are_carried_out_as_over_http_and_name_their_operator() {
    let mut scene = Scene::new(with_session(), true).await;
    for (sql, told, said) in [
        ("DRAIN db2", "main db2 Admin(Drain)", "db2: ready, "),
        ("maint db2 cluster main", "main db2 Admin(Maint)", "db2: ready, "),
        ("READY \"db1\"", "main db1 Admin(Ready)", "db1: ready, "),
        (
            "DRAIN kept",
            "main kept Admin(Drain)",
            "kept: it is set, and the cluster has no such member now",
        ),
        ("WEIGHT db2 50", "main db2 Weight(Some(50))", "db2: ready, "),
        ("WEIGHT db2 default", "main db2 Weight(None)", "db2: ready, "),
        (
            "CLOSE SESSIONS db1",
            "main db1 AtBoundary { grace: None }",
            "1 session is ending",
        ),
        (
            "CLOSE SESSIONS db1 CLUSTER main GRACE 30",
            "main db1 AtBoundary { grace: Some(30s) }",
            "1 session is ending",
        ),
        ("CLOSE SESSIONS db1 NOW", "main db1 Now", "1 session is ending"),
        ("KILL 7", "7 Now", "session 7 of app at 10.0.0.9:5000 ends"),
        ("KILL_CLIENT 7", "7 Now", "session 7 of app at 10.0.0.9:5000 ends"),
        (
            "KILL 7 BOUNDARY",
            "7 AtBoundary { grace: None }",
            "session 7 of app at 10.0.0.9:5000 ends at the end of its transaction",
        ),
        (
            "KILL 7 GRACE 5",
            "7 AtBoundary { grace: Some(5s) }",
            "session 7 of app at 10.0.0.9:5000 ends at the end of its transaction",
        ),
        ("RECONNECT", "reconnect all", "3 connections are replaced"),
        (
            "RECONNECT read-only",
            "reconnect route read-only",
            "3 connections are replaced",
        ),
        (
            "RECONNECT ROUTE read-only",
            "reconnect route read-only",
            "3 connections are replaced",
        ),
        (
            "RECONNECT db2",
            "reconnect member db2 of cluster main",
            "3 connections are replaced",
        ),
        (
            "RECONNECT MEMBER db2",
            "reconnect member db2 of cluster main",
            "3 connections are replaced",
        ),
        (
            "DISABLE read-write",
            "route read-write disabled true",
            "read-write: disabled; 1 session goes on",
        ),
        (
            "ENABLE read-write",
            "route read-write disabled false",
            "read-write: enabled",
        ),
    ] {
        let before = scene.events().len();
        let notices = scene.order(sql).await;
        assert!(notices[0].starts_with(said), "{sql}: {notices:?}");
        assert_eq!(scene.told(), [told], "{sql}");
        let events = scene.events();
        assert_eq!(events.len(), before + 1, "{sql}");
        assert!(events[before].ends_with(" admin"), "{sql}: {events:?}");
    }
    assert_eq!(scene.order("RELOAD").await, ["nothing has changed"]);
    assert!(scene.events().last().unwrap().starts_with("reload_asked"));
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_changes_nothing() {
    let mut scene = Scene::new(with_session(), true).await;
    for (sql, expected) in [
        ("DRAIN db9", "42704 member \"db9\" does not exist"),
        (
            "DRAIN db1 CLUSTER other",
            "42704 cluster \"other\" does not exist",
        ),
        ("WEIGHT db1 257", "22023 \"257\" is not a weight"),
        ("WEIGHT db1 x", "22023 \"x\" is not a weight"),
        (
            "CLOSE SESSIONS db1 GRACE 5 NOW",
            "42601 GRACE and NOW exclude each other",
        ),
        (
            "CLOSE SESSIONS db1 GRACE -1",
            "22023 \"-1\" is not a number of seconds from 0 to 86400",
        ),
        ("KILL 8", "42704 there is no session of the number 8"),
        ("KILL app", "0A000 this is not a session's id"),
        ("KILL", "0A000 this is not a session's id"),
        (
            "RECONNECT nowhere",
            "42704 there is no route and no member \"nowhere\"",
        ),
        ("DISABLE nowhere", "42704 route \"nowhere\" does not exist"),
        (
            "WAIT_CLOSE TIMEOUT 0",
            "22023 \"0\" is not a number of seconds from 1 to 3600",
        ),
        ("SHUTDOWN", "0A000 the console has no SHUTDOWN"),
        ("SUSPEND", "0A000 the console has no SUSPEND"),
        ("SET max_client_conn = 5", "0A000 the console cannot set this"),
        (
            "BEGIN; DRAIN db1",
            "25001 DRAIN cannot run inside a transaction block",
        ),
    ] {
        assert_eq!(scene.order(sql).await, [expected], "{sql}");
    }
    assert_eq!(
        scene.order("DRAIN db1").await,
        ["25P02 current transaction is aborted, commands ignored until end of transaction block"]
    );
    assert!(scene.told().is_empty() && scene.events().is_empty());
    // Users that only read.
    let mut reader = Scene::new(with_session(), false).await;
    for sql in [
        "DRAIN db1",
        "MAINT db1",
        "READY db1",
        "WEIGHT db1 1",
        "CLOSE SESSIONS db1",
        "KILL 7",
        "RECONNECT",
        "WAIT_CLOSE",
        "DISABLE read-write",
        "ENABLE read-write",
        "RELOAD",
    ] {
        let said = reader.order(sql).await;
        assert_eq!(
            said,
            ["42501 permission denied to give orders to the router"],
            "{sql}"
        );
    }
    assert!(reader.told().is_empty() && reader.events().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_reload_that_is_refused_says_why() {
    let operations = Nothing {
        faults: Some(vec!["line 3: no".to_owned()]),
        ..Nothing::default()
    };
    let mut scene = Scene::new(operations, true).await;
    let refused = "F0000 the configuration is refused, and the one before stays in use";
    assert_eq!(scene.order("RELOAD").await, [refused]);
    let mut ending = Scene::new(Nothing::default(), true).await;
    assert_eq!(
        ending.order("RELOAD").await,
        ["55000 the router is shutting down"]
    );
}

#[tokio::test(start_paused = true)]
async fn a_process_that_does_not_follow_is_named() {
    let operations = Nothing {
        missing: vec!["process 5: it did not answer".to_owned()],
        ..with_session()
    };
    let mut scene = Scene::new(operations, true).await;
    let warning = "not every process of the router follows: process 5: it did not answer";
    for sql in ["DRAIN db1", "CLOSE SESSIONS db1", "RECONNECT"] {
        assert_eq!(scene.order(sql).await.last().unwrap(), warning, "{sql}");
    }
    let unknown = "55000 the processes that answer have no session of this number";
    assert_eq!(scene.order("KILL 8").await, [unknown]);
    let waited = scene.order("WAIT_CLOSE TIMEOUT 5").await;
    assert_eq!(
        waited[1],
        "55000 not every process of the router answers after 5 s"
    );
}

#[tokio::test(start_paused = true)]
async fn wait_close_waits_for_connections_that_are_to_be_replaced() {
    let mut none = Scene::new(
        Nothing {
            pool: Some(pool(0)),
            ..Nothing::default()
        },
        true,
    )
    .await;
    for sql in ["WAIT_CLOSE", "WAIT_CLOSE read-write", "WAIT_CLOSE db1"] {
        assert_eq!(none.order(sql).await, ["no connection is left"], "{sql}");
    }
    let mut some = Scene::new(
        Nothing {
            pool: Some(pool(2)),
            ..Nothing::default()
        },
        true,
    )
    .await;
    for sql in [
        "WAIT_CLOSE",
        "WAIT_CLOSE read-write",
        "WAIT_CLOSE db1 CLUSTER main",
    ] {
        let said = some.order(&format!("{sql} TIMEOUT 7")).await;
        assert_eq!(
            said,
            [
                "2 connections left",
                "55006 2 connections are still open after 7 s"
            ],
            "{sql}"
        );
    }
    // Of others.
    for sql in ["WAIT_CLOSE read-only", "WAIT_CLOSE db2"] {
        assert_eq!(some.order(sql).await, ["no connection is left"], "{sql}");
    }
}
