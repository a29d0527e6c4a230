#![allow(clippy::unwrap_used)]
use super::*;

#[test]
fn usual_texts_are_clean() {
    for text in [
        "SELECT 1",
        "select a, b from t where c = $1 and d in (1, 2) into_the",
        "INSERT INTO t (a) VALUES ($1) RETURNING id;",
        "insert\n  into t values (1)",
        "MERGE INTO t USING s ON true",
        "UPDATE temperatures SET template = attempt & 3 WHERE contempt",
        "DELETE FROM t",
        "BEGIN",
        "COMMIT;",
        "ROLLBACK ;\n",
        "(SELECT 1) UNION (SELECT 2)",
        "SELECT pg_advisory_xact_lock(1)",
        "SELECT id, advisory, my_setseed FROM lastvals, newcurrval",
        "",
        ";",
    ] {
        assert!(is_clean(text.as_bytes()), "{text}");
        assert!(is_clean(format!("{text}\0").as_bytes()), "{text}");
    }
}

/// What the pass over the text misses, nobody finds: each word, at each place, in each case.
#[test]
fn each_suspicious_word_is_found_wherever_it_stands() {
    let around = |word: &str| match word {
        "advisory" => "pg_advisory_lock(1)".to_owned(),
        word => format!("{word}(1)"),
    };
    for Suspicious { word, .. } in &WORDS {
        let word = around(std::str::from_utf8(word).unwrap());
        for shift in 0..7 {
            for text in [
                format!("SELECT {}{word}", " ".repeat(shift)),
                format!("SELECT {}{}", " ".repeat(shift), word.to_uppercase()),
                format!("SELECT {}\"{word}", "y".repeat(shift)),
                format!("SELECT {},{word}", "t".repeat(shift)),
            ] {
                assert!(!is_clean(text.as_bytes()), "{text}");
            }
        }
    }
}

#[test]
fn suspicious_starts_and_second_statements_are_looked_at() {
    for text in [
        "SET a = 1",
        "  set a = 1",
        "do $$ $$",
        "CREATE TABLE t(a int)",
        "/* x */ SELECT 1",
        "-- x\nSELECT 1",
        "SELECT 1; SELECT 2",
        "SELECT U&\"\\0061\"",
        "SELECT pg_temp.f()",
        "SELECT 1 INTO t",
        "CREATE TEMPORARY VIEW v AS SELECT 1",
    ] {
        assert!(!is_clean(text.as_bytes()), "{text}");
    }
}

/// The quick pass and the analysis agree: what is clean for the first has nothing for the second.
#[test]
fn a_clean_text_has_nothing_suspicious() {
    let words = [
        "SELECT ",
        "set_config",
        "(",
        "'a.b'",
        ",",
        "true)",
        " INTO ",
        "insert ",
        "temp",
        "pg_temp",
        ".",
        "orary",
        "pg_advisory_lock",
        "_xact",
        "currval",
        "lastval",
        "setseed",
        "\"",
        "u&",
        " ",
        "x",
        "_",
        "update ",
        "pg_settings",
        "pg_replication_origin_session_setup",
        "pg_backup_start",
        "pg_start_backup",
        "dblink_connect",
        "pg_create_logical_replication_slot",
        "'",
        "\\",
    ];
    proptest::proptest!(|(picks in proptest::collection::vec(0..words.len(), 0..12))| {
        let text: String = picks.into_iter().map(|pick| words[pick]).collect();
        let text = format!("WITH {text}");
        let found = analyse(text.as_bytes());
        // A quote that does not end is a syntax error.
        let is_nothing = found.is_empty() || found.kinds.has(Kinds::ANYTHING);
        proptest::prop_assert!(!is_clean(text.as_bytes()) || is_nothing, "{}: {:?}", text, found);
    });
}

#[test]
fn the_words_of_a_long_text_are_found_in_each_piece() {
    let text = format!(
        "INSERT INTO t SELECT '{0}', pg_advisory_lock(1), '{0}', set_config('a.b', 'x', false), '{0}'",
        "some; text ".repeat(20)
    );
    for size in [1, 7, 63, 64, 65, 200] {
        let mut pieces = text.as_bytes().chunks(size);
        let mut long = LongText::new(pieces.next().unwrap());
        pieces.for_each(|piece| long.piece(piece));
        let found = long.finish();
        let kinds = found.suspicion().unwrap().kinds;
        assert!(
            kinds.has(Kinds::ADVISORY) && kinds.has(Kinds::UNKNOWN_NAME),
            "{size}"
        );
        assert!(!kinds.has(Kinds::SEED), "{size}");
    }
    for (values, is_clean) in [("some, text ", true), ("some; text ", false)] {
        let text = format!("INSERT INTO t VALUES ('{}')", values.repeat(20));
        let mut long = LongText::new(&text.as_bytes()[..100]);
        long.piece(&text.as_bytes()[100..]);
        assert_eq!(long.finish().is_clean(), is_clean, "{values}");
    }
}

#[test]
fn a_text_that_reads_a_sequence_says_so() {
    assert!(Hint::of(b"SELECT currval('s')").reads_sequence());
    assert!(!Hint::of(b"SELECT nextval('s'), set_config('a', 'b', false)").reads_sequence());
}
