//! The configuration, and Patroni's answers.

use std::path::Path;

use crate::cluster::patroni;
use crate::config::tree::{self, Node, Value};
use crate::wire::text::is_unsafe;

/// A whole configuration, unless it would run a command.
pub(super) fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let Ok(root) = tree::parse(text) else {
        let _ = crate::config::parse(Path::new("/nowhere/trunkline.yaml"), text);
        return;
    };
    if runs_commands(&root) {
        return;
    }
    match crate::config::parse(Path::new("/nowhere/trunkline.yaml"), text) {
        // What is accepted is read the same once more.
        Ok(_) => assert!(crate::config::parse(Path::new("/nowhere/trunkline.yaml"), text).is_ok()),
        Err(errors) => {
            let shown = errors.to_string();
            assert!(!shown.is_empty());
            assert!(!shown.chars().any(|c| is_unsafe(c) && c != '\n'), "{shown:?}");
        }
    }
}

fn runs_commands(node: &Node) -> bool {
    match &node.value {
        Value::Map(entries) => entries
            .iter()
            .any(|entry| entry.key.contains("command") || runs_commands(&entry.node)),
        Value::List(items) => items.iter().any(runs_commands),
        _ => false,
    }
}

/// The bodies of `/cluster`, `/config` and `/patroni`.
pub(super) fn patroni(data: &[u8]) {
    let times = patroni::times(data);
    assert!(times.is_none_or(|times| times.ttl.max(times.loop_wait).as_secs() <= 3600));
    let _ = patroni::status(data);
    match patroni::parse(data) {
        Ok(report) => {
            for (index, member) in report.members.iter().enumerate() {
                assert!(!member.name.as_str().chars().any(char::is_control));
                assert!(
                    report.members[..index]
                        .iter()
                        .all(|other| other.name != member.name)
                );
            }
        }
        Err(error) => assert!(!error.is_empty()),
    }
}
