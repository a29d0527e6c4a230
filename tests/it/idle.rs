//! Clients that do nothing, in numbers.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::thread;
use std::time::Duration;

use tokio::time::Instant;

use super::fake::{Fake, kib_per_client};
use super::raw::{Client, proportional_kib};
use crate::cluster::{Cluster, Options, Router};

const THREADS: usize = 4;

/// Logs in `count` clients, by a few threads.
fn log_in(router: &Router, count: usize) -> Vec<Client> {
    thread::scope(|scope| {
        let part = |_| {
            scope.spawn(|| {
                (0..count / THREADS)
                    .map(|_| Client::new(router))
                    .collect::<Vec<_>>()
            })
        };
        let parts: Vec<_> = (0..THREADS).map(part).collect();
        parts.into_iter().flat_map(|part| part.join().unwrap()).collect()
    })
}

/// Each asks once; the slowest answer.
fn each_asks(clients: &mut [Client]) -> Duration {
    let size = clients.len().div_ceil(THREADS);
    thread::scope(|scope| {
        let ask = |client: &mut Client| {
            let started = Instant::now();
            assert_eq!(client.value("SELECT 1"), "1");
            started.elapsed()
        };
        let parts: Vec<_> = clients
            .chunks_mut(size)
            .map(|part| scope.spawn(move || part.iter_mut().map(ask).max().unwrap()))
            .collect();
        parts.into_iter().map(|part| part.join().unwrap()).max().unwrap()
    })
}

#[test]
fn a_thousand_idle_clients_before_a_real_server() {
    let router = Router::before(Cluster::shared(), Options::default());
    let before = proportional_kib(router.process_id());
    let mut clients = log_in(&router, 1000);
    let each = kib_per_client(before, &router, 1000);
    let slowest = each_asks(&mut clients);
    let after = kib_per_client(before, &router, 1000);
    eprintln!(
        "1000 clients, TLS to the server: {each:.1} KiB each, {after:.1} after a query; slowest answer {slowest:?}"
    );
    assert!(slowest < Duration::from_secs(5), "{slowest:?}");
}

#[test]
fn nine_thousand_idle_clients() {
    // A client, its session on the router and its end at the stand-in: the first and the last are
    // ours.
    let limit = rlimit::increase_nofile_limit(u64::MAX).unwrap();
    assert!(
        limit >= 18_500,
        "the open-file limit is {limit}; raise the hard one (ulimit -Hn) to 20000"
    );
    let server = Fake::start(super::fake::Session::answer_all);
    let router = server.router("limits: {max_clients: 0}\n");
    let before = proportional_kib(router.process_id());
    let mut clients = log_in(&router, 9000);
    let idle = kib_per_client(before, &router, 9000);
    let slowest = each_asks(&mut clients);
    let after = kib_per_client(before, &router, 9000);
    eprintln!("9000 clients: {idle:.1} KiB each (PSS), {after:.1} after a query; slowest answer {slowest:?}");
    assert!(idle < 16.0 && after < 16.0, "{idle} KiB, {after} after a query");
    assert!(slowest < Duration::from_secs(5), "{slowest:?}");
}
