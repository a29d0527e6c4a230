//! The peer channel: routers in front of the same cluster ask each other which of them has a cancel
//! request's session, and to hold the clients of a member that is about to be stopped. Over a
//! PostgreSQL port, authenticated and sealed with the peers' secret, one hop. There is one
//! conversation with each peer for cancel requests, and one for the orders of a switchover.
//!
//! The places for cancel requests whose session may be elsewhere limit how much is asked; one
//! address has half of them. Many keys go into one question, so keys that are made up cost the
//! peers next to nothing.

mod answering;
pub(crate) mod codec;
mod greet;
mod line;
mod look;
mod orders;
mod served;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::{Instant, timeout};
use tracing::{debug, info, warn};

use super::super::Shared;
use super::keys::Incarnation;
use crate::config;
use crate::wire::startup::CancelRequest;
pub(in crate::session) use answering::serve;
use codec::{PeerError, PeerKey};
pub use greet::greet;
use line::{Awaited, Line, PeerVerdict};
pub use look::PeerLook;
pub use orders::PeerOrders;
pub use served::{Served, served};

/// The version of the peer protocol that this release speaks.
pub const VERSION: u8 = codec::VERSION;

/// Time limit for a peer to begin a conversation, and for its answer whether it has a key.
const PATIENCE: Duration = Duration::from_secs(5);
/// Time limit for a question to be asked, and asked again in another conversation.
const VERDICT: Duration = Duration::from_secs(12);
/// Time limit for a session that was found: its turn at the server, the cancel, and the server's
/// hanging up.
const WORK: Duration = Duration::from_mins(2);
/// Conversations that peers may have with this router: each has one, and one more for each process
/// of an upgrade.
const MOST_CONVERSATIONS: u32 = 256;

/// The other routers.
#[derive(Debug)]
pub struct Peers {
    key: PeerKey,
    incarnation: Incarnation,
    lines: Vec<Arc<Line>>,
    conversations: Arc<AtomicU32>,
    state: Mutex<State>,
    last_look: look::LastLook,
}

#[derive(Debug, Default)]
struct State {
    /// Which member had this incarnation when it last answered.
    known: HashMap<Incarnation, usize>,
    /// When each was last logged.
    warned: HashMap<Warning, Instant>,
    /// In which version each member last answered.
    answered_in: HashMap<usize, u8>,
    /// When each member last answered.
    seen: HashMap<usize, Instant>,
    /// In which version the peer at this address last asked.
    asked_in: HashMap<Option<IpAddr>, u8>,
}

/// What the log warns of, each at most once in [`WARN_EVERY`]: strangers can cause most of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Warning {
    /// This member cannot be asked.
    Peer(usize),
    /// A stranger without the secret asked.
    Refused,
    TooManyConversations,
    /// An opening in an unknown version.
    Version,
}

/// Addresses of peers whose versions are remembered.
const MOST_ADDRESSES: usize = 256;

const WARN_EVERY: Duration = Duration::from_secs(30);

/// A place among the conversations; given back when dropped.
#[derive(Debug)]
struct Conversation(Arc<AtomicU32>);

impl Drop for Conversation {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Peers {
    pub fn new(config: &config::Peers, incarnation: Incarnation) -> Self {
        let key = PeerKey::new(&config.secret);
        let members = config.members.iter().cloned();
        Self {
            lines: members.map(|peer| Line::new(key.clone(), peer)).collect(),
            key,
            incarnation,
            conversations: Arc::default(),
            state: Mutex::default(),
            last_look: look::LastLook::default(),
        }
    }

    /// Asks the owner if it is known, otherwise all peers at once. `true`: one of them has taken
    /// the request, and done what was to be done.
    pub(super) async fn ask(
        &self,
        shared: &Shared,
        request: &CancelRequest,
        owner: Option<Incarnation>,
    ) -> bool {
        let known = owner.and_then(|owner| self.state().known.get(&owner).copied());
        if let Some(index) = known
            && let Some(verdict) = self.ask_some(shared, &[index], request).await
            // A process that took over from the owner answers for it under its own id.
            && (verdict.is_found || owner == Some(verdict.incarnation))
        {
            return verdict.is_found;
        }
        // Not known, gone, or restarted since: all peers, once.
        let others: Vec<usize> = (0..self.lines.len())
            .filter(|index| Some(*index) != known)
            .collect();
        let verdict = self.ask_some(shared, &others, request).await;
        verdict.is_some_and(|verdict| verdict.is_found)
    }

