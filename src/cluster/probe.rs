//! Probes: one task per member asks it for its role, timeline, identity and position.
//!
//! A standing connection is used, and every tenth time, after half a minute, after each failure, where a session's login
//! failed, and when a session wants to know where the address leads now ([`super::sight`]), a fresh one: a server that
//! refuses logins is not fit, and a host name may lead elsewhere by now. A standing connection that breaks is no failure yet, one that cannot be replaced is.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::check::CheckStatus;
use super::service_account::{Purpose, ServiceAccount};
use super::sight::{Look, Sight};
use super::snapshot::{MemberName, ProbeFacts};
use super::state::{FailureKind, Observation, Pace, ProbeError};
use crate::backend::query::{Row, simple_query};
use crate::backend::{ConnectError, ServerConnection, Step};
use crate::wire::sqlstate::SqlState;

/// Probes on one connection before a fresh one is tried.
const FRESH_EVERY: u32 = 10;
/// And its age: a name may lead elsewhere by now.
const FRESH_AFTER: Duration = Duration::from_secs(30);
/// A new connection that somebody asks for comes no sooner after the one before: clients can make logins fail.
const ANEW_AFTER: Duration = Duration::from_secs(1);

/// One row: in recovery, system identifier, timeline, position, position received, WAL receiver streams,
/// version. Works on primaries and
/// standbys of PostgreSQL 14 and later; without `pg_monitor` a standby's timeline is that of its last checkpoint and
/// streaming is not seen.
pub const PROBE_SQL: &str = "\
SELECT r.recovery::text, s.system_identifier::text, \
CASE WHEN r.recovery THEN coalesce(w.received_tli, c.timeline_id) \
ELSE ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int END::text, \
(CASE WHEN r.recovery THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END - '0/0'::pg_lsn)::text, \
(CASE WHEN r.recovery THEN pg_last_wal_receive_lsn() END - '0/0'::pg_lsn)::text, \
coalesce(w.status = 'streaming', false)::text, \
current_setting('server_version_num') \
FROM (SELECT pg_is_in_recovery() AS recovery OFFSET 0) r \
CROSS JOIN pg_control_system() s CROSS JOIN pg_control_checkpoint() c \
LEFT JOIN pg_stat_wal_receiver w ON true";

/// What a prober needs; one per member and address.
pub(super) struct Prober {
    pub(super) member: MemberName,
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) account: Arc<ServiceAccount>,
    pub(super) pace: watch::Receiver<Pace>,
    /// Probe now; not sooner after the last probe than `fast_interval`.
    pub(super) poke: Arc<Poke>,
    /// Looks over a fresh connection, for those who ask for one.
    pub(super) look: Arc<Look>,
    pub(super) fast_interval: Duration,
    pub(super) observations: mpsc::Sender<Observation>,
    pub(super) stop: CancellationToken,
}

/// Asks a prober to look now.
#[derive(Debug, Default)]
pub(super) struct Poke {
    now: Notify,
    /// With a new connection.
    anew: AtomicBool,
}

impl Poke {
    pub(super) fn look(&self, anew: bool) {
        if anew {
            self.anew.store(true, Ordering::Relaxed);
        }
        self.now.notify_one();
    }

    /// Whether it was asked for a new connection, which is being made now.
    fn take_anew(&self) -> bool {
        self.anew.swap(false, Ordering::Relaxed)
    }
}

/// The standing connection, how often it has been used, and since when.
struct Standing {
    connection: Option<ServerConnection>,
    begun: Instant,
    used: u32,
    /// It was begun, or could not be replaced, then.
    since: Instant,
}

impl Prober {
    pub(super) async fn run(mut self) {
        let stop = self.stop.clone();
        let mut standing = Standing {
            connection: None,
            begun: Instant::now(),
            used: 0,
            since: Instant::now(),
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.probe_on(&mut standing) => {}
        }
        if let Some(connection) = standing.connection {
            connection.close().await;
        }
    }

