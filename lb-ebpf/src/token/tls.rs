//! The server's name in a TLS ClientHello (RFC 8446 §4.1.2, RFC 6066 §3): sent in the clear, so a connection can be steered by it
//! without being decrypted. It is hashed to a backend, or leads to the pool of those that are listed for it, or both.

use super::text::{At, Bytes, ONES, TOPS, be16, first, lowest};
use super::{ABSENT, Found, HASHED, NAMED};
use crate::maps::{NAMES, SERVICES, STASHES, settings};
use lb_common::hash::Sip;
use lb_common::name::{self, CASE, EXACT, MAX_WILDCARD_LABELS, UNKEYED, WILDCARD};
use lb_common::service::{Affinity, Service};
use lb_common::stash::Stash;

/// Content type of a record, and type of its message.
const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
/// Header of a record, header of a message, version and random: what stands before the session id.
const SESSION_ID: u64 = 5 + 4 + 2 + 32;
/// Extensions that are looked at.
const EXTENSIONS: u32 = 32;
/// Words of a longest name (RFC 1035 §2.3.4).
const NAME_WORDS: u32 = 32;
const DOTS: u64 = b'.' as u64 * ONES;

/// Where a name, or the end of one, stands in a stash: its offset in the low half, its length in the high half. None when 0.
type Span = u32;

/// Notes in the stash the pool of the server's name, and what is hashed of it.
#[inline(always)]
pub(super) fn find(entry: &Service, service: u32, stash: u32) -> Found {
    let name = lb_server_name(stash);
    if name == 0 {
        return ABSENT;
    }
    if entry.names != 0 {
        lb_pool(service, stash, name);
    }
    if entry.affinity != Affinity::Hashed as u8 {
        return NAMED;
    }
    let hash = lb_name_hash(stash, name, 0) as u32;
    let Some(place) = STASHES.get_ptr_mut(stash) else { return ABSENT };
    // SAFETY: a map value stays valid, and the caller has its lock.
    unsafe { (*place).hash = hash };
    HASHED
}

/// Finds the server's name. A global function (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_server_name(stash: u32) -> Span {
    let Some(stash) = STASHES.get(stash) else { return 0 };
    let bytes = Bytes::of(stash);
    if bytes.byte(At::new(0)) != HANDSHAKE || bytes.byte(At::new(5)) != CLIENT_HELLO {
        return 0;
    }
    let len = bytes.len();
    let session = u64::from(bytes.byte(At::new(SESSION_ID)));
    let ciphers = SESSION_ID + 1 + session;
    let compression = ciphers + 2 + be16(bytes, At::new(ciphers));
    if compression + 4 > len {
        return 0;
    }
    let extensions = compression + 1 + u64::from(bytes.byte(At::new(compression)));
    let mut at = extensions + 2;
    let mut turn = 0;
    while turn < EXTENSIONS {
        if at + 9 > len {
            return 0;
        }
        let here = At::new(at);
        let size = be16(bytes, here.plus(2));
        if be16(bytes, here) == 0 {
            // A list's length, then the type of its first name, which is 0 for a host's, and that one's length.
            let name = be16(bytes, here.plus(7));
            if bytes.byte(here.plus(6)) != 0 || at + 9 + name > len {
                return 0;
            }
            let place = (at + 9) as u32 | (name as u32) << 16;
            return if name == 0 { 0 } else { place };
        }
        at += 4 + size;
        turn += 1;
    }
    0
}

/// Puts the pool of a name into the stash: that of the name itself, else that of the wildcard with the most labels that it
/// ends in, else 0. A global function (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_pool(service: u32, stash: u32, name: Span) -> u32 {
    let Some(entry) = SERVICES.get(service) else { return 0 };
    let mut pool = lb_listed(service, stash, name, u32::from(EXACT));
    if pool == 0 && entry.wildcards != 0 {
        let dots = lb_dots(stash, name);
        let mut labels = MAX_WILDCARD_LABELS;
        while labels != 0 && pool == 0 {
            if entry.wildcards >> labels & 1 != 0 && labels <= dots {
                let end = lb_behind(stash, name, dots + 1 - labels);
                pool = lb_listed(service, stash, end, u32::from(WILDCARD));
            }
            labels -= 1;
        }
    }
    if let Some(place) = STASHES.get_ptr_mut(stash) {
        // SAFETY: a map value stays valid, and the caller has its lock.
        unsafe { (*place).pool = pool };
    }
    pool
}

