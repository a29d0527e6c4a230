//! `run --detach`: starts the same command without `--detach`, prints its process id, and ends on
//! request, so that the new process becomes a child of the service manager, which adopts orphans.

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
        // The reader of this process's output waits for its end.
        .stdout(Stdio::from(io::stderr()))
        .spawn();
    match started {
        Ok(new) => {
            println!("{}", new.id());
            // Until then no other process gets its id, even if it has ended.
            let _ = io::stdin().read(&mut [0]);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("not started: {error}");
            ExitCode::FAILURE
        }
    }
}
