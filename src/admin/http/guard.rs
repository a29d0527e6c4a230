//! Which caller may ask for what under `/api/v1`.
//!
//! | caller | look | change |
//! |---|---|---|
//! | on this host, and it asks for this host | every caller | with the token |
//! | on this host, and it asks for another name | with the token | with the token |
//! | elsewhere, by HTTPS | with the token | with the token |
//! | elsewhere, without TLS | no caller | no caller |

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, Method, StatusCode, header};
use tokio::time::Instant;

use super::answer::JsonAnswer;
use crate::auth::crypto::same;
use crate::config::Secret;

/// Between two lines about wrong tokens.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// Where a request comes from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Caller {
    pub(super) address: SocketAddr,
    pub(super) tls: bool,
    /// A balancer has connected without its client's address (`UNKNOWN`, `LOCAL`): the client may
    /// be anywhere.
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

    /// The client of a balancer. The loopback of another host is not ours: then the balancer stays
    /// the caller.
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

/// Whether the request came with the right token. Every caller on this host may look, but only with
/// the token an answer says who has ordered a hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct HasToken(pub(super) bool);

/// The token, and when a wrong one was last logged.
#[derive(Debug)]
pub(super) struct Guard {
    token: Arc<ArcSwapOption<Secret>>,
    logged: Mutex<Option<Instant>>,
    stop_logged: Mutex<Option<Instant>>,
}

impl Guard {
    pub(super) fn new(token: Arc<ArcSwapOption<Secret>>) -> Self {
        Self {
            token,
            logged: Mutex::new(None),
            stop_logged: Mutex::new(None),
        }
    }

    /// Without a caller the request is refused.
    pub(super) fn admit(
        &self,
        caller: Option<Caller>,
        headers: &HeaderMap,
        right: Right,
    ) -> Result<(), JsonAnswer> {
        let refuse = |error, hint| Err(JsonAnswer::problem(StatusCode::FORBIDDEN, error, hint));
        let (is_here, tls) = caller.map_or((false, false), |caller| (caller.is_here(), caller.tls));
        if is_here && right == Right::Look && is_for_this_host(headers) {
            return Ok(());
        }
        if !is_here && !tls {
            return refuse(
                "without TLS, only callers on the same host get an answer",
                "ask on that host, or set http.tls and http.token_file",
            );
        }
        let Some(token) = self.token.load_full() else {
            return refuse(
                "this needs a token, and none is configured",
                "set http.token_file",
            );
        };
        let Some(shown) = bearer(headers) else {
            let is_foreign = is_here && right == Right::Look;
            return Err(JsonAnswer::problem(
                StatusCode::UNAUTHORIZED,
                if is_foreign {
                    "this needs the token, because the request is for another host's name; ask for 127.0.0.1 or localhost, or"
                } else {
                    "this needs the token"
                },
                "send `Authorization: Bearer TOKEN`, with the content of http.token_file",
            )
            .challenging());
        };
        if same(token.expose(), shown) {
            return Ok(());
        }
        self.log(caller);
        Err(JsonAnswer::problem(
            StatusCode::UNAUTHORIZED,
            "the token is wrong",
            "send the content of http.token_file; a new token counts within seconds",
        )
        .challenging())
    }

    pub(super) fn has_token(&self, headers: &HeaderMap) -> HasToken {
        let token = self.token.load();
        let shown = token.as_ref().zip(bearer(headers));
        HasToken(shown.is_some_and(|(token, shown)| same(token.expose(), shown)))
    }

    /// A member is about to be stopped, and the caller may not say so.
    pub(super) fn log_stop(&self, caller: Option<Caller>) {
        let mut logged = self.stop_logged.lock().unwrap_or_else(PoisonError::into_inner);
        if logged.is_none_or(|at| at.elapsed() >= LOG_EVERY) {
            *logged = Some(Instant::now());
            let by = caller.map_or_else(|| "-".to_owned(), |caller| caller.to_string());
            tracing::warn!(
                %by,
                "HTTP: before-stop came without the right to it: no clients are held; does its user read http.token_file?"
            );
        }
    }

    fn log(&self, caller: Option<Caller>) {
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        if logged.is_none_or(|at| at.elapsed() >= LOG_EVERY) {
            *logged = Some(Instant::now());
            let by = caller.map_or_else(|| "-".to_owned(), |caller| caller.to_string());
            tracing::warn!(%by, "HTTP: a request came with a wrong token");
        }
    }
}

/// Whether `Host` is an address, this host's name, or a name without a dot. A page in a browser on
/// this host can make its own name lead here (DNS rebinding), and would be answered like a command
/// typed here. Who sends no `Host` is no browser.
fn is_for_this_host(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(header::HOST) else {
        return true;
    };
    let Ok(authority) = host.to_str().unwrap_or_default().parse::<Authority>() else {
        return false;
    };
    let host = authority.host();
    let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let is_address = inner.unwrap_or(host).parse::<IpAddr>().is_ok();
    let is_ours = || {
        let own = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        own.trim_end().eq_ignore_ascii_case(host)
    };
    is_address || !host.contains('.') || is_ours()
}

/// What follows `Bearer`.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, token) = value.split_at_checked(7)?;
    scheme
        .eq_ignore_ascii_case(b"bearer ")
        .then(|| token.trim_ascii())
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn a_name_of_another_domain_is_not_this_host() {
        let is_ours = |host: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, HeaderValue::from_static(host));
            is_for_this_host(&headers)
        };
        assert!(is_for_this_host(&HeaderMap::new()));
        for host in [
            "127.0.0.1:6434",
            "[::1]:6434",
            "10.0.0.9",
            "localhost:6434",
            "router1",
        ] {
            assert!(is_ours(host), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:6434",
            "127.0.0.1.evil.example",
            "localhost.",
            "",
        ] {
            assert!(!is_ours(host), "{host}");
        }
    }

    #[test]
    fn a_page_that_has_its_name_lead_here_is_not_answered() {
        let guard = Guard::new(Arc::new(ArcSwapOption::from_pointee(Secret::new(*b"token"))));
        let here = Caller::new(SocketAddr::from(([127, 0, 0, 1], 5000)), false);
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, HeaderValue::from_static("evil.example:6434"));
        assert!(guard.admit(Some(here), &headers, Right::Look).is_err());
        headers.insert(header::AUTHORIZATION, HeaderValue::from_static("Bearer token"));
        assert!(guard.admit(Some(here), &headers, Right::Look).is_ok());
    }
}
