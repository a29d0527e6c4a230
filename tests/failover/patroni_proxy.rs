//! The scenarios of `patroni_proxy` itself with real Patroni, 3.0 and 4.1, on ports that forward
//! (it knows no others) and, where clients see a difference, on ports that speak PostgreSQL; and,
//! in [`wrong`], what it gets wrong.
//!
//! What is shown elsewhere is not shown twice. A name is that of a test here, in `wrong`, or in the
//! module before it.
//!
//! | its scenario | shown by |
//! |---|---|
//! | basic-proxy: a leader and replicas, each on its port | `leader_and_replicas_are_served` |
//! | failover: three endpoints, two dead | `a_dead_endpoint_does_no_harm`; a real failover: failover `a_death`, `forwarded_connections_end_when_their_server_changes_its_role` |
//! | reload: SIGHUP adds a port, sessions survive | `ports_are_added_by_a_reload` |
//! | replicas: another one comes; one lags | `a_replica_that_comes_moves_nobody_and_one_that_lags_loses_its_own` |
//! | state-filter: `starting`, `stopped` are unused | `replicas_that_are_stopped_are_unused_until_they_run`, `every_state_and_role_of_a_member_counts_for_what_it_is` |
//! | state-filter: available after `/update_clusters` | `replicas_that_are_stopped_are_unused_until_they_run`, `an_update_is_at_once_and_a_cluster_or_host_that_is_removed_is_asked_no_more` |
//! | unit: role, state, lag, tag; least connections | routing `refused_replicas_have_a_reason`, `noloadbalance_is_read_in_any_spelling`, `read_only_goes_to_the_replica_with_the_least_sessions`; cluster `lag_that_flaps_between_the_limits_does_not_flap_fitness` |
//! | unit: a listener that stops, a server that is removed | it::reload `listeners_come_go_and_change_while_sessions_stay`; `without_a_leader_new_clients_are_told_and_live_sessions_stay` |
//! | unit: endpoints that fail are asked last | `dead_endpoints_cost_one_timeout_and_one_that_is_unwell_names_nobody` |
//! | unit: the configuration and its differences | config `wrong_values_in_a_cluster`, `each_difference_is_named_by_its_key` |
//! | unit: passing on, stopping, no connection | it::tcp `much_goes_both_ways_and_arrives_whole`, `a_server_that_stops_ends_its_connections`, `with_nobody_to_serve_it_a_client_is_told_so` |
//!
//! | what it does not test | shown by |
//! |---|---|
//! | another leader | `the_leader_changes`; failover `a_switchover` |
//! | Patroni away | failover `with_every_patroni_dead_the_verified_leader_serves_on`, `without_the_dcs_the_verified_leader_serves_as_long_as_patroni_lets_it_write` |
//! | `streaming`; a member without host | `every_state_and_role_of_a_member_counts_for_what_it_is`; `a_member_that_lacks_something_spoils_nothing_and_a_lag_nobody_knows_is_too_much` |
//! | a replica that refuses | `a_dead_replica_attracts_nobody`; it::routing `a_replica_that_takes_no_new_connections_neither_attracts_nor_delays_sessions` |
//! | a port that changes and keeps its address | `a_port_that_moves_keeps_its_sessions`; it::reload `it_is_all_or_nothing` |
//! | lag unknown | `a_member_that_lacks_something_spoils_nothing_and_a_lag_nobody_knows_is_too_much`; cluster `an_unknown_lag_exceeds_the_limit_and_a_last_position_counts_during_a_failover` |
//! | half-close | it::tcp `a_client_that_has_no_more_to_say_is_still_answered` |
//! | SIGTERM | it::tcp `a_shutdown_cuts_connections_when_its_grace_is_over`; failover `sigterm_ends_sessions_at_their_next_boundary` |
//! | no descriptors left | it::bad_input `without_descriptors_who_is_in_stays_and_who_comes_is_told` |
//!
//! | what it gets wrong | shown by |
//! |---|---|
//! | unknown keys accepted; an interval of 0 is a hot loop | config `unknown_keys_of_every_section_are_reported_with_its_path`, `wrong_values_in_a_cluster` |
//! | `tls` read and not used | `tls_towards_patroni_is_verified_and_shows_who_asks`; cli `every_key_of_patroni_proxy` |
//! | endpoints one after the other, 5 s each | `dead_endpoints_cost_one_timeout_and_one_that_is_unwell_names_nobody`; cluster `a_slow_endpoint_does_not_delay_what_most_agree_on` |
//! | the first answer is believed | cluster `a_leader_is_chosen_from_different_answers`, `a_stale_endpoint_does_not_bring_the_old_leader_back` |
//! | a body is believed whatever its status; the environment's proxy is asked | `dead_endpoints_cost_one_timeout_and_one_that_is_unwell_names_nobody`; cluster `every_kind_of_bad_endpoint_is_distinguished_and_costs_one_deadline` |
//! | the last topology counts for ever | failover `with_every_patroni_dead_the_verified_leader_serves_on`; cluster `an_outage_of_every_endpoint_keeps_the_last_leader_while_it_accepts_writes` |
//! | Patroni never seen: healthy, and closes | failover `with_no_endpoint_at_the_start_it_lives_says_why_and_recovers_by_itself` |
//! | no leader named, no members: all are cut off | `without_a_leader_new_clients_are_told_and_live_sessions_stay` |
//! | two leaders share the sessions | failover `two_leaders_are_none_and_a_server_of_another_cluster_is_never_used`; `without_a_leader_new_clients_are_told_and_live_sessions_stay`; cluster `two_writable_servers_and_only_the_named_one_leads`, `in_a_fixed_list_the_highest_timeline_leads_and_a_tie_is_none` |
//! | one spike of lag cuts readers off | failover `a_replica_that_stops_replaying_loses_sessions_by_policy_and_gets_them_back_when_it_has_caught_up`; routing `each_cause_has_its_policy` |
//! | `streaming`, `in archive recovery`, `quorum_standby`, `standby_leader` unknown | `every_state_and_role_of_a_member_counts_for_what_it_is`; routing `a_standby_that_restores_from_an_archive_serves_after_those_that_stream`, `the_leader_of_a_standby_cluster_serves_reads_last` |
//! | `promoted` and whatever comes next | `every_state_and_role_of_a_member_counts_for_what_it_is`; failover `a_standby_promoted_behind_patronis_back_never_gets_writers_and_loses_its_readers` |
//! | lag `unknown` or missing is within the limit | `a_member_that_lacks_something_spoils_nothing_and_a_lag_nobody_knows_is_too_much` |
//! | one member without host fails the whole | `a_member_that_lacks_something_spoils_nothing_and_a_lag_nobody_knows_is_too_much`; cluster `one_invalid_member_never_invalidates_the_others` |
//! | names, IPv6, two servers of one host | `members_have_names_ipv6_addresses_and_neighbours_on_one_host`; it::places `a_host_name_that_leads_elsewhere_is_followed`, `clusters_of_one_process_are_apart_also_on_one_host_and_over_ipv6` |
//! | a black hole gets 19 of 20 | `a_replica_that_refuses_gets_nobody_and_costs_nobody`, `a_dead_replica_attracts_nobody`; it::routing `a_replica_that_takes_no_new_connections_neither_attracts_nor_delays_sessions` |
//! | no timeout of connecting, no second try | failover `a_frozen_leader_costs_bounded_time_and_its_sessions_end_when_another_leads`, `a_replica_that_freezes_stalls_nobody_and_its_idle_sessions_are_told` |
//! | clients are closed without a word | it::tcp `with_nobody_to_serve_it_a_client_is_told_so`; `without_a_leader_new_clients_are_told_and_live_sessions_stay` |
//! | 131 KiB a connection, not given back; handles leaked | `a_thousand_connections_leave_nothing_behind`; it::idle `nine_thousand_idle_clients` |
//! | peers that have vanished | `a_peer_that_has_vanished_is_looked_for_on_both_sides`; failover `a_leader_whose_packets_are_lost_costs_bounded_time_and_nobody_elses_session` |
//! | a blocked copy cannot be ended | `a_connection_whose_peer_does_not_read_can_be_ended`; it::tcp `a_client_that_does_not_read_holds_up_its_server_and_nobody_else` |
//! | every HTTP path is 200 OK | `an_update_is_at_once_and_a_cluster_or_host_that_is_removed_is_asked_no_more`; admin `update_clusters_looks_again_but_not_on_safe_methods`, `every_path_is_documented`, `connection_readiness` |
//! | HTTP waits for ever | admin `who_is_slow_with_the_headers_is_cut_off` |
//! | hosts and TLS need a restart; a removed cluster is polled on | `an_update_is_at_once_and_a_cluster_or_host_that_is_removed_is_asked_no_more`, `tls_towards_patroni_is_verified_and_shows_who_asks` |
//! | the HTTP address needs a restart | it::reload `limits_log_http_console_and_what_needs_a_restart` |
//! | a port that changes cuts its clients off and stays dead | `a_port_that_moves_keeps_its_sessions` |
//! | a new port has nobody to serve it until the next look | `ports_are_added_by_a_reload` |
//! | a port in use at the start: healthy | it::bad_input `a_port_in_use_is_told_in_one_line` |
//! | SIGTERM ends it at once | it::tcp `a_shutdown_cuts_connections_when_its_grace_is_over` |
//! | no check of the configuration, no word to the service manager, no PROXY protocol, no Unix socket, no limits | it::bad_input `a_key_that_others_can_read_is_refused`; it::reload `the_service_manager_is_told`; it::tcp `a_balancers_header_says_who_it_is`, `a_unix_socket_forwards_too`, `limits_hold_for_forwarded_connections` |
//! | failovers are not logged | cluster `each_change_is_one_sentence_and_no_change_is_none` |
//! | a cancel goes to any replica | it::tcp `a_cancel_in_clear_reaches_the_right_one_of_two_replicas` |
//! | no probes, no ejection, no slow start, no weights, no zones | cluster `a_dead_leader_is_down_at_once_and_a_silent_one_after_three_probes`, `the_share_of_a_member_that_comes_back_grows_slowly_and_others_keep_theirs`; it::routing `sessions_are_shared_out_by_weight_and_zone` |
//! | the DCS is not watched | discovery `the_leader_key_in_etcd_counts_more_than_rest_until_the_watch_is_lost` |
#![allow(clippy::format_push_string)]

