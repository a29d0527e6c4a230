//! The files in `config/` that a person copies: each program takes its own, and they say what their
//! documentation says.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::checks::HaProxy;
use crate::cluster::{
    Certificates, Cluster, Options, Router, fresh_address, output, project, secret, succeed,
};

fn text(name: &str) -> String {
    fs::read_to_string(project().join(name)).unwrap()
}

/// Those in `config/` with this ending.
fn examples(ending: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(project().join("config"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == ending))
        .collect();
    found.sort();
    found
}

/// Without comments and empty lines, one blank between words.
fn directives(text: &str) -> Vec<String> {
    text.lines()
        .map(|line| line.split('#').next().unwrap_or_default())
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .filter(|line| !line.is_empty())
        .collect()
}

#[test]
fn haproxy_takes_its_files() {
    let files = examples("cfg");
    assert!(files.len() >= 3, "{files:?}");
    let dir = tempfile::tempdir().unwrap();
    for file in files {
        // The placeholders are no hosts.
        let mut text = fs::read_to_string(&file).unwrap();
        for host in ["host1", "host2", "host3"] {
            assert!(text.contains(&format!(" {host}:")), "{}", file.display());
            text = text.replace(&format!(" {host}:"), " 127.0.0.1:");
        }
        let copy = dir.path().join("haproxy.cfg");
        fs::write(&copy, text).unwrap();
        let checked = output(Command::new("/usr/sbin/haproxy").arg("-c").arg("-f").arg(&copy));
        let said = String::from_utf8_lossy(&checked.stderr);
        assert!(
            checked.status.success() && !said.contains("WARNING"),
            "{}: {said}",
            file.display()
        );
    }
}

/// Comments aside, they are what people run, but for what is named here.
#[test]
fn haproxys_files_are_the_known_ones() {
    let known = |name: &str, changes: &[(&str, &str)]| {
        let mut text = text(&format!("tests/import/{name}.cfg"));
        for (from, to) in changes {
            assert!(text.contains(from), "{name}: {from}");
            text = text.replace(from, to);
        }
        directives(&text)
    };
    let ours = |name: &str| directives(&text(&format!("config/haproxy-{name}.cfg")));
    // HAProxy refuses a word after the user.
    assert_eq!(
        ours("through-routers"),
        known("through-routers", &[(" checkuser postgres", " checkuser")])
    );
    assert_eq!(ours("direct"), known("node-checks", &[]));
    assert_eq!(
        ours("patroni-paths"),
        known(
            "patroni",
            &[
                ("port 8008", "port 6434"),
                ("bind *:7000", "bind 127.0.0.1:7000"),
                ("bind *:5432", "bind *:5010"),
                ("bind *:5433", "bind *:5011"),
                ("pg-sv01 10.100.100.104", "node1 host1"),
                ("pg-sv02 10.100.100.105", "node2 host2"),
                ("pg-sv03 10.100.100.106", "node3 host3"),
            ]
        )
    );
}

/// An interface that VRRP can be spoken on: Ethernet, with multicast.
fn interface() -> Option<String> {
    let word = |name: &str, file: &str| {
        fs::read_to_string(Path::new("/sys/class/net").join(name).join(file)).unwrap_or_default()
    };
    let fits = |name: &String| {
        let flags = u32::from_str_radix(word(name, "flags").trim().trim_start_matches("0x"), 16);
        word(name, "type").trim() == "1" && flags.is_ok_and(|flags| flags & 0x1000 != 0)
    };
    fs::read_dir("/sys/class/net")
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .find(fits)
}

#[test]
fn keepalived_takes_its_file() {
    let Some(interface) = interface() else {
        eprintln!("SKIPPED: this machine has no interface that keepalived would take");
        return;
    };
    let text = text("config/keepalived.conf");
    assert!(text.contains("interface eth0"));
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("keepalived.conf");
    let check = |text: &str| {
        fs::write(&copy, text).unwrap();
        output(
            Command::new("/usr/sbin/keepalived")
                .arg("-t")
                .arg("-f")
                .arg(&copy),
        )
    };
    let text = text.replace("interface eth0", &format!("interface {interface}"));
    let checked = check(&text);
    let said = String::from_utf8_lossy(&checked.stderr);
    assert!(
        checked.status.success() && said.is_empty(),
        "{}: {said}",
        checked.status
    );
    assert!(!check(&text.replace("advert_int", "advert")).status.success());
}

/// The command in `config/keepalived.conf`, asking the router at `address`.
fn keepalived_asks(address: &str) -> bool {
    let text = text("config/keepalived.conf");
    let scripts: Vec<&str> = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("script \"")?.strip_suffix('"'))
        .collect();
    let [script] = scripts[..] else {
        panic!("one script: {scripts:?}");
    };
    assert!(script.contains("//127.0.0.1:"), "{script}");
    let script = script.replace("//127.0.0.1:", &format!("//{address}:"));
    output(Command::new("sh").args(["-c", &script])).status.success()
}

