//! Keys in every form, passphrase commands, several certificates, and what is asked of clients;
//! with the files that `openssl` makes.

use std::process::Command;

use super::*;

/// Runs `openssl` in the directory of the files.
fn openssl(files: &Files, arguments: &str) {
    let output = Command::new("openssl")
        .args(arguments.split_whitespace())
        .current_dir(files.0.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "openssl {arguments}: {said}");
}

/// A key and its certificate: `key` makes `k.key`; the passphrase, if any, is `geheim`.
fn made(key: &str) -> Files {
    let files = Files::new();
    openssl(&files, key);
    openssl(
        &files,
        "req -x509 -new -key k.key -passin pass:geheim -days 30 -subj /CN=k -out k.crt",
    );
    fs::set_permissions(files.path("k.key"), fs::Permissions::from_mode(0o600)).unwrap();
    files
}

fn with(pair: &str) -> String {
    MINIMAL.replace(
        "{cert_file: s.crt, key_file: s.key}",
        &format!("{{cert_file: k.crt, key_file: k.key{pair}}}"),
    )
}

#[test]
fn a_key_may_have_any_form() {
    for (form, header) in [
        ("genrsa -traditional -out k.key 2048", "RSA PRIVATE KEY"),
        (
            "genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out k.key",
            "BEGIN PRIVATE KEY",
        ),
        (
            "ecparam -name prime256v1 -genkey -out k.key",
            "BEGIN EC PARAMETERS",
        ),
        (
            "ecparam -name secp384r1 -genkey -noout -out k.key",
            "BEGIN EC PRIVATE KEY",
        ),
        ("genpkey -algorithm ed25519 -out k.key", "BEGIN PRIVATE KEY"),
    ] {
        let files = made(form);
        let text = fs::read_to_string(files.path("k.key")).unwrap();
        assert!(text.contains(header), "{form}: not the form that is meant");
        files.ok(&with(""));
    }
}

/// PBES2 as `openssl` has it: by default, with other ciphers, hashes and scrypt.
#[test]
fn a_key_may_be_under_a_passphrase() {
    let files = made(
        "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -aes-256-cbc -pass pass:geheim -out k.key",
    );
    files.secret("phrase", "geheim\nnot this\n");
    let command = |command: &str| with(&format!(", passphrase_command: \"{command}\""));
    for way in [
        "-v2 aes-256-cbc",
        "-v2 aes-128-cbc -v2prf hmacWithSHA384",
        "-v2 aes-256-cbc -v2prf hmacWithSHA512 -iter 100000",
        "-scrypt",
    ] {
        openssl(
            &files,
            &format!("pkcs8 -topk8 {way} -in k.key -passin pass:geheim -passout pass:geheim -out again.key"),
        );
        fs::rename(files.path("again.key"), files.path("k.key")).unwrap();
        // Run by a shell, in the directory of the file; its first line counts.
        let config = files.ok(&command("cat phrase"));
        assert_eq!(config.warnings(), [""; 0], "{way}");
    }
    files.ok(&command("printf 'geheim\\\\r\\\\n'"));
    files.ok(&MINIMAL.replace(
        "}]}",
        "}]}\nhttp: {tls: {cert_file: k.crt, key_file: k.key, passphrase_command: cat phrase}}",
    ));
    files.ok(&with_cluster_key(
        "server_tls: {sslcert: k.crt, sslkey: k.key, sslpassphrase_command: cat phrase}",
    ));
    files.one_error(
        &with(""),
        "key_file: k.key: the key is encrypted (set `passphrase_command`, a command that prints the passphrase)",
    );
    files.one_error(
        &with_cluster_key("server_tls: {sslcert: k.crt, sslkey: k.key}"),
        "(set `sslpassphrase_command`, a command that prints the passphrase)",
    );
    // Where there is no command, there is a way out.
    files.one_error(
        &MINIMAL.replace(
            "{endpoints: [\"http://db1:8008\"]}",
            "{endpoints: [\"https://db1:8008\"], cert_file: k.crt, key_file: k.key}",
        ),
        "`openssl pkey -in KEY -out PLAIN` decrypts it",
    );
}

/// Also where there is nothing to open: it would be wrong on the day the key is encrypted.
#[test]
fn a_passphrase_command_is_text_whatever_the_key_is() {
    let files = made("genpkey -algorithm ed25519 -out k.key");
    files.one_error(
        &with(", passphrase_command: [cat, phrase]"),
        "expected text, found a list",
    );
    files.one_error(&with(", passphrase_command: \"\""), "must not be empty");
}

#[test]
fn a_passphrase_command_that_fails() {
    let files = made(
        "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -aes-256-cbc -pass pass:geheim -out k.key",
    );
    let command = |command: &str| with(&format!(", passphrase_command: \"{command}\""));
    files.one_error(&command("echo falsch"), "the passphrase does not decrypt the key");
    let errors = files.errors(&command("echo streng; echo no vault today >&2; exit 3"));
    assert_eq!(
        errors,
        ["6: tls.certificates[0].passphrase_command: the command failed with exit code 3: no vault today"],
        "what it printed on standard output is nobody's business"
    );
    files.one_error(&command("kill -9 $$"), "the command was killed by signal 9");
    files.one_error(&command("true"), "the command printed nothing");
    files.one_error(&command("echo"), "the command printed nothing");
    files.one_error(
        &command("head -c 2000 /dev/zero | tr '\\\\0' x"),
        "the command printed a line longer than 1024 bytes",
    );
    files.one_error(&command(""), "must not be empty");
    // More than a pipe holds, on both sides.
    files.ok(&command(
        "echo geheim; head -c 300000 /dev/zero; head -c 300000 /dev/zero >&2",
    ));
    files.one_error(
        &with_cluster_key("server_tls: {sslpassphrase_command: cat phrase}"),
        "sslpassphrase_command: has no effect without `sslkey`",
    );
    // The key of `s.crt` needs none.
    let plain = files.ok(&MINIMAL.replace("s.key}", "s.key, passphrase_command: cat phrase}"));
    assert!(
        plain.warnings()[0].contains("tls.certificates[0].passphrase_command: has no effect"),
        "{:?}",
        plain.warnings()
    );
}

