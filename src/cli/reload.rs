//! `trunkline reload -c FILE`: the running process is to take the configuration as it is now, and says what came of it.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command's answer to the person who runs it"
)]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use serde::de::DeserializeOwned;

use crate::admin::ReloadAnswer;
use crate::config;
use crate::runtime::RELOAD;

/// Longer than a reload or an upgrade takes: clusters have 10 s to look around, passphrase commands 10 s each.
const PATIENCE: Duration = Duration::from_mins(3);
/// More than an answer has.
const MOST: u64 = 16 * 1024 * 1024;

/// 0: it is in force, but for what needs a restart. 1: it is refused, or nobody could be asked.
pub(super) fn run(path: &Path) -> ExitCode {
    let config = match config::load(path) {
        Ok(config) => config,
        Err(faults) => {
            eprintln!("{faults}");
            eprintln!("not reloaded: {} has faults", path.display());
            return ExitCode::FAILURE;
        }
    };
    let Some(socket) = &config.control_socket else {
        eprintln!("not reloaded: control_socket is not set; send SIGHUP to the process and look at its log");
        return ExitCode::FAILURE;
    };
    match ask(socket, RELOAD) {
        Ok(answer) => tell(&answer),
        Err(error) => {
            eprintln!("not reloaded: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Asks the process whose control socket is at `path`, and waits for its answer.
pub(super) fn ask<Answer: DeserializeOwned>(path: &Path, request: &str) -> anyhow::Result<Answer> {
    let mut socket =
        UnixStream::connect(path).with_context(|| format!("nobody answers on {}", path.display()))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.write_all(request.as_bytes())?;
    let mut line = String::new();
    socket.take(MOST).read_to_string(&mut line)?;
    if line.is_empty() {
        bail!("the process hung up: it is ending, or belongs to another user");
    }
    Ok(serde_json::from_str(&line)?)
}

fn tell(answer: &ReloadAnswer) -> ExitCode {
    for change in &answer.changed {
        println!("changed: {change}");
    }
    for key in &answer.restart {
        println!("needs a restart: {key}");
    }
    for fault in &answer.faults {
        eprintln!("{fault}");
    }
    if answer.applied {
        println!("reloaded");
        ExitCode::SUCCESS
    } else {
        eprintln!("not reloaded: what was in force stays");
        ExitCode::FAILURE
    }
}
