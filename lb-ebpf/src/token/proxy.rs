//! A header of the PROXY protocol in front of what a client sends (HAProxy's `proxy-protocol.txt`): the proxy that sends it tells
//! whose connection it forwards. It goes on to the backend as a part of the stream; here it tells where the search begins, and a
//! service with [`Affinity::Source`] the address that is hashed.

use super::http::lb_next_newline;
use super::text::{At, Bytes, NOWHERE, be16, first};
use super::{ABSENT, Found};
use crate::maps::{SCRATCH, SERVICES, STASHES};
use core::ffi::c_void;
use lb_common::addr::{Addr, Be16};
use lb_common::maglev::client_hash;
use lb_common::proxy::{AddrText, MAX_V1, V1, V2, V2_LEN};
use lb_common::service::Affinity;
use lb_common::stash::{
    CUT, PROXY_INVALID, PROXY_MISSING, PROXY_TOO_LONG, PROXY_UNEXPECTED, STASH_BYTES, STASH_ROOM, Stash,
    WHOLE,
};

/// Where what a service reads begins, and what was seen before it: an offset in the low half, [`lb_common::stash::Stash::notes`] in the
/// high half. [`NOWHERE`] when that is still to come.
pub(crate) type Begin = u32;

/// The offset of a [`Begin`].
#[inline(always)]
pub(crate) const fn offset(begin: Begin) -> u16 {
    begin as u16
}

/// The notes of a [`Begin`].
#[inline(always)]
pub(crate) const fn notes(begin: Begin) -> u8 {
    (begin >> 16) as u8
}

#[inline(always)]
const fn begin(offset: u32, notes: u8) -> Begin {
    offset | (notes as u32) << 16
}

/// What a header of version 1 begins with, in the low bytes of a word.
const TEXT: u64 = u64::from_le_bytes([V1[0], V1[1], V1[2], V1[3], V1[4], V1[5], 0, 0]);
/// What one of version 2 begins with: eight bytes, and four.
const BINARY: (u64, u64) = (
    u64::from_le_bytes([V2[0], V2[1], V2[2], V2[3], V2[4], V2[5], V2[6], V2[7]]),
    u64::from_le_bytes([V2[8], V2[9], V2[10], V2[11], 0, 0, 0, 0]),
);
/// What follows in version 1: the family, and a space.
const TCP4: u64 = u64::from_le_bytes(*b"TCP4 \0\0\0");
const TCP6: u64 = u64::from_le_bytes(*b"TCP6 \0\0\0");
const UNKNOWN: u64 = u64::from_le_bytes(*b"UNKNOWN\0");
/// Where its first address stands.
const ADDRESS: u64 = 11;
/// Families of version 2: TCP over IPv4, TCP over IPv6; and the bytes of their addresses and ports.
const INET: (u8, u64) = (0x11, 12);
const INET6: (u8, u64) = (0x21, 36);

/// How far a stash goes along with what a header begins with.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Match {
    No,
    /// As far as it goes.
    Part,
    Whole,
}

/// Compares the bytes behind an offset with the beginning of a header of version 2, and of one of version 1.
#[inline(always)]
fn begins(bytes: Bytes, at: At) -> (Match, Match) {
    let have = bytes.len().saturating_sub(at.0);
    let of = |len: u64| if have < len { first_of(have) } else { first_of(len) };
    let rest = have.saturating_sub(8);
    let mask = if rest < 4 { first_of(rest) } else { first_of(4) };
    let wrong = (bytes.word(at, 0) ^ BINARY.0) & of(8) | (bytes.word(at, 8) ^ BINARY.1) & mask;
    let binary = matched(wrong, have, V2.len() as u64);
    let wrong = (bytes.word(at, 0) ^ TEXT) & of(V1.len() as u64);
    (binary, matched(wrong, have, V1.len() as u64))
}

/// Mask of the first `n` bytes of a word, of up to eight.
#[inline(always)]
pub(super) const fn first_of(n: u64) -> u64 {
    if n >= 8 { u64::MAX } else { first(n) }
}

#[inline(always)]
const fn matched(wrong: u64, have: u64, len: u64) -> Match {
    if wrong != 0 {
        Match::No
    } else if have < len {
        Match::Part
    } else {
        Match::Whole
    }
}

/// Reads the header that a service's clients begin with. Leaves in the stash the hash of the address in it, for a service that goes by
/// that, and whether more is to come. A global function (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_proxy(service: u32, stash: u32) -> Begin {
    let Some(place) = STASHES.get_ptr_mut(stash) else { return 0 };
    // SAFETY: a map value stays valid, and the caller has its lock.
    let bytes = Bytes::of(unsafe { &*place });
    let begin = match begins(bytes, At::new(0)) {
        (Match::No, Match::No) => begin(0, PROXY_MISSING),
        (Match::Whole, _) => lb_proxy_binary(service, stash),
        (_, Match::Whole) => lb_proxy_text(service, stash),
        _ => NOWHERE,
    };
    // SAFETY: as above.
    unsafe {
        (*place).begin = 0;
        (*place).notes = 0;
        (*place).whole = if begin == NOWHERE { CUT } else { WHOLE };
    }
    begin
}

