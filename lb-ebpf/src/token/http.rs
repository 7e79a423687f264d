//! The token, or the key that is hashed, in an HTTP/1.1 request: in a cookie (RFC 6265 §4.2), in any other header field, or
//! in a parameter of the target's query. Any order of fields, their names in any case, any place among other cookies.
//!
//! Works on the stash, where the payload has just been copied: eight bytes at a time, comparing all of them at once
//! (SWAR), with masked offsets that the verifier accepts without a comparison.

use super::{ABSENT, Found, HASHED, LEARNED, UNKNOWN};
use crate::bounds::barrier_var;
use crate::homes::{lb_home, set_key};
use crate::maps::{BACKENDS, SERVICES, STASHES, settings};
use lb_common::hash::Sip;
use lb_common::home::{KEY_WORDS, usable};
use lb_common::maglev::NOBODY;
pub(crate) use lb_common::name::CASE;
use lb_common::service::{Affinity, NAME_ROOM, Place, Service};
use lb_common::stash::{Claim, STASH_BYTES, STASH_ROOM, Stash};
use lb_common::token::TOKEN_TEXT_LEN;

/// Bytes that are searched in one turn of a loop.
const BLOCK: usize = 64;
/// Turns of the loop: all that a stash takes.
pub(crate) const TURNS: u32 = (STASH_BYTES as u32).div_ceil(BLOCK as u32);
/// How many places are looked at that could be the header's name...
const LINE_HITS: u32 = 32;
/// ...and that could be the cookie's.
const NAME_HITS: u32 = 64;

/// Mask of offsets; what lies behind it in the stash covers a block and one more word, and a token.
const MASK: u64 = 0xfff;
const _: () = assert!(core::mem::offset_of!(Stash, bytes) >= NAME_ROOM);
const _: () =
    assert!(MASK as usize + BLOCK + 16 <= STASH_ROOM && MASK as usize + 16 + TOKEN_TEXT_LEN <= STASH_ROOM);

pub(crate) const ONES: u64 = 0x0101_0101_0101_0101;
pub(crate) const TOPS: u64 = 0x8080_8080_8080_8080;
pub(crate) const SEMICOLONS: u64 = b';' as u64 * ONES;
pub(crate) const SPACES: u64 = b' ' as u64 * ONES;
pub(crate) const RETURNS: u64 = b'\r' as u64 * ONES;
const ANDS: u64 = b'&' as u64 * ONES;
pub(crate) const NEWLINES: u64 = b'\n' as u64 * ONES;
const LOWER_C: u64 = b'c' as u64 * ONES;
const LOWER_K: u64 = b'k' as u64 * ONES;
const EQUALS: u64 = b'=' as u64 * ONES;
const COOKIE: u64 = u64::from_le_bytes(*b"\ncookie:") | CASE;

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
}

/// The number of two bytes in network order at an offset.
#[inline(always)]
pub(super) fn be16(bytes: Bytes, at: At) -> u64 {
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

/// Finds the next C that has a K three bytes behind it, in either case: as in `Cookie`, and in little else.
///
/// A global function (see [`crate::cold`]), because it is a loop: in a loop of its callers it would be verified again in
/// each turn.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_next_cookie(stash: u32, from: u32) -> u32 {
    let Some(stash) = STASHES.get(stash) else { return NOWHERE };
    let bytes = Bytes::of(stash);
    search::<TURNS>(bytes, from, |at, n| {
        zeros(((bytes.word(at, n) | CASE) ^ LOWER_C) | ((bytes.word(at, n + 3) | CASE) ^ LOWER_K))
    })
}

/// Finds the service's key: the offset of its value, with [`TO_HASH`] where that is to be done, or [`NOWHERE`]. A global function (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_locate(stash: u32, service: u32) -> u32 {
    let (Some(at), Some(entry)) = (STASHES.get(stash), SERVICES.get(service)) else { return NOWHERE };
    if entry.affinity == Affinity::Learned as u8 {
        // The key that stands there is that of a flow which had the entry before.
        set_key((at.owner as u32).wrapping_sub(1), 0);
    }
    let bytes = Bytes::of(at);
    let found = match Place::from_bits(entry.place) {
        Place::Header => header_value(bytes, stash, entry),
        Place::Query => named_value(bytes, stash, entry, service, At::new(0), BEFORE_PARAMETER),
        _ => match cookie_line(bytes, stash) {
            Some(line) => named_value(bytes, stash, entry, service, line, BEFORE_COOKIE),
            None => None,
        },
    };
    match found {
        Some(at) if entry.affinity != Affinity::Signed as u8 => at.0 as u32 | TO_HASH,
        Some(at) => at.0 as u32,
        None => NOWHERE,
    }
}

