//! The result of a probe in the terms of HAProxy's `check_status`: the layer that failed, and how.

use std::fmt;

use crate::backend::{ConnectError, Step};

/// HAProxy's names, with HAProxy's meaning: layer 4 is the connection, layer 6 is TLS, layer 7 is
/// the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum CheckStatus {
    /// `INI`: not probed yet.
    #[default]
    Initializing,
    /// `SOCKERR`: this host lacks a resource.
    SocketError,
    /// `L4CON`: no connection.
    Layer4Connection,
    /// `L4TOUT`: no connection in time.
    Layer4Timeout,
    /// `L6RSP`: TLS failed, or the certificate is not accepted.
    Layer6Response,
    /// `L6TOUT`: TLS took too long.
    Layer6Timeout,
    /// `L7OK`: the probe's query was answered.
    Layer7Ok,
    /// `L7RSP`: the peer is not a PostgreSQL server, or closed the connection.
    Layer7Response,
    /// `L7TOUT`: connected, but no answer in time.
    Layer7Timeout,
    /// `L7STS`: the server answered with an error.
    Layer7Status,
}

impl CheckStatus {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Initializing => "INI",
            Self::SocketError => "SOCKERR",
            Self::Layer4Connection => "L4CON",
            Self::Layer4Timeout => "L4TOUT",
            Self::Layer6Response => "L6RSP",
            Self::Layer6Timeout => "L6TOUT",
            Self::Layer7Ok => "L7OK",
            Self::Layer7Response => "L7RSP",
            Self::Layer7Timeout => "L7TOUT",
            Self::Layer7Status => "L7STS",
        }
    }

    /// As the end of a sentence, for unauthenticated readers: it contains no text from a server or
    /// from a third party.
    pub fn words(self) -> &'static str {
        match self {
            Self::Initializing => "it has not been probed yet",
            Self::SocketError => "this host has no connections left to probe it with",
            Self::Layer4Connection => "no connection can be made",
            Self::Layer4Timeout => "no connection was established in time",
            Self::Layer6Response => "TLS failed",
            Self::Layer6Timeout => "it accepts connections, but TLS was not set up in time",
            Self::Layer7Ok => "it answers",
            Self::Layer7Response => "it closed the connection, or is not a PostgreSQL server",
            Self::Layer7Timeout => "it accepts connections, but did not answer in time",
            Self::Layer7Status => "it answered the probe with an error",
        }
    }

    /// Whether a probe with this result got a connection.
    pub(super) fn is_connected(self) -> bool {
        !matches!(
            self,
            Self::Initializing | Self::SocketError | Self::Layer4Connection | Self::Layer4Timeout
        )
    }

    /// Whether the server, or its host, sent anything.
    pub(super) fn is_answered(self) -> bool {
        matches!(
            self,
            Self::Layer6Response | Self::Layer7Ok | Self::Layer7Response | Self::Layer7Status
        )
    }

    /// The status for a probe's failure.
    pub(super) fn of(error: &ConnectError) -> Self {
        match error {
            ConnectError::LocalResources { .. } => Self::SocketError,
            ConnectError::Resolve { .. }
            | ConnectError::Refused { .. }
            | ConnectError::Unreachable { .. } => Self::Layer4Connection,
            ConnectError::Timeout { step } => match step {
                Step::Resolve | Step::Connect => Self::Layer4Timeout,
                Step::TlsRequest | Step::TlsHandshake => Self::Layer6Timeout,
                Step::Login | Step::Start | Step::Query | Step::Cancel => Self::Layer7Timeout,
            },
            ConnectError::Lost { step, .. }
            | ConnectError::Closed { step }
            | ConnectError::Protocol { step, .. } => match step {
                Step::Resolve | Step::Connect => Self::Layer4Connection,
                Step::TlsRequest | Step::TlsHandshake => Self::Layer6Response,
                Step::Login | Step::Start | Step::Query | Step::Cancel => Self::Layer7Response,
            },
            ConnectError::TlsRefused
            | ConnectError::ErrorBeforeTls { .. }
            | ConnectError::Tls { .. }
            | ConnectError::TlsThenRefused { .. }
            | ConnectError::DirectTls { .. }
            | ConnectError::Certificate { .. } => Self::Layer6Response,
            ConnectError::AnswerTooLarge => Self::Layer7Response,
            ConnectError::Server(_)
            | ConnectError::VerifierDiffers { .. }
            | ConnectError::NotProven { .. }
            | ConnectError::ChannelBinding { .. }
            | ConnectError::UnsupportedMethod { .. }
            | ConnectError::CleartextRefused
            | ConnectError::MethodRefused { .. }
            | ConnectError::NoCredential { .. } => Self::Layer7Status,
        }
    }
}

impl fmt::Display for CheckStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The layers are those of HAProxy's management guide, section 9.1, `check_status`.
    #[test]
    fn the_layer_that_failed_is_reported() {
        let timeout = |step| CheckStatus::of(&ConnectError::Timeout { step }).as_str();
        assert_eq!(timeout(Step::Connect), "L4TOUT");
        assert_eq!(timeout(Step::TlsHandshake), "L6TOUT");
        assert_eq!(timeout(Step::Query), "L7TOUT");
        let closed = |step| CheckStatus::of(&ConnectError::Closed { step }).as_str();
        assert_eq!(closed(Step::TlsRequest), "L6RSP");
        assert_eq!(closed(Step::Login), "L7RSP");
        let refused = ConnectError::Refused {
            address: ([127, 0, 0, 1], 1).into(),
        };
        assert_eq!(CheckStatus::of(&refused).as_str(), "L4CON");
        assert_eq!(CheckStatus::of(&ConnectError::TlsRefused).as_str(), "L6RSP");
        assert_eq!(CheckStatus::of(&ConnectError::CleartextRefused).as_str(), "L7STS");
    }
}