use std::collections::HashMap;
use std::fs;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::Duration;

use super::cluster::{Cluster, Node, Options, Router, eventually, fresh_address, project, secret};
use super::session::{Session, spread};

mod rest;
mod wrong;

const LIMIT: Duration = Duration::from_secs(30);
const MASTER: u16 = 6432;
const REPLICAS: u16 = 6433;
/// The same, where the router speaks PostgreSQL.
const PG_MASTER: u16 = 6442;
const PG_REPLICAS: u16 = 6443;

/// As `trunkline import` has the routes of a `patroni_proxy.yaml`.
const ROUTES: &str = "routes:
  master: {cluster: main, targets: [leader], on_unfit: {down: close}}
  replicas: {cluster: main, targets: [[sync, async]], max_lag: {bytes: 1MB, recover_bytes: 512kB}, on_unfit: {lag: close, \
                      down: close, grace: 1s}}
";

fn listener(name: &str, port: u16, mode: &str) -> String {
    let route = name.trim_start_matches("pg-");
    format!("  - {{name: {name}, address: \"{{address}}:{port}\", route: {route}, mode: {mode}}}\n")
}

/// Endpoints of which two are dead: one refuses, one is silent. They come first.
struct Dead {
    silent: TcpListener,
    refusing: Ipv4Addr,
}

