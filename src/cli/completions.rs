//! `trunkline completions SHELL`: what a shell needs to complete the command line. Packages install
//! it where the shells look.

use std::io::{ErrorKind, Write, stdout};
use std::process::ExitCode;

use clap::{CommandFactory, ValueEnum};
use clap_complete::aot::{Bash, Fish, Zsh, generate};

use super::Arguments;

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Shell {
    Bash,
    Zsh,
    Fish,
}

#[allow(clippy::print_stderr, reason = "a command's answer to the person who runs it")]
pub(super) fn run(shell: Shell) -> ExitCode {
    match stdout().write_all(&script(shell)) {
        Ok(()) => ExitCode::SUCCESS,
        // The reader has seen enough.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("standard output cannot be written: {error}");
            ExitCode::FAILURE
        }
    }
}

fn script(shell: Shell) -> Vec<u8> {
    let mut command = Arguments::command();
    let mut script = Vec::new();
    match shell {
        Shell::Bash => generate(Bash, &mut command, "trunkline", &mut script),
        Shell::Zsh => generate(Zsh, &mut command, "trunkline", &mut script),
        Shell::Fish => generate(Fish, &mut command, "trunkline", &mut script),
    }
    script
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn each_script_completes_every_command_of_its_shell() {
        let commands = Arguments::command();
        for shell in Shell::value_variants() {
            let script = String::from_utf8(script(*shell)).unwrap();
            for command in commands
                .get_subcommands()
                .filter(|command| !command.is_hide_set())
            {
                assert!(
                    script.contains(command.get_name()),
                    "{shell:?}: {}",
                    command.get_name()
                );
            }
        }
    }
}
