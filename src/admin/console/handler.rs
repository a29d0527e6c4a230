//! pgwire's handlers over the table of commands.

use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::{Sink, stream};
use pgwire::api::portal::{Format, Portal};
use pgwire::api::query::{ExtendedQueryHandler, SimpleQueryHandler};
use pgwire::api::results::{DataRowEncoder, FieldFormat, FieldInfo, QueryResponse, Response, Tag};
use pgwire::api::stmt::QueryParser;
use pgwire::api::store::PortalStore;
use pgwire::api::{ClientInfo, ClientPortalStore, DEFAULT_NAME, Type};
use pgwire::error::{ErrorInfo, PgWireError, PgWireResult};
use pgwire::messages::PgWireBackendMessage;

use super::super::handles::AccessView;
use super::command::{self, Cell, Column, Command, CommandKind, Effect, Row};
use crate::wire::message::ErrorReply;
use crate::wire::sqlstate::SqlState;

#[derive(Debug)]
pub(super) struct Handler {
    access: AccessView,
    parser: Arc<Parser>,
}

/// Finds commands; the only statements there are.
#[derive(Debug)]
pub(super) struct Parser;

impl Handler {
    pub(super) fn new(access: AccessView) -> Self {
        Self {
            access,
            parser: Arc::new(Parser),
        }
    }

    fn run(&self, command: &Command, format: &Format) -> PgWireResult<Response> {
        match &command.effect {
            Effect::Nothing { tag } => Ok(Response::Execution(Tag::new(tag))),
            Effect::Rows(columns, rows) => {
                let fields = Arc::new(fields(columns, format)?);
                let mut encoder = DataRowEncoder::new(Arc::clone(&fields));
                let encoded = rows(&self.access).into_iter().map(move |row| {
                    encode(&mut encoder, &row)?;
                    Ok(encoder.take_row())
                });
                Ok(Response::Query(QueryResponse::new(fields, stream::iter(encoded))))
            }
        }
    }
}

fn encode(encoder: &mut DataRowEncoder, row: &Row) -> PgWireResult<()> {
    for cell in row {
        match cell {
            Cell::Int(number) => {
                encoder.encode_field(&number.map(|number| i32::try_from(number).unwrap_or(i32::MAX)))?;
            }
            Cell::Text(text) => encoder.encode_field(text)?,
            Cell::TextArray(texts) => encoder.encode_field(texts)?,
        }
    }
    Ok(())
}

fn fields(columns: &[Column], format: &Format) -> PgWireResult<Vec<FieldInfo>> {
    // pgwire indexes the list without looking.
    if let Format::Individual(codes) = format
        && codes.len() != columns.len()
    {
        return Err(error(&ErrorReply::error(
            SqlState::PROTOCOL_VIOLATION,
            format!(
                "bind message has {} result formats but query has {} columns",
                codes.len(),
                columns.len()
            ),
        )));
    }
    let field = |(index, (name, kind)): (usize, &Column)| {
        let (datatype, size) = match kind {
            CommandKind::Int => (Type::INT4, 4),
            CommandKind::Text => (Type::TEXT, -1),
            CommandKind::TextArray => (Type::TEXT_ARRAY, -1),
        };
        let format: FieldFormat = format.format_for(index);
        FieldInfo::new((*name).to_owned(), None, None, datatype, format).with_type_size(size)
    };
    Ok(columns.iter().enumerate().map(field).collect())
}

/// pgwire's own errors in PostgreSQL's words and codes, where they differ.
pub(super) fn worded(fault: PgWireError) -> PgWireError {
    let missing = |code, what, name: &str| {
        let name = if name == DEFAULT_NAME { "" } else { name };
        error(&ErrorReply::error(
            code,
            format!("{what} \"{name}\" does not exist"),
        ))
    };
    match fault {
        PgWireError::PortalNotFound(name) => missing(SqlState::INVALID_CURSOR_NAME, "portal", &name),
        PgWireError::StatementNotFound(name) => {
            missing(SqlState::INVALID_SQL_STATEMENT_NAME, "prepared statement", &name)
        }
        other => other,
    }
}

/// As pgwire sends it.
pub(super) fn error(reply: &ErrorReply) -> PgWireError {
    let severity = reply.severity.as_str();
    let mut info = ErrorInfo::new(
        severity.to_owned(),
        reply.code.as_str().to_owned(),
        reply.message.clone(),
    );
    info.severity_nonlocalized = Some(severity.to_owned());
    info.detail.clone_from(&reply.detail);
    info.hint.clone_from(&reply.hint);
    PgWireError::UserError(Box::new(info))
}

#[async_trait]
impl SimpleQueryHandler for Handler {
    async fn do_query<C>(&self, _client: &mut C, query: &str) -> PgWireResult<Vec<Response>>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let response = match command::find(query).map_err(|reply| error(&reply))? {
            Some(command) => self.run(command, &Format::UnifiedText)?,
            None => Response::EmptyQuery,
        };
        Ok(vec![response])
    }
}

#[async_trait]
impl ExtendedQueryHandler for Handler {
    type Statement = &'static Command;
    type QueryParser = Parser;

    fn query_parser(&self) -> Arc<Parser> {
        Arc::clone(&self.parser)
    }

    async fn do_query<C>(
        &self,
        _client: &mut C,
        portal: &Portal<&'static Command>,
        _max_rows: usize,
    ) -> PgWireResult<Response>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = &'static Command>,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        self.run(portal.statement.statement, &portal.result_column_format)
    }
}

#[async_trait]
impl QueryParser for Parser {
    type Statement = &'static Command;

    async fn parse_sql<C>(
        &self,
        _client: &C,
        sql: &str,
        _types: &[Option<Type>],
    ) -> PgWireResult<Option<&'static Command>>
    where
        C: ClientInfo + Unpin + Send + Sync,
    {
        command::find(sql).map_err(|reply| error(&reply))
    }

    fn get_parameter_types(&self, _command: &&'static Command) -> PgWireResult<Vec<Type>> {
        Ok(Vec::new())
    }

    fn get_result_schema(
        &self,
        command: &&'static Command,
        format: Option<&Format>,
    ) -> PgWireResult<Vec<FieldInfo>> {
        match &command.effect {
            Effect::Rows(columns, _) => fields(columns, format.unwrap_or(&Format::UnifiedText)),
            Effect::Nothing { .. } => Ok(Vec::new()),
        }
    }
}
