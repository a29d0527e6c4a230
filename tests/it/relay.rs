//! The relay before real servers, and before ones that misbehave.
#![allow(clippy::unwrap_used, clippy::many_single_char_names)]

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tokio::time::Instant;
use trunkline::wire::frame::Frame;

use super::fake::{Fake, one_row, router_before, trusting};
use super::raw::{
    Client, How, Login, PATIENCE, Stream, at, bind, execute, extended, flush, framed, node_address, parse,
    peak_kib, query, shown, sync, terminate,
};
use crate::cluster::{Cluster, Options, Router, eventually};

const EACH: [How; 3] = [How::Plain, How::Tls, How::DirectTls];

#[test]
fn a_client_that_closes_its_half_gets_its_answer_and_then_the_end() {
    let router = Router::shared();
    for how in EACH {
        let mut client = Client::encrypted(&router, how);
        client.send(&query("SELECT pg_sleep(0.3), 'x'"));
        client.half_close();
        assert_eq!(shown(&client.rest()), ["T", "D", "CSELECT 1", "ZI"], "{how:?}");
    }
    router.await_log(&["session ended", "client closed the connection"]);
}

#[test]
fn goodbye_is_answered_by_an_orderly_end_at_once() {
    let router = Router::shared();
    for how in EACH {
        let mut client = Client::encrypted(&router, how);
        let started = Instant::now();
        client.send(&terminate());
        // A TLS stream that ends without close_notify is an error here.
        assert!(client.rest().is_empty());
        assert!(
            started.elapsed() < Duration::from_secs(1),
            "{how:?}: {:?}",
            started.elapsed()
        );
        // What was asked before the goodbye is answered.
        let mut client = Client::encrypted(&router, how);
        client.send(&[query("SELECT 1"), terminate()].concat());
        assert_eq!(shown(&client.rest()), ["T", "D", "CSELECT 1", "ZI"], "{how:?}");
    }
    let log = router.log();
    assert!(
        !log.lines()
            .any(|line| line.contains("session ended") && line.contains("WARN")),
        "{log}"
    );
}

/// Backends of the leader with this application name.
fn backends(cluster: &Cluster, name: &str) -> usize {
    let sql = format!("SELECT count(*) FROM pg_stat_activity WHERE application_name = '{name}'");
    cluster.node(&cluster.leader()).sql(&sql).parse().unwrap()
}

#[test]
fn a_client_that_dies_takes_its_server_connection_along_and_nothing_else() {
    let (cluster, router) = (Cluster::shared(), Router::shared());
    let mut other = Client::new(&router);
    // In the middle of a frame.
    let mut dying = Client::named(&router, "dies within a frame");
    dying.send(&framed(b'Q', &vec![b' '; 5000])[..1000]);
    eventually("it is there", PATIENCE, || {
        backends(cluster, "dies within a frame") == 1
    });
    drop(dying);
    eventually("its backend ends", PATIENCE, || {
        backends(cluster, "dies within a frame") == 0
    });
    // By a reset, between transactions and with a request under way.
    let idle = Client::named(&router, "reset idle");
    idle.reset();
    eventually("its backend ends", PATIENCE, || {
        backends(cluster, "reset idle") == 0
    });
    let mut busy = Client::named(&router, "reset busy");
    busy.send(&query("SELECT pg_sleep(5), 'x'"));
    eventually("it runs", PATIENCE, || backends(cluster, "reset busy") == 1);
    busy.reset();
    router.await_log(&["session ended", "while a request was under way"]);
    eventually("its backend ends", PATIENCE, || {
        backends(cluster, "reset busy") == 0
    });
    assert_eq!(other.value("SELECT 1"), "1");
}

#[test]
fn the_servers_own_last_word_is_passed_on_and_nothing_is_added() {
    let (cluster, router) = (Cluster::shared(), Router::shared());
    let leader = cluster.node(&cluster.leader());
    let mut said = Vec::new();
    for busy in [false, true] {
        for address in [node_address(&leader), at(&router, 6432)] {
            let mut client = Client::login(address, Login::default());
            if busy {
                client.send(&query("SELECT pg_sleep(60)"));
                let running = format!(
                    "SELECT state FROM pg_stat_activity WHERE pid = {}",
                    client.process_id
                );
                eventually("it runs", PATIENCE, || leader.sql(&running) == "active");
            }
            assert_eq!(
                leader.sql(&format!("SELECT pg_terminate_backend({})", client.process_id)),
                "t"
            );
            let frames = client.rest();
            assert_eq!(
                shown(frames.last().map(std::slice::from_ref).unwrap()),
                ["E57P01 FATAL"],
                "busy: {busy}"
            );
            assert!(!frames.iter().any(|frame| frame.tag == b'Z'));
            said.push(frames);
        }
    }
    assert!(said[0] == said[1] && said[2] == said[3]);
    router.await_log(&["session ended", "server ended the session with 57P01"]);
}

