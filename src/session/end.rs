//! Why a session ended, and what is known about a request that was under way. The client's error,
//! the log line and the metrics follow from it.

use bytes::BytesMut;

use super::counts::RouteCounts;
use super::pool::state::Pins;
use crate::cluster::snapshot::MemberName;
use crate::labels::labels;
use crate::routing::{EndReason, LeaveReason};
use crate::wire::message::{self, ErrorReply, Severity};
use crate::wire::sqlstate::SqlState;

/// An order to end a session, given through the registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// Leave the server between transactions, if the session can have another; else go on there.
    Move(Reason),
    /// End between transactions. A transaction under way may finish.
    AtBoundary(Reason),
    /// End at once, even in a transaction.
    Now(Reason),
}

impl Order {
    pub fn reason(&self) -> &Reason {
        match self {
            Self::Move(reason) | Self::AtBoundary(reason) | Self::Now(reason) => reason,
        }
    }
}

/// The reason of an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    Shutdown,
    /// Another process has replaced this one. It ends sessions with the console, and those that
    /// have no server connection.
    Replaced,
    /// The server's role has changed.
    Role(EndReason),
    /// An operator ends this one session.
    Killed,
    /// An operator ends the sessions on the member.
    MemberClosed(MemberName),
    /// The server is no longer fit for the session's route.
    Unfit(LeaveReason),
    /// A time limit of the route's pool is over.
    TimedOut(SessionTimeout),
    /// The leader has another password of the user, so that the session can get no further server
    /// connection.
    OtherPassword,
}

/// A time limit that ends a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionTimeout {
    Transaction,
    IdleTransaction,
    Batch,
}

impl Reason {
    /// The session has to leave its server connection; with another one it could go on.
    pub(super) fn is_about_server(&self) -> bool {
        matches!(self, Self::Role(_) | Self::Unfit(_) | Self::MemberClosed(_))
    }

    fn code(&self) -> SqlState {
        match self {
            Self::TimedOut(SessionTimeout::Transaction) => SqlState::TRANSACTION_TIMEOUT,
            Self::TimedOut(SessionTimeout::IdleTransaction | SessionTimeout::Batch) => {
                SqlState::IDLE_IN_TRANSACTION_TIMEOUT
            }
            _ => SqlState::ADMIN_SHUTDOWN,
        }
    }

    /// Message and hint for the client.
    fn message_and_hint(&self) -> (String, &'static str) {
        match self {
            Self::Shutdown => (
                "terminating connection: the router is shutting down".to_owned(),
                "Reconnect. Another router will serve you, or this one when it has restarted.",
            ),
            Self::Replaced => (
                "terminating connection: a new process of the router has replaced this one".to_owned(),
                "Reconnect. The new process will serve you.",
            ),
            Self::Killed => (
                "terminating connection: an operator of the router ended this session".to_owned(),
                "Ask the operator for the reason.",
            ),
            Self::MemberClosed(member) => (
                format!("terminating connection: an operator ended the sessions on {member}"),
                "Reconnect. Another server will serve you if this one takes no new sessions.",
            ),
            Self::Role(reason @ (EndReason::Demoted(_) | EndReason::OtherLeader { .. })) => (
                format!("terminating connection: {reason}"),
                "Reconnect to reach the leader.",
            ),
            Self::Role(reason @ (EndReason::Foreign(_) | EndReason::OldPrimary(_))) => (
                format!("terminating connection: {reason}"),
                "Reconnect to reach a server of the cluster. It does not have what this session wrote.",
            ),
            Self::Role(reason @ EndReason::Promoted(_)) => (
                format!("terminating connection: {reason}"),
                "Reconnect to reach a replica.",
            ),
            Self::Unfit(reason) => (
                format!("terminating connection: {reason}"),
                "Reconnect to reach another server.",
            ),
            Self::TimedOut(timeout @ SessionTimeout::Batch) => (
                format!("terminating connection: {timeout}"),
                "Send messages whole and a Sync behind each batch, or ask the operator to raise the limit in the \
                 route's pool.",
            ),
            Self::TimedOut(timeout) => (
                format!("terminating connection: {timeout}"),
                "Keep transactions shorter, or ask the operator to raise the limit in the route's pool.",
            ),
            Self::OtherPassword => (
                "terminating connection: the server does not take the password of this session any more"
                    .to_owned(),
                "The password or the role has been changed since the session began. Log in again.",
            ),
        }
    }

