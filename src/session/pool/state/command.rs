//! What a SQL text does to the transaction in which it runs: whether it begins one or ends one.
//!
//! It is asked of every text, so the usual case is quick: the first word, and a look for
//! semicolons. Whatever is not certain is [`Command::Unknown`].

use super::lexer::{Lexer, Token};

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Command {
    /// `BEGIN` or `START TRANSACTION`, and nothing else.
    Begin,
    /// `COMMIT` or `END`, and nothing else.
    Commit,
    /// `ROLLBACK` or `ABORT`, and nothing else.
    Rollback,
    /// `ROLLBACK TO SAVEPOINT`, and nothing else.
    RollbackTo,
    /// One statement that does none of this. Within a transaction block, nothing of it lasts if the
    /// block is rolled back.
    Other,
    /// Several statements, `AND CHAIN`, a prepared transaction, or a text that is not understood.
    #[default]
    Unknown,
}

impl Command {
    /// Of the text of a Query or a Parse, without its zero byte.
    #[inline]
    pub fn of(text: &[u8]) -> Self {
        if may_concern(text) || !is_alone(text) {
            return Self::looked_at(text);
        }
        Self::Other
    }

    /// Of a text of which this is the start. [`goes_on`] must be asked about the rest.
    pub fn of_start(text: &[u8]) -> Self {
        if may_concern(text) || text.contains(&b';') {
            return Self::Unknown;
        }
        Self::Other
    }

    #[cold]
    fn looked_at(text: &[u8]) -> Self {
        let mut lexer = Lexer::new(text);
        let mut first = lexer.next();
        while first == Some(Token::Symbol(b';')) {
            first = lexer.next();
        }
        let command = match first {
            Some(Token::Word(word)) => Self::begins(word, &mut lexer),
            // `(SELECT …)`
            None | Some(Token::Symbol(b'(')) => Self::Other,
            Some(_) => Self::Unknown,
        };
        let is_over = match command {
            // They have read to their end.
            Self::Begin | Self::Commit | Self::Rollback => true,
            _ if is_alone(text) => true,
            _ => {
                let ends = lexer.by_ref().any(|token| token == Token::Symbol(b';'));
                !ends || lexer.by_ref().all(|token| token == Token::Symbol(b';'))
            }
        };
        if is_over && !(lexer.is_ambiguous() || lexer.is_unfinished()) {
            command
        } else {
            Self::Unknown
        }
    }

    /// Behind the first word.
    fn begins(word: &[u8], lexer: &mut Lexer<'_>) -> Self {
        let is = |name: &[u8]| word.eq_ignore_ascii_case(name);
        if is(b"begin") {
            return Self::Begin.if_nothing_follows(lexer);
        }
        if is(b"start") {
            return match lexer.next() {
                Some(Token::Word(word)) if word.eq_ignore_ascii_case(b"transaction") => {
                    Self::Begin.if_nothing_follows(lexer)
                }
                _ => Self::Unknown,
            };
        }
        if is(b"commit") || is(b"end") {
            return Self::Commit.ends(lexer);
        }
        if is(b"rollback") || is(b"abort") {
            return Self::Rollback.ends(lexer);
        }
        // What was prepared may be anything; and so may what is not the statement PREPARE.
        if is(b"execute") || is(b"prepare") && next_is(lexer, b"transaction") {
            return Self::Unknown;
        }
        Self::Other
    }

    /// Behind COMMIT, END, ROLLBACK or ABORT.
    fn ends(self, lexer: &mut Lexer<'_>) -> Self {
        if next_is(lexer, b"work") || next_is(lexer, b"transaction") {
            lexer.next();
        }
        if self == Self::Rollback && next_is(lexer, b"to") {
            return Self::RollbackTo;
        }
        if next_is(lexer, b"and") {
            lexer.next();
            let is_plain = next_is(lexer, b"no");
            lexer.next();
            if !is_plain || !next_is(lexer, b"chain") {
                return Self::Unknown;
            }
            lexer.next();
        }
        for token in lexer.by_ref() {
            if token != Token::Symbol(b';') {
                return Self::Unknown;
            }
        }
        self
    }

    /// BEGIN takes words and commas; behind a semicolon nothing may follow.
    fn if_nothing_follows(self, lexer: &mut Lexer<'_>) -> Self {
        let mut is_over = false;
        for token in lexer {
            match token {
                Token::Symbol(b';') => is_over = true,
                Token::Word(_) | Token::Symbol(b',') if !is_over => {}
                _ => return Self::Unknown,
            }
        }
        self
    }
}

/// Whether a further statement may begin in this piece of a long text.
pub fn goes_on(piece: &[u8], is_last: bool) -> bool {
    !(if is_last {
        is_alone(piece)
    } else {
        !piece.contains(&b';')
    })
}

