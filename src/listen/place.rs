//! The places where sockets are bound, and the sockets that another process has bound.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use socket2::{SockRef, Type};

use super::socket_file::Identity;
use crate::config::BindAddress;

/// The place where a socket is bound.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BoundPlace {
    /// Every address: a dual-stack socket, or IPv4 alone.
    Any(u16),
    Ip(SocketAddr),
    Unix(PathBuf),
}

impl BoundPlace {
    pub fn of(address: &BindAddress) -> Self {
        match address {
            BindAddress::Any { port } => Self::Any(*port),
            BindAddress::Ip(address) => Self::Ip(*address),
            BindAddress::Unix { path, .. } => Self::Unix(path.clone()),
        }
    }

    /// The place of a listening stream socket.
    ///
    /// # Errors
    /// `InvalidInput` if it is not a listening stream socket, or if the router does not listen on
    /// sockets of its kind.
    pub fn of_socket(socket: &impl AsFd) -> io::Result<Self> {
        let socket = SockRef::from(socket);
        if socket.r#type()? != Type::STREAM || !socket.is_listener()? {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "it is not a listening stream socket",
            ));
        }
        let address = socket.local_addr()?;
        if let Some(path) = address.as_pathname() {
            return Ok(Self::Unix(path.to_owned()));
        }
        match address.as_socket() {
            Some(SocketAddr::V6(address)) if address.ip().is_unspecified() && !socket.only_v6()? => {
                Ok(Self::Any(address.port()))
            }
            Some(address) => Ok(Self::Ip(address)),
            None => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "it is neither TCP nor a Unix socket with a file",
            )),
        }
    }
}

impl std::fmt::Display for BoundPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Any(port) => write!(f, "*:{port}"),
            Self::Ip(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// A listening socket from another process.
#[derive(Debug)]
pub struct Inherited {
    pub place: BoundPlace,
    pub socket: OwnedFd,
    /// Set for a Unix socket.
    pub file: Option<PassedFile>,
}

/// The file of a Unix socket that was passed on.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct PassedFile {
    pub identity: Identity,
    /// Whether the process that has the socket removes the file at its end.
    pub is_to_be_removed: bool,
}

/// Listening sockets from another process. Each part of this process takes the ones that it listens
/// on.
#[derive(Debug, Default)]
pub struct Inheritance(Vec<Inherited>);

impl Inheritance {
    pub fn new(sockets: Vec<Inherited>) -> Self {
        Self(sockets)
    }

    /// The socket bound at this address.
    pub fn take(&mut self, address: &BindAddress) -> Option<Inherited> {
        let place = BoundPlace::of(address);
        let index = self.0.iter().position(|inherited| inherited.place == place)?;
        Some(self.0.swap_remove(index))
    }

    /// The places of the remaining sockets.
    pub fn places(&self) -> Vec<BoundPlace> {
        self.0.iter().map(|inherited| inherited.place.clone()).collect()
    }

    /// The place of a remaining socket that overlaps this address.
    pub(super) fn overlapping(&self, address: &BindAddress) -> Option<&BoundPlace> {
        let overlaps = |place: &&BoundPlace| match place {
            BoundPlace::Any(port) => BindAddress::Any { port: *port }.overlaps(address),
            BoundPlace::Ip(place) => BindAddress::Ip(*place).overlaps(address),
            BoundPlace::Unix(_) => false,
        };
        self.0.iter().map(|inherited| &inherited.place).find(overlaps)
    }
}
