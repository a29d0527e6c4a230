#![allow(clippy::unwrap_used)]

use tokio_util::sync::CancellationToken;

use super::super::relation::{Row, Value};
use super::*;

const COLUMNS: &[Column] = &[
    column("id", Kind::Int8),
    column("name", Kind::Text),
    column("lag", Kind::Int4),
    column("load", Kind::Float8),
    column("up", Kind::Bool),
    column("tags", Kind::TextArray),
    column("at", Kind::Timestamp),
];

const fn column(name: &'static str, kind: Kind) -> Column {
    Column {
        name,
        kind,
        about: "",
    }
}

/// Five nodes; the third is down, and little is known of it.
pub(super) fn rows() -> Vec<Row> {
    let node = |id: i64, name: &str, lag: Option<i64>, load: Option<f64>, tags: &[&str]| {
        vec![
            Value::Int(id),
            Value::text(name),
            Value::or_null(lag, Value::Int),
            Value::or_null(load, Value::Float),
            Value::Bool(lag.is_some()),
            Value::TextArray(tags.iter().map(|tag| (*tag).to_owned()).collect()),
            Value::Timestamp(id * 1_000_000),
        ]
    };
    vec![
        node(1, "node1", Some(0), Some(0.5), &["a", "b"]),
        node(2, "node2", Some(10), Some(1.5), &[]),
        node(3, "node3", None, None, &["b"]),
        node(4, "Zoë_4", Some(10), Some(f64::NAN), &["c d"]),
        node(5, "node5", Some(7), Some(-2.0), &[]),
    ]
}

pub(super) fn session() -> Session {
    Session {
        user: "admin".to_owned(),
        database: "trunkline".to_owned(),
        version: "PostgreSQL 14.0".to_owned(),
    }
}

pub(super) fn plan(sql: &str) -> Result<Plan, crate::wire::message::ErrorReply> {
    let catalog = |name: &str| match name {
        "nodes" | "pg_nodes" => Some(COLUMNS),
        _ => None,
    };
    Plan::of(sql, &catalog, Vec::new())
}

/// Rows as psql shows them unaligned.
pub(super) fn told_with(sql: &str, parameters: &[Value]) -> String {
    let made = plan(sql).and_then(|plan| {
        plan.run(
            rows(),
            parameters,
            &session(),
            60_000_000,
            &CancellationToken::new(),
        )
    });
    match made {
        Ok(rows) => {
            let line = |row: &Row| row.iter().map(Value::to_text).collect::<Vec<_>>().join("|");
            rows.iter().map(line).collect::<Vec<_>>().join(" ")
        }
        Err(reply) => format!("{} {}", reply.code, reply.message),
    }
}

pub(super) fn told(sql: &str) -> String {
    told_with(sql, &[])
}

pub(super) fn refused(sql: &str) -> String {
    let told = told(sql);
    told.split(' ').next().unwrap_or_default().to_owned()
}

