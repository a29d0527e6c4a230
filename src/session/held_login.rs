//! A client that logs in on a route without a pool, and is held at the gate.

use std::future::poll_fn;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::attach::{AttachError, NoServer};
use super::candidates::NoPass;
use super::gate::{Group, ReleasePass};
use super::listener_settings::ListenerSettings;

/// How long a server that fails is tried again while the gate is open: by then the router's own
/// probes have seen whether it serves.
pub(super) const TRY_AGAIN_FOR: Duration = Duration::from_secs(10);
/// Doubled from one try to the next, up to the second.
const TRY_AGAIN_AFTER: [Duration; 2] = [Duration::from_millis(50), Duration::from_millis(500)];

/// How long to wait before the next try.
pub(super) fn try_again_after(tries: &mut u32) -> Duration {
    let [first, most] = TRY_AGAIN_AFTER;
    let after = first.saturating_mul(1 << (*tries).min(8));
    *tries += 1;
    after.min(most)
}

/// See the module.
pub(super) struct HeldLogin<'a> {
    listener: &'a ListenerSettings,
    /// Cancelled when the router shuts down.
    closing: &'a CancellationToken,
    /// When the client asked for a server, or was let go.
    begun: Instant,
    has_failed: bool,
    tries: u32,
}

impl<'a> HeldLogin<'a> {
    pub(super) fn new(listener: &'a ListenerSettings, closing: &'a CancellationToken) -> Self {
        Self {
            listener,
            closing,
            begun: Instant::now(),
            has_failed: false,
            tries: 0,
        }
    }

    /// Waits while the gate is shut. The client counts among those that were let go until what this
    /// returns is dropped.
    ///
    /// # Errors
    /// The time limit of the hold is over, the client has left, or the router shuts down.
    pub(super) async fn wait(
        &mut self,
        hung_up: impl Future<Output = ()>,
    ) -> Result<Option<ReleasePass>, NoServer> {
        if std::mem::take(&mut self.has_failed) {
            sleep(try_again_after(&mut self.tries)).await;
        }
        let ListenerSettings { gate, route, .. } = self.listener;
        let is_held = route.hold.logins || gate.is_paused();
        if !is_held || !gate.must_wait(Group::UNPOOLED) {
            return Ok(None);
        }
        let refused = |error| NoServer::Attach(AttachError::NoCandidate(error));
        let mut place = gate.hold(Group::UNPOOLED, 0).map_err(refused)?;
        tokio::select! {
            biased;
            passed = poll_fn(|cx| place.poll(cx)) => {
                (self.begun, self.tries) = (Instant::now(), 0);
                passed.map(Some).map_err(|error| refused(*error))
            }
            () = hung_up => Err(NoPass::HungUp.into()),
            () = self.closing.cancelled() => Err(NoPass::Closing.into()),
        }
    }

    /// Whether the client waits, and asks again, after this error: it may be that of a failover.
    /// Nothing but the login has reached a server.
    pub(super) fn tries_again(&mut self, error: &AttachError) -> bool {
        let ListenerSettings {
            gate, route, cluster, ..
        } = self.listener;
        gate.refresh(|| cluster.snapshot());
        let is_held = route.hold.logins && route.hold.timeout != Some(Duration::ZERO);
        self.has_failed = is_held
            && error.may_pass()
            && (gate.is_shut()
                || !matches!(error, AttachError::NoCandidate(_)) && self.begun.elapsed() < TRY_AGAIN_FOR);
        self.has_failed
    }
}
