//! Which server a session is on, and checks of which server an address leads to now.
//!
//! A name, a virtual address or a forwarded port may lead to another server at any moment, and an
//! existing connection does not notice. So a session's connection is compared with a check over a
//! probe's connection to the same address, begun at most [`LOOK_AGE`] earlier. If there is no such
//! check, the member's prober makes one now. One check serves all sessions that arrive at the same
//! time, so that a login does not need a query of its own.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::snapshot::{MemberName, ProbeFacts};
use crate::backend::query::{Row, simple_query};
use crate::backend::{ConnectError, SeenRole, ServerConnection, Step};
use crate::wire::startup::Replication;

/// How much older than a session's connection the connection of a check may be.
pub const LOOK_AGE: Duration = Duration::from_millis(250);
/// Within which time a check that is requested soon runs.
const LOOK_SOON: Duration = Duration::from_secs(1);
/// How long each session's own connection is checked after a mismatch: two servers may answer in
/// turn.
const DOUBT: Duration = Duration::from_mins(1);

/// The identity of a server, as seen over a connection to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sight {
    pub system_identifier: u64,
    /// Primary: the timeline that it writes. Standby: the best known value.
    pub timeline: u32,
    pub in_recovery: bool,
    pub address: IpAddr,
    /// When the connection began.
    pub connected: Instant,
}

