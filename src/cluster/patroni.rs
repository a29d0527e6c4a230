//! Patroni's REST interface: polls `/cluster` at all endpoints in parallel, and reads the answers
//! leniently.
//!
//! Guarantees: one invalid member never invalidates the others. An answer has at most 1 MiB and 256
//! members. Every poll ends within its deadline, and a slow endpoint does not delay it once a
//! majority of the others agree.
//!
//! # Different answers
//!
//! Answers are grouped by the leader that they name and its timeline.
//!
//! 1. A leader counts as *seen* if this router's probes saw it accept writes, as a member of this
//!    cluster, on at least the timeline that the answer gives it. Timelines only grow: answers that
//!    name a leader on an older timeline than a seen leader are old and do not count.
//!
//! 2. A timeline that is only claimed does not count. The largest group of the other answers is
//!    chosen, including the group of answers without a leader, if it is more than half of all
//!    answers or its leader is seen.
//!
//! 3. In a tie the group whose leader is seen is chosen, if there is exactly one.
//!
//! 4. Otherwise no leader is named.
//!
//! A majority of all answers decides which members are listed and with which values
//! ([`votes`](super::votes)). A leader that is claimed on a newer timeline than the chosen one is a
//! *rival*: it is listed too, so that it is probed.
//!
//! # While Patroni cannot reach its DCS
//!
//! `/cluster` then hangs for Patroni's `retry_timeout` and occupies one of its REST threads;
//! Patroni 4.1 has five. With repeated polls no thread is left for `POST /failsafe`, with which a
//! leader continues under `failsafe_mode`, so the polls would demote the leader. Therefore an
//! endpoint that has once not answered in time is asked for `/patroni`, which needs no DCS, until
//! its `dcs_last_seen` increases, or for [`STALL`].

use std::collections::BTreeMap;
use std::error::Error as _;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::sign::SingleCertAndKey;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::ClusterError;
use super::snapshot::{MemberName, Role, Snapshot};
use super::state::{Listed, Named, SourceReport};
use super::votes::{Votes, rival};
use crate::config;
use crate::names::HttpNames;
use crate::tls::{self, Authorities, NameCheck, ServerVerifier, certified};

/// Limit of a body in bytes.
const MAX_BODY: usize = 1024 * 1024;
/// Limit of members; further ones are left out.
const MAX_MEMBERS: usize = 256;
/// Limit of a member's name in bytes.
pub(super) const MAX_NAME: usize = 128;
/// How long the others may still answer once most endpoints agree.
const GRACE: Duration = Duration::from_millis(30);

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

