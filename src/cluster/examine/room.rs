//! How many connections a server takes, and how many the configuration allows.

use std::sync::Arc;

use super::Finding;
use crate::config;

/// How many connections the configuration allows to each member.
#[derive(Debug)]
pub(super) struct Wanted {
    /// `server.max_connections`; 0 is no limit.
    most: u32,
    /// Of each route with a pool, the size of its largest pool. There is one for each user and
    /// database, and nobody knows here how many these are.
    pools: Vec<(Arc<str>, u32)>,
}

impl Wanted {
    pub(super) fn of<'a>(config: &config::Cluster, routes: impl Iterator<Item = &'a config::Route>) -> Self {
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
    pub(super) fn judged(&self, what: String, room: u32) -> Finding {
        let has_room = format!("it takes {room} connections");
        let (most, pools) = (self.most, &self.pools);
        if most > room {
            return Finding::remark(
                what,
                format!("{has_room}, and server.max_connections is {most}"),
                "lower that, or raise max_connections of the server",
            );
        }
        if most > 0 {
            return Finding::good(what, format!("{has_room}, and the router opens {most} at most"));
        }
        let advice = "lower that, raise max_connections of the server, or set server.max_connections";
        let large = pools.iter().filter(|(_, size)| *size > room);
        let large: Vec<_> = large.map(|(route, size)| format!("{size} of {route}")).collect();
        if !large.is_empty() {
            let found = format!(
                "{has_room}, and a single pool may have more, with its reserve: {}",
                large.join(", ")
            );
            return Finding::remark(what, found, advice);
        }
        let sum = pools
            .iter()
            .fold(0_u32, |sum, (_, size)| sum.saturating_add(*size));
        if sum > room {
            let found = format!(
                "{has_room}, and one pool of each route together may have {sum}, with their reserves"
            );
            return Finding::remark(what, found, advice);
        }
        Finding::good(what, has_room)
    }
}

/// What a server has for roles that are not superusers, nor members of
/// `pg_use_reserved_connections`.
pub(super) const ROOM: &str = "SELECT (current_setting('max_connections')::int \
                    - current_setting('superuser_reserved_connections')::int \
                    - coalesce(current_setting('reserved_connections', true)::int, 0))::text";

#[cfg(test)]
mod tests {
    use super::*;

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
                "a single pool may have more, with its reserve: 98 of r1, 200 of r2:",
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
}
