//! The backend room against a real `PostgreSQL`.
#![allow(clippy::unwrap_used)]

use std::net::TcpListener;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::{hmac, pbkdf2};
use bytes::Bytes;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::time::Instant;

use trunkline::auth::md5::Md5Hash;
use trunkline::auth::scram::{ClientKey, Verifier};
use trunkline::backend::query::{Row, simple_query};
use trunkline::backend::{
    ClientReply, ConnectError, Credential, SeenRole, ServerConnection, ServerStream, Target, TlsClient,
    connect,
};
use trunkline::config::{
    AuthMethod, ChannelBinding, RequireAuth, Secret, ServerOptions, ServerTls, SslMode, SslNegotiation,
};
use trunkline::wire::startup::ProtocolVersion;

#[path = "cluster/mod.rs"]
mod cluster;

use cluster::postgres::{Options, Postgres};

const BIN: &str = "/usr/lib/postgresql/15/bin";

const HBA: &str = "
host      all         postgres     127.0.0.0/8  trust
host      all         scram        127.0.0.0/8  scram-sha-256
hostssl   all         only_tls     127.0.0.0/8  scram-sha-256
hostnossl all         only_plain   127.0.0.0/8  scram-sha-256
host      all         cleartext    127.0.0.0/8  password
host      all         old          127.0.0.0/8  md5
host      all         rejected     127.0.0.0/8  reject
hostssl   all         certified    127.0.0.0/8  cert
";

const ROLES: &str = "
CREATE ROLE scram LOGIN PASSWORD 'secret';
CREATE ROLE only_tls LOGIN PASSWORD 'secret';
CREATE ROLE only_plain LOGIN PASSWORD 'secret';
CREATE ROLE cleartext LOGIN PASSWORD 'secret';
CREATE ROLE rejected LOGIN PASSWORD 'secret';
CREATE ROLE certified LOGIN;
SET password_encryption = md5;
CREATE ROLE old LOGIN PASSWORD 'secret';
";

/// A certificate authority, and what it has signed.
struct Certificates {
    root: CertificateDer<'static>,
    other_root: CertificateDer<'static>,
    server: CertificateDer<'static>,
    client: Arc<trunkline::config::KeyPair>,
}

/// A server of its own, stopped and removed when dropped.
struct Server {
    directory: tempfile::TempDir,
    port: u16,
    certificates: Certificates,
}

/// Runs a program as a user that `PostgreSQL` accepts: not as root.
fn run(program: &str, arguments: &[&str]) -> Output {
    let is_root =
        std::fs::metadata("/proc/self").is_ok_and(|me| std::os::unix::fs::MetadataExt::uid(&me) == 0);
    let mut command = if is_root {
        let mut command = Command::new("runuser");
        command.args(["-u", "postgres", "--", program]);
        command
    } else {
        Command::new(program)
    };
    command.args(arguments).current_dir("/").output().unwrap()
}

