//! `run --detach`: starts what it was called as without that, tells its number, and ends when it is told to, so that the new
//! process is a child of nobody but who takes in orphans: the service manager.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the answer to the process that runs it"
)]

use std::io::{self, Read};
use std::process::{Command, ExitCode, Stdio};

pub(super) fn run() -> ExitCode {
    let mut arguments = std::env::args_os();
    let program = arguments.next().unwrap_or_default();
    let started = Command::new(program)
        .args(arguments.filter(|argument| argument != "--detach"))
        .stdin(Stdio::null())
        // Whoever reads this process's waits for its end.
        .stdout(Stdio::from(io::stderr()))
        .spawn();
    match started {
        Ok(new) => {
            println!("{}", new.id());
            // Until then nobody else has its number, also if it has ended.
            let _ = io::stdin().read(&mut [0]);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("not started: {error}");
            ExitCode::FAILURE
        }
    }
}
