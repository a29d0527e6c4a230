//! pgwire's handlers over the table of commands.

use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, Sink, SinkExt, stream};
use pgwire::api::portal::{Format, Portal, PortalExecutionState};
use pgwire::api::query::{
    ExtendedQueryHandler, SimpleQueryHandler, send_execution_response, send_query_response,
    send_ready_for_query,
};
use pgwire::api::results::{DataRowEncoder, FieldFormat, FieldInfo, QueryResponse, Response, Tag};
use pgwire::api::stmt::QueryParser;
use pgwire::api::store::PortalStore;
use pgwire::api::{ClientInfo, ClientPortalStore, DEFAULT_NAME, PgWireConnectionState, Type};
use pgwire::error::{ErrorInfo, PgWireError, PgWireResult};
use pgwire::messages::PgWireBackendMessage;
use pgwire::messages::extendedquery::Execute;
use pgwire::messages::response::{EmptyQueryResponse, TransactionStatus};
use pgwire::messages::simplequery::Query;
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use super::super::handles::Handles;
use super::super::operations::Gathered;
use super::super::relation::{self, Kind, Row, Value};
use super::super::sql::{OutputColumn, Plan, Session};
use super::super::views::LimitView;
use super::bound::Room;
use super::command::Effect;
use super::kept::{self, Kept, KeptRoom, SessionRoom};
use super::orders::{Notices, SessionOrders};
use super::settings::{self, SessionCommand};
use super::statement::Statement;
use super::tokens;
use super::transaction::{self, Savepoints};
use super::transfer;
use super::turns::TURNS;
use super::unread;
use super::views::{self, View};
use crate::wire::message::ErrorReply;
use crate::wire::sqlstate::SqlState;

#[derive(Debug)]
pub(super) struct Handler {
    handles: Handles,
    orders: SessionOrders,
    session: Session,
    parser: Arc<Parser>,
    state: Mutex<SessionState>,
}

/// What the requests of a session change.
#[derive(Debug, Default)]
struct SessionState {
    savepoints: Savepoints,
    /// Where the request that is answered now has brought the transaction.
    turned: Option<TransactionStatus>,
    /// Prepared statements that SQL has dropped, and that the conversation still counts.
    dropped: Vec<Dropped>,
}

/// Prepared statements that are dropped by SQL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Dropped {
    One(String),
    All,
}

/// Finds commands, and reads queries; the only statements there are.
#[derive(Debug)]
pub(super) struct Parser {
    room: SessionRoom,
}

impl Parser {
    /// `None` for a text without a statement.
    fn read(&self, sql: &str, declared: Vec<Option<Kind>>) -> Result<Option<Kept>, ErrorReply> {
        let statement = Statement::read(sql, declared)?;
        statement
            .map(|statement| self.room.keep(statement, sql))
            .transpose()
    }
}

impl Handler {
    pub(super) fn new(handles: Handles, orders: SessionOrders, session: Session) -> Self {
        let room = SessionRoom::new(orders.is_operator.clone());
        Self {
            handles,
            orders,
            session,
            parser: Arc::new(Parser { room }),
            state: Mutex::default(),
        }
    }

    /// Those since the last call.
    pub(super) fn take_dropped(&self) -> Vec<Dropped> {
        std::mem::take(&mut self.state().dropped)
    }

    /// # Errors
    /// There is none for what the session wants to keep.
    pub(super) fn room_for(&self, bytes: usize) -> Result<KeptRoom, ErrorReply> {
        self.parser.room.room_for(bytes)
    }

