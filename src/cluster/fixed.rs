//! A cluster without Patroni: a fixed list of servers. Probes find the leader.

use std::collections::BTreeMap;

use super::snapshot::{MemberName, Role};
use super::state::{Listed, Named, SourceReport};
use crate::config::Server;

/// The only report of a fixed list.
pub(super) fn report(servers: &[Server]) -> SourceReport {
    let members = servers.iter().map(|server| Listed {
        name: MemberName::new(server.name.as_str()),
        host: server.host.clone(),
        port: server.port,
        role: Role::Unnamed,
        state: String::new(),
        timeline: None,
        lag: None,
        tags: BTreeMap::new(),
        api_url: None,
    });
    SourceReport {
        members: members.collect(),
        named: Named::Nobody,
        paused: false,
        disagreement: None,
        rivals: Vec::new(),
        scheduled: None,
    }
}
