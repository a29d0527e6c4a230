//! `clusters`.

use std::time::Duration;

use super::Otherwise::{Below, Nothing, Number, Or, Required, Said, Text, Time};
use super::kind::{
    FILE, HOST, NAME, SECRET, TEXT, URL, either, list, named, number, section, text, time, time_or_off,
    words, words_of,
};
use super::{Key, Keys};
use crate::config::model::{ChannelBinding, LocalMember, MOST_WEIGHT, SslMode, SslNegotiation};
use crate::config::units::{hours, minutes, ms, secs};

pub(super) static CLUSTER: Keys = Keys(&[
    Key::new(
        "patroni",
        section(&PATRONI),
        Or("servers"),
        "Get the members from Patroni.",
    ),
    Key::new(
        "servers",
        list(&section(&SERVER_OF_LIST), 1, 256),
        Or("patroni"),
        "A fixed list of servers; the router finds the leader by probing.",
    ),
    Key::new(
        "etcd",
        section(&ETCD),
        Nothing,
        "Also watch Patroni's keys in etcd: a change of the leader is then known at once. Only \
         with `patroni`.",
    ),
    Key::new(
        "service_account",
        section(&SERVICE_ACCOUNT),
        Required,
        "The router's own account on the servers, for probes and look-ups of verifiers and \
         memberships.",
    ),
    Key::new("server_tls", section(&SERVER_TLS), Below, "TLS to the servers."),
    Key::new("server", section(&SERVER), Below, "Connections to the servers."),
    Key::new("probe", section(&PROBE), Below, "How members are probed."),
    Key::new(
        "members",
        named(&section(&MEMBER)),
        Nothing,
        "Weights and zones of members, by their names. A name that no member has is an error with \
         a fixed list. With Patroni, the member may appear later.",
    ),
    Key::new(
        "local_member",
        TEXT,
        Text(LocalMember::AUTO),
        "The member on the same host as this router, for the health checks: its name; `auto`, the \
         one member whose address belongs to this host; or `none`. The named member may appear \
         later.",
    ),
    Key::new(
        "zone",
        NAME,
        Nothing,
        "The router's own zone. Among members that are equally fit, those of this zone come first.",
    ),
    Key::new(
        "weight_tag",
        NAME,
        Nothing,
        "The Patroni tag with a member's weight: a whole number, 0 to 256. Any other value counts \
         as none.",
    ),
    Key::new(
        "zone_tag",
        NAME,
        Nothing,
        "The Patroni tag with a member's zone. Needs `zone`.",
    ),
]);

pub(super) static MEMBER: Keys = Keys(&[
    Key::new(
        "weight",
        number(0, MOST_WEIGHT as u32),
        Said("by `weight_tag`, else `1`"),
        "Its share of the sessions among members that are equally fit: its weight divided by the \
         sum of their weights. A member with `0` gets sessions only if no other member of the same \
         target can serve.",
    ),
    Key::new(
        "zone",
        NAME,
        Said("by `zone_tag`, else none"),
        "Needs the cluster's `zone`.",
    ),
]);

pub(super) static PATRONI: Keys = Keys(&[
    Key::new(
        "endpoints",
        list(&URL, 1, 64),
        Required,
        "Patroni's REST interface on each member: `http://` or `https://`, host, port; no path, \
         user or password. The router asks all of them.",
    ),
    Key::new(
        "ca_file",
        FILE,
        Said("the system's"),
        "Certificates of the authorities trusted for `https://`.",
    ),
    Key::new(
        "cert_file",
        FILE,
        Nothing,
        "Client certificate for `https://`; with `key_file`.",
    ),
    Key::new("key_file", SECRET, Nothing, "Its key."),
    Key::new(
        "username",
        TEXT,
        Nothing,
        "For basic authentication; with `password_file`.",
    ),
    Key::new("password_file", SECRET, Nothing, "Its password."),
    Key::new(
        "poll_interval",
        time(ms(10), minutes(5)),
        Time(secs(1)),
        "Between two polls, normally. An endpoint that does not answer in time is asked only for \
         `/patroni` until its `dcs_last_seen` changes (30 s at most): `/cluster` would hang while \
         Patroni cannot reach its DCS, and would occupy its threads.",
    ),
    Key::new(
        "fast_poll_interval",
        time(ms(10), minutes(5)),
        Time(ms(100)),
        "Between two polls while anything is suspicious. Not longer than `poll_interval`, which is \
         the default if it is shorter than 100ms.",
    ),
]);

pub(super) static ETCD: Keys = Keys(&[
    Key::new(
        "endpoints",
        list(&URL, 1, 64),
        Required,
        "The client addresses of etcd: `http://` or `https://`, host, port; no path, user or \
         password. The router watches one. It asks the others when that one is silent, and tries \
         them in turn when it fails.",
    ),
    Key::new(
        "namespace",
        text(255),
        Text("/service"),
        "As in Patroni's configuration.",
    ),
    Key::new(
        "scope",
        text(255),
        Required,
        "As in Patroni's configuration; with Citus `SCOPE/GROUP`.",
    ),
    Key::new(
        "ca_file",
        FILE,
        Said("the system's"),
        "Certificates of the authorities trusted for `https://`.",
    ),
    Key::new(
        "cert_file",
        FILE,
        Nothing,
        "Client certificate for `https://`; with `key_file`. etcd's gateway does not use it as a \
         user's name.",
    ),
    Key::new("key_file", SECRET, Nothing, "Its key."),
    Key::new("username", TEXT, Nothing, "A user of etcd; with `password_file`."),
    Key::new("password_file", SECRET, Nothing, "Its password."),
]);

