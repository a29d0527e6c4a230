//! What a session with a pool does with its server connection between two requests: it asks what
//! the session has, restores it, and makes a connection fit for others.

use bytes::BytesMut;
use tokio::time::Instant;

use super::connection::{PooledConnection, RoleState};
use super::exchange::{ExchangeError, Exchanged, MOST_LOST, exchange};
use super::metrics::{DiscardReason, ExchangeKind};
use super::session::{Pause, PooledSession};
use super::state::{BeforeIdle, Question, Restore};
use crate::cluster::Evidence;
use crate::session::end::Cause;
use crate::session::stream::SessionStream;
use crate::wire::message::{ErrorReply, put_frame};
use crate::wire::sqlstate::SqlState;

impl<C: SessionStream, S: SessionStream + Send + 'static> PooledSession<C, S> {
    /// Asks the server what the session has. At a boundary.
    pub(super) async fn ask(&mut self, mut question: Question) -> Result<Option<Pause>, Cause> {
        let deadline = Instant::now() + self.home.reset_timeout;
        let Some(lease) = &mut self.lease else {
            return Ok(None);
        };
        let (state, told) = (&mut lease.state, &mut self.memory.told);
        let mut asides = BytesMut::new();
        let sql = question.sql().to_owned();
        let mut is_malformed = false;
        let exchanged = exchange(&mut lease.link, &sql, deadline, |tag, body| match tag {
            b'D' => is_malformed |= question.row(body).is_err(),
            b'S' => {
                if let Some((name, value)) = parameter(body) {
                    state.now.set(name, value);
                    told.set(name, value);
                    put_frame(&mut asides, tag, body);
                }
            }
            // They came unasked, and are the client's.
            b'A' | b'N' => put_frame(&mut asides, tag, body),
            _ => {}
        })
        .await;
        state.statements.unnamed_gone();
        self.client.answers.push(&asides);
        let is_restored = match exchanged {
            Ok(Exchanged { error: None, .. }) => !is_malformed,
            Ok(Exchanged {
                error: Some(said),
                status,
            }) => {
                tracing::debug!(
                    error = said.message,
                    "the question about a session's state failed"
                );
                question.error();
                let after = exchange(&mut lease.link, Question::AFTER_ERROR, deadline, |_, _| {});
                status == b'I' || matches!(after.await, Ok(Exchanged { status: b'I', .. }))
            }
            Err(error) => {
                tracing::debug!(%error, "the question about a session's state was not answered");
                if let ExchangeError::Protocol = error {
                    return Err(Cause::ServerProtocol(error.to_string()));
                }
                false
            }
        };
        if !is_restored {
            let link = &lease.link;
            link.cluster
                .evidence(&link.placement.member, Evidence::Terminated);
            return Err(Cause::ServerGone);
        }
        question.finish(&mut self.memory.confirmed, &mut self.memory.doubts);
        Ok(self.settled())
    }

    /// Gives the connection the session's settings, before the session's request is passed on.
    pub(super) async fn restore(&mut self, restore: Restore) -> Result<Option<Pause>, Cause> {
        let deadline = Instant::now() + self.home.reset_timeout;
        let Some(lease) = &mut self.lease else {
            return Ok(Some(Pause::Wait));
        };
        let state = &mut lease.state;
        let exchanged = exchange(&mut lease.link, restore.sql(), deadline, |tag, body| {
            if let (b'S', Some((name, value))) = (tag, parameter(body)) {
                state.now.set(name, value);
            }
        })
        .await;
        state.statements.unnamed_gone();
        let said = match exchanged {
            Ok(Exchanged {
                error: None,
                status: b'I',
            }) => {
                state.settings = self.memory.confirmed.settings.clone();
                self.memory.not_restored = None;
                self.report_differences();
                self.is_resumed = true;
                return Ok(self.restored());
            }
            Ok(Exchanged { error, .. }) => error,
            Err(error) => {
                tracing::debug!(%error, "a session's settings were not restored");
                if error.is_loss() && self.tries < MOST_LOST {
                    // The server is lost, and nothing of the request has reached it: it waits for
                    // another, as if the connection had not been opened.
                    self.tries += 1;
                    let link = &lease.link;
                    link.cluster
                        .evidence(&link.placement.member, Evidence::Terminated);
                    self.lost_unnoticed();
                    self.discard();
                    return Ok(Some(Pause::Wait));
                }
                None
            }
        };
        self.discard();
        let name = said
            .as_ref()
            .and_then(|said| restore.name_in(said.message.as_bytes()));
        let name: Box<str> = name.unwrap_or_default().into();
        if self.memory.not_restored.replace(name.clone()) != Some(name.clone()) {
            // Another connection may do.
            return Ok(Some(Pause::Wait));
        }
        self.memory.not_restored = None;
        let reason = said.map_or_else(
            || "the server did not answer".to_owned(),
            |said| format!("{} ({})", said.message, said.code),
        );
        let what = if name.is_empty() {
            "the settings".to_owned()
        } else {
            format!("the setting \"{name}\"")
        };
        let reply = ErrorReply::error(
            SqlState::CONNECTION_FAILURE,
            format!("{what} of this session could not be restored on another server connection"),
        )
        .detail(reason)
        .hint("Reconnect, or reset the setting in a new session.");
        match self.answer_error(reply) {
            Some(cause) => Err(cause),
            None => Ok(None),
        }
    }

    /// Waits until no cancel request can hit what the connection's next session runs.
    pub(super) async fn settle_cancels(&mut self) -> Result<Option<Pause>, Cause> {
        if self.entry().until_no_cancels().await {
            self.discard();
            return Ok(None);
        }
        Ok(self.settled())
    }

    /// Asks whether the connection's role exists. If it does not, neither this connection nor the
    /// others that the pool has now are of any use, even if there is a role of that name again.
    pub(super) async fn check_role(&mut self) -> Result<Option<Pause>, Cause> {
        let deadline = Instant::now() + self.home.reset_timeout;
        let Some(lease) = &mut self.lease else {
            return Ok(None);
        };
        if lease.state.role == RoleState::Doubted {
            self.home.pool.meters.exchanged(ExchangeKind::Question);
            lease.check_role(deadline).await;
        }
        match lease.state.role {
            RoleState::Exists => return Ok(self.settled()),
            RoleState::Doubted => self.discard(),
            RoleState::Gone => {
                let member = lease.member().clone();
                self.discard_for(DiscardReason::RoleGone);
                self.home.pool.role_gone(&member);
            }
        }
        Ok(None)
    }

    /// Resets what must not stay on an idle connection.
    pub(super) async fn quiet(&mut self, before: BeforeIdle) -> Result<Option<Pause>, Cause> {
        let deadline = Instant::now() + self.home.reset_timeout;
        let Some(lease) = &mut self.lease else {
            return Ok(None);
        };
        let state = &mut lease.state;
        let exchanged = exchange(&mut lease.link, &before.sql, deadline, |tag, body| {
            if let (b'S', Some((name, value))) = (tag, parameter(body)) {
                state.now.set(name, value);
            }
        })
        .await;
        state.statements.unnamed_gone();
        if let Ok(Exchanged {
            error: None,
            status: b'I',
        }) = exchanged
        {
            state.settings = before.left;
            self.release();
        } else {
            if matches!(&exchanged, Err(error) if error.is_loss()) {
                self.lost_unnoticed();
            }
            self.discard();
        }
        Ok(None)
    }
}

impl<S: SessionStream> PooledConnection<S> {
    /// Asks whether the role exists, where that is in doubt; the doubt stays where there is no
    /// clear answer.
    pub(super) async fn check_role(&mut self, deadline: Instant) {
        let Self { link, state, .. } = self;
        let exchanged = exchange(link, RoleState::QUESTION, deadline, |tag, body| {
            if let (b'S', Some((name, value))) = (tag, parameter(body)) {
                state.now.set(name, value);
            }
        })
        .await;
        state.statements.unnamed_gone();
        if let Ok(Exchanged { status: b'I', error }) = exchanged {
            state.role.answer(error.map(|said| said.code));
        }
    }
}

/// Name and value of a `ParameterStatus`.
pub(super) fn parameter(body: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut parts = body.strip_suffix(b"\0")?.split(|&byte| byte == 0);
    match (parts.next(), parts.next(), parts.next()) {
        (Some(name), Some(value), None) => Some((name, value)),
        _ => None,
    }
}
