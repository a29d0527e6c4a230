//! Known cases of the protocol: through a pool a client hears message by message what it hears on a
//! server connection of its own, though it has another connection of two for each transaction.

use std::collections::BTreeSet;

use super::{FIRST_PORT, bind_named, cheapen, login, parse_named, process, router, seen};
use crate::cluster::postgres::{Options, Postgres};
use crate::raw::{Client, Login, execute, extended, framed, query, shown, sync};

/// Name and steps; each step is sent at once and answered by one `ReadyForQuery`.
type Case = (&'static str, Vec<Vec<u8>>);

fn queries(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| query(text)).collect()
}

fn batch(parts: &[Vec<u8>]) -> Vec<u8> {
    [&parts.concat()[..], &sync()].concat()
}

fn prepares(name: &str, sql: &str) -> Vec<u8> {
    batch(&[parse_named(name, sql, &[])])
}

fn runs(name: &str, parameters: &[&str]) -> Vec<u8> {
    batch(&[bind_named(name, parameters), execute()])
}

/// Binds the unnamed statement to a portal.
fn bind_portal(portal: &str) -> Vec<u8> {
    framed(b'B', format!("{portal}\0\0\0\0\0\0\0\0").as_bytes())
}

fn fetch(portal: &str, rows: u8) -> Vec<u8> {
    let mut body = format!("{portal}\0").into_bytes();
    body.extend([0, 0, 0, rows]);
    framed(b'E', &body)
}

fn close_statement(name: &str) -> Vec<u8> {
    framed(b'C', format!("S{name}\0").as_bytes())
}

fn describe_statement(name: &str) -> Vec<u8> {
    framed(b'D', format!("S{name}\0").as_bytes())
}

