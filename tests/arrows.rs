//! The arrows between the rooms of `src/`, as docs/architecture.md explains them: which room may
//! use which. Code for tests, fuzzing and measurements may use everything. And how wide comments
//! are, which rustfmt does not hold.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// A room, and the paths below `crate::` that it may use. A path stands for all that is below it.
const ARROWS: &[(&str, &[&str])] = &[
    ("tls", &[]),
    ("events", &[]),
    ("labels", &[]),
    ("names", &[]),
    ("wire", &[]),
    ("config", &["tls"]),
    ("listen", &["config"]),
    ("auth", &["config", "wire"]),
    ("backend", &["auth", "config", "names", "tls", "wire"]),
    (
        "cluster",
        &["auth", "backend", "config", "events", "names", "tls", "wire"],
    ),
    (
        "routing",
        &["config", "cluster::server_identity", "cluster::snapshot"],
    ),
    (
        "frontend",
        &[
            "auth",
            "cluster::ClusterHandle",
            "cluster::LookupError",
            "config",
            "labels",
            "listen",
            "names",
            "tls",
            "wire",
        ],
    ),
    (
        "session",
        &[
            "auth", "backend", "cluster", "config", "frontend", "labels", "listen", "names", "routing",
            "wire",
        ],
    ),
    (
        "admin",
        &[
            "auth", "cluster", "config", "events", "frontend", "labels", "listen", "names", "routing",
            "session", "tls", "wire",
        ],
    ),
    (
        "runtime",
        &[
            "admin", "auth", "backend", "cluster", "config", "events", "frontend", "listen", "session",
            "wire",
        ],
    ),
    (
        "cli",
        &[
            "admin",
            "auth",
            "cluster",
            "config",
            "frontend",
            "listen",
            "names",
            "runtime",
            "session::peers",
            "tls",
            "wire",
        ],
    ),
];

/// A path from the root of the crate, and where it is written.
struct Use {
    room: String,
    path: String,
    file: PathBuf,
    line: usize,
}

#[test]
fn rooms_use_only_what_their_arrows_allow() {
    let all = ARROWS
        .iter()
        .flat_map(|(room, allowed)| allowed.iter().map(move |to| (*room, *to)));
    let mut unused: BTreeSet<(&str, &str)> = all.collect();
    let mut faults = Vec::new();
    for Use {
        room,
        path,
        file,
        line,
    } in &uses()
    {
        let file = file.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap_or(file);
        let at = format!("{}:{line}", file.display());
        let Some((room, allowed)) = ARROWS.iter().find(|(name, _)| name == room) else {
            faults.push(format!("{at}: the room {room} has no row in ARROWS"));
            continue;
        };
        let is_below = |to: &str| {
            path.strip_prefix(to)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
        };
        match allowed.iter().find(|to| is_below(to)) {
            Some(to) => _ = unused.remove(&(room, to)),
            None if is_below(room) => {}
            None => faults.push(format!("{at}: {room} may not use {path}")),
        }
    }
    assert!(
        faults.is_empty(),
        "ARROWS in tests/arrows.rs does not allow this:\n{}",
        faults.join("\n")
    );
    assert!(unused.is_empty(), "no code needs these arrows: {unused:?}");
}

#[test]
fn comments_wrap_at_100_columns() {
    let mut folders: Vec<PathBuf> = ["src", "tests", "benches", "fuzz/fuzz_targets"]
        .iter()
        .map(|folder| Path::new(env!("CARGO_MANIFEST_DIR")).join(folder))
        .collect();
    let (mut comments, mut wide) = (0, Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                for (number, line) in (1..).zip(text.lines()) {
                    let Some(comment) = line.trim_start().strip_prefix("//") else {
                        continue;
                    };
                    comments += 1;
                    let is_row = comment.trim_start_matches(['/', '!', ' ']).starts_with('|');
                    // Neither a link nor a row of a table can be wrapped.
                    if line.chars().count() > 100 && !is_row && !line.contains("://") {
                        wide.push(format!("{}:{number}", path.display()));
                    }
                }
            }
        }
    }
    assert!(comments > 5000, "the comments are read: {comments}");
    assert!(
        wide.is_empty(),
        "wrap these comments at 100 columns:\n{}",
        wide.join("\n")
    );
}

