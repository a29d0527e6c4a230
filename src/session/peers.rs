//! The peer channel: routers before the same cluster ask one another whose a cancel request is. Over a PostgreSQL
//! port, authenticated and sealed with the peers' secret, one question a connection, one hop, rate-limited.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::{debug, warn};

use super::keys::Incarnation;
use super::peer_codec::{self, CHALLENGE_LEN, PeerKey, PeerReply, PeerRequest, REPLY_LEN, REQUEST_LEN};
use super::rate::TokenBucket;
use super::{Shared, cancel};
use crate::config;
use crate::frontend::ClientStream;
use crate::wire::startup::CancelRequest;

/// For one question to one peer, the cancel it carries out included.
const PATIENCE: Duration = Duration::from_secs(5);
/// Questions a second, to all peers together; and as many from them.
const RATE: NonZeroU32 = NonZeroU32::new(50).expect("not zero");
const BURST: NonZeroU32 = NonZeroU32::new(100).expect("not zero");
/// Cancel requests about which peers are being asked: apart from those of our own sessions, which anybody could hold
/// up otherwise, with keys that are made up and a peer that does not answer.
const MOST_ASKED: usize = 64;

/// More is being asked of the peers than is allowed.
#[derive(Debug)]
pub(super) struct TooMany;

/// The other routers.
#[derive(Debug)]
pub struct Peers {
    key: PeerKey,
    incarnation: Incarnation,
    members: Vec<config::Peer>,
    /// Without and with a known owner: who has a key that bears a router's seal was given it by one of us, and does
    /// not wait behind those who make keys up.
    asking: [Semaphore; 2],
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Which member had this incarnation when it last answered.
    known: HashMap<Incarnation, usize>,
    /// As [`Peers::asking`].
    asked: [TokenBucket; 2],
    answered: TokenBucket,
    /// When each was last said.
    warned: HashMap<Warning, Instant>,
}

/// What the operator is told, each at most once in [`WARN_EVERY`]: strangers can cause all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Warning {
    /// This member cannot be asked.
    Peer(usize),
    /// Somebody asked without the secret.
    Refused,
    TooManyAsked,
    TooManyAnswered,
}

const WARN_EVERY: Duration = Duration::from_secs(30);

impl Peers {
    pub fn new(config: &config::Peers, incarnation: Incarnation) -> Self {
        Self {
            key: PeerKey::new(&config.secret),
            incarnation,
            members: config.members.clone(),
            asking: [Semaphore::new(MOST_ASKED), Semaphore::new(MOST_ASKED)],
            state: Mutex::new(State {
                known: HashMap::new(),
                asked: [TokenBucket::new(RATE, BURST), TokenBucket::new(RATE, BURST)],
                answered: TokenBucket::new(RATE, BURST),
                warned: HashMap::new(),
            }),
        }
    }

    /// Asks the owner if it is known, else everybody at once. `true`: one of them has taken the request.
    pub(super) async fn ask(
        &self,
        request: &CancelRequest,
        owner: Option<Incarnation>,
    ) -> Result<bool, TooMany> {
        let is_sealed = owner.is_some();
        let permits = &self.asking[usize::from(is_sealed)];
        let _permit = permits.try_acquire().map_err(|_| TooMany)?;
        let known = owner.and_then(|owner| self.state().known.get(&owner).copied());
        if let Some(index) = known
            && let Some(reply) = self.ask_some(&[index], request, is_sealed).await
            // A process that took over from the owner answers for it, as somebody else.
            && (reply.found || owner == Some(reply.incarnation))
        {
            return Ok(reply.found);
        }
        // Not known, gone, or restarted since: everybody, once.
        let others: Vec<usize> = (0..self.members.len())
            .filter(|index| Some(*index) != known)
            .collect();
        let reply = self.ask_some(&others, request, is_sealed).await;
        Ok(reply.is_some_and(|reply| reply.found))
    }

    /// Asks several at once; the first that has found it ends the search, else the last answer counts.
    async fn ask_some(
        &self,
        indices: &[usize],
        request: &CancelRequest,
        is_sealed: bool,
    ) -> Option<PeerReply> {
        let mut asked = JoinSet::new();
        for &index in indices {
            if !self.state().asked[usize::from(is_sealed)].try_take(Instant::now()) {
                if self.may_warn(Warning::TooManyAsked) {
                    warn!("too many cancel requests for other routers; some are dropped");
                }
                break;
            }
            let (key, peer, request) = (self.key.clone(), self.members[index].clone(), request.clone());
            asked.spawn(async move {
                let answer = timeout(PATIENCE, ask_one(&key, &peer, request)).await;
                (
                    index,
                    answer.unwrap_or_else(|_| Err("it did not answer in time".to_owned())),
                )
            });
        }
        let mut last = None;
        while let Some(joined) = asked.join_next().await {
            let Ok((index, answer)) = joined else { continue };
            match answer {
                Ok(reply) => {
                    self.learn(reply.incarnation, index);
                    if reply.found {
                        return Some(reply);
                    }
                    last = Some(reply);
                }
                Err(error) => self.complain(index, &error),
            }
        }
        last
    }

