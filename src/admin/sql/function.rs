//! Functions: those of values, and those over the rows of a group.

use std::cmp::Ordering;

use super::super::relation::{Kind, Value, lossy};
use super::expr::{Expr, Surroundings, is_distinct, number, out_of_range};
use crate::wire::message::ErrorReply;

/// A function of values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scalar {
    Lower,
    Upper,
    Length,
    /// Of an array.
    Cardinality,
    /// The first that is not null.
    Coalesce,
    Absolute,
    Floor,
    Ceiling,
    /// Halves go away from zero; the second argument says how many digits stay behind the point.
    Round,
    /// Seconds since 1970 of a time, or seconds of an interval.
    Epoch,
    Now,
    Version,
    CurrentDatabase,
    CurrentUser,
    CurrentSchema,
    InRecovery,
    /// Of advisory locks, of which there are none.
    UnlockAll,
}

/// Which types a function takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Takes {
    Nothing,
    One(Kind),
    Number,
    /// A number, and perhaps an integer.
    NumberAndDigits,
    TimeOrInterval,
    /// Any, of one type.
    Alike,
}

impl Scalar {
    /// The function of this name, without a schema.
    pub(super) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "lower" => Self::Lower,
            "upper" => Self::Upper,
            "length" | "char_length" => Self::Length,
            "cardinality" => Self::Cardinality,
            "coalesce" => Self::Coalesce,
            "abs" => Self::Absolute,
            "floor" => Self::Floor,
            "ceil" | "ceiling" => Self::Ceiling,
            "round" => Self::Round,
            "now"
            | "current_timestamp"
            | "clock_timestamp"
            | "transaction_timestamp"
            | "statement_timestamp" => Self::Now,
            "version" => Self::Version,
            "current_database" | "current_catalog" => Self::CurrentDatabase,
            "current_user" | "session_user" | "user" | "current_role" => Self::CurrentUser,
            "current_schema" => Self::CurrentSchema,
            "pg_is_in_recovery" => Self::InRecovery,
            "pg_advisory_unlock_all" => Self::UnlockAll,
            _ => return None,
        })
    }

    pub(super) fn takes(self) -> Takes {
        match self {
            Self::Lower | Self::Upper | Self::Length => Takes::One(Kind::Text),
            Self::Cardinality => Takes::One(Kind::TextArray),
            Self::Coalesce => Takes::Alike,
            Self::Absolute | Self::Floor | Self::Ceiling => Takes::Number,
            Self::Round => Takes::NumberAndDigits,
            Self::Epoch => Takes::TimeOrInterval,
            Self::Now
            | Self::Version
            | Self::CurrentDatabase
            | Self::CurrentUser
            | Self::CurrentSchema
            | Self::InRecovery
            | Self::UnlockAll => Takes::Nothing,
        }
    }

    /// The type of its result, by that of its first argument.
    pub(super) fn kind(self, argument: Option<Kind>) -> Kind {
        match self {
            Self::Lower
            | Self::Upper
            | Self::Version
            | Self::CurrentDatabase
            | Self::CurrentUser
            | Self::CurrentSchema
            | Self::UnlockAll => Kind::Text,
            Self::Length | Self::Cardinality => Kind::Int4,
            Self::Coalesce | Self::Absolute => argument.unwrap_or(Kind::Text),
            Self::Floor | Self::Ceiling | Self::Round | Self::Epoch => Kind::Float8,
            Self::Now => Kind::Timestamp,
            Self::InRecovery => Kind::Bool,
        }
    }

    pub(super) fn call(self, arguments: Vec<Value>, about: &Surroundings<'_>) -> Result<Value, ErrorReply> {
        let mut arguments = arguments.into_iter();
        let session = about.session;
        match self {
            Self::Now => return Ok(Value::Timestamp(about.now)),
            Self::Version => return Ok(Value::text(&*session.version)),
            Self::CurrentDatabase => return Ok(Value::text(&*session.database)),
            Self::CurrentUser => return Ok(Value::text(&*session.user)),
            Self::CurrentSchema => return Ok(Value::text("public")),
            Self::InRecovery => return Ok(Value::Bool(false)),
            Self::UnlockAll => return Ok(Value::text("")),
            Self::Coalesce => return Ok(arguments.find(|value| !value.is_null()).unwrap_or(Value::Null)),
            _ => {}
        }
        let first = arguments.next().unwrap_or(Value::Null);
        Ok(match (self, first) {
            (Self::Lower, Value::Text(text)) => Value::Text(text.to_lowercase()),
            (Self::Upper, Value::Text(text)) => Value::Text(text.to_uppercase()),
            (Self::Length, Value::Text(text)) => Value::int(text.chars().count()),
            (Self::Cardinality, Value::TextArray(all)) => Value::int(all.len()),
            (Self::Absolute, Value::Int(number)) => {
                Value::Int(number.checked_abs().ok_or_else(|| out_of_range(Kind::Int8))?)
            }
            (Self::Absolute, Value::Float(number)) => Value::Float(number.abs()),
            (Self::Epoch, Value::Timestamp(micros) | Value::Interval(micros)) => {
                Value::Float(lossy(micros) / 1e6)
            }
            (Self::Round, value) => match (number(&value), arguments.next()) {
                (Some(number), None) => Value::Float(number.round()),
                (Some(number), Some(Value::Int(digits))) => {
                    // More digits than a number of this type has change nothing.
                    let digits = i32::try_from(digits.clamp(-308, 308)).unwrap_or_default();
                    let scale = 10_f64.powi(digits);
                    let scaled = number * scale;
                    Value::Float(if scaled.is_finite() && scale > 0.0 {
                        scaled.round() / scale
                    } else {
                        number
                    })
                }
                _ => Value::Null,
            },
            (Self::Floor, value) => Value::or_null(number(&value), |number| Value::Float(number.floor())),
            (Self::Ceiling, value) => Value::or_null(number(&value), |number| Value::Float(number.ceil())),
            _ => Value::Null,
        })
    }
}

