//! What goes on after its event, until another event ends it: a refused configuration, files of a
//! part that are refused, and members that have left.
//!
//! Guarantees: it needs limited memory, and outlives the event itself, which newer ones push out.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use super::{ClusterChange, ClusterEvent, Event, ReloadEvent};

/// For how long a member that has left is told of.
const LEFT_FOR: Duration = Duration::from_hours(1);
/// Members that have left, the newest ones.
const MOST_LEFT: usize = 64;
/// Parts whose files are refused.
const MOST_PARTS: usize = 256;

/// What is not as it should be since an event.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// The last reload of the configuration was refused.
    pub refused: Option<Refused>,
    /// By part of the configuration: its files are refused, and the version before stays in use.
    pub broken: BTreeMap<String, Refused>,
    /// In the order in which they left.
    left: Vec<LeftMember>,
    /// The first fault of the configuration that is about to be refused.
    fault: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Of the first refusal, if there were several.
    pub since: SystemTime,
    /// The file, if one is known.
    pub file: String,
    /// The first one of the last refusal.
    pub fault: String,
    pub faults: usize,
}

/// A member that is no longer in its cluster's list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftMember {
    pub cluster: String,
    pub member: String,
    pub at: SystemTime,
}

impl Standing {
    /// Those that left within an hour and have not come back.
    pub fn left(&self, now: SystemTime) -> impl Iterator<Item = &LeftMember> {
        let is_new = move |left: &&LeftMember| {
            // One of the future: the clock was set back.
            now.duration_since(left.at).is_ok_and(|age| age < LEFT_FOR)
        };
        self.left.iter().filter(is_new)
    }

    pub(crate) fn heed(&mut self, event: &Event, at: SystemTime) {
        match event {
            Event::Reload(event) => self.reload(event, at),
            Event::Cluster(ClusterEvent { cluster, change }) => match change {
                ClusterChange::MemberLeft { member } => {
                    self.is_back(cluster, member);
                    if self.left.len() == MOST_LEFT {
                        self.left.remove(0);
                    }
                    self.left.push(LeftMember {
                        cluster: cluster.clone(),
                        member: member.clone(),
                        at,
                    });
                }
                ClusterChange::MemberAppeared { member, .. } => self.is_back(cluster, member),
                _ => {}
            },
            _ => {}
        }
    }

    fn is_back(&mut self, cluster: &str, member: &str) {
        self.left
            .retain(|left| left.cluster != cluster || left.member != member);
    }

