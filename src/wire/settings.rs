//! Settings in a startup packet that the router refuses: among the parameters, and in
//! `options`, which a server reads as it reads its own command line.
//!
//! Follows `pg_split_opts` in `src/backend/utils/init/postinit.c`, `process_postgres_switches` in
//! `src/backend/tcop/postgres.c`, `ParseLongOption` and `find_option` in
//! `src/backend/utils/misc/guc.c`. If in doubt, a setting counts as present: a server refuses
//! options that it does not know.

use bytes::Bytes;

/// Settings that make a server wait at a login, for developers with a debugger. While it waits it
/// occupies a place for a connection, and does not notice that the client has gone.
const DELAYS: [&str; 2] = ["post_auth_delay", "pre_auth_delay"];

/// Switches with an argument; of every version since 9.x. `W` is `post_auth_delay`.
const WITH_ARGUMENT: &[u8] = b"BCDSWcdfhkNprtv-";

/// The setting among the parameters that makes the server wait, if there is one.
pub(crate) fn delay(parameters: &[(Bytes, Bytes)]) -> Option<&'static str> {
    parameters.iter().find_map(|(name, value)| {
        if name == "options" {
            in_options(value)
        } else {
            named(name)
        }
    })
}

/// Names are compared without case.
fn named(name: &[u8]) -> Option<&'static str> {
    DELAYS
        .into_iter()
        .find(|delay| delay.as_bytes().eq_ignore_ascii_case(name))
}

fn in_options(options: &[u8]) -> Option<&'static str> {
    let mut words = words(options).into_iter();
    while let Some(word) = words.next() {
        let mut switches = match &word[..] {
            // Not a switch: the server refuses it, behind what it has read by then.
            [] | [b'-'] => continue,
            [b'-', switches @ ..] => switches,
            _ => continue,
        };
        while let [switch, rest @ ..] = switches {
            switches = rest;
            if !WITH_ARGUMENT.contains(switch) {
                continue;
            }
            let argument = if rest.is_empty() {
                words.next().unwrap_or_default()
            } else {
                rest.to_vec()
            };
            let found = match switch {
                b'W' => Some(DELAYS[0]),
                b'c' | b'-' => long(&argument),
                _ => None,
            };
            if found.is_some() {
                return found;
            }
            break;
        }
    }
    None
}

/// `name=value`, with dashes for underscores.
fn long(argument: &[u8]) -> Option<&'static str> {
    let name = argument.split(|&byte| byte == b'=').next().unwrap_or_default();
    let name: Vec<u8> = name
        .iter()
        .map(|&byte| if byte == b'-' { b'_' } else { byte })
        .collect();
    named(&name)
}

/// Split at white space; a backslash takes the next byte as it is.
fn words(options: &[u8]) -> Vec<Vec<u8>> {
    let mut words = Vec::new();
    let mut word: Option<Vec<u8>> = None;
    let mut bytes = options.iter();
    while let Some(&byte) = bytes.next() {
        match byte {
            b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c => words.extend(word.take()),
            b'\\' => {
                let word = word.get_or_insert_default();
                word.extend(bytes.next());
            }
            _ => word.get_or_insert_default().push(byte),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(name: &str, value: &str) -> Option<&'static str> {
        let text = |text: &str| Bytes::copy_from_slice(text.as_bytes());
        delay(&[
            (text("user"), text("post_auth_delay")),
            (text(name), text(value)),
            (text("application_name"), text("x")),
        ])
    }

    #[test]
    fn a_delay_is_found_in_every_spelling() {
        for name in ["post_auth_delay", "POST_AUTH_DELAY", "Post_Auth_Delay"] {
            assert_eq!(asked(name, "60"), Some("post_auth_delay"), "{name}");
        }
        assert_eq!(asked("pre_auth_delay", "1"), Some("pre_auth_delay"));
        for options in [
            "-c post_auth_delay=60",
            "-cpost_auth_delay=60",
            "  -c\tpost_auth_delay=60",
            "-c post-auth-delay=60",
            "-c Post_Auth-DELAY=60",
            "--post_auth_delay=60",
            "--post-auth-delay=60",
            "--POST-auth_delay=60",
            "-c search_path=a -c post_auth_delay=60",
            "-c search_path=a\\ b --post_auth_delay=60",
            "-c post\\_auth_delay=60",
            "-\\c post_auth_delay=60",
            "-W 60",
            "-W60",
            "-eW60",
            "-eW 60",
            "-e -W 60",
            "-ec post_auth_delay=60",
            "-e-post_auth_delay=60",
            "nothing -W60",
            "-W",
        ] {
            assert_eq!(asked("options", options), Some("post_auth_delay"), "{options}");
        }
        assert_eq!(asked("options", "--pre-auth-delay=1"), Some("pre_auth_delay"));
    }

    #[test]
    fn what_only_looks_like_one_passes() {
        for (name, value) in [
            ("post-auth-delay", "60"),
            ("post_auth_delay ", "60"),
            ("my.post_auth_delay", "60"),
            ("application_name", "-W 60"),
            ("Options", "-W 60"),
            ("options", ""),
            ("options", "-c search_path=W"),
            ("options", "-c search_path=post_auth_delay"),
            ("options", "-csearch_path=-W60"),
            ("options", "-c my.post_auth_delay=60"),
            ("options", "-c search_path=a\\ -W60"),
            ("options", "-S 64 -c statement_timeout=1s"),
            ("options", "-cW=1"),
        ] {
            assert_eq!(asked(name, value), None, "{name} {value}");
        }
    }
}