/// Offset of the value of the service's header field. Stops where the head ends.
#[inline(always)]
fn header_value(bytes: Bytes, stash: u32, entry: &Service) -> Option<At> {
    let mut from = 0;
    let mut turn = 0;
    while turn < LINE_HITS {
        let hit = lb_next_line(stash, from);
        if hit == NOWHERE {
            return None;
        }
        let line = At::new(u64::from(hit));
        // The bytes that end with the field's colon, if it is the one.
        let behind = line.plus(u64::from(entry.key_name_len));
        if differs(entry, &bytes.before(behind), CASE) == 0 {
            let skip = 1 & !is_not_one_of(1 << b' ' | 1 << b'\t', bytes.byte(behind));
            return Some(behind.plus(skip));
        }
        if bytes.byte(line.plus(1)) == b'\r' {
            return None;
        }
        from = hit + 1;
        turn += 1;
    }
    None
}

/// Not zero when the bytes before a key are not those of the service's name. `case` is set in all of them first.
#[inline(always)]
pub(crate) fn differs(entry: &Service, words: &[u64; NAME_ROOM / 8], case: u64) -> u64 {
    let mut wrong = 0;
    let mut i = 0;
    while i < NAME_ROOM / 8 {
        wrong |= ((words[i] | case) ^ entry.key_name[i]) & entry.key_mask[i];
        i += 1;
    }
    wrong
}

/// Finds the next newline. A global function, as [`lb_next_cookie`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_next_line(stash: u32, from: u32) -> u32 {
    let Some(stash) = STASHES.get(stash) else { return NOWHERE };
    let bytes = Bytes::of(stash);
    search::<TURNS>(bytes, from, |at, n| zeros(bytes.word(at, n) ^ NEWLINES))
}

/// Hashes the value that stands at an offset of a stash, up to what ends a cookie, a parameter or a line: what the service
/// steers by. Leaves the hash in the stash, and, of a session that a backend is known to have begun, where that is at home.
///
/// A global function, as [`lb_next_cookie`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_value(stash: u32, service: u32, at: u32) -> u32 {
    let hash = lb_hash_value(stash, service, at);
    let (Some(place), Some(entry)) = (STASHES.get_ptr_mut(stash), SERVICES.get(service)) else {
        return ABSENT;
    };
    if hash == 0 {
        return ABSENT;
    }
    // SAFETY: a map value stays valid, and the caller has its lock.
    let claim = unsafe { &mut *place };
    claim.hash = hash as u32;
    if entry.affinity != Affinity::Learned as u8 {
        return HASHED;
    }
    let tag = lb_tag_value(stash, service, at);
    if tag == 0 {
        // White space, to a server, and no key.
        return ABSENT;
    }
    set_key((claim.owner as u32).wrapping_sub(1), tag);
    recognise(claim, service, tag)
}

/// Leaves in a stash where the session of a tag is at home, as a token would say it.
#[inline(always)]
pub(crate) fn recognise(stash: &mut Stash, service: u32, tag: u64) -> Found {
    let slot = lb_home(service, tag);
    if slot == u32::from(NOBODY) {
        return UNKNOWN;
    }
    // Who handed it out knows best whether it still knows it: no instance is older than another.
    let epoch = BACKENDS.get(slot).map_or(0, |backend| backend.epoch);
    stash.claim = Claim { service: service as u16, slot: slot as u16, epoch, hash: stash.hash, _pad: 0 };
    LEARNED
}

