//! What operators ask for, carried out on clusters and sessions.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::state_file::{self, Kept};
use crate::admin::{Activity, Change, Ending, Operations, SessionView};
use crate::cluster::snapshot::{AdminState, MemberName};
use crate::cluster::{Busy, ClusterHandle};
use crate::session::end::{Order, Reason};
use crate::session::registry::{Entry, Registry};
use crate::wire::text::Escaped;

#[derive(Debug)]
pub(super) struct Administration {
    clusters: HashMap<Arc<str>, ClusterHandle>,
    registry: Arc<Registry>,
    /// Held over a change, so that two at once are kept in the order in which they are done.
    kept: Mutex<watch::Sender<Arc<Kept>>>,
    /// Where what takes time goes on.
    control: Handle,
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl Administration {
    /// Takes up what was set before the restart: before the clusters' first look, if nothing was waited for since they
    /// were started. To be called on the control runtime.
    pub(super) fn begin(
        state_file: Option<PathBuf>,
        clusters: HashMap<Arc<str>, ClusterHandle>,
        registry: Arc<Registry>,
        stop: &CancellationToken,
        tracker: &TaskTracker,
    ) -> Self {
        let kept = state_file.as_deref().map(state_file::load).unwrap_or_default();
        for (cluster, members) in &kept.0 {
            let Some(cluster) = clusters.get(cluster.as_str()) else {
                continue;
            };
            for (name, member) in members {
                let name = MemberName::new(name.as_str());
                let set = match member.admin {
                    AdminState::Ready => Ok(()),
                    state => cluster.set_admin(&name, state),
                };
                let set = set.and_then(|()| match member.weight {
                    None => Ok(()),
                    weight => cluster.set_weight(&name, weight),
                });
                if set.is_err() {
                    tracing::warn!(member = %name, "the state file names too many members; not all are taken up");
                }
            }
        }
        let (kept, changes) = watch::channel(Arc::new(kept));
        if let Some(path) = state_file {
            tracker.spawn(state_file::keep(path, changes, stop.clone()));
        }
        Self {
            clusters,
            registry,
            kept: Mutex::new(kept),
            control: Handle::current(),
            tracker: tracker.clone(),
            stop: stop.clone(),
        }
    }

    fn end(&self, entries: Vec<Arc<Entry>>, ending: Ending, reason: &Reason) {
        let grace = match ending {
            Ending::Now => None,
            Ending::AtBoundary { grace } => {
                for entry in &entries {
                    entry.order(Order::AtBoundary(reason.clone()));
                }
                let Some(grace) = grace.filter(|_| !entries.is_empty()) else {
                    return;
                };
                Some(grace)
            }
        };
        let cut = move |entries: Vec<Arc<Entry>>, reason: &Reason| {
            for entry in entries {
                entry.order(Order::Now(reason.clone()));
            }
        };
        match grace {
            None => cut(entries, reason),
            Some(grace) => {
                let (stop, reason) = (self.stop.clone(), reason.clone());
                self.tracker.spawn_on(
                    async move {
                        tokio::select! {
                            () = stop.cancelled() => {}
                            () = sleep(grace) => cut(entries, &reason),
                        }
                    },
                    &self.control,
                );
            }
        }
    }
}

impl Operations for Administration {
    fn sessions(&self) -> Vec<SessionView> {
        let mut all: Vec<SessionView> = self.registry.sessions().iter().map(|entry| view(entry)).collect();
        all.sort_unstable_by_key(|session| session.id);
        all
    }

    fn sessions_on(&self, cluster: &str, member: &MemberName) -> usize {
        self.registry.load(&Arc::from(cluster), member)
    }

    fn end_session(&self, id: u64, ending: Ending) -> Option<SessionView> {
        let entry = self.registry.session(id)?;
        self.end(vec![Arc::clone(&entry)], ending, &Reason::Killed);
        Some(view(&entry))
    }

    fn end_sessions_on(&self, cluster: &str, member: &MemberName, ending: Ending) -> usize {
        let mut entries = self.registry.sessions();
        entries.retain(|entry| {
            let place = &entry.attachment;
            *place.cluster == *cluster && place.member == *member
        });
        let sessions = entries.len();
        self.end(entries, ending, &Reason::MemberClosed(member.clone()));
        sessions
    }

    fn has_kept(&self, cluster: &str, member: &MemberName) -> bool {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = kept.borrow();
        kept.member(cluster, member.as_str()).is_some()
    }

    fn administer(&self, cluster: &str, member: &MemberName, change: Change) -> Result<(), Busy> {
        let Some(handle) = self.clusters.get(cluster) else {
            return Ok(());
        };
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        match change {
            Change::Admin(state) => handle.set_admin(member, state)?,
            Change::Weight(weight) => handle.set_weight(member, weight)?,
        }
        kept.send_modify(|kept| {
            Arc::make_mut(kept).change(cluster, member.as_str(), |member| match change {
                Change::Admin(state) => member.admin = state,
                Change::Weight(weight) => member.weight = weight,
            });
        });
        Ok(())
    }
}

fn view(entry: &Entry) -> SessionView {
    let place = &entry.attachment;
    let traffic = entry.traffic();
    SessionView {
        id: entry.id,
        client: place.client.address.to_string(),
        user: Escaped(&place.client.user).to_string(),
        database: Escaped(&place.client.database).to_string(),
        cluster: place.cluster.to_string(),
        route: place.route.to_string(),
        member: place.member.as_str().to_owned(),
        process_id: place.process_id,
        state: if entry.in_flight() {
            Activity::Active
        } else if entry.in_transaction() {
            Activity::IdleInTransaction
        } else {
            Activity::Idle
        },
        age_s: place.client.since.elapsed().as_secs(),
        bytes_up: traffic.bytes_up,
        bytes_down: traffic.bytes_down,
        transactions: traffic.transactions,
        tls: place.client.tls,
        ending: entry.ordered().map(|order| order.reason().to_string()),
    }
}
