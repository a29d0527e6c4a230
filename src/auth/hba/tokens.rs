//! Lines and tokens of `pg_hba.conf` and `pg_ident.conf`, with what they include.

use std::collections::BTreeSet;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::error::{HbaError, HbaErrorKind, shown};
use crate::config::without_mark;

/// The deepest inclusion; PostgreSQL's limit.
const MAX_DEPTH: u32 = 10;
/// The most bytes read for one configuration, whichever files they come from; a file counts each
/// time it is included.
const MAX_BYTES: usize = 16 << 20;
/// The most times a file is opened or a directory listed for one configuration.
const MAX_FILES: u32 = 1_000;
/// The most lines with fields, and the most tokens, of one configuration.
const MAX_LINES: usize = 100_000;
const MAX_TOKENS: usize = 1_000_000;

/// Where the contents of files come from.
pub trait Files {
    /// A whole file; an error of kind `FileTooLarge` where it is longer than `limit` bytes.
    fn read(&self, path: &Path, limit: usize) -> io::Result<Vec<u8>>;

    /// What is in a directory, other than directories, in any order.
    fn list(&self, directory: &Path) -> io::Result<Vec<PathBuf>>;
}

/// One value of a field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) text: Bytes,
    /// It starts with a quote: no keyword, no `+`, no `@`.
    pub(crate) quoted: bool,
}

impl Token {
    pub(crate) fn is_keyword(&self, keyword: &[u8]) -> bool {
        !self.quoted && self.text == keyword
    }
}

/// A line that is not empty, continuation lines joined.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) path: Arc<Path>,
    /// Of its first physical line, from 1.
    pub(crate) number: u32,
    /// Never empty, and neither is any field; the error where the line could not be read.
    pub(crate) fields: Result<Vec<Vec<Token>>, HbaErrorKind>,
}

impl Line {
    pub(crate) fn error(&self, kind: HbaErrorKind) -> HbaError {
        HbaError {
            path: Arc::clone(&self.path),
            line: self.number,
            kind,
        }
    }
}

/// All lines of a file and of those it includes, in order.
#[derive(Debug)]
pub(crate) struct Tokens {
    pub(crate) lines: Vec<Line>,
    /// Files looked for, whether there or not, and directories listed.
    pub(crate) watched: BTreeSet<PathBuf>,
}

pub(crate) fn read(files: &dyn Files, path: &Path) -> Tokens {
    let mut reader = Reader {
        files,
        watched: BTreeSet::new(),
        bytes_left: MAX_BYTES,
        files_left: MAX_FILES,
        lines_left: MAX_LINES,
        tokens_left: MAX_TOKENS,
    };
    let mut lines = Vec::new();
    if let Err(error) = reader.file(path, 0, &mut lines) {
        let fields = Err(error.kind());
        lines.push(Line {
            path: path.into(),
            number: 0,
            fields,
        });
    }
    Tokens {
        lines,
        watched: reader.watched,
    }
}

struct Reader<'a> {
    files: &'a dyn Files,
    watched: BTreeSet<PathBuf>,
    bytes_left: usize,
    files_left: u32,
    lines_left: usize,
    tokens_left: usize,
}

/// Why a file was not read.
enum Unread {
    Missing(HbaErrorKind),
    Other(HbaErrorKind),
}

impl Unread {
    fn kind(self) -> HbaErrorKind {
        match self {
            Self::Missing(kind) | Self::Other(kind) => kind,
        }
    }
}

