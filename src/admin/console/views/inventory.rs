//! What the router has and how it is set.

use futures_util::FutureExt;

use super::router::at;
use super::{View, known, text};
use crate::admin::gather;
use crate::admin::operations::Gathered;
use crate::admin::relation::{Kind, Row, Value, column};
use crate::admin::views::{CertificateView, LimitView, ListenerView, PeerView, SettingView};

pub(super) const LISTENERS: View = View {
    name: "listeners",
    about: "Every address that the router listens on, and where it leads",
    columns: &[
        column(
            "name",
            Kind::Text,
            "Of the configuration, or http, agent_check, control_socket",
        ),
        column(
            "protocol",
            Kind::Text,
            "postgres, tcp, http, agent check or control",
        ),
        column(
            "address",
            Kind::Text,
            "An IP address, or * for all; null for a Unix socket",
        ),
        column("port", Kind::Int4, "Null for a Unix socket"),
        column("socket", Kind::Text, "Path of the Unix socket"),
        column("route", Kind::Text, "Where its sessions go"),
        column("cluster", Kind::Text, "Of the route"),
        column("access", Kind::Text, "read-write or read-only"),
        column(
            "targets",
            Kind::Text,
            "Which members may serve, in order of preference",
        ),
        column(
            "pool",
            Kind::Text,
            "The mode of the route's pool; off without one",
        ),
        column("console", Kind::Text, "The database that is the console here"),
        column(
            "tls",
            Kind::Text,
            "off, optional, required, or server: it passes the server's",
        ),
        column(
            "proxy_protocol",
            Kind::Text,
            "required or trusted; null: no header is understood",
        ),
        column(
            "allow",
            Kind::TextArray,
            "Networks whose clients may log in; empty: all",
        ),
        column("deny", Kind::TextArray, "Networks whose clients may not"),
        column("state", Kind::Text, "open, paused, disabled, draining or closed"),
        column(
            "clients",
            Kind::Int8,
            "Sessions now, of the process that answers, those with the console too",
        ),
        column(
            "max_clients",
            Kind::Int8,
            "How many there may be; null without a limit of its own",
        ),
    ],
    rows: |handles| known(handles.inventory.listeners(), listener),
};

fn listener(listener: ListenerView) -> Row {
    vec![
        Value::Text(listener.name),
        Value::Text(listener.protocol),
        text(listener.address),
        Value::or_null(listener.port, Value::int),
        text(listener.socket),
        text(listener.route),
        text(listener.cluster),
        text(listener.access),
        text(listener.targets),
        text(listener.pool),
        text(listener.console),
        Value::Text(listener.tls),
        text(listener.proxy_protocol),
        Value::TextArray(listener.allow),
        Value::TextArray(listener.deny),
        Value::Text(listener.state),
        Value::or_null(listener.clients, Value::int),
        Value::or_null(listener.max_clients, Value::int),
    ]
}

pub(super) const LIMITS: View = View {
    name: "limits",
    about: "Every limit, and what of it is used by the process that answers",
    columns: &[
        column("name", Kind::Text, "What is limited"),
        column(
            "scope",
            Kind::Text,
            "What has this limit: router, listener rw, route rw, …",
        ),
        column(
            "key",
            Kind::Text,
            "Of the configuration; null: built in, or the host's",
        ),
        column("limit", Kind::Int8, "Null: there is none"),
        column("used", Kind::Int8, "Now; null where it is not counted"),
        column(
            "unit",
            Kind::Text,
            "sessions, connections, logins, clients, requests, bytes, …",
        ),
    ],
    rows: |handles| known(gather::limits(handles), limit),
};

fn limit(limit: LimitView) -> Row {
    vec![
        Value::Text(limit.name),
        Value::Text(limit.scope),
        Value::or_null(limit.key, Value::Text),
        Value::or_null(limit.limit, Value::int),
        Value::or_null(limit.used, Value::int),
        Value::Text(limit.unit),
    ]
}

