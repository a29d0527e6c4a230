//! What operators and balancers ask: HTTP, the console, metrics, the log.
//!
//! Guarantees: it answers while the data path is busy, on a separate thread and runtime. Bodies of
//! `/node` and `/connection` contain the word `true` only if the answer is true. HTTP/1.0 and 1.1,
//! GET, HEAD and OPTIONS. Every wait, buffer and number of connections has a limit.
//!
//! Refuses: to change anything for a caller without the token, except to poll and probe again now;
//! and to reach into another room: the operators' requests go through [`Operations`].

mod actions;
mod agent;
mod console;
mod exposition;
pub mod fit_metric;
mod gather;
mod handles;
mod health;
mod history;
mod holding;
mod http;
mod inventory;
mod live;
mod local;
pub mod log;
mod member_checks;
pub mod metrics;
mod operations;
mod process_limits;
mod relation;
mod sql;
mod stats;
mod views;
mod words;
mod write_timeout;

pub use crate::events::subject as event_subject;
#[cfg(any(test, fuzzing))]
pub(crate) use console::fuzzing as console_fuzzing;
pub use console::{Console, ConsoleOrders};
pub use handles::{AccessView, ClusterView, Handles, Phase, Readiness};
pub use health::{Facts, HealthView, ProblemView, Rank, Subject, Wellness};
pub use history::History;
pub use holding::{
    HoldOperations, OpenTransactions, PauseReport, PauseRequest, PinnedSessions, StopCheck, StopEnd,
    StopReport, SwitchoverPlan, SwitchoverRequest, SwitchoverStatus,
};
#[cfg(any(test, fuzzing))]
pub(crate) use http::fuzzing as http_fuzzing;
pub use http::{AdminError, AdminThread, BoundHttp, Prepared, prepare};
pub use inventory::Inventory;
pub use metrics::Metrics;
pub use operations::{CONSOLE_PHASE, Change, Ending, Gathered, Operations, Reconnection, ReloadAnswer};
pub use process_limits::memory_limit_of;
pub use views::{
    Activity, CertificateView, ClusterSummary, DatabaseView, EventView, HoldView, IdleConnectionView,
    LeaderView, LimitView, ListenerView, MemberView, PeerView, PoolMemberView, PoolView, RouteView,
    RouterView, ServerConnectionView, SessionView, SettingView,
};
pub use words::{lasting, lasting_ms, there_are};
