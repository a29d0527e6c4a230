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

use crate::config::{self, BindAddress, Config, Secret};
use crate::tls::{self, Authorities, NameCheck, ServerVerifier, signature};

const TIMEOUT: Duration = Duration::from_secs(10);
/// Processes of the router that did not answer: see docs/http.md.
const INCOMPLETE: &str = "x-trunkline-incomplete";
/// An answer; a session takes a few hundred bytes.
const MAX_ANSWER: usize = 256 * 1024 * 1024;

/// Which router is asked, and how the answer is printed.
#[derive(Debug, Args)]
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
    token: Option<Secret>,
    runtime: Option<tokio::runtime::Runtime>,
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
    /// `Err` is a sentence for the person at the keyboard, as everywhere here.
    pub(super) fn router(&self) -> Result<Router, String> {
        let configured = match &self.config {
            Some(path) => Some(config::load(path).map_err(|errors| errors.to_string())?),
            None => None,
        };
        let (base, tls, token) = match (&configured, &self.url) {
            (Some(config), _) => (base(config)?, pinned(config)?, config.http.token.clone()),
            (None, Some(url)) => {
                let base = with_scheme(url)?.trim_end_matches('/').to_owned();
                (base, trusting(self.ca_file.as_deref())?, None)
            }
            (None, None) => return Err("give --config or --url".to_owned()),
        };
        let token = match &self.token_file {
            Some(path) => Some(config::read_secret(path)?),
            None => token,
        };
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .timeout(TIMEOUT)
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
    pub(super) fn look(&self, path: &str) -> Result<Value, String> {
        self.ask(Method::GET, path, None)
    }

    pub(super) fn change(&self, path: &str, body: Option<&Value>) -> Result<Value, String> {
        if self.token.is_none() {
            return Err("this needs the token: set http.token_file, or give --token-file".to_owned());
        }
        self.ask(Method::POST, path, body)
    }

    fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, String> {
        let mut request = self.client.request(method, format!("{}{path}", self.base));
        if let Some(token) = &self.token {
            // A token in clear over a network is one that others have.
            if self.base.starts_with("https:") || is_here(&self.base) {
                let token =
                    std::str::from_utf8(token.expose()).map_err(|_| "the token is not text".to_owned())?;
                request = request.bearer_auth(token);
            } else {
                return Err(format!(
                    "the token is not sent unencrypted to {}: use https://, or omit --token-file",
                    self.base
                ));
            }
        }
        if let Some(body) = body {
            request = request.body(body.to_string());
        }
        let runtime = self.runtime.as_ref().ok_or("the router was already closed")?;
        let (status, text, incomplete) = runtime
            .block_on(async {
                let mut response = request.send().await?;
                let incomplete = response.headers().get(INCOMPLETE).cloned();
                let mut text = Vec::new();
                while let Some(chunk) = response.chunk().await? {
                    text.extend_from_slice(&chunk);
                    if text.len() > MAX_ANSWER {
                        break;
                    }
                }
                Ok((response.status(), text, incomplete))
            })
            .map_err(|error: reqwest::Error| match tls::among_causes(&error) {
                Some(reason) => format!("TLS with {} failed: {reason}", self.base),
                None if error.is_connect() || error.is_timeout() => {
                    format!("{} does not answer: {}", self.base, causes(&error))
                }
                None => no_http(&self.base, &causes(&error)),
            })?;
        let value = serde_json::from_slice::<Value>(&text);
        if let Some(incomplete) = incomplete.as_ref().and_then(|text| text.to_str().ok())
            && status.is_success()
        {
            warn_of(incomplete);
        }
        match (status, value) {
            (StatusCode::OK, Ok(value)) => Ok(value),
            (StatusCode::ACCEPTED, _) => Err(
                "the router accepted the change, but it has not taken effect within a second; check again"
                    .to_owned(),
            ),
            (_, Ok(value)) if value["error"].is_string() => {
                let error = value["error"].as_str().unwrap_or_default();
                Err(match value["hint"].as_str() {
                    Some(hint) => format!("{error} ({hint})"),
                    None => error.to_owned(),
                })
            }
            (status, _) => Err(format!("{} answers {status}, unlike a router", self.base)),
        }
    }
}

#[expect(clippy::print_stderr, reason = "for the person who runs the command")]
fn warn_of(incomplete: &str) {
    eprintln!("not complete: earlier processes of the router did not take part: {incomplete}");
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
fn base(config: &Config) -> Result<String, String> {
    let scheme = if config.http.tls.is_some() {
        "https"
    } else {
        "http"
    };
    let mut addresses = config.http.addresses.iter();
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
fn pinned(config: &Config) -> Result<ClientConfig, String> {
    let certificate = match &config.http.tls {
        Some(tls) => Some(first_certificate(&tls.leaf.cert_file)?),
        None => None,
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
mod tests {
    use super::*;

    #[test]
    fn a_token_is_for_this_host_or_for_https() {
        for here in [
            "http://127.0.0.1:6434",
            "http://[::1]:6434",
            "http://localhost:6434",
        ] {
            assert!(is_here(here), "{here}");
        }
        for elsewhere in [
            "http://db1:6434",
            "http://10.0.0.1:6434",
            "http://127.0.0.1.example:1",
            "nonsense",
        ] {
            assert!(!is_here(elsewhere), "{elsewhere}");
        }
    }

    fn asking(url: String) -> String {
        let remote = Remote {
            config: None,
            url: Some(url),
            token_file: None,
            ca_file: None,
            cluster: None,
            json: false,
        };
        remote
            .router()
            .and_then(|router| router.look("/api/v1/members"))
            .expect_err("nobody answers as a router does")
    }

    /// What is asked there is answered with this, whatever it was.
    fn answering(with: &'static [u8]) -> std::net::SocketAddr {
        use std::io::{Read as _, Write as _};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        std::thread::spawn(move || {
            for mut client in listener.incoming().flatten() {
                let _ = client.read(&mut [0; 1024]);
                let _ = client.write_all(with);
            }
        });
        address
    }

    #[test]
    fn another_port_or_scheme_is_named_as_that() {
        for with in [&b""[..], b"ready drain\n"] {
            let told = asking(format!("http://{}", answering(with)));
            assert!(told.contains("does not answer in HTTP"), "{told}");
            assert!(told.contains("http.address (6434 by default)"), "{told}");
        }
        let told = asking(format!(
            "https://{}",
            answering(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        ));
        assert!(told.contains("the other side does not speak TLS"), "{told}");
        let told = asking("127.0.0.1:6434".to_owned());
        assert!(told.contains("begin the URL with http://"), "{told}");
    }

    #[test]
    fn names_are_encoded() {
        assert_eq!(encoded("db-1_a.b~"), "db-1_a.b~");
        assert_eq!(encoded("a/b c?ü"), "a%2Fb%20c%3F%C3%BC");
    }
}
