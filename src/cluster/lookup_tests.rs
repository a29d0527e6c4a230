#![allow(clippy::unwrap_used)]

use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio::time::advance;

use super::super::account::Account;
use super::super::state::{LagLimits, Settings, SourceKind, State};
use super::*;
use crate::backend::TlsClient;
use crate::backend::query::Row;
use crate::config;

#[tokio::test]
async fn names_that_no_user_can_have_are_not_asked() {
    let (requests, mut received) = mpsc::channel(1);
    let lookups = Lookups::<Lookup> { requests };
    let deadline = Instant::now() + Duration::from_mins(1);
    for name in [&b""[..], b"a\0b", b"\xff", &[b'a'; 256]] {
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

/// A number for each user; asked of nobody, for the tests give the answers.
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

/// The service before a cluster that nobody has looked at yet: whatever is asked fails, unless the test answers first.
struct Served {
    service: Service<Numbers>,
    running: Running<Option<u8>>,
}

impl Served {
    fn new() -> Self {
        let second = Duration::from_secs(1);
        let server_tls = config::ServerTls {
            sslmode: config::SslMode::Disable,
            sslnegotiation: config::SslNegotiation::default(),
            channel_binding: config::ChannelBinding::default(),
            roots: None,
            client_certificate: None,
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
            placement: config::Placement::default(),
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
            placement: config::Placement::default(),
            limits: LagLimits::new(),
        };
        let (_, snapshots) = watch::channel(State::new(settings, Instant::now()).snapshot());
        let account = Arc::new(Account::new(Arc::new(config), tls));
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

    /// The query about a user that is under way ends so.
    fn end(&mut self, user: &str, answer: &Result<Option<u8>, LookupError>) {
        self.service
            .finish(user.as_bytes().to_vec(), answer, &mut self.running);
    }

    fn is_asked(&self, user: &str) -> bool {
        self.service.in_flight.contains_key(user.as_bytes())
    }
}

#[allow(clippy::unnecessary_wraps)] // In the shape it is compared in.
fn answer(found: Option<u8>, is_confirmed: bool) -> Asked<Option<u8>> {
    Ok(Answer { found, is_confirmed })
}

fn outage() -> Result<Option<u8>, LookupError> {
    Err(LookupError::Unavailable("down".to_owned()))
}

const MS: Duration = Duration::from_millis(1);

#[tokio::test(start_paused = true)]
async fn after_a_failed_login_an_outage_leaves_the_answer_unconfirmed_for_known_and_unknown_users() {
    let mut served = Served::new();
    for (user, found) in [("app", Some(1)), ("nobody", None)] {
        let first = served.ask(user);
        served.end(user, &Ok(found));
        assert_eq!(first.await.unwrap(), answer(found, true));
        advance(DOUBT_AFTER.saturating_sub(MS)).await;
        served.service.doubt(user.as_bytes());
        assert_eq!(served.ask(user).await.unwrap(), answer(found, true));
        assert!(!served.is_asked(user), "wrong passwords cost no query each");
        advance(MS).await;
        for _ in 0..3 {
            let again = served.ask(user);
            assert!(served.is_asked(user));
            served.end(user, &outage());
            assert_eq!(again.await.unwrap(), answer(found, false));
            // For a tenth of a second.
            advance(DOUBT_AFTER.saturating_sub(MS)).await;
            assert_eq!(served.ask(user).await.unwrap(), answer(found, false));
            assert!(!served.is_asked(user));
            served.service.doubt(user.as_bytes());
            advance(MS).await;
        }
        let back = served.ask(user);
        served.end(user, &Ok(Some(2)));
        assert_eq!(back.await.unwrap(), answer(Some(2), true));
        assert_eq!(served.ask(user).await.unwrap(), answer(Some(2), true));
    }
    let never = served.ask("other");
    served.end("other", &outage());
    assert!(never.await.unwrap().is_err());
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_could_not_be_confirmed_in_a_second_is_unconfirmed() {
    let mut served = Served::new();
    let first = served.ask("app");
    served.end("app", &Ok(Some(1)));
    assert_eq!(first.await.unwrap(), answer(Some(1), true));
    advance(CONFIRM_AFTER.saturating_sub(MS)).await;
    assert_eq!(served.ask("app").await.unwrap(), answer(Some(1), true));
    advance(MS).await;
    let stale = served.ask("app");
    served.end("app", &outage());
    assert_eq!(stale.await.unwrap(), answer(Some(1), false));
    assert_eq!(served.ask("app").await.unwrap(), answer(Some(1), false));
    assert!(!served.is_asked("app"), "not again for a second");
    // Late: what is remembered is used, and the answer is asked for still.
    advance(CONFIRM_AFTER).await;
    let late = served.ask("app");
    advance(CONFIRM_WITHIN).await;
    served.service.answer_late();
    assert_eq!(late.await.unwrap(), answer(Some(1), false));
    assert_eq!(served.ask("app").await.unwrap(), answer(Some(1), false));
    served.end("app", &Ok(Some(2)));
    assert_eq!(served.ask("app").await.unwrap(), answer(Some(2), true));
}

#[tokio::test(start_paused = true)]
async fn after_a_failed_login_a_late_query_is_waited_for_by_who_comes_later_and_not_for_long() {
    let mut served = Served::new();
    drop(served.ask("app"));
    served.end("app", &Ok(Some(1)));
    advance(CONFIRM_AFTER).await;
    let early = served.ask("app");
    advance(CONFIRM_WITHIN * 2).await;
    served.service.answer_late();
    assert_eq!(early.await.unwrap(), answer(Some(1), false));
    served.service.doubt(b"app");
    let mut impatient = served.ask("app");
    advance(CONFIRM_WITHIN.saturating_sub(MS)).await;
    let mut patient = served.ask("app");
    served.service.answer_late();
    assert!(impatient.try_recv().is_err());
    advance(MS).await;
    served.service.answer_late();
    assert_eq!(impatient.try_recv().unwrap(), answer(Some(1), false));
    assert!(patient.try_recv().is_err());
    // The late answer may be as old as the one in doubt: it is asked once more.
    served.end("app", &Ok(Some(1)));
    assert!(patient.try_recv().is_err() && served.is_asked("app"));
    served.end("app", &Ok(Some(2)));
    assert_eq!(patient.await.unwrap(), answer(Some(2), true));
}

/// Who joins a query that was asked long before gets an answer that may be that old.
#[tokio::test(start_paused = true)]
async fn an_answer_asked_for_long_before_is_unconfirmed_for_who_came_late() {
    let mut served = Served::new();
    let first = served.ask("app");
    advance(CONFIRM_AFTER.saturating_sub(MS)).await;
    let second = served.ask("app");
    advance(MS).await;
    let third = served.ask("app");
    served.end("app", &Ok(Some(1)));
    assert_eq!(first.await.unwrap(), answer(Some(1), true));
    assert_eq!(second.await.unwrap(), answer(Some(1), true));
    assert_eq!(third.await.unwrap(), answer(Some(1), false));
}
