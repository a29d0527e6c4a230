//! A file with little in it has the defaults of the table.

use super::*;

#[test]
fn a_cluster_of_the_minimal_file_has_the_defaults_of_the_table() {
    let files = Files::new();
    let config = files.ok(MINIMAL);
    let cluster = &config.clusters["main"];
    let Source::Patroni(patroni) = &cluster.source else {
        panic!("{:?}", cluster.source)
    };
    let time = |section: &str, key| default_time(&format!("clusters.NAME.{section}"), key);
    let number = |section: &str, key| default_number(&format!("clusters.NAME.{section}"), key);
    assert_eq!(patroni.endpoints, ["http://db1:8008"]);
    assert_eq!(patroni.poll_interval, time("patroni", "poll_interval"));
    assert_eq!(patroni.fast_poll_interval, time("patroni", "fast_poll_interval"));
    assert!(patroni.ca.is_none() && patroni.client_certificate.is_none() && patroni.basic_auth.is_none());
    let account = &cluster.service_account;
    assert_eq!(
        account.dbname,
        default_text("clusters.NAME.service_account", "dbname")
    );
    assert_eq!(account.pool_size, number("service_account", "pool_size") as usize);
    assert_eq!(
        account.password.as_ref().unwrap().expose(),
        b"geheim",
        "without its newline"
    );
    assert_eq!(account.timeout, time("service_account", "timeout"));
    let (tls, place) = (&cluster.server_tls, "clusters.NAME.server_tls");
    assert_eq!(tls.sslmode, default_word(place, "sslmode"));
    assert_eq!(tls.sslnegotiation, default_word(place, "sslnegotiation"));
    assert_eq!(tls.channel_binding, default_word(place, "channel_binding"));
    assert!(tls.roots.is_none());
    assert_eq!(
        cluster.server,
        ServerOptions {
            connect_timeout: time("server", "connect_timeout"),
            keepalive: Some(time("server", "keepalive")),
            tcp_user_timeout: Some(time("server", "tcp_user_timeout")),
        }
    );
    assert_eq!(
        cluster.probe,
        Probe {
            interval: time("probe", "interval"),
            timeout: time("probe", "timeout"),
            rise: number("probe", "rise"),
            fall: number("probe", "fall"),
        }
    );
    assert_eq!(cluster.local_member, LocalMember::Auto);
    assert_eq!(cluster.placement, Placement::even());
    assert_eq!(config.warnings(), [""; 0]);
}

#[test]
fn the_rest_of_the_minimal_file_has_the_defaults_of_the_table() {
    let files = Files::new();
    let config = files.ok(MINIMAL);
    let Verifiers::Query { sql, cache_ttl } = &config.auth.verifiers else {
        panic!()
    };
    assert_eq!(sql, default_text("auth", "query"));
    assert_eq!(*cache_ttl, default_time("auth", "cache_ttl"));
    assert_eq!(config.auth.login_timeout, default_time("auth", "login_timeout"));
    let place = "auth.rate_limit";
    let rate_limit = RateLimit {
        failures: default_number(place, "failures"),
        delay: default_time(place, "delay"),
        max_delay: default_time(place, "max_delay"),
        refuse_after: default_number(place, "refuse_after"),
        refuse_for: default_time(place, "refuse_for"),
        exempt: [].into(),
    };
    assert_eq!(config.auth.rate_limit, rate_limit);
    assert_eq!(
        *config.routes["read-write"],
        Route::read_write("read-write", "main")
    );
    assert_eq!(*config.routes["read-only"], Route::read_only("read-only", "main"));
    let shown: Vec<(&str, String)> = config
        .listeners
        .iter()
        .map(|listener| (&*listener.route, listener.address.to_string()))
        .collect();
    let wanted = DEFAULT_LISTENERS.map(|(name, address)| (name, address.to_owned()));
    assert_eq!(shown, wanted);
    assert!(config.listeners.iter().all(|listener| {
        listener.tls == default_word("listeners[]", "tls")
            && listener.max_clients == default_number("listeners[]", "max_clients")
    }));
    let [http] = &*config.http.addresses else {
        panic!("{:?}", config.http.addresses)
    };
    assert_eq!(http.to_string(), default_text("http", "address"));
    assert!(config.http.tls.is_none() && config.peers.is_none());
    let number = |key| default_number("limits", key);
    assert_eq!(
        config.limits,
        Limits {
            max_clients: number("max_clients"),
            max_pending_logins: number("max_pending_logins"),
            per_user: number("per_user"),
            per_database: number("per_database"),
            per_address: number("per_address"),
            connection_rate: None,
        }
    );
    assert_eq!(
        config.log,
        Log {
            level: default_word("log", "level"),
            format: default_word("log", "format"),
        }
    );
    assert_eq!(config.shutdown.delay, default_time("shutdown", "delay"));
    assert_eq!(config.shutdown.grace, default_time("shutdown", "grace"));
    assert_eq!(config.shutdown.handover, None);
}

/// The table says in words which routes and listeners there are by default.
#[test]
fn the_words_about_default_routes_and_listeners_are_right() {
    let meaning = |key| ROOT.find(key).unwrap().meaning;
    for (name, address) in DEFAULT_LISTENERS {
        let listener = format!("`{name}` on `{address}`");
        assert!(meaning("listeners").contains(&listener), "{listener}");
    }
    for (name, target) in DEFAULT_ROUTES {
        let route = format!("`{name}` (the {target})").replace("the replica", "a replica");
        assert!(meaning("routes").contains(&route), "{route}");
    }
}

#[test]
fn the_rate_limit_fits_what_is_written_beside_it() {
    let files = Files::new();
    let read = |auth: &str| files.ok(&format!("{MINIMAL}auth: {{{auth}}}\n")).auth.rate_limit;
    assert!(!read("rate_limit: {failures: 0}").is_on());
    assert_eq!(read("rate_limit: {failures: 30}").refuse_after, 30);
    assert_eq!(
        read("rate_limit: {delay: 20s}").max_delay,
        Duration::from_secs(20)
    );
    let short = read("login_timeout: 200ms");
    let most = Duration::from_millis(100);
    assert_eq!((short.delay, short.max_delay), (most, most));
}
