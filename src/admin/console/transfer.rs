//! Values as they go over the wire, in text and in binary, and the types that clients name.

use bytes::BytesMut;
use pgwire::api::Type;
use pgwire::api::results::{DataRowEncoder, FieldFormat};
use pgwire::error::PgWireResult;
use pgwire::types::ToSqlText;
use pgwire::types::format::FormatOptions;
use postgres_types::{FromSql, IsNull, ToSql};

use super::super::relation::{Kind, Row, Value};
use super::super::sql;
use crate::wire::message::ErrorReply;
use crate::wire::sqlstate::SqlState;

type Fault = Box<dyn std::error::Error + Sync + Send>;

/// Microseconds from 1970 to 2000, from which PostgreSQL counts.
const POSTGRES_EPOCH: i64 = 946_684_800_000_000;

/// PostgreSQL's type for a column.
pub(super) fn type_of(kind: Kind) -> (Type, i16) {
    match kind {
        Kind::Bool => (Type::BOOL, 1),
        Kind::Int4 => (Type::INT4, 4),
        Kind::Int8 => (Type::INT8, 8),
        Kind::Numeric => (Type::NUMERIC, -1),
        Kind::Float8 => (Type::FLOAT8, 8),
        Kind::Text => (Type::TEXT, -1),
        Kind::TextArray => (Type::TEXT_ARRAY, -1),
        Kind::Timestamp => (Type::TIMESTAMPTZ, 8),
        Kind::Interval => (Type::INTERVAL, 16),
    }
}

/// The type that a client declares for a parameter; `None` where it leaves it open.
///
/// # Errors
/// The console has no such type.
pub(super) fn declared(declared: Option<&Type>) -> Result<Option<Kind>, ErrorReply> {
    let Some(declared) = declared else {
        return Ok(None);
    };
    Ok(Some(match *declared {
        Type::UNKNOWN => return Ok(None),
        Type::BOOL => Kind::Bool,
        Type::INT2 | Type::INT4 => Kind::Int4,
        Type::INT8 => Kind::Int8,
        Type::FLOAT4 | Type::FLOAT8 => Kind::Float8,
        Type::TEXT | Type::VARCHAR | Type::NAME | Type::BPCHAR => Kind::Text,
        Type::TEXT_ARRAY | Type::VARCHAR_ARRAY => Kind::TextArray,
        Type::TIMESTAMPTZ | Type::TIMESTAMP => Kind::Timestamp,
        _ => {
            return Err(ErrorReply::error(
                SqlState::FEATURE_NOT_SUPPORTED,
                format!("the console has no parameters of type {declared}"),
            )
            .hint("It has boolean, integer, bigint, double precision, text, text[] and timestamptz."));
        }
    }))
}

/// A parameter's value; `None` is null.
///
/// # Errors
/// It is no value of its type.
pub(super) fn parameter(bytes: Option<&[u8]>, kind: Kind, is_binary: bool) -> Result<Value, ErrorReply> {
    let Some(bytes) = bytes else {
        return Ok(Value::Null);
    };
    let text = |bytes| {
        str::from_utf8(bytes).map_err(|_| {
            ErrorReply::error(
                SqlState::CHARACTER_NOT_IN_REPERTOIRE,
                "a parameter is no UTF-8 text",
            )
        })
    };
    if !is_binary {
        return sql::read_literal(text(bytes)?, kind);
    }
    // By its length, as clients may declare a smaller type than the one that is compared.
    let value = match (kind, bytes) {
        (Kind::Bool, [byte]) => Some(Value::Bool(*byte != 0)),
        (Kind::Int4 | Kind::Int8, &[a, b]) => Some(Value::Int(i16::from_be_bytes([a, b]).into())),
        (Kind::Int4 | Kind::Int8, &[a, b, c, d]) => Some(Value::Int(i32::from_be_bytes([a, b, c, d]).into())),
        (Kind::Int8, bytes) => bytes
            .try_into()
            .ok()
            .map(|bytes| Value::Int(i64::from_be_bytes(bytes))),
        (Kind::Float8, &[a, b, c, d]) => Some(Value::Float(f32::from_be_bytes([a, b, c, d]).into())),
        (Kind::Float8, bytes) => bytes
            .try_into()
            .ok()
            .map(|bytes| Value::Float(f64::from_be_bytes(bytes))),
        (Kind::Timestamp, bytes) => bytes
            .try_into()
            .ok()
            .and_then(|bytes| i64::from_be_bytes(bytes).checked_add(POSTGRES_EPOCH))
            .map(Value::Timestamp),
        (Kind::Text, bytes) => Some(Value::text(text(bytes)?)),
        (Kind::TextArray, bytes) => Vec::<String>::from_sql(&Type::TEXT_ARRAY, bytes)
            .ok()
            .map(Value::TextArray),
        _ => None,
    };
    value.ok_or_else(|| {
        ErrorReply::error(
            SqlState::INVALID_BINARY_REPRESENTATION,
            format!(
                "incorrect binary data format of a parameter of type {}",
                kind.name()
            ),
        )
    })
}

