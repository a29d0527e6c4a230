//! `trunkline events`: what happened to the router and its clusters, and with `--follow` what
//! happens from now on.
//!
//! Guarantees: each event of a router's process is printed once, in order, also over lost
//! connections; where the router does not keep an event any more, it says how many are missing.
//! The router is asked once a second at most.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::Value;

use super::plain::plain_json;
use super::remote::{Remote, Router};
use super::screen::Colour;
use super::status::screen::event_line;
use super::words::counted;

/// Between two questions.
const EVERY: Duration = Duration::from_secs(1);
/// The longest pause while the router does not answer.
const LONGEST: Duration = Duration::from_secs(5);
/// Time limit of a question while it follows.
const ANSWER: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
pub(super) struct Events {
    #[command(flatten)]
    remote: Remote,
    /// Go on until Ctrl-C, also while the router restarts. With --json each event is one line.
    #[arg(short, long)]
    follow: bool,
    /// Only events of this level, or a higher one.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    level: Level,
    /// Begin with the last so many events.
    #[arg(short = 'n', long, value_name = "COUNT")]
    lines: Option<usize>,
    /// Whether to colour the lines.
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    color: Colour,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum Level {
    Info,
    Warn,
    Error,
}

impl Events {
    /// Whether it is to be printed.
    fn wants(&self, event: &Value) -> bool {
        let level = match event["level"].as_str() {
            Some("error") => Level::Error,
            Some("warn") => Level::Warn,
            _ => Level::Info,
        };
        let cluster = self.remote.cluster.as_deref();
        level >= self.level && cluster.is_none_or(|wanted| event["cluster"] == wanted)
    }
}

pub(super) fn run(command: &Events) -> ExitCode {
    match follow(command) {
        // Nobody reads any more, at the latest.
        Ok(()) | Err(Stop::Unread) => ExitCode::SUCCESS,
        Err(Stop::Problem(problem)) => {
            complain(&problem);
            ExitCode::FAILURE
        }
    }
}

#[derive(Debug)]
enum Stop {
    Unread,
    Problem(String),
}

impl From<io::Error> for Stop {
    fn from(_: io::Error) -> Self {
        Self::Unread
    }
}

#[expect(clippy::print_stderr, reason = "for the person who runs the command")]
fn complain(text: &str) {
    eprintln!("{text}");
}

fn follow(command: &Events) -> Result<(), Stop> {
    let router = if command.follow {
        command.remote.router_within(ANSWER)
    } else {
        command.remote.router()
    };
    let router = router.map_err(Stop::Problem)?;
    let mut reader = Reader::default();
    let mut first = reader.read(&router).map_err(Stop::Problem)?;
    first.events.retain(|event| command.wants(event));
    if let Some(lines) = command.lines {
        first.events.drain(..first.events.len().saturating_sub(lines));
    }
    if !command.follow && command.remote.json {
        let all = Value::Array(first.events);
        writeln!(io::stdout().lock(), "{}", plain_json(format_args!("{all:#}")))?;
        return Ok(());
    }
    print(command, &first.events)?;
    let mut pause = EVERY;
    let mut is_lost = false;
    if !command.follow {
        return Ok(());
    }
    loop {
        router.pause(pause);
        match reader.read(&router) {
            Ok(read) => {
                if std::mem::take(&mut is_lost) {
                    complain("the router answers again");
                }
                pause = EVERY;
                for note in &read.notes {
                    complain(note);
                }
                let wanted: Vec<Value> = read
                    .events
                    .into_iter()
                    .filter(|event| command.wants(event))
                    .collect();
                print(command, &wanted)?;
            }
            Err(problem) => {
                if !std::mem::replace(&mut is_lost, true) {
                    complain(&format!("{problem}; it is asked again until it answers"));
                }
                pause = (pause * 2).min(LONGEST);
            }
        }
    }
}

fn print(command: &Events, events: &[Value]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for event in events {
        if command.remote.json {
            writeln!(out, "{}", plain_json(event))?;
        } else {
            writeln!(
                out,
                "{}",
                event_line(event, "").painted(None, command.color.is_on())
            )?;
        }
    }
    out.flush()
}

/// Reads each event once. A question repeats the last event that was read: if the answer does not
/// begin with it, another process answers, or the router does not keep it any more.
#[derive(Debug, Default)]
struct Reader {
    /// The last event: its number and time.
    last: Option<(u64, u64)>,
}

/// New events, and what there is to say about them.
#[derive(Debug, Default, PartialEq)]
struct Read {
    events: Vec<Value>,
    notes: Vec<String>,
}

impl Reader {
    fn read(&mut self, router: &Router) -> Result<Read, String> {
        self.read_from(|since| router.look(&format!("/api/v1/events?since={since}")))
    }