#[test]
fn keepalived_sees_whether_a_router_serves() {
    let router = Router::shared();
    let address = router.address.to_string();
    assert!(keepalived_asks(&address));
    drop(router);
    assert!(!keepalived_asks(&address), "nobody is there");

    let cluster = Cluster::shared();
    let dir = Certificates::shared().file("");
    let nowhere = cluster.nodes().iter().fold(cluster.yaml(&dir), |yaml, node| {
        yaml.replace(&node.rest, &format!("http://{}:8008", fresh_address()))
    });
    let blind = Router::launch(
        None,
        Options {
            clusters: Some(nowhere),
            ..Options::default()
        },
    );
    assert!(
        !keepalived_asks(&blind.address.to_string()),
        "it knows of no server"
    );
}

/// With the files they name, as a person has them.
#[test]
fn trunkline_takes_its_files() {
    let dir = tempfile::tempdir().unwrap();
    let (config, certs) = (dir.path().join("config"), dir.path().join("certs"));
    fs::create_dir(&config).unwrap();
    fs::create_dir(&certs).unwrap();
    for name in ["ca.crt", "server.crt", "server.key"] {
        fs::copy(Certificates::shared().file(name), certs.join(name)).unwrap();
    }
    secret(&certs, "service-account.password", "trunkline");
    for name in ["pg_hba.conf", "pg_ident.conf"] {
        fs::copy(project().join("config").join(name), config.join(name)).unwrap();
    }
    let check = |text: &str| {
        let path = config.join("trunkline.yaml");
        fs::write(&path, text).unwrap();
        succeed(
            Command::new(env!("CARGO_BIN_EXE_trunkline"))
                .args(["check", "-c"])
                .arg(path),
        );
    };
    let files = examples("yaml");
    assert!(files.len() >= 2, "{files:?}");
    for file in files {
        check(&fs::read_to_string(file).unwrap());
    }
    let rules = "auth: {hba_file: pg_hba.conf, ident_file: pg_ident.conf}\n";
    check(&format!("{}{rules}", text("config/minimal.yaml")));
}

/// As `docs/haproxy.md` says.
#[test]
fn haproxys_login_check_needs_a_way_in_without_tls() {
    let dir = tempfile::tempdir().unwrap();
    let hba = |name: &str, check: &str| {
        let path = dir.path().join(name);
        let text = format!("{check}\nhostssl all all all scram-sha-256\n");
        fs::write(&path, text).unwrap();
        format!("auth: {{hba_file: {}}}\n", path.display())
    };
    let listeners = "  - {name: rw, address: \"{address}:6432\", route: read-write, tls: required}\n  \
                     - {name: ro, address: \"{address}:6433\", route: read-only}\n";
    let before = |rules: String| {
        let options = Options {
            extra: rules,
            listeners: Some(listeners.to_owned()),
            ..Options::default()
        };
        Router::before(Cluster::shared(), options)
    };
    let docs = text("docs/haproxy.md");
    let line = docs.lines().map(str::trim).find(|line| line.starts_with("host "));
    let line = line.unwrap().replace("10.0.0.5/32", "127.0.0.0/8");
    let (let_in, kept_out) = (before(hba("with", &line)), before(hba("without", "")));
    let login = |name: &str, port: u16| {
        format!(
            "listen {name}\n  bind {}:{port}\n  option pgsql-check user checkuser\n  server in {}:{port} check\n  \
             server out {}:{port} check\n",
            fresh_address(),
            let_in.address,
            kept_out.address
        )
    };
    let haproxy = HaProxy::start(&format!(
        "{}{}listen by-http\n  bind {}:6432\n  option httpchk GET /connection/is-ready-rw\n  http-check expect status 200\n  \
         server out {}:6432 check port 6434\n",
        login("required", 6432),
        login("optional", 6433),
        fresh_address(),
        kept_out.address,
    ));
    haproxy.await_states(&[
        ("required/in", "DOWN"),
        ("required/out", "DOWN"),
        ("optional/in", "UP"),
        ("optional/out", "DOWN"),
        ("by-http/out", "UP"),
    ]);
}

/// The lines that `docs/haproxy.md` would put in place of others.
#[test]
fn haproxy_takes_the_lines_of_its_documentation() {
    let docs = text("docs/haproxy.md");
    let lines = docs.lines().filter_map(|line| line.strip_prefix("    "));
    let lines: Vec<&str> = lines.filter(|line| line.contains("server")).collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    let dir = tempfile::tempdir().unwrap();
    for line in lines {
        let line = line.replace(" host1:", " 127.0.0.1:");
        let config = dir.path().join("haproxy.cfg");
        let text = format!(
            "defaults\n  mode tcp\n  timeout connect 1s\n  timeout client 1s\n  timeout server 1s\nlisten rw\n  bind 127.0.0.1:5010\n  \
             {line}\n"
        );
        fs::write(&config, text).unwrap();
        succeed(Command::new("/usr/sbin/haproxy").arg("-c").arg("-f").arg(&config));
    }
}
