//! What would surprise somebody later at one server: its version, clock, certificate and settings,
//! the account's other rights, and whether its `pg_hba.conf` admits clients from this host.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;

use super::finding::WARNING_DAYS;
use super::{Finding, clock, unix_now};
use crate::backend::query::{Row, simple_query};
use crate::backend::{ConnectError, ServerConnection};
use crate::cluster::service_account::ServiceAccount;
use crate::cluster::snapshot::{MemberName, ProbeFacts, Role};
use crate::cluster::state::Listed;
use crate::config;

mod settings;

/// The oldest release that the router supports.
const OLDEST: u32 = 14;
/// Databases whose owners' logins are tried.
const TRIED: &str = "4";

/// One row about this session and the account.
const ACCOUNT: &str = "\
SELECT extract(epoch FROM clock_timestamp())::text, r.rolsuper::text, r.rolconnlimit::text, \
CASE WHEN isfinite(r.rolvaliduntil) THEN floor(extract(epoch FROM r.rolvaliduntil - now()) / 86400)::bigint END::text, \
CASE WHEN c.oid IS NULL THEN NULL ELSE (r.rolsuper OR pg_has_role(c.oid, 'USAGE'))::text END, \
(SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend')::text, \
(has_function_privilege('pg_hba_file_rules()', 'EXECUTE') AND has_table_privilege('pg_hba_file_rules', 'SELECT'))::text \
FROM pg_roles r LEFT JOIN pg_roles c ON c.rolname = 'pg_checkpoint' WHERE r.rolname = current_user";

/// A role for each database that could be a client's.
const CLIENTS: &str = "\
SELECT d.datname, c.rolname FROM pg_database d CROSS JOIN LATERAL \
(SELECT r.rolname FROM pg_roles r WHERE r.rolcanlogin AND NOT r.rolsuper AND NOT r.rolreplication \
AND r.rolname <> current_user AND has_database_privilege(r.oid, d.oid, 'CONNECT') \
ORDER BY r.oid = d.datdba DESC, r.oid LIMIT 1) c \
WHERE d.datallowconn AND NOT d.datistemplate ORDER BY d.datname = 'postgres', d.oid LIMIT ";

const HBA_FAULTS: &str =
    "SELECT line_number::text, error FROM pg_hba_file_rules WHERE error IS NOT NULL LIMIT 5";

/// What is compared between the servers of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ServerFacts {
    system_identifier: u64,
    in_recovery: bool,
    major: u32,
}

/// A member to which the account has logged in.
pub(super) struct Examined<'a> {
    pub(super) account: &'a Arc<ServiceAccount>,
    pub(super) member: &'a Listed,
    pub(super) place: &'a str,
    pub(super) routes: &'a [&'a config::Route],
    pub(super) probed: ProbeFacts,
}

