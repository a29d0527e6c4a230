//! What a planned switchover needs of a cluster: the REST interface of the leader's Patroni, and a
//! connection of the service account to the leader.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use reqwest::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::examine::Finding;
use super::patroni::{describe, printable, tls};
use super::service_account::{Purpose, ServiceAccount};
use super::snapshot::{AdminState, Identity, Leader, Member, MemberName, Role, Snapshot};
use super::{ClusterError, ClusterHandle};
use crate::backend::query::{Row, simple_query};
use crate::backend::{ConnectError, ServerConnection};
use crate::config::{self, Source};
use crate::names::HttpNames;

/// Time limit of a question to Patroni.
const QUESTION: Duration = Duration::from_secs(3);
/// Time limit of a question about Patroni's configuration.
const TIMES: Duration = Duration::from_millis(500);
/// Patroni answers a switchover when it is over, or after `loop_wait`.
const SWITCHOVER: Duration = Duration::from_secs(35);
/// The longest answer that is read.
const MAX_ANSWER: usize = 1024 * 1024;
/// Groups of direct connections that are listed.
const MAX_DIRECT: usize = 20;
/// Time limit of a checkpoint.
pub const CHECKPOINT: Duration = Duration::from_mins(5);

/// What Patroni says to a request for a switchover.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SwitchoverReply {
    /// It has been carried out. The text may name another member than was asked for.
    Done(String),
    /// Nothing happens: not allowed, or not possible.
    Refused(String),
    /// Nobody knows whether anything happens.
    Unknown(String),
}

/// Whether Patroni lets this router ask for a switchover.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SwitchoverRight {
    Allowed,
    Denied(String),
    Unknown(String),
}

/// Connections to the leader that the router does not know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectConnections {
    pub from: String,
    pub application: String,
    pub connections: u64,
}

/// Access to the leader of one cluster.
#[derive(Debug)]
pub struct LeaderAccess {
    account: Arc<ServiceAccount>,
    client: reqwest::Client,
}

impl ClusterHandle {
    /// # Errors
    /// The members are a fixed list, so there is no Patroni; or the settings of TLS cannot be used.
    pub fn leader_access(&self) -> Result<LeaderAccess, ClusterError> {
        LeaderAccess::new(Arc::clone(&self.shared.tasks.load().account))
    }
}

