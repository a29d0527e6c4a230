//! A small part of SQL over the console's views: `SELECT` from one view or from none, with
//! expressions, `WHERE`, `GROUP BY`, `HAVING`, aggregates, `DISTINCT`, `ORDER BY`, `LIMIT`,
//! `OFFSET` and parameters.
//!
//! Guarantees: what is answered is what PostgreSQL answers for a table with the same rows, in the C
//! collation, in UTC, with numbers that have a point as `double precision`. The work for a query is
//! bounded by its length and the number of rows.
//!
//! Refuses, with a hint: everything that it does not read in full. A part of a query is never
//! passed over.

mod expr;
mod function;
mod grouping;
#[cfg(test)]
mod limit_tests;
mod literal;
mod plan;
mod planner;
mod select;
mod shape;
mod size;
#[cfg(test)]
mod tests;

use super::relation::{Column, Kind};

pub(super) use literal::read as read_literal;
pub(super) use plan::Plan;
pub(super) use planner::MAX_PARAMETERS;

/// The columns of a view by its name.
pub(super) type Catalog<'a> = &'a dyn Fn(&str) -> Option<&'static [Column]>;

/// What functions say of the session.
#[derive(Debug, Clone, Default)]
pub(super) struct Session {
    pub(super) user: String,
    pub(super) database: String,
    pub(super) version: String,
}

/// A column of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OutputColumn {
    pub(super) name: String,
    pub(super) kind: Kind,
}
