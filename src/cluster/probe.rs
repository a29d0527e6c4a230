//! Probes: one task for each member queries its role, timeline, identity and position.
//!
//! A prober keeps one connection. It makes a new one every tenth time, after half a minute, after
//! each failure, after a session's login failed, and when a session needs to know which server the
//! address leads to now ([`super::server_identity`]): a server that refuses logins is not fit, and
//! a host name may lead to another server by now. A kept connection that breaks is no failure yet;
//! one that cannot be replaced is.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::check::CheckStatus;
use super::server_identity::{AddressCheck, ServerIdentity};
use super::service_account::{Purpose, ServiceAccount};
use super::snapshot::{MemberName, ProbeFacts};
use super::state::{FailureKind, Observation, Pace, ProbeError};
use crate::backend::query::{Row, simple_query};
use crate::backend::{ConnectError, ServerConnection, Step};
use crate::wire::sqlstate::SqlState;

/// Probes on one connection before a new one is made.
const FRESH_EVERY: u32 = 10;
/// Age of a connection before a new one is made: a name may lead to another server by now.
const FRESH_AFTER: Duration = Duration::from_secs(30);
/// Minimum interval between new connections on request: clients can cause failed logins.
const REQUESTED_FRESH_AFTER: Duration = Duration::from_secs(1);

/// One row: in recovery, system identifier, timeline, position, received position, WAL receiver is
/// streaming, version. It works on primaries and standbys of PostgreSQL 14 and later. Without
/// `pg_monitor` a standby's timeline is that of its last checkpoint, and streaming is not visible.
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

/// A prober. There is one for each member and address.
pub(super) struct Prober {
    pub(super) member: MemberName,
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) account: Arc<ServiceAccount>,
    pub(super) pace: watch::Receiver<Pace>,
    /// Requests a probe now, but not earlier than `fast_interval` after the last one.
    pub(super) trigger: Arc<ProbeTrigger>,
    /// Checks of the address over a new connection, for sessions that request one.
    pub(super) check: Arc<AddressCheck>,
    pub(super) fast_interval: Duration,
    pub(super) observations: mpsc::Sender<Observation>,
    pub(super) stop: CancellationToken,
}

/// Requests a probe now.
#[derive(Debug, Default)]
pub(super) struct ProbeTrigger {
    now: Notify,
    /// The request needs a new connection.
    fresh: AtomicBool,
}

impl ProbeTrigger {
    pub(super) fn request(&self, fresh: bool) {
        if fresh {
            self.fresh.store(true, Ordering::Relaxed);
        }
        self.now.notify_one();
    }

    /// Whether a new connection was requested. Resets the request.
    fn take_fresh(&self) -> bool {
        self.fresh.swap(false, Ordering::Relaxed)
    }
}

/// The kept connection.
struct KeptConnection {
    connection: Option<ServerConnection>,
    begun: Instant,
    used: u32,
    /// When the connection began, or could last not be replaced.
    since: Instant,
}

impl Prober {
    pub(super) async fn run(mut self) {
        let stop = self.stop.clone();
        let mut kept = KeptConnection {
            connection: None,
            begun: Instant::now(),
            used: 0,
            since: Instant::now(),
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.probe_on(&mut kept) => {}
        }
        if let Some(connection) = kept.connection {
            connection.close().await;
        }
    }

