//! Sessions whose server was seen. The member has system identifier 7 and is on timeline 3.
#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use tokio::time::Instant;

use super::super::policy::tests::three;
use super::*;
use crate::cluster::snapshot::{Strayed, VerifiedAt};

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
const ELSEWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2));

/// When the session began.
fn begun() -> Instant {
    Instant::now() + Duration::from_secs(100)
}

fn place(known: IdentifiedBy, begun: Instant) -> ServerLocation {
    ServerLocation {
        identity: ServerIdentity {
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

/// A probe saw this on db1, at the session's address. It connected `later` seconds after the
/// session (before it if negative).
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

fn of(cluster: &Snapshot, granted: GrantedRole, place: &ServerLocation) -> SessionVerdict {
    verdict(cluster, granted, &MemberName::new("db1"), Some(place))
}

fn foreign() -> SessionVerdict {
    SessionVerdict::End(EndReason::Foreign(MemberName::new("db1")))
}

fn old_primary() -> SessionVerdict {
    SessionVerdict::End(EndReason::OldPrimary(MemberName::new("db1")))
}

#[test]
fn a_session_on_a_server_of_another_cluster_ends_in_every_granted_role() {
    let begun = begun();
    for granted in [
        GrantedRole::ReadWrite,
        GrantedRole::ReadOnly,
        GrantedRole::Unenforced,
        GrantedRole::Enforced,
    ] {
        let cluster = seen(666, 9, begun, 1);
        assert_eq!(
            of(&cluster, granted, &place(IdentifiedBy::Prober, begun)),
            foreign(),
            "{granted:?}"
        );
        // Its own connection was asked: the other server only has the same name.
        assert_eq!(
            of(&cluster, granted, &place(IdentifiedBy::Session, begun)),
            SessionVerdict::Stay,
            "{granted:?}"
        );
    }
}

#[test]
fn a_session_whose_server_was_verified_after_it_began_stays() {
    let begun = begun();
    let beside = place(IdentifiedBy::Prober, begun);
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
fn a_session_that_was_led_elsewhere_ends_even_if_nobody_looked_before_the_address_led_back() {
    let begun = begun();
    let beside = place(IdentifiedBy::Prober, begun);
    for (identifier, timeline, expected) in [(666, 9, foreign()), (7, 2, old_primary())] {
        let there = seen(identifier, timeline, begun, 1).members[0]
            .health
            .facts
            .clone();
        let mut cluster = seen(7, 3, begun, 2);
        cluster.leader = Leader::None(NoLeader::NotNamed);
        let health = &mut cluster.members[0].health;
        health.verified = Some(VerifiedAt {
            at: begun + Duration::from_secs(2),
            timeline: 3,
        });
        assert_eq!(
            of(&cluster, GrantedRole::ReadWrite, &beside),
            SessionVerdict::Stay
        );
        cluster.members[0].health.strayed = Some(Strayed {
            facts: there.unwrap(),
            known: begun + Duration::from_secs(2),
            before: None,
        });
        assert_eq!(of(&cluster, GrantedRole::ReadWrite, &beside), expected.clone());
        // Verified between its begin and the probe that strayed.
        let strayed = cluster.members[0].health.strayed.as_mut().unwrap();
        strayed.before = Some(VerifiedAt {
            at: begun,
            timeline: 3,
        });
        assert_eq!(
            of(&cluster, GrantedRole::ReadWrite, &beside),
            SessionVerdict::Stay
        );
        // Begun when the probe was already there and had not told; and after that.
        cluster.members[0].health.strayed.as_mut().unwrap().before = None;
        for (later, expected) in [(1500, &expected), (2500, &SessionVerdict::Stay)] {
            let later = place(IdentifiedBy::Prober, begun + Duration::from_millis(later));
            assert_eq!(of(&cluster, GrantedRole::ReadWrite, &later), *expected);
        }
    }
}

#[test]
fn a_probe_elsewhere_or_before_the_session_does_not_end_it() {
    let begun = begun();
    let beside = place(IdentifiedBy::Prober, begun);
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
    for known in [IdentifiedBy::Session, IdentifiedBy::Prober] {
        assert_eq!(
            of(&cluster, GrantedRole::ReadWrite, &place(known, begun)),
            old_primary()
        );
        assert_eq!(
            of(&cluster, GrantedRole::Unenforced, &place(known, begun)),
            SessionVerdict::Stay
        );
    }
    // The other way round: the session may be on the old primary.
    assert_eq!(
        of(
            &seen(7, 2, begun, 1),
            GrantedRole::ReadWrite,
            &place(IdentifiedBy::Prober, begun)
        ),
        old_primary()
    );
    assert_eq!(
        of(
            &seen(7, 2, begun, 1),
            GrantedRole::ReadWrite,
            &place(IdentifiedBy::Session, begun)
        ),
        SessionVerdict::Stay
    );
}

#[test]
fn sessions_on_the_old_servers_end_when_the_cluster_has_a_new_identity() {
    let begun = begun();
    let mut cluster = three();
    cluster.system_identifier = None;
    assert_eq!(
        of(
            &cluster,
            GrantedRole::ReadWrite,
            &place(IdentifiedBy::Session, begun)
        ),
        SessionVerdict::Stay,
        "not known yet"
    );
    cluster.system_identifier = Some(8);
    assert_eq!(
        of(
            &cluster,
            GrantedRole::ReadOnly,
            &place(IdentifiedBy::Session, begun)
        ),
        foreign()
    );
}

#[test]
fn a_candidate_must_match_the_server_that_was_seen() {
    let cluster = three();
    let candidate = |name: &str, reason| Candidate {
        member: MemberName::new(name),
        host: String::new(),
        port: 0,
        reason,
    };
    let leader = candidate("db1", Preference::Leader);
    let good = place(IdentifiedBy::Session, begun()).identity;
    let fit = |candidate: &Candidate, identity: ServerIdentity| fits(&cluster, candidate, &identity);
    assert_eq!(fit(&leader, good), Ok(()));
    assert_eq!(
        fit(&leader, ServerIdentity { timeline: 4, ..good }),
        Ok(()),
        "newer than the last probe"
    );
    for (identity, misfit) in [
        (
            ServerIdentity {
                system_identifier: 666,
                ..good
            },
            Misfit::Foreign,
        ),
        (ServerIdentity { timeline: 2, ..good }, Misfit::OldPrimary),
        (
            ServerIdentity {
                in_recovery: true,
                ..good
            },
            Misfit::NotWritable,
        ),
    ] {
        assert_eq!(fit(&leader, identity), Err(misfit));
    }
    assert_eq!(
        fit(&candidate("db2", Preference::Leader), good),
        Err(Misfit::NoLongerLeader)
    );
    let replica = candidate("db2", Preference::Streaming);
    let standby = ServerIdentity {
        in_recovery: true,
        timeline: 2,
        ..good
    };
    assert_eq!(fit(&replica, standby), Ok(()));
    let foreign = ServerIdentity {
        system_identifier: 666,
        ..standby
    };
    assert_eq!(fit(&replica, foreign), Err(Misfit::Foreign));
}

/// No probe can connect to a full server, so its sessions verify it. Any identifier is accepted
/// while none is known.
#[test]
fn a_full_leader_must_match_the_known_identity() {
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
    let good = place(IdentifiedBy::Session, begun()).identity;
    let foreign = ServerIdentity {
        system_identifier: 666,
        ..good
    };
    assert_eq!(fits(&cluster, &candidate, &good), Ok(()));
    assert_eq!(fits(&cluster, &candidate, &foreign), Err(Misfit::Foreign));
    assert_eq!(
        fits(&cluster, &candidate, &ServerIdentity { timeline: 2, ..good }),
        Err(Misfit::OldPrimary)
    );
    cluster.system_identifier = None;
    assert_eq!(fits(&cluster, &candidate, &foreign), Ok(()));
}
