//! The few LDAP messages that authentication needs (RFC 4511), in BER with definite lengths.
//!
//! Guarantees: an answer is read without recursion and without allocating more than its contents;
//! nothing in it causes a panic; its length is checked against [`LARGEST_ANSWER`] before the rest
//! is read. A general-purpose decoder builds a tree recursively: a deeply nested answer of some
//! kilobytes overflows the stack, which ends the whole process.

use zeroize::Zeroizing;

/// Bytes of one answer. An entry without attributes is a name; a result is a code, a name and a
/// sentence.
pub(crate) const LARGEST_ANSWER: usize = 64 * 1024;

const BOOLEAN: u8 = 0x01;
const INTEGER: u8 = 0x02;
const OCTETS: u8 = 0x04;
const ENUMERATED: u8 = 0x0a;
const SEQUENCE: u8 = 0x30;
const BIND_REQUEST: u8 = 0x60;
const SEARCH_REQUEST: u8 = 0x63;
const EXTENDED_REQUEST: u8 = 0x77;
/// Simple authentication, and the name of an extended request.
const CONTEXT_0: u8 = 0x80;

/// RFC 4511, 4.14.
const START_TLS: &[u8] = b"1.3.6.1.4.1.1466.20037";

/// How deep below its base a search looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    Base = 0,
    One = 1,
    Subtree = 2,
}

/// A request to a directory.
pub(crate) enum LdapRequest<'a> {
    Bind {
        name: &'a str,
        password: &'a [u8],
    },
    Search {
        base: &'a str,
        scope: Scope,
        entries: u8,
        seconds: u16,
        filter: &'a [u8],
    },
    StartTls,
    Unbind,
}

impl LdapRequest<'_> {
    /// The whole message; wiped when dropped, as it may hold a password.
    pub(crate) fn encode(&self, id: u8) -> Zeroizing<Vec<u8>> {
        let mut operation = Zeroizing::new(Vec::new());
        match self {
            Self::Bind { name, password } => {
                let mut bind = Zeroizing::new(Vec::with_capacity(name.len() + password.len() + 32));
                put(&mut bind, INTEGER, &[3]);
                put(&mut bind, OCTETS, name.as_bytes());
                put(&mut bind, CONTEXT_0, password);
                operation.reserve_exact(bind.len() + 8);
                put(&mut operation, BIND_REQUEST, &bind);
            }
            Self::Search {
                base,
                scope,
                entries,
                seconds,
                filter,
            } => {
                let mut search = Vec::new();
                put(&mut search, OCTETS, base.as_bytes());
                put(&mut search, ENUMERATED, &[*scope as u8]);
                put(&mut search, ENUMERATED, &[0]); // aliases stay aliases
                put(&mut search, INTEGER, &[0, *entries]);
                let [high, low] = seconds.to_be_bytes();
                put(&mut search, INTEGER, &[0, high, low]);
                put(&mut search, BOOLEAN, &[0xff]); // types only
                search.extend_from_slice(filter);
                let mut no_attributes = Vec::new();
                put(&mut no_attributes, OCTETS, b"1.1");
                put(&mut search, SEQUENCE, &no_attributes);
                put(&mut operation, SEARCH_REQUEST, &search);
            }
            Self::StartTls => {
                let mut name = Vec::new();
                put(&mut name, CONTEXT_0, START_TLS);
                put(&mut operation, EXTENDED_REQUEST, &name);
            }
            Self::Unbind => operation.extend_from_slice(&[0x42, 0]),
        }
        let mut body = Zeroizing::new(Vec::with_capacity(operation.len() + 4));
        put(&mut body, INTEGER, &[id & 0x7f]);
        body.extend_from_slice(&operation);
        let mut message = Zeroizing::new(Vec::with_capacity(body.len() + 8));
        put(&mut message, SEQUENCE, &body);
        message
    }
}

fn put(out: &mut Vec<u8>, tag: u8, content: &[u8]) {
    out.push(tag);
    let length = content.len().to_be_bytes();
    let significant = &length[length.iter().take_while(|byte| **byte == 0).count()..];
    match significant {
        [] => out.push(0),
        [short] if *short < 0x80 => out.push(*short),
        long => {
            out.push(0x80 | u8::try_from(long.len()).unwrap_or(8));
            out.extend_from_slice(long);
        }
    }
    out.extend_from_slice(content);
}

/// What a server answers.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct LdapAnswer {
    /// 0 for a message without request (a notice of disconnection).
    pub(crate) id: i32,
    pub(crate) operation: Operation,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Bound(LdapResult),
    /// The name of an entry that matches.
    Entry(String),
    /// A part of the directory is elsewhere.
    Reference,
    Searched(LdapResult),
    Extended(LdapResult),
    Other,
}

