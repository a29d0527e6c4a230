//! Requests to etcd's JSON gateway. Each has a limit of time and size, and the user's token if
//! there is one.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use reqwest::StatusCode;
use reqwest::header::{AUTHORIZATION, HeaderValue};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

use super::EtcdError;
use super::message::{self, MAX_MESSAGE, Single};
use crate::cluster::ClusterError;
use crate::cluster::patroni::{describe, tls};
use crate::config;
use crate::names::HttpNames;

/// Paths of the gateway in etcd 3.4 and later, 3.3 and 3.2.
const VERSIONS: [&str; 3] = ["v3", "v3beta", "v3alpha"];
/// A connection to a peer that does not acknowledge ends after about this time.
const KEEPALIVE: Duration = Duration::from_secs(5);

pub(super) struct Gateway {
    client: reqwest::Client,
    config: Arc<config::Cluster>,
    endpoints: Vec<Endpoint>,
}

/// What is known about an endpoint.
#[derive(Default)]
struct Endpoint {
    version: AtomicUsize,
    token: Mutex<Option<HeaderValue>>,
}

impl Gateway {
    /// `None` if no etcd is configured.
    pub(super) fn new(config: Arc<config::Cluster>) -> Result<Option<Self>, ClusterError> {
        let Some(etcd) = &config.etcd else {
            return Ok(None);
        };
        let tls = tls(
            etcd.ca.as_deref(),
            &etcd.endpoints,
            etcd.client_certificate.as_deref(),
        );
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls.map_err(ClusterError::Etcd)?)
            .no_proxy()
            .dns_resolver(HttpNames)
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .tcp_nodelay(true)
            .tcp_keepalive(KEEPALIVE)
            .tcp_keepalive_interval(KEEPALIVE)
            .tcp_keepalive_retries(2)
            .tcp_user_timeout(KEEPALIVE * 2)
            .pool_idle_timeout(Duration::from_mins(1))
            .pool_max_idle_per_host(2)
            .user_agent(concat!("trunkline/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| ClusterError::Etcd(describe(&error)))?;
        let endpoints = etcd.endpoints.iter().map(|_| Endpoint::default()).collect();
        Ok(Some(Self {
            client,
            config,
            endpoints,
        }))
    }

    fn etcd(&self) -> &config::Etcd {
        self.config
            .etcd
            .as_ref()
            .expect("a gateway is made only with an `etcd` section")
    }

    pub(super) fn size(&self) -> usize {
        self.endpoints.len()
    }

    pub(super) fn name(&self, endpoint: usize) -> &str {
        &self.etcd().endpoints[endpoint]
    }

    pub(super) fn prefix(&self) -> &str {
        &self.etcd().prefix
    }

    /// Reads one key below the prefix through etcd's quorum.
    pub(super) async fn read(
        &self,
        endpoint: usize,
        key: &str,
        deadline: Instant,
    ) -> Result<Single, EtcdError> {
        let body = message::range_request(&format!("{}{key}", self.prefix()));
        let mut answer = self.authorised(endpoint, "kv/range", &body, deadline).await?;
        message::single(&read_all(&mut answer, deadline).await?)
    }

    /// Begins a watch on everything below the prefix. Its response lasts as long as the watch.
    pub(super) async fn watch(
        &self,
        endpoint: usize,
        start: i64,
        deadline: Instant,
    ) -> Result<reqwest::Response, EtcdError> {
        let body = message::watch_request(self.prefix(), start);
        self.authorised(endpoint, "watch", &body, deadline).await
    }

    /// Sends a request with a token, and a second time with a new token if the first has expired.
    async fn authorised(
        &self,
        endpoint: usize,
        path: &str,
        body: &Value,
        deadline: Instant,
    ) -> Result<reqwest::Response, EtcdError> {
        let first = self.token(endpoint, deadline).await?;
        match self.post(endpoint, path, body, first.as_ref(), deadline).await {
            Err(EtcdError::Unauthorised(_)) if first.is_some() => {
                self.forget(endpoint);
                let second = self.token(endpoint, deadline).await?;
                self.post(endpoint, path, body, second.as_ref(), deadline).await
            }
            other => other,
        }
    }

    /// Drops the token: the next request logs in again.
    pub(super) fn forget(&self, endpoint: usize) {
        *lock(&self.endpoints[endpoint].token) = None;
    }

    async fn token(&self, endpoint: usize, deadline: Instant) -> Result<Option<HeaderValue>, EtcdError> {
        let Some(login) = &self.etcd().login else {
            return Ok(None);
        };
        let known = lock(&self.endpoints[endpoint].token).clone();
        if known.is_some() {
            return Ok(known);
        }
        let password = String::from_utf8_lossy(login.password.expose());
        let body = json!({"name": login.username, "password": password});
        let mut answer = self
            .post(endpoint, "auth/authenticate", &body, None, deadline)
            .await?;
        let token = message::token(&read_all(&mut answer, deadline).await?)?;
        let mut token = HeaderValue::from_str(&token)
            .map_err(|_| EtcdError::InvalidAnswer("a token with invalid characters"))?;
        token.set_sensitive(true);
        *lock(&self.endpoints[endpoint].token) = Some(token.clone());
        Ok(Some(token))
    }

    async fn post(
        &self,
        endpoint: usize,
        path: &str,
        body: &Value,
        token: Option<&HeaderValue>,
        deadline: Instant,
    ) -> Result<reqwest::Response, EtcdError> {
        let known = self.endpoints[endpoint].version.load(Ordering::Relaxed);
        for step in 0..VERSIONS.len() {
            let version = (known + step) % VERSIONS.len();
            let url = format!("{}/{}/{path}", self.name(endpoint), VERSIONS[version]);
            let mut request = self.client.post(url).json(body);
            if let Some(token) = token {
                request = request.header(AUTHORIZATION, token.clone());
            }
            let mut answer = timeout_at(deadline, request.send())
                .await
                .map_err(|_| EtcdError::Timeout)?
                .map_err(|error| EtcdError::Request(describe(&error)))?;
            let status = answer.status();
            if status == StatusCode::OK {
                self.endpoints[endpoint].version.store(version, Ordering::Relaxed);
                return Ok(answer);
            }
            if status == StatusCode::NOT_FOUND {
                continue;
            }
            let text = message::error(&read_all(&mut answer, deadline).await.unwrap_or_default());
            let about_token = text.contains("auth token") || text.contains("auth store");
            return Err(if status == StatusCode::UNAUTHORIZED || about_token {
                EtcdError::Unauthorised(text)
            } else {
                EtcdError::Status(status.as_u16(), text)
            });
        }
        Err(EtcdError::NoGateway)
    }
}

fn lock(token: &Mutex<Option<HeaderValue>>) -> MutexGuard<'_, Option<HeaderValue>> {
    // One value that is written as a whole, so a panic cannot leave it incomplete.
    token.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn read_all(answer: &mut reqwest::Response, deadline: Instant) -> Result<Vec<u8>, EtcdError> {
    let mut body = Vec::new();
    loop {
        let chunk = timeout_at(deadline, answer.chunk())
            .await
            .map_err(|_| EtcdError::Timeout)?
            .map_err(|error| EtcdError::Request(describe(&error)))?;
        let Some(chunk) = chunk else {
            return Ok(body);
        };
        if body.len() + chunk.len() > MAX_MESSAGE {
            return Err(EtcdError::TooLong);
        }
        body.extend_from_slice(&chunk);
    }
}
