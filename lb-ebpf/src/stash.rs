//! Keeping what a client sends until its backend has answered. See [`lb_common::stash`] for the layout.
//!
//! Any processor may read a stash while the one that has its lock appends: bytes first, then the view that names them,
//! by an exchange that is also a barrier.

use crate::atomic::{compare_exchange, exchange, fill, read_last};
use crate::bounds::{Length, offset};
use crate::cold::Parsed;
use crate::flows::{self, Entry, is_over};
use crate::maps::{FLOWS, SERVICES, STASHES, count, settings};
use crate::options::timestamps;
use crate::packet::{Packet, Segment};
use crate::rewrite::payload_sum;
use crate::shares::is_pending_full;
use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use lb_common::checksum::{at_odd_offset, fold, sub};
use lb_common::counter::Counter;
use lb_common::flow::{ACKNOWLEDGED, FORGOTTEN, FlowState, Head, NO_STASH, WENT_ON};
use lb_common::settings::Settings;
use lb_common::stash::{STASH_BYTES, Stash, TRIED, VIEW_FIN, VIEW_PSH, VIEW_USED, VIEWS, View};
use lb_common::tcp::{FIN, PSH};

/// Longest segment that is stashed.
pub(crate) const MAX_SEGMENT: u32 = 1500;

/// Bytes that timestamps take from every segment.
pub(crate) const TIMESTAMPS: u32 = 12;

/// Stashes that a flow may be given.
const WAYS: u32 = 16;

/// A stash and its index.
#[derive(Clone, Copy)]
pub(crate) struct Slot {
    pub(crate) stash: *mut Stash,
    pub(crate) index: u16,
}

/// Notes that a backend was offered the flow.
#[inline(always)]
pub(crate) fn note_tried(stash: *mut Stash, slot: u16) {
    // SAFETY: a map value stays valid; one flow's handshake runs on one processor at a time, and a lost entry only
    // means that a backend may be tried twice.
    unsafe {
        let n = (*stash).tried_len;
        (*stash).tried.note(n, slot);
        if n < TRIED as u32 {
            (*stash).tried_len = n + 1;
        }
    }
}

/// The word that says whose a stash is.
#[inline(always)]
const fn owner(flow: u32, tick: u32) -> u64 {
    (flow as u64 + 1) | (tick as u64) << 32
}

/// Who may be ended for a stash: nobody, ...
const NOBODY_ENDS: u32 = 0;
/// ...or who waits for the rest of its head; less than that is the id of a service, whose flows alone may be.
const ANYBODY: u32 = 1 << 16;

/// Takes a stash for the flow in entry `flow` of a service, whose hash is `hash`, and locks it. Returns its index, or what
/// [`refused`] knows.
#[inline(always)]
pub(crate) fn claim(flow: u32, hash: u32, service: u16, now: u32) -> u32 {
    lb_claim_stash(flow, hash, u32::from(service), now)
}

/// The counter of why [`claim`] took no stash.
#[inline(always)]
pub(crate) const fn refused(index: u32) -> Result<(), Counter> {
    match index {
        SHARE => Err(Counter::DropPendingShare),
        NONE => Err(Counter::DropNoStash),
        _ => Ok(()),
    }
}

/// No indices of stashes, but reasons why there is none: as many of the service's flows wait as may...
const SHARE: u32 = u32::MAX;
/// ...or all stashes are taken that the flow may have.
const NONE: u32 = u32::MAX - 1;

/// Takes a free stash, or one whose owner does not wait any more; failing that, one whose owner has only begun to speak, which is
/// ended. A service of which as many flows wait as may takes from those alone. Returns the index of the stash.
///
/// A global function (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_claim_stash(flow: u32, hash: u32, service: u32, now: u32) -> u32 {
    let Some(settings) = settings() else { return NONE };
    let full = is_pending_full(service);
    let ends = if full { service & 0xffff } else { ANYBODY };
    let mut i = if full { WAYS } else { 0 };
    while i < 2 * WAYS {
        let ends = if i < WAYS { NOBODY_ENDS } else { ends };
        let index = hash.rotate_left(8).wrapping_add(i) & settings.stash_mask & 0xffff;
        let Some(stash) = STASHES.get_ptr_mut(index) else { break };
        let slot = Slot { stash, index: index as u16 };
        // SAFETY: a map value stays valid.
        unsafe {
            if usable(settings, slot, flow, now, ends) && compare_exchange(&raw mut (*stash).lock, 0, 1) == 0
            {
                // Only who has the lock changes the owner, and a flow that is being bound has it: what was seen without
                // it may be over, what is seen under it stays.
                if usable(settings, slot, flow, now, ends) && evict(slot) {
                    exchange(&raw mut (*stash).owner, owner(flow, now));
                    fill::<VIEWS>((&raw mut (*stash).views).cast(), 0);
                    // As `Tried::NONE`.
                    fill::<{ TRIED / 4 }>((&raw mut (*stash).tried).cast(), u64::MAX);
                    (*stash).tried_len = 0;
                    (*stash).pool = 0;
                    (*stash).hash = hash;
                    return index;
                }
                unlock(slot);
            }
        }
        i += 1;
    }
    if full { SHARE } else { NONE }
}

