//! The rules as the view `pg_hba_file_rules` shows them (PostgreSQL documentation,
//! "`pg_hba_file_rules`").

use serde::Serialize;

use super::address;
use super::{HbaError, HbaFile};
use crate::auth::rules::{
    AddressMatch, ClientCertificate, Connection, DatabaseMatch, Method, Rule, RuleOrigin, Rules, UserMatch,
};

/// One row, with the view's columns in the view's order. What is not UTF-8 is replaced, a bind
/// password is `***`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HbaRow {
    /// From 1, in the order in which rules are tried; none for a line with an error.
    pub rule_number: Option<u32>,
    /// None for the built-in rules.
    pub file_name: Option<String>,
    pub line_number: Option<u32>,
    #[serde(rename = "type")]
    pub connection: Option<&'static str>,
    pub database: Option<Vec<String>>,
    pub user_name: Option<Vec<String>>,
    pub address: Option<String>,
    pub netmask: Option<String>,
    pub auth_method: Option<&'static str>,
    pub options: Option<Vec<String>>,
    pub error: Option<String>,
}

/// As a line of the file, with one blank between columns.
impl std::fmt::Display for HbaRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let list = |names: &Option<Vec<String>>| names.as_deref().unwrap_or_default().join(",");
        write!(
            f,
            "{} {} {}",
            self.connection.unwrap_or_default(),
            list(&self.database),
            list(&self.user_name)
        )?;
        let words = [self.address.as_deref(), self.netmask.as_deref(), self.auth_method];
        for word in words.into_iter().flatten() {
            write!(f, " {word}")?;
        }
        for option in self.options.iter().flatten() {
            write!(f, " {option}")?;
        }
        Ok(())
    }
}

impl Rules {
    pub fn rows(&self) -> Vec<HbaRow> {
        self.iter()
            .zip(1..)
            .map(|(rule, number)| row(rule, number))
            .collect()
    }
}

impl HbaFile {
    /// Lines with errors too.
    pub fn rows(&self) -> Vec<HbaRow> {
        let mut number = 0;
        let rows = self.lines.iter().map(|line| match line {
            Ok(rule) => {
                number += 1;
                row(rule, number)
            }
            Err(error) => error_row(error),
        });
        rows.collect()
    }
}

fn row(rule: &Rule, number: u32) -> HbaRow {
    let (file_name, line_number) = match &rule.place {
        RuleOrigin::Builtin => (None, None),
        RuleOrigin::File { path, line } => (Some(path.display().to_string()), Some(*line)),
    };
    let (address, netmask) = match &rule.address {
        _ if rule.connection == Connection::Local => (None, None),
        AddressMatch::All => (Some("all".to_owned()), None),
        AddressMatch::SameHost => (Some("samehost".to_owned()), None),
        AddressMatch::SameNet => (Some("samenet".to_owned()), None),
        AddressMatch::Network(network) => (
            Some(address::text(network.address())),
            Some(address::text(network.mask())),
        ),
        AddressMatch::Host(name) => (Some(lossy(name)), None),
    };
    let options = options(rule);
    HbaRow {
        rule_number: Some(number),
        file_name,
        line_number,
        connection: Some(rule.connection.word()),
        database: Some(rule.databases.iter().map(database).collect()),
        user_name: Some(rule.users.iter().map(user).collect()),
        address,
        netmask,
        auth_method: Some(rule.method.word()),
        options: (!options.is_empty()).then_some(options),
        error: None,
    }
}

fn error_row(error: &HbaError) -> HbaRow {
    HbaRow {
        rule_number: None,
        file_name: Some(error.path.display().to_string()),
        line_number: (error.line > 0).then_some(error.line),
        connection: None,
        database: None,
        user_name: None,
        address: None,
        netmask: None,
        auth_method: None,
        options: None,
        error: Some(error.kind.to_string()),
    }
}

fn lossy(text: &[u8]) -> String {
    String::from_utf8_lossy(text).into_owned()
}

fn database(entry: &DatabaseMatch) -> String {
    match entry {
        DatabaseMatch::All => "all".to_owned(),
        DatabaseMatch::Replication => "replication".to_owned(),
        DatabaseMatch::SameUser => "sameuser".to_owned(),
        DatabaseMatch::SameRole => "samerole".to_owned(),
        DatabaseMatch::SameGroup => "samegroup".to_owned(),
        DatabaseMatch::Name(name) => lossy(name),
        DatabaseMatch::Pattern(pattern) => format!("/{}", lossy(pattern.source())),
    }
}

/// An entry of the user column, as it is written.
pub fn user(entry: &UserMatch) -> String {
    match entry {
        UserMatch::All => "all".to_owned(),
        UserMatch::Name(name) => lossy(name),
        UserMatch::MemberOf(role) => format!("+{}", lossy(role)),
        UserMatch::Pattern(pattern) => format!("/{}", lossy(pattern.source())),
    }
}

/// `clientname` is not among them, as in the view.
fn options(rule: &Rule) -> Vec<String> {
    let mut options = Vec::new();
    if let Some(map) = &rule.map {
        options.push(format!("map={}", lossy(map)));
    }
    match rule.client_certificate {
        ClientCertificate::Off => {}
        ClientCertificate::VerifyCa => options.push("clientcert=verify-ca".to_owned()),
        ClientCertificate::VerifyFull => options.push("clientcert=verify-full".to_owned()),
    }
    if let Method::Ldap(ldap) = &rule.method {
        options.extend(ldap.texts());
    }
    options
}
