//! The decisions of a pool: who gets which connection, and who may open one. Under the pool's lock,
//! and nothing here waits.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::acquire::{Grant, NoLease, Want};
use super::connection::PooledConnection;
use super::displacements::Displacements;
use super::key::{ConnectionKey, Recipe};
use super::keys::Keys;
use super::limits::Limits;
use super::members::{Fit, Member, Standing};
use super::metrics::CloseReason;
use super::permit::{OpenPermit, Permit};
use super::pool::Pool;
use super::state::Pins;
use super::waiters::{Ticket, Waiters};
use super::work::Work;
use crate::cluster::snapshot::MemberName;
use crate::config::{Route, Source};
use crate::routing::{self, Candidate, Choice, ChoiceInput, SessionVerdict, Turns};
use crate::session::gate::QueueError;
use crate::session::stream::SessionStream;

/// The session that has waited longest gets the place of a connection of another key if it has
/// waited longer by this than the first session of the connection's own key.
const OTHER_KEY: Duration = Duration::from_millis(50);

/// What a pool's lock is for.
#[derive(Debug)]
pub(super) struct Inner<S: SessionStream> {
    pub(super) route: Arc<Route>,
    pub(super) limits: Limits,
    /// The route is gone or has no pool any more: no connection idles.
    pub(super) is_retired: bool,
    pub(super) fit: Arc<Fit>,
    /// Those with connections.
    pub(super) members: Vec<Member<S>>,
    pub(super) waiters: Waiters<S>,
    pub(super) keys: Keys<S>,
    turns: Turns,
    displacements: Displacements,
    /// When it was last said that half of the connections are pinned.
    pub(super) pins_said: Option<Instant>,
    pub(super) last_refused: Option<Instant>,
}

/// What there is for a session now.
#[derive(Debug)]
pub(super) enum Found<S: SessionStream> {
    Grant(Grant<S>),
    /// It has to wait.
    Nothing,
    NoCandidate(Box<Choice>),
}

impl<S: SessionStream> Inner<S> {
    pub(super) fn new(route: Arc<Route>, limits: Limits, fit: Arc<Fit>) -> Self {
        Self {
            route,
            limits,
            is_retired: false,
            fit,
            members: Vec::new(),
            waiters: Waiters::default(),
            keys: Keys::default(),
            turns: Turns::default(),
            displacements: Displacements::default(),
            pins_said: None,
            last_refused: None,
        }
    }

    /// Looks at the newest snapshot, and closes the idle connections that it does not allow.
    pub(super) fn refit(&mut self, pool: &Pool<S>, work: &mut Work<S>) {
        let snapshot = pool.cluster().snapshot();
        if self.fit.is_of(&snapshot, &self.route) {
            return;
        }
        self.fit = Arc::new(Fit::new(snapshot, Arc::clone(&self.route)));
        let fit = &self.fit;
        for member in &mut self.members {
            let is_unfit = fit.standing(&member.name) == Standing::Unfit;
            let unfit = member.idle.take_if(|connection| {
                let verdict = connection.link.placement.verdict(&fit.snapshot);
                is_unfit || verdict != SessionVerdict::Stay
            });
            work.close_all(CloseReason::Unfit, unfit);
        }
        self.members
            .retain(|member| member.total > 0 || fit.standing(&member.name) != Standing::Unfit);
    }

    pub(super) fn member(&self, name: &MemberName) -> Option<&Member<S>> {
        self.members.iter().find(|member| member.name == *name)
    }

    pub(super) fn member_mut(&mut self, name: &MemberName) -> &mut Member<S> {
        let known = self.members.iter().position(|member| member.name == *name);
        let index = known.unwrap_or_else(|| {
            self.members.push(Member::new(name.clone()));
            self.members.len() - 1
        });
        &mut self.members[index]
    }

