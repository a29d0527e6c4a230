//! Queries: from a client's text to a [`Plan`].

use sqlparser::ast::{
    self, Distinct, LimitClause, Offset, OrderBy, OrderByExpr, OrderByKind, OrderByOptions, OrderBySort,
    Query, Select, SelectItem, SetExpr, Statement, TableAlias, TableFactor, TableWithJoins,
    WildcardAdditionalOptions,
};
use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::parser::{Parser, ParserError};

use super::super::relation::{Column, Kind, Value};
use super::expr::Expr;
use super::grouping::group_keys;
use super::plan::{Plan, SortBy, SortKey};
use super::planner::{
    Planner, Typed, excerpt, folded, function_name, is_no_text, text_for_name, unsupported,
};
use super::shape;
use super::{Catalog, OutputColumn};
use crate::wire::message::ErrorReply;
use crate::wire::sqlstate::SqlState;

/// What the parser calls itself for beside [`shape::MAX_NESTING`]: the statement, the query, the
/// expression itself, and the word in the middle.
const AROUND: usize = 4;
/// Columns of an answer, and keys of ORDER BY and GROUP BY.
const MAX_OUTPUTS: usize = 200;

impl Plan {
    /// Reads a query. `declared` are types of parameters, as far as the client says them.
    ///
    /// # Errors
    /// The query is wrong, or more than the console reads.
    pub(crate) fn of(
        text: &str,
        catalog: Catalog<'_>,
        declared: Vec<Option<Kind>>,
    ) -> Result<Self, ErrorReply> {
        let query = read(text)?;
        let (select, order) = only_select(&query)?;
        let (view, alias, columns) = from(&select.from, catalog)?;
        let mut planner = Planner::new(alias, columns, declared);

        planner.without_aggregates = Some("WHERE");
        let filter = select.selection.as_ref();
        let filter = filter.map(|filter| planner.condition(filter)).transpose()?;
        planner.without_aggregates = None;

        let outputs = Outputs::of(&mut planner, select)?;
        planner.without_aggregates = Some("GROUP BY");
        let keys = group_keys(&mut planner, &select.group_by, &outputs)?;
        planner.without_aggregates = None;
        let having = select.having.as_ref();
        let having = having.map(|having| planner.condition(having)).transpose()?;
        let is_distinct = matches!(select.distinct, Some(Distinct::Distinct));
        let order = sort_keys(&mut planner, order, &outputs, is_distinct)?;
        planner.without_aggregates = Some("LIMIT");
        let (limit, offset) = limits(&mut planner, query.limit_clause.as_ref())?;

        let parameters = planner.parameters.iter().enumerate().map(|(index, kind)| {
            kind.ok_or_else(|| {
                ErrorReply::error(
                    SqlState::INDETERMINATE_DATATYPE,
                    format!("could not determine data type of parameter ${}", index + 1),
                )
            })
        });
        let mut plan = Self {
            view,
            parameters: parameters.collect::<Result<_, _>>()?,
            filter,
            grouping: None,
            values: outputs.values,
            outputs: outputs.columns,
            is_distinct,
            order,
            limit,
            offset,
        };
        plan.group(keys, having, columns)?;
        Ok(plan)
    }
}

/// One statement that is a query, of limited size.
fn read(text: &str) -> Result<Query, ErrorReply> {
    let tokens = shape::tokens(text)?;
    let mut statements = Parser::new(&PostgreSqlDialect {})
        .with_recursion_limit(AROUND + shape::MAX_NESTING)
        .with_tokens_with_locations(tokens)
        .parse_statements()
        .map_err(|fault| unreadable(&fault))?
        .into_iter();
    match (statements.next(), statements.next()) {
        (Some(Statement::Query(query)), None) => Ok(*query),
        (_, Some(_)) => Err(unsupported("several commands in one query")),
        _ => Err(unsupported("this command")),
    }
}

