//! Expressions as sqlparser reads them, with names resolved and types checked.

mod calls;
mod operators;

use std::fmt;

use sqlparser::ast::{
    self, CaseWhen, CastKind, CeilFloorKind, DataType, DateTimeField, Ident, InTarget, Interval, TypedString,
    UnaryOperator,
};

pub(super) use calls::function_name;

use super::super::relation::{Column, Kind, Value};
use super::expr::{Arithmetic, Comparison, Expr, can_convert};
use super::function::Scalar;
use super::literal;
use crate::wire::message::ErrorReply;
use crate::wire::sqlstate::SqlState;
use operators::wider;

/// How deep expressions may be, where a row of AND, of OR or of arithmetic is one expression. A
/// stack of 2 MiB holds more, also without optimization.
const MAX_DEPTH: u32 = 40;
pub(crate) const MAX_PARAMETERS: usize = 100;
/// What a query may become: an expression counts as one, and what it holds beside. What `BETWEEN`
/// and `CASE` compare is there more than once, and in each other that doubles with each level. Ten
/// thousand words stay below it.
const MAX_SIZE: usize = 20_000;
/// Bytes of a text that count as one expression.
const TEXT_PER_SIZE: usize = 32;

/// An expression with its type; `None` for a literal in quotes, `NULL`, and a parameter whose type
/// nothing says yet.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Typed {
    pub(super) expr: Expr,
    pub(super) kind: Option<Kind>,
}

impl Typed {
    fn new(expr: Expr, kind: Kind) -> Self {
        Self {
            expr,
            kind: Some(kind),
        }
    }

    fn boolean(expr: Expr) -> Self {
        Self::new(expr, Kind::Bool)
    }

    fn kind_name(&self) -> &'static str {
        self.kind.map_or("unknown", Kind::name)
    }
}

type Planned = Result<Typed, ErrorReply>;

/// Resolves the expressions of one query.
pub(super) struct Planner {
    /// The view's name, or its alias.
    pub(super) view: Option<String>,
    pub(super) columns: &'static [Column],
    /// As far as they are known.
    pub(super) parameters: Vec<Option<Kind>>,
    /// The clause that is read, if it may not have aggregates.
    pub(super) without_aggregates: Option<&'static str>,
    depth: u32,
    /// Of everything that was planned.
    size: usize,
}

impl Planner {
    pub(super) fn new(
        view: Option<String>,
        columns: &'static [Column],
        parameters: Vec<Option<Kind>>,
    ) -> Self {
        Self {
            view,
            columns,
            parameters,
            without_aggregates: None,
            depth: 0,
            size: 0,
        }
    }

    pub(super) fn expr(&mut self, expr: &ast::Expr) -> Planned {
        if self.depth == MAX_DEPTH {
            return Err(ErrorReply::error(
                SqlState::STATEMENT_TOO_COMPLEX,
                format!("an expression of this query is deeper than {MAX_DEPTH}, the console's limit"),
            )
            .hint("Use fewer casts and comparisons one behind the other."));
        }
        self.grow(1)?;
        self.depth += 1;
        let planned = self.planned(expr);
        self.depth -= 1;
        planned
    }

    fn grow(&mut self, by: usize) -> Result<(), ErrorReply> {
        self.size = self.size.saturating_add(by);
        if self.size <= MAX_SIZE {
            return Ok(());
        }
        Err(ErrorReply::error(
            SqlState::STATEMENT_TOO_COMPLEX,
            format!("this query becomes more than {MAX_SIZE} expressions, the console's limit"),
        )
        .hint(
            "What BETWEEN compares counts twice, what CASE compares once for each WHEN, and long texts and regular \
             expressions by their length: use shorter ones.",
        ))
    }

