//! The queries that psql sends on its own for `\d`, `\dt`, `\dv`, `\d NAME`, `\gdesc` and the tab
//! key: over PostgreSQL's catalogs, of which the console has none. They are known by what they
//! read, and each item between SELECT and FROM by what it names.

use std::sync::Arc;

use pgwire::api::Type;

use super::super::relation::{Column, Kind, Row, Value};
use super::super::sql::OutputColumn;
use super::tokens::{Token, tokens, without_lead};
use super::transfer::type_of;
use super::views::{VIEWS, View};
use crate::auth::hba::regex::Pattern;
use crate::wire::message::ErrorReply;
use crate::wire::sqlstate::SqlState;

/// PostgreSQL's first number for objects of users.
const FIRST_OID: usize = 16_384;

/// An answer that is the same for every session.
#[derive(Debug)]
pub(super) struct CatalogAnswer {
    pub(super) columns: Vec<OutputColumn>,
    pub(super) rows: Vec<Row>,
    /// Of its parameters, whose values change nothing.
    pub(super) parameters: Vec<Kind>,
}

impl CatalogAnswer {
    /// The bytes of memory that it takes.
    pub(super) fn size(&self) -> usize {
        // With what the allocator adds to each text and each row.
        const OF_PIECE: usize = 32;
        let names = self.columns.iter().map(|column| column.name.len());
        let names = names.map(|name| size_of::<OutputColumn>() + name + OF_PIECE);
        let values = self.rows.iter().flatten().map(|value| value.size() + OF_PIECE);
        let rows = self.rows.len() * (size_of::<Row>() + OF_PIECE);
        names.sum::<usize>() + values.sum::<usize>() + rows
    }
}

/// The answer to a query of psql's; `None` for any other text.
pub(super) fn answer(sql: &str) -> Option<Arc<CatalogAnswer>> {
    let sql = without_lead(sql);
    if let Some(answer) = completion(sql).or_else(|| description(sql)) {
        return Some(Arc::new(answer));
    }
    if let Some(number) = behind(sql, "pg_catalog.pg_get_viewdef('") {
        return Some(Arc::new(CatalogAnswer {
            columns: vec![OutputColumn {
                name: "pg_get_viewdef".to_owned(),
                kind: Kind::Text,
            }],
            rows: vec![vec![Value::text(format!(" {}", numbered(number)?.about))]],
            parameters: Vec::new(),
        }));
    }
    let (items, rest) = split(sql)?;
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
    } else if is_from("pg_type t") {
        // What drivers ask for: types of extensions, such as hstore.
        Vec::new()
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
        parameters: vec![Kind::Text; usize::from(sql.contains("$1"))],
    }))
}

/// What the tab key asks for: names that begin so. It is answered whatever it asks for, because an
/// error would end the user's transaction, and psql does not show it.
fn completion(sql: &str) -> Option<CatalogAnswer> {
    let limited = sql.trim_end_matches(|c: char| c == ';' || c.is_whitespace());
    if !sql.contains("pg_catalog.") || !limited.ends_with("LIMIT 1000") {
        return None;
    }
    let begin = behind(sql, "LIKE '").and_then(|rest| rest.split('%').next());
    let begin = begin.unwrap_or_default().replace('\\', "");
    let begins = |name: &&str| name.starts_with(&begin);
    let mut names: Vec<&str> = if behind(sql, "FROM pg_catalog.pg_attribute a").is_some() {
        let relation = behind(sql, "c.relname = '").and_then(|rest| rest.split('\'').next());
        let view = relation.and_then(|name| VIEWS.iter().find(|view| view.name == name));
        let columns = view.map_or(&[][..], |view| view.columns);
        columns.iter().map(|column| column.name).filter(begins).collect()
    } else if behind(sql, "FROM pg_catalog.pg_class c").is_some() {
        VIEWS.iter().map(|view| view.name).filter(begins).collect()
    } else {
        Vec::new()
    };
    names.sort_unstable();
    let rows = names.into_iter().map(|name| vec![Value::text(name), Value::Null]);
    let column = |name: &str| OutputColumn {
        name: name.to_owned(),
        kind: Kind::Text,
    };
    Some(CatalogAnswer {
        columns: vec![column("name"), column("schema")],
        rows: rows.collect(),
        parameters: Vec::new(),
    })
}

/// What `\gdesc` asks for: the columns of a query, which it has as a list of values.
fn description(sql: &str) -> Option<CatalogAnswer> {
    let values = behind(sql, "AS \"Type\"\nFROM (VALUES ")?;
    let mut rows = Vec::new();
    for value in values.split("),") {
        let tokens = tokens(value)?;
        let texts: Vec<&Token> = tokens
            .iter()
            .filter(|token| matches!(token, Token::Text(_)))
            .collect();
        let [name, number] = texts[..] else { return None };
        let oid = number.text()?.parse().ok()?;
        let kind = Type::from_oid(oid)?;
        let kinds = [
            Kind::Bool,
            Kind::Int4,
            Kind::Int8,
            Kind::Float8,
            Kind::Text,
            Kind::TextArray,
            Kind::Timestamp,
        ];
        let own = kinds.iter().find(|known| type_of(**known).0 == kind)?;
        rows.push(vec![Value::text(name.text()?), Value::text(own.name())]);
    }
    let column = |name: &str| OutputColumn {
        name: name.to_owned(),
        kind: Kind::Text,
    };
    Some(CatalogAnswer {
        columns: vec![column("Column"), column("Type")],
        rows,
        parameters: Vec::new(),
    })
}

