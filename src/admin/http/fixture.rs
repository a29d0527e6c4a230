//! Hand-built snapshots.
#![allow(clippy::unwrap_used)]
#![cfg_attr(fuzzing, allow(dead_code, reason = "for tests"))]

mod orders;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use tokio::sync::watch;

use super::super::console::ConsoleOrders;
use super::super::handles::{AccessView, ClusterView, Handles, Readiness};
use super::super::history::History;
use super::super::holding::HoldOperations;
use super::super::inventory::Inventory;
use super::super::live::Live;
use super::super::local::{Local, initial};
use super::super::metrics::Metrics;
use super::super::views::{CertificateView, DatabaseView, LimitView, ListenerView, PeerView, SettingView};
use super::app::App;
use super::guard::Guard;
use crate::auth::ident::IdentRow;
use crate::auth::rules::Rules;
use crate::cluster::check::CheckStatus;
use crate::cluster::snapshot::*;
use crate::config::{LocalMember, Route};
use crate::events::Events;
pub(in crate::admin) use orders::{Nothing, NothingHeld, a_session, paused};

pub(in crate::admin) fn snapshot() -> Snapshot {
    Snapshot {
        cluster: "main".into(),
        version: 1,
        members: Vec::new(),
        leader: Leader::None(NoLeader::NotYetKnown),
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

/// A streaming replica, up and fit, 100 bytes behind position 1000.
pub(in crate::admin) fn member(name: &str) -> Member {
    Member {
        name: MemberName::new(name),
        host: format!("{name}.example"),
        port: 5432,
        role: Role::Replica,
        state: "streaming".into(),
        timeline: Some(3),
        lag: Some(0),
        tags: BTreeMap::new(),
        health: Health {
            up: true,
            streak: 2,
            last_probe: None,
            error: None,
            verified: None,
            strayed: None,
            check: CheckStatus::Layer7Ok,
            full: false,
            facts: Some(ProbeFacts {
                in_recovery: true,
                system_identifier: 7,
                timeline: 3,
                position: 900,
                received: 950,
                streaming: true,
                server_version: 150_020,
                latency: Duration::from_millis(1),
                address: None,
                connected: None,
            }),
        },
        identity: Identity::Same,
        admin: AdminState::Ready,
        leaving: None,
        measured: Some(Lag {
            bytes: 100,
            time: Some(Duration::from_secs(2)),
        }),
        lagging: std::collections::BTreeSet::new(),
        share: WHOLE_SHARE,
        weight: 1,
        zone: None,
    }
}

pub(super) fn facts(member: &mut Member) -> &mut ProbeFacts {
    member.health.facts.as_mut().unwrap()
}

pub(in crate::admin) fn primary(name: &str) -> Member {
    let mut primary = member(name);
    primary.role = Role::Leader;
    primary.state = "running".into();
    (primary.lag, primary.measured) = (None, None);
    let facts = facts(&mut primary);
    (facts.in_recovery, facts.position, facts.received, facts.streaming) = (false, 1000, 0, false);
    primary
}

pub(super) fn down(mut member: Member) -> Member {
    member.health.up = false;
    (member.health.facts, member.measured) = (None, None);
    member.health.error = Some("connection refused".into());
    member.health.check = CheckStatus::Layer4Connection;
    member
}

/// These members, the first of them the verified leader.
pub(in crate::admin) fn led(mut members: Vec<Member>) -> Snapshot {
    let leader = Leader::Verified {
        member: members[0].name.clone(),
        timeline: 3,
        named_by: NamedBy::LeaderKey,
    };
    members.sort_by(|a, b| a.name.cmp(&b.name));
    Snapshot {
        members,
        leader,
        ..snapshot()
    }
}

/// Long enough for lag to be unknown.
pub(super) fn leaderless(mut members: Vec<Member>, why: NoLeader) -> Snapshot {
    for member in &mut members {
        member.measured = None;
    }
    members.sort_by(|a, b| a.name.cmp(&b.name));
    Snapshot {
        members,
        leader: Leader::None(why),
        ..snapshot()
    }
}

pub(in crate::admin) fn view(snapshot: Snapshot, local_member: LocalMember) -> ClusterView {
    ClusterView {
        name: Arc::clone(&snapshot.cluster),
        snapshot: watch::channel(Arc::new(snapshot)).1,
        local_member,
        dbname: "postgres".into(),
        read_write: vec![Arc::new(Route::read_write("read-write", "main"))],
        read_only: vec![Arc::new(Route::read_only("read-only", "main"))],
        holds: Arc::new(|_| false),
        look_again: Arc::new(|| {}),
    }
}

/// The built-in rules, and one mapping.
pub(in crate::admin) fn access() -> AccessView {
    let mapping = IdentRow {
        map_number: Some(1),
        file_name: "/etc/trunkline/pg_ident.conf".into(),
        line_number: Some(3),
        map_name: Some("cn".into()),
        sys_name: Some("/^(.*)@example$".into()),
        pg_username: Some("\\1".into()),
        error: None,
    };
    AccessView {
        hba: Arc::new(|| Rules::builtin().rows()),
        ident: Arc::new(move || vec![mapping.clone()]),
    }
}

/// About two routes, of which one can be paused between transactions.
pub(in crate::admin) fn console_orders(holding: Arc<dyn HoldOperations>) -> ConsoleOrders {
    ConsoleOrders {
        holding,
        cluster: "main".into(),
        routes: ["read-write", "read-only"].map(Into::into).into(),
        waiting_routes: vec!["read-write".into()],
        events: Events::new(),
    }
}

/// Accepting, with a registry of its own.
pub(in crate::admin) fn handles(clusters: Vec<ClusterView>) -> Handles {
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry, Counter::default());
    let readiness = Arc::new(Readiness::new());
    metrics.follow(&mut registry, &readiness);
    readiness.accepting();
    Handles {
        clusters,
        access: access(),
        operations: Arc::new(Nothing::default()),
        holding: Arc::new(NothingHeld::default()),
        inventory: Arc::new(OneOfEach),
        disabled_routes: Arc::default(),
        token: Arc::default(),
        readiness,
        registry: Arc::new(registry),
        metrics,
        events: Events::new(),
        history: History::default(),
        has_page: true,
    }
}

/// One thing of each kind.
#[derive(Debug)]
pub(in crate::admin) struct OneOfEach;

impl Inventory for OneOfEach {
    fn listeners(&self) -> Vec<ListenerView> {
        let rw = ListenerView {
            name: "rw".to_owned(),
            protocol: "postgres".to_owned(),
            address: Some("*".to_owned()),
            port: Some(6432),
            socket: None,
            route: Some("read-write".to_owned()),
            cluster: Some("main".to_owned()),
            access: Some("read-write".to_owned()),
            targets: Some("leader".to_owned()),
            pool: Some("off".to_owned()),
            console: Some("trunkline".to_owned()),
            tls: "optional".to_owned(),
            proxy_protocol: None,
            allow: vec!["10.0.0.0/8".to_owned()],
            deny: Vec::new(),
            state: "open".to_owned(),
            clients: Some(3),
            max_clients: None,
        };
        let http = ListenerView {
            name: "http".to_owned(),
            protocol: "http".to_owned(),
            port: Some(6434),
            route: None,
            cluster: None,
            clients: None,
            ..rw.clone()
        };
        vec![rw, http]
    }

    fn limits(&self) -> Vec<LimitView> {
        let clients = LimitView::new("clients", "router", "sessions");
        vec![clients.key("limits.max_clients").most(5000).used(3)]
    }

    fn certificates(&self) -> Vec<CertificateView> {
        vec![CertificateView {
            used_for: "clients".to_owned(),
            kind: "own".to_owned(),
            key: "tls.certificates[0].cert_file".to_owned(),
            file: "/etc/trunkline/server.crt".to_owned(),
            number: 1,
            cluster: None,
            listeners: vec!["rw".to_owned()],
            subject: "CN=db.example".to_owned(),
            issuer: "CN=CA".to_owned(),
            names: vec!["db.example".to_owned()],
            not_before_ms: 1_764_457_200_000,
            not_after_ms: 1_772_233_200_000,
            days_left: 90,
            serial: "0A".to_owned(),
            fingerprint: "00:FF".to_owned(),
        }]
    }

    fn settings(&self) -> Vec<SettingView> {
        vec![SettingView {
            key: "limits.max_clients".to_owned(),
            value: Some("100".to_owned()),
            default: Some("5000".to_owned()),
            source: "file".to_owned(),
            file: Some("/etc/trunkline/trunkline.yaml".to_owned()),
            line: Some(7),
            after_restart: None,
        }]
    }

    fn databases(&self) -> Vec<DatabaseView> {
        vec![DatabaseView {
            database: "app".to_owned(),
            sessions: 3,
            bytes_up: 10,
            bytes_down: 20,
            transactions: 1,
        }]
    }

    fn peer_count(&self) -> usize {
        1
    }

    fn peers(&self) -> BoxFuture<'_, Vec<PeerView>> {
        let peer = PeerView {
            name: "router2".to_owned(),
            host: "db2".to_owned(),
            port: 6432,
            state: "down".to_owned(),
            error: Some("connection refused".to_owned()),
            answer_ms: None,
            seen_ms: Some(1_764_457_200_000),
            protocol_version: None,
        };
        ready(vec![peer]).boxed()
    }
}

pub(super) fn app(handles: Handles) -> Arc<App> {
    let locals: Vec<watch::Receiver<Local>> = handles
        .clusters
        .iter()
        .map(|view| watch::channel(initial(&view.local_member)).1)
        .collect();
    let guard = Guard::new(Arc::clone(&handles.token));
    Arc::new(App {
        handles,
        locals,
        guard,
        live: Live::default(),
    })
}

pub(super) fn named(name: &str) -> LocalMember {
    LocalMember::Name(name.into())
}
