//! The table as the tables of `docs/configuration.md`, each between `<!-- keys: PLACE -->` and
//! `<!-- end -->`.

use std::fmt::Write as _;

use super::kind::{LONGEST_SOCKET_PATH, LONGEST_TEXT, MOST_SECRET};
use super::{Key, Keys, Otherwise, ROOT, ValueKind};
use crate::config::units::{shown_duration, shown_size};

/// Every map with fixed keys and its place, as the documentation's headings write it:
/// `clusters.NAME.probe`.
pub(in crate::config) fn sections() -> Vec<(String, &'static Keys)> {
    let mut sections = vec![(String::new(), &ROOT)];
    below("", &ROOT, &mut sections);
    sections
}

fn below(place: &str, keys: &'static Keys, sections: &mut Vec<(String, &'static Keys)>) {
    for key in keys.0 {
        let place = if place.is_empty() {
            key.name.to_owned()
        } else {
            format!("{place}.{}", key.name)
        };
        let (place, kind) = match key.kind {
            ValueKind::List { of, .. } => (format!("{place}[]"), *of),
            ValueKind::Named { of, .. } => (format!("{place}.NAME"), *of),
            kind => (place, kind),
        };
        if let ValueKind::Section(keys) = kind {
            sections.push((place.clone(), keys));
            below(&place, keys, sections);
        }
    }
}

/// The document with its tables as they are to be. A place that is not there, or twice, is a panic:
/// the test's answer.
pub(in crate::config) fn with_tables(document: &str) -> String {
    let mut text = document.to_owned();
    for (place, keys) in sections() {
        let shown = if place.is_empty() { "top level" } else { &place };
        let start = format!("<!-- keys: {shown} -->\n");
        let (before, rest) = text
            .split_once(&start)
            .unwrap_or_else(|| panic!("there is no {start}"));
        let (_, after) = rest
            .split_once("<!-- end -->")
            .unwrap_or_else(|| panic!("{start} has no end"));
        assert!(!after.contains(&start), "{start} is there twice");
        text = format!("{before}{start}{}<!-- end -->{after}", table(keys));
    }
    assert_eq!(
        text.matches("<!-- keys: ").count(),
        sections().len(),
        "there is a table of keys that do not exist"
    );
    text
}

fn table(keys: &Keys) -> String {
    let mut text = "\n| key | type | default | meaning |\n|---|---|---|---|\n".to_owned();
    for key in keys.0 {
        let (kind, otherwise) = (kind(&key.kind), otherwise(key));
        let _ = writeln!(
            text,
            "| `{}` | {kind} | {otherwise} | {} |",
            key.name, key.meaning
        );
    }
    text + "\n"
}

fn otherwise(key: &Key) -> String {
    match &key.otherwise {
        Otherwise::Required => "required".to_owned(),
        Otherwise::Or(other) => format!("this or `{other}`"),
        Otherwise::Truth(value) => format!("`{value}`"),
        Otherwise::Number(value) => format!("`{value}`"),
        Otherwise::Time(time) => format!("`{}`", shown_duration(*time)),
        Otherwise::Size(size) => format!("`{}`", shown_size(*size)),
        Otherwise::Text(text) => quoted(text),
        Otherwise::Nothing => "none".to_owned(),
        Otherwise::Below => "see below".to_owned(),
        Otherwise::Said(markdown) => (*markdown).to_owned(),
    }
}

fn kind(of: &ValueKind) -> String {
    match of {
        ValueKind::Truth => "true or false".to_owned(),
        ValueKind::Number { least, most } => format!("{least} to {most}"),
        ValueKind::Time { least, most, or_off } => {
            let or = if *or_off { ", or 0" } else { "" };
            format!(
                "time, {} to {}{or}",
                shown_duration(*least),
                shown_duration(*most)
            )
        }
        ValueKind::Size { least, most } => format!("size, {} to {}", shown_size(*least), shown_size(*most)),
        ValueKind::Rate { most } => format!("`N/s`, to {most}/s, or 0"),
        ValueKind::Words(words) => alternatives(&words.iter().map(|word| quoted(word)).collect::<Vec<_>>()),
        ValueKind::Text { most: LONGEST_TEXT } => "text".to_owned(),
        ValueKind::Text { most } => format!("text, to {most} bytes"),
        ValueKind::Name => "name".to_owned(),
        ValueKind::Address => "address".to_owned(),
        ValueKind::SocketPath => format!("absolute path, to {LONGEST_SOCKET_PATH} bytes"),
        ValueKind::Mode => "octal text, `\"0000\"` to `\"0777\"`".to_owned(),
        ValueKind::Host => "host".to_owned(),
        ValueKind::HostPort => "host:port".to_owned(),
        ValueKind::Url => "URL".to_owned(),
        ValueKind::Network => "network".to_owned(),
        ValueKind::Scalar => "text, number, true or false".to_owned(),
        ValueKind::File => "file".to_owned(),
        ValueKind::Secret { least, most } => {
            let least = if *least > 1 {
                format!(", from {least} bytes")
            } else {
                String::new()
            };
            let most = if *most == MOST_SECRET {
                String::new()
            } else {
                format!(", to {}", shown_size(*most))
            };
            format!("secret file{least}{most}")
        }
        ValueKind::List { of, least, most } => {
            let what = several(of).map_or_else(String::new, |what| format!(" of {what}"));
            let least = if *least == 0 {
                String::new()
            } else {
                format!("{least} ")
            };
            format!("list{what}, {least}to {most}")
        }
        ValueKind::Section(_) => "map".to_owned(),
        ValueKind::Named { most: None, .. } => "map of names".to_owned(),
        ValueKind::Named { most: Some(most), .. } => format!("map of names, to {most}"),
        ValueKind::Either(kinds) => alternatives(&kinds.iter().map(kind).collect::<Vec<_>>()),
    }
}

/// Several of a kind; `None` where the next table says what they are.
fn several(kind: &ValueKind) -> Option<String> {
    Some(match kind {
        ValueKind::Section(_) => return None,
        ValueKind::Text { most: LONGEST_TEXT } => "texts".to_owned(),
        ValueKind::Text { most } => format!("texts to {most} bytes"),
        ValueKind::Url => "URLs".to_owned(),
        ValueKind::Network => "networks".to_owned(),
        ValueKind::Address => "addresses".to_owned(),
        ValueKind::Words(_) => "words".to_owned(),
        ValueKind::List { of, .. } => format!("lists of {}", several(of)?),
        ValueKind::Either(kinds) => kinds
            .iter()
            .filter_map(several)
            .collect::<Vec<_>>()
            .join(" or of "),
        other => panic!("what are several of {other:?}?"),
    })
}

fn alternatives(all: &[String]) -> String {
    match all.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => all.concat(),
    }
}

/// As it is written in YAML: what would be a number needs quotes.
fn quoted(text: &str) -> String {
    if text.parse::<f64>().is_ok() {
        format!("`\"{text}\"`")
    } else {
        format!("`{text}`")
    }
}
