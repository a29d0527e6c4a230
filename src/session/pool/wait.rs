//! The wait for a server connection: an idle one, or one that is opened for the session.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::BytesMut;
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep, sleep};

use super::acquire::{Acquire, Grant, NoLease, Waited, Want};
use super::connection::{PooledConnection, WorkerId};
use super::metrics::RefusedReason;
use super::open::OpenError;
use super::permit::OpenPermit;
use super::session::{Home, Pause, PooledSession};
use super::shortage::Shortage;
use super::wary::Wary;
use crate::cluster::snapshot::MemberName;
use crate::config::Access;
use crate::frontend::RefuseReason;
use crate::session::attach::AttachError;
use crate::session::candidates::MOST_TRIES;
use crate::session::end::{Cause, Reason};
use crate::session::gate::{Group, HeldPlace, QueueError, ReleasePass};
use crate::session::held_login::{TRY_AGAIN_FOR, try_again_after};
use crate::session::registry::Phase;
use crate::session::stream::SessionStream;
use crate::wire::message::{self, ErrorReply};
use crate::wire::sqlstate::SqlState;
use crate::wire::text::Escaped;

/// What a session that waits for a connection learns.
pub(super) enum Got<S: SessionStream> {
    /// It has waited for `wait_notify`.
    Notice,
    Lease(Box<PooledConnection<S>>),
    Refused(Refusal),
}

/// Why there is no connection for a session.
#[derive(Debug)]
pub(in crate::session) enum Refusal {
    NoLease(NoLease),
    /// The client was held, or should have been: its answer.
    Held(Box<ErrorReply>),
    /// The last member that was tried.
    Attach(AttachError),
}

impl Refusal {
    /// For metrics.
    pub(in crate::session) fn reason(&self) -> RefuseReason {
        match self {
            Self::NoLease(NoLease::Queue(error)) => error.reason(),
            Self::NoLease(NoLease::NoCandidate(_)) | Self::Held(_) => RefuseReason::NoCandidate,
            Self::Attach(error) if error.refused_by().is_some() => RefuseReason::ServerRefused,
            Self::Attach(_) => RefuseReason::ServerConnect,
        }
    }
}

impl Refusal {
    /// For metrics, in the middle of a session.
    fn of_statement(&self) -> RefusedReason {
        match self {
            Self::NoLease(NoLease::Queue(QueueError::Full)) => RefusedReason::QueueFull,
            Self::NoLease(NoLease::Queue(QueueError::Timeout)) => RefusedReason::QueueTimeout,
            Self::NoLease(NoLease::NoCandidate(_)) | Self::Held(_) => RefusedReason::NoCandidate,
            Self::Attach(error) if error.refused_by().is_some() => RefusedReason::ServerRefused,
            Self::Attach(_) => RefusedReason::ServerConnect,
        }
    }
}

/// A connection on its way. Dropping it gives up the wait; what is being opened then serves others.
pub(super) struct Acquisition<S: SessionStream> {
    want: Want,
    /// The client's request, in bytes.
    bytes: u64,
    /// When the wait began.
    begun: Instant,
    /// Why the last connection was not opened.
    failed: Option<AttachError>,
    state: State<S>,
    has_asked: bool,
    /// The client may be held. A login on a route without `hold.logins` may not.
    may_be_held: bool,
    /// How often a server has failed since the client came, or was let go.
    tries: u32,
    /// The client was held, and was let go.
    pass: Option<ReleasePass>,
}

enum State<S: SessionStream> {
    /// There is a lease or a refusal.
    Over,
    /// At the gate.
    Held(HeldPlace),
    /// A server has failed; what the probes see of it may shut the gate.
    Failed(AttachError, Pin<Box<Sleep>>),
    Waiting(Acquire<S>),
    /// For the session of this wait, which is over.
    Opening(
        Acquire<S>,
        oneshot::Receiver<Result<Box<PooledConnection<S>>, OpenError>>,
    ),
}

