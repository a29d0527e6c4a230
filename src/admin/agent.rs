//! HAProxy's agent check: one line for each client (HAProxy's configuration manual, `agent-check`).
//!
//! Every line says everything that the agent can say about a server that gets sessions: HAProxy
//! keeps the state that a line does not mention, and a drained server would stay drained.

use std::fmt;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::handles::Phase;
use crate::cluster::snapshot::{AdminState, Member, Snapshot};

/// For the other end to hang up once it has the line.
const HANG_UP: Duration = Duration::from_millis(500);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AgentState {
    /// Takes sessions: this share of the weight in HAProxy's configuration, in percent.
    Up { percent: u32 },
    /// No new sessions; those there are stay.
    Drain,
    /// Out of service.
    Maint,
    /// Not usable. HAProxy's statistics show the reason.
    Down(&'static str),
}

impl AgentState {
    /// The state of the router itself; `serves`: a member can serve a route of some cluster.
    pub(super) fn of_router(phase: Phase, serves: bool) -> Self {
        match phase {
            Phase::Starting => Self::Down("starting"),
            Phase::Drained | Phase::Leaving | Phase::Draining => Self::Drain,
            Phase::Accepting if serves => Self::Up { percent: 100 },
            Phase::Accepting => Self::Down("no server"),
        }
    }

    /// The state of a member that gets sessions from HAProxy directly.
    pub(super) fn of_member(snapshot: &Snapshot, member: &Member) -> Self {
        match member.admin {
            AdminState::Maint => Self::Maint,
            AdminState::Drain => Self::Drain,
            AdminState::Ready if !member.health.up => Self::Down("the probe fails"),
            AdminState::Ready => {
                let most = snapshot.members.iter().map(|member| member.weight).max();
                let most = u32::from(most.unwrap_or_default().max(1));
                Self::Up {
                    percent: (u32::from(member.weight) * 100).div_ceil(most),
                }
            }
        }
    }
}

/// The line.
impl fmt::Display for AgentState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Up { percent } => writeln!(f, "up ready {percent}%"),
            Self::Drain => writeln!(f, "up drain"),
            Self::Maint => writeln!(f, "maint"),
            Self::Down(reason) => writeln!(f, "down #{reason}"),
        }
    }
}

/// Sends the line and closes the connection.
pub(super) async fn send(mut stream: TcpStream, line: &str) -> std::io::Result<()> {
    stream.write_all(line.as_bytes()).await?;
    stream.shutdown().await?;
    // If it closed with bytes unread, a reset could destroy the line: HAProxy may send a string
    // first (`agent-send`).
    let mut waste = [0; 256];
    let rest = async { while matches!(stream.read(&mut waste).await, Ok(read) if read > 0) {} };
    let _ = timeout(HANG_UP, rest).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::http::fixture::{member, snapshot};
    use super::*;

    #[test]
    fn a_router_is_drained_while_it_shuts_down() {
        let line = |phase, serves| AgentState::of_router(phase, serves).to_string();
        assert_eq!(line(Phase::Starting, true), "down #starting\n");
        assert_eq!(line(Phase::Accepting, true), "up ready 100%\n");
        assert_eq!(line(Phase::Accepting, false), "down #no server\n");
        assert_eq!(line(Phase::Draining, true), "up drain\n");
    }

    #[test]
    fn a_member_is_told_with_its_share() {
        let mut cluster = snapshot();
        cluster.members = vec![member("a"), member("b")];
        let line = |change: &dyn Fn(&mut Snapshot)| {
            let mut cluster = cluster.clone();
            change(&mut cluster);
            AgentState::of_member(&cluster, &cluster.members[0]).to_string()
        };
        assert_eq!(line(&|_| {}), "up ready 100%\n");
        assert_eq!(line(&|c| c.members[1].weight = 3), "up ready 34%\n");
        assert_eq!(line(&|c| c.members[0].weight = 0), "up ready 0%\n");
        assert_eq!(line(&|c| c.members[0].admin = AdminState::Drain), "up drain\n");
        assert_eq!(line(&|c| c.members[0].admin = AdminState::Maint), "maint\n");
        assert_eq!(
            line(&|c| c.members[0].health.up = false),
            "down #the probe fails\n"
        );
    }
}
