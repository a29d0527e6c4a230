//! Limits for connections that have not logged in yet, and for sessions.
//!
//! If all places for logins are taken, or all that one source may have, a connection takes a place
//! in a reserve until its first packet has come. Then cancel requests are served, and only logins
//! are refused.

mod places;

use std::net::IpAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout_at};

pub use self::places::{AdmissionPlace, Full};
use self::places::{Places, Source};
use super::super::listener_settings::ListenerSettings;
use super::quota::Share;
use crate::auth::login_throttle::network;
use crate::wire::message::ErrorReply;
use crate::wire::sqlstate::SqlState;

/// How long new connections wait while too many are logging in, before they are refused. They wait
/// in the kernel's queue if all places are taken, and in the router if only those of their source
/// are.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// The smallest reserve: it leaves some places for others if one source takes all that it may have.
const LEAST_RESERVE: u32 = 8;
/// The smallest number of connections that may wait for a place.
const LEAST_QUEUE: u32 = 1024;

/// Cancel requests at the same time whose session may be elsewhere: as many as there may be
/// sessions, but at least the first number, and the second if sessions have no limit. One source
/// may have half.
const LEAST_CANCELS: u32 = 1024;
const UNLIMITED_CANCELS: u32 = 16_384;

/// How many places one address may have among the logins that wait because of earlier failed
/// logins.
const WAITING_PER_SOURCE: u32 = 8;

/// Counts connections and sessions, and limits both.
#[derive(Debug)]
pub struct Admission {
    max_clients: AtomicU32,
    clients: Arc<AtomicU32>,
    pending: Arc<Places>,
    reserve: Arc<Places>,
    queued: Arc<Places>,
    waiting: Arc<Places>,
    /// Cancel requests whose session may be elsewhere: first those with a key that anyone can make
    /// up, then those with a key that has a router's seal. So clients with a real key do not wait
    /// behind made-up ones.
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

/// What a connection may do that has not logged in.
#[derive(Debug)]
pub enum ArrivalPlace {
    /// Log in.
    Login(AdmissionPlace),
    /// Send its first packet: a cancel request is served, a login needs another place.
    Reserve(AdmissionPlace),
}

/// The place of a login among the pending logins.
#[derive(Debug)]
pub(in crate::session) enum LoginPlace {
    Held(#[allow(dead_code, reason = "held until it is dropped")] AdmissionPlace),
    /// Given up while the login waits because of earlier failed logins.
    GivenUp,
}

/// A place among all sessions, and among those of the listener.
#[derive(Debug)]
pub struct Admitted {
    _total: AdmissionPermit,
    _listener: AdmissionPermit,
    share: Option<Arc<Share>>,
}

impl Admitted {
    /// Holds the share as long as the place.
    pub(in crate::session) fn keep(&mut self, share: Arc<Share>) {
        self.share = Some(share);
    }

    /// Gives the place back, because the client has left. The share is still in use.
    pub(in crate::session) fn into_share(self) -> Option<Arc<Share>> {
        self.share
    }
}

/// How many places of a kind are taken, and how many there are; 0 is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    pub used: u32,
    pub most: u32,
}

/// The use of all limits of connections and sessions that are counted here.
#[derive(Debug, Clone, Copy)]
pub struct AdmissionUsage {
    pub clients: Usage,
    pub pending_logins: Usage,
    /// Connections whose first packet has not come, beside the pending logins.
    pub reserve: Usage,
    /// Connections that wait for a place among those.
    pub queued: Usage,
    /// Logins that wait because of earlier failed logins.
    pub delayed_logins: Usage,
    /// Cancel requests whose session may be elsewhere: with a key that anyone can make up, and with
    /// a router's seal.
    pub cancels: [Usage; 2],
}

/// Whether there is room for one more login.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    Yes,
    /// Leave the connection where it is for now.
    Wait,
    /// There has been no room for too long: refuse the connection.
    Refuse,
}

/// How many of these places one source may have.
fn half(places: u32) -> u32 {
    (places / 2).max(1)
}

/// How many connections may send their first packet, besides `max_pending` that log in.
fn reserve(max_pending: u32) -> u32 {
    max_pending.max(LEAST_RESERVE)
}

