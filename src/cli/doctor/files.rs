//! The files that the configuration names: whether the router's user may read them, and who else
//! may replace them.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::place::Place;
use crate::cluster::examine::Finding;
use crate::config::Config;

const WRITABLE_BY_ALL: u32 = 0o002;
const STICKY: u32 = 0o1000;

pub(super) fn findings(config: &Config, place: &Place) -> Vec<Finding> {
    let mut paths: BTreeSet<PathBuf> = BTreeSet::from([config.path.clone()]);
    for (_, stamps) in config.files().units() {
        paths.extend(stamps.keys().cloned());
    }
    paths.extend(config.auth.hba_file.clone());
    paths.extend(config.auth.ident_file.clone());
    let count = paths.len();
    let mut findings = Vec::new();
    for path in &paths {
        // Relative names start from the configuration's directory, which may be relative itself.
        let whole = std::path::absolute(path).unwrap_or_else(|_| path.clone());
        findings.extend(readable(&whole, place));
        findings.extend(safe(&whole, place));
    }
    if findings.is_empty() {
        let what = "files of the configuration".to_owned();
        let found = format!(
            "{} may read all {count}, and nobody else may replace them",
            place.user.name
        );
        findings.push(Finding::good(what, found));
    }
    findings
}

fn readable(path: &Path, place: &Place) -> Option<Finding> {
    let user = &place.user;
    let obstacle = user.obstacle(path, 4)?;
    let what = format!("file {}", path.display());
    let (found, hint) = if obstacle == path {
        (
            format!("{} may not read it", user.name),
            format!(
                "run `chown root:{0} {1}` and `chmod 0640 {1}`",
                user.name,
                path.display()
            ),
        )
    } else {
        (
            format!("{} may not enter the directory {}", user.name, obstacle.display()),
            format!(
                "run `chgrp {0} {1}` and `chmod g+x {1}`",
                user.name,
                obstacle.display()
            ),
        )
    };
    Some(Finding::bad(what, found, hint))
}

/// Somebody who may replace a file decides who logs in, or which servers are trusted.
fn safe(path: &Path, place: &Place) -> Option<Finding> {
    let what = format!("file {}", path.display());
    let metadata = std::fs::metadata(path).ok()?;
    if metadata.uid() != 0 && metadata.uid() != place.user.uid {
        return Some(Finding::remark(
            what,
            format!(
                "belongs to another user (uid {}), who can change it",
                metadata.uid()
            ),
            format!("run `chown root:{} {}`", place.user.name, path.display()),
        ));
    }
    let directories = path.ancestors().skip(1);
    let mut open = directories.filter(|parent| {
        std::fs::metadata(parent)
            .is_ok_and(|metadata| metadata.mode() & WRITABLE_BY_ALL != 0 && metadata.mode() & STICKY == 0)
    });
    let open = open.next()?;
    Some(Finding::remark(
        what,
        format!(
            "every user of this host can replace it: the directory {} is writable for all",
            open.display()
        ),
        format!("run `chmod o-w {}`", open.display()),
    ))
}
