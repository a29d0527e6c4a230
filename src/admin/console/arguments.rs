//! What is typed for the names in a command's text, and which of its words in brackets.

/// The longest name of a route or a member, in bytes.
const MAX_NAME: usize = 255;

/// By the name in the command's text, or its word in brackets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Arguments(Vec<(&'static str, String)>);

impl Arguments {
    /// `None`: the words are not the command of this text.
    pub(super) fn read(text: &'static str, words: &[&str]) -> Option<Self> {
        let mut arguments = Self::default();
        let mut given = words;
        for (part, is_optional) in parts(text) {
            if is_optional && !begins(part, given) {
                continue;
            }
            given = arguments.take(part, given)?;
        }
        given.is_empty().then_some(arguments)
    }

    /// What is left of `given` behind this part.
    fn take<'a, 'b>(&mut self, part: &'static str, mut given: &'a [&'b str]) -> Option<&'a [&'b str]> {
        for word in part.split(' ') {
            if word == "…" {
                return (!given.is_empty()).then_some(&[]);
            }
            let (first, rest) = given.split_first()?;
            given = rest;
            if let Some(name) = placeholder(word) {
                self.0.push((name, unquoted(first)?));
            } else if is_word(word, first) {
                self.0.push((word, String::new()));
            } else {
                return None;
            }
        }
        Some(given)
    }

    /// What stands for `<name>`.
    pub(super) fn value(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, value)| value.as_str())
    }

    /// Whether this word was typed.
    pub(super) fn has(&self, word: &str) -> bool {
        self.0.iter().any(|(known, _)| *known == word)
    }
}

/// The parts of a text: what is in brackets, and each word that is not.
fn parts(text: &'static str) -> impl Iterator<Item = (&'static str, bool)> {
    let mut rest = text;
    std::iter::from_fn(move || {
        rest = rest.trim_start();
        if rest.is_empty() {
            return None;
        }
        if let Some((inner, behind)) = rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            rest = behind;
            return Some((inner, true));
        }
        let (word, behind) = rest.split_once(' ').unwrap_or((rest, ""));
        rest = behind;
        Some((word, false))
    })
}

fn begins(part: &'static str, given: &[&str]) -> bool {
    match (part.split(' ').next(), given.first()) {
        (Some(word), Some(first)) => placeholder(word).is_some() || is_word(word, first),
        _ => false,
    }
}

fn placeholder(word: &'static str) -> Option<&'static str> {
    word.strip_prefix('<').and_then(|word| word.strip_suffix('>'))
}

fn is_word(word: &str, given: &str) -> bool {
    // The schema that names without one are looked for in first.
    let bare = given
        .split_at_checked(11)
        .filter(|(schema, _)| schema.eq_ignore_ascii_case("pg_catalog."));
    bare.map_or(given, |(_, name)| name).eq_ignore_ascii_case(word)
}

/// A name as it is meant; `None` if it is none. Letters keep their case.
fn unquoted(word: &str) -> Option<String> {
    let inner = word.strip_prefix('"').and_then(|word| word.strip_suffix('"'));
    let name = match inner {
        Some(inner) => inner.replace("\"\"", "\u{0}"),
        None => word.to_owned(),
    };
    let is_text = word.starts_with('\'');
    let is_name = !is_text && !name.is_empty() && !name.contains('"') && name.len() <= MAX_NAME;
    is_name.then(|| name.replace('\u{0}', "\""))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_in_brackets_may_be_left_out() {
        const TEXT: &str = "CLOSE SESSIONS <member> [CLUSTER <cluster>] [GRACE <seconds>] [NOW]";
        let read = |typed: &str| Arguments::read(TEXT, &typed.split(' ').collect::<Vec<_>>());
        let all = read("close sessions db1 cluster main grace 30").unwrap();
        assert_eq!(all.value("member"), Some("db1"));
        assert_eq!(
            (all.value("cluster"), all.value("seconds")),
            (Some("main"), Some("30"))
        );
        assert!(all.has("GRACE") && !all.has("NOW"));
        let now = read("CLOSE SESSIONS now NOW").unwrap();
        assert_eq!((now.value("member"), now.value("cluster")), (Some("now"), None));
        assert!(now.has("NOW"));
        for other in [
            "CLOSE SESSIONS",
            "CLOSE db1",
            "CLOSE SESSIONS db1 GRACE",
            "CLOSE SESSIONS db1 NOW NOW",
            "CLOSE SESSIONS db1 NOW CLUSTER main",
            "CLOSE SESSIONS db1 db2",
        ] {
            assert_eq!(read(other), None, "{other}");
        }
    }
}
