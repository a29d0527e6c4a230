//! Reads the header of the PROXY protocol from a socket.

use std::io;

use tokio::net::TcpStream;

use crate::wire::proxy::{Header, ProxyError, Reader};

/// Bytes that one peek may return.
const PEEK: usize = 512;

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

/// Reads the header and no byte after it. Memory is limited here, time by the caller. Not cancel
/// safe.
pub async fn read(socket: &TcpStream) -> Result<Header, ProxyHeaderError> {
    let mut reader = Reader::default();
    let mut peeked = [0; PEEK];
    loop {
        let seen = socket.peek(&mut peeked).await?;
        if seen == 0 {
            return Err(ProxyHeaderError::HungUp);
        }
        let (used, header) = reader.push(&peeked[..seen])?;
        consume(socket, used).await?;
        if let Some(header) = header {
            return Ok(header);
        }
    }
}

/// Reads bytes that a peek has already seen.
async fn consume(socket: &TcpStream, mut left: usize) -> io::Result<()> {
    let mut discarded = [0; PEEK];
    while left > 0 {
        socket.readable().await?;
        match socket.try_read(&mut discarded[..left]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => left -= read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
