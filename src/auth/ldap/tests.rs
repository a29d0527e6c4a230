#![allow(clippy::unwrap_used, clippy::unnecessary_wraps)]

use super::message::{LARGEST_ANSWER, LdapAnswer, LdapRequest, MessageError, Operation, message_length};
use super::*;

fn text(value: &str) -> Option<String> {
    Some(value.to_owned())
}

fn on_server() -> LdapOptions {
    LdapOptions {
        server: text("ldap.example.net"),
        ..LdapOptions::default()
    }
}

fn with_base() -> LdapOptions {
    LdapOptions {
        basedn: text("dc=example,dc=net"),
        ..on_server()
    }
}

fn with_url(url: &str) -> LdapOptions {
    LdapOptions {
        url: text(url),
        ..LdapOptions::default()
    }
}

fn error(options: LdapOptions) -> String {
    LdapSettings::new(options).unwrap_err()
}

fn search(options: LdapOptions) -> Search {
    match LdapSettings::new(options).unwrap().mode {
        Mode::Search(search) => search,
        Mode::Direct { .. } => panic!("binds directly"),
    }
}

fn filter_of(search: &Search, user: &[u8]) -> Vec<u8> {
    search.filter(user).unwrap()
}

#[test]
fn servers_are_read_with_and_without_ports() {
    let options = LdapOptions {
        server: text("one two:1389 [::1] [::1]:2389 fd00::2 127.0.0.1:3389"),
        prefix: text("uid="),
        ..LdapOptions::default()
    };
    let hosts: Vec<_> = LdapSettings::new(options.clone())
        .unwrap()
        .servers()
        .iter()
        .map(|server| (server.host.clone(), server.port))
        .collect();
    let expected = [
        ("one", 389),
        ("two", 1389),
        ("::1", 389),
        ("::1", 2389),
        ("fd00::2", 389),
        ("127.0.0.1", 3389),
    ];
    assert_eq!(hosts, expected.map(|(host, port)| (host.to_owned(), port)));

    let secure = LdapOptions {
        scheme: Some(LdapScheme::Ldaps),
        ..options.clone()
    };
    assert_eq!(LdapSettings::new(secure).unwrap().servers()[0].port, 636);
    let elsewhere = LdapOptions {
        port: Some(4389),
        ..options
    };
    assert_eq!(LdapSettings::new(elsewhere).unwrap().servers()[0].port, 4389);
}

#[test]
fn servers_that_cannot_be_are_refused() {
    for server in [
        "one:0",
        "one:65536",
        "one:x",
        "[::1",
        "[one]",
        "[::1]389",
        "a/b",
        "one:",
    ] {
        let options = LdapOptions {
            server: text(server),
            prefix: text(""),
            ..LdapOptions::default()
        };
        assert!(error(options).starts_with("ldapserver: "), "{server}");
    }
    for server in [None, text(""), text("  ")] {
        let options = LdapOptions {
            server,
            prefix: text("uid="),
            ..LdapOptions::default()
        };
        assert_eq!(error(options), "ldapserver is needed");
    }
    let many = LdapOptions {
        server: Some("h ".repeat(17)),
        prefix: text(""),
        ..LdapOptions::default()
    };
    assert!(error(many).contains("more than 16"));
}

#[test]
fn the_two_modes_do_not_mix() {
    let both = LdapOptions {
        prefix: text("uid="),
        ..with_base()
    };
    assert!(error(both).starts_with("ldapprefix and ldapsuffix bind directly"));
    let url = LdapOptions {
        suffix: text("@x"),
        ..with_url("ldap://h/dc=x?uid?sub")
    };
    assert!(error(url).starts_with("ldapprefix and ldapsuffix bind directly"));
    assert_eq!(
        error(on_server()),
        "ldap needs ldapbasedn, ldapprefix or ldapsuffix"
    );
}

