use super::*;

/// What is found, as a line: names, `~` local custom names, `$` parameters, kinds.
fn found(text: &str) -> String {
    shown(&analyse(text.as_bytes()))
}

fn shown(found: &Suspicion) -> String {
    let mut parts: Vec<String> = found.names.iter().map(ToString::to_string).collect();
    parts.extend(found.local_custom.iter().map(|name| format!("~{name}")));
    parts.extend(found.parameters.iter().map(|parameter| {
        let scope = if parameter.is_local { "~" } else { "" };
        format!("{scope}${}", parameter.number)
    }));
    if found.kinds.only(Kinds::ANYTHING) == Kinds::ANYTHING {
        parts.push("ANYTHING".to_owned());
    } else {
        for (kind, label) in [
            (Kinds::ANY_SETTING, "ANY"),
            (Kinds::ROLE, "ROLE"),
            (Kinds::PREPARE, "PREPARE"),
            (Kinds::LISTEN, "LISTEN"),
            (Kinds::TEMPORARY, "TEMP"),
            (Kinds::CURSOR, "CURSOR"),
            (Kinds::ADVISORY, "ADVISORY"),
        ] {
            if found.kinds.has(kind) {
                parts.push(label.to_owned());
            }
        }
    }
    for (kind, label) in [
        (Kinds::UNKNOWN_NAME, "UNKNOWN"),
        (Kinds::LOAD, "LOAD"),
        (Kinds::SEED, "SEED"),
        (Kinds::SEQUENCE, "SEQUENCE"),
        (Kinds::EXTENSION, "EXTENSION"),
    ] {
        if found.kinds.has(kind) {
            parts.push(label.to_owned());
        }
    }
    if found.removed.has(Kinds::ADVISORY) {
        parts.push("-ADVISORY".to_owned());
    }
    parts.join(" ")
}

fn assert_found(cases: &[(&str, &str)]) {
    for (text, expected) in cases {
        assert_eq!(found(text), *expected, "{text}");
    }
}

#[test]
fn each_form_of_set_names_what_it_sets() {
    assert_found(&[
        ("SET work_mem = '1MB'", "work_mem"),
        ("set Work_Mem to default", "work_mem"),
        ("SET SESSION work_mem TO 1", "work_mem"),
        ("SET \"Work_Mem\" = 1", "work_mem"),
        ("SET App.Tenant = 'x'", "app.tenant"),
        ("SET a . b.c = 'x'", "a.b.c"),
        ("SET session.user_id = 1", "session.user_id"),
        ("SET local.x = 1", "local.x"),
        ("SET time.x = 1", "time.x"),
        ("SET LOCAL work_mem = 1", ""),
        ("SET LOCAL app.tenant = 1", "~app.tenant"),
        ("SET TIME ZONE 'UTC'", "timezone"),
        (
            "SET SESSION TIME ZONE INTERVAL '-08:00' HOUR TO MINUTE",
            "timezone",
        ),
        ("SET LOCAL TIME ZONE DEFAULT", ""),
        ("SET NAMES 'LATIN1'", "client_encoding"),
        ("SET NAMES", "client_encoding"),
        ("SET SCHEMA 'x'", "search_path"),
        ("SET XML OPTION DOCUMENT", "xmloption"),
        ("SET ROLE joe", "ROLE"),
        ("SET SESSION ROLE joe", "ROLE"),
        ("SET role = 'joe'", "ROLE"),
        ("SET LOCAL ROLE joe", ""),
        ("SET SESSION AUTHORIZATION joe", "ROLE"),
        ("SET SESSION SESSION AUTHORIZATION joe", "ROLE"),
        ("SET LOCAL SESSION AUTHORIZATION joe", ""),
        ("SET SEED TO 0.5", "SEED"),
        ("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE", ""),
        ("SET LOCAL TRANSACTION READ ONLY", ""),
        ("SET transaction_isolation = 'serializable'", ""),
        ("SET transaction_timeout = 5", "transaction_timeout"),
        ("SET CONSTRAINTS ALL DEFERRED", ""),
        (
            "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
            "default_transaction_isolation default_transaction_read_only default_transaction_deferrable",
        ),
        ("/* x */ SET -- y\n work_mem = 1", "work_mem"),
        ("SELECT 1; SET a = 1; SET b.c = 'SET d = 1'", "a b.c"),
        ("BEGIN; SET LOCAL a = 1; COMMIT", ""),
        ("SET search_path = \"a\"\"b\"", "search_path"),
        ("SET \"a\"\"b\" = 1", "ANY ROLE UNKNOWN"),
        ("SET U&\"w\\006frk_mem\" = 1", "ANY ROLE UNKNOWN"),
        ("SET", "ANY ROLE UNKNOWN"),
    ]);
}

