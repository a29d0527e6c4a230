//! What ends each kind of problem. A kind without a remedy does not compile.

/// A kind of problem, with what its remedy needs to know.
#[derive(Debug)]
pub(super) enum Finding<'a> {
    RouterStarting,
    RouterDrained,
    RouterStopping,
    NoLeader,
    /// The list of members may be out of date.
    SourceLost,
    EndpointsDisagree,
    PatroniPaused,
    RouteDisabled(&'a str),
    /// `ended_by`: as the hold itself says.
    RouteHeld {
        ended_by: &'a str,
    },
    RoutePaused(&'a str),
    /// No member can serve the route.
    RouteUnserved,
    Switchover,
    MemberDown {
        member: &'a str,
        /// HAProxy's word for how the last probe ended.
        check: &'a str,
        /// By the source, verbatim; empty in a fixed list.
        state: &'a str,
    },
    /// Drained or in maintenance.
    MemberOutOfService(&'a str),
    MemberUnchecked,
    MemberLags(&'a str),
    MemberLeft,
    /// Sessions wait for a connection of the pool, or were refused one.
    PoolShort {
        route: &'a str,
    },
    /// `is_read_again`: the router reads a new file by itself.
    Certificate {
        is_read_again: bool,
    },
    ReloadRefused {
        file: &'a str,
    },
    FilesRefused,
}

impl Finding<'_> {
    /// What to do, with the command where there is one.
    pub(super) fn remedy(&self) -> String {
        match self {
            Self::RouterStarting => "it ends by itself when the router has seen its clusters; the log says what it waits for \
                                     (docs/alerts.md, TrunklineRouterNotReady)"
                .to_owned(),
            Self::RouterDrained => "`trunkline router ready`".to_owned(),
            Self::RouterStopping => {
                "it ends with the stop of this process; `systemctl start trunkline` starts the next one".to_owned()
            }
            Self::NoLeader => "`patronictl list` and `trunkline doctor -c FILE` say why no member leads; it ends by itself \
                               when one does (docs/alerts.md, TrunklineNoLeader)"
                .to_owned(),
            Self::SourceLost => "make an endpoint answer: `trunkline doctor -c FILE` says which ones do not (docs/alerts.md, \
                                 TrunklineSourceDown)"
                .to_owned(),
            Self::EndpointsDisagree => {
                "compare what `patronictl list` says on the host of each endpoint, and take out the one that is wrong"
                    .to_owned()
            }
            Self::PatroniPaused => "`patronictl resume`".to_owned(),
            Self::RouteDisabled(route) => format!("`trunkline enable {route}`"),
            Self::RouteHeld { ended_by } => (*ended_by).to_owned(),
            Self::RoutePaused(route) => format!("`trunkline unpause {route}`"),
            Self::RouteUnserved => "make a member fit again: `trunkline members` shows the state of each (docs/alerts.md, \
                                    TrunklineRouteWithoutMember)"
                .to_owned(),
            Self::Switchover => {
                "it ends by itself; `trunkline switchover --abort` undoes it as long as Patroni has not been asked".to_owned()
            }
            Self::MemberDown { member, check, state } => member_down(member, check, state),
            Self::MemberOutOfService(member) => format!("`trunkline ready {member}`"),
            Self::MemberUnchecked => "it ends by itself with the first probe".to_owned(),
            Self::MemberLags(member) => format!(
                "end long queries on {member}, or wait until it has caught up (docs/alerts.md, TrunklineReplicaLags)"
            ),
            Self::MemberLeft => {
                "start its Patroni again; if it was removed on purpose, do nothing: this is said for an hour".to_owned()
            }
            Self::PoolShort { route } => format!(
                "`trunkline sessions --route {route}` shows who has the connections; end a session with `trunkline kill ID`, \
                 or raise `pool.max_connections` (docs/operations.md, A pool is full)"
            ),
            Self::Certificate { is_read_again: true } => {
                "renew it; the router reads the new file by itself".to_owned()
            }
            Self::Certificate { is_read_again: false } => {
                "renew it, and run `trunkline reload`, which reads the new file".to_owned()
            }
            Self::ReloadRefused { file } => format!("correct {file}, and run `trunkline reload -c {file}`"),
            Self::FilesRefused => "correct them; the router reads them again by itself".to_owned(),
        }
    }
}

/// By what Patroni does there, and by how the probe ended: nothing answers there, or the server
/// refuses the service account.
fn member_down(member: &str, check: &str, state: &str) -> String {
    let first = match check {
        _ if is_being_started(state) => {
            format!(
                "Patroni reports {member} as \"{state}\": wait until it has started; its log says how far it is"
            )
        }
        "L4CON" | "L4TOUT" => {
            format!("start PostgreSQL on {member}, or correct the way there from this host")
        }
        "L6RSP" | "L6TOUT" => {
            format!("correct TLS of {member}: `trunkline doctor -c FILE` says what does not fit")
        }
        "L7STS" => format!(
            "if the service account is refused, correct its password or `pg_hba.conf`: `trunkline doctor -c FILE` says what \
             {member} lacks"
        ),
        "SOCKERR" => {
            "give this host what it lacks: `trunkline doctor -c FILE` looks at its limits".to_owned()
        }
        _ => format!("`trunkline doctor -c FILE` says what is wrong with {member}"),
    };
    format!("{first} (docs/alerts.md, TrunklineMemberDown)")
}

/// Patroni's words for a server that it is about to start again, as after a switchover
/// (`PostgresqlState`).
fn is_being_started(state: &str) -> bool {
    matches!(
        state,
        "starting"
            | "restarting"
            | "stopping"
            | "creating replica"
            | "initializing new cluster"
            | "running custom bootstrap script"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One of each kind. A new kind does not compile here until it has a number, and then fails
    /// until it is in the list.
    #[test]
    fn each_kind_of_problem_has_a_remedy() {
        use Finding as Is;
        let all = [
            Is::RouterStarting,
            Is::RouterDrained,
            Is::RouterStopping,
            Is::NoLeader,
            Is::SourceLost,
            Is::EndpointsDisagree,
            Is::PatroniPaused,
            Is::RouteDisabled("rw"),
            Is::RouteHeld {
                ended_by: "`trunkline ready db1`",
            },
            Is::RoutePaused("rw"),
            Is::RouteUnserved,
            Is::Switchover,
            Is::MemberDown {
                member: "db1",
                check: "L7STS",
                state: "running",
            },
            Is::MemberOutOfService("db1"),
            Is::MemberUnchecked,
            Is::MemberLags("db1"),
            Is::MemberLeft,
            Is::PoolShort { route: "rw" },
            Is::Certificate { is_read_again: true },
            Is::ReloadRefused { file: "t.yaml" },
            Is::FilesRefused,
        ];
        let number = |finding: &Finding<'_>| match finding {
            Is::RouterStarting => 0,
            Is::RouterDrained => 1,
            Is::RouterStopping => 2,
            Is::NoLeader => 3,
            Is::SourceLost => 4,
            Is::EndpointsDisagree => 5,
            Is::PatroniPaused => 6,
            Is::RouteDisabled(_) => 7,
            Is::RouteHeld { .. } => 8,
            Is::RoutePaused(_) => 9,
            Is::RouteUnserved => 10,
            Is::Switchover => 11,
            Is::MemberDown { .. } => 12,
            Is::MemberOutOfService(_) => 13,
            Is::MemberUnchecked => 14,
            Is::MemberLags(_) => 15,
            Is::MemberLeft => 16,
            Is::PoolShort { .. } => 17,
            Is::Certificate { .. } => 18,
            Is::ReloadRefused { .. } => 19,
            Is::FilesRefused => 20,
        };
        for (expected, finding) in all.iter().enumerate() {
            assert_eq!(number(finding), expected);
            assert!(!finding.remedy().is_empty(), "{finding:?}");
        }
        for (finding, command) in [
            (&all[1], "`trunkline router ready`"),
            (&all[7], "`trunkline enable rw`"),
            (&all[13], "`trunkline ready db1`"),
            (&all[12], "correct its password or `pg_hba.conf`"),
            (&all[17], "`trunkline sessions --route rw`"),
        ] {
            assert!(finding.remedy().contains(command), "{}", finding.remedy());
        }
        let down = |check, state| {
            Is::MemberDown {
                member: "db1",
                check,
                state,
            }
            .remedy()
        };
        let remedy = |check| down(check, "running");
        // It is not for the operator to start what Patroni starts.
        for state in ["starting", "stopping", "creating replica"] {
            let said = down("L4CON", state);
            assert!(
                said.contains("wait until it has started") && !said.contains("start PostgreSQL"),
                "{said}"
            );
        }
        for state in ["", "running", "stopped", "start failed", "crashed"] {
            assert!(
                down("L4CON", state).contains("start PostgreSQL on db1"),
                "{state}"
            );
        }
        for check in ["L4CON", "L4TOUT", "L6RSP", "L6TOUT", "L7RSP", "L7TOUT", "SOCKERR"] {
            assert!(
                remedy(check).ends_with("(docs/alerts.md, TrunklineMemberDown)"),
                "{check}"
            );
        }
    }
}
