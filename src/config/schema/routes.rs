//! `routes`.

use std::time::Duration;

use super::Otherwise::{Below, Nothing, Number, Required, Said, Size, Text, Time, Truth};
use super::kind::{
    DAY, NAME, SCALAR, SIZE, TARGETS, TRUTH, ValueKind, either, list, named_at_most, number, section, time,
    time_or_off, words, words_of,
};
use super::pools::POOL;
use super::{Key, Keys};
use crate::config::model::{Balance, OnLeader, Resume, Unfit};
use crate::config::units::{hours, minutes, ms, secs};

pub(in crate::config) static ROUTE: Keys = Keys(&[
    Key::new("cluster", NAME, Said("the first"), "One of `clusters`."),
    Key::new(
        "targets",
        list(&either(&[TARGETS, list(&TARGETS, 1, 6)]), 1, 16),
        Required,
        "Which members may serve, in order of preference: see [Targets](#targets). `[leader]` \
         makes a read-write route, everything else a read-only one.",
    ),
    Key::new(
        "tags",
        named_at_most(&SCALAR, 64),
        Nothing,
        "Only members that have these Patroni tags: see [Tags](#tags).",
    ),
    Key::new(
        "balance",
        words_of::<Balance>(),
        Text("least_connections"),
        "How to choose among members that are equally fit: see [Balance](#balance).",
    ),
    Key::new(
        "read_only_on_leader",
        words_of::<OnLeader>(),
        Text("refused"),
        "For a read-only route with `leader` or `any` among its targets: see [Reading from the \
         leader](#reading-from-the-leader).",
    ),
    Key::new(
        "resume",
        words_of::<Resume>(),
        Said("`off`; `tracked` with `pool: {mode: transaction}`"),
        "What happens to a session when its server is lost or must be left. `off`: it ends, as on a \
         direct connection. `tracked`: the router knows the session's state and gives it another \
         server: see [Failover](failover.md). `off` is rejected with `pool: {mode: transaction}`, and \
         `tracked` if a listener of the route has `mode: tcp`.",
    ),
    Key::new(
        "hold",
        section(&HOLD),
        Below,
        "How clients wait while no server can serve the route: see [Failover](failover.md). Rejected \
         if a listener of the route has `mode: tcp`.",
    ),
    Key::new(
        "queue_timeout",
        time(ms(10), minutes(10)),
        Time(secs(10)),
        "How long an authenticated client waits while every server of the route has \
         `server.max_connections` sessions, or its pool `max_connections` connections in use; then it \
         gets an error (53300). Clients are served in order of arrival. Rejected if the cluster has \
         no `max_connections` and the route no pool.",
    ),
    Key::new(
        "max_queue",
        number(0, 100_000),
        Number(100),
        "How many clients may wait; further ones get an error at once (53300). With `0` no client \
         waits.",
    ),
    Key::new(
        "pool",
        section(&POOL),
        Said("off"),
        "Sessions share server connections. Rejected if a listener of the route has `mode: tcp`.",
    ),
    Key::new(
        "client_address",
        section(&CLIENT_ADDRESS),
        Below,
        "What the servers learn about the client's address.",
    ),
    Key::new(
        "max_lag",
        section(&MAX_LAG),
        Said("no limit"),
        "How far a standby may lag behind the leader: see [Lag](#lag). Rejected for `targets: \
         [leader]`.",
    ),
    Key::new(
        "on_unfit",
        section(&ON_UNFIT),
        Below,
        "What happens to live sessions on a member that is no longer fit: see [Live \
         sessions](#live-sessions).",
    ),
]);

