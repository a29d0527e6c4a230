//! Patroni's paths against hand-built snapshots; what Patroni answers is from its documentation,
//! chapter "Patroni REST API".
#![allow(clippy::unwrap_used)]

use axum::http::{StatusCode, header};
use serde_json::json;

use super::fixture::*;
use super::patroni::{self, bytes};
use super::tests::{beside, get, with};
use crate::cluster::snapshot::*;

pub(super) const PATRONI: [&str; 19] = [
    "/",
    "/primary",
    "/master",
    "/read-write",
    "/leader",
    "/standby-leader",
    "/standby_leader",
    "/replica",
    "/read-only",
    "/sync",
    "/synchronous",
    "/quorum",
    "/async",
    "/asynchronous",
    "/read-only-sync",
    "/read-only-synchronous",
    "/read-only-quorum",
    "/health",
    "/readiness",
];

const PRIMARY: &[&str] = &["/", "/primary", "/master", "/read-write"];

/// Which of Patroni's paths are 200 for the member `m` of the snapshot.
async fn yes(snapshot: Snapshot) -> Vec<&'static str> {
    let router = beside(snapshot, "m");
    let mut yes = Vec::new();
    for path in PATRONI {
        let got = get(&router, path).await;
        assert_eq!(got.headers[header::CONTENT_TYPE], "application/json");
        assert_eq!(got.json()["patroni"], json!({"name": "m", "scope": "main"}));
        match got.status {
            StatusCode::OK => yes.push(path),
            StatusCode::SERVICE_UNAVAILABLE => {
                assert!(!got.reason().is_empty(), "{path}");
            }
            other => panic!("{path}: {other}"),
        }
    }
    yes
}

