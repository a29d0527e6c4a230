//! Sessions and where they were seen to be; the member has system identifier 7 and is on timeline 3.
#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use tokio::time::Instant;

use super::super::policy::tests::three;
use super::*;
use crate::cluster::snapshot::VerifiedAt;

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
const ELSEWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2));

/// When the session began.
fn begun() -> Instant {
    Instant::now() + Duration::from_secs(100)
}

fn place(known: Known, begun: Instant) -> Whereabouts {
    Whereabouts {
        sight: Sight {
            system_identifier: 7,
            timeline: 3,
            in_recovery: false,
            address: HERE,
            connected: begun,
        },
        known,
        begun,
    }
}

/// A probe that connected so long after (or before) the session saw this on db1, at the session's address.
fn seen(identifier: u64, timeline: u32, begun: Instant, later: i64) -> Snapshot {
    let mut cluster = three();
    let offset = Duration::from_secs(later.unsigned_abs());
    let connected = if later < 0 { begun - offset } else { begun + offset };
    let member = &mut cluster.members[0];
    if identifier != 7 {
        member.identity = Identity::Foreign;
        cluster.leader = Leader::None(NoLeader::NamedForeign(member.name.clone()));
    }
    let facts = member.health.facts.as_mut().unwrap();
    facts.system_identifier = identifier;
    facts.timeline = timeline;
    facts.address = Some(HERE);
    facts.connected = Some(connected);
    cluster
}

fn of(cluster: &Snapshot, granted: GrantedRole, place: &Whereabouts) -> SessionVerdict {
    verdict(cluster, granted, &MemberName::new("db1"), Some(place))
}

fn foreign() -> SessionVerdict {
    SessionVerdict::End(EndReason::Foreign(MemberName::new("db1")))
}

fn old_primary() -> SessionVerdict {
    SessionVerdict::End(EndReason::OldPrimary(MemberName::new("db1")))
}

#[test]
fn a_session_that_was_led_to_another_cluster_ends_whatever_it_was_promised() {
    let begun = begun();
    for granted in [
        GrantedRole::ReadWrite,
        GrantedRole::ReadOnly,
        GrantedRole::Unenforced,
        GrantedRole::Enforced,
    ] {
        let cluster = seen(666, 9, begun, 1);
        assert_eq!(
            of(&cluster, granted, &place(Known::Beside, begun)),
            foreign(),
            "{granted:?}"
        );
        // Its own connection was asked: the other server is only a namesake.
        assert_eq!(
            of(&cluster, granted, &place(Known::Asked, begun)),
            SessionVerdict::Stay,
            "{granted:?}"
        );
    }
}

#[test]
fn a_session_whose_server_was_seen_before_and_after_it_began_stays_where_it_is() {
    let begun = begun();
    let beside = place(Known::Beside, begun);
    for (identifier, timeline) in [(666, 9), (7, 2)] {
        let mut cluster = seen(identifier, timeline, begun, 50);
        cluster.leader = Leader::None(NoLeader::NotNamed);
        let verified = |later: u64, timeline: u32| VerifiedAt {
            at: begun + Duration::from_secs(later),
            timeline,
        };
        assert_ne!(
            of(&cluster, GrantedRole::ReadWrite, &beside),
            SessionVerdict::Stay
        );
        cluster.members[0].health.verified = Some(verified(1, 3));
        assert_eq!(
            of(&cluster, GrantedRole::ReadWrite, &beside),
            SessionVerdict::Stay
        );
        cluster.members[0].health.verified = Some(verified(1, 2));
        assert_ne!(
            of(&cluster, GrantedRole::ReadWrite, &beside),
            SessionVerdict::Stay,
            "not on its timeline"
        );
        cluster.members[0].health.verified = Some(VerifiedAt {
            at: begun - Duration::from_secs(1),
            timeline: 3,
        });
        assert_ne!(
            of(&cluster, GrantedRole::ReadWrite, &beside),
            SessionVerdict::Stay,
            "before it began"
        );
    }
}

#[test]
fn what_was_seen_elsewhere_or_before_says_nothing_of_a_session() {
    let begun = begun();
    let beside = place(Known::Beside, begun);
    assert_eq!(
        of(&seen(666, 9, begun, -1), GrantedRole::ReadWrite, &beside),
        SessionVerdict::Stay
    );
    let mut cluster = seen(666, 9, begun, 1);
    cluster.members[0].health.facts.as_mut().unwrap().address = Some(ELSEWHERE);
    assert_eq!(
        of(&cluster, GrantedRole::ReadWrite, &beside),
        SessionVerdict::Stay
    );
}

