//! The words of a statement that drivers send, and the statements of a query.

use crate::wire::message::ErrorReply;
use crate::wire::sqlstate::SqlState;

/// A quote or a comment that is not ended, by what begins it, and where it begins.
fn unended(sql: &str, at: usize) -> ErrorReply {
    let (before, rest) = sql.split_at(at);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    let (what, end) = match rest.chars().next() {
        Some('"') => ("quoted identifier", "\""),
        Some('/') => ("/* comment", "*/"),
        Some('$') => ("dollar-quoted string", "the same sign between two $"),
        _ => ("quoted string", "'"),
    };
    let near: String = rest.chars().take(30).collect();
    ErrorReply::error(
        SqlState::SYNTAX_ERROR,
        format!("unterminated {what} at or near \"{near}\""),
    )
    .hint(format!(
        "It begins at line {line}, column {column}, and ends with {end}"
    ))
}

/// Statements of one query.
const MOST_STATEMENTS: usize = 16;
/// Words of a statement that is no query.
const MOST_TOKENS: usize = 64;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Token {
    /// A word without quotes, in small letters; also a number.
    Word(String),
    /// A name in double quotes, as it is meant.
    Quoted(String),
    /// A text in single quotes, as it is meant.
    Text(String),
    Sign(char),
}

impl Token {
    pub(super) fn is(&self, word: &str) -> bool {
        matches!(self, Self::Word(own) if own == word)
    }

    /// What stands for a name or a value.
    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Self::Word(text) | Self::Quoted(text) | Self::Text(text) => Some(text),
            Self::Sign(_) => None,
        }
    }
}

/// Where something ends that begins at the start of `text`; `None`: nothing of the kind begins
/// there. What has no end runs to the end of the text.
fn skipped(text: &str) -> Option<usize> {
    if text.starts_with("--") {
        return Some(text.find('\n').unwrap_or(text.len()));
    }
    if text.starts_with("/*") {
        let (mut depth, mut at) = (0_usize, 0);
        loop {
            let rest = &text[at..];
            if rest.starts_with("/*") {
                depth += 1;
                at += 2;
            } else if rest.starts_with("*/") {
                depth -= 1;
                at += 2;
            } else {
                let Some(c) = rest.chars().next() else {
                    return Some(text.len());
                };
                at += c.len_utf8();
            }
            if depth == 0 {
                return Some(at);
            }
        }
    }
    None
}

/// The length of what is in these quotes, which are doubled inside, with both quotes.
fn quoted(text: &str, quote: char) -> usize {
    let mut at = 1;
    loop {
        let Some(end) = text[at..].find(quote) else {
            return text.len();
        };
        at += end + 1;
        if !text[at..].starts_with(quote) {
            return at;
        }
        at += 1;
    }
}

/// Whether what is in these quotes has the last one: an odd number of them at its end, or one
/// behind something else.
fn is_ended(text: &str, quote: char) -> bool {
    text.matches(quote).count().is_multiple_of(2)
}

fn is_ended_comment(text: &str) -> bool {
    text.matches("/*").count() <= text.matches("*/").count()
}

fn is_in_word(before: &str) -> bool {
    before.ends_with(|c: char| c.is_alphanumeric() || matches!(c, '_' | '$'))
}

/// Whether a quote behind this begins a text with escapes: `E'it\'s'`.
fn has_escapes(before: &str) -> bool {
    before
        .strip_suffix(['e', 'E'])
        .is_some_and(|before| !is_in_word(before))
}

/// The length of a text with escapes, with both quotes; `None`: it has no end.
fn escaped(text: &str) -> Option<usize> {
    let mut chars = text.char_indices().skip(1).peekable();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => {
                chars.next();
            }
            '\'' if chars.peek().is_some_and(|(_, next)| *next == '\'') => {
                chars.next();
            }
            '\'' => return Some(at + 1),
            _ => {}
        }
    }
    None
}

/// What begins a text between `$tag$` and the same.
fn dollar_tag(text: &str) -> Option<&str> {
    let end = text[1..].find('$')? + 1;
    let name = &text[1..end];
    let is_tag = name.chars().all(|c| c.is_alphanumeric() || c == '_')
        && !name.starts_with(|c: char| c.is_ascii_digit());
    is_tag.then(|| &text[..=end])
}

/// The text from its first word on.
pub(super) fn without_lead(sql: &str) -> &str {
    let mut rest = sql.trim_start();
    while let Some(length) = skipped(rest) {
        rest = rest[length..].trim_start();
    }
    rest
}

