//! A switchover that was requested, and a leader that its own Patroni stops.
//!
//! # Armed
//!
//! A request that concerns the verified leader arms the router when it is due: from then on the
//! leader's Patroni is asked for its status every [`ARMED`]. Nothing else changes, because Patroni
//! goes on serving from a fifth of a second to many seconds after the request: a checkpoint and
//! `before_stop` come first, or there is no candidate and nothing happens at all. Arming ends when
//! the request is gone, when another member leads, or after two rounds of Patroni's loop
//! (`loop_wait`) in which nothing happened; then the same request does not arm again.
//!
//! A leader that Patroni itself lists as `stopping` arms, too, for a moment: the list is up to
//! `loop_wait` old, so that it is a hint only.
//!
//! # Stopping
//!
//! While the leader's own Patroni says that it stops the server there is no leader
//! ([`NoLeader::Stopping`]). This ends when a later look shows otherwise, when looks have shown
//! nothing for [`FORGOTTEN`], or when another member leads. A probe that begins later than that
//! must see the old leader accept writes before it is the leader again.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    Arming, Leader, MemberName, MemberStatus, NoLeader, RequestedIn, State, StatusLook, SwitchoverRequest,
};

/// Between two looks while a switchover may begin.
const ARMED: Duration = Duration::from_millis(20);
/// Between two looks at a leader that is being stopped.
const STOPPING: Duration = Duration::from_millis(100);
/// How long the last look at such a leader counts while the next ones fail.
const FORGOTTEN: Duration = Duration::from_secs(2);
/// How much earlier than its time a scheduled switchover arms: clocks differ.
const EARLIER: Duration = Duration::from_secs(1);
/// How long a leader that is listed as `stopping` arms.
const LISTED: Duration = Duration::from_secs(2);
/// Patroni's default, where its configuration was not read.
const LOOP_WAIT: Duration = Duration::from_secs(10);

/// The reasons to be armed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    Requested(RequestedIn),
    ListedAsStopping,
}

/// A request, as long as it is there.
#[derive(Debug)]
struct Requested {
    request: SwitchoverRequest,
    due: Instant,
    /// It has armed once, in vain.
    is_spent: bool,
}

#[derive(Debug)]
struct Current {
    member: MemberName,
    why: Why,
    until: Instant,
}

#[derive(Debug, Default)]
pub(super) struct Armed {
    dcs: Option<Requested>,
    source: Option<Requested>,
    /// The leader that is listed as `stopping` has armed once.
    listed: Option<MemberName>,
    current: Option<Current>,
    /// The leader that is being stopped, and when a look last showed it.
    stopping: Option<(MemberName, Instant)>,
}

impl Armed {
    fn place(&mut self, place: RequestedIn) -> &mut Option<Requested> {
        match place {
            RequestedIn::Dcs => &mut self.dcs,
            RequestedIn::Source => &mut self.source,
        }
    }

    fn is_requested(&self, why: Why) -> bool {
        let is_there = |place: &Option<Requested>| place.as_ref().is_some_and(|known| !known.is_spent);
        match why {
            Why::Requested(RequestedIn::Dcs) => is_there(&self.dcs),
            Why::Requested(RequestedIn::Source) => is_there(&self.source),
            Why::ListedAsStopping => true,
        }
    }

    fn stopping(&self) -> Option<&MemberName> {
        self.stopping.as_ref().map(|(member, _)| member)
    }

    pub(super) fn resume(&mut self, gap: Duration) {
        if let Some((_, seen)) = &mut self.stopping {
            *seen += gap;
        }
        if let Some(current) = &mut self.current {
            current.until += gap;
        }
    }
}

impl State {
    pub(super) fn requested(
        &mut self,
        place: RequestedIn,
        request: Option<SwitchoverRequest>,
        due: Instant,
        now: Instant,
    ) {
        let known = self.armed.place(place);
        match request {
            None => *known = None,
            // The same request, for example after the watch was lost.
            Some(request) if known.as_ref().is_some_and(|known| known.request == request) => {}
            Some(request) => {
                *known = Some(Requested {
                    request,
                    due,
                    is_spent: false,
                });
                if self
                    .armed
                    .current
                    .as_ref()
                    .is_some_and(|current| current.why == Why::Requested(place))
                {
                    self.disarm("there is a new request");
                }
                if due <= now {
                    self.hint(now, super::AFTER_FAILURE);
                }
            }
        }
    }

    /// The leader, unless its Patroni stops it. That also explains why the same member no longer
    /// answers.
    pub(super) fn unless_stopping(&self, leader: Result<Leader, NoLeader>) -> Result<Leader, NoLeader> {
        let Some(stopping) = self.armed.stopping() else {
            return leader;
        };
        match &leader {
            Ok(Leader::Verified { member, .. })
            | Err(
                NoLeader::NotReachable(member)
                | NoLeader::NotWritable(member)
                | NoLeader::ProbeFails { member, .. },
            ) if member == stopping => Err(NoLeader::Stopping(member.clone())),
            _ => leader,
        }
    }

    pub(super) fn status_seen(
        &mut self,
        name: &MemberName,
        started: Instant,
        status: Option<&MemberStatus>,
        now: Instant,
    ) {
        let Some(status) = status else {
            return;
        };
        let known = self.armed.stopping.clone().filter(|(member, _)| member == name);
        let leads = matches!(&self.snapshot.leader, Leader::Verified { member, .. } if member == name);
        if status.is_stopping() {
            if leads || known.is_some() {
                self.armed.stopping = Some((name.clone(), now));
            }
        } else if known.is_some_and(|(_, seen)| started >= seen) {
            self.not_stopping();
        }
    }

