//! Settings of a server that clash with the configuration.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Examined, ask, longer_than, texts};
use crate::backend::{ConnectError, ServerConnection};
use crate::cluster::examine::Finding;
use crate::config::{Access, PoolLimits, Route, shown_duration};

/// The service account may read each of them.
const SETTINGS: &str = "SELECT name, setting FROM pg_settings WHERE name IN ('server_version', 'server_version_num', \
                        'idle_session_timeout', 'idle_in_transaction_session_timeout', 'statement_timeout', \
                        'transaction_timeout', 'authentication_timeout', 'default_transaction_read_only', \
                        'max_connections', 'superuser_reserved_connections')";

/// One of the times of a pool.
type OfPool = fn(&PoolLimits) -> Option<Duration>;

/// By name, in the unit of `pg_settings`.
pub(super) struct Settings(BTreeMap<String, String>);

/// # Errors
/// The server does not answer.
pub(super) async fn read(
    connection: &mut ServerConnection,
    limit: Duration,
) -> Result<Settings, ConnectError> {
    let rows = ask(connection, SETTINGS, limit).await?;
    let pairs = rows.into_iter().filter_map(|row| match texts(row).as_slice() {
        [Some(name), Some(value)] => Some((name.clone(), value.clone())),
        _ => None,
    });
    Ok(Settings(pairs.collect()))
}

impl Settings {
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.text(name)?.parse().ok()
    }

    /// 14, 15, …
    pub(super) fn version(&self) -> Option<u32> {
        u32::try_from(self.number("server_version_num")? / 10_000).ok()
    }

    fn millis(&self, name: &str) -> Duration {
        Duration::from_millis(self.number(name).unwrap_or_default())
    }

    /// `used`: connections of clients that the server has now.
    pub(super) fn findings(&self, about: &Examined<'_>, used: Option<u64>) -> Vec<Finding> {
        let place = about.place;
        let mut findings = Vec::new();
        findings.extend(self.room(place, used));
        let clashes = findings.len();
        for route in about.routes {
            findings.extend(self.clashes(place, route));
        }
        let login = Duration::from_secs(self.number("authentication_timeout").unwrap_or_default());
        if let Some(own) = longer_than(Some(about.account.config.server.connect_timeout), login) {
            findings.push(Finding::remark(
                format!("{place}: authentication_timeout"),
                format!(
                    "the server gives a login {}, and server.connect_timeout is {}",
                    shown_duration(login),
                    shown_duration(own)
                ),
                "lower server.connect_timeout, or raise authentication_timeout of the server",
            ));
        }
        if findings.len() == clashes {
            findings.push(Finding::good(
                format!("{place}: settings"),
                "no timeout of the server clashes with the configuration",
            ));
        }
        findings
    }

    fn room(&self, place: &str, used: Option<u64>) -> Option<Finding> {
        let most = self.number("max_connections")?;
        let reserved = self.number("superuser_reserved_connections").unwrap_or_default();
        let used = used?;
        let free = most.saturating_sub(reserved).saturating_sub(used);
        let what = format!("{place}: connections in use");
        Some(if free * 10 < most {
            Finding::remark(
                what,
                format!("{used} of {most}, {free} left"),
                "raise max_connections of the server, or find out who has them: SELECT usename, application_name, count(*) \
                 FROM pg_stat_activity GROUP BY 1, 2 ORDER BY 3 DESC",
            )
        } else {
            Finding::good(what, format!("{used} of {most}"))
        })
    }

    fn clashes(&self, place: &str, route: &Route) -> Vec<Finding> {
        let mut findings = Vec::new();
        if self.text("default_transaction_read_only") == Some("on") && route.access == Access::ReadWrite {
            findings.push(Finding::remark(
                format!("{place}: default_transaction_read_only"),
                format!("is on: the sessions of route {} begin read-only", route.name),
                "set default_transaction_read_only = off on the servers",
            ));
        }
        let Some(pool) = route.pool.as_ref() else {
            return findings;
        };
        let idle = self.millis("idle_session_timeout");
        if !idle.is_zero() {
            let own = pool.limits.idle_timeout;
            if own.is_none_or(|own| own > idle) {
                findings.push(Finding::remark(
                    format!("{place}: idle_session_timeout"),
                    format!(
                        "the server ends idle connections after {}, before the pool of route {} does ({})",
                        shown_duration(idle),
                        route.name,
                        own.map_or_else(|| "never".to_owned(), shown_duration)
                    ),
                    "set the pool's idle_timeout below it, or idle_session_timeout = 0 on the servers",
                ));
            }
        }
        let pairs: [(&str, &str, OfPool); 3] = [
            (
                "idle_in_transaction_session_timeout",
                "idle_transaction_timeout",
                |limits| limits.idle_transaction_timeout,
            ),
            ("statement_timeout", "query_timeout", |limits| {
                limits.query_timeout
            }),
            ("transaction_timeout", "transaction_timeout", |limits| {
                limits.transaction_timeout
            }),
        ];
        for (setting, key, own) in pairs {
            let servers = self.millis(setting);
            if let Some(own) = longer_than(own(&pool.limits), servers) {
                findings.push(Finding::remark(
                    format!("{place}: {setting}"),
                    format!(
                        "is {}, so the pool's {key} of route {} ({}) has no effect",
                        shown_duration(servers),
                        route.name,
                        shown_duration(own)
                    ),
                    format!("lower {key} below it, or raise {setting} on the servers"),
                ));
            }
        }
        findings
    }
}
