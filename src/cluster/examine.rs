//! `trunkline check --connect`: tries once everything that the router will rely on: the source, the
//! service account on every member, its rights, and the look-up of verifiers.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::lookup::{self, MembershipsQuery};
use super::patroni::{Patroni, TLS_FAILED, poll_once};
use super::service_account::{Purpose, ServiceAccount};
use super::snapshot::MemberName;
use super::state::Listed;
use super::switchover::LeaderAccess;
use super::{ClusterError, LookupError, etcd, fixed, probe};
use crate::auth::rules::Memberships;
use crate::backend::query::simple_query;
use crate::backend::{ConnectError, TlsClient};
use crate::config::{self, CredentialUsers, ServerSecret, Source, Verifiers};
use crate::tls::NO_TLS;
use crate::wire::sqlstate::SqlState;

/// Time limit for the poll of all endpoints.
const POLL: Duration = Duration::from_secs(5);

/// What was tried, and the result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub what: String,
    pub outcome: ProbeOutcome,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeOutcome {
    Good(String),
    /// It does not work; `hint` says what to do.
    Bad {
        error: String,
        hint: String,
    },
    /// It works, and will not always.
    Remark(String),
    /// It was not tried, for this reason.
    Untried(String),
}

impl Finding {
    pub(super) fn good(what: String, detail: impl Into<String>) -> Self {
        Self {
            what,
            outcome: ProbeOutcome::Good(detail.into()),
        }
    }

    fn bad(what: String, error: impl fmt::Display, hint: impl Into<String>) -> Self {
        Self {
            what,
            outcome: ProbeOutcome::Bad {
                error: error.to_string(),
                hint: hint.into(),
            },
        }
    }

    pub(super) fn remark(what: String, remark: String) -> Self {
        Self {
            what,
            outcome: ProbeOutcome::Remark(remark),
        }
    }

    fn untried(what: String, why: String) -> Self {
        Self {
            what,
            outcome: ProbeOutcome::Untried(why),
        }
    }

    pub fn is_bad(&self) -> bool {
        matches!(self.outcome, ProbeOutcome::Bad { .. })
    }

    pub fn is_untried(&self) -> bool {
        matches!(self.outcome, ProbeOutcome::Untried(_))
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.outcome {
            ProbeOutcome::Good(detail) => write!(f, "ok      {}: {detail}", self.what),
            ProbeOutcome::Remark(remark) => write!(f, "remark  {}: {remark}", self.what),
            ProbeOutcome::Untried(why) => write!(f, "untried {}: {why}", self.what),
            ProbeOutcome::Bad { error, hint } => write!(f, "FAILED  {}: {error} ({hint})", self.what),
        }
    }
}