    fn planned(&mut self, expr: &ast::Expr) -> Planned {
        use ast::Expr as Read;
        match expr {
            Read::Nested(inner) => self.expr(inner),
            Read::Identifier(name) => self.column(std::slice::from_ref(name)),
            Read::CompoundIdentifier(names) => self.column(names),
            Read::Value(value) => self.value(&value.value),
            Read::UnaryOp { op, expr } => self.unary(*op, expr),
            Read::BinaryOp { left, op, right } => self.binary(left, op, right),
            Read::IsNull(inner) => Ok(Typed::boolean(Expr::IsNull(self.any(inner)?.into()))),
            Read::IsNotNull(inner) => Ok(not(Expr::IsNull(self.any(inner)?.into()))),
            Read::IsTrue(inner) => self.is(inner, true),
            Read::IsNotTrue(inner) => Ok(not(self.is(inner, true)?.expr)),
            Read::IsFalse(inner) => self.is(inner, false),
            Read::IsNotFalse(inner) => Ok(not(self.is(inner, false)?.expr)),
            Read::IsUnknown(inner) => Ok(Typed::boolean(Expr::IsNull(self.condition(inner)?.into()))),
            Read::IsNotUnknown(inner) => Ok(not(Expr::IsNull(self.condition(inner)?.into()))),
            Read::IsDistinctFrom(one, other) => {
                let (one, other) = self.pair(one, other, "=")?;
                Ok(Typed::boolean(Expr::IsDistinct(one.into(), other.into())))
            }
            Read::IsNotDistinctFrom(one, other) => {
                let (one, other) = self.pair(one, other, "=")?;
                Ok(not(Expr::IsDistinct(one.into(), other.into())))
            }
            Read::In {
                expr,
                target: InTarget::List(list),
                negated,
                global: false,
            } if !list.is_empty() => Ok(negate(*negated, self.one_of(expr, list)?)),
            Read::Between {
                expr,
                negated,
                low,
                high,
            } => {
                let least = self.compare(expr, Comparison::GreaterOrEqual, low)?;
                let most = self.compare(expr, Comparison::LessOrEqual, high)?;
                Ok(negate(*negated, Expr::And(vec![least, most])))
            }
            Read::Like {
                negated,
                any: false,
                expr,
                pattern,
                escape_char: None,
            } => Ok(negate(*negated, self.like(expr, pattern, false)?)),
            Read::ILike {
                negated,
                any: false,
                expr,
                pattern,
                escape_char: None,
            } => Ok(negate(*negated, self.like(expr, pattern, true)?)),
            Read::AnyOp {
                left,
                compare_op,
                right,
                is_some: _,
            } => self.any_of(left, compare_op, right),
            Read::Cast {
                kind: CastKind::Cast | CastKind::DoubleColon,
                expr,
                data_type,
                format: None,
            } => {
                let inner = self.expr(expr)?;
                let kind = kind_of(data_type)?;
                self.convert(inner, kind)
            }
            Read::TypedString(TypedString {
                data_type,
                value,
                uses_odbc_syntax: false,
            }) => {
                let inner = self.value(&value.value)?;
                let kind = kind_of(data_type)?;
                self.convert(inner, kind)
            }
            Read::Interval(Interval {
                value,
                leading_field: None,
                leading_precision: None,
                last_field: None,
                fractional_seconds_precision: None,
            }) => {
                let inner = self.expr(value)?;
                self.convert(inner, Kind::Interval)
            }
            Read::Extract {
                field: DateTimeField::Epoch,
                expr,
                ..
            } => self.call(Scalar::Epoch, "extract", &[expr]),
            Read::Floor {
                expr,
                field: CeilFloorKind::DateTimeField(DateTimeField::NoDateTime),
            } => self.call(Scalar::Floor, "floor", &[expr]),
            Read::Ceil {
                expr,
                field: CeilFloorKind::DateTimeField(DateTimeField::NoDateTime),
            } => self.call(Scalar::Ceiling, "ceil", &[expr]),
            Read::Function(function) => self.function(function),
            Read::Case {
                operand,
                conditions,
                else_result,
                ..
            } => self.case(operand.as_deref(), conditions, else_result.as_deref()),
            _ => Err(match excerpt(expr) {
                Some(text) => unsupported(&format!("this expression: {text}")),
                None => unsupported("an expression of this query"),
            }),
        }
    }

