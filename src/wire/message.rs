//! Messages the router originates, encoded with pgwire's message types.
//!
//! Guarantees: an encoder never fails, panics or leaves half a message behind; its length word
//! matches what was written. Text in an [`ErrorReply`] is cut at [`MAX_TEXT`] bytes and loses its
//! NUL bytes; names and values given as bytes lose only NUL, which the protocol cannot carry.
//!
//! The startup packet, `S` and `v` are encoded here, because pgwire keeps text as UTF-8 strings in
//! a sorted map. pgwire's own framing is not used, because it leaves a lone type byte behind when
//! it refuses a length.

use bytes::{BufMut, Bytes, BytesMut};
use pgwire::messages::Message;
use pgwire::messages::cancel::CancelRequest;
use pgwire::messages::response::{ErrorResponse, NoticeResponse, ReadyForQuery, TransactionStatus};
use pgwire::messages::simplequery::Query;
use pgwire::messages::startup::{
    Authentication, BackendKeyData, SASLInitialResponse, SASLResponse, SecretKey, SslRequest,
};
use pgwire::messages::terminate::Terminate;

use super::sqlstate::SqlState;
use super::startup::ProtocolVersion;

/// Bytes of one text field of an error, after which it is cut (at a character's start).
pub const MAX_TEXT: usize = 2048;

/// Lengths of a cancel key, in bytes (protocol 3.2; in 3.0 always 4).
pub(crate) const CANCEL_KEY_LENGTHS: std::ops::RangeInclusive<usize> = 4..=256;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    Error,
    Fatal,
}

impl Severity {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "ERROR",
            Self::Fatal => "FATAL",
        }
    }
}

/// An error that the router itself reports to a client: a sentence, the cause, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorReply {
    pub severity: Severity,
    pub code: SqlState,
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
}

impl ErrorReply {
    /// The session ends with it.
    pub fn fatal(code: SqlState, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Fatal,
            code,
            message: message.into(),
            detail: None,
            hint: None,
        }
    }

    /// The session goes on: only ever the answer to a request.
    pub fn error(code: SqlState, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            ..Self::fatal(code, message)
        }
    }

    /// The same, and the session ends with it.
    #[must_use]
    pub fn into_fatal(self) -> Self {
        Self {
            severity: Severity::Fatal,
            ..self
        }
    }

    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// `E`: fields S, V, C, M, then D and H where there are any.
pub fn error(out: &mut BytesMut, reply: &ErrorReply) {
    let severity = reply.severity.as_str().to_owned();
    let mut fields = Vec::with_capacity(6);
    fields.push((b'S', severity.clone()));
    fields.push((b'V', severity));
    fields.push((b'C', reply.code.to_string()));
    fields.push((b'M', bounded(&reply.message)));
    fields.extend(reply.detail.as_deref().map(|text| (b'D', bounded(text))));
    fields.extend(reply.hint.as_deref().map(|text| (b'H', bounded(text))));
    put(out, &ErrorResponse::new(fields));
}

/// `N`: a NOTICE that the client may show to its user.
pub fn notice(out: &mut BytesMut, text: &str, detail: &str) {
    let severity = || "NOTICE".to_owned();
    let fields = vec![
        (b'S', severity()),
        (b'V', severity()),
        (b'C', "00000".to_owned()),
        (b'M', bounded(text)),
        (b'D', bounded(detail)),
    ];
    put(out, &NoticeResponse::new(fields));
}

/// A message as it was received.
pub fn put_frame(out: &mut BytesMut, tag: u8, body: &[u8]) {
    framed(out, Some(tag), |out| out.put_slice(body));
}

/// `R` 3: asks for the password in clear.
pub fn authentication_cleartext_password(out: &mut BytesMut) {
    put(out, &Authentication::CleartextPassword);
}

/// `R` 5: asks for the md5 hash, salted.
pub fn authentication_md5_password(out: &mut BytesMut, salt: [u8; 4]) {
    put(out, &Authentication::MD5Password(salt.to_vec()));
}

/// `R` 10 with the mechanisms offered.
pub fn authentication_sasl(out: &mut BytesMut, mechanisms: &[&str]) {
    put(
        out,
        &Authentication::SASL(mechanisms.iter().map(|&name| name.to_owned()).collect()),
    );
}

/// `R` 11.
pub fn authentication_sasl_continue(out: &mut BytesMut, data: &[u8]) {
    put(out, &Authentication::SASLContinue(Bytes::copy_from_slice(data)));
}

