//! Where the service's key stands in the head of a request: place after place at which its name is followed by a value.
//!
//! A search goes over the bytes once and stops at lines of interest alone: those whose name has the right length and last
//! letter, and the empty one behind which no field is.

use super::text::{
    At, Bytes, CASE, COLONS, NEWLINES, NOWHERE, ONES, SPACES, TURNS, ends_head, every, head_ends, is_blank,
    search, within, zeros,
};
use super::value::{lb_behind_blanks, lb_character};
use crate::bounds::barrier_var;
use crate::maps::{SERVICES, STASHES, count};
use lb_common::counter::Counter;
use lb_common::service::{NAME_ROOM, Place, Service};

/// How many places are looked at that could be the name. No head that a stash takes has more, but one that is made for it.
const HITS: u32 = 400;

/// Not an offset: the head, or the target, has ended. [`NOWHERE`] is more: it goes on behind what is there.
pub(crate) const END: u32 = NOWHERE - 1;
/// Beside an offset: it stands in a line, or in a query, in which the name may stand again.
const INSIDE: u32 = 1 << 16;
/// Beside an offset: a value of the key stands there.
const FOUND: u32 = 1 << 17;
/// What of a place is its offset.
pub(crate) const OFFSET: u32 = INSIDE - 1;

const COOKIE: u64 = u64::from_le_bytes(*b"\ncookie:") | CASE;
const AMPERSANDS: u64 = every(b'&');
const QUESTIONS: u64 = every(b'?');
const HASHES: u64 = every(b'#');
const EQUALS: u64 = every(b'=');

/// As [`lb_locate`]. What most requests need, a line and a cookie in it, without calls for each step.
#[inline(always)]
pub(crate) fn locate(bytes: Bytes, stash: u32, service: u32, entry: &Service, from: u32) -> u32 {
    let mut place = next_place(bytes, stash, service, entry, from);
    if place < END && place & FOUND == 0 {
        place = next_place(bytes, stash, service, entry, place);
    }
    if place >= END {
        place
    } else if place & FOUND != 0 {
        place & !FOUND
    } else {
        lb_locate(stash, service, place)
    }
}

/// Finds the next value of the service's key, at or behind a place: its offset, and what [`lb_locate`] is to be asked for the one
/// after it. Or [`END`], or [`NOWHERE`]. A global function (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_locate(stash: u32, service: u32, from: u32) -> u32 {
    let mut place = from;
    let mut turn = 0;
    while turn < HITS {
        place = lb_next_place(stash, service, place);
        if place >= END {
            return place;
        }
        if place & FOUND != 0 {
            return place & !FOUND;
        }
        turn += 1;
    }
    count(service as u16, Counter::KeysIgnored as u32);
    END
}

/// Goes on to the next place that could be one: returns it, with [`FOUND`] where a value of the key stands, or [`END`], or
/// [`NOWHERE`]. A global function (see [`crate::cold`]): in the loop of its caller it would be verified again in each turn, and
/// in each with all that it may have found in those before.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_next_place(stash: u32, service: u32, from: u32) -> u32 {
    let (Some(at), Some(entry)) = (STASHES.get(stash), SERVICES.get(service)) else { return END };
    next_place(Bytes::of(at), stash, service, entry, from)
}

#[inline(always)]
fn next_place(bytes: Bytes, stash: u32, service: u32, entry: &Service, from: u32) -> u32 {
    match Place::from_bits(entry.place) {
        Place::Header => in_fields(bytes, stash, service, entry, from & OFFSET),
        Place::Query => in_query(bytes, stash, service, entry, from),
        _ if from & INSIDE == 0 => among_lines(bytes, stash, service, from),
        _ => among_cookies(bytes, stash, service, entry, from & OFFSET),
    }
}

/// The next line that could be the service's header field.
#[inline(always)]
fn in_fields(bytes: Bytes, stash: u32, service: u32, entry: &Service, from: u32) -> u32 {
    let hit = lb_next_line(stash, service, from);
    if hit >= END {
        return hit;
    }
    // The bytes that end with the field's colon, if it is the one.
    let behind = At::new(u64::from(hit)).plus(u64::from(entry.key_name_len));
    if differs(entry, &bytes.before(behind), CASE) == 0 { behind.0 as u32 | FOUND } else { hit + 1 }
}

