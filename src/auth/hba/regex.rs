//! Regular expressions of `pg_hba.conf` and `pg_ident.conf`: a `/` and PostgreSQL's advanced
//! regular expression (PostgreSQL documentation, "Regular Expression Details"), over bytes, in the
//! C collation.
//!
//! Accepted is only what PostgreSQL's engine and this one read alike: literals, `.`, brackets with
//! ranges and POSIX classes, `\d \s \w \D \S \W`, groups, alternation, greedy quantifiers, `^` and
//! `$`. An expression is parsed here and given to the engine as sets of bytes, so that none of the
//! engine's own syntax applies. The rest is refused.

mod set;

use std::fmt::Write as _;

use bytes::Bytes;
use regex::bytes::{Regex, RegexBuilder};

use set::{Set, class};

/// The longest expression, in bytes.
pub const MAX_PATTERN: usize = 1024;
/// The most nested groups.
const MAX_DEPTH: usize = 20;
/// The most single-byte steps after repetitions are written out; PostgreSQL has a higher limit.
const MAX_STEPS: usize = 4096;
/// What the engine makes of an expression, in bytes: of any, of each byte, of each step, and of
/// each range of a step. The engine does not say; these are above all that was measured.
const PROGRAM: usize = 8192;
const PER_BYTE: usize = 16;
const PER_STEP: usize = 128;
const PER_RANGE: usize = 24;
/// PostgreSQL's limit for `{m,n}`.
const MAX_REPEAT: u16 = 255;

/// Why an expression is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    #[error("longer than {MAX_PATTERN} bytes")]
    TooLong,
    #[error("groups are nested too deep")]
    TooDeep,
    #[error("its repetitions make it too large")]
    TooLarge,
    #[error("parentheses ( ) do not balance")]
    Parentheses,
    #[error("brackets [ ] do not balance")]
    Brackets,
    #[error("a quantifier has nothing to repeat")]
    Quantifier,
    #[error(
        "a repetition is not {{m}}, {{m,}} or {{m,n}} with numbers up to {MAX_REPEAT}; a literal brace is \\{{"
    )]
    Braces,
    #[error("an invalid range in brackets")]
    Range,
    #[error("an unknown character class in brackets")]
    Class,
    #[error("collating elements and equivalence classes are not supported")]
    Collating,
    #[error("non-greedy quantifiers are not supported")]
    NonGreedy,
    #[error("(? is supported as (?: only: no lookaround, no embedded options")]
    Extension,
    #[error("a leading *** is not supported")]
    Director,
    #[error("back references are not supported")]
    BackReference,
    #[error("the escape \\{} is not supported", .0.escape_ascii())]
    Escape(u8),
    #[error("it ends in a backslash")]
    TrailingBackslash,
    #[error("it has no parenthesised group for \\1")]
    NoGroup,
    #[error(
        "what \\1 stands for could differ from PostgreSQL: the expression must start with ^, end with $, have its first \
         group outside of any other and without a quantifier, and at most one part of variable length before that \
         group and one in it"
    )]
    UncertainGroup,
    #[error("too complex")]
    Engine,
}

/// A compiled expression. Equal where the texts are.
#[derive(Debug, Clone)]
pub struct Pattern {
    source: Bytes,
    regex: Regex,
    group: Result<(), PatternError>,
    steps: usize,
    size: usize,
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

impl Eq for Pattern {}

impl Pattern {
    /// Reads an expression, without the `/` before it.
    pub fn new(source: &[u8]) -> Result<Self, PatternError> {
        if source.len() > MAX_PATTERN {
            return Err(PatternError::TooLong);
        }
        if source.starts_with(b"***") {
            return Err(PatternError::Director);
        }
        let mut parser = Parser {
            text: source,
            at: 0,
            depth: 0,
        };
        let node = parser.alternation()?;
        if parser.at < source.len() {
            return Err(PatternError::Parentheses);
        }
        let steps = node.steps();
        if steps > MAX_STEPS {
            return Err(PatternError::TooLarge);
        }
        let mut text = String::new();
        node.write(&mut text);
        let regex = RegexBuilder::new(&text)
            .unicode(false)
            .size_limit(4 << 20)
            .dfa_size_limit(1 << 20)
            .build()
            .map_err(|_| PatternError::Engine)?;
        Ok(Self {
            source: Bytes::copy_from_slice(source),
            regex,
            group: node.certain_group(),
            steps,
            size: PROGRAM
                + source.len() * PER_BYTE
                + steps * PER_STEP
                + node.written_out(Set::ranges) * PER_RANGE,
        })
    }

