//! `routes.NAME.pool`.

use super::super::diff::{ClusterChange, Diff};
use super::*;

/// The route `r` to a replica; `more` are keys of it beside `pool`.
fn with_route(more: &str, pool: &str) -> String {
    let listener = "listeners: [{name: x, address: \"*:1\", route: r}]";
    format!("{MINIMAL}routes:\n  r: {{targets: [replica], {more}pool: {pool}}}\n{listener}\n")
}

fn with_pool(pool: &str) -> String {
    with_route("", pool)
}

fn transaction(keys: &str) -> String {
    with_pool(&format!("{{mode: transaction, {keys}}}"))
}

fn pool_of(text: &str) -> Pool {
    Files::new().ok(text).routes["r"].pool.clone().unwrap()
}

fn names(all: &[&str]) -> Vec<Arc<str>> {
    all.iter().map(|name| Arc::from(*name)).collect()
}

const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn a_route_has_no_pool_unless_one_is_asked_for() {
    let files = Files::new();
    for text in [
        MINIMAL.to_owned(),
        with_pool("{}"),
        with_pool("null"),
        with_pool("{mode: off}"),
    ] {
        for route in files.ok(&text).routes.values() {
            assert_eq!(route.pool, None, "{text}");
            assert!(route.client_address.setting, "{text}");
        }
    }
}

#[test]
fn a_pool_with_nothing_but_its_mode_has_the_defaults_of_the_table() {
    let place = "routes.NAME.pool";
    let (number, time) = (|key| default_number(place, key), |key| default_time(place, key));
    let off = |key| Some(time(key)).filter(|time| !time.is_zero());
    for (word, mode) in [
        ("session", PoolMode::Session),
        ("transaction", PoolMode::Transaction),
    ] {
        let Otherwise::Size(max_statement_bytes) = *otherwise(place, "max_statement_bytes") else {
            panic!()
        };
        let expected = Pool {
            mode,
            limits: PoolLimits {
                max_connections: number("max_connections"),
                min_connections: number("min_connections"),
                reserve: number("reserve"),
                reserve_delay: time("reserve_delay"),
                idle_timeout: off("idle_timeout"),
                max_lifetime: time("max_lifetime"),
                query_timeout: off("query_timeout"),
                transaction_timeout: off("transaction_timeout"),
                idle_transaction_timeout: off("idle_transaction_timeout"),
                batch_timeout: off("batch_timeout"),
            },
            overrides: Vec::new(),
            connects: number("connects"),
            max_statements: number("max_statements"),
            max_statement_bytes,
            reset_timeout: time("reset_timeout"),
            wait_notify: off("wait_notify"),
            settings: Vec::new(),
            verify: default_word(place, "verify"),
            custom_settings: default_word(place, "custom_settings"),
            ignore_startup_parameters: Vec::new(),
        };
        assert_eq!(pool_of(&with_pool(&format!("{{mode: {word}}}"))), expected);
        assert_eq!(mode.to_string(), word);
    }
    let limits = pool_of(&with_pool("{mode: transaction}")).limits;
    assert_eq!(
        (limits.max_connections, limits.reserve_delay),
        (20, Duration::from_secs(5))
    );
    assert_eq!(
        (limits.idle_timeout, limits.max_lifetime),
        (Some(secs(600)), Duration::from_hours(1))
    );
    assert_eq!(limits.query_timeout, None);
}

