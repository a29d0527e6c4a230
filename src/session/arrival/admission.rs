//! Limits at the door: connections that have not logged in yet, and sessions at once.
//!
//! Where all places for logins are taken, or all that one source may have, a connection takes a place of a reserve until
//! it has said what it wants: cancel requests are served then, and only logins are turned away.

use std::collections::HashMap;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::super::listener_settings::ListenerSettings;
use super::quota::Share;
use crate::auth::login_throttle::network;
use crate::wire::message::ErrorReply;
use crate::wire::sqlstate::SqlState;

/// How long new connections wait while too many are logging in, before they are refused: in the kernel's queue where
/// all places are taken, with us where only those of their source are.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// Places in the reserve, at least: enough that some are for others than the one who uses them up.
const LEAST_RESERVE: u32 = 8;
/// Connections that may wait for a place, at least.
const LEAST_QUEUE: u32 = 1024;

/// Cancel requests whose session may be elsewhere, at the same time: as many as there may be sessions, and these where
/// that is fewer or no limit. One source may have half.
const LEAST_CANCELS: u32 = 1024;
const UNLIMITED_CANCELS: u32 = 16_384;

/// Of the places for logins that wait after failed ones, one address may have as many.
const WAITING_PER_SOURCE: u32 = 8;

/// Counts who is inside.
#[derive(Debug)]
pub struct Admission {
    max_clients: AtomicU32,
    clients: Arc<AtomicU32>,
    pending: Arc<Places>,
    reserve: Arc<Places>,
    queued: Arc<Places>,
    waiting: Arc<Places>,
    /// Cancel requests whose session may be elsewhere: with a key that anybody can make up, and with one that bears a
    /// router's seal, so that who was given it does not wait behind those who make keys up.
    cancels: [Arc<Places>; 2],
    /// Since when there has been no room for another login.
    full_since: Mutex<Option<Instant>>,
}

/// A place that is given back when dropped.
#[derive(Debug)]
struct AdmissionPermit(Arc<AtomicU32>);

impl Drop for AdmissionPermit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Places for connections that are not known yet, bounded in all and per source, so that no address can have all of
/// them: an IPv4 address, an IPv6 /64, or (`None`) every Unix socket together.
#[derive(Debug)]
struct Places {
    most: AtomicU32,
    most_per_source: AtomicU32,
    taken: Mutex<Taken>,
    /// Wakes accept loops that wait for a place.
    freed: Notify,
}

#[derive(Debug, Default)]
struct Taken {
    total: u32,
    by_source: HashMap<Source, u32>,
    /// The sources that connections wait for, while they do.
    waiting: HashMap<Source, WaitingSource>,
}

/// Connections of one source that wait for a place.
#[derive(Debug, Default)]
struct WaitingSource {
    connections: u32,
    freed: Arc<Notify>,
}

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    Total,
    /// This source has as many as one may have.
    Source,
}

impl Places {
    fn new(most: u32, most_per_source: u32) -> Arc<Self> {
        Arc::new(Self {
            most: AtomicU32::new(most),
            most_per_source: AtomicU32::new(most_per_source),
            taken: Mutex::default(),
            freed: Notify::new(),
        })
    }

    fn resize(&self, most: u32, most_per_source: u32) {
        self.most.store(most, Ordering::Release);
        self.most_per_source.store(most_per_source, Ordering::Release);
        self.freed.notify_waiters();
        for source in self.taken().waiting.values() {
            source.freed.notify_waiters();
        }
    }

    /// Waits for a place of this source; `wait` is woken when there may be one.
    fn wait_for(self: &Arc<Self>, source: Source) -> PlaceWait {
        let mut taken = self.taken();
        let waiting = taken.waiting.entry(source).or_default();
        waiting.connections += 1;
        PlaceWait {
            freed: Arc::clone(&waiting.freed),
            places: Arc::clone(self),
            source,
        }
    }