    /// The single-byte steps it has when its repetitions are written out. Each byte of a text may
    /// have to be compared with each of them.
    pub fn steps(&self) -> usize {
        self.steps
    }

    /// The bytes of memory that it takes, at most; without those that a search takes, which stay
    /// with the expression that searched. A clone begins without them.
    pub fn size(&self) -> usize {
        self.size
    }

    /// As written, without the `/`.
    pub fn source(&self) -> &Bytes {
        &self.source
    }

    /// Whether it matches anywhere in `text`.
    pub fn is_match(&self, text: &[u8]) -> bool {
        self.regex.is_match(text)
    }

    /// Whether [`Pattern::group`] is certain to be what PostgreSQL finds; PostgreSQL prefers the
    /// longest match and this engine the first one.
    pub fn has_certain_group(&self) -> Result<(), PatternError> {
        self.group
    }

    /// What the first group matched; `None` where the expression does not match.
    pub fn group<'t>(&self, text: &'t [u8]) -> Option<&'t [u8]> {
        Some(self.regex.captures(text)?.get(1)?.as_bytes())
    }
}

enum Node {
    Set(Set),
    Start,
    End,
    Group {
        inner: Box<Node>,
        captures: bool,
    },
    Repeat {
        inner: Box<Node>,
        min: u16,
        max: Option<u16>,
    },
    Sequence(Vec<Node>),
    Either(Vec<Node>),
}

impl Node {
    /// How many single-byte steps it takes, repetitions written out.
    fn steps(&self) -> usize {
        self.written_out(|_| 1)
    }

    /// Sets count as `of` says, everything else as one.
    fn written_out(&self, of: fn(&Set) -> usize) -> usize {
        match self {
            Self::Set(set) => of(set),
            Self::Start | Self::End => 1,
            Self::Group { inner, .. } => inner.written_out(of).saturating_add(1),
            Self::Repeat { inner, min, max } => {
                let times = usize::from(max.unwrap_or(*min).max(1));
                inner.written_out(of).saturating_mul(times)
            }
            Self::Sequence(nodes) | Self::Either(nodes) => nodes
                .iter()
                .fold(0, |sum, node| sum.saturating_add(node.written_out(of))),
        }
    }

    /// The number of bytes it matches, where that is always the same.
    fn width(&self) -> Option<usize> {
        match self {
            Self::Set(_) => Some(1),
            Self::Start | Self::End => Some(0),
            Self::Group { inner, .. } => inner.width(),
            Self::Repeat { inner, min, max } => {
                let width = inner.width()?;
                (Some(*min) == *max || width == 0).then(|| width * usize::from(*min))
            }
            Self::Sequence(nodes) => nodes.iter().map(Self::width).sum(),
            Self::Either(nodes) => {
                let width = nodes.first()?.width();
                nodes.iter().all(|node| node.width() == width).then_some(width)?
            }
        }
    }

    fn has_group(&self) -> bool {
        match self {
            Self::Set(_) | Self::Start | Self::End => false,
            Self::Group { inner, captures } => *captures || inner.has_group(),
            Self::Repeat { inner, .. } => inner.has_group(),
            Self::Sequence(nodes) | Self::Either(nodes) => nodes.iter().any(Self::has_group),
        }
    }

    /// With both ends fixed and one length to choose before the group and one in it, "the longest
    /// that still lets the rest match" and "as much as possible, then backtrack" are the same.
    fn certain_group(&self) -> Result<(), PatternError> {
        if !self.has_group() {
            return Err(PatternError::NoGroup);
        }
        let certain = || -> Option<()> {
            let Self::Sequence(nodes) = self else { return None };
            let [Self::Start, inner @ .., Self::End] = &nodes[..] else {
                return None;
            };
            let at = inner.iter().position(Self::has_group)?;
            let Self::Group {
                inner: group,
                captures: true,
            } = &inner[at]
            else {
                return None;
            };
            let group = match &**group {
                Self::Sequence(nodes) => &nodes[..],
                other => std::slice::from_ref(other),
            };
            (Self::has_one_length(&inner[..at]) && Self::has_one_length(group)).then_some(())
        };
        certain().ok_or(PatternError::UncertainGroup)
    }

