//! Passwords asked of a directory: a real slapd, in clear text and with TLS, and servers that mean
//! harm.
#![allow(clippy::unwrap_used)]

#[path = "cluster/mod.rs"]
mod cluster;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustls::ClientConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};
use trunkline::auth::ldap::{LdapOptions, LdapScheme, LdapSettings};
use trunkline::config::Secret;
use trunkline::frontend::ldap::{LdapError, MAX_BYTES, authenticate, tls_config};

use cluster::fresh_address;
use cluster::slapd::{BASE, ROUTER, Slapd, certificates, free_port};

/// More than any step takes here.
const LONG: Duration = Duration::from_secs(10);
/// For servers that never answer.
const SHORT: Duration = Duration::from_millis(400);

/// What the tests log in with.
trait Options {
    fn direct(&self) -> LdapOptions;
    fn search(&self) -> LdapOptions;
    fn search_as_router(&self, password: &str) -> LdapOptions;
    fn tls(&self) -> Arc<ClientConfig>;
}

impl Options for Slapd {
    /// Binds directly as one of the people.
    fn direct(&self) -> LdapOptions {
        LdapOptions {
            server: Some(self.server()),
            prefix: Some("uid=".to_owned()),
            suffix: Some(format!(",ou=people,{BASE}")),
            ..LdapOptions::default()
        }
    }

    fn search(&self) -> LdapOptions {
        LdapOptions {
            server: Some(self.server()),
            basedn: Some(BASE.to_owned()),
            ..LdapOptions::default()
        }
    }

    fn search_as_router(&self, password: &str) -> LdapOptions {
        LdapOptions {
            binddn: Some(ROUTER.to_owned()),
            bindpasswd: Some(Secret::new(password)),
            ..self.search()
        }
    }

    fn tls(&self) -> Arc<ClientConfig> {
        tls_config(Some(vec![self.root.clone()])).unwrap()
    }
}

/// TLS that trusts nobody here.
fn distrustful() -> Arc<ClientConfig> {
    let directory = tempfile::tempdir().unwrap();
    tls_config(Some(vec![certificates(
        directory.path(),
        "elsewhere.example.net",
    )]))
    .unwrap()
}

async fn login(
    options: LdapOptions,
    tls: &Arc<ClientConfig>,
    user: &str,
    password: &str,
) -> Result<(), LdapError> {
    let settings = LdapSettings::new(options).unwrap();
    authenticate(
        &settings,
        tls,
        user.as_bytes(),
        password.as_bytes(),
        Instant::now() + LONG,
    )
    .await
}

#[track_caller]
fn assert_refused(result: &Result<(), LdapError>) {
    assert!(matches!(result, Err(LdapError::Refused(_))), "{result:?}");
}

#[track_caller]
fn assert_unavailable(result: &Result<(), LdapError>, why: &str) {
    match result {
        Err(LdapError::Unavailable(reason)) if reason.contains(why) => {}
        other => panic!("{other:?}, expected to be unavailable because of \"{why}\""),
    }
}

#[tokio::test]
async fn a_direct_bind_tells_right_from_wrong() {
    let slapd = Slapd::start();
    let tls = slapd.tls();
    login(slapd.direct(), &tls, "alice", "alice-secret")
        .await
        .unwrap();
    for (user, password) in [
        ("alice", "Alice-secret"),
        ("alice", ""),
        ("alice", "router-secret"),
        ("nobody", "alice-secret"),
        ("keyless", "x"),
        ("", "alice-secret"),
    ] {
        assert_refused(&login(slapd.direct(), &tls, user, password).await);
    }
    // As long as PostgreSQL lets a password be.
    assert_refused(&login(slapd.direct(), &tls, "alice", &"x".repeat(65_000)).await);
}