    fn state(&self) -> MutexGuard<'_, SessionState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Carries a statement out. `is_alone`: nothing else is in its query.
    async fn run<C>(
        &self,
        client: &mut C,
        statement: &Statement,
        parameters: Vec<Value>,
        format: &Format,
        is_alone: bool,
    ) -> PgWireResult<Response>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore,
    {
        let status = client.transaction_status();
        if status == TransactionStatus::Error && !statement.is_exit() {
            return Err(error(&transaction::failed()));
        }
        if let Some(command) = statement.not_in_block()
            && (status != TransactionStatus::Idle || !is_alone)
        {
            return Err(error(&transaction::not_in_block(command)));
        }
        let rows = match statement {
            Statement::Transaction(command) => {
                let turned = self.state().savepoints.turn(command, status);
                let turned = turned.map_err(|reply| error(&reply))?;
                if let Some((code, text)) = turned.warning {
                    Reader(client).warning(code, text.to_owned()).await;
                }
                client.set_transaction_status(turned.status);
                self.state().turned = Some(turned.status);
                return Ok(Response::Execution(Tag::new(turned.tag)));
            }
            Statement::Session(command) => match self.keep_to(command, client).await? {
                Ok(tag) => return Ok(Response::Execution(Tag::new(tag))),
                Err(value) => Ok(vec![vec![Value::Text(value)]]),
            },
            Statement::Query(plan) => {
                let view = plan.view().and_then(views::find);
                let query = Some((plan, parameters));
                self.looked_up(view, query, &mut Reader(client)).await
            }
            Statement::Table(table) => self.looked_up(Some(*table), None, &mut Reader(client)).await,
            Statement::Catalog(answer) => Ok(answer.rows.clone()),
            Statement::Command { command, arguments } => match &command.effect {
                Effect::Rows(_, rows) => Ok(rows()),
                Effect::View(view) => self.looked_up(views::find(view), None, &mut Reader(client)).await,
                Effect::Order { order, columns, tag } => {
                    let answer = self
                        .orders
                        .carry_out(*order, arguments, &mut Reader(client))
                        .await;
                    if columns.is_empty() {
                        return answer
                            .map(|_| Response::Execution(Tag::new(tag)))
                            .map_err(|reply| error(&reply));
                    }
                    answer
                }
            },
        };
        rows.and_then(|rows| Ok((unread::room_for(&rows, self.orders.is_operator.holds())?, rows)))
            .map_err(|reply| error(&reply))
            .and_then(|(room, rows)| table(&statement.columns(), format, rows, room))
    }

    /// What drivers send to set a session up, or to make it as new: the tag, or the value of a
    /// setting.
    async fn keep_to<C>(
        &self,
        command: &SessionCommand,
        client: &mut C,
    ) -> PgWireResult<Result<&'static str, String>>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore,
    {
        Ok(Ok(match command {
            SessionCommand::Show { name } => {
                return Ok(Err(settings::value(name, &self.session).unwrap_or_default()));
            }
            SessionCommand::Nothing { tag } => tag,
            SessionCommand::InBlock { command } => {
                if client.transaction_status() == TransactionStatus::Idle {
                    let text = format!("{command} can only be used in transaction blocks");
                    let code = SqlState::NO_ACTIVE_SQL_TRANSACTION;
                    Reader(client).warning(code, text).await;
                }
                "SET"
            }
            SessionCommand::DiscardAll => {
                self.state().dropped.push(Dropped::All);
                "DISCARD ALL"
            }
            SessionCommand::Deallocate(None) => {
                self.state().dropped.push(Dropped::All);
                "DEALLOCATE ALL"
            }
            SessionCommand::Deallocate(Some(name)) => {
                if client.portal_store().get_statement(name).is_none() {
                    return Err(PgWireError::StatementNotFound(name.clone()));
                }
                self.state().dropped.push(Dropped::One(name.clone()));
                "DEALLOCATE"
            }
        }))
    }

    /// The rows of a view, or what a query makes of them; with a notice for each process of this
    /// router that did not answer. The work is done away from the threads that serve sessions.
    async fn looked_up(
        &self,
        view: Option<&'static View>,
        query: Option<(&Arc<Plan>, Vec<Value>)>,
        notices: &mut dyn Notices,
    ) -> Result<Vec<Row>, ErrorReply> {
        let (handles, session, runtime) = (self.handles.clone(), self.session.clone(), Handle::current());
        let query = query.map(|(plan, parameters)| (Arc::clone(plan), parameters));
        // The work ends with the wait for it: it takes the turn of others.
        let ended = CancellationToken::new();
        let _waits = ended.clone().drop_guard();
        let reader = (!self.orders.is_operator.holds()).then(|| self.session.user.clone());
        let work = async move {
            let turn = TURNS.next(reader.as_deref()).await;
            spawn_blocking(move || {
                let seen = match view {
                    Some(view) => runtime.block_on(ended.run_until_cancelled(view.rows(&handles))),
                    None => Some(Gathered::whole(Vec::new())),
                };
                let Gathered { value, missing } = seen.unwrap_or_else(|| Gathered::whole(Vec::new()));
                let rows = match query {
                    Some((plan, parameters)) => {
                        let now = relation::micros(SystemTime::now());
                        // What its regular expressions work with, up to some MiB of each, goes with
                        // the copy: a prepared statement would keep it.
                        let plan = Plan::clone(&plan);
                        plan.run(value, &parameters, &session, now, &ended)
                    }
                    None => Ok(value),
                };
                drop(turn);
                (rows, missing)
            })
            .await
        };
        let worked = self.orders.interrupts.unless_ended(work).await;
        let worked = worked.map_err(|interrupt| interrupt.reply(""))?;
        let Ok((rows, missing)) = worked else {
            return Err(
                ErrorReply::error(SqlState::INTERNAL_ERROR, "the query could not be worked on")
                    .hint("The router's log says why."),
            );
        };
        for process in missing {
            notices
                .notice(format!("the answer is not complete: {process}"))
                .await;
        }
        rows
    }
}

