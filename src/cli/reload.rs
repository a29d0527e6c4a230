//! `trunkline reload -c FILE`: makes the running process reload its configuration, and prints the
//! result.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command's answer to the person who runs it"
)]

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use serde::de::DeserializeOwned;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::admin::ReloadAnswer;
use crate::config;
use crate::runtime::{FILE, FileAnswer, RELOAD};

/// Longer than a reload or an upgrade takes: clusters have 10 s to find their members, passphrase
/// commands 10 s each.
const PATIENCE: Duration = Duration::from_mins(3);
/// The limit for connecting and for sending the request.
const CONNECT: Duration = Duration::from_secs(10);
/// More than any answer.
const MOST: u64 = 16 * 1024 * 1024;

/// 0: it is in force, but for what needs an upgrade or a restart. 1: it is rejected, or no process
/// answered.
pub(super) fn run(path: &Path) -> ExitCode {
    let config = match config::load(path) {
        Ok(config) => config,
        Err(errors) => {
            eprintln!("{errors}");
            eprintln!("not reloaded: {} has errors", path.display());
            return ExitCode::FAILURE;
        }
    };
    let Some(socket) = &config.control_socket else {
        eprintln!("not reloaded: control_socket is not set; send SIGHUP to the process and look at its log");
        return ExitCode::FAILURE;
    };
    if let Err(error) = check_file(socket, path) {
        eprintln!("not reloaded: {error:#}");
        return ExitCode::FAILURE;
    }
    match ask(socket, RELOAD) {
        Ok(answer) => tell(&answer),
        Err(error) => {
            eprintln!("not reloaded: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The process whose control socket is at `socket` must read this configuration file: what it does
/// would have nothing to do with another one.
pub(super) fn check_file(socket: &Path, path: &Path) -> anyhow::Result<()> {
    let asked: Option<FileAnswer> = ask_any(socket, FILE)?;
    // A process of an older version does not know the question.
    let Some(FileAnswer { path: own }) = asked else {
        return Ok(());
    };
    if is_same(&own, path) {
        return Ok(());
    }
    bail!(
        "the running process reads {}, not {}: give that file with -c, or start a process with this one",
        own.display(),
        path.display()
    );
}

fn is_same(one: &Path, two: &Path) -> bool {
    // Also over bind mounts.
    let inode = |path: &Path| fs::metadata(path).ok().map(|found| (found.dev(), found.ino()));
    let real = |path: &Path| fs::canonicalize(path).ok();
    real(one) == real(two) && real(two).is_some() || inode(one).is_some() && inode(one) == inode(two)
}

/// Asks the process whose control socket is at `path`, and waits for its answer.
pub(super) fn ask<Answer: DeserializeOwned>(path: &Path, request: &str) -> anyhow::Result<Answer> {
    match ask_any(path, request)? {
        Some(answer) => Ok(answer),
        None => bail!("the process closed the connection: it is ending, or belongs to another user"),
    }
}

/// `None`: the process closed the connection, perhaps because it does not know the request.
fn ask_any<Answer: DeserializeOwned>(path: &Path, request: &str) -> anyhow::Result<Option<Answer>> {
    let mut socket = connect(path, CONNECT)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.write_all(request.as_bytes())?;
    let mut line = String::new();
    let read = socket.take(MOST).read_to_string(&mut line);
    read.map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => {
            anyhow!(
                "the process has not answered within {} s; its log may say why",
                PATIENCE.as_secs()
            )
        }
        _ => error.into(),
    })?;
    if line.is_empty() {
        return Ok(None);
    }
    Ok(Some(serde_json::from_str(&line)?))
}

/// Connects within `limit`: the queue of a process that is stopped may be full.
fn connect(path: &Path, limit: Duration) -> anyhow::Result<UnixStream> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_write_timeout(Some(limit))?;
    match socket.connect(&SockAddr::unix(path)?) {
        Ok(()) => Ok(socket.into()),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            bail!(
                "the process that listens on {} does not accept: it may be stopped",
                path.display()
            )
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => bail!(
            "the running process has no control socket at {}: it was started without this `control_socket`, or no router \
             runs here. Reload with SIGHUP; the socket exists after a restart",
            path.display()
        ),
        Err(error) => Err(error).with_context(|| format!("no process answers on {}", path.display())),
    }
}

fn tell(answer: &ReloadAnswer) -> ExitCode {
    for change in &answer.changed {
        println!("changed: {change}");
    }
    for key in &answer.restart {
        println!("takes effect after `trunkline upgrade` (sessions stay) or a restart: {key}");
    }
    for error in &answer.faults {
        eprintln!("{error}");
    }
    if answer.applied {
        println!("reloaded");
        ExitCode::SUCCESS
    } else {
        eprintln!("not reloaded: the previous configuration stays in force");
        ExitCode::FAILURE
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_process_that_does_not_accept_is_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control");
        let stopped = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        stopped.bind(&SockAddr::unix(&path).unwrap()).unwrap();
        stopped.listen(0).unwrap();
        let limit = Duration::from_millis(10);
        let mut waiting = Vec::new();
        let refused = loop {
            match connect(&path, limit) {
                Ok(socket) => waiting.push(socket),
                Err(error) => break error.to_string(),
            }
            assert!(waiting.len() < 100, "the queue has no end");
        };
        assert!(
            refused.contains("does not accept: it may be stopped"),
            "{refused}"
        );
        drop(stopped);
        let refused = connect(&path, limit).unwrap_err().to_string();
        assert!(refused.starts_with("no process answers on"), "{refused}");
        fs::remove_file(&path).unwrap();
        let refused = connect(&path, limit).unwrap_err().to_string();
        assert!(
            refused.starts_with("the running process has no control socket at"),
            "{refused}"
        );
        assert!(refused.contains("Reload with SIGHUP"), "{refused}");
    }
}
