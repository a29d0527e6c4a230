//! What is wrong by an event, and goes on.

use std::time::{SystemTime, UNIX_EPOCH};

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
                "the last reload was refused, and the configuration from before stays in use".to_owned(),
                format!("{}{more}", refused.fault),
                millis(refused.since),
            );
            let remedy = format!("correct {0}, and run `trunkline reload -c {0}`", refused.file);
            self.warn("configuration", told.ended_by(remedy));
        }
        for (part, refused) in &standing.broken {
            let told = Told::new(
                format!("the new files of {part} are refused"),
                refused.fault.clone(),
                millis(refused.since),
            );
            let remedy = "correct them; the router reads them again by itself";
            self.warn(&format!("files {part}"), told.ended_by(remedy));
        }
        for left in standing.left(self.facts.now) {
            let (cluster, member) = (&left.cluster, &left.member);
            if !self.facts.clusters.iter().any(|about| about.name == *cluster) {
                continue;
            }
            let told = Told::new(
                format!("{member} has left cluster {cluster}"),
                "it is not in the list of members any more, as after the end of its Patroni or its host",
                millis(left.at),
            );
            let remedy = "start it again, or nothing if it was meant: this is told for an hour";
            self.warn(&format!("left {cluster}/{member}"), told.ended_by(remedy));
        }
    }
}

fn millis(at: SystemTime) -> Option<u64> {
    let since = at.duration_since(UNIX_EPOCH).ok()?;
    u64::try_from(since.as_millis()).ok()
}
