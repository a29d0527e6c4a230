//! Clients and servers that fail while they share connections.

use std::thread;
use std::time::Duration;

use trunkline::wire::frame::ErrorFields;

use super::{FIRST_PORT, bind_named, cheapen, codes, login, parse_named, process, router, seen};
use crate::cluster::postgres::{Options, Postgres};
use crate::cluster::{Router, eventually, pause};
use crate::raw::{Client, Login, PATIENCE, at, execute, extended, framed, query, shown, sync, terminate};

fn server() -> Postgres {
    let server = Postgres::start(&Options::default());
    server.sql_in("app", "CREATE TABLE t (a int); ALTER TABLE t OWNER TO app");
    cheapen(&server);
    server
}

fn app(router: &Router, port: u16) -> Client {
    login(router, port, "app", "app")
}

/// What a client begins and does not finish.
fn unfinished() -> Vec<(&'static str, Vec<u8>)> {
    let insert = [
        parse_named("", "INSERT INTO t VALUES (1)", &[]),
        bind_named("", &[]),
        execute(),
    ]
    .concat();
    let copy = [
        parse_named("", "COPY t FROM STDIN", &[]),
        bind_named("", &[]),
        execute(),
    ]
    .concat();
    let data = framed(b'd', b"1\n");
    let begin = query("BEGIN; INSERT INTO t VALUES (1)");
    vec![
        ("in a batch", insert.clone()),
        (
            "in a batch that has failed",
            [insert, extended("SELECT 1/0")].concat(),
        ),
        (
            "in a statement",
            query("INSERT INTO t SELECT 1 FROM pg_sleep(60)"),
        ),
        ("in a transaction", begin.clone()),
        (
            "in a transaction that has failed",
            [begin.clone(), query("SELECT 1/0")].concat(),
        ),
        (
            "in a statement of a transaction",
            [begin, query("SELECT pg_sleep(60)")].concat(),
        ),
        ("in COPY IN", [query("COPY t FROM STDIN"), data.clone()].concat()),
        ("in COPY IN of a batch", [copy.clone(), data.clone()].concat()),
        (
            "in COPY IN of a batch with its Sync",
            [copy, sync(), data.clone()].concat(),
        ),
        (
            "in a message of COPY IN",
            [query("COPY t FROM STDIN"), data[..data.len() - 1].to_vec()].concat(),
        ),
        (
            "in COPY OUT",
            query("COPY (SELECT repeat('x', 1000) FROM generate_series(1, 1000000)) TO STDOUT"),
        ),
        ("in a message", query("INSERT INTO t VALUES (1)")[..9].to_vec()),
    ]
}

#[test]
fn what_a_client_leaves_unfinished_is_undone_for_the_next_one() {
    let server = server();
    let router = router(&server, &["max_connections: 1"], "20s");
    for (what, bytes) in unfinished() {
        for way in ["close", "reset"] {
            let mut client = app(&router, FIRST_PORT);
            client.send(&query("SET work_mem = '7MB'"));
            client.ready();
            client.send(&bytes);
            if !what.ends_with("message") && !what.contains("message of") {
                eventually(&format!("the server has begun: {what}"), PATIENCE, || {
                    let state = server
                        .sql("SELECT string_agg(state, ',') FROM pg_stat_activity WHERE usename = 'app'");
                    state.starts_with("active") || state.starts_with("idle in transaction")
                });
            }
            if way == "reset" {
                client.reset();
            } else {
                drop(client);
            }
            let mut next = app(&router, FIRST_PORT);
            let sees = seen(&next.ask(
                "SELECT count(*), current_setting('work_mem'), pg_current_xact_id_if_assigned() FROM t",
            ));
            assert_eq!(sees, "0,4MB,NULL", "{what}, {way}");
            assert_eq!(
                shown(&next.ask("INSERT INTO t VALUES (1); DELETE FROM t")),
                ["CINSERT 0 1", "CDELETE 1", "ZI"],
                "{what}, {way}"
            );
        }
    }
}

