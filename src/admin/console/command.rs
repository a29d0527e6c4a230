//! What the console answers: a line in a table for each command.

use std::borrow::Cow;

use super::super::relation::{Column, Kind, Row, Value, column};
use super::orders::Order;
use super::statement::Statement;
use super::views;
use crate::wire::message::ErrorReply;
use crate::wire::sqlstate::SqlState;

/// The longest name of a route or a member, in bytes.
const MAX_NAME: usize = 255;

/// One command.
#[derive(Debug)]
pub(super) struct Command {
    /// As it is typed, blanks between words, letters in any case; `…` at the end is one or more
    /// words of any kind, `<name>` is a name, in double quotes or without.
    pub(super) text: &'static str,
    /// One line for `SHOW HELP`.
    pub(super) about: &'static str,
    pub(super) effect: Effect,
}

#[derive(Debug)]
pub(super) enum Effect {
    Rows(&'static [Column], fn() -> Vec<Row>),
    /// All of the view of this name.
    View(&'static str),
    /// Accepted because drivers send it on their own, and nothing here depends on it.
    Nothing {
        tag: &'static str,
    },
    /// Given to the router.
    Order {
        order: Order,
        /// Of its rows; of one without rows there are none.
        columns: &'static [Column],
        tag: &'static str,
    },
}

const fn rows(
    text: &'static str,
    about: &'static str,
    columns: &'static [Column],
    rows: fn() -> Vec<Row>,
) -> Command {
    Command {
        text,
        about,
        effect: Effect::Rows(columns, rows),
    }
}

const fn view(text: &'static str, about: &'static str, view: &'static str) -> Command {
    Command {
        text,
        about,
        effect: Effect::View(view),
    }
}

const fn nothing(text: &'static str, tag: &'static str) -> Command {
    Command {
        text,
        about: "Has no effect; drivers send it",
        effect: Effect::Nothing { tag },
    }
}

const fn order(text: &'static str, about: &'static str, order: Order, tag: &'static str) -> Command {
    let columns: &[Column] = match order {
        Order::Explain => EXPLAIN,
        Order::Show => SWITCHOVER,
        _ => &[],
    };
    Command {
        text,
        about,
        effect: Effect::Order { order, columns, tag },
    }
}

pub(super) static COMMANDS: [Command; 16] = [
    rows("SHOW HELP", "The commands of the console", HELP, help),
    rows("SHOW VERSION", "The version of the router", VERSION, version),
    view(
        "SHOW HBA",
        "The rules that decide on logins, in order",
        "pg_hba_file_rules",
    ),
    view("SHOW IDENT", "The user name maps", "pg_ident_file_mappings"),
    order(
        "PAUSE",
        "The clients of all pooled and tracked routes wait",
        Order::Pause,
        "PAUSE",
    ),
    order(
        "PAUSE <route>",
        "The clients of a route wait",
        Order::Pause,
        "PAUSE",
    ),
    order(
        "RESUME",
        "The clients of all paused routes go on",
        Order::Resume,
        "RESUME",
    ),
    order(
        "RESUME <route>",
        "The clients of a route go on",
        Order::Resume,
        "RESUME",
    ),
    order(
        "EXPLAIN SWITCHOVER",
        "What a switchover would do, and whether it is possible",
        Order::Explain,
        "EXPLAIN",
    ),
    order(
        "EXPLAIN SWITCHOVER TO <node>",
        "The same, to this member",
        Order::Explain,
        "EXPLAIN",
    ),
    order(
        "SWITCHOVER",
        "Another member becomes the leader, and clients wait for it",
        Order::SwitchOver,
        "SWITCHOVER",
    ),
    order(
        "SWITCHOVER TO <node>",
        "This member becomes the leader, and clients wait for it",
        Order::SwitchOver,
        "SWITCHOVER",
    ),
    order(
        "SHOW SWITCHOVER",
        "The switchover that runs, or the last one",
        Order::Show,
        "SHOW",
    ),
    order(
        "ABORT SWITCHOVER",
        "Undoes the switchover that runs, as long as Patroni has not been asked",
        Order::Abort,
        "ABORT",
    ),
    nothing("SET application_name …", "SET"),
    nothing("SET extra_float_digits …", "SET"),
];

const HELP: &[Column] = &[
    column("command", Kind::Text, "As it is typed"),
    column("description", Kind::Text, "What it does"),
];
const EXPLAIN: &[Column] = &[column("plan", Kind::Text, "What would be done, line by line")];
const SWITCHOVER: &[Column] = &[
    column("cluster", Kind::Text, "The cluster"),
    column("leader", Kind::Text, "Who led"),
    column("candidate", Kind::Text, "Who is to lead"),
    column("state", Kind::Text, "prepared, committed, done or failed"),
    column("steps", Kind::TextArray, "What has happened"),
];
const VERSION: &[Column] = &[column("version", Kind::Text, "Of the router")];

fn help() -> Vec<Row> {
    let row = |text: String, about: &str| vec![Value::Text(text), Value::text(about)];
    let commands = COMMANDS
        .iter()
        .map(|command| row(command.text.to_owned(), command.about));
    let views = views::VIEWS
        .iter()
        .map(|view| row(format!("SELECT … FROM {}", view.name), view.about));
    commands.chain(views).collect()
}

fn version() -> Vec<Row> {
    let version = concat!("Trunkline ", env!("CARGO_PKG_VERSION"));
    vec![vec![Value::text(version)]]
}

/// Whether its first word begins a query.
pub(super) fn is_query(sql: &str) -> bool {
    let text = without_comments(sql);
    let text = text.trim_start_matches(|c: char| c.is_whitespace() || matches!(c, ';' | '('));
    let word = text.split(|c: char| !c.is_ascii_alphabetic()).next();
    word.is_some_and(|word| {
        ["select", "with", "values", "table"]
            .iter()
            .any(|known| known.eq_ignore_ascii_case(word))
    })
}

/// The command of a query; `None` for a query of blanks, comments and semicolons.
pub(super) fn find(sql: &str) -> Result<Option<Statement>, ErrorReply> {
    let text = without_comments(sql);
    let is_blank = |c: char| c == ';' || c.is_whitespace();
    let text = text.trim_end_matches(is_blank);
    let words = words(text);
    if words.is_empty() {
        return Ok(None);
    }
    let found = COMMANDS.iter().find_map(|command| {
        let name = command.matched(&words)?;
        Some(Statement::Command { command, name })
    });
    found.map(Some).ok_or_else(|| {
        ErrorReply::error(
            SqlState::FEATURE_NOT_SUPPORTED,
            "the console does not know this command",
        )
        .hint(
            if is_transaction(words[0]) {
                "The console has no transactions: put the driver into autocommit mode. SHOW HELP lists the commands."
            } else {
                "SHOW HELP lists the commands, \\d the views. The program has more: `trunkline kill`, `reconnect`, \
                 `disable`, `reload`."
            },
        )
    })
}

/// Whether the command begins or ends a transaction, as drivers send it by themselves.
fn is_transaction(word: &str) -> bool {
    ["begin", "start", "commit", "rollback", "end"]
        .iter()
        .any(|known| known.eq_ignore_ascii_case(word))
}

impl Command {
    /// Whether these words are this command: what stands for its `<name>`, if it has one.
    #[expect(
        clippy::option_option,
        reason = "not this command, or this one without a name"
    )]
    fn matched(&self, words: &[&str]) -> Option<Option<String>> {
        let mut given = words.iter();
        let mut name = None;
        for word in self.text.split(' ') {
            if word == "…" {
                return (given.len() > 0).then_some(None);
            }
            if word.starts_with('<') {
                name = Some(unquoted(given.next()?)?);
                continue;
            }
            let same = |given: &&str| {
                // The schema that names without one are looked for in first.
                let bare = given
                    .split_at_checked(11)
                    .filter(|(schema, _)| schema.eq_ignore_ascii_case("pg_catalog."));
                bare.map_or(*given, |(_, name)| name).eq_ignore_ascii_case(word)
            };
            if !given.next().is_some_and(same) {
                return None;
            }
        }
        given.next().is_none().then_some(name)
    }
}