#[test]
fn every_key_of_a_pool_has_its_effect() {
    let files = Files::new();
    let config = files.ok(FULL);
    assert_eq!(config.routes["w"].pool, None);
    let pool = config.routes["r"].pool.as_ref().unwrap();
    let limits = PoolLimits {
        max_connections: 21,
        min_connections: 2,
        reserve: 3,
        reserve_delay: Duration::from_secs(4),
        idle_timeout: Some(secs(360)),
        max_lifetime: Duration::from_hours(2),
        query_timeout: Some(secs(30)),
        transaction_timeout: Some(secs(60)),
        idle_transaction_timeout: Some(secs(20)),
        batch_timeout: Some(secs(10)),
    };
    let of_batch = PoolLimits {
        max_connections: 5,
        min_connections: 1,
        reserve: 0,
        reserve_delay: Duration::from_secs(4),
        idle_timeout: Some(secs(60)),
        max_lifetime: Duration::from_mins(30),
        query_timeout: None,
        transaction_timeout: Some(secs(7200)),
        idle_transaction_timeout: Some(secs(60)),
        batch_timeout: Some(secs(60)),
    };
    let of_web = PoolLimits {
        reserve: 9,
        reserve_delay: Duration::from_secs(1),
        ..limits.clone()
    };
    let of_app = PoolLimits {
        max_connections: 40,
        ..limits.clone()
    };
    let entry = |user: Option<&str>, database: Option<&str>, limits: &PoolLimits| PoolOverride {
        user: user.map(Arc::from),
        database: database.map(Arc::from),
        limits: limits.clone(),
    };
    let expected = Pool {
        mode: PoolMode::Transaction,
        limits: limits.clone(),
        overrides: vec![
            entry(Some("batch"), Some("app"), &of_batch),
            entry(Some("web"), None, &of_web),
            entry(None, Some("app"), &of_app),
        ],
        connects: 5,
        max_statements: 300,
        max_statement_bytes: 1 << 20,
        reset_timeout: Duration::from_secs(3),
        wait_notify: Some(secs(2)),
        settings: names(&["app.tenant", "work_mem"]),
        verify: Verify::Always,
        custom_settings: CustomSettings::Close,
        ignore_startup_parameters: names(&["extra_float_digits", "search_path"]),
    };
    assert_eq!(*pool, expected);
    for (user, database, wanted) in [
        ("batch", "app", &of_batch),
        ("batch", "other", &limits),
        ("web", "app", &of_web),
        ("web", "other", &of_web),
        ("x", "app", &of_app),
        ("x", "other", &limits),
        ("Batch", "APP", &limits),
    ] {
        assert_eq!(pool.limits_for(user, database), wanted, "{user} {database}");
    }
}

#[test]
fn zero_switches_a_time_out_off_also_for_one_user() {
    let pool = pool_of(&transaction(
        "idle_timeout: 0, wait_notify: 0, query_timeout: 1s, transaction_timeout: 2s, overrides: [{user: a, \
         query_timeout: 0, transaction_timeout: 0}]",
    ));
    assert_eq!((pool.limits.idle_timeout, pool.wait_notify), (None, None));
    assert_eq!(
        (pool.limits.query_timeout, pool.limits.transaction_timeout),
        (Some(secs(1)), Some(secs(2)))
    );
    let of_a = pool.limits_for("a", "x");
    assert_eq!((of_a.query_timeout, of_a.transaction_timeout), (None, None));
}

#[test]
fn a_waiting_session_is_limited_where_the_route_has_a_pool() {
    let files = Files::new();
    for mode in ["session", "transaction"] {
        let text = with_route("queue_timeout: 3s, max_queue: 7, ", &format!("{{mode: {mode}}}"));
        let queue = files.ok(&text).routes["r"].queue.clone();
        let timeout = Duration::from_secs(3);
        assert_eq!(queue, Queue { timeout, most: 7 });
    }
    files.one_error(
        &with_route("queue_timeout: 3s, ", "{mode: off}"),
        "queue_timeout: has no effect: the cluster has no `server.max_connections`, and the route no pool",
    );
    files.one_error(
        &with_route("queue_timeout: 3s, max_queue: 0, ", "{mode: session}"),
        "queue_timeout: has no effect with `max_queue: 0`",
    );
    let notice = |route: &str, pool: &str| with_route(route, &format!("{{mode: transaction, {pool}}}"));
    let _ = files.ok(&notice("queue_timeout: 3s, ", "wait_notify: 2900ms"));
    let _ = files.ok(&notice("max_queue: 0, ", "wait_notify: 0"));
    // The default only never comes.
    let _ = files.ok(&notice("queue_timeout: 3s, ", ""));
    files.one_error(
        &notice("queue_timeout: 3s, ", "wait_notify: 3s"),
        "pool.wait_notify: has no effect: no session waits longer than `queue_timeout`, 3s",
    );
    files.one_error(
        &notice("max_queue: 0, ", "wait_notify: 3s"),
        "pool.wait_notify: has no effect: no session waits with `max_queue: 0`",
    );
}

