//! Every key there is, those of later features included: such a key is refused as "not supported yet" and not
//! as unknown. A test compares this table with `docs/configuration.md`.

/// The keys of one kind of map.
#[derive(Debug)]
pub(super) struct Keys {
    /// Where it stands, as the documentation's headings write it; empty is the top level.
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "for the test that compares with the documentation")
    )]
    pub(super) place: &'static str,
    pub(super) keys: &'static [Key],
}

#[derive(Debug)]
pub(super) struct Key {
    pub(super) name: &'static str,
    /// Recognised, and refused until its feature works.
    pub(super) later: bool,
}

const fn now(name: &'static str) -> Key {
    Key { name, later: false }
}

const fn later(name: &'static str) -> Key {
    Key { name, later: true }
}

macro_rules! keys {
    ($($constant:ident $place:literal: $($key:expr),+;)+) => {
        $(pub(super) static $constant: Keys = Keys { place: $place, keys: &[$($key),+] };)+
        #[cfg(test)]
        pub(super) static ALL: &[&Keys] = &[$(&$constant),+];
    };
}

keys! {
    ROOT "": now("clusters"), now("tls"), now("auth"), now("routes"), now("listeners"), now("http"),
        now("console"), now("limits"), now("peers"), now("log"), now("shutdown"), now("workers");
    CLUSTER "clusters.NAME": now("patroni"), now("servers"), now("etcd"), now("service_account"),
        now("server_tls"), now("server"), now("probe"), now("members"), now("local_member"),
        now("zone"), now("weight_tag"), now("zone_tag");
    MEMBER "clusters.NAME.members.NAME": now("weight"), now("zone");
    PATRONI "clusters.NAME.patroni": now("endpoints"), now("ca_file"), now("cert_file"), now("key_file"),
        now("username"), now("password_file"), now("poll_interval"), now("fast_poll_interval");
    ETCD "clusters.NAME.etcd": now("endpoints"), now("namespace"), now("scope"), now("ca_file"), now("cert_file"),
        now("key_file"), now("username"), now("password_file");
    SERVERS "clusters.NAME.servers[]": now("name"), now("host"), now("port");
    SERVICE_ACCOUNT "clusters.NAME.service_account": now("user"), now("password_file"), now("password_env"),
        now("dbname"), now("pool_size"), now("timeout");
    SERVER_TLS "clusters.NAME.server_tls": now("sslmode"), now("sslnegotiation"), now("channel_binding"),
        now("sslrootcert"), now("sslcert"), now("sslkey"), now("sslpassphrase_command");
    SERVER "clusters.NAME.server": now("connect_timeout"), now("keepalive"), now("tcp_user_timeout"),
        later("max_connections");
    PROBE "clusters.NAME.probe": now("interval"), now("timeout"), now("rise"), now("fall");
    TLS "tls": now("certificates"), now("min_version"), now("client_ca_file"), now("client_crl_file");
    CERTIFICATE "tls.certificates[]": now("cert_file"), now("key_file"), now("passphrase_command");
    AUTH "auth": now("hba_file"), now("ident_file"), now("users_file"), now("query"), now("cache_ttl"),
        now("login_timeout"), now("ldap_ca_file"), now("server_credentials"), now("rate_limit");
    SERVER_CREDENTIAL "auth.server_credentials[]": now("users"), now("server_user"), now("password_file"),
        now("password"), now("cert_file"), now("key_file"), now("passphrase_command");
    RATE_LIMIT "auth.rate_limit": now("failures"), now("delay"), now("max_delay"), now("refuse_after"),
        now("refuse_for");
    ROUTE "routes.NAME": now("cluster"), now("targets"), now("tags"), now("balance"),
        now("read_only_on_leader"), now("resume"), later("queue_timeout"),
        later("max_lag"), later("on_unfit");
    LISTENER "listeners[]": now("name"), now("address"), now("route"), now("socket_mode"),
        now("mode"), now("tls"), now("max_clients"), later("proxy_protocol"), later("allow"), later("deny");
    HTTP "http": now("address"), now("tls"), later("token_file");
    HTTP_TLS "http.tls": now("cert_file"), now("key_file"), now("passphrase_command");
    CONSOLE "console": now("users"), now("database");
    LIMITS "limits": now("max_clients"), now("max_pending_logins"), later("per_user"), later("per_database"),
        later("per_address"), later("connection_rate");
    PEERS "peers": now("secret_file"), now("members");
    PEER "peers.members[]": now("name"), now("address");
    LOG "log": now("level"), now("format");
    SHUTDOWN "shutdown": now("grace");
}
