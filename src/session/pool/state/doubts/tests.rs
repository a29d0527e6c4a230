use super::*;

/// A session on one connection, whose server is played by the test.
#[derive(Default)]
struct Scene {
    confirmed: Confirmed,
    doubts: Doubts,
    login: Reported,
    now: Reported,
    options: StateOptions,
}

impl Scene {
    fn new() -> Self {
        let mut scene = Self::default();
        for (name, value) in [
            ("TimeZone", "UTC"),
            ("search_path", "public"),
            ("is_superuser", "off"),
            ("session_authorization", "app"),
            ("application_name", ""),
        ] {
            scene.login.set(name.as_bytes(), value.as_bytes());
        }
        scene.now = scene.login.clone();
        scene
    }

    /// The client's Query and its answer.
    fn run(&mut self, sql: &str, tags: &[&str]) {
        self.doubts.query(&Hint::of(sql.as_bytes()));
        for tag in tags {
            self.doubts.tag(tag.as_bytes());
        }
    }

    fn report(&mut self, name: &str, value: &str) {
        self.doubts.parameter(name.as_bytes());
        self.now.set(name.as_bytes(), value.as_bytes());
    }

    fn settle(&mut self) -> Option<Question> {
        self.doubts
            .settle(&mut self.confirmed, &self.login, &self.now, &self.options)
    }

    /// What is asked, in short; empty if nothing is. The question is dropped without an answer, as
    /// if it had not been needed.
    fn asked(&mut self) -> String {
        let Some(question) = self.settle() else {
            return String::new();
        };
        let asked = question.asked();
        let mut parts: Vec<&str> = asked.names.iter().map(|name| &**name).collect();
        if asked.role {
            parts.push("ROLE");
        }
        if asked.any_setting {
            parts.push("ANY");
        }
        for (kind, reason) in PINNED {
            if asked.pins.has(kind) {
                parts.push(reason.label());
            }
        }
        let shown = parts.join(" ");
        self.doubts.clear();
        shown
    }

    fn asked_after(&mut self, sql: &str, tags: &[&str]) -> String {
        self.run(sql, tags);
        self.asked()
    }

    fn set(&mut self, name: &str, value: &str) {
        assert!(self.confirmed.settings.set(name, Some(value.as_bytes())));
    }
}

#[test]
fn ordinary_statements_ask_nothing() {
    let mut scene = Scene::new();
    for (sql, tags) in [
        ("SELECT 1", &["SELECT 1"][..]),
        ("INSERT INTO t VALUES (1)", &["INSERT 0 1"]),
        ("BEGIN", &["BEGIN"]),
        ("UPDATE t SET a = 1", &["UPDATE 1"]),
        ("COMMIT", &["COMMIT"]),
        ("ROLLBACK", &["ROLLBACK"]),
        ("SET LOCAL work_mem = 1", &["SET"]),
        ("SET TRANSACTION READ ONLY", &["SET"]),
        ("SELECT set_config('app.x', '1', true)", &["SELECT 1"]),
        ("PREPARE TRANSACTION 'x'", &["PREPARE TRANSACTION"]),
        ("COPY t FROM STDIN", &["COPY 5"]),
        ("FETCH 1 FROM c", &["FETCH 1"]),
    ] {
        assert_eq!(scene.asked_after(sql, tags), "", "{sql}");
        assert!(scene.doubts.is_empty(), "{sql}");
    }
}

/// P1, P2, P3.
#[test]
fn tags_and_texts_say_what_to_ask() {
    for (sql, tags, asked) in [
        ("SET work_mem = 1", &["SET"][..], "work_mem"),
        ("SET ROLE joe", &["SET"], "ROLE"),
        ("SELECT set_config('app.x', '1', false)", &["SELECT 1"], "app.x"),
        ("PREPARE p AS SELECT 1", &["PREPARE"], "prepare"),
        ("LISTEN x", &["LISTEN"], "listen"),
        (
            "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
            &["DECLARE CURSOR"],
            "hold_cursor",
        ),
        ("CREATE TABLE t(a int)", &["CREATE TABLE"], "temporary_object"),
        (
            "CREATE TEMP TABLE t AS SELECT 1",
            &["SELECT 1"],
            "temporary_object",
        ),
        ("SELECT pg_advisory_lock(1)", &["SELECT 1"], "advisory_lock"),
        (
            "UPDATE pg_settings SET setting = 1",
            &["UPDATE 0"],
            "jit_above_cost statement_timeout ROLE ANY",
        ),
        // What can only have been taken away, where there is nothing.
        ("RESET ALL", &["RESET"], ""),
        ("DISCARD ALL", &["DISCARD ALL"], ""),
        ("DEALLOCATE ALL", &["DEALLOCATE ALL"], ""),
        ("UNLISTEN *", &["UNLISTEN"], ""),
        ("CLOSE ALL", &["CLOSE CURSOR ALL"], ""),
        ("DROP TABLE t", &["DROP TABLE"], ""),
        ("SELECT pg_advisory_unlock_all()", &["SELECT 1"], ""),
    ] {
        assert_eq!(Scene::new().asked_after(sql, tags), asked, "{sql}");
    }
}

