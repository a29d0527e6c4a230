//! What takes effect without a restart: whatever is altered on the server, and files that change.
//! New logins go by it; live sessions never notice.

mod files;
mod outages;
mod roles;

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};

use crate::cluster::postgres::Postgres;
use crate::cluster::{Options, Router, output};

/// Two looks at the files, a second apart, and some.
const SOON: Duration = Duration::from_secs(20);
/// An answer older than a second is confirmed before it is used. A slow machine may take longer,
/// but nothing near the minute for which answers are remembered.
const AT_ONCE: Duration = Duration::from_secs(10);
/// Wrong passwords are not what is limited here.
const UNLIMITED: &str = "rate_limit: {failures: 0}";

fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap()
    })
}

/// A session of a real driver, which stays until this is dropped.
struct Session(Client);

impl Session {
    fn value(&self, sql: &str) -> String {
        match runtime().block_on(first_value(&self.0, sql)) {
            Ok(value) => value,
            Err(error) => panic!("{sql}: {error:?}"),
        }
    }

    #[track_caller]
    fn goes_on(&self) {
        assert_eq!(self.value("SELECT 6 * 7"), "42", "who is in does not notice");
    }
}

async fn first_value(client: &Client, sql: &str) -> Result<String, tokio_postgres::Error> {
    let all = client.simple_query(sql).await?;
    let value = all.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    });
    Ok(value.unwrap_or_default())
}

/// Logs in, by whichever method the router asks for, and asks who it is. Else the error's code and
/// text; a connection that ends without one fails the test.
fn enter(place: &Config) -> Result<(Session, String), String> {
    let entered = runtime().block_on(async {
        let (client, connection) = place.connect(NoTls).await?;
        tokio::spawn(connection);
        let user = first_value(&client, "SELECT current_user").await?;
        Ok((Session(client), user))
    });
    entered.map_err(|error: tokio_postgres::Error| match error.as_db_error() {
        Some(told) => format!("{} {}", told.code().code(), told.message()),
        None => panic!("{place:?}: not told why: {error:?}"),
    })
}

fn at(address: Ipv4Addr, user: &str, password: &str) -> Config {
    let mut place = Config::new();
    place
        .host(address.to_string())
        .port(6432)
        .user(user)
        .password(password)
        .dbname("app");
    place
}

/// The session's user on the server, or code and text of the error.
fn log_in(router: &Router, user: &str, password: &str) -> Result<String, String> {
    enter(&at(router.address, user, password)).map(|(_, user)| user)
}

/// Stays in.
fn open(router: &Router, user: &str, password: &str) -> Session {
    match enter(&at(router.address, user, password)) {
        Ok((session, _)) => session,
        Err(told) => panic!("{user}: {told}"),
    }
}

/// Whether the answer is an error with this code.
fn is(told: &Result<String, String>, code: &str) -> bool {
    told.as_ref().is_err_and(|told| told.starts_with(code))
}

#[track_caller]
fn assert_told(told: &Result<String, String>, code: &str, whom: &str) {
    assert!(is(told, code), "{whom}: {told:?} instead of {code}");
}

/// Before `server`; `auth` are lines of that section.
fn router(server: &Postgres, auth: &[&str]) -> Router {
    router_with(server, auth, Options::default())
}

fn router_with(server: &Postgres, auth: &[&str], rest: Options) -> Router {
    let router = Router::launch(
        None,
        Options {
            clusters: Some(server.yaml()),
            extra: format!("auth:\n  {}\n", auth.join("\n  ")),
            ..rest
        },
    );
    router.await_read_write();
    router
}

fn write(dir: &Path, name: &str, contents: &str) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, contents).unwrap();
    path
}

/// `trunkline check` of the configuration that the router runs with.
fn check(router: &Router) -> Output {
    let configuration = router.dir().join("trunkline.yaml");
    output(
        Command::new(env!("CARGO_BIN_EXE_trunkline"))
            .args(["check", "-c"])
            .arg(configuration),
    )
}

/// Users of each kind are named `KIND_…`; a role of the kind `hash` has an md5 hash on the server,
/// the others verifiers.
const RULES: &str = "host all /^scram_ all scram-sha-256\nhost all /^clear_ all password\n\
                     host all /^either_ all md5\nhost all /^hash_ all md5\n";
const KINDS: [&str; 4] = ["scram", "clear", "either", "hash"];
/// The server takes either from the router.
const SERVER_HBA: &str = "host all all 127.0.0.0/8 md5";

/// `password_encryption` for a role of this kind.
fn encryption(kind: &str) -> &'static str {
    if kind == "hash" { "md5" } else { "scram-sha-256" }
}

/// Runs `sql` for each kind, with the kind for `KIND`. Passwords in it are stored as the kind has
/// it.
fn for_each_kind(server: &Postgres, sql: &str) {
    for kind in KINDS {
        server.sql(&format!(
            "SET password_encryption = '{}'; {}",
            encryption(kind),
            sql.replace("KIND", kind)
        ));
    }
}