/// The hash of the value at an offset of a stash, the same on every node; 0 when there is none.
///
/// A global function, as [`lb_next_cookie`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_hash_value(stash: u32, service: u32, at: u32) -> u64 {
    let (Some(stash), Some(entry)) = (STASHES.get(stash), SERVICES.get(service)) else { return 0 };
    // What ends a value, beside the end of its line: nothing else, in a header field.
    let (first, second) = match Place::from_bits(entry.place) {
        Place::Header => (RETURNS, RETURNS),
        Place::Query => (ANDS, SPACES),
        _ => (SEMICOLONS, SPACES),
    };
    let ends = |word: u64| zeros(word ^ first) | zeros(word ^ second) | zeros(word ^ RETURNS);
    hash_value(Sip::new(&[0, 0]), Bytes::of(stash), at, ends)
}

/// The tag of the learned session whose key stands at an offset of a stash; 0 when there is none.
///
/// A global function, as [`lb_next_cookie`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_tag_value(stash: u32, service: u32, at: u32) -> u64 {
    let Some(stash) = STASHES.get(stash) else { return 0 };
    tag_value(Bytes::of(stash), service, at)
}

/// As [`lb_tag_value`]: see [`lb_common::home::tag`].
#[inline(always)]
pub(crate) fn tag_value(bytes: Bytes, service: u32, at: u32) -> u64 {
    let Some(settings) = settings() else { return 0 };
    let mut sip = Sip::new(&settings.home_key);
    sip.absorb(u64::from(service as u16));
    // Space and everything below it.
    const LIMITS: u64 = (b' ' as u64 + 1) * ONES;
    hash_value(sip, bytes, at, |word| zeros(word ^ SEMICOLONS) | word.wrapping_sub(LIMITS) & !word & TOPS)
}

/// Goes on with a hash over the value at an offset. `ends` gives the top bit of each byte that ends one, and need not be
/// right above the lowest. 0 when nothing stands there, or not all of it.
#[inline(always)]
fn hash_value(mut sip: Sip, bytes: Bytes, at: u32, ends: impl Fn(u64) -> u64) -> u64 {
    let mut at = At::new(u64::from(at));
    let mut len = 0_u64;
    let mut turn = 0;
    while turn < KEY_WORDS {
        let word = bytes.word(at, 0);
        let ends = ends(word);
        let n = if ends == 0 { 8 } else { lowest(ends) };
        let end = at.0 + n;
        if end > bytes.len || end == bytes.len && n < 8 || at.0 >= bytes.len {
            // It goes on behind what is there: half a value is none.
            return 0;
        }
        if n < 8 {
            if n != 0 {
                sip.absorb(word & !(u64::MAX << (8 * n)));
            }
            len += n;
            break;
        }
        sip.absorb(word);
        len += 8;
        at = at.plus(8);
        turn += 1;
    }
    if len == 0 {
        return 0;
    }
    sip.absorb(len);
    usable(sip.finish())
}

/// Finds the next newline, or the next equals sign behind the last letter of the service's cookie: that letter.
///
/// A global function, as [`lb_next_cookie`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_next_name(stash: u32, service: u32, from: u32) -> u32 {
    let (Some(stash), Some(service)) = (STASHES.get(stash), SERVICES.get(service)) else { return NOWHERE };
    let bytes = Bytes::of(stash);
    let last = (service.key_name[3] >> 48 & 0xff).wrapping_mul(ONES);
    search::<TURNS>(bytes, from, |at, n| {
        let word = bytes.word(at, n);
        zeros((word ^ last) | (bytes.word(at, n + 1) ^ EQUALS)) | zeros(word ^ NEWLINES)
    })
}

/// Looks for the service's key in a stash, up to its limit, and verifies or hashes what it holds.
#[inline(always)]
pub(crate) fn find(service: u32, stash: u32) -> Found {
    match lb_locate(stash, service) {
        NOWHERE => ABSENT,
        at if at & TO_HASH != 0 => lb_value(stash, service, at & !TO_HASH),
        at => lb_verify(stash, at),
    }
}

/// Whether the empty line is there that ends a request's head.
#[inline(always)]
pub(super) fn is_whole(stash: &Stash) -> bool {
    let bytes = Bytes::of(stash);
    let empty = search::<TURNS>(bytes, 0, |at, n| {
        // Two line feeds with a carriage return between them.
        let word = bytes.word(at, n);
        zeros((word ^ NEWLINES) | (bytes.word(at, n + 1) ^ RETURNS) | (bytes.word(at, n + 2) ^ NEWLINES))
    });
    // What stands behind the limit is of another request.
    empty != NOWHERE && u64::from(empty) + 3 <= bytes.len
}

