#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::cluster::snapshot::{Leader, MemberName, NoLeader, Role, Snapshot, SourceStatus};
use crate::cluster::state::Named;

fn read(value: &Value) -> SourceReport {
    parse(value.to_string().as_bytes()).unwrap()
}

#[test]
fn an_answer_without_members_shows_that_patroni_runs() {
    for (error, expected) in [
        (NO_DCS, true),
        ("answered with HTTP status 503", true),
        ("answered with HTTP status 401", false),
        (LATE, false),
        ("cannot connect: Connection refused (os error 111)", false),
    ] {
        assert_eq!(is_without_dcs(error), expected, "{error}");
    }
}

#[test]
fn reads_patroni_3_0() {
    let report = read(&json!({"members": [
        {"name": "db1", "role": "leader", "state": "running", "api_url": "http://x", "host": "127.0.0.11",
         "port": 5432, "timeline": 3},
        {"name": "db2", "role": "replica", "state": "running", "api_url": "http://y", "host": "127.0.0.12",
         "port": 5432, "timeline": 3, "lag": 0},
    ], "pause": true}));
    assert_eq!(report.named, Named::One(MemberName::new("db1")));
    assert!(report.paused);
    assert_eq!(report.members[1].state, "running");
    assert_eq!(
        (report.members[1].host.as_str(), report.members[1].port),
        ("127.0.0.12", 5432)
    );
    assert_eq!(
        (report.members[1].timeline, report.members[1].lag),
        (Some(3), Some(0))
    );
}

#[test]
fn reads_patroni_4_1() {
    let report = read(&json!({"scope": "main", "members": [
        {"name": "db1", "role": "leader", "state": "running", "host": "a", "port": 5432, "timeline": 3, "lsn": "0/5"},
        {"name": "db2", "role": "quorum_standby", "state": "streaming", "host": "b", "port": 5432, "timeline": 3,
         "receive_lag": 0, "replay_lag": 0, "lag": 16, "tags": {"noloadbalance": "yes", "zone": ["x"]}},
        {"name": "db3", "role": "sync_standby", "state": "in archive recovery", "host": "c", "port": 5432},
    ]}));
    assert_eq!(report.members[1].role, Role::QuorumStandby);
    assert_eq!(report.members[1].tags["noloadbalance"], json!("yes"));
    assert_eq!(report.members[2].state, "in archive recovery");
}

#[test]
fn one_invalid_member_never_invalidates_the_others() {
    let report = read(&json!({"members": [
        {"name": "new", "role": "replica", "state": "creating replica", "lag": "unknown"},
        {"name": 5}, null, "x", [], {}, {"name": ""}, {"name": "a\nb"},
        {"name": "odd", "role": 7, "state": {"a": 1}, "host": "has space", "port": 99999, "timeline": -1, "tags": []},
        {"name": "text", "role": "promoted", "state": "running", "host": "d", "port": "5433", "lag": "unknown"},
        {"name": "text", "role": "leader"},
        {"name": "db1", "role": "standby_leader", "state": "running", "host": "e", "port": 1, "timeline": 4_294_967_296_u64},
    ]}));
    let names: Vec<&str> = report.members.iter().map(|member| member.name.as_str()).collect();
    assert_eq!(names, ["new", "odd", "text", "db1"]);
    assert_eq!(
        (
            report.members[0].host.as_str(),
            report.members[0].port,
            report.members[0].lag
        ),
        ("", 0, None)
    );
    assert_eq!((report.members[1].host.as_str(), report.members[1].port), ("", 0));
    assert_eq!(report.members[2].role, Role::Other("promoted".into()));
    assert_eq!(report.members[2].port, 5433);
    assert_eq!(report.named, Named::One(MemberName::new("db1")));
    assert_eq!(report.members[3].timeline, None);
}

#[test]
fn an_invalid_answer_is_a_failure() {
    for body in [
        &b""[..],
        b"{}",
        b"[]",
        b"true",
        b"{\"members\": 3}",
        b"<html>",
        b"\xff",
        b"{\"members\": [",
    ] {
        assert!(parse(body).is_err());
    }
    let deep = [vec![b'['; 100_000], vec![b']'; 100_000]].concat();
    assert!(parse(&deep).is_err());
}

#[test]
fn the_number_of_members_is_limited() {
    let members: Vec<Value> = (0..1000)
        .map(|n| json!({"name": format!("m{n}"), "role": "replica"}))
        .collect();
    assert_eq!(read(&json!({"members": members})).members.len(), MAX_MEMBERS);
}

#[test]
fn two_leaders_in_one_answer_are_none() {
    let report =
        read(&json!({"members": [{"name": "a", "role": "leader"}, {"name": "b", "role": "leader"}]}));
    assert_eq!(report.named, Named::Several);
}

