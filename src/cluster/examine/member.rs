//! The service account at one member: its login, its rights, and the look-up of verifiers.

use std::sync::Arc;

use tokio::time::Instant;

use super::room::{ROOM, Wanted};
use super::{Finding, server};
use crate::backend::ConnectError;
use crate::backend::query::simple_query;
use crate::cluster::lookup;
use crate::cluster::probe;
use crate::cluster::service_account::{Purpose, ServiceAccount};
use crate::cluster::state::Listed;
use crate::config::{self, CredentialUsers, ServerSecret, Verifiers};
use crate::wire::sqlstate::SqlState;

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

/// What was found, and what the thorough examination saw of the server. `routes`: those to the
/// cluster, for that examination.
pub(super) async fn member(
    account: &Arc<ServiceAccount>,
    member: &Listed,
    auth: &config::Auth,
    wanted: &Wanted,
    routes: Option<&[&config::Route]>,
) -> (Vec<Finding>, Option<server::ServerFacts>) {
    let mut findings = Vec::new();
    let facts = examined(account, member, auth, wanted, routes, &mut findings).await;
    (findings, facts)
}

async fn examined(
    account: &Arc<ServiceAccount>,
    member: &Listed,
    auth: &config::Auth,
    wanted: &Wanted,
    routes: Option<&[&config::Route]>,
    findings: &mut Vec<Finding>,
) -> Option<server::ServerFacts> {
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
            return None;
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
    let probed = match probe::ask(&mut connection, deadline).await {
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
            facts
        }
        Err(error) => {
            findings.push(Finding::bad(
                what,
                error,
                "the account needs pg_monitor: see config/service-account.sql",
            ));
            return None;
        }
    };
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
    let facts = if let Some(routes) = routes {
        let examined = server::Examined {
            account,
            member,
            place: &place,
            routes,
            probed,
        };
        examined.thoroughly(connection, findings).await
    } else {
        connection.close().await;
        None
    };
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
    facts
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
