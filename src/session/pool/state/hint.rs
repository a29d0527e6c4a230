//! What a SQL text may do to the session's state without a command tag that shows it.
//!
//! Every text of a client passes here, so most of the work is to find out quickly that there is
//! nothing: the first word, and one pass over the text that looks at two of three bytes.

use std::sync::Arc;

use super::analysis::{analyse, analyse_part};
use super::suspicion::{Kinds, Suspicion};
use crate::session::pool::statements::PREFIX;

/// What a text may change. Kept with a prepared statement: each Bind of it may change that again.
/// A text without anything suspicious, which is nearly every one, has no heap.
#[derive(Debug, Clone, Default)]
pub struct Hint(Option<Arc<Suspicion>>);

impl Hint {
    /// Nothing suspicious.
    pub const CLEAN: Self = Self(None);

    /// Looks at the text of a Query or a Parse that is there whole. For a longer one:
    /// [`LongText`].
    #[inline]
    pub fn of(sql: &[u8]) -> Self {
        if is_clean(sql) {
            Self(None)
        } else {
            Self::from(analyse(sql))
        }
    }

    /// Nothing to remember.
    #[inline]
    pub fn is_clean(&self) -> bool {
        self.0.is_none()
    }

    /// The text calls `currval` or `lastval`. [`Doubts`](super::Doubts) pins the session from then
    /// on.
    pub fn reads_sequence(&self) -> bool {
        self.0
            .as_ref()
            .is_some_and(|found| found.kinds.has(Kinds::SEQUENCE))
    }

    pub(super) fn suspicion(&self) -> Option<&Suspicion> {
        self.0.as_deref()
    }
}

impl From<Suspicion> for Hint {
    fn from(suspicion: Suspicion) -> Self {
        Self((!suspicion.is_empty()).then(|| Arc::new(suspicion)))
    }
}

/// A text that passes in pieces, as it is longer than a read. In its first piece names are found as
/// in a whole text, in the others only suspicious words.
#[derive(Debug)]
pub struct LongText {
    found: Suspicion,
    /// The end of the piece before: a word may be split over pieces.
    tail: Vec<u8>,
}

/// No suspicious word, with what is looked at in front of it, is longer.
const TAIL: usize = 64;

impl LongText {
    pub fn new(first: &[u8]) -> Self {
        let text = trimmed(first);
        let mut found = Suspicion::default();
        if !is_clean(text) {
            found = analyse_part(text);
        }
        if text.len() >= 2 && text[..2].eq_ignore_ascii_case(b"do") {
            found.kinds.add(Kinds::UNKNOWN_NAME);
        }
        if starts_suspiciously(text) || first.contains(&b';') {
            may_be_cut(&mut found);
        }
        if has_routers_name(text) {
            found.kinds.add(Kinds::EVERYTHING);
        }
        Self {
            found,
            tail: first[first.len().saturating_sub(TAIL)..].to_vec(),
        }
    }

    /// The next bytes of the text.
    pub fn piece(&mut self, piece: &[u8]) {
        if piece.contains(&b';') {
            may_be_cut(&mut self.found);
        }
        let head = &piece[..piece.len().min(TAIL)];
        self.tail.extend_from_slice(head);
        let found = words(&self.tail).and(words(piece));
        self.found.kinds.add(found);
        if piece.len() >= TAIL {
            self.tail.clear();
            self.tail.extend_from_slice(&piece[piece.len() - TAIL..]);
        } else {
            let cut = self.tail.len().saturating_sub(TAIL);
            self.tail.drain(..cut);
        }
    }

    /// The text has passed whole.
    pub fn finish(self) -> Hint {
        Hint::from(self.found)
    }
}

/// Where the first piece ends in a name or in a string of code, and where further statements begin
/// in any piece, it is not known what the server's tags are about.
fn may_be_cut(found: &mut Suspicion) {
    found.kinds.add(Kinds::ANYTHING.and(Kinds::LONG));
    found.has_set = false;
}

/// What the suspicious words of a part of a text stand for. What is around them is not looked at,
/// so this is meant in the widest sense.
pub(super) fn words(part: &[u8]) -> Kinds {
    let mut kinds = Kinds::NONE;
    let mut from = 0;
    while let Some((at, found)) = next_word(part, from) {
        kinds.add(found);
        from = at + 1;
    }
    if has_unicode_name(part) || has_routers_name(part) {
        kinds.add(Kinds::EVERYTHING);
    }
    kinds
}

/// Where a name of a router's statement may stand: SQL `EXECUTE` runs it, and its text is not at
/// hand.
fn has_routers_name(part: &[u8]) -> bool {
    let prefix = PREFIX.as_bytes();
    let goes_before = |at: usize| {
        at.checked_sub(1)
            .is_none_or(|before| !part[before].is_ascii_alphanumeric() && part[before] != b'_')
    };
    part.windows(prefix.len())
        .enumerate()
        .any(|(at, window)| window.eq_ignore_ascii_case(prefix) && goes_before(at))
}

/// Whether a text needs no closer look.
fn is_clean(sql: &[u8]) -> bool {
    let text = trimmed(sql);
    // The first four bytes are those of a statement's first word, which is none of the others.
    !starts_suspiciously(text)
        && !text.contains(&b';')
        && next_word(text, 4).is_none()
        && !has_unicode_name(text)
}

/// Without white space, parentheses and semicolons around it, and without its zero byte.
fn trimmed(mut sql: &[u8]) -> &[u8] {
    while let [
        b' ' | b'\n' | b'\t' | b'\r' | 0x0b | 0x0c | b'(' | b';',
        rest @ ..,
    ] = sql
    {
        sql = rest;
    }
    while let [rest @ .., b' ' | b'\n' | b'\t' | b'\r' | b';' | 0] = sql {
        sql = rest;
    }
    sql
}

