//! The changes that the router sees in a cluster.

use std::fmt;

use serde::Serialize;

use super::{Level, log_at};

/// What changed, in which cluster.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClusterEvent {
    pub cluster: String,
    #[serde(flatten)]
    pub change: ClusterChange,
}

impl ClusterEvent {
    pub(super) fn log(&self) {
        let cluster = self.cluster.as_str();
        log_at!(
            self.change.level(),
            "trunkline::cluster::announce",
            cluster,
            "{}",
            self.change
        );
    }
}

/// One change. `Display` is a sentence for an operator.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum ClusterChange {
    SourceLost {
        error: String,
    },
    /// Since the router's start no endpoint has given a list of members.
    NoSourceYet {
        error: String,
    },
    SourceBack,
    EndpointsDisagree {
        how: String,
    },
    EndpointsAgree,
    /// Patroni's `pause`.
    PatroniPaused,
    PatroniResumed,
    MemberAppeared {
        member: String,
        /// `None`: the source gives none.
        address: Option<String>,
    },
    MemberLeft {
        member: String,
    },
    MemberUp {
        member: String,
        facts: Option<MemberFacts>,
    },
    MemberDown {
        member: String,
        error: String,
    },
    /// It is still down, and the reason has changed.
    MemberStillDown {
        member: String,
        error: String,
    },
    /// It has no free connection for the router's probe.
    MemberFull {
        member: String,
        error: String,
        is_role_known: bool,
    },
    MemberNotFull {
        member: String,
    },
    MemberPromoted {
        member: String,
    },
    MemberDemoted {
        member: String,
    },
    /// It belongs to another cluster.
    MemberForeign {
        member: String,
    },
    /// It belongs to this cluster again.
    MemberFamiliar {
        member: String,
    },
    WeightChanged {
        member: String,
        weight: u16,
    },
    ZoneChanged {
        member: String,
        zone: Option<String>,
    },
    /// It is too far behind the leader for a route. `bytes` is `None` if the lag is unknown.
    /// `seconds` is `None` if its duration is unknown.
    MemberLagging {
        member: String,
        route: String,
        bytes: Option<u64>,
        seconds: Option<f64>,
    },
    MemberCaughtUp {
        member: String,
        route: String,
    },
    LeaderChanged {
        member: String,
        timeline: u32,
        named_by: LeaderSource,
    },
    /// The last leader stays while no Patroni endpoint gives a usable answer.
    LeaderKept {
        member: String,
    },
    /// The leader key names the kept leader again.
    LeaderConfirmed {
        member: String,
        timeline: u32,
    },
    LeaderLost {
        member: String,
        why: String,
    },
    /// A switchover may begin: the router asks the leader's Patroni many times a second whether it
    /// stops the server.
    Armed {
        member: String,
        why: String,
    },
    Disarmed {
        member: String,
        why: String,
    },
    /// An operator has put the leader into maintenance or drains it, or such a member is the leader
    /// now.
    LeaderOutOfService {
        member: String,
        draining: bool,
    },
    NoLeader {
        why: String,
    },
    /// A reload added or changed the cluster, and no leader was seen in time.
    NoLeaderYet,
}

/// The facts that a probe read from a member that is up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MemberFacts {
    pub in_recovery: bool,
    pub timeline: u32,
    /// As in `server_version_num`.
    pub server_version: u32,
}

/// How the router determined the leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LeaderSource {
    LeaderKey,
    Failsafe,
    HighestTimeline,
}

impl ClusterChange {
    pub fn level(&self) -> Level {
        match self {
            Self::SourceLost { .. }
            | Self::NoSourceYet { .. }
            | Self::LeaderOutOfService { .. }
            | Self::EndpointsDisagree { .. }
            | Self::MemberDown { .. }
            | Self::MemberStillDown { .. }
            | Self::MemberFull { .. }
            // Of a host that has died this is the last that is heard.
            | Self::MemberLeft { .. }
            | Self::MemberForeign { .. }
            | Self::LeaderKept { .. }
            | Self::LeaderLost { .. }
            | Self::NoLeader { .. }
            | Self::NoLeaderYet => Level::Warn,
            // At the router's start the lag is not known yet.
            Self::MemberLagging { bytes, .. } if bytes.is_some() => Level::Warn,
            _ => Level::Info,
        }
    }
}

