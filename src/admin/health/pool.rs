//! A pool whose sessions wait long for a connection, or were refused one.

use std::time::{SystemTime, UNIX_EPOCH};

use super::finding::Finding;
use super::{Found, PoolView, Rank, Told, Wellness};
use crate::admin::words::{lasting, lasting_ms};

/// A session that waits longer for a server connection is worth a word.
const LONG_WAIT_MS: u64 = 1000;
/// A refusal counts for so long: clients come and go.
const REFUSED_LATELY_MS: u64 = 60_000;

impl Found<'_> {
    pub(super) fn pool(&mut self, pool: &PoolView) {
        let now = millis(self.facts.now);
        let refused = pool
            .last_refused_ms
            .map(|at| now.saturating_sub(at))
            .filter(|ago| *ago < REFUSED_LATELY_MS);
        let is_long = pool.waiting > 0 && pool.longest_wait_ms > LONG_WAIT_MS;
        if !is_long && refused.is_none() {
            return;
        }
        let mut why = Vec::new();
        match pool.waiting {
            0 => {}
            1 => why.push(format!(
                "1 session waits, for {}",
                lasting_ms(pool.longest_wait_ms)
            )),
            count => why.push(format!(
                "{count} sessions wait, the longest for {}",
                lasting_ms(pool.longest_wait_ms)
            )),
        }
        if let Some(ago) = refused {
            why.push(format!("a client was refused {} ago", lasting(ago / 1000)));
        }
        let since = (pool.waiting > 0).then(|| now.saturating_sub(pool.longest_wait_ms));
        let PoolView {
            route,
            user,
            database,
            ..
        } = pool;
        let finding = Finding::PoolShort { route };
        let told = Told::new(&finding, what(pool), why.join("; "), since);
        let key = format!("pool {route} {user} {database} {}", pool.router_process_id);
        if refused.is_some() {
            self.add(&key, Rank::Down, Wellness::NoService, told);
        } else {
            self.warn(&key, told);
        }
    }
}

/// Which pool, and how many of how many connections are in use at the member that has the most.
fn what(pool: &PoolView) -> String {
    let PoolView {
        route,
        user,
        database,
        max_connections,
        reserve,
        ..
    } = pool;
    let of = format!("user {user} and database {database} on route {route}");
    let in_use = |member: &crate::admin::PoolMemberView| member.leased + member.opening;
    let fullest = pool.members.iter().max_by_key(|member| in_use(member));
    match (fullest, max_connections) {
        (Some(member), Some(most)) => {
            let (used, name) = (in_use(member), &member.member);
            let state = if used >= *most {
                "is full"
            } else {
                "is short of connections"
            };
            let of_reserve = match reserve {
                0 => String::new(),
                reserve => format!("+{reserve}"),
            };
            format!(
                "the pool of {of} {state} ({used} of {most}{of_reserve} connections to {name} are in use)"
            )
        }
        _ => format!("sessions of {of} wait for a server connection"),
    }
}

fn millis(at: SystemTime) -> u64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
