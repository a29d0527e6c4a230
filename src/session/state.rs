//! What would have to be rebuilt on another server connection for a session to go on there: today its startup parameters.

use bytes::Bytes;

use super::client_address::{ClientAddressReport, add_client_address};
use crate::config::Access;
use crate::wire::startup::{MAX_LENGTH, ProtocolVersion, StartupPacket};

/// What a connection must have in common with the client. Settings confirmed later and prepared statements join the
/// startup parameters here when sessions can be rebuilt elsewhere.
#[derive(Debug, Clone)]
pub(super) struct SessionState {
    pub version: ProtocolVersion,
    /// In order, `user` and `database` among them.
    pub parameters: Vec<(Bytes, Bytes)>,
}

impl SessionState {
    /// The session state a client starts with. User and database are named once, as the rule saw them: repeated, empty or
    /// overlong ones are not left to the server to read its own way. A read-only one is read-only by its last startup
    /// parameter, which no earlier one can override (promise 2).
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

    /// With what the router adds, a startup packet may be longer than a server reads. It would close without a word, as
    /// if it were the server's fault, and so would every other.
    pub(super) fn fits(&self) -> bool {
        let parameters = self.parameters.iter();
        let length: usize = parameters.map(|(name, value)| name.len() + value.len() + 2).sum();
        // Length and version before them, a terminator behind them.
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
            how: ClientAddressOptions {
                setting: false,
                application_name: false,
                tls: false,
            },
            client: ClientAddress::Local(None),
            tls: None,
        };
        SessionState::at_login(&packet, access, server_user.as_ref(), report)
    }

    /// What a server is told for a startup packet with these parameters.
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
    fn the_server_is_told_the_names_that_the_rule_saw() {
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

    /// The longest packet that a server reads, and that is read here, has no room for what is added to it.
    #[test]
    fn what_a_server_would_not_read_is_known_before() {
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

    /// An empty database is the client's user, for whom the rule was asked, not the server's.
    #[test]
    fn another_user_on_the_server_is_in_the_same_database() {
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
