//! Who may knock and how often, and what becomes of sessions for which there is no place.

use super::*;

fn listener(keys: &str) -> String {
    format!("{MINIMAL}listeners: [{{name: a, route: read-write, address: \"*:1\", {keys}}}]\n")
}

#[test]
fn every_key_has_its_value() {
    let files = Files::new();
    let config = files.ok(FULL);
    let entry = &config.listeners[0].entry;
    let shown = |networks: &[Network]| networks.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(shown(&entry.addresses.allow), ["::1/128", "10.0.0.0/8"]);
    assert_eq!(shown(&entry.addresses.deny), ["10.1.0.0/16"]);
    let proxies = entry.proxy_protocol.as_ref().unwrap();
    assert_eq!(shown(&proxies.trusted), ["192.0.2.1/32", "2001:db8::/32"]);
    assert!(proxies.required);
    assert_eq!(entry.connection_rate.unwrap().get(), 20);
    assert_eq!(config.listeners[1].entry, files.ok(MINIMAL).listeners[0].entry);
    let http = config.http.proxy_protocol.as_ref().unwrap();
    assert_eq!(
        (shown(&http.trusted), http.required),
        (vec!["192.0.2.2/32".to_owned()], false)
    );
    assert_eq!(config.clusters["other"].max_connections, 18);
    assert_eq!(config.clusters["main"].max_connections, 0);
    let route = &config.routes["w"];
    let (timeout, most) = (Duration::from_secs(3), 19);
    assert_eq!(route.queue, Queue { timeout, most });
    let told = ClientAddressOptions {
        setting: false,
        application_name: true,
        tls: true,
    };
    assert_eq!(route.client_address, told);
    let other = &config.routes["r"];
    let (timeout, most) = (Duration::from_secs(10), 100);
    assert_eq!(other.queue, Queue { timeout, most });
    // It has a pool.
    let told = ClientAddressOptions {
        setting: false,
        application_name: false,
        tls: false,
    };
    assert_eq!(other.client_address, told);
}

#[test]
fn deny_counts_before_allow() {
    let files = Files::new();
    let admits = |keys: &str, address: &str| {
        let config = files.ok(&listener(keys));
        config.listeners[0]
            .entry
            .addresses
            .admit(address.parse().unwrap())
    };
    for (keys, address, expected) in [
        ("allow: [], deny: []", "192.0.2.1", true),
        ("allow: [10.0.0.0/8]", "10.255.0.1", true),
        ("allow: [10.0.0.0/8]", "::ffff:10.255.0.1", true),
        ("allow: [10.0.0.0/8]", "11.0.0.1", false),
        ("allow: [10.0.0.0/8]", "::1", false),
        ("allow: [10.0.0.0/8], deny: [10.1.2.3]", "10.1.2.3", false),
        ("allow: [10.1.2.3], deny: [10.0.0.0/8]", "10.1.2.3", false),
        ("deny: [10.1.2.3]", "10.1.2.4", true),
        ("deny: [\"2001:db8::/33\"]", "2001:db8:7fff::1", false),
        ("deny: [\"2001:db8::/33\"]", "2001:db8:8000::1", true),
        ("deny: [0.0.0.0/0]", "192.0.2.1", false),
        ("deny: [0.0.0.0/0]", "2001:db8::1", true),
        ("deny: [\"::/0\"]", "2001:db8::1", false),
        ("deny: [\"::/0\"]", "192.0.2.1", true),
    ] {
        assert_eq!(admits(keys, address), expected, "{keys} {address}");
    }
}

#[test]
fn what_is_no_network_no_rate_and_no_effect() {
    let files = Files::new();
    for (keys, expected) in [
        ("allow: [all]", "allow[0]: is not an address or a network"),
        (
            "allow: [10.0.0.0/33]",
            "has a prefix length that does not fit its address",
        ),
        (
            "allow: [10.0.0.0/+8]",
            "has a prefix length that does not fit its address",
        ),
        ("allow: [10.0.0.1/8]", "has bits beyond its prefix length"),
        ("deny: [\"::ffff:10.0.0.0/104\"]", "write an IPv4 address as IPv4"),
        ("deny: 10.0.0.0/8", "expected a list, found text"),
        ("proxy_protocol: {}", "`trusted` is missing"),
        (
            "proxy_protocol: {trusted: []}",
            "proxy_protocol.trusted: must not be empty",
        ),
        (
            "proxy_protocol: {trusted: [::1], required: maybe}",
            "expected true or false, found text",
        ),
        ("connection_rate: 500", "is not a rate"),
        ("connection_rate: 500/m", "is not a rate"),
        ("connection_rate: 0/s", "is not a rate"),
        ("connection_rate: +1/s", "is not a rate"),
        ("connection_rate: 1000001/s", "must be at most 1000000/s"),
    ] {
        files.one_error(&listener(keys), expected);
    }
    assert_eq!(
        files.ok(&listener("connection_rate: 0")).listeners[0].entry,
        files.ok(MINIMAL).listeners[0].entry
    );
    let local = |keys: &str| listener(keys).replace("\"*:1\"", "/run/.s.PGSQL.1");
    for keys in [
        "allow: [10.0.0.0/8]",
        "deny: []",
        "proxy_protocol: {trusted: [10.0.0.1]}",
    ] {
        files.one_error(&local(keys), "has no effect on a Unix socket");
    }
    assert!(files.parse(&local("connection_rate: 5/s")).is_ok());
}

#[test]
fn a_queue_needs_something_to_wait_for() {
    let files = Files::new();
    let text = |server: &str, route: &str| {
        let routes = format!(
            "routes: {{read-write: {{targets: [leader], {route}}}, read-only: {{targets: [replica]}}}}\n"
        );
        with_cluster_key(&format!("server: {{{server}}}")) + &routes
    };
    for key in ["queue_timeout: 1s", "max_queue: 5"] {
        assert!(files.parse(&text("max_connections: 1", key)).is_ok(), "{key}");
        files.one_error(
            &text("max_connections: 0", key),
            "has no `server.max_connections`",
        );
    }
    files.one_error(
        &text("max_connections: 1", "max_queue: 0, queue_timeout: 1s"),
        "has no effect with `max_queue: 0`",
    );
    files.one_error(
        &text("max_connections: 1", "queue_timeout: 0"),
        "must be from 10ms to 10m",
    );
    files.one_error(
        &text("max_connections: 1", "max_queue: 100001"),
        "must be from 0 to 100000",
    );
    files.one_error(&text("", "client_address: true"), "expected a map of keys");
    files.one_error(
        &text("", "client_address: {setting: 1}"),
        "expected true or false, found a number",
    );
}
