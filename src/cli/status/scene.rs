//! What a router of a cluster of three says, for tests.

use serde_json::{Value, json};

use super::seen::{ClusterSeen, Seen};
use crate::admin::SessionView;
use crate::cli::administer::understood;

fn member(name: &str, is_leader: bool) -> Value {
    json!({
        "name": name, "cluster": "main", "host": "10.0.0.1", "port": 5432,
        "role": if is_leader { "leader" } else { "replica" }, "leader": is_leader, "state": "streaming", "timeline": 3,
        "lag": if is_leader { Value::Null } else { json!(0) }, "lag_seconds": null, "tags": {}, "status": "UP",
        "check": {"status": "L7OK", "text": "answered in 0.6 ms", "in_a_row": 2, "age_ms": 412},
        "admin": "ready", "weight": 1, "zone": null, "sessions": 1, "server_connections": 2,
        "routes": [{"route": "rw", "fit": is_leader, "reason": if is_leader { "leader" } else { "is not the leader" }}],
    })
}

/// All is well.
pub(in crate::cli) fn sound() -> Seen {
    let read = |value: Value| understood(&value).expect("as the router answers");
    let about = json!({
        "name": "main", "leader": {"member": "db1", "timeline": 3, "named_by": "leader key"}, "no_leader": null,
        "members": ["db1", "db2", "db3"], "paused": false, "version": 1, "system_identifier": "7",
        "source": {"disagreement": null, "error": null, "reachable": true},
    });
    let members = json!([member("db1", true), member("db2", false), member("db3", false)]);
    Seen {
        router: understood(&json!({
            "state": "ready", "ready": true, "reason": null, "sessions": 3, "process_id": 4711, "version": "0.1.0",
            "disabled_routes": [], "holds": [],
        }))
        .expect("as the router answers"),
        clusters: vec![ClusterSeen {
            about: understood(&about).expect("as the router answers"),
            members: understood(&members).expect("as the router answers"),
        }],
        routes: read(json!([{"name": "rw", "cluster": "main", "access": "read-write", "admin": "enabled",
            "paused_s": null, "pool": "transaction", "members": ["db1"], "sessions": 3, "hold": null}])),
        pools: understood(&json!([{"route": "rw", "cluster": "main", "user": "app", "database": "app",
            "max_connections": 20, "reserve": 0, "waiting": 0, "longest_wait_ms": 0, "router_process_id": 4711,
            "members": [{"member": "db1", "idle": 3, "leased": 2, "opening": 0, "pinned": 0, "pins": {},
                         "idle_connections": []}]}]))
        .expect("as the router answers"),
        holds: Vec::new(),
        events: vec![
            json!({"number": 1, "time_ms": 1_764_457_200_123_u64, "level": "info", "text": "started", "event": "started"}),
            json!({"number": 2, "time_ms": 1_764_457_201_123_u64, "level": "warn", "text": "db9 is down: no",
                   "event": "member_down", "cluster": "main", "member": "db9"}),
        ],
        health: None,
    }
}

/// A session of `app` on `db1`.
pub(in crate::cli) fn session(
    id: u64,
    state: &str,
    age_s: u64,
    transactions: u64,
    bytes: u64,
) -> SessionView {
    understood(&json!({
        "id": id, "client": format!("10.0.0.9:{id}"), "user": "app", "database": "app", "cluster": "main", "route": "rw",
        "member": "db1", "process_id": 7, "state": state, "phase": "relaying", "pins": [], "held_s": null,
        "waiting_s": null, "age_s": age_s, "bytes_up": bytes, "bytes_down": 0, "transactions": transactions, "tls": null,
        "ending": null, "router_process_id": 4711,
    }))
    .expect("as the router answers")
}
