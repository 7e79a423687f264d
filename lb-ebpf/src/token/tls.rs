//! The server's name in a TLS ClientHello (RFC 8446 §4.1.2, RFC 6066 §3): sent in the clear, so a connection can be steered by it
//! without being decrypted. It is hashed to a backend, or leads to the pool of those that are listed for it, or both.

use super::proxy::{Begin, lb_proxy_unexpected, notes, offset};
use super::text::{At, Bytes, ONES, TOPS, be16, first, lowest};
use super::value::{SCRATCHED, of};
use super::{ABSENT, Found, HASHED, NAMED};
use crate::maps::{NAMES, SCRATCH, SERVICES, STASHES, settings};
use core::ffi::c_void;
use lb_common::hash::Sip;
use lb_common::name::{self, CASE, EXACT, MAX_WILDCARD_LABELS, UNKEYED, WILDCARD};
use lb_common::service::{Affinity, Service};
use lb_common::stash::{CUT, HELLO_BROKEN, STASH_BYTES, WHOLE};

/// What [`lb_hello`] says: there is no ClientHello...
const NONE: u32 = 0;
/// ...it stands in one record, or goes on behind what is there of one...
const AS_SENT: u32 = 1;
/// ...or it was put together in the scratch memory.
const TOGETHER: u32 = 2;

/// Content type of a record, and type of its message.
const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
/// Bytes of a record's header, and of that of its message.
const RECORD: u64 = 5;
const MESSAGE: u64 = 4;
/// Longest record of a message that is not encrypted, in bytes (RFC 8446 §5.1).
const MAX_RECORD: u64 = 1 << 14;
/// Turns in which a ClientHello is put together: a record of one byte, the shortest, takes one, and so do eight bytes of a longer one.
const TURNS: u32 = (STASH_BYTES as u32).div_ceil(RECORD as u32 + 1);
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
pub(super) fn find(entry: &Service, service: u32, stash: u32, begin: Begin) -> Found {
    let (memory, at) = match lb_hello(stash, begin) {
        NONE => return ABSENT,
        TOGETHER => (SCRATCHED, 0),
        _ => (stash, u32::from(offset(begin))),
    };
    let name = lb_server_name(memory, at);
    if name == 0 {
        return ABSENT;
    }
    if entry.names != 0 {
        lb_pool(service, stash, memory, name);
    }
    if entry.affinity != Affinity::Hashed as u8 {
        return NAMED;
    }
    let hash = lb_name_hash(memory, name, 0) as u32;
    let Some(place) = STASHES.get_ptr_mut(stash) else { return ABSENT };
    // SAFETY: a map value stays valid, and the caller has its lock.
    unsafe { (*place).hash = hash };
    HASHED
}

/// Looks for a ClientHello in a stash, and puts it together if it goes on in a further record (RFC 8446 §5.1). Notes in the stash
/// whether all of it is there. A global function (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_hello(stash: u32, begin: Begin) -> u32 {
    let Some(place) = STASHES.get_ptr_mut(stash) else { return NONE };
    // SAFETY: a map value stays valid, and the caller has its lock.
    let bytes = Bytes::of(unsafe { &*place });
    let at = At::new(u64::from(offset(begin)));
    let have = bytes.len().saturating_sub(at.0);
    let record = be16(bytes, at.plus(3));
    let message = message_at(bytes, at);
    let other = have >= 1 && bytes.byte(at) != HANDSHAKE
        || have > RECORD && bytes.byte(at.plus(RECORD)) != CLIENT_HELLO;
    let (whole, hello, more) = if other {
        (WHOLE, NONE, lb_proxy_unexpected(stash, at.0 as u32, u32::from(notes(begin))) as u8)
    } else if have <= RECORD {
        (CUT, NONE, 0)
    } else if have >= RECORD + MESSAGE && MESSAGE + message <= record {
        (if have >= RECORD + MESSAGE + message { WHOLE } else { CUT }, AS_SENT, 0)
    } else if RECORD + record >= have && record <= MAX_RECORD {
        (CUT, AS_SENT, 0)
    } else {
        let broken = lb_together(stash, at.0 as u32) != 0;
        let Some(together) = SCRATCH.get(0) else { return NONE };
        let there = u64::from(together.limit);
        let all = RECORD + MESSAGE + message_at(Bytes::of(together), At::new(0));
        let ended = there >= RECORD + MESSAGE && there >= all;
        let more = if broken && !ended { HELLO_BROKEN } else { 0 };
        (if ended || broken { WHOLE } else { CUT }, TOGETHER, more)
    };
    // SAFETY: as above.
    unsafe {
        (*place).begin = offset(begin);
        (*place).whole = whole;
        (*place).notes = notes(begin) | more;
    }
    hello
}

/// Bytes of the message at the beginning of a record, without its header.
#[inline(always)]
fn message_at(bytes: Bytes, record: At) -> u64 {
    u64::from(bytes.byte(record.plus(RECORD + 1))) << 16 | be16(bytes, record.plus(RECORD + 2))
}

