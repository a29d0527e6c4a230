//! Whom routes ask for, and members' weights and zones.

use serde_json::json;

use super::*;

fn with_routes(routes: &str) -> String {
    format!(
        "{MINIMAL}routes:\n  read-write: {{targets: [leader]}}\n  {routes}\nlisteners: [{{name: x, address: \"*:1\", route: read-write}}]\n"
    )
}

fn fixed(extra: &str, routes: &str) -> String {
    format!(
        "clusters: {{main: {{servers: [{{name: a, host: a}}, {{name: b, host: b}}], service_account: {{user: u}}{extra}}}}}\n{routes}"
    )
}

#[test]
fn targets_are_roles_or_lists_of_roles_in_order() {
    use TargetRole::{Any, Async, Leader, Quorum, Replica, Sync};
    let files = Files::new();
    let cases: [(&str, &[&[TargetRole]], &str); 6] = [
        ("[leader]", &[&[Leader]], "leader"),
        ("[[leader]]", &[&[Leader]], "leader"),
        (
            "[replica, leader]",
            &[&[Replica], &[Leader]],
            "replica, then leader",
        ),
        (
            "[[sync, quorum], async]",
            &[&[Sync, Quorum], &[Async]],
            "sync or quorum, then async",
        ),
        ("[sync, replica]", &[&[Sync], &[Replica]], "sync, then replica"),
        ("[any]", &[&[Any]], "any"),
    ];
    for (text, tiers, wanted) in cases {
        let access = if wanted == "leader" {
            Access::ReadWrite
        } else {
            Access::ReadOnly
        };
        let on_leader =
            if tiers.iter().any(|tier| tier.contains(&Any)) || tiers.len() > 1 && text.contains("leader") {
                ", read_only_on_leader: unenforced"
            } else {
                ""
            };
        let config = files.ok(&with_routes(&format!("r: {{targets: {text}{on_leader}}}")));
        let route = &config.routes["r"];
        let expected: Vec<Tier> = tiers.iter().map(|roles| Tier(roles.to_vec())).collect();
        assert_eq!((&route.targets, route.access), (&expected, access), "{text}");
        assert_eq!(route.wanted(), wanted);
        assert_eq!(route.takes_leader(), wanted.contains("leader") || wanted == "any");
    }
}

#[test]
fn a_routes_other_keys_are_read() {
    let files = Files::new();
    let route = &files.ok(FULL).routes["r"];
    assert_eq!(
        (route.balance, route.read_only_on_leader),
        (Balance::SourceHash, OnLeader::Unenforced)
    );
    let tags: Vec<_> = route
        .tags
        .iter()
        .map(|(key, value)| (key.as_str(), value.clone()))
        .collect();
    assert_eq!(
        tags,
        [("disk", json!("ssd")), ("old", json!(false)), ("site", json!(2))]
    );
    for (word, balance) in [
        ("least_connections", Balance::LeastConnections),
        ("round_robin", Balance::RoundRobin),
        ("random", Balance::Random),
        ("source_hash", Balance::SourceHash),
        ("first", Balance::First),
    ] {
        let config = files.ok(&with_routes(&format!(
            "r: {{targets: [replica], balance: {word}}}"
        )));
        assert_eq!(config.routes["r"].balance, balance);
    }
}

#[test]
fn unenforced_reading_on_the_leader_is_warned_of() {
    let files = Files::new();
    let config = files.ok(&with_routes(
        "r: {targets: [any], read_only_on_leader: unenforced}",
    ));
    assert!(
        config
            .warnings()
            .iter()
            .any(|warning| warning
                .contains("route `r`: read-only sessions of this route may be on the leader")),
        "{:?}",
        config.warnings()
    );
}

#[test]
fn routes_that_would_not_do_what_they_say_are_refused() {
    let files = Files::new();
    for (route, expected) in [
        ("r: {targets: []}", "must not be empty"),
        ("r: {targets: [[]]}", "must not be empty"),
        (
            "r: {targets: [primary]}",
            "expected `leader`, `replica`, `sync`, `quorum`, `async` or `any`",
        ),
        (
            "r: {targets: [replica, sync]}",
            "targets[1]: `sync` adds nothing to the targets before it",
        ),
        (
            "r: {targets: [replica, replica]}",
            "targets[1]: `replica` adds nothing",
        ),
        (
            "r: {targets: [[sync, sync]]}",
            "targets[0][1]: `sync` adds nothing",
        ),
        (
            "r: {targets: [any, leader], read_only_on_leader: unenforced}",
            "targets[1]: `leader` adds nothing",
        ),
        (
            "r: {targets: [replica, leader]}",
            "remove `leader` and `any`, or set `read_only_on_leader` to `unenforced` or `enforced`",
        ),
        (
            "r: {targets: [any], read_only_on_leader: refused}",
            "sends read-only sessions to the leader",
        ),
        (
            "r: {targets: [any], read_only_on_leader: enforced}",
            "`enforced` needs a role without write privileges for every user",
        ),
        (
            "r: {targets: [any], read_only_on_leader: maybe}",
            "expected `refused`, `unenforced` or `enforced`",
        ),
        (
            "r: {targets: [replica], read_only_on_leader: unenforced}",
            "neither `leader` nor `any` is among the targets",
        ),
        (
            "r: {targets: [leader], read_only_on_leader: refused}",
            "`targets: [leader]` is a read-write route",
        ),
        (
            "r: {targets: [leader], balance: first}",
            "there is one leader at most",
        ),
        (
            "r: {targets: [replica], balance: fastest}",
            "expected `least_connections`, `round_robin`, `random`",
        ),
        ("r: {targets: [replica], tags: {}}", "must not be empty"),
        (
            "r: {targets: [replica], tags: {a: [1]}}",
            "expected text, a number, true or false",
        ),
        (
            "r: {targets: [replica], tags: {a: 9223372036854775808}}",
            "is a number that is too large",
        ),
    ] {
        files.one_error(&with_routes(route), expected);
    }
}

