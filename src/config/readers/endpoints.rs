//! What the HTTP interfaces of Patroni and of etcd have in common: URLs, authorities, user and
//! password.

use rustls::pki_types::CertificateDer;

use crate::config::fields::{Field, Section, report_repeated};
use crate::config::model::BasicAuth;

pub(super) fn endpoints(field: &Field<'_>) -> Vec<String> {
    let mut endpoints = Vec::new();
    for field in field.list() {
        if let Some(endpoint) = endpoint(&field) {
            endpoints.push((endpoint, field));
        }
    }
    report_repeated(&endpoints, "endpoint");
    endpoints.into_iter().map(|(endpoint, _)| endpoint).collect()
}

/// A base URL: scheme, host and port, nothing more.
fn endpoint(field: &Field<'_>) -> Option<String> {
    let text = field.text()?;
    let hint = "as in `https://db1:8008`";
    let has_scheme = text.starts_with("http://") || text.starts_with("https://");
    let url = reqwest::Url::parse(text)
        .ok()
        .filter(|url| has_scheme && url.host_str().is_some());
    let Some(url) = url else {
        field.error_with_hint("is not an `http://` or `https://` URL", hint);
        return None;
    };
    if !url.username().is_empty() || url.password().is_some() {
        field.error("must not contain a user or a password; use `username` and `password_file`");
        return None;
    }
    if url.path() != "/" || url.query().is_some() || url.fragment().is_some() || url.port() == Some(0) {
        field.error_with_hint("must be a scheme, a host and a port, without a path", hint);
        return None;
    }
    Some(url.as_str().trim_end_matches('/').to_owned())
}

/// `ca_file`; none of the TLS keys has an effect where every endpoint is `http://`.
pub(super) fn authorities(
    section: &Section<'_>,
    endpoints: Option<&[String]>,
) -> Option<Vec<CertificateDer<'static>>> {
    let clear = endpoints.is_some_and(|endpoints| {
        !endpoints.is_empty() && endpoints.iter().all(|endpoint| !endpoint.starts_with("https:"))
    });
    for key in ["ca_file", "cert_file", "key_file"] {
        if let Some(field) = section.field(key).filter(|_| clear) {
            field.error_with_hint(
                "has no effect: every endpoint is `http://`",
                "use `https://` or remove it",
            );
        }
    }
    section.field("ca_file").and_then(|field| field.roots())
}

/// `username` and `password_file`.
pub(super) fn login(section: &Section<'_>) -> Option<BasicAuth> {
    let (username, password) = section.pair("username", "password_file")?;
    let (username, password) = (username.text(), password.secret_file());
    Some(BasicAuth {
        username: username?.to_owned(),
        password: password?,
    })
}
