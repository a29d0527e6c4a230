//! Who may log in, and TLS: `auth`, the console, and both sides' certificates.
//!
//! What kept clients out is a rule that is left to do, so that `trunkline check` asks for it.

use std::time::Duration;

use super::databases::Database;
use super::parse::elements;
use super::{Globals, within};
use crate::cli::import::notes::Notes;
use crate::cli::import::write::{Auth, Certificate, ImportOutcome, Settings, scalar, time};
use crate::config::ListenerTls;
use crate::wire::text::is_unsafe;

/// The console's name, to `PgBouncer`'s clients.
const CONSOLE: &str = "pgbouncer";
/// The most users of the console.
const MAX_ADMINS: usize = 1024;

pub(super) fn client_tls(
    globals: &mut Globals<'_>,
    outcome: &mut ImportOutcome,
    notes: &mut Notes,
) -> ListenerTls {
    let mode = globals.take("client_tls_sslmode");
    let (certificate, key) = (
        globals.text("client_tls_cert_file"),
        globals.text("client_tls_key_file"),
    );
    let authority = globals.text("client_tls_ca_file");
    let protocols = globals.take("client_tls_protocols");
    let (tls, verifies) = match mode.map(|mode| mode.value.as_str()) {
        None | Some("disable") => return ListenerTls::Off,
        Some("allow" | "prefer") => (ListenerTls::Optional, false),
        Some("require") => (ListenerTls::Required, false),
        // What is not known is taken for the strictest.
        Some(_) => (ListenerTls::Required, true),
    };
    if let (Some(certificate), Some(key)) = (certificate, key) {
        outcome.certificates.push(Certificate {
            cert_file: certificate.to_owned(),
            key_file: key.to_owned(),
        });
    }
    if verifies {
        let authority = authority.unwrap_or("TODO-client-ca.crt");
        outcome.tls.push(("client_ca_file", scalar(authority)));
    }
    if let Some(setting) = protocols {
        let names: Vec<String> = elements(&setting.value).map(str::to_ascii_lowercase).collect();
        if names == ["tlsv1.3"] {
            outcome.tls.push(("min_version", "\"1.3\"".to_owned()));
        } else if names
            .iter()
            .any(|name| matches!(name.as_str(), "tlsv1.0" | "tlsv1.1" | "all" | "legacy"))
        {
            notes.differs(setting.line, "client_tls_protocols", "TLS is 1.2 or 1.3 here");
        }
    }
    tls
}

/// `server_tls` of every cluster.
pub(super) fn server_tls(globals: &mut Globals<'_>, notes: &mut Notes) -> Settings {
    let mode = globals.take("server_tls_sslmode");
    let authority = globals.text("server_tls_ca_file");
    let (certificate, key) = (
        globals.text("server_tls_cert_file"),
        globals.text("server_tls_key_file"),
    );
    if let Some(setting) = globals.take("server_tls_protocols")
        && elements(&setting.value).any(|name| !matches!(name, "secure" | "tlsv1.2" | "tlsv1.3"))
    {
        notes.differs(setting.line, "server_tls_protocols", "TLS is 1.2 or 1.3 here");
    }
    let mut settings = Settings::new();
    let word = match mode.map(|mode| mode.value.as_str()) {
        None => "prefer",
        Some(word @ ("disable" | "allow" | "prefer" | "require" | "verify-ca" | "verify-full")) => word,
        // What is not known is taken for the strictest.
        Some(_) => "verify-full",
    };
    if word != "prefer" {
        settings.push(("sslmode", word.to_owned()));
    }
    if word == "disable" {
        return settings;
    }
    if word.starts_with("verify") {
        let authority = authority.unwrap_or("TODO-server-ca.crt");
        settings.push(("sslrootcert", scalar(authority)));
    }
    if let (Some(certificate), Some(key)) = (certificate, key) {
        settings.push(("sslcert", scalar(certificate)));
        settings.push(("sslkey", scalar(key)));
    }
    settings
}

