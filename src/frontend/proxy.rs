//! The header of the PROXY protocol, read off a socket.

use std::io;

use tokio::net::TcpStream;

use crate::wire::proxy::{Header, ProxyError, Reader};

/// One look at what has come.
const LOOK: usize = 512;

/// Why there is no header.
#[derive(Debug, thiserror::Error)]
pub enum ProxyHeaderError {
    #[error("hung up")]
    HungUp,
    #[error("{0}")]
    Header(#[from] ProxyError),
}

impl From<io::Error> for ProxyHeaderError {
    fn from(_: io::Error) -> Self {
        Self::HungUp
    }
}

/// Takes the header, and no byte behind it. Bounded in memory; the caller bounds the time. Not cancel safe.
pub async fn read(socket: &TcpStream) -> Result<Header, ProxyHeaderError> {
    let mut reader = Reader::default();
    let mut look = [0; LOOK];
    loop {
        let seen = socket.peek(&mut look).await?;
        if seen == 0 {
            return Err(ProxyHeaderError::HungUp);
        }
        let (used, header) = reader.push(&look[..seen])?;
        consume(socket, used).await?;
        if let Some(header) = header {
            return Ok(header);
        }
    }
}

/// They have been seen, so they are there.
async fn consume(socket: &TcpStream, mut left: usize) -> io::Result<()> {
    let mut waste = [0; LOOK];
    while left > 0 {
        socket.readable().await?;
        match socket.try_read(&mut waste[..left]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => left -= read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