/// The statements of a query, without those of blanks and comments.
///
/// # Errors
/// There are too many, or a quote or a comment has no end.
pub(super) fn statements(sql: &str) -> Result<Vec<&str>, ErrorReply> {
    let mut all = Vec::new();
    let (mut begin, mut at, mut is_blank) = (0, 0, true);
    loop {
        let rest = &sql[at..];
        let next = rest.chars().next();
        if matches!(next, None | Some(';')) {
            if !is_blank {
                all.push(&sql[begin..at]);
            }
            if all.len() > MOST_STATEMENTS {
                return Err(ErrorReply::error(
                    SqlState::PROGRAM_LIMIT_EXCEEDED,
                    format!("a query of the console has at most {MOST_STATEMENTS} statements"),
                ));
            }
        }
        let Some(c) = next else { return Ok(all) };
        if c == ';' {
            at += 1;
            (begin, is_blank) = (at, true);
        } else if let Some(length) = skipped(rest) {
            if rest.starts_with("/*") && !is_ended_comment(&rest[..length]) {
                return Err(unended(sql, at));
            }
            at += length;
        } else {
            is_blank &= c.is_whitespace();
            let length = match c {
                '\'' if has_escapes(&sql[..at]) => escaped(rest),
                '\'' | '"' => Some(quoted(rest, c)).filter(|length| is_ended(&rest[..*length], c)),
                '$' if !is_in_word(&sql[..at]) => match dollar_tag(rest) {
                    Some(tag) => rest[tag.len()..].find(tag).map(|end| end + 2 * tag.len()),
                    None => Some(1),
                },
                c => Some(c.len_utf8()),
            };
            at += length.ok_or_else(|| unended(sql, at))?;
        }
    }
}

/// The words and signs of a statement; `None`: there are too many.
pub(super) fn tokens(sql: &str) -> Option<Vec<Token>> {
    let mut all = Vec::new();
    let mut rest = sql;
    while let Some(c) = rest.chars().next() {
        let is_part = |c: char| c.is_alphanumeric() || matches!(c, '_' | '.' | '$');
        let length = if c.is_whitespace() {
            c.len_utf8()
        } else if let Some(length) = skipped(rest) {
            length
        } else if c == '\'' || c == '"' {
            let length = quoted(rest, c);
            let inner = &rest[1..length];
            let inner = inner
                .strip_suffix(c)
                .unwrap_or(inner)
                .replace(&format!("{c}{c}"), &c.to_string());
            all.push(if c == '"' {
                Token::Quoted(inner)
            } else {
                Token::Text(inner)
            });
            length
        } else if is_part(c) {
            let length = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
            all.push(Token::Word(rest[..length].to_lowercase()));
            length
        } else {
            all.push(Token::Sign(c));
            c.len_utf8()
        };
        if all.len() > MOST_TOKENS {
            return None;
        }
        rest = &rest[length..];
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_query_is_split_where_postgresql_splits_it() {
        for (sql, expected) in [
            ("", &[][..]),
            (" ; -- a;b\n ; /* c;d /* e */ ; */", &[]),
            ("SELECT 1", &["SELECT 1"]),
            ("SELECT 1;", &["SELECT 1"]),
            ("a; b ;c", &["a", " b ", "c"]),
            ("SELECT ';', \";\" ; b", &["SELECT ';', \";\" ", " b"]),
            ("SELECT 'it''s;' ; b", &["SELECT 'it''s;' ", " b"]),
            ("SELECT E'a\\';b' ; c", &["SELECT E'a\\';b' ", " c"]),
            (
                "SELECT $$a;'$$, $x$ $$;\" $x$ ; c",
                &["SELECT $$a;'$$, $x$ $$;\" $x$ ", " c"],
            ),
            ("SELECT $1, a$b ; c", &["SELECT $1, a$b ", " c"]),
            ("SELECT date'1' ; c", &["SELECT date'1' ", " c"]),
            ("a /* ; */ -- ; \n + 1; é", &["a /* ; */ -- ; \n + 1", " é"]),
        ] {
            assert_eq!(statements(sql).unwrap(), expected, "{sql}");
        }
        assert_eq!(statements(&"a;".repeat(16)).unwrap().len(), 16);
        assert_eq!(statements(&"a;".repeat(17)).unwrap_err().code.as_str(), "54000");
    }

    #[test]
    fn what_has_no_end_says_where_it_begins() {
        for (sql, what, place) in [
            (
                "SELECT 'no end; b",
                "quoted string at or near \"'no end; b\"",
                "line 1, column 8",
            ),
            ("SELECT 'a''", "quoted string", "line 1, column 8"),
            (
                "a;\nSELECT 'é', 'x",
                "quoted string at or near \"'x\"",
                "line 2, column 13",
            ),
            (
                "PAUSE \"rw",
                "quoted identifier at or near \"\"rw\"",
                "line 1, column 7",
            ),
            ("SELECT E'it\\'", "quoted string", "line 1, column 9"),
            ("SELECT $x$ $$", "dollar-quoted string", "line 1, column 8"),
            ("SELECT 1 /* a /* b */", "/* comment", "line 1, column 10"),
        ] {
            let reply = statements(sql).unwrap_err();
            assert_eq!(reply.code, "42601", "{sql}");
            assert!(
                reply.message.contains(&format!("unterminated {what}")),
                "{}",
                reply.message
            );
            assert!(reply.hint.as_ref().unwrap().contains(place), "{sql}: {reply:?}");
        }
    }

    #[test]
    fn words_texts_and_signs_are_told_apart() {
        let word = |text: &str| Token::Word(text.to_owned());
        assert_eq!(
            tokens("SET /* x */ Time Zone='it''s' -- end").unwrap(),
            [
                word("set"),
                word("time"),
                word("zone"),
                Token::Sign('='),
                Token::Text("it's".to_owned())
            ]
        );
        assert_eq!(
            tokens("SAVEPOINT \"A \"\"b\"").unwrap()[1],
            Token::Quoted("A \"b".to_owned())
        );
        assert_eq!(tokens("'open").unwrap(), [Token::Text("open".to_owned())]);
        assert!(tokens(&"a ".repeat(65)).is_none());
    }
}