/// What the code of every room uses, but for tests, fuzzing and measurements.
fn uses() -> Vec<Use> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut uses = Vec::new();
    for name in modules(&code(&src.join("lib.rs"))) {
        room(&name, &src, std::slice::from_ref(&name), &mut uses);
    }
    assert!(uses.len() > 1000, "the code is read: {}", uses.len());
    uses
}

/// Reads the module at `path`, whose file is in `folder`, and those below it.
fn room(name: &str, folder: &Path, path: &[String], uses: &mut Vec<Use>) {
    let inner = folder.join(name);
    let file = Some(folder.join(format!("{name}.rs")))
        .filter(|file| file.exists())
        .unwrap_or(inner.join("mod.rs"));
    let text = code(&file);
    let to_root = "super::".repeat(path.len());
    for root in ["crate::", to_root.as_str()] {
        for (at, _) in text.match_indices(root) {
            // A longer row of `super` reaches nothing, and a shorter one stays in the room.
            if text[..at].ends_with(|c: char| c.is_alphanumeric() || matches!(c, '_' | ':' | '$')) {
                continue;
            }
            let line = text[..at].matches('\n').count() + 1;
            for used in paths(&mut text[at + root.len()..].trim_start()) {
                uses.push(Use {
                    room: path[0].clone(),
                    path: used,
                    file: file.clone(),
                    line,
                });
            }
        }
    }
    for child in modules(&text) {
        room(
            &child,
            &inner,
            &[path, std::slice::from_ref(&child)].concat(),
            uses,
        );
    }
}

/// The text of a file, with comments and the items for tests, fuzzing and measurements left empty,
/// so that lines keep their numbers.
fn code(file: &Path) -> String {
    let text = fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let mut code = String::new();
    // How far the attribute is indented whose item is being left out.
    let mut skipped = None;
    for line in text.lines() {
        let trimmed = line.trim_start();
        let indent = line.len() - trimmed.len();
        if let Some(began) = skipped {
            // Lines within the item are indented further.
            if indent == began && !trimmed.starts_with("#[") && line.ends_with([';', ',', '}']) {
                skipped = None;
            }
        } else if trimmed.starts_with("#[cfg(test)]") || trimmed.starts_with("#[cfg(any(test, ") {
            skipped = Some(indent);
        } else if !trimmed.starts_with("//") {
            code.push_str(line);
        }
        code.push('\n');
    }
    code
}

/// The modules in files of their own that a file declares.
fn modules(code: &str) -> Vec<String> {
    let words = |line: &str| Some(line.strip_suffix(';')?.rsplit_once("mod ")?.1.to_owned());
    code.lines()
        .filter(|line| !line.contains("use "))
        .filter_map(words)
        .collect()
}

/// The paths of one use tree: `a::{b, c::d}` has `a::b` and `a::c::d`.
fn paths(text: &mut &str) -> Vec<String> {
    let mut path = String::new();
    loop {
        *text = text.trim_start();
        if let Some(mut rest) = text.strip_prefix('{') {
            let mut all = Vec::new();
            while !rest.trim_start().starts_with('}') {
                all.extend(paths(&mut rest).into_iter().map(|inner| path.clone() + &inner));
                rest = rest.trim_start().trim_start_matches(',');
            }
            *text = &rest.trim_start()[1..];
            return all;
        }
        let word = text
            .find(|c: char| !c.is_alphanumeric() && c != '_')
            .unwrap_or(text.len());
        path.push_str(&text[..word]);
        *text = &text[word..];
        match text.strip_prefix("::") {
            Some(rest) if rest.starts_with(|c: char| c.is_alphanumeric() || matches!(c, '_' | '{' | '*')) => {
                *text = rest;
                path.push_str("::");
            }
            // The rest of an alias, or the star.
            _ => {
                *text = text.trim_start_matches('*').trim_start();
                if let Some(alias) = text.strip_prefix("as ") {
                    *text = alias.trim_start_matches(|c: char| c.is_alphanumeric() || c == '_');
                }
                return vec![path.trim_end_matches(':').to_owned()];
            }
        }
    }
}
