//! Every key there is. A test compares this table with `docs/configuration.md`.

/// The keys of one kind of map.
#[derive(Debug)]
pub(super) struct Keys {
    /// Where it stands, as the documentation's headings write it; empty is the top level.
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "for the test that compares with the documentation")
    )]
    pub(super) place: &'static str,
    pub(super) keys: &'static [&'static str],
}

macro_rules! keys {
    ($($constant:ident $place:literal: $($key:expr),+;)+) => {
        $(pub(super) static $constant: Keys = Keys { place: $place, keys: &[$($key),+] };)+
        #[cfg(test)]
        pub(super) static ALL: &[&Keys] = &[$(&$constant),+];
    };
}

keys! {
    ROOT "": "clusters", "tls", "auth", "routes", "listeners", "http",
        "console", "limits", "peers", "log", "shutdown", "workers",
        "control_socket", "state_file";
    CLUSTER "clusters.NAME": "patroni", "servers", "etcd", "service_account",
        "server_tls", "server", "probe", "members", "local_member",
        "zone", "weight_tag", "zone_tag";
    MEMBER "clusters.NAME.members.NAME": "weight", "zone";
    PATRONI "clusters.NAME.patroni": "endpoints", "ca_file", "cert_file", "key_file",
        "username", "password_file", "poll_interval", "fast_poll_interval";
    ETCD "clusters.NAME.etcd": "endpoints", "namespace", "scope", "ca_file", "cert_file",
        "key_file", "username", "password_file";
    SERVERS "clusters.NAME.servers[]": "name", "host", "port";
    SERVICE_ACCOUNT "clusters.NAME.service_account": "user", "password_file", "password_env",
        "dbname", "pool_size", "timeout";
    SERVER_TLS "clusters.NAME.server_tls": "sslmode", "sslnegotiation", "channel_binding",
        "sslrootcert", "sslcert", "sslkey", "sslpassphrase_command";
    SERVER "clusters.NAME.server": "connect_timeout", "keepalive", "tcp_user_timeout",
        "slow_start", "max_connections";
    PROBE "clusters.NAME.probe": "interval", "timeout", "rise", "fall";
    TLS "tls": "certificates", "min_version", "client_ca_file", "client_crl_file";
    CERTIFICATE "tls.certificates[]": "cert_file", "key_file", "passphrase_command";
    AUTH "auth": "hba_file", "ident_file", "users_file", "query", "cache_ttl",
        "login_timeout", "ldap_ca_file", "server_credentials", "rate_limit";
    SERVER_CREDENTIAL "auth.server_credentials[]": "users", "server_user", "password_file",
        "password", "cert_file", "key_file", "passphrase_command";
    RATE_LIMIT "auth.rate_limit": "failures", "delay", "max_delay", "refuse_after",
        "refuse_for";
    ROUTE "routes.NAME": "cluster", "targets", "tags", "balance",
        "read_only_on_leader", "resume", "queue_timeout", "max_queue",
        "client_address", "max_lag", "on_unfit";
    MAX_LAG "routes.NAME.max_lag": "bytes", "time", "recover_bytes", "recover_time";
    ON_UNFIT "routes.NAME.on_unfit": "lag", "down", "role", "grace";
    CLIENT_ADDRESS "routes.NAME.client_address": "setting", "application_name";
    LISTENER "listeners[]": "name", "address", "route", "socket_mode",
        "mode", "tls", "max_clients", "proxy_protocol", "allow", "deny",
        "connection_rate";
    PROXY_PROTOCOL "listeners[].proxy_protocol": "trusted", "required";
    HTTP "http": "address", "tls", "token_file", "agent_check", "proxy_protocol";
    AGENT_CHECK "http.agent_check": "address", "about";
    HTTP_PROXY_PROTOCOL "http.proxy_protocol": "trusted", "required";
    HTTP_TLS "http.tls": "cert_file", "key_file", "passphrase_command";
    CONSOLE "console": "users", "database";
    LIMITS "limits": "max_clients", "max_pending_logins", "per_user", "per_database",
        "per_address", "connection_rate";
    PEERS "peers": "secret_file", "members";
    PEER "peers.members[]": "name", "address";
    LOG "log": "level", "format";
    SHUTDOWN "shutdown": "grace", "handover";
}