#[test]
fn a_fixed_list_has_neither_patronis_roles_nor_tags() {
    let files = Files::new();
    for role in ["sync", "quorum", "async"] {
        let routes =
            format!("routes: {{read-write: {{targets: [leader]}}, read-only: {{targets: [{role}]}}}}\n");
        files.one_error(&fixed("", &routes), "is known from Patroni only");
    }
    let routes = "routes: {read-write: {targets: [leader]}, read-only: {targets: [replica], tags: {a: b}}}\n";
    files.one_error(&fixed("", routes), "tags are Patroni's");
    files.one_error(&fixed(", weight_tag: w", ""), "tags are Patroni's");
    let routes = "routes: {read-write: {targets: [leader]}, read-only: {targets: [[replica, leader]], balance: first, \
                  read_only_on_leader: unenforced}}\n";
    files.ok(&fixed(", zone: a, members: {b: {zone: a, weight: 0}}", routes));
}

#[test]
fn weights_and_zones_are_read_by_member() {
    let files = Files::new();
    let config = files.ok(FULL);
    let placement = &config.clusters["main"].placement;
    assert_eq!(
        (
            placement.zone.as_deref(),
            placement.weight_tag.as_deref(),
            placement.zone_tag.as_deref()
        ),
        (Some("a"), Some("weight"), Some("zone"))
    );
    let db3 = MemberPlacement {
        weight: Some(50),
        zone: Some("b".into()),
    };
    assert_eq!(
        placement.members.iter().collect::<Vec<_>>(),
        [(&"db3".to_owned(), &db3)]
    );
    assert_eq!(config.clusters["other"].placement, Placement::even());
}

#[test]
fn weights_and_zones_without_effect_are_refused() {
    let files = Files::new();
    for (extra, expected) in [
        (
            ", members: {c: {weight: 1}}",
            "there is no server `c` (the servers are: a, b)",
        ),
        (", members: {a: {weight: 257}}", "must be from 0 to 256"),
        (
            ", members: {a: {zone: x}}",
            "has no effect without the router's own zone",
        ),
        (", zone: x", "no member has a zone"),
        (", members: {a: {wait: 1}}", "unknown key `wait`"),
    ] {
        files.one_error(&fixed(extra, ""), expected);
    }
    let of_patroni = MINIMAL.replace("    service_account", "    zone_tag: z\n    service_account");
    files.one_error(&of_patroni, "has no effect without the router's own zone, `zone`");
}

#[test]
fn enforced_reading_on_the_leader_needs_another_role_for_every_user() {
    let files = Files::new();
    let with = |credentials: &str| {
        let routes = with_routes("r: {targets: [any], read_only_on_leader: enforced}");
        format!("{routes}auth: {{server_credentials: [{credentials}]}}\n")
    };
    let config = files.ok(&with(
        "{users: [a], server_user: x, password_file: pw}, {users: all, server_user: y, password_file: pw}",
    ));
    assert_eq!(config.routes["r"].read_only_on_leader, OnLeader::Enforced);
    // A bad file is the only error: the entry is there.
    files.secret("empty", "");
    files.secret("marked", "\u{feff}geheim\n");
    for (file, expected) in [
        ("empty", "is empty"),
        ("marked", "byte order mark"),
        ("nope", "does not exist"),
    ] {
        let credentials = format!("{{users: all, server_user: y, password_file: {file}}}");
        files.one_error(&with(&credentials), expected);
    }
    for credentials in [
        "{users: all, password_file: pw}",
        "{users: [a], server_user: x, password_file: pw}",
        "{users: [a], password_file: pw}, {users: all, server_user: y, password_file: pw}",
    ] {
        files.one_error(
            &with(credentials),
            "needs a role without write privileges for every user",
        );
    }
}
