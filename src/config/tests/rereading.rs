//! The files of a configuration, read again: unit by unit.

use super::*;

/// A configuration in which every unit has a file.
const PARTS: &str = r#"
clusters:
  main:
    patroni: {endpoints: ["http://db1:8008"], username: u, password_file: patroni.pw}
    service_account: {user: trunkline, password_file: pw}
    server_tls: {sslmode: verify-ca, sslrootcert: ca.crt}
tls: {certificates: [{cert_file: s.crt, key_file: s.key}]}
http: {tls: {cert_file: h.crt, key_file: h.key}}
auth: {users_file: users}
"#;

fn files() -> Files {
    let files = Files::new();
    files.certificate("h", |_| {});
    files.secret("patroni.pw", "x");
    files
}

fn again(config: &Config) -> ReloadedUnits {
    reread_at(config, unix_now(), &|_| None)
}

/// The parts that are good, and the errors of those that are not.
fn outcome(reloaded: &ReloadedUnits) -> (Vec<String>, Vec<String>) {
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for (unit, result) in &reloaded.units {
        match result {
            Ok(_) => good.push(unit.to_string()),
            Err(errors) => bad.extend(errors.iter().map(|error| format!("{unit}: {}", error.message))),
        }
    }
    (good, bad)
}

#[test]
fn each_part_is_good_or_not_by_itself() {
    let files = files();
    let config = files.ok(PARTS);
    let all = [
        "tls",
        "http",
        "auth",
        "clusters.main.server_tls",
        "clusters.main.service_account",
    ];
    assert_eq!(
        outcome(&again(&config)),
        (all.map(str::to_owned).to_vec(), vec![])
    );
    for (file, unit) in [
        ("s.crt", "tls"),
        ("h.key", "http"),
        ("users", "auth"),
        ("ca.crt", "clusters.main.server_tls"),
        ("pw", "clusters.main.service_account"),
        // Read at the start only, and said to be.
        ("patroni.pw", "rest"),
    ] {
        let (from, to) = (files.path(file), files.path("away"));
        fs::rename(&from, &to).unwrap();
        let (good, bad) = outcome(&again(&config));
        assert!(!good.contains(&unit.to_owned()), "{file}: {good:?}");
        assert_eq!(
            good.len(),
            all.iter().filter(|other| **other != unit).count(),
            "{file}"
        );
        assert!(
            bad.len() == 1 && bad[0].starts_with(unit) && bad[0].ends_with("does not exist"),
            "{file}: {bad:?}"
        );
        fs::rename(&to, &from).unwrap();
    }
    assert_eq!(outcome(&again(&config)).1, [""; 0]);
}

#[test]
fn the_secret_of_peers_is_read_at_the_start_only() {
    let files = files();
    let config = files.ok(&format!(
        "{MINIMAL}peers: {{secret_file: peers.key, members: [{{name: p, address: \"h:1\"}}]}}\n"
    ));
    assert!(is_read_at_start(&config, &files.path("peers.key")));
    assert!(!is_read_at_start(&config, &files.path("pw")));
    assert!(!is_read_at_start(&files.ok(MINIMAL), &files.path("peers.key")));
}

#[test]
fn what_is_in_the_files_is_new() {
    let files = files();
    let config = files.ok(PARTS);
    files.secret("pw", "another\n");
    files.certificate("s", |params| {
        params.subject_alt_names = vec![rcgen::SanType::DnsName("other.example".try_into().unwrap())];
    });
    // The text of the start counts, not what stands in its place.
    fs::write(files.path("trunkline.yaml"), "rubbish").unwrap();
    assert_eq!(is_edited(&config), Ok(true));
    fs::write(files.path("trunkline.yaml"), PARTS).unwrap();
    assert_eq!(is_edited(&config), Ok(false));
    let mut reloaded = again(&config);
    let Some(Ok(ReloadedUnit::Tls(tls))) = reloaded.units.remove(&ReloadUnit::Tls) else {
        panic!()
    };
    assert_eq!(tls.certificates[0].pair.leaf().names, ["other.example"]);
    let account = ReloadUnit::ServiceAccount(Arc::from("main"));
    let Some(Ok(ReloadedUnit::Password(Some(password)))) = reloaded.units.remove(&account) else {
        panic!()
    };
    assert_eq!(password.expose(), b"another");
}

/// A look sees what is written in place, put in place, and what a symbolic link on the way leads
/// to.
#[test]
fn a_look_sees_every_kind_of_change() {
    let files = files();
    for (version, contents) in [("one", "geheim"), ("two", "gesagt")] {
        fs::create_dir(files.path(version)).unwrap();
        files.secret(&format!("{version}/pw"), contents);
    }
    // As Kubernetes mounts a secret: pw -> ..data/pw, ..data -> one.
    std::os::unix::fs::symlink("one", files.path("..data")).unwrap();
    fs::remove_file(files.path("pw")).unwrap();
    std::os::unix::fs::symlink("..data/pw", files.path("pw")).unwrap();
    let config = files.ok(PARTS);
    let changed = |read: &crate::config::Files| -> Vec<String> {
        let now = read.look();
        let paths = read.changed(&now);
        paths
            .iter()
            .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
            .collect()
    };
    assert_eq!(changed(config.files()), [""; 0]);
    std::os::unix::fs::symlink("two", files.path("..next")).unwrap();
    fs::rename(files.path("..next"), files.path("..data")).unwrap();
    assert_eq!(changed(config.files()), ["pw"]);
    let read = again(&config).files;
    assert_eq!(changed(&read), [""; 0]);
    files.certificate("ca", |_| {});
    fs::remove_file(files.path("h.crt")).unwrap();
    fs::set_permissions(files.path("users"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(changed(&read), ["ca.crt", "h.crt", "users"]);
}
