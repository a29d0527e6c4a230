//! Asking a running router over its HTTP port.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use reqwest::{Method, StatusCode};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use serde_json::Value;

use super::plain::{make_plain, plain};
use crate::config::{self, BindAddress, HttpAccess, Secret};
use crate::tls::{self, Authorities, NameCheck, ServerVerifier, signature};

const TIMEOUT: Duration = Duration::from_secs(10);
/// Processes of the router that did not answer: see docs/http.md.
const INCOMPLETE: &str = "x-trunkline-incomplete";
/// The longest answer that is read. The longest one that a router gives is the list of its
/// sessions, of which each takes about 700 bytes: this is enough for 90,000.
const MAX_ANSWER: usize = 64 * 1024 * 1024;

/// What works while the configuration file does not.
const OTHER_WAY: &str = "Use --url http://HOST:6434 --token-file FILE.";

/// Which router is asked, and how the answer is printed.
#[derive(Debug, Clone, Args)]
#[command(group = clap::ArgGroup::new("router").required(true).args(["config", "url"]))]
pub(super) struct Remote {
    /// The configuration file of the router on this host: its HTTP address, certificate and token
    /// are used.
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The router's HTTP port, as `https://db1:6434`.
    #[arg(long, value_name = "URL", conflicts_with = "config")]
    url: Option<String>,
    /// The file with the token, instead of the configuration's.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Authorities trusted for https://, instead of the system's.
    #[arg(long, value_name = "FILE", conflicts_with = "config")]
    ca_file: Option<PathBuf>,
    /// The cluster, if there are several.
    #[arg(long, value_name = "NAME")]
    pub(super) cluster: Option<String>,
    /// Print the answer as JSON.
    #[arg(long)]
    pub(super) json: bool,
}

/// A router that can be asked.
pub(super) struct Router {
    client: reqwest::Client,
    base: String,
    /// `Err`: why the configured one cannot be used.
    token: Result<Option<Secret>, String>,
    /// It is the router of a configuration file, on this host.
    is_local: bool,
    /// Goes with each request: the router refuses one that it does not have.
    cluster: Option<String>,
    /// What it says is passed on as it is, as JSON.
    is_exact: bool,
    runtime: Option<tokio::runtime::Runtime>,
}

/// Why a question has no answer, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fault {
    /// Nobody was asked: what leads to the router cannot be used.
    Unasked(String),
    /// The router does not answer, or something else does.
    Silent(String),
    /// It answers, and does not do it, or is not understood.
    Refused(String),
}

impl Fault {
    pub(super) fn words(self) -> String {
        match self {
            Self::Unasked(text) | Self::Silent(text) | Self::Refused(text) => text,
        }
    }
}

