//! The parts of what is shown, each as a message that is ready to be sent.

use axum::body::Bytes;
use serde::Serialize;
use serde_json::{Value, json};

use super::super::gather::Shown;
use super::super::handles::Handles;
use super::super::views::{CertificateView, PoolView};

/// Pools in a message. Those with the most clients that wait come first.
const MOST_POOLS: usize = 200;

/// The parts, in the order in which a reader gets them.
const NAMES: [&str; 7] = [
    "router",
    "clusters",
    "members",
    "routes",
    "switchover",
    "pools",
    "health",
];

/// A message, for readers without the token and with it: only the latter learn which operator has
/// ordered something.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Message {
    public: Bytes,
    private: Bytes,
}

/// Each part with the version in which it changed last; empty before there is one.
#[derive(Debug, Default)]
pub(super) struct Parts([(u64, Message); NAMES.len()]);

impl Parts {
    /// What `handles` show, as version 1.
    pub(super) fn of(handles: &Handles, pools: &[PoolView], certificates: &[CertificateView]) -> Self {
        let (public, private) = (Shown::of(handles, false), Shown::of(handles, true));
        let health = |shown: &Shown| shown.health(handles, None, pools, certificates);
        let messages = [
            Message::of(NAMES[0], &public.router, &private.router),
            Message::same(NAMES[1], &public.clusters),
            Message::same(NAMES[2], &public.members),
            Message::of(NAMES[3], &public.routes, &private.routes),
            Message::of(NAMES[4], &public.switchover, &private.switchover),
            Message::same(NAMES[5], &shown(pools)),
            Message::of(NAMES[6], &health(&public), &health(&private)),
        ];
        Self(messages.map(|message| (1, message)))
    }

    /// `newer`, with a new version for each part that differs.
    pub(super) fn with(&self, newer: Self) -> Self {
        let version = self.version() + 1;
        let mut parts = newer.0;
        for (part, old) in parts.iter_mut().zip(&self.0) {
            part.0 = if part.1 == old.1 { old.0 } else { version };
        }
        Self(parts)
    }

    /// Nothing, in a version that no reader has.
    pub(super) fn without(&self) -> Self {
        let version = self.version() + 1;
        Self(std::array::from_fn(|_| (version, Message::default())))
    }

    pub(super) fn version(&self) -> u64 {
        self.0
            .iter()
            .map(|(version, _)| *version)
            .max()
            .unwrap_or_default()
    }

    /// The messages that a reader of `version` does not have.
    pub(super) fn since(&self, version: u64, has_token: bool) -> impl Iterator<Item = &Bytes> {
        let newer = self.0.iter().filter(move |(of, _)| *of > version);
        newer.map(move |(_, message)| {
            if has_token {
                &message.private
            } else {
                &message.public
            }
        })
    }
}

impl Message {
    fn of(name: &str, public: &impl Serialize, private: &impl Serialize) -> Self {
        let (public, private) = (message(name, public), message(name, private));
        // Shared where they are equal.
        let private = if public == private {
            public.clone()
        } else {
            private
        };
        Self { public, private }
    }

    fn same(name: &str, value: &impl Serialize) -> Self {
        let message = message(name, value);
        Self {
            public: message.clone(),
            private: message,
        }
    }
}

/// The message of an event stream. JSON has no line breaks.
pub(super) fn message(name: &str, value: &impl Serialize) -> Bytes {
    let value = serde_json::to_value(value).expect("views have keys that are text, and finite numbers");
    Bytes::from(format!("event: {name}\ndata: {value}\n\n"))
}

/// Those that somebody waits for first, without their idle connections.
fn shown(pools: &[PoolView]) -> Value {
    let mut all: Vec<&PoolView> = pools.iter().collect();
    all.sort_by_key(|pool| std::cmp::Reverse(pool.waiting));
    let left_out = all.len().saturating_sub(MOST_POOLS);
    all.truncate(MOST_POOLS);
    let shown: Vec<PoolView> = all.into_iter().map(without_idle_connections).collect();
    json!({"left_out": left_out, "pools": shown})
}

fn without_idle_connections(pool: &PoolView) -> PoolView {
    let mut pool = pool.clone();
    for member in &mut pool.members {
        member.idle_connections.clear();
    }
    pool
}
