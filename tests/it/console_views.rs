//! The console's views and its SQL, beside PostgreSQL with the same rows.
#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::process::{Command, Stdio};

use tokio_postgres::SimpleQueryMessage;

use crate::cluster::postgres::{Options as ServerOptions, Postgres, psql_18};
use crate::cluster::{Certificates, Options, Router, output, project, secret, succeed};
use crate::drivers::{Rustls, cache};

const RULES: &str = "\
hostssl all trunkline 127.0.0.0/8 scram-sha-256
hostssl app,\"all\" \"app\",+app 10.0.0.0/8 scram-sha-256 clientcert=verify-ca
hostnossl replication all 10.1.2.3 255.255.255.255 reject
host samerole \"\" ::1/128 reject
host all all .example.com reject
host all all all scram-sha-256
";

/// A server that leads, and a router whose console is for `admin`.
fn led() -> (Postgres, Router) {
    let server = Postgres::start(&ServerOptions {
        version_18: true,
        ..ServerOptions::default()
    });
    server.sql("CREATE ROLE admin LOGIN PASSWORD 'admin'");
    let data = server.data();
    let hba = data.join("rules.conf");
    std::fs::write(&hba, RULES).unwrap();
    let password = secret(&data, "app-password", "app");
    let ca = Certificates::shared().file("ca.crt");
    let tls = Certificates::shared()
        .yaml()
        .replace("tls:\n", &format!("tls:\n  client_ca_file: {}\n", ca.display()));
    let options = Options {
        clusters: Some(server.yaml()),
        tls: Some(tls),
        extra: format!(
            "auth:\n  hba_file: {}\n  server_credentials: [{{users: [app], password_file: {}}}]\n\
             console: {{users: [admin]}}\n",
            hba.display(),
            password.display()
        ),
        ..Options::default()
    };
    let router = Router::launch(None, options);
    router.await_read_write();
    (server, router)
}

fn dsn(router: &Router) -> String {
    router.dsn(6432, "dbname=trunkline user=admin password=admin")
}

/// What psql prints, errors included.
fn told(mut psql: Command, dsn: &str, command: &str) -> String {
    let output = output(psql.args(["-XAt", "-P", "null=NULL", "-c", command]).arg(dsn));
    String::from_utf8([output.stdout, output.stderr].concat())
        .unwrap()
        .trim()
        .to_owned()
}

/// As [`told`], with commands that psql reads from its input.
fn told_by_input(mut psql: Command, dsn: &str, commands: &str) -> String {
    let psql = psql.args(["-XAt", "-P", "null=null", "-f", "-"]).arg(dsn);
    psql.stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = psql.spawn().unwrap();
    writeln!(child.stdin.take().unwrap(), "{commands}").unwrap();
    let output = child.wait_with_output().unwrap();
    String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
}

/// psql with libpq of two releases, and those that `TRUNKLINE_TEST_PSQL` names, separated by
/// colons: other releases of psql.
fn psqls() -> Vec<Box<dyn Fn() -> Command>> {
    let mut all: Vec<Box<dyn Fn() -> Command>> = vec![Box::new(|| Command::new("psql")), Box::new(psql_18)];
    for program in std::env::var("TRUNKLINE_TEST_PSQL")
        .unwrap_or_default()
        .split(':')
    {
        let program = program.to_owned();
        if !program.is_empty() {
            all.push(Box::new(move || Command::new(&program)));
        }
    }
    all
}

/// Makes a table of PostgreSQL's with the rows and the types of a view.
async fn copied(server: &Postgres, client: &tokio_postgres::Client, view: &str) {
    let select = format!("SELECT * FROM {view}");
    let statement = client.prepare(&select).await.unwrap();
    let columns: Vec<String> = statement
        .columns()
        .iter()
        .map(|column| {
            let kind = match column.type_().name() {
                "_text" => "text[] COLLATE \"C\"",
                "text" => "text COLLATE \"C\"",
                name => name,
            };
            format!("\"{}\" {kind}", column.name())
        })
        .collect();
    // In PostgreSQL a view of this name is there already.
    let table = view.replace("pg_", "");
    server.sql(&format!("CREATE TABLE {table} ({})", columns.join(", ")));
    let mut rows = 0;
    for message in client.simple_query(&select).await.unwrap() {
        let SimpleQueryMessage::Row(row) = message else {
            continue;
        };
        let literal = |value: Option<&str>| {
            value.map_or("NULL".to_owned(), |value| {
                format!("'{}'", value.replace('\'', "''"))
            })
        };
        let values: Vec<String> = (0..row.len()).map(|index| literal(row.get(index))).collect();
        server.sql(&format!("INSERT INTO {table} VALUES ({})", values.join(", ")));
        rows += 1;
    }
    assert!(rows > 0, "{view}");
}