    /// The members to prefer for this session, in order; empty if there is only one that may serve,
    /// so that the usual case allocates nothing.
    fn order(&mut self, pool: &Pool<S>, client: Option<IpAddr>) -> Vec<Candidate> {
        if self.fit.candidates.len() <= 1 {
            return Vec::new();
        }
        let (fit, members, turns) = (Arc::clone(&self.fit), &self.members, &mut self.turns);
        let cluster = pool.cluster().config();
        let busy = |name: &MemberName| {
            let found = members.iter().find(|member| member.name == *name);
            found.map_or(0, Member::busy)
        };
        let occupancy = &pool.parts.occupancy;
        let mut input = ChoiceInput {
            client,
            zone: cluster.placement.zone.as_deref(),
            listed: match &cluster.source {
                Source::Servers(servers) => servers,
                Source::Patroni(_) => &[],
            },
            sessions_on: &busy,
            is_backing_off: &|member| occupancy.is_backing_off(&cluster.name, member),
            chance: &mut routing::chance,
            turns,
        };
        routing::candidates(&fit.snapshot, &fit.route, &mut input).candidates
    }

    /// An idle connection that can be used, on the first member of the order.
    pub(super) fn lease(
        &mut self,
        pool: &Pool<S>,
        want: &Want,
        client: Option<IpAddr>,
        work: &mut Work<S>,
    ) -> Option<Box<PooledConnection<S>>> {
        self.refit(pool, work);
        if self.waiters.has_key(&want.key) {
            return None;
        }
        let turns = (self.fit.candidates.len() > 1).then(|| self.turns.clone());
        let order = self.order(pool, client);
        let fit = Arc::clone(&self.fit);
        let (_, only) = fit.candidates.first()?;
        let first = order.first().unwrap_or(only);
        let leased = self.take_idle(&first.member, want, work);
        if let (None, Some(turns)) = (&leased, turns) {
            self.turns = turns;
        }
        leased
    }

    /// An idle connection to this member that can be used.
    fn take_idle(
        &mut self,
        member: &MemberName,
        want: &Want,
        work: &mut Work<S>,
    ) -> Option<Box<PooledConnection<S>>> {
        let member = self.members.iter_mut().find(|known| known.name == *member)?;
        let now = Instant::now();
        loop {
            let mut connection = member.idle.take(&want.key, want.worker)?;
            if connection.expires > now {
                connection.since = now;
                return Some(connection);
            }
            work.close(CloseReason::Lifetime, connection);
        }
    }

    /// What there is for a new session. It overtakes nobody: what idles while others wait is of no
    /// use to them.
    pub(super) fn enter(&mut self, pool: &Arc<Pool<S>>, want: &Want, work: &mut Work<S>) -> Found<S> {
        self.refit(pool, work);
        if self.waiters.is_empty() {
            return self.find(pool, want, Duration::ZERO, work);
        }
        if !self.waiters.has_key(&want.key) {
            let fit = Arc::clone(&self.fit);
            let members = fit.candidates.iter().map(|(_, candidate)| &candidate.member);
            for member in members.filter(|member| !want.tried.contains(member)) {
                if let Some(connection) = self.take_idle(member, want, work) {
                    return Found::Grant(Grant::Connection(connection));
                }
            }
        }
        Found::Nothing
    }

    /// What there is for a session that has waited so long: on the first member that has anything,
    /// an idle connection, or room to open one, or the place of an idle connection of another key.
    fn find(&mut self, pool: &Arc<Pool<S>>, want: &Want, waited: Duration, work: &mut Work<S>) -> Found<S> {
        let turns = (self.fit.candidates.len() > 1).then(|| self.turns.clone());
        let order = self.order(pool, want.client);
        let fit = Arc::clone(&self.fit);
        let listed = fit.candidates.iter().map(|(_, candidate)| candidate);
        let mut is_tried = true;
        // One of the two is empty, or the first has all of the second.
        let single = usize::from(order.is_empty());
        for candidate in order.iter().chain(listed.take(single)) {
            if want.tried.contains(&candidate.member) {
                continue;
            }
            is_tried = false;
            if let Some(connection) = self.take_idle(&candidate.member, want, work) {
                return Found::Grant(Grant::Connection(connection));
            }
            if let Some(permit) = self.open(pool, candidate, want, waited, work) {
                return Found::Grant(Grant::Open(permit));
            }
        }
        if let Some(turns) = turns {
            self.turns = turns;
        }
        if is_tried {
            Found::NoCandidate(Box::new(fit.refusal()))
        } else {
            Found::Nothing
        }
    }