    async fn probe_on(&mut self, standing: &mut Standing) {
        loop {
            let started = Instant::now();
            let result = self.probe(standing).await;
            let result = result.map_err(|error| failure(&error));
            let observation = Observation::Probe {
                member: self.member.clone(),
                started,
                result,
            };
            if self.observations.send(observation).await.is_err() {
                return;
            }
            let member = &self.member;
            let next = wait(
                &mut self.pace,
                &self.poke.now,
                started,
                self.fast_interval,
                |pace| pace.of(member),
            );
            tokio::select! {
                () = next => {}
                // Sessions wait for it; they share one, so that this does not come more often than looks grow old.
                () = self.look.poked(started) => {}
            }
        }
    }

    async fn probe(&self, standing: &mut Standing) -> Result<ProbeFacts, ConnectError> {
        let timeout = self.account.config.probe.timeout;
        // One that is about to accept writes is asked as often as it can answer.
        let chased = self.pace.borrow().chased.as_ref() == Some(&self.member);
        standing.used += u32::from(!chased);
        let age = standing.since.elapsed();
        let is_due = standing.used >= FRESH_EVERY || age >= FRESH_AFTER;
        let wanted = self.look.take_wanted();
        let refresh = wanted || !chased && (is_due || age >= ANEW_AFTER && self.poke.take_anew());
        if let (false, Some(connection)) = (refresh, &mut standing.connection) {
            match ask(connection, Instant::now() + timeout).await {
                Ok(facts) => {
                    let connected = Some(standing.begun);
                    return Ok(ProbeFacts { connected, ..facts });
                }
                // Silence is a failure; a broken connection may have been only this one.
                Err(error @ ConnectError::Timeout { .. }) => {
                    standing.connection = None;
                    return Err(error);
                }
                Err(error) => {
                    tracing::debug!(member = %self.member, %error, "the standing probe connection is gone");
                    standing.connection = None;
                }
            }
        }
        let began = Instant::now();
        let deadline = began + timeout;
        let fresh = match self
            .account
            .connect(&self.host, self.port, Purpose::Probe, deadline)
            .await
        {
            Ok(mut fresh) => ask(&mut fresh, deadline).await.map(|facts| (fresh, facts)),
            Err(error) => Err(error),
        };
        let fresh = fresh.map(|(connection, facts)| {
            let connected = Some(began);
            (connection, ProbeFacts { connected, ..facts })
        });
        let seen = fresh.as_ref().ok().and_then(|(_, facts)| Sight::of(facts));
        self.look.show(began, seen);
        match fresh {
            Ok((connection, facts)) => {
                let old = std::mem::replace(
                    standing,
                    Standing {
                        connection: Some(connection),
                        begun: began,
                        used: 0,
                        since: began,
                    },
                );
                if let Some(old) = old.connection {
                    old.close().await;
                }
                Ok(facts)
            }
            // A full server, a password changed: says nothing against the member while the old one works.
            Err(error) if !error.counts_against_member() => {
                let Some(connection) = &mut standing.connection else {
                    return Err(error);
                };
                standing.used = 0;
                standing.since = Instant::now();
                let answer = ask(connection, Instant::now() + timeout).await;
                if answer.is_err() {
                    standing.connection = None;
                }
                let connected = Some(standing.begun);
                answer.map(|facts| ProbeFacts { connected, ..facts })
            }
            Err(error) => {
                standing.connection = None;
                Err(error)
            }
        }
    }
}

/// Waits for the next turn: an interval after `started`, or a poke; the interval may change meanwhile.
pub(super) async fn wait(
    pace: &mut watch::Receiver<Pace>,
    poke: &Notify,
    started: Instant,
    shortest: Duration,
    interval: impl Fn(&Pace) -> Duration,
) {
    let share = jitter();
    loop {
        let length = interval(&pace.borrow_and_update()).mul_f64(share);
        tokio::select! {
            () = sleep_until(started + length) => return,
            () = poke.notified() => {
                sleep_until(started + shortest.min(length)).await;
                return;
            }
            changed = pace.changed() => {
                if changed.is_err() {
                    sleep_until(started + length).await;
                    return;
                }
            }
        }
    }
}

