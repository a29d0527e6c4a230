//! The subject of a client's certificate in the two forms that PostgreSQL compares
//! (`be-secure-openssl.c`): the common name, unchanged, and the distinguished name as OpenSSL
//! prints it (`XN_FLAG_RFC2253`).

use std::fmt::Write as _;

use x509_parser::asn1_rs::{Any, Class, Oid, Tag};
use x509_parser::x509::X509Name;

/// The identity in a client's certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerCertificate {
    /// The first common name. It never contains a zero byte.
    pub common_name: Option<Vec<u8>>,
    /// RFC 2253: the last part comes first, as in `CN=app,O=Example`.
    pub distinguished_name: String,
}

/// Why a verified certificate is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PeerCertificateError {
    #[error("the client's certificate cannot be read")]
    Unreadable,
    /// A program that treats the zero byte as the end of the string would see another name
    /// (CVE-2009-4034).
    #[error("the common name of the client's certificate contains a zero byte")]
    ZeroByte,
}

impl PeerCertificate {
    /// Reads a certificate (DER).
    pub fn read(certificate: &[u8]) -> Result<Self, PeerCertificateError> {
        let (_, parsed) =
            x509_parser::parse_x509_certificate(certificate).map_err(|_| PeerCertificateError::Unreadable)?;
        let subject = parsed.subject();
        let common_name = subject
            .iter_common_name()
            .next()
            .map(|name| name.attr_value().data.to_vec());
        if common_name.as_ref().is_some_and(|name| name.contains(&0)) {
            return Err(PeerCertificateError::ZeroByte);
        }
        Ok(Self {
            common_name,
            distinguished_name: distinguished_name(subject),
        })
    }
}

/// OpenSSL's short names of subject attributes. An attribute that is not in this table is written
/// as its OID with the value in hexadecimal, as RFC 2253 requires for unknown attributes.
const SHORT_NAMES: &[(&str, &str)] = &[
    ("2.5.4.3", "CN"),
    ("2.5.4.4", "SN"),
    ("2.5.4.5", "serialNumber"),
    ("2.5.4.6", "C"),
    ("2.5.4.7", "L"),
    ("2.5.4.8", "ST"),
    ("2.5.4.9", "street"),
    ("2.5.4.10", "O"),
    ("2.5.4.11", "OU"),
    ("2.5.4.12", "title"),
    ("2.5.4.13", "description"),
    ("2.5.4.15", "businessCategory"),
    ("2.5.4.16", "postalAddress"),
    ("2.5.4.17", "postalCode"),
    ("2.5.4.18", "postOfficeBox"),
    ("2.5.4.20", "telephoneNumber"),
    ("2.5.4.41", "name"),
    ("2.5.4.42", "GN"),
    ("2.5.4.43", "initials"),
    ("2.5.4.44", "generationQualifier"),
    ("2.5.4.45", "x500UniqueIdentifier"),
    ("2.5.4.46", "dnQualifier"),
    ("2.5.4.65", "pseudonym"),
    ("2.5.4.72", "role"),
    ("2.5.4.97", "organizationIdentifier"),
    ("0.9.2342.19200300.100.1.1", "UID"),
    ("0.9.2342.19200300.100.1.3", "mail"),
    ("0.9.2342.19200300.100.1.25", "DC"),
    ("1.2.840.113549.1.9.1", "emailAddress"),
    ("1.2.840.113549.1.9.2", "unstructuredName"),
    ("1.2.840.113549.1.9.8", "unstructuredAddress"),
    ("1.3.6.1.4.1.311.60.2.1.1", "jurisdictionL"),
    ("1.3.6.1.4.1.311.60.2.1.2", "jurisdictionST"),
    ("1.3.6.1.4.1.311.60.2.1.3", "jurisdictionC"),
];

/// From the last part to the first, and likewise within a part. `,` separates parts, `+` separates
/// the values of one part.
fn distinguished_name(name: &X509Name<'_>) -> String {
    let mut out = String::new();
    let parts: Vec<_> = name.iter_rdn().collect();
    for (index, part) in parts.iter().rev().enumerate() {
        let values: Vec<_> = part.iter().collect();
        for (inner, value) in values.iter().rev().enumerate() {
            if index + inner > 0 {
                out.push(if inner > 0 { '+' } else { ',' });
            }
            let short = short_name(value.attr_type());
            match short {
                Some(short) => out.push_str(short),
                None => out.push_str(&value.attr_type().to_id_string()),
            }
            out.push('=');
            match text(value.attr_value()).filter(|_| short.is_some()) {
                Some(characters) => escape(&mut out, &characters),
                None => dump(&mut out, value.attr_value()),
            }
        }
    }
    out
}

