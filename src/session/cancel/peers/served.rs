//! Whether the peers serve a cluster, for a check before a start.

use super::PeerOrders;
use crate::config;
use crate::session::holds::{Examined, HoldAnswer, HoldRefusal, HoldRequest};

/// What a peer says of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Served {
    /// It serves none with this system identifier.
    Unknown,
    /// It serves it, and does not list the member that was asked for.
    WithoutMember,
    /// It serves it. What an operator has set for the member there, if that keeps sessions away;
    /// completes "db2 ".
    WithMember(Option<&'static str>),
    /// It does not say, for this reason.
    Unsaid(String),
}

/// Asks all peers at once whether they serve the cluster with this system identifier, and have this
/// member. Those that do not answer are left out.
pub async fn served(peers: &config::Peers, cluster: u64, member: &str) -> Vec<(String, Served)> {
    let request = HoldRequest::Examine {
        cluster,
        leader: member.to_owned(),
        candidate: member.to_owned(),
    };
    let answers = PeerOrders::of(peers).ask(&request).await.into_iter();
    answers
        .filter_map(|(peer, answer)| Some((peer, understood(&answer.ok()?))))
        .collect()
}

fn understood(answer: &HoldAnswer) -> Served {
    match answer {
        HoldAnswer::Refused(HoldRefusal::UnknownCluster) => Served::Unknown,
        HoldAnswer::Refused(HoldRefusal::Unsupported) => {
            Served::Unsaid("its release does not say which clusters it serves".to_owned())
        }
        HoldAnswer::Refused(refusal) => Served::Unsaid(refusal.to_string()),
        HoldAnswer::Examined(Examined { candidate: None, .. }) => Served::WithoutMember,
        HoldAnswer::Examined(Examined {
            candidate: Some(state),
            ..
        }) => Served::WithMember(state.refusal()),
        HoldAnswer::Done(_) => Served::Unsaid("its answer makes no sense".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::holds::CandidateState;

    #[test]
    fn answers_are_told_apart() {
        let examined = |candidate| {
            HoldAnswer::Examined(Examined {
                candidate,
                processes: Vec::new(),
                has_more: false,
            })
        };
        let refused = HoldAnswer::Refused;
        assert_eq!(understood(&refused(HoldRefusal::UnknownCluster)), Served::Unknown);
        assert_eq!(understood(&examined(None)), Served::WithoutMember);
        let ready = Some(CandidateState::Ready);
        assert_eq!(understood(&examined(ready)), Served::WithMember(None));
        let drained = Some(CandidateState::Drain);
        assert_eq!(
            understood(&examined(drained)),
            Served::WithMember(Some("is being drained"))
        );
        assert!(matches!(
            understood(&refused(HoldRefusal::Unsupported)),
            Served::Unsaid(_)
        ));
    }
}