fn any_of(groups: &[&[&'static str]]) -> Vec<&'static str> {
    PATRONI
        .into_iter()
        .filter(|path| groups.iter().any(|group| group.contains(path)))
        .collect()
}

#[expect(clippy::too_many_lines, reason = "a table of paths and statuses")]
#[tokio::test]
async fn the_table_of_patroni() {
    let leading = &[
        "/leader",
        "/read-only",
        "/read-only-sync",
        "/read-only-synchronous",
        "/read-only-quorum",
        "/readiness",
    ];
    let health: &[&str] = &["/health"];
    let replica: &[&str] = &["/replica", "/read-only", "/readiness", "/health"];
    let asynchronous: &[&str] = &["/async", "/asynchronous"];
    let other = || primary("p");
    let role = |role: Role| with(member("m"), |m| m.role = role);

    let table: Vec<(&str, Snapshot, Vec<&str>)> = vec![
        (
            "the leader",
            led(vec![primary("m"), member("r")]),
            any_of(&[PRIMARY, leading, health]),
        ),
        (
            "a replica",
            led(vec![other(), member("m")]),
            any_of(&[replica, asynchronous]),
        ),
        (
            "a synchronous standby",
            led(vec![other(), role(Role::SyncStandby)]),
            any_of(&[
                replica,
                &[
                    "/sync",
                    "/synchronous",
                    "/read-only-sync",
                    "/read-only-synchronous",
                ],
            ]),
        ),
        (
            "a quorum standby",
            led(vec![other(), role(Role::QuorumStandby)]),
            any_of(&[replica, &["/quorum", "/read-only-quorum"]]),
        ),
        (
            "the leader of a standby cluster",
            leaderless(
                vec![with(member("m"), |m| {
                    (m.role, m.state) = (Role::StandbyLeader, "running".into());
                })],
                NoLeader::StandbyCluster(MemberName::new("m")),
            ),
            any_of(&[&["/standby-leader", "/standby_leader"], leading, health]),
        ),
        (
            "a replica of Patroni 3.0, which calls it running",
            led(vec![other(), with(member("m"), |m| m.state = "running".into())]),
            any_of(&[replica, asynchronous]),
        ),
        (
            "a replica that restores from an archive",
            led(vec![
                other(),
                with(member("m"), |m| {
                    m.state = "in archive recovery".into();
                    facts(m).streaming = false;
                }),
            ]),
            any_of(&[replica, asynchronous]),
        ),
        (
            "a replica that neither streams nor restores",
            led(vec![
                other(),
                with(member("m"), |m| {
                    m.state = "running".into();
                    facts(m).streaming = false;
                }),
            ]),
            any_of(&[&["/replica", "/read-only", "/health"], asynchronous]),
        ),
        (
            "a replica kept out of balancing",
            led(vec![
                other(),
                with(member("m"), |m| {
                    m.tags.insert("noloadbalance".into(), true.into());
                }),
            ]),
            any_of(&[health, &["/readiness"]]),
        ),
        (
            "a leader kept out of balancing",
            led(vec![with(primary("m"), |m| {
                m.tags.insert("noloadbalance".into(), true.into());
            })]),
            any_of(&[PRIMARY, leading, health]),
        ),
        (
            "a holder of the leader key that is not writable yet",
            leaderless(
                vec![with(member("m"), |m| m.role = Role::Leader)],
                NoLeader::NotWritable(MemberName::new("m")),
            ),
            any_of(&[health]),
        ),
        (
            "a holder of the leader key that is dead",
            leaderless(
                vec![down(primary("m"))],
                NoLeader::NotReachable(MemberName::new("m")),
            ),
            vec![],
        ),
        (
            "a leader that went down after the snapshot's verdict",
            led(vec![down(primary("m"))]),
            vec![],
        ),
        ("a dead replica", led(vec![other(), down(member("m"))]), vec![]),
        (
            "a replica while there is no leader",
            leaderless(vec![member("m")], NoLeader::NotNamed),
            any_of(&[replica, asynchronous]),
        ),
        (
            "a replica that was promoted behind the source's back",
            led(vec![other(), with(member("m"), |m| facts(m).in_recovery = false)]),
            any_of(&[health]),
        ),
        (
            "a member of another cluster",
            led(vec![
                other(),
                with(member("m"), |m| m.identity = Identity::Foreign),
            ]),
            any_of(&[health]),
        ),
        (
            "a replica in maintenance",
            led(vec![other(), with(member("m"), |m| m.admin = AdminState::Maint)]),
            any_of(&[health]),
        ),
        (
            "a leader that is being drained",
            led(vec![with(primary("m"), |m| m.admin = AdminState::Drain)]),
            any_of(&[health]),
        ),
        (
            "a role that is not known",
            led(vec![other(), role(Role::Other("witness".into()))]),
            any_of(&[health]),
        ),
        (
            "a standby of a fixed list",
            led(vec![
                other(),
                with(member("m"), |m| {
                    (m.role, m.state) = (Role::Unnamed, String::new());
                }),
            ]),
            any_of(&[replica, asynchronous]),
        ),
        (
            "a leader of a fixed list",
            led(vec![with(primary("m"), |m| {
                (m.role, m.state) = (Role::Unnamed, String::new());
            })]),
            any_of(&[PRIMARY, leading, health]),
        ),
    ];
    for (what, snapshot, expected) in table {
        assert_eq!(yes(snapshot).await, expected, "{what}");
    }
}

#[tokio::test]
async fn patroni_lag_limits() {
    // 100 bytes behind by our probes; the source's figure is older and not used.
    let probed = led(vec![primary("p"), with(member("m"), |m| m.lag = Some(5_000_000))]);
    // Without a leader: the source's.
    let reported = leaderless(
        vec![with(member("m"), |m| m.lag = Some(2000))],
        NoLeader::NotNamed,
    );
    let unknown = leaderless(vec![with(member("m"), |m| m.lag = None)], NoLeader::NotNamed);
    for (snapshot, query, ok) in [
        (&probed, "/replica?lag=100", true),
        (&probed, "/replica?lag=99", false),
        (&probed, "/replica?lag=0", false),
        (&probed, "/replica?lag=1kB", true),
        (&probed, "/async?lag=99", false),
        (&probed, "/asynchronous?lag=10MB", true),
        (&probed, "/read-only?lag=99", false),
        (&probed, "/readiness", true),
        (&probed, "/readiness?lag=99", false),
        (&probed, "/readiness?lag=99&mode=apply", false),
        (&probed, "/readiness?lag=10MB&mode=write", true),
        // 50 of them have been received.
        (&probed, "/readiness?lag=50&mode=write", true),
        (&probed, "/readiness?lag=49&mode=write", false),
        (&reported, "/readiness?lag=1999&mode=write", false),
        (&reported, "/readiness?lag=2000&mode=write", true),
        (&probed, "/replica?lag=ten", true),
        (&reported, "/replica?lag=2000", true),
        (&reported, "/replica?lag=1999", false),
        (&unknown, "/replica?lag=10GB", false),
        (&unknown, "/replica", true),
        (&unknown, "/readiness", false),
    ] {
        let got = get(&beside(snapshot.clone(), "m"), query).await;
        assert_eq!(got.status == StatusCode::OK, ok, "{query}: {}", got.reason());
    }
    // A limit does not matter for the leader.
    let leader = beside(led(vec![primary("m")]), "m");
    for query in ["/read-only?lag=0", "/readiness?lag=0", "/primary?lag=0"] {
        assert_eq!(get(&leader, query).await.status, StatusCode::OK, "{query}");
    }
}

#[test]
fn numbers_of_bytes_as_patroni_reads_them() {
    for (text, value) in [
        ("0", Some(0)),
        ("1048576", Some(1 << 20)),
        ("1024kB", Some(1 << 20)),
        ("10MB", Some(10 << 20)),
        ("10 MB", Some(10 << 20)),
        ("1.5GB", Some(3 << 29)),
        ("1TB", Some(1 << 40)),
        ("7B", Some(7)),
        ("99999999999TB", Some(u64::MAX)),
        ("10mb", None),
        ("-1", None),
        ("", None),
        ("MB", None),
        ("1.2.3MB", None),
    ] {
        assert_eq!(bytes(text), value, "{text}");
    }
}

#[tokio::test]
async fn patroni_tags_and_replication_state() {
    let tagged = |member: Member| {
        with(member, |m| {
            m.tags.insert("zone".into(), "b".into());
            m.tags.insert("fast".into(), true.into());
            m.tags.insert("rank".into(), 3.into());
        })
    };
    let replica = beside(led(vec![primary("p"), tagged(member("m"))]), "m");
    let leader = beside(led(vec![tagged(primary("m"))]), "m");
    for (router, query, ok) in [
        (&replica, "/replica?tag_zone=b", true),
        (&replica, "/replica?tag_zone=b&tag_fast=true&tag_rank=3", true),
        (&replica, "/replica?tag_zone=b&tag_rank=4", false),
        (&replica, "/replica?tag_fast=True", false),
        (&replica, "/replica?tag_other=b", false),
        (&replica, "/replica?tag_zone=%62", true),
        (&replica, "/health?tag_zone=c", false),
        (&replica, "/replica?replication_state=streaming", true),
        (
            &replica,
            "/async?replication_state=in%20archive%20recovery",
            false,
        ),
        (&leader, "/read-only?tag_zone=c", false),
        (&leader, "/read-only?tag_zone=b", true),
        // Patroni ignores tags here.
        (&leader, "/?tag_zone=c", true),
        (&leader, "/primary?tag_zone=c", true),
        (&leader, "/leader?tag_zone=c", true),
        (&leader, "/read-write?tag_zone=c", true),
    ] {
        assert_eq!(get(router, query).await.status == StatusCode::OK, ok, "{query}");
    }
}

#[tokio::test]
async fn the_status_document() {
    let router = beside(led(vec![primary("m")]), "m");
    assert_eq!(
        get(&router, "/").await.json(),
        json!({"state": "running", "role": "primary", "server_version": 150_020, "timeline": 3,
               "xlog": {"location": 1000}, "database_system_identifier": "7",
               "patroni": {"name": "m", "scope": "main"}})
    );
    let mut snapshot = led(vec![
        primary("p"),
        with(member("m"), |m| m.role = Role::SyncStandby),
    ]);
    snapshot.paused = true;
    let document = get(&beside(snapshot, "m"), "/primary").await.json();
    assert_eq!(document["role"], "replica");
    assert_eq!(document["xlog"], json!({"replayed_location": 900}));
    assert_eq!(
        (&document["sync_standby"], &document["pause"]),
        (&json!(true), &json!(true))
    );
    let dead = beside(
        led(vec![
            primary("p"),
            with(down(member("m")), |m| m.state = "start failed".into()),
        ]),
        "m",
    );
    assert_eq!(get(&dead, "/health").await.json()["state"], "start failed");
}

#[tokio::test]
async fn every_path_is_documented() {
    let documented = include_str!("../../../docs/http.md");
    for (path, _) in patroni::PATHS {
        assert!(documented.contains(&format!("`{path}`")), "{path}");
    }
}
