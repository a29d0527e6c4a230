//! What a suspicious text may do: names of settings, and kinds of state.

use super::hint::words;
use super::lexer::{Lexer, Token};
use super::suspicion::{Kinds, NameParameter, Suspicion};
use crate::session::pool::statements::PREFIX;

/// How deep strings in code that is run at once (`DO`) are looked into.
const MAX_DEPTH: u8 = 3;

/// What the text of a Query or Parse may do. It need not be one statement.
pub(super) fn analyse(text: &[u8]) -> Suspicion {
    let mut analysis = Analysis::default();
    let lexer = analysis.code(text, 0);
    if lexer.is_ambiguous() || lexer.is_unfinished() {
        analysis.found.may_be_other(text);
    }
    if analysis.runs_text {
        analysis.found.kinds.add(words(text));
    }
    analysis.found
}

/// The same for the start of a text that goes on.
pub(super) fn analyse_part(text: &[u8]) -> Suspicion {
    let mut analysis = Analysis::default();
    let lexer = analysis.code(text, 0);
    if lexer.is_ambiguous() {
        analysis.found.may_be_other(text);
    }
    analysis.found
}

/// Bytes that are looked at twice in one text: arguments of calls.
const MAX_AHEAD: usize = 64 * 1024;

#[derive(Default)]
struct Analysis {
    ahead: usize,
    found: Suspicion,
    has_update: bool,
    has_pg_settings: bool,
    /// A function is called that runs SQL which it is given as a text.
    runs_text: bool,
}

