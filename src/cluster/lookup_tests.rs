#![allow(clippy::unwrap_used)]

use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio::time::advance;

use super::super::service_account::ServiceAccount;
use super::super::state::{LagLimits, Settings, SourceKind, State};
use super::*;
use crate::auth::lookup::RETRY_AFTER;
use crate::backend::TlsClient;
use crate::backend::query::Row;
use crate::config;

#[tokio::test]
async fn names_that_no_user_can_have_cause_no_query() {
    let (requests, mut received) = mpsc::channel(1);
    let lookups = Lookups::<Lookup> { requests };
    let deadline = Instant::now() + Duration::from_mins(1);
    for name in [&b""[..], b"a\0b", &[b'a'; 256]] {
        let answer = lookups.ask(name, deadline).await.unwrap();
        assert_eq!((answer.found, answer.is_confirmed), (None, true));
    }
    assert!(received.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn a_look_up_ends_at_its_deadline_and_a_full_queue_at_once() {
    let (requests, received) = mpsc::channel(1);
    let lookups = Lookups::<Lookup> { requests };
    let deadline = Instant::now() + Duration::from_secs(1);
    assert_eq!(lookups.ask(b"bob", deadline).await, Err(LookupError::Timeout));
    assert_eq!(lookups.ask(b"bob", deadline).await, Err(LookupError::Busy));
    drop(received);
    assert_eq!(lookups.ask(b"bob", deadline).await, Err(LookupError::Stopped));
}

/// A number for each user. No server is asked, since the tests give the answers.
struct Numbers;

impl Question for Numbers {
    type Found = Option<u8>;
    const WHAT: &'static str = "a number";
    const CAPACITY: usize = 10;
    const MAX_ROWS: usize = 1;

    fn sql(&self) -> &'static str {
        "SELECT $1"
    }

    fn stand_in(&self) -> Option<&'static str> {
        None
    }

    fn ttl(&self) -> Duration {
        Duration::from_mins(1)
    }

    fn read(_: Vec<Row>, _: &[u8]) -> Result<Option<u8>, LookupError> {
        Ok(None)
    }

    fn is_known(found: &Option<u8>) -> bool {
        found.is_some()
    }

    fn weight(_: &Option<u8>) -> usize {
        1
    }
}

/// The service for a cluster that has not been probed yet: every query fails, unless the test
/// answers first.
struct Served {
    service: Service<Numbers>,
    running: Running<Option<u8>>,
}

impl Served {
    fn new() -> Self {
        let second = Duration::from_secs(1);
        let server_tls = config::ServerTls {
            sslmode: config::SslMode::Disable,
            sslnegotiation: config::SslNegotiation::Postgres,
            channel_binding: config::ChannelBinding::Prefer,
            roots: None,
            client_certificate: None,
            server_name: None,
            require_auth: config::RequireAuth::Safe,
        };
        let tls = TlsClient::new(&server_tls).unwrap();
        let config = config::Cluster {
            name: Arc::from("main"),
            source: config::Source::Servers(Vec::new()),
            service_account: config::ServiceAccount {
                user: "trunkline".into(),
                password: None,
                dbname: "postgres".into(),
                pool_size: 1,
                timeout: second * 5,
            },
            server_tls,
            server: config::ServerOptions {
                connect_timeout: second,
                keepalive: None,
                tcp_user_timeout: None,
            },
            probe: config::Probe {
                interval: second,
                timeout: second,
                rise: 2,
                fall: 3,
            },
            max_connections: 0,
            local_member: config::LocalMember::None,
            placement: config::Placement::even(),
            etcd: None,
        };
        let settings = Settings {
            cluster: Arc::from("main"),
            kind: SourceKind::Fixed,
            rise: 2,
            fall: 3,
            probe_interval: second,
            probe_timeout: second,
            poll_interval: second,
            fast_interval: second,
            placement: config::Placement::even(),
            limits: LagLimits::new(),
        };
        let (_, snapshots) = watch::channel(State::new(settings, Instant::now()).snapshot());
        let account = Arc::new(ServiceAccount::new(Arc::new(config), tls));
        let metrics = Arc::new(Metrics::register(&mut Registry::default()));
        let (_, service) = service(Numbers, Arc::new(Pools::new(account, snapshots)), metrics);
        Self {
            service,
            running: Running::new(),
        }
    }

