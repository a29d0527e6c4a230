#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use serde_json::{Value, from_value, json};

use super::*;
use crate::events::{
    ClusterChange, ClusterEvent, Event, LeaderSource, MemberFacts, OperatorEvent, RecordedEvent, ReloadEvent,
};

/// What a router of a cluster of two shows.
struct Scene {
    router: RouterView,
    clusters: Vec<ClusterSummary>,
    members: Vec<MemberView>,
    routes: Vec<RouteView>,
    pools: Vec<PoolView>,
    switchover: Option<SwitchoverStatus>,
    certificates: Vec<CertificateView>,
    events: Vec<Arc<RecordedEvent>>,
    standing: Standing,
}

fn member(name: &str, is_leader: bool) -> Value {
    let fitness = |route: &str, fit: bool| json!({"route": route, "fit": fit, "reason": if fit { "fits" } else { "does not" }});
    json!({
        "name": name, "cluster": "main", "host": "10.0.0.1", "port": 5432,
        "role": if is_leader { "leader" } else { "replica" }, "leader": is_leader, "state": "streaming", "timeline": 3,
        "lag": null, "lag_seconds": null, "tags": {}, "status": "UP",
        "check": {"status": "L7OK", "text": "answered in 0.6 ms", "in_a_row": 2, "age_ms": 412},
        "admin": "ready", "weight": 1, "zone": null, "sessions": 1,
        "routes": [fitness("rw", is_leader), fitness("ro", !is_leader)],
    })
}

fn route(name: &str, access: &str, by: &str) -> Value {
    json!({"name": name, "cluster": "main", "access": access, "admin": "enabled", "paused_s": null,
        "pool": "off", "members": [by], "sessions": 3, "hold": null})
}

fn hold(route: &str, kind: &str, clients: usize) -> HoldView {
    from_value(json!({
        "route": route, "cluster": "main", "clients": clients, "kind": kind, "cause": "db1 is about to be stopped",
        "by": {"router": "router2", "operator": ""}, "since_ms": 7000, "held_s": 3, "until_ms": 2, "left_s": 19,
        "ended_by": "`trunkline switchover --abort`",
    }))
    .unwrap()
}

fn sound() -> Scene {
    let cluster = json!({
        "name": "main", "leader": {"member": "db1", "timeline": 3, "named_by": "leader key"}, "no_leader": null,
        "members": ["db1", "db2"], "paused": false, "version": 1, "system_identifier": "7",
        "source": {"disagreement": null, "error": null, "reachable": true},
    });
    Scene {
        router: from_value(json!({
            "state": "ready", "ready": true, "reason": null, "sessions": 3, "process_id": 1, "version": "0.1.0",
        }))
        .unwrap(),
        clusters: vec![from_value(cluster).unwrap()],
        members: from_value(json!([member("db1", true), member("db2", false)])).unwrap(),
        routes: from_value(json!([route("rw", "read-write", "db1"), route("ro", "read-only", "db2")])).unwrap(),
        pools: Vec::new(),
        switchover: None,
        certificates: Vec::new(),
        events: Vec::new(),
        standing: Standing::default(),
    }
}

fn leaderless(scene: &mut Scene) {
    scene.clusters[0].leader = None;
    scene.clusters[0].no_leader = Some("no server accepts writes".to_owned());
    scene.routes[0].members.clear();
}

fn down(scene: &mut Scene) {
    scene.members[1].status = MemberStatus::Down;
    scene.members[1].check.text = Some("refused".to_owned());
}

impl Scene {
    fn health(&self) -> HealthView {
        let facts = Facts {
            router: &self.router,
            clusters: self.clusters.iter().collect(),
            members: self.members.iter().collect(),
            routes: self.routes.iter().collect(),
            pools: self.pools.iter().collect(),
            switchover: self.switchover.as_ref(),
            certificates: &self.certificates,
            standing: Some(&self.standing),
            now: UNIX_EPOCH + Duration::from_secs(5000),
        };
        HealthView::of(&facts, &|subject| since(&self.events, subject))
    }

    fn happened(&mut self, at: u64, event: impl Into<Event>) {
        self.events.push(Arc::new(RecordedEvent {
            number: 1 + self.events.len() as u64,
            at: UNIX_EPOCH + Duration::from_millis(at),
            event: event.into(),
        }));
    }

    fn changed(&mut self, at: u64, change: ClusterChange) {
        let cluster = "main".to_owned();
        self.happened(at, ClusterEvent { cluster, change });
    }
}

#[test]
fn a_sound_router_is_well() {
    let health = sound().health();
    assert_eq!((health.result, health.problems), (Wellness::Well, Vec::new()));
}