pub(super) static SERVER_OF_LIST: Keys = Keys(&[
    Key::new("name", NAME, Required, "Unique in the list."),
    Key::new(
        "host",
        HOST,
        Required,
        "Host name or IP address, IPv6 without brackets.",
    ),
    Key::new(
        "port",
        number(1, 65_535),
        Number(5432),
        "Host and port are unique in the list.",
    ),
]);

pub(super) static SERVICE_ACCOUNT: Keys = Keys(&[
    Key::new("user", text(255), Required, "The role."),
    Key::new(
        "password_file",
        SECRET,
        Nothing,
        "Its password. Without this and `password_env` the server must admit it by another method \
         (a client certificate, `trust`).",
    ),
    Key::new(
        "password_env",
        TEXT,
        Nothing,
        "Name of the environment variable with its password; instead of `password_file`.",
    ),
    Key::new(
        "dbname",
        text(255),
        Text("postgres"),
        "The database it connects to.",
    ),
    Key::new(
        "pool_size",
        number(1, 100),
        Number(4),
        "Connections for look-ups, per member. The probe has a separate one.",
    ),
    Key::new(
        "timeout",
        time(ms(100), minutes(1)),
        Time(secs(3)),
        "Limit for one look-up, connecting included.",
    ),
]);

pub(super) static SERVER_TLS: Keys = Keys(&[
    Key::new(
        "sslmode",
        words_of::<SslMode>(),
        Text("prefer"),
        "Whether TLS is used, and how the server's certificate is verified.",
    ),
    Key::new(
        "sslnegotiation",
        words_of::<SslNegotiation>(),
        Text("postgres"),
        "`postgres` asks the server for TLS first; `direct` starts with TLS, which needs PostgreSQL 17 or \
         later and `sslmode: require`, `verify-ca` or `verify-full`.",
    ),
    Key::new(
        "channel_binding",
        words_of::<ChannelBinding>(),
        Text("prefer"),
        "Binds a SCRAM login to the server's certificate. `prefer` does so if the server offers \
         it. `require` rejects every server that does not complete it, including one that trusts \
         the router or asks for a password. `disable` never does so.",
    ),
    Key::new(
        "sslrootcert",
        either(&[words(&["system"]), FILE]),
        Said("`system` for `verify-full`"),
        "Certificates of the trusted authorities. `system`, the host's own, needs `verify-full`; \
         `verify-ca` needs a file.",
    ),
    Key::new(
        "server_name",
        TEXT,
        Said("the member's host"),
        "The name to send to the servers (SNI), and to verify with `verify-full`: for members that \
         are given by address but have certificates with a name, and for PostgreSQL 19 with \
         `ssl_sni = on`, which looks the name up in its `pg_hosts.conf`.",
    ),
    Key::new(
        "require_auth",
        either(&[TEXT, list(&TEXT, 1, 7)]),
        Said("each method where it is safe"),
        "Which authentication a server may ask the router for: `scram-sha-256`, `md5`, `password`, \
         `none`, as a list or with commas. With `!` before each: the default without these. By \
         default `scram-sha-256` is always allowed, and the others if the server's certificate is \
         verified. [docs/tls.md](tls.md#who-proves-what-to-whom) has the exact rule.",
    ),
    Key::new("sslcert", FILE, Nothing, "Client certificate; with `sslkey`."),
    Key::new("sslkey", SECRET, Nothing, "Its key."),
    Key::new(
        "sslpassphrase_command",
        TEXT,
        Nothing,
        "A command that prints the passphrase of `sslkey`.",
    ),
]);

pub(super) static SERVER: Keys = Keys(&[
    Key::new(
        "connect_timeout",
        time(ms(10), minutes(5)),
        Time(secs(3)),
        "From the start of the TCP connection until the server is ready for a query.",
    ),
    Key::new(
        "keepalive",
        time_or_off(secs(1), hours(9)),
        Time(secs(15)),
        "TCP keepalive, in whole seconds: idle time and interval, for connections to servers and \
         clients. `0` is off.",
    ),
    Key::new(
        "tcp_user_timeout",
        time_or_off(ms(100), hours(24)),
        Time(secs(30)),
        "How long sent data may stay unacknowledged, for connections to servers and clients. `0` \
         leaves it to the kernel.",
    ),
    Key::new(
        "slow_start",
        time(Duration::ZERO, hours(1)),
        Time(Duration::ZERO),
        "A server that comes back up, or joins later, first gets a tenth of its share, and the \
         whole share after this time: see [Slow start](#slow-start). `0`: the whole share at once.",
    ),
    Key::new(
        "max_connections",
        number(0, 1_000_000),
        Number(0),
        "Concurrent sessions of this router on one member, including those that are connecting; \
         `0` is no limit. The router skips a member that has reached it. If all have, logins wait: \
         `queue_timeout`. Probes and look-ups do not count.",
    ),
]);

pub(super) static PROBE: Keys = Keys(&[
    Key::new(
        "interval",
        time(ms(10), minutes(5)),
        Time(secs(1)),
        "Between two probes of a member.",
    ),
    Key::new(
        "timeout",
        time(ms(10), minutes(5)),
        Time(secs(1)),
        "A probe that takes longer has failed.",
    ),
    Key::new(
        "rise",
        number(1, 100),
        Number(2),
        "Consecutive successes that make a member fit again.",
    ),
    Key::new(
        "fall",
        number(1, 100),
        Number(3),
        "Consecutive failures that make a member unfit.",
    ),
]);
