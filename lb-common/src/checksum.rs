//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).
//!
//! Sums are of 16-bit words as they stand in memory: the one's complement sum does not care about byte order as long
//! as every word is loaded the same way, so no byte is ever swapped. Where 32- or 64-bit words are added, folding
//! makes them sums of their 16-bit parts.

use crate::addr::Addr;

/// Folds a sum to 16 bits by end-around carry.
#[inline(always)]
pub const fn fold(mut sum: u64) -> u16 {
    sum = (sum & 0xffff_ffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// One's complement `a - b`.
#[inline(always)]
pub const fn sub(a: u16, b: u16) -> u16 {
    fold(a as u64 + !b as u64)
}

/// Sum of a 32-bit word that becomes another: add it to the complement of a checksum.
#[inline(always)]
pub const fn change32(old: u32, new: u32) -> u64 {
    !old as u64 + new as u64
}

/// Sum of a 16-bit word that becomes another.
#[inline(always)]
pub const fn change16(old: u16, new: u16) -> u64 {
    (!old) as u64 + new as u64
}

/// A checksum field after the words under it changed by `change` (a sum of [`change32`] and [`change16`]).
/// RFC 1624 equation 3.
#[inline(always)]
pub const fn update(check: u16, change: u64) -> u16 {
    !fold(!check as u64 + change)
}

/// Sum of an address: of its four IPv4 bytes, or of all sixteen.
#[inline(always)]
pub const fn sum_addr(addr: Addr) -> u64 {
    if addr.is_v4() {
        addr.v4_bits() as u64
    } else {
        (addr.hi & 0xffff_ffff) + (addr.hi >> 32) + (addr.lo & 0xffff_ffff) + (addr.lo >> 32)
    }
}

/// Sum of the TCP or UDP pseudo header (RFC 9293 §3.1) without its addresses: protocol and segment length in bytes.
#[inline(always)]
pub const fn sum_pseudo(protocol: u8, len: u16) -> u64 {
    (protocol as u16).to_be() as u64 + len.to_be() as u64
}

/// What a sum becomes when its bytes stand at an odd offset of the message (RFC 1071 §2 B).
#[inline(always)]
pub const fn at_odd_offset(sum: u16) -> u16 {
    sum.swap_bytes()
}

/// Sum of any bytes: the plain way, for tests, for small fixed headers on the host, and for what is fixed when compiled.
pub const fn sum_bytes(bytes: &[u8]) -> u64 {
    let (pairs, rest) = bytes.as_chunks::<2>();
    let mut sum = if let [last] = rest { u16::from_ne_bytes([*last, 0]) as u64 } else { 0 };
    let mut i = 0;
    while i < pairs.len() {
        sum += u16::from_ne_bytes(pairs[i]) as u64;
        i += 1;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    /// 0x0000 and 0xffff are the same number in one's complement.
    fn same(a: u16, b: u16) -> bool {
        a == b || (a == 0 || a == 0xffff) && (b == 0 || b == 0xffff)
    }

    proptest! {
        #[test]
        fn update_equals_recomputation(mut words in proptest::collection::vec(any::<u32>(), 4..40), at: prop::sample::Index, new: u32) {
            let bytes = |w: &[u32]| w.iter().flat_map(|w| w.to_ne_bytes()).collect::<Vec<u8>>();
            let before = !fold(sum_bytes(&bytes(&words)));
            let at = at.index(words.len());
            let change = change32(words[at], new);
            words[at] = new;
            prop_assert!(same(update(before, change), !fold(sum_bytes(&bytes(&words)))));
        }

        #[test]
        fn sums_join_at_any_offset(a: Vec<u8>, b: Vec<u8>) {
            let whole: Vec<u8> = a.iter().chain(&b).copied().collect();
            let tail = fold(sum_bytes(&b));
            let tail = if a.len() % 2 == 1 { at_odd_offset(tail) } else { tail };
            prop_assert!(same(fold(sum_bytes(&a) + u64::from(tail)), fold(sum_bytes(&whole))));
        }

        #[test]
        fn sub_undoes_add(a: u16, b: u16) {
            prop_assert!(same(sub(fold(u64::from(a) + u64::from(b)), b), a));
        }
    }

    #[test]
    fn the_example_of_rfc_1071() {
        let sum = fold(sum_bytes(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]));
        assert_eq!(sum.to_be(), 0xddf2);
    }
}