/// The next line that could be one of cookies. There may be several (RFC 9113 §8.2.3).
#[inline(always)]
fn among_lines(bytes: Bytes, stash: u32, service: u32, from: u32) -> u32 {
    let hit = lb_next_line(stash, service, from);
    if hit >= END {
        return hit;
    }
    if bytes.word(At::new(u64::from(hit)), 0) | CASE == COOKIE { (hit + 8) | INSIDE } else { hit + 1 }
}

/// The next cookie of a line that could be the service's.
#[inline(always)]
fn among_cookies(bytes: Bytes, stash: u32, service: u32, entry: &Service, from: u32) -> u32 {
    let hit = lb_next_name(stash, service, from);
    if hit == NOWHERE {
        return NOWHERE;
    }
    let behind = At::new(u64::from(hit)).plus(2);
    let words = bytes.before(behind);
    let next = (words[NAME_ROOM / 8 - 1] >> 56) as u8;
    if words[NAME_ROOM / 8 - 1] >> 48 & 0xff == u64::from(b'\n') {
        // A line that begins with white space goes on with the one before it (RFC 9112 §5.2).
        return if is_blank(next) { (hit + 1) | INSIDE } else { hit };
    }
    if next != b'=' {
        return lb_spaced(stash, service, hit);
    }
    if differs(entry, &words, 0) == 0
        && begins_pair(bytes, stash, At::new(behind.0.wrapping_sub(u64::from(entry.key_name_len))))
    {
        return behind.0 as u32 | INSIDE | FOUND;
    }
    (hit + 1) | INSIDE
}

/// The bytes before an offset of which the last one follows a name, as if that were an equals sign: white space may stand before it
/// (RFC 6265 §5.2).
#[inline(always)]
pub(crate) fn named(bytes: Bytes, behind: At) -> [u64; NAME_ROOM / 8] {
    let mut words = bytes.before(behind);
    words[NAME_ROOM / 8 - 1] = words[NAME_ROOM / 8 - 1] << 8 >> 8 | u64::from(b'=') << 56;
    words
}

/// The same of a cookie behind whose name white space stands, or something else. A global function (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_spaced(stash: u32, service: u32, hit: u32) -> u32 {
    let (Some(place), Some(entry)) = (STASHES.get(stash), SERVICES.get(service)) else { return END };
    let bytes = Bytes::of(place);
    let equals = lb_behind_blanks(stash, hit + 1);
    if equals == NOWHERE {
        return NOWHERE;
    }
    let behind = At::new(u64::from(hit)).plus(2);
    let name = At::new(behind.0.wrapping_sub(u64::from(entry.key_name_len)));
    if bytes.byte(At::new(u64::from(equals))) == b'='
        && differs(entry, &named(bytes, behind), 0) == 0
        && lb_begins_pair(stash, name.0 as u32) != 0
    {
        return (equals + 1) | INSIDE | FOUND;
    }
    (hit + 1) | INSIDE
}

/// The next parameter of the target's query (RFC 3986 §3.4), whatever form the target has (RFC 9112 §3.2). Nothing behind it is
/// looked at.
#[inline(always)]
fn in_query(bytes: Bytes, stash: u32, service: u32, entry: &Service, from: u32) -> u32 {
    let hit = if from & INSIDE == 0 {
        lb_query(stash, from)
    } else {
        separated(bytes, lb_parameter_end(stash, from & OFFSET), b'&')
    };
    if hit >= END {
        return hit;
    }
    let name = At::new(u64::from(hit)).plus(1);
    let value = name.plus(u64::from(entry.key_name_len));
    if differs(entry, &bytes.before(value), 0) == 0 {
        return value.0 as u32 | INSIDE | FOUND;
    }
    let value = lb_percent_name(stash, service, name.0 as u32);
    if value != NOWHERE { value | INSIDE | FOUND } else { name.0 as u32 | INSIDE }
}

/// How much white space may stand before a cookie's name.
const BLANKS: u32 = 96;