pub(super) const CERTIFICATES: View = View {
    name: "certificates",
    about: "Every certificate that the router shows or trusts, and when it expires",
    columns: &[
        column(
            "used_for",
            Kind::Text,
            "clients, http, servers, patroni, etcd or ldap",
        ),
        column(
            "kind",
            Kind::Text,
            "own (shown), chain (shown with it) or authority (trusted)",
        ),
        column(
            "key",
            Kind::Text,
            "The key of the configuration that names the file",
        ),
        column("file", Kind::Text, "The file"),
        column("number", Kind::Int4, "Its place in the file, from 1"),
        column("cluster", Kind::Text, "Whose servers, or whose source, it is for"),
        column("listeners", Kind::TextArray, "Those that use it towards clients"),
        column("subject", Kind::Text, "Whose it is"),
        column("issuer", Kind::Text, "Who has signed it"),
        column(
            "names",
            Kind::TextArray,
            "DNS names and addresses of its subjectAltName",
        ),
        column("not_before", Kind::Timestamp, "From when it is valid"),
        column("not_after", Kind::Timestamp, "When it expires"),
        column(
            "days_left",
            Kind::Int8,
            "Whole days until then; negative once it has expired",
        ),
        column("serial", Kind::Text, "In hexadecimal digits"),
        column("fingerprint", Kind::Text, "SHA-256, as openssl prints it"),
    ],
    rows: |handles| known(handles.inventory.certificates(), certificate),
};

fn certificate(certificate: CertificateView) -> Row {
    vec![
        Value::Text(certificate.used_for),
        Value::Text(certificate.kind),
        Value::Text(certificate.key),
        Value::Text(certificate.file),
        Value::int(certificate.number),
        Value::or_null(certificate.cluster, Value::Text),
        Value::TextArray(certificate.listeners),
        Value::Text(certificate.subject),
        Value::Text(certificate.issuer),
        Value::TextArray(certificate.names),
        Value::Timestamp(certificate.not_before_ms.saturating_mul(1000)),
        Value::Timestamp(certificate.not_after_ms.saturating_mul(1000)),
        Value::Int(certificate.days_left),
        Value::Text(certificate.serial),
        Value::Text(certificate.fingerprint),
    ]
}

pub(super) const CONFIG: View = View {
    name: "config",
    about: "Every key of the configuration in use, where it is set, and to what",
    columns: &[
        column("key", Kind::Text, "With its path, as listeners[0].address"),
        column(
            "value",
            Kind::Text,
            "In effect; null: not set; … for what may contain a secret",
        ),
        column("default", Kind::Text, "What counts where the file says nothing"),
        column("source", Kind::Text, "file or default"),
        column("file", Kind::Text, "Where it is set; null for a default"),
        column("line", Kind::Int8, "Of the file"),
        column(
            "after_restart",
            Kind::Text,
            "What the file says now, for the next process; null if nothing waits",
        ),
    ],
    rows: |handles| known(handles.inventory.settings(), setting),
};

fn setting(setting: SettingView) -> Row {
    vec![
        Value::Text(setting.key),
        text(setting.value),
        text(setting.default),
        Value::Text(setting.source),
        text(setting.file),
        Value::or_null(setting.line, Value::int),
        text(setting.after_restart),
    ]
}

pub(super) const PEERS: View = View {
    name: "peers",
    about: "The other routers of the same clusters, asked now",
    columns: &[
        column("name", Kind::Text, "Of the configuration"),
        column("host", Kind::Text, "Where it is asked"),
        column("port", Kind::Int4, "Where it is asked"),
        column(
            "state",
            Kind::Text,
            "up, down, or self: the list includes this router",
        ),
        column("error", Kind::Text, "Why it is down"),
        column("answer_ms", Kind::Int8, "How long its answer took"),
        column(
            "seen",
            Kind::Timestamp,
            "When it last answered any question; null: not yet",
        ),
        column(
            "protocol_version",
            Kind::Int4,
            "Of the peer protocol in which it answers",
        ),
    ],
    rows: |handles| {
        async move {
            let rows = handles.inventory.peers().await.into_iter().map(peer);
            Gathered::whole(rows.collect())
        }
        .boxed()
    },
};

fn peer(peer: PeerView) -> Row {
    vec![
        Value::Text(peer.name),
        Value::Text(peer.host),
        Value::int(peer.port),
        Value::Text(peer.state),
        Value::or_null(peer.error, Value::Text),
        Value::or_null(peer.answer_ms, Value::int),
        Value::or_null(peer.seen_ms, at),
        Value::or_null(peer.protocol_version, Value::int),
    ]
}
