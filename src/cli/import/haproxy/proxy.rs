//! A `listen`, `frontend` or `backend` with what it inherits: directives become values.

use std::collections::HashMap;
use std::time::Duration;

use super::MAX_LISTENERS;
use super::bind::{self, Bind};
use super::parse::{Line, Section, SectionKind};
use super::server::{self, Options, Server};
use super::words;
use crate::cli::import::notes::Notes;

/// How `HAProxy` finds out whether a server may be used.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) enum Method {
    /// A TCP connection, or nothing at all.
    #[default]
    Connect,
    Http,
    Pgsql,
    /// `tcp-check`, `external-check` and the checks of other protocols.
    Other,
}

#[derive(Debug, Clone, Default)]
pub(super) struct BackendCheck {
    pub(super) line: Option<usize>,
    pub(super) method: Method,
    /// Of the request; `/` by default.
    pub(super) path: Option<String>,
    /// `http-check connect port`.
    pub(super) port: Option<u16>,
    /// `http-check connect ssl`.
    pub(super) tls: bool,
}

/// A value and its line.
pub(super) type At<T> = (usize, T);

#[derive(Debug)]
pub(super) struct Proxy {
    pub(super) name: String,
    pub(super) line: usize,
    pub(super) kind: SectionKind,
    pub(super) binds: Vec<Bind>,
    pub(super) is_http: bool,
    /// It shows the statistics page, or metrics.
    pub(super) is_pages: bool,
    pub(super) is_disabled: bool,
    pub(super) check: BackendCheck,
    pub(super) balance: Option<At<String>>,
    pub(super) connect: Option<At<Duration>>,
    pub(super) check_time: Option<At<Duration>>,
    pub(super) queue: Option<At<Duration>>,
    pub(super) max_clients: Option<At<u64>>,
    /// New sessions per second.
    pub(super) rate: Option<At<u64>>,
    pub(super) servers: Vec<Server>,
    pub(super) default_backend: Option<At<String>>,
    /// Backend and condition.
    pub(super) use_backends: Vec<At<(String, Vec<String>)>>,
    /// Conditions by name; several lines of one name are alternatives.
    pub(super) acls: HashMap<String, Vec<Vec<String>>>,
    /// `accept`, `reject`, `silent-drop`, `expect-proxy` and the condition.
    pub(super) rules: Vec<At<(String, Vec<String>)>>,
    defaults: Options,
}

impl Proxy {
    pub(super) fn read(section: &Section, inherited: &[&Line], notes: &mut Notes) -> Self {
        let mut proxy = Self {
            name: section.name.clone(),
            line: section.line,
            kind: section.kind,
            binds: Vec::new(),
            is_http: false,
            is_pages: false,
            is_disabled: false,
            check: BackendCheck::default(),
            balance: None,
            connect: None,
            check_time: None,
            queue: None,
            max_clients: None,
            rate: None,
            servers: Vec::new(),
            default_backend: None,
            use_backends: Vec::new(),
            acls: HashMap::new(),
            rules: Vec::new(),
            defaults: Options::default(),
        };
        for line in inherited.iter().copied().chain(&section.lines) {
            proxy.apply(line, notes);
        }
        proxy
    }

    fn apply(&mut self, line: &Line, notes: &mut Notes) {
        let number = line.number;
        match line.word(0) {
            "mode" => {
                self.is_http = line.word(1) == "http";
                if !matches!(line.word(1), "http" | "tcp") {
                    notes.lost(number, "mode", "is neither tcp nor http");
                }
            }
            // A configuration takes no more listeners; the first beyond is reported there.
            "bind" if self.binds.len() > MAX_LISTENERS => {}
            "bind" => self.binds.extend(bind::read(line, notes)),
            "option" => self.option(line, notes),
            "no" => self.no(line, notes),
            "default" => {}
            "http-check" => self.http_check(line, notes),
            "balance" => self.balance = Some((number, line.word(1).to_owned())),
            "timeout" | "contimeout" | "clitimeout" | "srvtimeout" => self.timeout(line, notes),
            "maxconn" => self.max_clients = words::number(line, notes).map(|most| (number, most)),
            "rate-limit" if line.word(1) == "sessions" => {
                self.rate = line.word(2).parse().ok().map(|rate| (number, rate));
            }
            "server" | "server-template" => {
                self.servers.extend(server::read(line, &self.defaults, notes));
            }
            "default-server" => self
                .defaults
                .apply(&line.words[1..], number, "default-server", notes),
            "default_backend" => self.default_backend = Some((number, line.word(1).to_owned())),
            "use_backend" => {
                let condition = line.words.get(2..).unwrap_or_default().to_vec();
                let backend = line.word(1).to_owned();
                self.use_backends.push((number, (backend, condition)));
            }
            "acl" => {
                let test = line.words.get(2..).unwrap_or_default().to_vec();
                self.acls.entry(line.word(1).to_owned()).or_default().push(test);
            }
            "tcp-request" => self.tcp_request(line, notes),
            "disabled" => self.is_disabled = true,
            "enabled" => self.is_disabled = false,
            "stats" => self.stats(line, notes),
            "http-request" if line.words.iter().any(|word| word == "prometheus-exporter") => {
                self.is_pages = true;
            }
            _ => words::without_equivalent(line, notes),
        }
    }