#[tokio::test]
async fn a_user_cannot_bind_as_another_entry() {
    let slapd = Slapd::start();
    let tls = slapd.tls();
    // The entry is there, and the password is right: by its own rule it gets in.
    let guests = LdapOptions {
        suffix: Some(format!(",ou=guests,ou=people,{BASE}")),
        ..slapd.direct()
    };
    login(guests, &tls, "outsider", "outsider-secret").await.unwrap();
    assert_refused(&login(slapd.direct(), &tls, "outsider,ou=guests", "outsider-secret").await);
    let whole = LdapOptions {
        prefix: Some(String::new()),
        suffix: None,
        ..slapd.direct()
    };
    assert_refused(&login(whole, &tls, ROUTER, "router-secret").await);
}

#[tokio::test]
async fn a_search_finds_who_is_to_be_bound() {
    let slapd = Slapd::start();
    let tls = slapd.tls();
    login(slapd.search(), &tls, "alice", "alice-secret")
        .await
        .unwrap();
    login(slapd.search(), &tls, "outsider", "outsider-secret")
        .await
        .unwrap();
    for (user, password) in [
        ("alice", "wrong"),
        ("alice", ""),
        ("nobody", "alice-secret"),
        ("twin", "twin-secret"),
        ("ali*", "alice-secret"),
        ("x)(uid=alice", "alice-secret"),
        ("keyless", "x"),
    ] {
        assert_refused(&login(slapd.search(), &tls, user, password).await);
    }

    let by_mail = LdapOptions {
        searchattribute: Some("mail".to_owned()),
        ..slapd.search()
    };
    login(by_mail.clone(), &tls, "alice@example.net", "alice-secret")
        .await
        .unwrap();
    assert_refused(&login(by_mail, &tls, "alice", "alice-secret").await);

    let filter = "(&(objectClass=inetOrgPerson)(|(uid=$username)(mail=$username)))";
    let filtered = LdapOptions {
        searchfilter: Some(filter.to_owned()),
        ..slapd.search()
    };
    login(filtered.clone(), &tls, "alice@example.net", "alice-secret")
        .await
        .unwrap();
    login(filtered, &tls, "alice", "alice-secret").await.unwrap();
    let none = LdapOptions {
        searchfilter: Some("(&(uid=$username)(sn=Nobody))".to_owned()),
        ..slapd.search()
    };
    assert_refused(&login(none, &tls, "alice", "alice-secret").await);

    let elsewhere = LdapOptions {
        basedn: Some("dc=example,dc=org".to_owned()),
        ..slapd.search()
    };
    assert_unavailable(
        &login(elsewhere, &tls, "alice", "alice-secret").await,
        "search: result 32",
    );
}

#[tokio::test]
async fn a_search_looks_as_deep_as_it_may() {
    let slapd = Slapd::start();
    let tls = slapd.tls();
    let url = |rest: &str| LdapOptions {
        url: Some(format!("ldap://{}/ou=people,{BASE}{rest}", slapd.server())),
        ..LdapOptions::default()
    };
    login(url("?uid?sub"), &tls, "outsider", "outsider-secret")
        .await
        .unwrap();
    login(url("?uid?one"), &tls, "alice", "alice-secret")
        .await
        .unwrap();
    login(
        url("??sub?(mail=$username)"),
        &tls,
        "alice@example.net",
        "alice-secret",
    )
    .await
    .unwrap();
    assert_refused(&login(url("?uid?one"), &tls, "outsider", "outsider-secret").await);
    assert_refused(&login(url("?uid"), &tls, "alice", "alice-secret").await);
}

#[tokio::test]
async fn a_search_is_made_by_whom_the_rule_names() {
    let slapd = Slapd::start();
    let tls = slapd.tls();
    login(
        slapd.search_as_router("router-secret"),
        &tls,
        "carol",
        "carol-secret",
    )
    .await
    .unwrap();
    assert_refused(&login(slapd.search_as_router("router-secret"), &tls, "carol", "wrong").await);
    // Nobody in particular may not see her.
    assert_refused(&login(slapd.search(), &tls, "carol", "carol-secret").await);
    // Not the user's error.
    let result = login(
        slapd.search_as_router("stale-secret"),
        &tls,
        "carol",
        "carol-secret",
    )
    .await;
    assert_unavailable(&result, "bind as ldapbinddn: result 49");
    assert!(!format!("{result:?}").contains("-secret"));
}

