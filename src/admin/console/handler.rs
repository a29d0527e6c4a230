//! pgwire's handlers over the table of commands.

use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, Sink, SinkExt, stream};
use pgwire::api::portal::{Format, Portal};
use pgwire::api::query::{ExtendedQueryHandler, SimpleQueryHandler};
use pgwire::api::results::{DataRowEncoder, FieldFormat, FieldInfo, QueryResponse, Response, Tag};
use pgwire::api::stmt::QueryParser;
use pgwire::api::store::PortalStore;
use pgwire::api::{ClientInfo, ClientPortalStore, DEFAULT_NAME, Type};
use pgwire::error::{ErrorInfo, PgWireError, PgWireResult};
use pgwire::messages::PgWireBackendMessage;

use super::super::handles::AccessView;
use super::command::{self, Cell, Column, CommandKind, Effect, Row, Statement};
use super::orders::{Notices, SessionOrders};
use crate::wire::message::ErrorReply;
use crate::wire::sqlstate::SqlState;

#[derive(Debug)]
pub(super) struct Handler {
    access: AccessView,
    orders: SessionOrders,
    parser: Arc<Parser>,
}

/// Finds commands; the only statements there are.
#[derive(Debug)]
pub(super) struct Parser;

impl Handler {
    pub(super) fn new(access: AccessView, orders: SessionOrders) -> Self {
        Self {
            access,
            orders,
            parser: Arc::new(Parser),
        }
    }

    async fn run(
        &self,
        statement: &Statement,
        format: &Format,
        notices: &mut dyn Notices,
    ) -> PgWireResult<Response> {
        match &statement.command.effect {
            Effect::Nothing { tag } => Ok(Response::Execution(Tag::new(tag))),
            Effect::Rows(columns, rows) => table(columns, format, rows(&self.access)),
            Effect::Order { order, columns, tag } => {
                let name = statement.name.as_deref();
                let answer = self.orders.carry_out(*order, name, notices).await;
                let rows = answer.map_err(|reply| error(&reply))?;
                if columns.is_empty() {
                    return Ok(Response::Execution(Tag::new(tag)));
                }
                table(columns, format, rows)
            }
        }
    }
}

fn table(columns: &[Column], format: &Format, rows: Vec<Row>) -> PgWireResult<Response> {
    let fields = Arc::new(fields(columns, format)?);
    let mut encoder = DataRowEncoder::new(Arc::clone(&fields));
    let encoded = rows.into_iter().map(move |row| {
        encode(&mut encoder, &row)?;
        Ok(encoder.take_row())
    });
    Ok(Response::Query(QueryResponse::new(fields, stream::iter(encoded))))
}

/// The client of an order, to whom notices are sent.
struct Reader<'a, C>(&'a mut C);

impl<C> Notices for Reader<'_, C>
where
    C: Sink<PgWireBackendMessage> + Unpin + Send,
{
    fn notice(&mut self, text: String) -> BoxFuture<'_, ()> {
        let info = ErrorInfo::new("NOTICE".to_owned(), "00000".to_owned(), text);
        async move {
            // A client that is gone is noticed at the next answer.
            let _ = self
                .0
                .send(PgWireBackendMessage::NoticeResponse(info.into()))
                .await;
        }
        .boxed()
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
    async fn do_query<C>(&self, client: &mut C, query: &str) -> PgWireResult<Vec<Response>>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let response = match command::find(query).map_err(|reply| error(&reply))? {
            Some(statement) => {
                self.run(&statement, &Format::UnifiedText, &mut Reader(client))
                    .await?
            }
            None => Response::EmptyQuery,
        };
        Ok(vec![response])
    }
}

#[async_trait]
impl ExtendedQueryHandler for Handler {
    type Statement = Statement;
    type QueryParser = Parser;

    fn query_parser(&self) -> Arc<Parser> {
        Arc::clone(&self.parser)
    }

    async fn do_query<C>(
        &self,
        client: &mut C,
        portal: &Portal<Statement>,
        _max_rows: usize,
    ) -> PgWireResult<Response>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Statement>,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let (statement, format) = (&portal.statement.statement, &portal.result_column_format);
        self.run(statement, format, &mut Reader(client)).await
    }
}

#[async_trait]
impl QueryParser for Parser {
    type Statement = Statement;

    async fn parse_sql<C>(
        &self,
        _client: &C,
        sql: &str,
        _types: &[Option<Type>],
    ) -> PgWireResult<Option<Statement>>
    where
        C: ClientInfo + Unpin + Send + Sync,
    {
        command::find(sql).map_err(|reply| error(&reply))
    }

    fn get_parameter_types(&self, _statement: &Statement) -> PgWireResult<Vec<Type>> {
        Ok(Vec::new())
    }

    fn get_result_schema(
        &self,
        statement: &Statement,
        format: Option<&Format>,
    ) -> PgWireResult<Vec<FieldInfo>> {
        match &statement.command.effect {
            Effect::Nothing { .. } | Effect::Order { columns: [], .. } => Ok(Vec::new()),
            Effect::Rows(columns, _) | Effect::Order { columns, .. } => {
                fields(columns, format.unwrap_or(&Format::UnifiedText))
            }
        }
    }
}