/// The pool of a name of a service, or 0. A global function (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_listed(service: u32, stash: u32, name: Span, kind: u32) -> u32 {
    if name >> 16 > name::MAX_NAME as u32 {
        return 0;
    }
    let hash = lb_name_hash(stash, name, 1);
    let key = name::Name { hash, service: service as u16, kind: kind as u16, _pad: 0 };
    // SAFETY: a map value stays valid.
    NAMES.get_ptr(key).map_or(0, |pool| unsafe { *pool })
}

/// As [`lb_common::name::hash`]: under the secret of the settings, or with 0 under none. A global function (see
/// [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_name_hash(stash: u32, name: Span, keyed: u32) -> u64 {
    let (Some(stash), Some(settings)) = (STASHES.get(stash), settings()) else { return 0 };
    let mut sip = Sip::new(if keyed != 0 { &settings.name_key } else { &UNKEYED });
    let bytes = Bytes::of(stash);
    let mut at = At::new(u64::from(name));
    let len = u64::from(name >> 16);
    let mut left = len;
    let mut turn = 0;
    while turn < NAME_WORDS && left != 0 {
        let word = bytes.word(at, 0) | CASE;
        if left < 8 {
            sip.absorb(word & first(left));
            break;
        }
        sip.absorb(word);
        left -= 8;
        at = at.plus(8);
        turn += 1;
    }
    sip.absorb(len);
    sip.finish()
}

/// The top bit of every byte that is a dot, of the next eight.
#[inline(always)]
fn dots(bytes: Bytes, at: At, left: u64) -> u64 {
    let word = (bytes.word(at, 0) | CASE) ^ DOTS;
    let tops = !((word & !TOPS).wrapping_add(!TOPS) | word) & TOPS;
    if left < 8 { tops & first(left) } else { tops }
}

/// How many there are.
#[inline(always)]
const fn count(tops: u64) -> u64 {
    (tops >> 7).wrapping_mul(ONES) >> 56
}

/// The dots of a name. A global function (see [`crate::cold`]), because it is a loop.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_dots(stash: u32, name: Span) -> u32 {
    let Some(stash) = STASHES.get(stash) else { return 0 };
    let bytes = Bytes::of(stash);
    let mut at = At::new(u64::from(name));
    let mut left = u64::from(name >> 16);
    let mut sum = 0;
    let mut turn = 0;
    while turn < NAME_WORDS && left != 0 {
        sum += count(dots(bytes, at, left));
        at = at.plus(8);
        left = left.saturating_sub(8);
        turn += 1;
    }
    sum as u32
}

/// What stands behind so many dots of a name. A global function (see [`crate::cold`]), because it is a loop.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_behind(stash: u32, name: Span, skip: u32) -> Span {
    let Some(stash) = STASHES.get(stash) else { return 0 };
    let bytes = Bytes::of(stash);
    let mut at = At::new(u64::from(name));
    let mut left = u64::from(name >> 16);
    let mut skip = u64::from(skip);
    let mut turn = 0;
    while turn < NAME_WORDS && left != 0 {
        let mut tops = dots(bytes, at, left);
        let here = count(tops);
        if skip <= here {
            // A count of turns that the verifier can follow: that each turn takes a dot away is nothing that it knows, and 6.1 goes
            // on ("The sequence of 8193 jumps is too complex").
            let mut dot = 1;
            while dot < 8 && dot < skip {
                tops &= tops.wrapping_sub(1);
                dot += 1;
            }
            let next = lowest(tops) + 1;
            return at.plus(next).0 as u32 | (left.saturating_sub(next) as u32) << 16;
        }
        skip -= here;
        at = at.plus(8);
        left = left.saturating_sub(8);
        turn += 1;
    }
    0
}

/// Whether the first record is there as a whole, if it is a handshake's.
#[inline(always)]
pub(super) fn is_whole(stash: &Stash) -> bool {
    let bytes = Bytes::of(stash);
    bytes.byte(At::new(0)) != HANDSHAKE || 5 + be16(bytes, At::new(3)) <= bytes.len()
}
