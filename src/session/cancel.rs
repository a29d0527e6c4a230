//! Cancel requests: the keys that clients get, and what happens to a request that presents one
//! (docs/protocol.md, cases 30–38).
//!
//! A request is for a session of this process, of another process of this router (before or after
//! an upgrade), or of another router (a peer). It is never answered, whatever happens to it. The
//! client's socket is closed only after the server has closed the router's: that is when libpq
//! takes the cancel as delivered.
//!
//! Each file may use only the ones before it: `keys`, `outcome`, `lanes`, `delivery` (a session of
//! this process), `peers` (other routers), `requests` (where a client's request goes). Other
//! processes are in [`super::generations`], which knows nothing of this folder.

mod delivery;
pub mod keys;
mod lanes;
mod outcome;
pub mod peers;
mod requests;

pub use delivery::Cancels;
pub(super) use delivery::{deliver, forget, pass_unread, settle};
pub(super) use outcome::{CancelOutcome, CutOutcome};
pub use requests::for_generation;
pub(super) use requests::serve;
