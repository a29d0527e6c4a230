//! What PostgreSQL does with prepared statements, reduced to what can be told apart from outside.
//!
//! The texts are words: what they mean depends on a schema that changes. `rows` and `none` have
//! parameter types and (`rows`) columns by the schema; `fixed` always the same; `fragile` cannot be
//! analysed under an odd schema; `bad` is a syntax error; `boom` fails when executed.

use std::cell::Cell;
use std::collections::HashMap;
use std::rc::Rc;

#[derive(Debug, Clone)]
struct Prepared {
    text: String,
    types: Vec<u32>,
    /// Columns: by this version of the schema; 0: always the same.
    columns: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    Idle,
    Block,
    Failed,
}

type Failure = (&'static str, String);

#[derive(Debug)]
pub(super) struct Server {
    schema: Rc<Cell<u32>>,
    named: HashMap<String, Prepared>,
    unnamed: Option<Prepared>,
    portals: HashMap<String, Prepared>,
    status: Status,
    skipping: bool,
    /// A COPY IN is under way: whether in the extended protocol.
    copying: Option<bool>,
    out: Vec<u8>,
}

pub(super) fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![tag];
    frame.extend_from_slice(&u32::try_from(body.len() + 4).unwrap().to_be_bytes());
    frame.extend_from_slice(body);
    frame
}

fn cstr<'a>(body: &mut &'a [u8]) -> &'a str {
    let end = body.iter().position(|&byte| byte == 0).unwrap();
    let text = std::str::from_utf8(&body[..end]).unwrap();
    *body = &body[end + 1..];
    text
}

fn missing(name: &str) -> Failure {
    if name.is_empty() {
        ("26000", "unnamed prepared statement does not exist".into())
    } else {
        ("26000", format!("prepared statement \"{name}\" does not exist"))
    }
}

fn taken(name: &str) -> Failure {
    ("42P05", format!("prepared statement \"{name}\" already exists"))
}

fn exits(text: &str) -> bool {
    matches!(text, "commit" | "rollback" | "ROLLBACK")
}

impl Server {
    pub(super) fn new(schema: &Rc<Cell<u32>>) -> Self {
        Self {
            schema: Rc::clone(schema),
            named: HashMap::new(),
            unnamed: None,
            portals: HashMap::new(),
            status: Status::Idle,
            skipping: false,
            copying: None,
            out: Vec::new(),
        }
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.named.contains_key(name)
    }

    pub(super) fn len(&self) -> usize {
        self.named.len()
    }

    /// Somebody deallocates everything where no tag shows it.
    pub(super) fn forget(&mut self) {
        self.named.clear();
    }

    /// Processes one frame; returns its answers.
    pub(super) fn process(&mut self, frame: &[u8]) -> Vec<u8> {
        let length = u32::from_be_bytes(frame[1..5].try_into().unwrap());
        assert_eq!(length as usize, frame.len() - 1, "{frame:?}");
        let body = &frame[5..];
        if let Some(is_extended) = self.copying {
            self.copied(frame[0], is_extended);
            return std::mem::take(&mut self.out);
        }
        match frame[0] {
            b'S' => {
                self.skipping = false;
                if self.status == Status::Idle {
                    self.portals.clear();
                }
                self.ready();
            }
            _ if self.skipping => {}
            b'Q' => self.query(body),
            b'P' | b'B' | b'D' | b'C' | b'E' => {
                let outcome = match frame[0] {
                    b'P' => self.parse(body),
                    b'B' => self.bind(body),
                    b'D' => self.describe(body),
                    b'C' => {
                        self.close(body);
                        Ok(())
                    }
                    _ => self.execute(body),
                };
                if let Err(failure) = outcome {
                    self.fail(&failure);
                    self.skipping = true;
                }
            }
            b'H' | b'c' | b'f' | b'd' => {}
            tag => panic!("{tag}"),
        }
        std::mem::take(&mut self.out)
    }

    fn say(&mut self, tag: u8, body: &[u8]) {
        self.out.extend(frame(tag, body));
    }

