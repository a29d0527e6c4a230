//! Patroni's REST interface: polls `/cluster` at all endpoints in parallel, and reads the answers
//! leniently.
//!
//! Guarantees: one invalid member never invalidates the others. An answer has at most 1 MiB and 256
//! members. Every poll ends within its deadline, and a slow endpoint does not delay it once a
//! majority of the others agree. What a body says is read by `body`; which of several different
//! answers counts is decided by `agreement`.
//!
//! # While Patroni cannot reach its DCS
//!
//! `/cluster` then hangs for Patroni's `retry_timeout` and occupies one of its REST threads;
//! Patroni 4.1 has five. With repeated polls no thread is left for `POST /failsafe`, with which a
//! leader continues under `failsafe_mode`, so the polls would demote the leader. Therefore an
//! endpoint that has once not answered in time is asked for `/patroni`, which needs no DCS, until
//! its `dcs_last_seen` increases, or for [`STALL`].

mod agreement;
mod body;
mod facts;
mod settings;
mod status;

use std::collections::BTreeMap;
use std::error::Error as _;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use reqwest::Url;
use rustls::pki_types::CertificateDer;
use rustls::sign::SingleCertAndKey;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout_at};

pub use self::agreement::choose;
use self::agreement::{Key, key};
pub use self::body::parse;
pub(super) use self::facts::EndpointFacts;
pub use self::settings::times;
pub use self::status::status;

use super::ClusterError;
use super::state::{MemberStatus, PatroniTimes, SourceReport, StatusLook};
use crate::config;
use crate::names::HttpNames;
use crate::tls::{self, Authorities, NameCheck, ServerVerifier, certified};
use crate::wire::text::is_unsafe;

/// Limit of a body in bytes.
const MAX_BODY: usize = 1024 * 1024;
/// Limit of members; further ones are left out.
const MAX_MEMBERS: usize = 256;
/// Limit of a member's name in bytes.
pub(super) const MAX_NAME: usize = 128;
/// How long the others may still answer once most endpoints agree.
const GRACE: Duration = Duration::from_millis(30);

/// Time limit of a request for a member's status.
const STATUS_TIMEOUT: Duration = Duration::from_millis(500);
/// How long an endpoint that did not answer in time is asked only for `dcs_last_seen`.
const STALL: Duration = Duration::from_secs(30);
/// The error of an endpoint that did not answer in time.
const LATE: &str = "no answer in time";

/// The error of an endpoint that has read nothing from its DCS since it did not answer in time.
const NO_DCS: &str = "it cannot reach its DCS, or it was too slow";
/// The beginning of the error for an answer without a list of members.
const STATUS: &str = "answered with HTTP status ";

/// Whether the error of a reply shows that Patroni runs there but may not reach its DCS.
pub(super) fn is_without_dcs(error: &str) -> bool {
    error == NO_DCS
        || error
            .strip_prefix(STATUS)
            .is_some_and(|status| status.starts_with('5'))
}

/// An endpoint that did not answer `/cluster` in time.
#[derive(Debug, Clone, Copy)]
struct Stalled {
    since: Instant,
    /// Its first `dcs_last_seen` after that.
    last_seen: Option<u64>,
}

/// Requests to one cluster's endpoints. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Requests {
    client: reqwest::Client,
    config: Arc<config::Cluster>,
}

/// Where a member's Patroni is asked for its status.
#[derive(Debug, Clone)]
pub(super) enum StatusUrl {
    /// A configured endpoint.
    Endpoint(usize),
    /// The address that Patroni gives.
    Own(Url),
}

/// The client for one cluster's endpoints.
#[derive(Debug)]
pub struct Patroni {
    requests: Requests,
    timeout: Duration,
    /// Whether each endpoint answered its last poll. Polls wait only for these.
    answering: Vec<bool>,
    /// By endpoint. Shared with the running request, which updates it.
    stalled: Vec<Arc<Mutex<Option<Stalled>>>>,
}

/// The answer of one endpoint.
pub type Reply = Result<SourceReport, String>;

