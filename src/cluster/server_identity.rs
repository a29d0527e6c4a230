//! Which server a session is on, and checks of which server an address leads to now.
//!
//! A name, a virtual address or a forwarded port may lead to another server at any moment, and an
//! existing connection does not notice. So a session's connection is compared with a check over a
//! probe's connection to the same address, begun at most [`MAX_CHECK_AGE`] earlier. If there is no
//! such check, the member's prober makes one now. One check serves all sessions that arrive at the
//! same time, so that a login does not need a query of its own.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::snapshot::{MemberName, ProbeFacts};
use crate::backend::query::{Row, simple_query};
use crate::backend::{ConnectError, SeenRole, ServerConnection, Step};
use crate::wire::startup::Replication;

/// How much older than a session's connection the connection of a check may be.
pub const MAX_CHECK_AGE: Duration = Duration::from_millis(250);
/// Within which time a check that is requested soon runs.
const CHECK_SOON_WITHIN: Duration = Duration::from_secs(1);
/// How long each session's own connection is checked after a mismatch: two servers may answer in
/// turn.
const DOUBT: Duration = Duration::from_mins(1);

/// The identity of a server, as seen over a connection to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerIdentity {
    pub system_identifier: u64,
    /// Primary: the timeline that it writes. Standby: the best known value.
    pub timeline: u32,
    pub in_recovery: bool,
    pub address: IpAddr,
    /// When the connection began.
    pub connected: Instant,
}

impl ServerIdentity {
    /// The result of a probe; `None` if it did not record its connection.
    pub fn of(facts: &ProbeFacts) -> Option<Self> {
        Some(Self {
            system_identifier: facts.system_identifier,
            timeline: facts.timeline,
            in_recovery: facts.in_recovery,
            address: facts.address?,
            connected: facts.connected?,
        })
    }

    /// Whether it is valid for a connection to `address` that began at `connected`.
    fn is_valid_for(&self, address: IpAddr, connected: Instant) -> bool {
        self.address == address && self.connected + MAX_CHECK_AGE >= connected
    }

    /// Whether both are the same server, as far as can be seen.
    fn is_like(&self, other: &Self) -> bool {
        (self.system_identifier, self.timeline, self.address)
            == (other.system_identifier, other.timeline, other.address)
    }
}

/// Identifies the server: in recovery, system identifier, timeline of its last checkpoint, and for
/// a primary the name of its current WAL file, which begins with the timeline. Everything is
/// qualified and nothing is cast, since the session has the client's settings. It runs in a
/// separate transaction for the same reason: the client may have asked for transactions that wait,
/// or that no standby has.
const SQL: &str = "\
BEGIN ISOLATION LEVEL READ COMMITTED, READ ONLY, NOT DEFERRABLE; \
SELECT pg_catalog.pg_is_in_recovery(), (pg_catalog.pg_control_system()).system_identifier, \
(pg_catalog.pg_control_checkpoint()).timeline_id, \
CASE WHEN NOT pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()) END; \
COMMIT";

/// Identifies the server over a session's own connection. After an error that [leaves it
/// usable](ConnectError::leaves_usable) the connection is between transactions again.
pub async fn ask<S: AsyncRead + AsyncWrite + Unpin>(
    connection: &mut ServerConnection<S>,
    replication: Replication,
    begun: Instant,
    deadline: Instant,
) -> Result<ServerIdentity, ConnectError> {
    // A physical replication connection accepts no SQL.
    let sql = if replication == Replication::Physical {
        "IDENTIFY_SYSTEM"
    } else {
        SQL
    };
    let rows = match simple_query(connection, sql, 1, deadline).await {
        Err(error) if error.leaves_usable() && replication != Replication::Physical => {
            simple_query(connection, "ROLLBACK", 1, deadline).await?;
            return Err(error);
        }
        answer => answer?,
    };
    let identity = rows.first().and_then(|row| {
        if replication == Replication::Physical {
            identified(row, connection.role == SeenRole::Standby)
        } else {
            read_identity(row)
        }
    });
    let Some((in_recovery, system_identifier, timeline)) = identity else {
        let what = "the server's answer about its identity is invalid";
        return Err(ConnectError::protocol(Step::Query, what));
    };
    Ok(ServerIdentity {
        system_identifier,
        timeline,
        in_recovery,
        address: connection.address.ip(),
        connected: begun,
    })
}

fn text(value: Option<&Vec<u8>>) -> Option<&str> {
    std::str::from_utf8(value?).ok()
}

/// Reads the row of [`SQL`].
fn read_identity(row: &Row) -> Option<(bool, u64, u32)> {
    let [recovery, identifier, checkpoint, file] = row.as_slice() else {
        return None;
    };
    // Both are signed in SQL.
    let identifier = text(identifier.as_ref())?.parse::<i64>().ok()?.cast_unsigned();
    let timeline = match file {
        None => text(checkpoint.as_ref())?.parse::<i32>().ok()?.cast_unsigned(),
        file => u32::from_str_radix(text(file.as_ref())?.get(..8)?, 16).ok()?,
    };
    Some((text(recovery.as_ref())? == "t", identifier, timeline))
}