/// P6, P7: what the server reports needs no question.
#[test]
fn a_reported_parameter_is_known_without_a_question() {
    let mut scene = Scene::new();
    scene.run("SET TIME ZONE 'Europe/Berlin'", &["SET"]);
    scene.report("TimeZone", "Europe/Berlin");
    assert_eq!(scene.asked(), "");
    assert_eq!(
        scene.confirmed.settings.get("timezone"),
        Some(&b"Europe/Berlin"[..])
    );
    // Within a transaction, and back at its end.
    scene.run(
        "BEGIN; SET LOCAL TimeZone = 'Asia/Tokyo'; COMMIT",
        &["BEGIN", "SET", "COMMIT"],
    );
    scene.report("TimeZone", "Asia/Tokyo");
    scene.report("TimeZone", "Europe/Berlin");
    assert_eq!(scene.asked(), "");
    assert!(scene.confirmed.settings.get("timezone").is_some());
    scene.run("RESET ALL", &["RESET"]);
    scene.report("TimeZone", "UTC");
    assert_eq!(scene.asked(), "");
    assert!(scene.confirmed.settings.is_empty());
    // By the client's startup: the same value is no deviation.
    assert_eq!(scene.asked_after("SET TIME ZONE 'UTC'", &["SET"]), "");
    assert!(scene.confirmed.settings.is_empty());
}

#[test]
fn a_report_that_no_text_explains_asks_for_its_source() {
    let mut scene = Scene::new();
    scene.run("SELECT f()", &["SELECT 1"]);
    scene.report("TimeZone", "Asia/Tokyo");
    assert_eq!(scene.asked(), "jit_above_cost statement_timeout ROLE ANY");
    let mut scene = Scene::new();
    scene.report("in_hot_standby", "off");
    assert_eq!(scene.asked(), "");
    scene.run("SELECT f()", &["SELECT 1"]);
    scene.report("is_superuser", "on");
    assert_eq!(scene.asked(), "ROLE");
}

/// A value that is not ASCII was reported in the client's encoding.
#[test]
fn a_reported_value_in_another_encoding_is_asked() {
    let mut scene = Scene::new();
    scene.run("SET search_path = '\u{e9}'", &["SET"]);
    scene.report("search_path", "\u{e9}");
    assert_eq!(scene.asked(), "search_path");
}

#[test]
fn a_set_that_nobody_read_pins() {
    let mut scene = Scene::new();
    scene.doubts.tag(b"SET");
    assert!(scene.settle().is_none());
    assert!(scene.confirmed.pins.contains(PinReason::Setting));
}

#[test]
fn a_reset_asks_for_what_was_set() {
    let mut scene = Scene::new();
    scene.set("work_mem", "1MB");
    scene.set("app.x", "1");
    scene.set("timezone", "Asia/Tokyo");
    assert_eq!(scene.asked_after("RESET work_mem", &["RESET"]), "app.x work_mem");
    scene.set("role", "joe");
    assert_eq!(
        scene.asked_after("DISCARD ALL", &["DISCARD ALL"]),
        "app.x work_mem ROLE"
    );
}

#[test]
fn a_pinned_session_is_asked_only_when_its_pin_may_go() {
    let mut scene = Scene::new();
    scene.confirmed.pins.insert(PinReason::Listen);
    assert_eq!(scene.asked_after("SELECT 1", &["SELECT 1"]), "");
    scene.run("SET work_mem = 1", &["SET"]);
    assert!(scene.settle().is_none());
    assert!(!scene.doubts.is_empty());
    scene.run("DEALLOCATE ALL", &["DEALLOCATE ALL"]);
    assert!(scene.settle().is_none());
    // Now for all of it.
    scene.run("UNLISTEN *", &["UNLISTEN"]);
    assert_eq!(scene.asked(), "work_mem listen");
}

/// P4, P30: what cannot be asked for stays.
#[test]
fn what_cannot_be_asked_pins_for_the_session() {
    for (sql, tags, reason) in [
        ("LOAD 'x'", &["LOAD"][..], PinReason::Load),
        ("SELECT setseed(0.5)", &["SELECT 1"], PinReason::Seed),
        ("SET SEED TO 0.5", &["SET"], PinReason::Seed),
        (
            "SELECT dblink_connect('a', 'b')",
            &["SELECT 1"],
            PinReason::Extension,
        ),
        ("SELECT lastval()", &["SELECT 1"], PinReason::Sequence),
        (
            "SELECT set_config(a, '1', false) FROM t",
            &["SELECT 1"],
            PinReason::Setting,
        ),
    ] {
        let mut scene = Scene::new();
        assert_eq!(scene.asked_after(sql, tags), "", "{sql}");
        assert!(scene.confirmed.pins.contains(reason), "{sql}");
        assert_eq!(scene.asked_after("DISCARD ALL", &["DISCARD ALL"]), "", "{sql}");
        let stays = reason != PinReason::Sequence;
        assert_eq!(scene.confirmed.pins.contains(reason), stays, "{sql}");
    }
}