impl Patroni {
    pub fn new(config: Arc<config::Cluster>) -> Result<Option<Self>, ClusterError> {
        let config::Source::Patroni(patroni) = &config.source else {
            return Ok(None);
        };
        let timeout = patroni
            .poll_interval
            .clamp(Duration::from_secs(1), Duration::from_secs(5));
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(
                tls(
                    patroni.ca.as_deref(),
                    &patroni.endpoints,
                    patroni.client_certificate.as_deref(),
                )
                .map_err(ClusterError::Tls)?,
            )
            .no_proxy()
            .dns_resolver(HttpNames)
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .tcp_nodelay(true)
            .connect_timeout(timeout)
            .timeout(timeout)
            .pool_idle_timeout(Duration::from_mins(1))
            .pool_max_idle_per_host(2)
            .user_agent(concat!("trunkline/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| ClusterError::Client(describe(&error)))?;
        let answering = vec![true; patroni.endpoints.len()];
        let stalled = answering.iter().map(|_| Arc::default()).collect();
        Ok(Some(Self {
            requests: Requests { client, config },
            timeout,
            answering,
            stalled,
        }))
    }

    pub fn endpoints(&self) -> &[String] {
        &self.requests.settings().endpoints
    }

    pub(super) fn requests(&self) -> Requests {
        self.requests.clone()
    }

    /// Time limit of a poll.
    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Polls every endpoint. `None` for endpoints that the poll did not wait for.
    pub async fn poll(&mut self) -> Vec<Option<Reply>> {
        let deadline = Instant::now() + self.timeout;
        let mut tasks = JoinSet::new();
        for (index, stalled) in self.stalled.iter().enumerate() {
            let (status, cluster) = (
                self.requests.get(index, "patroni"),
                self.requests.get(index, "cluster"),
            );
            let stalled = Arc::clone(stalled);
            tasks.spawn(async move { (index, ask(status, cluster, &stalled).await) });
        }
        let replies = gather(tasks, &self.answering, deadline).await;
        for (stalled, reply) in self.stalled.iter().zip(&replies) {
            if matches!(reply, Some(Err(error)) if error == LATE) {
                let since = Instant::now();
                lock(stalled).get_or_insert(Stalled {
                    since,
                    last_seen: None,
                });
            }
        }
        for (answering, reply) in self.answering.iter_mut().zip(&replies) {
            match reply {
                Some(reply) => *answering = reply.is_ok(),
                // It is slow: polls do not wait for it until it answers in time again.
                None => *answering = false,
            }
        }
        replies
    }
}

impl Requests {
    fn settings(&self) -> &config::Patroni {
        match &self.config.source {
            config::Source::Patroni(patroni) => patroni,
            config::Source::Servers(_) => unreachable!("made from a Patroni source only"),
        }
    }

    /// The [`times`] by this endpoint; `None` if it does not say.
    pub(super) async fn times(&self, endpoint: usize) -> Option<PatroniTimes> {
        let body = fetch(self.get(endpoint, "config"), true).await;
        let said = body.map(|body| times(&body));
        if let Err(error) = &said {
            let endpoint = &self.settings().endpoints[endpoint];
            tracing::debug!(%endpoint, %error, "Patroni does not show its configuration");
        }
        said.ok().flatten()
    }

    /// Finds where the member's own Patroni answers, and what it says. The address that most
    /// endpoints give comes first: an endpoint could claim another member's name.
    pub(super) async fn find(&self, look: &StatusLook) -> Option<(StatusUrl, MemberStatus)> {
        let ask = async |url: StatusUrl| {
            let status = self.status(&url, look).await?;
            Some((url, status))
        };
        if let Some(url) = look.api_url.as_deref().and_then(|url| self.admit(url))
            && let Some(found) = ask(StatusUrl::Own(url)).await
        {
            return Some(found);
        }
        let endpoints = (0..self.settings().endpoints.len()).map(StatusUrl::Endpoint);
        join_all(endpoints.map(ask)).await.into_iter().flatten().next()
    }

    /// What is said there; `None` without an answer in time, or if it is about another member.
    pub(super) async fn status(&self, url: &StatusUrl, look: &StatusLook) -> Option<MemberStatus> {
        let (request, is_its_url) = match url {
            StatusUrl::Endpoint(endpoint) => {
                let own = look.api_url.as_deref().and_then(|url| self.admit(url));
                let is_same = |own: Url| {
                    let url = Url::parse(&self.settings().endpoints[*endpoint]);
                    url.is_ok_and(|url| url.origin() == own.origin())
                };
                (self.get(*endpoint, "patroni"), own.is_some_and(is_same))
            }
            StatusUrl::Own(url) => (self.client.get(url.clone()), true),
        };
        let body = fetch(request.timeout(STATUS_TIMEOUT), false).await.ok()?;
        let report = status(&body)?;
        report.is_of(&look.member, is_its_url).then_some(report.status)
    }

    /// The address that Patroni gives for a member, if it may be asked.
    fn admit(&self, url: &str) -> Option<Url> {
        let mut url = Url::parse(url).ok()?;
        let configured = |endpoint: &String| endpoint.starts_with(&format!("{}://", url.scheme()));
        let is_plain = url.username().is_empty() && url.password().is_none() && url.has_host();
        if !is_plain || !self.settings().endpoints.iter().any(configured) {
            return None;
        }
        url.set_path("/patroni");
        url.set_query(None);
        url.set_fragment(None);
        Some(url)
    }

    fn get(&self, endpoint: usize, path: &str) -> reqwest::RequestBuilder {
        let request = self
            .client
            .get(format!("{}/{path}", self.settings().endpoints[endpoint]));
        match &self.settings().basic_auth {
            Some(basic) => {
                let password = String::from_utf8_lossy(basic.password.expose()).into_owned();
                request.basic_auth(&basic.username, Some(password))
            }
            None => request,
        }
    }
}

fn lock(stalled: &Mutex<Option<Stalled>>) -> MutexGuard<'_, Option<Stalled>> {
    // One value that is written as a whole, so a panic cannot leave it incomplete.
    stalled.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Polls one endpoint, unless the request would only hang.
async fn ask(
    status: reqwest::RequestBuilder,
    cluster: reqwest::RequestBuilder,
    stalled: &Mutex<Option<Stalled>>,
) -> Reply {
    let was = *lock(stalled);
    if let Some(was) = was.filter(|was| was.since.elapsed() < STALL) {
        let seen = last_seen(&fetch(status, false).await?);
        if was.last_seen.is_none() {
            *lock(stalled) = Some(Stalled {
                last_seen: seen,
                ..was
            });
        }
        if seen.is_none() || was.last_seen.is_none() || seen <= was.last_seen {
            return Err(NO_DCS.to_owned());
        }
    }
    *lock(stalled) = None;
    parse(&fetch(cluster, true).await?)
}

/// When Patroni last read its DCS, in seconds since 1970 by Patroni's clock.
fn last_seen(status: &[u8]) -> Option<u64> {
    serde_json::from_slice::<Value>(status).ok()?["dcs_last_seen"].as_u64()
}

/// Collects replies until all expected endpoints have replied, until most of them agree and the
/// grace period is over, or until the deadline. A missing reply at the deadline is a failure.
async fn gather(
    mut tasks: JoinSet<(usize, Reply)>,
    answering: &[bool],
    deadline: Instant,
) -> Vec<Option<Reply>> {
    let mut replies: Vec<Option<Reply>> = vec![None; answering.len()];
    let mut grace: Option<Instant> = None;
    // If no endpoint is expected, the poll waits for all.
    let expected = |index: usize| answering[index] || !answering.contains(&true);
    loop {
        let until = grace.unwrap_or(deadline).min(deadline);
        tokio::select! {
            biased;
            joined = tasks.join_next() => match joined {
                Some(Ok((index, reply))) => replies[index] = Some(reply),
                Some(Err(_)) => {}
                None => break,
            },
            () = sleep_until(until) => break,
        }
        let waiting = replies
            .iter()
            .enumerate()
            .any(|(index, reply)| reply.is_none() && expected(index));
        if grace.is_none()
            && (!waiting || most_agree(&replies, answering))
            && replies.iter().flatten().any(Result::is_ok)
        {
            grace = Some(Instant::now() + GRACE);
        }
    }
    if Instant::now() >= deadline {
        for reply in replies.iter_mut().filter(|reply| reply.is_none()) {
            *reply = Some(Err(LATE.to_owned()));
        }
    }
    replies
}

fn most_agree(replies: &[Option<Reply>], answering: &[bool]) -> bool {
    let expected = answering.iter().filter(|answers| **answers).count();
    let needed = if expected == 0 { replies.len() } else { expected } / 2 + 1;
    let mut groups: BTreeMap<Key, usize> = BTreeMap::new();
    for report in replies.iter().flatten().flatten() {
        *groups.entry(key(report)).or_default() += 1;
    }
    groups.len() == 1 && groups.values().any(|count| *count >= needed)
}

/// Reads a body. `/patroni` has a body with every status.
async fn fetch(request: reqwest::RequestBuilder, must_be_ok: bool) -> Result<Vec<u8>, String> {
    let mut response = request.send().await.map_err(|error| describe(&error))?;
    if must_be_ok && response.status() != reqwest::StatusCode::OK {
        return Err(format!("{STATUS}{}", response.status().as_u16()));
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| describe(&error))? {
        if body.len() + chunk.len() > MAX_BODY {
            return Err("the answer is larger than 1 MiB".to_owned());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// An error with its causes, without the URL.
pub(super) fn describe(error: &reqwest::Error) -> String {
    if let Some(reason) = tls::among_causes(error) {
        return printable(&format!("{TLS_FAILED}{reason}"), 300);
    }
    let mut text = if error.is_timeout() {
        LATE.to_owned()
    } else if error.is_connect() {
        "cannot connect".to_owned()
    } else {
        "the request failed".to_owned()
    };
    let mut source = error.source();
    let mut last = String::new();
    while let Some(cause) = source {
        last = cause.to_string();
        source = cause.source();
    }
    if !last.is_empty() && !error.is_timeout() {
        let _ = write!(text, ": {last}");
    }
    printable(&text, 300)
}

/// The beginning of an error if the endpoint answered but TLS failed.
pub(super) const TLS_FAILED: &str = "TLS failed: ";

/// At most `limit` characters, without control and format characters.
pub(crate) fn printable(text: &str, limit: usize) -> String {
    text.chars()
        .map(|c| if is_unsafe(c) { ' ' } else { c })
        .take(limit)
        .collect()
}

/// TLS with endpoints. Without `ca` the system's authorities are trusted.
pub(super) fn tls(
    ca: Option<&[CertificateDer<'static>]>,
    endpoints: &[String],
    client_certificate: Option<&config::KeyPair>,
) -> Result<rustls::ClientConfig, String> {
    let authorities = match ca {
        Some(certificates) => Authorities::new(certificates).map_err(|error| error.to_string())?,
        None if endpoints.iter().any(|endpoint| endpoint.starts_with("https")) => {
            let system = Authorities::system();
            if system.is_empty() {
                return Err("the system has no trusted certificates".into());
            }
            system
        }
        None => Authorities::none(),
    };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = ServerVerifier::new(NameCheck::ChainAndName, authorities, &provider);
    let builder = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    Ok(match client_certificate {
        Some(pair) => {
            let certified =
                certified(&pair.chain, &pair.key, &provider).map_err(|error| error.to_string())?;
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certified)))
        }
        None => builder.with_no_client_auth(),
    })
}

/// Runs `poll` with the caller's deadline, for a check of the configuration.
pub async fn poll_once(patroni: &mut Patroni, deadline: Instant) -> Vec<Option<Reply>> {
    let endpoints = patroni.endpoints().len();
    timeout_at(deadline, patroni.poll())
        .await
        .unwrap_or_else(|_| vec![None; endpoints])
}

#[cfg(test)]
#[path = "patroni_tests.rs"]
pub(super) mod tests;
