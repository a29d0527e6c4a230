//! Binds an address, or takes over the socket that another process has bound there.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixListener};
use std::path::PathBuf;

use nix::errno::Errno;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tracing::warn;

use super::overlap::beside;
use super::place::{BoundPlace, Inheritance, Inherited, PassedFile};
use super::socket_file::{self, FileOwnership, Identity, SocketFile};
use crate::config::BindAddress;

/// The kernel queues this many connections while the router is busy. It may lower this to
/// `net.core.somaxconn`.
pub const BACKLOG: i32 = 4096;

/// Why the router cannot listen on an address. `Display` follows the address and a colon.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("it is in use by another program")]
    InUse,
    #[error(
        "it overlaps {0}, where the old process listens; reload the old process with this address before the upgrade"
    )]
    OverlapsInherited(BoundPlace),
    #[error("this host does not have that address")]
    NoSuchAddress,
    #[error("permission denied: ports below 1024 need CAP_NET_BIND_SERVICE")]
    LowPort,
    #[error("the directory {} does not exist; create it for the user of the router", .0.display())]
    NoDirectory(PathBuf),
    // Not a source: the text is shown once.
    #[error("{0}")]
    Io(io::Error),
}

impl From<io::Error> for BindError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl BindError {
    fn of(address: &BindAddress, error: io::Error) -> Self {
        match (error.kind(), address) {
            (io::ErrorKind::AddrInUse, _) => Self::InUse,
            (io::ErrorKind::AddrNotAvailable, _) => Self::NoSuchAddress,
            (io::ErrorKind::PermissionDenied, address) if address.port().is_some_and(|port| port < 1024) => {
                Self::LowPort
            }
            (io::ErrorKind::NotFound, BindAddress::Unix { path, .. }) => {
                Self::NoDirectory(path.parent().unwrap_or(path).to_owned())
            }
            _ => Self::Io(error),
        }
    }
}

/// A bound socket, not yet accepting. The file of a Unix socket is removed when this is dropped, or
/// when its accept loop ends.
#[derive(Debug)]
pub struct Bound {
    pub(super) socket: BoundSocket,
    /// For the log.
    pub(super) name: String,
}

#[derive(Debug)]
pub(super) enum BoundSocket {
    Tcp(std::net::TcpListener),
    /// The file is dropped before the socket. A socket with an abstract name has none.
    Unix(Option<SocketFile>, UnixListener),
}

/// A second descriptor of a bound socket, to be passed to another process. It keeps the port in
/// use: drop it to free the port.
#[derive(Debug)]
pub struct Handle {
    pub address: BindAddress,
    socket: OwnedFd,
    /// Set for a Unix socket.
    file: Option<FileOwnership>,
}

impl Handle {
    /// Another descriptor of the socket, for another process.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn passed_on(&self) -> io::Result<Inherited> {
        Ok(Inherited {
            place: BoundPlace::of(&self.address),
            socket: self.socket.try_clone()?,
            file: self.file.as_ref().map(|file| PassedFile {
                identity: file.identity(),
                is_to_be_removed: file.is_removable(),
            }),
        })
    }

    /// This process owns the socket's file from now on and gives it the configured mode. To be
    /// called when the process that passed the socket on has released it, or when the process that
    /// received it has failed.
    pub fn claim(&self) {
        if let Some(Err(error)) = self.file.as_ref().map(FileOwnership::claim) {
            warn!(listen = %self.address, %error, "the socket's file keeps its old mode");
        }
    }

    /// Another process owns the socket's file if the socket is among `kept`. Then this process does
    /// not remove the file.
    pub fn release(&self, kept: &[BoundPlace]) {
        if let Some(file) = &self.file
            && kept.contains(&BoundPlace::of(&self.address))
        {
            file.release();
        }
    }

    /// The bound address, with the port that the kernel chose if the configured one is 0. `None`
    /// for a Unix socket.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        let address = SockRef::from(&self.socket).local_addr().ok()?;
        address.as_socket()
    }
}

impl AsFd for Handle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsFd for Bound {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            BoundSocket::Tcp(socket) => socket.as_fd(),
            BoundSocket::Unix(_, socket) => socket.as_fd(),
        }
    }
}