#[test]
fn servers_of_a_pool_are_told_no_client_address_unless_it_is_written() {
    let files = Files::new();
    for (keys, setting) in [("", false), ("setting: true", true), ("setting: false", false)] {
        let text = with_route(&format!("client_address: {{{keys}}}, "), "{mode: session}");
        let options = files.ok(&text).routes["r"].client_address;
        assert_eq!(options.setting, setting, "{keys}");
        assert!(!options.tls && !options.application_name);
    }
    let text = with_route(
        "client_address: {application_name: true, tls: true}, ",
        "{mode: transaction}",
    );
    let options = files.ok(&text).routes["r"].client_address;
    assert!(options.tls && options.application_name && !options.setting);
}

#[test]
fn tracked_sessions_without_a_pool_may_name_settings_and_nothing_else() {
    let files = Files::new();
    let tracked = |pool: &str| with_pool(&format!("{pool}, resume: tracked"));
    let config = files.ok(&tracked("{settings: [App.tenant], verify: always}"));
    let tracking = config.routes["r"].tracking.clone().unwrap();
    assert_eq!(tracking.settings, names(&["app.tenant"]));
    assert_eq!(tracking.verify, Verify::Always);
    assert!(config.routes["r"].pool.is_none());
    files.one_error(
        &tracked("{max_connections: 5, settings: [app.tenant]}"),
        "r.pool.max_connections: has no effect without `mode`",
    );
    files.one_error(
        &tracked("{mode: off, verify: tags}"),
        "r.pool.verify: has no effect with `mode: off`",
    );
    files.one_error(
        &with_pool("{settings: [app.tenant]}"),
        "r.pool.settings: has no effect without `mode`",
    );
}

#[test]
fn a_forwarding_listener_has_no_pool() {
    let files = Files::new();
    for mode in ["session", "transaction"] {
        let text = with_pool(&format!("{{mode: {mode}}}"));
        files.one_error(
            &text.replace("route: r}", "route: r, mode: tcp}"),
            "listeners[0].mode: cannot be `tcp` where the route has a `pool`: the client itself logs into the server",
        );
    }
    let _ = files.ok(&with_pool("{mode: off}").replace("route: r}", "route: r, mode: tcp}"));
}

#[test]
fn keys_without_effect_are_refused_with_what_to_do() {
    let files = Files::new();
    for (pool, expected) in [
        (
            "{max_connections: 5}",
            "r.pool.max_connections: has no effect without `mode`, which is `off` (write `mode: session`",
        ),
        (
            "{mode: off, verify: tags}",
            "r.pool.verify: has no effect with `mode: off` (write `mode: session` or `mode: transaction`",
        ),
        (
            "{mode: session, min_connections: 21}",
            "r.pool.min_connections: is more than `max_connections`, 20 (raise `max_connections`, or lower this)",
        ),
        (
            "{mode: session, max_connections: 2, min_connections: 3}",
            "r.pool.min_connections: is more than `max_connections`, 2",
        ),
        (
            "{mode: session, reserve_delay: 1s}",
            "r.pool.reserve_delay: has no effect without a reserve (write `reserve`",
        ),
        (
            "{mode: session, reserve_delay: 1s, reserve: 0}",
            "r.pool.reserve_delay: has no effect without a reserve",
        ),
        (
            "{mode: session, max_lifetime: 5m, idle_timeout: 5m}",
            "r.pool.idle_timeout: has no effect: `max_lifetime` is 5m",
        ),
        (
            "{mode: transaction, transaction_timeout: 5s, query_timeout: 5s}",
            "r.pool.query_timeout: has no effect: `transaction_timeout` is 5s",
        ),
        (
            "{mode: transaction, transaction_timeout: 5s, idle_transaction_timeout: 6s}",
            "r.pool.idle_transaction_timeout: has no effect: `transaction_timeout` is 5s",
        ),
        (
            "{mode: transaction, transaction_timeout: 5s, batch_timeout: 6s}",
            "r.pool.batch_timeout: has no effect: `transaction_timeout` is 5s",
        ),
    ] {
        files.one_error(&with_pool(pool), expected);
    }
    // A shorter life without a word about idleness.
    let _ = files.ok(&with_pool("{mode: session, max_lifetime: 5m}"));
    let bounded = |pool: &str| {
        with_pool(pool).replace(
            "    service_account",
            "    server: {max_connections: 10}\n    service_account",
        )
    };
    let _ = files.ok(&bounded("{mode: session}"));
    files.one_error(
        &bounded("{mode: session, max_connections: 11}"),
        "is more than the cluster's `server.max_connections`, 10, which limits all sessions",
    );
    files.one_error(
        &bounded("{mode: session, max_connections: 10, overrides: [{user: a, max_connections: 11}]}"),
        "overrides[0].max_connections: is more than the cluster's",
    );
}

