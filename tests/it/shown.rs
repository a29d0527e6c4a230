//! Runs what a document shows, and compares what comes of it.
//!
//! Blocks marked `sh` and `console` are run in order, in one shell. In a `console` block a line
//! that begins with `$ ` is a command and what follows is its output; `…` is for whatever stands
//! there, alone on a line for any lines. A comment on the line before a block says what else holds:
//!
//! - `<!-- not run: why -->`: no test runs it.
//! - `<!-- run by NAME -->`: this test runs such a command where it can, at another place.
//! - `<!-- example: … -->`: what stands below the commands is made up. Only the first line of each
//!   output is compared, where each number stands for any.
//! - `<!-- not ours: whose -->`: a block marked `yaml` that is no configuration of the router.
#![allow(clippy::unwrap_used)]

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cluster::{output, project, secret};

pub struct Block {
    pub line: usize,
    pub kind: String,
    pub text: String,
    /// The comment on the line before it: its first word or words, and the rest.
    pub note: Option<(String, String)>,
}

impl Block {
    pub fn is(&self, note: &str) -> bool {
        self.note.as_ref().is_some_and(|(word, _)| word == note)
    }

    fn is_run(&self) -> bool {
        !self.is("not run") && !self.is("run by")
    }
}

fn note(line: &str) -> Option<(String, String)> {
    let comment = line.trim().strip_prefix("<!-- ")?.strip_suffix(" -->")?;
    if let Some(name) = comment.strip_prefix("run by ") {
        return Some(("run by".to_owned(), name.to_owned()));
    }
    let (word, rest) = comment.split_once(": ")?;
    Some((word.to_owned(), rest.to_owned()))
}

pub fn blocks(markdown: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let (mut inside, mut before) = (false, "");
    for (index, line) in markdown.lines().enumerate() {
        match (line.trim_start().strip_prefix("```"), inside) {
            (Some(_), true) => inside = false,
            (Some(kind), false) => {
                inside = true;
                blocks.push(Block {
                    line: index + 1,
                    kind: kind.to_owned(),
                    text: String::new(),
                    note: note(before),
                });
            }
            (None, true) => writeln!(blocks.last_mut().unwrap().text, "{line}").unwrap(),
            (None, false) => {}
        }
        before = line;
    }
    assert!(!inside, "a block does not end");
    blocks
}

/// A command of a `console` block with what it is to say.
struct Said {
    command: String,
    expected: Vec<String>,
    output: PathBuf,
    is_example: bool,
}

/// Runs a document's blocks in the project's folder.
pub fn run(document: &str, replacements: &[(&str, String)], dir: &Path) {
    run_in(project(), document, replacements, dir);
}

