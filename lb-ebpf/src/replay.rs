//! A backend that ends a connection before it has said anything, and the request was safe (RFC 9110 §9.2.1): another
//! backend gets the request, and the client never knows. All that it sent still stands in the stash.

use crate::flows::{Entry, Key};
use crate::handshake::next;
use crate::maps::{FLOWS, SERVICES, STASHES};
use crate::offer::offer;
use crate::packet::{Packet, Segment};
use crate::stash;
use crate::token::http::lb_next_newline;
use crate::token::locate::lb_head_end;
use crate::token::text::{At, Bytes, CASE, NOWHERE, is_blank};
use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use lb_common::counter::Counter;
use lb_common::flow::{ACKNOWLEDGED, FIN_SEEN, FlowState, WENT_ON};

/// Not a verdict: the flow ends the ordinary way.
pub(crate) const NOT_REPLAYED: u64 = u64::MAX;

/// By how much the client's view of timestamps jumps: more than any backend can have counted up meanwhile.
const TIMESTAMP_JUMP: u32 = 1 << 24;

const GET: u32 = u32::from_le_bytes(*b"GET ");
const HEAD: u64 = u64::from_le_bytes(*b"HEAD \0\0\0");
const FIVE: u64 = u64::MAX >> 24;

/// How many lines of a head are looked at: one that has more is not repeated.
const LINES: u32 = 256;

const CONTENT: u64 = u64::from_le_bytes(*b"content-") | CASE;
const TRANSFER: u64 = u64::from_le_bytes(*b"transfer") | CASE;
const LENGTH: u64 = u64::from_le_bytes(*b"length:\0") | CASE & SEVEN;
const SEVEN: u64 = u64::MAX >> 8;

/// Whether all that a client has sent is one request that may be repeated: a GET or HEAD whose head is there, without a body,
/// and nothing behind it. A global function (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_is_safe(stash: u32) -> u32 {
    let Some(place) = STASHES.get_ptr_mut(stash) else { return 0 };
    // SAFETY: a map value stays valid, and the caller has its lock.
    let (begin, heard) = unsafe {
        let (heard, last) = (stash::heard(stash as u16), stash::last(&*place));
        (*place).limit = heard;
        (u32::from((*place).begin), if heard == last { heard } else { NOWHERE })
    };
    // SAFETY: as above.
    let bytes = Bytes::of(unsafe { &*place });
    let method = bytes.word(At::new(u64::from(begin)), 0);
    if method as u32 != GET && method & FIVE != HEAD || lb_head_end(stash, begin) != heard {
        return 0;
    }
    let mut from = begin;
    let mut turn = 0;
    while turn < LINES {
        let hit = lb_next_newline(stash, from);
        if hit == NOWHERE || hit.wrapping_add(1) >= heard {
            return 1;
        }
        if lb_frames_body(stash, hit) != 0 {
            return 0;
        }
        from = hit + 1;
        turn += 1;
    }
    0
}

/// Whether the field behind the newline at an offset says that a body follows (RFC 9112 §6.3). A global function (see
/// [`crate::cold`]): in the loop of its caller it would be verified again in each turn.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_frames_body(stash: u32, newline: u32) -> u32 {
    let Some(place) = STASHES.get(stash) else { return 1 };
    let bytes = Bytes::of(place);
    let name = At::new(u64::from(newline)).plus(1);
    let word = bytes.word(name, 0) | CASE;
    let has_length = word == CONTENT && (bytes.word(name, 8) | CASE) & SEVEN == LENGTH;
    u32::from(word == TRANSFER || has_length && !is_zero(bytes, name.plus(15)))
}

/// Whether the number at an offset is 0, without a digit or white space more than is usual.
#[inline(always)]
fn is_zero(bytes: Bytes, at: At) -> bool {
    let at = at.plus(u64::from(is_blank(bytes.byte(at))));
    bytes.byte(at) == b'0' && matches!(bytes.byte(at.plus(1)), b'\r' | b'\n')
}

/// Turns a FIN or RST of a backend that has not answered into a SYN to the next one. A global function (see
/// [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_replay(ctx: *mut xdp_md, service: u32, flow: u32) -> u64 {
    let ctx = XdpContext::new(ctx);
    let (Some(place), Some(entry)) = (FLOWS.get_ptr_mut(flow), SERVICES.get(service)) else {
        return NOT_REPLAYED;
    };
    let Some(frame) = ctx.frame() else { return NOT_REPLAYED };
    let Some(segment) = Segment::read(frame, ctx.len()) else { return NOT_REPLAYED };
    // SAFETY: a map value stays valid; its fields are plain integers.
    let known = unsafe { &*place };
    let was = known.head;
    let finished = (known.client_flags | known.backend_flags) & FIN_SEEN != 0;
    // It has said nothing if it ends where it began; a response may be on its way behind the end.
    let silent = segment.seq.wrapping_add(known.seq_delta) == known.cookie.wrapping_add(1);
    let went_on = known.client_flags & WENT_ON != 0;
    if was.state != FlowState::Established as u8 || finished || !silent || went_on {
        return NOT_REPLAYED;
    }
    let Some(slot) = stash::lock(flow, known.stash) else { return NOT_REPLAYED };
    // SAFETY: a map value stays valid, and this processor has its lock.
    let stash = unsafe { &mut *slot.stash };
    let key = Key { client: known.client, port: was.client_port, service: service as u16 };
    let moved = lb_is_safe(u32::from(slot.index)) != 0
        && next(&key, Entry { flow: place, index: flow }, was, slot, stash, entry);
    if moved {
        stash.ts_base = stash.ts_base.wrapping_add(TIMESTAMP_JUMP);
        // SAFETY: a map value stays valid.
        unsafe { (*place).client_flags |= ACKNOWLEDGED };
    }
    stash::unlock(slot);
    if moved { offer(&ctx, flow, Counter::Replayed).to_bits() } else { NOT_REPLAYED }
}
