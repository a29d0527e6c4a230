//! Questions about holds, and their answers, before they are sealed.
//!
//! ```text
//! question  kind number:4 hold:1 cluster:8 token:16 lasts_ms:4 is_switchover:1 length:2 member
//!           kind number:4 release:1 cluster:8 token:16
//!           kind number:4 pause:1 lasts_ms:4 length:2 route
//!           kind number:4 look:1 length:2 route
//! answer    kind number:4 status:1 [flags:1 and five counts of 4]
//! ```
//!
//! An action that this release does not know is read as far as its number, and answered with the
//! status for that. So a later release can add actions.

use zeroize::Zeroizing;

use super::QuestionKind;
use super::message::{PeerError, nothing_but_zeros, take};
use crate::cluster::LeaveToken;
use crate::session::holds::{HoldAnswer, HoldOrder, HoldRefusal, HoldRequest, MAX_NAME, MemberActivity};

const HOLD: u8 = 1;
const RELEASE: u8 = 2;
const PAUSE: u8 = 3;
const LOOK: u8 = 4;
const DONE: u8 = 0;
const IS_LEADER: u8 = 1;
const IS_LEAVING: u8 = 2;
const IS_REPLACED: u8 = 4;
/// The largest question, without padding.
pub(super) const MOST_HOLD: usize = 1 + 4 + 1 + 8 + 16 + 4 + 1 + 2 + MAX_NAME;

const REFUSALS: [(HoldRefusal, u8); 6] = [
    (HoldRefusal::SwitchoverRuns, 1),
    (HoldRefusal::UnknownCluster, 2),
    (HoldRefusal::UnknownMember, 3),
    (HoldRefusal::Busy, 4),
    (HoldRefusal::Unsupported, 5),
    (HoldRefusal::UnknownRoute, 6),
];

pub(super) fn encode_question(number: u32, request: &HoldRequest) -> Zeroizing<Vec<u8>> {
    let mut body = Zeroizing::new(vec![QuestionKind::Hold.code()]);
    body.extend_from_slice(&number.to_be_bytes());
    let (action, cluster, token) = match request {
        HoldRequest::Hold(order) => (HOLD, order.cluster, order.token),
        HoldRequest::Release { cluster, token } => (RELEASE, *cluster, *token),
        HoldRequest::Pause { route, lasts_ms } => {
            body.push(PAUSE);
            body.extend_from_slice(&lasts_ms.to_be_bytes());
            put_name(&mut body, route);
            return body;
        }
        HoldRequest::Look { route } => {
            body.push(LOOK);
            put_name(&mut body, route);
            return body;
        }
    };
    body.push(action);
    body.extend_from_slice(&cluster.to_be_bytes());
    for half in token.0 {
        body.extend_from_slice(&half.to_be_bytes());
    }
    if let HoldRequest::Hold(order) = request {
        body.extend_from_slice(&order.lasts_ms.to_be_bytes());
        body.push(u8::from(order.is_switchover));
        put_name(&mut body, &order.member);
    }
    body
}

/// A longer name is one that the other router does not have.
fn put_name(body: &mut Vec<u8>, name: &str) {
    let name = &name.as_bytes()[..name.floor_char_boundary(MAX_NAME)];
    body.extend_from_slice(&u16::try_from(name.len()).unwrap_or(0).to_be_bytes());
    body.extend_from_slice(name);
}

/// The name at the end of a question.
fn take_name(mut rest: &[u8]) -> Result<String, PeerError> {
    let length = usize::from(u16::from_be_bytes(take(&mut rest)?));
    let (name, behind) = rest.split_at_checked(length).ok_or(PeerError::Malformed)?;
    if length > MAX_NAME {
        return Err(PeerError::Malformed);
    }
    nothing_but_zeros(behind)?;
    let name = std::str::from_utf8(name).map_err(|_| PeerError::Malformed)?;
    Ok(name.to_owned())
}

/// Behind the kind. Without a request: its action is not known.
pub(super) fn decode_question(body: &[u8]) -> Result<(u32, Option<HoldRequest>), PeerError> {
    let mut rest = body;
    let number = u32::from_be_bytes(take(&mut rest)?);
    let [action] = take(&mut rest)?;
    if action == PAUSE {
        let lasts_ms = u32::from_be_bytes(take(&mut rest)?);
        let route = take_name(rest)?;
        return Ok((number, Some(HoldRequest::Pause { route, lasts_ms })));
    }
    if action == LOOK {
        let route = take_name(rest)?;
        return Ok((number, Some(HoldRequest::Look { route })));
    }
    if action != HOLD && action != RELEASE {
        return Ok((number, None));
    }
    let cluster = u64::from_be_bytes(take(&mut rest)?);
    let token = LeaveToken([
        u64::from_be_bytes(take(&mut rest)?),
        u64::from_be_bytes(take(&mut rest)?),
    ]);
    if action == RELEASE {
        nothing_but_zeros(rest)?;
        return Ok((number, Some(HoldRequest::Release { cluster, token })));
    }
    let lasts_ms = u32::from_be_bytes(take(&mut rest)?);
    let is_switchover = match take(&mut rest)? {
        [0] => false,
        [1] => true,
        _ => return Err(PeerError::Malformed),
    };
    let order = HoldOrder {
        cluster,
        member: take_name(rest)?,
        token,
        lasts_ms,
        is_switchover,
    };
    Ok((number, Some(HoldRequest::Hold(order))))
}

