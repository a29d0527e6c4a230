//! `/ui`: the page for browsers. Its files are in the program; `scripts/ui` makes them from `ui/`.
//!
//! They are the same for everybody and hold nothing of this router: what the page shows it asks for
//! under `/api/v1`, with the rules of those paths.

use std::fmt::Write;
use std::sync::LazyLock;

use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::answer::JsonAnswer;
use super::app::App;

struct File {
    /// Below `/ui/`; empty for `/ui` itself.
    name: &'static str,
    content_type: &'static str,
    content: &'static str,
    /// The same as gzip; of large files.
    gzip: Option<&'static [u8]>,
}

const FILES: [File; 4] = [
    File {
        name: "",
        content_type: "text/html; charset=utf-8",
        content: include_str!("page/page.html"),
        gzip: None,
    },
    File {
        name: "page.js",
        content_type: "text/javascript; charset=utf-8",
        content: include_str!("page/page.js"),
        gzip: Some(include_bytes!("page/page.js.gz")),
    },
    File {
        name: "page.css",
        content_type: "text/css; charset=utf-8",
        content: include_str!("page/page.css"),
        gzip: Some(include_bytes!("page/page.css.gz")),
    },
    File {
        name: "icon.svg",
        content_type: "image/svg+xml",
        content: include_str!("page/icon.svg"),
        gzip: None,
    },
];

/// No script but the page's own, nothing from elsewhere, and in no frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'; \
                      require-trusted-types-for 'script'";

/// By what they contain, so that a browser asks for each only once in a release: as they are, and
/// as gzip.
static TAGS: LazyLock<[[HeaderValue; 2]; FILES.len()]> = LazyLock::new(|| {
    FILES.map(|file| {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, file.content.as_bytes());
        ["", "-gzip"].map(|form| {
            let mut tag = String::from("\"");
            for byte in &digest.as_ref()[..12] {
                // Writing to a string cannot fail.
                let _ = write!(tag, "{byte:02x}");
            }
            tag.push_str(form);
            tag.push('"');
            HeaderValue::try_from(tag).expect("letters, digits and a dash in quotes are a header value")
        })
    })
});