/// A router whose server answers the first Query with `answer` and closes; then every other session
/// as usual.
fn dying_server(answer: &[u8]) -> (Fake, Router) {
    let answer = answer.to_vec();
    let server = Fake::start(move |mut session| {
        let answer = answer.clone();
        async move {
            while let Some((_, body)) = session.frame().await {
                if body.starts_with(b"die") {
                    session.send(&answer).await;
                    return;
                }
                session.send(&one_row("1")).await;
            }
        }
    });
    let router = server.router("");
    (server, router)
}

#[test]
fn a_server_that_closes_without_a_word_is_reported_honestly() {
    // While nothing is under way.
    let server = Fake::start(|mut session| async move {
        session.frame().await;
        session.send(&one_row("1")).await;
    });
    let router = server.router("");
    let mut client = Client::new(&router);
    assert_eq!(client.value("SELECT 1"), "1");
    assert_eq!(shown(&client.rest()), ["E08006 FATAL"]);
    drop((server, router));
    // Before any answer; between two messages of one; with an error as the last whole message.
    let row = one_row("1");
    let whole = row.len() - framed(b'Z', b"I").len();
    let refused = framed(b'E', b"SERROR\0VERROR\0C22012\0Mno\0\0");
    for (answer, before) in [
        (&b""[..], &[][..]),
        (&row[..whole], &["T", "D", "CSELECT 1"][..]),
        (&refused, &["E22012 ERROR"]),
    ] {
        let (_server, router) = dying_server(answer);
        for how in [How::Plain, How::Tls] {
            let mut client = Client::encrypted(&router, how);
            assert_eq!(client.value("SELECT 1"), "1");
            client.send(&query("die"));
            let mut expected = before.to_vec();
            // The request is answered in order, and then there is nothing more.
            expected.extend(["E08007 ERROR", "ZI"]);
            assert_eq!(shown(&client.rest()), expected);
        }
        router.await_log(&["WARN", "session ended", "outcome unknown"]);
    }
    // Within a message: the bytes so far, and nothing that would be taken for the rest of it.
    let (_server, router) = dying_server(&row[..whole - 5]);
    let mut client = Client::new(&router);
    client.send(&query("die"));
    let mut bytes = Vec::new();
    client.stream.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, row[..whole - 5]);
    assert_eq!(Client::new(&router).value("SELECT 1"), "1");
}

#[test]
fn a_server_that_breaks_the_protocol_ends_its_session_only() {
    // Whole messages before the broken one reach the client, also where they came in the same read.
    let row = one_row("1");
    let broken = [&row[..], b"D\0\0\0\x03"].concat();
    let (_server, router) = dying_server(&broken);
    let mut other = Client::new(&router);
    let mut client = Client::new(&router);
    client.send(&query("die"));
    assert_eq!(
        shown(&client.rest()),
        ["T", "D", "CSELECT 1", "ZI", "E08P01 FATAL"]
    );
    router.await_log(&["WARN", "session ended", "protocol violation by the server"]);
    assert_eq!(other.value("SELECT 1"), "1");
}

#[test]
fn a_server_that_breaks_the_protocol_behind_a_split_message_leaves_no_torn_one() {
    // A long row in two writes, and the broken header right behind it.
    let row = framed(b'D', &vec![b'x'; 50_000]);
    let server = Fake::start(move |mut session| {
        let row = row.clone();
        async move {
            session.frame().await;
            session.send(&row[..20_000]).await;
            // The client has the first part, and asks for the second.
            session.frame().await;
            session.send(&[&row[20_000..], b"Z\0\0\0\x09"].concat()).await;
            session.frame().await;
        }
    });
    let router = server.router("");
    let mut client = Client::new(&router);
    client.send(&query("first"));
    let mut part = vec![0; 20_000];
    client.stream.read_exact(&mut part).unwrap();
    client.send(&query("second"));
    let mut rest = vec![0; 50_005 - part.len()];
    client.stream.read_exact(&mut rest).unwrap();
    assert!(rest.iter().all(|&byte| byte == b'x'));
    assert_eq!(shown(&client.rest()), ["E08007 ERROR", "ZI"]);
}

