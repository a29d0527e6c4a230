//! The queries that psql sends on its own for `\d`, `\dt`, `\dv` and `\d NAME`: over PostgreSQL's
//! catalogs, of which the console has none. They are known by what they read, and each item
//! between SELECT and FROM by what it names.

use std::sync::Arc;

use super::super::relation::{Column, Kind, Row, Value};
use super::super::sql::OutputColumn;
use super::views::{VIEWS, View};
use crate::auth::hba::regex::Pattern;

/// PostgreSQL's first number for objects of users.
const FIRST_OID: usize = 16_384;

/// An answer that is the same for every session.
#[derive(Debug)]
pub(super) struct CatalogAnswer {
    pub(super) columns: Vec<OutputColumn>,
    pub(super) rows: Vec<Row>,
}

/// The answer to a query of psql's; `None` for any other text.
pub(super) fn answer(sql: &str) -> Option<Arc<CatalogAnswer>> {
    if let Some(number) = behind(sql, "pg_catalog.pg_get_viewdef('") {
        return Some(Arc::new(CatalogAnswer {
            columns: vec![OutputColumn {
                name: "pg_get_viewdef".to_owned(),
                kind: Kind::Text,
            }],
            rows: vec![vec![Value::text(format!(" {}", numbered(number)?.about))]],
        }));
    }
    let (items, rest) = split(sql)?;
    // Those of the completion of names, which stays empty.
    if items.iter().any(|item| item.contains("quote_ident")) {
        return None;
    }
    let is_from = |table: &str| rest.starts_with(table);
    let rows: Vec<Row> = if is_from("pg_catalog.pg_class c") {
        let chosen = chosen(rest)?;
        chosen
            .into_iter()
            .map(|view| items.iter().map(|item| of_view(item, view)).collect())
            .collect()
    } else if is_from("pg_catalog.pg_attribute a") {
        let view = numbered(behind(rest, "a.attrelid = '")?)?;
        view.columns
            .iter()
            .map(|column| items.iter().map(|item| of_column(item, column)).collect())
            .collect()
    } else {
        return None;
    };
    let column = |item: &&str| OutputColumn {
        name: label(item),
        kind: Kind::Text,
    };
    Some(Arc::new(CatalogAnswer {
        columns: items.iter().map(column).collect(),
        rows,
    }))
}

/// The items between SELECT and FROM, and what is behind FROM.
fn split(sql: &str) -> Option<(Vec<&str>, &str)> {
    let text = sql.trim_start();
    let (word, text) = text.split_at_checked(7)?;
    if !word.eq_ignore_ascii_case("select ") {
        return None;
    }
    let (mut items, mut begin, mut depth) = (Vec::new(), 0, 0_u32);
    let mut is_quoted = false;
    for (at, c) in text.char_indices() {
        match c {
            '\'' => is_quoted = !is_quoted,
            _ if is_quoted => {}
            '(' => depth += 1,
            ')' => depth = depth.checked_sub(1)?,
            ',' if depth == 0 => {
                items.push(text[begin..at].trim());
                begin = at + 1;
            }
            'F' if depth == 0 => {
                let is_word = text[..at].ends_with(char::is_whitespace);
                if let Some(rest) = text[at..].strip_prefix("FROM").filter(|_| is_word) {
                    items.push(text[begin..at].trim());
                    return Some((items, rest.trim_start()));
                }
            }
            _ => {}
        }
    }
    None
}

/// The views that the conditions choose.
fn chosen(rest: &str) -> Option<Vec<&'static View>> {
    if let Some(oid) = behind(rest, "c.oid = '") {
        return Some(vec![numbered(oid)?]);
    }
    // Tables, and views: not what is asked for otherwise.
    if let Some(kinds) = behind(rest, "c.relkind IN (") {
        let kinds = kinds.split(')').next()?;
        if !kinds.contains("'r'") && !kinds.contains("'v'") {
            return Some(Vec::new());
        }
    }
    let is_of_another_schema = behind(rest, "n.nspname OPERATOR(pg_catalog.~) '")
        .is_some_and(|pattern| !pattern.starts_with("^(public)$"));
    if is_of_another_schema {
        return Some(Vec::new());
    }
    let pattern = match behind(rest, "c.relname OPERATOR(pg_catalog.~) '") {
        Some(pattern) => Some(Pattern::new(pattern.split('\'').next()?.as_bytes()).ok()?),
        None => None,
    };
    let is_meant = |view: &&View| {
        pattern
            .as_ref()
            .is_none_or(|pattern| pattern.is_match(view.name.as_bytes()))
    };
    let mut all: Vec<&View> = VIEWS.iter().filter(is_meant).collect();
    all.sort_by_key(|view| view.name);
    Some(all)
}

