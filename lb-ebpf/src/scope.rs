//! Which cookie of a name a response speaks of, and whether it deletes it: its path, its domain, and until when it lives (RFC 6265 §5.2,
//! §5.3). Cookies of one name and different scopes live side by side in a browser.

use crate::bounds::barrier_var;
use crate::clock::jiffies;
use crate::maps::{FLOW_KEYS, SCRATCH, STASHES, settings};
use crate::token::text::{
    At, Bytes, CASE, NEWLINES, NOWHERE, SEMICOLONS, SPACES, every, first, is_blank, lowest, search, within,
    zeros,
};
use crate::token::value::{CUT, SCRATCHED, lb_behind_blanks, lb_hash, lb_span};
use lb_common::date;
use lb_common::hash::mix64;
use lb_common::home::{ROOT, scope};
use lb_common::syn_cookie::SLOT_SECONDS;

/// How many attributes of a cookie are looked at.
const ATTRIBUTES: u32 = 16;
/// How many parts of a path are looked at.
const PARTS: u32 = 24;

const SEVEN: u64 = u64::MAX >> 8;
const SIX: u64 = u64::MAX >> 16;
const FOUR: u64 = u32::MAX as u64;
const MAX_AGE: u64 = u64::from_le_bytes(*b"max-age\0") | CASE & SEVEN;
const EXPIRES: u64 = u64::from_le_bytes(*b"expires\0") | CASE & SEVEN;
const DOMAIN: u64 = u64::from_le_bytes(*b"domain\0\0") | CASE & SIX;
const PATH: u64 = u64::from_le_bytes(*b"path\0\0\0\0") | CASE & FOUR;

/// What an attribute is, in the upper half of what [`lb_attribute`] returns, and where it is noted.
const IS_PATH: u64 = 0;
const IS_DOMAIN: u64 = 1;
const IS_AGE: u64 = 2;
const IS_EXPIRES: u64 = 3;
/// In the lower half, of a path: it is none, so that of the request counts (RFC 6265 §5.2.4).
const DEFAULT: u32 = 3;
/// In the lower half, of an age or a date: it lies in the past...
const PAST: u32 = 1;
/// ...or in the future.
const FUTURE: u32 = 2;

/// Beside a scope: the cookie is deleted.
pub(crate) const DELETED: u64 = 1 << 32;

/// The first offset of the scratch memory at or behind another one at which no white space stands.
#[inline(always)]
pub(crate) fn solid(bytes: Bytes, at: At) -> At {
    if is_blank(bytes.byte(at)) { At::new(u64::from(lb_behind_blanks(SCRATCHED, at.0 as u32))) } else { at }
}

/// The scope of the cookie whose value stands at an offset of the scratch memory, with [`DELETED`] where its attributes delete it; 0
/// where they go on behind what is there. A later attribute counts before an earlier one, its age before its date. A global
/// function (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_attributes(service: u32, flow: u32, value: u32) -> u64 {
    let (Some(scratch), Some(known)) = (SCRATCH.get(0), FLOW_KEYS.get(flow)) else { return 0 };
    let bytes = Bytes::of(scratch);
    let mut i = 0;
    while i < 4 {
        note(i, 0);
        i += 1;
    }
    let mut from = value;
    let mut turn = 0;
    while turn < ATTRIBUTES {
        let hit = lb_next_attribute(from);
        if hit == NOWHERE {
            return 0;
        }
        if bytes.byte(At::new(u64::from(hit))) == b'\n' {
            break;
        }
        let found = lb_attribute(service, hit + 1);
        if found as u32 != 0 {
            note(found >> 32, found as u32);
        }
        from = hit + 1;
        turn += 1;
    }
    let (path, age) = (noted(IS_PATH), noted(IS_AGE));
    let path = if path == 0 || path == DEFAULT { known.path } else { path };
    let domain = noted(IS_DOMAIN);
    let gone = if age == 0 { lb_expires(noted(IS_EXPIRES)) } else { age } == PAST;
    u64::from(scope(path, domain)) | if gone { DELETED } else { 0 }
}

