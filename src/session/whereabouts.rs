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
use crate::cluster::server_identity::{self, IdentifiedBy, MAX_CHECK_AGE, ServerIdentity, ServerLocation};
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
                return judge(question, identity).await;
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
        cluster, candidate, ..
    } = *question;
    let seen = seen_by_prober(question, address).await;
    let identity = seen.or_else(|| {
        let snapshot = cluster.snapshot();
        let facts = snapshot.member(&candidate.member)?.health.facts.as_ref()?;
        ServerIdentity::of(facts).filter(|last| last.address == address)
    });
    let Some(identity) = identity else {
        return Err(Unverified(
            "was reached at an address at which the router has not seen it".into(),
            FOREIGN_HINT,
        ));
    };
    judge(question, identity).await
}

/// Whether the server fits by what the prober has seen. A check from before the connection may
/// show a standby that has been promoted since, so it refuses nobody: the prober checks once more.
async fn judge(question: &Question<'_>, identity: ServerIdentity) -> Result<ServerLocation, Unverified> {
    let Question {
        cluster,
        candidate,
        begun,
        deadline,
        ..
    } = *question;
    let judged = |identity| match fits(&cluster.snapshot(), candidate, &identity) {
        Ok(()) => Ok(found(identity, IdentifiedBy::Prober, begun)),
        Err(misfit) => Err(misfit),
    };
    let misfit = match judged(identity) {
        Err(misfit) if identity.connected < begun => misfit,
        verdict => return verdict.map_err(Unverified::from),
    };
    let newer = match cluster.address_check(&candidate.member) {
        Some(check) => check.ask(identity.address, begun + MAX_CHECK_AGE, deadline).await,
        None => None,
    };
    newer.map_or(Err(misfit), judged).map_err(Unverified::from)
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::net::Ipv4Addr;
    use std::time::Duration;

    use futures_util::poll;
    use tokio::time::advance;

    use super::*;
    use crate::cluster::scripted::Script;
    use crate::cluster::snapshot::MemberName;
    use crate::routing::Preference;
    use crate::session::topology::{SYSTEM, TIMELINE, member, snapshot};

    const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
    const TEXT: &str = "clusters: {main: {servers: [{name: db1, host: 127.0.0.1, port: 1}], \
                        server_tls: {sslmode: disable}, service_account: {user: u}}}\n\
                        listeners: [{name: rw, address: \"127.0.0.1:1\", route: read-write}]\n";

    fn seen(in_recovery: bool) -> ServerIdentity {
        ServerIdentity {
            system_identifier: SYSTEM,
            timeline: TIMELINE,
            in_recovery,
            address: ADDRESS,
            connected: Instant::now(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_check_from_before_a_promotion_refuses_nobody() {
        let script = Script::new(TEXT, snapshot(Some("db1"), vec![member("db1", false)]));
        let candidate = Candidate {
            member: MemberName::new("db1"),
            host: "127.0.0.1".to_owned(),
            port: 1,
            reason: Preference::Leader,
        };
        let check = script.cluster.address_check(&candidate.member).unwrap();
        let question = || Question {
            cluster: &script.cluster,
            candidate: &candidate,
            replication: Replication::None,
            begun: Instant::now(),
            deadline: Instant::now() + Duration::from_secs(1),
        };
        for (is_standby_still, expected) in [
            (Some(false), None),
            (Some(true), Some("does not accept writes")),
            // Nobody can check any more.
            (None, Some("does not accept writes")),
        ] {
            Script::checked(&check, Some(seen(true)));
            advance(Duration::from_millis(100)).await;
            let question = question();
            let judging = confirm_unasked(&question, ADDRESS);
            tokio::pin!(judging);
            assert!(poll!(&mut judging).is_pending(), "it looks once more");
            if let Some(in_recovery) = is_standby_still {
                advance(Duration::from_millis(10)).await;
                Script::checked(&check, Some(seen(in_recovery)));
            }
            let refused = judging.await.err().map(|Unverified(reason, _)| reason);
            assert_eq!(refused.as_deref(), expected);
        }
        // What has been checked since the connection began is enough.
        Script::checked(&check, Some(seen(true)));
        let question = question();
        let judging = confirm_unasked(&question, ADDRESS);
        tokio::pin!(judging);
        assert!(matches!(
            poll!(&mut judging),
            std::task::Poll::Ready(Err(Unverified(..)))
        ));
    }
}