impl Examined<'_> {
    pub(super) async fn thoroughly(
        self,
        mut connection: ServerConnection,
        findings: &mut Vec<Finding>,
    ) -> Option<ServerFacts> {
        let place = self.place;
        let limit = self.account.config.service_account.timeout;
        findings.push(self.role());
        findings.extend(self.encryption(&connection));
        let asked = unix_now();
        let about = ask(&mut connection, ACCOUNT, limit).await;
        let answered = unix_now();
        let about = match about.map(|rows| rows.into_iter().next()) {
            Ok(Some(row)) => texts(row),
            Ok(None) => Vec::new(),
            Err(error) => {
                let what = format!("{place}: clock, rights and rules");
                findings.push(Finding::untried(
                    what,
                    format!("the server does not say them: {error}"),
                ));
                Vec::new()
            }
        };
        let cell = |index: usize| about.get(index).and_then(|cell: &Option<String>| cell.as_deref());
        if let Some(there) = cell(0).and_then(|time| time.parse::<f64>().ok()) {
            let between = f64::midpoint(asked, answered);
            let what = format!("{place}: clock");
            findings.push(clock(what, there - between, (answered - asked) / 2.0));
        }
        if !about.is_empty() {
            findings.extend(self.rights(&about));
        }
        let settings = settings::read(&mut connection, limit).await;
        let version = settings.as_ref().ok().and_then(settings::Settings::version);
        match &settings {
            Ok(settings) => {
                findings.push(version_finding(format!("{place}: version"), settings));
                let used = cell(5).and_then(|count| count.parse().ok());
                findings.extend(settings.findings(&self, used));
            }
            Err(error) => findings.push(Finding::untried(
                format!("{place}: settings"),
                format!("the server does not say them: {error}"),
            )),
        }
        if cell(6) == Some("true") {
            findings.extend(hba_faults(place, &mut connection, limit).await);
        }
        let clients = ask(&mut connection, &format!("{CLIENTS}{TRIED}"), limit).await;
        findings.push(self.admission(clients.unwrap_or_default()).await);
        connection.close().await;
        Some(ServerFacts {
            system_identifier: self.probed.system_identifier,
            in_recovery: self.probed.in_recovery,
            major: version?,
        })
    }

    /// Patroni's word and the server's agree.
    fn role(&self) -> Finding {
        let what = format!("{}: role", self.place);
        let role = &self.member.role;
        let is_leader = matches!(role, Role::Leader);
        match (is_leader, self.probed.in_recovery) {
            (true, true) => Finding::remark(
                what,
                "it is listed as the leader, and the server is in recovery",
                "it may be about to be promoted: run this again; `patronictl list` shows what Patroni sees",
            ),
            (false, false)
                if matches!(
                    role,
                    Role::Replica | Role::SyncStandby | Role::QuorumStandby | Role::StandbyLeader
                ) =>
            {
                Finding::remark(
                    what,
                    "it is listed as a standby, and the server accepts writes",
                    "two servers may accept writes: look at `patronictl list` and at the server's log before clients write",
                )
            }
            _ => Finding::good(
                what,
                if self.probed.in_recovery {
                    "standby"
                } else {
                    "accepts writes"
                },
            ),
        }
    }

    fn encryption(&self, connection: &ServerConnection) -> Option<Finding> {
        if !connection.is_tls {
            if connection.address.ip().is_loopback() {
                return None;
            }
            return Some(Finding::remark(
                format!("{}: encryption", self.place),
                "the connection is not encrypted",
                "set `ssl = on` on the server and server_tls.sslmode: verify-full",
            ));
        }
        let what = format!("{}: certificate", self.place);
        let certificate = connection.stream.certificate()?;
        let Ok((_, parsed)) = x509_parser::parse_x509_certificate(&certificate) else {
            return Some(Finding::untried(what, "it cannot be read"));
        };
        #[expect(clippy::cast_possible_truncation, reason = "seconds since 1970")]
        let left = (parsed.validity().not_after.timestamp() - unix_now() as i64).div_euclid(24 * 3600);
        let until = parsed.validity().not_after;
        let advice = "renew it on the server (ssl_cert_file), and reload the server";
        Some(Finding::of_certificate(
            what,
            "",
            left,
            &until.to_string(),
            advice,
        ))
    }

    fn rights(&self, about: &[Option<String>]) -> Vec<Finding> {
        let place = self.place;
        let settings = &self.account.config.service_account;
        let user = settings.user.replace('"', "\"\"");
        let cell = |index: usize| about.get(index).and_then(|cell| cell.as_deref());
        let mut findings = Vec::new();
        let what = format!("{place}: service account");
        if cell(1) == Some("true") {
            findings.push(Finding::remark(
                what.clone(),
                format!("{} is a superuser, which the router does not need", settings.user),
                "run config/service-account.sql on the leader: it makes a role with the rights that are needed",
            ));
        }
        let needed = settings.pool_size.saturating_add(1);
        if let Some(limit) = cell(2).and_then(|limit| limit.parse::<i64>().ok())
            && limit >= 0
            && usize::try_from(limit).is_ok_and(|limit| limit < needed)
        {
            findings.push(Finding::remark(
                what.clone(),
                format!(
                    "may have {limit} connections (CONNECTION LIMIT), and each router uses up to {needed}"
                ),
                format!("ALTER ROLE \"{user}\" CONNECTION LIMIT -1 on the leader"),
            ));
        }
        if let Some(left) = cell(3).and_then(|days| days.parse::<i64>().ok())
            && left < WARNING_DAYS
        {
            findings.push(Finding::remark(
                what.clone(),
                match left {
                    ..0 => "its password has ended (VALID UNTIL)".to_owned(),
                    0 => "its password ends today (VALID UNTIL)".to_owned(),
                    1 => "its password ends in 1 day (VALID UNTIL)".to_owned(),
                    days => format!("its password ends in {days} days (VALID UNTIL)"),
                },
                format!("ALTER ROLE \"{user}\" VALID UNTIL 'infinity' on the leader"),
            ));
        }
        if findings.is_empty() {
            findings.push(Finding::good(
                what,
                "not a superuser, no limit in the way, does not expire soon",
            ));
        }
        let what = format!("{place}: right to make a checkpoint");
        findings.push(match cell(4) {
            Some("true") => Finding::good(what, "pg_checkpoint"),
            Some(_) => Finding::good(
                what,
                format!("not given: a switchover is made without one first (GRANT pg_checkpoint TO \"{user}\" gives it)"),
            ),
            None => Finding::good(what, "PostgreSQL 14 has no such role"),
        });
        findings
    }

    /// Whether clients' logins from this host get as far as their password. No password is sent.
    async fn admission(&self, clients: Vec<Row>) -> Finding {
        let what = format!("{}: pg_hba.conf for clients through this host", self.place);
        let pairs: Vec<(String, String)> = clients
            .into_iter()
            .filter_map(|row| match texts(row).as_slice() {
                [Some(database), Some(role)] => Some((database.clone(), role.clone())),
                _ => None,
            })
            .collect();
        if pairs.is_empty() {
            return Finding::untried(what, "the server has no role that could be a client's");
        }
        let tried = pairs.iter().map(|(database, role)| async move {
            let met = self
                .account
                .knock(&self.member.host, self.member.port, role, database)
                .await;
            (format!("{role} to {database}"), met)
        });
        judged(what, join_all(tried).await)
    }
}