#[test]
fn options_that_contradict_are_refused() {
    let cases = [
        (
            LdapOptions {
                scheme: Some(LdapScheme::Ldaps),
                tls: true,
                ..with_base()
            },
            "ldaptls cannot be used with ldaps",
        ),
        (
            LdapOptions {
                port: Some(0),
                ..with_base()
            },
            "ldapport",
        ),
        (
            LdapOptions {
                searchattribute: text("uid"),
                searchfilter: text("(uid=$username)"),
                ..with_base()
            },
            "ldapsearchattribute cannot be used with ldapsearchfilter",
        ),
        (
            LdapOptions {
                searchattribute: text("uid)(a"),
                ..with_base()
            },
            "ldapsearchattribute: ",
        ),
        (
            LdapOptions {
                searchattribute: text(""),
                ..with_base()
            },
            "ldapsearchattribute: ",
        ),
        (
            LdapOptions {
                searchfilter: text("(uid=$username"),
                ..with_base()
            },
            "ldapsearchfilter: ",
        ),
        (
            LdapOptions {
                searchfilter: text("(uid=everybody)"),
                ..with_base()
            },
            "ldapsearchfilter: ",
        ),
        (
            LdapOptions {
                searchfilter: Some(format!("{}uid=$username{}", "(!".repeat(33), ")".repeat(33))),
                ..with_base()
            },
            "ldapsearchfilter: ",
        ),
        (
            LdapOptions {
                binddn: text("cn=router"),
                ..with_base()
            },
            "ldapbinddn and ldapbindpasswd need each other",
        ),
        (
            LdapOptions {
                bindpasswd: Some(Secret::new("x")),
                ..with_base()
            },
            "ldapbinddn and ldapbindpasswd need each other",
        ),
        (
            LdapOptions {
                binddn: text("cn=router"),
                bindpasswd: Some(Secret::new("")),
                ..with_base()
            },
            "ldapbinddn and ldapbindpasswd need each other",
        ),
    ];
    for (options, start) in cases {
        let shown = format!("{options:?}");
        assert!(error(options).starts_with(start), "{shown}");
    }
}

#[test]
fn a_url_says_what_the_options_would() {
    let settings = LdapSettings::new(with_url(
        "ldaps://h.example.net:1636/dc=example%2Cdc=net?mail?one",
    ))
    .unwrap();
    assert_eq!(
        settings.servers(),
        [LdapServer {
            host: "h.example.net".to_owned(),
            port: 1636
        }]
    );
    assert_eq!(settings.encryption(), Encryption::Ldaps);
    let Mode::Search(search) = settings.mode() else {
        panic!("binds directly")
    };
    assert_eq!(
        (search.base.as_str(), search.scope),
        ("dc=example,dc=net", Scope::One)
    );
    assert_eq!(search.filter, "(mail=$username)");
}

#[test]
fn a_url_may_leave_things_out() {
    // RFC 4516 and PostgreSQL's documentation: without scope, base.
    let bare = search(with_url("ldap://h/dc=x"));
    assert_eq!(
        (bare.scope, bare.filter.as_str()),
        (Scope::Base, "(uid=$username)")
    );
    let filtered = search(with_url("LDAP://h/dc=x??sub?(mail=$username)"));
    assert_eq!(
        (filtered.scope, filtered.filter.as_str()),
        (Scope::Subtree, "(mail=$username)")
    );
    let root = search(with_url("ldap://h"));
    assert_eq!(root.base, "");
    let several = search(with_url("ldap://h/dc=x?cn,uid?sub"));
    assert_eq!(several.filter, "(cn=$username)");
    let list = LdapOptions {
        server: text("a b"),
        ..with_url("ldap:///dc=x??sub")
    };
    assert_eq!(LdapSettings::new(list).unwrap().servers().len(), 2);
    let tls = LdapOptions {
        tls: true,
        ..with_url("ldap://h/dc=x??sub")
    };
    assert_eq!(LdapSettings::new(tls).unwrap().encryption(), Encryption::StartTls);
}

