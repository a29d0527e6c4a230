//! `routes.NAME.pool`.

use std::time::Duration;

use super::Otherwise::{Nothing, Number, Said, Size, Text, Time};
use super::kind::{ValueKind, list, number, section, text, time, time_or_off, words_of};
use super::{Key, Keys};
use crate::config::model::{CustomSettings, Verify, WrittenPoolMode};
use crate::config::units::{hours, minutes, ms, secs};

/// As long as `PostgreSQL` takes names of users and databases.
const NAME_OF_SERVER: ValueKind = text(63);
/// Names of parameters; those of users (`app.tenant`) may be long.
const PARAMETERS: ValueKind = list(&text(255), 1, 64);

const CONNECTIONS: ValueKind = number(1, 100_000);
const NO_CONNECTIONS: ValueKind = number(0, 100_000);
const RESERVE_DELAY: ValueKind = time(Duration::ZERO, minutes(10));
const IDLE: ValueKind = time_or_off(ms(100), hours(24));
const LIFETIME: ValueKind = time(ms(100), hours(24));
const LIMIT: ValueKind = time_or_off(ms(10), hours(24));
const OFF: super::Otherwise = Time(Duration::ZERO);
const OF_POOL: super::Otherwise = Said("the pool's");

pub(in crate::config) static POOL: Keys = Keys(&[
    Key::new(
        "mode",
        words_of::<WrittenPoolMode>(),
        Text("off"),
        "`off`: each session has a server connection of its own. `session`: a session has one until \
         it ends; then the connection is reset and serves another session. `transaction`: a session \
         has one for each transaction, and finds its session state on whichever it gets.",
    ),
    Key::new(
        "max_connections",
        CONNECTIONS,
        Number(20),
        "This router's connections to one member as one user to one database. All workers share \
         them, and pinned ones count. The cluster's `server.max_connections` also counts; more than \
         that is rejected.",
    ),
    Key::new(
        "min_connections",
        NO_CONNECTIONS,
        Number(0),
        "The router keeps as many open while a session of this user and database is connected, or \
         if `auth.server_credentials` has what opens them. At most `max_connections`.",
    ),
    Key::new(
        "reserve",
        NO_CONNECTIONS,
        Number(0),
        "Connections beyond `max_connections`, for sessions that have waited for `reserve_delay`.",
    ),
    Key::new(
        "reserve_delay",
        RESERVE_DELAY,
        Time(secs(5)),
        "Rejected without a `reserve`.",
    ),
    Key::new(
        "idle_timeout",
        IDLE,
        Time(minutes(10)),
        "A connection that was idle for so long is closed, unless `min_connections` keeps it. `0`: \
         it stays until `max_lifetime`.",
    ),
    Key::new(
        "max_lifetime",
        LIFETIME,
        Time(hours(1)),
        "A connection of this age is closed when no session has it. Each connection has its own \
         limit, between 90 % and 100 % of this, so that connections opened together do not close \
         together. A revoked login, password or `CONNECT` privilege takes effect after this time at \
         the latest for sessions that do not log in again.",
    ),
    Key::new(
        "connects",
        number(1, 100),
        Number(4),
        "How many connections the router opens to one member at the same time, for one user and \
         database. Further ones wait for their turn, so that a restarted server is not flooded.",
    ),
    Key::new(
        "reset_timeout",
        time(ms(10), minutes(1)),
        Time(secs(5)),
        "How long resetting a connection after a session may take. Then it is closed.",
    ),
    Key::new(
        "ignore_startup_parameters",
        PARAMETERS,
        Nothing,
        "Startup parameters of clients that the server is not told. Connections are only shared by \
         sessions with the same startup parameters, so a parameter that differs from client to client \
         (`extra_float_digits`) splits the pool. `application_name` never does.",
    ),
    Key::new(
        "settings",
        PARAMETERS,
        Nothing,
        "Transaction mode or `resume: tracked`, also without a pool: settings that the router asks for \
         after every transaction, and restores. \
         It finds other changes by itself, except those that a function makes (`set_config` in \
         PL/pgSQL): name such settings here (`app.tenant`).",
    ),
    Key::new(
        "verify",
        words_of::<Verify>(),
        Text("tags"),
        "Transaction mode or `resume: tracked`, also without a pool: when the router asks the server \
         what a session has changed. `tags`: if \
         command tags, reported parameters or the SQL text say that something may have changed. \
         `always`: after every transaction, and all settings, which takes much longer.",
    ),
    Key::new(
        "custom_settings",
        words_of::<CustomSettings>(),
        Text("share"),
        "Transaction mode: PostgreSQL cannot remove a setting like `app.tenant` once it was set; it \
         reads as an empty text instead of NULL. `share`: other sessions may see that. `close`: the \
         router closes the connection before it would go to a session that never set the name.",
    ),
    Key::new(
        "max_statements",
        number(1, 100_000),
        Number(1000),
        "Transaction mode: named prepared statements of one session; a further one is an error \
         (53400). Also those kept on one server connection: the least recently used is closed first, \
         and prepared again when a session needs it.",
    ),
    Key::new(
        "max_statement_bytes",
        ValueKind::Size {
            least: 16 << 10,
            most: 1 << 30,
        },
        Size(4 << 20),
        "Transaction mode: the same for the length of their SQL texts together.",
    ),
    Key::new(
        "wait_notify",
        time_or_off(ms(10), minutes(10)),
        Time(secs(5)),
        "Transaction mode: a session that has waited for a connection for so long gets a NOTICE that \
         says why. `0`: no NOTICE. Less than `queue_timeout`.",
    ),
    Key::new(
        "query_timeout",
        LIMIT,
        OFF,
        "Transaction mode: from a request to the end of its answer. Then the router cancels the \
         statement at the server, and the client gets an ERROR (57014). `0`: no limit, here and below.",
    ),
    Key::new(
        "transaction_timeout",
        LIMIT,
        OFF,
        "Transaction mode: how long a transaction may take. Then the session ends with a FATAL error \
         (25P04), and the server rolls back.",
    ),
    Key::new(
        "idle_transaction_timeout",
        LIMIT,
        OFF,
        "Transaction mode: how long an open transaction may wait for the client. Then the session ends \
         with a FATAL error (25P03), and the server rolls back.",
    ),
    Key::new(
        "batch_timeout",
        LIMIT,
        OFF,
        "Transaction mode: how long a client may send nothing while it owes a Sync; `COPY … FROM STDIN` \
         excepted. Then the session ends with a FATAL error (25P03). Before PostgreSQL 17 no time-out of \
         the server's own ends such a session.",
    ),
    Key::new(
        "overrides",
        list(&section(&POOL_OVERRIDE), 1, 1024),
        Nothing,
        "Other limits for some users and databases. The first entry that matches decides.",
    ),
]);

