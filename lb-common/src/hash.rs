//! SipHash (Aumasson and Bernstein, 2012) for what an attacker must not forge, and pair-multiply-shift
//! (Thorup, "High Speed Hashing for Integers and Strings", §3) for table positions that an attacker must not steer.

use crate::addr::Addr;

/// A 128-bit secret as two little-endian words.
pub type SipKey = [u64; 2];

/// SipHash-2-4, one word at a time.
#[derive(Clone, Copy)]
pub struct Sip {
    v0: u64,
    v1: u64,
    v2: u64,
    v3: u64,
}

impl Sip {
    #[inline(always)]
    pub const fn new(key: &SipKey) -> Self {
        Self {
            v0: key[0] ^ 0x736f_6d65_7073_6575,
            v1: key[1] ^ 0x646f_7261_6e64_6f6d,
            v2: key[0] ^ 0x6c79_6765_6e65_7261,
            v3: key[1] ^ 0x7465_6462_7974_6573,
        }
    }

    #[inline(always)]
    const fn round(&mut self) {
        self.v0 = self.v0.wrapping_add(self.v1);
        self.v2 = self.v2.wrapping_add(self.v3);
        self.v1 = self.v1.rotate_left(13) ^ self.v0;
        self.v3 = self.v3.rotate_left(16) ^ self.v2;
        self.v0 = self.v0.rotate_left(32);
        self.v2 = self.v2.wrapping_add(self.v1);
        self.v0 = self.v0.wrapping_add(self.v3);
        self.v1 = self.v1.rotate_left(17) ^ self.v2;
        self.v3 = self.v3.rotate_left(21) ^ self.v0;
        self.v2 = self.v2.rotate_left(32);
    }

    #[inline(always)]
    pub const fn absorb(&mut self, word: u64) {
        self.v3 ^= word;
        self.round();
        self.round();
        self.v0 ^= word;
    }

    #[inline(always)]
    pub const fn finish(mut self) -> u64 {
        self.v2 ^= 0xff;
        self.round();
        self.round();
        self.round();
        self.round();
        self.v0 ^ self.v1 ^ self.v2 ^ self.v3
    }
}

/// SipHash-2-4 of `words` whole little-endian words followed by `tail`, whose top byte must be the message's length in
/// bytes modulo 256 (that is how SipHash ends every message).
#[inline(always)]
pub const fn siphash24<const N: usize>(key: &SipKey, words: &[u64; N], tail: u64) -> u64 {
    let mut sip = Sip::new(key);
    let mut i = 0;
    while i < N {
        sip.absorb(words[i]);
        i += 1;
    }
    sip.absorb(tail);
    sip.finish()
}

/// SipHash-2-4 of any bytes. For programs in the kernel [`siphash24`] is the one: it has no loop over memory.
pub fn siphash24_bytes(key: &SipKey, bytes: &[u8]) -> u64 {
    let mut sip = Sip::new(key);
    let mut words = bytes.chunks_exact(8);
    for word in &mut words {
        sip.absorb(little_endian(word));
    }
    sip.absorb(little_endian(words.remainder()) | (bytes.len() as u64) << 56);
    sip.finish()
}

/// Up to eight bytes as a word.
fn little_endian(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte))
}

/// Secret multipliers of [`flow_hash`], drawn at random once for the life of the maps.
pub type FlowSeed = [u64; 7];

/// Position of a flow in the flow table. Pair-multiply-shift: universal over its secret seed, so a client that cannot
/// read the seed cannot aim many flows at one group. Mixed, because neighbouring clients differ in few bits, and the two groups that
/// follow from one hash must not depend on each other.
///
/// `tail` holds the client's port and the service id, as they stand in the flow entry.
#[inline(always)]
pub const fn flow_hash(seed: &FlowSeed, client: Addr, tail: u32) -> u32 {
    let sum = pair(seed[0], client.hi as u32, seed[1], (client.hi >> 32) as u32)
        .wrapping_add(pair(seed[2], client.lo as u32, seed[3], (client.lo >> 32) as u32))
        .wrapping_add(pair(seed[4], tail, seed[5], tail.rotate_left(16)))
        .wrapping_add(seed[6]);
    (mix64(sum) >> 32) as u32
}

/// Two words under two secret multipliers; the high half of a sum of such is universal.
#[inline(always)]
pub(crate) const fn pair(a: u64, x: u32, b: u64, y: u32) -> u64 {
    a.wrapping_add(x as u64).wrapping_mul(b.wrapping_add(y as u64))
}

/// Finaliser of MurmurHash3: every input bit reaches every output bit.
#[inline(always)]
pub const fn mix64(mut x: u64) -> u64 {
    x ^= x >> 33;
    x = x.wrapping_mul(0xff51_afd7_ed55_8ccd);
    x ^= x >> 33;
    x = x.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^ x >> 33
}

/// Maps a 32-bit hash onto `0..n` without a division (Lemire, "Fast Random Integer Generation in an Interval").
#[inline(always)]
pub const fn scale(hash: u32, n: u32) -> u32 {
    ((hash as u64 * n as u64) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::hash::Hasher;
    use proptest::prelude::*;
    use std::vec::Vec;

    proptest! {
        #[test]
        fn siphash_matches_the_reference_crate(key: [u64; 2], words: [u64; 3], last: u8) {
            let mut message = Vec::new();
            words.iter().for_each(|w| message.extend_from_slice(&w.to_le_bytes()));
            message.push(last);
            let mut reference = siphasher::sip::SipHasher24::new_with_keys(key[0], key[1]);
            reference.write(&message);
            prop_assert_eq!(siphash24(&key, &words, u64::from(last) | 25 << 56), reference.finish());
        }

        #[test]
        fn siphash_of_bytes_matches_the_reference_crate(key: [u64; 2], message: Vec<u8>) {
            let mut reference = siphasher::sip::SipHasher24::new_with_keys(key[0], key[1]);
            reference.write(&message);
            prop_assert_eq!(siphash24_bytes(&key, &message), reference.finish());
        }

        #[test]
        fn scale_stays_below_n(hash: u32, n in 1u32..) {
            prop_assert!(scale(hash, n) < n);
        }
    }

    /// Chosen clients that differ in one bit only must spread like random ones over 1,024 groups.
    #[test]
    fn flow_hash_spreads_neighbouring_clients() {
        let seed: FlowSeed = core::array::from_fn(|i| mix64(i as u64 + 1));
        let mut groups = [0u32; 1024];
        for port in 0..32_768u32 {
            let client = Addr::from_v4_bits(u32::from_ne_bytes([10, 0, 0, 1]));
            groups[(flow_hash(&seed, client, port.swap_bytes() >> 16 | 1 << 16) & 1023) as usize] += 1;
        }
        let fullest = groups.iter().max().unwrap();
        assert!(*fullest < 32 + 6 * 6 + 6, "fullest group has {fullest} of an expected 32");
    }
}
