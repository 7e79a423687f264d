//! The token in the `Cookie` header of an HTTP/1.1 request (RFC 6265 §4.2): any header order, the header's name in any
//! case, any place among other cookies.
//!
//! Works on the stash, where the payload has just been copied: eight bytes at a time, comparing all of them at once
//! (SWAR), with masked offsets that the verifier accepts without a comparison.

use super::{ABSENT, Found};
use crate::atomic::launder;
use crate::maps::{SERVICES, STASHES};
use lb_common::service::Service;
use lb_common::settings::Settings;
use lb_common::stash::{STASH_ROOM, Stash};
use lb_common::token::TOKEN_TEXT_LEN;

/// Bytes that are searched in one turn of a loop.
const BLOCK: usize = 64;
/// Turns of the loop: a longest segment.
const TURNS: u32 = 1500_u32.div_ceil(BLOCK as u32);
/// How many places are looked at that could be the header's name...
const LINE_HITS: u32 = 32;
/// ...and that could be the cookie's.
const NAME_HITS: u32 = 64;

/// Mask of offsets; what lies behind it in the stash covers a block and one more word, and a token.
const MASK: u64 = 0xfff;
const _: () =
    assert!(MASK as usize + BLOCK + 16 <= STASH_ROOM && MASK as usize + 16 + TOKEN_TEXT_LEN <= STASH_ROOM);

const ONES: u64 = 0x0101_0101_0101_0101;
const TOPS: u64 = 0x8080_8080_8080_8080;
/// Bit that tells the case of a letter, in every byte.
const CASE: u64 = 0x2020_2020_2020_2020;
const NEWLINES: u64 = b'\n' as u64 * ONES;
const LOWER_C: u64 = b'c' as u64 * ONES;
const LOWER_K: u64 = b'k' as u64 * ONES;
const EQUALS: u64 = b'=' as u64 * ONES;
const COOKIE: u64 = u64::from_le_bytes(*b"\ncookie:") | CASE;

/// The bytes of a stash.
#[derive(Clone, Copy)]
pub(super) struct Bytes {
    first: *const u8,
    /// How many there are.
    len: u64,
}

/// An offset into a stash. Masked whenever it changes, before anything else is done with it: so the verifier knows the
/// same of it whichever way it went.
#[derive(Clone, Copy)]
pub(super) struct At(u64);

impl At {
    #[inline(always)]
    pub(super) fn new(offset: u64) -> Self {
        Self(launder(offset & MASK))
    }
    #[inline(always)]
    fn plus(self, n: u64) -> Self {
        Self::new(self.0.wrapping_add(n))
    }
}

impl Bytes {
    #[inline(always)]
    pub(super) fn of(stash: &Stash) -> Self {
        Self { first: stash.bytes.as_ptr(), len: u64::from(stash.limit) }
    }

    /// The eight bytes that stand `n` behind an offset, the first one lowest.
    #[inline(always)]
    pub(super) fn word(self, at: At, n: usize) -> u64 {
        // SAFETY: a masked offset, a block and 9 bytes lie within the stash.
        u64::from_le(unsafe { self.first.add(at.0 as usize + n).cast::<u64>().read_unaligned() })
    }

    #[inline(always)]
    fn byte(self, at: At) -> u8 {
        // SAFETY: a masked offset lies within the stash.
        unsafe { *self.first.add(at.0 as usize) }
    }
}

/// The top bit of every byte that is zero; bytes above the lowest such may be wrong.
#[inline(always)]
pub(super) const fn zeros(word: u64) -> u64 {
    word.wrapping_sub(ONES) & !word & TOPS
}

/// Index of the lowest byte whose top bit is set.
#[inline(always)]
const fn lowest(tops: u64) -> u64 {
    let below = (tops & tops.wrapping_neg()).wrapping_sub(1);
    ((below & ONES).wrapping_mul(ONES) >> 56).wrapping_sub(1)
}

/// Not an offset: there is no further hit.
pub(super) const NOWHERE: u32 = u32::MAX;

