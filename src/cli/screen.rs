//! Lines for a terminal: each with its colour, cut at the terminal's width.

use std::io::IsTerminal as _;

use clap::ValueEnum;

use crate::wire::text::is_unsafe;

/// When output has colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Colour {
    /// On a terminal, unless the environment has `NO_COLOR`.
    Auto,
    Always,
    Never,
}

impl Colour {
    pub(super) fn is_on(self) -> bool {
        match self {
            Self::Always => true,
            Self::Never => false,
            Self::Auto => {
                let is_refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
                !is_refused && std::io::stdout().is_terminal()
            }
        }
    }
}

/// What a line means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mood {
    Plain,
    /// A heading.
    Strong,
    Good,
    Warning,
    Bad,
}

impl Mood {
    fn code(self) -> Option<&'static str> {
        match self {
            Self::Plain => None,
            Self::Strong => Some("1"),
            Self::Good => Some("32"),
            Self::Warning => Some("33"),
            Self::Bad => Some("31"),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) mood: Mood,
    pub(super) text: String,
}

impl Line {
    /// Control and format characters do not reach the terminal: it would obey them.
    pub(super) fn new(mood: Mood, text: &str) -> Self {
        let text = text.chars().map(|c| if is_unsafe(c) { ' ' } else { c });
        Self {
            mood,
            text: text.collect(),
        }
    }

    pub(super) fn plain(text: &str) -> Self {
        Self::new(Mood::Plain, text)
    }

    /// At most `width` characters, with its colour.
    pub(super) fn painted(&self, width: Option<usize>, colours: bool) -> String {
        let text: String = match width {
            Some(width) if self.text.chars().count() > width => {
                let kept = self.text.chars().take(width.saturating_sub(1));
                kept.chain(['…']).collect()
            }
            _ => self.text.clone(),
        };
        match self.mood.code() {
            Some(code) if colours => format!("\u{1b}[{code}m{text}\u{1b}[0m"),
            _ => text,
        }
    }
}

/// Breaks a sentence at spaces.
pub(super) fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_cut_and_coloured_and_harmless() {
        let line = Line::new(Mood::Bad, "db1 \u{1b}[2J is down");
        assert_eq!(line.painted(None, false), "db1  [2J is down");
        assert_eq!(line.painted(Some(8), false), "db1  [2…");
        assert_eq!(line.painted(Some(8), true), "\u{1b}[31mdb1  [2…\u{1b}[0m");
        assert_eq!(Line::plain("ok").painted(Some(2), true), "ok");
    }

    #[test]
    fn a_sentence_is_broken_at_spaces() {
        assert_eq!(wrapped("one two three", 7), ["one two", "three"]);
        assert_eq!(wrapped("incomprehensible", 4), ["incomprehensible"]);
        assert_eq!(wrapped("", 4), [""]);
    }
}
