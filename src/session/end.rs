//! Why a session ended, and what is known of a request that was under way: what the client is told, what the log says,
//! what the metrics count.

use bytes::BytesMut;

use crate::cluster::snapshot::MemberName;
use crate::labels::labels;
use crate::routing::{EndReason, LeaveReason};
use crate::wire::message::{self, ErrorReply, Severity};
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
    /// Why, and what to do, for the client.
    fn words(&self) -> (String, &'static str) {
        match self {
            Self::Shutdown => (
                "terminating connection: the connection manager is shutting down".to_owned(),
                "Reconnect; another connection manager, or this one once restarted, will serve you.",
            ),
            Self::Killed => (
                "terminating connection due to administrator command".to_owned(),
                "An operator of the connection manager has ended this session.",
            ),
            Self::MemberClosed(member) => (
                format!("terminating connection: an operator ends the sessions on {member}"),
                "Reconnect to be served by another server, if this one takes no new sessions.",
            ),
            Self::Role(why @ (EndReason::Demoted(_) | EndReason::OtherLeader { .. })) => (
                format!("terminating connection: {why}"),
                "Reconnect to reach the leader.",
            ),
            Self::Role(why @ (EndReason::Foreign(_) | EndReason::OldPrimary(_))) => (
                format!("terminating connection: {why}"),
                "Reconnect to reach a server of the cluster. What was written on the other one is not there.",
            ),
            Self::Role(why @ EndReason::Promoted(_)) => (
                format!("terminating connection: {why}"),
                "Reconnect to reach a replica.",
            ),
            Self::Unfit(why) => (
                format!("terminating connection: {why}"),
                "Reconnect to reach another server.",
            ),
        }
    }

    fn label(&self) -> EndLabel {
        match self {
            Self::Shutdown => EndLabel::Shutdown,
            Self::Killed => EndLabel::Killed,
            Self::MemberClosed(_) => EndLabel::MemberClosed,
            Self::Role(EndReason::Demoted(_)) => EndLabel::Demoted,
            Self::Role(EndReason::OtherLeader { .. }) => EndLabel::LeaderChanged,
            Self::Role(EndReason::Promoted(_)) => EndLabel::Promoted,
            Self::Role(EndReason::Foreign(_)) => EndLabel::Foreign,
            Self::Role(EndReason::OldPrimary(_)) => EndLabel::OldPrimary,
            Self::Unfit(LeaveReason::Lagging(_)) => EndLabel::Lagging,
            Self::Unfit(LeaveReason::Down(_)) => EndLabel::MemberDown,
            Self::Unfit(LeaveReason::Maintenance(_)) => EndLabel::Maintenance,
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
    /// The client closed without a goodbye.
    ClientGone,
    /// The server ended it with a FATAL of its own, forwarded verbatim.
    ServerFatal {
        code: SqlState,
    },
    /// The server closed without a word.
    ServerGone,
    /// The server closed, and what it said before is all there is to say: a replication stream that it had completed; or
    /// it is not known (`mode: tcp`), a refused login, or a goodbye.
    ServerClosed,
    Ordered(Reason),
    /// One side broke the protocol so that frames can no longer be told apart.
    ClientProtocol(String),
    ServerProtocol(String),
    /// A fault of ours in the console; the client is cut off.
    ConsoleFault,
}

labels! {
    /// The label `cause` of `trunkline_sessions_ended_total` and `trunkline_outcomes_unknown_total`.
    pub(super) enum EndLabel {
        ClientTerminated = "client_terminated",
        ClientGone = "client_gone",
        ServerFatal = "server_fatal",
        ServerGone = "server_gone",
        ServerClosed = "server_closed",
        Shutdown = "shutdown",
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
        ClientProtocol = "client_protocol",
        ServerProtocol = "server_protocol",
        ConsoleFault = "console_fault",
    }
}

/// What becomes of the client's last request, as far as the router knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fate {
    /// Every request that has reached the server is answered, and no transaction is open.
    #[default]
    Settled,
    /// The same, and a transaction is open: the server rolls it back when its connection ends.
    RolledBack,
    /// Every request that has reached the server is answered, but some were executed since the last Sync: what they did is
    /// committed already (COMMIT, CALL, VACUUM), or rolled back.
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

/// Behind the reason, where the fate of a request is not known.
const UNKNOWN: &str = "the outcome of the request under way is unknown";
const CHECK: &str = "Check whether the statement took effect before you repeat it.";
const UNSYNCED: &str = "What was executed since the last Sync may be committed or rolled back.";

impl Fate {
    /// What was asked may have taken effect or not.
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
            Cause::ServerGone => EndLabel::ServerGone,
            Cause::ServerClosed => EndLabel::ServerClosed,
            Cause::Ordered(reason) => reason.label(),
            Cause::ClientProtocol(_) => EndLabel::ClientProtocol,
            Cause::ServerProtocol(_) => EndLabel::ServerProtocol,
            Cause::ConsoleFault => EndLabel::ConsoleFault,
        }
    }

    /// Does the operator want to see this one at WARN?
    pub fn is_abnormal(&self) -> bool {
        match &self.cause {
            Cause::ClientTerminated | Cause::ClientGone | Cause::ServerFatal { .. } | Cause::ServerClosed => {
                false
            }
            Cause::Ordered(
                Reason::Shutdown
                | Reason::Killed
                | Reason::MemberClosed(_)
                | Reason::Unfit(LeaveReason::Maintenance(_)),
            ) => self.fate.is_open(),
            Cause::ServerGone
            | Cause::Ordered(_)
            | Cause::ClientProtocol(_)
            | Cause::ServerProtocol(_)
            | Cause::ConsoleFault => true,
        }
    }

    /// The client has asked for something, is still there, and nobody can tell it what came of that.
    pub fn is_unknown(&self) -> bool {
        self.fate.is_open()
            && matches!(
                self.cause,
                Cause::ServerGone | Cause::Ordered(_) | Cause::ClientProtocol(_) | Cause::ServerProtocol(_)
            )
    }

    /// Writes what the client is told, if anything. The session is over, which is FATAL; but where a request is under way
    /// whose `ready` would follow an error, it is answered in order first, as ERROR: many drivers hide or repeat what was
    /// asked when the connection ends before the answer is whole (docs/drivers.md).
    pub fn last_words(&self, out: &mut BytesMut, ready: Option<u8>) {
        match (self.reply(), ready) {
            (None, _) => {}
            (Some(reply), Some(status)) if self.fate.is_open() => {
                let severity = Severity::Error;
                message::error(out, &ErrorReply { severity, ..reply });
                message::ready_for_query(out, status);
            }
            (Some(reply), _) => message::error(out, &reply),
        }
    }

    /// What the client is told; `None` where it knows or is gone. 08007 wherever the fate of a request is not known, with
    /// the reason; what a server that shuts down would say, or what is wrong, where nothing was under way.
    pub fn reply(&self) -> Option<ErrorReply> {
        let (code, message, hint) = match &self.cause {
            // A client that has only closed its side may still wait for an answer that does not come.
            Cause::ClientTerminated | Cause::ClientGone if self.fate != Fate::Unknown => return None,
            Cause::ServerFatal { .. } | Cause::ServerClosed | Cause::ConsoleFault => return None,
            Cause::Ordered(reason) => {
                let (message, hint) = reason.words();
                (SqlState::ADMIN_SHUTDOWN, message, hint)
            }
            Cause::ServerGone | Cause::ClientTerminated | Cause::ClientGone => (
                SqlState::CONNECTION_FAILURE,
                "the connection to the server was lost".to_owned(),
                "Reconnect.",
            ),
            Cause::ClientProtocol(what) => (
                SqlState::PROTOCOL_VIOLATION,
                what.clone(),
                "The client, or something between it and the connection manager, sends what is no message of the protocol.",
            ),
            Cause::ServerProtocol(_) => (
                SqlState::PROTOCOL_VIOLATION,
                "the server broke the protocol; the session cannot go on".to_owned(),
                "The connection manager's log has the details.",
            ),
        };
        Some(match self.fate {
            Fate::Settled => ErrorReply::fatal(code, message).hint(hint),
            Fate::RolledBack => ErrorReply::fatal(code, message)
                .hint(format!("{hint} The transaction that was open is rolled back.")),
            Fate::Unsynced | Fate::Unknown => {
                let about = if self.fate == Fate::Unsynced {
                    format!("{UNSYNCED} {CHECK}")
                } else {
                    CHECK.to_owned()
                };
                let message = format!("{message}; {UNKNOWN}");
                ErrorReply::fatal(SqlState::TRANSACTION_RESOLUTION_UNKNOWN, message)
                    .hint(format!("{hint} {about}"))
            }
        })
    }
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.cause {
            Cause::ClientTerminated => f.write_str("client said goodbye"),
            Cause::ClientGone if self.fate == Fate::Unknown => {
                return f.write_str("client closed the connection while a request was under way");
            }
            Cause::ClientGone => f.write_str("client closed the connection"),
            Cause::ServerFatal { code } => write!(f, "server ended it with {}", code),
            Cause::ServerGone => f.write_str("connection to the server lost"),
            Cause::ServerClosed => f.write_str("server closed the connection"),
            Cause::Ordered(reason) => reason.fmt(f),
            Cause::ClientProtocol(what) => write!(f, "protocol violation by the client: {what}"),
            Cause::ServerProtocol(what) => write!(f, "protocol violation by the server: {what}"),
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
            Reason::Killed,
            Reason::MemberClosed(db1()),
            Reason::Role(EndReason::Demoted(db1())),
            Reason::Role(EndReason::OtherLeader { old: db1(), leader }),
            Reason::Role(EndReason::Promoted(db1())),
            Reason::Unfit(LeaveReason::Lagging(db1())),
            Reason::Unfit(LeaveReason::Down(db1())),
            Reason::Unfit(LeaveReason::Maintenance(db1())),
        ]
    }

    /// Whatever cuts a session: 08007 and its reason where a request is under way, and never otherwise.
    #[test]
    fn an_unknown_fate_is_never_called_anything_else() {
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
            let words = |fate| {
                let cause = cause.clone();
                End { cause, fate }.reply().unwrap()
            };
            let settled = words(Fate::Settled);
            assert_eq!(settled.code.as_str(), otherwise, "{settled:?}");
            let rolled_back = words(Fate::RolledBack);
            assert_eq!(
                (rolled_back.code, &rolled_back.message),
                (settled.code, &settled.message)
            );
            assert!(rolled_back.hint.unwrap().ends_with("is rolled back."));
            let unknown = words(Fate::Unknown);
            assert_eq!(unknown.code.as_str(), "08007", "{unknown:?}");
            assert!(
                unknown.message.starts_with(&settled.message) && unknown.message.contains("is unknown"),
                "{unknown:?}"
            );
            assert!(unknown.hint.unwrap().contains("Check whether"));
            // What was executed without a Sync is never called rolled back, as it may be committed.
            let unsynced = words(Fate::Unsynced);
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
    fn a_client_that_knows_or_is_gone_is_told_nothing() {
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
                // It may have closed one side only.
                let words = end.reply().map(|reply| reply.code);
                assert_eq!(
                    words,
                    (has_left && fate == Fate::Unknown).then_some(SqlState::TRANSACTION_RESOLUTION_UNKNOWN),
                    "{end}"
                );
                assert!(!end.to_string().contains("outcome"), "{end}");
            }
        }
    }
}
