//! psql through the router to a real Patroni cluster.
#![allow(clippy::unwrap_used)]

use crate::cluster::{Cluster, Router};

#[test]
fn the_read_write_port_is_the_leader_and_the_read_only_port_a_replica() {
    let (cluster, router) = (Cluster::shared(), Router::shared());
    let leader = cluster.node(&cluster.leader());
    let where_and_what =
        "SELECT host(inet_server_addr()), pg_is_in_recovery(), current_setting('transaction_read_only')";
    assert_eq!(
        router.psql(6432, where_and_what),
        format!("{}|f|off", leader.address)
    );
    let read_only = router.psql(6433, where_and_what);
    let replicas: Vec<String> = cluster
        .replicas()
        .iter()
        .map(|name| format!("{}|t|on", cluster.node(name).address))
        .collect();
    assert!(
        replicas.contains(&read_only),
        "{read_only} is none of {replicas:?}"
    );
}