/// Split at blanks that are not in double quotes.
fn words(text: &str) -> Vec<&str> {
    let mut is_quoted = false;
    text.split(|c: char| {
        is_quoted ^= c == '"';
        !is_quoted && c.is_whitespace()
    })
    .filter(|word| !word.is_empty())
    .collect()
}

/// A name as it is meant; `None` if it is none. Letters keep their case.
fn unquoted(word: &str) -> Option<String> {
    let inner = word.strip_prefix('"').and_then(|word| word.strip_suffix('"'));
    let name = match inner {
        Some(inner) => inner.replace("\"\"", "\u{0}"),
        None => word.to_owned(),
    };
    let is_name = !name.is_empty() && !name.contains('"') && name.len() <= MAX_NAME;
    is_name.then(|| name.replace('\u{0}', "\""))
}

/// With a blank for each comment; block comments nest. One without an end runs to the end.
fn without_comments(sql: &str) -> Cow<'_, str> {
    if !sql.contains("--") && !sql.contains("/*") {
        return sql.into();
    }
    let mut text = String::with_capacity(sql.len());
    let mut depth = 0_u32;
    let mut rest = sql;
    while let Some(c) = rest.chars().next() {
        if rest.starts_with("/*") {
            depth += 1;
            rest = &rest[2..];
            text.push(' ');
        } else if depth > 0 && rest.starts_with("*/") {
            depth -= 1;
            rest = &rest[2..];
        } else if depth == 0 && rest.starts_with("--") {
            rest = rest.find('\n').map_or("", |end| &rest[end..]);
        } else {
            if depth == 0 {
                text.push(c);
            }
            rest = &rest[c.len_utf8()..];
        }
    }
    text.into()
}
