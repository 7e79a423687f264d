//! Learning from what backends send: in the heads of their HTTP responses the service's cookie (RFC 6265 §4.1), in the first
//! datagram of a flow the key at its place.
//!
//! Only a segment that begins with a head, or goes on with one, is looked at. It is copied to this processor's scratch
//! memory and searched as requests are. A line that the end of the segment cuts is kept until the next one comes.

use crate::atomic::{compare_exchange, exchange};
use crate::bounds::{Length, barrier_var, offset};
use crate::flows::Entry;
use crate::homes::{answers_last, asked, key_of, lb_forget, lb_has_scope, lb_learn, note_answered, set_key};
use crate::maps::{FLOWS, SCRATCH, SERVICES, TAILS, count, settings};
use crate::packet::{Packet, Segment, read};
use crate::scope::{DELETED, SCAN, lb_attributes, lb_next_attribute, solid};
use crate::token::datagram::lb_tag_key;
use crate::token::locate::{differs, named};
use crate::token::text::{
    At, Bytes, CASE, NEWLINES, NOWHERE, ONES, RETURNS, TOPS, highest, nonzeros, search, within, zeros,
};
use crate::token::value::{CUT, SCRATCHED, lb_hash, lb_span};
use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use lb_common::counter::Counter;
use lb_common::flow::{IN_HEAD, LEARNS};
use lb_common::home::{
    Asked, COOKIE_DELETED, COOKIE_SET, INTERIM, LENGTH_KNOWN, NO_BODY, SWITCHED, TAIL_ROOM, Tail,
};
use lb_common::service::{Affinity, Service};

/// Longest segment that is looked at: with a line kept before it, it fits where offsets reach.
const MAX_SEGMENT: u32 = 3_520;
/// How many header fields are looked at that could be one of those that matter, in one segment.
const FIELDS: u32 = 64;
/// How many times the service's cookie is looked at in one head, or in a segment of it: no application hands out so many at once.
const KEYS: u32 = 4;

const LOWER_S: u64 = b's' as u64 * ONES;
const DASHES: u64 = b'-' as u64 * ONES;
const HTTP_1: u64 = u64::from_le_bytes(*b"HTTP/1.\0");
const SEVEN: u64 = u64::MAX >> 8;
const SET_COOK: u64 = u64::from_le_bytes(*b"\nset-coo") | CASE;
const IE: u64 = u64::from_le_bytes(*b"kie:\0\0\0\0") | CASE & FOUR;
const FOUR: u64 = u32::MAX as u64;
const LOWER_C: u64 = b'c' as u64 * ONES;
const CONTENT: u64 = u64::from_le_bytes(*b"\ncontent") | CASE;
const LENGTH: u64 = u64::from_le_bytes(*b"-length:") | CASE;
/// Longest body that is followed.
const MAX_LENGTH: u32 = 1 << 30;

/// [`lb_common::home::Tail::owner`] while somebody reads or writes it.
const TAKEN: u64 = u64::MAX;

/// Looks at a segment of a backend before it is changed.
#[inline(always)]
pub(crate) fn from_response(
    ctx: &XdpContext,
    service: &Service,
    id: u16,
    entry: Entry,
    flags: u8,
    segment: &Segment,
) {
    if service.affinity == Affinity::Learned as u8
        && (flags & IN_HEAD != 0 && segment.payload > 0 || begins_a_head(ctx, segment))
    {
        lb_head(ctx.ctx, u32::from(id), entry.index);
    }
}

#[inline(always)]
fn begins_a_head(ctx: &XdpContext, segment: &Segment) -> bool {
    segment.payload >= 8
        // SAFETY: `field` proved eight bytes.
        && ctx.field(segment.payload_at(), 8).is_some_and(|at| unsafe { read::<u64>(at) } & SEVEN == HTTP_1)
}

