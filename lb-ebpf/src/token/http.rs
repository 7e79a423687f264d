//! The token, or the key that is hashed or was learned, in an HTTP/1.1 request: in a cookie (RFC 6265 §4.2), in any other header
//! field, or in a parameter of the target's query. Any order of fields, their names in any case, any place among other cookies.
//! Nothing behind the empty line that ends the head is looked at.
//!
//! Works on the stash, where the payload has just been copied. [`locate`] finds the places at which the key's name stands,
//! [`value`] says where its value ends.
//!
//! [`locate`]: super::locate
//! [`value`]: super::value

use super::http2::lb_preface;
use super::locate::{END, OFFSET, locate};
use super::proxy::{Begin, lb_proxy_unexpected, notes, offset};
use super::text::{At, Bytes, NEWLINES, NOWHERE, RETURNS, TOPS, TURNS, lowest, search, within, zeros};
use super::value::{CUT, SCRATCHED, lb_decode, lb_hash, lb_span, of, span};
use super::{ABSENT, Found, HASHED, INVALID, LEARNED, UNKNOWN, VALID};
use crate::homes::{asked, key_of, lb_home, set_key};
use crate::maps::{BACKENDS, SERVICES, STASHES, count, settings};
use crate::scope::lb_default_path;
use lb_common::counter::Counter;
use lb_common::maglev::NOBODY;
use lb_common::service::{Affinity, Place, Service};
use lb_common::stash::{Claim, HTTP2, OPEN, PROXY_INVALID, PROXY_TOO_LONG, Stash, WHOLE};
use lb_common::token::TOKEN_TEXT_LEN;

/// How many values of the key's name are looked at in one request: whoever sends more shall not make work.
const KEYS: u32 = 16;

/// Looks for the service's key in a stash, up to its limit, and verifies or hashes what it holds. Where the name stands more than
/// once: of tokens the one that verifies, of learned keys one that is known, else the first that is not empty.
///
/// A global function (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_keys(service: u32, stash: u32, begin: Begin) -> Found {
    let (Some(place), Some(entry)) = (STASHES.get_ptr_mut(stash), SERVICES.get(service)) else {
        return ABSENT;
    };
    // SAFETY: a map value stays valid, and the caller has its lock.
    let (owner, begin, notes) = unsafe {
        let (begin, more) = begins(Bytes::of(&*place), stash, u64::from(offset(begin)), notes(begin));
        (*place).whole = WHOLE;
        (*place).begin = begin;
        (*place).notes = more;
        // Read again: of what comes from memory the verifier knows the same whichever way led there.
        let begin = (&raw const (*place).begin).read_volatile();
        ((*place).owner as u32, u32::from(begin), (&raw const (*place).notes).read_volatile())
    };
    let learns = entry.affinity == Affinity::Learned as u8;
    if learns {
        // The key that stands there is that of a flow which had the entry before.
        set_key(owner.wrapping_sub(1), 0);
    }
    if notes & (HTTP2 | PROXY_INVALID | PROXY_TOO_LONG) != 0 {
        // None of it is a request.
        return ABSENT;
    }
    // SAFETY: as above.
    let bytes = Bytes::of(unsafe { &*place });
    if learns {
        note_request(bytes, stash, owner.wrapping_sub(1), begin);
    }
    let mut found = ABSENT;
    let mut from = begin;
    let mut turn = 0;
    while turn < KEYS {
        let at = locate(bytes, stash, service, entry, from);
        if at >= END {
            // SAFETY: as above.
            unsafe { (*place).whole = if at == END { WHOLE } else { OPEN } };
            return found;
        }
        found = if entry.affinity == Affinity::Signed as u8 {
            signed(bytes, stash, service, entry, at & OFFSET, found)
        } else {
            lb_value(stash, service, at & OFFSET, found)
        };
        if found == VALID || found == HASHED {
            return found;
        }
        from = at;
        turn += 1;
    }
    count(service as u16, Counter::KeysIgnored as u32);
    found
}

