//! Every command that a document shows is run by a test, or the document says why not; every
//! command that a text mentions exists.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::cluster::{
    Certificates, Cluster, Options, Router, eventually, fresh_address, output, project, secret,
};
use crate::documents::{documents, prose, sources};
use crate::hand::{Raw, V3_0};
use crate::shown::{blocks, run, run_in};

/// What runs the blocks of each document: a test, or a script.
const RUN: [(&str, &str); 9] = [
    ("README.md", "the_readme_shows_what_happens"),
    ("docs/authentication.md", "a_client_is_judged_as_the_page_shows"),
    ("docs/demo.md", "scripts/test-compose"),
    ("docs/migration.md", "an_import_goes_as_the_page_shows"),
    ("docs/operations.md", "operators_see_what_the_pages_show"),
    ("docs/planned-stops.md", "operators_see_what_the_pages_show"),
    ("docs/pooling.md", "a_pool_does_what_the_page_shows"),
    ("docs/quick-start.md", "the_quick_start_works_as_it_stands_there"),
    ("docs/tools.md", "tools_use_the_ports_that_the_page_names"),
];

/// First words of a line that make it a command, in whatever block.
const PROGRAMS: [&str; 20] = [
    "$",
    "apt-get",
    "cargo",
    "chgrp",
    "chmod",
    "curl",
    "docker",
    "install",
    "keepalived",
    "kill",
    "make",
    "openssl",
    "patronictl",
    "pg_dump",
    "psql",
    "sudo",
    "systemctl",
    "systemd-analyze",
    "trunkline",
    "wget",
];

fn text(document: &Path) -> String {
    fs::read_to_string(project().join(document)).unwrap()
}

#[test]
fn every_command_is_run_or_the_page_says_why_not() {
    let all: Vec<String> = sources(&["src", "tests"])
        .iter()
        .map(|path| fs::read_to_string(path).unwrap())
        .collect();
    let is_there = |name: &str| {
        if name.contains('/') {
            return project().join(name).is_file();
        }
        let definition = format!("fn {name}(");
        all.iter().any(|source| source.contains(&definition))
    };
    let run: BTreeMap<&str, &str> = RUN.into();
    let mut faults = Vec::new();
    let mut used = BTreeSet::new();
    let mut commands = [0; 3];
    for document in documents() {
        let name = document.display().to_string();
        for block in blocks(&text(&document)) {
            let place = format!("{name}:{}", block.line);
            let first_word = |line: &str| line.split_whitespace().next().unwrap_or_default().to_owned();
            let count = block
                .text
                .lines()
                .filter(|line| match &*block.kind {
                    "sh" => !line.is_empty(),
                    _ => line.starts_with("$ "),
                })
                .count();
            if !matches!(&*block.kind, "sh" | "console") {
                let command = block
                    .text
                    .lines()
                    .find(|line| PROGRAMS.contains(&&*first_word(line)));
                if let Some(command) = command {
                    faults.push(format!(
                        "{place}: no block of the kind `console` or `sh`: {command}"
                    ));
                }
                continue;
            }
            match &block.note {
                Some((word, why)) if word == "not run" => {
                    commands[0] += count;
                    if why.len() < 10 {
                        faults.push(format!("{place}: no reason"));
                    }
                }
                Some((word, test)) if word == "run by" => {
                    commands[1] += count;
                    if !is_there(test) {
                        faults.push(format!("{place}: there is no {test}"));
                    }
                }
                _ => {
                    commands[2] += count;
                    used.insert(name.clone());
                    match run.get(&*name) {
                        Some(test) if is_there(test) => {}
                        other => faults.push(format!("{place}: nothing runs it: {other:?}")),
                    }
                }
            }
        }
    }
    assert_eq!(faults, [""; 0]);
    let all: BTreeSet<String> = run.keys().map(|name| (*name).to_owned()).collect();
    assert_eq!(used, all, "documents that have something to run");
    assert!(
        commands[0] < commands[2] / 4,
        "not run, run elsewhere, run: {commands:?}"
    );
    let compose = fs::read_to_string(project().join("scripts/test-compose")).unwrap();
    assert!(compose.contains("document=docs/demo.md"));
}

/// What stands in backticks, also over the end of a line.
fn spans(markdown: &str) -> Vec<String> {
    let mut paragraph = String::new();
    let mut spans = Vec::new();
    for line in prose(markdown).map(|(_, line)| line).chain([""]) {
        // A row of a table, a point of a list and a paragraph are on their own.
        let begins = line.starts_with(['|', '#']) || line.trim_start().starts_with("- ") || line.is_empty();
        if begins {
            spans.extend(paragraph.split('`').skip(1).step_by(2).map(str::to_owned));
            paragraph.clear();
        }
        paragraph.push_str(line.trim());
        paragraph.push(' ');
    }
    spans
}

