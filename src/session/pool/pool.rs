//! One pool. Its lock is held for microseconds: nothing is awaited under it, and no connection is
//! dropped and no session woken.

use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

use super::acquire::{Acquire, Grant, Want};
use super::connection::{LoginParameters, PooledConnection};
use super::idle::Place;
use super::inner::Inner;
use super::key::{ConnectionKey, PoolName, Recipe};
use super::limits::Limits;
use super::members::{Fit, Member};
use super::metrics::{CloseReason, DiscardReason, Meters, RefusedReason};
use super::pools::{Parts, Spare};
use super::session::Home;
use super::shortage::Shortage;
use super::state::{Pins, Reported, Settings};
use super::statements::{self, Interner};
use super::view::{IdleConnectionView, PoolMemberView, PoolView};
use super::work::Work;
use crate::backend::ServerStream;
use crate::cluster::ClusterHandle;
use crate::cluster::snapshot::MemberName;
use crate::config::Route;
use crate::session::sample::{SampleDecision, Sampler};
use crate::session::stream::SessionStream;
use crate::wire::message::ErrorReply;
use crate::wire::text::Escaped;

/// A pool that gives statements no connection says so at most this often.
const REFUSALS_EVERY: Duration = Duration::from_secs(10);

/// Characters that are kept of a server's words.
const MOST_SAID: usize = 200;

/// Idle connections that are looked at under the lock at once: each takes a system call.
const LOOKS: usize = 64;

/// The connections of one route for one server user and one database, and the sessions that wait
/// for one. Shared by all workers.
pub(in crate::session) struct Pool<S: SessionStream = ServerStream> {
    name: PoolName,
    cluster: ClusterHandle,
    pub(super) parts: Arc<Parts<S>>,
    pub(super) meters: Meters,
    interner: Interner,
    /// Of prepared statements: how many, and how many bytes of them.
    statement_limits: [AtomicUsize; 2],
    /// A session has read the number of a sequence.
    reads_sequences: AtomicBool,
    /// Sessions in the queue.
    pub(super) waiting: AtomicUsize,
    /// Of the lines about statements that got no connection.
    refusals: Mutex<Sampler<()>>,
    roles_gone: Mutex<Sampler<()>>,
    unasked: Mutex<Sampler<()>>,
    unknown: Mutex<Sampler<()>>,
    inner: Mutex<Inner<S>>,
}

impl<S: SessionStream> fmt::Debug for Pool<S> {
    /// Connections hold their pool, so this is brief.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl<S: SessionStream> Pool<S> {
    /// `None`: the route has no pool.
    pub(super) fn new(
        name: PoolName,
        route: &Arc<Route>,
        cluster: &ClusterHandle,
        parts: &Arc<Parts<S>>,
    ) -> Option<Arc<Self>> {
        let limits = Limits::of(route, &name)?;
        let fit = Arc::new(Fit::new(cluster.snapshot(), Arc::clone(route)));
        let pool = Arc::new(Self {
            meters: parts.metrics.meters(&name.route),
            name,
            cluster: cluster.clone(),
            parts: Arc::clone(parts),
            interner: Interner::new(),
            statement_limits: Default::default(),
            reads_sequences: AtomicBool::new(false),
            waiting: AtomicUsize::new(0),
            refusals: Mutex::new(Sampler::new(1, REFUSALS_EVERY, 1)),
            roles_gone: Mutex::new(Sampler::new(1, REFUSALS_EVERY, 1)),
            unasked: Mutex::new(Sampler::new(1, REFUSALS_EVERY, 1)),
            unknown: Mutex::new(Sampler::new(10, REFUSALS_EVERY, 1)),
            inner: Mutex::new(Inner::new(Arc::clone(route), limits, fit)),
        });
        pool.limit_statements(route);
        Some(pool)
    }

    fn limit_statements(&self, route: &Route) {
        if let Some(config) = route.session_pool() {
            let limits = statements::Limits::of(config);
            self.statement_limits[0].store(limits.statements, Ordering::Relaxed);
            self.statement_limits[1].store(limits.bytes, Ordering::Relaxed);
        }
    }