#[test]
fn a_client_that_says_goodbye_leaves_its_transaction_to_nobody() {
    let server = server();
    let router = router(&server, &["max_connections: 1"], "20s");
    for (what, bytes) in unfinished() {
        if what.contains("statement") || what == "in COPY OUT" || what.contains("message") {
            continue;
        }
        let mut client = app(&router, FIRST_PORT);
        client.send(&bytes);
        client.send(&terminate());
        let mut next = app(&router, FIRST_PORT);
        let sees = seen(&next.ask("SELECT count(*), pg_current_xact_id_if_assigned() FROM t"));
        assert_eq!(sees, "0,NULL", "{what}");
    }
}

fn kill(server: &Postgres, pid: &str) {
    assert_eq!(server.sql(&format!("SELECT pg_terminate_backend({pid})")), "t");
    eventually("the server process ends", PATIENCE, || {
        server.sql(&format!(
            "SELECT count(*) FROM pg_stat_activity WHERE pid = {pid}"
        )) == "0"
    });
}

#[test]
fn a_connection_that_is_terminated_ends_only_the_session_that_has_it() {
    let server = server();
    let router = router(&server, &["max_connections: 1"], "20s");
    let (mut one, mut other) = (app(&router, FIRST_PORT), app(&router, FIRST_PORT));
    one.ask("SET work_mem = '7MB'");
    // Idle: no client notices.
    for _ in 0..5 {
        let pid = process(&mut other);
        kill(&server, &pid);
        assert_eq!(one.value("SHOW work_mem"), "7MB");
        kill(&server, &process(&mut one));
        assert_eq!(other.value("SHOW work_mem"), "4MB");
    }
    // What the session that has it hears is in `lost`.
    for begins in ["BEGIN", "LISTEN x"] {
        let mut client = app(&router, FIRST_PORT);
        client.ask(begins);
        let pid = server.sql("SELECT pid FROM pg_stat_activity WHERE usename = 'app'");
        kill(&server, &pid);
        assert_eq!(other.value("SHOW work_mem"), "4MB");
        assert_eq!(one.value("SHOW work_mem"), "7MB");
    }
}

#[test]
fn sessions_keep_their_own_state_while_connections_are_terminated_all_the_time() {
    const ROUNDS: usize = 150;
    let server = server();
    let router = router(&server, &["max_connections: 2"], "20s");
    let ended = thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|number| {
                let router = &router;
                scope.spawn(move || {
                    let mut ended = 0;
                    let mut client = app(router, FIRST_PORT);
                    let mut own = "4MB".to_owned();
                    for round in 0..ROUNDS {
                        let next = format!("{}MB", 10 + number * ROUNDS + round);
                        client.send(&query("SELECT current_setting('work_mem')"));
                        let mut frames = Vec::new();
                        while let Some(frame) = client.next() {
                            let is_last = frame.tag == b'Z';
                            frames.push(frame);
                            if is_last {
                                break;
                            }
                        }
                        if frames.last().is_some_and(|frame| frame.tag == b'Z') {
                            let codes = codes(&frames);
                            if !codes.is_empty() {
                                // The statement was under way; or two connections were lost while
                                // they were given its settings.
                                assert!(codes == ["08007"] || codes == ["08006"], "{codes:?}");
                                continue;
                            }
                            assert_eq!(seen(&frames), own, "round {round}");
                            client.send(&query(&format!("SET work_mem = '{next}'")));
                            frames.clear();
                            while let Some(frame) = client.next() {
                                let is_last = frame.tag == b'Z';
                                frames.push(frame);
                                if is_last {
                                    break;
                                }
                            }
                        }
                        if frames.last().is_some_and(|frame| frame.tag == b'Z') {
                            match codes(&frames).as_slice() {
                                [] => own = next,
                                // As above; so it is not set, whatever the lost server has done.
                                codes => assert!(codes == ["08007"] || codes == ["08006"], "{codes:?}"),
                            }
                        } else {
                            let codes = codes(&frames);
                            assert_eq!(codes.len(), 1, "one last word: {:?}", shown(&frames));
                            // Between the SET and the question what it has set.
                            let expected = ["57P01", "08006"];
                            assert!(expected.contains(&codes[0].as_str()), "{codes:?}");
                            ended += 1;
                            client = app(router, FIRST_PORT);
                            own = "4MB".to_owned();
                        }
                    }
                    ended
                })
            })
            .collect();
        while clients.iter().any(|client| !client.is_finished()) {
            server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'");
        }
        clients
            .into_iter()
            .map(|client| client.join().unwrap())
            .sum::<usize>()
    });
    eprintln!("{ended} sessions ended with their connection");
}

