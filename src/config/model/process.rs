//! What concerns the router as a whole: limits, log and shutdown.

use super::words::words;
use std::num::NonZeroU32;
use std::time::Duration;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Sessions at once over all listeners; 0 is no limit.
    pub max_clients: u32,
    /// Connections between accept and authenticated (at least 1).
    pub max_pending_logins: u32,
    /// Sessions at once of one user name over all listeners and clusters; 0 is no limit.
    pub per_user: u32,
    /// Of one database name, likewise.
    pub per_database: u32,
    /// Of one client address (IPv6: /64), likewise; a Unix socket has none.
    pub per_address: u32,
    /// Sessions that may begin per second over all listeners, with a burst of one second; `None` is
    /// no limit.
    pub connection_rate: Option<NonZeroU32>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    pub level: LogLevel,
    pub format: LogFormat,
}

words! {
    pub enum LogLevel {
        Error = "error",
        Warn = "warn",
        Info = "info",
        Debug = "debug",
        Trace = "trace",
    }
}

words! {
    pub enum LogFormat {
        Text = "text",
        Json = "json",
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shutdown {
    /// From SIGTERM to closing the ports.
    pub delay: Duration,
    /// From there to cutting what is left.
    pub grace: Duration,
    /// From being replaced by another process to ending the sessions that are left, as at SIGTERM;
    /// `None`: they may go on as long as they like.
    pub handover: Option<Duration>,
}