#[test]
fn that_nobody_can_write_comes_first_then_what_is_down_then_the_rest() {
    let mut scene = sound();
    // All of it at once, in an order that is not the wanted one.
    scene.router.state = "drain".to_owned();
    scene.clusters[0].paused = true;
    scene.routes[1].members.clear();
    down(&mut scene);
    scene.routes[0].hold = Some(hold("rw", "switchover", 12));
    let health = scene.health();
    let told: Vec<(Rank, &str)> = health
        .problems
        .iter()
        .map(|problem| (problem.rank, problem.key.as_str()))
        .collect();
    assert_eq!(
        told,
        [
            (Rank::NoWrites, "route rw"),
            // Nobody serves it; of the member there is another.
            (Rank::Down, "route ro"),
            (Rank::Down, "member main/db2"),
            (Rank::Warning, "router"),
            (Rank::Warning, "patroni main"),
        ]
    );
    assert_eq!(health.result, Wellness::NoService);
    for (change, first) in [
        (
            leaderless as fn(&mut Scene),
            "nobody can write to cluster main, which has no leader: no server accepts writes; to end it: `patronictl list` \
             and `trunkline doctor -c FILE` say why no member leads; it ends by itself when one does (docs/alerts.md, \
             TrunklineNoLeader)",
        ),
        (
            |scene| scene.routes[0].paused_s = Some(7),
            "nobody can write through route rw: it is paused, 7 s left; to end it: `trunkline unpause rw`",
        ),
        (
            |scene| scene.routes[0].members.clear(),
            "nobody can write through route rw: no member can serve it: db1 fits, db2 does not; to end it: make a member fit \
             again: `trunkline members` shows the state of each (docs/alerts.md, TrunklineRouteWithoutMember)",
        ),
        (
            |scene| scene.routes[0].hold = Some(hold("rw", "switchover", 1)),
            "nobody can write through route rw: db1 is about to be stopped, ordered by router2; 1 client is held, \
             19 s left at most; to end it: `trunkline switchover --abort`",
        ),
    ] {
        let mut scene = sound();
        down(&mut scene);
        scene.clusters[0].paused = true;
        change(&mut scene);
        let health = scene.health();
        assert_eq!(health.problems[0].text, first);
        assert!(
            health.problems[1]
                .text
                .starts_with("db2 is DOWN (L7OK): refused; to end it: "),
            "{}",
            health.problems[1].text
        );
        assert_eq!(health.problems.len(), 3);
    }
}

#[test]
fn a_cluster_without_a_leader_is_told_once_and_who_is_held_gets_no_error() {
    let mut scene = sound();
    leaderless(&mut scene);
    let mut second: RouteView = from_value(route("rw2", "read-write", "db1")).unwrap();
    second.members.clear();
    scene.routes.push(second);
    let health = scene.health();
    assert_eq!(health.problems.len(), 1);
    assert_eq!(health.result, Wellness::NoService);
    scene.routes[0].hold = Some(hold("rw", "switchover", 12));
    assert_eq!(scene.health().result, Wellness::NoService, "those of rw2 get one");
    scene.routes[2].hold = Some(hold("rw2", "switchover", 1));
    let health = scene.health();
    assert_eq!(health.result, Wellness::Degraded);
    assert_eq!(
        health.problems[0].text,
        "nobody can write to cluster main, which has no leader: no server accepts writes; db1 is about to be stopped, \
         ordered by router2; 13 clients are held, 19 s left at most; to end it: `trunkline switchover --abort`"
    );
    // Sessions may see for themselves whether a full server accepts writes.
    scene.routes[0].hold = None;
    scene.routes[0].members = vec!["db1".to_owned()];
    let health = scene.health();
    assert_eq!(
        health.problems[0].text,
        "nobody can write through route rw2: db1 is about to be stopped, ordered by \
        router2; 1 client is held, 19 s left at most; to end it: `trunkline switchover --abort`"
    );
    assert!(
        health.problems[1].text.starts_with(
            "cluster main has no leader: no server accepts writes; to end it: `patronictl list`"
        ),
        "{}",
        health.problems[1].text
    );
    // Nobody is meant to write there.
    scene.routes = vec![from_value(route("ro", "read-only", "db2")).unwrap()];
    let health = scene.health();
    assert_eq!(
        (health.problems[0].rank, health.result),
        (Rank::Warning, Wellness::Degraded)
    );
}

#[test]
fn a_problem_keeps_its_key_while_its_numbers_change() {
    let mut scene = sound();
    scene.routes[0].hold = Some(hold("rw", "switchover", 12));
    let first = scene.health().problems.remove(0);
    let later = HoldView {
        clients: 13,
        left_s: 18,
        ..hold("rw", "switchover", 12)
    };
    scene.routes[0].hold = Some(later);
    let second = scene.health().problems.remove(0);
    assert_ne!(first.text, second.text);
    assert_eq!(first.key, second.key);
}

