//! The rules of authentication, as PostgreSQL 16 and later show them of themselves.

use super::{View, known};
use crate::admin::relation::{Kind, Row, Value, column};
use crate::auth::hba::rows::HbaRow;
use crate::auth::ident::IdentRow;

pub(super) const HBA: View = View {
    name: "pg_hba_file_rules",
    about: "The rules that decide on logins, in order",
    columns: &[
        column("rule_number", Kind::Int4, "Of the rules without an error"),
        column("file_name", Kind::Text, "Null for the built-in rule"),
        column("line_number", Kind::Int4, "In the file"),
        column("type", Kind::Text, "host, hostssl, hostnossl or local"),
        column("database", Kind::TextArray, "The databases, as written"),
        column("user_name", Kind::TextArray, "The users, as written"),
        column("address", Kind::Text, "The client's address, or a word"),
        column("netmask", Kind::Text, "Of the address"),
        column("auth_method", Kind::Text, "How the client proves who it is"),
        column("options", Kind::TextArray, "Of the method"),
        column("error", Kind::Text, "Why the line is no rule"),
    ],
    rows: |handles| known((handles.access.hba)(), hba),
};

fn hba(row: HbaRow) -> Row {
    vec![
        Value::or_null(row.rule_number, Value::int),
        Value::or_null(row.file_name, Value::Text),
        Value::or_null(row.line_number, Value::int),
        Value::or_null(row.connection, Value::text),
        Value::or_null(row.database, Value::TextArray),
        Value::or_null(row.user_name, Value::TextArray),
        Value::or_null(row.address, Value::Text),
        Value::or_null(row.netmask, Value::Text),
        Value::or_null(row.auth_method, Value::text),
        Value::or_null(row.options, Value::TextArray),
        Value::or_null(row.error, Value::Text),
    ]
}

pub(super) const IDENT: View = View {
    name: "pg_ident_file_mappings",
    about: "The user name maps",
    columns: &[
        column("map_number", Kind::Int4, "Of the lines without an error"),
        column("file_name", Kind::Text, "The file"),
        column("line_number", Kind::Int4, "In the file"),
        column("map_name", Kind::Text, "The map"),
        column(
            "sys_name",
            Kind::Text,
            "The name that a certificate or the system says",
        ),
        column("pg_username", Kind::Text, "The user that it may be"),
        column("error", Kind::Text, "Why the line is no mapping"),
    ],
    rows: |handles| known((handles.access.ident)(), ident),
};

fn ident(row: IdentRow) -> Row {
    vec![
        Value::or_null(row.map_number, Value::int),
        Value::Text(row.file_name),
        Value::or_null(row.line_number, Value::int),
        Value::or_null(row.map_name, Value::Text),
        Value::or_null(row.sys_name, Value::Text),
        Value::or_null(row.pg_username, Value::Text),
        Value::or_null(row.error, Value::Text),
    ]
}