impl Reader<'_> {
    /// Appends the lines of one file, each with its error.
    fn file(&mut self, path: &Path, depth: u32, lines: &mut Vec<Line>) -> Result<(), Unread> {
        if depth > MAX_DEPTH {
            return Err(Unread::Other(HbaErrorKind::TooDeep(shown(
                path.as_os_str().as_bytes(),
            ))));
        }
        self.take_file().map_err(Unread::Other)?;
        self.watched.insert(path.to_owned());
        let contents = match self.files.read(path, self.bytes_left) {
            Ok(contents) if contents.len() <= self.bytes_left => contents,
            Ok(_) => return Err(Unread::Other(HbaErrorKind::TooMuch)),
            Err(error) => {
                let kind = open_error(path, &error);
                return Err(match error.kind() {
                    io::ErrorKind::NotFound => Unread::Missing(kind),
                    io::ErrorKind::FileTooLarge => Unread::Other(HbaErrorKind::TooMuch),
                    _ => Unread::Other(kind),
                });
            }
        };
        self.bytes_left -= contents.len();
        let path: Arc<Path> = path.into();
        let mut number = 1;
        let mut rest = without_mark(&contents);
        while !rest.is_empty() {
            let (text, physical) = logical_line(&mut rest);
            self.line(&text, &path, number, depth, lines)
                .map_err(Unread::Other)?;
            number += physical;
        }
        Ok(())
    }

    /// Whether one more file may be opened.
    fn take_file(&mut self) -> Result<(), HbaErrorKind> {
        self.files_left = self.files_left.checked_sub(1).ok_or(HbaErrorKind::TooMuch)?;
        Ok(())
    }

    /// Only a limit that is reached ends the file.
    fn line(
        &mut self,
        text: &[u8],
        path: &Arc<Path>,
        number: u32,
        depth: u32,
        lines: &mut Vec<Line>,
    ) -> Result<(), HbaErrorKind> {
        let fields = match self.fields(text, path, depth) {
            Ok(fields) if fields.is_empty() => return Ok(()),
            Ok(fields) => self.include(fields, path, depth, lines),
            Err(kind) => Err(kind),
        };
        let fields = match fields {
            Ok(None) => return Ok(()),
            Ok(Some(fields)) => Ok(fields),
            Err(kind) => Err(kind),
        };
        self.lines_left = self.lines_left.checked_sub(1).ok_or(HbaErrorKind::TooMuch)?;
        lines.push(Line {
            path: Arc::clone(path),
            number,
            fields,
        });
        Ok(())
    }

    fn fields(&mut self, text: &[u8], path: &Path, depth: u32) -> Result<Vec<Vec<Token>>, HbaErrorKind> {
        if text.contains(&0) {
            return Err(HbaErrorKind::ZeroByte);
        }
        let mut fields = Vec::new();
        let mut at = 0;
        while at < text.len() {
            let mut field = Vec::new();
            let mut is_any = false;
            while let Some(lexed) = next_token(text, &mut at) {
                is_any = true;
                match lexed.token.text.strip_prefix(b"@") {
                    Some(name) if !lexed.token.quoted && !name.is_empty() => {
                        self.expand(&located(name, path), depth + 1, &mut field)?;
                    }
                    _ => {
                        self.tokens_left = self.tokens_left.checked_sub(1).ok_or(HbaErrorKind::TooMuch)?;
                        field.push(lexed.token);
                    }
                }
                if !lexed.is_followed_by_comma {
                    break;
                }
            }
            if is_any && field.is_empty() {
                return Err(HbaErrorKind::EmptyField);
            }
            if !field.is_empty() {
                fields.push(field);
            }
        }
        Ok(fields)
    }

    /// `@file`: every token in it.
    fn expand(&mut self, path: &Path, depth: u32, field: &mut Vec<Token>) -> Result<(), HbaErrorKind> {
        let mut lines = Vec::new();
        self.file(path, depth, &mut lines).map_err(Unread::kind)?;
        for line in lines {
            field.extend(line.fields?.into_iter().flatten());
        }
        Ok(())
    }

    /// The lines of another file where `fields` include one, and `fields` where they do not. As in
    /// PostgreSQL, quotes make no difference to the three words.
    fn include(
        &mut self,
        fields: Vec<Vec<Token>>,
        path: &Path,
        depth: u32,
        lines: &mut Vec<Line>,
    ) -> Result<Option<Vec<Vec<Token>>>, HbaErrorKind> {
        let [first, second] = &fields[..] else {
            return Ok(Some(fields));
        };
        let target = located(&second[0].text, path);
        match &first[0].text[..] {
            b"include" => self.file(&target, depth + 1, lines).map_err(Unread::kind)?,
            b"include_if_exists" => match self.file(&target, depth + 1, lines) {
                Ok(()) | Err(Unread::Missing(_)) => {}
                Err(Unread::Other(kind)) => return Err(kind),
            },
            b"include_dir" => self.directory(&second[0].text, &target, depth + 1, lines)?,
            _ => return Ok(Some(fields)),
        }
        Ok(None)
    }

    /// Files that end in `.conf` and do not start with a dot, by name in the C collation.
    fn directory(
        &mut self,
        name: &[u8],
        directory: &Path,
        depth: u32,
        lines: &mut Vec<Line>,
    ) -> Result<(), HbaErrorKind> {
        if name
            .iter()
            .all(|byte| matches!(byte, b' ' | b'\t' | b'\r' | b'\n'))
        {
            return Err(HbaErrorKind::EmptyDirectoryName);
        }
        self.take_file()?;
        self.watched.insert(directory.to_owned());
        let entries = self
            .files
            .list(directory)
            .map_err(|error| open_error(directory, &error))?;
        let mut names: Vec<_> = entries
            .iter()
            .filter_map(|path| path.file_name())
            .filter(|name| {
                let name = name.as_bytes();
                name.len() > b".conf".len() && name.ends_with(b".conf") && !name.starts_with(b".")
            })
            .collect();
        names.sort_unstable();
        let mut first_error = None;
        for name in names {
            if let Err(unread) = self.file(&canonical(&directory.join(name)), depth, lines) {
                first_error.get_or_insert(unread.kind());
            }
        }
        first_error.map_or(Ok(()), Err)
    }
}

