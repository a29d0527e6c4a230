//! The log: one line per event on the standard error stream, text or JSON, times in UTC.
//!
//! Guarantees: an event is one line, whatever is in its values; no colours unless the stream is a terminal.

use std::io::{self, IsTerminal, Write};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Directive;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

use crate::config::{Log, LogFormat, LogLevel};
use crate::wire::text;

/// Why the log could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Refused rather than ignored: who sets it wants to see something.
    #[error("the environment variable RUST_LOG is not understood: {0}")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    #[error("the log is already set up")]
    AlreadySetUp,
}

/// The log that was set up, to be changed.
#[derive(Clone)]
pub struct LogHandle {
    filter: reload::Handle<EnvFilter, Registry>,
    layer: reload::Handle<Box<dyn Layer<Registry> + Send + Sync>, Registry>,
}

impl std::fmt::Debug for LogHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogHandle").finish_non_exhaustive()
    }
}

impl LogHandle {
    /// Another level and format, for the lines to come. `RUST_LOG`, as ever, replaces the level.
    ///
    /// # Errors
    /// As [`init`].
    pub fn replace(&self, config: &Log) -> Result<(), LogError> {
        let filter = filter(config.level, environment().as_deref())?;
        // Each fails only where the subscriber is gone, which is global.
        let _ = self.filter.reload(filter);
        let _ = self.layer.reload(layer(config.format, colours(), io::stderr));
        Ok(())
    }
}

/// Sets up the log of the process. `RUST_LOG`, where it is set and not empty, replaces the configured level.
///
/// # Errors
/// A `RUST_LOG` that is not understood; a second call.
pub fn init(config: &Log) -> Result<LogHandle, LogError> {
    let filter = filter(config.level, environment().as_deref())?;
    let (filter, filter_handle) = reload::Layer::new(filter);
    let (layer, layer_handle) = reload::Layer::new(layer(config.format, colours(), io::stderr));
    tracing_subscriber::registry()
        .with(layer.with_filter(filter))
        .try_init()
        .map_err(|_| LogError::AlreadySetUp)?;
    Ok(LogHandle {
        filter: filter_handle,
        layer: layer_handle,
    })
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
    let (ours, name) = match level {
        LogLevel::Error => (LevelFilter::ERROR, "error"),
        LogLevel::Warn => (LevelFilter::WARN, "warn"),
        LogLevel::Info => (LevelFilter::INFO, "info"),
        LogLevel::Debug => (LevelFilter::DEBUG, "debug"),
        LogLevel::Trace => (LevelFilter::TRACE, "trace"),
    };
    let own: Directive = format!("trunkline={name}").parse()?;
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
            .with_writer(move || OneLine {
                stream: stream(),
                colours,
            })
            .boxed(),
        LogFormat::Json => tracing_subscriber::fmt::layer()
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .with_writer(stream)
            .boxed(),
    }
}

/// The last guard against a forged line: control characters inside an event are escaped, whoever put them there.
/// Values from outside go through `wire::text::Escaped` long before.
struct OneLine<W> {
    stream: W,
    /// The formatter's own escape sequences; those in values it has escaped itself.
    colours: bool,
}

impl<W: Write> Write for OneLine<W> {
    /// The formatter writes one event at a time.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let (body, end) = text.strip_suffix('\n').map_or((&*text, ""), |body| (body, "\n"));
        let mut line = String::with_capacity(text.len());
        for c in body.chars() {
            if text::is_unsafe(c) && !(self.colours && c == '\u{1b}') {
                line.extend(c.escape_default());
            } else {
                line.push(c);
            }
        }
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
    use std::sync::{Arc, Mutex};

    use proptest::prelude::*;

    use super::*;
    use crate::wire::text::Escaped;

    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<Vec<u8>>>);

    impl Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: LogFormat, filter: EnvFilter, events: impl FnOnce()) -> String {
        let memory = Memory::default();
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
