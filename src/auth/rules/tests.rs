#![allow(clippy::unwrap_used)]

use super::*;

fn facts() -> Facts<'static> {
    Facts {
        user: b"app",
        database: b"shop",
        replication: Replication::None,
        origin: tcp("10.1.2.3"),
        tls: false,
    }
}

fn tcp(address: &str) -> Origin {
    Origin::Tcp(address.parse().unwrap())
}

fn rule(method: Method) -> Rule {
    Rule {
        method,
        ..Rules::builtin().rules.remove(0)
    }
}

fn only(rule: Rule) -> Rules {
    Rules::new(vec![rule])
}

fn network(text: &str, prefix: u8) -> Network {
    Network::new(text.parse().unwrap(), prefix).unwrap()
}

fn decided(rules: &Rules, facts: &Facts<'_>) -> Option<usize> {
    match rules.decide(facts, &Known::default()) {
        Step::Decided(Decision::Match(matched)) => Some(matched.index),
        Step::Decided(Decision::NoMatch) => None,
        Step::Needs(need) => panic!("{need:?}"),
    }
}

#[test]
fn the_default_asks_every_client_for_scram() {
    let rules = Rules::builtin();
    for replication in [Replication::None, Replication::Logical, Replication::Physical] {
        for tls in [false, true] {
            for origin in [tcp("10.1.2.3"), tcp("::1"), Origin::Local] {
                let facts = Facts {
                    replication,
                    origin,
                    tls,
                    ..facts()
                };
                let Step::Decided(Decision::Match(matched)) = rules.decide(&facts, &Known::default()) else {
                    panic!("{facts:?}")
                };
                assert_eq!(
                    (&matched.rule.method, &matched.rule.place),
                    (&Method::ScramSha256, &RuleOrigin::Builtin)
                );
            }
        }
    }
}

#[test]
fn the_first_match_decides() {
    let reject = Rule {
        users: vec![UserMatch::Name(Bytes::from_static(b"app"))],
        ..rule(Method::Reject)
    };
    let rules = Rules::new(vec![reject, rule(Method::ScramSha256)]);
    assert_eq!(decided(&rules, &facts()), Some(0));
    assert_eq!(
        decided(
            &rules,
            &Facts {
                user: b"App",
                ..facts()
            }
        ),
        Some(1)
    );
}

#[test]
fn all_databases_are_not_replication() {
    let only = |database| {
        only(Rule {
            databases: vec![database],
            ..rule(Method::ScramSha256)
        })
    };
    let physical = Facts {
        replication: Replication::Physical,
        user: b"shop",
        ..facts()
    };
    let logical = Facts {
        replication: Replication::Logical,
        ..physical
    };
    for database in [
        DatabaseMatch::All,
        DatabaseMatch::SameUser,
        DatabaseMatch::Name(Bytes::from_static(b"shop")),
        DatabaseMatch::Pattern(Pattern::new(b"^s").unwrap()),
    ] {
        let rules = only(database);
        assert_eq!(decided(&rules, &physical), None);
        assert_eq!(decided(&rules, &logical), Some(0));
    }
    let replication = only(DatabaseMatch::Replication);
    assert_eq!(decided(&replication, &physical), Some(0));
    assert_eq!(decided(&replication, &logical), None);
}

#[test]
fn socket_encryption_and_address_count() {
    for (connection, plain, tls, local) in [
        (Connection::Local, false, false, true),
        (Connection::Host, true, true, false),
        (Connection::HostSsl, false, true, false),
        (Connection::HostNoSsl, true, false, false),
        (Connection::HostGssEnc, false, false, false),
        (Connection::HostNoGssEnc, true, true, false),
    ] {
        let rules = only(Rule {
            connection,
            ..rule(Method::Trust)
        });
        let is_match = |facts| decided(&rules, &facts).is_some();
        assert_eq!(is_match(facts()), plain, "{connection:?}");
        assert_eq!(is_match(Facts { tls: true, ..facts() }), tls, "{connection:?}");
        let here = Facts {
            origin: Origin::Local,
            ..facts()
        };
        assert_eq!(is_match(here), local, "{connection:?}");
    }
    for (network, address, inside) in [
        (network("10.1.0.0", 16), "10.1.255.1", true),
        (network("10.1.0.0", 16), "10.2.0.1", false),
        (network("10.1.0.0", 16), "::ffff:10.1.2.3", true),
        (network("10.1.2.3", 32), "10.1.2.2", false),
        (network("0.0.0.0", 0), "255.1.2.3", true),
        (network("0.0.0.0", 0), "::1", false),
        (network("::", 0), "fe80::1", true),
        (network("::", 0), "1.2.3.4", false),
        (network("fd00::", 8), "fdff::1", true),
        (network("::1", 128), "::2", false),
    ] {
        assert_eq!(
            network.contains(address.parse().unwrap()),
            inside,
            "{network:?} {address}"
        );
    }
    assert!(Network::new("1.2.3.4".parse().unwrap(), 33).is_none());
    assert!(Network::new("::".parse().unwrap(), 129).is_none());
}

