//! Hand-built snapshots.
#![allow(clippy::unwrap_used)]
#![cfg_attr(fuzzing, allow(dead_code, reason = "for tests"))]

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use tokio::sync::{oneshot, watch};

use super::super::console::ConsoleOrders;
use super::super::handles::{AccessView, ClusterView, Handles, Readiness};
use super::super::history::History;
use super::super::holding::{
    HoldOperations, PauseReport, PauseRequest, StopCheck, StopEnd, StopReport, SwitchoverPlan,
    SwitchoverRequest, SwitchoverStatus,
};
use super::super::inventory::Inventory;
use super::super::live::Live;
use super::super::local::{Local, initial};
use super::super::metrics::Metrics;
use super::super::operations::{Change, Ending, Gathered, Operations, Reconnection, ReloadAnswer};
use super::super::views::{
    CertificateView, DatabaseView, HoldView, LimitView, ListenerView, PeerView, PoolView, SessionView,
    SettingView,
};
use super::app::App;
use super::guard::Guard;
use crate::auth::ident::IdentRow;
use crate::auth::rules::Rules;
use crate::cluster::Busy;
use crate::cluster::check::CheckStatus;
use crate::cluster::snapshot::*;
use crate::config::{LocalMember, Route};
use crate::events::Events;
use crate::session::generations::totals::MemberLoad;
use crate::session::holds::MemberActivity;

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

/// Holds nobody; keeps what it was told.
#[derive(Debug, Default)]
pub(in crate::admin) struct NothingHeld {
    pub(in crate::admin) told: Mutex<Vec<String>>,
    /// How a switchover stands at each look.
    pub(in crate::admin) looks: Mutex<VecDeque<SwitchoverStatus>>,
    /// Of every paused route.
    pub(in crate::admin) open: u32,
    pub(in crate::admin) held: Option<HoldView>,
}

impl HoldOperations for NothingHeld {
    fn before_stop<'a>(
        &'a self,
        cluster: &'a str,
        member: &'a MemberName,
        grace: Duration,
        _: &'a str,
    ) -> BoxFuture<'a, Result<StopReport, String>> {
        let said = format!("before-stop {cluster} {member} {grace:?}");
        self.told.lock().unwrap().push(said);
        let report = StopReport {
            member: member.to_string(),
            waited_ms: 7,
            left: MemberActivity::default(),
            held_ms: Some(27_000),
            missing: Vec::new(),
        };
        async { Ok(report) }.boxed()
    }

    fn check_stop<'a>(
        &'a self,
        cluster: &'a str,
        member: &'a MemberName,
    ) -> BoxFuture<'a, Result<StopCheck, String>> {
        let check = StopCheck {
            cluster: cluster.to_owned(),
            member: member.to_string(),
            limit_ms: 10_000,
            held_ms: 27_000,
            left: MemberActivity::default(),
            peers: Vec::new(),
            missing: Vec::new(),
        };
        ready(Ok(check)).boxed()
    }

    fn end_stop<'a>(
        &'a self,
        cluster: &'a str,
        member: &'a MemberName,
    ) -> BoxFuture<'a, Result<StopEnd, String>> {
        let said = format!("end of before-stop {cluster} {member}");
        self.told.lock().unwrap().push(said);
        let end = StopEnd {
            member: member.to_string(),
            was_held: true,
            missing: Vec::new(),
        };
        ready(Ok(end)).boxed()
    }

    fn stop_limit<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Duration> {
        ready(Duration::from_secs(10)).boxed()
    }

    fn plan_switchover<'a>(
        &'a self,
        request: &'a SwitchoverRequest,
    ) -> BoxFuture<'a, Result<SwitchoverPlan, String>> {
        let plan = SwitchoverPlan {
            cluster: request.cluster.clone(),
            leader: "db1".to_owned(),
            candidate: request.to.clone().unwrap_or_default(),
            sessions: MemberActivity::default(),
            peers: Vec::new(),
            direct: Vec::new(),
            remarks: Vec::new(),
            problems: request.without_peers.clone(),
        };
        async { Ok(plan) }.boxed()
    }

    fn switch_over<'a>(
        &'a self,
        request: &'a SwitchoverRequest,
        _: &'a str,
    ) -> BoxFuture<'a, Result<SwitchoverPlan, String>> {
        self.told.lock().unwrap().push(format!("switchover {request:?}"));
        self.plan_switchover(request)
    }

    fn switchover(&self) -> Option<SwitchoverStatus> {
        self.looks.lock().unwrap().pop_front()
    }

    fn abort_switchover(&self) -> Result<(), String> {
        Err("no switchover runs".to_owned())
    }

    fn pause<'a>(
        &'a self,
        route: &'a str,
        pause: &'a PauseRequest,
        _: &'a str,
    ) -> BoxFuture<'a, Result<PauseReport, String>> {
        self.told.lock().unwrap().push(format!("pause {route} {pause:?}"));
        let report = PauseReport {
            route: route.to_owned(),
            open: self.open,
            unaffected: 0,
            was_paused: true,
            waited_ms: 7,
            missing: Vec::new(),
        };
        ready(Ok(report)).boxed()
    }

    fn unpause<'a>(&'a self, route: &'a str, _: bool) -> BoxFuture<'a, Result<PauseReport, String>> {
        self.told.lock().unwrap().push(format!("unpause {route}"));
        ready(Err("the route is not paused".to_owned())).boxed()
    }

    fn holds(&self) -> Vec<HoldView> {
        self.held.iter().cloned().collect()
    }

    fn paused(&self) -> BTreeMap<String, Duration> {
        BTreeMap::new()
    }
}

