//! What a person reads first is right: links lead somewhere, and commands do what stands below
//! them.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cluster::{Certificates, Cluster, Options, Router, fresh_address, output, project, secret};
use crate::shown::{Block, blocks, run};

#[test]
fn the_quick_start_works_as_it_stands_there() {
    let cluster = Cluster::shared();
    let dir = tempfile::tempdir().unwrap();
    let address = fresh_address();
    let leader = cluster.node(&cluster.leader());
    let nodes = cluster.nodes();
    let rest = |index: usize| nodes[index].rest.trim_start_matches("http://").to_owned();
    // Those who run the tests may do it all themselves.
    let sudo = dir.path().join("sudo");
    fs::write(&sudo, "#!/bin/sh\nexec \"$@\"\n").unwrap();
    fs::set_permissions(&sudo, fs::Permissions::from_mode(0o755)).unwrap();
    let group = output(Command::new("id").arg("-gn"));
    let group = String::from_utf8(group.stdout).unwrap();
    let certificate = "tls:\n  certificates: [{cert_file: server.crt, key_file: server.key}]\n";
    // All addresses are the default; here other routers run beside.
    let listeners = format!(
        "listeners:\n  - {{name: rw, address: \"{address}:6432\", route: read-write}}\n  \
         - {{name: ro, address: \"{address}:6433\", route: read-only}}\nhttp: {{address: \"{address}:6434\"}}\n"
    );
    run(
        "docs/quick-start.md",
        &[
            (
                "openssl rand -base64 24",
                format!("echo {}", cluster.text("service_password")),
            ),
            (
                "host=db1 user=postgres",
                format!("host={} port={} user=postgres", leader.address, leader.port),
            ),
            ("db1:8008", rest(0)),
            ("db2:8008", rest(1)),
            ("db3:8008", rest(2)),
            (certificate, format!("{certificate}{listeners}")),
            // Only what was made there: the folder has more here.
            ("/etc/trunkline/*", format!("{}/se*", dir.path().display())),
            ("/etc/trunkline", dir.path().display().to_string()),
            ("/run/trunkline", dir.path().join("run").display().to_string()),
            // There is a section for its address already.
            (
                "echo 'http: {token_file: admin.token}' >>",
                "sed -i 's/^http: {/http: {token_file: admin.token, /'".to_owned(),
            ),
            ("chgrp trunkline", format!("chgrp {}", group.trim())),
            ("/tmp/trunkline.log", dir.path().join("log").display().to_string()),
            ("host=router1", format!("host={address}")),
            ("http://router1", format!("http://{address}")),
        ],
        dir.path(),
    );
}

#[test]
fn the_readme_shows_what_happens() {
    let cluster = Cluster::shared();
    let address = fresh_address();
    let router = Router::before(
        cluster,
        Options {
            cluster_extra: format!("local_member: {}", cluster.leader()),
            address: Some(address),
            ..Options::default()
        },
    );
    let dir = tempfile::tempdir().unwrap();
    run(
        "README.md",
        &[
            ("127.0.0.11:", format!("{address}:")),
            ("host=127.0.0.1 ", format!("host={address} ")),
        ],
        dir.path(),
    );
    drop(router);
}

/// Each line that says which tool may use which port, with the configuration that stands there.
#[test]
fn tools_use_the_ports_that_the_page_names() {
    let text = fs::read_to_string(project().join("docs/tools.md")).unwrap();
    let shown = blocks(&text)
        .into_iter()
        .find(|block| block.kind == "yaml")
        .unwrap();
    let address = fresh_address();
    let (routes, listeners) = shown.text.split_once("\nlisteners:\n").unwrap();
    let router = Router::before(
        Cluster::shared(),
        Options {
            address: Some(address),
            listeners: Some(listeners.replace("\"*:", &format!("\"{address}:"))),
            extra: format!("{routes}\n"),
            ..Options::default()
        },
    );
    let dir = tempfile::tempdir().unwrap();
    // The programs of the server's version: pg_basebackup is not in everybody's path.
    let bin = Cluster::shared().text("bindir");
    let mut replacements = vec![
        ("host=router1", format!("host={address}")),
        ("$OUT", dir.path().display().to_string()),
    ];
    let programs = [
        "pg_dump ",
        "pg_dumpall ",
        "pg_basebackup ",
        "pg_receivewal ",
        "pg_recvlogical ",
        "vacuumdb ",
    ];
    for program in programs {
        // As commands; in the prose they stay as they are.
        replacements.push((program, format!("{bin}/{program}")));
    }
    run("docs/tools.md", &replacements, dir.path());
    drop(router);
}

