//! Every view: its rows are of its columns, and the page documents them.
#![allow(clippy::unwrap_used)]

use super::super::relation::{Kind, Value};
use super::tests::handles;
use super::views::VIEWS;

#[tokio::test]
async fn every_view_has_rows_of_its_columns() {
    let handles = handles();
    for view in VIEWS {
        let rows = view.rows(&handles).await.value;
        // Nobody is connected.
        let is_empty = ["sessions", "waits", "pools", "server_connections", "holds"].contains(&view.name);
        assert_eq!(rows.is_empty(), is_empty, "{}", view.name);
        for row in rows {
            assert_eq!(row.len(), view.columns.len(), "{}", view.name);
            for (column, value) in view.columns.iter().zip(&row) {
                assert!(
                    is_of(value, column.kind),
                    "{}.{}: {value:?}",
                    view.name,
                    column.name
                );
            }
        }
        let mut names: Vec<&str> = view.columns.iter().map(|column| column.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), view.columns.len(), "{}", view.name);
        assert!(view.columns.iter().all(|column| !column.about.is_empty()));
    }
}

#[test]
fn every_column_is_documented_as_it_is() {
    let page = include_str!("../../../docs/console.md");
    for view in VIEWS {
        let heading = format!("### {}\n\n{}.\n\n", view.name, view.about);
        let (_, section) = page.split_once(&heading).unwrap_or_else(|| panic!("{heading}"));
        let rows = section.lines().skip(2).take_while(|line| line.starts_with('|'));
        let expected: Vec<String> = view
            .columns
            .iter()
            .map(|column| {
                format!(
                    "| `{}` | {} | {} |",
                    column.name,
                    column.kind.name(),
                    column.about
                )
            })
            .collect();
        assert_eq!(rows.collect::<Vec<_>>(), expected, "{}", view.name);
    }
}

fn is_of(value: &Value, kind: Kind) -> bool {
    match (value, kind) {
        (Value::Int(number), Kind::Int4) => i32::try_from(*number).is_ok(),
        (Value::Null, _)
        | (Value::Bool(_), Kind::Bool)
        | (Value::Int(_), Kind::Int8)
        | (Value::Float(_), Kind::Float8)
        | (Value::Text(_), Kind::Text)
        | (Value::TextArray(_), Kind::TextArray)
        | (Value::Timestamp(_), Kind::Timestamp) => true,
        _ => false,
    }
}
