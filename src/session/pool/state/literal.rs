//! Values in SQL text that is ASCII, whatever the value is.

use std::fmt;

/// A text value as an SQL expression. It means the same under any client encoding and any
/// `standard_conforming_strings`. The bytes are in the encoding of the database.
pub(super) struct Literal<'a>(pub &'a [u8]);

impl fmt::Display for Literal<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_plain = |byte: &u8| (b' '..=b'~').contains(byte) && !matches!(byte, b'\'' | b'\\');
        if self.0.iter().all(is_plain)
            && let Ok(text) = std::str::from_utf8(self.0)
        {
            return write!(f, "'{text}'");
        }
        f.write_str("pg_catalog.convert_from(pg_catalog.decode('")?;
        for byte in self.0 {
            write!(f, "{byte:02x}")?;
        }
        f.write_str("', 'hex'), 'SQL_ASCII')")
    }
}

pub(super) fn decode_hex(digits: &[u8]) -> Option<Vec<u8>> {
    let digit = |byte: u8| {
        char::from(byte)
            .to_digit(16)
            .and_then(|digit| u8::try_from(digit).ok())
    };
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    let pairs = digits.chunks_exact(2);
    pairs
        .map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_plain_text_is_written_in_digits() {
        assert_eq!(Literal(b"\"$user\", public").to_string(), "'\"$user\", public'");
        for value in [&b"it's"[..], b"a\\", "é".as_bytes(), b"\n", b"\xff"] {
            let text = Literal(value).to_string();
            assert!(text.is_ascii() && !text.contains('\\'), "{text}");
            let digits = text.split('\'').nth(1).expect("a literal");
            assert_eq!(decode_hex(digits.as_bytes()).as_deref(), Some(value));
        }
    }

    #[test]
    fn only_digits_are_decoded() {
        assert_eq!(decode_hex(b""), Some(vec![]));
        assert_eq!(decode_hex(b"0aFF"), Some(vec![10, 255]));
        for bad in [&b"0"[..], b"0x", b"--"] {
            assert_eq!(decode_hex(bad), None);
        }
    }
}
