//! What a server does at a login, with its plans, its libraries and its log, that sessions of a
//! pool must not notice of each other.

use super::{FIRST_PORT, bind_named, codes, login, parse_named, process, router, seen};
use crate::cluster::Router;
use crate::cluster::postgres::{Options, Postgres};
use crate::raw::{Client, execute, shown, sync};

fn app(router: &Router) -> Client {
    login(router, FIRST_PORT, "app", "app")
}

/// What is told at a login, by name.
fn told(client: &Client, name: &str) -> Option<String> {
    client.greeting.iter().find_map(|frame| {
        let mut parts = frame.body.split(|byte| *byte == 0);
        let is_it = frame.tag == b'S' && parts.next() == Some(name.as_bytes());
        is_it.then(|| String::from_utf8_lossy(parts.next().unwrap()).into_owned())
    })
}

/// A name with a library's prefix can be set until the library is loaded. That removes it, warns
/// the session that loads it, and refuses the name from then on.
#[test]
fn a_name_that_a_library_has_taken_is_restored_where_it_is_not_loaded() {
    let server = Postgres::start(&Options::default());
    let pools = ["max_connections: 1", "max_connections: 1, custom_settings: close"];
    let router = router(&server, &pools, "20s");
    let load = "DO $$ BEGIN NULL; END $$";
    let warned = ["N42602 WARNING", "CDO", "ZI"];
    // With `close` the connection is nobody's who has not used the name.
    for (port, is_warned, rounds) in [(FIRST_PORT, true, 2), (FIRST_PORT + 1, false, 1)] {
        let (mut one, mut other) = (
            login(&router, port, "app", "app"),
            login(&router, port, "app", "app"),
        );
        one.ask("SET plpgsql.nosuch = 'one'");
        one.ask("SET plpgsql.variable_conflict = 'use_column'");
        for _ in 0..rounds {
            let answer = shown(&other.ask(load));
            assert_eq!(answer, if is_warned { &warned[..] } else { &warned[1..] });
            let loaded = process(&mut other);
            assert_eq!(codes(&other.ask("SET plpgsql.nosuch = 'other'")), ["42602"]);
            let own =
                "SELECT current_setting('plpgsql.nosuch'), current_setting('plpgsql.variable_conflict')";
            assert_eq!(seen(&one.ask(own)), "one,use_column");
            assert_ne!(process(&mut one), loaded, "a connection without the library");
            let others = "SELECT current_setting('plpgsql.nosuch', true), current_setting('plpgsql.variable_conflict', true)";
            assert!(!seen(&other.ask(others)).contains("use_column"));
        }
    }
}

/// Statements of the router's own have few texts, however many values there are, and cause no
/// errors.
#[test]
fn restores_leave_no_texts_and_no_errors_on_the_server() {
    let server = Postgres::start(&Options {
        conf: "shared_preload_libraries = 'pg_stat_statements'\n".to_owned(),
        ..Options::default()
    });
    server.sql_in("app", "CREATE EXTENSION pg_stat_statements");
    let router = router(&server, &["max_connections: 1"], "20s");
    let (mut one, mut other) = (app(&router), app(&router));
    let mut texts = Vec::new();
    for round in 0..40 {
        for (client, base) in [(&mut one, 100), (&mut other, 200)] {
            let set = format!(
                "SELECT set_config('work_mem', '{}kB', false), set_config('app.x', '{round}', false)",
                base + round
            );
            assert_eq!(codes(&client.ask(&set)), Vec::<String>::new());
        }
        for (client, base) in [(&mut one, 100), (&mut other, 200)] {
            assert_eq!(client.value("SHOW work_mem"), format!("{}kB", base + round));
        }
        let count = server.sql_in(
            "app",
            "SELECT count(*) FROM pg_stat_statements WHERE query NOT LIKE '%pg_stat_statements%'",
        );
        texts.push(count.parse::<usize>().unwrap());
    }
    assert_eq!(texts[2], texts[39], "{texts:?}");
    let log = server.log();
    let errors: Vec<&str> = log
        .lines()
        .filter(|line| {
            ["ERROR:", "FATAL:", "WARNING:"]
                .iter()
                .any(|word| line.contains(word))
        })
        .collect();
    assert!(errors.is_empty(), "{errors:?}");
}

