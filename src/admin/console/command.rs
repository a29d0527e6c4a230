//! What the console answers: a line in a table for each command.

use std::borrow::Cow;

use super::super::relation::{Column, Kind, Row, Value, column};
use super::arguments::Arguments;
use super::foreign;
use super::orders::Order;
use super::pgbouncer;
use super::settings::SessionCommand;
use super::statement::Statement;
use super::tokens::tokens;
use super::transaction::TransactionCommand;
use super::views;
use crate::wire::message::ErrorReply;
use crate::wire::sqlstate::SqlState;

/// One command.
#[derive(Debug)]
pub(super) struct Command {
    /// As it is typed, blanks between words, letters in any case; `…` at the end is one or more
    /// words of any kind, `<name>` is a name, in double quotes or without, `[…]` may be left out.
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

pub(super) static COMMANDS: &[Command] = &[
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
    order(
        "DRAIN <member> [CLUSTER <cluster>]",
        "A member gets no new sessions; tracked ones leave it between transactions, others stay",
        Order::Drain,
        "DRAIN",
    ),
    order(
        "MAINT <member> [CLUSTER <cluster>]",
        "A member is out of service: no new sessions, and its sessions end",
        Order::Maint,
        "MAINT",
    ),
    order(
        "READY <member> [CLUSTER <cluster>]",
        "A member is in service again",
        Order::Ready,
        "READY",
    ),
    order(
        "WEIGHT <member> <weight> [CLUSTER <cluster>]",
        "Another share of the sessions, 0 to 256, or DEFAULT for the configured one",
        Order::Weight,
        "WEIGHT",
    ),
    order(
        "CLOSE SESSIONS <member> [CLUSTER <cluster>] [GRACE <seconds>] [NOW]",
        "The sessions on a member end at the end of their transactions",
        Order::CloseSessions,
        "CLOSE SESSIONS",
    ),
    order(
        "KILL <id> [BOUNDARY] [GRACE <seconds>]",
        "Ends a session at once, or at the end of its transaction",
        Order::Kill,
        "KILL",
    ),
    order("KILL_CLIENT <id>", "The same as KILL", Order::Kill, "KILL_CLIENT"),
    order(
        "RECONNECT",
        "Replaces the server connections of all pools as their sessions give them back",
        Order::Reconnect,
        "RECONNECT",
    ),
    order(
        "RECONNECT <name>",
        "The same for a route, or for a member",
        Order::Reconnect,
        "RECONNECT",
    ),
    order(
        "RECONNECT ROUTE <route>",
        "The same for a route",
        Order::Reconnect,
        "RECONNECT",
    ),
    order(
        "RECONNECT MEMBER <member> [CLUSTER <cluster>]",
        "The same for a member",
        Order::Reconnect,
        "RECONNECT",
    ),
    order(
        "WAIT_CLOSE [TIMEOUT <seconds>]",
        "Waits until the connections that RECONNECT replaces are closed",
        Order::WaitClose,
        "WAIT_CLOSE",
    ),
    order(
        "WAIT_CLOSE <name> [CLUSTER <cluster>] [TIMEOUT <seconds>]",
        "The same for a route or a member; of one that is drained, until it has no connection",
        Order::WaitClose,
        "WAIT_CLOSE",
    ),
    order(
        "DISABLE <route>",
        "A route gets no new sessions; existing ones go on",
        Order::Disable,
        "DISABLE",
    ),
    order(
        "ENABLE <route>",
        "A route gets sessions again",
        Order::Enable,
        "ENABLE",
    ),
    order("RELOAD", "Reads the configuration again", Order::Reload, "RELOAD"),
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

/// What drivers send on their own, for `SHOW HELP`.
const DRIVERS: &[(&str, &str)] = &[
    (
        "BEGIN, COMMIT, ROLLBACK, SAVEPOINT, …",
        "As in PostgreSQL; orders are refused between BEGIN and COMMIT",
    ),
    ("SHOW <setting>", "A setting of PostgreSQL that drivers ask for"),
    (
        "SET, RESET, DISCARD, DEALLOCATE, …",
        "Accepted as far as drivers send it on their own",
    ),
];

fn help() -> Vec<Row> {
    let row = |text: String, about: &str| vec![Value::Text(text), Value::text(about)];
    let commands = COMMANDS
        .iter()
        .map(|command| row(command.text.to_owned(), command.about));
    let beside = DRIVERS.iter().map(|(text, about)| row((*text).to_owned(), about));
    let views = views::VIEWS
        .iter()
        .map(|view| row(format!("SELECT … FROM {}", view.name), view.about));
    let tables = pgbouncer::TABLES
        .iter()
        .map(|table| row(format!("SHOW {}", table.name), table.about));
    commands.chain(tables).chain(beside).chain(views).collect()
}

fn version() -> Vec<Row> {
    // Tools of PgBouncer's look for its name and a version behind it, anywhere in the text.
    let version = format!(
        "Trunkline {} (commands of PgBouncer {})",
        env!("CARGO_PKG_VERSION"),
        pgbouncer::VERSION
    );
    vec![vec![Value::Text(version)]]
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
    let Some(first) = words.first() else {
        return Ok(None);
    };
    let found = COMMANDS.iter().find_map(|command| {
        let arguments = Arguments::read(command.text, &words)?;
        Some(Statement::Command { command, arguments })
    });
    if let Some(found) = found {
        return Ok(Some(found));
    }
    if let Some(tokens) = tokens(text) {
        if let Some(command) = TransactionCommand::read(&tokens) {
            return Ok(Some(Statement::Transaction(command)));
        }
        if let Some(command) = SessionCommand::read(&tokens)? {
            return Ok(Some(Statement::Session(command)));
        }
    }
    if let Some(reply) = foreign::refusal(&words) {
        return Err(reply);
    }
    let alike: Vec<&str> = COMMANDS
        .iter()
        .map(|command| command.text)
        .filter(|text| {
            text.split(' ')
                .next()
                .is_some_and(|word| word.eq_ignore_ascii_case(first))
        })
        .filter(|text| !text.starts_with("SHOW"))
        .collect();
    let reply = ErrorReply::error(
        SqlState::FEATURE_NOT_SUPPORTED,
        "the console does not know this command",
    );
    Err(if alike.is_empty() {
        reply.hint("SHOW HELP lists the commands, \\d the views.")
    } else {
        reply.hint(format!(
            "The console has {}. SHOW HELP lists all commands.",
            alike.join("; ")
        ))
    })
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

/// With a blank for each comment; block comments nest. One without an end stays, so that what is
/// left is no command: an order about one thing must not become one about all.
fn without_comments(sql: &str) -> Cow<'_, str> {
    if !sql.contains("--") && !sql.contains("/*") {
        return sql.into();
    }
    let mut text = String::with_capacity(sql.len());
    let mut depth = 0_u32;
    let mut rest = sql;
    let mut outermost = ("", 0);
    while let Some(c) = rest.chars().next() {
        if rest.starts_with("/*") {
            if depth == 0 {
                outermost = (rest, text.len());
            }
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
    if depth > 0 {
        let (unended, at) = outermost;
        text.truncate(at);
        text.push_str(unended);
    }
    text.into()
}
