//! Files of rules, maps and users, messages of directories, certificates of clients.

use std::cell::Cell;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use super::choice;
use crate::auth::ldap::message::{LARGEST_ANSWER, LdapAnswer, message_length};
use crate::auth::ldap::{LdapOptions, LdapSettings, direct_name};
use crate::auth::lookup::LookedUp;
use crate::auth::md5::Md5Hash;
use crate::auth::rules::{Facts, HostName, Known, Memberships, Need, Origin, Step};
use crate::auth::scram::{MockSecret, Verifier, tls_server_end_point};
use crate::auth::userlist::UserList;
use crate::auth::{hba, ident};
use crate::config::Secret;
use crate::frontend::certificate::PeerCertificate;
use crate::wire::startup::Replication;
use crate::wire::text::is_unsafe;

/// Files `0`, `1`, … of one folder: what is between lines of `%%%`. The first is the one that is
/// read.
struct Folder<'a> {
    files: Vec<&'a [u8]>,
    /// Files that include each other are read a thousand times, which is limited but slow.
    reads_left: Cell<u32>,
}

impl<'a> Folder<'a> {
    fn new(mut data: &'a [u8]) -> Self {
        const BETWEEN: &[u8] = b"\n%%%\n";
        let mut files = Vec::new();
        while let Some(at) = data.windows(BETWEEN.len()).position(|bytes| bytes == BETWEEN)
            && files.len() < 8
        {
            files.push(&data[..at]);
            data = &data[at + BETWEEN.len()..];
        }
        files.push(data);
        Self {
            files,
            reads_left: Cell::new(32),
        }
    }
}

impl hba::Files for Folder<'_> {
    fn read(&self, path: &Path, limit: usize) -> io::Result<Vec<u8>> {
        let number = path
            .file_stem()
            .and_then(|name| name.to_str()?.parse::<usize>().ok());
        let file = number.and_then(|number| self.files.get(number));
        let file = file.ok_or(io::ErrorKind::NotFound)?;
        let left = self
            .reads_left
            .get()
            .checked_sub(1)
            .ok_or(io::ErrorKind::NotFound)?;
        self.reads_left.set(left);
        if file.len() > limit {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        Ok(file.to_vec())
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<PathBuf>> {
        Ok((1..self.files.len())
            .map(|number| directory.join(format!("{number}.conf")))
            .collect())
    }
}

/// `pg_hba.conf`, and what its rules decide about a client.
pub(super) fn hba(data: &[u8]) {
    let file = hba::read(&Folder::new(data), Path::new("0"));
    for error in file.errors() {
        assert!(!error.to_string().chars().any(is_unsafe), "{error}");
    }
    let _ = file.rows();
    let Ok(rules) = file.rules() else { return };
    let _ = rules.rows();
    let memberships = Memberships::new(["app", "staff"]);
    let host_name = HostName::Verified("app.example.com".to_owned());
    for (tls, replication) in [(true, Replication::None), (false, Replication::Physical)] {
        let facts = Facts {
            user: b"app",
            database: b"orders",
            replication,
            origin: Origin::Tcp(IpAddr::V4(Ipv4Addr::new(10, 1, 2, 3))),
            tls,
        };
        let mut known = Known::default();
        // A need is met once, so there are two at most.
        for round in 0.. {
            assert!(round < 3, "the same need comes again");
            match rules.decide(&facts, &known) {
                Step::Decided(_) => break,
                Step::Needs(Need::Memberships) => known.memberships = Some(&memberships),
                Step::Needs(Need::HostName) => known.host_name = Some(&host_name),
            }
        }
        let _ = rules.describe(&facts, &known);
    }
}

/// `pg_ident.conf`, and the users that its maps allow.
pub(super) fn ident(data: &[u8]) {
    let file = ident::read(&Folder::new(data), Path::new("0"));
    let rows = file.rows();
    match file.maps() {
        Ok(maps) => {
            for row in rows.iter().take(16) {
                let map = row.map_name.as_deref().map(str::as_bytes);
                let memberships = Memberships::new(["app", "staff"]);
                for user in [&b"app"[..], b"app@example.com", b"CN=app,O=Example", b"\xe9"] {
                    let _ = maps.check(map, user, b"app", None);
                    let _ = maps.check(map, user, user, Some(&memberships));
                }
            }
        }
        Err(errors) => {
            for error in errors {
                assert!(!error.to_string().chars().any(is_unsafe), "{error}");
            }
        }
    }
}

/// The file of users, and the verifier of a password.
pub(super) fn users(data: &[u8]) {
    let _ = LookedUp::parse(Some(data)).identity();
    let _ = Md5Hash::parse(data);
    if let Ok(verifier) = std::str::from_utf8(data).map(Verifier::parse)
        && let Ok(verifier) = verifier
    {
        assert_eq!(Verifier::parse(&verifier.to_text()).as_ref(), Ok(&verifier));
    }
    // A password costs a millisecond.
    let end = data.iter().enumerate().filter(|(_, byte)| **byte == b'\n').nth(4);
    let file = Secret::new(&data[..end.map_or(data.len(), |(at, _)| at)]);
    match UserList::parse(&file, &MockSecret::new(Some(&file))) {
        Ok(users) => assert!(users.len() <= 5),
        Err(errors) => {
            for error in errors {
                assert!(!error.kind.to_string().chars().any(is_unsafe), "{error:?}");
            }
        }
    }
}

/// A directory's answers, and the options for one.
pub(super) fn ldap(data: &[u8]) {
    if let Ok(Some(length)) = message_length(data) {
        assert!(length <= LARGEST_ANSWER);
        if let Some(message) = data.get(..length) {
            let _ = LdapAnswer::decode(message);
        }
    }
    let _ = LdapAnswer::decode(data);
    let (which, text) = choice(data);
    let Ok(text) = std::str::from_utf8(text) else {
        return;
    };
    let mut parts = text.split('\n');
    let mut part = || parts.next().map(str::to_owned);
    let user = part().unwrap_or_default();
    let _ = direct_name("uid=", user.as_bytes(), ",dc=example");
    let mut options = LdapOptions {
        server: Some("ldap.example.com".to_owned()),
        basedn: Some("dc=example".to_owned()),
        ..LdapOptions::default()
    };
    match which % 4 {
        0 => options.url = part(),
        1 => options.searchfilter = part(),
        2 => (options.server, options.searchattribute) = (part(), part()),
        _ => (options.basedn, options.prefix, options.suffix) = (None, part(), part()),
    }
    if which % 4 == 0 {
        (options.server, options.basedn) = (None, None);
    }
    let Ok(settings) = LdapSettings::new(options) else {
        return;
    };
    assert!(!settings.servers().is_empty());
    if let crate::auth::ldap::Mode::Search(search) = settings.mode() {
        let _ = search.filter(user.as_bytes());
    }
}

/// A client's certificate, and a server's.
pub(super) fn certificate(data: &[u8]) {
    let _ = tls_server_end_point(data);
    if let Ok(certificate) = PeerCertificate::read(data) {
        assert!(!certificate.common_name.is_some_and(|name| name.contains(&0)));
    }
}