    /// The places for a new connection to this member.
    fn open(
        &mut self,
        pool: &Arc<Pool<S>>,
        candidate: &Candidate,
        want: &Want,
        waited: Duration,
        work: &mut Work<S>,
    ) -> Option<OpenPermit<S>> {
        let most = self.limits.most_after(waited);
        let connects = self.limits.connects;
        let member = self.member_mut(&candidate.member);
        if member.opening >= connects || member.is_resting(Instant::now()) {
            return None;
        }
        // A server that was full takes one more most likely once one of these is closed.
        let mut oldest = match member.full {
            Some(_) => member.idle.take_oldest(Some(&want.key)),
            None => None,
        };
        if oldest.is_none() && member.total < most {
            if let Some(permit) = self.places(pool, candidate, &want.key) {
                return Some(permit);
            }
            work.seat_wanted = Some(candidate.member.clone());
        }
        if oldest.is_none() {
            let member = self.member_mut(&candidate.member);
            oldest = member.idle.take_oldest(Some(&want.key));
        }
        let oldest = oldest?;
        work.seat_wanted = None;
        Some(self.displace(*oldest, candidate, &want.key, work))
    }

    /// Places that nobody has.
    pub(super) fn places(
        &mut self,
        pool: &Arc<Pool<S>>,
        candidate: &Candidate,
        key: &Arc<ConnectionKey>,
    ) -> Option<OpenPermit<S>> {
        let config = pool.cluster().config();
        let occupancy = &pool.parts.occupancy;
        let seat = occupancy.reserve(&config.name, &candidate.member, config.max_connections)?;
        let member = self.member_mut(&candidate.member);
        member.total += 1;
        member.opening += 1;
        Some(OpenPermit {
            candidate: candidate.clone(),
            key: Arc::clone(key),
            seat: Some(seat),
            permit: Permit {
                pool: Arc::clone(pool),
                member: candidate.member.clone(),
                is_opening: true,
                pins: Pins::NONE,
                generation: member.generation,
            },
        })
    }

    /// The places of this connection, which is closed, for one of another key.
    fn displace(
        &mut self,
        connection: PooledConnection<S>,
        candidate: &Candidate,
        key: &Arc<ConnectionKey>,
        work: &mut Work<S>,
    ) -> OpenPermit<S> {
        let PooledConnection {
            link,
            key: old,
            seat,
            mut permit,
            ..
        } = connection;
        work.close_displaced(link);
        if let Some(displaced) = self.displacements.note(&old, key, Instant::now()) {
            work.warn(displaced);
        }
        permit.is_opening = true;
        let member = self.member_mut(&candidate.member);
        member.opening += 1;
        if permit.generation < member.generation {
            member.outdated = member.outdated.saturating_sub(1);
            permit.generation = member.generation;
        }
        OpenPermit {
            candidate: candidate.clone(),
            key: Arc::clone(key),
            seat: Some(seat),
            permit,
        }
    }

    /// Why a connection is not used again, if it is not.
    fn unusable(&self, connection: &PooledConnection<S>, now: Instant) -> Option<CloseReason> {
        let placement = &connection.link.placement;
        let member = self.member(&placement.member)?;
        let is_unfit = self.fit.standing(&placement.member) == Standing::Unfit
            || placement.verdict(&self.fit.snapshot) != SessionVerdict::Stay;
        if is_unfit {
            Some(CloseReason::Unfit)
        } else if connection.permit.generation < member.generation {
            Some(CloseReason::Reconnect)
        } else if connection.expires <= now {
            Some(CloseReason::Lifetime)
        } else {
            let waits = self.waiters.has_key(&connection.key);
            let most = self.limits.most + if waits { self.limits.reserve } else { 0 };
            (member.total > most).then_some(CloseReason::Excess)
        }
    }

