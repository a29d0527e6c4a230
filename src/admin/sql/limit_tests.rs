//! What a query may take: words, depth, stack, memory and time.
#![allow(clippy::unwrap_used)]

use tokio_util::sync::CancellationToken;

use super::super::relation::Value;
use super::tests::{plan, refused, rows, session, told, told_with};

#[test]
fn size_and_depth_are_bounded() {
    assert_eq!(refused(&format!("SELECT 1{}", "::int".repeat(1000))), "54001");
    assert_eq!(refused(&format!("SELECT 1::int{}", "[]".repeat(1000))), "0A000");
    assert_eq!(refused(&format!("SELECT 1{}", " IS NULL".repeat(1000))), "54001");
    assert_eq!(
        refused(&format!("SELECT id FROM nodes ORDER BY 1{}", ", 1".repeat(200))),
        "54001"
    );
    assert_eq!(
        refused(&format!("SELECT 1 FROM nodes GROUP BY 1{}", ", 1".repeat(200))),
        "54001"
    );
    let wide = format!("SELECT {}1", "1, ".repeat(300));
    assert_eq!(refused(&wide), "54001");
    let list: Vec<String> = (0..400).map(|number| number.to_string()).collect();
    let list = format!("SELECT id FROM nodes WHERE id IN ({})", list.join(", "));
    assert_eq!(told(&list), "1 2 3 4 5");
}

/// At the limit they are answered, and beyond it the error names it.
#[test]
fn a_nested_expression_that_is_too_deep_is_called_that() {
    for (begin, inner, end) in [
        ("(", "true", ")"),
        ("not ", "true", ""),
        ("coalesce(", "true", ")"),
        ("CASE WHEN true THEN ", "true", " END"),
    ] {
        let nested = |depth: usize| {
            format!(
                "SELECT {}{inner}{} IS NULL",
                begin.repeat(depth),
                end.repeat(depth)
            )
        };
        assert!(["t", "f"].contains(&&*told(&nested(20))), "{}", told(&nested(20)));
        for depth in [21, 400, 1000] {
            let reply = plan(&nested(depth)).unwrap_err();
            assert_eq!(reply.code, "54001", "{begin}: {}", reply.message);
            assert!(
                reply.message.contains("nested deeper than 20"),
                "{}",
                reply.message
            );
            assert!(reply.hint.is_some());
        }
    }
    let casts = plan(&format!("SELECT 1{}", "::int".repeat(40))).unwrap_err();
    assert!(casts.message.contains("deeper than 40"), "{}", casts.message);
}

/// What they compare is read again for each comparison: twice as much with each level.
#[test]
fn between_and_case_in_each_other_stay_small() {
    let between = |count| format!("SELECT true{}", " BETWEEN false AND true".repeat(count));
    assert_eq!(told(&between(10)), "t");
    assert_eq!(refused(&between(38)), "54001");
    let case = (0..20).fold("1".to_owned(), |inner, _| {
        format!("CASE {inner} WHEN 1 THEN 1 WHEN 2 THEN 2 WHEN 3 THEN 3 END")
    });
    assert_eq!(refused(&format!("SELECT {case}")), "54001");
    // A long text for each of many comparisons.
    let text = "x".repeat(30_000);
    let case = |whens: usize| {
        format!(
            "SELECT CASE '{text}' {} ELSE 1 END",
            "WHEN '' THEN 0 ".repeat(whens)
        )
    };
    assert_eq!(told(&case(10)), "1");
    assert_eq!(refused(&case(1000)), "54001");
    let case = format!("SELECT CASE 7 {} END", "WHEN 1 THEN 2 ".repeat(2000));
    assert_eq!(told(&case), "", "programs write long ones");
}

/// To prepare one takes time and memory by its size, to use it time by that and the text's length:
/// for this one, minutes.
#[test]
fn what_regular_expressions_take_is_bounded() {
    let large = "name ~ '[ab]{255}[ab]{255}[ab]{255}'";
    let all = |count: usize| {
        let all = vec![large; count].join(" OR ");
        format!("SELECT count(*) FROM nodes WHERE {all}")
    };
    assert_eq!(told(&all(5)), "0");
    assert_eq!(refused(&all(500)), "54001");
    let small = vec!["name ~ '^x'"; 1000].join(" OR ");
    assert_eq!(told(&format!("SELECT count(*) FROM nodes WHERE {small}")), "0");
    // Letters without a pattern of their own: the engine finds no short cut.
    let mut seed = 1_u32;
    let letters = (0..60_000).map(|_| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        if seed >> 31 == 0 { 'a' } else { 'b' }
    });
    let text = [Value::text(letters.collect::<String>())];
    let sql = format!(
        "SELECT count(*) FROM nodes WHERE $1 ~ '(a|b)*a{}x'",
        "[ab]{255}".repeat(15)
    );
    assert!(told_with(&sql, &text).starts_with("54000 "));
    assert_eq!(
        told_with("SELECT count(*) FROM nodes WHERE $1 ~ 'b$'", &text),
        "5"
    );
}

