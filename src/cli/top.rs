//! `trunkline top`: members, routes and sessions, live.
//!
//! Guarantees: the terminal is as it was before, however this ends: by a key, a signal, a fault of
//! the program, or without a router. A router that does not answer blocks no key: one thread asks
//! it, one question at a time.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command's answer to the person who runs it"
)]

mod asking;
mod rates;
mod terminal;
mod view;

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use tokio::time::Instant;

use self::asking::{Answer, Asker, Look};
use self::rates::Rates;
use self::terminal::{Input, Terminal};
use self::view::{Action, View};
use super::plain::plain_json;
use super::remote::Remote;
use super::screen::{Colour, Line, Mood};
use super::words::time_within;

/// How long a key is waited for before the screen is looked at again.
const TICK: Duration = Duration::from_millis(100);
/// The size where nobody says it.
const SIZE: (usize, usize) = (80, 24);

#[derive(Debug, Args)]
pub(super) struct Top {
    #[command(flatten)]
    remote: Remote,
    /// The time between two looks, 200ms to 1h: `500ms`, `5s`, `1m`; a number alone is seconds.
    #[arg(short, long, value_name = "TIME", default_value = "2s", value_parser = delay)]
    delay: Duration,
    /// Print screens one after the other, and read no keys.
    #[arg(short, long)]
    batch: bool,
    /// How many screens, with --batch.
    #[arg(
        short = 'n',
        long,
        value_name = "COUNT",
        default_value = "1",
        requires = "batch"
    )]
    count: u32,
    /// Whether to colour the lines.
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    color: Colour,
}

fn delay(text: &str) -> Result<Duration, String> {
    time_within(text, Duration::from_millis(200), Duration::from_hours(1))
}

/// 0: it was ended by a key or a signal. 1: the router did not answer at all, or the terminal
/// cannot be used.
pub(super) fn run(command: &Top) -> ExitCode {
    let is_screen = std::io::stdout().is_terminal() && std::io::stdin().is_terminal();
    let ended = if command.batch || command.remote.json {
        batch(command, command.count, true)
    } else if is_screen {
        live(command)
    } else {
        eprintln!("this is not a terminal: one screen is printed (--batch -n COUNT prints more)");
        batch(command, 1, false)
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("{problem}");
            ExitCode::FAILURE
        }
    }
}

/// `with_rates`: a look comes before each screen, to compare with.
fn batch(command: &Top, count: u32, with_rates: bool) -> Result<(), String> {
    use std::io::Write as _;
    let mut asker = Asker::new(
        command.remote.router_within(asking::LIMIT)?,
        command.remote.clone(),
    );
    let view = View::default();
    let mut before: Option<Look> = None;
    if with_rates && !command.remote.json {
        before = Some(asker.look()?);
    }
    for number in 0..count {
        if before.is_some() || number > 0 {
            asker.pause(command.delay);
        }
        let look = asker.look()?;
        let mut text = String::new();
        if command.remote.json {
            text = plain_json(format_args!("{:#}\n", look.document()));
        } else {
            let rates = before.as_ref().map(|before| Rates::between(before, &look));
            let height = look.sessions.len().saturating_add(200);
            let mut lines = view.lines(&look, &rates.unwrap_or_default(), None, (SIZE.0, height));
            // The last one is about keys.
            lines.pop();
            for line in lines {
                text.push_str(&line.painted(None, command.color.is_on()));
                text.push('\n');
            }
            if number + 1 < count {
                text.push('\n');
            }
        }
        // Nobody reads any more.
        if std::io::stdout().lock().write_all(text.as_bytes()).is_err() {
            return Ok(());
        }
        before = Some(look);
    }
    Ok(())
}

fn live(command: &Top) -> Result<(), String> {
    let mut asker = Asker::new(
        command.remote.router_within(asking::LIMIT)?,
        command.remote.clone(),
    );
    // What is wrong with the command line is said before the screen changes.
    let mut look = asker.look()?;
    let asked = asker.in_background()?;
    let signals = terminal::signals()?;
    let mut terminal = Terminal::open().map_err(|error| format!("the terminal cannot be used: {error}"))?;
    let mut view = View::default();
    let mut rates = Rates::default();
    let mut lost: Option<(Instant, String)> = None;
    let (mut due, mut is_asked) = (Instant::now() + command.delay, false);
    let mut is_changed = true;
    loop {
        if is_changed {
            let lost = lost.as_ref().map(|(since, why)| {
                let text = format!(
                    "NO ANSWER for {} s, it is asked again: {why}",
                    since.elapsed().as_secs()
                );
                Line::new(Mood::Bad, &text)
            });
            let size = terminal.size().unwrap_or(SIZE);
            let lines = view.lines(&look, &rates, lost.as_ref(), size);
            terminal
                .draw(&lines, size, command.color.is_on())
                .map_err(|error| format!("the terminal is lost: {error}"))?;
        }
        if signals.have_come() {
            return Ok(());
        }
        is_changed = true;
        let input = terminal
            .input(TICK)
            .map_err(|error| format!("the terminal is lost: {error}"))?;
        match input {
            Input::Key(key) => match view.key(key, &look) {
                Action::Stay => {}
                Action::Look => due = Instant::now(),
                Action::Quit => return Ok(()),
                Action::Kill(id) => asked.kill(id),
            },
            Input::Resized => {}
            Input::Nothing => is_changed = lost.is_some(),
        }
        match asked.answer()? {
            Some(Answer::Look(Ok(newer))) => {
                lost = None;
                is_asked = false;
                rates = Rates::between(&look, &newer);
                look = *newer;
                view.keep_within(&look);
                is_changed = true;
            }
            Some(Answer::Look(Err(why))) => {
                is_asked = false;
                lost.get_or_insert((Instant::now(), String::new())).1 = why;
            }
            Some(Answer::Killed(said)) => {
                view.say(said);
                due = Instant::now();
                is_changed = true;
            }
            None => {}
        }
        if !is_asked && !view.is_paused() && Instant::now() >= due {
            is_asked = true;
            due = Instant::now() + command.delay;
            asked.look();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays() {
        assert_eq!(delay("2"), Ok(Duration::from_secs(2)));
        assert_eq!(delay("2s"), Ok(Duration::from_secs(2)));
        assert_eq!(delay("0.5"), Ok(Duration::from_millis(500)));
        for wrong in ["0", "0.1", "-1", "3601", "2h", "199ms", "nan", ""] {
            assert!(delay(wrong).is_err(), "{wrong}");
        }
    }
}
