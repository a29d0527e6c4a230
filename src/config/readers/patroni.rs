//! `clusters.NAME.patroni`.

use super::endpoints::{authorities, endpoints, login};
use crate::config::fields::{Section, Unlock, key_pair};
use crate::config::model::Patroni;

pub(super) fn patroni(section: &Section<'_>) -> Option<Patroni> {
    let endpoints = section.required("endpoints").map(|field| endpoints(&field));
    let ca = authorities(section, endpoints.as_deref());
    let client_certificate = section
        .pair("cert_file", "key_file")
        .and_then(|(c, k)| key_pair(&c, &k, &Unlock::Never));
    let basic_auth = login(section);
    let poll_interval = section.duration("poll_interval");
    let fast = section.field("fast_poll_interval");
    let fast_poll_interval = match fast.as_ref().map(|field| (field, field.duration())) {
        Some((field, Some(fast))) if fast > poll_interval => {
            field.error("must not be longer than `poll_interval`");
            fast
        }
        Some((_, Some(fast))) => fast,
        _ => section.default_duration("fast_poll_interval").min(poll_interval),
    };
    Some(Patroni {
        endpoints: endpoints?,
        ca,
        client_certificate,
        basic_auth,
        poll_interval,
        fast_poll_interval,
    })
}
