//! The manual pages in `packaging/man/`: one for the program and one for each of its commands, made
//! from the command line. `make reference` writes them. The program itself does not contain them.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use clap::{Command, CommandFactory};
use clap_mangen::Man;

use super::Arguments;

/// Set, the committed pages are written anew: `make reference`.
const WRITE: &str = "TRUNKLINE_WRITE_REFERENCE";

const FILES: &str = r".SH FILES
.TP
/etc/trunkline/trunkline.yaml
The configuration. \fBtrunkline schema\fR prints its schema.
.TP
/run/trunkline/control.sock
Where \fBtrunkline reload\fR and \fBtrunkline upgrade\fR find the running process.
.TP
/var/lib/trunkline/state.json
What operators have set for members and routes. It outlives a restart.
";

const STATUS: &str = r#".SH "EXIT STATUS"
0 is success. 1 is a failure, with the reason on standard error. 2 is a wrong command line.
"#;

const MORE: &str = r#".SH "SEE ALSO"
The documents are in /usr/share/doc/trunkline.
"#;

#[test]
fn the_manual_pages_are_those_of_the_command_line() {
    let mut command = Arguments::command().disable_help_subcommand(true);
    command.build();
    let mut wanted = BTreeMap::new();
    pages(&command, true, &mut wanted);

    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/man");
    if std::env::var_os(WRITE).is_some() {
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        for (name, page) in &wanted {
            fs::write(dir.join(name), page).unwrap();
        }
    }
    let found: BTreeMap<_, _> = fs::read_dir(&dir)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let page = fs::read_to_string(entry.path()).unwrap();
            (entry.file_name().into_string().unwrap(), page)
        })
        .collect();
    assert!(
        found == wanted,
        "{} is not what the command line says: `make reference` writes it",
        dir.display()
    );
}

fn pages(command: &Command, is_program: bool, pages: &mut BTreeMap<String, String>) {
    let page = Man::new(command.clone()).source("Trunkline").manual("Trunkline");
    let mut bytes = Vec::new();
    page.render(&mut bytes).unwrap();
    let mut text = String::from_utf8(bytes).unwrap();
    // The library writes an empty date as nothing, and what follows would move up.
    text = text.replacen(" 1  Trunkline", " 1 \"\" Trunkline", 1);
    // A release alone changes no page.
    if let Some(start) = text.find(".SH VERSION\n") {
        text.truncate(start);
    }
    text.push_str(STATUS);
    text.push_str(if is_program { FILES } else { "" });
    text.push_str(MORE);
    pages.insert(page.get_filename(), text);
    for command in command.get_subcommands().filter(|command| !command.is_hide_set()) {
        self::pages(command, false, pages);
    }
}