    /// Wakes one connection that can have a place now: of this source if there is one, since its own place has become
    /// free, else of any that has fewer than it may.
    fn wake_one(&self, mut taken: MutexGuard<'_, Taken>, first: Source) {
        if taken.total >= self.most.load(Ordering::Acquire) {
            return;
        }
        let most = self.most_per_source.load(Ordering::Acquire);
        let Taken {
            by_source, waiting, ..
        } = &mut *taken;
        let has_room = |source: &Source| {
            *source == Source::Unsaid || by_source.get(source).is_none_or(|taken| *taken < most)
        };
        let next = match waiting.get(&first).filter(|_| has_room(&first)) {
            Some(next) => Some(next),
            None => waiting
                .iter()
                .find(|(source, _)| has_room(source))
                .map(|(_, next)| next),
        };
        let freed = next.map(|next| Arc::clone(&next.freed));
        drop(taken);
        if let Some(freed) = freed {
            freed.notify_one();
        }
    }

    fn is_full(&self) -> bool {
        self.taken().total >= self.most.load(Ordering::Acquire)
    }

    fn take(self: &Arc<Self>, source: Option<IpAddr>) -> Result<AdmissionPlace, Full> {
        self.take_for(Source::Network(source.map(network)))
    }

    fn take_for(self: &Arc<Self>, source: Source) -> Result<AdmissionPlace, Full> {
        let mut taken = self.taken();
        if taken.total >= self.most.load(Ordering::Acquire) {
            return Err(Full::Total);
        }
        taken.count(source, self.most_per_source.load(Ordering::Acquire))?;
        taken.total += 1;
        Ok(AdmissionPlace {
            places: Arc::clone(self),
            source,
        })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection that waits for a place; it stops when this is dropped, and a wake-up that it has not used goes to another.
#[derive(Debug)]
struct PlaceWait {
    places: Arc<Places>,
    source: Source,
    freed: Arc<Notify>,
}

impl PlaceWait {
    /// A place, as soon as there is one. Cancel safe.
    async fn place(&self) -> AdmissionPlace {
        loop {
            let mut freed = pin!(self.freed.notified());
            // Before the attempt, so that no place that becomes free after it is missed.
            freed.as_mut().enable();
            if let Ok(place) = self.places.take_for(self.source) {
                return place;
            }
            freed.await;
        }
    }
}

impl Drop for PlaceWait {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        if let Some(waiting) = taken.waiting.get_mut(&self.source) {
            waiting.connections -= 1;
            if waiting.connections == 0 {
                taken.waiting.remove(&self.source);
            }
        }
        self.places.wake_one(taken, self.source);
    }
}

/// A place among the connections that are logging in, or that wait for it; given back when dropped.
#[derive(Debug)]
pub struct AdmissionPlace {
    places: Arc<Places>,
    source: Source,
}

/// How far a connection may go that has not logged in.
#[derive(Debug)]
pub enum ArrivalPlace {
    Login(AdmissionPlace),
    /// As far as its first packet: a cancel request is served, a login needs another place.
    Reserve(AdmissionPlace),
}

/// A login's place among the pending ones.
#[derive(Debug)]
pub(in crate::session) enum LoginPlace {
    Held(#[allow(dead_code, reason = "held until it is dropped")] AdmissionPlace),
    /// Given up for as long as the login waits after failed ones.
    GivenUp,
}

/// Whom a place counts for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Source {
    Network(Option<IpAddr>),
    /// A balancer has not said yet for whom it connects.
    Unsaid,
}

impl Taken {
    /// There are as many entries as places are taken, at most.
    fn count(&mut self, source: Source, most: u32) -> Result<(), Full> {
        let of_source = self.by_source.entry(source).or_default();
        if *of_source >= most && source != Source::Unsaid {
            return Err(Full::Source);
        }
        *of_source += 1;
        Ok(())
    }

    fn forget(&mut self, source: Source) {
        if let Some(of_source) = self.by_source.get_mut(&source) {
            *of_source -= 1;
            if *of_source == 0 {
                self.by_source.remove(&source);
            }
        }
    }
}

impl AdmissionPlace {
    /// A balancer has said for whom it connects: counts the place for that source.
    pub fn attribute(&mut self, source: Option<IpAddr>) -> Result<(), Full> {
        let source = Source::Network(source.map(network));
        let mut taken = self.places.taken();
        taken.count(source, self.places.most_per_source.load(Ordering::Acquire))?;
        taken.forget(self.source);
        self.source = source;
        Ok(())
    }
}

impl Drop for AdmissionPlace {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        taken.total -= 1;
        taken.forget(self.source);
        self.places.wake_one(taken, self.source);
        self.places.freed.notify_waiters();
    }
}

/// A place among the sessions, of the whole and of the listener.
#[derive(Debug)]
pub struct Admitted {
    _total: AdmissionPermit,
    _listener: AdmissionPermit,
    share: Option<Arc<Share>>,
}

