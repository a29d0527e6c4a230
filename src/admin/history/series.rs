//! Which series there are, and which metrics they come from. `docs/http.md` lists them.

/// A series of points.
#[derive(Debug)]
pub(super) struct Series {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) source: Source,
}

/// How a point comes from readings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The reading.
    Gauge,
    /// How much more there is than before, a second.
    Rate,
    /// Of a sum of seconds and their number: the mean of those that are new, in milliseconds.
    MeanMs,
}

/// Where the readings come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// The sum of these metrics' values, of the thing that the series is about.
    Metrics(&'static [&'static str]),
    /// The same of one metric, where this label has this value.
    Labelled(&'static str, &'static str, &'static str),
    /// The `_sum` and the `_count` of this histogram.
    Histogram(&'static str),
    /// No metric: the sampler asks for it.
    Asked(Asked),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    Sessions,
    ServerConnections,
    Held,
}

const fn gauge(name: &'static str, metrics: &'static [&'static str]) -> Series {
    Series {
        name,
        kind: Kind::Gauge,
        source: Source::Metrics(metrics),
    }
}

const fn rate(name: &'static str, metrics: &'static [&'static str]) -> Series {
    Series {
        name,
        kind: Kind::Rate,
        source: Source::Metrics(metrics),
    }
}

const fn labelled(name: &'static str, kind: Kind, metric: &'static str, label: [&'static str; 2]) -> Series {
    Series {
        name,
        kind,
        source: Source::Labelled(metric, label[0], label[1]),
    }
}

const fn mean(name: &'static str, histogram: &'static str) -> Series {
    Series {
        name,
        kind: Kind::MeanMs,
        source: Source::Histogram(histogram),
    }
}

const fn asked(name: &'static str, what: Asked) -> Series {
    Series {
        name,
        kind: Kind::Gauge,
        source: Source::Asked(what),
    }
}

/// Of the whole router.
pub(super) const ROUTER: &[Series] = &[
    asked("sessions", Asked::Sessions),
    asked("server_connections", Asked::ServerConnections),
    asked("held", Asked::Held),
    gauge("waiting", &["trunkline_queue_length"]),
    gauge("pending_logins", &["trunkline_pending_logins"]),
    rate("transactions", &["trunkline_transactions_total"]),
    rate("bytes_up", &["trunkline_client_bytes_received_total"]),
    rate("bytes_down", &["trunkline_client_bytes_sent_total"]),
    rate("logins", &["trunkline_login_seconds_count"]),
    rate("logins_refused", &["trunkline_logins_refused_total"]),
    rate("errors", &["trunkline_errors_total"]),
    mean("login_ms", "trunkline_login_seconds"),
    mean("connect_ms", "trunkline_server_connect_seconds"),
    mean("wait_ms", "trunkline_queue_wait_seconds"),
    gauge("memory_bytes", &["process_resident_memory_bytes"]),
];

/// Of each route.
pub(super) const ROUTE: &[Series] = &[
    asked("sessions", Asked::Sessions),
    asked("held", Asked::Held),
    gauge("waiting", &["trunkline_queue_length"]),
    rate("waits", &["trunkline_queue_entered_total"]),
    mean("wait_ms", "trunkline_pool_wait_seconds"),
    rate("transactions", &["trunkline_route_transactions_total"]),
    mean("transaction_ms", "trunkline_transaction_seconds"),
    rate("bytes_up", &["trunkline_route_bytes_received_total"]),
    rate("bytes_down", &["trunkline_route_bytes_sent_total"]),
    labelled(
        "server_errors",
        Kind::Rate,
        "trunkline_errors_total",
        ["origin", "server"],
    ),
    labelled(
        "router_errors",
        Kind::Rate,
        "trunkline_errors_total",
        ["origin", "router"],
    ),
    labelled(
        "idle_connections",
        Kind::Gauge,
        "trunkline_pool_connections",
        ["state", "idle"],
    ),
    labelled(
        "leased_connections",
        Kind::Gauge,
        "trunkline_pool_connections",
        ["state", "leased"],
    ),
    rate("connections_opened", &["trunkline_pool_misses_total"]),
    rate(
        "refused",
        &[
            "trunkline_queue_full_total",
            "trunkline_queue_timeouts_total",
            "trunkline_hold_full_total",
            "trunkline_hold_timeouts_total",
        ],
    ),
    rate("sessions_ended", &["trunkline_sessions_ended_total"]),
];

/// Of each member.
pub(super) const MEMBER: &[Series] = &[
    asked("sessions", Asked::Sessions),
    asked("server_connections", Asked::ServerConnections),
    gauge("up", &["trunkline_cluster_member_up"]),
    gauge("leader", &["trunkline_cluster_member_leader"]),
    gauge("lag_bytes", &["trunkline_cluster_member_lag_bytes"]),
    gauge("lag_seconds", &["trunkline_cluster_member_lag_seconds"]),
    mean("probe_ms", "trunkline_cluster_probe_seconds"),
    labelled(
        "probes_failed",
        Kind::Rate,
        "trunkline_cluster_probes_total",
        ["result", "failure"],
    ),
];