#[test]
fn rows_are_chosen_ordered_and_cut() {
    for (sql, expected) in [
        ("SELECT id FROM nodes WHERE name = 'node2'", "2"),
        ("select ID from Nodes n where n.name = $$node2$$", "2"),
        ("SELECT nodes.id FROM public.nodes WHERE up", "1 2 4 5"),
        ("SELECT id FROM nodes WHERE NOT up", "3"),
        ("SELECT id FROM nodes WHERE lag <> 10", "1 5"),
        ("SELECT id FROM nodes WHERE lag IS NULL", "3"),
        ("SELECT id FROM nodes WHERE lag IS DISTINCT FROM 10", "1 3 5"),
        ("SELECT id FROM nodes WHERE lag IN (0, 7)", "1 5"),
        ("SELECT id FROM nodes WHERE lag NOT IN (0, NULL)", ""),
        ("SELECT id FROM nodes WHERE lag BETWEEN 5 AND '9'", "5"),
        ("SELECT id FROM nodes WHERE NOT lag BETWEEN 5 AND 9", "1 2 4"),
        ("SELECT id FROM nodes WHERE name LIKE 'node_'", "1 2 3 5"),
        ("SELECT id FROM nodes WHERE name NOT ILIKE 'NODE%'", "4"),
        ("SELECT id FROM nodes WHERE name ~ '^node[1-3]$'", "1 2 3"),
        ("SELECT id FROM nodes WHERE name !~ 'node'", "4"),
        ("SELECT id FROM nodes WHERE 'b' = ANY(tags)", "1 3"),
        ("SELECT id FROM nodes WHERE name = ANY('{node1,node3}')", "1 3"),
        ("SELECT id FROM nodes WHERE id = ANY(ARRAY[1, 5])", "1 5"),
        ("SELECT id FROM nodes WHERE load > 1", "2 4"),
        ("SELECT id FROM nodes WHERE load = 'NaN'", "4"),
        ("SELECT id FROM nodes WHERE at > '1970-01-01 00:00:03Z'", "4 5"),
        (
            "SELECT id FROM nodes WHERE at >= now() - interval '56 seconds'",
            "4 5",
        ),
        (
            "SELECT id FROM nodes WHERE up AND (lag = 0 OR name = 'node5')",
            "1 5",
        ),
        ("SELECT id FROM nodes ORDER BY lag", "1 5 2 4 3"),
        ("SELECT id FROM nodes ORDER BY lag DESC, id DESC", "3 4 2 5 1"),
        (
            "SELECT id FROM nodes ORDER BY lag DESC NULLS LAST, 1",
            "2 4 5 1 3",
        ),
        ("SELECT id FROM nodes ORDER BY -id", "5 4 3 2 1"),
        (
            "SELECT id AS x FROM nodes ORDER BY x DESC LIMIT 2 OFFSET 1",
            "4 3",
        ),
        ("SELECT id FROM nodes LIMIT 0", ""),
        ("SELECT id FROM nodes LIMIT NULL OFFSET 3", "4 5"),
        ("SELECT DISTINCT lag FROM nodes ORDER BY lag", "0 7 10 "),
        ("SELECT name FROM nodes ORDER BY name LIMIT 1", "Zoë_4"),
    ] {
        assert_eq!(told(sql), expected, "{sql}");
    }
}

#[test]
fn values_are_computed_as_postgresql_does() {
    for (sql, expected) in [
        ("SELECT 1", "1"),
        ("SELECT 7 / 2, -7 / 2, -7 % 2, 7 / 2.0", "3|-3|-1|3.5"),
        ("SELECT 2 + 3 * 4 - 1", "13"),
        ("SELECT -2147483648, 2147483648 * 2", "-2147483648|4294967296"),
        ("SELECT 'a' || 1 || NULL", ""),
        ("SELECT 'a' || 1", "a1"),
        ("SELECT 'it''s', E'a\\nb'", "it's|a\nb"),
        ("SELECT NULL AND false, NULL OR true, NOT NULL::bool", "f|t|"),
        (
            "SELECT true::text, '1'::int + 1, 2.5::int, 3.5::int",
            "true|2|2|4",
        ),
        ("SELECT CAST(1 AS boolean), 'on'::bool", "t|t"),
        ("SELECT upper('é'), length('é'), lower('A')", "É|1|a"),
        (
            "SELECT coalesce(NULL, 2.5, 1), coalesce(lag, -1) FROM nodes WHERE id = 3",
            "2.5|-1",
        ),
        (
            "SELECT abs(-3), floor(-1.5), ceil(1.2), round(2.5), round(1.25, 1)",
            "3|-2|2|3|1.3",
        ),
        ("SELECT extract(epoch from at) FROM nodes WHERE id = 2", "2"),
        (
            "SELECT extract(epoch from at - '1970-01-01') FROM nodes WHERE id = 2",
            "2",
        ),
        (
            "SELECT at + '1 min' FROM nodes WHERE id = 2",
            "1970-01-01 00:01:02+00",
        ),
        (
            "SELECT CASE WHEN lag > 5 THEN 'late' WHEN lag = 0 THEN 'none' END FROM nodes",
            "none late  late late",
        ),
        (
            "SELECT CASE id WHEN 1 THEN 'one' ELSE name END FROM nodes WHERE id < 3",
            "one node2",
        ),
        (
            "SELECT current_user, current_database(), now()",
            "admin|trunkline|1970-01-01 00:01:00+00",
        ),
        (
            "SELECT pg_catalog.version(), pg_is_in_recovery()",
            "PostgreSQL 14.0|f",
        ),
        (
            "SELECT cardinality(tags), tags FROM nodes WHERE id = 4",
            "1|{\"c d\"}",
        ),
        (
            "SELECT NULL IS NULL, 1 IS NOT NULL, (lag > 1) IS NOT TRUE FROM nodes WHERE id = 3",
            "t|t|t",
        ),
    ] {
        assert_eq!(told(sql), expected, "{sql}");
    }
}

