//! A listener for clients, and the addresses that sockets are bound to.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use super::AdmissionRules;
use super::words::words;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    pub name: Arc<str>,
    pub address: BindAddress,
    pub route: Arc<str>,
    pub mode: ListenerMode,
    /// [`ListenerTls::Off`] where no certificate is configured, and with [`ListenerMode::Tcp`];
    /// otherwise [`Config::tls`](crate::config::Config::tls) is there.
    pub tls: ListenerTls,
    /// Sessions at once; 0 is no limit.
    pub max_clients: u32,
    pub entry: AdmissionRules,
}

words! {
    /// What a listener does with a connection.
    pub enum ListenerMode {
        /// Speaks PostgreSQL's protocol with the client and with the server.
        Postgres = "postgres",
        /// Passes bytes on unread, to a server of the route: TLS and authentication are between
        /// client and server.
        Tcp = "tcp",
    }
}

words! {
    pub enum ListenerTls {
        Off = "off",
        Optional = "optional",
        Required = "required",
    }
}

/// Where to listen. `*` is one dual-stack socket.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum BindAddress {
    Any {
        port: u16,
    },
    Ip(SocketAddr),
    /// A Unix-domain socket at an absolute path of at most 107 bytes, with the permissions of its
    /// file. Only of listeners for clients.
    Unix {
        path: PathBuf,
        mode: u32,
    },
}

impl BindAddress {
    /// Whether one socket keeps the other from being bound, as `*:6432` and `127.0.0.1:6432` do.
    /// `*` takes both address families; `0.0.0.0` every IPv4 address and `[::]` every IPv6 address.
    pub fn overlaps(&self, other: &Self) -> bool {
        if let (Self::Unix { path: one, .. }, Self::Unix { path: other, .. }) = (self, other) {
            return one == other;
        }
        self.port().is_some()
            && self.port() == other.port()
            && match (self.ip(), other.ip()) {
                (Some(one), Some(other)) => {
                    one == other
                        || (one.is_ipv4() == other.is_ipv4()
                            && (one.is_unspecified() || other.is_unspecified()))
                }
                _ => true,
            }
    }

    /// `None` for a Unix socket.
    pub fn port(&self) -> Option<u16> {
        match self {
            Self::Any { port } => Some(*port),
            Self::Ip(address) => Some(address.port()),
            Self::Unix { .. } => None,
        }
    }

    /// The one address listened on, or `None` for every address of the host, and for a Unix socket.
    pub fn ip(&self) -> Option<IpAddr> {
        match self {
            Self::Any { .. } | Self::Unix { .. } => None,
            Self::Ip(address) => Some(address.ip()),
        }
    }
}

impl std::fmt::Display for BindAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Any { port } => write!(f, "*:{port}"),
            Self::Ip(address) => write!(f, "{address}"),
            Self::Unix { path, .. } => write!(f, "{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn overlapping_addresses() {
        let any = BindAddress::Any { port: 1 };
        let ip = |text: &str| BindAddress::Ip(text.parse().unwrap());
        assert!(any.overlaps(&any));
        assert!(any.overlaps(&ip("127.0.0.1:1")));
        assert!(ip("[::1]:1").overlaps(&any));
        assert!(ip("0.0.0.0:1").overlaps(&ip("127.0.0.1:1")));
        assert!(ip("[::1]:1").overlaps(&ip("[::]:1")));
        assert!(!ip("0.0.0.0:1").overlaps(&ip("[::1]:1")));
        assert!(!ip("127.0.0.1:1").overlaps(&ip("127.0.0.2:1")));
        assert!(!any.overlaps(&ip("127.0.0.1:2")));
        let unix = |path: &str, mode| BindAddress::Unix {
            path: path.into(),
            mode,
        };
        assert!(unix("/run/a", 0o777).overlaps(&unix("/run//a", 0o700)));
        assert!(!unix("/run/a", 0o777).overlaps(&unix("/run/b", 0o777)));
        assert!(!unix("/run/a", 0o777).overlaps(&any) && !any.overlaps(&unix("/run/a", 0o777)));
    }
}