#[test]
fn a_client_that_breaks_the_protocol_ends_its_session_only() {
    let router = Router::shared();
    let mut other = Client::new(&router);
    for length in [0_u32, 3, 0x4000_0000, u32::MAX] {
        let mut client = Client::new(&router);
        client.send(&[&b"Q"[..], &length.to_be_bytes()].concat());
        assert_eq!(shown(&client.rest()), ["E08P01 FATAL"]);
    }
    // Long where only short ones are.
    let mut client = Client::new(&router);
    client.send(&framed(b'S', &vec![0; 20_000]));
    assert_eq!(shown(&client.rest()), ["E08P01 FATAL"]);
    router.await_log(&["session ended", "protocol violation by the client"]);
    assert_eq!(other.value("SELECT 1"), "1");
}

#[test]
fn what_an_error_pretends_says_nothing_of_the_server() {
    let router = Router::shared();
    let mut client = Client::new(&router);
    for code in ["57P01", "57P02", "57P03"] {
        let sql = format!("DO $$ BEGIN RAISE EXCEPTION 'not so' USING ERRCODE = '{code}'; END $$");
        for _ in 0..5 {
            assert_eq!(
                shown(&client.ask(&sql)),
                [format!("E{code} ERROR"), "ZI".to_owned()]
            );
            assert_eq!(Client::new(&router).value("SELECT 1"), "1");
        }
    }
    let log = router.log();
    assert!(!log.contains("does not accept connections"), "{log}");
}

#[test]
fn a_slow_reader_costs_little_memory_and_nobody_elses_time() {
    const ROWS: usize = 200_000;
    let router = Router::shared();
    for how in [How::Plain, How::Tls] {
        let mut slow = Client::encrypted(&router, how);
        let mut other = Client::new(&router);
        assert_eq!(other.value("SELECT 1"), "1");
        let before = peak_kib(router.process_id());
        slow.send(&query(&format!(
            "SELECT repeat('x', 1000) FROM generate_series(1, {ROWS})"
        )));
        // The router has got what it can: no more comes although there is more.
        for _ in 0..200 {
            assert_eq!(other.value("SELECT 1"), "1");
        }
        let mut rows = 0;
        loop {
            let frame = slow.frame();
            match frame.tag {
                b'D' => {
                    assert_eq!(frame.body.len(), 1006);
                    rows += 1;
                    // Now and then it rests while the other one works.
                    if rows % 20_000 == 0 {
                        assert_eq!(other.value("SELECT 1"), "1");
                    }
                }
                b'Z' => break,
                _ => {}
            }
        }
        assert_eq!(rows, ROWS);
        let grown = peak_kib(router.process_id()) - before;
        assert!(grown < 4096, "{how:?}: {grown} KiB more for one slow reader");
    }
}

#[test]
fn a_client_that_floods_its_session_takes_nobody_elses_time() {
    let router = Router::shared();
    // A Flush asks for nothing and costs its sender next to nothing.
    let flood = flush().repeat(10_000);
    let mut flooding = Client::new(&router);
    let mut other = Client::new(&router);
    let is_over = Arc::new(AtomicBool::new(false));
    let until = Arc::clone(&is_over);
    let sender = thread::spawn(move || {
        let mut sent = 0_u64;
        while !until.load(Ordering::Relaxed) {
            flooding.send(&flood);
            sent += 1;
        }
        sent
    });
    // Each answer has [`PATIENCE`], and the flood lasts until all have come.
    for _ in 0..50 {
        assert_eq!(other.value("SELECT 1"), "1");
    }
    is_over.store(true, Ordering::Relaxed);
    assert!(sender.join().unwrap() > 0);
}

