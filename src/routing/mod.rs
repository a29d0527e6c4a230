//! Who may serve a route, and who does: pure functions of the snapshot, the route, the sessions there are and a
//! source of chance, giving candidates in order of preference with the reason, and for the others the reason why not.
//!
//! Guarantees: a leader candidate is the snapshot's verified leader; a replica candidate has been seen in recovery by
//! this router's own probe; members of another cluster, without an address, or not administratively ready are never
//! candidates.
//!
//! Refuses: IO, clocks, and state of its own. (`chance` is the one source of chance callers hand in, `Turns` what they
//! keep between two choices.)

mod balance;
mod leave;
mod policy;
mod tags;
mod verdict;

pub use balance::Turns;
pub use leave::{Leave, LeaveReason, leave};
pub use policy::{
    Asked, Candidate, Choice, Preference, Reason, anybody, candidates, chance, fitness, leader_reason,
    replica_reason, unavailable,
};
pub use verdict::{EndReason, GrantedRole, Misfit, SessionVerdict, fits, verdict};
