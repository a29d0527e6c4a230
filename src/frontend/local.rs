//! The file of a Unix-domain listener.
//!
//! Guarantees: only a socket nobody listens on is ever replaced; the file has its mode before anybody can connect, and
//! is removed when this is dropped, unless another is in its place by then, or another process has it.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};
use socket2::{Domain, SockAddr, Socket, Type};

/// A socket in the file system that is ours. To be dropped before its listener: while that is open the kernel gives
/// the inode's number to nobody else, so that it tells ours from one that came after.
#[derive(Debug)]
pub(super) struct SocketFile(Arc<Facts>);

/// Whose a socket's file is. Clones tell of the same file.
#[derive(Debug, Clone)]
pub(super) struct Ours(Arc<Facts>);

#[derive(Debug)]
struct Facts {
    path: PathBuf,
    identity: Identity,
    mode: u32,
    /// Whether it is this process's to remove.
    held: AtomicBool,
    /// Where not, the file is neither this process's nor that of who passed the socket on.
    may_be: bool,
}

impl Facts {
    /// No other is in its place.
    fn is_there(&self) -> bool {
        Identity::of(&self.path).is_ok_and(|found| found == self.identity)
    }
}

impl Ours {
    /// It is another process's from now on.
    pub(super) fn release(&self) {
        self.0.held.store(false, Ordering::Relaxed);
    }

    /// It is no other process's any more, and has the mode that it is to have here.
    ///
    /// # Errors
    /// It has not.
    pub(super) fn claim(&self) -> io::Result<()> {
        self.0.held.store(self.0.may_be, Ordering::Relaxed);
        if self.0.may_be && self.0.is_there() {
            fs::set_permissions(&self.0.path, Permissions::from_mode(self.0.mode))?;
        }
        Ok(())
    }

    /// Whether this process, or who passed the socket on, removes it.
    pub(super) fn may_be(&self) -> bool {
        self.0.may_be
    }

    pub(super) fn identity(&self) -> Identity {
        self.0.identity
    }
}

impl SocketFile {
    pub(super) fn ours(&self) -> Ours {
        Ours(Arc::clone(&self.0))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.0.held.load(Ordering::Relaxed) && self.0.is_there() {
            // Nothing to do about it where that fails: the next start finds it stale.
            let _ = fs::remove_file(&self.0.path);
        }
    }
}

/// Which file it is, whatever its name.
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
/// `AddrInUse`: somebody listens there. `AlreadyExists`: what is there is no socket.
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
        may_be: true,
    }));
    // Nobody can connect yet.
    fs::set_permissions(path, Permissions::from_mode(mode))?;
    socket.listen(backlog)?;
    Ok((file, socket.into()))
}

/// The file of a socket that another process has bound there, who removes it until it is claimed; nothing is changed
/// before. One that is nobody's of the two (`may_be` is false) keeps its mode for ever.
///
/// # Errors
/// It is not `passed`, which the socket belongs to, that is there.
pub(super) fn adopt(path: &Path, mode: u32, passed: Identity, may_be: bool) -> io::Result<SocketFile> {
    if Identity::of(path)? != passed {
        return Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "another file is in the place of the socket that the process before listens on",
        ));
    }
    Ok(SocketFile(Arc::new(Facts {
        path: path.to_owned(),
        identity: passed,
        mode,
        held: AtomicBool::new(false),
        may_be,
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
    let looked_at = Identity::of(path)?;
    if !is_abandoned(path)? {
        return Err(io::ErrorKind::AddrInUse.into());
    }
    // Somebody else may have come first.
    if Identity::of(path)? != looked_at {
        return Err(io::ErrorKind::AddrInUse.into());
    }
    fs::remove_file(path)
}

/// Only a refusal says so: whatever else comes of connecting (a full queue, no right to), somebody may listen.
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
    fn stale_ones_are_replaced_live_ones_and_other_files_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(".s.PGSQL.6432");
        let (file, live) = listen_on(&path, 0o640, 1).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o640);
        let error = listen_on(&path, 0o777, 1).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        // Those that only looked still stand in the queue until they are accepted; filled without ever waiting.
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
        // Taken away by hand, and another in its place: that one stays.
        fs::remove_file(&path).unwrap();
        let (second, second_live) = listen_on(&path, 0o777, 1).unwrap();
        drop(file);
        drop(live);
        assert!(path.exists());
        // As a crash leaves it: nobody listens, the file is there.
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