#[test]
fn only_a_statement_that_starts_with_set_sets() {
    assert_found(&[
        ("UPDATE t SET work_mem = 1; DELETE FROM t", ""),
        ("SELECT ';SET a = 1'", ""),
        ("ALTER ROLE joe SET work_mem = 1;", ""),
        ("SELECT $$; SET a = 1$$", ""),
        ("SELECT 1 /* ; SET a = 1 */", ""),
    ]);
}

#[test]
fn set_config_names_its_first_argument() {
    assert_found(&[
        ("SELECT set_config('work_mem', '1MB', false)", "work_mem"),
        ("select pg_catalog . SET_CONFIG ( 'App.X' , $1, $2)", "app.x"),
        ("SELECT \"set_config\"('app.x'::text, 'a', 'false')", "app.x"),
        ("SELECT set_config($$app.x$$, f(a, b), false)", "app.x"),
        ("SELECT set_config('app.x', f((a), b[1, 2]), true)", "~app.x"),
        ("SELECT set_config('work_mem', '1MB', TRUE)", ""),
        ("SELECT set_config('app.x', '1', true AND false)", "app.x"),
        ("SELECT set_config('app.x', '1', not true)", "app.x"),
        ("SELECT set_config('app.x', '1', true", "app.x"),
        ("SELECT set_config($1, $2, $3)", "$1"),
        ("SELECT set_config($1::text, $2, true)", "~$1"),
        (
            "SELECT set_config('a.x', set_config('a.y', '1', false), false)",
            "a.x a.y",
        ),
        (
            "SELECT set_config('app.' || name, '1', false) FROM t",
            "ANY ROLE UNKNOWN",
        ),
        ("SELECT set_config('app.' || name, '1', true) FROM t", ""),
        ("SELECT set_config(E'\\x61.b', '1', false)", "ANY ROLE UNKNOWN"),
        ("SELECT set_config('it''s', '1', false)", "ANY ROLE UNKNOWN"),
        ("SELECT set_config('a' 'b', '1', false)", "ANY ROLE UNKNOWN"),
        (
            "SELECT U&\"\\0073et_config\"('a.b', '1', false)",
            "ANYTHING UNKNOWN SEED SEQUENCE EXTENSION",
        ),
        ("EXPLAIN ANALYZE SELECT set_config('a.b', '1', false)", "a.b"),
        ("COPY (SELECT set_config('a.b', '1', false)) TO STDOUT", "a.b"),
        (
            "UPDATE pg_settings SET setting = '1' WHERE name = 'work_mem'",
            "ANY ROLE",
        ),
        ("SELECT setting FROM pg_settings", ""),
        ("SELECT set_config('role', 'joe', false)", "ROLE"),
        (
            "SELECT set_config('transaction_isolation', 'serializable', false)",
            "",
        ),
        ("SELECT 'set_config'", ""),
    ]);
}

#[test]
fn what_no_tag_shows_is_found_by_its_words() {
    assert_found(&[
        ("CREATE TEMP TABLE t AS SELECT 1", "TEMP"),
        ("CREATE TABLE t AS SELECT 1", "TEMP"),
        ("SELECT 1 INTO TEMPORARY t", "TEMP"),
        ("SELECT 1 INTO t", "TEMP"),
        ("INSERT /* x */ INTO t SELECT 1", ""),
        ("MERGE INTO t USING s ON true WHEN MATCHED THEN DO NOTHING", ""),
        ("SELECT * FROM pg_temp.t", "TEMP"),
        ("SELECT * FROM \"pg_temp_3\".t", "TEMP"),
        ("SELECT temperature, template FROM attempts", ""),
        ("SELECT pg_advisory_lock(1)", "ADVISORY"),
        ("SELECT pg_try_advisory_lock_shared(1)", "ADVISORY"),
        (
            "SELECT pg_advisory_xact_lock(1), pg_try_advisory_xact_lock(1)",
            "",
        ),
        ("SELECT pg_advisory_unlock_all()", "-ADVISORY"),
        ("SELECT setseed(0.5)", "SEED"),
        ("SELECT currval('s'), lastval()", "SEQUENCE"),
        ("SELECT dblink_connect('x', 'y')", "EXTENSION"),
        ("SELECT * FROM dblink('host=x', 'SELECT 1') AS t(a int)", ""),
        ("SELECT pg_replication_origin_session_setup('x')", "EXTENSION"),
        (
            "SELECT pg_create_logical_replication_slot('a', 'b', true)",
            "EXTENSION",
        ),
        ("SELECT pg_backup_start('x')", "EXTENSION"),
    ]);
}

