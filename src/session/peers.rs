//! The peer channel: routers before the same cluster ask one another whose a cancel request is. Over a PostgreSQL
//! port, authenticated and sealed with the peers' secret, one conversation with each peer, one hop.
//!
//! How much is asked is bounded by the places for cancel requests whose session may be elsewhere, of which one address
//! has half; many keys go into one question, so that keys which are made up cost the peers next to nothing.

mod answering;
mod line;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::{Instant, timeout};
use tracing::{debug, warn};

use super::Shared;
use super::keys::Incarnation;
use super::peer_codec::{PeerError, PeerKey};
use crate::config;
use crate::wire::startup::CancelRequest;
pub(super) use answering::serve;
use line::{Awaited, Line, PeerVerdict};

/// For a peer to take a conversation up, and for it to say whether it has a key.
const PATIENCE: Duration = Duration::from_secs(5);
/// Until a question has been asked, and asked again in another conversation.
const VERDICT: Duration = Duration::from_secs(12);
/// For a session that was found: its turn at the server, the cancel, and the server's hanging up.
const WORK: Duration = Duration::from_mins(2);
/// Conversations that peers carry on with this router: each has one, and one more for each process of an upgrade.
const MOST_CONVERSATIONS: u32 = 256;

/// The other routers.
#[derive(Debug)]
pub struct Peers {
    key: PeerKey,
    incarnation: Incarnation,
    lines: Vec<Arc<Line>>,
    conversations: Arc<AtomicU32>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Which member had this incarnation when it last answered.
    known: HashMap<Incarnation, usize>,
    /// When each was last said.
    warned: HashMap<Warning, Instant>,
}

/// What the operator is told, each at most once in [`WARN_EVERY`]: strangers can cause most of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Warning {
    /// This member cannot be asked.
    Peer(usize),
    /// Somebody asked without the secret.
    Refused,
    TooManyConversations,
}

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
        }
    }

    /// Asks the owner if it is known, else everybody at once. `true`: one of them has taken the request, and done what
    /// was to be done.
    pub(super) async fn ask(
        &self,
        shared: &Shared,
        request: &CancelRequest,
        owner: Option<Incarnation>,
    ) -> bool {
        let known = owner.and_then(|owner| self.state().known.get(&owner).copied());
        if let Some(index) = known
            && let Some(verdict) = self.ask_some(shared, &[index], request).await
            // A process that took over from the owner answers for it, as somebody else.
            && (verdict.is_found || owner == Some(verdict.incarnation))
        {
            return verdict.is_found;
        }
        // Not known, gone, or restarted since: everybody, once.
        let others: Vec<usize> = (0..self.lines.len())
            .filter(|index| Some(*index) != known)
            .collect();
        let verdict = self.ask_some(shared, &others, request).await;
        verdict.is_some_and(|verdict| verdict.is_found)
    }

    /// Asks several at once; the first that has found it ends the search, else the last answer counts.
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
                    last = Some(verdict);
                    if verdict.is_found {
                        // Ended where the conversation has: nobody knows more then.
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

    /// A place for one more conversation that somebody with the secret has begun.
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

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