#[test]
fn the_configuration_in_the_readme_is_right() {
    let text = fs::read_to_string(project().join("README.md")).unwrap();
    let shown: Vec<Block> = blocks(&text)
        .into_iter()
        .filter(|block| block.kind == "yaml")
        .collect();
    assert_eq!(shown.len(), 1);
    let certificates = Certificates::shared().copy();
    let dir = certificates.file("");
    secret(&dir, "service-account.password", "x");
    fs::write(dir.join("trunkline.yaml"), &shown[0].text).unwrap();
    let checked = output(
        Command::new(env!("CARGO_BIN_EXE_trunkline"))
            .args(["check", "-c"])
            .arg(dir.join("trunkline.yaml")),
    );
    assert!(
        checked.status.success(),
        "{}",
        String::from_utf8_lossy(&checked.stderr)
    );
}

/// The committed schema is the one of the program, and names the keys.
#[test]
fn the_program_prints_its_schema() {
    let printed = output(Command::new(env!("CARGO_BIN_EXE_trunkline")).arg("schema"));
    assert!(printed.status.success());
    let committed = fs::read(project().join("config/trunkline.schema.json")).unwrap();
    assert!(printed.stdout == committed, "`make reference` writes it");
    let schema: serde_json::Value = serde_json::from_slice(&printed.stdout).unwrap();
    let probe = &schema["properties"]["clusters"]["additionalProperties"]["properties"]["probe"];
    let rise = &probe["properties"]["rise"];
    assert_eq!(rise["type"], "integer");
    assert_eq!((&rise["minimum"], &rise["maximum"]), (&1.into(), &100.into()));
    assert_eq!(probe["additionalProperties"], false);
    // A pager that is left early is nothing wrong.
    let first = format!("{} schema | head -n 1", env!("CARGO_BIN_EXE_trunkline"));
    let left = output(Command::new("bash").args(["-o", "pipefail", "-c", &first]));
    assert!(left.status.success(), "{}", String::from_utf8_lossy(&left.stderr));
}

/// The project's documents, by their paths from its top folder.
pub fn documents() -> Vec<PathBuf> {
    let mut found = Vec::new();
    for folder in ["", "docs", "config", "certs"] {
        let Ok(entries) = fs::read_dir(project().join(folder)) else {
            continue;
        };
        let names = entries.map(|entry| Path::new(folder).join(entry.unwrap().file_name()));
        found.extend(names.filter(|name| name.extension().is_some_and(|extension| extension == "md")));
    }
    found.sort();
    found
}

/// The lines outside of blocks.
pub fn prose(markdown: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut inside = false;
    markdown.lines().enumerate().filter(move |(_, line)| {
        let fence = line.trim_start().starts_with("```");
        inside ^= fence;
        !inside && !fence
    })
}

/// As GitHub makes them of headings.
fn anchors(markdown: &str) -> BTreeSet<String> {
    let mut anchors = BTreeSet::new();
    for (_, line) in prose(markdown) {
        let text = line.trim_start_matches('#');
        let Some(text) = text.strip_prefix(' ').filter(|_| line.starts_with('#')) else {
            continue;
        };
        let anchor: String = text
            .trim()
            .to_lowercase()
            .chars()
            .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
            .map(|c| if c == ' ' { '-' } else { c })
            .collect();
        let again = (1..).map(|number| format!("{anchor}-{number}"));
        let anchor = std::iter::once(anchor.clone())
            .chain(again)
            .find(|anchor| !anchors.contains(anchor));
        anchors.extend(anchor);
    }
    anchors
}