/// SET; DO; CREATE, whose tag may be that of a SELECT; EXECUTE and EXPLAIN, which run others; and
/// comments in front, behind which there may be any of them.
fn starts_suspiciously(text: &[u8]) -> bool {
    let Some((first, rest)) = text.split_first() else {
        return false;
    };
    let goes_on = |word: &[u8]| rest.len() >= word.len() && rest[..word.len()].eq_ignore_ascii_case(word);
    match first {
        b's' | b'S' => goes_on(b"et"),
        b'd' | b'D' => goes_on(b"o"),
        b'c' | b'C' => goes_on(b"reate"),
        b'e' | b'E' => goes_on(b"xecute") || goes_on(b"xplain"),
        b'-' | b'/' => true,
        _ => false,
    }
}

/// `U&"…"`: any name may be in it.
fn has_unicode_name(text: &[u8]) -> bool {
    text.contains(&b'&') && text.windows(2).any(|pair| pair == b"&\"")
}

/// A suspicious word.
struct Suspicious {
    word: &'static [u8],
    /// Where in it the four bytes start by which it is found. They are rare ones.
    anchor: usize,
    /// What it stands for in the widest sense.
    kinds: Kinds,
}

const fn word(word: &'static str, anchor: usize, kinds: Kinds) -> Suspicious {
    Suspicious {
        word: word.as_bytes(),
        anchor,
        kinds,
    }
}

const WORDS: [Suspicious; 13] = [
    word(
        "set_config",
        6,
        Kinds::ANY_SETTING.and(Kinds::ROLE).and(Kinds::UNKNOWN_NAME),
    ),
    word("pg_settings", 0, Kinds::ANY_SETTING.and(Kinds::ROLE)),
    word("advisory", 0, Kinds::ADVISORY),
    word("setseed", 2, Kinds::SEED),
    word("temp", 0, Kinds::TEMPORARY),
    word("into", 0, Kinds::TEMPORARY),
    word("currval", 2, Kinds::SEQUENCE),
    word("lastval", 2, Kinds::SEQUENCE),
    word("dblink_connect", 4, Kinds::EXTENSION),
    word("origin_session", 4, Kinds::EXTENSION),
    word("replication_slot", 10, Kinds::EXTENSION),
    word("pg_backup_start", 1, Kinds::EXTENSION),
    word("pg_start_backup", 7, Kinds::EXTENSION),
];

/// By a pair of bytes without case: the words (as bits) in which it is one of the three pairs of
/// the anchor. Wherever a word stands, one of its three pairs is at a third place.
const PAIRS: [u16; 1024] = {
    let mut pairs = [0; 1024];
    let mut index = 0;
    while index < WORDS.len() {
        let (word, anchor) = (WORDS[index].word, WORDS[index].anchor);
        let mut at = anchor;
        while at < anchor + 3 {
            pairs[pair(word[at], word[at + 1])] |= 1 << index;
            at += 1;
        }
        index += 1;
    }
    pairs
};

const fn pair(first: u8, second: u8) -> usize {
    ((first & 0x1f) as usize) << 5 | (second & 0x1f) as usize
}

/// The next suspicious word that does not start before `from`: where, and what it stands for.
#[inline]
fn next_word(text: &[u8], from: usize) -> Option<(usize, Kinds)> {
    let mut at = from;
    while let Some(&[first, second]) = text.get(at..at + 2) {
        let words = PAIRS[pair(first, second)];
        if words != 0
            && let Some(found) = word_around(text, from, at, words)
        {
            return Some(found);
        }
        at += 3;
    }
    None
}

#[cold]
fn word_around(text: &[u8], from: usize, at: usize, mut words: u16) -> Option<(usize, Kinds)> {
    while words != 0 {
        let Suspicious { word, anchor, kinds } = WORDS[words.trailing_zeros() as usize];
        words &= words - 1;
        for offset in anchor..anchor + 3 {
            let Some(start) = at.checked_sub(offset).filter(|&start| start >= from) else {
                continue;
            };
            let is_here = text
                .get(start..start + word.len())
                .is_some_and(|part| part.eq_ignore_ascii_case(word));
            if is_here && stands_alone(word, &text[..start], &text[start + word.len()..]) {
                return Some((start, kinds));
            }
        }
    }
    None
}

/// Whether a word between these two parts is that word, and not a part of a harmless one.
fn stands_alone(word: &[u8], before: &[u8], after: &[u8]) -> bool {
    let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
    let starts = !before.last().is_some_and(is_part);
    let ends = !after.first().is_some_and(is_part);
    let begins = |with: &[u8]| after.len() >= with.len() && after[..with.len()].eq_ignore_ascii_case(with);
    match word {
        b"temp" => {
            let is_schema = before.len() >= 3 && before[before.len() - 3..].eq_ignore_ascii_case(b"pg_");
            is_schema || starts && (ends || begins(b"orary"))
        }
        b"into" => starts && ends && !is_insert(before),
        b"advisory" => before.last() == Some(&b'_') && !begins(b"_xact"),
        b"set_config" | b"setseed" | b"currval" | b"lastval" => starts && ends,
        _ => true,
    }
}

/// INSERT or MERGE and white space.
fn is_insert(before: &[u8]) -> bool {
    let end = before.iter().rposition(|byte| !byte.is_ascii_whitespace());
    let words = &before[..end.map_or(0, |end| end + 1)];
    let ends = |with: &[u8]| {
        words.len() >= with.len() && words[words.len() - with.len()..].eq_ignore_ascii_case(with)
    };
    ends(b"insert") || ends(b"merge")
}

#[cfg(test)]
mod tests;
