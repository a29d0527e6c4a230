//! The log: one line per event on the standard error stream, text or JSON, times in UTC.
//!
//! Guarantees: an event is one line, whatever its values contain. No colours unless the stream is a
//! terminal. Only one thread of the log waits for the stream ([`queue`]), also for a panic.

mod queue;

use std::any::Any;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Directive;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

use self::queue::Queue;
use crate::config::{Log, LogFormat, LogLevel};
use crate::wire::text;

/// For the last lines to be written, and for [`say`].
const PATIENCE: Duration = Duration::from_secs(1);

/// Why the log could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Refused and not ignored: a person sets it in order to see something.
    #[error("the environment variable RUST_LOG is not understood: {0}")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    #[error("the log is already set up")]
    AlreadySetUp,
    #[error("the log cannot be written: {0}")]
    Io(#[from] io::Error),
}

/// The log, once it is set up, to change it.
#[derive(Clone)]
pub struct LogHandle {
    filter: reload::Handle<EnvFilter, Registry>,
    layer: reload::Handle<Box<dyn Layer<Registry> + Send + Sync>, Registry>,
    queue: Queue,
    /// The format of the queue's own lines.
    format: Arc<Mutex<LogFormat>>,
}

impl std::fmt::Debug for LogHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogHandle").finish_non_exhaustive()
    }
}

impl LogHandle {
    /// Sets another level and format for the next lines. `RUST_LOG` still replaces the level.
    ///
    /// # Errors
    /// As [`init`].
    pub fn replace(&self, config: &Log) -> Result<(), LogError> {
        let filter = filter(config.level, environment().as_deref())?;
        // Each fails only if the subscriber is gone, which is global.
        let _ = self.filter.reload(filter);
        let _ = self.layer.reload(queued(config.format, &self.queue));
        *self.format.lock().unwrap_or_else(PoisonError::into_inner) = config.format;
        Ok(())
    }

    /// Counts the lines that were lost.
    pub fn lost(&self) -> Counter {
        self.queue.lost()
    }

    /// When it is dropped, waits until all lines are written, for a second at most.
    pub fn at_end(&self) -> Flush {
        Flush(self.queue.clone())
    }
}

/// See [`LogHandle::at_end`].
#[derive(Debug)]
pub struct Flush(Queue);

impl Drop for Flush {
    fn drop(&mut self) {
        // Lines that are not written by then are lost: the process ends.
        let _ = self.0.flush(PATIENCE);
    }
}

/// Sets up the log of the process. `RUST_LOG`, where it is set and not empty, replaces the
/// configured level.
///
/// # Errors
/// A `RUST_LOG` that is not understood; a second call.
pub fn init(config: &Log) -> Result<LogHandle, LogError> {
    let filter = filter(config.level, environment().as_deref())?;
    let (filter, filter_handle) = reload::Layer::new(filter);
    // Not `io::stderr`: its lock would be held while the reader is slow.
    let stream = File::from(io::stderr().as_fd().try_clone_to_owned()?);
    let format = Arc::new(Mutex::new(config.format));
    let of_notice = Arc::clone(&format);
    let queue = Queue::start(stream, move |lost| {
        let format = *of_notice.lock().unwrap_or_else(PoisonError::into_inner);
        notice(format, colours(), lost)
    })?;
    let (layer, layer_handle) = reload::Layer::new(queued(config.format, &queue));
    tracing_subscriber::registry()
        .with(layer.with_filter(filter))
        .try_init()
        .map_err(|_| LogError::AlreadySetUp)?;
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        panicked(&place, panic.payload());
    }));
    Ok(LogHandle {
        filter: filter_handle,
        layer: layer_handle,
        queue,
        format,
    })
}

