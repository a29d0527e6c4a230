//! A route that holds its clients, as an operator sees it.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::millis;
use crate::admin::words::lasting;
use crate::cluster::snapshot::OrderedBy;
use crate::session::held_routes::{HeldRoute, HoldCause};

/// Clients of a route wait, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldView {
    pub route: String,
    pub cluster: String,
    /// Those that wait now, in all processes of this router.
    pub clients: usize,
    /// `pause`, `switchover`, `before-stop`, `drain` or `no server`.
    pub kind: String,
    /// In words.
    pub cause: String,
    /// `null`: nobody ordered it, or it is not known.
    pub by: Option<OrderedBy>,
    /// Milliseconds since 1970.
    pub since_ms: u64,
    pub held_s: u64,
    /// When it is over at the latest: clients go on then, or get 57P03.
    pub until_ms: u64,
    pub left_s: u64,
    /// How it is ended.
    pub ended_by: String,
}

impl HoldView {
    /// `others`: clients of the route that wait in other processes of this router.
    pub fn new(held: &HeldRoute, others: usize) -> Self {
        let now = Instant::now();
        let clock = SystemTime::now();
        let until = match &held.cause {
            HoldCause::Stop(_, order) => order.ends.map_or(held.until, |ends| ends.min(held.until)),
            _ => held.until,
        };
        let (since, left) = (
            now.saturating_duration_since(held.since),
            until.saturating_duration_since(now),
        );
        Self {
            route: held.route.to_string(),
            cluster: held.cluster.to_string(),
            clients: held.clients + others,
            kind: held.cause.kind().to_owned(),
            cause: held.cause.to_string(),
            by: held.cause.by().cloned(),
            since_ms: millis(clock.checked_sub(since).unwrap_or(clock)),
            held_s: since.as_secs(),
            until_ms: millis(clock.checked_add(left).unwrap_or(clock)),
            // Not 0 s while it goes on.
            left_s: (left + Duration::from_millis(999)).as_secs(),
            ended_by: held.cause.ended_by(&held.route),
        }
    }

    /// The same without which operator has ordered it.
    #[must_use]
    pub(in crate::admin) fn without_operator(mut self) -> Self {
        self.by = self.by.take().and_then(OrderedBy::without_operator);
        self
    }

    /// `12 held for 3 s, switchover by router2, 19 s left`
    pub fn in_short(&self) -> String {
        let by = match &self.by {
            Some(OrderedBy { router, .. }) if !router.is_empty() => format!(" by {router}"),
            _ => String::new(),
        };
        format!(
            "{} held for {}, {}{by}, {} left",
            self.clients,
            lasting(self.held_s),
            self.kind,
            lasting(self.left_s)
        )
    }

    /// `route rw: 12 clients held for 3 s: db1 is about to be stopped (switchover), ordered by …`
    pub fn in_words(&self) -> String {
        let clients = match self.clients {
            0 => "no client is held now".to_owned(),
            1 => "1 client is held".to_owned(),
            count => format!("{count} clients are held"),
        };
        let by = self
            .by
            .as_ref()
            .map(|by| format!(", ordered by {by}"))
            .unwrap_or_default();
        format!(
            "route {}: {clients}, for {}: {}{by}; {} left at most; to end it: {}",
            self.route,
            lasting(self.held_s),
            self.cause,
            lasting(self.left_s),
            self.ended_by
        )
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::cluster::snapshot::{MemberName, StopOrder};

    #[tokio::test(start_paused = true)]
    async fn a_hold_says_since_when_how_long_and_by_whom() {
        let now = Instant::now();
        tokio::time::advance(Duration::from_secs(3)).await;
        let order = StopOrder {
            is_switchover: true,
            by: Some(OrderedBy::new("router2", "HTTP from 127.0.0.1:53462")),
            since: now,
            ends: Some(now + Duration::from_secs(22)),
        };
        let mut held = HeldRoute {
            route: "rw".into(),
            cluster: "main".into(),
            clients: 7,
            cause: HoldCause::Stop(MemberName::new("db1"), Arc::new(order)),
            since: now,
            until: now + Duration::from_secs(40),
        };
        let view = HoldView::new(&held, 5);
        assert_eq!(
            view.in_short(),
            "12 held for 3 s, switchover by router2, 19 s left"
        );
        let words = view.in_words();
        for part in [
            "route rw: 12 clients are held, for 3 s: db1 is about to be stopped (switchover)",
            "ordered by router2 (HTTP from 127.0.0.1:53462)",
            "`trunkline switchover --abort` at router2",
        ] {
            assert!(words.contains(part), "{words}");
        }
        assert_eq!(view.until_ms - view.since_ms, 22_000);
        let json = serde_json::to_value(&view).expect("it has no maps");
        assert_eq!(json["by"]["router"], "router2");
        held.cause = HoldCause::NoServer;
        let view = HoldView::new(&held, 0);
        assert_eq!(view.in_short(), "7 held for 3 s, no server, 37 s left");
        assert_eq!(view.by, None);
    }
}
