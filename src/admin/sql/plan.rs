//! A query that has been read, and how its answer is made of a view's rows.

use std::cell::Cell;
use std::cmp::Ordering;

use tokio_util::sync::CancellationToken;

use super::super::relation::{Kind, Row, Value};
use super::expr::{Expr, MOST_KEPT, MOST_STEPS, Surroundings, is_distinct, truth};
use super::function::Aggregate;
use super::{OutputColumn, Session};
use crate::wire::message::ErrorReply;
use crate::wire::sqlstate::SqlState;

/// A query that can be answered. Its expressions are over the rows of the view, and behind
/// `grouping` over rows of keys and aggregates.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// The view; one row without columns if there is none.
    pub(super) view: Option<String>,
    pub(super) outputs: Vec<OutputColumn>,
    pub(super) parameters: Vec<Kind>,
    pub(super) filter: Option<Expr>,
    pub(super) grouping: Option<GroupBy>,
    pub(super) values: Vec<Expr>,
    pub(super) is_distinct: bool,
    pub(super) order: Vec<SortKey>,
    pub(super) limit: Option<Expr>,
    pub(super) offset: Option<Expr>,
}

#[derive(Debug, Clone)]
pub(super) struct GroupBy {
    pub(super) keys: Vec<Expr>,
    pub(super) aggregates: Vec<Aggregate>,
    pub(super) having: Option<Expr>,
}

#[derive(Debug, Clone)]
pub(super) struct SortKey {
    pub(super) by: SortBy,
    pub(super) is_descending: bool,
    pub(super) nulls_first: bool,
}

#[derive(Debug, Clone)]
pub(super) enum SortBy {
    /// A column of the answer.
    Output(usize),
    Value(Expr),
}

impl Plan {
    /// The view whose rows [`Self::run`] takes.
    pub(crate) fn view(&self) -> Option<&str> {
        self.view.as_deref()
    }

    pub(crate) fn outputs(&self) -> &[OutputColumn] {
        &self.outputs
    }

    /// The types of `$1` and so on.
    pub(crate) fn parameters(&self) -> &[Kind] {
        &self.parameters
    }

    /// The answer. `rows` are those of the view, `now` is in microseconds since 1970. The work ends
    /// soon after `ended` is cancelled.
    ///
    /// # Errors
    /// An expression has no value, such as a division by zero.
    pub(crate) fn run(
        &self,
        rows: Vec<Row>,
        parameters: &[Value],
        session: &Session,
        now: i64,
        ended: &CancellationToken,
    ) -> Result<Vec<Row>, ErrorReply> {
        let about = Surroundings {
            parameters,
            session,
            now,
            room: Cell::new(MOST_KEPT),
            steps: Cell::new(MOST_STEPS),
            ended,
        };
        // As PostgreSQL, these are looked at first.
        let limit = count(
            self.limit.as_ref(),
            &about,
            "LIMIT",
            SqlState::INVALID_ROW_COUNT_IN_LIMIT,
        )?;
        let offset = count(
            self.offset.as_ref(),
            &about,
            "OFFSET",
            SqlState::INVALID_ROW_COUNT_IN_OFFSET,
        )?;
        let mut rows = if self.view.is_some() {
            rows
        } else {
            vec![Row::new()]
        };
        if let Some(filter) = &self.filter {
            rows = filtered(rows, filter, &about)?;
        }
        if let Some(grouping) = &self.grouping {
            rows = grouping.rows(&rows, &about)?;
            if let Some(having) = &grouping.having {
                rows = filtered(rows, having, &about)?;
            }
        }
        let mut answer = Vec::with_capacity(rows.len());
        for row in &rows {
            let of = |expr: &Expr| expr.value(row, &about).and_then(|value| about.kept(value));
            let values = self.values.iter().map(of).collect::<Result<Row, _>>()?;
            let mut keys = Row::new();
            for key in &self.order {
                if let SortBy::Value(expr) = &key.by {
                    keys.push(of(expr)?);
                }
            }
            answer.push((keys, values));
        }
        if self.is_distinct {
            about.step(sorting(answer.len(), self.values.len()))?;
            answer.sort_by(|(_, one), (_, other)| in_order(one, other));
            answer.dedup_by(|(_, one), (_, other)| is_same(one, other));
        }
        about.step(sorting(answer.len(), self.order.len()))?;
        answer.sort_by(|one, other| self.order_of(one, other));
        let answer = answer.into_iter().map(|(_, values)| values);
        Ok(answer
            .skip(offset.unwrap_or(0))
            .take(limit.unwrap_or(usize::MAX))
            .collect())
    }

