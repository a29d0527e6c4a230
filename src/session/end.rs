//! Why a session ended: what the client is told, what the log says, what the metrics count.

use crate::cluster::snapshot::MemberName;
use crate::routing::{EndReason, LeaveReason};
use crate::wire::message::ErrorReply;
use crate::wire::sqlstate::SqlState;

/// An order to end a session, given from outside through the registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// Between transactions; what runs may finish.
    AtBoundary(Reason),
    /// At once, in a transaction too.
    Now(Reason),
}

impl Order {
    pub fn reason(&self) -> &Reason {
        match self {
            Self::AtBoundary(reason) | Self::Now(reason) => reason,
        }
    }
}

/// The reason of an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    Shutdown,
    /// The server's role has changed.
    Role(EndReason),
    /// An operator ends this one session.
    Killed,
    /// An operator ends the sessions on the member.
    MemberClosed(MemberName),
    /// The server is no longer fit for the session's route.
    Unfit(LeaveReason),
}

impl Reason {
    /// What the client is told: always FATAL 57P01, as a server that shuts down would.
    pub fn reply(&self) -> ErrorReply {
        let fatal = |message: String| ErrorReply::fatal(SqlState::ADMIN_SHUTDOWN, message);
        match self {
            Self::Shutdown => fatal(
                "terminating connection: the connection manager is shutting down".to_owned(),
            )
            .hint("Reconnect; another connection manager, or this one once restarted, will serve you."),
            Self::Killed => fatal("terminating connection due to administrator command".to_owned())
                .hint("An operator of the connection manager has ended this session."),
            Self::MemberClosed(member) => fatal(format!(
                "terminating connection: an operator ends the sessions on {member}"
            ))
            .hint("Reconnect to be served by another server, if this one takes no new sessions."),
            Self::Role(why @ (EndReason::Demoted(_) | EndReason::OtherLeader { .. })) => {
                fatal(format!("terminating connection: {why}")).hint("Reconnect to reach the leader.")
            }
            Self::Role(why @ EndReason::Promoted(_)) => {
                fatal(format!("terminating connection: {why}")).hint("Reconnect to reach a replica.")
            }
            Self::Unfit(why) => {
                fatal(format!("terminating connection: {why}")).hint("Reconnect to reach another server.")
            }
        }
    }

    fn label(&self) -> &'static str {
        match self {
            Self::Shutdown => "shutdown",
            Self::Killed => "killed",
            Self::MemberClosed(_) => "member_closed",
            Self::Role(EndReason::Demoted(_)) => "demoted",
            Self::Role(EndReason::OtherLeader { .. }) => "leader_changed",
            Self::Role(EndReason::Promoted(_)) => "promoted",
            Self::Unfit(LeaveReason::Lagging(_)) => "lagging",
            Self::Unfit(LeaveReason::Down(_)) => "member_down",
            Self::Unfit(LeaveReason::Maintenance(_)) => "maintenance",
        }
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Shutdown => f.write_str("shutdown"),
            Self::Killed => f.write_str("ended by an operator"),
            Self::MemberClosed(member) => write!(f, "an operator ended the sessions on {member}"),
            Self::Role(why) => why.fmt(f),
            Self::Unfit(why) => why.fmt(f),
        }
    }
}

/// Why a relayed session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// The client said goodbye (Terminate).
    ClientTerminated,
    /// The client closed without a goodbye; `false`: between transactions.
    ClientGone {
        in_flight: bool,
    },
    /// The server ended it with a FATAL of its own, forwarded verbatim.
    ServerFatal {
        code: [u8; 5],
    },
    /// The server closed without a word.
    ServerGone {
        in_flight: bool,
    },
    /// The server closed, and what it said before is not known (`mode: tcp`): a refused login, or a goodbye.
    ServerClosed,
    Ordered(Reason),
    /// One side broke the protocol so that frames can no longer be told apart.
    ClientProtocol(String),
    ServerProtocol(String),
    /// A fault of ours in the console; the client is cut off.
    ConsoleFault,
}

impl Cause {
    /// The label in metrics; one of a fixed set.
    pub fn label(&self) -> &'static str {
        match self {
            Self::ClientTerminated => "client_terminated",
            Self::ClientGone { .. } => "client_gone",
            Self::ServerFatal { .. } => "server_fatal",
            Self::ServerGone { .. } => "server_gone",
            Self::ServerClosed => "server_closed",
            Self::Ordered(reason) => reason.label(),
            Self::ClientProtocol(_) => "client_protocol",
            Self::ServerProtocol(_) => "server_protocol",
            Self::ConsoleFault => "console_fault",
        }
    }

    /// Does the operator want to see this one at WARN?
    pub fn is_trouble(&self) -> bool {
        match self {
            Self::ClientTerminated
            | Self::ClientGone { .. }
            | Self::ServerFatal { .. }
            | Self::ServerClosed
            | Self::Ordered(
                Reason::Shutdown
                | Reason::Killed
                | Reason::MemberClosed(_)
                | Reason::Unfit(LeaveReason::Maintenance(_)),
            ) => false,
            Self::ServerGone { .. }
            | Self::Ordered(_)
            | Self::ClientProtocol(_)
            | Self::ServerProtocol(_)
            | Self::ConsoleFault => true,
        }
    }

    /// What the client is told; `None` where it knows or is gone.
    pub fn reply(&self) -> Option<ErrorReply> {
        match self {
            Self::ClientTerminated
            | Self::ClientGone { .. }
            | Self::ServerFatal { .. }
            | Self::ServerClosed
            | Self::ConsoleFault => None,
            Self::Ordered(reason) => Some(reason.reply()),
            Self::ServerGone { in_flight: true } => Some(
                ErrorReply::fatal(
                    SqlState::TRANSACTION_RESOLUTION_UNKNOWN,
                    "the connection to the server was lost while a request was under way; its outcome is unknown",
                )
                .hint("Reconnect, and check whether the statement took effect before you repeat it."),
            ),
            Self::ServerGone { in_flight: false } => Some(
                ErrorReply::fatal(SqlState::CONNECTION_FAILURE, "the connection to the server was lost")
                    .hint("Reconnect. A transaction that was open has been rolled back."),
            ),
            Self::ClientProtocol(what) => Some(ErrorReply::fatal(SqlState::PROTOCOL_VIOLATION, what.clone())),
            Self::ServerProtocol(_) => Some(
                ErrorReply::fatal(SqlState::PROTOCOL_VIOLATION, "the server broke the protocol; the session cannot go on")
                    .hint("The connection manager's log has the details."),
            ),
        }
    }
}

impl std::fmt::Display for Cause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::ClientTerminated => f.write_str("client said goodbye"),
            Self::ClientGone { in_flight: false } => f.write_str("client closed the connection"),
            Self::ClientGone { in_flight: true } => {
                f.write_str("client closed the connection while a request was under way")
            }
            Self::ServerFatal { code } => write!(f, "server ended it with {}", code.escape_ascii()),
            Self::ServerGone { in_flight: false } => f.write_str("connection to the server lost"),
            Self::ServerGone { in_flight: true } => {
                f.write_str("connection to the server lost, outcome unknown")
            }
            Self::ServerClosed => f.write_str("server closed the connection"),
            Self::Ordered(reason) => reason.fmt(f),
            Self::ClientProtocol(what) => write!(f, "protocol violation by the client: {what}"),
            Self::ServerProtocol(what) => write!(f, "protocol violation by the server: {what}"),
            Self::ConsoleFault => f.write_str("a fault in the console"),
        }
    }
}