impl Analysis {
    /// `depth` 0: SQL of the client. Deeper: a string of a `DO`, which may be PL/pgSQL, SQL or a
    /// value.
    fn code<'a>(&mut self, text: &'a [u8], depth: u8) -> Lexer<'a> {
        let mut lexer = Lexer::new(text);
        let mut at_start = true;
        let (mut is_do, mut is_explain) = (depth > 0, false);
        let mut before = Word::NONE;
        while let Some(token) = lexer.next() {
            let starts = std::mem::take(&mut at_start);
            match token {
                Token::Word(word) => {
                    let word = Word::of(word);
                    if starts && depth == 0 {
                        is_do = word.is("do");
                        is_explain = word.is("explain");
                    }
                    if is_do && depth == 0 && word.is("language") {
                        self.language(lexer.clone());
                    }
                    if starts && word.is("set") {
                        self.set(&mut lexer);
                    } else if (starts || is_explain) && word.is("create") {
                        self.found.kinds.add(Kinds::TEMPORARY);
                    } else if depth > 0 {
                        at_start = ["then", "else", "loop", "begin"]
                            .iter()
                            .any(|start| word.is(start));
                        self.in_code(&word);
                    }
                    self.word(&word, &before, &mut lexer);
                    before = word;
                    continue;
                }
                Token::Quoted { name, is_plain: true } => {
                    self.word(&Word::of(name), &before, &mut lexer);
                }
                // It could be any.
                Token::UnicodeName => self.found.kinds.add(Kinds::EVERYTHING),
                Token::String { text, .. } | Token::Dollar(text) if is_do && depth < MAX_DEPTH => {
                    self.code(text, depth + 1);
                }
                Token::Symbol(b';') => at_start = true,
                _ => {}
            }
            before = Word::NONE;
        }
        if self.has_update && self.has_pg_settings {
            // UPDATE of the view sets.
            self.found.unknown(false);
        }
        lexer
    }

    /// A word of code whose own statements show no tag.
    fn in_code(&mut self, word: &Word) {
        let kinds = match word.as_bytes() {
            b"execute" => Kinds::ANYTHING,
            b"reset" | b"discard" => Kinds::ANY_SETTING.and(Kinds::ROLE),
            b"listen" => Kinds::LISTEN,
            b"prepare" => Kinds::PREPARE,
            b"hold" => Kinds::CURSOR,
            b"load" => Kinds::LOAD,
            b"create" => Kinds::TEMPORARY,
            _ => return,
        };
        self.found.kinds.add(kinds);
    }

    /// Behind `LANGUAGE` of a `DO`: what another language does is not looked into.
    fn language(&mut self, mut lexer: Lexer<'_>) {
        let is_known = match lexer.next() {
            Some(Token::Word(name) | Token::Quoted { name, .. } | Token::String { text: name, .. }) => {
                name.eq_ignore_ascii_case(b"plpgsql")
            }
            _ => false,
        };
        if !is_known {
            self.found.kinds.add(Kinds::ANYTHING.and(Kinds::UNKNOWN_NAME));
        }
    }

    fn word(&mut self, word: &Word, before: &Word, lexer: &mut Lexer<'_>) {
        let kinds = match word.as_bytes() {
            b"set_config" => return self.set_config(lexer),
            b"update" => {
                self.has_update = true;
                return;
            }
            b"pg_settings" => {
                self.has_pg_settings = true;
                return;
            }
            b"into" if before.is("insert") || before.is("merge") => return,
            b"into" | b"temp" | b"temporary" => Kinds::TEMPORARY,
            b"execute" if names_the_routers(lexer) => Kinds::EVERYTHING,
            b"ts_stat" | b"ts_rewrite" | b"crosstab" | b"connectby" => {
                self.runs_text = true;
                return;
            }
            name if name.starts_with(b"query_to_xml") || name.starts_with(b"cursor_to_xml") => {
                self.runs_text = true;
                return;
            }
            b"setseed" => Kinds::SEED,
            b"currval" | b"lastval" => Kinds::SEQUENCE,
            b"dblink_connect" | b"dblink_connect_u" | b"pg_backup_start" | b"pg_start_backup" => {
                Kinds::EXTENSION
            }
            name if name.starts_with(b"pg_replication_origin_session_") => Kinds::EXTENSION,
            name if name.ends_with(b"_replication_slot") => Kinds::EXTENSION,
            name if name.starts_with(b"pg_temp") => Kinds::TEMPORARY,
            name if name.starts_with(b"pg_advisory_") || name.starts_with(b"pg_try_advisory_") => {
                if name.starts_with(b"pg_advisory_unlock") {
                    self.found.removed.add(Kinds::ADVISORY);
                    return;
                }
                if name.windows(4).any(|part| part == b"xact") {
                    return;
                }
                Kinds::ADVISORY
            }
            _ => return,
        };
        self.found.kinds.add(kinds);
    }

    /// Behind the name `set_config`. What is behind the first argument is left to the caller, as
    /// other calls may be in it.
    fn set_config(&mut self, lexer: &mut Lexer<'_>) {
        let mut ahead = lexer.clone();
        if ahead.next() != Some(Token::Symbol(b'(')) {
            // No call; or one that a comment in an unknown form hides.
            return;
        }
        let is_local = self.third_is_true(ahead.clone());
        let name = ahead.next();
        let is_alone = match ahead.next() {
            Some(Token::Symbol(b',')) => true,
            Some(Token::Symbol(b':')) => skip_cast(&mut ahead),
            _ => false,
        };
        match name {
            Some(Token::String { text, is_plain: true } | Token::Dollar(text)) if is_alone => {
                self.found.name(text, is_local);
            }
            Some(Token::Parameter(number)) if is_alone => {
                self.found.parameter(NameParameter { number, is_local });
            }
            // `''name''` in a string of code.
            _ if is_local => {}
            _ => self.found.unknown(true),
        }
    }

    /// Behind the parenthesis of a call: whether its third argument is the word `true`, and the
    /// last.
    fn third_is_true(&mut self, mut lexer: Lexer<'_>) -> bool {
        let start = lexer.left();
        let (mut depth, mut commas, mut tokens, mut is_true) = (0_usize, 0, 0, false);
        while self.ahead + (start - lexer.left()) < MAX_AHEAD
            && let Some(token) = lexer.next()
        {
            match token {
                Token::Symbol(b')') if depth == 0 => {
                    self.ahead += start - lexer.left();
                    return commas == 2 && tokens == 1 && is_true;
                }
                Token::Symbol(b',') if depth == 0 => {
                    commas += 1;
                    tokens = 0;
                    continue;
                }
                Token::Symbol(b'(' | b'[') => depth += 1,
                Token::Symbol(b')' | b']') => depth = depth.saturating_sub(1),
                _ => {}
            }
            tokens += 1;
            is_true = matches!(token, Token::Word(word) if word.eq_ignore_ascii_case(b"true"));
        }
        self.ahead += start - lexer.left();
        false
    }

    /// Behind SET at the start of a statement.
    fn set(&mut self, lexer: &mut Lexer<'_>) {
        self.found.has_set = true;
        let mut is_local = false;
        let mut first = lexer.next();
        let has_dot = |lexer: &Lexer<'_>| lexer.clone().next() == Some(Token::Symbol(b'.'));
        if let Some(Token::Word(word)) = first
            && !has_dot(lexer)
        {
            let scope = Word::of(word);
            is_local = scope.is("local");
            if is_local || scope.is("session") {
                first = lexer.next();
                let second = first.and_then(|token| match token {
                    Token::Word(word) => Some(Word::of(word)),
                    _ => None,
                });
                match second {
                    Some(word) if word.is("characteristics") => {
                        for name in ["isolation", "read_only", "deferrable"] {
                            self.found
                                .name(format!("default_transaction_{name}").as_bytes(), false);
                        }
                        return;
                    }
                    Some(word) if word.is("authorization") && !is_local => {
                        return self.found.name(b"session_authorization", false);
                    }
                    Some(word) if word.is("session") => {
                        return self.found.name(b"session_authorization", is_local);
                    }
                    _ => {}
                }
            }
        }
        match first {
            Some(Token::Word(word)) => {
                let word = Word::of(word);
                let name: &[u8] = match word.as_bytes() {
                    _ if has_dot(lexer) => return self.set_name(first, is_local, lexer),
                    b"transaction" | b"constraints" => return,
                    b"time" => b"timezone",
                    b"names" => b"client_encoding",
                    b"schema" => b"search_path",
                    b"xml" => b"xmloption",
                    _ => return self.set_name(first, is_local, lexer),
                };
                let mut ahead = lexer.clone();
                match ahead.next() {
                    // A setting could have that name.
                    Some(Token::Symbol(_)) => self.set_name(first, is_local, lexer),
                    _ => self.found.name(name, is_local),
                }
            }
            _ => self.set_name(first, is_local, lexer),
        }
    }

    /// A name with or without dots, of which `first` is the first part.
    fn set_name(&mut self, first: Option<Token<'_>>, is_local: bool, lexer: &mut Lexer<'_>) {
        let mut name = Vec::new();
        let mut part = first;
        loop {
            match part {
                Some(
                    Token::Word(word)
                    | Token::Quoted {
                        name: word,
                        is_plain: true,
                    },
                ) => {
                    name.extend_from_slice(word);
                }
                _ if is_local => return,
                _ => return self.found.unknown(true),
            }
            let mut ahead = lexer.clone();
            if ahead.next() != Some(Token::Symbol(b'.')) {
                break;
            }
            name.push(b'.');
            part = ahead.next();
            *lexer = ahead;
        }
        // format('SET app.%I = …') in code.
        if lexer.clone().next() == Some(Token::Symbol(b'%')) {
            return self.found.unknown(true);
        }
        self.found.name(&name, is_local);
    }
}

