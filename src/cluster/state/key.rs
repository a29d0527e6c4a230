//! What the watch on the DCS says of the leader key, beside what Patroni's REST interface says.
//!
//! The watch counts more: it is what Patroni itself goes by, and REST answers lag behind it. It counts from the moment the
//! two have named the same leader (else the watch may be on another cluster's keys) until it is lost. Then its last word
//! stands until a poll that was begun after it is answered. Where the two differ, the watch is to be checked.

use std::time::Duration;

use tokio::time::Instant;

use super::{Named, SourceReport, State};

/// How far Patroni's own watch may be behind ours; 4 to 20 ms were measured.
const BEHIND: Duration = Duration::from_millis(100);
/// How long a member that has just been named is probed at the pace of [`CHASE`].
const CHASE_FOR: Duration = Duration::from_secs(5);
/// Between two probes of it. Patroni names a member about a tenth of a second before it accepts writes, and PostgreSQL
/// does not announce a promotion to a connection that waits: it has to be asked.
pub(super) const CHASE: Duration = Duration::from_millis(10);

/// The leader key, by the watch.
#[derive(Debug, Default)]
pub(super) struct Key {
    /// The watch is up.
    live: bool,
    /// It and the source have named the same leader once.
    agreed: bool,
    named: Option<Named>,
    /// When that was known to be so.
    at: Option<Instant>,
}

impl Key {
    /// It names the leader now, whatever the source says.
    pub(super) fn counts(&self) -> bool {
        self.live && self.agreed
    }

    /// Whether it was still so at `moment`.
    pub(super) fn is_as_new_as(&self, moment: Instant) -> bool {
        self.at.is_some_and(|at| at >= moment)
    }

    fn agree(&mut self, by_source: Option<&Named>) {
        let both = matches!(by_source, Some(Named::One(_))) && self.named.as_ref() == by_source;
        self.agreed |= self.live && both;
    }

    /// Whether a poll begun then may know what the watch knows.
    fn known_to(&self, begun: Instant) -> bool {
        self.at.is_none_or(|at| begun >= at + BEHIND)
    }
}

impl State {
    pub(super) fn key_seen(&mut self, named: Named, at: Instant, now: Instant) {
        if self.key.named.as_ref() != Some(&named) {
            self.wants.poll = true;
        }
        self.key.live = true;
        self.key.at = Some(at);
        self.key.named = Some(named.clone());
        self.key.agree(self.by_source.as_ref());
        if self.key.counts() {
            self.name(named, now);
        }
    }

    pub(super) fn key_lost(&mut self) {
        self.key.live = false;
        self.wants.poll = true;
    }

    /// Takes from a poll's answer whom it names, if that is the last word, and how it differs from the watch.
    pub(super) fn source_named(&mut self, report: &mut SourceReport, begun: Instant, now: Instant) {
        let named = report.named.clone();
        self.by_source = Some(named.clone());
        self.key.agree(Some(&named));
        let differs = self.key.live && self.key.named.as_ref() != Some(&named);
        if differs && !self.key.agreed && report.disagreement.is_none() {
            report.disagreement = Some(format!(
                "etcd's leader key names {}, they name {}; is the `scope` of `etcd` right?",
                shown(self.key.named.as_ref()),
                shown(Some(&named))
            ));
        }
        let late = self.key.known_to(begun);
        if differs && self.key.agreed && late {
            self.wants.check_key = true;
        }
        if self.key.counts() {
            // Perhaps as of now: they may have just agreed for the first time.
            if let Some(named) = self.key.named.clone() {
                self.name(named, now);
            }
        } else if !self.key.agreed || late {
            self.name(named, now);
        }
    }

    /// The member to be probed at once and again, because it was named just now and does not accept writes yet.
    pub(super) fn chased(&self, now: Instant) -> Option<&super::MemberName> {
        let Some(Named::One(name)) = &self.named else {
            return None;
        };
        let member = self.members.get(name)?;
        let soon = now < self.chase_until && member.health.up && self.writable(member).is_none();
        soon.then_some(name)
    }

    /// Somebody else is named, or nobody.
    fn name(&mut self, named: Named, now: Instant) {
        if self.named.as_ref() == Some(&named) {
            return;
        }
        self.leaderless_until = now + super::LEADERLESS;
        if let Named::One(name) = &named {
            self.wants.probe.insert(name.clone());
            self.chase_until = now + CHASE_FOR;
        }
        if let Some(Named::One(name)) = &self.named {
            self.wants.probe.insert(name.clone());
        }
        self.named = Some(named);
    }
}

fn shown(named: Option<&Named>) -> String {
    match named {
        Some(Named::One(name)) => name.to_string(),
        Some(Named::Several) => "several".to_owned(),
        Some(Named::Nobody) | None => "nobody".to_owned(),
    }
}
