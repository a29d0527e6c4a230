//! The little that must be understood of SQL: statements that take prepared statements away.

/// What a text that is nothing but one `DEALLOCATE` takes away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Deallocate {
    Name(Vec<u8>),
    All,
}

/// A lone `DEALLOCATE [PREPARE] name`, with nothing but white space and a semicolon around it. Such
/// a text is short: longer ones are not looked at.
pub(super) fn lone_deallocate(text: &[u8]) -> Option<Deallocate> {
    if text.len() > 256 {
        return None;
    }
    let mut words = Words(text);
    if !words.next()?.is(b"deallocate") {
        return None;
    }
    let mut name = words.next()?;
    if name.is(b"prepare") {
        match words.next() {
            None | Some(Word::End) => {}
            Some(next) => name = next,
        }
    }
    let deallocate = match name {
        Word::Plain(_) if name.is(b"all") => Deallocate::All,
        Word::Plain(name) => Deallocate::Name(name.to_ascii_lowercase()),
        Word::Quoted(name) => Deallocate::Name(name),
        Word::End => return None,
    };
    while let Some(word) = words.next() {
        if word != Word::End {
            return None;
        }
    }
    words.0.is_empty().then_some(deallocate)
}

/// The text may contain a command that takes all prepared statements away, or one that cannot be
/// told: `DISCARD ALL`, or any `DEALLOCATE`.
pub(super) fn drops_all(text: &[u8]) -> bool {
    const WORDS: [&[u8]; 2] = [b"deallocate", b"discard"];
    let mut rest = text;
    // Most texts have few of this letter: look for it first.
    while let Some(at) = rest.iter().position(|byte| byte | 0x20 == b'd') {
        rest = &rest[at..];
        let starts = |word: &[u8]| {
            rest.get(..word.len())
                .is_some_and(|start| start.eq_ignore_ascii_case(word))
        };
        if starts(WORDS[0]) {
            return true;
        }
        if starts(WORDS[1]) {
            let behind = rest[WORDS[1].len()..].trim_ascii_start();
            if behind
                .get(..3)
                .is_some_and(|all| all.eq_ignore_ascii_case(b"all"))
            {
                return true;
            }
        }
        rest = &rest[1..];
    }
    false
}

#[derive(Debug, PartialEq, Eq)]
enum Word<'a> {
    Plain(&'a [u8]),
    Quoted(Vec<u8>),
    /// A semicolon.
    End,
}

impl Word<'_> {
    fn is(&self, keyword: &[u8]) -> bool {
        matches!(self, Self::Plain(word) if word.eq_ignore_ascii_case(keyword))
    }
}

struct Words<'a>(&'a [u8]);

impl<'a> Words<'a> {
    /// None at the end, and at what is neither an identifier nor a semicolon.
    fn next(&mut self) -> Option<Word<'a>> {
        let rest = self.0.trim_ascii_start();
        self.0 = rest;
        match *rest.first()? {
            b';' => {
                self.0 = &rest[1..];
                Some(Word::End)
            }
            b'"' => {
                let mut name = Vec::new();
                let mut bytes = rest[1..].iter();
                loop {
                    match bytes.next()? {
                        b'"' if bytes.as_slice().first() == Some(&b'"') => {
                            bytes.next();
                            name.push(b'"');
                        }
                        b'"' => break,
                        &byte => name.push(byte),
                    }
                }
                self.0 = bytes.as_slice();
                (!name.is_empty()).then_some(Word::Quoted(name))
            }
            first if first.is_ascii_alphabetic() || first == b'_' || first >= 0x80 => {
                let end = rest
                    .iter()
                    .position(|&byte| {
                        !(byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$') || byte >= 0x80)
                    })
                    .unwrap_or(rest.len());
                let (word, behind) = rest.split_at(end);
                self.0 = behind;
                Some(Word::Plain(word))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lone_deallocate_is_understood_as_postgresql_does() {
        let name = |name: &str| Some(Deallocate::Name(name.into()));
        for (text, means) in [
            ("DEALLOCATE a1", name("a1")),
            (" deallocate\n PREPARE Ab_$1 ; ;", name("ab_$1")),
            ("deallocate \"A \"\"b\"", name("A \"b")),
            ("deallocate prepare", name("prepare")),
            ("deallocate prepare;", name("prepare")),
            ("deallocate \"all\"", name("all")),
            ("deallocate all", Some(Deallocate::All)),
            ("DEALLOCATE PREPARE ALL;", Some(Deallocate::All)),
            ("deallocate", None),
            ("deallocate;", None),
            ("deallocate a b", None),
            ("deallocate a; select 1", None),
            ("deallocate a -- b", None),
            ("deallocate \"a", None),
            ("deallocate \"\"", None),
            ("deallocate 1a", None),
            ("deallocatea", None),
            ("", None),
        ] {
            assert_eq!(lone_deallocate(text.as_bytes()), means, "{text}");
        }
    }

    #[test]
    fn what_may_drop_all_is_seen_anywhere_in_a_text() {
        for text in ["DISCARD ALL", "do $$ begin discard \n all; end $$", "xdEALLOCATE"] {
            assert!(drops_all(text.as_bytes()), "{text}");
        }
        for text in ["", "d", "select discarded_at", "discard plans", "deallocat"] {
            assert!(!drops_all(text.as_bytes()), "{text}");
        }
    }
}
