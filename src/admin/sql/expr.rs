//! Expressions over the values of a row, with types, and what they come to.

use std::cell::Cell;
use std::cmp::Ordering;

use tokio_util::sync::CancellationToken;

use super::super::relation::{Kind, Row, Value, lossy};
use super::function::{Aggregate, Scalar};
use super::literal;
use crate::auth::hba::regex::Pattern;
use crate::wire::message::ErrorReply;
use crate::wire::sqlstate::SqlState;

/// An expression. Its operands have the types that its operator takes: the planner sees to it.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Expr {
    /// The value of a row at this place.
    Column(usize),
    Constant(Value),
    /// From 0.
    Parameter(usize),
    /// Over the rows of a group; it stands in no expression that is evaluated.
    Aggregate(Box<Aggregate>),
    Not(Box<Self>),
    And(Vec<Self>),
    Or(Vec<Self>),
    Compare(Comparison, Box<Self>, Box<Self>),
    /// From left to right, with the type of each result.
    Compute(Box<Self>, Vec<(Arithmetic, Kind, Self)>),
    IsNull(Box<Self>),
    /// `IS TRUE`, `IS FALSE`: whether it is this, and nothing for unknown.
    Is(bool, Box<Self>),
    IsDistinct(Box<Self>, Box<Self>),
    /// Equal to one of them.
    In(Box<Self>, Vec<Self>),
    /// A comparison with one of an array's elements.
    Any(Comparison, Box<Self>, Box<Self>),
    Like {
        text: Box<Self>,
        pattern: Box<Self>,
        ignores_case: bool,
    },
    Matches {
        text: Box<Self>,
        pattern: Pattern,
    },
    Convert(Kind, Box<Self>),
    Call(Scalar, Vec<Self>),
    /// The conditions with what they lead to, and what no condition leads to.
    Case(Vec<(Self, Self)>, Box<Self>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl Comparison {
    fn holds(self, order: Ordering) -> bool {
        match self {
            Self::Equal => order.is_eq(),
            Self::NotEqual => order.is_ne(),
            Self::Less => order.is_lt(),
            Self::LessOrEqual => order.is_le(),
            Self::Greater => order.is_gt(),
            Self::GreaterOrEqual => order.is_ge(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arithmetic {
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
    /// Of texts.
    Join,
}

/// What is the same for all rows of a query.
#[derive(Debug)]
pub(super) struct Surroundings<'a> {
    pub(super) parameters: &'a [Value],
    pub(super) session: &'a super::Session,
    /// Microseconds since 1970.
    pub(super) now: i64,
    /// Bytes that the values of the answer, of keys and of aggregates may still take.
    pub(super) room: Cell<usize>,
    /// Steps that the query's expressions may still take.
    pub(super) steps: Cell<usize>,
    /// Cancelled when nobody waits for the answer any more.
    pub(super) ended: &'a CancellationToken,
}

impl Surroundings<'_> {
    /// # Errors
    /// The query has taken as many steps as it may, or nobody waits for its answer any more.
    pub(super) fn step(&self, count: usize) -> Result<(), ErrorReply> {
        let before = self.steps.get();
        let left = before.checked_sub(count).ok_or_else(|| {
            ErrorReply::error(
                SqlState::PROGRAM_LIMIT_EXCEEDED,
                "the query takes too much work for the console",
            )
            .hint("Ask for fewer rows, or use shorter texts and patterns.")
        })?;
        self.steps.set(left);
        if before / LOOK != left / LOOK && self.ended.is_cancelled() {
            // Whoever has ended it says so to the client.
            let text = "canceling statement due to user request";
            return Err(ErrorReply::error(SqlState::QUERY_CANCELED, text));
        }
        Ok(())
    }

    /// Counts the work for a value of a row of operators.
    ///
    /// # Errors
    /// It is a text that is too long, or the work is too much.
    fn made(&self, value: &Value) -> Result<(), ErrorReply> {
        if value.size() > MOST_TEXT {
            return Err(ErrorReply::error(
                SqlState::PROGRAM_LIMIT_EXCEEDED,
                format!(
                    "a text that the query makes is longer than {} MiB",
                    MOST_TEXT >> 20
                ),
            ));
        }
        self.step(1 + value.size() / 16)
    }

    /// Makes room for a value that is kept.
    ///
    /// # Errors
    /// There is none left.
    pub(super) fn kept(&self, value: Value) -> Result<Value, ErrorReply> {
        let left = self.room.get().checked_sub(value.size()).ok_or_else(|| {
            ErrorReply::error(
                SqlState::PROGRAM_LIMIT_EXCEEDED,
                format!("the query needs more than {} MiB", MOST_KEPT >> 20),
            )
            .hint("Ask for fewer columns or rows.")
        })?;
        self.room.set(left);
        Ok(value)
    }
}

/// Bytes that a query may take beside the rows of its view.
pub(super) const MOST_KEPT: usize = 32 << 20;
/// Of a query: less than a second. An expression takes one for each part and row, and one for 16
/// bytes of its text; `LIKE` one for each letter it compares, a regular expression one for two that
/// it may have to.
pub(super) const MOST_STEPS: usize = 50_000_000;
/// Steps between two looks at whether somebody waits for the answer.
const LOOK: usize = 10_000;
/// Bytes of a text that operators make of others.
const MOST_TEXT: usize = 1 << 20;

impl Expr {
    /// # Errors
    /// As PostgreSQL: a division by zero, a number out of range, a text that is no value of the
    /// type it is converted to.
    pub(super) fn value(&self, row: &Row, about: &Surroundings<'_>) -> Result<Value, ErrorReply> {
        let value = self.worked_out(row, about)?;
        about.step(1 + value.size() / 16)?;
        Ok(value)
    }

    fn worked_out(&self, row: &Row, about: &Surroundings<'_>) -> Result<Value, ErrorReply> {
        let of = |expr: &Self| expr.value(row, about);
        Ok(match self {
            Self::Column(index) => row.get(*index).cloned().unwrap_or(Value::Null),
            Self::Constant(value) => value.clone(),
            Self::Parameter(index) => about.parameters.get(*index).cloned().unwrap_or(Value::Null),
            Self::Aggregate(_) => Value::Null,
            Self::Not(inner) => from_truth(truth(&of(inner)?).map(|is| !is)),
            Self::And(all) => from_truth(joined(all, false, row, about)?),
            Self::Or(all) => from_truth(joined(all, true, row, about)?),
            Self::Compare(comparison, one, other) => {
                let order = of(one)?.compare(&of(other)?);
                from_truth(order.map(|order| comparison.holds(order)))
            }
            Self::Compute(first, rest) => {
                let mut made = of(first)?;
                for (operation, kind, other) in rest {
                    made = compute(*operation, *kind, &made, &of(other)?)?;
                    about.made(&made)?;
                }
                made
            }
            Self::IsNull(inner) => Value::Bool(of(inner)?.is_null()),
            Self::Is(wanted, inner) => Value::Bool(truth(&of(inner)?) == Some(*wanted)),
            Self::IsDistinct(one, other) => Value::Bool(is_distinct(&of(one)?, &of(other)?)),
            Self::In(wanted, list) => {
                let wanted = of(wanted)?;
                let mut is_known = true;
                for one in list {
                    match wanted.compare(&of(one)?) {
                        Some(Ordering::Equal) => return Ok(Value::Bool(true)),
                        Some(_) => {}
                        None => is_known = false,
                    }
                }
                from_truth(is_known.then_some(false))
            }
            Self::Any(comparison, one, array) => match (of(one)?, of(array)?) {
                (Value::Text(one), Value::TextArray(all)) => Value::Bool(
                    all.iter()
                        .any(|other| comparison.holds(one.as_bytes().cmp(other.as_bytes()))),
                ),
                (Value::Null, Value::TextArray(all)) if all.is_empty() => Value::Bool(false),
                _ => Value::Null,
            },
            Self::Like {
                text,
                pattern,
                ignores_case,
            } => match (of(text)?, of(pattern)?) {
                (Value::Text(text), Value::Text(pattern)) if *ignores_case => {
                    Value::Bool(is_like(&text.to_lowercase(), &pattern.to_lowercase(), about)?)
                }
                (Value::Text(text), Value::Text(pattern)) => Value::Bool(is_like(&text, &pattern, about)?),
                _ => Value::Null,
            },
            Self::Matches { text, pattern } => match of(text)? {
                Value::Text(text) => {
                    about.step(text.len().saturating_mul(pattern.steps()) / 2)?;
                    Value::Bool(pattern.is_match(text.as_bytes()))
                }
                _ => Value::Null,
            },
            Self::Convert(kind, inner) => convert(of(inner)?, *kind)?,
            Self::Call(function, arguments) => {
                let values = arguments.iter().map(of).collect::<Result<Vec<_>, _>>()?;
                function.call(values, about)?
            }
            Self::Case(branches, otherwise) => {
                for (condition, then) in branches {
                    if truth(&of(condition)?) == Some(true) {
                        return of(then);
                    }
                }
                of(otherwise)?
            }
        })
    }

    /// With an operator behind it and what that takes, of a type.
    pub(super) fn computed_with(self, operation: Arithmetic, kind: Kind, other: Self) -> Self {
        let (first, mut rest) = match self {
            Self::Compute(first, rest) => (first, rest),
            first => (first.into(), Vec::new()),
        };
        rest.push((operation, kind, other));
        Self::Compute(first, rest)
    }

    /// Those directly below it.
    pub(super) fn operands_mut(&mut self) -> Vec<&mut Self> {
        match self {
            Self::Column(_) | Self::Constant(_) | Self::Parameter(_) | Self::Aggregate(_) => Vec::new(),
            Self::Not(inner)
            | Self::IsNull(inner)
            | Self::Is(_, inner)
            | Self::Convert(_, inner)
            | Self::Matches { text: inner, .. } => vec![inner],
            Self::And(all) | Self::Or(all) => all.iter_mut().collect(),
            Self::Compute(first, rest) => {
                let rest = rest.iter_mut().map(|(_, _, other)| other);
                std::iter::once(&mut **first).chain(rest).collect()
            }
            Self::Compare(_, one, other)
            | Self::IsDistinct(one, other)
            | Self::Any(_, one, other)
            | Self::Like {
                text: one,
                pattern: other,
                ..
            } => vec![one, other],
            Self::In(wanted, list) => std::iter::once(&mut **wanted).chain(list).collect(),
            Self::Call(_, arguments) => arguments.iter_mut().collect(),
            Self::Case(branches, otherwise) => branches
                .iter_mut()
                .flat_map(|(condition, then)| [condition, then])
                .chain([&mut **otherwise])
                .collect(),
        }
    }
}

/// Of conditions in a row, of which `decides` decides. Those behind it are not looked at.
fn joined(
    all: &[Expr],
    decides: bool,
    row: &Row,
    about: &Surroundings<'_>,
) -> Result<Option<bool>, ErrorReply> {
    let mut is_known = true;
    for one in all {
        match truth(&one.value(row, about)?) {
            Some(is) if is == decides => return Ok(Some(decides)),
            Some(_) => {}
            None => is_known = false,
        }
    }
    Ok(is_known.then_some(!decides))
}

pub(super) fn truth(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(is) => Some(*is),
        _ => None,
    }
}

fn from_truth(is: Option<bool>) -> Value {
    Value::or_null(is, Value::Bool)
}

pub(super) fn is_distinct(one: &Value, other: &Value) -> bool {
    match (one.is_null(), other.is_null()) {
        (true, true) => false,
        (false, false) => one.compare(other) != Some(Ordering::Equal),
        _ => true,
    }
}

fn compute(operation: Arithmetic, kind: Kind, one: &Value, other: &Value) -> Result<Value, ErrorReply> {
    Ok(match (one, other) {
        (Value::Null, _) | (_, Value::Null) => Value::Null,
        (Value::Int(one), Value::Int(other)) => integer(whole(operation, *one, *other)?, kind)?,
        (Value::Text(one), Value::Text(other)) => Value::Text(format!("{one}{other}")),
        (Value::Timestamp(one), Value::Timestamp(other)) => Value::Interval(one.saturating_sub(*other)),
        (Value::Timestamp(at), Value::Interval(by)) | (Value::Interval(by), Value::Timestamp(at)) => {
            let at = match operation {
                Arithmetic::Subtract => at.checked_sub(*by),
                _ => at.checked_add(*by),
            };
            Value::Timestamp(at.ok_or_else(|| out_of_range(Kind::Timestamp))?)
        }
        (one, other) => match (number(one), number(other)) {
            (Some(one), Some(other)) => Value::Float(floating(operation, one, other)?),
            _ => Value::Null,
        },
    })
}

/// `None` beyond 64 bits.
fn whole(operation: Arithmetic, one: i64, other: i64) -> Result<Option<i64>, ErrorReply> {
    Ok(match operation {
        Arithmetic::Add => one.checked_add(other),
        Arithmetic::Subtract => one.checked_sub(other),
        Arithmetic::Multiply => one.checked_mul(other),
        Arithmetic::Divide | Arithmetic::Remainder if other == 0 => return Err(by_zero()),
        Arithmetic::Divide => one.checked_div(other),
        // With -1, where the quotient does not fit.
        Arithmetic::Remainder => Some(one.checked_rem(other).unwrap_or(0)),
        Arithmetic::Join => None,
    })
}

fn integer(number: Option<i64>, kind: Kind) -> Result<Value, ErrorReply> {
    number
        .filter(|number| kind != Kind::Int4 || i32::try_from(*number).is_ok())
        .map(Value::Int)
        .ok_or_else(|| out_of_range(kind))
}

fn floating(operation: Arithmetic, one: f64, other: f64) -> Result<f64, ErrorReply> {
    let result = match operation {
        Arithmetic::Add => one + other,
        Arithmetic::Subtract => one - other,
        Arithmetic::Multiply => one * other,
        Arithmetic::Divide | Arithmetic::Remainder if other == 0.0 => return Err(by_zero()),
        Arithmetic::Divide => one / other,
        Arithmetic::Remainder => one % other,
        Arithmetic::Join => f64::NAN,
    };
    if result.is_infinite() && one.is_finite() && other.is_finite() {
        return Err(ErrorReply::error(
            SqlState::NUMERIC_VALUE_OUT_OF_RANGE,
            "value out of range: overflow",
        ));
    }
    Ok(result)
}

pub(super) fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Int(number) => Some(lossy(*number)),
        Value::Float(number) => Some(*number),
        _ => None,
    }
}

