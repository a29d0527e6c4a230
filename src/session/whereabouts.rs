//! Is the server at the other end of a session's connection the one the router has seen under the member's name?
//!
//! The address that the connection reached is held against the last look of the member's prober, which looks again
//! where that is old ([`crate::cluster::sight`]): this costs the session no query. Where the address is another one,
//! where the prober cannot tell, or where something did not fit within the last minute, that very connection is asked
//! for system identifier, role and timeline. The functions for this may be executed by PUBLIC unless an administrator
//! has revoked it; a role that may not is believed as far as the prober sees the same address.

use std::net::IpAddr;

use tokio::time::Instant;

use crate::backend::ServerConnection;
use crate::backend::{CHANGING_HINT, Unverified};
use crate::cluster::ClusterHandle;
use crate::cluster::sight::{self, Known, Sight, Whereabouts};
use crate::routing::{Candidate, Misfit, fits};
use crate::wire::startup::Replication;

/// Tells an operator what to look at.
const FOREIGN_HINT: &str = "Its name or address leads to another server than before; its operator has to look at name \
                            service, virtual addresses and forwarded ports.";
const UNKNOWN_HINT: &str = "Try again in a moment. If this goes on, PUBLIC has to be granted EXECUTE on \
                            pg_control_system() and pg_control_checkpoint() again.";

/// A connection that is to be held against what was seen.
pub(super) struct Question<'a> {
    pub(super) cluster: &'a ClusterHandle,
    pub(super) candidate: &'a Candidate,
    pub(super) replication: Replication,
    /// When the connection stood.
    pub(super) begun: Instant,
    pub(super) deadline: Instant,
}

/// Where the connection leads, if that is where it should.
pub(super) async fn confirm(
    question: &Question<'_>,
    connection: &mut ServerConnection,
) -> Result<Whereabouts, Unverified> {
    let Question {
        cluster,
        candidate,
        begun,
        deadline,
        ..
    } = *question;
    let address = connection.address.ip();
    let Some(look) = cluster.look(&candidate.member) else {
        return Err("is no longer a member of the cluster".into());
    };
    if look.last().is_some_and(|last| last.address != address) {
        look.doubt(Instant::now());
    }
    let was_doubted = look.is_doubted(Instant::now());
    if !was_doubted && let Some(sight) = beside(question, address).await {
        if fits(&cluster.snapshot(), candidate, &sight).is_ok() {
            return Ok(found(sight, Known::Beside, begun));
        }
        look.doubt(Instant::now());
    }
    match sight::ask(connection, question.replication, begun, deadline).await {
        Ok(sight) => match fits(&cluster.snapshot(), candidate, &sight) {
            Ok(()) => Ok(found(sight, Known::Asked, begun)),
            Err(misfit) => {
                look.doubt(Instant::now());
                look.want();
                Err(misfit.into())
            }
        },
        Err(error) => {
            tracing::debug!(member = %candidate.member, %error, "it cannot be asked which server it is");
            if error.leaves_usable()
                && was_doubted
                && let Some(sight) = beside(question, address).await
            {
                fits(&cluster.snapshot(), candidate, &sight)?;
                return Ok(found(sight, Known::Beside, begun));
            }
            Err(Unverified(
                "could not be confirmed to belong to the cluster".into(),
                UNKNOWN_HINT,
            ))
        }
    }
}

/// As [`confirm`], of a connection that cannot be asked (`mode: tcp`): by what the prober sees, or has seen last where it
/// cannot look now.
pub(super) async fn confirm_unasked(
    question: &Question<'_>,
    address: IpAddr,
) -> Result<Whereabouts, Unverified> {
    let Question {
        cluster,
        candidate,
        begun,
        ..
    } = *question;
    let seen = beside(question, address).await;
    let snapshot = cluster.snapshot();
    let sight = seen.or_else(|| {
        let facts = snapshot.member(&candidate.member)?.health.facts.as_ref()?;
        Sight::of(facts).filter(|last| last.address == address)
    });
    let Some(sight) = sight else {
        return Err(Unverified(
            "was reached at an address where it has not been seen".into(),
            FOREIGN_HINT,
        ));
    };
    fits(&snapshot, candidate, &sight)?;
    Ok(found(sight, Known::Beside, begun))
}

fn found(sight: Sight, known: Known, begun: Instant) -> Whereabouts {
    Whereabouts { sight, known, begun }
}

/// What the prober sees at that address. After a look that was begun before the connection the next probe is one, too: it
/// shows whether the address led elsewhere in between.
async fn beside(question: &Question<'_>, address: IpAddr) -> Option<Sight> {
    let look = question.cluster.look(&question.candidate.member)?;
    let sight = if let Some(sight) = look.recent(address, question.begun) {
        Some(sight)
    } else {
        let now = Instant::now();
        let share = question.deadline.saturating_duration_since(now) / 2;
        look.ask(address, question.begun, now + share).await
    };
    if sight.is_some_and(|sight| sight.connected < question.begun) {
        look.want_soon();
    }
    sight
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