    /// Drops what was not confirmed.
    pub(super) fn forget_stopping(&mut self, now: Instant) {
        let is_old = |seen: Instant| now.saturating_duration_since(seen) > FORGOTTEN;
        if self
            .armed
            .stopping
            .as_ref()
            .is_some_and(|(_, seen)| is_old(*seen))
        {
            self.not_stopping();
        }
    }

    fn not_stopping(&mut self) {
        let Some((name, _)) = self.armed.stopping.take() else {
            return;
        };
        if let Some(member) = self.members.get_mut(&name) {
            // The last probe may have been before the stop.
            member.unconfirmed = member.health.facts.is_some();
            self.wants.probe.insert(name);
        }
    }

    /// Begins or ends to be armed. `leader` is the one of the next snapshot.
    pub(super) fn arm(&mut self, leader: &Leader, now: Instant) {
        let verified = match leader {
            Leader::Verified { member, .. } => Some(member),
            Leader::None(_) => None,
        };
        if let Some(verified) = verified
            && self.armed.stopping().is_some_and(|stopping| stopping != verified)
        {
            self.armed.stopping = None;
        }
        if let Some(Current { member, why, until }) = &self.armed.current {
            let (why, is_over) = (*why, now >= *until);
            let other = verified.filter(|verified| *verified != member);
            if let Some(other) = other {
                let reason = format!("{other} is the leader now");
                self.spend(why);
                self.disarm(reason);
            } else if !self.armed.is_requested(why) {
                self.disarm("the request is gone");
            } else if is_over {
                self.spend(why);
                self.disarm("nothing has happened");
            }
        }
        self.note_listed(verified);
        let (Some(member), None) = (verified, &self.armed.current) else {
            return;
        };
        let Some((why, until)) = self.reason_for(member, now) else {
            return;
        };
        let member = member.clone();
        self.wants.armings.push(Arming::Begun {
            member: member.clone(),
            why: match why {
                Why::Requested(RequestedIn::Dcs) => "etcd shows a request for a switchover",
                Why::Requested(RequestedIn::Source) => "the time of a scheduled switchover has come",
                Why::ListedAsStopping => "Patroni lists it as stopping",
            },
        });
        if why == Why::ListedAsStopping {
            self.armed.listed = Some(member.clone());
        }
        self.armed.current = Some(Current { member, why, until });
        self.hint(now, super::AFTER_FAILURE);
    }

    fn disarm(&mut self, why: impl Into<String>) {
        if let Some(Current { member, .. }) = self.armed.current.take() {
            let why = why.into();
            self.wants.armings.push(Arming::Ended { member, why });
        }
    }

    fn spend(&mut self, why: Why) {
        if let Why::Requested(place) = why
            && let Some(requested) = self.armed.place(place)
        {
            requested.is_spent = true;
        }
    }

    fn is_listed_as_stopping(&self, name: &MemberName) -> bool {
        let member = self.members.get(name);
        member.is_some_and(|member| member.listed.state == "stopping")
    }

    /// A leader that is no longer listed as `stopping` may arm again.
    fn note_listed(&mut self, verified: Option<&MemberName>) {
        let is_still = |listed: &MemberName| Some(listed) == verified && self.is_listed_as_stopping(listed);
        if verified.is_some() && self.armed.listed.as_ref().is_some_and(|listed| !is_still(listed)) {
            self.armed.listed = None;
        }
    }

    /// Why to arm for this leader now, and until when.
    fn reason_for(&self, leader: &MemberName, now: Instant) -> Option<(Why, Instant)> {
        let rounds = self.times.map_or(LOOP_WAIT, |times| times.loop_wait) * 2;
        for (requested, place) in [
            (&self.armed.dcs, RequestedIn::Dcs),
            (&self.armed.source, RequestedIn::Source),
        ] {
            let Some(Requested {
                request,
                due,
                is_spent,
            }) = requested
            else {
                continue;
            };
            // Before that the watch may show another cluster's keys.
            let is_ours = place == RequestedIn::Source || self.key.has_agreed();
            if request.concerns(leader) && is_ours && !is_spent && now + EARLIER >= *due {
                return Some((Why::Requested(place), now.max(*due) + rounds));
            }
        }
        let is_new = self.armed.listed.as_ref() != Some(leader);
        (is_new && self.is_listed_as_stopping(leader)).then(|| (Why::ListedAsStopping, now + LISTED))
    }

    /// Whether etcd shows a request for a switchover from this leader, due or not: Patroni would
    /// refuse another one.
    pub(super) fn is_switchover_requested(&self, leader: &Leader) -> bool {
        let (Leader::Verified { member, .. }, Some(requested)) = (leader, &self.armed.dcs) else {
            return false;
        };
        self.key.has_agreed() && requested.request.concerns(member)
    }

    /// The member whose Patroni is to be asked for its status now.
    pub fn look(&self) -> Option<StatusLook> {
        let (member, every) = match (self.armed.stopping(), &self.armed.current) {
            (Some(stopping), _) => (stopping, STOPPING),
            (None, Some(current)) if matches!(self.snapshot.leader, Leader::Verified { .. }) => {
                (&current.member, ARMED)
            }
            _ => return None,
        };
        let api_url = self
            .members
            .get(member)
            .and_then(|known| known.listed.api_url.clone());
        Some(StatusLook {
            member: member.clone(),
            api_url,
            every,
        })
    }

    /// Whether a switchover may begin.
    pub fn is_armed(&self) -> bool {
        self.armed.current.is_some()
    }
}