#[test]
fn sessions_between_transactions_outlive_a_restart_of_the_server() {
    let server = server();
    let router = router(&server, &["max_connections: 2"], "20s");
    let mut clients: Vec<Client> = (0..5).map(|_| app(&router, FIRST_PORT)).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        client.ask(&format!("SET work_mem = '{}MB'", number + 10));
        client.send(&[parse_named("s", "SHOW work_mem", &[]), sync()].concat());
        client.ready();
    }
    for _ in 0..2 {
        server.stop();
        server.start_again();
        for (number, client) in clients.iter_mut().enumerate() {
            // Until the router has seen the leader again.
            let mut answer = "57P03".to_owned();
            eventually("the leader is known again", PATIENCE, || {
                client.send(&[bind_named("s", &[]), execute(), sync()].concat());
                answer = seen(&client.ready());
                answer != "57P03"
            });
            assert_eq!(answer, format!("{}MB", number + 10));
        }
    }
}

#[test]
fn a_setting_that_cannot_be_restored_is_named_in_an_error() {
    let server = server();
    server.sql("CREATE ROLE member; GRANT member TO app");
    let router = router(&server, &["max_connections: 1"], "20s");
    let (mut one, mut other) = (app(&router, FIRST_PORT), app(&router, FIRST_PORT));
    one.ask("SET ROLE member");
    assert_eq!(other.value("SELECT current_user"), "app");
    assert_eq!(one.value("SELECT current_user"), "member");
    server.sql("REVOKE member FROM app");
    assert_eq!(other.value("SELECT current_user"), "app");
    for _ in 0..2 {
        for bytes in [query("SELECT 1"), [extended("SELECT 1"), sync()].concat()] {
            one.send(&bytes);
            let frames = one.ready();
            let error = frames.iter().find(|frame| frame.tag == b'E').unwrap();
            let text = String::from_utf8_lossy(&error.body);
            assert!(text.contains("the setting \"role\""), "{text}");
            assert_eq!(shown(&frames).last().unwrap(), "ZI");
            assert_eq!(other.value("SELECT current_user"), "app");
        }
    }
    server.sql("GRANT member TO app");
    assert_eq!(one.value("SELECT current_user"), "member");
}

#[test]
fn clients_that_wait_are_served_in_order() {
    const CLIENTS: usize = 300;
    let server = server();
    server.sql_in(
        "app",
        "CREATE SEQUENCE served; ALTER SEQUENCE served OWNER TO app",
    );
    let router = router(
        &server,
        &[
            "max_connections: 1, wait_notify: 10ms",
            "max_connections: 2, wait_notify: 10ms",
        ],
        "30s",
    );
    // Of two connections, one may serve some while the other one's process does not run.
    for (port, connections, most) in [(FIRST_PORT, 1, 0), (FIRST_PORT + 1, 2, 60)] {
        let mut holders: Vec<Client> = (0..connections).map(|_| app(&router, port)).collect();
        let mut clients: Vec<Client> = (0..CLIENTS).map(|_| app(&router, port)).collect();
        for holder in &mut holders {
            holder.ask("BEGIN");
        }
        let first: usize = server.sql_in("app", "SELECT nextval('served')").parse().unwrap();
        for client in &mut clients {
            client.send(&query("SELECT nextval('served')"));
            // It waits: the router says so.
            assert_eq!(client.frame().tag, b'N');
        }
        for holder in &mut holders {
            holder.ask("COMMIT");
        }
        for (number, client) in clients.iter_mut().enumerate() {
            let place: usize = seen(&client.ready()).parse().unwrap();
            let place = place - first - 1;
            assert!(
                place.abs_diff(number) <= most,
                "client {number} was served as number {place}"
            );
        }
    }
}

