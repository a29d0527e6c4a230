//! Conditions: who may connect, and which section is empty. Only addresses and `nbsrv` are
//! understood.

use std::collections::HashMap;
use std::net::IpAddr;

use super::proxy::Proxy;
use crate::cli::import::notes::Notes;

type Acls = HashMap<String, Vec<Vec<String>>>;

const REJECT: &str = "reject";

/// What the rules of a section come to.
#[derive(Debug, Default)]
pub(super) struct Access {
    pub(super) allow: Vec<String>,
    /// A rule that turns clients away and that has no equivalent is a TODO in here: `trunkline
    /// check` refuses it, so that nobody opens a listener by mistake.
    pub(super) deny: Vec<String>,
    /// Who sends PROXY headers; empty is everybody.
    pub(super) proxy_from: Option<Vec<String>>,
}

pub(super) fn settings(proxy: &Proxy, notes: &mut Notes) -> Access {
    let mut access = Access::default();
    let Access { allow, deny, .. } = &mut access;
    let mut proxy_from = None;
    // Addresses accepted so far; they count only if the rest is rejected.
    let mut accepted: Vec<(usize, Vec<String>)> = Vec::new();
    for (line, (action, condition)) in &proxy.rules {
        let mut lost = |why: &str| {
            let what = format!("tcp-request … {action}");
            notes.lost(*line, &what, why);
            if matches!(action.as_str(), "reject" | "silent-drop") {
                deny.push(todo(*line, &what));
            }
        };
        let found = addresses(condition, &proxy.acls);
        let action = if action == "silent-drop" { REJECT } else { action };
        match (action, found) {
            ("expect-proxy", Some((false, from))) => proxy_from = Some(from),
            ("expect-proxy", None) if condition.is_empty() => proxy_from = Some(Vec::new()),
            // What was accepted before is not asked again.
            (REJECT, Some((false, from))) if accepted.is_empty() => deny.extend(from),
            (REJECT, Some((true, from))) if accepted.is_empty() && allow.is_empty() => *allow = from,
            (REJECT, None) if condition.is_empty() && !accepted.is_empty() && allow.is_empty() => {
                *allow = accepted.drain(..).flat_map(|(_, from)| from).collect();
            }
            ("accept", Some((false, from))) => accepted.push((*line, from)),
            ("accept", None) if condition.is_empty() => {}
            (_, None) => lost("only conditions on the client's address (`src`) are understood"),
            _ => lost("`deny` counts before `allow`, which this order of rules is not"),
        }
    }
    // Accepting some does not refuse the others.
    drop(accepted);
    access.proxy_from = proxy_from;
    access
}

/// An entry that no network is, so that `trunkline check` refuses it.
pub(super) fn todo(line: usize, what: &str) -> String {
    format!(
        "TODO: line {line}, {what}: it rejected clients and has no equivalent; decide about it and remove this"
    )
}

/// The test a condition consists of, and whether it is turned round.
fn test<'a>(condition: &'a [String], acls: &'a Acls) -> Option<(bool, Vec<&'a [String]>)> {
    let (word, rest) = condition.split_first()?;
    let turned = match word.as_str() {
        "if" => false,
        "unless" => true,
        _ => return None,
    };
    let mut tests: Vec<&[String]> = Vec::new();
    let mut negated = false;
    for part in rest.split(|word| word == "or" || word == "||") {
        let (first, inner) = part.split_first()?;
        let bare = first.strip_prefix('!').unwrap_or(first);
        negated |= bare.len() != first.len();
        match (bare, inner) {
            ("{", [inner @ .., end]) if end == "}" => tests.push(inner),
            // `! name` and `! { … }`.
            ("", _) => return None,
            (name, []) => tests.extend(acls.get(name)?.iter().map(Vec::as_slice)),
            // "And".
            _ => return None,
        }
    }
    // Not one or not the other is neither a list of addresses nor its opposite.
    if negated && rest.iter().any(|word| word == "or" || word == "||") {
        return None;
    }
    Some((turned != negated, tests))
}