/// Runs a document's blocks with the replacements made in them, each of which must be for
/// something.
pub fn run_in(folder: &Path, document: &str, replacements: &[(&str, String)], dir: &Path) {
    let mut text = fs::read_to_string(project().join(document)).unwrap();
    for (from, to) in replacements {
        assert!(text.contains(from), "{document} has no {from}");
        text = text.replace(from, to);
    }
    let mut script = "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT\nset -eu -o pipefail\n".to_owned();
    let mut said: Vec<Said> = Vec::new();
    for block in blocks(&text).into_iter().filter(Block::is_run) {
        match &*block.kind {
            "sh" => writeln!(script, "echo '{document}:{}'\n{}", block.line, block.text).unwrap(),
            "console" => {
                for line in block.text.lines() {
                    if let Some(command) = line.strip_prefix("$ ") {
                        let output = dir.join(format!("said-{}", said.len()));
                        writeln!(
                            script,
                            "echo '{document}:{}'\n{{ {command}\n}} >{} 2>&1 || true",
                            block.line,
                            output.display()
                        )
                        .unwrap();
                        said.push(Said {
                            command: command.to_owned(),
                            expected: Vec::new(),
                            output,
                            is_example: block.is("example"),
                        });
                    } else {
                        let last = said.last_mut().expect("a command comes before its output");
                        last.expected.push(line.to_owned());
                    }
                }
            }
            _ => {}
        }
    }
    let path = dir.join("script");
    fs::write(&path, &script).unwrap();
    symlink(env!("CARGO_BIN_EXE_trunkline"), dir.join("trunkline")).unwrap();
    let passwords = secret(
        dir,
        "pgpass",
        "*:*:*:app:app\n*:*:*:app_repl:app_repl\n*:*:*:postgres:postgres",
    );
    let search = format!("{}:{}", dir.display(), std::env::var("PATH").unwrap());
    let bash = |arguments: &[&str]| {
        output(
            Command::new("timeout")
                .args(["120", "bash"])
                .args(arguments)
                .current_dir(folder)
                .env("PATH", &search)
                .env("USER", user())
                .env("PGPASSFILE", &passwords),
        )
    };
    let done = bash(&[path.to_str().unwrap()]);
    let shown = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        done.status.success(),
        "{}\n{}\n{}",
        done.status,
        shown(&done.stdout),
        shown(&done.stderr)
    );
    assert!(!said.is_empty(), "{document} shows no output");
    for said in said {
        let is_right = |found: &str| {
            if said.is_example {
                let first = |text: Option<&str>| shape(text.unwrap_or_default());
                first(said.expected.first().map(String::as_str)) == first(found.lines().next())
            } else {
                fits(&said.expected, &found.lines().collect::<Vec<_>>())
            }
        };
        let mut found = fs::read_to_string(&said.output).unwrap();
        if !is_right(&found) {
            // What is shown of a session follows its answer by a moment: on a busy machine a reader
            // would look again, too.
            eprintln!("{} said {found}and is asked again", said.command);
            let again = bash(&["-c", &format!("{{ {}\n}} 2>&1", said.command)]);
            found = shown(&again.stdout);
        }
        assert!(
            is_right(&found),
            "{}\nsays\n{found}and not\n{}",
            said.command,
            said.expected.join("\n")
        );
    }
}

/// The name of the one who runs the tests; a shell's USER need not be set.
pub fn user() -> String {
    let name = output(Command::new("id").arg("-un"));
    String::from_utf8(name.stdout).unwrap().trim().to_owned()
}

/// A line in which each number is 0, and spaces do not count.
fn shape(line: &str) -> String {
    let mut shape = String::new();
    for word in line.split_whitespace() {
        for c in word.chars() {
            if !c.is_ascii_digit() {
                shape.push(c);
            } else if !shape.ends_with('0') {
                shape.push('0');
            }
        }
        shape.push(' ');
    }
    shape
}

fn fits(expected: &[String], found: &[&str]) -> bool {
    match (expected.split_first(), found.split_first()) {
        (None, found) => found.is_none(),
        (Some((any, rest)), _) if any == "…" => {
            (0..=found.len()).any(|skipped| fits(rest, &found[skipped..]))
        }
        (Some(_), None) => false,
        (Some((line, expected)), Some((found, after))) => line_fits(line, found) && fits(expected, after),
    }
}

/// What stands between the `…` of a line stands there in this order; spaces do not count.
fn line_fits(expected: &str, found: &str) -> bool {
    let squeezed = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let (expected, found) = (squeezed(expected), squeezed(found));
    let Some((first, rest)) = expected.split_once('…') else {
        return expected == found;
    };
    let Some(mut found) = found.strip_prefix(first.trim_end()) else {
        return false;
    };
    for part in rest.split('…').map(str::trim) {
        let Some((_, after)) = found.split_once(part) else {
            return false;
        };
        found = after;
    }
    expected.ends_with('…') || found.is_empty()
}

#[test]
fn outputs_are_compared_line_by_line() {
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
    for (expected, found, is_right) in [
        ("f", "f", true),
        ("f", "t", false),
        ("f", "f\nf", false),
        ("f", "", false),
        ("", "f", false),
        ("a …  c", "a  b c", true),
        ("a … c", "a b c d", false),
        ("a … c …", "a b c d", true),
        ("NAME …\n…", "NAME X\n1\n2", true),
        ("…\nend", "1\n2\nend", true),
        ("…\nend", "1\n2", false),
    ] {
        let found: Vec<&str> = found.lines().collect();
        assert_eq!(
            fits(&lines(expected), &found),
            is_right,
            "{expected:?} and {found:?}"
        );
    }
}