impl LeaderAccess {
    pub(super) fn new(account: Arc<ServiceAccount>) -> Result<Self, ClusterError> {
        let Source::Patroni(patroni) = &account.config.source else {
            return Err(ClusterError::Client(
                "the members are a fixed list: only Patroni can switch over".to_owned(),
            ));
        };
        let tls = tls(
            patroni.ca.as_deref(),
            &patroni.endpoints,
            patroni.client_certificate.as_deref(),
        )
        .map_err(ClusterError::Tls)?;
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .no_proxy()
            .dns_resolver(HttpNames)
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .connect_timeout(QUESTION)
            .user_agent(concat!("trunkline/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| ClusterError::Client(describe(&error)))?;
        Ok(Self { account, client })
    }

    fn patroni(&self) -> &config::Patroni {
        match &self.account.config.source {
            Source::Patroni(patroni) => patroni,
            Source::Servers(_) => unreachable!("made for a Patroni source only"),
        }
    }

    fn with_password(&self, request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        match &self.patroni().basic_auth {
            Some(basic) => {
                let password = String::from_utf8_lossy(basic.password.expose()).into_owned();
                request.basic_auth(&basic.username, Some(password))
            }
            None => request,
        }
    }

    /// The base of the leader's REST interface, and whether a switchover is scheduled.
    ///
    /// # Errors
    /// No endpoint says it.
    pub async fn rest_of(&self, leader: &MemberName) -> Result<(String, bool), String> {
        let mut last = "no endpoint is configured".to_owned();
        for endpoint in &self.patroni().endpoints {
            match self.cluster(endpoint).await {
                Ok(cluster) => return rest(&cluster, leader),
                Err(error) => last = format!("{endpoint}: {error}"),
            }
        }
        Err(last)
    }

    /// Patroni's `ttl` and `loop_wait`, by the first endpoint that says them.
    pub async fn times(&self) -> Option<(Duration, Duration)> {
        let asked = self.patroni().endpoints.iter().map(|endpoint| {
            let request = self.client.get(format!("{endpoint}/config")).timeout(TIMES);
            let request = self.with_password(request);
            async move {
                let response = request.send().await.ok()?.error_for_status().ok()?;
                times(&body(response).await.ok()?)
            }
            .boxed()
        });
        let mut asked: FuturesUnordered<_> = asked.collect();
        while let Some(said) = asked.next().await {
            if said.is_some() {
                return said;
            }
        }
        None
    }

    /// For the check before the start: whether the router may ask for a switchover.
    pub(super) async fn finding(&self) -> Finding {
        let what = format!("cluster {}: switchover", self.account.config.name);
        match self.right_anywhere().await {
            SwitchoverRight::Allowed => Finding::good(what, "Patroni lets the router switch over"),
            SwitchoverRight::Denied(why) => Finding::remark(
                what,
                format!("Patroni does not let the router switch over ({why})"),
                "`trunkline switchover` needs patroni.username and patroni.password_file",
            ),
            SwitchoverRight::Unknown(why) => Finding::remark(
                what,
                format!("nobody says whether Patroni lets the router switch over: {why}"),
                "look at what is said of its endpoints",
            ),
        }
    }

    /// As [`Self::right`], at the leader's Patroni, which a switchover asks; where there is no
    /// leader, at the first endpoint that says it.
    async fn right_anywhere(&self) -> SwitchoverRight {
        let mut last = SwitchoverRight::Unknown("no endpoint is configured".to_owned());
        for endpoint in &self.patroni().endpoints {
            let rest = match self.cluster(endpoint).await {
                Ok(cluster) => leaders_rest(&cluster).unwrap_or_else(|| endpoint.clone()),
                Err(error) => {
                    last = SwitchoverRight::Unknown(format!("{endpoint}: {error}"));
                    continue;
                }
            };
            last = match self.right(&rest).await {
                SwitchoverRight::Unknown(why) => SwitchoverRight::Unknown(format!("{rest}: {why}")),
                said => return said,
            };
        }
        last
    }

    async fn cluster(&self, endpoint: &str) -> Result<Value, String> {
        let request = self.client.get(format!("{endpoint}/cluster")).timeout(QUESTION);
        let response = self
            .with_password(request)
            .send()
            .await
            .map_err(|error| describe(&error))?;
        let status = response.status();
        if status != StatusCode::OK {
            return Err(format!("answered with HTTP status {}", status.as_u16()));
        }
        let body = body(response).await?;
        serde_json::from_slice(&body).map_err(|_| "the answer is not JSON".to_owned())
    }

    /// Asks Patroni for a switchover without saying from which leader: it refuses that after it has
    /// checked whether the caller may ask.
    pub async fn right(&self, rest: &str) -> SwitchoverRight {
        let request = self.client.post(format!("{rest}/switchover"));
        let request = request
            .timeout(QUESTION)
            .body(json!({"leader": null}).to_string());
        match self.with_password(request).send().await {
            Err(error) => SwitchoverRight::Unknown(describe(&error)),
            Ok(response) => match response.status().as_u16() {
                400 => SwitchoverRight::Allowed,
                status @ (401 | 403) => SwitchoverRight::Denied(format!("HTTP status {status}")),
                status => SwitchoverRight::Unknown(format!("HTTP status {status}")),
            },
        }
    }

    /// Asks for the switchover.
    pub async fn switch_over(
        &self,
        rest: &str,
        leader: &MemberName,
        candidate: &MemberName,
    ) -> SwitchoverReply {
        let order = json!({"leader": leader.as_str(), "candidate": candidate.as_str()});
        let request = self.client.post(format!("{rest}/switchover"));
        let request = request.timeout(SWITCHOVER).body(order.to_string());
        match self.with_password(request).send().await {
            Ok(response) => {
                let status = response.status();
                let text = body(response).await.unwrap_or_default();
                judge(status, &String::from_utf8_lossy(&text))
            }
            // Then it was not sent.
            Err(error) if error.is_connect() => SwitchoverReply::Refused(describe(&error)),
            Err(error) => SwitchoverReply::Unknown(describe(&error)),
        }
    }

    /// Whether the service account may make a checkpoint.
    ///
    /// # Errors
    /// The leader does not say.
    pub async fn may_checkpoint(&self, leader: &Member) -> Result<bool, String> {
        let (connection, is_allowed) = self.checkpointer(leader).await?;
        connection.close().await;
        Ok(is_allowed)
    }

    /// Writes what a stop of the leader would have to write. `Ok(false)`: the service account may
    /// not.
    ///
    /// # Errors
    /// It did not succeed.
    pub async fn checkpoint(&self, leader: &Member) -> Result<bool, String> {
        let (mut connection, is_allowed) = self.checkpointer(leader).await?;
        if is_allowed {
            simple_query(&mut connection, "CHECKPOINT", 1, Instant::now() + CHECKPOINT)
                .await
                .map_err(|error| error.to_string())?;
        }
        connection.close().await;
        Ok(is_allowed)
    }

    /// A connection to the leader, and whether it may make a checkpoint.
    async fn checkpointer(&self, leader: &Member) -> Result<(ServerConnection, bool), String> {
        let shown = |error: ConnectError| error.to_string();
        let settings = &self.account.config.service_account;
        let deadline = Instant::now() + settings.timeout;
        let connecting = self
            .account
            .connect(&leader.host, leader.port, Purpose::Probe, deadline);
        let mut connection = connecting.await.map_err(shown)?;
        let sql = "SELECT (r.rolsuper OR coalesce(pg_has_role(p.oid, 'USAGE'), false))::text FROM pg_roles r LEFT JOIN \
                   pg_roles p ON p.rolname = 'pg_checkpoint' WHERE r.rolname = current_user";
        let rows = simple_query(&mut connection, sql, 1, deadline)
            .await
            .map_err(shown)?;
        let is_allowed = rows.first().and_then(|row| row.first()?.as_deref()) == Some(b"true".as_slice());
        Ok((connection, is_allowed))
    }
}

impl LeaderAccess {
    /// Connections of clients to the leader, without the service account's and Patroni's own,
    /// without those of the server processes `known`, and without those from `routers`. The largest
    /// groups first.
    ///
    /// # Errors
    /// The leader does not say.
    pub async fn direct_connections(
        &self,
        leader: &Member,
        known: &[u32],
        routers: &[IpAddr],
    ) -> Result<Vec<DirectConnections>, String> {
        let known: Vec<String> = known.iter().map(u32::to_string).collect();
        let routers: Vec<String> = routers.iter().map(|address| format!("'{address}'")).collect();
        let sql = format!(
            "SELECT coalesce(host(client_addr), 'a Unix socket'), coalesce(application_name, ''), count(*)::text FROM \
             pg_stat_activity WHERE backend_type = 'client backend' AND usename IS DISTINCT FROM current_user AND NOT \
             coalesce(application_name, '') = ANY (ARRAY['Patroni', 'Patroni heartbeat', 'Patroni restapi']) AND NOT pid = \
             ANY (ARRAY[{}]::int[]) AND (client_addr IS NULL OR NOT client_addr = ANY (ARRAY[{}]::inet[])) GROUP BY 1, 2 \
             ORDER BY count(*) DESC LIMIT {MAX_DIRECT}",
            known.join(","),
            routers.join(","),
        );
        let rows = self.rows(leader, &sql, MAX_DIRECT).await?;
        let text = |cell: Option<&Option<Vec<u8>>>| {
            let bytes = cell.and_then(|cell| cell.as_deref()).unwrap_or_default();
            printable(&String::from_utf8_lossy(bytes), 64)
        };
        let group = |row: &Row| DirectConnections {
            from: text(row.first()),
            application: text(row.get(1)),
            connections: text(row.get(2)).parse().unwrap_or_default(),
        };
        Ok(grouped(rows.iter().map(group)))
    }

    /// For how many seconds each of these server processes has been in its transaction.
    ///
    /// # Errors
    /// The leader does not say.
    pub async fn transaction_ages(
        &self,
        leader: &Member,
        processes: &[u32],
    ) -> Result<HashMap<u32, u64>, String> {
        let listed: Vec<String> = processes.iter().map(u32::to_string).collect();
        let sql = format!(
            "SELECT pid::text, greatest(0, floor(extract(epoch FROM clock_timestamp() - xact_start)))::bigint::text FROM \
             pg_stat_activity WHERE xact_start IS NOT NULL AND pid = ANY (ARRAY[{}]::int[])",
            listed.join(",")
        );
        let rows = self.rows(leader, &sql, processes.len()).await?;
        let number = |cell: Option<&Option<Vec<u8>>>| -> Option<u64> {
            std::str::from_utf8(cell?.as_deref()?).ok()?.parse().ok()
        };
        let ages = rows.iter().filter_map(|row| {
            let process = u32::try_from(number(row.first())?).ok()?;
            Some((process, number(row.get(1))?))
        });
        Ok(ages.collect())
    }

    /// What the leader answers to a question, as the service account.
    async fn rows(&self, leader: &Member, sql: &str, most: usize) -> Result<Vec<Row>, String> {
        let shown = |error: ConnectError| error.to_string();
        let deadline = Instant::now() + self.account.config.service_account.timeout;
        let connecting = self
            .account
            .connect(&leader.host, leader.port, Purpose::Probe, deadline);
        let mut connection = connecting.await.map_err(shown)?;
        let rows = simple_query(&mut connection, sql, most, deadline)
            .await
            .map_err(shown)?;
        connection.close().await;
        Ok(rows)
    }
}

/// Those that look the same are one line: their names may differ in what is not shown.
fn grouped(all: impl Iterator<Item = DirectConnections>) -> Vec<DirectConnections> {
    let mut groups: Vec<DirectConnections> = Vec::new();
    for one in all {
        let is_same = |group: &&mut DirectConnections| {
            (&group.from, &group.application) == (&one.from, &one.application)
        };
        match groups.iter_mut().find(is_same) {
            Some(group) => group.connections += one.connections,
            None => groups.push(one),
        }
    }
    groups
}

/// What a status means. 2xx: done. 4xx: nothing happens. Others: nobody knows.
fn judge(status: StatusCode, text: &str) -> SwitchoverReply {
    let text = printable(text.trim(), 300);
    if status.is_success() {
        return SwitchoverReply::Done(text);
    }
    let said = match text.as_str() {
        "" => format!("HTTP status {}", status.as_u16()),
        text => format!("HTTP status {}: {text}", status.as_u16()),
    };
    if status.is_client_error() {
        SwitchoverReply::Refused(said)
    } else {
        SwitchoverReply::Unknown(said)
    }
}

/// `ttl` and `loop_wait` of Patroni's configuration; its defaults where it has no such key.
fn times(body: &[u8]) -> Option<(Duration, Duration)> {
    let settings: Value = serde_json::from_slice(body).ok()?;
    let settings = settings.as_object()?;
    let seconds = |key: &str, default| match settings.get(key) {
        None | Some(Value::Null) => Some(default),
        Some(given) => given.as_u64().or_else(|| given.as_str()?.trim().parse().ok()),
    };
    let (ttl, loop_wait) = (seconds("ttl", 30)?, seconds("loop_wait", 10)?);
    Some((Duration::from_secs(ttl), Duration::from_secs(loop_wait)))
}

fn rest(cluster: &Value, leader: &MemberName) -> Result<(String, bool), String> {
    let members = cluster["members"].as_array();
    let mut members = members.into_iter().flatten();
    let member = members.find(|member| member["name"].as_str() == Some(leader.as_str()));
    let url = member.and_then(|member| member["api_url"].as_str());
    let url = url.ok_or_else(|| format!("Patroni does not say where the REST interface of {leader} is"))?;
    let is_scheduled = !cluster["scheduled_switchover"].is_null();
    Ok((base(url), is_scheduled))
}

/// The base of the REST interface of whatever member Patroni calls the leader.
fn leaders_rest(cluster: &Value) -> Option<String> {
    let members = cluster["members"].as_array()?;
    let leader = members.iter().find(|member| member["role"] == "leader")?;
    Some(base(leader["api_url"].as_str()?))
}

fn base(url: &str) -> String {
    let base = url.strip_suffix("/patroni").unwrap_or(url);
    base.trim_end_matches('/').to_owned()
}

async fn body(mut response: reqwest::Response) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| describe(&error))? {
        if body.len() + chunk.len() > MAX_ANSWER {
            return Err("the answer is larger than 1 MiB".to_owned());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// The member that is to be the leader: the wanted one, else the best one. In synchronous mode it
/// is a synchronous standby, because no other one has every acknowledged write.
///
/// # Errors
/// There is none. A sentence.
pub fn candidate(snapshot: &Snapshot, wanted: Option<&MemberName>) -> Result<MemberName, String> {
    let Leader::Verified { member: leader, .. } = &snapshot.leader else {
        return Err("there is no verified leader to switch over from".to_owned());
    };
    let is_synchronous = |member: &Member| matches!(member.role, Role::SyncStandby | Role::QuorumStandby);
    let in_synchronous_mode = snapshot.members.iter().any(is_synchronous);
    let unfit = |member: &Member| -> Option<&'static str> {
        let facts = member.health.facts.as_ref();
        if member.name == *leader {
            Some("is the leader")
        } else if member.identity != Identity::Same || !member.health.up {
            Some("is not known to work")
        } else if facts.is_none_or(|facts| !facts.in_recovery) {
            Some("is no standby")
        } else if member.admin == AdminState::Maint {
            Some("is in maintenance at this router")
        } else if member.admin == AdminState::Drain {
            Some("is being drained at this router")
        } else if is_excluded(member) {
            Some("is tagged nofailover")
        } else if in_synchronous_mode && !is_synchronous(member) {
            Some("is no synchronous standby")
        } else if facts.is_some_and(|facts| !facts.streaming) {
            Some("does not stream")
        } else {
            None
        }
    };
    if let Some(wanted) = wanted {
        let member = snapshot.member(wanted);
        let names = || {
            let names: Vec<&str> = snapshot
                .members
                .iter()
                .map(|member| member.name.as_str())
                .collect();
            names.join(", ")
        };
        let member =
            member.ok_or_else(|| format!("the cluster has no member {wanted}: there are {}", names()))?;
        return match unfit(member) {
            None => Ok(wanted.clone()),
            Some(why) => Err(format!("{wanted} {why}")),
        };
    }
    let fit = snapshot.members.iter().filter(|member| unfit(member).is_none());
    // The names are in order, and the first of equals is taken.
    let best = fit.min_by_key(|member| member.measured.map_or(u64::MAX, |lag| lag.bytes));
    best.map(|member| member.name.clone()).ok_or_else(|| {
        let others = snapshot.members.iter().filter(|member| member.name != *leader);
        let why = others.filter_map(|member| Some(format!("{} {}", member.name, unfit(member)?)));
        format!(
            "no member can become the leader: {}",
            why.collect::<Vec<_>>().join("; ")
        )
    })
}

fn is_excluded(member: &Member) -> bool {
    let is_true = |value: &Value| value == &json!(true) || value == &json!("true");
    member.tags.get("nofailover").is_some_and(is_true)
        || member.tags.get("failover_priority") == Some(&json!(0))
}

#[cfg(test)]
#[path = "switchover_tests.rs"]
mod tests;
