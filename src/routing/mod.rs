//! Chooses the members that may serve a route. Pure functions of the snapshot, the route, the
//! current sessions and a random source return the candidates in order of preference, each with its
//! reason, and the reason for each refused member.
//!
//! Guarantees: a leader candidate is the snapshot's verified leader. This router's own probe has
//! seen a replica candidate in recovery. A member of another cluster, without an address, or not
//! administratively ready is never a candidate.
//!
//! Refuses: I/O, clocks and state. (The caller passes the random source `chance`, and keeps `Turns`
//! between two choices.)

mod balance;
mod leave;
mod policy;
mod tags;
mod verdict;

pub use balance::Turns;
pub use leave::{Leave, LeaveReason, Leaving, leave};
pub use policy::{
    Candidate, Choice, ChoiceInput, Preference, Reason, candidates, chance, check_available, fitness,
    leader_reason, replica_reason, unavailable,
};
pub use verdict::{EndReason, GrantedRole, Misfit, SessionVerdict, fits, verdict};
