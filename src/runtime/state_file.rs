//! The state file keeps the operators' settings for members and routes over a restart.
//!
//! Guarantees: the file is always complete, the old one or the new one (written beside it, flushed,
//! renamed). A file that cannot be read or written is logged and never stops the router; nothing
//! waits for it. Settings for absent members, clusters and routes are kept.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::cluster::snapshot::AdminState;
use crate::config::{MOST_WEIGHT, beside, replace_file};

const VERSION: u64 = 1;
/// The largest file in bytes: far more than operators need.
const MAX_FILE: u64 = 1024 * 1024;
/// Time between a failed write and the next attempt.
const RETRY: Duration = Duration::from_secs(30);
/// A write that takes longer is logged.
const SLOW: Duration = Duration::from_secs(10);

/// The operators' settings. Members and routes that are absent here have the defaults.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct AdminOverrides {
    /// By cluster.
    pub(super) members: BTreeMap<String, MemberOverrides>,
    /// Names.
    pub(super) disabled_routes: BTreeSet<String>,
    /// Each with the end of its pause, in milliseconds of Unix time.
    pub(super) paused_routes: BTreeMap<String, u64>,
}

/// The settings of one cluster, by member.
pub(super) type MemberOverrides = BTreeMap<String, AdminOverride>;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct AdminOverride {
    pub(super) admin: AdminState,
    /// Replaces the configured one.
    pub(super) weight: Option<u16>,
}

impl AdminOverrides {
    /// Changes the settings of one member. A member with the defaults is removed.
    pub(super) fn change(&mut self, cluster: &str, member: &str, change: impl FnOnce(&mut AdminOverride)) {
        let members = self.members.entry(cluster.to_owned()).or_default();
        let overrides = members.entry(member.to_owned()).or_default();
        change(overrides);
        if *overrides == AdminOverride::default() {
            members.remove(member);
        }
        if members.is_empty() {
            self.members.remove(cluster);
        }
    }

    pub(super) fn member(&self, cluster: &str, member: &str) -> Option<&AdminOverride> {
        self.members.get(cluster)?.get(member)
    }
}

