//! `pg_hba.conf` and `pg_ident.conf` as read here, next to what real servers make of the same
//! files.
#![allow(clippy::unwrap_used)]

mod cluster;

use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, TestRng, TestRunner};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::Value;

use cluster::eventually;
use cluster::postgres::{Options, Postgres};
use trunkline::auth::hba::regex::{MAX_PATTERN, Pattern};
use trunkline::auth::hba::{self, Files};
use trunkline::auth::ident::{self, Allowed};
use trunkline::auth::rules::{
    Decision, Facts, HostName, Interface, Known, Memberships, Method, Need, Origin, Rules, Step,
};
use trunkline::wire::startup::Replication;

/// The file system.
struct Disk;

impl Files for Disk {
    fn read(&self, path: &Path, limit: usize) -> io::Result<Vec<u8>> {
        let contents = fs::read(path)?;
        if contents.len() > limit {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        Ok(contents)
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<PathBuf>> {
        let entries = fs::read_dir(directory)?.map(|entry| Ok(entry?.path()));
        let entries: io::Result<Vec<PathBuf>> = entries.collect();
        Ok(entries?.into_iter().filter(|path| !path.is_dir()).collect())
    }
}

/// Every file has the same contents, and every directory is full of them.
struct Same<'a>(&'a [u8]);

impl Files for Same<'_> {
    fn read(&self, _: &Path, limit: usize) -> io::Result<Vec<u8>> {
        if self.0.len() > limit {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        Ok(self.0.to_vec())
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<PathBuf>> {
        Ok(["a.conf", "b.conf"].map(|name| directory.join(name)).to_vec())
    }
}

/// The same cases in each run, so that a failure can be looked at.
fn runner() -> TestRunner {
    let config = Config::default();
    let rng = TestRng::deterministic_rng(config.rng_algorithm);
    TestRunner::new_with_rng(config, rng)
}

fn cases<T: std::fmt::Debug>(strategy: impl Strategy<Value = T>, count: usize) -> Vec<T> {
    let mut runner = runner();
    (0..count)
        .map(|_| strategy.new_tree(&mut runner).unwrap().current())
        .collect()
}

fn any_of(texts: &'static [&'static str]) -> impl Strategy<Value = String> + Clone {
    select(texts).prop_map(str::to_owned)
}

/// One to three entries, joined by commas with and without blanks.
fn list(texts: &'static [&'static str]) -> impl Strategy<Value = String> {
    (prop::collection::vec(any_of(texts), 1..4), any_of(&[",", ", "]))
        .prop_map(|(texts, comma)| texts.join(&comma))
}

const DATABASES: &[&str] = &[
    "all",
    "all",
    "\"all\"",
    "sameuser",
    "samerole",
    "samegroup",
    "replication",
    "\"replication\"",
    "app",
    "\"my db\"",
    "\"a\"\"b\"",
    "/^db[0-9]+$",
    "\"/a,b\"",
    "/(",
    "/a(?=b)",
    "@names",
    "@\"sub dir/names\"",
    "@missing",
    "@",
    "\"@names\"",
    "x\"y z\"w",
    "é",
    "\"\"",
    "/",
];

const USERS: &[&str] = &[
    "all",
    "all",
    "alice",
    "+staff",
    "+",
    "\"+staff\"",
    "\"all\"",
    "/^a.*z$",
    "@names",
    "/a{2,1}",
    "\"/x y\"",
    "ALL",
    "root",
];

const ADDRESSES: &[&str] = &[
    "all",
    "\"all\"",
    "samehost",
    "samenet",
    "127.0.0.1/32",
    "127.0.0.0/8",
    "10/8",
    "10.1/16",
    "::1/128",
    "fe80::/10",
    "::ffff:1.2.3.4/96",
    "::1.2.3.4/128",
    "::0.0.0.5/128",
    "1.2.3.4 255.255.0.255",
    "::1 ffff::",
    "::1 ::ffff:ffff",
    "1.2.3.4 ffff::",
    "1.2.3.4 name",
    "1.2.3.4",
    "1.2.3.4/33",
    "1.2.3.4/+8",
    "\"1.2.3.4/ 8\"",
    "1.2.3.4/-0",
    "1.2.3.4/-1",
    "1.2.3.4/",
    "1.2.3.4/8x",
    "1.2.3.4/99999999999",
    "db.example.com",
    ".example.com",
    "example.com/8",
    "0x7f.1/8",
    "0x/8",
    "010.0.0.1/32",
    "08.0.0.1/32",
    "256.1.1.1/8",
    "1.2.3.4.5/8",
    "1./8",
    "4294967295/32",
    "4294967296/32",
    "1.16777215/32",
    "1.16777216/32",
    "/8",
    "\"\"",
    "fe80::1%1/128",
    "127.0.0.1/8,10.0.0.0/8",
    "::/0",
    "::/129",
    "1:2:3:4:5:6:7:8/128",
    "1:0:0:4:0:0:0:8/128",
    "1:2:3:4:5:6:7::/128",
];