#[test]
fn a_writer_that_does_not_read_is_held_back_and_goes_on() {
    // Twice what the kernels of all three take, in both directions.
    const QUERIES: u64 = 40_000;
    let router = Router::shared();
    let mut client = Client::new(&router);
    let mut other = Client::new(&router);
    assert_eq!(other.value("SELECT 1"), "1");
    let before = peak_kib(router.process_id());
    let mut writer = client.stream.socket().try_clone().unwrap();
    let written = Arc::new(AtomicU64::new(0));
    let progress = Arc::clone(&written);
    let one = query(&format!("SELECT repeat('x', 1000) /* {} */", "-".repeat(1000)));
    let batch = one.repeat(100);
    let thread = thread::spawn(move || {
        for _ in 0..QUERIES / 100 {
            writer.write_all(&batch).unwrap();
            progress.fetch_add(100, Ordering::Relaxed);
        }
    });
    // Answers fill the way back, then the server stops reading, then we do.
    let mut seen = (0, 0);
    eventually("the writer is held back", PATIENCE, || {
        let now = written.load(Ordering::Relaxed);
        seen = if now == seen.0 {
            (now, seen.1 + 1)
        } else {
            (now, 0)
        };
        assert_eq!(other.value("SELECT 1"), "1");
        seen.1 >= 10 && now > 0
    });
    assert!(seen.0 < QUERIES, "nothing held the writer back");
    let mut ready = 0;
    while ready < QUERIES {
        ready += u64::from(client.frame().tag == b'Z');
    }
    thread.join().unwrap();
    assert_eq!(client.value("SELECT 1"), "1");
    let grown = peak_kib(router.process_id()) - before;
    assert!(grown < 4096, "{grown} KiB more");
}

#[test]
fn a_side_that_does_not_read_for_long_is_alive_all_the_same() {
    // Three times TCP_USER_TIMEOUT.
    const LONG: Duration = Duration::from_secs(3);
    let dir = tempfile::tempdir().unwrap();
    let clusters = Cluster::shared().yaml(dir.path()) + "    server: {tcp_user_timeout: 1s}\n";
    let router = Router::before(
        Cluster::shared(),
        Options {
            clusters: Some(clusters),
            ..Options::default()
        },
    );
    let mut silent = Client::new(&router);
    silent.send(&query("SELECT repeat('x', 1000) FROM generate_series(1, 60000)"));
    // The server is busy, and a megabyte waits in front of it; then thirty.
    for size in [1_000_000, 30_000_000] {
        let mut client = Client::new(&router);
        let started = Instant::now();
        client.send(&query(&format!("SELECT pg_sleep({})", LONG.as_secs_f64())));
        let value = vec![b'x'; size];
        client.send(
            &[
                parse("SELECT length($1::text)"),
                bind(&[&value]),
                execute(),
                sync(),
            ]
            .concat(),
        );
        assert_eq!(shown(&client.ready()), ["T", "D", "CSELECT 1", "ZI"], "{size}");
        assert_eq!(
            shown(&client.ready()),
            ["1", "2", "D", "CSELECT 1", "ZI"],
            "{size}"
        );
        assert!(started.elapsed() > LONG);
    }
    // Meanwhile this one had not read a byte.
    assert_eq!(silent.ready().len(), 60_003);
}