#[test]
fn rows_are_grouped() {
    for (sql, expected) in [
        ("SELECT count(*) FROM nodes", "5"),
        (
            "SELECT count(lag), count(DISTINCT lag), sum(lag), avg(lag), min(lag), max(lag) FROM nodes",
            "4|3|27|6.75|0|10",
        ),
        (
            "SELECT count(*), sum(lag), bool_and(up) FROM nodes WHERE false",
            "0||",
        ),
        (
            "SELECT lag, count(*) FROM nodes GROUP BY lag ORDER BY count(*) DESC, lag",
            "10|2 0|1 7|1 |1",
        ),
        (
            "SELECT up AS is_up, count(*) FROM nodes GROUP BY is_up ORDER BY 1",
            "f|1 t|4",
        ),
        (
            "SELECT lag + 1, count(*) FROM nodes GROUP BY lag + 1 HAVING count(*) > 1",
            "11|2",
        ),
        (
            "SELECT (lag + 1) * 2 FROM nodes GROUP BY lag + 1 ORDER BY 1 LIMIT 1",
            "2",
        ),
        ("SELECT count(*) FILTER (WHERE lag > 5) FROM nodes", "3"),
        (
            "SELECT max(name), min(at) FROM nodes",
            "node5|1970-01-01 00:00:01+00",
        ),
        ("SELECT sum(load) FROM nodes WHERE id <> 4", "0"),
        ("SELECT 'x' FROM nodes HAVING count(*) = 5", "x"),
        ("SELECT bool_or(up), every(up) FROM nodes", "t|f"),
        ("SELECT count(*) * 2 + max(id) FROM nodes", "15"),
        (
            "SELECT DISTINCT count(*) FROM nodes GROUP BY lag ORDER BY 1",
            "1 2",
        ),
    ] {
        assert_eq!(told(sql), expected, "{sql}");
    }
}