    /// At most one of `nodes` varies in length, and that one is a repeated byte.
    fn has_one_length(nodes: &[Self]) -> bool {
        let mut varying = nodes.iter().filter(|node| node.width().is_none());
        let first_is_simple = varying
            .next()
            .is_none_or(|node| matches!(node, Self::Repeat { inner, .. } if matches!(**inner, Self::Set(_))));
        first_is_simple
            && varying.next().is_none()
            && !nodes.iter().any(|node| matches!(node, Self::Start | Self::End))
    }

    /// In the engine's syntax.
    fn write(&self, out: &mut String) {
        match self {
            Self::Set(set) => set.write(out),
            Self::Start => out.push('^'),
            Self::End => out.push('$'),
            Self::Group { inner, captures } => {
                out.push_str(if *captures { "(" } else { "(?:" });
                inner.write(out);
                out.push(')');
            }
            Self::Repeat { inner, min, max } => {
                inner.write(out);
                let _ = match max {
                    Some(max) => write!(out, "{{{min},{max}}}"),
                    None => write!(out, "{{{min},}}"),
                };
            }
            Self::Sequence(nodes) => nodes.iter().for_each(|node| node.write(out)),
            Self::Either(nodes) => {
                for (index, node) in nodes.iter().enumerate() {
                    if index > 0 {
                        out.push('|');
                    }
                    node.write(out);
                }
            }
        }
    }
}

struct Parser<'a> {
    text: &'a [u8],
    at: usize,
    depth: usize,
}