#[test]
fn events_say_since_when() {
    let mut scene = sound();
    leaderless(&mut scene);
    down(&mut scene);
    let text = String::from;
    let lost = |why: &str| ClusterChange::LeaderLost {
        member: text("db1"),
        why: why.to_owned(),
    };
    assert_eq!(scene.health().problems[0].since_ms, None, "no event is kept");
    scene.changed(1000, lost("first"));
    let leader = ClusterChange::LeaderChanged {
        member: text("db1"),
        timeline: 3,
        named_by: LeaderSource::LeaderKey,
    };
    scene.changed(2000, leader);
    let facts: Option<MemberFacts> = None;
    scene.changed(
        2500,
        ClusterChange::MemberUp {
            member: text("db2"),
            facts,
        },
    );
    scene.changed(3000, lost("second"));
    scene.changed(4000, ClusterChange::NoLeader { why: text("nobody") });
    for (at, member) in [(5000, "db2"), (6000, "db3")] {
        let (member, error) = (text(member), text("refused"));
        scene.changed(at, ClusterChange::MemberDown { member, error });
    }
    let health = scene.health();
    let since = |health: &HealthView| -> Vec<Option<u64>> {
        health.problems.iter().map(|problem| problem.since_ms).collect()
    };
    assert_eq!(since(&health), [Some(3000), Some(5000)]);
    let told = health.problems[1].told(Some("03:12:44"));
    assert!(
        told.starts_with("db2 is DOWN (L7OK), since 03:12:44: refused; to end it: "),
        "{told}"
    );
    let mut scene = sound();
    scene.members[1].admin = text("maint");
    scene.members[1].status = MemberStatus::Maint;
    for (at, state) in [(1000, "drain"), (2000, "maint")] {
        let (cluster, member, by) = (text("main"), text("db2"), text("-"));
        let state = state.to_owned();
        scene.happened(
            at,
            OperatorEvent::AdminStateSet {
                cluster,
                member,
                state,
                by,
            },
        );
    }
    assert_eq!(since(&scene.health()), [Some(2000)]);
}

#[test]
fn a_switchover_and_certificates_are_told() {
    let mut scene = sound();
    scene.switchover = Some(SwitchoverStatus {
        cluster: "main".to_owned(),
        leader: "db1".to_owned(),
        candidate: "db2".to_owned(),
        steps: vec!["a checkpoint was made in 0.1 s".to_owned()],
        ..SwitchoverStatus::default()
    });
    let certificate = |number: usize, days: i64| -> CertificateView {
        from_value(json!({"used_for": "clients", "kind": "own", "key": "tls", "file": "/server.crt", "number": number,
            "cluster": null, "listeners": [], "subject": "CN=db", "issuer": "", "names": [], "not_before_ms": 0,
            "not_after_ms": 9000, "days_left": days, "serial": "", "fingerprint": ""}))
        .unwrap()
    };
    let of_etcd = CertificateView {
        used_for: "etcd".to_owned(),
        ..certificate(4, 0)
    };
    scene.certificates = vec![certificate(1, 14), certificate(2, 1), certificate(3, -1), of_etcd];
    let health = scene.health();
    let texts: Vec<&str> = health
        .problems
        .iter()
        .map(|problem| problem.text.as_str())
        .collect();
    assert_eq!(
        texts,
        [
            "the certificate CN=db has expired (/server.crt); to end it: renew it; the router reads the new file by itself",
            "a switchover from db1 to db2 runs: a checkpoint was made in 0.1 s; to end it: it ends by itself; `trunkline \
             switchover --abort` undoes it as long as Patroni has not been asked",
            "the certificate CN=db expires in 1 day (/server.crt); to end it: renew it; the router reads the new file by \
             itself",
            "the certificate CN=db expires today (/server.crt); to end it: renew it, and run `trunkline reload`, which reads \
             the new file",
        ]
    );
    assert_eq!(health.problems[0].since_ms, Some(9000));
}

