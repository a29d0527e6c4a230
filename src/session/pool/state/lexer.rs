//! Splits SQL text into tokens, as far as names and calls need it.
//!
//! The text is a client's, in a client's encoding and under settings that are not known here
//! (`standard_conforming_strings`). Where that could change how it is split,
//! [`Lexer::is_ambiguous`] says so afterwards. Nothing is copied.

/// One token. Comments and white space are left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token<'a> {
    /// A keyword, a name or a number, as written.
    Word(&'a [u8]),
    /// A name in double quotes, without them. `is_plain`: as written, nothing doubled.
    Quoted {
        name: &'a [u8],
        is_plain: bool,
    },
    /// `U&"…"`
    UnicodeName,
    /// A string in single quotes, without them. `is_plain`: its value is what is written.
    String {
        text: &'a [u8],
        is_plain: bool,
    },
    /// The inside of a string in dollar quotes.
    Dollar(&'a [u8]),
    /// `$1`
    Parameter(u16),
    Symbol(u8),
}

#[derive(Debug, Clone)]
pub(super) struct Lexer<'a> {
    rest: &'a [u8],
    is_ambiguous: bool,
    is_unfinished: bool,
}

fn starts_word(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80
}

fn continues_word(byte: u8) -> bool {
    starts_word(byte) || byte.is_ascii_digit() || byte == b'$'
}

impl<'a> Lexer<'a> {
    pub(super) fn new(text: &'a [u8]) -> Self {
        Self {
            rest: text,
            is_ambiguous: false,
            is_unfinished: false,
        }
    }

    /// Bytes not looked at yet.
    pub(super) fn left(&self) -> usize {
        self.rest.len()
    }

    /// What was split so far could also be read in another way: a backslash stands before a quote.
    pub(super) fn is_ambiguous(&self) -> bool {
        self.is_ambiguous
    }

    /// The text ends in a string, a name in quotes or a comment.
    pub(super) fn is_unfinished(&self) -> bool {
        self.is_unfinished
    }

    fn take(&mut self, length: usize) -> &'a [u8] {
        let (part, rest) = self.rest.split_at(length.min(self.rest.len()));
        self.rest = rest;
        part
    }

    /// Passes over white space and comments.
    fn skip(&mut self) {
        loop {
            match self.rest {
                [b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c, ..] => {
                    self.take(1);
                }
                [b'-', b'-', ..] => {
                    let end = self.rest.iter().position(|&byte| matches!(byte, b'\n' | b'\r'));
                    self.take(end.unwrap_or(usize::MAX));
                }
                [b'/', b'*', ..] => self.comment(),
                _ => return,
            }
        }
    }

    /// Comments nest.
    fn comment(&mut self) {
        let mut depth = 0_usize;
        loop {
            match self.rest {
                [b'/', b'*', ..] => {
                    depth += 1;
                    self.take(2);
                }
                [b'*', b'/', ..] => {
                    self.take(2);
                    depth -= 1;
                    if depth == 0 {
                        return;
                    }
                }
                [] => {
                    self.is_unfinished = true;
                    return;
                }
                _ => {
                    self.take(1);
                }
            }
        }
    }

    /// Up to the closing quote; the opening one was taken. With the text and whether a quote is
    /// doubled in it.
    fn quoted(&mut self, quote: u8, has_escapes: bool) -> (&'a [u8], bool) {
        let start = self.rest;
        let (mut at, mut is_plain) = (0, true);
        loop {
            match &start[at..] {
                [b'\\', _, ..] if has_escapes => {
                    is_plain = false;
                    at += 2;
                }
                [first, second, ..] if *first == quote && *second == quote => {
                    is_plain = false;
                    at += 2;
                }
                [first, ..] if *first == quote => {
                    self.rest = &start[at + 1..];
                    return (&start[..at], is_plain);
                }
                [] => {
                    self.is_unfinished = true;
                    self.rest = &[];
                    return (start, is_plain);
                }
                _ => at += 1,
            }
        }
    }

    fn string(&mut self, has_escapes: bool) -> Token<'a> {
        let (text, is_plain) = self.quoted(b'\'', has_escapes);
        let has_backslash = text.contains(&b'\\');
        if has_backslash && !has_escapes && text.windows(2).any(|pair| pair == b"\\'")
            || text.ends_with(b"\\")
        {
            // Without standard_conforming_strings the string goes on.
            self.is_ambiguous = true;
        }
        Token::String {
            text,
            is_plain: is_plain && !has_backslash,
        }
    }

    /// `$1`, `$$…$$`, `$tag$…$tag$`; the rest starts with `$`.
    fn dollar(&mut self) -> Token<'a> {
        let tail = &self.rest[1..];
        let digits = tail.iter().take_while(|byte| byte.is_ascii_digit()).count();
        if digits > 0 {
            self.take(1 + digits);
            let number = std::str::from_utf8(&tail[..digits]).ok();
            return Token::Parameter(number.and_then(|number| number.parse().ok()).unwrap_or(u16::MAX));
        }
        let tag = tail
            .iter()
            .take_while(|&&byte| continues_word(byte) && byte != b'$')
            .count();
        if tail.get(tag) != Some(&b'$') {
            self.take(1);
            return Token::Symbol(b'$');
        }
        let mark = self.take(tag + 2);
        let start = self.rest;
        let end = start.windows(mark.len()).position(|window| window == mark);
        self.is_unfinished |= end.is_none();
        let body = self.take(end.unwrap_or(usize::MAX));
        self.take(mark.len());
        Token::Dollar(body)
    }
}