/// Reads the head, or part of a head, in a segment of a backend. A global function (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_head(ctx: *mut xdp_md, service: u32, flow: u32) -> u32 {
    let ctx = XdpContext::new(ctx);
    let (Some(scratch), Some(place), Some(frame)) =
        (SCRATCH.get_ptr_mut(0), FLOWS.get_ptr_mut(flow), ctx.frame())
    else {
        return 0;
    };
    let Some(segment) = Segment::read(frame, ctx.len()) else { return 0 };
    let Some(known) = asked(flow) else { return 0 };
    // SAFETY: a map value stays valid; the backend's path alone writes these flags.
    let (client_flags, goes_on) = unsafe { ((*place).client_flags, (*place).backend_flags & IN_HEAD != 0) };
    if client_flags & LEARNS == 0 {
        // What a flow asked for that is older than its service's rule, nobody knows.
        return 0;
    }
    // SAFETY: a map value stays valid; its fields are plain integers.
    let begins = begins_a_head(&ctx, &segment) && may_begin(unsafe { &*known }, goes_on, segment.seq);
    if !begins && !goes_on {
        return 0;
    }
    let mut kept = 0;
    if goes_on {
        kept = lb_take_tail(flow, segment.seq);
        if kept == LOST && !begins {
            note_answered(flow);
            leave_head(place, service, true);
            return 0;
        }
        if kept == ELSEWHERE && !begins {
            // Out of order, or sent again: what is waited for is still to come.
            return 0;
        }
        if kept > TAIL_ROOM as u32 {
            kept = 0;
        }
    }
    // SAFETY: the value belongs to this processor while the program runs.
    let scratch = unsafe { &mut *scratch };
    let (Some(at), Some(len)) =
        (offset::<{ TAIL_ROOM as u32 + 1 }>(kept), Length::new::<MAX_SEGMENT>(segment.payload))
    else {
        return 0;
    };
    scratch.limit = at as u32 + len.get();
    // SAFETY: room for a longest segment behind a longest line, and for two words behind that.
    unsafe {
        let bytes = (&raw mut scratch.bytes).cast::<u8>().add(at);
        if !ctx.copy(segment.payload_at(), bytes, len) {
            return 0;
        }
        let behind = (&raw mut scratch.bytes)
            .cast::<u8>()
            .add((barrier_var(u64::from(scratch.limit)) & 0xfff) as usize);
        behind.cast::<u64>().write_unaligned(0);
        behind.cast::<u64>().add(1).write_unaligned(0);
    }
    if begins && kept == 0 {
        begin_head(known, Bytes::of(scratch), At::new(0));
    }
    if lb_fields(service, flow, segment.seq.wrapping_sub(kept)) != 0 {
        leave_head(place, service, false);
        return 0;
    }
    // SAFETY: a map value stays valid; the backend's path alone writes these flags.
    unsafe { (*place).backend_flags |= IN_HEAD };
    lb_keep_tail(flow, segment.seq.wrapping_add(segment.payload));
    0
}

/// Whether a head can begin at a sequence number: in answer to a request, and behind the body of the one before it. All else that
/// looks like one stands in a body.
#[inline(always)]
fn may_begin(known: &Asked, goes_on: bool, seq: u32) -> bool {
    let in_body = !goes_on && known.head & LENGTH_KNOWN != 0 && (seq.wrapping_sub(known.next) as i32) < 0;
    known.is_open() && known.head & SWITCHED == 0 && !in_body
}

/// Notes that a head begins at an offset of what is looked at, and what its status says.
#[inline(always)]
fn begin_head(known: *mut Asked, bytes: Bytes, at: At) {
    let status = bytes.word(at, 9) & 0x00ff_ffff;
    let is = |text: &[u8; 4]| status == u64::from(u32::from_le_bytes(*text));
    let head = if is(b"101\0") {
        SWITCHED
    } else if status & 0xff == u64::from(b'1') {
        INTERIM
    } else if is(b"204\0") || is(b"304\0") {
        NO_BODY
    } else {
        0
    };
    // SAFETY: a map value stays valid; the backend's path alone writes this.
    unsafe { (*known).head = head };
}

/// The head has ended, or is given up.
#[inline(always)]
fn leave_head(flow: *mut lb_common::flow::Flow, service: u32, lost: bool) {
    // SAFETY: a map value stays valid; the backend's path alone writes these flags.
    unsafe { (*flow).backend_flags &= !IN_HEAD };
    if lost {
        count(service as u16, Counter::LearnedCut as u32);
    }
}

/// Not a length: nobody keeps the flow's line any more...
const LOST: u32 = u32::MAX;
/// ...or it goes on at another sequence number.
const ELSEWHERE: u32 = u32::MAX - 1;

/// Where the line of a flow is kept; others have the same place. There are as many as stashes: a head's next segment follows at
/// once, so few are needed.
#[inline(always)]
fn tail_of(flow: u32) -> Option<*mut Tail> {
    TAILS.get_ptr_mut(flow & settings()?.stash_mask)
}

