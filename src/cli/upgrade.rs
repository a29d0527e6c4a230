//! `trunkline upgrade -c FILE`: makes the running process start the program that is installed now,
//! and hand over everything except its sessions.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command's answer to the person who runs it"
)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::plain::{plain, plain_lines};
use super::reload::{ask, check_file};
use crate::config;
use crate::runtime::{UPGRADE, UpgradeAnswer};

/// 0: a new process serves. 1: the old one does, or no process answered. `socket`: in place of the
/// configured one.
pub(super) fn run(path: &Path, socket: Option<PathBuf>) -> ExitCode {
    let config = match config::load(path) {
        Ok(config) => config,
        Err(errors) => {
            eprintln!("{}", plain_lines(errors));
            eprintln!("not upgraded: {} has errors", path.display());
            return ExitCode::FAILURE;
        }
    };
    let Some(socket) = socket.or(config.control_socket) else {
        eprintln!(
            "not upgraded: control_socket is not set in {}. An upgrade needs it: set it and restart the router, or give --socket",
            path.display()
        );
        return ExitCode::FAILURE;
    };
    if let Err(error) = check_file(&socket, path) {
        eprintln!("not upgraded: {}", plain(format_args!("{error:#}")));
        return ExitCode::FAILURE;
    }
    match ask::<UpgradeAnswer>(&socket, UPGRADE) {
        Ok(answer) => tell(&answer),
        Err(error) => {
            eprintln!("not upgraded: {}", plain(format_args!("{error:#}")));
            ExitCode::FAILURE
        }
    }
}

fn tell(answer: &UpgradeAnswer) -> ExitCode {
    let old = answer.old_process_id;
    if let Some(new) = answer.process_id {
        println!(
            "upgraded: process {new} ({}, before: {}) serves",
            plain(&answer.release),
            plain(&answer.old_release)
        );
        match (answer.sessions, answer.other_connections) {
            (0, 0) => println!("process {old} has no session and ends"),
            (0, others) => println!(
                "process {old} has no session, and ends when its other connections (logins, clients that wait for a \
                 server) have ended: {others}"
            ),
            (1, _) => println!("process {old} ends when its 1 session has ended"),
            (sessions, _) => println!("process {old} ends when its {sessions} sessions have ended"),
        }
        return ExitCode::SUCCESS;
    }
    for error in &answer.faults {
        eprintln!("{}", plain_lines(error));
    }
    eprintln!("not upgraded: process {old} continues");
    ExitCode::FAILURE
}
