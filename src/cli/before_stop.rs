//! `trunkline before-stop`: for Patroni's `postgresql.before_stop`. Patroni waits for it and stops
//! PostgreSQL then, whatever it says; so it never fails, and its time is limited.

#![allow(clippy::print_stderr, reason = "for Patroni's log")]

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::json;
use tokio::time::Instant;

use super::remote::Remote;
use crate::admin::StopReport;
use crate::config;

/// For the first question, and where the router does not say a limit.
const FIRST: Duration = Duration::from_secs(3);

#[derive(Debug, Args)]
pub(super) struct BeforeStop {
    #[command(flatten)]
    remote: Remote,
    /// How long to wait for open transactions, up to 30s.
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = |text: &str| time_up_to(text, 30))]
    grace: Duration,
    /// Another member than the one on this host.
    #[arg(long, value_name = "NAME")]
    member: Option<String>,
}

/// A time as in the configuration: `500ms`, `5s`, `1m`.
pub(super) fn time(text: &str) -> Result<Duration, String> {
    config::parse_duration(text).ok_or_else(|| "a number with a unit: ms, s, m or h".to_owned())
}

/// The same, with a limit in seconds.
pub(super) fn time_up_to(text: &str, most: u64) -> Result<Duration, String> {
    let parsed = time(text)?;
    if parsed > Duration::from_secs(most) {
        return Err(format!("at most {most}s"));
    }
    Ok(parsed)
}

pub(super) fn run(command: &BeforeStop) -> ExitCode {
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
    let answer = remote.router_within(left)?.change(&path, Some(&body))?;
    serde_json::from_value(answer).map_err(|_| "the router's answer makes no sense".to_owned())
}
