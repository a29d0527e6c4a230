//! The table of keys against the readers, the documentation, and the JSON Schema that is made of
//! it.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::super::schema::kind::ValueKind;
use super::super::schema::{Key, Keys, Otherwise, ROOT, markdown};
use super::super::tree;
use super::super::units::shown_duration;
use super::*;

/// Set, the committed files that are made of the table are written anew: `make reference`.
const WRITE: &str = "TRUNKLINE_WRITE_REFERENCE";

/// Beside `FULL` and `MINIMAL`: the keys that cannot stand beside theirs. Most of its files are not
/// there.
const REST: &str = r#"
clusters:
  main:
    servers: [{name: a, host: db1}]
    service_account: {user: svc}
    server_tls: {server_name: db.example.org, require_auth: [none, scram-sha-256], sslrootcert: system, sslcert: s.crt, sslkey: s.key, sslpassphrase_command: "cat p"}
tls:
  certificates: [{cert_file: s.crt, key_file: s.key, passphrase_command: "cat p"}]
  client_ca_file: ca.crt
  client_crl_file: ca.crl
auth:
  users_file: users
  hba_file: pg_hba.conf
  ident_file: pg_ident.conf
  ldap_ca_file: ca.crt
  server_credentials:
    - {users: [a, b], server_user: c, password: client}
    - {users: [d], cert_file: s.crt, key_file: s.key, passphrase_command: "cat p"}
http:
  address: "*:6434"
  token_file: token
  tls: {cert_file: s.crt, key_file: s.key, passphrase_command: "cat p"}
  proxy_protocol: {trusted: [10.0.0.5], required: true}
control_socket: /run/trunkline/control.sock
state_file: state.json
log:
"#;

fn committed(path: &str, wanted: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    if std::env::var_os(WRITE).is_some() {
        fs::write(&path, wanted).unwrap();
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == wanted,
        "{} is not what the table of keys says: `make reference` writes it",
        path.display()
    );
}

#[test]
fn the_documentation_is_what_the_table_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
    let text = fs::read_to_string(path).unwrap();
    committed("docs/configuration.md", &markdown::with_tables(&text));
    // Each table stands in the section of its name.
    for (place, _) in sections().into_iter().skip(1) {
        let heading = format!("\n## `{place}`\n");
        let (_, section) = text
            .split_once(&heading)
            .unwrap_or_else(|| panic!("no {heading}"));
        let section = section.split("\n## ").next().unwrap();
        assert!(section.contains(&format!("<!-- keys: {place} -->")), "{place}");
    }
}

#[test]
fn the_committed_schema_is_what_the_table_says() {
    committed("config/trunkline.schema.json", &format!("{:#}\n", json_schema()));
}

/// YAML as JSON has it.
fn as_json(node: &tree::Node) -> Value {
    match &node.value {
        tree::Value::Null => Value::Null,
        tree::Value::Bool(value) => json!(value),
        tree::Value::Integer(value) => json!(i64::try_from(*value).unwrap()),
        tree::Value::Float(value) => json!(value),
        tree::Value::Text(text) => json!(text),
        tree::Value::List(nodes) => nodes.iter().map(as_json).collect(),
        tree::Value::Map(entries) => {
            let entries = entries.iter();
            entries
                .map(|entry| (entry.key.clone(), as_json(&entry.node)))
                .collect()
        }
    }
}

fn document(text: &str) -> Value {
    as_json(&tree::parse(text).unwrap())
}

