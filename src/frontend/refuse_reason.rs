//! Why a connection did not become a session, as metrics count it.

use crate::labels::labels;

labels! {
    /// The label `reason` of `trunkline_logins_refused_total`. docs/metrics.md explains each value.
    pub enum RefuseReason {
        Opening = "opening",
        ProxyHeader = "proxy_header",
        ProxyRequired = "proxy_required",
        AddressDenied = "address_denied",
        StartupSetting = "startup_setting",
        Timeout = "timeout",
        NoDescriptor = "no_descriptor",
        TooManyLogins = "too_many_logins",
        TooManyLoginsAddress = "too_many_logins_address",
        RateLimitAddress = "rate_limit_address",
        RateLimitUser = "rate_limit_user",
        RateLimitUserAddress = "rate_limit_user_address",
        NoRule = "no_rule",
        Rejected = "rejected",
        Password = "password",
        Certificate = "certificate",
        Peer = "peer",
        Ldap = "ldap",
        Directory = "directory",
        NameService = "name_service",
        Lookup = "lookup",
        Protocol = "protocol",
        NoServerLogin = "no_server_login",
        Console = "console",
        TooMany = "too_many",
        PerUser = "per_user",
        PerDatabase = "per_database",
        PerAddress = "per_address",
        ConnectionRate = "connection_rate",
        ConnectionRateListener = "connection_rate_listener",
        QueueFull = "queue_full",
        QueueTimeout = "queue_timeout",
        Disabled = "disabled",
        Unavailable = "unavailable",
        NoCandidate = "no_candidate",
        ServerConnect = "server_connect",
        ServerRefused = "server_refused",
        TooLong = "too_long",
        Shutdown = "shutdown",
    }
}
