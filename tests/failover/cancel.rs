//! Several routers before one cluster: a cancel request reaches its session through any of them.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use super::cluster::{Cluster, Options, Router, eventually, fresh_address, secret};
use super::session::Session;

fn cancel(at: Ipv4Addr, port: u16, key: &(u32, bytes::Bytes)) {
    let mut stream = TcpStream::connect((at, port)).unwrap();
    let mut request = u32::try_from(12 + key.1.len()).unwrap().to_be_bytes().to_vec();
    request.extend_from_slice(&80_877_102_u32.to_be_bytes());
    request.extend_from_slice(&key.0.to_be_bytes());
    request.extend_from_slice(&key.1);
    stream.write_all(&request).unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(answer.is_empty(), "a cancel request is never answered");
}

#[test]
fn a_cancel_goes_through_any_router() {
    let cluster = Cluster::shared();
    let dir = tempfile::tempdir().unwrap();
    let key = secret(dir.path(), "peers", "0123456789abcdef0123456789abcdef");
    let addresses = [fresh_address(), fresh_address(), fresh_address()];
    let members: Vec<String> = addresses
        .iter()
        .enumerate()
        .map(|(number, address)| format!("{{name: r{number}, address: \"{address}:6432\"}}"))
        .collect();
    let extra = format!(
        "peers: {{secret_file: {}, members: [{}]}}\n",
        key.display(),
        members.join(", ")
    );
    let routers: Vec<Router> = addresses
        .iter()
        .map(|address| {
            let options = Options {
                extra: extra.clone(),
                address: Some(*address),
                ..Options::default()
            };
            Router::before(cluster, options)
        })
        .collect();
    let leader = cluster.node(&cluster.leader());
    for (through, port) in [(0, 6432), (1, 6432), (2, 6433)] {
        let mut session = Session::open(routers[0].address, 6432).unwrap();
        let marker = format!("cancel-through-{through}");
        session.send(&format!("SELECT '{marker}', pg_sleep(60)"));
        let running = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT ''{marker}%' AND state = 'active'"
        );
        eventually("it runs", Duration::from_secs(5), || leader.sql(&running) == "1");
        let mut bystander = Session::open(routers[through].address, 6432).unwrap();
        bystander.send("SELECT pg_sleep(0.3)");
        cancel(routers[through].address, port, &session.cancel_key());
        let errors = session.answer().errors();
        assert_eq!(errors.len(), 1, "through router {through}: {errors:?}");
        assert_eq!(errors[0].code, "57014");
        assert_eq!(session.query("SELECT 1"), "1", "the session goes on");
        assert!(
            bystander.answer().errors().is_empty(),
            "and nobody else's statement is cancelled"
        );
    }
}