impl Sight {
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
        self.address == address && self.connected + LOOK_AGE >= connected
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
pub async fn ask(
    connection: &mut ServerConnection,
    replication: Replication,
    begun: Instant,
    deadline: Instant,
) -> Result<Sight, ConnectError> {
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
            identity(row)
        }
    });
    let Some((in_recovery, system_identifier, timeline)) = identity else {
        let what = "the server's answer about its identity is invalid";
        return Err(ConnectError::protocol(Step::Query, what));
    };
    Ok(Sight {
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
fn identity(row: &Row) -> Option<(bool, u64, u32)> {
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
pub enum Known {
    /// By a query on the session's own connection.
    Asked,
    /// By a probe of the same address at the same time.
    Beside,
}

/// The server that a session is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Whereabouts {
    pub sight: Sight,
    pub known: Known,
    /// When the session's own connection began.
    pub begun: Instant,
}

/// A check over a new connection: when that began, and the result, if any.
type Looked = Option<(Instant, Option<Sight>)>;

/// The checks of one member's address, and the requests for new ones.
#[derive(Debug)]
pub struct Look {
    wanted: AtomicBool,
    poke: Notify,
    soon: Notify,
    last: watch::Sender<Looked>,
    memory: Mutex<Memory>,
}

#[derive(Debug, Default)]
struct Memory {
    /// The last result, also if later checks failed.
    seen: Option<Sight>,
    doubted: Option<Instant>,
}

impl Default for Look {
    fn default() -> Self {
        Self {
            wanted: AtomicBool::new(false),
            poke: Notify::new(),
            soon: Notify::new(),
            last: watch::Sender::new(None),
            memory: Mutex::default(),
        }
    }
}

impl Look {
    /// The result that is valid for a connection to `address` begun at `begun`, without waiting.
    pub fn recent(&self, address: IpAddr, begun: Instant) -> Option<Sight> {
        let sight = self.last()?;
        sight.is_valid_for(address, begun).then_some(sight)
    }

    /// The result of the last check, if it had one.
    pub fn last(&self) -> Option<Sight> {
        self.last.borrow().and_then(|(_, sight)| sight)
    }

    /// As [`Self::recent`], but requests a check if none is valid. `None`: there was no result in
    /// time, or it is for another address.
    pub async fn ask(&self, address: IpAddr, begun: Instant, deadline: Instant) -> Option<Sight> {
        let mut looks = self.last.subscribe();
        let identity = timeout_at(deadline, async {
            loop {
                match *looks.borrow_and_update() {
                    Some((connected, sight)) if connected + LOOK_AGE >= begun => return sight,
                    _ => self.want(),
                }
                if looks.changed().await.is_err() {
                    return None;
                }
            }
        });
        let sight = identity.await.ok().flatten();
        sight.filter(|sight| sight.is_valid_for(address, begun))
    }

    /// Requests a check now.
    pub fn want(&self) {
        self.wanted.store(true, Ordering::Relaxed);
        self.poke.notify_one();
    }

    /// Requests that the next probe is a check, at most [`LOOK_SOON`] after the one before.
    pub fn want_soon(&self) {
        self.wanted.store(true, Ordering::Relaxed);
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
    pub(super) fn take_wanted(&self) -> bool {
        self.wanted.swap(false, Ordering::Relaxed)
    }

    /// For the prober: waits until a check is requested now, or a check requested soon is due. The
    /// last probe began at `started`.
    pub(super) async fn poked(&self, started: Instant) {
        let soon = async {
            self.soon.notified().await;
            sleep_until(started + LOOK_SOON).await;
        };
        tokio::select! {
            () = self.poke.notified() => {}
            () = soon => {}
        }
    }

    /// For the prober: publishes the result of a connection begun at `connected`.
    pub(super) fn show(&self, connected: Instant, sight: Option<Sight>) {
        let mut memory = self.memory();
        if let Some(now) = sight
            && let Some(before) = memory.seen.replace(now)
            && !before.is_like(&now)
        {
            memory.doubted = Some(connected);
        }
        drop(memory);
        self.last.send_replace(Some((connected, sight)));
    }
}

/// The checks of every probed member.
#[derive(Debug, Default)]
pub(super) struct Looks(Mutex<BTreeMap<MemberName, Arc<Look>>>);

impl Looks {
    pub(super) fn of(&self, member: &MemberName) -> Option<Arc<Look>> {
        self.lock().get(member).cloned()
    }

    /// From now on a member is probed at an address.
    pub(super) fn begin(&self, member: &MemberName) -> Arc<Look> {
        let look = Arc::new(Look::default());
        self.lock().insert(member.clone(), Arc::clone(&look));
        look
    }

    pub(super) fn retain(&self, is_probed: impl Fn(&MemberName) -> bool) {
        self.lock().retain(|member, _| is_probed(member));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<MemberName, Arc<Look>>> {
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

    fn sight(connected: Instant) -> Sight {
        Sight {
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
        assert_eq!(identity(&newest), Some((false, u64::MAX - 1, u32::MAX)));
        let standby = row(&[Some("t"), Some("7"), Some("-1"), None]);
        assert_eq!(identity(&standby), Some((true, 7, u32::MAX)));
        for nonsense in [
            vec![],
            vec![Some("t"), None, Some("1"), None],
            vec![Some("f"), Some("7"), Some("1"), Some("short")],
            vec![Some("false"), Some("77"), Some("1"), Some("1000"), Some("0")],
        ] {
            assert_eq!(identity(&row(&nonsense)), None);
        }
        for (timeline, expected) in [("3", 3), ("4294967295", u32::MAX), ("-1", u32::MAX)] {
            let answer = row(&[Some("18446744073709551614"), Some(timeline), Some("0/1"), None]);
            assert_eq!(identified(&answer, true), Some((true, u64::MAX - 1, expected)));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_check_is_valid_for_connections_of_its_time_to_its_address() {
        let look = Look::default();
        let start = Instant::now() + Duration::from_secs(10);
        assert_eq!(look.recent(HERE, start), None);
        look.show(start, Some(sight(start)));
        assert!(look.recent(HERE, start).is_some());
        assert!(look.recent(HERE, start + LOOK_AGE).is_some());
        assert_eq!(look.recent(HERE, start + LOOK_AGE * 2), None, "too old");
        assert_eq!(look.recent(ELSEWHERE, start), None, "another address");
        look.show(start, None);
        assert_eq!(look.recent(HERE, start), None, "the check had no result");
    }

    #[tokio::test(start_paused = true)]
    async fn one_check_serves_all_sessions_that_arrive_at_the_same_time() {
        let look = Arc::new(Look::default());
        let begun = Instant::now();
        let waiting: Vec<_> = (0..20)
            .map(|_| {
                let look = Arc::clone(&look);
                tokio::spawn(async move { look.ask(HERE, begun, begun + Duration::from_secs(1)).await })
            })
            .collect();
        look.poked(Instant::now()).await;
        assert!(look.take_wanted());
        tokio::task::yield_now().await;
        let now = Instant::now();
        look.show(now, Some(sight(now)));
        for waiter in waiting {
            assert_eq!(waiter.await.unwrap(), Some(sight(now)));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_check_that_began_too_early_is_no_answer() {
        let look = Arc::new(Look::default());
        let early = Instant::now();
        let begun = early + LOOK_AGE * 2;
        let asked = Arc::clone(&look);
        let waiter = tokio::spawn(async move { asked.ask(HERE, begun, begun + LOOK_AGE * 10).await });
        look.poked(Instant::now()).await;
        assert!(look.take_wanted());
        look.show(early, Some(sight(early)));
        look.poked(Instant::now()).await;
        assert!(look.take_wanted(), "requested again");
        look.show(begun, Some(sight(begun)));
        assert_eq!(waiter.await.unwrap(), Some(sight(begun)));
        let never = look.ask(HERE, begun + LOOK_AGE * 2, Instant::now() + LOOK_AGE);
        assert_eq!(never.await, None, "the deadline is kept");
    }

    #[tokio::test(start_paused = true)]
    async fn a_check_that_is_requested_soon_runs_within_a_second() {
        let look = Look::default();
        let started = Instant::now();
        look.want_soon();
        look.poked(started).await;
        assert_eq!(Instant::now() - started, LOOK_SOON);
        assert!(look.take_wanted());
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_leads_to_another_server_is_doubted_for_a_while() {
        let look = Look::default();
        let start = Instant::now();
        look.show(start, Some(sight(start)));
        assert!(!look.is_doubted(start));
        let foreign = Sight {
            system_identifier: 666,
            ..sight(start)
        };
        look.show(start, Some(foreign));
        assert!(look.is_doubted(start));
        assert!(!look.is_doubted(start + DOUBT));
    }
}