/// The help of `trunkline COMMAND`; nothing if there is no such command.
fn help(command: &[&str]) -> Option<String> {
    let done = output(
        Command::new(env!("CARGO_BIN_EXE_trunkline"))
            .args(command)
            .arg("--help"),
    );
    let text = String::from_utf8(done.stdout).unwrap();
    // The help of what stands before an unknown word would not do.
    let usage = ["trunkline", &command.join(" ")].join(" ");
    (done.status.success() && text.contains(&format!("Usage: {}", usage.trim()))).then_some(text)
}

/// In texts and in blocks: each command and option of `trunkline`, each target of `make`.
#[test]
fn commands_that_are_mentioned_exist() {
    let makefile = fs::read_to_string(project().join("Makefile")).unwrap();
    let is_word = |word: &str| !word.is_empty() && word.chars().all(|c| c.is_ascii_lowercase() || c == '-');
    let mut faults = Vec::new();
    let mut found = BTreeSet::new();
    for document in documents() {
        let text = text(&document);
        let mut shown = spans(&text);
        for block in blocks(&text) {
            shown.extend(
                block
                    .text
                    .lines()
                    .map(|line| line.trim_start_matches("$ ").to_owned()),
            );
        }
        for line in shown {
            let mut words = line.split_whitespace();
            let program = words.next();
            let words: Vec<&str> = words
                .take_while(|word| !matches!(*word, "|" | "&&" | "#" | ">" | "2>"))
                .collect();
            let fault = |what: String| format!("{}: `{line}`: {what}", document.display());
            match (program, words.first()) {
                (Some("make"), Some(target))
                    if is_word(target) && !makefile.contains(&format!("\n{target}:")) =>
                {
                    faults.push(fault("no such target".to_owned()));
                }
                (Some("trunkline"), Some(first)) if is_word(first) || first.starts_with('-') => {
                    let mut command: Vec<&str> =
                        words.iter().copied().take_while(|word| is_word(word)).collect();
                    // `router drain` is one command; of others the second word is an argument.
                    command.truncate(if *first == "router" { 2 } else { 1 });
                    if first.starts_with('-') {
                        command.clear();
                    }
                    let Some(help) = help(&command) else {
                        faults.push(fault("no such command".to_owned()));
                        continue;
                    };
                    found.insert(command.join(" "));
                    for option in words.iter().filter(|word| word.starts_with('-')) {
                        let option = option.split(['=', '…']).next().unwrap();
                        let has = help.split([' ', ',', '\n']).any(|word| word == option);
                        if !has {
                            faults.push(fault(format!("no option {option}")));
                        }
                    }
                }
                _ => {}
            }
        }
    }
    assert_eq!(faults, [""; 0]);
    // Nothing that there is is left out.
    let top = help(&[]).unwrap();
    let commands = top
        .split("Commands:\n")
        .nth(1)
        .unwrap()
        .split("\n\n")
        .next()
        .unwrap();
    for line in commands.lines() {
        let command = line.split_whitespace().next().unwrap();
        let is_found = found.iter().any(|found| found.split(' ').next() == Some(command));
        assert!(
            is_found || command == "help",
            "no document mentions `trunkline {command}`"
        );
    }
}