    fn label(&self) -> EndLabel {
        match self {
            Self::Shutdown => EndLabel::Shutdown,
            Self::Replaced => EndLabel::Replaced,
            Self::Killed => EndLabel::Killed,
            Self::MemberClosed(_) => EndLabel::MemberClosed,
            Self::Role(EndReason::Demoted(_)) => EndLabel::Demoted,
            Self::Role(EndReason::OtherLeader { .. }) => EndLabel::LeaderChanged,
            Self::Role(EndReason::Promoted(_)) => EndLabel::Promoted,
            Self::Role(EndReason::Foreign(_)) => EndLabel::Foreign,
            Self::Role(EndReason::OldPrimary(_)) => EndLabel::OldPrimary,
            Self::Unfit(LeaveReason::Lagging(_)) => EndLabel::Lagging,
            Self::Unfit(LeaveReason::Down(_)) => EndLabel::MemberDown,
            Self::Unfit(
                LeaveReason::Maintenance(_) | LeaveReason::Draining(_) | LeaveReason::Stopping(_),
            ) => EndLabel::Maintenance,
            Self::TimedOut(SessionTimeout::Transaction) => EndLabel::TransactionTimeout,
            Self::TimedOut(SessionTimeout::IdleTransaction) => EndLabel::IdleTransactionTimeout,
            Self::TimedOut(SessionTimeout::Batch) => EndLabel::BatchTimeout,
            Self::OtherPassword => EndLabel::OtherPassword,
        }
    }
}

impl std::fmt::Display for SessionTimeout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Transaction => "the transaction took longer than the pool's transaction_timeout",
            Self::IdleTransaction => {
                "the transaction was idle longer than the pool's idle_transaction_timeout"
            }
            Self::Batch => "the client left a batch open longer than the pool's batch_timeout",
        })
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Shutdown => f.write_str("shutdown"),
            Self::Replaced => f.write_str("replaced by a new process"),
            Self::Killed => f.write_str("ended by an operator"),
            Self::MemberClosed(member) => write!(f, "an operator ended the sessions on {member}"),
            Self::Role(reason) => reason.fmt(f),
            Self::Unfit(reason) => reason.fmt(f),
            Self::TimedOut(timeout) => timeout.fmt(f),
            Self::OtherPassword => {
                f.write_str("the server does not take the session's password any more: it was changed")
            }
        }
    }
}

/// Why a relayed session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// The client sent Terminate.
    ClientTerminated,
    /// The client closed the connection without Terminate.
    ClientGone,
    /// The server ended the session with its own FATAL error, which the client got unchanged.
    ServerFatal {
        code: SqlState,
    },
    /// The server closed the connection without an error.
    ServerGone,
    /// As [`Self::ServerGone`]; the session had state on the connection that no other one has.
    PinnedServerGone {
        pins: Pins,
    },
    /// The server closed the connection, and the router adds no error: the server had completed a
    /// replication stream; or, with `mode: tcp`, the router does not see whether a refused login or
    /// a Terminate came before.
    ServerClosed,
    Ordered(Reason),
    /// One side violated the protocol, so that the router cannot find the next message.
    ClientProtocol(String),
    ServerProtocol(String),
    /// A fault in the router's console; the client's connection is closed.
    ConsoleFault,
}

labels! {
    /// The label `cause` of `trunkline_sessions_ended_total` and
    /// `trunkline_outcomes_unknown_total`.
    pub(super) enum EndLabel {
        ClientTerminated = "client_terminated",
        ClientGone = "client_gone",
        ServerFatal = "server_fatal",
        ServerGone = "server_gone",
        ServerClosed = "server_closed",
        Shutdown = "shutdown",
        Replaced = "replaced",
        Killed = "killed",
        MemberClosed = "member_closed",
        Demoted = "demoted",
        LeaderChanged = "leader_changed",
        Promoted = "promoted",
        Foreign = "foreign",
        OldPrimary = "old_primary",
        Lagging = "lagging",
        MemberDown = "member_down",
        Maintenance = "maintenance",
        TransactionTimeout = "transaction_timeout",
        IdleTransactionTimeout = "idle_transaction_timeout",
        BatchTimeout = "batch_timeout",
        OtherPassword = "other_password",
        ClientProtocol = "client_protocol",
        ServerProtocol = "server_protocol",
        ConsoleFault = "console_fault",
    }
}

