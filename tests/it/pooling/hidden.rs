//! State that a session makes in ways that are easily overlooked: in texts that come in pieces,
//! behind names that are cut, in texts that other statements run.

use std::time::Duration;

use super::{FIRST_PORT, bind_named, codes, login, parse_named, router, seen};
use crate::cluster::postgres::{Options, Postgres};
use crate::cluster::{Router, eventually, pause};
use crate::raw::{Client, PATIENCE, execute, framed, query, sync};

/// What a session has made, as another would see it.
const LOOK: &str = "SELECT current_setting('work_mem'), nullif(current_setting('app.tenant', true), ''), current_user, \
                    (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()), \
                    (SELECT count(*) FROM pg_listening_channels()), \
                    (SELECT count(*) FROM pg_class WHERE relnamespace = pg_my_temp_schema())";

const NOTHING: &str = "4MB,NULL,app,0,0,0";

fn client(router: &Router) -> Client {
    login(router, FIRST_PORT, "app", "app")
}

/// A client sends this, in pieces that arrive one by one; then neither another session that is
/// there, nor one that comes when it has ended, sees anything of it.
fn assert_hidden(router: &Router, what: &str, pieces: &[Vec<u8>], answers: usize) {
    let (mut first, mut other) = (client(router), client(router));
    for piece in pieces {
        first.send(piece);
        // For a read of its own; if it is none, the test is weaker, not wrong.
        pause(Duration::from_millis(30));
    }
    for _ in 0..answers {
        let answer = first.ready();
        assert!(codes(&answer).is_empty(), "{what}: {:?}", codes(&answer));
    }
    let seen_by_other = seen(&other.ask(LOOK));
    assert!(
        [NOTHING, "53300"].contains(&&*seen_by_other),
        "{what}: {seen_by_other}"
    );
    drop(first);
    eventually("the connection is free", PATIENCE, || {
        seen(&other.ask("SELECT 1")) == "1"
    });
    assert_eq!(seen(&other.ask(LOOK)), NOTHING, "{what}, afterwards");
}

fn cut_at(text: &str, mark: &str) -> [Vec<u8>; 2] {
    let message = query(&text.replace(mark, ""));
    let at = 5 + text.find(mark).unwrap();
    [message[..at].to_vec(), message[at..].to_vec()]
}

#[test]
fn nothing_of_a_long_text_leaks_wherever_it_is_cut() {
    let server = Postgres::start(&Options::default());
    let router = router(&server, &["max_connections: 1"], "300ms");
    let (before, behind) = ("y".repeat(3000), "z".repeat(100_000));
    for set in [
        "set work_m|em = '77MB'",
        "set app.te|nant = 'one'",
        "set lo|cal work_mem = '5MB'; commit; begin; set work_mem = '78MB'",
    ] {
        let [first, second] = cut_at(&format!("/*{before}*/ {set} /*{behind}*/"), "|");
        let pieces = [query("BEGIN"), first, second, query("COMMIT")];
        assert_hidden(&router, set, &pieces, 3);
    }
    // A statement of the router's own, named in a later piece.
    let [first, second] = cut_at(
        &format!("/*{before}*/ execute t|l_0('app.tenant', 'one') /*{behind}*/"),
        "|",
    );
    let prepare = [parse_named("zz", "select set_config($1, $2, false)", &[]), sync()];
    let pieces = [query("BEGIN"), prepare.concat(), first, second, query("COMMIT")];
    assert_hidden(&router, "execute, cut", &pieces, 4);
    for text in [
        format!("-- m\ndo $$ begin perform 1; /*{behind}*/ listen abc; end $$"),
        format!("select 1; do $$ begin perform 1; /*{behind}*/ execute 'lis' || 'ten abc'; end $$"),
        format!("/* m */ do $$ begin perform 1; /*{behind}*/ set app.tenant = 'one'; end $$"),
        format!("set search_path = pg_temp; select 1 /*{behind}*/; create table acc as select 1 x"),
    ] {
        assert_hidden(&router, &text[..40], &[query(&text)], 1);
    }
}

#[test]
fn nothing_of_a_text_that_something_else_runs_leaks() {
    let server = Postgres::start(&Options::default());
    let router = router(&server, &["max_connections: 1"], "300ms");
    let parse = |name: &str, sql: &str| [parse_named(name, sql, &[]), sync()].concat();
    let mut portal = vec![b'p'; 70_000];
    portal.extend(b"\0\0\0\0\0\0\0\0");
    let mut run = [&b"p"[..]; 63].concat();
    run.extend(b"\0\0\0\0\0");
    assert_hidden(
        &router,
        "a portal with a long name",
        &[
            parse("", "select set_config('work_mem', '77MB', false)"),
            [framed(b'B', &portal), framed(b'E', &run), sync()].concat(),
        ],
        2,
    );
    // The first name of a router's statement; another does not exist.
    for (prepared, sql) in [
        ("select pg_advisory_lock($1)", "execute tl_0(7)"),
        (
            "select pg_advisory_lock($1 + 0)",
            "explain analyze execute tl_1(7)",
        ),
    ] {
        assert_hidden(&router, sql, &[parse("zz", prepared), query(sql)], 2);
    }
    for sql in [
        "set search_path = pg_temp; explain analyze create table acc as select 1 x",
        "select query_to_xml('select set_config(''work_mem'', ''77MB'', false)', true, false, '')",
        "select query_to_xml('select pg_advisory_lock(7)', true, false, '')",
    ] {
        assert_hidden(&router, sql, &[query(sql)], 1);
    }
    let mut unnamed = parse("", "select set_config('app.tenant', 'one', false)");
    unnamed.extend([bind_named("", &[]), execute(), sync()].concat());
    assert_hidden(&router, "the unnamed statement", &[unnamed], 2);
}

/// Time limits count for a request that waited for its connection, and for one whose session's
/// settings were restored first.
#[test]
fn time_limits_count_behind_a_wait_and_behind_a_restore() {
    let server = Postgres::start(&Options::default());
    let limits = "max_connections: 1, query_timeout: 1s, batch_timeout: 1s";
    let router = router(&server, &[limits], "20s");
    let (mut first, mut second) = (client(&router), client(&router));
    first.ask("SET work_mem = '9MB'");
    second.ask("SELECT 1");
    assert_eq!(
        seen(&first.ask("SELECT pg_sleep(60)")),
        "57014",
        "behind a restore"
    );
    second.ask("BEGIN");
    first.send(&query("SELECT pg_sleep(61)"));
    eventually("it waits", PATIENCE, || {
        router.metric("trunkline_queue_length{route=\"r0\"}") > 0.5
    });
    second.ask("COMMIT");
    assert_eq!(seen(&first.ready()), "57014", "behind a wait");
    second.ask("SELECT 1");
    first.send(&[parse_named("", "SELECT 1", &[]), bind_named("", &[]), execute()].concat());
    // Ended, as the batch stays open; not one moment before it has begun.
    let frames = first.rest();
    let ended: Vec<String> = codes(&frames);
    assert!(ended == ["25P03"] || ended == ["08007"], "{ended:?}");
}