impl<'a> Iterator for Lexer<'a> {
    type Item = Token<'a>;

    fn next(&mut self) -> Option<Token<'a>> {
        self.skip();
        let token = match self.rest {
            [] => return None,
            [b'\'', ..] => {
                self.take(1);
                self.string(false)
            }
            [b'e' | b'E', b'\'', ..] => {
                self.take(2);
                self.string(true)
            }
            [b'n' | b'N' | b'b' | b'B' | b'x' | b'X', b'\'', ..] => {
                self.take(2);
                match self.string(false) {
                    Token::String { text, .. } => Token::String {
                        text,
                        is_plain: false,
                    },
                    other => other,
                }
            }
            [b'u' | b'U', b'&', quote @ (b'\'' | b'"'), ..] => {
                self.take(3);
                let (text, _) = self.quoted(*quote, false);
                if *quote == b'"' {
                    Token::UnicodeName
                } else {
                    Token::String {
                        text,
                        is_plain: false,
                    }
                }
            }
            [b'"', ..] => {
                self.take(1);
                let (name, is_plain) = self.quoted(b'"', false);
                Token::Quoted { name, is_plain }
            }
            [b'$', ..] => self.dollar(),
            [first, ..] if starts_word(*first) || first.is_ascii_digit() => {
                let length = self.rest.iter().take_while(|&&byte| continues_word(byte)).count();
                Token::Word(self.take(length))
            }
            [symbol, ..] => {
                let symbol = *symbol;
                self.take(1);
                Token::Symbol(symbol)
            }
        };
        Some(token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(text: &str) -> (String, bool) {
        let mut lexer = Lexer::new(text.as_bytes());
        let shown: Vec<String> = lexer
            .by_ref()
            .map(|token| match token {
                Token::Word(word) => String::from_utf8_lossy(word).into_owned(),
                Token::Quoted { name, is_plain } => {
                    format!(
                        "Q{}<{}>",
                        if is_plain { "" } else { "?" },
                        String::from_utf8_lossy(name)
                    )
                }
                Token::String { text, is_plain } => {
                    format!(
                        "S{}<{}>",
                        if is_plain { "" } else { "?" },
                        String::from_utf8_lossy(text)
                    )
                }
                Token::UnicodeName => "U".to_owned(),
                Token::Dollar(body) => format!("D<{}>", String::from_utf8_lossy(body)),
                Token::Parameter(number) => format!("${number}"),
                Token::Symbol(symbol) => char::from(symbol).to_string(),
            })
            .collect();
        (shown.join(" "), lexer.is_ambiguous() || lexer.is_unfinished())
    }

    #[test]
    fn text_is_split_as_the_server_does() {
        for (text, expected) in [
            ("SELECT 1", "SELECT 1"),
            ("a.b=c", "a . b = c"),
            (
                "set_config/* x /* y */ */('a', -- z\n$1)",
                "set_config ( S<a> , $1 )",
            ),
            ("'it''s' E'a\\'b' 'c'", "S?<it''s> S?<a\\'b> S<c>"),
            ("\"a\"\"b\" U&\"\\0061\" U&'\\0061'", "Q?<a\"\"b> U S?<\\0061>"),
            ("$$ a ; $$ $x$ $$ $x$ $1", "D< a ; > D< $$ > $1"),
            ("a$b $ 1", "a$b $ 1"),
            ("b'01' 'b'", "S?<01> S<b>"),
            ("", ""),
        ] {
            assert_eq!(tokens(text), (expected.to_owned(), false), "{text}");
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_ambiguous() {
        for text in [
            r"SELECT 'a\'; SET x = 1; --'",
            r"SELECT 'a\''; SET x = 1",
            "SELECT 'a",
            "SELECT \"a",
            "/* a",
            "$$ a",
            r"SELECT E'a\'",
        ] {
            assert!(tokens(text).1, "{text}");
        }
        assert!(!tokens(r"SELECT 'C:\dir' || 'x'").1);
    }

    #[test]
    fn any_bytes_end() {
        proptest::proptest!(|(text: Vec<u8>)| {
            assert!(Lexer::new(&text).count() <= text.len());
        });
    }
}