    /// As the configuration has them now.
    pub(super) fn statement_limits(&self) -> statements::Limits {
        statements::Limits {
            statements: self.statement_limits[0].load(Ordering::Relaxed),
            bytes: self.statement_limits[1].load(Ordering::Relaxed),
        }
    }

    pub(in crate::session) fn name(&self) -> &PoolName {
        &self.name
    }

    /// The prepared statements of its sessions.
    pub(super) fn interner(&self) -> &Interner {
        &self.interner
    }

    /// A session of the pool has called `currval` or `lastval`: from now on connections forget the
    /// numbers of sequences from one session to the next.
    pub(super) fn sequence_is_read(&self) {
        if !self.reads_sequences() {
            self.reads_sequences.store(true, Ordering::Relaxed);
        }
    }

    /// Whether a session has.
    pub(super) fn reads_sequences(&self) -> bool {
        self.reads_sequences.load(Ordering::Relaxed)
    }

    pub(in crate::session) fn cluster(&self) -> &ClusterHandle {
        &self.cluster
    }

    /// The one value of this key in this pool: connections are found by its address.
    pub(in crate::session) fn intern(&self, key: ConnectionKey) -> Arc<ConnectionKey> {
        self.lock().keys.intern(key)
    }

    /// The one value of this recipe, with the pool's own value of its key. Sessions hold it: as
    /// long as one does, the pool can keep `min_connections` ready.
    pub(in crate::session) fn recipe(&self, recipe: Recipe) -> Arc<Recipe> {
        self.lock().keys.recipe(recipe)
    }

    /// The one value of this for all sessions with this recipe on this worker, while one of them
    /// lives and the route is the same.
    pub(super) fn home(&self, home: Home<S>) -> Arc<Home<S>> {
        self.lock().keys.home(home)
    }

    /// A connection without waiting: an idle one of the key on the member that routing prefers now,
    /// if no session of the key waits. `client` is the client's address, whatever `want` says. To
    /// be called on the worker of `want`.
    pub(in crate::session) fn try_lease(
        self: &Arc<Self>,
        want: &Want,
        client: Option<IpAddr>,
    ) -> Option<Box<PooledConnection<S>>> {
        loop {
            let leased = self.with(|inner, work| inner.lease(self, want, client, work))?;
            if let Ok(leased) = self.make_ready(leased, want) {
                self.meters.hit();
                return Some(leased);
            }
        }
    }

    /// Waits, in order, for an idle connection of the key or for room to open one. To be polled on
    /// the worker of `want`.
    pub(in crate::session) fn acquire(self: &Arc<Self>, want: Want) -> Acquire<S> {
        Acquire::new(Arc::clone(self), want)
    }

    /// Gives back a connection that is at a boundary and has nothing of its session left: to the
    /// next session, or to wait for one. Closes it if it is not to be used again.
    pub(in crate::session) fn release(self: &Arc<Self>, connection: Box<PooledConnection<S>>) {
        self.with(|inner, work| inner.release(self, connection, work));
    }

    /// What a connection of this key reported at its login, while one lives; of several, what the
    /// last one reported.
    pub(in crate::session) fn login_parameters(&self, key: &Arc<ConnectionKey>) -> Option<LoginParameters> {
        self.lock().keys.login_parameters(key)
    }

    /// A session of this key begins; what it has in common with the one before is in memory once.
    pub(super) fn share(&self, key: &Arc<ConnectionKey>, told: &mut Reported, settings: &mut Settings) {
        self.lock().keys.share(key, told, settings);
    }

    /// The numbers at this moment.
    pub(in crate::session) fn view(&self) -> PoolView {
        self.seen(false)
    }

    /// The same, with each idle connection.
    pub(in crate::session) fn view_with_idle(&self) -> PoolView {
        self.seen(true)
    }

    fn seen(&self, lists_idle: bool) -> PoolView {
        let now = Instant::now();
        let inner = self.lock();
        let members = inner.members.iter().filter(|member| member.total > 0);
        let first = inner.waiters.first();
        let max_connections = if inner.limits.is_tracking {
            let of_cluster = self.cluster.config().max_connections as usize;
            Some(of_cluster).filter(|most| *most > 0)
        } else {
            Some(inner.limits.most)
        };
        PoolView {
            members: members.map(|member| view(member, now, lists_idle)).collect(),
            max_connections,
            reserve: inner.limits.reserve,
            waiting: inner.waiters.len(),
            longest_wait: first.map_or(Duration::ZERO, |(_, first)| now.duration_since(first.since)),
            last_refused: inner.last_refused.map(|at| now.duration_since(at)),
            name: self.name.clone(),
        }
    }