impl Dead {
    fn new() -> Self {
        Self {
            silent: TcpListener::bind((fresh_address(), 8008)).unwrap(),
            refusing: fresh_address(),
        }
    }

    fn before(&self, live: &str) -> String {
        let silent = self.silent.local_addr().unwrap();
        format!(
            "[\"http://{silent}\", \"http://{}:8008\", \"{live}\"]",
            self.refusing
        )
    }
}

fn clusters(cluster: &Cluster, endpoints: &str, more: &str) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let password = secret(dir.path(), "service", cluster.text("service_password"));
    let text = format!(
        "clusters:\n  main:\n    patroni: {{endpoints: {endpoints}{more}}}\n    service_account: {{user: {}, password_file: \
         {}}}\n    server_tls: {{sslmode: prefer}}\n",
        cluster.text("service_user"),
        password.display()
    );
    (dir, text)
}

/// Its configuration, changed and taken by SIGHUP.
fn reload(router: &Router, change: impl FnOnce(&str) -> String) {
    let path = router.dir().join("trunkline.yaml");
    let text = fs::read_to_string(&path).unwrap();
    let changed = change(&text);
    assert_ne!(changed, text);
    fs::write(&path, changed).unwrap();
    let before = router.log().len();
    router.signal("HUP");
    eventually("the configuration is taken", LIMIT, || {
        let log = router.log();
        assert!(!log[before..].contains("not reloaded"), "{log}");
        log[before..].contains("configuration reloaded")
    });
}

