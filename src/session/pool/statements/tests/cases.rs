//! One case each.

use bytes::BytesMut;

use super::super::{
    Answer, ConnectionStatements, Interner, Limits, Rewriter, SessionStatements, Step, frames,
};
use super::model::frame;
use super::scene::{PLENTY, Scene, bind, close, data, describe, execute, parse, query, readable, sync};
use crate::wire::pending::{Owner, PendingReplies, TransactionStatus};

fn scene() -> Scene {
    Scene::new(2, 2, PLENTY)
}

/// Executes a statement in a batch of its own.
fn uses(name: &str) -> [Vec<u8>; 3] {
    [bind("", name), execute(""), sync()]
}

fn seen(scene: &Scene, client: usize) -> String {
    readable(&scene.clients[client].seen)
}

#[test]
fn a_statement_follows_its_client_to_another_connection() {
    let mut scene = scene();
    scene.play(0, 0, &[parse("a", "rows", &[]), sync()]);
    assert_eq!(scene.connections[0].statements.len(), 1);
    scene.play(0, 1, &uses("a"));
    assert_eq!(scene.connections[1].statements.len(), 1);
    scene.play(0, 1, &uses("a"));
    let counts = scene.connections[1].statements.take_counts();
    assert_eq!((counts.parsed, counts.found), (1, 2));
}

#[test]
fn clients_with_the_same_statement_share_it_whatever_they_call_it() {
    let mut scene = scene();
    scene.play(0, 0, &[parse("a", "fixed", &[]), sync()]);
    scene.play(1, 0, &[parse("b", "fixed", &[]), sync()]);
    scene.play(1, 0, &[parse("a", "none", &[]), sync()]);
    assert_eq!(scene.connections[0].server.len(), 2);
    for client in [0, 1] {
        scene.play(client, 0, &uses("a"));
    }
    scene.play(1, 0, &uses("b"));
}

#[test]
fn parameter_types_are_those_of_the_first_parse() {
    // P36
    let mut scene = scene();
    scene.play(0, 0, &[parse("a", "none", &[]), sync()]);
    scene.schema.set(1);
    scene.play(0, 1, &uses("a"));
    assert!(seen(&scene, 0).contains("SELECT none [100]"));
    // Who prepares it now gets the types of now.
    scene.play(1, 1, &[parse("a", "none", &[]), sync()]);
    scene.play(1, 0, &uses("a"));
    assert!(seen(&scene, 1).contains("SELECT none [101]"));
    scene.play(0, 0, &uses("a"));
    scene.play(0, 1, &uses("a"));
}

#[test]
fn a_statement_whose_columns_have_changed_is_refused_until_they_change_back() {
    // P37
    let mut scene = scene();
    scene.play(0, 0, &[parse("a", "rows", &[]), describe("a"), sync()]);
    scene.schema.set(1);
    for connection in [0, 1, 1] {
        scene.play(0, connection, &uses("a"));
        assert!(seen(&scene, 0).contains("0A000"));
        scene.play(0, connection, &[describe("a"), sync()]);
    }
    // Another client that prepares it now has the new columns, on both connections.
    scene.play(1, 1, &[parse("a", "rows", &[]), sync()]);
    for connection in [0, 1] {
        scene.play(1, connection, &uses("a"));
        scene.play(0, connection, &uses("a"));
    }
    scene.schema.set(0);
    let before = scene.clients[0].seen.len();
    for connection in [0, 1] {
        scene.play(0, connection, &uses("a"));
    }
    assert!(!readable(&scene.clients[0].seen[before..]).contains("0A000"));
}

#[test]
fn only_a_statement_with_rows_waits_for_its_description() {
    for (text, waits) in [("rows", 1), ("none", 0)] {
        let mut scene = scene();
        scene.play(0, 0, &[parse("a", text, &[]), sync()]);
        scene.play(0, 1, &uses("a"));
        assert_eq!(scene.waits, waits, "{text}");
        scene.play(0, 1, &uses("a"));
        assert_eq!(scene.waits, waits, "{text}");
    }
}

#[test]
fn one_batch_can_prepare_and_use_without_waiting() {
    let mut scene = scene();
    let batch = [
        parse("a", "rows", &[]),
        describe("a"),
        bind("", "a"),
        execute(""),
        sync(),
    ];
    scene.play(0, 0, &batch);
    assert_eq!(scene.waits, 0);
}

