//! A server of a test's own: as much of PostgreSQL's protocol as a session can tell apart, so that
//! what a client hears through a pool can be compared with what a connection of its own would say.
//! No IO.

use std::collections::BTreeMap;

use crate::session::simulator::frame;

/// What the server does with the router's own queries, in order; afterwards it answers them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    /// An error that names this setting.
    Fails(&'static str),
    /// The server is gone.
    Dies,
    /// No answer at all.
    Hangs,
    /// FATAL, and it keeps the connection.
    Ends,
    /// It answers, and says something more behind its `Z`.
    Babbles,
    /// It goes on behind an error.
    Stumbles,
}

/// See the module.
#[derive(Debug)]
pub(super) struct ModelServer {
    input: Vec<u8>,
    statements: BTreeMap<Vec<u8>, Vec<u8>>,
    portal: Option<Vec<u8>>,
    /// That of `Z`.
    status: u8,
    /// Messages since the last Sync.
    is_in_batch: bool,
    /// An error in a batch: everything up to its Sync is skipped.
    is_skipping: bool,
    copy: Option<Copy>,
    /// It has got a Terminate, or it died.
    pub(super) is_over: bool,
    /// It was told to say nothing any more.
    pub(super) is_hung: bool,
    /// Types of the messages that it got.
    pub(super) got: String,
    /// How often it was to run each text of a client.
    pub(super) ran: BTreeMap<Vec<u8>, usize>,
}

#[derive(Debug)]
struct Copy {
    is_extended: bool,
    pieces: usize,
}

impl Default for ModelServer {
    fn default() -> Self {
        Self {
            input: Vec::new(),
            statements: BTreeMap::new(),
            portal: None,
            status: b'I',
            is_in_batch: false,
            is_skipping: false,
            copy: None,
            is_over: false,
            is_hung: false,
            got: String::new(),
            ran: BTreeMap::new(),
        }
    }
}

/// How long the router's own queries begin.
const OWN: &[u8] = b"BEGIN ISOLATION LEVEL";

/// How the router makes a transaction fail.
const FAIL: &[u8] = b"BEGIN; ROLLBACK TO SAVEPOINT x";

fn split(body: &[u8]) -> (&[u8], &[u8]) {
    let end = body.iter().position(|&byte| byte == 0).expect("it is a string");
    (&body[..end], &body[end + 1..])
}

fn error(out: &mut Vec<u8>, code: &str, text: &str) {
    let body = format!("SERROR\0VERROR\0C{code}\0M{text}\0\0");
    out.extend(frame(b'E', body.as_bytes()));
}

/// An error that ends the session.
pub(super) fn fatal(code: &str, text: &str) -> Vec<u8> {
    let body = format!("SFATAL\0VFATAL\0C{code}\0M{text}\0\0");
    frame(b'E', body.as_bytes())
}

fn complete(out: &mut Vec<u8>, tag: &str) {
    out.extend(frame(b'C', format!("{tag}\0").as_bytes()));
}

fn row(out: &mut Vec<u8>, value: &[u8]) {
    let length = u32::try_from(value.len()).expect("it is short");
    out.extend(frame(b'D', &[&[0, 1], &length.to_be_bytes()[..], value].concat()));
}

/// Of one column, or none.
fn description(text: &[u8]) -> Vec<u8> {
    if has_rows(text) {
        frame(b'T', &[&[0, 1], &b"c\0"[..], &[0; 18]].concat())
    } else {
        frame(b'n', b"")
    }
}

fn has_rows(text: &[u8]) -> bool {
    text.starts_with(b"echo") || text.starts_with(b"rows")
}

/// The number behind a text's first word.
fn number(text: &[u8]) -> usize {
    let text = std::str::from_utf8(text).expect("it is ASCII");
    text.split(' ')
        .nth(1)
        .and_then(|word| word.parse().ok())
        .unwrap_or(1)
}

impl ModelServer {
    /// Nothing of its last session is left.
    pub(super) fn is_clean(&self) -> bool {
        self.input.is_empty()
            && self.status == b'I'
            && !self.is_in_batch
            && !self.is_skipping
            && self.copy.is_none()
    }

    /// The texts of Queries of a client that it has not looked at, and something for each Execute.
    pub(super) fn unread(&self) -> Vec<Vec<u8>> {
        let (mut rest, mut all) = (&self.input[..], Vec::new());
        while let Some(&[tag, a, b, c, d]) = rest.first_chunk::<5>() {
            let length = u32::from_be_bytes([a, b, c, d]) as usize + 1;
            let Some((frame, behind)) = rest.split_at_checked(length) else {
                break;
            };
            let body = &frame[5..];
            match tag {
                b'Q' if body.starts_with(OWN) || split(body).0 == FAIL => {}
                b'Q' => all.push(split(body).0.to_vec()),
                b'E' => all.push(Vec::new()),
                _ => {}
            }
            rest = behind;
        }
        all
    }