/// A panic is an event like others: its default way to standard error would wait for the reader.
fn panicked(place: &str, payload: &(dyn Any + Send)) {
    let message = match (payload.downcast_ref::<&str>(), payload.downcast_ref::<String>()) {
        (Some(text), _) => text,
        (None, Some(text)) => text.as_str(),
        (None, None) => "-",
    };
    let backtrace = Backtrace::capture();
    let thread = thread::current();
    let name = thread.name().unwrap_or("-");
    if backtrace.status() == BacktraceStatus::Captured {
        tracing::error!(thread = name, place, %backtrace, "panicked: {message}");
    } else {
        tracing::error!(thread = name, place, "panicked: {message}");
    }
}

/// Writes a line to standard error without the log, for a caller that is about to end the process.
/// It takes a second at most, also if nothing reads the stream.
pub fn say(line: &str) {
    let text = format!("{line}\n");
    let (tell, told) = mpsc::channel();
    let writing = thread::Builder::new().spawn(move || {
        let _ = io::stderr().write_all(text.as_bytes());
        let _ = tell.send(());
    });
    if writing.is_ok() {
        let _ = told.recv_timeout(PATIENCE);
    }
}

/// The line that says how many lines are missing before it, whatever the level.
fn notice(format: LogFormat, colours: bool, lost: u64) -> Vec<u8> {
    let line = Line::default();
    let stream = line.clone();
    let subscriber = tracing_subscriber::registry().with(layer(format, colours, move || stream.clone()));
    tracing::subscriber::with_default(subscriber, || {
        tracing::warn!(
            lines = lost,
            "lines of the log were lost here: they came faster than they were read"
        );
    });
    let mut line = line.0.lock().unwrap_or_else(PoisonError::into_inner);
    std::mem::take(&mut *line)
}

/// A line that is formatted and not written.
#[derive(Clone, Default)]
struct Line(Arc<Mutex<Vec<u8>>>);

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut line = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        line.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn queued(format: LogFormat, queue: &Queue) -> Box<dyn Layer<Registry> + Send + Sync> {
    let queue = queue.clone();
    layer(format, colours(), move || queue.clone())
}

fn environment() -> Option<String> {
    std::env::var("RUST_LOG").ok()
}

