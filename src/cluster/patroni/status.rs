//! What `GET /patroni` says about the server beside that Patroni.

use serde_json::Value;

use super::printable;
use crate::cluster::snapshot::MemberName;
use crate::cluster::state::MemberStatus;

/// A body of `/patroni`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatusReport {
    /// The member's name. Patroni 3.0 gives none.
    pub name: Option<MemberName>,
    pub status: MemberStatus,
}

/// Reads the body of `/patroni`; `None` if it is not such a body.
pub fn status(body: &[u8]) -> Option<StatusReport> {
    let value: Value = serde_json::from_slice(body).ok()?;
    let text = |value: Option<&Value>| value.and_then(Value::as_str).map(|text| printable(text, 128));
    Some(StatusReport {
        name: text(value.pointer("/patroni/name")).map(MemberName::new),
        status: MemberStatus {
            state: text(value.get("state"))?,
        },
    })
}

impl StatusReport {
    /// Whether this is about `member`. `is_its_url`: Patroni gives this address for it.
    pub(super) fn is_of(&self, member: &MemberName, is_its_url: bool) -> bool {
        match &self.name {
            Some(name) => name == member,
            None => is_its_url,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    #[test]
    fn reads_a_leader_that_stops_and_one_that_runs() {
        let read = |value: Value| status(value.to_string().as_bytes()).unwrap();
        // As Patroni 3.0.2 and 4.1.5 answer during a switchover.
        let old = read(json!({"state": "stopping", "role": "master", "dcs_last_seen": 1,
            "database_system_identifier": "7", "patroni": {"version": "3.0.2", "scope": "main"}}));
        assert!(old.status.is_stopping() && old.name.is_none());
        let new = read(json!({"state": "stopping", "role": "primary", "dcs_last_seen": 1,
            "database_system_identifier": "7",
            "patroni": {"version": "4.1.5", "scope": "main", "name": "db1"}}));
        assert!(new.status.is_stopping());
        let db1 = MemberName::new("db1");
        assert!(new.is_of(&db1, false) && !new.is_of(&MemberName::new("db2"), true));
        assert!(old.is_of(&db1, true) && !old.is_of(&db1, false));
        for state in [
            "running",
            "starting",
            "restarting",
            "unknown",
            "stop failed",
            "crashed",
        ] {
            assert!(!read(json!({"state": state})).status.is_stopping(), "{state}");
        }
        for wrong in [&b""[..], b"{}", b"[]", b"{\"state\": 1}", b"<html>"] {
            assert_eq!(status(wrong), None);
        }
    }
}