/// The client for one cluster's endpoints.
#[derive(Debug)]
pub struct Patroni {
    client: reqwest::Client,
    config: Arc<config::Cluster>,
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
            client,
            config,
            timeout,
            answering,
            stalled,
        }))
    }

    fn settings(&self) -> &config::Patroni {
        match &self.config.source {
            config::Source::Patroni(patroni) => patroni,
            config::Source::Servers(_) => unreachable!("made from a Patroni source only"),
        }
    }

    pub fn endpoints(&self) -> &[String] {
        &self.settings().endpoints
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
            let (status, cluster) = (self.get(index, "patroni"), self.get(index, "cluster"));
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

    fn get(&self, endpoint: usize, path: &str) -> reqwest::RequestBuilder {
        let request = self.client.get(format!("{}/{path}", self.endpoints()[endpoint]));
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

/// At most `limit` characters, without control characters.
pub(crate) fn printable(text: &str, limit: usize) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
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

/// Reads the body of `/cluster`. Fails only if it is not such a body at all.
pub fn parse(body: &[u8]) -> Reply {
    let value: Value =
        serde_json::from_slice(body).map_err(|error| format!("the answer is not JSON: {error}"))?;
    let Some(list) = value.get("members").and_then(Value::as_array) else {
        return Err("the answer has no list of members".to_owned());
    };
    let mut members: Vec<Listed> = Vec::new();
    for member in list.iter().filter_map(member).take(MAX_MEMBERS) {
        if members.iter().all(|known| known.name != member.name) {
            members.push(member);
        }
    }
    let mut leaders = members
        .iter()
        .filter(|member| matches!(member.role, Role::Leader | Role::StandbyLeader));
    let named = match (leaders.next(), leaders.next()) {
        (None, _) => Named::Nobody,
        (Some(leader), None) => Named::One(leader.name.clone()),
        (Some(_), Some(_)) => Named::Several,
    };
    let paused = value.get("pause").and_then(Value::as_bool).unwrap_or(false);
    Ok(SourceReport {
        members,
        named,
        paused,
        disagreement: None,
        rivals: Vec::new(),
    })
}

/// One member; `None` if it has no usable name.
fn member(value: &Value) -> Option<Listed> {
    let name = value.get("name")?.as_str()?;
    if name.is_empty() || name.len() > MAX_NAME || name.chars().any(char::is_control) {
        return None;
    }
    let text = |key: &str| {
        value
            .get(key)
            .and_then(Value::as_str)
            .map(|text| printable(text, 64))
    };
    let usable = |host: &&str| {
        !host.is_empty() && host.len() <= 255 && !host.chars().any(|c| c.is_control() || c.is_whitespace())
    };
    let host = value
        .get("host")
        .and_then(Value::as_str)
        .filter(usable)
        .unwrap_or_default()
        .to_owned();
    let port = match value.get("port") {
        Some(Value::Number(number)) => number.as_u64().and_then(|number| u16::try_from(number).ok()),
        Some(Value::String(text)) => text.parse().ok(),
        _ => None,
    };
    let role = match text("role").unwrap_or_default().as_str() {
        "leader" | "master" | "primary" => Role::Leader,
        "standby_leader" => Role::StandbyLeader,
        "replica" => Role::Replica,
        "sync_standby" => Role::SyncStandby,
        "quorum_standby" => Role::QuorumStandby,
        other => Role::Other(other.to_owned()),
    };
    let number = |key: &str| value.get(key).and_then(Value::as_u64);
    let tags = match value.get("tags") {
        Some(Value::Object(tags)) => tags
            .iter()
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect(),
        _ => BTreeMap::new(),
    };
    Some(Listed {
        name: MemberName::new(name),
        host,
        port: port.unwrap_or(0),
        role,
        state: text("state").unwrap_or_default(),
        timeline: number("timeline").and_then(|timeline| u32::try_from(timeline).ok()),
        lag: number("lag"),
        tags,
    })
}

/// The leader that an answer names, and its timeline (0 if there is none).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Nobody,
    Several,
    Leader { timeline: u32, name: MemberName },
}

fn key(report: &SourceReport) -> Key {
    match &report.named {
        Named::Nobody => Key::Nobody,
        Named::Several => Key::Several,
        Named::One(name) => {
            let leader = report.members.iter().find(|member| member.name == *name);
            Key::Leader {
                timeline: leader.and_then(|leader| leader.timeline).unwrap_or(0),
                name: name.clone(),
            }
        }
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Nobody => f.write_str("no leader"),
            Self::Several => f.write_str("several leaders"),
            Self::Leader { timeline, name } => write!(f, "{name} on timeline {timeline}"),
        }
    }
}

