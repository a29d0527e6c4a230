//! Messages the router originates, encoded with pgwire's message types.

use bytes::BytesMut;

use super::sqlstate::SqlState;
use super::startup::ProtocolVersion;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    Error,
    Fatal,
}

/// An error the router itself reports to a client: a sentence, what is behind it, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorReply {
    pub severity: Severity,
    pub code: SqlState,
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
}

impl ErrorReply {
    pub fn fatal(code: SqlState, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Fatal,
            code,
            message: message.into(),
            detail: None,
            hint: None,
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

/// `E`.
pub fn error(out: &mut BytesMut, reply: &ErrorReply) {
    todo!("{out:?} {reply:?}")
}

/// `R` 10 with the mechanisms offered.
pub fn authentication_sasl(out: &mut BytesMut, mechanisms: &[&str]) {
    todo!("{out:?} {mechanisms:?}")
}

/// `R` 11.
pub fn authentication_sasl_continue(out: &mut BytesMut, data: &[u8]) {
    todo!("{out:?} {data:?}")
}

/// `R` 12.
pub fn authentication_sasl_final(out: &mut BytesMut, data: &[u8]) {
    todo!("{out:?} {data:?}")
}

/// `R` 0.
pub fn authentication_ok(out: &mut BytesMut) {
    todo!("{out:?}")
}

/// `S`; name and value as received from the server, without the terminators.
pub fn parameter_status(out: &mut BytesMut, name: &[u8], value: &[u8]) {
    todo!("{out:?} {name:?} {value:?}")
}

/// `K`; 4 bytes of key in protocol 3.0, up to 256 in 3.2.
pub fn backend_key_data(out: &mut BytesMut, process_id: u32, key: &[u8]) {
    todo!("{out:?} {process_id} {key:?}")
}

/// `Z`.
pub fn ready_for_query(out: &mut BytesMut, status: u8) {
    todo!("{out:?} {status}")
}

/// `v`: the newest minor version served, and the `_pq_.` options not known.
pub fn negotiate_protocol_version(out: &mut BytesMut, newest: ProtocolVersion, unknown_options: &[&[u8]]) {
    todo!("{out:?} {newest:?} {unknown_options:?}")
}

/// The startup packet towards a server: parameters in order, as received.
pub fn startup(out: &mut BytesMut, version: ProtocolVersion, parameters: &[(&[u8], &[u8])]) {
    todo!("{out:?} {version:?} {parameters:?}")
}

/// SSLRequest.
pub fn ssl_request(out: &mut BytesMut) {
    todo!("{out:?}")
}

/// CancelRequest towards a server, with that server's own process id and key (4–256 bytes).
pub fn cancel_request(out: &mut BytesMut, process_id: u32, key: &[u8]) {
    todo!("{out:?} {process_id} {key:?}")
}

/// `p` with a SASLInitialResponse.
pub fn sasl_initial_response(out: &mut BytesMut, mechanism: &str, data: &[u8]) {
    todo!("{out:?} {mechanism} {data:?}")
}

/// `p` with a SASLResponse.
pub fn sasl_response(out: &mut BytesMut, data: &[u8]) {
    todo!("{out:?} {data:?}")
}

/// `p` with a clear-text or md5 password; the terminator is added.
pub fn password(out: &mut BytesMut, password: &[u8]) {
    todo!("{out:?} {}", password.len())
}

/// `Q`.
pub fn query(out: &mut BytesMut, sql: &str) {
    todo!("{out:?} {sql}")
}

/// `X`.
pub fn terminate(out: &mut BytesMut) {
    todo!("{out:?}")
}
