//! Programs of clients.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

pub(crate) const MOST_CLIENTS: usize = 4;
pub(crate) const MOST_CONNECTIONS: usize = 3;

/// `{t}` is a table of the client's own, `{n}` a number of its own.
const QUERIES: &[&str] = &[
    "select 1",
    "",
    "select count(*), coalesce(sum(a), 0) from {t}",
    "insert into {t} values (1)",
    "insert into {t} values (2), (3) returning a",
    "update {t} set a = a + 1; delete from {t} where a > 4",
    "select 1/0",
    "select nosuch",
    "syntax error",
    "begin",
    "begin",
    "begin isolation level serializable",
    "commit",
    "commit",
    "rollback",
    "commit and chain",
    "rollback and chain",
    "savepoint a",
    "rollback to a",
    "release a",
    "begin; set work_mem = '9MB'; commit",
    "set work_mem = '6MB'; select 1/0",
    "set work_mem = '2MB'",
    "set local work_mem = '3MB'",
    "reset work_mem",
    "reset all",
    "show work_mem",
    "show work_mem",
    "select set_config('work_mem', '5MB', false)",
    "select set_config('work_mem', '7MB', true)",
    "do $$ begin perform set_config('work_mem', '8MB', false); end $$",
    "set timezone = 'Asia/Tokyo'",
    "select timestamptz '2020-01-01 00:00+00'",
    "set datestyle = 'German'",
    "show timezone",
    "set statement_timeout = '77s'",
    "show statement_timeout",
    "set app.x{n} = 'v'",
    "set local app.x{n} = 'l'",
    "reset app.x{n}",
    "select coalesce(current_setting('app.x{n}', true), '')",
    "select coalesce(current_setting('app.x{n}', true), '')",
    "set search_path = side, public",
    "select set_config('search_path', '', false)",
    "reset search_path",
    "show search_path",
    "select v from named",
    "set application_name = 'named'",
    "show application_name",
    "set role member",
    "reset role",
    "select current_user",
    "set session characteristics as transaction isolation level serializable",
    "set transaction isolation level repeatable read",
    "show transaction_isolation",
    "declare c cursor for select generate_series(1, 5)",
    "declare h cursor with hold for select generate_series(1, 5)",
    "fetch 2 from c",
    "fetch 1 from h",
    "close h",
    "close all",
    "prepare s as select 7",
    "execute s",
    "deallocate s",
    "deallocate all",
    "discard all",
    "discard temp",
    "listen ch{n}",
    "notify ch{n}, 'x'",
    "unlisten *",
    "create temp table x (a int)",
    "create temp table y on commit drop as select 1 as b",
    "select count(*) from x",
    "drop table x",
    "select pg_advisory_lock({n})",
    "select pg_advisory_unlock({n})",
    "select nextval('{t}_seq')",
    "copy (select a from {t} order by a) to stdout",
];

/// Texts for Parse.
const PREPARED: &[&str] = &[
    "select 1",
    "select generate_series(1, 3)",
    "select $1::int + 1",
    "insert into {t} values (5) returning a",
    "select a from {t} order by a",
    "select 1/0",
    "select nosuch",
    "begin",
    "commit",
    "rollback",
    "set work_mem = '4MB'",
    "show work_mem",
    "set local work_mem = '1MB'",
    "select set_config('work_mem', '5MB', false)",
    "select v from named",
    "set search_path = side, public",
    "select coalesce(current_setting('app.x{n}', true), '')",
    "deallocate all",
    "discard all",
    "declare h cursor with hold for select generate_series(1, 5)",
    "",
];