impl<S: SessionStream + Send + 'static> Acquisition<S> {
    /// `client`: its address. `custom_names`: those that the session has used. `bytes`: of its
    /// request.
    pub(super) fn new(
        home: &Home<S>,
        client: Option<IpAddr>,
        custom_names: &[Box<str>],
        bytes: usize,
    ) -> Self {
        let want = Want {
            client,
            custom_names: home.is_strict.then(|| custom_names.into()),
            ..home.want.clone()
        };
        Self {
            state: State::Over,
            has_asked: false,
            may_be_held: true,
            tries: 0,
            want,
            bytes: u64::try_from(bytes).unwrap_or(u64::MAX),
            begun: Instant::now(),
            failed: None,
            pass: None,
        }
    }

    /// As [`Self::new`], for a client that logs in.
    pub(super) fn of_login(home: &Home<S>, client: Option<IpAddr>) -> Self {
        Self {
            may_be_held: home.route.hold.logins || home.gate.is_paused(),
            ..Self::new(home, client, &[], 0)
        }
    }

    /// Asks the pool, or first the gate if clients must wait there.
    fn ask(&mut self, home: &Home<S>) -> Result<State<S>, Refusal> {
        if self.may_be_held && self.pass.is_none() && home.gate.must_wait(home.group()) {
            let place = home.gate.hold(home.group(), self.bytes);
            return place
                .map(State::Held)
                .map_err(|error| Refusal::Held(Box::new(error)));
        }
        Ok(State::Waiting(home.pool.acquire(self.want.clone())))
    }

    /// No member may serve the route: held, if the gate is shut.
    fn hold(&mut self, home: &Home<S>) -> Option<Result<State<S>, Refusal>> {
        home.gate.refresh(|| home.cluster.snapshot());
        if !self.may_be_held || !home.gate.is_shut() {
            return None;
        }
        self.pass = None;
        self.want.tried.clear();
        let place = home.gate.hold(home.group(), self.bytes);
        Some(
            place
                .map(State::Held)
                .map_err(|error| Refusal::Held(Box::new(error))),
        )
    }

    /// A server could not be used: another try, if its failure may be that of a failover that the
    /// probes have not seen yet. Nothing of the request has reached it.
    fn failed(&mut self, home: &Home<S>, error: AttachError) -> Result<State<S>, Refusal> {
        if let Some(held) = self.hold(home) {
            return held;
        }
        let is_held = self.may_be_held && home.route.holds_clients();
        let may_pass = error.may_pass() && is_held;
        if !may_pass || self.begun.elapsed() > TRY_AGAIN_FOR {
            return Err(Refusal::Attach(error));
        }
        self.want.tried.clear();
        Ok(State::Failed(
            error,
            Box::pin(sleep(try_again_after(&mut self.tries))),
        ))
    }

    /// The client is held at the gate.
    fn is_held(&self) -> bool {
        matches!(self.state, State::Held(_))
    }

    /// The client was held, and was let go.
    fn was_held(&self) -> bool {
        self.pass.is_some()
    }

    /// The next thing that happens. Not to be polled after a lease or a refusal. `home` is that of
    /// [`Self::new`].
    pub(super) fn poll(&mut self, home: &Home<S>, cx: &mut Context<'_>) -> Poll<Got<S>> {
        if !std::mem::replace(&mut self.has_asked, true)
            && let Err(refusal) = self.ask(home).map(|state| self.state = state)
        {
            return Poll::Ready(Got::Refused(refusal));
        }
        loop {
            match std::mem::replace(&mut self.state, State::Over) {
                State::Over => return Poll::Pending,
                State::Held(mut place) => match place.poll(cx) {
                    Poll::Pending => {
                        self.state = State::Held(place);
                        return Poll::Pending;
                    }
                    Poll::Ready(Ok(pass)) => {
                        self.pass = Some(pass);
                        // What could not be reached before may be another server now.
                        (self.begun, self.failed, self.tries) = (Instant::now(), None, 0);
                        self.state = State::Waiting(home.pool.acquire(self.want.clone()));
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(Got::Refused(Refusal::Held(error))),
                },
                State::Failed(error, mut again) => {
                    if again.as_mut().poll(cx).is_pending() {
                        self.state = State::Failed(error, again);
                        return Poll::Pending;
                    }
                    self.failed = Some(error);
                    match self.ask(home) {
                        Ok(state) => self.state = state,
                        Err(refusal) => return Poll::Ready(Got::Refused(refusal)),
                    }
                }
                State::Waiting(mut acquire) => match acquire.poll_waited(cx) {
                    Poll::Pending => {
                        self.state = State::Waiting(acquire);
                        return Poll::Pending;
                    }
                    Poll::Ready(Waited::Notice) => {
                        self.state = State::Waiting(acquire);
                        return Poll::Ready(Got::Notice);
                    }
                    Poll::Ready(Waited::Done(Ok(Grant::Connection(lease)))) => {
                        return Poll::Ready(Got::Lease(lease));
                    }
                    Poll::Ready(Waited::Done(Ok(Grant::Open(permit)))) => {
                        let opened = open(home, permit, acquire.want().worker);
                        self.state = State::Opening(acquire, opened);
                    }
                    Poll::Ready(Waited::Done(Err(NoLease::NoCandidate(choice)))) => {
                        let next = match self.failed.take() {
                            Some(failed) => self.failed(home, failed),
                            None => match self.hold(home) {
                                Some(held) => held,
                                None => Err(Refusal::NoLease(NoLease::NoCandidate(choice))),
                            },
                        };
                        match next {
                            Ok(state) => self.state = state,
                            Err(refusal) => return Poll::Ready(Got::Refused(refusal)),
                        }
                    }
                    Poll::Ready(Waited::Done(Err(error))) => {
                        let failed = self.failed.take();
                        return Poll::Ready(Got::Refused(match (error, failed) {
                            // What a member said tells more than that a session which did not want
                            // to wait may not.
                            (NoLease::Queue(QueueError::Full), Some(failed)) => Refusal::Attach(failed),
                            (error, _) => Refusal::NoLease(error),
                        }));
                    }
                },
                State::Opening(acquire, mut opened) => match Pin::new(&mut opened).poll(cx) {
                    Poll::Pending => {
                        self.state = State::Opening(acquire, opened);
                        return Poll::Pending;
                    }
                    Poll::Ready(Ok(Ok(lease))) => return Poll::Ready(Got::Lease(lease)),
                    Poll::Ready(Ok(Err(error))) if error.can_wait => {
                        self.failed = Some(error.error);
                        self.state = State::Waiting(acquire);
                    }
                    Poll::Ready(Ok(Err(error))) => {
                        if !error.is_elsewhere || self.want.tried.len() + 1 >= MOST_TRIES as usize {
                            match self.failed(home, error.error) {
                                Ok(state) => self.state = state,
                                Err(refusal) => return Poll::Ready(Got::Refused(refusal)),
                            }
                            continue;
                        }
                        self.want.tried.push(error.member);
                        self.failed = Some(error.error);
                        self.state = State::Waiting(home.pool.acquire(self.want.clone()));
                    }
                    // The task has ended without a word: the router shuts down.
                    Poll::Ready(Err(_closed)) => {
                        self.state = State::Waiting(home.pool.acquire(self.want.clone()));
                    }
                },
            }
        }
    }
}