/// A forwarded session ends without a word, for nobody has read it; the others are told.
fn is_ended(session: &mut Session, is_forwarded: bool, why: &str) {
    let end = session.end(Duration::from_secs(15));
    if is_forwarded {
        assert!(end.closed && end.frames.is_empty(), "{end:?}");
    } else {
        let told = end.ended();
        assert!(told.code == "57P01" && told.message.contains(why), "{told:?}");
    }
}

/// Sessions on these nodes, and on no others, as soon as that is so.
#[track_caller]
fn await_only(at: Ipv4Addr, port: u16, nodes: &[&Node]) {
    let mut last = HashMap::new();
    let began = tokio::time::Instant::now();
    while began.elapsed() < LIMIT {
        last = (0..4)
            .filter_map(|_| Session::open(at, port).ok())
            .map(|mut session| (session.server(), session))
            .fold(
                HashMap::new(),
                |mut places: HashMap<String, Vec<Session>>, (server, session)| {
                    places.entry(server).or_default().push(session);
                    places
                },
            );
        if last.len() == nodes.len() && nodes.iter().all(|node| last.contains_key(&node.address)) {
            return;
        }
    }
    let wanted: Vec<&String> = nodes.iter().map(|node| &node.address).collect();
    panic!("{port}: {wanted:?} were expected, and are {:?}", last.keys());
}

/// Until the router knows that nobody is left on this route, so that who has the fewest is certain.
fn await_nobody(router: &Router, route: &str) {
    eventually("nobody is left", LIMIT, || {
        let listed = router.http(&format!("/api/v1/sessions?route={route}")).unwrap().1;
        listed.trim() == "[]"
    });
}

/// A session on that node; those that went elsewhere stay until there is one.
fn on(at: Ipv4Addr, port: u16, node: &Node) -> Session {
    let mut others = Vec::new();
    for _ in 0..20 {
        let mut session = Session::open(at, port).unwrap();
        if session.server() == node.address {
            return session;
        }
        others.push(session);
    }
    panic!("no session of {port} on {}", node.name);
}

struct Scenarios {
    cluster: Cluster,
    router: Router,
    at: Ipv4Addr,
    /// node1 leads at first, and its Patroni is the one that answers.
    first: Node,
    second: Node,
    third: Node,
}

