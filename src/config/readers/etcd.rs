//! `clusters.NAME.etcd`: a watch on the keys of Patroni's DCS, beside its REST interface.

use super::endpoints::{authorities, endpoints, login};
use crate::config::fields::{Field, Section, Unlock, key_pair};
use crate::config::model::Etcd;

/// `None` where there is no such section or an error in it.
pub(super) fn read(cluster: &Section<'_>) -> Option<Etcd> {
    let field = cluster.field("etcd")?;
    if cluster.has("servers") && !cluster.has("patroni") {
        field.error("has no effect with `servers`: it watches Patroni's keys");
    }
    let section = field.section();
    let endpoints = section.required("endpoints").map(|field| endpoints(&field));
    let ca = authorities(&section, endpoints.as_deref());
    let client_certificate = section
        .pair("cert_file", "key_file")
        .and_then(|(cert, key)| key_pair(&cert, &key, &Unlock::Never));
    let login = login(&section);
    let namespace = match section.field("namespace") {
        Some(field) => path(&field),
        None => Some(without_slashes(section.default_text("namespace"))),
    };
    let scope = section.required("scope").and_then(|field| {
        let scope = path(&field);
        if scope.as_deref() == Some("") {
            field.error("must not be empty");
        }
        scope
    });
    let (namespace, scope) = (namespace?, scope?);
    let prefix = if namespace.is_empty() {
        format!("/{scope}/")
    } else {
        format!("/{namespace}/{scope}/")
    };
    Some(Etcd {
        endpoints: endpoints?,
        prefix,
        ca,
        client_certificate,
        login,
    })
}

/// As Patroni reads it: slashes around it do not matter.
fn path(field: &Field<'_>) -> Option<String> {
    let text = field.text()?;
    if text.chars().any(char::is_control) {
        field.error("contains a control character");
        return None;
    }
    Some(without_slashes(text))
}

fn without_slashes(path: &str) -> String {
    path.trim_matches('/').to_owned()
}