/// The parser's error in PostgreSQL's words.
fn unreadable(fault: &ParserError) -> ErrorReply {
    if *fault == ParserError::RecursionLimitExceeded {
        return shape::too_nested();
    }
    let text = fault.to_string();
    let what = text.strip_prefix("sql parser error: ").unwrap_or(&text);
    let reply = ErrorReply::error(SqlState::SYNTAX_ERROR, format!("syntax error: {what}"));
    if what.contains("found: '") {
        return reply.hint("Names stand in double quotes, or in none; texts in single quotes.");
    }
    reply
}

/// What is left when everything that is read here is taken away: nothing.
fn only_select(query: &Query) -> Result<(&Select, &[OrderByExpr]), ErrorReply> {
    let Query {
        with: None,
        body,
        order_by,
        limit_clause: _,
        fetch: None,
        locks,
        for_clause: None,
        settings: None,
        format_clause: None,
        pipe_operators,
    } = query
    else {
        return Err(unsupported("WITH, FETCH, and what else stands around SELECT"));
    };
    if !locks.is_empty() || !pipe_operators.is_empty() {
        return Err(unsupported("FOR UPDATE and the like"));
    }
    let SetExpr::Select(select) = &**body else {
        return Err(unsupported("UNION, VALUES and queries in parentheses"));
    };
    let order: &[OrderByExpr] = match order_by {
        None => &[],
        Some(OrderBy {
            kind: OrderByKind::Expressions(order),
            interpolate: None,
        }) => order,
        Some(_) => return Err(unsupported("this form of ORDER BY")),
    };
    let Select {
        select_token: _,
        optimizer_hints,
        distinct: None | Some(Distinct::Distinct | Distinct::All),
        select_modifiers: None,
        top: None,
        top_before_distinct: _,
        projection: _,
        exclude: None,
        into: None,
        from: _,
        lateral_views,
        prewhere: None,
        selection: _,
        connect_by,
        group_by: _,
        cluster_by,
        distribute_by,
        sort_by,
        having: _,
        named_window,
        qualify: None,
        window_before_qualify: _,
        value_table_mode: None,
        flavor: ast::SelectFlavor::Standard,
    } = &**select
    else {
        return Err(unsupported("this form of SELECT"));
    };
    let is_bare = optimizer_hints.is_empty()
        && lateral_views.is_empty()
        && connect_by.is_empty()
        && cluster_by.is_empty()
        && distribute_by.is_empty()
        && sort_by.is_empty()
        && named_window.is_empty();
    if is_bare {
        Ok((select, order))
    } else {
        Err(unsupported("this form of SELECT"))
    }
}