/// As programs make them.
#[test]
fn a_row_of_operators_may_be_long() {
    let row = |term: &str, sign: &str, count: usize| vec![term; count].join(sign);
    for (sql, expected) in [
        (format!("SELECT {}", row("1", " + ", 5000)), "5000"),
        (format!("SELECT {}", row("1", " - ", 5000)), "-4998"),
        (format!("SELECT length({})", row("'ab'", " || ", 1000)), "2000"),
        (
            format!(
                "SELECT id FROM nodes WHERE {} OR id = 2",
                row("id = 7", " OR ", 1000)
            ),
            "2",
        ),
        (
            format!(
                "SELECT id FROM nodes WHERE {} AND lag < 9",
                row("lag < 10", " AND ", 1000)
            ),
            "1 5",
        ),
        (
            format!(
                "SELECT id FROM nodes WHERE {}",
                row("(id = 1 AND up OR lag IS NULL)", " AND ", 500)
            ),
            "1 3",
        ),
        (
            format!("SELECT id FROM nodes WHERE id IN ({})", row("2", ",", 4000)),
            "2",
        ),
        (
            format!("SELECT id FROM nodes WHERE {} IS NULL", row("lag", " + ", 1000)),
            "3",
        ),
        (
            format!(
                "SELECT count(*) FROM nodes WHERE {}",
                row("lag > 0", " OR ", 1000)
            ),
            "3",
        ),
    ] {
        assert_eq!(told(&sql), expected, "{sql:.60}");
    }
    assert_eq!(refused(&format!("SELECT {}", row("1", " + ", 5001))), "54001");
    // What is not understood is not written out, which would take the stack of its length.
    for sql in [
        format!("SELECT ({})[1]", row("id", " + ", 4000)),
        format!("SELECT {} COLLATE x", row("id", " OR ", 4000)),
        format!("SELECT id IN (({})), (1)", row("id", " + ", 4000)),
    ] {
        assert!(
            ["0A000", "42601", "42703"].contains(&&*refused(&sql)),
            "{sql:.60}"
        );
    }
    let text = [Value::text("x".repeat(60_000))];
    let sql = format!("SELECT {}", row("$1", " || ", 4000));
    assert_eq!(
        told_with(&sql, &text),
        "54000 a text that the query makes is longer than 1 MiB"
    );
}

#[test]
fn rows_of_operators_may_begin_with_a_key() {
    for (sql, expected) in [
        (
            "SELECT lag + id + 1 FROM nodes WHERE up GROUP BY lag + id ORDER BY 1",
            "2 13 15",
        ),
        ("SELECT lag + id + lag FROM nodes GROUP BY lag + id", "42803"),
        (
            "SELECT up AND id > 1 AND true FROM nodes GROUP BY up AND id > 1 ORDER BY 1",
            "f t",
        ),
        (
            "SELECT lag + id + 1 + max(id) FROM nodes WHERE id < 3 GROUP BY lag + id, lag + id + 1 ORDER BY 1",
            "3 15",
        ),
    ] {
        let told = told(sql);
        assert!(
            told == expected || told.starts_with(&format!("{expected} column")),
            "{sql}: {told}"
        );
    }
}

/// The parser would call itself for them, without a bound of its own.
#[test]
fn what_takes_much_stack_is_refused_before_it_is_parsed() {
    for sql in [
        format!("SELECT 1 FROM nodes{}", " JOIN nodes".repeat(4000)),
        format!("SELECT 1 FROM {}nodes", "(".repeat(24)),
        format!("SELECT 1 FROM nodes, {}nodes", "(".repeat(24)),
        format!("SELECT DISTINCT FROM {}nodes", "(".repeat(24)),
        format!("{}SELECT 1", "(".repeat(24)),
        format!("SELECT 1 UNION {}1", "(".repeat(24)),
        format!("SELECT EXISTS {}1", "(".repeat(24)),
        format!("SELECT ARRAY {}1", "(".repeat(24)),
        format!("SELECT 1 IN {}1", "(".repeat(24)),
    ] {
        assert!(
            ["0A000", "42601"].contains(&&*refused(&sql)),
            "{sql:.40}: {}",
            told(&sql)
        );
    }
    for words in ["INTERVAL ", "CASE ", "- ", "CAST(1 AS ARRAY<"] {
        assert_eq!(
            refused(&format!("SELECT {}", words.repeat(4000))),
            "54001",
            "{words}"
        );
    }
    assert_eq!(told("SELECT id FROM nodes WHERE id IN ((1), 2)"), "1 2");
    assert_eq!(
        told("SELECT count(*) FROM nodes WHERE lag IS DISTINCT FROM (10)"),
        "3"
    );
    assert_eq!(told("SELECT extract(epoch FROM (at)) FROM nodes LIMIT 1"), "1");
}

/// Work for a second, of which nothing is left to do if nobody waits for it.
#[test]
fn a_query_that_nobody_waits_for_ends() {
    let sql = format!(
        "SELECT count(*) FROM nodes WHERE $1 LIKE '%{}b'",
        "a".repeat(3000)
    );
    let long = [Value::text("a".repeat(60_000))];
    assert!(told_with(&sql, &long).starts_with("54000 "));
    let ended = CancellationToken::new();
    ended.cancel();
    let run = plan(&sql).unwrap().run(rows(), &long, &session(), 0, &ended);
    assert_eq!(run.unwrap_err().code, "57014");
}

/// However long a text is, and however many rows there are.
#[test]
fn what_a_query_keeps_is_bounded() {
    let long = [Value::text("x".repeat(10 << 20))];
    for sql in [
        "SELECT $1::text FROM nodes",
        "SELECT name FROM nodes ORDER BY $1 || name",
        "SELECT count(*) FROM nodes GROUP BY $1 || name",
        "SELECT min($1 || name) FROM nodes",
    ] {
        assert!(told_with(sql, &long).starts_with("54000 "), "{sql}");
    }
    assert_eq!(
        told_with("SELECT count(*) FROM nodes WHERE length($1) > 5", &long),
        "5"
    );
}
