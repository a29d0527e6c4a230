//! What is wrong by an event, and goes on.

use std::time::{SystemTime, UNIX_EPOCH};

use super::finding::Finding;
use super::{Found, Told};

impl Found<'_> {
    /// The configuration or files that were refused, and members that have left.
    pub(super) fn standing(&mut self) {
        let Some(standing) = self.facts.standing else {
            return;
        };
        if let Some(refused) = &standing.refused {
            let more = match refused.faults.saturating_sub(1) {
                0 => String::new(),
                1 => " (and 1 fault more)".to_owned(),
                more => format!(" (and {more} faults more)"),
            };
            let told = Told::new(
                &Finding::ReloadRefused { file: &refused.file },
                "the last reload was refused, and the configuration from before stays in use".to_owned(),
                format!("{}{more}", refused.fault),
                millis(refused.since),
            );
            self.warn("configuration", told);
        }
        for (part, refused) in &standing.broken {
            let told = Told::new(
                &Finding::FilesRefused,
                format!("the new files of {part} are refused"),
                refused.fault.clone(),
                millis(refused.since),
            );
            self.warn(&format!("files {part}"), told);
        }
        for left in standing.left(self.facts.now) {
            let (cluster, member) = (&left.cluster, &left.member);
            if !self.facts.clusters.iter().any(|about| about.name == *cluster) {
                continue;
            }
            let told = Told::new(
                &Finding::MemberLeft,
                format!("{member} has left cluster {cluster}"),
                "it is not in the list of members any more, as after the end of its Patroni or its host",
                millis(left.at),
            );
            self.warn(&format!("left {cluster}/{member}"), told);
        }
    }
}

fn millis(at: SystemTime) -> Option<u64> {
    let since = at.duration_since(UNIX_EPOCH).ok()?;
    u64::try_from(since.as_millis()).ok()
}