/// Notes a number in one of eight places. In memory, because the verifier follows no numbers there: else it would go through all
/// orders in which attributes and parts of dates can stand.
#[inline(always)]
fn note(place: u64, value: u32) {
    if let Some(scratch) = SCRATCH.get_ptr_mut(0) {
        // SAFETY: the value belongs to this processor while the program runs; a masked index lies within the 40 bytes.
        unsafe {
            (&raw mut (*scratch).token)
                .cast::<u32>()
                .add((barrier_var(place) & 7) as usize)
                .write_volatile(value)
        };
    }
}

/// What was noted there.
#[inline(always)]
fn noted(place: u64) -> u32 {
    // SAFETY: as above.
    SCRATCH.get(0).map_or(0, |scratch| unsafe {
        (&raw const scratch.token).cast::<u32>().add((barrier_var(place) & 7) as usize).read_volatile()
    })
}

/// Finds the next semicolon or newline in the scratch memory. A global function, because it is a loop (see
/// [`crate::token::locate`]).
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_next_attribute(from: u32) -> u32 {
    let Some(scratch) = SCRATCH.get(0) else { return NOWHERE };
    let bytes = Bytes::of(scratch);
    let hit = search::<SCAN>(bytes, from, |at, n| {
        let word = bytes.word(at, n);
        zeros(word ^ SEMICOLONS) | zeros(word ^ NEWLINES)
    });
    within(bytes, hit)
}

/// Turns of a search through all of the scratch memory that offsets reach.
pub(crate) const SCAN: u32 = 64;

/// What the attribute behind the semicolon before an offset of the scratch memory says. A global function (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_attribute(service: u32, at: u32) -> u64 {
    let Some(scratch) = SCRATCH.get(0) else { return 0 };
    let bytes = Bytes::of(scratch);
    let name = solid(bytes, At::new(u64::from(at)));
    let word = bytes.word(name, 0) | CASE;
    let (what, len) = if word & FOUR == PATH {
        (IS_PATH, 4)
    } else if word & SEVEN == MAX_AGE {
        (IS_AGE, 7)
    } else if word & SEVEN == EXPIRES {
        (IS_EXPIRES, 7)
    } else if word & SIX == DOMAIN {
        (IS_DOMAIN, 6)
    } else {
        return 0;
    };
    let equals = solid(bytes, name.plus(len));
    if bytes.byte(equals) != b'=' {
        return 0;
    }
    let span = lb_span(SCRATCHED, service, equals.plus(1).0 as u32);
    if span == CUT {
        return 0;
    }
    let value = match what {
        IS_PATH => path(bytes, span),
        IS_DOMAIN => lb_domain(span),
        IS_AGE => lb_age(span),
        // Where it stands: deeper, no more calls fit.
        _ => (span & 0xffff | span >> 32 << 16) as u32,
    };
    what << 32 | u64::from(value)
}

/// The hash of a path, or [`DEFAULT`].
#[inline(always)]
fn path(bytes: Bytes, span: u64) -> u32 {
    if span >> 32 == 0 || bytes.byte(At::new(span)) != b'/' {
        DEFAULT
    } else if span >> 32 == 1 {
        ROOT
    } else {
        lb_hash(SCRATCHED, span, 0) as u32 | 4
    }
}

/// The hash of a domain, without a dot before it and whatever its case (RFC 6265 §5.2.3); 0 where it is empty. A global function (see
/// [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_domain(span: u64) -> u32 {
    let Some(scratch) = SCRATCH.get(0) else { return 0 };
    let bytes = Bytes::of(scratch);
    let (mut at, mut left) = (At::new(span), span >> 32);
    if left != 0 && bytes.byte(at) == b'.' {
        (at, left) = (at.plus(1), left - 1);
    }
    if left == 0 {
        return 0;
    }
    let mut hash = 0;
    let mut turn = 0;
    while turn < 32 && left >= 8 {
        hash = mix64(hash ^ (bytes.word(at, 0) | CASE));
        at = at.plus(8);
        left -= 8;
        turn += 1;
    }
    mix64(hash ^ ((bytes.word(at, 0) | CASE) & first(left)) ^ left) as u32 | 1
}