fn succeed(program: &str, arguments: &[&str]) {
    let output = run(program, arguments);
    assert!(
        output.status.success(),
        "{program}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

fn authority(name: &str) -> (CertificateDer<'static>, String, Issuer<'static, KeyPair>) {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    (
        certificate.der().clone(),
        certificate.pem(),
        Issuer::new(params, key),
    )
}

fn make_certificates(directory: &Path) -> Certificates {
    let (root, root_pem, issuer) = authority("trunkline test");
    let (other_root, ..) = authority("somebody else");
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
    let server = params.signed_by(&key, &issuer).unwrap();
    std::fs::write(directory.join("root.crt"), root_pem).unwrap();
    std::fs::write(directory.join("server.crt"), server.pem()).unwrap();
    std::fs::write(directory.join("server.key"), key.serialize_pem()).unwrap();

    let client_key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "certified");
    let client = params.signed_by(&client_key, &issuer).unwrap();
    Certificates {
        root,
        other_root,
        server: server.der().clone(),
        client: Arc::new(trunkline::config::KeyPair {
            cert_file: PathBuf::new(),
            chain: vec![client.der().clone()],
            key: PrivateKeyDer::try_from(client_key.serialize_der()).unwrap(),
        }),
    }
}

impl Server {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let certificates = make_certificates(path);
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let at = |name: &str| path.join(name).to_str().unwrap().to_owned();
        std::fs::write(at("pg_hba.conf"), HBA).unwrap();
        // Nothing to change for an ordinary user.
        let _ = Command::new("chown").args(["-R", "postgres"]).arg(path).status();
        succeed("chmod", &["600", &at("server.key")]);
        let initdb = format!("{BIN}/initdb");
        succeed(
            &initdb,
            &[
                "-D",
                &at("data"),
                "-U",
                "postgres",
                "-A",
                "trust",
                "-E",
                "UTF8",
                "--locale=C",
                "--no-sync",
            ],
        );
        let options = format!(
            "-p {port} -c listen_addresses=127.0.0.1,127.0.0.2 -c unix_socket_directories= -c fsync=off \
             -c ssl_cert_file={} -c ssl_key_file={} -c ssl_ca_file={} -c hba_file={}",
            at("server.crt"),
            at("server.key"),
            at("root.crt"),
            at("pg_hba.conf"),
        );
        std::fs::OpenOptions::new()
            .append(true)
            .open(path.join("data/postgresql.conf"))
            .and_then(|mut file| std::io::Write::write_all(&mut file, b"ssl = on\n"))
            .unwrap();
        let pg_ctl = format!("{BIN}/pg_ctl");
        succeed(
            &pg_ctl,
            &["-D", &at("data"), "-w", "-l", &at("log"), "-o", &options, "start"],
        );
        let server = Self {
            directory,
            port,
            certificates,
        };
        server.superuser(ROLES).await;
        server
    }

    fn tls(sslmode: SslMode, root: Option<&CertificateDer<'static>>) -> Arc<TlsClient> {
        let settings = ServerTls {
            sslmode,
            sslnegotiation: SslNegotiation::Postgres,
            channel_binding: ChannelBinding::Prefer,
            roots: root.map(|root| vec![root.clone()]),
            client_certificate: None,
            server_name: None,
            require_auth: everything(),
        };
        TlsClient::new(&settings).unwrap()
    }

    async fn connect_at(
        &self,
        host: &str,
        user: &str,
        credential: &Credential,
        tls: &Arc<TlsClient>,
    ) -> Result<ServerConnection, ConnectError> {
        connect_as(host, self.port, user, credential, tls).await
    }

    async fn connect(&self, user: &str, sslmode: SslMode) -> Result<ServerConnection, ConnectError> {
        self.connect_at("127.0.0.1", user, &password(), &Self::tls(sslmode, None))
            .await
    }

    async fn superuser(&self, sql: &str) -> Vec<Row> {
        let mut connection = self.connect("postgres", SslMode::Disable).await.unwrap();
        simple_query(&mut connection, sql, 100, soon()).await.unwrap()
    }
}

async fn connect_as(
    host: &str,
    port: u16,
    user: &str,
    credential: &Credential,
    tls: &Arc<TlsClient>,
) -> Result<ServerConnection, ConnectError> {
    let options = ServerOptions {
        connect_timeout: Duration::from_secs(3),
        keepalive: Some(Duration::from_secs(15)),
        tcp_user_timeout: Some(Duration::from_secs(30)),
    };
    let parameters = [
        (
            Bytes::from_static(b"user"),
            Bytes::copy_from_slice(user.as_bytes()),
        ),
        (Bytes::from_static(b"database"), Bytes::from_static(b"postgres")),
    ];
    let target = Target {
        host,
        port,
        tls,
        options: &options,
        version: ProtocolVersion::V3_2,
        parameters: &parameters,
        credential,
    };
    connect(target, Instant::now() + Duration::from_secs(30)).await
}

impl Drop for Server {
    fn drop(&mut self) {
        let data = self.directory.path().join("data");
        run(
            &format!("{BIN}/pg_ctl"),
            &["-D", data.to_str().unwrap(), "-w", "-m", "immediate", "stop"],
        );
    }
}