proptest! {
    #[test]
    fn parse_never_panics(body in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse(&body);
    }

    #[test]
    fn parse_never_panics_on_members(name in ".*", host in ".*", port in any::<i64>(), role in ".*") {
        let report = read(&json!({"members": [{"name": name, "host": host, "port": port, "role": role}]}));
        for member in report.members {
            prop_assert!(!member.name.as_str().chars().any(char::is_control));
            prop_assert!(!member.host.chars().any(|c| c.is_control() || c.is_whitespace()));
        }
    }
}

/// An answer that names `leader` on `timeline`. The member `mark` in its list distinguishes it from
/// other answers.
fn naming(leader: Option<&str>, timeline: u32, mark: &str) -> SourceReport {
    let mut members = vec![json!({"name": mark, "role": "replica"})];
    if let Some(leader) = leader {
        members.push(json!({"name": leader, "role": "leader", "timeline": timeline}));
    }
    members.push(json!({"name": "in each", "role": "replica"}));
    read(&json!({ "members": members }))
}

/// The snapshot of a router that knows which cluster it is before, and nothing else.
fn nothing() -> Snapshot {
    Snapshot {
        cluster: "main".into(),
        version: 0,
        members: Vec::new(),
        leader: Leader::None(NoLeader::NotYetKnown),
        source: SourceStatus {
            reachable: false,
            error: None,
            disagreement: None,
        },
        system_identifier: Some(7),
        paused: false,
        hears: true,
        patience: None,
        switchover_requested: false,
    }
}

/// `seen`: the members that are seen to accept writes, and their timelines.
fn chosen(answers: &[SourceReport], seen: &[(&str, u32)]) -> SourceReport {
    let answers: Vec<&SourceReport> = answers.iter().collect();
    let on = |name: &MemberName| {
        let seen = seen.iter().find(|(seen, _)| *seen == name.as_str());
        seen.map(|(_, timeline)| *timeline)
    };
    choose(&answers, &on, &nothing()).unwrap()
}

fn named(report: &SourceReport) -> Option<&str> {
    match &report.named {
        Named::One(name) => Some(name.as_str()),
        _ => None,
    }
}

#[test]
fn a_leader_is_chosen_from_different_answers() {
    let a5 = || naming(Some("a"), 5, "first");
    let b6 = || naming(Some("b"), 6, "second");
    let b5 = || naming(Some("b"), 5, "second");
    let nobody = || naming(None, 0, "third");

    let same = chosen(&[a5(), a5()], &[]);
    assert_eq!((named(&same), &same.disagreement), (Some("a"), &None));
    // The highest timeline wins if it has been seen, also against a majority.
    let newest = chosen(&[a5(), a5(), b6()], &[("a", 5), ("b", 6)]);
    assert_eq!(named(&newest), Some("b"));
    assert_eq!(newest.members[0].name.as_str(), "second");
    assert_eq!(newest.rivals, []);
    assert_eq!(
        newest.disagreement.unwrap(),
        "Patroni's endpoints disagree: they name a on timeline 5, b on timeline 6"
    );
    // On one timeline the majority wins, including answers without a leader.
    assert_eq!(named(&chosen(&[a5(), b5(), b5()], &[("a", 5)])), Some("b"));
    assert_eq!(named(&chosen(&[a5(), nobody(), nobody()], &[("a", 5)])), None);
    assert_eq!(named(&chosen(&[a5(), a5(), nobody()], &[])), Some("a"));
    // In a tie the member that accepts writes wins, if there is exactly one.
    assert_eq!(named(&chosen(&[a5(), b5()], &[("b", 5)])), Some("b"));
    assert_eq!(named(&chosen(&[a5(), b5()], &[("a", 5), ("b", 5)])), None);
    assert_eq!(named(&chosen(&[a5(), b5()], &[])), None);
    assert_eq!(named(&chosen(&[nobody(), a5()], &[("a", 5)])), Some("a"));
    assert_eq!(named(&chosen(&[nobody(), a5()], &[])), None);
    assert!(choose(&[], &|_| Some(5), &nothing()).is_none());
}

