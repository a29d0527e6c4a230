//! What a configuration takes from files that are read again in service: certificates, keys, revocation lists,
//! passwords and users. Each part is taken or refused by itself, so that a broken certificate does not keep a good
//! users file out.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::error::ConfigErrors;
use super::model::{Auth, ClientTls, HttpTls, ServerTls};
use super::secret::Secret;

/// A part of the configuration whose files are taken together. Prints as the key it stands under.
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

/// One part, read again.
#[derive(Debug)]
pub enum ReloadedUnit {
    Tls(Arc<ClientTls>),
    Http(HttpTls),
    Token(Secret),
    Auth(Auth),
    ServerTls(ServerTls),
    /// The service account's password.
    Password(Option<Secret>),
}

/// Every part that is in the configuration, read again; a part with faults is not to be taken.
#[derive(Debug)]
pub struct ReloadedUnits {
    pub parts: BTreeMap<ReloadUnit, Result<ReloadedUnit, ConfigErrors>>,
    /// The files as they were when they were read.
    pub files: Files,
    /// As [`super::Config::warnings`].
    pub warnings: Vec<String>,
}

/// What tells one state of a file from another without reading it. The time of the last change of its attributes is
/// part of it: a file that was unreadable and now has the right mode is another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// Follows symbolic links, so that one that is put in another's place is a change. `None` where there is no file.
    pub fn of(path: &Path) -> Option<Self> {
        let metadata: Metadata = std::fs::metadata(path).ok()?;
        Some(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

impl Stamp {
    /// Whether the file was changed, or put in another's place, less than `age` ago by the host's clock.
    pub fn is_younger(&self, age: Duration) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let changed = u64::try_from(self.changed.0).unwrap_or_default();
        now.as_secs() < changed + age.as_secs()
    }
}

/// Files with their stamps; `None` for one that is not there.
pub type Stamps = BTreeMap<PathBuf, Option<Stamp>>;

/// The files each part was read from, as they were just before that.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Files(BTreeMap<ReloadUnit, Stamps>);

impl Files {
    /// To be called before the file is read: what is written meanwhile then differs.
    pub(super) fn record(&mut self, part: ReloadUnit, path: &Path) {
        self.0
            .entry(part)
            .or_default()
            .entry(path.to_owned())
            .or_insert_with(|| Stamp::of(path));
    }

    /// Other files for a part.
    pub fn replace(&mut self, part: ReloadUnit, stamps: Stamps) {
        self.0.insert(part, stamps);
    }

    /// Adds files that somebody else has read for a part.
    pub fn add(&mut self, part: ReloadUnit, stamps: Stamps) {
        self.0.entry(part).or_default().extend(stamps);
    }

    /// The files of one part.
    pub fn of(&self, part: &ReloadUnit) -> Option<&Stamps> {
        self.0.get(part)
    }

    /// Every part that has files.
    pub fn parts(&self) -> impl Iterator<Item = (&ReloadUnit, &Stamps)> {
        self.0.iter()
    }

    /// The same files as they are now. Blocks for as long as the file system does.
    pub fn look(&self) -> Stamps {
        let paths = self.0.values().flat_map(BTreeMap::keys);
        paths.map(|path| (path.clone(), Stamp::of(path))).collect()
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
