//! Which server a session is given, by every way to choose.
#![allow(clippy::unwrap_used, clippy::format_push_string)]

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread;
use std::time::Duration;

use tokio::time::Instant;
use trunkline::wire::frame::ErrorFields;

use super::raw::{Client, Login, at, node_address};
use crate::cluster::postgres::{Options as ServerOptions, Postgres};
use crate::cluster::{Cluster, Options, Router, eventually, fresh_address, project, secret};

const ROUTES: [(u16, &str, &str); 12] = [
    (6440, "least", "{targets: [replica], balance: least_connections}"),
    (6441, "turns", "{targets: [replica], balance: round_robin}"),
    (6442, "random", "{targets: [replica], balance: random}"),
    (6443, "hash", "{targets: [replica], balance: source_hash}"),
    (6444, "first", "{targets: [replica], balance: first}"),
    (6445, "async", "{targets: [async]}"),
    (6446, "sync", "{targets: [[sync, quorum]]}"),
    (6447, "sync-first", "{targets: [sync, replica]}"),
    (6448, "any", "{targets: [any], read_only_on_leader: unenforced}"),
    (
        6449,
        "sync-or-leader",
        "{targets: [sync, leader], read_only_on_leader: unenforced}",
    ),
    (
        6451,
        "fallback",
        "{targets: [replica, leader], read_only_on_leader: unenforced}",
    ),
    (6450, "tagged", "{targets: [replica], tags: {site: north}}"),
];

fn options(cluster_extra: &str) -> Options {
    let mut listeners = "  - {name: rw, address: \"{address}:6432\", route: read-write}\n  \
                         - {name: ro, address: \"{address}:6433\", route: read-only}\n"
        .to_owned();
    let mut routes =
        "routes:\n  read-write: {targets: [leader]}\n  read-only: {targets: [replica]}\n".to_owned();
    for (port, name, route) in ROUTES {
        listeners += &format!("  - {{name: {name}, address: \"{{address}}:{port}\", route: {name}}}\n");
        routes += &format!("  {name}: {route}\n");
    }
    Options {
        listeners: Some(listeners),
        extra: routes,
        cluster_extra: cluster_extra.to_owned(),
        ..Options::default()
    }
}

/// The read-only routes are ready as soon as the leader is, which some of them may use: this waits
/// for the others.
fn started(cluster: &Cluster, options: Options) -> Router {
    let router = Router::before(cluster, options);
    let is_up = |line: &&str| line.starts_with("trunkline_cluster_member_up{") && line.ends_with(" 1");
    eventually("all members are up", Duration::from_secs(20), || {
        router.http("/metrics").unwrap().1.lines().filter(is_up).count() == 3
    });
    router
}

fn open(router: &Router, port: u16) -> Result<Client, ErrorFields> {
    Client::try_login(at(router, port), Login::default())
}

fn server(client: &mut Client) -> String {
    client.value("SELECT host(inet_server_addr())")
}

/// So many sessions, and how many of them each server has.
fn spread(router: &Router, port: u16, count: usize) -> (Vec<Client>, BTreeMap<String, usize>) {
    let mut places = BTreeMap::new();
    let clients = (0..count)
        .map(|_| {
            let mut client = open(router, port).unwrap();
            *places.entry(server(&mut client)).or_default() += 1;
            client
        })
        .collect();
    (clients, places)
}

/// The addresses of the shared cluster's leader, and of its replicas by name.
fn roles(cluster: &Cluster) -> (String, Vec<String>) {
    let mut replicas = cluster.replicas();
    replicas.sort_unstable();
    let address = |name: &String| cluster.node(name).address;
    (address(&cluster.leader()), replicas.iter().map(address).collect())
}

