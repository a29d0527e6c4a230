//! A new process in the place of this one, started by this one: `trunkline upgrade`.
//!
//! The new process is the program that is at this one's path by now, with this one's configuration file, and asks for
//! everything itself ([`super::handover`]). This one watches whether it ends before.

use std::io;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::thread;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};
use tracing::warn;

use super::control::UpgradeAnswer;
use super::handover::START;
use crate::config::Config;

/// A new process that has been started and does not serve yet.
#[derive(Debug)]
pub(super) struct Upgrade {
    process_id: u32,
    answer: oneshot::Sender<UpgradeAnswer>,
    ended: oneshot::Receiver<io::Result<ExitStatus>>,
    deadline: Instant,
}

/// How a process of this program is started.
#[derive(Debug)]
pub(super) struct Program {
    /// Where this program was when it was started; a newer one may be there by now.
    path: io::Result<PathBuf>,
}

impl Program {
    pub(super) fn of_this_process() -> Self {
        Self {
            path: std::env::current_exe(),
        }
    }

    /// Starts the new process.
    ///
    /// # Errors
    /// Why not, in a sentence.
    fn start(&self, config: &Config) -> Result<std::process::Child, String> {
        let Some(control) = &config.control_socket else {
            return Err("control_socket is not set".to_owned());
        };
        let path = match &self.path {
            Ok(path) => path,
            Err(error) => return Err(format!("it is not known where this program is: {error}")),
        };
        let mut command = Command::new(path);
        command
            .args(["run", "-c"])
            .arg(&config.path)
            .arg("--take-over")
            .arg(control)
            .stdin(Stdio::null())
            // Those were for this process.
            .env_remove("LISTEN_FDS")
            .env_remove("LISTEN_FDNAMES")
            .env_remove("LISTEN_PID");
        command
            .spawn()
            .map_err(|error| format!("{} cannot be started: {error}", path.display()))
    }
}

impl Upgrade {
    /// Starts the new process; `None` where that fails, which `answer` is told.
    pub(super) fn begin(
        program: &Program,
        config: &Config,
        answer: oneshot::Sender<UpgradeAnswer>,
    ) -> Option<Self> {
        let mut child = match program.start(config) {
            Ok(child) => child,
            Err(fault) => {
                refuse(answer, fault);
                return None;
            }
        };
        let process_id = child.id();
        let (end, ended) = oneshot::channel();
        // It is this process's child as long as both live.
        let watching = thread::Builder::new().name("upgrade".into()).spawn(move || {
            let _ = end.send(child.wait());
        });
        if let Err(error) = watching {
            end_process(process_id);
            refuse(answer, format!("the new process cannot be watched: {error}"));
            return None;
        }
        Some(Self {
            process_id,
            answer,
            ended,
            deadline: Instant::now() + START,
        })
    }

    /// Until the new process has ended; at the deadline it is ended. Cancel safe.
    pub(super) async fn failed(&mut self) -> String {
        let ended = tokio::select! {
            ended = &mut self.ended => Some(ended),
            () = sleep_until(self.deadline) => None,
        };
        match ended {
            Some(Ok(Ok(status))) => format!("the new process ended ({status}); its log says why"),
            Some(_) => "the new process ended".to_owned(),
            None => {
                end_process(self.process_id);
                format!(
                    "the new process did not serve within {} s, and was killed",
                    START.as_secs()
                )
            }
        }
    }

    pub(super) fn refuse(self, fault: String) {
        refuse(self.answer, fault);
    }

    pub(super) fn into_answer(self) -> oneshot::Sender<UpgradeAnswer> {
        self.answer
    }
}

pub(super) fn refuse(answer: oneshot::Sender<UpgradeAnswer>, fault: String) {
    warn!("no upgrade: {fault}");
    // Whoever asked may be gone.
    let _ = answer.send(UpgradeAnswer {
        process_id: None,
        old_process_id: std::process::id(),
        sessions: 0,
        faults: vec![fault],
    });
}

fn end_process(process_id: u32) {
    // It is a child that nobody has waited for, so that no other process can have this number.
    let _ = kill(Pid::from_raw(process_id.cast_signed()), Signal::SIGKILL);
}