/// Real time: the one test that waits for the bound itself.
#[test]
fn a_passphrase_command_that_hangs_is_killed_with_what_it_started() {
    let files = made(
        "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -aes-256-cbc -pass pass:geheim -out k.key",
    );
    let text =
        with(", passphrase_command: \"echo waiting for a person >&2; sleep 600 & echo $! > child; wait\"");
    files.one_error(&text, "passphrase_command: the command did not end within 10 s");
    let child = fs::read_to_string(files.path("child")).unwrap();
    // The kernel takes a moment to end what was killed.
    let gone = (0..500).any(|_| {
        let status = fs::read_to_string(format!("/proc/{}/status", child.trim())).unwrap_or_default();
        std::thread::park_timeout(Duration::from_millis(10));
        status.is_empty() || status.contains("State:\tZ")
    });
    assert!(gone, "what it started is still there");
}

#[test]
fn a_locked_key_that_is_damaged_or_too_much_work() {
    let files = made(
        "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -aes-256-cbc -pass pass:geheim -out k.key",
    );
    let text = with(", passphrase_command: \"touch ran; echo geheim\"");
    openssl(
        &files,
        "pkcs8 -topk8 -v1 PBE-SHA1-3DES -in k.key -passin pass:geheim -passout pass:geheim -out old.key",
    );
    let whole = fs::read_to_string(files.path("k.key")).unwrap();
    files.secret("whole.key", &whole);
    fs::rename(files.path("old.key"), files.path("k.key")).unwrap();
    files.one_error(&text, "an old format that is not supported");
    openssl(
        &files,
        "pkcs8 -topk8 -v2 aes-128-cbc -v2prf hmacWithSHA1 -in whole.key -passin pass:geheim -passout pass:geheim -out k.key",
    );
    files.one_error(
        &text,
        "by an algorithm that is not supported (1.2.840.113549.2.7)",
    );
    fs::remove_file(files.path("ran")).unwrap();
    files.secret("k.key", &whole[..whole.len() / 2]);
    files.one_error(&text, "is not valid PEM: a section does not end");
    files.secret("k.key", &whole.replacen('\n', "\n!!", 1));
    files.one_error(&text, "the base64 text is damaged");
    assert!(!files.path("ran").exists(), "nobody was asked in vain");
}

#[test]
fn several_certificates() {
    let files = Files::new();
    files.certificate("t", |params| {
        params.subject_alt_names = vec![
            rcgen::SanType::DnsName("*.example".try_into().unwrap()),
            rcgen::SanType::IpAddress("::1".parse().unwrap()),
        ];
    });
    let pair = |name: &str| format!("{{cert_file: {name}.crt, key_file: {name}.key}}");
    let list = |text: &str| MINIMAL.replace(&pair("s"), text);
    let config = files.ok(&list(&format!("{}, {}", pair("s"), pair("t"))));
    let names: Vec<_> = config
        .tls
        .unwrap()
        .certificates
        .iter()
        .map(|served| served.pair.leaf().names)
        .collect();
    assert_eq!(names, [vec!["localhost"], vec!["*.example", "::1"]]);
    let errors = files.errors(&list(&format!("{}, {}", pair("gone"), pair("lost"))));
    assert_eq!(errors.len(), 4, "{errors:#?}");
    let many = vec![pair("s"); 65].join(", ");
    files.one_error(&list(&many), "has 65 elements, at most 64 are allowed");
}

#[test]
fn what_is_asked_of_clients() {
    let files = Files::new();
    let tls = |keys: &str| MINIMAL.replace("tls: {", &format!("tls: {{{keys}, "));
    assert!(!files.ok(MINIMAL).tls.unwrap().asks_clients);
    assert!(files.ok(&tls("client_ca_file: ca.crt")).tls.unwrap().asks_clients);
    files.one_error(&tls("client_ca_file: pw"), "pw: contains no certificate");
    files.one_error(&tls("client_ca_file: gone"), "gone: does not exist");
    files.one_error(
        &tls("client_crl_file: ca.crl"),
        "client_crl_file: has no effect without `client_ca_file`",
    );
    let lists = "client_ca_file: ca.crt, client_crl_file: ca.crl";
    files.one_error(&tls(lists), "ca.crl: does not exist");
    files.write("ca.crl", "nothing", 0o644);
    files.one_error(&tls(lists), "ca.crl: contains no revocation list");
    files.write(
        "ca.crl",
        "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n",
        0o644,
    );
    files.one_error(&tls(lists), "ca.crl: revocation list 1 cannot be read");
}

#[test]
fn the_password_is_in_a_file() {
    let files = Files::new();
    let text = MINIMAL.replace("password_file: pw", "password: secret");
    files.one_error(&text, "did you mean `password_file`?");
}