#[test]
fn keys_of_transaction_mode_are_refused_in_session_mode() {
    let files = Files::new();
    let transactions = [
        "settings: [app.tenant]",
        "verify: always",
        "custom_settings: close",
        "max_statements: 5",
        "max_statement_bytes: 1MiB",
        "wait_notify: 1s",
        "query_timeout: 1s",
        "transaction_timeout: 1s",
        "idle_transaction_timeout: 1s",
        "batch_timeout: 1s",
    ];
    for key in transactions {
        let _ = files.ok(&transaction(key));
        let (name, _) = key.split_once(':').unwrap();
        files.one_error(
            &with_pool(&format!("{{mode: session, {key}}}")),
            &format!("pool.{name}: has no effect with `mode: session`"),
        );
    }
    files.one_error(
        &with_pool("{mode: session, overrides: [{user: a, query_timeout: 1s}]}"),
        "overrides[0].query_timeout: has no effect with `mode: session`: a session keeps its connection until it ends \
         (use PostgreSQL's `statement_timeout`",
    );
    for key in [
        "max_connections: 5",
        "min_connections: 5",
        "reserve: 5, reserve_delay: 1s",
        "idle_timeout: 5m",
        "max_lifetime: 20m",
        "connects: 5",
        "reset_timeout: 1s",
        "ignore_startup_parameters: [options]",
        "overrides: [{user: a, max_connections: 3}]",
    ] {
        let _ = files.ok(&with_pool(&format!("{{mode: session, {key}}}")));
        let _ = files.ok(&transaction(key));
    }
}

