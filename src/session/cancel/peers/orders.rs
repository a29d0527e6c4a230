//! Orders for all peers: to hold the clients of a member. Each peer has a conversation for them,
//! which lasts as long as the order, so that an order waits for no cancel request.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use futures_util::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::Peers;
use super::codec::{Asking, PeerKey, Reply};
use super::line::{Line, described, open};
use crate::session::holds::{HoldAnswer, HoldRefusal, HoldRequest};
use crate::{config, names};

/// Time limit for a peer's answer. An order counts for longer than that.
const PATIENCE: Duration = Duration::from_secs(1);

/// A conversation with each peer, opened when there is something to ask.
#[derive(Debug)]
pub struct PeerOrders {
    key: PeerKey,
    peers: Vec<(Arc<Line>, Option<OrderLine>)>,
}

/// What a peer answers, or why it does not.
pub(super) type PeerAnswer = (String, Result<HoldAnswer, String>);

#[derive(Debug)]
struct OrderLine {
    stream: TcpStream,
    asking: Asking,
    read: BytesMut,
    next: u32,
    /// Its release does not know who ordered something.
    is_older: bool,
}

impl Peers {
    /// Where they are, as far as the name service says it in time.
    pub async fn addresses(&self, deadline: Instant) -> Vec<IpAddr> {
        let hosts = self.lines.iter().map(|line| &*line.peer().host);
        let found = join_all(hosts.map(|host| names::addresses(host, deadline))).await;
        found.into_iter().flatten().flatten().collect()
    }

    /// The name of the only peer that is configured with this address.
    pub(super) fn name_at(&self, address: IpAddr) -> Option<String> {
        let is_there = |line: &&Arc<Line>| line.peer().host.parse() == Ok(address.to_canonical());
        let mut there = self.lines.iter().filter(is_there);
        match (there.next(), there.next()) {
            (Some(only), None) => Some(only.name().to_owned()),
            _ => None,
        }
    }

    pub fn orders(&self) -> PeerOrders {
        PeerOrders {
            key: self.key.clone(),
            peers: self.lines.iter().map(|line| (Arc::clone(line), None)).collect(),
        }
    }
}

impl PeerOrders {
    /// For a program that is no router and only looks.
    pub fn of(config: &config::Peers) -> Self {
        let key = PeerKey::new(&config.secret);
        let lines = config
            .members
            .iter()
            .map(|peer| (Line::new(key.clone(), peer.clone()), None));
        Self {
            peers: lines.collect(),
            key,
        }
    }

    /// Their names.
    pub fn names(&self) -> Vec<String> {
        self.peers
            .iter()
            .map(|(line, _)| line.name().to_owned())
            .collect()
    }

    /// Leaves a peer out from now on. `false`: there is no such peer.
    pub fn leave_out(&mut self, name: &str) -> bool {
        let before = self.peers.len();
        self.peers.retain(|(line, _)| line.name() != name);
        self.peers.len() < before
    }

    /// Asks all peers at once, each for [`PATIENCE`] at most. Not cancel safe: a peer whose answer
    /// is not awaited is asked in a new conversation the next time.
    pub async fn ask(&mut self, request: &HoldRequest) -> Vec<PeerAnswer> {
        let key = &self.key;
        let asked = self.peers.iter_mut().map(async |(line, kept)| {
            // A conversation that fails is not used again.
            let current = kept.take();
            let asking = async {
                if let Some(mut current) = current
                    && let Ok(answer) = current.ask(request).await
                {
                    return Ok((current, answer));
                }
                let mut current = OrderLine::open(key, line).await?;
                let answer = current.ask(request).await?;
                Ok((current, answer))
            };
            let answer = match timeout(PATIENCE, asking).await {
                Ok(Ok((current, answer))) => {
                    *kept = Some(current);
                    Ok(answer)
                }
                Ok(Err(error)) => Err(error),
                Err(_elapsed) => Err("it did not answer in time".to_owned()),
            };
            (line.name().to_owned(), answer)
        });
        join_all(asked).await
    }
}

impl OrderLine {
    async fn open(key: &PeerKey, line: &Line) -> Result<Self, String> {
        let (stream, asking) = open(key, line.peer()).await.map_err(|error| described(&error))?;
        if asking.version() < super::codec::VERSION {
            return Err(format!(
                "its release is too old: it speaks version {} of the peer protocol, and holds need {}",
                asking.version(),
                super::codec::VERSION
            ));
        }
        Ok(Self {
            stream,
            asking,
            read: BytesMut::new(),
            next: 0,
            is_older: false,
        })
    }

    async fn ask(&mut self, request: &HoldRequest) -> Result<HoldAnswer, String> {
        if !self.is_older {
            let answer = self.ask_once(request).await?;
            let unnamed = request.unnamed();
            if answer != HoldAnswer::Refused(HoldRefusal::Unsupported) || unnamed == *request {
                return Ok(answer);
            }
            self.is_older = true;
        }
        self.ask_once(&request.unnamed()).await
    }

    async fn ask_once(&mut self, request: &HoldRequest) -> Result<HoldAnswer, String> {
        let number = self.next;
        self.next = self.next.wrapping_add(1);
        let packet = self.asking.hold(number, request);
        let failed = |error: std::io::Error| described(&error);
        self.stream.write_all(&packet).await.map_err(failed)?;
        loop {
            let reply = self.asking.reply(&mut self.read);
            match reply.map_err(|fault| fault.to_string())? {
                Some(Reply::Hold {
                    number: answered,
                    answer,
                }) if answered == number => return Ok(answer),
                Some(Reply::Refused(refusal)) => {
                    return Err(format!("its release is too old: {refusal}"));
                }
                Some(_) => return Err("its answer makes no sense".to_owned()),
                None => {}
            }
            if self.stream.read_buf(&mut self.read).await.map_err(failed)? == 0 {
                return Err(described(&std::io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }
}

#[cfg(test)]
#[path = "orders_tests.rs"]
mod tests;