#[test]
fn a_url_that_is_wrong_or_repeats_an_option_is_refused() {
    for url in [
        "h/dc=x",
        "http://h/dc=x",
        "ldap://h/dc=%zz",
        "ldap://h/dc=%f",
        "ldap://h/%ff",
        "ldap://h/dc=x????ext",
        "ldap://h/dc=x?uid?sub?(uid=$username)",
        "ldap://h/dc=x?uid?subtree",
        "ldap://h%20i/dc=x",
    ] {
        assert!(error(with_url(url)).starts_with("ldapurl: "), "{url}");
    }
    let url = "ldap://h/dc=x?uid?sub";
    let twice = [
        LdapOptions {
            server: text("i"),
            ..with_url(url)
        },
        LdapOptions {
            scheme: Some(LdapScheme::Ldap),
            ..with_url(url)
        },
        LdapOptions {
            basedn: text("dc=y"),
            ..with_url(url)
        },
        LdapOptions {
            searchattribute: text("cn"),
            ..with_url(url)
        },
        LdapOptions {
            port: Some(389),
            ..with_url(url)
        },
    ];
    for options in twice {
        assert!(error(options).contains("ldapurl"));
    }
}

#[test]
fn a_secret_is_not_shown() {
    let options = LdapOptions {
        binddn: text("cn=router"),
        bindpasswd: Some(Secret::new("hunter2")),
        ..with_base()
    };
    assert!(!format!("{options:?}").contains("hunter2"));
    assert!(!format!("{:?}", LdapSettings::new(options).unwrap()).contains("hunter2"));
}

#[test]
fn a_name_is_one_value_of_a_filter() {
    let by_uid = search(with_base());
    // (uid=alice): equalityMatch [3] { "uid", "alice" }
    assert_eq!(filter_of(&by_uid, b"alice"), b"\xa3\x0c\x04\x03uid\x04\x05alice");
    let mut zoe = b"\xa3\x12\x04\x03uid\x04\x0b".to_vec();
    zoe.extend("zoë.o'hara".bytes());
    assert_eq!(filter_of(&by_uid, "zoë.o'hara".as_bytes()), zoe);
    for user in ["*", "a*", "a)(uid=*", "a(b", "a\\2a", "a/b", "a\0", "a\nb"] {
        assert_eq!(
            by_uid.filter(user.as_bytes()),
            Err(UnfitName::Character),
            "{user:?}"
        );
    }
    for user in [b"".as_slice(), b"\xff", &[b'a'; 257]] {
        assert_eq!(by_uid.filter(user), Err(UnfitName::Malformed));
    }
}

#[test]
fn every_placeholder_of_a_filter_is_filled() {
    let both = search(LdapOptions {
        searchfilter: text("(|(uid=$username)(mail=$username@x))"),
        ..with_base()
    });
    // or [1] { [3] { "uid", "al" }, [3] { "mail", "al@x" } }
    let expected = b"\xa1\x19\xa3\x09\x04\x03uid\x04\x02al\xa3\x0c\x04\x04mail\x04\x04al@x";
    assert_eq!(filter_of(&both, b"al"), expected);
    // A name that looks like the placeholder is not filled again.
    let uid = search(with_base());
    assert_eq!(
        filter_of(&uid, b"$username"),
        b"\xa3\x10\x04\x03uid\x04\x09$username"
    );
}

#[test]
fn a_name_cannot_become_another_entry() {
    assert_eq!(direct_name("uid=", b"alice", ",dc=x").unwrap(), "uid=alice,dc=x");
    assert_eq!(
        direct_name("", b"alice", "@example.net").unwrap(),
        "alice@example.net"
    );
    assert_eq!(
        direct_name("EXAMPLE\\", b"alice b.", "").unwrap(),
        "EXAMPLE\\alice b."
    );
    assert_eq!(direct_name("mail=", b"a@x", ",dc=x").unwrap(), "mail=a@x,dc=x");
    for user in [
        "a,ou=y", "a+cn=b", "a\\2cou", "a=b", "a\"", "a;b", "<a", "a>", "#61", " a", "a ", "D\\a", "x/a",
        "a\0",
    ] {
        assert_eq!(
            direct_name("uid=", user.as_bytes(), ",dc=x"),
            Err(UnfitName::Character),
            "{user:?}"
        );
    }
    assert_eq!(
        direct_name("", b"a@other.net", "@example.net"),
        Err(UnfitName::Character)
    );
    assert_eq!(direct_name("uid=", b"", ",dc=x"), Err(UnfitName::Malformed));
}