    /// A COPY of a Query fails before all of it has come; what it says then.
    pub(super) fn copy_fails(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        self.copy = None;
        self.fail("22P02", "invalid input", true, &mut out);
        self.ready(&mut out);
        out
    }

    /// What it says to these bytes.
    pub(super) fn hear(&mut self, bytes: &[u8], troubles: &mut Vec<Trouble>) -> Vec<u8> {
        self.input.extend_from_slice(bytes);
        let mut out = Vec::new();
        while let Some(&[tag, a, b, c, d]) = self.input.first_chunk::<5>() {
            let length = u32::from_be_bytes([a, b, c, d]) as usize + 1;
            // Terminate is seen also by a server that answers nothing.
            if self.input.len() < length || self.is_over || self.is_hung && tag != b'X' {
                break;
            }
            let message: Vec<u8> = self.input.drain(..length).collect();
            self.got.push(char::from(tag));
            self.message(tag, &message[5..], troubles, &mut out);
        }
        out
    }

    fn message(&mut self, tag: u8, body: &[u8], troubles: &mut Vec<Trouble>, out: &mut Vec<u8>) {
        if tag == b'X' {
            self.is_over = true;
            return;
        }
        if self.copy.is_some() {
            return self.copied(tag, out);
        }
        if self.is_skipping && tag != b'S' {
            return;
        }
        match tag {
            b'Q' => {
                let (text, _) = split(body);
                self.statements.remove(&b""[..]);
                if text.starts_with(OWN) || text == FAIL {
                    self.routers(text == FAIL, troubles, out);
                } else if self.run(text, true, out) {
                    self.ready(out);
                }
            }
            b'S' => {
                (self.is_in_batch, self.is_skipping) = (false, false);
                self.ready(out);
            }
            b'P' | b'B' | b'D' | b'E' | b'C' => {
                self.is_in_batch = true;
                self.extended(tag, body, out);
            }
            b'F' => {
                out.extend(frame(b'V', &[0; 4]));
                self.ready(out);
            }
            // Flush, and what is left of a COPY that failed.
            b'H' | b'd' | b'c' | b'f' => {}
            other => panic!("{}", other.escape_ascii()),
        }
    }

    fn ready(&mut self, out: &mut Vec<u8>) {
        // In a batch a Query joins what is open, and the Sync ends it.
        if self.status == b'I' && !self.is_in_batch {
            self.portal = None;
        }
        out.extend(frame(b'Z', &[self.status]));
    }

    fn routers(&mut self, is_to_fail: bool, troubles: &mut Vec<Trouble>, out: &mut Vec<u8>) {
        let trouble = if troubles.is_empty() {
            None
        } else {
            Some(troubles.remove(0))
        };
        match trouble {
            None if is_to_fail => {
                complete(out, "BEGIN");
                error(out, "3B001", "savepoint \"x\" does not exist");
                self.status = b'E';
            }
            None => {
                for tag in ["BEGIN", "SELECT 1", "COMMIT"] {
                    complete(out, tag);
                }
            }
            Some(Trouble::Fails(name)) => {
                complete(out, "BEGIN");
                error(
                    out,
                    "22023",
                    &format!("invalid value for parameter \"{name}\": \"x\""),
                );
                self.status = b'E';
            }
            Some(Trouble::Dies) => {
                self.is_over = true;
                return;
            }
            Some(Trouble::Hangs) => {
                self.is_hung = true;
                return;
            }
            Some(Trouble::Ends) => {
                out.extend(fatal("57P01", "terminating connection"));
                self.is_hung = true;
                return;
            }
            Some(Trouble::Babbles) => {
                complete(out, "COMMIT");
                self.ready(out);
                return error(out, "XX000", "something");
            }
            Some(Trouble::Stumbles) => {
                error(out, "XX000", "something");
                complete(out, "COMMIT");
            }
        }
        self.ready(out);
    }

    fn fail(&mut self, code: &str, text: &str, is_simple: bool, out: &mut Vec<u8>) {
        error(out, code, text);
        if self.status == b'T' {
            self.status = b'E';
        }
        self.is_skipping = !is_simple;
    }

