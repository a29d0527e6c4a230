//! Look-ups of identities and memberships before PostgreSQL servers of a test's own: what is
//! changed there counts at once, and costs a known number of queries.

use std::time::Duration;

use tokio::task::block_in_place;
use tokio::time::{Instant, sleep};
use trunkline::auth::Identity;
use trunkline::cluster::{ClusterHandle, LookupError};
use trunkline::config::{Server, Source, Verifiers};

use super::Running;
use super::cluster::postgres::{Options, Postgres};

/// As the configured query, and counts in a sequence.
const COUNTED: &str = "CREATE SEQUENCE trunkline.asked;
    CREATE FUNCTION trunkline.counted(name text) RETURNS TABLE (usename name, passwd text) LANGUAGE sql SECURITY DEFINER
    AS $$ SELECT nextval('trunkline.asked'); SELECT * FROM trunkline.user_lookup(name) $$";
const COUNTED_QUERY: &str = "SELECT * FROM trunkline.counted($1)";
const SECOND: Duration = Duration::from_secs(1);

fn source(server: &Postgres) -> Source {
    Source::Servers(vec![Server {
        name: "s1".into(),
        host: server.address.to_string(),
        port: Postgres::PORT,
    }])
}

fn sql(server: &Postgres, sql: &str) -> String {
    block_in_place(|| server.sql(sql))
}

async fn before(server: &Postgres, verifiers: Verifiers) -> Running {
    let running = Running::start_with(source(server), "trunkline", "trunkline", "postgres", verifiers);
    running
        .until("led", |snapshot| super::leader(snapshot).is_some())
        .await;
    running
}

fn counted(cache_ttl: Duration) -> Verifiers {
    Verifiers::Query {
        sql: COUNTED_QUERY.into(),
        cache_ttl,
    }
}

fn start(version_18: bool) -> Postgres {
    let server = block_in_place(|| {
        Postgres::start(&Options {
            version_18,
            ..Options::default()
        })
    });
    sql(&server, COUNTED);
    server
}

fn asked(server: &Postgres) -> u32 {
    let count = sql(
        server,
        "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM trunkline.asked",
    );
    count.parse().unwrap()
}

/// The verifier as the server has it.
fn stored(server: &Postgres, user: &str) -> String {
    sql(
        server,
        &format!("SELECT rolpassword FROM pg_authid WHERE rolname = '{user}'"),
    )
}

async fn looked_up(handle: &ClusterHandle, user: &str) -> Option<String> {
    let answer = handle.identity(user.as_bytes()).await.unwrap();
    answer
        .found
        .as_ref()
        .and_then(Identity::verifier)
        .map(|verifier| verifier.to_text().to_string())
}

/// The superuser, over the network: quicker than `psql`.
async fn client(server: &Postgres) -> tokio_postgres::Client {
    let config = format!(
        "host={} port={} user=postgres password=postgres dbname=postgres",
        server.address,
        Postgres::PORT
    );
    let (client, connection) = tokio_postgres::connect(&config, tokio_postgres::NoTls)
        .await
        .unwrap();
    tokio::spawn(connection);
    client
}

