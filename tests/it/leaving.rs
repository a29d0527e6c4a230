//! Live sessions on a member that is taken into maintenance, or that is down though their
//! connections are there.

use std::process::Command;
use std::time::Duration;

use tokio::time::Instant;

use super::administration::Administered;
use super::hand::{Message, Raw, V3_0};
use crate::cluster::postgres::{self, Postgres};
use crate::cluster::{Cluster, Options, Router, eventually, output};

const GRACE: Duration = Duration::from_secs(2);

fn session(router: &Router, port: u16) -> Raw {
    let mut raw = Raw::tls(router.address, port);
    raw.startup(V3_0, &[("user", "app"), ("database", "app")]);
    assert_eq!(raw.authenticate("app").last().unwrap().tag, b'Z');
    raw
}

/// Its last words, and nothing behind them.
#[track_caller]
fn is_sent_away(told: &Message, why: &str) {
    assert_eq!(
        (told.field(b'S').as_deref(), told.code().as_str()),
        (Some("FATAL"), "57P01"),
        "{told:?}"
    );
    let (text, hint) = (told.field(b'M').unwrap(), told.field(b'H').unwrap_or_default());
    assert!(text.contains(why) && hint.contains("Reconnect"), "{text} {hint}");
}

#[test]
fn maintenance_ends_sessions_at_the_end_of_their_transactions_or_after_the_grace_period() {
    let on = Administered::with(
        &tempfile::tempdir().unwrap().keep(),
        Options {
            extra: "routes:\n  read-write: {targets: [leader]}\n  \
                    read-only: {targets: [replica], on_unfit: {lag: keep, down: keep, grace: 2s}}\n"
                .to_owned(),
            ..Options::default()
        },
    );
    on.await_replicas(2);
    let own = |raw: &mut Raw| raw.value("SELECT inet_server_addr()");
    let one = Cluster::shared().replicas().remove(0);
    let place = Cluster::shared().node(&one).address;
    // Three of them there.
    let (mut there, mut elsewhere) = (Vec::new(), Vec::new());
    while there.len() < 3 || elsewhere.is_empty() {
        let mut raw = session(&on.router, 6433);
        if own(&mut raw) == place {
            there.push(raw);
        } else {
            elsewhere.push(raw);
        }
        assert!(there.len() + elsewhere.len() < 40);
    }
    let mut writer = session(&on.router, 6432);
    let (mut idle, mut working, mut stuck) = (there.remove(0), there.remove(0), there.remove(0));
    working.query("BEGIN");
    stuck.query("BEGIN");

    on.ok(&["maint", &one]);
    let why = format!("{one} is in maintenance");
    is_sent_away(&idle.last_error(), &why);
    let began = Instant::now();
    assert_eq!(working.value("SELECT 6 * 7"), "42", "its transaction goes on");
    let listed = on.json(&["sessions"]);
    assert!(
        listed.iter().any(|session| session["ending"] == why.as_str()),
        "{listed:?}"
    );
    let commit = working.query("COMMIT");
    assert_eq!(commit.last().unwrap().tag, b'Z', "the answer is whole");
    is_sent_away(&working.last_error(), &why);
    is_sent_away(&stuck.last_error(), &why);
    let waited = began.elapsed();
    assert!(waited + Duration::from_millis(500) >= GRACE, "{waited:?}");
    on.router
        .await_log(&["session ended", "route=read-only", &format!("member={one}"), &why]);
    // Nobody else is concerned.
    for raw in elsewhere.iter_mut().chain([&mut writer]) {
        assert_eq!(raw.value("SELECT 6 * 7"), "42");
    }
    on.ok(&["ready", &one]);
    on.await_replicas(2);
}

/// Processes that are stopped, until this is dropped.
struct Frozen(Vec<String>);

impl Frozen {
    fn freeze(server: &Postgres) -> Self {
        let file = std::fs::read_to_string(server.data().join("postmaster.pid")).unwrap();
        let postmaster = file.lines().next().unwrap().to_owned();
        let children = output(Command::new("pgrep").args(["-P", &postmaster]));
        let mut all = vec![postmaster];
        all.extend(
            String::from_utf8_lossy(&children.stdout)
                .lines()
                .map(str::to_owned),
        );
        assert!(all.len() > 4, "{all:?}");
        let frozen = Self(all);
        frozen.signal("-STOP");
        frozen
    }

    fn signal(&self, signal: &str) {
        let _ = output(Command::new("kill").arg(signal).args(&self.0));
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.signal("-CONT");
    }
}

#[test]
fn sessions_on_a_frozen_server_stay_or_leave_by_policy() {
    let server = Postgres::start(&postgres::Options::default());
    let router = Router::launch(
        None,
        Options {
            clusters: Some(server.yaml()),
            extra: "routes:\n  keep: {targets: [leader]}\n  \
                    idle: {targets: [leader], on_unfit: {down: close_idle}}\n  \
                    close: {targets: [leader], on_unfit: {down: close, grace: 2s}}\n"
                .to_owned(),
            listeners: Some(
                "  - {name: keep, address: \"{address}:6432\", route: keep}\n  \
                 - {name: idle, address: \"{address}:6433\", route: idle}\n  \
                 - {name: close, address: \"{address}:6435\", route: close}\n"
                    .to_owned(),
            ),
            ..Options::default()
        },
    );
    router.await_read_write();
    let mut kept = session(&router, 6432);
    let mut idle = session(&router, 6433);
    let mut in_transaction = session(&router, 6433);
    let mut closed = session(&router, 6435);
    let mut cut = session(&router, 6435);
    for raw in [&mut kept, &mut in_transaction, &mut cut] {
        raw.query("BEGIN");
    }
    // And one with a request under way.
    let mut waiting = session(&router, 6435);
    waiting.send(&super::hand::message(b'Q', b"SELECT pg_sleep(3600)\0"));
    eventually("it is under way", Duration::from_secs(10), || {
        server
            .sql("SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%3600%' AND wait_event = 'PgSleep'")
            == "1"
    });

    let frozen = Frozen::freeze(&server);
    let why = "s1 is down";
    is_sent_away(&closed.last_error(), why);
    let began = Instant::now();
    is_sent_away(&idle.last_error(), why);
    is_sent_away(&cut.last_error(), why);
    let waited = began.elapsed();
    assert!(waited + Duration::from_millis(500) >= GRACE, "{waited:?}");
    let told = waiting.message();
    assert_eq!((told.tag, told.code().as_str()), (b'E', "08007"), "{told:?}");
    assert!(told.field(b'M').unwrap().contains(why), "{told:?}");
    assert_eq!(waiting.rest(), b"Z\0\0\0\x05I");
    router.await_log(&["session ended", "route=close", "member=s1", why]);
    drop(frozen);
    // The others have waited for nothing.
    for raw in [&mut kept, &mut in_transaction] {
        assert_eq!(raw.value("SELECT 6 * 7"), "42");
        assert_eq!(raw.query("COMMIT").last().unwrap().tag, b'Z');
    }
    router.await_read_write();
    assert_eq!(kept.value("SELECT 6 * 7"), "42");
    session(&router, 6435);
}
