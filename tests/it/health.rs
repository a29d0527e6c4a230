//! A member's health: nobody but the member itself changes it. What a role does to its own logins
//! stays its own affair.
#![allow(clippy::unwrap_used)]

use std::net::{Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::time::Instant;
use tokio_postgres::{Client, Config, NoTls};

use crate::cluster::postgres::{self, Postgres};
use crate::cluster::{Options, Router, eventually, fresh_address, secret};

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

fn before(server: &Postgres, extra: &str) -> Router {
    let router = Router::launch(
        None,
        Options {
            clusters: Some(server.yaml()),
            extra: extra.to_owned(),
            ..Options::default()
        },
    );
    router.await_read_write();
    router
}

/// By password, `user` to the database `dbname`, in clear.
fn login(host: &str, port: u16, user: &str, dbname: &str) -> Config {
    let mut config = Config::new();
    config
        .host(host)
        .port(port)
        .user(user)
        .password(user)
        .dbname(dbname);
    config
}

async fn enter(config: &Config) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = config.connect(NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

fn code(error: &tokio_postgres::Error) -> String {
    error
        .code()
        .map_or_else(|| error.to_string(), |code| code.code().to_owned())
}

/// The owner of a database makes its own logins wait for a lock on a catalog there, and terminates
/// them. Others log in all the while, and none of them is refused.
#[test]
fn a_role_that_terminates_its_own_logins_takes_no_server_down() {
    // Without passwords, so that it is the logins that take the time.
    let server = Postgres::start(&postgres::Options {
        hba: Some("host all trunkline all scram-sha-256\nhost all all all trust".to_owned()),
        ..postgres::Options::default()
    });
    let hba = secret(&server.data(), "router_hba", "host all all all trust\n");
    let auth = format!(
        "auth: {{hba_file: {}, server_credentials: [{{users: all, password_file: {}}}]}}\n",
        hba.display(),
        secret(&server.data(), "unused", "unused").display()
    );
    let router = before(&server, &auth);
    let (host, direct) = (router.address.to_string(), server.address.to_string());
    let own = login(&direct, server.port, "app", "app");
    let mut attack = login(&host, 6432, "app", "app");
    // Its name is looked up before the login is done.
    attack.options("-c default_text_search_config=pg_catalog.english");
    let other = login(&host, 6432, "postgres", "postgres");
    runtime().block_on(async {
        let (reader, locker, killer) = (
            enter(&own).await.unwrap(),
            enter(&own).await.unwrap(),
            enter(&own).await.unwrap(),
        );
        reader
            .batch_execute("BEGIN; SELECT FROM pg_catalog.pg_ts_config LIMIT 1")
            .await
            .unwrap();
        // Waits for the reader, and every login behind it.
        tokio::spawn(async move { locker.batch_execute("VACUUM FULL pg_catalog.pg_ts_config").await });
        let (killed, over) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let attackers: Vec<_> = (0..2)
            .map(|_| {
                let (attack, killed, over) = (attack.clone(), Arc::clone(&killed), Arc::clone(&over));
                tokio::spawn(async move {
                    while !over.load(Ordering::Relaxed) {
                        if enter(&attack).await.is_err_and(|error| code(&error) == "57P01") {
                            killed.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                })
            })
            .collect();
        let stop = Arc::clone(&over);
        let killing = tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                killer
                    .batch_execute(
                        "SELECT pg_terminate_backend(pid) FROM pg_locks \
                         WHERE NOT granted AND mode = 'AccessShareLock'",
                    )
                    .await
                    .unwrap();
            }
        });
        let (mut done, mut refused) = (0, Vec::new());
        while done < 100 || killed.load(Ordering::Relaxed) < 30 {
            if let Err(error) = enter(&other).await {
                refused.push(format!("{} {error:?}", code(&error)));
            }
            done += 1;
        }
        over.store(true, Ordering::Relaxed);
        drop(reader);
        killing.await.unwrap();
        for attacker in attackers {
            attacker.await.unwrap();
        }
        assert!(refused.is_empty(), "{} of {done}: {refused:?}", refused.len());
    });
    let log = router.log();
    assert!(!log.contains("s1 is down"), "{log}");
}

/// Its connections are used up, then the probe's own is lost, and a second router starts: the
/// server is up for both, and the superuser gets in by the connections that are reserved for it.
#[test]
fn a_full_server_is_up_and_decides_itself_who_comes_in() {
    let server = Postgres::start(&postgres::Options {
        hba: Some("host all trunkline all scram-sha-256\nhost all all all trust".to_owned()),
        conf: "max_connections = 8\nsuperuser_reserved_connections = 3\nmax_wal_senders = 0".to_owned(),
        ..postgres::Options::default()
    });
    let hba = secret(&server.data(), "router_hba", "host all all all trust\n");
    let auth = format!(
        "auth: {{hba_file: {}, server_credentials: [{{users: all, password_file: {}}}]}}\n",
        hba.display(),
        secret(&server.data(), "unused", "unused").display()
    );
    let router = before(&server, &auth);
    let direct = login(&server.address.to_string(), server.port, "app", "app");
    let through = |router: &Router, user: &str| login(&router.address.to_string(), 6432, user, "postgres");
    runtime().block_on(async {
        let mut fillers = Vec::new();
        // Until it is full, the router's own connections included, which are not given back.
        let fill = async |fillers: &mut Vec<Client>| {
            while let Ok(client) = enter(&direct).await {
                fillers.push(client);
            }
        };
        fill(&mut fillers).await;
        // The router may be faster with its next connection than the test.
        let began = Instant::now();
        let is_full = || router.log().contains("s1 is up and has no free connection");
        for looks in (0..100).cycle() {
            if is_full() {
                break;
            }
            assert!(
                began.elapsed() < Duration::from_secs(60),
                "the probe finds it full"
            );
            if looks == 0 {
                server.sql(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'trunkline'",
                );
                fill(&mut fillers).await;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let second = Router::launch(
            None,
            Options {
                clusters: Some(server.yaml()),
                extra: auth.clone(),
                ..Options::default()
            },
        );
        second.await_log(&["s1 is up and has no free connection", "its role is unknown"]);
        for router in [&router, &second] {
            let (status, body) = router.http("/connection/is-ready-rw").unwrap();
            assert_eq!((status, body.as_str()), (200, "true"));
            let refused = enter(&through(router, "app")).await.map(drop).unwrap_err();
            assert_eq!(code(&refused), "53300", "{refused:?}");
            let superuser = enter(&through(router, "postgres")).await.unwrap();
            superuser
                .batch_execute("CREATE TEMP TABLE written (x int)")
                .await
                .unwrap();
            assert!(!router.log().contains("s1 is down"), "{}", router.log());
        }
        drop(fillers);
        second.await_log(&["s1 has free connections again"]);
        enter(&through(&second, "app")).await.unwrap();
    });
}

/// A name server that knows one address for every name, until it falls silent.
fn name_server(answer: Ipv4Addr) -> (Ipv4Addr, Arc<AtomicBool>) {
    let (address, silent) = (fresh_address(), Arc::new(AtomicBool::new(false)));
    let socket = UdpSocket::bind((address, 53)).unwrap();
    let is_silent = Arc::clone(&silent);
    std::thread::spawn(move || {
        let mut packet = [0; 512];
        while let Ok((length, client)) = socket.recv_from(&mut packet) {
            if is_silent.load(Ordering::Relaxed) {
                continue;
            }
            let question = &packet[12..length];
            let end = question.iter().position(|&byte| byte == 0).unwrap() + 5;
            let is_a = question[end - 4..end - 2] == [0, 1];
            // An answer, recursive; one question, and one record if it asks for an IPv4 address.
            let mut reply = packet[..2].to_vec();
            reply.extend([0x81, 0x80, 0, 1, 0, u8::from(is_a), 0, 0, 0, 0]);
            reply.extend(&question[..end]);
            if is_a {
                reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
                reply.extend(answer.octets());
            }
            let _ = socket.send_to(&reply, client);
        }
    });
    (address, silent)
}

#[test]
fn a_name_service_that_falls_silent_takes_no_server_away() {
    let server = Postgres::start(&postgres::Options::default());
    let (resolver, silent) = name_server(server.address);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("resolv.conf");
    std::fs::write(&file, format!("nameserver {resolver}\n")).unwrap();
    let own = format!("mount --bind {} /etc/resolv.conf && exec \"$@\"", file.display());
    let prefix = ["unshare", "-m", "sh", "-c", &own, "sh"];
    let address = format!("host: {}", server.address);
    let router = Router::launch(
        None,
        Options {
            clusters: Some(
                server
                    .yaml_with("{sslmode: require}")
                    .replace(&address, "host: db.trunkline.test"),
            ),
            prefix: prefix.map(str::to_owned).to_vec(),
            ..Options::default()
        },
    );
    router.await_read_write();
    silent.store(true, Ordering::Relaxed);
    router.await_log(&["db.trunkline.test", "the name service does not answer"]);
    // Longer than a role that was seen counts, and new connections among them.
    let probes =
        || router.metric("trunkline_cluster_probes_total{cluster=\"main\",member=\"s1\",result=\"success\"}");
    let before = probes();
    assert!(before > 0.0);
    eventually("sixty probes more", Duration::from_mins(1), || {
        probes() >= before + 60.0
    });
    for _ in 0..10 {
        assert_eq!(router.psql(6432, "SELECT 6 * 7"), "42");
    }
    let log = router.log();
    assert!(!log.contains("s1 is down"), "{log}");
    assert_eq!(
        log.matches("the name service does not answer").count(),
        1,
        "{log}"
    );
    silent.store(false, Ordering::Relaxed);
    router.await_log(&["db.trunkline.test", "the name service answers again"]);
}