/// Notes of a request what its response is judged by.
#[inline(always)]
fn note_request(bytes: Bytes, stash: u32, flow: u32, begin: u32) {
    let path = lb_default_path(stash);
    if let Some(known) = asked(flow) {
        let begin = At::new(u64::from(begin));
        // SAFETY: a map value stays valid; the client's path alone writes these.
        unsafe {
            (*known).path = path;
            (*known).heads = (*known).heads & !1 | u16::from(bytes.word(begin, 0) << 24 == HEAD << 24);
        }
    }
}

const HEAD: u64 = u64::from_le_bytes(*b"HEAD \0\0\0");

/// Finds the next newline in a stash. A global function, because it is a loop (see [`crate::token::locate`]).
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_next_newline(stash: u32, from: u32) -> u32 {
    let Some(stash) = STASHES.get(stash) else { return NOWHERE };
    let bytes = Bytes::of(stash);
    within(bytes, search::<TURNS>(bytes, from, |at, n| zeros(bytes.word(at, n) ^ NEWLINES)))
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
    let (bytes, begin) = (Bytes::of(place), u64::from(place.begin));
    let word = bytes.word(At::new(begin), 0);
    let mut i = 0;
    while i < 3 {
        let letter = (word >> (8 * i)) as u8;
        if begin + i < bytes.len() && !letter.is_ascii_uppercase() {
            return 0;
        }
        i += 1;
    }
    let newline = within(bytes, lb_next_newline(stash, begin as u32));
    if newline == NOWHERE {
        return 1;
    }
    let end = u64::from(newline);
    let end = if bytes.byte(At::new(end.wrapping_sub(1))) == b'\r' { end.wrapping_sub(1) } else { end };
    u32::from(bytes.word(At::new(end.wrapping_sub(8)), 0) << 8 == VERSION << 8)
}

/// Where a request begins: behind empty lines, a few of which servers pass over (RFC 9112 §2.2). With what was noted of the stash.
#[inline(always)]
fn begins(bytes: Bytes, stash: u32, from: u64, notes: u8) -> (u16, u8) {
    let from = At::new(from);
    let word = bytes.word(from, 0);
    if word as u16 == PR {
        // A header of the PROXY protocol, the beginning of HTTP/2, or PROPFIND.
        return (from.0 as u16, notes | lb_preface(stash, from.0 as u32, u32::from(notes)) as u8);
    }
    let ends = zeros(word ^ RETURNS) | zeros(word ^ NEWLINES);
    let others = !ends & TOPS;
    if ends & 0x80 == 0 || others == 0 {
        return (from.0 as u16, notes);
    }
    (
        from.plus(lowest(others)).0 as u16,
        notes | lb_proxy_unexpected(stash, from.0 as u32, u32::from(notes)) as u8,
    )
}

const PR: u16 = u16::from_le_bytes(*b"PR");
/// Hashes the value that stands at an offset of a stash. Leaves in the stash the hash of the first one, and, of a session that a
/// backend is known to have begun, where that is at home. `found` is what values before it were; returns what they are with it.
///
/// A global function (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_value(stash: u32, service: u32, at: u32, found: u32) -> u32 {
    let (Some(place), Some(entry)) = (STASHES.get_ptr_mut(stash), SERVICES.get(service)) else {
        return found;
    };
    // SAFETY: a map value stays valid, and the caller has its lock.
    let claim = unsafe { &mut *place };
    let span = span(Bytes::of(claim), stash, service, entry, at);
    if span == CUT || span >> 32 == 0 {
        return found;
    }
    if entry.affinity != Affinity::Learned as u8 {
        let decoded = if entry.place == Place::Query as u8 { lb_decode(stash, span) } else { 0 };
        let (memory, span) = if decoded == 0 { (stash, span) } else { (SCRATCHED, u64::from(decoded) << 32) };
        claim.hash = lb_hash(memory, span, 0) as u32;
        return HASHED;
    }
    let tag = lb_hash(stash, span, service);
    let flow = (claim.owner as u32).wrapping_sub(1);
    if found == ABSENT {
        set_key(flow, tag);
    } else if key_of(flow) != tag {
        // Which of them a response speaks of, nobody can tell.
        set_key(flow, 0);
    }
    if found == LEARNED {
        return found;
    }
    let slot = lb_home(service, tag);
    if found == ABSENT || slot != u32::from(NOBODY) {
        claim.hash = lb_hash(stash, span, 0) as u32;
    }
    at_home(claim, service, slot)
}