/// The word of a stash that says whose it is.
#[inline(always)]
fn held(slot: Slot) -> u64 {
    // SAFETY: a map value stays valid; the owner is one aligned word.
    unsafe { core::ptr::read_volatile(&raw const (*slot.stash).owner) }
}

/// Whether the flow in entry `flow` may have a stash: nobody has it, its owner has no use for it, or may be ended.
#[inline(always)]
fn usable(settings: &Settings, slot: Slot, flow: u32, now: u32, ends: u32) -> bool {
    let held = held(slot);
    if ends != NOBODY_ENDS && ends != ANYBODY {
        return is_awaiting(held, slot.index, ends);
    }
    held as u32 == 0
        || held as u32 == flow + 1
        || forsaken(settings, held, slot.index, now)
        || ends == ANYBODY && is_awaiting(held, slot.index, ends)
}

/// Whether the flow that holds a stash has no use for it: it is spliced, gone, or its backend stayed silent too long.
#[inline(always)]
fn forsaken(settings: &Settings, held: u64, index: u16, now: u32) -> bool {
    if is_over(settings.binding_ticks, (held >> 32) as u32, now) {
        return true;
    }
    match FLOWS.get((held as u32).wrapping_sub(1)) {
        Some(flow) => {
            flow.stash != index
                || flow.head.state == FlowState::Established as u8 && flow.client_flags & ACKNOWLEDGED == 0
                || flow.head.state == FlowState::Closing as u8
        }
        None => true,
    }
}

/// Whether the flow that holds a stash waits for the rest of its head: a weaker claim than that of one that has sent all of it. `of`: of
/// which service, or [`ANYBODY`].
#[inline(always)]
fn is_awaiting(held: u64, index: u16, of: u32) -> bool {
    FLOWS.get((held as u32).wrapping_sub(1)).is_some_and(|flow| {
        flow.stash == index
            && flow.head.state == FlowState::Awaiting as u8
            && (of == ANYBODY || u32::from(flow.head.service) == of)
    })
}

/// Ends the flow that holds a stash, which the caller has locked, if it waits for the rest of its head. Returns whether the stash is free.
#[inline(always)]
fn evict(slot: Slot) -> bool {
    let index = (held(slot) as u32).wrapping_sub(1);
    let Some(flow) = FLOWS.get_ptr_mut(index) else { return true };
    let entry = Entry { flow, index };
    let was = flows::head(entry);
    // SAFETY: a map value stays valid; its fields are plain integers.
    let (stash, flags) = unsafe { ((*flow).stash, (*flow).client_flags) };
    if was.state != FlowState::Awaiting as u8 || stash != slot.index {
        return true;
    }
    // What its client sends next begins anew, unless it was told that some of it had arrived.
    let is = if flags & ACKNOWLEDGED != 0 {
        Head { backend: FORGOTTEN, state: FlowState::Closing as u8, ..was }
    } else {
        Head::default()
    };
    let ended = flows::replace(entry, was, is);
    if ended {
        count(was.service, Counter::StashEvicted as u32);
    }
    ended
}

/// Lets others append.
#[inline(always)]
pub(crate) fn unlock(slot: Slot) {
    // SAFETY: a map value stays valid.
    unsafe { exchange(&raw mut (*slot.stash).lock, 0) };
}

/// Gives a stash back that was locked.
#[inline(always)]
pub(crate) fn release(slot: Slot) {
    // SAFETY: a map value stays valid.
    unsafe { exchange(&raw mut (*slot.stash).owner, 0) };
    unlock(slot);
}

/// The stash of a flow, if it still is the flow's.
#[inline(always)]
pub(crate) fn of(flow: u32, index: u16) -> Option<Slot> {
    if index == NO_STASH {
        return None;
    }
    let stash = STASHES.get_ptr_mut(u32::from(index))?;
    // SAFETY: a map value stays valid.
    let held = unsafe { core::ptr::read_volatile(&raw const (*stash).owner) };
    if held as u32 == flow.wrapping_add(1) { Some(Slot { stash, index }) } else { None }
}

