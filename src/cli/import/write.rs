//! What an import comes to, and its text.
//!
//! Values are written once, here: everything that comes from the imported file goes through
//! [`scalar`].

use std::collections::HashSet;
use std::fmt::Write as _;
use std::time::Duration;

use super::Mode;
use super::notes::Notes;
use crate::config::ListenerTls;
use crate::wire::text::is_unsafe;

/// Keys with values that are YAML already.
pub(super) type Settings = Vec<(&'static str, String)>;

/// The parts of a configuration, in Trunkline's words.
#[derive(Debug, Default)]
pub(super) struct ImportOutcome {
    pub(super) clusters: Vec<Cluster>,
    pub(super) routes: Vec<Route>,
    pub(super) listeners: Vec<Listener>,
    /// Where HTTP is answered; empty is the default.
    pub(super) http: Vec<String>,
    /// Limits over all listeners.
    pub(super) limits: Settings,
    /// Files with certificates, in this order.
    pub(super) certificates: Vec<Certificate>,
    /// The rest of `tls`.
    pub(super) tls: Settings,
    pub(super) console: Settings,
    /// The imported program was itself a server to the clients, and this is how it let them in.
    /// `None`: it forwarded bytes.
    pub(super) auth: Option<Auth>,
}

/// A certificate and its key, which may be one file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Certificate {
    pub(super) cert_file: String,
    pub(super) key_file: String,
}

/// `auth`.
#[derive(Debug, Default)]
pub(super) struct Auth {
    pub(super) settings: Settings,
    /// Lines that a file of rules is to have, which is a TODO; empty is no file.
    pub(super) rules: Vec<String>,
    /// `server_credentials` for all users.
    pub(super) credential: Settings,
}

#[derive(Debug)]
pub(super) struct Cluster {
    pub(super) name: String,
    pub(super) source: Source,
    pub(super) server_tls: Settings,
    pub(super) server: Settings,
    pub(super) probe: Settings,
    /// Members with a weight.
    pub(super) weights: Vec<(String, u32)>,
}

#[derive(Debug)]
pub(super) enum Source {
    /// Base URLs, and the rest of `patroni`.
    Patroni {
        endpoints: Vec<String>,
        settings: Settings,
    },
    Servers(Vec<Server>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Server {
    pub(super) name: String,
    pub(super) host: String,
    pub(super) port: u16,
}

/// A word of `targets`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Role {
    Leader,
    Replica,
    Sync,
    Quorum,
    Async,
    Any,
}

impl Role {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Leader => "leader",
            Self::Replica => "replica",
            Self::Sync => "sync",
            Self::Quorum => "quorum",
            Self::Async => "async",
            Self::Any => "any",
        }
    }
}

/// In order of preference; the members of one tier are treated alike.
pub(super) type Targets = Vec<Vec<Role>>;

#[derive(Debug)]
pub(super) struct Route {
    pub(super) name: String,
    pub(super) cluster: String,
    pub(super) targets: Targets,
    pub(super) settings: Settings,
    pub(super) pool: Option<Pool>,
}

#[derive(Debug)]
pub(super) struct Pool {
    pub(super) settings: Settings,
    pub(super) overrides: Vec<Settings>,
}

/// Does a route with these targets serve writes?
pub(super) fn is_read_write(targets: &Targets) -> bool {
    *targets == [[Role::Leader]]
}

#[derive(Debug)]
pub(super) struct Listener {
    pub(super) name: String,
    pub(super) address: String,
    pub(super) route: String,
    pub(super) tls: ListenerTls,
    pub(super) settings: Settings,
    /// Networks whose clients may connect; empty is all.
    pub(super) allow: Vec<String>,
    /// Networks whose clients may not, and what must be decided before any client may.
    pub(super) deny: Vec<String>,
    /// Every client had to show a certificate, according to this line.
    pub(super) certificate_demanded: Option<usize>,
}

/// Why a read-only route that may land on the leader says so.
const ON_LEADER: &str = "sessions may land on the leader, where only their privileges keep them from writing";