#[derive(Debug, Clone)]
pub(crate) enum Step {
    Query(&'static str),
    /// Data that fits or not, and whether it comes to its end.
    CopyIn {
        data: &'static str,
        is_done: bool,
        is_extended: bool,
    },
    /// Ends with a Flush; the answers are awaited.
    Batch(Vec<Message>),
}

#[derive(Debug, Clone)]
pub(crate) enum Message {
    Parse(&'static str, &'static str),
    Bind(&'static str, Option<&'static str>),
    DescribeStatement(&'static str),
    DescribePortal,
    Execute(u8),
    Close(&'static str),
    Sync,
    Query(&'static str),
}

#[derive(Debug, Clone)]
pub(crate) struct Program {
    pub(crate) connections: usize,
    pub(crate) clients: Vec<Vec<Step>>,
}

fn message() -> impl Strategy<Value = Message> {
    let name = || select(vec!["", "", "a", "b"]);
    prop_oneof![
        4 => (name(), select(PREPARED)).prop_map(|(name, sql)| Message::Parse(name, sql)),
        6 => (name(), select(vec![None, None, None, Some("1"), Some("x")]))
            .prop_map(|(name, value)| Message::Bind(name, value)),
        2 => name().prop_map(Message::DescribeStatement),
        2 => Just(Message::DescribePortal),
        6 => select(vec![0, 0, 0, 1]).prop_map(Message::Execute),
        1 => name().prop_map(Message::Close),
        5 => Just(Message::Sync),
        1 => select(QUERIES).prop_map(Message::Query),
    ]
}

/// As drivers do it.
fn prepared() -> impl Strategy<Value = Vec<Message>> {
    let name = select(vec!["", "a", "b", "c"]);
    (name, select(PREPARED)).prop_map(|(name, sql)| {
        vec![
            Message::Close(name),
            Message::Parse(name, sql),
            Message::DescribeStatement(name),
            Message::Sync,
            Message::Bind(name, sql.contains("$1").then_some("4")),
            Message::DescribePortal,
            Message::Execute(0),
            Message::Sync,
        ]
    })
}

fn step() -> impl Strategy<Value = Step> {
    let copy = (select(vec!["7\n", "x\n", ""]), any::<bool>(), any::<bool>());
    prop_oneof![
        10 => select(QUERIES).prop_map(Step::Query),
        1 => copy.prop_map(|(data, is_done, is_extended)| Step::CopyIn { data, is_done, is_extended }),
        4 => vec(message(), 1..8).prop_map(Step::Batch),
        3 => prepared().prop_map(Step::Batch),
    ]
}

/// Takes away each Execute of a portal that was not bound since the last Sync or Query. PostgreSQL
/// 15.18 crashes, and with it all its sessions, where a client executes a portal again whose
/// transaction has failed meanwhile: it reads the statements of the portal, which are freed. After
/// an error it ignores everything up to the Sync, so what remains is safe.
///
/// PostgreSQL 18 loses the state of its transaction where a Query comes in a batch (it then answers
/// "unexpected state STARTED"). Unless `queries_in_batches`, those are taken away, too, and each
/// batch has its Sync.
fn without_what_breaks_servers(mut steps: Vec<Step>, queries_in_batches: bool) -> Vec<Step> {
    let mut is_bound = false;
    for step in &mut steps {
        let Step::Batch(messages) = step else {
            is_bound = false;
            continue;
        };
        messages.retain(|message| {
            match message {
                Message::Bind(..) => is_bound = true,
                Message::Query(_) if !queries_in_batches => return false,
                Message::Sync | Message::Query(_) => is_bound = false,
                Message::Execute(_) => return is_bound,
                _ => {}
            }
            true
        });
        if !queries_in_batches {
            messages.push(Message::Sync);
            is_bound = false;
        }
    }
    steps
}

pub(crate) fn program(queries_in_batches: bool) -> impl Strategy<Value = Program> {
    let steps =
        vec(step(), 1..12).prop_map(move |steps| without_what_breaks_servers(steps, queries_in_batches));
    let clients = vec(steps, 2..=MOST_CLIENTS);
    (1..=MOST_CONNECTIONS, clients).prop_map(|(connections, clients)| Program { connections, clients })
}

pub(crate) fn framed(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![tag];
    frame.extend(u32::try_from(body.len() + 4).unwrap().to_be_bytes());
    frame.extend(body);
    frame
}

fn bind(name: &str, value: Option<&str>) -> Vec<u8> {
    let mut body = format!("\0{name}\0\0\0").into_bytes();
    match value {
        None => body.extend([0, 0]),
        Some(value) => {
            body.extend([0, 1]);
            body.extend(u32::try_from(value.len()).unwrap().to_be_bytes());
            body.extend(value.as_bytes());
        }
    }
    body.extend([0, 0]);
    framed(b'B', &body)
}

/// The names that stand for `{t}` and `{n}`.
#[derive(Clone)]
pub(crate) struct Names {
    pub(crate) table: String,
    pub(crate) number: String,
}

impl Names {
    fn text(&self, sql: &str) -> String {
        sql.replace("{t}", &self.table).replace("{n}", &self.number)
    }

    pub(crate) fn query(&self, sql: &str) -> Vec<u8> {
        framed(b'Q', format!("{}\0", self.text(sql)).as_bytes())
    }

    fn parse(&self, name: &str, sql: &str) -> Vec<u8> {
        framed(b'P', format!("{name}\0{}\0\0\0", self.text(sql)).as_bytes())
    }

    fn message(&self, message: &Message) -> Vec<u8> {
        match *message {
            Message::Parse(name, sql) => self.parse(name, sql),
            Message::Bind(name, value) => bind(name, value),
            Message::DescribeStatement(name) => framed(b'D', format!("S{name}\0").as_bytes()),
            Message::DescribePortal => framed(b'D', b"P\0"),
            Message::Execute(most) => framed(b'E', &[0, 0, 0, 0, most]),
            Message::Close(name) => framed(b'C', format!("S{name}\0").as_bytes()),
            Message::Sync => framed(b'S', b""),
            Message::Query(sql) => self.query(sql),
        }
    }

    pub(crate) fn step(&self, step: &Step) -> Vec<u8> {
        match step {
            Step::Query(sql) => self.query(sql),
            Step::CopyIn {
                data,
                is_done,
                is_extended,
            } => {
                let sql = "copy {t} from stdin";
                let mut out = if *is_extended {
                    // Under a name that no other step executes.
                    [
                        self.parse("copy", sql),
                        framed(b'B', b"copy\0copy\0\0\0\0\0\0\0"),
                        framed(b'E', b"copy\0\0\0\0\0"),
                    ]
                    .concat()
                } else {
                    self.query(sql)
                };
                out.extend(framed(b'd', data.as_bytes()));
                out.extend(if *is_done {
                    framed(b'c', b"")
                } else {
                    framed(b'f', b"no\0")
                });
                if *is_extended {
                    out.extend(
                        [
                            framed(b'C', b"Pcopy\0"),
                            framed(b'C', b"Scopy\0"),
                            framed(b'S', b""),
                        ]
                        .concat(),
                    );
                }
                out
            }
            Step::Batch(messages) => {
                let mut out: Vec<u8> = messages.iter().flat_map(|one| self.message(one)).collect();
                out.extend(framed(b'H', b""));
                out
            }
        }
    }
}
