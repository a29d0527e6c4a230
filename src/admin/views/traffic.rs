//! What the sessions of a route, or of a database, have moved.

use serde::{Deserialize, Serialize};

/// What the sessions of a database have moved since the process started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatabaseView {
    /// As clients asked for it.
    pub database: String,
    /// Those that have begun.
    pub sessions: u64,
    pub bytes_up: u64,
    pub bytes_down: u64,
    pub transactions: u64,
}

/// A route, or what a member has of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(in crate::admin) struct StatView {
    pub(in crate::admin) cluster: String,
    pub(in crate::admin) route: String,
    /// `null`: all of the route.
    pub(in crate::admin) member: Option<String>,
    /// Now, in all processes of this router.
    pub(in crate::admin) sessions: usize,
    /// Server connections of pools that could not be opened.
    pub(in crate::admin) connects_failed: u64,
    /// Of the whole route; nobody counts it by member.
    #[serde(flatten)]
    pub(in crate::admin) traffic: Option<TrafficView>,
}

/// Counts since the router's start, and means of what the last minutes had. `null`: nothing is
/// known yet.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(in crate::admin) struct TrafficView {
    pub(in crate::admin) transactions: u64,
    /// From clients.
    pub(in crate::admin) bytes_up: u64,
    pub(in crate::admin) bytes_down: u64,
    /// Sessions that had to wait for a server connection.
    pub(in crate::admin) waits: u64,
    /// Errors that clients got from a server.
    pub(in crate::admin) server_errors: u64,
    pub(in crate::admin) router_errors: u64,
    /// Clients that got no place in a queue or a hold, or none in time.
    pub(in crate::admin) refused: u64,
    pub(in crate::admin) sessions_ended: u64,
    /// In the last minute.
    pub(in crate::admin) transactions_per_min: Option<f64>,
    pub(in crate::admin) bytes_up_per_min: Option<f64>,
    pub(in crate::admin) bytes_down_per_min: Option<f64>,
    pub(in crate::admin) waits_per_min: Option<f64>,
    pub(in crate::admin) errors_per_min: Option<f64>,
    /// Means of the last five minutes.
    pub(in crate::admin) transactions_per_s: Option<f64>,
    pub(in crate::admin) bytes_up_per_s: Option<f64>,
    pub(in crate::admin) bytes_down_per_s: Option<f64>,
    pub(in crate::admin) errors_per_s: Option<f64>,
    pub(in crate::admin) transaction_ms: Option<f64>,
    pub(in crate::admin) wait_ms: Option<f64>,
}