#[allow(clippy::too_many_lines, reason = "a list")]
fn cases() -> Vec<Case> {
    let data = framed(b'd', b"8\n");
    let (done, fail) = (framed(b'c', b""), framed(b'f', b"no\0"));
    vec![
        (
            "a COMMIT that rolls back",
            queries(&["BEGIN", "SELECT 1/0", "COMMIT", "SELECT 1"]),
        ),
        (
            "AND CHAIN",
            queries(&[
                "BEGIN ISOLATION LEVEL SERIALIZABLE",
                "COMMIT AND CHAIN",
                "SHOW transaction_isolation",
                "ROLLBACK AND CHAIN",
                "SELECT 1/0",
                "ROLLBACK AND CHAIN",
                "COMMIT",
            ]),
        ),
        (
            "a failed transaction",
            queries(&[
                "BEGIN",
                "SELECT 1/0",
                "SAVEPOINT a",
                "PREPARE TRANSACTION 'x'",
                "SELECT 2",
            ]),
        ),
        (
            "a text that ends a failed transaction",
            queries(&["BEGIN", "SELECT 1/0", "ROLLBACK; SELECT 2"]),
        ),
        (
            "savepoints",
            queries(&[
                "BEGIN",
                "SET work_mem = '5MB'",
                "SAVEPOINT a",
                "SET work_mem = '6MB'",
                "SELECT 1/0",
                "ROLLBACK TO a",
                "SHOW work_mem",
                "COMMIT",
                "SHOW work_mem",
            ]),
        ),
        (
            "two phases",
            queries(&[
                "BEGIN; INSERT INTO c.t VALUES (5)",
                "PREPARE TRANSACTION 'pool'",
                "SELECT * FROM c.t",
                "COMMIT PREPARED 'pool'",
                "SELECT * FROM c.t",
            ]),
        ),
        (
            "what no transaction may hold, behind a setting that is restored",
            queries(&[
                "SET work_mem = '7MB'",
                "VACUUM c.t",
                "CREATE INDEX CONCURRENTLY i ON c.t (a)",
                "BEGIN ISOLATION LEVEL REPEATABLE READ",
                "SHOW transaction_isolation",
                "COMMIT",
                "CALL c.commits()",
                "DO $$ BEGIN COMMIT; END $$",
                "SHOW work_mem",
            ]),
        ),
        (
            "what no transaction may hold, in a batch",
            vec![
                batch(&[
                    parse_named("v", "VACUUM c.t", &[]),
                    bind_named("v", &[]),
                    execute(),
                ]),
                runs("v", &[]),
                batch(&[extended("SELECT 1"), extended("VACUUM c.t")]),
                batch(&[extended("SELECT 1"), extended("DISCARD ALL")]),
                batch(&[extended("CALL c.commits()")]),
            ],
        ),
        (
            "transactions in a batch",
            vec![
                batch(&[
                    extended("INSERT INTO c.t VALUES (1)"),
                    extended("COMMIT"),
                    extended("SELECT 1/0"),
                ]),
                query("SELECT * FROM c.t"),
                batch(&[
                    extended("INSERT INTO c.t VALUES (2)"),
                    extended("SELECT 1/0"),
                    extended("SELECT 1"),
                ]),
                query("SELECT * FROM c.t"),
                batch(&[extended("SELECT 1"), extended("LOCK c.t"), extended("SELECT 2")]),
                batch(&[extended("BEGIN"), extended("INSERT INTO c.t VALUES (3)")]),
                query("ROLLBACK"),
            ],
        ),
        (
            "a query in a batch that has failed",
            vec![
                batch(&[extended("SELECT 1/0"), query("SELECT 5")]),
                query("SELECT 6"),
            ],
        ),
        (
            "a named statement",
            vec![
                prepares("s", "SELECT $1::int + 1"),
                runs("s", &["1"]),
                runs("s", &["x"]),
                batch(&[describe_statement("s")]),
                prepares("s", "SELECT 2"),
                runs("s", &["3"]),
                batch(&[close_statement("s"), close_statement("s")]),
                runs("s", &["4"]),
                prepares("s", "SELECT 5"),
                runs("s", &[]),
            ],
        ),
        (
            "a statement that cannot be prepared",
            vec![
                prepares("s", "SELECT nothing"),
                prepares("s", "SELECT nothing"),
                runs("s", &[]),
                prepares("s", "SELECT 1"),
                runs("s", &[]),
            ],
        ),
        (
            "a Parse that is skipped",
            vec![
                batch(&[extended("SELECT 1/0"), parse_named("s", "SELECT 1", &[])]),
                runs("s", &[]),
                batch(&[parse_named("k", "SELECT 7", &[]), extended("SELECT 1/0")]),
                runs("k", &[]),
            ],
        ),
        (
            "a Parse in a transaction that rolls back, and in one that has failed",
            vec![
                query("BEGIN"),
                prepares("s", "SELECT 1"),
                query("SELECT 1/0"),
                prepares("f", "SELECT 1"),
                prepares("r", "ROLLBACK"),
                runs("s", &[]),
                runs("r", &[]),
                runs("s", &[]),
                runs("f", &[]),
                runs("r", &[]),
            ],
        ),
        (
            "the unnamed statement",
            vec![
                prepares("", "SELECT 7"),
                runs("", &[]),
                runs("", &[]),
                batch(&[extended("SELECT 1/0")]),
                runs("", &[]),
                prepares("", "SELECT 8"),
                query(""),
                runs("", &[]),
                prepares("", "SELECT 9"),
                prepares("", "SELECT nothing"),
                runs("", &[]),
            ],
        ),
        (
            "what takes statements away",
            vec![
                prepares("s", "SELECT 1"),
                query("DEALLOCATE s"),
                runs("s", &[]),
                prepares("s", "SELECT 2"),
                query("DEALLOCATE ALL"),
                runs("s", &[]),
                prepares("s", "SELECT 3"),
                query("DISCARD ALL"),
                runs("s", &[]),
                prepares("s", "SELECT 4"),
                query("DISCARD PLANS"),
                runs("s", &[]),
                query("DEALLOCATE nothing"),
                query("DEALLOCATE s"),
            ],
        ),
        (
            "a parameter's type that is changed later",
            vec![
                prepares("s", "SELECT a FROM c.t WHERE a = $1"),
                runs("s", &["1"]),
                query("ALTER TABLE c.t ALTER a TYPE bigint"),
                runs("s", &["1"]),
                query("ALTER TABLE c.t ALTER a TYPE int"),
                runs("s", &["1"]),
            ],
        ),
        (
            "columns that are changed later",
            vec![
                prepares("s", "SELECT * FROM c.t"),
                runs("s", &[]),
                query("ALTER TABLE c.t ADD b int"),
                runs("s", &[]),
                batch(&[describe_statement("s")]),
                query("ALTER TABLE c.t DROP b"),
                runs("s", &[]),
            ],
        ),
        (
            "a search_path of its own",
            vec![
                query("CREATE TABLE c.o AS SELECT 'c' AS n; CREATE TABLE d.o AS SELECT 'd' AS n"),
                query("SET search_path = c"),
                prepares("s", "SELECT n FROM o"),
                runs("s", &[]),
                query("SET search_path = d"),
                runs("s", &[]),
                query("SET search_path = ''"),
                runs("s", &[]),
                query("SHOW search_path"),
                query("SELECT set_config('search_path', '', false)"),
                query("SHOW search_path"),
            ],
        ),
        (
            "portals",
            vec![
                query("BEGIN"),
                batch(&[
                    parse_named("", "SELECT * FROM generate_series(1, 5)", &[]),
                    bind_portal("p"),
                    fetch("p", 2),
                ]),
                query("SELECT 1"),
                batch(&[fetch("p", 2)]),
                batch(&[fetch("p", 2)]),
                query("COMMIT"),
                batch(&[fetch("p", 2)]),
                batch(&[
                    parse_named("", "SELECT * FROM generate_series(1, 5)", &[]),
                    bind_portal("p"),
                    fetch("p", 2),
                    fetch("p", 9),
                ]),
                batch(&[fetch("p", 2)]),
            ],
        ),
        (
            "cursors",
            vec![
                query("DECLARE h CURSOR WITH HOLD FOR SELECT * FROM generate_series(1, 5)"),
                query("FETCH h"),
                batch(&[fetch("h", 2)]),
                query("CLOSE h"),
                query("FETCH h"),
                query("BEGIN; DECLARE k CURSOR FOR SELECT 1"),
                query("COMMIT"),
                query("FETCH k"),
            ],
        ),
        (
            "COPY",
            vec![
                [query("COPY c.t FROM STDIN"), data.clone(), done.clone()].concat(),
                [query("COPY c.t FROM STDIN"), data.clone(), fail.clone()].concat(),
                [query("COPY c.t FROM STDIN"), framed(b'd', b"x\n"), done.clone()].concat(),
                [
                    extended("COPY c.t FROM STDIN"),
                    data.clone(),
                    sync(),
                    done.clone(),
                    sync(),
                ]
                .concat(),
                [extended("COPY c.t FROM STDIN"), fail, sync()].concat(),
                query("COPY c.t TO STDOUT"),
                batch(&[extended("COPY c.t TO STDOUT")]),
                query("SELECT * FROM c.t"),
            ],
        ),
        (
            "texts and values in other forms",
            queries(&[
                "SET TIME ZONE INTERVAL '-08:00' HOUR TO MINUTE",
                "SHOW TimeZone",
                "SET DateStyle = German",
                "SET DateStyle = 'MDY'",
                "SHOW DateStyle",
                "SET NAMES 'LATIN1'",
                "SELECT octet_length('\u{e9}')",
                "SET app.x = '\u{e9}'",
                "SELECT octet_length(current_setting('app.x'))",
                "RESET ALL",
                "SHOW DateStyle",
                "SELECT octet_length('\u{e9}')",
                "SHOW app.never_set",
            ]),
        ),
        (
            "notifications",
            queries(&[
                "LISTEN x",
                "BEGIN; NOTIFY x",
                "SELECT 1",
                "COMMIT",
                "NOTIFY x",
                "UNLISTEN x",
                "NOTIFY x",
            ]),
        ),
        (
            "several statements in a text, and none",
            vec![
                query("SELECT 1; SELECT 2"),
                query("INSERT INTO c.t VALUES (1); SELECT 1/0"),
                query("SELECT * FROM c.t"),
                query("BEGIN; SELECT 1; COMMIT; SELECT 1/0"),
                query(""),
                query(";"),
                batch(&[extended("")]),
                sync(),
                query("SELEC 1"),
            ],
        ),
        (
            "SQL PREPARE",
            queries(&[
                "PREPARE q (int) AS SELECT $1 * 2",
                "EXECUTE q(4)",
                "PREPARE q AS SELECT 1",
                "DEALLOCATE q",
                "EXECUTE q(4)",
                "BEGIN",
                "PREPARE q AS SELECT 3",
                "ROLLBACK",
                "EXECUTE q",
                "DEALLOCATE ALL",
                "EXECUTE q",
            ]),
        ),
    ]
}