#[test]
fn a_read_write_session_ends_when_the_leader_of_its_name_is_on_a_newer_timeline() {
    let begun = begun();
    let mut cluster = seen(7, 4, begun, 1);
    cluster.leader = Leader::Verified {
        member: MemberName::new("db1"),
        timeline: 4,
        named_by: crate::cluster::snapshot::NamedBy::LeaderKey,
    };
    for known in [Known::Asked, Known::Beside] {
        assert_eq!(
            of(&cluster, GrantedRole::ReadWrite, &place(known, begun)),
            old_primary()
        );
        assert_eq!(
            of(&cluster, GrantedRole::Unenforced, &place(known, begun)),
            SessionVerdict::Stay
        );
    }
    // The other way round: led to the old primary.
    assert_eq!(
        of(
            &seen(7, 2, begun, 1),
            GrantedRole::ReadWrite,
            &place(Known::Beside, begun)
        ),
        old_primary()
    );
    assert_eq!(
        of(
            &seen(7, 2, begun, 1),
            GrantedRole::ReadWrite,
            &place(Known::Asked, begun)
        ),
        SessionVerdict::Stay
    );
}

#[test]
fn once_the_cluster_is_another_one_sessions_on_the_old_servers_end() {
    let begun = begun();
    let mut cluster = three();
    cluster.system_identifier = None;
    assert_eq!(
        of(&cluster, GrantedRole::ReadWrite, &place(Known::Asked, begun)),
        SessionVerdict::Stay,
        "not known yet"
    );
    cluster.system_identifier = Some(8);
    assert_eq!(
        of(&cluster, GrantedRole::ReadOnly, &place(Known::Asked, begun)),
        foreign()
    );
}

#[test]
fn a_candidate_is_held_against_what_was_seen_of_it() {
    let cluster = three();
    let candidate = |name: &str, reason| Candidate {
        member: MemberName::new(name),
        host: String::new(),
        port: 0,
        reason,
    };
    let leader = candidate("db1", Preference::Leader);
    let good = place(Known::Asked, begun()).sight;
    let fit = |candidate: &Candidate, sight: Sight| fits(&cluster, candidate, &sight);
    assert_eq!(fit(&leader, good), Ok(()));
    assert_eq!(
        fit(&leader, Sight { timeline: 4, ..good }),
        Ok(()),
        "newer than the last probe"
    );
    for (sight, misfit) in [
        (
            Sight {
                system_identifier: 666,
                ..good
            },
            Misfit::Foreign,
        ),
        (Sight { timeline: 2, ..good }, Misfit::OldPrimary),
        (
            Sight {
                in_recovery: true,
                ..good
            },
            Misfit::NotWritable,
        ),
    ] {
        assert_eq!(fit(&leader, sight), Err(misfit));
    }
    assert_eq!(
        fit(&candidate("db2", Preference::Leader), good),
        Err(Misfit::NoLongerLeader)
    );
    let replica = candidate("db2", Preference::Streaming);
    let standby = Sight {
        in_recovery: true,
        timeline: 2,
        ..good
    };
    assert_eq!(fit(&replica, standby), Ok(()));
    let foreign = Sight {
        system_identifier: 666,
        ..standby
    };
    assert_eq!(fit(&replica, foreign), Err(Misfit::Foreign));
}

/// No probe can look at a full server: its sessions tell which one it is, also where no probe has told before.
#[test]
fn a_full_leader_is_held_against_what_is_known() {
    let mut cluster = three();
    let member = MemberName::new("db1");
    cluster.leader = Leader::None(NoLeader::Full {
        member: member.clone(),
        newest: 3,
    });
    let candidate = Candidate {
        member,
        host: String::new(),
        port: 0,
        reason: Preference::Leader,
    };
    let good = place(Known::Asked, begun()).sight;
    let foreign = Sight {
        system_identifier: 666,
        ..good
    };
    assert_eq!(fits(&cluster, &candidate, &good), Ok(()));
    assert_eq!(fits(&cluster, &candidate, &foreign), Err(Misfit::Foreign));
    assert_eq!(
        fits(&cluster, &candidate, &Sight { timeline: 2, ..good }),
        Err(Misfit::OldPrimary)
    );
    cluster.system_identifier = None;
    assert_eq!(fits(&cluster, &candidate, &foreign), Ok(()));
}
