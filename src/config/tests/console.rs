//! The console's section.

use super::{FULL, Files, MINIMAL};

fn with_console(value: &str) -> String {
    format!("{MINIMAL}console: {value}\n")
}

#[test]
fn each_key_has_its_effect_and_there_is_none_by_default() {
    let files = Files::new();
    assert_eq!(files.ok(MINIMAL).console, None);
    let console = files.ok(&with_console("{users: [admin]}")).console.unwrap();
    assert_eq!(console.users, ["admin"]);
    assert!(console.operators.is_empty());
    assert_eq!((&*console.database, &*console.cluster), ("trunkline", "main"));
    let console = files.ok(FULL).console.unwrap();
    assert_eq!(console.users, ["admin", "b"]);
    assert_eq!(console.operators, ["b"]);
    assert_eq!((&*console.database, &*console.cluster), ("router", "other"));
}

#[test]
fn errors() {
    let files = Files::new();
    for (value, expected) in [
        ("{}", "`users` is missing"),
        ("{database: router}", "`users` is missing"),
        ("{users: []}", "must not be empty"),
        ("{users: admin}", "expected a list"),
        ("{users: [a, a]}", "the same user as"),
        ("{users: [a], database: \"\"}", "must not be empty"),
        ("{users: [a], cluster: mian}", "there is no cluster `mian`"),
        ("{users: [a], operators: [b]}", "is not in `console.users`"),
        ("{users: [a], operators: []}", "must not be empty"),
        ("{users: [a], operators: [a, a]}", "the same user as"),
        ("{users: [a], user: b}", "did you mean `users`?"),
    ] {
        files.one_error(&with_console(value), expected);
    }
    let long = "x".repeat(64);
    files.one_error(
        &with_console(&format!("{{users: [a], database: {long}}}")),
        "longer than 63 bytes",
    );
}