    /// A session gets no connection: it has waited too long, or too many wait.
    pub(super) fn has_refused(&self) {
        self.lock().last_refused = Some(Instant::now());
    }

    /// The server has refused a connection because it has no free one. Returns whether the pool has
    /// others there, for which the session can wait.
    pub(super) fn server_is_full(&self, member: &MemberName, said: &str) -> bool {
        let said: String = said.chars().take(MOST_SAID).collect();
        let (has_any, is_to_log) = {
            let mut inner = self.lock();
            let known = inner.member_mut(member);
            let is_to_log = known.set_full(&said, Instant::now());
            (known.has_any(), is_to_log)
        };
        if is_to_log {
            warn!(
                route = %self.name.route,
                user = %Escaped(&self.name.user),
                database = %Escaped(&self.name.database),
                %member,
                reason = ?said,
                "the server takes no more connections: sessions wait for those that the pool has there"
            );
        }
        has_any
    }

    /// The limit that keeps a session from a connection now.
    pub(super) fn shortage(&self) -> Shortage {
        self.lock().shortage(self)
    }

    /// A connection's role is gone, and with it that of the connections that exist now.
    pub(super) fn role_gone(self: &Arc<Self>, member: &MemberName) {
        let connections = self.reconnect(None);
        if let Some(skipped) = admitted(&self.roles_gone) {
            warn!(
                route = %self.name.route,
                user = %Escaped(&self.name.user),
                database = %Escaped(&self.name.database),
                %member,
                connections,
                skipped,
                "the role of a pool's connections was dropped: they are replaced"
            );
        }
    }

    /// A server has said this on a connection, on which its session had asked for nothing.
    pub(super) fn out_of_use(&self, member: &MemberName, what: &str) {
        if let Some(skipped) = admitted(&self.unasked) {
            warn!(
                route = %self.name.route,
                user = %Escaped(&self.name.user),
                database = %Escaped(&self.name.database),
                %member,
                skipped,
                "a server connection was replaced: the server sent {what}"
            );
        }
    }

    /// A server connection was lost with something under way that may have taken effect.
    pub(super) fn outcome_unknown(&self, session: u64, member: &MemberName, reason: &str) {
        if let Some(skipped) = admitted(&self.unknown) {
            warn!(
                route = %self.name.route,
                user = %Escaped(&self.name.user),
                session,
                %member,
                reason,
                skipped,
                "a server connection was lost: outcome unknown"
            );
        }
    }

    /// A statement got no connection, and this answer.
    pub(super) fn refused(&self, reason: RefusedReason, reply: &ErrorReply) {
        self.meters.statement_refused(reason);
        if let Some(suppressed) = admitted(&self.refusals) {
            warn!(
                route = %self.name.route,
                user = %Escaped(&self.name.user),
                database = %Escaped(&self.name.database),
                // As a quoted string: parts of it may come from a server.
                reason = ?reply.message.chars().take(1000).collect::<String>(),
                hint = reply.hint.as_deref(),
                skipped = suppressed,
                "no server connection for a statement: the client got an error"
            );
        }
    }

    /// For people: how many connections are pinned now, and by what; empty if none is.
    pub(super) fn pinned_in_words(&self) -> String {
        let (pinned, total) = {
            let inner = self.lock();
            let total: usize = inner.members.iter().map(|member| member.total).sum();
            (inner.all_pinned(), total)
        };
        match pinned.connections {
            0 => String::new(),
            count => format!(" {count} of its {total} connections are pinned to their sessions ({pinned})."),
        }
    }