#[test]
fn a_look_up_is_asked_for_only_where_it_decides() {
    let group = Rule {
        users: vec![UserMatch::MemberOf(Bytes::from_static(b"staff"))],
        address: AddressMatch::Host(Bytes::from_static(b".example.com")),
        ..rule(Method::Trust)
    };
    let step = |rules: &Rules, known: &Known<'_>| match rules.decide(&facts(), known) {
        Step::Needs(need) => Err(need),
        Step::Decided(Decision::Match(matched)) => Ok(Some(matched.index)),
        Step::Decided(Decision::NoMatch) => Ok(None),
    };
    let rules = only(group.clone());
    let name = HostName::Verified("A.Example.COM".to_owned());
    let member = Memberships::new([Bytes::from_static(b"app"), Bytes::from_static(b"staff")]);
    let mut known = Known::default();
    assert_eq!(step(&rules, &known), Err(Need::HostName));
    known.host_name = Some(&name);
    assert_eq!(step(&rules, &known), Err(Need::Memberships));
    known.memberships = Some(&member);
    assert_eq!(step(&rules, &known), Ok(Some(0)));
    let nobody = Memberships::default();
    known.memberships = Some(&nobody);
    assert_eq!(step(&rules, &known), Ok(None));

    // Another column says no, or another entry says yes.
    let elsewhere = only(Rule {
        databases: vec![DatabaseMatch::SameUser],
        ..group.clone()
    });
    assert_eq!(step(&elsewhere, &Known::default()), Ok(None));
    let also_by_name = only(Rule {
        users: vec![
            group.users[0].clone(),
            UserMatch::Name(Bytes::from_static(b"app")),
        ],
        address: AddressMatch::All,
        ..group
    });
    assert_eq!(step(&also_by_name, &Known::default()), Ok(Some(0)));
}

#[test]
fn interfaces_give_the_same_host_and_the_same_network() {
    let interface = |address: &str, netmask: &str| Interface {
        address: address.parse().unwrap(),
        netmask: netmask.parse().unwrap(),
    };
    let interfaces = [
        interface("10.1.2.3", "255.255.0.0"),
        interface("192.168.0.1", "0.0.0.0"),
        interface("fd00::1", "ffff::"),
    ];
    let known = Known {
        interfaces: &interfaces,
        ..Known::default()
    };
    for (address, host, net) in [
        ("10.1.2.3", true, true),
        ("10.1.9.9", false, true),
        ("10.2.0.1", false, false),
        ("192.168.0.1", true, true),
        ("192.168.0.2", false, false),
        ("fd00::2", false, true),
        ("::ffff:10.1.9.9", false, true),
    ] {
        for (keyword, expected) in [(AddressMatch::SameHost, host), (AddressMatch::SameNet, net)] {
            let rule = Rule {
                address: keyword,
                ..rule(Method::Trust)
            };
            let facts = Facts {
                origin: tcp(address),
                ..facts()
            };
            assert_eq!(
                rule.verdict(&facts, &known) == RuleVerdict::Matches,
                expected,
                "{address} {:?}",
                rule.address
            );
        }
    }
}

#[test]
fn the_column_that_does_not_match_is_named() {
    let base = rule(Method::Trust);
    let rules = Rules::new(vec![
        Rule {
            connection: Connection::HostSsl,
            ..base.clone()
        },
        Rule {
            address: AddressMatch::Network(network("10.9.0.0", 16)),
            ..base.clone()
        },
        Rule {
            databases: vec![DatabaseMatch::SameUser],
            ..base.clone()
        },
        Rule {
            users: vec![UserMatch::Name(Bytes::from_static(b"x"))],
            ..base.clone()
        },
        base,
    ]);
    let verdicts: Vec<_> = rules
        .describe(&facts(), &Known::default())
        .iter()
        .map(|considered| considered.verdict)
        .collect();
    assert_eq!(
        verdicts,
        [
            RuleVerdict::Differs(Column::Type),
            RuleVerdict::Differs(Column::Address),
            RuleVerdict::Differs(Column::Database),
            RuleVerdict::Differs(Column::User),
            RuleVerdict::Matches,
        ]
    );
}

#[test]
fn refusals_are_in_postgresqls_words() {
    let reply = facts().no_entry();
    assert_eq!(reply.code.as_str(), "28000");
    assert_eq!(
        reply.message,
        "no pg_hba.conf entry for host \"10.1.2.3\", user \"app\", database \"shop\", no encryption"
    );
    let physical = Facts {
        replication: Replication::Physical,
        tls: true,
        origin: tcp("::ffff:1.2.3.4"),
        ..facts()
    };
    assert_eq!(
        physical.no_entry().message,
        "no pg_hba.conf entry for replication connection from host \"1.2.3.4\", user \"app\", SSL encryption"
    );
    let local = Facts {
        origin: Origin::Local,
        ..facts()
    };
    assert_eq!(
        local.rejected().message,
        "pg_hba.conf rejects connection for host \"[local]\", user \"app\", database \"shop\", no encryption"
    );
}
