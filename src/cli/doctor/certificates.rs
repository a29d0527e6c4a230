//! The router's own certificates: how long they last, the names they have, and the order of the
//! chain. That each belongs to its key is checked with the configuration.

use rustls::pki_types::CertificateDer;
use x509_parser::parse_x509_certificate;

use crate::cli::check::{certificates, unix_now};
use crate::cluster::examine::Finding;
use crate::config::Config;

/// The files, as they are shown.
pub(super) fn paths(config: &Config) -> Vec<String> {
    let all = certificates(config).into_iter();
    all.map(|(_, leaf)| leaf.cert_file.display().to_string())
        .collect()
}

pub(super) fn findings(config: &Config) -> Vec<Finding> {
    let now = unix_now();
    let mut findings = Vec::new();
    for (unit, leaf) in certificates(config) {
        let what = format!("certificate {} ({unit})", leaf.cert_file.display());
        let (days, until) = (leaf.days_left(now), leaf.expires());
        let names = if leaf.names.is_empty() {
            leaf.subject.clone()
        } else {
            leaf.names.join(", ")
        };
        findings.push(Finding::of_certificate(
            what.clone(),
            &format!("{names}; "),
            days,
            &until,
            "renew it; the router reads the new file by itself",
        ));
        if leaf.names.is_empty()
            && matches!(
                unit,
                crate::config::ReloadUnit::Tls | crate::config::ReloadUnit::Http
            )
        {
            findings.push(Finding::remark(
                what,
                "has no subjectAltName: clients that verify the name refuse it",
                "issue it with the host names that clients use as subjectAltName",
            ));
        }
    }
    for served in config.tls.iter().flat_map(|tls| &tls.certificates) {
        let what = format!("certificate {}: chain", served.pair.cert_file.display());
        findings.push(ordered(what, &served.pair.chain));
    }
    findings
}

/// Each certificate is followed by that of its issuer.
fn ordered(what: String, chain: &[CertificateDer<'_>]) -> Finding {
    let parsed: Vec<_> = chain
        .iter()
        .filter_map(|one| Some(parse_x509_certificate(one).ok()?.1))
        .collect();
    let broken = parsed
        .windows(2)
        .position(|pair| pair[0].issuer().as_raw() != pair[1].subject().as_raw());
    match broken {
        Some(index) => Finding::remark(
            what,
            format!(
                "certificate {} is not that of the issuer of certificate {}",
                index + 2,
                index + 1
            ),
            "put the router's certificate first, then that of its issuer, and so on",
        ),
        None => Finding::good(what, format!("in order, {} long", chain.len())),
    }
}
