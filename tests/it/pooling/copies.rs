//! A COPY that fails while a Sync is in it: whether the server answers that Sync is not known. The
//! client is idle afterwards, and its connection must serve others.

use trunkline::wire::frame::Frame;

use super::{FIRST_PORT, login, router};
use crate::cluster::postgres::{Options, Postgres};
use crate::raw::{Client, Login, bind, execute, flush, framed, parse, query, shown, sync, terminate};

/// What begins the COPY, and what makes it fail.
fn cases() -> Vec<(&'static str, Vec<u8>, Vec<u8>)> {
    let batch = [parse("COPY t FROM STDIN"), bind(&[]), execute()].concat();
    let (bad, good) = (framed(b'd', b"bad\n"), framed(b'd', b"1\n"));
    let (done, fail) = (framed(b'c', b""), framed(b'f', b"no\0"));
    vec![
        (
            "a Sync behind the Execute, bad data",
            [batch.clone(), sync()].concat(),
            [bad.clone(), done.clone(), sync()].concat(),
        ),
        (
            "a Sync behind the Execute, CopyFail",
            [batch.clone(), sync()].concat(),
            [fail, sync()].concat(),
        ),
        (
            "Flush behind the Execute",
            [batch, flush()].concat(),
            [bad.clone(), done.clone(), sync()].concat(),
        ),
        (
            "a Query, and a Sync at the end",
            query("COPY t FROM STDIN"),
            [bad.clone(), done, sync()].concat(),
        ),
        (
            "a Query, and a Sync between the data",
            query("COPY t FROM STDIN"),
            [good, sync(), bad].concat(),
        ),
    ]
}

/// The client does it, up to the first `Z` behind the error.
fn fails(client: &mut Client, begin: &[u8], then: &[u8]) -> Vec<Frame> {
    client.send(begin);
    while client.frame().tag != b'G' {}
    client.send(then);
    client.ready()
}

/// What it hears from there to the end of the next request.
fn goes_on(client: &mut Client) -> Vec<Frame> {
    client.send(&query("SELECT 'next'"));
    let mut heard = Vec::new();
    while !heard.iter().any(|frame: &Frame| frame.tag == b'D') {
        heard.extend(client.ready());
    }
    heard
}

#[test]
fn a_copy_that_fails_with_a_sync_in_it_keeps_no_connection() {
    let server = Postgres::start(&Options::default());
    server.sql_in("app", "CREATE TABLE t (a int); GRANT ALL ON t TO app");
    let router = router(&server, &["max_connections: 1"], "5s");
    let mut other = login(&router, FIRST_PORT, "app", "app");
    for (name, begin, then) in cases() {
        let mut alone = Client::login((server.address, server.port).into(), Login::default());
        let mut client = login(&router, FIRST_PORT, "app", "app");
        let expected = fails(&mut alone, &begin, &then);
        assert_eq!(
            shown(&fails(&mut client, &begin, &then)),
            shown(&expected),
            "{name}"
        );
        assert_eq!(other.value("SELECT 1"), "1", "{name}: the client is idle");
        assert_eq!(
            shown(&goes_on(&mut client)),
            shown(&goes_on(&mut alone)),
            "{name}"
        );
        // The same, and the client leaves with its goodbye.
        assert_eq!(
            shown(&fails(&mut client, &begin, &then)),
            shown(&expected),
            "{name}"
        );
        client.send(&terminate());
        assert_eq!(other.value("SELECT 2"), "2", "{name}: the client has left");
        assert!(client.next().is_none_or(|frame| frame.tag == b'Z'), "{name}");
    }
    assert_eq!(server.sql_in("app", "SELECT count(*) FROM t"), "0");
}
