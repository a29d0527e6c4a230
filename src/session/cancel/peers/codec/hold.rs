//! Questions about holds, and their answers, before they are sealed.
//!
//! ```text
//! question  kind number:4 hold:1 cluster:8 token:16 lasts_ms:4 is_switchover:1 length:2 member
//!           kind number:4 release:1 cluster:8 token:16
//!           kind number:4 pause:1 lasts_ms:4 length:2 route
//!           kind number:4 look:1 length:2 route
//!           kind number:4 end_stop:1 cluster:8 length:2 member
//!           kind number:4 examine:1 cluster:8 length:2 leader length:2 candidate
//!           kind number:4 named:1 ends_ms:4 length:1 router length:1 operator,
//!                then a hold or a pause, from its action on
//! answer    kind number:4 status:1 [flags:1 and five counts of 4]
//!           kind number:4 examined:1 candidate:1 more:1 count:2 processes of 4
//! ```
//!
//! An action that this release does not know is read as far as its number, and answered with the
//! status for that. So a later release can add actions: a router that does not know `named` is
//! asked again without it.

use zeroize::Zeroizing;

use super::QuestionKind;
use super::message::{PeerError, nothing_but_zeros, take};
use crate::cluster::LeaveToken;
use crate::cluster::snapshot::{MAX_ORDERED_BY, OrderedBy};
use crate::session::holds::{
    CandidateState, Examined, HoldAnswer, HoldOrder, HoldRefusal, HoldRequest, MAX_NAME, MAX_PROCESSES,
    MemberActivity,
};