#[test]
fn a_wait_ends_with_an_error_and_the_session_goes_on() {
    let server = server();
    let router = router(&server, &["max_connections: 1"], "300ms");
    let mut holder = app(&router, FIRST_PORT);
    let mut clients: Vec<Client> = (0..30).map(|_| app(&router, FIRST_PORT)).collect();
    holder.ask("BEGIN");
    for client in &mut clients {
        client.send(
            &[
                extended("SELECT 1"),
                extended("SELECT 2"),
                sync(),
                query("SELECT 3"),
            ]
            .concat(),
        );
    }
    for client in &mut clients {
        // One for each Sync or Query.
        for _ in 0..2 {
            assert_eq!(shown(&client.ready()), ["E53300 ERROR", "ZI"]);
        }
    }
    holder.ask("COMMIT");
    for client in &mut clients {
        assert_eq!(client.value("SELECT 1"), "1");
    }
}

#[test]
fn each_time_limit_gives_its_error_and_frees_the_connection() {
    let server = server();
    let pools = [
        "max_connections: 1, query_timeout: 300ms",
        "max_connections: 1, transaction_timeout: 500ms",
        "max_connections: 1, idle_transaction_timeout: 300ms",
        "max_connections: 1, batch_timeout: 300ms",
    ];
    let router = router(&server, &pools, "20s");
    let is_free = |port| {
        let mut next = app(&router, port);
        assert_eq!(
            seen(&next.ask("SELECT count(*), pg_current_xact_id_if_assigned() FROM t")),
            "0,NULL"
        );
    };
    // A statement is cancelled, and the session goes on; also within a transaction.
    let mut client = app(&router, FIRST_PORT);
    assert_eq!(
        shown(&client.ask("SELECT pg_sleep(60)"))[1..],
        ["E57014 ERROR", "ZI"]
    );
    client.ask("BEGIN");
    let answer = client.ask("SELECT pg_sleep(60)");
    assert_eq!(shown(&answer)[1..], ["E57014 ERROR", "ZE"]);
    let error = answer.iter().find(|frame| frame.tag == b'E').unwrap();
    let message = ErrorFields::of_prefix(&error.body).message;
    assert_eq!(message, "canceling statement due to the router's query_timeout");
    client.ask("ROLLBACK");
    client.send(&[extended("SELECT pg_sleep(60)"), sync()].concat());
    assert_eq!(codes(&client.ready()), ["57014"]);
    assert_eq!(client.value("SELECT 1"), "1");
    is_free(FIRST_PORT);
    // The others end the session. With something under way whose outcome the router cannot know
    // the code says so, and the text names the limit.
    let busy = [
        query("BEGIN; INSERT INTO t VALUES (1)"),
        query("SELECT pg_sleep(60)"),
    ]
    .concat();
    for (port, bytes, code) in [
        // The statement may have been the one that commits.
        (FIRST_PORT + 1, busy, "08007"),
        (FIRST_PORT + 1, query("BEGIN; INSERT INTO t VALUES (1)"), "25P04"),
        (FIRST_PORT + 2, query("BEGIN; INSERT INTO t VALUES (1)"), "25P03"),
        (
            FIRST_PORT + 2,
            [query("BEGIN; INSERT INTO t VALUES (1)"), query("SELECT 1/0")].concat(),
            "25P03",
        ),
        (FIRST_PORT + 3, extended("INSERT INTO t VALUES (1)"), "08007"),
        (
            FIRST_PORT + 3,
            [extended("SELECT 1/0"), extended("SELECT 1")].concat(),
            "08007",
        ),
        (FIRST_PORT + 3, parse_named("s", "SELECT 1", &[]), "08007"),
    ] {
        let mut client = app(&router, port);
        client.send(&bytes);
        let rest = client.rest();
        assert_eq!(
            codes(&rest).last().map(String::as_str),
            Some(code),
            "{:?}",
            shown(&rest)
        );
        is_free(port);
    }
    // COPY IN may take its time.
    let mut client = app(&router, FIRST_PORT + 3);
    client.send(&query("COPY t FROM STDIN"));
    pause(Duration::from_millis(700));
    client.send(&[framed(b'd', b"1\n"), framed(b'c', b"")].concat());
    assert_eq!(codes(&client.ready()), Vec::<String>::new());
    for (route, limit, times) in [
        ("r0", "query_timeout", 3.0),
        ("r0", "transaction_timeout", 0.0),
        ("r1", "transaction_timeout", 2.0),
        ("r2", "idle_transaction_timeout", 2.0),
        ("r3", "batch_timeout", 3.0),
    ] {
        let metric = format!("trunkline_pool_timeouts_total{{route=\"{route}\",limit=\"{limit}\"}}");
        let counted = router.metric(&metric);
        assert!((counted - times).abs() < 0.1, "{metric} {counted}");
    }
}