/// No sessions; keeps what it was told.
#[derive(Debug, Default)]
pub(in crate::admin) struct Nothing {
    pub(in crate::admin) told: Mutex<Vec<String>>,
    pub(in crate::admin) session: Option<SessionView>,
    pub(in crate::admin) pool: Option<PoolView>,
    /// Why a reload is refused; `None`: the process is ending.
    pub(in crate::admin) faults: Option<Vec<String>>,
    /// Processes that do not answer.
    pub(in crate::admin) missing: Vec<String>,
}

impl Nothing {
    fn gathered<T: Send + 'static>(&self, value: T) -> BoxFuture<'static, Gathered<T>> {
        let missing = self.missing.clone();
        ready(Gathered { value, missing }).boxed()
    }
}

impl Operations for Nothing {
    fn refresh(&self) -> BoxFuture<'_, Vec<String>> {
        ready(self.missing.clone()).boxed()
    }

    fn sessions(&self) -> BoxFuture<'_, Gathered<Vec<SessionView>>> {
        self.gathered(self.session.iter().cloned().collect())
    }

    fn session_count(&self) -> usize {
        self.session.iter().len()
    }

    fn load_of(&self, _: &str, _: &MemberName) -> MemberLoad {
        MemberLoad::of(self.session.iter().len() + 3, 3)
    }

    fn end_session(&self, id: u64, ending: Ending) -> BoxFuture<'_, Gathered<Option<SessionView>>> {
        let found = self.session.clone().filter(|session| session.id == id);
        if found.is_some() {
            self.told.lock().unwrap().push(format!("{id} {ending:?}"));
        }
        self.gathered(found)
    }

    fn end_sessions_on<'a>(
        &'a self,
        cluster: &'a str,
        member: &'a MemberName,
        ending: Ending,
    ) -> BoxFuture<'a, Gathered<usize>> {
        let told = format!("{cluster} {member} {ending:?}");
        self.told.lock().unwrap().push(told);
        self.gathered(self.session.iter().len())
    }

    fn pools(&self) -> BoxFuture<'_, Gathered<Vec<PoolView>>> {
        self.gathered(self.pool.iter().cloned().collect())
    }

    fn reconnect<'a>(&'a self, which: &'a Reconnection) -> BoxFuture<'a, Gathered<usize>> {
        self.told.lock().unwrap().push(format!("reconnect {which}"));
        self.gathered(3)
    }

    fn has_kept(&self, _: &str, member: &MemberName) -> bool {
        member.as_str() == "kept"
    }

    fn administer<'a>(
        &'a self,
        cluster: &'a str,
        member: &'a MemberName,
        change: Change,
    ) -> BoxFuture<'a, Result<Gathered<()>, Busy>> {
        let told = format!("{cluster} {member} {change:?}");
        self.told.lock().unwrap().push(told);
        self.gathered(()).map(Ok).boxed()
    }

    fn sessions_of(&self, route: &str) -> usize {
        let mut sessions = self.session.iter();
        usize::from(sessions.any(|session| session.route == route))
    }

    fn disable_route(&self, route: &str, is_disabled: bool) -> Result<(), Busy> {
        let told = format!("route {route} disabled {is_disabled}");
        self.told.lock().unwrap().push(told);
        Ok(())
    }

    fn drain_router(&self, is_drained: bool) -> Result<(), Busy> {
        self.told
            .lock()
            .unwrap()
            .push(format!("router drained {is_drained}"));
        Ok(())
    }

    fn forget_identity(&self, cluster: &str) -> Result<(), Busy> {
        self.told
            .lock()
            .unwrap()
            .push(format!("forget-identity {cluster}"));
        Ok(())
    }

    fn reload(&self) -> oneshot::Receiver<ReloadAnswer> {
        self.told.lock().unwrap().push("reload".to_owned());
        let (answer, answered) = oneshot::channel();
        if let Some(faults) = self.faults.clone() {
            let told = ReloadAnswer {
                applied: faults.is_empty(),
                changed: Vec::new(),
                restart: Vec::new(),
                faults,
            };
            answer.send(told).unwrap();
        }
        answered
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