/// A function over the rows of a group.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Aggregate {
    pub(super) function: Grouping,
    pub(super) is_distinct: bool,
    /// `None` for `count(*)`.
    pub(super) argument: Option<Expr>,
    pub(super) filter: Option<Expr>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Grouping {
    Count,
    Sum,
    Average,
    Least,
    Greatest,
    Every,
    Some,
}

impl Grouping {
    pub(super) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "count" => Self::Count,
            "sum" => Self::Sum,
            "avg" => Self::Average,
            "min" => Self::Least,
            "max" => Self::Greatest,
            "bool_and" | "every" => Self::Every,
            "bool_or" => Self::Some,
            _ => return None,
        })
    }

    /// The type of its result; `None`: it does not take this type.
    pub(super) fn kind(self, argument: Kind) -> Option<Kind> {
        match self {
            Self::Count => Some(Kind::Int8),
            Self::Sum if argument.is_integer() => Some(Kind::Int8),
            Self::Sum | Self::Average => argument.is_number().then_some(Kind::Float8),
            Self::Least | Self::Greatest => {
                (!matches!(argument, Kind::Bool | Kind::TextArray)).then_some(argument)
            }
            Self::Every | Self::Some => (argument == Kind::Bool).then_some(Kind::Bool),
        }
    }

    /// Over these values, of which none is null.
    pub(super) fn over(self, mut values: Vec<Value>, is_distinct: bool) -> Result<Value, ErrorReply> {
        if is_distinct {
            distinct(&mut values);
        }
        if self == Self::Count {
            return Ok(Value::int(values.len()));
        }
        let by = |one: &Value, other: &Value| one.compare(other).unwrap_or(Ordering::Equal);
        let Some(first) = values.first() else {
            return Ok(Value::Null);
        };
        Ok(match self {
            Self::Count => Value::int(values.len()),
            Self::Sum if matches!(first, Value::Int(_)) => {
                let whole = values.iter().try_fold(0_i64, |sum, value| match value {
                    Value::Int(number) => sum.checked_add(*number),
                    _ => None,
                });
                Value::Int(whole.ok_or_else(|| out_of_range(Kind::Int8))?)
            }
            Self::Sum => Value::Float(values.iter().filter_map(number).sum()),
            Self::Average => {
                let sum: f64 = values.iter().filter_map(number).sum();
                Value::Float(sum / lossy(i64::try_from(values.len()).unwrap_or(i64::MAX)))
            }
            Self::Least => values.into_iter().min_by(by).unwrap_or(Value::Null),
            Self::Greatest => values.into_iter().max_by(by).unwrap_or(Value::Null),
            Self::Every => Value::Bool(values.iter().all(|value| *value == Value::Bool(true))),
            Self::Some => Value::Bool(values.contains(&Value::Bool(true))),
        })
    }
}

/// Leaves one of those that are equal.
fn distinct(values: &mut Vec<Value>) {
    values.sort_by(|one, other| one.compare(other).unwrap_or(Ordering::Equal));
    values.dedup_by(|one, other| !is_distinct(one, other));
}