    /// The session of a connection to this member keeps it for other reasons than before.
    pub(super) fn pinned(&self, member: &MemberName, before: Pins, after: Pins) {
        let (said, most) = {
            let mut inner = self.lock();
            (inner.pinned(member, before, after), inner.limits.most)
        };
        for reason in after.iter().filter(|reason| !before.contains(*reason)) {
            self.meters.pinned(reason);
        }
        if let Some(pinned) = said {
            warn!(
                route = %self.name.route,
                user = %Escaped(&self.name.user),
                database = %Escaped(&self.name.database),
                %member,
                pinned = pinned.connections,
                max_connections = most,
                reasons = %pinned,
                "half of a pool's connections or more are pinned to their sessions, and serve no others"
            );
        }
    }

    /// The last look before a session gets it, on the session's worker: it must be quiet, and the
    /// worker takes it over if it can.
    ///
    /// # Errors
    /// It cannot be used. Its places are free when it is dropped.
    pub(super) fn make_ready(
        &self,
        mut connection: Box<PooledConnection<S>>,
        want: &Want,
    ) -> Result<Box<PooledConnection<S>>, Box<PooledConnection<S>>> {
        if want.is_foreign(&connection) {
            self.meters.discarded(DiscardReason::CustomSettings);
            return Err(connection);
        }
        if !connection.is_quiet() {
            self.meters.closed(CloseReason::Unquiet);
            return Err(connection);
        }
        if connection.worker != want.worker {
            match (self.parts.rehome)(&mut connection.link.stream) {
                Ok(true) => connection.worker = want.worker,
                Ok(false) => {}
                Err(_) => {
                    self.meters.closed(CloseReason::NotMoved);
                    return Err(connection);
                }
            }
        }
        connection.leases += 1;
        Ok(connection)
    }

    /// Takes back what a session was granted and did not see.
    pub(super) fn give_back(self: &Arc<Self>, grant: Grant<S>) {
        match grant {
            Grant::Connection(connection) => self.release(connection),
            Grant::Open(permit) => drop(permit),
        }
    }

    /// Changes something under the lock, then does what follows from it.
    pub(super) fn with<R>(self: &Arc<Self>, change: impl FnOnce(&mut Inner<S>, &mut Work<S>) -> R) -> R {
        let mut work = Work::default();
        let result = self.change(&mut work, change);
        if work.finish(self) {
            self.pump();
        }
        result
    }

    /// Serves those that wait, as long as other pools make room.
    pub(super) fn pump(self: &Arc<Self>) {
        loop {
            let mut work = Work::default();
            self.change(&mut work, |inner, work| inner.pump(self, work));
            if !work.finish(self) {
                return;
            }
        }
    }

    /// As [`Self::with`], without what follows.
    pub(super) fn change<R>(
        &self,
        work: &mut Work<S>,
        change: impl FnOnce(&mut Inner<S>, &mut Work<S>) -> R,
    ) -> R {
        let mut inner = self.lock();
        let result = change(&mut inner, work);
        let waiting = inner.waiters.len();
        let before = self.waiting.swap(waiting, Ordering::AcqRel);
        self.parts.signals.waiting(before, waiting);
        result
    }

    fn lock(&self) -> MutexGuard<'_, Inner<S>> {
        // A panic leaves a count wrong by one at most; that is no reason to end every session.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `Some`: this one is logged, with the number of those left out before it.
fn admitted(sampler: &Mutex<Sampler<()>>) -> Option<u64> {
    let mut sampler = sampler.lock().unwrap_or_else(PoisonError::into_inner);
    match sampler.observe((), Instant::now()) {
        SampleDecision::Log { suppressed } => Some(suppressed),
        SampleDecision::Suppress => None,
    }
}

/// For the keeper.
impl<S: SessionStream> Pool<S> {
    /// Time has passed, or there is a new snapshot.
    pub(super) fn tick(self: &Arc<Self>, now: Instant) {
        self.with(|inner, work| {
            inner.expire(now, work);
            inner.refit(self, work);
            inner.sweep(now, work);
            inner.pump(self, work);
            for (recipe, permit) in inner.spares(self) {
                work.open_spare(Spare { recipe, permit });
            }
        });
    }