    /// `false`: no `Z` follows yet.
    fn run(&mut self, text: &[u8], is_simple: bool, out: &mut Vec<u8>) -> bool {
        *self.ran.entry(text.to_vec()).or_default() += 1;
        let word = text.split(|&byte| byte == b' ').next().unwrap_or_default();
        if self.status == b'E' && !matches!(word, b"COMMIT" | b"ROLLBACK") {
            self.fail("25P02", "current transaction is aborted", is_simple, out);
            return !self.is_skipping;
        }
        if is_simple && has_rows(text) {
            out.extend(description(text));
        }
        match word {
            b"" => out.extend(frame(b'I', b"")),
            b"BEGIN" => {
                self.status = b'T';
                complete(out, "BEGIN");
            }
            b"COMMIT" | b"ROLLBACK" => {
                let tag = if self.status == b'T' && word == b"COMMIT" {
                    "COMMIT"
                } else {
                    "ROLLBACK"
                };
                self.status = b'I';
                complete(out, tag);
            }
            b"echo" => {
                row(out, text);
                complete(out, "SELECT 1");
            }
            b"rows" => {
                let count = number(text);
                for _ in 0..count {
                    row(out, &[b'r'; 1000][..count * 5]);
                }
                complete(out, &format!("SELECT {count}"));
            }
            b"out" => {
                out.extend(frame(b'H', &[0; 3]));
                let count = number(text);
                for _ in 0..count {
                    out.extend(frame(b'd', &[b'o'; 1000][..count * 5]));
                }
                out.extend(frame(b'c', b""));
                complete(out, "COPY 1");
            }
            b"in" => {
                out.extend(frame(b'G', &[0; 3]));
                self.copy = Some(Copy {
                    is_extended: !is_simple,
                    pieces: 0,
                });
                return false;
            }
            b"bad" => {
                self.fail("42601", "syntax error", is_simple, out);
                return !self.is_skipping;
            }
            b"DISCARD" => {
                self.statements.clear();
                complete(out, "DISCARD ALL");
            }
            other => complete(out, std::str::from_utf8(other).expect("it is ASCII")),
        }
        true
    }

    fn copied(&mut self, tag: u8, out: &mut Vec<u8>) {
        let Some(copy) = &mut self.copy else { return };
        match tag {
            b'd' => {
                copy.pieces += 1;
                return;
            }
            b'c' => complete(out, &format!("COPY {}", copy.pieces)),
            b'f' => {}
            // Flush and Sync are ignored.
            _ => return,
        }
        let is_extended = copy.is_extended;
        self.copy = None;
        if tag == b'f' {
            self.fail("57014", "COPY from stdin failed", !is_extended, out);
        }
        if !is_extended && !self.is_skipping {
            self.ready(out);
        }
    }

    fn extended(&mut self, tag: u8, body: &[u8], out: &mut Vec<u8>) {
        match tag {
            b'P' => {
                let (name, rest) = split(body);
                let (text, _) = split(rest);
                if self.status == b'E' && text != b"ROLLBACK" && text != b"COMMIT" {
                    self.fail("25P02", "current transaction is aborted", false, out);
                } else if text.starts_with(b"bad") {
                    self.fail("42601", "syntax error", false, out);
                } else if !name.is_empty() && self.statements.contains_key(name) {
                    self.fail("42P05", "prepared statement already exists", false, out);
                } else {
                    self.statements.insert(name.to_vec(), text.to_vec());
                    out.extend(frame(b'1', b""));
                }
            }
            b'B' => {
                let (_portal, rest) = split(body);
                let (name, _) = split(rest);
                match self.statements.get(name).cloned() {
                    Some(text) if self.status == b'E' && text != b"ROLLBACK" && text != b"COMMIT" => {
                        self.fail("25P02", "current transaction is aborted", false, out);
                    }
                    Some(text) => {
                        self.portal = Some(text);
                        out.extend(frame(b'2', b""));
                    }
                    None => self.missing(name, out),
                }
            }
            b'D' if body[0] == b'S' => {
                let (name, _) = split(&body[1..]);
                match self.statements.get(name).cloned() {
                    Some(text) => {
                        out.extend(frame(b't', &[0, 0]));
                        out.extend(description(&text));
                    }
                    None => self.missing(name, out),
                }
            }
            b'D' => match self.portal.clone() {
                Some(text) => out.extend(description(&text)),
                None => self.fail("34000", "portal \"\" does not exist", false, out),
            },
            b'E' => match self.portal.clone() {
                Some(text) => {
                    self.run(&text, false, out);
                }
                None => self.fail("34000", "portal \"\" does not exist", false, out),
            },
            _ => {
                if body[0] == b'S' {
                    let (name, _) = split(&body[1..]);
                    self.statements.remove(name);
                }
                out.extend(frame(b'3', b""));
            }
        }
    }

    fn missing(&mut self, name: &[u8], out: &mut Vec<u8>) {
        let name = String::from_utf8_lossy(name);
        let text = if name.is_empty() {
            "unnamed prepared statement does not exist".to_owned()
        } else {
            format!("prepared statement \"{name}\" does not exist")
        };
        self.fail("26000", &text, false, out);
    }
}