fn scenarios(patroni: &str, base: &str, etcd_port: u16) {
    let options = [
        "--patroni",
        patroni,
        "--ttl",
        "20",
        "--loop-wait",
        "1",
        "--name",
        "proxy",
    ];
    let cluster = Cluster::start(base, etcd_port, &options);
    let leader = cluster.node(&cluster.leader());
    let others: Vec<Node> = cluster.replicas().iter().map(|name| cluster.node(name)).collect();
    let dead = Dead::new();
    let (_dir, clusters) = clusters(&cluster, &dead.before(&leader.rest), "");
    let options = Options {
        clusters: Some(clusters),
        listeners: Some(listener("master", MASTER, "tcp") + &listener("pg-master", PG_MASTER, "postgres")),
        extra: ROUTES.to_owned(),
        ..Options::default()
    };
    let router = Router::launch(None, options);
    router.await_read_write();
    let at = router.address;
    let [second, third] = others.try_into().unwrap();
    let scenarios = Scenarios {
        cluster,
        router,
        at,
        first: leader,
        second,
        third,
    };
    let mut master = scenarios.a_dead_endpoint_does_no_harm();
    scenarios.ports_are_added_by_a_reload(&mut master);
    scenarios.leader_and_replicas_are_served();
    scenarios.a_port_that_moves_keeps_its_sessions();
    scenarios.a_replica_that_comes_moves_nobody_and_one_that_lags_loses_its_own();
    scenarios.replicas_that_are_stopped_are_unused_until_they_run();
    scenarios.a_dead_replica_attracts_nobody();
    assert_eq!(master.server(), scenarios.first.address, "all this time");
    scenarios.the_leader_changes(master);
}

impl Scenarios {
    /// "failover", as they call it: two endpoints of three are dead.
    fn a_dead_endpoint_does_no_harm(&self) -> Session {
        let mut master = Session::open(self.at, MASTER).unwrap();
        for ping in 0..10 {
            assert_eq!(master.query(&format!("SELECT {ping}")), ping.to_string());
        }
        assert_eq!(master.server(), self.first.address);
        assert_eq!(
            Session::open(self.at, PG_MASTER).unwrap().server(),
            self.first.address
        );
        master
    }

    /// "reload".
    fn ports_are_added_by_a_reload(&self, master: &mut Session) {
        assert!(TcpStream::connect((self.at, REPLICAS)).is_err());
        let more = listener("replicas", REPLICAS, "tcp") + &listener("pg-replicas", PG_REPLICAS, "postgres");
        let more = more.replace("{address}", &self.at.to_string());
        reload(&self.router, |text| {
            text.replace("listeners:\n", &format!("listeners:\n{more}"))
        });
        assert_eq!(master.server(), self.first.address);
        // At once, not after the next look at the cluster.
        for port in [REPLICAS, PG_REPLICAS] {
            assert_eq!(
                Session::open(self.at, port)
                    .unwrap()
                    .query("SELECT pg_is_in_recovery()"),
                "t"
            );
        }
    }

    /// "basic-proxy", and what the scenario on replicas has in its title only: the fewest
    /// connections.
    fn leader_and_replicas_are_served(&self) {
        for (master, replicas) in [(MASTER, REPLICAS), (PG_MASTER, PG_REPLICAS)] {
            assert_eq!(
                spread(self.at, master, 4).1,
                HashMap::from([(self.first.address.clone(), 4)])
            );
            await_only(self.at, replicas, &[&self.second, &self.third]);
            await_nobody(&self.router, "replicas");
            let (_held, places) = spread(self.at, replicas, 10);
            let each = [&self.second, &self.third].map(|node| (node.address.clone(), 5));
            assert_eq!(places, HashMap::from(each), "{replicas}");
        }
    }

    fn a_port_that_moves_keeps_its_sessions(&self) {
        let mut stays = Session::open(self.at, REPLICAS).unwrap();
        let (from, to) = (format!("{}:{REPLICAS}", self.at), format!("{}:6533", self.at));
        reload(&self.router, |text| text.replace(&from, &to));
        assert_eq!(
            Session::open(self.at, 6533)
                .unwrap()
                .query("SELECT pg_is_in_recovery()"),
            "t"
        );
        eventually("the old one is closed", LIMIT, || {
            TcpStream::connect((self.at, REPLICAS)).is_err()
        });
        assert_eq!(stays.query("SELECT 1"), "1");
        // Another route on the same address: that session keeps the one it came by.
        let (master, replicas) = ("route: master, mode: tcp", "route: replicas, mode: tcp");
        reload(&self.router, |text| text.replace(replicas, master));
        assert_eq!(Session::open(self.at, 6533).unwrap().server(), self.first.address);
        assert_eq!(stays.query("SELECT pg_is_in_recovery()"), "t");
        let other = format!("{to}\", {master}");
        reload(&self.router, |text| {
            text.replace(&other, &format!("{from}\", {replicas}"))
        });
        assert_eq!(stays.query("SELECT pg_is_in_recovery()"), "t");
        assert_eq!(
            Session::open(self.at, REPLICAS)
                .unwrap()
                .query("SELECT pg_is_in_recovery()"),
            "t"
        );
    }

