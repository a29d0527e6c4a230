//! Commands whose output is a passphrase.

use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::secret::Secret;

/// From its start to the end of its output.
const PATIENCE: Duration = Duration::from_secs(10);
/// PostgreSQL's limit for `ssl_passphrase_command`.
const MAX_PASSPHRASE: usize = 1024;
/// How much of its standard error is reported.
const MAX_COMPLAINT: usize = 256;

/// Why a command gave no passphrase. Never repeats what it printed on standard output.
#[derive(Debug, thiserror::Error)]
pub(super) enum CommandError {
    #[error("cannot be started: {0}")]
    Start(std::io::Error),
    #[error("did not end within {} s{}", PATIENCE.as_secs(), said(.complaint))]
    Hangs { complaint: String },
    #[error("{}{}", ended(.status), said(.complaint))]
    Failed { status: ExitStatus, complaint: String },
    #[error("printed nothing{}", said(.complaint))]
    Nothing { complaint: String },
    #[error("printed a line longer than {MAX_PASSPHRASE} bytes")]
    TooLong,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the error gives a reference")]
fn ended(status: &ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("failed with exit code {code}"),
        (None, Some(signal)) => format!("was killed by signal {signal}"),
        (None, None) => "failed".to_owned(),
    }
}

fn said(complaint: &str) -> String {
    if complaint.is_empty() {
        String::new()
    } else {
        format!(": {complaint}")
    }
}

enum News {
    Output(Zeroizing<Vec<u8>>),
    Complaint(String),
    Ended(std::io::Result<ExitStatus>),
}

/// Runs `text` by the shell, in `directory`; the first line of its output, without the newline, is
/// the passphrase. Blocks for 10 s at most; then it kills the command and its children.
pub(super) fn passphrase(text: &str, directory: &Path) -> Result<Secret, CommandError> {
    let mut command = Command::new("/bin/sh");
    command.arg("-c").arg(text);
    if !directory.as_os_str().is_empty() {
        command.current_dir(directory);
    }
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // A separate group, so that all its processes can be killed.
        .process_group(0)
        .spawn()
        .map_err(CommandError::Start)?;
    let group = i32::try_from(child.id()).ok().map(Pid::from_raw);
    let heard = listen(&follow(child));
    if heard.is_err()
        && let Some(group) = group
    {
        // Fails only if no process is left.
        let _ = killpg(group, Signal::SIGKILL);
    }
    let Heard {
        output,
        complaint,
        status,
    } = heard?;
    let status = status.map_err(CommandError::Start)?;
    if !status.success() {
        return Err(CommandError::Failed { status, complaint });
    }
    let line = output.split(|&byte| byte == b'\n').next().unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    match line.len() {
        0 => Err(CommandError::Nothing { complaint }),
        1..=MAX_PASSPHRASE => Ok(Secret::new(line)),
        _ => Err(CommandError::TooLong),
    }
}

/// Threads that read both outputs and wait for the end, each of which may hang without the others.
fn follow(mut child: Child) -> Receiver<News> {
    let (tell, news) = mpsc::channel();
    if let Some(stdout) = child.stdout.take() {
        let tell = tell.clone();
        std::thread::spawn(move || {
            // Never moves, so that no copy of a secret is left behind; one byte more than may be.
            let mut output = Zeroizing::new(Vec::with_capacity(MAX_PASSPHRASE + 64));
            let mut limited = stdout.take(MAX_PASSPHRASE as u64 + 2);
            let _ = limited.read_to_end(&mut output);
            // The rest is read too: it must not die of a closed pipe.
            let _ = std::io::copy(&mut limited.into_inner(), &mut std::io::sink());
            let _ = tell.send(News::Output(output));
        });
    }
    if let Some(stderr) = child.stderr.take() {
        let tell = tell.clone();
        std::thread::spawn(move || {
            let mut complaint = Vec::new();
            let mut limited = stderr.take(MAX_COMPLAINT as u64);
            let _ = limited.read_to_end(&mut complaint);
            let _ = std::io::copy(&mut limited.into_inner(), &mut std::io::sink());
            let text = String::from_utf8_lossy(&complaint);
            let _ = tell.send(News::Complaint(text.trim().escape_debug().to_string()));
        });
    }
    std::thread::spawn(move || tell.send(News::Ended(child.wait())));
    news
}

struct Heard {
    output: Zeroizing<Vec<u8>>,
    complaint: String,
    status: std::io::Result<ExitStatus>,
}

/// Waits for both outputs and the end.
fn listen(news: &Receiver<News>) -> Result<Heard, CommandError> {
    let deadline = Instant::now() + PATIENCE;
    let mut heard = Heard {
        output: Zeroizing::default(),
        complaint: String::new(),
        status: Err(std::io::Error::other("nobody waited for it")),
    };
    // Each of the threads reports once.
    for _ in 0..3 {
        match news.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(News::Output(bytes)) => heard.output = bytes,
            Ok(News::Complaint(text)) => heard.complaint = text,
            Ok(News::Ended(status)) => heard.status = status,
            Err(_) => {
                return Err(CommandError::Hangs {
                    complaint: heard.complaint,
                });
            }
        }
    }
    Ok(heard)
}