    fn column(&mut self, names: &[Ident]) -> Planned {
        let (view, name) = match names {
            [name] => (None, name),
            [view, name] => (Some(folded(view)), name),
            _ => return Err(unsupported("a name of more than two parts")),
        };
        if let Some(view) = &view
            && self.view.as_ref() != Some(view)
        {
            return Err(ErrorReply::error(
                SqlState::UNDEFINED_TABLE,
                format!("missing FROM-clause entry for table \"{view}\""),
            ));
        }
        let is_bare = names.len() == 1 && name.quote_style.is_none();
        let name = folded(name);
        let found = self.columns.iter().position(|column| column.name == name);
        // The parser knows the others of its kind as calls.
        if found.is_none() && is_bare && name == "current_role" {
            return self.call(Scalar::CurrentUser, &name, &[]);
        }
        let Some(index) = found else {
            let reply = ErrorReply::error(
                SqlState::UNDEFINED_COLUMN,
                format!("column \"{name}\" does not exist"),
            );
            let quotes = format!("A text stands in single quotes: '{}'.", name.replace('\'', "''"));
            return Err(match &self.view {
                Some(view) if !self.columns.is_empty() => {
                    let names: Vec<&str> = self.columns.iter().map(|column| column.name).collect();
                    reply.hint(format!("{quotes} {view} has: {}.", names.join(", ")))
                }
                Some(_) => reply,
                None => reply.hint(format!("{quotes} The query has no FROM: \\d lists the views.")),
            });
        };
        Ok(Typed::new(Expr::Column(index), self.columns[index].kind))
    }

    fn value(&mut self, value: &ast::Value) -> Planned {
        let unknown = |value| {
            Ok(Typed {
                expr: Expr::Constant(value),
                kind: None,
            })
        };
        match value {
            ast::Value::Null => unknown(Value::Null),
            ast::Value::Boolean(is) => Ok(Typed::boolean(Expr::Constant(Value::Bool(*is)))),
            ast::Value::SingleQuotedString(text) | ast::Value::EscapedStringLiteral(text) => {
                self.grow(text.len() / TEXT_PER_SIZE)?;
                unknown(Value::text(text))
            }
            ast::Value::DollarQuotedString(text) => {
                self.grow(text.value.len() / TEXT_PER_SIZE)?;
                unknown(Value::text(&text.value))
            }
            ast::Value::Number(digits, false) => numeral("", digits),
            ast::Value::Placeholder(name) => {
                let number = name.strip_prefix('$').and_then(|number| number.parse().ok());
                let Some(number @ 1..=MAX_PARAMETERS) = number else {
                    return Err(ErrorReply::error(
                        SqlState::UNDEFINED_PARAMETER,
                        format!("there is no parameter {name}"),
                    ));
                };
                if self.parameters.len() < number {
                    self.parameters.resize(number, None);
                }
                Ok(Typed {
                    expr: Expr::Parameter(number - 1),
                    kind: self.parameters[number - 1],
                })
            }
            _ => Err(unsupported("this form of a literal")),
        }
    }

    fn unary(&mut self, op: UnaryOperator, expr: &ast::Expr) -> Planned {
        match op {
            UnaryOperator::Not => Ok(not(self.condition(expr)?)),
            UnaryOperator::Plus => {
                let inner = self.expr(expr)?;
                number(inner, "+")
            }
            UnaryOperator::Minus => {
                // The least integer's digits alone are none.
                if let ast::Expr::Value(value) = expr
                    && let ast::Value::Number(digits, false) = &value.value
                {
                    return numeral("-", digits);
                }
                let inner = self.expr(expr)?;
                let Typed { expr, kind } = number(inner, "-")?;
                let kind = kind.unwrap_or(Kind::Float8);
                let zero = Expr::Constant(match kind {
                    // Not 0, whose difference with 0 would lose the sign.
                    Kind::Float8 => Value::Float(-0.0),
                    _ => Value::Int(0),
                });
                let negated = zero.computed_with(Arithmetic::Subtract, kind, expr);
                Ok(Typed::new(negated, kind))
            }
            _ => Err(unsupported(&format!("the operator {op}"))),
        }
    }

