use super::*;

fn row(columns: &[Option<&str>]) -> Vec<u8> {
    let mut body = u16::try_from(columns.len()).expect("few").to_be_bytes().to_vec();
    for column in columns {
        match column {
            None => body.extend((-1_i32).to_be_bytes()),
            Some(value) => {
                body.extend(u32::try_from(value.len()).expect("short").to_be_bytes());
                body.extend(value.as_bytes());
            }
        }
    }
    body
}

fn digits(value: &str) -> String {
    value.bytes().fold(String::new(), |mut digits, byte| {
        let _ = write!(digits, "{byte:02x}");
        digits
    })
}

fn asked(names: &[&str]) -> Asked {
    Asked {
        names: names.iter().map(|&name| name.into()).collect(),
        ..Asked::default()
    }
}

fn shown(settings: &Settings) -> String {
    let all: Vec<String> = settings
        .iter()
        .map(|(name, value)| format!("{name}={}", String::from_utf8_lossy(value)))
        .collect();
    all.join(" ")
}

#[test]
fn every_question_is_ascii_and_qualified() {
    let all = Asked {
        role: true,
        any_setting: true,
        pins: Kinds::PINS,
        ..asked(&["app.\u{e9}'", "statement_timeout"])
    };
    let sql = sql(&all);
    assert!(sql.is_ascii());
    assert!(sql.starts_with(BEGIN) && sql.ends_with("; COMMIT"));
    // Each call and each operator says where it is from.
    for (at, _) in sql.match_indices('(') {
        let before = &sql[..at];
        let start = before.rfind([' ', '(', ',']).map_or(0, |start| start + 1);
        let name = &before[start..];
        let is_keyword = matches!(name, "" | "EXISTS" | "OPERATOR");
        assert!(is_keyword || name.starts_with("pg_catalog."), "{name}");
    }
    assert!(!sql.replace("(pg_catalog.=)", "").contains('='));
}

#[test]
fn a_value_that_differs_from_its_reset_is_a_deviation() {
    let mut question = Question::new(Asked {
        role: true,
        ..asked(&["a", "app.x", "app.y", "b"])
    });
    let hex = |value| Some(digits(value));
    let values = [
        Some("n".to_owned()),
        hex("1"),
        hex(""),
        None,
        hex("2"),
        hex("none"),
        hex("none"),
        hex("0"),
        hex("2"),
    ];
    let values: Vec<_> = values.iter().map(Option::as_deref).collect();
    question.row(&row(&values)).expect("a row");
    let mut confirmed = Confirmed::default();
    for (name, value) in [("b", "1"), ("role", "joe"), ("app.y", "1"), ("other", "1")] {
        assert!(confirmed.settings.set(name, Some(value.as_bytes())));
    }
    let mut doubts = Doubts::default();
    question.finish(&mut confirmed, &mut doubts);
    assert_eq!(shown(&confirmed.settings), "a=1 app.x= other=1");
    assert!(confirmed.pins.is_empty() && doubts.is_empty());
}

#[test]
fn pins_are_what_the_server_says() {
    let mut question = Question::new(Asked {
        pins: Kinds::LISTEN.and(Kinds::CURSOR),
        ..Asked::default()
    });
    question
        .row(&row(&[Some("p"), Some("f"), Some("t")]))
        .expect("a row");
    let mut confirmed = Confirmed::default();
    confirmed.pins.insert(PinReason::Listen);
    confirmed.pins.insert(PinReason::Prepare);
    question.finish(&mut confirmed, &mut Doubts::default());
    let pins: Vec<_> = confirmed.pins.iter().collect();
    assert_eq!(pins, [PinReason::Prepare, PinReason::HoldCursor]);
}

/// P9.
#[test]
fn what_the_session_has_set_replaces_all_but_custom_names() {
    let mut question = Question::new(Asked {
        any_setting: true,
        ..Asked::default()
    });
    for (name, value) in [
        ("DateStyle", "German, DMY"),
        ("transaction_isolation", "serializable"),
        ("work_mem", "1MB"),
    ] {
        question
            .row(&row(&[Some("s"), Some(name), Some(&digits(value))]))
            .expect("a row");
    }
    let mut confirmed = Confirmed::default();
    assert!(confirmed.settings.set("gone", Some(b"1")) && confirmed.settings.set("app.x", Some(b"1")));
    question.finish(&mut confirmed, &mut Doubts::default());
    assert_eq!(
        shown(&confirmed.settings),
        "app.x=1 datestyle=German, DMY work_mem=1MB"
    );
}

#[test]
fn a_question_that_failed_pins_until_one_is_answered() {
    let (mut confirmed, mut doubts) = (Confirmed::default(), Doubts::default());
    doubts.query(&super::super::Hint::of(b"SET work_mem = 1"));
    let (login, options) = (
        super::super::Reported::default(),
        super::super::StateOptions::default(),
    );
    let mut question = doubts
        .settle(&mut confirmed, &login, &login, &options)
        .expect("a question");
    assert!(question.sql().contains("set_config"));
    question.error();
    question.finish(&mut confirmed, &mut doubts);
    assert!(confirmed.pins.contains(PinReason::Unanswered));
    // The second try is simpler.
    let mut question = doubts
        .settle(&mut confirmed, &login, &login, &options)
        .expect("a question");
    assert!(!question.sql().contains("set_config"));
    question
        .row(&row(&[Some("n"), Some(&digits("1kB"))]))
        .expect("a row");
    question.finish(&mut confirmed, &mut doubts);
    assert!(confirmed.pins.is_empty() && doubts.is_empty());
    assert_eq!(shown(&confirmed.settings), "work_mem=1kB");
}

#[test]
fn an_answer_that_is_not_whole_is_none() {
    let (mut confirmed, mut doubts) = (Confirmed::default(), Doubts::default());
    Question::new(asked(&["a"])).finish(&mut confirmed, &mut doubts);
    assert!(confirmed.pins.contains(PinReason::Unanswered));
    let mut confirmed = Confirmed::default();
    let mut question = Question::new(asked(&["a"]));
    question.row(&row(&[Some("n"), Some("00")])).expect("a row");
    question.finish(&mut confirmed, &mut doubts);
    assert!(confirmed.pins.contains(PinReason::Unanswered));
}

#[test]
fn settings_beyond_the_limits_pin() {
    let mut question = Question::new(asked(&["app.x"]));
    question
        .row(&row(&[Some("n"), Some(&digits(&"x".repeat(MAX_BYTES + 1)))]))
        .expect("a row");
    let mut confirmed = Confirmed::default();
    question.finish(&mut confirmed, &mut Doubts::default());
    assert!(confirmed.pins.contains(PinReason::Setting) && confirmed.settings.is_empty());
}

#[test]
fn rows_of_another_form_are_refused() {
    let question = || {
        Question::new(Asked {
            pins: Kinds::LISTEN,
            ..asked(&["a"])
        })
    };
    for columns in [
        &[][..],
        &[None],
        &[Some("x")],
        &[Some("n"), Some("0")],
        &[Some("p")],
        &[Some("p"), Some("t"), Some("t")],
        &[Some("s"), None, None],
    ] {
        assert_eq!(question().row(&row(columns)), Err(Malformed), "{columns:?}");
    }
    proptest::proptest!(|(body: Vec<u8>)| { let _ = question().row(&body); });
}
