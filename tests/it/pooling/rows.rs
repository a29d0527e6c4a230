//! The rows of the table of isolation.

use super::table::Outcome::{self, Kept, Leaks, Lost, Pinned, Refused};
use super::table::Step::{self, Extended, Hidden, Parse, Run, Sql, Superuser};

#[derive(Debug)]
pub struct Row {
    pub state: &'static str,
    pub user: &'static str,
    pub first: &'static [Step],
    /// Of the second session, on the same connection.
    pub second: &'static [Step],
    /// Of the first one, or of the superuser, before it looks.
    pub between: &'static [Step],
    /// The last step's answer is compared.
    pub look: &'static [Step],
    /// By the superuser, afterwards.
    pub undo: &'static str,
    /// By column.
    pub outcomes: [Outcome; 4],
}

const ROW: Row = Row {
    state: "",
    user: "app",
    first: &[],
    second: &[],
    between: &[],
    look: &[],
    undo: "SELECT 1",
    outcomes: [Kept; 4],
};

const fn row(
    state: &'static str,
    first: &'static [Step],
    look: &'static [Step],
    outcomes: [Outcome; 4],
) -> Row {
    Row {
        state,
        first,
        look,
        outcomes,
        ..ROW
    }
}

const WORK_MEM: &[Step] = &[Sql("SELECT current_setting('work_mem')")];
const TENANT: &[Step] = &[Sql("SELECT nullif(current_setting('app.tenant', true), '')")];
const PATH: &[Step] = &[Sql(
    "SELECT current_setting('search_path'), pg_catalog.current_schemas(true)",
)];
const ROLE: &[Step] = &[Sql("SELECT current_user, session_user, current_setting('role')")];
const TEMPORARY: &[Step] = &[Sql(
    "SELECT count(*) FROM pg_class WHERE relnamespace = pg_my_temp_schema()",
)];
const LOCKED: &[Step] = &[Sql(
    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid() AND \
     database = (SELECT oid FROM pg_database WHERE datname = current_database())",
)];
const NOTIFIED: &[Step] = &[Sql("NOTIFY x")];
const CURSOR: &[Step] = &[Sql("FETCH c")];
const PREPARED: &[Step] = &[Sql("EXECUTE p")];
const STATEMENT: &[Step] = &[Run("s", &[])];

