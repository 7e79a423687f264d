//! Values: where they end, white space and quotes around them, percent forms, and hashes of them whole.

use super::locate::lb_parameter_end;
use super::text::{
    At, Bytes, NEWLINES, NOWHERE, RETURNS, SEMICOLONS, SPACES, TABS, TURNS, every, first, highest, is_blank,
    nonzeros, search, within, zeros,
};
use crate::bounds::barrier_ptr;
use crate::maps::{SCRATCH, SERVICES, STASHES, settings};
use core::ffi::c_void;
use lb_common::hash::Sip;
use lb_common::home::usable;
use lb_common::service::{Place, Service};
use lb_common::stash::{STASH_BYTES, Stash};

/// A value in a stash: the offset of its first byte in the low half, its length in the high half. Empty when the length is 0.
pub(crate) type Span = u64;
/// Not a value: it goes on behind what is there.
pub(crate) const CUT: Span = u64::MAX;
/// In place of the index of a stash: this processor's scratch memory.
pub(crate) const SCRATCHED: u32 = u32::MAX;

/// The value at an offset of a stash, up to what ends a cookie, a parameter or a line, without white space and quotes around it
/// (RFC 9110 §5.5, RFC 6265 §4.1.1). A global function (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_span(memory: u32, service: u32, at: u32) -> Span {
    let (Some(stash), Some(entry)) = (of(memory), SERVICES.get(service)) else { return CUT };
    span(Bytes::of(stash), memory, service, entry, at)
}

/// The same, of these bytes.
#[inline(always)]
pub(super) fn span(bytes: Bytes, memory: u32, service: u32, entry: &Service, at: u32) -> Span {
    let in_query = entry.place == Place::Query as u8;
    let end = if in_query { lb_parameter_end(memory, at) } else { lb_value_end(memory, service, at) };
    if end == NOWHERE {
        return CUT;
    }
    let (mut from, mut end) = (At::new(u64::from(at)), At::new(u64::from(end)));
    if in_query {
        return from.0 | end.0.saturating_sub(from.0) << 32;
    }
    if bytes.byte(At::new(end.0.wrapping_sub(1))) == b'\r' {
        end = At::new(end.0.wrapping_sub(1));
    }
    if is_blank(bytes.byte(from)) {
        from = At::new(u64::from(lb_behind_blanks(memory, from.0 as u32)));
    }
    let last = bytes.byte(At::new(end.0.wrapping_sub(1)));
    if is_blank(last) || last == b'\r' {
        end = At::new(u64::from(lb_before_blanks(memory, from.0 as u32, end.0 as u32)));
    }
    if entry.place == Place::Cookie as u8
        && bytes.byte(from) == b'"'
        && from.0 + 2 <= end.0
        && bytes.byte(At::new(end.0.wrapping_sub(1))) == b'"'
    {
        from = from.plus(1);
        end = At::new(end.0.wrapping_sub(1));
    }
    from.0 | end.0.saturating_sub(from.0) << 32
}

/// Offset of the first byte at or behind an offset that is no white space (RFC 6265 §5.2), or [`NOWHERE`]. A global function, as
/// [`lb_span`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_behind_blanks(memory: u32, at: u32) -> u32 {
    let Some(stash) = of(memory) else { return NOWHERE };
    let bytes = Bytes::of(stash);
    let hit = search::<ALL_TURNS>(bytes, at, |at, n| {
        let word = bytes.word(at, n);
        nonzeros(word ^ SPACES) & nonzeros(word ^ TABS)
    });
    within(bytes, hit)
}

/// How many words of white space behind a value are left away.
const BACK: u32 = 48;

/// Offset behind the last byte before `end`, and not before `from`, that is neither white space nor a carriage return. A global
/// function, as [`lb_span`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_before_blanks(memory: u32, from: u32, end: u32) -> u32 {
    let Some(stash) = of(memory) else { return end };
    let bytes = Bytes::of(stash);
    let mut end = u64::from(end);
    let mut turn = 0;
    while turn < BACK && end > u64::from(from) {
        let at = At::new(end.wrapping_sub(8));
        let word = bytes.word(at, 0);
        let solid = nonzeros(word ^ SPACES) & nonzeros(word ^ TABS) & nonzeros(word ^ RETURNS);
        if solid != 0 {
            let end = (at.0 + highest(solid) + 1) as u32;
            return if end < from { from } else { end };
        }
        end = at.0;
        turn += 1;
    }
    from
}

/// A stash, or the scratch memory.
#[inline(always)]
pub(super) fn of(memory: u32) -> Option<&'static Stash> {
    if memory == SCRATCHED {
        // Or the compiler makes one call of both, whose map is not known before it is made: the kernel puts the lookup in the place of
        // other calls, and here it would really call it, several times for each key.
        let scratch = barrier_ptr(SCRATCH.get_ptr(0)?);
        // SAFETY: a map value stays valid, and no other processor has it.
        Some(unsafe { &*scratch })
    } else {
        STASHES.get(memory)
    }
}

/// Turns of a search through all that offsets reach.
pub(crate) const ALL_TURNS: u32 = 64;
const _: () = assert!(ALL_TURNS >= TURNS);

