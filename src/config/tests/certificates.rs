//! Certificates, keys and secrets, and a handshake with them.

use super::*;

#[test]
fn certificates_that_would_fail_in_service() {
    let files = Files::new();
    let with = |cert: &str, key: &str| MINIMAL.replace("s.crt", cert).replace("s.key", key);
    files.one_error(
        &with("gone.crt", "s.key"),
        "tls.certificates[0].cert_file: gone.crt: does not exist",
    );
    assert_eq!(
        files.errors(&with("gone.crt", "gone.key")).len(),
        2,
        "both files are looked at"
    );
    files.one_error(
        &with("s.crt", "ca.key"),
        "key_file: does not belong to the first certificate of s.crt",
    );
    files.one_error(&with("pw", "s.key"), "pw: contains no certificate");
    files.one_error(&with("s.crt", "pw"), "pw: contains no private key");
    files.one_error(&with("\"\"", "s.key"), "must not be empty");
    files.one_error(&with(".", "s.key"), "is a directory");
    files.certificate("early", |params| {
        params.not_before = rcgen::date_time_ymd(2300, 1, 1);
    });
    files.one_error(&with("early.crt", "early.key"), "is not valid before");
    files.certificate("late", |params| {
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    });
    files.one_error(&with("late.crt", "late.key"), "has expired");
    let pem = |label: &str| format!("-----BEGIN {label}-----\nAAAA\n-----END {label}-----\n");
    files.write("bad.crt", &pem("CERTIFICATE"), 0o644);
    files.one_error(
        &with("bad.crt", "s.key"),
        "bad.crt: certificate 1 is not a valid X.509 certificate",
    );
    files.write("cut.crt", "-----BEGIN CERTIFICATE-----\nAAAA\n", 0o644);
    files.one_error(
        &with("cut.crt", "s.key"),
        "cut.crt: is not valid PEM: a section does not end",
    );
    files.secret("bad.key", &pem("PRIVATE KEY"));
    files.one_error(
        &with("s.crt", "bad.key"),
        "bad.key: the private key cannot be used",
    );
    files.secret("locked.key", &pem("ENCRYPTED PRIVATE KEY"));
    files.one_error(&with("s.crt", "locked.key"), "locked.key: the key is encrypted");
    let old =
        "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nAAAA\n-----END RSA PRIVATE KEY-----\n";
    files.secret("old.key", old);
    files.one_error(&with("s.crt", "old.key"), "old.key: the key is encrypted");
    files.write("big.crt", &"x".repeat(1024 * 1024 + 1), 0o644);
    files.one_error(&with("big.crt", "s.key"), "big.crt: is larger than 1024 KiB");
    files.one_error(
        &with_cluster_key("server_tls: {sslrootcert: bad.crt}"),
        "bad.crt: certificate 1 cannot be used",
    );
    files.one_error(
        &with_cluster_key("server_tls: {sslrootcert: gone.crt}"),
        "gone.crt: does not exist",
    );
}

#[test]
fn secrets_that_others_can_read_are_refused() {
    let files = Files::new();
    for mode in [0o604, 0o602, 0o601, 0o644] {
        files.write("pw", "geheim", mode);
        files.one_error(
            MINIMAL,
            &format!("pw: is open to every user (mode {mode:04o}) (run `chmod o-rwx` on it)"),
        );
    }
    files.write("pw", "geheim", 0o660);
    files.ok(MINIMAL);
    files.write("s.key", &fs::read_to_string(files.path("s.key")).unwrap(), 0o644);
    files.one_error(MINIMAL, "s.key: is open to every user");
    files.certificate("s", |_| {});
    files.write("users", "", 0o644);
    files.one_error(
        &format!("{MINIMAL}auth: {{users_file: users}}"),
        "users: is open to every user",
    );
}