/// `LDAPResult` without its referral, which is never followed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct LdapResult {
    pub(crate) code: u32,
    /// Untrusted.
    pub(crate) diagnostic: Vec<u8>,
}

/// An answer that is not LDAP, or is too large.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MessageError {
    #[error("the answer is not LDAP")]
    Malformed,
    #[error("the answer is larger than {LARGEST_ANSWER} bytes")]
    TooLarge,
}

/// The length of the message at the start of `bytes`; `None` until it is known.
pub(crate) fn message_length(bytes: &[u8]) -> Result<Option<usize>, MessageError> {
    match bytes.first() {
        None => return Ok(None),
        Some(&SEQUENCE) => {}
        Some(_) => return Err(MessageError::Malformed),
    }
    let Some((header, content)) = length(&bytes[1..])? else {
        return Ok(None);
    };
    let total = 1 + header + content;
    if total > LARGEST_ANSWER {
        Err(MessageError::TooLarge)
    } else {
        Ok(Some(total))
    }
}

/// The size of a length field and its value; `None` where bytes are missing.
fn length(bytes: &[u8]) -> Result<Option<(usize, usize)>, MessageError> {
    let Some((&first, rest)) = bytes.split_first() else {
        return Ok(None);
    };
    if first < 0x80 {
        return Ok(Some((1, usize::from(first))));
    }
    let digits = usize::from(first & 0x7f);
    match digits {
        // Indefinite: forbidden in LDAP (RFC 4511, 5.1).
        0 => return Err(MessageError::Malformed),
        1..=4 => {}
        _ => return Err(MessageError::TooLarge),
    }
    let Some(digits) = rest.get(..digits) else {
        return Ok(None);
    };
    let value = digits
        .iter()
        .fold(0usize, |value, byte| (value << 8) | usize::from(*byte));
    Ok(Some((1 + digits.len(), value)))
}

impl LdapAnswer {
    /// Reads one whole message, of the length that [`message_length`] said.
    pub(crate) fn decode(message: &[u8]) -> Result<Self, MessageError> {
        let mut message = Elements(message);
        let mut body = Elements(message.expect(SEQUENCE)?);
        let id = integer(body.expect(INTEGER)?)?;
        let (tag, content) = body.next()?;
        let operation = match tag {
            0x61 => Operation::Bound(LdapResult::decode(content)?),
            0x64 => {
                let name = Elements(content).expect(OCTETS)?;
                let name = std::str::from_utf8(name).map_err(|_| MessageError::Malformed)?;
                Operation::Entry(name.to_owned())
            }
            0x65 => Operation::Searched(LdapResult::decode(content)?),
            0x73 => Operation::Reference,
            0x78 => Operation::Extended(LdapResult::decode(content)?),
            _ => Operation::Other,
        };
        // Controls may follow: the request has none that could change the answer's meaning.
        Ok(Self { id, operation })
    }
}

impl LdapResult {
    fn decode(content: &[u8]) -> Result<Self, MessageError> {
        let mut elements = Elements(content);
        let code = integer(elements.expect(ENUMERATED)?)?;
        let code = u32::try_from(code).map_err(|_| MessageError::Malformed)?;
        elements.expect(OCTETS)?; // the part of the name that exists
        let diagnostic = elements.expect(OCTETS)?.to_vec();
        Ok(Self { code, diagnostic })
    }
}

/// What is left of a run of elements.
struct Elements<'a>(&'a [u8]);

impl<'a> Elements<'a> {
    fn next(&mut self) -> Result<(u8, &'a [u8]), MessageError> {
        let (&tag, rest) = self.0.split_first().ok_or(MessageError::Malformed)?;
        if tag & 0x1f == 0x1f {
            return Err(MessageError::Malformed); // longer tags: LDAP has none
        }
        let (header, length) = length(rest)?.ok_or(MessageError::Malformed)?;
        let rest = &rest[header..];
        if length > rest.len() {
            return Err(MessageError::Malformed);
        }
        let (content, rest) = rest.split_at(length);
        self.0 = rest;
        Ok((tag, content))
    }

    fn expect(&mut self, wanted: u8) -> Result<&'a [u8], MessageError> {
        let (tag, content) = self.next()?;
        if tag == wanted {
            Ok(content)
        } else {
            Err(MessageError::Malformed)
        }
    }
}

fn integer(content: &[u8]) -> Result<i32, MessageError> {
    if content.is_empty() || content.len() > 4 {
        return Err(MessageError::Malformed);
    }
    let start = if content[0] & 0x80 == 0 { 0 } else { -1 };
    Ok(content
        .iter()
        .fold(start, |value, byte| (value << 8) | i32::from(*byte)))
}
