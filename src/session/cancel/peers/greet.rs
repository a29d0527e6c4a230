//! Whether the peers answer, for a check before a start. Each is asked for a key that nobody has.

use std::io;

use bytes::{Bytes, BytesMut};
use futures_util::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::codec::{Asked, PeerKey};
use super::{PATIENCE, line};
use crate::auth::crypto::random;
use crate::config;
use crate::wire::startup::CancelRequest;

/// Asks all at the same time, each for at most [`PATIENCE`]. `Ok`: it has the same secret, and
/// answers in this version.
pub async fn greet(peers: &config::Peers) -> Vec<(config::Peer, io::Result<u8>)> {
    let key = PeerKey::new(&peers.secret);
    let asked = peers.members.iter().map(|peer| {
        let key = key.clone();
        async move {
            let greeted = timeout(PATIENCE, greet_one(&key, peer)).await;
            let greeted = greeted.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
            (peer.clone(), greeted)
        }
    });
    join_all(asked).await
}

async fn greet_one(key: &PeerKey, peer: &config::Peer) -> io::Result<u8> {
    let (mut stream, mut asking) = line::open(key, peer).await?;
    let nobodys: [u8; 32] = random();
    let question = asking.ask(&[Asked {
        number: 0,
        request: CancelRequest {
            process_id: 0,
            key: Bytes::copy_from_slice(&nobodys),
        },
    }]);
    stream.write_all(&question).await?;
    // The codec limits what one answer may be.
    let mut read = BytesMut::new();
    loop {
        if asking.reply(&mut read).map_err(io::Error::other)?.is_some() {
            return Ok(asking.version());
        }
        if stream.read_buf(&mut read).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}