impl fmt::Display for ClusterChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SourceLost { error } => write!(f, "the source of the list of members is lost: {error}"),
            Self::SourceBack => f.write_str("the source of the list of members is back"),
            Self::NoSourceYet { error } => write!(f, "there is no list of members yet: {error}"),
            Self::EndpointsDisagree { how } => f.write_str(how),
            Self::EndpointsAgree => {
                f.write_str("Patroni's endpoints, and etcd if it is configured, agree again")
            }
            Self::PatroniPaused => f.write_str("Patroni is paused: there is no automatic failover"),
            Self::PatroniResumed => f.write_str("Patroni is no longer paused"),
            Self::LeaderChanged {
                member,
                timeline,
                named_by,
            } => write!(
                f,
                "{member} is the leader: seen to accept writes on timeline {timeline}, {named_by}"
            ),
            Self::LeaderKept { member } => write!(
                f,
                "{member} stays the leader while no Patroni endpoint gives a usable answer, as long as it accepts writes"
            ),
            Self::LeaderConfirmed { member, timeline } => write!(
                f,
                "{member} is the leader (timeline {timeline}), named by the leader key"
            ),
            Self::LeaderLost { member, why } => write!(f, "{member} is no longer the leader: {why}"),
            Self::Armed { member, why } => write!(
                f,
                "armed for a switchover of {member}: {why}; sessions are served as before"
            ),
            Self::Disarmed { member, why } => {
                write!(f, "no longer armed for a switchover of {member}: {why}")
            }
            Self::LeaderOutOfService { member, draining } => {
                let (state, sessions) = if *draining {
                    ("is being drained", "new read-write sessions")
                } else {
                    ("is in maintenance", "read-write sessions")
                };
                write!(
                    f,
                    "{member} is the leader, but it {state} at this router: {sessions} get no server. Run `trunkline \
                     ready {member}`"
                )
            }
            Self::NoLeader { why } => write!(f, "there is no leader: {why}"),
            Self::NoLeaderYet => f.write_str("no leader was seen yet"),
            member => member.fmt_member(f),
        }
    }
}

impl ClusterChange {
    /// The changes that concern one member.
    fn fmt_member(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MemberAppeared {
                member,
                address: Some(address),
            } => write!(f, "{member} at {address} is a member"),
            Self::MemberAppeared {
                member,
                address: None,
            } => {
                write!(f, "{member} is a member without an address; it is not used")
            }
            Self::MemberLeft { member } => write!(f, "{member} is no longer a member"),
            Self::MemberUp { member, facts: None } => write!(f, "{member} is up"),
            Self::MemberUp {
                member,
                facts: Some(facts),
            } => write!(f, "{member} is up ({facts})"),
            Self::MemberDown { member, error } => write!(f, "{member} is down: {error}"),
            Self::MemberStillDown { member, error } => write!(f, "{member} is still down: {error}"),
            Self::MemberFull {
                member,
                error,
                is_role_known,
            } => {
                let role = if *is_role_known {
                    "the router keeps the role that it saw last"
                } else {
                    "its role is unknown, so each session checks whether it accepts writes"
                };
                write!(
                    f,
                    "{member} is up and has no free connection: {error}; {role}. Let the service account use reserved \
                     connections"
                )
            }
            Self::MemberNotFull { member } => write!(f, "{member} has free connections again"),
            Self::MemberPromoted { member } => write!(f, "{member} has been promoted: it accepts writes"),
            Self::MemberDemoted { member } => write!(f, "{member} has been demoted: it is a standby now"),
            Self::MemberForeign { member } => write!(
                f,
                "{member} belongs to another cluster (by its system identifier); it is not used. Check the name \
                 service, virtual addresses and forwarded ports. If the cluster was created again, run trunkline \
                 forget-identity"
            ),
            Self::MemberFamiliar { member } => write!(f, "{member} belongs to this cluster now"),
            Self::WeightChanged { member, weight } => write!(f, "{member} has weight {weight}"),
            Self::ZoneChanged {
                member,
                zone: Some(zone),
            } => write!(f, "{member} is in zone {}", zone.escape_debug()),
            Self::ZoneChanged { member, zone: None } => write!(f, "{member} is in no zone"),
            Self::MemberLagging {
                member,
                route,
                bytes,
                seconds,
            } => {
                write!(f, "{member} gets no sessions of route {route}: ")?;
                match (bytes, seconds) {
                    (Some(bytes), Some(seconds)) => {
                        write!(f, "it is {bytes} bytes and {seconds:.1} s behind the leader")
                    }
                    (Some(bytes), None) => write!(
                        f,
                        "it is {bytes} bytes behind the leader; the duration is unknown"
                    ),
                    (None, _) => f.write_str("its lag behind the leader is unknown"),
                }
            }
            Self::MemberCaughtUp { member, route } => {
                write!(
                    f,
                    "{member} is close enough to the leader for route {route} again"
                )
            }
            // The other changes concern the whole cluster.
            _ => Ok(()),
        }
    }
}

impl fmt::Display for MemberFacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let role = if self.in_recovery {
            "standby"
        } else {
            "accepts writes"
        };
        let (major, minor) = (self.server_version / 10_000, self.server_version % 10_000);
        write!(f, "{role}, timeline {}, PostgreSQL {major}", self.timeline)?;
        // A pre-release (`19rc1`) has the number of 19.0, so a minor version of 0 is not shown.
        if minor == 0 { Ok(()) } else { write!(f, ".{minor}") }
    }
}

impl fmt::Display for LeaderSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LeaderKey => "named by the leader key",
            Self::Failsafe => "the last one named; no Patroni endpoint gives a usable answer",
            Self::HighestTimeline => "it has the highest timeline",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minor_version_of_zero_is_not_shown() {
        for (server_version, shown) in [(150_020, "15.20"), (180_006, "18.6"), (190_000, "19")] {
            let facts = MemberFacts {
                in_recovery: true,
                timeline: 3,
                server_version,
            };
            assert_eq!(
                facts.to_string(),
                format!("standby, timeline 3, PostgreSQL {shown}")
            );
        }
    }
}