/// Whether what was just read of a flow's stash, without its lock, was the flow's: nobody else has taken it.
#[inline(always)]
pub(crate) fn is_still(stash: &Stash, flow: u32) -> bool {
    // SAFETY: a map value stays valid, and programs may write to it; the owner is one aligned word.
    let held = unsafe { read_last((&raw const stash.owner).cast_mut()) } as u32;
    // Given back, it holds what it held until somebody takes it.
    held == flow.wrapping_add(1) || held == 0
}

/// Whether a payload that begins where a stash does goes on behind its first segment.
#[inline(always)]
pub(crate) fn is_exceeded(index: u16, payload: u32) -> bool {
    let Some(stash) = STASHES.get(u32::from(index)) else { return true };
    // SAFETY: a map value stays valid; a view is one aligned word.
    let first = View::from_bits(unsafe { core::ptr::read_volatile(&raw const stash.views[0]) });
    payload > u32::from(first.len)
}

/// How much of a client's stream is there without a gap, its FIN included, in whatever order it came.
#[inline(always)]
pub(crate) fn heard(index: u16) -> u32 {
    lb_heard(u32::from(index), 1)
}

/// The same, each FIN counted as `fin`. A global function (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_heard(index: u32, fin: u32) -> u32 {
    let Some(stash) = STASHES.get(index) else { return 0 };
    let mut end = 0;
    let mut i = 0;
    while i < VIEWS * VIEWS {
        let view = view_of(stash, i);
        let after = view.end() + if view.flags & VIEW_FIN != 0 { fin & 1 } else { 0 };
        if view.flags & VIEW_USED != 0 && u32::from(view.at) <= end && after > end {
            end = after;
        }
        i += 1;
    }
    end
}

/// View `i` of a stash, modulo their number.
#[inline(always)]
fn view_of(stash: &Stash, i: usize) -> View {
    // SAFETY: a map value stays valid; a view is one aligned word.
    View::from_bits(unsafe { core::ptr::read_volatile(&raw const stash.views[i & (VIEWS - 1)]) })
}

/// Bytes that one call of the kernel's adds up.
const PIECE: u32 = 512;

/// What [`lb_is_intact`] says of a stash: a checksum was wrong...
pub(crate) const CORRUPT: u32 = 0;
/// ...all were right...
pub(crate) const INTACT: u32 = 1;
/// ...or that cannot be told, because segments overlap.
pub(crate) const ENTANGLED: u32 = 2;

/// Whether the checksums of the segments were right that a client's stream of `len` bytes begins with.
///
/// A global function (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_is_intact(index: u32, len: u32) -> u32 {
    let Some(stash) = STASHES.get(index) else { return ENTANGLED };
    let (mut end, mut told) = (0, 0_u64);
    let mut i = 0;
    while i < VIEWS {
        let view = View::from_bits(lb_view_at(index, end));
        if view.len == 0 {
            break;
        }
        told += u64::from(if end & 1 == 1 { at_odd_offset(view.sum) } else { view.sum });
        end = view.end();
        i += 1;
    }
    if end != len {
        return ENTANGLED;
    }
    let mut sum = 0;
    let mut at = 0;
    while at < STASH_BYTES as u32 {
        if at + PIECE > end {
            break;
        }
        // SAFETY: the stash has room behind its last byte.
        sum = unsafe { sum_piece(stash, at, Length::of::<PIECE>(), sum) };
        at += PIECE;
    }
    let rest = end.wrapping_sub(at);
    let whole = rest & (PIECE - 4);
    if let (Some(len), Some(from)) = (Length::new::<PIECE>(whole), offset::<{ STASH_BYTES as u32 }>(at)) {
        // SAFETY: as above.
        sum = unsafe { sum_piece(stash, from as u32, len, sum) };
    }
    let mut seen = u64::from(sum);
    if rest & 3 != 0
        && let Some(from) = offset::<{ STASH_BYTES as u32 }>(at + whole)
    {
        // SAFETY: as above.
        let word = unsafe { core::ptr::read_unaligned(stash.bytes.as_ptr().add(from).cast::<u32>()) };
        seen += u64::from(word & ((1 << (8 * (rest & 3))) - 1));
    }
    // One's complement has two zeros.
    if matches!(sub(fold(seen), fold(told)), 0 | 0xffff) { INTACT } else { CORRUPT }
}

