//! HAProxy before three nodes with a router beside each, in the three ways of `config/`, all at
//! once: through the routers, straight to the servers with the routers as health targets, and
//! likewise with Patroni's paths.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::balancer::{Access, HaProxy, State, Visitors, WAYS};
use super::cluster::{Cluster, Options, Router, eventually, pause};
use super::session::{Session, spread};

/// Patroni's ttl and the election, with room for a busy machine.
const FAILOVER: Duration = Duration::from_mins(1);
/// From the moment that the routers agree until HAProxy does: three checks, 3 s apart, and what is
/// under way; with room.
const MARKED: Duration = Duration::from_secs(20);
/// Until HAProxy gives up a host that is silent: three checks that wait 5 s each, 3 s apart; with
/// room.
const SILENCE: Duration = Duration::from_secs(40);

struct Site {
    cluster: Cluster,
    /// By node. `None` is dead, or does not answer.
    routers: BTreeMap<String, Option<Router>>,
    haproxies: Vec<HaProxy>,
    visitors: Vec<Visitors>,
}

impl Site {
    fn build(base: &str, etcd_port: u16) -> Self {
        let options = ["--ttl", "20", "--loop-wait", "2", "--name", "balanced"];
        let cluster = Cluster::start(base, etcd_port, &options);
        let nodes = cluster.nodes();
        let routers = nodes
            .iter()
            .map(|node| (node.name.clone(), Some(beside(&cluster, &node.name))));
        let routers: BTreeMap<_, _> = routers.collect();
        for router in routers.values().flatten() {
            router.await_ready();
        }
        let haproxies = WAYS.iter().map(|way| HaProxy::start(way, &nodes)).collect();
        Self {
            cluster,
            routers,
            haproxies,
            visitors: Vec::new(),
        }
    }

    fn address(&self, name: &str) -> String {
        self.cluster.node(name).address
    }

    /// What the statistics page must show, going by the routers themselves.
    fn expected(&self, haproxy: &HaProxy, access: Access) -> BTreeMap<String, bool> {
        let ask = |router: &Option<Router>| {
            let answer = router.as_ref()?.http(haproxy.way.question(access))?;
            Some(answer.0 == 200)
        };
        self.routers
            .iter()
            .map(|(name, router)| (name.clone(), ask(router).unwrap_or_default()))
            .collect()
    }

    fn disagreement(&self) -> Option<String> {
        for haproxy in &self.haproxies {
            for access in Access::BOTH {
                let states = haproxy.states(access);
                for (name, up) in self.expected(haproxy, access) {
                    let state = states.get(&name);
                    // Nothing in between, such as `UP 2/3`, and checked by now.
                    let settled = state.is_some_and(|state| {
                        state.status == if up { "UP" } else { "DOWN" } && state.check != "INI"
                    });
                    if !settled {
                        return Some(format!(
                            "{haproxy:?} {access:?} {name} {state:?}, the router: {up}"
                        ));
                    }
                }
            }
        }
        None
    }

    /// HAProxy shows what the routers say, then applications find what they came for, and nothing
    /// else: writers the leader, readers all of `replicas` and nobody else. Returns since when.
    fn settle(&self, leader: &str, replicas: &BTreeSet<String>) -> Instant {
        let began = Instant::now();
        while let Some(last) = self.disagreement() {
            assert!(began.elapsed() < MARKED, "{last}");
            pause(Duration::from_millis(50));
        }
        let settled = Instant::now();
        eprintln!(
            "HAProxy's states are those of the routers after {:?}",
            settled - began
        );
        self.show_the_roles(leader, replicas);
        for visitors in &self.visitors {
            let wanted = match visitors.access {
                Access::Write => BTreeSet::from([self.address(leader)]),
                Access::Read => replicas.iter().map(|name| self.address(name)).collect(),
            };
            eventually(
                &format!("{visitors:?} come to all of {wanted:?}"),
                Duration::from_secs(20),
                || {
                    let visits = visitors.since(settled);
                    visits.len() >= 10 && {
                        let places: BTreeSet<_> = visits.into_iter().map(|visit| visit.server).collect();
                        places.is_superset(&wanted)
                    }
                },
            );
        }
        self.kept(settled, leader, replicas);
        settled
    }

