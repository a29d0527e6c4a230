//! Composes the rooms: threads, signals, readiness, drain.
//!
//! ```text
//! main      control: sources, probes, look-ups, accept loops, signals
//! worker-N  sessions, each on the worker it was handed to
//! admin     HTTP
//! ```
//! Shutdown has phases, each bounded: not ready (`shutdown.delay`), stop accepting, end sessions at their next boundary, cut what is
//! left, exit. A process that another one replaces stops accepting, and exits when its sessions have finished; it is ready
//! to the end, as the service is.

mod accept_handler;
mod activation;
mod administration;
mod control;
mod files;
pub(crate) mod handover;
mod limits;
mod listeners;
mod notify;
mod process;
mod processes;
mod running;
mod service;
mod shutdown;
mod start;
mod state_file;
mod supervisor;
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

pub(crate) use control::{RELOAD, UPGRADE, UpgradeAnswer};

/// Serves until SIGTERM or SIGINT, or until another process does so in its place and the last session has finished.
/// With `take_over` it takes the place of the process whose control socket that is.
///
/// # Errors
/// What keeps it from starting: a port in use, a thread that cannot be made. Once it serves it does not fail.
pub fn run(config: Config, take_over: Option<&Path>) -> anyhow::Result<()> {
    // The first thing that has to do with descriptors: those passed by number are not others' yet.
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
    // A passphrase command may be under way: nothing waits for it.
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

/// `max_lag` of the routes to a cluster.
fn lag_limits(config: &Config, cluster: &str) -> LagLimits {
    let routes = config.routes.values().filter(|route| &*route.cluster == cluster);
    routes
        .filter_map(|route| Some((Arc::clone(&route.name), route.max_lag?)))
        .collect()
}