pub(super) static HOLD: Keys = Keys(&[
    Key::new(
        "timeout",
        time_or_off(ms(100), minutes(10)),
        Said("Patroni's `ttl` and `loop_wait` together; 40 s where nobody says them"),
        "How long clients are held after the route lost its last server; then they get an error \
         (57P03), and further ones get it at once until there is a server. `0`: nobody is held.",
    ),
    Key::new(
        "max_clients",
        number(1, 1_000_000),
        Said("`limits.max_clients`"),
        "How many clients are held at once; further ones get an error (57P03).",
    ),
    Key::new(
        "max_bytes",
        ValueKind::Size {
            least: 64 << 10,
            most: 16 << 30,
        },
        Size(64 << 20),
        "The requests of held clients together. Beyond it, requests are not read until there is a \
         server.",
    ),
    Key::new(
        "logins",
        TRUTH,
        Said("`true` with `resume: tracked`, else `false`"),
        "Clients that log in are held, too, after their authentication. Without `resume: tracked` \
         nobody else is held: the other keys are rejected unless this is `true`.",
    ),
]);

pub(super) static MAX_LAG: Keys = Keys(&[
    Key::new(
        "bytes",
        SIZE,
        Said("no limit"),
        "WAL that the leader has written and the standby has not replayed. Give `bytes`, `time` or \
         both. Sizes have a unit: `B`, `kB`, `MB`, `GB`, `TB` as in PostgreSQL (powers of 1024), or \
         `KiB`, `MiB`, `GiB`, `TiB`, which are the same.",
    ),
    Key::new(
        "time",
        // Two of the shortest probe intervals.
        time(ms(20), hours(24)),
        Said("no limit"),
        "How long the standby has been missing anything that the leader had written. Not less than \
         two `probe.interval`s.",
    ),
    Key::new(
        "recover_bytes",
        SIZE,
        Said("half of `bytes`"),
        "A standby that exceeded a limit is fit again when it is within this and `recover_time`. \
         Not more than `bytes`.",
    ),
    Key::new(
        "recover_time",
        DAY,
        Said("half of `time`"),
        "As `recover_bytes`. Not more than `time`.",
    ),
]);

pub(super) static ON_UNFIT: Keys = Keys(&[
    Key::new(
        "lag",
        words_of::<Unfit>(),
        Text("keep"),
        "What happens to live sessions on a standby that exceeds `max_lag`, or whose lag is not \
         known.",
    ),
    Key::new(
        "down",
        words_of::<Unfit>(),
        Text("keep"),
        "The same for a member that is down according to the router's probes. A connection may \
         still work when logins fail; a dead one ends by itself.",
    ),
    Key::new(
        "role",
        words(&["close"]),
        Text("close"),
        "Sessions on a server that changes its role end at once, or move to another server if they are tracked. \
         There is no other value.",
    ),
    Key::new(
        "grace",
        time(Duration::ZERO, hours(24)),
        Time(secs(30)),
        "How long `close`, and maintenance, wait for the end of a transaction.",
    ),
]);

pub(super) static CLIENT_ADDRESS: Keys = Keys(&[
    Key::new(
        "setting",
        TRUTH,
        Said("`true`; `false` if the route has a pool"),
        "The session begins with the setting `trunkline.client_addr`: `SELECT \
         current_setting('trunkline.client_addr', true)`, which is NULL in a session without it. \
         The value has no port; it is empty for a client on a Unix socket. The router overwrites a \
         value that the client gives at login, but after login the client may `SET` it: use it for \
         logs and statistics, not to decide about rights. Switch it off if the servers are behind a \
         pooler that rejects unknown startup parameters. With a pool, only sessions from the same \
         address share connections, and `max_connections` counts all of them.",
    ),
    Key::new(
        "application_name",
        TRUTH,
        Truth(false),
        "`application_name` ends with the address: `psql from 10.1.2.3:4567`. The client's own \
         part is cut so that the whole has 63 bytes. The client sees it, too. With a pool, a connection that another client \
         had is told the new name first.",
    ),
    Key::new(
        "tls",
        TRUTH,
        Truth(false),
        "The session begins with the setting `trunkline.client_tls`: the version of TLS between \
         client and router, `TLSv1.3` or `TLSv1.2`; empty without TLS and on a Unix socket. \
         `pg_stat_ssl` shows the router's own connection to the server instead. As with `setting`, \
         a client may `SET` it after login. With a pool, only sessions with the same version share \
         connections.",
    ),
]);
