//! `trunkline pause` and `trunkline unpause`.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command's answer to the person who runs it"
)]

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::remote::{Remote, encoded};
use super::tables::session_table;
use super::words::{counted, time_up_to};
use crate::admin::{Activity, PauseReport, SessionView};
use crate::config::shown_duration;

/// For the answer, after the wait.
const ANSWER: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
pub(super) struct Pause {
    /// The route's name.
    route: String,
    #[command(flatten)]
    remote: Remote,
    /// At the peers, too.
    #[arg(long)]
    all_peers: bool,
    /// How long to wait for open transactions, up to 1h: `500ms`, `5s`, `2m`; a number alone is
    /// seconds.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = |text: &str| time_up_to(text, 3600))]
    wait: Duration,
    /// How long the pause lasts, if nobody ends it, up to 1h: `30s`, `5m`; a number alone is
    /// seconds.
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = |text: &str| time_up_to(text, 3600))]
    timeout: Duration,
}

#[derive(Debug, Args)]
pub(super) struct Unpause {
    /// The route's name.
    route: String,
    #[command(flatten)]
    remote: Remote,
    /// At the peers, too.
    #[arg(long)]
    all_peers: bool,
}

pub(super) fn pause(command: &Pause) -> ExitCode {
    shown(paused(command))
}

pub(super) fn unpause(command: &Unpause) -> ExitCode {
    let Unpause {
        route,
        remote,
        all_peers,
    } = command;
    let path = format!("/api/v1/routes/{}/unpause", encoded(route));
    let done = remote
        .router()
        .and_then(|router| router.change(&path, Some(&json!({"all_peers": all_peers}))))
        .and_then(report);
    shown(done.map(|report| {
        if report.was_paused {
            println!("{route}: it is not paused any more");
        } else {
            println!("{route}: it was not paused");
        }
        report.missing.is_empty()
    }))
}

fn shown(done: Result<bool, String>) -> ExitCode {
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(problem) => {
            eprintln!("{problem}");
            ExitCode::FAILURE
        }
    }
}

fn paused(command: &Pause) -> Result<bool, String> {
    let Pause { route, remote, .. } = command;
    let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let body = json!({
        "all_peers": command.all_peers,
        "wait_ms": milliseconds(command.wait),
        "timeout_ms": milliseconds(command.timeout),
    });
    let router = remote.router_within(command.wait + ANSWER)?;
    let path = format!("/api/v1/routes/{}/pause", encoded(route));
    let report = report(router.change(&path, Some(&body))?)?;
    match report.unaffected {
        0 => {}
        1 => eprintln!("1 session is not held and may go on: it is pinned, or the route has resume: off"),
        count => {
            eprintln!(
                "{count} sessions are not held and may go on: they are pinned, or the route has resume: off"
            );
        }
    }
    if report.open == 0 {
        println!("{route}: paused, and no transaction is open");
        println!("{}", next_step(command));
        return Ok(report.missing.is_empty());
    }
    let verb = if report.open == 1 { "is" } else { "are" };
    println!(
        "{route}: paused, and {} {verb} still open",
        counted(report.open, "transaction")
    );
    println!("{}", next_step(command));
    let path = format!("/api/v1/sessions{}", remote.query(&[("route", Some(route))]));
    let sessions = router.look(&path)?;
    let mut sessions: Vec<SessionView> =
        serde_json::from_value(sessions).map_err(|_| "the router's answer makes no sense".to_owned())?;
    sessions.retain(|session| session.state != Activity::Idle && !session.member.is_empty());
    print!("{}", session_table(&sessions));
    Ok(false)
}

/// Until when, and what ends it.
fn next_step(command: &Pause) -> String {
    let everywhere = if command.all_peers { " --all-peers" } else { "" };
    format!(
        "clients wait for {} at most, from now on whatever an earlier pause said; `trunkline unpause {}{everywhere}` lets them go on",
        shown_duration(command.timeout),
        command.route
    )
}

fn report(answer: Value) -> Result<PauseReport, String> {
    let report: PauseReport =
        serde_json::from_value(answer).map_err(|_| "the router's answer makes no sense".to_owned())?;
    for missing in &report.missing {
        eprintln!("not everywhere: {missing}");
    }
    Ok(report)
}