const METHODS: &[&str] = &[
    "trust",
    "reject",
    "password",
    "md5",
    "scram-sha-256",
    "cert",
    "peer",
    "ident",
    "gss",
    "sspi",
    "pam",
    "bsd",
    "radius",
    "oauth",
    "ldap ldapserver=h ldapprefix=cn=",
    "ldap ldapserver=h ldapport=390 ldaptls=1 \"ldapbasedn=dc=x, dc=y\" ldapbinddn=cn=a ldapbindpasswd=hidden",
    "ldap ldapserver=h ldapbasedn=dc=x ldapsearchattribute=uid ldapsearchfilter=(a=b)",
    "ldap ldapserver=h ldapprefix=a ldapbasedn=dc=x",
    "ldap ldapserver=h",
    "ldap ldapserver=h ldapsuffix=x ldapport=none",
    "nonsense",
    "\"trust\"",
    "Trust",
    "trust,reject",
    "",
];

const OPTIONS: &[&str] = &[
    "map=m",
    "map=",
    "\"map=a b\"",
    "map=a,map=b",
    "clientcert=verify-ca",
    "clientcert=verify-full",
    "clientcert=1",
    "clientname=CN",
    "clientname=DN",
    "clientname=x",
    "word",
    "foo=bar",
    "pamservice=x",
    "include_realm=1",
    "ldapserver=h",
    "=",
];

fn hba_line() -> impl Strategy<Value = String> {
    let kind = any_of(&[
        "local",
        "host",
        "host",
        "hostssl",
        "hostssl",
        "hostnossl",
        "hostgssenc",
        "hostnogssenc",
        "\"host\"",
        "hosts",
        "host,local",
    ]);
    let options = prop::collection::vec(any_of(OPTIONS), 0..3).prop_map(|options| options.join(" "));
    // Mostly none, so that enough lines are right.
    let options = prop_oneof![2 => Just(String::new()), 1 => options];
    let end = any_of(&["", "", " # comment", "\r", "#", " \\\n", "\\\n\\\n"]);
    let addresses = prop_oneof![
        5 => any_of(ADDRESSES),
        1 => (any::<u32>(), 0..33_u8)
            .prop_map(|(bits, prefix)| format!("{}/{prefix}", Ipv4Addr::from_bits(bits))),
        1 => (any::<u128>(), 0..129_u8)
            .prop_map(|(bits, prefix)| format!("{}/{prefix}", std::net::Ipv6Addr::from_bits(bits))),
    ];
    let line = (
        kind,
        list(DATABASES),
        list(USERS),
        addresses,
        any_of(METHODS),
        options,
        end,
    )
        .prop_map(|(kind, databases, users, address, method, options, end)| {
            let address = if kind == "local" { String::new() } else { address };
            format!("{kind} {databases}\t{users} {address}  {method} {options}{end}")
        });
    let include = any_of(&[
        "include included",
        "include \"sub dir/../included\"",
        "\"include\" included",
        "include missing",
        "include_if_exists missing",
        "include_if_exists included",
        "include_dir folder",
        "include_dir missing",
        "include_dir \" \"",
        "include loop",
        "include included more",
        "",
        "# nothing",
    ]);
    prop_oneof![7 => line, 2 => include]
}

/// Lines, here and there with something torn out or put in.
fn hba_text() -> impl Strategy<Value = String> {
    let damage = (
        any::<prop::sample::Index>(),
        any_of(&["", "\"", ",", "\\", "\n", "#", " ", "@", "/", "+"]),
    );
    (
        prop::collection::vec(hba_line(), 1..12),
        prop::option::weighted(0.3, damage),
    )
        .prop_map(|(lines, damage)| {
            let mut text = lines.join("\n") + "\n";
            if let Some((index, put)) = damage {
                let at: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
                let at = at[index.index(at.len())];
                text.insert_str(at, &put);
            }
            text
        })
}

fn write_included(data: &Path) {
    for folder in ["sub dir", "folder", "folder/folder.conf"] {
        fs::create_dir_all(data.join(folder)).unwrap();
    }
    for (name, contents) in [
        (
            "names",
            "one two\n three, \"four five\" # comment\n\n@more /x[0-9]\n",
        ),
        ("more", "\"all\" all"),
        ("sub dir/names", "@../more\n"),
        (
            "included",
            "# first\nhost all inc 10.0.0.0/8 md5\nlocal all all nonsense\ninclude_dir folder\n",
        ),
        ("loop", "host all loop all trust\ninclude loop\n"),
        ("folder/b.conf", "host b b all trust\n"),
        ("folder/B.conf", "host B B all trust\n"),
        ("folder/a.conf", "host a @../names all trust\n"),
        ("folder/.hidden.conf", "hidden\n"),
        ("folder/.conf", "hidden\n"),
        ("folder/c.txt", "hidden\n"),
    ] {
        fs::write(data.join(name), contents).unwrap();
    }
}

fn view(server: &Postgres, view: &str) -> Vec<Value> {
    let rows = server.sql(&format!("SELECT coalesce(json_agg(r), '[]') FROM {view} r"));
    serde_json::from_str(&rows).unwrap_or_else(|error| panic!("{error}: {rows}"))
}

/// Whether the router refuses on purpose what PostgreSQL takes; the reasons are in the room's own
/// description.
fn is_on_purpose(error: &str) -> bool {
    [
        "is not supported",
        "regular expression",
        "ldap",
        "not supported:",
        "nothing but included",
    ]
    .iter()
    .any(|reason| error.contains(reason))
}