#[test]
fn overrides_that_would_not_count_are_refused() {
    let files = Files::new();
    for (entries, expected) in [
        ("", "overrides: must not be empty"),
        ("5", "overrides[0]: expected a map of keys, found a number"),
        (
            "{max_connections: 3}",
            "overrides[0]: needs `user`, `database` or both (limits for every user and database are keys of `pool`",
        ),
        (
            "{user: a, max_connection: 3}",
            "overrides[0].max_connection: unknown key `max_connection` (did you mean `max_connections`?)",
        ),
        (
            "{user: a}",
            "overrides[0]: changes nothing: it has no limit (write what is different",
        ),
        (
            "{user: a}, {database: d, user: b, reserve: 3}",
            "overrides[0]: changes nothing",
        ),
        (
            "{user: a, reserve: 1}, {user: a, database: d, reserve: 2}",
            "overrides[1]: is never reached: routes.r.pool.overrides[0] decides for it (put the entry with fewer",
        ),
        (
            "{database: d, reserve: 1}, {user: a, reserve: 2}, {database: d, reserve: 2}",
            "overrides[2]: is never reached: routes.r.pool.overrides[0] decides",
        ),
        (
            "{user: a, max_connections: 3, min_connections: 4}",
            "overrides[0].min_connections: is more than `max_connections`, 3",
        ),
        (
            "{user: a, reserve_delay: 4s}",
            "overrides[0].reserve_delay: has no effect without a reserve",
        ),
        (
            "{user: a, idle_timeout: 1h}",
            "overrides[0].idle_timeout: has no effect: `max_lifetime` is 1h",
        ),
        ("{user: \"\", reserve: 1}", "overrides[0].user: must not be empty"),
        (
            "{user: 5, reserve: 1}",
            "overrides[0].user: expected text, found a number",
        ),
        (
            "{database: a, connects: 1}",
            "overrides[0].connects: unknown key `connects`",
        ),
    ] {
        files.one_error(&transaction(&format!("overrides: [{entries}]")), expected);
    }
    files.one_error(
        &transaction("min_connections: 5, overrides: [{user: a, max_connections: 3}]"),
        "overrides[0].max_connections: is less than the pool's `min_connections`, 5 (write `min_connections` here",
    );
    // The pool's delay counts for the entry's reserve.
    let _ = files.ok(&transaction(
        "reserve_delay: 1s, overrides: [{user: a, reserve: 3}]",
    ));
    // An entry without a limit keeps a user out of a later one.
    let pool = pool_of(&transaction(
        "overrides: [{user: a}, {database: d, max_connections: 3}]",
    ));
    assert_eq!(pool.limits_for("a", "d").max_connections, 20);
    assert_eq!(pool.limits_for("b", "d").max_connections, 3);
    // The narrower one first.
    let _ = files.ok(&transaction(
        "overrides: [{user: a, database: d, reserve: 2}, {user: a, reserve: 1}]",
    ));
}

#[test]
fn names_that_are_no_restorable_settings_are_refused() {
    let files = Files::new();
    let of = |key: &str, name: &str| transaction(&format!("{key}: [work_mem, {name}]"));
    for name in [
        "app.tenant",
        "_x.y$1.z",
        "TimeZone",
        "\"ä.ö\"",
        "transaction_timeout",
        "role",
    ] {
        let _ = files.ok(&of("settings", name));
    }
    for name in [
        "seed",
        "Is_Superuser",
        "in_hot_standby",
        "server_version",
        "transaction_isolation",
        "transaction_read_only",
    ] {
        files.one_error(
            &of("settings", name),
            "pool.settings[1]: cannot be restored on another connection",
        );
    }
    for key in ["settings", "ignore_startup_parameters"] {
        for name in [
            "\"a b\"", "1a", "\"a.\"", "\".a\"", "a-b", "\"a;b\"", "a.1", "\"'\"",
        ] {
            files.one_error(
                &of(key, name),
                "is not the name of a parameter (as in `search_path`",
            );
        }
        files.one_error(&of(key, "Work_Mem"), "[1]: has the same name as routes.r.pool.");
        files.one_error(&of(key, "\"\""), "[1]: must not be empty");
        files.one_error(&of(key, "5"), "[1]: expected text, found a number");
        files.one_error(&of(key, &"x".repeat(256)), "[1]: is longer than 255 bytes");
        files.one_error(&transaction(&format!("{key}: []")), "must not be empty");
        files.one_error(&transaction(&format!("{key}: work_mem")), "expected a list");
    }
    for (name, expected) in [
        ("user", "is no setting: it says what the client wants"),
        ("database", "is no setting"),
        ("replication", "is no setting"),
        ("client_encoding", "cannot be left out"),
        (
            "APPLICATION_NAME",
            "has no effect: sessions with another `application_name` share connections",
        ),
        ("_pq_.command_tag_format", "is an option of the protocol"),
    ] {
        files.one_error(&of("ignore_startup_parameters", name), expected);
    }
    let _ = files.ok(&of("ignore_startup_parameters", "options"));
}