#[test]
fn another_session_user_pins_until_it_is_reset() {
    let mut scene = Scene::new();
    scene.run("SET SESSION AUTHORIZATION joe", &["SET"]);
    scene.report("session_authorization", "joe");
    assert!(scene.settle().is_none());
    assert!(scene.confirmed.pins.contains(PinReason::SessionAuthorization));
    scene.run("RESET SESSION AUTHORIZATION", &["RESET"]);
    scene.report("session_authorization", "app");
    assert_eq!(scene.asked(), "ROLE");
    assert!(scene.confirmed.pins.is_empty());
}

/// P41: EXECUTE answers the tag of what it ran.
#[test]
fn what_sql_prepare_made_is_suspected_while_it_is_there() {
    let mut scene = Scene::new();
    scene.run(
        "PREPARE p AS SELECT set_config('app.x', '1', false)",
        &["PREPARE"],
    );
    let question = scene.settle().expect("a question");
    scene.confirmed.pins.insert(PinReason::Prepare);
    drop(question);
    scene.doubts.settled(&mut scene.confirmed);
    scene.run("EXECUTE p", &["SELECT 1"]);
    assert_eq!(
        scene.asked_after("DEALLOCATE p", &["DEALLOCATE"]),
        "app.x prepare"
    );
}

#[test]
fn names_in_parameters_come_from_the_bind() {
    let mut scene = Scene::new();
    let hint = Hint::of(b"SELECT set_config($1, $2, false)");
    let mut body = b"\0s\0\0\0\0\x02".to_vec();
    for value in ["App.Tenant", "7"] {
        body.extend(u32::try_from(value.len()).expect("short").to_be_bytes());
        body.extend(value.as_bytes());
    }
    scene.doubts.bind(&hint, &body);
    scene.doubts.tag(b"SELECT 1");
    assert_eq!(scene.asked(), "app.tenant");
    assert_eq!(scene.doubts.take_custom_names(), ["app.tenant".into()]);
    // A Bind that is cut before the name: the name is not known.
    scene.doubts.bind(&hint, &body[..9]);
    assert!(scene.settle().is_none());
    assert!(scene.confirmed.pins.contains(PinReason::Setting));
}

/// P23: also what is local, or rolled back.
#[test]
fn custom_names_that_were_touched_are_told() {
    let mut scene = Scene::new();
    scene.run("SET LOCAL app.x = 1", &["SET"]);
    scene.run(
        "SELECT set_config('app.y', '1', true), set_config('work_mem', '1', false)",
        &["SELECT 1"],
    );
    scene.run("SET app.x = 2", &["SET"]);
    let _ = scene.settle();
    scene.doubts.clear();
    assert_eq!(scene.doubts.take_custom_names(), ["app.x".into(), "app.y".into()]);
    assert!(scene.doubts.take_custom_names().is_empty());
}

#[test]
fn options_ask_at_every_boundary() {
    let mut scene = Scene::new();
    scene.options.names = ["app.tenant".into(), "timezone".into()].into();
    assert_eq!(scene.asked(), "app.tenant");
    scene.options.verify_always = true;
    assert_eq!(
        scene.asked(),
        "app.tenant jit_above_cost statement_timeout ROLE ANY prepare listen temporary_object hold_cursor advisory_lock"
    );
    scene.confirmed.pins.insert(PinReason::Listen);
    assert!(scene.settle().is_some());
}

#[test]
fn a_path_that_may_have_changed_is_not_shared() {
    for (sql, tag, is_open) in [
        ("SELECT 1", "SELECT 1", false),
        ("SET work_mem = 1", "SET", false),
        ("SET search_path = x", "SET", true),
        ("SET SCHEMA 'x'", "SET", true),
        ("SET ROLE x", "SET", true),
        ("RESET ALL", "RESET", true),
        ("SELECT set_config('search_path', 'x', false)", "SELECT 1", true),
        ("CREATE TEMP TABLE t(a int)", "CREATE TABLE", true),
    ] {
        let mut scene = Scene::new();
        scene.run(sql, &[tag]);
        assert_eq!(scene.doubts.is_path_open(), is_open, "{sql}");
    }
}

/// P12: short timeouts and costs are put aside before the longer part of a question.
#[test]
fn a_setting_that_disturbs_the_question_is_asked_with_it() {
    let mut scene = Scene::new();
    scene.set("statement_timeout", "1ms");
    assert_eq!(
        scene.asked_after("LISTEN x", &["LISTEN"]),
        "jit_above_cost statement_timeout listen"
    );
    assert_eq!(scene.asked_after("SET work_mem = 1", &["SET"]), "work_mem");
}