/// Compares all rows of one text; returns how many rules both took.
fn compare_rows(server: &Postgres, text: &str) -> usize {
    let path = server.data().join("pg_hba.conf");
    fs::write(&path, text).unwrap();
    let theirs = view(server, "pg_hba_file_rules");
    let ours = hba::read(&Disk, &path).rows();
    let mut ours: Vec<Value> = ours
        .iter()
        .map(|row| serde_json::to_value(row).unwrap())
        .collect();
    if theirs.is_empty() {
        assert_eq!(ours.len(), 1, "{text}");
        assert_eq!(ours[0]["error"], "contains no entries", "{text}");
        return 0;
    }
    assert_eq!(ours.len(), theirs.len(), "{text}\n{ours:#?}\n{theirs:#?}");
    let mut same = 0;
    let mut numbers_agree = true;
    for (ours, mut theirs) in ours.iter_mut().zip(theirs) {
        let context = format!("{text}\nours: {ours}\ntheirs: {theirs}");
        let their_error = theirs["error"].as_str().unwrap_or_default().to_owned();
        // PostgreSQL's messages for a wrong `clientcert` or `clientname` get lost on their way to
        // the view.
        let is_their_fault = !their_error.is_empty() || theirs["type"].is_null();
        let our_error = ours["error"].as_str().unwrap_or_default().to_owned();
        // Builds without GSSAPI and LDAP.
        if their_error.contains("not supported by this build") {
            numbers_agree = false;
            continue;
        }
        if !is_their_fault && !our_error.is_empty() {
            assert!(is_on_purpose(&our_error), "{context}");
            numbers_agree = false;
            continue;
        }
        assert_eq!(is_their_fault, !our_error.is_empty(), "{context}");
        let row = theirs.as_object_mut().unwrap();
        if is_their_fault {
            row.insert("error".to_owned(), ours["error"].clone());
            numbers_agree &= row.get("rule_number").is_none_or(Value::is_null);
        } else {
            same += 1;
        }
        if !numbers_agree || row.get("rule_number").is_none() {
            row.insert("rule_number".to_owned(), ours["rule_number"].clone());
        }
        // PostgreSQL 15 shows no file, and reads no includes.
        if row.get("file_name").is_none() {
            row.insert("file_name".to_owned(), ours["file_name"].clone());
        }
        if let Some(options) = row["options"].as_array_mut() {
            for option in options {
                if option == "ldapbindpasswd=hidden" {
                    *option = "ldapbindpasswd=***".into();
                }
            }
        }
        assert_eq!(*ours, theirs, "{context}");
    }
    same
}

#[test]
fn rows_are_those_of_postgresql_18() {
    let server = Postgres::start(&Options {
        version_18: true,
        ..Options::default()
    });
    write_included(&server.data());
    let same: usize = cases(hba_text(), 400)
        .iter()
        .map(|text| compare_rows(&server, text))
        .sum();
    assert!(same > 300, "only {same} rules were taken by both");
    // Every address, and every method with every option.
    let lines: Vec<String> = ADDRESSES
        .iter()
        .map(|address| format!("host all all {address} trust"))
        .collect();
    compare_rows(&server, &lines.join("\n"));
    let mut lines = Vec::new();
    for kind in ["host all all all", "hostssl all all all", "local all all"] {
        for method in METHODS {
            lines.push(format!("{kind} {method}"));
            lines.extend(OPTIONS.iter().map(|option| format!("{kind} {method} {option}")));
        }
    }
    compare_rows(&server, &lines.join("\n"));
    compare_patterns(&server);
    compare_ident_rows(&server);
}

#[test]
fn ldap_and_gssapi_rows_are_those_of_postgresql_15() {
    let server = Postgres::start(&Options::default());
    let mut lines = Vec::new();
    for kind in ["host", "hostssl", "hostgssenc", "hostnogssenc", "local"] {
        let address = if kind == "local" { "" } else { "127.0.0.0/8" };
        for method in METHODS {
            lines.push(format!("{kind} all app {address} {method}"));
        }
    }
    let same = compare_rows(&server, &lines.join("\n"));
    assert!(same > 40, "only {same} rules were taken by both");
}

/// Fragments of expressions, put together at random: some are nonsense.
const FRAGMENTS: &[&str] = &[
    "a",
    "b",
    "c",
    "@",
    "-",
    ".",
    ".*",
    "[ab]",
    "[^a]",
    "[a-c]",
    "[[:alpha:]]",
    "[[:space:]b]",
    "[[:nonsense:]]",
    "\\d",
    "\\w+",
    "\\S",
    "\\.",
    "\\n",
    "\\m",
    "\\1",
    "(a|b)",
    "(ab)",
    "(?:ab)",
    "(?=a)",
    "(",
    "|",
    ")",
    "*",
    "+",
    "?",
    "{2}",
    "{1,2}",
    "{0}",
    "{2,1}",
    "{,2}",
    "{",
    "}",
    "]",
    "[",
    "[]a]",
    "[a-]",
    "[-a]",
    "[a-b-c]",
    "[b-a]",
    "[\\]a]",
    "[[.a.]]",
    "^",
    "$",
    "(.*)",
    "([^@]+)",
    "(a*)*",
    "(a|ab)",
    "x{0,3}",
    "()",
    "(a?b*)",
    "(\\w+)",
    "a*?",
    "(b|)",
    "(?i)",
    "***:",
    "\\",
    "\\-",
    "[[:word:]@]",
    "[[:punct:]]",
    "[\\d]",
    "[a\\-c]",
    "[[]",
];

