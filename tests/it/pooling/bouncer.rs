//! The table's column of PgBouncer, measured by the program that measures the router's.
//!
//! `make test-bouncer` runs it. `PGBOUNCER` names the program, otherwise it is Debian's. With
//! another version than [`VERSION`] the test prints what differs.
#![allow(
    clippy::print_stdout,
    reason = "what another version does is for a person to read"
)]

use std::env;
use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};

use super::isolation::{play_rows, prepare, server_of_the_table};
use super::rows::Row;
use super::table::Outcome::{self, Ended, Kept, Leaks};
use crate::cluster::postgres::Postgres;
use crate::cluster::{eventually, fresh_address, succeed};
use crate::raw::PATIENCE;

/// What docs/pooling.md shows.
pub const VERSION: &str = "1.26.1";

const PORT: u16 = 6432;

/// The rows where each of the two sessions sees what it would see alone.
const KEPT: &[&str] = &[
    "`SET` in a transaction that rolls back",
    "`SET LOCAL`",
    "`SET`, then `RESET`",
    "`SET`, then `DISCARD ALL`",
    "a setting that the server reports",
    "a setting that the server reports, made in a function",
    "`application_name`",
    "`SET SESSION AUTHORIZATION`",
    "`client_encoding`",
    "a temporary table that was dropped",
    "`ON COMMIT DROP`",
    "a cursor without",
    "`pg_advisory_xact_lock`",
    "`LISTEN`, then `UNLISTEN`",
    "`PREPARE`, then `DEALLOCATE`",
    "named statements of the same name",
    "the same text with other parameter types",
    "a named statement whose columns were changed",
];

/// The rows where PgBouncer closes the connection of one of the two.
const ENDED: &[&str] = &[
    "a named statement that only one session has",
    "a named statement of a transaction that rolls back",
    "a named statement after `DEALLOCATE ALL`",
    "a named statement that failed",
];

pub fn in_pgbouncer(row: &Row) -> Outcome {
    if KEPT.contains(&row.state) {
        Kept
    } else if ENDED.contains(&row.state) {
        Ended
    } else {
        Leaks
    }
}

/// In transaction mode, with one connection to the server and prepared statements on.
struct Bouncer {
    child: Child,
    address: Ipv4Addr,
    _dir: tempfile::TempDir,
}

fn program() -> String {
    env::var("PGBOUNCER").unwrap_or_else(|_| "/usr/sbin/pgbouncer".to_owned())
}

impl Bouncer {
    fn start(server: &Postgres, has_prepared_statements: bool) -> Self {
        let (dir, address) = (tempfile::tempdir().unwrap(), fresh_address());
        let users = dir.path().join("users");
        fs::write(&users, "\"app\" \"app\"\n\"postgres\" \"postgres\"\n").unwrap();
        let configuration = dir.path().join("pgbouncer.ini");
        let text = format!(
            "[databases]\n* = host={} port={}\n[pgbouncer]\nlisten_addr = {address}\nlisten_port = {PORT}\n\
             unix_socket_dir =\nauth_type = trust\nauth_file = {}\npool_mode = transaction\n\
             default_pool_size = 1\n{}",
            server.address,
            server.port,
            users.display(),
            if has_prepared_statements {
                "max_prepared_statements = 200\n"
            } else {
                ""
            }
        );
        fs::write(&configuration, text).unwrap();
        // It does not run as root.
        for (path, mode) in [(dir.path(), 0o755), (&users, 0o644), (&configuration, 0o644)] {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        }
        let child = Command::new(program())
            .args(["-q", "-u", "nobody"])
            .arg(&configuration)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let bouncer = Self {
            child,
            address,
            _dir: dir,
        };
        eventually("PgBouncer listens", PATIENCE, || {
            std::net::TcpStream::connect((address, PORT)).is_ok()
        });
        bouncer
    }
}

impl Drop for Bouncer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
#[ignore = "needs PgBouncer: `make test-bouncer`"]
fn sessions_on_one_connection_of_pgbouncer_see_what_the_table_says() {
    let said = succeed(Command::new(program()).arg("--version"));
    let version = said.lines().next().unwrap();
    println!("{version}");
    let server = server_of_the_table();
    prepare(&server, "bouncer");
    // From 1.21 on; an older one refuses the name.
    let number = version.rsplit(' ').next().unwrap();
    let minor = number
        .split('.')
        .nth(1)
        .and_then(|minor| minor.parse::<u32>().ok());
    let bouncer = Bouncer::start(&server, !number.starts_with("1.") || minor.unwrap() >= 21);
    let pooler = (bouncer.address, PORT).into();
    let wrong = play_rows(&server, pooler, "bouncer", in_pgbouncer);
    if version.ends_with(&format!(" {VERSION}")) {
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    } else {
        println!("Other than PgBouncer {VERSION}:\n{}", wrong.join("\n"));
    }
}