/// Whether an age in seconds is over (RFC 6265 §5.2.2): [`PAST`], [`FUTURE`], or 0 where it is no number. A global function (see
/// [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_age(span: u64) -> u32 {
    let Some(scratch) = SCRATCH.get(0) else { return 0 };
    let bytes = Bytes::of(scratch);
    let (mut at, mut left) = (At::new(span), span >> 32);
    let negative = bytes.byte(at) == b'-';
    if negative {
        (at, left) = (at.plus(1), left.wrapping_sub(1));
    }
    let mut is_over = 1;
    let mut turn = 0;
    while turn < 24 && turn < left {
        let digit = bytes.byte(at).wrapping_sub(b'0');
        if digit > 9 {
            return 0;
        }
        if digit != 0 {
            is_over = 0;
        }
        at = at.plus(1);
        turn += 1;
    }
    if turn == 0 {
        0
    } else if negative || is_over == 1 {
        PAST
    } else {
        FUTURE
    }
}

/// Tokens of a date that are looked at.
const TOKENS: u32 = 12;

/// Whether a date is over (RFC 6265 §5.1.1, §5.2.1): [`PAST`], [`FUTURE`], or 0 where it is none. `span`: its offset in the scratch
/// memory, and its length in the upper half. A global function (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_expires(span: u32) -> u32 {
    let Some(settings) = settings() else { return 0 };
    let end = (span & 0xffff).wrapping_add(span >> 16);
    let mut at = span & 0xffff;
    // Each plus one, 0 for what is missing.
    note(IS_TIME, 0);
    note(IS_DAY_OR_YEAR, 0);
    note(IS_YEAR, 0);
    note(IS_MONTH, 0);
    let mut turn = 0;
    while turn < TOKENS && at < end {
        let token = lb_date_token(at);
        let kind = token >> 16 & 0xffff;
        let kind = if kind == IS_DAY_OR_YEAR && noted(IS_DAY_OR_YEAR) != 0 { IS_YEAR } else { kind };
        if kind != 0 && noted(kind) == 0 {
            note(kind, ((token >> 32) as u32).wrapping_add(1));
        }
        at = token as u32 & 0xffff;
        turn += 1;
    }
    let (time, day, month) = (noted(IS_TIME), noted(IS_DAY_OR_YEAR), noted(IS_MONTH));
    let year = date::year(noted(IS_YEAR).wrapping_sub(1));
    if time == 0 || day == 0 || month == 0 || !(1601..10_000).contains(&year) {
        return 0;
    }
    let when = date::seconds(year, month - 1, day - 1, time - 1);
    let now = u64::from(settings.slot(jiffies())) * u64::from(SLOT_SECONDS);
    if when <= now { PAST } else { FUTURE }
}

/// Kinds of tokens: a time of day, in seconds...
const IS_TIME: u64 = 4;
/// ...one or two digits...
const IS_DAY_OR_YEAR: u64 = 5;
/// ...three or four...
const IS_YEAR: u64 = 6;
/// ...the name of a month, counted from 0.
const IS_MONTH: u64 = 7;

/// The beginnings of the months' names.
static MONTHS: [u32; 12] = {
    let names = b"janfebmaraprmayjunjulaugsepoctnovdec";
    let (mut months, mut i) = ([0; 12], 0);
    while i < 12 {
        let name = [names[3 * i], names[3 * i + 1], names[3 * i + 2], 0];
        months[i] = u32::from_le_bytes(name) | 0x0020_2020;
        i += 1;
    }
    months
};

/// Longest token that matters, in bytes.
const LONGEST: u32 = 12;

/// Letters, digits and the colons between them; all else separates tokens.
#[inline(always)]
const fn is_of_token(byte: u8) -> bool {
    // A colon is next to the digits.
    (byte | 0x20).wrapping_sub(b'a') < 26 || byte.wrapping_sub(b'0') < 11
}

/// The number that stands at an offset, of up to four digits, and in the second half how many they are.
#[inline(always)]
fn number(bytes: Bytes, at: At) -> u64 {
    let (mut at, mut value, mut digits) = (at, 0_u64, 0_u64);
    while digits < 4 {
        let digit = bytes.byte(at).wrapping_sub(b'0');
        if digit > 9 {
            break;
        }
        value = value * 10 + u64::from(digit);
        at = at.plus(1);
        digits += 1;
    }
    value | digits << 32
}