/// Reads the row of `IDENTIFY_SYSTEM`.
fn identified(row: &Row, in_recovery: bool) -> Option<(bool, u64, u32)> {
    let [identifier, timeline, ..] = row.as_slice() else {
        return None;
    };
    let timeline = text(timeline.as_ref())?.parse::<i64>().ok()?;
    // An int8 since PostgreSQL 16, an int4 before.
    let timeline = u32::try_from(timeline)
        .ok()
        .or_else(|| Some(i32::try_from(timeline).ok()?.cast_unsigned()));
    Some((in_recovery, text(identifier.as_ref())?.parse().ok()?, timeline?))
}

/// How a session's server was identified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdentifiedBy {
    /// By a query on the session's own connection.
    Session,
    /// By a probe of the same address at the same time.
    Prober,
}

/// The server that a session is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerLocation {
    pub identity: ServerIdentity,
    pub known: IdentifiedBy,
    /// When the session's own connection began.
    pub begun: Instant,
}

/// A check over a new connection: when that began, and the result, if any.
type CheckResult = Option<(Instant, Option<ServerIdentity>)>;

/// The checks of one member's address, and the requests for new ones.
#[derive(Debug)]
pub struct AddressCheck {
    requested: AtomicBool,
    now: Notify,
    soon: Notify,
    last: watch::Sender<CheckResult>,
    memory: Mutex<Memory>,
}

#[derive(Debug, Default)]
struct Memory {
    /// The last result, also if later checks failed.
    seen: Option<ServerIdentity>,
    doubted: Option<Instant>,
}

impl Default for AddressCheck {
    fn default() -> Self {
        Self {
            requested: AtomicBool::new(false),
            now: Notify::new(),
            soon: Notify::new(),
            last: watch::Sender::new(None),
            memory: Mutex::default(),
        }
    }
}

impl AddressCheck {
    /// The result that is valid for a connection to `address` begun at `begun`, without waiting.
    pub fn recent(&self, address: IpAddr, begun: Instant) -> Option<ServerIdentity> {
        let identity = self.last()?;
        identity.is_valid_for(address, begun).then_some(identity)
    }

    /// The result of the last check, if it had one.
    pub fn last(&self) -> Option<ServerIdentity> {
        self.last.borrow().and_then(|(_, identity)| identity)
    }

    /// As [`Self::recent`], but requests a check if none is valid. `None`: there was no result in
    /// time, or it is for another address.
    pub async fn ask(&self, address: IpAddr, begun: Instant, deadline: Instant) -> Option<ServerIdentity> {
        let mut checks = self.last.subscribe();
        let identity = timeout_at(deadline, async {
            loop {
                match *checks.borrow_and_update() {
                    Some((connected, identity)) if connected + MAX_CHECK_AGE >= begun => return identity,
                    _ => self.request(),
                }
                if checks.changed().await.is_err() {
                    return None;
                }
            }
        });
        let identity = identity.await.ok().flatten();
        identity.filter(|identity| identity.is_valid_for(address, begun))
    }

    /// Requests a check now.
    pub fn request(&self) {
        self.requested.store(true, Ordering::Relaxed);
        self.now.notify_one();
    }

    /// Requests that the next probe is a check, at most [`CHECK_SOON_WITHIN`] after the one before.
    pub fn request_soon(&self) {
        self.requested.store(true, Ordering::Relaxed);
        self.soon.notify_one();
    }

    /// Records a mismatch: for a while a probe's result is not enough.
    pub fn doubt(&self, now: Instant) {
        self.memory().doubted = Some(now);
    }

    pub fn is_doubted(&self, now: Instant) -> bool {
        self.memory()
            .doubted
            .is_some_and(|at| now.saturating_duration_since(at) < DOUBT)
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For the prober: whether a check is requested. Resets the request.
    pub(super) fn take_request(&self) -> bool {
        self.requested.swap(false, Ordering::Relaxed)
    }

    /// For the prober: waits until a check is requested now, or a check requested soon is due. The
    /// last probe began at `started`.
    pub(super) async fn due(&self, started: Instant) {
        let soon = async {
            self.soon.notified().await;
            sleep_until(started + CHECK_SOON_WITHIN).await;
        };
        tokio::select! {
            () = self.now.notified() => {}
            () = soon => {}
        }
    }

    /// For the prober: publishes the result of a connection begun at `connected`.
    pub(super) fn publish(&self, connected: Instant, identity: Option<ServerIdentity>) {
        let mut memory = self.memory();
        if let Some(now) = identity
            && let Some(before) = memory.seen.replace(now)
            && !before.is_like(&now)
        {
            memory.doubted = Some(connected);
        }
        drop(memory);
        self.last.send_replace(Some((connected, identity)));
    }
}

/// The checks of every probed member.
#[derive(Debug, Default)]
pub(super) struct AddressChecks(Mutex<BTreeMap<MemberName, Arc<AddressCheck>>>);

impl AddressChecks {
    pub(super) fn of(&self, member: &MemberName) -> Option<Arc<AddressCheck>> {
        self.lock().get(member).cloned()
    }