fn password() -> Credential {
    Credential::Password(Secret::new("secret"))
}

/// These tests are of what each method does. What is refused by default is tested elsewhere.
fn everything() -> RequireAuth {
    use AuthMethod::{Md5, None, Password, Scram};
    RequireAuth::Only(vec![None, Password, Md5, Scram])
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

fn text(row: &Row) -> String {
    String::from_utf8(row[0].clone().unwrap()).unwrap()
}

fn hba_hint(error: &ConnectError) -> String {
    let ClientReply::Own(reply) = error.client_reply("db1") else {
        panic!("{error}")
    };
    assert_eq!(reply.code.as_str(), "28000");
    assert!(
        error
            .to_string()
            .contains("pg_hba.conf needs, above any line that rejects"),
        "{error}"
    );
    reply.hint.unwrap()
}

#[tokio::test]
async fn connections_to_postgresql() {
    let server = Server::start().await;
    every_sslmode(&server).await;
    certificates(&server).await;
    logins(&server).await;
    client_keys(&server).await;
    md5(&server).await;
    channel_binding(&server).await;
    certificates_of_all_kinds(&server).await;
    direct_tls_is_refused(&server).await;
    pg_hba(&server).await;
    errors_and_queries(&server).await;
    cancels(&server, SslMode::Disable).await;
    cancels(&server, SslMode::Require).await;
    without_tls(&server).await;
}

async fn every_sslmode(server: &Server) {
    for (mode, user, expected) in [
        (SslMode::Disable, "scram", Some(false)),
        (SslMode::Disable, "only_plain", Some(false)),
        (SslMode::Disable, "only_tls", None),
        (SslMode::Allow, "scram", Some(false)),
        (SslMode::Allow, "only_plain", Some(false)),
        (SslMode::Allow, "only_tls", Some(true)),
        (SslMode::Prefer, "scram", Some(true)),
        (SslMode::Prefer, "only_plain", Some(false)),
        (SslMode::Prefer, "only_tls", Some(true)),
        (SslMode::Require, "scram", Some(true)),
        (SslMode::Require, "only_plain", None),
        (SslMode::Require, "only_tls", Some(true)),
    ] {
        let result = server.connect(user, mode).await;
        assert_eq!(
            result.as_ref().ok().map(|connection| connection.is_tls),
            expected,
            "{mode:?} {user} {result:?}"
        );
        let Ok(mut connection) = result else { continue };
        let sql = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
        let rows = simple_query(&mut connection, sql, 1, soon()).await.unwrap();
        assert_eq!(text(&rows[0]) == "t", connection.is_tls);
    }
}

async fn certificates(server: &Server) {
    let Certificates {
        root,
        other_root,
        server: own,
        ..
    } = &server.certificates;
    for (mode, root, host, good) in [
        (SslMode::Require, Some(root), "127.0.0.1", true),
        (SslMode::Require, Some(root), "127.0.0.2", true),
        (SslMode::Require, Some(other_root), "127.0.0.1", false),
        (SslMode::Require, None, "127.0.0.2", true),
        (SslMode::VerifyCa, Some(root), "127.0.0.1", true),
        (SslMode::VerifyCa, Some(root), "127.0.0.2", true),
        (SslMode::VerifyCa, Some(own), "127.0.0.2", true),
        (SslMode::VerifyCa, Some(other_root), "127.0.0.1", false),
        (SslMode::VerifyFull, Some(root), "127.0.0.1", true),
        (SslMode::VerifyFull, Some(root), "localhost", true),
        (SslMode::VerifyFull, Some(root), "127.0.0.2", false),
        (SslMode::VerifyFull, Some(own), "127.0.0.1", true),
        (SslMode::VerifyFull, Some(own), "127.0.0.2", false),
        (SslMode::VerifyFull, Some(other_root), "127.0.0.1", false),
    ] {
        let result = server
            .connect_at(host, "scram", &password(), &Server::tls(mode, root))
            .await;
        match result {
            Ok(connection) => assert!(good && connection.is_tls, "{mode:?} {host}"),
            Err(ConnectError::Certificate { .. }) => assert!(!good, "{mode:?} {host}"),
            Err(error) => panic!("{mode:?} {host}: {error}"),
        }
    }
    // As in libpq: a certificate that is not accepted makes `prefer` fall back.
    let prefer = Server::tls(SslMode::Prefer, Some(other_root));
    assert!(
        !server
            .connect_at("127.0.0.1", "scram", &password(), &prefer)
            .await
            .unwrap()
            .is_tls
    );

    let settings = ServerTls {
        sslmode: SslMode::VerifyFull,
        sslnegotiation: SslNegotiation::Postgres,
        channel_binding: ChannelBinding::Prefer,
        roots: Some(vec![root.clone()]),
        client_certificate: Some(Arc::clone(&server.certificates.client)),
        server_name: None,
        require_auth: RequireAuth::Safe,
    };
    let with_certificate = TlsClient::new(&settings).unwrap();
    server
        .connect_at("127.0.0.1", "certified", &Credential::None, &with_certificate)
        .await
        .unwrap();
    let without = Server::tls(SslMode::Require, None);
    let error = server
        .connect_at("127.0.0.1", "certified", &Credential::None, &without)
        .await
        .unwrap_err();
    assert!(matches!(error, ConnectError::Server(_)), "{error}");
}

async fn logins(server: &Server) {
    let connection = server.connect("scram", SslMode::Disable).await.unwrap();
    assert_eq!(connection.role, SeenRole::Writable);
    assert_eq!(
        connection.version,
        ProtocolVersion::V3_0,
        "the server is older than what was asked for"
    );
    assert!(
        connection
            .parameters
            .iter()
            .any(|(name, value)| name == "session_authorization" && value == "scram")
    );
    assert!(connection.leftover.is_empty());
    assert!(connection.process_id.is_some() && connection.cancel.is_some());

    let plain = Server::tls(SslMode::Disable, None);
    let wrong = Credential::Password(Secret::new("wrong"));
    let error = server
        .connect_at("127.0.0.1", "scram", &wrong, &plain)
        .await
        .unwrap_err();
    assert!(
        matches!(&error, ConnectError::Server(error) if error.code == "28P01"),
        "{error}"
    );
    assert!(!error.counts_against_member() && !error.is_temporary_or_elsewhere());

    let error = server.connect("cleartext", SslMode::Disable).await.unwrap_err();
    assert!(matches!(error, ConnectError::CleartextRefused), "{error}");
    server.connect("cleartext", SslMode::Require).await.unwrap();
}

/// A role whose password is stored as md5, with the password and with what is stored.
async fn md5(server: &Server) {
    let rows = server
        .superuser("SELECT rolpassword FROM pg_authid WHERE rolname = 'old'")
        .await;
    let stored = Md5Hash::parse(text(&rows[0]).as_bytes()).unwrap();
    assert_eq!(stored, Md5Hash::of(b"secret", b"old"));
    for mode in [SslMode::Disable, SslMode::Require] {
        let tls = Server::tls(mode, None);
        for credential in [password(), Credential::Md5(stored.clone())] {
            let connection = server.connect_at("127.0.0.1", "old", &credential, &tls).await;
            assert_eq!(connection.unwrap().is_tls, mode == SslMode::Require);
        }
        for wrong in [
            Credential::Password(Secret::new("wrong")),
            Credential::Md5(Md5Hash::of(b"secret", b"other")),
        ] {
            let error = server
                .connect_at("127.0.0.1", "old", &wrong, &tls)
                .await
                .unwrap_err();
            assert!(
                matches!(&error, ConnectError::Server(error) if error.code == "28P01"),
                "{error}"
            );
        }
    }
    let (key, verifier) = client_key(server).await;
    let key = Credential::ClientKey(ClientKey {
        key: key.into(),
        verifier: Arc::new(verifier),
    });
    let error = server
        .connect_at("127.0.0.1", "old", &key, &Server::tls(SslMode::Disable, None))
        .await
        .unwrap_err();
    assert!(
        matches!(error, ConnectError::UnsupportedMethod { method: "md5" }),
        "{error}"
    );
}

/// `channel_binding` against a server that can, by every way in.
async fn channel_binding(server: &Server) {
    let (key, verifier) = client_key(server).await;
    let key = Credential::ClientKey(ClientKey {
        key: key.into(),
        verifier: Arc::new(verifier),
    });
    let certified = Settings {
        client_certificate: Some(Arc::clone(&server.certificates.client)),
        ..Settings::require()
    };
    for (user, credential, settings, good) in [
        ("scram", password(), Settings::require(), true),
        ("scram", key, Settings::require(), true),
        ("only_tls", password(), Settings::require(), true),
        ("old", password(), Settings::require(), false),
        ("cleartext", password(), Settings::require(), false),
        ("postgres", Credential::None, Settings::require(), false),
        ("certified", Credential::None, certified, false),
    ] {
        let tls = settings.tls();
        match server.connect_at("127.0.0.1", user, &credential, &tls).await {
            Ok(connection) => assert!(good && connection.is_tls, "{user}"),
            Err(ConnectError::ChannelBinding { .. }) => assert!(!good, "{user}"),
            Err(error) => panic!("{user}: {error}"),
        }
    }
    for channel_binding in [ChannelBinding::Disable, ChannelBinding::Prefer] {
        let tls = Settings {
            channel_binding,
            ..Settings::require()
        };
        for user in ["scram", "old", "cleartext", "postgres"] {
            let result = server
                .connect_at("127.0.0.1", user, &password(), &tls.tls())
                .await;
            assert!(result.is_ok(), "{channel_binding:?} {user} {result:?}");
        }
    }
    for sslmode in [SslMode::Allow, SslMode::Prefer] {
        let settings = Settings {
            sslmode,
            ..Settings::require()
        };
        let connection = server
            .connect_at("127.0.0.1", "scram", &password(), &settings.tls())
            .await
            .unwrap();
        assert!(connection.is_tls, "{sslmode:?}");
    }
    let none = Settings {
        sslmode: SslMode::Disable,
        ..Settings::require()
    };
    let error = server
        .connect_at("127.0.0.1", "scram", &password(), &none.tls())
        .await
        .unwrap_err();
    assert!(matches!(error, ConnectError::ChannelBinding { .. }), "{error}");
}

/// The server's hash of its certificate is ours, whatever it was signed with; where it has none,
/// nothing is bound.
async fn certificates_of_all_kinds(server: &Server) {
    let path = server.directory.path();
    let (certificate, key) = (path.join("server.crt"), path.join("server.key"));
    let before = (std::fs::read(&certificate).unwrap(), std::fs::read(&key).unwrap());
    for (arguments, has_hash) in [
        ("-newkey rsa:2048 -sha1", true),
        ("-newkey rsa:2048 -sha384", true),
        ("-newkey rsa:2048 -sha256 -sigopt rsa_padding_mode:pss", true),
        ("-newkey rsa:2048 -sha512 -sigopt rsa_padding_mode:pss", true),
        ("-newkey ed25519", false),
    ] {
        let output = Command::new("openssl")
            .args(["req", "-x509", "-nodes", "-subj", "/CN=127.0.0.1"])
            .args(arguments.split(' '))
            .arg("-out")
            .arg(&certificate)
            .arg("-keyout")
            .arg(&key)
            .output()
            .unwrap();
        assert!(output.status.success(), "{arguments}: {output:?}");
        await_certificate(server).await;
        let (required, preferred) = (
            Settings::require(),
            Settings {
                channel_binding: ChannelBinding::Prefer,
                ..Settings::require()
            },
        );
        let result = server
            .connect_at("127.0.0.1", "scram", &password(), &required.tls())
            .await;
        match result {
            Ok(_) => assert!(has_hash, "{arguments}"),
            Err(ConnectError::ChannelBinding { .. }) => assert!(!has_hash, "{arguments}"),
            Err(error) => panic!("{arguments}: {error}"),
        }
        let result = server
            .connect_at("127.0.0.1", "scram", &password(), &preferred.tls())
            .await;
        assert!(result.is_ok(), "{arguments}: {result:?}");
    }
    std::fs::write(certificate, before.0).unwrap();
    std::fs::write(key, before.1).unwrap();
    await_certificate(server).await;
}

/// Until the server shows what its file says.
async fn await_certificate(server: &Server) {
    let file = std::fs::read(server.directory.path().join("server.crt")).unwrap();
    let expected = CertificateDer::from_pem_slice(&file).unwrap();
    server.superuser("SELECT pg_reload_conf()").await;
    let until = soon();
    loop {
        assert!(Instant::now() < until, "the server keeps its old certificate");
        let connection = server.connect("cleartext", SslMode::Require).await.unwrap();
        let ServerStream::Tls(stream) = &*connection.stream else {
            panic!("without TLS")
        };
        if stream.get_ref().1.peer_certificates().unwrap()[0] == expected {
            return;
        }
    }
}

/// `PostgreSQL` 15 does not know direct TLS, and the error says so.
async fn direct_tls_is_refused(server: &Server) {
    let settings = Settings {
        sslnegotiation: SslNegotiation::Direct,
        ..Settings::require()
    };
    let error = server
        .connect_at("127.0.0.1", "scram", &password(), &settings.tls())
        .await
        .unwrap_err();
    assert!(matches!(error, ConnectError::DirectTls { .. }), "{error}");
    assert!(error.to_string().contains("since version 17"), "{error}");
}

/// `server_tls` as a test needs it.
struct Settings {
    sslmode: SslMode,
    sslnegotiation: SslNegotiation,
    channel_binding: ChannelBinding,
    roots: Option<Vec<CertificateDer<'static>>>,
    client_certificate: Option<Arc<trunkline::config::KeyPair>>,
}

impl Settings {
    /// TLS and channel binding.
    fn require() -> Self {
        Self {
            sslmode: SslMode::Require,
            sslnegotiation: SslNegotiation::Postgres,
            channel_binding: ChannelBinding::Require,
            roots: None,
            client_certificate: None,
        }
    }

    fn tls(&self) -> Arc<TlsClient> {
        TlsClient::new(&ServerTls {
            sslmode: self.sslmode,
            sslnegotiation: self.sslnegotiation,
            channel_binding: self.channel_binding,
            roots: self.roots.clone(),
            client_certificate: self.client_certificate.clone(),
            server_name: None,
            require_auth: everything(),
        })
        .unwrap()
    }
}

/// Direct TLS and channel binding at once, and a cancel request the same way.
#[tokio::test]
async fn connections_to_postgresql_18() {
    let server = tokio::task::spawn_blocking(|| {
        Postgres::start(&Options {
            version_18: true,
            hba: Some("hostssl all app 127.0.0.0/8 scram-sha-256".to_owned()),
            ..Options::default()
        })
    })
    .await
    .unwrap();
    let root = std::fs::read(server.certificates.file("ca.crt")).unwrap();
    let root = CertificateDer::from_pem_slice(&root).unwrap();
    let host = server.address.to_string();
    let app = Credential::Password(Secret::new("app"));
    for sslnegotiation in [SslNegotiation::Postgres, SslNegotiation::Direct] {
        for channel_binding in [
            ChannelBinding::Require,
            ChannelBinding::Prefer,
            ChannelBinding::Disable,
        ] {
            let settings = Settings {
                sslmode: SslMode::VerifyFull,
                sslnegotiation,
                channel_binding,
                roots: Some(vec![root.clone()]),
                client_certificate: None,
            };
            let connection = connect_as(&host, Postgres::PORT, "app", &app, &settings.tls())
                .await
                .unwrap();
            assert!(connection.is_tls);
            assert_eq!(connection.version, ProtocolVersion::V3_2);
            let alpn = match &*connection.stream {
                ServerStream::Tls(stream) => stream.get_ref().1.alpn_protocol(),
                ServerStream::Plain(_) => None,
            };
            assert_eq!(alpn, Some(&b"postgresql"[..]));
            cancel_a_sleep(connection, &server).await;
        }
    }
    let other = Settings {
        sslmode: SslMode::VerifyFull,
        sslnegotiation: SslNegotiation::Direct,
        ..Settings::require()
    };
    let other = Settings {
        roots: Some(vec![authority("somebody else").0]),
        ..other
    };
    let error = connect_as(&host, Postgres::PORT, "app", &app, &other.tls())
        .await
        .unwrap_err();
    assert!(matches!(error, ConnectError::Certificate { .. }), "{error}");
}

async fn cancel_a_sleep(mut connection: ServerConnection, server: &Postgres) {
    let cancel = connection.cancel.clone().unwrap();
    assert_eq!(cancel.key.len(), 32, "protocol 3.2");
    let pid = connection.process_id.unwrap();
    let sleeping = simple_query(&mut connection, "SELECT pg_sleep(60)", 1, soon());
    let (slept, ()) = tokio::join!(sleeping, async {
        let sql = format!("SELECT 1 FROM pg_stat_activity WHERE pid = {pid} AND wait_event = 'PgSleep'");
        while server.sql(&sql).is_empty() {
            tokio::task::yield_now().await;
        }
        cancel.send(Duration::from_secs(20)).await.unwrap();
    });
    let error = slept.unwrap_err();
    assert!(
        matches!(&error, ConnectError::Server(error) if error.code == "57014"),
        "{error}"
    );
}

/// The client's key of the role `scram`, and its verifier.
async fn client_key(server: &Server) -> ([u8; 32], Verifier) {
    let rows = server
        .superuser("SELECT rolpassword FROM pg_authid WHERE rolname = 'scram'")
        .await;
    let verifier = Verifier::parse(&text(&rows[0])).unwrap();
    let mut salted = [0; 32];
    let iterations = NonZeroU32::new(verifier.iterations).unwrap();
    pbkdf2::derive(
        pbkdf2::PBKDF2_HMAC_SHA256,
        iterations,
        &verifier.salt,
        b"secret",
        &mut salted,
    );
    let key: [u8; 32] = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &salted), b"Client Key")
        .as_ref()
        .try_into()
        .unwrap();
    (key, verifier)
}

