//! Reads and checks the files that decide about logins (rules, maps, users) together. A fault that
//! would fail a login is reported here, with file and line.
//!
//! A rule is refused if the router could not log into the servers after it, or if it names a map or
//! needs a certificate authority that does not exist. A rule is never skipped.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use tokio::sync::Semaphore;

use super::ldap;
use crate::auth::Identity;
use crate::auth::credentials::ServerCredentials;
use crate::auth::hba::{self, Files};
use crate::auth::ident::{self, Maps};
use crate::auth::ldap::{Encryption, LdapOptions, LdapSettings};
use crate::auth::rules::{
    ClientCertificate, Connection, DatabaseMatch, Method, Rule, RuleOrigin, Rules, UserMatch,
};
use crate::auth::scram::MockSecret;
use crate::auth::userlist::UserList;
use crate::config::{
    Auth, Config, FileAccess, ListenerTls, ServerCredential, ServerSecret, Stamp, Stamps, Verifiers,
};

/// How long after a change of the users file a wrong password may be caused by the old contents.
/// The limit is needed because a file with a fault is never read.
const NEW_FOR: Duration = Duration::from_secs(5);
/// Time limit for reading the file's metadata.
const STAT_WITHIN: Duration = Duration::from_millis(250);

/// Everything that decides a login. A change of a file replaces it as a whole; running logins keep
/// the old one.
#[derive(Debug)]
pub struct AuthPolicy {
    pub rules: Rules,
    pub maps: Maps,
    /// `None` if the cluster is asked for verifiers.
    pub users: Option<UserList>,
    /// The users file and its stamp when it was read.
    users_file: Option<(PathBuf, Option<Stamp>)>,
    /// One check of the file at a time: a file system that does not answer occupies only one
    /// thread.
    stat_slot: Arc<Semaphore>,
    pub credentials: ServerCredentials,
    pub ldap_tls: Arc<ClientConfig>,
    /// By the number of the rule; `None` if its method is not `ldap`.
    directories: Vec<Option<LdapSettings>>,
    /// The stamps of all files and directories that were read or looked for, taken just before.
    pub watched: Stamps,
}

/// All faults, each in one line with its file and line.
#[derive(Debug)]
pub struct AuthPolicyError {
    pub lines: Vec<String>,
    /// As [`AuthPolicy::watched`]: a change of one of them may fix the fault.
    pub watched: Stamps,
}

impl fmt::Display for AuthPolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.lines.join("\n"))
    }
}

impl std::error::Error for AuthPolicyError {}

/// The parts of the rest of the configuration that rules depend on.
#[derive(Debug, Clone, Copy)]
pub struct PolicyContext<'a> {
    /// Clients' certificates can be checked: `tls.client_ca_file`.
    pub has_client_ca: bool,
    /// Some listener offers TLS.
    pub has_tls: bool,
    /// The console's database. It needs no login to a server.
    pub console: Option<&'a str>,
}

impl<'a> PolicyContext<'a> {
    pub fn of(config: &'a Config) -> Self {
        Self {
            has_client_ca: config.tls.as_ref().is_some_and(|tls| tls.asks_clients),
            has_tls: config
                .listeners
                .iter()
                .any(|listener| listener.tls != ListenerTls::Off),
            console: config.console.as_ref().map(|console| &*console.database),
        }
    }
}

impl AuthPolicy {
    /// Reads and checks everything. Blocks. Reports all faults of all files together.
    ///
    /// # Errors
    /// Every fault, in the order of the files.
    pub fn load(auth: &Auth, context: PolicyContext<'_>, mock: &MockSecret) -> Result<Self, AuthPolicyError> {
        let disk = Disk::default();
        let mut others = Vec::new();
        let maps = match &auth.ident_file {
            None => Some(Maps::default()),
            Some(path) => collect(ident::read(&disk, path).maps(), &mut others),
        };
        let users = match &auth.verifiers {
            Verifiers::Query { .. } => Some(None),
            Verifiers::UsersFile { path, contents } => {
                let users = UserList::parse(contents, mock).map_err(|faults| {
                    let placed = |fault| format!("{}: {fault}", path.display());
                    faults.into_iter().map(placed).collect::<Vec<_>>()
                });
                collect(users, &mut others).map(Some)
            }
        };
        let users_file = match &auth.verifiers {
            Verifiers::Query { .. } => None,
            Verifiers::UsersFile { path, .. } => Some((path.clone(), Stamp::of(path))),
        };
        let credentials = ServerCredentials::new(Arc::clone(&auth.server_credentials));
        let mut faults = Vec::new();
        let mut directories = Vec::new();
        let rules = match &auth.hba_file {
            None => Some(Rules::builtin()),
            Some(path) => {
                let file = hba::read(&disk, path);
                // Line by line, so that a rule that cannot be read does not hide the faults of
                // other rules.
                for line in file.lines() {
                    match line {
                        Err(fault) => faults.push(fault.to_string()),
                        Ok(rule) => {
                            faults.extend(disk.exposed_secret(rule));
                            let mut check = PolicyCheck {
                                rule,
                                maps: maps.as_ref(),
                                users: users.as_ref().and_then(Option::as_ref),
                                has_unread_users: users.is_none(),
                                credentials: &credentials,
                                context,
                                faults: &mut faults,
                            };
                            directories.push(check.run());
                        }
                    }
                }
                file.rules().ok()
            }
        };
        let asks_tls = |directory: &LdapSettings| directory.encryption() != Encryption::None;
        let ldap_tls = if auth.ldap_roots.is_some() || directories.iter().flatten().any(asks_tls) {
            ldap::tls_config(auth.ldap_roots.clone())
        } else {
            ldap::no_tls_config()
        };
        let ldap_tls = collect(ldap_tls.map_err(|error| vec![error.to_string()]), &mut others);
        faults.append(&mut others);
        let watched = disk.stamps.into_inner();
        match (rules, maps, users, ldap_tls) {
            (Some(rules), Some(maps), Some(users), Some(ldap_tls)) if faults.is_empty() => Ok(Self {
                rules,
                maps,
                users,
                users_file,
                stat_slot: Arc::new(Semaphore::new(1)),
                credentials,
                ldap_tls,
                directories,
                watched,
            }),
            _ => Err(AuthPolicyError {
                lines: faults,
                watched,
            }),
        }
    }

