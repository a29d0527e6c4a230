use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use super::arrival::quota::Rate;
use super::gate::Gate;
use super::occupancy::Occupancy;
use crate::cluster::ClusterHandle;
use crate::config::{self, ListenerMode, Route};
use crate::frontend::opening::Offer;

/// What a listener means for the connections it accepts. Read at each accept, so that a new configuration is one
/// pointer away and running sessions keep the one they came in by.
#[derive(Debug)]
pub struct ListenerSettings {
    pub name: Arc<str>,
    pub route: Arc<Route>,
    pub cluster: ClusterHandle,
    pub mode: ListenerMode,
    /// Of no use with [`ListenerMode::Tcp`].
    pub offer: Offer,
    /// Sessions at once; 0 is no limit.
    pub max_clients: u32,
    pub entry: config::AdmissionRules,
    /// The route's, which all its listeners share.
    pub(super) gate: Arc<Gate>,
    pub(super) rate: Rate,
    pub(super) clients: Arc<AtomicU32>,
}

impl ListenerSettings {
    pub fn new(
        listener: &config::Listener,
        route: Arc<Route>,
        cluster: ClusterHandle,
        offer: Offer,
        occupancy: &Occupancy,
    ) -> Self {
        Self {
            gate: occupancy.gate(&route),
            name: Arc::clone(&listener.name),
            route,
            cluster,
            mode: listener.mode,
            offer,
            max_clients: listener.max_clients,
            rate: Rate::new(listener.entry.connection_rate),
            entry: listener.entry.clone(),
            clients: Arc::default(),
        }
    }

    /// Counts on where `before` stands: its sessions are this one's.
    #[must_use]
    pub fn in_place_of(self, before: &Self) -> Self {
        Self {
            clients: Arc::clone(&before.clients),
            rate: self.rate.in_place_of(&before.rate),
            ..self
        }
    }
}
