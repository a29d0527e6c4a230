//! Checks that the server at the other end of a session's connection is the one that the router has
//! seen under the member's name.
//!
//! It compares the address that the connection reached with the last check of the member's prober,
//! which checks again if that is old ([`crate::cluster::server_identity`]). This costs the session
//! no query. If the address differs, if the prober does not know, or if something did not fit
//! within the last minute, the router asks on this very connection for system identifier, role and
//! timeline. PUBLIC may execute the functions for this unless an administrator has revoked it. If
//! the session's role may not, it is enough that the prober sees the same address.

use std::net::IpAddr;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use crate::backend::ServerConnection;
use crate::backend::{CHANGING_HINT, Unverified};
use crate::cluster::ClusterHandle;
use crate::cluster::server_identity::{self, IdentifiedBy, ServerIdentity, ServerLocation};
use crate::routing::{Candidate, Misfit, fits};
use crate::wire::startup::Replication;

const FOREIGN_HINT: &str = "Ask the operator to check the name service, virtual addresses and forwarded ports: the \
                            server's name or address leads to another server than before.";
const UNKNOWN_HINT: &str = "Try again in a moment. If this continues, ask the operator to grant EXECUTE on \
                            pg_control_system() and pg_control_checkpoint() to PUBLIC again.";

/// A connection to check.
pub(super) struct Question<'a> {
    pub(super) cluster: &'a ClusterHandle,
    pub(super) candidate: &'a Candidate,
    pub(super) replication: Replication,
    /// When the connection was established.
    pub(super) begun: Instant,
    pub(super) deadline: Instant,
}

/// Which server the connection leads to, if it is the right one.
pub(super) async fn confirm<S: AsyncRead + AsyncWrite + Unpin>(
    question: &Question<'_>,
    connection: &mut ServerConnection<S>,
) -> Result<ServerLocation, Unverified> {
    let Question {
        cluster,
        candidate,
        begun,
        deadline,
        ..
    } = *question;
    let address = connection.address.ip();
    let Some(check) = cluster.address_check(&candidate.member) else {
        return Err("is no longer a member of the cluster".into());
    };
    if check.last().is_some_and(|last| last.address != address) {
        check.doubt(Instant::now());
    }
    let was_doubted = check.is_doubted(Instant::now());
    if !was_doubted && let Some(identity) = seen_by_prober(question, address).await {
        if fits(&cluster.snapshot(), candidate, &identity).is_ok() {
            return Ok(found(identity, IdentifiedBy::Prober, begun));
        }
        check.doubt(Instant::now());
    }
    match server_identity::ask(connection, question.replication, begun, deadline).await {
        Ok(identity) => match fits(&cluster.snapshot(), candidate, &identity) {
            Ok(()) => Ok(found(identity, IdentifiedBy::Session, begun)),
            Err(misfit) => {
                check.doubt(Instant::now());
                check.request();
                Err(misfit.into())
            }
        },
        Err(error) => {
            tracing::debug!(member = %candidate.member, %error, "the server cannot be asked for its identity");
            if error.leaves_usable()
                && was_doubted
                && let Some(identity) = seen_by_prober(question, address).await
            {
                fits(&cluster.snapshot(), candidate, &identity)?;
                return Ok(found(identity, IdentifiedBy::Prober, begun));
            }
            Err(Unverified(
                "could not be confirmed to belong to the cluster".into(),
                UNKNOWN_HINT,
            ))
        }
    }
}

/// Like [`confirm`], for a connection on which the router cannot ask (`mode: tcp`): by what the
/// prober sees, or has seen last if it cannot check now.
pub(super) async fn confirm_unasked(
    question: &Question<'_>,
    address: IpAddr,
) -> Result<ServerLocation, Unverified> {
    let Question {
        cluster,
        candidate,
        begun,
        ..
    } = *question;
    let seen = seen_by_prober(question, address).await;
    let snapshot = cluster.snapshot();
    let identity = seen.or_else(|| {
        let facts = snapshot.member(&candidate.member)?.health.facts.as_ref()?;
        ServerIdentity::of(facts).filter(|last| last.address == address)
    });
    let Some(identity) = identity else {
        return Err(Unverified(
            "was reached at an address at which the router has not seen it".into(),
            FOREIGN_HINT,
        ));
    };
    fits(&snapshot, candidate, &identity)?;
    Ok(found(identity, IdentifiedBy::Prober, begun))
}

fn found(identity: ServerIdentity, known: IdentifiedBy, begun: Instant) -> ServerLocation {
    ServerLocation {
        identity,
        known,
        begun,
    }
}

/// What the prober sees at this address. If that check began before the connection, the next probe
/// looks again: it shows whether the address led elsewhere in between.
async fn seen_by_prober(question: &Question<'_>, address: IpAddr) -> Option<ServerIdentity> {
    let check = question.cluster.address_check(&question.candidate.member)?;
    let identity = if let Some(identity) = check.recent(address, question.begun) {
        Some(identity)
    } else {
        let now = Instant::now();
        let share = question.deadline.saturating_duration_since(now) / 2;
        check.ask(address, question.begun, now + share).await
    };
    if identity.is_some_and(|identity| identity.connected < question.begun) {
        check.request_soon();
    }
    identity
}

impl From<Misfit> for Unverified {
    fn from(misfit: Misfit) -> Self {
        let hint = match misfit {
            Misfit::Foreign | Misfit::OldPrimary => FOREIGN_HINT,
            Misfit::NotWritable | Misfit::NoLongerLeader => CHANGING_HINT,
        };
        Self(misfit.to_string().into(), hint)
    }
}