/// Reads a header of version 2. A global function (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_proxy_binary(service: u32, stash: u32) -> Begin {
    let Some(place) = STASHES.get(stash) else { return 0 };
    let bytes = Bytes::of(place);
    let end = u64::from(V2_LEN) + be16(bytes, At::new(14));
    if bytes.len() < u64::from(V2_LEN) {
        return NOWHERE;
    }
    let (command, family) = (bytes.byte(At::new(12)), bytes.byte(At::new(13)));
    let room = end - u64::from(V2_LEN);
    // LOCAL: the proxy's own, to see whether anybody is there; what stands behind is of no account.
    let (v4, v6) = (command == 0x21 && family == INET.0, command == 0x21 && family == INET6.0);
    if command & 0xfe != 0x20 || v4 && room < INET.1 || v6 && room < INET6.1 {
        return begin(0, PROXY_INVALID);
    }
    let too_long = end > STASH_BYTES as u64;
    if bytes.len() < end && !too_long {
        return NOWHERE;
    }
    let (hi, lo) = (bytes.word(At::new(16), 0), bytes.word(At::new(16), 8));
    if v4 {
        go_by(service, stash, Addr::from_v4_bits((hi as u32).to_le()));
    } else if v6 {
        go_by(service, stash, Addr { hi: hi.to_le(), lo: lo.to_le() });
    }
    if too_long { begin(0, PROXY_TOO_LONG) } else { begin(end as u32, 0) }
}

/// Reads a header of version 1. A global function (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_proxy_text(service: u32, stash: u32) -> Begin {
    let (Some(place), Some(entry)) = (STASHES.get(stash), SERVICES.get(service)) else { return 0 };
    let bytes = Bytes::of(place);
    let newline = lb_next_newline(stash, 0);
    if newline == NOWHERE && bytes.len() < u64::from(MAX_V1) {
        return NOWHERE;
    }
    let family = bytes.word(At::new(V1.len() as u64), 0);
    let (v4, v6) = (family & first(5) == TCP4, family & first(5) == TCP6);
    let known = v4 || v6 || family & first(7) == UNKNOWN;
    let ends = newline < MAX_V1 && bytes.byte(At::new(u64::from(newline).wrapping_sub(1))) == b'\r';
    if !known || !ends {
        return begin(0, PROXY_INVALID);
    }
    if (v4 || v6) && entry.affinity == Affinity::Source as u8 && lb_proxy_address(service, stash) == 0 {
        return begin(0, PROXY_INVALID);
    }
    begin(newline + 1, 0)
}

/// Where the text of an address is read: how far it was read, and what it says so far. In memory of this processor, of which the verifier
/// follows no numbers.
#[repr(C)]
struct Reading {
    at: u64,
    text: AddrText,
}

/// What is read stands in the scratch memory.
const _: () = assert!(size_of::<Reading>() <= STASH_ROOM);
const _: () = assert!(core::mem::offset_of!(Stash, bytes).is_multiple_of(align_of::<Reading>()));

/// The scratch memory as a [`Reading`].
#[inline(always)]
fn reading() -> Option<*mut Reading> {
    let scratch = SCRATCH.get_ptr_mut(0)?;
    // SAFETY: a field of a valid map value, whose alignment is that of a word.
    Some(unsafe { (&raw mut (*scratch).bytes).cast() })
}

/// One turn of [`lb_proxy_address`]: one byte. Ends at a space.
extern "C" fn read_address(_turn: u64, context: *mut c_void) -> u64 {
    // SAFETY: the caller's, which lives longer than the loop.
    let stash = unsafe { *context.cast::<u64>() } as u32;
    let (Some(place), Some(reading)) = (STASHES.get(stash), reading()) else { return 1 };
    // SAFETY: the value belongs to this processor while the program runs.
    let reading = unsafe { &mut *reading };
    let byte = Bytes::of(place).byte(At::new(reading.at));
    if byte == b' ' {
        return 1;
    }
    reading.at += 1;
    reading.text.push(byte);
    0
}

/// Leaves in a stash the hash of the first address in its header of version 1; 0 when that is none. A global function (see
/// [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_proxy_address(service: u32, stash: u32) -> u32 {
    let Some(reading) = reading() else { return 0 };
    let mut context = u64::from(stash);
    // SAFETY: the value belongs to this processor while the program runs; the callback and its context outlive the call, which is
    // synchronous.
    let address = unsafe {
        reading.write(Reading { at: ADDRESS, text: AddrText::default() });
        let callback = read_address as *mut c_void;
        aya_ebpf::helpers::bpf_loop(MAX_V1, callback, (&raw mut context).cast(), 0);
        (*reading).text.finish()
    };
    let Some(address) = address else { return 0 };
    go_by(service, stash, address);
    1
}

/// Leaves the hash of a client's address in a stash, if its service goes by that.
#[inline(always)]
fn go_by(service: u32, stash: u32, address: Addr) {
    let (Some(entry), Some(place)) = (SERVICES.get(service), STASHES.get_ptr_mut(stash)) else { return };
    if entry.affinity == Affinity::Source as u8 {
        // SAFETY: a map value stays valid, and the caller has its lock.
        unsafe { (*place).hash = client_hash(address, Be16::new(0)) };
    }
}

/// Notes what was seen of a header by which alone a service goes. A global function (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn lb_proxied(stash: u32, begin: Begin) -> Found {
    if let Some(place) = STASHES.get_ptr_mut(stash) {
        // SAFETY: a map value stays valid, and the caller has its lock.
        unsafe { ((*place).begin, (*place).notes) = (offset(begin), notes(begin)) };
    }
    ABSENT
}

/// Whether a header begins at an offset of a stash where none is expected: what is to be noted of it, beside what `noted` says of one
/// that is. A global function (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn lb_proxy_unexpected(stash: u32, at: u32, noted: u32) -> u32 {
    let Some(place) = STASHES.get(stash) else { return 0 };
    let (binary, text) = begins(Bytes::of(place), At::new(u64::from(at)));
    let known = noted as u8 & (PROXY_INVALID | PROXY_TOO_LONG) != 0;
    if !known && (binary == Match::Whole || text == Match::Whole) { u32::from(PROXY_UNEXPECTED) } else { 0 }
}
