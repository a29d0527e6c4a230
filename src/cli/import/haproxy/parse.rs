//! `haproxy.cfg`: from text to sections of lines of words.
//!
//! Quotes, escapes and comments as in the manual's chapter "Quoting and escaping". Lenient:
//! indentation means nothing, a quote that is not closed ends with its line, and words that are no
//! directive are reported later.

use crate::cli::import::Refusal;
use crate::cli::import::notes::Notes;

/// Sections that are proxies. Each inherits the lines of its `defaults`, so their number limits the
/// work.
const MAX_PROXIES: usize = 512;

/// A directive: at least one word.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// From 1; of the first line where it is continued.
    pub(super) number: usize,
    pub(super) words: Vec<String>,
}

impl Line {
    pub(super) fn word(&self, index: usize) -> &str {
        self.words.get(index).map_or("", String::as_str)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SectionKind {
    Global,
    Defaults,
    Listen,
    Frontend,
    Backend,
    /// `resolvers`, `peers`, `userlist`, …
    Other,
}

#[derive(Debug)]
pub(super) struct Section {
    pub(super) kind: SectionKind,
    /// The keyword, as it is written.
    pub(super) keyword: String,
    /// Empty where it has none.
    pub(super) name: String,
    /// `from NAME`: the defaults to inherit, instead of the last ones.
    pub(super) from: Option<String>,
    pub(super) line: usize,
    pub(super) lines: Vec<Line>,
}

/// Keywords that open a section of no proxy.
const OTHERS: &[&str] = &[
    "cache",
    "crt-list",
    "crt-store",
    "fcgi-app",
    "http-errors",
    "log-forward",
    "log-profile",
    "mailers",
    "peers",
    "program",
    "resolvers",
    "ring",
    "traces",
    "userlist",
];

pub(super) fn sections(text: &str, notes: &mut Notes) -> Result<Vec<Section>, Refusal> {
    let mut sections: Vec<Section> = Vec::new();
    for line in lines(text, notes) {
        let first = line.word(0);
        let kind = match first {
            "global" => Some(SectionKind::Global),
            "defaults" => Some(SectionKind::Defaults),
            "listen" => Some(SectionKind::Listen),
            "frontend" => Some(SectionKind::Frontend),
            "backend" => Some(SectionKind::Backend),
            // `peers` and `cache` are directives' words too, but never the first.
            word if OTHERS.contains(&word) => Some(SectionKind::Other),
            _ => None,
        };
        if let Some(kind) = kind {
            let section = open(kind, &line);
            let is_proxy = matches!(
                kind,
                SectionKind::Listen | SectionKind::Frontend | SectionKind::Backend
            );
            if is_proxy && section.from.is_none() && line.words.len() > 2 {
                notes.lost(
                    line.number,
                    first,
                    "current versions of HAProxy do not read an address after the name; write `bind`",
                );
            }
            sections.push(section);
            continue;
        }
        if matches!(first, ".if" | ".elif" | ".else" | ".endif") {
            notes.differs(
                line.number,
                first,
                "conditions are not evaluated: all branches were read",
            );
            continue;
        }
        if first.starts_with('.') {
            continue;
        }
        match sections.last_mut() {
            Some(section) => section.lines.push(line),
            None => notes.lost(line.number, first, "is before any section"),
        }
    }
    let is_proxy = |section: &&Section| {
        matches!(
            section.kind,
            SectionKind::Listen | SectionKind::Frontend | SectionKind::Backend
        )
    };
    if let Some(section) = sections.iter().filter(is_proxy).nth(MAX_PROXIES) {
        return Err(Refusal {
            line: Some(section.line),
            message: format!("there are more than {MAX_PROXIES} sections"),
        });
    }
    Ok(sections)
}

fn open(kind: SectionKind, line: &Line) -> Section {
    let (name, rest) = match line.word(1) {
        "from" if kind == SectionKind::Defaults => ("", 1),
        name => (name, 2),
    };
    let from = (line.word(rest) == "from").then(|| line.word(rest + 1).to_owned());
    Section {
        kind,
        keyword: line.word(0).to_owned(),
        name: name.to_owned(),
        from,
        line: line.number,
        lines: Vec::new(),
    }
}

fn lines(text: &str, notes: &mut Notes) -> Vec<Line> {
    let mut lines = Vec::new();
    let mut pending: Option<(usize, String)> = None;
    for (index, raw) in text.lines().enumerate() {
        let (number, mut joined) = pending.take().unwrap_or((index + 1, String::new()));
        let backslashes = raw.len() - raw.trim_end_matches('\\').len();
        if backslashes % 2 == 1 {
            joined.push_str(&raw[..raw.len() - 1]);
            joined.push(' ');
            pending = Some((number, joined));
            continue;
        }
        joined.push_str(raw);
        add(number, &joined, &mut lines, notes);
    }
    if let Some((number, joined)) = pending {
        add(number, &joined, &mut lines, notes);
    }
    lines
}

fn add(number: usize, raw: &str, lines: &mut Vec<Line>, notes: &mut Notes) {
    let (words, closed) = words(raw);
    let Some(first) = words.first() else {
        return;
    };
    if !closed {
        notes.differs(
            number,
            first,
            "a quote is not closed; it was closed at the end of the line",
        );
    }
    lines.push(Line { number, words });
}

/// The words of a line, and whether every quote is closed.
fn words(raw: &str) -> (Vec<String>, bool) {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote: Option<char> = None;
    let mut rest = raw.chars();
    while let Some(c) = rest.next() {
        match (c, quote) {
            (end, Some(open)) if end == open => quote = None,
            ('\'' | '"', None) => {
                quote = Some(c);
                // `""` is a word.
                word.get_or_insert_default();
            }
            ('\\', None | Some('"')) => {
                let escaped = match rest.next() {
                    Some('n') => '\n',
                    Some('r') => '\r',
                    Some('t') => '\t',
                    Some('x') => hexadecimal(&mut rest),
                    Some(other) => other,
                    None => '\\',
                };
                word.get_or_insert_default().push(escaped);
            }
            ('#', None) => break,
            (space, None) if space.is_whitespace() || space == '\u{feff}' => words.extend(word.take()),
            (other, _) => word.get_or_insert_default().push(other),
        }
    }
    words.extend(word);
    (words, quote.is_none())
}

/// `\x` and two digits.
fn hexadecimal(rest: &mut std::str::Chars<'_>) -> char {
    let digits = rest.as_str().get(..2);
    match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
        Some(byte) => {
            rest.next();
            rest.next();
            char::from(byte)
        }
        None => 'x',
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn split(raw: &str) -> Vec<String> {
        words(raw).0
    }

    #[test]
    fn quotes_escapes_and_comments() {
        assert_eq!(split("  bind *:5010   # all"), ["bind", "*:5010"]);
        assert_eq!(
            split(r"option httpchk OPTIONS /x HTTP/1.1\r\nHost:\ db"),
            ["option", "httpchk", "OPTIONS", "/x", "HTTP/1.1\r\nHost: db"]
        );
        assert_eq!(
            split(r#"a "b # c" 'd "e" \n' f\#g """#),
            ["a", "b # c", r#"d "e" \n"#, "f#g", ""]
        );
        assert_eq!(split(r#""a"'b'c \x41 \xzz \\"#), ["abc", "A", "xzz", r"\"]);
        assert!(split("   # nothing").is_empty() && split("").is_empty());
        assert!(!words("a 'b").1 && words("a 'b'").1);
    }

    #[test]
    fn sections_and_continued_lines() {
        let text = "global\n  maxconn 1\ndefaults base\n mode tcp\ndefaults from base\nlisten a from base\n\
                    server x \\\n  db:1 \\\n check\nresolvers r\n nameserver d 1.1.1.1:53\n";
        let mut notes = Notes::default();
        let sections = sections(text, &mut notes).unwrap();
        let shown: Vec<_> = sections
            .iter()
            .map(|section| {
                (
                    section.kind,
                    section.name.as_str(),
                    section.from.as_deref(),
                    section.line,
                )
            })
            .collect();
        assert_eq!(
            shown,
            [
                (SectionKind::Global, "", None, 1),
                (SectionKind::Defaults, "base", None, 3),
                (SectionKind::Defaults, "", Some("base"), 5),
                (SectionKind::Listen, "a", Some("base"), 6),
                (SectionKind::Other, "r", None, 10),
            ]
        );
        assert_eq!(sections[3].lines[0].words, ["server", "x", "db:1", "check"]);
        assert_eq!(sections[3].lines[0].number, 7);
    }

    #[test]
    fn too_many_sections_are_refused() {
        let text = "listen a\n".repeat(MAX_PROXIES + 1);
        let refusal = sections(&text, &mut Notes::default()).unwrap_err();
        assert_eq!(refusal.line, Some(MAX_PROXIES + 1));
    }
}
