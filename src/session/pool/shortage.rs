//! Which limit a session waits for.

use super::inner::Inner;
use super::pool::Pool;
use crate::cluster::snapshot::MemberName;
use crate::session::stream::SessionStream;

const DETAIL: &str = "The statement runs as soon as a connection is free.";

/// Why there is no server connection for a session that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Shortage {
    /// The pool has as many as its own `max_connections` allows.
    Pool,
    /// The pool may have more, but the router may not: `server.max_connections`.
    Router,
    /// Neither limit of the router's is reached, but the server has no free connection.
    Server {
        member: MemberName,
        /// The server's words.
        said: String,
    },
    /// Nothing is full: a connection is on its way.
    Opening,
}

impl Shortage {
    /// What a session that waits is told.
    pub(super) fn notice(&self) -> (String, &'static str) {
        let why = match self {
            Self::Pool => "all of this pool are in use",
            Self::Router => {
                "the router may open no more to the server, and other pools and sessions have them \
                 (server.max_connections)"
            }
            Self::Server { member, said } => {
                return (
                    format!("waiting for a server connection: server \"{member}\" takes no more ({said})"),
                    DETAIL,
                );
            }
            Self::Opening => "a new one is being opened",
        };
        (format!("waiting for a server connection: {why}"), DETAIL)
    }
}

impl<S: SessionStream> Inner<S> {
    /// The limit that keeps a session of the pool from a connection now: of the first member where
    /// that is not the pool's own.
    pub(super) fn shortage(&self, pool: &Pool<S>) -> Shortage {
        let config = pool.cluster().config();
        let most = config.max_connections as usize;
        let with_room = self.fit.candidates.iter().find(|(_, candidate)| {
            let known = self.member(&candidate.member);
            known.is_none_or(|member| member.total < self.limits.most)
        });
        let Some((_, candidate)) = with_room else {
            return Shortage::Pool;
        };
        let member = &candidate.member;
        if let Some(full) = self.member(member).and_then(|known| known.full.as_ref()) {
            let (member, said) = (member.clone(), full.said.to_string());
            return Shortage::Server { member, said };
        }
        let occupancy = &pool.parts.occupancy;
        if most > 0 && occupancy.sessions_on(&config.name, member) >= most {
            Shortage::Router
        } else {
            Shortage::Opening
        }
    }
}
