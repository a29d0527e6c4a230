//! Where a client connects from.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crate::listen::{PeerAddress, PeerProcess};

/// The address of a client, and the address of its socket. They differ behind a balancer that sends
/// PROXY protocol headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientAddress {
    Tcp(SocketAddr),
    /// Behind a balancer: `client` comes from its header, `via` from the socket.
    Proxied {
        client: SocketAddr,
        via: SocketAddr,
    },
    /// On a Unix socket; `None` if the kernel does not report the process.
    Local(Option<PeerProcess>),
}

/// The address of a client that connects directly.
impl From<PeerAddress> for ClientAddress {
    fn from(peer: PeerAddress) -> Self {
        match peer {
            PeerAddress::Tcp(address) => Self::of_socket(address),
            PeerAddress::Unix(process) => Self::Local(process),
        }
    }
}

impl ClientAddress {
    /// A client that connects directly: its address is its socket's.
    pub fn of_socket(address: SocketAddr) -> Self {
        // A dual-stack socket shows IPv4 clients as ::ffff:a.b.c.d; rules and logs use a.b.c.d.
        Self::Tcp(SocketAddr::new(address.ip().to_canonical(), address.port()))
    }

    /// The address in the header of a trusted balancer. If the header has no address, the balancer
    /// is the client.
    #[must_use]
    pub fn proxied(self, client: Option<SocketAddr>) -> Self {
        match (self, client) {
            (Self::Tcp(via), Some(client)) => Self::Proxied {
                client: SocketAddr::new(client.ip().to_canonical(), client.port()),
                via,
            },
            _ => self,
        }
    }

    /// The address of the balancer, if there is one.
    pub fn via(&self) -> Option<SocketAddr> {
        match self {
            Self::Proxied { via, .. } => Some(*via),
            Self::Tcp(_) | Self::Local(_) => None,
        }
    }

    /// `None` on a Unix socket.
    pub fn ip(&self) -> Option<IpAddr> {
        match self {
            Self::Tcp(address) | Self::Proxied { client: address, .. } => Some(address.ip()),
            Self::Local(_) => None,
        }
    }

    /// `None` on a Unix socket.
    pub fn port(&self) -> Option<u16> {
        match self {
            Self::Tcp(address) | Self::Proxied { client: address, .. } => Some(address.port()),
            Self::Local(_) => None,
        }
    }

    /// `None` over the network.
    pub fn peer(&self) -> Option<PeerProcess> {
        match self {
            Self::Tcp(_) | Self::Proxied { .. } => None,
            Self::Local(peer) => *peer,
        }
    }
}

/// A Unix socket as PostgreSQL prints it.
impl fmt::Display for ClientAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) | Self::Proxied { client: address, .. } => address.fmt(f),
            Self::Local(_) => f.write_str("[local]"),
        }
    }
}
