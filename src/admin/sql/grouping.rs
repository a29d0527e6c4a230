//! `GROUP BY` and aggregates: queries whose rows are those of groups.

use sqlparser::ast::{self, GroupByExpr};

use super::super::relation::{Column, Kind};
use super::expr::Expr;
use super::function::Aggregate;
use super::plan::{GroupBy, Plan, SortBy};
use super::planner::{Planner, folded, unsupported};
use super::select::{Outputs, at_most_keys};
use crate::wire::message::ErrorReply;
use crate::wire::sqlstate::SqlState;

impl Plan {
    /// Behind `GROUP BY`, or with an aggregate, rows are those of groups.
    pub(super) fn group(
        &mut self,
        keys: Vec<Expr>,
        mut having: Option<Expr>,
        columns: &[Column],
    ) -> Result<(), ErrorReply> {
        let sorted = self.order.iter_mut().filter_map(|key| match &mut key.by {
            SortBy::Value(expr) => Some(expr),
            SortBy::Output(_) => None,
        });
        let mut all: Vec<&mut Expr> = self.values.iter_mut().chain(sorted).chain(&mut having).collect();
        let is_grouped = !keys.is_empty() || all.iter_mut().any(|expr| has_aggregate(expr));
        // Without either of them, HAVING alone makes a group.
        if !is_grouped && having.is_none() {
            return Ok(());
        }
        let mut aggregates = Vec::new();
        for expr in self
            .values
            .iter_mut()
            .chain(self.order.iter_mut().filter_map(|key| match &mut key.by {
                SortBy::Value(expr) => Some(expr),
                SortBy::Output(_) => None,
            }))
            .chain(&mut having)
        {
            lift(expr, &keys, &mut aggregates, columns)?;
        }
        self.grouping = Some(GroupBy {
            keys,
            aggregates,
            having,
        });
        Ok(())
    }
}

/// What rows of one group have in common.
pub(super) fn group_keys(
    planner: &mut Planner,
    group_by: &GroupByExpr,
    outputs: &Outputs,
) -> Result<Vec<Expr>, ErrorReply> {
    let GroupByExpr::Expressions(all, modifiers) = group_by else {
        return Err(unsupported("GROUP BY ALL"));
    };
    if !modifiers.is_empty() {
        return Err(unsupported("ROLLUP, CUBE and the like"));
    }
    at_most_keys(all.len(), "GROUP BY")?;
    let mut keys = Vec::with_capacity(all.len());
    for expr in all {
        let mut key = None;
        if let Some(place) = outputs.position(expr, "GROUP BY")? {
            key = Some(outputs.values[place].clone());
        } else if let ast::Expr::Identifier(name) = expr {
            // A column of the view comes before one of the answer.
            let name = folded(name);
            if !planner.columns.iter().any(|column| column.name == name)
                && let Some(place) = outputs.named(&name)?
            {
                key = Some(outputs.values[place].clone());
            }
        }
        let mut key = if let Some(key) = key {
            key
        } else {
            let typed = planner.expr(expr)?;
            planner.settle(typed, Kind::Text)?.expr
        };
        if has_aggregate(&mut key) {
            return Err(ErrorReply::error(
                SqlState::GROUPING_ERROR,
                "aggregate functions are not allowed in GROUP BY",
            ));
        }
        // One that is named again makes no other groups, and it may be large.
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    Ok(keys)
}

fn has_aggregate(expr: &mut Expr) -> bool {
    matches!(expr, Expr::Aggregate(_)) || expr.operands_mut().into_iter().any(has_aggregate)
}

/// Over the rows of groups instead of those of the view.
fn lift(
    expr: &mut Expr,
    keys: &[Expr],
    aggregates: &mut Vec<Aggregate>,
    columns: &[Column],
) -> Result<(), ErrorReply> {
    if let Some(place) = keys.iter().position(|key| *key == *expr) {
        *expr = Expr::Column(place);
        return Ok(());
    }
    match expr {
        Expr::Column(index) => {
            let name = columns.get(*index).map_or("", |column| column.name);
            Err(ErrorReply::error(
                SqlState::GROUPING_ERROR,
                format!(
                    "column \"{name}\" must appear in the GROUP BY clause or be used in an aggregate function"
                ),
            ))
        }
        Expr::Aggregate(aggregate) => {
            let place = aggregates
                .iter()
                .position(|known| *known == **aggregate)
                .unwrap_or_else(|| {
                    aggregates.push((**aggregate).clone());
                    aggregates.len() - 1
                });
            *expr = Expr::Column(keys.len() + place);
            Ok(())
        }
        other => {
            let is_begun = begins_with_key(other, keys);
            let operands = other.operands_mut().into_iter().skip(usize::from(is_begun));
            operands
                .into_iter()
                .try_for_each(|operand| lift(operand, keys, aggregates, columns))
        }
    }
}

/// A row of operators that begins with a key, as `a + b + c` behind `GROUP BY a + b`, begins with
/// the key's value then. The longest key counts.
fn begins_with_key(expr: &mut Expr, keys: &[Expr]) -> bool {
    let begins = |key: &Expr| match (&*expr, key) {
        (Expr::And(all), Expr::And(key)) | (Expr::Or(all), Expr::Or(key)) => {
            all.starts_with(key).then_some(key.len())
        }
        (Expr::Compute(first, all), Expr::Compute(begin, key)) => {
            (first == begin && all.starts_with(key)).then_some(key.len())
        }
        _ => None,
    };
    let all = keys.iter().enumerate();
    let found = all.filter_map(|(place, key)| Some((begins(key)?, Expr::Column(place))));
    let Some((length, value)) = found.max_by_key(|(length, _)| *length) else {
        return false;
    };
    match expr {
        Expr::And(all) | Expr::Or(all) => {
            all.splice(..length, [value]);
        }
        Expr::Compute(first, all) => {
            **first = value;
            all.drain(..length);
        }
        _ => {}
    }
    true
}
