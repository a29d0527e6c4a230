//! What prepared statements and portals of a session take, and when they give it back.
#![allow(clippy::unwrap_used)]

use super::tests::{Client, bind, execute, framed, parse, query, sync};

/// A query that takes 1 to 2 MiB of a session's 16: an array of 21,000 texts.
fn large() -> String {
    let array = format!("'{{{}a}}'::text[]", "a,".repeat(20_999));
    format!("SELECT cardinality({array})")
}

fn close(target: &str) -> Vec<u8> {
    framed(b'C', format!("{target}\0").as_bytes())
}

/// Prepares until there is no room, and says how many there are.
async fn filled(client: &mut Client) -> usize {
    for number in 0..64 {
        client
            .send(&[parse(&format!("s{number}"), &large()), sync()])
            .await;
        match &*client.told().await {
            "1Z" => {}
            told => {
                assert_eq!(told, "E53400 Z");
                return number;
            }
        }
    }
    panic!("64 statements found room");
}

#[tokio::test]
async fn a_session_that_is_full_goes_on_and_makes_room() {
    let mut client = Client::new().await;
    let count = filled(&mut client).await;
    assert!((4..20).contains(&count), "{count}");
    // What is there works, and so does what is small.
    client.send(&[bind("", "s0", &[]), execute("", 0), sync()]).await;
    assert_eq!(client.told().await, "2DCZ");
    for (sql, expected) in [
        ("SELECT 1".to_owned(), "TDCZ"),
        (large(), "E53400 Z"),
        ("SHOW VERSION".to_owned(), "TDCZ"),
    ] {
        client.send(&[query(&sql)]).await;
        assert_eq!(client.told().await, expected, "{sql:.20}");
    }
    let again = [parse("again", &large()), sync()].concat();
    let frees: [Vec<u8>; 4] = [
        [close("Ss0"), sync()].concat(),
        query("DEALLOCATE s1"),
        [
            parse("", "DEALLOCATE s2"),
            bind("", "", &[]),
            execute("", 0),
            sync(),
        ]
        .concat(),
        query("DISCARD ALL"),
    ];
    for (free, expected) in frees.iter().zip(["3Z", "CZ", "12CZ", "CZ"]) {
        client.send(std::slice::from_ref(&again)).await;
        assert_eq!(client.told().await, "E53400 Z");
        client.send(std::slice::from_ref(free)).await;
        assert_eq!(client.told().await, expected);
        client.send(&[again.clone(), close("Sagain"), sync()]).await;
        assert_eq!(client.told().await, "1Z");
        assert_eq!(client.told().await, "3Z");
        // Full again, but for after the last.
        let name = format!("more{expected}{}", free.len());
        client.send(&[parse(&name, &large()), sync()]).await;
        assert_eq!(client.told().await, "1Z");
    }
    assert_eq!(filled(&mut client).await, count - 1, "one is left of before");
}

#[tokio::test]
async fn the_unnamed_statement_makes_way_for_the_next() {
    let mut client = Client::new().await;
    let count = filled(&mut client).await;
    client.send(&[close("Ss0"), sync()]).await;
    assert_eq!(client.told().await, "3Z");
    for _ in 0..3 {
        client.send(&[parse("", &large()), sync()]).await;
        assert_eq!(client.told().await, "1Z", "of {count}");
    }
    // As in PostgreSQL, it is gone also where the next is none.
    client.send(&[parse("", "SELECT x"), sync()]).await;
    assert_eq!(client.told().await, "E42703 Z");
    client.send(&[bind("", "", &[]), sync()]).await;
    assert_eq!(client.told().await, "E26000 Z");
    client.send(&[parse("named", &large()), sync()]).await;
    assert_eq!(client.told().await, "1Z");
}

#[tokio::test]
async fn a_portal_keeps_its_statement_until_both_are_closed() {
    let mut client = Client::new().await;
    filled(&mut client).await;
    let again = [parse("again", &large()), sync()].concat();
    client
        .send(&[query("BEGIN"), bind("p", "s0", &[]), close("Ss0"), sync()])
        .await;
    assert_eq!(client.told().await, "CZ");
    assert_eq!(client.told().await, "23Z");
    client.send(std::slice::from_ref(&again)).await;
    assert_eq!(client.told().await, "E53400 Z");
    client.send(&[query("ROLLBACK"), again]).await;
    assert_eq!(client.told().await, "CZ");
    assert_eq!(client.told().await, "1Z");
}

/// A portal keeps what is bound.
#[tokio::test]
async fn parameters_of_portals_count() {
    let mut client = Client::new().await;
    client.send(&[parse("p", "SELECT length($1)"), sync()]).await;
    assert_eq!(client.told().await, "1Z");
    filled(&mut client).await;
    // The rest, up to less than one of these.
    let text = format!("SELECT '{}'", "x".repeat(60_000));
    let mut last = 0;
    loop {
        client.send(&[parse(&format!("t{last}"), &text), sync()]).await;
        if client.told().await != "1Z" {
            break;
        }
        last += 1;
    }
    let bound = |portal: &str| {
        let value = vec![b'x'; 62_000];
        let mut body = format!("{portal}\0p\0\0\0\0\x01").into_bytes();
        body.extend(u32::try_from(value.len()).unwrap().to_be_bytes());
        body.extend(&value);
        body.extend([0, 0]);
        framed(b'B', &body)
    };
    client.send(&[bound(""), sync()]).await;
    assert_eq!(client.told().await, "E53400 Z");
    client.send(&[close(&format!("St{}", last - 1)), sync()]).await;
    assert_eq!(client.told().await, "3Z");
    // There is room for one of them. It makes way for the next, and is closed.
    client
        .send(&[bound(""), bound(""), close("P"), bound("a"), close("Pa"), sync()])
        .await;
    assert_eq!(client.told().await, "22323Z");
    client.send(&[bound(""), bound("a"), sync()]).await;
    assert_eq!(client.told().await, "2E53400 Z");
    // Both ended with Sync.
    client.send(&[bound("a"), sync()]).await;
    assert_eq!(client.told().await, "2Z");
}
