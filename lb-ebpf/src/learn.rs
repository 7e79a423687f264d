//! Learning from what backends send: in the heads of their HTTP responses the service's cookie (RFC 6265 §4.1), in the first
//! datagram of a flow the key at its place.
//!
//! Only a segment that begins with a head, or goes on with one, is looked at. It is copied to this processor's scratch
//! memory and searched as requests are. A line that the end of the segment cuts is kept until the next one comes.

use crate::atomic::{compare_exchange, exchange};
use crate::bounds::{Length, barrier_var, offset};
use crate::flows::Entry;
use crate::homes::{answers_last, key_of, lb_forget, lb_learn, note_answered, set_key};
use crate::maps::{FLOWS, SCRATCH, SERVICES, TAILS, count, settings};
use crate::packet::{Packet, Segment, read};
use crate::token::datagram::lb_tag_key;
use crate::token::locate::{differs, named};
use crate::token::text::{
    At, Bytes, CASE, NEWLINES, NOWHERE, ONES, RETURNS, SEMICOLONS, TOPS, highest, is_blank, nonzeros, search,
    within, zeros,
};
use crate::token::value::{CUT, SCRATCHED, lb_behind_blanks, lb_hash, lb_span};
use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use lb_common::counter::Counter;
use lb_common::flow::{IN_HEAD, LEARNS};
use lb_common::home::{TAIL_ROOM, Tail};
use lb_common::service::{Affinity, Service};

/// Longest segment that is looked at: with a line kept before it, it fits where offsets reach.
const MAX_SEGMENT: u32 = 3_520;
/// How many header fields are looked at that could be `Set-Cookie`, in one segment.
const FIELDS: u32 = 48;
/// How many times the service's cookie is looked at in one segment.
const KEYS: u32 = 4;
/// Beside the number of times: it was set, and not only deleted.
const SET: u32 = 1 << 8;
/// How many attributes of a cookie are looked at.
const ATTRIBUTES: u32 = 16;

const LOWER_S: u64 = b's' as u64 * ONES;
const DASHES: u64 = b'-' as u64 * ONES;
const HTTP_1: u64 = u64::from_le_bytes(*b"HTTP/1.\0");
const SEVEN: u64 = u64::MAX >> 8;
const SET_COOK: u64 = u64::from_le_bytes(*b"\nset-coo") | CASE;
const IE: u64 = u64::from_le_bytes(*b"kie:\0\0\0\0") | CASE & FOUR;
const FOUR: u64 = u32::MAX as u64;
const MAX_AGE: u64 = u64::from_le_bytes(*b"max-age=") | CASE;
const EXPIRES: u64 = u64::from_le_bytes(*b"expires=") | CASE;
const YEAR_1970: u64 = u32::from_le_bytes(*b"1970") as u64;

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
    let begins = begins_a_head(&ctx, &segment);
    // SAFETY: a map value stays valid; the backend's path alone writes these flags.
    let goes_on = unsafe { (*place).backend_flags } & IN_HEAD != 0;
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
    if lb_fields(service, flow) != 0 {
        leave_head(place, service, false);
        return 0;
    }
    // SAFETY: a map value stays valid; the backend's path alone writes these flags.
    unsafe { (*place).backend_flags |= IN_HEAD };
    lb_keep_tail(flow, segment.seq.wrapping_add(segment.payload));
    0
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

/// Goes through the header fields in the scratch memory. Returns 1 when the head ends there. A global function (see
/// [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_fields(service: u32, flow: u32) -> u32 {
    let Some(scratch) = SCRATCH.get(0) else { return 1 };
    let bytes = Bytes::of(scratch);
    let mut head = 0;
    let mut keys = 0;
    let mut from = 0;
    let mut turn = 0;
    while turn < FIELDS {
        let hit = lb_next_field(from);
        if hit == NOWHERE {
            return 0;
        }
        let line = At::new(u64::from(hit));
        let first = bytes.byte(line.plus(1));
        from = hit + 1;
        if first == b'\r' || first == b'\n' {
            let next = lb_head_ends(flow, head, hit);
            if next == NOWHERE {
                return 1;
            }
            head = next;
            from = next;
        } else {
            keys += lb_set_cookie(service, flow, hit, keys);
            if keys & (SET - 1) >= KEYS {
                // No application hands out so many at once; a file that looks like a response might.
                return 1;
            }
        }
        turn += 1;
    }
    // So many fields that it is better to leave it at that.
    count(service as u16, Counter::LearnedCut as u32);
    1
}