#[test]
fn what_is_wrong_is_refused_with_postgresqls_code() {
    for (sql, code) in [
        ("SELECT x FROM nodes", "42703"),
        ("SELECT id", "42703"),
        ("SELECT \"ID\" FROM nodes", "42703"),
        ("SELECT other.id FROM nodes", "42P01"),
        ("SELECT nodes.id FROM nodes n", "42P01"),
        ("SELECT * FROM nowhere", "42P01"),
        ("SELECT * FROM pg_catalog.nodes", "42P01"),
        ("SELECT * FROM public.pg_nodes", "42P01"),
        ("SELECT *", "42601"),
        ("SELECT FROM WHERE", "42601"),
        ("SELECT 'a", "42601"),
        ("SELECT id FROM nodes WHERE name = 1", "42883"),
        ("SELECT id FROM nodes WHERE id = 'x'", "22P02"),
        ("SELECT id FROM nodes WHERE id", "42804"),
        ("SELECT id FROM nodes WHERE up > 1", "42883"),
        ("SELECT nothing(1)", "42883"),
        ("SELECT lower(1)", "42883"),
        ("SELECT upper(DISTINCT 'a')", "42883"),
        ("SELECT 1 / 0", "22012"),
        ("SELECT 1.0 / 0", "22012"),
        ("SELECT 2147483647 + 1", "22003"),
        ("SELECT 9223372036854775808", "22003"),
        ("SELECT 3000000000::int", "22003"),
        ("SELECT 'NaN'::float8::int", "22003"),
        ("SELECT now() - '1 hour'", "22007"),
        ("SELECT tags::int FROM nodes", "42846"),
        ("SELECT name, count(*) FROM nodes", "42803"),
        ("SELECT * FROM nodes GROUP BY id", "42803"),
        ("SELECT id FROM nodes WHERE count(*) > 1", "42803"),
        ("SELECT sum(count(*)) FROM nodes", "42803"),
        ("SELECT count(*) FROM nodes GROUP BY count(*)", "42803"),
        ("SELECT sum(name) FROM nodes", "42883"),
        ("SELECT DISTINCT id FROM nodes ORDER BY lag", "42P10"),
        ("SELECT id FROM nodes ORDER BY 2", "42P10"),
        ("SELECT id FROM nodes ORDER BY 'x'", "42601"),
        ("SELECT id AS a, lag AS a FROM nodes ORDER BY a", "42702"),
        ("SELECT id FROM nodes LIMIT -1", "2201W"),
        ("SELECT id FROM nodes OFFSET -1", "2201X"),
        ("SELECT id FROM nodes LIMIT id", "42703"),
        ("SELECT $0", "42P02"),
        ("SELECT $101", "42P02"),
        ("SELECT $2::int", "42P18"),
        ("SELECT id FROM nodes WHERE name ~ '(?=a)'", "2201B"),
        ("SELECT id FROM nodes WHERE name LIKE 'a\\'", "22025"),
    ] {
        assert_eq!(refused(sql), code, "{sql}: {}", told(sql));
    }
}

/// Nothing is passed over.
#[test]
fn what_is_not_read_is_refused_with_a_hint() {
    for sql in [
        "SELECT id FROM nodes, nodes n",
        "SELECT id FROM nodes JOIN nodes n USING (id)",
        "SELECT id FROM (SELECT * FROM nodes) n",
        "SELECT (SELECT 1)",
        "SELECT id FROM nodes WHERE id IN (SELECT 1)",
        "SELECT id FROM nodes WHERE EXISTS (SELECT 1)",
        "SELECT 1 UNION SELECT 2",
        "(SELECT 1)",
        "VALUES (1)",
        "WITH a AS (SELECT 1) SELECT * FROM nodes",
        "SELECT id FROM nodes FOR UPDATE",
        "SELECT id FROM nodes FETCH FIRST ROW ONLY",
        "SELECT DISTINCT ON (lag) id FROM nodes",
        "SELECT row_number() OVER () FROM nodes",
        "SELECT id FROM nodes TABLESAMPLE SYSTEM (10)",
        "SELECT id FROM ONLY nodes",
        "SELECT * EXCEPT (id) FROM nodes",
        "SELECT id INTO x FROM nodes",
        "SELECT count(*) FROM nodes GROUP BY ROLLUP (lag)",
        "SELECT count(*) FROM nodes GROUP BY ALL",
        "SELECT string_agg(name, ',' ORDER BY name) FROM nodes",
        "SELECT tags[1] FROM nodes",
        "SELECT name COLLATE \"C\" FROM nodes",
        "SELECT at AT TIME ZONE 'UTC' FROM nodes",
        "SELECT id::numeric FROM nodes",
        "SELECT id::smallint FROM nodes",
        "SELECT name::varchar(3) FROM nodes",
        "SELECT 2 ^ 3",
        "SELECT 5 & 3",
        "SELECT name SIMILAR TO 'a' FROM nodes",
        "SELECT now() - now()",
        "SELECT x FROM nodes AS n(x)",
        "SELECT 1; SELECT 2",
        "INSERT INTO nodes VALUES (1)",
        "SELECT id FROM nodes WHERE name ~ name",
        "SELECT B'1'",
    ] {
        let reply = plan(sql).map(|_| ()).unwrap_err();
        assert!(
            reply.code == "0A000" || reply.code == "42883" || reply.code == "42601",
            "{sql}: {reply:?}"
        );
        assert!(reply.code != "0A000" || reply.hint.is_some(), "{sql}: {reply:?}");
    }
}