/// With the console, whose users log in as others do.
pub(super) fn auth(
    globals: &mut Globals<'_>,
    databases: &[Database],
    outcome: &mut ImportOutcome,
    notes: &mut Notes,
) -> Auth {
    let mut auth = Auth::default();
    let admins = console(globals, outcome, notes);
    let kind = globals.take("auth_type");
    let (hba, ident) = (globals.take("auth_hba_file"), globals.text("auth_ident_file"));
    let options = globals.take("auth_ldap_options").is_some();
    let demands = outcome.tls.iter().any(|(key, _)| *key == "client_ca_file");
    let word = kind.map_or("md5", |kind| kind.value.as_str());
    if word == "hba" {
        let file = hba.map_or("TODO-pg_hba.conf", |hba| hba.value.as_str());
        auth.settings.push(("hba_file", scalar(file)));
        auth.settings
            .extend(ident.map(|file| ("ident_file", scalar(file))));
        let line = hba.or(kind).map(|setting| setting.line);
        if databases.iter().all(|database| database.name.is_some()) {
            notes.differs(
                line,
                "auth_hba_file",
                "PgBouncer knew only the databases of its list; rules for `all` now let clients into every database of \
                 the servers",
            );
        }
        if demands {
            notes.differs(
                line,
                "auth_hba_file",
                "`verify-ca` demanded a certificate of every client: write `clientcert=verify-ca` into the rules",
            );
        }
    } else {
        let line = kind.map(|kind| kind.line);
        let method = method(word, options, line, notes);
        auth.rules = rules(&method, demands, databases, &admins);
    }
    verifiers(globals, &mut auth, notes);
    auth.credential = credential(databases, notes);
    if let Some((line, wanted)) = globals.seconds("client_login_timeout", notes) {
        let bounds = (Duration::from_millis(100), Duration::from_mins(10));
        let fits = within(line, "client_login_timeout", wanted, bounds, notes);
        auth.settings.push(("login_timeout", time(fits)));
    }
    auth
}

/// The method of a rule.
fn method(word: &str, has_options: bool, line: Option<usize>, notes: &mut Notes) -> String {
    let mut differs = |why: &str| notes.differs(line, "auth_type", why);
    match word {
        "scram-sha-256" | "md5" | "cert" => word.to_owned(),
        "plain" => {
            differs("takes the password without protection: prefer `scram-sha-256`");
            "password".to_owned()
        }
        "ldap" => {
            differs("the options of `ldap` are in the rule: TODO, as in `auth_ldap_options`");
            let options = if has_options {
                "TODO: auth_ldap_options"
            } else {
                "TODO: ldapserver=…"
            };
            format!("ldap {options}")
        }
        "trust" | "any" => {
            differs(
                "let everybody in without a password; the rules ask for one, because sessions log into the servers with it",
            );
            "scram-sha-256".to_owned()
        }
        _ => {
            differs("has no equivalent: the rules ask for SCRAM; `ldap`, `cert` and `peer` are possible");
            "scram-sha-256".to_owned()
        }
    }
}

/// The databases of the list, and the console.
fn rules(method: &str, demands: bool, databases: &[Database], admins: &[String]) -> Vec<String> {
    let is_plain = method == "scram-sha-256" && !demands;
    let is_every = databases.iter().any(|database| database.name.is_none());
    if is_plain && is_every {
        return Vec::new();
    }
    let mut names: Vec<String> = Vec::new();
    for database in databases {
        let name = database.target.as_deref().map(hba_name);
        names.extend(name.filter(|name| !names.contains(name)));
    }
    if is_every {
        names = vec!["all".to_owned()];
    }
    let databases = names.join(",");
    let admins = admins
        .iter()
        .map(|name| hba_name(name))
        .collect::<Vec<_>>()
        .join(",");
    let of_console = (!admins.is_empty() && !is_every).then_some((CONSOLE, admins.as_str()));
    let matches: Vec<(&str, &str)> = of_console.into_iter().chain([(&*databases, "all")]).collect();
    let needs_tls = demands || method == "cert";
    let kind = if needs_tls { "hostssl" } else { "host" };
    let options = if demands && method != "cert" {
        " clientcert=verify-ca"
    } else {
        ""
    };
    let over_network = matches
        .iter()
        .map(|(databases, users)| format!("{kind} {databases} {users} all {method}{options}"));
    // A Unix socket has neither TLS nor certificates.
    let local = matches.iter().filter(|_| !needs_tls);
    let local = local.map(|(databases, users)| format!("local {databases} {users} {method}"));
    over_network.chain(local).collect()
}

