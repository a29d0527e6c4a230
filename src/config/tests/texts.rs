//! Texts of any kind: what is not YAML, what is too large, the examples, and damaged files.

use proptest::prelude::*;

use super::*;

#[test]
fn what_is_not_yaml_has_a_line() {
    let files = Files::new();
    files.one_error("clusters:\n  main: [1\nx: }", "3: ");
    files.one_error(
        "listeners:\n  - {name: a, address: *:6432}\n",
        "put the address in quotes",
    );
    files.one_error(
        "listeners:\n  - {name: a, address: [::1]:6432}\n",
        "put the address in quotes",
    );
    files.one_error("clusters:\n\tmain: \"*:1\"\n", "use spaces, not tabs");
    files.one_error("a: 1\n---\nb: 2\n", "contains more than one YAML document");
    files.one_error("clusters: !!python/object {}\n", "1: ");
    files.one_error(&format!("{MINIMAL}log: *missing\n"), "7:");
    files.one_error(
        &format!("{MINIMAL}<<: {{log: {{}}}}\n"),
        "merge keys are not supported",
    );
    // Anchors are YAML's own way to say a thing once.
    let shared = MINIMAL.replace("patroni:", "probe: &times {interval: 2s}\n    patroni:");
    files.ok(&shared);
}

#[test]
fn huge_deep_and_explosive_texts_are_refused() {
    const TOO_MUCH: &str = "exceeds the limits: 24 levels, 20000 values";
    let files = Files::new();
    let deep = "[".repeat(100_000);
    files.one_error(&deep, "recursion limit exceeded");
    let deep: String = (0..200)
        .map(|level| format!("{}a:\n", " ".repeat(level)))
        .collect();
    files.one_error(&deep, TOO_MUCH);
    let many = format!("log: [{}]", "1,".repeat(100_000));
    files.one_error(&many, TOO_MUCH);
    files.one_error(&" ".repeat(files::MAX_CONFIG + 1), "is larger than 1024 KiB");
    let mut laughs = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n".to_owned();
    for level in 1..10 {
        let aliases = vec![format!("*a{}", level - 1); 10].join(", ");
        laughs += &format!("a{level}: &a{level} [{aliases}]\n");
    }
    files.one_error(&laughs, "alias");
    let keys: String = (0..9_000).map(|key| format!("k{key}: 1\n")).collect();
    assert_eq!(files.errors(&keys).len(), 9_001, "bounded, and all of them");
}

#[test]
fn the_file_itself() {
    let files = Files::new();
    let path = files.path("trunkline.yaml");
    let message = |expected: &str| {
        let text = load(&path).unwrap_err().to_string();
        assert!(text.contains(expected), "{text}");
    };
    message("trunkline.yaml: does not exist");
    fs::write(&path, b"log: \xff").unwrap();
    message("is not UTF-8 text");
    fs::write(&path, vec![b' '; files::MAX_CONFIG + 1]).unwrap();
    message("is larger than 1024 KiB");
    fs::write(&path, MINIMAL).unwrap();
    assert_eq!(load(&path).unwrap().path, path);
    assert!(
        load(files.0.path())
            .unwrap_err()
            .to_string()
            .contains("is a directory")
    );
}