impl ImportOutcome {
    /// The whole file. `mode` is that of every listener.
    pub(super) fn yaml(&self, program: &str, file: &str, mode: Mode, notes: &Notes) -> String {
        let mut text = format!(
            "# Written by `trunkline import` from {file} ({program}).\n\
             # Settle every TODO, and read the lists at the end; then: trunkline check --connect -c THIS_FILE\n\n"
        );
        text.push_str("clusters:\n");
        for cluster in &self.clusters {
            cluster.write(&mut text);
        }
        if mode == Mode::Postgres {
            if self.offers_tls() {
                self.write_tls(&mut text);
            }
            if let Some(auth) = &self.auth {
                auth.write(&mut text);
            } else if self
                .listeners
                .iter()
                .any(|listener| listener.certificate_demanded.is_some())
            {
                text.push_str(
                    "\n# TODO: rules that demand a certificate of every client, as `verify required` did, such as\n\
                     #   hostssl all all all scram-sha-256 clientcert=verify-ca\n\
                     auth: {hba_file: TODO-pg_hba.conf}\n",
                );
            }
        }
        text.push_str("\nroutes:\n");
        for route in &self.routes {
            route.write(&mut text);
        }
        self.write_listeners(&mut text, mode);
        match self.http.as_slice() {
            [] => {}
            [one] => line(&mut text, &format!("\nhttp: {{address: {}}}", scalar(one))),
            several => {
                let addresses: Vec<String> = several.iter().map(|address| scalar(address)).collect();
                line(
                    &mut text,
                    &format!("\nhttp: {{address: [{}]}}", addresses.join(", ")),
                );
            }
        }
        for (key, settings) in [("console", &self.console), ("limits", &self.limits)] {
            if !settings.is_empty() {
                line(&mut text, &format!("\n{key}: {}", flow(settings)));
            }
        }
        let lines = notes.lines(file);
        if !lines.is_empty() {
            text.push('\n');
        }
        for note in lines {
            line(&mut text, &format!("# {note}"));
        }
        text
    }

    /// A program that forwarded bytes left TLS to the servers.
    fn offers_tls(&self) -> bool {
        self.auth.is_none()
            || self
                .listeners
                .iter()
                .any(|listener| listener.tls != ListenerTls::Off)
    }

    fn write_tls(&self, text: &mut String) {
        text.push_str("\n# The router ends the clients' TLS, so it needs a certificate for the names they connect to.\n");
        text.push_str("tls:\n");
        if self.certificates.is_empty() {
            text.push_str("  # TODO: the certificate and its key, which others must not be able to read\n");
            text.push_str("  certificates: [{cert_file: TODO-server.crt, key_file: TODO-server.key}]\n");
        } else {
            text.push_str("  # The key in each file must not be readable by others.\n  certificates:\n");
            for Certificate { cert_file, key_file } in &self.certificates {
                let (certificate, key) = (scalar(cert_file), scalar(key_file));
                line(
                    text,
                    &format!("    - {{cert_file: {certificate}, key_file: {key}}}"),
                );
            }
        }
        for (key, value) in &self.tls {
            line(text, &format!("  {key}: {value}"));
        }
    }

    fn write_listeners(&self, text: &mut String, mode: Mode) {
        text.push_str(match mode {
            Mode::Postgres if self.auth.is_some() => {
                "\n# The router needs the service account above, and rules for its own address in each server's pg_hba.conf.\n"
            }
            Mode::Postgres => {
                "\n# `mode: postgres` is more than was there before: the router ends TLS, authenticates the clients and\n\
                 # keeps read-only sessions read-only. It needs the service account and the certificate above, and\n\
                 # rules for its own address in each server's pg_hba.conf. `--mode tcp` forwards bytes, as before.\n"
            }
            Mode::Tcp => {
                "\n# `mode: tcp` forwards bytes: TLS and authentication are the servers' business. `mode: postgres`\n\
                 # would verify the server on each connection, and keep read-only sessions read-only.\n"
            }
        });
        text.push_str("listeners:\n");
        for listener in &self.listeners {
            let mut settings = vec![
                ("name", scalar(&listener.name)),
                ("address", scalar(&listener.address)),
                ("route", scalar(&listener.route)),
            ];
            match mode {
                Mode::Postgres => {
                    settings.push(("mode", "postgres".to_owned()));
                    settings.push(("tls", listener.tls.to_string()));
                }
                Mode::Tcp => settings.push(("mode", "tcp".to_owned())),
            }
            settings.extend(listener.settings.iter().cloned());
            let mut deny = listener.deny.clone();
            if let (Mode::Tcp, Some(at)) = (mode, listener.certificate_demanded) {
                deny.push(format!(
                    "TODO: line {at}, bind … verify required: the servers must require clients' certificates now; decide about it and remove this"
                ));
            }
            for (key, networks) in [("allow", &listener.allow), ("deny", &deny)] {
                if !networks.is_empty() {
                    settings.push((key, list(networks)));
                }
            }
            line(text, &format!("  - {}", flow(&settings)));
        }
    }
}

