//! A real directory: slapd, with a few people.

use std::fs;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::CertificateDer;

use super::{eventually, fresh_address};

/// More than a start takes.
const LONG: Duration = Duration::from_secs(10);

pub const BASE: &str = "dc=example,dc=net";
pub const ROUTER: &str = "cn=router,dc=example,dc=net";

const CONFIGURATION: &str = r#"
include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/inetorgperson.schema
modulepath /usr/lib/ldap
moduleload back_mdb
pidfile DIR/slapd.pid
TLSCACertificateFile DIR/ca.pem
TLSCertificateFile DIR/cert.pem
TLSCertificateKeyFile DIR/key.pem
database mdb
maxsize 16777216
suffix "dc=example,dc=net"
directory DIR/data
access to dn.subtree="ou=private,dc=example,dc=net" attrs=userPassword by anonymous auth by * none
access to dn.subtree="ou=private,dc=example,dc=net" by dn.exact="cn=router,dc=example,dc=net" read by anonymous auth by * none
access to attrs=userPassword by anonymous auth by * none
access to * by * read
"#;

/// `twin` is two people; `outsider` is below `ou=guests` of the people.
const ENTRIES: &str = "
dn: dc=example,dc=net
objectClass: dcObject
objectClass: organization
o: Example
dc: example

dn: ou=people,dc=example,dc=net
objectClass: organizationalUnit
ou: people

dn: ou=guests,ou=people,dc=example,dc=net
objectClass: organizationalUnit
ou: guests

dn: ou=private,dc=example,dc=net
objectClass: organizationalUnit
ou: private

dn: cn=router,dc=example,dc=net
objectClass: person
cn: router
sn: Router
userPassword: router-secret

dn: uid=alice,ou=people,dc=example,dc=net
objectClass: inetOrgPerson
cn: Alice
sn: Archer
mail: alice@example.net
userPassword: alice-secret

dn: uid=keyless,ou=people,dc=example,dc=net
objectClass: inetOrgPerson
cn: Keyless
sn: Kay

dn: cn=Twin One,ou=people,dc=example,dc=net
objectClass: inetOrgPerson
uid: twin
cn: Twin One
sn: One
userPassword: twin-secret

dn: cn=Twin Two,ou=people,dc=example,dc=net
objectClass: inetOrgPerson
uid: twin
cn: Twin Two
sn: Two
userPassword: twin-secret

dn: uid=outsider,ou=guests,ou=people,dc=example,dc=net
objectClass: inetOrgPerson
cn: Outsider
sn: Outer
userPassword: outsider-secret

dn: uid=carol,ou=private,dc=example,dc=net
objectClass: inetOrgPerson
cn: Carol
sn: Carter
userPassword: carol-secret
";

/// A directory of its own, on an address of its own, with a certificate for that address only.
#[derive(Debug)]
pub struct Slapd {
    directory: tempfile::TempDir,
    process: Child,
    pub host: Ipv4Addr,
    pub plain: u16,
    pub secure: u16,
    pub root: CertificateDer<'static>,
}

impl Drop for Slapd {
    fn drop(&mut self) {
        self.stop();
    }
}

pub fn free_port(host: Ipv4Addr) -> u16 {
    TcpListener::bind((host, 0)).unwrap().local_addr().unwrap().port()
}

/// A root, and a certificate of it for `name`, as PEM files in `directory`.
pub fn certificates(directory: &Path, name: &str) -> CertificateDer<'static> {
    let root_key = KeyPair::generate().unwrap();
    let mut root = CertificateParams::new(Vec::new()).unwrap();
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root_certificate = root.self_signed(&root_key).unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec![name.to_owned()])
        .unwrap()
        .signed_by(&key, &Issuer::from_params(&root, &root_key))
        .unwrap();
    fs::write(directory.join("ca.pem"), root_certificate.pem()).unwrap();
    fs::write(directory.join("cert.pem"), certificate.pem()).unwrap();
    fs::write(directory.join("key.pem"), key.serialize_pem()).unwrap();
    root_certificate.der().clone()
}

impl Slapd {
    /// Answers when this returns.
    pub fn start() -> Self {
        let host = fresh_address();
        Self::start_as(host, &host.to_string())
    }

    /// With a certificate for `name`.
    pub fn start_as(host: Ipv4Addr, name: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let root = certificates(path, name);
        let configuration = path.join("slapd.conf");
        fs::write(
            &configuration,
            CONFIGURATION.replace("DIR", path.to_str().unwrap()),
        )
        .unwrap();
        fs::write(path.join("entries.ldif"), ENTRIES.trim_start()).unwrap();
        fs::create_dir(path.join("data")).unwrap();
        let added = Command::new("/usr/sbin/slapadd")
            .args(["-q", "-f"])
            .arg(&configuration)
            .arg("-l")
            .arg(path.join("entries.ldif"))
            .output()
            .unwrap();
        assert!(
            added.status.success(),
            "{}",
            String::from_utf8_lossy(&added.stderr)
        );
        let (plain, secure) = (free_port(host), free_port(host));
        let log = fs::File::create(path.join("log")).unwrap();
        let process = Command::new("/usr/sbin/slapd")
            .args([
                "-d",
                "0",
                "-h",
                &format!("ldap://{host}:{plain}/ ldaps://{host}:{secure}/"),
                "-f",
            ])
            .arg(&configuration)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let slapd = Self {
            directory,
            process,
            host,
            plain,
            secure,
            root,
        };
        slapd.await_up();
        slapd
    }

    fn await_up(&self) {
        eventually(&format!("slapd answers; its log:\n{}", self.log()), LONG, || {
            [self.plain, self.secure]
                .iter()
                .all(|port| TcpStream::connect((self.host, *port)).is_ok())
        });
    }

    /// Of the authority whose certificate it shows.
    pub fn ca_file(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// Down, until this is dropped.
    pub fn stop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    /// `address:port`, in clear text.
    pub fn server(&self) -> String {
        format!("{}:{}", self.host, self.plain)
    }
}
