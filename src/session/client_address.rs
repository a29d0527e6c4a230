//! Passes the client's address and TLS version to the server, which itself sees only those of the
//! router.

use bytes::Bytes;

use crate::config::ClientAddressOptions;
use crate::frontend::ClientAddress;

/// The setting with the client's address. It is empty for a client on a Unix socket, for which
/// `pg_stat_activity.client_addr` is null.
const SETTING: &[u8] = b"trunkline.client_addr";
/// The version of TLS between client and router; empty in clear.
const TLS_SETTING: &[u8] = b"trunkline.client_tls";
const APPLICATION_NAME: &[u8] = b"application_name";
/// The longest name in `PostgreSQL`, in bytes without the terminator; `application_name` is cut to
/// it.
const LONGEST_NAME: usize = 63;

/// What the server may learn about the client, and in which way.
#[derive(Debug, Clone, Copy)]
pub(super) struct ClientAddressReport {
    pub(super) options: ClientAddressOptions,
    pub(super) client: ClientAddress,
    /// The version of TLS between client and router.
    pub(super) tls: Option<&'static str>,
}

/// Adds the client's address to startup parameters. It replaces what the client sent under the same
/// names, in upper or lower case.
pub(super) fn add_client_address(parameters: &mut Vec<(Bytes, Bytes)>, report: ClientAddressReport) {
    let ClientAddressReport { options, client, tls } = report;
    let mut set = |name: &'static [u8], value: Bytes| {
        parameters.retain(|(given, _)| !given.eq_ignore_ascii_case(name));
        parameters.push((Bytes::from_static(name), value));
    };
    if options.setting {
        let address = client.ip().map(|ip| ip.to_string()).unwrap_or_default();
        set(SETTING, address.into());
    }
    if options.tls {
        set(
            TLS_SETTING,
            Bytes::from_static(tls.unwrap_or_default().as_bytes()),
        );
    }
    if options.application_name {
        let is_name = |(name, _): &&(Bytes, Bytes)| name.eq_ignore_ascii_case(APPLICATION_NAME);
        let sent = parameters.iter().rfind(is_name).map(|(_, sent)| sent.clone());
        parameters.retain(|parameter| !is_name(&parameter));
        let name = with_address(&sent.unwrap_or_default(), client);
        parameters.push((Bytes::from_static(APPLICATION_NAME), name));
    }
}

/// `psql from 10.1.2.3:4567`. If that is too long, the name that the client sent is cut, not the
/// address.
fn with_address(sent: &[u8], client: ClientAddress) -> Bytes {
    let from = format!("from {client}");
    let room = LONGEST_NAME.saturating_sub(from.len() + 1);
    let mut cut = sent.len().min(room);
    // Not within a UTF-8 character.
    while cut > 0 && cut < sent.len() && sent[cut] & 0xC0 == 0x80 {
        cut -= 1;
    }
    if cut == 0 {
        return from.into();
    }
    [&sent[..cut], b" ", from.as_bytes()].concat().into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// The startup parameters of a server for which the client sent `given`.
    fn startup_parameters(
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
        let options = ClientAddressOptions {
            setting,
            application_name,
            tls: false,
        };
        add_client_address(
            &mut parameters,
            ClientAddressReport {
                options,
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
    fn the_clients_own_values_are_replaced() {
        let given = [
            ("user", "a"),
            ("Trunkline.Client_Addr", "1.1.1.1"),
            ("trunkline.client_addr", "2.2.2.2"),
        ];
        assert_eq!(
            startup_parameters(&given, true, false, "10.1.2.3:4567"),
            "user=a;trunkline.client_addr=10.1.2.3;"
        );
        assert_eq!(
            startup_parameters(&given[..1], true, false, "[2001:db8::1]:1"),
            "user=a;trunkline.client_addr=2001:db8::1;"
        );
        assert_eq!(
            startup_parameters(&given[..1], true, false, "on a Unix socket"),
            "user=a;trunkline.client_addr=;"
        );
        assert_eq!(
            startup_parameters(&given[..1], false, false, "10.1.2.3:4567"),
            "user=a;"
        );
    }

    #[test]
    fn the_name_is_cut_and_the_address_is_not() {
        let name = |sent| startup_parameters(&[("application_name", sent)], false, true, "10.1.2.3:4567");
        assert_eq!(name("psql"), "application_name=psql from 10.1.2.3:4567;");
        assert_eq!(name(""), "application_name=from 10.1.2.3:4567;");
        assert_eq!(
            startup_parameters(
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
