//! The state of one member.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::time::Instant;

use super::{CheckStatus, Health, Lag, Listed};

#[derive(Debug)]
pub(super) struct MemberState {
    pub(super) listed: Listed,
    /// When its address became known. A probe that started earlier went to another address.
    pub(super) since: Instant,
    pub(super) health: Health,
    pub(super) probes: ProbeHistory,
    /// Its last probe was answered, whatever the answer.
    pub(super) answers: bool,
    /// Start of the probe that saw `health.facts`.
    pub(super) facts_from: Option<Instant>,
    /// The role in `health.facts` is from a session's report, not yet from a probe.
    pub(super) unconfirmed: bool,
    /// The timeline on which probes see it accept writes, and when the first such probe ended.
    pub(super) primary_since: Option<(u32, Instant)>,
    /// The last report of a session that counted at once. Probes that started earlier do not count.
    pub(super) evidence_at: Option<Instant>,
    /// Start of the last probe that it answered with 53300.
    pub(super) full_from: Option<Instant>,
    /// The last known identifier, also while the member is down.
    pub(super) identifier: Option<u64>,
    /// The source listed it after the router's start, so its share grows slowly from the first time
    /// it is up.
    pub(super) is_late: bool,
    /// When it last came up; `None` if it was up at the router's start.
    pub(super) risen: Option<Instant>,
    pub(super) lag: Option<Lag>,
    /// Routes whose limit it has exceeded without falling below the lower limit since. Kept while
    /// it is down.
    pub(super) lagging: BTreeSet<Arc<str>>,
    /// These routes, and those for which its lag is not known.
    pub(super) unfit_for: BTreeSet<Arc<str>>,
}

impl MemberState {
    pub(super) fn new(listed: Listed, is_late: bool, now: Instant) -> Self {
        Self {
            listed,
            since: now,
            health: Health::default(),
            probes: ProbeHistory::default(),
            answers: false,
            facts_from: None,
            unconfirmed: false,
            primary_since: None,
            evidence_at: None,
            full_from: None,
            identifier: None,
            is_late,
            risen: None,
            lag: None,
            lagging: BTreeSet::new(),
            unfit_for: BTreeSet::new(),
        }
    }

    pub(super) fn has_address(&self) -> bool {
        !self.listed.host.is_empty() && self.listed.port != 0
    }

    pub(super) fn down(&mut self, check: CheckStatus, message: String, fall: u32) {
        self.health.check = check;
        self.health.up = false;
        self.health.streak = fall;
        self.health.error = Some(message);
        self.not_full();
        self.forget_facts();
    }

    pub(super) fn forget_facts(&mut self) {
        self.health.facts = None;
        self.facts_from = None;
        self.unconfirmed = false;
    }
}

/// The results of a member's probes so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) enum ProbeHistory {
    #[default]
    Unprobed,
    NeverUp,
    BeenUp,
}
