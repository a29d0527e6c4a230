//! One answer: a status, a small body, and the details in headers.

use std::borrow::Cow;
use std::fmt::Write;

use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::super::exposition::Form;
use super::super::member_checks::CheckResult;

/// Why the answer is no. Not in the body: `HAProxy` looks for `true` anywhere in a body.
pub(super) const REASON: HeaderName = HeaderName::from_static("x-trunkline-reason");
/// The router's own state while it is not ready, on every answer about a node or a connection.
pub(super) const ROUTER: HeaderName = HeaderName::from_static("x-trunkline-router");
/// Processes of this router that did not answer: the answer is without them.
pub(super) const INCOMPLETE: HeaderName = HeaderName::from_static("x-trunkline-incomplete");
/// How many there are, where an answer may have fewer.
pub(super) const TOTAL: HeaderName = HeaderName::from_static("x-trunkline-total");
/// The member the answer is about.
pub(super) const MEMBER: HeaderName = HeaderName::from_static("x-trunkline-member");

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
/// Longest header value made of text from outside.
const MAX_HEADER: usize = 256;

#[derive(Debug)]
pub(super) struct JsonAnswer {
    status: StatusCode,
    content_type: &'static str,
    body: Cow<'static, str>,
    reason: Option<String>,
    member: Option<String>,
    incomplete: Option<String>,
    /// Asks for a token.
    challenge: bool,
}

impl JsonAnswer {
    /// 200 `true`, or 503 `false` with the reason in a header.
    pub(super) fn boolean(verdict: CheckResult) -> Self {
        match verdict {
            Ok(()) => Self::text(StatusCode::OK, "true"),
            Err(reason) => Self::text(StatusCode::SERVICE_UNAVAILABLE, "false").because(reason),
        }
    }

    pub(super) fn text(status: StatusCode, body: &'static str) -> Self {
        Self {
            status,
            content_type: TEXT,
            body: body.into(),
            reason: None,
            member: None,
            incomplete: None,
            challenge: false,
        }
    }

    /// An object's keys are in the order of the alphabet.
    pub(super) fn json(status: StatusCode, value: &impl Serialize) -> Self {
        let value = serde_json::to_value(value).expect("views have keys that are text, and finite numbers");
        Self {
            status,
            content_type: JSON,
            body: value.to_string().into(),
            reason: None,
            member: None,
            incomplete: None,
            challenge: false,
        }
    }

    /// JSON that is written already.
    pub(super) fn written(json: String) -> Self {
        Self {
            content_type: JSON,
            body: json.into(),
            ..Self::text(StatusCode::OK, "")
        }
    }

    /// An error of the API, as JSON. An empty hint is none.
    pub(super) fn problem(status: StatusCode, error: &str, hint: &str) -> Self {
        let (hint, reason) = match hint {
            "" => (None, error.to_owned()),
            hint => (Some(hint), format!("{error}: {hint}")),
        };
        Self::json(status, &serde_json::json!({"error": error, "hint": hint})).because(reason)
    }

    pub(super) fn challenging(mut self) -> Self {
        self.challenge = true;
        self
    }

    /// The metrics; `text` is in `OpenMetrics`.
    pub(super) fn exposition(text: String, form: Form) -> Self {
        Self {
            status: StatusCode::OK,
            content_type: form.content_type(),
            body: form.of(text).into(),
            reason: None,
            member: None,
            incomplete: None,
            challenge: false,
        }
    }

    /// Status 404. The hint is the body too, so it must be a constant without the word that
    /// balancers look for.
    pub(super) fn not_found(hint: &'static str) -> Self {
        Self::text(StatusCode::NOT_FOUND, hint).because(hint)
    }

    pub(super) fn because(mut self, reason: impl Into<String>) -> Self {
        self.reason = Some(reason.into());
        self
    }

    /// The answer is without what these processes of this router would have said.
    pub(super) fn without(mut self, missing: &[String]) -> Self {
        self.incomplete = (!missing.is_empty()).then(|| missing.join("; "));
        self
    }

    pub(super) fn about(mut self, member: &str) -> Self {
        self.member = Some(member.to_owned());
        self
    }
}

impl IntoResponse for JsonAnswer {
    fn into_response(self) -> Response {
        let mut response = (self.status, self.body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(self.content_type));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if self.challenge {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(reason) = self.reason {
            headers.insert(REASON, visible(&reason));
        }
        if let Some(incomplete) = self.incomplete {
            headers.insert(INCOMPLETE, visible(&incomplete));
        }
        if let Some(member) = self.member {
            headers.insert(MEMBER, visible(&member));
        }
        response
    }
}

/// Text as a header value of limited length: visible ASCII and spaces stay, the rest is escaped.
pub(super) fn visible(text: &str) -> HeaderValue {
    let mut value = String::new();
    for c in text.chars() {
        let mark = value.len();
        if c == ' ' || c.is_ascii_graphic() {
            value.push(c);
        } else {
            // Writing to a string cannot fail.
            let _ = write!(value, "{}", c.escape_default());
        }
        if value.len() > MAX_HEADER {
            value.truncate(mark);
            break;
        }
    }
    HeaderValue::try_from(value).expect("visible ASCII and spaces are a header value")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_text_becomes_a_bounded_visible_header(text in any::<String>()) {
            let value = visible(&text);
            prop_assert!(value.len() <= MAX_HEADER);
            prop_assert!(value.as_bytes().iter().all(|b| *b == b' ' || b.is_ascii_graphic()));
        }
    }
}
