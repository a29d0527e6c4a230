//! What happened between two looks, by the sessions' counters.

use std::collections::HashMap;

use super::asking::Look;

/// Per second.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Rate {
    pub(super) transactions: f64,
    pub(super) bytes: f64,
}

/// Of sessions by their id, and of routes by their name. Sessions that ended meanwhile are not in
/// it.
#[derive(Debug, Default)]
pub(super) struct Rates {
    sessions: HashMap<u64, Rate>,
    routes: HashMap<String, Rate>,
}

impl Rates {
    #[expect(clippy::cast_precision_loss, reason = "rates for a person")]
    pub(super) fn between(before: &Look, after: &Look) -> Self {
        let seconds = after.at.saturating_duration_since(before.at).as_secs_f64();
        if seconds <= 0.0 {
            return Self::default();
        }
        let former: HashMap<u64, _> = before
            .sessions
            .iter()
            .map(|session| {
                (
                    session.id,
                    (session.transactions, session.bytes_up + session.bytes_down),
                )
            })
            .collect();
        let mut rates = Self::default();
        for session in &after.sessions {
            let known = former.get(&session.id).copied();
            // One that is older than the look before, and was not in it, has counters from earlier.
            let is_new = known.is_none() && (session.age_s as f64) <= seconds + 1.0;
            let Some((transactions, bytes)) = known.or(is_new.then_some((0, 0))) else {
                continue;
            };
            let bytes_now = session.bytes_up + session.bytes_down;
            let rate = Rate {
                transactions: session.transactions.saturating_sub(transactions) as f64 / seconds,
                bytes: bytes_now.saturating_sub(bytes) as f64 / seconds,
            };
            let sum = rates.routes.entry(session.route.clone()).or_default();
            sum.transactions += rate.transactions;
            sum.bytes += rate.bytes;
            rates.sessions.insert(session.id, rate);
        }
        rates
    }

    pub(super) fn session(&self, id: u64) -> Rate {
        self.sessions.get(&id).copied().unwrap_or_default()
    }

    pub(super) fn route(&self, name: &str) -> Rate {
        self.routes.get(name).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::*;
    use crate::cli::status::scene::{session, sound};

    #[test]
    fn rates_are_differences_of_sessions_that_are_still_there() {
        let began = Instant::now();
        let look = |at: u64, sessions| Look {
            at: began + Duration::from_secs(at),
            seen: sound(),
            sessions,
        };
        let before = look(
            0,
            vec![session(1, "active", 90, 100, 1000), session(2, "idle", 90, 5, 5)],
        );
        let after = look(
            2,
            vec![
                session(1, "active", 92, 120, 5000),
                session(3, "active", 1, 8, 80),
                session(4, "idle", 500, 1_000_000, 0),
            ],
        );
        let rates = Rates::between(&before, &after);
        let rate = |transactions, bytes| Rate { transactions, bytes };
        assert_eq!(rates.session(1), rate(10.0, 2000.0));
        assert_eq!(rates.session(3), rate(4.0, 40.0), "it began meanwhile");
        assert_eq!(
            rates.session(4),
            rate(0.0, 0.0),
            "what it did before is not known"
        );
        assert_eq!(rates.route("rw"), rate(14.0, 2040.0));
        assert_eq!(Rates::between(&before, &before).route("rw"), rate(0.0, 0.0));
    }
}