#[inline(always)]
const fn owner(flow: u32, seq: u32) -> u64 {
    (flow as u64 + 1) | (seq as u64) << 32
}

/// Takes the line that goes on at a sequence number into the scratch memory. Returns its length in bytes, or [`LOST`] or
/// [`ELSEWHERE`]. A global function (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_take_tail(flow: u32, seq: u32) -> u32 {
    let (Some(tail), Some(scratch)) = (tail_of(flow), SCRATCH.get_ptr_mut(0)) else {
        return LOST;
    };
    // SAFETY: a map value stays valid; the owner is an aligned word. Who has taken the line has it alone.
    unsafe {
        let mine = owner(flow, seq);
        let seen = compare_exchange(&raw mut (*tail).owner, mine, TAKEN);
        if seen != mine {
            return if seen as u32 == mine as u32 { ELSEWHERE } else { LOST };
        }
        let to = (&raw mut (*scratch).bytes).cast::<u64>();
        let mut i = 0;
        while i < TAIL_ROOM / 8 {
            to.add(i).write_volatile((*tail).bytes[i]);
            i += 1;
        }
        let len = (*tail).len;
        exchange(&raw mut (*tail).owner, 0);
        len as u32
    }
}

/// Keeps the last line in the scratch memory, which goes on at a sequence number; nothing of it if it is too long. A global
/// function (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_keep_tail(flow: u32, seq: u32) -> u32 {
    let (Some(tail), Some(scratch)) = (tail_of(flow), SCRATCH.get(0)) else { return 0 };
    let bytes = Bytes::of(scratch);
    let from = last_line(bytes, scratch.limit);
    let kept = if from == NOWHERE { 0 } else { scratch.limit.wrapping_sub(from) };
    // SAFETY: a map value stays valid; the owner is an aligned word. Who has taken it has the line alone.
    unsafe {
        let seen = core::ptr::read_volatile(&raw const (*tail).owner);
        if seen == TAKEN || compare_exchange(&raw mut (*tail).owner, seen, TAKEN) != seen {
            return 0;
        }
        let mut at = At::new(u64::from(from));
        let mut i = 0;
        while i < TAIL_ROOM / 8 {
            (&raw mut (*tail).bytes).cast::<u64>().add(i).write_volatile(bytes.word(at, 0));
            at = at.plus(8);
            i += 1;
        }
        (*tail).len = u64::from(kept);
        exchange(&raw mut (*tail).owner, owner(flow, seq));
    }
    1
}

/// Where the last line begins, with the newline before it; [`NOWHERE`] if that is too far from the end.
#[inline(always)]
fn last_line(bytes: Bytes, limit: u32) -> u32 {
    let mut back = 8;
    while back <= TAIL_ROOM as u32 {
        if back > limit {
            // All there is.
            return 0;
        }
        let at = limit - back;
        let tops = !nonzeros(bytes.word(At::new(u64::from(at)), 0) ^ NEWLINES) & TOPS;
        if tops != 0 {
            return at + highest(tops) as u32;
        }
        back += 8;
    }
    NOWHERE
}

/// Goes through the header fields in the scratch memory, whose first byte has this sequence number. Returns 1 when the head ends
/// there. A global function (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_fields(service: u32, flow: u32, seq: u32) -> u32 {
    let (Some(scratch), Some(known)) = (SCRATCH.get(0), asked(flow)) else { return 1 };
    let bytes = Bytes::of(scratch);
    // Again, where the line was cut in the segment before: with the newline before it, if there is one.
    let first = bytes.word(At::new(0), 0);
    if first & SEVEN == HTTP_1 {
        begin_head(known, bytes, At::new(0));
    } else if first == HTTP_1 << 8 | u64::from(b'\n') {
        begin_head(known, bytes, At::new(1));
    }
    let mut keys = 0;
    let mut from = 0;
    let mut turn = 0;
    while turn < FIELDS {
        let hit = lb_next_field(from);
        if hit == NOWHERE {
            return 0;
        }
        let first = bytes.byte(At::new(u64::from(hit)).plus(1));
        from = hit + 1;
        if first == b'\r' || first == b'\n' {
            if first == b'\r' && hit + 2 >= scratch.limit {
                // Its last byte is still to come.
                return 0;
            }
            let next = lb_head_ends(service, flow, hit, seq);
            if next == NOWHERE {
                return 1;
            }
            (from, keys) = (next, 0);
        } else if first | 0x20 == b'c' {
            lb_content_length(flow, hit);
        } else if keys < KEYS {
            keys += lb_set_cookie(service, flow, hit);
        }
        turn += 1;
    }
    // So many fields that it is better to leave it at that.
    count(service as u16, Counter::LearnedCut as u32);
    note_answered(flow);
    1
}

