use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// Where a client is, apart from where its socket comes from: the two differ behind a balancer that says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientAddress {
    client: SocketAddr,
}

impl ClientAddress {
    /// A client that speaks for itself: its address is its socket's.
    pub fn of_socket(address: SocketAddr) -> Self {
        // A dual-stack socket shows IPv4 clients as ::ffff:a.b.c.d; rules and logs want a.b.c.d.
        Self {
            client: SocketAddr::new(address.ip().to_canonical(), address.port()),
        }
    }

    pub fn ip(&self) -> IpAddr {
        self.client.ip()
    }

    pub fn port(&self) -> u16 {
        self.client.port()
    }
}

impl fmt::Display for ClientAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.client.fmt(f)
    }
}