pub(super) fn out_of_range(kind: Kind) -> ErrorReply {
    let what = match kind {
        Kind::Timestamp => "timestamp",
        kind => kind.name(),
    };
    ErrorReply::error(
        SqlState::NUMERIC_VALUE_OUT_OF_RANGE,
        format!("{what} out of range"),
    )
}

fn by_zero() -> ErrorReply {
    ErrorReply::error(SqlState::DIVISION_BY_ZERO, "division by zero")
}

/// As a cast does it, for the pairs that [`can_convert`] lets through.
pub(super) fn convert(value: Value, kind: Kind) -> Result<Value, ErrorReply> {
    Ok(match (value, kind) {
        (Value::Null, _) => Value::Null,
        (Value::Text(text), kind) => literal::read(&text, kind)?,
        // Unlike in an answer, where a letter stands for it.
        (Value::Bool(is), Kind::Text) => Value::text(is.to_string()),
        (value, Kind::Text) => Value::Text(value.to_text()),
        (Value::Int(number), Kind::Float8) => Value::Float(lossy(number)),
        (Value::Int(number), Kind::Bool) => Value::Bool(number != 0),
        (Value::Int(number), kind) => integer(Some(number), kind)?,
        (Value::Bool(is), Kind::Int4) => Value::Int(is.into()),
        (Value::Float(number), kind @ (Kind::Int4 | Kind::Int8)) => {
            integer(to_integer(number.round_ties_even()), kind)?
        }
        (value, _) => value,
    })
}