    async fn probe_on(&mut self, kept: &mut KeptConnection) {
        loop {
            let started = Instant::now();
            let result = self.probe(kept).await;
            let result = result.map_err(|error| failure(&error, self.account.config.probe.timeout));
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
                &self.trigger.now,
                started,
                self.fast_interval,
                |pace| pace.of(member),
            );
            tokio::select! {
                () = next => {}
                // Sessions wait for this check. They share one, so that the rate is limited by the
                // maximum age of a check.
                () = self.check.due(started) => {}
            }
        }
    }

    async fn probe(&self, kept: &mut KeptConnection) -> Result<ProbeFacts, ConnectError> {
        let timeout = self.account.config.probe.timeout;
        // A member that is about to accept writes is probed as often as it can answer.
        let chased = self.pace.borrow().chased.as_ref() == Some(&self.member);
        kept.used += u32::from(!chased);
        let age = kept.since.elapsed();
        let is_due = kept.used >= FRESH_EVERY || age >= FRESH_AFTER;
        let wanted = self.check.take_request();
        let refresh =
            wanted || !chased && (is_due || age >= REQUESTED_FRESH_AFTER && self.trigger.take_fresh());
        if let (false, Some(connection)) = (refresh, &mut kept.connection) {
            match ask(connection, Instant::now() + timeout).await {
                Ok(facts) => {
                    let connected = Some(kept.begun);
                    return Ok(ProbeFacts { connected, ..facts });
                }
                // A timeout is a failure. A broken connection may concern only this connection.
                Err(error @ ConnectError::Timeout { .. }) => {
                    kept.connection = None;
                    return Err(error);
                }
                Err(error) => {
                    tracing::debug!(member = %self.member, %error, "the kept probe connection is lost");
                    kept.connection = None;
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
        let seen = fresh
            .as_ref()
            .ok()
            .and_then(|(_, facts)| ServerIdentity::of(facts));
        self.check.publish(began, seen);
        match fresh {
            Ok((connection, facts)) => {
                let old = std::mem::replace(
                    kept,
                    KeptConnection {
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
            // A full server or a changed password does not count against the member while the old
            // connection works.
            Err(error) if !error.counts_against_member() => {
                let Some(connection) = &mut kept.connection else {
                    return Err(error);
                };
                kept.used = 0;
                kept.since = Instant::now();
                let answer = ask(connection, Instant::now() + timeout).await;
                if answer.is_err() {
                    kept.connection = None;
                }
                let connected = Some(kept.begun);
                answer.map(|facts| ProbeFacts { connected, ..facts })
            }
            Err(error) => {
                kept.connection = None;
                Err(error)
            }
        }
    }
}

/// Waits for the next probe: an interval after `started`, or a request. The interval may change
/// meanwhile.
pub(super) async fn wait(
    pace: &mut watch::Receiver<Pace>,
    trigger: &Notify,
    started: Instant,
    shortest: Duration,
    interval: impl Fn(&Pace) -> Duration,
) {
    let share = jitter();
    loop {
        let length = interval(&pace.borrow_and_update()).mul_f64(share);
        tokio::select! {
            () = sleep_until(started + length) => return,
            () = trigger.notified() => {
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

/// 0.9 to 1.1, so that many routers do not probe at the same moment.
pub(super) fn jitter() -> f64 {
    let mut byte = [0_u8];
    // Without randomness there is only no jitter.
    let _ = aws_lc_rs::rand::fill(&mut byte);
    0.9 + f64::from(byte[0]) / 255.0 * 0.2
}

fn failure(error: &ConnectError, limit: Duration) -> ProbeError {
    let kind = match error {
        ConnectError::Refused { .. } => FailureKind::Certain,
        ConnectError::Server(error) => match error.code {
            // Not 57P01: whoever may signal the probe's process causes that, too. A server that
            // stops says 57P03 to the next one.
            SqlState::CRASH_SHUTDOWN | SqlState::CANNOT_CONNECT_NOW => FailureKind::Certain,
            SqlState::TOO_MANY_CONNECTIONS => FailureKind::Full,
            _ => FailureKind::Counts,
        },
        ConnectError::LocalResources { .. } | ConnectError::Timeout { step: Step::Resolve } => {
            FailureKind::NotTried
        }
        _ => FailureKind::Counts,
    };
    let message = match error {
        ConnectError::Timeout { step } if CheckStatus::of(error).is_connected() => format!(
            "it accepts connections, but did not answer within {} ({step})",
            shown(limit)
        ),
        ConnectError::Timeout {
            step: Step::Connect, ..
        } => format!("no connection was established within {}", shown(limit)),
        error => error.to_string(),
    };
    ProbeError {
        check: CheckStatus::of(error),
        message: super::patroni::printable(&message, 400),
        kind,
    }
}

fn shown(limit: Duration) -> String {
    if limit.subsec_nanos() == 0 {
        format!("{} s", limit.as_secs())
    } else {
        format!("{} ms", limit.as_millis())
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
            what: "the answer to the probe is invalid".to_owned(),
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
        // A bigint: a value of 2^63 or more is shown as negative.
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

    /// Whatever a client does, a member gets at most one more probe for each fast interval.
    #[tokio::test(start_paused = true)]
    async fn requests_without_end_cause_ten_probes_a_second() {
        let second = Duration::from_secs(1);
        let (_pace, mut paces) = watch::channel(Pace {
            poll: second,
            probe: second,
            chase: second,
            chased: None,
        });
        let trigger = ProbeTrigger::default();
        let (begun, mut probes) = (Instant::now(), 0);
        while begun.elapsed() < second * 10 {
            let started = Instant::now();
            for _ in 0..1000 {
                trigger.request(true);
            }
            let fast = Duration::from_millis(100);
            wait(&mut paces, &trigger.now, started, fast, |pace| pace.probe).await;
            probes += 1;
        }
        assert!((95..=100).contains(&probes), "{probes}");
    }

    #[test]
    fn a_frozen_server_is_said_to_accept_connections() {
        let message = |step, millis| {
            let limit = Duration::from_millis(millis);
            failure(&ConnectError::Timeout { step }, limit).message
        };
        assert_eq!(
            message(Step::TlsRequest, 1000),
            "it accepts connections, but did not answer within 1 s (the TLS request)"
        );
        assert_eq!(
            message(Step::Connect, 1500),
            "no connection was established within 1500 ms"
        );
        assert_eq!(
            message(Step::Resolve, 1000),
            "time ran out during name resolution"
        );
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