/// Behind EXECUTE: whether it runs a statement that a client has prepared by the protocol, and
/// which has a name of the router's here. Its text is not at hand.
fn names_the_routers(lexer: &Lexer<'_>) -> bool {
    let prefix = PREFIX.as_bytes();
    match lexer.clone().next() {
        Some(Token::Word(name)) => name
            .get(..prefix.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(prefix)),
        Some(Token::Quoted { name, .. }) => name.starts_with(prefix),
        _ => false,
    }
}

/// Behind the first `:` of `'name'::text,`: whether that is what comes.
fn skip_cast(lexer: &mut Lexer<'_>) -> bool {
    lexer.next() == Some(Token::Symbol(b':'))
        && matches!(lexer.next(), Some(Token::Word(word)) if word.eq_ignore_ascii_case(b"text") || word.eq_ignore_ascii_case(b"varchar"))
        && lexer.next() == Some(Token::Symbol(b','))
}

impl Suspicion {
    /// The text may have to be read in another way, in which its words mean something else.
    fn may_be_other(&mut self, text: &[u8]) {
        self.kinds.add(Kinds::ANYTHING.and(words(text)));
        self.has_set = false;
    }
}

/// The start of a word in lower case, long enough for the names that matter.
#[derive(Debug, Clone, Copy)]
struct Word {
    bytes: [u8; 48],
    length: usize,
}

impl Word {
    const NONE: Self = Self {
        bytes: [0; 48],
        length: 0,
    };

    fn of(word: &[u8]) -> Self {
        let mut bytes = [0; 48];
        let length = word.len().min(bytes.len());
        bytes[..length].copy_from_slice(&word[..length]);
        bytes.make_ascii_lowercase();
        Self { bytes, length }
    }

    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    fn is(&self, other: &str) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

#[cfg(test)]
mod tests;
