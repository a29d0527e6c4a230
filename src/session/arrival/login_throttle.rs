//! The guard against guessing, at work: attempts wait for their slot or are refused before any exchange or look-up,
//! and what comes of them is counted.
//!
//! Who waits holds no place among the pending logins, but one among those that wait, and the login's deadline goes on.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::super::Shared;
use super::super::listener_settings::ListenerSettings;
use super::super::sample::{SampleDecision as Line, Sampler};
use super::admission::{Full, LoginPlace};
use crate::auth::login_throttle::{Attempt, By, LoginThrottle, ThrottleDecision, ThrottleStart};
use crate::config::RateLimit;
use crate::frontend::login::{LoginError, Offence};
use crate::frontend::{ClientAddress, ClientStream};
use crate::wire::message::ErrorReply;
use crate::wire::sqlstate::SqlState;
use crate::wire::startup::StartupPacket;
use crate::wire::text::Escaped;

/// Lines about waits and refusals that begin, per kind and interval.
const LINES: u32 = 5;
const INTERVAL: Duration = Duration::from_secs(30);

/// The guard, shared by all workers; locked for microseconds at a time.
#[derive(Debug)]
pub struct SharedThrottle {
    throttle: Mutex<LoginThrottle>,
    begun: Mutex<Sampler<(By, bool)>>,
}

impl SharedThrottle {
    pub fn new(limit: RateLimit) -> Self {
        Self {
            throttle: Mutex::new(LoginThrottle::new(limit)),
            begun: Mutex::new(Sampler::new(LINES, INTERVAL, 6)),
        }
    }

    /// From now on; what was counted stays.
    pub fn replace_limit(&self, limit: RateLimit) {
        self.throttle().replace_limit(limit);
    }

    /// Addresses and users with failures that time has not made good.
    pub(in crate::session) fn remembered(&self) -> (usize, usize) {
        self.throttle().sweep(Instant::now())
    }

    /// Tells of the refusals that were left out of the log, until `stop`.
    pub async fn summarise(&self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(INTERVAL) => {}
            }
            let summaries = self.begun().summaries(Instant::now());
            for (by, times) in summaries {
                let (what, begun) = match by {
                    Some((by, true)) => (label(by), "refusals"),
                    Some((by, false)) => (label(by), "waits"),
                    None => ("-", "waits and refusals"),
                };
                warn!(by = what, times, "more {begun} after failed logins began");
            }
        }
    }

    fn attempt(&self, listener: &ListenerSettings, client: ClientAddress, user: &[u8]) -> Attempt {
        let cluster = listener.cluster.config();
        self.throttle().attempt(client.ip(), &cluster.name, user)
    }

    fn throttle(&self) -> MutexGuard<'_, LoginThrottle> {
        self.throttle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begun(&self) -> MutexGuard<'_, Sampler<(By, bool)>> {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The label in metrics.
pub(in crate::session) fn label(by: By) -> &'static str {
    match by {
        By::Address => "address",
        By::User => "user",
        By::UserHere => "user_address",
    }
}

/// Waits for this attempt's turn. The place is given up meanwhile.
pub(in crate::session) async fn admit(
    shared: &Shared,
    listener: &ListenerSettings,
    stream: &mut ClientStream,
    packet: &StartupPacket,
    client: ClientAddress,
    login_place: &mut LoginPlace,
    deadline: Instant,
) -> Result<(), LoginError> {
    let attempt = shared.login_throttle.attempt(listener, client, &packet.user);
    let now = Instant::now();
    // Before the slot: one that may not wait must not move those behind it.
    let place = shared.admission.waiting(client.ip());
    let latest = if place.is_ok() { deadline } else { now };
    let verdict = shared.login_throttle.throttle().ask(&attempt, latest, now);
    let (until, by) = match verdict {
        ThrottleDecision::Go => return Ok(()),
        ThrottleDecision::Refuse { by, until } => return Err(refused(by, until - now)),
        ThrottleDecision::Wait { until, by } => (until, by),
    };
    shared.metrics.delay(by);
    let gauge = shared.metrics.waiting();
    *login_place = LoginPlace::GivenUp;
    wait(stream, until).await?;
    drop((place, gauge));
    let again = shared.admission.pending(client.ip()).map_err(|full| {
        let (text, hint) = too_many(full);
        LoginError::TooMany(ErrorReply::fatal(SqlState::TOO_MANY_CONNECTIONS, text).hint(hint))
    })?;
    *login_place = LoginPlace::Held(again);
    let now = Instant::now();
    let refusal = shared.login_throttle.throttle().refusal(&attempt, now);
    match refusal {
        Some(ThrottleDecision::Refuse { by, until }) => Err(refused(by, until - now)),
        _ => Ok(()),
    }
}

