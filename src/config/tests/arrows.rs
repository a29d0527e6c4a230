//! The modules of this room use each other in one direction: the model at the bottom, then the
//! table of keys, the typed readers, the readers of sections, and the room's own functions.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// From the bottom. A module may use those of its own layer (without a cycle) and those below.
const LAYERS: [&[&str]; 6] = [
    &["secret", "units", "spelling", "tree", "error", "replace"],
    &["model"],
    &[
        "schema",
        "leaf",
        "in_use",
        "settings",
        "stamps",
        "reloaded",
        "diff",
        "warnings",
        "passphrase",
    ],
    &["files"],
    &["fields"],
    &["readers"],
];
/// All that the model may use besides itself.
const BELOW_MODEL: [&str; 2] = ["secret", "units"];

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else {
            found.push(path);
        }
    }
}

/// Each source's module, as `["readers", "routes"]`, and its text without tests and comments.
fn modules() -> BTreeMap<Vec<String>, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/config");
    let mut found = Vec::new();
    sources(&root, &mut found);
    let module = |path: &PathBuf| {
        let place = path.strip_prefix(&root).unwrap().with_extension("");
        let names: Vec<String> = place
            .iter()
            .map(|name| name.to_str().unwrap().to_owned())
            .collect();
        let text = fs::read_to_string(path).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
        (names, lines.collect::<Vec<_>>().join("\n"))
    };
    found
        .iter()
        .map(module)
        .filter(|(names, _)| !["mod", "tests"].contains(&names[0].as_str()))
        .collect()
}

/// The modules of this room that a module names, seen from the room: `["model", "Route"]`.
fn named(module: &[String], text: &str) -> Vec<Vec<String>> {
    let mut named = Vec::new();
    let word = |text: &str| -> String {
        let end = text.find(|c: char| !c.is_alphanumeric() && c != '_');
        text[..end.unwrap_or(text.len())].to_owned()
    };
    let mut add = |base: &[String], rest: &str| {
        // `{a, b::c}` or one path; what is nested deeper is below one of these.
        let list = rest.strip_prefix('{').map(|list| {
            let mut depth = 1;
            let closed = list.find(|c: char| {
                depth += i32::from(c == '{') - i32::from(c == '}');
                depth == 0
            });
            &list[..closed.unwrap_or(list.len())]
        });
        for item in list
            .unwrap_or(rest)
            .split(',')
            .take(list.map_or(1, |_| usize::MAX))
        {
            named.push(base.iter().cloned().chain([word(item.trim())]).collect());
        }
    };
    for (at, _) in text.match_indices("crate::config::") {
        add(&[], &text[at + "crate::config::".len()..]);
    }
    for (at, _) in text.match_indices("super::") {
        if text[..at].ends_with("super::") {
            continue;
        }
        let (mut rest, mut up) = (&text[at..], 0);
        while let Some(after) = rest.strip_prefix("super::") {
            (rest, up) = (after, up + 1);
        }
        add(&module[..module.len().saturating_sub(up)], rest);
    }
    named
}

#[test]
fn a_module_uses_only_its_own_layer_and_those_below() {
    let layer = |name: &str| LAYERS.iter().position(|layer| layer.contains(&name));
    for (module, text) in modules() {
        let own = &module[0];
        let height = layer(own).unwrap_or_else(|| panic!("{own} is in no layer"));
        for used in named(&module, &text) {
            let Some(other) = layer(&used[0]).filter(|_| used[0] != *own) else {
                continue;
            };
            assert!(other <= height, "{module:?} uses {used:?}");
            assert!(
                own != "model" || BELOW_MODEL.contains(&used[0].as_str()),
                "{module:?} uses {used:?}"
            );
        }
    }
}

/// The readers of sections are the only layer whose modules are many: none of them uses one that
/// uses it.
#[test]
fn the_readers_of_sections_have_no_cycle() {
    let uses: BTreeMap<String, BTreeSet<String>> = modules()
        .into_iter()
        .filter(|(module, _)| module.len() == 2 && module[0] == "readers")
        .map(|(module, text)| {
            let used = named(&module, &text).into_iter();
            let used = used.filter(|path| path.len() == 2 && path[0] == "readers");
            (module[1].clone(), used.map(|path| path[1].clone()).collect())
        })
        .collect();
    assert!(uses.len() > 15 && uses["routes"].contains("clusters"), "{uses:?}");
    let mut left = uses.clone();
    while !left.is_empty() {
        let before = left.len();
        let names: BTreeSet<String> = left.keys().cloned().collect();
        left.retain(|_, used| !used.is_disjoint(&names));
        assert!(left.len() < before, "a cycle among {names:?}");
    }
}