impl Parser<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn next(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        Some(byte)
    }

    fn eat(&mut self, byte: u8) -> bool {
        let is_it = self.peek() == Some(byte);
        self.at += usize::from(is_it);
        is_it
    }

    /// Up to the end or an unmatched `)`.
    fn alternation(&mut self) -> Result<Node, PatternError> {
        let mut branches = vec![self.branch()?];
        while self.eat(b'|') {
            branches.push(self.branch()?);
        }
        if branches.len() > 1 {
            return Ok(Node::Either(branches));
        }
        Ok(branches.swap_remove(0))
    }

    fn branch(&mut self) -> Result<Node, PatternError> {
        let mut nodes = Vec::new();
        while let Some(byte) = self.peek() {
            if matches!(byte, b'|' | b')') {
                break;
            }
            let atom = self.atom()?;
            nodes.push(self.quantified(atom)?);
        }
        Ok(Node::Sequence(nodes))
    }

    fn atom(&mut self) -> Result<Node, PatternError> {
        Ok(match self.next().ok_or(PatternError::Quantifier)? {
            b'^' => Node::Start,
            b'$' => Node::End,
            b'.' => Node::Set(Set::of(|_| true)),
            b'[' => Node::Set(self.bracket()?),
            b'(' => self.group()?,
            b'\\' => Node::Set(self.escape()?),
            b'*' | b'+' | b'?' => return Err(PatternError::Quantifier),
            b'{' => return Err(PatternError::Braces),
            literal => Node::Set(Set::of(|byte| byte == literal)),
        })
    }

    fn group(&mut self) -> Result<Node, PatternError> {
        let captures = !self.eat(b'?');
        if !captures && !self.eat(b':') {
            return Err(PatternError::Extension);
        }
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(PatternError::TooDeep);
        }
        let inner = Box::new(self.alternation()?);
        self.depth -= 1;
        if !self.eat(b')') {
            return Err(PatternError::Parentheses);
        }
        Ok(Node::Group { inner, captures })
    }

    fn quantified(&mut self, atom: Node) -> Result<Node, PatternError> {
        let Some(quantifier @ (b'*' | b'+' | b'?' | b'{')) = self.peek() else {
            return Ok(atom);
        };
        self.at += 1;
        let (min, max) = match quantifier {
            b'*' => (0, None),
            b'+' => (1, None),
            b'?' => (0, Some(1)),
            _ => self.braces()?,
        };
        if matches!(atom, Node::Start | Node::End) {
            return Err(PatternError::Quantifier);
        }
        match self.peek() {
            Some(b'?') => Err(PatternError::NonGreedy),
            Some(b'*' | b'+' | b'{') => Err(PatternError::Quantifier),
            _ => Ok(Node::Repeat {
                inner: Box::new(atom),
                min,
                max,
            }),
        }
    }

    /// After the `{`.
    fn braces(&mut self) -> Result<(u16, Option<u16>), PatternError> {
        let min = self.number().ok_or(PatternError::Braces)?;
        let max = if !self.eat(b',') {
            Some(min)
        } else if self.peek() == Some(b'}') {
            None
        } else {
            Some(self.number().ok_or(PatternError::Braces)?)
        };
        if !self.eat(b'}') || max.is_some_and(|max| max < min) {
            return Err(PatternError::Braces);
        }
        Ok((min, max))
    }

    fn number(&mut self) -> Option<u16> {
        let mut number = None;
        while let Some(digit @ b'0'..=b'9') = self.peek() {
            self.at += 1;
            let value = number.unwrap_or(0) * 10 + u16::from(digit - b'0');
            if value > MAX_REPEAT {
                return None;
            }
            number = Some(value);
        }
        number
    }

    /// After the backslash.
    fn escape(&mut self) -> Result<Set, PatternError> {
        let byte = self.next().ok_or(PatternError::TrailingBackslash)?;
        let named = |name: &[u8]| class(name).ok_or(PatternError::Class);
        let literal = match byte {
            b'd' => return named(b"digit"),
            b's' => return named(b"space"),
            b'w' => return named(b"word"),
            b'D' => return Ok(named(b"digit")?.negated()),
            b'S' => return Ok(named(b"space")?.negated()),
            b'W' => return Ok(named(b"word")?.negated()),
            b't' => b'\t',
            b'n' => b'\n',
            b'r' => b'\r',
            b'f' => 0x0c,
            b'v' => 0x0b,
            b'1'..=b'9' => return Err(PatternError::BackReference),
            punctuation if punctuation.is_ascii_punctuation() || punctuation == b' ' => punctuation,
            other => return Err(PatternError::Escape(other)),
        };
        Ok(Set::of(|byte| byte == literal))
    }

    /// After the `[`.
    fn bracket(&mut self) -> Result<Set, PatternError> {
        let negated = self.eat(b'^');
        let mut set = Set::of(|_| false);
        let mut is_first = true;
        loop {
            let byte = self.next().ok_or(PatternError::Brackets)?;
            match byte {
                b']' if !is_first => break,
                b'[' if matches!(self.peek(), Some(b'.' | b'=')) => return Err(PatternError::Collating),
                b'[' if self.eat(b':') => {
                    set.add(self.class()?);
                    // A range cannot start with a class.
                    if self.peek() == Some(b'-') && self.text.get(self.at + 1) != Some(&b']') {
                        return Err(PatternError::Range);
                    }
                }
                b'-' if !is_first && self.peek() != Some(b']') => return Err(PatternError::Range),
                _ => self.range(byte, &mut set)?,
            }
            is_first = false;
        }
        Ok(if negated { set.negated() } else { set })
    }

    /// One byte of a bracket, or a range that starts with it.
    fn range(&mut self, first: u8, set: &mut Set) -> Result<(), PatternError> {
        let first = self.endpoint(first)?;
        if self.peek() != Some(b'-') || matches!(self.text.get(self.at + 1), Some(b']') | None) {
            set.insert(first);
            return Ok(());
        }
        self.at += 1;
        let last = self.next().ok_or(PatternError::Brackets)?;
        if matches!(last, b'[' | b'-') {
            return Err(PatternError::Range);
        }
        let last = self.endpoint(last)?;
        if first > last {
            return Err(PatternError::Range);
        }
        set.add(Set::of(|byte| (first..=last).contains(&byte)));
        Ok(())
    }

    /// A byte as it is, or an escaped one.
    fn endpoint(&mut self, byte: u8) -> Result<u8, PatternError> {
        if byte != b'\\' {
            return Ok(byte);
        }
        match self.next().ok_or(PatternError::TrailingBackslash)? {
            punctuation if punctuation.is_ascii_punctuation() => Ok(punctuation),
            other => Err(PatternError::Escape(other)),
        }
    }

    /// After the `[:`.
    fn class(&mut self) -> Result<Set, PatternError> {
        let rest = &self.text[self.at..];
        let length = rest
            .iter()
            .position(|&byte| byte == b':')
            .ok_or(PatternError::Class)?;
        let set = class(&rest[..length]).ok_or(PatternError::Class)?;
        self.at += length + 1;
        if !self.eat(b']') {
            return Err(PatternError::Class);
        }
        Ok(set)
    }
}