impl Cluster {
    fn write(&self, text: &mut String) {
        line(text, &format!("  {}:", scalar(&self.name)));
        match &self.source {
            Source::Patroni { endpoints, settings } => {
                text.push_str("    patroni:\n      endpoints:\n");
                for endpoint in endpoints {
                    line(text, &format!("        - {}", scalar(endpoint)));
                }
                let key_file = settings.iter().find(|(key, _)| *key == "key_file");
                for (key, value) in settings {
                    // HAProxy has both in one file.
                    if *key == "cert_file" && key_file.is_some_and(|(_, file)| file == value) {
                        text.push_str(
                            "      # TODO: a certificate and its key, which others must not be able to read\n",
                        );
                    }
                    line(text, &format!("      {key}: {value}"));
                }
            }
            Source::Servers(servers) => {
                text.push_str(
                    "    # No Patroni is named: the leader is found by probing. Where there is one, write instead\n    \
                     # patroni: {endpoints: [\"http://HOST:8008\"]}\n    servers:\n",
                );
                for server in servers {
                    let settings = [
                        ("name", scalar(&server.name)),
                        ("host", scalar(&server.host)),
                        ("port", server.port.to_string()),
                    ];
                    line(text, &format!("      - {}", flow(&settings)));
                }
            }
        }
        text.push_str(
            "    # TODO: the router's own role on the servers (config/service-account.sql), and a file with its password\n    \
             service_account: {user: trunkline, password_file: TODO-service-account.password}\n",
        );
        for (key, settings) in [
            ("server_tls", &self.server_tls),
            ("server", &self.server),
            ("probe", &self.probe),
        ] {
            if !settings.is_empty() {
                line(text, &format!("    {key}: {}", flow(settings)));
            }
        }
        if !self.weights.is_empty() {
            text.push_str("    members:\n");
            for (name, weight) in &self.weights {
                line(text, &format!("      {}: {{weight: {weight}}}", scalar(name)));
            }
        }
    }
}

impl Route {
    fn write(&self, text: &mut String) {
        let mut settings = vec![
            ("cluster", scalar(&self.cluster)),
            ("targets", targets(&self.targets)),
        ];
        let roles = || self.targets.iter().flatten();
        let on_leader = roles().any(|role| matches!(role, Role::Leader | Role::Any));
        if on_leader && !is_read_write(&self.targets) {
            line(text, &format!("  # {ON_LEADER}"));
            settings.push(("read_only_on_leader", "unenforced".to_owned()));
        }
        settings.extend(self.settings.iter().cloned());
        let Some(pool) = &self.pool else {
            line(text, &format!("  {}: {}", scalar(&self.name), flow(&settings)));
            return;
        };
        line(text, &format!("  {}:", scalar(&self.name)));
        for (key, value) in &settings {
            line(text, &format!("    {key}: {value}"));
        }
        text.push_str("    pool:\n");
        for (key, value) in &pool.settings {
            line(text, &format!("      {key}: {value}"));
        }
        if !pool.overrides.is_empty() {
            text.push_str("      overrides:\n");
        }
        for entry in &pool.overrides {
            line(text, &format!("        - {}", flow(entry)));
        }
    }
}