#[test]
fn a_parse_that_failed_or_was_skipped_leaves_no_name() {
    // P32, P45
    let mut scene = scene();
    scene.play(0, 0, &[parse("a", "bad", &[]), parse("b", "fixed", &[]), sync()]);
    for name in ["a", "b"] {
        scene.play(0, 0, &uses(name));
        scene.play(0, 0, &[parse(name, "fixed", &[]), bind("", "x"), sync()]);
        scene.play(0, 1, &uses(name));
    }
    assert_eq!(scene.clients[0].statements.len(), 2);
    // The same in batches that are all sent before anything is answered.
    let mut pipeline = vec![parse("c", "bad", &[]), sync()];
    pipeline.extend(uses("c"));
    pipeline.extend([bind("", "x"), parse("c", "fixed", &[]), sync()]);
    pipeline.extend(uses("c"));
    scene.play(0, 0, &pipeline);
    assert_eq!(scene.clients[0].statements.len(), 2);
}

#[test]
fn a_name_that_is_taken_is_refused_as_the_server_would() {
    let mut scene = scene();
    scene.play(0, 0, &[parse("a", "fixed", &[]), sync()]);
    scene.play(0, 1, &[parse("a", "fixed", &[]), sync()]);
    assert!(seen(&scene, 0).contains("prepared statement \\\"a\\\" already exists"));
    scene.play(0, 1, &[parse("a", "bad", &[]), sync()]);
    scene.play(0, 1, &uses("a"));
}

#[test]
fn the_unnamed_statement_follows_its_client_and_nobody_gets_another_s() {
    // P39, P40
    let mut scene = scene();
    scene.play(0, 0, &[parse("", "fixed", &[7]), describe(""), sync()]);
    scene.play(1, 1, &[parse("", "boom", &[]), sync()]);
    scene.play(0, 1, &uses(""));
    assert!(seen(&scene, 0).contains("SELECT fixed [7]"));
    scene.play(0, 0, &[query("x")]);
    scene.play(0, 1, &uses(""));
    assert!(seen(&scene, 0).contains("unnamed prepared statement does not exist"));
    scene.play(1, 1, &uses(""));
}

#[test]
fn an_unnamed_statement_beyond_the_limit_works_on_its_own_connection_only() {
    let mut scene = scene();
    let limits = Limits { bytes: 10, ..PLENTY };
    scene.clients[0].statements.set_limits(limits);
    scene.play(0, 0, &[parse("", "x is long enough", &[]), sync()]);
    scene.play(0, 0, &uses(""));
    for message in uses("") {
        scene.send(0, message);
    }
    let before = scene.clients[0].seen.len();
    scene.forward(0, 1);
    scene.settle();
    let seen = readable(&scene.clients[0].seen[before..]);
    assert!(seen.contains("C53400"), "{seen}");
}

#[test]
fn a_session_has_limits_of_number_and_bytes() {
    // P43
    for limits in [
        Limits {
            statements: 2,
            ..PLENTY
        },
        Limits { bytes: 10, ..PLENTY },
    ] {
        let mut scene = scene();
        scene.clients[0].statements.set_limits(limits);
        let prepare = |name| [parse(name, "fixed", &[]), sync()];
        scene.play(0, 0, &prepare("a"));
        scene.play(0, 0, &prepare("b"));
        for message in prepare("c") {
            scene.send(0, message);
        }
        scene.settle();
        assert!(
            seen(&scene, 0).ends_with("Mthe session has too many prepared statements\\x00\\x00\n  Z I")
                || seen(&scene, 0).contains("C53400")
        );
        assert!(scene.check().is_err());
        let statements = &scene.clients[0].statements;
        assert_eq!((statements.len(), statements.bytes()), (2, 10));
        // A syntax error comes first, and what was closed counts no more.
        scene.clients[0].seen = scene.clients[0].expected.clone();
        scene.play(0, 0, &[close("c"), parse("c", "bad", &[]), sync()]);
        scene.play(0, 0, &[close("a"), parse("c", "fixed", &[]), sync()]);
        scene.play(0, 1, &uses("c"));
    }
}

