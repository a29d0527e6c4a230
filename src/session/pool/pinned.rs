//! How many connections of a pool are pinned, and for which reasons.

use std::fmt;
use std::time::Duration;

use tokio::time::Instant;

use super::inner::Inner;
use super::state::{PinReason, Pins};
use crate::cluster::snapshot::MemberName;
use crate::session::stream::SessionStream;

/// Between two warnings that half of the connections are pinned.
const PINS_SAID: Duration = Duration::from_mins(1);

/// Of one member or of a whole pool. A connection counts once in [`Self::connections`], and once
/// for each of its reasons.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct PinCounts {
    pub connections: usize,
    reasons: [usize; PinReason::ALL.len()],
}

impl PinCounts {
    /// A connection that was pinned for some reasons is pinned for others.
    pub(super) fn change(&mut self, before: Pins, after: Pins) {
        let step = |count: &mut usize, was: bool, is: bool| match (was, is) {
            (true, false) => *count = count.saturating_sub(1),
            (false, true) => *count += 1,
            _ => {}
        };
        step(&mut self.connections, !before.is_empty(), !after.is_empty());
        for (count, reason) in self.reasons.iter_mut().zip(PinReason::ALL) {
            step(count, before.contains(reason), after.contains(reason));
        }
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.connections += other.connections;
        for (count, more) in self.reasons.iter_mut().zip(other.reasons) {
            *count += more;
        }
    }

    /// The reasons that there are, with their connections.
    pub fn reasons(&self) -> impl Iterator<Item = (PinReason, usize)> + '_ {
        let all = PinReason::ALL.into_iter().zip(self.reasons);
        all.filter(|(_, count)| *count > 0)
    }
}

/// The reasons, those with the most connections first: `listen 2, prepare 1`.
impl fmt::Display for PinCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut all: Vec<_> = self.reasons().collect();
        all.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        for (index, (reason, count)) in all.into_iter().enumerate() {
            let between = if index > 0 { ", " } else { "" };
            write!(f, "{between}{} {count}", reason.label())?;
        }
        Ok(())
    }
}

impl<S: SessionStream> Inner<S> {
    /// The session of a connection to this member keeps it for other reasons than before. `Some`:
    /// it is time to say that half of the connections are pinned.
    pub(super) fn pinned(&mut self, member: &MemberName, before: Pins, after: Pins) -> Option<PinCounts> {
        let most = self.limits.most;
        let pinned = &mut self.member_mut(member).pinned;
        pinned.change(before, after);
        let pinned = *pinned;
        let now = Instant::now();
        let is_due = self.pins_said.is_none_or(|said| said + PINS_SAID <= now);
        if before.is_empty() && pinned.connections * 2 >= most && is_due {
            self.pins_said = Some(now);
            return Some(pinned);
        }
        None
    }

    /// Pinned connections to all members.
    pub(super) fn all_pinned(&self) -> PinCounts {
        let mut all = PinCounts::default();
        for member in &self.members {
            all.add(&member.pinned);
        }
        all
    }
}

/// A set of reasons in one number, for an atomic.
pub(in crate::session) fn bits_of(pins: Pins) -> u16 {
    pins.iter().fold(0, |bits, reason| bits | reason as u16)
}

/// The set of [`bits_of`].
pub(in crate::session) fn pins_of(bits: u16) -> Pins {
    let mut pins = Pins::NONE;
    for reason in PinReason::ALL {
        if bits & reason as u16 != 0 {
            pins.insert(reason);
        }
    }
    pins
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_fits_into_a_number_and_comes_back() {
        let mut pins = Pins::NONE;
        for reason in PinReason::ALL {
            pins.insert(reason);
            assert_eq!(pins_of(bits_of(pins)), pins);
        }
    }

    #[test]
    fn a_connection_counts_once_and_once_for_each_reason() {
        let mut pins = Pins::NONE;
        pins.insert(PinReason::Listen);
        let mut counts = PinCounts::default();
        counts.change(Pins::NONE, pins);
        let mut more = pins;
        more.insert(PinReason::Prepare);
        counts.change(Pins::NONE, more);
        assert_eq!(
            (counts.connections, counts.to_string().as_str()),
            (2, "listen 2, prepare 1")
        );
        counts.change(more, pins);
        counts.change(pins, Pins::NONE);
        assert_eq!((counts.connections, counts.to_string().as_str()), (1, "listen 1"));
        counts.change(pins, Pins::NONE);
        assert_eq!(counts, PinCounts::default());
    }
}
