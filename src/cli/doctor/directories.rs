//! Directories that the router writes to: the control socket's, the state file's, those of Unix
//! sockets.

use std::path::Path;

use super::place::Place;
use crate::cluster::examine::Finding;
use crate::config::{BindAddress, Config};

pub(super) fn findings(config: &Config, place: &Place) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (key, path) in [
        ("control_socket", &config.control_socket),
        ("state_file", &config.state_file),
    ] {
        let what = format!("{key}: directory");
        findings.push(match path.as_deref() {
            Some(path) => writable(what, path, place),
            None => Finding::untried(what, format!("{key} is not set")),
        });
    }
    for listener in &config.listeners {
        if let BindAddress::Unix { path, .. } = &listener.address {
            findings.push(writable(
                format!("listener {}: directory", listener.name),
                path,
                place,
            ));
        }
    }
    if let Some(path) = config.state_file.as_deref().filter(|path| path.exists()) {
        let what = format!("state_file {}", path.display());
        findings.push(match crate::runtime::check_state_file(path) {
            Ok(()) => Finding::good(what, "can be read"),
            Err(error) => Finding::remark(
                what,
                error,
                "the router starts without it, and puts it aside: states and weights that operators have set are lost; \
                 correct it before the start",
            ),
        });
    }
    findings
}

/// A file is made there, and replaced.
fn writable(what: String, file: &Path, place: &Place) -> Finding {
    let Some(directory) = file.parent() else {
        return Finding::untried(what, "it has no directory");
    };
    let user = &place.user.name;
    if !directory.is_dir() {
        if place.unit.as_ref().is_some_and(|unit| unit.makes(directory)) {
            return Finding::good(
                what,
                format!("{}: systemd makes it at the start", directory.display()),
            );
        }
        return Finding::bad(
            what,
            format!("{} does not exist", directory.display()),
            format!("run `install -d -o {user} -m 0750 {}`", directory.display()),
        );
    }
    match place.user.obstacle(directory, 3) {
        None => Finding::good(what, format!("{user} may write to {}", directory.display())),
        Some(obstacle) => Finding::bad(
            what,
            format!("{user} may not write to {}", obstacle.display()),
            format!("run `chown {user} {}`", obstacle.display()),
        ),
    }
}
