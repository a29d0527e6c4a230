//! What operators and balancers ask: HTTP, the console, metrics, the log.
//!
//! Guarantees: answers while the data path is busy (a thread and runtime of its own); `/node` and `/connection`
//! bodies contain the word `true` only when the answer is true; HTTP/1.0 and 1.1, GET, HEAD and OPTIONS; every
//! wait, buffer and number of connections is bounded.
//!
//! Refuses: to change anything for who does not show the token, but "look again now"; and to reach into another room: what an
//! operator asks for goes through [`Operations`].

mod agent;
pub mod console;
mod exposition;
pub mod fit_metric;
mod handles;
pub mod http;
mod local;
pub mod log;
mod member_checks;
pub mod metrics;
mod operations;
mod views;
mod write_timeout;

pub use console::Console;
pub use handles::{AccessView, ClusterView, Handles, Phase, Readiness};
pub use http::{AdminError, AdminThread, prepare};
pub use metrics::Metrics;
pub use operations::{Change, Ending, Gathered, Operations, ReloadAnswer};
pub use views::{Activity, ClusterSummary, EventView, MemberView, RouterView, SessionView};
