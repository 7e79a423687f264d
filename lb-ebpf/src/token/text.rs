//! Bytes of a stash, eight at a time: all of them are compared at once (SWAR), at masked offsets that the verifier accepts
//! without a comparison.

use crate::bounds::barrier_var;
pub(crate) use lb_common::name::CASE;
use lb_common::service::NAME_ROOM;
use lb_common::stash::{STASH_BYTES, STASH_ROOM, Stash};
use lb_common::token::TOKEN_TEXT_LEN;

/// Bytes that are searched in one turn of a loop.
const BLOCK: usize = 64;
/// Turns of the loop: all that a stash takes.
pub(crate) const TURNS: u32 = (STASH_BYTES as u32).div_ceil(BLOCK as u32);

/// Mask of offsets; what lies behind it in the stash covers a block and one more word, and a token.
const MASK: u64 = 0xfff;
const _: () = assert!(core::mem::offset_of!(Stash, bytes) >= NAME_ROOM);
const _: () =
    assert!(MASK as usize + BLOCK + 16 <= STASH_ROOM && MASK as usize + 16 + TOKEN_TEXT_LEN <= STASH_ROOM);

pub(crate) const ONES: u64 = 0x0101_0101_0101_0101;
pub(crate) const TOPS: u64 = 0x8080_8080_8080_8080;
pub(crate) const SEMICOLONS: u64 = every(b';');
pub(crate) const COLONS: u64 = every(b':');
pub(crate) const SPACES: u64 = every(b' ');
pub(crate) const TABS: u64 = every(b'\t');
pub(crate) const RETURNS: u64 = every(b'\r');
pub(crate) const NEWLINES: u64 = every(b'\n');

/// A word of eight such bytes.
pub(crate) const fn every(byte: u8) -> u64 {
    byte as u64 * ONES
}

/// The bytes of a stash.
#[derive(Clone, Copy)]
pub(crate) struct Bytes {
    first: *const u8,
    /// How many there are.
    len: u64,
}

/// An offset into a stash. Masked whenever it changes, before anything else is done with it: so the verifier knows the
/// same of it whichever way it went.
#[derive(Clone, Copy)]
pub(crate) struct At(pub(crate) u64);

impl At {
    #[inline(always)]
    pub(crate) fn new(offset: u64) -> Self {
        Self(barrier_var(offset & MASK))
    }
    #[inline(always)]
    pub(crate) fn plus(self, n: u64) -> Self {
        Self::new(self.0.wrapping_add(n))
    }
}

impl Bytes {
    #[inline(always)]
    pub(crate) fn of(stash: &Stash) -> Self {
        Self { first: stash.bytes.as_ptr(), len: u64::from(stash.limit) }
    }

    /// The eight bytes that stand `n` behind an offset, the first one lowest.
    #[inline(always)]
    pub(crate) fn word(self, at: At, n: usize) -> u64 {
        // SAFETY: a masked offset, a block and 9 bytes lie within the stash.
        u64::from_le(unsafe { self.first.add(at.0 as usize + n).cast::<u64>().read_unaligned() })
    }

    /// The bytes before an offset, which may begin before the first one: what stands there in the stash is no name.
    /// The last one is the highest of the last word.
    #[inline(always)]
    pub(crate) fn before(self, at: At) -> [u64; NAME_ROOM / 8] {
        let mut words = [0; NAME_ROOM / 8];
        let mut i = 0;
        while i < NAME_ROOM / 8 {
            // SAFETY: a masked offset lies within the stash, and a longest name stands before the first byte of it.
            words[i] = u64::from_le(unsafe {
                self.first.add(at.0 as usize).sub(NAME_ROOM - 8 * i).cast::<u64>().read_unaligned()
            });
            i += 1;
        }
        words
    }

    /// How many there are.
    #[inline(always)]
    pub(crate) fn len(self) -> u64 {
        self.len
    }

    #[inline(always)]
    pub(crate) fn byte(self, at: At) -> u8 {
        // SAFETY: a masked offset lies within the stash.
        unsafe { *self.first.add(at.0 as usize) }
    }