impl Admitted {
    /// Holds it for as long.
    pub(in crate::session) fn keep(&mut self, share: Arc<Share>) {
        self.share = Some(share);
    }

    /// The client is gone, and not all that it had.
    pub(in crate::session) fn into_share(self) -> Option<Arc<Share>> {
        self.share
    }
}

/// Whether there is room for one more login.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    Yes,
    /// Leave the connection where it is for now.
    Wait,
    /// There has been none for too long: say so.
    Refuse,
}

/// The places that one source may have, of so many.
fn half(places: u32) -> u32 {
    (places / 2).max(1)
}

/// Connections whose first packet is awaited, beside so many that log in.
fn reserve(max_pending: u32) -> u32 {
    max_pending.max(LEAST_RESERVE)
}

/// Connections that wait for one of these places.
fn queue(max_pending: u32) -> u32 {
    max_pending.saturating_mul(4).max(LEAST_QUEUE)
}

fn cancels(max_clients: u32) -> u32 {
    match max_clients {
        0 => UNLIMITED_CANCELS,
        most => most.max(LEAST_CANCELS),
    }
}

fn take(counter: &Arc<AtomicU32>, limit: u32) -> Option<AdmissionPermit> {
    let limit = if limit == 0 { u32::MAX } else { limit };
    let taken = counter.fetch_update(Ordering::AcqRel, Ordering::Acquire, |count| {
        (count < limit).then(|| count + 1)
    });
    taken.ok().map(|_| AdmissionPermit(Arc::clone(counter)))
}

impl Admission {
    pub fn new(max_clients: u32, max_pending: u32) -> Self {
        Self {
            max_clients: AtomicU32::new(max_clients),
            clients: Arc::default(),
            pending: Places::new(max_pending, half(max_pending)),
            reserve: Places::new(reserve(max_pending), half(reserve(max_pending))),
            queued: Places::new(queue(max_pending), half(queue(max_pending))),
            waiting: Places::new(max_pending, WAITING_PER_SOURCE),
            cancels: [(); 2].map(|()| Places::new(cancels(max_clients), half(cancels(max_clients)))),
            full_since: Mutex::default(),
        }
    }

    /// Other bounds for who comes from now on; nobody who is inside has to leave.
    pub fn resize(&self, max_clients: u32, max_pending: u32) {
        self.max_clients.store(max_clients, Ordering::Release);
        self.pending.resize(max_pending, half(max_pending));
        self.reserve
            .resize(reserve(max_pending), half(reserve(max_pending)));
        self.queued.resize(queue(max_pending), half(queue(max_pending)));
        self.waiting.resize(max_pending, WAITING_PER_SOURCE);
        for places in &self.cancels {
            places.resize(cancels(max_clients), half(cancels(max_clients)));
        }
    }

    /// A place for a cancel request whose session may be elsewhere. One source may have half of them.
    pub(in crate::session) fn cancel(
        &self,
        source: Option<IpAddr>,
        has_seal: bool,
    ) -> Result<AdmissionPlace, Full> {
        self.cancels[usize::from(has_seal)].take(source)
    }

    /// Whether another connection may say what it wants: there is a place for it, or a place in the reserve.
    pub fn may_speak(&self) -> bool {
        !self.pending.is_full() || !self.reserve.is_full()
    }

    /// Until another connection can be taken: there is a place for its login or in the reserve, where it may turn out to
    /// be a cancel request; or there has been none for [`PATIENCE`], and it is to be refused. Cancel safe.
    pub async fn until_room(&self) {
        loop {
            let (mut login, mut reserve) = (
                pin!(self.pending.freed.notified()),
                pin!(self.reserve.freed.notified()),
            );
            // From here on no place that becomes free is missed.
            login.as_mut().enable();
            reserve.as_mut().enable();
            let now = Instant::now();
            if self.room(now) != Room::Wait || self.may_speak() {
                return;
            }
            let since = *self.full_since.lock().unwrap_or_else(PoisonError::into_inner);
            tokio::select! {
                () = login => {}
                () = reserve => {}
                () = sleep_until(since.unwrap_or(now) + PATIENCE) => {}
            }
        }
    }

