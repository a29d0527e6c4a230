//! Rules that cannot work are refused before anybody comes: all of them, each with its file and
//! line.

use super::*;
use crate::cluster::fresh_address;

const CLUSTER: &str = "clusters:\n  main:\n    servers: [{name: s1, host: 127.0.0.1, port: 1}]\n    \
                       service_account: {user: trunkline, password_file: DIR/password}\n";

/// What `trunkline check` says of such a section `auth:`, and how it ends.
fn check(dir: &Path, auth: &str, tls: &str) -> (Option<i32>, String) {
    check_among(dir, auth, tls, &[])
}

/// The same with more in its environment.
fn check_among(dir: &Path, auth: &str, tls: &str, environment: &[(&str, &str)]) -> (Option<i32>, String) {
    secret(dir, "password", "trunkline");
    let options = Options {
        clusters: Some(CLUSTER.replace("DIR", &dir.display().to_string())),
        extra: format!("auth:\n{auth}"),
        tls: Some(tls.to_owned()),
        ..Options::default()
    };
    let text = Router::configuration(None, &options, dir, fresh_address());
    let config = write(dir, "trunkline.yaml", &text);
    let output = output(
        Command::new(env!("CARGO_BIN_EXE_trunkline"))
            .args(["check", "-c"])
            .arg(config)
            .envs(environment.iter().copied()),
    );
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

/// A line of `pg_hba.conf`, and words of the fault it is, if it is one.
const LINES: &[(&str, &str)] = &[
    ("host all with_verifier all scram-sha-256", ""),
    (
        "host all stranger all trust",
        "no credential to log into the servers as stranger",
    ),
    ("host all with_password all trust", ""),
    (
        "hostssl all stranger all cert",
        "no credential to log into the servers as stranger",
    ),
    (
        "local all stranger peer",
        "no credential to log into the servers as stranger",
    ),
    ("local all with_password,with_verifier peer", "as with_verifier"),
    (
        "host all stranger all ldap ldapserver=127.0.0.1 ldapprefix=a",
        "as stranger",
    ),
    ("host all +staff all trust", "as +staff"),
    ("host all all all trust", "as all"),
    ("host all /^a all trust", "as /^a"),
    ("host all with_credential all trust", ""),
    (
        "host all to_pass_on all ldap ldapserver=127.0.0.1 ldapprefix=a",
        "",
    ),
    ("hostssl all to_pass_on all cert", "as to_pass_on"),
    (
        "host all all all scram",
        "invalid authentication method \"scram\"",
    ),
    (
        "host all all all gss include_realm=0",
        "method gss is not supported",
    ),
    ("host all all all sspi", "method sspi is not supported"),
    ("host all all all pam pamservice=x", "method pam is not supported"),
    ("host all all all bsd", "method bsd is not supported"),
    ("host all all all ident", "method ident is not supported"),
    (
        "host all all all radius radiusservers=a radiussecrets=b",
        "method radius is not supported",
    ),
    (
        "host all all all oauth issuer=a scope=b",
        "method oauth is not supported",
    ),
    ("host all all all peer", "\"local\" lines only"),
    ("host all all all cert", "\"hostssl\" lines only"),
    ("local all with_password peer map=missing", "no map \"missing\""),
    (
        "hostssl all with_password all scram-sha-256 clientcert=verify-ca",
        "set tls.client_ca_file",
    ),
    (
        "hostssl all with_password all scram-sha-256 clientcert=verify-full",
        "set tls.client_ca_file",
    ),
    (
        "hostssl all with_password all scram-sha-256 clientcert=1",
        "clientcert",
    ),
    (
        "host all with_password all scram-sha-256 clientcert=verify-ca",
        "clientcert",
    ),
    ("host all /(unclosed all scram-sha-256", "regular expression"),
    ("host /[b-a] all all scram-sha-256", "regular expression"),
    ("host all all 10.0.0.0/33 scram-sha-256", "invalid CIDR mask"),
    ("host all all 10.0.0.0 255.0.0.x scram-sha-256", "invalid IP mask"),
    ("host all all 10.0.0.0", "netmask"),
    (
        "hosts all all all scram-sha-256",
        "invalid connection type \"hosts\"",
    ),
    ("host all", "end-of-line before role specification"),
    ("host all all all ldap ldapserver=127.0.0.1", "ldapbasedn"),
    ("host all all all ldap ldapprefix=a", "ldapserver"),
    ("host all all all scram-sha-256 color=red", "color"),
    ("include missing.conf", "missing.conf"),
    ("include_if_exists missing.conf", ""),
    ("include_dir missing", "missing"),
    ("host all @missing all scram-sha-256", "missing"),
    ("include loop.conf", ""),
    ("include bad.conf", ""),
    ("host all all all \\", ""),
    ("  reject", ""),
];

#[test]
fn all_rules_that_cannot_work_are_told_at_once_with_their_lines() {
    let dir = open_directory();
    let path = dir.path();
    let lines: Vec<&str> = LINES.iter().map(|(line, _)| *line).collect();
    let hba = write(path, "pg_hba.conf", &lines.join("\n"));
    let looping = write(path, "loop.conf", "# on and on\ninclude loop.conf\n");
    let bad = write(path, "bad.conf", "\nhost all all all nothing\n");
    let ident = write(path, "pg_ident.conf", "os root app\n");
    let verifier = format!(
        "SCRAM-SHA-256$4096:{0}==${1}=:{1}=",
        "A".repeat(22),
        "A".repeat(43)
    );
    let users = secret(
        path,
        "users",
        &format!("\"with_password\" \"x\"\n\"with_verifier\" \"{verifier}\""),
    );
    let auth = |hba: &Path, ident: &Path, users: &Path| {
        format!(
            "  hba_file: {}\n  ident_file: {}\n  users_file: {}\n  server_credentials:\n  \
             - {{users: [with_credential], server_user: reader, password_file: {}}}\n  \
             - {{users: [to_pass_on], password: client}}\n",
            hba.display(),
            ident.display(),
            users.display(),
            path.join("password").display()
        )
    };
    let (code, told) = check(path, &auth(&hba, &ident, &users), "");
    assert_eq!(code, Some(1), "{told}");
    let mut wrong = Vec::new();
    let mut expect = |place: String, words: &str, line: &str| {
        let said: Vec<&str> = told.lines().filter(|said| said.starts_with(&place)).collect();
        let as_expected = match words {
            "" => said.is_empty(),
            words => said.iter().any(|said| said.contains(words)),
        };
        if !as_expected {
            wrong.push(format!("{line}\n  expected: {words:?}\n  told: {said:?}"));
        }
    };
    for (index, (line, words)) in LINES.iter().enumerate() {
        expect(format!("{}:{}: ", hba.display(), index + 1), words, line);
    }
    expect(
        format!("{}:2: ", looping.display()),
        "loop.conf",
        "a file that includes itself",
    );
    expect(
        format!("{}:2: ", bad.display()),
        "invalid authentication method",
        "a file that is included",
    );
    assert!(wrong.is_empty(), "{}\n\nof {told}", wrong.join("\n"));

    // With faults in the other files too, nothing is said of what they may have.
    let ident = write(path, "pg_ident.conf", "os root app\nos /( app\nos\n");
    let users = secret(path, "users", "\"with_password\" \"x\"\nbroken");
    let (code, told) = check(path, &auth(&hba, &ident, &users), "");
    assert_eq!(code, Some(1), "{told}");
    for (place, words) in [
        (format!("{}:2: ", ident.display()), "regular expression"),
        (format!("{}:3: ", ident.display()), "end-of-line"),
        (format!("{}: line 2: ", users.display()), "double quotes"),
        (format!("{}:9: ", hba.display()), "as all"),
        (format!("{}:14: ", hba.display()), "invalid authentication method"),
    ] {
        let is_told = |said: &str| said.starts_with(&place) && said.contains(words);
        assert!(told.lines().any(is_told), "{place} {words} is not in {told}");
    }
    assert!(
        !told.contains("missing\" in auth.ident_file") && !told.contains("as stranger"),
        "{told}"
    );
}

#[test]
fn rules_that_work_are_right_and_those_that_never_match_are_pointed_out() {
    let dir = open_directory();
    let path = dir.path();
    let hba = write(
        path,
        "pg_hba.conf",
        "hostgssenc all all all scram-sha-256\nhostssl all all all cert map=os\nlocal all all peer map=os\n\
         host all all all ldap ldapserver=127.0.0.1 ldapbasedn=\"dc=example\"\nhost all all all trust clientcert=no-verify\n",
    );
    let ident = write(path, "pg_ident.conf", "os root all\n");
    let auth = format!(
        "  hba_file: {}\n  ident_file: {}\n  server_credentials: [{{users: all, password_file: {}}}]\n",
        hba.display(),
        ident.display(),
        path.join("password").display()
    );
    let ca = format!("  client_ca_file: {}\n", Clients::shared().ca_file());
    let (code, told) = check(path, &auth, &(Certificates::shared().yaml() + &ca));
    assert_eq!(code, Some(1), "clientcert=no-verify: {told}");
    assert!(told.contains(&format!("{}:5: ", hba.display())), "{told}");
    let text = fs::read_to_string(&hba)
        .unwrap()
        .replace(" clientcert=no-verify", "");
    write(path, "pg_hba.conf", &text);
    let (code, told) = check(path, &auth, &(Certificates::shared().yaml() + &ca));
    assert_eq!(code, Some(0), "{told}");
    assert!(
        told.contains(&format!("{}:1: this rule never matches", hba.display())),
        "{told}"
    );
}

/// As in a container of Debian's, which has no certificates of authorities.
#[test]
fn the_systems_authorities_are_needed_only_where_a_directory_is_asked_by_tls() {
    let dir = open_directory();
    let path = dir.path();
    let none = path.join("none");
    let none = none.to_str().unwrap();
    let nowhere = [("SSL_CERT_FILE", none), ("SSL_CERT_DIR", none)];
    let (code, told) = check_among(path, "  cache_ttl: 60s\n", "", &nowhere);
    assert_eq!(code, Some(0), "{told}");

    let hba = write(
        path,
        "pg_hba.conf",
        "host all all all ldap ldapserver=127.0.0.1 ldapprefix=a\n",
    );
    let auth = format!(
        "  hba_file: {}\n  server_credentials: [{{users: all, password: client}}]\n",
        hba.display()
    );
    let (code, told) = check_among(path, &auth, "", &nowhere);
    assert_eq!(code, Some(0), "{told}");
    for tls in ["ldapscheme=ldaps", "ldaptls=1"] {
        let rule = format!("host all all all ldap ldapserver=127.0.0.1 ldapprefix=a {tls}\n");
        write(path, "pg_hba.conf", &rule);
        let (code, told) = check_among(path, &auth, "", &nowhere);
        assert_eq!(code, Some(1), "{tls}: {told}");
        assert!(
            told.contains("no usable root certificate for LDAP"),
            "{tls}: {told}"
        );
    }
}
