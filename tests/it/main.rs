//! The router before a real Patroni cluster that the tests share and leave as it is.

#[path = "../cluster/mod.rs"]
mod cluster;

mod auth;
mod bad_input;
mod checks;
mod drivers;
mod front;
mod main_job;
mod raw;
mod tools;