/// One endpoint claims that a member leads on a timeline that no probe has seen.
#[test]
fn a_timeline_that_is_only_claimed_outvotes_no_leader() {
    let a1 = || naming(Some("a"), 1, "first");
    for claimed in [2, 99, u32::MAX] {
        let z = || naming(Some("z"), claimed, "second");
        for seen in [&[("a", 1)][..], &[("a", 1), ("z", claimed - 1)]] {
            let report = chosen(&[a1(), a1(), z()], seen);
            assert_eq!(named(&report), Some("a"), "{claimed} {seen:?}");
            assert_eq!(report.rivals, [MemberName::new("z")], "it is probed");
            assert_eq!(
                named(&chosen(&[z(), a1()], seen)),
                Some("a"),
                "{claimed} {seen:?}"
            );
        }
        assert_eq!(named(&chosen(&[a1(), z()], &[])), None, "no leader has been seen");
        assert_eq!(named(&chosen(&[a1(), z(), z()], &[("a", 1)])), Some("z"));
    }
    // The claim is about the named leader itself.
    let a99 = || naming(Some("a"), 99, "first");
    let report = chosen(&[a1(), a99(), a1()], &[("a", 1)]);
    assert_eq!(report.members[1].timeline, a1().members[1].timeline);
    // Less than half, and no leader is seen.
    let c5 = || naming(Some("c"), 5, "third");
    assert_eq!(
        named(&chosen(&[a1(), a1(), c5(), naming(None, 0, "x")], &[])),
        None
    );
}

/// A leader named by a minority is listed at the address that the minority gives, but does not
/// replace a listed member of the same name.
#[test]
fn a_rival_is_listed_but_replaces_no_member() {
    let a1 = || naming(Some("a"), 1, "first");
    let mut stranger = naming(Some("z"), 99, "second");
    stranger.members.retain(|member| member.name.as_str() == "z");
    let report = chosen(&[a1(), a1(), stranger], &[("a", 1)]);
    let rival = report.members.iter().find(|member| member.name.as_str() == "z");
    assert!(matches!(rival.unwrap().role, Role::Other(_)));
    let mut moved = naming(Some("a"), 99, "second");
    moved
        .members
        .iter_mut()
        .for_each(|member| member.host = "elsewhere".into());
    let report = chosen(&[a1(), moved, a1()], &[("a", 1)]);
    assert!(report.members.iter().all(|member| member.host != "elsewhere"));
}

fn replying(replies: &[(u64, Reply)]) -> JoinSet<(usize, Reply)> {
    let mut tasks = JoinSet::new();
    for (index, (millis, reply)) in replies.iter().cloned().enumerate() {
        tasks.spawn(async move {
            tokio::time::sleep(Duration::from_millis(millis)).await;
            (index, reply)
        });
    }
    tasks
}

#[tokio::test(start_paused = true)]
async fn a_slow_endpoint_does_not_delay_what_most_agree_on() {
    let a = || Ok(naming(Some("a"), 5, "x"));
    let start = Instant::now();
    let deadline = start + Duration::from_secs(1);
    let replies = gather(replying(&[(5, a()), (900, a()), (10, a())]), &[true; 3], deadline).await;
    assert!(replies[0].is_some() && replies[1].is_none() && replies[2].is_some());
    assert!(start.elapsed() < Duration::from_millis(50));

    // The poll does not wait for an endpoint that did not answer the last time.
    let start = Instant::now();
    let deadline = start + Duration::from_secs(1);
    let replies = gather(replying(&[(5, a()), (5000, a())]), &[true, false], deadline).await;
    assert!(replies[0].is_some() && replies[1].is_none());
    assert!(start.elapsed() < Duration::from_millis(50));
}

#[tokio::test(start_paused = true)]
async fn if_endpoints_differ_the_poll_waits_for_all_until_the_deadline() {
    let a = || Ok(naming(Some("a"), 5, "x"));
    let b = || Ok(naming(Some("b"), 6, "x"));
    let deadline = Instant::now() + Duration::from_secs(1);
    let replies = gather(replying(&[(5, a()), (900, b()), (10, b())]), &[true; 3], deadline).await;
    assert!(replies.iter().all(|reply| matches!(reply, Some(Ok(_)))));
    let deadline = Instant::now() + Duration::from_secs(1);
    let replies = gather(
        replying(&[(5, Err("x".into())), (5000, a())]),
        &[true; 2],
        deadline,
    )
    .await;
    assert_eq!(
        replies,
        [Some(Err("x".into())), Some(Err("no answer in time".into()))]
    );
}

/// An endpoint that answers every request with `answer`.
async fn endpoint(answer: Vec<u8>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let answer = answer.clone();
            tokio::spawn(async move {
                let mut request = [0; 4096];
                let _ = socket.read(&mut request).await;
                let _ = socket.write_all(&answer).await;
                let _ = socket.shutdown().await;
            });
        }
    });
    url
}