fn next_is(lexer: &Lexer<'_>, name: &[u8]) -> bool {
    matches!(lexer.clone().next(), Some(Token::Word(word)) if word.eq_ignore_ascii_case(name))
}

/// No semicolon stands before the last byte that means anything.
fn is_alone(text: &[u8]) -> bool {
    text.iter().position(|&byte| byte == b';').is_none_or(|first| {
        let ends = |&byte: &u8| matches!(byte, b';' | b' ' | b'\n' | b'\r' | b'\t' | 0);
        text[first..].iter().all(ends)
    })
}

/// Whether the text may begin with a word that matters here, or with something in front of it.
#[inline]
fn may_concern(text: &[u8]) -> bool {
    let start = text.trim_ascii_start();
    let Some(&first) = start.first() else {
        return false;
    };
    let goes_on = |word: &[u8]| start.len() >= word.len() && start[..word.len()].eq_ignore_ascii_case(word);
    match first | 0x20 {
        b'b' => goes_on(b"begin"),
        b's' => goes_on(b"start"),
        b'c' => goes_on(b"commit"),
        b'e' => goes_on(b"end") || goes_on(b"execute"),
        b'r' => goes_on(b"rollback"),
        b'a' => goes_on(b"abort"),
        b'p' => goes_on(b"prepare"),
        byte => !(byte.is_ascii_lowercase() || first == b'('),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_what_it_does_to_its_transaction() {
        for (text, expected) in [
            ("BEGIN", Command::Begin),
            (
                " begin isolation level serializable, read only, not deferrable ; ",
                Command::Begin,
            ),
            ("/* x */ START -- y\nTRANSACTION READ WRITE;;", Command::Begin),
            ("BEGIN; SELECT 1", Command::Unknown),
            ("START REPLICATION", Command::Unknown),
            ("COMMIT", Command::Commit),
            ("commit;", Command::Commit),
            ("END WORK", Command::Commit),
            ("COMMIT TRANSACTION AND NO CHAIN", Command::Commit),
            ("COMMIT AND CHAIN", Command::Unknown),
            ("COMMIT PREPARED 'x'", Command::Unknown),
            ("COMMIT; SELECT 1", Command::Unknown),
            ("ROLLBACK", Command::Rollback),
            ("\n abort ; ", Command::Rollback),
            ("ROLLBACK WORK AND NO CHAIN", Command::Rollback),
            ("ROLLBACK AND CHAIN", Command::Unknown),
            ("ROLLBACK PREPARED 'x'", Command::Unknown),
            ("ROLLBACK TO a", Command::RollbackTo),
            ("ROLLBACK TRANSACTION TO SAVEPOINT a;", Command::RollbackTo),
            ("ROLLBACK TO a; COMMIT", Command::Unknown),
            ("PREPARE TRANSACTION 'x'", Command::Unknown),
            ("PREPARE x AS SELECT 1", Command::Other),
            ("EXECUTE x", Command::Unknown),
            ("explain select 1", Command::Other),
            ("", Command::Other),
            (";", Command::Other),
            ("-- nothing", Command::Other),
            ("SELECT 1", Command::Other),
            ("SELECT 1; ;\n", Command::Other),
            ("SELECT 1 -- ; COMMIT\n", Command::Other),
            ("(SELECT 1)", Command::Other),
            ("SELECT ';'", Command::Other),
            ("SELECT 'a;', $$ ; $$, \"b;\"; -- c", Command::Other),
            ("SELECT 1; COMMIT", Command::Unknown),
            ("; COMMIT", Command::Commit),
            (r"SELECT 'a\'; COMMIT; --'", Command::Unknown),
            ("CALL p()", Command::Other),
            ("DO $$ begin commit; end $$", Command::Other),
            ("beginning", Command::Other),
            ("SAVEPOINT a", Command::Other),
            ("RELEASE a", Command::Other),
            ("COPY t FROM STDIN", Command::Other),
            ("\"x\"", Command::Unknown),
        ] {
            assert_eq!(Command::of(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn a_long_text_is_one_statement_where_no_piece_has_a_semicolon_but_the_end() {
        assert_eq!(Command::of_start(b"INSERT INTO t VALUES ("), Command::Other);
        for text in ["COMMIT ", "SELECT ';", "-- x", "BEGIN"] {
            assert_eq!(Command::of_start(text.as_bytes()), Command::Unknown, "{text}");
        }
        assert!(!goes_on(b"1), (2)", false) && !goes_on(b"1); \0", true));
        assert!(goes_on(b"1); ", false) && goes_on(b"1); COMMIT\0", true));
    }

    #[test]
    fn any_text_has_a_command() {
        proptest::proptest!(|(text: Vec<u8>)| {
            let _ = Command::of(&text);
        });
    }
}
