//! `trunkline before-stop`: for Patroni's `postgresql.before_stop`. Patroni waits for it and stops
//! PostgreSQL then, whatever it says; so it never fails, and its time is limited.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "for Patroni's log, and the answer to the person who checks"
)]

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::json;
use tokio::time::Instant;

use super::remote::Remote;
use super::words::time_up_to;
use crate::admin::{StopCheck, StopEnd, StopReport};

/// For the first question, and where the router does not say a limit.
const FIRST: Duration = Duration::from_secs(3);

#[derive(Debug, Args)]
pub(super) struct BeforeStop {
    #[command(flatten)]
    remote: Remote,
    /// How long to wait for open transactions, up to 30s: `500ms`, `5s`, `1m`; a number alone is
    /// seconds.
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = |text: &str| time_up_to(text, 30))]
    grace: Duration,
    /// Say what would be held, and whether the token, the member and the peers are right; holds
    /// nobody. Exits with 1 if something is wrong.
    #[arg(long, conflicts_with = "end")]
    check: bool,
    /// The member is not stopped after all: its clients go on, at all routers.
    #[arg(long)]
    end: bool,
    /// Another member than the one on this host.
    #[arg(long, value_name = "NAME")]
    member: Option<String>,
}

pub(super) fn run(command: &BeforeStop) -> ExitCode {
    if command.check || command.end {
        let done = if command.check {
            check(command)
        } else {
            end(command)
        };
        return match done {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(problem) => {
                eprintln!("{problem}");
                ExitCode::FAILURE
            }
        };
    }
    match hold(command) {
        Ok(report) => {
            eprintln!("{report}");
            for missing in &report.missing {
                eprintln!("clients are not held everywhere: {missing}");
            }
        }
        Err(problem) => eprintln!("clients are not held: {problem}"),
    }
    ExitCode::SUCCESS
}

fn check(command: &BeforeStop) -> Result<bool, String> {
    let check: StopCheck = ask(command, "check")?;
    print!("{check}");
    Ok(check.is_good())
}

fn end(command: &BeforeStop) -> Result<bool, String> {
    let end: StopEnd = ask(command, "end")?;
    for missing in &end.missing {
        eprintln!("not everywhere: {missing}");
    }
    if end.was_held {
        println!("{}: its clients go on", end.member);
    } else {
        println!("{}: its clients were not held by before-stop", end.member);
    }
    Ok(end.missing.is_empty())
}

fn ask<T: serde::de::DeserializeOwned>(command: &BeforeStop, action: &str) -> Result<T, String> {
    let query = command.remote.query(&[("member", command.member.as_deref())]);
    let path = format!("/api/v1/before-stop/{action}{query}");
    let answer = command.remote.router()?.change(&path, None)?;
    serde_json::from_value(answer).map_err(|_| "the router's answer makes no sense".to_owned())
}

fn hold(command: &BeforeStop) -> Result<StopReport, String> {
    let began = Instant::now();
    let remote = &command.remote;
    let query = remote.query(&[("member", command.member.as_deref())]);
    let path = format!("/api/v1/before-stop{query}");
    let limit = remote.router_within(FIRST)?.look(&path)?["limit_ms"].as_u64();
    let limit = limit.map_or(command.grace + FIRST, Duration::from_millis);
    let left = limit.saturating_sub(began.elapsed());
    let grace_ms = u64::try_from(command.grace.as_millis()).unwrap_or(u64::MAX);
    let body = json!({"grace_ms": grace_ms});
    let answer = remote.router_within(left)?.change_anyway(&path, Some(&body))?;
    serde_json::from_value(answer).map_err(|_| "the router's answer makes no sense".to_owned())
}