    /// What has no type yet gets this one.
    pub(super) fn settle(&mut self, typed: Typed, kind: Kind) -> Planned {
        if typed.kind.is_some() {
            return Ok(typed);
        }
        let expr = match typed.expr {
            Expr::Constant(Value::Text(text)) => Expr::Constant(literal::read(&text, kind)?),
            Expr::Parameter(index) => {
                match self.parameters.get_mut(index) {
                    Some(Some(known)) if *known != kind => {
                        return Err(ErrorReply::error(
                            SqlState::AMBIGUOUS_PARAMETER,
                            format!("inconsistent types deduced for parameter ${}", index + 1),
                        )
                        .detail(format!("{} versus {}", known.name(), kind.name())));
                    }
                    Some(known) => *known = Some(kind),
                    None => {}
                }
                Expr::Parameter(index)
            }
            // NULL, and what is made of nothing else.
            other => other,
        };
        Ok(Typed::new(expr, kind))
    }

    fn convert(&mut self, inner: Typed, kind: Kind) -> Planned {
        let Some(from) = inner.kind else {
            return self.settle(inner, kind);
        };
        if !can_convert(from, kind) {
            return Err(ErrorReply::error(
                SqlState::CANNOT_COERCE,
                format!("cannot cast type {} to {}", from.name(), kind.name()),
            ));
        }
        let expr = if from == kind {
            inner.expr
        } else {
            Expr::Convert(kind, inner.expr.into())
        };
        Ok(Typed::new(expr, kind))
    }

    /// Of any type.
    fn any(&mut self, expr: &ast::Expr) -> Result<Expr, ErrorReply> {
        let inner = self.expr(expr)?;
        self.settle(inner, Kind::Text).map(|typed| typed.expr)
    }

    pub(super) fn condition(&mut self, expr: &ast::Expr) -> Result<Expr, ErrorReply> {
        let inner = self.expr(expr)?;
        let inner = self.settle(inner, Kind::Bool)?;
        if inner.kind != Some(Kind::Bool) {
            return Err(ErrorReply::error(
                SqlState::DATATYPE_MISMATCH,
                format!("a condition must be type boolean, not type {}", inner.kind_name()),
            ));
        }
        Ok(inner.expr)
    }

    fn is(&mut self, expr: &ast::Expr, wanted: bool) -> Planned {
        Ok(Typed::boolean(Expr::Is(wanted, self.condition(expr)?.into())))
    }

    fn case(
        &mut self,
        operand: Option<&ast::Expr>,
        conditions: &[CaseWhen],
        otherwise: Option<&ast::Expr>,
    ) -> Planned {
        let mut whens = Vec::new();
        let mut thens = Vec::new();
        for CaseWhen { condition, result } in conditions {
            whens.push(match operand {
                Some(operand) => self.compare(operand, Comparison::Equal, condition)?,
                None => self.condition(condition)?,
            });
            thens.push(self.expr(result)?);
        }
        thens.push(match otherwise {
            Some(otherwise) => self.expr(otherwise)?,
            None => self.value(&ast::Value::Null)?,
        });
        let (mut thens, kind) = self.of_one_kind(thens, "CASE")?;
        let otherwise = thens.pop().unwrap_or(Expr::Constant(Value::Null));
        let branches = whens.into_iter().zip(thens).collect();
        Ok(Typed::new(Expr::Case(branches, otherwise.into()), kind))
    }

    /// With one type for all.
    fn of_one_kind(&mut self, all: Vec<Typed>, what: &str) -> Result<(Vec<Expr>, Kind), ErrorReply> {
        let mut kind: Option<Kind> = None;
        for known in all.iter().filter_map(|one| one.kind) {
            kind = Some(match kind {
                None => known,
                Some(kind) if kind == known => kind,
                Some(kind) if kind.is_number() && known.is_number() => wider(kind, known),
                Some(kind) => {
                    return Err(ErrorReply::error(
                        SqlState::DATATYPE_MISMATCH,
                        format!(
                            "{what} types {} and {} cannot be matched",
                            kind.name(),
                            known.name()
                        ),
                    ));
                }
            });
        }
        let kind = kind.unwrap_or(Kind::Text);
        let converted = all
            .into_iter()
            .map(|one| self.convert(one, kind).map(|one| one.expr))
            .collect::<Result<_, _>>()?;
        Ok((converted, kind))
    }
}