#[test]
fn copy_in_every_direction() {
    let (cluster, router) = (Cluster::shared(), Router::shared());
    let mut client = Client::new(&router);
    client.ask("CREATE TEMP TABLE numbers (n int, filler text)");
    client.send(&query("COPY numbers FROM STDIN"));
    assert_eq!(client.frame().tag, b'G');
    // Lines and frames have nothing to do with each other.
    let line = format!("7\t{}\n", "y".repeat(990));
    let data = line.repeat(20_000);
    let frames: Vec<u8> = data
        .as_bytes()
        .chunks(7001)
        .flat_map(|part| framed(b'd', part))
        .collect();
    client.send(&[frames, framed(b'c', b"")].concat());
    assert_eq!(shown(&client.ready()), ["CCOPY 20000", "ZI"]);
    client.send(&query("COPY numbers TO STDOUT"));
    assert_eq!(client.frame().tag, b'H');
    let mut bytes = 0;
    loop {
        let frame = client.frame();
        match frame.tag {
            b'd' => bytes += frame.body.len(),
            b'Z' => break,
            _ => {}
        }
    }
    assert_eq!(bytes, data.len());
    assert_eq!(client.value("SELECT sum(n) FROM numbers"), "140000");
    // Both ways: a replication stream, ended by the client.
    let parameters = [("replication", "true")];
    let login = Login {
        user: "app_repl",
        password: "app_repl",
        parameters: &parameters,
        ..Login::default()
    };
    let mut stream = Client::login(at(&router, 6432), login);
    let identity = stream.ask("IDENTIFY_SYSTEM");
    let row = String::from_utf8_lossy(&identity[1].body).into_owned();
    assert!(row.contains('/'), "{row}");
    let position = cluster
        .node(&cluster.leader())
        .sql("SELECT pg_current_wal_flush_lsn()");
    stream.send(&query(&format!("START_REPLICATION PHYSICAL {position}")));
    assert_eq!(stream.frame().tag, b'W');
    // A keepalive that asks for an answer gets one; the server's answer comes while we may still
    // write.
    let status = [&b"r"[..], &[0; 32], &[1]].concat();
    stream.send(&framed(b'd', &status));
    assert_eq!(stream.frame().tag, b'd');
    stream.send(&framed(b'c', b""));
    let end = shown(&stream.ready());
    assert_eq!(&end[end.len() - 2..], ["CSTART_REPLICATION", "ZI"], "{end:?}");
    assert_eq!(
        shown(&stream.ask("IDENTIFY_SYSTEM")),
        ["T", "D", "CIDENTIFY_SYSTEM", "ZI"]
    );
}

#[test]
fn an_answer_asked_for_by_flush_comes_without_sync() {
    let router = Router::shared();
    for how in [How::Plain, How::Tls] {
        let mut client = Client::encrypted(&router, how);
        client.send(&[extended("SELECT 1"), flush()].concat());
        let tags: Vec<u8> = (0..5).map(|_| client.frame().tag).collect();
        assert_eq!(tags, *b"12TDC");
        // An error comes at once too.
        client.send(&[extended("SELECT 1 / 0"), flush()].concat());
        let tags: Vec<u8> = (0..2).map(|_| client.frame().tag).collect();
        assert_eq!(tags, *b"1E");
        client.send(&sync());
        assert_eq!(shown(&client.ready()), ["ZI"]);
    }
}

#[test]
fn a_giant_value_in_small_pieces() {
    const SIZE: usize = 50_000_000;
    let router = Router::shared();
    let mut client = Client::encrypted(&router, How::Tls);
    let before = peak_kib(router.process_id());
    let value = vec![b'x'; SIZE];
    let all = [
        parse("SELECT length($1::text)"),
        bind(&[&value]),
        execute(),
        sync(),
    ]
    .concat();
    for piece in all.chunks(999_983) {
        client.send(piece);
    }
    let frames = client.ready();
    assert!(
        frames
            .iter()
            .any(|frame| frame.tag == b'D' && frame.body.ends_with(b"50000000"))
    );
    let grown = peak_kib(router.process_id()) - before;
    assert!(grown < 4096, "{grown} KiB more");
}

#[test]
fn byte_by_byte() {
    let router = Router::shared();
    for how in [How::Plain, How::Tls] {
        let mut client = Client::encrypted(&router, how);
        let all = [query("SELECT 1"), extended("SELECT 2"), sync(), query("SELECT 3")].concat();
        for byte in all {
            client.send(&[byte]);
        }
        assert_eq!(shown(&client.ready()), ["T", "D", "CSELECT 1", "ZI"]);
        assert_eq!(shown(&client.ready()), ["1", "2", "T", "D", "CSELECT 1", "ZI"]);
        assert_eq!(shown(&client.ready()), ["T", "D", "CSELECT 1", "ZI"]);
    }
}

#[test]
fn a_tls_client_may_change_its_keys() {
    let router = Router::shared();
    let mut client = Client::encrypted(&router, How::Tls);
    for _ in 0..5 {
        let Stream::Tls(stream) = &mut client.stream else {
            panic!()
        };
        stream.conn.refresh_traffic_keys().unwrap();
        assert_eq!(client.value("SELECT 1"), "1");
    }
    // With an answer on its way.
    client.send(&query("SELECT repeat('x', 1000) FROM generate_series(1, 20000)"));
    for number in 0.. {
        if number % 1000 == 0 {
            let Stream::Tls(stream) = &mut client.stream else {
                panic!()
            };
            stream.conn.refresh_traffic_keys().unwrap();
            stream.flush().unwrap();
        }
        if client.frame().tag == b'Z' {
            break;
        }
    }
    assert_eq!(client.value("SELECT 1"), "1");
}