    /// "replicas".
    fn a_replica_that_comes_moves_nobody_and_one_that_lags_loses_its_own(&self) {
        let Self {
            cluster,
            at,
            first,
            second,
            third,
            ..
        } = self;
        first.sql("CREATE TABLE wal (text text); CREATE TABLE held (n int); GRANT SELECT ON held TO app");
        second.sql("ALTER SYSTEM SET max_standby_streaming_delay = -1");
        second.sql("SELECT pg_reload_conf()");
        cluster.control("kill", &[&third.name]);
        let ports = [(REPLICAS, true), (PG_REPLICAS, false)];
        let mut on_second = Vec::new();
        for (port, is_forwarded) in ports {
            await_only(*at, port, &[second]);
            on_second.push((Session::open(*at, port).unwrap(), is_forwarded));
        }
        cluster.control("start", &[&third.name]);
        let mut on_third = Vec::new();
        for (port, _) in ports {
            await_only(*at, port, &[second, third]);
            on_third.push(on(*at, port, third));
        }
        for (session, _) in &mut on_second {
            assert_eq!(session.server(), second.address, "who was there before stays");
        }

        // A reader of the server's own holds replay up.
        let mut holds = Session::open(second.address.parse().unwrap(), second.port).unwrap();
        holds.query("BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ");
        holds.query("SELECT count(*) FROM held");
        first.sql("ALTER TABLE held ADD COLUMN more int");
        for _ in 0..8 {
            // The other one keeps up.
            first.sql("INSERT INTO wal SELECT repeat('x', 1000) FROM generate_series(1, 400)");
            let written = first.sql("SELECT pg_current_wal_lsn()");
            let replayed = format!("SELECT pg_last_wal_replay_lsn() >= '{written}'");
            eventually("it is replayed", LIMIT, || third.sql(&replayed) == "t");
        }
        for (session, is_forwarded) in &mut on_second {
            is_ended(session, *is_forwarded, "is too far behind the leader");
        }
        for ((port, _), session) in ports.iter().zip(&mut on_third) {
            await_only(*at, *port, &[third]);
            assert_eq!(session.server(), third.address);
        }
        holds.query("COMMIT");
        for (port, _) in ports {
            await_only(*at, port, &[second, third]);
        }
    }

    /// Both of "state-filter".
    fn replicas_that_are_stopped_are_unused_until_they_run(&self) {
        let Self {
            cluster,
            router,
            at,
            second,
            third,
            ..
        } = self;
        // Patroni starts it again at once, so that it has to fail.
        let settings = |node: &Node| format!("{}/{}/data/postgresql.auto.conf", cluster.dir(), node.name);
        let stop = |node: &Node| {
            let text = fs::read_to_string(settings(node)).unwrap();
            fs::write(settings(node), format!("{text}nonsense = 1\n")).unwrap();
            cluster.control("stop-postgres", &[&node.name]);
            text
        };
        let state = |node: &Node| {
            let members = router.http("/api/v1/members").unwrap().1;
            let members: serde_json::Value = serde_json::from_str(&members).unwrap();
            let members = members.as_array().unwrap().clone();
            let member = members
                .into_iter()
                .find(|member| member["name"] == node.name.as_str());
            member.unwrap()["state"].as_str().unwrap().to_owned()
        };
        let runs = ["running", "streaming", "in archive recovery"];
        let of_second = stop(second);
        eventually("Patroni says so", LIMIT, || {
            !runs.contains(&state(second).as_str())
        });
        for port in [REPLICAS, PG_REPLICAS] {
            await_only(*at, port, &[third]);
        }
        let of_third = stop(third);
        eventually("Patroni says so", LIMIT, || {
            !runs.contains(&state(third).as_str())
        });
        for (master, replicas) in [(MASTER, REPLICAS), (PG_MASTER, PG_REPLICAS)] {
            let told = Session::refused(*at, replicas);
            assert_eq!(told.code, "57P03", "{told:?}");
            assert!(
                told.hint.contains(&second.name) && told.hint.contains(&third.name),
                "{told:?}"
            );
            assert_eq!(Session::open(*at, master).unwrap().query("SELECT 1"), "1");
        }
        fs::write(settings(second), of_second).unwrap();
        fs::write(settings(third), of_third).unwrap();
        let whole = |node: &Node| node.sql_try("SELECT 1").is_some();
        eventually("they are started", LIMIT, || whole(second) && whole(third));
        assert_eq!(router.http("/update_clusters"), Some((200, "OK".to_owned())));
        for port in [REPLICAS, PG_REPLICAS] {
            await_only(*at, port, &[second, third]);
        }
    }