/// What the first group matches, `-` for no match or no group, `!` for an expression that is
/// refused.
const MATCH_FUNCTIONS: &str = "
CREATE OR REPLACE FUNCTION matches(text, text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN RETURN CASE WHEN $1 COLLATE \"C\" ~ $2 THEN 'yes' ELSE 'no' END; EXCEPTION WHEN OTHERS THEN RETURN '!'; END $$;
CREATE OR REPLACE FUNCTION first_group(text, text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN RETURN (regexp_match($1 COLLATE \"C\", $2))[1]; EXCEPTION WHEN OTHERS THEN RETURN '!'; END $$;";

fn compare_patterns(server: &Postgres) {
    server.sql(MATCH_FUNCTIONS);
    let body = prop::collection::vec(any_of(FRAGMENTS), 0..6).prop_map(|parts| parts.concat());
    // What a map's `\\1` may stand for: anything may follow the group.
    let before = any_of(&["", "a", "a*", "[ab]", "x{0,3}", "(?:ab)", "[^@]*-"]);
    let group = any_of(&[
        "(.*)",
        "([^@]+)",
        "(a[ab]*)",
        "(\\w+)",
        "(.*@)",
        "([ab]{2})",
        "(b?)",
        "((a)b*)",
        "()",
        "(a*b?)",
    ]);
    let after = prop::collection::vec(any_of(FRAGMENTS), 0..4).prop_map(|parts| parts.concat());
    let grouped =
        (before, group, after).prop_map(|(before, group, after)| format!("^{before}{group}{after}$"));
    let pattern = prop_oneof![body.clone(), body.prop_map(|body| format!("^{body}$")), grouped];
    let text = prop::collection::vec(select(&b"aaabbc@.-1x \n]"[..]), 0..9);
    let text = text.prop_map(|bytes| String::from_utf8(bytes).unwrap());
    let (mut accepted, mut grouped) = (0, 0);
    for batch in cases((pattern, prop::collection::vec(text, 6)), 4000).chunks(500) {
        let pairs: Vec<(&str, &str)> = batch
            .iter()
            .flat_map(|(pattern, texts)| texts.iter().map(move |text| (&pattern[..], &text[..])))
            .collect();
        let values: Vec<String> = pairs
            .iter()
            .enumerate()
            .map(|(index, (pattern, text))| format!("({index},$q${text}$q$,$q${pattern}$q$)"))
            .collect();
        let answers = server.sql(&format!(
            "SELECT json_agg(json_build_array(matches(t, p), first_group(t, p)) ORDER BY i) FROM (VALUES {}) v(i, t, p)",
            values.join(",")
        ));
        let answers: Vec<(String, Option<String>)> = serde_json::from_str(&answers).unwrap();
        for ((pattern, text), (matches, group)) in pairs.into_iter().zip(answers) {
            let Ok(ours) = Pattern::new(pattern.as_bytes()) else {
                continue;
            };
            accepted += 1;
            let context = format!("{pattern:?} on {text:?}");
            let expected = if ours.is_match(text.as_bytes()) {
                "yes"
            } else {
                "no"
            };
            assert_eq!(matches, expected, "{context}");
            if ours.has_certain_group().is_ok() {
                grouped += usize::from(group.is_some());
                assert_eq!(
                    ours.group(text.as_bytes()),
                    group.as_ref().map(String::as_bytes),
                    "{context}"
                );
            }
        }
    }
    assert!(accepted > 8000 && grouped > 300, "{accepted} {grouped}");
    assert!(Pattern::new(&vec![b'a'; MAX_PATTERN + 1]).is_err());
    assert!(Pattern::new(b"((a{255}){255}){255}").is_err());
}

fn compare_ident_rows(server: &Postgres) {
    let word = any_of(&[
        "m",
        "\"m m\"",
        "root",
        "/^(.*)@x$",
        "/(",
        "\\1",
        "a\\1b",
        "all",
        "+staff",
        "\"+staff\"",
        "/^a",
        "a,b",
        "@names",
        "#",
        "",
    ]);
    let line = prop::collection::vec(word, 0..5).prop_map(|words| words.join(" "));
    let line = prop_oneof![8 => line, 1 => any_of(&["include idents", "include_dir none", "m /^(.*)$ \\1", "m root all"])];
    let text = prop::collection::vec(line, 1..10).prop_map(|lines| lines.join("\n"));
    fs::write(server.data().join("idents"), "m alice bob\nm carl\n").unwrap();
    let path = server.data().join("pg_ident.conf");
    let mut same = 0;
    for text in cases(text, 60) {
        fs::write(&path, &text).unwrap();
        let theirs = view(server, "pg_ident_file_mappings");
        let ours = ident::read(&Disk, &path).rows();
        assert_eq!(ours.len(), theirs.len(), "{text}");
        for (ours, theirs) in ours.iter().zip(theirs) {
            let context = format!("{text}\nours: {ours:?}\ntheirs: {theirs}");
            assert_eq!(
                Some(&ours.file_name[..]),
                theirs["file_name"].as_str(),
                "{context}"
            );
            assert_eq!(
                ours.line_number.map(u64::from),
                theirs["line_number"].as_u64(),
                "{context}"
            );
            match (&ours.error, theirs["error"].as_str()) {
                (Some(_), Some(_)) => {}
                (Some(error), None) => {
                    assert!(is_on_purpose(error), "{context}");
                }
                (None, _) => {
                    same += 1;
                    assert!(theirs["error"].is_null(), "{context}");
                    assert_eq!(ours.map_name.as_deref(), theirs["map_name"].as_str(), "{context}");
                    assert_eq!(ours.sys_name.as_deref(), theirs["sys_name"].as_str(), "{context}");
                    assert_eq!(
                        ours.pg_username.as_deref(),
                        theirs["pg_username"].as_str(),
                        "{context}"
                    );
                }
            }
        }
    }
    assert!(same > 30, "{same}");
}

/// Who knocks.
#[derive(Debug, Clone)]
struct Client {
    from: Ipv4Addr,
    user: String,
    database: String,
    replication: Replication,
    tls: bool,
}

/// What a server says first: the authentication it asks for, or its refusal.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Request(u32),
    Refusal(String),
}

impl Client {
    fn startup(&self) -> Vec<u8> {
        let mut body = 196_608_u32.to_be_bytes().to_vec();
        let replication = match self.replication {
            Replication::None => "",
            Replication::Physical => "true",
            Replication::Logical => "database",
        };
        for (name, value) in [
            ("user", &self.user[..]),
            ("database", &self.database),
            ("replication", replication),
        ] {
            if !value.is_empty() {
                body.extend_from_slice(format!("{name}\0{value}\0").as_bytes());
            }
        }
        body.push(0);
        let length = u32::try_from(body.len() + 4).unwrap();
        [&length.to_be_bytes()[..], &body].concat()
    }

    fn knock(&self, server: &Postgres) -> Answer {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::new(self.from.into(), 0).into()).unwrap();
        socket
            .connect(&SocketAddr::new(server.address.into(), Postgres::PORT).into())
            .unwrap();
        let mut stream = TcpStream::from(socket);
        if !self.tls {
            return first_answer(stream, &self.startup());
        }
        stream.write_all(&[0, 0, 0, 8, 4, 210, 22, 47]).unwrap();
        let mut answer = [0];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(answer, *b"S");
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_file(server.certificates.file("ca.crt")).unwrap())
            .unwrap();
        let config = ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::from(IpAddr::from(server.address));
        let tls = ClientConnection::new(Arc::new(config), name).unwrap();
        first_answer(StreamOwned::new(tls, stream), &self.startup())
    }

    fn facts(&self, origin: Origin) -> Facts<'_> {
        Facts {
            user: self.user.as_bytes(),
            database: self.database.as_bytes(),
            replication: self.replication,
            origin,
            tls: self.tls,
        }
    }
}