    fn option(&mut self, line: &Line, notes: &mut Notes) {
        let number = line.number;
        match line.word(1) {
            "httpchk" => {
                // One word is the path; of two the first is the method.
                let path = match line.words.len() {
                    2 => None,
                    3 => Some(line.word(2)),
                    _ => Some(line.word(3)),
                };
                self.check = BackendCheck {
                    line: Some(number),
                    method: Method::Http,
                    path: path.map(str::to_owned).or(self.check.path.take()),
                    ..self.check.clone()
                };
            }
            "pgsql-check" => {
                self.set_check(number, Method::Pgsql);
                // `user NAME` is all there is.
                if line.words.len() > 4 {
                    notes.lost(
                        number,
                        "option pgsql-check",
                        format!("`{}` is no part of it; HAProxy refuses the line", line.word(4)),
                    );
                }
            }
            "tcp-check" | "external-check" | "ssl-hello-chk" | "mysql-check" | "redis-check" | "smtpchk"
            | "ldap-check" | "spop-check" => self.set_check(number, Method::Other),
            _ => words::without_equivalent(line, notes),
        }
    }

    fn set_check(&mut self, line: usize, method: Method) {
        self.check = BackendCheck {
            line: Some(line),
            method,
            ..BackendCheck::default()
        };
    }

    fn no(&mut self, line: &Line, notes: &mut Notes) {
        match (line.word(1), line.word(2)) {
            (
                "option",
                "httpchk" | "pgsql-check" | "tcp-check" | "external-check" | "ssl-hello-chk" | "mysql-check"
                | "redis-check" | "smtpchk" | "ldap-check",
            ) => self.check = BackendCheck::default(),
            // What is not there is not missed.
            ("option" | "log", _) => {}
            _ => words::without_equivalent(line, notes),
        }
    }

    fn http_check(&mut self, line: &Line, notes: &mut Notes) {
        let after = |word: &str| {
            let place = line.words.iter().position(|candidate| candidate == word)?;
            line.words.get(place + 1)
        };
        match line.word(1) {
            "send" => {
                if let Some(path) = after("uri") {
                    self.check.path = Some(path.clone());
                }
            }
            "connect" => {
                if let Some(port) = after("port").and_then(|port| words::port(port)) {
                    self.check.port = Some(port);
                }
                self.check.tls |= line.words.iter().any(|word| word == "ssl");
            }
            "expect" => {
                let expects = line.words.get(2..).unwrap_or_default();
                let is_usual = matches!(expects, [kind, value]
                    if matches!((kind.as_str(), value.as_str()), ("status", "200") | ("string", "true"))
                        || (kind == "rstatus" && value.contains('2')));
                if !is_usual {
                    notes.differs(
                        line.number,
                        "http-check expect",
                        "is not evaluated: the path of the check decides the role",
                    );
                }
            }
            _ => words::without_equivalent(line, notes),
        }
    }

    fn timeout(&mut self, line: &Line, notes: &mut Notes) {
        let (what, value) = match line.word(0) {
            "contimeout" => ("connect", line.word(1)),
            "clitimeout" => ("client", line.word(1)),
            "srvtimeout" => ("server", line.word(1)),
            _ => (line.word(1), line.word(2)),
        };
        let place = match what {
            "connect" => &mut self.connect,
            "check" => &mut self.check_time,
            "queue" => &mut self.queue,
            _ => return words::without_equivalent(line, notes),
        };
        match words::time(value) {
            Some(time) => *place = Some((line.number, time)),
            None => notes.lost(line.number, &format!("timeout {what}"), "is not a time"),
        }
    }

    fn tcp_request(&mut self, line: &Line, notes: &mut Notes) {
        let action = line.word(2);
        match (line.word(1), action) {
            ("connection" | "session" | "content", "accept" | "reject" | "silent-drop" | "expect-proxy") => {
                let from = if action == "expect-proxy" { 4 } else { 3 };
                let condition = line.words.get(from..).unwrap_or_default().to_vec();
                self.rules.push((line.number, (action.to_owned(), condition)));
            }
            _ => words::without_equivalent(line, notes),
        }
    }

    fn stats(&mut self, line: &Line, notes: &mut Notes) {
        self.is_pages = true;
        match line.word(1) {
            "enable" | "uri" | "refresh" | "show-legends" | "show-node" | "show-desc" | "show-modules"
            | "hide-version" => {}
            "auth" | "realm" | "http-request" | "scope" => notes.lost(
                line.number,
                &format!("stats {}", line.word(1)),
                "pages are read without a password; what changes something needs the token of `http.token_file`",
            ),
            "admin" => notes.lost(
                line.number,
                "stats admin",
                "members are drained and taken out by `trunkline drain`, `maint` and `ready`, or the HTTP API",
            ),
            _ => words::without_equivalent(line, notes),
        }
    }

    /// Do clients come in here?
    pub(super) fn is_frontend(&self) -> bool {
        matches!(self.kind, SectionKind::Listen | SectionKind::Frontend)
    }
}
