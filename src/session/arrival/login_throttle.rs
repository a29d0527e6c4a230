//! Makes guessing at passwords slow: attempts wait for their turn or are refused before any
//! exchange or look-up, and their results are counted.
//!
//! A login that waits holds no place among the pending logins, but one among the waiting ones. Its
//! deadline does not stop.

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

/// Log lines about waits and refusals that begin, per kind and interval.
const LINES: u32 = 5;
const INTERVAL: Duration = Duration::from_secs(30);

/// The login throttle, shared by all workers; locked for microseconds at a time.
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

    /// Sets another limit. What was counted stays.
    pub fn replace_limit(&self, limit: RateLimit) {
        self.throttle().replace_limit(limit);
    }

    /// How many addresses and users have failures that have not expired.
    pub(in crate::session) fn remembered(&self) -> (usize, usize) {
        self.throttle().sweep(Instant::now())
    }

    /// Logs how many lines about waits and refusals were left out, until `stop`.
    pub async fn summarise(&self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(INTERVAL) => {}
            }
            let summaries = self.begun().summaries(Instant::now());
            for (by, times) in summaries {
                let (by, begun) = match by {
                    Some((by, true)) => (label(by), "refusals"),
                    Some((by, false)) => (label(by), "waits"),
                    None => ("-", "waits and refusals"),
                };
                warn!(by, times, "more {begun} after failed logins began");
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

/// Waits for this attempt's turn. The login gives its place up meanwhile.
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
    // Before the turn is given: an attempt that may not wait must not delay the next ones.
    let place = shared.admission.waiting(client.ip());
    let latest = if place.is_ok() { deadline } else { now };
    let decision = shared.login_throttle.throttle().ask(&attempt, latest, now);
    let (until, by) = match decision {
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

/// Waits until this time, or until the client leaves. The client must not send anything before the
/// router asks.
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
    // Rounded up, so that an attempt after this time is not too early.
    let seconds = left.as_millis().div_ceil(1000);
    let reply = ErrorReply::fatal(SqlState::TOO_MANY_CONNECTIONS, text).hint(format!(
        "Try again in {seconds} s. The router's limit is auth.rate_limit."
    ));
    LoginError::RateLimited(by, reply)
}

/// The message and hint for a connection that finds no place among the pending logins.
pub fn too_many(full: Full) -> (&'static str, &'static str) {
    match full {
        Full::Total => (
            "too many connections are logging in",
            "Try again in a moment, or ask the operator to raise limits.max_pending_logins.",
        ),
        Full::Source => (
            "too many connections from this address are logging in",
            "Try again in a moment, or ask the operator to raise limits.max_pending_logins. One address may have half \
             of limits.max_pending_logins.",
        ),
    }
}

/// Records that the client has proven its identity.
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

/// Counts a failed login, if the client is the cause.
pub(in crate::session) fn failed(
    shared: &Shared,
    listener: &ListenerSettings,
    packet: &StartupPacket,
    client: ClientAddress,
    error: &LoginError,
) {
    match error.offence() {
        Some(Offence::Proof) => {
            let attempt = shared.login_throttle.attempt(listener, client, &packet.user);
            let began = shared
                .login_throttle
                .throttle()
                .failed(&attempt, error.guess(), Instant::now());
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

/// Counts a connection that violated the protocol.
pub(in crate::session) fn garbage(shared: &Shared, client: ClientAddress) {
    let began = shared
        .login_throttle
        .throttle()
        .garbage(client.ip(), Instant::now());
    if let Some(start) = began {
        log(&shared.login_throttle, By::Address, start, client, None);
    }
}

/// Logs that waits or refusals begin. `user` is the one of the last failed login; `None` after
/// bytes that are not the protocol.
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
    let (failures, for_s, consequence) = match start {
        ThrottleStart::Delay(failures) => (failures, None, "wait for their turn"),
        ThrottleStart::Refusal(failures) => (failures, Some(refuse_for), "are refused"),
    };
    match by {
        By::Address => warn!(
            %client, %user, failures, for_s, skipped,
            "too many failed logins: logins from this address {consequence}, except those of users that logged in from it lately"
        ),
        By::User => warn!(
            %user, last = %client, failures, for_s, skipped,
            "too many failed logins: logins as this user {consequence}, except those from addresses that it used lately"
        ),
        By::UserHere => warn!(
            %user, %client, failures, for_s, skipped,
            "too many failed logins: logins as this user from this address {consequence}"
        ),
    }
}
