//! What happens to cancel requests, as metrics show it.

use crate::labels::labels;

labels! {
    /// The outcome of a request: the label `result` of `trunkline_cancels_total`.
    pub(crate) enum CancelOutcome {
        Forwarded = "forwarded",
        /// The session runs nothing, or no longer what it ran when the request came, or its server
        /// gave no key.
        Idle = "idle",
        /// Enough requests for the same session wait already.
        Repeated = "repeated",
        /// No router and no process has a session with this key.
        Unknown = "unknown",
        /// The key has the form of a router's keys, and a wrong MAC.
        Forged = "forged",
        /// Another process of this router has taken it.
        ByGeneration = "other_process",
        /// A peer has taken it.
        ByPeer = "peer",
        Failed = "failed",
        /// Its turn did not come in time, or there was no place for it.
        Dropped = "dropped",
        /// The listener refuses the address that it comes from.
        Denied = "denied",
    }
}

labels! {
    /// Whether a server took the router's own request for what a cut session ran: the label
    /// `result` of `trunkline_cut_requests_total`.
    pub(crate) enum CutOutcome {
        Cancelled = "cancelled",
        Failed = "failed",
    }
}
