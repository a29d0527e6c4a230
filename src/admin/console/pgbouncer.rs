//! PgBouncer's SHOW commands, with PgBouncer's columns in PgBouncer's order, for tools that read
//! them. A column for which the router has no true answer is null, or NaN where tools count on a
//! number; a command for which it has none is refused, and the hint says what to use.
//!
//! The columns are those of PgBouncer 1.26.1; a test compares them with the program.

mod settings;
mod tables;
mod tally;

use super::views::View;
use crate::wire::message::ErrorReply;
use crate::wire::sqlstate::SqlState;

/// The release whose columns these are.
pub(super) const VERSION: &str = "1.26.1";

/// What there is, by the word behind SHOW.
pub(super) static TABLES: &[View] = &[
    tables::POOLS,
    tables::CLIENTS,
    tables::SERVERS,
    tables::STATS,
    tables::STATS_TOTALS,
    tables::TOTALS,
    settings::DATABASES,
    settings::USERS,
    settings::LISTS,
    settings::CONFIG,
    settings::STATE,
];

/// What there is not, and what to use instead.
pub(super) static REFUSED: &[(&str, &str)] = &[
    (
        "STATS_AVERAGES",
        "Use the differences of SHOW STATS_TOTALS, or the metrics.",
    ),
    ("SOCKETS", "Use SELECT … FROM sessions and server_connections."),
    (
        "ACTIVE_SOCKETS",
        "Use SELECT … FROM sessions WHERE state = 'active'.",
    ),
    ("FDS", "Use `trunkline upgrade`: it passes on what it must."),
    ("MEM", "Use SELECT … FROM limits WHERE unit = 'bytes'."),
    ("PEERS", "Peers have names here: use SELECT … FROM peers."),
    (
        "PEER_POOLS",
        "There are no pools of peers: use SELECT … FROM peers.",
    ),
    (
        "DNS_HOSTS",
        "The router keeps no answers of the name service: use SELECT … FROM members.",
    ),
    (
        "DNS_ZONES",
        "The router keeps no answers of the name service: use SELECT … FROM members.",
    ),
];

/// The table that a command shows; `None`: it is none of PgBouncer's.
///
/// # Errors
/// It is one without a true answer here.
pub(super) fn find(sql: &str) -> Result<Option<&'static View>, ErrorReply> {
    let mut words = sql
        .trim_matches(|c: char| c == ';' || c.is_whitespace())
        .split_whitespace();
    let (Some(show), Some(name), None) = (words.next(), words.next(), words.next()) else {
        return Ok(None);
    };
    if !show.eq_ignore_ascii_case("show") {
        return Ok(None);
    }
    let found = TABLES.iter().find(|table| table.name.eq_ignore_ascii_case(name));
    if found.is_some() {
        return Ok(found);
    }
    match REFUSED
        .iter()
        .find(|(refused, _)| refused.eq_ignore_ascii_case(name))
    {
        Some((refused, hint)) => Err(ErrorReply::error(
            SqlState::FEATURE_NOT_SUPPORTED,
            format!("the router has no true answer to PgBouncer's SHOW {refused}"),
        )
        .hint(*hint)),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::tests::handles;
    use super::*;

    #[test]
    fn a_command_is_found_however_it_is_typed() {
        for sql in ["SHOW POOLS", "show pools;", " Show\n Pools ;\n"] {
            assert_eq!(find(sql).unwrap().unwrap().name, "POOLS", "{sql}");
        }
        for sql in [
            "SHOW",
            "SHOW POOLS x",
            "SHOW HBA",
            "SHOW server_version",
            "POOLS",
            "",
        ] {
            assert!(find(sql).unwrap().is_none(), "{sql}");
        }
        for (refused, hint) in REFUSED {
            let reply = find(&format!("show {refused};")).unwrap_err();
            assert_eq!(
                (reply.code.as_str(), reply.hint.as_deref()),
                ("0A000", Some(*hint))
            );
        }
    }

    #[tokio::test]
    async fn every_table_has_rows_of_its_columns() {
        let handles = handles();
        for table in TABLES {
            for row in table.rows(&handles).await.value {
                assert_eq!(row.len(), table.columns.len(), "{}", table.name);
            }
        }
    }

    #[test]
    fn the_page_documents_every_command() {
        let page = include_str!("../../../docs/console.md");
        for table in TABLES {
            assert!(
                page.contains(&format!("| `SHOW {}` |", table.name)),
                "{}",
                table.name
            );
        }
        for (refused, _) in REFUSED {
            assert!(page.contains(&format!("`{refused}`")), "{refused}");
        }
        assert!(page.contains(VERSION));
    }
}
