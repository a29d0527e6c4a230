//! What a session has from the moment it is attached until its server has ended its part.

use std::sync::Arc;

use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::arrival::admission::Admitted;
use super::end::{Order, Reason};
use super::linger;
use super::listener_settings::ListenerSettings;
use super::metrics::SessionGuard;
use super::occupancy::Seat;
use super::registry::{Placement, Ticket};
use crate::cluster::ClusterHandle;
use crate::routing::SessionVerdict;

/// The places that a session takes, until the server has ended its part too.
pub(super) struct Held {
    pub(super) seat: Seat,
    pub(super) gauge: SessionGuard,
    pub(super) admitted: Admitted,
}

impl Held {
    /// The session is over for the client. Gives the places back when the server has ended its
    /// part.
    pub(super) async fn release(
        self,
        server: TcpStream,
        cluster: &ClusterHandle,
        closing: &CancellationToken,
    ) {
        let Self {
            seat,
            gauge,
            admitted,
        } = self;
        drop(gauge);
        let held = (seat, admitted.into_share());
        let has_keepalive = cluster.config().server.keepalive.is_some();
        linger::until_ended(server, has_keepalive, closing).await;
        drop(held);
    }
}

/// Ends the session if the snapshot has changed between the choice of the server and the entry into
/// the registry, when no order could reach the session.
pub(super) fn check_placement(listener: &ListenerSettings, ticket: &Ticket, placement: &Arc<Placement>) {
    if let SessionVerdict::End(reason) = placement.verdict(&listener.cluster.snapshot()) {
        ticket
            .entry()
            .order_on(placement, Order::Now(Reason::Role(reason)));
    }
}
