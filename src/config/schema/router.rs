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

/// Where HTTP is answered by default.
pub(in crate::config) const DEFAULT_HTTP: &str = "*:6434";

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
        "The PostgreSQL clusters. The first is the default for routes and for HTTP.",
    ),
    Key::new(
        "tls",
        section(&TLS),
        Nothing,
        "TLS to clients. Without it clients connect without encryption, and the router logs that \
         at the start.",
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
        "The router's own console, by the PostgreSQL protocol.",
    ),
    Key::new("limits", section(&LIMITS), Below, "Limits over all listeners."),
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
        "What happens to sessions when the router ends.",
    ),
    Key::new(
        "state_file",
        FILE,
        Nothing,
        "The file that keeps administrative states and weights over a restart: see \
         [operations](operations.md#administration). Its directory must exist and be writable for \
         the router.",
    ),
    Key::new(
        "control_socket",
        SOCKET_PATH,
        Nothing,
        "A Unix socket for `trunkline reload` and `trunkline upgrade`. Its mode is 600; the router \
         accepts only root and the user that it runs as.",
    ),
    Key::new(
        "workers",
        number(1, 1024),
        Said("half of the processors, at least 1"),
        "Threads that relay. Each keeps the sessions that it gets. More threads serve more \
         concurrent small requests; fewer threads use less processor time, especially for large \
         answers. [Benchmarks](benchmarks.md) has numbers for both.",
    ),
]);

pub(super) static HTTP: Keys = Keys(&[
    Key::new(
        "address",
        either(&[ADDRESS, list(&ADDRESS, 1, 16)]),
        Text(DEFAULT_HTTP),
        "Where to listen. Every address answers the same.",
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
        "The token that is required to change something, or to ask from another host, in visible \
         ASCII characters: see [HTTP](http.md#administration). Without it nothing can be changed. \
         The router reads the file again when it changes.",
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
        "Understand the PROXY protocol of load balancers in front.",
    ),
    Key::new(
        "ui",
        TRUTH,
        Truth(true),
        "Show [the page](page.md) at `/ui`. Its files say nothing of this router; what it shows has the \
         rules of [HTTP](http.md#administration).",
    ),
]);

pub(super) static AGENT_CHECK: Keys = Keys(&[
    Key::new("address", ADDRESS, Required, "Where to listen."),
    Key::new(
        "about",
        words_of::<AgentSubject>(),
        Text("router"),
        "Whose state is reported, depending on what HAProxy's server line points to: `router`, \
         this router; `local_member`, the PostgreSQL server on the same host (`local_member` of the \
         first cluster).",
    ),
]);

pub(super) static HTTP_PROXY_PROTOCOL: Keys = Keys(&[
    Key::new(
        "trusted",
        list(&NETWORK, 1, 1024),
        Required,
        "Connections from there must begin with a header, including checks (`check-send-proxy`). \
         The router closes them otherwise.",
    ),
    Key::new(
        "required",
        TRUTH,
        Truth(false),
        "Close all other connections at once.",
    ),
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
        "The users that may use it, by the names that clients give. They authenticate as for any \
         database. The router rejects other users afterwards.",
    ),
    Key::new(
        "operators",
        USERS,
        Nothing,
        "Those of `users` that may also give [orders](operations.md#orders-at-the-console): `PAUSE`, \
         `SWITCHOVER`, `DRAIN`, `KILL`, `RELOAD` and others.",
    ),
    Key::new(
        "database",
        text(LONGEST_ROLE),
        Text("trunkline"),
        "The database's name. A database with this name in a cluster is not reachable.",
    ),
    Key::new(
        "cluster",
        NAME,
        Said("the first"),
        "The cluster that the users belong to. A role with the same name in another cluster is \
         another user: listeners of that cluster's routes do not admit users to the console.",
    ),
]);

pub(super) static LIMITS: Keys = Keys(&[
    Key::new(
        "max_clients",
        number(0, 1_000_000),
        Number(5000),
        "Concurrent sessions over all listeners; `0` is no limit.",
    ),
    Key::new(
        "max_pending_logins",
        number(1, 100_000),
        Number(200),
        "Connections between accept and authenticated. One address may have half of them (at least \
         1); this includes 127.0.0.1 and a load balancer in front. Further connections of that \
         address wait for one second, then they are refused. When all places are taken, the router \
         still reads the first packet of as many more connections (at least 8, half of them from \
         one address), so that it can serve cancel requests; it refuses logins among them. As many \
         again may wait after failed logins (`auth.rate_limit`), at most 8 from one address.",
    ),
    Key::new(
        "per_user",
        number(0, 1_000_000),
        Number(0),
        "Concurrent sessions of one user name, over all listeners and clusters; `0` is no limit.",
    ),
    Key::new(
        "per_database",
        number(0, 1_000_000),
        Number(0),
        "The same for one database name.",
    ),
    Key::new(
        "per_address",
        number(0, 1_000_000),
        Number(0),
        "The same for one client address: IPv4, or IPv6 /64. Unix sockets have none.",
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
        "The other routers; the list may include this one.",
    ),
]);

pub(super) static PEER: Keys = Keys(&[
    Key::new("name", NAME, Required, "Unique in the list."),
    Key::new(
        "address",
        HOST_PORT,
        Required,
        "Any listener of that router with `mode: postgres`, `db2:6432` or `[::1]:6432`; its other \
         ports do not accept peers. The router does not check what the other router has there. This \
         router's own HTTP port or `mode: tcp` listener is an error, the same port on another host \
         a warning. Unique in the list.",
    ),
]);

pub(super) static LOG: Keys = Keys(&[
    Key::new(
        "level",
        words_of::<LogLevel>(),
        Text("info"),
        "The lowest level that is logged.",
    ),
    Key::new(
        "format",
        words_of::<LogFormat>(),
        Text("text"),
        "`text` for people, `json` for programs: one object per line.",
    ),
]);

pub(super) static SHUTDOWN: Keys = Keys(&[
    Key::new(
        "delay",
        time(Duration::ZERO, hours(1)),
        Time(Duration::ZERO),
        "After SIGTERM the router is not ready (`/connection/is-ready` and the agent check say \
         so), but accepts and serves connections for this time, so that load balancers stop sending \
         clients before the ports close. It must be longer than they need to notice: see \
         [shutdown](service.md#shutdown).",
    ),
    Key::new(
        "grace",
        time(Duration::ZERO, hours(24)),
        Time(secs(30)),
        "After SIGTERM sessions end at their next transaction end. After this time the router cuts \
         the rest. `0` cuts at once.",
    ),
    Key::new(
        "handover",
        time(Duration::ZERO, hours(168)),
        Nothing,
        "After an [upgrade](service.md#upgrade) the old process ends its sessions, as after \
         SIGTERM, when this time is over. Without it they continue until the clients end them; in \
         transaction mode of a [pool](pooling.md), those that have no server connection end after 10 \
         minutes (57P01).",
    ),
]);