#[test]
fn a_connection_closes_what_was_not_used_for_longest() {
    let mut scene = Scene::new(
        2,
        2,
        Limits {
            statements: 2,
            ..PLENTY
        },
    );
    for (name, text) in [("a", "fixed"), ("b", "none"), ("c", "x")] {
        scene.play(0, 0, &[parse(name, text, &[]), sync()]);
        if name == "b" {
            scene.play(0, 0, &uses("a"));
        }
    }
    assert_eq!(scene.connections[0].server.len(), 2);
    assert_eq!(scene.connections[0].statements.take_counts().evicted, 1);
    scene.play(0, 0, &uses("a"));
    assert_eq!(scene.connections[0].statements.take_counts().parsed, 0);
    scene.play(0, 0, &uses("b"));
    assert_eq!(scene.connections[0].statements.take_counts().parsed, 1);
    let small = Limits { bytes: 6, ..PLENTY };
    scene.connections[0].statements.set_limits(small);
    scene.play(0, 0, &uses("c"));
    assert!(scene.connections[0].statements.bytes() <= 6);
    assert_eq!(
        scene.connections[0].server.len(),
        scene.connections[0].statements.len()
    );
}

#[test]
fn a_client_s_close_leaves_the_statement_to_the_others() {
    let mut scene = scene();
    for client in [0, 1] {
        scene.play(client, 0, &[parse("a", "fixed", &[]), sync()]);
    }
    scene.play(0, 0, &[close("a"), close("a"), sync()]);
    scene.play(0, 0, &uses("a"));
    scene.play(1, 0, &uses("a"));
    assert_eq!(scene.connections[0].server.len(), 1);
}

#[test]
fn deallocate_works_on_what_was_prepared_by_parse() {
    // P42
    let mut scene = scene();
    for (text, choice) in [
        ("deallocate a", 0),
        ("DEALLOCATE PREPARE \"a\" ;", 1),
        ("deallocate all", 0),
        ("discard all", 0),
    ] {
        scene.play(0, 0, &[parse("a", "fixed", &[]), sync()]);
        scene.play(0, choice, &[query(text)]);
        scene.play(0, 0, &[query("deallocate a")]);
        assert!(scene.clients[0].statements.is_unused());
    }
    let lone = [parse("", "deallocate a", &[]), bind("", ""), execute(""), sync()];
    scene.play(0, 0, &[parse("a", "fixed", &[]), sync()]);
    scene.play(0, 1, &lone);
    scene.play(0, 1, &uses("a"));
    // As prepared, and executed twice.
    scene.play(
        0,
        0,
        &[parse("a", "fixed", &[]), parse("d", "deallocate a", &[]), sync()],
    );
    scene.play(0, 1, &uses("d"));
    scene.play(0, 0, &uses("d"));
    scene.play(0, 0, &uses("a"));
}

#[test]
fn a_client_cannot_reach_the_router_s_names() {
    // P41
    let mut scene = scene();
    scene.play(0, 0, &[parse("a", "fixed", &[]), sync()]);
    assert!(scene.connections[0].server.has("tl_0"));
    scene.play(1, 0, &uses("tl_0"));
    scene.play(1, 0, &[describe("tl_0"), sync()]);
    scene.play(1, 0, &[close("tl_0"), sync()]);
    scene.play(1, 0, &[query("deallocate tl_0")]);
    scene.play(1, 0, &[parse("tl_0", "none", &[]), sync()]);
    scene.play(1, 0, &uses("tl_0"));
    assert!(scene.connections[0].server.has("tl_0"));
    scene.play(0, 0, &uses("a"));
}

#[test]
fn what_was_deallocated_unseen_is_missed_once_under_the_client_s_name() {
    let mut scene = scene();
    for name in ["a", "b"] {
        scene.play(0, 0, &[parse(name, &format!("x {name}"), &[]), sync()]);
    }
    scene.connections[0].server.forget();
    for message in uses("a") {
        scene.send(0, message);
    }
    scene.settle();
    assert!(seen(&scene, 0).contains("prepared statement \\\"a\\\" does not exist"));
    scene.clients[0].seen = scene.clients[0].expected.clone();
    for name in ["a", "b"] {
        scene.play(0, 0, &uses(name));
    }
}