    /// The statistics page, against who leads in truth.
    fn show_the_roles(&self, leader: &str, replicas: &BTreeSet<String>) {
        for haproxy in &self.haproxies {
            for access in Access::BOTH {
                let up = |(name, state): (String, State)| state.is_up().then_some(name);
                let up: BTreeSet<String> = haproxy.states(access).into_iter().filter_map(up).collect();
                let expected = match access {
                    _ if haproxy.way.routed => self.alive(),
                    Access::Write => BTreeSet::from([leader.to_owned()]),
                    Access::Read => replicas.clone(),
                };
                assert_eq!(up, expected, "{haproxy:?} {access:?}");
            }
        }
    }

    fn alive(&self) -> BTreeSet<String> {
        let alive = self.routers.iter().filter(|(_, router)| router.is_some());
        alive.map(|(name, _)| name.clone()).collect()
    }

    /// Since `settled` nobody was astray.
    fn kept(&self, settled: Instant, leader: &str, replicas: &BTreeSet<String>) {
        let leader = self.address(leader);
        let replicas: BTreeSet<_> = replicas.iter().map(|name| self.address(name)).collect();
        for visitors in &self.visitors {
            for visit in visitors.since(settled) {
                match visitors.access {
                    Access::Write => {
                        assert!(
                            visit.server == leader && !visit.in_recovery && visit.wrote,
                            "{visit:?}"
                        );
                    }
                    Access::Read => {
                        assert!(replicas.contains(&visit.server) && visit.in_recovery, "{visit:?}");
                    }
                }
            }
        }
    }

    /// Until a router that lives names a leader other than `old`, verified.
    fn another_leads(&self, old: &str) -> String {
        let old = self.address(old);
        let mut new = String::new();
        eventually("another leader", FAILOVER, || {
            let mut routers = self.routers.values().flatten();
            routers.any(|router| {
                let (_, leaders) = router.http("/group/read-write-info").unwrap_or_default();
                let leaders: serde_json::Value = serde_json::from_str(&leaders).unwrap_or_default();
                let Some(name) = leaders[0]["name"].as_str() else {
                    return false;
                };
                name.clone_into(&mut new);
                leaders[0]["host"] != old.as_str()
            })
        });
        new
    }

    fn others(&self, but: &[&str]) -> BTreeSet<String> {
        let names = self.routers.keys().filter(|name| !but.contains(&name.as_str()));
        names.cloned().collect()
    }

    /// What holds at every moment, whatever happens.
    fn always(&self) {
        for visitors in &self.visitors {
            let mut astray = 0;
            let visits = visitors.all();
            for visit in visits.iter().filter(|visit| visit.is_astray(visitors.access)) {
                astray += 1;
                if visitors.way.routed {
                    // A standby may be promoted between the login and the question; the session is
                    // told to leave.
                    assert!(
                        visitors.access == Access::Read && visit.ended,
                        "through a router: {visit:?}"
                    );
                    continue;
                }
                let nodes = self.cluster.nodes();
                let on = nodes.iter().find(|node| node.address == visit.server).unwrap();
                assert!(
                    !visit.down.contains(&on.name),
                    "on a server that was marked down: {visit:?}"
                );
            }
            eprintln!(
                "{visitors:?}: {} visits, {astray} astray before HAProxy knew",
                visits.len()
            );
        }
    }
}

fn beside(cluster: &Cluster, name: &str) -> Router {
    Router::launch(
        Some(cluster),
        Options {
            address: Some(cluster.node(name).address.parse().unwrap()),
            cluster_extra: format!("local_member: {name}"),
            ..Options::default()
        },
    )
}

