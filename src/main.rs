//! Parses the command line, runs it, and gives the exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    trunkline::cli::main()
}
