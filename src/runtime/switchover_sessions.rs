//! Whose transactions are open on the leader, and which sessions are pinned there, for the plan of
//! a switchover.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::admin::{OpenTransactions, PinnedSessions};
use crate::cluster::snapshot::{Member, MemberName};
use crate::cluster::switchover::LeaderAccess;
use crate::session::Shared;
use crate::session::pool::state::PinReason;
use crate::session::registry::{Activity, Phase, SessionEntry, SessionKind};
use crate::wire::text::Escaped;

/// Transactions whose age is asked for.
const MOST_ASKED: usize = 4096;

/// Sessions of this process on the leader that hold something there.
pub(super) struct HeldSessions {
    sessions: Vec<Held>,
}

#[derive(Debug, Clone)]
struct Held {
    route: Arc<str>,
    session: u64,
    user: String,
    client: String,
    process_id: u32,
    is_open: bool,
    /// Empty: it is not pinned.
    pins: Vec<&'static str>,
}

impl HeldSessions {
    pub(super) fn of(shared: &Shared, cluster: &str, leader: &MemberName) -> Self {
        let all = shared.registry.sessions_of(cluster);
        let mut sessions: Vec<Held> = all.iter().filter_map(|entry| Held::of(entry, leader)).collect();
        sessions.sort_by_key(|held| held.session);
        Self { sessions }
    }

    /// By route, with the age of the oldest transaction if the leader says it.
    pub(super) async fn open(&self, access: &LeaderAccess, leader: &Member) -> Vec<OpenTransactions> {
        let open = self.sessions.iter().filter(|held| held.is_open);
        let processes: Vec<u32> = open
            .map(|held| held.process_id)
            .filter(|id| *id > 0)
            .take(MOST_ASKED)
            .collect();
        let ages = match processes.as_slice() {
            [] => HashMap::new(),
            // Without the ages the plan is still right.
            processes => access
                .transaction_ages(leader, processes)
                .await
                .unwrap_or_default(),
        };
        self.open_by_route(&ages)
    }

    fn open_by_route(&self, ages: &HashMap<u32, u64>) -> Vec<OpenTransactions> {
        let mut routes: BTreeMap<&str, OpenTransactions> = BTreeMap::new();
        for held in self.sessions.iter().filter(|held| held.is_open) {
            let age = ages.get(&held.process_id).copied();
            let one = OpenTransactions {
                route: held.route.to_string(),
                sessions: 1,
                oldest_s: age,
                session: held.session,
                user: held.user.clone(),
                client: held.client.clone(),
            };
            match routes.get_mut(&*held.route) {
                Some(known) => {
                    let sessions = known.sessions.saturating_add(1);
                    if age > known.oldest_s {
                        *known = one;
                    }
                    known.sessions = sessions;
                }
                None => _ = routes.insert(&held.route, one),
            }
        }
        routes.into_values().collect()
    }

    pub(super) fn pinned(&self) -> Vec<PinnedSessions> {
        let mut routes: BTreeMap<&str, PinnedSessions> = BTreeMap::new();
        for held in self.sessions.iter().filter(|held| !held.pins.is_empty()) {
            let route = routes.entry(&held.route).or_insert_with(|| PinnedSessions {
                route: held.route.to_string(),
                sessions: 0,
                pins: BTreeMap::new(),
            });
            route.sessions += 1;
            for pin in &held.pins {
                *route.pins.entry((*pin).to_owned()).or_default() += 1;
            }
        }
        routes.into_values().collect()
    }
}

impl Held {
    /// `None`: it is elsewhere, holds nothing, or is counted in another way.
    fn of(entry: &SessionEntry, leader: &MemberName) -> Option<Self> {
        let place = entry.placement().filter(|place| place.member == *leader)?;
        if entry.origin.kind != SessionKind::Ordinary {
            return None;
        }
        let is_open = entry.activity() != Activity::Idle;
        let is_pinned = entry.phase() == Phase::Pinned;
        let pins: Vec<&'static str> = entry.pins().iter().map(PinReason::label).collect();
        let client = &entry.origin.client;
        (is_open || is_pinned).then(|| Self {
            route: Arc::clone(&entry.origin.route),
            session: entry.id,
            user: Escaped(&client.user).to_string(),
            client: client.address.to_string(),
            process_id: place.process_id,
            is_open,
            pins: if is_pinned { pins } else { Vec::new() },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(session: u64, route: &str, is_open: bool, pins: &[&'static str]) -> Held {
        Held {
            route: route.into(),
            session,
            user: "app".to_owned(),
            client: format!("10.0.0.9:{session}"),
            process_id: u32::try_from(session).expect("a small number"),
            is_open,
            pins: pins.to_vec(),
        }
    }

    #[test]
    fn open_transactions_are_told_by_route_with_the_oldest() {
        let sessions = vec![
            held(1, "rw", true, &[]),
            held(2, "rw", true, &["hold_cursor"]),
            held(3, "batch", true, &[]),
            held(4, "rw", false, &["hold_cursor", "temporary_object"]),
            held(5, "rw", true, &[]),
        ];
        let held = HeldSessions { sessions };
        let told = |ages: &[(u32, u64)]| -> Vec<String> {
            let open = held.open_by_route(&ages.iter().copied().collect());
            open.iter().map(ToString::to_string).collect()
        };
        assert_eq!(
            told(&[(1, 3), (2, 90), (3, 7)]),
            [
                "route batch: 1, for 7 s (session 3: app at 10.0.0.9:3)",
                "route rw: 3, the oldest for 90 s (session 2: app at 10.0.0.9:2)",
            ]
        );
        assert_eq!(
            told(&[]),
            [
                "route batch: 1 (session 3: app at 10.0.0.9:3)",
                "route rw: 3, one of them (session 1: app at 10.0.0.9:1)",
            ]
        );
        let pinned: Vec<String> = held.pinned().iter().map(ToString::to_string).collect();
        assert_eq!(pinned, ["route rw: 2 pinned (hold_cursor 2, temporary_object 1)"]);
    }
}