#[test]
fn what_an_event_has_begun_is_told_while_it_lasts() {
    let mut scene = sound();
    let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
    let left = |member: &str| {
        Event::from(ClusterEvent {
            cluster: "main".to_owned(),
            change: ClusterChange::MemberLeft {
                member: member.to_owned(),
            },
        })
    };
    let fault = |text: &str| {
        Event::from(ReloadEvent::ConfigurationFault {
            fault: text.to_owned(),
        })
    };
    scene.standing.heed(&left("db8"), at(1000));
    scene.standing.heed(&left("db9"), at(2000));
    scene.standing.heed(&fault("t.yaml:3: pool: unknown"), at(3000));
    scene.standing.heed(&fault("t.yaml:4: lock: unknown"), at(3000));
    let refused = ReloadEvent::ConfigurationRefused {
        config: "/etc/t.yaml".to_owned(),
        faults: 2,
    };
    scene.standing.heed(&refused.into(), at(3000));
    let broken = ReloadEvent::FilesRefused {
        part: "tls".to_owned(),
        fault: "server.key: no key".to_owned(),
        meanwhile: "the old version stays in service".to_owned(),
    };
    scene.standing.heed(&broken.into(), at(4000));
    let health = scene.health();
    assert_eq!(health.result, Wellness::Degraded);
    let told: Vec<(&str, Option<u64>)> = health
        .problems
        .iter()
        .map(|problem| (problem.text.as_str(), problem.since_ms))
        .collect();
    assert_eq!(
        told,
        [
            (
                "the last reload was refused, and the configuration from before stays in use: t.yaml:3: pool: unknown (and 1 \
                 fault more); to end it: correct /etc/t.yaml, and run `trunkline reload -c /etc/t.yaml`",
                Some(3_000_000)
            ),
            (
                "the new files of tls are refused: server.key: no key; the old version stays in service; to end it: correct \
                 them; the router reads them again by itself",
                Some(4_000_000)
            ),
            (
                "db9 has left cluster main: it is not in the list of members any more, as after the end of its Patroni or \
                 its host; to end it: start its Patroni again; if it was removed on purpose, do nothing: this is said for an hour",
                Some(2_000_000)
            ),
        ],
        "db8 left more than an hour ago"
    );
    scene.clusters[0].name = "other".to_owned();
    assert!(
        scene
            .health()
            .problems
            .iter()
            .all(|problem| !problem.text.contains("db9"))
    );
}

#[test]
fn a_disabled_route_refuses_clients_and_so_does_a_full_pool_in_its_last_minute() {
    let mut scene = sound();
    scene.routes[1].admin = "disabled".to_owned();
    let health = scene.health();
    assert_eq!(
        health.result,
        Wellness::NoService,
        "new clients of ro get an error"
    );
    assert_eq!(
        health.problems[0].text,
        "route ro is disabled: new clients get an error; to end it: `trunkline enable ro`"
    );
    // No client can come to it.
    scene.routes[1].cluster = None;
    assert_eq!(scene.health().result, Wellness::Degraded);

    let mut scene = sound();
    let pool = |waiting: usize, wait_ms: u64, refused_ms: Option<u64>| -> PoolView {
        from_value(json!({"route": "rw", "cluster": "main", "user": "app", "database": "shop", "max_connections": 2,
            "reserve": 0, "waiting": waiting, "longest_wait_ms": wait_ms, "last_refused_ms": refused_ms,
            "router_process_id": 1, "members": [{"member": "db1", "idle": 0, "leased": 1, "opening": 1, "pinned": 0,
            "pins": {}}]}))
        .unwrap()
    };
    scene.pools = vec![pool(3, 1500, None)];
    let health = scene.health();
    assert_eq!(health.result, Wellness::Degraded, "they wait, and get no error");
    let problem = &health.problems[0];
    assert!(
        problem.text.starts_with(
            "the pool of user app and database shop on route rw is full (2 of 2 connections to db1 are in use): \
             3 sessions wait, the longest for 1.5 s; to end it: `trunkline sessions --route rw`"
        ),
        "{}",
        problem.text
    );
    assert_eq!(problem.since_ms, Some(5_000_000 - 1500));
    // Now it is 5000 s.
    scene.pools = vec![pool(1, 200, Some(4_988_000))];
    let health = scene.health();
    assert_eq!(health.result, Wellness::NoService);
    assert_eq!(
        health.problems[0].why,
        "1 session waits, for 200 ms; a client was refused 12 s ago"
    );
    for (waiting, wait_ms, refused_ms) in [(0, 0, None), (1, 900, None), (0, 0, Some(4_900_000))] {
        scene.pools = vec![pool(waiting, wait_ms, refused_ms)];
        assert_eq!(
            scene.health().result,
            Wellness::Well,
            "{waiting} {wait_ms} {refused_ms:?}"
        );
    }
}

#[test]
fn nobody_is_held_is_no_plural_of_nothing() {
    let mut scene = sound();
    scene.routes[0].hold = Some(hold("rw", "switchover", 0));
    let text = &scene.health().problems[0].text;
    assert!(
        text.contains("; no client is held now, 19 s left at most"),
        "{text}"
    );
}
