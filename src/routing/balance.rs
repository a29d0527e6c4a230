//! Orders members that fit equally well. Pure except for the turns, which their owner keeps.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::net::IpAddr;

use super::policy::{Candidate, ChoiceInput};
use crate::cluster::snapshot::MemberName;
use crate::config::Balance;

/// One member's share of the sessions.
#[derive(Debug)]
pub(super) struct Share {
    pub(super) candidate: Candidate,
    /// The member's weight in percent, less during a slow start. At least 1.
    pub(super) weight: u16,
    pub(super) sessions: usize,
}

/// The state of one route's smooth weighted round robin: how far each member is behind its share of
/// the sessions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Turns(BTreeMap<MemberName, i64>);

impl Turns {
    fn behind(&self, share: &Share) -> i64 {
        self.0.get(&share.candidate.member).copied().unwrap_or_default()
    }

    /// Sorts the member that is furthest behind first, and counts a session for it. Members that
    /// are no longer present are forgotten.
    fn take<R>(&mut self, tied: &mut [(R, Share)]) {
        let mut next = BTreeMap::new();
        for (_, share) in tied.iter() {
            next.insert(
                share.candidate.member.clone(),
                self.behind(share) + i64::from(share.weight),
            );
        }
        self.0 = next;
        tied.sort_by_key(|(_, share)| std::cmp::Reverse(self.behind(share)));
        let sum: i64 = tied.iter().map(|(_, share)| i64::from(share.weight)).sum();
        if let Some((_, first)) = tied.first()
            && let Some(behind) = self.0.get_mut(&first.candidate.member)
        {
            *behind -= sum;
        }
    }
}

/// Sorts `tied`. `is_first`: no candidate comes before these, so the session goes to one of them
/// if it can be reached.
pub(super) fn order<R>(
    balance: Balance,
    tied: &mut [(R, Share)],
    input: &mut ChoiceInput<'_>,
    is_first: bool,
) {
    match balance {
        Balance::LeastConnections => {
            shuffle(tied, input.chance);
            tied.sort_by(|(_, a), (_, b)| load(a, b));
        }
        Balance::RoundRobin => {
            if is_first {
                input.turns.take(tied);
            } else {
                shuffle(tied, input.chance);
            }
        }
        Balance::Random => {
            shuffle(tied, input.chance);
            if let [(_, one), (_, two), ..] = tied
                && load(two, one) == Ordering::Less
            {
                tied.swap(0, 1);
            }
        }
        Balance::SourceHash => {
            let client = input.client;
            tied.sort_by_cached_key(|(_, share)| {
                sort_key(draw(client, &share.candidate.member), share.weight)
            });
        }
        Balance::First => tied.sort_by_key(|(_, share)| {
            let name = share.candidate.member.as_str();
            input.listed.iter().position(|server| server.name == name)
        }),
    }
}

/// Compares the members' sessions per weight, with one more session for each.
fn load(a: &Share, b: &Share) -> Ordering {
    let load = |one: &Share, other: &Share| (one.sessions as u128 + 1) * u128::from(other.weight);
    load(a, b).cmp(&load(b, a))
}

/// A random order: each place is drawn by weight from the remaining members.
fn shuffle<R>(tied: &mut [(R, Share)], chance: &mut dyn FnMut() -> u64) {
    tied.sort_by_cached_key(|(_, share)| sort_key(chance(), share.weight));
}

/// A sort key: the smallest comes first. The keys are exponentially distributed with the weight as
/// the rate, so each member comes first in proportion to its weight. With a hash as the draw this
/// is rendezvous hashing: a new or removed member moves only its own clients.
#[expect(clippy::cast_precision_loss, reason = "53 bits are kept, and are enough")]
fn sort_key(draw: u64, weight: u16) -> u64 {
    let uniform = ((draw >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
    let time = uniform.ln().abs() / f64::from(weight);
    // Floats that are not negative sort as their bits do.
    time.to_bits()
}

/// A hash of the client's address and the member. It is the same in every router.
fn draw(client: Option<IpAddr>, member: &MemberName) -> u64 {
    let mut key = Vec::with_capacity(16 + member.as_str().len());
    match client {
        Some(IpAddr::V4(address)) => key.extend_from_slice(&address.octets()),
        Some(IpAddr::V6(address)) => key.extend_from_slice(&address.octets()),
        None => {}
    }
    key.extend_from_slice(member.as_str().as_bytes());
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &key);
    let head: [u8; 8] = digest.as_ref()[..8].try_into().expect("SHA-256 has 32 bytes");
    u64::from_be_bytes(head)
}
