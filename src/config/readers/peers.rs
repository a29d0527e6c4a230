//! `peers`.

use super::addresses;
use super::sockets::{SocketToBind, check_peer};
use crate::config::fields::{Section, report_repeated};
use crate::config::model::{Peer, Peers};

/// `places`: where this router listens.
pub(super) fn peers(root: &Section<'_>, places: &[SocketToBind<'_>]) -> Option<Peers> {
    let section = root.section("peers");
    if !section.present() {
        return None;
    }
    let secret = section
        .required("secret_file")
        .and_then(|field| field.secret_file());
    let (mut names, mut addresses, mut members) = (Vec::new(), Vec::new(), Vec::new());
    for field in section
        .required("members")
        .map(|field| field.list())
        .unwrap_or_default()
    {
        let section = field.section();
        let name = section
            .required("name")
            .and_then(|field| field.name().map(|name| (name, field)));
        let address = section.required("address").and_then(|field| {
            let (host, port) = addresses::host_and_port(&field)?;
            check_peer(&field, (&host, port), places);
            Some((host, port))
        });
        if let Some((name, field)) = &name {
            names.push((*name, field.clone()));
        }
        if let (Some((name, _)), Some((host, port))) = (name, address) {
            addresses.push(((host.clone(), port), field));
            members.push(Peer {
                name: name.to_owned(),
                host,
                port,
            });
        }
    }
    report_repeated(&names, "name");
    report_repeated(&addresses, "address");
    Some(Peers {
        secret: secret?,
        members,
    })
}