    /// Of two rows, each behind its values of the keys that are no columns of the answer.
    fn order_of(&self, one: &(Row, Row), other: &(Row, Row)) -> Ordering {
        let mut beside = 0..;
        let keys = self.order.iter().map(|key| {
            let (one, other) = match key.by {
                SortBy::Output(index) => (one.1.get(index), other.1.get(index)),
                SortBy::Value(_) => {
                    let place = beside.next().unwrap_or_default();
                    (one.0.get(place), other.0.get(place))
                }
            };
            (key, one.unwrap_or(&Value::Null), other.unwrap_or(&Value::Null))
        });
        keys.map(|(key, one, other)| match (one.is_null(), other.is_null()) {
            (true, true) => Ordering::Equal,
            (true, false) if key.nulls_first => Ordering::Less,
            (true, false) => Ordering::Greater,
            (false, true) if key.nulls_first => Ordering::Greater,
            (false, true) => Ordering::Less,
            (false, false) => {
                let order = one.compare(other).unwrap_or(Ordering::Equal);
                if key.is_descending { order.reverse() } else { order }
            }
        })
        .find(|order| order.is_ne())
        .unwrap_or(Ordering::Equal)
    }
}

impl GroupBy {
    /// A row of keys and aggregates for each group; without keys there is one group, also of no
    /// rows.
    fn rows(&self, rows: &[Row], about: &Surroundings<'_>) -> Result<Vec<Row>, ErrorReply> {
        let mut keyed = Vec::with_capacity(rows.len());
        for row in rows {
            let of = |key: &Expr| key.value(row, about).and_then(|value| about.kept(value));
            let keys = self.keys.iter().map(of);
            keyed.push((keys.collect::<Result<Row, _>>()?, row));
        }
        about.step(sorting(keyed.len(), self.keys.len()))?;
        keyed.sort_by(|(one, _), (other, _)| in_order(one, other));
        let mut groups: Vec<Row> = Vec::new();
        for members in keyed.chunk_by(|(one, _), (other, _)| is_same(one, other)) {
            groups.push(self.group(&members[0].0, members, about)?);
        }
        if groups.is_empty() && self.keys.is_empty() {
            groups.push(self.group(&Row::new(), &[], about)?);
        }
        Ok(groups)
    }

    fn group(
        &self,
        keys: &Row,
        members: &[(Row, &Row)],
        about: &Surroundings<'_>,
    ) -> Result<Row, ErrorReply> {
        let mut group = keys.clone();
        for aggregate in &self.aggregates {
            let mut values = Vec::new();
            for (_, row) in members {
                about.step(1)?;
                if let Some(filter) = &aggregate.filter
                    && truth(&filter.value(row, about)?) != Some(true)
                {
                    continue;
                }
                let value = match &aggregate.argument {
                    Some(argument) => argument.value(row, about)?,
                    None => Value::Bool(true),
                };
                if !value.is_null() {
                    values.push(about.kept(value)?);
                }
            }
            group.push(aggregate.function.over(values, aggregate.is_distinct)?);
        }
        Ok(group)
    }
}

fn filtered(rows: Vec<Row>, by: &Expr, about: &Surroundings<'_>) -> Result<Vec<Row>, ErrorReply> {
    let mut kept = Vec::with_capacity(rows.len());
    for row in rows {
        if truth(&by.value(&row, about)?) == Some(true) {
            kept.push(row);
        }
    }
    Ok(kept)
}

/// The steps to sort rows by so many keys.
fn sorting(rows: usize, keys: usize) -> usize {
    let rounds = usize::BITS - rows.leading_zeros();
    rows.saturating_mul(keys).saturating_mul(rounds as usize)
}

/// Any order in which equal rows are neighbours; null is last.
fn in_order(one: &Row, other: &Row) -> Ordering {
    one.iter()
        .zip(other)
        .map(|(one, other)| {
            one.compare(other)
                .unwrap_or_else(|| one.is_null().cmp(&other.is_null()))
        })
        .find(|order| order.is_ne())
        .unwrap_or(Ordering::Equal)
}

fn is_same(one: &Row, other: &Row) -> bool {
    one.iter().zip(other).all(|(one, other)| !is_distinct(one, other))
}

fn count(
    expr: Option<&Expr>,
    about: &Surroundings<'_>,
    clause: &str,
    code: SqlState,
) -> Result<Option<usize>, ErrorReply> {
    match expr.map(|expr| expr.value(&Row::new(), about)).transpose()? {
        Some(Value::Int(number)) => usize::try_from(number)
            .map(Some)
            .map_err(|_| ErrorReply::error(code, format!("{clause} must not be negative"))),
        _ => Ok(None),
    }
}
