//! Reloads of the configuration and of its files.

use std::fmt;

use serde::Serialize;

use super::{Level, log_at};

/// `part` is a part of the configuration whose files are read separately, as in docs/metrics.md.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum ReloadEvent {
    /// The whole configuration was read and is in use.
    ConfigurationApplied {
        config: String,
        changed: Vec<String>,
    },
    /// A key differs from its value at the start of the process.
    RestartNeeded {
        key: String,
    },
    /// One fault of a refused configuration.
    ConfigurationFault {
        fault: String,
    },
    ConfigurationRefused {
        config: String,
        faults: usize,
    },
    /// A warning about the configuration in use, such as a certificate that expires soon.
    ConfigurationWarning {
        warning: String,
        /// The warning concerns the configuration at the start of the process.
        at_start: bool,
    },
    /// An operator asked for a reload, and only files had changed.
    FilesReread {
        changed: Vec<String>,
        broken: Vec<String>,
    },
    FilesRight,
    /// One fault of a part's files.
    FilesRefused {
        part: String,
        fault: String,
        /// The consequence while the fault lasts.
        meanwhile: String,
    },
    FilesLoaded {
        part: String,
    },
    CertificateLoaded {
        part: String,
        file: String,
        subject: String,
        names: String,
        expires: String,
    },
    /// A file has changed that is read only with the whole configuration.
    ReloadNeeded {
        file: String,
    },
    /// A file has changed that is read only at the start of the process.
    UpgradeNeeded {
        file: String,
    },
    /// The router cannot check the files for changes.
    FilesUnseen {
        error: String,
    },
    FilesSeen,
}

impl ReloadEvent {
    pub(super) fn level(&self) -> Level {
        match self {
            Self::ConfigurationApplied { .. }
            | Self::FilesReread { .. }
            | Self::FilesRight
            | Self::FilesLoaded { .. }
            | Self::CertificateLoaded { .. }
            | Self::FilesSeen => Level::Info,
            Self::RestartNeeded { .. }
            | Self::ConfigurationWarning { .. }
            | Self::ReloadNeeded { .. }
            | Self::UpgradeNeeded { .. }
            | Self::FilesUnseen { .. } => Level::Warn,
            Self::ConfigurationFault { .. }
            | Self::ConfigurationRefused { .. }
            | Self::FilesRefused { .. } => Level::Error,
        }
    }

    pub(super) fn log(&self) {
        macro_rules! line {
            ($($fields:tt)+) => {
                log_at!(self.level(), "trunkline::runtime::supervisor", $($fields)+)
            };
        }
        match self {
            Self::ConfigurationApplied { config, changed } => {
                line!(%config, changed = %listed(changed), "{self}");
            }
            Self::RestartNeeded { key } => line!(%key, "{self}"),
            Self::ConfigurationRefused { config, faults } => line!(%config, faults, "{self}"),
            Self::ConfigurationWarning { at_start: true, .. } => {
                log_at!(self.level(), "trunkline::runtime", "{self}");
            }
            Self::FilesReread { changed, broken } => {
                line!(changed = %listed(changed), broken = %listed(broken), "{self}");
            }
            Self::FilesRefused { part, .. } | Self::FilesLoaded { part } => line!(%part, "{self}"),
            Self::CertificateLoaded {
                part,
                file,
                subject,
                names,
                expires,
            } => line!(%part, %file, subject, names, expires, "{self}"),
            Self::ReloadNeeded { file } | Self::UpgradeNeeded { file } => line!(%file, "{self}"),
            Self::FilesUnseen { error } => line!(%error, "{self}"),
            Self::ConfigurationFault { .. }
            | Self::ConfigurationWarning { .. }
            | Self::FilesRight
            | Self::FilesSeen => line!("{self}"),
        }
    }
}

fn listed(parts: &[String]) -> String {
    match parts {
        [] => "none".to_owned(),
        parts => parts.join(", "),
    }
}

impl fmt::Display for ReloadEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ConfigurationApplied { .. } => f.write_str("configuration reloaded"),
            Self::RestartNeeded { .. } => f.write_str(
                "this key differs from its value at the start of the process: it takes effect after `trunkline \
                 upgrade` (sessions stay) or a restart",
            ),
            Self::ConfigurationFault { fault } => write!(f, "configuration not reloaded: {fault}"),
            Self::ConfigurationRefused { .. } => {
                f.write_str("configuration refused: the old one stays in use")
            }
            Self::ConfigurationWarning { warning, .. } => f.write_str(warning),
            Self::FilesReread { .. } => f.write_str("reload: files read again"),
            Self::FilesRight => f.write_str("all files are valid again"),
            Self::FilesRefused { fault, meanwhile, .. } => write!(f, "{fault}; {meanwhile}"),
            Self::FilesLoaded { .. } => f.write_str("files loaded"),
            Self::CertificateLoaded { .. } => f.write_str("certificate loaded"),
            Self::ReloadNeeded { .. } => f.write_str(
                "this file has changed and is read only with the whole configuration: use `trunkline reload` or SIGHUP",
            ),
            Self::UpgradeNeeded { .. } => f.write_str(
                "this file has changed and is read only at the start of the process: it takes effect after \
                 `trunkline upgrade` (sessions stay) or a restart",
            ),
            Self::FilesUnseen { .. } => {
                f.write_str("the router cannot check the files that the configuration names for changes")
            }
            Self::FilesSeen => f.write_str("the router checks the files that the configuration names again"),
        }
    }
}
