//! What clients see while a cluster changes or breaks, and when the router itself goes: real
//! Patroni, 3.0 and 4.1.
//!
//! A test that breaks a cluster starts its own, on addresses and ports that no other uses; they may
//! run side by side.
#![allow(
    clippy::unwrap_used,
    clippy::duration_suboptimal_units,
    clippy::print_stderr,
    unreachable_pub,
    reason = "a test that cannot go on says so and fails"
)]

#[path = "../cluster/mod.rs"]
mod cluster;

mod arming;
mod balancer;
mod cancel;
mod choosing;
mod dcs;
mod death;
mod fake;
mod forward;
mod haproxy;
mod keepalived;
mod lag;
mod netns;
mod orders;
mod page;
mod patroni_proxy;
mod pooled;
mod probes;
mod recorded;
mod recorder;
mod replication;
mod rest_tls;
mod session;
mod shutdown;
mod standby;
mod switchover;
mod writers;