#[test]
fn what_may_have_been_deallocated_is_prepared_again() {
    let mut scene = scene();
    scene.play(0, 0, &[parse("a", "fixed", &[]), sync()]);
    scene.connections[0].server.forget();
    let (mut out, mut pending) = (BytesMut::new(), PendingReplies::new(TransactionStatus::Idle));
    let interner = Interner::new();
    let mut session = SessionStatements::new(&interner, PLENTY);
    let mut rewriter = Rewriter::new(
        &interner,
        &mut session,
        &mut scene.connections[0].statements,
        None,
    );
    let block = query("do $$ begin execute 'deallocate all'; end $$");
    let _ = rewriter.client(b'Q', &block, &mut out, &mut pending).unwrap();
    let _ = rewriter.answered(Owner::Client, b'C', b"DO\0");
    let _ = rewriter.answered(Owner::Client, b'Z', b"I");
    scene.play(0, 0, &uses("a"));
}

#[test]
fn a_statement_under_a_changed_path_is_not_shared() {
    // P46
    let mut scene = scene();
    scene.path = None;
    scene.play(0, 0, &[parse("a", "fixed", &[]), sync()]);
    scene.path = Some(1);
    scene.play(1, 0, &[parse("a", "fixed", &[]), sync()]);
    assert_eq!(scene.connections[0].server.len(), 2);
    scene.path = Some(2);
    scene.play(1, 0, &[parse("b", "fixed", &[]), sync()]);
    assert_eq!(scene.connections[0].server.len(), 3);
    for (client, name) in [(0, "a"), (1, "a"), (1, "b")] {
        scene.play(client, 1, &uses(name));
    }
}

#[test]
fn names_are_compared_as_postgresql_does() {
    let mut scene = scene();
    let long = "n".repeat(63);
    scene.play(0, 0, &[parse(&long, "fixed", &[]), sync()]);
    for message in uses(&format!("{long}more")) {
        scene.send(0, message);
    }
    scene.settle();
    assert!(seen(&scene, 0).contains("SELECT fixed"));
}

#[test]
fn a_connection_that_was_given_up_closes_what_it_may_have() {
    let mut scene = scene();
    scene.send(0, parse("a", "fixed", &[]));
    scene.forward(0, 0);
    // The client leaves; the server has done it or not.
    scene.connections[0].statements.abandoned();
    scene.clients[0].statements.connection_lost();
    assert!(scene.clients[0].statements.is_unused());
    let mut out = BytesMut::new();
    let interner = Interner::new();
    let mut session = SessionStatements::new(&interner, PLENTY);
    let mut connection = ConnectionStatements::new(PLENTY);
    let mut pending = PendingReplies::new(TransactionStatus::Idle);
    let message = parse("a", "fixed", &[]);
    for attempt in ["P", "C P"] {
        out.clear();
        let mut rewriter = Rewriter::new(&interner, &mut session, &mut connection, Some(1));
        let _ = rewriter.client(b'P', &message, &mut out, &mut pending).unwrap();
        let tags: Vec<&str> = attempt.split(' ').collect();
        let sent = readable(&out);
        let lines: Vec<&str> = sent.lines().map(|line| &line[2..3]).collect();
        assert_eq!(lines[..tags.len()], tags, "{sent}");
        connection.abandoned();
        session.connection_lost();
    }
}

#[test]
fn a_long_bind_needs_only_its_names() {
    let interner = Interner::new();
    let mut session = SessionStatements::new(&interner, PLENTY);
    let mut connection = ConnectionStatements::new(PLENTY);
    let mut rewriter = Rewriter::new(&interner, &mut session, &mut connection, Some(1));
    let (mut out, mut pending) = (BytesMut::new(), PendingReplies::new(TransactionStatus::Idle));
    let message = parse("name", "none", &[]);
    let step = rewriter.client(b'P', &message, &mut out, &mut pending).unwrap();
    assert_eq!(
        step,
        Step::Forward {
            replaced: message.len()
        }
    );
    out.clear();
    let mut long = bind("portal", "name");
    long[1..5].copy_from_slice(&1_000_000_u32.to_be_bytes());
    let step = rewriter.client(b'B', &long, &mut out, &mut pending).unwrap();
    assert_eq!(step, Step::Forward { replaced: 5 + 7 + 5 });
    assert_eq!(&out[..], b"B\0\x0f\x42\x40portal\0tl_0\0");
    // A Parse whose end has not come yet is too long to be kept.
    out.clear();
    let mut long = parse("other", "none", &[]);
    long[1..5].copy_from_slice(&1_000_000_u32.to_be_bytes());
    let step = rewriter.client(b'P', &long, &mut out, &mut pending).unwrap();
    assert_eq!(step, Step::Forward { replaced: 5 + 6 });
    assert!(out.ends_with(b"P\0\x0f\x42\x40tl__t\0"), "{out:?}");
}

