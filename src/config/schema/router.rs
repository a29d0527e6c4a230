//! The top level, and what concerns the router as a whole.

use std::time::Duration;

use super::Otherwise::{Below, Nothing, Number, Required, Said, Text, Time, Truth};
use super::clients::{AUTH, LISTENER, TLS};
use super::clusters::CLUSTER;
use super::kind::{
    ADDRESS, FILE, HOST_PORT, LONGEST_ROLE, MOST_SECRET, NAME, NETWORK, SECRET, SOCKET_PATH, TEXT, TRUTH,
    USERS, either, list, named, number, rate, secret, section, text, time, words_of,
};
use super::routes::ROUTE;
use super::{Key, Keys};
use crate::config::model::{AgentSubject, LogFormat, LogLevel, TargetRole};
use crate::config::units::{hours, secs};

/// The routes of a file that has none: name and target.
pub(in crate::config) static DEFAULT_ROUTES: [(&str, TargetRole); 2] = [
    ("read-write", TargetRole::Leader),
    ("read-only", TargetRole::Replica),
];

/// The listeners of a file that has none: the name, which is also the route's, and the address.
pub(in crate::config) static DEFAULT_LISTENERS: [(&str, &str); 2] =
    [("read-write", "*:6432"), ("read-only", "*:6433")];

pub(in crate::config) static ROOT: Keys = Keys(&[
    Key::new(
        "clusters",
        named(&section(&CLUSTER)),
        Required,
        "The PostgreSQL clusters. The first is the default of routes and of HTTP.",
    ),
    Key::new(
        "tls",
        section(&TLS),
        Nothing,
        "TLS towards clients. Without it, clients connect in clear, and the log says so at the start.",
    ),
    Key::new("auth", section(&AUTH), Below, "How clients are authenticated."),
    Key::new(
        "routes",
        named(&section(&ROUTE)),
        Said("two"),
        "What listeners ask for. By default `read-write` (the leader) and `read-only` (a replica), of the \
         first cluster.",
    ),
    Key::new(
        "listeners",
        list(&section(&LISTENER), 1, 256),
        Said("two"),
        "Where clients connect. By default `read-write` on `*:6432` and `read-only` on `*:6433`, each \
         with the route of its name.",
    ),
    Key::new(
        "http",
        section(&HTTP),
        Below,
        "Health checks, metrics and administration.",
    ),
    Key::new(
        "console",
        section(&CONSOLE),
        Nothing,
        "The router's own console, over the PostgreSQL protocol.",
    ),
    Key::new("limits", section(&LIMITS), Below, "Bounds over all listeners."),
    Key::new(
        "peers",
        section(&PEERS),
        Nothing,
        "The other routers of the same cluster.",
    ),
    Key::new("log", section(&LOG), Below, "What is logged, and how."),
    Key::new(
        "shutdown",
        section(&SHUTDOWN),
        Below,
        "What happens to sessions at the end.",
    ),
    Key::new(
        "state_file",
        FILE,
        Nothing,
        "Where administrative states and weights that operators set are kept over a restart: see \
         [operations](operations.md#administration). Its directory must exist, and the router must be \
         able to write there.",
    ),
    Key::new(
        "control_socket",
        SOCKET_PATH,
        Nothing,
        "A Unix socket for `trunkline reload` and `trunkline upgrade`. Its mode is 600; nobody but root and the user that the \
         process runs as is listened to.",
    ),
    Key::new(
        "workers",
        number(1, 1024),
        Said("half of the processors, at least 1"),
        "Threads that relay. Each owns the sessions it was given. More of them serve more small requests \
         at once; fewer cost less processor time, above all for large answers. \
         [Benchmarks](benchmarks.md) has figures for both.",
    ),
]);

pub(super) static HTTP: Keys = Keys(&[
    Key::new(
        "address",
        either(&[ADDRESS, list(&ADDRESS, 1, 16)]),
        Text("*:6434"),
        "Where to listen; the same is answered on each.",
    ),
    Key::new(
        "tls",
        section(&HTTP_TLS),
        Nothing,
        "Answer HTTPS instead of HTTP. TLS 1.2 and 1.3.",
    ),
    Key::new(
        "token_file",
        secret(16, MOST_SECRET),
        Nothing,
        "The token of those who change something, or ask from another host, in visible ASCII characters: \
         see [HTTP](http.md#administration). Without it nothing can be changed. Read again when it \
         changes.",
    ),
    Key::new(
        "agent_check",
        section(&AGENT_CHECK),
        Nothing,
        "A port for HAProxy's agent check: see [HTTP](http.md#agent-check).",
    ),
    Key::new(
        "proxy_protocol",
        section(&HTTP_PROXY_PROTOCOL),
        Nothing,
        "Understand the PROXY protocol of balancers in front.",
    ),
]);

