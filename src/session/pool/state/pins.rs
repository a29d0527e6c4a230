//! Pins: reasons why a session must keep its server connection.

/// Why a session cannot leave its server connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum PinReason {
    /// SQL `PREPARE`.
    Prepare = 1,
    Listen = 1 << 1,
    /// A table, view, sequence, function or type in the session's temporary schema.
    TemporaryObject = 1 << 2,
    /// A cursor `WITH HOLD`.
    HoldCursor = 1 << 3,
    /// An advisory lock of the session (not of the transaction).
    AdvisoryLock = 1 << 4,
    /// A library that `LOAD` brought in. Lasts as long as the session.
    Load = 1 << 5,
    /// `SET SESSION AUTHORIZATION`.
    SessionAuthorization = 1 << 6,
    /// A custom setting whose name is not known, so that it can neither be read nor restored; or
    /// too many settings to keep. Lasts as long as the session.
    Setting = 1 << 7,
    /// `setseed`: the sequence of `random()`. Lasts as long as the session.
    Seed = 1 << 8,
    /// `currval` or `lastval` was used. Lasts as long as the session.
    Sequence = 1 << 9,
    /// `dblink`, or a replication origin: the connection has state that cannot be asked for. Lasts
    /// as long as the session.
    Extension = 1 << 10,
    /// The server did not answer the question about the session's state.
    Unanswered = 1 << 11,
}

impl PinReason {
    pub const ALL: [Self; 12] = [
        Self::Prepare,
        Self::Listen,
        Self::TemporaryObject,
        Self::HoldCursor,
        Self::AdvisoryLock,
        Self::Load,
        Self::SessionAuthorization,
        Self::Setting,
        Self::Seed,
        Self::Sequence,
        Self::Extension,
        Self::Unanswered,
    ];

    /// The label in metrics, views and log lines.
    pub fn label(self) -> &'static str {
        match self {
            Self::Prepare => "prepare",
            Self::Listen => "listen",
            Self::TemporaryObject => "temporary_object",
            Self::HoldCursor => "hold_cursor",
            Self::AdvisoryLock => "advisory_lock",
            Self::Load => "load",
            Self::SessionAuthorization => "session_authorization",
            Self::Setting => "setting",
            Self::Seed => "seed",
            Self::Sequence => "sequence",
            Self::Extension => "extension",
            Self::Unanswered => "unanswered",
        }
    }
}

/// A set of reasons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pins(u16);

impl Pins {
    pub const NONE: Self = Self(0);
    /// What a later answer of the server can take away.
    pub(super) const ASKED: Self = Self::of(&[
        PinReason::Prepare,
        PinReason::Listen,
        PinReason::TemporaryObject,
        PinReason::HoldCursor,
        PinReason::AdvisoryLock,
        PinReason::Unanswered,
    ]);

    const fn of(reasons: &[PinReason]) -> Self {
        let (mut bits, mut i) = (0, 0);
        while i < reasons.len() {
            bits |= reasons[i] as u16;
            i += 1;
        }
        Self(bits)
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn contains(self, reason: PinReason) -> bool {
        self.0 & reason as u16 != 0
    }

    /// Those of both.
    #[must_use]
    pub fn and(self, others: Self) -> Self {
        Self(self.0 | others.0)
    }

    pub fn insert(&mut self, reason: PinReason) {
        self.0 |= reason as u16;
    }

    pub(super) fn set(&mut self, reason: PinReason, is_pinned: bool) {
        if is_pinned {
            self.0 |= reason as u16;
        } else {
            self.0 &= !(reason as u16);
        }
    }

    pub(super) fn only(self, others: Self) -> Self {
        Self(self.0 & others.0)
    }

    pub fn iter(self) -> impl Iterator<Item = PinReason> {
        PinReason::ALL
            .into_iter()
            .filter(move |&reason| self.contains(reason))
    }

    /// A session with these pins has left, and its connection was cleaned (`RESET ALL`, `DISCARD
    /// ALL`): is there something left on it that cannot be taken away? Connections of dblink have
    /// credentials, a replication origin marks the writes of others: such a connection must always
    /// be closed. A loaded library, `setseed` and unknown custom names are left to the next
    /// session, unless `custom_settings: close` (`is_strict`) says otherwise.
    pub fn spoil_connection(self, is_strict: bool) -> bool {
        let left = [PinReason::Load, PinReason::Seed, PinReason::Setting];
        self.contains(PinReason::Extension)
            || is_strict && left.into_iter().any(|reason| self.contains(reason))
    }
}

/// Their labels: `listen, prepare`.
impl std::fmt::Display for Pins {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, reason) in self.iter().enumerate() {
            let between = if index > 0 { ", " } else { "" };
            write!(f, "{between}{}", reason.label())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_has_what_was_inserted() {
        let mut pins = Pins::NONE;
        assert!(pins.is_empty());
        pins.insert(PinReason::Listen);
        pins.insert(PinReason::Extension);
        assert_eq!(
            pins.iter().collect::<Vec<_>>(),
            [PinReason::Listen, PinReason::Extension]
        );
        pins.set(PinReason::Listen, false);
        assert!(!pins.contains(PinReason::Listen) && !pins.is_empty());
    }

    #[test]
    fn what_cannot_be_taken_away_decides_whether_a_connection_is_closed() {
        for reason in PinReason::ALL {
            let pins = Pins::of(&[reason]);
            let is_left = matches!(
                reason,
                PinReason::Load | PinReason::Seed | PinReason::Setting | PinReason::Extension
            );
            assert_eq!(pins.spoil_connection(true), is_left, "{}", reason.label());
            assert_eq!(
                pins.spoil_connection(false),
                reason == PinReason::Extension,
                "{}",
                reason.label()
            );
        }
    }
}
