//! What is known of a cluster: sources publish observations, one pure function folds observations and the time into
//! the next snapshot, everything else reads snapshots.
//!
//! Guarantees: a snapshot is immutable and versioned; its leader is one this router has itself seen to be writable
//! and that is named by the leader key (or still the last one named while the DCS cannot be reached; or, in a fixed
//! list, has the highest timeline); a tie is no leader; a member of another cluster is never used.
//!
//! Refuses: a home-made consensus, and to trust a lock as a health check.

pub mod snapshot;
pub mod state;
mod fixed;
pub mod patroni;

/// Why a cluster's machinery cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The TLS settings towards Patroni cannot be used.
    #[error("TLS towards Patroni: {0}")]
    Tls(String),
    /// The HTTP client cannot be made.
    #[error("HTTP client: {0}")]
    Client(String),
}
