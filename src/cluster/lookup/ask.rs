//! One look-up, which tries the members in order.

use std::sync::Arc;

use deadpool::managed::{self, PoolError, Timeouts};
use tokio::time::{Instant, timeout_at};

use super::LookupError;
use super::pools::{Pool, pool};
use super::question::{Question, bind};
use crate::backend::ConnectError;
use crate::cluster::patroni::printable;
use crate::cluster::service_account::ServiceAccount;
use crate::cluster::snapshot::MemberName;
use crate::wire::sqlstate::SqlState;

/// Asks one member after the other. Each one except the last gets half of the remaining time.
pub(super) async fn look_up<Q: Question>(
    user: &[u8],
    question: &Q,
    pools: Vec<(MemberName, Pool)>,
    deadline: Instant,
) -> Result<Q::Found, LookupError> {
    let mut error = LookupError::Unavailable("no member is up".to_owned());
    let last = pools.len().saturating_sub(1);
    for (index, (member, pool)) in pools.into_iter().enumerate() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(LookupError::Timeout);
        }
        let share = if index == last { left } else { left / 2 };
        match ask(user, question, &pool, Instant::now() + share).await {
            Ok(found) => return Ok(found),
            Err(refused @ LookupError::Query(_)) => return Err(refused),
            Err(other) => {
                tracing::debug!(%member, error = %other, "a look-up failed and tries the next member");
                error = other;
            }
        }
    }
    Err(error)
}

async fn ask<Q: Question>(
    user: &[u8],
    question: &Q,
    pool: &Pool,
    deadline: Instant,
) -> Result<Q::Found, LookupError> {
    let left = || Some(deadline.saturating_duration_since(Instant::now()));
    let timeouts = Timeouts {
        wait: left(),
        create: left(),
        recycle: left(),
    };
    let get = pool.timeout_get(&timeouts);
    let mut pooled = match timeout_at(deadline, get).await {
        Ok(Ok(pooled)) => pooled,
        Err(_) | Ok(Err(PoolError::Timeout(_))) => return Err(LookupError::Timeout),
        // Without the pool's text around it.
        Ok(Err(PoolError::Backend(error))) => return Err(LookupError::Unavailable(error.to_string())),
        Ok(Err(other)) => return Err(LookupError::Unavailable(other.to_string())),
    };
    let sql = bind(question.sql(), user, pooled.encoding());
    let reused = managed::Object::metrics(&pooled).recycle_count > 0;
    let mut answer = pooled.run(&sql, Q::MAX_ROWS, deadline).await;
    if reused && answer.as_ref().is_err_and(broken) {
        // The server ended this connection while it was idle. That says nothing about the member
        // yet.
        let again = Timeouts {
            wait: left(),
            create: left(),
            recycle: left(),
        };
        if let Ok(Ok(fresh)) = timeout_at(deadline, pool.timeout_get(&again)).await {
            pooled = fresh;
            answer = pooled.run(&sql, Q::MAX_ROWS, deadline).await;
        }
    }
    let rows = match (answer, question.stand_in()) {
        (Err(ConnectError::Server(error)), Some(stand_in)) if is_missing(error.code) => {
            if !pooled.is_superuser() {
                return Err(LookupError::Query(printable(&error.message, 400)));
            }
            let sql = bind(stand_in, user, pooled.encoding());
            pooled.run(&sql, Q::MAX_ROWS, deadline).await
        }
        (answer, _) => answer,
    };
    match rows {
        Ok(rows) => Q::read(rows, user),
        Err(ConnectError::Timeout { .. }) => Err(LookupError::Timeout),
        Err(error @ ConnectError::Server(_)) if error.leaves_usable() => {
            Err(LookupError::Query(printable(&error.to_string(), 400)))
        }
        Err(error) => Err(LookupError::Unavailable(printable(&error.to_string(), 400))),
    }
}

/// Whether the connection is lost, and not only the answer late.
fn broken(error: &ConnectError) -> bool {
    !error.leaves_usable() && !matches!(error, ConnectError::Timeout { .. })
}

/// One look-up without the cache.
pub(in crate::cluster) async fn once<Q: Question>(
    account: &Arc<ServiceAccount>,
    host: &str,
    port: u16,
    query: &Q,
    user: &[u8],
) -> Result<Q::Found, LookupError> {
    let deadline = Instant::now() + account.config.service_account.timeout;
    ask(user, query, &pool(account, host, port, None), deadline).await
}

/// Undefined function, undefined schema.
fn is_missing(code: SqlState) -> bool {
    matches!(code, SqlState::UNDEFINED_FUNCTION | SqlState::INVALID_SCHEMA_NAME)
}
