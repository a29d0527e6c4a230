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

use anyhow::{Context, bail};
use serde::de::DeserializeOwned;
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::time::Instant;

use super::plain::{plain, plain_lines};
use crate::admin::ReloadAnswer;
use crate::config::{self, ConfigError};
use crate::runtime::{FILE, FileAnswer, RELOAD};

/// Longer than a reload or an upgrade takes: clusters have 10 s to find their members, passphrase
/// commands 10 s each.
const PATIENCE: Duration = Duration::from_mins(3);
/// The limit for connecting and for sending the request.
const CONNECT: Duration = Duration::from_secs(10);
const SILENT: &str = "the process has not answered within 3 minutes; its log may say why";
/// More than any answer: the longest one has an error for each of the 20,000 values that a
/// configuration may have.
const MOST: usize = 16 * 1024 * 1024;

/// 0: it is in force, but for what needs an upgrade or a restart. 1: it is rejected, or no process
/// answered.
///
/// The process is asked also if this command finds errors: so it refuses the file itself, and its
/// log, events, status and metrics say that.
pub(super) fn run(path: &Path) -> ExitCode {
    let (socket, errors) = match config::load(path) {
        Ok(config) => (config.control_socket, Vec::new()),
        Err(errors) => {
            eprintln!("{}", plain_lines(&errors));
            // Without the file's name: the process may know it by another one.
            let without_name = |error: &ConfigError| {
                let file = error.file.display().to_string();
                error.to_string().split_off(file.len())
            };
            let errors = errors.iter().map(without_name).collect();
            (config::find_control_socket(path), errors)
        }
    };
    let Some(socket) = &socket else {
        if errors.is_empty() {
            eprintln!(
                "not reloaded: control_socket is not set; send SIGHUP to the process and look at its log"
            );
        } else {
            eprintln!(
                "not reloaded: {} has errors. No control_socket can be read from it, so a running process was not asked, and \
                 keeps its configuration",
                path.display()
            );
        }
        return ExitCode::FAILURE;
    };
    let asked = check_file(socket, path).and_then(|()| ask(socket, RELOAD));
    match asked {
        Ok(answer) => tell(&answer, path, &errors),
        Err(error) if errors.is_empty() => {
            eprintln!("not reloaded: {}", plain(format_args!("{error:#}")));
            ExitCode::FAILURE
        }
        Err(error) => {
            let error = plain(format_args!("{error:#}"));
            eprintln!(
                "not reloaded: {} has errors, and no running process was asked: {error}",
                path.display()
            );
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
    socket.write_all(request.as_bytes())?;
    let line = read_answer(&mut socket, Instant::now() + PATIENCE, MOST)?;
    if line.is_empty() {
        return Ok(None);
    }
    Ok(Some(serde_json::from_slice(&line)?))
}

/// Reads until the other side closes the connection: until then, and no more than that.
fn read_answer(socket: &mut UnixStream, until: Instant, most: usize) -> anyhow::Result<Vec<u8>> {
    let mut answer = Vec::new();
    let mut part = [0; 16 * 1024];
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            bail!(SILENT);
        }
        socket.set_read_timeout(Some(left))?;
        match socket.read(&mut part) {
            Ok(0) => return Ok(answer),
            Ok(count) if answer.len() + count > most => {
                bail!("the process sends more than {most} bytes, and no more is read: it is no router")
            }
            Ok(count) => answer.extend_from_slice(&part[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => bail!(SILENT),
            Err(error) => return Err(error.into()),
        }
    }
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

/// `errors`: those that this command has found and printed, without the file's name.
fn tell(answer: &ReloadAnswer, path: &Path, errors: &[String]) -> ExitCode {
    for change in &answer.changed {
        println!("changed: {}", plain(change));
    }
    for key in &answer.restart {
        println!(
            "takes effect after `trunkline upgrade` (sessions stay) or a restart: {}",
            plain(key)
        );
    }
    let is_printed = |fault: &&String| errors.iter().any(|error| fault.ends_with(error));
    for error in answer.faults.iter().filter(|fault| !is_printed(fault)) {
        eprintln!("{}", plain_lines(error));
    }
    match (answer.applied, errors) {
        (true, []) => println!("reloaded"),
        (true, _) => {
            println!("reloaded: the running process does not find the errors that this command finds");
        }
        (false, []) => eprintln!("not reloaded: the previous configuration stays in force"),
        (false, _) => eprintln!(
            "not reloaded: {} has errors. The running process refuses it, and keeps its configuration",
            path.display()
        ),
    }
    if answer.applied {
        ExitCode::SUCCESS
    } else {
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
    #[test]
    fn an_answer_without_end_is_read_no_further() {
        let later = || Instant::now() + Duration::from_mins(1);
        let (mut here, mut there) = UnixStream::pair().unwrap();
        let endless = std::thread::spawn(move || while there.write_all(&[b'['; 4096]).is_ok() {});
        let told = read_answer(&mut here, later(), 10_000).unwrap_err().to_string();
        assert!(told.contains("more than 10000 bytes"), "{told}");
        drop(here);
        endless.join().unwrap();
        // Nor one that comes byte by byte for ever.
        let (mut here, mut there) = UnixStream::pair().unwrap();
        let slow = std::thread::spawn(move || while there.write_all(b" ").is_ok() {});
        let soon = Instant::now() + Duration::from_millis(50);
        let told = read_answer(&mut here, soon, usize::MAX).unwrap_err().to_string();
        assert_eq!(told, SILENT);
        drop(here);
        slow.join().unwrap();
        let (mut here, mut there) = UnixStream::pair().unwrap();
        there.write_all(b"{}").unwrap();
        drop(there);
        assert_eq!(read_answer(&mut here, later(), 2).unwrap(), b"{}");
    }
}
