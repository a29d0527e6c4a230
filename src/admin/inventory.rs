//! What the router has and how it is set, provided by the runtime: listeners, limits, certificates,
//! the configuration in use, peers.

use std::fmt;

use futures_util::future::BoxFuture;

use super::views::{CertificateView, DatabaseView, LimitView, ListenerView, PeerView, SettingView};

/// What this process has now. It knows nothing of other processes of the router: each has limits of
/// its own.
pub trait Inventory: fmt::Debug + Send + Sync {
    /// Every address that it listens on.
    fn listeners(&self) -> Vec<ListenerView>;

    /// Its limits, except those of this room.
    fn limits(&self) -> Vec<LimitView>;

    /// The certificates that it shows or trusts.
    fn certificates(&self) -> Vec<CertificateView>;

    /// The configuration in use, key by key.
    fn settings(&self) -> Vec<SettingView>;

    /// What sessions have moved by the database that clients asked for.
    fn databases(&self) -> Vec<DatabaseView>;

    /// How many peers are configured.
    fn peer_count(&self) -> usize;

    /// Asks the peers. Ready after a few seconds at most.
    fn peers(&self) -> BoxFuture<'_, Vec<PeerView>>;
}
