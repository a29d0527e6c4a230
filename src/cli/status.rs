//! `trunkline status`: what is going on, on one screen, and whether all is well as exit code.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command's answer to the person who runs it"
)]

#[cfg(test)]
pub(super) mod scene;
pub(super) mod screen;
pub(super) mod seen;
pub(super) mod verdict;

use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use self::seen::Seen;
use self::verdict::{Verdict, Wellness, code};
use super::plain::plain_json;
use super::remote::{Fault, Remote};
use super::screen::Colour;

/// Time limit of each of the few questions.
const ANSWER: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
pub(super) struct Status {
    #[command(flatten)]
    remote: Remote,
    /// Whether to colour the lines.
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    color: Colour,
}

/// 0: all is well. 1: something is not as it should be. 2: clients of a route find no server, or
/// the router does not answer or refuses the question, or it cannot be asked.
pub(super) fn run(command: &Status) -> ExitCode {
    let asked = command
        .remote
        .router_within(ANSWER)
        .map_err(Fault::Unasked)
        .and_then(|router| Seen::ask(&router, &command.remote));
    let seen = match asked {
        Ok(seen) => seen,
        Err(fault) => {
            let (word, lead) = match fault {
                Fault::Unasked(_) => ("not asked", "NOT ASKED: "),
                Fault::Silent(_) => (Wellness::NoService.word(), "NO ANSWER: "),
                Fault::Refused(_) => ("refused", ""),
            };
            let problem = fault.words();
            if command.remote.json {
                let document =
                    serde_json::json!({"result": word, "problems": [{"severity": word, "text": problem}]});
                println!("{}", plain_json(format_args!("{document:#}")));
            } else {
                eprintln!("{lead}{problem}");
            }
            return code(Wellness::NoService);
        }
    };
    let verdict = Verdict::of(&seen);
    let text = if command.remote.json {
        plain_json(format_args!("{:#}\n", verdict.document(&seen)))
    } else {
        let width = width();
        let lines = screen::lines(&seen, &verdict, width.unwrap_or(usize::MAX));
        let painted = lines
            .iter()
            .map(|line| line.painted(width, command.color.is_on()) + "\n");
        painted.collect()
    };
    // Who reads only the beginning has closed the pipe.
    let _ = io::stdout().write_all(text.as_bytes());
    code(verdict.wellness())
}

/// `None`: not a terminal, and nothing is cut.
fn width() -> Option<usize> {
    if !io::stdout().is_terminal() {
        return None;
    }
    let (width, _) = crossterm::terminal::size().ok()?;
    Some(usize::from(width)).filter(|width| *width > 0)
}
