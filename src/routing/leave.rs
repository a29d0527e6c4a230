//! Decides whether a live session must leave a server that has the right role but is no longer fit
//! for the session's route.

use std::time::Duration;

use crate::cluster::snapshot::{AdminState, MemberName, Snapshot};
use crate::config::{OnUnfit, Unfit};

/// Why a server is not fit. `Display` is the sentence the session's client sees.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LeaveReason {
    #[error("{0} is too far behind the leader")]
    Lagging(MemberName),
    #[error("{0} is down")]
    Down(MemberName),
    #[error("{0} is in maintenance")]
    Maintenance(MemberName),
    #[error("{0} is being drained")]
    Draining(MemberName),
    #[error("{0} is about to be stopped")]
    Stopping(MemberName),
}

/// The session has to leave its server, while that stays unfit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leave {
    pub why: LeaveReason,
    pub how: Leaving,
}

/// How a session leaves a server that is not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leaving {
    /// Between transactions, if its state can be restored on another connection; else it stays.
    Moves,
    /// Between transactions; where its state cannot be restored, it ends.
    AtBoundary,
    /// As [`Self::AtBoundary`]; after this time it ends within a transaction.
    Within(Duration),
}

/// Whether a session of `route` must leave `member`. `policy` is the route's policy when the
/// session began. `None`: it stays. Of several reasons the strictest counts.
pub fn leave(snapshot: &Snapshot, route: &str, policy: OnUnfit, member: &MemberName) -> Option<Leave> {
    let current = snapshot.member(member)?;
    let reasons = [
        (current.admin == AdminState::Maint)
            .then_some((Unfit::Close, LeaveReason::Maintenance as fn(_) -> _)),
        // As with `keep`, but that what can move does.
        (current.admin == AdminState::Drain).then_some((Unfit::Keep, LeaveReason::Draining)),
        current
            .leaving
            .is_some()
            .then_some((Unfit::Keep, LeaveReason::Stopping)),
        // A member that was never probed is not down.
        (!current.health.up && current.health.error.is_some()).then_some((policy.down, LeaveReason::Down)),
        current
            .lagging
            .contains(route)
            .then_some((policy.lag, LeaveReason::Lagging)),
    ];
    // `max_by_key` returns the last of equals.
    let (what, why) = reasons
        .into_iter()
        .rev()
        .flatten()
        .max_by_key(|(what, _)| *what)?;
    let why = why(member.clone());
    let how = match (what, &why) {
        (Unfit::Keep, LeaveReason::Draining(_) | LeaveReason::Stopping(_)) => Leaving::Moves,
        (Unfit::Keep, _) => return None,
        (Unfit::CloseIdle, _) => Leaving::AtBoundary,
        (Unfit::Close, _) => Leaving::Within(policy.grace),
    };
    Some(Leave { why, how })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Arc;

    use tokio::time::Instant;

    use super::super::policy::tests::three;
    use super::*;
    use crate::cluster::snapshot::StopOrder;

    const GRACE: Duration = Duration::from_secs(7);

    fn asked(
        change: impl Fn(&mut crate::cluster::snapshot::Member),
        lag: Unfit,
        down: Unfit,
    ) -> Option<Leave> {
        let mut snapshot = three();
        change(&mut snapshot.members[1]);
        let policy = OnUnfit {
            lag,
            down,
            grace: GRACE,
        };
        leave(&snapshot, "ro", policy, &MemberName::new("db2"))
    }

    #[test]
    fn each_cause_has_its_policy() {
        use Unfit::{Close, CloseIdle, Keep};
        type Change = fn(&mut crate::cluster::snapshot::Member);
        let lagging: Change = |member| member.lagging = ["ro".into()].into();
        let elsewhere: Change = |member| member.lagging = ["other".into()].into();
        let down: Change = |member| {
            member.health.up = false;
            member.health.error = Some("refused".into());
        };
        let unprobed: Change = |member| member.health.up = false;
        let both: Change = |member| {
            member.lagging = ["ro".into()].into();
            member.health.up = false;
            member.health.error = Some("refused".into());
        };
        let maint: Change = |member| member.admin = AdminState::Maint;
        let drain: Change = |member| member.admin = AdminState::Drain;
        let leaving: Change = |member| member.leaving = Some(Arc::new(StopOrder::unnamed(Instant::now())));
        let drained_and_down: Change = |member| {
            member.admin = AdminState::Drain;
            member.health.up = false;
            member.health.error = Some("refused".into());
        };
        let within = Some(Leaving::Within(GRACE));
        for (case, (change, lag, on_down), expected) in [
            ("fit", ((|_| {}) as Change, Close, Close), None),
            ("lag", (lagging, Keep, Close), None),
            ("lag", (lagging, CloseIdle, Keep), Some(Leaving::AtBoundary)),
            ("lag", (lagging, Close, Keep), within),
            ("lag of another route", (elsewhere, Close, Close), None),
            ("down", (down, Close, Keep), None),
            ("down", (down, Keep, CloseIdle), Some(Leaving::AtBoundary)),
            ("down", (down, Keep, Close), within),
            ("not yet probed", (unprobed, Close, Close), None),
            ("both", (both, Close, CloseIdle), within),
            ("both", (both, Keep, CloseIdle), Some(Leaving::AtBoundary)),
            ("maint", (maint, Keep, Keep), within),
            ("drain", (drain, Close, Close), Some(Leaving::Moves)),
            ("leaving", (leaving, Close, Close), Some(Leaving::Moves)),
            (
                "drained and down",
                (drained_and_down, Close, CloseIdle),
                Some(Leaving::AtBoundary),
            ),
        ] {
            let leave = asked(change, lag, on_down);
            assert_eq!(
                leave.map(|leave| leave.how),
                expected,
                "{case} {lag:?} {on_down:?}"
            );
        }
        let db2 = || MemberName::new("db2");
        assert_eq!(asked(both, Close, Close).unwrap().why, LeaveReason::Down(db2()));
        assert_eq!(asked(both, Close, Keep).unwrap().why, LeaveReason::Lagging(db2()));
        assert_eq!(
            asked(maint, Keep, Keep).unwrap().why,
            LeaveReason::Maintenance(db2())
        );
    }

    #[test]
    fn a_removed_member_keeps_its_sessions() {
        let policy = OnUnfit {
            lag: Unfit::Close,
            down: Unfit::Close,
            grace: GRACE,
        };
        assert_eq!(leave(&three(), "ro", policy, &MemberName::new("gone")), None);
    }
}