#[test]
fn an_error_keeps_everything_but_the_name() {
    let body = b"SFEHLER\0VERROR\0C26000\0MVorbereitete Anweisung \xc2\xbbtl_0\xc2\xab existiert nicht\0\
        Fprepare.c\0L451\0RFetchPreparedStatement\0\0";
    let renamed = frames::rename_in_report(body, "tl_0", b"a");
    let expected = b"SFEHLER\0VERROR\0C26000\0MVorbereitete Anweisung \xc2\xbba\xc2\xab existiert nicht\0\
        Fprepare.c\0L451\0RFetchPreparedStatement\0\0";
    assert_eq!(renamed, frame(b'E', expected));
}

#[test]
fn too_many_messages_on_their_way_wait() {
    let mut scene = scene();
    for i in 0..10_000 {
        scene.send(0, parse("", &format!("x {i}"), &[]));
    }
    scene.send(0, sync());
    scene.forward(0, 0);
    assert!(scene.connections[0].sent.len() < 5000);
    scene.settle();
    scene.check().unwrap();
}

#[test]
fn a_sync_within_a_copy_ends_no_batch() {
    let mut scene = scene();
    let mut messages = vec![parse("", "copy", &[]), bind("", ""), execute(""), sync()];
    messages.extend([data(b'd'), data(b'c'), sync()]);
    messages.extend([parse("a", "fixed", &[]), sync()]);
    messages.extend(uses("a"));
    scene.play(0, 0, &messages);
}

#[test]
fn the_router_s_own_query_takes_the_unnamed_statement_of_the_connection_only() {
    let interner = Interner::new();
    let mut session = SessionStatements::new(&interner, PLENTY);
    let mut connection = ConnectionStatements::new(PLENTY);
    let mut rewriter = Rewriter::new(&interner, &mut session, &mut connection, Some(1));
    let (mut out, mut pending) = (BytesMut::new(), PendingReplies::new(TransactionStatus::Idle));
    let mut step = |rewriter: &mut Rewriter<'_>, message: &[u8]| {
        out.clear();
        let step = rewriter
            .client(message[0], message, &mut out, &mut pending)
            .unwrap();
        assert_eq!(step, Step::Forward { replaced: 0 });
        readable(&out)
    };
    assert_eq!(step(&mut rewriter, &parse("", "x", &[])), "");
    step(&mut rewriter, &sync());
    for (tag, body) in [(b'1', &b""[..]), (b'Z', b"I")] {
        assert_eq!(rewriter.answered(Owner::Client, tag, body), Answer::Forward);
    }
    let mut own = PendingReplies::new(TransactionStatus::Idle);
    rewriter.router(b'Q', &mut own).unwrap();
    for (tag, body) in [(b'T', &b"\0\0"[..]), (b'C', b"SELECT 1\0"), (b'Z', b"I")] {
        assert_eq!(rewriter.answered(Owner::Router, tag, body), Answer::Swallow);
    }
    assert_eq!(step(&mut rewriter, &bind("", "")), "  P \\x00x\\x00\\x00\\x00");
}

#[test]
fn the_end_of_one_copy_is_not_taken_for_that_of_the_next() {
    let mut scene = scene();
    for message in [query("copy"), data(b'f')] {
        scene.send(0, message);
    }
    scene.forward(0, 0);
    scene.serve(0, 1);
    let mut messages = vec![parse("", "copy", &[]), bind("", ""), execute("")];
    messages.extend([data(b'f'), sync(), query("x")]);
    messages.extend(uses(""));
    scene.play(0, 0, &messages);
}

#[test]
fn a_statement_that_takes_all_away_can_be_prepared_before_there_are_any() {
    let mut scene = scene();
    let all = [parse("", "deallocate all", &[]), parse("a", "fixed", &[])];
    let again = [bind("", ""), execute(""), bind("", "a"), sync()];
    scene.play(0, 0, &[&all[..], &again[..]].concat());
}

#[test]
fn a_parse_of_the_router_s_that_was_skipped_is_sent_again() {
    // P33
    let mut scene = scene();
    scene.play(0, 0, &[parse("a", "none", &[]), sync()]);
    let mut pipeline = vec![bind("", "x"), bind("", "a"), sync()];
    pipeline.extend(uses("a"));
    scene.play(0, 1, &pipeline);
}
