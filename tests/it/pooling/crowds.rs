//! Very many clients on few connections.

use std::fmt::Write as _;
use std::fs;
use std::process::Command;
use std::thread;
use std::time::Duration;

use tokio::time::Instant;

use super::{FIRST_PORT, cheapen, codes, login, seen, serves};
use crate::cluster::postgres::{self, Postgres};
use crate::cluster::{Options, Router, eventually, output, secret};
use crate::fake::cheap_verifier;
use crate::raw::{Client, PATIENCE, query, resident_kib, shown};

/// With one route and one listener for each of `routes`; users are known without the server.
fn router(server: &Postgres, workers: u32, routes: &[&str]) -> Router {
    let dir = tempfile::tempdir().unwrap();
    let users = secret(dir.path(), "users", &format!("\"app\" \"{}\"", cheap_verifier()));
    let (mut listeners, mut keys) = (String::new(), String::new());
    for (index, route) in routes.iter().enumerate() {
        let port = usize::from(FIRST_PORT) + index;
        let _ = writeln!(
            listeners,
            "  - {{name: l{index}, address: \"{{address}}:{port}\", route: r{index}}}"
        );
        let _ = writeln!(keys, "  r{index}: {{targets: [leader], {route}}}");
    }
    let extra = format!(
        "workers: {workers}\nlimits: {{max_clients: 0}}\nauth: {{users_file: {}}}\nroutes:\n{keys}",
        users.display()
    );
    let router = Router::launch(
        None,
        Options {
            clusters: Some(server.yaml()),
            listeners: Some(listeners),
            extra,
            ..Options::default()
        },
    );
    serves(&router);
    router
}

/// In the order of their logins.
fn crowd(router: &Router, port: u16, count: usize) -> Vec<Client> {
    const THREADS: usize = 4;
    thread::scope(|scope| {
        let parts: Vec<_> = (0..THREADS)
            .map(|_| {
                scope.spawn(|| -> Vec<Client> {
                    let logins = (0..count / THREADS).map(|_| login(router, port, "app", "app"));
                    logins.collect()
                })
            })
            .collect();
        parts.into_iter().flat_map(|part| part.join().unwrap()).collect()
    })
}

/// They are served in the order in which they came, none is lost, and a session that waits costs
/// hardly more than one that does nothing.
#[test]
#[ignore = "takes half a minute, and ten thousand descriptors"]
fn five_thousand_clients_wait_for_five_connections_in_order() {
    const CLIENTS: usize = 5000;
    const AT_ONCE: usize = 100;
    const CONNECTIONS: usize = 5;
    let limit = rlimit::increase_nofile_limit(u64::MAX).unwrap();
    assert!(
        limit >= 12_000,
        "the open-file limit is {limit}; raise the hard one (ulimit -Hn) to 20000"
    );
    let server = Postgres::start(&postgres::Options::default());
    cheapen(&server);
    server.sql_in(
        "app",
        "CREATE SEQUENCE served; ALTER SEQUENCE served OWNER TO app",
    );
    let routes = [
        "queue_timeout: 5m, max_queue: 10000, pool: {mode: transaction, max_connections: 5, wait_notify: 0}",
        "queue_timeout: 3s, max_queue: 10000, pool: {mode: transaction, max_connections: 5, wait_notify: 0}",
    ];
    let router = router(&server, 1, &routes);
    let begun = Instant::now();
    let mut clients = crowd(&router, FIRST_PORT, CLIENTS);
    eprintln!("{CLIENTS} logins in {:?}", begun.elapsed());
    let waiting = |number: usize| {
        let value = router.metric("trunkline_queue_length{route=\"r0\"}");
        #[allow(clippy::cast_precision_loss)]
        let number = number as f64;
        value > number - 0.5
    };
    let mut holders: Vec<Client> = (0..CONNECTIONS)
        .map(|_| login(&router, FIRST_PORT, "app", "app"))
        .collect();
    for holder in &mut holders {
        holder.ask("BEGIN");
    }
    let before = resident_kib(router.process_id());
    let first: usize = server.sql_in("app", "SELECT nextval('served')").parse().unwrap();
    let mut sent = 0;
    for group in clients.chunks_mut(AT_ONCE) {
        for client in group.iter_mut() {
            client.send(&query("SELECT nextval('served')"));
        }
        sent += group.len();
        // Those of one group come in any order.
        eventually("they wait", PATIENCE, || waiting(sent));
    }
    let each = resident_kib(router.process_id()).saturating_sub(before) * 1024 / CLIENTS as u64;
    for holder in &mut holders {
        holder.ask("COMMIT");
    }
    let begun = Instant::now();
    let mut furthest = 0;
    for (number, client) in clients.iter_mut().enumerate() {
        let place: usize = seen(&client.ready()).parse().unwrap();
        furthest = furthest.max((place - first - 1).abs_diff(number));
    }
    eprintln!(
        "served in {:?}; {furthest} places from its own at most; {each} bytes for each that waits",
        begun.elapsed()
    );
    // Its group, and what the other connections serve while the process of one does not run.
    assert!(furthest <= 2 * AT_ONCE, "{furthest} places from its own");
    assert!(each <= 2048, "{each} bytes for each that waits");
    drop(clients);
    time_out(&router, FIRST_PORT + 1, CLIENTS, CONNECTIONS);
}