/// Waits until an answer asked at `asked` at the latest is older than `age`: the clock is the
/// condition here.
async fn older(asked: Instant, age: Duration) {
    tokio::time::sleep_until(asked + age + Duration::from_millis(5)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changes_on_the_server_counts_at_once() {
    for version_18 in [false, true] {
        let server = start(version_18);
        sql(
            &server,
            "CREATE ROLE gone LOGIN PASSWORD 'x'; CREATE ROLE shut LOGIN PASSWORD 'x';
             CREATE ROLE expired LOGIN PASSWORD 'x' VALID UNTIL 'infinity'",
        );
        let running = before(&server, counted(Duration::from_mins(1))).await;
        let users = ["app", "gone", "shut", "expired", "nobody"];
        for user in users {
            assert_eq!(looked_up(&running.handle, user).await.is_some(), user != "nobody");
        }
        assert_eq!(asked(&server), 5);
        sql(
            &server,
            "ALTER ROLE app PASSWORD 'new'; DROP ROLE gone; ALTER ROLE shut NOLOGIN;
             ALTER ROLE expired VALID UNTIL '2001-01-01'; CREATE ROLE nobody LOGIN PASSWORD 'y'",
        );
        for user in users {
            let expected = matches!(user, "app" | "nobody").then(|| stored(&server, user));
            assert_eq!(looked_up(&running.handle, user).await, expected, "{user}");
        }
        assert_eq!(asked(&server), 10, "one query per user");
        running.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn known_and_unknown_users_cost_a_query_for_each_login_and_many_at_once_share_one() {
    let server = start(false);
    let running = before(&server, counted(Duration::from_mins(1))).await;
    let handle = &running.handle;
    for (user, exists) in [("app", true), ("nobody", false)] {
        let before = asked(&server);
        for times in 1..=3 {
            assert_eq!(looked_up(handle, user).await.is_some(), exists);
            assert_eq!(asked(&server) - before, times, "{user}");
        }
    }
    let already = asked(&server);
    let many: Vec<_> = (0..100)
        .map(|_| {
            let handle = running.handle.clone();
            tokio::spawn(async move { looked_up(&handle, "app").await })
        })
        .collect();
    let expected = stored(&server, "app");
    for one in many {
        assert_eq!(one.await.unwrap().as_ref(), Some(&expected));
    }
    // While one query runs, the others wait for the next one together.
    let cost = asked(&server) - already;
    assert!(cost <= 20, "{cost} queries for 100 logins");
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn remembered_answers_serve_while_the_server_is_down_for_cache_ttl_at_most() {
    let server = start(false);
    let ttl = Duration::from_secs(6);
    let running = before(&server, counted(ttl)).await;
    let handle = &running.handle;
    let begun = Instant::now();
    let verifier = looked_up(handle, "app").await;
    assert!(verifier.is_some());
    assert_eq!(looked_up(handle, "nobody").await, None);
    let known = Instant::now();
    block_in_place(|| server.stop());
    while begun.elapsed() + SECOND < ttl {
        let asked = Instant::now();
        assert_eq!(looked_up(handle, "app").await, verifier);
        assert_eq!(looked_up(handle, "nobody").await, None);
        assert!(asked.elapsed() < SECOND, "{:?}", asked.elapsed());
        sleep(Duration::from_millis(50)).await;
    }
    older(known, ttl).await;
    for user in [&b"app"[..], b"nobody"] {
        let error = handle.identity(user).await.unwrap_err();
        assert!(
            matches!(error, LookupError::Unavailable(_) | LookupError::Timeout),
            "{error}"
        );
    }
    block_in_place(|| server.start_again());
    running
        .until("led again", |snapshot| super::leader(snapshot).is_some())
        .await;
    assert_eq!(looked_up(handle, "app").await, verifier);
    running.end().await;
}

/// The query is slow: the remembered answer is used after 250 ms, and the query's own is remembered
/// when it comes.
#[tokio::test(flavor = "multi_thread")]
async fn a_late_answer_holds_nobody_up_and_is_not_lost() {
    let server = start(false);
    sql(&server, "CREATE TABLE trunkline.gate ()");
    sql(
        &server,
        "CREATE OR REPLACE FUNCTION trunkline.counted(name text) RETURNS TABLE (usename name, passwd text)
         LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN PERFORM nextval('trunkline.asked');
         LOCK TABLE trunkline.gate IN ACCESS SHARE MODE;
         RETURN QUERY SELECT * FROM trunkline.user_lookup(name); END $$",
    );
    let running = before(&server, counted(Duration::from_mins(1))).await;
    let handle = &running.handle;
    let old = looked_up(handle, "app").await.unwrap();
    let connections = "SELECT string_agg(pid::text, ',' ORDER BY pid) FROM pg_stat_activity \
                       WHERE application_name = 'trunkline look-up'";
    let pooled = sql(&server, connections);
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'trunkline look-up' \
                   AND wait_event_type = 'Lock'";
    let gate = client(&server).await;
    let observer = client(&server).await;
    let already = asked(&server);

    let shut = "BEGIN; LOCK TABLE trunkline.gate IN ACCESS EXCLUSIVE MODE; ALTER ROLE app PASSWORD 'new'";
    gate.batch_execute(shut).await.unwrap();
    let asking = Instant::now();
    assert_eq!(looked_up(handle, "app").await.as_ref(), Some(&old));
    let took = asking.elapsed();
    assert!(took >= Duration::from_millis(240) && took < SECOND, "{took:?}");
    let queries: i64 = observer.query_one(waiting, &[]).await.unwrap().get(0);
    assert_eq!(queries, 1, "the query goes on");
    // Who comes later waits no more, and asks no more.
    let asking = Instant::now();
    for _ in 0..20 {
        assert_eq!(looked_up(handle, "app").await.as_ref(), Some(&old));
    }
    assert!(
        asking.elapsed() < Duration::from_millis(200),
        "{:?}",
        asking.elapsed()
    );
    gate.batch_execute("COMMIT").await.unwrap();
    // Until the query has come back, the old answer is used as what it is.
    let new = stored(&server, "app");
    assert_ne!(new, old);
    loop {
        let answer = handle.identity(b"app").await.unwrap();
        let found = answer
            .found
            .as_ref()
            .and_then(Identity::verifier)
            .unwrap()
            .to_text();
        if *found == new {
            break;
        }
        assert!(*found == old && !answer.is_confirmed);
        sleep(Duration::from_millis(1)).await;
    }
    assert!(asked(&server) - already <= 2);
    let after = sql(&server, connections);
    assert!(
        pooled
            .split(',')
            .all(|pid| after.split(',').any(|other| other == pid)),
        "no connection is thrown away: {pooled} {after}"
    );
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn memberships_are_those_of_the_servers_own_rules() {
    for version_18 in [false, true] {
        let server = start(version_18);
        sql(
            &server,
            "CREATE ROLE top; CREATE ROLE middle; CREATE ROLE other; CREATE ROLE \"Odd, \"\"name\"\"\";
             CREATE ROLE apart NOINHERIT LOGIN; CREATE ROLE super SUPERUSER LOGIN;
             GRANT top TO middle; GRANT middle TO app; GRANT other TO apart; GRANT middle TO apart;
             GRANT \"Odd, \"\"name\"\"\" TO top",
        );
        if version_18 {
            sql(&server, "GRANT other TO app WITH INHERIT FALSE, SET FALSE");
        }
        let file = Verifiers::UsersFile {
            path: "users".into(),
            contents: super::Secret::new(""),
        };
        for verifiers in [counted(Duration::from_mins(1)), file] {
            let running = before(&server, verifiers).await;
            let handle = &running.handle;
            let of = async |user: &str| {
                let deadline = Instant::now() + Duration::from_secs(10);
                let answer = handle.memberships(user.as_bytes(), deadline).await.unwrap();
                assert!(answer.is_confirmed);
                answer.found
            };
            for user in ["app", "apart", "super", "top", "nobody", "trunkline"] {
                let found = of(user).await;
                for (role, expected) in memberships(&server, user) {
                    assert_eq!(found.contains(role.as_bytes()), expected, "{user} {role}");
                }
            }
            let apart = of("apart").await;
            assert!(
                ["apart", "other", "middle", "top", "Odd, \"name\""]
                    .iter()
                    .all(|role| apart.contains(role.as_bytes()))
            );
            assert_eq!((of("super").await.len(), of("nobody").await.len()), (1, 0));
            sql(&server, "REVOKE middle FROM app");
            assert!(!of("app").await.contains(b"top"));
            sql(&server, "GRANT middle TO app");
            running.end().await;
        }
    }
}

/// Every role, and whether the server takes `user` for a member of it. (`pg_has_role` takes a
/// superuser for a member of all, which `+role` does not; the superusers here are members of
/// nothing.)
fn memberships(server: &Postgres, user: &str) -> Vec<(String, bool)> {
    let found = sql(
        server,
        &format!(
            "SELECT r.rolname, coalesce(CASE WHEN u.rolsuper THEN u.oid = r.oid \
             ELSE pg_has_role(u.oid, r.oid, 'MEMBER') END, false) \
             FROM pg_roles AS r LEFT JOIN pg_roles AS u ON u.rolname = '{user}'"
        ),
    );
    let roles: Vec<_> = found
        .lines()
        .map(|line| line.rsplit_once('|').unwrap())
        .map(|(role, is_member)| (role.to_owned(), is_member == "t"))
        .collect();
    assert!(roles.len() > 10);
    roles
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_with_too_many_roles_is_an_error_and_a_long_name_nobody() {
    let server = start(true);
    let long = "x".repeat(63);
    sql(
        &server,
        &format!(
            "CREATE ROLE \"{long}\"; CREATE ROLE many; CREATE ROLE most;
             DO $$ BEGIN FOR i IN 1..10000 LOOP EXECUTE format('CREATE ROLE r%s', i);
             EXECUTE format('GRANT r%s TO many', i);
             IF i < 10000 THEN EXECUTE format('GRANT r%s TO most', i); END IF; END LOOP; END $$"
        ),
    );
    let running = before(&server, counted(Duration::from_mins(1))).await;
    let of = async |user: &str| {
        let deadline = Instant::now() + Duration::from_secs(10);
        let answer = running.handle.memberships(user.as_bytes(), deadline).await;
        answer.map(|answer| answer.found)
    };
    assert_eq!(of("most").await.unwrap().len(), 10_000);
    assert!(matches!(of("many").await, Err(LookupError::Query(_))));
    assert_eq!(of(&long).await.unwrap().len(), 1);
    assert_eq!(of(&format!("{long}x")).await.unwrap().len(), 0);
    // The connection is still good.
    assert_eq!(of("most").await.unwrap().len(), 10_000);
    running.end().await;
}

/// The server does not allow roles to be members of each other, which the query relies on only for
/// speed.
#[tokio::test(flavor = "multi_thread")]
async fn cycles_of_memberships_are_refused_by_the_server() {
    let server = start(false);
    sql(&server, "CREATE ROLE a; CREATE ROLE b; GRANT a TO b");
    let refused =
        "DO $$ BEGIN GRANT b TO a; RAISE 'granted'; EXCEPTION WHEN invalid_grant_operation THEN NULL; END $$";
    sql(&server, refused);
}