type From = (Option<String>, Option<String>, &'static [Column]);

/// The view, the name by which its columns are meant, and the columns.
fn from(tables: &[TableWithJoins], catalog: Catalog<'_>) -> Result<From, ErrorReply> {
    let table = match tables {
        [] => return Ok((None, None, &[])),
        [TableWithJoins { relation, joins }] if joins.is_empty() => relation,
        _ => return Err(unsupported("more than one view in FROM")),
    };
    let TableFactor::Table {
        name,
        alias,
        args: None,
        with_hints,
        version: None,
        with_ordinality: false,
        partitions,
        json_path: None,
        sample: None,
        index_directives,
        inheritance: None,
    } = table
    else {
        return Err(unsupported("what stands in FROM"));
    };
    if !(with_hints.is_empty() && partitions.is_empty() && index_directives.is_empty()) {
        return Err(unsupported("what stands in FROM"));
    }
    let parts: Option<Vec<String>> = name.0.iter().map(|part| part.as_ident().map(folded)).collect();
    for part in name.0.iter().filter_map(|part| part.as_ident()) {
        is_no_text(part)?;
    }
    let view = match parts.as_deref() {
        Some([view]) => view.clone(),
        Some([schema, view]) if is_schema_of(schema, view) => view.clone(),
        _ => return Err(no_view(&name.to_string())),
    };
    let columns = catalog(&view).ok_or_else(|| {
        // The plural, as all views with many rows have it.
        let plural = format!("{view}s");
        match catalog(&plural) {
            Some(_) => no_view(&view).hint(format!("Did you mean {plural}? \\d lists the views.")),
            None => no_view(&view),
        }
    })?;
    let alias = match alias {
        None => view.clone(),
        Some(TableAlias {
            explicit: _,
            name,
            columns,
            at: None,
        }) if columns.is_empty() => {
            is_no_text(name)?;
            folded(name)
        }
        Some(_) => return Err(unsupported("new names for the columns of a view")),
    };
    Ok((Some(view), Some(alias), columns))
}

/// The views of PostgreSQL's own name are where PostgreSQL has them.
fn is_schema_of(schema: &str, view: &str) -> bool {
    schema
        == if view.starts_with("pg_") {
            "pg_catalog"
        } else {
            "public"
        }
}

fn no_view(name: &str) -> ErrorReply {
    ErrorReply::error(
        SqlState::UNDEFINED_TABLE,
        format!("relation \"{name}\" does not exist"),
    )
    .hint(match THEIRS.iter().find(|(theirs, _)| *theirs == name) {
        Some((_, ours)) => format!("The console has {ours} for it. \\d lists the views."),
        None => "\\d lists the views.".to_owned(),
    })
}

/// PostgreSQL's views that tools and people ask for, and the console's that are nearest.
const THEIRS: &[(&str, &str)] = &[
    ("pg_stat_activity", "sessions"),
    ("pg_stat_database", "stats"),
    ("pg_stat_replication", "members"),
    ("pg_stat_ssl", "sessions"),
    ("pg_settings", "config"),
    ("pg_file_settings", "config"),
];

/// What stands between SELECT and FROM.
pub(super) struct Outputs {
    pub(super) columns: Vec<OutputColumn>,
    pub(super) values: Vec<Expr>,
}

impl Outputs {
    fn of(planner: &mut Planner, select: &Select) -> Result<Self, ErrorReply> {
        let mut all = Self {
            columns: Vec::new(),
            values: Vec::new(),
        };
        for item in &select.projection {
            match item {
                SelectItem::UnnamedExpr(expr) => {
                    let typed = planner.expr(expr)?;
                    all.push(planner, name_of(expr), typed)?;
                }
                SelectItem::ExprWithAlias { expr, alias } => {
                    is_no_text(alias)?;
                    let typed = planner.expr(expr)?;
                    all.push(planner, folded(alias), typed)?;
                }
                SelectItem::Wildcard(options) if is_bare(options) && planner.view.is_some() => {
                    all.every_column(planner)?;
                }
                SelectItem::QualifiedWildcard(
                    ast::SelectItemQualifiedWildcardKind::ObjectName(name),
                    options,
                ) if is_bare(options) && name.0.len() == 1 => {
                    let name = name.0[0].as_ident().map(folded);
                    if name.is_none() || name != planner.view {
                        return Err(ErrorReply::error(
                            SqlState::UNDEFINED_TABLE,
                            format!(
                                "missing FROM-clause entry for table \"{}\"",
                                name.unwrap_or_default()
                            ),
                        ));
                    }
                    all.every_column(planner)?;
                }
                SelectItem::Wildcard(_) if planner.view.is_none() => {
                    return Err(ErrorReply::error(
                        SqlState::SYNTAX_ERROR,
                        "SELECT * with no tables specified is not valid",
                    ));
                }
                _ => {
                    let what = excerpt(item).unwrap_or_else(|| "something".to_owned());
                    return Err(unsupported(&format!("{what} between SELECT and FROM")));
                }
            }
        }
        Ok(all)
    }

    fn push(&mut self, planner: &mut Planner, name: String, typed: Typed) -> Result<(), ErrorReply> {
        let typed = planner.settle(typed, Kind::Text)?;
        let kind = typed.kind.unwrap_or(Kind::Text);
        if kind == Kind::Interval {
            return Err(unsupported("an interval in its answer")
                .hint("extract(epoch from …) gives its seconds as a number."));
        }
        if self.values.len() == MAX_OUTPUTS {
            return Err(ErrorReply::error(
                SqlState::STATEMENT_TOO_COMPLEX,
                format!("a query of the console has at most {MAX_OUTPUTS} columns"),
            ));
        }
        self.columns.push(OutputColumn { name, kind });
        self.values.push(typed.expr);
        Ok(())
    }

    fn every_column(&mut self, planner: &mut Planner) -> Result<(), ErrorReply> {
        for (index, column) in planner.columns.iter().enumerate() {
            let typed = Typed {
                expr: Expr::Column(index),
                kind: Some(column.kind),
            };
            self.push(planner, column.name.to_owned(), typed)?;
        }
        Ok(())
    }

    /// The place of the only column of this name, if there is one.
    pub(super) fn named(&self, name: &str) -> Result<Option<usize>, ErrorReply> {
        let mut found = (0..self.columns.len()).filter(|index| self.columns[*index].name == name);
        let first = found.next();
        match (first, found.next()) {
            (Some(first), Some(second)) if self.values[first] != self.values[second] => {
                Err(ErrorReply::error(
                    SqlState::AMBIGUOUS_COLUMN,
                    format!("ORDER BY \"{name}\" is ambiguous"),
                ))
            }
            (first, _) => Ok(first),
        }
    }

    /// The place that a number in ORDER BY or GROUP BY means.
    pub(super) fn position(&self, expr: &ast::Expr, clause: &str) -> Result<Option<usize>, ErrorReply> {
        let ast::Expr::Value(value) = expr else {
            return Ok(None);
        };
        match &value.value {
            ast::Value::Number(digits, false) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                let place = digits
                    .parse::<usize>()
                    .ok()
                    .and_then(|place| place.checked_sub(1));
                place
                    .filter(|place| *place < self.values.len())
                    .map(Some)
                    .ok_or_else(|| {
                        ErrorReply::error(
                            SqlState::INVALID_COLUMN_REFERENCE,
                            format!("{clause} position {digits} is not in select list"),
                        )
                    })
            }
            ast::Value::Placeholder(_) => Ok(None),
            ast::Value::SingleQuotedString(text) => Err(text_for_name(text)),
            _ => Err(ErrorReply::error(
                SqlState::SYNTAX_ERROR,
                format!("non-integer constant in {clause}"),
            )),
        }
    }
}