/// Over what does not change while it is looked at.
const QUERIES: &[&str] = &[
    "SELECT * FROM hba_file_rules ORDER BY line_number",
    "SELECT * FROM member_routes ORDER BY member, route",
    "SELECT number, at, level, event, cluster, member, text FROM events ORDER BY number",
    "SELECT cluster, member, host, port, role, is_leader, timeline, lag, status, admin, weight, zone FROM members",
    "SELECT rule_number * 2 + 1, rule_number / 2, rule_number % 2, -rule_number FROM hba_file_rules ORDER BY 1",
    "SELECT type, count(*), min(line_number), max(address), sum(rule_number) FROM hba_file_rules GROUP BY type ORDER BY 2 DESC, 1",
    "SELECT count(*), count(address), count(DISTINCT type), bool_and(error IS NULL) FROM hba_file_rules",
    "SELECT type FROM hba_file_rules GROUP BY type HAVING count(*) > 1 ORDER BY type DESC LIMIT 1 OFFSET 0",
    "SELECT DISTINCT auth_method FROM hba_file_rules ORDER BY auth_method",
    "SELECT address FROM hba_file_rules ORDER BY address NULLS FIRST, rule_number LIMIT 3",
    "SELECT address FROM hba_file_rules ORDER BY address DESC",
    "SELECT rule_number FROM hba_file_rules WHERE netmask IS NULL OR address LIKE '1%.0' ORDER BY 1",
    "SELECT rule_number FROM hba_file_rules WHERE NOT (netmask = '255.255.255.255') ORDER BY 1",
    "SELECT rule_number FROM hba_file_rules WHERE 'all' = ANY(database) AND rule_number IN (1, 2, 5, 6) ORDER BY 1",
    "SELECT rule_number FROM hba_file_rules WHERE rule_number BETWEEN 2 AND 4 AND type <> 'host' ORDER BY 1",
    "SELECT upper(type) || '-' || rule_number FROM hba_file_rules WHERE type ~ '^host(ssl)?$' ORDER BY rule_number",
    "SELECT type, CASE WHEN auth_method = 'reject' THEN 1 ELSE 0 END FROM hba_file_rules ORDER BY rule_number",
    "SELECT CASE type WHEN 'host' THEN 'either' WHEN 'hostssl' THEN 'tls' END FROM hba_file_rules ORDER BY rule_number",
    "SELECT coalesce(address, netmask, 'none'), length(type), cardinality(user_name) FROM hba_file_rules ORDER BY rule_number",
    "SELECT rule_number::text, rule_number::float8 / 4, (rule_number::float8 / 2)::int, rule_number::bigint FROM hba_file_rules ORDER BY rule_number",
    "SELECT (rule_number > 2)::text, rule_number > 2, rule_number = 3 IS TRUE FROM hba_file_rules ORDER BY rule_number",
    "SELECT database, user_name, options FROM hba_file_rules WHERE database <> '{all}' ORDER BY rule_number",
    "SELECT max(at) = min(at) OR max(at) > min(at) FROM events",
    "SELECT number FROM events WHERE at < now() - interval '-1 day' AND at > '1999-12-31 23:59:59+01' ORDER BY number",
    "SELECT extract(epoch FROM at)::float8 = extract(epoch FROM at + interval '90 min')::float8 - 5400 FROM events LIMIT 1",
    "SELECT level, count(*) FILTER (WHERE cluster IS NULL) FROM events GROUP BY level ORDER BY level",
    "SELECT m.member AS \"Member\", m.port + 0.5 FROM members m WHERE m.is_leader AND m.weight >= 0",
    "SELECT 1, 'x', NULL, true, 2.5, -7 / 2, -7 % 2, 'a' < 'B', 1e20::float8, 1e-7::float8, 123456789012345678",
    "SELECT NULL AND false, NULL OR true, NOT NULL::boolean, NULL = NULL, 1 IS DISTINCT FROM NULL",
    "SELECT 2 + 3 * 4 - 10 / 3, (2 + 3) * 4, NOT true OR true, 1 = 1 AND 2 > 1 OR false",
    // Errors, with their codes.
    "SELECT 1 / 0",
    "SELECT nowhere FROM members",
    "SELECT * FROM nowhere",
    "SELECT type, count(*) FROM hba_file_rules",
    "SELECT count(*) FROM hba_file_rules WHERE count(*) > 1",
    "SELECT type FROM hba_file_rules WHERE type = 1",
    "SELECT rule_number FROM hba_file_rules WHERE rule_number = 'x'",
    "SELECT rule_number FROM hba_file_rules WHERE rule_number",
    "SELECT 2147483647 + 1",
    "SELECT DISTINCT type FROM hba_file_rules ORDER BY rule_number",
    "SELECT type FROM hba_file_rules LIMIT -1",
    "SELECT FROM WHERE",
];