/// Which of the documents the schema accepts, by Debian's `python3-jsonschema`.
fn accepted(documents: &[Value]) -> Vec<bool> {
    const CHECK: &str = "import json, sys\n\
        from jsonschema import Draft202012Validator as Validator\n\
        given = json.load(sys.stdin)\n\
        Validator.check_schema(given['schema'])\n\
        validator = Validator(given['schema'])\n\
        json.dump([validator.is_valid(document) for document in given['documents']], sys.stdout)\n";
    let mut python = Command::new("/usr/bin/python3")
        .args(["-c", CHECK])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let given = json!({"schema": json_schema(), "documents": documents}).to_string();
    python.stdin.take().unwrap().write_all(given.as_bytes()).unwrap();
    let output = python.wait_with_output().unwrap();
    assert!(output.status.success(), "is Debian's python3-jsonschema there?");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn the_schema_accepts_what_is_right() {
    let texts = [
        MINIMAL,
        FULL,
        REST,
        include_str!("../../../config/minimal.yaml"),
        include_str!("../../../config/trunkline.yaml"),
        include_str!("../../../tests/import/node-checks.expected.yaml"),
        include_str!("../../../tests/import/patroni.expected.yaml"),
        include_str!("../../../tests/import/patroni_proxy.expected.yaml"),
        include_str!("../../../tests/import/through-routers.expected.yaml"),
        "clusters: {a: {servers: [{name: b, host: c}], service_account: {user: d}}}\nhttp: null\nauth:\nlimits:\n",
    ];
    let documents: Vec<Value> = texts.into_iter().map(document).collect();
    for (text, accepted) in texts.iter().zip(accepted(&documents)) {
        assert!(accepted, "{text}");
    }
}

/// Every place of a key in a document: the path to the map it stands in, as a JSON pointer, and the
/// key.
fn places(document: &Value, pointer: &str, keys: &'static Keys, places: &mut Vec<(String, &'static Key)>) {
    let Value::Object(map) = document else { return };
    for (name, value) in map {
        let key = keys.find(name).unwrap_or_else(|| panic!("{pointer}/{name}"));
        places.push((pointer.to_owned(), key));
        below(value, &format!("{pointer}/{name}"), &key.kind, places);
    }
}

