//! Text from elsewhere, fit for a terminal: what a router, a server or a file says may come from
//! anybody.

use std::fmt::{Display, Write as _};

use serde_json::Value;

use crate::wire::text::{escape_unsafe, is_unsafe, push_escaped};

/// One line, with control and format characters escaped: a terminal would obey them, or a reader
/// would not see what is there.
pub(super) fn plain(text: impl Display) -> String {
    escape_unsafe(&text.to_string())
}

/// The same for several lines.
pub(super) fn plain_lines(text: impl Display) -> String {
    let mut shown = String::new();
    push_escaped(&mut shown, &text.to_string(), |c| c == '\n');
    shown
}

/// JSON as it is formatted, with such characters escaped as JSON has it: the value is the same.
pub(super) fn plain_json(document: impl Display) -> String {
    let mut shown = String::new();
    for c in document.to_string().chars() {
        // Lines of a document end outside its strings.
        if is_unsafe(c) && c != '\n' {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Writing to a String does not fail.
                let _ = write!(shown, "\\u{unit:04x}");
            }
        } else {
            shown.push(c);
        }
    }
    shown
}

/// All texts and keys of a value.
pub(super) fn make_plain(value: &mut Value) {
    match value {
        Value::String(text) if text.contains(is_unsafe) => *text = plain(&*text),
        Value::Array(all) => all.iter_mut().for_each(make_plain),
        Value::Object(all) => {
            if all.keys().any(|key| key.contains(is_unsafe)) {
                *all = std::mem::take(all)
                    .into_iter()
                    .map(|(key, value)| (plain(key), value))
                    .collect();
            }
            all.values_mut().for_each(make_plain);
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn json_means_the_same_and_gives_a_terminal_no_orders() {
        let value = json!({"a\u{202e}": ["\u{9b}2J\u{7f}\n", "zoë \u{e0001}", {}]});
        for text in [plain_json(&value), plain_json(format_args!("{value:#}"))] {
            assert!(!text.contains(|c| is_unsafe(c) && c != '\n'), "{text:?}");
            assert_eq!(serde_json::from_str::<Value>(&text).ok(), Some(value.clone()));
        }
        assert!(plain_json(&value).contains(r#""zoë \udb40\udc01""#));
    }

    #[test]
    fn lines_stay_lines() {
        assert_eq!(plain("a\nb\u{202e}"), "a\\nb\\u{202e}");
        assert_eq!(plain_lines("a\nb\u{200b}\r"), "a\nb\\u{200b}\\r");
    }

    #[test]
    fn all_texts_and_keys_of_a_value_are_made_plain() {
        let mut value = json!([{"a\u{1b}": ["b\u{202e}", 1]}]);
        make_plain(&mut value);
        assert_eq!(value, json!([{"a\\u{1b}": ["b\\u{202e}", 1]}]));
    }
}
