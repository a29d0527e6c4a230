//! The server of a connection on a listener with `mode: tcp`: the gate of the route, and the
//! candidates in order until one accepts the connection.

use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::time::Instant;
use tracing::debug;

use super::Refusal;
use crate::backend::{self, ClientReply, Unverified};
use crate::cluster::server_identity::ServerLocation;
use crate::cluster::snapshot::{MemberName, Snapshot};
use crate::config::{Access, Route};
use crate::frontend::{ClientAddress, ClientStream, RefuseReason};
use crate::routing::{self, Candidate, GrantedRole, Preference};
use crate::session::candidates::{Attempt, Connector, NoPass, Wanted};
use crate::session::close::closing;
use crate::session::listener_settings::ListenerSettings;
use crate::session::occupancy::Seat;
use crate::session::whereabouts::{self, Question};
use crate::session::{Shared, attach};
use crate::wire::message::ErrorReply;
use crate::wire::sqlstate::SqlState;
use crate::wire::startup::Replication;

/// A member that accepted a connection.
pub(super) struct Connected {
    pub(super) stream: TcpStream,
    pub(super) member: MemberName,
    pub(super) granted: GrantedRole,
    pub(super) whereabouts: ServerLocation,
    pub(super) seat: Seat,
}

/// Waits at the gate of the route, and tries the candidates in order until one accepts the
/// connection.
pub(super) async fn connect(
    shared: &Arc<Shared>,
    listener: &ListenerSettings,
    client: &ClientStream,
    address: ClientAddress,
) -> Result<Connected, Refusal> {
    let wanted = Wanted {
        gate: &listener.gate,
        metrics: &shared.metrics.queue,
        occupancy: &shared.occupancy,
        pools: Some(&shared.pools),
        cluster: &listener.cluster,
        route: &listener.route,
        client: address.ip(),
    };
    let pass = wanted.pass(client.hung_up(), &shared.closing).await;
    let mut pass = pass.map_err(|no_pass| match no_pass {
        NoPass::HungUp => Refusal {
            reply: closing(),
            reason: None,
        },
        NoPass::Closing => Refusal {
            reply: closing(),
            reason: Some(RefuseReason::Shutdown),
        },
        NoPass::Queue(error) => Refusal {
            reply: wanted.busy(error),
            reason: Some(error.reason()),
        },
    })?;
    let connector = Opener { shared, listener };
    let connected = pass
        .first_that_serves(&shared.occupancy, &listener.cluster, &connector)
        .await;
    connected.map_err(|last| match last {
        Some(reply) => Refusal {
            reply,
            reason: Some(RefuseReason::ServerConnect),
        },
        None => Refusal {
            reply: pass.unavailable(&listener.route),
            reason: Some(RefuseReason::Unavailable),
        },
    })
}

/// Opens a connection, and checks which server it leads to, as far as probes can show it.
struct Opener<'a> {
    shared: &'a Shared,
    listener: &'a ListenerSettings,
}

impl Connector for Opener<'_> {
    type Served = Connected;
    type Error = ErrorReply;

    async fn attempt(&self, candidate: &Candidate, seat: Seat) -> Attempt<Connected, ErrorReply> {
        let Self { shared, listener } = *self;
        let (cluster, occupancy, member) = (&listener.cluster, &shared.occupancy, &candidate.member);
        let config = cluster.config();
        let options = &config.server;
        let deadline = Instant::now() + options.connect_timeout;
        let stream = match backend::open(&candidate.host, candidate.port, options, deadline).await {
            Ok(stream) => stream,
            Err(error) => {
                attach::report(cluster, occupancy, member, &error, false);
                let reply = match error.client_reply(member.as_str()) {
                    ClientReply::Own(reply) => reply,
                    // A server that has sent an error has accepted the connection.
                    ClientReply::Verbatim(_) => changed(member),
                };
                return if error.is_temporary_or_elsewhere() {
                    Attempt::Next(reply)
                } else {
                    Attempt::Stop(reply)
                };
            }
        };
        // The router sees only that the member accepts connections.
        occupancy.answered(&config.name, member);
        let question = Question {
            cluster,
            candidate,
            replication: Replication::None,
            begun: Instant::now(),
            deadline,
        };
        let whereabouts = match confirm_server(&question, &stream).await {
            Ok(whereabouts) => whereabouts,
            Err(reply) => return Attempt::Next(reply),
        };
        match granted(&cluster.snapshot(), &listener.route, candidate) {
            Some(granted) => Attempt::Serves(Connected {
                stream,
                member: member.clone(),
                granted,
                whereabouts,
                seat,
            }),
            None => Attempt::Next(changed(member)),
        }
    }
}

/// Which server the connection leads to, as far as probes can show it.
async fn confirm_server(question: &Question<'_>, stream: &TcpStream) -> Result<ServerLocation, ErrorReply> {
    let member = &question.candidate.member;
    let Ok(peer) = stream.peer_addr() else {
        return Err(changed(member));
    };
    let seen = whereabouts::confirm_unasked(question, peer.ip()).await;
    seen.map_err(|Unverified(reason, hint)| {
        debug!(%member, why = %reason, "the member is skipped");
        ErrorReply::fatal(
            SqlState::CANNOT_CONNECT_NOW,
            format!("server \"{member}\" {reason}"),
        )
        .hint(hint)
    })
}

/// The role in which the candidate serves, by what is known after it has accepted the connection;
/// `None` if it may not serve any more.
fn granted(snapshot: &Snapshot, route: &Route, candidate: &Candidate) -> Option<GrantedRole> {
    let member = snapshot.member(&candidate.member)?;
    let (_, reason) = routing::fitness(snapshot, route, member).ok()?;
    Some(match (route.access, reason) {
        (Access::ReadWrite, _) => GrantedRole::ReadWrite,
        // `enforced` is refused at load.
        (Access::ReadOnly, Preference::Leader) => GrantedRole::Unenforced,
        (Access::ReadOnly, _) => GrantedRole::ReadOnly,
    })
}

fn changed(member: &MemberName) -> ErrorReply {
    let message = format!("server \"{member}\" changed its role");
    ErrorReply::fatal(SqlState::CANNOT_CONNECT_NOW, message)
        .hint("Try again in a moment. The cluster may be changing its leader.")
}
