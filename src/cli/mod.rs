//! The command line: `run`, `reload`, `upgrade`, `check`, `doctor`, `hba`, `import`, `schema`,
//! `completions`, and what shows and administers a running router.
//!
//! Guarantees: exit code 0 is success, 1 is an error that standard error explains, 2 is a wrong
//! command line. No secret is ever taken from an argument.

mod administer;
mod before_stop;
pub mod check;
mod completions;
mod detach;
mod doctor;
mod events;
mod exist;
mod hba;
pub(crate) mod import;
#[cfg(test)]
mod man;
mod pause;
mod plain;
mod reload;
mod remote;
mod schema;
mod screen;
mod status;
mod switchover;
mod table;
mod tables;
mod top;
mod upgrade;
mod words;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue};
use clap::{Parser, Subcommand};

use crate::admin::log::say;
use crate::{config, runtime};

/// A connection manager for PostgreSQL high-availability clusters.
#[derive(Debug, Parser)]
#[command(name = "trunkline", version, about, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve clients until SIGTERM or SIGINT.
    Run {
        /// The configuration file.
        #[arg(short, long, value_name = "FILE")]
        config: PathBuf,
        /// Replace the process with this control socket; `trunkline upgrade` uses this.
        #[arg(long, value_name = "SOCKET")]
        take_over: Option<PathBuf>,
        /// Start such a process detached from this one, print its process id, and end.
        #[arg(long, hide = true, requires = "take_over")]
        detach: bool,
    },
    /// Read a configuration and report every error in it, with path and line.
    Check {
        /// The configuration file.
        #[arg(short, long, value_name = "FILE")]
        config: PathBuf,
        /// Also try the endpoints, the service account and its rights.
        #[arg(long)]
        connect: bool,
    },
    /// Look for everything that a start needs, and for what would surprise somebody later.
    ///
    /// One line for each thing: `ok`, `note`, `warn`, `fail` or `skip`, what was found, and what to
    /// do. It changes nothing, and may run beside the router. Exits with 1 if something fails;
    /// warnings are 0.
    Doctor(doctor::Doctor),
    /// Show on one screen what is going on, and whether all is well.
    ///
    /// Exits with 0 if all is well, with 1 if something is not as it should be, and with 2 if
    /// clients of a route find no server, or the router does not answer or refuses the question.
    Status(status::Status),
    /// Show what happened to the router and its clusters.
    Events(events::Events),
    /// Show members, routes and sessions, live.
    Top(top::Top),
    /// Make the running process reload its configuration, and print the result.
    Reload {
        /// The configuration file that the process was started with.
        #[arg(short, long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Replace the running process with a new one, of any version, without refusing a connection.
    Upgrade {
        /// The configuration file that the process was started with.
        #[arg(short, long, value_name = "FILE")]
        config: PathBuf,
        /// The control socket of the process, if `control_socket` has changed since it started.
        #[arg(long, value_name = "PATH")]
        socket: Option<PathBuf>,
    },
    /// Show which authentication rule applies to a client, and why.
    Hba {
        /// The configuration file.
        #[arg(short, long, value_name = "FILE")]
        config: PathBuf,
        #[command(flatten)]
        client: hba::Client,
    },
    /// Convert another program's configuration to Trunkline's, and list what has no equivalent.
    Import(import::Arguments),
    /// Print the configuration's JSON Schema (draft 2020-12).
    Schema,
    /// Print a script that completes this command line in a shell.
    Completions {
        /// The shell that reads the script.
        shell: completions::Shell,
    },
    /// Hold the clients of this host's member, whose server is about to be stopped.
    ///
    /// For Patroni's `postgresql.before_stop`. Returns when no transaction is open there or the
    /// grace is over. Always exits with 0.
    BeforeStop(before_stop::BeforeStop),
    /// Make another member the leader, while clients wait.
    ///
    /// Clients of all routers are held, open transactions end, and Patroni is asked. Ctrl-C undoes
    /// everything until then.
    Switchover(switchover::Switchover),
    /// Let the clients of a route wait, and return when no transaction is open there.
    ///
    /// Exits with 1 if transactions are open after `--wait`, and shows whose; the route stays
    /// paused.
    Pause(pause::Pause),
    /// End the pause of a route.
    Unpause(pause::Unpause),
    #[command(flatten)]
    Administer(administer::Administer),
}

pub fn main() -> ExitCode {
    // Every TLS configuration names its provider; this is for libraries that ask for the default.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let arguments = Arguments::try_parse().map_err(with_our_word);
    match arguments.unwrap_or_else(|error| error.exit()).command {
        Command::Run { detach: true, .. } => detach::run(),
        Command::Run {
            config, take_over, ..
        } => run(&config, take_over.as_deref()),
        Command::Check { config, connect } => check::run(&config, connect),
        Command::Doctor(command) => doctor::run(&command),
        Command::Status(command) => status::run(&command),
        Command::Events(command) => events::run(&command),
        Command::Top(command) => top::run(&command),
        Command::Reload { config } => reload::run(&config),
        Command::Upgrade { config, socket } => upgrade::run(&config, socket),
        Command::Hba { config, client } => hba::run(&config, &client),
        Command::Import(arguments) => import::run(&arguments),
        Command::Schema => schema::run(),
        Command::Completions { shell } => completions::run(shell),
        Command::BeforeStop(command) => before_stop::run(&command),
        Command::Switchover(command) => switchover::run(&command),
        Command::Pause(command) => pause::pause(&command),
        Command::Unpause(command) => pause::unpause(&command),
        Command::Administer(command) => administer::run(&command),
    }
}

/// Commands of other programs, and the one that does the same here.
const OF_OTHERS: &[(&str, &str)] = &[("resume", "unpause")];

/// The error with the command that was probably meant.
fn with_our_word(mut error: clap::Error) -> clap::Error {
    let word = match error.get(ContextKind::InvalidSubcommand) {
        Some(ContextValue::String(word)) => word.as_str(),
        _ => return error,
    };
    if let Some((_, ours)) = OF_OTHERS.iter().find(|(theirs, _)| *theirs == word) {
        let ours = ContextValue::Strings(vec![(*ours).to_owned()]);
        error.insert(ContextKind::SuggestedSubcommand, ours);
    }
    error
}

// The log is not set up before the configuration is read: errors in it go to standard error as they
// are.
fn run(path: &Path, take_over: Option<&Path>) -> ExitCode {
    let config = match config::load(path) {
        Ok(config) => config,
        Err(errors) => {
            say(&format!("{errors}\nnot started: {} has errors", path.display()));
            return ExitCode::FAILURE;
        }
    };
    match runtime::run(config, take_over) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("not started: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_holds_together() {
        Arguments::command().debug_assert();
        for wrong in [
            "trunkline members",
            "trunkline members -c a --url b",
            "trunkline drain -c a",
            "trunkline close db1 -c a --now --grace 3",
            "trunkline members -c a --ca-file b",
        ] {
            assert!(Arguments::try_parse_from(wrong.split(' ')).is_err(), "{wrong}");
        }
        for right in [
            "trunkline weight db1 default -c a",
            "trunkline kill 7 --url http://h:1 --json",
        ] {
            assert!(Arguments::try_parse_from(right.split(' ')).is_ok(), "{right}");
        }
    }

    #[test]
    fn a_word_of_other_programs_leads_to_ours() {
        let told = Arguments::try_parse_from(["trunkline", "resume", "read-write", "-c", "a"]);
        let told = told.map_err(with_our_word).expect_err("no command").to_string();
        assert!(
            told.contains("subcommand 'resume'") && told.contains("'unpause'"),
            "{told}"
        );
    }
}