pub const ROWS: &[Row] = &[
    // Settings.
    row("`SET`", &[Sql("SET work_mem = '7MB'")], WORK_MEM, [Kept; 4]),
    row(
        "`SET` in a transaction that commits",
        &[Sql("BEGIN"), Sql("SET work_mem = '7MB'"), Sql("COMMIT")],
        WORK_MEM,
        [Kept; 4],
    ),
    row(
        "`SET` in a transaction that rolls back",
        &[Sql("BEGIN"), Sql("SET work_mem = '7MB'"), Sql("ROLLBACK")],
        WORK_MEM,
        [Kept; 4],
    ),
    row(
        "`SET LOCAL`",
        &[Sql("BEGIN; SET LOCAL work_mem = '7MB'; COMMIT")],
        WORK_MEM,
        [Kept; 4],
    ),
    row(
        "`SET`, then `RESET`",
        &[Sql("SET work_mem = '7MB'"), Sql("RESET work_mem")],
        WORK_MEM,
        [Kept; 4],
    ),
    row(
        "`SET`, then `DISCARD ALL`",
        &[Sql("SET work_mem = '7MB'"), Sql("DISCARD ALL")],
        WORK_MEM,
        [Kept; 4],
    ),
    row(
        "`set_config` with the name as a parameter",
        &[Extended("SELECT set_config($1, $2, false)", &["work_mem", "7MB"])],
        WORK_MEM,
        [Kept; 4],
    ),
    row(
        "`UPDATE pg_settings`",
        &[Sql(
            "UPDATE pg_settings SET setting = '7168' WHERE name = 'work_mem'",
        )],
        WORK_MEM,
        [Kept; 4],
    ),
    row(
        "a setting, made in a `DO` block",
        &[Sql("DO $$ BEGIN SET work_mem = '7MB'; END $$")],
        WORK_MEM,
        [Kept; 4],
    ),
    row(
        "a setting, made in a function",
        &[Hidden("SET work_mem = '7MB'")],
        WORK_MEM,
        [Leaks, Kept, Kept, Kept],
    ),
    row(
        "a setting that the server reports",
        &[Sql("SET TimeZone = 'Asia/Tokyo'")],
        &[Sql("SELECT current_setting('TimeZone')")],
        [Kept; 4],
    ),
    row(
        "a setting that the server reports, made in a function",
        &[Hidden("SET TimeZone = 'Asia/Tokyo'")],
        &[Sql("SELECT current_setting('TimeZone')")],
        [Kept; 4],
    ),
    row(
        "`application_name`",
        &[Sql("SET application_name = 'first'")],
        &[Sql("SELECT current_setting('application_name')")],
        [Kept; 4],
    ),
    row(
        "`statement_timeout`",
        &[Sql("SET statement_timeout = '5s'")],
        &[Sql("SHOW statement_timeout")],
        [Kept; 4],
    ),
    row(
        "`SET SESSION CHARACTERISTICS`",
        &[Sql(
            "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ ONLY, DEFERRABLE",
        )],
        &[Sql(
            "SELECT current_setting('transaction_isolation'), current_setting('transaction_read_only')",
        )],
        [Kept; 4],
    ),
    row(
        "a number with more than six digits",
        &[Sql("SET cpu_tuple_cost = 0.123456789")],
        &[Sql("EXPLAIN SELECT FROM generate_series(1, 10000000)")],
        [Lost; 4],
    ),
    row(
        "a custom setting",
        &[Sql("SET app.tenant = 'a'")],
        TENANT,
        [Kept; 4],
    ),
    row(
        "a custom setting, made in a function",
        &[Hidden("SET app.tenant = 'a'")],
        TENANT,
        [Leaks, Kept, Leaks, Kept],
    ),
    row(
        "that a custom setting was never set: `NULL` instead of an empty text",
        &[Sql("SET app.tenant = 'a'")],
        &[Sql("SELECT current_setting('app.tenant', true)")],
        [Leaks, Leaks, Leaks, Kept],
    ),
    row("`SET ROLE`", &[Sql("SET ROLE member")], ROLE, [Kept; 4]),
    row(
        "`SET ROLE`, done in a function",
        &[Hidden("SET ROLE member")],
        ROLE,
        [Leaks, Leaks, Kept, Kept],
    ),
    Row {
        user: "postgres",
        ..row(
            "`SET SESSION AUTHORIZATION`",
            &[Sql("SET SESSION AUTHORIZATION app")],
            ROLE,
            [Pinned; 4],
        )
    },
    row(
        "`search_path`",
        &[Sql("SET search_path = one, public")],
        PATH,
        [Kept; 4],
    ),
    row(
        "`search_path`, empty by `SET`",
        &[Sql("SET search_path = ''")],
        PATH,
        [Kept; 4],
    ),
    row(
        "`search_path`, empty by `set_config`",
        &[Sql("SELECT set_config('search_path', '', false)")],
        PATH,
        [Kept; 4],
    ),
    row(
        "`client_encoding`",
        &[Sql("SET NAMES 'LATIN1'")],
        &[Sql("SELECT pg_catalog.octet_length('\u{e9}')")],
        [Kept; 4],
    ),
    row(
        "a value that is not ASCII, in another encoding",
        &[Sql("SET NAMES 'LATIN1'"), Sql("SET app.tenant = '\u{e9}'")],
        &[Sql(
            "SELECT pg_catalog.octet_length(nullif(current_setting('app.tenant', true), ''))",
        )],
        [Kept; 4],
    ),
    // Temporary objects.
    row(
        "`CREATE TEMP TABLE`",
        &[Sql("CREATE TEMP TABLE tmp (a int)")],
        TEMPORARY,
        [Pinned; 4],
    ),
    row(
        "`CREATE TEMP TABLE … AS`",
        &[Sql("CREATE TEMP TABLE tmp AS SELECT 1 AS a")],
        TEMPORARY,
        [Pinned; 4],
    ),
    row(
        "`SELECT … INTO TEMP`",
        &[Sql("SELECT 1 AS a INTO TEMP tmp")],
        TEMPORARY,
        [Pinned; 4],
    ),
    row(
        "`CREATE TABLE pg_temp.…`",
        &[Sql("CREATE TABLE pg_temp.tmp (a int)")],
        TEMPORARY,
        [Pinned; 4],
    ),
    row(
        "`CREATE TABLE` with `pg_temp` first in `search_path`",
        &[
            Sql("SET search_path = pg_temp, public"),
            Sql("CREATE TABLE tmp (a int)"),
        ],
        TEMPORARY,
        [Pinned; 4],
    ),
    row(
        "`CREATE TEMP TABLE` in a named statement",
        &[Parse("s", "CREATE TEMP TABLE tmp (a int)", &[]), Run("s", &[])],
        TEMPORARY,
        [Pinned; 4],
    ),
    row(
        "`CREATE TEMP VIEW`",
        &[Sql("CREATE TEMP VIEW tmp AS SELECT 1 AS a")],
        TEMPORARY,
        [Pinned; 4],
    ),
    row(
        "`CREATE TEMP SEQUENCE`",
        &[Sql("CREATE TEMP SEQUENCE tmp")],
        TEMPORARY,
        [Pinned; 4],
    ),
    row(
        "a temporary function",
        &[Sql(
            "CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        )],
        &[Sql(
            "SELECT count(*) FROM pg_proc WHERE pronamespace = pg_my_temp_schema()",
        )],
        [Pinned; 4],
    ),
    row(
        "a temporary type",
        &[Sql("CREATE TYPE pg_temp.e AS ENUM ('a')")],
        &[Sql(
            "SELECT count(*) FROM pg_type WHERE typnamespace = pg_my_temp_schema() AND typname = 'e'",
        )],
        [Pinned; 4],
    ),
    row(
        "a temporary table, made in a `DO` block",
        &[Sql("DO $$ BEGIN CREATE TEMP TABLE tmp (a int); END $$")],
        TEMPORARY,
        [Pinned; 4],
    ),
    row(
        "a temporary table, made in a function",
        &[Hidden("CREATE TEMP TABLE tmp (a int)")],
        TEMPORARY,
        [Leaks, Leaks, Pinned, Pinned],
    ),
    row(
        "a temporary table that was dropped",
        &[Sql("CREATE TEMP TABLE tmp (a int)"), Sql("DROP TABLE tmp")],
        TEMPORARY,
        [Kept; 4],
    ),
    row(
        "`ON COMMIT DROP`",
        &[
            Sql("BEGIN"),
            Sql("CREATE TEMP TABLE tmp (a int) ON COMMIT DROP"),
            Sql("COMMIT"),
        ],
        TEMPORARY,
        [Kept; 4],
    ),
    // Cursors, locks, notifications.
    row(
        "a cursor `WITH HOLD`",
        &[Sql("DECLARE c CURSOR WITH HOLD FOR SELECT 7")],
        CURSOR,
        [Pinned; 4],
    ),
    row(
        "a cursor `WITH HOLD`, made in a function",
        &[Hidden("DECLARE c CURSOR WITH HOLD FOR SELECT 7")],
        CURSOR,
        [Leaks, Leaks, Pinned, Pinned],
    ),
    row(
        "a cursor without",
        &[Sql("BEGIN; DECLARE c CURSOR FOR SELECT 7; COMMIT")],
        CURSOR,
        [Kept; 4],
    ),
    row(
        "`pg_advisory_lock`",
        &[Sql("SELECT pg_advisory_lock(1)")],
        LOCKED,
        [Pinned; 4],
    ),
    row(
        "`pg_try_advisory_lock_shared`",
        &[Sql("SELECT pg_try_advisory_lock_shared(1, 2)")],
        LOCKED,
        [Pinned; 4],
    ),
    row(
        "`pg_advisory_lock` in a transaction that rolls back",
        &[Sql("BEGIN"), Sql("SELECT pg_advisory_lock(1)"), Sql("ROLLBACK")],
        LOCKED,
        [Pinned; 4],
    ),
    row(
        "an advisory lock, taken in a function",
        &[Hidden("SELECT pg_advisory_lock(1)")],
        LOCKED,
        [Leaks, Leaks, Pinned, Pinned],
    ),
    row(
        "`pg_advisory_xact_lock`",
        &[Sql("SELECT pg_advisory_xact_lock(1)")],
        LOCKED,
        [Kept; 4],
    ),
    row("`LISTEN`", &[Sql("LISTEN x")], NOTIFIED, [Pinned; 4]),
    row(
        "`LISTEN`, done in a function",
        &[Hidden("LISTEN x")],
        NOTIFIED,
        [Leaks, Leaks, Pinned, Pinned],
    ),
    row(
        "`LISTEN`, then `UNLISTEN`",
        &[Sql("LISTEN x"), Sql("UNLISTEN x")],
        NOTIFIED,
        [Kept; 4],
    ),
    // Sequences, seeds, libraries.
    row(
        "`currval`",
        &[Sql("SELECT nextval('s')"), Sql("SELECT currval('s')")],
        &[Sql("SELECT currval('s') > 0")],
        [Pinned; 4],
    ),
    row(
        "`currval`, after `nextval` in a transaction before",
        &[Sql("SELECT nextval('s')")],
        &[Sql("SELECT currval('s') > 0")],
        [Refused; 4],
    ),
    row(
        "`lastval`, after `nextval` in a transaction before",
        &[Sql("SELECT nextval('s')")],
        &[Sql("SELECT lastval() > 0")],
        [Refused; 4],
    ),
    row(
        "`lastval` as an unnamed statement, after `nextval` in a transaction before",
        &[Sql("SELECT nextval('s')")],
        &[Extended("SELECT lastval() > 0", &[])],
        [Refused; 4],
    ),
    row(
        "`lastval`, after `nextval` in the same transaction",
        &[
            Sql("BEGIN"),
            Sql("SELECT nextval('s')"),
            Sql("SELECT lastval() > 0"),
            Sql("COMMIT"),
        ],
        &[Sql("BEGIN; SELECT lastval() > 0")],
        [Pinned; 4],
    ),
    row(
        "`setseed`",
        &[Sql("SELECT setseed(0.5)")],
        &[Sql("SELECT round(random()::numeric, 5) IN (0.98517, 0.82530)")],
        [Leaks, Leaks, Leaks, Pinned],
    ),
    row(
        "`SET seed`",
        &[Sql("SET seed = 0.5")],
        &[Sql("SELECT round(random()::numeric, 5) IN (0.98517, 0.82530)")],
        [Leaks, Leaks, Leaks, Pinned],
    ),
    row(
        "`setseed`, done in a function",
        &[Hidden("SELECT setseed(0.5)")],
        &[Sql("SELECT round(random()::numeric, 5) IN (0.98517, 0.82530)")],
        [Leaks; 4],
    ),
    Row {
        user: "postgres",
        ..row(
            "`LOAD`",
            &[Sql("LOAD 'auto_explain'")],
            &[Sql(
                "SELECT count(*) > 0 FROM pg_settings WHERE name LIKE 'auto_explain.%'",
            )],
            [Leaks, Leaks, Leaks, Pinned],
        )
    },
    Row {
        user: "postgres",
        ..row(
            "`LOAD`, done in a function",
            &[Hidden("LOAD 'auto_explain'")],
            &[Sql(
                "SELECT count(*) > 0 FROM pg_settings WHERE name LIKE 'auto_explain.%'",
            )],
            [Leaks; 4],
        )
    },
    // Statements.
    row(
        "`PREPARE`",
        &[Sql("PREPARE p AS SELECT 7")],
        PREPARED,
        [Pinned; 4],
    ),
    row(
        "`PREPARE` in a transaction that rolls back",
        &[Sql("BEGIN"), Sql("PREPARE p AS SELECT 7"), Sql("ROLLBACK")],
        PREPARED,
        [Pinned; 4],
    ),
    row(
        "`PREPARE`, done in a function",
        &[Hidden("PREPARE p AS SELECT 7")],
        PREPARED,
        [Leaks, Leaks, Pinned, Pinned],
    ),
    row(
        "`PREPARE`, then `DEALLOCATE`",
        &[Sql("PREPARE p AS SELECT 7"), Sql("DEALLOCATE p")],
        PREPARED,
        [Kept; 4],
    ),
    row(
        "a named statement that only one session has",
        &[Parse("s", "SELECT 7", &[])],
        STATEMENT,
        [Kept; 4],
    ),
    Row {
        second: &[Parse("s", "SELECT 8", &[])],
        ..row(
            "named statements of the same name",
            &[Parse("s", "SELECT 7", &[])],
            STATEMENT,
            [Kept; 4],
        )
    },
    Row {
        second: &[Parse("s", "SELECT pg_typeof($1)", &[25])],
        ..row(
            "the same text with other parameter types",
            &[Parse("s", "SELECT pg_typeof($1)", &[23])],
            &[Run("s", &["1"])],
            [Kept; 4],
        )
    },
    Row {
        second: &[
            Sql("SET search_path = two, public"),
            Parse("s", "SELECT a FROM t", &[]),
        ],
        ..row(
            "the same text under another `search_path`",
            &[
                Sql("SET search_path = one, public"),
                Parse("s", "SELECT a FROM t", &[]),
            ],
            STATEMENT,
            [Kept; 4],
        )
    },
    Row {
        second: &[
            Sql("SET search_path = two, public"),
            Parse("s", "SELECT a FROM t", &[]),
        ],
        ..row(
            "the same text under a `search_path` of the same transaction",
            &[
                Sql("BEGIN"),
                Sql("SET LOCAL search_path = one, public"),
                Parse("s", "SELECT a FROM t", &[]),
                Sql("COMMIT"),
                Sql("SET search_path = one, public"),
            ],
            STATEMENT,
            [Kept; 4],
        )
    },
    Row {
        second: &[Parse("s", "SELECT 8", &[])],
        between: &[Superuser("ALTER TABLE public.ddl ADD b int DEFAULT 5")],
        undo: "ALTER TABLE public.ddl DROP IF EXISTS b",
        ..row(
            "a named statement whose columns were changed",
            &[Parse("s", "SELECT * FROM public.ddl", &[]), Run("s", &[])],
            STATEMENT,
            [Kept; 4],
        )
    },
    row(
        "a named statement of a transaction that rolls back",
        &[Sql("BEGIN"), Parse("s", "SELECT 7", &[]), Sql("ROLLBACK")],
        STATEMENT,
        [Kept; 4],
    ),
    row(
        "a named statement after `DEALLOCATE ALL`",
        &[Parse("s", "SELECT 7", &[]), Sql("DEALLOCATE ALL")],
        STATEMENT,
        [Kept; 4],
    ),
    row(
        "a named statement that failed",
        &[Parse("s", "SELECT FROM nothing", &[])],
        STATEMENT,
        [Kept; 4],
    ),
];
