//! What a client asks for: a command of the table, or a query over a view.

use std::sync::Arc;

use super::super::relation::{Column, Kind};
use super::super::sql::{OutputColumn, Plan};
use super::arguments::Arguments;
use super::catalog::{self, CatalogAnswer};
use super::command::{self, Command, Effect};
use super::pgbouncer;
use super::settings::SessionCommand;
use super::transaction::TransactionCommand;
use super::views::{self, View};
use crate::wire::message::ErrorReply;

/// A statement that can be carried out.
#[derive(Debug, Clone)]
pub(super) enum Statement {
    Command {
        command: &'static Command,
        arguments: Arguments,
    },
    Transaction(TransactionCommand),
    Session(SessionCommand),
    Query(Arc<Plan>),
    /// One of PgBouncer's.
    Table(&'static View),
    /// One that psql sends on its own.
    Catalog(Arc<CatalogAnswer>),
}

impl Statement {
    /// Reads a client's text; `None` for one of blanks, comments and semicolons. `declared` are the
    /// types of parameters that the client says.
    ///
    /// # Errors
    /// What the client is told.
    pub(super) fn read(sql: &str, declared: Vec<Option<Kind>>) -> Result<Option<Self>, ErrorReply> {
        if command::is_query(sql) {
            if let Some(answer) = catalog::answer(sql) {
                return Ok(Some(Self::Catalog(answer)));
            }
            let columns = |name: &str| views::find(name).map(|view: &View| view.columns);
            let plan = Plan::of(sql, &columns, declared);
            return plan
                .map(|plan| Some(Self::Query(Arc::new(plan))))
                .map_err(|reply| catalog::refusal(sql).unwrap_or(reply));
        }
        if let Some(table) = pgbouncer::find(sql)? {
            return Ok(Some(Self::Table(table)));
        }
        command::find(sql)
    }

    /// The bytes of memory that it takes, as it was read from a text. A command takes no more than
    /// its text. What of that is below a KiB is not counted: DEALLOCATE finds room where nothing
    /// else does.
    pub(super) fn size(&self, sql: &str) -> usize {
        match self {
            Self::Query(plan) => plan.size(),
            Self::Catalog(answer) => answer.size(),
            Self::Command { .. } | Self::Transaction(_) | Self::Session(_) | Self::Table(_) => {
                sql.len() / 1024 * 1024
            }
        }
    }

    /// The columns of its answer; none for one without rows.
    pub(super) fn columns(&self) -> Vec<OutputColumn> {
        match self {
            Self::Query(plan) => plan.outputs().to_vec(),
            Self::Catalog(answer) => answer.columns.clone(),
            Self::Session(SessionCommand::Show { name }) => vec![OutputColumn {
                name: (*name).to_owned(),
                kind: Kind::Text,
            }],
            Self::Transaction(_) | Self::Session(_) => Vec::new(),
            Self::Table(table) => output(table.columns),
            Self::Command { command, .. } => {
                let columns = match &command.effect {
                    Effect::View(view) => views::find(view).map_or(&[][..], |view| view.columns),
                    Effect::Rows(columns, _) | Effect::Order { columns, .. } => columns,
                };
                output(columns)
            }
        }
    }

    /// Whether it is carried out in a block that has failed.
    pub(super) fn is_exit(&self) -> bool {
        matches!(self, Self::Transaction(command) if command.is_exit())
    }

    /// What cannot stand between BEGIN and COMMIT, by its tag.
    pub(super) fn not_in_block(&self) -> Option<&'static str> {
        match self {
            Self::Command { command, .. } => match &command.effect {
                Effect::Order { order, tag, .. } if !order.is_look() => Some(tag),
                _ => None,
            },
            Self::Session(SessionCommand::DiscardAll) => Some("DISCARD ALL"),
            _ => None,
        }
    }

    /// The types of its parameters.
    pub(super) fn parameters(&self) -> &[Kind] {
        match self {
            Self::Query(plan) => plan.parameters(),
            Self::Catalog(answer) => &answer.parameters,
            Self::Command { .. } | Self::Table(_) | Self::Transaction(_) | Self::Session(_) => &[],
        }
    }
}

fn output(columns: &[Column]) -> Vec<OutputColumn> {
    let column = |column: &Column| OutputColumn {
        name: column.name.to_owned(),
        kind: column.kind,
    };
    columns.iter().map(column).collect()
}