fn first_answer(mut stream: impl Read + Write, startup: &[u8]) -> Answer {
    stream.write_all(startup).unwrap();
    let mut header = [0; 5];
    stream.read_exact(&mut header).unwrap();
    let length = u32::from_be_bytes(header[1..].try_into().unwrap());
    let mut body = vec![0; usize::try_from(length).unwrap() - 4];
    stream.read_exact(&mut body).unwrap();
    if header[0] == b'R' {
        return Answer::Request(u32::from_be_bytes(body[..4].try_into().unwrap()));
    }
    assert_eq!(header[0], b'E');
    let message = body
        .split(|&byte| byte == 0)
        .find_map(|field| field.strip_prefix(b"M"));
    Answer::Refusal(String::from_utf8(message.unwrap().to_vec()).unwrap())
}

/// `staff` is in `company`, `alice` in `staff`, `carl` in `company`; nobody knows `ghost`.
const ROLES: &str = "CREATE ROLE company; CREATE ROLE staff LOGIN IN ROLE company; CREATE ROLE alice LOGIN IN ROLE staff; \
                     CREATE ROLE carl LOGIN SUPERUSER IN ROLE company; CREATE ROLE bob LOGIN REPLICATION;";

fn memberships(user: &str) -> Memberships {
    let roles: &[&str] = match user {
        "company" => &["company"],
        "staff" => &["staff", "company"],
        "alice" => &["alice", "staff", "company"],
        "carl" => &["carl", "company"],
        "bob" => &["bob"],
        _ => &[],
    };
    Memberships::new(roles.iter().map(|role| Bytes::from_static(role.as_bytes())))
}

/// As the caller of the rules is to find it.
fn host_name(address: Ipv4Addr) -> HostName {
    let address = IpAddr::V4(address);
    match dns_lookup::lookup_addr(&address) {
        // Without a name, the figures come back.
        Ok(name) if name.parse::<IpAddr>().is_ok() => HostName::Unknown,
        Ok(name)
            if dns_lookup::lookup_host(&name).is_ok_and(|mut found| found.any(|found| found == address)) =>
        {
            HostName::Verified(name)
        }
        Ok(_) | Err(_) => HostName::Unknown,
    }
}

