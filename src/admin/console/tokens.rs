//! The words of a statement that drivers send, and the statements of a query.

use crate::wire::message::ErrorReply;
use crate::wire::sqlstate::SqlState;

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
/// There are too many.
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
            at += length;
        } else {
            is_blank &= c.is_whitespace();
            at += match c {
                '\'' | '"' => quoted(rest, c),
                c => c.len_utf8(),
            };
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
            ("SELECT 'no end; b", &["SELECT 'no end; b"]),
            ("/* no end; b", &[]),
            ("a /* ; */ -- ; \n + 1; é", &["a /* ; */ -- ; \n + 1", " é"]),
        ] {
            assert_eq!(statements(sql).unwrap(), expected, "{sql}");
        }
        assert_eq!(statements(&"a;".repeat(16)).unwrap().len(), 16);
        assert_eq!(statements(&"a;".repeat(17)).unwrap_err().code.as_str(), "54000");
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