/// Leaves in a stash where the session of a tag is at home, as a token would say it.
#[inline(always)]
pub(crate) fn recognise(stash: &mut Stash, service: u32, tag: u64) -> Found {
    at_home(stash, service, lb_home(service, tag))
}

#[inline(always)]
fn at_home(stash: &mut Stash, service: u32, slot: u32) -> Found {
    if slot == u32::from(NOBODY) {
        return UNKNOWN;
    }
    // Who handed it out knows best whether it still knows it: no instance is older than another.
    let epoch = BACKENDS.get(slot).map_or(0, |backend| backend.epoch);
    stash.claim = Claim { service: service as u16, slot: slot as u16, epoch, hash: stash.hash, _pad: 0 };
    LEARNED
}

/// Looks for the service's key in a stash, behind an offset and up to its limit, and verifies or hashes what it holds.
#[inline(always)]
pub(crate) fn find(service: u32, stash: u32, begin: Begin) -> Found {
    lb_keys(service, stash, begin)
}

/// Verifies the token that stands as a value at an offset of a stash, in whatever form. `found` is what values before it were;
/// returns what they are with it.
#[inline(always)]
fn signed(bytes: Bytes, stash: u32, service: u32, entry: &Service, at: u32, found: Found) -> Found {
    let mut this = ABSENT;
    let mut whole = ends_behind(bytes, entry, u64::from(at) + TOKEN_TEXT_LEN as u64);
    if whole {
        this = lb_verify(stash, stash, at);
        // In percent form it can be as long.
        whole = entry.place != Place::Query as u8;
    }
    if this != VALID && !whole {
        let other = lb_verify_other(stash, service, at);
        this = if other == ABSENT { this } else { other };
    }
    if this == ABSENT { found } else { this }
}

/// Whether a value ends at an offset, as nearly all of them do: with its line, or at what comes between two of them.
#[inline(always)]
fn ends_behind(bytes: Bytes, entry: &Service, end: u64) -> bool {
    let word = bytes.word(At::new(end), 0);
    let byte = word as u8;
    let separates = match Place::from_bits(entry.place) {
        Place::Header => false,
        Place::Query => byte == b'&' || byte == b' ',
        _ => byte == b';',
    };
    (separates || word as u16 == u16::from_le_bytes(*b"\r\n")) && end < bytes.len()
}

/// Verifies the token that stands as a value at an offset of a stash: with white space or quotes around it, or in percent form in
/// a query. A value of another length is none. A global function (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_verify_other(stash: u32, service: u32, at: u32) -> Found {
    let Some(entry) = SERVICES.get(service) else { return ABSENT };
    let span = lb_span(stash, service, at);
    if span == CUT || span >> 32 == 0 {
        return ABSENT;
    }
    let in_query = entry.place == Place::Query as u8;
    let decoded = if in_query { lb_decode(stash, span) } else { 0 };
    let (memory, at, len) =
        if decoded == 0 { (stash, span as u32, span >> 32) } else { (SCRATCHED, 0, u64::from(decoded)) };
    if len == TOKEN_TEXT_LEN as u64 { lb_verify(stash, memory, at) } else { INVALID }
}

/// Verifies the token whose text stands at an offset of a memory, a stash or the scratch memory. What it says is left in the stash.
///
/// A global function (see [`crate::cold`]), apart from [`lb_verify_other`]: it needs much stack, and what that calls needs some, too.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_verify(stash: u32, memory: u32, at: u32) -> Found {
    let (Some(settings), Some(place), Some(from)) = (settings(), STASHES.get_ptr_mut(stash), of(memory))
    else {
        return ABSENT;
    };
    let (bytes, text) = (Bytes::of(from), At::new(u64::from(at)));
    if text.0 + TOKEN_TEXT_LEN as u64 > bytes.len() {
        return ABSENT;
    }
    // SAFETY: a map value stays valid, and the caller has its lock; the token's text lies within the memory.
    unsafe { super::verify(settings, bytes.token(text), &mut *place) }
}
