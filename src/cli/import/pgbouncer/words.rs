//! What is said of settings that have no equivalent.

/// Why it has none, and what instead; `None` where it is the case without being said.
pub(super) fn reason(key: &str) -> Option<&'static str> {
    Some(match key {
        // Every setting is kept, and every reset cleans everything.
        "track_extra_parameters"
        | "server_reset_query_always"
        | "server_round_robin"
        | "server_fast_close"
        | "tcp_defer_accept"
        | "autodb_idle_timeout"
        | "pool_idle_timeout"
        | "conffile"
        | "service_name"
        | "job_name" => return None,
        "max_user_connections" => super::databases::OF_ALL,
        "stats_users" => {
            "the console's users may do everything; `/metrics` and `GET` on the HTTP port are for monitoring"
        }
        "server_reset_query" => "a connection is always reset completely, with RESET ALL and DISCARD ALL",
        "server_check_query" | "server_check_delay" => {
            "a connection that the server has closed is found before a session gets it, without a query"
        }
        "server_login_retry" => {
            "the router chooses how soon it tries again; `connects` limits attempts at once"
        }
        "client_idle_timeout" => {
            "idle sessions are not ended; in transaction mode they hold no server connection"
        }
        "cancel_wait_timeout" => "cancel requests have connections and limits of their own",
        "suspend_timeout" => "`trunkline upgrade` replaces the process without cutting sessions",
        "disable_pqexec" => "simple queries cannot be forbidden",
        "login_notify_message" => {
            "there is no message at login; the parameter `trunkline.version` says where the client is"
        }
        "scram_iterations" => "verifiers are the cluster's, or those of the file",
        "logfile" | "syslog" | "syslog_ident" | "syslog_facility" | "verbose" | "log_connections"
        | "log_disconnections" | "log_pooler_errors" => {
            "the log goes to standard error; `log.level` and `log.format` say how"
        }
        "log_stats" | "stats_period" => "`/metrics` has the numbers",
        "pidfile" | "user" => "is configured in the service manager",
        "unix_socket_group" => {
            "the socket belongs to the user of the router; its directory may belong to a group"
        }
        "dns_max_ttl" | "dns_nxdomain_ttl" | "dns_zone_check_period" | "resolv_conf" => {
            "names are looked up by the system's resolver for every connection"
        }
        "client_tls_ciphers"
        | "client_tls13_ciphers"
        | "client_tls_ecdhcurve"
        | "client_tls_dheparams"
        | "server_tls_ciphers"
        | "server_tls13_ciphers" => "TLS is 1.2 and 1.3 with good ciphers",
        "pkt_buf" | "max_packet_size" | "sbuf_loopcnt" | "listen_backlog" | "tcp_socket_buffer" => {
            "buffers and limits of this kind are not settings"
        }
        "tcp_keepcnt" | "tcp_keepintvl" => "`server.keepalive` and `server.tcp_user_timeout` find lost peers",
        "so_reuseport" | "peer_id" => "one process relays on several cores: `workers`",
        _ => "is unknown to the importer",
    })
}
