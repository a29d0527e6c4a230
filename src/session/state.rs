//! What another server connection must have before a session can continue on it: today its startup
//! parameters.

use bytes::Bytes;

use super::client_address::{ClientAddressReport, add_client_address};
use crate::config::Access;
use crate::wire::startup::{MAX_LENGTH, ProtocolVersion, StartupPacket};

/// What a server connection must have in common with the client's session. Today it is the startup
/// parameters; confirmed settings and prepared statements are added when sessions can move to
/// another connection.
#[derive(Debug, Clone)]
pub(super) struct SessionState {
    pub version: ProtocolVersion,
    /// In order, including `user` and `database`.
    pub parameters: Vec<(Bytes, Bytes)>,
}

impl SessionState {
    /// The state with which a session starts. It names user and database once, as the rule saw
    /// them, so that the server cannot read repeated, empty or overlong ones in another way. A
    /// read-only session is read-only by its last startup parameter, which no earlier parameter can
    /// override (promise 2).
    pub(super) fn at_login(
        packet: &StartupPacket,
        access: Access,
        server_user: Option<&Bytes>,
        report: ClientAddressReport,
    ) -> Self {
        let user = server_user.unwrap_or(&packet.user).clone();
        let mut parameters = vec![
            (Bytes::from_static(b"user"), user),
            (Bytes::from_static(b"database"), packet.database.clone()),
        ];
        let is_name = |name: &Bytes| matches!(name.as_ref(), b"user" | b"database");
        let others = packet.parameters.iter().filter(|(name, _)| !is_name(name));
        parameters.extend(others.cloned());
        add_client_address(&mut parameters, report);
        if access == Access::ReadOnly {
            parameters.push((
                Bytes::from_static(b"default_transaction_read_only"),
                Bytes::from_static(b"on"),
            ));
        }
        Self {
            version: packet.served(),
            parameters,
        }
    }

    /// Whether the startup packet, with what the router adds, is short enough for a server. A
    /// server closes the connection without an error if the packet is too long. That would look
    /// like a fault of the server, and the next server would do the same.
    pub(super) fn fits(&self) -> bool {
        let parameters = self.parameters.iter();
        let length: usize = parameters.map(|(name, value)| name.len() + value.len() + 2).sum();
        // Length and version precede the parameters, a terminator follows.
        length + 9 <= MAX_LENGTH
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config::ClientAddressOptions;
    use crate::frontend::ClientAddress;
    use crate::wire::startup::{self, FirstPacket};

    fn state(body: &str, access: Access, server_user: Option<&'static str>) -> SessionState {
        let mut packet = u32::try_from(body.len() + 9).unwrap().to_be_bytes().to_vec();
        packet.extend([0, 3, 0, 0]);
        packet.extend(body.replace(['=', ';'], "\0").as_bytes());
        packet.push(0);
        let Ok(Some((FirstPacket::Startup(packet), _))) = startup::parse(&packet) else {
            panic!("{body}")
        };
        let server_user = server_user.map(|name| Bytes::from_static(name.as_bytes()));
        let report = ClientAddressReport {
            options: ClientAddressOptions {
                setting: false,
                application_name: false,
                tls: false,
            },
            client: ClientAddress::Local(None),
            tls: None,
        };
        SessionState::at_login(&packet, access, server_user.as_ref(), report)
    }

    /// The startup parameters that a server gets if the client sends these.
    fn startup_parameters(body: &str, access: Access, server_user: Option<&'static str>) -> String {
        let state = state(body, access, server_user);
        let shown = state.parameters.iter().map(|(name, value)| {
            format!(
                "{}={};",
                String::from_utf8_lossy(name),
                String::from_utf8_lossy(value)
            )
        });
        shown.collect()
    }

    #[test]
    fn the_server_gets_the_names_that_the_rule_saw() {
        let leader = |body| startup_parameters(body, Access::ReadWrite, None);
        assert_eq!(leader("user=a;"), "user=a;database=a;");
        assert_eq!(leader("user=a;database=;"), "user=a;database=a;");
        assert_eq!(
            leader("database=x;user=a;o=1;user=b;database=y;o=2;"),
            "user=b;database=y;o=1;o=2;"
        );
        let long = "n".repeat(64);
        assert_eq!(
            leader(&format!("user={long};database={long};")),
            format!("user={0};database={0};", &long[..63])
        );
        assert_eq!(
            startup_parameters("user=a;o=1;", Access::ReadOnly, None),
            "user=a;database=a;o=1;default_transaction_read_only=on;"
        );
    }

    /// The longest packet that servers and the router read has no room for the router's additions.
    #[test]
    fn a_packet_too_long_for_a_server_is_recognised() {
        let fits = |length: usize, target| {
            let start = "user=a;database=a;options=";
            let body = format!("{start}{};", "o".repeat(length - start.len() - 10));
            state(&body, target, None).fits()
        };
        let longest = MAX_LENGTH;
        assert!(fits(longest, Access::ReadWrite));
        let added = b"default_transaction_read_only\0on\0".len();
        assert!(fits(longest - added, Access::ReadOnly));
        assert!(!fits(longest - added + 1, Access::ReadOnly));
    }

    /// An empty database means the client's user, for which the rules were checked, not the
    /// server's user.
    #[test]
    fn another_user_on_the_server_gets_the_same_database() {
        for body in [
            "user=a;",
            "user=a;database=;",
            "user=b;user=a;database=x;database=;",
        ] {
            assert_eq!(
                startup_parameters(body, Access::ReadWrite, Some("reader")),
                "user=reader;database=a;",
                "{body}"
            );
        }
    }
}
