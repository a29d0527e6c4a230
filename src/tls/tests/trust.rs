//! Who is believed.

use super::*;

/// Somebody in between has the certificate, which is public, and signs with a key of his own.
#[test]
fn a_certificate_without_its_key_is_refused_whatever_is_verified() {
    let dir = Dir::new();
    dir.own("true", EC, "");
    dir.own("false", EC, "");
    dir.own("true-rsa", "rsa:2048", "");
    dir.own("false-rsa", "rsa:2048", "");
    dir.own("curve", "ec -pkeyopt ec_paramgen_curve:P-384", "");
    dir.own("false-curve", "ec -pkeyopt ec_paramgen_curve:P-384", "");
    dir.own("ca", EC, "");
    dir.signed("old", "ca", None);
    for (shown, other) in [
        ("true", "false"),
        ("true-rsa", "false-rsa"),
        ("curve", "false-curve"),
        ("old", "false"),
    ] {
        let certificate = dir.certificate(shown);
        for check in [NameCheck::Nothing, NameCheck::Chain] {
            let client = client(check, &[certificate.clone(), dir.certificate("ca")], None);
            for version in VERSIONS {
                let what = format!("{shown}, {check:?}, {version:?}");
                let honest = server(vec![certificate.clone()], &dir.key(shown), version, None);
                assert_eq!(shake(&client, &honest, "true"), Ok(()), "{what}");
                let false_one = server(vec![certificate.clone()], &dir.key(other), version, None);
                let error = shake(&client, &false_one, "true").unwrap_err();
                let Error::InvalidCertificate(error) = error else {
                    panic!("{what}: {error}");
                };
                assert_eq!(error, rustls::CertificateError::BadSignature, "{what}");
            }
        }
    }
    // A key of another kind: no algorithm of its own fits the certificate.
    let client = client(NameCheck::Nothing, &[], None);
    for version in VERSIONS {
        let false_one = server(
            vec![dir.certificate("true-rsa")],
            &dir.key("false"),
            version,
            None,
        );
        assert!(shake(&client, &false_one, "true").is_err(), "{version:?}");
    }
}

/// The same of a client: a certificate that it has no key of.
#[test]
fn a_clients_certificate_without_its_key_is_refused() {
    let dir = Dir::new();
    dir.own("ca", EC, "");
    dir.signed("one", "ca", Some("extendedKeyUsage=clientAuth"));
    dir.signed("old", "ca", None);
    dir.own("other", EC, "");
    let server_certificate = dir.certificate("other");
    for shown in ["one", "old"] {
        for version in VERSIONS {
            let clients = ClientVerifier::new(
                Authorities::new(&[dir.certificate("ca")]).unwrap(),
                &[],
                &provider(),
            );
            let server = server(
                vec![server_certificate.clone()],
                &dir.key("other"),
                version,
                Some(clients.unwrap()),
            );
            let with = |key: &str| {
                let own = Some((vec![dir.certificate(shown)], dir.key(key)));
                shake(&client(NameCheck::Nothing, &[], own), &server, "db")
            };
            assert_eq!(with(shown), Ok(()), "{shown} {version:?}");
            let error = explain(&with("other").unwrap_err());
            assert!(error.contains("BadSignature"), "{shown} {version:?}: {error}");
        }
    }
}

/// What becomes of a client that shows `chain`, where `trusted` and `lists` are configured.
fn as_client(dir: &Dir, trusted: &[&str], lists: &[&str], chain: &[&str]) -> Result<(), String> {
    let certificates: Vec<_> = trusted.iter().map(|name| dir.certificate(name)).collect();
    let lists: Vec<_> = lists
        .iter()
        .map(|name| CertificateRevocationListDer::from_pem_file(dir.path(name)).unwrap())
        .collect();
    let clients = ClientVerifier::new(Authorities::new(&certificates).unwrap(), &lists, &provider());
    if !dir.path("server.key").exists() {
        dir.own("server", EC, "");
    }
    let server = server(
        vec![dir.certificate("server")],
        &dir.key("server"),
        &TLS13,
        Some(clients.unwrap()),
    );
    let own = (
        chain.iter().map(|name| dir.certificate(name)).collect(),
        dir.key(chain[0]),
    );
    shake(&client(NameCheck::Nothing, &[], Some(own)), &server, "db").map_err(|error| explain(&error))
}