#[tokio::test]
async fn tls_works_from_the_start_or_when_asked_for() {
    let slapd = Slapd::start();
    let starttls = LdapOptions {
        tls: true,
        ..slapd.search()
    };
    let ldaps = LdapOptions {
        server: Some(slapd.host.to_string()),
        port: Some(slapd.secure),
        scheme: Some(LdapScheme::Ldaps),
        ..slapd.direct()
    };
    for options in [starttls, ldaps] {
        login(options.clone(), &slapd.tls(), "alice", "alice-secret")
            .await
            .unwrap();
        assert_refused(&login(options.clone(), &slapd.tls(), "alice", "wrong").await);
        let result = login(options, &distrustful(), "alice", "alice-secret").await;
        assert_unavailable(&result, "TLS failed: invalid peer certificate");
    }
}

#[tokio::test]
async fn a_certificate_for_another_name_is_refused() {
    let slapd = Slapd::start_as(fresh_address(), "elsewhere.example.net");
    let starttls = LdapOptions {
        tls: true,
        ..slapd.direct()
    };
    let result = login(starttls, &slapd.tls(), "alice", "alice-secret").await;
    assert_unavailable(&result, "certificate not valid for name");
}

#[tokio::test]
async fn another_server_answers_for_one_that_does_not() {
    let slapd = Slapd::start();
    let tls = slapd.tls();
    let down = format!("{}:{}", slapd.host, free_port(slapd.host));
    let only = LdapOptions {
        server: Some(down.clone()),
        ..slapd.direct()
    };
    assert_unavailable(
        &login(only, &tls, "alice", "alice-secret").await,
        &format!("{down}: Connection refused"),
    );

    let silent = Hostile::start(|_| Behaviour::Silence).await;
    for first in [down, silent.address.to_string()] {
        let options = LdapOptions {
            server: Some(format!("{first} {}", slapd.server())),
            ..slapd.direct()
        };
        let settings = LdapSettings::new(options).unwrap();
        let deadline = || Instant::now() + Duration::from_secs(2);
        authenticate(&settings, &tls, b"alice", b"alice-secret", deadline())
            .await
            .unwrap();
        let wrong = authenticate(&settings, &tls, b"alice", b"wrong", deadline()).await;
        assert_refused(&wrong);
    }
}

#[tokio::test]
async fn a_refusal_is_not_taken_to_the_next_server() {
    let slapd = Slapd::start();
    let next = Hostile::start(|_| Behaviour::Say(bound(1, 0))).await;
    let options = LdapOptions {
        server: Some(format!("{} {}", slapd.server(), next.address)),
        ..slapd.direct()
    };
    assert_refused(&login(options, &slapd.tls(), "alice", "wrong").await);
    assert_eq!(next.connections.load(Ordering::SeqCst), 0);
}

// --- Servers that mean harm ----------------------------------------------------------------------

enum Behaviour {
    Silence,
    Say(Vec<u8>),
    /// This again and again, until the connection breaks.
    Repeat(Vec<u8>),
    Close,
}

type Deed = fn(usize) -> Behaviour;

/// A server that does one thing with each message it hears, told the number of the message on its
/// connection.
struct Hostile {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    /// Of the last connection: what it heard, and the bytes it could send; there when the
    /// connection is over.
    report: tokio::sync::Mutex<tokio::sync::mpsc::UnboundedReceiver<(Vec<u8>, usize)>>,
    _stop: oneshot::Sender<()>,
}

impl Hostile {
    async fn start(behaviour: Deed) -> Self {
        let listener = tokio::net::TcpListener::bind((fresh_address(), 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connections);
        let (stop, stopped) = oneshot::channel::<()>();
        let (reports, report) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move {
            let accept = async {
                while let Ok((stream, _)) = listener.accept().await {
                    count.fetch_add(1, Ordering::SeqCst);
                    let reports = reports.clone();
                    tokio::spawn(async move {
                        let _ = reports.send(misbehave(stream, behaviour).await);
                    });
                }
            };
            tokio::select! { () = accept => {}, _ = stopped => {} }
        });
        Self {
            address,
            connections,
            report: tokio::sync::Mutex::new(report),
            _stop: stop,
        }
    }