/// What a page shows of a configuration, with what it leaves out.
fn completed(shown: &str, dir: &Path) -> String {
    let indent = shown.len() - shown.trim_start().len();
    let mut text = String::new();
    for line in shown.lines() {
        text.push_str(line.get(indent..).unwrap_or_default());
        text.push('\n');
    }
    let has = |key: &str| text.lines().any(|line| line.starts_with(key));
    let mut more = String::new();
    if !has("clusters:") {
        more.push_str(
            "clusters: {main: {patroni: {endpoints: [\"http://db1:8008\"]}, service_account: {user: trunkline, \
             password_file: service}}}\n",
        );
    }
    if !has("tls:") {
        more.push_str(
            "tls: {certificates: [{cert_file: server.crt, key_file: server.key}], client_ca_file: ca.crt}\n",
        );
    }
    if has("routes:") && !has("listeners:") {
        let routes = text.split("routes:\n").nth(1).unwrap().lines();
        let names = routes
            .take_while(|line| line.starts_with("  "))
            .filter_map(|line| line.strip_prefix("  ")?.split_once(':'))
            .map(|(name, _)| name)
            .filter(|name| !name.starts_with(' '));
        more.push_str("listeners:\n");
        for (port, name) in (6500..).zip(names) {
            let _ = writeln!(
                more,
                "  - {{name: {name}, address: \"127.0.0.1:{port}\", route: {name}}}"
            );
        }
    }
    // The files that it names.
    for word in text.split("_file: ").skip(1) {
        let name = word.split([',', '}', '\n', ' ']).next().unwrap();
        let (like, contents) = match name.rsplit_once('.').map(|(_, ending)| ending) {
            Some("crt") => (Some("server.crt"), ""),
            Some("key") => (Some("server.key"), ""),
            Some("conf") => (
                None,
                if name.contains("hba") {
                    "host all all all scram-sha-256"
                } else {
                    ""
                },
            ),
            _ => (None, "x"),
        };
        match like {
            Some(like) if !dir.join(name).exists() => _ = fs::copy(dir.join(like), dir.join(name)).unwrap(),
            Some(_) => {}
            None => _ = secret(dir, name, contents),
        }
    }
    more + &text
}