impl Drop for Router {
    /// A name service that does not answer is not waited for.
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Remote {
    /// The router of this configuration, on this host.
    pub(super) fn by_configuration(path: &Path) -> Self {
        Self {
            config: Some(path.to_owned()),
            url: None,
            token_file: None,
            ca_file: None,
            cluster: None,
            json: false,
        }
    }

    /// `Err` is a sentence for the person at the keyboard, as everywhere here.
    pub(super) fn router(&self) -> Result<Router, String> {
        self.router_within(TIMEOUT)
    }

    /// As [`Self::router`], with another time limit for a request.
    pub(super) fn router_within(&self, limit: Duration) -> Result<Router, String> {
        let configured = match &self.config {
            Some(path) => Some(config::http_access(path).map_err(|errors| format!("{errors}\n{OTHER_WAY}"))?),
            None => None,
        };
        let (base, tls, token) = match (&configured, &self.url) {
            (Some(access), _) => (base(access)?, pinned(access)?, access.token.clone()),
            (None, Some(url)) => {
                let base = with_scheme(url)?.trim_end_matches('/').to_owned();
                (base, trusting(self.ca_file.as_deref())?, Ok(None))
            }
            (None, None) => return Err("give --config or --url".to_owned()),
        };
        let token = match &self.token_file {
            Some(path) => Ok(Some(config::read_secret(path)?)),
            None => token,
        };
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .timeout(limit)
            .user_agent(concat!("trunkline/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| format!("cannot start: {error}"))?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| format!("cannot start: {error}"))?;
        Ok(Router {
            client,
            base,
            token,
            is_local: configured.is_some(),
            cluster: self.cluster.clone(),
            is_exact: self.json,
            runtime: Some(runtime),
        })
    }

    /// `?cluster=NAME`, and other filters.
    pub(super) fn query(&self, filters: &[(&str, Option<&str>)]) -> String {
        let cluster = [("cluster", self.cluster.as_deref())];
        let given = cluster.iter().chain(filters);
        let pairs: Vec<String> = given
            .filter_map(|(key, value)| value.map(|value| format!("{key}={}", encoded(value))))
            .collect();
        if pairs.is_empty() {
            String::new()
        } else {
            format!("?{}", pairs.join("&"))
        }
    }
}

impl Router {
    /// Between two questions.
    pub(super) fn pause(&self, time: Duration) {
        if let Some(runtime) = &self.runtime {
            runtime.block_on(async { tokio::time::sleep(time).await });
        }
    }

    pub(super) fn look(&self, path: &str) -> Result<Value, String> {
        self.look_closely(path).map_err(Fault::words)
    }

    /// As [`Self::look`]; the fault says whether the router answers at all.
    pub(super) fn look_closely(&self, path: &str) -> Result<Value, Fault> {
        self.ask(Method::GET, path, None)
    }

    pub(super) fn change(&self, path: &str, body: Option<&Value>) -> Result<Value, String> {
        match &self.token {
            Ok(Some(_)) => {}
            Ok(None) => {
                return Err(if self.is_local {
                    "this needs the token: set http.token_file in the configuration, or give --token-file"
                } else {
                    "this needs the token of the router: give --token-file, with a copy of its http.token_file"
                }
                .to_owned());
            }
            Err(fault) => return Err(format!("this needs the token: {fault}\n{OTHER_WAY}")),
        }
        self.ask(Method::POST, path, body).map_err(Fault::words)
    }

    /// As [`Self::change`], also without a token: then the router logs that somebody asked without
    /// the right.
    pub(super) fn change_anyway(&self, path: &str, body: Option<&Value>) -> Result<Value, String> {
        let asked = self.ask(Method::POST, path, body).map_err(Fault::words);
        // What keeps the token away is said here in more detail than there.
        match (&self.token, asked) {
            (Ok(Some(_)), asked) | (_, asked @ Ok(_)) => asked,
            (_, Err(_)) => self.change(path, body),
        }
    }

    fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, Fault> {
        let url = with_cluster(&format!("{}{path}", self.base), self.cluster.as_deref());
        let mut request = self.client.request(method, url);
        if let Ok(Some(token)) = &self.token {
            // A token in clear over a network is one that others have.
            if self.base.starts_with("https:") || is_here(&self.base) {
                let token = std::str::from_utf8(token.expose())
                    .map_err(|_| Fault::Unasked("the token is not text".to_owned()))?;
                request = request.bearer_auth(token);
            } else {
                return Err(Fault::Unasked(format!(
                    "the token is not sent unencrypted to {}: use https://, or omit --token-file",
                    self.base
                )));
            }
        }
        if let Some(body) = body {
            request = request.body(body.to_string());
        }
        let closed = || Fault::Silent("the router was already closed".to_owned());
        let runtime = self.runtime.as_ref().ok_or_else(closed)?;
        let (status, text, incomplete) = runtime
            .block_on(async {
                let mut response = request.send().await?;
                let incomplete = response.headers().get(INCOMPLETE).cloned();
                let mut text = Vec::new();
                while let Some(chunk) = response.chunk().await? {
                    if text.len() + chunk.len() > MAX_ANSWER {
                        return Ok((response.status(), None, incomplete));
                    }
                    text.extend_from_slice(&chunk);
                }
                Ok((response.status(), Some(text), incomplete))
            })
            .map_err(|error: reqwest::Error| Fault::Silent(plain(self.silence(&error))))?;
        let Some(text) = text else {
            return Err(Fault::Silent(format!(
                "{} sends more than {} MiB, and no more is read: it is no router, or has too many sessions (then ask for \
                 a part of them, as with --route)",
                self.base,
                MAX_ANSWER / 1024 / 1024
            )));
        };
        let mut value = serde_json::from_slice::<Value>(&text);
        // It goes to a terminal, and the other side may be anybody.
        if let (false, Ok(value)) = (self.is_exact, &mut value) {
            make_plain(value);
        }
        if let Some(incomplete) = incomplete.as_ref().and_then(|text| text.to_str().ok())
            && status.is_success()
        {
            warn_of(incomplete);
        }
        match (status, value) {
            (StatusCode::OK, Ok(value)) => Ok(value),
            (StatusCode::ACCEPTED, _) => Err(Fault::Refused(
                "the router accepted the change, but it has not taken effect within a second; check again"
                    .to_owned(),
            )),
            (_, Ok(value)) if value["error"].is_string() => {
                let error = plain(value["error"].as_str().unwrap_or_default());
                Err(Fault::Refused(match value["hint"].as_str() {
                    Some(hint) => format!("{error} ({})", plain(hint)),
                    None => error,
                }))
            }
            (status, _) => Err(Fault::Silent(format!(
                "{} answers {status}, unlike a router",
                self.base
            ))),
        }
    }

    /// Why a request has got no answer.
    fn silence(&self, error: &reqwest::Error) -> String {
        match tls::among_causes(error) {
            Some(reason) => format!("TLS with {} failed: {reason}{}", self.base, tls_hint(&reason)),
            None if error.is_connect() || error.is_timeout() => {
                let hint = if self.is_local {
                    " (is the router running on this host?)"
                } else {
                    ""
                };
                format!("{} does not answer: {}{hint}", self.base, causes(error))
            }
            None => no_http(&self.base, &causes(error)),
        }
    }
}

#[expect(clippy::print_stderr, reason = "for the person who runs the command")]
fn warn_of(incomplete: &str) {
    eprintln!("not complete: earlier processes of the router did not take part: {incomplete}");
}

/// What the person can do about a failure of TLS with a router.
fn tls_hint(reason: &str) -> &'static str {
    if reason.contains(tls::NO_TLS) {
        " (the port answers without TLS: write http://)"
    } else if reason.starts_with(tls::NOT_TRUSTED) {
        " (give its authority, or this very certificate, with --ca-file)"
    } else {
        ""
    }
}

/// `127.0.0.1:6434` would be a host to some and a scheme to others.
fn with_scheme(url: &str) -> Result<&str, String> {
    if url.starts_with("http://") || url.starts_with("https://") {
        return Ok(url);
    }
    Err(format!("{url}: begin the URL with http:// or https://"))
}

/// Something took the connection.
fn no_http(base: &str, why: &str) -> String {
    let port = config::default_http_port();
    format!(
        "{base} accepts the connection, but does not answer in HTTP ({why}): check that it is the port of http.address \
         ({port} by default), and whether it needs https://"
    )
}

/// The innermost reason says most.
fn causes(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text = inner.to_string();
        cause = inner.source();
    }
    text
}

fn is_here(base: &str) -> bool {
    reqwest::Url::parse(base).is_ok_and(|url| {
        url.host_str().is_some_and(|host| {
            let host = host.trim_matches(['[', ']']);
            host == "localhost" || host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
        })
    })
}

/// The first address the router listens on, from this host.
fn base(access: &HttpAccess) -> Result<String, String> {
    let scheme = if access.has_tls { "https" } else { "http" };
    let mut addresses = access.addresses.iter();
    let address = addresses.find_map(|address| match address {
        BindAddress::Any { port } => Some(format!("127.0.0.1:{port}")),
        BindAddress::Ip(address) if address.ip().is_unspecified() && address.is_ipv4() => {
            Some(format!("127.0.0.1:{}", address.port()))
        }
        BindAddress::Ip(address) if address.ip().is_unspecified() => {
            Some(format!("[::1]:{}", address.port()))
        }
        BindAddress::Ip(address) => Some(address.to_string()),
        BindAddress::Unix { .. } => None,
    });
    let address = address.ok_or("the configuration has no HTTP address")?;
    Ok(format!("{scheme}://{address}"))
}

/// The URL with `?cluster=`, unless it has it already.
fn with_cluster(url: &str, cluster: Option<&str>) -> String {
    let query = url.split_once('?').map_or("", |(_, query)| query);
    let is_there = query.split('&').any(|pair| pair.starts_with("cluster="));
    match cluster {
        Some(cluster) if !is_there => {
            let sign = if url.contains('?') { '&' } else { '?' };
            format!("{url}{sign}cluster={}", encoded(cluster))
        }
        _ => url.to_owned(),
    }
}

/// Percent-encoding of everything but unreserved characters.
pub(super) fn encoded(text: &str) -> String {
    use std::fmt::Write as _;
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            // Writing to a String does not fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// The router of this configuration shows this certificate, for any name.
fn pinned(access: &HttpAccess) -> Result<ClientConfig, String> {
    let certificate = match (access.has_tls, &access.cert_file) {
        (false, _) => None,
        (true, Some(path)) => Some(first_certificate(path).map_err(|error| format!("{error}\n{OTHER_WAY}"))?),
        (true, None) => return Err(format!("http.tls.cert_file is not set\n{OTHER_WAY}")),
    };
    let verifier = Pinned {
        certificate,
        algorithms: provider().signature_verification_algorithms,
    };
    Ok(settings()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth())
}

fn trusting(ca_file: Option<&Path>) -> Result<ClientConfig, String> {
    let authorities = if let Some(path) = ca_file {
        let cannot = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        let certificates = CertificateDer::pem_file_iter(path)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|error| cannot(&error))?;
        if certificates.is_empty() {
            return Err(cannot(&"contains no certificate"));
        }
        Authorities::new(&certificates).map_err(|error| cannot(&error))?
    } else {
        Authorities::system()
    };
    let verifier = ServerVerifier::new(NameCheck::ChainAndName, authorities, &provider());
    Ok(settings()?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth())
}

fn settings() -> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>, String> {
    ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("cannot start TLS: {error}"))
}

fn first_certificate(path: &Path) -> Result<CertificateDer<'static>, String> {
    CertificateDer::from_pem_file(path).map_err(|error| format!("{}: {error}", path.display()))
}

/// Accepts one certificate and no other; `None`: none.
#[derive(Debug)]
struct Pinned {
    certificate: Option<CertificateDer<'static>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.certificate.as_ref() == Some(end_entity) {
            return Ok(ServerCertVerified::assertion());
        }
        Err(rustls::Error::General(
            "what answers does not show the certificate of http.tls".to_owned(),
        ))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        signature::tls12(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        signature::tls13(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests;