/// What clients meet, told by what a login without a password meets.
fn judged(what: String, tried: Vec<(String, Result<(), ConnectError>)>) -> Finding {
    let (mut asked, mut trusted, mut refused, mut other) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (login, met) in tried {
        match met {
            Ok(()) => trusted.push(login),
            Err(ConnectError::NoCredential { method }) => asked.push(format!("{login}: {method}")),
            Err(ConnectError::Server(server)) => match &server.hba_line {
                Some(line) => refused.push(format!("{login} (missing: {line})")),
                None => other.push(format!("{login}: {server}")),
            },
            Err(error) => other.push(format!("{login}: {error}")),
        }
    }
    let place = "put it into pg_hba.conf on every server (with Patroni: `patronictl edit-config`, `postgresql.pg_hba`), and \
                 reload the servers";
    if !refused.is_empty() {
        let found = format!("no line admits {}", refused.join("; "));
        return if asked.is_empty() && trusted.is_empty() && other.is_empty() {
            Finding::bad(what, found, place)
        } else {
            Finding::remark(
                what,
                found,
                format!("if clients of the router use that database, {place}"),
            )
        };
    }
    if !other.is_empty() {
        return Finding::remark(
            what,
            format!(
                "a login is not answered as the router needs it: {}",
                other.join("; ")
            ),
            "the server should ask for scram-sha-256 from this host's address",
        );
    }
    if !trusted.is_empty() {
        return Finding::remark(
            what,
            format!("the server trusts {} without a password", trusted.join(", ")),
            "every program on this host may log in so: write scram-sha-256 in place of trust",
        );
    }
    Finding::good(what, format!("asks for a password ({})", asked.join(", ")))
}

fn version_finding(what: String, settings: &settings::Settings) -> Finding {
    let shown = settings.text("server_version").unwrap_or_default();
    match settings.version() {
        Some(major) if major < OLDEST => Finding::bad(
            what,
            format!("PostgreSQL {shown} is older than {OLDEST}"),
            format!("upgrade the server: the router supports PostgreSQL {OLDEST} and later"),
        ),
        Some(_) => Finding::good(what, format!("PostgreSQL {shown}")),
        None => Finding::untried(what, "the server does not say it"),
    }
}

async fn hba_faults(place: &str, connection: &mut ServerConnection, limit: Duration) -> Vec<Finding> {
    let what = || format!("{place}: pg_hba.conf");
    match ask(connection, HBA_FAULTS, limit).await {
        Ok(rows) if rows.is_empty() => vec![Finding::good(what(), "has no error")],
        Ok(rows) => rows
            .into_iter()
            .map(|row| match texts(row).as_slice() {
                [line, error] => Finding::remark(
                    what(),
                    format!(
                        "line {}: {}",
                        line.as_deref().unwrap_or("?"),
                        error.as_deref().unwrap_or_default()
                    ),
                    "correct the line: the server keeps its former rules until then",
                ),
                _ => Finding::untried(what(), "the server's answer is not understood"),
            })
            .collect(),
        Err(error) => vec![Finding::untried(what(), error.to_string())],
    }
}