fn interfaces() -> Vec<Interface> {
    let ip = |storage: nix::sys::socket::SockaddrStorage| -> Option<IpAddr> {
        let v4 = storage.as_sockaddr_in().map(|v4| v4.ip().into());
        v4.or_else(|| storage.as_sockaddr_in6().map(|v6| v6.ip().into()))
    };
    nix::ifaddrs::getifaddrs()
        .unwrap()
        .filter_map(|interface| {
            Some(Interface {
                address: ip(interface.address?)?,
                netmask: ip(interface.netmask?)?,
            })
        })
        .collect()
}

/// Decides as the router would, looking up what is needed and nothing else.
fn decide(rules: &Rules, client: &Client, interfaces: &[Interface]) -> Answer {
    let facts = client.facts(Origin::Tcp(client.from.into()));
    let memberships = memberships(&client.user);
    let host_name = host_name(client.from);
    let mut known = Known {
        interfaces,
        ..Known::default()
    };
    loop {
        let decision = match rules.decide(&facts, &known) {
            Step::Decided(decision) => decision,
            Step::Needs(Need::Memberships) => {
                assert!(known.memberships.replace(&memberships).is_none());
                continue;
            }
            Step::Needs(Need::HostName) => {
                assert!(known.host_name.replace(&host_name).is_none());
                continue;
            }
        };
        let Decision::Match(matched) = decision else {
            return Answer::Refusal(facts.no_entry().message.clone());
        };
        return match matched.rule.method {
            Method::Trust => Answer::Request(0),
            Method::Password => Answer::Request(3),
            Method::Md5 => Answer::Request(5),
            Method::ScramSha256 => Answer::Request(10),
            Method::Reject => Answer::Refusal(facts.rejected().message.clone()),
            Method::Cert | Method::Ldap(_) | Method::Peer => panic!("{:?}", matched.rule),
        };
    }
}

fn decisive_text() -> impl Strategy<Value = String> {
    let kind = any_of(&["host", "host", "host", "hostnossl", "hostssl", "hostnogssenc"]);
    let databases = list(&[
        "all",
        "shop",
        "sameuser",
        "samerole",
        "replication",
        "\"replication\"",
        "\"all\"",
        "/^s",
        "alice",
        "\"sameuser\"",
        "samegroup",
    ]);
    let users = list(&[
        "all",
        "alice",
        "bob",
        "carl",
        "+staff",
        "+company",
        "\"+staff\"",
        "/^(alice|bob)$",
        "\"all\"",
        "+ghost",
        "/o",
        "staff",
    ]);
    let address = any_of(&[
        "all",
        "127.0.0.0/8",
        "127.0.0.1/32",
        "127.0.0.0/30",
        "127.0.0.6/31",
        "127.5.0.1 255.0.0.255",
        "samehost",
        "samenet",
        "localhost",
        ".localhost",
        "::1/128",
        "10.0.0.0/8",
        "127.1/32",
    ]);
    let method = any_of(&["trust", "password", "md5", "scram-sha-256", "reject"]);
    let line =
        (kind, databases, users, address, method).prop_map(|(kind, databases, users, address, method)| {
            format!("{kind} {databases} {users} {address} {method}")
        });
    prop::collection::vec(line, 1..8).prop_map(|lines| lines.join("\n"))
}

fn client() -> impl Strategy<Value = Client> {
    let from = select(&[[127, 0, 0, 1], [127, 0, 0, 2], [127, 0, 0, 7], [127, 9, 9, 1]][..]);
    let user = any_of(&["alice", "bob", "carl", "staff", "company", "ghost", "all"]);
    let database = any_of(&["shop", "alice", "staff", "company", "replication", "all", "bob"]);
    let replication = prop_oneof![
        6 => Just(Replication::None),
        2 => Just(Replication::Physical),
        1 => Just(Replication::Logical),
    ];
    (from, user, database, replication, any::<bool>()).prop_map(|(from, user, database, replication, tls)| {
        Client {
            from: from.into(),
            user,
            database,
            replication,
            tls,
        }
    })
}

/// Puts files in place and waits until the server has them: a rule that only this call knows is in
/// force.
fn put(server: &Postgres, hba: &str, ident: &str, number: usize) {
    let marker = format!("marker{number}");
    let text = format!("local postgres postgres trust\nhost all {marker} all reject\n{hba}\n");
    fs::write(server.data().join("pg_ident.conf"), ident).unwrap();
    fs::write(server.data().join("pg_hba.conf"), &text).unwrap();
    server.sql("SELECT pg_reload_conf()");
    let client = Client {
        from: Ipv4Addr::LOCALHOST,
        user: marker,
        database: "shop".to_owned(),
        replication: Replication::None,
        tls: false,
    };
    let in_force = Answer::Refusal(client.facts(Origin::Tcp(client.from.into())).rejected().message);
    eventually(&format!("reload of\n{text}"), Duration::from_secs(10), || {
        client.knock(server) == in_force
    });
}