/// Two that hold one of the two connections in turn, so that the client's next transaction has the
/// other one. While the client keeps its connection there is none for the second of them.
struct Movers([Client; 2], usize);

impl Movers {
    fn step(&mut self) {
        let Self(clients, turn) = self;
        *turn += 1;
        let [even, odd] = clients;
        let (begins, ends) = if turn.is_multiple_of(2) {
            (even, odd)
        } else {
            (odd, even)
        };
        begins.ask("BEGIN");
        ends.ask("ROLLBACK");
    }
}

fn hears(
    server: &Postgres,
    client: &mut Client,
    steps: &[Vec<u8>],
    mut movers: Option<&mut Movers>,
) -> Vec<String> {
    server.sql_in(
        "app",
        "DROP SCHEMA IF EXISTS c, d CASCADE; CREATE SCHEMA c AUTHORIZATION app; CREATE SCHEMA d AUTHORIZATION app; \
         SET ROLE app; CREATE TABLE c.t (a int); \
         CREATE PROCEDURE c.commits() LANGUAGE plpgsql AS 'BEGIN COMMIT; END'",
    );
    steps
        .iter()
        .map(|step| {
            if let Some(movers) = &mut movers {
                movers.step();
            }
            client.send(step);
            // Parameters are told when the next connection has them.
            let frames: Vec<_> = client
                .ready()
                .into_iter()
                .filter(|frame| frame.tag != b'S')
                .collect();
            format!("{} / {}", shown(&frames).join(" "), seen(&frames))
        })
        .collect()
}