#[test]
fn requests_are_as_the_standard_has_them() {
    let bind = LdapRequest::Bind {
        name: "cn=a",
        password: b"pw",
    }
    .encode(1);
    assert_eq!(
        *bind,
        b"\x30\x12\x02\x01\x01\x60\x0d\x02\x01\x03\x04\x04cn=a\x80\x02pw".to_vec()
    );
    // RFC 4511, 4.14.1
    let tls = LdapRequest::StartTls.encode(2);
    assert_eq!(
        *tls,
        b"\x30\x1d\x02\x01\x02\x77\x18\x80\x161.3.6.1.4.1.1466.20037".to_vec()
    );
    assert_eq!(
        *LdapRequest::Unbind.encode(3),
        b"\x30\x05\x02\x01\x03\x42\x00".to_vec()
    );
    // Lengths of 128 and more, of 256 and more.
    for (length, header) in [
        (127usize, vec![127]),
        (128, vec![0x81, 128]),
        (65_535, vec![0x82, 255, 255]),
    ] {
        let password = vec![b'p'; length];
        let bind = LdapRequest::Bind {
            name: "",
            password: &password,
        }
        .encode(1);
        let mut end = vec![0x80];
        end.extend(header);
        end.extend(&password);
        assert!(bind.ends_with(&end));
    }
}

const BOUND: &[u8] = b"\x30\x0c\x02\x01\x01\x61\x07\x0a\x01\x31\x04\x00\x04\x00";

#[test]
fn an_answer_is_read_however_it_is_split() {
    for end in 0..BOUND.len() {
        let known = message_length(&BOUND[..end]).unwrap();
        assert_eq!(known, (end >= 2).then_some(BOUND.len()));
        assert_eq!(LdapAnswer::decode(&BOUND[..end]), Err(MessageError::Malformed));
    }
    let answer = LdapAnswer::decode(BOUND).unwrap();
    assert_eq!(answer.id, 1);
    assert!(matches!(answer.operation, Operation::Bound(outcome) if outcome.code == 49));
}

#[test]
fn an_answer_too_large_is_known_by_its_length() {
    let length = u32::try_from(LARGEST_ANSWER).unwrap();
    let mut header = vec![0x30, 0x84];
    header.extend(length.to_be_bytes());
    assert_eq!(message_length(&header), Err(MessageError::TooLarge));
    assert_eq!(
        message_length(b"\x30\x84\xff\xff\xff\xff"),
        Err(MessageError::TooLarge)
    );
    assert_eq!(message_length(b"\x30\x88"), Err(MessageError::TooLarge));
    assert_eq!(message_length(b"\x30\x80"), Err(MessageError::Malformed));
    assert_eq!(message_length(b"HTTP/1.1"), Err(MessageError::Malformed));
}

proptest::proptest! {
    #[test]
    fn no_answer_panics(mut bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..80), whole in proptest::bool::ANY) {
        if whole {
            let length = u8::try_from(bytes.len()).unwrap();
            bytes.splice(0..0, [0x30, length]);
        }
        let _ = message_length(&bytes);
        let _ = LdapAnswer::decode(&bytes);
    }

    #[test]
    fn a_damaged_answer_does_not_panic(at in 0..BOUND.len(), byte in proptest::num::u8::ANY) {
        let mut bytes = BOUND.to_vec();
        bytes[at] = byte;
        let _ = LdapAnswer::decode(&bytes);
    }
}
