//! `tls`, `auth` and `listeners`: what is between the router and its clients.

use std::time::Duration;

use super::Otherwise::{Below, Nothing, Number, Required, Said, Text, Time, Truth};
use super::kind::{
    ADDRESS, FILE, LONGEST_ROLE, MODE, MOST_USERS, NAME, NETWORK, SECRET, SOCKET_PATH, TEXT, TRUTH, USERS,
    either, list, number, rate, secret, section, text, time, words, words_of,
};
use super::{Key, Keys};
use crate::config::model::{ListenerMode, ListenerTls, MinVersion};
use crate::config::units::{hours, minutes, ms, secs};

pub(super) static TLS: Keys = Keys(&[
    Key::new(
        "certificates",
        list(&section(&CERTIFICATE), 1, 64),
        Required,
        "The certificates shown to clients. Each serves the names in its `subjectAltName`; `*` \
         stands for one label. A client that asks for another name, or for none, gets the first \
         certificate.",
    ),
    Key::new(
        "min_version",
        words_of::<MinVersion>(),
        Text("1.2"),
        "The oldest TLS version that is accepted.",
    ),
    Key::new(
        "client_ca_file",
        FILE,
        Nothing,
        "Certificates of the authorities trusted for clients. With it, clients are asked for a \
         certificate. They may have none, but the handshake fails with an invalid one.",
    ),
    Key::new(
        "client_crl_file",
        FILE,
        Nothing,
        "Revocation lists (PEM, one or more) for `client_ca_file`. As in PostgreSQL the whole \
         chain is checked: once there is a list, a certificate is rejected if its authority has no \
         list or an expired one.",
    ),
]);

pub(super) static CERTIFICATE: Keys = Keys(&[
    Key::new(
        "cert_file",
        FILE,
        Required,
        "The certificate, followed by those of its authorities.",
    ),
    Key::new("key_file", SECRET, Required, "Its key."),
    Key::new(
        "passphrase_command",
        TEXT,
        Nothing,
        "A command that prints the passphrase of `key_file`.",
    ),
]);

pub(super) static AUTH: Keys = Keys(&[
    Key::new(
        "users_file",
        secret(0, MOST_USERS),
        Nothing,
        "Users with their verifiers, md5 hashes or passwords, in the form of PgBouncer's `userlist.txt`; \
         instead of `query`.",
    ),
    Key::new(
        "query",
        TEXT,
        Text("SELECT * FROM trunkline.user_lookup($1)"),
        "SQL that the service account runs on the cluster. `$1` is the user's name; the first \
         row's columns are the name and the verifier. Text other than ASCII is in the encoding of \
         the account's database.",
    ),
    Key::new(
        "cache_ttl",
        time(Duration::ZERO, hours(24)),
        Time(secs(60)),
        "How long an answer of `query` may be used without being confirmed; `0` is never. Each \
         login asks again; logins of one user at the same time share a query. The remembered answer \
         counts only if the query fails, or takes longer than 250 ms. So a changed password, a \
         dropped role, `NOLOGIN` and `VALID UNTIL` take effect at the next login, and an outage or \
         failover prevents no login until this time is over. A password that does not match a \
         remembered answer is 57P03. Where no server checks the client itself, a remembered answer \
         does not admit it. Rejected with `users_file`.",
    ),
    Key::new(
        "login_timeout",
        time(ms(100), minutes(10)),
        Time(secs(60)),
        "From accept until the client is authenticated, TLS included.",
    ),
    Key::new(
        "hba_file",
        FILE,
        Nothing,
        "Which clients may log in, from where, and how, in `pg_hba.conf` syntax; see \
         [authentication](authentication.md). Without it every client authenticates with \
         SCRAM-SHA-256.",
    ),
    Key::new(
        "ident_file",
        FILE,
        Nothing,
        "Maps of names in `pg_ident.conf` syntax, for the rules with `map=`; with `hba_file`.",
    ),
    Key::new(
        "ldap_ca_file",
        FILE,
        Said("the system's"),
        "Certificates of the authorities trusted for LDAP over TLS.",
    ),
    Key::new(
        "server_credentials",
        list(&section(&SERVER_CREDENTIAL), 1, 1024),
        Nothing,
        "How the sessions of some users log into the servers. The first entry for a user counts.",
    ),
    Key::new(
        "rate_limit",
        section(&RATE_LIMIT),
        Below,
        "What happens after failed logins.",
    ),
]);

pub(super) static SERVER_CREDENTIAL: Keys = Keys(&[
    Key::new(
        "users",
        either(&[words(&["all"]), USERS]),
        Required,
        "The users that the entry is for, by the names that clients give.",
    ),
    Key::new(
        "server_user",
        text(LONGEST_ROLE),
        Said("the client's user"),
        "The role on the server.",
    ),
    Key::new("password_file", SECRET, Nothing, "Its password."),
    Key::new(
        "password",
        words(&["client"]),
        Nothing,
        "The password that the client has just given, with the methods `password` and `ldap`.",
    ),
    Key::new(
        "cert_file",
        FILE,
        Nothing,
        "A client certificate, instead of `server_tls.sslcert`; with `key_file`.",
    ),
    Key::new("key_file", SECRET, Nothing, "Its key."),
    Key::new("passphrase_command", TEXT, Nothing, "As in `tls.certificates`."),
]);