fn short_name(oid: &Oid<'_>) -> Option<&'static str> {
    let oid = oid.to_id_string();
    SHORT_NAMES
        .iter()
        .find(|(known, _)| *known == oid)
        .map(|(_, short)| *short)
}

/// The characters of a string type. `None` for other types, and if the bytes are not valid for the
/// type.
fn text(value: &Any<'_>) -> Option<Vec<char>> {
    if value.class() != Class::Universal {
        return None;
    }
    match value.tag() {
        Tag::Utf8String => Some(str::from_utf8(value.data).ok()?.chars().collect()),
        // Read as ISO 8859-1.
        Tag::NumericString
        | Tag::PrintableString
        | Tag::T61String
        | Tag::Ia5String
        | Tag::UtcTime
        | Tag::GeneralizedTime
        | Tag::VisibleString => Some(value.data.iter().map(|&byte| char::from(byte)).collect()),
        Tag::BmpString => {
            let (units, rest) = value.data.as_chunks::<2>();
            let units = units.iter().map(|unit| u16::from_be_bytes(*unit));
            rest.is_empty()
                .then(|| char::decode_utf16(units).collect::<Result<_, _>>().ok())?
        }
        Tag::UniversalString => {
            let (units, rest) = value.data.as_chunks::<4>();
            let mut units = units.iter().map(|unit| char::from_u32(u32::from_be_bytes(*unit)));
            rest.is_empty().then(|| units.by_ref().collect())?
        }
        _ => None,
    }
}

/// Special characters are escaped with `\`. Control characters and UTF-8 bytes beyond ASCII are
/// written as `\XX`.
fn escape(out: &mut String, characters: &[char]) {
    for (index, &character) in characters.iter().enumerate() {
        // OpenSSL treats a single character as the last one, not the first.
        let last = index + 1 == characters.len();
        let first = index == 0 && !last;
        match character {
            ',' | '+' | '"' | '\\' | '<' | '>' | ';' => {
                out.push('\\');
                out.push(character);
            }
            ' ' if first || last => out.push_str("\\ "),
            '#' if first => out.push_str("\\#"),
            ' '..='~' => out.push(character),
            _ => {
                let mut buffer = [0; 4];
                for byte in character.encode_utf8(&mut buffer).bytes() {
                    // Writing to a String does not fail.
                    let _ = write!(out, "\\{byte:02X}");
                }
            }
        }
    }
}

/// `#` and the DER of the value in hexadecimal.
fn dump(out: &mut String, value: &Any<'_>) {
    let class = (value.class() as u8) << 6;
    let constructed = u8::from(value.header.is_constructed()) << 5;
    // Tags of 31 and more take further bytes; no attribute has one.
    let tag = u8::try_from(value.tag().0).unwrap_or(0x1f).min(0x1f);
    let _ = write!(out, "#{:02X}", class | constructed | tag);
    let length = value.data.len();
    if length < 0x80 {
        let _ = write!(out, "{length:02X}");
    } else {
        let bytes = length.to_be_bytes();
        let used = &bytes[bytes.iter().take_while(|&&byte| byte == 0).count()..];
        let _ = write!(out, "{:02X}", 0x80 | used.len());
        for byte in used {
            let _ = write!(out, "{byte:02X}");
        }
    }
    for byte in value.data {
        let _ = write!(out, "{byte:02X}");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::format_collect)]
    use std::process::Command;

    use super::*;

    /// A certificate that `openssl req` creates for `subject`, and the name that OpenSSL prints for
    /// it.
    fn create(subject: &str, options: &[&str]) -> (Vec<u8>, String) {
        let directory = tempfile::tempdir().unwrap();
        let openssl = |arguments: &[&str]| {
            let output = Command::new("openssl")
                .args(arguments)
                .current_dir(directory.path())
                .output()
                .unwrap();
            let printed = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{arguments:?}: {printed}");
            output.stdout
        };
        let mut request = vec![
            "req", "-x509", "-newkey", "ed25519", "-nodes", "-keyout", "k", "-days", "1",
        ];
        request.extend([
            "-multivalue-rdn",
            "-outform",
            "DER",
            "-out",
            "c",
            "-subj",
            subject,
        ]);
        request.extend(options);
        openssl(&request);
        let printed = openssl(&["x509", "-in", "c", "-noout", "-subject", "-nameopt", "RFC2253"]);
        let printed = String::from_utf8(printed).unwrap();
        let printed = printed
            .trim_end_matches('\n')
            .strip_prefix("subject=")
            .unwrap()
            .to_owned();
        (std::fs::read(directory.path().join("c")).unwrap(), printed)
    }

    #[test]
    fn the_name_is_the_one_openssl_prints() {
        for (subject, expected) in [
            ("/CN=app", "CN=app"),
            (
                "/C=DE/ST=x/L=y/O=Example/OU=db/CN=app",
                "CN=app,OU=db,O=Example,L=y,ST=x,C=DE",
            ),
            // DER sorts a set of values: CN, then UID.
            (
                "/DC=org/DC=example/UID=app+CN=App",
                "UID=app+CN=App,DC=example,DC=org",
            ),
            (
                "/CN=app/emailAddress=a@example.org",
                "emailAddress=a@example.org,CN=app",
            ),
            (r#"/CN=a,b\+c\"d<e>f;g\\h"#, r#"CN=a\,b\+c\"d\<e\>f\;g\\h"#),
            ("/CN= both ends ", r"CN=\ both ends\ "),
            ("/CN=#1", r"CN=\#1"),
            ("/CN=a#", "CN=a#"),
            ("/CN=M\u{fc}ller", r"CN=M\C3\BCller"),
            ("/CN=\u{1f511}", r"CN=\F0\9F\94\91"),
            ("/CN=a\tb\u{7f}", r"CN=a\09b\7F"),
        ] {
            let (certificate, printed) = create(subject, &["-utf8"]);
            let read = PeerCertificate::read(&certificate).unwrap();
            assert_eq!(read.distinguished_name, printed, "{subject}");
            assert_eq!(read.distinguished_name, expected, "{subject}");
        }
    }

    /// Compares with OpenSSL's own names: `req` writes all of them into one certificate.
    #[test]
    fn every_short_name_is_openssls() {
        let subject: String = SHORT_NAMES
            .iter()
            .map(|(oid, short)| format!("/{oid}={}", if short.ends_with('C') { "DE" } else { "x" }))
            .collect();
        let (certificate, printed) = create(&subject, &[]);
        let read = PeerCertificate::read(&certificate).unwrap();
        assert_eq!(read.distinguished_name, printed);
    }

    #[test]
    fn the_common_name_is_the_first_one_unchanged() {
        let of = |subject: &str| {
            let (certificate, _) = create(subject, &["-utf8"]);
            PeerCertificate::read(&certificate).unwrap().common_name
        };
        assert_eq!(of("/CN=first/CN=second").unwrap(), b"first");
        assert_eq!(of("/CN=M\u{fc}ller").unwrap(), "M\u{fc}ller".as_bytes());
        assert_eq!(of("/O=nobody"), None);
    }

    /// A program that reads the name as a C string would end it at the zero byte.
    #[test]
    fn a_zero_byte_in_the_common_name_is_refused() {
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, "app\0.example");
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        assert_eq!(
            PeerCertificate::read(certificate.der()),
            Err(PeerCertificateError::ZeroByte)
        );
        // With two bytes per character every other byte is zero. PostgreSQL refuses this too.
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        let wide = rcgen::string::BmpString::try_from("app").unwrap();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, rcgen::DnValue::BmpString(wide));
        let certificate = params.self_signed(&key).unwrap();
        assert_eq!(
            PeerCertificate::read(certificate.der()),
            Err(PeerCertificateError::ZeroByte)
        );
    }

    #[test]
    fn unknown_attributes_are_written_as_hexadecimal_and_garbage_is_refused() {
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        // An attribute that has no short name.
        params.distinguished_name.push(
            rcgen::DnType::CustomDnType(vec![1, 2, 3, 4]),
            rcgen::DnValue::Utf8String("app".to_owned()),
        );
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let read = PeerCertificate::read(certificate.der()).unwrap();
        assert_eq!(read.distinguished_name, "1.2.3.4=#0C03617070");
        for length in [0, 1, 40, certificate.der().len() - 1] {
            assert!(PeerCertificate::read(&certificate.der()[..length]).is_err());
        }
    }
}