#[test]
fn decisions_are_those_of_postgresql_18() {
    let server = Postgres::start(&Options {
        version_18: true,
        conf: "password_encryption = md5\nlog_connections = off".to_owned(),
        ..Options::default()
    });
    server.sql(ROLES);
    let interfaces = interfaces();
    let mut seen = std::collections::BTreeMap::new();
    let knocks = cases((decisive_text(), prop::collection::vec(client(), 8)), 60);
    for (number, (text, clients)) in knocks.iter().enumerate() {
        put(&server, text, "", number);
        let rules = hba::read(&Disk, &server.data().join("pg_hba.conf"))
            .rules()
            .unwrap();
        for client in clients {
            let theirs = client.knock(&server);
            assert_eq!(decide(&rules, client, &interfaces), theirs, "{client:?}\n{text}");
            *seen
                .entry(format!("{theirs:.12?}").chars().take(24).collect::<String>())
                .or_insert(0) += 1;
        }
    }
    assert!(seen.len() >= 6, "{seen:?}");
    compare_maps(&server);
}

fn compare_maps(server: &Postgres) {
    let me = cluster::succeed(std::process::Command::new("id").arg("-un"))
        .trim()
        .to_owned();
    let (first, last) = (&me[..1], &me[me.len() - 1..]);
    let system: Vec<String> = vec![
        me.clone(),
        format!("\"{me}\""),
        "other".to_owned(),
        format!("/^{me}$"),
        format!("/{last}"),
        format!("/^{first}(.*)$"),
        format!("/^(.*){last}$"),
        "/^([a-z]+)$".to_owned(),
        format!("/^({first})[a-z]*$"),
        "/^other".to_owned(),
    ];
    let database = any_of(&[
        "alice",
        "bob",
        "all",
        "\"all\"",
        "+staff",
        "+company",
        "\"+staff\"",
        "/^a",
        "\\1",
        "x\\1",
        "\\1\\1",
        "\"\\1\"",
    ]);
    let line = (any_of(&["m", "m", "m", "other"]), select(system), database)
        .prop_map(|(map, system, database)| format!("{map} {system} {database}"));
    let text = prop::collection::vec(line, 1..4).prop_map(|lines| lines.join("\n"));
    let socket = server
        .data()
        .parent()
        .unwrap()
        .join(format!(".s.PGSQL.{}", Postgres::PORT));
    let users: Vec<String> = ["alice", "bob", "carl", "staff", "all", "+staff", "\\1", "ghost"]
        .map(str::to_owned)
        .into_iter()
        .chain([
            me.clone(),
            me[1..].to_owned(),
            me[..me.len() - 1].to_owned(),
            format!("x{me}"),
            first.to_owned(),
        ])
        .collect();
    let mut allowed = 0;
    for (number, text) in cases(text, 50).iter().enumerate() {
        put(server, "local all all peer map=m", text, 1000 + number);
        let file = ident::read(&Disk, &server.data().join("pg_ident.conf"));
        let Ok(maps) = file.maps() else {
            // Only where `\1` has no group, which PostgreSQL finds out when somebody comes.
            assert!(text.contains("\\1"), "{text}");
            continue;
        };
        for user in &users {
            let client = Client {
                from: Ipv4Addr::LOCALHOST,
                user: user.clone(),
                database: "shop".to_owned(),
                replication: Replication::None,
                tls: false,
            };
            let theirs = first_answer(UnixStream::connect(&socket).unwrap(), &client.startup());
            let memberships = memberships(user);
            let ours = match maps.check(Some(b"m"), me.as_bytes(), user.as_bytes(), None) {
                Allowed::Needs(Need::Memberships) => {
                    maps.check(Some(b"m"), me.as_bytes(), user.as_bytes(), Some(&memberships))
                }
                other => other,
            };
            let expected = match ours {
                Allowed::Yes => Answer::Request(0),
                _ => Answer::Refusal(format!("Peer authentication failed for user \"{user}\"")),
            };
            assert_eq!(theirs, expected, "{user} as {me}\n{text}");
            allowed += usize::from(ours == Allowed::Yes);
        }
    }
    assert!(allowed > 20, "{allowed}");
}

/// One file, and nothing else.
struct One<'a>(&'a str);

impl Files for One<'_> {
    fn read(&self, path: &Path, _: usize) -> io::Result<Vec<u8>> {
        if path == Path::new("/etc/pg_hba.conf") {
            return Ok(self.0.as_bytes().to_vec());
        }
        Err(io::ErrorKind::NotFound.into())
    }

    fn list(&self, _: &Path) -> io::Result<Vec<PathBuf>> {
        Err(io::ErrorKind::NotFound.into())
    }
}

/// No role and no database has such a name, and the client's is cut: the line would match nobody.
#[test]
fn a_name_that_nobody_can_have_is_refused() {
    let (longest, longer) = ("n".repeat(63), "n".repeat(64));
    for line in [
        "host NAME all all reject",
        "host all NAME all reject",
        "host all +NAME all reject",
    ] {
        let rules = |name: &str| {
            let text = line.replace("NAME", name);
            hba::read(&One(&text), Path::new("/etc/pg_hba.conf")).rules()
        };
        assert!(rules(&longest).is_ok(), "{line}");
        let errors = rules(&longer).unwrap_err();
        assert!(errors[0].to_string().contains("63 bytes"), "{}", errors[0]);
    }
}

