//! The router before a real Patroni cluster that the tests share and leave as it is.

#[path = "../cluster/mod.rs"]
mod cluster;

mod cancel;
mod drivers;
mod fake;
mod front;
mod hand;
mod idle;
mod main_job;
mod raw;
mod relay;
mod tools;
mod transparent;
