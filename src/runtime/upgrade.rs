//! A new process in the place of this one, started by this one: `trunkline upgrade`.
//!
//! The new process is the program that is at this one's path by now, with this one's configuration file, and asks for
//! everything itself ([`super::handover`]). This one watches whether it ends before. It is nobody's child but the
//! service manager's: a process in between starts it and ends, so that its end is noticed by who restarts it.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::Command;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until, timeout};

use super::control::UpgradeAnswer;
use super::handover::{PATIENCE, START};
use super::process::Process;
use crate::events::{Events, ProcessEvent};

/// A process number and its newline.
const MOST_TOLD: u64 = 32;

/// A new process that has been started and does not serve yet.
#[derive(Debug)]
pub(super) struct Upgrade {
    process: Process,
    answer: oneshot::Sender<UpgradeAnswer>,
    deadline: Instant,
}

/// How a process of this program is started.
#[derive(Debug)]
pub(super) struct Program {
    /// Where this program was when it was started; a newer one may be there by now.
    path: io::Result<PathBuf>,
}

impl Program {
    /// To be called before the working directory or `PATH` are other ones.
    pub(super) fn of_this_process() -> Self {
        let called = std::env::args_os().next().unwrap_or_default();
        let path = match found(Path::new(&called), std::env::var_os("PATH").as_deref()) {
            // As it was called: a symbolic link may lead to a newer one by then.
            Some(path) => Ok(path),
            None => std::env::current_exe(),
        };
        Self { path }
    }

    /// Starts a process of it that takes the place of the one that listens on `control`.
    ///
    /// # Errors
    /// Why not, in a sentence.
    async fn start(&self, config: &Path, control: &Path) -> Result<Process, String> {
        let path = match &self.path {
            Ok(path) => path,
            Err(error) => return Err(format!("it is not known where this program is: {error}")),
        };
        let failed = |error: io::Error| format!("{} cannot be started: {error}", path.display());
        let mut between = Command::new(path)
            .args(["run", "-c"])
            .arg(config)
            .arg("--take-over")
            .arg(control)
            .arg("--detach")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Those were for this process.
            .env_remove("LISTEN_FDS")
            .env_remove("LISTEN_FDNAMES")
            .env_remove("LISTEN_PID")
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let mut told = String::new();
        if let Some(stdout) = between.stdout.take() {
            let mut stdout = BufReader::new(stdout.take(MOST_TOLD));
            // What is not told makes no number.
            let _ = timeout(PATIENCE, stdout.read_line(&mut told)).await;
        }
        let process_id = told.trim_end().parse();
        let process_id =
            process_id.map_err(|_| "the new process cannot be started; its log says why".to_owned())?;
        // It waits for this, so that the number is still that process's.
        let process = Process::open(process_id).map_err(failed)?;
        drop(between.stdin.take());
        // Else it is killed.
        let _ = timeout(PATIENCE, between.wait()).await;
        Ok(process)
    }
}

/// Where a program that was called like this is, links as they are.
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

/// What of this process's surroundings would end the new one, or take it for none.
fn hindrance() -> Option<&'static str> {
    let own = std::process::id();
    if own == 1 {
        return Some(
            "this is process 1, with which every other one ends (a container?); start another container beside this one",
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
            "systemd would not know the new process, and end it with this one; write Type=notify-reload or Type=notify \
             into the unit, and restart it once",
        );
    }
    None
}

impl Upgrade {
    /// Starts the new process, for the place of the one that listens on `control`; `None` where that fails, which
    /// `answer` is told.
    pub(super) async fn begin(
        program: &Program,
        config: &Path,
        control: Option<&Path>,
        answer: oneshot::Sender<UpgradeAnswer>,
        events: &Events,
    ) -> Option<Self> {
        let deadline = Instant::now() + START;
        let started = match (hindrance(), control) {
            (Some(hindrance), _) => Err(hindrance.to_owned()),
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

    /// When the new process has to be ready.
    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Until the new process has ended; at the deadline it is ended. Cancel safe.
    pub(super) async fn failed(&self) -> String {
        tokio::select! {
            () = self.process.ended() => "the new process ended; its log says why".to_owned(),
            () = sleep_until(self.deadline) => {
                self.process.kill();
                format!("the new process did not serve within {} s, and was killed", START.as_secs())
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
    // Whoever asked may be gone.
    let _ = answer.send(UpgradeAnswer {
        process_id: None,
        release: String::new(),
        old_process_id: std::process::id(),
        old_release: env!("CARGO_PKG_VERSION").to_owned(),
        sessions: 0,
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
