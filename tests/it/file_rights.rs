//! Files that decide who comes in: nobody else may write them, nor read one with a password in it;
//! and a byte order mark, which some editors put first, changes nothing.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cluster::{Certificates, fresh_address, output};

const HBA: &str = "include rules.d/more.conf\ninclude_dir rules.d\nlocal all all peer map=os\nhost all @names all scram-sha-256\n";
const LDAP: &str =
    "host all app all ldap ldapserver=h ldapbasedn=dc=x ldapbinddn=cn=a ldapbindpasswd=hidden\n";

/// A configuration with one file of each kind, all of them as they should be.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        fs::create_dir(place.path("rules.d")).unwrap();
        let certificates = Certificates::shared();
        for (name, contents, mode) in [
            ("pg_hba.conf", HBA, 0o644),
            (
                "rules.d/more.conf",
                "host all all 10.0.0.0/8 scram-sha-256\n",
                0o644,
            ),
            ("names", "app\n", 0o644),
            ("pg_ident.conf", "os me app\n", 0o644),
            ("users", "\"app\" \"secret\"\n", 0o640),
            ("password", "trunkline\n", 0o640),
            ("shared", "secret\n", 0o640),
        ] {
            place.write(name, contents.as_bytes(), mode);
        }
        place.write("ca.crt", &fs::read(certificates.file("ca.crt")).unwrap(), 0o644);
        let address = fresh_address();
        let yaml = format!(
            "clusters:\n  main:\n    servers: [{{name: a, host: 127.0.0.1}}]\n    \
             service_account: {{user: trunkline, password_file: password}}\n    \
             server_tls: {{sslmode: verify-ca, sslrootcert: ca.crt}}\n\
             auth: {{hba_file: pg_hba.conf, ident_file: pg_ident.conf, users_file: users, ldap_ca_file: ca.crt,\n  \
             server_credentials: [{{users: all, server_user: app, password_file: shared}}]}}\n\
             listeners: [{{name: a, address: \"{address}:6432\", route: read-write}}]\nhttp: {{address: \"{address}:6434\"}}\n"
        );
        place.write("trunkline.yaml", yaml.as_bytes(), 0o644);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, contents: &[u8], mode: u32) {
        fs::write(self.path(name), contents).unwrap();
        self.set_mode(name, mode);
    }

    fn set_mode(&self, name: &str, mode: u32) {
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(mode)).unwrap();
    }

    fn mode(&self, name: &str) -> u32 {
        fs::metadata(self.path(name)).unwrap().permissions().mode() & 0o777
    }

    fn check(&self) -> (bool, String) {
        let output = output(
            Command::new(env!("CARGO_BIN_EXE_trunkline"))
                .args(["check", "-c"])
                .arg(self.path("trunkline.yaml")),
        );
        let text = [output.stdout, output.stderr].concat();
        (
            output.status.success(),
            String::from_utf8_lossy(&text).into_owned(),
        )
    }

    fn is_good(&self, about: &str) {
        let (is_good, text) = self.check();
        assert!(is_good, "{about}: {text}");
    }

    fn is_refused(&self, name: &str, words: &str) {
        let (is_good, text) = self.check();
        let file = Path::new(name).file_name().unwrap().to_str().unwrap();
        assert!(
            !is_good && text.contains(words) && text.contains(file),
            "{name}: {text}"
        );
        assert!(!text.contains("hidden"), "{text}");
    }
}

#[test]
fn nobody_else_may_write_what_decides_who_comes_in() {
    let place = Place::new();
    place.is_good("as it should be");
    for name in [
        "trunkline.yaml",
        "pg_hba.conf",
        "rules.d",
        "rules.d/more.conf",
        "names",
        "pg_ident.conf",
        "ca.crt",
    ] {
        let mode = place.mode(name);
        place.set_mode(name, mode | 0o002);
        place.is_refused(name, "is writable by every user");
        // The group's members are the operator's choice, as with keys.
        place.set_mode(name, mode | 0o020);
        place.is_good(name);
        place.set_mode(name, mode);
    }
    for name in ["users", "password", "shared"] {
        for wrong in [0o004, 0o002] {
            place.set_mode(name, 0o640 | wrong);
            place.is_refused(name, "is open to every user");
        }
        place.set_mode(name, 0o640);
    }
    place.is_good("as it was");
}

#[test]
fn a_rule_with_a_password_is_for_nobody_elses_eyes() {
    for name in ["pg_hba.conf", "rules.d/more.conf"] {
        let place = Place::new();
        let rules = format!("{LDAP}{}", fs::read_to_string(place.path(name)).unwrap());
        place.write(name, rules.as_bytes(), 0o640);
        place.is_good(name);
        place.set_mode(name, 0o644);
        place.is_refused(name, "ldapbindpasswd contains a password");
    }
}

#[test]
fn a_byte_order_mark_changes_nothing_but_a_secret() {
    let place = Place::new();
    for name in [
        "trunkline.yaml",
        "pg_hba.conf",
        "rules.d/more.conf",
        "names",
        "pg_ident.conf",
        "users",
        "ca.crt",
    ] {
        let contents = fs::read(place.path(name)).unwrap();
        place.write(name, &[b"\xef\xbb\xbf", &contents[..]].concat(), place.mode(name));
        place.is_good(name);
    }
    place.write("password", b"\xef\xbb\xbftrunkline\n", 0o640);
    place.is_refused("password", "begins with a byte order mark");
    place.write("password", b"trunkline\n", 0o640);
    let utf_16: Vec<u8> = format!("\u{feff}{HBA}")
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    place.write("pg_hba.conf", &utf_16, 0o644);
    place.is_refused("pg_hba.conf", "UTF-16");
}
