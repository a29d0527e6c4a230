//! Arrival: from an accepted socket to a client that has logged in.
//!
//! Each step is a type that holds only what is valid in that step, and each step consumes the one
//! before it. A step that gives `None` has ended the connection: the client was refused, or was
//! served in another way.
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