#[test]
fn links_lead_somewhere() {
    let documents = documents();
    let named = |name: &str| documents.iter().any(|document| document == Path::new(name));
    assert!(
        named("README.md") && named("docs/architecture.md"),
        "{documents:?}"
    );
    let mut checked = 0;
    let mut broken = Vec::new();
    for document in &documents {
        let text = fs::read_to_string(project().join(document)).unwrap();
        for (index, line) in prose(&text) {
            // What stands in code is no link; its text may.
            let outside: String = line.split('`').step_by(2).collect();
            for target in outside.split("](").skip(1) {
                let target = target.split([')', ' ']).next().unwrap();
                if target.contains("://") {
                    continue;
                }
                checked += 1;
                let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
                let path = match path {
                    "" => project().join(document),
                    path => project().join(document).parent().unwrap().join(path),
                };
                let leads = if anchor.is_empty() {
                    path.exists()
                } else {
                    fs::read_to_string(&path).is_ok_and(|text| anchors(&text).contains(anchor))
                };
                if !leads {
                    broken.push(format!("{}:{}: {target}", document.display(), index + 1));
                }
            }
        }
    }
    assert!(checked > 50, "only {checked} links were found");
    assert_eq!(broken, [""; 0]);
}

/// Files of Rust in these folders.
pub fn sources(folders: &[&str]) -> Vec<PathBuf> {
    let mut left: Vec<PathBuf> = folders.iter().map(|folder| project().join(folder)).collect();
    let mut found = Vec::new();
    while let Some(path) = left.pop() {
        if path.is_dir() {
            left.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

/// How many tests this document names; all of them exist. A name has so many underscores or more.
fn tests_named(document: &str, underscores: usize) -> usize {
    let text = fs::read_to_string(project().join(document)).unwrap();
    let all: Vec<String> = sources(&["src", "tests"])
        .iter()
        .map(|path| fs::read_to_string(path).unwrap())
        .collect();
    let mut named = 0;
    for (index, line) in prose(&text) {
        // What looks like a test's name.
        for name in line.split('`').skip(1).step_by(2) {
            let is_test = name.matches('_').count() >= underscores
                && name
                    .chars()
                    .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
            if is_test {
                named += 1;
                let definition = format!("fn {name}(");
                assert!(
                    all.iter().any(|source| source.contains(&definition)),
                    "{document}:{}: there is no test {name}",
                    index + 1
                );
            }
        }
    }
    named
}

/// A claim without a test is a wish.
#[test]
fn what_security_md_names_exists() {
    let text = fs::read_to_string(project().join("docs/security.md")).unwrap();
    let named = tests_named("docs/security.md", 4);
    assert!(named > 20, "only {named} tests are named");
    // Each target of the fuzzer has its line.
    for entry in fs::read_dir(project().join("fuzz/fuzz_targets")).unwrap() {
        let path = entry.unwrap().path();
        let target = path.file_stem().unwrap().to_string_lossy();
        assert!(
            text.contains(&format!("`{target}`")),
            "docs/security.md does not name {target}"
        );
    }
    // What is shared has a test in every row; the tables of evidence have theirs below them.
    let shared = text.split("<!-- shared resources -->").nth(1).unwrap();
    let shared = shared.split("<!-- end -->").next().unwrap();
    for row in shared.lines().filter(|line| line.starts_with("| ")).skip(1) {
        let last = row.trim_end_matches('|').rsplit('|').next().unwrap();
        assert!(last.contains('`'), "no test: {row}");
    }
}

/// Each case has a test, or says that it has none; its links lead somewhere.
#[test]
fn what_the_cases_of_pooling_name_exists() {
    let document = "tests/it/pooling/README.md";
    let named = tests_named(document, 3);
    assert!(named > 80, "only {named} tests are named");
    let text = fs::read_to_string(project().join(document)).unwrap();
    let cases: Vec<&str> = text.lines().filter(|line| line.starts_with("| ")).collect();
    let cases = cases.into_iter().filter(|line| !line.starts_with("| |"));
    for (index, line) in cases.enumerate() {
        assert!(line.starts_with(&format!("| {} | ", index + 1)), "{line}");
        let last = line.trim_end_matches(" |").rsplit(" | ").next().unwrap();
        assert!(!last.is_empty(), "{line}");
    }
    for target in text.split("](").skip(1) {
        let path = target.split([')', '#']).next().unwrap();
        let folder = project().join(document);
        assert!(folder.parent().unwrap().join(path).exists(), "{path}");
    }
}

/// Every document is in the README's list.
#[test]
fn the_readme_lists_the_documents() {
    let text = fs::read_to_string(project().join("README.md")).unwrap();
    for document in documents() {
        let name = document.display().to_string();
        // The list of contents of the book is no page.
        if name.starts_with("docs/") && name != "docs/SUMMARY.md" {
            assert!(
                text.contains(&format!("]({name})")),
                "{name} is not in the README"
            );
        }
    }
}