/// The error for a query over PostgreSQL's catalogs that is none of these.
pub(super) fn refusal(sql: &str) -> Option<ErrorReply> {
    let reads = ["FROM pg_catalog.", "pg_catalog.reg"]
        .iter()
        .any(|mark| sql.contains(mark));
    reads.then(|| {
        ErrorReply::error(
            SqlState::FEATURE_NOT_SUPPORTED,
            "the console has none of PostgreSQL's catalogs",
        )
        .hint("\\d lists its views, \\d NAME the columns of one, and SHOW HELP the commands.")
    })
}

/// The items between SELECT and FROM, and what is behind FROM.
fn split(sql: &str) -> Option<(Vec<&str>, &str)> {
    let (word, text) = sql.split_at_checked(6)?;
    if !word.eq_ignore_ascii_case("select") || !text.starts_with(char::is_whitespace) {
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
    if let Some((_, name)) = item.strip_suffix('"').and_then(|item| item.rsplit_once('"')) {
        return name.to_owned();
    }
    let last = item.split_whitespace().next_back().unwrap_or_default();
    let last = last.rsplit('.').next().unwrap_or_default();
    last.trim_matches('"').to_owned()
}

fn of_view(item: &str, view: &View) -> Value {
    let has = |name: &str| item.contains(name);
    if has("c.oid") && !has("(") {
        Value::text(oid(view).to_string())
    } else if has("polname") || has("attacl") {
        Value::Null
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
    } else if ["amname", "pg_table_size", "relacl"].iter().any(|name| has(name)) {
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
            "SELECT a.attname FROM pg_catalog.pg_attribute a WHERE a.attrelid = '1'",
            "SELECT c.oid FROM pg_catalog.pg_class c WHERE c.oid = '99999999999999999999'",
            "SELECT )",
            "SELECT é",
            "selec",
        ] {
            assert!(answer(other).is_none(), "{other}");
        }
        // As psql 19 asks, with a comment before.
        let commented = format!("/* Get matching relations */\n{sql}");
        assert_eq!(answer(&commented).unwrap().rows.len(), VIEWS.len());
        let hstore =
            "SELECT\n    typname AS name, oid\nFROM pg_type t\nWHERE t.oid = to_regtype($1)\nORDER BY t.oid";
        let made = answer(hstore).unwrap();
        assert_eq!(
            (made.rows.len(), made.columns.len(), made.parameters.len()),
            (0, 2, 1)
        );
        let indexes = "SELECT c.relname FROM pg_catalog.pg_class c WHERE c.relkind IN ('i','')";
        assert!(answer(indexes).unwrap().rows.is_empty());
    }

    #[test]
    fn the_tab_key_gets_names_and_never_an_error() {
        let names = |sql: &str| -> Vec<String> {
            let rows = &answer(sql).unwrap().rows;
            rows.iter().map(|row| row[0].to_text()).collect()
        };
        let views = "SELECT c.relname, NULL::pg_catalog.text FROM pg_catalog.pg_class c WHERE c.relkind IN ('r', 'v') AND \
                     (c.relname) LIKE 'mem%' AND pg_catalog.pg_table_is_visible(c.oid)\nUNION ALL\nSELECT NULL::text, \
                     n.nspname FROM pg_catalog.pg_namespace n WHERE n.nspname LIKE 'mem%'\nLIMIT 1000";
        assert_eq!(names(views), ["member_routes", "members"]);
        let columns = "SELECT a.attname FROM pg_catalog.pg_attribute a, pg_catalog.pg_class c WHERE c.oid = a.attrelid AND \
                       (a.attname) LIKE 'lag\\_%' AND c.relname = 'members'\nLIMIT 1000";
        assert_eq!(names(columns), ["lag_seconds"]);
        let roles = "SELECT r.rolname FROM pg_catalog.pg_roles r WHERE (r.rolname) LIKE '%'\nLIMIT 1000";
        assert!(names(roles).is_empty());
    }

    #[test]
    fn gdesc_and_other_catalogs() {
        let sql = "SELECT name AS \"Column\", pg_catalog.format_type(tp, tpm) AS \"Type\"\nFROM (VALUES \
                   ('a),b','20'::pg_catalog.oid,-1),('x','1009'::pg_catalog.oid,-1)) s(name, tp, tpm)";
        assert!(answer(&sql.replace("a),b", "n")).is_some_and(|made| {
            made.rows
                == [
                    vec![Value::text("n"), Value::text("bigint")],
                    vec![Value::text("x"), Value::text("text[]")],
                ]
        }));
        // A name that cannot be told apart is no answer.
        assert!(answer(sql).is_none());
        assert!(refusal("SELECT 1 FROM pg_catalog.pg_roles r").is_some());
        assert!(refusal("SELECT pg_catalog.version()").is_none());
    }
}
