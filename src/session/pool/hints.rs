//! What the texts of a client's prepared statements may change of its session's state.

use std::collections::HashMap;

use super::state::{Doubts, Hint, LongText};

/// Named statements with a suspicious text that are told apart. Nearly every session has none.
const MAX_NAMES: usize = 256;
/// Texts that one name may stand for.
const MAX_TEXTS: usize = 8;

/// See the module. Belongs to a session.
///
/// Whether the server takes a Parse is not known when it passes: it may be skipped behind an error,
/// or refused. So a name keeps what it has stood for, and each Bind counts all of it: at worst
/// there is a question too many.
#[derive(Debug, Default)]
pub(super) struct Hints {
    unnamed: Texts,
    named: HashMap<Box<[u8]>, Texts>,
    /// There are more: this counts for each name that is not in `named`.
    others: Texts,
    /// Of the last unnamed Parse since the last boundary.
    last_unnamed: Option<Hint>,
    /// Something failed since the last boundary.
    has_failed: bool,
    /// A long text on its way. Boxed: few sessions ever have one.
    long: Option<Box<Long>>,
}

#[derive(Debug)]
struct Long {
    text: LongText,
    /// `None`: of a Query.
    name: Option<Box<[u8]>>,
}

/// The suspicious texts that a name may stand for.
#[derive(Debug, Default)]
struct Texts(Vec<Hint>);

impl Texts {
    fn add(&mut self, hint: Hint) {
        if hint.is_clean() {
            return;
        }
        if self.0.len() == MAX_TEXTS {
            // Too many to remember: it may do anything, as a name that is computed.
            self.0 = vec![Hint::of(b"SELECT set_config(name, value, false)")];
        }
        self.0.push(hint);
    }

    fn bind(&self, body: &[u8], doubts: &mut Doubts) {
        for hint in &self.0 {
            doubts.bind(hint, body);
        }
    }
}

impl Hints {
    /// The client got an error: what follows up to its Sync is skipped.
    pub(super) fn failed(&mut self) {
        self.has_failed = true;
    }

    /// At a boundary: if nothing failed, the unnamed statement is the last one that was sent.
    pub(super) fn at_boundary(&mut self) {
        if let (Some(last), false) = (self.last_unnamed.take(), self.has_failed) {
            self.unnamed.0.clear();
            self.unnamed.add(last);
        }
        self.has_failed = false;
    }

    /// What was on its way is lost: whether the server has taken it is not known.
    pub(super) fn connection_lost(&mut self) {
        self.has_failed = true;
        self.at_boundary();
        self.long = None;
    }

    /// A Parse passes. `is_whole`: otherwise more of its text follows. Whether the text reads the
    /// numbers of sequences.
    pub(super) fn parse(&mut self, body: &[u8], is_whole: bool) -> bool {
        let Some((name, text)) = split(body) else {
            return false;
        };
        if is_whole {
            let text = text.split(|&byte| byte == 0).next().unwrap_or_default();
            let hint = Hint::of(text);
            let reads = hint.reads_sequence();
            self.keep(name, hint);
            return reads;
        }
        self.long = Some(Box::new(Long {
            text: LongText::new(text),
            name: Some(name.into()),
        }));
        false
    }

    /// A Query passes. Of a long one this is the beginning. Whether the text reads the numbers of
    /// sequences.
    pub(super) fn query(&mut self, text: &[u8], is_whole: bool, doubts: &mut Doubts) -> bool {
        if is_whole {
            let hint = Hint::of(text);
            doubts.query(&hint);
            return hint.reads_sequence();
        }
        self.long = Some(Box::new(Long {
            text: LongText::new(text),
            name: None,
        }));
        false
    }