/// Adds the cells of a row.
pub(super) fn encode(encoder: &mut DataRowEncoder, row: &Row) -> PgWireResult<()> {
    row.iter()
        .try_for_each(|value| encoder.encode_field(&Cell(value)))
}

/// A value that pgwire sends.
#[derive(Debug)]
struct Cell<'a>(&'a Value);

impl ToSqlText for Cell<'_> {
    fn to_sql_text(&self, _: &Type, out: &mut BytesMut, _: &FormatOptions) -> Result<IsNull, Fault> {
        if self.0.is_null() {
            return Ok(IsNull::Yes);
        }
        out.extend_from_slice(self.0.to_text().as_bytes());
        Ok(IsNull::No)
    }
}

impl ToSql for Cell<'_> {
    fn to_sql(&self, kind: &Type, out: &mut BytesMut) -> Result<IsNull, Fault> {
        match self.0 {
            Value::Null | Value::Interval(_) => Ok(IsNull::Yes),
            Value::Bool(is) => is.to_sql(kind, out),
            Value::Int(number) if *kind == Type::INT4 => {
                i32::try_from(*number).unwrap_or(i32::MAX).to_sql(kind, out)
            }
            Value::Int(number) if *kind == Type::NUMERIC => {
                numeric(*number, out);
                Ok(IsNull::No)
            }
            // Only NaN: what is not known.
            Value::Float(_) if *kind == Type::NUMERIC => {
                for word in [0_u16, 0, 0xc000, 0] {
                    out.extend_from_slice(&word.to_be_bytes());
                }
                Ok(IsNull::No)
            }
            Value::Int(number) => number.to_sql(kind, out),
            Value::Float(number) => number.to_sql(kind, out),
            Value::Text(text) => text.to_sql(kind, out),
            Value::TextArray(texts) => texts.to_sql(kind, out),
            Value::Timestamp(micros) => {
                out.extend_from_slice(&micros.saturating_sub(POSTGRES_EPOCH).to_be_bytes());
                Ok(IsNull::No)
            }
        }
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    postgres_types::to_sql_checked!();
}

/// Whether the format of the value at this place is binary, by the codes of Bind: none, one for
/// all, or one for each.
pub(super) fn is_binary(format: &pgwire::api::portal::Format, index: usize) -> bool {
    format.format_for(index) == FieldFormat::Binary
}

/// A whole number in PostgreSQL's binary form of `numeric`: digits of base 10000, the weight of the
/// first, the sign, and no digits behind the point.
fn numeric(number: i64, out: &mut BytesMut) {
    const BASE: u64 = 10_000;
    let (mut digits, mut rest) = (Vec::new(), number.unsigned_abs());
    while rest > 0 {
        digits.push(u16::try_from(rest % BASE).unwrap_or_default());
        rest /= BASE;
    }
    // 64 bits have five such digits at most. Zeros at the end are left out.
    let weight = u16::try_from(digits.len()).unwrap_or_default().saturating_sub(1);
    let zeros = digits.iter().take_while(|digit| **digit == 0).count();
    digits.drain(..zeros);
    let count = u16::try_from(digits.len()).unwrap_or_default();
    let sign: u16 = if number < 0 { 0x4000 } else { 0 };
    for word in [count, weight, sign, 0] {
        out.extend_from_slice(&word.to_be_bytes());
    }
    for digit in digits.iter().rev() {
        out.extend_from_slice(&digit.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `SELECT numeric_send(…)` has them.
    #[test]
    fn whole_numbers_are_numerics() {
        for (number, expected) in [
            (0, "0000000000000000"),
            (1, "00010000000000000001"),
            (10_000, "00010001000000000001"),
            (-12_345, "000200014000000000010929"),
            (i64::MAX, "0005000400000000039a0d2c0170156516af"),
        ] {
            let mut out = BytesMut::new();
            numeric(number, &mut out);
            let shown: Vec<String> = out.iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(shown.concat(), expected, "{number}");
        }
    }
}