    fn ready(&mut self) {
        self.say(
            b'Z',
            match self.status {
                Status::Idle => b"I",
                Status::Block => b"T",
                Status::Failed => b"E",
            },
        );
    }

    fn fail(&mut self, (code, message): &Failure) {
        if self.status == Status::Idle {
            self.portals.clear();
        } else {
            self.status = Status::Failed;
        }
        let report = format!("SERROR\0VERROR\0C{code}\0M{message}\0\0");
        self.say(b'E', report.as_bytes());
    }

    fn copied(&mut self, tag: u8, is_extended: bool) {
        match tag {
            b'd' | b'S' | b'H' => return,
            b'c' => self.say(b'C', b"COPY 0\0"),
            b'f' => {
                self.fail(&("57014", "COPY from stdin failed".into()));
                self.skipping = is_extended;
            }
            _ => panic!("{tag} in COPY"),
        }
        self.copying = None;
        if !is_extended {
            self.ready();
        }
    }

    /// What a text means now.
    fn analyse(&self, text: &str, types: &[u32]) -> Result<Prepared, Failure> {
        let schema = self.schema.get();
        if text == "bad" {
            return Err(("42601", "syntax error".into()));
        }
        if self.status == Status::Failed && !exits(text) {
            return Err(("25P02", "current transaction is aborted".into()));
        }
        if text == "fragile" && schema % 2 == 1 {
            return Err(("42P01", "relation does not exist".into()));
        }
        let type_now = if matches!(text, "rows" | "none") {
            100 + schema
        } else {
            100
        };
        let mut resolved = vec![type_now];
        for (resolved, given) in resolved.iter_mut().zip(types) {
            if *given != 0 {
                *resolved = *given;
            }
        }
        Ok(Prepared {
            text: text.into(),
            types: resolved,
            columns: self.columns(text),
        })
    }

    fn columns(&self, text: &str) -> Option<u32> {
        match text {
            "rows" => Some(self.schema.get()),
            "fixed" | "fragile" | "boom" => Some(0),
            _ => None,
        }
    }

    fn parse(&mut self, mut body: &[u8]) -> Result<(), Failure> {
        let (name, text) = (cstr(&mut body), cstr(&mut body));
        let types: Vec<u32> = body[2..]
            .chunks(4)
            .map(|oid| u32::from_be_bytes(oid.try_into().unwrap()))
            .collect();
        if name.is_empty() {
            self.unnamed = None;
        }
        let prepared = self.analyse(text, &types)?;
        if name.is_empty() {
            self.unnamed = Some(prepared);
        } else if self.named.contains_key(name) {
            return Err(("42P05", format!("prepared statement \"{name}\" already exists")));
        } else {
            self.named.insert(name.into(), prepared);
        }
        self.say(b'1', b"");
        Ok(())
    }

    fn find(&self, name: &str) -> Result<Prepared, Failure> {
        let found = if name.is_empty() {
            self.unnamed.as_ref()
        } else {
            self.named.get(name)
        };
        found.cloned().ok_or_else(|| missing(name))
    }

    /// Looks whether a statement still is what it was.
    fn check(&self, prepared: &Prepared) -> Result<(), Failure> {
        if prepared.text == "fragile" {
            self.analyse("fragile", &[])?;
        }
        if prepared.columns != self.columns(&prepared.text) {
            return Err(("0A000", "cached plan must not change result type".into()));
        }
        Ok(())
    }

    fn aborted(&self, is_refused: bool) -> Result<(), Failure> {
        if self.status == Status::Failed && is_refused {
            return Err(("25P02", "current transaction is aborted".into()));
        }
        Ok(())
    }

    fn bind(&mut self, mut body: &[u8]) -> Result<(), Failure> {
        let (portal, name) = (cstr(&mut body), cstr(&mut body));
        let prepared = self.find(name)?;
        self.aborted(!exits(&prepared.text))?;
        self.check(&prepared)?;
        self.portals.insert(portal.into(), prepared);
        self.say(b'2', b"");
        Ok(())
    }