    /// A burst waits in the kernel's queue, which costs nobody anything; a siege is told to go.
    pub fn room(&self, now: Instant) -> Room {
        let mut full_since = self.full_since.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.pending.is_full() {
            *full_since = None;
            return Room::Yes;
        }
        let since = *full_since.get_or_insert(now);
        if now.duration_since(since) < PATIENCE {
            Room::Wait
        } else {
            Room::Refuse
        }
    }

    /// When a login that finds no place is to be refused: `until`, or earlier where there has been no room for too long.
    fn refuses_at(&self, until: Instant) -> Instant {
        let full_since = *self.full_since.lock().unwrap_or_else(PoisonError::into_inner);
        match full_since.filter(|_| self.pending.is_full()) {
            Some(since) => until.min(since + PATIENCE),
            None => until,
        }
    }

    /// Waits for a place for a login, until then at most.
    pub(in crate::session) async fn pending_until(
        &self,
        source: Option<IpAddr>,
        until: Instant,
    ) -> Result<AdmissionPlace, Full> {
        let full = match self.pending(source) {
            Ok(place) => return Ok(place),
            Err(full) => full,
        };
        let wait = self.pending.wait_for(Source::Network(source.map(network)));
        timeout_at(until, wait.place()).await.map_err(|_elapsed| full)
    }

    /// As [`Self::pending_until`]; refused earlier where there has been no room for another login for [`PATIENCE`].
    pub(in crate::session) async fn pending_in_time(
        &self,
        source: Option<IpAddr>,
        until: Instant,
    ) -> Result<AdmissionPlace, Full> {
        loop {
            // Notes since when there has been no room.
            let is_refused = self.room(Instant::now()) == Room::Refuse;
            let now = Instant::now();
            let at = if is_refused { now } else { self.refuses_at(until) };
            match self.pending_until(source, at).await {
                Err(_) if self.refuses_at(until) > Instant::now() => {}
                outcome => return outcome,
            }
        }
    }

    /// Waits for a place to log in, or to say what it wants, until then at most.
    pub(in crate::session) async fn place_until(
        &self,
        source: Option<IpAddr>,
        until: Instant,
    ) -> Result<ArrivalPlace, Full> {
        let full = match self.place(source) {
            Ok(place) => return Ok(place),
            Err(full) => full,
        };
        let source = Source::Network(source.map(network));
        let (login, reserve) = (self.pending.wait_for(source), self.reserve.wait_for(source));
        let either = async {
            tokio::select! {
                biased;
                place = login.place() => ArrivalPlace::Login(place),
                place = reserve.place() => ArrivalPlace::Reserve(place),
            }
        };
        timeout_at(until, either).await.map_err(|_elapsed| full)
    }

    /// A place for a login. One source may have half of them, and at least one.
    pub fn pending(&self, source: Option<IpAddr>) -> Result<AdmissionPlace, Full> {
        self.pending.take(source)
    }

    /// A place for a connection from a balancer that is trusted to say for whom it is; count it for that source then.
    pub fn pending_unsaid(&self) -> Result<AdmissionPlace, Full> {
        self.pending.take_for(Source::Unsaid)
    }

    /// A place for a connection that was just accepted.
    pub fn place(&self, source: Option<IpAddr>) -> Result<ArrivalPlace, Full> {
        match self.pending(source) {
            Ok(pending) => Ok(ArrivalPlace::Login(pending)),
            Err(full) => self.in_reserve(source).ok_or(full),
        }
    }

    /// As [`Self::place`], for a connection from a balancer that is trusted to say for whom it is.
    pub fn place_unsaid(&self) -> Result<ArrivalPlace, Full> {
        match self.pending_unsaid() {
            Ok(pending) => Ok(ArrivalPlace::Login(pending)),
            Err(full) => self
                .reserve
                .take_for(Source::Unsaid)
                .map(ArrivalPlace::Reserve)
                .map_err(|_| full),
        }
    }

    /// A place in the reserve. One source may have half of them.
    pub fn in_reserve(&self, source: Option<IpAddr>) -> Option<ArrivalPlace> {
        self.reserve.take(source).map(ArrivalPlace::Reserve).ok()
    }

    /// A place for a connection that waits until it may log in, or say what it wants: for [`PATIENCE`] at most, since a
    /// burst through a balancer or an address translator looks like a siege by one address.
    pub fn queued(&self, source: Option<IpAddr>) -> Result<AdmissionPlace, Full> {
        self.queued.take(source)
    }