/// `GET /ui`, `GET /ui/FILE`
pub(super) fn page(app: &App, name: &str, headers: &HeaderMap) -> Response {
    if !app.handles.has_page {
        return JsonAnswer::not_found(
            "the page is switched off; `http.ui` in the configuration switches it on",
        )
        .into_response();
    }
    let Some(index) = FILES.iter().position(|file| file.name == name) else {
        return JsonAnswer::not_found("the page has no such file; it is at /ui").into_response();
    };
    let file = &FILES[index];
    let gzip = file.gzip.filter(|_| takes_gzip(headers));
    let tag = &TAGS[index][usize::from(gzip.is_some())];
    let has_it = headers
        .get_all(header::IF_NONE_MATCH)
        .iter()
        .filter_map(|tags| tags.to_str().ok())
        .any(|tags| tags.split(',').any(|one| one.trim() == tag));
    let mut response = if has_it {
        StatusCode::NOT_MODIFIED.into_response()
    } else if let Some(gzip) = gzip {
        gzip.into_response()
    } else {
        file.content.into_response()
    };
    let headers = response.headers_mut();
    if gzip.is_some() {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    for (name, value) in [
        (header::CONTENT_TYPE, file.content_type),
        // Asked again each time, so that the page is always that of the router's release.
        (header::CACHE_CONTROL, "no-cache"),
        (header::VARY, "Accept-Encoding"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (
            HeaderName::from_static("cross-origin-opener-policy"),
            "same-origin",
        ),
        (
            HeaderName::from_static("cross-origin-resource-policy"),
            "same-origin",
        ),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.insert(header::ETAG, tag.clone());
    response
}

/// RFC 9110, 12.5.3. Without the header, or with `gzip;q=0`, the file comes as it is.
fn takes_gzip(headers: &HeaderMap) -> bool {
    let all = headers.get_all(header::ACCEPT_ENCODING).iter();
    let mut codings = all
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    codings.any(|coding| {
        let (name, weight) = coding.split_once(';').unwrap_or((coding, ""));
        let weight = weight.trim().strip_prefix("q=").map(str::parse::<f32>);
        name.trim().eq_ignore_ascii_case("gzip") && !matches!(weight, Some(Ok(0.0) | Err(_)))
    })
}

/// `GET /ui/`: the page's files are beside `/ui`.
pub(super) fn without_slash() -> Response {
    (StatusCode::PERMANENT_REDIRECT, [(header::LOCATION, "../ui")]).into_response()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use axum::body::{Body, to_bytes};
    use axum::http::{Method, Request};
    use tower::ServiceExt;

    use super::super::fixture::{app, handles};
    use super::super::router::router;
    use super::*;

    async fn ask(
        has_page: bool,
        method: Method,
        path: &str,
        tag: Option<&HeaderValue>,
    ) -> (Response, String) {
        let mut handles = handles(Vec::new());
        handles.has_page = has_page;
        let mut request = Request::builder().method(method).uri(path);
        if let Some(tag) = tag {
            request = request.header(header::IF_NONE_MATCH, tag);
        }
        let request = request.body(Body::empty()).unwrap();
        let response = router(app(handles)).oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = to_bytes(body, 1 << 20).await.unwrap();
        (
            Response::from_parts(parts, Body::empty()),
            String::from_utf8(body.to_vec()).unwrap(),
        )
    }

    #[tokio::test]
    async fn the_files_come_with_a_strict_policy_and_are_asked_for_once() {
        for path in ["/ui", "/ui/page.js", "/ui/page.css", "/ui/icon.svg"] {
            let (response, body) = ask(true, Method::GET, path, None).await;
            assert_eq!(response.status(), StatusCode::OK, "{path}");
            assert!(body.len() > 100, "{path}");
            let headers = response.headers();
            let policy = headers[header::CONTENT_SECURITY_POLICY].to_str().unwrap();
            assert!(
                policy.starts_with("default-src 'none'; script-src 'self';"),
                "{policy}"
            );
            assert!(!policy.contains("unsafe"), "{policy}");
            assert_eq!(headers[header::X_CONTENT_TYPE_OPTIONS], "nosniff");
            assert!(!headers.contains_key(header::SET_COOKIE));
            let tag = headers[header::ETAG].clone();
            let (again, body) = ask(true, Method::GET, path, Some(&tag)).await;
            assert_eq!((again.status(), body.as_str()), (StatusCode::NOT_MODIFIED, ""));
            let other = HeaderValue::from_static("\"x\"");
            let (again, _) = ask(true, Method::GET, path, Some(&other)).await;
            assert_eq!(again.status(), StatusCode::OK);
            let (head, body) = ask(true, Method::HEAD, path, None).await;
            assert_eq!((head.status(), body.as_str()), (StatusCode::OK, ""));
        }
        let (moved, _) = ask(true, Method::GET, "/ui/", None).await;
        assert_eq!(moved.status(), StatusCode::PERMANENT_REDIRECT);
        assert_eq!(moved.headers()[header::LOCATION], "../ui");
        let (missing, _) = ask(true, Method::GET, "/ui/other", None).await;
        assert_eq!(missing.status(), StatusCode::NOT_FOUND);
        let (refused, _) = ask(true, Method::POST, "/ui", None).await;
        assert_eq!(refused.status(), StatusCode::METHOD_NOT_ALLOWED);
    }

    #[tokio::test]
    async fn large_files_come_as_gzip_to_who_takes_it() {
        let fetch = async |path: &str, accepted: &'static str| {
            let request = Request::builder()
                .uri(path)
                .header(header::ACCEPT_ENCODING, accepted)
                .body(Body::empty())
                .unwrap();
            let response = router(app(handles(Vec::new()))).oneshot(request).await.unwrap();
            let (parts, body) = response.into_parts();
            (parts.headers, to_bytes(body, 1 << 20).await.unwrap())
        };
        for file in FILES.iter().filter(|file| file.gzip.is_some()) {
            let path = format!("/ui/{}", file.name);
            let mut tags = Vec::new();
            for accepted in ["gzip", "br;q=1.0, GZIP;q=0.5, *;q=0"] {
                let (headers, body) = fetch(&path, accepted).await;
                assert_eq!(headers[header::CONTENT_ENCODING], "gzip", "{accepted}");
                assert_eq!(headers[header::CONTENT_TYPE], file.content_type);
                assert_eq!(headers[header::VARY], "Accept-Encoding");
                assert!(body.len() < file.content.len() / 2, "{}", body.len());
                assert_eq!(body[..3], [0x1f, 0x8b, 8], "RFC 1952: gzip, deflated");
                // Its last four bytes are the length of what is in it. `scripts/ui --check`
                // compares the contents.
                let length = u32::from_le_bytes(body[body.len() - 4..].try_into().unwrap());
                assert_eq!(length as usize, file.content.len(), "{}", file.name);
                tags.push(headers[header::ETAG].clone());
            }
            for accepted in ["", "br", "gzip;q=0", "gzip; q=0.0", "xgzip"] {
                let (headers, body) = fetch(&path, accepted).await;
                assert!(!headers.contains_key(header::CONTENT_ENCODING), "{accepted}");
                assert_eq!(body, file.content.as_bytes(), "{accepted}");
                assert_ne!(headers[header::ETAG], tags[0], "it is another form");
            }
        }
    }

    #[tokio::test]
    async fn the_page_can_be_switched_off() {
        for path in ["/ui", "/ui/page.js"] {
            let (response, body) = ask(false, Method::GET, path, None).await;
            assert_eq!(response.status(), StatusCode::NOT_FOUND, "{path}");
            assert!(body.contains("http.ui"), "{body}");
        }
    }

    #[test]
    fn the_page_has_nothing_inline_and_asks_nobody_else() {
        let html = FILES[0].content;
        for forbidden in ["<style", " style=", " onclick=", "javascript:", "//"] {
            assert!(!html.contains(forbidden), "{forbidden}");
        }
        assert_eq!(html.matches("<script").count(), 1);
        for file in &FILES {
            let elsewhere = file
                .content
                .match_indices("://")
                .map(|(at, _)| &file.content[at.saturating_sub(5)..]);
            for text in elsewhere {
                // The name of a language, not an address.
                assert!(
                    text.contains("://www.w3.org/2000/svg"),
                    "{}",
                    &text[..text.len().min(60)]
                );
            }
            assert!(!file.content.contains("innerHTML"), "{}", file.name);
            assert!(file.content.len() < 100_000, "{}", file.name);
        }
    }
}
