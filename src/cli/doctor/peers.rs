//! The other routers: each answers, has the same secret, and serves the same clusters.

use std::io;
use std::sync::Arc;

use futures_util::future::join_all;

use crate::cluster::examine::Finding;
use crate::cluster::snapshot::MemberName;
use crate::config::Config;
use crate::session::peers::{Served, VERSION, greet, served};

pub(super) async fn findings(config: &Config) -> Vec<Finding> {
    let Some(peers) = &config.peers else {
        return Vec::new();
    };
    let greeted = greet(peers).await.into_iter();
    greeted
        .map(|(peer, greeted)| {
            let what = format!("peer {} at {}:{}", peer.name, peer.host, peer.port);
            match greeted {
                Ok(VERSION) => Finding::good(what, "answers, with the same secret"),
                Ok(version) => Finding::remark(
                    what,
                    format!("answers in version {version} of the peer protocol, this release has {VERSION}"),
                    "upgrade all routers to the same release",
                ),
                Err(error) => unreached(what, &error),
            }
        })
        .collect()
}

/// What a cluster is, by its servers.
#[derive(Debug, Clone)]
pub(super) struct Identity {
    pub(super) cluster: Arc<str>,
    pub(super) system_identifier: u64,
    pub(super) leader: Option<MemberName>,
}

/// Whether each peer serves each of the clusters, and has the leader among its members. Peers that
/// do not answer are left out: [`findings`] has them.
pub(super) async fn clusters(config: &Config, identities: &[Identity]) -> Vec<Finding> {
    let Some(peers) = &config.peers else {
        return Vec::new();
    };
    let asked = identities.iter().map(async |identity| {
        let leader = identity.leader.as_ref().map_or("", MemberName::as_str);
        let answers = served(peers, identity.system_identifier, leader).await;
        let findings = answers
            .into_iter()
            .map(|(peer, answer)| same_cluster(&peer, identity, answer));
        findings.collect::<Vec<Finding>>()
    });
    join_all(asked).await.concat()
}

fn same_cluster(peer: &str, identity: &Identity, answer: Served) -> Finding {
    let what = format!("peer {peer}: cluster {}", identity.cluster);
    let number = identity.system_identifier;
    match (answer, &identity.leader) {
        (Served::Unknown, _) => Finding::remark(
            what,
            format!("it serves no cluster with the system identifier {number}"),
            "routers that are peers serve the same clusters: compare the endpoints in both configurations, or remove the \
             peer. If it has just started, it has seen no leader yet: ask again",
        ),
        (Served::WithoutMember, Some(leader)) => Finding::remark(
            what,
            format!("it serves the cluster, and does not list the leader {leader}"),
            "compare what both routers list (`trunkline members`): one of them may be cut off, or ask an old endpoint",
        ),
        (Served::WithMember(Some(state)), Some(leader)) => Finding::remark(
            what,
            format!("it serves the same cluster, where the leader {leader} {state}"),
            format!("run `trunkline ready {leader}` there when the work is done"),
        ),
        (Served::WithoutMember | Served::WithMember(_), _) => {
            Finding::good(what, format!("it serves the same one ({number})"))
        }
        (Served::Unsaid(why), _) => Finding::untried(what, why),
    }
}

fn unreached(what: String, error: &io::Error) -> Finding {
    use io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, NotFound, TimedOut, UnexpectedEof};
    match error.kind() {
        ConnectionRefused => Finding::remark(
            what,
            "no router listens there now",
            "start it, or correct peers.members: host and port are those of a PostgreSQL listener of that router",
        ),
        TimedOut => Finding::remark(
            what,
            "it did not answer in time",
            "is the host up, and does a firewall let this host connect to that port?",
        ),
        UnexpectedEof | ConnectionReset | BrokenPipe => Finding::bad(
            what,
            "it hung up on the question of a peer",
            "give all routers the same peers.secret_file, and list this router's address at that one",
        ),
        NotFound => Finding::bad(what, error, "correct the name in peers.members"),
        _ => Finding::bad(
            what,
            error,
            "is it a router's PostgreSQL listener? peers.members needs the port of clients, not that of HTTP",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_of_another_cluster_or_with_another_leader_is_remarked() {
        let identity = |leader: Option<&str>| Identity {
            cluster: "main".into(),
            system_identifier: 7,
            leader: leader.map(MemberName::new),
        };
        let told = |leader: Option<&str>, answer| same_cluster("two", &identity(leader), answer).to_string();
        let good = "ok      peer two: cluster main: it serves the same one (7)";
        assert_eq!(told(Some("db1"), Served::WithMember(None)), good);
        assert_eq!(told(None, Served::WithoutMember), good);
        let unknown = told(Some("db1"), Served::Unknown);
        assert!(
            unknown.starts_with("remark  peer two: cluster main: it serves no cluster with"),
            "{unknown}"
        );
        let elsewhere = told(Some("db1"), Served::WithoutMember);
        assert!(elsewhere.contains("does not list the leader db1"), "{elsewhere}");
        let drained = told(Some("db1"), Served::WithMember(Some("is being drained")));
        assert!(
            drained.contains("the leader db1 is being drained") && drained.contains("trunkline ready db1"),
            "{drained}"
        );
        assert!(told(None, Served::Unsaid("old".to_owned())).starts_with("untried"));
    }
}