fn is_bare(options: &WildcardAdditionalOptions) -> bool {
    let WildcardAdditionalOptions {
        wildcard_token: _,
        opt_ilike,
        opt_exclude,
        opt_except,
        opt_replace,
        opt_rename,
        opt_alias,
    } = options;
    opt_ilike.is_none()
        && opt_exclude.is_none()
        && opt_except.is_none()
        && opt_replace.is_none()
        && opt_rename.is_none()
        && opt_alias.is_none()
}

/// As PostgreSQL names a column without a name of its own.
fn name_of(expr: &ast::Expr) -> String {
    match expr {
        ast::Expr::Nested(inner) => name_of(inner),
        ast::Expr::Identifier(name) => folded(name),
        ast::Expr::CompoundIdentifier(names) => names.last().map(folded).unwrap_or_default(),
        ast::Expr::Function(function) => {
            function_name(&function.name).unwrap_or_else(|_| "?column?".to_owned())
        }
        ast::Expr::Cast { expr, data_type, .. } => match name_of(expr).as_str() {
            "?column?" => super::planner::kind_of(data_type)
                .map_or_else(|_| "?column?".to_owned(), |kind| kind.short_name().to_owned()),
            name => name.to_owned(),
        },
        ast::Expr::TypedString(typed) => super::planner::kind_of(&typed.data_type)
            .map_or_else(|_| "?column?".to_owned(), |kind| kind.short_name().to_owned()),
        ast::Expr::Interval(_) => "interval".to_owned(),
        ast::Expr::Extract { .. } => "extract".to_owned(),
        ast::Expr::Floor { .. } => "floor".to_owned(),
        ast::Expr::Ceil { .. } => "ceil".to_owned(),
        ast::Expr::Case { else_result, .. } => match else_result.as_deref().map(name_of) {
            Some(name) if name != "?column?" => name,
            _ => "case".to_owned(),
        },
        ast::Expr::Value(value) if matches!(value.value, ast::Value::Boolean(_)) => "bool".to_owned(),
        _ => "?column?".to_owned(),
    }
}

