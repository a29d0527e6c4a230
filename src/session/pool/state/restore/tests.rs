use super::*;

fn settings(values: &[(&str, &str)]) -> Settings {
    let mut settings = Settings::NONE;
    for (name, value) in values {
        assert!(settings.set(name, Some(value.as_bytes())));
    }
    settings
}

/// The arguments of the calls, in order.
fn calls(from: &[(&str, &str)], to: &[(&str, &str)]) -> Vec<String> {
    let Some(restore) = Restore::between(&settings(from), &settings(to)) else {
        return vec![];
    };
    let sql = restore
        .sql()
        .strip_prefix("BEGIN ISOLATION LEVEL READ COMMITTED; SELECT ");
    let sql = sql
        .and_then(|sql| sql.strip_suffix("; COMMIT"))
        .expect("the envelope");
    assert!(sql.is_ascii());
    sql.split(" IS NULL")
        .filter(|call| !call.is_empty())
        .map(|call| {
            let call = call.trim_start_matches(", ");
            let call = call.strip_prefix("pg_catalog.set_config(").expect("a call");
            call.strip_suffix(", false)").expect("a lasting one").to_owned()
        })
        .collect()
}

/// P14, P21.
#[test]
fn what_differs_is_set_and_what_is_too_much_is_reset() {
    assert!(calls(&[], &[]).is_empty());
    assert!(calls(&[("a", "1")], &[("a", "1")]).is_empty());
    assert_eq!(
        calls(
            &[("a", "1"), ("b", "1"), ("c", "1")],
            &[("a", "1"), ("b", "2"), ("search_path", "\"\""), ("z", "")]
        ),
        ["'c', NULL", "'b', '2'", "'search_path', '\"\"'", "'z', ''"]
    );
}

/// P18: items run from left to right.
#[test]
fn the_role_is_reset_first_and_set_last() {
    let role = ("role", "joe");
    assert_eq!(calls(&[], &[("a", "1"), role]), ["'a', '1'", "'role', 'joe'"]);
    assert_eq!(calls(&[role], &[("a", "1")]), ["'role', NULL", "'a', '1'"]);
    assert_eq!(calls(&[role], &[("role", "mary")]), ["'role', 'mary'"]);
    assert_eq!(calls(&[role], &[]), ["'role', NULL"]);
    assert_eq!(
        calls(&[role], &[role, ("zz", "1")]),
        ["'role', NULL", "'zz', '1'", "'role', 'joe'"]
    );
}

/// P23.
#[test]
fn a_custom_name_that_is_reset_is_not_reset_again() {
    assert!(calls(&[("app.x", "")], &[]).is_empty());
    assert_eq!(calls(&[("app.x", "1")], &[]), ["'app.x', NULL"]);
    assert_eq!(calls(&[], &[("app.x", "")]), ["'app.x', ''"]);
    assert_eq!(
        calls(&[("default_tablespace", "")], &[]),
        ["'default_tablespace', NULL"]
    );
}

#[test]
fn an_error_is_about_the_name_that_it_quotes() {
    let restore = |to| Restore::between(&Settings::NONE, &settings(to)).expect("a difference");
    let two = restore(&[("temp_buffers", "1MB"), ("role", "joe"), ("log_statement", "all")]);
    for (message, name) in [
        (
            "invalid value for parameter \"temp_buffers\": 128",
            Some("temp_buffers"),
        ),
        (
            "permission denied to set parameter \"log_statement\"",
            Some("log_statement"),
        ),
        ("permission denied to set role \"joe\"", Some("role")),
        ("role \"joe\" does not exist", Some("role")),
        ("out of memory", None),
    ] {
        assert_eq!(two.name_in(message.as_bytes()), name, "{message}");
    }
    assert_eq!(restore(&[("a.b", "1")]).name_in(b"?"), Some("a.b"));
}

#[test]
fn only_the_application_name_needs_no_waiting() {
    let is_certain = |to| {
        let restore = Restore::between(&Settings::NONE, &settings(to)).expect("a difference");
        restore.is_certain()
    };
    assert!(is_certain(&[("application_name", "x")]));
    assert!(!is_certain(&[("application_name", "x"), ("work_mem", "1MB")]));
}

/// P12, P26.
#[test]
fn what_hurts_an_idle_connection_is_reset() {
    let idle = |values: &[(&str, &str)]| {
        let before = settings(values).before_idle()?;
        let left: Vec<String> = before.left.iter().map(|(name, _)| name.to_owned()).collect();
        Some((before.sql, left.join(" ")))
    };
    assert_eq!(idle(&[("work_mem", "1MB"), ("statement_timeout", "5s")]), None);
    assert_eq!(
        idle(&[
            ("statement_timeout", "10ms"),
            ("idle_session_timeout", "5min"),
            ("a.b", "1")
        ]),
        Some((
            "RESET idle_session_timeout; RESET statement_timeout".to_owned(),
            "a.b".to_owned()
        ))
    );
    assert_eq!(idle(&[("statement_timeout", "1500ms")]), None);
    assert_eq!(
        idle(&[("transaction_timeout", "999ms")]),
        Some(("RESET transaction_timeout".to_owned(), String::new()))
    );
}