/// The examples as a person gets them, with the files they name.
#[test]
fn the_examples_are_right() {
    for (name, text) in [
        ("minimal", include_str!("../../../config/minimal.yaml")),
        ("trunkline", include_str!("../../../config/trunkline.yaml")),
    ] {
        let files = Files::new();
        for directory in ["config", "certs"] {
            fs::create_dir(files.path(directory)).unwrap();
        }
        for certificate in ["server", "ca", "client"] {
            files.certificate(&format!("certs/{certificate}"), |_| {});
        }
        for secret in [
            "service-account.password",
            "patroni.password",
            "userlist.txt",
            "peers.key",
        ] {
            files.secret(&format!("certs/{secret}"), "0123456789abcdef\n");
        }
        let path = files.path("config/trunkline.yaml");
        fs::write(&path, text).unwrap();
        let config = load(&path).unwrap_or_else(|errors| panic!("{errors}"));
        assert_eq!(config.warnings(), [""; 0], "{name}");
        let shown: Vec<String> = config.listeners.iter().map(|l| l.address.to_string()).collect();
        assert_eq!(shown, ["*:6432", "*:6433"], "{name}");
        if name == "minimal" {
            continue;
        }
        // Every key that works is shown, if in a comment.
        for key in sections().iter().flat_map(|(_, keys)| keys.names()) {
            assert!(text.contains(&format!("{key}:")), "{key} is not in the example");
        }
        // What is commented out is right as well.
        let instead = |from: &str, to: &str, text: &str| {
            assert!(text.contains(from), "{from}");
            text.replace(from, to)
        };
        let mut all = text.to_owned();
        for key in [
            "ca_file",
            "cert_file",
            "key_file",
            "username",
            "password_file",
            "sslnegotiation",
            "channel_binding",
            "require_auth",
            "server_name",
            "sslrootcert",
            "sslcert",
            "sslkey",
            "tls",
            "client_ca_file",
        ] {
            all = all.replace(&format!("# {key}: "), &format!("{key}: "));
        }
        all = instead("[\"http://127", "[\"https://127", &all);
        for line in ["peers:", "  secret_file:", "  members:", "    - {name: router2"] {
            all = instead(&format!("# {line}"), line, &all);
        }
        let (_, pooled) = all.split_once("  # pooled:\n").unwrap();
        let (pooled, _) = pooled.split_once("  # Synchronous").unwrap();
        let lines = pooled.lines().map(|line| line.replacen("# ", "", 1) + "\n");
        let uncommented = format!("  pooled:\n{}", lines.collect::<String>());
        all = instead(&format!("  # pooled:\n{pooled}"), &uncommented, &all);
        fs::write(&path, &all).unwrap();
        let config = load(&path).unwrap_or_else(|errors| panic!("{errors}"));
        assert!(config.peers.is_some() && config.http.tls.is_some());
        let pool = config.routes["pooled"].pool.as_ref().unwrap();
        assert_eq!(pool.limits_for("reports", "app").max_connections, 5);
        let users = instead("# users_file", "users_file", text);
        let users = instead(
            "  query:",
            "  # query:",
            &instead("  cache_ttl:", "  # cache_ttl:", &users),
        );
        fs::write(&path, &users).unwrap();
        load(&path).unwrap_or_else(|errors| panic!("{errors}"));
    }
}

/// Whatever is accepted holds together: what a name refers to is there.
fn holds_together(config: &Config) {
    assert!(!config.clusters.is_empty() && !config.routes.is_empty() && !config.listeners.is_empty());
    for route in config.routes.values() {
        assert!(config.clusters.contains_key(&*route.cluster));
    }
    for listener in &config.listeners {
        assert!(config.routes.contains_key(&*listener.route));
        assert!(listener.tls == ListenerTls::Off || config.tls.is_some());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_text_is_answered(text in "\\PC{0,200}|[a-z:\\-\\[\\]{}&*!|>'\"%@`, \n\t#0-9]{0,200}") {
        if let Err(errors) = parse(Path::new("any.yaml"), &text) {
            prop_assert!(errors.count() > 0);
            prop_assert!(!errors.to_string().is_empty());
        }
    }

    /// A good file with a piece of it lost, doubled or replaced.
    #[test]
    fn a_damaged_file_is_answered(
        start in 0..FULL.len(),
        length in 0_usize..60,
        put in prop_oneof![
            Just(String::new()), Just("{}".to_owned()), Just("[]".to_owned()), Just("null".to_owned()),
            Just("\"*:6432\"".to_owned()), Just("0".to_owned()), Just("- ".to_owned()), "[a-z0-9:{}, \n]{0,12}",
        ],
    ) {
        static FILES: std::sync::LazyLock<Files> = std::sync::LazyLock::new(Files::new);
        let end = (start + length).min(FULL.len());
        let text = format!("{}{put}{}", &FULL[..start], &FULL[end..]);
        match FILES.parse(&text) {
            Ok(config) => holds_together(&config),
            Err(errors) => prop_assert!(errors.count() > 0),
        }
    }
}