/// What the console's users have of its limits.
pub(in crate::admin) fn limits() -> [LimitView; 4] {
    let [all, readers] = TURNS.limits();
    [all, readers, kept::limit(), unread::limit()]
}

fn table(
    columns: &[OutputColumn],
    format: &Format,
    rows: Vec<Row>,
    room: Room<'static>,
) -> PgWireResult<Response> {
    let fields = Arc::new(fields(columns, format)?);
    let mut encoder = DataRowEncoder::new(Arc::clone(&fields));
    let encoded = rows.into_iter().map(move |row| {
        // Given back with the last row, or with the portal.
        let _room = &room;
        transfer::encode(&mut encoder, &row)?;
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
        self.say("NOTICE", "00000", text)
    }

    fn warning(&mut self, code: SqlState, text: String) -> BoxFuture<'_, ()> {
        self.say("WARNING", code.as_str(), text)
    }
}

impl<C> Reader<'_, C>
where
    C: Sink<PgWireBackendMessage> + Unpin + Send,
{
    fn say(&mut self, severity: &str, code: &str, text: String) -> BoxFuture<'_, ()> {
        let mut info = ErrorInfo::new(severity.to_owned(), code.to_owned(), text);
        info.severity_nonlocalized = Some(severity.to_owned());
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

fn fields(columns: &[OutputColumn], format: &Format) -> PgWireResult<Vec<FieldInfo>> {
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
    let field = |(index, column): (usize, &OutputColumn)| {
        let (datatype, size) = transfer::type_of(column.kind);
        let format: FieldFormat = format.format_for(index);
        FieldInfo::new(column.name.clone(), None, None, datatype, format).with_type_size(size)
    };
    Ok(columns.iter().enumerate().map(field).collect())
}

/// The values that a client has bound.
fn parameters(portal: &Portal<Kept>) -> Result<Vec<Value>, ErrorReply> {
    let kinds = portal.statement.statement.statement.parameters();
    let values = &portal.parameters;
    if values.len() != kinds.len() {
        return Err(ErrorReply::error(
            SqlState::PROTOCOL_VIOLATION,
            format!(
                "bind message supplies {} parameters, but the statement requires {}",
                values.len(),
                kinds.len()
            ),
        ));
    }
    kinds
        .iter()
        .zip(values)
        .enumerate()
        .map(|(index, (kind, value))| {
            let is_binary = transfer::is_binary(&portal.parameter_format, index);
            transfer::parameter(value.as_deref(), *kind, is_binary)
        })
        .collect()
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
    /// All statements of a query are read before the first is carried out.
    async fn on_query<C>(&self, client: &mut C, query: Query) -> PgWireResult<()>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        client.set_state(PgWireConnectionState::QueryInProgress);
        let statements = tokens::statements(&query.query).and_then(|texts| {
            let read = texts.iter().map(|text| self.parser.read(text, Vec::new()));
            let read: Result<Vec<Option<Kept>>, ErrorReply> = read.collect();
            Ok(read?.into_iter().flatten().collect::<Vec<Kept>>())
        });
        let statements = statements.map_err(|reply| error(&reply))?;
        if statements
            .iter()
            .any(|kept| !kept.statement.parameters().is_empty())
        {
            return Err(error(&ErrorReply::error(
                SqlState::UNDEFINED_PARAMETER,
                "there is no parameter $1",
            )));
        }
        if statements.is_empty() {
            let empty = PgWireBackendMessage::EmptyQueryResponse(EmptyQueryResponse::new());
            client.feed(empty).await?;
        }
        let is_alone = statements.len() == 1;
        for Kept { statement, .. } in &statements {
            let response = self
                .run(client, statement, Vec::new(), &Format::UnifiedText, is_alone)
                .await?;
            match response {
                Response::Query(rows) => send_query_response(client, rows, true).await?,
                Response::Execution(tag) => send_execution_response(client, tag).await?,
                // There are no others.
                _ => {}
            }
        }
        client.set_state(PgWireConnectionState::ReadyForQuery);
        let status = client.transaction_status();
        send_ready_for_query(client, status).await
    }

    /// [`Self::on_query`] does everything.
    async fn do_query<C>(&self, _client: &mut C, _query: &str) -> PgWireResult<Vec<Response>>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        Ok(Vec::new())
    }
}