/// Makes one report from several answers, by the rules at the top of this file; `None` without an
/// answer. `seen` returns the timeline on which this router's probes see a member accept writes;
/// `None` if it does not, or is not known to belong to this cluster. `published` is the result of
/// earlier answers.
pub fn choose(
    answers: &[&SourceReport],
    seen: &dyn Fn(&MemberName) -> Option<u32>,
    published: &Snapshot,
) -> Option<SourceReport> {
    let keys: Vec<Key> = answers.iter().map(|answer| key(answer)).collect();
    if answers.iter().all(|answer| *answer == answers[0]) {
        return answers.first().map(|answer| (*answer).clone());
    }
    let is_seen = |key: &Key| match key {
        Key::Leader { timeline, name } => seen(name).is_some_and(|seen| seen >= *timeline),
        Key::Nobody | Key::Several => false,
    };
    let newest = keys
        .iter()
        .filter(|key| is_seen(key))
        .filter_map(Key::timeline)
        .max();
    let mut groups: BTreeMap<&Key, usize> = BTreeMap::new();
    for key in keys
        .iter()
        .filter(|key| key.timeline().is_none() || key.timeline() >= newest)
    {
        *groups.entry(key).or_default() += 1;
    }
    let most = groups.values().max().copied().unwrap_or(0);
    let tied: Vec<&Key> = groups
        .iter()
        .filter(|(_, count)| **count == most)
        .map(|(key, _)| *key)
        .collect();
    let seen: Vec<&Key> = tied.iter().copied().filter(|key| is_seen(key)).collect();
    let chosen = match (tied.as_slice(), seen.as_slice()) {
        ([only], _) if most * 2 > keys.len() => Some(*only),
        (_, [only]) => Some(*only),
        _ => None,
    };
    let taken = chosen.or(tied.first().copied());
    let picked = |is_picked: &dyn Fn(&Key) -> bool| -> Vec<&SourceReport> {
        let pairs = keys.iter().zip(answers);
        pairs
            .filter(|(key, _)| is_picked(key))
            .map(|(_, answer)| *answer)
            .collect()
    };
    let naming = picked(&|key| Some(key) == taken);
    let votes = Votes {
        all: answers,
        current: &picked(&|key| groups.contains_key(key)),
        leader: chosen.and_then(|key| match key {
            Key::Leader { name, .. } => Some((name, naming.as_slice())),
            Key::Nobody | Key::Several => None,
        }),
        published,
    };
    let mut report = SourceReport {
        members: votes.members(MAX_MEMBERS),
        named: match (chosen, naming.first()) {
            (Some(_), Some(answer)) => answer.named.clone(),
            _ => Named::Nobody,
        },
        paused: votes.is_paused(),
        disagreement: None,
        rivals: Vec::new(),
    };
    for (key, answer) in keys.iter().zip(answers) {
        if key.timeline() > chosen.and_then(Key::timeline) {
            add_rival(&mut report, answer);
        }
    }
    let mut leaders: Vec<String> = keys.iter().map(ToString::to_string).collect();
    leaders.sort();
    leaders.dedup();
    let moved = votes.moved();
    if leaders.len() > 1 {
        report.disagreement = Some(format!(
            "Patroni's endpoints disagree: they name {}",
            leaders.join(", ")
        ));
    } else if !moved.is_empty() {
        let names: Vec<&str> = moved.iter().map(|name| name.as_str()).collect();
        report.disagreement = Some(format!(
            "Patroni's endpoints disagree: they give different addresses for {}",
            printable(&names.join(", "), 200)
        ));
    }
    Some(report)
}

/// Adds the leader of `answer` as a member that is not named leader, so that it is probed.
fn add_rival(report: &mut SourceReport, answer: &SourceReport) {
    let Named::One(name) = &answer.named else {
        return;
    };
    let is_listed = report.members.iter().any(|member| member.name == *name);
    let named = answer.members.iter().find(|member| member.name == *name);
    if let Some(named) = named.filter(|_| !is_listed && report.members.len() < MAX_MEMBERS) {
        report.members.push(Listed {
            role: rival(),
            ..named.clone()
        });
    }
    report.rivals.push(name.clone());
}

impl Key {
    fn timeline(&self) -> Option<u32> {
        match self {
            Self::Leader { timeline, .. } => Some(*timeline),
            Self::Nobody | Self::Several => None,
        }
    }
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