#[test]
fn code_of_a_do_is_looked_into() {
    assert_found(&[
        ("DO $$ BEGIN UPDATE t SET a = 1; END $$", ""),
        ("DO 'BEGIN NULL; END'", ""),
        (
            "DO $$ BEGIN PERFORM set_config('app.x', '1', false); END $$",
            "app.x",
        ),
        (
            "DO $$ BEGIN SET work_mem = 1; SET LOCAL a.b = 1; END $$",
            "work_mem ~a.b",
        ),
        ("DO $$ BEGIN IF a THEN SET b = 1; END IF; END $$", "b"),
        ("DO LANGUAGE plpgsql $$ BEGIN LISTEN x; END $$", "LISTEN"),
        ("DO $$ BEGIN CREATE TABLE t(a int); END $$", "TEMP"),
        ("DO $$ BEGIN EXECUTE 'SET app.x = 1'; END $$", "app.x ANYTHING"),
        (
            "DO $$ BEGIN EXECUTE format('SET app.%I = 1', a); END $$",
            "ANYTHING UNKNOWN",
        ),
        ("DO $$ BEGIN EXECUTE 'SET ' || a; END $$", "ANYTHING UNKNOWN"),
        ("DO $$ BEGIN EXECUTE 'LI' || 'STEN x'; END $$", "ANYTHING"),
        ("DO $$ import this $$ LANGUAGE plpython3u", "ANYTHING UNKNOWN"),
        ("DO $$ BEGIN NULL; END $$; SELECT 'EXECUTE'", ""),
        ("DO $$ BEGIN RESET work_mem; END $$", "ANY ROLE"),
    ]);
}

#[test]
fn what_can_be_read_in_two_ways_may_do_anything() {
    assert_found(&[
        ("SELECT 'a\\'; SET b = 1; --'", "b ANYTHING"),
        (
            "SELECT 'a\\', set_config('b.c', '1', false)",
            "b.c ANYTHING UNKNOWN",
        ),
        ("SELECT 'a; SET b = 1", "ANYTHING"),
    ]);
    assert!(!analyse(b"SELECT 'a\\'; SET b = 1; --'").has_set);
    // The start of a text that goes on ends anywhere.
    assert_eq!(shown(&analyse_part(b"INSERT INTO t VALUES ('a;")), "");
}

#[test]
fn any_text_is_analysed_in_time_and_space() {
    proptest::proptest!(|(text: Vec<u8>)| { analyse(&text); });
    let words = [
        "SET ",
        "set_config(",
        "'",
        "$$",
        "DO ",
        ",",
        "(",
        "a.",
        ";",
        "\"",
        "/*",
        "true)",
    ];
    proptest::proptest!(|(picks in proptest::collection::vec(0..words.len(), 0..200))| {
        let text: String = picks.into_iter().map(|pick| words[pick]).collect();
        let found = analyse(text.as_bytes());
        proptest::prop_assert!(found.names.len() <= super::super::suspicion::MAX_NAMES);
    });
    // Quadratic work would take minutes.
    analyse("set_config('a',(".repeat(20_000).as_bytes());
}

#[test]
fn what_runs_another_text_is_looked_into_or_may_do_anything() {
    let everything = "ANYTHING UNKNOWN SEED SEQUENCE EXTENSION";
    assert_found(&[
        ("EXECUTE mine(1)", ""),
        ("EXECUTE tl_0(7)", everything),
        ("execute \"tl_1z\"", everything),
        ("EXPLAIN ANALYZE EXECUTE TL_3", everything),
        ("CREATE TABLE a AS EXECUTE tl_3", everything),
        ("EXPLAIN SELECT 1", ""),
        ("EXPLAIN ANALYZE CREATE TABLE a AS SELECT 1", "TEMP"),
        (
            "SELECT query_to_xml('SELECT pg_advisory_lock(7)', true, false, '')",
            "ADVISORY",
        ),
        ("SELECT 'pg_advisory_lock(7)'", ""),
    ]);
}