    /// Closes the idle connections that have ended, or on which something came unasked.
    pub(super) fn close_unquiet(self: &Arc<Self>) {
        let (mut index, mut place) = (0, Place::default());
        loop {
            let next = self.with(|inner, work| {
                let member = inner.members.get_mut(index)?;
                let mut unquiet = Vec::new();
                let next = member.idle.take_unquiet(place, LOOKS, &mut unquiet);
                work.close_all(CloseReason::Unquiet, unquiet);
                Some(next)
            });
            match next {
                Some(Some(next)) => place = next,
                Some(None) => (index, place) = (index + 1, Place::default()),
                None => return,
            }
        }
    }

    /// The route as it is after a reload; `None`: it is gone, or has no pool.
    pub(super) fn reconfigure(self: &Arc<Self>, route: Option<&Arc<Route>>) {
        self.with(|inner, work| {
            let limits = route.and_then(|route| Some((route, Limits::of(route, &self.name)?)));
            inner.is_retired = limits.is_none() || self.parts.is_retired.load(Ordering::Acquire);
            if let Some((route, limits)) = limits {
                self.limit_statements(route);
                inner.route = Arc::clone(route);
                inner.limits = limits;
            }
            inner.sweep(Instant::now(), work);
            inner.pump(self, work);
        });
    }

    /// A login uses the pool with this route: it may be newer than the one that the pool knows.
    pub(super) fn use_route(self: &Arc<Self>, route: &Arc<Route>) {
        if !Arc::ptr_eq(&self.lock().route, route) {
            self.reconfigure(Some(route));
        }
    }

    /// Connections to this member (`None`: to all) that exist now are not used again.
    pub(super) fn reconnect(self: &Arc<Self>, member: Option<&MemberName>) -> usize {
        self.with(|inner, work| {
            let members = inner.members.iter_mut();
            let mut count = 0;
            for member in members.filter(|known| member.is_none_or(|name| known.name == *name)) {
                member.generation += 1;
                member.outdated = member.total;
                count += member.total;
                work.close_all(CloseReason::Reconnect, member.idle.take_if(|_| true));
            }
            count
        })
    }

    /// Closes the idle connections to this member (`None`: to all).
    pub(super) fn close_idle(self: &Arc<Self>, member: Option<&MemberName>, reason: CloseReason) {
        self.with(|inner, work| {
            let members = inner.members.iter_mut();
            for member in members.filter(|known| member.is_none_or(|name| known.name == *name)) {
                work.close_all(reason, member.idle.take_if(|_| true));
            }
        });
    }

    pub(super) fn idle_on(&self, member: &MemberName) -> usize {
        self.lock().member(member).map_or(0, |known| known.idle.len())
    }

    /// Since when the longest idle connection to this member is idle.
    pub(super) fn oldest_idle(&self, member: &MemberName) -> Option<Instant> {
        self.lock().member(member)?.idle.oldest()
    }

    /// Closes the longest idle connection to this member; `false`: there is none.
    pub(super) fn evict(self: &Arc<Self>, member: &MemberName) -> bool {
        self.with(|inner, work| {
            let oldest = inner.member_mut(member).idle.take_oldest(None);
            let is_found = oldest.is_some();
            work.close_all(CloseReason::Evicted, oldest.into_iter().collect());
            is_found
        })
    }

    /// A session of this pool has no place under `server.max_connections`. Returns whether an idle
    /// connection was closed for it; otherwise the keeper tries again.
    pub(super) fn make_room(&self, member: &MemberName) -> bool {
        let pools = self.parts.pools.upgrade();
        let is_made = pools.is_some_and(|pools| pools.evict_oldest_idle_on(&self.name.cluster, member));
        if !is_made {
            self.parts.signals.want_seat();
        }
        is_made
    }

    pub(super) fn is_unused(&self) -> bool {
        self.lock().is_unused()
    }
}

fn view<S: SessionStream>(member: &Member<S>, now: Instant, lists_idle: bool) -> PoolMemberView {
    let listed = member.idle.iter().take(if lists_idle { usize::MAX } else { 0 });
    let idle = listed.map(|connection| IdleConnectionView {
        process_id: connection.link.placement.process_id,
        idle: now.duration_since(connection.since),
        leases: connection.leases,
    });
    PoolMemberView {
        idle_connections: idle.collect(),
        member: member.name.clone(),
        idle: member.idle.len(),
        leased: member.busy() - member.opening,
        opening: member.opening,
        outdated: member.outdated,
        pinned: member.pinned,
    }
}
