//! `trunkline switchover`: another member becomes the leader, and clients wait for it.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command's answer to the person who runs it"
)]

use std::io::{self, BufRead, Write};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::remote::{Remote, Router};
use super::words::time_up_to;
use crate::admin::{SwitchoverPlan, SwitchoverStatus};

/// Between two looks at a running switchover.
const LOOK: Duration = Duration::from_millis(200);
/// Looks in a row that may fail.
const MAX_FAILED: u32 = 25;
/// The process that answers was not given the order.
const GONE: &str = "the process that ran the switchover has ended, and this one knows nothing of it. Its log says how far \
                    it came; `trunkline members` shows which member leads";
const LOST: &str = "how the switchover goes on is not known: the router's log says it, and `trunkline members` shows which \
                    member leads";

#[derive(Debug, Args)]
pub(super) struct Switchover {
    #[command(flatten)]
    remote: Remote,
    /// The new leader. By default the router chooses: in synchronous mode a synchronous standby,
    /// otherwise the standby that is least behind.
    #[arg(long, value_name = "NODE")]
    to: Option<String>,
    /// How long to wait for open transactions, up to 20s: `500ms`, `5s`; a number alone is seconds.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = |text: &str| time_up_to(text, 20))]
    grace: Duration,
    /// Leave out this peer, which does not answer: its clients see errors. May be repeated.
    #[arg(long, value_name = "NAME")]
    without_peer: Vec<String>,
    /// Undo the switchover that this router runs, as long as Patroni has not been asked.
    #[arg(long, conflicts_with_all = ["to", "without_peer", "yes"])]
    abort: bool,
    /// Do not ask for confirmation.
    #[arg(long)]
    yes: bool,
}

pub(super) fn run(command: &Switchover) -> ExitCode {
    match switch_over(command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(problem) => {
            eprintln!("{problem}");
            ExitCode::FAILURE
        }
    }
}

fn switch_over(command: &Switchover) -> Result<bool, String> {
    let router = command.remote.router()?;
    if command.abort {
        router.change("/api/v1/switchover/abort", None)?;
        println!("the switchover is being undone, and clients go on");
        return Ok(true);
    }
    let request = json!({
        "cluster": command.remote.cluster.as_deref().unwrap_or_default(),
        "to": command.to,
        "grace_ms": u64::try_from(command.grace.as_millis()).unwrap_or(u64::MAX),
        "without_peers": command.without_peer,
    });
    let plan = router.change("/api/v1/switchover/plan", Some(&request))?;
    let plan: SwitchoverPlan = read(plan)?;
    print!("{plan}");
    if !plan.problems.is_empty() {
        return Err(format!(
            "it is not possible now:\n  {}",
            plan.problems.join("\n  ")
        ));
    }
    if !command.yes {
        confirmed()?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("cannot start: {error}"))?;
    // From here on Ctrl-C undoes.
    let interrupted = {
        let _entered = runtime.enter();
        signal(SignalKind::interrupt()).map_err(|error| format!("cannot start: {error}"))?
    };
    // What was shown is what is done.
    let mut request = request;
    request["to"] = json!(plan.candidate);
    router.change("/api/v1/switchover/start", Some(&request))?;
    follow(&router, &runtime, interrupted)
}

fn follow(
    router: &Router,
    runtime: &tokio::runtime::Runtime,
    mut interrupted: Signal,
) -> Result<bool, String> {
    let (mut shown, mut failed, mut has_sessions) = (0, 0, false);
    loop {
        let is_interrupted = runtime.block_on(async {
            tokio::select! {
                _ = interrupted.recv() => true,
                () = tokio::time::sleep(LOOK) => false,
            }
        });
        if is_interrupted && let Err(error) = router.change("/api/v1/switchover/abort", None) {
            eprintln!("{error}");
        }
        let status = match router.look("/api/v1/switchover") {
            Ok(status) => read::<Option<SwitchoverStatus>>(status)?.ok_or(GONE)?,
            // The router works on its own.
            Err(_) if failed < MAX_FAILED => {
                failed += 1;
                continue;
            }
            Err(error) => return Err(format!("{error}\n{LOST}")),
        };
        failed = 0;
        for step in status.steps.iter().skip(shown) {
            println!("{step}");
        }
        shown = status.steps.len();
        if !has_sessions && !status.open_sessions.is_empty() {
            has_sessions = true;
            for session in &status.open_sessions {
                println!("  {session}");
            }
            if !status.is_committed && !status.is_over {
                println!("  (Ctrl-C undoes it)");
            }
        }
        if status.is_over {
            return Ok(status.has_succeeded);
        }
    }
}

fn read<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> Result<T, String> {
    serde_json::from_value(value).map_err(|_| "the router's answer makes no sense".to_owned())
}

/// # Errors
/// The operator does not want it, or there is none.
fn confirmed() -> Result<(), String> {
    print!("Go on? [yes/no] ");
    let _ = io::stdout().flush();
    let mut line = String::new();
    match io::stdin().lock().read_line(&mut line) {
        Ok(1..) if matches!(line.trim(), "yes" | "y") => Ok(()),
        Ok(1..) => Err("nothing was changed".to_owned()),
        Ok(0) | Err(_) => {
            Err("\nnothing was changed: the question was not answered; --yes goes on without it".to_owned())
        }
    }
}