    async fn report(&self) -> (Vec<u8>, usize) {
        timeout(LONG, async { self.report.lock().await.recv().await })
            .await
            .unwrap()
            .unwrap()
    }

    fn direct(&self) -> LdapOptions {
        LdapOptions {
            server: Some(self.address.to_string()),
            prefix: Some("uid=".to_owned()),
            ..LdapOptions::default()
        }
    }

    fn search(&self) -> LdapOptions {
        LdapOptions {
            server: Some(self.address.to_string()),
            basedn: Some(BASE.to_owned()),
            ..LdapOptions::default()
        }
    }
}

async fn misbehave(mut stream: TcpStream, behaviour: Deed) -> (Vec<u8>, usize) {
    let (mut heard, mut sent) = (Vec::new(), 0);
    let mut chunk = vec![0; 4096];
    for message in 0.. {
        match stream.read(&mut chunk).await {
            Ok(count) if count > 0 => heard.extend_from_slice(&chunk[..count]),
            _ => break,
        }
        match behaviour(message) {
            Behaviour::Silence => {}
            Behaviour::Say(bytes) => {
                sent += bytes.len();
                let _ = stream.write_all(&bytes).await;
            }
            Behaviour::Repeat(bytes) => {
                while stream.write_all(&bytes).await.is_ok() {
                    sent += bytes.len();
                }
                break;
            }
            Behaviour::Close => break,
        }
    }
    (heard, sent)
}

/// One element; `content` below 64 KiB.
fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![tag, 0x82];
    bytes.extend(u16::try_from(content.len()).unwrap().to_be_bytes());
    bytes.extend(content);
    bytes
}

fn message(id: u8, tag: u8, content: &[u8]) -> Vec<u8> {
    let mut body = vec![2, 1, id];
    body.extend(element(tag, content));
    element(0x30, &body)
}

/// An answer to a bind with this result.
fn bound(id: u8, code: u8) -> Vec<u8> {
    message(id, 0x61, &[0x0a, 1, code, 4, 0, 4, 0])
}

async fn ask(hostile: &Hostile, options: LdapOptions) -> Result<(), LdapError> {
    let settings = LdapSettings::new(options).unwrap();
    let tls = distrustful();
    let asked = authenticate(&settings, &tls, b"alice", b"alice-secret", Instant::now() + SHORT);
    let result = timeout(LONG, asked).await.expect("the deadline bounds it");
    assert_eq!(hostile.connections.load(Ordering::SeqCst), 1);
    result
}

#[tokio::test]
async fn a_server_that_is_none_is_unavailable() {
    let cases: [(Deed, &str); 9] = [
        (|_| Behaviour::Silence, "no answer in time"),
        (|_| Behaviour::Close, "closed the connection"),
        (
            |_| Behaviour::Say(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()),
            "not LDAP",
        ),
        (|_| Behaviour::Say(vec![0x30, 0x80, 0, 0]), "not LDAP"),
        (
            |_| Behaviour::Say(vec![0x30, 0x84, 0x7f, 0xff, 0xff, 0xff]),
            "larger than",
        ),
        (|_| Behaviour::Say(vec![0x30, 0x00]), "not LDAP"),
        (|_| Behaviour::Say(bound(2, 0)), "does not belong"),
        (
            |_| Behaviour::Say(message(1, 0x65, &[0x0a, 1, 0, 4, 0, 4, 0])),
            "does not belong",
        ),
        (|_| Behaviour::Say(bound(1, 51)), "result 51"),
    ];
    for (behaviour, why) in cases {
        let hostile = Hostile::start(behaviour).await;
        assert_unavailable(&ask(&hostile, hostile.direct()).await, why);
    }
}