/// The roles that a user is a member of, with one look-up.
pub async fn memberships(config: Arc<config::Cluster>, user: &[u8]) -> Result<Arc<Memberships>, LookupError> {
    let unavailable = |error: ClusterError| LookupError::Unavailable(error.to_string());
    let tls =
        TlsClient::new(&config.server_tls).map_err(|error| LookupError::Unavailable(error.to_string()))?;
    let mut ignored = Vec::new();
    let members = match Patroni::new(Arc::clone(&config)).map_err(unavailable)? {
        Some(patroni) => endpoints(patroni, &config, &mut ignored).await,
        None => listed(&config),
    };
    let account = Arc::new(ServiceAccount::new(config, tls));
    let mut last = LookupError::Unavailable("it has no member".to_owned());
    let query = MembershipsQuery {
        cache_ttl: Duration::ZERO,
    };
    for member in members {
        match lookup::once(&account, &member.host, member.port, &query, user).await {
            Ok(found) => return Ok(found),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Examines one cluster. The timeouts of the configuration limit every step. `routes`: all there
/// are.
pub async fn examine(
    config: Arc<config::Cluster>,
    auth: &config::Auth,
    routes: impl Iterator<Item = &config::Route>,
) -> Result<Vec<Finding>, ClusterError> {
    let mut findings = Vec::new();
    let tls =
        TlsClient::new(&config.server_tls).map_err(|error| ClusterError::ServerTls(error.to_string()))?;
    let members = match Patroni::new(Arc::clone(&config))? {
        Some(patroni) => endpoints(patroni, &config, &mut findings).await,
        None => listed(&config),
    };
    for (endpoint, holder) in etcd::ask_all(Arc::clone(&config)).await? {
        findings.push(leader_key(&config, &endpoint, holder));
    }
    let wanted = Wanted::of(&config, routes);
    let account = Arc::new(ServiceAccount::new(config, tls));
    if let Source::Patroni(_) = &account.config.source {
        findings.push(LeaderAccess::new(Arc::clone(&account))?.finding().await);
    }
    for member in &members {
        if !member.host.is_empty() {
            self::member(&account, member, auth, &wanted, &mut findings).await;
        }
    }
    Ok(findings)
}

/// How many connections the configuration allows to each member.
#[derive(Debug)]
struct Wanted {
    /// `server.max_connections`; 0 is no limit.
    most: u32,
    /// Of each route with a pool, the size of its largest pool. There is one for each user and
    /// database, and nobody knows here how many these are.
    pools: Vec<(Arc<str>, u32)>,
}

impl Wanted {
    fn of<'a>(config: &config::Cluster, routes: impl Iterator<Item = &'a config::Route>) -> Self {
        let own = routes.filter(|route| route.cluster == config.name);
        let pools = own.filter_map(|route| {
            let pool = route.pool.as_ref()?;
            let overrides = pool.overrides.iter().map(|entry| &entry.limits);
            let sizes = overrides
                .chain([&pool.limits])
                .map(|limits| limits.max_connections.saturating_add(limits.reserve));
            Some((Arc::clone(&route.name), sizes.max()?))
        });
        Self {
            most: config.max_connections,
            pools: pools.collect(),
        }
    }

    /// Compares it with the connections that a member has for other roles than superusers.
    fn judged(&self, what: String, room: u32) -> Finding {
        let has_room = format!("it takes {room} connections");
        let (most, pools) = (self.most, &self.pools);
        if most > room {
            let remark = format!(
                "{has_room}, and server.max_connections is {most}: lower that, or raise max_connections of the server"
            );
            return Finding::remark(what, remark);
        }
        if most > 0 {
            return Finding::good(what, format!("{has_room}, and the router opens {most} at most"));
        }
        let advice = "lower that, raise max_connections of the server, or set server.max_connections";
        let large = pools.iter().filter(|(_, size)| *size > room);
        let large: Vec<_> = large.map(|(route, size)| format!("{size} of {route}")).collect();
        if !large.is_empty() {
            let remark = format!(
                "{has_room}, and a single pool may have more, with its reserve: {}; {advice}",
                large.join(", ")
            );
            return Finding::remark(what, remark);
        }
        let sum = pools
            .iter()
            .fold(0_u32, |sum, (_, size)| sum.saturating_add(*size));
        if sum > room {
            let remark = format!(
                "{has_room}, and one pool of each route together may have {sum}, with their reserves; {advice}"
            );
            return Finding::remark(what, remark);
        }
        Finding::good(what, has_room)
    }
}

/// What a server has for roles that are not superusers, nor members of
/// `pg_use_reserved_connections`.
const ROOM: &str = "SELECT (current_setting('max_connections')::int \
                    - current_setting('superuser_reserved_connections')::int \
                    - coalesce(current_setting('reserved_connections', true)::int, 0))::text";

/// The endpoint answers, so the fault is in certificates, or in `http` and `https`.
const TLS_HINT: &str = "the endpoint answers, so the address is right: does it use `https://`, did an authority in \
                        `ca_file` sign its certificate, and is the certificate for the name in the address?";

/// Names the program that answers at an endpoint.
fn tls_hint(error: &str, program: &str) -> String {
    if error.contains(NO_TLS) {
        format!("the port answers without TLS: write http://, or switch on TLS in {program}")
    } else {
        TLS_HINT.to_owned()
    }
}

fn leader_key(
    config: &config::Cluster,
    endpoint: &str,
    holder: Result<Option<MemberName>, String>,
) -> Finding {
    let what = format!("cluster {}: etcd at {endpoint}", config.name);
    match holder {
        Ok(Some(name)) => Finding::good(what, format!("{name} holds the leader key")),
        Ok(None) => Finding::bad(
            what,
            "no member holds the leader key",
            "do `namespace` and `scope` match Patroni's configuration?",
        ),
        Err(error) => {
            let hint = if error.starts_with(TLS_FAILED) {
                tls_hint(&error, "etcd")
            } else {
                "is the address right, and may the user read the cluster's keys?".to_owned()
            };
            Finding::bad(what, error, hint)
        }
    }
}

/// The members of a fixed list.
fn listed(config: &config::Cluster) -> Vec<Listed> {
    match &config.source {
        Source::Servers(servers) => fixed::report(servers).members,
        Source::Patroni(_) => Vec::new(),
    }
}

async fn endpoints(
    mut patroni: Patroni,
    config: &config::Cluster,
    findings: &mut Vec<Finding>,
) -> Vec<Listed> {
    let names = patroni.endpoints().to_vec();
    let replies = poll_once(&mut patroni, Instant::now() + POLL).await;
    let mut members = Vec::new();
    for (name, reply) in names.iter().zip(replies) {
        let what = format!("cluster {}: Patroni at {name}", config.name);
        match reply {
            Some(Ok(report)) => {
                findings.push(Finding::good(what, format!("{} members", report.members.len())));
                if members.is_empty() {
                    members = report.members;
                }
            }
            Some(Err(error)) => {
                let hint = if error.starts_with(TLS_FAILED) {
                    tls_hint(&error, "Patroni")
                } else {
                    "is Patroni running there, and is the address right?".to_owned()
                };
                findings.push(Finding::bad(what, error, hint));
            }
            None => findings.push(Finding::bad(
                what,
                "no answer in time",
                "is Patroni running there, and can this host reach it?",
            )),
        }
    }
    members
}

/// The hint for a failed login. `secrets` is the key that has the password, `remedy` says how the
/// role gets it.
fn login_hint(error: &ConnectError, secrets: &str, remedy: &str) -> String {
    match error {
        ConnectError::Certificate { .. } => {
            "`server_tls.sslrootcert` must contain the authority that signed the certificate, and with `verify-full` the \
             certificate must be for the member's name or `server_tls.server_name`"
                .to_owned()
        }
        ConnectError::TlsRefused
        | ConnectError::ErrorBeforeTls { .. }
        | ConnectError::Tls { .. }
        | ConnectError::TlsThenRefused { .. }
        | ConnectError::DirectTls { .. } => "compare `server_tls` with the server's ssl settings".to_owned(),
        ConnectError::Server(server) if server.hba_line.is_some() => {
            "put the line into pg_hba.conf on every server (with Patroni: `patronictl edit-config`, `postgresql.pg_hba`), and \
             reload the servers"
                .to_owned()
        }
        ConnectError::Server(server) if server.code == SqlState::INVALID_PASSWORD => format!(
            "the password in `{secrets}` is not the role's password, or the role has no password or an expired one: {remedy}; the \
             server's log has the reason"
        ),
        ConnectError::Server(server) if server.code.is_in_class(*b"28") => {
            format!("the role must exist and have LOGIN: {remedy}; the server's log has the reason")
        }
        ConnectError::Server(_) => "the server's log has the reason".to_owned(),
        ConnectError::NoCredential { .. } => {
            format!("`{secrets}` has no password, and the server's pg_hba.conf asks for one")
        }
        ConnectError::Resolve { .. }
        | ConnectError::Refused { .. }
        | ConnectError::Unreachable { .. }
        | ConnectError::Timeout { .. }
        | ConnectError::Lost { .. }
        | ConnectError::Closed { .. } => "is PostgreSQL running there, and can this host reach it?".to_owned(),
        _ => "compare the server's pg_hba.conf with `server_tls`".to_owned(),
    }
}

/// Tries the logins of `auth.server_credentials` that have a password. They use the service
/// account's database, since the clients' databases are not in the configuration.
async fn credentials(
    account: &Arc<ServiceAccount>,
    member: &Listed,
    place: &str,
    auth: &config::Auth,
    findings: &mut Vec<Finding>,
) {
    for entry in auth.server_credentials.iter() {
        let what = |role: &str| format!("{place}: login as {role}, by {}", entry.path);
        let ServerSecret::Password(password) = &entry.secret else {
            let why = "this check tries only logins with a `password_file`".to_owned();
            findings.push(Finding::untried(what("its users"), why));
            continue;
        };
        let roles = match (&entry.server_user, &entry.users) {
            (Some(role), _) => std::slice::from_ref(role),
            (None, CredentialUsers::Names(names)) => names.as_slice(),
            (None, CredentialUsers::All) => {
                let why = "it is for all users, and the configuration does not list them".to_owned();
                findings.push(Finding::untried(what("its users"), why));
                continue;
            }
        };
        for role in roles {
            let outcome = account.try_login(&member.host, member.port, role, password).await;
            findings.push(judged(what(role), outcome, &entry.path));
        }
    }
}

/// The finding for a login with a credential. A server checks the password before the database.
fn judged(what: String, outcome: Result<(), ConnectError>, secrets: &str) -> Finding {
    match outcome {
        Ok(()) => Finding::good(what, "the password is accepted"),
        Err(ConnectError::Server(server))
            if matches!(
                server.code,
                SqlState::INSUFFICIENT_PRIVILEGE | SqlState::INVALID_CATALOG_NAME
            ) =>
        {
            Finding::good(what, "the password is accepted")
        }
        // The line concerns the service account's database; the clients' databases may have other
        // lines.
        Err(ConnectError::Server(server)) if server.hba_line.is_some() => Finding::untried(
            what,
            format!("pg_hba.conf does not admit the role to the service account's database: {server}"),
        ),
        Err(error) => {
            let hint = login_hint(&error, secrets, "set it with ALTER ROLE on the leader");
            Finding::bad(what, error, hint)
        }
    }
}

async fn member(
    account: &Arc<ServiceAccount>,
    member: &Listed,
    auth: &config::Auth,
    wanted: &Wanted,
    findings: &mut Vec<Finding>,
) {
    let settings = &account.config.service_account;
    let place = format!(
        "cluster {}: {} at {}:{}",
        account.config.name, member.name, member.host, member.port
    );
    let what = format!("{place}: login as {}", settings.user);
    let deadline = Instant::now() + settings.timeout;
    let mut connection = match account
        .connect(&member.host, member.port, Purpose::Probe, deadline)
        .await
    {
        Ok(connection) => connection,
        Err(error) => {
            let hint = login_hint(
                &error,
                "service_account",
                "run config/service-account.sql on the leader to set it",
            );
            findings.push(Finding::bad(what, error, hint));
            return;
        }
    };
    findings.push(Finding::good(
        what,
        if connection.is_tls {
            "with TLS"
        } else {
            "without TLS"
        },
    ));
    let what = format!("{place}: probe");
    match probe::ask(&mut connection, deadline).await {
        Ok(facts) => {
            let role = if facts.in_recovery {
                "standby"
            } else {
                "accepts writes"
            };
            findings.push(Finding::good(
                what,
                format!("{role}, timeline {}", facts.timeline),
            ));
        }
        Err(error) => {
            findings.push(Finding::bad(
                what,
                error,
                "the account needs pg_monitor: see config/service-account.sql",
            ));
            return;
        }
    }
    let what = format!("{place}: right to see timeline and WAL receiver");
    let sql = "SELECT pg_has_role(current_user, 'pg_monitor', 'USAGE')::text";
    match simple_query(&mut connection, sql, 1, deadline).await {
        Ok(rows) if rows.first().and_then(|row| row.first()?.as_deref()) == Some(b"true".as_slice()) => {
            findings.push(Finding::good(what, "pg_monitor"));
        }
        Ok(_) => findings.push(Finding::bad(
            what,
            "the account is not a member of pg_monitor",
            format!("GRANT pg_monitor TO \"{}\"", settings.user.replace('"', "\"\"")),
        )),
        Err(error) => findings.push(Finding::bad(
            what,
            error,
            "the server did not answer a simple query",
        )),
    }
    let what = format!("{place}: max_connections");
    let rows = simple_query(&mut connection, ROOM, 1, deadline).await;
    let room = rows
        .ok()
        .and_then(|rows| rows.into_iter().next()?.into_iter().next()?);
    let room = room.and_then(|room| std::str::from_utf8(&room).ok()?.parse().ok());
    findings.push(match room {
        Some(room) => wanted.judged(what, room),
        None => Finding::untried(what, "the server did not say how many it takes".to_owned()),
    });
    credentials(account, member, &place, auth, findings).await;
    if let Verifiers::Query { sql, cache_ttl } = &auth.verifiers {
        let query = lookup::Query {
            sql: sql.clone(),
            cache_ttl: *cache_ttl,
        };
        let what = format!("{place}: look-up of verifiers");
        let own = settings.user.as_bytes();
        findings.push(
            match lookup::once(account, &member.host, member.port, &query, own).await {
                Ok(_) => Finding::good(what, "answers"),
                Err(error) => Finding::bad(
                    what,
                    error,
                    "see config/service-account.sql, or set auth.users_file",
                ),
            },
        );
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use bytes::Bytes;

    use super::*;
    use crate::backend::ServerError;

    fn server(code: SqlState, hba_line: Option<&str>) -> ConnectError {
        ConnectError::Server(Box::new(ServerError {
            severity: "FATAL".to_owned(),
            code,
            message: "no".to_owned(),
            detail: None,
            hint: None,
            frame: Bytes::new(),
            hba_line: hba_line.map(str::to_owned),
        }))
    }

    #[test]
    fn connections_that_a_server_does_not_take_are_remarked() {
        let said = |most, sizes: &[u32]| {
            let name = |index: usize| Arc::from(format!("r{index}"));
            let pools = sizes.iter().enumerate().map(|(index, size)| (name(index), *size));
            let pools = pools.collect();
            Wanted { most, pools }.judged("db1".to_owned(), 97).to_string()
        };
        for (most, sizes, expected) in [
            (0, &[][..], "ok      db1: it takes 97 connections"),
            (0, &[97], "ok      db1: it takes 97 connections"),
            (
                90,
                &[50, 60, 98],
                "ok      db1: it takes 97 connections, and the router opens 90 at most",
            ),
        ] {
            assert_eq!(said(most, sizes), expected);
        }
        for (most, sizes, expected) in [
            (98, &[][..], "server.max_connections is 98"),
            (
                0,
                &[20, 98, 200],
                "a single pool may have more, with its reserve: 98 of r1, 200 of r2;",
            ),
            (0, &[50, 48], "one pool of each route together may have 98,"),
        ] {
            let said = said(most, sizes);
            assert!(
                said.starts_with("remark  db1: it takes 97 connections, and"),
                "{said}"
            );
            assert!(said.contains(expected), "{said}");
        }
    }

    #[test]
    fn the_hint_fits_the_kind_of_the_failure() {
        let hint = |error| login_hint(&error, "service_account", "run the script");
        let certificate = ConnectError::Certificate {
            reason: "r".to_owned(),
        };
        let certificate = hint(certificate);
        assert!(certificate.contains("sslrootcert"), "{certificate}");
        assert!(!certificate.contains("pg_hba.conf"), "{certificate}");
        let password = hint(server(SqlState::INVALID_PASSWORD, None));
        assert!(
            password.contains("password") && password.contains("run the script"),
            "{password}"
        );
        assert!(!password.contains("server_tls"), "{password}");
        let rejected = server(
            SqlState::INVALID_AUTHORIZATION,
            Some("hostssl all all 10.0.0.1/32 scram-sha-256"),
        );
        let text = rejected.to_string();
        assert!(
            text.contains("pg_hba.conf needs, above any line that rejects this login: hostssl"),
            "{text}"
        );
        assert!(hint(rejected).contains("pg_hba.conf"));
    }

    #[test]
    fn a_wrong_password_of_a_credential_is_a_fault_and_another_database_is_not() {
        let judge = |outcome| judged("login".to_owned(), outcome, "auth.server_credentials[0]");
        let wrong = judge(Err(server(SqlState::INVALID_PASSWORD, None)));
        assert!(wrong.is_bad());
        assert!(
            wrong.to_string().contains("auth.server_credentials[0]"),
            "{wrong}"
        );
        for finding in [
            judge(Ok(())),
            judge(Err(server(SqlState::INSUFFICIENT_PRIVILEGE, None))),
        ] {
            assert!(!finding.is_bad() && !finding.is_untried(), "{finding}");
        }
        assert!(judge(Err(server(SqlState::INVALID_AUTHORIZATION, Some("host")))).is_untried());
    }
}
