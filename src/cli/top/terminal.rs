//! The terminal, taken over and given back.

use std::io::{self, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossterm::cursor::{Hide, MoveTo, Show};
use crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use crossterm::terminal::{
    BeginSynchronizedUpdate, Clear, ClearType, EndSynchronizedUpdate, EnterAlternateScreen,
    LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use crossterm::{execute, queue};
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::screen::Line;

/// After a signal.
const ENDS_WITHIN: Duration = Duration::from_secs(2);

/// What the person did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    Char(char),
    Up,
    Down,
    PageUp,
    PageDown,
    Home,
    End,
    Enter,
    Escape,
    Backspace,
    /// Ctrl-U, as in a shell.
    Empty,
    Interrupt,
}

pub(super) enum Input {
    Key(Key),
    Resized,
    Nothing,
}

/// Restored when this is dropped, also by a panic.
pub(super) struct Terminal(());

impl Terminal {
    pub(super) fn open() -> io::Result<Self> {
        enable_raw_mode()?;
        let terminal = Self(());
        // The message of a panic would go to the screen that is about to disappear.
        let former = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            restore();
            former(panic);
        }));
        execute!(io::stdout(), EnterAlternateScreen, Hide)?;
        Ok(terminal)
    }

    /// Columns and lines.
    #[expect(clippy::unused_self, reason = "only an open terminal has a size")]
    pub(super) fn size(&self) -> Option<(usize, usize)> {
        let (width, height) = crossterm::terminal::size().ok()?;
        (width > 0 && height > 0).then_some((width.into(), height.into()))
    }

    /// In one write, so that it does not flicker.
    #[expect(clippy::unused_self, reason = "only an open terminal is drawn on")]
    pub(super) fn draw(
        &mut self,
        lines: &[Line],
        (width, height): (usize, usize),
        colours: bool,
    ) -> io::Result<()> {
        let mut out = Vec::new();
        queue!(out, BeginSynchronizedUpdate)?;
        for (row, line) in (0_u16..).zip(lines.iter().take(height)) {
            queue!(out, MoveTo(0, row))?;
            out.extend_from_slice(line.painted(Some(width), colours).as_bytes());
            queue!(out, Clear(ClearType::UntilNewLine))?;
        }
        if lines.len() < height {
            let row = u16::try_from(lines.len()).unwrap_or(u16::MAX);
            queue!(out, MoveTo(0, row), Clear(ClearType::FromCursorDown))?;
        }
        queue!(out, EndSynchronizedUpdate)?;
        let mut terminal = io::stdout().lock();
        terminal.write_all(&out)?;
        terminal.flush()
    }

    /// Waits no longer than `limit`.
    #[expect(clippy::unused_self, reason = "only an open terminal is read")]
    pub(super) fn input(&mut self, limit: Duration) -> io::Result<Input> {
        if !event::poll(limit)? {
            return Ok(Input::Nothing);
        }
        Ok(match event::read()? {
            Event::Key(key) if key.kind != KeyEventKind::Release => {
                key_of(key).map_or(Input::Nothing, Input::Key)
            }
            Event::Resize(_, _) => Input::Resized,
            _ => Input::Nothing,
        })
    }
}

fn key_of(key: KeyEvent) -> Option<Key> {
    Some(match key.code {
        KeyCode::Char('c' | 'd') if key.modifiers.contains(KeyModifiers::CONTROL) => Key::Interrupt,
        KeyCode::Char('u') if key.modifiers.contains(KeyModifiers::CONTROL) => Key::Empty,
        KeyCode::Char(c) if !key.modifiers.contains(KeyModifiers::CONTROL) => Key::Char(c),
        KeyCode::Up => Key::Up,
        KeyCode::Down => Key::Down,
        KeyCode::PageUp => Key::PageUp,
        KeyCode::PageDown => Key::PageDown,
        KeyCode::Home => Key::Home,
        KeyCode::End => Key::End,
        KeyCode::Enter => Key::Enter,
        KeyCode::Esc => Key::Escape,
        KeyCode::Backspace => Key::Backspace,
        _ => return None,
    })
}

impl Drop for Terminal {
    fn drop(&mut self) {
        restore();
    }
}

/// Best effort: the terminal may be gone.
fn restore() {
    let _ = execute!(io::stdout(), Show, LeaveAlternateScreen);
    let _ = disable_raw_mode();
}

/// Signals that end the program.
pub(super) struct Signals(Arc<AtomicBool>);

impl Signals {
    pub(super) fn have_come(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Listens from now on, on a thread that lives as long as the process.
///
/// # Errors
/// The signals cannot be listened for; in words.
pub(super) fn signals() -> Result<Signals, String> {
    let cannot = |error: io::Error| format!("cannot listen for signals: {error}");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(cannot)?;
    let flag = Arc::new(AtomicBool::new(false));
    let mut kinds = Vec::new();
    {
        let _within = runtime.enter();
        for kind in [
            SignalKind::terminate(),
            SignalKind::interrupt(),
            SignalKind::hangup(),
        ] {
            kinds.push(signal(kind).map_err(cannot)?);
        }
    }
    let seen = Arc::clone(&flag);
    let wait = move || {
        runtime.block_on(async {
            let each = kinds.iter_mut().map(|kind| Box::pin(kind.recv()));
            futures_util::future::select_all(each).await;
        });
        seen.store(true, Ordering::Relaxed);
        // Reading from a terminal that is gone may never return.
        runtime.block_on(tokio::time::sleep(ENDS_WITHIN));
        restore();
        std::process::exit(1);
    };
    let thread = std::thread::Builder::new().name("signals".to_owned());
    thread.spawn(wait).map_err(cannot)?;
    Ok(Signals(flag))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// What [`the_terminal_is_restored_by_a_panic`] runs on a terminal of its own.
    #[test]
    #[ignore = "it panics, on a terminal"]
    fn a_panic_on_a_terminal() {
        let terminal = Terminal::open().expect("a terminal");
        assert!(crossterm::terminal::is_raw_mode_enabled().expect("a terminal"));
        let is_elsewhere = std::env::var_os("ELSEWHERE").is_some();
        if is_elsewhere {
            let ended = std::thread::spawn(|| panic!("a planted fault")).join();
            assert!(ended.is_err());
            // Not this one's end gives the terminal back.
            std::mem::forget(terminal);
            return;
        }
        panic!("a planted fault");
    }

    #[test]
    fn the_terminal_is_restored_by_a_panic() {
        let own = std::env::current_exe().expect("this program");
        let name = "cli::top::terminal::tests::a_panic_on_a_terminal";
        for environment in ["", "ELSEWHERE=1 "] {
            let command = format!(
                "stty -g; {environment}{} --ignored --exact {name} --nocapture 2>&1; stty -g",
                own.display()
            );
            let said = Command::new("script")
                .args(["-qec", &command, "/dev/null"])
                .output();
            let said = String::from_utf8_lossy(&said.expect("script of util-linux runs").stdout).into_owned();
            let left = said.find("\u{1b}[?1049l").unwrap_or_else(|| panic!("{said}"));
            assert!(
                said.find("\u{1b}[?1049h").is_some_and(|entered| entered < left),
                "{said}"
            );
            let fault = said.find("a planted fault").unwrap_or_else(|| panic!("{said}"));
            assert!(left < fault, "the message is on the first screen: {said}");
            let lines: Vec<&str> = said.trim().lines().map(str::trim).collect();
            assert_eq!(lines.first(), lines.last(), "the settings are as before: {said}");
            assert!(
                lines[0].matches(':').count() > 10,
                "settings of a terminal: {said}"
            );
        }
    }
}