#[tokio::test]
async fn an_answer_nested_without_end_is_read_without_recursion() {
    let hostile = Hostile::start(|_| {
        let mut nested = Vec::new();
        while nested.len() < 60_000 {
            let mut outer = vec![0x30, 0x82];
            outer.extend(u16::try_from(60_000 - nested.len()).unwrap().to_be_bytes());
            nested.extend(outer);
        }
        Behaviour::Say(message(1, 0x61, &nested))
    })
    .await;
    assert_unavailable(&ask(&hostile, hostile.direct()).await, "not LDAP");
}

#[tokio::test]
async fn a_search_without_end_is_given_up() {
    // References to elsewhere, large and small; the anonymous search is the first message.
    let large = Hostile::start(|_| Behaviour::Repeat(message(1, 0x73, &element(4, &[b'x'; 8000])))).await;
    assert_unavailable(
        &ask(&large, large.search()).await,
        &format!("more than {MAX_BYTES} bytes"),
    );
    let small = Hostile::start(|_| Behaviour::Repeat(message(1, 0x73, b""))).await;
    assert_unavailable(&ask(&small, small.search()).await, "does not end");
    for hostile in [large, small] {
        // What fits into the buffers of two sockets besides; the connection is gone.
        let (_, sent) = hostile.report().await;
        assert!(sent < 16 * 1024 * 1024, "{sent} bytes were taken");
    }
}

#[tokio::test]
async fn an_entry_without_a_name_is_nobody() {
    let hostile = Hostile::start(|heard| {
        let mut found = message(1, 0x64, &[4, 0, 0x30, 0]);
        found.extend(message(1, 0x65, &[0x0a, 1, 0, 4, 0, 4, 0]));
        Behaviour::Say(if heard == 0 { found } else { bound(2, 0) })
    })
    .await;
    assert_refused(&ask(&hostile, hostile.search()).await);
    let (heard, _) = hostile.report().await;
    assert!(!heard.windows(12).any(|window| window == b"alice-secret"));
}

#[tokio::test]
async fn nothing_is_sent_in_clear_text_where_tls_is_asked_for() {
    let refuses: Deed = |_| Behaviour::Say(message(1, 0x78, &[0x0a, 1, 2, 4, 0, 4, 0]));
    let pretends: Deed = |_| Behaviour::Say(message(1, 0x78, &[0x0a, 1, 0, 4, 0, 4, 0]));
    let injects: Deed = |_| {
        let mut answers = message(1, 0x78, &[0x0a, 1, 0, 4, 0, 4, 0]);
        answers.extend(bound(2, 0));
        Behaviour::Say(answers)
    };
    for (behaviour, why) in [
        (refuses, "StartTLS: result 2"),
        (pretends, "TLS failed"),
        (injects, "clear text"),
    ] {
        let hostile = Hostile::start(behaviour).await;
        let result = ask(
            &hostile,
            LdapOptions {
                tls: true,
                ..hostile.direct()
            },
        )
        .await;
        assert_unavailable(&result, why);
        let (heard, _) = hostile.report().await;
        for secret in [b"alice-secret".as_slice(), b"uid=alice"] {
            assert!(!heard.windows(secret.len()).any(|window| window == secret));
        }
    }
}

#[tokio::test]
async fn a_server_that_repeats_the_password_is_not_quoted() {
    let hostile = Hostile::start(|_| {
        let mut content = vec![0x0a, 1, 52, 4, 0];
        content.extend(element(4, b"no: alice-secret"));
        Behaviour::Say(message(1, 0x61, &content))
    })
    .await;
    let result = ask(&hostile, hostile.direct()).await;
    assert_unavailable(&result, "result 52");
    assert!(!format!("{result:?}").contains("alice-secret"));
}

#[tokio::test]
async fn a_connection_ends_with_the_login_that_made_it() {
    let hostile = Hostile::start(|_| Behaviour::Silence).await;
    let settings = LdapSettings::new(hostile.direct()).unwrap();
    let tls = distrustful();
    let asked = authenticate(&settings, &tls, b"alice", b"alice-secret", Instant::now() + LONG);
    // The client hangs up.
    assert!(timeout(SHORT, asked).await.is_err());
    hostile.report().await;
}