#[test]
fn parameters_get_the_type_of_what_they_are_compared_with() {
    let kinds = |sql| plan(sql).unwrap().parameters().to_vec();
    assert_eq!(
        kinds("SELECT $2::text FROM nodes WHERE id = $1 AND up = $3 LIMIT $4"),
        [Kind::Int8, Kind::Text, Kind::Bool, Kind::Int8]
    );
    assert_eq!(
        kinds("SELECT id FROM nodes WHERE name = ANY($1)"),
        [Kind::TextArray]
    );
    assert_eq!(
        kinds("SELECT id FROM nodes WHERE at > $1 AND load < $2"),
        [Kind::Timestamp, Kind::Float8]
    );
    // What the first use says counts for the others.
    assert_eq!(
        refused("SELECT id FROM nodes WHERE id = $1 OR name = $1"),
        "42883"
    );
    assert_eq!(
        told_with(
            "SELECT id FROM nodes WHERE name LIKE $1 ORDER BY id LIMIT $2",
            &[Value::text("node%"), Value::Int(2)]
        ),
        "1 2"
    );
    assert_eq!(
        told_with("SELECT id FROM nodes WHERE id = $1", &[Value::Null]),
        ""
    );
}

#[test]
fn columns_have_postgresqls_names_and_types() {
    let outputs = |sql: &str| -> Vec<String> {
        let plan = plan(sql).unwrap();
        let shown = |column: &OutputColumn| format!("{} {}", column.name, column.kind.short_name());
        plan.outputs().iter().map(shown).collect()
    };
    assert_eq!(
        outputs(
            "SELECT id, n.lag, count(*), id + 1, 'a', '1'::int, lag::text, true, $1, now(), extract(epoch FROM at), \
                 coalesce(lag, id), CASE WHEN up THEN 1 END, name AS \"N\" FROM nodes n GROUP BY 1, 2, 7, at, up, name"
        ),
        [
            "id int8",
            "lag int4",
            "count int8",
            "?column? int8",
            "?column? text",
            "int4 int4",
            "lag text",
            "bool bool",
            "?column? text",
            "now timestamptz",
            "extract float8",
            "coalesce int8",
            "case int4",
            "N text",
        ]
    );
    assert_eq!(outputs("SELECT * FROM nodes").len(), COLUMNS.len());
}

#[test]
fn who_asks_is_answered_however_it_is_asked() {
    for sql in [
        "SELECT user",
        "SELECT current_user",
        "SELECT session_user",
        "SELECT current_role",
    ] {
        assert_eq!(told(sql), "admin", "{sql}");
    }
    assert_eq!(told("SELECT count(*) FROM nodes WHERE user = 'admin'"), "5");
}

#[test]
fn table_stands_for_all_of_a_view() {
    assert_eq!(told("TABLE nodes"), told("SELECT * FROM nodes"));
    assert_eq!(
        told("table public.nodes ORDER BY id DESC LIMIT 1"),
        told("SELECT * FROM nodes WHERE id = 5")
    );
    assert_eq!(refused("TABLE"), "42601");
    assert_eq!(refused("TABLE nothing"), "42P01");
}