pub(super) fn can_convert(from: Kind, to: Kind) -> bool {
    match (from, to) {
        (Kind::Interval, _) | (_, Kind::Interval) => from == to || from == Kind::Text,
        (Kind::Text, _) | (_, Kind::Text) | (Kind::Int4, Kind::Bool) | (Kind::Bool, Kind::Int4) => true,
        (from, to) => from == to || (from.is_number() && to.is_number()),
    }
}

/// `None` for what no integer of 64 bits is.
fn to_integer(number: f64) -> Option<i64> {
    // Both bounds are exact; the upper one is the first that does not fit.
    let fits = (-9_223_372_036_854_775_808.0..9_223_372_036_854_775_808.0).contains(&number);
    #[expect(clippy::cast_possible_truncation, reason = "it fits")]
    let number = number as i64;
    fits.then_some(number)
}

/// `LIKE` with the escape `\`: in a time that grows with the product of both lengths at most, and
/// within the query's `steps`.
fn is_like(text: &str, pattern: &str, about: &Surroundings<'_>) -> Result<bool, ErrorReply> {
    enum Part {
        One,
        Many,
        Same(char),
    }
    let mut parts = Vec::new();
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        parts.push(match c {
            '%' => Part::Many,
            '_' => Part::One,
            '\\' => Part::Same(chars.next().ok_or_else(|| {
                ErrorReply::error(
                    SqlState::INVALID_ESCAPE_SEQUENCE,
                    "LIKE pattern must not end with escape character",
                )
            })?),
            c => Part::Same(c),
        });
    }
    let text: Vec<char> = text.chars().collect();
    about.step(text.len() + parts.len())?;
    let (mut at, mut part) = (0, 0);
    // Where the last `%` stands, and how far it reaches so far.
    let mut back: Option<(usize, usize)> = None;
    while at < text.len() {
        about.step(1)?;
        match parts.get(part) {
            Some(Part::Many) => {
                back = Some((part, at));
                part += 1;
            }
            Some(Part::One) => (at, part) = (at + 1, part + 1),
            Some(Part::Same(c)) if *c == text[at] => (at, part) = (at + 1, part + 1),
            _ => match &mut back {
                Some((many, reach)) => {
                    *reach += 1;
                    (at, part) = (*reach, *many + 1);
                }
                None => return Ok(false),
            },
        }
    }
    Ok(parts[part..].iter().all(|part| matches!(part, Part::Many)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn about<'a>(
        session: &'a super::super::Session,
        steps: usize,
        ended: &'a CancellationToken,
    ) -> Surroundings<'a> {
        Surroundings {
            parameters: &[],
            session,
            now: 0,
            room: Cell::new(MOST_KEPT),
            steps: Cell::new(steps),
            ended,
        }
    }

    #[test]
    fn like_reads_wildcards_and_escapes() {
        let session = super::super::Session {
            user: String::new(),
            database: String::new(),
            version: String::new(),
        };
        let ended = CancellationToken::new();
        for (text, pattern, is) in [
            ("", "", true),
            ("", "%", true),
            ("a", "", false),
            ("node1", "node_", true),
            ("node1", "n%1", true),
            ("node12", "n%1", false),
            ("aXbXc", "%X%", true),
            ("abab", "%ab", true),
            ("é1", "_1", true),
            ("100%", "100\\%", true),
            ("1000", "100\\%", false),
            ("aaaa", "%a%a%b", false),
        ] {
            assert_eq!(
                is_like(text, pattern, &about(&session, 100, &ended)).unwrap(),
                is,
                "{text} {pattern}"
            );
        }
        let about = about(&session, 1000, &ended);
        assert_eq!(is_like("a", "a\\", &about).unwrap_err().code, "22025");
        // What would take the product of both lengths.
        let (text, pattern) = ("a".repeat(100), format!("%{}b", "a".repeat(50)));
        assert_eq!(is_like(&text, &pattern, &about).unwrap_err().code, "54000");
    }

    #[test]
    fn what_no_integer_is_becomes_none() {
        for (number, is) in [
            (1.5, Some(1)),
            (-9_223_372_036_854_775_808.0, Some(i64::MIN)),
            (9_223_372_036_854_775_808.0, None),
            (f64::NAN, None),
            (f64::INFINITY, None),
        ] {
            assert_eq!(to_integer(number), is);
        }
    }
}