/// Opens a connection in a task of its own: a login is not given up half-way when the session
/// leaves. Then the connection serves others.
fn open<S: SessionStream + Send + 'static>(
    home: &Home<S>,
    permit: OpenPermit<S>,
    worker: WorkerId,
) -> oneshot::Receiver<Result<Box<PooledConnection<S>>, OpenError>> {
    let (notify, opened) = oneshot::channel();
    let opening = home.opener.open(permit, Arc::clone(&home.recipe), worker);
    let pool = Arc::clone(&home.pool);
    tokio::spawn(async move {
        if let Err(Ok(lease)) = notify.send(opening.await) {
            pool.release(lease);
        }
    });
    opened
}

/// Something that ends a wait, or interrupts it.
enum Event<S: SessionStream> {
    Got(Got<S>),
    End(Cause),
    Cancelled,
}

impl<C: SessionStream, S: SessionStream + Send + 'static> PooledSession<C, S> {
    /// Waits for a connection for the request that is there.
    pub(super) async fn wait(&mut self) -> Result<Option<Pause>, Cause> {
        let entry = Arc::clone(self.entry());
        entry.take_wait_cancelled();
        if std::mem::take(&mut self.cancels_unread) {
            return self.answer_error(cancelled()).map_or(Ok(None), Err);
        }
        entry.set_phase(Phase::Waiting);
        let begun = Instant::now();
        let mut acquisition = Acquisition::new(
            &self.home,
            self.address,
            &self.memory.custom_names,
            self.request.len(),
        );
        let outcome = loop {
            let event = std::future::poll_fn(|cx| self.poll_event(&mut acquisition, cx)).await;
            match event {
                Event::Got(Got::Notice) => self.notify_of_wait(),
                Event::Got(Got::Lease(lease)) => break Ok(lease),
                Event::Got(Got::Refused(refusal)) => {
                    let reply = self.home.reply(&refusal);
                    self.home.pool.refused(refusal.of_statement(), &reply);
                    if self.home.is_over(&refusal) {
                        return Err(Cause::Ordered(Reason::OtherPassword));
                    }
                    break Err(reply);
                }
                Event::Cancelled => break Err(cancelled()),
                Event::End(cause) => return Err(cause),
            }
        };
        self.totals.waited += begun.elapsed();
        match outcome {
            Ok(lease) => {
                if acquisition.was_held() {
                    self.wary = Wary::Yes;
                }
                self.is_resumed = true;
                Ok(self.adopt(lease))
            }
            Err(reply) => self.answer_error(reply).map_or(Ok(None), Err),
        }
    }

    /// Waits until what the client asks may be read: the gate opens, or the time for which clients
    /// are held is over, or there is no place for it. Reading it then is what it is answered by.
    pub(super) async fn stay_unread(&mut self) -> Result<Option<Pause>, Cause> {
        self.may_read_once = true;
        self.wary = Wary::Yes;
        let bytes = u64::try_from(self.request.len()).unwrap_or(u64::MAX);
        let Ok(mut place) = self.home.gate.hold(self.home.group(), bytes) else {
            return Ok(None);
        };
        let entry = Arc::clone(self.entry());
        entry.take_wait_cancelled();
        entry.set_phase(Phase::Waiting);
        let begun = Instant::now();
        let end = std::future::poll_fn(|cx| {
            self.turns.listen_for_orders(&entry, cx);
            if let Some(order) = entry.ordered_on(None) {
                return Poll::Ready(Some(Cause::Ordered(order.reason().clone())));
            }
            if entry.take_wait_cancelled() {
                self.cancels_unread = true;
                return Poll::Ready(None);
            }
            let drained = self.client.answers.drain(Pin::new(&mut self.client.stream), cx);
            if matches!(drained, Poll::Ready(Err(_)))
                || self.client.look.poll_broken(cx, &self.client.stream).is_ready()
                || self.client.look.has_closed()
            {
                return Poll::Ready(Some(self.client_gone()));
            }
            // Whoever is let go asks for a place again when its request is there.
            place.poll(cx).map(|_| None)
        })
        .await;
        self.totals.waited += begun.elapsed();
        entry.set_phase(Phase::Detached);
        end.map_or(Ok(None), Err)
    }

    fn poll_event(&mut self, acquisition: &mut Acquisition<S>, cx: &mut Context<'_>) -> Poll<Event<S>> {
        let entry = self.client.ticket.entry();
        self.turns.listen_for_orders(entry, cx);
        if let Some(order) = entry.ordered_on(None) {
            return Poll::Ready(Event::End(Cause::Ordered(order.reason().clone())));
        }
        if entry.take_wait_cancelled() {
            return Poll::Ready(Event::Cancelled);
        }
        if let Poll::Ready(got) = acquisition.poll(&self.home, cx) {
            return Poll::Ready(Event::Got(got));
        }
        let drained = self.client.answers.drain(Pin::new(&mut self.client.stream), cx);
        let is_broken = matches!(drained, Poll::Ready(Err(_)))
            || self.client.look.poll_broken(cx, &self.client.stream).is_ready();
        // One that has given up while it was held may have asked again elsewhere by now.
        if is_broken || acquisition.is_held() && self.client.look.has_closed() {
            return Poll::Ready(Event::End(self.client_gone()));
        }
        Poll::Pending
    }

    fn notify_of_wait(&mut self) {
        let mut out = BytesMut::new();
        let (text, detail) = self.home.pool.shortage().notice();
        message::notice(&mut out, &text, detail);
        self.client.answers.push(&out);
    }
}