/// Offset of what ends the value of a cookie or a header field that stands at an offset, or [`NOWHERE`]. A global function, as [`lb_span`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_value_end(memory: u32, service: u32, at: u32) -> u32 {
    let (Some(stash), Some(entry)) = (of(memory), SERVICES.get(service)) else { return NOWHERE };
    let bytes = Bytes::of(stash);
    // What ends a value, beside the end of its line: nothing else, in a header field.
    let end = if entry.place == Place::Header as u8 { NEWLINES } else { SEMICOLONS };
    let hit = search::<ALL_TURNS>(bytes, at, |at, n| {
        let word = bytes.word(at, n);
        zeros(word ^ end) | zeros(word ^ NEWLINES)
    });
    within(bytes, hit)
}

/// Words of a longest value.
const WORDS: u32 = 512;

/// The hash of a value in a stash, or in the scratch memory: of the whole of it, see [`lb_common::home::tag`] and
/// [`lb_common::home::spread`]. Under the secret of the settings for a service, or the same on every node when `service` is 0.
///
/// A global function, as [`lb_span`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_hash(memory: u32, span: Span, service: u32) -> u64 {
    let (Some(stash), Some(settings)) = (of(memory), settings()) else { return 0 };
    let bytes = Bytes::of(stash);
    let mut sip = Sip::new(&[0, 0]);
    if service != 0 {
        sip = Sip::new(&settings.home_key);
        sip.absorb(u64::from(service as u16));
    }
    let len = span >> 32;
    let mut at = At::new(span);
    let mut left = len;
    let mut turn = 0;
    while turn < WORDS && left >= 8 {
        sip.absorb(bytes.word(at, 0));
        at = at.plus(8);
        left -= 8;
        turn += 1;
    }
    if left != 0 {
        sip.absorb(bytes.word(at, 0) & first(left));
    }
    sip.absorb(len);
    usable(sip.finish())
}

/// The byte that stands in percent form at an offset.
#[inline(always)]
fn percent(bytes: Bytes, at: At) -> Option<u8> {
    let word = bytes.word(at, 0);
    if word as u8 != b'%' {
        return None;
    }
    let (high, low) = (digit((word >> 8) as u8), digit((word >> 16) as u8));
    if (high | low) > 15 { None } else { Some(high << 4 | low) }
}

/// A hexadecimal digit; 255 for what is none.
#[inline(always)]
const fn digit(byte: u8) -> u8 {
    let letter = (byte | 0x20).wrapping_sub(b'a');
    let decimal = byte.wrapping_sub(b'0');
    if decimal < 10 {
        decimal
    } else if letter < 6 {
        letter + 10
    } else {
        255
    }
}

/// The byte that stands at an offset of a stash, in whatever form, and in the second byte how many it takes (RFC 3986 §2.1). A
/// global function, as [`lb_span`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn lb_character(stash: u32, at: u32) -> u32 {
    let Some(stash) = STASHES.get(stash) else { return 1 << 8 };
    let bytes = Bytes::of(stash);
    let at = At::new(u64::from(at));
    match percent(bytes, at) {
        Some(byte) => u32::from(byte) | 3 << 8,
        None => u32::from(bytes.byte(at)) | 1 << 8,
    }
}

/// One turn of [`lb_decode`]: one byte, in whatever form. How far it is, is kept in the scratch memory, of which the verifier
/// follows no numbers.
extern "C" fn decode(_turn: u64, context: *mut c_void) -> u64 {
    // SAFETY: the caller's, which lives longer than the loop.
    let stash = unsafe { *context.cast::<u64>() } as u32;
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else { return 1 };
    // SAFETY: the value belongs to this processor while the program runs.
    let scratch = unsafe { &mut *scratch };
    if scratch.hash >= scratch.pool {
        return 1;
    }
    let character = lb_character(stash, scratch.hash);
    let byte = if character == u32::from(b'+') | 1 << 8 { b' ' } else { character as u8 };
    let to = At::new(u64::from(scratch.limit));
    // SAFETY: a masked offset lies within the scratch memory.
    unsafe { (&raw mut scratch.bytes).cast::<u8>().add(to.0 as usize).write(byte) };
    scratch.hash += character >> 8;
    scratch.limit += 1;
    0
}

/// Puts the value of a parameter into the scratch memory with its percent forms and plus signs decoded (RFC 3986 §2.1; WHATWG URL,
/// `application/x-www-form-urlencoded`). Returns its length; 0 where it has none. A global function, as [`lb_span`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_decode(stash: u32, span: Span) -> u32 {
    let (from, end) = (span as u32, (span as u32).wrapping_add((span >> 32) as u32));
    if lb_next_coded(stash, from) >= end {
        return 0;
    }
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else { return 0 };
    let mut context = u64::from(stash);
    // SAFETY: the value belongs to this processor while the program runs; the callback and its context outlive the call, which is
    // synchronous.
    unsafe {
        ((*scratch).hash, (*scratch).pool, (*scratch).limit) = (from, end, 0);
        aya_ebpf::helpers::bpf_loop(STASH_BYTES as u32, decode as *mut c_void, (&raw mut context).cast(), 0);
        (&raw const (*scratch).limit).read_volatile()
    }
}

/// Finds the next percent or plus sign. A global function, as [`lb_span`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_next_coded(stash: u32, from: u32) -> u32 {
    let Some(stash) = STASHES.get(stash) else { return NOWHERE };
    let bytes = Bytes::of(stash);
    search::<TURNS>(bytes, from, |at, n| {
        let word = bytes.word(at, n);
        zeros(word ^ every(b'%')) | zeros(word ^ every(b'+'))
    })
}