fn colours() -> bool {
    io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Our own events at `level`, other crates' from WARN (or `level` if that is less).
fn filter(level: LogLevel, environment: Option<&str>) -> Result<EnvFilter, LogError> {
    if let Some(directives) = environment
        .map(str::trim)
        .filter(|directives| !directives.is_empty())
    {
        return Ok(EnvFilter::builder().parse(directives)?);
    }
    let ours = match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let own: Directive = format!("trunkline={level}").parse()?;
    let others: Directive = ours.min(LevelFilter::WARN).into();
    Ok(EnvFilter::builder()
        .with_default_directive(others)
        .parse("")?
        .add_directive(own))
}

fn layer<S, F, W>(format: LogFormat, colours: bool, stream: F) -> Box<dyn Layer<S> + Send + Sync>
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
    F: Fn() -> W + Send + Sync + 'static,
    W: Write + 'static,
{
    match format {
        LogFormat::Text => tracing_subscriber::fmt::layer()
            .compact()
            .with_ansi(colours)
            // They would go to standard error in a way that waits.
            .log_internal_errors(false)
            .with_writer(move || OneLine {
                stream: stream(),
                colours,
            })
            .boxed(),
        LogFormat::Json => tracing_subscriber::fmt::layer()
            .json()
            .log_internal_errors(false)
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .with_writer(stream)
            .boxed(),
    }
}

/// The last protection against a forged line: control characters within an event are escaped,
/// whatever put them there. Values from outside pass through `wire::text::Escaped` before.
struct OneLine<W> {
    stream: W,
    /// The formatter's own escape sequences; it has escaped those in values.
    colours: bool,
}

impl<W: Write> Write for OneLine<W> {
    /// The formatter writes one event at a time.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let (body, end) = text.strip_suffix('\n').map_or((&*text, ""), |body| (body, "\n"));
        let mut line = String::with_capacity(text.len());
        text::push_escaped(&mut line, body, |c| self.colours && c == '\u{1b}');
        line.push_str(end);
        self.stream.write_all(line.as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;
    use crate::wire::text::Escaped;

    fn logged(format: LogFormat, filter: EnvFilter, events: impl FnOnce()) -> String {
        let memory = Line::default();
        let stream = memory.clone();
        let subscriber = tracing_subscriber::registry()
            .with(layer(format, false, move || stream.clone()).with_filter(filter));
        tracing::subscriber::with_default(subscriber, events);
        let bytes = memory.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn levels_ours_and_others() {
        let text = logged(LogFormat::Text, filter(LogLevel::Info, None).unwrap(), || {
            tracing::info!(member = "db1", "leader verified");
            tracing::debug!("not shown");
            tracing::info!(target: "hyper", "not shown either");
            tracing::warn!(target: "hyper", "shown");
        });
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(
            text.contains("INFO") && text.contains("leader verified member=\"db1\""),
            "{text}"
        );
        assert!(
            text.split(' ').next().unwrap().ends_with('Z'),
            "times are in UTC: {text}"
        );
        assert!(!text.contains('\u{1b}'));
        let text = logged(LogFormat::Text, filter(LogLevel::Error, None).unwrap(), || {
            tracing::warn!(target: "hyper", "not shown");
            tracing::warn!("not shown");
            tracing::error!("shown");
        });
        assert_eq!(text.lines().count(), 1, "{text}");
    }

    #[test]
    fn the_environment_replaces_the_level_and_a_fault_in_it_is_told() {
        let text = logged(
            LogFormat::Text,
            filter(LogLevel::Info, Some("trunkline=debug")).unwrap(),
            || {
                tracing::debug!("shown");
            },
        );
        assert_eq!(text.lines().count(), 1);
        assert_eq!(
            filter(LogLevel::Info, Some(" ")).unwrap().to_string(),
            "trunkline=info,warn"
        );
        assert!(matches!(
            filter(LogLevel::Info, Some("trunkline=loud")),
            Err(LogError::Filter(_))
        ));
    }

    #[test]
    fn json_is_one_object_per_line_with_fields() {
        let text = logged(LogFormat::Json, filter(LogLevel::Info, None).unwrap(), || {
            tracing::info!(user = %Escaped(b"a\nb"), bytes = 7, "session ended");
        });
        let value: serde_json::Value = serde_json::from_str(text.trim_end()).unwrap();
        assert_eq!(value["message"], "session ended");
        assert_eq!(value["user"], "\"a\\nb\"");
        assert_eq!(value["bytes"], 7);
        assert_eq!(value["level"], "INFO");
    }

    #[test]
    fn lost_lines_are_told_of_in_the_format_of_the_others() {
        let text = String::from_utf8(notice(LogFormat::Text, false, 7)).unwrap();
        assert_eq!(text.matches('\n').count(), 1, "{text}");
        assert!(text.contains("WARN") && text.ends_with("lines=7\n"), "{text}");
        let json: serde_json::Value = serde_json::from_slice(&notice(LogFormat::Json, false, 7)).unwrap();
        assert_eq!((&json["level"], &json["lines"]), (&"WARN".into(), &7.into()));
    }

    #[test]
    fn a_panic_is_an_event() {
        let text = logged(LogFormat::Text, filter(LogLevel::Error, None).unwrap(), || {
            panicked("src/a.rs:1:2", &"no such\nplace");
        });
        assert_eq!(text.matches('\n').count(), 1, "{text}");
        for expected in ["ERROR", "panicked: no such\\nplace", "src/a.rs:1:2"] {
            assert!(text.contains(expected), "{expected} is not in {text}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_in_a_value_an_event_is_one_line(value in any::<String>(), bytes in any::<Vec<u8>>()) {
            for format in [LogFormat::Text, LogFormat::Json] {
                let text = logged(format, filter(LogLevel::Info, None).unwrap(), || {
                    tracing::info!(user = %Escaped(&bytes), raw = %value, debug = ?value, "{value}");
                });
                prop_assert_eq!(text.matches('\n').count(), 1);
                prop_assert!(text.ends_with('\n'));
                prop_assert!(!text.trim_end_matches('\n').chars().any(char::is_control), "{:?}", text);
            }
        }
    }
}
