//! `trunkline top` on a terminal, which tmux has and shows.

use super::{SOON, config, trunkline, with_token};
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::cluster::{Options, Router, eventually, fresh_address, output, succeed};

/// A shell on a terminal of 100 columns and 30 lines; it runs one command and stays.
struct Screen {
    dir: TempDir,
}

impl Screen {
    fn run(command: &str) -> Self {
        let screen = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        let script = format!(
            "stty -g > {0}/before\n{command} 2> {0}/err\necho \"it ended with $?\"\nstty -g > {0}/after\ncat\n",
            screen.dir.path().display()
        );
        let path = screen.file("script");
        fs::write(&path, script).unwrap();
        succeed(
            screen
                .tmux()
                .args([
                    "-f",
                    "/dev/null",
                    "new-session",
                    "-d",
                    "-x",
                    "100",
                    "-y",
                    "30",
                    "sh",
                ])
                .arg(&path),
        );
        screen
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn tmux(&self) -> Command {
        let mut command = Command::new("tmux");
        command.env("TERM", "xterm").arg("-S").arg(self.file("tmux"));
        command
    }

    fn text(&self) -> String {
        let said = output(self.tmux().args(["capture-pane", "-p"]));
        String::from_utf8_lossy(&said.stdout).into_owned()
    }

    fn keys(&self, keys: &[&str]) {
        succeed(self.tmux().arg("send-keys").args(keys));
    }

    #[track_caller]
    fn await_text(&self, text: &str) {
        let mut last = String::new();
        let deadline = tokio::time::Instant::now() + SOON;
        while tokio::time::Instant::now() < deadline {
            last = self.text();
            if last.contains(text) {
                return;
            }
            crate::cluster::pause(Duration::from_millis(50));
        }
        panic!(
            "no \"{text}\" on:\n{last}\n{}",
            fs::read_to_string(self.file("err")).unwrap_or_default()
        );
    }

    /// The terminal is as it was.
    #[track_caller]
    fn is_restored(&self, code: i32) {
        self.await_text(&format!("it ended with {code}"));
        eventually("the settings are written", SOON, || {
            fs::read_to_string(self.file("after")).is_ok_and(|text| text.ends_with('\n'))
        });
        let read = |name: &str| fs::read_to_string(self.file(name)).unwrap();
        assert_eq!(read("before"), read("after"));
        let flags = succeed(
            self.tmux()
                .args(["display", "-p", "#{alternate_on} #{cursor_flag}"]),
        );
        assert_eq!(flags, "0 1\n", "the first screen, with a cursor");
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = output(self.tmux().arg("kill-server"));
    }
}

fn top(router: &Router) -> Screen {
    let program = env!("CARGO_BIN_EXE_trunkline");
    Screen::run(&format!("{program} top -d 0.3 -c {}", config(router)))
}

/// A client that does nothing.
fn client(router: &Router) -> std::process::Child {
    let mut command = Command::new("psql");
    command
        .args(["-XAtq", "-c", "SELECT pg_sleep(600)"])
        .arg(router.dsn(6432, "application_name=sleeper"));
    command.stderr(std::process::Stdio::null()).spawn().unwrap()
}

#[test]
fn top_shows_sessions_and_kills_one_after_a_question() {
    let dir = tempfile::tempdir().unwrap();
    let router = with_token(dir.path(), None, Options::default());
    let mut client = client(&router);
    let screen = top(&router);
    screen.await_text("all is well");
    screen.await_text("1 session, by activity");
    screen.await_text("active");
    screen.keys(&["s"]);
    screen.await_text("by age");
    screen.keys(&["/", "nobody"]);
    screen.await_text("0 with \"nobody\"");
    screen.keys(&["Enter", "h"]);
    screen.await_text("Keys of trunkline top");
    screen.keys(&["x", "Escape"]);
    screen.await_text("1 session, by age");
    screen.keys(&["p"]);
    screen.await_text("PAUSED");
    screen.keys(&["p", "k"]);
    screen.await_text("mark a session with the arrow keys first");
    screen.keys(&["Down", "k"]);
    screen.await_text("of app from");
    screen.keys(&["n"]);
    screen.await_text("nothing is killed");
    assert!(client.try_wait().unwrap().is_none(), "it goes on");
    screen.keys(&["k"]);
    screen.await_text("? y or n");
    screen.keys(&["y"]);
    screen.await_text("is killed");
    screen.await_text("0 sessions");
    eventually("the client has lost its session", SOON, || {
        client.try_wait().unwrap().is_some()
    });
    screen.keys(&["q"]);
    screen.is_restored(0);
}

#[test]
fn the_terminal_is_restored_whatever_ends_top() {
    let dir = tempfile::tempdir().unwrap();
    let address = fresh_address();
    let options = || Options {
        address: Some(address),
        ..Options::default()
    };
    let router = with_token(dir.path(), None, options());
    let screen = top(&router);
    screen.await_text("all is well");
    screen.keys(&["C-c"]);
    screen.is_restored(0);

    let screen = top(&router);
    screen.await_text("all is well");
    let pane = succeed(screen.tmux().args(["display", "-p", "#{pane_pid}"]));
    succeed(Command::new("pkill").args(["-TERM", "-P", pane.trim(), "trunkline"]));
    screen.is_restored(0);

    // Without a router it goes on asking.
    let url = format!("http://{address}:6434");
    let screen = Screen::run(&format!(
        "{} top -d 0.3 --url {url}",
        env!("CARGO_BIN_EXE_trunkline")
    ));
    screen.await_text("all is well");
    drop(router);
    screen.await_text("NO ANSWER for");
    let router = with_token(dir.path(), None, options());
    screen.await_text("all is well");
    drop(router);
    screen.await_text("NO ANSWER for");
    screen.keys(&["q"]);
    screen.is_restored(0);

    // A router that never answers is told before the screen changes.
    let screen = Screen::run(&format!("{} top --url {url}", env!("CARGO_BIN_EXE_trunkline")));
    screen.is_restored(1);
    let said = fs::read_to_string(screen.file("err")).unwrap();
    assert!(said.contains("does not answer"), "{said}");
}

#[test]
fn without_a_terminal_top_prints_and_ends() {
    let router = Router::shared();
    let config = config(&router);
    let (code, text) = trunkline(&["top", "-c", &config]);
    assert_eq!(code, Some(0), "{text}");
    assert!(
        text.contains("all is well") && text.contains("this is not a terminal"),
        "{text}"
    );
    let (code, text) = trunkline(&["top", "--batch", "-n", "2", "-d", "0.2", "-c", &config]);
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(text.matches("all is well").count(), 2, "{text}");
    assert!(!text.contains('\u{1b}'), "{text:?}");
    let (code, text) = trunkline(&["top", "--json", "-c", &config]);
    let document: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &document["result"]), (Some(0), &"well".into()));
    assert!(document["sessions"].is_array(), "{text}");
}