/// What happened to the client's last request, as far as the router knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fate {
    /// Every request that has reached the server is answered, and no transaction is open.
    #[default]
    Settled,
    /// The same, but a transaction is open: the server rolls it back when its connection ends.
    RolledBack,
    /// Every request that has reached the server is answered, but some were executed since the last
    /// Sync. Their effects are committed already (COMMIT, CALL, VACUUM), or rolled back.
    Unsynced,
    /// The server has a request that it has not answered: it may take effect, now or later.
    Unknown,
}

/// The end of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    pub cause: Cause,
    pub fate: Fate,
}

impl From<Cause> for End {
    /// With nothing under way.
    fn from(cause: Cause) -> Self {
        Self {
            cause,
            fate: Fate::Settled,
        }
    }
}

/// Follows the reason in the message if the fate of a request is not known.
pub(super) const UNKNOWN: &str = "the outcome of the request under way is unknown";
pub(super) const CHECK: &str = "Check whether the statement took effect before you repeat it.";
const UNSYNCED: &str = "Statements executed since the last Sync may be committed or rolled back.";

impl Fate {
    /// A request may have taken effect or not.
    fn is_open(self) -> bool {
        matches!(self, Self::Unsynced | Self::Unknown)
    }
}

impl End {
    /// For metrics.
    pub(super) fn label(&self) -> EndLabel {
        match &self.cause {
            Cause::ClientTerminated => EndLabel::ClientTerminated,
            Cause::ClientGone => EndLabel::ClientGone,
            Cause::ServerFatal { .. } => EndLabel::ServerFatal,
            Cause::ServerGone | Cause::PinnedServerGone { .. } => EndLabel::ServerGone,
            Cause::ServerClosed => EndLabel::ServerClosed,
            Cause::Ordered(reason) => reason.label(),
            Cause::ClientProtocol(_) => EndLabel::ClientProtocol,
            Cause::ServerProtocol(_) => EndLabel::ServerProtocol,
            Cause::ConsoleFault => EndLabel::ConsoleFault,
        }
    }

    /// Whether the log line is a WARN.
    pub fn is_abnormal(&self) -> bool {
        match &self.cause {
            Cause::ClientTerminated | Cause::ClientGone | Cause::ServerFatal { .. } | Cause::ServerClosed => {
                false
            }
            Cause::Ordered(
                Reason::Shutdown
                | Reason::Replaced
                | Reason::Killed
                | Reason::MemberClosed(_)
                | Reason::Unfit(
                    LeaveReason::Maintenance(_) | LeaveReason::Draining(_) | LeaveReason::Stopping(_),
                ),
            ) => self.fate.is_open(),
            Cause::ServerGone
            | Cause::PinnedServerGone { .. }
            | Cause::Ordered(_)
            | Cause::ClientProtocol(_)
            | Cause::ServerProtocol(_)
            | Cause::ConsoleFault => true,
        }
    }

    /// A client that is still connected made a request whose outcome cannot be known.
    pub fn is_unknown(&self) -> bool {
        self.fate.is_open()
            && matches!(
                self.cause,
                Cause::ServerGone
                    | Cause::PinnedServerGone { .. }
                    | Cause::Ordered(_)
                    | Cause::ClientProtocol(_)
                    | Cause::ServerProtocol(_)
            )
    }

    /// Writes the error for the client, if there is one. The session is over, so the error is
    /// FATAL. But if a request is under way, and `ready` is the status to send after an error, the
    /// request gets a complete answer: ERROR, then ReadyForQuery. Many drivers hide the error or
    /// repeat the request if the connection ends before the answer is complete (docs/drivers.md).
    /// It counts in `counts`.
    pub fn write_error(&self, out: &mut BytesMut, ready: Option<u8>, counts: &RouteCounts) {
        match (self.reply(), ready) {
            (None, _) => {}
            (Some(reply), Some(status)) if self.fate.is_open() => {
                let severity = Severity::Error;
                counts.error(out, &ErrorReply { severity, ..reply });
                message::ready_for_query(out, status);
            }
            (Some(reply), _) => counts.error(out, &reply),
        }
    }