/// How many connections may wait for one of these places.
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

    /// Sets other limits for the connections that follow. Existing ones stay.
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

    /// How much of each limit is used.
    pub fn usage(&self) -> AdmissionUsage {
        AdmissionUsage {
            clients: Usage {
                used: self.clients.load(Ordering::Acquire),
                most: self.max_clients.load(Ordering::Acquire),
            },
            pending_logins: self.pending.usage(),
            reserve: self.reserve.usage(),
            queued: self.queued.usage(),
            delayed_logins: self.waiting.usage(),
            cancels: [self.cancels[0].usage(), self.cancels[1].usage()],
        }
    }

    /// A place for a cancel request whose session may be elsewhere. One source may have half of
    /// them.
    pub(in crate::session) fn cancel(
        &self,
        source: Option<IpAddr>,
        has_seal: bool,
    ) -> Result<AdmissionPlace, Full> {
        self.cancels[usize::from(has_seal)].take(source)
    }

    /// Whether another connection may send its first packet: there is a place for its login, or one
    /// in the reserve.
    pub fn may_speak(&self) -> bool {
        !self.pending.is_full() || !self.reserve.is_full()
    }

    /// Waits until another connection can be accepted: there is a place for its login, or one in
    /// the reserve, since it may be a cancel request; or there has been none for [`PATIENCE`], and
    /// the connection is refused. Cancel safe.
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

    /// Whether there is room for one more login. A short burst waits in the kernel's queue, at no
    /// cost; if there is no room for long, connections are refused.
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

    /// When a login that finds no place is refused: at `until`, or earlier if there has been no
    /// room for too long.
    fn refuses_at(&self, until: Instant) -> Instant {
        let full_since = *self.full_since.lock().unwrap_or_else(PoisonError::into_inner);
        match full_since.filter(|_| self.pending.is_full()) {
            Some(since) => until.min(since + PATIENCE),
            None => until,
        }
    }

    /// Waits for a place for a login, but not longer than `until`.
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

    /// Like [`Self::pending_until`], but fails earlier if there has been no room for another login
    /// for [`PATIENCE`].
    pub(in crate::session) async fn pending_in_time(
        &self,
        source: Option<IpAddr>,
        until: Instant,
    ) -> Result<AdmissionPlace, Full> {
        loop {
            // This also records since when there has been no room.
            let is_refused = self.room(Instant::now()) == Room::Refuse;
            let now = Instant::now();
            let at = if is_refused { now } else { self.refuses_at(until) };
            match self.pending_until(source, at).await {
                Err(_) if self.refuses_at(until) > Instant::now() => {}
                outcome => return outcome,
            }
        }
    }

    /// Waits for a place for a login, or one in the reserve, but not longer than `until`.
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

    /// A place for a connection from a trusted balancer. Call [`AdmissionPlace::attribute`] when
    /// the balancer has named its client.
    pub fn pending_of_balancer(&self) -> Result<AdmissionPlace, Full> {
        self.pending.take_for(Source::Balancer)
    }

    /// A place for a connection that was just accepted.
    pub fn place(&self, source: Option<IpAddr>) -> Result<ArrivalPlace, Full> {
        match self.pending(source) {
            Ok(pending) => Ok(ArrivalPlace::Login(pending)),
            Err(full) => self.in_reserve(source).ok_or(full),
        }
    }

    /// Like [`Self::place`], for a connection from a trusted balancer.
    pub fn place_of_balancer(&self) -> Result<ArrivalPlace, Full> {
        match self.pending_of_balancer() {
            Ok(pending) => Ok(ArrivalPlace::Login(pending)),
            Err(full) => self
                .reserve
                .take_for(Source::Balancer)
                .map(ArrivalPlace::Reserve)
                .map_err(|_| full),
        }
    }

    /// A place in the reserve. One source may have half of them.
    pub fn in_reserve(&self, source: Option<IpAddr>) -> Option<ArrivalPlace> {
        self.reserve.take(source).map(ArrivalPlace::Reserve).ok()
    }

    /// A place for a connection that waits for a login or the reserve, for at most [`PATIENCE`]: a
    /// burst through a balancer or an address translator looks like an attack from one address.
    pub fn queued(&self, source: Option<IpAddr>) -> Result<AdmissionPlace, Full> {
        self.queued.take(source)
    }

    /// A place for a login that waits because of earlier failed logins. There are as many as for
    /// logins that do not wait, of which a waiting login holds none.
    pub fn waiting(&self, source: Option<IpAddr>) -> Result<AdmissionPlace, Full> {
        self.waiting.take(source)
    }

    /// Whether there is a place for one more session. The login asks this before authentication, so
    /// that a client is not asked for a password in vain. It takes no place: only authenticated
    /// clients have one.
    pub fn ask(&self, listener: &ListenerSettings) -> Result<(), ErrorReply> {
        self.admit(listener).map(drop)
    }

    /// A place for a session of an authenticated client.
    pub fn admit(&self, listener: &ListenerSettings) -> Result<Admitted, ErrorReply> {
        let refusal = |hint: &str| {
            ErrorReply::fatal(SqlState::TOO_MANY_CONNECTIONS, "sorry, too many clients already").hint(hint)
        };
        let total = take(&self.clients, self.max_clients.load(Ordering::Acquire))
            .ok_or_else(|| refusal("Ask the operator to raise limits.max_clients."))?;
        let listener = take(&listener.clients, listener.max_clients)
            .ok_or_else(|| refusal("Ask the operator to raise max_clients of this listener."))?;
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
    async fn a_short_burst_waits_and_a_long_one_is_refused() {
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
    async fn a_wait_for_room_ends_with_a_free_place_or_when_patience_is_over() {
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
        assert!(admission.pending.is_untouched(), "nothing is left behind");
        assert!(Admission::new(0, 1).pending(None).is_ok(), "at least one");
    }

    #[test]
    fn a_balancer_has_all_places_and_its_clients_half_each() {
        let admission = Admission::new(0, 4);
        let source = |last| Some(IpAddr::from([10, 0, 0, last]));
        let mut held: Vec<_> = (0..4)
            .map(|_| admission.pending_of_balancer().expect("room"))
            .collect();
        assert_eq!(admission.pending_of_balancer().err(), Some(Full::Total));
        assert_eq!(held[0].attribute(source(1)), Ok(()));
        assert_eq!(held[1].attribute(source(1)), Ok(()));
        assert_eq!(held[2].attribute(source(1)), Err(Full::Source));
        assert_eq!(held[2].attribute(source(2)), Ok(()));
        drop(held);
        assert!(
            admission.pending.is_untouched(),
            "refusals leave nothing behind either"
        );
    }

    #[test]
    fn connections_take_the_reserve_while_no_login_has_a_place() {
        let admission = Admission::new(0, 2);
        let source = |last| Some(IpAddr::from([10, 0, 0, last]));
        let held = [1, 2].map(|last| admission.place(source(last)).expect("room"));
        assert!(held.iter().all(|place| matches!(place, ArrivalPlace::Login(_))));
        assert!(admission.may_speak());
        // One source has half of the reserve; the rest is for others.
        let greedy: Vec<_> = (0..8).filter_map(|_| admission.place(source(3)).ok()).collect();
        assert_eq!(greedy.len(), 4);
        let other = admission.place(source(4)).expect("in the reserve");
        assert!(matches!(other, ArrivalPlace::Reserve(_)));
        let balancer: Vec<_> = (0..8)
            .filter_map(|_| admission.place_of_balancer().ok())
            .collect();
        assert_eq!(balancer.len(), 3);
        assert!(!admission.may_speak());
        drop((held, greedy, other, balancer));
        assert!(matches!(admission.place(source(3)), Ok(ArrivalPlace::Login(_))));
    }

    #[test]
    fn made_up_keys_take_no_place_of_sealed_keys_or_of_other_addresses() {
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
    async fn a_free_place_goes_to_a_waiting_connection_that_may_have_it() {
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
        assert!(admission.pending.is_untouched(), "nothing is left behind");
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_for_a_place_ends_in_time_and_earlier_if_there_was_no_room_before() {
        let admission = Admission::new(0, 1);
        let _held = admission.pending(None).expect("room");
        let began = Instant::now();
        assert!(admission.pending_until(None, began + PATIENCE / 2).await.is_err());
        assert_eq!(began.elapsed(), PATIENCE / 2);
        assert_eq!(admission.room(Instant::now()), Room::Wait);
        let full_since = Instant::now();
        let refused = admission.pending_in_time(None, full_since + 10 * PATIENCE).await;
        assert_eq!(
            (refused.err(), full_since.elapsed()),
            (Some(Full::Total), PATIENCE)
        );
        assert!(
            admission
                .pending_in_time(None, Instant::now() + PATIENCE)
                .await
                .is_err()
        );
        assert_eq!(full_since.elapsed(), PATIENCE, "at once");
    }
}