pub(super) static RATE_LIMIT: Keys = Keys(&[
    Key::new(
        "failures",
        number(0, 1000),
        Number(5),
        "After this many failures each further attempt waits for its turn. `0` counts nothing; the \
         other keys are then rejected.",
    ),
    Key::new(
        "delay",
        time(Duration::ZERO, minutes(1)),
        Time(ms(250)),
        "The first wait between two turns; it doubles with each further failure. `0`: attempts do \
         not wait, they are only refused.",
    ),
    Key::new(
        "max_delay",
        time(ms(1), minutes(5)),
        Time(secs(8)),
        "The longest wait between two turns. Not longer than half of `login_timeout`, which is the \
         default if it is shorter.",
    ),
    Key::new(
        "refuse_after",
        number(1, 10_000),
        Number(20),
        "After this many failures attempts are refused (53300). Not less than `failures`, which is \
         the default if it is more than 20.",
    ),
    Key::new(
        "refuse_for",
        time(secs(1), hours(24)),
        Time(minutes(1)),
        "How long attempts are refused. Each such time without a failure takes one failure off the \
         count.",
    ),
    Key::new(
        "exempt",
        list(&NETWORK, 1, 1024),
        Nothing,
        "Clients from these networks are neither counted nor limited, for example a host whose \
         jobs must not wait for each other. Clients from there can guess passwords without a limit.",
    ),
]);

pub(in crate::config) static LISTENER: Keys = Keys(&[
    Key::new("name", NAME, Required, "Unique; used in the log and in metrics."),
    Key::new(
        "address",
        either(&[ADDRESS, SOCKET_PATH]),
        Required,
        "Where to listen: an address, or the path of a Unix socket. libpq looks for \
         `/run/trunkline/.s.PGSQL.6432` with `host=/run/trunkline port=6432`; another name is a \
         warning. The directory must exist. The router replaces a socket on which nothing listens, \
         and no other file. It removes the socket when it ends.",
    ),
    Key::new(
        "socket_mode",
        MODE,
        Text("0777"),
        "Which users may connect: permissions of the Unix socket, as PostgreSQL's \
         `unix_socket_permissions`. Rejected for other addresses.",
    ),
    Key::new("route", NAME, Required, "One of `routes`."),
    Key::new(
        "mode",
        words_of::<ListenerMode>(),
        Text("postgres"),
        "`postgres`: the router speaks PostgreSQL's protocol with both sides. `tcp`: it forwards \
         bytes without reading them, see [below](#mode-tcp).",
    ),
    Key::new(
        "tls",
        words_of::<ListenerTls>(),
        Text("optional"),
        "Whether clients use TLS; with `optional` the client decides. Without a certificate, and \
         on a Unix socket, `optional` offers no TLS and `required` is an error. With `mode: tcp`, \
         `tls` is an error.",
    ),
    Key::new(
        "max_clients",
        number(0, 1_000_000),
        Number(0),
        "Concurrent sessions on this listener; `0` is no separate limit.",
    ),
    Key::new(
        "proxy_protocol",
        section(&PROXY_PROTOCOL),
        Nothing,
        "Understand the PROXY protocol of load balancers in front.",
    ),
    Key::new(
        "allow",
        list(&NETWORK, 0, 1024),
        Said("all"),
        "Addresses of clients that may log in here: `10.0.0.0/8`, `10.1.2.3`, `\"2001:db8::/32\"`. \
         An empty list is all.",
    ),
    Key::new(
        "deny",
        list(&NETWORK, 0, 1024),
        Nothing,
        "Addresses of clients that may not; it is checked before `allow`. These clients get an \
         error (28000) after their startup packet, before any rule or look-up. Their cancel \
         requests are ignored. Peers identify themselves by their secret and are always admitted.",
    ),
    Key::new(
        "connection_rate",
        rate(1_000_000),
        Number(0),
        "As in `limits`, for this listener.",
    ),
]);

pub(super) static PROXY_PROTOCOL: Keys = Keys(&[
    Key::new(
        "trusted",
        list(&NETWORK, 1, 1024),
        Required,
        "The load balancers. A connection from there must begin with a header, else it is refused: \
         behind a balancer that sends no header, a client could otherwise send a false one. Rules \
         for `127.0.0.1` or `samehost` apply to the address in the header.",
    ),
    Key::new(
        "required",
        TRUTH,
        Truth(false),
        "Refuse all other connections (28000). Without it they are clients without a header; a \
         header from them is an invalid startup packet.",
    ),
]);
