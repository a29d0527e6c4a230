//! Bytes from outside (names of users, databases, members; messages of servers) as text that is
//! safe in a log line, an error or a header.

use std::fmt::{self, Write};

/// Shows bytes so that they can neither forge a log line nor act on a terminal: short, and one
/// word.
///
/// Letters, digits and a few marks stand for themselves; a value with anything else is put in
/// double quotes, with control characters, invisible and direction-changing characters, quotes and
/// backslashes escaped as in Rust, and bytes that are not UTF-8 as `\xNN`. What is longer than
/// [`Escaped::MAX_CHARS`] ends in `…`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Escaped<'a>(pub &'a [u8]);

impl Escaped<'_> {
    /// Characters shown, escapes counted as written, quotes and the ellipsis not.
    pub(crate) const MAX_CHARS: usize = 64;
    /// Bytes looked at; enough for the characters shown.
    const MAX_BYTES: usize = Self::MAX_CHARS * 4;
}

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = String::new();
        let mut length = 0;
        let mut plain = !self.0.is_empty();
        let mut cut = self.0.len() > Self::MAX_BYTES;
        let head = &self.0[..self.0.len().min(Self::MAX_BYTES)];
        'all: for chunk in head.utf8_chunks() {
            let valid = chunk.valid().chars().map(Piece::Char);
            let invalid = chunk.invalid().iter().map(|byte| Piece::Byte(*byte));
            for piece in valid.chain(invalid) {
                let mark = shown.len();
                piece.write(&mut shown)?;
                length += shown[mark..].chars().count();
                if length > Self::MAX_CHARS {
                    shown.truncate(mark);
                    cut = true;
                    break 'all;
                }
                plain &= piece.is_plain();
            }
        }
        let quote = if plain { "" } else { "\"" };
        write!(f, "{quote}{shown}{quote}{}", if cut { "…" } else { "" })
    }
}

/// The same as `Display`, so that no way of formatting shows the raw bytes.
impl fmt::Debug for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[derive(Clone, Copy)]
enum Piece {
    Char(char),
    Byte(u8),
}

impl Piece {
    fn is_plain(self) -> bool {
        matches!(self, Self::Char(c) if c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '@' | ':' | '/' | '+'))
    }

    fn write(self, out: &mut String) -> fmt::Result {
        match self {
            Self::Char(c) if is_unsafe(c) || matches!(c, '"' | '\\') => write!(out, "{}", c.escape_default()),
            Self::Char(c) => out.write_char(c),
            Self::Byte(byte) => write!(out, "\\x{byte:02x}"),
        }
    }
}

/// Characters that must not reach a log or a terminal as they are (Unicode Technical Report 36): a
/// reader does not see them, or they change what a terminal shows. They are Unicode's control and
/// format characters, and its line and paragraph separators: categories Cc, Cf, Zl and Zp.
pub(crate) fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{890}'..='\u{891}'
            | '\u{8e2}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{110bd}' | '\u{110cd}'
            | '\u{13430}'..='\u{1343f}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e007f}')
}

/// The text with all of those escaped as in Rust. It is one line, and a terminal obeys nothing in
/// it.
pub(crate) fn escape_unsafe(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    push_escaped(&mut shown, text, |_| false);
    shown
}

/// The same, with exceptions.
pub(crate) fn push_escaped(out: &mut String, text: &str, is_kept: impl Fn(char) -> bool) {
    for c in text.chars() {
        if is_unsafe(c) && !is_kept(c) {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_a_reader_sees() {
        for (bytes, shown) in [
            (&b"app_user-1.x@y"[..], "app_user-1.x@y"),
            ("zoë".as_bytes(), "zoë"),
            (b"", "\"\""),
            (b"two words", "\"two words\""),
            (b"a\nmember=db1", r#""a\nmember=db1""#),
            (b"\x1b[2J", r#""\u{1b}[2J""#),
            (b"quote\" and \\", r#""quote\" and \\""#),
            (b"latin\xe9", r#""latin\xe9""#),
            ("a\u{202e}b".as_bytes(), r#""a\u{202e}b""#),
        ] {
            assert_eq!(Escaped(bytes).to_string(), shown);
            assert_eq!(format!("{:?}", Escaped(bytes)), shown);
        }
    }

    #[test]
    fn the_length_is_limited() {
        assert_eq!(Escaped(&[b'a'; 64]).to_string(), "a".repeat(64));
        assert_eq!(Escaped(&[b'a'; 65]).to_string(), "a".repeat(64) + "…");
        let shown = Escaped(&vec![0; 1 << 20]).to_string();
        assert!(
            shown.chars().count() <= Escaped::MAX_CHARS + 3 && shown.ends_with('…'),
            "{shown}"
        );
    }

    #[test]
    fn what_a_reader_cannot_see_is_escaped() {
        // One of each category and block that has any: Cc, Cf, Zl, Zp.
        for c in [
            '\0',
            '\t',
            '\n',
            '\r',
            '\u{1b}',
            '\u{7f}',
            '\u{85}',
            '\u{9b}',
            '\u{ad}',
            '\u{600}',
            '\u{61c}',
            '\u{6dd}',
            '\u{70f}',
            '\u{890}',
            '\u{8e2}',
            '\u{180e}',
            '\u{200b}',
            '\u{200d}',
            '\u{200e}',
            '\u{200f}',
            '\u{2028}',
            '\u{2029}',
            '\u{202a}',
            '\u{202e}',
            '\u{2060}',
            '\u{2066}',
            '\u{2069}',
            '\u{feff}',
            '\u{fff9}',
            '\u{110bd}',
            '\u{110cd}',
            '\u{13430}',
            '\u{1bca0}',
            '\u{1d173}',
            '\u{e0001}',
            '\u{e007f}',
        ] {
            assert_eq!(
                escape_unsafe(&format!("a{c}b")),
                format!("a{}b", c.escape_default())
            );
        }
        let seen = "zoë 北京 мир \u{5e9} e\u{301} 👍 \u{a0}\u{3000}";
        assert_eq!(escape_unsafe(seen), seen);
    }

    proptest! {
        #[test]
        fn no_line_can_be_forged(bytes in any::<Vec<u8>>()) {
            let shown = Escaped(&bytes).to_string();
            prop_assert!(!shown.chars().any(is_unsafe));
            prop_assert!(!shown.is_empty() && shown.chars().count() <= Escaped::MAX_CHARS + 3);
            // One word, or one quoted string whose inner quotes are escaped.
            if shown.contains([' ', '=', '"']) {
                let inner = shown.trim_end_matches('…');
                let inner = inner.strip_prefix('"').unwrap().strip_suffix('"').unwrap();
                let unescaped = inner.replace(r"\\", "").replace(r#"\""#, "");
                prop_assert!(!unescaped.contains('"'), "{}", shown);
            }
        }
    }
}
