//! Files that this program writes.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Puts a file with `contents` in the place of `path`: the whole of it or, where that fails,
/// nothing. What is written first is a new file beside it (`….new`); links there or at `path` are
/// not followed. Blocks.
///
/// # Errors
/// Why it was not written; what was at `path` is unchanged.
pub fn replace_file(path: &Path, mode: u32, contents: &[u8]) -> io::Result<()> {
    let new = beside(path, "new");
    // Left by a process that was killed, or put there by another user.
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let placed = write_new(&new, mode, contents).and_then(|()| fs::rename(&new, path));
    if placed.is_err() {
        // Nothing to do about it where that fails.
        let _ = fs::remove_file(&new);
    }
    placed?;
    match path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        Some(directory) => File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

fn write_new(path: &Path, mode: u32, contents: &[u8]) -> io::Result<()> {
    // Fails where there is anything, a link to nowhere too (O_EXCL).
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)?;
    file.write_all(contents)?;
    file.sync_all()
}

/// The file's name with another ending.
pub fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(ending);
    name.into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_are_replaced_and_never_written_through() {
        let directory = tempfile::tempdir().unwrap();
        let (victim, path) = (directory.path().join("victim"), directory.path().join("file"));
        fs::write(&victim, "precious").unwrap();
        for at in [beside(&path, "new"), path.clone()] {
            for target in [&victim, &directory.path().join("nowhere")] {
                let _ = fs::remove_file(&at);
                symlink(target, &at).unwrap();
                replace_file(&path, 0o600, b"ours").unwrap();
                assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
                assert!(!directory.path().join("nowhere").exists());
                assert!(fs::symlink_metadata(&path).unwrap().is_file());
                assert_eq!(fs::read_to_string(&path).unwrap(), "ours");
                assert!(fs::symlink_metadata(beside(&path, "new")).is_err());
            }
        }
    }

    #[test]
    fn what_cannot_be_written_leaves_everything_as_it_was() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("directory");
        fs::create_dir_all(path.join("full")).unwrap();
        assert!(replace_file(&path, 0o600, b"ours").is_err());
        assert!(path.join("full").exists() && !beside(&path, "new").exists());
    }
}