/// What becomes of a server that shows `chain`.
fn as_server(
    dir: &Dir,
    check: NameCheck,
    trusted: &[&str],
    chain: &[&str],
    name: &str,
) -> Result<(), String> {
    let certificates: Vec<_> = trusted.iter().map(|name| dir.certificate(name)).collect();
    let server = server(
        chain.iter().map(|name| dir.certificate(name)).collect(),
        &dir.key(chain[0]),
        &TLS13,
        None,
    );
    shake(&client(check, &certificates, None), &server, name).map_err(|error| explain(&error))
}

fn refused(result: &Result<(), String>, words: &str) {
    let error = result.as_ref().unwrap_err();
    assert!(error.contains(words), "{words:?} in {error}");
}

/// `expired.crt` and `expired.key`, an authority whose time is over; `openssl req` makes none.
fn expired(dir: &Dir) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut parameters = rcgen::CertificateParams::new(Vec::new()).unwrap();
    parameters
        .distinguished_name
        .push(rcgen::DnType::CommonName, "expired");
    parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    parameters.not_before = rcgen::date_time_ymd(2020, 1, 1);
    parameters.not_after = rcgen::date_time_ymd(2021, 1, 1);
    let certificate = parameters.self_signed(&key).unwrap();
    std::fs::write(dir.path("expired.crt"), certificate.pem()).unwrap();
    std::fs::write(dir.path("expired.key"), key.serialize_pem()).unwrap();
}

/// OpenSSL refuses each of these authorities; rustls looks at the name and the key of an authority
/// only.
#[test]
fn an_expired_authority_or_a_certificate_of_none_may_not_sign() {
    let dir = Dir::new();
    expired(&dir);
    // They are made below.
    let now = i64::try_from(rustls::pki_types::UnixTime::now().as_secs()).unwrap() + 60;
    dir.own("good", EC, "");
    dir.own("leaf", EC, " -addext basicConstraints=critical,CA:FALSE");
    dir.own("unsigning", EC, " -addext keyUsage=digitalSignature");
    dir.own("mail", EC, " -addext extendedKeyUsage=emailProtection");
    dir.own(
        "short",
        EC,
        " -addext basicConstraints=critical,CA:TRUE,pathlen:0",
    );
    let usages = "extendedKeyUsage=clientAuth,serverAuth\nsubjectAltName=DNS:db";
    for (authority, words) in [
        ("expired", "expired on"),
        ("leaf", "is none of an authority"),
        ("unsigning", "is none of an authority"),
        ("mail", "is not for this purpose"),
    ] {
        let name = format!("by-{authority}");
        dir.signed(&name, authority, Some(usages));
        refused(&as_client(&dir, &[authority], &[], &[&name]), words);
        refused(
            &as_server(&dir, NameCheck::Chain, &[authority], &[&name], "db"),
            words,
        );
        // One that is good beside it changes nothing.
        refused(&as_client(&dir, &[authority, "good"], &[], &[&name]), words);
        // Version 1, which is looked at elsewhere.
        let old = format!("old-{authority}");
        dir.signed(&old, authority, None);
        refused(&as_client(&dir, &[authority], &[], &[&old]), words);
        let warnings = Authorities::new(&[dir.certificate(authority)])
            .unwrap()
            .warnings(now);
        assert_eq!(warnings.len(), usize::from(authority != "mail"), "{warnings:?}");
    }
    dir.signed("by-good", "good", Some(usages));
    assert_eq!(as_client(&dir, &["expired", "good"], &[], &["by-good"]), Ok(()));
    // Between authority and client: each has to be an authority, and may not be too many.
    dir.signed(
        "between",
        "good",
        Some("basicConstraints=CA:TRUE\nkeyUsage=digitalSignature"),
    );
    dir.signed("below", "between", Some(usages));
    refused(
        &as_client(&dir, &["good"], &[], &["below", "between"]),
        "is none of an authority",
    );
    dir.signed("sub", "short", Some("basicConstraints=CA:TRUE"));
    dir.signed("subsub", "sub", Some(usages));
    refused(
        &as_client(&dir, &["short"], &[], &["subsub", "sub"]),
        "allows fewer authorities below it",
    );
}