/// Notes that the head ends whose last newline but one stands at this offset of the scratch memory, which begins at a sequence number.
/// Returns where the next one begins: behind an interim response, or one whose body is there, it may follow at once. A global
/// function (see [`crate::cold`]): in the loop of its caller it would be verified again in each turn.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_head_ends(service: u32, flow: u32, newline: u32, seq: u32) -> u32 {
    let (Some(scratch), Some(known)) = (SCRATCH.get(0), asked(flow)) else { return NOWHERE };
    let (bytes, line) = (Bytes::of(scratch), At::new(u64::from(newline)));
    let end = line.plus(if bytes.byte(line.plus(1)) == b'\r' { 3 } else { 2 });
    // SAFETY: a map value stays valid; the backend's path alone writes what is written here.
    let (head, length, answers_last, answers_head) =
        unsafe { ((*known).head, (*known).next, (*known).answers_last(), (*known).answers_head()) };
    let mut body = Some(0);
    if head & INTERIM == 0 {
        if head & (COOKIE_SET | COOKIE_DELETED) == COOKIE_DELETED && answers_last {
            if lb_forget(key_of(flow)) != 0 {
                count(service as u16, Counter::Forgotten as u32);
            }
            set_key(flow, 0);
        }
        note_answered(flow);
        body = if head & NO_BODY != 0 || answers_head {
            Some(0)
        } else if head & LENGTH_KNOWN != 0 {
            Some(length)
        } else {
            // It tells by itself where it ends; or nobody knows whether there is one.
            None
        };
    }
    let end = end.0 as u32;
    // SAFETY: as above.
    unsafe {
        (*known).head = head & SWITCHED | if body.is_some() { LENGTH_KNOWN } else { 0 };
        (*known).next = seq.wrapping_add(end).wrapping_add(body.unwrap_or(0));
    }
    let next = end.wrapping_add(body.unwrap_or(u32::MAX >> 1));
    let at = At::new(u64::from(next));
    // SAFETY: as above.
    let is_open = unsafe { (*known).is_open() };
    // What follows an interim one is a head, also where only a few bytes of it are there.
    let cut = head & INTERIM != 0 && next.wrapping_add(7) > scratch.limit;
    let follows = bytes.word(at, 0) & SEVEN == HTTP_1 || cut;
    if next >= scratch.limit || head & SWITCHED != 0 || !is_open || !follows {
        return NOWHERE;
    }
    begin_head(known, bytes, at);
    at.0 as u32
}

/// Notes the length of the body from the field behind the newline at an offset of the scratch memory, if it is `Content-Length`
/// (RFC 9110 §8.6). A global function (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_content_length(flow: u32, at: u32) -> u32 {
    let (Some(scratch), Some(known)) = (SCRATCH.get(0), asked(flow)) else { return 0 };
    let bytes = Bytes::of(scratch);
    let line = At::new(u64::from(at));
    if bytes.word(line, 0) | CASE != CONTENT
        || bytes.word(line, 8) | CASE != LENGTH
        || lb_next_end(at + 1) == NOWHERE
    {
        return 0;
    }
    let mut at = solid(bytes, line.plus(16));
    let (mut length, mut turn) = (0_u64, 0);
    while turn < 10 {
        let digit = bytes.byte(at).wrapping_sub(b'0');
        if digit > 9 {
            break;
        }
        length = length * 10 + u64::from(digit);
        at = at.plus(1);
        turn += 1;
    }
    // Half of all sequence numbers lie behind another one: a longer body is followed as far as that.
    let length = if length > u64::from(MAX_LENGTH) { MAX_LENGTH } else { length as u32 };
    // SAFETY: a map value stays valid; the backend's path alone writes these.
    unsafe {
        (*known).next = length;
        (*known).head |= LENGTH_KNOWN;
    }
    1
}