const HOLD: u8 = 1;
const RELEASE: u8 = 2;
const PAUSE: u8 = 3;
const LOOK: u8 = 4;
const NAMED: u8 = 5;
const EXAMINE: u8 = 6;
const END_STOP: u8 = 7;
const DONE: u8 = 0;
const EXAMINED: u8 = 100;
const IS_LEADER: u8 = 1;
const IS_LEAVING: u8 = 2;
const IS_REPLACED: u8 = 4;
/// Action, end, and who ordered it.
const MOST_NAMED: usize = 1 + 4 + 2 * (1 + MAX_ORDERED_BY);
/// The largest question, without padding. With it, one is as long as one of an older release may
/// be.
pub(super) const MOST_HOLD: usize = {
    let hold = 1 + 4 + MOST_NAMED + 1 + 8 + 16 + 4 + 1 + 2 + MAX_NAME;
    let examine = 1 + 4 + 1 + 8 + 2 * (2 + MAX_NAME);
    if hold > examine { hold } else { examine }
};
/// The largest answer, without padding.
pub(super) const MOST_HOLD_ANSWER: usize = 1 + 4 + 1 + 1 + 1 + 2 + 4 * MAX_PROCESSES;

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
    match request {
        HoldRequest::Hold(HoldOrder {
            by: Some(by),
            ends_ms,
            ..
        }) => put_named(&mut body, by, *ends_ms),
        HoldRequest::Pause { by: Some(by), .. } => put_named(&mut body, by, None),
        _ => {}
    }
    let (action, cluster, token) = match request {
        HoldRequest::Hold(order) => (HOLD, order.cluster, order.token),
        HoldRequest::Release { cluster, token } => (RELEASE, *cluster, *token),
        HoldRequest::Pause { route, lasts_ms, .. } => {
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
        HoldRequest::EndStop { cluster, member } => {
            body.push(END_STOP);
            body.extend_from_slice(&cluster.to_be_bytes());
            put_name(&mut body, member);
            return body;
        }
        HoldRequest::Examine {
            cluster,
            leader,
            candidate,
        } => {
            body.push(EXAMINE);
            body.extend_from_slice(&cluster.to_be_bytes());
            put_name(&mut body, leader);
            put_name(&mut body, candidate);
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

/// An end of 0 is none.
fn put_named(body: &mut Vec<u8>, by: &OrderedBy, ends_ms: Option<u32>) {
    body.push(NAMED);
    body.extend_from_slice(&ends_ms.unwrap_or(0).to_be_bytes());
    for text in [&by.router, &by.operator] {
        let text = &text.as_bytes()[..text.floor_char_boundary(MAX_ORDERED_BY)];
        body.push(u8::try_from(text.len()).unwrap_or(0));
        body.extend_from_slice(text);
    }
}

fn take_named(rest: &mut &[u8]) -> Result<(OrderedBy, Option<u32>), PeerError> {
    let ends_ms = u32::from_be_bytes(take(rest)?);
    let mut text = || {
        let [length] = take(rest)?;
        let (text, behind) = rest
            .split_at_checked(length.into())
            .filter(|_| usize::from(length) <= MAX_ORDERED_BY)
            .ok_or(PeerError::Malformed)?;
        *rest = behind;
        std::str::from_utf8(text).map_err(|_| PeerError::Malformed)
    };
    let (router, operator) = (text()?, text()?);
    let by = OrderedBy::new(router, operator);
    // Peers send what can be printed.
    if by.router != router || by.operator != operator {
        return Err(PeerError::Malformed);
    }
    Ok((by, Some(ends_ms).filter(|ends| *ends > 0)))
}

/// A longer name is one that the other router does not have.
fn put_name(body: &mut Vec<u8>, name: &str) {
    let name = &name.as_bytes()[..name.floor_char_boundary(MAX_NAME)];
    body.extend_from_slice(&u16::try_from(name.len()).unwrap_or(0).to_be_bytes());
    body.extend_from_slice(name);
}

/// The name at the end of a question.
fn take_name(mut rest: &[u8]) -> Result<String, PeerError> {
    let name = take_inner_name(&mut rest)?;
    nothing_but_zeros(rest)?;
    Ok(name)
}

fn take_inner_name(rest: &mut &[u8]) -> Result<String, PeerError> {
    let length = usize::from(u16::from_be_bytes(take(rest)?));
    let (name, behind) = rest.split_at_checked(length).ok_or(PeerError::Malformed)?;
    if length > MAX_NAME {
        return Err(PeerError::Malformed);
    }
    *rest = behind;
    let name = std::str::from_utf8(name).map_err(|_| PeerError::Malformed)?;
    Ok(name.to_owned())
}

/// Behind the kind. Without a request: its action is not known.
pub(super) fn decode_question(body: &[u8]) -> Result<(u32, Option<HoldRequest>), PeerError> {
    let mut rest = body;
    let number = u32::from_be_bytes(take(&mut rest)?);
    let [mut action] = take(&mut rest)?;
    let (mut by, mut ends_ms) = (None, None);
    if action == NAMED {
        let named = take_named(&mut rest)?;
        (by, ends_ms) = (Some(named.0), named.1);
        [action] = take(&mut rest)?;
        if action != HOLD && action != PAUSE {
            return Ok((number, None));
        }
        // A pause has its end in itself.
        if action == PAUSE && ends_ms.is_some() {
            return Err(PeerError::Malformed);
        }
    }
    if action == PAUSE {
        let lasts_ms = u32::from_be_bytes(take(&mut rest)?);
        let route = take_name(rest)?;
        return Ok((number, Some(HoldRequest::Pause { route, lasts_ms, by })));
    }
    if action == LOOK {
        let route = take_name(rest)?;
        return Ok((number, Some(HoldRequest::Look { route })));
    }
    if action == END_STOP {
        let request = HoldRequest::EndStop {
            cluster: u64::from_be_bytes(take(&mut rest)?),
            member: take_name(rest)?,
        };
        return Ok((number, Some(request)));
    }
    if action == EXAMINE {
        let request = HoldRequest::Examine {
            cluster: u64::from_be_bytes(take(&mut rest)?),
            leader: take_inner_name(&mut rest)?,
            candidate: take_name(rest)?,
        };
        return Ok((number, Some(request)));
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
        by,
        ends_ms,
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
        HoldAnswer::Examined(examined) => put_examined(&mut body, examined),
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

const CANDIDATES: [(Option<CandidateState>, u8); 4] = [
    (None, 0),
    (Some(CandidateState::Ready), 1),
    (Some(CandidateState::Drain), 2),
    (Some(CandidateState::Maint), 3),
];

fn put_examined(body: &mut Vec<u8>, examined: &Examined) {
    let candidate = CANDIDATES.iter().find(|(known, _)| *known == examined.candidate);
    let processes = &examined.processes[..examined.processes.len().min(MAX_PROCESSES)];
    body.extend([
        EXAMINED,
        candidate.map_or(0, |(_, code)| *code),
        u8::from(examined.has_more),
    ]);
    body.extend_from_slice(&u16::try_from(processes.len()).unwrap_or(0).to_be_bytes());
    for process in processes {
        body.extend_from_slice(&process.to_be_bytes());
    }
}

fn take_examined(mut rest: &[u8]) -> Result<Examined, PeerError> {
    let [code, more] = take(&mut rest)?;
    let candidate = CANDIDATES.iter().find(|(_, known)| *known == code);
    let (candidate, _) = candidate.ok_or(PeerError::Malformed)?;
    let count = usize::from(u16::from_be_bytes(take(&mut rest)?));
    if count > MAX_PROCESSES {
        return Err(PeerError::Malformed);
    }
    let mut processes = Vec::with_capacity(count.min(rest.len() / 4));
    for _ in 0..count {
        processes.push(u32::from_be_bytes(take(&mut rest)?));
    }
    nothing_but_zeros(rest)?;
    Ok(Examined {
        candidate: *candidate,
        processes,
        has_more: more != 0,
    })
}

/// Behind the kind.
pub(super) fn decode_answer(body: &[u8]) -> Result<(u32, HoldAnswer), PeerError> {
    let mut rest = body;
    let number = u32::from_be_bytes(take(&mut rest)?);
    let [status] = take(&mut rest)?;
    if status == EXAMINED {
        return Ok((number, HoldAnswer::Examined(take_examined(rest)?)));
    }
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
            by in proptest::option::of(("[a-zß]{0,60}", "[a-zß ]{0,60}")), ends in 1_u32..,
        ) {
            let by = by.map(|(router, operator)| OrderedBy::new(&router, &operator));
            let ends_ms = by.as_ref().map(|_| ends);
            let token = LeaveToken([one, other]);
            let pause = HoldRequest::Pause { route: member.clone(), lasts_ms, by: by.clone() };
            let look = HoldRequest::Look { route: member.clone() };
            let end = HoldRequest::EndStop { cluster, member: member.clone() };
            let examine = HoldRequest::Examine {
                cluster, leader: member.clone(), candidate: member.clone(),
            };
            let order = HoldOrder { cluster, member, token, lasts_ms, is_switchover, by, ends_ms };
            for request in [HoldRequest::Hold(order), HoldRequest::Release { cluster, token }, pause, look, examine, end] {
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
        fn what_a_peer_knows_arrives_as_it_was_sent(
            number: u32, state in 0_usize..4, processes in proptest::collection::vec(any::<u32>(), 0..300), has_more: bool,
        ) {
            let answer = HoldAnswer::Examined(Examined { candidate: CANDIDATES[state].0, processes, has_more });
            let body = encode_answer(number, &answer);
            prop_assert!(body.len() <= MOST_HOLD_ANSWER);
            prop_assert_eq!(decode_answer(&[&body[..], &[0; 40]].concat()), Ok((number, answer)));
        }

        #[test]
        fn no_input_panics(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = decode_question(&bytes);
            let _ = decode_answer(&bytes);
        }
    }
}
