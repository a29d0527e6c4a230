//! Who may ask for what under `/api/v1`.
//!
//! | caller | look | change |
//! |---|---|---|
//! | on this host | everybody | with the token |
//! | elsewhere, by HTTPS | with the token | with the token |
//! | elsewhere, in clear | nobody | nobody |

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use axum::http::{HeaderMap, Method, StatusCode, header};
use tokio::time::Instant;

use super::answer::JsonAnswer;
use crate::auth::crypto::same;
use crate::config::Secret;

/// Between two lines about wrong tokens.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// Where a request comes from: the other end of its connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Caller {
    pub(super) address: SocketAddr,
    pub(super) tls: bool,
    /// A balancer has connected, and not said for whom (`UNKNOWN`, `LOCAL`): it may be anybody.
    is_unnamed: bool,
}

impl Caller {
    pub(super) fn new(address: SocketAddr, tls: bool) -> Self {
        Self {
            address,
            tls,
            is_unnamed: false,
        }
    }

    /// For whom a balancer connects. Its own host's loopback is not ours: then it stays the caller itself.
    pub(super) fn announced(self, client: Option<SocketAddr>) -> Self {
        let is_local = |address: SocketAddr| address.ip().to_canonical().is_loopback();
        match client {
            Some(address) if !is_local(address) || is_local(self.address) => Self { address, ..self },
            Some(_) => self,
            None => Self {
                is_unnamed: true,
                ..self
            },
        }
    }

    fn is_here(&self) -> bool {
        !self.is_unnamed && self.address.ip().to_canonical().is_loopback()
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SocketAddr::new(self.address.ip().to_canonical(), self.address.port()).fmt(f)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Right {
    Look,
    Change,
}

impl Right {
    pub(super) fn asked_by(method: &Method) -> Self {
        match *method {
            Method::GET | Method::HEAD | Method::OPTIONS => Self::Look,
            _ => Self::Change,
        }
    }
}

/// The token, and when a wrong one was last told of.
#[derive(Debug)]
pub(super) struct Guard {
    token: Arc<ArcSwapOption<Secret>>,
    told: Mutex<Option<Instant>>,
}

impl Guard {
    pub(super) fn new(token: Arc<ArcSwapOption<Secret>>) -> Self {
        Self {
            token,
            told: Mutex::new(None),
        }
    }

    /// `None` is nobody's: it is refused.
    pub(super) fn admit(
        &self,
        caller: Option<Caller>,
        headers: &HeaderMap,
        right: Right,
    ) -> Result<(), JsonAnswer> {
        let refuse = |error, hint| Err(JsonAnswer::problem(StatusCode::FORBIDDEN, error, hint));
        let (is_here, tls) = caller.map_or((false, false), |caller| (caller.is_here(), caller.tls));
        if is_here && right == Right::Look {
            return Ok(());
        }
        if !is_here && !tls {
            return refuse(
                "in clear, this is answered to callers on the same host only",
                "ask there, or set http.tls and http.token_file",
            );
        }
        let Some(token) = self.token.load_full() else {
            return refuse("this needs a token, and there is none", "set http.token_file");
        };
        let Some(shown) = bearer(headers) else {
            return Err(JsonAnswer::problem(
                StatusCode::UNAUTHORIZED,
                "this needs the token",
                "send `Authorization: Bearer TOKEN`, with what is in http.token_file",
            )
            .challenging());
        };
        if same(token.expose(), shown) {
            return Ok(());
        }
        self.tell(caller);
        Err(JsonAnswer::problem(
            StatusCode::UNAUTHORIZED,
            "the token is wrong",
            "it is in http.token_file; a new one counts within seconds",
        )
        .challenging())
    }

    fn tell(&self, caller: Option<Caller>) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_none_or(|at| at.elapsed() >= TELL_EVERY) {
            *told = Some(Instant::now());
            let by = caller.map_or_else(|| "-".to_owned(), |caller| caller.to_string());
            tracing::warn!(%by, "HTTP: a wrong token was shown");
        }
    }
}

/// What follows `Bearer`.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, token) = value.split_at_checked(7)?;
    scheme
        .eq_ignore_ascii_case(b"bearer ")
        .then(|| token.trim_ascii())
}