    fn ask(&mut self, user: &str) -> oneshot::Receiver<Asked<Option<u8>>> {
        let (answer, answered) = oneshot::channel();
        self.service
            .begin(user.as_bytes().to_vec(), answer, &mut self.running);
        answered
    }

    /// Ends the running query about a user with this result.
    fn end(&mut self, user: &str, answer: &Result<Option<u8>, LookupError>) {
        self.service
            .finish(user.as_bytes().to_vec(), answer, &mut self.running);
    }

    fn is_asked(&self, user: &str) -> bool {
        self.service.in_flight.contains_key(user.as_bytes())
    }
}

#[allow(clippy::unnecessary_wraps)] // The tests compare this type.
fn answer(found: Option<u8>, is_confirmed: bool) -> Asked<Option<u8>> {
    Ok(LookupAnswer { found, is_confirmed })
}

fn outage() -> Result<Option<u8>, LookupError> {
    Err(LookupError::Unavailable("down".to_owned()))
}

const MS: Duration = Duration::from_millis(1);

#[tokio::test(start_paused = true)]
async fn an_outage_leaves_the_answer_unconfirmed_for_known_and_unknown_users() {
    let mut served = Served::new();
    for (user, found) in [("app", Some(1)), ("nobody", None)] {
        let first = served.ask(user);
        served.end(user, &Ok(found));
        assert_eq!(first.await.unwrap(), answer(found, true));
        for _ in 0..3 {
            let again = served.ask(user);
            assert!(served.is_asked(user));
            served.end(user, &outage());
            assert_eq!(again.await.unwrap(), answer(found, false));
            // The failure is remembered for a tenth of a second.
            advance(RETRY_AFTER.saturating_sub(MS)).await;
            assert_eq!(served.ask(user).await.unwrap(), answer(found, false));
            assert!(!served.is_asked(user), "an outage costs no query for each login");
            advance(MS).await;
        }
        let back = served.ask(user);
        served.end(user, &Ok(Some(2)));
        assert_eq!(back.await.unwrap(), answer(Some(2), true));
    }
    let never = served.ask("other");
    served.end("other", &outage());
    assert!(never.await.unwrap().is_err());
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_late_is_unconfirmed_and_remembered_when_it_comes() {
    let mut served = Served::new();
    let first = served.ask("app");
    served.end("app", &Ok(Some(1)));
    assert_eq!(first.await.unwrap(), answer(Some(1), true));
    let late = served.ask("app");
    advance(CONFIRM_WITHIN.saturating_sub(MS)).await;
    let mut later = served.ask("app");
    advance(MS).await;
    served.service.answer_late();
    assert_eq!(late.await.unwrap(), answer(Some(1), false));
    assert!(later.try_recv().is_err(), "this login has not waited long enough");
    assert_eq!(
        served.ask("app").await.unwrap(),
        answer(Some(1), false),
        "no caller waits any more"
    );
    advance(CONFIRM_WITHIN).await;
    served.service.answer_late();
    assert_eq!(later.await.unwrap(), answer(Some(1), false));
    served.end("app", &Ok(Some(2)));
    let next = served.ask("app");
    served.end("app", &outage());
    assert_eq!(next.await.unwrap(), answer(Some(2), false));
}

/// A login's answer includes every change made before it. Only one query runs, no matter how many
/// logins ask.
#[tokio::test(start_paused = true)]
async fn an_answer_is_asked_for_after_the_login_and_shared_by_all_who_wait_for_it() {
    let mut served = Served::new();
    for known in [false, true] {
        let mut first = served.ask("app");
        let later: Vec<_> = (0..1000).map(|_| served.ask("app")).collect();
        served.end("app", &Ok(Some(1)));
        assert_eq!(first.try_recv().unwrap(), answer(Some(1), true), "{known}");
        assert!(
            served.is_asked("app"),
            "its answer may be older than these logins"
        );
        served.end("app", &Ok(Some(2)));
        for mut later in later {
            assert_eq!(later.try_recv().unwrap(), answer(Some(2), true));
        }
        assert!(!served.is_asked("app"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_query_that_fails_is_repeated_for_logins_that_came_later() {
    let mut served = Served::new();
    let first = served.ask("app");
    let second = served.ask("app");
    served.end("app", &outage());
    assert!(first.await.unwrap().is_err());
    served.end("app", &Ok(Some(1)));
    assert_eq!(second.await.unwrap(), answer(Some(1), true));
}