/// A named statement becomes generic as it does on a connection of the session's own, and an
/// unnamed one is never made a named one.
#[test]
fn named_statements_get_generic_plans_and_unnamed_ones_never() {
    let server = Postgres::start(&Options::default());
    let router = router(&server, &["max_connections: 1"], "20s");
    let (mut one, mut other) = (app(&router), app(&router));
    let text = "SELECT relname FROM pg_class WHERE oid = $1::int::oid";
    let plans = "SELECT generic_plans, custom_plans FROM pg_prepared_statements WHERE statement LIKE 'SELECT relname%'";
    one.send(&[parse_named("s", text, &[23]), sync()].concat());
    one.ready();
    for _ in 0..12 {
        one.send(&[bind_named("s", &["1259"]), execute(), sync()].concat());
        assert_eq!(seen(&one.ready()), "pg_class");
        other.value("SELECT 1");
    }
    assert_eq!(seen(&one.ask(plans)), "7,5");
    // A session that wants none gets none, and what it does counts for nobody else's choice but as
    // it counts on a connection of one's own.
    other.ask("SET plan_cache_mode = force_custom_plan");
    other.send(&[parse_named("t", text, &[23]), sync()].concat());
    other.ready();
    for _ in 0..8 {
        other.send(&[bind_named("t", &["1259"]), execute(), sync()].concat());
        assert_eq!(seen(&other.ready()), "pg_class");
    }
    assert_eq!(seen(&other.ask(plans)), "0,8");
    one.send(&[bind_named("s", &["1259"]), execute(), sync()].concat());
    assert_eq!(seen(&one.ready()), "pg_class");
    assert_eq!(
        seen(&one.ask(plans)),
        "1,8",
        "one statement on the server for both"
    );
    let unnamed = text.replace("relname", "relkind");
    for _ in 0..12 {
        one.send(
            &[
                parse_named("", &unnamed, &[23]),
                bind_named("", &["1259"]),
                execute(),
                sync(),
            ]
            .concat(),
        );
        assert_eq!(seen(&one.ready()), "r");
    }
    let found =
        one.value("SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE 'SELECT relkind%'");
    assert_eq!(found, "0");
}