fn play(version_18: bool) {
    let server = Postgres::start(&Options {
        version_18,
        conf: "max_prepared_transactions = 5\n".to_owned(),
        ..Options::default()
    });
    cheapen(&server);
    let router = router(&server, &["max_connections: 2"], "100ms");
    let mut movers = Movers([0, 1].map(|_| login(&router, FIRST_PORT, "app", "app")), 0);
    movers.0[0].ask("BEGIN");
    let mut client = login(&router, FIRST_PORT, "app", "app");
    let moved: BTreeSet<String> = (0..4)
        .map(|_| {
            movers.step();
            process(&mut client)
        })
        .collect();
    assert_eq!(moved.len(), 2, "another connection each time");
    for (name, steps) in cases() {
        let mut alone = Client::login((server.address, server.port).into(), Login::default());
        let expected = hears(&server, &mut alone, &steps, None);
        let mut client = login(&router, FIRST_PORT, "app", "app");
        let heard = hears(&server, &mut client, &steps, Some(&mut movers));
        assert_eq!(heard, expected, "{name}");
    }
}

#[test]
fn known_cases_are_answered_as_on_a_connection_of_ones_own_with_postgresql_15() {
    play(false);
}

#[test]
fn known_cases_are_answered_as_on_a_connection_of_ones_own_with_postgresql_18() {
    play(true);
}