fn http(status: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

pub(in crate::cluster) fn cluster(endpoints: Vec<String>) -> Arc<config::Cluster> {
    Arc::new(config::Cluster {
        name: Arc::from("main"),
        source: config::Source::Patroni(config::Patroni {
            endpoints,
            ca: None,
            client_certificate: None,
            basic_auth: None,
            poll_interval: Duration::from_secs(1),
            fast_poll_interval: Duration::from_millis(100),
        }),
        service_account: config::ServiceAccount {
            user: "trunkline".into(),
            password: None,
            dbname: "postgres".into(),
            pool_size: 1,
            timeout: Duration::from_secs(1),
        },
        server_tls: config::ServerTls {
            sslmode: config::SslMode::Disable,
            sslnegotiation: config::SslNegotiation::Postgres,
            channel_binding: config::ChannelBinding::Prefer,
            roots: None,
            client_certificate: None,
            server_name: None,
            require_auth: config::RequireAuth::Safe,
        },
        server: config::ServerOptions {
            connect_timeout: Duration::from_secs(1),
            keepalive: None,
            tcp_user_timeout: None,
        },
        probe: config::Probe {
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            rise: 2,
            fall: 3,
        },
        max_connections: 0,
        local_member: config::LocalMember::None,
        placement: config::Placement::even(),
        etcd: None,
    })
}

#[tokio::test]
async fn every_kind_of_bad_endpoint_is_distinguished_and_costs_one_deadline() {
    let good = json!({"members": [{"name": "a", "role": "leader", "host": "h", "port": 1}]}).to_string();
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    };
    let endpoints = vec![
        endpoint(http("200 OK", b"nonsense")).await,
        endpoint(http("503 Service Unavailable", good.as_bytes())).await,
        endpoint(http("302 Found\r\nLocation: http://127.0.0.1:1/", b"")).await,
        endpoint(http("200 OK", &vec![b' '; MAX_BODY + 1])).await,
        endpoint(b"SSH-2.0-OpenSSH\r\n".to_vec()).await,
        closed,
        format!("http://{}", silent.local_addr().unwrap()),
    ];
    let mut patroni = Patroni::new(cluster(endpoints)).unwrap().unwrap();
    let replies = patroni.poll().await;
    let errors: Vec<String> = replies
        .into_iter()
        .map(|reply| reply.unwrap().unwrap_err())
        .collect();
    for (error, expected) in errors.iter().zip([
        "not JSON",
        "status 503",
        "status 302",
        "larger than 1 MiB",
        "",
        "cannot connect",
        "in time",
    ]) {
        assert!(error.contains(expected), "{errors:?}");
    }

    let mut patroni = Patroni::new(cluster(vec![endpoint(http("200 OK", good.as_bytes())).await]))
        .unwrap()
        .unwrap();
    let replies = patroni.poll().await;
    assert_eq!(named(replies[0].as_ref().unwrap().as_ref().unwrap()), Some("a"));
}

#[tokio::test]
async fn an_endpoint_that_hangs_is_left_alone_until_it_has_seen_its_dcs_again() {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    let (asked, seen, works) = (
        Arc::new(AtomicU64::new(0)),
        Arc::new(AtomicU64::new(1000)),
        Arc::new(AtomicBool::new(false)),
    );
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let state = (Arc::clone(&asked), Arc::clone(&seen), Arc::clone(&works));
    tokio::spawn(async move {
        // What hangs is kept, so that it is not closed.
        let mut hanging = Vec::new();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let length = stream.read(&mut request).await.unwrap();
            let answer = if request[..length].starts_with(b"GET /patroni ") {
                json!({"dcs_last_seen": state.1.load(Ordering::Relaxed)})
            } else {
                state.0.fetch_add(1, Ordering::Relaxed);
                if !state.2.load(Ordering::Relaxed) {
                    hanging.push(stream);
                    continue;
                }
                json!({"members": [{"name": "db1", "role": "leader", "state": "running", "host": "h", "port": 1}]})
            };
            let answer = http("200 OK", answer.to_string().as_bytes());
            stream.write_all(&answer).await.unwrap();
            stream.shutdown().await.unwrap();
        }
    });
    let mut patroni = Patroni::new(cluster(vec![address])).unwrap().unwrap();
    let count = || asked.load(Ordering::Relaxed);
    for _ in 0..5 {
        assert!(matches!(patroni.poll().await.as_slice(), [Some(Err(_))]));
        assert_eq!(count(), 1, "one request hangs, no more are added");
    }
    // Its DCS is back, and it has seen it.
    works.store(true, Ordering::Relaxed);
    seen.fetch_add(1, Ordering::Relaxed);
    assert!(matches!(patroni.poll().await.as_slice(), [Some(Ok(_))]));
    assert!(matches!(patroni.poll().await.as_slice(), [Some(Ok(_))]));
    assert_eq!(count(), 3);
}