    fn learn(&self, incarnation: Incarnation, index: usize) {
        let mut state = self.state();
        // One incarnation a member, so that restarts do not pile up.
        state.known.retain(|_, known| *known != index);
        state.known.insert(incarnation, index);
    }

    fn complain(&self, index: usize, error: &str) {
        let peer = &self.members[index].name;
        if self.may_warn(Warning::Peer(index)) {
            warn!(%peer, error, "a peer cannot be asked about a cancel request");
        } else {
            debug!(%peer, error, "a peer cannot be asked about a cancel request");
        }
    }

    fn may_warn(&self, warning: Warning) -> bool {
        let now = Instant::now();
        let warned = &mut self.state().warned;
        let again = warned
            .get(&warning)
            .is_none_or(|at| now.duration_since(*at) >= WARN_EVERY);
        if again {
            warned.insert(warning, now);
        }
        again
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn ask_one(key: &PeerKey, peer: &config::Peer, request: CancelRequest) -> Result<PeerReply, String> {
    let io = |error: std::io::Error| error.to_string();
    let mut stream = TcpStream::connect((peer.host.as_str(), peer.port))
        .await
        .map_err(io)?;
    stream.set_nodelay(true).map_err(io)?;
    let (conversation, packet) = peer_codec::open(key);
    stream.write_all(&packet).await.map_err(io)?;
    let mut challenge = [0; CHALLENGE_LEN];
    stream.read_exact(&mut challenge).await.map_err(io)?;
    let asking = conversation
        .challenge(&challenge)
        .map_err(|fault| fault.to_string())?;
    let (conversation, packet) = asking
        .ask(&PeerRequest::Cancel(request))
        .map_err(|fault| fault.to_string())?;
    stream.write_all(&packet).await.map_err(io)?;
    let mut reply = [0; REPLY_LEN];
    stream
        .read_exact(&mut reply)
        .await
        .map_err(|_| "it hung up: is the secret the same on both sides?".to_owned())?;
    conversation.reply(&reply).map_err(|fault| fault.to_string())
}

/// Serves another router's question. One that does not know the secret is told nothing.
pub(super) async fn serve(shared: &Arc<Shared>, mut stream: ClientStream, body: Bytes, deadline: Instant) {
    let Some(peers) = shared.peers.load_full() else {
        return;
    };
    let address = stream.tcp().and_then(|socket| socket.peer_addr().ok());
    let conversation = async {
        let (conversation, packet) = peer_codec::answer(&peers.key, &body).ok()?;
        stream.write_all(&packet).await.ok()?;
        stream.flush().await.ok()?;
        let mut packet = [0; REQUEST_LEN];
        stream.read_exact(&mut packet).await.ok()?;
        let (request, conversation) = match conversation.request(&packet) {
            Ok(asked) => asked,
            Err(fault) => {
                if peers.may_warn(Warning::Refused) {
                    warn!(?address, %fault, "a peer request was refused: is the secret the same on both sides?");
                }
                return None;
            }
        };
        // Only now: those who do not have the secret must not use up what is meant for those who have.
        if !peers.state().answered.try_take(Instant::now()) {
            if peers.may_warn(Warning::TooManyAnswered) {
                warn!("too many cancel requests from other routers; some are dropped");
            }
            return None;
        }
        let found = match request {
            PeerRequest::Cancel(request) => cancel::for_peer(shared, &request).await,
            PeerRequest::WhoAreYou => false,
        };
        let reply = conversation.reply(PeerReply {
            found,
            incarnation: peers.incarnation,
        });
        stream.write_all(&reply).await.ok()?;
        stream.shutdown().await.ok()
    };
    // Its own bound, whatever comes of it.
    let _ = timeout_at(deadline.min(Instant::now() + PATIENCE * 2), conversation).await;
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use bytes::Bytes;
    use tokio::net::TcpListener;

    use super::*;
    use crate::config::Secret;

    /// Keys that are made up and a peer that never answers must not hold up more than the peers' own share.
    #[tokio::test]
    async fn what_is_asked_of_a_silent_peer_is_bounded() {
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let config = config::Peers {
            secret: Secret::new("s"),
            members: vec![config::Peer {
                name: "silent".into(),
                host: "127.0.0.1".into(),
                port: silent.local_addr().unwrap().port(),
            }],
        };
        let peers = Arc::new(Peers::new(&config, Incarnation::random()));
        let request = CancelRequest {
            process_id: 1,
            key: Bytes::from_static(b"made"),
        };
        let mut asking = JoinSet::new();
        for _ in 0..MOST_ASKED {
            let (peers, request) = (Arc::clone(&peers), request.clone());
            asking.spawn(async move { peers.ask(&request, None).await });
        }
        while peers.asking[0].available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        assert!(peers.ask(&request, None).await.is_err());
        let sealed = timeout(
            Duration::from_millis(1),
            peers.ask(&request, Some(Incarnation::random())),
        );
        assert!(
            sealed.await.is_err(),
            "it is asked about, whatever waits before it"
        );
    }
}