#[tokio::test(flavor = "multi_thread")]
async fn queries_are_answered_as_postgresql_answers_them() {
    let (server, router) = led();
    let config: tokio_postgres::Config = dsn(&router).parse().unwrap();
    let (client, connection) = config.connect(Rustls::new()).await.unwrap();
    tokio::spawn(connection);
    for view in ["pg_hba_file_rules", "member_routes", "events", "members"] {
        copied(&server, &client, view).await;
    }
    let theirs = format!(
        "host={} port={} user=postgres password=postgres dbname=postgres sslmode=disable options='-c timezone=UTC'",
        server.address, server.port
    );
    // Of an error its code: messages differ by what the console is.
    let shown = |told: String| {
        let error = told.lines().find_map(|line| line.strip_prefix("ERROR:  "));
        error.map_or(told.clone(), |error| error[..5].to_owned())
    };
    let verbose = || {
        let mut psql = Command::new("psql");
        psql.args(["-v", "VERBOSITY=verbose"]);
        psql
    };
    for query in QUERIES {
        let ours = query.replace("hba_file_rules", "pg_hba_file_rules");
        let ours = shown(told(verbose(), &dsn(&router), &ours));
        let theirs = shown(told(verbose(), &theirs, query));
        assert_eq!(ours, theirs, "{query}");
    }
}

#[test]
fn psql_lists_the_views_and_their_columns() {
    let (_server, router) = led();
    for psql in psqls() {
        for command in ["\\d", "\\dt", "\\dv"] {
            let told = told(psql(), &dsn(&router), command);
            let lines: Vec<&str> = told.lines().collect();
            for line in [
                "public|members|view|trunkline",
                "public|events|view|trunkline",
                "pg_catalog|pg_hba_file_rules|view|trunkline",
            ] {
                assert!(lines.contains(&line), "{command}: {told}");
            }
        }
        let columns = told(psql(), &dsn(&router), "\\d members");
        assert!(columns.contains("lag_seconds|double precision|||"), "{columns}");
        let more = told(psql(), &dsn(&router), "\\d+ routes");
        assert!(more.contains("members|text[]|||"), "{more}");
        assert!(more.contains("Those that may serve it now"), "{more}");
        let few = told(psql(), &dsn(&router), "\\d member*");
        assert!(
            few.contains("fit|boolean") && !few.contains("at|timestamp"),
            "{few}"
        );
        let none = told(psql(), &dsn(&router), "\\d nowhere");
        assert!(
            none.contains("Did not find any relation named \"nowhere\""),
            "{none}"
        );
        let connected = told(psql(), &dsn(&router), "\\conninfo");
        assert!(connected.contains("trunkline"), "{connected}");
        for other in ["\\l", "\\dn", "\\du", "\\df", "\\dx", "\\dconfig"] {
            let told = told(psql(), &dsn(&router), other);
            assert!(told.contains("none of PostgreSQL's catalogs"), "{other}: {told}");
            assert!(told.contains("HINT:  \\d lists its views"), "{other}: {told}");
        }
        for (command, expected) in [
            ("\\dp members", "public|members|view|||"),
            ("SELECT 1 AS x, 'y' AS y \\gdesc", "x|integer\ny|text"),
            ("\\copy (SELECT 1) to stdout", "ERROR:  the console has no COPY"),
        ] {
            let told = told_by_input(psql(), &dsn(&router), command);
            // Some releases show null as they are told to, others as nothing.
            assert!(
                told.to_lowercase()
                    .replace("null", "")
                    .contains(&expected.to_lowercase()),
                "{command}: {told}"
            );
        }
    }
}

#[test]
fn drivers_ask_with_parameters_of_many_types() {
    let (_server, router) = led();
    let python = cache().join("drivers-python/bin/python");
    let mut command = Command::new(python);
    command
        .arg(project().join("tests/drivers/console_asyncpg.py"))
        .env("HOST", router.address.to_string())
        .env("CA", Certificates::shared().file("ca.crt"));
    assert_eq!(succeed(&mut command).trim(), "done");
}