#[test]
fn every_fault_is_reported_with_file_and_line_and_without_secrets() {
    let text = "# comment\nhost all all all gss\nlocal all all \\\n trust\nhost all all all radius\n\
                host all all all ldap ldapserver=h ldapprefix=a ldapbindpasswd= s3cret\n\
                host all all all ldap ldapserver=h ldapprefix=a ldapbindpasswd=s3cret\n\
                host all all all cert\nhost all all all trust map=x\nhost /a*? all all trust\n\
                host all all all trust sslmode=require\ninclude other.conf\ninclude_if_exists third.conf\n";
    let file = hba::read(&One(text), Path::new("/etc/pg_hba.conf"));
    let watched: Vec<_> = file
        .watched()
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    assert_eq!(
        watched,
        ["/etc/other.conf", "/etc/pg_hba.conf", "/etc/third.conf"]
    );
    let errors = file.rules().unwrap_err();
    let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
    let expected = [
        ("2", "method gss is not supported"),
        ("5", "method radius is not supported"),
        ("6", "name=value"),
        ("7", "cannot mix"),
        ("8", "cert"),
        ("9", "\"map\""),
        ("10", "non-greedy"),
        ("11", "\"sslmode\""),
        ("12", "/etc/other.conf"),
    ];
    assert_eq!(errors.len(), expected.len(), "{errors:#?}");
    for (error, (line, what)) in errors.iter().zip(expected) {
        assert!(
            error.starts_with(&format!("/etc/pg_hba.conf:{line}: ")) && error.contains(what),
            "{error}"
        );
        assert!(!error.contains("s3cret"), "{error}");
    }
}

#[test]
fn a_bind_password_is_never_shown() {
    let text = "host all all all ldap ldapserver=h ldapbasedn=dc=x ldapbindpasswd=s3cret\n";
    let file = hba::read(&One(text), Path::new("/etc/pg_hba.conf"));
    let rows = format!("{:?}", file.rows());
    let rules = file.rules().unwrap();
    let Method::Ldap(ldap) = &rules.iter().next().unwrap().method else {
        panic!("{rules:?}")
    };
    assert_eq!(ldap.bindpasswd.as_ref().unwrap().expose(), b"s3cret");
    assert!(
        !rows.contains("s3cret") && rows.contains("ldapbindpasswd=***"),
        "{rows}"
    );
    assert!(!format!("{rules:?}").contains("s3cret"));
}

#[test]
fn an_ldap_url_stands_for_other_options_and_does_not_mix_with_them() {
    let error = |options: &str| {
        let text: &'static str = format!("host all all all ldap {options}\n").leak();
        let errors = hba::read(&One(text), Path::new("/etc/pg_hba.conf")).rules().err();
        errors.map(|errors| errors[0].to_string())
    };
    for right in [
        "ldapurl=ldap://h/dc=x",
        "ldapurl=ldaps://h:636/dc=x?uid?sub",
        "\"ldapurl=ldap://h/dc=x??one?(uid=$username)\"",
    ] {
        assert_eq!(error(right), None, "{right}");
    }
    for (wrong, what) in [
        ("ldapurl=http://h/dc=x", "LDAP URL"),
        ("ldapurl=ldap://h/dc=x?uid?tree", "LDAP URL"),
        ("ldapurl=ldap:///dc=x", "ldapserver"),
        ("ldapurl=ldap://h", "ldapbasedn"),
        ("ldapurl=ldap://h/dc=x ldapserver=i", "ldapserver"),
        ("ldapurl=ldap://h/dc=x ldapprefix=a", "cannot mix"),
        ("\"ldapurl=ldap://h/dc=x?uid?sub?(a=b)\"", "ldapsearchfilter"),
        ("ldapserver=h ldapprefix=a ldaptls=yes", "ldaptls"),
        ("ldapserver=h ldapprefix=a ldapscheme=http", "ldapscheme"),
        ("ldapserver=h ldapprefix=a ldapport=65536", "ldapport"),
    ] {
        assert!(
            error(wrong).is_some_and(|error| error.contains(what)),
            "{wrong}: {:?}",
            error(wrong)
        );
    }
}

proptest! {
    #![proptest_config(Config::with_cases(300))]

    #[test]
    fn any_bytes_are_read_within_bounds(
        bytes in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..400),
            prop::collection::vec(select(&b"host all/+@\"#,\\\n\r =.[](){}*?^$|0189"[..]), 0..400),
            prop::collection::vec(prop_oneof![
                Just("include x\n"), Just("include_dir x\n"), Just("local @x all trust\n"), Just("host all all all trust\n"),
            ], 0..30).prop_map(|lines| lines.concat().into_bytes()),
        ]
    ) {
        let path = Path::new("/etc/pg_hba.conf");
        let file = hba::read(&Same(&bytes), path);
        for row in file.rows() {
            prop_assert_eq!(row.error.is_some(), row.rule_number.is_none());
        }
        prop_assert!(file.watched().contains(path));
        let errors = file.errors().count();
        match file.rules() {
            Ok(_) => prop_assert_eq!(errors, 0),
            Err(reported) => prop_assert_eq!(reported.len(), errors),
        }
        let _ = ident::read(&Same(&bytes), path).maps();
        let _ = Pattern::new(&bytes);
    }
}