/// # Errors
/// There are more keys than a query may have.
pub(super) fn at_most_keys(count: usize, clause: &str) -> Result<(), ErrorReply> {
    if count <= MAX_OUTPUTS {
        return Ok(());
    }
    Err(ErrorReply::error(
        SqlState::STATEMENT_TOO_COMPLEX,
        format!("{clause} of the console has at most {MAX_OUTPUTS} keys"),
    ))
}

fn sort_keys(
    planner: &mut Planner,
    order: &[OrderByExpr],
    outputs: &Outputs,
    is_distinct: bool,
) -> Result<Vec<SortKey>, ErrorReply> {
    at_most_keys(order.len(), "ORDER BY")?;
    let mut keys = Vec::with_capacity(order.len());
    for OrderByExpr {
        expr,
        options: OrderByOptions { sort, nulls_first },
        with_fill,
    } in order
    {
        if with_fill.is_some() {
            return Err(unsupported("this form of ORDER BY"));
        }
        let is_descending = match sort {
            None | Some(OrderBySort::Asc) => false,
            Some(OrderBySort::Desc) => true,
            Some(OrderBySort::Using(_)) => return Err(unsupported("ORDER BY … USING")),
        };
        let mut place = outputs.position(expr, "ORDER BY")?;
        if place.is_none()
            && let ast::Expr::Identifier(name) = expr
        {
            place = outputs.named(&folded(name))?;
        }
        let by = if let Some(place) = place {
            SortBy::Output(place)
        } else {
            let typed = planner.expr(expr)?;
            let expr = planner.settle(typed, Kind::Text)?.expr;
            match outputs.values.iter().position(|value| *value == expr) {
                Some(place) => SortBy::Output(place),
                None if is_distinct => {
                    return Err(ErrorReply::error(
                        SqlState::INVALID_COLUMN_REFERENCE,
                        "for SELECT DISTINCT, ORDER BY expressions must appear in select list",
                    ));
                }
                None => SortBy::Value(expr),
            }
        };
        keys.push(SortKey {
            by,
            is_descending,
            nulls_first: nulls_first.unwrap_or(is_descending),
        });
    }
    Ok(keys)
}

fn limits(
    planner: &mut Planner,
    clause: Option<&LimitClause>,
) -> Result<(Option<Expr>, Option<Expr>), ErrorReply> {
    let (limit, offset) = match clause {
        None => return Ok((None, None)),
        Some(LimitClause::LimitOffset {
            limit,
            offset,
            limit_by,
        }) if limit_by.is_empty() => {
            let offset = offset.as_ref().map(|Offset { value, rows: _ }| value);
            (limit.as_ref(), offset)
        }
        Some(_) => return Err(unsupported("this form of LIMIT")),
    };
    // They stand for the whole of the answer: no column is theirs.
    let columns = std::mem::take(&mut planner.columns);
    let mut one = |expr: Option<&ast::Expr>, clause: &str| {
        let Some(expr) = expr else { return Ok(None) };
        let typed = planner.expr(expr)?;
        let typed = planner.settle(typed, Kind::Int8)?;
        match (&typed.expr, typed.kind) {
            (_, Some(kind)) if kind.is_integer() => Ok(Some(typed.expr)),
            (Expr::Constant(Value::Null), _) => Ok(None),
            _ => Err(ErrorReply::error(
                SqlState::DATATYPE_MISMATCH,
                format!("argument of {clause} must be a whole number"),
            )),
        }
    };
    let both = (one(limit, "LIMIT")?, one(offset, "OFFSET")?);
    planner.columns = columns;
    Ok(both)
}