    /// A connection came back.
    pub(super) fn release(
        &mut self,
        pool: &Arc<Pool<S>>,
        mut connection: Box<PooledConnection<S>>,
        work: &mut Work<S>,
    ) {
        self.refit(pool, work);
        let now = Instant::now();
        if std::mem::take(&mut connection.is_lent) {
            pool.meters
                .leased(now.saturating_duration_since(connection.since));
        }
        if let Some(reason) = self.unusable(&connection, now) {
            return work.close(reason, connection);
        }
        connection.since = now;
        let name = &connection.link.placement.member;
        let is_fit = self.fit.standing(name) == Standing::Fit;
        let next = self
            .waiters
            .next_for(&connection.key, connection.worker, name)
            .filter(|_| is_fit);
        let same_since = next.map(|(_, waiter)| waiter.since);
        let next = next.map(|(ticket, _)| ticket);
        if let Some(ticket) = self.other_key_first(&connection, same_since) {
            let fit = Arc::clone(&self.fit);
            let candidates = fit.candidates.iter().map(|(_, candidate)| candidate);
            let candidate = candidates.into_iter().find(|candidate| candidate.member == *name);
            if let Some((candidate, waiter)) = candidate.zip(self.waiters.remove(ticket)) {
                let permit = self.displace(*connection, candidate, &waiter.want.key, work);
                return work.grant(waiter, Grant::Open(permit));
            }
        } else if let Some(waiter) = next.and_then(|ticket| self.waiters.remove(ticket)) {
            return work.grant(waiter, Grant::Connection(connection));
        }
        if self.is_retired {
            return work.close(CloseReason::Retired, connection);
        }
        let member = self.member_mut(&connection.link.placement.member.clone());
        member.idle.push(connection);
        work.has_idle = true;
    }

    /// The session that has waited longest, if it gets the place of this connection although that
    /// has another key; `same_since`: since when the first session of the same key waits.
    fn other_key_first(
        &self,
        connection: &PooledConnection<S>,
        same_since: Option<Instant>,
    ) -> Option<Ticket> {
        let name = &connection.link.placement.member;
        let (ticket, first) = self.waiters.first()?;
        let member = self.member(name)?;
        let is_other = !Arc::ptr_eq(&first.want.key, &connection.key);
        let is_due = same_since.is_none_or(|since| first.since + OTHER_KEY < since);
        let can_open = member.opening < self.limits.connects
            && !member.is_resting(Instant::now())
            && first.takes(name)
            && self.fit.standing(name) == Standing::Fit;
        (is_other && is_due && can_open).then_some(ticket)
    }

    /// Serves those that wait, as far as there is anything for them.
    pub(super) fn pump(&mut self, pool: &Arc<Pool<S>>, work: &mut Work<S>) {
        if self.waiters.is_empty() {
            return;
        }
        self.refit(pool, work);
        let now = Instant::now();
        let mut next = self.waiters.first().map(|(ticket, _)| ticket);
        while let Some(ticket) = next {
            let Some((want, since)) = self.waiters.get(ticket).map(|one| (one.want.clone(), one.since))
            else {
                break;
            };
            next = self.waiters.after(ticket).map(|(ticket, _)| ticket);
            let result = match self.find(pool, &want, now.duration_since(since), work) {
                Found::Grant(grant) => Ok(grant),
                Found::NoCandidate(choice) => Err(NoLease::NoCandidate(choice)),
                // The ones behind it get no more, unless it refuses members that they take.
                Found::Nothing if want.tried.is_empty() => break,
                Found::Nothing => continue,
            };
            if let Some(waiter) = self.waiters.remove(ticket) {
                work.deliver(waiter, result);
            }
        }
        self.serve_idle(work);
    }

