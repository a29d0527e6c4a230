//! What sessions of the console keep has a bound, however many there are.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use crate::cluster::{Options, Router, eventually, fresh_address, secret};
use crate::hand::{Message, Raw, V3_0, message};
use crate::raw::resident_kib;

const SOON: Duration = Duration::from_secs(20);

/// A router without a server; `admin` may give orders, `reader` only reads.
fn alone() -> Router {
    let dir = tempfile::tempdir().unwrap();
    let nowhere = fresh_address();
    let users = secret(
        dir.path(),
        "users",
        "\"admin\" \"admin\"\n\"reader\" \"reader\"\n",
    );
    let options = Options {
        clusters: Some(format!(
            "clusters:\n  main:\n    servers: [{{name: one, host: \"{nowhere}\", port: 5432}}]\n    \
             service_account: {{user: trunkline, dbname: postgres}}\n    server_tls: {{sslmode: disable}}\n",
        )),
        extra: format!(
            "auth: {{users_file: {}}}\nconsole: {{users: [admin, reader], operators: [admin]}}\n",
            users.display()
        ),
        ..Options::default()
    };
    Router::launch(None, options)
}

fn console(router: &Router, user: &str) -> Raw {
    let mut raw = Raw::tls(router.address, 6432);
    raw.startup(V3_0, &[("user", user), ("database", "trunkline")]);
    let all = raw.authenticate(user);
    assert_eq!(all.last().unwrap().tag, b'Z', "{all:?}");
    raw
}

/// 400 regular expressions, of which each takes more once it has been used.
fn large() -> String {
    let all = vec!["name ~ '[a-c]x|^y'"; 400].join(" OR ");
    format!("SELECT count(*) FROM limits WHERE {all}")
}

/// Prepares it and asks it once.
fn prepared(raw: &mut Raw, name: &str) -> Result<(), Message> {
    let parse = message(b'P', format!("{name}\0{}\0\0\0", large()).as_bytes());
    let bind = message(b'B', format!("\0{name}\0\0\0\0\0\0\0").as_bytes());
    let execute = message(b'E', b"\0\0\0\0\0");
    raw.send(&[parse, bind, execute, message(b'S', b"")].concat());
    let mut error = Ok(());
    loop {
        let message = raw.message();
        match message.tag {
            b'Z' => return error,
            b'E' => error = Err(message),
            _ => {}
        }
    }
}

/// Prepares until there is no room, and says what the client is told.
fn filled(raw: &mut Raw) -> Message {
    (0..64)
        .find_map(|number| prepared(raw, &format!("s{number}")).err())
        .expect("64 of them have no room")
}

#[test]
fn readers_together_cannot_take_the_routers_memory() {
    let router = alone();
    // What the first query of all takes is not counted.
    prepared(&mut console(&router, "reader"), "").unwrap();
    let before = resident_kib(router.process_id());
    let mut readers = Vec::new();
    let told = loop {
        let mut reader = console(&router, "reader");
        let told = filled(&mut reader);
        assert_eq!(told.code(), "53400", "{told:?}");
        readers.push(reader);
        if told.field(b'M').unwrap().contains("the console's sessions") {
            break told;
        }
    };
    // Of 96 MiB, each took its 16.
    assert!((6..=7).contains(&readers.len()), "{}", readers.len());
    let hint = told.field(b'H').unwrap();
    assert!(
        hint.contains("DEALLOCATE") && hint.contains("end other sessions"),
        "{hint}"
    );
    let more = resident_kib(router.process_id()).saturating_sub(before);
    assert!(more < 140 * 1024, "{more} KiB for sessions that may keep 96 MiB");
    // Their sessions go on, and so does a new one: with what is small.
    let mut late = console(&router, "reader");
    assert_eq!(late.value("SELECT 1 + 1"), "2");
    assert_eq!(readers[0].value("SELECT 1 + 1"), "2");
    assert_eq!(prepared(&mut late, "s").unwrap_err().code(), "53400");
    // An operator finds room, and sees how much is taken.
    let mut operator = console(&router, "admin");
    prepared(&mut operator, "s").unwrap();
    let used = "SELECT used > 90 * 1024 * 1024 FROM limits WHERE name = 'prepared statements of the console'";
    assert_eq!(operator.value(used), "t");
    // A statement that is dropped makes room, and so does a session that ends.
    readers[0].query("DEALLOCATE s0");
    prepared(&mut late, "s").unwrap();
    assert_eq!(prepared(&mut late, "again").unwrap_err().code(), "53400");
    drop(readers.remove(1));
    eventually("the room of a session that has ended", SOON, || {
        prepared(&mut late, "again").is_ok()
    });
}