impl Auth {
    fn write(&self, text: &mut String) {
        if self.settings.is_empty() && self.rules.is_empty() && self.credential.is_empty() {
            return;
        }
        text.push('\n');
        if !self.rules.is_empty() {
            text.push_str("# TODO: a file with these rules, or with your own:\n");
        }
        for rule in &self.rules {
            line(text, &format!("#   {rule}"));
        }
        text.push_str("auth:\n");
        if !self.rules.is_empty() {
            text.push_str("  hba_file: TODO-pg_hba.conf\n");
        }
        for (key, value) in &self.settings {
            line(text, &format!("  {key}: {value}"));
        }
        if !self.credential.is_empty() {
            line(
                text,
                &format!("  server_credentials: [{}]", flow(&self.credential)),
            );
        }
    }
}

fn line(text: &mut String, line: &str) {
    // Writing to a String does not fail.
    let _ = writeln!(text, "{line}");
}

fn targets(targets: &Targets) -> String {
    let tiers: Vec<String> = targets
        .iter()
        .map(|tier| {
            let words: Vec<&str> = tier.iter().map(|role| role.word()).collect();
            match words.as_slice() {
                [one] => (*one).to_owned(),
                several => format!("[{}]", several.join(", ")),
            }
        })
        .collect();
    format!("[{}]", tiers.join(", "))
}

/// A map on one line.
pub(super) fn flow(settings: &[(&'static str, String)]) -> String {
    let parts: Vec<String> = settings
        .iter()
        .map(|(key, value)| format!("{key}: {value}"))
        .collect();
    format!("{{{}}}", parts.join(", "))
}

/// A list of texts on one line.
pub(super) fn list(texts: &[String]) -> String {
    let texts: Vec<String> = texts.iter().map(|text| scalar(text)).collect();
    format!("[{}]", texts.join(", "))
}

/// Text as YAML: plain where nothing could take it for something else, otherwise in double quotes.
pub(super) fn scalar(text: &str) -> String {
    let starts_plain = text
        .chars()
        .next()
        .is_some_and(|c| c.is_ascii_alphabetic() || c == '/');
    let is_plain = text
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/'));
    let lower = text.to_ascii_lowercase();
    let is_word = !matches!(
        lower.as_str(),
        "null" | "true" | "false" | "yes" | "no" | "on" | "off" | "y" | "n"
    );
    if starts_plain && is_plain && is_word {
        return text.to_owned();
    }
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => {
                quoted.push('\\');
                quoted.push(c);
            }
            c if is_unsafe(c) => {
                let _ = write!(quoted, "\\U{:08X}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// A time in the largest unit that it is a whole number of; parts of a millisecond are rounded up.
pub(super) fn time(time: Duration) -> String {
    let millis = time.as_nanos().div_ceil(1_000_000);
    for (unit, length) in [("h", 3_600_000), ("m", 60_000), ("s", 1000)] {
        if millis > 0 && millis.is_multiple_of(length) {
            return format!("{}{unit}", millis / length);
        }
    }
    match millis {
        0 => "0".to_owned(),
        millis => format!("{millis}ms"),
    }
}

/// Bytes in the largest unit that they are a whole number of; a bare number is bytes.
pub(super) fn size(bytes: u64) -> String {
    for (unit, length) in [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)] {
        if bytes > 0 && bytes.is_multiple_of(length) {
            return format!("{}{unit}", bytes / length);
        }
    }
    bytes.to_string()
}

/// Names as the configuration takes them: 1 to 63 of `a-z A-Z 0-9 - _ .`, each once.
#[derive(Debug, Default)]
pub(super) struct Names(HashSet<String>);

impl Names {
    pub(super) fn take(&mut self, wanted: &str) -> String {
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let mut name: String = wanted
            .chars()
            .take(56)
            .map(|c| if fits(c) { c } else { '-' })
            .collect();
        if name.is_empty() {
            name.push('-');
        }
        let mut candidate = name.clone();
        let mut number = 1;
        while !self.0.insert(candidate.clone()) {
            number += 1;
            candidate = format!("{name}-{number}");
        }
        candidate
    }
}
