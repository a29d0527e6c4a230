//! `trunkline schema`: the configuration's JSON Schema, for editors and other programs.

use std::io::{ErrorKind, Write, stdout};
use std::process::ExitCode;

use crate::config;

#[allow(clippy::print_stderr, reason = "a command's answer to the person who runs it")]
pub(super) fn run() -> ExitCode {
    match stdout().write_all(format!("{:#}\n", config::json_schema()).as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        // The reader has seen enough.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("standard output cannot be written: {error}");
            ExitCode::FAILURE
        }
    }
}