    /// Gives idle connections to sessions that wait behind one that has no use for them.
    fn serve_idle(&mut self, work: &mut Work<S>) {
        if self.waiters.is_empty() {
            return;
        }
        let Self {
            fit,
            members,
            waiters,
            ..
        } = self;
        for member in members.iter_mut().filter(|member| member.idle.len() > 0) {
            if fit.standing(&member.name) != Standing::Fit {
                continue;
            }
            loop {
                let next = member.idle.owners().find_map(|(key, worker)| {
                    let (ticket, _) = waiters.next_for(key, worker, &member.name)?;
                    Some((Arc::clone(key), worker, ticket))
                });
                let Some((key, worker, ticket)) = next else { break };
                let taken = member.idle.take(&key, worker).zip(waiters.remove(ticket));
                let Some((connection, waiter)) = taken else { break };
                work.grant(waiter, Grant::Connection(connection));
            }
        }
    }

    /// Lets those go that have waited too long.
    pub(super) fn expire(&mut self, now: Instant, work: &mut Work<S>) {
        while let Some(waiter) = self.waiters.take_expired(self.limits.queue_timeout, now) {
            let error = NoLease::Queue(QueueError::Timeout);
            work.deliver(waiter, Err(error));
        }
        if let Some(delay) = self.limits.wait_notify {
            work.notify(self.waiters.take_notices(delay, now));
        }
    }

    /// Closes idle connections that are too old, or have idled too long.
    pub(super) fn sweep(&mut self, now: Instant, work: &mut Work<S>) {
        let least = if self.keys.any_recipe().is_some() {
            self.limits.least
        } else {
            0
        };
        let (most, idle_timeout) = (self.limits.most, self.limits.idle_timeout);
        for member in &mut self.members {
            if self.is_retired {
                let all = member.idle.take_if(|_| true);
                work.close_all(CloseReason::Retired, all);
                continue;
            }
            let old = member.idle.take_if(|connection| connection.expires <= now);
            // Those that are taken still count until they are dropped.
            let mut total = member.total - old.len();
            work.close_all(CloseReason::Lifetime, old);
            while let Some(since) = member.idle.oldest() {
                let is_idle = idle_timeout.is_some_and(|timeout| since + timeout <= now);
                let reason = match (total > most, total > least && is_idle) {
                    (true, _) => CloseReason::Excess,
                    (false, true) => CloseReason::Idle,
                    (false, false) => break,
                };
                let Some(oldest) = member.idle.take_oldest(None) else {
                    break;
                };
                total -= 1;
                work.close(reason, oldest);
            }
        }
    }

    /// Places for the connections that are missing to `min_connections`.
    pub(super) fn spares(&mut self, pool: &Arc<Pool<S>>) -> Vec<(Arc<Recipe>, OpenPermit<S>)> {
        let mut spares = Vec::new();
        if self.limits.least == 0 || self.is_retired || !self.waiters.is_empty() {
            return spares;
        }
        let Some(recipe) = self.keys.any_recipe() else {
            return spares;
        };
        let fit = Arc::clone(&self.fit);
        let first = fit.candidates.iter().map(|(tier, _)| *tier).min();
        for (_, candidate) in fit.candidates.iter().filter(|(tier, _)| Some(*tier) == first) {
            let (least, connects) = (self.limits.least.min(self.limits.most), self.limits.connects);
            loop {
                let member = self.member_mut(&candidate.member);
                let rests = member.is_resting(Instant::now());
                if member.total >= least || member.opening >= connects || rests {
                    break;
                }
                let Some(permit) = self.places(pool, candidate, &recipe.key) else {
                    break;
                };
                spares.push((Arc::clone(&recipe), permit));
            }
        }
        spares
    }

    /// Nothing is left in it.
    pub(super) fn is_unused(&self) -> bool {
        self.waiters.is_empty() && self.members.iter().all(|member| member.total == 0)
    }
}