/// [`number`], as a global function (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_number(at: u32) -> u64 {
    let Some(scratch) = SCRATCH.get(0) else { return 0 };
    number(Bytes::of(scratch), At::new(u64::from(at)))
}

/// The token at an offset of the scratch memory, or the separator there: offset behind it in the lowest two bytes, its kind in the next
/// two, its value in the upper half. A global function (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_date_token(at: u32) -> u64 {
    let Some(scratch) = SCRATCH.get(0) else { return 0xffff };
    let bytes = Bytes::of(scratch);
    let begin = At::new(u64::from(at));
    let mut end = begin;
    let mut turn = 0;
    while turn < LONGEST && is_of_token(bytes.byte(end)) {
        end = end.plus(1);
        turn += 1;
    }
    if end.0 == begin.0 {
        return begin.plus(1).0;
    }
    let number = lb_number(begin.0 as u32);
    let (value, digits) = (number & FOUR, number >> 32);
    let behind = begin.plus(digits);
    let (kind, value) = if digits == 0 {
        let name = (bytes.word(begin, 0) | CASE) as u32 & 0x00ff_ffff;
        let (mut month, mut i) = (12, 0);
        while i < 12 {
            if MONTHS[i] == name {
                month = i as u64;
            }
            i += 1;
        }
        (if month < 12 { IS_MONTH } else { 0 }, month)
    } else if digits <= 2 && bytes.byte(behind) == b':' {
        let minutes = lb_number(behind.plus(1).0 as u32);
        let behind = behind.plus(1 + (minutes >> 32));
        let seconds = if bytes.byte(behind) == b':' { lb_number(behind.plus(1).0 as u32) } else { 0 };
        (if seconds == 0 { 0 } else { IS_TIME }, value * 3600 + (minutes & FOUR) * 60 + (seconds & FOUR))
    } else {
        (if digits <= 2 { IS_DAY_OR_YEAR } else { IS_YEAR }, value)
    };
    end.0 | kind << 16 | value << 32
}

/// The hash of the path that cookies get which say none, of the request in a stash (RFC 6265 §5.1.4). A global function (see
/// [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_default_path(stash: u32) -> u32 {
    let Some(place) = STASHES.get(stash) else { return ROOT };
    let bytes = Bytes::of(place);
    let begin = At::new(u64::from(place.begin));
    let (near, far) = (zeros(bytes.word(begin, 0) ^ SPACES), zeros(bytes.word(begin, 8) ^ SPACES));
    let method = if near != 0 {
        lowest(near)
    } else if far != 0 {
        8 + lowest(far)
    } else {
        return ROOT;
    };
    let mut from = begin.plus(method + 1).0 as u32;
    if bytes.byte(At::new(u64::from(from))) != b'/' {
        // Behind the scheme and the host of a whole URL, if it is one (RFC 9112 §3.2.2).
        from = lb_next_slash(stash, lb_next_slash(stash, lb_next_slash(stash, from) + 1) + 1);
        if from == NOWHERE {
            return ROOT;
        }
    }
    let mut last = from;
    let mut turn = 0;
    while turn < PARTS {
        let next = lb_next_slash(stash, last + 1);
        if next == NOWHERE {
            break;
        }
        last = next;
        turn += 1;
    }
    if last == from {
        return ROOT;
    }
    lb_hash(stash, u64::from(from) | u64::from(last.wrapping_sub(from)) << 32, 0) as u32 | 4
}

/// Turns of a search for the next slash: parts of paths are shorter.
const PATH_TURNS: u32 = 8;

/// Finds the next slash of a path. A global function, as [`lb_next_attribute`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_next_slash(stash: u32, from: u32) -> u32 {
    let Some(place) = STASHES.get(stash) else { return NOWHERE };
    let bytes = Bytes::of(place);
    let hit = search::<PATH_TURNS>(bytes, from, |at, n| {
        let word = bytes.word(at, n);
        zeros(word ^ every(b'/'))
            | zeros(word ^ SPACES)
            | zeros(word ^ every(b'?'))
            | zeros(word ^ every(b'#'))
            | zeros(word ^ NEWLINES)
    });
    let hit = within(bytes, hit);
    if hit != NOWHERE && bytes.byte(At::new(u64::from(hit))) == b'/' { hit } else { NOWHERE }
}