#[test]
fn haproxy_in_front_follows_the_leader_in_all_three_ways() {
    let mut site = Site::build("127.0.50.11", 14200);
    let first = site.cluster.leader();
    site.cluster
        .node(&first)
        .sql("CREATE TABLE visits (n int); GRANT ALL ON visits TO app");
    site.settle(&first, &site.others(&[&first]));
    for haproxy in &site.haproxies {
        let (_sessions, places) = spread(haproxy.address, 5011, 12);
        assert_eq!(places.len(), 2, "{haproxy:?}");
        assert!(
            places.values().all(|sessions| *sessions == 6),
            "{haproxy:?}: {places:?}"
        );
    }
    let visitors = site
        .haproxies
        .iter()
        .flat_map(|haproxy| Access::BOTH.map(|access| Visitors::start(haproxy, access)));
    site.visitors = visitors.collect();
    let replicas = site.others(&[&first]);
    let settled = site.settle(&first, &replicas);

    the_leaders_host_dies(&mut site, &first, settled);
    let second = site.cluster.leader();
    it_comes_back(&mut site, &first, &second);
    let third = a_switchover(&site, &second, &first);
    the_leaders_host_goes_silent(&mut site, &third);
    site.always();
}

fn the_leaders_host_dies(site: &mut Site, dead: &str, settled: Instant) {
    let replicas = site.others(&[dead]);
    site.kept(settled, dead, &replicas);
    let begun = Instant::now();
    site.cluster.control("kill", &[dead]);
    site.routers.insert(dead.to_owned(), None);
    let new = site.another_leads(dead);
    let named = Instant::now();
    eprintln!("{new} leads {:?} after the death of {dead}", begun.elapsed());
    site.settle(&new, &site.others(&[dead, &new]));
    written_after(site, &new, named);
}

/// How long writers of each way had to wait for HAProxy.
fn written_after(site: &Site, leader: &str, named: Instant) {
    let leader = site.address(leader);
    for visitors in &site.visitors {
        if visitors.access == Access::Write {
            let visits = visitors.since(named);
            let first = visits.iter().find(|visit| visit.server == leader && visit.wrote);
            let waited = first.unwrap().began - named;
            eprintln!("{visitors:?} write {waited:?} after the routers know of the new leader");
            assert!(waited < MARKED, "{visitors:?}: {waited:?}");
        }
    }
}

fn it_comes_back(site: &mut Site, back: &str, leader: &str) {
    site.cluster.control("start", &[back]);
    let router = beside(&site.cluster, back);
    site.routers.insert(back.to_owned(), Some(router));
    site.cluster.control("wait", &[]);
    let replica = || {
        let router = site.routers[back].as_ref().unwrap();
        let answer = router.http("/node/is-read-only");
        answer.is_some_and(|(status, _)| status == 200)
    };
    eventually("it is a replica", FAILOVER, replica);
    site.settle(leader, &site.others(&[leader]));
}

fn a_switchover(site: &Site, old: &str, new: &str) -> String {
    let mut idle: Vec<Session> = site
        .haproxies
        .iter()
        .map(|haproxy| Session::open(haproxy.address, 5010).unwrap())
        .collect();
    assert_eq!(site.cluster.control("switchover", &["--to", new]).trim(), new);
    let named = Instant::now();
    assert_eq!(site.another_leads(old), new);
    for session in &mut idle {
        assert_eq!(session.end(Duration::from_secs(5)).ended().code, "57P01");
    }
    site.cluster.control("wait", &[]);
    let back = || {
        let router = site.routers[old].as_ref().unwrap();
        let answer = router.http("/node/is-read-only");
        answer.is_some_and(|(status, _)| status == 200)
    };
    eventually("the old leader is a replica", FAILOVER, back);
    site.settle(new, &site.others(&[new]));
    written_after(site, new, named);
    new.to_owned()
}

/// Sessions that stay open while the leader's host goes silent.
struct Standing {
    haproxy: usize,
    access: Access,
    /// The node whose router, or whose server, HAProxy gave it.
    node: String,
    server: String,
    session: Session,
}

/// Opens sessions until there is one on each side: HAProxy took `node` for it, and another.
fn standing(site: &Site, haproxy: usize, access: Access, node: &str) -> Vec<Standing> {
    let balancer = &site.haproxies[haproxy];
    let mut found: BTreeMap<bool, Standing> = BTreeMap::new();
    // Straight to the servers, the leader's host has no readers and nobody else has writers.
    let sides = if balancer.way.routed { 2 } else { 1 };
    eventually("sessions on both sides", Duration::from_secs(20), || {
        let mut session = Session::open(balancer.address, access.port()).unwrap();
        let server = session.server();
        let name = if balancer.way.routed {
            let process: u64 = session.query("SELECT pg_backend_pid()").parse().unwrap();
            via(site, process, &server)
        } else {
            let nodes = site.cluster.nodes();
            nodes
                .into_iter()
                .find(|node| node.address == server)
                .unwrap()
                .name
        };
        found.entry(name == node).or_insert(Standing {
            haproxy,
            access,
            node: name,
            server,
            session,
        });
        found.len() == sides
    });
    found.into_values().collect()
}