pub(super) static POOL_OVERRIDE: Keys = Keys(&[
    Key::new(
        "user",
        NAME_OF_SERVER,
        Said("every user"),
        "The user that logs into the servers: the client's, or the `server_user` of \
         `auth.server_credentials`. An entry has `user`, `database` or both.",
    ),
    Key::new(
        "database",
        NAME_OF_SERVER,
        Said("every database"),
        "The database.",
    ),
    Key::new("max_connections", CONNECTIONS, OF_POOL, "As for the pool."),
    Key::new("min_connections", NO_CONNECTIONS, OF_POOL, "As for the pool."),
    Key::new("reserve", NO_CONNECTIONS, OF_POOL, "As for the pool."),
    Key::new("reserve_delay", RESERVE_DELAY, OF_POOL, "As for the pool."),
    Key::new("idle_timeout", IDLE, OF_POOL, "As for the pool."),
    Key::new("max_lifetime", LIFETIME, OF_POOL, "As for the pool."),
    Key::new(
        "query_timeout",
        LIMIT,
        OF_POOL,
        "As for the pool: transaction mode only.",
    ),
    Key::new(
        "transaction_timeout",
        LIMIT,
        OF_POOL,
        "As for the pool: transaction mode only.",
    ),
    Key::new(
        "idle_transaction_timeout",
        LIMIT,
        OF_POOL,
        "As for the pool: transaction mode only.",
    ),
    Key::new(
        "batch_timeout",
        LIMIT,
        OF_POOL,
        "As for the pool: transaction mode only.",
    ),
]);