/// Notes that the head ends whose beginning, and whose last newline but one, stand at these offsets of the scratch memory. Returns
/// where the next one begins: behind an interim response, or one without a body, it may follow at once. A global function (see
/// [`crate::cold`]): in the loop of its caller it would be verified again in each turn.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_head_ends(flow: u32, head: u32, newline: u32) -> u32 {
    let Some(scratch) = SCRATCH.get(0) else { return NOWHERE };
    let (bytes, head, line) = (Bytes::of(scratch), At::new(u64::from(head)), At::new(u64::from(newline)));
    if !is_interim(bytes, head) {
        note_answered(flow);
    }
    let next = line.plus(if bytes.byte(line.plus(1)) == b'\r' { 3 } else { 2 });
    if !has_no_body(bytes, head) || bytes.word(next, 0) & SEVEN != HTTP_1 {
        return NOWHERE;
    }
    next.0 as u32
}

/// Whether it is the head of an interim response that begins at an offset (RFC 9110 §15.2). Of one that began in a segment before,
/// this says no.
#[inline(always)]
fn is_interim(bytes: Bytes, head: At) -> bool {
    bytes.word(head, 0) & SEVEN == HTTP_1 && bytes.byte(head.plus(9)) == b'1'
}

/// Whether the response whose head begins at an offset has no body whatever its fields say (RFC 9112 §6.3).
#[inline(always)]
fn has_no_body(bytes: Bytes, head: At) -> bool {
    let status = bytes.word(head, 9) & 0x00ff_ffff;
    status & 0xff == u64::from(b'1')
        || status == u64::from(u32::from_le_bytes(*b"204\0"))
        || status == u64::from(u32::from_le_bytes(*b"304\0"))
}

/// Finds the next newline behind which a field begins with S and has a hyphen as its fourth character, as in `Set-Cookie`, or
/// behind which the head ends. A global function, because it is a loop (see [`crate::token::http`]).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_next_field(from: u32) -> u32 {
    let Some(scratch) = SCRATCH.get(0) else { return NOWHERE };
    let bytes = Bytes::of(scratch);
    let hit = search::<SCAN>(bytes, from, |at, n| {
        let newline = bytes.word(at, n) ^ NEWLINES;
        let next = bytes.word(at, n + 1);
        zeros(newline | ((next | CASE) ^ LOWER_S) | (bytes.word(at, n + 4) ^ DASHES))
            | zeros(newline | (next ^ RETURNS))
            | zeros(newline | (next ^ NEWLINES))
    });
    within(bytes, hit)
}

/// Turns of a search through all of the scratch memory that offsets reach.
const SCAN: u32 = 64;

/// Finds the next newline in the scratch memory. A global function, as [`lb_next_field`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_next_end(from: u32) -> u32 {
    let Some(scratch) = SCRATCH.get(0) else { return NOWHERE };
    let bytes = Bytes::of(scratch);
    within(bytes, search::<SCAN>(bytes, from, |at, n| zeros(bytes.word(at, n) ^ NEWLINES)))
}

/// Finds the next semicolon or newline in the scratch memory. A global function, as [`lb_next_field`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_next_attribute(from: u32) -> u32 {
    let Some(scratch) = SCRATCH.get(0) else { return NOWHERE };
    let bytes = Bytes::of(scratch);
    let hit = search::<SCAN>(bytes, from, |at, n| {
        let word = bytes.word(at, n);
        zeros(word ^ SEMICOLONS) | zeros(word ^ NEWLINES)
    });
    within(bytes, hit)
}

