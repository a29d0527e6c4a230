//! The table of isolation: what of one session another sees that has its server connection next.

use std::fmt::Write as _;

use super::bouncer::{VERSION, in_pgbouncer};
use super::rows::ROWS;
use Outcome::{Ended, Kept, Leaks, Lost, Pinned, Refused};

/// One thing that a client or the superuser does.
#[derive(Debug, Clone, Copy)]
pub enum Step {
    Sql(&'static str),
    /// Run by a function; neither text nor tag says what.
    Hidden(&'static str),
    /// A named statement with types of parameters.
    Parse(&'static str, &'static str, &'static [u32]),
    /// Bind and Execute of a named statement.
    Run(&'static str, &'static [&'static str]),
    /// The unnamed statement, with parameters.
    Extended(&'static str, &'static [&'static str]),
    Superuser(&'static str),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Each sees what it would see on a connection of its own.
    Kept,
    /// The same; the first one keeps the connection, the second one waits for it.
    Pinned,
    /// The first one gets an error, where it would see its own on a connection of its own.
    Refused,
    /// The first one sees something else than on a connection of its own. The second one does not.
    Lost,
    /// One of them sees something of the other.
    Leaks,
    /// The connection of one of them is closed.
    Ended,
}

#[derive(Debug)]
pub struct Column {
    pub title: &'static str,
    pub database: &'static str,
    /// Keys of the pool.
    pub pool: &'static str,
}

pub const COLUMNS: &[Column] = &[
    Column {
        title: "by default",
        database: "c0",
        pool: "max_connections: 1",
    },
    Column {
        title: "with `settings: [work_mem, app.tenant]`",
        database: "c1",
        pool: "max_connections: 1, settings: [work_mem, app.tenant]",
    },
    Column {
        title: "with `verify: always`",
        database: "c2",
        pool: "max_connections: 1, verify: always",
    },
    Column {
        title: "with both and `custom_settings: close`",
        database: "c3",
        pool: "max_connections: 1, settings: [work_mem, app.tenant], verify: always, custom_settings: close",
    },
];

/// The table as docs/pooling.md has it.
pub fn markdown() -> String {
    let mut text = "| state |".to_owned();
    for column in COLUMNS {
        let _ = write!(text, " {} |", column.title);
    }
    let _ = writeln!(
        text,
        " PgBouncer {VERSION} |\n|---{}|",
        "|---".repeat(COLUMNS.len() + 1)
    );
    for row in ROWS {
        let _ = write!(text, "| {} |", row.state);
        for outcome in row.outcomes.into_iter().chain([in_pgbouncer(row)]) {
            let word = match outcome {
                Kept => "kept apart",
                Pinned => "kept apart, pinned",
                Refused => "refused",
                Lost => "rounded",
                Leaks => "*leaks*",
                Ended => "ends a session",
            };
            let _ = write!(text, " {word} |");
        }
        text.push('\n');
    }
    text
}