#[test]
fn secrets_are_stripped_of_one_newline_and_never_empty() {
    let files = Files::new();
    for (contents, expected) in [("a\r\n", "a"), ("a\n\n", "a\n"), (" a ", " a "), ("a", "a")] {
        files.secret("pw", contents);
        let config = files.ok(MINIMAL);
        let password = config.clusters["main"].service_account.password.clone().unwrap();
        assert_eq!(password.expose(), expected.as_bytes(), "{contents:?}");
    }
    for contents in ["", "\n", "\r\n"] {
        files.secret("pw", contents);
        files.one_error(MINIMAL, "pw: is empty");
    }
    files.secret("pw", &"x".repeat(64 * 1024 + 1));
    files.one_error(MINIMAL, "pw: is larger than 64 KiB");
    files.one_error(
        &MINIMAL.replace(": pw", ": /dev/null"),
        "/dev/null: is not a regular file",
    );
    files.one_error(&MINIMAL.replace(": pw", ": ~/pw"), "`~` is not expanded");
}

/// One handshake in memory; the version and protocol agreed.
fn handshake(
    files: &Files,
    server: &Arc<rustls::ServerConfig>,
    version: &'static rustls::SupportedProtocolVersion,
    protocol: &[u8],
) -> Result<(rustls::ProtocolVersion, Option<Vec<u8>>), rustls::Error> {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(files.path("s.crt")).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    let name = ServerName::try_from("localhost").unwrap();
    let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut server = rustls::ServerConnection::new(server.clone()).unwrap();
    let mut bytes = Vec::new();
    for _ in 0..10 {
        bytes.clear();
        client.write_tls(&mut bytes).unwrap();
        server.read_tls(&mut bytes.as_slice()).unwrap();
        server.process_new_packets()?;
        bytes.clear();
        server.write_tls(&mut bytes).unwrap();
        client.read_tls(&mut bytes.as_slice()).unwrap();
        client.process_new_packets()?;
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    // No record carries more than 8 KiB of plaintext.
    server.writer().write_all(&vec![0; 20_000]).unwrap();
    bytes.clear();
    while server.wants_write() {
        server.write_tls(&mut bytes).unwrap();
    }
    let (mut rest, mut received) = (bytes.as_slice(), 0);
    while let Some(header) = rest.first_chunk::<5>() {
        let length = 5 + usize::from(u16::from_be_bytes([header[3], header[4]]));
        let (mut record, after) = rest.split_at(length);
        let mut carried = 0;
        while !record.is_empty() {
            client.read_tls(&mut record).unwrap();
            carried = client.process_new_packets()?.plaintext_bytes_to_read();
        }
        assert!((1..=8192).contains(&carried), "{carried}");
        client.reader().read_exact(&mut vec![0; carried]).unwrap();
        received += carried;
        rest = after;
    }
    assert_eq!(received, 20_000);
    let protocol = client.alpn_protocol().map(<[u8]>::to_vec);
    Ok((client.protocol_version().unwrap(), protocol))
}

#[test]
fn tls_towards_clients() {
    use rustls::ProtocolVersion::{TLSv1_2, TLSv1_3};
    use rustls::version::{TLS12, TLS13};
    let files = Files::new();
    let both = files.ok(MINIMAL).tls.unwrap();
    let server_config = &both.certificates[0].server_config;
    assert_eq!(server_config.send_tls13_tickets, 0);
    assert!(!server_config.session_storage.can_cache());
    let postgresql = b"postgresql".as_slice();
    let agreed = |config: &Config, version, protocol| {
        handshake(
            &files,
            &config.tls.as_ref().unwrap().certificates[0].server_config,
            version,
            protocol,
        )
    };
    let config = files.ok(MINIMAL);
    assert_eq!(
        agreed(&config, &TLS12, postgresql),
        Ok((TLSv1_2, Some(postgresql.to_vec())))
    );
    assert_eq!(
        agreed(&config, &TLS13, postgresql),
        Ok((TLSv1_3, Some(postgresql.to_vec())))
    );
    assert!(
        agreed(&config, &TLS13, b"h2").is_err(),
        "only PostgreSQL is spoken here"
    );
    for written in ["1.3", "\"1.3\""] {
        let newest = files.ok(&MINIMAL.replace("tls: {", &format!("tls: {{min_version: {written}, ")));
        assert!(agreed(&newest, &TLS12, postgresql).is_err());
        assert!(agreed(&newest, &TLS13, postgresql).is_ok());
    }
}