pub(super) static AGENT_CHECK: Keys = Keys(&[
    Key::new("address", ADDRESS, Required, "Where to listen."),
    Key::new(
        "about",
        words_of::<AgentSubject>(),
        Text("router"),
        "Whose state is told, so what HAProxy's server line leads to: `router`, this router; \
         `local_member`, the PostgreSQL server beside it (`local_member` of the first cluster).",
    ),
]);

pub(super) static HTTP_PROXY_PROTOCOL: Keys = Keys(&[
    Key::new(
        "trusted",
        list(&NETWORK, 1, 1024),
        Required,
        "From there a header must come, from checks as well (`check-send-proxy`); else the connection is \
         closed.",
    ),
    Key::new("required", TRUTH, Truth(false), "Close all others at once."),
]);

pub(super) static HTTP_TLS: Keys = Keys(&[
    Key::new("cert_file", FILE, Required, "As in `tls.certificates`."),
    Key::new("key_file", SECRET, Required, "Its key."),
    Key::new("passphrase_command", TEXT, Nothing, "As in `tls.certificates`."),
]);

pub(super) static CONSOLE: Keys = Keys(&[
    Key::new(
        "users",
        USERS,
        Required,
        "Who may use it, as clients name themselves. They authenticate as for any database; others are \
         refused afterwards.",
    ),
    Key::new(
        "database",
        text(LONGEST_ROLE),
        Text("trunkline"),
        "The database's name. One of that name in a cluster is out of reach.",
    ),
    Key::new(
        "cluster",
        NAME,
        Said("the first"),
        "The cluster whose users they are. A role of the same name in another cluster is somebody else: on \
         listeners of that cluster's routes nobody may use the console.",
    ),
]);

pub(super) static LIMITS: Keys = Keys(&[
    Key::new(
        "max_clients",
        number(0, 1_000_000),
        Number(5000),
        "Sessions at once over all listeners; `0` is no limit.",
    ),
    Key::new(
        "max_pending_logins",
        number(1, 100_000),
        Number(200),
        "Connections between accept and authenticated. One address may have half of them (at least 1), \
         127.0.0.1 and a balancer in front as well; more of it wait a second for their turn, then are \
         refused. When these places are taken, as many connections again (at least 8, half of them of one address) \
         are read up to their first packet, so that cancel requests are still served; logins among them are \
         refused. As many again may wait after failed logins \
         (`auth.rate_limit`), at most 8 of an address.",
    ),
    Key::new(
        "per_user",
        number(0, 1_000_000),
        Number(0),
        "Sessions at once of one user name, over all listeners and clusters; `0` is no limit.",
    ),
    Key::new(
        "per_database",
        number(0, 1_000_000),
        Number(0),
        "Of one database name.",
    ),
    Key::new(
        "per_address",
        number(0, 1_000_000),
        Number(0),
        "Of one client address: IPv4, or IPv6 /64. Unix sockets have none.",
    ),
    Key::new(
        "connection_rate",
        rate(1_000_000),
        Number(0),
        "Sessions that may begin per second, `500/s`, with a burst of one second; `0` is no limit.",
    ),
]);

pub(super) static PEERS: Keys = Keys(&[
    Key::new(
        "secret_file",
        secret(16, MOST_SECRET),
        Required,
        "The same on all peers.",
    ),
    Key::new(
        "members",
        list(&section(&PEER), 1, 64),
        Required,
        "The other routers; this one may be among them.",
    ),
]);

pub(super) static PEER: Keys = Keys(&[
    Key::new("name", NAME, Required, "Unique in the list."),
    Key::new(
        "address",
        HOST_PORT,
        Required,
        "Any listener of that router with `mode: postgres`, `db2:6432` or `[::1]:6432`: others do not hear peers. What the other router has there is not looked at; this router's own HTTP port or `mode: tcp` listener is a fault, their port on another host a warning. Unique in the list.",
    ),
]);

pub(super) static LOG: Keys = Keys(&[
    Key::new(
        "level",
        words_of::<LogLevel>(),
        Text("info"),
        "The least grave of the lines that are written.",
    ),
    Key::new(
        "format",
        words_of::<LogFormat>(),
        Text("text"),
        "`text` for people, `json` for programs: an object a line.",
    ),
]);

pub(super) static SHUTDOWN: Keys = Keys(&[
    Key::new(
        "delay",
        time(Duration::ZERO, hours(1)),
        Time(Duration::ZERO),
        "After SIGTERM the router is not ready (`/connection/is-ready` and the agent check say so), but accepts and serves \
         connections for this time, so that balancers have stopped sending clients by the time the ports close. Make it longer than they \
         need to notice: see [operations](operations.md#shutdown).",
    ),
    Key::new(
        "grace",
        time(Duration::ZERO, hours(24)),
        Time(secs(30)),
        "After SIGTERM sessions end at their next transaction end; what is left after this time is cut. \
         `0` cuts at once.",
    ),
    Key::new(
        "handover",
        time(Duration::ZERO, hours(168)),
        Nothing,
        "After an [upgrade](operations.md#upgrade) the sessions of the old process are ended, as after SIGTERM, when this \
         time is over. Without it they go on as long as they like.",
    ),
]);