    /// A place for a login that has to wait, as many as there are for those that have not: of these it holds none.
    pub fn waiting(&self, source: Option<IpAddr>) -> Result<AdmissionPlace, Full> {
        self.waiting.take(source)
    }

    /// Whether there is a place for one more session: said before the client is authenticated, so that it is not asked
    /// for a password in vain. No place is taken by who has not shown one.
    pub fn ask(&self, listener: &ListenerSettings) -> Result<(), ErrorReply> {
        self.admit(listener).map(drop)
    }

    /// A place for a session of an authenticated client.
    pub fn admit(&self, listener: &ListenerSettings) -> Result<Admitted, ErrorReply> {
        let refusal = |hint: &str| {
            ErrorReply::fatal(SqlState::TOO_MANY_CONNECTIONS, "sorry, too many clients already").hint(hint)
        };
        let total = take(&self.clients, self.max_clients.load(Ordering::Acquire))
            .ok_or_else(|| refusal("The connection manager's limits.max_clients is reached."))?;
        let listener = take(&listener.clients, listener.max_clients)
            .ok_or_else(|| refusal("The max_clients of this port of the connection manager is reached."))?;
        Ok(Admitted {
            _total: total,
            _listener: listener,
            share: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_waits_and_a_siege_is_refused() {
        let admission = Admission::new(0, 2);
        let source = |last| Some(IpAddr::from([10, 0, 0, last]));
        let first = admission.pending(source(1)).expect("room");
        let _second = admission.pending(source(2)).expect("room");
        assert_eq!(admission.pending(source(3)).err(), Some(Full::Total));
        assert_eq!(admission.room(Instant::now()), Room::Wait);
        tokio::time::advance(PATIENCE).await;
        assert_eq!(admission.room(Instant::now()), Room::Refuse);
        drop(first);
        assert_eq!(admission.room(Instant::now()), Room::Yes);
        assert!(admission.pending(source(3)).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_room_is_woken_by_a_place_and_by_the_end_of_patience() {
        let admission = Arc::new(Admission::new(0, 1));
        let source = |last| Some(IpAddr::from([10, 0, 0, last]));
        let login = admission.pending(source(0)).expect("room");
        let mut reserve: Vec<_> = (1..=8)
            .map(|last| admission.in_reserve(source(last)).expect("room"))
            .collect();
        let waiting = || {
            let admission = Arc::clone(&admission);
            let began = Instant::now();
            tokio::spawn(async move {
                admission.until_room().await;
                began.elapsed()
            })
        };
        let two = [waiting(), waiting()];
        tokio::time::sleep(PATIENCE / 4).await;
        reserve.pop();
        for waited in two {
            assert_eq!(waited.await.expect("no panic"), PATIENCE / 4);
        }
        reserve.push(admission.in_reserve(source(9)).expect("room"));
        assert_eq!(waiting().await.expect("no panic"), PATIENCE * 3 / 4);
        drop(login);
        assert_eq!(waiting().await.expect("no panic"), Duration::ZERO);
    }

    #[test]
    fn one_source_has_half_of_the_places() {
        let admission = Admission::new(0, 5);
        let sources = ["10.0.0.1", "::ffff:10.0.0.1", "10.0.0.1"].map(|text| text.parse().ok());
        let mut held: Vec<_> = sources.map(|source| admission.pending(source)).into();
        assert_eq!(held.pop().expect("three").err(), Some(Full::Source));
        let in_one_64 = ["2001:db8::1", "2001:db8::2", "2001:db8::3"].map(|text| text.parse().ok());
        held.extend(in_one_64.map(|source| admission.pending(source)));
        assert_eq!(held.pop().expect("three").err(), Some(Full::Source));
        let local = admission.pending(None).expect("the fifth");
        assert_eq!(admission.pending(None).err(), Some(Full::Total));
        drop(held);
        assert!(admission.pending(sources[0]).is_ok(), "given back");
        drop(local);
        assert!(
            admission.pending.taken().by_source.is_empty(),
            "nothing is left behind"
        );
        assert!(Admission::new(0, 1).pending(None).is_ok(), "at least one");
    }

    #[test]
    fn a_balancer_has_all_places_and_its_clients_half_each() {
        let admission = Admission::new(0, 4);
        let source = |last| Some(IpAddr::from([10, 0, 0, last]));
        let mut held: Vec<_> = (0..4)
            .map(|_| admission.pending_unsaid().expect("room"))
            .collect();
        assert_eq!(admission.pending_unsaid().err(), Some(Full::Total));
        assert_eq!(held[0].attribute(source(1)), Ok(()));
        assert_eq!(held[1].attribute(source(1)), Ok(()));
        assert_eq!(held[2].attribute(source(1)), Err(Full::Source));
        assert_eq!(held[2].attribute(source(2)), Ok(()));
        drop(held);
        assert!(
            admission.pending.taken().by_source.is_empty(),
            "nothing is left behind, of refusals neither"
        );
    }

    #[test]
    fn who_wants_no_login_gets_in_where_no_login_does() {
        let admission = Admission::new(0, 2);
        let source = |last| Some(IpAddr::from([10, 0, 0, last]));
        let held = [1, 2].map(|last| admission.place(source(last)).expect("room"));
        assert!(held.iter().all(|place| matches!(place, ArrivalPlace::Login(_))));
        assert!(admission.may_speak());
        // One source has half of the reserve, and what is left is for others.
        let greedy: Vec<_> = (0..8).filter_map(|_| admission.place(source(3)).ok()).collect();
        assert_eq!(greedy.len(), 4);
        let other = admission.place(source(4)).expect("in the reserve");
        assert!(matches!(other, ArrivalPlace::Reserve(_)));
        let unsaid: Vec<_> = (0..8).filter_map(|_| admission.place_unsaid().ok()).collect();
        assert_eq!(unsaid.len(), 3);
        assert!(!admission.may_speak());
        drop((held, greedy, other, unsaid));
        assert!(matches!(admission.place(source(3)), Ok(ArrivalPlace::Login(_))));
    }

    #[test]
    fn made_up_keys_take_no_place_of_those_that_bear_a_seal_nor_of_other_addresses() {
        let admission = Admission::new(10, 1);
        let source = |last| Some(IpAddr::from([10, 0, 0, last]));
        let made_up: Vec<_> = (0..2000)
            .filter_map(|_| admission.cancel(source(1), false).ok())
            .collect();
        assert_eq!(made_up.len(), 512);
        assert!(admission.cancel(source(2), false).is_ok());
        assert!(admission.cancel(source(1), true).is_ok());
        drop(made_up);
        assert!(admission.cancel(source(1), false).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_that_becomes_free_goes_to_one_that_waits_and_may_have_it() {
        let admission = Arc::new(Admission::new(0, 4));
        let source = |last| Some(IpAddr::from([10, 0, 0, last]));
        let held: Vec<_> = [1, 1, 2, 2]
            .map(|last| admission.pending(source(last)).expect("room"))
            .into();
        let until = Instant::now() + PATIENCE;
        let waits = |last| {
            let admission = Arc::clone(&admission);
            tokio::spawn(async move { admission.pending_until(source(last), until).await })
        };
        // The first two may have no more places; the third may.
        let [mut one, mut two, mut three] = [1, 2, 3].map(waits);
        tokio::task::yield_now().await;
        let mut held = held.into_iter();
        drop(held.next());
        let place = (&mut one)
            .await
            .expect("no panic")
            .expect("its own source's place");
        drop(place);
        drop(held.next());
        let place = (&mut three)
            .await
            .expect("no panic")
            .expect("no other source may");
        assert!(!two.is_finished());
        drop(place);
        drop(held);
        assert!((&mut two).await.expect("no panic").is_ok());
        assert!(
            admission.pending.taken().waiting.is_empty(),
            "nothing is left behind"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_for_a_place_ends_in_time_and_earlier_in_a_siege() {
        let admission = Admission::new(0, 1);
        let _held = admission.pending(None).expect("room");
        let began = Instant::now();
        assert!(admission.pending_until(None, began + PATIENCE / 2).await.is_err());
        assert_eq!(began.elapsed(), PATIENCE / 2);
        assert_eq!(admission.room(Instant::now()), Room::Wait);
        let siege = Instant::now();
        let refused = admission.pending_in_time(None, siege + 10 * PATIENCE).await;
        assert_eq!((refused.err(), siege.elapsed()), (Some(Full::Total), PATIENCE));
        assert!(
            admission
                .pending_in_time(None, Instant::now() + PATIENCE)
                .await
                .is_err()
        );
        assert_eq!(siege.elapsed(), PATIENCE, "at once");
    }
}