/// Finds the next newline behind which a field begins with S and has a hyphen as its fourth character, as in `Set-Cookie`, or with C and
/// has one as its eighth, as in `Content-Length`, or behind which the head ends. A global function, because it is a loop (see
/// [`crate::token::http`]).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_next_field(from: u32) -> u32 {
    let Some(scratch) = SCRATCH.get(0) else { return NOWHERE };
    let bytes = Bytes::of(scratch);
    let hit = search::<SCAN>(bytes, from, |at, n| {
        let newline = bytes.word(at, n) ^ NEWLINES;
        if zeros(newline) == 0 {
            return 0;
        }
        let next = bytes.word(at, n + 1);
        zeros(newline | ((next | CASE) ^ LOWER_S) | (bytes.word(at, n + 4) ^ DASHES))
            | zeros(newline | ((next | CASE) ^ LOWER_C) | (bytes.word(at, n + 8) ^ DASHES))
            | zeros(newline | (next ^ RETURNS))
            | zeros(newline | (next ^ NEWLINES))
    });
    within(bytes, hit)
}

/// Finds the next newline in the scratch memory. A global function, as [`lb_next_field`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_next_end(from: u32) -> u32 {
    let Some(scratch) = SCRATCH.get(0) else { return NOWHERE };
    let bytes = Bytes::of(scratch);
    within(bytes, search::<SCAN>(bytes, from, |at, n| zeros(bytes.word(at, n) ^ NEWLINES)))
}

/// Learns from the field behind the newline at an offset of the scratch memory, if it is `Set-Cookie` of the service's cookie: then it
/// returns 1. A global function (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_set_cookie(service: u32, flow: u32, at: u32) -> u32 {
    let (Some(scratch), Some(entry), Some(place), Some(known)) =
        (SCRATCH.get(0), SERVICES.get(service), FLOWS.get(flow), asked(flow))
    else {
        return 0;
    };
    let bytes = Bytes::of(scratch);
    let line = At::new(u64::from(at));
    if bytes.word(line, 0) | CASE != SET_COOK || (bytes.word(line, 8) | CASE) & FOUR != IE {
        return 0;
    }
    let end = lb_next_end(at + 1);
    let cut = end == NOWHERE;
    if cut && scratch.limit.wrapping_sub(at) <= TAIL_ROOM as u32 {
        // It is kept whole until the rest of it comes.
        return 0;
    }
    let name = solid(bytes, line.plus(12));
    let behind = name.plus(u64::from(entry.key_name_len));
    let equals = solid(bytes, At::new(behind.0.wrapping_sub(1)));
    if bytes.byte(equals) != b'=' || differs(entry, &named(bytes, behind), 0) != 0 {
        return 0;
    }
    let value = equals.plus(1).0 as u32;
    if cut && lb_next_attribute(value) == NOWHERE {
        count(service as u16, Counter::LearnedCut as u32);
        return 0;
    }
    let tag = lb_tag_scratch(service, value);
    let attributes = lb_attributes(service, flow, value);
    let answers_last = answers_last(flow);
    // Of the path of a request that is not the last, nothing is known.
    let scope = if answers_last { attributes as u32 } else { 0 };
    if tag != 0 && attributes & DELETED == 0 {
        lb_learn(service, tag, u32::from(place.head.backend), flow, scope);
        if answers_last {
            set_key(flow, tag);
        }
        // SAFETY: a map value stays valid; the backend's path alone writes this.
        unsafe { (*known).head |= COOKIE_SET };
    } else if answers_last && scope != 0 && lb_has_scope(key_of(flow), scope) != 0 {
        // That of another path or domain lives on (RFC 6265 §5.3, step 11).
        // SAFETY: as above.
        unsafe { (*known).head |= COOKIE_DELETED };
    }
    1
}

/// The tag of the value at an offset of the scratch memory; 0 when there is none. A global function, as [`lb_next_field`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_tag_scratch(service: u32, at: u32) -> u64 {
    let span = lb_span(SCRATCHED, service, at);
    if span == CUT || span >> 32 == 0 { 0 } else { lb_hash(SCRATCHED, span, service) }
}

/// Learns the key that has just been read from a backend's datagram: its `first` one, and later each that is not the one that is known of
/// the flow. A global function (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_learn_key(service: u32, slot: u32, flow: u32, first: u32) -> u32 {
    let Some(scratch) = SCRATCH.get(0) else { return 0 };
    let key = u64::from(scratch.hash) | 1 << 32;
    if first == 0 && key_of(flow) == key {
        return 0;
    }
    set_key(flow, key);
    lb_learn(service, lb_tag_key(service), slot, flow, 0)
}
