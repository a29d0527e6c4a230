//! Composes the rooms: threads, signals, readiness, drain.
//!
//! ```text
//! main      control: sources, probes, look-ups, accept loops, signals
//! worker-N  sessions, each on one worker
//! admin     HTTP
//! ```
//! A shutdown has phases, each with a time limit: not ready (`shutdown.delay`), stop accepting, end
//! sessions at their next boundary, cut the remaining sessions, exit. A process that is replaced by
//! another one stops accepting and exits when its sessions have finished. It stays ready until
//! then, because the service is.

mod accept_handler;
mod activation;
mod administration;
mod control;
mod files;
pub(crate) mod handover;
mod hold_events;
mod holding;
mod inventory;
mod limits;
mod listeners;
mod notify;
mod pauses;
mod process;
mod processes;
mod running;
mod running_hold;
mod running_orders;
mod service;
mod shutdown;
mod start;
mod state_file;
mod supervisor;
mod switchover;
mod switchover_plan;
mod switchover_sessions;
mod upgrade;
mod workers;

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;

use crate::admin;
use crate::cluster::LagLimits;
use crate::config::Config;
use crate::events::Events;
use shutdown::Signals;
use start::Begin;
use upgrade::Program;

pub(crate) use crate::session::MOST_KEPT_BYTES;
pub(crate) use control::{FILE, FileAnswer, RELOAD, UPGRADE, UpgradeAnswer};
pub(crate) use limits::needed as descriptors_needed;

/// Serves until SIGTERM or SIGINT, or until another process has replaced this one and the last
/// session has finished. `take_over` is the control socket of a process that this one replaces.
///
/// # Errors
/// The process cannot start: a port is in use, or a thread cannot be started. Once it serves it
/// does not fail.
pub fn run(config: Config, take_over: Option<&Path>) -> anyhow::Result<()> {
    // Before anything opens a descriptor: the passed ones are known by number only.
    let inherited = activation::sockets()?;
    let program = Program::of_this_process();
    let log = admin::log::init(&config.log)?;
    let _flush = log.at_end();
    limits::raise_open_files(&config.limits);
    let control = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let begin = Begin {
        config: Arc::new(config),
        events: Events::new(),
        log,
        program,
        inherited,
        take_over: take_over.map(Path::to_owned),
    };
    let outcome = control.block_on(serve(begin));
    // A passphrase command may still run: nothing waits for it.
    control.shutdown_background();
    outcome
}

async fn serve(begin: Begin) -> anyhow::Result<()> {
    let mut signals = Signals::listen(begin.events.clone()).context("cannot listen for signals")?;
    let mut hangup = shutdown::hangup().context("cannot listen for signals")?;
    let sockets = begin.bind(&mut signals).await?;
    let prepared = sockets.prepare(&mut signals).await?;
    let running = prepared.open(&mut signals).await?;
    running.until_end(&mut signals, &mut hangup).await;
    Ok(())
}

/// Whether a state file can be used; `Err` is a sentence.
pub(crate) fn check_state_file(path: &Path) -> Result<(), String> {
    state_file::read(path)
        .map(|_| ())
        .map_err(|error| error.to_string())
}

/// `max_lag` of the routes to a cluster.
fn lag_limits(config: &Config, cluster: &str) -> LagLimits {
    let routes = config.routes.values().filter(|route| &*route.cluster == cluster);
    routes
        .filter_map(|route| Some((Arc::clone(&route.name), route.max_lag?)))
        .collect()
}
