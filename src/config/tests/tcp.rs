//! `listeners[].mode`.

use super::*;

fn with_listeners(listeners: &str) -> String {
    format!("{MINIMAL}listeners:\n{listeners}")
}

#[test]
fn a_listener_speaks_postgresql_unless_it_is_told_to_forward() {
    let files = Files::new();
    let config = files.ok(&with_listeners(
        "  - {name: a, address: \"*:1\", route: read-write}\n  \
         - {name: b, address: \"*:2\", route: read-write, mode: postgres}\n  \
         - {name: c, address: \"*:3\", route: read-only, mode: tcp, max_clients: 7}\n  \
         - {name: d, address: /run/trunkline/.s.PGSQL.4, route: read-only, mode: tcp}\n",
    ));
    let shown: Vec<_> = config.listeners.iter().map(|l| (l.mode, l.tls)).collect();
    let (speaks, forwards) = (ListenerMode::Postgres, ListenerMode::Tcp);
    assert_eq!(
        shown,
        [
            (speaks, ListenerTls::Optional),
            (speaks, ListenerTls::Optional),
            (forwards, ListenerTls::Off),
            (forwards, ListenerTls::Off)
        ]
    );
    assert_eq!(config.listeners[2].max_clients, 7);
}

#[test]
fn what_has_no_effect_on_a_forwarding_listener_is_a_fault() {
    let files = Files::new();
    for address in ["*:1", "/run/trunkline/.s.PGSQL.1"] {
        for tls in ["off", "optional", "required"] {
            files.one_error(
                &with_listeners(&format!(
                    "  - {{name: a, address: \"{address}\", route: read-write, mode: tcp, tls: {tls}}}\n"
                )),
                "listeners[0].tls: has no effect with `mode: tcp`: TLS is between the client and the server",
            );
        }
    }
    files.one_error(
        &with_listeners("  - {name: a, address: \"*:1\", route: read-write, mode: udp}\n"),
        "expected `postgres` or `tcp`, found `udp`",
    );
}

#[test]
fn a_certificate_that_nobody_is_shown_is_a_warning() {
    let warnings = Files::new()
        .ok(&with_listeners(
            "  - {name: a, address: \"*:1\", route: read-write, mode: tcp}\n  \
             - {name: b, address: \"*:2\", route: read-only, mode: tcp}\n",
        ))
        .warnings();
    assert_eq!(
        warnings,
        ["a certificate is configured, but every listener has `mode: tcp`"]
    );
}

#[test]
fn nobody_can_be_told_an_address_where_every_listener_of_the_route_forwards() {
    let files = Files::new();
    let text = |first: &str, second: &str| {
        format!(
            "{MINIMAL}routes:\n  rw: {{targets: [leader], client_address: {{application_name: true}}}}\n  \
             ro: {{targets: [replica]}}\n  \
             idle: {{targets: [leader], client_address: {{setting: false}}}}\n\
             listeners:\n  - {{name: a, address: \"*:1\", route: rw, mode: {first}}}\n  \
             - {{name: b, address: \"*:2\", route: rw, mode: {second}}}\n  \
             - {{name: c, address: \"*:3\", route: ro}}\n"
        )
    };
    files.one_error(
        &text("tcp", "tcp"),
        "routes.rw.client_address: has no effect: every listener of the route has `mode: tcp`",
    );
    files.ok(&text("tcp", "postgres"));
    files.ok(&text("postgres", "tcp"));
}

#[test]
fn peers_are_asked_where_postgresql_is_spoken() {
    let files = Files::new();
    let text = |peer: &str| {
        with_listeners(&format!(
            "  - {{name: a, address: \"127.0.0.1:1\", route: read-write}}\n  \
             - {{name: b, address: \"127.0.0.1:2\", route: read-only, mode: tcp}}\n\
             http: {{address: \"127.0.0.1:3\", agent_check: {{address: \"*:4\"}}}}\n\
             peers: {{secret_file: peers.key, members: [{{name: p, address: \"{peer}\"}}]}}\n"
        ))
    };
    let own = "peers.members[0].address: is";
    files.one_error(
        &text("127.0.0.1:2"),
        &format!("{own} the address of a `mode: tcp` listener of this router: listeners[1].address"),
    );
    files.one_error(
        &text("127.0.0.1:3"),
        &format!("{own} the address of the HTTP port of this router: http.address"),
    );
    for (peer, told) in [
        (
            "db2:2",
            Some("port 2 of this router belongs to a `mode: tcp` listener"),
        ),
        (
            "127.0.0.2:3",
            Some("port 3 of this router belongs to the HTTP port"),
        ),
        (
            "127.0.0.1:4",
            Some("port 4 of this router belongs to the agent check"),
        ),
        ("127.0.0.1:1", None),
        ("db2:1", None),
        ("db2:5", None),
    ] {
        let warnings = files.ok(&text(peer)).warnings();
        match told {
            Some(told) => assert!(warnings.len() == 1 && warnings[0].contains(told), "{warnings:?}"),
            None => assert_eq!(warnings, [""; 0], "{peer}"),
        }
    }
    // A port may have both, on addresses of their own.
    let both = text("db2:2").replace("127.0.0.1:1", "127.0.0.2:2");
    assert_eq!(files.ok(&both).warnings(), [""; 0]);
}
