use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// Where a client is, apart from where its socket comes from: the two differ behind a balancer that says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientAddress {
    Tcp(SocketAddr),
    /// Behind a balancer that has said so: `client` by its header, `via` by the socket.
    Proxied {
        client: SocketAddr,
        via: SocketAddr,
    },
    /// On a Unix socket; `None` where the kernel does not say who it is.
    Local(Option<PeerProcess>),
}

/// The process at the other end of a Unix socket, as the kernel saw it when it connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerProcess {
    pub uid: u32,
    pub gid: u32,
    pub pid: Option<i32>,
}

impl ClientAddress {
    /// A client that speaks for itself: its address is its socket's.
    pub fn of_socket(address: SocketAddr) -> Self {
        // A dual-stack socket shows IPv4 clients as ::ffff:a.b.c.d; rules and logs want a.b.c.d.
        Self::Tcp(SocketAddr::new(address.ip().to_canonical(), address.port()))
    }

    /// As a trusted balancer's header has it; without an address in it, the balancer is the client.
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

    /// The balancer's end of the connection, where there is one.
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