/// `R` 12.
pub fn authentication_sasl_final(out: &mut BytesMut, data: &[u8]) {
    put(out, &Authentication::SASLFinal(Bytes::copy_from_slice(data)));
}

/// `R` 0.
pub fn authentication_ok(out: &mut BytesMut) {
    put(out, &Authentication::Ok);
}

/// `S`; name and value as received from the server, without the terminators.
pub fn parameter_status(out: &mut BytesMut, name: &[u8], value: &[u8]) {
    framed(out, Some(b'S'), |out| {
        put_cstr(out, name);
        put_cstr(out, value);
    });
}

/// `K`; 4 bytes of key in protocol 3.0, up to 256 in 3.2. Any other length is not a key: nothing is
/// written.
pub fn backend_key_data(out: &mut BytesMut, process_id: u32, key: &[u8]) {
    if CANCEL_KEY_LENGTHS.contains(&key.len()) {
        let key = SecretKey::Bytes(Bytes::copy_from_slice(key));
        put(out, &BackendKeyData::new(process_id.cast_signed(), key));
    }
}

/// `C`: a command is done.
pub fn command_complete(out: &mut BytesMut, tag: &str) {
    put_frame(out, b'C', &[tag.as_bytes(), b"\0"].concat());
}

/// `Z`; `I`, `T` or `E`, as the server said it.
pub fn ready_for_query(out: &mut BytesMut, status: u8) {
    match TransactionStatus::try_from(status) {
        Ok(status) => put(out, &ReadyForQuery::new(status)),
        // A status of a later protocol: the observer refuses it, and there is no better answer than
        // the same.
        Err(_) => framed(out, Some(b'Z'), |out| out.put_u8(status)),
    }
}

/// `v`: the newest version served (as the full 32-bit number, which every libpq understands), and
/// the `_pq_.` options not known.
pub fn negotiate_protocol_version(out: &mut BytesMut, newest: ProtocolVersion, unknown_options: &[&[u8]]) {
    framed(out, Some(b'v'), |out| {
        out.put_u32(newest.number());
        out.put_u32(u32::try_from(unknown_options.len()).unwrap_or(u32::MAX));
        for name in unknown_options {
            put_cstr(out, name);
        }
    });
}

/// The startup packet towards a server: parameters in order, as received.
pub fn startup(out: &mut BytesMut, version: ProtocolVersion, parameters: &[(&[u8], &[u8])]) {
    framed(out, None, |out| {
        out.put_u32(version.number());
        // An empty name would end the list early.
        for (name, value) in parameters
            .iter()
            .filter(|(name, _)| name.iter().any(|&byte| byte != 0))
        {
            put_cstr(out, name);
            put_cstr(out, value);
        }
        out.put_u8(0);
    });
}

/// `SSLRequest`.
pub fn ssl_request(out: &mut BytesMut) {
    put(out, &SslRequest::new());
}

/// `CancelRequest` towards a server, with that server's own process id and key (4–256 bytes; any
/// other length is not a key: nothing is written).
pub fn cancel_request(out: &mut BytesMut, process_id: u32, key: &[u8]) {
    if CANCEL_KEY_LENGTHS.contains(&key.len()) {
        let key = SecretKey::Bytes(Bytes::copy_from_slice(key));
        put(out, &CancelRequest::new(process_id.cast_signed(), key));
    }
}

/// `p` with a `SASLInitialResponse`.
pub fn sasl_initial_response(out: &mut BytesMut, mechanism: &str, data: &[u8]) {
    put(
        out,
        &SASLInitialResponse::new(mechanism.to_owned(), Some(Bytes::copy_from_slice(data))),
    );
}

/// `p` with a `SASLResponse`.
pub fn sasl_response(out: &mut BytesMut, data: &[u8]) {
    put(out, &SASLResponse::new(Bytes::copy_from_slice(data)));
}

/// `p` with a clear-text or md5 password; the terminator is added.
pub fn password(out: &mut BytesMut, password: &[u8]) {
    framed(out, Some(b'p'), |out| put_cstr(out, password));
}

/// `Q`.
pub fn query(out: &mut BytesMut, sql: &str) {
    put(out, &Query::new(sql.replace('\0', "")));
}

/// `X`.
pub fn terminate(out: &mut BytesMut) {
    put(out, &Terminate::new());
}

fn put<M: Message>(out: &mut BytesMut, message: &M) {
    framed(out, M::message_type(), |out| {
        message
            .encode_body(out)
            .expect("only a key of a wrong length fails, and keys are checked before");
    });
}

