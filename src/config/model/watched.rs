//! The files that a configuration names, as they were when they were read.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A unit of the configuration whose files are reloaded together. Prints as its key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ReloadUnit {
    /// `tls`
    Tls,
    /// `http`
    Http,
    /// `http.token_file`
    Token,
    /// `auth`
    Auth,
    /// `clusters.NAME.server_tls`
    ServerTls(Arc<str>),
    /// `clusters.NAME.service_account`
    ServiceAccount(Arc<str>),
    /// Everything else, read with the whole configuration only.
    Rest,
}

impl fmt::Display for ReloadUnit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tls => f.write_str("tls"),
            Self::Http => f.write_str("http"),
            Self::Token => f.write_str("http.token_file"),
            Self::Auth => f.write_str("auth"),
            Self::ServerTls(cluster) => write!(f, "clusters.{cluster}.server_tls"),
            Self::ServiceAccount(cluster) => write!(f, "clusters.{cluster}.service_account"),
            Self::Rest => f.write_str("rest"),
        }
    }
}

/// What tells one state of a file from another without reading it. The time of the last change of
/// its attributes is unit of it: a file that was unreadable and now has the right mode is another
/// one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    pub(in crate::config) device: u64,
    pub(in crate::config) inode: u64,
    pub(in crate::config) size: u64,
    pub(in crate::config) modified: (i64, i64),
    pub(in crate::config) changed: (i64, i64),
}

/// Files with their stamps; `None` for one that is not there.
pub type Stamps = BTreeMap<PathBuf, Option<Stamp>>;

/// The files each unit was read from, as they were just before that.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Files(pub(in crate::config) BTreeMap<ReloadUnit, Stamps>);

impl Files {
    /// Other files for a unit.
    pub fn replace(&mut self, unit: ReloadUnit, stamps: Stamps) {
        self.0.insert(unit, stamps);
    }

    /// Adds files that were read elsewhere for a unit.
    pub fn add(&mut self, unit: ReloadUnit, stamps: Stamps) {
        self.0.entry(unit).or_default().extend(stamps);
    }

    /// The files of one unit.
    pub fn of(&self, unit: &ReloadUnit) -> Option<&Stamps> {
        self.0.get(unit)
    }

    /// Every unit that has files.
    pub fn units(&self) -> impl Iterator<Item = (&ReloadUnit, &Stamps)> {
        self.0.iter()
    }

    /// The files that are not what they were; each once.
    pub fn changed<'a>(&'a self, now: &Stamps) -> Vec<&'a Path> {
        let mut changed: Vec<&Path> = self
            .0
            .values()
            .flatten()
            .filter(|(path, stamp)| now.get(*path).is_some_and(|seen| seen != *stamp))
            .map(|(path, _)| path.as_path())
            .collect();
        changed.sort_unstable();
        changed.dedup();
        changed
    }
}
