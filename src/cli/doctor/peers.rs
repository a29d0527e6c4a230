//! The other routers: each answers, and has the same secret.

use std::io;

use crate::cluster::examine::Finding;
use crate::config::Config;
use crate::session::peers::{VERSION, greet};

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