#[async_trait]
impl ExtendedQueryHandler for Handler {
    type Statement = Kept;
    type QueryParser = Parser;

    fn query_parser(&self) -> Arc<Parser> {
        Arc::clone(&self.parser)
    }

    async fn on_execute<C>(&self, client: &mut C, message: Execute) -> PgWireResult<()>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Self::Statement>,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        self.state().turned = None;
        let name = message.name.clone().unwrap_or_else(|| DEFAULT_NAME.to_owned());
        let entry = client.portal_store().get_portal(&name);
        let portal = entry.and_then(|entry| entry.value().cloned());
        // What has no rows is carried out once; pgwire would do so each time.
        let once = portal.filter(|portal| portal.statement.statement.statement.columns().is_empty());
        if let Some(portal) = &once
            && matches!(*portal.state().lock().await, PortalExecutionState::Finished)
        {
            return Err(error(
                &ErrorReply::error(
                    SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
                    format!("portal \"{name}\" cannot be run"),
                )
                .hint("It has been run. Bind it again."),
            ));
        }
        let done = self._on_execute(client, message).await;
        if let (Ok(()), Some(portal)) = (&done, once) {
            *portal.state().lock().await = PortalExecutionState::Finished;
        }
        // pgwire leaves the status as it was before.
        if let Some(status) = self.state().turned.take() {
            client.set_transaction_status(status);
        }
        done
    }

    async fn do_query<C>(
        &self,
        client: &mut C,
        portal: &Portal<Kept>,
        _max_rows: usize,
    ) -> PgWireResult<Response>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Kept>,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let Kept { statement, .. } = &portal.statement.statement;
        let format = &portal.result_column_format;
        let parameters = parameters(portal).map_err(|reply| error(&reply))?;
        // Arrays take more than the texts that they are bound with.
        let size = parameters.iter().map(Value::size).sum::<usize>() / 1024 * 1024;
        let _room = self.room_for(size).map_err(|reply| error(&reply))?;
        self.run(client, statement, parameters, format, true).await
    }
}

#[async_trait]
impl QueryParser for Parser {
    type Statement = Kept;

    async fn parse_sql<C>(&self, client: &C, sql: &str, types: &[Option<Type>]) -> PgWireResult<Option<Kept>>
    where
        C: ClientInfo + Unpin + Send + Sync,
    {
        let declared = types.iter().map(|declared| transfer::declared(declared.as_ref()));
        let read = declared
            .collect::<Result<Vec<Option<Kind>>, _>>()
            .and_then(|declared| {
                if tokens::statements(sql)?.len() > 1 {
                    let text = "cannot insert multiple commands into a prepared statement";
                    return Err(ErrorReply::error(SqlState::SYNTAX_ERROR, text));
                }
                let read = self.read(sql, declared)?;
                let is_refused = read.as_ref().is_some_and(|kept| !kept.statement.is_exit())
                    && client.transaction_status() == TransactionStatus::Error;
                if is_refused {
                    return Err(transaction::failed());
                }
                Ok(read)
            });
        read.map_err(|reply| error(&reply))
    }

    fn get_parameter_types(&self, kept: &Kept) -> PgWireResult<Vec<Type>> {
        let kinds = kept.statement.parameters().iter();
        Ok(kinds.map(|kind| transfer::type_of(*kind).0).collect())
    }

    fn get_result_schema(&self, kept: &Kept, format: Option<&Format>) -> PgWireResult<Vec<FieldInfo>> {
        let columns = kept.statement.columns();
        if columns.is_empty() {
            return Ok(Vec::new());
        }
        fields(&columns, format.unwrap_or(&Format::UnifiedText))
    }
}
