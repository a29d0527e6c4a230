#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

#[test]
fn the_parameter_is_bound_outside_of_quotes_and_comments_only() {
    let bound = |sql: &str| bind(sql, b"bob", None);
    assert_eq!(bound("SELECT * FROM f($1)"), "SELECT * FROM f( E'bob')");
    assert_eq!(bound("SELECT $1,$1"), "SELECT  E'bob', E'bob'");
    assert_eq!(
        bound("SELECT '$1', \"$1\", $10, a$1"),
        "SELECT '$1', \"$1\", $10, a$1"
    );
    assert_eq!(
        bound("-- $1\nSELECT /* $1 */ $1"),
        "-- $1\nSELECT /* $1 */  E'bob'"
    );
    assert_eq!(bound("SELECT 'it''s $1'"), "SELECT 'it''s $1'");
    assert_eq!(bound("SELECT é$1 '"), "SELECT é$1 '");
    assert_eq!(bound("/* $1"), "/* $1");
}

#[test]
fn a_name_is_only_ever_a_value() {
    assert_eq!(bind("$1", b"o'brien", None), " E'o''brien'");
    assert_eq!(bind("$1", br"a\' OR 1=1 --", None), r" E'a\\'' OR 1=1 --'");
    assert_eq!(bind("$1", b"$1", None), " E'$1'");
}

#[test]
fn a_name_that_may_be_invalid_in_the_databases_encoding_is_selected_by_its_bytes() {
    let bound = |name: &[u8], encoding: &str| bind("f($1)", name, Some(encoding.as_bytes()));
    assert_eq!(bound("ren\u{e9}".as_bytes(), "UTF8"), "f( E'ren\u{e9}')");
    for (name, encoding, digits) in [
        (&b"ren\xe9"[..], "UTF8", "72656ee9"),
        (b"ren\xe9", "LATIN1", "72656ee9"),
        ("ren\u{e9}".as_bytes(), "LATIN1", "72656ec3a9"),
        (b"\xff'; --", "SQL_ASCII", "ff273b202d2d"),
    ] {
        let bound = bound(name, encoding);
        assert!(
            bound.is_ascii() && bound.contains(&format!("decode('{digits}', 'hex')")),
            "{bound}"
        );
    }
}

/// Reads a constant as PostgreSQL's lexer does; `None` if it ends early.
fn lex(constant: &str) -> Option<String> {
    let body = constant.trim_start().strip_prefix("E'")?;
    let mut text = String::new();
    let mut chars = body.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\\' => text.push(chars.next()?),
            '\'' if chars.peek() == Some(&'\'') => {
                chars.next();
                text.push('\'');
            }
            '\'' => return chars.next().is_none().then_some(text),
            other => text.push(other),
        }
    }
    None
}

proptest! {
    #[test]
    fn every_name_reads_back_as_itself(name in "[^\\x00]{0,40}") {
        prop_assert_eq!(lex(&bind("$1", name.as_bytes(), Some(b"UTF8"))), Some(name));
    }

    #[test]
    fn binding_never_panics(sql in "[ -~é'\"$1/*\\-\n]{0,60}") {
        bind(&sql, b"x", None);
    }
}

#[test]
fn the_row_must_belong_to_the_requested_user() {
    let row = |name: Option<&str>, password: Option<&str>| {
        vec![vec![
            name.map(|n| n.as_bytes().to_vec()),
            password.map(|p| p.as_bytes().to_vec()),
        ]]
    };
    assert!(matches!(first(&[], b"bob"), Ok(LookedUp::NoPassword)));
    assert!(matches!(
        first(&row(None, None), b"bob"),
        Ok(LookedUp::NoPassword)
    ));
    assert!(matches!(
        first(&row(Some("bob"), None), b"bob"),
        Ok(LookedUp::NoPassword)
    ));
    assert!(matches!(
        first(&row(Some("bob"), Some("x")), b"bob"),
        Ok(LookedUp::Unsupported(_))
    ));
    assert!(matches!(
        first(&row(Some("eve"), None), b"bob"),
        Err(LookupError::Query(_))
    ));
    assert!(matches!(first(&[vec![None]], b"bob"), Err(LookupError::Query(_))));
}
