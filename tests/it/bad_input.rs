//! Bad input from everywhere but clients: Patroni, the configuration, certificates, ports, and the
//! open-file limit.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::cluster::{Certificates, Cluster, Options, Router, eventually, fresh_address, output, secret};
use crate::hand::{Raw, V3_0};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Page,
    NoMembers,
    Garbage,
    NotHttp,
    Unavailable,
    Never,
    Dribble,
    Redirect,
    Huge,
    /// As the real one answers.
    Honest,
}

/// Between the router and the real Patroni.
struct Patroni {
    address: Ipv4Addr,
    mode: Arc<Mutex<Mode>>,
}

impl Patroni {
    fn start(real: &str, mode: Mode) -> Self {
        let address = fresh_address();
        let listener = TcpListener::bind((address, 8008)).unwrap();
        let mode = Arc::new(Mutex::new(mode));
        let (shared, real) = (Arc::clone(&mode), real.trim_start_matches("http://").to_owned());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (shared, real) = (Arc::clone(&shared), real.clone());
                std::thread::spawn(move || answer(stream, &shared, &real));
            }
        });
        Self { address, mode }
    }

    fn set(&self, mode: Mode) {
        *self.mode.lock().unwrap() = mode;
    }
}

fn answer(mut stream: TcpStream, mode: &Mutex<Mode>, real: &str) -> Option<()> {
    let mut request = vec![0; 8192];
    let length = stream.read(&mut request).ok()?;
    let mode = *mode.lock().unwrap();
    let body = |text: &str| {
        format!(
            "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{text}",
            text.len()
        )
    };
    let text = match mode {
        Mode::Page => body("<html><body>It works!</body></html>"),
        Mode::NoMembers => body("{\"members\": \"none\", \"scope\": 7}"),
        Mode::Garbage => {
            body("{\"members\": [null, 7, {}, {\"name\": \"\\u0000\"}, {\"name\": \"x\", \"role\": []}, []]}")
        }
        Mode::NotHttp => "SSH-2.0-OpenSSH_9.2\r\n".to_owned(),
        Mode::Unavailable => {
            "HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".to_owned()
        }
        Mode::Redirect => format!(
            "HTTP/1.1 302 Found\r\nLocation: http://{real}/cluster\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
        ),
        Mode::Huge => body(&format!(
            "{{\"members\": [], \"x\": \"{}\"}}",
            "x".repeat(10 << 20)
        )),
        Mode::Never => {
            // Until the other side gives up.
            let _ = stream.read(&mut request);
            return None;
        }
        Mode::Dribble => {
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n{")
                .ok()?;
            while stream.write_all(b" ").is_ok() {
                crate::cluster::pause(Duration::from_millis(50));
            }
            return None;
        }
        Mode::Honest => {
            let mut to = TcpStream::connect(real).ok()?;
            let request = String::from_utf8_lossy(&request[..length])
                .replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n");
            to.write_all(request.as_bytes()).ok()?;
            let mut text = String::new();
            to.read_to_string(&mut text).ok()?;
            text
        }
    };
    stream.write_all(text.as_bytes()).ok()
}

#[test]
fn a_patroni_that_makes_no_sense_is_waited_out() {
    let cluster = Cluster::shared();
    let real = cluster.nodes()[0].rest.clone();
    let modes = [
        Mode::Page,
        Mode::NoMembers,
        Mode::Garbage,
        Mode::NotHttp,
        Mode::Unavailable,
        Mode::Never,
        Mode::Dribble,
        Mode::Redirect,
        Mode::Huge,
    ];
    let routers: Vec<(Mode, Patroni, Router)> = modes
        .into_iter()
        .map(|mode| {
            let patroni = Patroni::start(&real, mode);
            let dir = Certificates::shared().file("");
            let mut yaml = cluster.yaml(&dir);
            for (index, node) in cluster.nodes().iter().enumerate() {
                let with = if index == 0 {
                    format!("\"http://{}:8008\"", patroni.address)
                } else {
                    String::new()
                };
                yaml = yaml.replace(&format!("\"{}\"", node.rest), &with);
            }
            let yaml = yaml.replace(", , ]", "]");
            let router = Router::launch(
                None,
                Options {
                    clusters: Some(yaml),
                    ..Options::default()
                },
            );
            (mode, patroni, router)
        })
        .collect();
    for (mode, patroni, router) in &routers {
        for port in [6432, 6433] {
            let mut raw = Raw::connect(router.address, port);
            raw.startup(V3_0, &[("user", "app"), ("database", "app")]);
            let error = raw.last_error();
            assert_eq!(error.code(), "57P03", "{mode:?}");
            assert!(
                error.field(b'H').is_some_and(|hint| !hint.is_empty()),
                "{mode:?}: {error:?}"
            );
        }
        assert_eq!(router.http("/connection/is-live").unwrap().0, 200, "{mode:?}");
        for path in [
            "/connection/is-ready",
            "/connection/is-ready-rw",
            "/connection/is-ready-ro",
        ] {
            assert_eq!(router.http(path).unwrap().0, 503, "{mode:?} {path}");
        }
        // One line that says why, and for which endpoint.
        let line = match mode {
            // A list of which nobody can be used.
            Mode::Garbage => {
                router.await_log(&["WARN", "there is no leader", "no member holds the leader key"])
            }
            _ => router.await_log(&["WARN", &patroni.address.to_string()]),
        };
        eprintln!("{mode:?}: {line}");
        assert!(router.log().lines().count() < 30, "{mode:?}: {}", router.log());
    }
    for (_, patroni, _) in &routers {
        patroni.set(Mode::Honest);
    }
    for (mode, patroni, router) in &routers {
        router.await_ready();
        assert_eq!(router.psql(6432, "SELECT pg_is_in_recovery()"), "f", "{mode:?}");
        assert_eq!(router.psql(6433, "SELECT pg_is_in_recovery()"), "t", "{mode:?}");
        // And back: who was named last stays, while it accepts writes.
        let mut raw = Raw::connect(router.address, 6432);
        raw.startup(V3_0, &[("user", "app"), ("database", "app")]);
        assert_eq!(raw.authenticate("app").last().unwrap().tag, b'Z');
        patroni.set(*mode);
        assert_eq!(raw.value("SELECT 1"), "1");
    }
}

/// A configuration that is right but for what `change` does to its text; `{dir}` is where it lies.
fn faulty(dir: &Path, change: impl Fn(String) -> String) -> std::path::PathBuf {
    let text = Router::configuration(Some(Cluster::shared()), &Options::default(), dir, fresh_address());
    let path = dir.join("trunkline.yaml");
    std::fs::write(&path, change(text)).unwrap();
    path
}

/// Exit code and what was said on standard error.
fn run(command: &str, path: &Path) -> (i32, String) {
    // `run` of something that is right would not end.
    let output = output(
        Command::new("timeout")
            .arg("10")
            .arg(env!("CARGO_BIN_EXE_trunkline"))
            .args([command, "-c"])
            .arg(path),
    );
    (
        output.status.code().unwrap_or(-1),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

/// A self-signed pair in `dir`, valid until the year `until`.
fn pair(dir: &Path, until: i32) -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut leaf = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    leaf.not_before = rcgen::date_time_ymd(2019, 1, 1);
    leaf.not_after = rcgen::date_time_ymd(until, 1, 1);
    let cert = leaf.self_signed(&key).unwrap();
    std::fs::write(dir.join("own.crt"), cert.pem()).unwrap();
    let key = secret(dir, "own.key", &key.serialize_pem());
    (
        dir.join("own.crt").display().to_string(),
        key.display().to_string(),
    )
}

/// What is made of a right configuration in a folder.
type Change = Box<dyn Fn(String, &Path) -> String>;

#[test]
fn faults_are_told_before_the_start_in_a_line_each() {
    let usual = Certificates::shared();
    let (usual_cert, usual_key) = (
        usual.file("server.crt").display().to_string(),
        usual.file("server.key").display().to_string(),
    );
    let replace = |from: &str, to: &str| -> Change {
        let (from, to) = (from.to_owned(), to.to_owned());
        Box::new(move |text, _| {
            assert!(text.contains(&from), "{from} is not in {text}");
            text.replace(&from, &to)
        })
    };
    let with_pair = |until: i32, cert: bool, key: bool| -> Change {
        let (usual_cert, usual_key) = (usual_cert.clone(), usual_key.clone());
        Box::new(move |text, dir| {
            let (own_cert, own_key) = pair(dir, until);
            let text = if cert {
                text.replace(&usual_cert, &own_cert)
            } else {
                text
            };
            if key {
                text.replace(&usual_key, &own_key)
            } else {
                text
            }
        })
    };
    let cases: Vec<(&str, Change, &[&str])> = vec![
        (
            "expired",
            with_pair(2020, true, true),
            &["has expired", "own.crt"],
        ),
        (
            "mismatched",
            with_pair(2999, false, true),
            &[
                "tls.certificates[0].key_file",
                "does not belong to the first certificate",
            ],
        ),
        (
            "no such file",
            replace(&usual_cert, "/nowhere/x.crt"),
            &["/nowhere/x.crt", "does not exist"],
        ),
        ("a folder", replace(&usual_cert, "/tmp"), &["/tmp"]),
        (
            "not a certificate",
            replace(&usual_cert, "/etc/hostname"),
            &["/etc/hostname"],
        ),
        (
            "unknown key",
            replace("tls:\n", "wrong_key: 1\ntls:\n"),
            &["wrong_key"],
        ),
        (
            "unknown nested key",
            replace("route: read-only}", "route: read-only, colour: red}"),
            &["colour"],
        ),
        (
            "unknown route",
            replace("route: read-only}", "route: nowhere}"),
            &["there is no route `nowhere`"],
        ),
        ("not YAML", replace("tls:\n", "tls: [\n"), &["trunkline.yaml"]),
    ];
    for (what, change, words) in cases {
        let dir = tempfile::tempdir().unwrap();
        let path = faulty(dir.path(), |text| change(text, dir.path()));
        for command in ["check", "run"] {
            let (code, said) = run(command, &path);
            eprintln!("{what}: {said}");
            assert_eq!(code, 1, "{command} {what}: {said}");
            let line = said
                .lines()
                .find(|line| words.iter().all(|word| line.contains(word)));
            assert!(
                line.is_some(),
                "{command} {what}: no line with {words:?} in\n{said}"
            );
            assert!(!said.contains("panicked"), "{said}");
            assert!(said.lines().count() <= 4, "{command} {what}: {said}");
        }
    }
}

#[test]
fn a_key_that_others_can_read_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = faulty(dir.path(), |text| {
        let (cert, key) = pair(dir.path(), 2999);
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
        let usual = Certificates::shared();
        text.replace(&usual.file("server.crt").display().to_string(), &cert)
            .replace(&usual.file("server.key").display().to_string(), &key)
    });
    let (code, said) = run("run", &path);
    assert_eq!(code, 1);
    assert!(
        said.contains("own.key") && said.contains("is open to every user"),
        "{said}"
    );
}

#[test]
fn a_port_in_use_is_told_in_one_line() {
    for (port, name) in [(6432, "listener rw"), (6434, "http")] {
        let address = fresh_address();
        let _holder = TcpListener::bind((address, port)).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let text = Router::configuration(Some(Cluster::shared()), &Options::default(), dir.path(), address);
        let path = dir.path().join("trunkline.yaml");
        std::fs::write(&path, text).unwrap();
        let (code, said) = run("run", &path);
        eprintln!("{said}");
        assert_eq!(code, 1, "{said}");
        assert!(said.matches("already in use").count() <= 1, "{said}");
        let place = format!("{address}:{port}");
        let line = said
            .lines()
            .find(|line| line.contains(&place) && line.contains("in use"));
        assert!(
            line.is_some_and(|line| line.to_lowercase().contains(name)),
            "{said}"
        );
        assert!(
            said.lines().filter(|line| line.contains("not started")).count() == 1,
            "{said}"
        );
    }
}

#[test]
fn without_descriptors_who_is_in_stays_and_who_comes_is_told() {
    let cluster = Cluster::shared();
    let dir = Certificates::shared().file("");
    let yaml = format!("{}    probe: {{interval: 100ms}}\n", cluster.yaml(&dir));
    let router = Router::launch(
        None,
        Options {
            clusters: Some(yaml),
            prefix: vec!["prlimit".into(), "--nofile=120:120".into()],
            ..Options::default()
        },
    );
    router.await_ready();
    router.await_log(&["open-file limit is too low"]);
    let log_in = |port| {
        let mut raw = Raw::connect(router.address, port);
        raw.startup(V3_0, &[("user", "app"), ("database", "app")]);
        assert_eq!(raw.authenticate("app").last().unwrap().tag, b'Z');
        raw
    };
    let mut inside = [log_in(6432), log_in(6433)];
    // As many as there are descriptors, and some that are told.
    let mut held = Vec::new();
    let mut told = 0;
    for _ in 0..150 {
        let mut raw = Raw::connect(router.address, 6432);
        raw.startup(V3_0, &[("user", "app"), ("database", "app")]);
        let Ok(first) = raw.try_message() else { continue };
        match first.tag {
            b'R' => held.push(raw),
            b'E' => {
                assert_eq!(first.code(), "53300", "{first:?}");
                assert!(first.field(b'H').is_some());
                told += 1;
            }
            _ => panic!("{first:?}"),
        }
        if told == 5 {
            break;
        }
    }
    assert_eq!(told, 5, "{} are held", held.len());
    // Probes go on meanwhile, and fresh ones cannot: that says nothing against the members.
    for _ in 0..25 {
        for raw in &mut inside {
            assert_eq!(raw.value("SELECT pg_sleep(0.05)::text || 'x'"), "x");
        }
    }
    let log = router.log();
    assert!(
        log.lines()
            .filter(|line| line.contains("cannot accept connections"))
            .count()
            <= 2,
        "{log}"
    );
    assert!(
        !log.contains("is down") && log.matches("there is no leader").count() <= 1,
        "{log}"
    );
    drop(held);
    eventually("clients come in again", Duration::from_secs(10), || {
        router.psql_output(6432, "", "SELECT 1").status.success()
    });
    assert_eq!(inside[0].value("SELECT 1"), "1");
    router.await_log(&["connections are accepted again"]);
    router.await_ready();
}