    fn read_from(&mut self, look: impl Fn(u64) -> Result<Value, String>) -> Result<Read, String> {
        let ask = |since: u64| match look(since)? {
            Value::Array(events) => Ok(events),
            _ => Err("the router's answer is not a list of events; is it of another version?".to_owned()),
        };
        let Some((number, at)) = self.last else {
            let events = ask(0)?;
            self.remember(&events);
            return Ok(Read {
                events,
                notes: Vec::new(),
            });
        };
        let mut events = ask(number.saturating_sub(1))?;
        let mut notes = Vec::new();
        match events.first().map(identity) {
            Some(first) if first == (number, at) => _ = events.remove(0),
            // It keeps the newest only, and there have been many.
            Some((first, _)) if first > number && !events.is_empty() => {
                let missing = first - number - 1;
                let (verb, them) = if missing == 1 {
                    ("is", "it")
                } else {
                    ("are", "them")
                };
                notes.push(format!(
                    "{} {verb} missing: the router does not keep {them} any more; its log has {them}",
                    counted(missing, "event")
                ));
            }
            _ => {
                notes.push(
                    "another process of the router answers now: its events are from its start; the log has those of the \
                     former one"
                        .to_owned(),
                );
                events = ask(0)?;
            }
        }
        self.remember(&events);
        Ok(Read { events, notes })
    }

    fn remember(&mut self, events: &[Value]) {
        if let Some(last) = events.last() {
            self.last = Some(identity(last));
        }
    }
}

fn identity(event: &Value) -> (u64, u64) {
    let number = |key: &str| event[key].as_u64().unwrap_or_default();
    (number("number"), number("time_ms"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    /// A process that keeps these events, each with its number and time.
    fn process(events: &[(u64, u64)]) -> impl Fn(u64) -> Result<Value, String> + use<> {
        let kept: Vec<(u64, u64)> = events.to_vec();
        move |since| {
            let newer = kept.iter().filter(|(number, _)| *number > since);
            Ok(newer
                .map(|(number, at)| json!({"number": number, "time_ms": at}))
                .collect())
        }
    }

    fn numbers(read: &Read) -> Vec<u64> {
        read.events.iter().map(|event| identity(event).0).collect()
    }

    #[test]
    fn each_event_is_read_once() {
        let mut reader = Reader::default();
        assert_eq!(reader.read_from(process(&[])).unwrap(), Read::default());
        assert_eq!(
            numbers(&reader.read_from(process(&[(1, 10), (2, 10)])).unwrap()),
            [1, 2]
        );
        assert_eq!(
            reader.read_from(process(&[(1, 10), (2, 10)])).unwrap(),
            Read::default()
        );
        let read = reader.read_from(process(&[(1, 10), (2, 10), (3, 11)])).unwrap();
        assert_eq!((numbers(&read), read.notes), (vec![3], Vec::new()));
        assert!(reader.read_from(|_| Err("gone".to_owned())).is_err());
        let read = reader.read_from(process(&[(3, 11), (4, 12)])).unwrap();
        assert_eq!(
            numbers(&read),
            [4],
            "a lost connection leaves no gap and no double"
        );
    }

    #[test]
    fn events_that_are_not_kept_any_more_are_counted() {
        let mut reader = Reader { last: Some((3, 11)) };
        let read = reader.read_from(process(&[(6, 20), (7, 21)])).unwrap();
        assert_eq!(numbers(&read), [6, 7]);
        assert!(
            read.notes[0].starts_with("2 events are missing"),
            "{:?}",
            read.notes
        );
    }

    #[test]
    fn one_event_is_missing_in_the_singular() {
        let mut reader = Reader { last: Some((3, 11)) };
        let read = reader.read_from(process(&[(5, 20)])).unwrap();
        assert!(
            read.notes[0].starts_with("1 event is missing"),
            "{:?}",
            read.notes
        );
    }

    #[test]
    fn another_process_is_read_from_its_start() {
        for events in [&[(1, 30), (2, 31)][..], &[(1, 30), (2, 31), (3, 32), (4, 33)]] {
            let mut reader = Reader { last: Some((3, 11)) };
            let read = reader.read_from(process(events)).unwrap();
            assert_eq!(numbers(&read).first(), Some(&1));
            assert_eq!(read.events.len(), events.len());
            assert!(read.notes[0].contains("another process"), "{:?}", read.notes);
            assert_eq!(reader.read_from(process(events)).unwrap(), Read::default());
        }
    }
}