/// The segment that begins at an offset of the stream, as [`View::to_bits`]; without bytes where there is none. A global function
/// (see [`crate::cold`]): in the loop of its caller it would be verified again in each turn.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_view_at(index: u32, at: u32) -> u64 {
    let Some(stash) = STASHES.get(index) else { return 0 };
    let mut i = 0;
    while i < VIEWS {
        let view = view_of(stash, i);
        if view.flags & VIEW_USED != 0 && view.len != 0 && u32::from(view.at) == at {
            return view.to_bits();
        }
        i += 1;
    }
    0
}

/// Adds up a piece of a stash, its length a multiple of four.
///
/// # Safety
/// The stash has `len` bytes behind `at`.
#[inline(always)]
unsafe fn sum_piece(stash: &Stash, at: u32, len: Length, seed: u32) -> u32 {
    let Some(at) = offset::<{ STASH_BYTES as u32 }>(at) else { return 0 };
    // SAFETY: the caller's promise; the helper writes nothing.
    unsafe {
        let from = stash.bytes.as_ptr().add(at).cast_mut().cast();
        aya_ebpf::helpers::bpf_csum_diff(core::ptr::null_mut(), 0, from, len.get(), seed) as u32
    }
}

/// Whether a client's segment begins in what it was told had arrived, though its backend may not have all of it: then the stash
/// is sent again instead. Notes when the client goes on behind that. 0 is no.
///
/// A global function (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_is_owed(flow: u32, seq: u32, payload: u32) -> u32 {
    let Some(known) = FLOWS.get_ptr_mut(flow) else { return 0 };
    // SAFETY: a map value stays valid; its fields are plain integers.
    let (isn, index) = unsafe { ((*known).client_isn, (*known).stash) };
    let Some(slot) = of(flow, index) else { return 0 };
    let end = heard(slot.index);
    let at = seq.wrapping_sub(isn).wrapping_sub(1);
    if at.wrapping_add(payload) > end {
        // SAFETY: a map value stays valid; the client's path alone writes this.
        unsafe { (*known).client_flags |= WENT_ON };
    }
    u32::from(at < end)
}

/// Whether a backend that has sent `payload` bytes has no more use for the stash of a flow whose client was told that it had
/// arrived: it has all of that, and answers, or the client has gone on. 0 is no.
///
/// A global function (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_is_acknowledged(flow: u32, ack: u32, payload: u32) -> u32 {
    let Some(known) = FLOWS.get(flow) else { return 0 };
    let Some(slot) = of(flow, known.stash) else { return 1 };
    let end = heard(slot.index);
    let has_all = ack.wrapping_sub(known.client_isn).wrapping_sub(1) >= end;
    u32::from(has_all && (payload > 0 || known.client_flags & WENT_ON != 0))
}

/// How far what is there goes, gaps and FIN included.
#[inline(always)]
pub(crate) fn last(stash: &Stash) -> u32 {
    let mut last = 0;
    let mut i = 0;
    while i < VIEWS {
        // SAFETY: a map value stays valid; a view is one aligned word.
        let view = View::from_bits(unsafe { core::ptr::read_volatile(&raw const stash.views[i]) });
        let after = view.end() + u32::from(view.flags & VIEW_FIN != 0);
        if view.flags & VIEW_USED != 0 && after > last {
            last = after;
        }
        i += 1;
    }
    last
}

/// The stash of a flow, locked.
#[inline(always)]
pub(crate) fn lock(flow: u32, index: u16) -> Option<Slot> {
    let slot = of(flow, index)?;
    // SAFETY: a map value stays valid.
    unsafe {
        if compare_exchange(&raw mut (*slot.stash).lock, 0, 1) != 0 {
            return None;
        }
    }
    // Under the lock nobody can take it away.
    let still = of(flow, index);
    if still.is_none() {
        unlock(slot);
    }
    still
}

/// Keeps the payload of a client's first segment in a stash that was just claimed, and what later SYNs need of it.
/// Returns whether it fits.
#[inline(always)]
pub(crate) fn keep_first(ctx: &XdpContext, slot: Slot, segment: &Segment) -> bool {
    let stamps = timestamps(ctx, segment.header);
    // SAFETY: a map value stays valid, and the caller has its lock.
    let stash = unsafe { &mut *slot.stash };
    stash.ts_val = stamps.map_or(0, |stamps| stamps.val);
    stash.has_timestamps = u32::from(stamps.is_some());
    stash.window = u32::from(segment.window);
    stash.limit = segment.payload;
    stash.ts_base = stamps.map_or(0, |stamps| stamps.ecr);
    if segment.payload > STASH_BYTES as u32 {
        return false;
    }
    let view = view(ctx, segment, 0);
    if !copy(ctx, segment.payload_at(), slot, 0, segment.payload) {
        return false;
    }
    // Nobody looks at it before the flow's head is published, which is a barrier.
    stash.views[0] = view.to_bits();
    true
}

