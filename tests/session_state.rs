//! The state of pooled sessions against real servers: what the router asks, what it restores, and
//! what pins. Sessions move between plain connections here, as they do in a pool.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use trunkline::session::pool::state::{
    Confirmed, Doubts, Hint, PinReason, Question, Reported, Restore, Settings, StateOptions,
};

#[path = "cluster/mod.rs"]
mod cluster;

use cluster::postgres::{Options, Pair18, Postgres};

/// A server connection, and what it has of session state that is nobody's by itself.
struct Connection {
    stream: TcpStream,
    login: Reported,
    now: Reported,
    settings: Settings,
}

type Frame = (u8, Vec<u8>);

impl Connection {
    fn open(server: &Postgres, user: &str) -> Self {
        let stream = TcpStream::connect((server.address, server.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut connection = Self {
            stream,
            login: Reported::default(),
            now: Reported::default(),
            settings: Settings::NONE,
        };
        let mut body = 196_608_u32.to_be_bytes().to_vec();
        body.extend(format!("user\0{user}\0database\0app\0\0").as_bytes());
        let mut packet = u32::try_from(body.len() + 4).unwrap().to_be_bytes().to_vec();
        packet.extend(body);
        connection.stream.write_all(&packet).unwrap();
        connection.until_ready();
        connection.login = connection.now.clone();
        connection
    }

    fn send(&mut self, tag: u8, body: &[u8]) {
        let mut packet = vec![tag];
        packet.extend(u32::try_from(body.len() + 4).unwrap().to_be_bytes());
        packet.extend(body);
        self.stream.write_all(&packet).unwrap();
    }

    fn until_ready(&mut self) -> Vec<Frame> {
        let mut frames = Vec::new();
        loop {
            let mut header = [0; 5];
            self.stream.read_exact(&mut header).unwrap();
            let length = u32::from_be_bytes(header[1..].try_into().unwrap());
            let mut body = vec![0; usize::try_from(length).unwrap() - 4];
            self.stream.read_exact(&mut body).unwrap();
            if header[0] == b'S' {
                let (name, value) = parameter(&body);
                self.now.set(&name, &value);
            }
            frames.push((header[0], body));
            if header[0] == b'Z' {
                return frames;
            }
        }
    }

    fn query(&mut self, sql: &[u8]) -> Vec<Frame> {
        let mut body = sql.to_vec();
        body.push(0);
        self.send(b'Q', &body);
        self.until_ready()
    }

    /// The first value of the last row of somebody who must not disturb the session.
    fn value(&mut self, sql: &str) -> String {
        outcome(&self.query(sql.as_bytes()))
    }
}

fn parameter(body: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let mut parts = body.split(|&byte| byte == 0);
    let mut next = || parts.next().unwrap().to_vec();
    (next(), next())
}

fn field(body: &[u8], code: u8) -> String {
    let mut fields = body.split(|&byte| byte == 0);
    let found = fields.find(|field| field.first() == Some(&code)).unwrap();
    String::from_utf8_lossy(&found[1..]).into_owned()
}

/// The SQLSTATE of an error, or the first value of the last row: `NULL`, or empty if there is none.
fn outcome(frames: &[Frame]) -> String {
    let mut shown = String::new();
    for (tag, body) in frames {
        match tag {
            b'E' => return field(body, b'C'),
            b'D' => {
                let length = i32::from_be_bytes(body[2..6].try_into().unwrap());
                shown = usize::try_from(length).map_or("NULL".to_owned(), |length| {
                    String::from_utf8_lossy(&body[6..6 + length]).into_owned()
                });
            }
            _ => {}
        }
    }
    shown
}

/// A client's session.
#[derive(Default)]
struct Session {
    confirmed: Confirmed,
    doubts: Doubts,
    options: StateOptions,
    /// Questions so far.
    asked: usize,
}

impl Session {
    /// One Query of the client on its connection; what comes of it.
    fn run(&mut self, connection: &mut Connection, sql: &str) -> String {
        self.run_bytes(connection, sql.as_bytes())
    }

    fn run_bytes(&mut self, connection: &mut Connection, sql: &[u8]) -> String {
        self.doubts.query(&Hint::of(sql));
        let frames = connection.query(sql);
        self.see(&frames);
        outcome(&frames)
    }

    /// Parse, Bind, Execute and Sync.
    fn execute(&mut self, connection: &mut Connection, sql: &str, values: &[&str]) -> String {
        connection.send(b'P', format!("\0{sql}\0\0\0").as_bytes());
        let mut bind = b"\0\0\0\0".to_vec();
        bind.extend(u16::try_from(values.len()).unwrap().to_be_bytes());
        for value in values {
            bind.extend(u32::try_from(value.len()).unwrap().to_be_bytes());
            bind.extend(value.as_bytes());
        }
        bind.extend([0, 0]);
        self.doubts.bind(&Hint::of(sql.as_bytes()), &bind);
        connection.send(b'B', &bind);
        connection.send(b'E', b"\0\0\0\0\0");
        connection.send(b'S', b"");
        let frames = connection.until_ready();
        self.see(&frames);
        outcome(&frames)
    }

    fn see(&mut self, frames: &[Frame]) {
        for (tag, body) in frames {
            match tag {
                b'C' => self.doubts.tag(&body[..body.len() - 1]),
                b'S' => self.doubts.parameter(&parameter(body).0),
                _ => {}
            }
        }
    }

    /// The end of a transaction. True: the connection may be released.
    fn boundary(&mut self, connection: &mut Connection) -> bool {
        let now = connection.now.clone();
        let question = self
            .doubts
            .settle(&mut self.confirmed, &connection.login, &now, &self.options);
        if let Some(question) = question {
            self.asked += 1;
            self.ask(connection, question);
        }
        connection.settings = self.confirmed.settings.clone();
        self.confirmed.pins.is_empty()
    }

    fn ask(&mut self, connection: &mut Connection, mut question: Question) {
        let frames = connection.query(question.sql().as_bytes());
        for (tag, body) in &frames {
            match tag {
                b'D' => question.row(body).unwrap(),
                b'E' => {
                    question.error();
                    eprintln!("the question failed: {}", field(body, b'M'));
                }
                b'S' => panic!("the question is told to the client: {}", body.escape_ascii()),
                _ => {}
            }
        }
        if frames.last().unwrap().1 == b"E" {
            connection.query(Question::AFTER_ERROR.as_bytes());
        }
        question.finish(&mut self.confirmed, &mut self.doubts);
    }

    /// Leases: the connection is made the session's.
    fn lease(&self, connection: &mut Connection) -> Result<(), String> {
        restore(connection, &self.confirmed.settings)
    }

    fn pins(&self) -> Vec<&'static str> {
        self.confirmed.pins.iter().map(PinReason::label).collect()
    }

    fn shown(&self) -> String {
        let all = self.confirmed.settings.iter();
        let all: Vec<String> = all
            .map(|(name, value)| format!("{name}={}", String::from_utf8_lossy(value)))
            .collect();
        all.join("; ")
    }
}

/// What a release and a lease do: first what would hurt an idle connection, then the restore. With
/// the name that fails.
fn restore(connection: &mut Connection, to: &Settings) -> Result<(), String> {
    if let Some(before) = connection.settings.before_idle() {
        assert_eq!(outcome(&connection.query(before.sql.as_bytes())), "");
        connection.settings = before.left;
    }
    if let Some(restore) = Restore::between(&connection.settings, to) {
        let frames = connection.query(restore.sql().as_bytes());
        if let Some((_, body)) = frames.iter().find(|(tag, _)| *tag == b'E') {
            connection.query(b"ROLLBACK");
            let message = field(body, b'M');
            let name = restore.name_in(message.as_bytes()).unwrap_or("?").to_owned();
            return Err(format!("{name}: {message}"));
        }
    }
    connection.settings = to.clone();
    Ok(())
}

/// What a client can see of settings: all of them, and some custom ones.
const ALL_SETTINGS: &str = "SELECT pg_catalog.string_agg(name OPERATOR(pg_catalog.||) '=' OPERATOR(pg_catalog.||) \
    pg_catalog.encode(pg_catalog.convert_to(setting, 'SQL_ASCII'), 'hex'), ',' ORDER BY name) \
    FROM pg_catalog.pg_settings WHERE name OPERATOR(pg_catalog.!~) '^plpgsql' AND name OPERATOR(pg_catalog.<>) ALL (ARRAY['transaction_isolation', 'transaction_read_only', \
    'transaction_deferrable'])";
const OTHERS: &str = "SELECT pg_catalog.concat_ws(',', current_setting('role', true), current_user, session_user, \
    current_setting('app.x', true), current_setting('app.y', true))";

fn seen(connection: &mut Connection) -> String {
    // In a transaction of its own kind, under no timeout.
    let all = format!("BEGIN ISOLATION LEVEL READ COMMITTED; {ALL_SETTINGS}");
    let all = connection.value(&all);
    let others = connection.value(&OTHERS.replace("current_setting", "pg_catalog.current_setting"));
    connection.query(b"COMMIT");
    format!("{all} {others}")
}

/// A session does this on one connection, goes to another and finds everything there; and the next
/// session on the first one finds nothing of it.
fn moves(server: &Postgres, user: &str, program: &[&[u8]]) -> Session {
    let shown: Vec<_> = program.iter().map(|sql| sql.escape_ascii().to_string()).collect();
    let shown = shown.join("; ");
    let (mut one, mut other) = (Connection::open(server, user), Connection::open(server, user));
    let fresh = seen(&mut other);
    let mut session = Session::default();
    for sql in program {
        session.run_bytes(&mut one, sql);
    }
    assert!(session.boundary(&mut one), "{shown}: {:?}", session.pins());
    assert!(session.doubts.is_empty());
    let own = seen(&mut one);
    session
        .lease(&mut other)
        .unwrap_or_else(|error| panic!("{shown}: {error}"));
    assert_same(&seen(&mut other), &own, &shown);
    // A second question finds the same, also if it looks everywhere.
    let before = session.confirmed.settings.clone();
    session.options.verify_always = true;
    session.boundary(&mut other);
    assert_eq!(session.pins(), Vec::<&str>::new(), "{shown}");
    for (name, value) in before.iter() {
        assert_eq!(
            session.confirmed.settings.get(name),
            Some(value),
            "{shown}: {name}"
        );
    }
    Session::default().lease(&mut one).unwrap();
    // A custom name stays with an empty value (P23).
    let left = seen(&mut one);
    assert_same(left.trim_end_matches(','), fresh.trim_end_matches(','), &shown);
    session
}

/// Shows only what differs.
fn assert_same(seen: &str, expected: &str, program: &str) {
    let (seen, expected): (Vec<_>, Vec<_>) = (seen.split(',').collect(), expected.split(',').collect());
    let more: Vec<_> = seen.iter().filter(|part| !expected.contains(part)).collect();
    let less: Vec<_> = expected.iter().filter(|part| !seen.contains(part)).collect();
    assert_eq!(more, less, "{program}");
    assert_eq!(seen, expected, "{program}");
}

const PROGRAMS: &[&[&str]] = &[
    &["SELECT 1"],
    &["SET work_mem = '9MB'"],
    &["SET statement_timeout = '5s'; SET lock_timeout = 7; SET idle_in_transaction_session_timeout = '1min'"],
    &["SET statement_timeout = '50ms'"],
    &["SET idle_session_timeout = '1min'"],
    &["SET search_path = ''"],
    &["SELECT set_config('search_path', '', false)"],
    &["SET search_path = '\"$user\", public'"],
    &["SET search_path = \"$user\", \"odd \"\"name'\\\", public"],
    &["SET DateStyle = German"],
    &["SET TIME ZONE INTERVAL '-08:00' HOUR TO MINUTE"],
    &["SET TIME ZONE 'Europe/Berlin'; SET IntervalStyle = sql_standard"],
    &["SET NAMES 'LATIN1'"],
    &["SET client_encoding = 'SQL_ASCII'"],
    &[
        "SET client_encoding = 'BIG5'; SELECT set_config('app.x', convert_from('\\xc3a9', 'UTF8'), false) IS NULL",
    ],
    &["SET client_encoding = 'SJIS'; SET app.x = 'it''s'; SET app.y = E'back\\\\slash\\n'"],
    &["SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ ONLY, DEFERRABLE"],
    &["SET default_transaction_isolation = 'repeatable read'"],
    &["SET app.x = 'a'; RESET app.x"],
    &["SET app.x = 'a'", "SET work_mem = '2MB'", "RESET ALL"],
    &["SET app.x = 'a'", "SET work_mem = '2MB'", "DISCARD ALL"],
    &["BEGIN; SET work_mem = '2MB'; SET app.x = 'a'; ROLLBACK"],
    &[
        "BEGIN",
        "SET work_mem = '2MB'",
        "SAVEPOINT a",
        "SET work_mem = '3MB'",
        "ROLLBACK TO a",
        "COMMIT",
    ],
    &["BEGIN", "SET work_mem = '2MB'", "SELECT 1/0", "COMMIT"],
    &["SET work_mem = '2MB'", "BEGIN", "RESET work_mem", "ROLLBACK"],
    &["SET work_mem = '2MB'; SELECT 1/0"],
    &["BEGIN; SET LOCAL work_mem = '2MB'; SET LOCAL TimeZone = 'Asia/Tokyo'; COMMIT"],
    &["SET bogus = 1", "SET work_mem = 'bogus'", "SET app.x = 'y' 'z'"],
    &["EXPLAIN ANALYZE SELECT set_config('work_mem', '2MB', false)"],
    &["COPY (SELECT set_config('work_mem', '2MB', false)) TO STDOUT"],
    &["VALUES (set_config('work_mem', '2MB', false))"],
    &["UPDATE pg_settings SET setting = '2048' WHERE name = 'work_mem'"],
    &[
        "DO $$ BEGIN PERFORM set_config('app.x', 'a', false); SET work_mem = '2MB'; EXECUTE 'SET app.y = 1'; END $$",
    ],
    &["SET standard_conforming_strings = off; SET app.x = 'a\\\\b'"],
    &["SET jit_above_cost = 0; SET enable_seqscan = off; SET cpu_tuple_cost = 0.123456789"],
    &["SET application_name = 'caf\u{e9}'"],
    &["SET transaction_isolation = 'serializable'"],
    &[
        "SET bytea_output = escape; SET extra_float_digits = 3; SET transform_null_equals = on; SET array_nulls = off",
    ],
    &["SET client_min_messages = debug5"],
    &["SET xmloption = document; SET XML OPTION CONTENT; SET row_security = off"],
    &["SET temp_buffers = '1MB'"],
    &["SET role = none"],
    &["SET ROLE member", "SET work_mem = '2MB'"],
    &["SET work_mem = '2MB'", "SET ROLE member", "RESET ROLE"],
    &["SET search_path = shadow, pg_catalog, public; SET work_mem = '2MB'"],
    &[
        "SET search_path = shadow, pg_catalog",
        "SELECT pg_catalog.set_config('app.x', 'a', false)",
    ],
];

fn prepare(server: &Postgres) {
    server.sql("CREATE ROLE member; GRANT member TO app; CREATE ROLE gone; GRANT gone TO app");
    for name in [
        "current_setting(text, boolean)",
        "set_config(text, text, boolean)",
        "set_config(text, unknown, boolean)",
    ] {
        server.sql_in(
            "app",
            &format!(
                "CREATE SCHEMA IF NOT EXISTS shadow; GRANT USAGE ON SCHEMA shadow TO PUBLIC; \
                 CREATE FUNCTION shadow.{} RETURNS text LANGUAGE sql AS $$ SELECT 'shadow' $$",
                name.replace("unknown", "name")
            ),
        );
    }
    server.sql_in(
        "app",
        "CREATE FUNCTION shadow.encode(bytea, text) RETURNS text LANGUAGE sql AS $$ SELECT 'ff' $$; \
         CREATE FUNCTION shadow.never(text, text) RETURNS bool LANGUAGE sql AS $$ SELECT false $$; \
         CREATE OPERATOR shadow.= (FUNCTION = shadow.never, LEFTARG = text, RIGHTARG = text); \
         CREATE VIEW shadow.pg_settings AS SELECT 1 AS name; \
         CREATE FUNCTION public.hidden() RETURNS void LANGUAGE plpgsql AS \
           $$ BEGIN PERFORM set_config('app.x', 'hidden', false); PERFORM set_config('work_mem', '3MB', false); END $$",
    );
}

/// P3, P9, P10, P12, P14, P15, P18, P20 to P23.
fn settings_move(server: &Postgres) {
    for user in ["app", "postgres"] {
        for program in PROGRAMS {
            // The superuser needs no membership.
            let program: Vec<&[u8]> = program.iter().map(|sql| sql.as_bytes()).collect();
            moves(server, user, &program);
        }
    }
    // P20: a byte of LATIN1.
    moves(server, "app", &[b"SET NAMES 'LATIN1'", b"SET app.x = '\xe9'"]);
    // P18: the role lowers what may be set, and comes last.
    moves(
        server,
        "postgres",
        &[b"SET log_statement = 'all'", b"SET ROLE member"],
    );
    moves(
        server,
        "postgres",
        &[b"SET log_duration = on; SET session_replication_role = replica; SET ROLE app"],
    );
}

/// What is no deviation, and what needs no question.
fn deviations_are_exact(server: &Postgres) {
    for (program, shown, asked) in [
        (&["SELECT 1"][..], "", 0),
        (&["SET TIME ZONE 'Asia/Tokyo'"], "timezone=Asia/Tokyo", 0),
        (&["BEGIN; SET work_mem = '2MB'; ROLLBACK"], "", 1),
        (&["SET work_mem = '2MB'"], "work_mem=2MB", 1),
        (&["SET work_mem = '4MB'"], "", 1),
        (&["BEGIN; SET LOCAL work_mem = '2MB'; COMMIT"], "", 0),
        (&["SELECT set_config('app.x', 'a', true)"], "", 0),
        (&["BEGIN; SET app.x = 'a'; ROLLBACK"], "app.x=", 1),
        (&["SET ROLE member; RESET ROLE"], "", 1),
        (&["SET ROLE NONE"], "", 1),
        (&["DISCARD ALL"], "", 0),
        (&["RESET ALL"], "", 0),
        (
            &["SET statement_timeout = '3s'; LISTEN x; UNLISTEN x"],
            "statement_timeout=3s",
            1,
        ),
    ] {
        let program: Vec<&[u8]> = program.iter().map(|sql| sql.as_bytes()).collect();
        let mut connection = Connection::open(server, "app");
        let mut session = Session::default();
        for sql in &program {
            session.run_bytes(&mut connection, sql);
        }
        assert!(session.boundary(&mut connection), "{shown}");
        assert_eq!((session.shown().as_str(), session.asked), (shown, asked));
    }
    let mut connection = Connection::open(server, "app");
    let mut session = Session::default();
    session.execute(
        &mut connection,
        "SELECT set_config($1, $2, false)",
        &["App.X", "7"],
    );
    assert!(session.boundary(&mut connection));
    assert_eq!(session.shown(), "app.x=7");
    // Without a base, 4MB would stay; RESET ALL is known to be one.
    session.run(&mut connection, "SET work_mem = '2MB'");
    session.run(&mut connection, "RESET ALL");
    assert!(session.boundary(&mut connection));
    assert_eq!(session.shown(), "app.x=");
}

/// P1 to P4, P11, P62, P63: each pin comes with the first statement and goes with the second.
fn pins_come_and_go(server: &Postgres) {
    for (makes, unmakes, pin) in [
        ("PREPARE p AS SELECT 1", "DEALLOCATE p", "prepare"),
        (
            "BEGIN; PREPARE p AS SELECT 1; ROLLBACK",
            "DEALLOCATE ALL",
            "prepare",
        ),
        ("LISTEN x", "UNLISTEN x", "listen"),
        (
            "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
            "CLOSE c",
            "hold_cursor",
        ),
        ("CREATE TEMP TABLE t(a int)", "DROP TABLE t", "temporary_object"),
        (
            "CREATE TEMP TABLE t AS SELECT 1 AS a",
            "DISCARD TEMP",
            "temporary_object",
        ),
        ("SELECT 1 AS a INTO TEMP t", "DISCARD ALL", "temporary_object"),
        (
            "SET search_path = pg_temp, public; CREATE TABLE t AS SELECT 1 AS a; RESET search_path",
            "DROP TABLE pg_temp.t",
            "temporary_object",
        ),
        (
            "CREATE TABLE pg_temp.t(a int)",
            "DROP TABLE t",
            "temporary_object",
        ),
        ("CREATE TEMP SEQUENCE s", "DROP SEQUENCE s", "temporary_object"),
        (
            "CREATE TEMP VIEW v AS SELECT 1 AS a",
            "DROP VIEW v",
            "temporary_object",
        ),
        (
            "CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
            "DROP FUNCTION pg_temp.f()",
            "temporary_object",
        ),
        (
            "CREATE TYPE pg_temp.e AS ENUM ('a')",
            "DROP TYPE pg_temp.e",
            "temporary_object",
        ),
        (
            "CREATE DOMAIN pg_temp.d AS int",
            "DROP DOMAIN pg_temp.d",
            "temporary_object",
        ),
        (
            "CREATE OPERATOR pg_temp.=== (FUNCTION = int4eq, LEFTARG = int, RIGHTARG = int)",
            "DROP OPERATOR pg_temp.=== (int, int)",
            "temporary_object",
        ),
        (
            "DO $$ BEGIN EXECUTE 'CREATE TEMP TABLE t(a int)'; END $$",
            "DROP TABLE t",
            "temporary_object",
        ),
        ("DO 'BEGIN LISTEN x; END'", "UNLISTEN *", "listen"),
        (
            "SELECT pg_advisory_lock(1)",
            "SELECT pg_advisory_unlock(1)",
            "advisory_lock",
        ),
        (
            "BEGIN; SELECT pg_advisory_lock(1); ROLLBACK",
            "SELECT pg_advisory_unlock_all()",
            "advisory_lock",
        ),
        (
            "SELECT pg_try_advisory_lock_shared(1, 2)",
            "DISCARD ALL",
            "advisory_lock",
        ),
        ("LISTEN x", "DISCARD ALL", "listen"),
        ("PREPARE p AS SELECT 1", "DISCARD ALL", "prepare"),
        (
            "SET work_mem = '2MB'; LISTEN x",
            "UNLISTEN x; RESET work_mem",
            "listen",
        ),
    ] {
        let mut connection = Connection::open(server, "app");
        let mut session = Session::default();
        session.run(&mut connection, makes);
        assert!(!session.boundary(&mut connection), "{makes}");
        assert_eq!(session.pins(), [pin], "{makes}");
        // Nothing is asked meanwhile.
        let asked = session.asked;
        session.run(&mut connection, "SELECT 1");
        assert!(!session.boundary(&mut connection), "{makes}");
        assert_eq!(session.asked, asked, "{makes}");
        let came = session.run(&mut connection, unmakes);
        assert!(
            session.boundary(&mut connection),
            "{unmakes}: {came} {:?}",
            session.pins()
        );
        assert_eq!(session.shown(), "", "{unmakes}");
    }
    for harmless in [
        "CREATE TEMP TABLE t(a int) ON COMMIT DROP",
        "BEGIN; CREATE TEMP TABLE t(a int); LISTEN x; DECLARE c CURSOR WITH HOLD FOR SELECT 1; ROLLBACK",
        "BEGIN; DECLARE c CURSOR FOR SELECT 1; SAVEPOINT s; SELECT pg_advisory_xact_lock(1); COMMIT",
        "CREATE TABLE public.permanent(a int); DROP TABLE public.permanent",
        "BEGIN; SET LOCAL ROLE member; COMMIT",
    ] {
        let mut connection = Connection::open(server, "app");
        let mut session = Session::default();
        assert_eq!(session.run(&mut connection, harmless).len() % 5, 0, "{harmless}");
        assert!(
            session.boundary(&mut connection),
            "{harmless}: {:?}",
            session.pins()
        );
        assert_eq!(session.shown(), "", "{harmless}");
    }
}

/// P19: SESSION AUTHORIZATION.
fn another_session_user_pins(server: &Postgres) {
    let mut connection = Connection::open(server, "postgres");
    let mut session = Session::default();
    session.run(&mut connection, "SET ROLE member");
    assert!(session.boundary(&mut connection));
    assert_eq!(session.shown(), "role=member");
    session.run(&mut connection, "SET SESSION AUTHORIZATION app");
    assert!(!session.boundary(&mut connection));
    assert_eq!(session.pins(), ["session_authorization"]);
    session.run(&mut connection, "RESET SESSION AUTHORIZATION");
    assert!(session.boundary(&mut connection), "{:?}", session.pins());
    assert_eq!(session.shown(), "");
}

/// P12: nothing that a client can set stops the question or the restore.
fn the_question_works_under_hostile_settings(server: &Postgres) {
    let hostile = [
        "SET jit_above_cost = 0; SET jit_inline_above_cost = 0; SET jit_optimize_above_cost = 0",
        "SET search_path = shadow, pg_catalog",
        "SET client_encoding = 'BIG5'",
        "SET standard_conforming_strings = off; SET backslash_quote = on; SET quote_all_identifiers = on",
        "SET work_mem = '64kB'; SET enable_seqscan = off; SET plan_cache_mode = force_generic_plan",
        "SELECT pg_catalog.set_config('app.x', pg_catalog.convert_from(E'\\\\xc3a9', 'UTF8'), false) IS NULL",
    ];
    // From here on the client's own statements would wait.
    let last = "SET default_transaction_isolation = serializable; SET default_transaction_read_only = on; \
         SET default_transaction_deferrable = on";
    // An open serializable writer: a deferrable transaction waits for it.
    let mut writer = Connection::open(server, "app");
    writer.query(b"CREATE TABLE IF NOT EXISTS public.written(a int)");
    writer.query(b"BEGIN ISOLATION LEVEL SERIALIZABLE; INSERT INTO public.written VALUES (1)");
    let (mut one, mut other) = (Connection::open(server, "app"), Connection::open(server, "app"));
    let mut session = Session::default();
    for sql in hostile {
        session.run(&mut one, sql);
    }
    let parallel = if one.login.get(b"server_version").unwrap().starts_with(b"15") {
        "SET force_parallel_mode = regress"
    } else {
        "SET debug_parallel_query = regress"
    };
    session.run(&mut one, parallel);
    session.run(&mut one, last);
    session.options.verify_always = true;
    let started = tokio::time::Instant::now();
    assert!(session.boundary(&mut one), "{:?}", session.pins());
    session.lease(&mut other).unwrap();
    session.boundary(&mut other);
    assert!(
        started.elapsed() < Duration::from_secs(5),
        "{:?}",
        started.elapsed()
    );
    assert_eq!(session.confirmed.settings.get("app.x"), Some("\u{e9}".as_bytes()));
    assert_eq!(session.confirmed.settings.get("jit_above_cost"), Some(&b"0"[..]));
    writer.query(b"ROLLBACK");
    // The shortest timeout: the question may fail now and then, and is asked again.
    let mut session = Session::default();
    let mut short = Connection::open(server, "app");
    session.run(&mut short, "SET statement_timeout = 1; SET lock_timeout = 1");
    let mut tries = 0;
    while !session.boundary(&mut short) {
        assert_eq!(session.pins(), ["unanswered"]);
        tries += 1;
        assert!(tries < 100);
    }
    assert_eq!(session.shown(), "lock_timeout=1ms; statement_timeout=1ms");
}

/// P3 and the options: what no text shows is found where the configuration says so.
fn what_functions_set_is_found_where_configured(server: &Postgres) {
    let hidden = |options: StateOptions| {
        let mut connection = Connection::open(server, "app");
        let mut session = Session {
            options,
            ..Session::default()
        };
        session.run(&mut connection, "SELECT hidden()");
        assert!(session.boundary(&mut connection));
        session.shown()
    };
    let names: StateOptions = StateOptions {
        names: ["app.x".into()].into(),
        verify_always: false,
    };
    assert_eq!(hidden(StateOptions::default()), "");
    assert_eq!(hidden(names.clone()), "app.x=hidden");
    let always = StateOptions {
        verify_always: true,
        ..StateOptions::default()
    };
    assert_eq!(hidden(always), "work_mem=3MB");
    let both = StateOptions {
        verify_always: true,
        ..names
    };
    assert_eq!(hidden(both), "app.x=hidden; work_mem=3MB");
}

/// P17, P65, P66: what cannot be restored fails with its name.
fn what_cannot_be_restored_is_named(server: &Postgres) {
    let mut session = Session::default();
    let mut one = Connection::open(server, "app");
    session.run(&mut one, "SET temp_buffers = '1MB'");
    assert!(session.boundary(&mut one));
    let mut other = Connection::open(server, "app");
    other.query(b"CREATE TEMP TABLE t(a int); INSERT INTO t VALUES (1); DROP TABLE t");
    let error = session.lease(&mut other).unwrap_err();
    assert!(error.starts_with("temp_buffers: "), "{error}");
    // It is all or nothing, and the connection goes on.
    assert_eq!(other.value("SHOW temp_buffers"), "8MB");

    let mut session = Session::default();
    session.run(&mut one, "SET ROLE gone");
    session.boundary(&mut one);
    server.sql("REVOKE gone FROM app");
    // The membership was revoked: the role stays in force, the question still works (P66).
    session.run(
        &mut one,
        "SET work_mem = '2MB'; SELECT set_config('role', current_user, false)",
    );
    session.boundary(&mut one);
    let error = session.lease(&mut Connection::open(server, "app")).unwrap_err();
    assert!(error.starts_with("role: "), "{error}");
    server.sql("DROP ROLE gone");
    // Nobody is left behind: the connection can be given its own role back (P65).
    Session::default().lease(&mut one).unwrap();
    assert_eq!(one.value("SELECT current_user"), "app");
    server.sql("CREATE ROLE gone; GRANT gone TO app");
}

fn all(server: &Postgres) {
    prepare(server);
    deviations_are_exact(server);
    settings_move(server);
    pins_come_and_go(server);
    another_session_user_pins(server);
    the_question_works_under_hostile_settings(server);
    what_functions_set_is_found_where_configured(server);
    what_cannot_be_restored_is_named(server);
}

const TRUST: &str = "host all all 127.0.0.0/8 trust";

#[test]
fn session_state_is_kept_apart_on_postgresql_15() {
    all(&Postgres::start(&Options {
        hba: Some(TRUST.to_owned()),
        ..Options::default()
    }));
}

#[test]
fn session_state_is_kept_apart_on_postgresql_18() {
    all(&Postgres::start(&Options {
        hba: Some(TRUST.to_owned()),
        version_18: true,
        ..Options::default()
    }));
}

/// P12: a default of serializable fails on a standby.
#[test]
fn a_standby_answers_the_question_under_any_default() {
    let pair = Pair18::start();
    pair.standby.set_hba(TRUST);
    let mut session = Session::default();
    let open = || Connection::open(&pair.standby, "app");
    cluster::eventually("the standby has the database", Duration::from_secs(30), || {
        std::panic::catch_unwind(open).is_ok()
    });
    let (mut one, mut other) = (open(), open());
    session.run(
        &mut one,
        "SET default_transaction_isolation = serializable; SET work_mem = '2MB'; SET ROLE app",
    );
    session.options.verify_always = true;
    assert!(session.boundary(&mut one), "{:?}", session.pins());
    session.lease(&mut other).unwrap();
    assert!(session.boundary(&mut other));
    assert_eq!(other.value("SHOW default_transaction_isolation"), "serializable");
    assert_eq!(session.confirmed.settings.get("work_mem"), Some(&b"2MB"[..]));
}