    /// Asks several at once; the first that has found it ends the search, else the last answer
    /// counts.
    async fn ask_some(
        &self,
        shared: &Shared,
        indices: &[usize],
        request: &CancelRequest,
    ) -> Option<PeerVerdict> {
        let mut asked: FuturesUnordered<_> = indices
            .iter()
            .map(|&index| {
                let Awaited { verdict, done } =
                    self.lines[index].ask(request, &shared.tasks, &shared.closing);
                async move {
                    let verdict = match timeout(VERDICT, verdict).await {
                        Ok(Ok(verdict)) => verdict,
                        Ok(Err(_closing)) => Err("this router closes".to_owned()),
                        Err(_elapsed) => Err("it did not answer in time".to_owned()),
                    };
                    (index, verdict, done)
                }
            })
            .collect();
        let mut last = None;
        while let Some((index, verdict, done)) = asked.next().await {
            match verdict {
                Ok(verdict) => {
                    self.learn(verdict.incarnation, index);
                    self.learn_version(shared, verdict.version, index);
                    last = Some(verdict);
                    if verdict.is_found {
                        // It also ends with the conversation: then there is nothing more to know.
                        let _ = timeout(WORK, done).await;
                        return last;
                    }
                }
                Err(error) => self.complain(index, &error),
            }
        }
        last
    }

    fn learn(&self, incarnation: Incarnation, index: usize) {
        let mut state = self.state();
        if state.known.get(&incarnation) == Some(&index) {
            return;
        }
        // One incarnation a member, so that restarts do not pile up.
        state.known.retain(|_, known| *known != index);
        state.known.insert(incarnation, index);
    }

    /// A peer has answered in this version. One line for each change.
    fn learn_version(&self, shared: &Shared, version: u8, index: usize) {
        let mut state = self.state();
        state.seen.insert(index, Instant::now());
        let before = state.answered_in.insert(index, version);
        drop(state);
        if before == Some(version) {
            return;
        }
        let peer = self.lines[index].name();
        shared.metrics.peer_version(peer, version);
        if version != codec::VERSION || before.is_some() {
            info!(
                %peer,
                version,
                own_version = codec::VERSION,
                "a peer runs another release: it is asked in its version of the peer protocol"
            );
        }
    }

    /// A router at this address asks in this version. One line for each change; one that is refused
    /// may be anybody, and is named once in [`WARN_EVERY`].
    fn name_version(&self, address: Option<SocketAddr>, version: u8) {
        let own_version = codec::VERSION;
        let ip = address.map(|address| address.ip());
        if !(codec::OLD_VERSION..=codec::VERSION).contains(&version) {
            if self.may_warn(Warning::Version) {
                warn!(
                    ?ip,
                    version,
                    own_version,
                    "a peer asked in a version of the peer protocol that this router does not speak"
                );
            }
            return;
        }
        let mut state = self.state();
        let asked_in = &mut state.asked_in;
        if asked_in.len() >= MOST_ADDRESSES && !asked_in.contains_key(&ip) {
            return;
        }
        let before = asked_in.insert(ip, version);
        drop(state);
        if before != Some(version) && (version != own_version || before.is_some()) {
            info!(
                ?ip,
                version,
                own_version,
                "a peer runs another release: it is answered in its version of the peer protocol"
            );
        }
    }

    fn complain(&self, index: usize, error: &str) {
        let peer = self.lines[index].name();
        if self.may_warn(Warning::Peer(index)) {
            warn!(%peer, error, "a peer cannot be asked about a cancel request");
        } else {
            debug!(%peer, error, "a peer cannot be asked about a cancel request");
        }
    }

    fn refuse(&self, address: Option<SocketAddr>, fault: PeerError) {
        if self.may_warn(Warning::Refused) {
            warn!(?address, %fault, "a peer request was refused: is the secret the same on both sides?");
        }
    }

    /// A place for one more conversation that a router with the secret has begun.
    fn conversation(&self) -> Option<Conversation> {
        let taken = &self.conversations;
        let next = taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| {
            (taken < MOST_CONVERSATIONS).then(|| taken + 1)
        });
        if next.is_err() && self.may_warn(Warning::TooManyConversations) {
            warn!("too many conversations with other routers about cancel requests; some are refused");
        }
        next.ok().map(|_| Conversation(Arc::clone(taken)))
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

    /// Conversations that peers have with this router, and how many they may have.
    pub fn conversations(&self) -> (u32, u32) {
        (self.conversations.load(Ordering::Relaxed), MOST_CONVERSATIONS)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