/// All of them are told in time, and go on.
fn time_out(router: &Router, port: u16, count: usize, connections: usize) {
    let mut holders: Vec<Client> = (0..connections)
        .map(|_| login(router, port, "app", "app"))
        .collect();
    let mut clients = crowd(router, port, count);
    for holder in &mut holders {
        holder.ask("BEGIN");
    }
    let begun = Instant::now();
    for client in &mut clients {
        client.send(&query("SELECT 1"));
    }
    for client in &mut clients {
        assert_eq!(shown(&client.ready()), ["E53300 ERROR", "ZI"]);
    }
    let took = begun.elapsed();
    eprintln!("the last of {count} was told after {took:?}");
    assert!(took >= Duration::from_secs(3), "{took:?}");
    assert!(took < Duration::from_secs(10), "{took:?}");
    for holder in &mut holders {
        holder.ask("COMMIT");
    }
    for client in &mut clients {
        assert_eq!(codes(&client.ask("SELECT 1")), Vec::<String>::new());
    }
}

/// The 99th percentile of a client's transactions, in microseconds.
fn percentile(mut times: Vec<u64>) -> u64 {
    times.sort_unstable();
    times[times.len() * 99 / 100]
}

/// No client waits much longer than another, whichever worker it is on.
#[test]
#[ignore = "measures times, on a machine that does nothing else"]
fn five_hundred_clients_on_twenty_connections_wait_equally_long() {
    const CLIENTS: usize = 500;
    let server = Postgres::start(&postgres::Options::default());
    cheapen(&server);
    let route = "queue_timeout: 1m, max_queue: 10000, pool: {mode: transaction, max_connections: 20}";
    let router = router(&server, 2, &[route]);
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("script.sql");
    fs::write(&script, "SELECT 6 * 7;\n").unwrap();
    let done = output(
        Command::new("pgbench")
            .args(["-n", "-M", "prepared", "-T", "40", "-j", "2", "-l"])
            .args(["-c", &CLIENTS.to_string(), "--log-prefix"])
            .arg(dir.path().join("log"))
            .arg("-f")
            .arg(&script)
            .arg(router.dsn(FIRST_PORT, "sslmode=disable")),
    );
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    let faults = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.success(), "{said}{faults}");
    // Client, number, microseconds, script, seconds and microseconds of the end.
    let mut times: Vec<Vec<(u64, u64)>> = vec![Vec::new(); CLIENTS];
    for entry in fs::read_dir(dir.path()).unwrap() {
        let path = entry.unwrap().path();
        if path == script {
            continue;
        }
        for line in fs::read_to_string(&path).unwrap().lines() {
            let fields: Vec<u64> = line.split(' ').map(|field| field.parse().unwrap()).collect();
            times[usize::try_from(fields[0]).unwrap()].push((fields[4], fields[2]));
        }
    }
    let ends = || times.iter().flatten().map(|(end, _)| *end);
    let (first, last) = (ends().min().unwrap() + 3, ends().max().unwrap() - 1);
    let mut each: Vec<u64> = times
        .iter()
        .map(|own| {
            let steady = own.iter().filter(|(end, _)| (first..last).contains(end));
            percentile(steady.map(|(_, took)| *took).collect())
        })
        .collect();
    each.sort_unstable();
    let (least, median, most) = (each[0], each[CLIENTS / 2], each[CLIENTS - 1]);
    let tps = said
        .lines()
        .find(|line| line.starts_with("tps"))
        .unwrap_or_default();
    eprintln!("{tps}; p99 of each client, in µs: {least} to {most}, half of them up to {median}");
    assert!(most <= 2 * least, "p99 from {least} to {most} µs");
}