#[test]
fn what_is_configured_is_trusted_byte_for_byte() {
    let dir = Dir::new();
    // As `openssl req -x509` makes it: CA:TRUE.
    dir.own("pin", EC, " -addext subjectAltName=DNS:db");
    dir.own("ca", EC, "");
    dir.signed("old", "ca", None);
    dir.own("other", EC, " -addext subjectAltName=DNS:db");
    assert_eq!(
        as_server(&dir, NameCheck::ChainAndName, &["pin"], &["pin"], "db"),
        Ok(())
    );
    refused(
        &as_server(&dir, NameCheck::ChainAndName, &["pin"], &["pin"], "elsewhere"),
        "not valid for name",
    );
    assert_eq!(as_client(&dir, &["pin"], &[], &["pin"]), Ok(()));
    // Itself, not its authority.
    assert_eq!(as_client(&dir, &["old"], &[], &["old"]), Ok(()));
    assert_eq!(
        as_server(&dir, NameCheck::Chain, &["old"], &["old"], "db"),
        Ok(())
    );
    for result in [
        as_client(&dir, &["pin"], &[], &["other"]),
        as_server(&dir, NameCheck::Chain, &["pin"], &["other"], "db"),
    ] {
        refused(&result, "no trusted authority signed it directly");
    }
}

#[test]
fn what_openssl_takes_is_taken_where_an_authority_signed_it_directly() {
    let dir = Dir::new();
    dir.own("ca", EC, "");
    dir.own("stranger", EC, "");
    dir.signed("old", "ca", None);
    dir.signed(
        "authority",
        "ca",
        Some("basicConstraints=critical,CA:TRUE\nsubjectAltName=DNS:db"),
    );
    dir.signed("middle", "ca", Some("basicConstraints=critical,CA:TRUE"));
    dir.signed("old-below", "middle", None);
    for name in ["old", "authority"] {
        assert_eq!(as_client(&dir, &["ca"], &[], &[name]), Ok(()), "{name}");
        assert_eq!(
            as_server(&dir, NameCheck::Chain, &["ca"], &[name], "db"),
            Ok(()),
            "{name}"
        );
    }
    refused(&as_client(&dir, &["stranger"], &[], &["old"]), "version 1");
    refused(
        &as_client(&dir, &["ca"], &[], &["old-below", "middle"]),
        "sign it again with extensions",
    );
    // The same name as the authority's, but another key.
    dir.openssl(&format!(
        "req -x509 -nodes -newkey {EC} -keyout forged.key -out forged.crt -subj /CN=ca"
    ));
    dir.signed("new-forged", "forged", Some("basicConstraints=CA:FALSE"));
    for result in [
        as_client(&dir, &["ca"], &[], &["new-forged"]),
        as_server(&dir, NameCheck::Chain, &["ca"], &["new-forged"], "db"),
    ] {
        refused(&result, "another one has the same name");
    }
    dir.signed("old-forged", "forged", None);
    refused(&as_client(&dir, &["ca"], &[], &["old-forged"]), "version 1");
    refused(
        &as_server(&dir, NameCheck::Chain, &["ca"], &["old-forged"], "db"),
        "version 1",
    );
}

#[test]
fn usages_are_checked_as_openssl_does() {
    let dir = Dir::new();
    dir.own("ca", EC, "");
    for (name, usage, client, server) in [
        ("encipher", "keyUsage=keyEncipherment", false, true),
        ("agree", "keyUsage=keyAgreement", true, true),
        ("repudiate", "keyUsage=nonRepudiation", false, false),
        ("sign", "keyUsage=digitalSignature", true, true),
        ("server", "extendedKeyUsage=serverAuth", false, true),
        ("client", "extendedKeyUsage=clientAuth", true, false),
        ("any", "keyUsage=digitalSignature,keyCertSign", true, true),
    ] {
        dir.signed(name, "ca", Some(usage));
        let seen = as_client(&dir, &["ca"], &[], &[name]);
        assert_eq!(seen.is_ok(), client, "{name}: {seen:?}");
        if let Err(error) = seen {
            assert!(
                error.contains("key usage does not allow it to identify a client"),
                "{error}"
            );
        }
        let seen = as_server(&dir, NameCheck::Chain, &["ca"], &[name], "db");
        assert_eq!(seen.is_ok(), server, "{name}: {seen:?}");
    }
    dir.own("self", EC, " -addext keyUsage=keyCertSign");
    refused(&as_client(&dir, &["self"], &[], &["self"]), "its key usage");
}