#[test]
fn replicas_share_sessions_by_each_way_to_balance() {
    let cluster = Cluster::shared();
    let router = started(cluster, options(""));
    let (_, replicas) = roles(cluster);
    let each = |counts: &[usize]| -> BTreeMap<String, usize> {
        replicas.iter().cloned().zip(counts.iter().copied()).collect()
    };
    let (held, places) = spread(&router, 6440, 12);
    assert_eq!(places, each(&[6, 6]), "least connections");
    drop(held);
    // In turn whether or not they stay, and however many another route has there.
    let turns: Vec<String> = (0..6)
        .map(|_| server(&mut open(&router, 6441).unwrap()))
        .collect();
    assert!(turns.windows(2).all(|pair| pair[0] != pair[1]), "{turns:?}");
    let (_held, places) = spread(&router, 6442, 12);
    assert_eq!(places, each(&[6, 6]), "the less loaded of two, and there are two");
    let (_held, places) = spread(&router, 6443, 12);
    assert_eq!(places.len(), 1, "one address has one server: {places:?}");
    let (_held, places) = spread(&router, 6444, 12);
    assert_eq!(places, each(&[12]), "the first by name");
}

#[test]
fn sessions_are_shared_out_by_weight_and_zone() {
    let cluster = Cluster::shared();
    let (_, replicas) = roles(cluster);
    let names = {
        let mut names = cluster.replicas();
        names.sort_unstable();
        names
    };
    let weights = format!(
        "members: {{{}: {{weight: 1}}, {}: {{weight: 3}}}}",
        names[0], names[1]
    );
    let router = started(cluster, options(&weights));
    for port in [6440, 6441] {
        let (_held, places) = spread(&router, port, 12);
        assert_eq!(
            (places[&replicas[0]], places[&replicas[1]]),
            (3, 9),
            "port {port}"
        );
    }
    router.await_log(&[&format!("{} has weight 3", names[1])]);

    let zones = format!(
        "zone: b\nmembers: {{{}: {{zone: a}}, {}: {{zone: b}}}}",
        names[0], names[1]
    );
    let router = started(cluster, options(&zones));
    let (_held, places) = spread(&router, 6440, 6);
    assert_eq!(places, BTreeMap::from([(replicas[1].clone(), 6)]));
}

#[test]
fn roles_tags_and_the_leader_as_a_last_resort() {
    let cluster = Cluster::shared();
    let router = started(cluster, options(""));
    let (leader, replicas) = roles(cluster);
    // Its standbys are asynchronous.
    let places = spread(&router, 6445, 4).1;
    assert_eq!(places.len(), 2);
    assert!(!places.contains_key(&leader));
    let error = open(&router, 6446).unwrap_err();
    assert_eq!(
        (error.code.as_str(), error.message.as_str()),
        ("57P03", "no replica accepts read-only sessions now")
    );
    let hint = error.hint.unwrap();
    let one = &cluster.replicas()[0];
    assert!(
        hint.contains(&format!(
            "{one} does not match the targets of the route: sync or quorum."
        )),
        "{hint}"
    );
    let (held, places) = spread(&router, 6447, 4);
    assert!(replicas.iter().all(|replica| places[replica] == 2), "{places:?}");
    let error = open(&router, 6450).unwrap_err();
    assert!(
        error
            .hint
            .as_ref()
            .unwrap()
            .contains("does not have the tag site: north"),
        "{error:?}"
    );

    let unenforced = || router.metric("trunkline_sessions_unenforced_total{route=\"sync-or-leader\"}");
    assert_eq!(unenforced(), 0.0);
    let mut reader = open(&router, 6449).unwrap();
    assert_eq!(server(&mut reader), leader);
    assert_eq!(reader.value("SHOW default_transaction_read_only"), "on");
    assert_eq!(unenforced(), 1.0);
    drop(reader);
    router.await_log(&["session ended", "route=sync-or-leader", "access=unenforced"]);
    router.await_log(&["WARN", "route `any`", "only the role's privileges"]);
    drop(held);
    eventually("leader and standbys count alike", Duration::from_secs(5), || {
        let (_held, places) = spread(&router, 6448, 9);
        places.len() == 3 && places.values().all(|count| *count == 3)
    });
}