/// Behind the kind.
pub(super) fn encode_answer(number: u32, answer: &HoldAnswer) -> Zeroizing<Vec<u8>> {
    let mut body = Zeroizing::new(number.to_be_bytes().to_vec());
    match answer {
        HoldAnswer::Refused(refusal) => {
            let known = REFUSALS.iter().find(|(known, _)| known == refusal);
            body.push(known.map_or(DONE, |(_, code)| *code));
        }
        HoldAnswer::Done(activity) => {
            let flag = |is_set: bool, flag: u8| if is_set { flag } else { 0 };
            body.push(DONE);
            body.push(
                flag(activity.is_leader, IS_LEADER)
                    | flag(activity.is_leaving, IS_LEAVING)
                    | flag(activity.is_replaced, IS_REPLACED),
            );
            for count in [
                activity.transactions,
                activity.pinned,
                activity.unmovable,
                activity.forwarded,
                activity.replication,
            ] {
                body.extend_from_slice(&count.to_be_bytes());
            }
        }
    }
    body
}

/// Behind the kind.
pub(super) fn decode_answer(body: &[u8]) -> Result<(u32, HoldAnswer), PeerError> {
    let mut rest = body;
    let number = u32::from_be_bytes(take(&mut rest)?);
    let [status] = take(&mut rest)?;
    if status != DONE {
        let refusal = REFUSALS.iter().find(|(_, code)| *code == status);
        let (refusal, _) = refusal.ok_or(PeerError::Malformed)?;
        nothing_but_zeros(rest)?;
        return Ok((number, HoldAnswer::Refused(*refusal)));
    }
    // Further flags are those of a later release.
    let [flags] = take(&mut rest)?;
    let mut count = || Ok(u32::from_be_bytes(take(&mut rest)?));
    let activity = MemberActivity {
        transactions: count()?,
        pinned: count()?,
        unmovable: count()?,
        forwarded: count()?,
        replication: count()?,
        is_leader: flags & IS_LEADER != 0,
        is_leaving: flags & IS_LEAVING != 0,
        is_replaced: flags & IS_REPLACED != 0,
    };
    Ok((number, HoldAnswer::Done(activity)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn refusals() -> [HoldAnswer; 6] {
        REFUSALS.map(|(refusal, _)| HoldAnswer::Refused(refusal))
    }

    #[test]
    fn refusals_arrive_as_they_were_sent() {
        for (index, answer) in refusals().into_iter().enumerate() {
            let body = encode_answer(7, &answer);
            assert_eq!(
                usize::from(body[4]),
                index + 1,
                "a code each, and none is a success"
            );
            assert_eq!(decode_answer(&body), Ok((7, answer)));
        }
        assert_eq!(decode_answer(&[0, 0, 0, 7, 99]), Err(PeerError::Malformed));
    }

    #[test]
    fn an_action_of_a_later_release_is_told_from_a_broken_question() {
        assert_eq!(
            decode_question(b"\0\0\0\x07\x09words of a later release"),
            Ok((7, None))
        );
        assert_eq!(decode_question(b"\0\0\0\x07"), Err(PeerError::Malformed));
        assert_eq!(decode_question(b"\0\0\0\x07\x01"), Err(PeerError::Malformed));
    }

    proptest! {
        #[test]
        fn orders_arrive_as_they_were_sent(
            (number, cluster, one, other) in any::<(u32, u64, u64, u64)>(),
            lasts_ms: u32, is_switchover: bool, member in "[a-zß]{0,100}",
        ) {
            let token = LeaveToken([one, other]);
            let pause = HoldRequest::Pause { route: member.clone(), lasts_ms };
            let look = HoldRequest::Look { route: member.clone() };
            let order = HoldOrder { cluster, member, token, lasts_ms, is_switchover };
            for request in [HoldRequest::Hold(order), HoldRequest::Release { cluster, token }, pause, look] {
                let body = encode_question(number, &request);
                prop_assert!(body.len() <= MOST_HOLD);
                prop_assert_eq!(body[0], 2);
                let padded = [&body[1..], &[0; 40]].concat();
                prop_assert_eq!(decode_question(&padded), Ok((number, Some(request))));
            }
        }

        #[test]
        fn counts_arrive_as_they_were_sent(number: u32, counts: [u32; 5], flags: [bool; 3]) {
            let [transactions, pinned, unmovable, forwarded, replication] = counts;
            let [is_leader, is_leaving, is_replaced] = flags;
            let answer = HoldAnswer::Done(MemberActivity {
                transactions, pinned, unmovable, forwarded, replication, is_leader, is_leaving, is_replaced,
            });
            let body = encode_answer(number, &answer);
            prop_assert_eq!(decode_answer(&[&body[..], &[0; 40]].concat()), Ok((number, answer)));
        }

        #[test]
        fn no_input_panics(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = decode_question(&bytes);
            let _ = decode_answer(&bytes);
        }
    }
}