    /// Whether the users file has changed in the last seconds and was not read again yet. (A change
    /// is read once two checks see the same stamp.) Limited in time, since a file system may not
    /// answer.
    pub(super) async fn has_new_users(&self) -> bool {
        let Some((path, known)) = self.users_file.clone() else {
            return false;
        };
        let stamp = async {
            let slot = Arc::clone(&self.stat_slot).acquire_owned().await.ok()?;
            let stamp = tokio::task::spawn_blocking(move || {
                let _slot = slot;
                Stamp::of(&path)
            });
            stamp.await.ok()
        };
        match tokio::time::timeout(STAT_WITHIN, stamp).await {
            Ok(Some(now)) => now != known && now.is_some_and(|now| now.is_younger(NEW_FOR)),
            Ok(None) | Err(_) => false,
        }
    }

    /// The directory that the rule with this number (from 0) asks.
    pub fn directory(&self, index: usize) -> Option<&LdapSettings> {
        self.directories.get(index)?.as_ref()
    }

    /// Warnings about rules that are valid but have no effect.
    pub fn warnings(&self, context: PolicyContext<'_>) -> Vec<String> {
        let is_unused = |rule: &&Rule| {
            rule.connection == Connection::HostGssEnc
                || (rule.connection == Connection::HostSsl && !context.has_tls)
        };
        let unused = self.rules.iter().filter(is_unused);
        unused
            .map(|rule| {
                let why = match rule.connection {
                    Connection::HostGssEnc => "the router offers no GSSAPI encryption",
                    _ => "no listener offers TLS",
                };
                format!("{}: this rule never matches, because {why}", rule.place)
            })
            .collect()
    }
}

fn collect<T, E: fmt::Display>(result: Result<T, Vec<E>>, faults: &mut Vec<String>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(found) => {
            faults.extend(found.iter().map(ToString::to_string));
            None
        }
    }
}

/// One rule, checked against everything else.
struct PolicyCheck<'a> {
    rule: &'a Rule,
    /// `None` if their file has faults: then it is not known which maps are missing.
    maps: Option<&'a Maps>,
    users: Option<&'a UserList>,
    /// There is a users file, and it has faults.
    has_unread_users: bool,
    credentials: &'a ServerCredentials,
    context: PolicyContext<'a>,
    faults: &'a mut Vec<String>,
}