/// One turn of [`lb_together`]: up to eight bytes of a record, behind its header if they are its first. How far it is, is kept in the
/// scratch memory, of which the verifier follows no numbers: `hash` is the offset in the stash, `pool` what is left of the record,
/// `limit` the offset in the scratch memory. `reason` becomes 1 where no record of a handshake follows.
extern "C" fn put(_turn: u64, context: *mut c_void) -> u64 {
    // SAFETY: the caller's, which lives longer than the loop.
    let stash = unsafe { *context.cast::<u64>() } as u32;
    let (Some(stash), Some(scratch)) = (STASHES.get(stash), SCRATCH.get_ptr_mut(0)) else { return 1 };
    // SAFETY: the value belongs to this processor while the program runs.
    let scratch = unsafe { &mut *scratch };
    let bytes = Bytes::of(stash);
    let mut at = At::new(u64::from(scratch.hash));
    let mut left = u64::from(scratch.pool);
    if left == 0 {
        if at.0 + RECORD > bytes.len() {
            return 1;
        }
        left = be16(bytes, at.plus(3));
        if bytes.byte(at) != HANDSHAKE || left == 0 || left > MAX_RECORD {
            scratch.reason = 1;
            return 1;
        }
        at = at.plus(RECORD);
    }
    let there = bytes.len().saturating_sub(at.0);
    let n = if left < there { left } else { there };
    let n = if n < 8 { n } else { 8 };
    let to = At::new(u64::from(scratch.limit));
    // SAFETY: a masked offset and a word lie within the scratch memory.
    unsafe {
        let word = bytes.word(at, 0).to_le();
        (&raw mut scratch.bytes).cast::<u8>().add(to.0 as usize).cast::<u64>().write_unaligned(word);
    }
    scratch.hash = at.plus(n).0 as u32;
    scratch.pool = (left - n) as u32;
    scratch.limit = to.plus(n).0 as u32;
    u64::from(n == 0)
}

/// Puts the records of a handshake that begin at an offset of a stash together into one, in the scratch memory, as far as they are
/// there. Returns 1 where something else follows. A global function (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_together(stash: u32, at: u32) -> u32 {
    let (Some(place), Some(scratch)) = (STASHES.get(stash), SCRATCH.get_ptr_mut(0)) else { return 0 };
    let header = Bytes::of(place).word(At::new(u64::from(at)), 0);
    let mut context = u64::from(stash);
    // SAFETY: the value belongs to this processor while the program runs; the callback and its context outlive the call, which is
    // synchronous.
    unsafe {
        (&raw mut (*scratch).bytes).cast::<u64>().write(header.to_le());
        ((*scratch).hash, (*scratch).pool, (*scratch).limit, (*scratch).reason) = (at, 0, RECORD as u32, 0);
        aya_ebpf::helpers::bpf_loop(TURNS, put as *mut c_void, (&raw mut context).cast(), 0);
        (&raw const (*scratch).reason).read_volatile()
    }
}

/// Finds the server's name in a ClientHello that stands at an offset of a memory, a stash or the scratch memory, in one record. A global
/// function (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_server_name(memory: u32, begin: u32) -> Span {
    let Some(from) = of(memory) else { return 0 };
    let bytes = Bytes::of(from);
    let begin = At::new(u64::from(begin));
    if bytes.byte(begin) != HANDSHAKE || bytes.byte(begin.plus(5)) != CLIENT_HELLO {
        return 0;
    }
    let len = bytes.len();
    let session = u64::from(bytes.byte(begin.plus(SESSION_ID)));
    let ciphers = begin.0 + SESSION_ID + 1 + session;
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
extern "C" fn lb_pool(service: u32, stash: u32, memory: u32, name: Span) -> u32 {
    let Some(entry) = SERVICES.get(service) else { return 0 };
    let mut pool = lb_listed(service, memory, name, u32::from(EXACT));
    if pool == 0 && entry.wildcards != 0 {
        let dots = lb_dots(memory, name);
        let mut labels = MAX_WILDCARD_LABELS;
        while labels != 0 && pool == 0 {
            if entry.wildcards >> labels & 1 != 0 && labels <= dots {
                let end = lb_behind(memory, name, dots + 1 - labels);
                pool = lb_listed(service, memory, end, u32::from(WILDCARD));
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
extern "C" fn lb_listed(service: u32, memory: u32, name: Span, kind: u32) -> u32 {
    if name >> 16 > name::MAX_NAME as u32 {
        return 0;
    }
    let hash = lb_name_hash(memory, name, 1);
    let key = name::Name { hash, service: service as u16, kind: kind as u16, _pad: 0 };
    // SAFETY: a map value stays valid.
    NAMES.get_ptr(key).map_or(0, |pool| unsafe { *pool })
}

/// As [`lb_common::name::hash`]: under the secret of the settings, or with 0 under none. A global function (see
/// [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_name_hash(memory: u32, name: Span, keyed: u32) -> u64 {
    let (Some(stash), Some(settings)) = (of(memory), settings()) else { return 0 };
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
extern "C" fn lb_dots(memory: u32, name: Span) -> u32 {
    let Some(stash) = of(memory) else { return 0 };
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
extern "C" fn lb_behind(memory: u32, name: Span, skip: u32) -> Span {
    let Some(stash) = of(memory) else { return 0 };
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