/// Learns from the field behind the newline at an offset of the scratch memory, if it is `Set-Cookie` of the service's cookie.
/// `before` is the sum of what this returned for the fields before it: 1 for each of the cookie's, and [`SET`] where one set it.
/// A global function (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_set_cookie(service: u32, flow: u32, at: u32, before: u32) -> u32 {
    let (Some(scratch), Some(entry), Some(known)) = (SCRATCH.get(0), SERVICES.get(service), FLOWS.get(flow))
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
    let value = equals.plus(1);
    let from = value.0 as u32;
    if cut && lb_next_attribute(from) == NOWHERE {
        count(service as u16, Counter::LearnedCut as u32);
        return 0;
    }
    let tag = lb_tag_scratch(service, from);
    // A flow that is older than the service's rule has none, but finds there what another one left.
    let was = if known.client_flags & LEARNS != 0 { key_of(flow) } else { 0 };
    if tag != 0 && lb_is_deleted(from) == 0 {
        lb_learn(service, tag, u32::from(known.head.backend));
        if answers_last(flow) {
            set_key(flow, tag);
        }
        return SET | 1;
    }
    // Of another path or domain, where the head has set it as well (RFC 6265 §5.3, step 11).
    if before < SET && was != 0 && answers_last(flow) {
        if lb_forget(was) != 0 {
            count(service as u16, Counter::Forgotten as u32);
        }
        set_key(flow, 0);
    }
    1
}

/// The first offset of the scratch memory at or behind another one at which no white space stands.
#[inline(always)]
fn solid(bytes: Bytes, at: At) -> At {
    if is_blank(bytes.byte(at)) { At::new(u64::from(lb_behind_blanks(SCRATCHED, at.0 as u32))) } else { at }
}

/// The tag of the value at an offset of the scratch memory; 0 when there is none. A global function, as [`lb_next_field`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_tag_scratch(service: u32, at: u32) -> u64 {
    let span = lb_span(SCRATCHED, service, at);
    if span == CUT || span >> 32 == 0 { 0 } else { lb_hash(SCRATCHED, span, service) }
}

/// Whether the attributes of the cookie whose value stands at an offset of the scratch memory delete it: 1 if they do. Its age
/// counts before its date (RFC 6265 §5.3). A global function (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_is_deleted(value: u32) -> u32 {
    let Some(scratch) = SCRATCH.get(0) else { return 0 };
    let bytes = Bytes::of(scratch);
    let mut expired = 0;
    let mut from = value;
    let mut turn = 0;
    while turn < ATTRIBUTES {
        let hit = lb_next_attribute(from);
        if hit == NOWHERE {
            return expired;
        }
        let at = At::new(u64::from(hit));
        if bytes.byte(at) == b'\n' {
            return expired;
        }
        let name = at.plus(1);
        let name = name.plus(u64::from(bytes.byte(name) == b' '));
        let word = bytes.word(name, 0) | CASE;
        if word == MAX_AGE {
            let age = bytes.word(name, 8);
            let more = (age >> 8) as u8;
            let none = age as u8 == b'0' && !more.is_ascii_digit();
            return u32::from(none || age as u8 == b'-');
        }
        if word == EXPIRES && is_1970(bytes, name.plus(8)) {
            expired = 1;
        }
        from = hit + 1;
        turn += 1;
    }
    expired
}

/// Whether a date is of the year in which time began: `Thu, 01 Jan 1970`, with hyphens as well, or one digit for the day.
#[inline(always)]
fn is_1970(bytes: Bytes, date: At) -> bool {
    bytes.word(date, 12) & FOUR == YEAR_1970 || bytes.word(date, 11) & FOUR == YEAR_1970
}

/// Learns the key that has just been read from a backend's datagram. A global function (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_learn_key(service: u32, slot: u32) -> u32 {
    lb_learn(service, lb_tag_key(service), slot)
}
