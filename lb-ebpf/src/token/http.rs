//! The token in the `Cookie` header of an HTTP/1.1 request (RFC 6265 §4.2): any header order, the header's name in any
//! case, any place among other cookies.
//!
//! Works on the stash, where the payload has just been copied: eight bytes a turn, comparing all of them at once
//! (SWAR), with masked offsets that the verifier accepts without a comparison.

use super::ABSENT;
use crate::atomic::launder;
use crate::maps::{SERVICES, STASHES};
use lb_common::service::Service;
use lb_common::stash::STASH_ROOM;
use lb_common::token::TOKEN_TEXT_LEN;

/// Mask of offsets; what lies behind it in the stash covers one more word, and a token.
const MASK: u32 = 0xfff;
const _: () = assert!(MASK as usize + 1 + TOKEN_TEXT_LEN <= STASH_ROOM);

const ONES: u64 = 0x0101_0101_0101_0101;
const TOPS: u64 = 0x8080_8080_8080_8080;
/// Bit that tells the case of a letter, in every byte.
const CASE: u64 = 0x2020_2020_2020_2020;
const NEWLINES: u64 = b'\n' as u64 * ONES;
const LOWER_C: u64 = b'c' as u64 * ONES;
const EQUALS: u64 = b'=' as u64 * ONES;
const COOKIE: u64 = u64::from_le_bytes(*b"\ncookie:") | CASE;

/// Turns of the loops: a longest segment in words, and as many again for names that are not the one.
const HEADER_TURNS: u32 = 184;
const COOKIE_TURNS: u32 = 320;

/// The bytes of a stash, and its cursor.
#[derive(Clone, Copy)]
struct Bytes {
    first: *const u8,
    cursor: *mut u32,
    limit: *mut u32,
}

impl Bytes {
    /// The eight bytes at an offset, first one lowest.
    #[inline(always)]
    fn word(self, at: u32) -> u64 {
        // SAFETY: a masked offset and eight bytes lie within the stash.
        u64::from_le(unsafe { self.first.add((at & MASK) as usize).cast::<u64>().read_unaligned() })
    }

    #[inline(always)]
    fn byte(self, at: u32) -> u8 {
        // SAFETY: a masked offset lies within the stash.
        unsafe { *self.first.add((at & MASK) as usize) }
    }

    /// How many bytes there are, as a number of which nothing is known.
    #[inline(always)]
    fn len(self) -> u32 {
        // SAFETY: the limit is a field of the stash, which is locked.
        unsafe { self.limit.read_volatile() }
    }

    /// Puts an offset where the verifier does not follow it: else it would look at all that comes after a loop once
    /// for each turn in which the loop can end.
    #[inline(always)]
    fn forget(self, at: u32) -> u32 {
        // SAFETY: the cursor is a field of the stash, which is locked.
        unsafe {
            self.cursor.write_volatile(at);
            self.cursor.read_volatile()
        }
    }
}

/// The top bit of every byte that is zero; bytes above the lowest such may be wrong.
#[inline(always)]
const fn zeros(word: u64) -> u64 {
    word.wrapping_sub(ONES) & !word & TOPS
}

/// Index of the lowest byte whose top bit is set.
#[inline(always)]
const fn lowest(tops: u64) -> u32 {
    let below = (tops & tops.wrapping_neg()).wrapping_sub(1);
    ((below & ONES).wrapping_mul(ONES) >> 56) as u32 - 1
}

/// Looks for the service's cookie in a stash, up to its limit, and verifies what it holds.
///
/// A global function, in the verifier's sense: it is verified once, by itself, whatever its callers know. So it takes
/// numbers, and looks up what they name.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_find_token(stash: u32, service: u32) -> u32 {
    let (Some(settings), Some(service), Some(stash)) =
        (crate::maps::settings(), SERVICES.get(service), STASHES.get_ptr_mut(stash))
    else {
        return ABSENT;
    };
    // SAFETY: a map value stays valid, and the caller has its lock.
    let stash = unsafe { &mut *stash };
    let bytes =
        Bytes { first: stash.bytes.as_ptr(), cursor: &raw mut stash.cursor, limit: &raw mut stash.limit };
    let line = bytes.forget(cookie_line(bytes));
    if line == 0 {
        return ABSENT;
    }
    let text = bytes.forget(cookie_value(bytes, service, line));
    if text == 0 || text + TOKEN_TEXT_LEN as u32 > bytes.len() {
        return ABSENT;
    }
    // SAFETY: a masked offset and the token's text lie within the stash.
    unsafe {
        super::verify(settings, bytes.first.add((launder(u64::from(text)) & u64::from(MASK)) as usize), stash)
    }
}

/// Offset of the cookie's value in the header line that goes on at `at`, or 0.
#[inline(always)]
fn cookie_value(bytes: Bytes, service: &Service, at: u32) -> u32 {
    let mut at = at;
    let [name_low, name_high] = service.cookie_name;
    let [mask_low, mask_high] = service.cookie_mask;
    let before = u32::from(service.cookie_len);
    let mut turn = 0;
    while turn < COOKIE_TURNS && at < bytes.len() {
        turn += 1;
        let word = bytes.word(at);
        let hits = zeros(word ^ EQUALS) | zeros(word ^ NEWLINES);
        if hits == 0 {
            at = bytes.forget(at + 8);
            continue;
        }
        let hit = bytes.forget(at + lowest(hits));
        if bytes.byte(hit) == b'\n' {
            return 0;
        }
        let wrong = (bytes.word(hit.wrapping_sub(15)) ^ name_low) & mask_low
            | (bytes.word(hit.wrapping_sub(7)) ^ name_high) & mask_high;
        if wrong == 0 && matches!(bytes.byte(hit.wrapping_sub(before)), b' ' | b';' | b':' | b'\t') {
            return hit + 1;
        }
        at = bytes.forget(hit + 1);
    }
    0
}

/// Offset behind `Cookie:`, or 0.
#[inline(always)]
fn cookie_line(bytes: Bytes) -> u32 {
    let mut turn = 0;
    let mut at = 0;
    let len = bytes.len();
    while turn < HEADER_TURNS && at < len {
        // A newline here and a C in the next byte, in all eight places at once.
        let hits = zeros((bytes.word(at) ^ NEWLINES) | ((bytes.word(at + 1) | CASE) ^ LOWER_C));
        if hits != 0 {
            let hit = bytes.forget(at + lowest(hits));
            if bytes.word(hit) | CASE == COOKIE {
                return hit + 8;
            }
        }
        at += 8;
        turn += 1;
    }
    0
}