    fn reload(&mut self, event: &ReloadEvent, at: SystemTime) {
        match event {
            ReloadEvent::ConfigurationFault { fault } => _ = self.fault.get_or_insert(fault.clone()),
            ReloadEvent::ConfigurationRefused { config, faults } => {
                self.refused = Some(Refused {
                    since: self.refused.as_ref().map_or(at, |refused| refused.since),
                    file: config.clone(),
                    fault: self.fault.take().unwrap_or_default(),
                    faults: *faults,
                });
            }
            ReloadEvent::ConfigurationApplied { .. } => {
                *self = Self {
                    left: std::mem::take(&mut self.left),
                    ..Self::default()
                }
            }
            // The configuration itself is the one in use.
            ReloadEvent::FilesReread { broken, .. } => {
                self.refused = None;
                self.broken.retain(|part, _| broken.contains(part));
            }
            ReloadEvent::FilesRefused {
                part,
                fault,
                meanwhile,
            } => {
                let known = self.broken.get(part).map(|refused| refused.since);
                if known.is_some() || self.broken.len() < MOST_PARTS {
                    let refused = Refused {
                        since: known.unwrap_or(at),
                        file: String::new(),
                        fault: format!("{fault}; {meanwhile}"),
                        faults: 1,
                    };
                    self.broken.insert(part.clone(), refused);
                }
            }
            ReloadEvent::FilesLoaded { part } | ReloadEvent::CertificateLoaded { part, .. } => {
                self.broken.remove(part);
            }
            ReloadEvent::FilesRight => self.broken.clear(),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(standing: &mut Standing, seconds: u64, event: impl Into<Event>) {
        standing.heed(&event.into(), at(seconds));
    }

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn change(change: ClusterChange) -> ClusterEvent {
        ClusterEvent {
            cluster: "main".to_owned(),
            change,
        }
    }

    fn left(member: &str) -> ClusterEvent {
        let member = member.to_owned();
        change(ClusterChange::MemberLeft { member })
    }

    fn fault(text: &str) -> ReloadEvent {
        let fault = text.to_owned();
        ReloadEvent::ConfigurationFault { fault }
    }

    #[test]
    fn a_refused_configuration_lasts_until_one_is_accepted() {
        let mut standing = Standing::default();
        let refused = || ReloadEvent::ConfigurationRefused {
            config: "/etc/t.yaml".to_owned(),
            faults: 2,
        };
        after(&mut standing, 5, fault("line 3"));
        after(&mut standing, 5, fault("line 4"));
        after(&mut standing, 5, refused());
        after(&mut standing, 9, fault("line 7"));
        after(&mut standing, 9, refused());
        let told = standing.refused.clone().expect("it is refused");
        assert_eq!(
            (told.since, told.fault.as_str(), told.faults),
            (at(5), "line 7", 2)
        );
        assert_eq!(told.file, "/etc/t.yaml");
        let (changed, broken) = (Vec::new(), Vec::new());
        let mut undone = standing.clone();
        after(&mut undone, 11, ReloadEvent::FilesReread { changed, broken });
        assert_eq!(undone.refused, None, "the file is as it was, and was read");
        let (config, changed) = ("/etc/t.yaml".to_owned(), Vec::new());
        after(
            &mut standing,
            12,
            ReloadEvent::ConfigurationApplied { config, changed },
        );
        assert_eq!(standing.refused, None);
    }

    #[test]
    fn files_that_are_refused_are_told_until_they_are_right() {
        let mut standing = Standing::default();
        let refused = |part: &str| ReloadEvent::FilesRefused {
            part: part.to_owned(),
            fault: "no key".to_owned(),
            meanwhile: "the old one stays".to_owned(),
        };
        for (seconds, part) in [(1, "tls"), (2, "tls"), (3, "http"), (4, "auth")] {
            after(&mut standing, seconds, refused(part));
        }
        assert_eq!(standing.broken["tls"].since, at(1));
        assert_eq!(standing.broken["tls"].fault, "no key; the old one stays");
        let part = "tls".to_owned();
        after(&mut standing, 5, ReloadEvent::FilesLoaded { part });
        let (changed, broken) = (Vec::new(), vec!["http".to_owned()]);
        after(&mut standing, 6, ReloadEvent::FilesReread { changed, broken });
        assert_eq!(standing.broken.keys().collect::<Vec<_>>(), ["http"]);
        after(&mut standing, 7, ReloadEvent::FilesRight);
        assert_eq!(standing, Standing::default());
        for part in 0..MOST_PARTS + 9 {
            after(&mut standing, 8, refused(&part.to_string()));
        }
        assert_eq!(standing.broken.len(), MOST_PARTS);
    }

    #[test]
    fn a_member_that_left_is_told_of_for_an_hour_or_until_it_is_back() {
        let mut standing = Standing::default();
        after(&mut standing, 10, left("db3"));
        after(&mut standing, 20, left("db2"));
        let told = |standing: &Standing, now: u64| -> Vec<String> {
            let left = standing.left(at(now));
            left.map(|left| left.member.clone()).collect()
        };
        assert_eq!(told(&standing, 20), ["db3", "db2"]);
        assert_eq!(told(&standing, 3610), ["db2"]);
        assert_eq!(told(&standing, 3620), [""; 0]);
        let back = ClusterChange::MemberAppeared {
            member: "db2".to_owned(),
            address: None,
        };
        after(&mut standing, 30, change(back));
        assert_eq!(told(&standing, 40), ["db3"]);
        for number in 0..MOST_LEFT {
            after(&mut standing, 50, left(&number.to_string()));
        }
        assert_eq!(standing.left.len(), MOST_LEFT);
        assert!(
            !told(&standing, 51).contains(&"db3".to_owned()),
            "the newest are kept"
        );
    }
}