/// The node whose router has the session with this process of a server.
fn via(site: &Site, process: u64, server: &str) -> String {
    let on = |router: &Router| {
        let (_, sessions) = router.http("/api/v1/sessions").unwrap();
        let sessions: serde_json::Value = serde_json::from_str(&sessions).unwrap();
        sessions.as_array().unwrap().iter().any(|session| {
            let member = session["member"].as_str().unwrap_or_default();
            session["process_id"] == process && site.address(member) == server
        })
    };
    let mut routers = site.routers.iter();
    let found = routers.find(|(_, router)| router.as_ref().is_some_and(on));
    found.unwrap().0.clone()
}

fn the_leaders_host_goes_silent(site: &mut Site, silent: &str) {
    let settled = site.settle(silent, &site.others(&[silent]));
    let mut sessions = Vec::new();
    for haproxy in 0..site.haproxies.len() {
        for access in Access::BOTH {
            sessions.extend(standing(site, haproxy, access, silent));
        }
    }
    site.kept(settled, silent, &site.others(&[silent]));

    // Its kernel accepts connections, and nobody answers. Nothing is reset.
    let begun = Instant::now();
    let router = site.routers.insert(silent.to_owned(), None).flatten().unwrap();
    router.signal("STOP");
    site.cluster.control("freeze", &[silent]);
    let new = site.another_leads(silent);
    let named = Instant::now();
    eprintln!("{new} leads {:?} after the silence of {silent}", begun.elapsed());
    sessions.sort_by_key(|standing| standing.node != silent);
    for standing in &mut sessions {
        let haproxy = &site.haproxies[standing.haproxy];
        let what = format!(
            "{haproxy:?} {:?} given to {}, on {}",
            standing.access, standing.node, standing.server
        );
        if standing.node == silent {
            // Nobody but HAProxy can have ended it, and a balancer has no words.
            let end = standing.session.end(SILENCE);
            assert!(end.closed && end.frames.is_empty(), "{what}: {end:?}");
            let state = &haproxy.states(standing.access)[silent];
            assert!(!state.is_up(), "{what}: {state:?}");
            eprintln!("{what}: closed within {:?}, {state:?}", begun.elapsed());
        } else if standing.server == site.address(silent) || standing.server == site.address(&new) {
            // Its server has lost, or changed, its role. HAProxy marks the writers' section of
            // every router down while there is no leader, and may be the first to close.
            let end = standing.session.end(MARKED);
            assert!(end.closed, "{what}: {end:?}");
            let router_says_so = haproxy.way.routed && standing.access == Access::Read;
            if router_says_so || !end.frames.is_empty() {
                assert_eq!(end.ended().code, "57P01", "{what}");
            }
        } else {
            assert_eq!(
                standing.session.query("SELECT pg_is_in_recovery()"),
                "t",
                "{what}: no concern of it"
            );
        }
    }
    let replicas = site.others(&[silent, &new]);
    let settled = site.settle(&new, &replicas);
    written_after(site, &new, named);

    // For a moment it believes that it leads; by then HAProxy has to be convinced.
    site.cluster.control("thaw", &[silent]);
    router.signal("CONT");
    site.routers.insert(silent.to_owned(), Some(router));
    site.cluster.control("wait", &[]);
    let back = || {
        let router = site.routers[silent].as_ref().unwrap();
        let answer = router.http("/node/is-read-only");
        answer.is_some_and(|(status, _)| status == 200)
    };
    eventually("the silent one is a replica", FAILOVER, back);
    site.kept(settled, &new, &site.others(&[&new]));
    site.settle(&new, &site.others(&[&new]));
}