/// A name as rules have it, in a comment.
fn hba_name(name: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let is_word = matches!(
        name,
        "all" | "replication" | "sameuser" | "samerole" | "samegroup"
    );
    if !name.is_empty() && name.chars().all(is_plain) && !is_word {
        return name.to_owned();
    }
    let shown: String = name.chars().map(|c| if is_unsafe(c) { '?' } else { c }).collect();
    format!("\"{}\"", shown.replace('"', "\"\""))
}

/// Where passwords come from.
fn verifiers(globals: &mut Globals<'_>, auth: &mut Auth, notes: &mut Notes) {
    let file = globals.take("auth_file");
    let user = globals.take("auth_user");
    let query = globals.take("auth_query");
    globals.take("auth_dbname");
    let asks = user.is_some_and(|user| !user.value.is_empty());
    match (asks, file, query) {
        (false, Some(file), _) if !file.value.is_empty() => {
            auth.settings.push(("users_file", scalar(&file.value)));
            notes.differs(
                file.line,
                "auth_file",
                "sessions log into the servers with what their client has proven: a SCRAM verifier must be the one that \
                 the servers have",
            );
        }
        (true, file, query) => {
            if let Some(file) = file {
                notes.lost(
                    file.line,
                    "auth_file",
                    "verifiers come from a file or from the cluster; the users of the file must be roles there",
                );
            }
            match query.filter(|query| query.value.contains("$1")) {
                Some(query) => {
                    auth.settings.push(("query", scalar(&query.value)));
                    notes.differs(
                        query.line,
                        "auth_query",
                        "the service account asks instead of `auth_user`, in its own database: grant it EXECUTE, or \
                         remove `query` and run config/service-account.sql",
                    );
                }
                None => notes.differs(
                    user.map(|user| user.line),
                    "auth_user",
                    "the service account of config/service-account.sql asks instead",
                ),
            }
        }
        (false, _, _) => {}
    }
}

/// The user that all sessions have on the servers, if it is one.
fn credential(databases: &[Database], notes: &mut Notes) -> Settings {
    let users = || databases.iter().map(|database| database.user.as_deref());
    let Some(Some(user)) = users().next() else {
        return no_credential(databases, notes);
    };
    if users().any(|other| other != Some(user)) {
        return no_credential(databases, notes);
    }
    notes.differs(
        databases.first().map(|database| database.line),
        "user",
        "is `server_user` of all sessions; its password goes into the file of `password_file`",
    );
    vec![
        ("users", "all".to_owned()),
        ("server_user", scalar(user)),
        ("password_file", "TODO-server-user.password".to_owned()),
    ]
}

fn no_credential(databases: &[Database], notes: &mut Notes) -> Settings {
    for database in databases.iter().filter(|database| database.user.is_some()) {
        notes.lost(
            database.line,
            &format!("{} … user", database.shown()),
            "`auth.server_credentials` chooses the server's user by the client's, not by the database",
        );
    }
    Settings::new()
}

/// The users of the console.
fn console(globals: &mut Globals<'_>, outcome: &mut ImportOutcome, notes: &mut Notes) -> Vec<String> {
    let Some(setting) = globals.take("admin_users") else {
        return Vec::new();
    };
    let mut admins: Vec<String> = Vec::new();
    for name in elements(&setting.value) {
        if admins.len() < MAX_ADMINS && name.len() <= 63 && !admins.iter().any(|known| known == name) {
            admins.push(name.to_owned());
        }
    }
    if !admins.is_empty() {
        outcome.console = vec![
            ("users", crate::cli::import::write::list(&admins)),
            ("operators", crate::cli::import::write::list(&admins)),
            ("database", CONSOLE.to_owned()),
        ];
        notes.differs(
            setting.line,
            "admin_users",
            "the console has its own commands: docs/operations.md lists them",
        );
    }
    admins
}