#[test]
fn values_out_of_bounds_are_refused() {
    let files = Files::new();
    for (key, expected) in [
        ("max_connections: 0", "must be from 1 to 100000"),
        ("max_connections: 100001", "must be from 1 to 100000"),
        ("min_connections: -1", "must be from 0 to 100000"),
        ("reserve: 100001", "must be from 0 to 100000"),
        ("reserve: 1, reserve_delay: 11m", "must be from 0 to 10m"),
        ("idle_timeout: 99ms", "must be from 100ms to 24h, or 0 for off"),
        ("max_lifetime: 25h", "must be from 100ms to 24h"),
        ("max_lifetime: 0", "must be from 100ms to 24h"),
        ("connects: 0", "must be from 1 to 100"),
        ("connects: 101", "must be from 1 to 100"),
        ("reset_timeout: 0", "must be from 10ms to 1m"),
        ("reset_timeout: 2m", "must be from 10ms to 1m"),
        ("max_statements: 0", "must be from 1 to 100000"),
        ("max_statement_bytes: 8kB", "must be from 16KiB to 1GiB"),
        ("max_statement_bytes: 1000", "is not a size"),
        ("wait_notify: 5", "is not a time"),
        ("query_timeout: 9ms", "must be from 10ms to 24h, or 0 for off"),
        (
            "transaction_timeout: 25h",
            "must be from 10ms to 24h, or 0 for off",
        ),
        ("idle_transaction_timeout: 1d", "is not a time"),
        ("batch_timeout: true", "expected a time"),
        ("verify: never", "expected `tags` or `always`, found `never`"),
        ("custom_settings: closed", "did you mean `close`?"),
        ("overrides: {user: a}", "expected a list"),
        ("pool_size: 5", "unknown key `pool_size`"),
    ] {
        files.one_error(&transaction(key), expected);
    }
    files.one_error(
        &with_pool("{mode: statement}"),
        "pool.mode: expected `off`, `session` or `transaction`, found `statement`",
    );
    files.one_error(
        &with_pool("transaction"),
        "r.pool: expected a map of keys, found text",
    );
    files.one_error(&with_pool("[]"), "r.pool: expected a map of keys, found a list");
}

#[test]
fn a_key_of_pgbouncer_is_one_error_that_says_what_is_meant() {
    let files = Files::new();
    for (keys, path, meant) in [
        ("mod: transaction", "mod", "mode"),
        ("pool_mode: transaction", "pool_mode", "mode"),
        ("modus: transaction", "modus", ""),
        (
            "mode: transaction, default_pool_size: 9",
            "default_pool_size",
            "max_connections",
        ),
        (
            "mode: transaction, min_pool_size: 9",
            "min_pool_size",
            "min_connections",
        ),
        (
            "mode: transaction, reserve_pool_size: 9",
            "reserve_pool_size",
            "reserve",
        ),
        (
            "mode: transaction, server_idle_timeout: 1m",
            "server_idle_timeout",
            "idle_timeout",
        ),
        (
            "mode: transaction, server_lifetime: 1m",
            "server_lifetime",
            "max_lifetime",
        ),
        (
            "mode: transaction, query_wait_timeout: 1m",
            "query_wait_timeout",
            "routes.NAME.queue_timeout",
        ),
        // It looks like `query_timeout`, which cancels statements.
        (
            "mode: transaction, queue_timeout: 1m",
            "queue_timeout",
            "routes.NAME.queue_timeout",
        ),
        (
            "mode: transaction, max_queue: 9",
            "max_queue",
            "routes.NAME.max_queue",
        ),
        (
            "mode: transaction, max_db_connections: 9",
            "max_db_connections",
            "clusters.NAME.server.max_connections",
        ),
    ] {
        let hint = match meant {
            "" => String::new(),
            meant => format!(" (did you mean `{meant}`?)"),
        };
        let expected = format!("r.pool.{path}: unknown key `{path}`{hint}");
        files.one_error(&with_pool(&format!("{{{keys}, connects: 3}}")), &expected);
    }
    let of_route = |key: &str| {
        let text = transaction("connects: 3");
        text.replace("pool: {", &format!("{key}, pool: {{"))
    };
    for (key, expected) in [
        (
            "pool_mode: session",
            "r.pool_mode: unknown key `pool_mode` (did you mean `pool.mode`?)",
        ),
        (
            "query_wait_timeout: 3s",
            "r.query_wait_timeout: unknown key `query_wait_timeout` (did you mean `queue_timeout`?)",
        ),
        (
            "reserve_delay: 3s",
            "r.reserve_delay: unknown key `reserve_delay` (did you mean `pool.reserve_delay`?)",
        ),
    ] {
        files.one_error(&of_route(key), expected);
    }
}