/// Type byte, length, body; the length is taken from what the body turned out to be.
fn framed(out: &mut BytesMut, tag: Option<u8>, body: impl FnOnce(&mut BytesMut)) {
    out.extend(tag);
    let start = out.len();
    out.put_u32(0);
    body(out);
    let length = u32::try_from(out.len() - start).unwrap_or(u32::MAX);
    out[start..start + 4].copy_from_slice(&length.to_be_bytes());
}

fn put_cstr(out: &mut BytesMut, text: &[u8]) {
    for part in text.split(|&byte| byte == 0) {
        out.put_slice(part);
    }
    out.put_u8(0);
}

/// Without NUL, and at most [`MAX_TEXT`] bytes of whole characters.
fn bounded(text: &str) -> String {
    let end = text.floor_char_boundary(MAX_TEXT);
    text[..end].replace('\0', "")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use pgwire::messages::startup::{NegotiateProtocolVersion, ParameterStatus, Startup};
    use pgwire::messages::{DecodeContext, PgWireBackendMessage};
    use proptest::prelude::*;

    use super::*;

    fn encoded(encode: impl FnOnce(&mut BytesMut)) -> BytesMut {
        let mut out = BytesMut::new();
        encode(&mut out);
        out
    }

    fn decoded(mut bytes: BytesMut) -> PgWireBackendMessage {
        let message = PgWireBackendMessage::decode(&mut bytes, &DecodeContext::default())
            .unwrap()
            .unwrap();
        assert!(bytes.is_empty(), "the length word covers the whole message");
        message
    }

    #[test]
    fn an_error_has_its_fields_in_postgresql_s_order() {
        let reply = ErrorReply::fatal(SqlState::CANNOT_CONNECT_NOW, "no\0 leader")
            .detail("why")
            .hint("what to do");
        let bytes = encoded(|out| error(out, &reply));
        assert_eq!(
            &bytes[5..],
            b"SFATAL\0VFATAL\0C57P03\0Mno leader\0Dwhy\0Hwhat to do\0\0"
        );
        assert_eq!(
            u32::from_be_bytes(bytes[1..5].try_into().unwrap()) as usize,
            bytes.len() - 1
        );
        let reply = ErrorReply::error(SqlState::QUERY_CANCELED, "canceled");
        assert_eq!(
            &encoded(|out| error(out, &reply))[5..],
            b"SERROR\0VERROR\0C57014\0Mcanceled\0\0"
        );
    }

    #[test]
    fn an_error_s_text_is_cut_at_a_character() {
        let reply = ErrorReply::fatal(SqlState::INTERNAL_ERROR, "é".repeat(100_000)).hint("\0");
        let PgWireBackendMessage::ErrorResponse(response) = decoded(encoded(|out| error(out, &reply))) else {
            panic!("not an error")
        };
        assert_eq!(response.fields[3], (b'M', "é".repeat(MAX_TEXT / 2)));
        assert_eq!(response.fields[4], (b'H', String::new()));
    }

    #[test]
    fn authentication_messages_are_what_the_protocol_says() {
        assert_eq!(&encoded(authentication_ok)[..], b"R\0\0\0\x08\0\0\0\0");
        assert_eq!(
            &encoded(authentication_cleartext_password)[..],
            b"R\0\0\0\x08\0\0\0\x03"
        );
        let md5 = encoded(|out| authentication_md5_password(out, [1, 0, 255, 2]));
        assert_eq!(&md5[..], b"R\0\0\0\x0c\0\0\0\x05\x01\0\xff\x02");
        let sasl = encoded(|out| authentication_sasl(out, &["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"]));
        assert_eq!(
            &sasl[..],
            b"R\0\0\0\x2a\0\0\0\x0aSCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0"
        );
        let data = encoded(|out| authentication_sasl_continue(out, b"r=x"));
        assert_eq!(&data[..], b"R\0\0\0\x0b\0\0\0\x0br=x");
        let data = encoded(|out| authentication_sasl_final(out, b"v=x"));
        assert_eq!(&data[..], b"R\0\0\0\x0b\0\0\0\x0cv=x");
        let first = encoded(|out| sasl_initial_response(out, "SCRAM-SHA-256", b"n,,"));
        assert_eq!(&first[..], b"p\0\0\0\x19SCRAM-SHA-256\0\0\0\0\x03n,,");
        assert_eq!(
            &encoded(|out| sasl_response(out, b"c=biws"))[..],
            b"p\0\0\0\x0ac=biws"
        );
        assert_eq!(
            &encoded(|out| password(out, b"a\xffb"))[..],
            b"p\0\0\0\x08a\xffb\0"
        );
        // More than pgwire's own framing lets through.
        let long = encoded(|out| authentication_sasl_continue(out, &vec![b'x'; 60_000]));
        assert_eq!(&long[1..5], 60_008_u32.to_be_bytes());
    }

    #[test]
    fn the_small_messages_are_what_the_protocol_says() {
        assert_eq!(&encoded(|out| ready_for_query(out, b'T'))[..], b"Z\0\0\0\x05T");
        assert_eq!(&encoded(|out| ready_for_query(out, b'?'))[..], b"Z\0\0\0\x05?");
        assert_eq!(&encoded(terminate)[..], b"X\0\0\0\x04");
        assert_eq!(
            &encoded(|out| query(out, "select\0 1"))[..],
            b"Q\0\0\0\x0dselect 1\0"
        );
        assert_eq!(&encoded(ssl_request)[..], [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f]);
        let cancel = encoded(|out| cancel_request(out, 0xffff_fffe, &[1, 2, 3, 4]));
        assert_eq!(
            &cancel[..],
            [
                0, 0, 0, 16, 0x04, 0xd2, 0x16, 0x2e, 255, 255, 255, 254, 1, 2, 3, 4
            ]
        );
        assert_eq!(
            &encoded(|out| backend_key_data(out, 7, &[9; 32]))[..9],
            [b'K', 0, 0, 0, 40, 0, 0, 0, 7]
        );
        for wrong in [0, 3, 257] {
            assert!(encoded(|out| backend_key_data(out, 7, &vec![9; wrong])).is_empty());
            assert!(encoded(|out| cancel_request(out, 7, &vec![9; wrong])).is_empty());
        }
    }

    #[test]
    fn bytes_that_are_not_utf8_stay_as_they_are() {
        let status = encoded(|out| parameter_status(out, b"a\xff", b"\xe9\0t\xe9"));
        assert_eq!(&status[..], b"S\0\0\0\x0ba\xff\0\xe9t\xe9\0");
        let negotiate =
            encoded(|out| negotiate_protocol_version(out, ProtocolVersion::V3_2, &[b"_pq_.\xff"]));
        assert_eq!(&negotiate[..], b"v\0\0\0\x13\0\x03\0\x02\0\0\0\x01_pq_.\xff\0");
        let packet: [(&[u8], &[u8]); 4] = [
            (b"user", b"\xe9"),
            (b"", b"lost"),
            (b"options", b"-c a=b"),
            (b"options", b""),
        ];
        let startup = encoded(|out| startup(out, ProtocolVersion::V3_0, &packet));
        assert_eq!(
            &startup[..],
            b"\0\0\0\x28\0\x03\0\0user\0\xe9\0options\0-c a=b\0options\0\0\0"
        );
    }

    proptest! {
        #[test]
        fn pgwire_reads_back_what_was_encoded_by_hand(
            name in "[a-z_]{1,20}", value in "[^\0]{1,40}", options in proptest::collection::vec("_pq_[^\0]{1,9}", 0..5),
        ) {
            let status = decoded(encoded(|out| parameter_status(out, name.as_bytes(), value.as_bytes())));
            let PgWireBackendMessage::ParameterStatus(status) = status else { panic!("not a ParameterStatus") };
            prop_assert_eq!(status, ParameterStatus::new(name.clone(), value.clone()));

            let refs: Vec<&[u8]> = options.iter().map(String::as_bytes).collect();
            let message = decoded(encoded(|out| negotiate_protocol_version(out, ProtocolVersion::V3_2, &refs)));
            let PgWireBackendMessage::NegotiateProtocolVersion(message) = message else { panic!("not a v") };
            prop_assert_eq!(message, NegotiateProtocolVersion::new(0x0003_0002, options));

            let pair: [(&[u8], &[u8]); 1] = [(name.as_bytes(), value.as_bytes())];
            let mut packet = encoded(|out| startup(out, ProtocolVersion::V3_2, &pair));
            let startup = Startup::decode(&mut packet, &DecodeContext::default()).unwrap().unwrap();
            prop_assert_eq!(startup.protocol_number_minor, 2);
            prop_assert_eq!(startup.parameters.into_iter().collect::<Vec<_>>(), vec![(name, value)]);
        }
    }
}