fn behind<'a>(text: &'a str, mark: &str) -> Option<&'a str> {
    text.find(mark).map(|at| &text[at + mark.len()..])
}

fn oid(view: &View) -> usize {
    let place = VIEWS.iter().position(|other| other.name == view.name);
    FIRST_OID + place.unwrap_or_default()
}

fn numbered(text: &str) -> Option<&'static View> {
    let number: usize = text.split('\'').next()?.parse().ok()?;
    VIEWS.get(number.checked_sub(FIRST_OID)?)
}

/// What stands behind AS, or the last name.
fn label(item: &str) -> String {
    let last = item.split_whitespace().next_back().unwrap_or_default();
    let last = last.rsplit('.').next().unwrap_or_default();
    last.trim_matches('"').to_owned()
}

fn of_view(item: &str, view: &View) -> Value {
    let has = |name: &str| item.contains(name);
    if has("c.oid") && !has("(") {
        Value::text(oid(view).to_string())
    } else if has("nspname") {
        Value::text(if view.name.starts_with("pg_") {
            "pg_catalog"
        } else {
            "public"
        })
    } else if has("c.relname") {
        Value::text(view.name)
    } else if has("CASE c.relkind") {
        Value::text("view")
    } else if has("c.relkind") {
        Value::text("v")
    } else if has("relowner") {
        Value::text("trunkline")
    } else if has("obj_description") {
        Value::text(view.about)
    } else if has("relpersistence") {
        Value::text(if has("CASE") { "permanent" } else { "p" })
    } else if has("relreplident") {
        Value::text("n")
    } else if has("amname") || has("pg_table_size") {
        Value::Null
    } else if has("relchecks") || has("reltablespace") {
        Value::text("0")
    } else if has("''") || has("reloptions") {
        Value::text("")
    } else {
        // Whether it has indexes, rules, triggers, and so on.
        Value::text("f")
    }
}

fn of_column(item: &str, column: &Column) -> Value {
    let has = |name: &str| item.contains(name);
    if has("pg_get_expr") || has("collname") || has("attstattarget") {
        Value::Null
    } else if has("col_description") {
        Value::text(column.about)
    } else if has("a.attname") {
        Value::text(column.name)
    } else if has("format_type") {
        Value::text(column.kind.name())
    } else if has("attnotnull") {
        Value::text("f")
    } else if has("attstorage") {
        Value::text("x")
    } else {
        Value::text("")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_items_of_a_query_are_read_by_what_they_name() {
        let sql = "SELECT n.nspname as \"Schema\",\n  c.relname as \"Name\",\n  CASE c.relkind WHEN 'r' THEN 'table, (' END as \
                   \"Type\"\nFROM pg_catalog.pg_class c\nWHERE c.relkind IN ('r','p','')\nORDER BY 1,2;";
        let made = answer(sql).unwrap();
        let names: Vec<&str> = made.columns.iter().map(|column| column.name.as_str()).collect();
        assert_eq!(names, ["Schema", "Name", "Type"]);
        assert_eq!(made.rows.len(), VIEWS.len());
        assert!(made.rows.contains(&vec![
            Value::text("public"),
            Value::text("members"),
            Value::text("view")
        ]));
        for other in [
            "SELECT 1",
            "SELECT id FROM sessions",
            "SELECT quote_ident(c.relname) FROM pg_catalog.pg_class c",
            "SELECT a.attname FROM pg_catalog.pg_attribute a WHERE a.attrelid = '1'",
            "SELECT c.oid FROM pg_catalog.pg_class c WHERE c.oid = '99999999999999999999'",
            "SELECT )",
            "SELECT é",
            "selec",
        ] {
            assert!(answer(other).is_none(), "{other}");
        }
        let indexes = "SELECT c.relname FROM pg_catalog.pg_class c WHERE c.relkind IN ('i','')";
        assert!(answer(indexes).unwrap().rows.is_empty());
    }
}
