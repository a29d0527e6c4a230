//! `tls`, and what `http.tls` has in common with it: certificates that the router shows.

use std::sync::Arc;

use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::SingleCertAndKey;
use rustls::version::{TLS12, TLS13};
use rustls::{ServerConfig, SupportedProtocolVersion};

use crate::config::fields::{self, Context, Field, Section, Unlock};
use crate::config::model::{ClientTls, KeyPair, MinVersion, ServedCertificate};
use crate::tls::{self, Authorities, ClientVerifier};

/// A record carries at most 8 KiB of plaintext: `libpq` clients that poll the socket can hang on
/// more. rustls takes the record's header (5 bytes) off this number.
const MAX_FRAGMENT: usize = 8192;

pub(super) static BOTH: &[&SupportedProtocolVersion] = &[&TLS13, &TLS12];

static NEWEST: &[&SupportedProtocolVersion] = &[&TLS13];

pub(super) fn client_tls(root: &Section<'_>) -> Option<ClientTls> {
    let section = root.section("tls");
    if !section.present() {
        return None;
    }
    let versions = section.one_of("min_version").map(|oldest| match oldest {
        MinVersion::Tls12 => BOTH,
        MinVersion::Tls13 => NEWEST,
    });
    let certificates = section.required("certificates");
    let mut pairs = Vec::new();
    for field in certificates.as_ref().map(Field::list).unwrap_or_default() {
        let section = field.section();
        pairs.push((key_pair(&section), field));
    }
    let (clients, client_roots) = client_verifier(&section)?.unzip();
    let mut served = Vec::new();
    for (pair, field) in pairs {
        let pair = pair?;
        match server_config(root.context(), &pair, b"postgresql", versions?, clients.clone()) {
            Ok(server_config) => served.push(ServedCertificate { pair, server_config }),
            Err(error) => {
                field.error(format!("cannot be used: {error}"));
                return None;
            }
        }
    }
    (!served.is_empty()).then_some(ClientTls {
        certificates: served,
        asks_clients: clients.is_some(),
        client_roots,
    })
}

/// `cert_file`, `key_file` and `passphrase_command`.
pub(super) fn key_pair(section: &Section<'_>) -> Option<Arc<KeyPair>> {
    let (cert, key) = (section.required("cert_file"), section.required("key_file"));
    let unlock = Unlock::With("passphrase_command", section.field("passphrase_command"));
    let (cert, key) = cert.zip(key)?;
    fields::key_pair(&cert, &key, &unlock)
}

/// What clients' certificates are checked against, and by which authorities.
type Checked = (Arc<dyn ClientCertVerifier>, Vec<CertificateDer<'static>>);

/// What clients' certificates are checked against; `Some(None)` where they are not asked for any.
#[expect(
    clippy::option_option,
    reason = "the outer one is an error, as everywhere here"
)]
fn client_verifier(section: &Section<'_>) -> Option<Option<Checked>> {
    let lists = section.field("client_crl_file");
    let Some(field) = section.field("client_ca_file") else {
        let Some(lists) = lists else {
            return Some(None);
        };
        lists.error("has no effect without `client_ca_file`");
        return None;
    };
    let roots = field.roots();
    let lists = match lists {
        Some(lists) => lists.revocation_lists(),
        None => Some(Vec::new()),
    };
    let roots = roots?;
    match verifier_of(section.context(), &roots, &lists?) {
        Ok(verifier) => Some(Some((verifier, roots))),
        Err(error) => {
            field.error(format!("cannot be used: {error}"));
            None
        }
    }
}

/// Asks clients for a certificate ([`ClientVerifier`]).
fn verifier_of(
    context: &Context<'_>,
    roots: &[CertificateDer<'static>],
    lists: &[CertificateRevocationListDer<'static>],
) -> Result<Arc<dyn ClientCertVerifier>, String> {
    let authorities = Authorities::new(roots).map_err(|error| error.to_string())?;
    Ok(ClientVerifier::new(authorities, lists, &context.provider)?)
}

/// TLS as a server: no resumption of any kind, one application protocol.
pub(super) fn server_config(
    context: &Context<'_>,
    pair: &KeyPair,
    protocol: &[u8],
    versions: &[&'static SupportedProtocolVersion],
    clients: Option<Arc<dyn ClientCertVerifier>>,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(context.provider.clone())
        .with_protocol_versions(versions)?
        .with_client_cert_verifier(clients.unwrap_or_else(WebPkiClientVerifier::no_client_auth))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(tls::certified(
            &pair.chain,
            &pair.key,
            &context.provider,
        )?)));
    config.alpn_protocols = vec![protocol.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_fragment_size = Some(MAX_FRAGMENT);
    Ok(Arc::new(config))
}
