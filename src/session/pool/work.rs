//! What is to be done once the lock of a pool is released: deliveries wake sessions, and closing a
//! connection takes other locks.

use std::sync::Arc;

use tracing::warn;

use super::acquire::{Acquired, Grant};
use super::connection::PooledConnection;
use super::displacements::Displaced;
use super::metrics::CloseReason;
use super::pool::Pool;
use super::pools::Spare;
use super::waiters::{Slot, Waiter};
use crate::backend::OrderlyStream;
use crate::cluster::snapshot::MemberName;
use crate::session::link::Link;
use crate::session::stream::SessionStream;
use crate::wire::text::Escaped;

/// See the module. Most often there is one delivery at most, so that the rest has memory only where
/// there is any.
#[derive(Debug)]
pub(super) struct Work<S: SessionStream> {
    delivery: Option<Delivery<S>>,
    /// A session waits because this member has as many sessions as `server.max_connections` allows.
    pub(super) seat_wanted: Option<MemberName>,
    /// A connection idles now.
    pub(super) has_idle: bool,
    rest: Option<Box<Rest<S>>>,
}

type Delivery<S> = (Arc<Slot<S>>, Acquired<S>);

#[derive(Debug)]
struct Rest<S: SessionStream> {
    /// Behind the first one.
    deliveries: Vec<Delivery<S>>,
    notices: Vec<Arc<Slot<S>>>,
    spares: Vec<Spare<S>>,
    /// Their places are free when they are closed.
    closed: Vec<(CloseReason, Box<PooledConnection<S>>)>,
    /// Their places belong to somebody else already.
    displaced: Vec<Link<OrderlyStream<S>>>,
    warning: Option<Displaced>,
}

impl<S: SessionStream> Default for Work<S> {
    fn default() -> Self {
        Self {
            delivery: None,
            seat_wanted: None,
            has_idle: false,
            rest: None,
        }
    }
}

impl<S: SessionStream> Default for Rest<S> {
    fn default() -> Self {
        Self {
            deliveries: Vec::new(),
            notices: Vec::new(),
            spares: Vec::new(),
            closed: Vec::new(),
            displaced: Vec::new(),
            warning: None,
        }
    }
}

impl<S: SessionStream> Work<S> {
    fn rest(&mut self) -> &mut Rest<S> {
        self.rest.get_or_insert_default()
    }

    pub(super) fn close(&mut self, reason: CloseReason, connection: Box<PooledConnection<S>>) {
        self.rest().closed.push((reason, connection));
    }

    pub(super) fn close_all(&mut self, reason: CloseReason, connections: Vec<Box<PooledConnection<S>>>) {
        for connection in connections {
            self.close(reason, connection);
        }
    }

    pub(super) fn close_displaced(&mut self, link: Link<OrderlyStream<S>>) {
        self.rest().displaced.push(link);
    }

    pub(super) fn warn(&mut self, displaced: Displaced) {
        self.rest().warning = Some(displaced);
    }

    pub(super) fn grant(&mut self, waiter: Waiter<S>, grant: Grant<S>) {
        self.deliver(waiter, Ok(grant));
    }

    pub(super) fn deliver(&mut self, waiter: Waiter<S>, result: Acquired<S>) {
        let delivery = (waiter.slot, result);
        if self.delivery.is_none() {
            self.delivery = Some(delivery);
        } else {
            self.rest().deliveries.push(delivery);
        }
    }

    pub(super) fn notify(&mut self, slots: Vec<Arc<Slot<S>>>) {
        if !slots.is_empty() {
            self.rest().notices.extend(slots);
        }
    }

    pub(super) fn open_spare(&mut self, spare: Spare<S>) {
        self.rest().spares.push(spare);
    }

    /// Does it. Returns whether a connection of another pool has made room for one of this pool.
    pub(super) fn finish(self, pool: &Arc<Pool<S>>) -> bool {
        let Self {
            delivery,
            seat_wanted,
            has_idle,
            rest,
        } = self;
        let (mut rest, mut warning) = (rest, None);
        if let Some(rest) = &mut rest {
            for (reason, connection) in rest.closed.drain(..) {
                pool.meters.closed(reason);
                drop(connection);
            }
            for link in rest.displaced.drain(..) {
                pool.meters.closed(CloseReason::Displaced);
                drop(link);
            }
            warning = rest.warning.take();
        }
        if let Some(delivery) = delivery {
            deliver(pool, delivery);
        }
        if let Some(rest) = rest {
            for delivery in rest.deliveries {
                deliver(pool, delivery);
            }
            for slot in rest.notices {
                slot.notify();
            }
            for spare in rest.spares {
                pool.parts.send_spare(spare);
            }
        }
        if has_idle {
            pool.parts.occupancy.idles(&pool.name().cluster);
        }
        if let Some(displaced) = warning {
            let name = pool.name();
            warn!(
                route = %name.route,
                user = %Escaped(&name.user),
                database = %Escaped(&name.database),
                parameter = %Escaped(&displaced.parameter),
                "connections are closed and opened again, because clients differ in this startup parameter only; set \
                 it the same for all of them, or list it in pool.ignore_startup_parameters"
            );
        }
        match seat_wanted {
            Some(member) => pool.make_room(&member),
            None => false,
        }
    }
}

fn deliver<S: SessionStream>(pool: &Arc<Pool<S>>, (slot, result): Delivery<S>) {
    if let Some(Ok(grant)) = slot.deliver(result) {
        pool.give_back(grant);
    }
}