/// Where the first hit stands, from an offset on. `hits` gives the top bit of each byte that is one, of the eight that
/// stand some way behind an offset.
#[inline(always)]
pub(super) fn search(bytes: Bytes, from: u32, hits: impl Fn(At, usize) -> u64) -> u32 {
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

/// Finds the next C that has a K three bytes behind it, in either case: as in `Cookie`, and in little else.
///
/// A global function (see [`crate::cold`]), because it is a loop: in a loop of its callers it would be verified again in
/// each turn.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_next_cookie(stash: u32, from: u32) -> u32 {
    let Some(stash) = STASHES.get(stash) else { return NOWHERE };
    let bytes = Bytes::of(stash);
    search(bytes, from, |at, n| {
        zeros(((bytes.word(at, n) | CASE) ^ LOWER_C) | ((bytes.word(at, n + 3) | CASE) ^ LOWER_K))
    })
}

/// Finds the next newline, or the next equals sign behind the last letter of the service's cookie: that letter.
///
/// A global function, as [`lb_next_cookie`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_next_name(stash: u32, service: u32, from: u32) -> u32 {
    let (Some(stash), Some(service)) = (STASHES.get(stash), SERVICES.get(service)) else { return NOWHERE };
    let bytes = Bytes::of(stash);
    let last = (service.cookie_name[1] >> 48 & 0xff).wrapping_mul(ONES);
    search(bytes, from, |at, n| {
        let word = bytes.word(at, n);
        zeros((word ^ last) | (bytes.word(at, n + 1) ^ EQUALS)) | zeros(word ^ NEWLINES)
    })
}

/// Looks for the service's cookie in a stash, up to its limit, and verifies what it holds.
#[inline(always)]
pub(crate) fn find(
    settings: &Settings,
    entry: &Service,
    service: u32,
    stash: &mut Stash,
    index: u32,
) -> Found {
    let bytes = Bytes::of(stash);
    let Some(line) = cookie_line(bytes, index) else { return ABSENT };
    let Some(text) = cookie_value(bytes, index, entry, service, line) else { return ABSENT };
    if text.0 + TOKEN_TEXT_LEN as u64 > bytes.len {
        return ABSENT;
    }
    // SAFETY: a masked offset and the token's text lie within the stash.
    unsafe { super::verify(settings, bytes.first.add(text.0 as usize), stash) }
}

/// Not zero for a byte that cannot stand before a cookie's name. Without a branch for each that can.
#[inline(always)]
fn not_before_a_name(byte: u8) -> u64 {
    const CAN: u64 = 1 << b' ' | 1 << b';' | 1 << b':' | 1 << b'\t';
    let byte = u64::from(byte);
    launder(byte >> 6) | !(CAN >> (byte & 63)) & 1
}

/// Offset behind `Cookie:`.
#[inline(always)]
fn cookie_line(bytes: Bytes, stash: u32) -> Option<At> {
    let mut from = 0;
    let mut turn = 0;
    while turn < LINE_HITS {
        let hit = lb_next_cookie(stash, from);
        if hit == NOWHERE {
            return None;
        }
        let line = At::new(u64::from(hit).wrapping_sub(1));
        if bytes.word(line, 0) | CASE == COOKIE {
            return Some(line.plus(8));
        }
        from = hit + 1;
        turn += 1;
    }
    None
}

/// Offset of the cookie's value in the header line that goes on at `line`.
#[inline(always)]
fn cookie_value(bytes: Bytes, stash: u32, entry: &Service, service: u32, line: At) -> Option<At> {
    let [name_low, name_high] = entry.cookie_name;
    let [mask_low, mask_high] = entry.cookie_mask;
    let before = 15_u64.wrapping_sub(u64::from(entry.cookie_len));
    let mut from = line.0 as u32;
    let mut turn = 0;
    while turn < NAME_HITS {
        let hit = lb_next_name(stash, service, from);
        if hit == NOWHERE {
            return None;
        }
        // Sixteen bytes that end with the equals sign.
        let name = At::new(u64::from(hit).wrapping_sub(14));
        let (low, high) = (bytes.word(name, 0), bytes.word(name, 8));
        if high >> 48 & 0xff == u64::from(b'\n') {
            return None;
        }
        let wrong = (low ^ name_low) & mask_low | (high ^ name_high) & mask_high;
        if wrong | not_before_a_name(bytes.byte(name.plus(before))) == 0 {
            return Some(name.plus(16));
        }
        from = hit + 1;
        turn += 1;
    }
    None
}