#[test]
fn a_client_that_slows_down_its_own_start_sends_nobody_else_to_the_leader() {
    let cluster = Cluster::shared();
    let (leader, _) = roles(cluster);
    let router = started(cluster, options("server: {connect_timeout: 1s}"));
    let parameters = [("options", "-c post_auth_delay=5")];
    let login = Login {
        parameters: &parameters,
        ..Login::default()
    };
    // No server hears of it: a start that is slow in other ways is in `health`.
    let error = Client::try_login(at(&router, 6440), login).unwrap_err();
    assert_eq!(error.code, "42501", "{error:?}");
    let (_held, places) = spread(&router, 6451, 4);
    assert!(!places.contains_key(&leader), "{places:?}");
}

const OPEN: u8 = 0;
const SILENT: u8 = 1;
const CLOSING: u8 = 2;

/// Passes connections on to a server, until new ones are to be left without an answer; those that
/// are there go on.
struct Hole {
    address: Ipv4Addr,
    state: Arc<AtomicU8>,
}

impl Hole {
    fn before(server: SocketAddr) -> Self {
        let address = fresh_address();
        let listener = TcpListener::bind((address, 5432)).unwrap();
        let state = Arc::new(AtomicU8::new(OPEN));
        let now = Arc::clone(&state);
        thread::spawn(move || {
            let mut unanswered = Vec::new();
            for client in listener.incoming() {
                let Ok(client) = client else { return };
                match now.load(Ordering::Acquire) {
                    OPEN => pass(client, TcpStream::connect(server).unwrap()),
                    SILENT => unanswered.push(client),
                    _ => drop(client),
                }
            }
        });
        Self { address, state }
    }
}

fn pass(client: TcpStream, server: TcpStream) {
    let ways = [
        (client.try_clone().unwrap(), server.try_clone().unwrap()),
        (server, client),
    ];
    for (mut from, mut to) in ways {
        thread::spawn(move || {
            let _ = io::copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Write);
        });
    }
}

#[test]
fn a_replica_that_takes_no_new_connections_neither_attracts_nor_delays_sessions() {
    let cluster = Cluster::shared();
    let (leader, replicas) = roles(cluster);
    let at_node = |address: &String| {
        let nodes = cluster.nodes();
        node_address(nodes.iter().find(|node| node.address == *address).unwrap())
    };
    let hole = Hole::before(at_node(&replicas[1]));
    let dir = tempfile::tempdir().unwrap();
    let password = secret(dir.path(), "password", cluster.text("service_password"));
    // A probe's standing connection goes on working, and `fall` is out of reach: the hole stays up.
    let clusters = format!(
        "clusters:\n  main:\n    servers: [{{name: hole, host: {}}}, {{name: leader, host: {leader}}}, \
         {{name: sound, host: {}}}]\n    service_account: {{user: {}, password_file: {}}}\n    \
         server: {{connect_timeout: 1s}}\n    probe: {{interval: 1s, fall: 100}}\n",
        hole.address,
        replicas[0],
        cluster.text("service_user"),
        password.display(),
    );
    let routes = [
        "least_connections",
        "round_robin",
        "random",
        "first",
        "source_hash",
    ];
    let mut listeners = "  - {name: rw, address: \"{address}:6432\", route: read-write}\n  \
                         - {name: ro, address: \"{address}:6433\", route: read-only}\n"
        .to_owned();
    let mut text =
        "routes:\n  read-write: {targets: [leader]}\n  read-only: {targets: [replica]}\n".to_owned();
    for (port, balance) in (6440_u16..).zip(routes) {
        listeners += &format!("  - {{name: {balance}, address: \"{{address}}:{port}\", route: {balance}}}\n");
        text += &format!("  {balance}: {{targets: [replica], balance: {balance}}}\n");
    }
    for state in [SILENT, CLOSING] {
        hole.state.store(OPEN, Ordering::Release);
        let router = Router::launch(
            None,
            Options {
                clusters: Some(clusters.clone()),
                listeners: Some(listeners.clone()),
                extra: text.clone(),
                ..Options::default()
            },
        );
        router.await_ready();
        eventually("both replicas serve", Duration::from_secs(10), || {
            spread(&router, 6440, 4).1.len() == 2
        });
        hole.state.store(state, Ordering::Release);
        let mut delayed = 0;
        let began = Instant::now();
        for port in (6440..).take(routes.len()) {
            for _ in 0..20 {
                let started = Instant::now();
                let mut client = open(&router, port).unwrap();
                delayed += u32::from(started.elapsed() > Duration::from_millis(900));
                assert_eq!(server(&mut client), replicas[0], "port {port}");
            }
        }
        // One session every ten seconds tries it again.
        let tries = 1 + u32::try_from(began.elapsed().as_secs()).unwrap() / 10;
        assert!(
            delayed <= tries,
            "{delayed} sessions had to wait, of {tries} tries"
        );
        if state == SILENT {
            assert!(delayed > 0, "nobody has tried it");
        }
    }
}

