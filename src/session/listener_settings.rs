//! The settings of a listener, for the connections that it accepts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::arrival::quota::Rate;
use super::gate::Gate;
use super::occupancy::Occupancy;
use crate::cluster::ClusterHandle;
use crate::config::{self, ListenerMode, Route};
use crate::frontend::opening::Offer;

/// The settings of a listener. Each accept reads the current ones: a reload replaces one pointer,
/// and running sessions keep the settings with which they began.
#[derive(Debug)]
pub struct ListenerSettings {
    pub name: Arc<str>,
    pub route: Arc<Route>,
    pub cluster: ClusterHandle,
    pub mode: ListenerMode,
    /// Not used with [`ListenerMode::Tcp`].
    pub offer: Offer,
    /// Sessions at once; 0 is no limit.
    pub max_clients: u32,
    pub entry: config::AdmissionRules,
    /// The gate of the route, which all listeners of the route share.
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

    /// Its sessions now.
    pub fn sessions(&self) -> u32 {
        self.clients.load(Ordering::Acquire)
    }

    /// Takes over the counts of `before`, whose sessions are counted here from now on.
    #[must_use]
    pub fn in_place_of(self, before: &Self) -> Self {
        Self {
            clients: Arc::clone(&before.clients),
            rate: self.rate.in_place_of(&before.rate),
            ..self
        }
    }
}