/// The answer to a request that is cancelled while it waits.
fn cancelled() -> ErrorReply {
    ErrorReply::error(
        SqlState::QUERY_CANCELED,
        "canceling statement due to user request",
    )
    .detail("The statement waited for a server connection. No server has received it.")
}

impl<S: SessionStream> Home<S> {
    /// At the gate.
    pub(super) fn group(&self) -> Group {
        Group::of(&self.pool)
    }

    /// The error for a client that waited too long, or may not wait.
    fn busy(&self, error: QueueError) -> ErrorReply {
        let queue = &self.route.queue;
        let reason = match error {
            QueueError::Timeout => format!(
                "None became free within {} ms (queue_timeout).",
                queue.timeout.as_millis()
            ),
            QueueError::Full if queue.most == 0 => {
                "Sessions may not wait for one (max_queue is 0).".to_owned()
            }
            QueueError::Full => format!("{} sessions already wait for one (max_queue).", queue.most),
        };
        let advice = match self.pool.shortage() {
            Shortage::Pool => {
                "Keep transactions shorter, try again later, or ask the operator to raise max_connections of the \
                 route's pool: `trunkline servers` shows who has them."
            }
            Shortage::Opening => {
                "The pool may have more, and one is being opened. Try again later, or ask the operator whether the \
                 server is slow to accept connections."
            }
            Shortage::Router => return self.router_full(&reason),
            Shortage::Server { member, said } => return self.server_full(&reason, &member, &said),
        };
        let name = self.pool.name();
        ErrorReply::error(
            SqlState::TOO_MANY_CONNECTIONS,
            format!(
                "every server connection of the pool for user \"{}\" and database \"{}\" is in use",
                Escaped(&name.user),
                Escaped(&name.database)
            ),
        )
        .hint(format!("{reason}{} {advice}", self.pool.pinned_in_words()))
    }

