//! TLS towards clients: which certificate is shown to whom, certificates of clients, and files that
//! change while the router runs. The certificates are made by `openssl`, as operators make them.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tempfile::TempDir;

use crate::cluster::postgres::{self, Postgres, psql_18};
use crate::cluster::{Certificates, Cluster, Options, Router, eventually, output, secret, succeed};
use crate::hand::{Raw, V3_0};

const APP: &[(&str, &str)] = &[("user", "app"), ("database", "app")];
/// Two looks, a second apart, and some.
const SOON: Duration = Duration::from_secs(20);

/// A certificate authority in a directory of its own.
struct Authority(TempDir);

impl Authority {
    fn new() -> Self {
        Self::named("authority")
    }

    fn named(name: &str) -> Self {
        let authority = Self(tempfile::tempdir().unwrap());
        let configuration = "[ca]\ndefault_ca = own\n[own]\ndatabase = index\ncrlnumber = number\nprivate_key = ca.key\n\
                             certificate = ca.crt\ndefault_md = sha256\ndefault_crl_days = 30\ncrl_extensions = list\n\
                             [list]\nauthorityKeyIdentifier = keyid\n";
        fs::write(authority.file("ca.cnf"), configuration).unwrap();
        fs::write(authority.file("index"), "").unwrap();
        fs::write(authority.file("number"), "01\n").unwrap();
        authority.openssl("ecparam -name prime256v1 -genkey -noout -out ca.key");
        authority.openssl(&format!(
            "req -x509 -new -key ca.key -days 30 -subj /CN={name} -addext keyUsage=critical,keyCertSign,cRLSign -out ca.crt"
        ));
        authority
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn openssl(&self, arguments: &str) -> String {
        succeed(
            Command::new("openssl")
                .args(arguments.split_whitespace())
                .current_dir(self.0.path()),
        )
    }

    /// `NAME.key` by `key`, and `NAME.crt` for it; `names` as `subjectAltName` has them.
    fn issue_with(&self, name: &str, key: &str, names: &str) {
        self.openssl(&format!("{key} -out {name}.key"));
        self.sign(name, names);
    }

    fn issue(&self, name: &str, names: &str) {
        self.issue_with(name, "ecparam -name prime256v1 -genkey -noout", names);
    }

    /// A new certificate for the key that is there; it is put in place whole.
    fn sign(&self, name: &str, names: &str) {
        self.openssl(&format!(
            "req -new -key {name}.key -passin pass:geheim -subj /O=Example/CN={name} -out {name}.csr"
        ));
        fs::write(self.file("names"), format!("subjectAltName={names}\n")).unwrap();
        self.openssl(&format!(
            "x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 20 -extfile names -out {name}.new"
        ));
        fs::rename(
            self.file(&format!("{name}.new")),
            self.file(&format!("{name}.crt")),
        )
        .unwrap();
    }

    /// `ca.crl`, with everything revoked so far and `also`.
    fn list(&self, also: &[&str]) {
        for name in also {
            self.openssl(&format!("ca -config ca.cnf -batch -revoke {name}.crt"));
        }
        self.openssl("ca -config ca.cnf -batch -gencrl -out ca.crl.new");
        fs::rename(self.file("ca.crl.new"), self.file("ca.crl")).unwrap();
    }

    fn entry(&self, name: &str) -> String {
        let (cert, key) = (
            self.file(&format!("{name}.crt")),
            self.file(&format!("{name}.key")),
        );
        format!("cert_file: {}, key_file: {}", cert.display(), key.display())
    }
}

/// Before the shared cluster, with this as `tls:`.
fn router(tls: &str) -> Router {
    let options = Options {
        tls: Some(format!("tls: {{{tls}}}\n")),
        ..Options::default()
    };
    Router::before(Cluster::shared(), options)
}

fn s_client(router: &Router, extra: &[&str]) -> Output {
    let mut command = Command::new("openssl");
    command.args(["s_client", "-starttls", "postgres", "-connect"]);
    command.arg(format!("{}:6432", router.address)).args(extra);
    output(command.stdin(Stdio::null()))
}

/// Subject and serial number of the certificate shown; `name` is the SNI.
fn shown(router: &Router, name: Option<&str>) -> String {
    let extra = match name {
        Some(name) => vec!["-servername", name],
        None => vec!["-noservername"],
    };
    let handshake = s_client(router, &extra);
    let text = String::from_utf8_lossy(&handshake.stdout).into_owned();
    let mut command = Command::new("openssl");
    command.args(["x509", "-noout", "-subject", "-serial"]);
    let pem = tempfile::NamedTempFile::new().unwrap();
    fs::write(pem.path(), text).unwrap();
    succeed(command.arg("-in").arg(pem.path())).replace('\n', " ")
}

/// A session of `psql`, in TLS, that stays.
struct Open {
    child: Child,
    answers: BufReader<ChildStdout>,
}

impl Open {
    fn psql(router: &Router) -> Self {
        let mut child = Command::new("psql")
            .args(["-XAtq", &router.dsn(6432, "")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        Self { child, answers }
    }

    /// One row with one column; empty once the session has ended.
    fn value(&mut self, sql: &str) -> String {
        let stdin = self.child.stdin.as_mut().unwrap();
        let _ = writeln!(stdin, "{sql};");
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn says(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn replace(path: &Path, contents: &[u8]) {
    let new = path.with_extension("put");
    fs::write(&new, contents).unwrap();
    fs::set_permissions(&new, fs::metadata(path).unwrap().permissions()).unwrap();
    fs::rename(new, path).unwrap();
}

#[test]
fn the_name_asked_for_picks_the_certificate() {
    let authority = Authority::new();
    authority.issue("first", "DNS:first.example");
    authority.issue("second", "DNS:second.example,DNS:*.wild.example");
    let router = router(&format!(
        "certificates: [{{{}}}, {{{}}}]",
        authority.entry("first"),
        authority.entry("second")
    ));
    for (name, expected) in [
        (Some("first.example"), "first"),
        (Some("second.example"), "second"),
        (Some("SECOND.example"), "second"),
        (Some("a.wild.example"), "second"),
        (Some("a.b.wild.example"), "first"),
        (Some("wild.example"), "first"),
        (Some("other.example"), "first"),
        (None, "first"),
    ] {
        let subject = shown(&router, name);
        assert!(
            subject.contains(&format!("CN = {expected} ")),
            "{name:?}: {subject}"
        );
    }
    // libpq sends the name, and checks what it is shown.
    for name in ["first.example", "second.example", "a.wild.example"] {
        let dsn = router.dsn(
            6432,
            &format!(
                "host={name} hostaddr={} sslmode=verify-full sslrootcert={}",
                router.address,
                authority.file("ca.crt").display()
            ),
        );
        let done = output(psql_18().args(["-XAtqc", "SELECT 1", &dsn]));
        assert!(done.status.success(), "{name}: {}", says(&done));
    }
}

#[test]
fn the_oldest_version_is_a_bound() {
    let authority = Authority::new();
    authority.issue("server", "DNS:router.example");
    let certificates = format!("certificates: [{{{}}}]", authority.entry("server"));
    let newest = router(&format!("{certificates}, min_version: \"1.3\""));
    assert!(!s_client(&newest, &["-tls1_2"]).status.success());
    assert!(s_client(&newest, &["-tls1_3"]).status.success());
    let both = router(&certificates);
    assert!(s_client(&both, &["-tls1_2"]).status.success());
    assert!(s_client(&both, &["-tls1_3"]).status.success());
    assert!(!s_client(&both, &["-tls1_1"]).status.success());
}

#[test]
fn every_form_of_key_serves() {
    let authority = Authority::new();
    for (form, key) in [
        ("pkcs1", "genrsa -traditional"),
        ("pkcs8", "genpkey -algorithm RSA"),
        ("sec1", "ecparam -name prime256v1 -genkey"),
        (
            "locked",
            "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -aes256 -pass pass:geheim",
        ),
    ] {
        authority.issue_with(form, key, "DNS:router.example");
        let command = if form == "locked" {
            ", passphrase_command: echo geheim"
        } else {
            ""
        };
        let router = router(&format!("certificates: [{{{}{command}}}]", authority.entry(form)));
        assert_eq!(router.psql(6432, "SELECT 1"), "1", "{form}");
    }
}

/// The client's files, as a part of a connection string.
fn client(authority: &Authority, name: &str) -> String {
    let (cert, key) = (
        authority.file(&format!("{name}.crt")),
        authority.file(&format!("{name}.key")),
    );
    fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    format!("sslcert={} sslkey={}", cert.display(), key.display())
}

#[test]
fn a_certificate_of_a_client_is_good_or_ends_the_handshake() {
    let authority = Authority::new();
    let stranger = Authority::named("stranger");
    authority.issue("server", "DNS:router.example");
    for name in ["good", "bad"] {
        authority.issue(name, "DNS:client.example");
    }
    stranger.issue("strange", "DNS:client.example");
    authority.list(&[]);
    let router = router(&format!(
        "certificates: [{{{}}}], client_ca_file: {}, client_crl_file: {}",
        authority.entry("server"),
        authority.file("ca.crt").display(),
        authority.file("ca.crl").display()
    ));
    let works = |extra: &str| router.psql_output(6432, extra, "SELECT 1").status.success();
    let mut open = Raw::connect(router.address, 6432);
    open.startup(V3_0, APP);
    open.authenticate("app");
    assert!(works(""), "nobody needs to have one");
    assert!(works(&client(&authority, "good")));
    assert!(works(&client(&authority, "bad")));
    let refused = router.psql_output(6432, &client(&stranger, "strange"), "SELECT 1");
    assert!(!refused.status.success());
    router.await_log(&["connection refused", "UnknownIssuer"]);

    authority.list(&["bad"]);
    eventually("the revoked one is refused, without a restart", SOON, || {
        !works(&client(&authority, "bad"))
    });
    router.await_log(&["connection refused", "Revoked"]);
    assert!(works(&client(&authority, "good")));
    assert_eq!(open.value("SELECT 1"), "1", "live sessions go on");
}

#[test]
fn a_certificate_is_exchanged_while_sessions_go_on() {
    let authority = Authority::new();
    authority.issue("server", "DNS:router.example");
    let router = router(&format!("certificates: [{{{}}}]", authority.entry("server")));
    let old = shown(&router, None);
    let mut open = Open::psql(&router);
    assert_eq!(open.value("SELECT 1"), "1");
    // A new key is copied first; until its certificate follows, the pair is not right.
    authority.issue("server", "DNS:router.example,DNS:new.example");
    eventually("new connections are shown the new one", SOON, || {
        shown(&router, None) != old
    });
    router.await_log(&[
        "INFO",
        "certificate loaded",
        "part=tls",
        "server.crt",
        "new.example",
    ]);
    assert_eq!(open.value("SELECT 2"), "2", "the old session goes on");
    let expiry = router.metric(&format!(
        "trunkline_tls_certificate_expiry_timestamp_seconds{{part=\"tls\",file=\"{}\"}}",
        authority.file("server.crt").display()
    ));
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs_f64();
    let days = (expiry - now) / 86_400.0;
    assert!((19.9..=20.0).contains(&days), "{days}");
    assert!(router.metric("trunkline_file_reloads_total{result=\"success\"}") >= 1.0);
}

#[test]
fn a_broken_new_file_keeps_the_old_one_in_service_and_says_so() {
    let authority = Authority::new();
    authority.issue("server", "DNS:router.example");
    let router = router(&format!("certificates: [{{{}}}]", authority.entry("server")));
    let old = shown(&router, None);
    let path = authority.file("server.crt");
    let good = fs::read(&path).unwrap();
    let failed = "trunkline_file_reload_failed{part=\"tls\"}";
    assert_eq!(router.metric(failed), 0.0);
    replace(&path, b"not a certificate");
    let line = router.await_log(&["ERROR", "part=tls", "contains no certificate", "stays in service"]);
    assert!(line.contains("tls.certificates[0].cert_file"), "{line}");
    assert_eq!(router.metric(failed), 1.0);
    assert_eq!(shown(&router, None), old);
    let errors = |router: &Router| router.log().matches("contains no certificate").count();
    assert_eq!(errors(&router), 1, "once, not at each look");
    let check = output(
        Command::new(env!("CARGO_BIN_EXE_trunkline"))
            .args(["check", "-c"])
            .arg(router.dir().join("trunkline.yaml")),
    );
    assert!(
        !check.status.success() && says(&check).contains("contains no certificate"),
        "{check:?}"
    );

    router.signal("HUP");
    router.await_log(&["reload: files read again", "changed=none", "broken=tls"]);
    assert_eq!(errors(&router), 2, "and once more for who asks");
    replace(&path, &good);
    router.await_log(&["all files are valid again"]);
    assert_eq!(router.metric(failed), 0.0);
    let check = succeed(
        Command::new(env!("CARGO_BIN_EXE_trunkline"))
            .args(["check", "-c"])
            .arg(router.dir().join("trunkline.yaml")),
    );
    assert!(check.contains("(tls): router.example; 19 days left"), "{check}");
}

/// What is asked for is read again, with what it names.
#[test]
fn a_hangup_reads_everything_and_says_what_needs_a_restart() {
    let authority = Authority::new();
    authority.issue("server", "DNS:router.example");
    let router = router(&format!("certificates: [{{{}}}]", authority.entry("server")));
    router.signal("HUP");
    router.await_log(&["reload: files read again", "changed=none", "broken=none"]);
    let path = router.dir().join("trunkline.yaml");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, format!("{text}\nworkers: 3\n")).unwrap();
    authority.sign("server", "DNS:after.example");
    router.signal("HUP");
    router.await_log(&["configuration reloaded", "tls"]);
    router.await_log(&["WARN", "workers", "takes effect after `trunkline upgrade`"]);
    router.await_log(&["certificate loaded", "after.example"]);
    assert_eq!(router.psql(6432, "SELECT 1"), "1");
}

/// A password that is changed on the server, then in the users file.
#[test]
fn a_users_file_is_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let users = secret(dir.path(), "users", "\"app\" \"another\"");
    let router = Router::before(
        Cluster::shared(),
        Options {
            extra: format!("auth: {{users_file: {}}}\n", users.display()),
            ..Options::default()
        },
    );
    let works = || router.psql_output(6432, "", "SELECT 1").status.success();
    assert!(!works());
    replace(&users, b"\"app\" \"app\"\n");
    eventually("the password is the one of the file", SOON, works);
    replace(&users, b"\"app\" no quotes\n");
    router.await_log(&["ERROR", "part=auth", "line 1", "stays in service"]);
    assert!(works());
}

/// What the router itself needs at a server: neither is right at first.
#[test]
fn roots_and_password_towards_servers_are_read_again() {
    let server = Postgres::start(&postgres::Options::default());
    let dir = tempfile::tempdir().unwrap();
    let roots = dir.path().join("roots.crt");
    fs::copy(Certificates::shared().file("ca.crt"), &roots).unwrap();
    let clusters = server.yaml_with(&format!(
        "{{sslmode: verify-full, sslrootcert: {}}}",
        roots.display()
    ));
    let password = secret(&server.certificates.file(""), "service-password", "falsch");
    let router = Router::launch(
        None,
        Options {
            clusters: Some(clusters),
            ..Options::default()
        },
    );
    router.await_log(&["s1", "certificate"]);
    replace(&roots, &fs::read(server.certificates.file("ca.crt")).unwrap());
    router.await_log(&["files loaded", "part=clusters.main.server_tls"]);
    eventually("the router gets as far as the password", SOON, || {
        server
            .log()
            .contains("password authentication failed for user \"trunkline\"")
    });
    replace(&password, b"trunkline");
    router.await_log(&["files loaded", "part=clusters.main.service_account"]);
    router.await_read_write();
    assert_eq!(router.psql(6432, "SELECT 1"), "1");
}