async fn client_keys(server: &Server) {
    let (key, verifier) = client_key(server).await;
    let credential = |key: [u8; 32], verifier: Verifier| {
        Credential::ClientKey(ClientKey {
            key: key.into(),
            verifier: Arc::new(verifier),
        })
    };

    let plain = Server::tls(SslMode::Disable, None);
    let good = credential(key, verifier.clone());
    server
        .connect_at("127.0.0.1", "scram", &good, &plain)
        .await
        .unwrap();
    server
        .connect_at("127.0.0.1", "scram", &good, &Server::tls(SslMode::Require, None))
        .await
        .unwrap();

    let mut other_salt = verifier.clone();
    other_salt.salt[0] ^= 1;
    let mut other_iterations = verifier.clone();
    other_iterations.iterations += 1;
    for wrong in [
        credential(key, other_salt),
        credential(key, other_iterations),
        credential([7; 32], verifier),
    ] {
        let error = server
            .connect_at("127.0.0.1", "scram", &wrong, &plain)
            .await
            .unwrap_err();
        assert!(matches!(error, ConnectError::VerifierDiffers { .. }), "{error}");
    }
}

async fn pg_hba(server: &Server) {
    let error = server.connect("stranger", SslMode::Disable).await.unwrap_err();
    let hint = hba_hint(&error);
    assert!(
        hint.contains("host postgres stranger 127.0.0.1/32 scram-sha-256"),
        "{hint}"
    );
    let error = server.connect("rejected", SslMode::Require).await.unwrap_err();
    let hint = hba_hint(&error);
    assert!(
        hint.contains("hostssl postgres rejected 127.0.0.1/32 scram-sha-256"),
        "{hint}"
    );
    assert!(!error.counts_against_member());
    // Both attempts of `prefer` fail: the encrypted one is shown.
    let error = server.connect("stranger", SslMode::Prefer).await.unwrap_err();
    assert!(hba_hint(&error).contains("hostssl"), "{error}");
    let error = server.connect("stranger", SslMode::Allow).await.unwrap_err();
    assert!(hba_hint(&error).contains("hostssl"), "{error}");
}

