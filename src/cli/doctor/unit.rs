//! The service's unit, as far as it decides what the router may do. Reads the unit's file and its
//! drop-ins; it runs no program.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cluster::examine::Finding;
use crate::config::{Config, parse_duration, shown_duration};

/// Where systemd looks, first things first.
const DIRECTORIES: [&str; 5] = [
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];

const NAME: &str = "trunkline.service";

/// systemd's `DefaultTimeoutStopSec`.
const STOP: Duration = Duration::from_secs(90);

pub(super) struct Unit {
    pub(super) path: PathBuf,
    /// Keys of `[Service]`, the last assignment of each.
    values: BTreeMap<String, String>,
}

impl Unit {
    /// The one that systemd would use.
    pub(super) fn installed() -> Option<Self> {
        let mut paths = DIRECTORIES
            .iter()
            .map(|directory| Path::new(directory).join(NAME));
        paths.find_map(|path| Self::read(&path).ok())
    }

    /// # Errors
    /// The file cannot be read; in words.
    pub(super) fn read(path: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        let mut values = BTreeMap::new();
        assign(&mut values, &text);
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let beside = path.parent().unwrap_or(Path::new("")).to_owned();
        let mut places: Vec<PathBuf> = DIRECTORIES.iter().rev().map(PathBuf::from).collect();
        if !places.contains(&beside) {
            places.push(beside);
        } else if name != NAME {
            places = vec![beside];
        }
        for place in places {
            let Ok(entries) = std::fs::read_dir(place.join(format!("{name}.d"))) else {
                continue;
            };
            let mut parts: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
            parts.retain(|part| part.extension().is_some_and(|end| end == "conf"));
            parts.sort();
            for part in parts {
                assign(&mut values, &std::fs::read_to_string(part).unwrap_or_default());
            }
        }
        Ok(Self {
            path: path.to_owned(),
            values,
        })
    }

    pub(super) fn value(&self, key: &str) -> Option<&str> {
        self.values
            .get(key)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }

    /// Whether it starts the router with this configuration.
    pub(super) fn starts(&self, config: &Path) -> bool {
        let real = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let start = self.value("ExecStart").unwrap_or_default();
        start.split_whitespace().any(|word| {
            let word = word.strip_prefix("--config=").unwrap_or(word);
            Path::new(word).is_absolute() && real(Path::new(word)) == real(config)
        })
    }

    /// The hard limit of descriptors; `None` where it has none.
    pub(super) fn descriptors(&self) -> Option<u64> {
        let value = self.value("LimitNOFILE")?;
        let hard = value.rsplit(':').next()?;
        if hard == "infinity" {
            Some(u64::MAX)
        } else {
            hard.parse().ok()
        }
    }

    pub(super) fn may_bind_low_ports(&self) -> bool {
        self.value("AmbientCapabilities")
            .is_some_and(|given| given.contains("CAP_NET_BIND_SERVICE"))
    }

    /// Whether systemd makes this directory before the start.
    pub(super) fn makes(&self, directory: &Path) -> bool {
        let made = |key: &str, root: &str| {
            let names = self.value(key).unwrap_or_default().split_whitespace();
            names
                .map(|name| Path::new(root).join(name))
                .any(|path| directory.starts_with(path))
        };
        made("RuntimeDirectory", "/run") || made("StateDirectory", "/var/lib")
    }

    /// Whether the sandbox lets the service write there.
    fn may_write(&self, directory: &Path) -> bool {
        let open = self.value("ProtectSystem") != Some("strict");
        let named = self
            .value("ReadWritePaths")
            .unwrap_or_default()
            .split_whitespace();
        open || self.makes(directory)
            || named
                .map(|path| path.trim_start_matches(['-', '+']))
                .any(|path| directory.starts_with(path))
    }