/// 0.9 to 1.1, so that many routers do not ask at the same moment.
pub(super) fn jitter() -> f64 {
    let mut byte = [0_u8];
    // Without randomness there is merely no jitter.
    let _ = aws_lc_rs::rand::fill(&mut byte);
    0.9 + f64::from(byte[0]) / 255.0 * 0.2
}

fn failure(error: &ConnectError) -> ProbeError {
    let kind = match error {
        ConnectError::Refused { .. } => FailureKind::Certain,
        ConnectError::Server(error) => match error.code {
            SqlState::ADMIN_SHUTDOWN | SqlState::CRASH_SHUTDOWN | SqlState::CANNOT_CONNECT_NOW => {
                FailureKind::Certain
            }
            SqlState::TOO_MANY_CONNECTIONS => FailureKind::Full,
            _ => FailureKind::Counts,
        },
        ConnectError::LocalResources { .. } | ConnectError::Timeout { step: Step::Resolve } => {
            FailureKind::NotTried
        }
        _ => FailureKind::Counts,
    };
    ProbeError {
        check: CheckStatus::of(error),
        message: super::patroni::printable(&error.to_string(), 400),
        kind,
    }
}

pub(super) async fn ask(
    connection: &mut ServerConnection,
    deadline: Instant,
) -> Result<ProbeFacts, ConnectError> {
    let started = Instant::now();
    let rows = simple_query(connection, PROBE_SQL, 1, deadline).await?;
    let address = Some(connection.address.ip());
    rows.first()
        .and_then(facts)
        .map(|facts| ProbeFacts {
            latency: started.elapsed(),
            address,
            ..facts
        })
        .ok_or_else(|| ConnectError::Protocol {
            step: Step::Query,
            what: "the probe's answer makes no sense".to_owned(),
        })
}

/// Reads the probe's row.
fn facts(row: &Row) -> Option<ProbeFacts> {
    let [
        recovery,
        identifier,
        timeline,
        position,
        received,
        streaming,
        version,
    ] = row.as_slice()
    else {
        return None;
    };
    let text = |value: &Option<Vec<u8>>| {
        value
            .as_deref()
            .and_then(|bytes| String::from_utf8(bytes.to_vec()).ok())
    };
    Some(ProbeFacts {
        in_recovery: text(recovery)?.parse().ok()?,
        // A bigint: above 2^63 it is shown as negative.
        system_identifier: text(identifier)?.parse::<i64>().ok()?.cast_unsigned(),
        timeline: text(timeline)?.parse::<i32>().ok()?.cast_unsigned(),
        position: text(position).and_then(|text| text.parse().ok()).unwrap_or(0),
        received: text(received).and_then(|text| text.parse().ok()).unwrap_or(0),
        streaming: text(streaming)?.parse().ok()?,
        server_version: text(version)?.parse().ok()?,
        latency: Duration::ZERO,
        address: None,
        connected: None,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn row(values: [Option<&str>; 7]) -> Row {
        values
            .map(|value| value.map(|text| text.as_bytes().to_vec()))
            .to_vec()
    }

    #[test]
    fn reads_the_probes_row() {
        let seen = facts(&row([
            Some("true"),
            Some("-2"),
            Some("7"),
            Some("123"),
            Some("456"),
            Some("true"),
            Some("150020"),
        ]))
        .unwrap();
        assert!(seen.in_recovery && seen.streaming);
        assert_eq!(
            (
                seen.system_identifier,
                seen.timeline,
                seen.position,
                seen.received
            ),
            (u64::MAX - 1, 7, 123, 456)
        );
        let replayed_nothing = facts(&row([
            Some("true"),
            Some("1"),
            Some("7"),
            None,
            None,
            Some("false"),
            Some("180000"),
        ]))
        .unwrap();
        assert_eq!(replayed_nothing.position, 0);
        assert!(
            facts(&row([
                None,
                Some("1"),
                Some("7"),
                None,
                None,
                Some("false"),
                Some("180000")
            ]))
            .is_none()
        );
        assert!(
            facts(&row([
                Some("true"),
                Some("x"),
                Some("7"),
                None,
                None,
                Some("false"),
                Some("1")
            ]))
            .is_none()
        );
        assert!(facts(&vec![]).is_none());
    }
}
