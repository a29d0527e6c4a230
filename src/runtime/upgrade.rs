//! This process starts a new one that replaces it: `trunkline upgrade`.
//!
//! The new process runs the program that is at this one's path now, with the same configuration
//! file. It starts the handover itself ([`super::handover`]). This process watches whether it ends
//! before that. The new process is a child of the service manager: a launcher process starts it and
//! ends, so that the service manager notices its end and can restart it.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::Command;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until, timeout};

use super::control::UpgradeAnswer;
use super::handover::{START_LIMIT, STEP_LIMIT};
use super::process::Process;
use crate::events::{Events, ProcessEvent};

/// A process number and its newline.
const MAX_ANNOUNCED_BYTES: u64 = 32;

/// A new process that has been started and does not serve yet.
#[derive(Debug)]
pub(super) struct Upgrade {
    process: Process,
    answer: oneshot::Sender<UpgradeAnswer>,
    deadline: Instant,
}

/// The program that a new process runs.
#[derive(Debug)]
pub(super) struct Program {
    /// The path of this program at its start. A newer program may be there now.
    path: io::Result<PathBuf>,
}

impl Program {
    /// To be called before the working directory or `PATH` change.
    pub(super) fn of_this_process() -> Self {
        let called = std::env::args_os().next().unwrap_or_default();
        let path = match found(Path::new(&called), std::env::var_os("PATH").as_deref()) {
            // The path as it was called: a symbolic link may lead to a newer program by then.
            Some(path) => Ok(path),
            None => std::env::current_exe(),
        };
        Self { path }
    }

    /// Starts a process that replaces the one that listens on `control`.
    ///
    /// # Errors
    /// A sentence with the reason.
    async fn start(&self, config: &Path, control: &Path) -> Result<Process, String> {
        let path = match &self.path {
            Ok(path) => path,
            Err(error) => return Err(format!("the path of this program is unknown: {error}")),
        };
        let failed = |error: io::Error| format!("{} cannot be started: {error}", path.display());
        let mut launcher = Command::new(path)
            .args(["run", "-c"])
            .arg(config)
            .arg("--take-over")
            .arg(control)
            .arg("--detach")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // These variables were for this process.
            .env_remove("LISTEN_FDS")
            .env_remove("LISTEN_FDNAMES")
            .env_remove("LISTEN_PID")
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let mut announced = String::new();
        if let Some(stdout) = launcher.stdout.take() {
            let mut stdout = BufReader::new(stdout.take(MAX_ANNOUNCED_BYTES));
            // A failure leaves no number, which is an error below.
            let _ = timeout(STEP_LIMIT, stdout.read_line(&mut announced)).await;
        }
        let process_id = announced.trim_end().parse();
        let process_id =
            process_id.map_err(|_| "the new process cannot be started; see its log".to_owned())?;
        // The launcher still waits, so the number still belongs to the new process.
        let process = Process::open(process_id).map_err(failed)?;
        drop(launcher.stdin.take());
        // It is killed if it does not end in time.
        let _ = timeout(STEP_LIMIT, launcher.wait()).await;
        Ok(process)
    }
}

/// The path of a program that was called like this. Symbolic links stay.
fn found(called: &Path, search: Option<&OsStr>) -> Option<PathBuf> {
    if called.as_os_str().is_empty() {
        return None;
    }
    let path = if called.components().count() > 1 {
        std::path::absolute(called).ok()?
    } else {
        std::env::split_paths(search?)
            .map(|directory| directory.join(called))
            .find(|path| path.is_file())?
    };
    path.is_file().then_some(path)
}

/// Why the environment of this process does not allow an upgrade: it would end the new process, or
/// not know it.
fn obstacle() -> Option<&'static str> {
    let own = std::process::id();
    if own == 1 {
        return Some(
            "this is process 1, and all other processes end with it (a container?); start another container beside this one",
        );
    }
    let variable = |name| std::env::var(name).ok();
    let is_service = variable("INVOCATION_ID").is_some()
        && match variable("SYSTEMD_EXEC_PID") {
            Some(main) => main == own.to_string(),
            // Before systemd 248.
            None => nix::unistd::getppid().as_raw() == 1,
        };
    if is_service && variable("NOTIFY_SOCKET").is_none() {
        return Some(
            "systemd would not know the new process and would end it with this one; set Type=notify-reload or \
             Type=notify in the unit, and restart it once",
        );
    }
    None
}

impl Upgrade {
    /// Starts a new process that replaces the one that listens on `control`. `None`: this failed,
    /// and `answer` has the reason.
    pub(super) async fn begin(
        program: &Program,
        config: &Path,
        control: Option<&Path>,
        answer: oneshot::Sender<UpgradeAnswer>,
        events: &Events,
    ) -> Option<Self> {
        let deadline = Instant::now() + START_LIMIT;
        let started = match (obstacle(), control) {
            (Some(obstacle), _) => Err(obstacle.to_owned()),
            (None, None) => Err("control_socket is not set".to_owned()),
            (None, Some(control)) => program.start(config, control).await,
        };
        match started {
            Ok(process) => Some(Self {
                process,
                answer,
                deadline,
            }),
            Err(fault) => {
                refuse(answer, fault, events);
                None
            }
        }
    }

    /// The time at which the new process must be ready.
    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Waits until the new process has ended. Kills it at the deadline. Cancel safe.
    pub(super) async fn failed(&self) -> String {
        tokio::select! {
            () = self.process.ended() => "the new process ended; see its log".to_owned(),
            () = sleep_until(self.deadline) => {
                self.process.kill();
                format!("the new process did not serve within {} s, and was killed", START_LIMIT.as_secs())
            }
        }
    }

    pub(super) fn refuse(self, fault: String, events: &Events) {
        refuse(self.answer, fault, events);
    }

    pub(super) fn into_answer(self) -> oneshot::Sender<UpgradeAnswer> {
        self.answer
    }
}

pub(super) fn refuse(answer: oneshot::Sender<UpgradeAnswer>, fault: String, events: &Events) {
    events.emit(ProcessEvent::UpgradeFailed { error: fault.clone() });
    // The client may be gone.
    let _ = answer.send(UpgradeAnswer {
        process_id: None,
        release: String::new(),
        old_process_id: std::process::id(),
        old_release: env!("CARGO_PKG_VERSION").to_owned(),
        sessions: 0,
        other_connections: 0,
        faults: vec![fault],
    });
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_link_to_the_program_stays_a_link() {
        let directory = tempfile::tempdir().unwrap();
        let (program, link) = (
            directory.path().join("trunkline-1"),
            directory.path().join("trunkline"),
        );
        std::fs::write(&program, "").unwrap();
        std::os::unix::fs::symlink(&program, &link).unwrap();
        let search = Some(directory.path().as_os_str());
        assert_eq!(found(&link, None), Some(link.clone()));
        assert_eq!(found(Path::new("trunkline"), search), Some(link));
        for nowhere in ["", "trunkline-2", "/nonexistent/trunkline"] {
            assert_eq!(found(Path::new(nowhere), search), None, "{nowhere}");
        }
    }
}