/// Takes a line, its continuations included; returns the number of physical lines.
fn logical_line(rest: &mut &[u8]) -> (Vec<u8>, u32) {
    let mut text = Vec::new();
    let mut physical = 0;
    let mut joined = 0;
    while !rest.is_empty() {
        let end = rest.iter().position(|&byte| byte == b'\n');
        text.extend_from_slice(&rest[..end.unwrap_or(rest.len())]);
        *rest = end.map_or(&[], |end| &rest[end + 1..]);
        physical += 1;
        while text.last() == Some(&b'\r') {
            text.pop();
        }
        // A backslash that became the last one by joining is not a continuation.
        if text.len() <= joined || text.last() != Some(&b'\\') {
            break;
        }
        text.pop();
        joined = text.len();
    }
    (text, physical)
}

struct Lexed {
    token: Token,
    is_followed_by_comma: bool,
}

/// The next token from `at`, which is left at what ended it.
fn next_token(line: &[u8], at: &mut usize) -> Option<Lexed> {
    let is_blank = |byte: u8| matches!(byte, b' ' | b'\t' | b'\r');
    while line.get(*at).is_some_and(|&byte| is_blank(byte) || byte == b',') {
        *at += 1;
    }
    let mut text = Vec::new();
    let mut is_inside = false;
    let mut closed_just_now = false;
    let mut has_quotes = false;
    let mut quoted = false;
    let mut is_followed_by_comma = false;
    while let Some(&byte) = line.get(*at) {
        match byte {
            _ if !is_inside && is_blank(byte) => break,
            b',' if !is_inside => {
                is_followed_by_comma = true;
                break;
            }
            b'#' if !is_inside => {
                *at = line.len();
                break;
            }
            b'"' => {
                // Two in a row are one that is meant.
                if closed_just_now {
                    text.push(byte);
                }
                closed_just_now = is_inside;
                is_inside = !is_inside;
                has_quotes = true;
                quoted |= text.is_empty();
            }
            _ => {
                text.push(byte);
                closed_just_now = false;
            }
        }
        *at += 1;
    }
    (has_quotes || !text.is_empty()).then(|| Lexed {
        token: Token {
            text: text.into(),
            quoted,
        },
        is_followed_by_comma,
    })
}

fn open_error(path: &Path, error: &io::Error) -> HbaErrorKind {
    HbaErrorKind::Open {
        path: shown(path.as_os_str().as_bytes()),
        error: error.to_string(),
    }
}

/// `name` as seen from the file at `from`.
fn located(name: &[u8], from: &Path) -> PathBuf {
    let name = Path::new(std::ffi::OsStr::from_bytes(name));
    if name.is_absolute() {
        return name.to_owned();
    }
    let folder = from.parent().unwrap_or(Path::new(""));
    canonical(&folder.join(name))
}

/// Without `.`, `..` and doubled slashes, by the text alone.
fn canonical(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir if matches!(out.components().next_back(), Some(Component::Normal(_))) => {
                out.pop();
            }
            Component::ParentDir if out.has_root() => {}
            other => out.push(other),
        }
    }
    out
}