/// The file as it is written.
#[derive(Debug, Serialize, Deserialize)]
struct Document {
    version: u64,
    clusters: BTreeMap<String, BTreeMap<String, SavedOverride>>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    disabled_routes: BTreeSet<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    paused_routes: BTreeMap<String, u64>,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedOverride {
    #[serde(default = "ready")]
    admin: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    weight: Option<u16>,
}

fn ready() -> String {
    AdminState::Ready.to_string()
}

/// Why the file cannot be used. `Display` follows "the state file".
#[derive(Debug, thiserror::Error)]
pub(super) enum StateFileError {
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    #[error("is larger than {} KiB", MAX_FILE / 1024)]
    TooLarge,
    #[error("is not a state file: {0}")]
    Json(#[from] serde_json::Error),
    #[error("has version {0}, and this router supports version {VERSION}")]
    Version(u64),
    #[error("gives {member} the unknown state \"{}\"", .state.escape_debug())]
    State { member: String, state: String },
    #[error("gives {member} the weight {weight}, above {MOST_WEIGHT}")]
    Weight { member: String, weight: u16 },
}

/// Reads the file at the start. A missing file counts as an empty one. A broken one is logged,
/// renamed and ignored.
pub(super) fn load(path: &Path) -> AdminOverrides {
    match read(path) {
        Ok(overrides) => {
            for route in &overrides.disabled_routes {
                info!(%route, "the route is disabled, as before the restart");
            }
            for (cluster, members) in &overrides.members {
                for (member, AdminOverride { admin, weight }) in members {
                    let weight =
                        weight.map_or_else(|| "as configured".to_owned(), |weight| weight.to_string());
                    info!(%cluster, %member, state = %admin, %weight, "the administrative state is as before the restart");
                }
            }
            overrides
        }
        Err(error) => {
            let aside = beside(path, "broken");
            let what = match fs::rename(path, &aside) {
                Ok(()) => format!("set aside as {}", aside.display()),
                Err(error) => format!("it cannot be renamed: {error}"),
            };
            warn!(file = %path.display(), "the state file {error}; every member is ready and has its configured weight, and every route is enabled ({what})");
            AdminOverrides::default()
        }
    }
}

pub(super) fn read(path: &Path) -> Result<AdminOverrides, StateFileError> {
    // The check comes before the opening, because opening a named pipe would wait.
    match fs::metadata(path) {
        Ok(found) if found.is_file() => {}
        Ok(_) => return Err(io::Error::other("it is not a regular file").into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(AdminOverrides::default()),
        Err(error) => return Err(error.into()),
    }
    let file = File::open(path)?;
    let mut text = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_FILE {
        return Err(StateFileError::TooLarge);
    }
    parse(&text)
}

pub(super) fn parse(text: &[u8]) -> Result<AdminOverrides, StateFileError> {
    // A file of another version may have another form.
    let value: serde_json::Value = serde_json::from_slice(text)?;
    match value.get("version").and_then(serde_json::Value::as_u64) {
        Some(VERSION) | None => {}
        Some(version) => return Err(StateFileError::Version(version)),
    }
    let document: Document = serde_json::from_value(value)?;
    let mut overrides = AdminOverrides {
        disabled_routes: document.disabled_routes,
        paused_routes: document.paused_routes,
        ..AdminOverrides::default()
    };
    for (cluster, members) in document.clusters {
        for (member, SavedOverride { admin, weight }) in members {
            let Some(state) = AdminState::named(&admin) else {
                return Err(StateFileError::State { member, state: admin });
            };
            if let Some(weight) = weight.filter(|weight| *weight > MOST_WEIGHT) {
                return Err(StateFileError::Weight { member, weight });
            }
            overrides.change(&cluster, &member, |overrides| {
                *overrides = AdminOverride { admin: state, weight };
            });
        }
    }
    Ok(overrides)
}

pub(super) fn text(overrides: &AdminOverrides) -> Vec<u8> {
    let entry = |member: &AdminOverride| SavedOverride {
        admin: member.admin.to_string(),
        weight: member.weight,
    };
    let clusters = overrides.members.iter().map(|(cluster, members)| {
        let members = members.iter().map(|(name, member)| (name.clone(), entry(member)));
        (cluster.clone(), members.collect())
    });
    let document = Document {
        version: VERSION,
        clusters: clusters.collect(),
        disabled_routes: overrides.disabled_routes.clone(),
        paused_routes: overrides.paused_routes.clone(),
    };
    let mut text = serde_json::to_vec_pretty(&document).unwrap_or_default();
    text.push(b'\n');
    text
}

fn write(path: &Path, overrides: &AdminOverrides) -> io::Result<()> {
    replace_file(path, 0o644, &text(overrides))
}

/// Writes each change until `stop`, then the last one.
pub(super) async fn keep(
    path: PathBuf,
    mut changes: watch::Receiver<Arc<AdminOverrides>>,
    stop: CancellationToken,
) {
    let path: Arc<Path> = path.into();
    let mut failing = false;
    loop {
        let ends = tokio::select! {
            biased;
            changed = wait(&mut changes, failing) => changed.is_err(),
            () = stop.cancelled() => true,
        };
        if ends && !failing && !changes.has_changed().unwrap_or(true) {
            return;
        }
        let overrides = Arc::clone(&changes.borrow_and_update());
        let at = Arc::clone(&path);
        let mut writing = spawn_blocking(move || write(&at, &overrides));
        let written = match timeout(SLOW, &mut writing).await {
            Ok(written) => written,
            Err(_elapsed) => {
                warn!(file = %path.display(), "the state file is still being written; check its file system");
                writing.await
            }
        };
        let written = written.unwrap_or_else(|error| Err(io::Error::other(error)));
        let failed = written.is_err();
        match written {
            Ok(()) if failing => info!(file = %path.display(), "the router can write the state file again"),
            Err(error) if !failing => {
                warn!(file = %path.display(), %error, "the router cannot write the state file: settings for members and routes are lost at a restart");
            }
            Ok(()) | Err(_) => {}
        }
        failing = failed;
        if ends {
            return;
        }
    }
}

/// Waits for a change, or for the next attempt.
async fn wait(
    changes: &mut watch::Receiver<Arc<AdminOverrides>>,
    failing: bool,
) -> Result<(), watch::error::RecvError> {
    if failing {
        return timeout(RETRY, changes.changed()).await.unwrap_or(Ok(()));
    }
    changes.changed().await
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn drained() -> AdminOverrides {
        let mut overrides = AdminOverrides::default();
        overrides.change("main", "db1", |member| member.admin = AdminState::Drain);
        overrides.change("main", "db2", |member| member.weight = Some(7));
        overrides.change("gone", "x", |member| member.admin = AdminState::Maint);
        overrides.disabled_routes.insert("rw".to_owned());
        overrides
    }

    #[test]
    fn written_settings_are_read_back_and_defaults_are_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.json");
        assert_eq!(read(&path).unwrap(), AdminOverrides::default(), "none yet");
        let mut overrides = drained();
        write(&path, &overrides).unwrap();
        assert_eq!(read(&path).unwrap(), overrides);
        overrides.change("gone", "x", |member| member.admin = AdminState::Ready);
        overrides.change("main", "db2", |member| member.weight = None);
        assert_eq!(overrides.members.len(), 1);
        write(&path, &overrides).unwrap();
        assert_eq!(read(&path).unwrap(), overrides);
        let names: Vec<_> = fs::read_dir(directory.path()).unwrap().collect();
        assert_eq!(names.len(), 1, "nothing is left beside it");
    }

    #[test]
    fn a_broken_file_is_set_aside() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.json");
        let large = " ".repeat(usize::try_from(MAX_FILE).unwrap() + 1);
        for (text, why) in [
            ("", "not a state file"),
            ("[]", "not a state file"),
            ("{\"version\": 1}", "not a state file"),
            ("{\"version\": 2, \"clusters\": {}}", "has version 2"),
            (
                "{\"version\": 1, \"clusters\": {\"main\": {\"db1\": {\"admin\": \"off\"}}}}",
                "db1 the unknown state \"off\"",
            ),
            (
                "{\"version\": 1, \"clusters\": {\"main\": {\"db1\": {\"weight\": 300}}}}",
                "db1 the weight 300",
            ),
            (
                "{\"version\": 1, \"clusters\": {}, \"disabled_routes\": \"rw\"}",
                "not a state file",
            ),
            (&large, "larger than"),
        ] {
            fs::write(&path, text).unwrap();
            let error = read(&path).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
            assert_eq!(load(&path), AdminOverrides::default());
            assert!(!path.exists());
            assert_eq!(fs::read_to_string(beside(&path, "broken")).unwrap(), text);
        }
    }

    #[tokio::test]
    async fn the_last_change_is_written_after_the_stop() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.json");
        let (changes, seen) = watch::channel(Arc::new(AdminOverrides::default()));
        let stop = CancellationToken::new();
        let task = tokio::spawn(keep(path.clone(), seen, stop.clone()));
        changes.send(Arc::new(drained())).unwrap();
        stop.cancel();
        task.await.unwrap();
        assert_eq!(read(&path).unwrap(), drained());
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_write_is_retried() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("missing");
        let path = missing.join("state.json");
        let (changes, seen) = watch::channel(Arc::new(AdminOverrides::default()));
        let stop = CancellationToken::new();
        let task = tokio::spawn(keep(path.clone(), seen, stop.clone()));
        changes.send(Arc::new(drained())).unwrap();
        tokio::time::sleep(RETRY / 2).await;
        assert!(!path.exists());
        fs::create_dir(&missing).unwrap();
        tokio::time::sleep(RETRY * 2).await;
        stop.cancel();
        task.await.unwrap();
        assert_eq!(read(&path).unwrap(), drained());
    }
}