/// Whether a cookie can begin at an offset: behind the field's name or a semicolon, with white space between or without.
#[inline(always)]
fn begins_pair(bytes: Bytes, stash: u32, at: At) -> bool {
    let before = bytes.word(At::new(at.0.wrapping_sub(2)), 0);
    let (first, last) = (before as u8, (before >> 8) as u8);
    // As nearly all of them are written.
    last == b' ' && (first == b';' || begins_line(bytes, At::new(at.0.wrapping_sub(1))))
        || lb_begins_pair(stash, at.0 as u32) != 0
}

/// Whether an offset is that behind the name of a field of cookies and its colon.
#[inline(always)]
fn begins_line(bytes: Bytes, at: At) -> bool {
    let word = bytes.word(At::new(at.0.wrapping_sub(8)), 0);
    // With its case set, a newline is an asterisk.
    word as u8 == b'\n' && word | CASE == COOKIE
}

/// The same, with any white space between. A global function (see [`crate::cold`]), because it is a loop.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_begins_pair(stash: u32, at: u32) -> u32 {
    let Some(stash) = STASHES.get(stash) else { return 0 };
    let bytes = Bytes::of(stash);
    let mut at = At::new(u64::from(at));
    let mut turn = 0;
    while turn < BLANKS {
        let byte = bytes.byte(At::new(at.0.wrapping_sub(1)));
        if byte == b';' {
            return 1;
        }
        if byte == b':' {
            // A colon may stand in a value as well, and what follows it would look like a cookie.
            return u32::from(begins_line(bytes, at));
        }
        if !is_blank(byte) && byte != b'\n' && byte != b'\r' {
            return 0;
        }
        at = At::new(at.0.wrapping_sub(1));
        turn += 1;
    }
    0
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

/// Finds the next newline behind which a field of that length of name and last letter begins, the service's or `Cookie`;
/// [`END`] where an empty line comes first, [`NOWHERE`] where neither is there.
///
/// A global function (see [`crate::cold`]), because it is a loop: in a loop of its callers it would be verified again in
/// each turn.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_next_line(stash: u32, service: u32, from: u32) -> u32 {
    let (Some(stash), Some(service)) = (STASHES.get(stash), SERVICES.get(service)) else { return END };
    let bytes = Bytes::of(stash);
    // The last letter, and how far from the newline it stands.
    let (last, far) = if service.place == Place::Header as u8 {
        (service.key_name[NAME_ROOM / 8 - 1] >> 48 & 0xff, u64::from(service.key_name_len).wrapping_sub(2))
    } else {
        (u64::from(b'e'), 6)
    };
    let (last, far) = (barrier_var((last | 0x20).wrapping_mul(ONES)), barrier_var(far));
    let hit = search::<TURNS>(bytes, from, |at, n| {
        let newline = bytes.word(at, n) ^ NEWLINES;
        if zeros(newline) == 0 {
            return 0;
        }
        let end = at.plus(far.wrapping_add(n as u64));
        // Behind the last newline of a head stands a carriage return or another: or a tab, which is no harm.
        let next = (bytes.word(at, n + 1) & every(0xf8)) ^ every(8);
        zeros(newline | next)
            | zeros(newline | ((bytes.word(end, 0) | CASE) ^ last) | (bytes.word(end, 1) ^ COLONS))
    });
    let line = At::new(u64::from(hit));
    if hit != NOWHERE && ends_head(bytes, line) {
        let end = line.plus(if bytes.byte(line.plus(1)) == b'\r' { 2 } else { 1 });
        return if end.0 < bytes.len() { END } else { NOWHERE };
    }
    within(bytes, hit)
}