    /// The next bytes of the long text; `is_last`: nothing follows. Whether the text, now that it
    /// is whole, reads the numbers of sequences.
    pub(super) fn piece(&mut self, piece: &[u8], is_last: bool, doubts: &mut Doubts) -> bool {
        let Some(long) = &mut self.long else {
            return false;
        };
        long.text.piece(piece);
        if !is_last {
            return false;
        }
        let mut reads = false;
        if let Some(long) = self.long.take() {
            let Long { text, name } = *long;
            let hint = text.finish();
            reads = hint.reads_sequence();
            match name {
                Some(name) => self.keep(&name, hint),
                None => doubts.query(&hint),
            }
        }
        reads
    }

    /// A Bind passes, with as much of its body as has come.
    pub(super) fn bind(&self, body: &[u8], doubts: &mut Doubts) {
        if self.named.is_empty() && self.unnamed.0.is_empty() {
            return;
        }
        let Some((name, _)) = split(body).and_then(|(_portal, rest)| split(rest)) else {
            // Names longer than what has come: it may be any of them.
            let all = self.named.values().chain([&self.unnamed, &self.others]);
            all.for_each(|texts| texts.bind(body, doubts));
            return;
        };
        if name.is_empty() {
            self.unnamed.bind(body, doubts);
        } else if let Some(texts) = self.named.get(name) {
            texts.bind(body, doubts);
        } else {
            self.others.bind(body, doubts);
        }
    }

    fn keep(&mut self, name: &[u8], hint: Hint) {
        if name.is_empty() {
            self.unnamed.add(hint.clone());
            self.last_unnamed = Some(hint);
        } else if hint.is_clean() {
            // What the name stood for may stay.
        } else if let Some(texts) = self.named.get_mut(name) {
            texts.add(hint);
        } else if self.named.len() < MAX_NAMES {
            self.named.entry(name.into()).or_default().add(hint);
        } else {
            self.others.add(hint);
        }
    }
}

/// A string of the protocol, and what follows it.
fn split(body: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = body.iter().position(|&byte| byte == 0)?;
    Some((&body[..end], &body[end + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(name: &str, text: &str) -> Vec<u8> {
        [name.as_bytes(), b"\0", text.as_bytes(), b"\0\0\0"].concat()
    }

    fn bind(name: &str) -> Vec<u8> {
        [b"\0", name.as_bytes(), b"\0\0\0\0\0\0\0"].concat()
    }

    /// Whether a Bind of this name raises a doubt.
    fn doubts(hints: &Hints, name: &str) -> bool {
        let mut doubts = Doubts::default();
        hints.bind(&bind(name), &mut doubts);
        !doubts.is_empty()
    }

    const SETS: &str = "select set_config('work_mem', '5MB', false)";

    #[test]
    fn a_statement_stays_suspicious_behind_a_parse_that_was_skipped() {
        let mut hints = Hints::default();
        hints.parse(&parse("", SETS), true);
        // The server skips what follows an error.
        hints.failed();
        hints.parse(&parse("", "insert into t values (1)"), true);
        hints.at_boundary();
        assert!(doubts(&hints, ""), "the server has the first one");
        hints.parse(&parse("", "select 1"), true);
        hints.at_boundary();
        assert!(!doubts(&hints, ""), "nothing failed: it has the last one");
    }

    #[test]
    fn a_name_keeps_what_it_has_stood_for() {
        let mut hints = Hints::default();
        hints.parse(&parse("s", SETS), true);
        hints.at_boundary();
        // Refused, as the name is taken.
        hints.parse(&parse("s", "select 1"), true);
        hints.failed();
        hints.at_boundary();
        assert!(doubts(&hints, "s") && !doubts(&hints, "other"));
    }

    #[test]
    fn more_texts_than_are_told_apart_may_do_anything() {
        let mut hints = Hints::default();
        for i in 0..1000 {
            let text = format!("select set_config('app.a{i}', '', false)");
            hints.parse(&parse("s", &text), true);
            hints.parse(&parse(&format!("s{i}"), SETS), true);
        }
        let most = hints.named.values().map(|texts| texts.0.len()).max();
        assert!(most <= Some(MAX_TEXTS + 1) && hints.named.len() <= MAX_NAMES);
        assert!(doubts(&hints, "s") && doubts(&hints, "s999"));
    }
}