#[test]
fn sessions_with_other_startup_parameters_have_connections_of_their_own() {
    let server = server();
    let router = router(&server, &["max_connections: 3"], "20s");
    let with = |parameters: &[(&str, &str)]| {
        Client::login(
            at(&router, FIRST_PORT),
            Login {
                parameters,
                ..Login::default()
            },
        )
    };
    let mut plain = with(&[]);
    let mut large = with(&[("work_mem", "9MB")]);
    let mut same = with(&[("Work_Mem", "9MB"), ("application_name", "other")]);
    let pids = [process(&mut plain), process(&mut large), process(&mut same)];
    assert_ne!(pids[0], pids[1]);
    assert_eq!(pids[1], pids[2]);
    for (client, own) in [(&mut plain, "4MB"), (&mut large, "9MB"), (&mut same, "9MB")] {
        assert_eq!(client.value("SHOW work_mem"), own);
        client.ask("SET work_mem = '11MB'");
        client.ask("RESET ALL");
        assert_eq!(client.value("SHOW work_mem"), own);
        client.ask("DISCARD ALL");
        assert_eq!(client.value("SHOW work_mem"), own);
    }
    assert_eq!(same.value("SHOW application_name"), "other");
    assert_eq!(large.value("SHOW application_name"), "");
}

/// PostgreSQL 18 says that it is idle, and has a transaction open (P48).
#[test]
fn a_connection_whose_transaction_is_open_though_it_says_idle_goes_to_nobody() {
    let server = Postgres::start(&Options {
        version_18: true,
        ..Options::default()
    });
    server.sql_in("app", "CREATE TABLE t (a int); ALTER TABLE t OWNER TO app");
    let router = router(&server, &["max_connections: 1"], "20s");
    let mut next = app(&router, FIRST_PORT);
    for _ in 0..3 {
        let mut client = app(&router, FIRST_PORT);
        client.send(&[extended("INSERT INTO t VALUES (1)"), query("SELECT 1")].concat());
        client.ready();
        client.send(&sync());
        assert_eq!(shown(&client.ready()).last().unwrap(), "ZI");
        assert_eq!(seen(&next.ask("SELECT pg_current_xact_id_if_assigned()")), "NULL");
        assert_eq!(
            codes(&client.ask("INSERT INTO t VALUES (2)")),
            Vec::<String>::new()
        );
        assert_eq!(codes(&next.ask("INSERT INTO t VALUES (3)")), Vec::<String>::new());
    }
    assert_eq!(next.value("SELECT count(*) FROM t WHERE a > 1"), "6");
}
