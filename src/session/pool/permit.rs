//! Places among the connections of a pool on a member.

use std::sync::Arc;

use tokio::time::Instant;

use super::connection::{ConnectionState, LoginParameters, PooledConnection, WorkerId};
use super::key::ConnectionKey;
use super::pool::Pool;
use super::state::Pins;
use crate::backend::{OrderlyStream, ServerStream};
use crate::cluster::snapshot::MemberName;
use crate::routing::Candidate;
use crate::session::link::Link;
use crate::session::occupancy::Seat;
use crate::session::stream::SessionStream;

/// A place among the connections of a pool on a member. Dropping it makes room for the session that
/// waits first.
#[derive(Debug)]
pub(in crate::session) struct Permit<S: SessionStream = ServerStream> {
    pub(super) pool: Arc<Pool<S>>,
    pub(super) member: MemberName,
    /// The connection is being opened.
    pub(super) is_opening: bool,
    /// Why its session keeps it, as counted at its member.
    pub(super) pins: Pins,
    /// That of its member when its connection began to be opened.
    pub(super) generation: u64,
}

impl<S: SessionStream> Permit<S> {
    /// Its session keeps the connection for these reasons now. Takes no lock if nothing changes.
    pub(super) fn pin(&mut self, pins: Pins) {
        if pins == self.pins {
            return;
        }
        self.pool.pinned(&self.member, self.pins, pins);
        self.pins = pins;
    }
}

impl<S: SessionStream> Drop for Permit<S> {
    fn drop(&mut self) {
        self.pool.with(|inner, work| {
            let member = inner.member_mut(&self.member);
            member.pinned.change(self.pins, Pins::NONE);
            member.total = member.total.saturating_sub(1);
            if self.generation < member.generation {
                member.outdated = member.outdated.saturating_sub(1);
            }
            if self.is_opening {
                member.opening = member.opening.saturating_sub(1);
            }
            inner.pump(&self.pool, work);
        });
    }
}

/// What it takes to open a connection: its places, and the member to connect to. Dropping it gives
/// the places back.
#[derive(Debug)]
pub(in crate::session) struct OpenPermit<S: SessionStream = ServerStream> {
    pub(in crate::session) candidate: Candidate,
    pub(super) key: Arc<ConnectionKey>,
    // In this order: the next session finds both places free.
    /// `None` once it is taken.
    pub(super) seat: Option<Seat>,
    pub(super) permit: Permit<S>,
}

impl<S: SessionStream> OpenPermit<S> {
    pub(in crate::session) fn pool(&self) -> &Arc<Pool<S>> {
        &self.permit.pool
    }

    /// The place on the member, which the attempt to connect holds.
    pub(in crate::session) fn take_seat(&mut self) -> Option<Seat> {
        self.seat.take()
    }

    /// The connection is logged in and its role verified. It counts as leased until it is released.
    /// `seat` is the one of [`Self::take_seat`].
    /// `worker` is the one whose reactor drives it; `reported` is what the server has reported at
    /// the login.
    pub(in crate::session) fn opened(
        self,
        link: Link<OrderlyStream<S>>,
        seat: Seat,
        worker: WorkerId,
        reported: LoginParameters,
        state: ConnectionState,
    ) -> Box<PooledConnection<S>> {
        let Self { key, mut permit, .. } = self;
        let now = Instant::now();
        permit.is_opening = false;
        let pool = Arc::clone(&permit.pool);
        let (login_parameters, expires) = pool.with(|inner, work| {
            let member = inner.member_mut(&permit.member);
            member.opening = member.opening.saturating_sub(1);
            member.full = None;
            let reported = inner.keys.reported(&key, reported);
            // The next one may be opened.
            inner.pump(&pool, work);
            (reported, inner.limits.expiry(now))
        });
        Box::new(PooledConnection {
            link,
            key,
            login_parameters,
            expires,
            since: now,
            worker,
            leases: 1,
            state,
            has_ended: false,
            is_lent: false,
            ending: None,
            seat,
            permit,
        })
    }
}