fn below(
    document: &Value,
    pointer: &str,
    kind: &'static ValueKind,
    places: &mut Vec<(String, &'static Key)>,
) {
    match (kind, document) {
        (ValueKind::Section(keys), _) => self::places(document, pointer, keys, places),
        (ValueKind::List { of, .. }, Value::Array(elements)) => {
            for (index, element) in elements.iter().enumerate() {
                below(element, &format!("{pointer}/{index}"), of, places);
            }
        }
        (ValueKind::Named { of, .. }, Value::Object(named)) => {
            for (name, value) in named {
                below(value, &format!("{pointer}/{name}"), of, places);
            }
        }
        _ => {}
    }
}

/// What may not stand under a key of this kind, whatever stands elsewhere.
fn wrong(kind: &ValueKind) -> Vec<Value> {
    match kind {
        ValueKind::Truth => vec![json!("yes"), json!(1), json!(null)],
        ValueKind::Number { least, most } => {
            vec![
                json!(i64::from(*least) - 1),
                json!(most + 1),
                json!("1"),
                json!(1.5),
                json!([1]),
            ]
        }
        ValueKind::Time { least, or_off, .. } => {
            let zero = (!or_off && !least.is_zero()).then(|| json!(0));
            [json!("5"), json!(5), json!("5d"), json!(true)]
                .into_iter()
                .chain(zero)
                .collect()
        }
        ValueKind::Size { .. } => vec![json!("5"), json!(5), json!("5 MB"), json!("5M")],
        ValueKind::Rate { .. } => vec![json!(5), json!("5"), json!("5/m")],
        ValueKind::Words(words) => vec![json!(format!("{}x", words[0])), json!(true), json!([words[0]])],
        ValueKind::Text { .. } | ValueKind::File | ValueKind::Secret { .. } | ValueKind::Host => {
            vec![json!(""), json!(5), json!(["x"]), json!({"x": "y"})]
        }
        ValueKind::Name => vec![json!("a b"), json!("x".repeat(64)), json!(5)],
        ValueKind::Address => vec![json!("db1:6432"), json!("*"), json!(6432)],
        ValueKind::SocketPath => vec![json!("here"), json!(format!("/{}", "x".repeat(107)))],
        ValueKind::Mode => vec![json!("0778"), json!(777), json!("rwx")],
        ValueKind::HostPort => vec![json!("db1"), json!(5432)],
        ValueKind::Url => vec![json!("db1:8008"), json!("ftp://db1")],
        ValueKind::Network => vec![json!("db1"), json!("10.0.0.0/x")],
        ValueKind::Scalar => vec![json!(["x"]), json!(null)],
        ValueKind::List { of, least, most } => {
            let none = (*least > 0).then(|| json!([]));
            let many = json!(vec![json!("x"); most + 1]);
            let elements = wrong(of).into_iter().map(|element| json!([element]));
            elements.chain(none).chain([many, json!({}), json!(5)]).collect()
        }
        ValueKind::Section(_) => vec![json!({"zzz": 1}), json!(["x"]), json!("x")],
        ValueKind::Named { .. } => vec![json!({}), json!({"a b": 1}), json!(["x"]), json!("x")],
        ValueKind::Either(_) => vec![json!({"zzz": 1}), json!(""), json!(5)],
    }
}

/// What may, as far as the key itself goes; what stands elsewhere may be against it.
fn right(kind: &ValueKind) -> Vec<Value> {
    match kind {
        ValueKind::Truth => vec![json!(true), json!(false)],
        ValueKind::Number { least, most } => vec![json!(least), json!(most)],
        ValueKind::Time { least, most, or_off } => {
            let zero = (*or_off || least.is_zero()).then(|| [json!(0), json!("0")]);
            let bounds = [least, most].map(|time| json!(shown_duration(*time)));
            bounds.into_iter().chain(zero.into_iter().flatten()).collect()
        }
        ValueKind::Size { .. } => vec![json!("1kB"), json!("16MiB"), json!("2048B"), json!("1024TB")],
        ValueKind::Rate { most } => vec![json!(0), json!("1/s"), json!(format!("{most}/s"))],
        ValueKind::Words(words) => words.iter().map(|word| json!(word)).collect(),
        ValueKind::Name => vec![json!("a-b_c.1"), json!("x".repeat(63))],
        ValueKind::Address => vec![
            json!("*:1"),
            json!("0.0.0.0:65535"),
            json!("[::]:9"),
            json!("[fe80::1%2]:9"),
        ],
        ValueKind::Mode => vec![json!("0000"), json!("777")],
        ValueKind::HostPort => vec![json!("a.example:1"), json!("10.0.0.1:2"), json!("[::1]:3")],
        ValueKind::Url => vec![json!("http://a"), json!("https://[::1]:1/")],
        ValueKind::Network => vec![json!("0.0.0.0/0"), json!("::/0"), json!("10.0.0.1"), json!("::1")],
        ValueKind::Scalar => vec![json!(1), json!(1.5), json!(true), json!("x")],
        ValueKind::Text { most } => vec![json!("x"), json!("x".repeat(*most))],
        ValueKind::List { of, .. } => right(of).into_iter().map(|element| json!([element])).collect(),
        ValueKind::Either(kinds) => kinds.iter().flat_map(right).collect(),
        _ => Vec::new(),
    }
}

/// Each key of each document, with what may stand there and what may not.
#[test]
fn the_schema_refuses_what_the_readers_refuse_and_nothing_else() {
    let files = Files::new();
    let (mut documents, mut cases) = (Vec::new(), Vec::new());
    let mut seen = BTreeSet::new();
    for document in [FULL, REST].map(document) {
        let mut all = Vec::new();
        places(&document, "", &ROOT, &mut all);
        for (pointer, key) in all {
            seen.insert(std::ptr::from_ref(key) as usize);
            for (value, is_right) in wrong(&key.kind)
                .into_iter()
                .map(|value| (value, false))
                .chain(right(&key.kind).into_iter().map(|value| (value, true)))
            {
                let mut changed = document.clone();
                let map = changed.pointer_mut(&pointer).unwrap();
                cases.push((format!("{pointer}/{}: {value}", key.name), is_right));
                map[key.name] = value;
                documents.push(changed);
            }
        }
    }
    let missing: Vec<&str> = sections()
        .iter()
        .flat_map(|(_, keys)| keys.0)
        .filter(|key| !seen.contains(&(std::ptr::from_ref(*key) as usize)))
        .map(|key| key.name)
        .collect();
    assert_eq!(missing, [""; 0], "keys that are in no document");
    for ((document, (case, is_right)), accepted) in documents.iter().zip(cases).zip(accepted(&documents)) {
        assert_eq!(accepted, is_right, "the schema: {case}");
        if is_right {
            continue;
        }
        let Err(errors) = files.parse(&document.to_string()) else {
            panic!("accepted: {case}")
        };
        let (path, _) = case.split_once(": ").unwrap();
        let name = path.rsplit('/').next().unwrap();
        assert!(errors.to_string().contains(name), "{case}: {errors}");
    }
}

/// A default that stands in the table is the one in force: written out, it changes nothing.
#[test]
fn defaults_are_those_that_are_shown() {
    const BASE: &str = r#"
clusters:
  main:
    patroni: {endpoints: ["http://db1:8008"]}
    etcd: {endpoints: ["http://db1:2379"], scope: main}
    service_account: {user: trunkline, password_file: pw}
    server_tls: {}
    server: {max_connections: 30}
    probe: {}
    members: {a: {weight: 2}}
  other:
    servers: [{name: a, host: db1}]
    service_account: {user: svc}
tls: {certificates: [{cert_file: s.crt, key_file: s.key}]}
auth: {rate_limit: {}, server_credentials: [{users: all, password_file: pw}]}
routes:
  r: {cluster: main, targets: [replica], max_lag: {bytes: 1MB}, on_unfit: {}, client_address: {},
      pool: {mode: transaction, reserve: 1}}
  w: {cluster: main, targets: [leader], pool: {}}
listeners:
  - {name: a, address: "*:1", route: r, proxy_protocol: {trusted: [10.0.0.1]}}
  - {name: b, address: /run/.s.PGSQL.1, route: r}
http: {agent_check: {address: "*:2"}, proxy_protocol: {trusted: [10.0.0.1]}}
console: {users: [a]}
limits: {}
peers: {secret_file: peers.key, members: [{name: p, address: "db2:6432"}]}
log: {}
shutdown: {}
"#;
    let files = Files::new();
    let base = document(BASE);
    let mut maps = Vec::new();
    maps_of(&base, "", &ROOT, &mut maps);
    let mut compared = BTreeSet::new();
    for (pointer, keys) in maps {
        for key in keys.0 {
            let default = match &key.otherwise {
                Otherwise::Truth(value) => json!(value),
                Otherwise::Number(value) => json!(value),
                Otherwise::Time(time) => json!(shown_duration(*time)),
                Otherwise::Text(text) => json!(text),
                _ => continue,
            };
            let mut without = base.clone();
            let map = without.pointer_mut(&pointer).unwrap().as_object_mut().unwrap();
            map.remove(key.name);
            let mut with = without.clone();
            with.pointer_mut(&pointer).unwrap()[key.name] = default;
            let [without, with] = [without, with].map(|document| files.parse(&document.to_string()));
            let (Ok(without), Ok(with)) = (without, with) else {
                continue;
            };
            assert_eq!(
                format!("{without:?}"),
                format!("{with:?}"),
                "{pointer}/{}",
                key.name
            );
            compared.insert(std::ptr::from_ref(key) as usize);
        }
    }
    for (place, keys) in sections() {
        for key in keys.0 {
            let has_default = matches!(
                key.otherwise,
                Otherwise::Truth(_) | Otherwise::Number(_) | Otherwise::Time(_) | Otherwise::Text(_)
            );
            let was_compared = compared.contains(&(std::ptr::from_ref(key) as usize));
            assert_eq!(has_default, was_compared, "{place} {}", key.name);
        }
    }
}

/// Every map with fixed keys of a document, by its pointer.
fn maps_of(document: &Value, pointer: &str, keys: &'static Keys, maps: &mut Vec<(String, &'static Keys)>) {
    maps.push((pointer.to_owned(), keys));
    let mut all = Vec::new();
    places(document, pointer, keys, &mut all);
    for (parent, key) in all {
        let pointer = format!("{parent}/{}", key.name);
        let value = document.pointer(&pointer).unwrap();
        match (&key.kind, value) {
            (ValueKind::Section(keys), _) => maps.push((pointer, keys)),
            (
                ValueKind::List {
                    of: ValueKind::Section(keys),
                    ..
                },
                Value::Array(elements),
            ) => {
                maps.extend((0..elements.len()).map(|index| (format!("{pointer}/{index}"), *keys)));
            }
            (
                ValueKind::Named {
                    of: ValueKind::Section(keys),
                    ..
                },
                Value::Object(named),
            ) => {
                maps.extend(named.keys().map(|name| (format!("{pointer}/{name}"), *keys)));
            }
            _ => {}
        }
    }
}
