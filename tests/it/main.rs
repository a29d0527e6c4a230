//! The router before a real Patroni cluster that the tests share and leave as it is.
#![allow(
    unreachable_pub,
    clippy::duration_suboptimal_units,
    clippy::float_cmp,
    clippy::large_stack_arrays,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "tests: a failure stops them, what they measure is printed, counters are whole numbers"
)]

#[path = "../cluster/mod.rs"]
mod cluster;

mod abuse;
mod administration;
mod auth;
mod bad_input;
mod binding;
mod book;
mod cancel;
mod cancel_storm;
mod certificates;
mod checks;
mod commands;
mod configurations;
mod console;
mod console_inventory;
mod console_kept;
mod console_orders;
mod console_pgbouncer;
mod console_views;
mod doctor;
mod documents;
mod drained;
mod drivers;
mod endings;
mod etcd;
mod fake;
mod file_rights;
mod fresh_answers;
mod front;
mod hand;
mod handover;
mod health;
mod hostile;
mod http_share;
mod idle;
mod import;
mod leaving;
mod led;
mod limits;
mod live;
mod looking;
mod main_job;
mod methods;
mod metrics;
mod mutating;
mod orders;
mod pauses;
mod places;
mod pool_operations;
mod pooling;
mod proxied_tls;
mod proxy_protocol;
mod raw;
mod relay;
mod reload;
mod reload_doors;
mod resume;
mod routing;
mod server_proof;
mod service_account;
mod service_manager;
mod shown;
mod stalled;
mod tcp;
mod tls;
mod tools;
mod transparent;
mod unix;