    /// "Black hole": nobody else's connection is lost to it.
    fn a_dead_replica_attracts_nobody(&self) {
        let Self {
            cluster,
            at,
            second,
            third,
            ..
        } = self;
        cluster.control("kill", &[&third.name]);
        for port in [REPLICAS, PG_REPLICAS] {
            let (_held, places) = spread(*at, port, 20);
            assert_eq!(places, HashMap::from([(second.address.clone(), 20)]), "{port}");
        }
        cluster.control("start", &[&third.name]);
        cluster.control("wait", &[]);
        await_only(*at, REPLICAS, &[second, third]);
    }

    /// What they do not test.
    fn the_leader_changes(&self, mut master: Session) {
        let Self {
            cluster,
            at,
            first,
            second,
            third,
            ..
        } = self;
        let mut told = Session::open(*at, PG_MASTER).unwrap();
        await_nobody(&self.router, "replicas");
        let (mut readers, _) = spread(*at, REPLICAS, 4);
        assert_eq!(
            cluster.control("switchover", &["--to", &second.name]).trim(),
            second.name
        );
        assert!(master.end(Duration::from_secs(10)).closed);
        assert_eq!(told.end(Duration::from_secs(10)).ended().code, "57P01");
        for port in [MASTER, PG_MASTER] {
            eventually("the new leader serves", LIMIT, || {
                Session::open(*at, port).is_ok_and(|mut session| session.server() == second.address)
            });
        }
        eventually("who read from the new leader is cut off", LIMIT, || {
            readers.retain_mut(Session::is_open);
            readers.len() == 2
        });
        for session in &mut readers {
            assert_eq!(session.server(), third.address);
        }
        await_only(*at, REPLICAS, &[first, third]);
    }
}

#[test]
fn its_scenarios_with_patroni_4_1() {
    scenarios("4.1", "127.0.52.11", 14240);
}

#[test]
fn its_scenarios_with_patroni_3_0() {
    scenarios("3.0", "127.0.53.11", 14260);
}

/// Those above, and tests that there are.
#[test]
fn every_line_of_the_tables_names_tests() {
    let mut sources = String::new();
    for folder in ["src", "tests"] {
        let mut folders = vec![project().join(folder)];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|extension| extension == "rs") {
                    sources += &fs::read_to_string(path).unwrap();
                }
            }
        }
    }
    let lines: Vec<&str> = include_str!("patroni_proxy.rs")
        .lines()
        .filter_map(|line| line.strip_prefix("//! | "))
        .filter(|line| !line.ends_with("| shown by |"))
        .collect();
    assert!(lines.len() > 40, "{}", lines.len());
    for line in lines {
        let (_, shown) = line.split_once(" | ").unwrap();
        let names: Vec<&str> = shown.split('`').skip(1).step_by(2).collect();
        assert!(!names.is_empty(), "{line}");
        for name in names {
            assert!(sources.contains(&format!("fn {name}(")), "{name}");
        }
    }
}