impl PolicyCheck<'_> {
    fn fault(&mut self, what: impl fmt::Display) {
        self.faults.push(format!("{}: {what}", self.rule.place));
    }

    /// Returns the settings of the rule's LDAP directory, if it has one.
    fn run(&mut self) -> Option<LdapSettings> {
        let rule = self.rule;
        let asks = rule.method == Method::Cert || rule.client_certificate != ClientCertificate::Off;
        if asks && !self.context.has_client_ca {
            self.fault("the router cannot check clients' certificates: set tls.client_ca_file");
        }
        if let Some(map) = rule
            .map
            .as_deref()
            .filter(|map| !map.is_empty() && self.maps.is_some_and(|maps| !maps.contains(map)))
        {
            self.fault(format_args!(
                "there is no map \"{}\" in auth.ident_file",
                map.escape_ascii()
            ));
        }
        match rule.method {
            Method::Trust | Method::Cert | Method::Peer | Method::Ldap(_) => self.check_server_login(),
            Method::Reject | Method::Password | Method::Md5 | Method::ScramSha256 => {}
        }
        let Method::Ldap(options) = &rule.method else {
            return None;
        };
        match LdapSettings::new(LdapOptions::clone(options)) {
            Ok(settings) => Some(settings),
            Err(what) => {
                self.fault(what);
                None
            }
        }
    }

    /// Such a login leaves no secret for the login to the servers, so the configuration must
    /// provide one.
    fn check_server_login(&mut self) {
        let console = self.context.console.map(str::as_bytes);
        let is_console = |database: &DatabaseMatch| matches!(database, DatabaseMatch::Name(name) if Some(&name[..]) == console);
        if self.rule.databases.iter().all(is_console) {
            return;
        }
        let method = &self.rule.method;
        let mut without = None;
        for user in &self.rule.users {
            let opens = match user {
                UserMatch::Name(name) => self.opens(self.credentials.find(name), Some(name)),
                // Any user may match, so there must be an entry for all users, and every entry must
                // work.
                UserMatch::All | UserMatch::MemberOf(_) | UserMatch::Pattern(_) => {
                    self.credentials.for_all().is_some()
                        && self
                            .credentials
                            .entries()
                            .iter()
                            .all(|entry| self.opens(Some(entry), None))
                }
            };
            if !opens {
                without.get_or_insert(user);
            }
        }
        if let Some(user) = without {
            let hint = match method {
                Method::Ldap(_) => {
                    "add an entry to auth.server_credentials; `password: client` uses the password that the directory accepted"
                }
                Method::Peer => {
                    "if the router has no listener on a Unix socket, delete this line; otherwise add an entry to \
                     auth.server_credentials, or the password to auth.users_file"
                }
                _ => "add an entry to auth.server_credentials, or the password to auth.users_file",
            };
            let what = format!(
                "after method \"{}\" the router has no credential to log into the servers as {}: {hint}",
                method.word(),
                hba::rows::user(user)
            );
            self.fault(what);
        }
    }

    fn opens(&self, entry: Option<&ServerCredential>, name: Option<&[u8]>) -> bool {
        match entry.map(|entry| &entry.secret) {
            Some(
                ServerSecret::Password(_) | ServerSecret::Certificate(_) | ServerSecret::ClusterCertificate,
            ) => true,
            Some(ServerSecret::ClientPassword) if matches!(self.rule.method, Method::Ldap(_)) => true,
            Some(ServerSecret::ClientPassword) | None => {
                let known = name.and_then(|name| self.users?.find(name));
                let may_be_there = self.has_unread_users && name.is_some();
                may_be_there || matches!(known, Some(Identity::Password(..) | Identity::Md5(_)))
            }
        }
    }
}

/// The file system. It records the stamps of everything that was read or looked for.
#[derive(Default)]
struct Disk {
    stamps: RefCell<Stamps>,
    /// The modes of the files that were read.
    modes: RefCell<HashMap<PathBuf, u32>>,
}

impl Disk {
    fn record(&self, path: &Path) {
        let mut seen = self.stamps.borrow_mut();
        seen.entry(path.to_owned()).or_insert_with(|| Stamp::of(path));
    }

    /// The fault of a rule with a password in a file that other users can read.
    fn exposed_secret(&self, rule: &Rule) -> Option<String> {
        let RuleOrigin::File { path, .. } = &rule.place else {
            return None;
        };
        matches!(&rule.method, Method::Ldap(options) if options.bindpasswd.is_some()).then_some(())?;
        let mode = *self.modes.borrow().get(&**path)?;
        let (what, hint) = FileAccess::Private.problem(mode)?;
        Some(format!(
            "{}: ldapbindpasswd contains a password, and the file {what} ({hint})",
            rule.place
        ))
    }
}

/// Checks that only the owner and the group may write to it.
fn check_writers(metadata: &Metadata) -> io::Result<()> {
    match FileAccess::Public.problem(metadata.mode()) {
        Some((what, hint)) => Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("it {what} ({hint})"),
        )),
        None => Ok(()),
    }
}

impl Files for Disk {
    fn read(&self, path: &Path, limit: usize) -> io::Result<Vec<u8>> {
        self.record(path);
        // Checked before it is opened, because opening a named pipe would block.
        if !std::fs::metadata(path)?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        let mut contents = Vec::new();
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        check_writers(&metadata)?;
        self.modes.borrow_mut().insert(path.to_owned(), metadata.mode());
        file.take(limit as u64 + 1).read_to_end(&mut contents)?;
        if contents.starts_with(b"\xff\xfe") || contents.starts_with(b"\xfe\xff") {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "it is UTF-16; save it as UTF-8",
            ));
        }
        if contents.len() > limit {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        Ok(contents)
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<PathBuf>> {
        self.record(directory);
        // Users with write access could add a file.
        check_writers(&std::fs::metadata(directory)?)?;
        let mut entries = Vec::new();
        for entry in std::fs::read_dir(directory)? {
            let path = entry?.path();
            if !path.is_dir() {
                entries.push(path);
            }
        }
        Ok(entries)
    }
}
