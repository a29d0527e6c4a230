//! What Patroni says about a switchover, and which member is chosen.
#![allow(clippy::unwrap_used)]
use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::cluster::snapshot::{Health, NamedBy, ProbeFacts, SourceStatus, WHOLE_SHARE};

#[test]
fn each_status_of_patroni_has_its_meaning() {
    let of = |status: u16, text: &str| judge(StatusCode::from_u16(status).unwrap(), text);
    assert_eq!(
        of(200, "Switched over to \"db3\" instead of \"db2\"\n"),
        SwitchoverReply::Done("Switched over to \"db3\" instead of \"db2\"".to_owned())
    );
    for refused in [400, 401, 403, 404, 409, 412] {
        assert_eq!(
            of(refused, "no"),
            SwitchoverReply::Refused(format!("HTTP status {refused}: no"))
        );
    }
    for unknown in [302, 500, 502, 503, 504] {
        assert_eq!(
            of(unknown, ""),
            SwitchoverReply::Unknown(format!("HTTP status {unknown}"))
        );
    }
}

fn member(name: &str, role: Role) -> Member {
    let in_recovery = role != Role::Leader;
    Member {
        name: MemberName::new(name),
        host: name.into(),
        port: 5432,
        role,
        state: "streaming".into(),
        timeline: None,
        lag: None,
        tags: BTreeMap::new(),
        health: Health {
            up: true,
            facts: Some(ProbeFacts {
                in_recovery,
                system_identifier: 7,
                timeline: 3,
                position: 0,
                received: 0,
                streaming: in_recovery,
                server_version: 150_000,
                latency: Duration::ZERO,
                address: None,
                connected: None,
            }),
            ..Health::default()
        },
        identity: Identity::Same,
        admin: AdminState::Ready,
        leaving: None,
        measured: None,
        lagging: BTreeSet::new(),
        share: WHOLE_SHARE,
        weight: 1,
        zone: None,
    }
}

fn three() -> Snapshot {
    Snapshot {
        cluster: Arc::from("main"),
        version: 1,
        members: vec![
            member("db1", Role::Leader),
            member("db2", Role::Replica),
            member("db3", Role::Replica),
        ],
        leader: Leader::Verified {
            member: MemberName::new("db1"),
            timeline: 3,
            named_by: NamedBy::LeaderKey,
        },
        source: SourceStatus {
            reachable: true,
            error: None,
            disagreement: None,
        },
        system_identifier: Some(7),
        paused: false,
        hears: true,
        patience: None,
        switchover_requested: false,
    }
}

#[test]
fn a_member_that_an_operator_has_taken_out_of_service_does_not_become_the_leader() {
    let mut snapshot = three();
    let db3 = MemberName::new("db3");
    assert_eq!(candidate(&snapshot, None), Ok(MemberName::new("db2")));
    snapshot.members[1].admin = AdminState::Drain;
    assert_eq!(
        candidate(&snapshot, None),
        Ok(db3.clone()),
        "another one is taken"
    );
    snapshot.members[2].admin = AdminState::Maint;
    let refused = candidate(&snapshot, Some(&db3)).unwrap_err();
    assert_eq!(refused, "db3 is in maintenance at this router");
    let refused = candidate(&snapshot, None).unwrap_err();
    assert!(
        refused.contains("db2 is being drained") && refused.contains("db3 is in maintenance"),
        "{refused}"
    );
    let refused = candidate(&snapshot, Some(&MemberName::new("db9"))).unwrap_err();
    assert!(
        refused.ends_with("no member db9: there are db1, db2, db3"),
        "{refused}"
    );
}

#[test]
fn the_times_of_patroni_are_read() {
    let seconds = |body: &str| {
        let (ttl, loop_wait) = times(body.as_bytes())?;
        Some((ttl.as_secs(), loop_wait.as_secs()))
    };
    assert_eq!(seconds(r#"{"ttl": 20, "loop_wait": "5"}"#), Some((20, 5)));
    assert_eq!(seconds("{}"), Some((30, 10)));
    assert_eq!(seconds(r#"{"ttl": -1}"#), None);
    assert_eq!(seconds("[]"), None);
}

#[test]
fn the_rest_interface_is_the_one_that_patroni_names() {
    let cluster = json!({"members": [
        {"name": "db1", "role": "leader", "api_url": "http://10.0.0.1:8008/patroni"},
        {"name": "db2"},
    ]});
    let of = |cluster: &Value, name: &str| rest(cluster, &MemberName::new(name));
    assert_eq!(
        of(&cluster, "db1"),
        Ok(("http://10.0.0.1:8008".to_owned(), false))
    );
    assert!(of(&cluster, "db2").is_err() && of(&cluster, "db3").is_err());
    assert_eq!(leaders_rest(&cluster), Some("http://10.0.0.1:8008".to_owned()));
    assert_eq!(
        leaders_rest(&json!({"members": [{"name": "db2", "role": "replica"}]})),
        None
    );
    let mut scheduled = cluster;
    scheduled["scheduled_switchover"] = json!({"at": "2030-01-01T00:00:00+00:00"});
    assert!(of(&scheduled, "db1").unwrap().1);
}