    /// From now on a member is probed at an address.
    pub(super) fn begin(&self, member: &MemberName) -> Arc<AddressCheck> {
        let check = Arc::new(AddressCheck::default());
        self.lock().insert(member.clone(), Arc::clone(&check));
        check
    }

    pub(super) fn retain(&self, is_probed: impl Fn(&MemberName) -> bool) {
        self.lock().retain(|member, _| is_probed(member));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<MemberName, Arc<AddressCheck>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::net::Ipv4Addr;

    use super::*;

    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
    const ELSEWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2));

    fn identity(connected: Instant) -> ServerIdentity {
        ServerIdentity {
            system_identifier: 42,
            timeline: 1,
            in_recovery: false,
            address: HERE,
            connected,
        }
    }

    #[test]
    fn a_servers_answer_about_its_identity_is_read() {
        let row = |values: &[Option<&str>]| -> Row {
            let bytes = |value: Option<&str>| value.map(|text| text.as_bytes().to_vec());
            values.iter().copied().map(bytes).collect()
        };
        let newest = row(&[Some("f"), Some("-2"), Some("1"), Some("FFFFFFFF0000000000000001")]);
        assert_eq!(read_identity(&newest), Some((false, u64::MAX - 1, u32::MAX)));
        let standby = row(&[Some("t"), Some("7"), Some("-1"), None]);
        assert_eq!(read_identity(&standby), Some((true, 7, u32::MAX)));
        for nonsense in [
            vec![],
            vec![Some("t"), None, Some("1"), None],
            vec![Some("f"), Some("7"), Some("1"), Some("short")],
            vec![Some("false"), Some("77"), Some("1"), Some("1000"), Some("0")],
        ] {
            assert_eq!(read_identity(&row(&nonsense)), None);
        }
        for (timeline, expected) in [("3", 3), ("4294967295", u32::MAX), ("-1", u32::MAX)] {
            let answer = row(&[Some("18446744073709551614"), Some(timeline), Some("0/1"), None]);
            assert_eq!(identified(&answer, true), Some((true, u64::MAX - 1, expected)));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_check_is_valid_for_connections_of_its_time_to_its_address() {
        let check = AddressCheck::default();
        let start = Instant::now() + Duration::from_secs(10);
        assert_eq!(check.recent(HERE, start), None);
        check.publish(start, Some(identity(start)));
        assert!(check.recent(HERE, start).is_some());
        assert!(check.recent(HERE, start + MAX_CHECK_AGE).is_some());
        assert_eq!(check.recent(HERE, start + MAX_CHECK_AGE * 2), None, "too old");
        assert_eq!(check.recent(ELSEWHERE, start), None, "another address");
        check.publish(start, None);
        assert_eq!(check.recent(HERE, start), None, "the check had no result");
    }

    #[tokio::test(start_paused = true)]
    async fn one_check_serves_all_sessions_that_arrive_at_the_same_time() {
        let check = Arc::new(AddressCheck::default());
        let begun = Instant::now();
        let waiting: Vec<_> = (0..20)
            .map(|_| {
                let check = Arc::clone(&check);
                tokio::spawn(async move { check.ask(HERE, begun, begun + Duration::from_secs(1)).await })
            })
            .collect();
        check.due(Instant::now()).await;
        assert!(check.take_request());
        tokio::task::yield_now().await;
        let now = Instant::now();
        check.publish(now, Some(identity(now)));
        for waiter in waiting {
            assert_eq!(waiter.await.unwrap(), Some(identity(now)));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_check_that_began_too_early_is_no_answer() {
        let check = Arc::new(AddressCheck::default());
        let early = Instant::now();
        let begun = early + MAX_CHECK_AGE * 2;
        let asked = Arc::clone(&check);
        let waiter = tokio::spawn(async move { asked.ask(HERE, begun, begun + MAX_CHECK_AGE * 10).await });
        check.due(Instant::now()).await;
        assert!(check.take_request());
        check.publish(early, Some(identity(early)));
        check.due(Instant::now()).await;
        assert!(check.take_request(), "requested again");
        check.publish(begun, Some(identity(begun)));
        assert_eq!(waiter.await.unwrap(), Some(identity(begun)));
        let never = check.ask(HERE, begun + MAX_CHECK_AGE * 2, Instant::now() + MAX_CHECK_AGE);
        assert_eq!(never.await, None, "the deadline is kept");
    }

    #[tokio::test(start_paused = true)]
    async fn a_check_that_is_requested_soon_runs_within_a_second() {
        let check = AddressCheck::default();
        let started = Instant::now();
        check.request_soon();
        check.due(started).await;
        assert_eq!(Instant::now() - started, CHECK_SOON_WITHIN);
        assert!(check.take_request());
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_leads_to_another_server_is_doubted_for_a_while() {
        let check = AddressCheck::default();
        let start = Instant::now();
        check.publish(start, Some(identity(start)));
        assert!(!check.is_doubted(start));
        let foreign = ServerIdentity {
            system_identifier: 666,
            ..identity(start)
        };
        check.publish(start, Some(foreign));
        assert!(check.is_doubted(start));
        assert!(!check.is_doubted(start + DOUBT));
    }
}
