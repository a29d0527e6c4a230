//! The line that is missing in a server's `pg_hba.conf`, where it refused the router's address.

use std::net::IpAddr;

use bytes::Bytes;

use super::error::ServerError;
use crate::wire::sqlstate::SqlState;

/// The line, if `error` is a refusal by `pg_hba.conf` (28000; the file's name is in the message in
/// every language).
pub(super) fn needed(
    error: &ServerError,
    parameters: &[(Bytes, Bytes)],
    router: IpAddr,
    is_tls: bool,
) -> Option<String> {
    if error.code != SqlState::INVALID_AUTHORIZATION || !error.message.contains("pg_hba.conf") {
        return None;
    }
    // Duplicates apply in order: the last one counts.
    let value = |name: &[u8]| {
        parameters
            .iter()
            .rev()
            .find(|(key, value)| key.as_ref() == name && !value.is_empty())
            .map(|(_, value)| value)
    };
    let user = value(b"user")?;
    let database = match value(b"replication") {
        Some(mode) if is_true(mode) => "replication".to_owned(),
        _ => quote(value(b"database").unwrap_or(user)),
    };
    let kind = if is_tls { "hostssl" } else { "host" };
    let router = router.to_canonical();
    let bits = if router.is_ipv4() { 32 } else { 128 };
    Some(format!(
        "{kind} {database} {} {router}/{bits} scram-sha-256",
        quote(user)
    ))
}

/// The boolean spellings of `replication=`, as far as they mean physical replication.
fn is_true(mode: &Bytes) -> bool {
    let mode = mode.to_ascii_lowercase();
    matches!(mode.as_slice(), b"1" | b"on") || b"true".starts_with(&mode) || b"yes".starts_with(&mode)
}

/// Quotes a name where `pg_hba.conf` would read it as a keyword, a list, a pattern or several
/// words.
fn quote(name: &[u8]) -> String {
    const KEYWORDS: [&str; 5] = ["all", "sameuser", "samerole", "samegroup", "replication"];
    let text = String::from_utf8_lossy(name);
    let plain = text
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.'));
    if plain && !KEYWORDS.contains(&text.as_ref()) {
        return text.into_owned();
    }
    // A quote inside quotes is doubled; control characters cannot be written there at all.
    let text: String = text.chars().filter(|character| !character.is_control()).collect();
    format!("\"{}\"", text.replace('"', "\"\""))
}