/// A pool that may have more connections than the server: those of the reserve stay free for their
/// roles, and sessions are told, and go on.
#[test]
fn a_pool_that_is_larger_than_the_server_leaves_what_is_reserved() {
    let server = Postgres::start(&Options {
        version_18: true,
        conf: "max_connections = 14\nsuperuser_reserved_connections = 2\nreserved_connections = 3\n"
            .to_owned(),
        ..Options::default()
    });
    server
        .sql("CREATE ROLE operator LOGIN PASSWORD 'operator'; GRANT pg_use_reserved_connections TO operator");
    let router = router(&server, &["max_connections: 20", "max_connections: 20"], "2s");
    let mut clients: Vec<Client> = (0..14).map(|_| app(&router)).collect();
    let mut refused = 0;
    for client in &mut clients {
        match codes(&client.ask("BEGIN")).as_slice() {
            [] => {}
            [code] if code == "53300" => refused += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!((5..14).contains(&refused), "{refused} of 14 refused");
    // The reserve is there: for its role also through a pool, and for the superuser.
    let mut operator = login(&router, FIRST_PORT + 1, "operator", "postgres");
    assert_eq!(operator.value("SELECT current_user"), "operator");
    assert_eq!(server.sql("SELECT 1"), "1");
    for client in &mut clients {
        assert_eq!(codes(&client.ask("COMMIT")), Vec::<String>::new());
    }
    for client in &mut clients {
        assert_eq!(client.value("SELECT 1"), "1");
    }
}

#[test]
fn what_is_told_at_a_login_is_nothing_that_another_session_has_set() {
    let server = Postgres::start(&Options::default());
    let router = router(&server, &["max_connections: 1"], "20s");
    let usual = [
        ("default_transaction_read_only", "off"),
        ("is_superuser", "on"),
        ("session_authorization", "postgres"),
        ("in_hot_standby", "off"),
        ("TimeZone", "UTC"),
    ];
    let postgres = || login(&router, FIRST_PORT, "postgres", "app");
    let mut first = postgres();
    first.ask("SET TimeZone = 'UTC'");
    let zone = told(&first, "TimeZone").unwrap();
    first.ask("SET default_transaction_read_only = on; SET TimeZone = 'Asia/Tokyo'");
    for pins in [false, true] {
        if pins {
            first.ask("SET SESSION AUTHORIZATION app");
        }
        // No connection is there for it: it hears of the one that the first one has.
        let second = postgres();
        for (name, value) in usual {
            let value = if name == "TimeZone" { &zone } else { value };
            assert_eq!(told(&second, name).as_deref(), Some(value), "{name}, {pins}");
        }
    }
    first.ask("RESET SESSION AUTHORIZATION");
    let mut second = postgres();
    assert_eq!(second.value("SHOW default_transaction_read_only"), "off");
    assert_eq!(second.value("SHOW is_superuser"), "on");
    assert_eq!(first.value("SHOW default_transaction_read_only"), "on");
}

/// A trigger of the database that speaks at each login.
#[test]
fn notices_of_a_server_at_a_login_are_told_to_nobody() {
    let server = Postgres::start(&Options {
        version_18: true,
        ..Options::default()
    });
    server.sql_in(
        "app",
        "CREATE FUNCTION speak() RETURNS event_trigger LANGUAGE plpgsql AS \
         $$ BEGIN RAISE NOTICE 'you are %', session_user; END $$; \
         CREATE EVENT TRIGGER speak ON login EXECUTE FUNCTION speak(); \
         ALTER EVENT TRIGGER speak ENABLE ALWAYS",
    );
    let direct = Client::login(
        std::net::SocketAddr::from((server.address, server.port)),
        crate::raw::Login::default(),
    );
    let has_notice = |client: &Client| client.greeting.iter().any(|frame| frame.tag == b'N');
    assert!(has_notice(&direct), "{:?}", shown(&direct.greeting));
    let pools = ["max_connections: 2", "mode: session, max_connections: 2"];
    let router = router(&server, &pools, "20s");
    for port in [FIRST_PORT, FIRST_PORT + 1] {
        let mut first = login(&router, port, "app", "app");
        first.ask("BEGIN");
        // Opens a connection of its own, with its login.
        let mut second = login(&router, port, "app", "app");
        assert_eq!(shown(&second.ask("SELECT 1")), ["T", "D", "CSELECT 1", "ZI"]);
        assert_ne!(process(&mut first), process(&mut second));
        for client in [&first, &second] {
            assert!(!has_notice(client), "{:?}", shown(&client.greeting));
        }
    }
}

/// A connection that must not serve a session because of its custom names makes room for one that
/// may: for this session, however many others wait.
#[test]
fn sessions_with_names_of_their_own_all_go_on_with_fewer_connections() {
    let server = Postgres::start(&Options::default());
    let router = router(&server, &["max_connections: 2, custom_settings: close"], "20s");
    std::thread::scope(|scope| {
        for number in 0..4 {
            let router = &router;
            scope.spawn(move || {
                let mut client = app(router);
                client.ask(&format!("SET app{number}.name = 'mine'"));
                for _ in 0..10 {
                    let own = format!("SELECT current_setting('app{number}.name')");
                    assert_eq!(seen(&client.ask(&own)), "mine");
                }
            });
        }
    });
}
