//! The way in: from an accepted socket to a client that has logged in.
//!
//! One type for each step, holding what is valid then; a step consumes the one before. A step that gives `None` has
//! ended the connection: the client was refused with an error, or was served otherwise.
//!
//! ```text
//! Arrival → Identified → Named → LoggedIn
//!  accept    address,     startup   rule, candidate?, authenticate,
//!            PROXY header packet    places, quota
//! ```
//! `mode: tcp` shares the first two.

pub mod admission;
pub mod client_origin;
pub mod login_throttle;
pub(super) mod quota;
pub(super) mod rate;
mod steps;

pub use quota::Quota;
pub use steps::Arrival;
pub(super) use steps::{Course, Identified, LoggedIn, SessionRequest, WelcomedClient};