/// Finds the next newline, or the last letter of the service's cookie where an equals sign or white space follows it: that letter.
///
/// A global function, as [`lb_next_line`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_next_name(stash: u32, service: u32, from: u32) -> u32 {
    let (Some(stash), Some(service)) = (STASHES.get(stash), SERVICES.get(service)) else { return NOWHERE };
    let bytes = Bytes::of(stash);
    let last = (service.key_name[3] >> 48 & 0xff).wrapping_mul(ONES);
    let hit = search::<TURNS>(bytes, from, |at, n| {
        let word = bytes.word(at, n);
        if zeros(word ^ last) | zeros(word ^ NEWLINES) == 0 {
            return 0;
        }
        let next = bytes.word(at, n + 1);
        // White space, a few signs that no name holds, and the equals sign.
        let blank = (word ^ last) | (next & every(!(b' ' | b'\t')));
        zeros((word ^ last) | (next ^ EQUALS)) | zeros(blank) | zeros(word ^ NEWLINES)
    });
    // What follows tells whether it ends there.
    if hit == NOWHERE || u64::from(hit) + 1 >= bytes.len() { NOWHERE } else { hit }
}

/// Finds the question mark before the query of a request that begins at an offset. A global function, as [`lb_next_line`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_query(stash: u32, from: u32) -> u32 {
    let Some(stash) = STASHES.get(stash) else { return END };
    let bytes = Bytes::of(stash);
    let hit = search::<TURNS>(bytes, from, |at, n| {
        let word = bytes.word(at, n);
        zeros(word ^ QUESTIONS) | zeros(word ^ HASHES) | zeros(word ^ NEWLINES)
    });
    separated(bytes, hit, b'?')
}

/// Finds what ends a parameter of a query. A global function, as [`lb_next_line`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn lb_parameter_end(stash: u32, from: u32) -> u32 {
    let Some(stash) = STASHES.get(stash) else { return NOWHERE };
    let bytes = Bytes::of(stash);
    let hit = search::<TURNS>(bytes, from, |at, n| {
        let word = bytes.word(at, n);
        zeros(word ^ AMPERSANDS) | zeros(word ^ SPACES) | zeros(word ^ HASHES) | zeros(word ^ NEWLINES)
    });
    within(bytes, hit)
}

#[inline(always)]
fn separated(bytes: Bytes, hit: u32, by: u8) -> u32 {
    let hit = within(bytes, hit);
    if hit != NOWHERE && bytes.byte(At::new(u64::from(hit))) != by { END } else { hit }
}

/// Offset behind the equals sign of a parameter whose name begins at an offset and is the service's, with characters of it in
/// percent form (RFC 3986 §2.1); [`NOWHERE`] when it is another. A global function, as [`lb_next_line`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_percent_name(stash: u32, service: u32, name: u32) -> u32 {
    let (Some(place), Some(service)) = (STASHES.get(stash), SERVICES.get(service)) else { return NOWHERE };
    let bytes = Bytes::of(place);
    let first = (&raw const service.key_name).cast::<u8>();
    let len = u64::from(service.key_name_len);
    let mut at = At::new(u64::from(name));
    let mut i = 0;
    while i < NAME_ROOM as u64 && i + 1 < len {
        // SAFETY: masked to the name's room.
        let expected =
            unsafe { *first.add((barrier_var(i.wrapping_sub(len)) & (NAME_ROOM as u64 - 1)) as usize) };
        let character = lb_character(stash, at.0 as u32);
        if character as u8 != expected {
            return NOWHERE;
        }
        at = at.plus(u64::from(character >> 8));
        i += 1;
    }
    if bytes.byte(at) == b'=' && at.0 < bytes.len() { at.plus(1).0 as u32 } else { NOWHERE }
}

/// Whether the head has ended within what is there, from where it begins. A global function, as [`lb_next_line`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_head_end(stash: u32, from: u32) -> u32 {
    let Some(stash) = STASHES.get(stash) else { return NOWHERE };
    let bytes = Bytes::of(stash);
    let hit = search::<TURNS>(bytes, from, |at, n| {
        let newline = bytes.word(at, n) ^ NEWLINES;
        if zeros(newline) == 0 { 0 } else { head_ends(bytes, at, n, newline) }
    });
    let line = At::new(u64::from(hit));
    if hit == NOWHERE || !ends_head(bytes, line) {
        return NOWHERE;
    }
    let end = line.plus(if bytes.byte(line.plus(1)) == b'\r' { 3 } else { 2 });
    if end.0 <= bytes.len() { end.0 as u32 } else { NOWHERE }
}
