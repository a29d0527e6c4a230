//! Which of several that fit alike: pure, but for the turns, which their owner keeps.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::net::IpAddr;

use super::policy::{Asked, Candidate};
use crate::cluster::snapshot::MemberName;
use crate::config::Balance;

/// What one of them may have.
#[derive(Debug)]
pub(super) struct Share {
    pub(super) candidate: Candidate,
    /// In percent: a member's weight, or less while it starts slowly. At least 1.
    pub(super) weight: u16,
    pub(super) sessions: usize,
}

/// Whose turn it is: how far each member is behind its share of the sessions given out (smooth weighted round robin).
/// One for each route.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Turns(BTreeMap<MemberName, i64>);

impl Turns {
    fn behind(&self, share: &Share) -> i64 {
        self.0.get(&share.candidate.member).copied().unwrap_or_default()
    }

    /// Sorts by who is furthest behind, and counts the first as served. Who is not there any more is forgotten.
    fn take<R>(&mut self, alike: &mut [(R, Share)]) {
        let mut next = BTreeMap::new();
        for (_, share) in alike.iter() {
            next.insert(
                share.candidate.member.clone(),
                self.behind(share) + i64::from(share.weight),
            );
        }
        self.0 = next;
        alike.sort_by_key(|(_, share)| std::cmp::Reverse(self.behind(share)));
        let sum: i64 = alike.iter().map(|(_, share)| i64::from(share.weight)).sum();
        if let Some((_, first)) = alike.first()
            && let Some(behind) = self.0.get_mut(&first.candidate.member)
        {
            *behind -= sum;
        }
    }
}

/// Puts `alike` in order. `is_first`: the session goes to one of these, if it can be reached.
pub(super) fn order<R>(balance: Balance, alike: &mut [(R, Share)], asked: &mut Asked<'_>, is_first: bool) {
    match balance {
        Balance::LeastConnections => {
            shuffle(alike, asked.chance);
            alike.sort_by(|(_, a), (_, b)| load(a, b));
        }
        Balance::RoundRobin => {
            if is_first {
                asked.turns.take(alike);
            } else {
                shuffle(alike, asked.chance);
            }
        }
        Balance::Random => {
            shuffle(alike, asked.chance);
            if let [(_, one), (_, two), ..] = alike
                && load(two, one) == Ordering::Less
            {
                alike.swap(0, 1);
            }
        }
        Balance::SourceHash => {
            let client = asked.client;
            alike.sort_by_cached_key(|(_, share)| {
                arrival(draw(client, &share.candidate.member), share.weight)
            });
        }
        Balance::First => alike.sort_by_key(|(_, share)| {
            let name = share.candidate.member.as_str();
            asked.listed.iter().position(|server| server.name == name)
        }),
    }
}

/// Who would have fewer sessions for its weight, with one more.
fn load(a: &Share, b: &Share) -> Ordering {
    let load = |one: &Share, other: &Share| (one.sessions as u128 + 1) * u128::from(other.weight);
    load(a, b).cmp(&load(b, a))
}

/// By chance, each place drawn by weight from those that are left.
fn shuffle<R>(alike: &mut [(R, Share)], chance: &mut dyn FnMut() -> u64) {
    alike.sort_by_cached_key(|(_, share)| arrival(chance(), share.weight));
}

/// When it would arrive in a race (least is first) that each wins as often as its weight has it in the sum of weights:
/// exponential times, of which weight is the rate. With a hash in place of chance it is rendezvous hashing: a member
/// that comes or goes moves only what it takes or leaves.
#[expect(clippy::cast_precision_loss, reason = "53 bits are kept, and are enough")]
fn arrival(draw: u64, weight: u16) -> u64 {
    let uniform = ((draw >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
    let time = uniform.ln().abs() / f64::from(weight);
    // Floats that are not negative are in the order of their bits.
    time.to_bits()
}

/// The same in every router, for a client's address and a member.
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
