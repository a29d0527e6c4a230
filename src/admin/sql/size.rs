//! The memory that a query takes once it has been read. Never less than it is: what allocators add
//! is in it.

use super::super::relation::{Kind, Value};
use super::OutputColumn;
use super::expr::Expr;
use super::function::Aggregate;
use super::plan::{GroupBy, Plan, SortBy, SortKey};

/// Bytes that an allocator adds to each piece at most.
const OF_PIECE: usize = 32;

impl Plan {
    /// In bytes, without what a run takes.
    pub(crate) fn size(&self) -> usize {
        let Self {
            view,
            outputs,
            parameters,
            filter,
            grouping,
            values,
            is_distinct: _,
            order,
            limit,
            offset,
        } = self;
        let single = [filter, limit, offset].into_iter().flatten().map(below);
        piece(size_of::<Self>())
            + view.as_ref().map_or(0, text)
            + list(outputs, |OutputColumn { name, kind: _ }| text(name))
            + list(parameters, |_: &Kind| 0)
            + list(values, below)
            + list(order, |SortKey { by, .. }| match by {
                SortBy::Output(_) => 0,
                SortBy::Value(expr) => below(expr),
            })
            + grouping.as_ref().map_or(0, of_groups)
            + single.sum::<usize>()
    }
}

fn of_groups(groups: &GroupBy) -> usize {
    let GroupBy {
        keys,
        aggregates,
        having,
    } = groups;
    list(keys, below) + list(aggregates, of_aggregate) + having.as_ref().map_or(0, below)
}

fn of_aggregate(aggregate: &Aggregate) -> usize {
    let both = [&aggregate.argument, &aggregate.filter];
    both.into_iter().flatten().map(below).sum()
}

/// Of everything that an expression points to.
fn below(expr: &Expr) -> usize {
    match expr {
        Expr::Column(_) | Expr::Parameter(_) => 0,
        Expr::Constant(value) => of_value(value),
        Expr::Aggregate(aggregate) => piece(size_of::<Aggregate>()) + of_aggregate(aggregate),
        Expr::Not(inner) | Expr::IsNull(inner) | Expr::Is(_, inner) | Expr::Convert(_, inner) => boxed(inner),
        Expr::Matches { text, pattern } => boxed(text) + pattern.size(),
        Expr::And(all) | Expr::Or(all) | Expr::Call(_, all) => list(all, below),
        Expr::Compute(first, rest) => boxed(first) + list(rest, |(_, _, other)| below(other)),
        Expr::Compare(_, one, other)
        | Expr::IsDistinct(one, other)
        | Expr::Any(_, one, other)
        | Expr::Like {
            text: one,
            pattern: other,
            ..
        } => boxed(one) + boxed(other),
        Expr::In(wanted, all) => boxed(wanted) + list(all, below),
        Expr::Case(branches, otherwise) => {
            list(branches, |(condition, then)| below(condition) + below(then)) + boxed(otherwise)
        }
    }
}

fn of_value(value: &Value) -> usize {
    match value {
        Value::Text(value) => text(value),
        Value::TextArray(all) => list(all, text),
        _ => 0,
    }
}

fn boxed(expr: &Expr) -> usize {
    piece(size_of::<Expr>()) + below(expr)
}

fn text(text: &String) -> usize {
    piece(text.capacity())
}

/// With what it has room for.
fn list<T>(all: &Vec<T>, of: impl Fn(&T) -> usize) -> usize {
    piece(all.capacity() * size_of::<T>()) + all.iter().map(of).sum::<usize>()
}

/// Nothing takes none.
fn piece(bytes: usize) -> usize {
    if bytes == 0 { 0 } else { bytes + OF_PIECE }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::tests::plan;

    const KIB: usize = 1024;

    fn size(sql: &str) -> usize {
        plan(sql).unwrap().size()
    }

    #[test]
    fn what_a_query_takes_grows_with_what_it_holds() {
        assert!(size("SELECT id, name FROM nodes WHERE up ORDER BY id") < 4 * KIB);
        // Each with a column, a number, and what compares them.
        let all = vec!["id = 7"; 1000].join(" OR ");
        let conditions = size(&format!("SELECT id FROM nodes WHERE {all}"));
        assert!((100 * KIB..1000 * KIB).contains(&conditions), "{conditions}");
        let text = size(&format!("SELECT '{}'", "x".repeat(60_000)));
        assert!((60_000..130_000).contains(&text), "{text}");
        // For each of 10,000 elements its place, and what it points to.
        let elements = size(&format!("SELECT '{{{}a}}'::text[]", "a,".repeat(9_999)));
        assert!((560_000..1_500_000).contains(&elements), "{elements}");
        let name = size(&format!("SELECT 1 AS {}", "x".repeat(20_000)));
        assert!(name >= 20_000, "{name}");
    }

    /// Measured: 6 KiB for the first, 190 KiB for the second, and 1.4 MiB for the third.
    #[test]
    fn regular_expressions_take_the_most() {
        let of = |pattern: &str| size(&format!("SELECT 1 FROM nodes WHERE name ~ '{pattern}'"));
        let (least, steps) = (of("^x"), of(&"[ab]{255}".repeat(15)));
        let ranges = of(&"[acegikmoqsuwy02468]{255}".repeat(15));
        assert!((6 * KIB..16 * KIB).contains(&least), "{least}");
        assert!((190 * KIB..800 * KIB).contains(&steps), "{steps}");
        assert!((1400 * KIB..4000 * KIB).contains(&ranges), "{ranges}");
        let many = vec!["name ~ '^x'"; 1000].join(" OR ");
        let many = size(&format!("SELECT 1 FROM nodes WHERE {many}"));
        assert!((6000 * KIB..16_000 * KIB).contains(&many), "{many}");
    }

    /// Each key is a copy of what it names.
    #[test]
    fn a_key_that_is_named_again_takes_nothing() {
        let long = vec!["id = 7"; 1000].join(" OR ");
        let grouped = |keys: &str| size(&format!("SELECT {long} AS a FROM nodes GROUP BY {keys}"));
        let (once, often) = (grouped("a"), grouped(&vec!["1"; 200].join(", ")));
        assert!(often < once + 64 * KIB, "{once} {often}");
    }
}