    /// The pool may have more connections; the server takes no more. `reason`: why the session
    /// waits no longer.
    fn server_full(&self, reason: &str, member: &MemberName, said: &str) -> ErrorReply {
        let name = self.pool.name();
        ErrorReply::error(
            SqlState::TOO_MANY_CONNECTIONS,
            format!(
                "server \"{member}\" takes no more connections, and all that the pool for user \"{}\" and database \
                 \"{}\" has there are in use",
                Escaped(&name.user),
                Escaped(&name.database)
            ),
        )
        .detail(format!("The server said: {said}"))
        .hint(format!(
            "{reason} Try again later, or ask the operator: all pools of all routers must fit into the server's own \
             max_connections."
        ))
    }

    /// The pool itself may have more connections; the router may not. `reason`: why the session
    /// waits no longer.
    fn router_full(&self, reason: &str) -> ErrorReply {
        let most = self.cluster.config().max_connections;
        ErrorReply::error(
            SqlState::TOO_MANY_CONNECTIONS,
            format!("every server for {} sessions is full", self.route.access),
        )
        .hint(format!(
            "The router has at most {most} connections to each server, over all pools and sessions \
             (server.max_connections). {reason} Try again later, or ask the operator to raise this limit: `trunkline \
             servers` shows who has them."
        ))
    }

    /// The session can get no connection any more: the leader has another password of its user. A
    /// replica may only be late.
    fn is_over(&self, refusal: &Refusal) -> bool {
        self.route.access == Access::ReadWrite
            && matches!(refusal, Refusal::Attach(error) if error.refuses_password())
    }

    /// The error for the client.
    pub(super) fn reply(&self, refusal: &Refusal) -> ErrorReply {
        match refusal {
            Refusal::NoLease(NoLease::Queue(error)) => self.busy(*error),
            Refusal::NoLease(NoLease::NoCandidate(choice)) => {
                crate::session::gate::unavailable(&self.cluster.snapshot(), &self.route, choice)
            }
            Refusal::Held(error) => ErrorReply::clone(error),
            Refusal::Attach(error) => error.reply(),
        }
    }
}
