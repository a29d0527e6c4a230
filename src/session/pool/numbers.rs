//! A hasher for numbers that the router itself has given, and addresses of its own. Whoever could
//! choose them could make a table slow.

use std::hash::{BuildHasherDefault, Hasher};

/// See the module.
pub(super) type NumberHash = BuildHasherDefault<NumberHasher>;

/// Fibonacci hashing, with the high bits in the low ones too: a table uses both ends.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct NumberHasher(u64);

/// 2^64 divided by the golden ratio.
const FACTOR: u64 = 0x9E37_79B9_7F4A_7C15;

impl Hasher for NumberHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    fn write_u64(&mut self, number: u64) {
        let product = (self.0 ^ number).wrapping_mul(FACTOR);
        self.0 = product ^ (product >> 32);
    }

    fn write_usize(&mut self, number: usize) {
        self.write_u64(number as u64);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::hash::BuildHasher as _;

    use super::NumberHash;

    /// The bits by which a table finds a group, and those by which it tells entries apart.
    #[test]
    fn numbers_in_a_row_and_addresses_differ_at_both_ends() {
        for step in [1_u64, 16, 64, 4096] {
            let hashes: Vec<u64> = (0..256)
                .map(|n| NumberHash::default().hash_one(n * step))
                .collect();
            let low: HashSet<u64> = hashes.iter().map(|hash| hash & 0xff).collect();
            let high: HashSet<u64> = hashes.iter().map(|hash| hash >> 57).collect();
            assert!(low.len() > 128, "{} of 256 with step {step}", low.len());
            assert!(high.len() > 64, "{} of 128 with step {step}", high.len());
        }
    }
}
