//! `docs/` is a book: each page is in its list of contents, begins with what it is for, and shows
//! commands that are run.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::cluster::project;
use crate::documents::{documents, prose};

const CONTENTS: &str = "docs/SUMMARY.md";

fn text(document: &Path) -> String {
    fs::read_to_string(project().join(document)).unwrap()
}

/// Documents of the folder, without the list of contents itself.
fn pages() -> Vec<std::path::PathBuf> {
    let in_book =
        |document: &std::path::PathBuf| document.starts_with("docs") && document != Path::new(CONTENTS);
    documents().into_iter().filter(in_book).collect()
}

/// `make book` leaves out what is not in the list.
#[test]
fn the_book_has_every_page_once() {
    let contents = text(Path::new(CONTENTS));
    let listed: Vec<String> = contents
        .split("](")
        .skip(1)
        .map(|rest| format!("docs/{}", rest.split(')').next().unwrap()))
        .collect();
    let pages: BTreeSet<String> = pages().iter().map(|page| page.display().to_string()).collect();
    assert_eq!(listed.iter().cloned().collect::<BTreeSet<_>>(), pages);
    assert_eq!(listed.len(), pages.len(), "a page is listed twice");
}

/// One title, then a sentence that says what the page is for.
#[test]
fn each_page_begins_with_what_it_is_for() {
    for page in pages() {
        let text = text(&page);
        let titles: Vec<&str> = prose(&text)
            .map(|(_, line)| line)
            .filter(|line| line.starts_with("# "))
            .collect();
        assert_eq!(titles.len(), 1, "{}: {titles:?}", page.display());
        let mut lines = text.lines().filter(|line| !line.is_empty());
        assert_eq!(lines.next(), Some(titles[0]), "{}", page.display());
        let first = lines.next().unwrap_or_default();
        assert!(
            first.starts_with(|c: char| c.is_alphabetic() || c == '[' || c == '`'),
            "{}: {first}",
            page.display()
        );
    }
}
