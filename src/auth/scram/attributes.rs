//! The syntax both sides share: `a=value,b=value`.

use super::ScramError;

/// What is wrong with a list of attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AttributeError {
    /// This attribute was expected.
    Expected(u8),
    /// Not a letter and `=`.
    NotAnAttribute,
    /// The list ended too early.
    End,
}

/// Walks over the attributes of one message.
#[derive(Debug, Clone)]
pub(super) struct Attributes<'a> {
    /// `None` behind the last one. A trailing comma leaves an empty rest, which is no attribute.
    rest: Option<&'a [u8]>,
}

impl<'a> Attributes<'a> {
    pub(super) fn new(message: &'a [u8]) -> Self {
        Self { rest: Some(message) }
    }

    /// The next attribute, whatever it is.
    pub(super) fn any(&mut self) -> Result<(u8, &'a [u8]), AttributeError> {
        let rest = self.rest.ok_or(AttributeError::End)?;
        let [name, b'=', tail @ ..] = rest else {
            return Err(AttributeError::NotAnAttribute);
        };
        if !name.is_ascii_alphabetic() {
            return Err(AttributeError::NotAnAttribute);
        }
        let comma = tail.iter().position(|&byte| byte == b',');
        let value = &tail[..comma.unwrap_or(tail.len())];
        self.rest = comma.map(|at| &tail[at + 1..]);
        Ok((*name, value))
    }

    /// The value of the next attribute, which must be `name`.
    pub(super) fn required(&mut self, name: u8) -> Result<&'a [u8], AttributeError> {
        match self.any() {
            Ok((found, value)) if found == name => Ok(value),
            Ok(_) | Err(AttributeError::NotAnAttribute) => Err(AttributeError::Expected(name)),
            Err(other) => Err(other),
        }
    }

    pub(super) fn at_end(&self) -> bool {
        self.rest.is_none()
    }
}

impl From<AttributeError> for ScramError {
    fn from(error: AttributeError) -> Self {
        Self::Malformed(match error {
            AttributeError::Expected(name) => format!("Expected attribute \"{}\".", char::from(name)),
            AttributeError::NotAnAttribute => "Attribute expected, but found invalid character.".to_owned(),
            AttributeError::End => "Attribute expected, but found end of string.".to_owned(),
        })
    }
}

/// Whether this can be (part of) a nonce: printable ASCII without the comma (RFC 5802,
/// `printable`).
pub(super) fn is_printable(nonce: &[u8]) -> bool {
    nonce.iter().all(|&byte| byte.is_ascii_graphic() && byte != b',')
}