#[test]
fn all_faults_of_a_pool_are_reported_at_once() {
    let text = format!(
        r#"{MINIMAL}routes:
  r:
    targets: [replica]
    queue_timeout: 2s
    pool:
      mode: session
      max_connections: 4
      min_connections: 5
      reserve_delay: 1s
      verify: always
      connects: 0
      settings: [seed]
      query_timeout: 1s
      overrides:
        - {{max_connections: 1}}
        - {{user: a, reserve: -1}}
        - {{user: a, database: b, batch_timeout: 1s}}
      size: 5
listeners: [{{name: x, address: "*:1", route: r, mode: tcp}}]
"#
    );
    let errors = Files::new().errors(&text);
    let session = "has no effect with `mode: session`: a session keeps its connection until it ends";
    let expected = [
        "14: routes.r.pool.min_connections: is more than `max_connections`, 4 (raise `max_connections`, or lower this)".to_owned(),
        "15: routes.r.pool.reserve_delay: has no effect without a reserve (write `reserve`, the number of connections beyond \
         `max_connections`, or remove it)"
            .to_owned(),
        format!("16: routes.r.pool.verify: {session} (remove it, or write `mode: transaction`, or `resume: tracked` at the route)"),
        "17: routes.r.pool.connects: must be from 1 to 100".to_owned(),
        format!("18: routes.r.pool.settings: {session} (remove it, or write `mode: transaction`, or `resume: tracked` at the route)"),
        "18: routes.r.pool.settings[0]: cannot be restored on another connection".to_owned(),
        format!(
            "19: routes.r.pool.query_timeout: {session} (use PostgreSQL's `statement_timeout`, or write `mode: transaction`, or `resume: tracked` at the route)"
        ),
        "21: routes.r.pool.overrides[0]: needs `user`, `database` or both (limits for every user and database are keys of \
         `pool` itself)"
            .to_owned(),
        "22: routes.r.pool.overrides[1].reserve: must be from 0 to 100000".to_owned(),
        "23: routes.r.pool.overrides[2]: is never reached: routes.r.pool.overrides[1] decides for it (put the entry with fewer \
         matches first, or remove one)"
            .to_owned(),
        format!(
            "23: routes.r.pool.overrides[2].batch_timeout: {session} (use PostgreSQL's `transaction_timeout`, or write `mode: \
             transaction`, or `resume: tracked` at the route)"
        ),
        "24: routes.r.pool.size: unknown key `size`".to_owned(),
        "25: listeners[0].mode: cannot be `tcp` where the route has a `pool`: the client itself logs into the server (use \
         `mode: postgres`, or another route)"
            .to_owned(),
    ];
    assert_eq!(errors, expected, "{errors:#?}");
}

#[test]
fn another_pool_changes_its_route_and_nothing_else() {
    let files = Files::new();
    let old = files.ok(&transaction("max_connections: 5"));
    for keys in [
        "max_connections: 6",
        "max_connections: 5, connects: 3",
        "max_connections: 5, settings: [app.tenant]",
        "max_connections: 5, overrides: [{user: a, reserve: 1}]",
        "max_connections: 5, query_timeout: 1s",
    ] {
        let new = files.ok(&transaction(keys));
        let diff = Diff::of(&old, &new);
        let changes: Vec<String> = diff.changes.iter().map(ToString::to_string).collect();
        assert_eq!(
            (changes.as_slice(), diff.restart.len()),
            (&["routes.r".to_owned()][..], 0),
            "{keys}"
        );
        assert_eq!(new.cluster_change(&old, "main"), ClusterChange::Same);
    }
    // What is written otherwise and means the same is no change.
    let same = files.ok(&transaction("max_connections: 5, reserve: 0, wait_notify: 5s"));
    assert!(Diff::of(&old, &same).changes.is_empty());
}
