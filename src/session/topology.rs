//! Clusters as a probe sees them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::cluster::snapshot::{
    AdminState, Health, Identity, Leader, Member, MemberName, NamedBy, NoLeader, ProbeFacts, Role, Snapshot,
    SourceStatus, WHOLE_SHARE,
};

pub(in crate::session) const SYSTEM: u64 = 42;
pub(in crate::session) const TIMELINE: u32 = 1;

/// A member that is up, in recovery or not.
pub(in crate::session) fn member(name: &str, in_recovery: bool) -> Member {
    Member {
        name: MemberName::new(name),
        host: "127.0.0.1".to_owned(),
        port: 5432,
        role: Role::Unnamed,
        state: String::new(),
        timeline: None,
        lag: None,
        tags: BTreeMap::new(),
        health: Health {
            up: true,
            facts: Some(ProbeFacts {
                in_recovery,
                system_identifier: SYSTEM,
                timeline: TIMELINE,
                position: 0,
                received: 0,
                streaming: in_recovery,
                server_version: 170_000,
                latency: Duration::ZERO,
                address: Some([127, 0, 0, 1].into()),
                connected: Some(Instant::now()),
            }),
            ..Health::default()
        },
        identity: Identity::Same,
        admin: AdminState::Ready,
        leaving: None,
        measured: None,
        lagging: BTreeSet::new(),
        share: WHOLE_SHARE,
        weight: 1,
        zone: None,
    }
}

/// The members in order of their names.
pub(in crate::session) fn snapshot(leader: Option<&str>, members: Vec<Member>) -> Arc<Snapshot> {
    let leader = leader.map_or(Leader::None(NoLeader::NoneWritable), |leader| Leader::Verified {
        member: MemberName::new(leader),
        timeline: TIMELINE,
        named_by: NamedBy::HighestTimeline,
    });
    Arc::new(Snapshot {
        cluster: "main".into(),
        version: 1,
        members,
        leader,
        source: SourceStatus {
            reachable: true,
            error: None,
            disagreement: None,
        },
        system_identifier: Some(SYSTEM),
        paused: false,
        hears: true,
        patience: None,
        switchover_requested: false,
    })
}