/// Binds and listens, or takes over the socket that another process has bound at `address`. `*` is
/// one dual-stack socket, or an IPv4 socket if the host has no IPv6. The sockets in `leaving` are
/// about to be closed; their addresses may overlap `address`.
///
/// # Errors
/// The address cannot be bound. `leaving` listens as before.
pub fn bind(
    address: &BindAddress,
    leaving: &[&Handle],
    inherited: &mut Inheritance,
) -> Result<(Bound, Handle), BindError> {
    let bound = match inherited.take(address) {
        Some(inherited) => adopt(address, inherited)?,
        None => beside(leaving, |shares| bind_as(address, shares)).map_err(|error| {
            match (BindError::of(address, error), inherited.overlapping(address)) {
                (BindError::InUse, Some(place)) => BindError::OverlapsInherited(place.clone()),
                (error, _) => error,
            }
        })?,
    };
    let handle = bound.handle(address)?;
    Ok((bound, handle))
}

/// Binds a Unix socket with a name in the abstract namespace. It has no file and ends with its last
/// descriptor.
///
/// # Errors
/// `AddrInUse` if another process has the name.
pub fn bind_abstract(name: &str) -> io::Result<Bound> {
    let socket = UnixListener::bind_addr(&UnixAddress::from_abstract_name(name)?)?;
    socket.set_nonblocking(true)?;
    Ok(Bound {
        socket: BoundSocket::Unix(None, socket),
        name: format!("@{name}"),
    })
}

fn bind_as(address: &BindAddress, shares: bool) -> io::Result<Bound> {
    let socket = match *address {
        BindAddress::Unix { ref path, mode } => {
            let (file, socket) = socket_file::listen_on(path, mode, BACKLOG)?;
            BoundSocket::Unix(Some(file), socket)
        }
        BindAddress::Ip(ip) => BoundSocket::Tcp(listen_on(ip, false, shares)?),
        BindAddress::Any { port } => {
            let every = |address: SocketAddr| listen_on(address, true, shares);
            BoundSocket::Tcp(match every((Ipv6Addr::UNSPECIFIED, port).into()) {
                Err(error) if no_ipv6(&error) => every((Ipv4Addr::UNSPECIFIED, port).into())?,
                bound => bound?,
            })
        }
    };
    Ok(Bound {
        socket,
        name: address.to_string(),
    })
}

/// Makes a bound socket of one that another process has bound at `address`.
fn adopt(address: &BindAddress, inherited: Inherited) -> io::Result<Bound> {
    SockRef::from(&inherited.socket).set_nonblocking(true)?;
    let socket = match address {
        BindAddress::Unix { path, mode } => {
            let (identity, is_removable) = match inherited.file {
                Some(file) => (file.identity, file.is_to_be_removed),
                None => (Identity::of(path)?, false),
            };
            let file = socket_file::adopt(path, *mode, identity, is_removable)?;
            BoundSocket::Unix(Some(file), inherited.socket.into())
        }
        BindAddress::Ip(_) | BindAddress::Any { .. } => BoundSocket::Tcp(inherited.socket.into()),
    };
    Ok(Bound {
        socket,
        name: address.to_string(),
    })
}

impl Bound {
    fn handle(&self, address: &BindAddress) -> io::Result<Handle> {
        let file = match &self.socket {
            BoundSocket::Tcp(_) => None,
            BoundSocket::Unix(file, _) => file.as_ref().map(SocketFile::ownership),
        };
        Ok(Handle {
            address: address.clone(),
            socket: self.as_fd().try_clone_to_owned()?,
            file,
        })
    }
}

fn listen_on(address: SocketAddr, dual_stack: bool, shares: bool) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shares)?;
    if address.is_ipv6() {
        socket.set_only_v6(!dual_stack)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// `EAFNOSUPPORT`: the kernel has no IPv6. `EADDRNOTAVAIL`: it is switched off.
fn no_ipv6(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_reason_is_told_once_and_in_words() {
        let told = |address: &BindAddress| {
            let error = bind(address, &[], &mut Inheritance::default()).unwrap_err();
            assert!(std::error::Error::source(&error).is_none(), "{error:?}");
            error.to_string()
        };
        let elsewhere = BindAddress::Ip("192.0.2.1:7".parse().unwrap());
        assert_eq!(told(&elsewhere), "this host does not have that address");
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("gone").join("control.sock");
        let told = told(&BindAddress::Unix { path, mode: 0o600 });
        assert!(told.contains("/gone does not exist; create it"), "{told}");
        let denied = || io::Error::from(io::ErrorKind::PermissionDenied);
        let low = BindError::of(&BindAddress::Any { port: 432 }, denied()).to_string();
        assert!(low.contains("CAP_NET_BIND_SERVICE"), "{low}");
        let high = BindError::of(&BindAddress::Any { port: 6432 }, denied()).to_string();
        assert!(!high.contains("CAP_NET_BIND_SERVICE"), "{high}");
    }
}
