//! The file of a Unix-domain listener.
//!
//! Guarantees: only a socket without a listener is replaced. The file has its mode before a client
//! can connect. Dropping [`SocketFile`] removes the file, unless another file has replaced it or
//! another process owns it.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};
use socket2::{Domain, SockAddr, Socket, Type};

/// A socket in the file system. Drop it before its listener: while the listener is open, the kernel
/// does not reuse the inode's number, so the number distinguishes this file from a later one.
#[derive(Debug)]
pub(super) struct SocketFile(Arc<Facts>);

/// Which process removes a socket's file. Clones concern the same file.
#[derive(Debug, Clone)]
pub(super) struct FileOwnership(Arc<Facts>);

#[derive(Debug)]
struct Facts {
    path: PathBuf,
    identity: Identity,
    mode: u32,
    /// Whether this process removes it.
    held: AtomicBool,
    /// `false`: the file belongs neither to this process nor to the one that passed the socket on.
    is_removable: bool,
}

impl Facts {
    /// Whether the path still leads to this file.
    fn is_there(&self) -> bool {
        Identity::of(&self.path).is_ok_and(|found| found == self.identity)
    }
}

impl FileOwnership {
    /// Another process removes it from now on.
    pub(super) fn release(&self) {
        self.0.held.store(false, Ordering::Relaxed);
    }

    /// This process removes it from now on and gives it the configured mode.
    ///
    /// # Errors
    /// The mode cannot be set.
    pub(super) fn claim(&self) -> io::Result<()> {
        self.0.held.store(self.0.is_removable, Ordering::Relaxed);
        if self.0.is_removable && self.0.is_there() {
            fs::set_permissions(&self.0.path, Permissions::from_mode(self.0.mode))?;
        }
        Ok(())
    }

    /// Whether this process, or the one that passed the socket on, removes it.
    pub(super) fn is_removable(&self) -> bool {
        self.0.is_removable
    }

    pub(super) fn identity(&self) -> Identity {
        self.0.identity
    }
}

impl SocketFile {
    pub(super) fn ownership(&self) -> FileOwnership {
        FileOwnership(Arc::clone(&self.0))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.0.held.load(Ordering::Relaxed) && self.0.is_there() {
            // If this fails, the next start replaces the stale file.
            let _ = fs::remove_file(&self.0.path);
        }
    }
}

/// The identity of a file, independent of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    /// # Errors
    /// There is no file.
    pub fn of(path: &Path) -> io::Result<Self> {
        let found = fs::symlink_metadata(path)?;
        Ok(Self {
            device: found.dev(),
            inode: found.ino(),
        })
    }
}

/// # Errors
/// `AddrInUse`: another process listens there. `AlreadyExists`: the file there is not a socket.
pub(super) fn listen_on(path: &Path, mode: u32, backlog: i32) -> io::Result<(SocketFile, UnixListener)> {
    remove_stale(path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SockAddr::unix(path)?)?;
    let file = SocketFile(Arc::new(Facts {
        path: path.to_owned(),
        identity: Identity::of(path)?,
        mode,
        held: AtomicBool::new(true),
        is_removable: true,
    }));
    // No client can connect before `listen`.
    fs::set_permissions(path, Permissions::from_mode(mode))?;
    socket.listen(backlog)?;
    Ok((file, socket.into()))
}

/// The file of a socket that another process has bound at `path`. Until [`FileOwnership::claim`]
/// that process removes it, and nothing changes. A file of neither process (`is_removable` is
/// false) keeps its mode.
///
/// # Errors
/// The file at `path` is not the `passed` one, which belongs to the socket.
pub(super) fn adopt(path: &Path, mode: u32, passed: Identity, is_removable: bool) -> io::Result<SocketFile> {
    if Identity::of(path)? != passed {
        return Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "another file is in the place of the old process's socket",
        ));
    }
    Ok(SocketFile(Arc::new(Facts {
        path: path.to_owned(),
        identity: passed,
        mode,
        held: AtomicBool::new(false),
        is_removable,
    })))
}

fn remove_stale(path: &Path) -> io::Result<()> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !found.file_type().is_socket() {
        return Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "there is a file that is not a socket",
        ));
    }
    let checked = Identity::of(path)?;
    if !is_abandoned(path)? {
        return Err(io::ErrorKind::AddrInUse.into());
    }
    // Another process may have replaced the file meanwhile.
    if Identity::of(path)? != checked {
        return Err(io::ErrorKind::AddrInUse.into());
    }
    fs::remove_file(path)
}

/// Whether no process listens on the socket. Only a refused connection proves that: after any other
/// failure (a full queue, missing permissions) a process may still listen.
fn is_abandoned(path: &Path) -> io::Result<bool> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    let connected = socket.connect(&SockAddr::unix(path)?);
    Ok(connected.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_stale_sockets_are_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(".s.PGSQL.6432");
        let (file, live) = listen_on(&path, 0o640, 1).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o640);
        let error = listen_on(&path, 0o777, 1).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        // The connections of the checks stay in the queue until they are accepted. Fill the queue
        // without blocking.
        let address = SockAddr::unix(&path).unwrap();
        let waiting: Vec<_> = (0..8)
            .map(|_| {
                let socket = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
                socket.set_nonblocking(true).unwrap();
                (socket.connect(&address), socket)
            })
            .collect();
        assert!(waiting.iter().any(|(connected, _)| connected.is_err()));
        let error = listen_on(&path, 0o777, 1).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse, "its queue is full");
        // An operator removes the file and another one replaces it: the new one stays.
        fs::remove_file(&path).unwrap();
        let (second, second_live) = listen_on(&path, 0o777, 1).unwrap();
        drop(file);
        drop(live);
        assert!(path.exists());
        // After a crash the file exists and no process listens.
        drop(second_live);
        std::mem::forget(second);
        let (third, _live) = listen_on(&path, 0o777, 1).unwrap();
        drop(third);
        assert!(!path.exists());

        fs::write(&path, "kept").unwrap();
        let error = listen_on(&path, 0o777, 1).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(&path).unwrap(), "kept");
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("nowhere", &link).unwrap();
        assert!(listen_on(&link, 0o777, 1).is_err());
        assert!(fs::symlink_metadata(&link).is_ok());
        assert!(listen_on(&dir.path().join("no/such/directory"), 0o777, 1).is_err());
    }
}
