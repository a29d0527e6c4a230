//! TCP: name resolution, connecting within a deadline, socket options.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use super::error::{ConnectError, Step, is_local};
use crate::config::ServerOptions;
use crate::names::{self, NameError};

/// The options of a connection to a server: `TCP_NODELAY`, keepalive (idle time and interval the
/// same, 3 probes) and `TCP_USER_TIMEOUT`. The kernel counts keepalive in whole seconds: less than
/// one becomes one.
pub(super) fn tune_socket(stream: &TcpStream, options: &ServerOptions) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    if let Some(period) = options.keepalive {
        socket.set_tcp_keepalive(&keepalive(period))?;
    }
    if options.tcp_user_timeout.is_some() {
        socket.set_tcp_user_timeout(options.tcp_user_timeout)?;
    }
    Ok(())
}

/// Gives a listening socket the options that [`tune_socket`] gives a connection. What it accepts
/// inherits them (Linux: `sk_clone_lock`), which saves six system calls per login. Other options
/// that it has had are taken back.
///
/// # Errors
/// The kernel refuses, as it does for a socket that is not TCP.
pub fn tune_listener(listener: &impl AsFd, options: &ServerOptions) -> io::Result<()> {
    let socket = SockRef::from(listener);
    socket.set_tcp_nodelay(true)?;
    if let Some(period) = options.keepalive {
        socket.set_tcp_keepalive(&keepalive(period))?;
    } else {
        socket.set_keepalive(false)?;
    }
    // Zero is the kernel's own.
    socket.set_tcp_user_timeout(Some(options.tcp_user_timeout.unwrap_or_default()))
}

fn keepalive(period: Duration) -> TcpKeepalive {
    // The kernel refuses more than 32 767 s.
    let period = period.clamp(Duration::from_secs(1), Duration::from_secs(32_767));
    TcpKeepalive::new()
        .with_time(period)
        .with_interval(period)
        .with_retries(3)
}

/// Changes `TCP_USER_TIMEOUT` of a live connection; `None` turns it off. It fails only if the
/// connection is gone, which the next read shows.
pub fn set_user_timeout(stream: &TcpStream, timeout: Option<Duration>) {
    let _ = SockRef::from(stream).set_tcp_user_timeout(timeout);
}

/// Opens a connection on which nothing is sent yet, before `deadline`: tries all addresses of the
/// host in order.
pub async fn open(
    host: &str,
    port: u16,
    options: &ServerOptions,
    deadline: Instant,
) -> Result<TcpStream, ConnectError> {
    let addresses = resolve(host, port, deadline).await?;
    let (stream, _) = dial(&addresses, options, deadline).await?;
    Ok(stream)
}

/// All addresses of a name, in the resolver's order.
pub(super) async fn resolve(
    host: &str,
    port: u16,
    deadline: Instant,
) -> Result<Vec<SocketAddr>, ConnectError> {
    let addresses = names::addresses(host, deadline).await.map_err(|error| {
        let source = io::Error::from(error.clone());
        match error {
            NameError::Silent => ConnectError::Timeout { step: Step::Resolve },
            NameError::NoSuchName(_) => ConnectError::Resolve {
                host: host.to_owned(),
                source,
            },
            NameError::Local(_) => ConnectError::LocalResources { source },
        }
    })?;
    Ok(addresses.into_iter().map(|ip| (ip, port).into()).collect())
}

/// Connects to the first address that answers. The time that is left is shared evenly among the
/// addresses left, so that one that never answers does not use it up. The error is that of the last
/// address.
pub(super) async fn dial(
    addresses: &[SocketAddr],
    options: &ServerOptions,
    deadline: Instant,
) -> Result<(TcpStream, SocketAddr), ConnectError> {
    let mut last = ConnectError::Timeout { step: Step::Connect };
    for (index, &address) in addresses.iter().enumerate() {
        let left = u32::try_from(addresses.len() - index).unwrap_or(u32::MAX);
        let now = Instant::now();
        let until = now + deadline.saturating_duration_since(now) / left;
        last = match dial_one(address, until).await {
            Ok(stream) => {
                tune_socket(&stream, options).map_err(|source| ConnectError::io(Step::Connect, source))?;
                return Ok((stream, address));
            }
            // Another address would not help.
            Err(error @ ConnectError::LocalResources { .. }) => return Err(error),
            Err(error) => error,
        };
    }
    Err(last)
}

async fn dial_one(address: SocketAddr, until: Instant) -> Result<TcpStream, ConnectError> {
    match timeout_at(until, TcpStream::connect(address)).await {
        Err(_) => Err(ConnectError::Timeout { step: Step::Connect }),
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(source)) if is_local(&source) => Err(ConnectError::LocalResources { source }),
        Ok(Err(source)) => Err(match source.kind() {
            io::ErrorKind::ConnectionRefused => ConnectError::Refused { address },
            // The kernel's own timeout, before the router's.
            io::ErrorKind::TimedOut => ConnectError::Timeout { step: Step::Connect },
            _ => ConnectError::Unreachable { address, source },
        }),
    }
}