/// The system identifier that all servers have.
pub(super) fn identity(seen: &[(MemberName, ServerFacts)]) -> Option<u64> {
    let (_, first) = seen.first()?;
    let is_same = seen
        .iter()
        .all(|(_, facts)| facts.system_identifier == first.system_identifier);
    is_same.then_some(first.system_identifier)
}

/// The only server that accepts writes.
pub(super) fn leader(seen: &[(MemberName, ServerFacts)]) -> Option<MemberName> {
    let mut writable = seen.iter().filter(|(_, facts)| !facts.in_recovery);
    match (writable.next(), writable.next()) {
        (Some((name, _)), None) => Some(name.clone()),
        _ => None,
    }
}

/// What the servers of one cluster must have in common.
pub(super) fn agreement(config: &config::Cluster, seen: &[(MemberName, ServerFacts)]) -> Vec<Finding> {
    let mut findings = Vec::new();
    if seen.len() < 2 {
        return findings;
    }
    let grouped = |value: &dyn Fn(&ServerFacts) -> u64| {
        let mut groups: BTreeMap<u64, Vec<String>> = BTreeMap::new();
        for (member, facts) in seen {
            groups.entry(value(facts)).or_default().push(member.to_string());
        }
        groups
    };
    let told = |groups: &BTreeMap<u64, Vec<String>>| {
        let each = groups
            .iter()
            .map(|(value, members)| format!("{value} on {}", members.join(", ")));
        each.collect::<Vec<_>>().join("; ")
    };
    let identifiers = grouped(&|facts| facts.system_identifier);
    let what = format!("cluster {}: system identifier", config.name);
    findings.push(if identifiers.len() > 1 {
        Finding::bad(
            what,
            format!("the servers are of different clusters: {}", told(&identifiers)),
            "an address leads to a server of another cluster: compare the members' addresses with pg_controldata on each server",
        )
    } else {
        Finding::good(what, "the same on all servers")
    });
    let majors = grouped(&|facts| u64::from(facts.major));
    if majors.len() > 1 {
        findings.push(Finding::remark(
            format!("cluster {}: versions", config.name),
            format!("the servers have different major versions: {}", told(&majors)),
            "sessions that move between them can meet differences: finish the upgrade",
        ));
    }
    findings
}

async fn ask(
    connection: &mut ServerConnection,
    sql: &str,
    limit: Duration,
) -> Result<Vec<Row>, ConnectError> {
    simple_query(connection, sql, 100, Instant::now() + limit).await
}

fn texts(row: Row) -> Vec<Option<String>> {
    let text = |cell: Vec<u8>| String::from_utf8_lossy(&cell).into_owned();
    row.into_iter().map(|cell| cell.map(text)).collect()
}

/// A server's time, which may be off.
fn longer_than(own: Option<Duration>, servers: Duration) -> Option<Duration> {
    own.filter(|own| !servers.is_zero() && *own > servers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn met(outcomes: Vec<Result<(), ConnectError>>) -> Finding {
        let logins = outcomes.into_iter().map(|met| ("app to app".to_owned(), met));
        judged("db1".to_owned(), logins.collect())
    }

    fn asks() -> Result<(), ConnectError> {
        Err(ConnectError::NoCredential {
            method: "scram-sha-256",
        })
    }

    #[test]
    fn a_login_that_meets_the_question_for_a_password_is_admitted() {
        let finding = met(vec![asks()]);
        assert!(finding.to_string().starts_with("ok "), "{finding}");
        assert!(finding.to_string().contains("scram-sha-256"), "{finding}");
        let finding = met(vec![asks(), Ok(())]);
        assert!(finding.to_string().contains("in place of trust"), "{finding}");
        let finding = met(vec![
            asks(),
            Err(ConnectError::UnsupportedMethod { method: "gss" }),
        ]);
        assert!(
            finding.to_string().contains("should ask for scram-sha-256"),
            "{finding}"
        );
    }

    #[test]
    fn a_time_of_the_server_that_is_off_is_in_nobodys_way() {
        let second = Duration::from_secs(1);
        assert_eq!(longer_than(Some(second), Duration::ZERO), None);
        assert_eq!(longer_than(Some(second), second), None);
        assert_eq!(longer_than(None, second), None);
        assert_eq!(longer_than(Some(2 * second), second), Some(2 * second));
    }
}