    /// The text of a token at an offset.
    #[inline(always)]
    pub(crate) fn token(self, at: At) -> *const u8 {
        // SAFETY: a masked offset and the token's text lie within the stash.
        unsafe { self.first.add(at.0 as usize) }
    }
}

/// The number of two bytes in network order at an offset.
#[inline(always)]
pub(crate) fn be16(bytes: Bytes, at: At) -> u64 {
    let word = bytes.word(at, 0);
    (word & 0xff) << 8 | word >> 8 & 0xff
}

/// The top bit of every byte that is zero; bytes above the lowest such may be wrong.
#[inline(always)]
pub(crate) const fn zeros(word: u64) -> u64 {
    word.wrapping_sub(ONES) & !word & TOPS
}

/// Index of the lowest byte whose top bit is set.
#[inline(always)]
pub(crate) const fn lowest(tops: u64) -> u64 {
    let below = (tops & tops.wrapping_neg()).wrapping_sub(1);
    ((below & ONES).wrapping_mul(ONES) >> 56).wrapping_sub(1)
}

/// Mask of the first `n` bytes of a word, of up to seven.
#[inline(always)]
pub(crate) const fn first(n: u64) -> u64 {
    !(u64::MAX << (8 * (n & 7)))
}

/// The top bit of every byte that is not zero, and of no other.
#[inline(always)]
pub(crate) const fn nonzeros(word: u64) -> u64 {
    ((word & !TOPS).wrapping_add(!TOPS) | word) & TOPS
}

/// Index of the highest byte whose top bit is set.
#[inline(always)]
pub(crate) const fn highest(tops: u64) -> u64 {
    let mut tops = tops;
    // All tops up to the highest.
    tops |= tops >> 8;
    tops |= tops >> 16;
    tops |= tops >> 32;
    ((tops >> 7).wrapping_mul(ONES) >> 56).wrapping_sub(1)
}

/// Whether a byte is white space within a line (RFC 9110 §5.6.3).
#[inline(always)]
pub(crate) const fn is_blank(byte: u8) -> bool {
    byte == b' ' || byte == b'\t'
}

/// Not an offset: there is no further hit.
pub(crate) const NOWHERE: u32 = u32::MAX;

/// Where the first hit stands, from an offset on. `hits` gives the top bit of each byte that is one, of the eight that
/// stand some way behind an offset.
#[inline(always)]
pub(crate) fn search<const TURNS: u32>(bytes: Bytes, from: u32, hits: impl Fn(At, usize) -> u64) -> u32 {
    let mut at = At::new(u64::from(from));
    let mut turn = 0;
    while turn < TURNS && at.0 < bytes.len {
        let mut n = 0;
        while n < BLOCK {
            let tops = hits(at, n);
            if tops != 0 {
                return (at.0 + n as u64 + lowest(tops)) as u32;
            }
            n += 8;
        }
        at = at.plus(BLOCK as u64);
        turn += 1;
    }
    NOWHERE
}

/// The hit, if it is not behind the end of what is there.
#[inline(always)]
pub(crate) fn within(bytes: Bytes, hit: u32) -> u32 {
    if u64::from(hit) < bytes.len() { hit } else { NOWHERE }
}

/// Whether the newline at an offset ends a head: an empty line follows, with a carriage return or without (RFC 9112 §2.2).
#[inline(always)]
pub(crate) fn ends_head(bytes: Bytes, newline: At) -> bool {
    let word = bytes.word(newline, 1);
    word as u8 == b'\n' || word as u16 == u16::from_le_bytes(*b"\r\n")
}

/// Hits of [`search`]: newlines at which a head ends. `newlines` is 0 where a newline stands.
#[inline(always)]
pub(crate) fn head_ends(bytes: Bytes, at: At, n: usize, newlines: u64) -> u64 {
    let next = bytes.word(at, n + 1);
    zeros(newlines | (next ^ NEWLINES))
        | zeros(newlines | (next ^ RETURNS) | (bytes.word(at, n + 2) ^ NEWLINES))
}