    /// The error for the client; `None` if the client knows the reason or has left. If the fate of
    /// a request is not known, it is 08007 with the reason. Otherwise it is the error that a server
    /// sends when it shuts down, or says what is wrong.
    pub fn reply(&self) -> Option<ErrorReply> {
        let (code, message, hint) = match &self.cause {
            // A client that has closed only its sending side may still wait for an answer.
            Cause::ClientTerminated | Cause::ClientGone if self.fate != Fate::Unknown => return None,
            Cause::ServerFatal { .. } | Cause::ServerClosed | Cause::ConsoleFault => return None,
            Cause::Ordered(reason) => {
                let (message, hint) = reason.message_and_hint();
                (reason.code(), message, hint)
            }
            Cause::ServerGone => (
                SqlState::CONNECTION_FAILURE,
                "the connection to the server was lost".to_owned(),
                "Reconnect.",
            ),
            Cause::PinnedServerGone { pins } => (
                SqlState::CONNECTION_FAILURE,
                format!("the connection to the server was lost, and what the session had there ({pins})"),
                "Reconnect.",
            ),
            Cause::ClientTerminated | Cause::ClientGone => (
                SqlState::CONNECTION_FAILURE,
                "the client ended the session before the server had answered".to_owned(),
                "Read the answers to all requests before closing the connection.",
            ),
            Cause::ClientProtocol(violation) => (
                SqlState::PROTOCOL_VIOLATION,
                violation.clone(),
                "Check the client, and what is between it and the router: the router received bytes that are no \
                 message of the protocol.",
            ),
            Cause::ServerProtocol(_) => (
                SqlState::PROTOCOL_VIOLATION,
                "the server violated the protocol; the session cannot continue".to_owned(),
                "Ask the operator to look for the details in the router's log.",
            ),
        };
        Some(match self.fate {
            Fate::Settled => ErrorReply::fatal(code, message).hint(hint),
            Fate::RolledBack => ErrorReply::fatal(code, message)
                .hint(format!("{hint} The transaction that was open is rolled back.")),
            Fate::Unsynced | Fate::Unknown => {
                let advice = if self.fate == Fate::Unsynced {
                    format!("{UNSYNCED} {CHECK}")
                } else {
                    CHECK.to_owned()
                };
                let message = format!("{message}; {UNKNOWN}");
                ErrorReply::fatal(SqlState::TRANSACTION_RESOLUTION_UNKNOWN, message)
                    .hint(format!("{hint} {advice}"))
            }
        })
    }
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.cause {
            Cause::ClientTerminated => f.write_str("client terminated the session"),
            Cause::ClientGone if self.fate == Fate::Unknown => {
                return f.write_str("client closed the connection while a request was under way");
            }
            Cause::ClientGone => f.write_str("client closed the connection"),
            Cause::ServerFatal { code } => write!(f, "server ended the session with {code}"),
            Cause::ServerGone => f.write_str("connection to the server lost"),
            Cause::PinnedServerGone { pins } => {
                write!(
                    f,
                    "connection to the server lost, which the session needed ({pins})"
                )
            }
            Cause::ServerClosed => f.write_str("server closed the connection"),
            Cause::Ordered(reason) => reason.fmt(f),
            Cause::ClientProtocol(violation) => write!(f, "protocol violation by the client: {violation}"),
            Cause::ServerProtocol(violation) => write!(f, "protocol violation by the server: {violation}"),
            Cause::ConsoleFault => f.write_str("a fault in the console"),
        }?;
        if self.is_unknown() {
            f.write_str(", outcome unknown")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn reasons() -> Vec<Reason> {
        let db1 = || MemberName::new("db1");
        let leader = MemberName::new("db2");
        vec![
            Reason::Shutdown,
            Reason::Replaced,
            Reason::Killed,
            Reason::MemberClosed(db1()),
            Reason::Role(EndReason::Demoted(db1())),
            Reason::Role(EndReason::OtherLeader { old: db1(), leader }),
            Reason::Role(EndReason::Promoted(db1())),
            Reason::Unfit(LeaveReason::Lagging(db1())),
            Reason::Unfit(LeaveReason::Down(db1())),
            Reason::Unfit(LeaveReason::Maintenance(db1())),
            Reason::OtherPassword,
        ]
    }

    /// Applications distinguish the router's words from the server's (docs/drivers.md).
    #[test]
    fn no_error_of_the_router_has_the_servers_words() {
        for reason in reasons() {
            let (message, _) = reason.message_and_hint();
            assert!(message.starts_with("terminating connection: "), "{message}");
        }
        let cause = Cause::Ordered(Reason::Killed);
        let fate = Fate::Unknown;
        assert_eq!(
            End { cause, fate }.reply().unwrap().message,
            "terminating connection: an operator of the router ended this session; the outcome of the request under way is \
             unknown"
        );
    }

    /// The error of every cause is 08007 with its reason if a request is under way, and never
    /// otherwise.
    #[test]
    fn an_unknown_fate_is_always_08007_and_a_known_one_never() {
        let broken = "invalid length".to_owned();
        let causes = reasons()
            .into_iter()
            .map(|reason| (Cause::Ordered(reason), "57P01"));
        let others = [
            (Cause::ServerGone, "08006"),
            (Cause::ServerProtocol(broken.clone()), "08P01"),
            (Cause::ClientProtocol(broken), "08P01"),
        ];
        for (cause, otherwise) in causes.chain(others) {
            let reply = |fate| {
                let cause = cause.clone();
                End { cause, fate }.reply().unwrap()
            };
            let settled = reply(Fate::Settled);
            assert_eq!(settled.code.as_str(), otherwise, "{settled:?}");
            let rolled_back = reply(Fate::RolledBack);
            assert_eq!(
                (rolled_back.code, &rolled_back.message),
                (settled.code, &settled.message)
            );
            assert!(rolled_back.hint.unwrap().ends_with("is rolled back."));
            let unknown = reply(Fate::Unknown);
            assert_eq!(unknown.code.as_str(), "08007", "{unknown:?}");
            assert!(
                unknown.message.starts_with(&settled.message) && unknown.message.contains("is unknown"),
                "{unknown:?}"
            );
            assert!(unknown.hint.unwrap().contains("Check whether"));
            // The hint never says that statements without a Sync are rolled back: they may be
            // committed.
            let unsynced = reply(Fate::Unsynced);
            assert_eq!(
                (unsynced.code, &unsynced.message),
                (unknown.code, &unknown.message)
            );
            let hint = unsynced.hint.unwrap();
            assert!(
                hint.contains("may be committed or rolled back. Check whether")
                    && !hint.contains("is rolled"),
                "{hint}"
            );
            for fate in [Fate::Unsynced, Fate::Unknown] {
                let cause = cause.clone();
                let end = End { cause, fate };
                assert!(
                    end.is_abnormal() && end.to_string().ends_with(", outcome unknown"),
                    "{end}"
                );
            }
        }
    }

    #[test]
    fn a_client_that_knows_the_reason_or_has_left_gets_no_error() {
        let code = SqlState::ADMIN_SHUTDOWN;
        for cause in [
            Cause::ClientTerminated,
            Cause::ClientGone,
            Cause::ServerFatal { code },
            Cause::ServerClosed,
        ] {
            for fate in [Fate::Settled, Fate::RolledBack, Fate::Unsynced, Fate::Unknown] {
                let cause = cause.clone();
                let end = End { cause, fate };
                assert!(!end.is_unknown() && !end.is_abnormal(), "{end}");
                let has_left = matches!(end.cause, Cause::ClientTerminated | Cause::ClientGone);
                // It may have closed only its sending side.
                let code = end.reply().map(|reply| reply.code);
                assert_eq!(
                    code,
                    (has_left && fate == Fate::Unknown).then_some(SqlState::TRANSACTION_RESOLUTION_UNKNOWN),
                    "{end}"
                );
                assert!(!end.to_string().contains("outcome"), "{end}");
            }
        }
    }
}