async fn errors_and_queries(server: &Server) {
    let mut connection = server.connect("scram", SslMode::Prefer).await.unwrap();
    let error = simple_query(&mut connection, "SELECT nonsense", 10, soon())
        .await
        .unwrap_err();
    assert!(error.leaves_usable(), "{error}");
    let sql = "SELECT i::text, NULL FROM generate_series(1, 3) i";
    let rows = simple_query(&mut connection, sql, 3, soon()).await.unwrap();
    assert_eq!(rows[2], vec![Some(b"3".to_vec()), None]);
    assert!(
        simple_query(&mut connection, "", 0, soon())
            .await
            .unwrap()
            .is_empty()
    );
    let mut notices = server.connect("scram", SslMode::Prefer).await.unwrap();
    let sql = "DO $$ BEGIN RAISE NOTICE 'x'; END $$";
    assert!(
        simple_query(&mut notices, sql, 0, soon())
            .await
            .unwrap()
            .is_empty()
    );
    let error = simple_query(
        &mut connection,
        "SELECT 1 FROM generate_series(1, 11)",
        10,
        soon(),
    )
    .await
    .unwrap_err();
    assert!(matches!(error, ConnectError::AnswerTooLarge), "{error}");
    let sql = "SELECT repeat('x', 2000000)";
    let error = simple_query(&mut notices, sql, 10, soon()).await.unwrap_err();
    assert!(!error.leaves_usable(), "{error}");
}