#[test]
fn an_ipv4_client_of_a_dual_stack_port_has_an_ipv4_address() {
    let port = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let router = Router::launch(
        Some(Cluster::shared()),
        Options {
            listeners: Some(format!(
                "  - {{name: rw, address: \"*:{port}\", route: read-write}}\n"
            )),
            ..Options::default()
        },
    );
    super::fake::await_leader(&router);
    let client = Client::login(at(&router, port), Login::default());
    let own = client.stream.socket().local_addr().unwrap();
    drop(client);
    router.await_log(&["session ended", &format!("client={own}")]);
}

/// What comes back for `bytes` behind a login, up to the end of the connection.
fn reply(address: std::net::SocketAddr, bytes: &[u8], pieces: &[usize]) -> (Vec<Frame>, Vec<u8>) {
    let mut client = Client::login(address, Login::default());
    let mut sizes = pieces.iter().copied().chain(std::iter::repeat(usize::MAX));
    let mut writer = client.stream.socket().try_clone().unwrap();
    let mut rest = bytes;
    let mut back = Vec::new();
    while let Some(size) = (!rest.is_empty()).then(|| sizes.next().unwrap()) {
        let (piece, after) = rest.split_at(size.min(rest.len()));
        rest = after;
        if writer.write_all(piece).is_err() {
            break;
        }
    }
    match client.stream.read_to_end(&mut back) {
        Ok(_) => {}
        // A server that ends a session while more is on its way to it resets the connection.
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
    (client.greeting, back)
}

/// One step of a conversation; every one is legal after every other.
fn step() -> impl Strategy<Value = Vec<u8>> {
    let function = || {
        let mut body = 2023_u32.to_be_bytes().to_vec();
        body.extend([0, 0, 0, 0, 0, 0]);
        framed(b'F', &body)
    };
    let fixed: Vec<Vec<u8>> = vec![
        query("SELECT 1, 'two', NULL"),
        query(""),
        query("SELECT 1; SELECT 2; SELECT 1/0; SELECT 3"),
        query("SELECT nonsense"),
        query("BEGIN"),
        query("COMMIT"),
        query("ROLLBACK"),
        query("SET application_name = 'mine'"),
        query("SET TIME ZONE 'Asia/Tokyo'"),
        query("RESET ALL"),
        query("DO $$ BEGIN RAISE NOTICE 'hear, hear'; END $$"),
        query("CREATE TEMP TABLE IF NOT EXISTS t (a int)"),
        query("SELECT repeat('x', 30000) FROM generate_series(1, 7)"),
        query("COPY (SELECT generate_series(1, 100)) TO STDOUT"),
        [
            query("COPY t FROM STDIN"),
            framed(b'd', b"1\n2"),
            framed(b'd', b"\n"),
            framed(b'c', b""),
        ]
        .concat(),
        [
            query("COPY t FROM STDIN"),
            framed(b'd', b"1\n"),
            framed(b'f', b"no more\0"),
        ]
        .concat(),
        [
            query("COPY t FROM STDIN"),
            framed(b'd', b"x\n"),
            framed(b'd', b"1\n"),
            framed(b'c', b""),
        ]
        .concat(),
        [
            parse("COPY t FROM STDIN"),
            bind(&[]),
            execute(),
            framed(b'd', b"1\n"),
            framed(b'c', b""),
            sync(),
        ]
        .concat(),
        [
            parse("COPY t FROM STDIN"),
            bind(&[]),
            execute(),
            framed(b'f', b"no\0"),
            sync(),
        ]
        .concat(),
        [extended("SELECT 1"), sync()].concat(),
        [extended("SELECT 1"), extended("SELECT 2"), sync(), sync()].concat(),
        [
            extended("SELECT 1/0"),
            extended("SELECT 2"),
            query("SELECT 'skipped'"),
            sync(),
        ]
        .concat(),
        [extended("BEGIN"), extended("SELECT nothing"), sync()].concat(),
        [
            extended("SELECT 1"),
            flush(),
            extended("SELECT 2"),
            flush(),
            sync(),
        ]
        .concat(),
        [parse("SELECT $1::int"), bind(&[b"five"]), sync()].concat(),
        [framed(b'C', b"Snone\0"), framed(b'C', b"Pnone\0"), sync()].concat(),
        [framed(b'D', b"Snone\0"), sync()].concat(),
        flush(),
        sync(),
        framed(b'd', b"nobody asked"),
        framed(b'c', b""),
        framed(b'f', b"nobody asked\0"),
        function(),
    ];
    proptest::sample::select(fixed)
}

#[test]
fn a_conversation_through_the_router_is_the_conversation_with_the_server() {
    let (cluster, router) = (Cluster::shared(), Router::shared());
    let direct = node_address(&cluster.node(&cluster.leader()));
    let mut runner = TestRunner::new(Config {
        cases: 60,
        failure_persistence: None,
        ..Config::default()
    });
    let conversations = (vec(step(), 1..25), vec(1_usize..400, 0..30));
    runner
        .run(&conversations, |(steps, pieces)| {
            let all = [&steps.concat()[..], &query("SELECT 'end'"), &terminate()].concat();
            let own = reply(at(&router, 6432), &all, &pieces);
            let servers = reply(direct, &all, &pieces);
            prop_assert_eq!(&own.0, &servers.0);
            prop_assert!(
                own.1 == servers.1,
                "{}\nand not\n{}",
                own.1.escape_ascii(),
                servers.1.escape_ascii()
            );
            prop_assert!(!own.1.is_empty());
            Ok(())
        })
        .unwrap();
}

#[test]
fn a_conversation_that_postgres_ends_is_ended_by_postgres() {
    let (cluster, router) = (Cluster::shared(), Router::shared());
    let direct = node_address(&cluster.node(&cluster.leader()));
    for bytes in [
        framed(b'?', b""),
        framed(0, b"zero"),
        framed(b'p', b"a password, now?\0"),
        framed(b'Q', b"no terminator"),
        framed(b'B', b""),
        [query("SELECT 1"), framed(b'y', &[7; 3000])].concat(),
        [
            query("CREATE TEMP TABLE t (a int); COPY t FROM STDIN"),
            query("SELECT 1"),
        ]
        .concat(),
        framed(b'F', b"\0\0"),
    ] {
        // What does not end it is followed by a goodbye.
        let all = [bytes, terminate()].concat();
        let (own, servers) = (reply(at(&router, 6432), &all, &[]), reply(direct, &all, &[]));
        assert!(!own.1.is_empty());
        assert_eq!(
            own.1.escape_ascii().to_string(),
            servers.1.escape_ascii().to_string()
        );
    }
}

#[test]
fn a_crash_of_one_backend_is_told_to_all_as_postgres_tells_it() {
    let server = trusting(false);
    let router = router_before(&server.address.to_string(), 5432, "postgres", "");
    let (mut killed, mut idle, mut busy) = (Client::new(&router), Client::new(&router), Client::new(&router));
    busy.send(&query("SELECT pg_sleep(60)"));
    let state = format!(
        "SELECT state FROM pg_stat_activity WHERE pid = {}",
        busy.process_id
    );
    eventually("it runs", PATIENCE, || idle.value(&state) == "active");
    let address = std::net::SocketAddr::from((server.address, 5432));
    let mut direct = Client::login(address, Login::default());
    crate::cluster::succeed(std::process::Command::new("kill").args(["-9", &killed.process_id.to_string()]));
    // The one that died says nothing; others may be warned before they lose their connections, and
    // no word of the server's is lost or changed.
    assert_eq!(shown(&killed.rest()), ["E08006 FATAL"]);
    // (A backend that is just writing drops its warning.)
    for (client, last) in [
        (&mut direct, &[][..]),
        (&mut idle, &["E08006 FATAL"]),
        (&mut busy, &["E08007 ERROR", "ZI"]),
    ] {
        let mut said = shown(&client.rest());
        said.retain(|word| word != "T");
        if said.first().is_some_and(|word| word == "N57P02 WARNING") {
            said.remove(0);
        }
        assert_eq!(said, last);
    }
    // And it recovers by itself.
    eventually("new sessions", PATIENCE, || {
        Client::try_login(at(&router, 6432), Login::default())
            .is_ok_and(|mut client| client.value("SELECT 1") == "1")
    });
}
