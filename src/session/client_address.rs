//! What a server is told of the client's address and TLS, which are the router's as far as the server can see.

use bytes::Bytes;

use crate::config::ClientAddressOptions;
use crate::frontend::ClientAddress;

/// The setting; empty for a client on a Unix socket, as `pg_stat_activity.client_addr` is null.
const SETTING: &[u8] = b"trunkline.client_addr";
/// The version of TLS between client and router; empty in clear.
const TLS_SETTING: &[u8] = b"trunkline.client_tls";
const APPLICATION_NAME: &[u8] = b"application_name";
/// Of a name in `PostgreSQL`, its terminator not counted; `application_name` is cut there.
const LONGEST_NAME: usize = 63;

/// What there is to tell.
#[derive(Debug, Clone, Copy)]
pub(super) struct ClientAddressReport {
    pub(super) how: ClientAddressOptions,
    pub(super) client: ClientAddress,
    /// The version of TLS between client and router.
    pub(super) tls: Option<&'static str>,
}

/// Adds it to startup parameters. What the client says of itself under the same name does not count, in whatever case.
pub(super) fn add_client_address(parameters: &mut Vec<(Bytes, Bytes)>, report: ClientAddressReport) {
    let ClientAddressReport { how, client, tls } = report;
    let mut set = |name: &'static [u8], value: Bytes| {
        parameters.retain(|(given, _)| !given.eq_ignore_ascii_case(name));
        parameters.push((Bytes::from_static(name), value));
    };
    if how.setting {
        let address = client.ip().map(|ip| ip.to_string()).unwrap_or_default();
        set(SETTING, address.into());
    }
    if how.tls {
        set(
            TLS_SETTING,
            Bytes::from_static(tls.unwrap_or_default().as_bytes()),
        );
    }
    if how.application_name {
        let is_name = |(name, _): &&(Bytes, Bytes)| name.eq_ignore_ascii_case(APPLICATION_NAME);
        let own = parameters.iter().rfind(is_name).map(|(_, own)| own.clone());
        parameters.retain(|parameter| !is_name(&parameter));
        let name = named(&own.unwrap_or_default(), client);
        parameters.push((Bytes::from_static(APPLICATION_NAME), name));
    }
}

/// `psql from 10.1.2.3:4567`. The client's own part is cut, not the address.
fn named(own: &[u8], client: ClientAddress) -> Bytes {
    let from = format!("from {client}");
    let room = LONGEST_NAME.saturating_sub(from.len() + 1);
    let mut cut = own.len().min(room);
    // Not within a character of UTF-8.
    while cut > 0 && cut < own.len() && own[cut] & 0xC0 == 0x80 {
        cut -= 1;
    }
    if cut == 0 {
        return from.into();
    }
    [&own[..cut], b" ", from.as_bytes()].concat().into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn told(
        given: &[(&'static str, &'static str)],
        setting: bool,
        application_name: bool,
        client: &str,
    ) -> String {
        let mut parameters: Vec<_> = given
            .iter()
            .map(|(name, value)| (Bytes::from(*name), Bytes::from(*value)))
            .collect();
        let client = match client.parse() {
            Ok(address) => ClientAddress::of_socket(address),
            Err(_) => ClientAddress::Local(None),
        };
        let how = ClientAddressOptions {
            setting,
            application_name,
            tls: false,
        };
        add_client_address(
            &mut parameters,
            ClientAddressReport {
                how,
                client,
                tls: None,
            },
        );
        let shown = |(name, value): &(Bytes, Bytes)| {
            format!(
                "{}={};",
                str::from_utf8(name).unwrap(),
                str::from_utf8(value).unwrap()
            )
        };
        parameters.iter().map(shown).collect()
    }

    #[test]
    fn what_a_client_says_of_itself_does_not_count() {
        let lies = [
            ("user", "a"),
            ("Trunkline.Client_Addr", "1.1.1.1"),
            ("trunkline.client_addr", "2.2.2.2"),
        ];
        assert_eq!(
            told(&lies, true, false, "10.1.2.3:4567"),
            "user=a;trunkline.client_addr=10.1.2.3;"
        );
        assert_eq!(
            told(&lies[..1], true, false, "[2001:db8::1]:1"),
            "user=a;trunkline.client_addr=2001:db8::1;"
        );
        assert_eq!(
            told(&lies[..1], true, false, "on a Unix socket"),
            "user=a;trunkline.client_addr=;"
        );
        assert_eq!(told(&lies[..1], false, false, "10.1.2.3:4567"), "user=a;");
    }

    #[test]
    fn the_name_is_cut_and_the_address_is_not() {
        let name = |own| told(&[("application_name", own)], false, true, "10.1.2.3:4567");
        assert_eq!(name("psql"), "application_name=psql from 10.1.2.3:4567;");
        assert_eq!(name(""), "application_name=from 10.1.2.3:4567;");
        assert_eq!(
            told(
                &[("application_name", "a"), ("Application_Name", "b")],
                false,
                true,
                "x"
            ),
            "application_name=b from [local];"
        );
        let long = name("nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn");
        assert_eq!(long.len(), "application_name=;".len() + 63);
        assert!(long.ends_with("n from 10.1.2.3:4567;"), "{long}");
        let wide = name("éééééééééééééééééééééééééééééééééééééé");
        let wide = wide.trim_start_matches("application_name=").trim_end_matches(';');
        assert!(
            wide.len() <= 63 && wide.ends_with("é from 10.1.2.3:4567"),
            "{wide}"
        );
    }
}
