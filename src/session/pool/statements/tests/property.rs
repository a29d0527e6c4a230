//! Random programs of several clients over shared connections.

use proptest::prelude::*;
use proptest::sample::select;

use super::super::{Limits, fuzzing};
use super::scene::{Scene, bind, close, data, describe, execute, parse, query, readable, sync};

#[derive(Clone)]
struct Messages(Vec<Vec<u8>>);

impl std::fmt::Debug for Messages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&readable(&self.0.concat()))
    }
}

#[derive(Debug, Clone)]
enum Action {
    Send(usize, Messages),
    Forward(usize, usize),
    Serve(usize, usize),
    /// Everything comes to rest, and the schema changes.
    Schema(u32),
    Path(Option<u64>),
}

fn name() -> impl Strategy<Value = &'static str> {
    select(vec!["a", "a", "b", "b", "c", "tl_0", "tl_"])
}

/// What a named statement may be; the schema may change what it means.
fn text() -> impl Strategy<Value = &'static str> {
    select(vec![
        "rows", "rows", "none", "none", "fixed", "fragile", "bad", "boom", "begin", "rollback",
    ])
}

/// The unnamed statement is prepared again without a look at its columns.
fn unnamed_text() -> impl Strategy<Value = &'static str> {
    select(vec![
        "fixed", "fixed", "bad", "boom", "begin", "commit", "rollback", "x",
    ])
}

fn message() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let types = select(vec![vec![], vec![0], vec![7]]);
    let one = |message: Vec<u8>| vec![message];
    prop_oneof![
        6 => (name(), text(), types).prop_map(move |(name, text, types)| one(parse(name, text, &types))),
        8 => name().prop_map(|name| vec![bind("", name), execute("")]),
        2 => name().prop_map(move |name| one(bind("", name))),
        1 => Just(vec![execute("")]),
        2 => name().prop_map(move |name| one(describe(name))),
        2 => name().prop_map(move |name| one(close(name))),
        3 => unnamed_text().prop_map(|text| vec![parse("", text, &[]), bind("", ""), execute("")]),
        2 => unnamed_text().prop_map(move |text| one(parse("", text, &[]))),
        3 => Just(vec![bind("", ""), execute("")]),
        1 => Just(vec![describe("")]),
        1 => Just(vec![close("")]),
        12 => Just(vec![sync()]),
        2 => select(vec!["x", "bad", "begin", "commit", "rollback", "boom"]).prop_map(move |text| one(query(text))),
        1 => select(vec!["deallocate all", "discard all"]).prop_map(move |text| one(query(text))),
        2 => name().prop_map(move |name| one(query(&format!("deallocate {name}")))),
        // The text is looked at when it is prepared: it must not be executed again when the name
        // has come to mean something else.
        1 => name().prop_map(|name| {
            let text = format!("deallocate {name}");
            vec![parse("", &text, &[]), bind("", ""), execute(""), sync(), query("x")]
        }),
        // What SQL has prepared keeps its name, and the client its connection.
        1 => Just(vec![query("prepare q")]),
        1 => select(vec![bind("", "q"), describe("q"), close("q"), query("deallocate q")])
            .prop_map(one),
        1 => (any::<bool>(), any::<bool>()).prop_map(|(ends_well, is_early)| {
            let mut messages = vec![parse("", "copy", &[]), bind("", ""), execute("")];
            messages.extend((ends_well && is_early).then(sync));
            messages.extend([data(b'd'), data(if ends_well { b'c' } else { b'f' }), sync(), query("x")]);
            messages
        }),
        1 => any::<bool>().prop_map(|ends_well| {
            vec![query("copy"), data(b'd'), data(if ends_well { b'c' } else { b'f' })]
        }),
        1 => Just(vec![data(b'H')]),
        1 => select(vec!["deallocate all", "discard all"])
            .prop_map(|text| vec![parse("", text, &[]), bind("", ""), execute("")]),
    ]
}

fn action(clients: usize, connections: usize) -> impl Strategy<Value = Action> {
    prop_oneof![
        10 => (0..clients, message()).prop_map(|(client, messages)| Action::Send(client, Messages(messages))),
        5 => (0..clients, 0..connections).prop_map(|(client, choice)| Action::Forward(client, choice)),
        6 => (0..connections, 1..8_usize).prop_map(|(connection, n)| Action::Serve(connection, n)),
        1 => (0..4_u32).prop_map(Action::Schema),
        1 => select(vec![Some(1), Some(2), None]).prop_map(Action::Path),
    ]
}

fn run(actions: Vec<Action>, limits: Limits) -> Result<usize, String> {
    let mut scene = Scene::new(3, 2, limits);
    for action in actions {
        match action {
            Action::Send(client, messages) => {
                for message in messages.0 {
                    scene.clients[client].is_pinned |= message == query("prepare q");
                    scene.send(client, message);
                }
            }
            Action::Forward(client, choice) => {
                scene.forward(client, choice);
            }
            Action::Serve(connection, messages) => {
                scene.serve(connection, messages);
            }
            Action::Schema(schema) => {
                scene.settle();
                scene.check()?;
                scene.schema.set(schema);
            }
            Action::Path(path) => scene.path = path,
        }
    }
    scene.settle();
    scene.check()?;
    for connection in &scene.connections {
        // The two names for special purposes are not counted, nor what SQL has prepared.
        let allowed = limits.statements + 3;
        if connection.server.len() > allowed && connection.statements.ledger.is_empty() {
            return Err(format!("{} statements on a server", connection.server.len()));
        }
    }
    Ok(scene.waits)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases.max(2000), ..ProptestConfig::default() })]

    #[test]
    fn clients_see_what_a_connection_of_their_own_would_say(
        actions in prop::collection::vec(action(3, 2), 1..60), statements in 1..6_usize,
    ) {
        let limits = Limits { statements, bytes: 1000 };
        run(actions, limits).map_err(TestCaseError::fail)?;
    }
}

proptest! {
    #[test]
    fn any_message_of_either_side_is_survived(
        messages in prop::collection::vec(
            (select(b"PBDCEQSFHdcf123tTnZIsVGWA!".to_vec()), prop::collection::vec(bytes(), 0..12)), 1..40),
    ) {
        let mut data = Vec::new();
        for (tag, body) in messages {
            let body = body.concat();
            data.extend([tag, u8::try_from(body.len().min(127)).unwrap()]);
            data.extend_from_slice(&body[..body.len().min(127)]);
        }
        fuzzing::run(&data);
    }
}

/// Pieces that messages are made of.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    select(vec![
        &b"\0"[..],
        b"S",
        b"P",
        b"a\0",
        b"tl_0\0",
        b"\0\0",
        b"\0\x01",
        b"\0\0\0\x17",
        b"I",
        b"C26000\0",
        b"C42P05\0",
        b"Mx tl_0\0",
        b"DISCARD ALL\0",
        b"deallocate a\0",
        b"\xff",
    ])
    .prop_map(<[u8]>::to_vec)
}