    pub(super) fn findings(&self, config: &Config) -> Vec<Finding> {
        let what = |key: &str| format!("service {}: {key}", self.path.display());
        let mut findings = Vec::new();
        let shutdown = config.shutdown.delay + config.shutdown.grace;
        let stop = match self.value("TimeoutStopSec") {
            None => Some(STOP),
            Some("infinity" | "0") => None,
            Some(given) => seconds(given).or(Some(STOP)),
        };
        findings.push(match stop {
            Some(stop) if stop <= shutdown => Finding::remark(
                what("TimeoutStopSec"),
                format!(
                    "systemd kills the router after {}, and it may take {} to end its sessions (shutdown.delay + shutdown.grace)",
                    shown_duration(stop),
                    shown_duration(shutdown)
                ),
                format!(
                    "set TimeoutStopSec={} or more (`systemctl edit trunkline`)",
                    shutdown.as_secs() + 10
                ),
            ),
            _ => Finding::good(what("TimeoutStopSec"), "longer than shutdown.delay and shutdown.grace"),
        });
        findings.push(match self.value("Type") {
            Some("notify" | "notify-reload") => Finding::good(what("Type"), "notify"),
            other => Finding::remark(
                what("Type"),
                format!(
                    "is {}, so systemd takes an upgrade for the end of the service",
                    other.unwrap_or("simple")
                ),
                "set Type=notify and NotifyAccess=main, as config/trunkline.service does",
            ),
        });
        let files = [
            ("control_socket", &config.control_socket),
            ("state_file", &config.state_file),
        ];
        for (key, file) in files {
            if let Some(directory) = file.as_deref().and_then(Path::parent)
                && !self.may_write(directory)
            {
                findings.push(Finding::bad(
                    what("ProtectSystem"),
                    format!(
                        "the service may not write to {}, where {key} is",
                        directory.display()
                    ),
                    format!(
                        "set ReadWritePaths={} (`systemctl edit trunkline`)",
                        directory.display()
                    ),
                ));
            }
        }
        findings
    }
}

fn assign(values: &mut BTreeMap<String, String>, text: &str) {
    let mut is_service = false;
    for line in text.lines().map(str::trim) {
        if line.starts_with('[') {
            is_service = line == "[Service]";
        } else if is_service
            && !line.starts_with(['#', ';'])
            && let Some((key, value)) = line.split_once('=')
        {
            values.insert(key.trim().to_owned(), value.trim().to_owned());
        }
    }
}

/// `40`, `1min 30s`; `None` for what is not understood.
fn seconds(text: &str) -> Option<Duration> {
    let parts = text.split_whitespace().map(|part| match part.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => parse_duration(&part.replace("min", "m").replace("sec", "s")),
    });
    parts.sum::<Option<Duration>>()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn drop_ins_count_after_the_unit() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("t.service");
        let unit = "[Unit]\nUser=no\n[Service]\n# User=no\nUser=trunkline\nLimitNOFILE=1024:65536\nTimeoutStopSec=1min 30s\n\
                    StateDirectory=trunkline\nProtectSystem=strict\nReadWritePaths=-/srv/t\n";
        std::fs::write(&path, unit).unwrap();
        let parts = directory.path().join("t.service.d");
        std::fs::create_dir(&parts).unwrap();
        std::fs::write(parts.join("a.conf"), "[Service]\nLimitNOFILE=infinity\n").unwrap();
        std::fs::write(parts.join("b.txt"), "[Service]\nUser=other\n").unwrap();
        let unit = Unit::read(&path).unwrap();
        assert_eq!(unit.value("User"), Some("trunkline"));
        assert_eq!(unit.descriptors(), Some(u64::MAX));
        assert!(unit.makes(Path::new("/var/lib/trunkline")) && !unit.makes(Path::new("/run/trunkline")));
        assert!(unit.may_write(Path::new("/srv/t/a")) && !unit.may_write(Path::new("/srv/other")));
        assert_eq!(seconds("1min 30s"), Some(Duration::from_secs(90)));
        assert_eq!(seconds("40"), Some(Duration::from_secs(40)));
        assert_eq!(seconds("soon"), None);
    }
}
