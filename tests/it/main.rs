//! The router before a real Patroni cluster that the tests share and leave as it is.

#[path = "../cluster/mod.rs"]
mod cluster;

mod fake;
mod idle;
mod main_job;
mod raw;
mod relay;