#[test]
fn every_configuration_in_the_pages_is_right() {
    let mut faults = Vec::new();
    let mut count = 0;
    for document in documents() {
        for block in blocks(&text(&document)) {
            if block.kind != "yaml" || block.is("not ours") {
                continue;
            }
            count += 1;
            let certificates = Certificates::shared().copy();
            let dir = certificates.file("");
            secret(&dir, "service", "x");
            secret(&dir, "service-account.password", "x");
            let configuration = completed(&block.text, &dir);
            fs::write(dir.join("trunkline.yaml"), &configuration).unwrap();
            let checked = output(
                Command::new(env!("CARGO_BIN_EXE_trunkline"))
                    .args(["check", "-c"])
                    .arg(dir.join("trunkline.yaml")),
            );
            if !checked.status.success() {
                let said = String::from_utf8_lossy(&checked.stderr).into_owned();
                faults.push(format!(
                    "{}:{}: {said}{configuration}",
                    document.display(),
                    block.line
                ));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(count > 6, "only {count} were found");
}

/// The rules and the credentials that the page shows are one configuration.
#[test]
fn a_client_is_judged_as_the_page_shows() {
    let page = text(Path::new("docs/authentication.md"));
    let shown = blocks(&page);
    let of_kind = |kind: &'static str| {
        shown
            .iter()
            .filter(move |block| block.kind == kind)
            .map(|block| &*block.text)
    };
    let certificates = Certificates::shared().copy();
    let dir = certificates.file("");
    fs::write(dir.join("pg_hba.conf"), of_kind("").next().unwrap()).unwrap();
    fs::write(dir.join("pg_ident.conf"), "os root operator\n").unwrap();
    for name in ["service", "reader-password"] {
        secret(&dir, name, "x");
    }
    fs::copy(dir.join("server.crt"), dir.join("router.crt")).unwrap();
    fs::copy(dir.join("server.key"), dir.join("router.key")).unwrap();
    let mut auth = of_kind("yaml");
    let (rules, credentials) = (auth.next().unwrap(), auth.next().unwrap());
    let configuration = format!(
        "clusters: {{main: {{patroni: {{endpoints: [\"http://db1:8008\"]}}, service_account: {{user: trunkline, \
         password_file: service}}}}}}\n\
         tls: {{certificates: [{{cert_file: server.crt, key_file: server.key}}], client_ca_file: ca.crt}}\n{rules}{}",
        credentials.strip_prefix("auth:\n").unwrap()
    );
    fs::write(dir.join("trunkline.yaml"), configuration).unwrap();
    run_in(&dir, "docs/authentication.md", &[], &dir);
}

#[test]
fn an_import_goes_as_the_page_shows() {
    let page = text(Path::new("docs/migration.md"));
    let dir = tempfile::tempdir().unwrap();
    let configuration = &blocks(&page)[0];
    assert!(
        configuration.text.starts_with("listen stats\n"),
        "{}",
        configuration.text
    );
    fs::write(dir.path().join("haproxy.cfg"), &configuration.text).unwrap();
    run_in(dir.path(), "docs/migration.md", &[], dir.path());
}

/// With the configuration of the page.
#[test]
fn a_pool_does_what_the_page_shows() {
    let page = text(Path::new("docs/pooling.md"));
    let routes = &blocks(&page)[0];
    assert!(routes.text.starts_with("routes:\n"), "{}", routes.text);
    let router = Router::before(
        Cluster::shared(),
        Options {
            extra: format!("{}  read-only: {{targets: [replica]}}\n", routes.text),
            ..Options::default()
        },
    );
    let dir = tempfile::tempdir().unwrap();
    let config = router.dir().join("trunkline.yaml").display().to_string();
    run(
        "docs/pooling.md",
        &[
            ("host=router1 ", format!("host={} ", router.address)),
            ("/etc/trunkline/trunkline.yaml", config),
        ],
        dir.path(),
    );
}

fn session(router: &Router) -> Raw {
    let mut raw = Raw::tls(router.address, 6432);
    raw.startup(V3_0, &[("user", "app"), ("database", "app")]);
    assert_eq!(raw.authenticate("app").last().unwrap().tag, b'Z');
    raw
}

#[test]
fn operators_see_what_the_pages_show() {
    let cluster = Cluster::shared();
    let dir = tempfile::tempdir().unwrap();
    let token = secret(dir.path(), "http.token", "a-token-of-24-characters");
    let router = Router::before(
        cluster,
        Options {
            address: Some(fresh_address()),
            http: format!("token_file: {}", token.display()),
            cluster_extra: format!("local_member: {}", cluster.replicas()[0]),
            extra: "console: {users: [app]}\nroutes:\n  \
                    read-write: {targets: [leader], pool: {mode: transaction}}\n  \
                    read-only: {targets: [replica], resume: tracked}\n"
                .to_owned(),
            ..Options::default()
        },
    );
    let config = router.dir().join("trunkline.yaml").display().to_string();
    // Two, as the page speaks of several.
    let mut clients = [session(&router), session(&router)];
    for client in &mut clients {
        client.query("BEGIN");
    }
    let group = output(Command::new("id").arg("-gn"));
    let group = String::from_utf8(group.stdout).unwrap();
    let file = ("/etc/trunkline/trunkline.yaml", config.clone());
    let planned = tempfile::tempdir().unwrap();
    run(
        "docs/planned-stops.md",
        std::slice::from_ref(&file),
        planned.path(),
    );
    run(
        "docs/operations.md",
        &[
            file,
            ("/etc/trunkline", dir.path().display().to_string()),
            ("chgrp trunkline", format!("chgrp {}", group.trim())),
            ("host=router1 ", format!("host={} ", router.address)),
            ("user=admin", "user=app".to_owned()),
        ],
        dir.path(),
    );
    for client in &mut clients {
        client.query("COMMIT");
    }
    // It has another content now, and the router takes it up.
    eventually("the new token counts", std::time::Duration::from_secs(20), || {
        let done = output(Command::new(env!("CARGO_BIN_EXE_trunkline")).args([
            "enable",
            "read-write",
            "-c",
            &config,
        ]));
        done.status.success()
    });
    every_command_of_the_table(&router, &config);
}

/// Those of the table in "Administration", in order.
fn every_command_of_the_table(router: &Router, config: &str) {
    let page = text(Path::new("docs/operations.md"));
    let rows: Vec<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `trunkline "))
        .collect();
    assert!(rows.len() > 20, "{rows:?}");
    let replica = Cluster::shared().replicas().remove(0);
    for row in rows {
        let command = row.split('`').next().unwrap();
        // It would change the cluster, which others use.
        if command == "switchover" {
            continue;
        }
        let mut client = session(router);
        client.query("BEGIN");
        let mine =
            output(Command::new(env!("CARGO_BIN_EXE_trunkline")).args(["sessions", "--json", "-c", config]));
        let sessions: serde_json::Value = serde_json::from_slice(&mine.stdout).unwrap();
        let ids = sessions
            .as_array()
            .unwrap()
            .iter()
            .map(|session| session["id"].as_u64().unwrap());
        let id = ids.max().unwrap().to_string();
        let is_about_routes = ["disable", "enable", "pause", "unpause"]
            .iter()
            .any(|name| command.starts_with(name));
        let words = command.split(' ').map(|word| match word {
            "NAME" if is_about_routes => "read-only",
            "NAME" => &*replica,
            "N" => "7",
            "ID" => &*id,
            "CLUSTER" => "main",
            word => word,
        });
        let done = output(
            Command::new(env!("CARGO_BIN_EXE_trunkline"))
                .args(words)
                .args(["-c", config]),
        );
        assert!(
            done.status.success(),
            "trunkline {command}: {}{}",
            String::from_utf8_lossy(&done.stdout),
            String::from_utf8_lossy(&done.stderr)
        );
    }
}
