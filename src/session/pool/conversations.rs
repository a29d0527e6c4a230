//! What clients of a pool say, for tests.

use crate::session::simulator::frame;

pub(super) fn query(text: &str) -> Vec<u8> {
    frame(b'Q', format!("{text}\0").as_bytes())
}

pub(super) fn parse(name: &str, text: &str) -> Vec<u8> {
    frame(b'P', format!("{name}\0{text}\0\0\0").as_bytes())
}

pub(super) fn bind(name: &str) -> Vec<u8> {
    frame(b'B', format!("\0{name}\0\0\0\0\0\0\0").as_bytes())
}

pub(super) fn describe(name: &str) -> Vec<u8> {
    frame(b'D', format!("S{name}\0").as_bytes())
}

pub(super) fn close(name: &str) -> Vec<u8> {
    frame(b'C', format!("S{name}\0").as_bytes())
}

pub(super) fn execute() -> Vec<u8> {
    frame(b'E', &[0; 5])
}

pub(super) fn sync() -> Vec<u8> {
    frame(b'S', b"")
}

pub(super) fn flush() -> Vec<u8> {
    frame(b'H', b"")
}

pub(super) fn portal() -> Vec<u8> {
    frame(b'D', b"P\0")
}

/// A name for what a client says, and its messages.
type Conversation = (&'static str, Vec<Vec<u8>>);

/// What clients say. Each ends outside a transaction, with everything answered.
pub(super) fn conversations() -> Vec<Conversation> {
    let mut all = of_statements();
    all.extend(of_batches());
    all
}

fn run(name: &str) -> Vec<u8> {
    [bind(name), portal(), execute(), sync()].concat()
}

fn of_statements() -> Vec<Conversation> {
    vec![
        (
            "simple queries",
            vec![
                query("echo a"),
                query(""),
                query("bad"),
                query("echo b"),
                query("INSERT"),
            ],
        ),
        (
            "transactions, one of which fails",
            vec![
                query("BEGIN"),
                query("echo a"),
                query("COMMIT"),
                query("BEGIN"),
                query("bad"),
                query("echo b"),
                query("COMMIT"),
            ],
        ),
        (
            "the unnamed statement",
            vec![parse("", "echo u"), run(""), parse("", "INSERT"), run("")],
        ),
        (
            "named statements, described, used and closed",
            vec![
                parse("a", "echo a"),
                describe("a"),
                sync(),
                run("a"),
                parse("b", "echo b"),
                sync(),
                run("b"),
                run("a"),
                close("a"),
                sync(),
                run("a"),
                run("b"),
                parse("b", "echo again"),
                sync(),
                run("b"),
            ],
        ),
        (
            "an error in the middle of a batch, and statements after it",
            vec![
                parse("a", "echo a"),
                parse("", "bad"),
                bind(""),
                execute(),
                parse("b", "echo b"),
                sync(),
                run("a"),
                run("b"),
            ],
        ),
    ]
}

fn of_batches() -> Vec<Conversation> {
    vec![
        (
            "a pipeline over several Syncs",
            vec![
                parse("a", "echo a"),
                bind("a"),
                execute(),
                sync(),
                run("missing"),
                run("a"),
                parse("a", "echo twice"),
                sync(),
                run("a"),
                query("echo q"),
                run("a"),
            ],
        ),
        (
            "Flush, with the Sync later",
            vec![
                parse("f", "echo f"),
                flush(),
                describe("f"),
                flush(),
                bind("f"),
                execute(),
                flush(),
                sync(),
                flush(),
                query("echo a"),
            ],
        ),
        (
            "COPY in and out",
            vec![
                query("in"),
                frame(b'd', b"1\n"),
                frame(b'd', b""),
                frame(b'c', b""),
                query("in"),
                frame(b'f', b"no\0"),
                query("out 2"),
                parse("", "in"),
                bind(""),
                execute(),
                frame(b'd', b"2\n"),
                frame(b'c', b""),
                sync(),
                parse("", "in"),
                bind(""),
                execute(),
                frame(b'f', b"no\0"),
                sync(),
                parse("", "out 2"),
                bind(""),
                execute(),
                sync(),
                // They belong to nothing.
                frame(b'd', b"3\n"),
                frame(b'c', b""),
                query("echo a"),
            ],
        ),
        (
            "a transaction of batches, and a function call",
            vec![
                query("BEGIN"),
                parse("a", "echo a"),
                run("a"),
                run("missing"),
                parse("b", "echo b"),
                sync(),
                parse("", "ROLLBACK"),
                run(""),
                run("b"),
                // `lo_creat`, of which the router knows that it leaves nothing.
                frame(b'F', &[0, 0, 3, 0xbd, 0, 0, 0, 0, 0, 0]),
                run("a"),
            ],
        ),
    ]
}

/// Messages of more than 64 KiB.
pub(super) fn long() -> Vec<Conversation> {
    let text = format!("echo {}", "x".repeat(100_000));
    let values = [
        &b"\0n\0\0\0\0\x01\0\x01\x86\xa0"[..],
        &vec![b'v'; 100_000],
        b"\0\0",
    ]
    .concat();
    vec![
        ("a long Query", vec![query(&text), query("echo a")]),
        (
            "a long Parse",
            vec![
                parse("n", &text),
                sync(),
                bind("n"),
                execute(),
                sync(),
                query("echo a"),
            ],
        ),
        (
            "a long Bind",
            vec![
                parse("n", "echo n"),
                sync(),
                frame(b'B', &values),
                execute(),
                sync(),
            ],
        ),
        (
            "many rows",
            vec![query("rows 200"), query("out 200"), query("echo a")],
        ),
        (
            "long data",
            vec![
                query("in"),
                frame(b'd', &[b'd'; 200_000]),
                frame(b'c', b""),
                query("echo a"),
            ],
        ),
    ]
}