/// Keeps the payload of a client's segment, which begins at offset `at` of its stream, in a stash that the caller has
/// locked. Returns 0 when it does not fit.
///
/// A global function (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_keep(ctx: *mut xdp_md, service: u32, stash: u32, at: u32) -> u32 {
    let ctx = XdpContext::new(ctx);
    let (Some(entry), Some(place)) = (SERVICES.get(service), STASHES.get_ptr_mut(stash)) else { return 0 };
    let Some(Parsed { segment, .. }) = crate::cold::parse(&ctx, service) else { return 0 };
    let slot = Slot { stash: place, index: stash as u16 };
    if at.wrapping_add(segment.payload) > STASH_BYTES as u32 || at > STASH_BYTES as u32 {
        return 0;
    }
    let view = view(&ctx, &segment, at);
    if is_held(slot, view) {
        // Not copied again: with other bytes than before, its checksum would not be theirs.
        return 1;
    }
    let copied = segment.payload == 0 || copy(&ctx, segment.payload_at(), slot, at, segment.payload);
    // SAFETY: a map value stays valid, and the caller has its lock.
    let options = if unsafe { (*place).has_timestamps } != 0 { TIMESTAMPS } else { 0 };
    u32::from(copied && publish(slot, view, u32::from(entry.mss).wrapping_sub(options)))
}

/// The packet's payload as a segment of the stash.
#[inline(always)]
fn view(ctx: &XdpContext, segment: &Segment, at: u32) -> View {
    let mut flags = VIEW_USED;
    if segment.flags & PSH != 0 {
        flags |= VIEW_PSH;
    }
    if segment.flags & FIN != 0 {
        flags |= VIEW_FIN;
    }
    View { at: at as u16, len: segment.payload as u16, sum: payload_sum(ctx, segment), flags }
}

/// Copies `len` bytes at `from` of the packet to offset `at` of the stream. Returns whether they fit.
#[inline(always)]
fn copy<P: Packet>(packet: &P, from: u32, slot: Slot, at: u32, len: u32) -> bool {
    let (Some(at), Some(len)) = (offset::<{ STASH_BYTES as u32 }>(at), Length::new::<MAX_SEGMENT>(len))
    else {
        return false;
    };
    // SAFETY: the stash has room for a longest segment at the last offset.
    unsafe { packet.copy(from, (&raw mut (*slot.stash).bytes).cast::<u8>().add(at), len) }
}

/// Whether a segment is part of one that a stash holds.
#[inline(always)]
fn is_held(slot: Slot, view: View) -> bool {
    // SAFETY: a map value stays valid; its views are read one word at a time.
    let stash = unsafe { &*slot.stash };
    let mut i = 0;
    while i < VIEWS {
        let held = view_of(stash, i);
        let ends_it = view.flags & !held.flags & VIEW_FIN == 0;
        if held.flags & VIEW_USED != 0 && held.at <= view.at && view.end() <= held.end() && ends_it {
            return true;
        }
        i += 1;
    }
    false
}

/// Publishes a segment that is not held: joined to the last view, in the place of one that begins at the same offset, or as a new
/// one. Returns whether there was room.
#[inline(always)]
fn publish(slot: Slot, view: View, mss: u32) -> bool {
    let mut last = 0_u64;
    let mut i = 0;
    while i < VIEWS {
        // SAFETY: a map value stays valid; a view is one aligned word.
        let word = unsafe { &raw mut (*slot.stash).views[i] };
        // SAFETY: as above.
        let held = unsafe { core::ptr::read_volatile(word) };
        let present = View::from_bits(held);
        if present.flags & VIEW_USED == 0 {
            let joined = if i > 0 { View::from_bits(last).join(view, mss) } else { None };
            match joined {
                Some(joined) => {
                    // SAFETY: i is at least 1 here; masked for the verifier.
                    let before = unsafe { &raw mut (*slot.stash).views[(i - 1) & (VIEWS - 1)] };
                    // SAFETY: as above.
                    unsafe { exchange(before, joined.to_bits()) };
                }
                // SAFETY: as above.
                None => unsafe {
                    exchange(word, view.to_bits());
                },
            }
            return true;
        }
        if present.at == view.at && present.len <= view.len {
            // SAFETY: as above.
            unsafe { exchange(word, view.to_bits()) };
            return true;
        }
        last = held;
        i += 1;
    }
    false
}
