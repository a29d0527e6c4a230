//! `http`.

use super::addresses::{bind_address, default_bind_address};
use super::admission;
use super::client_tls::{BOTH, key_pair, server_config};
use super::sockets::{SocketToBind, Speaks};
use crate::config::fields::Section;
use crate::config::model::{AgentCheck, Http, HttpAccess, HttpTls, ReloadUnit};
use crate::config::secret::Secret;

pub(super) fn http<'a>(root: &Section<'a>, places: &mut Vec<SocketToBind<'a>>) -> Option<Http> {
    let section = root.section("http");
    let mut addresses = Vec::new();
    if let Some(field) = section.field("address") {
        let fields = if field.is_list() {
            field.list()
        } else {
            vec![field]
        };
        for field in fields {
            if let Some(address) = bind_address(&field) {
                addresses.push(address.clone());
                places.push(SocketToBind::written(address, field, Speaks::Http));
            }
        }
    } else {
        let address = default_bind_address(section.default_text("address"));
        places.push(SocketToBind::default(
            address.clone(),
            "http.address",
            Speaks::Http,
        ));
        addresses.push(address);
    }
    let proxy_protocol = admission::proxy_protocol(&section);
    let tls = section.section("tls");
    let token = token(&section);
    let agent_check = agent_check(&section, places);
    let ui = section.truth("ui");
    if !tls.present() {
        return Some(Http {
            addresses,
            tls: None,
            token,
            agent_check,
            proxy_protocol,
            ui,
        });
    }
    let pair = key_pair(&tls)?;
    match server_config(root.context(), &pair, b"http/1.1", BOTH, None) {
        Ok(server_config) => Some(Http {
            addresses,
            tls: Some(HttpTls {
                leaf: pair.leaf(),
                chain: pair.chain.clone(),
                server_config,
            }),
            token,
            agent_check,
            proxy_protocol,
            ui,
        }),
        Err(error) => {
            tls.error(format!("cannot be used: {error}"));
            None
        }
    }
}

/// Where the router's HTTP is, and what a client of it needs. Faults of the certificate and of the
/// key do not matter to a client.
pub(super) fn access(root: &Section<'_>) -> Option<HttpAccess> {
    let section = root.section("http");
    // A key that is misspelt may be the one that leads there: a default in its place would ask
    // somebody else, or nobody.
    if section.is_broken() || section.has_unknown() || !section.present() && root.has_unknown() {
        return None;
    }
    let addresses = match section.field("address") {
        None => vec![default_bind_address(section.default_text("address"))],
        Some(field) if field.is_list() => {
            let all = field.list();
            all.iter().map(bind_address).collect::<Option<_>>()?
        }
        Some(field) => vec![bind_address(&field)?],
    };
    let tls = section.section("tls");
    if tls.is_broken() || tls.has_unknown() {
        return None;
    }
    let context = root.context();
    let before = context.errors.borrow().len();
    let token = token(&section);
    let faults = context.errors.borrow_mut().split_off(before);
    let token = match faults.into_iter().next() {
        Some((_, fault)) => Err(fault.to_string()),
        None => Ok(token),
    };
    Some(HttpAccess {
        addresses,
        has_tls: tls.present(),
        cert_file: tls.field("cert_file").and_then(|field| field.path()),
        token,
    })
}

fn token(http: &Section<'_>) -> Option<Secret> {
    let field = http.field("token_file")?;
    http.context().within(ReloadUnit::Token, || {
        let token = field.secret_file()?;
        if token.expose().iter().all(u8::is_ascii_graphic) {
            return Some(token);
        }
        field.error("the token must be letters, digits and punctuation, since it is sent in a header");
        None
    })
}

fn agent_check<'a>(http: &Section<'a>, places: &mut Vec<SocketToBind<'a>>) -> Option<AgentCheck> {
    let section = http.section("agent_check");
    if !section.present() {
        return None;
    }
    let about = section.one_of("about");
    let field = section.required("address")?;
    let address = bind_address(&field)?;
    places.push(SocketToBind::written(address.clone(), field, Speaks::AgentCheck));
    Some(AgentCheck {
        address,
        about: about?,
    })
}