/// Until the moment, or until the client leaves. It has nothing to say before it is asked.
async fn wait(stream: &mut ClientStream, until: Instant) -> Result<(), LoginError> {
    let mut early = [0_u8; 1];
    tokio::select! {
        () = sleep_until(until) => Ok(()),
        read = stream.read(&mut early) => match read {
            Ok(1..) => Err(LoginError::Protocol("unexpected data before the authentication request".to_owned())),
            Ok(0) | Err(_) => Err(LoginError::HungUp),
        },
    }
}

fn refused(by: By, left: Duration) -> LoginError {
    let text = match by {
        By::Address => "too many failed logins from this address",
        By::User => "too many failed logins as this user",
        By::UserHere => "too many failed logins as this user from this address",
    };
    // Rounded up: at that time it is not too early.
    let seconds = left.as_millis().div_ceil(1000);
    let reply = ErrorReply::fatal(SqlState::TOO_MANY_CONNECTIONS, text).hint(format!(
        "Try again in {seconds} s. The bound is auth.rate_limit of the connection manager."
    ));
    LoginError::RateLimited(by, reply)
}

/// What a connection is told for which there is no place among the pending logins: text and hint.
pub fn too_many(full: Full) -> (&'static str, &'static str) {
    match full {
        Full::Total => (
            "too many connections are logging in",
            "Try again in a moment; the bound is limits.max_pending_logins of the connection manager.",
        ),
        Full::Source => (
            "too many connections from this address are logging in",
            "Try again in a moment; one address may have half of limits.max_pending_logins of the connection manager.",
        ),
    }
}

/// The client has proven who it is.
pub(in crate::session) fn succeeded(
    shared: &Shared,
    listener: &ListenerSettings,
    packet: &StartupPacket,
    client: ClientAddress,
) {
    let attempt = shared.login_throttle.attempt(listener, client, &packet.user);
    shared
        .login_throttle
        .throttle()
        .succeeded(&attempt, Instant::now());
}

/// Counts a login that failed, if that says anything of the client.
pub(in crate::session) fn failed(
    shared: &Shared,
    listener: &ListenerSettings,
    packet: &StartupPacket,
    client: ClientAddress,
    fault: &LoginError,
) {
    match fault.offence() {
        Some(Offence::Proof) => {
            let attempt = shared.login_throttle.attempt(listener, client, &packet.user);
            let began = shared
                .login_throttle
                .throttle()
                .failed(&attempt, fault.guess(), Instant::now());
            for (by, start) in [
                (By::Address, began.address),
                (By::User, began.user),
                (By::UserHere, began.user_here),
            ] {
                if let Some(start) = start {
                    log(&shared.login_throttle, by, start, client, Some(&packet.user));
                }
            }
        }
        Some(Offence::Garbage) => garbage(shared, client),
        None => {}
    }
}

/// Counts a connection that did not keep to the protocol.
pub(in crate::session) fn garbage(shared: &Shared, client: ClientAddress) {
    let began = shared
        .login_throttle
        .throttle()
        .garbage(client.ip(), Instant::now());
    if let Some(start) = began {
        log(&shared.login_throttle, By::Address, start, client, None);
    }
}

/// `user` is the last that failed; `None` after something that was not the protocol.
fn log(
    login_throttle: &SharedThrottle,
    by: By,
    start: ThrottleStart,
    client: ClientAddress,
    user: Option<&[u8]>,
) {
    let line = login_throttle
        .begun()
        .observe((by, start.is_refusal()), Instant::now());
    let Line::Log { suppressed: skipped } = line else {
        return;
    };
    let user = Escaped(user.unwrap_or(b"-"));
    let refuse_for = login_throttle.throttle().limit().refuse_for.as_secs();
    let (failures, for_s, what) = match start {
        ThrottleStart::Delay(failures) => (failures, None, "wait for their turn"),
        ThrottleStart::Refusal(failures) => (failures, Some(refuse_for), "are refused"),
    };
    match by {
        By::Address => warn!(
            %client, %user, failures, for_s, skipped,
            "too many failed logins: logins from this address {what}, but for users that it has let in lately"
        ),
        By::User => warn!(
            %user, last = %client, failures, for_s, skipped,
            "too many failed logins: logins as this user {what}, but for addresses it has used lately"
        ),
        By::UserHere => warn!(
            %user, %client, failures, for_s, skipped,
            "too many failed logins: logins as this user from this address {what}"
        ),
    }
}