/// Addresses that a condition is about; true where it means all others.
fn addresses(condition: &[String], acls: &Acls) -> Option<(bool, Vec<String>)> {
    let (turned, tests) = test(condition, acls)?;
    let mut all = Vec::new();
    for test in tests {
        let (fetch, values) = test.split_first()?;
        if fetch != "src" {
            return None;
        }
        let mut values = values.iter().peekable();
        // `-f FILE` is read by HAProxy.
        while values
            .next_if(|word| matches!(word.as_str(), "-n" | "--"))
            .is_some()
        {}
        for value in values {
            all.push(network(value)?);
        }
    }
    (!all.is_empty()).then_some((turned, all))
}

/// An address, or one with the length of its prefix.
fn network(text: &str) -> Option<String> {
    let (address, length) = text.split_once('/').map_or((text, None), |(a, b)| (a, Some(b)));
    let parsed: IpAddr = address.parse().ok()?;
    let most = if parsed.is_ipv4() { 32 } else { 128 };
    match length.map(str::parse::<u8>) {
        None => Some(format!("{parsed}/{most}")),
        Some(Ok(length)) if length <= most => Some(format!("{parsed}/{length}")),
        Some(_) => None,
    }
}

/// `nbsrv(X)` compared with zero: X, and whether it must be empty.
pub(super) fn is_empty<'a>(condition: &'a [String], acls: &'a Acls) -> Option<(&'a str, bool)> {
    let (turned, tests) = test(condition, acls)?;
    let [test] = tests.as_slice() else { return None };
    let (fetch, comparison) = test.split_first()?;
    let watched = fetch.strip_prefix("nbsrv(")?.strip_suffix(')')?;
    let comparison: Vec<&str> = comparison.iter().map(String::as_str).collect();
    let empty = match comparison.as_slice() {
        ["lt" | "le" | "eq", "0"] | ["lt", "1"] | ["0"] => true,
        ["gt", "0"] | ["ge", "1"] => false,
        _ => return None,
    };
    Some((watched, empty != turned))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn conditions_on_addresses() {
        let acls = Acls::from([
            (
                "office".to_owned(),
                vec![words("src 10.0.0.0/8"), words("src 192.0.2.1 ::1")],
            ),
            ("night".to_owned(), vec![words("date -f x")]),
        ]);
        let office = || {
            ["10.0.0.0/8", "192.0.2.1/32", "::1/128"]
                .map(str::to_owned)
                .to_vec()
        };
        for (condition, expected) in [
            ("if office", Some((false, office()))),
            ("if !office", Some((true, office()))),
            ("unless office", Some((true, office()))),
            ("unless !office", Some((false, office()))),
            (
                "if { src 1.2.3.0/24 }",
                Some((false, vec!["1.2.3.0/24".to_owned()])),
            ),
            (
                "if { src 1.2.3.4 } || { src 5.6.7.8 }",
                Some((false, vec!["1.2.3.4/32".to_owned(), "5.6.7.8/32".to_owned()])),
            ),
            ("if night", None),
            ("if nobody", None),
            ("if office night", None),
            ("if !office or !night", None),
            ("if { src -f file }", None),
            ("if { src 1.2.3.4/33 }", None),
            ("if ! office", None),
            ("if", None),
            ("", None),
        ] {
            assert_eq!(addresses(&words(condition), &acls), expected, "{condition}");
        }
    }

    #[test]
    fn conditions_on_an_empty_section() {
        let acls = Acls::from([("none".to_owned(), vec![words("nbsrv(ro) lt 1")])]);
        for (condition, expected) in [
            ("if none", Some(("ro", true))),
            ("unless none", Some(("ro", false))),
            ("if { nbsrv(ro) gt 0 }", Some(("ro", false))),
            ("if { nbsrv(ro) eq 0 }", Some(("ro", true))),
            ("if { nbsrv(ro) ge 2 }", None),
            ("if { src 1.2.3.4 }", None),
        ] {
            assert_eq!(is_empty(&words(condition), &acls), expected, "{condition}");
        }
    }
}