/// What a request line ends with, but for the last digit (RFC 9112 §2.3).
const VERSION: u64 = u64::from_le_bytes(*b"HTTP/1.\0");

/// Whether what has come so far may become a request of HTTP/1: it begins with capital letters, as every method does, and its first
/// line, if that has ended, names the version. The head of another protocol would be waited for in vain.
///
/// A global function (see [`crate::cold`]); 0 is no.
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn lb_may_be_request(stash: u32) -> u32 {
    let Some(place) = STASHES.get(stash) else { return 0 };
    let bytes = Bytes::of(place);
    let word = bytes.word(At::new(0), 0);
    let mut i = 0;
    while i < 3 {
        let letter = (word >> (8 * i)) as u8;
        if i < bytes.len && !letter.is_ascii_uppercase() {
            return 0;
        }
        i += 1;
    }
    let newline = search::<TURNS>(bytes, 0, |at, n| zeros(bytes.word(at, n) ^ NEWLINES));
    if newline == NOWHERE || u64::from(newline) >= bytes.len {
        return 1;
    }
    let end = u64::from(newline);
    let end = if bytes.byte(At::new(end.wrapping_sub(1))) == b'\r' { end.wrapping_sub(1) } else { end };
    u32::from(bytes.word(At::new(end.wrapping_sub(8)), 0) << 8 == VERSION << 8)
}

/// Stands beside the offset of a value that is hashed.
const TO_HASH: u32 = 1 << 30;

/// Verifies the token whose text stands at an offset of a stash. A global function (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_verify(stash: u32, at: u32) -> u32 {
    let (Some(settings), Some(stash)) = (settings(), STASHES.get_ptr_mut(stash)) else { return ABSENT };
    // SAFETY: a map value stays valid, and the caller has its lock.
    let stash = unsafe { &mut *stash };
    let bytes = Bytes::of(stash);
    let text = At::new(u64::from(at));
    if text.0 + TOKEN_TEXT_LEN as u64 > bytes.len {
        return ABSENT;
    }
    // SAFETY: a masked offset and the token's text lie within the stash.
    unsafe { super::verify(settings, bytes.first.add(text.0 as usize), stash) }
}

/// What can stand before a cookie's name...
const BEFORE_COOKIE: u64 = 1 << b' ' | 1 << b';' | 1 << b':' | 1 << b'\t';
/// ...and before that of a parameter.
const BEFORE_PARAMETER: u64 = 1 << b'?' | 1 << b'&';

/// Not zero for a byte that is not in a set of bytes below 64. Without a branch for each that is.
#[inline(always)]
fn is_not_one_of(set: u64, byte: u8) -> u64 {
    let byte = u64::from(byte);
    barrier_var(byte >> 6) | !(set >> (byte & 63)) & 1
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

/// Offset of a value in the line that goes on at `line`, behind the service's name and an equals sign. `stands_behind`
/// is a set of bytes below 64, those before which the name may stand.
#[inline(always)]
fn named_value(
    bytes: Bytes,
    stash: u32,
    entry: &Service,
    service: u32,
    line: At,
    stands_behind: u64,
) -> Option<At> {
    let before = u64::from(entry.key_name_len).wrapping_add(1);
    let mut from = line.0 as u32;
    let mut turn = 0;
    while turn < NAME_HITS {
        let hit = lb_next_name(stash, service, from);
        if hit == NOWHERE {
            return None;
        }
        // The bytes that end with the equals sign.
        let value = At::new(u64::from(hit).wrapping_add(2));
        let words = bytes.before(value);
        if words[NAME_ROOM / 8 - 1] >> 48 & 0xff == u64::from(b'\n') {
            return None;
        }
        if differs(entry, &words, 0)
            | is_not_one_of(stands_behind, bytes.byte(At::new(value.0.wrapping_sub(before))))
            == 0
        {
            return Some(value);
        }
        from = hit + 1;
        turn += 1;
    }
    None
}
