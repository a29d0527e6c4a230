//! The start and the end of the process, and its replacement by another process.

use std::fmt;

use serde::Serialize;

use super::{Level, log_at};

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum ProcessEvent {
    Started {
        version: String,
        config: String,
        workers: usize,
    },
    ShuttingDown {
        signal: String,
    },
    /// Another process asks to replace this one.
    HandoverBegun,
    /// The other process ended, or took too long, before it was ready.
    HandoverFailed {
        error: String,
    },
    /// The other process was ready and did not take over.
    HandoverUndone {
        process_id: u32,
        error: String,
    },
    /// Another process has replaced this one.
    Replaced {
        process_id: u32,
        sessions: usize,
    },
    /// This process has replaced another one. `error` is set if that one seems to have ended.
    TookOver {
        process_id: u32,
        error: Option<String>,
    },
    ServiceManagerUnaware {
        process_id: u32,
        error: String,
    },
    UpgradeFailed {
        error: String,
    },
}

impl ProcessEvent {
    pub(super) fn level(&self) -> Level {
        match self {
            Self::Started { .. }
            | Self::ShuttingDown { .. }
            | Self::HandoverBegun
            | Self::Replaced { .. }
            | Self::TookOver { error: None, .. } => Level::Info,
            Self::HandoverFailed { .. }
            | Self::TookOver { error: Some(_), .. }
            | Self::UpgradeFailed { .. } => Level::Warn,
            Self::HandoverUndone { .. } | Self::ServiceManagerUnaware { .. } => Level::Error,
        }
    }

    pub(super) fn log(&self) {
        macro_rules! line {
            ($target:literal, $($fields:tt)+) => {
                log_at!(self.level(), $target, $($fields)+)
            };
        }
        match self {
            Self::Started {
                version,
                config,
                workers,
            } => line!("trunkline::runtime", version, %config, workers, "{self}"),
            Self::ShuttingDown { signal } => line!("trunkline::runtime::shutdown", signal, "{self}"),
            Self::HandoverBegun | Self::HandoverFailed { .. } => {
                line!("trunkline::runtime::supervisor::handover", "{self}");
            }
            Self::HandoverUndone { process_id, .. } => {
                line!("trunkline::runtime::supervisor::handover", process_id, "{self}");
            }
            Self::Replaced { process_id, sessions } => {
                line!(
                    "trunkline::runtime::supervisor::handover",
                    process_id,
                    sessions,
                    "{self}"
                );
            }
            Self::TookOver { process_id, error } => {
                let error = error.as_ref().map(tracing::field::display);
                line!("trunkline::runtime", process_id, error, "{self}");
            }
            Self::ServiceManagerUnaware { process_id, error } => {
                line!("trunkline::runtime::supervisor::handover", process_id, %error, "{self}");
            }
            Self::UpgradeFailed { .. } => line!("trunkline::runtime::upgrade", "{self}"),
        }
    }
}

impl fmt::Display for ProcessEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Started { .. } => f.write_str("started"),
            Self::ShuttingDown { .. } => f.write_str("shutting down"),
            Self::HandoverBegun => f.write_str("another process asks to replace this one"),
            Self::HandoverFailed { error } => write!(
                f,
                "the other process does not take over, and this one continues: {error}"
            ),
            Self::HandoverUndone { error, .. } => write!(
                f,
                "the other process did not take over, and this one continues: {error}"
            ),
            Self::Replaced { .. } => f.write_str(
                "replaced: another process accepts connections now, and the sessions here finish",
            ),
            Self::TookOver { error: None, .. } => {
                f.write_str("took over from the old process, which finishes its sessions")
            }
            Self::TookOver { error: Some(_), .. } => {
                f.write_str("took over; the old process seems to have ended")
            }
            Self::ServiceManagerUnaware { .. } => f.write_str(
                "the service manager does not know the new process and may end it together with this one: restart the service",
            ),
            Self::UpgradeFailed { error } => write!(f, "no upgrade: {error}"),
        }
    }
}
