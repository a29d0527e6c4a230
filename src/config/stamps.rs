//! Stamps of files: taken when a file is read, and compared later to see whether it changed.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::model::{Files, ReloadUnit, Stamp, Stamps};

impl Stamp {
    /// Follows symbolic links, so that one that is put in another's place is a change. `None` where
    /// there is no file.
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
    /// Whether the file was changed, or put in another's place, less than `age` ago by the host's
    /// clock.
    pub fn is_younger(&self, age: Duration) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let changed = u64::try_from(self.changed.0).unwrap_or_default();
        now.as_secs() < changed + age.as_secs()
    }
}

impl Files {
    /// To be called before the file is read: what is written meanwhile then differs.
    pub(super) fn record(&mut self, unit: ReloadUnit, path: &Path) {
        self.0
            .entry(unit)
            .or_default()
            .entry(path.to_owned())
            .or_insert_with(|| Stamp::of(path));
    }

    /// The same files as they are now. Blocks for as long as the file system does.
    pub fn look(&self) -> Stamps {
        let paths = self.0.values().flat_map(BTreeMap::keys);
        paths.map(|path| (path.clone(), Stamp::of(path))).collect()
    }
}