/// A number of the least type that holds its digits.
fn numeral(sign: &str, digits: &str) -> Planned {
    let kind = if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        Kind::Float8
    } else if digits.parse::<i32>().is_ok() {
        Kind::Int4
    } else {
        Kind::Int8
    };
    let value = literal::read(&format!("{sign}{digits}"), kind)?;
    Ok(Typed::new(Expr::Constant(value), kind))
}

fn not(expr: Expr) -> Typed {
    Typed::boolean(Expr::Not(expr.into()))
}

fn negate(is_negated: bool, expr: Expr) -> Typed {
    if is_negated {
        not(expr)
    } else {
        Typed::boolean(expr)
    }
}

fn number(inner: Typed, sign: &str) -> Planned {
    match inner.kind {
        Some(kind) if kind.is_number() => Ok(inner),
        _ => Err(ErrorReply::error(
            SqlState::UNDEFINED_FUNCTION,
            format!("operator does not exist: {sign} {}", inner.kind_name()),
        )),
    }
}

/// The types of casts, as PostgreSQL and the standard name them.
pub(super) fn kind_of(data_type: &DataType) -> Result<Kind, ErrorReply> {
    let name = excerpt(data_type).unwrap_or_else(|| "of this form".to_owned());
    let name = name.to_ascii_lowercase();
    let name = name.strip_prefix("pg_catalog.").unwrap_or(&name);
    Ok(match name {
        "bool" | "boolean" => Kind::Bool,
        "int" | "integer" | "int4" => Kind::Int4,
        "bigint" | "int8" => Kind::Int8,
        "double precision" | "double" | "float8" | "float" => Kind::Float8,
        "text" | "varchar" | "character varying" => Kind::Text,
        "text[]" | "varchar[]" => Kind::TextArray,
        "timestamptz" | "timestamp with time zone" => Kind::Timestamp,
        "interval" => Kind::Interval,
        other => {
            return Err(unsupported(&format!("the type {other}")).hint(
                "The console has boolean, integer, bigint, double precision, text, text[], timestamptz and interval.",
            ));
        }
    })
}

/// As PostgreSQL reads it: small letters, unless it stands in double quotes.
pub(super) fn folded(name: &Ident) -> String {
    match name.quote_style {
        None => name.value.to_ascii_lowercase(),
        Some(_) => name.value.clone(),
    }
}

/// The beginning of its text, for a message; `None` for what is large. To write it takes much
/// stack for each level, and a row of operators has as many levels as operators.
pub(super) fn excerpt(part: &(impl fmt::Display + fmt::Debug)) -> Option<String> {
    /// Room for so many bytes.
    struct Room(usize);

    impl fmt::Write for Room {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            self.0 = self.0.checked_sub(text.len()).ok_or(fmt::Error)?;
            Ok(())
        }
    }

    // Unlike its text, this begins with the uppermost level, and ends as soon as there is no room.
    fmt::write(&mut Room(1000), format_args!("{part:?}")).ok()?;
    Some(part.to_string().chars().take(60).collect())
}

/// A text where a name is expected, which the parser lets through.
///
/// # Errors
/// It is one.
pub(super) fn is_no_text(name: &Ident) -> Result<(), ErrorReply> {
    if name.quote_style == Some('\'') {
        Err(text_for_name(&name.value))
    } else {
        Ok(())
    }
}

/// A text in single quotes stands where a name is expected.
pub(super) fn text_for_name(text: &str) -> ErrorReply {
    ErrorReply::error(
        SqlState::SYNTAX_ERROR,
        format!("'{text}' is a text, and a name is expected"),
    )
    .hint(format!("Names stand in double quotes, or in none: \"{text}\"."))
}

/// What the console does not read.
pub(super) fn unsupported(what: &str) -> ErrorReply {
    ErrorReply::error(
        SqlState::FEATURE_NOT_SUPPORTED,
        format!("the console does not understand {what}"),
    )
    .hint(
        "It reads SELECT … FROM one view, with WHERE, GROUP BY, HAVING, ORDER BY, LIMIT and OFFSET. \\d lists the \
         views, SHOW HELP the commands.",
    )
}