#[test]
fn enforced_reading_on_the_leader_takes_a_role_that_may_write_nothing() {
    enforced(false);
}

/// With rights that PostgreSQL 15 has not.
#[test]
fn enforced_reading_on_a_leader_of_postgresql_18() {
    enforced(true);
}

/// What the documentation says of functions that write and that everybody may call.
fn prepare_functions() -> String {
    let text = std::fs::read_to_string(project().join("docs/configuration.md")).unwrap();
    let start = text.find("DO $$").unwrap();
    let end = text[start..].find("$$;").unwrap() + start + 3;
    text[start..end].to_owned()
}

#[expect(
    clippy::too_many_lines,
    reason = "a list of statements, each with its outcome"
)]
fn enforced(version_18: bool) {
    let server = Postgres::start(&ServerOptions {
        version_18,
        ..ServerOptions::default()
    });
    server.sql("CREATE ROLE reader LOGIN PASSWORD 'reader' IN ROLE pg_read_all_data; CREATE ROLE other");
    let dir = tempfile::tempdir().unwrap();
    let password = secret(dir.path(), "reader", "reader");
    let router = Router::launch(
        None,
        Options {
            clusters: Some(server.yaml()),
            listeners: Some("  - {name: any, address: \"{address}:6433\", route: any}\n".to_owned()),
            extra: format!(
                "routes: {{any: {{targets: [any], read_only_on_leader: enforced}}}}\nauth: {{server_credentials: [{{users: \
                 all, server_user: reader, password_file: {}}}]}}\n",
                password.display()
            ),
            ..Options::default()
        },
    );
    eventually("somebody serves", Duration::from_secs(10), || {
        router.http("/connection/is-ready-ro").unwrap().0 == 200
    });
    // The database that the harness changes.
    let log_in = |options: &str| {
        let parameters = [("database", "postgres"), ("options", options)];
        let login = Login {
            parameters: &parameters,
            ..Login::default()
        };
        Client::try_login(at(&router, 6433), login)
    };
    let told = || {
        let error = log_in("").unwrap_err();
        assert_eq!(error.code, "57P03", "{error:?}");
        error.message
    };
    server.sql("CREATE TABLE t (a int, b int); CREATE SEQUENCE s; CREATE SCHEMA sch; GRANT other TO reader");
    assert!(
        told().contains("has TEMPORARY in the database postgres"),
        "{}",
        told()
    );
    server.sql("REVOKE TEMPORARY ON DATABASE postgres FROM PUBLIC");
    assert!(told().contains("may execute lo_"), "{}", told());
    server.sql(&prepare_functions());
    server.sql(
        "CREATE MATERIALIZED VIEW mv AS SELECT 1; CREATE FOREIGN DATA WRAPPER w; CREATE SERVER srv FOREIGN DATA WRAPPER w",
    );
    let emit = if version_18 {
        (
            "GRANT EXECUTE ON FUNCTION pg_logical_emit_message(bool, text, text, bool) TO reader",
            "REVOKE EXECUTE ON FUNCTION pg_logical_emit_message(bool, text, text, bool) FROM reader",
        )
    } else {
        (
            "GRANT EXECUTE ON FUNCTION pg_logical_emit_message(bool, text, text) TO reader",
            "REVOKE EXECUTE ON FUNCTION pg_logical_emit_message(bool, text, text) FROM reader",
        )
    };
    let since_17 = [
        (
            "GRANT MAINTAIN ON t TO other",
            "may maintain public.t",
            "REVOKE MAINTAIN ON t FROM other",
        ),
        (
            "GRANT MAINTAIN ON mv TO reader",
            "may maintain public.mv",
            "REVOKE MAINTAIN ON mv FROM reader",
        ),
        (
            "GRANT pg_maintain TO reader",
            "member of pg_maintain",
            "REVOKE pg_maintain FROM reader",
        ),
    ];
    // Each thing that it could write by, given and taken.
    for (give, expected, take) in [
        (
            "ALTER ROLE reader CREATEDB",
            "role \"reader\" has CREATEDB",
            "ALTER ROLE reader NOCREATEDB",
        ),
        (
            "ALTER ROLE other CREATEROLE; ALTER ROLE reader NOINHERIT",
            "role \"reader\" is a member of other, which has CREATEROLE",
            "ALTER ROLE other NOCREATEROLE; ALTER ROLE reader INHERIT",
        ),
        (
            "GRANT UPDATE ON t TO other",
            "may change public.t",
            "REVOKE UPDATE ON t FROM other",
        ),
        (
            "GRANT INSERT (b) ON t TO PUBLIC",
            "may change public.t",
            "REVOKE INSERT (b) ON t FROM PUBLIC",
        ),
        (
            "GRANT USAGE ON SEQUENCE s TO reader",
            "may change public.s",
            "REVOKE USAGE ON SEQUENCE s FROM reader",
        ),
        (
            "GRANT CREATE ON SCHEMA sch TO reader",
            "schema sch",
            "REVOKE CREATE ON SCHEMA sch FROM reader",
        ),
        (
            "GRANT pg_write_all_data TO reader",
            "member of pg_write_all_data",
            "REVOKE pg_write_all_data FROM reader",
        ),
        (
            "ALTER TABLE t OWNER TO other",
            "is a member of other, which owns objects",
            "ALTER TABLE t OWNER TO postgres",
        ),
        (
            "CREATE FUNCTION f() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1'",
            "may execute public.f(), which is SECURITY DEFINER",
            "DROP FUNCTION f()",
        ),
        (
            "SELECT lo_create(4711); GRANT UPDATE ON LARGE OBJECT 4711 TO PUBLIC",
            "large object 4711",
            "SELECT lo_unlink(4711)",
        ),
        (
            "ALTER ROLE reader SUPERUSER",
            "role \"reader\" has SUPERUSER",
            "ALTER ROLE reader NOSUPERUSER",
        ),
        (
            "GRANT TRIGGER ON t TO reader",
            "may put a trigger on public.t",
            "REVOKE TRIGGER ON t FROM reader",
        ),
        (
            "GRANT USAGE ON FOREIGN SERVER srv TO PUBLIC",
            "foreign server srv",
            "REVOKE USAGE ON FOREIGN SERVER srv FROM PUBLIC",
        ),
        (
            "GRANT USAGE ON FOREIGN DATA WRAPPER w TO other",
            "foreign-data wrapper w",
            "REVOKE USAGE ON FOREIGN DATA WRAPPER w FROM other",
        ),
        (emit.0, "may execute pg_logical_emit_message", emit.1),
        (
            "GRANT SET ON PARAMETER lo_compat_privileges TO reader",
            "may set the parameter lo_compat_privileges",
            "REVOKE SET ON PARAMETER lo_compat_privileges FROM reader",
        ),
        (
            "GRANT ALTER SYSTEM ON PARAMETER work_mem TO PUBLIC",
            "may set the parameter work_mem",
            "REVOKE ALTER SYSTEM ON PARAMETER work_mem FROM PUBLIC",
        ),
        (
            "ALTER DATABASE postgres SET lo_compat_privileges = on",
            "every large object",
            "ALTER DATABASE postgres RESET lo_compat_privileges",
        ),
        (
            "CREATE ROLE club; GRANT club TO reader WITH ADMIN OPTION",
            "may grant the role club",
            "DROP ROLE club",
        ),
        (
            "GRANT SELECT ON t TO other WITH GRANT OPTION",
            "may grant rights on public.t",
            "REVOKE SELECT ON t FROM other",
        ),
        (
            "GRANT USAGE ON SCHEMA sch TO reader WITH GRANT OPTION",
            "may grant rights on the schema sch",
            "REVOKE USAGE ON SCHEMA sch FROM reader",
        ),
        // Its caller needs no right on the function.
        (
            "CREATE FUNCTION sf(int, int) RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1'; \
             REVOKE EXECUTE ON FUNCTION sf FROM PUBLIC; CREATE AGGREGATE ag(int) (sfunc = sf, stype = int)",
            "the aggregate public.ag(integer)",
            "DROP AGGREGATE ag(int); DROP FUNCTION sf(int, int)",
        ),
        // Too short a time to look at anything, and it would hold for all who come after.
        (
            "ALTER ROLE reader SET statement_timeout = '1ms'",
            "has settings (statement_timeout)",
            "ALTER ROLE reader RESET ALL",
        ),
        (
            "ALTER ROLE reader IN DATABASE postgres SET search_path = sch, public",
            "ALTER ROLE reader IN DATABASE postgres RESET ALL",
            "ALTER ROLE reader IN DATABASE postgres RESET ALL",
        ),
    ]
    .into_iter()
    .chain(since_17.into_iter().filter(|_| version_18))
    {
        server.sql(give);
        let why = told();
        assert!(why.contains(expected), "{give}: {why}");
        server.sql(take);
    }
    let mut reader = log_in("").unwrap();
    assert_eq!(
        reader.value("SELECT session_user || ' ' || pg_is_in_recovery()"),
        "reader false"
    );
    assert_eq!(reader.value("SHOW default_transaction_read_only"), "on");
    assert_eq!(reader.value("SHOW search_path"), "\"$user\", public");
    // It takes back what it was given, and still may not.
    reader.ask("SET default_transaction_read_only = off");
    assert_eq!(reader.value("SHOW transaction_read_only"), "off");
    let frames = reader.ask("DELETE FROM t");
    let refused = frames.iter().find(|frame| frame.tag == b'E').unwrap();
    assert_eq!(ErrorFields::parse(&refused.body).unwrap().code, "42501");
    // Nobody can be kept from this, and nobody else is kept out by it.
    reader.ask("ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO PUBLIC");
    log_in("").unwrap();
    // The client's own time-out is in force again, whatever was needed to look.
    let mut hurried = log_in("-c statement_timeout=7s").unwrap();
    assert_eq!(hurried.value("SHOW statement_timeout"), "7s");
    drop((reader, hurried));
    router.await_log(&["session ended", "route=any", "access=enforced"]);
    // The client's settings do not bend what is seen.
    server.sql("GRANT DELETE ON t TO reader");
    let error = log_in("-c search_path=public,pg_catalog -c role=other").unwrap_err();
    assert!(error.message.contains("may change"), "{error:?}");
}