async fn cancels(server: &Server, sslmode: SslMode) {
    let mut connection = server.connect("scram", sslmode).await.unwrap();
    let cancel = connection.cancel.clone().unwrap();
    let pid = connection.process_id.unwrap();
    assert_eq!(cancel.tls.is_some(), sslmode == SslMode::Require);
    let sleeping = simple_query(&mut connection, "SELECT pg_sleep(60)", 1, soon());
    let (slept, ()) = tokio::join!(sleeping, async {
        let sql = format!("SELECT 1 FROM pg_stat_activity WHERE pid = {pid} AND wait_event = 'PgSleep'");
        while server.superuser(&sql).await.is_empty() {}
        cancel.send(Duration::from_secs(20)).await.unwrap();
    });
    let error = slept.unwrap_err();
    assert!(
        matches!(&error, ConnectError::Server(error) if error.code == "57014"),
        "{error}"
    );
    assert_eq!(
        text(
            &simple_query(&mut connection, "SELECT 'on'", 1, soon())
                .await
                .unwrap()[0]
        ),
        "on"
    );
}

/// Last, as it changes the server.
async fn without_tls(server: &Server) {
    server.superuser("ALTER SYSTEM SET ssl = off").await;
    server.superuser("SELECT pg_reload_conf()").await;
    while text(&server.superuser("SHOW ssl").await[0]) != "off" {}
    for mode in [SslMode::Disable, SslMode::Allow, SslMode::Prefer] {
        assert!(!server.connect("scram", mode).await.unwrap().is_tls, "{mode:?}");
    }
    for mode in [SslMode::Require, SslMode::VerifyCa, SslMode::VerifyFull] {
        let tls = Server::tls(mode, Some(&server.certificates.root));
        let error = server
            .connect_at("127.0.0.1", "scram", &password(), &tls)
            .await
            .unwrap_err();
        assert!(matches!(error, ConnectError::TlsRefused), "{mode:?}: {error}");
    }
    // Not even TLS would let this one in: the error of the attempt that was made is shown.
    let error = server.connect("only_tls", SslMode::Allow).await.unwrap_err();
    assert!(hba_hint(&error).contains("host postgres only_tls"), "{error}");
}