    fn describe(&mut self, mut body: &[u8]) -> Result<(), Failure> {
        let kind = body[0];
        body = &body[1..];
        let name = cstr(&mut body);
        let prepared = if kind == b'S' {
            self.find(name)?
        } else {
            let portal = self.portals.get(name).cloned();
            portal.ok_or_else(|| ("34000", format!("portal \"{name}\" does not exist")))?
        };
        self.aborted(prepared.columns.is_some())?;
        if kind == b'S' {
            self.check(&prepared)?;
            let mut types = u16::try_from(prepared.types.len())
                .unwrap()
                .to_be_bytes()
                .to_vec();
            types.extend(prepared.types.iter().flat_map(|oid| oid.to_be_bytes()));
            self.say(b't', &types);
        }
        match prepared.columns {
            None => self.say(b'n', b""),
            Some(columns) => {
                let mut body = format!("\0\x01c{columns}\0").into_bytes();
                body.extend_from_slice(&[0; 18]);
                self.say(b'T', &body);
            }
        }
        Ok(())
    }

    fn close(&mut self, mut body: &[u8]) {
        let kind = body[0];
        body = &body[1..];
        let name = cstr(&mut body);
        if kind == b'P' {
            self.portals.remove(name);
        } else if name.is_empty() {
            self.unnamed = None;
        } else {
            self.named.remove(name);
        }
        self.say(b'3', b"");
    }

    fn execute(&mut self, mut body: &[u8]) -> Result<(), Failure> {
        let portal = cstr(&mut body);
        let prepared = self
            .portals
            .get(portal)
            .cloned()
            .ok_or_else(|| ("34000", format!("portal \"{portal}\" does not exist")))?;
        self.aborted(!exits(&prepared.text))?;
        self.run(&prepared, true)
    }

    fn run(&mut self, prepared: &Prepared, is_extended: bool) -> Result<(), Failure> {
        let words: Vec<&str> = prepared
            .text
            .split([' ', '"', ';'])
            .filter(|word| !matches!(*word, "" | "PREPARE"))
            .collect();
        let tag = match words[..] {
            ["boom"] => return Err(("22012", "division by zero".into())),
            ["begin"] => {
                self.status = Status::Block;
                "BEGIN".into()
            }
            ["commit" | "rollback"] => {
                let tag = if words[0] == "commit" && self.status != Status::Failed {
                    "COMMIT"
                } else {
                    "ROLLBACK"
                };
                self.status = Status::Idle;
                self.portals.clear();
                tag.into()
            }
            ["copy"] => {
                self.copying = Some(is_extended);
                self.say(b'G', b"\0\0\0");
                return Ok(());
            }
            ["deallocate" | "discard", "all"] => {
                self.named.clear();
                format!("{} ALL", words[0].to_uppercase())
            }
            ["deallocate" | "DEALLOCATE", name] => {
                self.named.remove(name).ok_or_else(|| missing(name))?;
                "DEALLOCATE".into()
            }
            ["prepare", name] => {
                let fixed = self.analyse("fixed", &[])?;
                if self.named.contains_key(name) {
                    return Err(taken(name));
                }
                self.named.insert(name.into(), fixed);
                "PREPARE".into()
            }
            _ => {
                // What was executed can be seen from outside.
                format!(
                    "SELECT {} {:?} {:?}",
                    prepared.text, prepared.types, prepared.columns
                )
            }
        };
        self.say(b'C', format!("{tag}\0").as_bytes());
        Ok(())
    }

    fn query(&mut self, mut body: &[u8]) {
        let text = cstr(&mut body);
        self.unnamed = None;
        self.portals.remove("");
        let outcome = self
            .analyse(text, &[])
            .and_then(|prepared| self.run(&prepared, false));
        if let Err(failure) = outcome {
            self.fail(&failure);
        }
        if self.status == Status::Idle {
            self.portals.clear();
        }
        if self.copying.is_none() {
            self.ready();
        }
    }
}