/// As libpq: the common name counts where no name of the kind is in the `subjectAltName`.
#[test]
fn a_name_only_in_the_common_name_counts_as_for_libpq() {
    let dir = Dir::new();
    dir.own("ca", EC, "");
    dir.signed("db.example", "ca", Some("basicConstraints=CA:FALSE"));
    dir.signed("*.example", "ca", Some("basicConstraints=CA:FALSE"));
    dir.signed("127.0.0.1", "ca", Some("basicConstraints=CA:FALSE"));
    dir.signed("v1.example", "ca", None);
    dir.signed("alt.example", "ca", Some("subjectAltName=DNS:other.example"));
    dir.signed("ip.example", "ca", Some("subjectAltName=IP:127.0.0.2"));
    for (shown, name, fits) in [
        ("db.example", "db.example", true),
        ("db.example", "DB.Example", true),
        ("db.example", "x.db.example", false),
        ("*.example", "db.example", false),
        ("127.0.0.1", "127.0.0.1", true),
        ("127.0.0.1", "127.0.0.2", false),
        ("v1.example", "v1.example", true),
        ("v1.example", "v2.example", false),
        ("alt.example", "alt.example", false),
        ("alt.example", "other.example", true),
        ("ip.example", "ip.example", true),
        ("ip.example", "127.0.0.2", true),
    ] {
        let seen = as_server(&dir, NameCheck::ChainAndName, &["ca"], &[shown], name);
        assert_eq!(seen.is_ok(), fits, "{shown} as {name}: {seen:?}");
    }
}

#[test]
fn revocation_lists_count_for_certificates_that_are_trusted_themselves() {
    let dir = Dir::new();
    dir.own("ca", EC, "");
    dir.signed("good", "ca", Some("keyUsage=digitalSignature"));
    dir.signed("bad", "ca", Some("keyUsage=digitalSignature"));
    dir.own("self", EC, "");
    std::fs::write(dir.path("index.txt"), "").unwrap();
    std::fs::write(
        dir.path("ca.cnf"),
        "[ca]\ndefault_ca=d\n[d]\ndatabase=index.txt\ndefault_md=sha256\ndefault_crl_days=30\ncrlnumber=number\n\
         crl_extensions=e\n[e]\nauthorityKeyIdentifier=keyid:always\n",
    )
    .unwrap();
    std::fs::write(dir.path("number"), "01").unwrap();
    dir.openssl("ca -config ca.cnf -keyfile ca.key -cert ca.crt -revoke bad.crt");
    dir.openssl("ca -config ca.cnf -keyfile ca.key -cert ca.crt -gencrl -out list");
    let lists = &["list"];
    assert_eq!(as_client(&dir, &["ca"], lists, &["good"]), Ok(()));
    refused(&as_client(&dir, &["ca"], lists, &["bad"]), "Revoked");
    assert_eq!(as_client(&dir, &["ca", "good"], lists, &["good"]), Ok(()));
    refused(&as_client(&dir, &["ca", "bad"], lists, &["bad"]), "Revoked");
    refused(
        &as_client(&dir, &["ca", "self"], lists, &["self"]),
        "UnknownRevocationStatus",
    );
    // Nothing tells whether a version 1 certificate is revoked.
    dir.signed("old", "ca", None);
    refused(&as_client(&dir, &["ca"], lists, &["old"]), "version 1");
}

#[test]
fn a_version_1_certificate_and_its_key_belong_together() {
    let dir = Dir::new();
    dir.own("ca", EC, "");
    dir.signed("old", "ca", None);
    let pair = |key: &str| certified(&[dir.certificate("old")], &dir.key(key), &provider()).map(|_| ());
    assert_eq!(pair("old"), Ok(()));
    assert!(matches!(pair("ca").unwrap_err(), Error::InconsistentKeys(_)));
}
