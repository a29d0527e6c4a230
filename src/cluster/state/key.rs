//! The leader key as the watch on the DCS shows it, compared with Patroni's REST interface.
//!
//! The watch takes precedence: Patroni itself uses the key, and REST answers are later. It counts
//! once both have named the same leader (before that it may watch another cluster's keys) and until
//! it is lost. After a loss its last value stays until a poll that began later is answered. If the
//! two differ, the watch is checked.

use std::time::Duration;

use tokio::time::Instant;

use super::{Named, SourceReport, State};

/// How far Patroni's own watch may be behind this one; 4 to 20 ms were measured.
const BEHIND: Duration = Duration::from_millis(100);
/// How long a member that has just been named is probed every [`CHASE`].
const CHASE_FOR: Duration = Duration::from_secs(5);
/// Interval of these probes. Patroni names a member about a tenth of a second before it accepts
/// writes, and PostgreSQL does not notify an idle connection of a promotion, so it must be probed.
pub(super) const CHASE: Duration = Duration::from_millis(10);

/// The leader key as the watch shows it.
#[derive(Debug, Default)]
pub(super) struct Key {
    /// The watch is up.
    live: bool,
    /// The watch and the source have once named the same leader.
    agreed: bool,
    named: Option<Named>,
    /// When this value was known to be valid.
    at: Option<Instant>,
}

impl Key {
    /// Whether the watch decides who is named, independent of the source.
    pub(super) fn counts(&self) -> bool {
        self.live && self.agreed
    }

    /// Whether the watch is up.
    pub(super) fn is_live(&self) -> bool {
        self.live
    }

    /// Whether the watch is on this cluster's keys, as far as is known.
    pub(super) fn has_agreed(&self) -> bool {
        self.agreed
    }

    /// Whether the value was still valid at `moment`.
    pub(super) fn is_as_new_as(&self, moment: Instant) -> bool {
        self.at.is_some_and(|at| at >= moment)
    }

    fn agree(&mut self, by_source: Option<&Named>) {
        let both = matches!(by_source, Some(Named::One(_))) && self.named.as_ref() == by_source;
        self.agreed |= self.live && both;
    }

    /// Whether a poll begun at `begun` may include the watch's value.
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

    /// Takes the named leader from a poll's answer if it is the newest information, and notes how
    /// the answer differs from the watch.
    pub(super) fn source_named(&mut self, report: &mut SourceReport, begun: Instant, now: Instant) {
        let named = report.named.clone();
        self.by_source = Some(named.clone());
        self.key.agree(Some(&named));
        let differs = self.key.live && self.key.named.as_ref() != Some(&named);
        if differs && !self.key.agreed && report.disagreement.is_none() {
            let check = "check `etcd.scope` and `etcd.namespace`";
            report.disagreement = Some(match &self.key.named {
                None | Some(Named::Nobody) => format!(
                    "etcd has no leader key under the configured scope and namespace, but Patroni names {}: {check} (with \
                     Citus the scope is SCOPE/GROUP, as `main/0`)",
                    shown(Some(&named))
                ),
                other => format!(
                    "etcd's leader key names {}, but Patroni names {}: {check}",
                    shown(other.as_ref()),
                    shown(Some(&named))
                ),
            });
        }
        let late = self.key.known_to(begun);
        if differs && self.key.agreed && late {
            self.wants.check_key = true;
        }
        if self.key.counts() {
            // The two may have just agreed for the first time.
            if let Some(named) = self.key.named.clone() {
                self.name(named, now);
            }
        } else if !self.key.agreed || late {
            self.name(named, now);
        }
    }

    /// The member to probe at the fastest pace, because it was just named and does not accept
    /// writes yet.
    pub(super) fn chased(&self, now: Instant) -> Option<&super::MemberName> {
        let Some(Named::One(name)) = &self.named else {
            return None;
        };
        let member = self.members.get(name)?;
        let soon = now < self.chase_until && member.health.up && self.writable(member).is_none();
        soon.then_some(name)
    }

    /// Sets the named leader, if it has changed.
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
        Some(Named::Several) => "several leaders".to_owned(),
        Some(Named::Mixed) => "leaders of different clusters".to_owned(),
        Some(Named::Nobody) | None => "no leader".to_owned(),
    }
}
