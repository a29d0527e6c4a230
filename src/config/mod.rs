//! Configuration: a YAML file becomes a validated model, or a list of every fault in it.
//!
//! Guarantees: unknown keys are refused; a key whose feature does not work yet is refused; everything that is
//! accepted has an effect; all faults are reported together, each with its path and line. What would fail in
//! service (an unreadable certificate, a key that does not match, a world-readable secret) is a fault here.
//!
//! Refuses: to know anything of the other rooms, and to take a secret from the command line.

pub mod model;
mod secret;

pub use model::*;
pub use secret::Secret;
