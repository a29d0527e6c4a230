//! One order to hold clients, while it is renewed.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout_at};
use tracing::{info, warn};

use crate::session::Shared;
use crate::session::holds::{HoldAnswer, HoldOrder, HoldRefusal, HoldRequest, MAX_HOLD, MemberActivity};
use crate::session::peers::PeerOrders;

/// Between two renewals of an order.
pub(super) const RENEWAL: Duration = Duration::from_secs(1);
/// For how long an order counts if it is not renewed: longer than a renewal may take.
const LEASE: Duration = Duration::from_secs(4);
/// The same until Patroni is asked for a switchover. Nothing has happened then, so that an order
/// that ends too early does no harm: a router that dies meanwhile should hold nobody.
const REVOCABLE_LEASE: Duration = Duration::from_millis(1500);
/// Between the end of an order and the end of the clients' patience.
const MARGIN: Duration = Duration::from_secs(3);
/// Between two looks at the transactions that are open.
pub(super) const LOOK: Duration = Duration::from_millis(50);

/// One order, which is renewed until its purpose is fulfilled, or [`MAX_HOLD`] is over.
pub(super) struct RunningHold {
    pub(super) shared: Arc<Shared>,
    pub(super) peers: Option<PeerOrders>,
    pub(super) order: HoldOrder,
    pub(super) until: Instant,
    pub(super) longest: Duration,
    /// What the order is for cannot be undone, or has begun.
    pub(super) is_final: bool,
}

/// What everybody answers to an order.
#[derive(Debug, Default)]
pub(super) struct Round {
    /// This router's own processes. `Err`: the order is not possible here.
    pub(super) own: Option<Result<MemberActivity, HoldRefusal>>,
    pub(super) peers: Vec<(String, Result<MemberActivity, String>)>,
    /// A sentence for each other process of this router that does not follow.
    pub(super) missing: Vec<String>,
}

impl Round {
    /// Asks this router's processes and these peers at the same time.
    pub(super) async fn of(shared: &Shared, peers: Option<&mut PeerOrders>, request: &HoldRequest) -> Self {
        let peers = async {
            match peers {
                Some(peers) => peers.ask(request).await,
                None => Vec::new(),
            }
        };
        let ((own, missing), peers) = tokio::join!(shared.carry_out(request), peers);
        let answered = |(peer, answer): (String, Result<HoldAnswer, String>)| {
            let answer = match answer {
                Ok(HoldAnswer::Done(activity)) => Ok(activity),
                Ok(HoldAnswer::Refused(refusal)) => Err(refusal.to_string()),
                Ok(HoldAnswer::Examined(_)) => Err("its answer makes no sense".to_owned()),
                Err(error) => Err(error),
            };
            (peer, answer)
        };
        Self {
            own: Some(match own {
                HoldAnswer::Done(activity) => Ok(activity),
                HoldAnswer::Refused(refusal) => Err(refusal),
                HoldAnswer::Examined(_) => Err(HoldRefusal::Unsupported),
            }),
            peers: peers.into_iter().map(answered).collect(),
            missing,
        }
    }

    pub(super) fn answers(&self) -> impl Iterator<Item = &MemberActivity> {
        let own = self.own.iter().flatten();
        own.chain(self.peers.iter().filter_map(|(_, answer)| answer.as_ref().ok()))
    }

    /// On all routers that answer.
    pub(super) fn activity(&self) -> MemberActivity {
        self.answers()
            .copied()
            .reduce(MemberActivity::and)
            .unwrap_or_default()
    }

    /// Every router that answers holds clients, or has another leader already.
    pub(super) fn is_held(&self) -> bool {
        self.answers()
            .all(|answer| answer.is_leaving || answer.is_replaced)
    }

    /// No router that answers holds clients any more.
    fn is_over(&self) -> bool {
        !self.answers().any(|answer| answer.is_leaving)
    }

    /// A sentence for each process and each peer that does not follow.
    pub(super) fn missing(&self) -> Vec<String> {
        let refused = self.peers.iter().filter_map(|(peer, answer)| {
            let error = answer.as_ref().err()?;
            Some(format!("peer {peer}: {error}"))
        });
        self.missing.iter().cloned().chain(refused).collect()
    }
}

impl RunningHold {
    /// Its time begins now.
    pub(super) fn begin(&mut self) {
        self.until = Instant::now() + self.longest;
    }

    pub(super) fn until(&self) -> Instant {
        self.until
    }

    /// How long an order lasts: less than clients are held where the configuration says nothing
    /// else (`patience` of the cluster), so that they go on and get no error.
    pub(super) fn longest(patience: Option<Duration>) -> Duration {
        patience.map_or(MAX_HOLD, |patience| patience.saturating_sub(MARGIN).min(MAX_HOLD))
    }

    /// Gives the order, or renews it. The answers of this router and its peers come at the same
    /// time.
    pub(super) async fn renew(&mut self) -> Round {
        let whole = self.until.saturating_duration_since(Instant::now());
        self.order.ends_ms = Some(u32::try_from(whole.as_millis()).unwrap_or(u32::MAX));
        let lease = if self.is_final { LEASE } else { REVOCABLE_LEASE };
        let left = whole.min(lease);
        self.order.lasts_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX);
        self.ask(&HoldRequest::Hold(self.order.clone())).await
    }

    /// As [`Self::renew`], when what the order is for is about to begin.
    pub(super) async fn make_final(&mut self) -> Round {
        self.is_final = true;
        self.renew().await
    }

    /// Asks what the order would be about, and gives none.
    pub(super) async fn look(&mut self) -> Round {
        self.order.lasts_ms = 0;
        self.ask(&HoldRequest::Hold(self.order.clone())).await
    }

    /// Ends the order everywhere.
    pub(super) async fn release(mut self) -> Round {
        let request = HoldRequest::Release {
            cluster: self.order.cluster,
            token: self.order.token,
        };
        self.ask(&request).await
    }

    async fn ask(&mut self, request: &HoldRequest) -> Round {
        Round::of(&self.shared, self.peers.as_mut(), request).await
    }

    /// Gives the order, and waits until no transaction is open, or `deadline`. The answers of the
    /// last round.
    ///
    /// # Errors
    /// It is not possible at this router.
    pub(super) async fn wait(&mut self, deadline: Instant) -> Result<Round, HoldRefusal> {
        let mut last = Round::default();
        let mut quiet_rounds = 0;
        loop {
            let next = Instant::now() + LOOK;
            if let Ok(round) = timeout_at(deadline, self.renew()).await {
                if let Some(Err(refusal)) = &round.own {
                    return Err(*refusal);
                }
                // One that was let through just before the order may begin after the first look.
                quiet_rounds = if round.is_held() && round.activity().transactions == 0 {
                    quiet_rounds + 1
                } else {
                    0
                };
                last = round;
            }
            if quiet_rounds >= 2 || Instant::now() >= deadline {
                return Ok(last);
            }
            sleep_until(next.min(deadline)).await;
        }
    }

    /// Renews the order until nobody holds clients because of it, or its time is over.
    pub(super) async fn keep(mut self) {
        let member = self.order.member.clone();
        loop {
            let next = Instant::now() + RENEWAL;
            if next >= self.until {
                warn!(%member, "the member was not stopped, or nothing replaced it, within {} s: its clients go on", self.longest.as_secs());
                return;
            }
            if self.renew().await.is_over() {
                info!(%member, "the clients of the member go on");
                return;
            }
            sleep_until(next).await;
        }
    }
}
